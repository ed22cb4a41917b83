"""Run one command and leave nothing of it behind.

    with tempfile.TemporaryFile() as out:
        result = proc.run(["npm", "test"], cwd=root, env=env, output=out, limits=proc.Limits(600))

The command's output goes to a file and no pipe is ever read, so neither a grandchild that keeps the output
open nor one endless line can hang or bloat the kit. There are no threads: signals set `stopping`.

What is not covered: on macOS there is no subreaper, so a process that leaves its group *and* its parent
survives there. `kill -9` of the kit itself leaves the command running; `end_leftovers` ends it at the next start.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import log

MARKER = "CCO_RUN"  # environment variable by which a run's processes are found again
SURROUNDING = (
    "CLAUDECODE",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_CHILD_SESSION",
    "MAKEFLAGS",
    "MAKEOVERRIDES",
    "MFLAGS",
)
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
KILL_TIME = 10.0  # seconds after which a process is taken for one that SIGKILL cannot end
STEP = 0.2  # seconds between two looks at a running command
MARGIN = 4096  # bytes before the shown end of an output, so that a secret on the border is known as one
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # prctl(2)
LINUX = sys.platform.startswith("linux")

_raising = False
stopping = 0  # the signal that asked the kit to stop; 0: none


class Interrupted(Exception):
    """A signal asked the kit to stop while something ran that must not count as its own result."""


@dataclass(frozen=True)
class Limits:
    """When a command is ended from here."""

    timeout: float
    """Seconds of wall time."""
    idle: float | None = None
    """Seconds without any new output."""
    max_output: int | None = None
    """Bytes of output."""
    grace: float = GRACE
    """Seconds between SIGTERM and SIGKILL."""


@dataclass
class Result:
    """What became of one command."""

    code: int | None = None
    """Exit code, negative for a signal, None when it could not be started."""
    stopped: str = ""
    """Why it was ended from here: "", "timeout", "idle", "size", "interrupted", or what `tick` said."""
    seconds: float = 0.0
    """Wall time it took."""
    size: int = 0
    """Bytes of output."""
    swept: list[str] = field(default_factory=list)
    """Command lines of the processes that it left behind and that were ended."""
    error: str = ""
    """Why it could not be started."""


# --------------------------------------------------------------------------------------------------------
# Signals
# --------------------------------------------------------------------------------------------------------


def catch_signals() -> None:
    """Let SIGTERM, SIGINT and SIGHUP set `stopping`. Under nohup SIGHUP stays ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note_signal)


