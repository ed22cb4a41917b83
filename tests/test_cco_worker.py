"""One session of the worker: every way in which it can end, its walls, and what of its output reaches disk and screen.

The worker is the stand-in of extras/, which answers as Claude Code 2.1.329 was measured to; what older versions and
other accounts print is replayed from single events.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked, until

import log
import mission
import proc
import processes
import sandbox
import state as store
import stream
import worker

SESSION = "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10"
RESET = 1893456000  # an epoch in 2030
PLANTED = "Zk9-planted+value/4711=="  # looks like no known family of keys, so only its variable gives it away


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Bench:
    """A folder to work in, a scripted claude, and the settings it is run with."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "a project"
        self.root.mkdir()
        self.script = folder / "script.json"
        self.sessions: list[list[dict[str, Any]]] = []
        stand_in = f'exec "{sys.executable}" -I "{KIT}/extras/claude_stand_in.py" "$@"'
        self.program = program(folder / "bin" / "claude", stand_in)
        self.settings = mission.load_settings(None, None, {"CCO_CLAUDE_CODE_COMMAND": str(self.program)})
        self.claude = self.settings.claude_code

    def task(self, **given: Any) -> worker.Task:
        usual: dict[str, Any] = {
            "prompt": "Go on.",
            "rules": KIT / "prompts" / "rules.md",
            "session": SESSION,
            "resume": False,
            "root": self.root,
            "sealed": (),
            "network": (),
            "budget_usd": None,
            "model": self.claude.model,
            "timeout": self.claude.timeout,
            "window": stream.WINDOW,
            "spent": {},
            "marker": f"test-{self.folder}",
            "stream": self.folder / "stream.jsonl",
        }
        return worker.Task(**usual | given)

    def run(self, *steps: dict[str, Any], started: Any = None, **given: Any) -> stream.Outcome:
        """One session with these steps; nothing that it started is left."""
        self.sessions.append(list(steps))
        self.script.write_text(json.dumps(self.sessions))
        task = self.task(**given)
        outcome = worker.run(task, self.settings, started)
        assert marked(task.marker) == {}
        return outcome

    def walls(self, **given: Any) -> dict[str, Any]:
        """The settings that claude is given."""
        argv = worker.command_line(self.task(**given), self.settings)
        return dict(json.loads(argv[argv.index("--settings") + 1]))

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(f"{self.script}.calls.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("CLAUDE_STAND_IN", str(made.script))
    for name in ("ANTHROPIC_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def planted(monkeypatch) -> str:
    """A secret in the environment, forgotten again after the test."""
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_values", None)
    monkeypatch.setenv("MY_SERVICE_TOKEN", PLANTED)
    log.know(os.environ)
    return PLANTED


# --------------------------------------------------------------------------------------------------------
# How a session ends
# --------------------------------------------------------------------------------------------------------


def api_error(kind: str, text: str, status: int | None = None, reason: str = "api_error") -> dict[str, Any]:
    given = {"assistant_error": kind, "text": text, "api_error_status": status, "terminal_reason": reason}
    return {"error": given}


def retry(status: int | None, error: str) -> dict[str, Any]:
    more = {"attempt": 1, "max_retries": 10, "retry_delay_ms": 1, "error_status": status, "error": error}
    return {"event": {"type": "system", "subtype": "api_retry", **more}}


def refused(said: str) -> list[dict[str, Any]]:
    """Not even begun: nothing on standard output."""
    return [{"init": False}, {"stderr": said}, {"exit": 1}]


def limit_event(status: str) -> dict[str, Any]:
    return {"event": {"type": "rate_limit_event", "rate_limit_info": {"status": status, "resetsAt": RESET}}}


PROSE = "I fixed it: 'usage limit reached', 'Credit balance is too low', 'Not logged in · Please run /login', \
'prompt is too long', '401 invalid api key' and 'No conversation found with session ID: x' are handled now."
TOOL_OUTPUT = {"bash": "echo 'API Error: 529 overloaded, usage limit reached, credit balance is too low'; exit 1"}
NO_BWRAP = "Sandbox required but unavailable: sandbox is enabled but dependencies are missing: bubblewrap (bwrap)"
AS_ROOT = "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
DENIAL = {"tool_name": "Write", "tool_use_id": "t", "tool_input": {"file_path": "/etc/x", "content": "y"}}
DEEP = {"raw": "[", "times": 200_000}

ENDS = {
    "normal": ("ended", [{"write": {"a": "1"}}, {"bash": "cat a"}, {"say": "Done."}]),
    "429 retried, then fine": ("ended", [retry(429, "rate_limit"), {"say": "Done."}]),
    "529 retried, then fine": ("ended", [retry(529, "overloaded"), {"say": "Done."}]),
    "a limit that allows": ("ended", [limit_event("allowed"), limit_event("allowed_warning"), {"say": "Done."}]),
    "a limit that was over before the end": ("ended", [limit_event("rejected"), {"say": "Done."}]),
    "prose about errors": ("ended", [TOOL_OUTPUT, {"say": PROSE}]),
    "prose about errors, then killed": ("interrupted", [TOOL_OUTPUT, {"say": PROSE}, {"exit": 143}]),
    "prose about errors, then gone": ("crashed", [TOOL_OUTPUT, {"say": PROSE}, {"exit": 1}]),
    "a success at once that did nothing": ("crashed", [{"result": {}}]),
    "SIGTERM at once": ("crashed", [{"exit": 143}]),
    "a tool was not allowed": ("ended", [{"say": "Done."}, {"result": {"permission_denials": [DENIAL]}}]),
    "two results": ("ended", [{"result": {"is_error": True}}, {"say": "Done."}, {"result": {}}]),
    "an error result after a good one": ("crashed", [{"result": {}}, {"result": {"is_error": True}}]),
    "events after the result": ("ended", [{"say": "Done."}, {"result": {}}, {"event": {"type": "system"}}]),
    "no JSON": ("ended", [{"raw": "[SandboxDebug] x"}, {"raw": "{"}, {"raw": ""}, DEEP, {"say": "Done."}]),
    "JSON of other kinds": ("ended", [{"raw": "[]"}, {"raw": "null"}, {"raw": '"x"'}, {"raw": "7"}, {"say": "Done."}]),
    "unknown events": ("ended", [{"event": {"type": "news", "subtype": 1}}, {"say": "Done."}]),
    "events of another shape": (
        "ended",
        [
            {"event": {"type": "assistant", "message": None}},
            {"event": {"type": "assistant", "message": {"usage": [], "content": "x"}}},
            {"event": {"type": "assistant", "message": {"content": [1, {"type": "tool_use", "input": "x"}]}}},
            {"event": {"type": "rate_limit_event", "rate_limit_info": "x"}},
            {"say": "Done."},
            {"result": {"modelUsage": {"m": None}, "permission_denials": {}, "num_turns": "two"}},
        ],
    ),
    "invalid UTF-8": ("ended", [{"raw": "\udcff\udc80"}, {"say": "Done."}]),
    "a line of 20 MB": ("ended", [{"raw": "x", "times": 20_000_000}, {"say": "Done."}]),
    "cut off by the model's side": (
        "interrupted",
        [{"say": "Now"}, {"result": {"terminal_reason": "aborted_streaming"}}],
    ),
    "credit": ("credit", [api_error("billing_error", "Credit balance is too low", 400)]),
    "prompt too long": (
        "context_full",
        [api_error("invalid_request", "Prompt is too long · 250000 tokens", 400, "prompt_too_long")],
    ),
    "no login": ("auth", [api_error("authentication_failed", "Not logged in · Please run /login")]),
    "key rejected": (
        "auth",
        [
            retry(401, "authentication_failed"),
            api_error("authentication_failed", "Invalid API key · Fix external API key", 401),
        ],
    ),
    "login expired": ("auth", [api_error("authentication_failed", "Failed to authenticate. API Error: 401 ...", 401)]),
    "long 429 with an API key": (
        "overloaded",
        [api_error("rate_limit", "API Error: Request rejected (429) · scripted status 429", 429)],
    ),
    "500 for ever": ("overloaded", [api_error("server_error", "API Error: 500 Internal server error", 500)]),
    "529 for ever": ("overloaded", [api_error("server_error", "API Error: 529 Overloaded", 529)]),
    "unreachable": (
        "overloaded",
        [retry(None, "unknown"), api_error("server_error", "API Error: Connection refused (ECONNREFUSED)")],
    ),
    "limit": ("limit", [{"limit": {"resetsAt": RESET}}]),
    "limit in mid-session": ("limit", [{"bash": "true"}, {"say": "So far."}, {"limit": {"resetsAt": RESET}}]),
    "weekly limit": ("limit", [{"limit": {"resetsAt": RESET, "rateLimitType": "seven_day"}}]),
    "limit of one model": ("limit", [{"limit": {"resetsAt": RESET, "rateLimitType": "seven_day_opus"}}]),
    "model not found": ("denied", [api_error("model_not_found", "There's an issue with the selected model", 404)]),
    "root and skipped permissions": ("denied", refused(AS_ROOT)),
    "unknown option": ("denied", refused("error: unknown option '--x'")),
    "no sandbox": (
        "denied",
        [
            {"init": False},
            {"stderr": f"Error: {NO_BWRAP}"},
            {"result": {"subtype": "error_during_execution", "is_error": True, "errors": [NO_BWRAP]}},
        ],
    ),
    "SIGTERM by somebody else": ("interrupted", [{"bash": "true"}, {"exit": 143}]),
    "SIGTERM that it did not catch": ("interrupted", [{"bash": "true"}, {"signal": signal.SIGTERM}]),
    "SIGKILL by somebody else": ("interrupted", [{"bash": "true"}, {"signal": signal.SIGKILL}]),
    "SIGINT by somebody else": (
        "interrupted",
        [
            {"say": "Now"},
            {"result": {"subtype": "error_during_execution", "is_error": True, "terminal_reason": "aborted_tools"}},
        ],
    ),
    "code 0 without a result": ("crashed", [{"say": "All is done."}, {"exit": 0}]),
    "code 1 without a word": ("crashed", [{"exit": 1}]),
    "a segmentation fault": ("crashed", [{"signal": signal.SIGSEGV}]),
    "a result cut in half": ("crashed", [{"raw": '{"type": "result", "subtype": "succ', "end": ""}, {"exit": 0}]),
}


@pytest.mark.parametrize(("kind", "steps"), ENDS.values(), ids=ENDS)
def test_each_way_to_end_is_told_from_every_other(bench, kind, steps):
    outcome = bench.run(*steps)
    assert outcome.kind == kind
    assert bool(outcome.message) == (kind != "ended")  # what went wrong is always said
    if kind == "ended":
        assert outcome.report == next((step["say"] for step in reversed(steps) if "say" in step), "")
    assert outcome.resets_at == (RESET if kind == "limit" else None)


def test_what_was_refused_to_the_worker_is_in_the_outcome(bench):
    outcome = bench.run(
        {"say": "So."}, {"result": {"permission_denials": [DENIAL, {"tool_name": "WebFetch", "tool_input": {}}, 7]}}
    )
    assert (outcome.kind, outcome.denials) == ("ended", ["Write /etc/x", "WebFetch "])


def test_the_turn_cap_and_the_budget_end_it_and_are_told_apart(bench):
    bench.claude.max_turns = 2
    assert bench.run(*[{"bash": "true"}] * 3, {"say": PROSE}).kind == "turn_cap"
    bench.claude.max_turns = None
    dear = {"usage": {"input_tokens": 500_000}}
    outcome = bench.run(dear, {"bash": "true"}, {"say": PROSE}, budget_usd=0.5, session=SESSION[::-1])
    assert (outcome.kind, outcome.cost_usd) == ("budget_cap", pytest.approx(2.0, rel=0.01))


def test_a_session_that_nobody_knows_and_one_that_is_in_use_are_lost(bench):
    unknown = bench.run(resume=True)
    assert (unknown.kind, unknown.message.splitlines()[0]) == (
        "lost_session",
        f"No conversation found with session ID: {SESSION}",
    )
    assert bench.run({"say": "First."}).kind == "ended"
    in_use = bench.run({"say": "Second."})
    assert (in_use.kind, in_use.message) == ("lost_session", f"Error: Session ID {SESSION} is already in use.")


def test_a_claude_that_lives_on_after_its_result_is_ended_and_its_result_kept(bench, monkeypatch):
    monkeypatch.setattr(stream, "LINGER", 0.3)
    outcome = bench.run({"say": "Done."}, {"result": {}}, {"hang": True})
    assert (outcome.kind, outcome.report) == ("ended", "Done.")
    assert outcome.message.endswith(": lingering")


@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
def test_a_hanging_claude_is_ended_after_the_time_that_the_settings_allow(bench, limit):
    setattr(bench.claude, limit, 0.6)
    outcome = bench.run({"say": "One moment."}, {"hang": True})
    assert outcome.kind == "timeout"
    assert outcome.message.endswith({"timeout": ": timeout", "idle_timeout": ": idle"}[limit])
    assert 0.6 <= outcome.seconds < 20
    assert outcome.report == "One moment."


def test_a_claude_that_does_not_listen_is_killed(bench, monkeypatch):
    monkeypatch.setattr(proc, "Limits", functools.partial(proc.Limits, grace=0.2))
    bench.claude.timeout = 0.6
    assert bench.run({"ignore_term": True}, {"say": "Never."}, {"wait_for": "/nowhere"}).kind == "timeout"


def test_an_output_without_end_is_ended_at_its_largest_size_and_soon(bench, monkeypatch):
    monkeypatch.setattr(worker, "MAX_STREAM", 2_000_000)
    flood = "yes | head -c 1500000; sleep 0.4; yes | head -c 50000000; sleep 60"  # takes minutes to look through
    bench.claude.command = str(program(bench.folder / "bin" / "flood", flood))
    begun = time.monotonic()
    outcome = bench.run()
    assert (outcome.kind, outcome.message[-6:]) == ("timeout", ": size")
    assert time.monotonic() - begun < 20


def test_a_success_that_comes_after_the_kit_has_ended_it_does_not_count(bench):
    """Claude Code 2.1.197 answers SIGTERM with code 0 and a success."""
    success = {"type": "result", "subtype": "success", "is_error": False, "result": "All is done."}
    (bench.root / "result").write_text(json.dumps(success))
    polite = "trap 'cat result; exit 0' TERM\nsleep 60 & wait"
    bench.claude.command = str(program(bench.folder / "bin" / "polite", polite))
    bench.claude.timeout = 0.4
    outcome = bench.run()
    assert outcome.report == "All is done."
    assert outcome.kind == "timeout"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_kit_interrupts_the_session(bench, monkeypatch, number):
    monkeypatch.setattr(proc, "stopping", 0)
    begun = bench.root / "begun"

    def stop_when_begun() -> str:
        if begun.exists():
            monkeypatch.setattr(proc, "stopping", number)
        return ""

    monkeypatch.setattr(stream.Stream, "tick", lambda self: stop_when_begun())
    assert bench.run({"bash": "touch begun; sleep 600"}).kind == "interrupted"
    assert begun.exists()


def test_a_program_that_cannot_be_started_is_missing(bench):
    bench.claude.command = str(bench.folder / "broken")
    Path(bench.claude.command).write_text("#!/no/such/interpreter\n")
    Path(bench.claude.command).chmod(0o755)
    outcome = bench.run()
    assert (outcome.kind, "could not be started: No such file" in outcome.message) == ("missing", True)


def test_a_background_process_is_ended_with_the_session_and_named(bench):
    outcome = bench.run({"spawn": "sleep 611 & setsid sleep 612 & wait"}, {"say": "Done."})
    assert outcome.kind == "ended"
    assert {name for name in outcome.swept if name.startswith("sleep")} == {"sleep 611", "sleep 612"}


# --------------------------------------------------------------------------------------------------------
# Other versions and other accounts, event by event
# --------------------------------------------------------------------------------------------------------


def result(**given: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": True, **given}


def rejected(**info: Any) -> dict[str, Any]:
    return {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": RESET, **info}}


def synthetic(text: str, error: str | None = None) -> dict[str, Any]:
    message = {"model": "<synthetic>", "content": [{"type": "text", "text": text}]}
    return {"type": "assistant", "message": message, **({"error": error} if error else {})}


WINDOWS = {
    "five_hour": {"status": "rejected", "resetsAt": RESET},
    "seven_day": {"status": "rejected", "resetsAt": RESET + 9000},
    "overage": {"status": "allowed", "resetsAt": RESET + 99000},
}
RECORDED = {
    "credit, as 2.1.197 ends it": (
        "credit",
        [synthetic("Credit balance is too low", "billing_error"), result(terminal_reason="completed")],
        1,
    ),
    "credit, in words alone": ("credit", [result(result="Credit balance is too low", api_error_status=400)], 1),
    "a spending limit": ("credit", [result(result="You've hit your monthly spend limit · resets 1am")], 1),
    "the API's own cap": ("credit", [result(result="You have reached your specified API usage limits.")], 1),
    "credits required": ("credit", [rejected(errorCode="credits_required"), result(api_error_status=429)], 1),
    "limit with windows": ("limit", [rejected(unifiedWindows=WINDOWS), result(api_error_status=429)], 1),
    "session limit, in words alone": (
        "limit",
        [result(result="You've hit your session limit · resets 5:49am (UTC)")],
        1,
    ),
    "limit of 2025": ("limit", [result(result="Claude AI usage limit reached|1893456000")], 1),
    "5-hour limit": ("limit", [synthetic("5-hour limit reached ∙ resets 3pm", "rate_limit"), result()], 1),
    "extra usage": ("limit", [result(result="You're out of extra usage · resets 5pm (America/Los_Angeles)")], 1),
    "limit with code 0": ("limit", [rejected(), result(api_error_status=429)], 0),
    "not the plan's limit": (
        "overloaded",
        [
            synthetic("API Error: Server is temporarily limiting requests (not your usage limit)", "rate_limit"),
            result(api_error_status=429),
        ],
        1,
    ),
    "no login, without an error word": ("auth", [synthetic("Not logged in · Please run /login"), result()], 1),
    "organization without access": (
        "auth",
        [synthetic("Your organization has disabled Claude subscription access", "oauth_org_not_allowed"), result()],
        1,
    ),
    "401 without any word": ("auth", [result(api_error_status=401)], 1),
    "overloaded": ("overloaded", [synthetic("API Error: Repeated 529 Overloaded errors", "overloaded"), result()], 1),
    "503 without any word": ("overloaded", [result(api_error_status=503)], 1),
    "compaction fails again and again": ("context_full", [result(terminal_reason="rapid_refill_breaker")], 1),
    "context limit": ("context_full", [synthetic("Context limit reached · /compact or /clear"), result()], 1),
    "no room for a request": ("context_full", [result(terminal_reason="blocking_limit")], 1),
    "request too large": ("context_full", [result(result="Request too large (max 32MB)", api_error_status=413)], 1),
    "SIGINT, as 2.1.197 ends it": (
        "interrupted",
        [result(subtype="error_during_execution", terminal_reason="aborted_streaming")],
        1,
    ),
    "an aborted turn called a success": ("interrupted", [result(is_error=False, terminal_reason="aborted_tools")], 0),
    "an error of no known kind": ("crashed", [result(subtype="error_during_execution", errors=["Oh no"])], 1),
    "errors of another shape": ("crashed", [result(subtype="error_during_execution", errors=7)], 1),
}


def classified(folder: Path, events: list[dict[str, Any]], code: int, **spent: float) -> stream.Outcome:
    with (folder / "recorded.jsonl").open("w+b") as output:
        output.write("".join(json.dumps(event) + "\n" for event in events).encode())
        output.flush()
        following = stream.Stream(output, io.StringIO())
        following.finish()
    return stream.classify(following, proc.Result(code=code, seconds=60.0), "", spent)


@pytest.mark.parametrize(("kind", "events", "code"), RECORDED.values(), ids=RECORDED)
def test_what_other_versions_print_is_understood_too(tmp_path, kind, events, code):
    outcome = classified(tmp_path, events, code)
    assert outcome.kind == kind
    if kind == "limit":
        named = {"limit with windows": RESET + 9000, "limit with code 0": RESET, "limit of 2025": RESET}
        name = next(name for name, row in RECORDED.items() if row[1] is events)
        assert outcome.resets_at == named[name] if name in named else outcome.resets_at > time.time() - 600


def test_the_last_words_are_the_workers_own_and_whole(tmp_path):
    def says(text: str, parent: str | None = None) -> dict[str, Any]:
        usage = {"input_tokens": 300 if parent is None else 9, "cache_read_input_tokens": 200}
        message = {"id": text, "content": [{"type": "text", "text": text}], "usage": usage}
        return {"type": "assistant", "message": message, "parent_tool_use_id": parent}

    use = {"m": {"contextWindow": 1000, "inputTokens": 1}}
    good = result(is_error=False, result="I did", modelUsage=use)
    outcome = classified(
        tmp_path, [says("I did all of it."), says("A subagent's note that is longer", "toolu_1"), good], 0
    )
    assert outcome.report == "I did all of it."  # the result may hold the first part alone
    assert outcome.context == 0.5  # of the conversation itself, not of its subagent's


# --------------------------------------------------------------------------------------------------------
# Cost
# --------------------------------------------------------------------------------------------------------


def test_cost_and_tokens_are_those_of_the_run_and_not_of_the_whole_session(bench):
    usage = {"usage": {"input_tokens": 1000, "output_tokens": 50}}
    first = bench.run(usage, {"say": "One."})
    second = bench.run(usage, {"bash": "true"}, {"say": "Two."}, resume=True, spent=first.session)
    assert (first.turns, second.turns) == (1, 2)
    assert first.cost_usd == pytest.approx(0.005)
    assert second.cost_usd == pytest.approx(0.010)
    assert (first.tokens["input"], second.tokens["input"], second.tokens["output"]) == (1000, 2000, 100)
    assert second.session["input"] == 3000
    assert second.context == 0.001


def test_what_an_interrupted_run_spent_is_in_the_next_one_and_nothing_twice(bench):
    usage = {"usage": {"input_tokens": 1000}}
    first = bench.run(usage, {"say": "One."})
    cut = bench.run(usage, {"bash": "true"}, {"exit": 143}, resume=True, spent=first.session)
    assert (cut.kind, cut.tokens["input"]) == ("interrupted", 1000)  # by its messages
    assert 0.004 < cut.cost_usd < 0.02  # a guess
    last = bench.run(usage, {"say": "Three."}, resume=True, spent=cut.session)
    assert first.tokens["input"] + cut.tokens["input"] + last.tokens["input"] == 3000
    assert first.cost_usd + cut.cost_usd + last.cost_usd == pytest.approx(last.session["usd"])


def test_a_version_that_counts_each_run_by_itself_is_counted_right(tmp_path):
    use = {"m": {"inputTokens": 10}}
    outcome = classified(tmp_path, [result(is_error=False, total_cost_usd=0.1, modelUsage=use)], 0, usd=0.5, input=90)
    assert (outcome.cost_usd, outcome.tokens["input"]) == (0.1, 10)


# --------------------------------------------------------------------------------------------------------
# Command line and environment
# --------------------------------------------------------------------------------------------------------


def test_neither_a_secret_nor_the_prompt_is_in_the_arguments(bench, planted, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the-workers-own-key")
    bench.claude.api_key = "a-key-from-the-settings"
    said = f"A prompt of its own with {planted}\nin two lines"
    bench.run({"say": "Done."}, prompt=said)
    (call,) = bench.calls()
    assert call["prompt"] == said
    arguments = "\0".join(call["argv"])
    for kept_out in (planted, "the-workers-own-key", "a-key-from-the-settings", "A prompt of its own", "in two lines"):
        assert kept_out not in arguments


def test_a_session_is_begun_with_its_id_and_gone_on_with_by_resume(bench):
    bench.claude.model, bench.claude.max_turns = "sonnet", 7
    begun = worker.command_line(bench.task(budget_usd=0.123456), bench.settings)
    assert begun[:5] == [str(bench.program), "-p", "--output-format", "stream-json", "--verbose"]
    assert {f"--session-id={SESSION}", "--model=sonnet", "--max-turns=7", "--max-budget-usd=0.1235"} <= {*begun}
    for flag, value in (
        ("--permission-mode", "acceptEdits"),
        ("--setting-sources", "user"),
        ("--append-system-prompt-file", str(KIT / "prompts" / "rules.md")),
    ):
        assert begun[begun.index(flag) + 1] == value
    assert "--strict-mcp-config" in begun
    bench.claude.model = bench.claude.max_turns = None
    resumed = worker.command_line(bench.task(resume=True), bench.settings)
    assert f"--resume={SESSION}" in resumed
    assert not [word for word in resumed if re.match("--(session-id|model|max-turns|max-budget)", word)]


def test_it_works_in_the_repository_and_carries_the_mark_of_the_run(bench):
    bench.run({"say": "Done."}, marker="run-0815")
    (call,) = bench.calls()
    assert (call["cwd"], call["CCO_RUN"]) == (str(bench.root), "run-0815")


def test_the_worker_gets_its_own_login_and_no_other_secret(bench, monkeypatch):
    own = ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN")
    others = ("OPENROUTER_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "CCO_OPENROUTER_API_KEY")
    nested = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_CHILD_SESSION")
    for name in (*own, *others, *nested):
        monkeypatch.setenv(name, "value-of-it")
    bench.run({"say": "Done."})
    seen = set(bench.calls()[0]["env"])
    assert {*own, "PATH", "HOME", "DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"} <= seen
    assert not seen & {*others, *nested}


@pytest.mark.parametrize(
    ("switch", "login"),
    [
        ("CLAUDE_CODE_USE_BEDROCK", "AWS_SECRET_ACCESS_KEY"),
        ("CLAUDE_CODE_USE_VERTEX", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_a_cloud_login_reaches_claude_but_not_its_commands(bench, monkeypatch, switch, login):
    monkeypatch.setenv(switch, "1")
    monkeypatch.setenv(login, "value-of-it")
    bench.run({"say": "Done."})
    assert login in bench.calls()[0]["env"]
    hidden = {entry["name"] for entry in bench.walls()["sandbox"]["credentials"]["envVars"]}
    assert {login, "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"} <= hidden


def test_a_key_from_the_settings_becomes_the_workers_login(bench):
    bench.claude.api_key = "a-key-from-the-settings"
    bench.run({"bash": "test $ANTHROPIC_API_KEY = a-key-from-the-settings && touch is-there"})
    assert (bench.root / "is-there").exists()


# --------------------------------------------------------------------------------------------------------
# Walls
# --------------------------------------------------------------------------------------------------------


def test_what_is_sealed_is_denied_to_file_tools_and_commands_alike(bench):
    folder, file = bench.root / "tests", bench.root / "pages" / "[id].ts"
    for path in (folder, file.parent):
        path.mkdir()
    file.touch()
    walls = bench.walls(sealed=(folder, file))
    rules = walls["permissions"]["deny"]
    assert f"Edit(/{folder}/**)" in rules
    assert f"Edit(/{bench.root}/pages/\\[id\\].ts)" in rules  # a bracket would void the rule
    assert {str(folder), str(file)} <= {*walls["sandbox"]["filesystem"]["denyWrite"]}


def test_what_is_sealed_through_a_link_is_sealed_at_its_place_too(bench):
    (bench.root / "real").mkdir()
    (bench.root / "link").symlink_to("real")
    written = bench.walls(sealed=(bench.root / "link",))["sandbox"]["filesystem"]["denyWrite"]
    assert written == [str(bench.root / "link"), str(bench.root / "real")]


def test_more_sealed_files_than_claude_can_be_told_are_refused_with_the_way_out(bench):
    sealed = tuple(bench.root / f"a_test_with_a_rather_long_name_{number}.py" for number in range(1000))
    with pytest.raises(worker.CannotRun, match="1000 files (.|\n)*name their folders"):
        bench.run({"say": "Done."}, sealed=sealed)
    assert bench.run({"say": "Done."}, sealed=sealed[:200]).kind == "ended"


def test_a_users_secrets_are_hidden_where_there_are_any(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (bench.root / ".env").touch()
    walls = bench.walls()
    hidden, secrets = walls["sandbox"]["filesystem"]["denyRead"], [str(tmp_path / ".ssh"), str(bench.root / ".env")]
    assert [path for path in hidden if path.startswith(str(tmp_path))] == secrets
    assert {f"Read(/{secrets[0]}/**)", f"Read(/{secrets[1]})"} <= {*walls["permissions"]["deny"]}


@pytest.mark.parametrize("named", [True, False], ids=["named by XDG_STATE_HOME", "in the home directory"])
def test_the_key_that_seals_states_is_hidden_from_the_worker_and_from_checks(bench, monkeypatch, tmp_path, named):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states") if named else "")
    store.save(tmp_path / "work.json", {})  # makes the key
    folder = tmp_path / ("states/cco" if named else "home/.local/state/cco")
    assert [path.name for path in folder.iterdir()] == ["key"]
    walls = bench.walls()
    assert str(folder) in walls["sandbox"]["filesystem"]["denyRead"]
    assert f"Read(/{folder}/**)" in walls["permissions"]["deny"]
    for_checks = sandbox.command(["true"], sandbox.Walls(bench.root, (), (), (), network=False), tmp_path)
    assert ["--tmpfs", str(folder)] in [for_checks[n : n + 2] for n in range(len(for_checks))]


def test_the_sandbox_is_on_and_its_network_holds_the_missions_hosts_alone(bench):
    walls = bench.walls(network=("pypi.org", "*.example.org"))
    sandbox = walls["sandbox"]
    assert sandbox["network"] == {"allowedDomains": ["pypi.org", "*.example.org"], "strictAllowlist": True}
    assert (sandbox["enabled"], sandbox["failIfUnavailable"], sandbox["allowUnsandboxedCommands"]) == (
        True,
        True,
        False,
    )
    assert walls["permissions"]["allow"] == ["Bash"]
    bench.claude.sandbox = False
    walls = bench.walls()
    assert (walls["sandbox"]["enabled"], walls["permissions"]["allow"]) == (False, [])


# --------------------------------------------------------------------------------------------------------
# Before a session
# --------------------------------------------------------------------------------------------------------


def test_claude_is_found_on_the_path_by_its_name_and_by_its_place(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(bench.program.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    other = program(tmp_path / "bin" / "my-claude", "")
    monkeypatch.chdir(tmp_path)
    assert worker.find(None, bench.root) == str(bench.program)
    for command in ("my-claude", str(other), "~/bin/my-claude", "bin/my-claude"):
        assert worker.find(command, bench.root) == str(other)


def test_a_claude_that_a_worker_put_on_the_path_is_passed_over(bench, monkeypatch):
    for folder in ("", "node_modules/.bin"):
        program(bench.root / folder / "claude", "")
    monkeypatch.chdir(bench.root)
    monkeypatch.setenv("PATH", f".:{bench.root}/node_modules/.bin:{bench.program.parent}")
    assert worker.find(None, bench.root) == str(bench.program)


@pytest.mark.parametrize("place", ["~/.local/bin", "~/.claude/local"])
def test_claude_is_found_where_its_installer_puts_it_under_the_bare_path_of_cron(monkeypatch, tmp_path, place):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    there = program(Path(os.path.expanduser(place), "claude"), "")
    assert worker.find(None, tmp_path / "a project") == str(there)


@pytest.mark.parametrize("command", [None, "claude", "~/claude", "no-such-claude"])
def test_a_claude_that_is_missing_or_not_executable_is_named_with_the_remedy(monkeypatch, tmp_path, command):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(worker, "USUAL_PLACES", ())
    (tmp_path / "claude").touch(mode=0o644)
    with pytest.raises(worker.CannotRun, match="npm install -g @anthropic-ai/claude-code") as error:
        worker.find(command, tmp_path / "a project")
    assert (command or "claude") in str(error.value).splitlines()[0]
    assert "claude_code.command" in str(error.value)


def sandbox_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """A PATH with these programs alone, and a machine without any of the known obstacles."""
    for name, text in programs.items():
        program(folder / "bin" / name, text)
    (folder / "bin").mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setattr(sandbox, "SYSCTL", folder / "sys")
    monkeypatch.setattr(processes, "LINUX", True)
    monkeypatch.delenv("container", raising=False)


@pytest.mark.parametrize(
    ("there", "packages"),
    [({"socat": ""}, "bubblewrap"), ({"bwrap": ""}, "socat"), ({}, "bubblewrap socat")],
    ids=("no bwrap", "no socat", "neither"),
)
def test_a_missing_package_of_the_sandbox_is_named(monkeypatch, tmp_path, there, packages):
    sandbox_of(tmp_path, monkeypatch, **there)
    with pytest.raises(worker.CannotRun, match=f"missing: {packages}\n.*sudo apt install {packages}\n") as error:
        worker.require_sandbox(tmp_path / "a project")
    assert "claude_code.sandbox: off" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor .* profile .* /usr/bin/bwrap"),
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
    ],
)
def test_a_sandbox_that_the_kernel_forbids_is_noticed_before_the_first_session(
    monkeypatch, tmp_path, setting, value, remedy
):
    says = "bwrap: setting up uid map: Permission denied"
    sandbox_of(tmp_path, monkeypatch, socat="", bwrap=f"echo '{says}' >&2; exit 1")
    (tmp_path / "sys" / setting).parent.mkdir(parents=True)
    (tmp_path / "sys" / setting).write_text(f"{value}\n")
    with pytest.raises(worker.CannotRun, match=f"{says}\n.*{remedy}") as error:
        worker.require_sandbox(tmp_path / "a project")
    assert "claude_code.sandbox: off" in str(error.value)


def test_a_container_that_forbids_the_sandbox_is_told_from_a_machine(monkeypatch, tmp_path):
    sandbox_of(tmp_path, monkeypatch, socat="", bwrap="exit 1")
    monkeypatch.setenv("container", "podman")
    with pytest.raises(worker.CannotRun, match="this container may not .* --security-opt"):
        worker.require_sandbox(tmp_path / "a project")


def test_a_sandbox_that_works_is_accepted(monkeypatch, tmp_path):
    sandbox_of(tmp_path, monkeypatch, socat="exit 1", bwrap=f"echo \"$@\" > '{tmp_path}/probe'")
    worker.require_sandbox(tmp_path / "a project")
    assert "--unshare-pid" in (tmp_path / "probe").read_text()


# --------------------------------------------------------------------------------------------------------
# On disk
# --------------------------------------------------------------------------------------------------------


def holding(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold the secret, compressed ones too."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if secret.encode() in data:
            found.append(path.name)
    return found


def test_the_stream_is_kept_masked_private_and_compressed(bench, planted, monkeypatch):
    kept = bench.folder / "kept"
    for name in ("temporary", "kept"):
        (bench.folder / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(bench.folder / "temporary"))
    seen: list[list[str]] = []
    outcome = bench.run(
        {"bash": f"echo {planted}"},
        {"raw": f"no JSON but {planted}"},
        {"event": {"type": "news", "name": {planted: [planted]}}},
        {"stderr": planted},
        {"say": f"The token is {planted}."},
        stream=kept / "0001.jsonl",
        started=lambda pid: seen.append(os.listdir(bench.folder / "temporary")),
    )
    assert outcome.report == "The token is ***."
    assert seen == [[]]  # what it prints goes to files without a name
    assert stat.S_IMODE((kept / "0001.jsonl").stat().st_mode) == 0o600
    assert holding(kept, planted) == []
    lines = (kept / "0001.jsonl").read_text().splitlines()
    assert "no JSON but ***" in lines
    assert len([json.loads(line) for line in lines if line[:1] == "{"]) == 6

    worker.compress(kept / "0001.jsonl")
    bench.run({"say": "Again."}, resume=True, stream=kept / "0001.jsonl")
    worker.compress(kept / "0001.jsonl")
    assert os.listdir(kept) == ["0001.jsonl.gz"]
    assert stat.S_IMODE((kept / "0001.jsonl.gz").stat().st_mode) == 0o600
    both = gzip.decompress((kept / "0001.jsonl.gz").read_bytes()).decode()
    assert "The token is ***." in both
    assert "Again." in both


def test_a_quoted_secret_is_cut_out_without_damage_to_its_line(bench):
    quoted = 'curl -H "Authorization: Bearer abc" "-----BEGIN RSA PRIVATE KEY-----" ghp_' + 30 * "a"
    outcome = bench.run({"bash": f"true {quoted}"}, {"say": f"I ran {quoted}"})
    assert (outcome.kind, outcome.report) == ("ended", 'I ran curl -H "Authorization: ***" "***" ***')
    kept = [json.loads(line) for line in (bench.folder / "stream.jsonl").read_text().splitlines()]
    assert [event["type"] for event in kept] == ["system", "assistant", "user", "assistant", "result"]


def test_a_secret_is_found_behind_the_escapes_of_json(bench):
    bench.run({"bash": """echo '{"Authorization": "Bearer abcdefgh"}'"""}, {"say": "Done."})
    kept = (bench.folder / "stream.jsonl").read_text()
    assert "Authorization" in kept
    assert "abcdefgh" not in kept


def test_words_that_no_file_can_hold_are_replaced(bench):
    outcome = bench.run({"say": "an emoji cut in half: \ud83d"})
    assert outcome.report == "an emoji cut in half: ?"


def test_an_error_text_and_a_process_that_is_ended_are_masked_too(bench, planted):
    outcome = bench.run({"spawn": f"sleep 613 {planted} || sleep 613"}, *refused(f"error: unknown option '{planted}'"))
    assert outcome.message == "error: unknown option '***'"
    assert planted not in repr(outcome)


# --------------------------------------------------------------------------------------------------------
# On the screen
# --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "200")
    log.start(None, "INFO")
    yield shown
    log.stop()


def test_what_the_worker_does_is_a_line_each_and_the_last_line_lives(bench, terminal):
    outcome = bench.run(
        {"bash": "npm test -- --run \n  all"},
        {"write": {"a.txt": "x"}},
        retry(529, "overloaded"),
        {"say": "\nAll green.\nSecond line."},
        {"bash": "sleep 0.5"},
        {"say": "Done."},
    )
    assert outcome.kind == "ended"
    shown = terminal.getvalue()
    for line in (
        "worker: Bash npm test -- --run all\n",
        "worker: Write a.txt\n",
        "worker: the API answers 529, claude tries again\n",
        "worker: All green.\n",
    ):
        assert line in shown
    assert "Second line" not in shown
    assert re.search(r"\r\x1b\[2Kworker \dm\d\ds · Bash sleep 0\.5", shown)  # the living line
    assert shown.endswith("\r\x1b[2K")  # which is cleared at the end


def test_a_worker_cannot_drive_the_terminal(bench, terminal):
    evil = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\r\x9b31m"
    bench.run({"bash": f"true {evil}"}, {"say": f"{evil} said"}, {"bash": f"sleep 0.5 # {evil}"}, {"say": "Done."})
    shown = terminal.getvalue().replace("\r\x1b[2K", "")  # what the kit itself writes
    assert "gnp.exe" in shown
    assert not log.CONTROL.search(shown)


def test_where_there_is_no_terminal_only_lines_are_written(bench, capsys):
    log.start(None, "INFO")
    try:
        bench.run({"bash": "true"}, {"say": "Done."})
    finally:
        log.stop()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["worker: Bash true", "worker: Done."]


# --------------------------------------------------------------------------------------------------------
# By hand
# --------------------------------------------------------------------------------------------------------


def test_by_hand_the_instruction_is_shown_without_secrets_and_written_for_its_owner_alone(bench, planted, capsys):
    path = bench.folder / "instruction.md"
    worker.show_instruction(bench.task(prompt=f"Do it.\nWith \x1b[2J and {planted}."), path)
    shown = capsys.readouterr().out
    assert "Do it.\nWith  [2J and ***." in shown
    assert str(path) in shown
    assert path.read_text().startswith("Do it.\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


class ByHand:
    """`cco.py start` in manual mode on a terminal of its own."""

    def __init__(self, project: Path, folder: Path):
        self.project = project
        self.mission = folder / "by-hand.yaml"
        criteria = [{"criteria": "a is there", "check": "test -e a"}]
        settings = {"claude_code": {"mode": "manual", "command": "/no/claude/is/needed"}}
        fields = {"title": "By hand", "repository": str(project), "definition_of_done": criteria, "settings": settings}
        self.mission.write_text(json.dumps(fields))
        self.shown = ""

    def __enter__(self) -> ByHand:
        self.terminal, inner = pty.openpty()
        argv = [sys.executable, str(KIT / "cco.py"), "start", str(self.mission)]
        environment = {**os.environ, "CCO_MANAGER_PROVIDER": "rules"}
        self.process = subprocess.Popen(
            argv, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=self.project, start_new_session=True
        )
        os.close(inner)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def asks(self) -> bool:
        self.shown += os.read(self.terminal, 10_000).decode()
        return "Press Enter" in self.shown


def test_by_hand_on_a_terminal_it_waits_for_enter_and_checks(project, tmp_path):
    with ByHand(project, tmp_path) as run:
        until(run.asks, "the question")
        (project / "a").write_text("by hand\n")
        assert run.process.poll() is None
        os.write(run.terminal, b"\n")
        assert run.process.wait(30) == 0
    assert "Mission: By hand" in run.shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_by_hand_a_signal_ends_the_waiting(project, tmp_path, number, code):
    with ByHand(project, tmp_path) as run:
        until(run.asks, "the question")
        run.process.send_signal(number)
        assert run.process.wait(30) == code
