"""What a Claude Code session's output says: follow it while it grows, and tell from it how the session ended.

    stream = Stream(output, kept)
    proc.run(..., tick=stream.tick)
    outcome = classify(stream, result, stderr, spent)

The format is that of `claude -p --output-format stream-json --verbose`. It is open: unknown events and fields are
passed over, a line that is no JSON never ends a session, and what the model writes is never taken for an error.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import log
import machine
import proc
import resets

MAX_LINE = 10_000_000  # bytes; a longer line is dropped, the stream goes on
PART = 100_000  # bytes taken in at a time
SPELL = 1.0  # seconds of one tick, so that a flood of output cannot keep the limits from being looked at
FINISH = 20.0  # seconds in which the rest is taken in after the end; of what is left then, only the last part
SHOWN = 20  # lines shown of one tick
MAX_AMOUNT = 1e15  # of dollars, tokens or epoch seconds that an event may name
LINGER = 60.0  # seconds that claude may live on after its result
INSTANT = 2.0  # seconds; a run that ends sooner, without a turn, has done nothing whatever it says of itself
WINDOW = 200_000  # tokens of the context window, until claude has said how large it is
REPORT = 8000  # characters of the worker's last words that are kept
TOKENS = {
    "input": "inputTokens",
    "output": "outputTokens",
    "cache_read": "cacheReadInputTokens",
    "cache_creation": "cacheCreationInputTokens",
}

KINDS = {  # the same of one message
    "input": "input",
    "output": "output",
    "cache_read": "cache_read_input",
    "cache_creation": "cache_creation_input",
}
PRICES = {"input": 5e-6, "output": 25e-6, "cache_read": 0.5e-6, "cache_creation": 6.25e-6}  # dollars, of a large model
GUESSED = "guessed_"  # what is remembered of a session's totals so begins where claude has not said it
ENDS = ("ended", "interrupted", "turn_cap", "budget_cap")  # kinds that are believed of a run with a turn in it
CONTEXT_FULL = ("prompt_too_long", "blocking_limit", "rapid_refill_breaker")  # values of terminal_reason

# Only error results and synthetic messages are matched against these, never what the model wrote.
AUTH = re.compile(r"not logged in|/login|invalid api key|failed to authenticate|oauth|subscription access", re.I)
CREDIT = re.compile(
    r"credit balance|spend limit(?!.*limit resets)|usage credits? required|specified api usage limits"
    r"|out of usage credits(?!.*resets)",
    re.I,
)
LIMIT = re.compile(
    r"(hit|reached) your .*limit|(usage|5-hour|weekly|session|opus|sonnet|haiku|fable)( [\d.]+)? limit reached"
    r"|out of (extra usage|usage credits)|requires usage credits",
    re.I,
)
NO_SERVICE = re.compile(
    r"unable to connect|connection (error|refused|reset)|timed out|overloaded|internal server error|limiting requests",
    re.I,
)
TOO_LONG = re.compile(r"prompt is too long|request too large|context limit reached", re.I)
LOST = re.compile(r"no conversation found|session id \S+ is already in use", re.I)
REFUSED = re.compile(
    r"sandbox required but unavailable|cannot be used with root|error: (unknown )?option|prompt file not found", re.I
)


@dataclass
class Outcome:
    """How a session ended."""

    kind: str
    """ended, limit, auth, credit, overloaded, context_full, turn_cap, budget_cap, lost_session, timeout, interrupted,
    missing, crashed or denied."""
    message: str = ""
    """For people: what claude or the kit said about it."""
    report: str = ""
    """The worker's last words."""
    resets_at: float | None = None
    """When a limit ends, epoch seconds."""
    limited: str = ""
    """The family of the only model that a limit is of, such as "opus"; "" when it is of all of them."""
    turns: int = 0
    """API turns taken."""
    cost_usd: float = 0.0
    """Claude's own estimate for this run; ours when it ended without a result, until the session's next one."""
    tokens: dict[str, int] = field(default_factory=dict)
    """input, output, cache_read, cache_creation, of this run."""
    session: dict[str, float] = field(default_factory=dict)
    """The same totals (and `usd`) of the whole session so far."""
    context: float = 0.0
    """Share of the model's window that the conversation fills, 0 to 1."""
    window: int = WINDOW
    """Size of that window in tokens."""
    denials: list[str] = field(default_factory=list)
    """Tool calls that the walls refused."""
    seconds: float = 0.0
    """Wall time."""
    swept: list[str] = field(default_factory=list)
    """Command lines of processes that it left behind and that were ended."""
    model: str = ""
    """The model that answered."""
    version: str = ""
    """Claude Code's version."""


