"""The chat completions protocol: what is sent, and what every error body leads to, over a loopback server."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
import responses

import catalog
import openrouter
import proc
import wire
from extras.openrouter_api import OpenRouterAPI, row
from mission import Settings, load_settings
from openrouter import Bill, NoAnswer, Reply, Shape, Unreachable, strict

KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
URL = "http://router.invalid/api/v1"
GOOD = '{"focus": "c1"}'
MESSAGES = [{"role": "system", "content": "Who you are."}, {"role": "user", "content": "What is asked."}]
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["focus"],
    "properties": {"focus": {"type": "string", "minLength": 1}, "why": {"type": ["string", "null"], "maxLength": 9}},
}
SHAPE = Shape("plan", SCHEMA)
STRICT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["focus", "why"],
    "properties": {"focus": {"type": "string"}, "why": {"type": ["string", "null"]}},
}
FIRST, SECOND, THIRD = "a/first", "b/second", "c/third"
ALONE, CHAIN = (FIRST,), (FIRST, SECOND, THIRD)
GRATIS = "z-ai/glm-5.2:free"


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The waits that were asked for; nobody really waits."""
    asked: list[float] = []
    monkeypatch.setattr(proc, "pause", lambda seconds: asked.append(seconds) is None)
    return asked


def settings(url: str = URL, **environ: str) -> Settings:
    """The kit's real settings, from an environment."""
    return load_settings(None, None, {"OPENROUTER_API_KEY": KEY, "CCO_OPENROUTER_BASE_URL": url, **environ})


