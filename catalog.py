"""The list of models that a server offers: what each of them takes, costs and holds.

    catalog = catalog.load(settings)                  cached on disk for a day; empty where nothing is known
    model = catalog.find("openai/gpt-6-luna")         None where it is not on the list
    usd = catalog.cost(model, {"input": 1000, "output": 100, "cache_read": 0})

Nothing here raises, and nothing may need it: no network, no such list (Ollama, vLLM) and a full disk are all normal.
What form of structured answer a model was found to give is remembered here too, and until when the free models are
used up.

What is not covered: prices by the length of a prompt, and those of writing to a cache. Whoever may write in the cache
folder, as a check may, can tell lies about prices; what an answer says that it cost counts before them. A daily limit
of free models that was raised, or holds for one of two keys only, is believed until it ends.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import log
import state
import wire

DEADLINE = 10.0  # seconds for the list
DAY, HOUR = 86400.0, 3600.0  # seconds for which a list, or a form, and the news that there is none are kept
VERSION = 1  # of the files in the cache
MAX_FILE = 4_000_000  # bytes of a file in the cache
MAX_ROWS = 5_000  # models
MAX_FORMS = 200  # models of which a form is remembered
SOON = 30  # days before its end from which on a model is warned of
NEVER = "2090"  # an end from this year on means none
DEAREST = 1.0  # US dollars a token; what is above is no price of a token
FORMS = ("json_schema", "json_object", "plain")  # of a structured answer, the best first
ROUTING = ("nitro", "floor", "exacto", "online")  # variants that choose a provider, not another model
ROUTERS = ("~", "openrouter/")  # beginnings of ids that need not be on the list
OFFICIAL = re.compile(r"https?://(?:[^/@]*@)?openrouter\.ai(?:[:/]|$)", re.I)
ID = re.compile(r"[!-~]{1,200}")

# Of a row, what is read below and kept on disk.
FIELDS = ("id", "canonical_slug", "name", "context_length", "max_model_len", "supported_parameters", "expiration_date")
PARTS = {
    "architecture": ("input_modalities", "output_modalities"),
    "pricing": ("prompt", "completion", "input_cache_read"),
    "top_provider": ("max_completion_tokens",),
}

FREE = "openrouter/free"
# Ids that are widely known, and gone or about to go: what serves instead, and the day on which their makers end them.
OLD = {
    "anthropic/claude-opus-4-1": ("anthropic/claude-opus-5.5", "2026-08-05"),
    "anthropic/claude-opus-4.1": ("anthropic/claude-opus-5.5", "2026-08-05"),
    "anthropic/claude-3-opus": ("anthropic/claude-opus-5.5", ""),
    "anthropic/claude-3.5-sonnet": ("anthropic/claude-sonnet-5.5", ""),
    "openai/gpt-4o": ("openai/gpt-6.1-sol", "2027-01-14"),
    "openai/gpt-4o-mini": ("openai/gpt-6-luna", "2027-01-14"),
    "openai/gpt-5": ("openai/gpt-6.1-sol", "2026-12-11"),
    "openai/gpt-5-mini": ("openai/gpt-6-luna", "2026-12-11"),
    "openai/gpt-5-nano": ("openai/gpt-6-luna", "2026-12-11"),
    "openai/o3": ("openai/gpt-6.1-sol", "2026-12-11"),
    "google/gemini-pro-1.5": ("google/gemini-3.7-flash", ""),
    "deepseek/deepseek-v3": ("deepseek/deepseek-v4-flash-0731", ""),
    "deepseek/deepseek-r1": ("deepseek/deepseek-v4-pro-0813", ""),
}


@dataclass(frozen=True)
class Model:
    """One row of the list. What it does not tell is None."""

    id: str
    parameters: frozenset[str] | None = None  # names of the request's fields that it takes
    prompt_usd: float | None = None  # US dollars per token; None also where that depends on who answers
    completion_usd: float | None = None  # likewise
    cached_usd: float | None = None  # likewise, of the prompt that was read from the provider's cache
    context: int | None = None  # tokens of prompt and answer together
    max_output: int | None = None  # tokens of an answer
    free: bool = False
    expires: str | None = None  # the day on which it ends, YYYY-MM-DD
    name: str = ""  # for people
    text_only: bool = True  # whether it takes text and gives nothing else
    slug: str = ""  # its id for good, with the day of its release

    @property
    def is_usual(self) -> bool:
        """Whether it answers in text, and at once."""
        return self.text_only and not self.id.endswith(":batch")

    @property
    def form(self) -> str:
        """The best form of structured answer, of FORMS, that it takes by the list; "" where that is not known."""
        if self.parameters is None:
            return ""
        names = {"structured_outputs": "json_schema", "response_format": "json_object"}
        return next((form for name, form in names.items() if name in self.parameters), "plain")


@dataclass(frozen=True)
class Catalog:
    """The list, as far as it is known."""

    models: list[Model] = field(default_factory=list)
    fetched: float | None = None  # when, in epoch seconds
    problem: str = ""  # why it could not be fetched when that was last tried, masked
    is_openrouter: bool = False  # whether the server is OpenRouter, or tells as much about its models

    @property
    def known(self) -> bool:
        """Whether there is a list at all."""
        return bool(self.models)

    def find(self, model_id: str) -> Model | None:
        """The row of an id, also by its slug, and without a variant that only chooses among providers.

        A variant that is free, or priced otherwise, has a row of its own, or is not there.
        """
        by_id = {model.id: model for model in self.models}
        by_slug = {model.slug: model for model in self.models if model.slug and ":" not in model.id}
        return next((at[name] for name in (model_id, _base(model_id)) for at in (by_id, by_slug) if name in at), None)


def load(settings: Any, may_ask: bool = True) -> Catalog:
    """The list of the server at openrouter.base_url; an empty one where nothing is known. Raises nothing.

    may_ask: whether it may be fetched, once a day, or an hour after it could not be; an old one serves until then.
    """
    url = settings.openrouter.base_url
    kept = _kept(_place(url, "models"))
    if may_ask and not (_is_young(kept.get("fetched"), DAY) or _is_young(kept.get("asked"), HOUR)):
        return refresh(settings)
    return _catalog(kept, url)


def refresh(settings: Any) -> Catalog:
    """The list as it is now, however young the kept one is, which serves where there is no other. Raises nothing."""
    url = settings.openrouter.base_url
    path = _place(url, "models")
    kept = {**_kept(path), "asked": time.time(), "problem": ""}
    try:
        kept["rows"] = _ask(f"{url.rstrip('/')}/models", settings.openrouter.api_key)
        kept["fetched"] = kept["asked"]
    except wire.Failed as error:
        kept["problem"] = log.printable(str(error))[:300]
    _keep(path, kept)
    return _catalog(kept, url)


def cost(model: Model | None, tokens: Mapping[str, int]) -> float | None:
    """US dollars that an answer cost by the list; None where it does not tell.

    tokens: input without those read from the cache, output, and cache_read.
    """
    if model and model.free:
        return 0.0
    if model is None or model.prompt_usd is None or model.completion_usd is None:
        return None
    asked, answered, cached = (tokens.get(name, 0) for name in ("input", "output", "cache_read"))
    if not asked + answered + cached:  # no answer takes none: they were not counted
        return None
    cached_usd = model.prompt_usd if model.cached_usd is None else model.cached_usd
    return asked * model.prompt_usd + answered * model.completion_usd + cached * cached_usd


# --------------------------------------------------------------------------------------------------------
# What people should know
# --------------------------------------------------------------------------------------------------------


def warnings(settings: Any, models: Iterable[str]) -> list[str]:
    """What is wrong with these ids at OpenRouter, and what to use instead; nothing for another server's."""
    catalog = load(settings)
    if not catalog.is_openrouter:
        return []
    return [f"{name} {said}" for name in dict.fromkeys(models) if (said := _objection(name, catalog))]


