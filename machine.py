"""What the machine lacks for now (room, processes, open files, memory), and what to do about it.

    if lack := machine.lack(result.errno, said): ...     why it could not run, other than by its own fault
    machine.require_room(folder)                         raises OSError where nothing can be written
    machine.advice(error)                                what a person can do about it

Nothing that fails for such a reason may count as a verdict, a crash or an answer of git.

What is not covered: what a command says of it in another language than English, and what it keeps to itself.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)  # no room to write
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY)  # may be there a moment later
LACKS = (*FULL, *SCARCE, errno.EROFS, errno.EIO)
ROOM = 1_000_000  # bytes; with less room than that, what fails may fail for that alone
ADVICE = {
    **dict.fromkeys(FULL, "free some space"),
    errno.EAGAIN: "no more processes can be started here: end some, or raise the limit (ulimit -u)",
    errno.ENOMEM: "there is not enough memory: end what uses much of it",
    errno.EMFILE: "too few files may be open at once: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: end what holds them",
    errno.ETXTBSY: "a program was being replaced just then: wait for its update to end",
    errno.EROFS: "make the file system writable again (see: mount, dmesg)",
    errno.EIO: "the disk or its connection fails (see: dmesg)",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself the rights to it (see: ls -ld)"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "bring it back, from where it was moved to or from a backup"),
}


def lack(number: int, said: str = "", numbers: Sequence[int] = LACKS) -> OSError | None:
    """What the machine lacked, by the system's number for why a command could not start, or by what it said."""
    if number not in LACKS:
        ends = (known for known in numbers if re.search(rf": {os.strerror(known)}\.?$", said, re.M))
        number = next(ends, 0)
    return OSError(number, os.strerror(number)) if number else None


def require_room(*folders: Path | str) -> None:
    """Raise OSError for a folder where nothing can be written any more; not for one that is missing or forbidden."""
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(ROOM))
        except OSError as error:
            if error.errno in LACKS:
                raise OSError(error.errno, error.strerror, str(folder)) from error


def advice(error: OSError) -> str:
    """What a person can do about an error, "" where that is not known."""
    return ADVICE.get(error.errno or 0, "")
