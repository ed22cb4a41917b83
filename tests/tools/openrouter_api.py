"""A scripted OpenRouter on loopback: answers chat completions, well or badly, as it is told.

    with OpenRouterAPI(steps) as api: ... api.url ... api.calls

Each valid POST to /chat/completions takes the next step; when there is none, the answer is a success whose content is
what `content(request body)` returns. A step is an object, and all its keys are optional:

    content         a success with this text
    body            any JSON value instead
    raw             any text instead
    status          default 200
    headers         extra response headers
    drip            [count, seconds]: first so many spaces, one every so many seconds
    close_early     the connection is closed after this many bytes of the body

A request without a bearer, one that does not fit REQUEST, a model that is not of the form author/name, and a strict
schema that is not strict are refused as OpenRouter does, and take no step. GET /models answers with `models`.

Not promised: streaming, routing, prices, or the real service's wording.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BASE = "/api/v1"


def row(name: str, prompt: str, completion: str, *parameters: str, **fields: Any) -> dict[str, Any]:
    """One model of the list. prompt, completion: US dollars per token. fields: what differs from the usual."""
    return {
        "id": name,
        "canonical_slug": name.split(":")[0],
        "name": name,
        "context_length": 1_000_000,
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": prompt, "completion": completion},
        "supported_parameters": ["max_tokens", *parameters],
        "expiration_date": None,
        **fields,
    }


def _shape(required: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object that has no other fields."""
    shape = {"type": "object", "additionalProperties": False, "required": required.split()}
    return {**shape, "properties": properties}


# The request as the endpoint publishes it, as far as this kit could ever use it. The real service passes over fields
# that it does not know; here a misspelt one is seen.
MESSAGE = _shape(
    "role content",
    role={"enum": ["system", "developer", "user", "assistant"]},
    content={"type": "string"},
)
SCHEMA = _shape(
    "name",
    name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    strict={"type": ["boolean", "null"]},
    schema={"type": "object"},
)
STRUCTURED = _shape("type json_schema", type={"const": "json_schema"}, json_schema=SCHEMA)
COUNT = {"type": ["integer", "null"], "minimum": 1}
REQUEST = _shape(
    "model messages",
    model={"type": "string", "minLength": 1},
    messages={"type": "array", "minItems": 1, "items": MESSAGE},
    max_tokens=COUNT,
    max_completion_tokens=COUNT,
    temperature={"type": ["number", "null"], "minimum": 0, "maximum": 2},
    response_format={"oneOf": [_shape("type", type={"enum": ["text", "json_object"]}), STRUCTURED]},
    reasoning={"type": "object"},
    session_id={"type": "string", "maxLength": 256},
)
STRICT = ("type", "properties", "items", "enum", "anyOf", "description", "required", "additionalProperties")


class OpenRouterAPI:
    """The server as a context manager; `calls` holds each request for an answer: method, path, header names, body."""

    def __init__(
        self,
        steps: list[dict[str, Any]] | None = None,
        content: Callable[[dict[str, Any]], str] = lambda request: "{}",
        models: list[dict[str, Any]] | None = None,
    ):
        """models: the rows of the list; [] for a server that has none."""
        self.calls: list[dict[str, Any]] = []
        self.models = models or []
        self.stopping = threading.Event()
        self._steps = list(steps or [])
        self._content = content
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,))
        self.url = f"http://127.0.0.1:{self._server.server_port}{BASE}"

    def __enter__(self) -> OpenRouterAPI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: Any) -> dict[str, Any]:
        """Record the call and return the step that answers it, with its body complete."""
        with self._lock:
            if (method, path) == ("GET", "/models") and self.models:
                return {"body": {"data": self.models}}
            self.calls.append({"method": method, "path": path, "headers": sorted(headers), "body": body})
            if refused := _refusal(method, path, headers, body):
                return refused
            step = self._steps.pop(0) if self._steps else {"content": self._content(body)}
            return {"body": _completion(body, step["content"], len(self.calls)), **step} if "content" in step else step


def _refusal(method: str, path: str, headers: dict[str, str], body: Any) -> dict[str, Any] | None:
    if (method, path) != ("POST", "/chat/completions"):
        return _error(404, f"No route {method} {path}")
    if not headers.get("authorization", "").removeprefix("Bearer").strip():
        return _error(401, "Missing Authentication header")
    if not isinstance(body, dict) or not body.get("messages"):
        return _error(400, "Input required: specify 'messages'")
    if problem := next(_validator().iter_errors(body), None):
        return _error(400, f"{problem.json_path}: {problem.message[:300]}")
    if "/" not in body["model"]:
        return _error(400, f"{body['model']} is not a valid model ID")
    return _loose_schema(body)


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(REQUEST)


def _loose_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """What a provider says to a strict schema that is not strict."""
    asked = body.get("response_format", {}).get("json_schema", {})
    if not asked.get("strict") or not (problem := _not_strict(asked.get("schema", {}), ())):
        return None
    told = {"error": {"message": f"Invalid schema for response_format '{asked['name']}': {problem}"}}
    metadata = {"raw": json.dumps(told), "provider_name": "Scripted", "is_byok": False}
    return _error(400, "Provider returned error", metadata)


def _not_strict(schema: Any, path: tuple[str, ...]) -> str:
    if odd := [name for name in schema if name not in STRICT]:
        return f"In context={path}, '{odd[0]}' is not permitted."
    if "type" not in schema and "anyOf" not in schema:
        return f"In context={path}, schema must have a 'type' key."
    names = schema.get("properties", {})
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return f"In context={path}, 'additionalProperties' is required to be supplied and to be false."
    if sorted(schema.get("required", [])) != sorted(names):
        return f"In context={path}, 'required' is required to be supplied and to be an array including every key."
    inner = [*names.items(), *([("items", schema["items"])] if "items" in schema else [])]
    inner += [(f"anyOf {number}", option) for number, option in enumerate(schema.get("anyOf", []))]
    return next((problem for name, part in inner if (problem := _not_strict(part, (*path, name)))), "")


def _error(code: int, message: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    error = {"code": code, "message": message, **({"metadata": metadata} if metadata else {})}
    return {"status": code, "body": {"error": error, "user_id": "user_test"}}


def _completion(request: dict[str, Any], content: str, number: int) -> dict[str, Any]:
    """A success as OpenRouter gives it, at a cent a call."""
    message = {"role": "assistant", "content": content, "refusal": None, "reasoning": None}
    choice = {"index": 0, "finish_reason": "stop", "native_finish_reason": "end_turn", "message": message}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": 0.01}
    return {
        "id": f"gen-{number}",
        "object": "chat.completion",
        "created": 1795219200,
        "model": request["model"],
        "provider": "Scripted",
        "system_fingerprint": None,
        "choices": [choice],
        "usage": usage,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news; anything else is a bug to see."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler_for(api: OpenRouterAPI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                body = json.loads(raw)
            except json.JSONDecodeError:
                body = None
            path = self.path.removeprefix(BASE).split("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            step = api.answer(self.command, path, headers, body)
            count, seconds = step.get("drip", (0, 0))
            answer = (step["raw"] if "raw" in step else json.dumps(step.get("body", {}))).encode()
            self.send_response(step.get("status", 200))
            sent = {"Content-Type": "application/json", "Content-Length": count + len(answer)}
            sent["X-Generation-Id"] = f"gen-{len(api.calls)}"
            for name, value in {**sent, **step.get("headers", {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            for _ in range(count):
                self.wfile.write(b" ")
                api.stopping.wait(seconds)
            self.wfile.write(answer[: step.get("close_early", len(answer))])

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the log is `calls`."""

    return Handler
