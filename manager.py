"""What to do next: ask the manager LLM, or decide by rules.

    plan = manager.decide(situation, settings)

Both give the same `Plan`. The rules need no key and no network, and stand in whenever the LLM is of no use: a mission
never stops because of its manager. Neither of them decides whether a criterion is met.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import llm
import log
import prompt
from prompt import Situation
from state import STALLS, Plan, State, digest

STRATEGIES = ("retry_modified", "alternative", "partial", "escalate")  # the ladder, lowest step first
TIERS = ("economy", "standard", "strong")  # of models, by the stalls of what is planned
WITHOUT_PROGRESS = 40  # iterations that fix one thing and break another, until the user is asked
CONFLICT = 3  # iterations in which one criterion became met and the other broke, until the user is asked
STREAK = 3  # iterations in a row below the best commit, after which its files are restored
RETURNS = 2  # times that one commit is returned to
LONGEST = 20_000  # bytes of a plan in the state file
TITLE = 100  # characters of a plan's title


def decide(situation: Situation, settings: Any, may_ask: bool = True) -> Plan:
    """Return the plan for the next session; the rules stand in for an LLM that gives none.

    "escalate" is for the user, at once. Where a plan with another strategy has a question, the LLM wants the user for
    the first time: that counts when it wants so again after this session, see CriterionState.doubt.
    may_ask: whether the LLM can be asked now.
    """
    plan = rules(situation)
    if plan.strategy == "escalate" or llm.provider(settings) == "rules" or not may_ask:
        return plan
    if not _is_worth_asking(situation, plan.focus, settings.manager.when):
        return replace(plan, avoided=1)
    try:
        return _on_the_ladder(_ask(situation, plan.focus, settings), situation)
    except llm.NoAnswer as error:
        log.warn(f"the manager LLM gave no plan, the rules decide this iteration: {error}")
        until = error.until if isinstance(error, llm.Unreachable) else None
        return replace(plan, usage=error.usage, unreachable=isinstance(error, llm.Unreachable), until=until)


def worker_models(plan: Plan, state: State, settings: Any) -> list[str | None]:
    """Return the models that may do a session now, the first choice first; None stands for Claude Code's own choice."""
    models, record = settings.claude_code.models, state.criteria.get(plan.focus)
    usual: str | None = models.standard or settings.claude_code.model
    chosen = models.economy if plan.tier == "economy" else None
    if plan.tier == "strong" or (record and record.stalls >= STALLS[0]):
        chosen = models.strong
    limited = [name for name, until in state.limited_models.items() if until > time.time()]

    def is_limited(model: str) -> bool:
        return any(model == name or (name and name in model) for name in limited)

    wanted = dict.fromkeys([chosen or usual, usual, *settings.claude_code.fallbacks])
    return [model for model in wanted if not is_limited((model or "").lower())]


def warnings(settings: Any) -> list[str]:
    """Return what the user should know of who decides by these settings."""
    router = settings.openrouter
    if llm.provider(settings) == "openrouter" and llm.OFFICIAL in router.base_url and not router.api_key:
        return ["manager.provider is openrouter and there is no key: set OPENROUTER_API_KEY, or rules decide"]
    return []


def way_back(state: State) -> str:
    """Return the commit whose files it is time to restore: the best one, after a streak below it; else ""."""
    best = state.best
    if not best or best.returns >= RETURNS or best.commit == state.commit:
        return ""
    since = [entry for entry in state.sessions if entry.number > max(best.iteration, best.returned)]
    worse = len(since) >= STREAK and all(entry.met < best.met for entry in since[-STREAK:])
    return best.commit if worse and any(entry.broke for entry in since) else ""


# --- By rules ---


