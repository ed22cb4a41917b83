"""What the manager LLM and the worker are told: the texts of prompts/, filled from the situation.

    system, user = briefing.for_manager(here, settings.openrouter.max_prompt)
    text = briefing.for_worker(here, plan)

The LLM's prompt begins with what stays the same all through the mission, so that providers can cache it, and stays
below its size however old the mission is: CUT says what gives way first. What happened, and with it the template, is
chosen here; what follows from it is decided in manager.py.

What is not covered: the worker's prompt has no limit of its own. Its mission is told in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import prompt
from mission import PRIORITIES, MissionError
from prompt import HEAD, RESERVE, TAIL, as_data, fill
from situation import Plan, Situation, Standing

LEAST = 8_000  # bytes of the LLM's prompt, whatever the settings say: below, nothing could be decided
FAILURES = 3  # failing checks whose output is shown
FAILURE = 2_500  # bytes of each of them
LISTED = 12  # criteria that are not met whose words are shown while things go well; of the others the names
RECENT = 2  # sessions told of while things go well; of more when they do not
TONES = {  # one sentence; what is to be done stands elsewhere
    "rising": "Well done: the last session made a criterion true that was not before.",
    "steady": "",
    "struggling": "The last session brought nothing new. Take one small step, and run its check before you finish.",
    "stuck": "Many sessions brought nothing new. Doubt what was taken for granted, and begin at the failing output.",
}
CUT = (  # what the LLM's prompt loses first when it is too long: part, bytes that stay, which end of it
    ("commits", 0, HEAD),
    ("lessons", 600, HEAD),
    ("tried", 800, TAIL),
    ("report", 800, TAIL),
    ("failure 3", 0, HEAD),
    ("failure 2", 0, HEAD),
    ("context", 1_000, HEAD),
    ("description", 3_000, HEAD),
    ("failure 1", 1_000, HEAD),
    ("criteria", 3_000, HEAD),
    ("constraints", 1_000, HEAD),
    ("feedback", 800, HEAD),
    ("notes", 1_000, TAIL),
    *((name, 0, HEAD) for name in ("lessons", "tried", "report", "context", "profile", "met", "setup", "constraints")),
    *((name, 0, HEAD) for name in ("description", "last", "feedback", "notes", "failure 1", "criteria", "title")),
)
MISSION = ("title", "description", "context", "constraints", "setup")
SITUATION = ("progress", "criteria", "last", "feedback", "tried", "commits", "lessons", "notes", "failures")
WORKER = (*MISSION, "criteria", "feedback", "notes", "instruction", "failures")
TEMPLATES = ("task_initiation", "progress_check", "motivational_boost", "error_recovery", "session_transition")
PLACEHOLDERS: dict[str, Sequence[str]] = {
    "system.md": (*MISSION, "repository", "profile"),
    "situation.md": SITUATION,
    **{f"{name}.md": (*SITUATION, "situation") for name in TEMPLATES},
    "fresh.md": (*WORKER, "tried", "commits", "profile"),
    "resume.md": WORKER,
    "judge.md": (),
    "dod_validation.md": ("title", "description", "constraints", "criteria", "files", "diff", "contents"),
    "answer.md": ("schema",),
    "repair.md": ("problem",),
}


def require_texts() -> None:
    """Raise MissionError, naming file and line, where a text of prompts/ has a placeholder that nothing fills."""
    if problems := [line for name, known in PLACEHOLDERS.items() for line in prompt.problems(name, known)]:
        raise MissionError(problems)


# --------------------------------------------------------------------------------------------------------
# For the manager LLM
# --------------------------------------------------------------------------------------------------------


def for_manager(here: Situation, most: int) -> tuple[str, str]:
    """The system's and the user's message of a question for the next step, together below `most` bytes."""
    pieces, room = _pieces(here), max(most, LEAST) - RESERVE
    limit = room
    while True:
        system, user = _assemble(here, prompt.fit(pieces, CUT, room))
        over = prompt.size(system) + prompt.size(user) - limit
        if over <= 0 or room <= 0:
            return system, user
        room -= over


def template(here: Situation) -> str:
    """Which of TEMPLATES fits what happened."""
    if not here.tried:
        return "task_initiation"
    if here.went_wrong or here.tampering:
        return "error_recovery"
    if here.morale in ("struggling", "stuck"):
        return "motivational_boost"
    return "progress_check" if here.resumable else "session_transition"


def goes_well(here: Situation) -> bool:
    """Whether the last sessions brought the mission forward, so that little has to be told of them."""
    return not (here.went_wrong or here.conflicts or here.morale in ("struggling", "stuck"))


def _pieces(here: Situation) -> dict[str, str]:
    """All that may be told, masked where it is a stranger's and unable to close a fence, still without headings."""
    mission, outputs = here.mission, [as_data(f"$ {s.check}\n{s.tail}" if s.check else s.tail) for s in shown(here)]
    well = goes_well(here)
    return {
        "title": mission.title,
        "description": mission.description,
        "context": mission.context,
        "constraints": "\n".join(f"- {item}" for item in mission.constraints),
        "setup": mission.setup or "",
        "profile": as_data(here.profile),
        "criteria": "\n".join(_open_lines(here)),
        "met": ", ".join(s.id for s in here.standings if s.verdict == "met"),
        "last": as_data(here.last[:FAILURE]),
        "report": as_data(prompt.cut(here.report, FAILURE, TAIL)),
        "feedback": _feedback(here),
        "tried": as_data(_list(here.tried[-RECENT:] if well else here.tried)),
        "commits": "" if well else as_data(_list(here.commits)),
        "lessons": as_data(_list(line for s in here.standings for line in s.lessons)),
        "notes": "\n\n".join(here.notes),
        **{f"failure {n}": (outputs[n - 1 : n] or [""])[0] for n in range(1, FAILURES + 1)},
    }


