"""Milestone messages: what arrives, what is never sent, and receivers that must not cost the mission anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import KIT, need, until

import log
import notify
import proc
from notify import EVENTS, Message

SECRET = "correct-horse-battery-staple"
TOKEN = "aB3dE5fG7hI9jK1lM3nO5pQ7"
pytestmark = pytest.mark.usefixtures("fresh_mask", "nothing_left")


class Receiver(ThreadingHTTPServer):
    """A receiver on the loopback that answers each request by the next step, the last one again and again.

    A step is a status, a pair of status and headers, or a function that answers by itself.
    """

    daemon_threads = True

    def __init__(self, *steps: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps = list(steps) or [200]
        self.requests: list[tuple[float, str, dict[str, Any]]] = []  # when, path, JSON
        self.release = threading.Event()  # ends those that hang
        self.url = f"http://127.0.0.1:{self.server_port}/services/T00000000/{TOKEN}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        step = server.steps[min(len(server.requests), len(server.steps) - 1)]
        server.requests.append((time.monotonic(), self.path, body))
        if callable(step):
            return step(self)
        status, headers = step if isinstance(step, tuple) else (step, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def hang(handler: Handler) -> None:
    """Say nothing until the test lets go."""
    handler.server.release.wait(60)
    handler.close_connection = True


def drip_headers(handler: Handler) -> None:
    """An answer that never ends and never falls silent."""
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Drip: ")


def drip_body(handler: Handler) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")


def drip(handler: Handler, first: bytes) -> None:
    try:
        handler.wfile.write(first)
        while not handler.server.release.wait(0.05):
            handler.wfile.write(b"x")
    except OSError:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Start a receiver with these steps."""
    started: list[Receiver] = []

    def start(*steps: Any) -> Receiver:
        server = Receiver(*steps)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.release.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def nothing_left(receiver) -> Iterator[None]:
    """After each test no delivery lives on, even where the test itself failed."""
    yield
    for end in (subprocess.Popen.terminate, subprocess.Popen.kill):  # asked first, a command ends what it started
        for delivery in notify._under_way:
            end(delivery.process)
        notify.finish(10)
    assert not notify._under_way


@pytest.fixture
def hurried(monkeypatch, tmp_path) -> Callable[..., None]:
    """Run the deliveries, and the kit's side, with other constants than the real ones."""

    def hurry(**constants: Any) -> None:
        folder = tmp_path / "hurried"
        folder.mkdir()
        assignments = "".join(f"notify.{name} = {value!r}\n" for name, value in constants.items())
        text = f"import sys\nsys.path.insert(0, {str(KIT)!r})\nimport notify\n{assignments}sys.exit(notify.main())\n"
        (folder / "notify.py").write_text(text)
        monkeypatch.setattr(notify, "HERE", folder)
        for name, value in constants.items():
            monkeypatch.setattr(notify, name, value)

    return hurry


def to(kind: str, address: str, *events: str) -> SimpleNamespace:
    """A receiver as the settings have it."""
    url, command = (None, address) if kind == "command" else (address, None)
    return SimpleNamespace(type=kind, url=url, command=command, events=list(events or EVENTS))


def message(event: str = "done", text: str = "all 5 criteria are met", root: Path = KIT, **facts: Any) -> Message:
    return Message(event, "api", "The API", text, facts, root)


def delivered(receivers: list[SimpleNamespace], what: Message, capsys: pytest.CaptureFixture[str]) -> str:
    """Send, wait until all deliveries are over, and return what was warned about."""
    notify.send(receivers, what)
    notify.finish(30)
    assert not notify._under_way
    return capsys.readouterr().err


def write_to(path: Path) -> str:
    """A command that keeps what it is given: its standard input, a line of its own, and its variables."""
    return f"cat > '{path}'; env -0 > '{path}.env'"


def environment(path: Path) -> dict[str, str]:
    entries = Path(f"{path}.env").read_bytes().decode().rstrip("\0").split("\0")
    return dict(entry.split("=", 1) for entry in entries)


# --------------------------------------------------------------------------------------------------------
# What arrives
# --------------------------------------------------------------------------------------------------------


