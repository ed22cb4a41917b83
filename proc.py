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
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import log
import processes
from processes import GRACE, KILL_TIME, LINUX

PART = "CCO_PART"  # environment variable that tells the processes of commands side by side from each other
CAPS = ("cpu", "memory", "processes")  # what a command and all that it started may use up together
STEP = 0.2  # seconds between two looks at a running command
MARGIN = 4096  # bytes before the shown end of an output, so that a secret on the border is known as one
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # prctl(2)

_raising = False
_hung_up = False  # whether the terminal is gone, which was not said yet
_beside: list[Running] = []  # the commands that run now
_strangers: set[int] = set()  # children of ours that no command here has started
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
    cpu: float | None = None
    """Seconds of processor time of the command and all that it started (Linux, as the two below)."""
    memory: int | None = None
    """Bytes that they occupy together."""
    processes: int | None = None
    """How many they are."""


@dataclass
class Result:
    """What became of one command."""

    code: int | None = None
    """Exit code, negative for a signal, None when it could not be started."""
    stopped: str = ""
    """Why it was ended from here: "", "timeout", "idle", "size", one of CAPS, "interrupted", or what `tick` said."""
    seconds: float = 0.0
    """Wall time it took."""
    size: int = 0
    """Bytes of output."""
    swept: list[str] = field(default_factory=list)
    """Command lines of the processes that it left behind and that were ended."""
    error: str = ""
    """Why it could not be started."""
    errno: int = 0
    """The system's number for that; see machine.py."""


# --------------------------------------------------------------------------------------------------------
# Signals
# --------------------------------------------------------------------------------------------------------


def catch_signals(hangup: bool = True) -> None:
    """Let SIGTERM, SIGINT and SIGHUP set `stopping`. Under nohup SIGHUP stays ignored.

    hangup: whether a lost terminal is a reason to stop; if not, the log tells of it, and the work goes on.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _note_signal if hangup else _note_hangup)


def pause(seconds: float) -> bool:
    """Wait, at most until a signal asks to stop; whether the whole time was waited."""
    end = time.monotonic() + seconds
    while not stopping and (left := end - time.monotonic()) > 0:
        _tell_hangup()
        time.sleep(min(STEP, left))
    return not stopping


def spare(pid: int) -> None:
    """Let a child that no command here started live, also while commands run: it is not swept up after them."""
    _strangers.add(pid)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise Interrupted in here, for what would not look at `stopping` for a long time."""
    global _raising
    _raising = True
    try:
        if stopping:  # it came just before
            raise Interrupted
        yield
    finally:
        _raising = False


def _note_signal(number: int, _frame: object) -> None:
    global stopping
    stopping = number
    if _raising:
        raise Interrupted


def _note_hangup(_number: int, _frame: object) -> None:
    global _hung_up
    _hung_up = True


def _tell_hangup() -> None:
    """Not from the handler: it may have come in the middle of another line."""
    global _hung_up
    if _hung_up:
        _hung_up = False
        log.warn("the terminal is gone; the mission goes on (make stop ends it after the current session)")


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
    running = Running(argv, cwd, env, output, limits, errors=errors, stdin=stdin, tick=tick, shielded=shielded)
    try:
        if started and running.process:
            started(running.process.pid)
        while not running.over(STEP):
            pass
    except BaseException:  # of `started` or `tick`: it is ended, but has the time to put its things in order
        running.result.stopped = "interrupted"
        raise
    finally:
        running.close()
    return running.result


