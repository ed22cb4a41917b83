#!/usr/bin/env python3
"""Kill the kit before and after each system call that touches state or git, start it again, and see what comes of it.

    python tests/tools/crash_sweep.py [--jobs 2] [--every N] [--kit DIR]
    python tests/tools/crash_sweep.py --only 3:rename:7:before     one point again (or a pattern: '3:git:*')

A mission of three iterations is run once, as three `start --once`, the last with its checks in the sandbox. Every point
puts back the folder as it was before one of them, repeats the run up to the point and kills the kit there; then it is
started until it ends. It has to end done, with every piece of work in a fresh clone, each iteration counted and
committed once, each cent once, and nothing left. A violation is printed with the command that repeats it, its folder is
kept, and the exit code is 1. Not tried: power loss, calls that only read, lines of the log.

    3:rename:7:before     SIGKILL on entry of the 7th rename of the kit's 3rd run; the call does not happen
    3:vfork:9:after       SIGKILL when the call has returned: the git, the check or the worker it started lives on
    3:git:17:rename:2:killed     git and kit die together, on entry of the 2nd rename of the run's 17th git command
    3:git:17:openat:2:held       the kit dies while git has just made that lock file; git goes on while the kit starts
    3:worker:worked:orphaned     the kit dies while the worker is at work, and the worker lives on; `killed`: both die

strace writes `(DELAYED)` when a call has had its effect, and holds the process there. How often openat, close and write
are called hangs on the machine, so `-P` counts only those on the very same path, and temporary names are the same every
time. A run in whose trace the killed call does not stand last proves nothing, and counts as a violation.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scratch import LATER, Scratch, end_all, options, processes, read, report, saved, spread, summary

import state as states
from extras.claude_stand_in import PRICE

PIECES = 3
RUNS = [str(n) for n in range(1, PIECES + 1)]
STARTS = 6  # after a kill, of which one should do
HOLD = 3_000_000  # microseconds that git is held in the middle, longer than a start takes to get to its own git
DELAYS = (300_000, 3_000_000)  # microseconds that the kit is held to be killed, the second where the first was missed
STARTERS = ("vfork", "clone", "clone3", "fork")
STRACE = ("strace", "-y", "-s", "200", "-o")
POLLED = ("openat", "close", "write")  # calls whose number hangs on the machine
CHANGING = "pwrite64,ftruncate,fsync,fdatasync,flock,rename,renameat,renameat2,link,linkat,symlink,unlink,unlinkat,"
TRACED = f"trace={CHANGING}rmdir,mkdir,chmod,fchmod,{','.join((*POLLED, *STARTERS))}"
KINDS = ("not_injected", "unended", "tracebacks", "states", "counts", "commits", "work", "cost", "two_workers",
         "leftovers", "touched", "hangs")  # fmt: skip
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
WORK = """\
#!/bin/bash
pause() { if test -e @S@/pause-$1; then mv @S@/pause-$1 @S@/paused; exec sleep 100; fi; }
pause begun
mkdir -p pieces
for n in 1 2 3; do test -e pieces/$n || { echo "piece $n" > pieces/$n; break; }; done
pause worked
"""


@dataclass(frozen=True)
class Call:
    """One line of a trace."""

    name: str
    nth: int = 1  # among the calls of this name
    given: str = ""  # what it is about, as strace's -P knows it, "" for nothing
    path: str = ""  # the same, whole
    nth_there: int = 1  # among the calls of this name on what is given
    line: str = ""

    @property
    def filtered(self) -> list[str]:
        """Options by which strace counts it alone, where its number among all of its name hangs on the machine."""
        return ["-P", self.given] if self.name in POLLED and _plain(self.given) == self.given else []

    @property
    def when(self) -> int:
        """Its number for strace, with those options."""
        return self.nth_there if self.filtered else self.nth

    @property
    def changes(self) -> bool:
        """Whether it may have changed something."""
        if "= -1 " in self.line or ">(deleted)" in self.line:  # a file without a name is gone with its process
            return False
        if self.name == "openat":
            return bool(re.search(r"O_CREAT|O_WRONLY|O_RDWR", self.line))
        return self.name != "close"


@dataclass(frozen=True)
class Point:
    """One moment to die in."""

    run: str
    who: str  # kit, git or worker
    call: Call
    how: str
    name: str  # by which it is asked for again; its numbers count the calls that are points
    command: int = 0  # number of the git command


def calls_of(trace: Path, folder: Path) -> list[Call]:
    """What the trace of a process that works in this folder shows, in its order."""
    found, names, places = list[Call](), Counter[str](), Counter[tuple[str, str]]()
    for line in read(trace).splitlines():
        if parts := re.match(r"(\w+)\((.*)", line):
            name, rest = parts.groups()
            start = re.match(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>(?:, )?)?(?:"([^"]*)")?', rest)
            handle, given = (start[1] or "", start[2] or "") if start else ("", "")
            given = "" if name in ("write", "pwrite64") else given  # the text that is written is no path
            path = os.path.normpath(folder / handle / given) if given or handle else ""
            given = given or handle
            names[name] += 1
            places[name, given] += 1
            found.append(Call(name, names[name], given, path, places[name, given], line))
    return found


def kit_points(run: str, calls: list[Call], root: Path, harmless: set[str]) -> list[Point]:
    """Before each call of the kit that touches state or git, and after each that starts a process that changes them."""
    scratch, settled, numbers, points = dict[str, list[Call]](), dict[str, str](), Counter[str](), list[Point]()
    for call in calls:
        if call.path.startswith(f"{root}/tmp/cco-") and call.changes:
            scratch.setdefault(call.name, []).append(call)
    ends = {call for group in scratch.values() for call in (group[0], group[-1])}  # all of them are much the same
    for call in calls:
        before, settled[call.path] = settled.get(call.path, ""), call.name
        if call in ends or call.name in STARTERS or _is_kept(call, before, root):
            numbers[call.name] += 1
            starts = call.name in STARTERS and call.line.split()[-1] not in harmless
            for how in ("before", "after") if starts else ("before",):
                points.append(Point(run, "kit", call, how, f"{run}:{call.name}:{numbers[call.name]}:{how}"))
    return points


def _is_kept(call: Call, before: str, root: Path) -> bool:
    """Whether it changes state or git, or keeps a change safe; no line of a log. before: the call before it there."""
    folder = f"{root}/repository/.cco"
    unsure = call.name in POLLED and not call.filtered  # the kit's number is in the name
    if not call.path.startswith((folder, f"{root}/repository/.git")) or call.path.endswith((".log", ".gz")) or unsure:
        return False
    synced = call.name == "close" and before in ("fsync", "ftruncate")
    opened = call.name == "openat" and call.path == folder and "O_NONBLOCK" not in call.line
    return call.changes or synced or opened


def git_points(run: str, folder: Path, root: Path) -> list[Point]:
    """Before the first change of each kind that git makes to each file, one object for all, and while it has a lock."""
    points = []
    for trace in sorted(folder.glob("git-*"), key=lambda path: int(path.name[4:])):
        command, numbers, firsts = int(trace.name[4:]), Counter[str](), dict[tuple[str, str], Call]()
        for call in changes_of(trace, root):
            kind = call.name, _plain(call.path)
            # An object has a name of its own each time, is empty until written, and finds its folder or makes it.
            if kind != ("openat", "objects/tmp_obj") and not (call.name == "mkdir" and "/objects/" in call.path):
                firsts.setdefault(kind, call)
        for call in firsts.values():
            numbers[call.name] += 1
            held = call.name == "openat" and call.path.endswith(".lock")
            for how in ("killed", "held") if held else ("killed",):
                name = f"{run}:git:{command}:{call.name}:{numbers[call.name]}:{how}"
                points.append(Point(run, "git", call, how, name, command))
    return points


def changes_of(trace: Path, root: Path) -> list[Call]:
    """What a git command changed in the repository."""
    places = (f"{root}/repository/.git/", f"{root}/repository/pieces/")
    return [call for call in calls_of(trace, root / "repository") if call.path.startswith(places) and call.changes]


def _plain(path: str) -> str:
    """The path, or what all of its kind have in common where a name is another each time."""
    return re.sub(".*/objects/([0-9a-f]{2}/)?tmp_obj_.*", "objects/tmp_obj", path)


class Trial(Scratch):
    """The mission in a folder that always has the same path, put back for every point."""

    poll = 0.001

    def __init__(self, base: Path, kit: Path):
        """Make the repository, the mission, the worker, and what traces."""
        super().__init__(base / "now", kit)
        self.base, self.trace, self.sweep, self.killed = base, base / "trace", base / "git", base / "killed"
        self.iterations = 0
        self.env["PYTHONDONTWRITEBYTECODE"] = "1"
        for folder in (base / "bin", self.sweep):
            folder.mkdir()
        self.program(self.folder / "bin/work", WORK)
        self.program(base / "bin/git", GIT, GIT=shutil.which("git"))
        self.program(base / "bin/repeatable.py", REPEATABLE)
        criteria = [{"id": f"c{n}", "criteria": f"piece {n}", "check": f"test -e pieces/{n}"} for n in RUNS]
        session = [{"bash": "@S@/bin/work"}, {"say": "One piece more."}]
        mission = {"title": "Some pieces", "definition_of_done": criteria}
        self.prepare(mission, {}, [session] * 3 * PIECES, {"README.md": "# a project\n"})

    def baseline(self, patterns: list[str]) -> list[Point]:
        """Run the mission once, keep what was before each run, and find the points that are asked for."""
        points = []
        for run in RUNS:
            subprocess.run(["cp", "-a", str(self.folder), str(self.base / f"before-{run}")], check=True)
            strace = [*STRACE, str(self.trace), "-e", TRACED]
            running = self.watched(run, strace, {"SWEEP_CALL": "all", "SWEEP_OPTIONS": f"-e {TRACED}"})
            self.wait(running)
            if running.returncode != (0 if run == RUNS[-1] else LATER):
                sys.exit(f"run {run} ends with {running.returncode} and nothing was killed:\n{read(self.killed)}")
            pids = dict(line.split() for line in read(self.sweep / "pids").splitlines())
            harmless = {pid for pid, n in pids.items() if not changes_of(self.sweep / f"git-{n}", self.folder)}
            points += kit_points(run, calls_of(self.trace, self.root), self.folder, harmless)
            points += git_points(run, self.sweep, self.folder)
            for when, how in [(when, how) for when in ("begun", "worked") for how in ("orphaned", "killed")]:
                points.append(Point(run, "worker", Call(when), how, f"{run}:worker:{when}:{how}"))
        return [point for point in points if any(fnmatch.fnmatch(point.name, pattern) for pattern in patterns)]

    def try_point(self, point: Point) -> None:
        """Kill the kit there and start it until it ends; note what was not as promised."""
        kill = {"kit": self.kill_kit, "git": self.kill_in_git, "worker": self.kill_at_work}[point.who]
        for delay in DELAYS:
            shutil.rmtree(self.folder, ignore_errors=True)
            subprocess.run(["cp", "-a", str(self.base / f"before-{point.run}"), str(self.folder)], check=True)
            self.found, self.starts, self.iterations = [], 0, 0
            if kill(point, delay):
                break
        else:
            traces = (self.sweep / f"git-{point.command}" if point.who == "git" else self.trace, self.killed)
            self.note("not_injected", "it did not die there:\n" + "\n".join(read(path)[-700:] for path in traces))
            return
        self.look_at_state("the kill")
        code = LATER
        while code == LATER and self.starts < STARTS and not self.found:
            running = self.begin("--no-wait")
            self.wait(running)
            code = running.returncode
            self.look(code)
        if code == LATER and not self.found:
            self.note("unended", f"after {self.starts} starts")
        elif not self.found:
            self.prove()

    def watched(self, run: str, strace: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Begin a run that is traced, or whose git is; the last one has its checks in the sandbox."""
        for path in (self.trace, self.base / "pid", *self.sweep.iterdir()):
            path.unlink(missing_ok=True)
        (self.sweep / "count").write_text("0")
        self.env["CCO_CHECKS_SANDBOX"] = "on" if run == RUNS[-1] else "off"
        wrapped = [sys.executable, str(self.base / "bin/repeatable.py"), str(self.base / "pid"), run]
        kit = [*wrapped, str(self.kit / "cco.py"), "start", "--once", str(self.file)]
        git = {"PATH": f"{self.base / 'bin'}:{os.environ['PATH']}", "SWEEP": str(self.sweep)} if env else {}
        return self.popen([*strace, *kit], self.killed, {**git, **env})

    def kill_kit(self, point: Point, delay: int) -> bool:
        """Kill the kit before or after one of its own calls."""
        effect = "signal=KILL" if point.how == "before" else f"delay_exit={delay}"
        running = self.watched(point.run, [*STRACE, str(self.trace), *_at(point, effect)], {})
        if point.how == "after" and self.wait(running, lambda: "(DELAYED)" in read(self.trace)):
            os.kill(int(read(self.base / "pid")), signal.SIGKILL)
        self.wait(running)
        return self.is_last(point.call, self.trace) and "killed by SIGKILL" in read(self.trace)

    def kill_in_git(self, point: Point, _: int) -> bool:
        """Kill git and kit together, or the kit alone while git holds a lock."""
        killed, trace = point.how == "killed", self.sweep / f"git-{point.command}"
        options = " ".join(_at(point, "signal=KILL" if killed else f"delay_exit={HOLD}"))
        running = self.watched(point.run, [], {"SWEEP_CALL": str(point.command), "SWEEP_OPTIONS": options})
        alone = self.wait(running, lambda: not killed and "(DELAYED)" in read(trace))
        there = self.is_last(point.call, trace)
        if killed:
            return there and "killed by SIGKILL" in read(trace) and running.returncode == -signal.SIGKILL
        self.kill(running)
        return there and alone

    def is_last(self, call: Call, trace: Path) -> bool:
        """Whether the trace ends with that very call."""
        made = calls_of(trace, self.root)
        return len(made) == call.when and _plain(made[-1].path) == _plain(call.path)

    def kill_at_work(self, point: Point, _: int) -> bool:
        """Kill the kit, or kit and worker, while the worker is at work."""
        (self.folder / f"pause-{point.call.name}").touch()
        running = self.watched(point.run, [], {})
        there = self.wait(running, (self.folder / "paused").exists) and len(processes(self.folder)) > 1
        self.kill(running)
        if point.how == "killed":
            end_all(self.folder)
        return there

    # --- What must be so ---

    def look_at_state(self, after: str) -> states.State | None:
        """The state, which is valid whenever there is one, and whose iterations never go down."""
        state = saved(self.state)
        if self.state.exists() and not state:
            self.note("states", f"after {after}: {read(self.state)[:300]}")
        count = state.iterations if state else 0
        if count < self.iterations:
            self.note("counts", f"after {after} iterations went down from {self.iterations} to {count}")
        self.iterations = count
        return state

    def look(self, code: int) -> None:
        """What must be so after every start that was not killed."""
        self.look_at_output()
        if code not in (0, LATER):
            self.note("unended", f"exit code {code}: {self.said()[-1500:]}")
        self.look_at_state(f"start {self.starts}")
        self.skip_wait()
        end = time.monotonic() + HOLD / 1e6  # a git that is held is let go by then
        while processes(self.folder) and time.monotonic() < end:
            time.sleep(self.poll)
        self.expect("leftovers", "living", processes(self.folder), {})
        names = ("repository/.cco/**/.*.tmp", "tmp/cco-*", "repository/.git/**/*.lock")
        self.expect("leftovers", "lying about", [path for name in names for path in self.folder.glob(name)], [])

    def prove(self) -> None:
        """What must be so in the end: everything once, in a fresh clone too, and nothing else touched."""
        state = self.look_at_state("the end")
        assert state
        count, calls = state.iterations, len(read(self.folder / "script.json.calls.jsonl").splitlines())
        once, begun = [*range(1, count + 1)], len(read(self.folder / "script.json.used"))  # without those refused
        self.expect("counts", "phase", state.current_phase, "completed")
        if count not in (PIECES - 1, PIECES):  # one less where a killed session had done its piece, and did the next
            self.note("counts", f"{count} iterations for {PIECES} pieces")
        self.expect("counts", "iterations of the history", [entry.number for entry in state.sessions], once)
        sessions = state.totals["session_count"]
        if not begun - 1 <= sessions <= calls or begun > count + 1:
            self.note("counts", f"{sessions} sessions, {calls} calls of the worker, {begun} begun, {count} iterations")
        git, branch = self.git, self.branch
        self.expect("commits", "trailers", [int(n) for n in self.trailers("CCO-Iteration", branch)], once)
        self.expect("commits", "commits", git("rev-list", "--count", f"main..{branch}"), str(count))
        self.expect("commits", "the state's commit", state.commit, git("rev-parse", branch))
        self.expect("commits", "checked out", git("symbolic-ref", "--short", "HEAD"), branch)
        self.expect("commits", "uncommitted", git("status", "--porcelain"), "")
        self.expect("commits", "git fsck", git("fsck", "--no-dangling"), "")
        refs = {ref for ref in git("for-each-ref", "--format=%(refname)").split() if "refs/cco/" not in ref}
        self.expect("leftovers", "refs", refs, {"refs/heads/main", f"refs/heads/{branch}"})
        self.expect("touched", "main", git("rev-parse", "main"), self.main)
        git("clone", "-q", "--branch", branch, str(self.root), str(self.folder / "clone"), at=self.folder)
        pieces = {path.name: path.read_text() for path in (self.folder / "clone/pieces").glob("*")}
        self.expect("work", "a fresh clone", pieces, {n: f"piece {n}\n" for n in RUNS})
        books = [json.loads(path.read_text()) for path in (self.folder / "script.json.sessions").iterdir()]
        tokens = {kind: sum(book[kind] for book in books) for kind in PRICE}
        dollars = round(sum(PRICE[kind] * number for kind, number in tokens.items()), 6)
        self.expect("cost", "dollars", round(state.totals["estimated_cost"], 6), dollars)
        used = state.totals["token_usage"]
        self.expect("cost", "tokens", [used["input"], used["output"]], [*tokens.values()])


