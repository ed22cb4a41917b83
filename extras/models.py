#!/usr/bin/env python3
"""Which models there are, and what they cost: `make models`, or `python extras/models.py [--free] [--all]`.

The live list of the server at openrouter.base_url, for which no key is needed; the kept one when it cannot be
fetched. The free ones come first, then the cheapest. A * marks those that your settings use.

Exit codes: 0, 2 for settings that cannot be read, 4 when there is no list, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import catalog  # noqa: E402
import log  # noqa: E402
import tiers  # noqa: E402
import waiting  # noqa: E402
from document import MissionError  # noqa: E402
from mission import Settings, find_git_root, load_settings  # noqa: E402
from situation import TIERS  # noqa: E402

MILLION = 1_000_000  # tokens that the prices shown are for
HEADERS = ("", "model", "context", "$ in", "$ out", "structured", "ends")
ALIGNED = ("left", "left", "right", "right", "right", "left", "left")
STRUCTURED = {"json_schema": "yes", "json_object": "json only", "plain": "no", "": "?"}
CAP = """\
Free models share one cap: 20 requests a minute and 50 a day for all of them together, 1000 a day once you have
bought 10 credits; it begins anew at 00:00 UTC. They come and go: openrouter/free is whichever of them is there."""


def main(argv: list[str] | None = None) -> int:
    """Print the list and return the exit code."""
    parser = argparse.ArgumentParser(description="Lists the models that the manager can use, and what they cost.")
    parser.add_argument("--free", action="store_true", help="only those that cost nothing")
    parser.add_argument("--all", action="store_true", help="also those for batches, and for more than text")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _show(_settings(), args.free, args.all)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MissionError as error:
        print(log.printable(str(error)), file=sys.stderr)
        return 2


def _settings() -> Settings:
    """As `cco.py` finds them for a mission in the repository of the current folder."""
    root = find_git_root(Path.cwd())
    path = root / ".cco" / "config.yaml" if root else None
    settings = load_settings(None, path if path and path.exists() else None, os.environ)
    log.know_value(settings.openrouter.api_key)
    return settings


def _show(settings: Settings, only_free: bool, everything: bool) -> int:
    from tabulate import tabulate

    listed = catalog.refresh(settings)
    place = log.printable(f"{settings.openrouter.base_url.rstrip('/')}/models")
    if not listed.known:
        print(f"There is no list of models: {place}: {listed.problem}.", file=sys.stderr)
        print("See openrouter.base_url and your network; a mission runs without this list.", file=sys.stderr)
        return 4
    shown = [m for m in listed.models if (everything or m.is_usual) and (m.free or not only_free)]
    used = [name for tier in TIERS for name in tiers.for_manager(tier, settings)]
    rows = [_row(model, used, listed) for model in sorted(shown, key=_rank)]
    print(
        tabulate(rows, HEADERS, "plain", disable_numparse=True, colalign=ALIGNED) if rows else "There is no such model."
    )
    print(f"\n{len(rows)} of {len(listed.models)} models of {place}, {_age(listed)}")
    print("$ is US dollars for a million tokens. structured: whether a model can be held to the shape of an answer;")
    print("one with a no cannot, and is of little use as the manager.")
    if listed.is_openrouter and any(model.free for model in shown):
        print(CAP)
    for line in catalog.warnings(settings, used):
        print(log.printable(f"In your settings: {line}"))
    return 0


def _rank(model: catalog.Model) -> tuple[bool, float, str]:
    """Free ones first, then by the price of a token of each kind; those without a known one come last."""
    if model.prompt_usd is None or model.completion_usd is None:
        return not model.free, float("inf"), model.id
    return not model.free, model.prompt_usd + model.completion_usd, model.id


def _row(model: catalog.Model, used: list[str], listed: catalog.Catalog) -> list[Any]:
    context = f"{model.context // 1000} k" if model.context else "?"
    named = any(listed.find(name) is model for name in used)
    prices = (_price(model.prompt_usd, model.free), _price(model.completion_usd, model.free))
    return ["*" if named else "", model.id, context, *prices, STRUCTURED[model.form], model.expires or ""]


def _price(usd: float | None, free: bool) -> str:
    if free:
        return "free"
    return "?" if usd is None else f"{usd * MILLION:.3f}".rstrip("0").rstrip(".")


def _age(listed: catalog.Catalog) -> str:
    """How old the list is, where it could not be fetched now."""
    if not listed.problem:
        return "as they are now."
    old = waiting.span(time.time() - (listed.fetched or 0))
    return f"as they were {old} ago.\nThe list cannot be fetched now: {listed.problem}."


if __name__ == "__main__":
    sys.exit(main())