def _objection(name: str, catalog: Catalog) -> str:
    model, today = catalog.find(name), date.today()
    _, ends = OLD.get(_base(name), ("", ""))
    if model and model.expires and model.expires <= (today + timedelta(SOON)).isoformat():
        ends = min(ends or model.expires, model.expires)
    if ends:
        return f"{'ended' if ends <= today.isoformat() else 'ends'} on {ends}: {_instead(name, catalog)}"
    if model is None and catalog.known and not name.startswith(ROUTERS):
        return f"is not on the server's list of models: {_instead(name, catalog)}"
    if model and model.form == "plain":
        return "cannot give structured answers: take one that can, see `make models`"
    return ""


def _instead(name: str, catalog: Catalog) -> str:
    """What to do about an id that is gone, or will be."""
    successor, _ = (FREE, "") if name.endswith(":free") else OLD.get(_base(name), ("", ""))
    if successor and (successor == FREE or not catalog.known or catalog.find(successor)):
        return f"use {successor}"
    ids = [] if catalog.find(name) else [model.id for model in catalog.models if model.is_usual]
    near = difflib.get_close_matches(name, ids, 1)
    return f"did you mean {near[0]}?" if near else "`make models` shows those that there are"


def _base(name: str) -> str:
    """The id without a variant that only chooses among the providers of the same model."""
    base, _, variant = name.rpartition(":")
    return base if variant in ROUTING else name


