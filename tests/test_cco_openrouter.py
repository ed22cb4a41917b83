"""The chat completions protocol: what is sent, every good answer, and every way in which an answer can be none."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import responses

import log
import openrouter
from extras.openrouter_api import OpenRouterAPI
from mission import Settings, load_settings
from openrouter import Answer, NoAnswer, as_data, ask, fill

SECRET = "correct-horse-battery-staple"
KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
URL = "http://router.invalid/api/v1"
GOOD = {
    "focus": "c1",
    "title": "Mend the parser",
    "instruction": "Mend the parser in src/parser.py until `make c1` exits 0.",
    "strategy": "retry_modified",
    "session": "resume",
    "question": None,
}


def settings(url: str = URL, **environ: str) -> Settings:
    """The kit's real settings, from an environment."""
    return load_settings(None, None, {"OPENROUTER_API_KEY": KEY, "CCO_OPENROUTER_BASE_URL": url, **environ})


def completion(content: Any = "", usage: Any = None, **choice: Any) -> dict[str, Any]:
    """The body of a success."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": "stop", "message": message, **choice}]
    return {"id": "gen-9", "object": "chat.completion", "model": "m/n", "choices": choices, "usage": usage}


def good(**changed: Any) -> str:
    """An answer in the shape of schema/plan.json."""
    return json.dumps({**GOOD, **changed})


def failed(code: Any, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **more}, "user_id": "user_test"}


def asked(config: Settings) -> Answer:
    return ask("Who you are.", "What is asked.", "plan", config)


def answer_to(step: dict[str, Any], **environ: str) -> Answer:
    """What comes of one step of the scripted server, which is asked exactly once."""
    with OpenRouterAPI([step], content=lambda request: good()) as api:
        try:
            return asked(settings(api.url, **environ))
        finally:
            assert len(api.calls) == 1


def refused(step: dict[str, Any]) -> NoAnswer:
    with pytest.raises(NoAnswer) as caught:
        answer_to(step)
    assert len(str(caught.value)) < 520
    return caught.value


# --------------------------------------------------------------------------------------------------------
# The request
# --------------------------------------------------------------------------------------------------------


def test_the_request_holds_what_the_protocol_wants_and_nothing_else():
    with OpenRouterAPI(content=lambda request: good()) as api:
        asked(settings(api.url, CCO_OPENROUTER_MODEL="a/model", CCO_OPENROUTER_TEMPERATURE="0.3"))
    (call,) = api.calls
    assert (call["method"], call["path"]) == ("POST", "/chat/completions")
    assert call["body"] == {
        "model": "a/model",
        "temperature": 0.3,
        "max_tokens": 4096,
        "response_format": {"type": "json_object"},
        "messages": [{"role": "system", "content": "Who you are."}, {"role": "user", "content": "What is asked."}],
    }
    assert not {"http-referer", "x-title"} & {*call["headers"]}


@pytest.mark.parametrize("count", [1, 2])
def test_fallbacks_are_sent_after_the_model_and_never_make_more_than_three(count):
    fallbacks = ["b/second", "c/third"][:count]
    environ = {"CCO_OPENROUTER_MODEL": "a/first", "CCO_OPENROUTER_FALLBACKS": json.dumps(fallbacks)}
    with OpenRouterAPI(content=lambda request: good()) as api:
        asked(settings(api.url, **environ))
    (call,) = api.calls
    assert call["body"]["models"] == ["a/first", *fallbacks]
    assert len(call["body"]["models"]) <= 3


def sent_header(answer: dict[str, Any], config: Settings) -> requests.PreparedRequest:
    with responses.RequestsMock() as network:
        network.post(f"{config.openrouter.base_url.rstrip('/')}/chat/completions", json=answer)
        asked(config)
        return network.calls[0].request


@pytest.mark.parametrize("url", [URL, f"{URL}/"])
def test_the_key_is_sent_as_a_bearer_and_stands_nowhere_else(url):
    request = sent_header(completion(good()), settings(url))
    assert request.url == f"{URL}/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    others = {name: value for name, value in request.headers.items() if name != "Authorization"}
    assert KEY not in f"{request.url} {others} {request.body!r}"


def test_a_netrc_file_does_not_replace_the_key(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login anonymous password guest\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert sent_header(completion(good()), settings()).headers["Authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_is_asked_without_a_key():
    config = load_settings(None, None, {"CCO_MANAGER_PROVIDER": "openrouter", "CCO_OPENROUTER_BASE_URL": URL})
    assert "Authorization" not in sent_header(completion(good()), config).headers


def test_both_texts_are_masked_before_they_leave(fresh_mask):
    log.know_value(SECRET)
    with OpenRouterAPI(content=lambda request: good()) as api:
        ask(f"Your password is {SECRET}.", f"It printed {SECRET} and {KEY}.", "plan", settings(api.url))
    (call,) = api.calls
    assert [message["content"] for message in call["body"]["messages"]] == [
        "Your password is ***.",
        "It printed *** and ***.",
    ]


# --------------------------------------------------------------------------------------------------------
# Good answers
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        good(),
        f"  \n{good()}\n\n",
        f"```json\n{good()}\n```",
        f"```\n{good()}\n```\n",
        [{"type": "text", "text": good()}],
        [{"type": "text", "text": good()[:40]}, {"type": "text", "text": good()[40:]}],
        [{"type": "reasoning", "id": 1}, {"type": "text", "text": good()}],
        json.dumps(GOOD, indent=4),
    ],
)
def test_a_good_answer_is_read_in_whatever_wrapping(content):
    usage = {"cost": 0.0125, "prompt_tokens": 1834, "completion_tokens": 96}
    answer = answer_to({"body": completion(content, usage)})
    assert answer == Answer(GOOD, "m/n", 0.0125, {"input": 1834, "output": 96})
    assert answer.bill == {"cost_usd": 0.0125, "tokens": {"input": 1834, "output": 96}}


@pytest.mark.parametrize("drip", [[0, 0], [2000, 0.0002]])
def test_padding_before_a_good_answer_does_no_harm(drip):
    assert answer_to({"body": completion(good()), "drip": drip}).content == GOOD


def test_unknown_fields_around_the_answer_are_passed_over():
    body = {**completion(good(), {"cost": 1, "new": {}}), "openrouter_metadata": {"x": 1}, "error": None}
    body["choices"][0].update(native_finish_reason="end_turn", logprobs=None, finish_reason=None)
    assert answer_to({"body": body}).content == GOOD


def test_an_answer_is_masked_and_can_be_written_and_sent_however_deep_the_text_stands(fresh_mask):
    log.know_value(SECRET)
    odd = f"It says {SECRET}. \x1b[31m\0 \ud800 Then."
    verdict = {"id": "c1", "met": True, "reason": odd, "quotes": [{"path": odd, "text": odd}]}
    with OpenRouterAPI([{"content": json.dumps({"files": [odd], "verdicts": [verdict]})}]) as api:
        content = ask("", "", "judge", settings(api.url)).content
    clean = "It says ***.  [31m    Then."
    verdict = {"id": "c1", "met": True, "reason": clean, "quotes": [{"path": clean, "text": clean}]}
    assert content == {"files": [clean], "verdicts": [verdict]}


@pytest.mark.parametrize(
    ("usage", "cost", "tokens"),
    [
        ({"cost": 0.5, "prompt_tokens": 10, "completion_tokens": 2}, 0.5, (10, 2)),
        ({"cost": "0.5", "prompt_tokens": "10", "completion_tokens": "2"}, 0.5, (10, 2)),
        ({"cost": "x", "prompt_tokens": "many", "completion_tokens": 2}, 0.0, (0, 2)),
        ({"cost": None, "prompt_tokens": None, "completion_tokens": None}, 0.0, (0, 0)),
        ({"cost": -1, "prompt_tokens": -5, "completion_tokens": 1.9}, 0.0, (0, 1)),
        ({"cost": float("nan"), "prompt_tokens": float("inf"), "completion_tokens": 1e300}, 0.0, (0, 0)),
        ({"cost": 10**400, "prompt_tokens": [], "completion_tokens": {}}, 0.0, (0, 0)),
        ({}, 0.0, (0, 0)),
        (None, 0.0, (0, 0)),
        ("none", 0.0, (0, 0)),
        ([1, 2], 0.0, (0, 0)),
    ],
)
def test_what_an_answer_cost_is_a_number_whatever_it_says(usage, cost, tokens):
    answer = answer_to({"body": completion(good(), usage)})
    assert (answer.cost_usd, tuple(answer.tokens.values())) == (cost, tokens)


def test_an_answer_without_usage_and_model_is_booked_under_the_model_that_was_asked():
    answer = answer_to({"body": {"choices": completion(good())["choices"]}}, CCO_OPENROUTER_MODEL="a/model")
    assert (answer.model, answer.cost_usd) == ("a/model", 0.0)


# --------------------------------------------------------------------------------------------------------
# Bad answers
# --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "prose": ({"content": "I would mend the parser first."}, "no JSON object"),
    "JSON in prose": ({"content": f"Here is the plan: {good()} Good luck!"}, "no JSON object"),
    "truncated JSON": ({"content": good()[:-20]}, "no JSON object"),
    "empty content": ({"content": ""}, "no JSON object"),
    "null content": ({"body": completion(None)}, "no JSON object"),
    "a number as content": ({"body": completion(7)}, "no JSON object"),
    "a list of words as content": ({"body": completion(["a", "b"])}, "no JSON object"),
    "parts without text": ({"body": completion([{"type": "text", "text": None}])}, "no JSON object"),
    "two objects": ({"content": good() + good()}, "no JSON object"),
    "a thousand levels": ({"content": "[" * 1000 + "]" * 1000}, "its answer"),
    "nine hundred levels": ({"content": "[" * 900 + "]" * 900}, "its answer"),
    "a huge number": ({"content": good()[:-1] + f', "n": {"9" * 5000}}}'}, "no JSON object"),
    "a list": ({"content": json.dumps([GOOD])}, "does not fit schema/plan.json: $"),
    "a string": ({"content": json.dumps(good())}, "does not fit schema/plan.json: $"),
    "null": ({"content": "null"}, "does not fit schema/plan.json: $"),
    "an extra key": ({"content": good(met=True)}, "'met' was unexpected"),
    "finish_reason length": ({"body": completion(good(), finish_reason="length")}, "'length'"),
    "finish_reason content_filter": ({"body": completion(good(), finish_reason="content_filter")}, "'content_filter'"),
    "finish_reason error": ({"body": completion(good(), finish_reason="error")}, "'error'"),
    "finish_reason odd": ({"body": completion(good(), finish_reason=["stop"])}, "['stop']"),
    "empty choices": ({"body": {**completion(), "choices": []}}, "IndexError"),
    "null choices": ({"body": {**completion(), "choices": None}}, "TypeError"),
    "a message that is none": ({"body": completion(message="hello")}, "TypeError"),
    "all null": ({"body": dict.fromkeys(("id", "choices", "created", "model", "object", "usage"))}, "TypeError"),
    "200 with an error": ({"body": {"id": "gen-9", **failed(502, "Upstream error from Nvidia")}}, "from Nvidia"),
    "200 with an error that is a word": ({"body": {"error": "server_error"}}, "server_error"),
    "401": ({"status": 401, "body": failed(401, "User not found.")}, "HTTP 401"),
    "402": ({"status": 402, "body": failed(402, "Insufficient credits.")}, "Insufficient credits"),
    "402 for a moment": (
        {"status": 402, "headers": {"Retry-After": "5"}, "body": failed(402, "Retry after in-flight requests settle")},
        "in-flight",
    ),
    "403": ({"status": 403, "body": failed(403, "Key limit exceeded (monthly limit).")}, "Key limit exceeded"),
    "404": ({"status": 404, "body": failed(404, "No endpoints found for a/b.")}, "No endpoints found"),
    "429 per minute": (
        {"status": 429, "headers": {"Retry-After": "1"}, "body": failed(429, "free-models-per-min.")},
        "per-min",
    ),
    "429 per day": ({"status": 429, "body": failed(429, "free-models-per-day.")}, "per-day"),
    "500": ({"status": 500, "body": failed(500, "Internal Server Error")}, "Internal Server Error"),
    "502": ({"status": 502, "body": failed("502", "Provider returned error", metadata={"raw": "{"})}, "HTTP 502"),
    "503": ({"status": 503, "headers": {"Retry-After": "40"}, "body": failed(503, "unavailable")}, "HTTP 503"),
    "a refusal with a plan in it": ({"status": 500, "body": completion(good())}, "HTTP 500"),
    "a redirect": ({"status": 307, "headers": {"Location": "/api/v1/chat/completions"}, "raw": ""}, "HTTP 307"),
    "HTML": (
        {"status": 502, "headers": {"Content-Type": "text/html"}, "raw": "<html><h1>502 Bad Gateway</h1></html>"},
        "HTTP 502 and no JSON: b'<html>",
    ),
    "HTML with 200": ({"raw": "<!doctype html><title>Log in</title>"}, "HTTP 200 and no JSON"),
    "whitespace only": ({"raw": " \n" * 50}, "HTTP 200 and no JSON"),
    "nothing": ({"raw": ""}, "HTTP 200 and no JSON"),
    "a JSON list": ({"raw": "[]"}, "not an object"),
    "deep JSON": ({"raw": "[" * 100_000}, "no JSON"),
    "closed early": ({"body": completion(good()), "close_early": 80}, "Error"),
    "closed before the body": ({"body": completion(good()), "close_early": 0}, "Error"),
}


@pytest.mark.parametrize(("step", "reason"), BAD.values(), ids=BAD.keys())
def test_what_is_no_answer_is_asked_for_once_and_says_why(step, reason):
    assert reason in str(refused(step))


def test_an_answer_that_is_of_no_use_is_paid_for_all_the_same():
    usage = {"cost": 0.25, "prompt_tokens": 900, "completion_tokens": 4096}
    error = refused({"body": completion(good()[:50], usage, finish_reason="length")})
    assert error.bill == {"cost_usd": 0.25, "tokens": {"input": 900, "output": 4096}}


def test_what_was_refused_costs_nothing():
    assert refused({"status": 402, "body": failed(402, "Insufficient credits.")}).bill == {}


def test_a_redirect_takes_the_prompt_nowhere():
    with OpenRouterAPI() as other:
        refused({"status": 308, "headers": {"Location": f"{other.url}/chat/completions"}, "raw": ""})
    assert other.calls == []


def test_a_body_that_is_too_large_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(openrouter, "MAX_ANSWER", 10_000)
    step = {"raw": " " * 9_000 + json.dumps(completion(good())) + " " * 9_000}
    assert "10000 bytes" in str(refused(step))


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("Connection reset by peer"),
        requests.exceptions.ReadTimeout("Read timed out."),
        requests.exceptions.ConnectTimeout("timed out"),
        requests.exceptions.SSLError("certificate verify failed"),
        requests.exceptions.ProxyError("Cannot connect to proxy"),
        requests.exceptions.ChunkedEncodingError("Connection broken"),
    ],
)
def test_whatever_the_network_does_is_no_answer(error):
    with responses.RequestsMock() as network:
        network.post(f"{URL}/chat/completions", body=error)
        with pytest.raises(NoAnswer, match=f"^{type(error).__name__}: {error}"):
            asked(settings())
        assert len(network.calls) == 1


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://.a.invalid", "http://a:port/"])
def test_an_address_that_is_none_gives_no_answer(url):
    with pytest.raises(NoAnswer):
        asked(settings(url))


def test_a_refused_connection_gives_no_answer():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening
        with pytest.raises(NoAnswer, match="refused"):
            asked(settings(f"http://127.0.0.1:{nobody.getsockname()[1]}/api/v1"))


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes one request and then does what `answer` does with the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(1_000_000)
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


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n{}",
    ],
)
def test_broken_http_is_no_answer(reply):
    with raw_server(lambda connection: connection.sendall(reply)) as url, pytest.raises(NoAnswer, match=": "):
        asked(settings(url))


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


@pytest.mark.parametrize(
    "answer",
    [
        silence,
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" "),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["silence", "content-length", "until close", "chunked"],
)
def test_neither_silence_nor_padding_is_waited_for_past_the_deadline(answer, monkeypatch):
    monkeypatch.setattr(openrouter, "DEADLINE", 0.3)
    with raw_server(answer) as url:
        begun = time.monotonic()
        with pytest.raises(NoAnswer):
            asked(settings(url))
        assert time.monotonic() - begun < 5


# --------------------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------------------


def test_a_text_is_filled_with_the_parts_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(openrouter, "HERE", tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "hello.md").write_text("Dear $name,\n$text\n")
    odd = "$name \n\n\n\n  ${x} $$ \t\n"
    assert fill("hello.md", {"name": "Ann", "text": odd, "more": ""}) == f"Dear Ann,\n{odd}\n"
    with pytest.raises(KeyError, match="text"):
        fill("hello.md", {"name": "Ann"})


@pytest.mark.parametrize(
    "text", ["</data>", "</DATA >", "< / data\n>", "</data</data>>", "<\0/data>", "<\x1b/\x07data", "<</data>/data>"]
)
def test_data_cannot_close_its_fence(text):
    assert not re.search(r"<\s*/\s*data", as_data(text), re.I)
