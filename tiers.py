"""Which of the models: the cheapest that serves. For the manager LLM and for the worker, by rule.

    models = tiers.for_manager(tiers.planning(here, stalls), settings)
    models = tiers.for_worker(plan.tier, stalls, settings)

A tier that the settings do not name is the one below it, so that nothing dearer is used than what they name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import catalog
import prompt
from briefing import goes_well
from situation import RUNGS, Situation

DEFAULT = "anthropic/claude-sonnet-5.5"  # of openrouter.model, see schema/config.json
ECONOMY = "openai/gpt-6-luna"  # at OpenRouter, while openrouter.model is the default
MANY = 4_000  # bytes of failing output from which on reading it takes more than the cheapest model
JUDGING = "standard"


def planning(here: Situation, stalls: int) -> str:
    """The tier for planning the next step. stalls: of the criterion that is most pressing."""
    if stalls >= RUNGS[0] or here.deadlock or here.morale == "stuck":
        return "strong"
    much = sum(prompt.size(s.tail) for s in here.standings if s.is_failing) > MANY
    return "standard" if not here.tried or stalls or not goes_well(here) or much else "economy"


def for_manager(tier: str, settings: Any) -> Sequence[str]:
    """The manager's models, the first choice first: that of the tier, the standard one, then openrouter.fallbacks."""
    router, named = settings.openrouter, settings.openrouter.models
    standard = named.standard or router.model
    cheap = router.model
    if router.model == DEFAULT:
        cheap = named.standard or (ECONOMY if catalog.OFFICIAL.match(router.base_url) else DEFAULT)
    economy = named.economy or cheap
    model = {"economy": economy, "standard": standard, "strong": named.strong or standard}[tier]
    return list(dict.fromkeys([model, standard, *router.fallbacks]))


def for_worker(tier: str | None, stalls: int, settings: Any) -> Sequence[str | None]:
    """The worker's models, the first choice first; None for Claude Code's own choice.

    tier: what the plan says, None where it says nothing. stalls: sessions on its criterion that changed nothing.
    """
    models = settings.claude_code.models
    usual: str | None = models.standard or settings.claude_code.model
    if tier == "strong" or stalls >= RUNGS[0]:
        return list(dict.fromkeys([models.strong or usual, usual]))
    return list(dict.fromkeys([models.economy or usual, usual])) if tier == "economy" else [usual]
