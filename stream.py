"""What Claude Code prints: follow a session's output while it grows, and classify how the session ended.

    stream = Stream(output, recording)     its tick() while claude runs, then finish()
    outcome = classify(stream, result, stderr, spent)

The format is that of `claude -p --output-format stream-json --verbose`. It is open: an unknown event or a line that is
no JSON is passed over. An error is read from results and from claude's own messages, never from what the model writes.
Limitation: before 2.1.45 claude did not say in events which limit is reached; then the whole plan counts as limited.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import IO, Any
from zoneinfo import ZoneInfo

import log
import proc
from state import Outcome

PART = 1_000_000  # bytes read in one tick: a flood of output must not delay the look at the limits
MAX_LINE = 10_000_000  # bytes; what is longer is dropped
LINGER = 60.0  # seconds that claude may live on after its result
INSTANT = 2.0  # seconds; a run that ends sooner and without a turn has done nothing, whatever it says
QUIET = 30.0  # seconds without output after which the live line says so
RECENT = 600.0  # seconds; a reset that has just passed is not tomorrow's
REPORT = 8000  # characters of the worker's last words
TOKENS = {  # name -> (key in a result's modelUsage, key in a message's usage, dollars of one, for a large model)
    "input": ("inputTokens", "input_tokens", 5e-6),
    "output": ("outputTokens", "output_tokens", 25e-6),
    "cache_read": ("cacheReadInputTokens", "cache_read_input_tokens", 0.5e-6),
    "cache_creation": ("cacheCreationInputTokens", "cache_creation_input_tokens", 6.25e-6),
}
NAMED = "named_usd"  # in Outcome.spent: the session's cost as claude named it last

# What a failure is of, by claude's own words and by the values of error, api_error, terminal_reason and the HTTP
# status in its events. The first row that matches counts: a limit's text may also speak of /login.
KINDS = (
    ("credit", r"billing_error|credits_required|credit balance|spend limit(?!.*limit resets)|usage credits? required"
               r"|specified api usage limits|out of usage credits(?!.*resets)"),
    ("context_full", r"prompt_too_long|blocking_limit|rapid_refill_breaker|tool_history_mismatch|prompt is too long"
                     r"|request too large|context limit reached"),
    ("limit", r"usage_limit_reached|rejected_window|(hit|reached) your .*limit|out of (extra usage|usage credits)"),
    ("lost_session", r"no conversation found|session id \S+ is already in use"),
    ("denied", r"model_not_found|tls_untrusted_ca|proxy refused the tunnel|sandbox required but unavailable"
               r"|cannot be used with root|error: (unknown )?option|file not found|invalid mcp config"),
    ("auth", r"authentication_failed|oauth_org_not_allowed|account_on_hold|cloud_credential_error|status 401"
             r"|org_disabled_credential|not logged in|/login|invalid api key|failed to authenticate|oauth"),
    ("overloaded", r"rate_limit|overloaded|server_error|status (429|5\d\d)|unable to connect|connection (error|refused"
                   r"|reset)|timed out|internal server error|limiting requests"),
)  # fmt: skip

CLOCK = re.compile(  # 3pm, 5:49am, Mon 12:00am, Jul 10 at 1pm, Jan 6, 2027, 7pm; then perhaps (Europe/Berlin)
    r"(?i)resets? (?:at )?(?:(mon|tue|wed|thu|fri|sat|sun) )?(?:([a-z]{3} \d\d?),? (?:\d{4}, )?(?:at )?)?"
    r"(\d\d?(?::\d\d)? ?[ap]m)\b(?: \(([\w/+-]+)\))?"
)
MET = re.compile(r"^[^\w\n]*met:(.*)$", re.I | re.M)


class Stream:
    """Follows claude's output: keeps it masked and compressed, shows what happens, remembers what counts."""

    def __init__(self, output: IO[bytes], recording: IO[bytes]):
        """output: what claude writes to. recording: where the masked lines are appended, as gzip members."""
        self.output, self.recording = output, recording
        self.offset, self.rest = 0, b""
        self.begun = self.heard = time.monotonic()
        self.doing = "starting"
        self.model = self.version = self.words = ""
        self.usage: dict[str, dict[str, float]] = {}  # message id -> tokens
        self.context = 0.0  # tokens of the conversation as it was sent last
        self.turns = self.window = 0
        self.error = ""  # text of claude's own last message
        self.signs: dict[str, str] = {}  # values in its events that say what an error is of
        self.limits: dict[str, float] = {}  # window that is used up -> epoch seconds of its reset; 0: not named
        self.result: dict[str, Any] = {}
        self.answer: list[str] = []  # its errors and its text
        self.result_at = 0.0
        self.in_time = True  # the result came before the kit ended the session
        self.totals: dict[str, float] = {}  # dollars ("usd") and tokens as the result names them
        self.denials: list[str] = []

    def tick(self) -> str:
        """Take in some of what is new; return "lingering" when claude does not end although it has answered."""
        self._take()
        now, usd = time.monotonic(), self.estimate().get("usd", 0.0)
        quiet = f", quiet for {now - self.heard:.0f} s" if now - self.heard > QUIET else ""
        log.live(f"worker {timedelta(seconds=int(now - self.begun))}{quiet}, ~${usd:.2f} · {self.doing}")
        return "lingering" if self.result_at and now - self.result_at > LINGER else ""

    def finish(self) -> None:
        """Take in the rest, also a last line without an end."""
        self.in_time = bool(self.result)
        while self._take():
            pass
        self._record([self.rest])

    def estimate(self) -> dict[str, float]:
        """Return dollars and tokens by the messages so far, for a run without a result; {} before the first one."""
        tokens = {name: sum(usage[name] for usage in self.usage.values()) for name in TOKENS}
        return {"usd": sum(count * TOKENS[name][2] for name, count in tokens.items()), **tokens} if self.usage else {}

    def _take(self) -> bool:
        data = proc.read(self.output, self.offset, PART)
        self.offset += len(data)
        self.heard = time.monotonic() if data else self.heard
        *lines, self.rest = (self.rest + data).split(b"\n")
        self._record(lines)
        self.rest = self.rest if len(self.rest) <= MAX_LINE else b""
        return bool(data)

    def _record(self, lines: Sequence[bytes]) -> None:
        """Take in what the lines say, and append them masked."""
        texts = [text for line in lines if (text := self._line(line))]
        if texts:
            text = log.mask("\n".join([*texts, ""]))  # also keys, and what is no JSON
            self.recording.write(gzip.compress(text.encode("utf-8", "replace")))
            self.recording.flush()

    def _line(self, raw: bytes) -> str:
        text = raw.decode("utf-8", "replace")
        if text.startswith("{"):
            try:
                event = log.mask_tree(json.loads(text))  # before JSON's escapes hide what is a secret
                text = json.dumps(event)
                self._event(event)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                log.debug(f"a line of claude's output is not understood: {error!r:.200}")
        return text

    def _event(self, event: dict[str, Any]) -> None:
        """Take in one event. Raises whatever comes of one that has another form."""
        match event.get("type"), event.get("subtype"):
            case "system", "init":
                self.model, self.version = str(event.get("model", "")), str(event.get("claude_code_version", ""))
            case "system", "api_retry":
                log.info(f"worker: the API answers {event.get('error_status') or 'nothing'}, claude tries again")
            case "assistant", _:
                self._assistant(event)
            case "rate_limit_event", _:  # it comes with ordinary turns, too: only `rejected` is a limit
                info = event["rate_limit_info"]
                window = str(info.get("rateLimitType", ""))
                self.signs["limit"] = str(info.get("errorCode"))
                self.limits.pop(window, None)
                if info["status"] == "rejected":
                    self.limits[window] = _amount(info.get("resetsAt"))
            case "result", _:
                self._result(event)

    def _assistant(self, event: dict[str, Any]) -> None:
        message = event["message"]
        if event.get("error") or message.get("model") == "<synthetic>":
            self.signs["error"] = f"{event.get('error')} {event.get('api_error')}"
            self.error = "\n".join(str(block["text"]) for block in message["content"])
            return
        own = not event.get("parent_tool_use_id")  # else a subagent's, with words and a context of its own
        if usage := message.get("usage"):
            tokens = {name: _amount(usage.get(key)) for name, (_, key, _) in TOKENS.items()}
            self.usage[str(message.get("id"))] = tokens  # one event per block: the same message comes several times
            self.context = sum(tokens.values()) - tokens["output"] if own else self.context
        for block in message["content"]:
            if block["type"] == "text" and block["text"].strip():
                self.words = block["text"] if own else self.words
                self._show(block["text"].strip().splitlines()[0])
            elif block["type"] == "tool_use":
                self._show(_call(block["name"], block["input"]))

    def _show(self, doing: str) -> None:
        self.doing = doing[:160]
        log.info(f"worker: {self.doing}")

    def _result(self, event: dict[str, Any]) -> None:
        self.result, self.result_at = event, time.monotonic()  # first: it counts also where the rest is of another form
        self.answer = [str(one) for one in (*(event.get("errors") or []), event.get("result") or "")]
        self.turns = int(_amount(event.get("num_turns")))
        if models := (event.get("modelUsage") or {}).values():
            tokens = {name: sum(_amount(use.get(key)) for use in models) for name, (key, _, _) in TOKENS.items()}
            self.totals = {"usd": _amount(event.get("total_cost_usd")), **tokens}
            self.window = int(max(_amount(use.get("contextWindow")) for use in models))
        self.denials = [_call(one["tool_name"], one["tool_input"]) for one in event.get("permission_denials") or []]