class Stream:
    """Follows claude's output while it grows: keeps it masked, shows what happens, remembers what counts."""

    def __init__(self, output: IO[bytes], kept: IO[str]):
        self.output, self.kept = output, kept
        self.offset, self.rest, self.skipping = 0, b"", False
        self.begun = time.monotonic()
        self.doing = "starting"
        self.init: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.result_seen = 0.0
        self.in_time = True  # whether the result came before the kit had to end the session
        self.limits: dict[str, dict[str, Any]] = {}  # the last word on each window that is used up
        self.error: dict[str, Any] = {}  # the last synthetic message: claude's own words, not the model's
        self.usage: dict[str, dict[str, int]] = {}
        self.words: list[str] = []
        self.shown = 0  # lines of this tick

    def tick(self) -> str:
        """Take in what is new, for a spell; a word when claude does not go although it has answered."""
        enough, self.shown = time.monotonic() + SPELL, 0
        while self._take() and time.monotonic() < enough:
            pass
        log.live(f"worker {_clock(time.monotonic() - self.begun)} · {self.doing}")
        return "lingering" if self.result_seen and time.monotonic() - self.result_seen > LINGER else ""

    def finish(self) -> None:
        """Take in the rest, also a last line without an end."""
        enough = time.monotonic() + FINISH
        while self._take():
            if time.monotonic() > enough or proc.stopping:
                self.offset, self.rest = max(self.offset, self._size() - PART), b""
                enough = float("inf")
        if self.rest:
            self._line(self.rest)
        self.kept.flush()

    def _size(self) -> int:
        return os.fstat(self.output.fileno()).st_size

    def _take(self) -> bool:
        """Take in the next part; whether there was one."""
        data = proc.read(self.output, self.offset, PART)
        self.offset += len(data)
        for number, piece in enumerate(data.split(b"\n")):
            if number:
                self._line(self.rest)
                self.rest = b""
            self.rest += piece
        if len(self.rest) > MAX_LINE:
            self.rest, self.skipping = b"", True
        self.kept.flush()
        return bool(data)

    def _line(self, raw: bytes) -> None:
        if self.skipping:  # this is the end of a line that was too long to keep
            self.skipping = False
            return
        if not raw.strip():
            return
        line = raw.decode("utf-8", "replace")
        try:
            event = log.mask_tree(json.loads(line))  # before JSON's escapes hide what is one
            line = json.dumps(event)
        except (ValueError, RecursionError):
            event = None
            log.debug("a line of the worker's output is no JSON", line=line[:200])
        self.kept.write(log.mask(line) + "\n")
        if isinstance(event, dict):
            self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        kind, subtype = event.get("type"), event.get("subtype")
        if kind == "system" and subtype == "init":
            self.init = event
        elif kind == "system" and subtype == "api_retry":
            log.info(f"worker: the API answers {event.get('error_status') or 'nothing'}, claude tries again")
        elif kind == "assistant":
            self._assistant(event)
        elif kind == "rate_limit_event":
            self._limit(_dict(event.get("rate_limit_info")))
        elif kind == "result":
            self.result, self.result_seen = event, time.monotonic()

    def _limit(self, info: dict[str, Any]) -> None:
        """Events come on ordinary turns too, with `allowed`: only `rejected` is a limit."""
        window = str(info.get("rateLimitType"))
        self.limits.pop(window, None)
        if info.get("status") == "rejected":
            self.limits[window] = info

    def _assistant(self, event: dict[str, Any]) -> None:
        message = _dict(event.get("message"))
        if event.get("error") or message.get("model") == "<synthetic>":
            self.error = event
            return
        own = not event.get("parent_tool_use_id")  # else it is a subagent's, with words and a context of its own
        if own and (usage := _dict(message.get("usage"))):
            self.usage[str(message.get("id"))] = usage  # one event per block: the same message comes several times
        for block in _dicts(message.get("content")):
            if block.get("type") == "text" and str(block.get("text", "")).strip():
                self.words += [str(block["text"])] * own
                self._show(str(block["text"]).strip().splitlines()[0])
            elif block.get("type") == "tool_use":
                self._show(f"{block.get('name')} {_subject(_dict(block.get('input')))}")

    def _show(self, doing: str) -> None:
        self.doing = doing[:160]
        self.shown += 1
        if self.shown <= SHOWN:
            log.info(f"worker: {self.doing}")


