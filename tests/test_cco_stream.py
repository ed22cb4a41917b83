"""What claude prints, event by event: how a session ended, what it cost, when a limit resets, what is recorded.

The events are those of Claude Code 2.1.329 and, where they differ, of versions before it.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import log
import proc
import stream

RESET = 1893456000  # an epoch in 2030
PLANTED = "Zk9-planted+value/4711=="


def system(subtype: str, **given: Any) -> dict[str, Any]:
    return {"type": "system", "subtype": subtype, **given}


def text(words: str, id: str = "m1", usage: dict[str, int] | None = None, **given: Any) -> dict[str, Any]:
    message = {"id": id, "model": "claude-opus-5-5", "content": [{"type": "text", "text": words}], "usage": usage}
    return {"type": "assistant", "message": message, **given}


def tool(name: str, given: dict[str, Any], id: str = "m1", usage: dict[str, int] | None = None) -> dict[str, Any]:
    block = {"type": "tool_use", "id": "t", "name": name, "input": given}
    return {"type": "assistant", "message": {"id": id, "content": [block], "usage": usage}}


def failed(words: str, error: str | None = None, status: int | None = None, reason: str = "api_error", **given: Any):
    """A failure of the API: claude's own message, then a result that calls itself a success."""
    message = {"model": "<synthetic>", "content": [{"type": "text", "text": words}]}
    event = {"type": "assistant", "message": message, **({"error": error} if error else {}), **given}
    return [event, result(is_error=True, result=words, terminal_reason=reason, api_error_status=status)]


def result(**given: Any) -> dict[str, Any]:
    usual = {"subtype": "success", "is_error": False, "num_turns": 1, "terminal_reason": "completed", "result": "Done."}
    return {"type": "result", **usual, **given}


def stopped(subtype: str, reason: str | None = None, *errors: str) -> dict[str, Any]:
    event = result(subtype=subtype, is_error=True, terminal_reason=reason, errors=[*errors])
    del event["result"]
    return event


def limit(status: str = "rejected", window: str | None = "five_hour", resets: float = RESET, **info: Any):
    named = {"rateLimitType": window} if window else {}
    return {"type": "rate_limit_event", "rate_limit_info": {"status": status, "resetsAt": resets, **named, **info}}


