"""One question to Claude Code, for people who have a subscription and no key of OpenRouter.

    reply = claude_llm.complete(messages, shape, models, settings, bill, end, root)

Runs `claude -p --json-schema` with the question on stdin, in an empty folder and without any tool: it can read
nothing, run nothing and change nothing. The user's memory files, hooks and MCP servers take no part. The login is that
of the worker (worker.py), and no session of it is kept.

What is not covered: `openrouter.temperature` and `max_tokens`, which have no counterpart; and a `claude` that does not
know these options (they were tried with 2.1.329).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import proc
import prompt
import worker
from asking import Bill, NoAnswer, Reply, Shape, Unreachable
from mission import find_git_root
from stream import PART, Outcome, Stream, classify

MAX_OUTPUT = 10_000_000  # bytes of all that claude says
MAX_TURNS = 4  # answers of the model: a text, a reminder that the tool is to be called, and a mended one
LINGER = 5.0  # seconds that claude may live on after its result
GRACE = 2.0  # seconds between SIGTERM and SIGKILL: there is nothing that it would have to put in order
SHOWN = 300  # characters of claude's own words in a message
# The checker of `--json-schema` knows no meta-schema by its address, and the API takes no conditions at the top.
NOT_TAKEN = ("$schema", "if", "then", "else", "allOf", "anyOf", "oneOf", "not")
# What another call in a minute cannot change.
UNREACHABLE = ("limit", "auth", "credit", "overloaded", "missing", "denied", "timeout")
# Measured: without these a path after an @ anywhere in the question is read and sent along, though there are no tools.
NO_FILES = {"permissions": {"deny": ["Read"]}, "disableAllHooks": True}
SWITCHES = {
    "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
    "CLAUDE_CODE_SAFE_MODE": "1",  # no memory files, hooks, plugins and MCP servers
    "CLAUDE_CODE_MAX_RETRIES": "2",  # of an API that is overloaded; the deadline is near
    "MAX_STRUCTURED_OUTPUT_RETRIES": "2",  # answers that do not fit the schema
}
FIRST = "Give the one JSON object that is asked for by calling the tool for structured output."
EARLIER = "Your answer to that was:\n<data>\n{}\n</data>"

Messages = Sequence[Mapping[str, Any]]


def complete(
    messages: Messages,
    shape: Shape,
    models: Sequence[str],
    settings: Any,
    bill: Bill,
    end: float,
    root: Path,
) -> Reply:
    """Ask once. Reply.text is the JSON object, or what was said instead.

    messages: the first is the system prompt. models: names that Claude Code knows, first choice first; none: its own
    choice. bill: is filled in. end: when to give up, of time.monotonic(). root: the repository, see worker.find.
    Raises NoAnswer, Unreachable; proc.Interrupted on a signal.
    """
    try:
        root = find_git_root(root) or root
        program = worker.find(settings.claude_code.command, root)
    except worker.CannotRun as error:
        raise Unreachable(str(error)) from error
    env = {**worker.environment(settings, root, str(root.resolve())), **SWITCHES}
    with tempfile.TemporaryDirectory(prefix="cco-") as folder:
        system, empty = Path(folder, "system.md"), Path(folder, "empty")
        system.write_text(str(messages[0]["content"]), encoding="utf-8", errors="replace")
        empty.mkdir()
        argv = [program, *_options(system, shape, models)]
        outcome, stream = _run(argv, empty, env, _question(messages), end)
    _book(bill, outcome)
    if outcome.kind != "ended":
        raise _failure(outcome, messages)
    return Reply(_text(stream), outcome.model or "claude")


def _options(system: Path, shape: Shape, models: Sequence[str]) -> list[str]:
    """Nothing of the question stands in them, except for the shape of its answer."""
    schema = {key: value for key, value in shape.schema.items() if key not in NOT_TAKEN}
    options = ["-p", "--output-format", "stream-json", "--verbose", "--json-schema", json.dumps(schema)]
    options += ["--system-prompt-file", str(system), "--tools", "", "--permission-mode", "dontAsk"]
    options += ["--setting-sources", "user", "--settings", json.dumps(NO_FILES), "--strict-mcp-config"]
    options += ["--no-session-persistence", f"--max-turns={MAX_TURNS}"]
    options += [f"--model={models[0]}"] if models else []
    return options + ([f"--fallback-model={','.join(models[1:])}"] if models[1:] else [])


def _question(messages: Messages) -> bytes:
    """What follows the system prompt as one text. It begins with words of ours: a / there would be a command."""
    texts = (
        EARLIER.format(prompt.as_data(message["content"])) if message["role"] == "assistant" else message["content"]
        for message in messages[1:]
    )
    return ("\n\n".join((FIRST, *texts)) + "\n").encode("utf-8", "replace")


# --------------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------------


class _Answer(Stream):
    """The events of a run that is no worker's: nothing of it is shown."""

    def tick(self) -> str:
        """Take in what is new; a word when claude does not go although it has answered."""
        for _ in range(MAX_OUTPUT // PART):  # so that a flood of it cannot keep the limits from being looked at
            if not self._take():
                break
        return "lingering" if self.result_seen and time.monotonic() - self.result_seen > LINGER else ""

    def _event(self, event: dict[str, Any]) -> None:
        if event.get("subtype") != "api_retry":
            super()._event(event)

    def _show(self, doing: str) -> None:
        self.doing = doing


def _run(
    argv: Sequence[str], folder: Path, env: Mapping[str, str], question: bytes, end: float
) -> tuple[Outcome, Stream]:
    limits = proc.Limits(end - time.monotonic(), max_output=MAX_OUTPUT, grace=GRACE)
    if limits.timeout <= 0:
        raise Unreachable("no time left to ask")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "w") as nowhere:
        stream = _Answer(out, nowhere)
        result = proc.run(
            argv, cwd=folder, env=env, output=out, errors=err, limits=limits, stdin=question, tick=stream.tick
        )
        if result.stopped == "interrupted":
            raise proc.Interrupted
        stream.in_time = bool(stream.result)  # what it says when it is told to stop does not count
        if not result.stopped:  # else what counts was taken in while it ran
            stream.finish()
        return classify(stream, result, proc.tail(err, 4000).strip(), {}), stream


def _book(bill: Bill, outcome: Outcome) -> None:
    tokens = outcome.tokens
    bill.calls += outcome.kind != "missing"
    bill.cost_usd += outcome.cost_usd
    bill.unknown += outcome.kind in ("ended", "timeout") and "usd" not in outcome.session
    bill.tokens["input"] += tokens.get("input", 0) + tokens.get("cache_creation", 0)
    bill.tokens["output"] += tokens.get("output", 0)
    bill.tokens["cache_read"] += tokens.get("cache_read", 0)


def _text(stream: Stream) -> str:
    """The object that claude has found valid; else its last words, which `result` may hold in part."""
    if (found := stream.result.get("structured_output")) is not None:
        return json.dumps(found)
    return max([str(stream.result.get("result") or ""), *stream.words[-1:]], key=len)


def _failure(outcome: Outcome, messages: Messages) -> NoAnswer:
    """Claude's own words about it, without any line of the question."""
    asked = "\n".join(str(message["content"]) for message in messages)
    lines = (line.strip() for line in outcome.message.splitlines())
    said = prompt.plain(" ".join(line for line in lines if line and line not in asked))[:SHOWN]
    message = f"Claude Code gave no answer ({outcome.kind}): {said or 'it does not say why'}"
    return Unreachable(message, until=outcome.resets_at) if outcome.kind in UNREACHABLE else NoAnswer(message)
