"""What an HTTP answer of a chat completions server means: the text that it holds, or why it is none and what follows.

    found = refusals.read(status, headers, body, time.time())      a str, or a Refusal

The decision table of OpenRouter's protocol, which servers that copy it follow as far as they go: first what the error
says about itself (availability, limit_source, error_type), then the status. Errors come inside a 200 too. Fields and
values that are not known are passed over. Pure functions: no clock, no network, no settings.

What is not covered: streams; and an error that a server tells in a way of its own counts by its status alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import log

# What follows from a refusal.
AGAIN = "again"  # the same request may be answered when it is sent once more
EMPTY = "empty"  # likewise, but once is enough
NOBODY = "nobody"  # likewise, but no other model of this server either
MODEL = "model"  # another model may answer
FREE = "free"  # a model that is not free may answer
PAID = "paid"  # a model that is free may answer
STOP = "stop"  # none will

# What of the request may be mended first, so that the same model answers.
FORM, LESS, MORE = "form", "less", "more"  # another form of structured answer, fewer or more tokens for the answer
FIELDS = ("reasoning", "temperature", "max_tokens")  # this field is left out; the last goes by its newer name then

CAUSE = 220  # characters of the server's own words that are shown
LONGEST = 400 * 86400.0  # seconds; what is to end later than that was not read right
RESET = 120.0  # seconds; a limit per minute that ends later than that does not tell when
OUTPUT_SHARE = 0.95  # of the room for an answer that a server computes, since it counts tokens anew each time

STATUSES = {  # by error_type, and by the words that stand for a number in `code`
    "context_length_exceeded": 400, "max_tokens_exceeded": 400, "token_limit_exceeded": 400, "string_too_long": 400,
    "invalid_request": 400, "invalid_prompt": 400, "content_policy_violation": 400, "refusal": 400,
    "authentication": 401, "payment_required": 402, "permission_denied": 403, "not_found": 404,
    "precondition_failed": 412, "payload_too_large": 413, "unprocessable": 422, "rate_limit_exceeded": 429,
    "server": 500, "server_error": 500, "unmapped": 500, "provider_unavailable": 502, "provider_overloaded": 503,
    "timeout": 504,
}  # fmt: skip
TOO_LONG = ("context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded")
BUDGETS = ("openrouter_key_limit", "openrouter_workspace_budget", "openrouter_guardrail_budget")
PASSING = ("openrouter_in_flight_budget", "openrouter_free_tier_minute", "upstream_provider_shared_pool")
DAILY = re.compile(r"free-models-per-day")
TOO_DEAR = re.compile(r"can only afford|tokens limit exceeded", re.I)
AFFORD = re.compile(r"can only afford (\d{1,9})\b")
CONTEXT = re.compile(r"maximum context length is (\d{1,9}) tokens.*?\((\d{1,9}) of text input", re.S)
TOO_LONG_TEXT = re.compile(r"context (length|window)|too many tokens|prompt is too long", re.I)
FORM_TEXT = re.compile(r"response[ _]?format|json[ _]?schema|json[ _]?object|structured[ _]?output|\bschema\b", re.I)
UNKNOWN_MODEL = re.compile(r"not a valid model|model.{0,80}(not found|does not exist|is not available)", re.I)
UNABLE = re.compile(r"requested parameters|Filter by Parameters", re.I)

MODEL_HINT = "choose another model in openrouter.model"
PAGE = "a web page:"
BASE_HINT = "is openrouter.base_url right?"
KEY_HINT = "put a valid key into OPENROUTER_API_KEY or openrouter.api_key"
FREE_HINT = "until then only a model that is not free answers: name one in openrouter.fallbacks"
TOKENS_HINT = "raise openrouter.max_tokens"


@dataclass(frozen=True)
class Refusal:
    """An answer that is none."""

    follows: str
    """AGAIN, EMPTY, NOBODY, MODEL, FREE, PAID or STOP."""
    message: str
    """Why, for people: masked, short, and with a remedy where a person has one."""
    unreachable: bool = True
    """Whether the same question will be refused in a minute as well, whatever it asks."""
    wait: float | None = None
    """Seconds after which it makes sense to ask again, where the server says so."""
    until: float | None = None
    """The same as a time, in epoch seconds, for what lasts."""
    mend: str = ""
    """What may be mended first, once: FORM, LESS, MORE, one of FIELDS, or nothing."""
    tokens: int = 0
    """How many tokens for the answer would be accepted, with LESS."""


@dataclass(frozen=True)
class _Problem:
    """An error as a server tells it, all its parts without trust."""

    status: int
    text: str
    """Everything that it says, to search in."""
    cause: str
    """What of it is for people."""
    kind: str
    source: str
    metadata: Mapping[str, Any]
    availability: Mapping[str, Any]
    headers: Mapping[str, str]
    now: float

    def refusal(self, follows: str, hint: str = "", **fields: Any) -> Refusal:
        told = f"HTTP {self.status}: {self.cause}" if self.cause else f"HTTP {self.status}"
        return Refusal(follows, f"{told} ({hint})" if hint else told, **fields)

    def again(self, hint: str = "") -> Refusal:
        return self.refusal(AGAIN, hint, wait=_wait(self))


def read(status: int, headers: Mapping[str, str], body: bytes, now: float) -> str | Refusal:
    """The text of an answer, whole, or what follows from one that is none.

    headers: their names in any case, or in lower case. now: epoch seconds, for times that are given as dates.
    """
    reply = parse(body)
    headers = {name.lower(): value for name, value in headers.items()}
    if isinstance(reply, list) and reply and isinstance(reply[0], dict):  # Google's way to tell an error
        reply = reply[0]
    if not isinstance(reply, dict):
        return _unreadable(_Problem(status, "", _glimpse(body), "", "", {}, {}, headers, now))
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = reply.get("error") or choice.get("error")
    if status != 200 or error or choice.get("finish_reason") == "error":
        told = error or (reply if status != 200 else {})
        return _refused(_problem(status, told, headers, now))
    return _text(choice, completion_tokens(reply))


def parse(body: bytes) -> Any:
    """The JSON value that a body holds, None where it holds none. Spaces before it keep connections alive."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def completion_tokens(reply: Mapping[str, Any]) -> int:
    """How many tokens an answer says that it has; 0 where it does not say."""
    usage = reply.get("usage")
    return int(number(usage.get("completion_tokens")) or 0) if isinstance(usage, dict) else 0