class Running:
    """A command that was started; several of them may run side by side.

    `over` looks at it, `close` ends what is left of it; `result` is complete after that.
    """

    def __init__(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        output: IO[bytes],
        limits: Limits,
        *,
        errors: IO[bytes] | None = None,
        stdin: bytes = b"",
        tick: Callable[[], str] | None = None,
        shielded: bool = False,
        part: str = "",
    ):
        """part: tells what it leaves behind from what the commands beside it do; see `run` for the others."""
        global _strangers
        _become_parent()
        if not _beside:
            _strangers = processes.children()
        self.limits, self.tick, self.shielded, self.part = limits, tick, shielded, part
        self.files = [output] + ([errors] if errors else [])
        for file in self.files:  # a command that reopens /dev/stderr truncates it; what follows still goes to its end
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
        self.result = Result()
        self.begun = self.grew = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.process = _spawn(argv, cwd, {**env, PART: part} if part else env, output, errors, stdin)
            _beside.append(self)
        except OSError as error:
            self.result.error = f"{error.strerror}: {error.filename or argv[0]}"
            self.result.errno = error.errno or 0
        except ValueError as error:  # a NUL byte in an argument
            self.result.error = str(error)

    def over(self, seconds: float = 0.0) -> bool:
        """Wait up to so many seconds for its end; whether it has ended or has to be ended now."""
        if self.process is None:
            return True
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            self.result.stopped = self._reason_to_stop()
            return bool(self.result.stopped)

    def close(self) -> Result:
        """End it if it still runs, and whatever it left behind; what became of it."""
        if self.process and self in _beside:
            if self.result.stopped:
                _terminate(self.process, 0.0 if self.result.stopped in CAPS else self.limits.grace)
            self.result.swept = self._sweep(self.process)
            _beside.remove(self)
            self.result.code = self.process.returncode
            self.result.seconds = time.monotonic() - self.begun
            self.result.size = sum(map(_size, self.files))
        return self.result

    def _reason_to_stop(self) -> str:
        _tell_hangup()
        now, limits = time.monotonic(), self.limits
        if (size := sum(map(_size, self.files))) != self.result.size:
            self.result.size, self.grew = size, now
        if stopping and not self.shielded:
            return "interrupted"
        if now - self.begun > limits.timeout:
            return "timeout"
        if limits.idle is not None and now - self.grew > limits.idle:
            return "idle"
        if limits.max_output is not None and size > limits.max_output:
            return "size"
        return self._beyond_caps() or (self.tick() if self.tick else "")

    def _beyond_caps(self) -> str:
        caps = (self.limits.cpu, self.limits.memory, self.limits.processes)
        if self.process is None or caps == (None, None, None):
            return ""
        used = processes.usage(*self._ours())  # also what has left the command's tree, as a daemon does
        return next((name for name, cap, value in zip(CAPS, caps, used, strict=True) if cap and value > cap), "")

    def _sweep(self, process: subprocess.Popen[bytes]) -> list[str]:
        """End what is left of the command's group and every process that it left to us; their command lines."""
        names = {pid: processes.command_line(pid) for pid in self._ours()}  # before they are killed
        if LINUX and not names:  # it has ended, and whatever it left would be our child now
            return []
        # The group may be empty (macOS says EPERM when only zombies are left), or somebody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        _await_end(process.pid, lambda: process.poll() is not None)
        swept = []
        while orphans := self._ours():  # each of them hands its own children to us, hence the loop
            for pid in orphans:
                swept.append(names.get(pid) or processes.command_line(pid))
                processes.send(pid, signal.SIGKILL)
            for pid in orphans:
                _await_end(pid, partial(_reaped, pid))
        return [name for name in swept if name]  # one without a name had ended by itself

    def _ours(self) -> set[int]:
        """Our children that are this command or were left by it. Beside others, only those known by session or part."""
        others = {other.process.pid for other in _beside if other is not self and other.process}
        left = processes.children() - _strangers - others
        if not others:
            return left
        own = self.process.pid if self.process else None
        return {
            pid
            for pid in left  # one that has ended shows its session still, but its environment no more
            if own in (pid, processes.session(pid)) or processes.carries(pid, PART, self.part)
        }


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


def _terminate(process: subprocess.Popen[bytes], grace: float) -> None:
    # To the process alone: claude ends its own tools when it is asked to, and so do most test runners.
    processes.send(process.pid, signal.SIGTERM if grace else signal.SIGKILL)
    try:
        process.wait(grace or KILL_TIME)
    except subprocess.TimeoutExpired:
        processes.send(process.pid, signal.SIGKILL)


def _await_end(pid: int, ended: Callable[[], bool]) -> None:
    """Wait for a killed child; one that does not end (sudo's, or stuck in the kernel) is a stranger from now on."""
    if not processes.wait_for(ended, KILL_TIME):
        log.warn(f"process {pid} cannot be ended and is left running: {processes.command_line(pid)}")
        _strangers.add(pid)


def _reaped(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _become_parent() -> None:
    """See how children end, and get their orphans too (Linux), so that the sweep finds them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, and that is inherited, every exit code is 0
    if LINUX:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # or a check could read our keys in /proc/PPID/environ
