#!/usr/bin/env python3
"""Kill the kit before and after every system call that touches state or git, start it again, and hold it to its word.

    python extras/crash_sweep.py [--jobs 2] [--every N] [--kit DIR] [--verbose]
    python extras/crash_sweep.py --only 3:rename:7:before     one point again (or a pattern: '3:git:*')

A mission of five iterations is run once, as five `start --once`, and its folder is kept as it was before each. Every
point puts that folder back, repeats the run up to the point and kills the kit there; then it is started until it
ends. Whatever the point, the outcome must be one of a closed set, which `Trial.look` and `Trial.prove` spell out: done,
every piece of work on the branch and in a fresh clone, each iteration counted and committed once, each cent once.
A violation is told with the command that repeats it, its folder is kept, and the exit code is 1.

    3:rename:7:before     SIGKILL on entry of the 7th rename of the kit's 3rd run; the call does not happen
    3:vfork:9:after       SIGKILL when the call has returned: the git, the check or the worker it started lives on
    3:git:17:rename:2:killed     git and kit die together, on entry of the 2nd rename of the run's 17th git command
    3:git:17:openat:2:held       the kit dies while git has just made that lock file; git goes on while the kit starts
    3:worker:worked:orphaned     the kit dies while the worker is at work, and the worker lives on; `killed`: both die
    walls:vfork:9:after          as above, in a run whose checks are in a sandbox

Measured with strace 6.1. `inject=CALL:signal=KILL:when=N` kills on entry, and the call has no effect. `delay_exit`
writes `(DELAYED)` when the call has had its effect and holds the process there, where SIGKILL ends it at once (strace
itself sees that only when the delay is over, so it is short, and tried again with a longer one where it was missed).
Between two calls that are listed here nothing on disk changes, so that "after" one is "before" the next; it is a
point of its own only where the call starts a process that changes something meanwhile. `when` counts each name by
itself. How often openat, close and write are called hangs on the machine (/proc, output in parts), so `-P` counts
only those on the very same path, and the kit is run by a few lines that make the names of temporary files and
sessions the same every time. A run in whose trace the killed call does not stand last proves nothing, and counts as
a violation.

Everything runs in a process namespace of its own (bubblewrap), which makes tracing ten times faster, since the kit
looks at every process of the machine, and lets nothing survive the sweep.

Not covered: power loss (what was synced is what the page cache holds), calls that only read, and the lines of the log.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXTRAS = Path(__file__).resolve().parent
BRANCH, PIECES = "cco/demo", 5
RUNS = (*(str(n) for n in range(1, PIECES + 1)), "walls")  # walls: the last run again, with the checks in a sandbox
STARTS = 6  # after a kill, of which one should do
PATIENCE = 120.0  # seconds for one start
POLL = 0.001  # seconds between two looks for the moment to kill
HOLD = 3_000_000  # microseconds that git is held in the middle, longer than a start takes to get to its own git
DELAYS = (300_000, 3_000_000)  # microseconds that the kit is held to be killed, the second where the first was missed
STARTERS = ("vfork", "clone", "clone3", "fork")
POLLED = ("openat", "close", "write")  # calls whose number hangs on the machine
CHANGING = "pwrite64,ftruncate,fsync,fdatasync,flock,rename,renameat,renameat2,link,linkat,symlink,unlink,unlinkat,"
TRACED = f"{CHANGING}rmdir,mkdir,chmod,fchmod,{','.join((*POLLED, *STARTERS))}"
CONTAINED = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent")
KINDS = (
    *("not_injected", "unended", "tracebacks", "states", "counts", "commits"),
    *("work", "cost", "two_workers", "leftovers", "touched"),
)

# Run as `repeatable.py PID_FILE RUN cco.py ...`: the same run makes the same names.
REPEATABLE = """\
import itertools, os, runpy, sys, tempfile, uuid
open(sys.argv[1], "w").write(str(os.getpid()))
names, ids = itertools.count(1), itertools.count(int(sys.argv[2]) * 1000 + 1)
tempfile._name_sequence = (f"n{n:07d}" for n in names)
uuid.uuid4 = lambda: uuid.UUID(int=next(ids), version=4)
del sys.argv[:3]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Each git command of a run by its number; SWEEP_CALL: the one that strace gets SWEEP_OPTIONS for, `all`: every one.
GIT = """\
#!/bin/sh
n=$(($(cat "$SWEEP/count") + 1)); echo $n > "$SWEEP/count"
case "$SWEEP_CALL" in all|$n) ;; *) exec @GIT@ "$@";; esac
echo "$$ $n" >> "$SWEEP/pids"
strace -y -s 200 -o "$SWEEP/git-$n" $SWEEP_OPTIONS @GIT@ "$@"
code=$?
case "$SWEEP_OPTIONS" in *KILL*) kill -9 $PPID; exec sleep 1;; esac
exit $code
"""
CLAUDE = """\
#!/bin/bash
case " $* " in *" -p "*) exec 9>>@S@/alone; flock -n 9 || echo "$$ is not alone" >> @S@/two;; esac
exec @PYTHON@ @KIT@/extras/claude_stand_in.py "$@"
"""
WORK = """\
#!/bin/bash
pause() { if test -e @S@/pause-$1; then mv @S@/pause-$1 @S@/paused; exec sleep 100; fi; }
pause begun
mkdir -p work
for n in 1 2 3 4 5; do test -e work/$n || { echo "piece $n" > work/$n; break; }; done
pause worked
"""