def completion(content: Any = GOOD, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """The body of a success."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": "stop", "message": message, **choice}]
    return {"id": "gen-9", "object": "chat.completion", "model": "m/n", "choices": choices, "usage": usage}


def failed(code: Any, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **more}, "user_id": "user_test"}


def refusal(code: int, message: str, headers: dict[str, str] | None = None, **metadata: Any) -> dict[str, Any]:
    """A step of the server that refuses as OpenRouter does."""
    return {"status": code, "headers": headers or {}, "body": failed(code, message, metadata=metadata)}


def upstream(code: int, said: str, **metadata: Any) -> dict[str, Any]:
    raw = json.dumps({"error": {"message": said}})
    return refusal(code, "Provider returned error", raw=raw, provider_name="Acme", **metadata)


def asked(url: str, *models: str, bill: Bill | None = None, seconds: float = 100.0, **environ: str) -> Reply:
    end = time.monotonic() + seconds
    return openrouter.complete(
        MESSAGES, SHAPE, models or ALONE, settings(url, **environ), Bill() if bill is None else bill, end
    )


def bodies(api: OpenRouterAPI) -> list[dict[str, Any]]:
    return [call["body"] for call in api.calls]


# --------------------------------------------------------------------------------------------------------
# The request
# --------------------------------------------------------------------------------------------------------


def sent(model: str, rows: list[dict[str, Any]] | None = None, session: str = "", **environ: str) -> dict[str, Any]:
    """The body of the one request that a model takes at a server with this list."""
    with OpenRouterAPI(content=lambda request: GOOD, models=rows) as api:
        openrouter.complete(
            MESSAGES, SHAPE, [model], settings(api.url, **environ), Bill(), time.monotonic() + 50, session
        )
    (body,) = bodies(api)
    return body


def test_the_request_holds_what_the_protocol_wants_and_nothing_else():
    form = {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": STRICT}}
    assert sent("a/model", [], CCO_OPENROUTER_TEMPERATURE="0.3") == {
        "model": "a/model",
        "temperature": 0.3,
        "max_tokens": 4096,
        "response_format": form,
        "messages": MESSAGES,
    }


def test_what_a_model_takes_by_the_list_is_sent_and_required():
    body = sent("openai/gpt-6-luna", session="s" * 300)
    assert body["reasoning"] == {"effort": "low", "exclude": True}
    assert body["provider"] == {"require_parameters": True}
    assert body["session_id"] == "s" * 256
    assert "temperature" not in body
    assert body["messages"] == MESSAGES


def test_a_model_of_which_the_list_says_nothing_is_required_nothing():
    body = sent("new/one", session="s1")
    assert "reasoning" not in body and "provider" not in body
    assert (body["temperature"], body["session_id"]) == (0.5, "s1")


def test_a_server_of_ones_own_gets_no_session():
    bare = {"id": "llama", "object": "model", "owned_by": "me"}
    assert "session_id" not in sent("a/model", [bare], session="s1")
    assert "session_id" not in sent("a/model", [], session="s1")


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-5.5", "~anthropic/claude-haiku-latest"])
def test_the_stable_message_is_marked_where_a_provider_caches_only_what_is_marked(model):
    first, second = sent(model)["messages"]
    part = {"type": "text", "text": "Who you are.", "cache_control": {"type": "ephemeral"}}
    assert (first, second) == ({"role": "system", "content": [part]}, MESSAGES[1])


@pytest.mark.parametrize(
    ("parameters", "form"),
    [
        (("response_format", "structured_outputs"), "json_schema"),
        (("response_format",), "json_object"),
        ((), "plain"),
    ],
)
def test_the_list_says_in_which_form_an_answer_is_asked_for(parameters, form):
    body = sent("a/model", [row("a/model", "0.1", "0.1", *parameters)])
    assert body.get("response_format", {}).get("type", "plain") == form
    told = body["messages"][0]["content"]
    assert told.startswith("Who you are.")
    if form == "json_schema":
        assert told == "Who you are."
    else:
        described = {name: value for name, value in SCHEMA.items() if name != "$schema"}
        assert json.dumps(described, separators=(",", ":")) in told and "one JSON object" in told
    assert body["messages"][1] == MESSAGES[1]


@pytest.mark.parametrize("name", ["plan", "judge"])
def test_the_schemas_of_the_kit_are_strict_for_providers(name):
    schema = json.loads((Path(openrouter.__file__).parent / "schema" / f"{name}.json").read_text("utf-8"))
    with OpenRouterAPI(content=lambda request: GOOD, models=[]) as api:
        end = time.monotonic() + 50
        openrouter.complete(MESSAGES, Shape(name, schema), ALONE, settings(api.url), Bill(), end)
    assert len(api.calls) == 1


def test_a_strict_schema_keeps_what_providers_take_at_every_depth():
    inner = {"type": "object", "properties": {"x": {"enum": ["a", "b"], "description": "One."}}, "minProperties": 1}
    found = strict({"type": "array", "maxItems": 3, "items": {"anyOf": [inner, {"type": "null"}]}, "title": "List"})
    kept = {"type": "object", "additionalProperties": False, "required": ["x"]}
    kept["properties"] = {"x": {"enum": ["a", "b"], "description": "One.", "type": "string"}}
    assert found == {"type": "array", "items": {"anyOf": [kept, {"type": "null"}]}}
    assert inner["minProperties"] == 1


def sent_header(config: Settings) -> requests.PreparedRequest:
    with responses.RequestsMock() as network:
        network.post(f"{config.openrouter.base_url.rstrip('/')}/chat/completions", json=completion())
        openrouter.complete(MESSAGES, SHAPE, ALONE, config, Bill(), time.monotonic() + 50)
        return network.calls[-1].request


@pytest.mark.parametrize("url", [URL, f"{URL}/"])
def test_the_key_is_sent_as_a_bearer_and_stands_nowhere_else(url):
    request = sent_header(settings(url))
    assert request.url == f"{URL}/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    others = {name: value for name, value in request.headers.items() if name != "Authorization"}
    assert KEY not in f"{request.url} {others} {request.body!r}"
    assert request.headers["Accept-Encoding"] == "identity"  # what is packed hides the padding
    assert not {"http-referer", "x-title", "x-openrouter-title"} & {name.lower() for name in others}


def test_a_netrc_file_does_not_replace_the_key(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login anonymous password guest\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert sent_header(settings()).headers["Authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_is_asked_without_a_key():
    config = load_settings(None, None, {"CCO_MANAGER_PROVIDER": "openrouter", "CCO_OPENROUTER_BASE_URL": URL})
    assert "Authorization" not in sent_header(config).headers


# --------------------------------------------------------------------------------------------------------
# Good answers
# --------------------------------------------------------------------------------------------------------

ONE_CALL: dict[str, Any] = {
    "padding": {"body": completion(), "drip": [2000, 0]},
    "parts": {"body": completion([{"type": "text", "text": GOOD[:5]}, {"type": "text", "text": GOOD[5:]}])},
    "parts with reasoning": {"body": completion([{"type": "reasoning", "id": 1}, {"type": "text", "text": GOOD}])},
    "no finish_reason": {"body": completion(finish_reason=None)},
    "a new finish_reason": {"body": completion(finish_reason=["end_turn"])},
    "new fields": {"body": {**completion(new={}), "openrouter_metadata": {"x": 1}, "error": None}},
    "another content type": {"body": completion(), "headers": {"Content-Type": "text/plain"}},
}


@pytest.mark.parametrize("step", ONE_CALL.values(), ids=ONE_CALL.keys())
def test_a_good_answer_takes_one_request(step, waits):
    bill = Bill()
    with OpenRouterAPI([step]) as api:
        assert asked(api.url, bill=bill) == Reply(GOOD, "m/n")
    assert (len(api.calls), bill.calls, waits) == (1, 1, [])


def test_an_answer_without_a_model_is_said_by_the_one_that_was_asked():
    with OpenRouterAPI([{"body": {"choices": completion()["choices"]}}]) as api:
        assert asked(api.url).model == FIRST


@pytest.mark.parametrize(
    ("usage", "cost", "tokens", "unknown"),
    [
        ({"cost": 0.5, "prompt_tokens": 10, "completion_tokens": 2}, 0.5, (10, 2, 0), 0),
        ({"cost": "0.5", "prompt_tokens": "10", "completion_tokens": "2"}, 0.5, (10, 2, 0), 0),
        ({"cost": 0, "prompt_tokens": 10, "completion_tokens": 2}, 0.0, (10, 2, 0), 0),
        (
            {
                "cost": 1,
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 8},
            },
            1.0,
            (2, 2, 8),
            0,
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
            0.0,
            (0, 2, 5),
            1,
        ),
        ({"cost": "x", "prompt_tokens": "many", "completion_tokens": 2}, 0.0, (0, 2, 0), 1),
        ({"cost": None, "prompt_tokens": None, "completion_tokens": None}, 0.0, (0, 0, 0), 1),
        ({"cost": -1, "prompt_tokens": -5, "completion_tokens": 1.9}, 0.0, (0, 1, 0), 1),
        ({"cost": True, "prompt_tokens": True, "completion_tokens": 1}, 0.0, (0, 1, 0), 1),
        ({"cost": float("nan"), "prompt_tokens": float("inf"), "completion_tokens": 1e300}, 0.0, (0, 0, 0), 1),
        ({"cost": 10**400, "prompt_tokens": [], "completion_tokens": {}}, 0.0, (0, 0, 0), 1),
        ({"prompt_tokens_details": [8]}, 0.0, (0, 0, 0), 1),
        (None, 0.0, (0, 0, 0), 1),
        ("none", 0.0, (0, 0, 0), 1),
        ([1, 2], 0.0, (0, 0, 0), 1),
    ],
)
def test_what_an_answer_cost_is_a_number_or_unknown_whatever_it_says(usage, cost, tokens, unknown):
    bill = Bill()
    with OpenRouterAPI([{"body": completion(GOOD, usage)}]) as api:
        asked(api.url, bill=bill)
    assert (bill.cost_usd, tuple(bill.tokens.values()), bill.unknown) == (cost, tokens, unknown)


@pytest.mark.parametrize(
    ("model", "is_byok", "upstream", "cost", "unknown"),
    [
        ("new/one", True, 0.4, 0.42, 0),
        ("new/one", True, "0.4", 0.42, 0),
        ("new/one", False, 0.4, 0.02, 0),
        ("new/one", "yes", 0.4, 0.02, 0),
        ("new/one", True, None, 0.0, 1),
        ("anthropic/claude-sonnet-5.5", True, None, 0.003, 0),
        ("anthropic/claude-sonnet-5.5", True, -1, 0.003, 0),
    ],
)
def test_with_a_providers_key_of_ones_own_what_the_provider_takes_is_paid_too(model, is_byok, upstream, cost, unknown):
    usage = {"cost": 0.02, "is_byok": is_byok, "prompt_tokens": 1000, "completion_tokens": 100}
    usage["cost_details"] = {"upstream_inference_cost": upstream}
    bill = Bill()
    with OpenRouterAPI([{"body": {**completion(GOOD, usage), "model": model}}]) as api:
        asked(api.url, model, bill=bill)
    assert (bill.cost_usd, bill.unknown) == (pytest.approx(cost), unknown)


@pytest.mark.parametrize("details", [None, [], "x", {}])
def test_details_of_a_cost_that_are_none_tell_nothing(details):
    usage = {"cost": 0.02, "is_byok": True, "cost_details": details, "completion_tokens": 1}
    bill = Bill()
    with OpenRouterAPI([{"body": completion(GOOD, usage)}]) as api:
        asked(api.url, bill=bill)
    assert (bill.cost_usd, bill.unknown) == (0.0, 1)


@pytest.mark.parametrize(
    ("model", "cost", "unknown"),
    [("anthropic/claude-sonnet-5.5", 0.003, 0), (GRATIS, 0.0, 0), ("openrouter/auto", 0.0, 1), ("new/one", 0.0, 1)],
)
def test_what_an_answer_does_not_say_costs_what_the_list_says(model, cost, unknown):
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    bill = Bill()
    with OpenRouterAPI([{"body": {**completion(GOOD, usage), "model": model}}]) as api:
        asked(api.url, model, bill=bill)
    assert (bill.cost_usd, bill.unknown) == (pytest.approx(cost), unknown)


def test_a_free_model_is_free_whatever_it_is_called_in_the_answer():
    bill, rows = Bill(), [row(GRATIS, "0", "0"), row("z-ai/glm-5.2", "0.1", "0.1")]
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    with OpenRouterAPI([{"body": {**completion(GOOD, usage), "model": "z-ai/glm-5.2"}}], models=rows) as api:
        asked(api.url, GRATIS, bill=bill)
    assert (bill.cost_usd, bill.unknown) == (0.0, 0)


def test_an_empty_answer_without_a_price_is_not_charged():
    bill, dear = Bill(), [row(FIRST, "0.1", "0.1")]
    with OpenRouterAPI([{"body": {**completion(None), **NOTHING_LEFT}}], lambda request: GOOD, models=dear) as api:
        asked(api.url, bill=bill)
    assert (bill.cost_usd, bill.unknown, bill.tokens["input"]) == (0.01, 0, 14903 + 1000)


def test_a_bill_grows_with_all_that_was_asked():
    bill, usage = Bill(), {"cost": 0.25, "prompt_tokens": 900, "completion_tokens": 4096}
    cut = {"body": completion(GOOD[:5], usage, finish_reason="length")}
    with OpenRouterAPI([refusal(502, "down"), cut, cut]) as api, pytest.raises(NoAnswer) as caught:
        asked(api.url, bill=bill)
    assert bill == Bill(0.5, {"input": 1800, "output": 8192, "cache_read": 0}, calls=3)
    assert caught.value.bill is bill


@pytest.mark.parametrize(
    ("step", "unknown"),
    [
        ({"body": completion(), "close_early": 80}, 1),
        ({"raw": json.dumps(completion())[:60]}, 1),
        ({"raw": " \n" * 50}, 1),
        ({"body": completion("{", finish_reason="length")}, 1),
        (refusal(502, "down"), 0),
        ({"status": 502, "raw": "<html><h1>502 Bad Gateway</h1></html>"}, 0),
        ({"body": failed(502, "Upstream error")}, 0),
    ],
    ids=["closed early", "truncated", "whitespace", "length", "refused", "HTML", "200 with an error"],
)
def test_what_was_sent_and_brought_no_whole_answer_may_have_cost_something(step, unknown):
    for model, times in ((FIRST, 1), (GRATIS, 0)):
        bill = Bill()
        with OpenRouterAPI([step], content=lambda request: GOOD, models=[]) as api:
            asked(api.url, model, bill=bill)
        assert (bill.calls, bill.unknown, bill.cost_usd) == (2, unknown * times, 0.01)


def test_what_was_refused_costs_nothing():
    bill = Bill()
    with OpenRouterAPI([refusal(402, "Insufficient credits.")]) as api, pytest.raises(NoAnswer):
        asked(api.url, bill=bill)
    assert bill == Bill(calls=1)


# --------------------------------------------------------------------------------------------------------
# Every error body
# --------------------------------------------------------------------------------------------------------

TOO_LONG = (
    "This endpoint's maximum context length is 131072 tokens. However, you requested about {} tokens ({} of text input,"
    " {} in the output). Please reduce the length of either one..."
)
BIG = {"CCO_OPENROUTER_MAX_TOKENS": "64000"}
NOT_VALID = "a/first is not a valid model ID"
NO_MODEL = {"code": "model_not_found", "retryable": False, "requested_models": [FIRST]}
CAPACITY = {"code": "capacity_exhausted", "retryable": True, "retry_after": 40, "fallback_models": ["x/y"]}
CREDITS = (
    "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford"
)
SHARED = {"limit_source": "upstream_provider_shared_pool", "retry_after_seconds": 11, "retry_after_seconds_raw": 10.9}
PER_DAY = "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day"
IN_FLIGHT = "This request would exceed your available credits given your current in-flight requests. Retry after ..."
NO_SCHEMA = "Invalid schema for response_format 'plan': In context=(), 'additionalProperties' is required ..."
DISCONNECTED = {"code": 502, "message": "gone mid-stream", "metadata": {"error_type": "provider_unavailable"}}
ALL_NULL = dict.fromkeys(("id", "choices", "created", "model", "object", "usage"))
HTML = {"headers": {"Content-Type": "text/html"}, "raw": "<html><h1>502 Bad Gateway</h1></html>"}
NOTHING_LEFT = {"usage": {"prompt_tokens": 14903, "completion_tokens": 0, "total_tokens": 14903}}

OK = {"content": GOOD}
# name: the server's steps (what follows is good), the models, who answers or what is raised, the models that were
# asked, one by one, and what the message says.
Case = tuple[list[Any], tuple[str, ...], Any, str, str]
ONCE, TWICE, PASSED_ON = "1", "1 1", "1 2"
CASES: dict[str, Case] = {
    "400 unknown model, alone": (
        [{"status": 400, "body": failed(400, NOT_VALID, error_type="invalid_request", availability=NO_MODEL)}],
        ALONE,
        Unreachable,
        ONCE,
        "not a valid model ID (choose another model in openrouter.model)",
    ),
    "400 unknown model, the bare form": ([refusal(400, NOT_VALID)], CHAIN, SECOND, PASSED_ON, ""),
    "500 unknown model, as it was told before": (
        [{"status": 500, "body": failed(500, NOT_VALID, error_type="invalid_request", availability=NO_MODEL)}],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "400 too many models": (
        [refusal(400, "'models' array must have 3 items or fewer.")],
        ALONE,
        NoAnswer,
        ONCE,
        "3 items",
    ),
    "400 reasoning is mandatory, and none was sent": (
        [refusal(400, "Reasoning is mandatory for this endpoint and cannot be disabled.")],
        ALONE,
        NoAnswer,
        ONCE,
        "mandatory",
    ),
    "400 the question is too long": (
        [refusal(400, TOO_LONG.format(150000, 150000, 4096), error_type="context_length_exceeded")],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "400 the question is too long, alone": (
        [refusal(400, TOO_LONG.format(150000, 150000, 4096), error_type="context_length_exceeded")],
        ALONE,
        NoAnswer,
        ONCE,
        "maximum context length",
    ),
    "400 the question is too long, without numbers": (
        [refusal(400, "Too much", error_type="context_length_exceeded")],
        ALONE,
        NoAnswer,
        ONCE,
        "openrouter.max_prompt",
    ),
    "400 something else": ([upstream(400, "It is odd.")], ALONE, NoAnswer, ONCE, "HTTP 400: Acme: It is odd."),
    "400 upstream, passed on": ([upstream(400, "It is odd.")], CHAIN, SECOND, PASSED_ON, ""),
    "401": ([refusal(401, "User not found.")], CHAIN, Unreachable, ONCE, "OPENROUTER_API_KEY"),
    "401 no header": ([refusal(401, "Missing Authentication header")], ALONE, Unreachable, ONCE, "HTTP 401"),
    "401 no credentials": ([refusal(401, "No cookie auth credentials found")], ALONE, Unreachable, ONCE, "HTTP 401"),
    "402 no credits": (
        [refusal(402, "Insufficient credits. Add more using https://openrouter.ai/settings/credits")],
        CHAIN,
        Unreachable,
        ONCE,
        "Add more using",
    ),
    "402 no credits, and a free model": ([refusal(402, "Insufficient credits.")], (FIRST, GRATIS), GRATIS, "1 2", ""),
    "402 affords too little": (
        [refusal(402, f"{CREDITS} 304.", limit_source="openrouter_credits")],
        ALONE,
        Unreachable,
        ONCE,
        "can only afford 304",
    ),
    "402 affords too little, passed on": ([refusal(402, f"{CREDITS} 304.")], CHAIN, SECOND, PASSED_ON, ""),
    "402 affords less and less": (
        [refusal(402, f"{CREDITS} 3000."), refusal(402, f"{CREDITS} 2000.")],
        CHAIN,
        SECOND,
        "1 1 2",
        "",
    ),
    "402 the prompt is too dear, passed on": (
        [refusal(402, "Prompt tokens limit exceeded: 10335 > 6390")],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "402 weight, passed on": ([refusal(402, "Over", reason="weight_exceeds_budget")], CHAIN, SECOND, PASSED_ON, ""),
    "402 the prompt is too dear": (
        [refusal(402, "Prompt tokens limit exceeded: 10335 > 6390")],
        ALONE,
        Unreachable,
        ONCE,
        "add credits at",
    ),
    "402 weight": ([refusal(402, "Over", reason="weight_exceeds_budget")], ALONE, Unreachable, ONCE, "HTTP 402: Over"),
    "402 in flight": (
        [refusal(402, IN_FLIGHT, {"Retry-After": "5"}, limit_source="openrouter_in_flight_budget")],
        ALONE,
        FIRST,
        TWICE,
        "",
    ),
    "402 with a header alone": ([refusal(402, "Soon", {"Retry-After": "5"})], ALONE, FIRST, TWICE, ""),
    "403 key limit": (
        [refusal(403, "Key limit exceeded (monthly limit).", limit_source="openrouter_key_limit")],
        CHAIN,
        Unreachable,
        ONCE,
        "raise the limit",
    ),
    "402 key limit": (
        [refusal(402, "Key limit exceeded (monthly limit).", limit_source="openrouter_key_limit")],
        CHAIN,
        Unreachable,
        ONCE,
        "Key limit exceeded",
    ),
    "403 workspace budget": (
        [refusal(403, "Over", limit_source="openrouter_workspace_budget")],
        CHAIN,
        Unreachable,
        ONCE,
        "Over",
    ),
    "403 moderation": (
        [refusal(403, "Input was flagged by moderation", reasons=["violence"], flagged_input="first ... last")],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "403 guardrail": (
        [refusal(403, "Request blocked: prompt injection patterns detected", patterns=["ignore all"])],
        ALONE,
        NoAnswer,
        ONCE,
        "patterns detected",
    ),
    "403 gated": (
        [refusal(403, f"{GRATIS} is only available on agentic harnesses...")],
        (GRATIS, SECOND),
        SECOND,
        PASSED_ON,
        "",
    ),
    "404 no endpoints": ([refusal(404, "No endpoints found for a/first.")], CHAIN, SECOND, PASSED_ON, ""),
    "404 no endpoints, anywhere": (
        [refusal(404, f"No endpoints found for {name}.") for name in CHAIN],
        CHAIN,
        Unreachable,
        "1 2 3",
        "c/third: HTTP 404: No endpoints found for c/third.",
    ),
    "404 privacy": (
        [
            refusal(
                404, "No endpoints available matching your guardrail restrictions and data policy. Configure: https://x"
            )
        ],
        ALONE,
        Unreachable,
        ONCE,
        "Configure: https://x",
    ),
    "404 providers": (
        [refusal(404, "No allowed providers are available for the selected model.")],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "404 max price": (
        [refusal(404, "No endpoints found that satisfy the max price for this request")],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "404 the free period has ended": (
        [
            refusal(
                404, "The free X period has ended. To continue using this model, please migrate to the paid slug: a/b"
            )
        ],
        (GRATIS,),
        Unreachable,
        ONCE,
        "migrate to the paid slug",
    ),
    "404 router": ([refusal(404, "No models match your request and model restrictions")], CHAIN, SECOND, PASSED_ON, ""),
    "404 that may pass": (
        [{"status": 404, "body": failed(404, "No endpoints", availability={"retryable": True})}],
        ALONE,
        FIRST,
        TWICE,
        "",
    ),
    "413": ([refusal(413, "Request payload too large")], ALONE, NoAnswer, ONCE, "payload too large"),
    "422": ([refusal(422, "Invalid argument")], ALONE, NoAnswer, ONCE, "Invalid argument"),
    "418 of a server of one's own": (
        [{"status": 418, "body": {"detail": "a teapot"}}],
        ALONE,
        NoAnswer,
        ONCE,
        "a teapot",
    ),
    "429 per minute": (
        [refusal(429, "Rate limit exceeded: free-models-per-min. ", {"X-RateLimit-Remaining": "0"})],
        (GRATIS,),
        GRATIS,
        TWICE,
        "",
    ),
    "429 per day": (
        [refusal(429, PER_DAY, limit_source="openrouter_free_tier_daily")],
        (GRATIS,),
        Unreachable,
        ONCE,
        "openrouter.fallbacks",
    ),
    "429 per day, passed over": ([refusal(429, PER_DAY)], (GRATIS, "openrouter/free", THIRD), THIRD, "1 3", ""),
    "429 upstream": ([upstream(429, "is temporarily rate-limited upstream", **SHARED)], ALONE, FIRST, TWICE, ""),
    "429 capacity": (
        [{"status": 429, "headers": {"Retry-After": "40"}, "body": failed(429, "Full", availability=CAPACITY)}],
        ALONE,
        FIRST,
        TWICE,
        "",
    ),
    "429 for ever": ([refusal(429, "Slow down")] * 4, ALONE, Unreachable, "1 1 1 1", "HTTP 429: Slow down"),
    "503 for ever, free": ([refusal(503, "Busy")] * 3, (GRATIS,), Unreachable, "1 1 1", "Busy"),
    "503 for ever, passed on": ([refusal(503, "Busy")] * 4, CHAIN, SECOND, "1 1 1 1 2", ""),
    "503 for ever, everywhere": ([refusal(503, "Busy")] * 6, CHAIN, Unreachable, "1 1 1 1 2 3", "b/second: HTTP 503"),
    "HTML": ([{"status": 502, **HTML}], ALONE, FIRST, TWICE, ""),
    "HTML for ever": (
        [{"status": 524, **HTML}] * 4,
        ALONE,
        Unreachable,
        "1 1 1 1",
        "HTTP 524: a web page: '502 Bad Gateway'",
    ),
    "HTML with 200": ([HTML] * 4, ALONE, Unreachable, "1 1 1 1", "openrouter.base_url"),
    "HTML with 404": ([{"status": 404, **HTML}], CHAIN, Unreachable, ONCE, "openrouter.base_url"),
    "a redirect": ([{"status": 307, "headers": {"Location": "/x"}, "raw": ""}], CHAIN, Unreachable, ONCE, "base_url"),
    "whitespace only": ([{"raw": " \n" * 50}], ALONE, FIRST, TWICE, ""),
    "nothing": ([{"raw": ""}, {"raw": "[]"}, {"raw": "null"}], ALONE, FIRST, "1 1 1 1", ""),
    "deep JSON": ([{"raw": "[" * 100_000}], ALONE, FIRST, TWICE, ""),
    "truncated JSON": ([{"raw": json.dumps(completion())[:60]}], ALONE, FIRST, TWICE, ""),
    "a stream": ([{"headers": {"Content-Type": "text/event-stream"}, "raw": "data: {}\n\n"}], ALONE, FIRST, TWICE, ""),
    "closed early": ([{"body": completion(), "close_early": 80}], ALONE, FIRST, TWICE, ""),
    "closed before the body": ([{"body": completion(), "close_early": 0}], ALONE, FIRST, TWICE, ""),
    "a plan in a refusal": ([{"status": 500, "body": completion()}] * 4, ALONE, Unreachable, "1 1 1 1", "HTTP 500"),
    "200 with an error": ([{"body": {"id": "gen-9", **failed(502, "Upstream error")}}], ALONE, FIRST, TWICE, ""),
    "200 with a 401": ([{"body": failed(401, "User not found.")}], CHAIN, Unreachable, ONCE, "HTTP 401"),
    "200 with a 429 per day": ([{"body": failed(429, PER_DAY)}], (GRATIS, THIRD), THIRD, PASSED_ON, ""),
    "200 with digits": ([{"body": failed("401", "User not found.")}], CHAIN, Unreachable, ONCE, "HTTP 401"),
    "200 with a word for a code": ([{"body": failed("server_error", "Oh")}], ALONE, FIRST, TWICE, ""),
    "200 with a word for an error": ([{"body": {"error": "server_error"}}], ALONE, FIRST, TWICE, ""),
    "finish_reason error": (
        [{"body": completion("partial", finish_reason="error", error=DISCONNECTED)}],
        ALONE,
        FIRST,
        TWICE,
        "",
    ),
    "finish_reason error alone": ([{"body": completion("partial", finish_reason="error")}], ALONE, FIRST, TWICE, ""),
    "finish_reason error that lasts": (
        [{"body": completion("", finish_reason="error", error={"code": 400, "message": "Odd"})}],
        ALONE,
        NoAnswer,
        ONCE,
        "HTTP 400: Odd",
    ),
    "all null": ([{"body": ALL_NULL}], ALONE, FIRST, TWICE, ""),
    "all null twice": ([{"body": ALL_NULL}] * 2, CHAIN, SECOND, "1 1 2", ""),
    "all null twice, alone": ([{"body": ALL_NULL}] * 2, ALONE, NoAnswer, TWICE, "empty"),
    "no choices": ([{"body": {**completion(), "choices": []}}], ALONE, FIRST, TWICE, ""),
    "choices that are none": ([{"body": {**completion(), "choices": "x"}}], ALONE, FIRST, TWICE, ""),
    "a message that is none": ([{"body": completion(message="hello")}], ALONE, FIRST, TWICE, ""),
    "no content, no tokens": ([{"body": {**completion(None), **NOTHING_LEFT}}], ALONE, FIRST, TWICE, ""),
    "no content, but tokens": (
        [{"body": completion("", {"prompt_tokens": 1, "completion_tokens": 500})}],
        ALONE,
        NoAnswer,
        ONCE,
        "although it took 500 tokens",
    ),
    "length": ([{"body": completion("{", finish_reason="length")}], ALONE, FIRST, TWICE, ""),
    "length twice": (
        [{"body": completion("{", {"completion_tokens": 500}, finish_reason="length")}] * 2,
        ALONE,
        NoAnswer,
        TWICE,
        "cut off after 500 tokens (raise openrouter.max_tokens)",
    ),
    "length twice, passed on": (
        [{"body": completion("{", finish_reason="length")}] * 2,
        CHAIN,
        SECOND,
        "1 1 2",
        "",
    ),
    "no content, but tokens, and another model": (
        [{"body": completion("", {"prompt_tokens": 1, "completion_tokens": 500})}],
        CHAIN,
        SECOND,
        PASSED_ON,
        "",
    ),
    "content_filter": ([{"body": completion("", finish_reason="content_filter")}], CHAIN, SECOND, PASSED_ON, ""),
    "a refusal in words": (
        [{"body": completion(message={"role": "assistant", "content": None, "refusal": "I cannot."})}],
        ALONE,
        NoAnswer,
        ONCE,
        "refuses",
    ),
    **{
        f"{code} that passes": ([refusal(code, said)], ALONE, FIRST, TWICE, "")
        for code, said in (
            (408, "Operation timed out. Please try again later."),
            (500, "Internal Server Error"),
            (502, "Provider returned error"),
            (503, "Service temporarily unavailable"),
            (504, "Timeout"),
            (520, "Odd"),
            (524, "Request timed out. Please try again later."),
            (529, "Provider returned error"),
        )
    },
}


@pytest.mark.parametrize(("steps", "models", "outcome", "order", "says"), CASES.values(), ids=CASES.keys())
def test_every_error_body_leads_to_the_right_requests(steps, models, outcome, order, says, waits):
    bill = Bill()
    with OpenRouterAPI(steps, content=lambda request: GOOD, models=[]) as api:
        if isinstance(outcome, str):
            assert asked(api.url, *models, bill=bill).text == GOOD
        else:
            with pytest.raises(NoAnswer) as caught:
                asked(api.url, *models, bill=bill)
            assert type(caught.value) is outcome
            assert says in str(caught.value) and len(str(caught.value)) < 400 * len(models)
    numbers = " ".join(str(models.index(body["model"]) + 1) for body in bodies(api))
    assert numbers == order
    assert bill.calls == len(api.calls) <= 6
    assert all(0 <= wait <= 40 for wait in waits)


# --------------------------------------------------------------------------------------------------------
# What is mended
# --------------------------------------------------------------------------------------------------------


def mended(steps: list[dict[str, Any]], field: str, rows: Any = (), **environ: str) -> list[Any]:
    """What a field of the request was, one request after the other, until there was an answer."""
    with OpenRouterAPI(steps, content=lambda request: GOOD, models=[*rows]) as api:
        asked(api.url, **environ)
    return [body.get(field) for body in bodies(api)]


@pytest.mark.parametrize(
    "step",
    [
        upstream(400, NO_SCHEMA),
        refusal(400, "This model does not support response format `json_schema`."),
        refusal(400, "This response_format type is unavailable now"),
        refusal(404, "No endpoints found that can handle the requested parameters. To learn more ..."),
        refusal(404, "Nothing", failed_routing_step="Filter by Parameters"),
        {"status": 422, "body": {"detail": "structured_outputs: unknown"}},
    ],
)
def test_what_cannot_take_the_form_gets_the_next_one_and_it_is_remembered(step):
    with OpenRouterAPI([step, step], content=lambda request: GOOD, models=[]) as api:
        asked(api.url)
        asked(api.url)
    forms = [body.get("response_format", {}).get("type") for body in bodies(api)]
    assert forms == ["json_schema", "json_object", None, None]
    assert catalog.form(api.url, FIRST) == "plain"
    assert ["JSON Schema" in body["messages"][0]["content"] for body in bodies(api)] == [False, True, True, True]


def test_only_a_form_that_was_found_by_asking_is_remembered():
    with OpenRouterAPI(content=lambda request: GOOD, models=[]) as api:
        asked(api.url)
    assert catalog.form(api.url, FIRST) == ""


def test_a_form_that_did_not_help_is_not_remembered():
    step = upstream(400, NO_SCHEMA)
    with OpenRouterAPI([step] * 3, content=lambda request: GOOD, models=[]) as api, pytest.raises(NoAnswer):
        asked(api.url)
    assert len(api.calls) == 3
    assert catalog.form(api.url, FIRST) == ""


def test_required_parameters_that_no_provider_has_after_all_are_not_required_again():
    able = row(FIRST, "0.1", "0.1", "response_format", "structured_outputs")
    step = refusal(404, "No endpoints found that can handle the requested parameters.")
    assert mended([step], "provider", [able]) == [{"require_parameters": True}, None]


def test_reasoning_that_is_refused_is_left_out_once():
    step = refusal(400, "Reasoning is mandatory for this endpoint and cannot be disabled.")
    assert mended([step], "reasoning", [row(FIRST, "0.1", "0.1", "reasoning")]) == [openrouter.REASON, None]


def test_a_temperature_that_is_refused_is_left_out_once():
    step = upstream(400, "Unsupported value: 'temperature' does not support 0.5 with this model.")
    assert mended([step], "temperature") == [0.5, None]


def test_a_length_that_goes_by_its_newer_name_is_sent_by_that():
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    step = refusal(400, said)
    assert mended([step], "max_tokens") == [4096, None]
    assert mended([step], "max_completion_tokens") == [None, 4096]


@pytest.mark.parametrize(
    ("step", "environ", "tokens"),
    [
        (refusal(402, f"{CREDITS} 13044. Visit ...", limit_source="openrouter_credits"), BIG, [64000, 13044]),
        (
            refusal(400, TOO_LONG.format(138956, 7884, 131072), error_type="context_length_exceeded"),
            {"CCO_OPENROUTER_MAX_TOKENS": "131072"},
            [131072, 117028],
        ),
        ({"body": completion("{", finish_reason="length")}, {}, [4096, 8192]),
        ({"body": completion("{", finish_reason="max_tokens")}, {}, [4096, 8192]),
    ],
)
def test_the_length_of_an_answer_is_changed_once_where_that_helps(step, environ, tokens):
    assert mended([step], "max_tokens", **environ) == tokens


def test_more_tokens_than_the_model_has_are_not_asked_for():
    small = row(FIRST, "0.1", "0.1", top_provider={"max_completion_tokens": 5000})
    step = {"body": completion("{", finish_reason="length")}
    assert mended([step], "max_tokens", [small]) == [4096, 5000]
    with pytest.raises(NoAnswer, match="cut off"):
        mended([step], "max_tokens", [small], CCO_OPENROUTER_MAX_TOKENS="5000")
    assert mended([], "max_tokens", [small], CCO_OPENROUTER_MAX_TOKENS="64000") == [5000]


# --------------------------------------------------------------------------------------------------------
# Time
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "wait"),
    [
        (refusal(429, "Full", {"Retry-After": "7"}, retry_after_seconds=11), 7),
        ({"status": 429, "headers": {"Retry-After": "40"}, "body": failed(429, "Full", availability=CAPACITY)}, 40),
        ({"status": 429, "body": failed(429, "Full", availability=CAPACITY)}, 40),
        (upstream(429, "rate-limited upstream", **SHARED), 11),
        (refusal(503, "Busy", {"Retry-After": "0"}), 0),
    ],
)
def test_a_server_is_asked_again_when_it_says(step, wait, waits):
    with OpenRouterAPI([step], content=lambda request: GOOD) as api:
        asked(api.url)
    assert waits == [wait]


def test_without_a_word_of_the_server_each_wait_is_longer(waits):
    with OpenRouterAPI([refusal(500, "Oh")] * 3, content=lambda request: GOOD) as api:
        asked(api.url)
    assert [0.5 <= wait / full <= 1 for wait, full in zip(waits, (1, 2, 4), strict=True)] == [True] * 3


def test_a_wait_that_does_not_fit_is_left_to_the_caller_who_hears_until_when(waits):
    with OpenRouterAPI([refusal(503, "Busy", {"Retry-After": "600"})]) as api, pytest.raises(Unreachable) as caught:
        asked(api.url)
    assert caught.value.until == pytest.approx(time.time() + 600, abs=5)
    assert (len(api.calls), waits) == (1, [])


def test_more_than_three_models_are_not_asked():
    steps = [refusal(404, "No endpoints found.")] * 3
    with OpenRouterAPI(steps, content=lambda request: GOOD) as api, pytest.raises(Unreachable):
        asked(api.url, *CHAIN, FIRST, "d/fourth")
    assert [body["model"] for body in bodies(api)] == [*CHAIN]


def test_after_the_last_try_the_caller_hears_what_the_server_said():
    with OpenRouterAPI([refusal(429, "Full", {"Retry-After": "7"})] * 4) as api, pytest.raises(Unreachable) as caught:
        asked(api.url)
    assert caught.value.until == pytest.approx(time.time() + 7, abs=3)


@pytest.fixture
def shares(monkeypatch) -> list[float]:
    """The seconds that each request was given; all are told that there is no such model."""
    given: list[float] = []

    def exchange(method: str, url: str, key: Any, body: Any, end: float) -> tuple[int, dict[str, str], bytes]:
        given.extend([end - time.monotonic()] if method == "POST" else [])
        return 404, {}, b"{}"

    monkeypatch.setattr(wire, "exchange", exchange)
    return given


def test_some_time_is_kept_for_each_model_to_come_and_the_last_one_has_all_that_is_left(shares):
    with pytest.raises(Unreachable):
        asked(URL, *CHAIN, seconds=90)
    assert shares == pytest.approx([50, 70, 90], abs=2)
    shares.clear()
    with pytest.raises(Unreachable):
        asked(URL, *CHAIN, seconds=30)  # too little for that: equal parts
    assert shares == pytest.approx([10, 15, 30], abs=2)


def test_a_model_that_is_passed_over_gets_no_share(shares):
    catalog.note_free_until(URL, time.time() + 3600)
    with pytest.raises(Unreachable, match="used up until"):
        asked(URL, FIRST, GRATIS, "openrouter/free", seconds=90)
    assert shares == pytest.approx([90], abs=2)


def test_a_model_that_hangs_leaves_time_for_the_others():
    hung = {"body": completion(), "drip": [10_000, 0.01]}
    begun = time.monotonic()
    with OpenRouterAPI([hung, hung], content=lambda request: GOOD, models=[]) as api:
        assert asked(api.url, *CHAIN, seconds=1.5).model == THIRD
    assert [body["model"] for body in bodies(api)] == [*CHAIN]
    assert time.monotonic() - begun < 1.5


def test_a_wait_that_does_not_fit_is_none_where_another_model_answers(waits):
    with OpenRouterAPI([refusal(503, "Busy", {"Retry-After": "600"})], content=lambda request: GOOD) as api:
        asked(api.url, *CHAIN)
    assert ([body["model"] for body in bodies(api)], waits) == ([FIRST, SECOND], [])


def test_no_wait_goes_past_the_deadline(waits):
    with OpenRouterAPI([refusal(500, "Oh")]) as api, pytest.raises(Unreachable) as caught:
        asked(api.url, seconds=5.2)
    assert (len(api.calls), waits, caught.value.until) == (1, [], None)


@pytest.mark.parametrize("source", ["headers", "metadata", "nowhere"])
def test_after_a_daily_limit_the_caller_hears_when_it_ends(source):
    midnight = (int(time.time()) // 86400 + 1) * 86400
    said = {"X-RateLimit-Limit": "50", "X-RateLimit-Reset": f"{midnight * 1000}"}
    step = refusal(429, PER_DAY, said if source == "headers" else {})
    if source == "metadata":
        step["body"]["error"]["metadata"]["headers"] = said
    with OpenRouterAPI([step]) as api, pytest.raises(Unreachable) as caught:
        asked(api.url, GRATIS, "openrouter/free")
    assert len(api.calls) == 1
    assert caught.value.until in (midnight, midnight + 86400)  # the second when the day ended just now


def test_free_models_that_are_used_up_are_not_asked_again_before_their_limit_ends(monkeypatch):
    bill = Bill()
    with OpenRouterAPI([refusal(429, PER_DAY)], content=lambda request: GOOD) as api:
        for _ in range(3):
            asked(api.url, GRATIS, THIRD, bill=bill)
        assert [body["model"] for body in bodies(api)] == [GRATIS, THIRD, THIRD, THIRD]
        with pytest.raises(Unreachable, match="used up until 00:00 UTC.*openrouter.fallbacks") as caught:
            asked(api.url, GRATIS, "openrouter/free", bill=bill)
        assert catalog.free_until(api.url) is not None
        assert caught.value.until == catalog.free_until(api.url)
        assert len(api.calls) == bill.calls == 4
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 86400)
        assert asked(api.url, GRATIS).model == GRATIS


def test_what_else_a_free_model_is_refused_for_is_not_remembered():
    with OpenRouterAPI([upstream(429, "busy", **SHARED)] * 3, content=lambda request: GOOD) as api:
        asked(api.url, GRATIS, THIRD)
        assert catalog.free_until(api.url) is None


def test_after_the_limit_of_a_key_the_caller_hears_when_it_is_reset():
    resets = datetime.fromtimestamp(int(time.time()) + 9000, timezone.utc)
    step = refusal(
        403, "Key limit exceeded", limit_source="openrouter_key_limit", resets_at=f"{resets:%Y-%m-%dT%H:%M:%SZ}"
    )
    with OpenRouterAPI([step]) as api, pytest.raises(Unreachable) as caught:
        asked(api.url)
    assert caught.value.until == resets.timestamp()


def test_when_one_model_comes_back_at_an_unknown_time_there_is_no_time_to_tell():
    steps = [refusal(429, PER_DAY), refusal(404, "No endpoints found.")]
    with OpenRouterAPI(steps) as api, pytest.raises(Unreachable) as caught:
        asked(api.url, GRATIS, FIRST)
    assert caught.value.until is None


def test_a_signal_ends_a_wait_and_the_question_with_it(monkeypatch):
    monkeypatch.setattr(proc, "pause", lambda seconds: False)
    with OpenRouterAPI([refusal(503, "Busy")]) as api, pytest.raises(proc.Interrupted):
        asked(api.url, *CHAIN)
    assert len(api.calls) == 1


# --------------------------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("Connection reset by peer"),
        requests.exceptions.ReadTimeout("Read timed out."),
        requests.exceptions.ConnectTimeout("timed out"),
        requests.exceptions.SSLError("certificate verify failed"),
        requests.exceptions.ProxyError("Cannot connect to proxy http://user:hunter22@proxy"),
        requests.exceptions.ChunkedEncodingError("Connection broken"),
    ],
)
def test_whatever_the_network_does_passes_or_is_no_answer(error, waits):
    with responses.RequestsMock() as network:
        place = network.post(f"{URL}/chat/completions", body=error)
        with pytest.raises(Unreachable, match=type(error).__name__) as caught:
            asked(URL)
        assert place.call_count == 4
    assert len(waits) == 3 and caught.value.until is None
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://.a.invalid", "http://a:port/"])
def test_an_address_that_is_none_is_tried_once(url, waits):
    bill = Bill()
    with pytest.raises(Unreachable):
        asked(url, *CHAIN, bill=bill)
    assert (bill.calls, waits) == (0, [])


def test_a_refused_connection_is_tried_again_but_for_no_other_model_and_nothing_of_the_address_is_told(waits):
    bill = Bill()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening
        with pytest.raises(Unreachable, match="refused") as caught:
            asked(f"http://127.0.0.1:{nobody.getsockname()[1]}/s3cr3t-path/v1", *CHAIN, bill=bill)
    assert "s3cr3t" not in str(caught.value) and KEY not in str(caught.value) and SECOND not in str(caught.value)
    assert (bill, len(waits)) == (Bill(), 3)


def test_no_exception_holds_the_key_also_where_the_server_repeats_it():
    steps = [
        refusal(500, f"Your key {KEY} is odd"),
        {"status": 500, "raw": f"<html>{KEY}</html>"},
        upstream(401, f"{KEY} is not valid"),
    ]
    with OpenRouterAPI(steps) as api, pytest.raises(NoAnswer) as caught:
        asked(api.url)
    assert len(api.calls) == 3
    assert KEY[10:30] not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_a_redirect_takes_the_prompt_nowhere():
    with OpenRouterAPI() as other:
        step = {"status": 308, "headers": {"Location": f"{other.url}/chat/completions"}, "raw": ""}
        with OpenRouterAPI([step]) as api, pytest.raises(Unreachable):
            asked(api.url)
    assert other.calls == []


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes one request, whole, and then does what `answer` does with the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as request:
            connection.settimeout(20)
            length = 0
            while line := request.readline().strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            request.read(length)  # what is left unread when it closes would reset the connection
            try:
                answer(connection)
            except ConnectionError:
                pass  # the client has gone

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        finally:
            thread.join()


def exchanged(answer: Callable[[socket.socket], None], seconds: float = 20.0) -> tuple[int, bytes]:
    with raw_server(answer) as url:
        status, _, body = wire.exchange("POST", url, KEY, {}, time.monotonic() + seconds)
    return status, body


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n{}",
    ],
)
def test_broken_http_is_no_answer(reply):
    with pytest.raises(wire.Failed, match=": "):
        exchanged(lambda connection: connection.sendall(reply))


def test_a_packed_answer_is_unpacked_although_it_was_not_asked_for():
    data = json.dumps(completion()).encode()
    packed = gzip.compress(b" " * 1000 + data)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    assert exchanged(lambda connection: connection.sendall(head.encode() + packed)) == (200, b" " * 1000 + data)


def test_a_list_of_two_megabytes_is_read_in_no_time():
    data = b" " * 2_000_000 + b"{}"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    begun = time.monotonic()
    assert exchanged(lambda connection: connection.sendall(head + data)) == (200, data)
    assert time.monotonic() - begun < 2


def test_what_is_too_long_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(wire, "MAX_ANSWER", 10_000)
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    with pytest.raises(wire.Failed, match="10000 bytes"):
        exchanged(lambda connection: connection.sendall(head + b" " * 200_000))


def silence(connection: socket.socket) -> None:
    while connection.recv(1_000_000):
        pass


def drip(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Padding without end, until the client goes."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.settimeout(0.02)
        while True:
            connection.sendall(drop)
            try:
                if not connection.recv(1_000_000):
                    return
            except TimeoutError:
                pass

    return answer


OK_LINE = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        silence,
        drip(b"", b"H"),
        drip(OK_LINE, b"x: y\r\n"),
        drip(OK_LINE + b"Content-Length: 100000\r\n\r\n", b" "),
        drip(OK_LINE + b"Connection: close\r\n\r\n", b" "),
        drip(OK_LINE + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        drip(OK_LINE + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        drip(OK_LINE + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" ")[:10], b""),
    ],
    ids=["silence", "status", "headers", "content-length", "until close", "chunked", "size of a chunk", "packed"],
)
def test_nothing_is_waited_for_past_the_deadline(answer):
    begun = time.monotonic()
    with pytest.raises(wire.Failed):
        exchanged(answer, 0.3)
    assert 0.2 < time.monotonic() - begun < 5


def test_a_connection_that_never_comes_about_has_sent_nothing():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = full.getsockname()
        with socket.create_connection(place), pytest.raises(wire.Failed) as caught:  # the next one waits for ever
            wire.exchange("POST", f"http://127.0.0.1:{place[1]}/v1", KEY, {}, time.monotonic() + 2)
    assert not caught.value.sent


def test_the_clock_of_the_exchange_is_gone_when_it_is_over():
    before = signal.getsignal(signal.SIGALRM)
    with OpenRouterAPI(content=lambda request: GOOD) as api:
        asked(api.url)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_after_the_deadline_nobody_is_asked_any_more():
    with OpenRouterAPI() as api, pytest.raises(Unreachable, match="no time left"):
        asked(api.url, *CHAIN, seconds=0)
    assert api.calls == []


@pytest.mark.parametrize(("rows", "cost", "unknown"), [(None, 0.003, 0), ([], 0.0, 1)])
def test_an_absurd_cost_is_not_believed_but_reckoned_from_the_list_or_marked_as_unknown(rows, cost, unknown):
    bill, usage = Bill(), {"prompt_tokens": 1000, "completion_tokens": 100, "cost": 9e11}
    with OpenRouterAPI([{"body": completion(GOOD, usage)}], models=rows) as api:
        asked(api.url, "anthropic/claude-sonnet-5.5", bill=bill)
    assert (bill.cost_usd, bill.unknown) == (pytest.approx(cost), unknown)
