#!/usr/bin/env python3
"""Many missions in as many repositories at once: all end done, and none disturbs another.

    python extras/load.py [--missions 50] [--jobs 50] [--shorten]

Each mission is a repository of its own, three criteria, a stand-in for claude and the real command line. Every other
worker runs into a usage limit in its second session, the rest of them crash there, and each waits for that as long as
it always does (a minute or two; half a minute). With --shorten nobody waits: the missions are started as cron would,
with --no-wait, and the time of each wait is brought forward in the state. All share one home, one folder for temporary
files, and the key that seals states, which they make while all of them begin.

At the end each repository has to hold exactly its own work, each state its own counters, and nothing may be left: no
process, no temporary file. It prints `key: value` lines; the exit code is 1 when something was not so, and the folder
is then kept.

Not promised: the time that a mission takes, which is the machine's affair.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXTRAS = Path(__file__).resolve().parent
KIT = EXTRAS.parent
sys.path.insert(0, str(KIT))

import processes  # noqa: E402
import state  # noqa: E402

PARTS = (1, 2, 3)  # of the work; each is a criterion and an iteration
SESSIONS = 4  # of each mission: one for each part, and one that ends at a limit or in a crash
RESET = 5.0  # seconds from the beginning to the limit's reset, which is over when most of the sessions come to it
POLL = 0.2  # seconds between two looks at what runs
PATIENCE = 1800.0  # seconds for all of it
LATER = 75  # the kit's exit code while it waits


@dataclass
class Mission:
    """One mission, its folder, and what became of it."""

    number: int
    folder: Path
    code: int | None = None
    """Exit code of its last start."""
    begun: float = 0.0
    """Monotonic time of its first start."""
    seconds: float = 0.0
    """From there to its end."""
    peak: int = 0
    """The most memory that a kit of it was seen with, in kB."""
    found: list[str] = field(default_factory=list)
    """What was not as it should be."""

    @property
    def root(self) -> Path:
        return self.folder / "repository"

    @property
    def name(self) -> str:
        return f"load-{self.number}"

    def files(self) -> dict[str, str]:
        """What its branch holds at the end: name and content."""
        parts = {f"part-{self.number}-{part}.txt": f"part {part} of mission {self.number}" for part in PARTS}
        return {"README.md": self.name, **parts}

    def state(self) -> dict[str, Any]:
        """What the kit remembers of it; empty when there is nothing."""
        file = self.root / ".cco" / f"{self.name}.json"
        return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


# --------------------------------------------------------------------------------------------------------
# Before
# --------------------------------------------------------------------------------------------------------


def make(mission: Mission) -> None:
    """Its repository with one commit, its mission file, and what its worker will do."""
    mission.root.mkdir(parents=True)
    git(mission, "init", "-q", "-b", "main")
    (mission.root / "README.md").write_text(f"{mission.name}\n")
    git(mission, "add", "-A")
    git(mission, "-c", "user.name=Load", "-c", "user.email=load@localhost", "commit", "-q", "-m", mission.name)
    criteria = [
        {"id": f"part-{part}", "criteria": f"part {part} is there", "check": f"grep -x '{text}' {name}"}
        for part, (name, text) in zip(PARTS, list(mission.files().items())[1:], strict=True)
    ]
    claude = {"command": str(EXTRAS / "claude_stand_in.py"), "sandbox": False}
    document = {
        "id": mission.name,
        "title": f"Mission {mission.number}",
        "repository": str(mission.root),
        "settings": {"claude_code": claude, "manager": {"provider": "rules"}},
        "definition_of_done": criteria,
    }
    (mission.folder / "mission.yaml").write_text(json.dumps(document, indent=1))
    (mission.folder / "script.json").write_text(json.dumps(sessions(mission)))


def sessions(mission: Mission) -> list[list[dict[str, Any]]]:
    """What the worker does, session by session: the second one is cut short, and a second worker leaves a mark."""
    limit = {"limit": {"resetsAt": int(time.time() + RESET), "rateLimitType": "five_hour"}}
    alone, over = {"bash": "mkdir ../working || touch ../two_workers"}, {"bash": "rmdir ../working"}
    work: list[list[dict[str, Any]]] = [
        [alone, {"write": {name: f"{text}\n"}}, over] for name, text in list(mission.files().items())[1:]
    ]
    return [work[0], [limit if mission.number % 2 else {"exit": 1}], *work[1:]]


def git(mission: Mission, *args: str) -> str:
    """Run git in its repository; what it printed. Raises subprocess.CalledProcessError."""
    done = subprocess.run(["git", "-C", str(mission.root), *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --------------------------------------------------------------------------------------------------------
# All at once
# --------------------------------------------------------------------------------------------------------


def run(missions: list[Mission], jobs: int, shorten: bool) -> None:
    """Start them, at most so many at once, until each has ended."""
    waiting, end = list(missions), time.monotonic() + PATIENCE
    with started() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                mission = waiting.pop(0)
                mission.begun = mission.begun or time.monotonic()
                running.append((mission, start(mission, shorten)))
            for mission, process in list(running):
                mission.peak = max(mission.peak, memory(process.pid))
                if process.poll() is not None:
                    running.remove((mission, process))
                    waiting += [mission] * again(mission, process.returncode, shorten)
            if time.monotonic() > end:
                return
            time.sleep(POLL)


@contextmanager
def started() -> Iterator[list[tuple[Mission, subprocess.Popen[bytes]]]]:
    """The kits that run; whatever happens here, they are ended."""
    running: list[tuple[Mission, subprocess.Popen[bytes]]] = []
    try:
        yield running
    finally:
        for mission, process in running:
            process.kill()
            process.wait()
            processes.end_leftovers(str(mission.root.resolve()), None)


def start(mission: Mission, shorten: bool) -> subprocess.Popen[bytes]:
    """`cco.py start`, its output in a file."""
    argv = [sys.executable, str(KIT / "cco.py"), "start", str(mission.folder / "mission.yaml")]
    env = {**os.environ, "CLAUDE_STAND_IN": str(mission.folder / "script.json")}
    with (mission.folder / "output").open("ab") as output:
        return subprocess.Popen(
            [*argv, *["--no-wait"] * shorten],
            cwd=mission.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def again(mission: Mission, code: int, shorten: bool) -> bool:
    """Note how a start has ended; whether there has to be another one, its wait being over already."""
    mission.code, mission.seconds = code, time.monotonic() - mission.begun
    if not shorten or code != LATER:
        return False
    document = mission.state()
    if document["wait_until"] is None:
        return False
    state.save(mission.root / ".cco" / f"{mission.name}.json", {**document, "wait_until": time.time()})
    return True


def memory(pid: int) -> int:
    """The most memory that a process has had so far, in kB: VmHWM of proc(5); 0 where that cannot be told."""
    with suppress(OSError), open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0)
    return 0


# --------------------------------------------------------------------------------------------------------
# Afterwards
# --------------------------------------------------------------------------------------------------------


def look(mission: Mission) -> None:
    """Note whatever of another mission, or of a second worker, is in the repository, the state or the books."""
    document, branch = mission.state(), f"cco/{mission.name}"
    history = git(mission, "log", "--reverse", "--format=%(trailers:key=CCO-Mission,valueonly,separator=)", branch)
    held = git(mission, "ls-tree", "-r", "--name-only", branch).splitlines()
    calls = [json.loads(line) for line in (mission.folder / "script.json.calls.jsonl").read_text().splitlines()]
    metrics = document.get("metrics", {})
    where = {(call["cwd"], call["CCO_RUN"]) for call in calls}
    facts = {
        "repository of the state": (document.get("repository"), str(mission.root)),
        "mission of the state": (document.get("mission_id"), mission.name),
        "iterations": (document.get("iterations"), len(PARTS)),
        "sessions": (metrics.get("session_count"), SESSIONS),
        "sessions that the worker knows of": (len(calls), SESSIONS),
        "places where the worker ran": (where, {(str(mission.root), str(mission.root.resolve()))}),
        "failures": (metrics.get("failed_actions"), 0 if mission.number % 2 else 1),
        "missions of the commits": (history.split(), [mission.name] * len(PARTS)),
        "files": ({name: git(mission, "show", f"{branch}:{name}") for name in held}, mission.files()),
        "branches": (git(mission, "branch", "--format=%(refname:short)").split(), [branch, "main"]),
        "commits of main": (git(mission, "log", "--format=%s", "main"), mission.name),
        "work trees": (len(git(mission, "worktree", "list").splitlines()), 1),
        "changes": (git(mission, "status", "--porcelain"), ""),
        "two workers": ((mission.folder / "two_workers").exists(), False),
    }
    mission.found += [f"{what}: {seen!r}, not {due!r}" for what, (seen, due) in facts.items() if seen != due]


def leftovers(missions: list[Mission], temporary: Path) -> list[str]:
    """Processes and temporary files that are still there."""
    left = [processes.command_line(pid) for one in missions for pid in processes.marked(str(one.root.resolve()))]
    return left + [str(path) for path in temporary.iterdir()]


def report(missions: list[Mission], seconds: float, left: list[str]) -> bool:
    """Print the lines; whether all is well."""
    done = sum(mission.code == 0 for mission in missions)
    disturbed = sum(bool(mission.found) for mission in missions)
    lines = {
        "missions": len(missions),
        "done": done,
        "sessions": sum(mission.state().get("metrics", {}).get("session_count", 0) for mission in missions),
        "seconds": round(seconds, 1),
        "slowest": round(max(mission.seconds for mission in missions), 1),
        "disturbed": disturbed,
        "leftovers": len(left),
        "peak_rss_mb": round(max(mission.peak for mission in missions) / 1024, 1),
    }
    for mission in missions:
        for what in mission.found or [f"exit code {mission.code}"] * (mission.code != 0):
            print(f"{mission.folder}: {what}", file=sys.stderr)
    for what in left:
        print(f"left: {what}", file=sys.stderr)
    print("\n".join(f"{name}: {value}" for name, value in lines.items()))
    return done == len(missions) and not disturbed and not left


def surroundings(scratch: Path) -> Path:
    """What all missions share, as environment; the folder for temporary files."""
    home, temporary = scratch / "home", scratch / "tmp"
    home.mkdir()
    temporary.mkdir()
    os.environ |= {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "TMPDIR": str(temporary)}
    for name in ("OPENROUTER_API_KEY", processes.MARKER):
        os.environ.pop(name, None)
    return temporary


def main() -> int:
    """Run them all in a scratch folder; 0 when all is well."""
    parser = argparse.ArgumentParser(description="Runs many missions at once and looks at what they do to each other.")
    parser.add_argument("--missions", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--jobs", type=int, default=50, help="at most so many at once (default: 50)")
    parser.add_argument("--shorten", action="store_true", help="bring each wait's end forward instead of waiting")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the kits are ended too
    scratch = Path(tempfile.mkdtemp(prefix="cco-load-")).resolve()
    temporary = surroundings(scratch)
    missions = [Mission(number, scratch / f"{number:03}") for number in range(args.missions)]
    for mission in missions:
        make(mission)
    begun = time.monotonic()
    run(missions, args.jobs, args.shorten)
    seconds = time.monotonic() - begun
    for mission in (mission for mission in missions if mission.code == 0):
        look(mission)
    if not report(missions, seconds, leftovers(missions, temporary)):
        print(f"kept: {scratch}", file=sys.stderr)
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
