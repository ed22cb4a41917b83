#!/usr/bin/env python3
"""Which models there are, and what they cost: `make models`, or `python extras/models.py [--free] [--all]`.

The list of the server at openrouter.base_url, for which no key is needed: the free models first, then the cheapest.
A * marks those that your settings use; what is wrong with them (gone, ending, no structured answers) stands below.

Exit codes: 0, 2 for settings that cannot be read, 4 when there is no list, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import llm  # noqa: E402
import log  # noqa: E402
from mission import MissionError, Settings, find_git_root, load_settings  # noqa: E402
from proc import CANNOT, DONE, Stop  # noqa: E402

TIMEOUT = 10.0  # seconds of silence
MAX_LIST = 20_000_000  # bytes
MILLION = 1_000_000  # tokens that the prices shown are for
SOON = 30  # days before its end from which on a model is warned of
NEVER = "2090"  # an end from this year on means none
FREE = "openrouter/free"  # whichever free model is there
ROUTING = ("nitro", "floor", "exacto", "online")  # variants that choose a provider, not another model
ROUTERS = ("~", "openrouter/")  # beginnings of ids that need not be on the list
HEADERS = ("", "model", "context", "$ in", "$ out", "structured", "ends")
ALIGNED = ("left", "left", "right", "right", "right", "left", "left")
STRUCTURED = {"structured_outputs": "yes", "response_format": "json only"}  # parameter -> what it means
CAP = """\
Free models share one cap: 20 requests a minute and 50 a day for all of them together, 1000 a day once you have
bought 10 credits; it begins anew at 00:00 UTC. They come and go: openrouter/free is whichever of them is there."""
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
    """One row of the list."""

    id: str
    slug: str  # its id for good, with the day of its release
    prompt_usd: float | None  # US dollars per token; None where that depends on who answers
    completion_usd: float | None  # likewise
    context: int | None  # tokens of prompt and answer together
    structured: str  # "yes", "json only" or "no"; "?": the server does not say
    ends: str  # the day on which it ends, YYYY-MM-DD; "": none
    text_only: bool  # whether it takes text and gives nothing else

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing."""
        return self.id.endswith((":free", FREE)) or (self.prompt_usd == self.completion_usd == 0 and self.text_only)

    @property
    def is_usual(self) -> bool:
        """Whether it answers in text, and at once."""
        return self.text_only and not self.id.endswith(":batch")


def main(argv: list[str] | None = None) -> int:
    """Print the list and return the exit code."""
    parser = argparse.ArgumentParser(description="Lists the models that the manager can use, and what they cost.")
    parser.add_argument("--free", action="store_true", help="only those that cost nothing")
    parser.add_argument("--all", action="store_true", help="also those for batches, and for more than text")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        show(read_settings(), args.free, args.all)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MissionError, Stop) as error:
        print(log.printable(str(error)), file=sys.stderr)
        return error.code
    return DONE


def read_settings() -> Settings:
    """Return the settings as `cco.py` finds them for a mission in the repository of the current folder."""
    root = find_git_root(Path.cwd())
    path = root / ".cco" / "config.yaml" if root else None
    settings = load_settings(None, path if path and path.exists() else None, os.environ)
    log.register_secret(settings.openrouter.api_key)
    return settings


def show(settings: Settings, only_free: bool, everything: bool) -> None:
    """Print the table, and what is wrong with the models in the settings. Raises Stop without a list."""
    from tabulate import tabulate

    address = f"{settings.openrouter.base_url.rstrip('/')}/models"
    models = fetch(address, settings.openrouter.api_key)
    tiers = () if llm.provider(settings) == "claude" else ("economy", "standard", "strong")
    used = list(dict.fromkeys(name for tier in tiers for name in llm.models(tier, settings)))
    named = {model.id for name in used if (model := find(name, models))}
    shown = [model for model in models if (everything or model.is_usual) and (model.is_free or not only_free)]
    rows = [_row(model, model.id in named) for model in sorted(shown, key=_rank)]
    table = tabulate(rows, HEADERS, "plain", disable_numparse=True, colalign=ALIGNED)
    print(log.printable(table) if rows else "There is no such model.")
    print(log.printable(f"\n{len(rows)} of {len(models)} models of {address}"))
    print("$ is US dollars for a million tokens. structured: whether a model can be held to the shape of an answer;")
    print("one with a no cannot, and is of little use as the manager.")
    if llm.OFFICIAL in address and any(model.is_free for model in shown):
        print(CAP)
    for line in warnings(used, models):
        print(log.printable(f"In your settings: {line}"))