def _assemble(here: Situation, pieces: dict[str, str]) -> tuple[str, str]:
    """The two messages from these pieces."""
    met, budget = pieces["met"], f"\n\n{here.budget}" if here.budget else ""
    printed = [(s.id, pieces[f"failure {n}"]) for n, s in enumerate(shown(here), 1)]
    failures = "\n\n".join(f"{id}, at its last check:{_fenced(text)}" for id, text in printed if text)
    said = f"{pieces['last']}\n\n{pieces['report']}".strip()
    parts = {
        "progress": f"{_progress(here)}{f' Met: {met}.' if met else ''}{budget}",
        "criteria": f"Not met:\n{pieces['criteria']}",
        "last": f"How the last session ended, and what it said:{_fenced(said)}" if here.tried else "",
        "feedback": pieces["feedback"],
        "tried": f"Tried so far, newest last:{_fenced(pieces['tried'])}" if pieces["tried"] else "",
        "commits": f"The last commits:{_fenced(pieces['commits'])}" if pieces["commits"] else "",
        "lessons": f"What resolved failures like these before:{_fenced(pieces['lessons'])}"
        if pieces["lessons"]
        else "",
        "notes": _notes(pieces["notes"]),
        "failures": failures,
    }
    constraints = f"Constraints:\n{pieces['constraints']}" if pieces["constraints"] else ""
    setup = f"A fresh checkout is made ready with: {pieces['setup']}" if pieces["setup"] else ""
    head = {**{name: pieces[name] for name in MISSION}, "constraints": constraints, "setup": setup}
    profile = f"It holds: {pieces['profile']}" if pieces["profile"] else ""
    system = fill("system.md", {**head, "repository": here.mission.repository.name, "profile": profile})
    user = fill(f"{template(here)}.md", {**parts, "situation": fill("situation.md", parts)})
    return system, user


def _progress(here: Situation) -> str:
    met = sum(s.verdict == "met" for s in here.standings)
    return f"{met} of {len(here.standings)} criteria are met; morale: {here.morale}."


def _open_lines(here: Situation) -> list[str]:
    """What is not met, the most pressing first; while things go well, of many only the first ones in words."""
    failing = in_order(here.standings)
    whole = LISTED if here.tried and goes_well(here) else len(failing)
    later = ", ".join(s.id for s in failing[whole:])
    return [
        *map(_short_line, failing[:whole]),
        *([f"- later: {later}"] if later else []),
        *(_short_line(s) for s in here.standings if s.verdict == "unjudged"),
    ]