@dataclass(frozen=True)
class Call:
    """One line of a trace."""

    name: str
    nth: int
    """Among the calls of this name."""
    given: str
    """What it is about, as strace's -P knows it, "" for nothing."""
    path: str
    """The same, whole."""
    nth_there: int
    """Among the calls of this name on what is given."""
    line: str
    at: int
    """Among all calls."""

    @property
    def filtered(self) -> list[str]:
        """Options by which strace counts it alone, where its number among all of its name hangs on the machine."""
        return ["-P", self.given] if self.name in POLLED and _plain(self.given) == self.given else []

    @property
    def when(self) -> int:
        """Its number for strace, with those options."""
        return self.nth_there if self.filtered else self.nth


@dataclass(frozen=True)
class Point:
    """One moment to die in."""

    run: str
    who: str
    """kit, git or worker."""
    call: Call
    how: str
    name: str
    """By which it is asked for again; its numbers count the calls that are points, and so are the same everywhere."""
    command: int = 0
    """Number of the git command."""


# --------------------------------------------------------------------------------------------------------
# Traces
# --------------------------------------------------------------------------------------------------------


def calls_of(trace: Path, folder: Path) -> list[Call]:
    """What the trace of a process that works in this folder shows, in its order."""
    found: list[Call] = []
    names: Counter[str] = Counter()
    places: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines() if trace.exists() else []:
        if parts := re.match(r"(\w+)\((.*)", line):
            given, path = _places(parts[1], parts[2], folder)
            names[parts[1]] += 1
            places[parts[1], given] += 1
            there = places[parts[1], given]
            found.append(Call(parts[1], names[parts[1]], given, path, there, line, len(found)))
    return found


def _places(name: str, rest: str, folder: Path) -> tuple[str, str]:
    """The file that a call is about, as it is given and whole: its first path, or that of its first file handle."""
    start = re.match(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>(?:, )?)?(?:"([^"]*)")?', rest)
    handle, given = (start[1] or "", start[2] or "") if start else ("", "")
    if name in ("write", "pwrite64"):  # the text that is written is no path
        given = ""
    return given or handle, os.path.normpath(folder / handle / given) if given or handle else ""


def _changes(call: Call) -> bool:
    """Whether it may have changed something."""
    if "= -1 " in call.line or ">(deleted)" in call.line:  # a file without a name is gone with its process
        return False
    if call.name == "openat":
        return bool(re.search(r"O_CREAT|O_WRONLY|O_RDWR", call.line))
    return call.name != "close"


def kit_points(run: str, calls: list[Call], root: Path, harmless: set[str]) -> list[Point]:
    """Before each call of the kit that touches state or git, and after each that starts what may change something.

    harmless: the processes, by number, that changed nothing.
    """
    settled: dict[str, str] = {}  # the last call on each path
    scratch: dict[str, list[Call]] = {}
    found = []
    for call in calls:
        before, settled[call.path] = settled.get(call.path, ""), call.name
        if call.path.startswith(f"{root}/tmp/cco-") and _changes(call):
            scratch.setdefault(call.name, []).append(call)
        elif call.name in STARTERS or (_is_ours(call, root) and _is_written(call, before, root)):
            found.append(call)
    found += [call for group in scratch.values() for call in _ends(group)]
    points, numbers = [], Counter[str]()
    for call in sorted(found, key=lambda call: call.at):
        numbers[call.name] += 1
        starts = call.name in STARTERS and _pid(call) not in harmless
        for how in ("before", "after") if starts else ("before",):
            points.append(Point(run, "kit", call, how, f"{run}:{call.name}:{numbers[call.name]}:{how}"))
    return points


