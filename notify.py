"""Milestone messages: to Slack, to Discord, to any webhook, or to a command of the user's.

    notify.send(settings.notify, notify.Message("done", "api", "The API", "all 5 criteria are met", {"met": 5}, root))
    notify.finish()     at the end: wait a little for what is under way, and say what failed

Each delivery is a process of its own (`python notify.py`, with all that it has to know on its standard input), so a
receiver that is dead, slow or silent costs the mission nothing. Whether it failed is logged when the next message is
sent, or at the end. All that leaves is masked, bounded, and cannot call anybody by @ or <!channel>.

What is not covered: a message that was not taken within a minute is given up, and one whose answer was lost is sent
twice. A command runs with the rights of whoever started the kit: what it calls by a path inside the repository, the
worker may have written.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import log
import proc
import surroundings

HERE = Path(__file__).resolve().parent
EVENTS = (
    "criterion_met",
    "regression",
    "tampering",
    "limit",
    "limit_over",
    "stalled",
    "budget",
    "blocked",
    "done",
    "failed",
)
OWN_KEYS = ("CCO_", "OPENROUTER_", "ANTHROPIC_", "CLAUDE_CODE_OAUTH_TOKEN")  # beginnings of what no command gets
MOST = 64  # deliveries under way; above it the oldest is given up
LIFETIME = 60.0  # seconds of one delivery in all
TURN = 15.0  # seconds that it waits for the one before it
ANSWER = 10.0  # seconds of silence after which a receiver is tried again
BACKOFF = (1.0, 2.0, 4.0)  # seconds before each further try
LONGEST_PAUSE = 20.0  # seconds that a receiver's Retry-After may make it
COMMAND_TIME = 60.0  # seconds that a command may run
COMMAND_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
MAX_OUTPUT = 1_000_000  # bytes that a command may print; nobody reads them
MAX_TEXT = 3000  # characters of the text
MAX_TITLE = 200  # characters
MAX_FACT = 1000  # characters of one text among the facts
MAX_FACTS = 16_000  # bytes of all facts; more of them are left out
MAX_SLACK, MAX_DISCORD = 3000, 2000  # characters of a message there
TOKEN = 16  # characters from which a part of an address, with a digit in it, is taken for its secret


@dataclass(frozen=True)
class Message:
    """What happened."""

    event: str
    """One of EVENTS."""
    mission: str
    """The mission's id."""
    title: str
    """The mission's title."""
    text: str
    """What happened, for people: one or a few lines."""
    facts: Mapping[str, Any]
    """The same for programs: iteration, met, total, cost_usd, branch, commit, wait_until, question ..."""
    root: Path
    """The repository: commands run there."""


@dataclass(frozen=True)
class _Delivery:
    process: subprocess.Popen[bytes]
    receiver: tuple[str, str]  # its type, its address or command
    event: str


_under_way: list[_Delivery] = []


# --------------------------------------------------------------------------------------------------------
# In the kit
# --------------------------------------------------------------------------------------------------------


def know(receivers: Sequence[Any]) -> None:
    """Make the mask know their addresses: whoever has one can write there in the user's name."""
    for url in (receiver.url for receiver in receivers if receiver.url):
        log.know_value(url)
        for part in re.split(r"[/?&=#]", "".join(url.split("/", 3)[3:])):
            if len(part) >= TOKEN and re.search(r"\d", part):
                log.know_value(part)


def send(receivers: Sequence[Any], message: Message) -> None:
    """Set the message on its way to those receivers (of the settings) that want its event; returns at once.

    Raises nothing: what fails is a warning in the log.
    """
    _reap()
    know(receivers)
    wanted = [receiver for receiver in receivers if message.event in receiver.events]
    parcel = _parcel(message) if wanted else {}
    for receiver in wanted:
        _start(receiver, parcel)


