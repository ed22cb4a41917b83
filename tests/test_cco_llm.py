"""One question, one valid answer: the protocol over a loopback server, the repair, and the real Claude Code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from conftest import marked
from tools.openrouter_api import OpenRouterAPI

import llm
import log
import proc
from extras.messages_api import MessagesAPI
from llm import NoAnswer, Question, Unreachable
from mission import Settings, load_settings
from state import Usage

SECRET = "correct-horse-battery-staple"
KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
URL = "http://router.invalid/api/v1"
FIRST, SECOND, THIRD = "a/first", "b/second", "c/third"
ALONE, CHAIN = (FIRST,), (FIRST, SECOND, THIRD)
PLAN: dict[str, Any] = {"focus": "c1", "title": "Fix the parser", "instruction": "Fix it until `make c1` exits 0."}
PLAN |= {"strategy": "retry_modified", "session": "resume", "tier": None, "encouragement": None, "question": None}
GOOD = json.dumps(PLAN)


def good(**changed: Any) -> str:
    """An answer in the shape of schema/plan.json."""
    return json.dumps({**PLAN, **changed})


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The waits that were asked for; nobody really waits."""
    asked: list[float] = []
    monkeypatch.setattr(proc, "pause", asked.append)
    return asked


def settings(url: str = URL, models: tuple[str, ...] = ALONE, **environ: str) -> Settings:
    """The kit's real settings, from an environment."""
    usual = {"OPENROUTER_API_KEY": KEY, "CCO_OPENROUTER_BASE_URL": url, "CCO_OPENROUTER_MODEL": models[0]}
    return load_settings(None, None, {**usual, "CCO_OPENROUTER_FALLBACKS": json.dumps(models[1:]), **environ})


def ask(url: str = URL, *models: str, **question: Any) -> llm.Answer:
    question = {"system": "Who you are.", "user": "What is asked.", "schema": "plan", **question}
    return llm.ask(Question(**question), settings(url, models or ALONE))


def refused(*args: Any, **question: Any) -> NoAnswer:
    with pytest.raises(NoAnswer) as caught:
        ask(*args, **question)
    return caught.value


def server(*steps: dict[str, Any]) -> OpenRouterAPI:
    """A server that takes these steps and is all right then."""
    return OpenRouterAPI([*steps], content=lambda request: GOOD)


def completion(content: Any = GOOD, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """The body of a success."""
    choices = [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}, **choice}]
    return {"id": "gen-9", "object": "chat.completion", "model": "m/n", "choices": choices, "usage": usage}


def failed(code: Any, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **more}, "user_id": "user_test"}


def refusal(code: int, message: str, headers: dict[str, str] | None = None, **metadata: Any) -> dict[str, Any]:
    """A step of the server that refuses as OpenRouter does."""
    return {"status": code, "headers": headers or {}, "body": failed(code, message, metadata=metadata)}


def upstream(code: int, reason: str, **metadata: Any) -> dict[str, Any]:
    raw = json.dumps({"error": {"message": reason}})
    return refusal(code, "Provider returned error", raw=raw, provider_name="Acme", **metadata)


def sent(api: OpenRouterAPI, field: str = "model") -> list[Any]:
    """What a field of each request was."""
    return [call["body"].get(field) for call in api.calls]


# --- The request ---


def test_the_request_holds_what_the_protocol_wants_and_the_schema_as_it_is_validated():
    with server() as api:  # which refuses a schema that is not strict
        ask(api.url)
        assert "does not fit schema/judge.json" in str(refused(api.url, schema="judge"))
    messages = [{"role": "system", "content": "Who you are."}, {"role": "user", "content": "What is asked."}]
    shape = {"name": "plan", "strict": True, "schema": json.loads((llm.SCHEMAS / "plan.json").read_text())}
    fields = {"max_tokens": 4096, "temperature": 0.5, "response_format": {"type": "json_schema", "json_schema": shape}}
    assert api.calls[0]["body"] == {"model": FIRST, "messages": messages, **fields}


def posted(config: Settings) -> requests.PreparedRequest:
    with responses.RequestsMock() as network:
        network.post(f"{config.openrouter.base_url.rstrip('/')}/chat/completions", json=completion())
        llm.ask(Question("", "", "plan", session="s"), config)
        return network.calls[-1].request


