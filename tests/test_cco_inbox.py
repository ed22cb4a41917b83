"""Notes for the worker: whole or not there, passed on exactly once, and nothing in the inbox that is no note."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import until

import inbox


def memory(**more: Any) -> dict[str, Any]:
    return {"mission_id": "demo", "notes": [], "iterations": 0, **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / ".cco"
    made.mkdir()
    return made


def texts(notes: list[dict[str, Any]]) -> list[str]:
    return [note["text"] for note in notes]


# --------------------------------------------------------------------------------------------------------
# Whole or not there
# --------------------------------------------------------------------------------------------------------


def test_a_note_is_left_and_taken_word_for_word(folder):
    path = inbox.leave(folder, "demo", "use the staging database\n\n  and `not` $HOME: ä 漢\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "inbox").stat().st_mode) == 0o700
    found = memory()
    assert inbox.take(folder, found) == ["use the staging database\n\n  and `not` $HOME: ä 漢"]
    assert found["notes"] == [{"id": path.name, "text": texts(found["notes"])[0], "iteration": None}]


@pytest.mark.parametrize("text", ["", "  \n\t", "x" * (inbox.MOST + 1)])
def test_a_note_without_words_or_of_more_than_is_passed_on_is_refused_and_leaves_nothing(folder, text):
    with pytest.raises(ValueError, match=f"a note has 1 to {inbox.MOST} characters, this one has"):
        inbox.leave(folder, "demo", text)
    assert list(folder.rglob("*.md")) == []


def test_the_longest_note_arrives_whole(folder):
    inbox.leave(folder, "demo", "ä" * inbox.MOST)
    assert inbox.take(folder, memory()) == ["ä" * inbox.MOST]


def test_bytes_that_are_no_text_do_no_harm(folder):
    inbox.leave(folder, "demo", "caf\udce9")  # as Python gets it from a command line in Latin-1
    assert inbox.take(folder, memory()) == ["caf?"]
    (folder / "inbox" / "demo.1.md").write_bytes(b"\xff\xfe by hand")
    assert inbox.take(folder, memory())[0].endswith("by hand")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_note_that_was_not_written_to_its_end_is_not_there(folder, monkeypatch, step):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        inbox.leave(folder, "demo", "half of a note")
    monkeypatch.undo()
    assert inbox.names(folder, "demo") == []
    assert inbox.take(folder, memory()) == []
    inbox.leave(folder, "demo", "the second try")
    assert inbox.take(folder, memory()) == ["the second try"]


def test_whoever_looks_while_a_note_is_written_sees_all_of_it_or_nothing(folder, monkeypatch):
    seen, sync = [], os.fsync

    def look(handle: int) -> None:
        seen.append(inbox.take(folder, memory()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    inbox.leave(folder, "demo", "whole")
    assert seen == [[]]
    assert inbox.take(folder, memory()) == ["whole"]


def test_notes_come_in_the_order_in_which_they_were_left(folder):
    for number in range(30):
        inbox.leave(folder, "demo", f"note {number}")
    found, taken = memory(), []
    for _ in range(3):  # ten at a time
        taken += inbox.take(folder, found)
        inbox.clear(folder, found)
        inbox.passed_on(found)
        found["iterations"] += 1
    assert taken == [f"note {number}" for number in range(30)]


# --------------------------------------------------------------------------------------------------------
# Exactly once
# --------------------------------------------------------------------------------------------------------


def copy(saved: dict[str, Any]) -> dict[str, Any]:
    """The memory as a restart reads it."""
    return {**saved, "notes": [dict(note) for note in saved["notes"]]}


@pytest.mark.parametrize("killed_after", ["take", "save", "clear", "passed on", "save of that"])
def test_a_note_is_passed_on_once_wherever_the_kit_is_killed(folder, killed_after):
    """As loop.py does it: take, save, clear; in the iteration's session passed on, saved."""
    inbox.leave(folder, "demo", "once")
    saved = memory(iterations=1)
    work, delivered = copy(saved), 0
    steps = ["take", "save", "clear", "passed on", "save of that"]
    for step in [*steps[: steps.index(killed_after) + 1], "killed", *steps]:
        if step == "take":
            inbox.take(folder, work)
        elif step.startswith("save"):
            saved = copy(work)
        elif step == "clear":
            inbox.clear(folder, work)
        elif step == "killed":
            work = copy(saved)
        else:
            delivered += inbox.current(work) == ["once"]
            inbox.passed_on(work)
    assert texts(saved["notes"]) == ["once"]  # one note, however often it was looked at
    assert inbox.current(saved) == ["once"]  # the instruction of this iteration carries it, also when it is repeated
    assert delivered >= 1
    assert inbox.names(folder, "demo") == []
    inbox.forget(saved)
    saved["iterations"] = 2
    assert (inbox.current(saved), inbox.earlier(saved)) == ([], ["once"])


