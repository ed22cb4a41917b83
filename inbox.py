"""What a person tells a mission: notes in .cco/inbox, until the next instruction carries them.

    inbox.leave(folder, "api", "use the staging database")      by `make tell`
    for text in inbox.take(folder, memory): ...                 into the memory, where it is kept until it was passed on
    inbox.clear(folder, memory)                                 once that memory is saved

Each note is a file, written whole or not at all, so nothing is lost and nothing is passed on twice.

What is not covered: a worker without a sandbox can leave notes too. A note changes no verdict.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import log

MOST = 2000  # characters of one note
AT_ONCE = 10  # notes that are taken up at a time; more of them wait for the instruction after
KEPT = 10  # notes that are remembered after they were passed on, for sessions that begin afresh
SHORT = 1000  # characters of each of these

Memory = dict[str, Any]


def leave(folder: Path, mission: str, text: str) -> Path:
    """Leave a note for a mission. folder: `.cco`. Raises ValueError for one that is empty or too long, OSError."""
    if not text.strip() or len(text) > MOST:
        raise ValueError(f"a note has 1 to {MOST} characters, this one has {len(text.strip())}")
    place = folder / "inbox"
    place.mkdir(mode=0o700, exist_ok=True)
    path = place / f"{mission}.{time.time_ns()}.md"
    half = place / f".{path.name}.{os.getpid()}"
    with open(half, "x", encoding="utf-8", errors="replace", opener=log.private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)
    return path


def names(folder: Path, mission: str) -> list[str]:
    """The notes that wait for a mission, oldest first."""
    place = folder / "inbox"
    found = [path for path in place.glob("*.md") if _is_for(mission, path.name)] if place.is_dir() else []
    return sorted(path.name for path in found if stat.S_ISREG(path.lstat().st_mode))


def _is_for(mission: str, name: str) -> bool:
    start, _, number = name.removesuffix(".md").rpartition(".")
    return start == mission and number.isdigit()


def take(folder: Path, memory: Memory) -> list[str]:
    """Take new notes into the memory; their texts. Raises OSError."""
    known = {note["id"] for note in memory["notes"]}
    new: list[dict[str, Any]] = []
    for name in names(folder, memory["mission_id"])[: max(0, AT_ONCE - len(current(memory)))]:
        if name not in known:
            with open(folder / "inbox" / name, encoding="utf-8", errors="replace") as file:
                new.append({"id": name, "text": file.read(MOST).strip(), "iteration": None})
    memory["notes"] += new
    return [str(note["text"]) for note in new]


def clear(folder: Path, memory: Memory) -> None:
    """Remove the notes that the saved memory holds."""
    for name in (note["id"] for note in memory["notes"]):
        if _is_for(memory["mission_id"], name) and "/" not in name:  # a state may come from elsewhere
            (folder / "inbox" / name).unlink(missing_ok=True)


def waits(folder: Path, memory: Memory) -> bool:
    """Whether there is a note that no decision has seen yet, or none since a person answered last."""
    unseen = any(note["iteration"] is None for note in memory["notes"]) and memory["answered"] < memory["iterations"]
    return unseen or bool(names(folder, memory["mission_id"]))


def current(memory: Memory) -> list[str]:
    """What the instruction of this iteration has to carry: also again, when its session was cut off."""
    return [note["text"] for note in memory["notes"] if note["iteration"] in (None, memory["iterations"])]


def earlier(memory: Memory) -> list[str]:
    """What earlier instructions carried, for a worker that knows nothing."""
    return [note["text"] for note in memory["notes"] if note["iteration"] not in (None, memory["iterations"])]


def passed_on(memory: Memory) -> None:
    """The worker has been told."""
    for note in memory["notes"]:
        if note["iteration"] is None:
            note["iteration"] = memory["iterations"]


def forget(memory: Memory) -> None:
    """The iteration is over: of what was passed on, the beginning is kept."""
    done = [{**note, "text": note["text"][:SHORT]} for note in memory["notes"] if note["iteration"] is not None]
    memory["notes"] = [*done[-KEPT:], *(note for note in memory["notes"] if note["iteration"] is None)]
