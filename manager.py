"""What to do next: ask the manager LLM, or decide by rule.

    plan = manager.decide(situation, settings)

Both deciders return the same `Plan`. The rules need no key and no network; they also stand in for one iteration
whenever the LLM is down, out of credit or talks nonsense, so a mission never stops because of its manager. Neither
of them decides whether a criterion is met.

The texts are in prompts/, for people to read and change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import log
import openrouter
from mission import PRIORITIES, Mission
from openrouter import NoAnswer, as_data

STRATEGIES = ("retry_modified", "alternative", "partial", "escalate")  # the ladder, lowest step first
RUNGS = (2, 4, 6)  # stalled iterations from which on another approach, setting aside, and asking a person are due
BARREN = 40  # iterations that mend one thing and break another, until a person is asked
FAILURES_SHOWN = 3  # failing checks whose output goes into a prompt
FAILURE_TAIL = 2500  # characters of each of them
TONES = {  # one sentence; what is to be done stands elsewhere
    "rising": "Well done: the last session made a criterion true that was not before.",
    "steady": "",
    "struggling": "The last session brought nothing new. Take one small step, and run its check before you finish.",
    "stuck": "Many sessions brought nothing new. Doubt what was taken for granted, and begin at the failing output.",
}
TITLE = 100  # characters of a plan's title


@dataclass(frozen=True)
class Standing:
    """One criterion as it stands now."""

    id: str
    criteria: str
    priority: str
    verdict: str
    check: str | None = None
    broken_by: str = ""
    """Who broke it, when it was met before."""
    flaky: bool = False
    """Whether its check gave different results on the same tree."""
    unconfirmed: bool = False
    """Whether it is met in the work tree alone, not in a clean checkout."""
    stalls: int = 0
    """Iterations that worked on it without any change in its failure."""
    revived: bool = False
    """Whether something else became met since it was worked on last, so that it deserves another try."""
    tail: str = ""
    """The end of its check's output."""
    lessons: Sequence[str] = ()
    """What resolved failures like this one before, one line each."""


@dataclass(frozen=True)
class Situation:
    """All that a decision rests on."""

    mission: Mission
    standings: Sequence[Standing]
    iteration: int
    """The number of the iteration that is being planned."""
    resumable: bool
    """Whether the worker has a conversation with room left."""
    last: str = "none yet"
    """How the last session ended, for people."""
    report: str = ""
    """The worker's last words."""
    tried: Sequence[str] = ()
    """One line per session, newest last."""
    commits: Sequence[str] = ()
    """The mission's last commits, one line each, newest first."""
    notes: Sequence[str] = ()
    """What a person told the worker since the last instruction."""
    told: Sequence[str] = ()
    """What the person told it before."""
    conflicts: Sequence[tuple[str, str]] = ()
    """Criteria that keep breaking each other."""
    deadlock: Sequence[tuple[str, str]] = ()
    """Those of them that went on doing so although the worker knew."""
    barren: int = 0
    """Iterations since more criteria were met than ever before."""
    morale: str = "steady"
    """rising, steady, struggling or stuck: it sets the tone, never the content."""
    lies: Sequence[str] = ()
    """What the worker said of its last session, where the checks say otherwise."""
    tampering: Sequence[str] = ()
    """What the last session changed although it is protected; it was put back."""


@dataclass
class Plan:
    """What the worker is to do next."""

    focus: str
    """Id of the criterion that it works on."""
    title: str
    """One line for the commit."""
    instruction: str
    """What it is told."""
    strategy: str = "retry_modified"
    """One of STRATEGIES."""
    session: str = "resume"
    """"resume" or "fresh"."""
    question: str | None = None
    """For a person, when the strategy is "escalate"."""
    impossible: str | None = None
    """Why the manager believes that the focus can never be met; nothing follows from saying so once."""
    source: str = "rules"
    """Who decided: "rules" or the model that answered."""
    cost_usd: float = 0.0
    """What the decision cost."""
    tokens: dict[str, int] = field(default_factory=dict)
    """input and output tokens of the decision."""
    unreachable: bool = False
    """Whether the LLM should have decided and could not be reached."""


def decide(situation: Situation, settings: Any, may_ask: bool = True) -> Plan:
    """The plan for the next session. Never fails: the rules stand in for an LLM that does.

    may_ask: False while an LLM that could not be reached is left alone for a while.
    """
    by_rule = rules(situation)
    if by_rule.strategy == "escalate" or provider(settings) == "rules" or not may_ask:
        return by_rule
    try:
        plan = ask(situation, settings)
    except NoAnswer as error:
        log.warn(f"the manager LLM did not help, the rules decide this iteration: {error}")
        return replace(by_rule, **error.bill, unreachable=isinstance(error, openrouter.Unreachable))
    focus = next(s for s in situation.standings if s.id == plan.focus)
    if focus.stalls >= RUNGS[0]:  # it may climb the ladder, not step down
        plan.strategy, plan.session = max(plan.strategy, "alternative", key=STRATEGIES.index), "fresh"
    if not situation.resumable:
        plan.session = "fresh"
    return plan


