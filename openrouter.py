"""One question over HTTP, one text back: the chat completions protocol of OpenRouter.

    reply = openrouter.complete(messages, Shape("plan", schema), ["anthropic/claude-sonnet-5.5"], settings, Bill(), end)

Any server that speaks the protocol will do (openrouter.base_url), with a key or without. What a refusal means, and
what follows from it, stands in refusals.py: here the request is sent again, mended, or put to the next model. The list
of models (catalog.py) says what each of them takes, where it is known. The list `models` of the protocol is not used:
it goes over to another model, and its price, on every error, and does not say on which.

What is not covered: streaming, and whether the text is what was asked for (llm.py).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import catalog
import log
import proc
import prompt
import refusals
import wire
from asking import Bill, NoAnswer, Reply, Shape, Unreachable
from catalog import FORMS
from refusals import Refusal

MODELS = 3  # models that are asked at most
RETRIES = 3  # times that one question is asked again at most, after what may pass
FREE_RETRIES = 2  # the same of a model that is free: what fails counts towards the daily limit as well
BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds to wait before each of them, where the server does not say
FOR_OTHERS = 20.0  # seconds kept for each model that has not been asked yet, as far as there are so many
LEAST_TIME = 5.0  # seconds that have to be left after a wait
LEAST_TOKENS = 1000  # tokens below which an answer is not worth asking for
MAX_AMOUNT = 1e12  # tokens or dollars that are taken for a number at all
MAX_COST = 100.0  # dollars that one answer may say it cost; one absurd number would use up every limit
MAX_SESSION = 256  # characters of session_id
REASON = {"effort": "low", "exclude": True}  # reasoning is spent inside max_tokens
MARKED = ("anthropic/", "~anthropic/")  # models whose providers cache a prompt only where it is marked
KEYWORDS = ("type", "properties", "items", "enum", "anyOf", "description", "required", "additionalProperties")

Messages = Sequence[Mapping[str, Any]]


def complete(
    messages: Messages, shape: Shape, models: Sequence[str], settings: Any, bill: Bill, end: float, session: str = ""
) -> Reply:
    """Ask the models one after the other until one answers. While others are left, some time is kept for them.

    messages: each with "role" and "content", a text; the first is the stable one, which providers may cache. models:
    first choice first; no more than MODELS are asked. bill: what it costs is added. end: of time.monotonic(). session:
    a name under which a router sends related questions to the same provider.
    Raises NoAnswer, Unreachable, and proc.Interrupted when a signal ends a wait.
    """
    asking = _Asking(messages, shape, settings, bill, session)
    left = [*dict.fromkeys(models)][:MODELS]
    heard = _used_up(left, settings.openrouter.base_url)
    while left := [model for model in left if not _holds_for(model, heard)]:
        model, now = left.pop(0), time.monotonic()
        found = asking.ask(model, max(now + (end - now) / (len(left) + 1), end - FOR_OTHERS * len(left)))
        if isinstance(found, Reply):
            return found
        heard.append(replace(found, message=f"{model}: {found.message}"))
        log.debug("a model gave no answer", model=model, why=found.message, follows=found.follows)
        if found.follows in (refusals.STOP, refusals.NOBODY):
            break
    raise _failure(heard, bill)


def is_free(model: str) -> bool:
    """Whether a model counts towards OpenRouter's daily limit for those that are free."""
    return model.endswith(":free") or model == catalog.FREE


def _used_up(models: Sequence[str], base_url: str) -> list[Refusal]:
    """What the free ones among the models were refused for earlier, as far as it still holds."""
    until = catalog.free_until(base_url) if any(map(is_free, models)) else None
    if until is None:
        return []
    told = f"free models are used up until {time.strftime('%H:%M UTC', time.gmtime(until))} ({refusals.FREE_HINT})"
    return [Refusal(refusals.FREE, told, until=until)]