class Run:
    """An output that grows, and what follows it."""

    def __init__(self, folder: Path):
        self.output = (folder / "output").open("w+b")
        self.recording = io.BytesIO()
        self.stream = stream.Stream(self.output, self.recording)

    def prints(self, *lines: dict[str, Any] | bytes) -> None:
        self.output.writelines(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        self.output.flush()

    def end(self, code: int = 0, spent: dict[str, float] | None = None, stderr: str = "", **given: Any):
        self.stream.finish()
        given = {"seconds": 60.0, **given}
        return stream.classify(self.stream, proc.Result(code=code, **given), stderr, spent or {}, 200_000)

    def lines(self) -> list[str]:
        """What was recorded, line by line."""
        return gzip.decompress(self.recording.getvalue()).decode().splitlines()


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    yield made
    made.output.close()


USAGE = {"input_tokens": 1000, "output_tokens": 10}
WORK = [tool("Bash", {"command": "make"}, usage=USAGE), text("Now", usage=USAGE)]
PROSE = text(
    "I fixed it: 'usage limit reached', 'Credit balance is too low', 'Not logged in · Please run /login', 'prompt is"
    " too long', '401 invalid api key' and 'No conversation found with session ID: x' are handled now."
)
NO_BWRAP = "Sandbox required but unavailable: sandbox is enabled but dependencies are missing: bubblewrap (bwrap)"
LOST = "No conversation found with session ID: x"
TLS = "API Error: Unable to connect to API: Self-signed certificate detected (DEPTH_ZERO_SELF_SIGNED_CERT)."
PROXY = "API Error: Couldn't connect through your proxy (ERR_PROXY_TUNNEL) — the proxy refused the tunnel: check"
NOT_MINE = "API Error: Server is temporarily limiting requests (not your usage limit)"
DISABLED = "Your ANTHROPIC_API_KEY belongs to a disabled organization · Update or unset the environment variable"
ORG_LIMIT = "You've hit your org's monthly spend limit · ask your admin · your 5-hour limit resets 1pm (UTC)"

ENDS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "normal": ("ended", [*WORK, result()], {}),
    "retried": ("ended", [system("api_retry", error_status=529), result()], {}),
    "limit allowed": ("ended", [limit("allowed"), limit("allowed_warning"), result()], {}),
    "limit over": ("ended", [limit(), result()], {}),
    "prose": ("ended", [PROSE, result(result=PROSE["message"]["content"][0]["text"])], {}),
    "prose, killed": ("interrupted", [PROSE], {"code": 143}),
    "prose, gone": ("crashed", [PROSE], {"code": 1}),
    "error after a result": ("crashed", [result(), result(is_error=True)], {}),
    "events after the result": ("ended", [result(), system("status")], {}),
    "aborted success": ("interrupted", [result(terminal_reason="aborted_tools")], {}),
    "SIGINT": ("interrupted", [*WORK, stopped("error_during_execution", "aborted_tools")], {"code": 1}),
    "SIGTERM": ("interrupted", WORK, {"code": 143}),
    "SIGTERM to the kit": ("interrupted", WORK, {"code": 143, "stopped": "interrupted"}),
    "SIGSEGV": ("crashed", WORK, {"code": -11}),
    "no result": ("crashed", WORK, {"code": 0}),
    "unknown error": ("crashed", [stopped("error_during_execution", None, "Oh no")], {"code": 1}),
    "no start": ("missing", [], {"code": None, "error": "No such file or directory: claude", "errno": 2}),
    "turns": ("turn_cap", [*WORK, stopped("error_max_turns", "max_turns", "Reached maximum number of turns")], {}),
    "budget": ("budget_cap", [*WORK, stopped("error_max_budget_usd", "budget_exhausted", "Reached")], {}),
    "lost": ("lost_session", [stopped("error_during_execution", None, LOST)], {"stderr": LOST, "seconds": 0.5}),
    "in use": ("lost_session", [], {"code": 1, "stderr": "Error: Session ID 7 is already in use.", "seconds": 0.5}),
    "credit": ("credit", failed("Credit balance is too low", "billing_error", 400), {}),
    "credit, words": ("credit", [result(is_error=True, result="Credit balance is too low")], {}),
    "spending limit": ("credit", [result(is_error=True, result="You've hit your monthly spend limit")], {}),
    "API cap": ("credit", [result(is_error=True, result="You have reached your specified API usage limits.")], {}),
    "credits required": ("credit", [limit(errorCode="credits_required"), result(is_error=True)], {}),
    "too long": ("context_full", failed("Prompt is too long", "invalid_request", 400, "prompt_too_long"), {}),
    "context limit": ("context_full", failed("Context limit reached · /compact or /clear"), {}),
    "too large": ("context_full", failed("Request too large (max 32MB)", None, 413), {}),
    "thrashing": ("context_full", [result(is_error=True, terminal_reason="rapid_refill_breaker")], {}),
    "tool history": ("context_full", failed("400", "invalid_request", 400, api_error="tool_history_mismatch"), {}),
    "400 on resume": ("context_full", failed("API Error: 400 odd", "unknown", 400), {"spent": {"usd": 1.0}}),
    "400 in the middle": ("context_full", [*WORK, *failed("API Error: 400 odd", "unknown", 400)], {}),
    "400 at once": ("denied", failed("API Error: 400 Invalid model name", "unknown", 400), {}),
    "no login": ("auth", failed("Not logged in · Please run /login", "authentication_failed"), {}),
    "no login, words": ("auth", failed("Not logged in · Please run /login"), {}),
    "bad key": ("auth", failed("Invalid API key · Fix external API key", "authentication_failed", 401), {}),
    "401": ("auth", [result(is_error=True, api_error_status=401, result="")], {}),
    "no access": ("auth", failed("Your organization has disabled ...", "oauth_org_not_allowed"), {}),
    "no organisation": ("auth", failed(DISABLED, "invalid_request", 400, api_error="org_disabled_credential"), {}),
    "no cloud login": ("auth", failed("API Error: Could not load AWS credentials", "cloud_credential_error"), {}),
    "429 of a key": ("overloaded", failed("API Error: Request rejected (429)", "rate_limit", 429), {}),
    "not the plan": ("overloaded", failed(NOT_MINE, "rate_limit", 429), {}),
    "503": ("overloaded", [result(is_error=True, api_error_status=503)], {}),
    "529": ("overloaded", failed("API Error: Repeated 529 Overloaded errors", "overloaded", 529), {}),
    "unreachable": ("overloaded", failed("API Error: Unable to connect to API (ConnectionRefused)"), {}),
    "no model": ("denied", failed("There's an issue with the selected model", "model_not_found", 404), {}),
    "TLS": ("denied", failed(TLS, "server_error", api_error="tls_untrusted_ca"), {}),
    "proxy": ("denied", failed(PROXY, "server_error", api_error="connection_failed"), {}),
    "root": ("denied", [], {"code": 1, "stderr": "--dangerously-skip-permissions cannot be used with root/sudo"}),
    "option": ("denied", [], {"code": 1, "stderr": "error: unknown option '--x'"}),
    "no sandbox": ("denied", [stopped("error_during_execution", None, NO_BWRAP)], {"code": 1}),
    "limit": ("limit", [limit(), *failed("You've hit your 5-hour limit · resets 5am (UTC)", "rate_limit", 429)], {}),
    "limit, code 0": ("limit", [limit(window=None), result(is_error=True, api_error_status=429)], {}),
    "limit, words": ("limit", failed("You've hit your session limit · resets 5:49am (UTC) · /login", "rate_limit"), {}),
    "extra usage": ("limit", failed("You're out of extra usage · resets 5pm (America/Los_Angeles)"), {}),
    "limit of an org": ("limit", failed(ORG_LIMIT, "rate_limit", 429), {}),
}


