"""What the manager LLM and the worker are told: the texts of prompts/, filled from the situation.

    system, user = briefing.for_manager(here, settings.openrouter.max_prompt)
    text = briefing.for_worker(here, plan)

The LLM's prompt begins with what stays the same all through the mission, so that providers can cache it, and stays
below its size however old the mission is: CUT says what gives way first. The mission has a part of the room for itself
(STABLE), so that it is cut in the same place each time. What happened, and with it the template, is chosen here; what
follows from it is decided in manager.py.

What is not covered: the worker's prompt has no limit of its own. Its mission is told in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import personal
import prompt
from mission import PRIORITIES, MissionError
from prompt import HEAD, TAIL, as_data, fill
from situation import Plan, Situation, Standing

STABLE = 0.5  # of the LLM's prompt, at most, is the mission: what would differ from time to time is not cached
FAILURES = 3  # failing checks whose output is shown
NEXT = 2  # of them while things go well
FAILURE = 2_500  # bytes of each of them
LISTED = 8  # criteria that are not met whose words are shown while things go well; of the others the names
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
    ("tampering", 800, HEAD),
    ("lies", 800, HEAD),
    ("notes", 1_000, TAIL),
    *((name, 0, HEAD) for name in ("lessons", "tried", "report", "context", "profile", "protected", "met")),
    *((name, 0, HEAD) for name in ("setup", "constraints")),
    *((name, 0, HEAD) for name in ("description", "last", "conflicts", "tampering", "lies", "notes", "failure 1")),
    *((name, 0, HEAD) for name in ("criteria", "title")),
)
MISSION = ("title", "description", "context", "constraints", "setup")
SITUATION = ("progress", "criteria", "last", "feedback", "tried", "commits", "lessons", "notes", "failures")
WORKER = (*MISSION, "criteria", "feedback", "notes", "instruction", "failures")
TEMPLATES = ("task_initiation", "progress_check", "motivational_boost", "error_recovery", "session_transition")
PLACEHOLDERS: dict[str, Sequence[str]] = {
    "system.md": (*MISSION, "repository", "profile", "protected"),
    "situation.md": SITUATION,
    **{f"{name}.md": (*SITUATION, "situation") for name in TEMPLATES},
    "fresh.md": (*WORKER, "tried", "commits", "profile"),
    "resume.md": WORKER,
    "judge.md": (),
    "dod_validation.md": ("title", "description", "constraints", "criteria", "files", "diff", "contents"),
    "answer.md": ("schema",),
    "draft.md": (),
    "wish.md": ("words", "profile", "files"),
    "repair.md": ("problem",),
}
NEEDED: dict[str, Sequence[str]] = {  # placeholders without any of which a text would be sent in vain
    "system.md": ("title",),
    "situation.md": ("criteria",),
    **{f"{name}.md": ("situation", "criteria") for name in TEMPLATES},
    "fresh.md": ("instruction",),
    "resume.md": ("instruction",),
    "dod_validation.md": ("criteria",),
    "answer.md": ("schema",),
    "wish.md": ("words",),
    "repair.md": ("problem",),
}


def require_texts() -> None:
    """Raise MissionError, naming file and line, where a text of prompts/ cannot be filled or lost what it is for."""
    texts = ((name, known, NEEDED.get(name, ())) for name, known in PLACEHOLDERS.items())
    if problems := [line for text in texts for line in prompt.problems(*text)]:
        raise MissionError(problems)


# --------------------------------------------------------------------------------------------------------
# For the manager LLM
# --------------------------------------------------------------------------------------------------------


def for_manager(here: Situation, most: int) -> tuple[str, str]:
    """The system's and the user's message of a question for the next step, together below `most` bytes."""
    mission, pieces, room = _mission(here), _pieces(here), prompt.room(most)
    system = _within(mission, int(room * STABLE), lambda pieces: _system(here, pieces))
    return system, _within(pieces, room - prompt.size(system), lambda pieces: _user(here, pieces))


def _within(pieces: Mapping[str, str], most: int, text_of: Callable[[Mapping[str, str]], str]) -> str:
    """The text of these pieces, cut until it takes at most so many bytes; longer only when nothing is left to cut."""
    order, room = [cut for cut in CUT if cut[0] in pieces], most
    while True:
        fitted = prompt.fit(pieces, order, room)
        text = text_of(fitted)
        over = prompt.size(text) - most
        if over <= 0 or room <= 0:
            return text
        room = sum(map(prompt.size, fitted.values())) - over


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


def _mission(here: Situation) -> dict[str, str]:
    """What stays the same all through the mission. Masked before it is cut: half a secret is not found any more."""
    mission = here.mission
    pieces = {
        "title": mission.title,
        "description": mission.description,
        "context": mission.context,
        "constraints": _list(mission.constraints),
        "setup": mission.setup or "",
        "protected": ", ".join(mission.protect),
        "profile": as_data(here.profile),
    }
    return {name: _masked(text) for name, text in pieces.items()}


def _pieces(here: Situation) -> dict[str, str]:
    """What happened, masked like `_mission`, where it is a stranger's unable to close a fence; without headings."""
    well = bool(here.tried) and goes_well(here)
    printed = shown(here)[: NEXT if well else FAILURES]
    outputs = [as_data(f"$ {s.check}\n{s.tail}" if s.check else s.tail) for s in printed]
    pieces = {
        "criteria": "\n".join(_open_lines(here)),
        "met": ", ".join(s.id for s in here.standings if s.verdict == "met"),
        "last": prompt.cut(_masked(as_data(here.last)), FAILURE),
        "report": prompt.cut(_masked(as_data(here.report)), FAILURE, TAIL),
        **_feedback(here),
        # What the last session said is told anyhow.
        "tried": "" if well and here.resumable else as_data(_list(here.tried)),
        "commits": "" if well else as_data(_list(here.commits)),
        "lessons": as_data(_list(line for s in here.standings for line in s.lessons)),
        "notes": "\n\n".join((*here.told, *here.notes)),
        **{f"failure {n}": (outputs[n - 1 : n] or [""])[0] for n in range(1, FAILURES + 1)},
    }
    return {name: _masked(text) for name, text in pieces.items()}


