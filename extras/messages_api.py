"""A scripted Messages API: runs the real `claude` offline, with only the model's answers made up.

    python extras/messages_api.py SCRIPT.json [--port 0] [--log FILE]

It binds 127.0.0.1, prints one line `http://127.0.0.1:PORT` when it is ready and serves until SIGTERM or
SIGINT. Point the CLI at it:

    ANTHROPIC_BASE_URL=http://127.0.0.1:PORT ANTHROPIC_API_KEY=anything \\
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 HOME=$(mktemp -d) claude -p ...

In a test: `with MessagesAPI([{"text": "Done."}]) as api: ... api.url ... api.requests`.

SCRIPT is a JSON list of replies. Every turn of the agent (a request that offers tools) takes the first
reply that is not used up and whose `match` fits; after the last one the answer is "Nothing left to do."
A reply is an object, and all its keys are optional:

    text            what the assistant says
    tools           what it calls: [{"name": "Bash", "input": {"command": "make"}}]
    input_tokens    reported usage, default 100
    output_tokens   reported usage, default 10
    headers         extra response headers, also of a success
    status, error   answer this HTTP status instead; error is {"type": ..., "message": ...}
    repeat          how many requests this reply answers, default 1, or "forever"
    wait_for        a path: the answer is held back until that file exists
    match           only for a request whose newest message contains this text

The CLI retries some error statuses many times: give those `"repeat": "forever"`. A subscription limit is
a status 429 with the `anthropic-ratelimit-unified-*` headers, and needs CLAUDE_CODE_OAUTH_TOKEN instead of
an API key.

Not promised: the real API's validation, timing, partial streams, or any endpoint but /v1/messages.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

POLL = 0.02  # seconds between two looks for a wait_for file
ERROR_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
ERROR_TYPES |= {413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
LAST_REPLY = {"text": "Nothing left to do."}
HOUSEKEEPING_REPLY = {"text": "A scripted session"}


class MessagesAPI:
    """The server as a context manager; `requests` holds one summary per request, with its body."""

    def __init__(self, script: list[dict[str, Any]], port: int = 0, log: Path | None = None):
        self.requests: list[dict[str, Any]] = []
        self._script = [dict(reply) for reply in script]
        self._log = log
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", port), _handler_for(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> MessagesAPI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Record a request and return the reply to it, when its time has come."""
        request = _summary(path, body)
        with self._lock:
            reply = self._next(request) if request["turn"] else HOUSEKEEPING_REPLY
            self.requests.append(request | {"body": body})
            if self._log:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(request) + "\n")
        self._hold(reply.get("wait_for"))
        return reply

    def _next(self, request: dict[str, Any]) -> dict[str, Any]:
        newest = "\n".join([request["text"], *(result["text"] for result in request["results"])])
        for reply in self._script:
            left = reply.get("repeat", 1)
            if left == 0 or reply.get("match", "") not in newest:
                continue
            if left != "forever":
                reply["repeat"] = left - 1
            return reply
        return LAST_REPLY

    def _hold(self, wait_for: str | None) -> None:
        while wait_for and not Path(wait_for).exists() and not self._stopping.is_set():
            time.sleep(POLL)


def _summary(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What is worth looking at in a request; never a header, so never a key."""
    messages = body.get("messages") or []
    blocks = [block for message in _newest(messages) for block in _blocks(message["content"])]
    return {
        "path": path,
        "turn": bool(body.get("tools")),
        "model": body.get("model"),
        "messages": len(messages),
        "text": _text(blocks),
        "results": [
            {"is_error": bool(block.get("is_error")), "text": _text(block.get("content"))}
            for block in blocks
            if block["type"] == "tool_result"
        ],
    }


def _newest(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that came after the last assistant message: results and reminders may be separate messages."""
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[said[-1] + 1 :] if said else messages


def _blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: str | list[dict[str, Any]] | None) -> str:
    return "\n".join(block["text"] for block in _blocks(content or []) if block["type"] == "text")


def _message(reply: dict[str, Any], model: str) -> dict[str, Any]:
    """A finished assistant message, as the API gives it without streaming."""
    content: list[dict[str, Any]] = [{"type": "text", "text": reply["text"]}] if reply.get("text") else []
    tools = [{"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", **tool} for tool in reply.get("tools", [])]
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content + tools,
        "stop_reason": "tool_use" if tools else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.get("input_tokens", 100),
            "output_tokens": reply.get("output_tokens", 10),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }


def _error(status: int, **error: Any) -> dict[str, Any]:
    default = {"type": ERROR_TYPES.get(status, "api_error"), "message": f"scripted status {status}"}
    return {"type": "error", "error": default | error}


def _events(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The same message as the events of a stream."""
    start = {"content": [], "stop_reason": None, "usage": message["usage"] | {"output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message | start}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            opening, delta = block | {"text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            opening = block | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events.append({"type": "content_block_start", "index": index, "content_block": opening})
        events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": message["usage"]})
    return [*events, {"type": "message_stop"}]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news; anything else is a bug to see."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler_for(api: MessagesAPI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send(200, "text/plain", b"")

        def do_GET(self) -> None:
            self._send_json(404, _error(404, message=self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            if self.path.split("?")[0] == "/v1/messages":
                self._reply(api.answer(self.path, body), body)
            else:
                self.do_GET()

        def _reply(self, reply: dict[str, Any], request: dict[str, Any]) -> None:
            headers, status = reply.get("headers", {}), reply.get("status", 200)
            message = _message(reply, request.get("model", "none"))
            if status != 200:
                self._send_json(status, _error(status, **reply.get("error", {})), headers)
            elif request.get("stream"):
                stream = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in _events(message))
                self._send(200, "text/event-stream", stream.encode(), headers)
            else:
                self._send_json(200, message, headers)

        def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            self._send(status, "application/json", json.dumps(value).encode(), headers)

        def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the log is `requests`."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path, help="a JSON list of replies")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--log", type=Path, help="append one JSON line per request")
    args = parser.parse_args()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    script = json.loads(args.script.read_text(encoding="utf-8"))
    with MessagesAPI(script, args.port, args.log) as api:
        print(api.url, flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