def test_slack_is_sent_a_text(receiver, capsys):
    server = receiver()
    assert delivered([to("slack", server.url)], message(), capsys) == ""
    assert server.bodies == [{"text": "The API (api): done\nall 5 criteria are met"}]
    assert server.requests[0][1] == f"/services/T00000000/{TOKEN}"


def test_discord_is_sent_a_content_that_may_mention_nobody(receiver, capsys):
    server = receiver(204)
    assert delivered([to("discord", server.url)], message("criterion_met", "c1 is met"), capsys) == ""
    text = "The API (api): criterion met\nc1 is met"
    assert server.bodies == [{"content": text, "allowed_mentions": {"parse": []}}]


def test_a_webhook_is_sent_the_facts_which_cannot_displace_the_message(receiver, capsys):
    server = receiver()
    facts = {"iteration": 3, "cost_usd": 0.5, "commit": None, "event": "forged", "path": KIT, "odd": float("nan")}
    what = Message("done", "api", "The API", "all 5 criteria are met", facts, KIT)
    assert delivered([to("webhook", server.url)], what, capsys) == ""
    (body,) = server.bodies
    assert body.pop("time").endswith("+00:00")
    assert body == {
        "event": "done",
        "mission": "api",
        "title": "The API",
        "text": "all 5 criteria are met",
        "iteration": 3,
        "cost_usd": 0.5,
        "commit": None,
        "path": str(KIT),
        "odd": "NaN",
    }


def test_a_command_gets_text_and_variables_and_runs_nothing_of_the_text(tmp_path, project, capsys):
    text = f"it's \"met\" $(touch '{tmp_path}/canary') `touch {tmp_path}/canary`;\ntouch {tmp_path}/canary #\nend"
    got = tmp_path / "got it"
    command = f'{write_to(got)}; pwd > "{got}.pwd"; printf %s "${{CCO_TEXT}}" > "{got}.text"'
    assert delivered([to("command", command)], message("blocked", text, project), capsys) == ""
    assert got.read_text() == text == Path(f"{got}.text").read_text()
    seen = environment(got)
    assert (seen["CCO_EVENT"], seen["CCO_MISSION"], seen["CCO_TEXT"]) == ("blocked", "api", text)
    assert Path(f"{got}.pwd").read_text().strip() == str(project)
    assert not (tmp_path / "canary").exists()


def test_a_command_gets_the_environment_without_the_keys_of_the_kit(tmp_path, monkeypatch, capsys):
    keys = (
        "OPENROUTER_API_KEY",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CCO_RUN",
        "CCO_OPENROUTER_API_KEY",
        "CCO_NOTIFY",
    )
    for name in (*keys, "NTFY_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    assert delivered([to("command", write_to(tmp_path / "got"))], message(), capsys) == ""
    seen = environment(tmp_path / "got")
    assert seen["NTFY_TOKEN"] == SECRET  # the user's own, which the command may need
    assert not set(keys) & set(seen)


def test_a_command_runs_elsewhere_when_the_repository_is_gone(tmp_path, capsys):
    command = f"pwd > '{tmp_path}/where'"
    assert delivered([to("command", command)], message("failed", root=tmp_path / "gone"), capsys) == ""
    assert (tmp_path / "where").read_text() == "/\n"


def test_each_receiver_gets_only_the_events_that_it_asks_for(receiver, capsys):
    some, every = receiver(), receiver()
    receivers = [to("webhook", some.url, "blocked", "done"), to("webhook", every.url)]
    for event in EVENTS:
        assert delivered(receivers, message(event), capsys) == ""
    assert [body["event"] for body in some.bodies] == ["blocked", "done"]
    assert [body["event"] for body in every.bodies] == list(EVENTS)


def test_messages_arrive_in_the_order_in_which_they_were_sent(receiver, capsys):
    def slowly(handler: Handler) -> None:
        time.sleep(0.5)  # the receiver's own slowness, which the next message must not overtake
        handler.send_response(200)
        handler.end_headers()

    server = receiver(slowly, 200)
    for number in range(4):
        notify.send([to("webhook", server.url)], message(number=number))
    notify.finish(30)
    assert [body["number"] for body in server.bodies] == [0, 1, 2, 3]
    assert server.requests[1][0] - server.requests[0][0] >= 0.5
    assert capsys.readouterr().err == ""


def test_a_proxy_of_the_environment_is_used(receiver, monkeypatch, capsys):
    proxy = receiver()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert delivered([to("slack", "http://hooks.invalid/x")], message(), capsys) == ""
    assert [path for _, path, _ in proxy.requests] == ["http://hooks.invalid/x"]


# --------------------------------------------------------------------------------------------------------
# What is never sent
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("slack", "discord", "webhook", "command"))
def test_secrets_are_masked_before_they_leave(kind, receiver, tmp_path, capsys):
    log.know_value(SECRET)
    server, got = receiver(), tmp_path / "got"
    text = f"the check printed {SECRET} and sk-{'a1' * 20}"
    what = Message("done", "api", f"The {SECRET}", text, {"question": SECRET, "tried": [{"why": SECRET}]}, KIT)
    assert delivered([to(kind, write_to(got) if kind == "command" else server.url)], what, capsys) == ""
    arrived = got.read_text() + str(environment(got)) if kind == "command" else json.dumps(server.bodies)
    assert "the check printed *** and ***" in arrived
    assert SECRET not in arrived