def has_judge(settings: Any) -> bool:
    """Whether an LLM judges the criteria without a check."""
    return provider(settings) == "openrouter"


def provider(settings: Any) -> str:
    """Who decides by these settings: "openrouter" or "rules"."""
    return str(settings.manager.provider or ("openrouter" if settings.openrouter.api_key else "rules"))


# --------------------------------------------------------------------------------------------------------
# By rule
# --------------------------------------------------------------------------------------------------------


def rules(situation: Situation) -> Plan:
    """The most important unmet criterion, by the ladder: the same approach, another one, others first, a person."""
    unmet = [s for s in situation.standings if s.verdict != "met"]
    # Of the unjudged, what runs last waits for the others, and what has no check waits for a person.
    failing = [s for s in unmet if s.verdict != "unjudged"]
    open_ones = _open(failing)
    if situation.deadlock:
        return _ask_which(situation)
    if situation.barren >= BARREN and failing:
        return _ask_what_stands_in_the_way(failing, situation.barren)
    if not open_ones:
        return _escalate(failing or [s for s in unmet if s.check is None] or unmet, situation.last)
    focus = min(open_ones, key=lambda s: (PRIORITIES.index(s.priority), not s.broken_by))
    strategy = "alternative" if focus.stalls >= RUNGS[0] else "retry_modified"
    if strategy == "retry_modified" and any(map(_set_aside, failing)):
        strategy = "partial"
    session = "resume" if situation.resumable and strategy != "alternative" else "fresh"
    title = " ".join(f"{focus.id}: {focus.criteria}".split())[:TITLE]
    return Plan(focus.id, title, _instruction(focus, strategy, situation), strategy, session)


def _set_aside(standing: Standing) -> bool:
    return standing.stalls >= RUNGS[1]


def _open(standings: Sequence[Standing]) -> list[Standing]:
    """What may be worked on: what is not set aside; when there is none, what deserves another try."""
    open_ones = [s for s in standings if not _set_aside(s)]
    return open_ones or [s for s in standings if s.revived and s.stalls < RUNGS[2]]


def _instruction(focus: Standing, strategy: str, situation: Situation) -> str:
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
    aside = [s.id for s in situation.standings if s.verdict not in ("met", "unjudged") and _set_aside(s)]
    if aside := [id for id in aside if id != focus.id]:
        parts.append(f"Leave alone for now, since many sessions on it changed nothing: {', '.join(aside)}.")
    if green := [s.id for s in situation.standings if s.verdict == "met"]:
        parts.append(f"These are met and have to stay met: {', '.join(green)}.")
    waiting = [s.id for s in situation.standings if s.verdict not in ("met", "unjudged") and s is not focus]
    if others := [id for id in waiting if id not in aside]:
        parts.append(f"When it is met and you have room, go on with the next of these: {', '.join(others)}.")
    return "\n\n".join(parts)


def _how_proven(standing: Standing) -> str:
    if standing.check is None:
        return "It has no check: a judge reads the files that git tracks, and closes it only by quotes from them."
    return f"Its check is this command, run in the repository's root; exit code 0 means met:\n\n    {standing.check}"


def _ask_which(situation: Situation) -> Plan:
    """Criteria that break each other again and again are for a person to weigh."""
    first, second = situation.deadlock[0]
    known = {s.id: s for s in situation.standings}
    question = (
        f"{first} ({known[first].criteria}) and {second} ({known[second].criteria}) keep breaking each other: whenever"
        " one became met, the other broke. Can both be true at once? Then say how (make tell TEXT=...). Else change the"
        " check of the one that counts less."
    )
    return Plan(first, f"Ask about {first} and {second}", question, "escalate", "fresh", question)


def _ask_what_stands_in_the_way(failing: Sequence[Standing], barren: int) -> Plan:
    worst = min(failing, key=lambda s: PRIORITIES.index(s.priority))
    question = (
        f"{barren} sessions in a row made no more criteria true than were true before: what one mends, another breaks."
        f" Not met now: {', '.join(s.id for s in failing)}. What do they have in common, and which should come first?"
    )
    return Plan(worst.id, "Ask what stands in the way", question, "escalate", "fresh", question)


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
    return Plan(worst.id, f"Ask about {worst.id}", question, "escalate", "fresh", question)


# --------------------------------------------------------------------------------------------------------
# By the LLM
# --------------------------------------------------------------------------------------------------------