@pytest.mark.parametrize(("kind", "events", "given"), ENDS.values(), ids=ENDS)
def test_each_end_is_classified(run, kind, events, given):
    run.prints(system("init", model="opus", claude_code_version="2.1.329"), *events)
    outcome = run.end(**given)
    assert outcome.kind == kind
    assert bool(outcome.message) == (kind != "ended")  # what went wrong is always said
    assert (outcome.resets_at is not None) == (kind == "limit")
    assert (outcome.model, outcome.version) == ("opus", "2.1.329")


def test_what_the_kit_ended_outranks_a_success_that_comes_after(run):
    """Claude Code 2.1.197 answers SIGTERM with code 0 and a success."""
    run.prints(*WORK)
    run.stream.tick()
    run.prints(result())
    outcome = run.end(stopped="idle")
    assert (outcome.kind, outcome.report, outcome.message) == ("timeout", "Done.", "ended by CCO after 60 s: idle")
    assert run.end(stopped="interrupted").kind == "ended"  # the second time the result was there before


def test_a_claude_that_lingers_after_its_result_is_ended_and_one_that_ends_at_once_has_crashed(run, monkeypatch):
    run.prints(result(num_turns=0))
    assert run.stream.tick() == ""
    monkeypatch.setattr(stream, "LINGER", -1.0)
    assert (run.stream.tick(), run.end(stopped="lingering").kind) == ("lingering", "ended")
    assert [run.end(seconds=seconds).kind for seconds in (0.5, 60.0)] == ["crashed", "ended"]
    run.prints(*WORK, result(num_turns=0))
    assert run.end(seconds=0.5).kind == "ended"  # there was a turn


