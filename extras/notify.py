#!/usr/bin/env python3
"""Post a notification of CCO to Slack, to Discord, or to any webhook.

    notify:                                                  # in .cco/config.yaml
      - command: cco/.venv/bin/python cco/extras/notify.py
        events: [blocked, done, failed]

Reads the JSON object that CCO writes on standard input. The addresses are SLACK_WEBHOOK_URL, DISCORD_WEBHOOK_URL and
CCO_WEBHOOK_URL (plain JSON), from the environment or from .env in the repository. All that leaves is masked, bounded,
and cannot call anybody by @ or <!channel>.

Exit codes: 0 all took it, 1 one of them did not (the reason is on standard error), 2 no address, or no JSON object.

Limitations: a message that is not taken within eight seconds is given up, since CCO waits no longer than ten for its
commands when it ends; one whose answer was lost arrives twice.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import log  # noqa: E402
import mission  # noqa: E402
import state  # noqa: E402

KINDS = {"SLACK_WEBHOOK_URL": "slack", "DISCORD_WEBHOOK_URL": "discord", "CCO_WEBHOOK_URL": "webhook"}
LIFETIME = 8.0  # seconds for everything; the core ends a command that runs longer than ten when a mission ends
ANSWER = 4.0  # seconds of silence after which a server is asked again
BACKOFF = (1.0, 2.0, 3.0)  # seconds before each further try
MAX_INPUT = 1_000_000  # bytes on standard input
MAX_TEXT = 3000  # characters of one text
MAX_SLACK, MAX_DISCORD = 3000, 2000  # characters of a message there


def main() -> int:
    """Post the notification on standard input to every address that is set."""
    try:
        payload = json.loads(sys.stdin.buffer.read(MAX_INPUT))
        words = {name: str(payload[name]) for name in ("event", "mission", "title", "text")}
        environ = {**mission.read_dotenv(Path(payload.get("repository") or ".") / ".env"), **os.environ}
    except (ValueError, TypeError, KeyError, AttributeError, mission.MissionError) as error:
        print(f"notify: no notification on standard input: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    log.register_secrets(environ)
    addresses = {kind: environ[name] for name, kind in KINDS.items() if environ.get(name)}
    if not addresses:
        print(f"notify: no address: set one of {', '.join(KINDS)} in the environment or in .env", file=sys.stderr)
        return 2
    failed = deliver(addresses, {**payload, **words})
    for kind, reason in failed.items():
        print(f"notify: {kind} did not take the message about {words['event']}: {reason}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1 if failed else 0)  # a thread that still waits for an answer must not hold it up


def deliver(addresses: Mapping[str, str], payload: Mapping[str, Any]) -> dict[str, str]:
    """Post to all addresses side by side; return why it failed, by kind. addresses: kind -> URL."""
    end, reasons = time.monotonic() + LIFETIME, dict.fromkeys(addresses, f"no answer within {LIFETIME:.0f} s")

    def one(kind: str, url: str) -> None:
        reasons[kind] = post(url, body(kind, payload))

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in addresses.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {kind: reason for kind, reason in reasons.items() if reason}


def body(kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON that this kind of address takes: masked, bounded, without control characters."""
    facts = {name: log.printable(v)[:MAX_TEXT] if isinstance(v, str) else v for name, v in payload.items()}
    facts["title"] = " ".join(facts["title"].split())
    if kind == "webhook":
        return {**{name: value for name, value in facts.items() if name != "repository"}, "time": state.now()}
    happened = facts["event"].replace("_", " ")
    progress = f"{facts['met']}/{facts['total']} met, iteration {facts['iteration']}" if "met" in facts else ""
    text = f"{facts['title']} ({facts['mission']}): {happened}\n{facts['text'].strip()}\n{progress}".strip()
    if kind == "discord":  # bounded in the units that JavaScript counts, so that no emoji makes it too long
        short = text.encode("utf-16-le")[: 2 * MAX_DISCORD].decode("utf-16-le", "ignore")
        return {"content": short, "allowed_mentions": {"parse": []}}
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # Slack's rules, no others
    return {"text": re.sub(r"&[a-z]*$", "", escaped[:MAX_SLACK])}


def post(url: str, content: Mapping[str, Any]) -> str:
    """Post it, again where that may help; return why it was not taken, "" if it was."""
    reason = ""
    for pause in (*BACKOFF, None):
        reason, wait = attempt(url, content)
        if wait is None or pause is None or wait > LIFETIME:
            break
        time.sleep(max(pause, wait))
    return reason


def attempt(url: str, content: Mapping[str, Any]) -> tuple[str, float | None]:
    """Post it once; return why it was not taken, and the seconds to wait, None where another try would not help.

    The status says everything; the body of the answer is not read. Texts of exceptions are left out: they name the URL.
    """
    import requests

    try:
        with requests.post(url, json=content, timeout=ANSWER, stream=True, allow_redirects=False) as response:
            status, asked = response.status_code, response.headers.get("Retry-After", "0")
    except (requests.ConnectionError, requests.Timeout) as error:
        return f"no answer ({type(error).__name__})", 0.0
    except (requests.RequestException, ValueError) as error:
        return type(error).__name__, None
    if 200 <= status < 300:
        return "", None
    if status != 429 and status < 500:
        return f"HTTP {status}", None
    return f"HTTP {status}", float(asked) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", asked) else 0.0  # or a date


if __name__ == "__main__":
    sys.exit(main())