def fetch(address: str, key: str | None) -> list[Model]:
    """Return the models that a server lists. Raises Stop."""
    import requests

    def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"  # as a plain header, ~/.netrc would win
        return request

    try:
        with requests.get(
            address, auth=bearer if key else None, timeout=TIMEOUT, allow_redirects=False, stream=True
        ) as response:
            body = response.raw.read(MAX_LIST, decode_content=True)
        hint = ": is openrouter.api_key right?" if response.status_code in (401, 403) else ""
        problem = f"HTTP {response.status_code}{hint}" if response.status_code != 200 else ""
        listed = json.loads(body) if not problem else []
    except requests.RequestException as error:
        problem = f"{type(error).__name__}: {error}"
    except (ValueError, RecursionError, OSError):
        problem = "what it gives is no JSON"
    if not problem:
        rows = listed.get("data") if isinstance(listed, dict) else listed
        models = [model for row in (rows if isinstance(rows, list) else []) if (model := _model(row))]
        if models:
            return models
        problem = "what it gives names no model"
    remedy = "See openrouter.base_url and your network; a mission runs without this list."
    raise Stop(CANNOT, f"There is no list of models: {address}: {problem[:500]}.\n{remedy}")


def find(name: str, models: Iterable[Model]) -> Model | None:
    """Return the model of an id, also by its slug, and without a variant that only chooses among providers."""
    named = {model.slug: model for model in models if ":" not in model.id} | {model.id: model for model in models}
    return named.get(name) or named.get(_base(name))


def warnings(used: Iterable[str], models: list[Model]) -> list[str]:
    """Return what is wrong with these ids, and what to use instead; nothing for a server that lists only ids."""
    if all(model.structured == "?" for model in models):
        return []
    return [f"{name} {problem}" for name in used if (problem := _problem(name, models))]


def _problem(name: str, models: list[Model]) -> str:
    model, today = find(name, models), date.today()
    successor, ends = OLD.get(_base(name), ("", ""))
    if model and model.ends and model.ends <= (today + timedelta(SOON)).isoformat():
        ends = min(ends or model.ends, model.ends)
    if name.endswith(":free"):
        successor = FREE
    near = [] if model else difflib.get_close_matches(name, [one.id for one in models if one.is_usual], 1)
    instead = f"did you mean {near[0]}?" if near else "`make models` shows those that there are"
    if successor == FREE or find(successor, models):
        instead = f"use {successor}"
    if ends:
        return f"{'ended' if ends <= today.isoformat() else 'ends'} on {ends}: {instead}"
    if model is None and not name.startswith(ROUTERS):
        return f"is not on the server's list of models: {instead}"
    if model and model.structured == "no":
        return "cannot give structured answers: take one that can"
    return ""


def _base(name: str) -> str:
    base, _, variant = name.rpartition(":")
    return base if variant in ROUTING else name


def _rank(model: Model) -> tuple[bool, float, str]:
    """Order by price, free ones first; those without a known one come last."""
    prices = (model.prompt_usd, model.completion_usd)
    return not model.is_free, math.inf if None in prices else sum(filter(None, prices)), model.id


def _row(model: Model, is_used: bool) -> list[str]:
    prices = [
        "free" if model.is_free else "?" if usd is None else f"{usd * MILLION:.3f}".rstrip("0").rstrip(".")
        for usd in (model.prompt_usd, model.completion_usd)
    ]
    context = f"{model.context // 1000} k" if model.context else "?"
    return ["*" if is_used else "", model.id, context, *prices, model.structured, model.ends]


def _model(row: Any) -> Model | None:
    """Return a row of a list without trust in its shape; None where it names no model."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"].isprintable():
        return None
    architecture, pricing = (row[key] if isinstance(row.get(key), dict) else {} for key in ("architecture", "pricing"))
    takes, gives = architecture.get("input_modalities"), architecture.get("output_modalities")
    parameters, ends = row.get("supported_parameters"), str(row.get("expiration_date") or "")[:10]
    can = [meaning for name, meaning in STRUCTURED.items() if isinstance(parameters, list) and name in parameters]
    return Model(
        id=row["id"][:200],
        slug=str(row.get("canonical_slug") or ""),
        prompt_usd=_number(pricing.get("prompt"), 1.0),
        completion_usd=_number(pricing.get("completion"), 1.0),
        context=int(_number(row.get("context_length") or row.get("max_model_len"), 1e12) or 0) or None,  # vLLM's name
        structured=can[0] if can else "no" if isinstance(parameters, list) else "?",
        ends=ends if "2000" < ends < NEVER else "",
        text_only=(not isinstance(takes, list) or "text" in takes) and gives in (None, ["text"]),
    )


def _number(value: Any, most: float) -> float | None:
    """Return a number from 0 to `most`. OpenRouter gives prices as texts, and -1 for one that is not known before."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


if __name__ == "__main__":
    sys.exit(main())