# --------------------------------------------------------------------------------------------------------
# What was found by asking: the form of structured answers, and the daily limit of the free models
# --------------------------------------------------------------------------------------------------------


def form(base_url: str, model_id: str) -> str:
    """The form, of FORMS, that a model was found to take within the last day; "" where nothing is remembered."""
    return _forms(_place(base_url, "forms")).get(model_id, ("", 0.0))[0]


def note_form(base_url: str, model_id: str, form: str) -> None:
    """Remember for a day the form of structured answer that a model took. Raises nothing."""
    path = _place(base_url, "forms")
    forms = _forms(path)
    if forms.get(model_id, ("",))[0] != form:  # else the day would never end
        newest = [*forms.items()][-MAX_FORMS + 1 :]
        _keep(path, {"forms": {**dict(newest), model_id: (form, time.time())}})


def _forms(path: str) -> dict[str, tuple[str, float]]:
    """Form, and epoch seconds from which on it is known, by model."""
    kept, found = _kept(path).get("forms"), {}
    for name, entry in kept.items() if isinstance(kept, dict) else ():
        if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] in FORMS and _is_young(entry[1], DAY):
            found[name] = (str(entry[0]), float(entry[1]))
    return found


def free_until(base_url: str) -> float | None:
    """Epoch seconds until which a server's free models are used up; None where they are not, as far as is known."""
    until = _number(_kept(_place(base_url, "free")).get("until"))
    return until if until is not None and _is_young(until - DAY, DAY) else None


def note_free_until(base_url: str, until: float) -> None:
    """Remember until when, in epoch seconds, they are, unless that has passed or is more than a day away."""
    if _is_young(until - DAY, DAY):
        _keep(_place(base_url, "free"), {"until": until})


# --------------------------------------------------------------------------------------------------------
# The list
# --------------------------------------------------------------------------------------------------------


def _ask(url: str, key: str | None) -> list[dict[str, Any]]:
    """The rows that a server gives, as they are kept. Raises wire.Failed."""
    status, _, body = wire.exchange("GET", url, key, None, time.monotonic() + DEADLINE)
    if status != 200:
        raise wire.Failed(f"HTTP {status}{': is openrouter.api_key right?' if status in (401, 403) else ''}")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise wire.Failed("what it gives is no JSON") from None
    listed = answer.get("data") if isinstance(answer, dict) else answer
    rows = [_reduced(row) for row in (listed if isinstance(listed, list) else [])[:MAX_ROWS] if _model(row)]
    if not rows:
        raise wire.Failed("what it gives names no model")
    return rows