def number(value: Any) -> float | None:
    """A number that a server gave, also as digits; None for everything that is none, negative or endless."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found < 1e15 and not isinstance(value, bool) else None


# --------------------------------------------------------------------------------------------------------
# An answer
# --------------------------------------------------------------------------------------------------------


def _text(choice: Mapping[str, Any], tokens: int) -> str | Refusal:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text, reason = _joined(message.get("content")), str(choice.get("finish_reason")).lower()
    if reason in ("length", "max_tokens"):
        told = f"its answer was cut off{f' after {tokens} tokens' if tokens else ''} ({TOKENS_HINT})"
        return Refusal(MODEL, told, unreachable=False, mend=MORE)
    if reason == "content_filter" or (message.get("refusal") and not text.strip()):
        return Refusal(MODEL, "it refuses to answer (content filter)", unreachable=False)
    if not text.strip() and tokens:
        told = f"its answer is empty, although it took {tokens} tokens ({TOKENS_HINT}, or {MODEL_HINT})"
        return Refusal(MODEL, told, unreachable=False)
    return text if text.strip() else Refusal(EMPTY, "its answer is empty", unreachable=False)


def _joined(content: Any) -> str:
    """A message's content: a string, or a list of parts of which only those with a text count."""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part for part in parts if isinstance(part, str))


# --------------------------------------------------------------------------------------------------------
# An error
# --------------------------------------------------------------------------------------------------------


