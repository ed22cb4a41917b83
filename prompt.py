"""Every text that is sent to the worker, the manager LLM and the judge: the files of prompts/, filled.

Each part of a prompt to an LLM has a share of `max_prompt` and is cut to it; what is the same all through the mission
comes first, so that providers can cache it. The worker's prompt has no limit: it holds the whole mission.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import log
import state as states
from mission import PRIORITIES, Mission, MissionError
from proc import USAGE, Stop
from state import CriterionState, Iteration, Plan, State

FOLDER = Path(__file__).resolve().parent / "prompts"
LEAST = 8_192  # bytes of a prompt to an LLM, whatever the settings say
FIXED = 2_000  # bytes of it for the texts of prompts/ themselves
SHARE = {  # of the rest, for each part of a prompt to the manager LLM
    "title": 0.01, "repository": 0.01, "description": 0.2, "context": 0.06, "constraints": 0.05, "setup": 0.02,
    "protected": 0.02, "criteria": 0.12, "met": 0.02, "ending": 0.02, "report": 0.05, "claims": 0.01,
    "tampered": 0.02, "tried": 0.06, "lessons": 0.02, "notes": 0.04, "failures": 0.27,
}  # fmt: skip
JUDGE_SHARE = {"title": 0.01, "description": 0.08, "constraints": 0.04, "criteria": 0.27, "files": 0.1, "diff": 0.5}
CONTENTS = 0.35  # of a prompt to the judge, for all files that it asked for; the diff gives way to them
DATA = ("ending", "report", "tampered", "tried", "lessons")  # written by programs and models
SHOWN, LISTED, TRIED = 2, 8, 5  # outputs of checks, criteria in words to the manager LLM, sessions
FINE = ("ended", "turn_cap", "budget_cap")  # kinds of Outcome after which nothing has to be repaired
TONES = {  # a sentence for the worker, by morale
    "rising": "Well done: the last session made a criterion true that was not before.",
    "struggling": "The last session brought nothing new. Take one small step, and run its check before you finish.",
    "stuck": "Many sessions brought nothing new. Question what was taken for granted; begin at the failing output.",
}
TEMPLATES = ("task_initiation", "progress_check", "motivational_boost", "error_recovery", "session_transition")
TEXTS: dict[str, tuple[str, ...]] = {  # what fills each text; without the first of it, it would be sent in vain
    "system.md": tuple(SHARE),
    "situation.md": ("criteria", "progress", *SHARE),
    **{f"{name}.md": ("situation",) for name in TEMPLATES},
    "fresh.md": ("instruction", "tone", *SHARE),
    "resume.md": ("instruction", "tone", *SHARE),
    "judge.md": (),
    "dod_validation.md": ("criteria", "contents", *JUDGE_SHARE),
    "answer.md": ("schema",),
    "repair.md": ("problem",),
}
STUCK = 6  # sessions without a newly met criterion, until morale is called stuck
MAX_NOTE, DELIVERED = 2000, 5  # characters of one note of the user, delivered ones that a fresh session reads again
MAX_LESSONS, LESSON = 200, 200  # lessons in the file, and characters of each part of one

# What differs from one run of the same failure to the next: digests, times, numbers, temporary names.
VARIABLE = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{7,64}\b|\btmp[a-z0-9_.]{6,}|/tmp/\S+|\d+(?:[.:,]\d+)*", re.I)
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
ERROR = re.compile(
    r"error|fail|fatal|exception|panic|assert|cannot|could not|not found|no such|undefined|unexpected|denied"
    r"|^E  |^not ok|^\s*[✗✕✖×●]",
    re.I,
)
DULL = re.compile(  # speaks of errors, and is none or does not say which
    r"^\s*(?:ok\b|=== RUN|[✓✔√])|\bPASS(?:ED)?\b|\[ *\d+%\]$|warn|\b(?:0|no) (?:errors?|fail\w*)|\.\.\. ok|\*\*\* \[",
    re.I,
)
BEFORE, AFTER, LAST, WIDEST = 2, 6, 8, 300  # lines around an error, lines at the end, characters of a line


@dataclass
class Situation:
    """All that a decision and its prompts rest on."""

    mission: Mission
    state: State
    outputs: dict[str, str] = field(default_factory=dict)  # criterion -> excerpt of what its check printed last
    lessons: dict[str, list[str]] = field(default_factory=dict)  # criterion -> what resolved failures like its before
    notes: list[str] = field(default_factory=list)  # of the user, since the last instruction
    earlier_notes: list[str] = field(default_factory=list)  # of the user, already delivered
    resumable: bool = False  # whether the worker's conversation has room left
    budget: str = ""  # what is left of the limits


def morale(state: State) -> str:
    """Return rising, steady, struggling or stuck, by how many sessions ago a criterion was met that was not before."""
    best = since = 0
    for entry in state.history:
        since = 0 if entry.met > best else since + bool(entry.focus)
        best = max(best, entry.met)
    if state.sessions and not since:
        return "rising"
    return "stuck" if since >= STUCK else "struggling" if since > 1 else "steady"


def template(situation: Situation) -> str:
    """Return which of TEMPLATES fits what happened."""
    state, last = situation.state, situation.state.last
    if not state.sessions:
        return "task_initiation"
    if state.history[-1].broke or state.sessions[-1].tampered or (last and last.kind not in FINE):
        return "error_recovery"
    if morale(state) in ("struggling", "stuck"):
        return "motivational_boost"
    return "progress_check" if situation.resumable else "session_transition"


def goes_well(situation: Situation) -> bool:
    """Return whether the last sessions brought the mission forward, so that little has to be said of them."""
    return template(situation) not in ("error_recovery", "motivational_boost")


def broken_by(state: State, id: str) -> str:
    """Say who broke a criterion that is not met; "" when nobody did."""
    broken = [entry for entry in state.history if id in entry.broke]
    if state.criteria[id].verdict == "met" or not broken:
        return ""
    last = broken[-1]
    who = f"while working on {last.focus}" if last.focus else "outside of the sessions"
    return f"broken in iteration {last.number}, commit {last.commit or 'none'}, {who}"


def failing(situation: Situation) -> list[str]:
    """Return the criteria that a check or the judge refuses, the most pressing first."""
    state, criteria = situation.state, situation.state.criteria

    def pressing(id: str) -> tuple[bool, int, bool]:
        return state.is_set_aside(id), PRIORITIES.index(criteria[id].priority), not broken_by(state, id)

    return sorted((id for id in state.open if criteria[id].verdict != "unjudged"), key=pressing)


# --- The prompts ---


def for_worker(situation: Situation, plan: Plan) -> str:
    """Return what a session reads: all for a fresh one, what is new for one that goes on. The mission is not masked."""
    state, shown, goes_on = situation.state, _shown(situation), plan.session == "resume"
    parts = _parts(situation, [plan.focus, *shown])
    parts |= {name: as_data(parts[name]) for name in DATA}
    parts["criteria"] = "\n".join(_line(situation, id, True) for id in state.criteria)
    parts["failures"] = _failures({id: as_data(situation.outputs[id]) for id in shown})
    if goes_on:
        parts["notes"] = "\n\n".join(situation.notes)
    parts |= {"tone": plan.encouragement or TONES.get(morale(state), ""), "instruction": plan.instruction}
    return fill("resume.md" if goes_on else "fresh.md", parts)


def for_manager(situation: Situation, max_prompt: int) -> tuple[str, str]:
    """Return system and user message of the question for the next step. max_prompt: bytes of both together."""
    state, shown, room = situation.state, _shown(situation), max(max_prompt, LEAST) - FIXED
    parts, ids = _parts(situation, shown), [*dict.fromkeys([*failing(situation), *state.open])]
    later = [f"- later: {', '.join(ids[LISTED:])}"] if ids[LISTED:] else []
    parts["criteria"] = "\n".join([*(_line(situation, id, id in shown) for id in ids[:LISTED]), *later])
    if situation.resumable and goes_well(situation):  # every iteration asks, so it reads little then
        parts["tried"] = ""
    parts = {name: bounded(text, int(SHARE[name] * room)) for name, text in parts.items()}
    each = int(SHARE["failures"] * room) // max(1, len(shown))
    texts = {id: log.mask_personal(as_data(situation.outputs[id])) for id in shown}
    parts["failures"] = _failures({id: excerpt(text, each) for id, text in texts.items()})
    met = f"{len(state.met)} of {len(state.criteria)} criteria are met; morale: {morale(state)}."
    now = fill("situation.md", {**parts, "progress": f"{met} {situation.budget}".strip()})
    return fill("system.md", parts), fill(f"{template(situation)}.md", {"situation": now.strip()})


def for_judge(texts: Mapping[str, str], contents: Mapping[str, str], max_prompt: int) -> tuple[str, str]:
    """Return system and user message of the question what is met; literally, since it is quoted. contents: by path."""
    room = max(max_prompt, LEAST) - FIXED
    share = {**JUDGE_SHARE, "diff": JUDGE_SHARE["diff"] - (CONTENTS if contents else 0)}
    parts = {name: bounded(text, int(share[name] * room)) for name, text in texts.items()}
    each = int(CONTENTS * room) // max(1, len(contents))
    files = [f"<data>\n{bounded(f'{path}{chr(10)}{text}', each)}\n</data>" for path, text in contents.items()]
    return fill("judge.md", {}), fill("dod_validation.md", {**parts, "contents": "\n\n".join(files)})


def _parts(situation: Situation, ids: Iterable[str]) -> dict[str, str]:
    """Return every part of a prompt but the criteria and their outputs. ids: criteria whose lessons are shown."""
    mission, state, last = situation.mission, situation.state, situation.state.last
    session = state.sessions[-1] if state.sessions else Iteration(0)
    refused = f"; refused to it: {', '.join(last.denials)}" if last and last.denials else ""
    tried = (
        f"{e.number}: {e.focus} ({e.strategy}): {e.outcome}, {e.met} met then. It reported: {e.report or 'nothing'}"
        for e in state.sessions[-TRIED:]
    )
    return {
        "title": mission.title,
        "repository": mission.repository.name,
        "description": mission.description,
        "context": mission.context,
        "constraints": _list(mission.constraints),
        "setup": mission.setup or "",
        "protected": ", ".join(mission.protect),
        "met": ", ".join(state.met),
        "ending": f"{last.kind}, {last.turns} turns{refused}: {last.message}".rstrip(": ") if last else "",
        "report": last.report if last else "",
        "claims": ", ".join(session.false_claims),
        "tampered": _list(session.tampered),
        "tried": _list(tried),
        "lessons": _list(dict.fromkeys(line for id in ids for line in situation.lessons.get(id, ()))),
        "notes": "\n\n".join([*situation.earlier_notes, *situation.notes]),
    }


def _shown(situation: Situation) -> list[str]:
    """Return the criteria whose outputs are shown: those that press most."""
    return [id for id in failing(situation) if situation.outputs.get(id, "").strip()][:SHOWN]


def _line(situation: Situation, id: str, with_check: bool) -> str:
    state, criterion = situation.state, situation.state.criteria[id]
    remarks = {
        criterion.priority: criterion.priority != "medium",
        criterion.verdict: with_check or criterion.verdict != "unmet",
        f"was met before: {broken_by(state, id)}": broken_by(state, id),
        "fails in a clean checkout": criterion.fails_in_clean_checkout,
        "flaky": criterion.flaky,
        f"sessions on it without a change: {criterion.stalls}": criterion.stalls,
    }
    shown = ", ".join(text for text, holds in remarks.items() if holds)
    check = f"\n  check: {check_of(situation, id)}" if with_check and check_of(situation, id) else ""
    return f"- {id}: {criterion.criteria}{f' [{shown}]' if shown else ''}{check}"


def check_of(situation: Situation, id: str) -> str:
    """Return the check of a criterion, "" when it has none."""
    return next((criterion.check or "" for criterion in situation.mission.criteria if criterion.id == id), "")


def _failures(texts: Mapping[str, str]) -> str:
    return "\n\n".join(f"{id}, at its last check:\n<data>\n{text}\n</data>" for id, text in texts.items())


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# --- Texts ---


def bounded(text: str, limit: int) -> str:
    """Return a text without secrets and personal data, cut; masked first, since half a secret is not recognised."""
    return cut(log.mask_personal(as_data(text)), limit)


def as_data(text: str) -> str:
    """Return a text without secrets and control characters that cannot end the <data> it stands in."""
    return re.sub(r"<\s*/\s*data", "(/data", NOT_TEXT.sub(" ", log.mask(text)), flags=re.I).strip()


def cut(text: str, limit: int) -> str:
    """Return the beginning and the end of a text that fit into so many bytes, and how many between them do not."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    half = max(0, limit - len(f"\n[{len(data)} more bytes are not shown]\n")) // 2
    note = f"\n[{len(data) - 2 * half} more bytes are not shown]\n"
    return f"{data[:half].decode('utf-8', 'ignore')}{note}{data[len(data) - half :].decode('utf-8', 'ignore')}"


