"""What to do next: ask the manager LLM, or decide by rule.

    plan = manager.decide(here, settings)

Both deciders return the same `Plan`. The rules need no key and no network; they also stand in for one iteration
whenever the LLM is down, out of credit or talks nonsense, so a mission never stops because of its manager. Neither
of them decides whether a criterion is met.

The LLM is asked where that is worth its money (`manager.when`), by the cheapest model that serves (tiers.py). What it
is told stands in briefing.py, and in prompts/, for people to read and change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import catalog
import llm
import log
import tiers
from asking import NoAnswer, Unreachable
from briefing import for_manager
from llm import Saved
from mission import PRIORITIES, MissionError
from prompt import as_data
from situation import RUNGS, STRATEGIES, TIERS, Plan, Situation, Standing, digest

BARREN = 40  # iterations that mend one thing and break another, until a person is asked
LONGEST = 20_000  # bytes of an instruction in the state, where each letter that is not Latin takes six
TITLE = 100  # characters of a plan's title
CHANGE = (  # what must not be asked for of what proves the work; \s+ ends it
    r"\b(?:edit|change|modify|update|delete|remove|rename|move|replace|rewrite|weaken|relax|loosen|skip|disable|bypass"
    r"|overwrite|adjust|alter|comment out|drop|empty (?:the|this|that|these|all|out)|turn off|(?:git )?rm|(?:git )?mv"
    r"|sed -i)\s+"
)
WHICH = r"the|this|that|these|its|our|a|an|any|all|whole|failing|acceptance|shell|strict"
PARTS = r"of|in|inside|from|under|files?|folder|tests?|test_\w+(?:\(\))?|cases?|assert\w*|expect\w*|lines?|values?"
SEALED = re.compile(
    rf"{CHANGE}(?:(?:{WHICH}|{PARTS})\s+)*[`'\"(*<]*(?P<path>[\w.@+*/-]+)(?![\w.@+*/-])(?!\S*\s+from\b)", re.I
)
REFEREE = re.compile(
    rf"{CHANGE}(?:(?:{WHICH})\s+)*(?:definition of done|mission file|criteri(?:on|a)\b|checks?\b)"
    r"(?!\s+(?:for|in|on|at|that|which|whether|if|when|where|before|after|against|from|with|by|into|used)\b)",
    re.I,
)
ELSEWHERE = re.compile(r"\w\.\w|\w\(\)")  # a file or a function: whoever names one means a check in the code
SPARED = re.compile(
    r"\b(?:no|not|never|nor|nobody|without|cannot|avoid|forb\w+|instead of|rather than|tried|wanted)\b|n't\b", re.I
)


def decide(here: Situation, settings: Any, may_ask: bool = True, saved: Saved | None = None) -> Plan:
    """The plan for the next session. Never fails: the rules stand in for an LLM that does.

    may_ask: False while an LLM that could not be reached is left alone for a while. saved: earlier answers, see
    llm.ask.
    """
    by_rule = rules(here)
    if by_rule.strategy == "escalate" or provider(settings) == "rules" or not may_ask:
        return by_rule
    focus = next(s for s in here.standings if s.id == by_rule.focus)
    if not _is_worth_asking(here, focus, settings.manager.when):
        return replace(by_rule, avoided=1)
    try:
        plan = ask(here, settings, focus.stalls, saved)
    except MissionError as error:  # a text of prompts/ was edited meanwhile
        log.warn(f"the manager LLM cannot be asked, the rules decide this iteration: {error}")
        return by_rule
    except NoAnswer as error:
        log.warn(f"the manager LLM did not help, the rules decide this iteration: {error}")
        until = error.until if isinstance(error, Unreachable) else None
        return replace(by_rule, bill=error.bill, unreachable=isinstance(error, Unreachable), until=until)
    focus = next(s for s in here.standings if s.id == plan.focus)
    if plan.strategy != "escalate":
        plan.question = None  # whatever it holds
    if focus.stalls >= RUNGS[0]:  # it may climb the ladder, not step down
        plan.strategy, plan.session = max(plan.strategy, "alternative", key=STRATEGIES.index), "fresh"
    elif plan.strategy == "escalate":
        plan.strategy = "retry_modified"  # a person is asked when it asks again after this session, see loop.plan
    if not here.resumable:
        plan.session = "fresh"
    return plan


def _is_worth_asking(here: Situation, focus: Standing, when: str) -> bool:
    """Whether an LLM may know better than the rules what to do about this criterion."""
    if focus.check is None and not focus.stalls:
        return False  # the judge has just said, of the tree itself, what is missing
    stalled = focus.stalls or here.went_wrong or here.conflicts or here.morale in ("struggling", "stuck")
    return when == "always" or (when == "stalled" and bool(stalled))


def has_judge(settings: Any) -> bool:
    """Whether an LLM judges the criteria without a check."""
    return provider(settings) != "rules"


def warnings(settings: Any) -> list[str]:
    """What a person should know of the models that are named: gone, about to go, unfit. Looks at the list of models."""
    if provider(settings) != "openrouter":
        return []
    return catalog.warnings(settings, dict.fromkeys(model for tier in TIERS for model in models(tier, settings)))


def models(tier: str, settings: Any) -> Sequence[str]:
    """The models that are asked, the first choice first; none for Claude Code's own choice."""
    if provider(settings) == "claude":
        return [model for model in tiers.for_worker(tier, 0, settings) if model]
    return tiers.for_manager(tier, settings)