def finish(seconds: float = 10.0) -> None:
    """Wait so long at most for the deliveries under way, and say which failed. A signal ends the waiting.

    What is not over then goes on without the kit, for LIFETIME at most.
    """
    asked, end = proc.stopping, time.monotonic() + seconds
    while (left := _reap()) and time.monotonic() < end and proc.stopping == asked:
        time.sleep(0.02)
    if left:
        log.info(f"{left} message{'s are' if left > 1 else ' is'} still on the way, for {LIFETIME:.0f} s at most")


def _parcel(message: Message) -> dict[str, Any]:
    """The message as it may leave: JSON, masked, without control characters, bounded."""
    facts = _fit(json.loads(json.dumps(dict(message.facts), default=str), parse_constant=str))
    return {
        "facts": facts if len(json.dumps(facts)) <= MAX_FACTS else {},
        "event": message.event,
        "mission": message.mission,
        "title": " ".join(log.printable(message.title).split())[:MAX_TITLE],
        "text": log.printable(message.text).strip()[:MAX_TEXT],
        "time": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds"),
        "root": str(message.root),
    }


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return log.printable(value)[:MAX_FACT]
    if isinstance(value, dict):
        return {key: _fit(item) for key, item in value.items()}
    return [_fit(item) for item in value] if isinstance(value, list) else value