def _at(point: Point, effect: str) -> list[str]:
    """Options by which strace does something at a point."""
    name = point.call.name
    return ["-e", f"trace={name}", "-e", f"inject={name}:{effect}:when={point.call.when}", *point.call.filtered]


def main() -> int:
    """Divide the points among jobs and print what they find; 1 if anything was not as promised."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="each Nth point alone")
    parser.add_argument("--only", nargs="+", default=["*"], help="these points alone, by name or pattern")
    args = parser.parse_args()
    if missing := [program for program in ("strace", "bwrap", "git") if not shutil.which(program)]:
        print(f"{' '.join(missing)} is needed: sudo apt install strace bubblewrap git", file=sys.stderr)
        return 2
    if args.share is None:
        base, results = spread(args, "crash-sweep-")
        return summary(base, results, KINDS, {"survived": sum(not done["found"] for done in results)})
    trial = Trial(args.base / f"job-{args.share}", args.base / "kit")
    chosen = trial.baseline(args.only)[args.every // 2 :: args.every]
    for number, point in enumerate(chosen[args.share :: args.jobs]):
        trial.try_point(point)
        kept = args.base / "kept" / point.name
        if number % 10 == 0:
            print(f"{number * args.jobs + args.share + 1} of {len(chosen)}: {point.name}", flush=True)
        report(trial, args, f"python tests/tools/crash_sweep.py --only {point.name}  {point.call.line[:160]}", kept)
        if trial.found:
            shutil.copytree(trial.folder, kept / "now", symlinks=True, ignore_dangling_symlinks=True)
            for path in (trial.trace, trial.killed, *trial.sweep.glob("git-*")):
                shutil.copy(path, kept) if path.exists() else None
        end_all(trial.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