def _reduced(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in FIELDS if row.get(name) is not None}
    for part, names in PARTS.items():
        if isinstance(row.get(part), dict):
            kept[part] = {name: row[part][name] for name in names if row[part].get(name) is not None}
    return kept


def _catalog(kept: Mapping[str, Any], base_url: str) -> Catalog:
    rows = kept.get("rows")
    found = [model for row in (rows if isinstance(rows, list) else [])[:MAX_ROWS] if (model := _model(row))]
    tells = any(model.parameters is not None for model in found)
    problem = log.printable(str(kept.get("problem") or ""))[:300]
    return Catalog(found, _number(kept.get("fetched")), problem, tells or bool(OFFICIAL.match(base_url)))


def _model(row: Any) -> Model | None:
    """A row, of a server or of the cache, read without trust; None where it names no model."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not ID.fullmatch(row["id"]):
        return None
    architecture, pricing, top = (row[part] if isinstance(row.get(part), dict) else {} for part in PARTS)
    takes, gives = _texts(architecture.get("input_modalities")), _texts(architecture.get("output_modalities"))
    prompt, completion = _price(pricing.get("prompt")), _price(pricing.get("completion"))
    text_only = (takes is None or "text" in takes) and gives in (None, {"text"})
    named_free = row["id"].endswith(":free") or row["id"] == FREE
    return Model(
        id=row["id"],
        parameters=_texts(row.get("supported_parameters")),
        prompt_usd=prompt,
        completion_usd=completion,
        cached_usd=_price(pricing.get("input_cache_read")),
        context=_count(row.get("context_length")) or _count(row.get("max_model_len")),  # vLLM's name for it
        max_output=_count(top.get("max_completion_tokens")),
        free=named_free or (prompt == completion == 0 and text_only),
        expires=_day(row.get("expiration_date")),
        name=log.printable(str(row.get("name") or ""))[:100],
        text_only=text_only,
        slug=str(row.get("canonical_slug") or ""),
    )


def _texts(value: Any) -> frozenset[str] | None:
    return frozenset(item for item in value if isinstance(item, str)) if isinstance(value, list) else None


def _price(value: Any) -> float | None:
    """US dollars per token. OpenRouter gives them as texts, and -1 for one that is not known before."""
    number = _number(value)
    return number if number is not None and 0 <= number < DEAREST else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number < 1e12 else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _day(value: Any) -> str | None:
    try:
        day = date.fromisoformat(str(value)[:10]).isoformat()
    except ValueError:
        return None
    return day if day < NEVER else None


# --------------------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------------------

_known: dict[str, dict[str, Any]] = {}  # what the files hold, by path; also where they cannot be written


def _place(base_url: str, what: str) -> str:
    """The file that keeps something about a server; an address may hold a password, so it is not in the name."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256(base_url.rstrip("/").encode("utf-8", "replace")).hexdigest()
    return os.path.join(folder, "cco", f"{what}-{digest[:16]}.json")


def _kept(path: str) -> dict[str, Any]:
    if path not in _known:
        _known[path] = _read(path)
    return _known[path]


def _read(path: str) -> dict[str, Any]:
    """What a file holds; nothing where it is missing, broken, or no file. A pipe is not waited for."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            data = file.read(MAX_FILE + 1) or b""
        document = json.loads(data) if len(data) <= MAX_FILE else None
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) and document.get("version") == VERSION else {}


def _keep(path: str, document: dict[str, Any]) -> None:
    _known[path] = document
    data = json.dumps({"version": VERSION, **document}, separators=(",", ":")).encode()
    if len(data) > MAX_FILE or not os.path.isabs(path):  # a relative one would be another in each folder
        return
    with suppress(OSError):  # it is asked for again next time
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        state.write(Path(path), data)


def _is_young(moment: Any, seconds: float) -> bool:
    """Whether something is at most so many seconds old; what is from the future is not."""
    then = _number(moment)
    return then is not None and 0 <= time.time() - then < seconds