def test_a_line_that_is_no_event_ends_nothing(run):
    run.prints(result(errors=7))
    assert run.end().kind == "ended"
    odd: list[Any] = [None, [], 7, "x", {}, {"type": ["result"]}, {"type": "news"}, {"type": "assistant"}]
    odd += [{"type": "assistant", "message": given} for given in (None, {}, {"content": "x"}, {"content": [1]})]
    odd += [{"type": "assistant", "error": "x", "message": given} for given in (None, {"content": [None]})]
    odd += [text("x", usage=given) for given in ({"input_tokens": "many"}, {"input_tokens": -1}, [1])]  # type: ignore[arg-type]
    odd += [tool("Bash", "x"), limit(window=["x"]), limit(resets="soon")]  # type: ignore[arg-type]
    odd += [{"type": "rate_limit_event", "rate_limit_info": "x"}, {"type": "rate_limit_event"}]
    raw = [b"[SandboxDebug] x\n", b"{\n", b"\n", b"\xff\x80\n", b"[" * 200_000 + b"\n", b'{"type": "assistant", "mess']
    run.prints(*odd, *raw, b"\n", result())
    assert run.end().kind == "ended"
    last = {"num_turns": "two", "errors": 7, "permission_denials": {"x": 1}, "modelUsage": {"m": None}}
    for name, value in {**last, "total_cost_usd": float("nan")}.items():
        run.prints(result(**{"modelUsage": {"m": {}}, name: value}))
        assert (run.end().kind, run.end().cost_usd) == ("ended", 0.0), name


def test_too_long_a_line_is_dropped_and_the_next_one_counts(run, monkeypatch):
    monkeypatch.setattr(stream, "PART", 1000)
    monkeypatch.setattr(stream, "MAX_LINE", 5000)
    run.prints(b"x" * 20_000 + b"\n", text("Now"), b"y" * 20_000)
    for _ in range(50):
        run.stream.tick()
    assert run.end(code=143).report == "Now"
    assert max(map(len, run.lines())) < 20_000


def test_report_context_turns_tools_and_denials_are_the_workers_own(run):
    run.prints(text("I did all of it.", usage=USAGE), text("A subagent's longer.", "m2", USAGE, parent_tool_use_id="t"))
    run.prints(tool("Bash", {"command": "make  all\n"}), tool("Write", {"file_path": "a"}, "m3"))
    denials = [{"tool_name": "Write", "tool_input": {"file_path": "/etc/x"}}, {"tool_name": "X", "tool_input": {}}]
    usage = {"m": {"contextWindow": 4000, "inputTokens": 1}}
    run.prints(result(result="I did", modelUsage=usage, num_turns=3, permission_denials=denials))
    outcome = run.end()
    assert outcome.report == "I did all of it."  # the result may hold the first part alone
    assert (outcome.context, outcome.window) == (0.25, 4000)  # of the conversation, not of the subagent's
    assert (outcome.turns, outcome.denials) == (3, ["Write /etc/x", "X"])
    run.prints(result(result="half of a character: \ud83d"))
    assert run.end().report == "half of a character: ?"  # no file could hold it


def totals(usd: float, tokens: int, **given: Any) -> dict[str, Any]:
    return result(total_cost_usd=usd, modelUsage={"m": {"inputTokens": tokens, "contextWindow": 1000}}, **given)


def test_a_run_costs_what_its_session_has_cost_since_the_last_one(run):
    run.prints(totals(0.5, 90))
    first = run.end()
    run.prints(totals(0.8, 150))
    second = run.end(spent=first.spent)
    assert (first.cost_usd, first.tokens["input"]) == (0.5, 90)
    assert (second.cost_usd, second.tokens["input"]) == (pytest.approx(0.3), 60)
    run.prints(totals(0.1, 10))  # a version that counts each run by itself
    third = run.end(spent=second.spent)
    assert (third.cost_usd, third.tokens["input"]) == (0.1, 10)
    assert (third.spent["usd"], third.spent["input"]) == (pytest.approx(0.9), 160)


@pytest.mark.parametrize("then", [0.53, 0.5])
def test_a_run_without_a_result_costs_what_its_messages_say_until_the_next_result(run, then):
    run.prints(*WORK, text("More", "m2", {**USAGE, "cache_read_input_tokens": 2000}))
    cut = run.end(code=143, spent={"usd": 0.5, "input": 90, "named_usd": 0.5})
    assert cut.tokens == {"input": 2000, "output": 20, "cache_read": 2000, "cache_creation": 0}
    assert cut.cost_usd == pytest.approx(0.0115)
    run.prints(totals(then, 2090))
    outcome = run.end(spent=cut.spent)
    assert outcome.cost_usd == pytest.approx(max(0.0, then - 0.5115))  # nothing is counted twice
    run.prints(totals(0.6, 2090))
    assert run.end(spent=outcome.spent).cost_usd == pytest.approx(0.6 - max(then, 0.5115))
    run.stream.totals, run.stream.usage = {}, {}  # a run without a word
    silent = run.end(code=1, spent={"usd": 0.5})
    assert (silent.cost_usd, silent.tokens, silent.spent["usd"]) == (0.0, {}, 0.5)