def rules(situation: Situation) -> Plan:
    """Return the plan by the ladder: the most pressing criterion, the same way, another way, others first, the user."""
    state, (focus, question) = situation.state, _question(situation)
    if question:
        return Plan(focus, f"Ask about {focus}", question, "escalate", "fresh", question=question)
    focus = _workable(situation)[0]
    strategy = "alternative" if state.criteria[focus].stalls >= STALLS[0] else "retry_modified"
    if strategy == "retry_modified" and any(state.is_set_aside(id) for id in state.open):
        strategy = "partial"
    session = "resume" if situation.resumable and strategy != "alternative" else "fresh"
    title = " ".join(f"{focus}: {state.criteria[focus].criteria}".split())[:TITLE]
    return Plan(focus, title, _instruction(situation, focus, strategy), strategy, session)


def _workable(situation: Situation) -> list[str]:
    """Return what a session may work on, the most pressing first; what is set aside only when nothing else is left."""
    state, failing = situation.state, prompt.failing(situation)
    open_ones = [id for id in failing if not state.is_set_aside(id)]
    if "judge" not in state.asked:  # else it exists and cannot be reached: these may be met
        open_ones += [id for id in _unproven(situation) if not state.criteria[id].attempts]
    return open_ones or [id for id in failing if state.criteria[id].stalls < STALLS[2]]


def _unproven(situation: Situation) -> list[str]:
    """Return the criteria without a check of which nobody has said whether they are met."""
    state = situation.state
    return [id for id in state.open if state.criteria[id].verdict == "unjudged" and not prompt.check_of(situation, id)]


def _conflicts(state: State) -> list[tuple[str, str]]:
    """Return pairs of criteria of which again and again one became met in the iteration in which the other broke."""
    pairs = Counter[tuple[str, str]]()
    for entry in (entry for entry in state.history if entry.number > state.answered):
        became_met = [id for id, verdict in entry.changed.items() if verdict == "met"]
        pairs.update({tuple(sorted(pair)) for pair in itertools.product(became_met, entry.broke)})  # type: ignore[misc]
    ids, open_ones = {*state.criteria}, {*state.open}
    often = [pair for pair, count in pairs.items() if count >= CONFLICT]
    return [pair for pair in often if {*pair} <= ids and {*pair} & open_ones]


def _instruction(situation: Situation, focus: str, strategy: str) -> str:
    """Say what the list of criteria in the worker's prompt does not."""
    state, record = situation.state, situation.state.criteria[focus]
    parts = [f'Make the criterion "{record.criteria}" ({focus}) true.']
    if not prompt.check_of(situation, focus):
        parts.append("It has no check: whoever judges it reads nothing but the files that git tracks.")
    if prompt.broken_by(state, focus):
        parts.append("It was met before: find what in the change named above broke it, and repair that.")
    if record.fails_in_clean_checkout:
        parts.append(
            "It may look met in this folder, but is not in a clean checkout of the commit. What it needs has to be in"
            " files that git tracks, or to be made by the check itself or by the mission's `setup`."
        )
    if record.flaky:
        parts.append(
            "Its check gives different results on the same files. Find out why (time, order, chance, leftovers, the"
            " network) and remove the cause; it has to pass three times in a row."
        )
    if strategy == "alternative":
        parts.append(
            "The last sessions on it brought it no nearer. Do not go on in the same way: find the cause first, write it"
            " down in your report, then take another approach."
        )
    if others := [id for id in _workable(situation) if id != focus]:
        parts.append(f"When it is met and you have room, go on with the next of these: {', '.join(others)}.")
    return "\n\n".join(parts)