def test_a_secret_across_the_border_of_what_is_kept_does_not_leave_by_halves(receiver, capsys):
    log.know_value(SECRET)
    server = receiver()
    text = "x" * (notify.MAX_TEXT - 10) + SECRET
    assert delivered([to("webhook", server.url)], message(text=text), capsys) == ""
    assert server.bodies[0]["text"] == "x" * (notify.MAX_TEXT - 10) + "***"


@pytest.mark.parametrize("text", ("<!channel> look", "<!here>", "<@U012AB3CD>", "<https://evil.invalid|ours>", "a & b"))
def test_nothing_in_a_text_calls_people_in_slack(text, receiver, capsys):
    server = receiver()
    assert delivered([to("slack", server.url)], message(text=text), capsys) == ""
    sent = server.bodies[0]["text"]
    assert "<" not in sent and ">" not in sent
    assert sent.endswith(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def test_everyone_in_a_text_calls_nobody_in_discord(receiver, capsys):
    server = receiver()
    assert delivered([to("discord", server.url)], message(text="@everyone @here <@&1>"), capsys) == ""
    assert server.bodies[0]["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize("letter", ("x", "&", "\N{PARTY POPPER}"))
def test_long_messages_are_cut_to_what_the_receivers_take(letter, receiver, capsys):
    server = receiver()
    kinds = ("slack", "discord", "webhook")
    many = {f"fact {n}": letter * 5000 for n in range(100)}
    what = Message("done", "api", letter * 5000, letter * 1_000_000, many, KIT)
    assert delivered([to(kind, server.url) for kind in kinds], what, capsys) == ""
    text = next(body["text"] for body in server.bodies if set(body) == {"text"})
    content = next(body["content"] for body in server.bodies if "content" in body)
    assert 2000 < len(text) <= 3000
    assert text.count("&") == text.count("&amp;")  # no half of an entity at the end
    assert 1990 < len(content.encode("utf-16-le")) / 2 <= 2000
    plain = next(body for body in server.bodies if "event" in body)
    assert len(plain["text"]) == notify.MAX_TEXT
    assert set(plain) == {"event", "mission", "title", "text", "time"}


def test_control_characters_do_not_leave(receiver, tmp_path, capsys):
    server, got = receiver(), tmp_path / "got"
    receivers = [to("webhook", server.url), to("command", write_to(got))]
    text = "a\x1b[2Jb\x00c\u202ed\ud800e\r\nf"
    assert delivered(receivers, Message("done", "api", "two\nlines", text, {"why": text}, KIT), capsys) == ""
    assert server.bodies[0]["text"] == server.bodies[0]["why"] == got.read_text() == "a [2Jb c d e \nf"
    assert server.bodies[0]["title"] == "two lines"


def test_addresses_are_secrets_from_the_first_message_on(receiver, monkeypatch, tmp_path, capsys):
    log.start(tmp_path, "DEBUG")
    server = receiver(404)
    assert delivered([to("slack", server.url)], message(), capsys) == ""
    log.warn(f"posting to {server.url} or to /services/T00000000/{TOKEN}")
    log.stop()
    written = (tmp_path / "combined.log").read_text()
    assert "slack did not take the message about done: HTTP 404" in written
    assert "posting to *** or to /services/T00000000/***" in written
    assert TOKEN not in written


def test_ordinary_words_of_an_address_are_no_secrets():
    notify.know([to("webhook", "https://ci-12345.example.invalid/incoming-webhooks/v2?channel=deploys")])
    text = "POST /incoming-webhooks/v2 at ci-12345.example.invalid"
    assert log.mask(text) == text
    assert log.mask("https://ci-12345.example.invalid/incoming-webhooks/v2?channel=deploys") == "***"


# --------------------------------------------------------------------------------------------------------
# Receivers that fail
# --------------------------------------------------------------------------------------------------------


def test_a_dead_port_is_tried_again_and_then_reported(hurried, capsys):
    hurried(BACKOFF=(0.3, 0.4))
    begun = time.monotonic()
    said = delivered([to("slack", "http://127.0.0.1:1/x")], message(), capsys)
    assert said == "slack did not take the message about done: no answer (ConnectionError)\n"
    assert time.monotonic() - begun > sum(notify.BACKOFF)


def test_a_receiver_that_never_answers_is_tried_again_and_given_up(receiver, hurried, capsys):
    hurried(ANSWER=0.3, BACKOFF=(0.1, 0.1))
    server = receiver(hang)
    said = delivered([to("discord", server.url)], message(), capsys)
    assert said == "discord did not take the message about done: no answer (ReadTimeout)\n"
    assert len(server.requests) == 3


def test_an_answer_that_drips_for_ever_is_given_up(receiver, hurried, capsys):
    hurried(LIFETIME=1.0)
    server = receiver(drip_headers)
    said = delivered([to("webhook", server.url)], message(), capsys)
    assert said == "webhook did not take the message about done: no answer within 1 s\n"
    assert len(server.requests) == 1


def test_the_body_of_an_answer_is_not_waited_for(receiver, capsys):
    begun = time.monotonic()
    assert delivered([to("webhook", receiver(drip_body).url)], message(), capsys) == ""
    assert time.monotonic() - begun < 8


def test_a_server_error_is_tried_again(receiver, capsys):
    server = receiver(500, 200)
    assert delivered([to("slack", server.url)], message(), capsys) == ""
    assert len(server.requests) == 2
    assert server.bodies[0] == server.bodies[1]


def test_a_server_that_is_broken_for_good_is_reported(receiver, hurried, capsys):
    hurried(BACKOFF=(0.1, 0.1))
    server = receiver(503)
    said = delivered([to("slack", server.url)], message("limit"), capsys)
    assert said == "slack did not take the message about limit: HTTP 503\n"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("1.5", 1.5, 2.9),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.1, 1.5),
        ("nan", 0.1, 1.5),
        ("-5", 0.1, 1.5),
        ("86400", 2.0, 3.9),
    ],
)
def test_too_many_requests_are_answered_by_a_pause_of_the_asked_length(asked, least, most, receiver, hurried, capsys):
    hurried(BACKOFF=(0.1,), LONGEST_PAUSE=2.0)
    server = receiver((429, {"Retry-After": asked}), 200)
    assert delivered([to("discord", server.url)], message(), capsys) == ""
    first, second = (when for when, _, _ in server.requests)
    assert least <= second - first < most