def _start(receiver: Any, parcel: dict[str, Any]) -> None:
    """Start one delivery."""
    for crowded in _under_way[: 1 - MOST]:
        crowded.process.terminate()
    key = (receiver.type, receiver.url or receiver.command)
    earlier = [delivery.process.pid for delivery in _under_way if delivery.receiver == key]
    order = {"type": key[0], "to": key[1], "after": earlier[-1] if earlier else None, "parcel": parcel}
    try:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "notify.py")],
            cwd="/",
            env=_environment(receiver.type == "command"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a library says there names the address
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        log.warn(f"{receiver.type} cannot be told about {parcel['event']}: {error.strerror}")
        return
    proc.spare(process.pid)
    _under_way.append(_Delivery(process, key, parcel["event"]))
    if process.stdin:
        with suppress(OSError), process.stdin as pipe:  # what does not fit at once arrives torn, and fails there
            os.set_blocking(pipe.fileno(), False)
            pipe.write(json.dumps(order, ensure_ascii=False).encode("utf-8", "replace"))


def _environment(command: bool) -> dict[str, str]:
    """What a delivery gets of ours: for a command all but the kit's keys, for an address nothing that is secret."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_KEYS)}
    own.pop("PYTHONSAFEPATH", None)  # with it python would not find the files beside this one
    if command:
        return own
    plain = surroundings.clean_env(own)
    return {name: value for name, value in plain.items() if not log.holds_secret(os.fsencode(value))}


def _reap() -> int:
    """Part with the deliveries that have ended, and say which failed; how many are under way."""
    for delivery in [delivery for delivery in _under_way if delivery.process.poll() is not None]:
        _under_way.remove(delivery)
        if reason := _failure(delivery.process):
            log.warn(f"{delivery.receiver[0]} did not take the message about {delivery.event}: {reason}")
    return len(_under_way)


def _failure(process: subprocess.Popen[bytes]) -> str:
    """Why a delivery that has ended failed, "" if it did not."""
    said = b""
    if process.stdout:
        with process.stdout as pipe:
            os.set_blocking(pipe.fileno(), False)
            said = pipe.read(MAX_FACT) or b""
    if process.returncode == -signal.SIGALRM:
        return f"no answer within {LIFETIME:.0f} s"
    if process.returncode == -signal.SIGTERM:
        return f"more than {MOST} messages were under way"
    return said.decode("utf-8", "replace") or (f"its delivery broke ({process.returncode})" * bool(process.returncode))


# --------------------------------------------------------------------------------------------------------
# In the process of one delivery
# --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Deliver the message on standard input; print why it was not taken."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LIFETIME)  # whatever the receiver, the network and the resolver do
    order = json.loads(sys.stdin.buffer.read())
    _await_turn(order["after"])
    if order["type"] == "command":
        signal.setitimer(signal.ITIMER_REAL, 0)  # it has a limit of its own, after which nothing of it is left
        proc.catch_signals()
        reason = _run(order["to"], order["parcel"])
    else:
        reason = _post(order["to"], _body(order["type"], order["parcel"]))
    with suppress(OSError):  # the kit may be gone
        os.write(1, reason.encode("utf-8", "replace"))
    return 1 if reason else 0


def _await_turn(pid: int | None) -> None:
    """Let the message before this one arrive first, if it does so soon."""
    with suppress(OSError, AttributeError):  # it has arrived; macOS has no pidfd
        if pid:
            select.select([os.pidfd_open(pid)], [], [], TURN)


def _body(kind: str, parcel: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that this kind of receiver takes."""
    if kind == "webhook":
        return {**parcel["facts"], **{k: parcel[k] for k in ("event", "mission", "title", "text", "time")}}
    happened = parcel["event"].replace("_", " ")
    text = f"{parcel['title']} ({parcel['mission']}): {happened}\n{parcel['text']}"
    if kind == "discord":  # bounded in the units that JavaScript counts, so that no emoji makes it too long
        short = text.encode("utf-16-le")[: 2 * MAX_DISCORD].decode("utf-16-le", "ignore")
        return {"content": short, "allowed_mentions": {"parse": []}}
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # by Slack's rules, no others
    return {"text": re.sub(r"&[a-z]*$", "", escaped[:MAX_SLACK])}


def _post(url: str, body: Mapping[str, Any]) -> str:
    """Send it, several times where that may help; why it was not taken, "" if it was."""
    for pause in BACKOFF:
        reason, asked = _try(url, body)
        if asked is None:
            return reason
        time.sleep(max(pause, min(asked, LONGEST_PAUSE)))
    return _try(url, body)[0]


def _try(url: str, body: Mapping[str, Any]) -> tuple[str, float | None]:
    """Send it once: why it was not taken, and the seconds to wait before the next try; None where none would help.

    The answer's status says all; its body is not read. What an exception says is not told, for it names the address.
    """
    import requests

    try:
        with requests.post(url, json=body, timeout=ANSWER, stream=True, allow_redirects=False) as response:
            status, asked = response.status_code, response.headers.get("Retry-After")
    except (requests.ConnectionError, requests.Timeout) as error:
        return f"no answer ({type(error).__name__})", 0.0
    except (requests.RequestException, ValueError) as error:
        return f"{type(error).__name__}", None
    if 200 <= status < 300:
        return "", None
    return f"HTTP {status}", _seconds(asked) if status == 429 or status >= 500 else None


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:  # a date
        return 0.0


def _run(command: str, parcel: Mapping[str, Any]) -> str:
    """Run the user's command with the message on its standard input; why that failed, "" if it did not."""
    root = Path(parcel["root"])
    env = {
        **os.environ,
        "PATH": surroundings.trusted_first(os.environ.get("PATH", os.defpath), root),
        **{f"CCO_{name.upper()}": parcel[name] for name in ("event", "mission", "text")},
    }
    shell = surroundings.find("bash", root) or "/bin/sh"
    limits = proc.Limits(COMMAND_TIME, max_output=MAX_OUTPUT, grace=COMMAND_GRACE)
    with tempfile.TemporaryFile() as output:
        result = proc.run(
            [shell, "-c", command],
            cwd=root if root.is_dir() else Path("/"),
            env=env,
            output=output,
            limits=limits,
            stdin=parcel["text"].encode("utf-8", "replace"),
        )
    if result.error:
        return f"it cannot be started: {result.error}"
    ended = {"timeout": f"not over within {COMMAND_TIME:.0f} s", "size": f"printed more than {MAX_OUTPUT} bytes"}
    return ended.get(result.stopped, result.stopped) or (f"exit code {result.code}" if result.code else "")


if __name__ == "__main__":
    sys.exit(main())