def fill(name: str, parts: Mapping[str, str]) -> str:
    """Return a text of prompts/ with its $placeholders filled; a paragraph of which all are empty is left out.

    Raises MissionError for a placeholder that nothing fills, and for a file that cannot be read.
    """
    path, paragraphs = FOLDER / name, []
    try:
        for paragraph in re.split(r"\n\s*\n", path.read_text("utf-8").strip()):
            names = re.findall(r"(?<!\$)\$\{?([a-z_]+)", paragraph)
            filled = string.Template(paragraph).substitute(parts)
            if not names or any(parts[name] for name in names):
                paragraphs.append(filled)
    except (OSError, ValueError, KeyError) as error:
        problem = f"nothing fills ${error.args[0]}" if isinstance(error, KeyError) else error
        raise MissionError([f"{path}: {problem}"]) from error
    return "\n\n".join(paragraphs) + "\n"


def require_texts() -> None:
    """Raise MissionError where a text of prompts/ cannot be filled, or has lost the part that it is for."""
    problems = []
    for name, parts in TEXTS.items():
        try:
            text = fill(name, {part: f"<{part}>" for part in parts})
            problems += [f"{FOLDER / name}: it has to hold ${part}" for part in parts[:1] if f"<{part}>" not in text]
        except MissionError as error:
            problems += error.problems
    if problems:
        raise MissionError(problems)