def _masked(text: str) -> str:
    return personal.mask(prompt.plain(text))


def _system(here: Situation, pieces: Mapping[str, str]) -> str:
    """The system's message from these pieces."""
    constraints = f"Constraints:\n{pieces['constraints']}" if pieces["constraints"] else ""
    setup = f"A fresh checkout is made ready with: {pieces['setup']}" if pieces["setup"] else ""
    profile = f"It holds: {pieces['profile']}" if pieces["profile"] else ""
    protected = f"Protected: {pieces['protected']}" if pieces["protected"] else ""
    parts = {"constraints": constraints, "setup": setup, "profile": profile, "protected": protected}
    return fill("system.md", {**pieces, **parts, "repository": here.mission.repository.name})


def _user(here: Situation, pieces: Mapping[str, str]) -> str:
    """The user's message from these pieces."""
    met, budget = pieces["met"], f"\n\n{here.budget}" if here.budget else ""
    printed = [(s.id, pieces[f"failure {n}"]) for n, s in enumerate(shown(here), 1)]
    said = f"{pieces['last']}\n\n{pieces['report']}".strip()
    parts = {
        "progress": f"{_progress(here)}{f' Met: {met}.' if met else ''}{budget}",
        "criteria": f"Not met:\n{pieces['criteria']}",
        "last": _told("How the last session ended, and what it said:", said if here.tried else ""),
        "feedback": _heard(pieces),
        "tried": _told("Tried so far, newest last:", pieces["tried"]),
        "commits": _told("The last commits:", pieces["commits"]),
        "lessons": _told("What resolved failures like these before:", pieces["lessons"]),
        "notes": _notes(pieces["notes"]),
        "failures": "\n\n".join(_told(f"{id}, at its last check:", text) for id, text in printed if text),
    }
    return fill(f"{template(here)}.md", {**parts, "situation": fill("situation.md", parts)})


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
    said = "\n\n".join(part for part in (plan.encouragement or TONES[here.morale], _heard(_feedback(here))) if part)
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
            _told(f"The output of check {s.id}, as far as it matters:", as_data(s.tail))
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


def _feedback(here: Situation) -> dict[str, str]:
    """What has to be heard of the last report, and of what the session touched."""
    return {
        "conflicts": ", ".join(f"{first} and {second}" for first, second in here.conflicts),
        "lies": as_data(_list(here.lies)),
        "tampering": as_data(_list(here.tampering)),
    }


def _heard(pieces: Mapping[str, str]) -> str:
    """The pieces of `_feedback`, in words."""
    pairs = pieces["conflicts"]
    parts = (
        f"In conflict so far: {pairs}. When one became met, the other broke. Find what they share, and make both true."
        if pairs
        else "",
        _told("The last report said what is not so:", pieces["lies"]),
        _told(
            "What is protected was changed. It counts as it was before, and the change is on record. Change the work,"
            " not what proves it:",
            pieces["tampering"],
        ),
    )
    return "\n\n".join(part for part in parts if part)


def _notes(text: str) -> str:
    return f"From the person who runs this mission:\n\n{text}" if text else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _told(heading: str, data: str) -> str:
    """What a stranger said, under its heading and fenced; nothing where there is nothing."""
    return f"{heading}\n<data>\n{data}\n</data>" if data else ""
