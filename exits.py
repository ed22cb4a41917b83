"""How a run ends: its exit codes, what ends it on purpose, and what an error that ended it says to a person.

raise Stop(PERSON, "which port?")
code, said = exits.reading(error)
"""

from __future__ import annotations

import errno
import os

import machine
import proc
import state
from mission import MissionError
from repo import GitError
from worker import CannotRun

DONE, ERROR, USAGE, PERSON, CANNOT, LIMIT, LATER = 0, 1, 2, 3, 4, 5, 75  # a signal's is 128 + its number


class Stop(Exception):
    """Ends the run here, with an exit code. Everything is saved and can be resumed."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Edited(Exception):
    """A person has edited mission or settings while nothing ran: the mission is to be opened anew."""


def reading(error: Exception) -> tuple[int, str]:
    """The exit code that an error stands for, and what to say about it."""
    if isinstance(error, Stop):
        return error.code, str(error)
    if isinstance(error, proc.Interrupted):
        return 128 + proc.stopping, "interrupted; start again to go on"
    if isinstance(error, state.Busy):
        return LATER, str(error)
    if isinstance(error, MissionError):
        return USAGE, str(error)
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(error, OSError) and (advice := machine.advice(error)):
        return CANNOT, f"{error}: {advice}, then start again; the last good state is kept"
    if isinstance(error, (CannotRun, GitError, OSError, state.StateError)):
        return CANNOT, str(error)
    return ERROR, f"unexpected error: {type(error).__name__}: {error}"