def _question(situation: Situation) -> tuple[str, str]:
    """Return a criterion and the question about it that only the user can answer; two empty texts without one."""
    state, failing, unproven = situation.state, prompt.failing(situation), _unproven(situation)
    for pair in _conflicts(state):
        names = " and ".join(f"{id} ({state.criteria[id].criteria})" for id in pair)
        return pair[0], (
            f"{names} keep breaking each other: whenever one became met, the other broke. Can both be true at once?"
            " Then say how (make tell TEXT=...). Else change the check of the one that counts less."
        )
    count = state.iterations - max(state.answered, state.best.since if state.best else 0)
    if failing and count >= WITHOUT_PROGRESS:
        return failing[0], (
            f"{count} sessions in a row made no more criteria true than were true before: what one fixes, another"
            f" breaks. Not met now: {', '.join(failing)}. What do they have in common, and which should come first?"
        )
    if _workable(situation):
        return "", ""
    if unproven and not failing:
        return unproven[0], (
            f"Nothing here can prove {', '.join(unproven)} (no check, and no verdict of a judge), so please look at it."
            f" Is it met? Then say so: make accept ID={unproven[0]}. Else say what is missing (make tell TEXT=...), or"
            " add the shell command that shows it as `check`."
        )
    stuck, last = (failing or state.open)[0], state.last
    check = prompt.check_of(situation, stuck)
    how = f"its check fails: `{check}`. Is the check right" if check else "it is judged. Is it clear"
    ended = "" if last is None or last.kind == "ended" else f" The last session ended as {last.kind}: {last.message}"
    return stuck, (
        f"The last sessions on {stuck} ({state.criteria[stuck].criteria}) changed nothing in how {how}, and what is the"
        f" worker missing?{ended}"
    )


# --- By the LLM ---


def _is_worth_asking(situation: Situation, focus: str, when: str) -> bool:
    """Whether an LLM may know better than the rules what to do about this criterion."""
    stalls = situation.state.criteria[focus].stalls
    if not stalls and not prompt.check_of(situation, focus):
        return False  # the judge has just said what is missing
    return when == "always" or (when == "stalled" and (stalls > 0 or not prompt.goes_well(situation)))


def _ask(situation: Situation, focus: str, settings: Any) -> Plan:
    """Ask the manager LLM. focus: what the rules would choose. Raises NoAnswer."""
    system, user = prompt.for_manager(situation, settings.openrouter.max_prompt)
    question = llm.Question(
        system,
        user,
        "plan",
        TIERS[min(situation.state.criteria[focus].stalls, len(TIERS) - 1)],
        lambda content: objection(content, situation),
        situation.state.session_id,
        situation.mission.repository,
    )
    answer = llm.ask(question, settings)
    title = " ".join(answer.content["title"].split())[:TITLE] or f"Work on {answer.content['focus']}"
    return Plan(**{**answer.content, "title": title}, decided_by=answer.model, usage=answer.usage)


def objection(content: dict[str, Any], situation: Situation) -> str:
    """Return why a plan in the right shape is refused all the same, "" when it is not."""
    state = situation.state
    choices = [id for id in state.open if not state.is_set_aside(id)] or _workable(situation)
    focus, instruction, escalates = content["focus"], content["instruction"], content["strategy"] == "escalate"
    if focus not in choices:
        return f'"focus" is {focus!r}, which is not one of {", ".join(choices)}'
    if escalates and not (content.get("question") or "").strip():
        return '"strategy" is "escalate", and there is no "question"'
    if digest(instruction) == digest(""):
        return '"instruction" is empty'
    if len(json.dumps(content)) > LONGEST:
        return "it is too long: say it in fewer words"
    if digest(instruction) in state.criteria[focus].failed_instructions and not escalates:
        return f'this "instruction" was given before, word for word, and {focus} is still not met: find another way'
    return ""


def _on_the_ladder(plan: Plan, situation: Situation) -> Plan:
    """Return a plan of the LLM that is not below the ladder, and asks the user when it wants that again."""
    record = situation.state.criteria[plan.focus]
    stalled = record.stalls >= STALLS[0]
    if plan.strategy == "escalate" and (record.doubt or stalled):
        return replace(plan, session="fresh")
    question = plan.question if plan.strategy == "escalate" else None
    strategy = "retry_modified" if plan.strategy == "escalate" else plan.strategy
    if stalled:
        strategy = max(strategy, "alternative", key=STRATEGIES.index)
    session = plan.session if situation.resumable and not stalled else "fresh"
    return replace(plan, strategy=strategy, session=session, question=question)
