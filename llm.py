"""One question to an LLM, one JSON object back, valid by a schema.

    answer = llm.ask(Question(system, user, "plan"), settings)     raises NoAnswer

Asks over HTTP (openrouter.py) or through Claude Code (claude_llm.py), as `manager.provider` says. What is wrong with
an answer is told to the LLM once, so that it can mend it. Nothing is ever guessed from prose: what is not one JSON
object as a whole, in the shape of the schema, is no answer.

What is not covered: whether an answer is right; and a question that does not fit into the model's context.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import ascii_letters
from typing import Any

import claude_llm
import log
import openrouter
import personal
import prompt
from asking import Bill, NoAnswer, Reply, Shape

FOLDER = Path(__file__).resolve().parent / "schema"
DEADLINE = 120.0  # seconds for one question with all that it takes, wall time
SHOWN = 1_000  # bytes of an answer that it is shown again when it has to mend it, see prompt.RESERVE
TOLD = 800  # bytes of what is wrong with it that it is told
PROBLEMS = 3  # problems of one answer that are told
PROBLEM = 200  # characters of one of them
KEPT = 20_000  # characters of answers that are saved, all together: the state stays small
OBJECTION = 1_000  # characters of what the caller has against an answer
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.S)
FENCE = "```"

Messages = list[dict[str, Any]]
Saved = dict[str, Any]  # model and text of an answer by the digest of its question, the oldest first


def accept(content: dict[str, Any]) -> str:
    """No objection."""
    return ""


@dataclass(frozen=True)
class Question:
    """What is asked, and what an answer to it has to be."""

    system: str
    """Who it is and what the rules are: the same text for as long as possible, so that it is read from a cache."""
    user: str
    """What is asked now."""
    schema: str
    """Name of the file in schema/, without .json, that describes the answer."""
    models: Sequence[str] = ()
    """Which models, first choice first; none: what the settings say."""
    objection: Callable[[dict[str, Any]], str] = accept
    """What is wrong with an answer that the schema allows, "" if nothing: it is told to the LLM."""
    session: str = ""
    """A name under which questions of one mission go to the same provider, for the sake of its cache."""
    root: Path = Path()
    """The repository: what its files offer on PATH is not taken for Claude Code."""


@dataclass(frozen=True)
class Answer:
    """What the LLM said, and what that cost."""

    content: dict[str, Any]
    """The JSON object, valid by the schema, masked and without control characters."""
    model: str
    """The model that answered."""
    bill: Bill
    """What it cost, a repair included."""
    is_saved: bool = False
    """Whether it is an earlier answer to the same question: then nobody was asked."""


def ask(question: Question, settings: Any, saved: Saved | None = None) -> Answer:
    """Ask, and once more when the answer can be mended. Secrets and personal data are masked before they leave.

    saved: answers to earlier questions, of which an identical one is not asked again; this answer is added.
    Raises NoAnswer or Unreachable for everything that is no answer; their `bill` says what it cost all the same.
    """
    shape = Shape(question.schema, json.loads((FOLDER / f"{question.schema}.json").read_text("utf-8")))
    messages = [_message("system", question.system), _message("user", question.user)]
    key = _digest(messages, shape, question, settings)
    if saved and (known := _known(saved.get(key), shape, question)):
        return known
    end, bill = time.monotonic() + DEADLINE, Bill()
    try:
        content, model = _asked(messages, shape, question, settings, bill, end)
    except NoAnswer as error:
        error.bill = bill
        raise
    if saved is not None:
        saved[key] = {"model": model, "text": json.dumps(content)}
        while sum(len(str(entry)) for entry in saved.values()) > KEPT:
            del saved[next(iter(saved))]
    return Answer(content, model, bill)


def _asked(
    messages: Messages, shape: Shape, question: Question, settings: Any, bill: Bill, end: float
) -> tuple[dict[str, Any], str]:
    """The content of the answer and the model that gave it, after a repair if need be."""
    reply = _complete(messages, shape, question, settings, bill, end)
    content, problem = _read(reply, shape, question)
    if problem:
        log.debug("an answer has to be mended", problem=problem, model=reply.model)
        reply = _complete([*messages, *_repair(reply, problem)], shape, question, settings, bill, end)
        content, again = _read(reply, shape, question)
        if again:
            raise NoAnswer(f"{problem}; asked to mend that: {again}")
    return content, reply.model


def _complete(messages: Messages, shape: Shape, question: Question, settings: Any, bill: Bill, end: float) -> Reply:
    log.trace(f"{shape.name} prompt", messages=messages)
    if settings.manager.provider == "claude":
        reply = claude_llm.complete(messages, shape, question.models, settings, bill, end, question.root)
    else:
        models = question.models or (settings.openrouter.model, *settings.openrouter.fallbacks)
        reply = openrouter.complete(messages, shape, models, settings, bill, end, question.session)
    log.trace(f"{shape.name} answer", model=reply.model, text=reply.text)
    return reply


def _digest(messages: Messages, shape: Shape, question: Question, settings: Any) -> str:
    """Of everything that an answer depends on."""
    asked = [messages, shape.schema, [*question.models], settings.manager.provider, settings.openrouter.model]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _known(saved: Any, shape: Shape, question: Question) -> Answer | None:
    """A saved answer, if it would be accepted today."""
    if not isinstance(saved, dict):
        return None
    content, problem = _read(Reply(str(saved.get("text")), str(saved.get("model"))), shape, question)
    return None if problem else Answer(content, str(saved.get("model")), Bill(), is_saved=True)


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": personal.mask(log.mask(text))}


def _repair(reply: Reply, problem: str) -> Messages:
    """What is said to an answer that cannot be used: the answer, and what is wrong with it."""
    said = _cut(prompt.plain(_bare(reply.text)), SHOWN) or "(nothing)"  # an empty message is refused by some
    told = _cut(prompt.as_data(problem), TOLD)
    return [_message("assistant", said), _message("user", prompt.fill("repair.md", {"problem": told}))]


def _cut(text: str, limit: int) -> str:
    """At most so many bytes of a text, also where the names of what is masked are longer than that was."""
    return prompt.cut(personal.mask(prompt.cut(text, limit)), limit)


# --------------------------------------------------------------------------------------------------------
# The answer
# --------------------------------------------------------------------------------------------------------


def _read(reply: Reply, shape: Shape, question: Question) -> tuple[dict[str, Any], str]:
    """The JSON object that an answer is, and what is wrong with it: then the object does not count."""
    from jsonschema import Draft202012Validator

    try:
        content = _plain(json.loads(_bare(reply.text)))
        errors = list(islice(Draft202012Validator(shape.schema).iter_errors(content), PROBLEMS))
    except (ValueError, RecursionError) as error:
        return {}, f"the answer is not one JSON object and nothing else: {str(error)[:PROBLEM]}"
    if errors:
        told = "; ".join(f"{error.json_path}: {error.message[:PROBLEM]}" for error in errors)
        return {}, prompt.plain(f"the answer does not fit schema/{shape.name}.json: {told}")
    return content, question.objection(content)[:OBJECTION]


def _bare(text: str) -> str:
    """An answer without its thoughts and without one fence around the rest."""
    text = THOUGHTS.sub("", text.removeprefix("\ufeff")).strip()
    if text.startswith(FENCE) and text.endswith(FENCE) and len(text) > 2 * len(FENCE):
        text = text[len(FENCE) : -len(FENCE)]
        text = text.lstrip(ascii_letters)  # the language that it names
    return text


def _plain(value: Any) -> Any:
    """The same JSON value with every text in it masked and without control characters; keys stay as they are."""
    if isinstance(value, str):
        return prompt.plain(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