def pause(seconds: float) -> bool:
    """Wait, at most until a signal asks to stop; whether the whole time was waited."""
    end = time.monotonic() + seconds
    while not stopping and (left := end - time.monotonic()) > 0:
        time.sleep(min(STEP, left))
    return not stopping


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise Interrupted in here, for what would not look at `stopping` for a long time."""
    global _raising
    _raising = True
    try:
        yield
    finally:
        _raising = False


def _note_signal(number: int, _frame: object) -> None:
    global stopping
    stopping = number
    if _raising:
        raise Interrupted


# --------------------------------------------------------------------------------------------------------
# One command
# --------------------------------------------------------------------------------------------------------


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes],
    limits: Limits,
    errors: IO[bytes] | None = None,
    stdin: bytes = b"",
    tick: Callable[[], str] | None = None,
    started: Callable[[int], None] | None = None,
    shielded: bool = False,
) -> Result:
    """Run a command in a session of its own until it ends or has to be ended, then sweep up after it.

    output, errors: open files it writes to (errors: default the same). tick: called about five times a second while
    it runs; a word from it ends the command. started: gets the pid before anything is waited for. shielded: a signal
    to the kit waits for the command's end.
    Never raises for what the command does; a command that cannot be started is a Result with `error`.
    """
    _become_parent()
    begun, strangers, files = time.monotonic(), _children(), [output] + ([errors] if errors else [])
    for file in files:  # a command that reopens /dev/stderr truncates it; what follows still goes to its end
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    try:
        process = _spawn(argv, cwd, env, output, errors, stdin)
    except OSError as error:
        return Result(error=f"{error.strerror}: {error.filename or argv[0]}")
    except ValueError as error:  # a NUL byte in an argument
        return Result(error=str(error))
    stopped = ""
    try:
        if started:
            started(process.pid)
        watch = _Watch(process, files, limits, tick, shielded)
        while not stopped and not watch.ended():
            stopped = watch.reason_to_stop()
        if stopped:
            _terminate(process, limits.grace)
    finally:  # also when `started` or `tick` raised
        swept = _sweep(process, strangers)
    return Result(process.returncode, stopped, time.monotonic() - begun, sum(map(_size, files)), swept)


def _spawn(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes] | None,
    stdin: bytes,
) -> subprocess.Popen[bytes]:
    err = errors or subprocess.STDOUT
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        return subprocess.Popen(
            argv, cwd=cwd, env=dict(env), stdin=source, stdout=output, stderr=err, start_new_session=True
        )


def find(name: str, outside: Path, path: str | None = None) -> str | None:
    """Where a program of the system is: like shutil.which, but never relative and never inside `outside`.

    What a worker can write must not be taken for git, bash or bwrap. path: default PATH.
    """
    found = shutil.which(name, path=_trusted(path, outside)[0])
    return os.path.abspath(found) if found else None


def trusted_first(path: str, outside: Path) -> str:
    """The same PATH with the folders inside `outside` at its end: they add programs, but replace none."""
    return os.pathsep.join(part for part in _trusted(path, outside) if part)


def _trusted(path: str | None, outside: Path) -> tuple[str, str]:
    """The folders of a PATH that are out of a worker's reach, and the others."""
    places = (path if path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep)
    root = outside.resolve()
    ours = [place for place in places if os.path.isabs(place) and not Path(place).resolve().is_relative_to(root)]
    return os.pathsep.join(ours), os.pathsep.join(place for place in places if place not in ours)


def clean_env(environ: Mapping[str, str], keep: Sequence[str] = ()) -> dict[str, str]:
    """A copy of the environment for a child: without secrets, and without what a surrounding claude or make left.

    keep: names, or beginnings of names ending in `*`, that stay although they look like secrets.
    """

    def kept(name: str) -> bool:
        return any(name == k or (k.endswith("*") and name.startswith(k[:-1])) for k in keep)

    return {n: v for n, v in environ.items() if kept(n) or not (log.is_secret_name(n) or n in SURROUNDING)}


def read(file: IO[bytes], start: int, limit: int) -> bytes:
    """Up to `limit` bytes from offset `start`, without moving the offset that a running command writes at."""
    return os.pread(file.fileno(), limit, start)


def tail(file: IO[bytes], limit: int) -> str:
    """The last `limit` characters of an open file, masked, from the beginning of a line where there is one."""
    start = max(0, _size(file) - limit - MARGIN)
    text = log.mask(read(file, start, limit + MARGIN).decode("utf-8", "replace"))
    if len(text) > limit:
        text = text[-limit:]
        text = text[text.find("\n", 0, -1) + 1 :]
    return text


class _Watch:
    """A running command held against its limits."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        files: list[IO[bytes]],
        limits: Limits,
        tick: Callable[[], str] | None,
        shielded: bool,
    ):
        self.process, self.files, self.limits, self.tick, self.shielded = process, files, limits, tick, shielded
        self.begun = self.grew = time.monotonic()
        self.size = 0

    def ended(self) -> bool:
        """Wait one step; whether the command has ended by itself."""
        try:
            self.process.wait(STEP)
        except subprocess.TimeoutExpired:
            return False
        return True

    def reason_to_stop(self) -> str:
        now, limits = time.monotonic(), self.limits
        if (size := sum(map(_size, self.files))) != self.size:
            self.size, self.grew = size, now
        if stopping and not self.shielded:
            return "interrupted"
        if now - self.begun > limits.timeout:
            return "timeout"
        if limits.idle is not None and now - self.grew > limits.idle:
            return "idle"
        if limits.max_output is not None and size > limits.max_output:
            return "size"
        return self.tick() if self.tick else ""


def _terminate(process: subprocess.Popen[bytes], grace: float) -> None:
    # To the process alone: claude ends its own tools when it is asked to, and so do most test runners.
    _signal(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGKILL)


def _sweep(process: subprocess.Popen[bytes], strangers: set[int]) -> list[str]:
    """End what is left of the command's group and every process that it left to us; their command lines."""
    names = {pid: _command_line(pid) for pid in _children() - strangers}  # before they are killed
    if LINUX and not names:  # it has ended, and whatever it left would be our child now
        return []
    # The group may be empty (macOS says EPERM when only zombies are left), or somebody else's.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    _await_end(process.pid, lambda: process.poll() is not None, strangers)
    swept = []
    while orphans := _children() - strangers:  # each of them hands its own children to us, hence the loop
        for pid in orphans:
            swept.append(names.get(pid) or _command_line(pid))
            _signal(pid, signal.SIGKILL)
        for pid in orphans:
            _await_end(pid, partial(_reaped, pid), strangers)
    return [name for name in swept if name]  # one without a name had ended by itself