def test_the_recording_is_masked_and_can_be_read_while_it_grows(run, fresh_mask):
    log.register_secret(PLANTED)
    quoted = f'curl -H "Authorization: Bearer abcdefgh" "-----BEGIN RSA PRIVATE KEY-----" ghp_{30 * "a"} {PLANTED}'
    run.prints(tool("Bash", {"command": quoted}), f"no JSON {PLANTED}\n".encode(), {"type": "x", PLANTED: [PLANTED]})
    run.stream.tick()
    assert len(run.lines()) == 3  # a kill now would lose none of them
    run.prints(result(result=f"I ran {quoted}"))
    assert run.end().report == 'I ran curl -H "Authorization: ***" "***" *** ***'
    assert not re.search(f"{re.escape(PLANTED)}|abcdefgh", "\n".join(run.lines()))
    assert [json.loads(line)["type"] for line in run.lines() if line[0] == "{"] == ["assistant", "x", "result"]
    run.prints(*failed(f"It is {PLANTED}"))
    assert run.end().message == "It is ***"


def test_what_the_worker_does_is_a_line_each_and_the_last_line_lives(run, monkeypatch):
    shown, live = [], []  # type: ignore[var-annotated]
    monkeypatch.setattr(log, "info", lambda text, **_: shown.append(text))
    monkeypatch.setattr(log, "live", live.append)
    run.stream.tick()
    run.prints(tool("Bash", {"command": "npm test -- --run \n  all"}), text("\nAll green.\nSecond line.", usage=USAGE))
    run.prints(system("api_retry", error_status=529))
    run.stream.tick()
    assert [line.removeprefix("worker: ") for line in shown[:2]] == ["Bash npm test -- --run all", "All green."]
    assert shown[2:] == ["worker: the API answers 529, claude tries again"]
    assert [line.partition(", ")[2] for line in live] == ["~$0.00 · starting", "~$0.01 · All green."]
    monkeypatch.setattr(stream, "QUIET", -1.0)
    run.stream.tick()
    assert "quiet for 0 s, ~$0.01" in live[-1]


def at(clock: str, zone: str = "UTC") -> float:
    """Epoch seconds of what the clocks show in a zone."""
    return datetime.fromisoformat(clock).replace(tzinfo=ZoneInfo(zone)).timestamp()


NOW = at("2026-11-27 10:00")  # a Friday


