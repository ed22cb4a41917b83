"""A scripted OpenRouter: answers chat completions offline, well or badly, as told.

    python extras/openrouter_api.py [STEPS.json] [--content TEXT] [--port 0] [--log FILE]

It binds 127.0.0.1, prints one line `http://127.0.0.1:PORT/api/v1` (for openrouter.base_url) when it is ready
and serves until SIGTERM or SIGINT. In a test: `with OpenRouterAPI(steps) as api: ... api.url ... api.calls`.

STEPS is a JSON list. Each valid POST to /chat/completions takes the next step; when there is none, the answer
is a success whose content is TEXT, or in a test what `content(request body)` returns. A step is an object,
and all its keys are optional:

    content         a success with this text
    body            any JSON value instead
    raw             any text instead
    status          default 200
    headers         extra response headers
    drip            [count, seconds]: first so many spaces, one every so many seconds
    close_early     the connection is closed after this many bytes of the body

A request without a bearer, messages, or a model of the form author/name, or with more than three `models`, is
refused as OpenRouter does and takes no step. GET /models, /key and /credits have small fixed answers.

Not promised: streaming, routing, prices, or the real service's wording.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BASE = "/api/v1"
PRICES = {"prompt": "0.000002", "completion": "0.00001"}
MODEL = {"id": "anthropic/claude-sonnet-5.5", "context_length": 1_000_000, "pricing": PRICES, "expiration_date": None}
MODEL["supported_parameters"] = ["max_tokens", "response_format", "structured_outputs"]
FIXED: dict[str, Any] = {
    "/models": {"data": [MODEL]},
    "/key": {"data": {"label": "sk-or-v1-abc...123", "limit": 20, "limit_remaining": 8.1, "is_free_tier": False}},
    "/credits": {"data": {"total_credits": 100.5, "total_usage": 25.75}},
}


class OpenRouterAPI:
    """The server as a context manager; `calls` holds every request: method, path, header names, body."""

    def __init__(
        self,
        steps: list[dict[str, Any]] | None = None,
        content: Callable[[dict[str, Any]], str] = lambda request: "{}",
        port: int = 0,
        log: Path | None = None,
    ):
        self.calls: list[dict[str, Any]] = []
        self.stopping = threading.Event()
        self._steps = list(steps or [])
        self._content = content
        self._log = log
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _handler_for(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
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
        call = {"method": method, "path": path, "headers": sorted(headers), "body": body}
        with self._lock:
            self.calls.append(call)
            if self._log:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(call) + "\n")
            if method == "GET" and path in FIXED:
                return {"body": FIXED[path]}
            refused = _refusal(method, path, headers, body)
            if refused:
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
    if len(body.get("models", [])) > 3:
        return _error(400, "'models' array must have 3 items or fewer.")
    for model in [*body.get("models", []), *([body["model"]] if "model" in body else [])]:
        if "/" not in model:
            return _error(400, f"{model} is not a valid model ID")
    return None


def _error(code: int, message: str) -> dict[str, Any]:
    return {"status": code, "body": {"error": {"code": code, "message": message}, "user_id": "user_test"}}


def _completion(request: dict[str, Any], content: str, number: int) -> dict[str, Any]:
    """A success as OpenRouter gives it, at a cent a call."""
    models = request.get("models") or [request.get("model", MODEL["id"])]
    message = {"role": "assistant", "content": content, "refusal": None, "reasoning": None}
    choice = {"index": 0, "finish_reason": "stop", "native_finish_reason": "end_turn", "message": message}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": 0.01}
    return {
        "id": f"gen-{number}",
        "object": "chat.completion",
        "created": 1795219200,
        "model": models[0],
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
            self._answer(None)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                self._answer(json.loads(raw))
            except json.JSONDecodeError:
                self._answer(None)

        def _answer(self, body: Any) -> None:
            path = self.path.removeprefix(BASE).split("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            step = api.answer(self.command, path, headers, body)
            raw = step["raw"] if "raw" in step else json.dumps(step.get("body", {}))
            count, seconds = step.get("drip", (0, 0))
            text = raw.encode()
            self.send_response(step.get("status", 200))
            sent = {"Content-Type": "application/json", "Content-Length": count + len(text)}
            sent["X-Generation-Id"] = f"gen-{len(api.calls)}"
            for name, value in {**sent, **step.get("headers", {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            for _ in range(count):
                self.wfile.write(b" ")
                api.stopping.wait(seconds)
            self.wfile.write(text[: step.get("close_early", len(text))])

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the log is `calls`."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", type=Path, nargs="?", help="a JSON list of steps")
    parser.add_argument("--content", default="{}", help="what a success says when the steps are used up")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--log", type=Path, help="append one JSON line per request")
    args = parser.parse_args()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    steps = json.loads(args.steps.read_text(encoding="utf-8")) if args.steps else []
    with OpenRouterAPI(steps, lambda request: args.content, args.port, args.log) as api:
        print(api.url, flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