def _problem(status: int, error: Any, headers: Mapping[str, str], now: float) -> _Problem:
    """What a server says about an error, in whichever of the known ways."""
    told = error if isinstance(error, dict) else {"message": error}
    metadata, availability = (_object(told.get(name)) for name in ("metadata", "availability"))
    kind = str(metadata.get("error_type") or told.get("error_type") or "")
    message = next((told[name] for name in ("message", "detail") if isinstance(told.get(name), str)), "")
    raw = str(metadata.get("raw") or "")
    cause = message or (json.dumps(told) if told else "")
    if raw and message in ("", "Provider returned error"):
        cause = f"{_shown(str(metadata.get('provider_name') or 'provider'))}: {_innermost(raw)}"
    return _Problem(
        status=_status(status, told, kind),
        text=f"{message or cause}\n{raw}\n{metadata.get('failed_routing_step') or ''}",
        cause=_shown(cause),
        kind=kind,
        source=str(metadata.get("limit_source") or ""),
        metadata=metadata,
        availability=availability,
        headers={**{str(k).lower(): str(v) for k, v in _object(metadata.get("headers")).items()}, **headers},
        now=now,
    )


def _status(status: int, told: Mapping[str, Any], kind: str) -> int:
    """The status that an error really has: by its type, by its code, else what it was sent with."""
    if kind in STATUSES:
        return STATUSES[kind]
    for name in ("code", "http_status"):
        code = STATUSES.get(str(told.get(name)), number(told.get(name)))
        if code and 400 <= code < 600 and code == int(code):
            return int(code)
    return status


def _unreadable(problem: _Problem) -> Refusal:
    """No JSON: a page of somebody in between, or an answer that broke off."""
    if problem.status == 200:
        return problem.again(BASE_HINT if problem.cause.startswith(PAGE) else "")
    if problem.status in (403, 404, 405):
        return problem.refusal(STOP, BASE_HINT)
    return _by_status(problem)


def _refused(problem: _Problem) -> Refusal:
    """What follows: what an error says about itself counts before its status."""
    retryable = problem.availability.get("retryable")
    if retryable is True:
        return problem.again()
    found = _by_limit(problem) or _by_status(problem)
    return replace(found, follows=MODEL) if retryable is False and found.follows == AGAIN else found


def _by_limit(problem: _Problem) -> Refusal | None:
    """Limits of money and of requests, by their name, or by the message that is known for them."""
    if DAILY.search(problem.text) or problem.source == "openrouter_free_tier_daily":
        return problem.refusal(FREE, FREE_HINT, until=_next_day(problem))
    if problem.source in BUDGETS or "Key limit exceeded" in problem.text:
        hint = "raise the limit, or wait until it is reset"
        return problem.refusal(PAID, hint, until=_moment(problem.metadata.get("resets_at"), problem.now))
    if problem.source in PASSING or problem.metadata.get("reason") == "in_flight_budget_exhausted":
        return problem.again()
    return None


def _by_status(problem: _Problem) -> Refusal:
    status = problem.status
    if status in (408, 429) or status >= 500 or 200 <= status < 300:
        return problem.again()
    if status < 400:  # a redirect, which would take the prompt elsewhere
        return problem.refusal(STOP, BASE_HINT)
    if status == 401:
        return problem.refusal(STOP, KEY_HINT)
    if status == 402:
        return _unpaid(problem)
    if status == 403:
        flagged = any(problem.metadata.get(name) for name in ("reasons", "flagged_input", "patterns"))
        return problem.refusal(MODEL, "" if flagged else MODEL_HINT, unreachable=not flagged)
    if status == 404 and UNABLE.search(problem.text):
        return problem.refusal(MODEL, MODEL_HINT, mend=FORM)
    if status == 404 or UNKNOWN_MODEL.search(problem.text) or problem.availability.get("code") == "model_not_found":
        return problem.refusal(MODEL, MODEL_HINT)
    return _bad_request(problem)


