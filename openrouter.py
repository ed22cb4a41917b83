"""One question to an LLM, one JSON object back: the chat completions protocol of OpenRouter.

    answer = openrouter.ask(system, user, "plan", settings)     valid by schema/plan.json; else raises NoAnswer

Any server that speaks the protocol will do (openrouter.base_url). Nothing is ever guessed from prose: what is no
complete JSON object in the shape of the schema is no answer. The texts in prompts/ are filled here too.

What is not covered: streaming, a second try (the next iteration asks again), and prices: an answer costs what it
says it cost.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import log
from document import NOT_TEXT

HERE = Path(__file__).resolve().parent
DEADLINE = 120.0  # seconds for one answer of the LLM, wall time
MAX_ANSWER = 2_000_000  # bytes of an HTTP answer
LATER = (402, 408, 429)  # statuses, besides those of the server's own failure, by which Unreachable is meant
MAX_AMOUNT = 1e12  # dollars or tokens that an answer may say it cost
FENCE = re.compile(r"<\s*/\s*data", re.I)  # the end of what programs printed, see prompts/


class NoAnswer(Exception):
    """The LLM gave no usable answer. The message says why."""

    def __init__(self, message: str, bill: Mapping[str, Any] | None = None) -> None:
        """bill: what it cost all the same, like Answer.bill; nothing when there was no answer at all."""
        super().__init__(message)
        self.bill = dict(bill or {})


class Unreachable(NoAnswer):
    """Nobody answered, or only to say that it is too much, too early or not paid for: asking again soon is no use."""


@dataclass(frozen=True)
class Answer:
    """What the LLM said, and what that cost."""

    content: dict[str, Any]
    """The JSON object, valid by the schema, masked."""
    model: str
    """The model that answered."""
    cost_usd: float
    """By the answer's own words; 0 when it does not say."""
    tokens: dict[str, int]
    """input and output tokens."""

    @property
    def bill(self) -> dict[str, Any]:
        """cost_usd and tokens, to be booked."""
        return {"cost_usd": self.cost_usd, "tokens": self.tokens}


def ask(system: str, user: str, schema: str, settings: Any) -> Answer:
    """One call of the LLM. Known secrets are masked in both texts.

    schema: the name of a file in schema/, without .json. Raises NoAnswer for everything that is not a complete
    answer in that shape.
    """
    router = settings.openrouter
    body = {
        "model": router.model,
        "messages": [
            {"role": "system", "content": log.mask(system)},
            {"role": "user", "content": log.mask(user)},
        ],
        "temperature": router.temperature,
        "max_tokens": router.max_tokens,
        "response_format": {"type": "json_object"},
    }
    if router.fallbacks:
        body["models"] = [router.model, *router.fallbacks]
    log.trace(f"{schema} prompt", messages=body["messages"])
    reply = _post(f"{router.base_url.rstrip('/')}/chat/completions", body, router.api_key)
    bill = _bill(reply)
    try:
        content = _parse(reply, schema)
    except NoAnswer as error:
        error.bill = bill
        raise
    return Answer(content, str(reply.get("model") or router.model), **bill)


# --------------------------------------------------------------------------------------------------------
# The protocol
# --------------------------------------------------------------------------------------------------------


def _post(url: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
    """POST with a deadline that keep-alive padding cannot stretch (facts: it resets the read timeout for ever)."""
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"  # given as a header, a ~/.netrc would replace it
        return request

    end, data = time.monotonic() + DEADLINE, bytearray()
    try:
        with requests.post(
            url,
            json=body,
            headers={"Accept-Encoding": "identity"},
            auth=authorize if key else None,
            timeout=(10, DEADLINE / 2),
            stream=True,
            allow_redirects=False,
        ) as response:
            for byte in response.iter_content(1):  # more at a time would be waited for, however slowly it drips
                data += byte
                if time.monotonic() > end or len(data) > MAX_ANSWER:
                    raise Unreachable(f"no complete answer within {DEADLINE:.0f} s and {MAX_ANSWER} bytes")
            status = response.status_code
    except (requests.RequestException, ValueError) as error:  # ValueError: a base_url that is none
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    return _body(status, bytes(data))


def _body(status: int, data: bytes) -> dict[str, Any]:
    refused = Unreachable if status in LATER or status >= 500 else NoAnswer
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        raise refused(f"HTTP {status} and no JSON: {data[:200]!r}") from None
    problem = reply.get("error") if isinstance(reply, dict) else "not an object"
    if status != 200 or problem:
        raise refused(f"HTTP {status}: {json.dumps(problem)[:300]}")
    return dict(reply)


def _bill(reply: dict[str, Any]) -> dict[str, Any]:
    """What the answer cost, by its own words; 0 for what it does not say."""
    usage = reply.get("usage")
    known = usage if isinstance(usage, dict) else {}
    cost, asked, answered = (_amount(known.get(name)) for name in ("cost", "prompt_tokens", "completion_tokens"))
    return {"cost_usd": cost, "tokens": {"input": int(asked), "output": int(answered)}}


def _amount(value: Any) -> float:
    try:
        return float(value) if 0 <= float(value) < MAX_AMOUNT else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _parse(reply: dict[str, Any], name: str) -> dict[str, Any]:
    """The JSON object in the answer, valid by the schema of that name."""
    from jsonschema import Draft202012Validator

    schema = json.loads((HERE / "schema" / f"{name}.json").read_text("utf-8"))
    try:
        choice = reply["choices"][0]
        content = choice["message"]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        found = json.loads(text.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
        problem = next(Draft202012Validator(schema).iter_errors(found), None)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise NoAnswer(f"its answer holds no JSON object: {type(error).__name__}: {error}") from error
    if problem:
        raise NoAnswer(f"its answer does not fit schema/{name}.json: {problem.json_path}: {problem.message[:200]}")
    if choice.get("finish_reason") not in ("stop", None):
        raise NoAnswer(f"its answer ended with {choice.get('finish_reason')!r}")
    return {key: _plain_tree(value) for key, value in found.items()}


# --------------------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------------------


def fill(name: str, parts: Mapping[str, str]) -> str:
    """A text of prompts/ with its $placeholders filled. Raises KeyError for one that does not exist."""
    return string.Template((HERE / "prompts" / name).read_text("utf-8")).substitute(parts)


def as_data(text: str) -> str:
    """A stranger's text, masked, that cannot close the fence it is shown in."""
    return FENCE.sub("(/data", plain(text)).strip()


def plain(text: str) -> str:
    """Masked, and without what can neither be shown nor sent."""
    return NOT_TEXT.sub(" ", log.mask(text))


def _plain_tree(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain_tree(item) for key, item in value.items()}
    return [_plain_tree(item) for item in value] if isinstance(value, list) else value