def test_what_is_not_saved_yet_is_not_removed(folder):
    inbox.leave(folder, "demo", "first")
    saved = memory()
    inbox.take(folder, saved)
    inbox.leave(folder, "demo", "second")
    inbox.clear(folder, saved)
    assert inbox.take(folder, saved) == ["second"]
    assert texts(saved["notes"]) == ["first", "second"]


def test_a_note_that_comes_while_a_session_runs_is_for_the_next_instruction(folder):
    found = memory(iterations=1)
    inbox.leave(folder, "demo", "early")
    inbox.take(folder, found)
    inbox.passed_on(found)
    inbox.leave(folder, "demo", "late")  # meanwhile
    inbox.forget(found)
    found["iterations"] += 1
    inbox.take(folder, found)
    assert (inbox.current(found), inbox.earlier(found)) == (["late"], ["early"])


def test_the_session_of_an_iteration_that_is_cut_off_is_told_again(folder):
    found = memory(iterations=3)
    inbox.leave(folder, "demo", "mind the gap")
    inbox.take(folder, found)
    inbox.passed_on(found)
    assert inbox.current(found) == ["mind the gap"]
    found["iterations"] = 4
    assert inbox.current(found) == []


# --------------------------------------------------------------------------------------------------------
# What is no note
# --------------------------------------------------------------------------------------------------------


def foreign(place: Path) -> dict[str, Path]:
    """Things that lie in an inbox and are no note of the mission."""
    secret = place.parent.parent / "secret"
    secret.write_text("a secret")
    names = ("demo.1.md", "demo.2.md", "demo.3.md", "demo.4.md", "demo.5.txt", "README.md", "demo.md", "demo-2.6.md")
    found = {name: place / name for name in names}
    found["demo.1.md"].symlink_to(secret)
    found["demo.2.md"].symlink_to("/dev/zero")
    os.mkfifo(found["demo.3.md"])
    found["demo.4.md"].mkdir()
    for name in names[4:]:
        found[name].write_text(name)
    (place / ".demo.7.md.4711").write_text("half of a note whose writer was killed")
    return found


def test_links_pipes_folders_and_foreign_files_are_no_notes_and_nothing_waits_for_them(folder):
    inbox.leave(folder, "demo", "the only note")
    others = foreign(folder / "inbox")
    found: list[list[str]] = []
    looking = threading.Thread(target=lambda: found.append(inbox.take(folder, memory())), daemon=True)
    looking.start()
    until(lambda: not looking.is_alive(), "it has looked at all of them", 10)
    assert found == [["the only note"]]
    own = memory()
    inbox.take(folder, own)
    inbox.clear(folder, own)
    assert all(path.is_symlink() or path.exists() for path in others.values())
    assert inbox.names(folder, "demo") == []


def test_notes_of_other_missions_are_left_for_them(folder):
    for mission in ("demo", "demo-2", "dem", "emo"):
        inbox.leave(folder, mission, f"for {mission}")
    found = memory()
    assert inbox.take(folder, found) == ["for demo"]
    inbox.clear(folder, found)
    for mission in ("demo-2", "dem", "emo"):
        assert inbox.take(folder, memory(mission_id=mission)) == [f"for {mission}"]


def test_without_an_inbox_there_are_no_notes(folder):
    assert inbox.names(folder, "demo") == inbox.take(folder, memory()) == []
    inbox.clear(folder, memory())
    (folder / "inbox").write_text("no folder")
    assert inbox.names(folder, "demo") == []
    with pytest.raises(OSError):
        inbox.leave(folder, "demo", "nowhere to go")


# --------------------------------------------------------------------------------------------------------
# What is kept
# --------------------------------------------------------------------------------------------------------


def test_of_what_was_passed_on_the_last_ten_are_kept_and_shortened_and_what_was_not_stays_whole(folder):
    long = "x" * inbox.MOST
    found = memory(iterations=1)
    for number in range(14):
        inbox.leave(folder, "demo", f"{number} {long}"[: inbox.MOST])
    for _ in range(2):
        found["iterations"] += 1
        inbox.take(folder, found)
        inbox.clear(folder, found)
        inbox.passed_on(found)
    inbox.leave(folder, "demo", long)
    inbox.take(folder, found)
    inbox.forget(found)
    kept = texts(found["notes"])
    assert [text.split()[0] for text in kept[:-1]] == [str(number) for number in range(4, 14)]
    assert {len(text) for text in kept[:-1]} == {inbox.SHORT}
    found["iterations"] += 1
    assert inbox.current(found) == [long]
    assert inbox.earlier(found) == kept[:-1]