def provider(settings: Any) -> str:
    """Who decides by these settings: "openrouter", "claude" or "rules"."""
    router = settings.openrouter
    is_there = router.api_key or not catalog.OFFICIAL.match(router.base_url)  # another server may need no key
    return str(settings.manager.provider or ("openrouter" if is_there else "rules"))


# --------------------------------------------------------------------------------------------------------
# By rule
# --------------------------------------------------------------------------------------------------------


def rules(here: Situation) -> Plan:
    """The most important unmet criterion, by the ladder: the same approach, another one, others first, a person."""
    unmet = [s for s in here.standings if s.verdict != "met"]
    failing = [s for s in unmet if s.is_failing]
    open_ones = _open(failing)
    if here.deadlock:
        return _ask_which(here)
    if here.barren >= BARREN and failing:
        return _ask_what_stands_in_the_way(failing, here.barren)
    if not open_ones:
        return _escalate(failing or [s for s in unmet if s.check is None] or unmet, here.last)
    focus = min(open_ones, key=lambda s: (PRIORITIES.index(s.priority), not s.broken_by))
    strategy = "alternative" if focus.stalls >= RUNGS[0] else "retry_modified"
    if strategy == "retry_modified" and any(s.is_set_aside for s in failing):
        strategy = "partial"
    session = "resume" if here.resumable and strategy != "alternative" else "fresh"
    title = " ".join(f"{focus.id}: {focus.criteria}".split())[:TITLE]
    return Plan(focus.id, title, _instruction(focus, strategy, here), strategy, session)


def _open(standings: Sequence[Standing]) -> list[Standing]:
    """What may be worked on: what is not set aside; when there is none, what deserves another try."""
    open_ones = [s for s in standings if not s.is_set_aside]
    return open_ones or [s for s in standings if s.revived and s.stalls < RUNGS[2]]


def _instruction(focus: Standing, strategy: str, here: Situation) -> str:
    parts = [f'Make the criterion "{focus.criteria}" ({focus.id}) true.']
    if focus.broken_by:
        parts.append(
            f"It was met before and is not any more: {focus.broken_by}. Find what in that change did it, and mend that."
        )
    parts.append(_how_proven(focus))
    if focus.unconfirmed:
        parts.append(
            "In this folder it may look met, but it is not in a clean checkout of the commit. What it needs has to be"
            " in files that git tracks, or has to be made by the check itself or by the mission's `setup`."
        )
    if focus.flaky:
        parts.append(
            "Its check gives different results on the same tree. Find what makes it so (time, order, chance, leftovers,"
            " the network) and take that away; it has to pass three times in a row."
        )
    if strategy == "alternative":
        parts.append(
            "The last sessions on it brought it no nearer. Do not go on in the same way:"
            " find the cause first, write it down in your report, then take another approach."
        )
    if focus.lessons:
        told = as_data("\n".join(f"- {line}" for line in focus.lessons))
        parts.append(f"Failures like this one were resolved before in this repository:\n<data>\n{told}\n</data>")
    aside = [s.id for s in here.standings if s.is_failing and s.is_set_aside]
    if aside := [id for id in aside if id != focus.id]:
        parts.append(f"Leave alone for now, since many sessions on it changed nothing: {', '.join(aside)}.")
    if green := [s.id for s in here.standings if s.verdict == "met"]:
        parts.append(f"These are met and have to stay met: {', '.join(green)}.")
    waiting = [s.id for s in here.standings if s.is_failing and s is not focus]
    if others := [id for id in waiting if id not in aside]:
        parts.append(f"When it is met and you have room, go on with the next of these: {', '.join(others)}.")
    return "\n\n".join(parts)


def _how_proven(standing: Standing) -> str:
    if standing.check is None:
        return "It has no check: a judge reads the files that git tracks, and closes it only by quotes from them."
    return f"Its check is this command, run in the repository's root; exit code 0 means met:\n\n    {standing.check}"


def _ask_which(here: Situation) -> Plan:
    """Criteria that break each other again and again are for a person to weigh."""
    first, second = here.deadlock[0]
    known = {s.id: s for s in here.standings}
    question = (
        f"{first} ({known[first].criteria}) and {second} ({known[second].criteria}) keep breaking each other: whenever"
        " one became met, the other broke. Can both be true at once? Then say how (make tell TEXT=...). Else change the"
        " check of the one that counts less."
    )
    return Plan(first, f"Ask about {first} and {second}", question, "escalate", "fresh", question=question)


