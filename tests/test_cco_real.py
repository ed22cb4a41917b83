"""The contract with the real claude: what worker and stream take for granted, and that the stand-in keeps to it.

Only the model's answers are made up, by a server on loopback. Each test has a home of its own, so that nobody's login,
settings or history take part.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked, need

import mission
import state
import stream
import worker
from extras.messages_api import MessagesAPI

SESSION = "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10"
RESET = int(time.time()) // 3600 * 3600 + 2 * 3600  # a full hour
UNIFIED = "anthropic-ratelimit-unified-"
OWN = re.compile("ANTHROPIC_|CLAUDE|CCO_|OPENROUTER_|.*(KEY|TOKEN)")  # variables of whoever runs this


class Host:
    """A repository with the real claude, and one with the stand-in, which are given the same task."""

    def __init__(self, folder: Path, claude: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.root, self.other, self.home = folder / "a host", folder / "another host", folder / "home"
        for path in (self.root / ".cco", self.other / ".cco", self.home):
            path.mkdir(parents=True)
        self.settings = mission.load_settings(None, None, {})
        self.claude = self.settings.claude_code
        self.claude.command = str(claude)
        self.stand_in = folder / "claude"
        self.stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{KIT}/extras/claude_stand_in.py" "$@"\n')
        self.stand_in.chmod(0o755)
        self.script: list[list[dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.api_key: str | None = "none-is-needed"

    def task(self, root: Path, **given: Any) -> worker.Task:
        usual: dict[str, Any] = {
            "prompt": "Go on.", "session": SESSION, "resume": False, "root": root, "protected": (), "network": (),
            "budget_usd": None, "model": None, "timeout": 120.0, "window": 200_000, "spent": {},
            "marker": f"test-{root}", "stream": self.folder / f"{root.name}.jsonl.gz", "criteria": ["a", "b"],
        }  # fmt: skip
        return worker.Task(**usual | given)

    def run(self, *replies: dict[str, Any], **given: Any) -> state.Outcome:
        """One session of the real claude; nothing that it started is left."""
        with MessagesAPI(list(replies)) as api:
            self.monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
            if self.api_key:
                self.monkeypatch.setenv("ANTHROPIC_API_KEY", self.api_key)
            outcome = worker.run(self.task(self.root, **given), self.settings)
        self.requests = [request for request in api.requests if request["turn"]]
        assert marked(f"test-{self.root}") == {}
        return outcome

    def play(self, *steps: dict[str, Any], **given: Any) -> state.Outcome:
        """The same session of the stand-in."""
        self.script.append(list(steps))
        (self.folder / "script.json").write_text(json.dumps(self.script))
        self.monkeypatch.setenv("CLAUDE_STAND_IN", str(self.folder / "script.json"))
        with self.monkeypatch.context() as patch:
            patch.setattr(self.claude, "command", str(self.stand_in))
            return worker.run(self.task(self.other, **given), self.settings)


@pytest.fixture
def host(tmp_path, real_claude, monkeypatch) -> Host:
    need(shutil.which("bwrap") and shutil.which("socat"), "bubblewrap and socat are not installed")
    for name in filter(OWN.match, [*os.environ]):
        monkeypatch.delenv(name)
    made = Host(tmp_path, real_claude, monkeypatch)
    own = {"HOME": str(made.home), "TZ": "UTC", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    for name, value in {**own, "CLAUDE_CODE_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    return made


def tool(name: str, **given: Any) -> dict[str, Any]:
    return {"name": name, "input": given}


def calls(*tools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tools": [*tools], **more}


def bash(command: str) -> dict[str, Any]:
    return tool("Bash", command=command)


def fails(status: int, message: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "error": {"message": message}, "repeat": "forever", **more}


def shared(outcome: state.Outcome) -> tuple[Any, ...]:
    """What the kit goes by, and what the stand-in therefore has to do alike."""
    return (
        *(outcome.kind, outcome.report, outcome.claimed, outcome.resets_at, outcome.limited),
        *(outcome.turns, outcome.tokens, outcome.context, outcome.window, outcome.version),
        round(outcome.cost_usd, 4),
    )


# --- How a session ends ---


def test_a_session_ends_and_a_resumed_one_costs_what_it_added(host):
    report = "Done.\n\nMet: a"
    write = {"file_path": "a", "content": "1\n"}
    real = host.run(calls(tool("Write", **write)), calls(bash("cat a")), {"text": report})
    ours = host.play({"write": {"a": "1\n"}}, {"bash": "cat a"}, {"say": report})
    assert shared(real) == shared(ours)
    assert (real.kind, real.claimed, real.turns, real.window) == ("ended", ["a"], 3, 1_000_000)
    assert (host.root / "a").read_text() == "1\n"
    again = {"resume": True, "spent": real.spent}
    assert shared(more := host.run({"text": "Also."}, **again)) == shared(host.play({"say": "Also."}, **again))
    assert (more.tokens["input"], more.spent["input"]) == (100, 400)
    assert gzip.decompress(host.task(host.root).stream.read_bytes()).count(b'"type": "result"') == 2


def limit(window: str) -> dict[str, Any]:
    headers = {f"{UNIFIED}status": "rejected", f"{UNIFIED}reset": RESET, f"{UNIFIED}representative-claim": window}
    return fails(429, "limit", headers=headers)


def error(kind: str, text: str, status: int | None, reason: str = "api_error") -> dict[str, Any]:
    return {"error": {"assistant_error": kind, "text": text, "api_error_status": status, "terminal_reason": reason}}


LONG = "prompt is too long: 250000 tokens > 200000 maximum"
TOO_LONG = error("invalid_request", LONG.replace("prompt is too long:", "Prompt is too long ·"), 400, "prompt_too_long")
OPUS = {"resetsAt": RESET, "rateLimitType": "seven_day_opus"}
DEAR = [{"usage": {"input_tokens": 500_000}}, {"bash": "true"}]
ENDS: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]] = {
    "limit": ("limit", [limit("five_hour")], [{"limit": {"resetsAt": RESET}}], {}),
    "limit of a model": ("limit", [limit("seven_day_opus")], [{"limit": OPUS}], {}),
    "no login": ("auth", [], [error("authentication_failed", "Not logged in · Please run /login", None)], {}),
    "prompt too long": ("context_full", [fails(400, LONG)], [TOO_LONG], {}),
    "turns": ("turn_cap", [calls(bash("true"), repeat=9)], [{"bash": "true"}] * 9, {}),
    "budget": ("budget_cap", [calls(bash("true"), input_tokens=500_000)], DEAR, {"budget_usd": 0.5}),
    "lost": ("lost_session", [], [], {"resume": True}),
}


@pytest.mark.parametrize(("kind", "replies", "steps", "given"), ENDS.values(), ids=ENDS)
def test_each_end_is_classified_as_with_the_stand_in(host, kind, replies, steps, given):
    host.claude.max_turns = 2 if kind == "turn_cap" else None
    host.api_key = None if kind in ("auth", "limit") else host.api_key
    if kind == "limit":
        host.monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-dummy")
    real = host.run(*replies, **given)
    assert (real.kind, real.resets_at) == (kind, RESET if kind == "limit" else None)
    ours = host.play(*steps, **given)
    assert shared(real) == shared(ours)
    if kind == "limit":
        assert real.message == ours.message  # which alone names the same time
        assert stream.reset_time(real.message, time.time()) == RESET
        assert (real.limited == "opus") == (replies[0]["headers"][f"{UNIFIED}representative-claim"] == "seven_day_opus")


def test_a_session_that_is_in_use_is_lost_and_a_conversation_that_is_refused_is_left(host):
    assert host.run({"text": "One."}).kind == host.play({"say": "One."}).kind == "ended"
    assert shared(real := host.run()) == shared(host.play())
    assert (real.kind, real.message) == ("lost_session", f"Error: Session ID {SESSION} is already in use.")
    refused = fails(400, "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after: x")
    assert host.run(refused, resume=True, spent={"usd": 0.01}).kind == "context_full"
    assert host.run(fails(400, "Invalid model name passed in model=x"), session=str(uuid.uuid4())).kind == "denied"


def test_a_session_that_is_ended_leaves_nothing_behind(host, monkeypatch):
    tick = stream.Stream.tick
    begun = host.root / "begun"
    monkeypatch.setattr(stream.Stream, "tick", lambda self: tick(self) or ("enough" if begun.exists() else ""))
    hides = "setsid -f sleep 20000000; nohup sleep 20000001 > /dev/null 2>&1 & touch begun; sleep 600"
    outcome = host.run(calls(bash(hides)))
    assert (outcome.kind, outcome.message.rpartition(": ")[2]) == ("timeout", "enough")
    placeholders = [path for path in host.root.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 == 0o444]
    assert placeholders == []
    monkeypatch.undo()


# --- What it may not touch ---


def test_neither_file_tools_nor_commands_reach_what_is_protected_secret_or_outside(host, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "a-planted-secret")
    names = ["tests/test_a.py", "pages/[id]/page.ts", "a (b), 'c'.lock", ".cco/work.json"]
    protected = [host.root / name for name in names]
    outside, key = host.folder / "outside", host.home / ".ssh" / "id"
    for path in (*protected, key, host.root / ".env", host.root / ".claude" / "settings.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"as it was"')
    targets = [*protected, host.root / ".claude" / "settings.json", host.root / "tests" / "new.py", outside]
    quoted = [shlex.quote(str(path)) for path in targets]
    writes = [tool("Write", file_path=str(path), content="evil") for path in targets]
    writes += [bash(f"echo evil >> {path} && echo WRITTEN") for path in quoted]
    writes += [bash(f"mv {path} gone && echo WRITTEN") for path in ("tests", "pages", ".cco", quoted[2])]
    reads = [tool("Read", file_path=str(path)) for path in (key, host.root / ".env")]
    reads += [bash(f"cat {key} .env; curl -sS --max-time 5 $ANTHROPIC_BASE_URL && echo CONNECTED")]
    reads += [bash("echo the token is $MY_SERVICE_TOKEN$ANTHROPIC_API_KEY.; cat /proc/[0-9]*/environ; echo")]
    given = {"protected": [host.root / "tests", host.root / "pages", *protected[2:]]}
    outcome = host.run(calls(*writes), calls(*reads), calls(bash("for i in 1; do echo $i > a; done")), **given)
    assert outcome.kind == "ended" and (host.root / "a").read_text() == "1\n"  # what it may do it can do
    assert {path.read_text() for path in (*protected, host.root / ".claude" / "settings.json")} == {'"as it was"'}
    assert not outside.exists() and not (host.root / "tests" / "new.py").exists()
    answers = "\n".join(result["text"] for request in host.requests for result in request["results"])
    told = ("WRITTEN", "CONNECTED", "as it was", "a-planted-secret", "none-is-needed")
    assert "the token is ." in answers and [word for word in told if word in answers] == []
    assert [path for path in targets if f"Write {path}" not in outcome.denials] == []


def test_the_repositorys_instructions_are_in_the_prompt_and_its_commands_do_not_run(host):
    ran = [host.folder / name for name in ("hook", "helper")]
    hook = {"hooks": [{"type": "command", "command": f"touch {ran[0]}"}]}
    settings = {"hooks": {"SessionStart": [hook]}, "apiKeyHelper": f"touch {ran[1]}; echo key"}
    skill = "---\nname: peel\ndescription: How to peel a pomelo\n---\nSlowly."
    for name, text in (("settings.json", json.dumps(settings)), ("skills/peel/SKILL.md", skill)):
        (host.root / ".claude" / name).parent.mkdir(parents=True, exist_ok=True)
        (host.root / ".claude" / name).write_text(text)
    (host.root / "CLAUDE.md").write_text("Always mention the pineapple.\n")
    assert host.run({"text": "Done."}).kind == "ended"
    sent = json.dumps(host.requests[0]["body"])
    for words in ("Always mention the pineapple.", "How to peel a pomelo", "You work unattended for an orchestrator"):
        assert words in sent
    assert not any(path.exists() for path in ran)
    host.claude.hooks = True
    assert host.run({"text": "Done."}, resume=True).kind == "ended"
    assert all(path.exists() for path in ran)