# --- Output of checks ---


def excerpt(text: str, limit: int) -> str:
    """Return what tells most of a failing output, in at most `limit` bytes: errors with their surroundings, the end."""
    lines = _lines(text)
    if len("\n".join(lines).encode("utf-8", "replace")) <= limit:
        return "\n".join(lines).strip("\n")
    wanted = [*range(len(lines) - 1, len(lines) - 1 - LAST, -1)]
    for number, line in enumerate(lines):
        if ERROR.search(line) and not DULL.search(line):
            wanted += [number, *range(number + 1, number + AFTER + 1), *range(number - BEFORE, number)]
    chosen, room = list[int](), limit - 30
    for number in dict.fromkeys([*wanted, *range(len(lines) - 1, -1, -1)]):
        if 0 <= number < len(lines) and (cost := len(lines[number].encode("utf-8", "replace")) + 13) <= room:
            chosen.append(number)
            room -= cost  # with the line's end, and its share of the notes about what is left out
    shown = list[str]()
    for last, number in itertools.pairwise([-1, *sorted(chosen)]):
        shown += [f"[{number - last - 1} lines left out]"] * (number - last > 1) + [lines[number]]
    return "\n".join(shown).strip("\n").encode("utf-8", "replace")[: max(0, limit)].decode("utf-8", "ignore")