def _await_end(pid: int, ended: Callable[[], bool], strangers: set[int]) -> None:
    """Wait for a killed child; one that does not end (sudo's, or stuck in the kernel) is a stranger from now on."""
    if not _until(ended, KILL_TIME):
        log.warn(f"process {pid} cannot be ended and is left running: {_command_line(pid)}")
        strangers.add(pid)


def _reaped(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


# --------------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------------


def identity(pid: int) -> dict[str, str | int]:
    """What tells this process from a later one with the same number: pid, start time, boot id."""
    return {"pid": pid, "start": _start_time(pid), "boot": _boot_id()}


def is_alive(recorded: Mapping[str, str | int]) -> bool:
    """Whether exactly the process of this `identity` still runs; a zombie does not."""
    start = _start_time(int(recorded["pid"]))
    return bool(start) and start == recorded["start"] and recorded["boot"] == _boot_id()


def end_leftovers(marker: str, recorded: Mapping[str, str | int] | None, grace: float = GRACE) -> int:
    """End what a run of a killed kit left: every process that carries the marker, and the recorded one.

    marker: value of CCO_RUN that the run was started with. recorded: its `identity`. Returns how many there were.
    Asks the recorded process first, so that claude can close its session, then kills. Never touches a process
    that carries neither the marker nor the recorded identity.
    """

    def left() -> set[int]:
        known = {int(recorded["pid"])} if recorded and is_alive(recorded) else set()
        return (_marked(marker) | known) - {os.getpid()}  # a worker may have started this very kit

    def kill() -> bool:
        for pid in (found := left()):
            _signal(pid, signal.SIGKILL)
        return not found

    count = len(found := left())
    if recorded and int(recorded["pid"]) in found:
        _signal(int(recorded["pid"]), signal.SIGTERM)
        _until(lambda: not is_alive(recorded), grace)
    if not _until(kill, KILL_TIME):
        log.warn(f"processes of an earlier run cannot be ended: {sorted(left())}")
    return count


def _signal(pid: int, number: int) -> None:
    # It may have ended by itself in the meantime, or belong to somebody else.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until the condition holds; whether it does."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


def _marked(marker: str) -> set[int]:
    wanted = f"{MARKER}={marker}".encode()
    return {pid for pid in _pids() if wanted in _read(f"/proc/{pid}/environ").split(b"\0")}


def _children() -> set[int]:
    return {pid for pid in _pids() if _stat(pid)[1:2] == [str(os.getpid()).encode()]}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else []


def _command_line(pid: int) -> str:
    """What a process runs, "" for a zombie."""
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return log.mask(words)[:200]


def _stat(pid: int) -> list[bytes]:
    """Fields 3 and up of /proc/PID/stat (state, parent, ...); the name before them may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _start_time(pid: int) -> str:
    if LINUX:
        fields = _stat(pid)  # proc(5): starttime is field 22, state field 3
        return fields[19].decode() if fields and fields[0] != b"Z" else ""
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode().strip() if LINUX else ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return b""


def _become_parent() -> None:
    """See how children end, and get their orphans too (Linux), so that the sweep finds them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, and that is inherited, every exit code is 0
    if LINUX:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # or a check could read our keys in /proc/PPID/environ