@pytest.mark.parametrize("status", (400, 401, 403, 404, 410))
def test_a_refusal_is_reported_once_and_not_tried_again(status, receiver, capsys):
    server = receiver(status)
    said = delivered([to("slack", server.url)], message("blocked"), capsys)
    assert said == f"slack did not take the message about blocked: HTTP {status}\n"
    notify.send([], message())
    notify.finish(1)
    assert capsys.readouterr().err == ""
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(receiver, capsys):
    other = receiver()
    server = receiver((307, {"Location": other.url}))
    said = delivered([to("webhook", server.url)], message(), capsys)
    assert said == "webhook did not take the message about done: HTTP 307\n"
    assert other.requests == []


@pytest.mark.parametrize("url", ("http://[", "http://127.0.0.1:99999/x", "http://.../x"))
def test_an_address_that_is_none_is_reported(url, capsys):
    said = delivered([to("webhook", url)], message(), capsys)
    assert said.startswith("webhook did not take the message about done: Invalid")
    assert url not in said


def test_a_command_that_fails_is_reported_with_its_exit_code(capsys):
    said = delivered([to("command", "echo much; echo more >&2; exit 3")], message(), capsys)
    assert said == "command did not take the message about done: exit code 3\n"


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path, hurried, capsys):
    hurried(COMMAND_TIME=1.0, COMMAND_GRACE=0.5)
    pids = tmp_path / "pids"
    command = f"setsid sleep 300 & echo $! > '{pids}'; sleep 300 & echo $! >> '{pids}'; trap '' TERM; wait; sleep 300"
    said = delivered([to("command", command)], message(), capsys)
    assert said == "command did not take the message about done: not over within 1 s\n"
    assert [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}").exists()] == []


