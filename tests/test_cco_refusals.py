"""What an answer means: the order of the rules, the times that a server names, and words for people."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any

import pytest

import log
from refusals import AGAIN, EMPTY, FORM, FREE, LESS, MODEL, MORE, PAID, STOP, Refusal, read

NOW = datetime(2026, 11, 21, 22, 30, tzinfo=timezone.utc).timestamp()
MIDNIGHT = datetime(2026, 11, 22, tzinfo=timezone.utc).timestamp()
MINUTE = 60 * 1000
SECRET = "correct-horse-battery-staple"
KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
PER_DAY = "Rate limit exceeded: free-models-per-day. Add 10 credits"


def refused(status: int, error: Any = None, headers: dict[str, str] | None = None, **more: Any) -> Refusal:
    """What an error leads to. more: fields of it."""
    told = {"code": status, "message": "It failed", **more} if error is None else error
    found = read(status, headers or {}, json.dumps({"error": told}).encode(), NOW)
    assert isinstance(found, Refusal)
    return found


def said(**choice: Any) -> str | Refusal:
    return read(200, {}, json.dumps({"choices": [choice]}).encode(), NOW)


# --------------------------------------------------------------------------------------------------------
# The order of the rules
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 429, 500, 503])
def test_what_says_that_it_may_pass_is_asked_again_whatever_else_it_says(status):
    metadata = {"limit_source": "openrouter_key_limit", "error_type": "authentication"}
    found = refused(status, availability={"retryable": True, "retry_after": 3}, metadata=metadata)
    assert (found.follows, found.wait) == (AGAIN, 3)


@pytest.mark.parametrize(("status", "follows"), [(429, MODEL), (503, MODEL), (402, PAID), (401, STOP)])
def test_what_says_that_it_will_not_pass_is_not_asked_again(status, follows):
    assert refused(status, availability={"retryable": False}).follows == follows


@pytest.mark.parametrize("retryable", ["yes", 1, None, "false"])
def test_only_a_truth_value_says_whether_it_may_pass(retryable):
    assert refused(400, availability={"retryable": retryable}).follows == MODEL
    assert refused(503, availability={"retryable": retryable}).follows == AGAIN


@pytest.mark.parametrize("status", [402, 403, 429, 500])
@pytest.mark.parametrize(
    ("source", "follows"),
    [
        ("openrouter_in_flight_budget", AGAIN),
        ("openrouter_free_tier_minute", AGAIN),
        ("upstream_provider_shared_pool", AGAIN),
        ("openrouter_free_tier_daily", FREE),
        ("openrouter_key_limit", PAID),
        ("openrouter_workspace_budget", PAID),
        ("openrouter_guardrail_budget", PAID),
    ],
)
def test_the_source_of_a_limit_counts_before_the_status(status, source, follows):
    found = refused(status, metadata={"limit_source": source, "error_type": "server"})
    assert found.follows == follows


@pytest.mark.parametrize(
    ("kind", "follows"),
    [("authentication", STOP), ("not_found", MODEL), ("rate_limit_exceeded", AGAIN), ("timeout", AGAIN), ("new", PAID)],
)
@pytest.mark.parametrize("inside", [True, False])
def test_the_type_of_an_error_counts_before_its_status(kind, follows, inside):
    place: dict[str, Any] = {"metadata": {"error_type": kind}} if inside else {"error_type": kind}
    assert refused(402, **place).follows == follows


def test_the_code_of_an_error_counts_before_the_status_it_was_sent_with():
    assert refused(200, {"code": 401, "message": "x"}).follows == STOP
    assert refused(500, {"code": "404", "message": "x"}).follows == MODEL
    assert refused(200, {"http_status": 402, "message": "x"}).follows == PAID


@pytest.mark.parametrize("code", [None, 0, 200, 700, -1, 401.5, "teapot", True, [], {}, 10**400, "nan"])
def test_a_code_that_is_none_leaves_the_status(code):
    assert refused(401, {"code": code, "message": "x"}).follows == STOP
    assert refused(200, {"code": code, "message": "x"}).follows == AGAIN


# --------------------------------------------------------------------------------------------------------
# Times
# --------------------------------------------------------------------------------------------------------

IN_40 = format_datetime(datetime.fromtimestamp(NOW + 40, timezone.utc), usegmt=True)
AGO = format_datetime(datetime.fromtimestamp(NOW - 40, timezone.utc), usegmt=True)
LATER = {"metadata": {"retry_after_seconds": 11}, "availability": {"retry_after": 9}}
RESETS = {"X-RateLimit-Reset": f"{int((NOW + 30) * 1000)}"}


@pytest.mark.parametrize(
    ("headers", "more", "wait"),
    [
        ({"Retry-After": "5"}, LATER, 5),
        ({"retry-after": "5.5"}, LATER, 5.5),
        ({"RETRY-AFTER": "0"}, LATER, 0),
        ({"Retry-After": IN_40}, LATER, 40),
        ({"Retry-After": AGO}, LATER, 0),
        *[
            ({"Retry-After": odd}, LATER, 9)
            for odd in ("", "soon", "-5", "nan", "inf", "Sat, 99 Nov 2026 99:99:99 GMT", "9" * 400)
        ],
        ({}, LATER, 9),
        ({}, {"metadata": {"retry_after_seconds": 11}, "availability": {"retry_after": "x"}}, 11),
        ({}, {"metadata": {"headers": {"Retry-After": "7"}}}, 7),
        ({}, {"metadata": {"headers": RESETS}}, 30),
        (RESETS, {}, 30),
        ({"X-RateLimit-Reset": f"{int(NOW * 1000) + 3600_000}"}, {}, None),
        ({"X-RateLimit-Reset": f"{int(NOW * 1000) - 5}"}, {}, None),
        ({"X-RateLimit-Reset": "1s"}, {}, None),
        ({"Retry-After": "9999999999"}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_wait_is_read_from_the_first_place_that_names_one(headers, more, wait):
    assert refused(429, headers=headers, **more).wait == wait


@pytest.mark.parametrize(
    ("headers", "until"),
    [
        ({}, MIDNIGHT),
        ({"X-RateLimit-Reset": str(int(MIDNIGHT * 1000) + 5 * MINUTE)}, MIDNIGHT + 300),
        ({"X-RateLimit-Reset": str(int(MIDNIGHT))}, MIDNIGHT),  # seconds are no milliseconds
        ({"X-RateLimit-Reset": "0"}, MIDNIGHT),
        ({"X-RateLimit-Reset": "9" * 30}, MIDNIGHT),
    ],
)
def test_a_daily_limit_ends_when_it_says_or_at_midnight_of_utc(headers, until):
    found = refused(429, headers=headers, message=PER_DAY)
    assert (found.follows, found.until, found.wait) == (FREE, until, None)
    assert refused(429, message=PER_DAY, metadata={"headers": headers}).until == until
    high = "Rate limit exceeded: free-models-per-day-high-balance."
    assert refused(429, headers=headers, message=high).until == until


@pytest.mark.parametrize(
    ("resets", "until"),
    [
        ("2026-11-22T00:00:00Z", MIDNIGHT),
        ("2026-11-22T01:00:00+01:00", MIDNIGHT),
        ("2026-11-22T00:00:00", MIDNIGHT),
        ("2026-11-21T00:00:00Z", None),
        ("2096-11-21T00:00:00Z", None),
        ("monthly", None),
        (1795305600, None),
        (None, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_key_ends_when_it_says(resets, until):
    found = refused(403, metadata={"limit_source": "openrouter_key_limit", "resets_at": resets})
    assert (found.follows, found.until) == (PAID, until)


# --------------------------------------------------------------------------------------------------------
# What may be mended
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "mend", "tokens"),
    [
        (402, "You requested up to 64000 tokens, but can only afford 13044. To increase ...", LESS, 13044),
        (402, "Insufficient credits.", "", 0),
        (
            400,
            "maximum context length is 1000 tokens. However, ... about 1400 tokens (400 of text input, ...",
            LESS,
            570,
        ),
        (
            400,
            "maximum context length is 1000 tokens. However, ... about 9 tokens (2000 of text input, ...",
            LESS,
            -950,
        ),
        (400, "The prompt is too long", "", 0),
        (400, "response_format is not supported", FORM, 0),
        (422, "structured outputs are not supported", FORM, 0),
        (400, "Invalid schema", FORM, 0),
        (404, "No endpoints found that can handle the requested parameters.", FORM, 0),
        (404, "No endpoints found for response_format/x.", "", 0),
        (500, "response_format", "", 0),
        (400, "Reasoning is mandatory for this endpoint and cannot be disabled.", "reasoning", 0),
        (400, "'temperature' does not support 0.5", "temperature", 0),
        (400, "'max_tokens' is not supported: use 'max_completion_tokens'", "max_tokens", 0),
        (400, "Something else", "", 0),
    ],
)
def test_what_may_be_mended_is_read_from_the_message(status, message, mend, tokens):
    found = refused(status, message=message)
    assert (found.mend, found.tokens) == (mend, tokens)
    raw = refused(
        status, message="Provider returned error", metadata={"raw": json.dumps({"error": {"message": message}})}
    )
    assert (raw.mend, raw.tokens) == (mend, tokens)


@pytest.mark.parametrize(
    ("status", "more", "unreachable"),
    [
        (401, {}, True),
        (402, {}, True),
        (403, {}, True),
        (403, {"metadata": {"reasons": ["violence"]}}, False),
        (403, {"metadata": {"patterns": ["ignore all"]}}, False),
        (404, {}, True),
        (400, {}, False),
        (400, {"message": "x/y is not a valid model ID"}, True),
        (400, {"message": "The model `x` does not exist"}, True),
        (400, {"availability": {"code": "model_not_found"}}, True),
        (413, {}, False),
        (429, {}, True),
        (503, {}, True),
    ],
)
def test_what_a_minute_cannot_change_is_told_from_what_this_question_was_refused_for(status, more, unreachable):
    assert refused(status, **more).unreachable is unreachable


@pytest.mark.parametrize(
    ("message", "metadata", "follows"),
    [
        ("You requested up to 64000 tokens, but can only afford 304.", {}, MODEL),
        ("more credits, or ... can only afford 304", {"limit_source": "openrouter_credits"}, MODEL),
        ("Prompt tokens limit exceeded: 10335 > 6390", {}, MODEL),
        ("Over", {"reason": "weight_exceeds_budget"}, MODEL),
        ("Insufficient credits.", {}, PAID),
        ("Over", {}, PAID),
        ("can only afford 304", {"limit_source": "openrouter_key_limit"}, PAID),
        ("Key limit exceeded, can only afford 304", {}, PAID),
    ],
)
def test_what_one_model_is_too_dear_for_is_told_from_what_all_are(message, metadata, follows):
    assert refused(402, message=message, metadata=metadata).follows == follows


def test_another_model_may_give_whole_what_one_cut_off():
    found = said(message={"content": "{"}, finish_reason="length")
    assert isinstance(found, Refusal)
    assert (found.follows, found.mend, found.unreachable) == (MODEL, MORE, False)


# --------------------------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hello", "hello"),
        (" {} ", " {} "),
        ([{"type": "text", "text": "a"}, {"type": "reasoning"}, "b", None, {"text": 7}, {"text": "c"}], "ac"),
    ],
)
def test_the_text_of_an_answer_is_whole(content, text):
    for reason in ("stop", None, "end_turn", "tool_calls", 7, []):
        assert said(message={"content": content}, finish_reason=reason) == text


@pytest.mark.parametrize("content", [None, "", " \n", [], {}, 7, [{}], [{"text": None}], [["text"]]])
@pytest.mark.parametrize("message", [{"role": "assistant"}, {"refusal": None}])
def test_an_answer_without_a_text_is_empty(content, message):
    found = said(message={**message, "content": content}, finish_reason="stop")
    assert isinstance(found, Refusal)
    assert (found.follows, found.unreachable) == (EMPTY, False)


@pytest.mark.parametrize("tokens", [0, None, "x", -3, True, [], float("nan")])
def test_an_empty_answer_that_took_no_tokens_is_asked_for_once_more(tokens):
    body = {"choices": [{"message": {"content": None}}], "usage": {"completion_tokens": tokens}}
    found = read(200, {}, json.dumps(body).encode(), NOW)
    assert isinstance(found, Refusal) and found.follows == EMPTY


# --------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"message": "Busy"}, "HTTP 400: Busy"),
        ({"message": "Provider returned error"}, "HTTP 400: Provider returned error"),
        (
            {
                "message": "Provider returned error",
                "metadata": {"raw": '{"error":{"message":"Odd"}}', "provider_name": "A"},
            },
            "HTTP 400: A: Odd",
        ),
        ({"message": "Provider returned error", "metadata": {"raw": '{"message":"Odd"}'}}, "HTTP 400: provider: Odd"),
        ({"message": "Provider returned error", "metadata": {"raw": "plain words"}}, "HTTP 400: provider: plain words"),
        ({"message": "", "metadata": {"raw": "[1]"}}, "HTTP 400: provider: [1]"),
        ({"message": "Its own words", "metadata": {"raw": "more"}}, "HTTP 400: Its own words"),
        ("a word", "HTTP 400: a word"),
        ({"detail": "Not so"}, "HTTP 400: Not so"),
        ({"type": "x", "message": None}, 'HTTP 400: {"type": "x", "message": null}'),
        (7, 'HTTP 400: {"message": 7}'),
    ],
)
def test_the_cause_is_told_in_the_words_of_whoever_knows_it(error, told):
    assert refused(400, error).message == told


def test_errors_in_the_ways_of_other_servers_are_read():
    for body in (
        {"detail": "Not so"},
        {"message": "Not so", "code": 400},
        [{"error": {"message": "Not so", "code": 400}}],
    ):
        found = read(400, {}, json.dumps(body).encode(), NOW)
        assert isinstance(found, Refusal) and found.message == "HTTP 400: Not so"


def test_words_are_masked_short_and_harmless_to_a_terminal(fresh_mask):
    log.know_value(SECRET)
    text = f"{SECRET} {KEY} \x1b[31m\n\n" + "long " * 100
    raw = json.dumps({"error": {"message": text}})
    for found in (
        refused(400, message=text),
        refused(400, message="", metadata={"raw": raw, "provider_name": text}),
        read(502, {}, f"<html><title>{text}</title>".encode(), NOW),
        read(502, {}, text.encode(), NOW),
        read(418, {}, json.dumps({"odd": text}).encode(), NOW),
    ):
        assert isinstance(found, Refusal)
        assert SECRET not in found.message and KEY not in found.message and "\x1b" not in found.message
        assert "***" in found.message and "\n" not in found.message and len(found.message) < 520


@pytest.mark.parametrize("status", [401, 402, 403, 404, 301, 307])
def test_a_person_who_can_do_something_is_told_what(status):
    message = refused(status).message
    assert any(word in message for word in ("openrouter.", "https://openrouter.ai/"))


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    1e300,
    "",
    "x",
    "9" * 5000,
    [],
    [None],
    [{}],
    {},
    {"a": {"b": []}},
    {"message": []},
]
FIELDS = ("code", "message", "metadata", "availability", "error_type", "http_status", "detail")
METADATA = ("error_type", "raw", "provider_name", "limit_source", "reason", "resets_at", "headers", "reasons")
AVAILABILITY = ("code", "retryable", "retry_after")


@pytest.mark.parametrize("junk", JUNK, ids=[json.dumps(junk)[:20] for junk in JUNK])
def test_whatever_stands_in_a_field_something_follows(junk):
    errors: list[Any] = [junk, *({"message": "m", "code": 400, name: junk} for name in FIELDS)]
    errors += [{"message": "m", "metadata": {name: junk}} for name in METADATA]
    errors += [{"message": "m", "metadata": {"limit_source": "openrouter_key_limit", "resets_at": junk}}]
    errors += [{"message": "m", "metadata": {"headers": {name: junk}}} for name in ("Retry-After", "X-RateLimit-Reset")]
    errors += [{"message": "m", "availability": {"retryable": True, name: junk}} for name in AVAILABILITY]
    bodies = [{"error": error} for error in errors] + [junk, {"choices": junk}, {"choices": [junk]}]
    bodies += [{"choices": [{"message": junk}]}, {"choices": [{"finish_reason": junk}]}, {"choices": [], "usage": junk}]
    bodies += [{"choices": [{"error": error}]} for error in errors]
    for body in bodies:
        for status in (100, 200, 204, 302, 400, 402, 404, 429, 500, 999):
            assert isinstance(read(status, {}, json.dumps(body).encode(), NOW), Refusal)