def classify(stream: Stream, result: proc.Result, stderr: str, spent: Mapping[str, float], window: int) -> Outcome:
    """Return how a session ended, by its events, its process and its stderr.

    spent: `Outcome.spent` of the session's last run. window: tokens of the context window, until claude names it.
    """
    is_good = bool(stream.result) and not stream.result.get("is_error")
    error = "" if is_good else "\n".join(dict.fromkeys(filter(None, [*stream.answer, stream.error, stderr])))[:2000]
    turns, window = stream.turns or len(stream.usage), stream.window or window
    kind = _kind(stream, result, error, begun=bool(spent or stream.usage))
    if kind in ("ended", "interrupted") and not (turns or result.stopped) and result.seconds < INSTANT:
        kind = "crashed"  # or a claude that ends at once would be started again and again
    run, session = _costs(stream, spent)
    families = {_family(name) for name in stream.limits}
    answer = stream.answer[-1] if is_good and stream.answer else ""  # it may be cut
    return Outcome(
        kind,
        message=error or _how_it_ended(kind, stream, result),
        report=max(answer, stream.words, key=len)[-REPORT:].encode("utf-8", "replace").decode(),  # no half characters
        resets_at=(_reset(stream) or reset_time(error, time.time())) if kind == "limit" else None,
        limited=families.pop() if kind == "limit" and len(families) == 1 else "",
        turns=turns,
        cost_usd=round(run.pop("usd", 0.0), 6),
        tokens={name: int(count) for name, count in run.items()},
        spent=session,
        context=round(stream.context / window, 3),
        window=window,
        denials=stream.denials,
        seconds=round(result.seconds, 1),
        swept=result.swept,
        model=stream.model,
        version=stream.version,
    )