def _ask_what_stands_in_the_way(failing: Sequence[Standing], barren: int) -> Plan:
    worst = min(failing, key=lambda s: PRIORITIES.index(s.priority))
    question = (
        f"{barren} sessions in a row made no more criteria true than were true before: what one mends, another breaks."
        f" Not met now: {', '.join(s.id for s in failing)}. What do they have in common, and which should come first?"
    )
    return Plan(worst.id, "Ask what stands in the way", question, "escalate", "fresh", question=question)


def _escalate(stuck: Sequence[Standing], last: str) -> Plan:
    """last: how the last session ended."""
    ended = "" if last.startswith("ended") else f" The last session did not even end well: {last}"
    worst = min(stuck, key=lambda s: PRIORITIES.index(s.priority))
    if worst.verdict == "unjudged":
        ids = ", ".join(s.id for s in stuck)
        question = (
            f"Nothing here can prove {ids} (no check, and no verdict of a judge), so a person has to look at it. Is it"
            f" met? Then say so: make accept ID={worst.id}. Or add the shell command that shows it as `check`."
        )
    else:
        how = f"its check fails: `{worst.check}`. Is the check right" if worst.check else "it is judged. Is it clear"
        question = (
            f"The last sessions on {worst.id} ({worst.criteria}) changed nothing in how {how}, and what is the"
            f" worker missing?{ended}"
        )
    return Plan(worst.id, f"Ask about {worst.id}", question, "escalate", "fresh", question=question)


# --------------------------------------------------------------------------------------------------------
# By the LLM
# --------------------------------------------------------------------------------------------------------


def ask(here: Situation, settings: Any, stalls: int = 0, saved: Saved | None = None) -> Plan:
    """One question to the manager LLM. Raises NoAnswer for everything that is not a plan that can be carried out.

    stalls: of the criterion that the rules would choose.
    """
    system, user = for_manager(here, settings.openrouter.max_prompt)
    tier = tiers.planning(here, stalls)
    question = llm.Question(
        system,
        user,
        "plan",
        models=models(tier, settings),
        objection=lambda content: objection(content, here),
        session=here.session,
        root=here.mission.repository,
    )
    answer = llm.ask(question, settings, saved)
    content = {**answer.content, "title": " ".join(answer.content["title"].split())}
    return Plan(**content, bill=answer.bill, source=answer.model, avoided=int(answer.is_saved))


def objection(content: dict[str, Any], here: Situation) -> str:
    """Why a plan in the right shape is refused all the same; "" when it is not."""
    choices = [s.id for s in _open([s for s in here.standings if s.verdict != "met"])]
    focus = next((s for s in here.standings if s.id == content["focus"]), None)
    if focus is None or focus.id not in choices:
        return f'"focus" is {content["focus"]!r}, which is not one of {", ".join(choices)}'
    if content["strategy"] == "escalate" and focus.stalls >= RUNGS[0]:
        return ""
    if digest(content["instruction"]) == digest(""):
        return '"instruction" is empty'
    if len(json.dumps(content["instruction"])) > LONGEST:
        return '"instruction" is too long: say it in fewer words'
    doubts = content.get("impossible") or content["strategy"] == "escalate"
    if digest(content["instruction"]) in focus.failed and not doubts:
        return f'this "instruction" was given before, word for word, and {focus.id} is still not met: find another way'
    if named := _touches_referee(content["instruction"], here.sealed):
        return f'"instruction" asks to change what proves the work ({named}); change the work instead'
    return ""


def _touches_referee(instruction: str, sealed: Sequence[str]) -> str:
    """What of the referee an instruction plainly asks to change; "" when it does not.

    sealed: paths and globs. What is missed costs a session, since a change is undone; a false alarm costs the plan.
    """
    for sentence in re.split(r"[;\n!?]|\.(?:\s|$)", instruction):
        for found in (*SEALED.finditer(sentence), *REFEREE.finditer(sentence)):
            path, before = found.groupdict().get("path"), sentence[: found.start()]
            meant = _is_sealed(path, sealed) if path else not ELSEWHERE.search(before)
            if meant and not SPARED.search(before):
                return str(path or found[0])
    return ""


def _is_sealed(path: str, sealed: Sequence[str]) -> bool:
    """Whether a path that somebody wrote is protected, or is a folder of which all is."""
    path = path.removeprefix("./").rstrip("/")
    globs = (glob.removeprefix("./").rstrip("/") for glob in sealed)
    return any(re.fullmatch(f"{_regex(glob)}(/.*)?", path) or path == glob.rstrip("/*") for glob in globs)


def _regex(glob: str) -> str:
    """What a glob of `protect` means: a * is within one folder, ** any number of them, none included."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob))