def classify(
    stream: Stream, result: proc.Result, stderr: str, spent: Mapping[str, float], window: int = WINDOW
) -> Outcome:
    """The outcome of a session from its events, its process and its stderr, in this order of trust:

    what the kit itself did, the structured limit, claude's own error words, the result, the exit code.
    window: tokens of the context window as far as it is known.
    """
    said = _error_text(stream, stderr)
    kind, turns = _kind(stream, result, said), int(_number(stream.result.get("num_turns")) or len(stream.usage))
    if kind in ENDS and not turns and not result.stopped and result.seconds < INSTANT:
        kind = "crashed"
    limits, window = list(stream.limits.values()), _window(stream) or window
    run, session = _bill(stream, spent)
    return Outcome(
        kind,
        message=said or _how_it_ended(kind, stream, result),
        report=_report(stream),
        resets_at=(resets.from_windows(limits) or resets.from_text(said, time.time())) if kind == "limit" else None,
        limited=resets.limited_model(limits, said) if kind == "limit" else "",
        turns=turns,
        cost_usd=round(run.pop("usd", 0.0), 6),
        tokens={name: int(count) for name, count in run.items()},
        session=session,
        context=round(_filled(stream) / window, 3),
        window=window,
        denials=[_denial(item) for item in _dicts(stream.result.get("permission_denials"))],
        seconds=round(result.seconds, 1),
        swept=result.swept,
        model=str(stream.init.get("model", "")),
        version=str(stream.init.get("claude_code_version", "")),
    )


def _kind(stream: Stream, result: proc.Result, said: str) -> str:
    subtype, reason = stream.result.get("subtype"), stream.result.get("terminal_reason")
    failed = bool(stream.result.get("is_error")) or subtype != "success"
    if result.error:
        return "crashed" if machine.lack(result.errno) else "missing"
    if result.stopped and not stream.in_time:  # a claude that is told to stop may still call it a success
        return "interrupted" if result.stopped == "interrupted" else "timeout"
    if stream.result and not failed:
        return "ended" if reason in (None, "completed") else "interrupted"
    if subtype == "error_max_turns":
        return "turn_cap"
    if subtype == "error_max_budget_usd":
        return "budget_cap"
    if kind := _error_kind(stream, said, reason):
        return kind
    if not stream.result and result.code in (-15, -9, -2, 130, 137, 143):
        return "interrupted"
    if str(reason).startswith("aborted"):
        return "interrupted"
    return "crashed"


def _error_kind(stream: Stream, said: str, reason: object) -> str:
    """The kind that claude's own error speaks of, "" if it speaks of none."""
    error, status = stream.error.get("error"), stream.result.get("api_error_status")
    if (
        any(limit.get("errorCode") == "credits_required" for limit in stream.limits.values())
        or error == "billing_error"
        or CREDIT.search(said)
    ):
        return "credit"
    if reason in CONTEXT_FULL or TOO_LONG.search(said):
        return "context_full"
    if stream.limits or LIMIT.search(said):
        return "limit"
    if error in ("authentication_failed", "oauth_org_not_allowed", "account_on_hold") or status == 401:
        return "auth"
    if LOST.search(said):
        return "lost_session"
    if REFUSED.search(said) or error == "model_not_found":
        return "denied"
    if error in ("rate_limit", "overloaded", "server_error") or status == 429 or _number(status) >= 500:
        return "overloaded"
    if AUTH.search(said):
        return "auth"
    return "overloaded" if NO_SERVICE.search(said) else ""