def _kind(stream: Stream, result: proc.Result, error: str, begun: bool) -> str:
    """Return Outcome.kind, in this order of trust: what the kit did, the result, claude's own error, the exit code."""
    subtype, reason = stream.result.get("subtype"), str(stream.result.get("terminal_reason") or "completed")
    if result.error:
        return "missing"
    if result.stopped and not stream.in_time:  # a claude that is told to stop may still call it a success
        return "interrupted" if result.stopped == "interrupted" else "timeout"
    if subtype == "success" and not stream.result.get("is_error"):
        return "ended" if reason == "completed" else "interrupted"
    if subtype in ("error_max_turns", "error_max_budget_usd"):
        return "turn_cap" if subtype == "error_max_turns" else "budget_cap"
    status = f"status {stream.result.get('api_error_status')}"
    signs = " ".join([*stream.signs.values(), reason, status, "rejected_window" if stream.limits else "", error])
    for kind, pattern in KINDS:
        if re.search(pattern, signs, re.I):
            return kind
    if status == "status 400":  # the API refuses this conversation, or every one with these settings
        return "context_full" if begun else "denied"
    was_killed = not stream.result and result.code in (-15, -9, -2, 130, 137, 143)
    return "interrupted" if was_killed or reason.startswith("aborted") else "crashed"