def _unpaid(problem: _Problem) -> Refusal:
    """402: of what else is asked for at the same time, of what this model takes for its tokens, or of the account."""
    if "retry-after" in problem.headers:
        return problem.again()
    hint = "" if "credits" in problem.cause else "add credits at https://openrouter.ai/settings/credits"
    if affordable := AFFORD.search(problem.text):
        return problem.refusal(MODEL, hint, mend=LESS, tokens=int(affordable[1]))
    is_dear = TOO_DEAR.search(problem.text) or problem.metadata.get("reason") == "weight_exceeds_budget"
    return problem.refusal(MODEL if is_dear else PAID, hint)


def _bad_request(problem: _Problem) -> Refusal:
    """400, 413, 422 and their like: the question does not suit this model."""
    if room := CONTEXT.search(problem.text):
        left = int((int(room[1]) - int(room[2])) * OUTPUT_SHARE)
        return problem.refusal(MODEL, MODEL_HINT, unreachable=False, mend=LESS, tokens=left)
    if problem.kind in TOO_LONG or TOO_LONG_TEXT.search(problem.text):
        return problem.refusal(MODEL, f"{MODEL_HINT}, or lower openrouter.max_prompt", unreachable=False)
    if FORM_TEXT.search(problem.text):
        return problem.refusal(MODEL, MODEL_HINT, unreachable=False, mend=FORM)
    mend = next((name for name in FIELDS[:2] if name in problem.text.lower()), "")
    mend = "max_tokens" if "max_completion_tokens" in problem.text else mend
    return problem.refusal(MODEL, unreachable=False, mend=mend)


# --------------------------------------------------------------------------------------------------------
# Times
# --------------------------------------------------------------------------------------------------------


def _wait(problem: _Problem) -> float | None:
    """Seconds to wait, by the first of the places where a server may say so."""
    found = _seconds(problem.headers.get("retry-after"), problem.now)
    for said in (problem.availability.get("retry_after"), problem.metadata.get("retry_after_seconds")):
        found = number(said) if found is None else found
    if found is None and problem.status == 429 and (reset := _reset(problem)) and reset - problem.now <= RESET:
        found = reset - problem.now
    return found if found is None or found <= LONGEST else None


def _seconds(header: str | None, now: float) -> float | None:
    """Retry-After: seconds, or the date of HTTP."""
    if header is None or (seconds := number(header)) is not None:
        return None if header is None else seconds
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None


def _reset(problem: _Problem) -> float | None:
    """X-RateLimit-Reset, in epoch milliseconds, as epoch seconds; None for what has passed or is far away."""
    reset = (number(problem.headers.get("x-ratelimit-reset")) or 0) / 1000
    return reset if problem.now < reset < problem.now + LONGEST else None


def _next_day(problem: _Problem) -> float:
    """When a daily limit ends, in epoch seconds: as it says, else at the next midnight of UTC."""
    day = datetime.fromtimestamp(problem.now, timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    return _reset(problem) or (day + timedelta(days=1)).timestamp()


def _moment(said: Any, now: float) -> float | None:
    """A time in ISO 8601 as epoch seconds; None where it is none, or has passed."""
    try:
        moment = datetime.fromisoformat(str(said).replace("Z", "+00:00"))
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and now < seconds < now + LONGEST else None


# --------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _innermost(raw: str) -> str:
    """The message in what a provider said, which often is JSON in a string."""
    said = parse(raw.encode("utf-8", "replace"))
    inner = said.get("error", said) if isinstance(said, dict) else raw
    found = inner.get("message") if isinstance(inner, dict) else inner
    return found if isinstance(found, str) and found else raw


def _glimpse(body: bytes) -> str:
    """What there was instead of JSON: the heading of a page, or how it begins."""
    text = body[: 4 * CAUSE].decode("utf-8", "replace")
    heading = re.search(r"<(?:title|h1)[^>]*>([^<]*)", text, re.I)
    return f"{PAGE} {_shown(heading[1])!r}" if heading else f"no JSON but {_shown(text)!r}"


def _shown(said: str) -> str:
    """A stranger's words for people: masked, on one line, short."""
    said = " ".join(log.printable(said).split())
    return said if len(said) <= CAUSE else f"{said[:CAUSE]}..."