def ask(situation: Situation, settings: Any) -> Plan:
    """One call of the manager LLM. Raises NoAnswer for everything that is not a plan for one of the open criteria."""
    user = _fill("situation.md", _parts(situation))
    answer = openrouter.ask(_system_prompt(situation.mission), user, "plan", settings)
    choices = [s.id for s in _open([s for s in situation.standings if s.verdict != "met"])]
    focus = answer.content["focus"]
    if focus not in choices:
        raise NoAnswer(f"it wants to work on {focus!r}, which is not one of {', '.join(choices)}", answer.bill)
    return Plan(**answer.content, **answer.bill, source=answer.model)


# --------------------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------------------


def worker_prompt(situation: Situation, plan: Plan) -> str:
    """What the worker reads: everything for a fresh session, what is new for one that goes on.

    The mission's own text is in it as it is, also where it looks like a secret: the work may depend on it.
    """
    notes = situation.notes if plan.session == "resume" else (*situation.told, *situation.notes)
    parts = {**_parts(situation), "notes": _notes(notes), "instruction": plan.instruction}
    return _fill("resume.md" if plan.session == "resume" else "fresh.md", parts)


def _system_prompt(mission: Mission) -> str:
    return _fill("manager.md", {**_mission_parts(mission), "repository": str(mission.repository)})


def _mission_parts(mission: Mission) -> dict[str, str]:
    constraints = "\n".join(f"- {item}" for item in mission.constraints) or "- none"
    return {
        "title": mission.title,
        "description": mission.description,
        "context": mission.context,
        "constraints": constraints,
        "setup": f"A fresh checkout is made ready with: {mission.setup}" if mission.setup else "",
    }


def _parts(situation: Situation) -> dict[str, str]:
    return {
        **_mission_parts(situation.mission),
        "iteration": str(situation.iteration),
        "criteria": "\n".join(map(_line, situation.standings)),
        "failures": "\n".join(map(_failure, _failing(situation.standings))),
        "last": as_data(situation.last[:FAILURE_TAIL]),
        "report": as_data(situation.report[-FAILURE_TAIL:]),
        "feedback": _feedback(situation),
        "tried": as_data("\n".join(f"- {line}" for line in situation.tried)) or "- nothing yet",
        "commits": as_data("\n".join(f"- {line}" for line in situation.commits)) or "- none yet",
        "lessons": as_data("\n".join(f"- {line}" for s in situation.standings for line in s.lessons)) or "- none",
        "notes": _notes(situation.notes),
    }


def _notes(notes: Sequence[str]) -> str:
    return "From the person who runs this mission:\n\n" + "\n\n".join(notes) if notes else ""


def _feedback(situation: Situation) -> str:
    """What the last session has to hear of its report, and of what it touched."""
    said = "\n".join(f"- {as_data(line)}" for line in situation.lies)
    touched = "\n".join(f"- {as_data(line)}" for line in situation.tampering)
    pairs = ", ".join(f"{first} and {second}" for first, second in situation.conflicts)
    parts = (
        TONES[situation.morale],
        f"In conflict so far: {pairs}. When one became met, the other broke. Find what they share, and make both true."
        if pairs
        else "",
        f"The last report said what is not so:\n<data>\n{said}\n</data>" if said else "",
        "What is protected was changed. It counts as it was before, and the change is on record. Change the work, not"
        f" what proves it:\n<data>\n{touched}\n</data>"
        if touched
        else "",
    )
    return "\n\n".join(part for part in parts if part)


def _line(standing: Standing) -> str:
    regressed = f", was met before: {standing.broken_by}" if standing.broken_by else ""
    odd = ", only in the work tree" * standing.unconfirmed + ", flaky" * standing.flaky
    stalled = f", sessions on it without a change: {standing.stalls}" if standing.stalls else ""
    aside = ", set aside for now" if _set_aside(standing) else ""
    check = f"\n  check: {standing.check}" if standing.check else ""
    state = f"{standing.verdict}{regressed}{odd}{stalled}{aside}"
    return f"- {standing.id} ({standing.priority}): {standing.criteria} [{state}]{check}"


def _failing(standings: Sequence[Standing]) -> list[Standing]:
    failing = [s for s in standings if s.verdict not in ("met", "unjudged") and s.tail.strip()]
    return sorted(failing, key=lambda s: PRIORITIES.index(s.priority))[:FAILURES_SHOWN]


def _failure(standing: Standing) -> str:
    return f"The end of the output of check {standing.id}:\n<data>\n{as_data(standing.tail[-FAILURE_TAIL:])}\n</data>"


def _fill(name: str, parts: dict[str, str]) -> str:
    """A text of prompts/, without the gaps that empty parts leave. Raises KeyError for a part that does not exist."""
    text = "\n".join(line.rstrip() for line in openrouter.fill(name, parts).splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