def test_what_a_command_leaves_behind_is_ended(tmp_path, capsys):
    need(Path("/proc/self/stat").exists(), "there is no /proc here")
    command = f"setsid sleep 300 > /dev/null 2>&1 & echo $! > '{tmp_path}/pid'"
    assert delivered([to("command", command)], message(), capsys) == ""
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_command_that_floods_its_output_is_ended(capsys):
    said = delivered([to("command", "yes")], message(), capsys)
    assert said == "command did not take the message about done: printed more than 1000000 bytes\n"


# --------------------------------------------------------------------------------------------------------
# What it costs the mission
# --------------------------------------------------------------------------------------------------------


def test_sending_takes_no_time_whatever_the_receivers_do(receiver, capsys):
    receivers = [to("slack", receiver(step).url) for step in (hang, drip_headers)]
    receivers += [to("webhook", "http://127.0.0.1:1/x"), to("command", "sleep 300")]
    begun = time.monotonic()
    for event in ("criterion_met", "blocked", "done"):
        notify.send(receivers, message(event))
    took = time.monotonic() - begun
    assert took < 2.0, f"{took:.2f} s for 12 deliveries"
    assert len(notify._under_way) == 12
    for delivery in notify._under_way:
        delivery.process.terminate()


def test_finish_waits_no_longer_than_it_may_and_says_what_is_still_on_the_way(receiver, tmp_path):
    log.start(tmp_path, "INFO")
    notify.send([to("slack", receiver(hang).url)], message())
    begun = time.monotonic()
    notify.finish(0.5)
    assert 0.5 <= time.monotonic() - begun < 5
    log.stop()
    assert "1 message is still on the way, for 60 s at most" in (tmp_path / "combined.log").read_text()
    assert notify._under_way[0].process.poll() is None


def test_finish_with_nothing_under_way_returns_at_once():
    begun = time.monotonic()
    notify.finish(10)
    assert time.monotonic() - begun < 1


def test_an_earlier_failure_is_told_when_the_next_message_is_sent(receiver, capsys):
    server = receiver(404, 200)
    notify.send([to("slack", server.url)], message("limit"))
    until(lambda: notify._under_way[0].process.poll() is not None, "the delivery ends")
    assert capsys.readouterr().err == ""
    notify.send([to("slack", server.url)], message("done"))
    assert capsys.readouterr().err == "slack did not take the message about limit: HTTP 404\n"
    notify.finish(30)
    assert capsys.readouterr().err == ""


def test_a_delivery_survives_the_sweep_after_a_command_during_which_it_was_sent(receiver, tmp_path, capsys):
    server = receiver(hang)

    def during(_: int) -> None:
        notify.send([to("slack", server.url)], message())

    with (tmp_path / "out").open("wb") as out:
        leave = "setsid sh -c 'touch ready; sleep 300; true' & until test -e ready; do sleep 0.02; done"
        command = ["sh", "-c", leave]
        result = proc.run(
            command, cwd=tmp_path, env=dict(os.environ), output=out, limits=proc.Limits(30), started=during
        )
    # What the command left is ended, and the delivery is not.
    assert result.swept and all("sleep 300" in name for name in result.swept)
    until(lambda: server.requests, "the message arrives")
    (delivery,) = notify._under_way
    assert delivery.process.poll() is None
    assert capsys.readouterr().err == ""


