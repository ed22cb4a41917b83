"""Run a command and leave nothing of it behind; find programs, and the environment for them.

    with tempfile.TemporaryFile() as output:
        result = proc.run(["npm", "test"], cwd=root, env=env, output=output, limits=proc.Limits(600))

Output goes to a file and no pipe is read, so a grandchild that keeps it open cannot hang the kit. On Linux the kit is
a subreaper: what a command leaves becomes its child, and is killed. Limitations: elsewhere a process that leaves its
group survives. After kill -9 of the kit the command goes on until `end_leftovers` ends it at the next start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import log

LINUX = sys.platform.startswith("linux")
MARKER = "CCO_RUN"  # environment variable that marks everything a run starts
STEP, SHORT_STEP = 0.2, 0.005  # seconds between two looks at what runs, or is to end now
KILL_TIME = 10.0  # seconds after which a process is taken for one that SIGKILL cannot end
MARGIN = 4096  # bytes before the shown end of an output, so that a secret on the border is recognised
SPACE = 1_000_000  # bytes that have to be free
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # prctl(2)
NESTED = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_CHILD_SESSION", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")

stopping = 0  # the signal that asked the kit to stop; 0: none
_raised = False  # whether Interrupted was raised for it
_open: list[Running] = []  # the commands that run now
_spared: set[int] = set()  # children that no command here has started
_distrusted: set[Path] = set()  # folders that a worker can write: nothing in them may be taken for git or bash

# Exit codes; a signal's is 128 + its number.
DONE, ERROR, USAGE, USER, CANNOT, LIMIT, LATER = 0, 1, 2, 3, 4, 5, 75


class Stop(Exception):
    """End the run with an exit code; everything is saved and can be resumed."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """When a command is ended from here."""

    timeout: float  # seconds
    idle: float | None = None  # seconds without new output
    max_output: int | None = None  # bytes
    grace: float = 10.0  # seconds between SIGTERM and SIGKILL
    memory: int | None = None  # bytes that it and all that it started occupy together (Linux)
    processes: int | None = None  # how many they are (Linux)


@dataclass
class Result:
    """What became of a command."""

    code: int | None = None  # exit code; negative: a signal; None: it could not be started
    stopped: str = ""  # "", timeout, idle, size, memory, processes, interrupted, or what tick said
    seconds: float = 0.0  # wall time
    size: int = 0  # bytes of output
    swept: list[str] = field(default_factory=list)  # command lines of what it left behind and was killed
    error: str = ""  # why it could not be started
    errno: int = 0  # the system's number for that


class Interrupted(KeyboardInterrupt):
    """A signal asked the kit to stop."""

    result: Result | None = None  # of the command that ran then

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code  # exit code: 128 and the signal


def handle_signals() -> None:
    """Let SIGTERM, SIGINT and SIGQUIT raise Interrupted, once; later ones only set `stopping`. SIGHUP is ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


pause = time.sleep  # raises Interrupted


def _on_signal(number: int, _frame: object) -> None:
    global stopping
    stopping = number
    if not _open:  # else `over` or `close` raises it: starting and cleaning up are never cut short
        _raise_once()


def _raise_once() -> None:
    global _raised
    if stopping and not _raised:
        _raised = True
        raise Interrupted(128 + stopping)


def run(argv: Sequence[str], *, started: Callable[[int], None] | None = None, **options: Any) -> Result:
    """Run a command until it ends or reaches a limit, then kill what it left. options: the fields of `Running`.

    started: gets the pid. Raises Interrupted, with what became of the command as its `result`.
    """
    if stopping:
        raise Interrupted(128 + stopping)
    running = Running(argv, **options)
    try:
        with closing(running):
            if started and running.process:
                started(running.process.pid)
            while not running.over(STEP):
                pass
    except Interrupted as error:
        error.result = running.result
        raise
    return running.result