def _holds_for(model: str, heard: Sequence[Refusal]) -> bool:
    """Whether what was refused before would be refused to this model as well."""
    return any(refusal.follows == (refusals.FREE if is_free(model) else refusals.PAID) for refusal in heard)


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a JSON Schema that providers take for strict answers.

    Every property is required and no other allowed; what has no place there (lengths, patterns, conditions) is left
    out, so an answer has to be validated by the whole schema all the same.
    """
    kept = {name: value for name, value in schema.items() if name in KEYWORDS}
    if "enum" in kept and "type" not in kept and all(isinstance(value, str) for value in kept["enum"]):
        kept["type"] = "string"
    if "items" in kept:
        kept["items"] = strict(kept["items"])
    if "anyOf" in kept:
        kept["anyOf"] = [strict(option) for option in kept["anyOf"]]
    if "properties" in kept:
        kept["properties"] = {name: strict(value) for name, value in kept["properties"].items()}
        kept.update(required=[*kept["properties"]], additionalProperties=False)
    return kept


def _failure(heard: Sequence[Refusal], bill: Bill) -> NoAnswer:
    """What became of a question that nobody answered."""
    message = "; ".join(refusal.message for refusal in heard) or "no model is named (openrouter.model)"
    if not any(refusal.unreachable for refusal in heard):
        return NoAnswer(message, bill)
    untils = [refusal.until for refusal in heard]
    known = [until for until in untils if until is not None]
    return Unreachable(message, bill, min(known) if len(known) == len(untils) else None)


# --------------------------------------------------------------------------------------------------------
# Asking
# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """What is asked of one model, as far as what it says can change that."""

    model: str
    known: catalog.Model | None
    """Its row of the list."""
    form: str
    """One of FORMS."""
    max_tokens: int
    tuned: bool = False
    """Whether max_tokens was changed, which happens once."""
    without: frozenset[str] = frozenset()
    """Fields that it does not take."""

    @property
    def is_free(self) -> bool:
        """Whether its answers cost nothing, whatever the model is called in them."""
        return is_free(self.model) or bool(self.known and self.known.free)

    def takes(self, field: str) -> bool | None:
        """Whether it takes a field of the request, None where that is not known."""
        parameters = self.known.parameters if self.known else None
        if field in self.without:
            return False
        return None if parameters is None else field in parameters

    def sends(self, field: str) -> bool:
        """Whether a field is sent: reasoning where the list has it, every other unless the list has it not."""
        return self.takes(field) is True if field == "reasoning" else self.takes(field) is not False

    def mended(self, refusal: Refusal) -> _Request | None:
        """The request without what it was refused for; None where there is nothing to mend."""
        if refusal.mend == refusals.FORM and self.form != FORMS[-1]:
            return replace(self, form=FORMS[FORMS.index(self.form) + 1])
        if refusal.mend == refusals.LESS and not self.tuned and LEAST_TOKENS <= refusal.tokens < self.max_tokens:
            return replace(self, max_tokens=refusal.tokens, tuned=True)
        if refusal.mend == refusals.MORE and not self.tuned:
            most = self.known.max_output if self.known and self.known.max_output else 2 * self.max_tokens
            more = min(2 * self.max_tokens, most)
            return replace(self, max_tokens=more, tuned=True) if more > self.max_tokens else None
        if refusal.mend in refusals.FIELDS and self.sends(refusal.mend):
            return replace(self, without=self.without | {refusal.mend})
        return None


class _Asking:
    """One question: what all its requests have in common, and how often it may still be asked."""

    def __init__(self, messages: Messages, shape: Shape, settings: Any, bill: Bill, session: str) -> None:
        self.messages, self.shape, self.bill, self.session = messages, shape, bill, session
        self.router = settings.openrouter
        self.list = catalog.load(settings)
        self.retries = RETRIES

    def ask(self, model: str, end: float) -> Reply | Refusal:
        """What one model says in the end, when it was asked again as often as makes sense."""
        known, address = self.list.find(model), self.router.base_url
        form = catalog.form(address, model) or (known.form if known else "") or FORMS[0]
        most = max(known.max_output, LEAST_TOKENS) if known and known.max_output else self.router.max_tokens
        request = _Request(model, known, form, min(most, self.router.max_tokens))
        left = FREE_RETRIES if is_free(model) else RETRIES
        while True:
            found = self._send(request, end)
            if isinstance(found, Reply):
                if request.form != form:
                    catalog.note_form(address, model, request.form)
                return found
            if mended := request.mended(found):
                request = mended
                continue
            if found.wait is not None:
                found = replace(found, until=time.time() + found.wait)
            left = min(left, 1) if found.follows == refusals.EMPTY else left
            if found.follows not in (refusals.AGAIN, refusals.EMPTY, refusals.NOBODY) or not left or not self.retries:
                return found
            wait = BACKOFF[RETRIES - self.retries] * random.uniform(0.5, 1.0) if found.wait is None else found.wait
            if time.monotonic() + wait + LEAST_TIME > end:
                return found
            if not proc.pause(wait):
                raise proc.Interrupted
            left, self.retries = left - 1, self.retries - 1

    def _send(self, request: _Request, end: float) -> Reply | Refusal:
        url = f"{self.router.base_url.rstrip('/')}/chat/completions"
        self.bill.calls += 1
        try:
            status, headers, data = wire.exchange("POST", url, self.router.api_key, self._body(request), end)
        except wire.Failed as error:
            self.bill.calls -= not error.sent
            self.bill.unknown += error.sent and not request.is_free
            follows = refusals.AGAIN if error.sent else refusals.NOBODY
            return Refusal(refusals.STOP if error.lasting else follows, str(error))
        answer = refusals.parse(data)
        named = answer.get("model") if isinstance(answer, dict) else None
        model = " ".join(log.printable(named).split())[:200] if isinstance(named, str) and named else request.model
        found = refusals.read(status, headers, data, time.time())
        if isinstance(answer, dict):
            _book(self.bill, answer, self.list.find(model) or request.known, found, request.is_free)
        else:
            self.bill.unknown += answer is None and status == 200 and not request.is_free
        if isinstance(found, Refusal) and found.follows == refusals.FREE and found.until:
            catalog.note_free_until(self.router.base_url, found.until)
        return Reply(found, model) if isinstance(found, str) else found

    # ----------------------------------------------------------------------------------------------------
    # The request
    # ----------------------------------------------------------------------------------------------------

    def _body(self, request: _Request) -> dict[str, Any]:
        """What is sent: nothing that the model is known not to take."""
        body: dict[str, Any] = {
            "model": request.model,
            "messages": self._messages(request),
        }
        length = "max_tokens" if request.sends("max_tokens") else "max_completion_tokens"
        body[length] = request.max_tokens
        if request.sends("temperature"):
            body["temperature"] = self.router.temperature
        if request.sends("reasoning"):
            body["reasoning"] = REASON
        if request.form == "json_schema":
            schema = {"name": self.shape.name, "strict": True, "schema": strict(self.shape.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            if all(map(request.takes, (length, "response_format", "structured_outputs"))):
                body["provider"] = {"require_parameters": True}  # else it goes where the schema is passed over
        elif request.form == "json_object":
            body["response_format"] = {"type": "json_object"}
        if self.session and self.list.is_openrouter:
            body["session_id"] = self.session[:MAX_SESSION]
        return body

    def _messages(self, request: _Request) -> list[dict[str, Any]]:
        """The messages, the first with what this model needs: the schema in words, and the mark of its cache."""
        first, *rest = ({"role": message["role"], "content": message["content"]} for message in self.messages)
        if request.form != "json_schema":
            schema = {name: value for name, value in self.shape.schema.items() if name != "$schema"}
            told = prompt.fill("answer.md", {"schema": json.dumps(schema, ensure_ascii=False, separators=(",", ":"))})
            first["content"] = f"{first['content'].rstrip()}\n\n{told}"
        if request.model.startswith(MARKED):
            mark = {"type": "ephemeral"}
            first["content"] = [{"type": "text", "text": first["content"], "cache_control": mark}]
        return [first, *rest]


# --------------------------------------------------------------------------------------------------------
# The bill
# --------------------------------------------------------------------------------------------------------


def _book(
    bill: Bill, answer: Mapping[str, Any], model: catalog.Model | None, found: str | Refusal, is_free: bool
) -> None:
    """Add what an answer cost. A refusal costs nothing, unless it says so; an answer that was cut off is none."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        bill.unknown += not is_free and (isinstance(found, str) or found.mend == refusals.MORE)
        return
    details = usage.get("prompt_tokens_details")
    asked, output = (_amount(usage.get(name)) or 0 for name in ("prompt_tokens", "completion_tokens"))
    cached = min(asked, _amount(details.get("cached_tokens") if isinstance(details, dict) else None) or 0)
    tokens = {"input": int(asked) - int(cached), "output": int(output), "cache_read": int(cached)}
    for name, value in tokens.items():
        bill.tokens[name] += value
    cost = _said(usage)
    if cost is None:  # what has no answer in it is not charged
        is_charged = not is_free and (output or isinstance(found, str))
        cost = catalog.cost(model, tokens) if is_charged else 0.0
    bill.cost_usd += cost or 0.0
    bill.unknown += cost is None


def _said(usage: Mapping[str, Any]) -> float | None:
    """Dollars that an answer cost by its own words; None where they do not tell all of it."""
    cost = _amount(usage.get("cost"))
    cost = cost if cost is not None and cost < MAX_COST else None
    if cost is None or usage.get("is_byok") is not True:
        return cost
    details = usage.get("cost_details")  # a key of one's own pays the provider, and this is the router's fee alone
    upstream = _amount(details.get("upstream_inference_cost") if isinstance(details, dict) else None)
    return None if upstream is None else cost + upstream


def _amount(value: Any) -> float | None:
    """Dollars or tokens that an answer says it cost; None where that is no sensible number."""
    found = refusals.number(value)
    return found if found is not None and found < MAX_AMOUNT else None
