"""extras/notify.py: what arrives, what never leaves, and servers that fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import KIT, until

import log
import report
from extras import notify
from mission import parse
from state import State

SECRET = "correct-horse-battery-staple-7"
PAYLOAD: dict[str, Any] = {"event": "criterion_met", "mission": "api", "title": "The API", "text": "c1 is met"}
PAYLOAD |= {"iteration": 3, "met": 2, "total": 5, "cost_usd": 0.5, "branch": "cco/api", "commit": "c0ffee"}
PAYLOAD |= {"wait_until": None, "question": None}
pytestmark = pytest.mark.usefixtures("fresh_mask")


class Server(ThreadingHTTPServer):
    """A server on the loopback that answers each request by the next step, the last one again and again."""

    daemon_threads = True

    def __init__(self, *steps: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps = list(steps) or [200]  # a status, a status with headers, or a function that answers by itself
        self.bodies: list[dict[str, Any]] = []
        self.release = threading.Event()  # ends those that hang
        self.url = f"http://127.0.0.1:{self.server_port}/services/T0/aB3dE5fG7hI9jK1lM3nO5pQ7"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        step = self.server.steps[min(len(self.server.bodies), len(self.server.steps)) - 1]
        if callable(step):
            return step(self)
        status, headers = step if isinstance(step, tuple) else (step, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def drip(handler: Handler) -> None:
    """Begin an answer that never ends and never falls silent."""
    with suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not handler.server.release.wait(0.05):
            handler.wfile.write(b"x")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a server with these steps."""
    with ExitStack() as stack:

        def start(*steps: Any) -> Server:
            server = stack.enter_context(Server(*steps))
            stack.callback(server.shutdown)
            stack.callback(server.release.set)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            return server

        yield start


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Record the pauses between tries instead of making them."""
    made: list[float] = []
    monkeypatch.setattr(notify.time, "sleep", made.append)
    return made


def run(payload: Any, root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program as CCO does, on a repository whose address the payload names."""
    plain = {name: value for name, value in os.environ.items() if name not in notify.KINDS}
    text = json.dumps({**payload, "repository": str(root)} if isinstance(payload, dict) else payload)
    argv, env = [sys.executable, str(KIT / "extras" / "notify.py")], {**plain, **variables}
    return subprocess.run(argv, input=text, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def test_each_address_gets_what_it_takes_from_the_environment_or_dotenv(serve, tmp_path):
    slack, discord, webhook, unused = serve(), serve(204), serve(), serve()
    (tmp_path / ".env").write_text(f"DISCORD_WEBHOOK_URL={discord.url}\nSLACK_WEBHOOK_URL={unused.url}\n")
    done = run(PAYLOAD, tmp_path, SLACK_WEBHOOK_URL=slack.url, CCO_WEBHOOK_URL=webhook.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = "The API (api): criterion met\nc1 is met\n2/5 met, iteration 3"
    assert (slack.bodies, unused.bodies) == ([{"text": text}], [])
    assert discord.bodies == [{"content": text, "allowed_mentions": {"parse": []}}]
    assert webhook.bodies[0].pop("time").endswith("+00:00")
    assert webhook.bodies == [PAYLOAD]


def test_a_failure_is_named_by_kind_and_exit_code_and_never_by_address(serve, tmp_path):
    good, bad = serve(), serve(404)
    done = run(PAYLOAD, tmp_path, SLACK_WEBHOOK_URL=bad.url, CCO_WEBHOOK_URL=good.url, DISCORD_WEBHOOK_URL="http://[")
    assert (done.returncode, len(good.bodies), len(bad.bodies)) == (1, 1, 1)
    refused, broken = done.stderr.splitlines()
    assert refused == "notify: slack did not take the message about criterion_met: HTTP 404"
    assert broken.startswith("notify: discord did not take the message about criterion_met: Invalid")
    none = run(PAYLOAD, tmp_path)
    assert none.returncode == 2 and "no address: set one of SLACK_WEBHOOK_URL, " in none.stderr
    for payload in ([], {"event": "done"}, "text", None):
        assert run(payload, tmp_path, SLACK_WEBHOOK_URL=good.url).returncode == 2


def test_no_secret_and_no_control_character_leaves_and_nothing_calls_people():
    log.register_secret(SECRET)
    text = f"a\x1b[2Jb\x00c\u202ed\ud800e {SECRET} sk-{'a1' * 20} <!channel> <@U012AB3CD> a & b @everyone"
    payload = {**PAYLOAD, "title": f"two\n{SECRET}", "text": text, "question": SECRET}
    bodies = {kind: notify.body(kind, payload) for kind in notify.KINDS.values()}
    for sent in map(json.dumps, bodies.values()):
        assert "a [2Jb c d e *** ***" in sent and "two ***" in sent
        assert SECRET not in sent and "\\u001b" not in sent
    assert "&lt;!channel&gt; &lt;@U012AB3CD&gt; a &amp; b" in bodies["slack"]["text"]
    assert bodies["discord"]["allowed_mentions"] == {"parse": []}


def test_long_messages_are_cut_to_what_the_servers_take():
    for letter in ("x", "&", "\N{PARTY POPPER}"):
        long = {**PAYLOAD, "title": letter * 5000, "text": letter * 100_000}
        text, content = notify.body("slack", long)["text"], notify.body("discord", long)["content"]
        assert 2000 < len(text) <= 3000 and text.count("&") == text.count("&amp;")  # no half of an entity at the end
        assert 1990 < len(content.encode("utf-16-le")) / 2 <= 2000
        assert len(notify.body("webhook", long)["text"]) == notify.MAX_TEXT


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(serve, pauses):
    assert notify.post(serve(500, 200).url, PAYLOAD) == ""
    assert notify.post(serve(503).url, PAYLOAD) == "HTTP 503"
    assert pauses == [1.0, *notify.BACKOFF]
    assert notify.post("http://127.0.0.1:1/x", PAYLOAD) == "no answer (ConnectionError)"
    other = serve()
    for status in (307, 400, 404):
        server = serve((status, {"Location": other.url}))
        assert notify.post(server.url, PAYLOAD) == f"HTTP {status}" and len(server.bodies) == 1
    assert other.bodies == []  # a redirect is not followed


def test_retry_after_is_obeyed_and_a_longer_one_than_there_is_time_for_ends_it(serve, pauses):
    for value in ("1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "nan", "-5", "inf"):
        assert notify.post(serve((429, {"Retry-After": value}), 200).url, PAYLOAD) == ""
    assert notify.post(serve((429, {"Retry-After": "86400"}), 200).url, PAYLOAD) == "HTTP 429"
    assert pauses == [1.5, 1.0, 1.0, 1.0, 1.0]


def test_it_gives_up_before_the_core_ends_it():
    (seconds,) = re.findall(r"notifier\.finish\(.* else ([\d.]+)\)", (KIT / "cco.py").read_text("utf-8"))
    assert float(seconds) > notify.LIFETIME + 1  # and a second to start


def test_the_core_starts_what_wants_an_event_and_says_what_failed(serve, tmp_path, monkeypatch, capsys):
    server, pid = serve(), tmp_path / "pid"
    monkeypatch.setenv("CCO_WEBHOOK_URL", server.url)
    document = {"id": "api", "title": "The API", "definition_of_done": [{"criteria": "x"}]}
    mission = parse(json.dumps(document), tmp_path / "m")
    state = State("api", str(tmp_path), "", "", branch="cco/api", commit="c0ffee")
    state.adopt(mission)
    log.register_secret(SECRET)
    commands = {f"{sys.executable} '{KIT}/extras/notify.py'": ["done"], "exit 3": [], "exit 4": ["limit"]}
    commands[f"sleep 300 & echo $! > '{pid}'; wait"] = ["blocked"]
    targets = [SimpleNamespace(command=command, events=events) for command, events in commands.items()]
    notifier = report.Notifier(targets, mission, tmp_path)
    notifier.send("done", f"it's $(touch canary) {SECRET}", state)
    notifier.finish(30)
    assert capsys.readouterr().err == "a notification failed: its command ended with exit code 3\n"
    body = {"event": "done", "title": "The API", "text": "it's $(touch canary) ***", "met": 0, "question": None}
    assert {**server.bodies[0], **body} == server.bodies[0]
    notifier = report.Notifier(targets[3:], mission, tmp_path)
    notifier.send("blocked", "", state)
    until(lambda: pid.exists() and pid.read_text(), "the command starts another one")
    notifier.finish(0)
    assert capsys.readouterr().err == "a notification took too long and was ended\n"
    stat = Path("/proc", pid.read_text().strip(), "stat")
    until(lambda: not stat.exists() or ") Z " in stat.read_text(), "what it started is ended, too")
