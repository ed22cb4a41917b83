"""Processes as the machine shows them: who they are, whose they are, and ending those that a killed kit left.

    recorded = processes.identity(pid)
    processes.end_leftovers(marker, recorded)

What is not covered: without /proc (macOS) only a recorded process is found again, not what it left behind.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import log

MARKER = "CCO_RUN"  # environment variable by which a run's processes are found again
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
KILL_TIME = 10.0  # seconds after which a process is taken for one that SIGKILL cannot end
LINUX = sys.platform.startswith("linux")


def identity(pid: int) -> dict[str, str | int]:
    """What tells this process from a later one with the same number: pid, start time, boot id."""
    return {"pid": pid, "start": _start_time(pid), "boot": _boot_id()}


def is_alive(recorded: Mapping[str, str | int]) -> bool:
    """Whether exactly the process of this `identity` still runs; a zombie does not."""
    start = _start_time(int(recorded["pid"]))
    return bool(start) and start == recorded["start"] and recorded["boot"] == _boot_id()


def end_leftovers(marker: str, recorded: Mapping[str, str | int] | None, grace: float = GRACE) -> int:
    """End what a run of a killed kit left: every process that carries the marker, the recorded one, and their children.

    marker: value of CCO_RUN that the run was started with. recorded: its `identity`. Returns how many there were.
    Asks the recorded process first, so that claude can close its session, then kills. Never touches a process
    that carries neither the marker nor the recorded identity, and was not started by one that does.
    """

    def left() -> set[int]:
        known = {int(recorded["pid"])} if recorded and is_alive(recorded) else set()
        own = {os.getpid()}  # a worker may have started this very kit
        started, parents = marked(marker) | known, _parents()
        return _tree(started, parents) - (_tree(own, parents) - started) - own

    def kill() -> bool:
        found = left()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # a shell whose `sleep` is killed goes on to its next command
            for pid in found:
                send(pid, number)
        return not found

    count = len(found := left())
    if recorded and int(recorded["pid"]) in found:
        send(int(recorded["pid"]), signal.SIGTERM)
        wait_for(lambda: not is_alive(recorded), grace)
    if not wait_for(kill, KILL_TIME):
        log.warn(f"processes of an earlier run cannot be ended: {sorted(left())}")
    return count


def send(pid: int, number: int) -> None:
    """Send a signal, if the process is still there and ours to signal."""
    # It may have ended by itself in the meantime, or belong to somebody else.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until the condition holds; whether it does."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


def marked(marker: str) -> set[int]:
    """The processes that carry a run's mark."""
    return {pid for pid in _pids() if carries(pid, MARKER, marker)}


def carries(pid: int, name: str, value: str) -> bool:
    """Whether a process was started with this variable in its environment."""
    return f"{name}={value}".encode() in _read(f"/proc/{pid}/environ").split(b"\0")


def working_in(folder: Path, program: str) -> set[int]:
    """The processes of a program, by the beginning of its name, whose working directory is in a folder."""
    root = os.path.realpath(folder)
    named = (pid for pid in _pids() if _read(f"/proc/{pid}/comm").startswith(program.encode()))
    return {pid for pid in named if os.path.commonpath([root, _working_directory(pid) or "/"]) == root}


def _working_directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # as in `_read`
        return ""


def session(pid: int) -> int:
    """The session that a process belongs to, 0 if there is no such process."""
    return int((stat_fields(pid)[3:4] or [b"0"])[0])


def usage(*pids: int) -> tuple[float, int, int]:
    """What processes and all their descendants use: seconds of processor time, bytes of their own memory, how many.

    By proc(5): utime, stime, cutime and cstime are fields 14 to 17 of stat, memory is `resident - shared` of statm.
    """
    stats = {pid: fields for pid in _pids() if len(fields := stat_fields(pid)) > 14}
    live = _tree({*pids}, {pid: int(fields[1]) for pid, fields in stats.items()}) & set(stats)
    ticks = sum(int(count) for member in live for count in stats[member][11:15])
    pages = (_read(f"/proc/{member}/statm").split() for member in live)
    memory = sum(int(page[1]) - int(page[2]) for page in pages if len(page) > 2)
    return ticks / os.sysconf("SC_CLK_TCK"), memory * os.sysconf("SC_PAGE_SIZE"), len(live)


def _parents() -> dict[int, int]:
    """The parent of every process."""
    return {pid: int(fields[1]) for pid in _pids() if len(fields := stat_fields(pid)) > 1}


def _tree(roots: set[int], parents: Mapping[int, int]) -> set[int]:
    """These processes and all their descendants."""
    tree, found = set(roots), set(roots)
    while found:
        found = {child for child, parent in parents.items() if parent in found} - tree
        tree |= found
    return tree


def children() -> set[int]:
    """Our own children, zombies included."""
    return {pid for pid in _pids() if stat_fields(pid)[1:2] == [str(os.getpid()).encode()]}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else []


def command_line(pid: int) -> str:
    """What a process runs, "" for a zombie."""
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return log.mask(words)[:200]


def stat_fields(pid: int) -> list[bytes]:
    """Fields 3 and up of /proc/PID/stat (state, parent, ...); the name before them may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _start_time(pid: int) -> str:
    if LINUX:
        fields = stat_fields(pid)  # proc(5): starttime is field 22, state field 3
        return fields[19].decode() if fields and fields[0] != b"Z" else ""
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode().strip() if LINUX else ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # else a worker that runs would be taken for gone
        return b""  # it ended meanwhile, or belongs to somebody else