def test_a_delivery_carries_nothing_of_the_kit(receiver, tmp_path, monkeypatch):
    need(Path("/proc/self/fd").exists(), "there is no /proc here")
    server = receiver(hang)
    monkeypatch.setenv("CCO_RUN", str(tmp_path))
    monkeypatch.setenv("SLACK_WEBHOOK", server.url)
    monkeypatch.setenv("CCO_NOTIFY", f"[{{type: slack, url: '{server.url}'}}]")
    monkeypatch.setenv("NTFY_TOKEN", SECRET)
    log.start(tmp_path, "INFO")
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        notify.send([to("slack", server.url)], message())
        until(lambda: server.requests, "the message arrives")
        (delivery,) = notify._under_way
        place = Path("/proc", str(delivery.process.pid))
        held = {os.readlink(fd) for fd in (place / "fd").iterdir()}
    log.stop()
    shown = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
    for hidden in (TOKEN, "CCO_RUN", "CCO_NOTIFY", SECRET):
        assert hidden.encode() not in shown
    assert not [name for name in held if name.startswith(str(tmp_path))]
    assert os.getsid(delivery.process.pid) == delivery.process.pid
    assert os.readlink(place / "cwd") == "/"


def kit_process(server: Receiver, then: str) -> subprocess.Popen[bytes]:
    """A kit in a process of its own: it sends one message, and then does this."""
    text = f"""
import sys; sys.path.insert(0, {str(KIT)!r})
import os, pathlib, resource, types
import notify, proc
proc.catch_signals()
receivers = [types.SimpleNamespace(type="slack", url={server.url!r}, command=None, events=["done"])]
message = notify.Message("done", "api", "The API", "all is met", {{}}, pathlib.Path("/"))
{then}
"""
    return subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_message_arrives_although_the_kit_has_ended(receiver):
    server = receiver()
    with kit_process(server, "notify.send(receivers, message); os._exit(7)") as kit:
        assert kit.wait(30) == 7
    until(lambda: server.requests, "the message arrives")
    assert server.bodies == [{"text": "The API (api): done\nall is met"}]


def test_a_signal_ends_the_waiting_at_the_end(receiver):
    server = receiver(hang)
    then = "notify.send(receivers, message); print(notify._under_way[0].process.pid, flush=True); notify.finish(60)"
    with kit_process(server, then) as kit:
        assert kit.stdout
        pid = int(kit.stdout.readline())
        until(lambda: server.requests, "the message arrives")
        begun = time.monotonic()
        kit.send_signal(signal.SIGTERM)
        kit.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    os.kill(pid, signal.SIGKILL)  # it would go on for its minute


def test_without_file_handles_there_is_a_warning_and_nothing_else(receiver):
    then = """
handles = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(handles) + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
notify.send(receivers, message)
notify.finish()
"""
    with kit_process(receiver(), then) as kit:
        out, err = kit.communicate(timeout=30)
    assert (kit.returncode, out) == (0, b"")
    assert err == b"slack cannot be told about done: Too many open files\n"


def test_where_no_process_can_be_started_there_is_a_warning_and_nothing_else(receiver, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    notify.send([to("slack", receiver().url)], message())
    assert capsys.readouterr().err == "slack cannot be told about done: No such file or directory\n"


def test_an_order_that_arrives_torn_is_reported(receiver, monkeypatch, capsys):
    server = receiver()
    said = delivered([to("webhook", server.url + "x" * 200_000)], message(), capsys)
    assert said == "webhook did not take the message about done: its delivery broke (1)\n"
    assert server.requests == []


def test_when_too_many_are_under_way_the_oldest_is_given_up_for_the_newest(receiver, monkeypatch, capsys):
    monkeypatch.setattr(notify, "MOST", 2)
    stuck, well = receiver(hang), receiver()
    for event in ("limit", "limit_over"):
        notify.send([to("slack", stuck.url)], message(event))
    notify.send([to("slack", well.url)], message("done"))
    until(lambda: well.requests, "the newest arrives")
    until(lambda: notify._reap() == 1, "the oldest is given up")
    said = capsys.readouterr().err
    assert said == "slack did not take the message about limit: more than 2 messages were under way\n"


def test_it_runs_where_pythons_safe_path_is_on(receiver, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    server = receiver()
    assert delivered([to("slack", server.url)], message(), capsys) == ""
    assert len(server.requests) == 1


def test_the_settings_know_the_same_events():
    schema = json.loads((KIT / "schema" / "config.json").read_text("utf-8"))
    events = schema["properties"]["notify"]["items"]["properties"]["events"]
    assert events["items"]["enum"] == events["default"] == list(EVENTS)