def _is_ours(call: Call, root: Path) -> bool:
    """Whether it is about state or git, and no line of a log or of a stream, which come as the machine lets them."""
    places = (f"{root}/repository/.cco", f"{root}/repository/.git", f"{root}/key")
    lines = call.path.endswith(".log") or (call.name == "write" and call.path.endswith(".jsonl"))
    unsure = call.name in POLLED and not call.filtered  # the kit's number is in the name
    return call.path.startswith(places) and not lines and not unsure


def _is_written(call: Call, before: str, root: Path) -> bool:
    """Whether it changes a file or belongs to its safe keeping. before: the call before it on the same path."""
    synced = call.name == "close" and before in ("fsync", "ftruncate")
    folder_opened = call.name == "openat" and call.path == f"{root}/repository/.cco" and "O_NONBLOCK" not in call.line
    return _changes(call) or synced or folder_opened


def _ends(calls: list[Call]) -> list[Call]:
    """The first and the last, where all of them are much the same."""
    return calls if len(calls) < 2 else [calls[0], calls[-1]]


def git_points(run: str, folder: Path, root: Path) -> list[Point]:
    """Before the first change of each kind that git makes to each file, and while it holds a lock.

    How many parts an object is written in hangs on its bytes, and what git does to one object it does to all.
    """
    points = []
    for trace in sorted(folder.glob("git-*"), key=lambda path: int(path.name[4:])):
        command, numbers = int(trace.name[4:]), Counter[str]()
        groups: dict[tuple[str, str], list[Call]] = {}
        for call in changes_of(trace, root):
            kind = call.name, _plain(call.path)
            # An object has a name of its own each time, is empty until written, and finds its folder or makes it.
            if kind != ("openat", "objects/tmp_obj") and not (call.name == "mkdir" and "/objects/" in call.path):
                groups.setdefault(kind, []).append(call)
        firsts = {group[0] for group in groups.values()}
        for call in sorted(firsts, key=lambda call: call.at):
            numbers[call.name] += 1
            held = call.name == "openat" and call.path.endswith(".lock")
            for how in ("killed", "held") if held else ("killed",):
                name = f"{run}:git:{command}:{call.name}:{numbers[call.name]}:{how}"
                points.append(Point(run, "git", call, how, name, command))
    return points


def changes_of(trace: Path, root: Path) -> list[Call]:
    """What a git command changed in the repository."""
    places = (f"{root}/repository/.git/", f"{root}/repository/work/")
    return [call for call in calls_of(trace, root / "repository") if call.path.startswith(places) and _changes(call)]


def worker_points(run: str) -> list[Point]:
    """While the worker is at work, before and after it has done something."""
    calls = [Call(when, 1, "", "", 1, "", 0) for when in ("begun", "worked")]
    hows = ("orphaned", "killed")
    return [Point(run, "worker", call, how, f"{run}:worker:{call.name}:{how}") for call in calls for how in hows]


# --------------------------------------------------------------------------------------------------------
# One point
# --------------------------------------------------------------------------------------------------------


