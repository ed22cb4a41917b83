#!/usr/bin/env python3
"""Many missions in as many repositories at once: all end done, and none disturbs another.

    python tests/tools/load.py [--missions 50] [--shorten]

Each mission is a repository of its own, three criteria, a stand-in for claude and the real command line. Every other
worker runs into a usage limit in its second session, the rest of them crash there, and each waits for that as long as
it always does. With --shorten nobody waits: the missions are started as cron would, with --no-wait, and the time of
each wait is brought forward in the state. All share one home and one folder for temporary files. At the end each
repository has to hold exactly its own work, each state its own counters, and no process or temporary file may be left.
When something was not so, the exit code is 1 and the folder is kept.
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
from dataclasses import dataclass, field
from pathlib import Path

from soak import KIT, end_all, processes, saved

import state as states

PARTS = (1, 2, 3)  # of the work; each is a criterion and an iteration
SESSIONS = 4  # of each mission: one for each part, and one that ends at a limit or in a crash
RESET = 5.0  # seconds from the beginning to the limit's reset
POLL = 0.2  # seconds between two looks at what runs
PATIENCE = 1800.0  # seconds for all of it
LATER = 75  # exit code of a kit that is not to wait


@dataclass
class Mission:
    """One mission, its folder, and what became of it."""

    number: int
    folder: Path
    code: int | None = None  # exit code of its last start
    begun: float = 0.0  # monotonic time of its first start
    seconds: float = 0.0  # from there to its end
    found: list[str] = field(default_factory=list)  # what was not as it should be

    def __post_init__(self) -> None:
        """The repository with one commit, the mission file, and what the worker will do."""
        self.name, self.root = f"load-{self.number}", self.folder / "repository"
        self.state, self.script = self.root / ".cco" / f"{self.name}.json", self.folder / "script.json"
        self.work = {f"part-{self.number}-{n}.txt": f"part {n} of mission {self.number}" for n in PARTS}
        self.root.mkdir(parents=True)
        (self.root / "README.md").write_text(f"{self.name}\n")
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("-c", "user.name=Load", "-c", "user.email=load@localhost", "commit", "-q", "-m", self.name)
        checks = [f"grep -x '{text}' {name}" for name, text in self.work.items()]
        claude = {"command": str(KIT / "extras" / "claude_stand_in.py"), "sandbox": False}
        criteria = [{"id": f"part-{n}", "criteria": c, "check": c} for n, c in enumerate(checks, 1)]
        document = {"id": self.name, "title": self.name, "repository": str(self.root), "definition_of_done": criteria}
        document["settings"] = {"claude_code": claude, "manager": {"provider": "rules"}}
        (self.folder / "mission.yaml").write_text(json.dumps(document))
        cut = [{"limit": {"resetsAt": int(time.time() + RESET)}} if self.number % 2 else {"exit": 1}]
        alone, over = {"bash": "mkdir ../working || touch ../two_workers"}, {"bash": "rmdir ../working"}
        first, *others = ([alone, {"write": {name: f"{text}\n"}}, over] for name, text in self.work.items())
        self.script.write_text(json.dumps([first, cut, *others]))

    def git(self, *args: str) -> str:
        """What git prints in the repository. Raises subprocess.CalledProcessError."""
        done = subprocess.run(["git", "-C", str(self.root), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def start(self, shorten: bool) -> subprocess.Popen[bytes]:
        """Begin `cco.py start`, its output in a file."""
        argv = [sys.executable, str(KIT / "cco.py"), "start", str(self.folder / "mission.yaml")]
        env, self.begun = {**os.environ, "CLAUDE_STAND_IN": str(self.script)}, self.begun or time.monotonic()
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [*argv, *["--no-wait"] * shorten], cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip

    def goes_on(self, code: int, shorten: bool) -> bool:
        """Note how a start has ended; whether there has to be another one, its wait being over already."""
        self.code, self.seconds, state = code, time.monotonic() - self.begun, saved(self.state)
        if not shorten or code != LATER or not state or not state.wait:
            return False
        state.wait.until = time.time()
        states.save(self.state, state)
        return True

    def look(self) -> None:
        """Note whatever of another mission, or of a second worker, is in the repository, the state or the books."""
        document, branch = json.loads(self.state.read_text()), f"cco/{self.name}"
        history = self.git("log", "--reverse", "--format=%(trailers:key=CCO-Mission,valueonly,separator=)", branch)
        held = self.git("ls-tree", "-r", "--name-only", branch).splitlines()
        calls = [json.loads(line) for line in Path(f"{self.script}.calls.jsonl").read_text().splitlines()]
        totals, root = document["totals"], str(self.root.resolve())
        facts = {
            "repository of the state": (document["repository"], str(self.root)),
            "mission of the state": (document["mission_id"], self.name),
            "iterations": (document["iterations"], len(PARTS)),
            "sessions": ((totals["session_count"], len(calls)), (SESSIONS, SESSIONS)),
            "places where the worker ran": ({(c["cwd"], c["CCO_RUN"]) for c in calls}, {(str(self.root), root)}),
            "failures": (totals["failed_actions"], 0 if self.number % 2 else 1),
            "missions of the commits": (history.split(), [self.name] * len(PARTS)),
            "files": ({n: self.git("show", f"{branch}:{n}") for n in held}, {"README.md": self.name, **self.work}),
            "branches": (self.git("branch", "--format=%(refname:short)").split(), [branch, "main"]),
            "commits of main": (self.git("log", "--format=%s", "main"), self.name),
            "changes": (self.git("status", "--porcelain"), ""),
            "two workers": ((self.folder / "two_workers").exists(), False),
        }
        self.found += [f"{what}: {seen!r}, not {due!r}" for what, (seen, due) in facts.items() if seen != due]


def run(missions: list[Mission], shorten: bool) -> None:
    """Start them all and wait until each has ended; whatever happens here, they are ended."""
    end, running = time.monotonic() + PATIENCE, [(mission, mission.start(shorten)) for mission in missions]
    try:
        while running and time.monotonic() < end:
            for mission, process in [one for one in running if one[1].poll() is not None]:
                running.remove((mission, process))
                if mission.goes_on(process.returncode, shorten):
                    running.append((mission, mission.start(shorten)))
            time.sleep(POLL)
    finally:
        for mission, process in running:
            process.kill()
            process.wait()
            end_all(mission.folder)


def main() -> int:
    """Run them all in a scratch folder; 0 when all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missions", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--shorten", action="store_true", help="bring each wait's end forward instead of waiting")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the kits are ended too
    scratch = Path(tempfile.mkdtemp(prefix="cco-load-")).resolve()
    for name, folder in (("HOME", "home"), ("TMPDIR", "tmp")):
        (scratch / folder).mkdir()
        os.environ[name] = str(scratch / folder)
    for name in ("OPENROUTER_API_KEY", "CCO_RUN"):
        os.environ.pop(name, None)
    missions = [Mission(number, scratch / f"{number:03}") for number in range(args.missions)]
    begun = time.monotonic()
    run(missions, args.shorten)
    done = [mission for mission in missions if mission.code == 0]
    for mission in done:
        mission.look()
    left = [line for mission in missions for line in processes(mission.folder).values()]
    left += map(str, (scratch / "tmp").iterdir())
    ended = [state for mission in missions if (state := saved(mission.state))]
    lines = {
        "missions": len(missions),
        "done": len(done),
        "sessions": sum(state.totals["session_count"] for state in ended),
        "seconds": round(time.monotonic() - begun, 1),
        "slowest": round(max(mission.seconds for mission in missions), 1),
        "disturbed": sum(bool(mission.found) for mission in missions),
        "leftovers": len(left),
    }
    print("\n".join(f"{name}: {value}" for name, value in lines.items()))
    wrong = [f"left: {what}" for what in left]
    for mission in missions:
        found = mission.found or [f"exit code {mission.code}"] * (mission.code != 0)
        wrong += [f"{mission.folder}: {what}" for what in found]
    if wrong:
        print("\n".join([*wrong, f"kept: {scratch}"]), file=sys.stderr)
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
