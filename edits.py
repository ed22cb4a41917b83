"""What a person changed of mission and settings since they were accepted, and whether it was a person.

    mission = edits.accepted(path, accept)              the file's, or what was accepted before a worker changed it
    for line in edits.of_mission(old_text, mission): ...

Between two runs and while nothing runs, only a person can have written these files; what appears while a worker runs
counts by a person's word alone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import log
import report
from mission import Criterion, Mission, MissionError, Settings, load, load_settings, parse

SECRET = "api_key"  # key of the settings whose value is not kept
PROSE = ("title", "description", "context", "constraints", "setup", "confirm", "protect", "network", "repository")

Memory = dict[str, Any]


def accepted(path: Path, accept: bool) -> Mission:
    """The mission in the file, or as it was accepted where the file changed, broke or vanished under a worker.

    Raises MissionError.
    """
    try:
        mission: Mission | None = load(path)
        problem = None
    except MissionError as error:
        mission, problem = None, error
    memory = _remembered(path, *([mission.repository] if mission else []))
    found = digest(path)
    if memory and not accept and found != memory["mission"]["digest"]:
        under_worker = is_running(memory) or found == memory["mission"]["suspect"]
        if under_worker:
            log.warn(f"{path} changed while a worker ran: what was accepted counts. ACCEPT=1 (--accept) adopts it.")
            return parse(memory["mission"]["text"], path)
    if mission is None:
        raise problem or MissionError([f"{path}: cannot be read"])
    return mission


def _remembered(path: Path, *places: Path) -> Memory | None:
    """The memory of the mission that was started from this file, whatever its id is now; none that is forged.

    places: where to look besides the file's own place and here; what the file says of its repository may be a lie.
    """
    folders = (report.find_folder(str(place)) for place in (path.parent, os.getcwd(), *places))
    found = (memory for folder in dict.fromkeys(folders) if folder for memory in report.memories(folder))
    real = os.path.realpath(path)  # the same file has other names: links, and /tmp on macOS
    return next((memory for memory in found if os.path.realpath(str(memory["mission"].get("path"))) == real), None)


def is_running(memory: Memory) -> bool:
    """Whether, by its memory, a worker was at work when the last run ended."""
    process = (memory["worker"] or {}).get("process")
    return memory["current_phase"] == "execution" and isinstance(process, dict) and isinstance(process.get("pid"), int)


def digest(path: Path) -> str:
    """SHA-256 of a file's content, "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


# --------------------------------------------------------------------------------------------------------
# What changed
# --------------------------------------------------------------------------------------------------------


def of_mission(text: str, mission: Mission) -> list[str]:
    """What a mission says otherwise than its earlier text did, one short line each."""
    try:
        before = parse(text, mission.path)
    except MissionError:  # a text that this kit no longer takes
        return ["all of it"]
    found = [name for name in PROSE if getattr(before, name) != getattr(mission, name)]
    found += _differences("limits", vars(before.limits), vars(mission.limits))
    found += ["settings"] if before.settings != mission.settings else []
    old, new = ({criterion.id: criterion for criterion in one.criteria} for one in (before, mission))
    found += [f"criterion {id} is gone" for id in old if id not in new]
    found += [f"criterion {id} is new" for id in new if id not in old]
    return [*found, *(line for id in new if id in old for line in _of_criterion(old[id], new[id]))]


def _of_criterion(before: Criterion, now: Criterion) -> list[str]:
    changed = [name for name, value in vars(now).items() if value != getattr(before, name)]
    return [f"criterion {now.id}: {', '.join(changed)}"] if changed else []


def values(settings: Settings) -> dict[str, str]:
    """The settings that are not as usual, by their names, without secrets: what `of_settings` compares."""
    usual = _flat(load_settings(None, None, {}))
    return {name: log.mask(value) for name, value in _flat(settings).items() if value != usual.get(name)}


def of_settings(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What two `values` differ in, one short line each."""
    return _differences("", before, now)


def _differences(place: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    start = f"{place}." if place else ""
    return [f"{start}{name}: {_shown(before.get(name))} -> {_shown(now.get(name))}" for name in names]


def _shown(value: Any) -> str:
    return "as usual" if value is None else str(value)[:80]


def _flat(settings: Settings) -> dict[str, str]:
    sections = {name: part for name, part in vars(settings).items() if name not in ("warnings", "notify")}
    plain: dict[str, str] = {}
    while sections:
        name, part = sections.popitem()
        inner = {f"{name}.{key}": value for key, value in vars(part).items()}
        sections |= {name: value for name, value in inner.items() if isinstance(value, SimpleNamespace)}
        plain |= {name: str(value) for name, value in inner.items() if name not in sections}
    return {name: value for name, value in plain.items() if not name.endswith(f".{SECRET}")}
