#!/usr/bin/env python3
"""What one iteration of the kit costs, beside what its commands cost bare: `make bench`.

    python extras/bench.py [--rounds 2] [--cases 1,1+sandbox,30+sandbox+idle@100]

A case is a scratch repository with so many criteria, half of them met, and a state of so many iterations (10, if it
does not say); `idle`: 400 more processes sleep beside it, `protect`: `protect: [tests/**]` with so many files. Measured
is from the end of one session to the beginning of the next; the worker is a few lines of bash. The floor is the same
without the kit: each git command with its arguments, environment and input (recorded by a `git` on PATH), each save,
each check (bash, or bash in a bare bubblewrap), the start of the worker. Times are medians in milliseconds, kit and
floor in turn; `overhead` is what is left without the checks, and its floor; `times` is the iteration beside that of the
same criteria alone at iteration 10. Counted by strace is what an iteration takes: processes besides worker and checks,
shells of checks, fsyncs. Then the size of the state, and the files in .cco. In brackets: the most that it should be, on
an idle machine with two cores; ! marks what is above that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from subprocess import DEVNULL
from typing import Any

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import prompt  # noqa: E402
import state as states  # noqa: E402

CASES = "1,1+sandbox,30,30+sandbox,1+protect,1+idle,30+sandbox+idle,1@100,1@1000,30@1000"
HEAD = (
    "case iteration floor ratio times overhead floor git saves checks worker processes shells fsyncs kB files".split()
)
TARGETS = {("1", False): 60, ("30", False): 200, ("30", True): 350}  # ms of an iteration: criteria, sandbox
RATIO, TIMES, PROCESSES, SIZE, FILES = 2, 1.3, 18, 100, 50  # likewise, of the columns
MEMORY, START, CALLS, CHARACTERS = 40, 100, 30, 60_000  # MB; ms of `status`; what thirty criteria take of the manager
LIMIT, LATER = 5, 75  # exit codes: a limit was reached, one session was asked for
SESSIONS = 9  # of one run; more on one criterion would climb the ladder
IDLE = 400  # processes that sleep beside it
TESTS = 100  # files in tests/
STATUS = 41  # runs of `status`
BARE = "bwrap --ro-bind / / --dev /dev --proc /proc --bind . . --unshare-pid --unshare-net --die-with-parent".split()
SHELL = "bash -e -o pipefail -c".split()
WORDS = "amber birch cedar delta ember fjord grove heron iris jade".split()  # so that no failure comes twice
WORKER = f"""\
#!/bin/bash
begun=$EPOCHREALTIME
number=0; [ -e "$0.times" ] && mapfile -t lines < "$0.times" && number=${{#lines[@]}}
words=({" ".join(WORDS)})
echo "line $number" >> work.txt
echo "${{words[number % 10]}}" > word.txt
echo '{{"type": "system", "subtype": "init", "model": "stand-in", "claude_code_version": "0"}}'
echo '{{"type": "assistant", "message": {{"id": "m", "content": [{{"type": "text", "text": "I wrote a line."}}]}}}}'
echo '{{"type": "result", "subtype": "success", "num_turns": 1, "total_cost_usd": 0.01, "result": "Done. Met: none"}}'
echo "$begun $EPOCHREALTIME" >> "$0.times"
"""
RECORDER = """\
#!/bin/bash
call={calls}/$EPOCHREALTIME
export GIT_AUTHOR_DATE="1700000000 +0000" GIT_COMMITTER_DATE="1700000000 +0000"  # the same commits when it is repeated
cp /dev/stdin $call.input; env -0 > $call.env; printf "%s\\0" {git} "$@" > $call.argv
exec {git} "$@" < $call.input
"""


class Case:
    """A scratch repository with a state, and what is measured in it."""

    def __init__(self, name: str, folder: Path, program: Path):
        """name: like 30+sandbox+idle@100, which is 30 criteria at iteration 100."""
        if not (match := re.fullmatch(r"(\d+)(\+sandbox)?(\+protect)?(\+idle)?(?:@(\d+))?", name)):
            raise SystemExit(f"{name!r} is no case")
        criteria, self.iteration, self.protect = int(match[1]), int(match[5] or 10), ["tests/**"] * bool(match[3])
        self.sandbox, self.idle, self.name, self.program = bool(match[2]), IDLE * bool(match[4]), name, str(program)
        self.alone, self.target = match[1] + (match[2] or ""), TARGETS.get((match[1], self.sandbox))
        self.checks = [("cat word.txt missing.txt", "test -e README.md")[number % 2] for number in range(criteria)]
        self.root, self.before, self.calls = folder / "tree", folder / "before", folder / "calls"
        self.worker, self.times, self.mission = folder / "claude", folder / "claude.times", folder / "bench.json"
        self.folder, self.state = self.root / ".cco", self.root / ".cco" / "bench.json"
        for path in (self.root, self.calls, folder / "home"):
            path.mkdir(parents=True)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "GIT_CONFIG_NOSYSTEM": "1"}
        self.gaps, self.costs = list[float](), list[list[float]]()
        self._begin()
        self._age()
        shutil.copytree(self.root, self.before, symlinks=True)
        self.counts, self.groups = self._count(), self._record()

    def _begin(self) -> None:
        """Make repository, worker and mission, and let the kit run the baseline and one session."""
        (self.root / "README.md").write_text("# Bench\n")
        (self.root / "tests").mkdir()
        for number in range(TESTS):
            (self.root / "tests" / f"test_{number}.py").write_text(f"assert {number} >= 0\n")
        self._git("init", "-q", "-b", "main")
        self._git("add", "-A")
        self._git("-c", "user.name=Bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "A repository")
        self.worker.write_text(WORKER)
        self.worker.chmod(0o755)
        texts = [{"criteria": f"part {number} is there", "check": check} for number, check in enumerate(self.checks)]
        criteria = [{**one, "id": f"c{number:02}", "guard": number % 2 == 1} for number, one in enumerate(texts)]
        mission = {"title": "Bench", "repository": str(self.root), "limits": {"iterations": self.iteration + SESSIONS}}
        mission |= {"protect": self.protect}
        settings = {"manager": {"provider": "rules"}, "checks": {"sandbox": self.sandbox}}
        settings["claude_code"] = {"command": str(self.worker), "sandbox": False}
        self.mission.write_text(json.dumps({**mission, "settings": settings, "definition_of_done": criteria}))
        self._start(LATER, "--once")

    def _age(self) -> None:
        """Add iterations, commits and lessons, as the kit would have until now."""
        state, stream = states.load(self.state, validate=False), list[str]()
        for number in range(2, self.iteration + 1):
            text = f"c00: part 0 is there\n\nCCO-Mission: bench\nCCO-Iteration: {number}\n"
            stream += [f"commit refs/heads/{state.branch}", "committer CCO <cco@localhost> 1700000000 +0000"]
            stream += [f"data {len(text)}", text, *[f"from {state.commit}"] * (number == 2)]
            stream += ["M 100644 inline past.txt", "data 4", f"{number:04}"]
            state.record_plan(states.Plan("c00", "part 0 is there", "Make it true, as its check says. " * 5))
            state.begin_iteration().begun = True
            state.record_outcome(states.Outcome("ended", report="I wrote a line. " * 8, turns=9, cost_usd=0.01))
            state.record_results({"c00": states.Verdict("c00", "unmet", 1, failure=f"{number:016x}", runs=1)}, 0.1)
            state.finish_iteration({})
        for number in range(min(self.iteration, prompt.MAX_LESSONS)):
            output = f"error: the {WORDS[number % 10]} of part {number} is missing\n"
            before = states.CriterionState("part 0 is there", "high", "", failure=f"{number:016x}")
            prompt.learn(self.folder, before, output, "It was written. " * 20)
        self._git("fast-import", "--quiet", stdin="\n".join([*stream, ""]))
        self._git("reset", "-q", "--hard")
        state.commit = self._git("rev-parse", "HEAD").strip()
        state.unblock()  # counts anew, as after an answer of the user
        states.save(self.state, state)

    def _git(self, *args: str, stdin: str = "") -> str:
        return subprocess.check_output(["git", *args], cwd=self.root, env=self.env, input=stdin, text=True)

    def _restore(self) -> None:
        """Make everything what it was, with an index that knows the files."""
        shutil.rmtree(self.root)
        shutil.copytree(self.before, self.root, symlinks=True)
        self._git("status")
        self.times.unlink()

    def _start(self, expected: int, *args: str, under: tuple[str, ...] = (), path: str = "") -> list[list[float]]:
        """Run `cco.py start`, for all sessions as from the beginning; return when each one began and ended."""
        if not args:
            self._restore()
        argv = [*under, sys.executable, self.program, "start", *args, str(self.mission)]
        env = {**self.env, "PATH": path + self.env["PATH"]}
        done = subprocess.run(argv, cwd=self.root, env=env, capture_output=True, text=True, check=False)
        times = [[*map(float, line.split())] for line in self.times.read_text().splitlines()]
        if (done.returncode, len(times)) != (expected, 1 if args else SESSIONS):
            raise SystemExit(f"{self.name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return times

    def _record(self) -> list[list[Path]]:
        """Return the git commands of a run: those before the first session, and those after each one."""
        recorder = self.calls / "git"
        recorder.write_text(RECORDER.format(calls=self.calls, git=shutil.which("git")))
        recorder.chmod(0o755)
        ends = [ended for _, ended in self._start(LIMIT, path=f"{self.calls}:")]
        groups: list[list[Path]] = [[] for _ in range(SESSIONS + 1)]
        for call in sorted(self.calls.glob("*.argv")):
            groups[sum(end < float(call.stem) for end in ends)].append(call)
        return groups

    def _count(self) -> list[float]:
        """Return how many processes, shells of checks and fsyncs an iteration takes."""
        log, calls = self.calls / "strace", "trace=execve,fsync,fdatasync,fork,vfork,clone,clone3"
        self._start(LIMIT, under=("strace", "-f", "-qq", "-o", str(log), "-e", calls))
        lines = [line.split(maxsplit=1) for line in log.read_text("utf-8", "replace").splitlines()]
        program = {pid: match[1] for pid, text in reversed(lines) if (match := re.match(r'execve\("(.+?)"', text))}
        starts = [number for number, (_, text) in enumerate(lines) if text.startswith(f'execve("{self.worker}"')]
        ours, others, shells, fsyncs = {lines[0][0]}, 0, 0, 0
        for pid, text in lines[starts[0] : starts[-1]]:
            fsyncs += pid == lines[0][0] and text.startswith(("fsync", "fdatasync"))
            if pid in ours and (match := re.search(r"\b(?:fork|vfork|clone3?)\b.* = (\d+)$", text)):
                name = os.path.basename(program.get(match[1], "?"))
                shells += name in ("bash", "bwrap")
                if name not in ("bash", "bwrap", self.worker.name):
                    others += 1
                    ours.add(match[1])  # what it starts is counted, too
        return [number / (SESSIONS - 1) for number in (others, shells, fsyncs)]

    def measure(self) -> None:
        """Run the kit, and then what it did without it."""
        sleep = f"for ((i = 1; i < {self.idle}; i++)); do sleep 1000 & done; wait"
        sleepers = subprocess.Popen(["bash", "-c", sleep], start_new_session=True)
        try:
            time.sleep(self.idle / 100)  # until all of them have started
            times = self._start(LIMIT)
            self.gaps += [1000 * (after[0] - before[1]) for before, after in zip(times, times[1:], strict=False)]
            self.size, self.files = self.state.stat().st_size, sum(path.is_file() for path in self.folder.rglob("*"))
            self._restore()
            self.costs += [self._repeat(group) for group in self.groups[:-1]][1:]
        finally:
            os.killpg(sleepers.pid, signal.SIGKILL)
            sleepers.wait()

    def _repeat(self, group: list[Path]) -> list[float]:
        """Return how long git, saves, checks and the start of the worker take."""
        data, moments = self.state.read_bytes(), [time.perf_counter()]
        for call in group:
            argv, env = (call.with_suffix(name).read_text().split("\0")[:-1] for name in (".argv", ".env"))
            with open(call.with_suffix(".input"), "rb") as stdin:
                self.run(argv, dict(pair.split("=", 1) for pair in env), stdin)
        moments.append(time.perf_counter())
        for _ in range(round(self.counts[2] / 2)):
            states.write(self.folder / "copy", data)
        moments.append(time.perf_counter())
        for check in self.checks:
            self.run([*(BARE if self.sandbox else ()), *SHELL, check])
        moments.append(time.perf_counter())
        self.run([str(self.worker)])
        begun, ended = map(float, self.times.read_text().split()[-2:])  # its work is not counted
        moments.append(time.perf_counter() - (ended - begun))
        return [1000 * (after - before) for before, after in zip(moments, moments[1:], strict=False)]

    def run(self, argv: list[str], env: dict[str, str] | None = None, stdin: Any = DEVNULL) -> None:
        """Run a command whose output nobody reads."""
        subprocess.run(argv, cwd=self.root, env=env or self.env, stdin=stdin, stdout=DEVNULL, stderr=DEVNULL)

    def row(self, alone: Case | None) -> list[str]:
        """Return the line of the table. alone: the same criteria with nothing else to be seen to."""
        parts = [*map(median, zip(*self.costs, strict=True))]
        whole, floor, checks = median(self.gaps), sum(parts), parts[2]
        times = [limited(whole / median(alone.gaps), TIMES, ".2f") if alone not in (None, self) else ""]
        times += [f"{number:.0f}" for number in (whole - checks, floor - checks, *parts)]
        counts = [limited(self.counts[0], PROCESSES, ".1f"), *(f"{number:.1f}" for number in self.counts[1:])]
        counts += [limited(self.size / 1000, SIZE, ".1f"), limited(self.files, FILES)]
        return [
            self.name,
            limited(whole, self.target),
            f"{floor:.0f}",
            limited(whole / floor, RATIO, ".2f"),
            *times,
            *counts,
        ]


def limited(number: float, most: float | None, form: str = ".0f") -> str:
    """Return a number with the most that it should be."""
    return f"{number:{form}}{'!' * (number > most)} ({most})" if most else f"{number:{form}}"


def status(case: Case) -> dict[str, float]:
    """Return how fast `status` is beside a Python that does nothing, in turn, in milliseconds."""
    commands = {"python -c pass": ["-c", "pass"], "status": [case.program, "status"]}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for name, args in [*commands.items()] * STATUS:
        begun = time.perf_counter()
        case.run([sys.executable, *args])
        found[name].append(1000 * (time.perf_counter() - begun))
    return {name: median(times) for name, times in found.items()}


def manager() -> dict[str, str]:
    """Return what the manager is asked for thirty criteria, if the kit's tests are here."""
    tool = KIT / "tests" / "tools" / "thirty.py"
    argv = [sys.executable, str(tool)]
    output = subprocess.run(argv, capture_output=True, text=True, check=False).stdout if tool.exists() else ""
    return dict(line.split(": ") for line in output.splitlines())


def main() -> int:
    """Measure, and print the table and the other figures."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description="What an iteration costs, beside its commands bare.")
    parser.add_argument("--rounds", type=int, default=2, help=f"runs of {SESSIONS} sessions in each case")
    parser.add_argument("--cases", default=CASES, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=".cco-bench-", dir=Path.home()) as folder:  # /tmp is not the sandbox's
        kit = Path(folder).resolve() / "kit"  # a copy, since a run restores what is edited in its kit meanwhile
        shutil.copytree(KIT, kit, ignore=shutil.ignore_patterns(".*", "tests"))
        cases = [Case(name, kit.with_name(name), kit / "cco.py") for name in args.cases.split(",")]
        for case in cases * args.rounds:
            print(f"measuring {case.name}", file=sys.stderr)
            case.measure()
        first = {case.name: case for case in cases}
        print(tabulate([case.row(first.get(case.alone)) for case in cases], headers=HEAD, disable_numparse=True))
        memory, ms = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000, status(cases[-1])
    rows = [("peak memory, MB", limited(memory, MEMORY)), ("python -c pass, ms", f"{ms['python -c pass']:.0f}")]
    rows += [("status, ms", limited(ms["status"], START))]
    if asked := manager():
        rows += [("calls of the manager for thirty criteria", limited(int(asked["manager_calls"]), CALLS))]
        rows += [("their characters", limited(int(asked["prompt_characters"]), CHARACTERS))]
    print("", tabulate(rows, tablefmt="plain", disable_numparse=True), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
