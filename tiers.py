"""Which of the models: the cheapest that serves. For the manager LLM and for the worker, by rule.

    models = tiers.for_manager(tiers.planning(here, stalls), settings)
    model = tiers.for_worker(plan.tier, stalls, settings)

A tier that the settings do not name is the one below it, so that nothing dearer is used than what they name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    much = sum(prompt.size(s.tail) for s in here.standings) > MANY
    return "standard" if not here.tried or stalls or not goes_well(here) or much else "economy"


def for_manager(tier: str, settings: Any) -> Sequence[str]:
    """The manager's models, the first choice first: that of the tier, then openrouter.fallbacks."""
    router = settings.openrouter
    cheap = router.model
    if router.model == DEFAULT:
        cheap = router.models.standard or (ECONOMY if "openrouter.ai" in router.base_url else DEFAULT)
    model = {
        "economy": router.models.economy or cheap,
        "standard": router.models.standard or router.model,
        "strong": router.models.strong or router.models.standard or router.model,
    }[tier]
    return list(dict.fromkeys([model, *router.fallbacks]))


def for_worker(tier: str | None, stalls: int, settings: Any) -> str | None:
    """The worker's model; None for Claude Code's own choice.

    tier: what the plan says, None where it says nothing. stalls: sessions on its criterion that changed nothing.
    """
    claude, models = settings.claude_code, settings.claude_code.models
    usual: str | None = models.standard or claude.model
    if tier == "strong" or stalls >= RUNGS[0]:
        usual = models.strong or usual
    elif tier == "economy":
        usual = models.economy or usual
    return usual