def fingerprint(text: str) -> str:
    """Return a digest by which a failure is recognised: without numbers, times, digests and temporary names."""
    return hashlib.sha256(VARIABLE.sub("_", text).encode("utf-8", "replace")).hexdigest()[:16]


def first_error(text: str) -> str:
    """Return the first line of an output that says what went wrong, without what varies; "" when there is none."""
    for line in _lines(log.mask(text)):
        words = [word for word in re.findall(r"[^\W\d_]{3,}", line) if not ERROR.search(word)]
        if ERROR.search(line) and not DULL.search(line) and len(words) > 1:
            return VARIABLE.sub("_", " ".join(line.split()))[:LESSON]
    return ""


def _lines(text: str) -> list[str]:
    """Return the lines of an output without colours, the middle of long lines, and what was written over."""
    lines = ESCAPE.sub("", text).replace("\r\n", "\n").split("\n")
    lines = [NOT_TEXT.sub(" ", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in lines]
    return [line if len(line) <= WIDEST else f"{line[:200]} [...] {line[-90:]}" for line in lines]


# --- Notes of the user, and lessons ---


def leave_note(folder: Path, mission: str, text: str) -> None:
    """Leave a note for the worker in .cco/inbox. Raises Stop for an empty or too long one, OSError."""
    if not text.strip() or len(text) > MAX_NOTE:
        raise Stop(USAGE, f"a note has 1 to {MAX_NOTE} characters, this one has {len(text.strip())}")
    (folder / "inbox").mkdir(mode=0o700, exist_ok=True)
    states.write(folder / "inbox" / f"{mission}.{time.time_ns()}.md", text.encode("utf-8", "replace"))


def notes(folder: Path, mission: str) -> list[Path]:
    """Return the notes that wait for a mission, oldest first."""
    return sorted(path for path in (folder / "inbox").glob(f"{mission}.[0-9]*.md") if not path.is_symlink())


def delivered_notes(folder: Path, mission: str) -> list[str]:
    """Return the last notes that earlier instructions carried, for a session that begins afresh."""
    paths = sorted((folder / "inbox" / "done").glob(f"{mission}.[0-9]*.md"))
    return [path.read_text("utf-8", "replace").strip() for path in paths[-DELIVERED:]]


def file_notes(folder: Path, names: Iterable[str]) -> None:
    """Move notes that an instruction has carried to inbox/done/."""
    (folder / "inbox" / "done").mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder / "inbox" / Path(name).name for name in names):
        if path.is_file():
            path.rename(folder / "inbox" / "done" / path.name)


def lessons(folder: Path, failure: str, output: str) -> list[str]:
    """Return what resolved a failure with this fingerprint, or this first error line, before; newest first."""
    error = first_error(output)
    same = [one for one in _lessons(folder) if failure == one["failure"] or (error and error == one["error"])]
    return [f"{one['error'] or one['criterion']}: {one['resolved']}" for one in reversed(same)][:3]


def learn(folder: Path, before: CriterionState, output: str, resolved: str) -> None:
    """Remember what resolved the failure that a criterion had before; only under the lock. Raises OSError."""
    lesson = {"failure": before.failure, "error": first_error(output), "criterion": before.criteria[:LESSON]}
    lesson |= {"resolved": resolved[: 2 * LESSON], "at": states.now()}
    lines = [json.dumps(one) for one in [*_lessons(folder), log.mask_tree(lesson)][-MAX_LESSONS:]]
    states.write(folder / "lessons.jsonl", "".join(f"{line}\n" for line in lines).encode())


def _lessons(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in (folder / "lessons.jsonl").read_text("utf-8").splitlines()]
        return [one for one in entries if {"failure", "error", "criterion", "resolved"} <= one.keys()]
    except (OSError, ValueError, AttributeError):  # a lesson helps and decides nothing
        return []
