"""What a decision rests on, and what comes of it: the words in which the rest of the kit speaks with the manager.

    here = Situation(mission, [Standing("api", ...), ...], 7, resumable=True)
    plan = Plan("api", "Mend the API", "Mend ...")

Types alone; what is decided stands in manager.py, and what is told of it in briefing.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from asking import Bill
from mission import Mission

STRATEGIES = ("retry_modified", "alternative", "partial", "escalate")  # the ladder, lowest step first
RUNGS = (2, 4, 6)  # stalled iterations from which on another approach, setting aside, and asking a person are due
TIERS = ("economy", "standard", "strong")  # of models, the cheapest first
WORD = re.compile(r"\w+")


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
    """The useful part of what its check printed."""
    lessons: Sequence[str] = ()
    """What resolved failures like this one before, one line each."""
    failed: Sequence[str] = ()
    """`digest` of each instruction that was given for it and did not make it true."""

    @property
    def is_failing(self) -> bool:
        """Whether there is something to mend: what runs last waits for the others, what has no check for a person."""
        return self.verdict not in ("met", "unjudged")

    @property
    def is_set_aside(self) -> bool:
        """Whether so many sessions on it changed nothing that the others come first."""
        return self.stalls >= RUNGS[1]


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
    went_wrong: bool = False
    """Whether the last session failed, or broke what was met."""
    profile: str = ""
    """The repository's languages, tools and commands, one line."""
    budget: str = ""
    """What is left of the mission's limits, one line."""
    session: str = ""
    """Id of the mission's run, by which a provider keeps its cache warm."""
    sealed: Sequence[str] = ()
    """Names of what the worker may not change: paths and globs."""


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
    tier: str | None = None
    """Which of the worker's models: one of TIERS, None for what the rules say."""
    encouragement: str | None = None
    """A sentence for the worker, where it has earned or needs one."""
    question: str | None = None
    """For a person, when the strategy is "escalate"."""
    impossible: str | None = None
    """Why the manager believes that the focus can never be met; nothing follows from saying so once."""
    source: str = "rules"
    """Who decided: "rules" or the model that answered."""
    bill: Bill = field(default_factory=Bill)
    """What the decision cost."""
    avoided: int = 0
    """Calls of the LLM that were not needed: 0 or 1."""
    unreachable: bool = False
    """Whether the LLM should have decided and could not be reached."""
    until: float | None = None
    """When it can be reached again, in epoch seconds, where it says so."""


def digest(instruction: str) -> str:
    """What stays the same of an instruction that is only spaced, written or punctuated in another way."""
    return hashlib.sha256(" ".join(WORD.findall(instruction.lower())).encode("utf-8", "replace")).hexdigest()[:16]