@dataclass(eq=False, repr=False)  # its environment may hold secrets
class Running:
    """A command that was started in a session of its own; `over` looks at it, and `close` has to end it.

    Until it is closed, signals raise in `over` and `close` only, so that no start or end is cut short. Several may run
    side by side where each ends its own processes, as bubblewrap does: only the last one is swept up after.
    """

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    output: IO[bytes]  # an open file
    limits: Limits
    errors: IO[bytes] | None = None  # another one; None: the same
    stdin: bytes = b""
    tick: Callable[[], str] | None = None  # called at each look; a word from it ends the command

    def __post_init__(self) -> None:
        global _spared
        _become_subreaper()
        if not _open:
            _spared = _children()
        _open.append(self)
        self.files = [self.output] + ([self.errors] if self.errors else [])
        self.result = Result()
        self.begun = self.grew = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        try:
            for file in self.files:  # a command that reopens /dev/stderr truncates it; the rest still goes to its end
                fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
            files = {"stdout": self.output, "stderr": self.errors or subprocess.STDOUT}
            self.process = _spawn(self.argv, self.stdin, cwd=self.cwd, env=self.env, **files)
            with suppress(AttributeError, OSError):  # neither Linux nor allowed everywhere
                self.pidfd = os.pidfd_open(self.process.pid)
        except OSError as error:
            self.result.error = f"{error.strerror}: {error.filename or self.argv[0]}"
            self.result.errno = error.errno or 0

    def over(self, seconds: float = 0.0) -> bool:
        """Wait up to so many seconds, and STEP; return whether it is to be closed now. Raises Interrupted."""
        if self.process is None:
            return True
        self.result.stopped = "interrupted"  # where what follows raises: then it gets SIGTERM
        wait_for_any([self], seconds)
        ended = self.process.poll() is not None
        self.result.stopped = "" if ended else self._reason_to_stop(self.process.pid)
        return ended or bool(self.result.stopped)

    def close(self) -> Result:
        """End it if it still runs, and whatever it left behind. Raises Interrupted for a signal that had to wait."""
        if self not in _open:
            return self.result
        if self.process:
            if self.result.stopped not in ("", "memory", "processes"):
                with suppress(PermissionError, subprocess.TimeoutExpired):
                    self.process.terminate()  # it alone: claude, like most test runners, then ends its own tools
                    self.process.wait(self.limits.grace)
            with suppress(PermissionError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait(KILL_TIME)
            if not LINUX:
                with suppress(ProcessLookupError, PermissionError):  # it is empty, or somebody else's
                    os.killpg(self.process.pid, signal.SIGKILL)
            if len(_open) == 1:
                self.result.swept = _kill(lambda: _children() - _spared)
            self.result.code = self.process.returncode
            self.result.seconds = time.monotonic() - self.begun
            self.result.size = sum(map(_size, self.files))
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.process = None  # now, or a signal may be lost in Popen.__del__
        _open.remove(self)
        if not _open:
            _raise_once()
        return self.result

    def _reason_to_stop(self, pid: int) -> str:
        now, limits, size = time.monotonic(), self.limits, sum(map(_size, self.files))
        if size != self.result.size:
            self.result.size, self.grew = size, now
        tree = _tree({pid}) if limits.memory or limits.processes else set()
        pages = [_read(f"/proc/{member}/statm").split() for member in tree]
        memory = sum(int(page[1]) - int(page[2]) for page in pages if page) * os.sysconf("SC_PAGE_SIZE")  # unshared
        reached = {
            "timeout": now - self.begun > limits.timeout,
            "idle": limits.idle is not None and now - self.grew > limits.idle,
            "size": limits.max_output is not None and size > limits.max_output,
            "memory": limits.memory is not None and memory > limits.memory,
            "processes": limits.processes is not None and len(tree) > limits.processes,
        }
        return next((name for name in reached if reached[name]), "") or (self.tick() if self.tick else "")


def wait_for_any(commands: Sequence[Running], seconds: float) -> None:
    """Wait up to so many seconds, and STEP, for the end of one of them; `over` says which. Raises Interrupted."""
    pidfds = [running.pidfd for running in commands if running.pidfd >= 0]
    step = STEP if len(pidfds) == len(commands) else SHORT_STEP  # not on Linux, or it could not be started
    select.select(pidfds, [], [], min(seconds, step))
    _raise_once()


def start_detached(argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes) -> subprocess.Popen[bytes]:
    """Start a process that is not swept up after a command; its errors go to the kit's stderr. Raises OSError."""
    process = _spawn(argv, stdin, cwd=cwd, env=env, stdout=subprocess.DEVNULL)
    _spared.add(process.pid)
    return process


def _spawn(argv: Sequence[str], stdin: bytes, **options: Any) -> subprocess.Popen[bytes]:
    if not stdin:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    with tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        return subprocess.Popen(argv, stdin=source, start_new_session=True, **options)


def _kill(left: Callable[[], set[int]]) -> list[str]:
    """Kill processes until none is left; return their command lines."""
    names: dict[int, str] = {}
    end, step = time.monotonic() + KILL_TIME, SHORT_STEP / 50  # what was killed is often gone at once
    while pids := left():  # each hands its own children to the kit
        if time.monotonic() > end:
            log.warn(f"processes that cannot be killed are left running: {sorted(pids)}")
            break
        for pid in pids:
            name = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()
            names.setdefault(pid, log.mask(name)[:200])
            with suppress(OSError):  # it has ended, is somebody else's, or no child
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(step)
        step = min(2 * step, STEP)
    return [name for name in names.values() if name]  # one without a name had ended by itself


@functools.lru_cache
def _become_subreaper() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, which is inherited, every exit code would be 0
    if LINUX:
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # or a check could read the kit's keys in /proc/PPID/environ


def identity(pid: int) -> dict[str, Any]:
    """Return what tells this process from a later one with the same number; a zombie has no start time."""
    boot = _read("/proc/sys/kernel/random/boot_id").decode().strip()
    if LINUX:
        fields = _stat(pid)
        start = fields[19].decode() if fields and fields[0] != b"Z" else ""
    else:
        start = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return {"pid": pid, "start": start, "boot": boot}


def is_alive(recorded: Mapping[str, Any]) -> bool:
    """Return whether the process of this `identity` still runs."""
    return bool(recorded.get("start")) and recorded.items() >= identity(int(recorded["pid"])).items()


def end_leftovers(marker: str, recorded: Mapping[str, Any] | None) -> int:
    """Kill what a killed kit left: all that carries the marker, the recorded process, and their children; how many."""

    def left() -> set[int]:
        alive = {int(recorded["pid"])} if recorded and is_alive(recorded) else set()
        word = f"{MARKER}={marker}".encode()
        started = {pid for pid in _pids() if word in _read(f"/proc/{pid}/environ").split(b"\0")} | alive
        return _tree(started) - {os.getpid()}  # a worker may have started this kit

    return len(_kill(left))


def working_in(folder: Path, name: str) -> bool:
    """Return whether a process whose program's name begins so works in a folder."""
    root = Path(os.path.realpath(folder))
    for pid in (pid for pid in _pids() if _read(f"/proc/{pid}/comm").startswith(name.encode())):
        with suppress(OSError):  # it has ended, or is somebody else's
            if Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(root):
                return True
    return False


def _children() -> set[int]:
    """Return the kit's own children, zombies included. That there are none costs no look at /proc."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # there is no waitid on macOS
        return set()
    listed = _read(f"/proc/self/task/{os.getpid()}/children").split()  # few kernels have no such file
    return set(map(int, listed)) or {pid for pid in _pids() if _stat(pid)[1:2] == [str(os.getpid()).encode()]}


def _tree(roots: set[int]) -> set[int]:
    parents = {pid: int(fields[1]) for pid in _pids() if len(fields := _stat(pid)) > 1}
    tree = level = set(roots)
    while level:
        level = {child for child, parent in parents.items() if parent in level} - tree
        tree = tree | level
    return tree


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else []


def _stat(pid: int) -> list[bytes]:
    """Return fields 3 and up of /proc/PID/stat; the name before them may hold anything."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    with suppress(OSError), open(path, "rb", buffering=0) as file:  # it has ended, or is somebody else's
        return file.read()
    return b""


@dataclass
class Lock:
    """What the repository's lock says of its last holder."""

    was_unclean: bool  # it did not end by itself
    is_settled: bool  # what follows from that is saved; else the next holder learns of it, too


@contextmanager
def lock(path: Path, mission: str) -> Iterator[Lock]:
    """Hold the repository's lock: `.cco/lock` says by whom. Raises Stop, OSError.

    The kernel frees it when the holder dies, however it dies. What is locked is the repository's folder: a file in
    `.cco` can be removed (git clean -fdx), and then two could each hold a lock of their own.
    """
    folder = os.open(path.parent.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = (holder(path) or {}).get("pid", "?")
            raise Stop(LATER, f"another orchestrator works here: pid {who}") from None
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
            was_unclean = os.fstat(file.fileno()).st_size > 0
            held = Lock(was_unclean, not was_unclean)
            file.truncate(0)
            file.write(json.dumps({**identity(os.getpid()), "mission": mission}))
            file.flush()
            try:
                yield held
            finally:
                if held.is_settled:
                    file.truncate(0)
    finally:
        os.close(folder)


def holder(path: Path) -> dict[str, Any] | None:
    """Return which process holds the lock, and for which mission; None when nobody does."""
    try:
        record = json.loads(path.read_bytes())
        return record if is_alive(record) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(name: str, outside: Path, path: str | None = None) -> str | None:
    """Return where a program is: like shutil.which, but never relative, inside `outside` or where `distrust` says."""
    places = _split(os.environ.get("PATH", os.defpath) if path is None else path, outside)[0]
    program = shutil.which(name, path=places)
    return os.path.abspath(program) if program else None


def trusted_path(path: str, outside: Path) -> str:
    """Return the same PATH with what is relative or inside `outside` at its end: that adds programs, replaces none."""
    return os.pathsep.join(filter(None, _split(path, outside)))


def distrust(folder: Path) -> None:
    """Take no program from this folder, whatever the caller of `find` says of another one."""
    _distrusted.add(folder.resolve())
    _split.cache_clear()


@functools.lru_cache
def _split(path: str, outside: Path) -> tuple[str, str]:
    places, roots = path.split(os.pathsep), {outside.resolve(), *_distrusted}
    ours = [p for p in places if os.path.isabs(p) and not any(Path(p).resolve().is_relative_to(root) for root in roots)]
    return os.pathsep.join(ours), os.pathsep.join(place for place in places if place not in ours)


def clean_env(environ: Mapping[str, str], keep: Sequence[str] = (), apart: Path | None = None) -> dict[str, str]:
    """Return the environment without secrets, and without what a surrounding claude or make left.

    keep: patterns of names that stay. apart: a folder that nothing may lead to.
    """
    env = {}
    for name, value in environ.items():
        is_secret = name in NESTED or log.is_secret_name(name) or log.holds_secret(os.fsencode(value))
        if not is_secret or any(fnmatchcase(name, pattern) for pattern in keep):
            env[name] = value
    if apart:
        path = _split(env.get("PATH", os.defpath), apart)[0]
        env = {n: v for n, v in env.items() if str(apart) not in v and not n.startswith("GIT_")} | {"PATH": path}
    return env


def read(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return up to `size` bytes from an offset, without moving the one that a running command writes at."""
    return os.pread(file.fileno(), size, offset)


def tail(file: IO[bytes], limit: int) -> str:
    """Return the last `limit` characters, masked."""
    data = read(file, max(0, _size(file) - limit - MARGIN), limit + MARGIN)
    return log.mask(data.decode("utf-8", "replace"))[-limit:]


def require_space(*folders: Path) -> None:
    """Raise OSError where nothing can be written or the disk is full; what fails then may fail for that alone."""
    for folder in folders:
        disk = os.statvfs(folder)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        if disk.f_bavail * disk.f_frsize < SPACE or (disk.f_files and not disk.f_favail):
            raise OSError(errno.ENOSPC, "no space left: free some", str(folder))


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