RESETS = {
    "Your limit will reset at 3pm (America/Bogota).": at("2026-11-27 15:00", "America/Bogota"),
    "5-hour limit reached ∙ resets 3pm (UTC)": at("2026-11-27 15:00"),
    "5-hour limit reached ∙ resets 3pm": at("2026-11-27 15:00"),
    "Weekly limit reached ∙ resets Dec 2, 7pm (Europe/Moscow) ·": at("2026-12-02 19:00", "Europe/Moscow"),
    "Opus weekly limit reached ∙ resets Dec 9 at 10:30am (UTC)": at("2026-12-09 10:30"),
    "You've hit your limit · resets 3pm (Europe/Berlin)": at("2026-11-27 15:00", "Europe/Berlin"),
    "You're out of extra usage · resets 5pm (America/Los_Angeles)": at("2026-11-27 17:00", "America/Los_Angeles"),
    "You've hit your session limit · resets 5:49am (UTC)": at("2026-11-28 05:49"),
    "You've hit your session limit · resets 3:45pm (UTC) · progress saved": at("2026-11-27 15:45"),
    "You've hit your weekly limit · resets Mon 12:00am (UTC)": at("2026-11-30 00:00"),
    "You've hit your Fable limit · resets Jul 10 at 1pm (Asia/Tokyo)": at("2027-07-10 13:00", "Asia/Tokyo"),
    "You've hit your limit · resets Jan 6, 2027, 7pm (UTC)": at("2027-01-06 19:00"),
    "You've hit your Opus limit · resets Nov 29, 7:19am (Asia/Kolkata)": at("2026-11-29 07:19", "Asia/Kolkata"),
    "resets 3pm (UTC)\nYou've hit your weekly limit · resets Mon 9am (UTC)": at("2026-11-30 09:00"),  # the latest
    "resets 9:55am (UTC)": at("2026-11-27 09:55"),  # it has just passed
    "resets 9:45am (UTC)": at("2026-11-28 09:45"),
    "resets Fri 9am (UTC)": at("2026-12-04 09:00"),
    "resets Nov 27, 9am (UTC)": at("2027-11-27 09:00"),
    **dict.fromkeys(
        ["", "You've hit your session limit", "resets soon", "resets 3", "resets 25pm (UTC)", "resets 0am",
         "resets 9:75am", "resets 3pm (Mars/Olympus)", "resets Feb 31, 1pm (UTC)", "it is 3pm (UTC) now",
         "limit reached|1", "resets Xyz 3, 3pm", "resets in 2h"]
    ),
}  # fmt: skip


def test_a_text_names_the_time_at_which_its_limit_ends(monkeypatch):
    try:
        for zone in ("America/Los_Angeles", "Asia/Kolkata", "Pacific/Kiritimati", "UTC"):  # this machine's
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert stream.reset_time("resets 3pm", at("2026-11-27 10:00", zone)) == at("2026-11-27 15:00", zone)
            assert stream.reset_time("resets 3pm (America/Bogota)", NOW) == at("2026-11-27 15:00", "America/Bogota")
        assert {words: stream.reset_time(words, NOW) for words in RESETS} == RESETS
    finally:
        monkeypatch.undo()
        time.tzset()
    for words in ("resets " * 100_000, "resets Mon " * 50_000, "9" * 500_000, "opus " * 100_000, "hit your " * 50_000):
        assert stream.reset_time(words, NOW) is None  # and soon


@pytest.mark.parametrize(
    ("events", "resets", "model"),
    [
        ([limit(), limit(window="seven_day", resets=RESET + 9)], RESET + 9, ""),
        ([limit(), limit("allowed", "seven_day", RESET + 9)], RESET, ""),
        ([limit(window="seven_day", resets=RESET + 9), limit("allowed", "seven_day"), limit()], RESET, ""),
        ([limit(window="seven_day_opus")], RESET, "opus"),
        ([limit(window="seven_day_overage_included")], RESET, "fable"),
        ([limit(), limit(window="seven_day_opus", resets=RESET + 9)], RESET, ""),  # another model would not help
        ([limit(window="overage", resets=RESET + 9), limit()], RESET, ""),
        ([], 0, ""),
    ],
    ids=range(8),
)
def test_the_latest_reset_counts_and_whether_one_model_is_limited_alone(run, events, resets, model):
    run.prints(*events, *failed("You've hit your weekly limit · resets 3pm", "rate_limit", 429))
    outcome = run.end()
    assert (outcome.kind, outcome.limited) == ("limit", model)
    assert resets in (0, outcome.resets_at)


def test_the_last_line_of_the_form_claims_ids():
    for report, ids in {
        "All is done.\n\nMet: api, lint": ["api", "lint"],
        "met: LINT,api": ["api", "lint"],
        "**Met:** `api`, `dark-mode`.": ["api", "dark-mode"],
        "- Met: api\n": ["api"],
        "Met: none": [],
        "Met: other, api": ["api"],
        "Met: api\nMet: lint\nThat is all.": ["lint"],  # the last one
        f"Met: api{',-' * 99} and more": None,  # takes no time
        **dict.fromkeys(["Met: api (but not lint)", "Not met: api", "We met: api", "Met:", "All tests pass.", ""]),
    }.items():
        assert stream.claimed(report, ["api", "lint", "dark-mode"]) == ids, report