def _error_text(stream: Stream, stderr: str) -> str:
    """What claude itself said went wrong: never the prose of the model."""
    if stream.result and not stream.result.get("is_error"):
        return ""
    words = [str(item) for item in _list(stream.result.get("errors"))]
    words += [str(stream.result.get("result") or "")] if stream.result else []
    words += [str(block.get("text", "")) for block in _dicts(_dict(stream.error.get("message")).get("content"))]
    return "\n".join(dict.fromkeys(word for word in [*words, stderr] if word))[:2000]


def _how_it_ended(kind: str, stream: Stream, result: proc.Result) -> str:
    if result.error:
        return f"claude could not be started: {result.error}"
    if result.stopped:
        return f"ended from here after {result.seconds:.0f} s: {result.stopped}"
    if not stream.result:
        return f"claude ended with exit code {result.code} and without a result"
    said = f"{stream.result.get('subtype')}, {stream.result.get('terminal_reason')}"
    return "" if kind == "ended" else f"claude gave no reason but its result: {said}"


def _report(stream: Stream) -> str:
    """The result's text; it may be empty or cut although the model said more, then its last words.

    Half a character, which JSON can hold, becomes a question mark: it goes into a commit.
    """
    text = "" if stream.result.get("is_error") else str(stream.result.get("result") or "")
    last = stream.words[-1] if stream.words else ""
    return (text if len(text) >= len(last) else last)[-REPORT:].encode("utf-8", "replace").decode()


def _bill(stream: Stream, spent: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """What this run cost, and what is to be remembered of the session: its totals, and what was guessed since them."""
    if totals := _session_totals(stream):
        # A total below the last one is of a version that reports each run by itself.
        goes_on = {name: value >= spent.get(name, 0) for name, value in totals.items()}
        before = {name: spent.get(name, 0) + spent.get(GUESSED + name, 0) if goes_on[name] else 0 for name in totals}
        return {name: value - before[name] for name, value in totals.items()}, totals
    run = _guess(stream)
    return run, {**spent, **{GUESSED + name: spent.get(GUESSED + name, 0) + value for name, value in run.items()}}


def _guess(stream: Stream) -> dict[str, float]:
    """What a run without a result has cost, by the tokens of its messages. The session's next result corrects it."""
    tokens = {name: sum(_number(use.get(f"{KINDS[name]}_tokens")) for use in stream.usage.values()) for name in TOKENS}
    usd = sum(count * PRICES[name] for name, count in tokens.items())
    return {"usd": usd, **tokens} if stream.usage else {}


def _session_totals(stream: Stream) -> dict[str, float]:
    """Cost and tokens of the whole session, all models and subagents; empty without a result that knows them."""
    models = [_dict(use) for use in _dict(stream.result.get("modelUsage")).values()]
    if not models:
        return {}
    tokens = {name: sum(_number(use.get(key)) for use in models) for name, key in TOKENS.items()}
    return {"usd": _number(stream.result.get("total_cost_usd")), **tokens}


def _filled(stream: Stream) -> float:
    """Tokens of the conversation as it was sent last."""
    last: dict[str, int] = next(reversed(stream.usage.values()), {})
    return sum(_number(last.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_"))


def _window(stream: Stream) -> int:
    """Tokens of the model's window; 0 without a result that knows it."""
    models = _dict(stream.result.get("modelUsage")).values()
    return int(max((_number(_dict(use).get("contextWindow")) for use in models), default=0.0))


def _denial(item: dict[str, Any]) -> str:
    return f"{item.get('tool_name')} {_subject(_dict(item.get('tool_input')))}"[:200]


def _subject(tool_input: dict[str, Any]) -> str:
    """The one argument of a tool call that tells a person what it is about."""
    for name in ("command", "file_path", "path", "pattern", "url", "description", "prompt"):
        if tool_input.get(name):
            return " ".join(str(tool_input[name]).split())
    return ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _number(value: Any) -> float:
    """What an event says, 0 for what is no sensible amount: no NaN, nothing negative, nothing beyond MAX_AMOUNT."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MAX_AMOUNT
    return float(value) if known else 0.0