def shown(here: Situation) -> list[Standing]:
    """Those whose check and output are shown: what failed most pressingly."""
    failing = in_order(here.standings)
    return [s for s in failing if s.tail.strip()][:FAILURES] or failing[:1]


def _short_line(standing: Standing) -> str:
    said = [standing.priority] if standing.priority != "medium" else []
    said += [standing.verdict] if standing.verdict != "unmet" else []
    state = ", ".join([*said, *_oddities(standing)])
    return f"- {standing.id}: {standing.criteria}{f' [{state}]' if state else ''}"


# --------------------------------------------------------------------------------------------------------
# For the worker
# --------------------------------------------------------------------------------------------------------


def for_worker(here: Situation, plan: Plan) -> str:
    """What the worker reads: everything for a fresh session, what is new for one that goes on.

    The mission's own text is in it as it is, also where it looks like a secret: the work may depend on it.
    """
    fresh, mission = plan.session != "resume", here.mission
    notes = (*here.told, *here.notes) if fresh else here.notes
    said = "\n\n".join(part for part in (plan.encouragement or TONES[here.morale], _feedback(here)) if part)
    parts = {
        "title": mission.title,
        "description": mission.description,
        "context": mission.context,
        "constraints": _list(mission.constraints) or "- none",
        "setup": f"A fresh checkout is made ready with: {mission.setup}" if mission.setup else "",
        "criteria": "\n".join(map(_line, here.standings)),
        "feedback": said,
        "notes": _notes("\n\n".join(notes)),
        "instruction": plan.instruction,
        "failures": "\n\n".join(
            f"The output of check {s.id}, as far as it matters:{_fenced(as_data(s.tail))}"
            for s in [s for s in in_order(here.standings) if s.tail.strip()][:FAILURES]
        ),
    }
    if not fresh:
        return fill("resume.md", parts)
    tried = as_data(_list(here.tried)) or "- nothing yet"
    commits = as_data(_list(here.commits)) or "- none yet"
    profile = f"The repository: {as_data(here.profile)}" if here.profile else ""
    return fill("fresh.md", {**parts, "tried": tried, "commits": commits, "profile": profile})


def _line(standing: Standing) -> str:
    check = f"\n  check: {standing.check}" if standing.check else ""
    state = ", ".join([standing.verdict, *_oddities(standing)])
    return f"- {standing.id} ({standing.priority}): {standing.criteria} [{state}]{check}"


# --------------------------------------------------------------------------------------------------------
# For both
# --------------------------------------------------------------------------------------------------------


def in_order(standings: Iterable[Standing]) -> list[Standing]:
    """What fails, the most pressing first: not set aside, by its priority, broken by somebody."""
    failing = (s for s in standings if s.is_failing)
    return sorted(failing, key=lambda s: (s.is_set_aside, PRIORITIES.index(s.priority), not s.broken_by))


def _oddities(standing: Standing) -> list[str]:
    """What there is to know of a criterion besides its verdict."""
    stalled = f"sessions on it without a change: {standing.stalls}"
    found = (
        (standing.broken_by, f"was met before: {standing.broken_by}"),
        (standing.unconfirmed, "only in the work tree"),
        (standing.flaky, "flaky"),
        (standing.stalls, stalled),
        (standing.is_failing and standing.is_set_aside, "set aside for now"),
    )
    return [text for holds, text in found if holds]


def _feedback(here: Situation) -> str:
    """What has to be heard of the last report, and of what the session touched."""
    pairs = ", ".join(f"{first} and {second}" for first, second in here.conflicts)
    parts = (
        f"In conflict so far: {pairs}. When one became met, the other broke. Find what they share, and make both true."
        if pairs
        else "",
        f"The last report said what is not so:{_fenced(as_data(_list(here.lies)))}" if here.lies else "",
        "What is protected was changed. It counts as it was before, and the change is on record. Change the work, not"
        f" what proves it:{_fenced(as_data(_list(here.tampering)))}"
        if here.tampering
        else "",
    )
    return "\n\n".join(part for part in parts if part)


def _notes(text: str) -> str:
    return f"From the person who runs this mission:\n\n{text}" if text else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _fenced(text: str, nothing: str = "") -> str:
    return f"\n<data>\n{text or nothing}\n</data>"