def test_the_key_is_sent_as_a_bearer_whatever_netrc_says_and_stands_nowhere_else(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login anonymous password guest\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    request = posted(settings(f"{URL}/"))
    assert (request.url, request.headers.pop("Authorization")) == (f"{URL}/chat/completions", f"Bearer {KEY}")
    assert KEY not in f"{request.url} {request.headers} {request.body!r}" and "Referer" not in str(request.headers)
    config = settings()
    config.openrouter.api_key = None  # another server may need none
    assert "Authorization" not in (request := posted(config)).headers
    assert not {"session_id", "reasoning"} & {*json.loads(request.body or "")}  # and gets no fields of OpenRouter's
    body = json.loads(posted(settings("https://openrouter.ai/api/v1")).body or "")
    assert (body["session_id"], body["reasoning"]) == ("s", {"effort": "low"})


def test_secrets_and_personal_data_are_masked_before_they_leave(fresh_mask):
    log.register_secret(SECRET)
    with server() as api:
        ask(api.url, system=f"It is {SECRET}.", user=f"Jo <jo.doe@gmail.com> printed {KEY}.")
    text = json.dumps(sent(api, "messages"))
    assert "It is ***." in text
    assert not any(word in text for word in (SECRET, KEY, "jo.doe"))


def test_what_an_answer_cost_is_a_number_or_unknown_whatever_it_says():
    cached = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
    mine = {"is_byok": True, "completion_tokens": 2}
    rows: list[tuple[Any, float, tuple[int, ...], int]] = [
        ({"cost": "0.5", "prompt_tokens": "10", "completion_tokens": "2"}, 0.5, (10, 2, 0), 0),
        (cached, 0.0, (2, 2, 8), 1),
        ({"cost": 9e19, "prompt_tokens_details": [8]}, 0.0, (0, 0, 0), 1),
        ({"cost": 101, "completion_tokens": 2}, 0.0, (0, 2, 0), 1),
        ({"cost": float("nan")}, 0.0, (0, 0, 0), 1),
        ({"cost": 0.25, **mine}, 0.0, (0, 2, 0), 1),
        ({"cost": 0.25, **mine, "cost_details": {"upstream_inference_cost": "0.5"}}, 0.75, (0, 2, 0), 0),
        ([8], 0.0, (0, 0, 0), 1),
    ]
    for stated, cost, tokens, unknown in rows:
        with server({"body": completion(GOOD, stated)}) as api:
            usage = ask(api.url).usage
        assert (usage.cost_usd, usage.unknown, usage.calls) == (cost, unknown, 1), stated
        assert tuple(usage.tokens.get(name, 0) for name in ("input", "output", "cache_read")) == tokens, stated


def test_what_was_sent_and_brought_no_whole_answer_may_have_cost_something():
    lost = [{"body": completion(), "close_early": 80}, {"raw": " \n" * 50}, LENGTH]
    free = [refusal(502, "down"), {"status": 502, "raw": "<html>"}, {"body": failed(502, "Upstream error")}]
    for step in [*lost, *free]:
        with server(step) as api:
            usage = ask(api.url).usage
        assert (usage.calls, usage.unknown, usage.cost_usd) == (2, step in lost, 0.01), step


# --- Every error body: what is asked next ---

# fmt: off
TOO_LONG = "This endpoint's maximum context length is 131072 tokens. However, you requested about 150000 tokens (...)."
IN_FLIGHT = "This request would exceed your available credits given your current in-flight requests. Retry after ..."
GONE = {"code": 502, "message": "gone mid-stream", "metadata": {"error_type": "provider_unavailable"}}
ALL_NULL = dict.fromkeys(("id", "choices", "created", "model", "object", "usage"))
HTML = {"headers": {"Content-Type": "text/html"}, "raw": "<html><h1>502 Bad Gateway</h1></html>"}
LENGTH = {"body": completion("{", {"completion_tokens": 500}, finish_reason="length")}
ONLY_TOKENS = {"body": completion("", {"prompt_tokens": 1, "completion_tokens": 500})}
NO_CREDITS = refusal(402, "Insufficient credits. Add more using https://openrouter.ai/settings/credits")
NO_ENDPOINTS = [refusal(404, f"No endpoints found for {model}.") for model in CHAIN]
PASSES = {408: "late", 429: "Slow down", 500: "Internal", 502: "Provider", 503: "down", 504: "late", 520: "Odd"}
PASSES |= {521: "down", 522: "late", 524: "late", 529: "x"}
PASSED_ON = [
    (400, "a/first is not a valid model ID"), (402, "Prompt tokens limit exceeded: 10335 > 6390"), (413, "Too large"),
    (402, "This request requires more credits, or fewer max_tokens."), (403, "Key limit exceeded (monthly limit)."),
    (403, "Input was flagged by moderation"), (404, "No allowed providers are available for the model."),
    (404, "No endpoints found that satisfy the max price"), (404, "No models match your request and restrictions"),
    (404, "No endpoints available matching your guardrail restrictions and data policy."), (422, "Invalid argument"),
]
AWAY = Unreachable

# What happened: the models by name, those that were asked one by one, what is raised (None: the last of them answers),
# what its message says, the server's steps (what follows is good).
DAILY = refusal(429, "Rate limit exceeded: free-models-per-day. Add 10 credits")
CASES: dict[str, tuple[Any, ...]] = {
    "400 too long": (ALONE, "1", AWAY, "maximum context length", refusal(400, TOO_LONG)),
    "400 upstream": (ALONE, "1", AWAY, 'HTTP 400: {"error": {"message": "Odd."}}', upstream(400, "Odd.")),
    "401": (CHAIN, "1", AWAY, "OPENROUTER_API_KEY", refusal(401, "User not found.")),
    "402 no credits": (CHAIN, "1 2 3", AWAY, "Add more using", *[NO_CREDITS] * 3),
    "402 in flight": (ALONE, "1 1", None, "", refusal(402, IN_FLIGHT, {"Retry-After": "5"}, reason="in_flight")),
    "404 no endpoints, anywhere": (CHAIN, "1 2 3", AWAY, "c/third: HTTP 404: No endpoints found for", *NO_ENDPOINTS),
    "429 per day, free ones passed over": (("a/b:free", "c/d:free", "e/f"), "1 3", None, "", DAILY),
    "429 per day": (CHAIN, "1 2", None, "", DAILY),
    "503 for ever, passed on": (CHAIN, "1 1 1 1 2", None, "", *[refusal(503, "Busy")] * 4),
    "503 everywhere": (CHAIN[:2], "1 1 1 1 2 2 2 2", AWAY, "b/second: HTTP 503", *[refusal(503, "Busy")] * 8),
    "HTML with 200": (ALONE, "1 1 1 1", AWAY, "openrouter.base_url", *[HTML] * 4),
    "HTML with 404": (CHAIN, "1", AWAY, "openrouter.base_url", {"status": 404, **HTML}),
    "a redirect": (CHAIN, "1", AWAY, "base_url", {"status": 307, "headers": {"Location": "/x"}, "raw": ""}),
    "whitespace only": (ALONE, "1 1", None, "", {"raw": " \n" * 50}),
    "nothing": (ALONE, "1 1 1 1", None, "", {"raw": ""}, {"raw": "[]"}, {"raw": "null"}),
    "deep JSON": (ALONE, "1 1", None, "", {"raw": "[" * 100_000}),
    "odd JSON": (ALONE, "1 1 1", None, "", {"body": {"choices": "x"}}, {"body": {"error": {"metadata": "x"}}}),
    "odd JSON with 400": (CHAIN, "1", AWAY, "base_url", {"status": 400, "body": {"error": {"metadata": "x"}}}),
    "closed early": (ALONE, "1 1", None, "", {"body": completion(), "close_early": 80}),
    "closed before the body": (ALONE, "1 1", None, "", {"body": completion(), "close_early": 0}),
    "200 with an error": (ALONE, "1 1", None, "", {"body": {"id": "gen-9", **failed(502, "Upstream error")}}),
    "error while it answered": (ALONE, "1 1", None, "", {"body": completion("x", finish_reason="error", error=GONE)}),
    "finish_reason error alone": (ALONE, "1 1", None, "", {"body": completion("partial", finish_reason="error")}),
    "all null": (ALONE, "1 1", None, "", {"body": ALL_NULL}),
    "all null for ever": (ALONE, "1 1 1 1", AWAY, "empty", *[{"body": ALL_NULL}] * 4),
    "no content, but tokens": (ALONE, "1", AWAY, "its answer of 500 tokens is empty", ONLY_TOKENS),
    "length": (ALONE, "1 1", None, "", LENGTH),
    "length twice": (ALONE, "1 1", AWAY, "cut off after 500 tokens (raise openrouter.max_tokens)", LENGTH, LENGTH),
    "length twice, passed on": (CHAIN, "1 1 2", None, "", LENGTH, LENGTH),
    "padding": (ALONE, "1", None, "", {"body": completion(), "drip": [2000, 0]}),
    **{f"{code} {words}": (CHAIN, "1 2", None, "", refusal(code, words)) for code, words in PASSED_ON},
    **{f"{code} that passes": (ALONE, "1 1", None, "", refusal(code, text)) for code, text in PASSES.items()},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_body_leads_to_the_right_requests(case, waits):
    models, order, error, message, *steps = case
    with server(*steps) as api:
        if error is None:
            usage = ask(api.url, *models).usage
        else:
            caught = refused(api.url, *models)
            usage = caught.usage
            assert type(caught) is error
            assert message in str(caught) and len(str(caught)) < 400 * len(models)
    assert " ".join(str(models.index(model) + 1) for model in sent(api)) == order
    assert usage.calls == len(api.calls)
    assert all(0 <= wait <= llm.LONGEST for wait in waits)
# fmt: on


JUNK = json.loads('[null, true, 0, -1, 1e300, "", "x", [], [null], [{}], {}, {"a": {"b": []}}, {"message": []}]')


def test_whatever_stands_in_a_field_something_follows():
    for junk in JUNK:
        errors: list[Any] = [junk, *({"code": 400, name: junk} for name in ("metadata", "code", "message"))]
        errors += [{"metadata": {name: junk}} for name in ("raw", "retry_after_seconds")]
        bodies: list[Any] = [*({"error": error} for error in errors), {"choices": junk}, {"choices": [junk]}, junk]
        bodies += [{"choices": [{"message": junk}]}, {"choices": [{"finish_reason": junk}]}, {"usage": junk}]
        for body in bodies:
            for status in (200, 204, 302, 400, 402, 404, 429, 500, 999):
                with pytest.raises((llm._Failed, *llm.GARBAGE)):
                    llm._text(status, {"Retry-After": str(junk)}, body, llm._usage(body))


def test_errors_are_masked_short_and_harmless_to_a_terminal(fresh_mask):
    log.register_secret(SECRET)
    text = f"{SECRET} {KEY} \x1b[31m\n\n" + "long " * 100
    for step in (refusal(400, text), upstream(400, text), {"status": 404, "raw": f"<title>{text}"}):
        with server(step) as api:
            caught = refused(api.url)
        message = f"{caught} {caught.__cause__!r} {caught.__context__!r}"
        assert not any(word in message for word in (SECRET, KEY[10:30], "\x1b", "\n"))
        assert "***" in message and len(str(caught)) < 400


def test_the_schema_stands_in_the_prompt_only_after_it_was_refused_in_the_request():
    for step in (
        upstream(400, "Invalid schema for response_format 'plan': In context=(), 'additionalProperties' is ..."),
        refusal(400, "This model does not support response format `json_schema`."),
        refusal(404, "No endpoints found that can handle the requested parameters. To learn more ..."),
        {"status": 422, "body": {"message": "structured_outputs: unknown"}},
    ):
        with server(step) as api:
            ask(api.url)
        assert [form is not None for form in sent(api, "response_format")] == [True, False]
        (_, first), (_, second) = sent(api, "messages")
        assert first["content"] == "What is asked."
        assert second["content"].startswith("What is asked.\n\n") and '"focus"' in second["content"]


def test_a_field_that_is_refused_is_left_out_or_doubled_once():
    newer = refusal(400, "'max_tokens' is not supported: use 'max_completion_tokens'")
    for step, field, values in (
        (upstream(400, "Unsupported value: 'temperature' does not support 0.5"), "temperature", [0.5, None]),
        (newer, "max_tokens", [4096, None]),
        (newer, "max_completion_tokens", [None, 4096]),
        (LENGTH, "max_tokens", [4096, 8192]),
    ):
        with server(step) as api:
            ask(api.url)
        assert sent(api, field) == values
        with server(step, step) as api:
            assert refused(api.url).usage.calls == 2


# --- Time and network ---


def test_a_server_is_asked_again_when_it_says_else_after_longer_and_longer_waits(waits):
    named = [refusal(429, "Full", {"Retry-After": "7"}), upstream(429, "busy", retry_after_seconds=11)]
    unnamed = [refusal(503, "Busy", {"Retry-After": "soon"}), *[refusal(500, "Oh")] * 2]
    for steps in (named, [refusal(503, "Busy", {"Retry-After": "0"})], unnamed):
        with server(*steps) as api:
            ask(api.url)
    assert waits == [7, 11, 0, 1, 2, 4]


def test_a_wait_that_does_not_fit_is_left_to_another_model_or_to_the_caller(waits):
    step = refusal(503, "Busy", {"Retry-After": "600"})
    with server(step, {"content": GOOD}, step) as api:
        ask(api.url, *CHAIN[:2])
        assert (sent(api), waits) == ([FIRST, SECOND], [])
        assert refused(api.url).until == pytest.approx(time.time() + 600, abs=60)


def test_a_signal_ends_a_wait_and_the_question_with_it(monkeypatch):
    def interrupted(seconds: float) -> None:
        raise proc.Interrupted(143)

    monkeypatch.setattr(proc, "pause", interrupted)
    with server(refusal(503, "Busy")) as api, pytest.raises(proc.Interrupted):
        ask(api.url, *CHAIN)
    assert len(api.calls) == 1


def test_a_model_that_hangs_leaves_time_for_the_others(monkeypatch):
    monkeypatch.setattr(llm, "DEADLINE", 1.0)
    hung = {"body": completion(), "drip": [10_000, 0.01]}
    with server(hung) as api:
        assert ask(api.url, *CHAIN).model == SECOND
    assert sent(api) == [*CHAIN[:2]]


def test_an_address_at_which_nobody_answers_gives_no_answer_and_is_not_told(monkeypatch):
    with monkeypatch.context() as broken:
        broken.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")  # a plain OSError of requests
        assert type(refused("https://127.0.0.1:9/v1")) is Unreachable
    for url in ("http://[", "http://[::1", "http://.a.invalid", "http://a:port/"):
        assert type(refused(url)) is Unreachable
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening
        error = refused(f"http://127.0.0.1:{nobody.getsockname()[1]}/s3cr3t-path/v1")
    assert "refused" in str(error) and "s3cr3t" not in str(error) and KEY not in str(error)


@contextmanager
def raw_server(reply: bytes, drop: bytes) -> Iterator[str]:
    """A server that answers one request with these bytes, and then with drop after drop until the client goes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            request = b""
            while not request.endswith(b"}"):  # what is left unread when it closes would reset the connection
                request += connection.recv(1_000_000)
            connection.sendall(reply)
            while drop:
                connection.sendall(drop)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        finally:
            thread.join()


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "a chunk without a size": (CHUNKED + b"zz\r\n", b""),
    "no gzip": (OK + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!", b""),
    "too long": (OK + b"\r\n" + b" " * 2_000_000, b""),
    "drips headers": (OK, b"x: y\r\n"),
    "drips chunks": (CHUNKED, b"1\r\n \r\n"),
}


def test_broken_http_and_what_never_ends_is_no_answer_and_the_alarm_is_off(monkeypatch):
    """That it ends at all is the proof: a server that drips does not go first."""
    monkeypatch.setattr(llm, "DEADLINE", 1.0)
    monkeypatch.setattr(llm, "BACKOFF", ())
    monkeypatch.setattr(llm, "MAX_ANSWER", 1_000_000)
    for case, (reply, drop) in BROKEN.items():
        with raw_server(reply, drop) as url:
            usage = refused(url).usage
        assert (usage.calls, usage.unknown) == (1, 1), case
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


OFFICIAL, LOCAL = "https://openrouter.ai/api/v1", "http://127.0.0.1:11434/v1"


def test_a_tier_that_is_not_named_is_the_standard_one():
    named = {"economy": "a/cheap", "standard": "b/usual", "strong": "c/dear"}
    for url, model, names, expected in (
        (OFFICIAL, llm.DEFAULT, (), [llm.ECONOMY, llm.DEFAULT, llm.DEFAULT]),
        (LOCAL, llm.DEFAULT, (), [llm.DEFAULT, llm.DEFAULT, llm.DEFAULT]),
        (OFFICIAL, llm.DEFAULT, ("economy",), ["a/cheap", llm.DEFAULT, llm.DEFAULT]),
        (OFFICIAL, "d/mine", named, ["a/cheap", "b/usual", "c/dear"]),
    ):
        environ = {f"CCO_OPENROUTER_MODELS_{tier.upper()}": named[tier] for tier in names}
        chains = [llm.models(tier, settings(url, (model, "f/fallback"), **environ)) for tier in named]
        assert [chain[0] for chain in chains] == expected
        assert all(chain[-2:] == [expected[1], "f/fallback"] for chain in chains)


def test_the_first_model_of_the_questions_tier_is_asked():
    with server() as api:
        config = settings(api.url, CCO_OPENROUTER_MODELS_STRONG="c/dear")
        for tier in ("standard", "strong"):
            llm.ask(Question("", "", "plan", tier), config)
    assert sent(api) == [FIRST, "c/dear"]
    claude = settings(CCO_MANAGER_PROVIDER="claude", CCO_CLAUDE_CODE_MODELS_STRONG="opus")
    assert [llm.models(tier, claude) for tier in ("economy", "strong")] == [[], ["opus"]]


def test_an_llm_is_asked_where_there_is_a_key_or_a_server_that_may_need_none():
    key, rules = {"OPENROUTER_API_KEY": KEY}, {"CCO_MANAGER_PROVIDER": "rules"}
    cases = ({}, key, {"CCO_OPENROUTER_BASE_URL": LOCAL}, {**key, **rules})
    providers = [llm.provider(load_settings(None, None, environ)) for environ in cases]
    assert providers == ["rules", "openrouter", "openrouter", "rules"]


# --- What is an answer, and its repair ---


def answered(*answers: str, **question: Any) -> tuple[llm.Answer, list[list[dict[str, str]]]]:
    """What comes of these answers, and the messages of every request. All of them are asked for."""
    with server(*({"content": answer} for answer in answers)) as api:
        answer = ask(api.url, **question)
    assert answer.usage == Usage(0.01 * len(answers), len(answers), 0, answer.usage.tokens)
    return answer, sent(api, "messages")


def unusable(*answers: str, **question: Any) -> tuple[str, list[list[dict[str, str]]]]:
    with server(*({"content": answer} for answer in answers)) as api:
        error = refused(api.url, **question)
    assert (type(error), error.usage.calls) == (NoAnswer, len(answers)) and len(str(error)) < 2000
    return str(error), sent(api, "messages")


def test_a_good_answer_is_read_in_whatever_wrapping():
    for text in (
        f"\ufeff  \n{GOOD}\n\n",
        f"```json\n{GOOD}\n```",
        f"<think>\nPerhaps {{}}? No.\n</think>\n{GOOD}",
        f"\n<think></think>```\n{good(question='Say </think> and ```')}\n```\n",
    ):
        assert {**answered(text)[0].content, "question": None} == PLAN


def test_an_answer_is_masked_and_can_be_written_however_deep_the_text_stands(fresh_mask):
    log.register_secret(SECRET)
    odd, clean = f"It says {SECRET}. \x1b[31m\0 \ud800 Then.", "It says ***.  [31m    Then."

    def content(text: str) -> dict[str, Any]:
        verdict = {"id": "c1", "met": True, "reason": text, "quotes": [{"path": text, "text": text}]}
        return {"files": [text], "verdicts": [verdict]}

    assert answered(json.dumps(content(odd)), schema="judge")[0].content == content(clean)


def test_what_is_no_answer_is_asked_for_once_more_and_is_refused_then():
    for text, reason in {
        "I would fix the parser first.": "not one JSON object",
        f"Here is the plan: {GOOD} Good luck!": "not one JSON object",
        f"<think>{GOOD}": "not one JSON object",
        GOOD + GOOD: "not one JSON object",
        f'{GOOD[:-1]}, "n": {"9" * 5000}}}': "not one JSON object",
        json.dumps({"focus": "c1"}): "'title' is a required property",
        good(focus=1): "$.focus: 1 is not of type 'string'",
    }.items():
        error, asked = unusable(text, text)
        assert error.count(reason) == 2
        assert reason in asked[1][-1]["content"]


def test_a_repair_shows_the_answer_what_is_wrong_with_it_and_the_schema():
    bad = good(strategy="pray")
    _, (first, (*same, shown, wish)) = answered(f"<think>Hm.</think>{bad}", GOOD)
    assert same == first  # from the start on, for the sake of the cache
    assert (shown, wish["role"]) == ({"role": "assistant", "content": bad}, "user")
    assert "$.strategy: 'pray' is not one of" in wish["content"] and '"required":["focus",' in wish["content"]


def test_a_repair_is_bounded_and_masked_and_what_is_wrong_cannot_leave_its_fence(fresh_mask):
    log.register_secret(SECRET)
    for letter in ("x", "🎉", "a@b.co ", f"</data> {SECRET} jo.doe@gmail.com "):
        bad = good(**{f"{number}{letter * 2_000}": letter for number in range(9)})
        error, asked = unusable(bad, bad)
        shown, wish = (message["content"] for message in asked[1][-2:])
        (wrong,) = re.findall(r"<data>\n(.*?)\n</data>", wish, re.S)
        assert len(shown.encode()) <= llm.SHOWN and "more bytes are not shown" in shown
        assert len(wrong.encode()) <= llm.PROBLEM
        assert not any(word in shown + wish + error for word in (SECRET, "jo.doe"))
        assert (shown + wish).count("</data>") == 1


def test_what_the_caller_has_against_a_valid_answer_is_told_and_repaired():
    seen: list[Any] = []

    def objection(content: dict[str, Any]) -> str:
        seen.append(content["focus"])
        return "" if content["focus"] == "c2" else f"{content['focus']} is met already, choose c2"

    answer, asked = answered(GOOD, good(focus="c2"), objection=objection)
    assert answer.content["focus"] == "c2"
    assert "c1 is met already, choose c2" in asked[1][-1]["content"]
    error, _ = unusable("no", good(focus="c3"), objection=objection)
    assert error.endswith("; asked once more: c3 is met already, choose c2")
    assert seen == ["c1", "c2", "c3"]  # it is not asked about what the schema refuses
    with server({"content": "no"}, refusal(401, "User not found.")) as api:  # a repair that nobody answers is paid for
        lost = refused(api.url)
    assert type(lost) is Unreachable and (lost.usage.calls, lost.usage.cost_usd) == (2, 0.01)


# --- Claude Code ---


class Desk:
    """A repository, a home, and a claude that is asked from there."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root, self.home, self.temp = folder, root, folder / "home", folder / "temp"
        self.settings = load_settings(None, None, {"CCO_MANAGER_PROVIDER": "claude"})
        self.settings.claude_code.command = str(folder / "claude")

    def use(self, script: str) -> None:
        """A shell script in the place of claude."""
        (self.folder / "claude").write_text(f"#!/bin/bash\n{script}\n")
        (self.folder / "claude").chmod(0o755)

    def ask(self, user: str = "What next?", *script: dict[str, Any]) -> llm.Answer:
        """Ask a claude whose model follows a script."""
        try:
            with MessagesAPI([*script]) as api, pytest.MonkeyPatch.context() as patch:
                self.requests = api.requests
                patch.setenv("ANTHROPIC_BASE_URL", api.url)
                return llm.ask(Question("You manage.", user, "plan", root=self.root), self.settings)
        finally:
            assert marked(str(self.root.resolve())) == {}
            assert list(self.temp.iterdir()) == []

    def refused(self, *script: dict[str, Any]) -> Unreachable:
        with pytest.raises(Unreachable) as caught:
            self.ask("What next?", *script)
        return caught.value


@pytest.fixture
def desk(tmp_path, project, monkeypatch) -> Desk:
    made = Desk(tmp_path, project)
    made.home.mkdir()
    made.temp.mkdir()
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE", "CCO_"))]:
        monkeypatch.delenv(name)
    changed = {"HOME": str(made.home), "ANTHROPIC_API_KEY": "none-is-needed", "OPENROUTER_API_KEY": KEY}
    for name, value in {**changed, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(llm.CLAUDE_VARIABLES, "CLAUDE_CODE_MAX_RETRIES", "0")
    monkeypatch.setattr(tempfile, "tempdir", str(made.temp))
    return made


@pytest.fixture
def real(desk, real_claude) -> Desk:
    """With the real program, which writes down before it begins what it was started with."""
    keep = "; ".join(f"{what} > '{desk.folder}/{what.split()[0]}'" for what in ("env -0", "ls -A"))
    desk.use(f"printf '%s\\0' \"$@\" > '{desk.folder}/argv'; {keep}; exec '{real_claude}' \"$@\"")
    return desk


def gives(**changed: Any) -> dict[str, Any]:
    """The model calls the tool that takes its answer."""
    return {"tools": [{"name": "StructuredOutput", "input": {**PLAN, **changed}}]}


def test_claude_answers_in_a_folder_of_its_own_and_nothing_of_the_question_stands_in_its_arguments(real):
    answer = real.ask("About the parser.", {**gives(), "input_tokens": 1000, "output_tokens": 50})
    assert answer.content == PLAN and answer.model.startswith("claude-") and 0 < answer.usage.cost_usd < 1
    assert (answer.usage.tokens, answer.usage.calls, answer.usage.unknown) == ({"input": 1000, "output": 50}, 1, 0)
    (request,) = real.requests
    assert "You manage." in json.dumps(request["body"]["system"])
    assert request["text"].startswith(f"{llm.CLAUDE_FIRST}\n\nAbout the parser.")
    environ, argv = (real.folder / "env").read_text(), (real.folder / "argv").read_text()
    assert KEY not in environ and "ANTHROPIC_API_KEY=none-is-needed\0" in environ
    assert f"CCO_RUN={real.root.resolve()}\0" in environ
    assert "parser" not in argv and "You manage" not in argv
    assert (real.folder / "ls").read_text() == "system.md\n" and not list(real.home.rglob("*.jsonl"))


def test_claude_has_no_tools_no_memory_no_hooks_reads_no_path_and_may_be_verbose(real):
    hook = [{"hooks": [{"type": "command", "command": f"touch '{real.folder}/hooked'"}]}]
    user = {"hooks": {"SessionStart": hook, "Stop": hook}, "verbose": True}
    (real.home / ".claude").mkdir()
    (real.home / ".claude" / "settings.json").write_text(json.dumps(user))
    (real.home / ".claude" / "CLAUDE.md").write_text("Remember the milk.\n")
    bash = {"name": "Bash", "input": {"command": f"touch '{real.folder}/planted'"}}
    read = {"name": "Read", "input": {"file_path": str(real.root / "README.md")}}
    secret = real.folder / "secret.txt"
    secret.write_text("a private thing\n")
    question = f'/context @{secret} and @"{secret}"\n@{secret}\n/context'
    assert real.ask(question, {"tools": [bash, read]}, gives()).content == PLAN
    first, second = real.requests
    assert str(secret) in json.dumps(first["body"]) and "a private thing" not in json.dumps(first["body"])
    assert [result["is_error"] for result in second["results"]] == [True, True]
    assert "a project" not in json.dumps(second["results"]) and "milk" not in json.dumps(first["body"])
    assert not (real.folder / "planted").exists() and not (real.folder / "hooked").exists()


def test_prose_of_claude_is_repaired_and_any_failure_is_unreachable_and_says_why(real):
    answer = real.ask("What next?", {"text": "I would fix it.", "repeat": 2}, gives())
    assert (answer.content, answer.usage.calls) == (PLAN, 2)
    assert "Your answer to that was:\n<data>\nI would fix it.\n</data>" in real.requests[-1]["text"]
    assert "401" in str(real.refused({"status": 401, "repeat": "forever"}))
    assert "number of turns" in str(real.refused({**gives(strategy="pray"), "repeat": "forever"}))


def test_the_last_event_counts_and_every_model_is_paid_for(desk):
    result = {"type": "result", "subtype": "success", "is_error": False}
    use = {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 300}
    used = {"claude-haiku-5-5": {"inputTokens": 1, "outputTokens": 1}, "claude-opus-5-5": use}
    paid = {**result, "structured_output": PLAN, "total_cost_usd": 0.25, "modelUsage": used}
    desk.use(f"cat > /dev/null; cat '{desk.folder}/out'")
    (desk.folder / "out").write_text(json.dumps([{"type": "system"}, paid]))
    answer = desk.ask()
    assert answer.usage == Usage(0.25, 1, 0, {"input": 11, "output": 6, "cache_read": 300})
    assert answer.model == "claude-opus-5-5"
    (desk.folder / "out").write_text(json.dumps({**result, "result": GOOD}))
    answer = desk.ask()
    assert (answer.content, answer.model, answer.usage) == (PLAN, "claude", Usage(calls=1, unknown=1))


def test_a_program_that_fails_gives_no_answer_and_tells_no_key(desk, monkeypatch):
    desk.settings.claude_code.api_key = "sk-ant-api03-planted-key-0123456789"
    failures = {"echo 'unknown option' >&2; exit 1": "unknown option", "echo '[1, 2]'": "no result"}
    failures |= {"kill -9 $$": "no result", 'echo "the key is $ANTHROPIC_API_KEY" >&2': "the key is ***"}
    for script, message in failures.items():
        desk.use(f"cat > /dev/null; {script}")
        error = desk.refused()
        assert message in str(error) and "planted" not in str(error) and len(str(error)) < 400
    monkeypatch.setattr(llm, "DEADLINE", 0.5)
    desk.use("sleep 600 & sleep 600")  # refused() holds that nothing is left of them
    assert "no result in time" in str(desk.refused())


def test_without_claude_and_with_one_of_the_repository_nothing_is_started(desk, monkeypatch):
    desk.use(f"touch '{desk.folder}/started'")
    (desk.folder / "claude").rename(desk.root / "my-claude")
    monkeypatch.setenv("PATH", f"{desk.root}{os.pathsep}{os.environ['PATH']}")
    desk.settings.claude_code.command = "my-claude"
    error = desk.refused()
    assert "claude_code.command" in str(error) and error.usage == Usage()
    assert not (desk.folder / "started").exists()