class Trial:
    """The mission in a folder that always has the same path, put back for every point."""

    def __init__(self, base: Path, kit: Path):
        sys.path.insert(0, str(kit))  # whose modules are loaded here, to look at what it wrote
        self.base, self.kit, self.root = base, kit, base / "now"
        self.repository, self.trace, self.sweep = self.root / "repository", base / "trace", base / "git"
        self.state, self.store = self.repository / ".cco/demo.json", _module(kit, "state")
        self.price = _module(kit, "extras/claude_stand_in").PRICE
        self.found: list[tuple[str, str]] = []
        self.starts = self.iterations = 0
        own = {"HOME": "home", "XDG_STATE_HOME": "key", "TMPDIR": "tmp", "CLAUDE_STAND_IN": "script.json"}
        known = {n: v for n, v in os.environ.items() if not n.startswith(("CCO_", "OPENROUTER_", "GIT_"))}
        self.env = {**known, **{n: str(self.root / v) for n, v in own.items()}, "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["XDG_STATE_HOME"] = self.env["XDG_STATE_HOME"]  # where `store` looks for the key

    def build(self) -> None:
        """The repository, the mission, the worker, and what traces."""
        for name in ("repository", "bin", "home", "key", "tmp"):
            (self.root / name).mkdir(parents=True)
        for folder in (self.base / "bin", self.sweep):
            folder.mkdir()
        places = {"@S@": self.root, "@KIT@": self.kit, "@PYTHON@": sys.executable, "@GIT@": shutil.which("git")}
        scripts = {"now/bin/claude": CLAUDE, "now/bin/work": WORK, "bin/git": GIT, "bin/repeatable.py": REPEATABLE}
        for name, text in scripts.items():
            (self.base / name).write_text(re.sub("|".join(places), lambda found: str(places[found[0]]), text))
            (self.base / name).chmod(0o755)
        pieces = range(1, PIECES + 1)
        criteria = [{"id": f"c{n}", "criteria": f"piece {n}", "check": f"test -e work/{n}"} for n in pieces]
        claude = {"command": str(self.root / "bin/claude"), "sandbox": False}
        settings = {"claude_code": claude, "checks": {"sandbox": False}, "manager": {"provider": "rules"}}
        mission = {"title": "Five pieces", "repository": str(self.repository), "settings": settings}
        (self.root / "demo.json").write_text(json.dumps({**mission, "definition_of_done": criteria}, indent=1))
        session = [{"bash": str(self.root / "bin/work")}, {"say": "One piece more."}]
        (self.root / "script.json").write_text(json.dumps([session] * 3 * PIECES))
        (self.repository / "README.md").write_text("# a project\n")
        self.git("init", "-q", "-b", "main")
        for name, value in (("user.name", "Sweep"), ("user.email", "sweep@example.invalid")):
            self.git("config", name, value)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "first")
        self.main = self.git("rev-parse", "main")

    def baseline(self, wanted: set[str]) -> list[Point]:
        """Run the mission once, keep what was before each run, and find the points of those that are wanted."""
        points = []
        for run in RUNS[: 1 + max(RUNS.index(run) for run in wanted)]:
            if run == "walls":
                self.put_back(run)
            else:
                subprocess.run(["cp", "-a", str(self.root), str(self.base / f"before-{run}")], check=True)
            code = self.trace_run(run) if run in wanted else self.start("--once")
            if code != (75 if run in RUNS[: PIECES - 1] else 0):
                said = _text(self.base / "killed") if run in wanted else _text(self.base / f"start-{self.starts - 1}")
                sys.exit(f"run {run} ends with {code} although nothing was killed:\n{said}")
            points += self._points(run) if run in wanted else []
        return points

    def _points(self, run: str) -> list[Point]:
        """What the traces of a run show."""
        pids = dict(line.split() for line in _text(self.sweep / "pids").splitlines())
        harmless = {pid for pid, number in pids.items() if not changes_of(self.sweep / f"git-{number}", self.root)}
        found = kit_points(run, calls_of(self.trace, self.repository), self.root, harmless)
        if run == "walls":  # of which only the sandboxes are new
            return [point for point in found if point.call.name in STARTERS and _pid(point.call) not in pids]
        return found + git_points(run, self.sweep, self.root) + worker_points(run)

    def trace_run(self, run: str) -> int:
        """A run whose kit and whose git commands are traced; its exit code."""
        command = ["strace", "-y", "-s", "200", "-o", str(self.trace), "-e", f"trace={TRACED}"]
        traced = {"SWEEP_CALL": "all", "SWEEP_OPTIONS": f"-e trace={TRACED}"}
        return self._watched(run, command, traced).wait(PATIENCE)

    def put_back(self, run: str) -> None:
        """Make the folder what it was before a run."""
        shutil.rmtree(self.root, ignore_errors=True)
        kept = self.base / f"before-{PIECES if run == 'walls' else run}"
        subprocess.run(["cp", "-a", str(kept), str(self.root)], check=True)
        self.found, self.starts, self.iterations = [], 0, 0

    def git(self, *args: str, at: Path | None = None) -> str:
        """What git prints; "" when it fails."""
        command = ["git", "-C", str(at or self.repository), *args]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False).stdout.strip()

    def try_point(self, point: Point) -> list[tuple[str, str]]:
        """Kill the kit there and start it until it ends; what was not as promised."""
        if not any(self.kill(point, delay) for delay in DELAYS):
            traces = (self.sweep / f"git-{point.command}" if point.who == "git" else self.trace, self.base / "killed")
            seen = "\n".join(_text(path)[-700:] for path in traces)
            self.note("not_injected", f"it did not die there:\n{seen}")
            return self.found
        self.look_at_state("the kill")
        code = 75
        while code == 75 and self.starts < STARTS and not self.found:
            code = self.start("--no-wait", env=_walls(point.run))
            self.look(code)
        if code == 75 and not self.found:
            self.note("unended", f"after {self.starts} starts")
        elif not self.found:
            self.prove()
        return self.found

    def kill(self, point: Point, delay: int) -> bool:
        """Repeat the run up to the point and kill the kit there; whether that is what happened."""
        self.put_back(point.run)
        if point.who == "kit":
            return self.kill_kit(point, delay)
        return self.kill_in_git(point) if point.who == "git" else self.kill_at_work(point)

    # ------------------------------------------------------------------------------------------------
    # Runs
    # ------------------------------------------------------------------------------------------------

    def start(self, *options: str, env: dict[str, str] | None = None) -> int:
        """Start the kit, untraced, and wait for its end; its exit code."""
        kit = [sys.executable, str(self.kit / "cco.py"), "start", *options, str(self.root / "demo.json")]
        with open(self.base / f"start-{self.starts}", "wb") as output:
            running = subprocess.Popen(
                kit, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.repository,
                env={**self.env, **(env or {})}, start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        try:
            return running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            running.kill()
            self.note("unended", f"start {self.starts - 1} did not end in {PATIENCE:.0f} s")
            return running.wait()

    def _watched(self, run: str, strace: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Begin a run that is traced, or whose git is."""
        for path in (self.trace, self.base / "pid", *self.sweep.iterdir()):
            path.unlink(missing_ok=True)
        (self.sweep / "count").write_text("0")
        number = str(RUNS.index(run) + 1)
        wrapped = [sys.executable, str(self.base / "bin/repeatable.py"), str(self.base / "pid"), number]
        kit = [*wrapped, str(self.kit / "cco.py"), "start", "--once", str(self.root / "demo.json")]
        git = {"PATH": f"{self.base / 'bin'}:{os.environ['PATH']}", "SWEEP": str(self.sweep)} if env else {}
        with open(self.base / "killed", "wb") as output:
            return subprocess.Popen(
                [*strace, *kit], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.repository,
                env={**self.env, **git, **env, **_walls(run)}, start_new_session=True,
            )  # fmt: skip

    def kill_kit(self, point: Point, delay: int) -> bool:
        """Kill the kit before or after one of its own calls."""
        call, effect = point.call, "signal=KILL" if point.how == "before" else f"delay_exit={delay}"
        options = ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{effect}:when={call.when}", *call.filtered]
        running = self._watched(point.run, ["strace", "-y", "-s", "200", "-o", str(self.trace), *options], {})
        if point.how == "after":
            self._await(lambda: "(DELAYED)" in _text(self.trace), running)
            if running.poll() is None:
                _kill(int(_text(self.base / "pid")))
        self._await(lambda: False, running)
        return self._is_last(call, self.trace) and "killed by SIGKILL" in _text(self.trace)

    def kill_in_git(self, point: Point) -> bool:
        """Kill git and kit together, or the kit alone while git holds a lock."""
        call, killed = point.call, point.how == "killed"
        effect = "signal=KILL" if killed else f"delay_exit={HOLD}"
        options = ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{effect}:when={call.when}", *call.filtered]
        words = {"SWEEP_CALL": str(point.command), "SWEEP_OPTIONS": " ".join(options)}
        running, trace = self._watched(point.run, [], words), self.sweep / f"git-{point.command}"
        self._await(lambda: not killed and "(DELAYED)" in _text(trace), running)
        there = self._is_last(call, trace)
        if killed:
            return there and "killed by SIGKILL" in _text(trace) and running.returncode == -signal.SIGKILL
        alone = running.poll() is None
        running.kill()
        running.wait()
        return there and alone

    def _is_last(self, call: Call, trace: Path) -> bool:
        """Whether the trace ends with that very call."""
        made = calls_of(trace, self.repository)
        return len(made) == call.when and _plain(made[-1].path) == _plain(call.path)

    def kill_at_work(self, point: Point) -> bool:
        """Kill the kit, or kit and worker, while the worker is at work."""
        (self.root / f"pause-{point.call.name}").touch()
        running = self._watched(point.run, [], {})
        self._await((self.root / "paused").exists, running)
        there = running.poll() is None and len(self.living()) > 1
        running.kill()
        running.wait()
        for pid in self.living() if point.how == "killed" else ():
            _kill(pid)
        return there

    def _await(self, condition: Any, running: subprocess.Popen[bytes]) -> None:
        """Wait for a moment of a run, or for its end."""
        end = time.monotonic() + PATIENCE
        while running.poll() is None and not condition():
            if time.monotonic() > end:
                running.kill()
                self.note("unended", f"the run to be killed did not end in {PATIENCE:.0f} s")
            time.sleep(POLL)

    def living(self) -> dict[int, str]:
        """The processes that carry the repository's mark, or work in the mission's folder."""
        found, mark = {}, f"CCO_RUN={self.repository}".encode()
        for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with suppress(OSError):  # it ended meanwhile
                carries = mark in (entry / "environ").read_bytes().split(b"\0")
                if carries or Path(os.readlink(entry / "cwd")).is_relative_to(self.root):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    # ------------------------------------------------------------------------------------------------
    # What must be so
    # ------------------------------------------------------------------------------------------------

    def note(self, kind: str, what: str) -> None:
        self.found.append((kind, what))

    def expect(self, kind: str, what: str, found: Any, wanted: Any) -> None:
        """Note it when it is not as it must be."""
        if found != wanted:
            self.note(kind, f"{what}: {found!r}, and not {wanted!r}")

    def look_at_state(self, after: str) -> dict[str, Any]:
        """The state, which is valid and sealed whenever there is one, and whose iterations never go down."""
        memory: dict[str, Any] = {}
        try:
            memory = self.store.load(self.state) if self.state.exists() else {}
        except (self.store.StateError, OSError) as error:
            self.note("states", f"after {after}: {error}")
        if memory and not self.store.is_sealed(memory):
            self.note("states", f"after {after}: it is not sealed")
        if memory.get("iterations", 0) < self.iterations:
            self.note("counts", f"after {after} iterations went down from {self.iterations} to {memory['iterations']}")
        self.iterations = memory.get("iterations", self.iterations)
        if (self.root / "two").exists():
            self.note("two_workers", (self.root / "two").read_text())
        return memory

    def look(self, code: int) -> None:
        """What must be so after every start that was not killed."""
        said = _text(self.base / f"start-{self.starts - 1}")
        if re.search(r"^Traceback", said, re.M) or "unexpected error" in said:
            self.note("tracebacks", said[-3000:])
        elif code not in (0, 75):
            self.note("unended", f"exit code {code}: {said[-1500:]}")
        memory = self.look_at_state(f"start {self.starts - 1}")
        if code == 75 and memory.get("current_phase") == "waiting":  # an hour later
            self.store.save(self.state, {**memory, "wait_until": 0})
        self.look_at_leftovers()

    def look_at_leftovers(self) -> None:
        """Nothing lives on and nothing lies about."""
        end = time.monotonic() + HOLD / 1e6  # a git that is held is let go by then
        while (alive := self.living()) and time.monotonic() < end:
            time.sleep(POLL)
        places = (
            (self.state.parent, "**/.*.tmp"),
            (self.root / "tmp", "cco-*"),
            (self.repository / ".git", "**/*.lock"),
        )
        lying = [str(path) for folder, names in places for path in folder.glob(names)]
        if alive or lying:
            self.note("leftovers", f"living: {alive}, lying about: {lying}")

    def prove(self) -> None:
        """What must be so in the end: everything once."""
        memory = self.look_at_state("the end")
        count, metrics = memory["iterations"], memory["metrics"]
        once, calls = list(range(1, count + 1)), len(_text(self.root / "script.json.calls.jsonl").splitlines())
        begun = len(_text(self.root / "script.json.used"))  # without those that were refused
        self.expect("counts", "phase", memory["current_phase"], "completed")
        if count not in (PIECES - 1, PIECES):  # one less where a killed session had done its piece, and did the next
            self.note("counts", f"{count} iterations for {PIECES} pieces")
        self.expect("counts", "iterations of the history", [entry["iteration"] for entry in memory["history"]], once)
        if not begun - 1 <= metrics["session_count"] <= calls:
            self.note("counts", f"{metrics['session_count']} sessions, where the worker was called {calls} times")
        if begun > count + 1:
            self.note("counts", f"the worker began {begun} times for {count} iterations and one kill")
        self.prove_git(count, once, memory)
        self.prove_cost(metrics)

    def prove_git(self, count: int, once: list[int], memory: dict[str, Any]) -> None:
        """One commit for each iteration, in it what was worked, and nothing else changed."""
        trailers = self.git("log", "--reverse", "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)", BRANCH)
        self.expect("commits", "CCO-Iteration trailers", [int(n) for n in trailers.split()], once)
        self.expect("commits", "commits", self.git("rev-list", "--count", f"main..{BRANCH}"), str(count))
        self.expect("commits", "the state's commit", memory["commit"], self.git("rev-parse", BRANCH))
        self.expect("commits", "checked out", self.git("symbolic-ref", "--short", "HEAD"), BRANCH)
        self.expect("commits", "uncommitted", self.git("status", "--porcelain"), "")
        refs = {"refs/heads/main", f"refs/heads/{BRANCH}"}
        found = {ref for ref in self.git("for-each-ref", "--format=%(refname)").split() if "refs/cco/" not in ref}
        self.expect("leftovers", "refs", found, refs)
        self.expect("touched", "main", self.git("rev-parse", "main"), self.main)
        self.expect("touched", "the home directory", [*(self.root / "home").iterdir()], [])
        clone = self.root / "clone"
        self.git("clone", "-q", "--branch", BRANCH, str(self.repository), str(clone), at=self.root)
        pieces = {path.name: path.read_text() for path in (clone / "work").glob("*")}
        self.expect("work", "a fresh clone", pieces, {str(n): f"piece {n}\n" for n in range(1, PIECES + 1)})
        if broken := self.git("fsck", "--no-dangling"):
            self.note("commits", f"git fsck: {broken}")

    def prove_cost(self, metrics: dict[str, Any]) -> None:
        """What the stand-in took for its sessions is in the state, once."""
        sessions = [json.loads(path.read_text()) for path in (self.root / "script.json.sessions").iterdir()]
        tokens = {kind: sum(session[kind] for session in sessions) for kind in self.price}
        dollars = round(sum(self.price[kind] * count for kind, count in tokens.items()), 6)
        self.expect("cost", "dollars", round(metrics["estimated_cost"], 6), dollars)
        used = metrics["token_usage"]
        self.expect("cost", "tokens", [used["input"], used["output"]], [*tokens.values()])


def _walls(run: str) -> dict[str, str]:
    return {"CCO_CHECKS_SANDBOX": "on"} if run == "walls" else {}


def _pid(call: Call) -> str:
    """The process that a call started."""
    return call.line.rpartition("= ")[2].split()[0]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _plain(path: str) -> str:
    """The path, or what all of its kind have in common where a name is another each time."""
    return re.sub(".*/objects/([0-9a-f]{2}/)?tmp_obj_.*", "objects/tmp_obj", re.sub(r"[.]\d+[.]tmp$", ".tmp", path))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _module(kit: Path, name: str) -> Any:
    """A module of the kit that is tried."""
    spec = importlib.util.spec_from_file_location(f"tried_{Path(name).name}", kit / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------------
# All of them
# --------------------------------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> int:
    """One job, in its own namespace: its share of the points, one line of JSON for each."""
    job, jobs = args.share
    trial = Trial(args.base / f"job-{job}", args.base / "kit")
    trial.build()
    patterns = args.only or ["*"]
    wanted = {run for run in RUNS if any(fnmatch.fnmatch(run, p.partition(":")[0]) for p in patterns)}
    if not wanted:
        sys.exit(f"{' '.join(patterns)}: the runs are {' '.join(RUNS)}")
    points = trial.baseline(wanted)
    chosen = [point for point in points if any(fnmatch.fnmatch(point.name, pattern) for pattern in patterns)]
    chosen = chosen[args.every // 2 :: args.every]
    print(json.dumps({"known": len(points), "chosen": len(chosen)}), flush=True)
    for point in chosen[job::jobs]:
        begun = time.monotonic()
        found = trial.try_point(point)
        if found:
            kept = args.base / "kept" / point.name
            shutil.copytree(trial.root, kept / "now", symlinks=True, ignore_dangling_symlinks=True)
            for path in (trial.trace, *trial.sweep.glob("git-*"), *trial.base.glob("start-*"), trial.base / "killed"):
                if path.exists():
                    shutil.copy(path, kept)
        done = {"point": point.name, "line": point.call.line[:160], "starts": trial.starts, "found": found}
        print(json.dumps({**done, "seconds": round(time.monotonic() - begun, 1)}), flush=True)
        for pid in trial.living():
            _kill(pid)
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Divide the points among jobs and tell what they find; 1 if anything was not as promised."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored, as in the background
    begun, args.base = time.monotonic(), Path(tempfile.mkdtemp(prefix="crash-sweep-")).resolve()
    jobs: list[subprocess.Popen[str]] = []
    try:
        not_kit = shutil.ignore_patterns(".*", "__pycache__", "tests", "missions", "deploy")
        shutil.copytree(args.kit, args.base / "kit", ignore=not_kit)  # which may be edited meanwhile
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(args.base / "kit")], check=True)
        jobs = [_begin(args, number) for number in range(args.jobs)]
        results = _follow(jobs, args, begun)
    except KeyboardInterrupt:
        _end(jobs)
        shutil.rmtree(args.base, ignore_errors=True)
        return 130
    _end(jobs)
    failed = any(job.returncode for job in jobs)
    return report(results, args.base, time.monotonic() - begun, failed)


def _begin(args: argparse.Namespace, number: int) -> subprocess.Popen[str]:
    words = [sys.executable, str(Path(__file__).resolve()), "--share", str(number), str(args.jobs)]
    words += ["--base", str(args.base), "--every", str(args.every), *(["--only", *args.only] if args.only else [])]
    return subprocess.Popen([*CONTAINED, *words], stdout=subprocess.PIPE, text=True, start_new_session=True)


def _end(jobs: list[subprocess.Popen[str]]) -> None:
    """End the jobs; with each its namespace ends, and all that is in it."""
    for job in jobs:
        if job.poll() is None:
            job.kill()
        job.wait()
        if job.stdout:
            job.stdout.close()


def _follow(jobs: list[subprocess.Popen[str]], args: argparse.Namespace, begun: float) -> list[dict[str, Any]]:
    """Read what the jobs say until the last has ended."""
    results: list[dict[str, Any]] = []
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            selector.register(job.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        chosen = 0
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if not line:
                    selector.unregister(key.fileobj)
                    continue
                said = json.loads(line)
                if "chosen" in said:
                    chosen = said["chosen"]
                    continue
                results.append(said)
                _tell(said, args)
                if len(results) % 20 == 0:
                    print(f"{len(results)} of {chosen} points, {time.monotonic() - begun:.0f} s", flush=True)
    for job in jobs:
        job.wait()
    return results


def _tell(said: dict[str, Any], args: argparse.Namespace) -> None:
    if args.verbose:
        print(f"{said['point']}: {said['starts']} starts, {said['seconds']} s  {said['line']}", flush=True)
    for kind, what in said["found"]:
        again = f"python extras/crash_sweep.py --only {said['point']} --verbose"
        print(f"VIOLATION {kind}: {what}\n  at: {said['point']}  {said['line']}\n  again: {again}", flush=True)
        print(f"  see: {args.base}/kept/{said['point']}", flush=True)


def report(results: list[dict[str, Any]], base: Path, seconds: float, failed: bool) -> int:
    """Print the figures; the exit code."""
    found = Counter(kind for done in results for kind, _ in done["found"])
    missed = sum(any(kind == "not_injected" for kind, _ in done["found"]) for done in results)
    figures = {
        "points": len(results),
        "injected": len(results) - missed,
        "survived": sum(not done["found"] for done in results),
        "starts": sum(done["starts"] for done in results),
        **{kind: found[kind] for kind in KINDS},
        "seconds": round(seconds),
    }
    print("".join(f"{name}: {value}\n" for name, value in figures.items()), end="")
    if not results:
        print("no point was tried", file=sys.stderr)
    shutil.rmtree(base, ignore_errors=True) if not found else None
    return 1 if found or failed or not results else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill the kit at every system call that touches state or git.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="each Nth point alone")
    parser.add_argument("--only", nargs="+", help="these points alone, by name or pattern")
    parser.add_argument("--kit", type=Path, default=EXTRAS.parent, help="the kit that is tried")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for program in ("strace", "bwrap", "git"):
        if not shutil.which(program):
            print(f"{program} is needed: sudo apt install strace bubblewrap git", file=sys.stderr)
            return 2
    return work(args) if args.share else sweep(args)


if __name__ == "__main__":
    sys.exit(main())