def _how_it_ended(kind: str, stream: Stream, result: proc.Result) -> str:
    if result.error:
        return f"claude could not be started: {result.error}"
    if result.stopped:
        return f"ended by CCO after {result.seconds:.0f} s: {result.stopped}"
    if not stream.result:
        return f"claude ended with exit code {result.code} and without a result"
    return "" if kind == "ended" else f"claude gave no reason but {stream.result.get('terminal_reason')}"


def _costs(stream: Stream, spent: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what this run cost, and what its session did so far. An estimate is corrected by the next result."""
    run, named = stream.totals or stream.estimate(), stream.totals.get("usd", spent.get(NAMED, 0.0))
    if stream.totals and named >= spent.get(NAMED, 0.0):  # else a version that counts each run by itself
        run = {name: max(0.0, total - spent.get(name, 0.0)) for name, total in stream.totals.items()}
    return dict(run), {**spent, **{name: spent.get(name, 0.0) + value for name, value in run.items()}, NAMED: named}


def _reset(stream: Stream) -> float | None:
    """Return the latest reset of the windows that are used up; one model's counts only where no other is."""
    whole = [at for name, at in stream.limits.items() if name != "overage" and not _family(name)]
    return max(whole or stream.limits.values(), default=0.0) or None


def _family(window: str) -> str:
    """Return the model that a usage limit is of, such as "opus"; "" when it is the whole plan's."""
    name = "fable" if window == "seven_day_overage_included" else window.rpartition("_")[2]
    return name if name in ("opus", "sonnet", "haiku", "fable") else ""


def reset_time(text: str, now: float) -> float | None:
    """Return the latest time, in epoch seconds, at which a limit ends by claude's own words; None: they name none."""
    return max((at for match in CLOCK.finditer(text) if (at := _moment(match, now))), default=None)


def _moment(match: re.Match[str], now: float) -> float | None:
    day, date, clock, zone = match.groups()
    with suppress(ValueError, LookupError, OSError):  # no such time, no such zone
        at = datetime.strptime(clock.replace(" ", ""), "%I:%M%p" if ":" in clock else "%I%p")
        today = datetime.fromtimestamp(now, ZoneInfo(zone) if zone else None)
        first = today.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0) - timedelta(1)
        for one in (first + timedelta(ahead) for ahead in range(370)):  # the first such day whose time has not passed
            is_day = not (day or date) or (day or date).title() in (f"{one:%a}", f"{one:%b} {one.day}")
            if is_day and one.timestamp() >= now - RECENT:
                return one.timestamp()
    return None


def claimed(report: str, ids: Sequence[str]) -> list[str] | None:
    """Return those of the ids that the report's last line `Met: id, id` names; None without such a line."""
    lines = [[re.sub(r"^\W+|\W+$", "", word) for word in line.split(",")] for line in MET.findall(report.lower())]
    lists = [names for names in lines if all(re.fullmatch(r"[\w-]+", name) for name in names)]  # not prose
    return [id for id in ids if id.lower() in lists[-1]] if lists else None


def _call(tool: Any, given: dict[str, Any]) -> str:
    """Return a tool call in one line: its name and its first argument."""
    return " ".join(f"{tool} {next(iter(given.values()), '')}".split())[:200]


def _amount(value: Any) -> float:
    """Return a number of an event, 0 for none. Raises ValueError or TypeError for what cannot be added up."""
    if not 0 <= (value or 0) < 1e15:  # also NaN
        raise ValueError(f"{value!r:.50} is no amount")
    return float(value or 0)
