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
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scratch import LATER, Scratch, end_all, processes, read, saved, summary

PARTS = (1, 2, 3)  # of the work; each is a criterion and an iteration
SESSIONS = 4  # of each mission: one for each part, and one that ends at a limit or in a crash
RESET = 5.0  # seconds from the beginning to the limit's reset
POLL = 0.2  # seconds between two looks at what runs
PATIENCE = 1800.0  # seconds for all of it


class Mission(Scratch):
    """One mission, its folder, and what became of it."""

    def __init__(self, number: int, base: Path):
        """The repository with one commit, the mission file, and what the worker will do."""
        self.name, self.seconds = f"load-{number}", 0.0
        super().__init__(base / f"{number:03}", name=self.name)
        self.env |= {"HOME": str(base / "home"), "TMPDIR": str(base / "tmp")}
        self.is_limited = number % 2 == 1
        self.work = {f"part-{number}-{n}.txt": f"part {n} of mission {number}" for n in PARTS}
        checks = [f"grep -x '{text}' {name}" for name, text in self.work.items()]
        criteria = [{"id": f"part-{n}", "criteria": check, "check": check} for n, check in enumerate(checks, 1)]
        cut = [{"limit": {"resetsAt": int(time.time() + RESET)}} if self.is_limited else {"exit": 1}]
        first, *others = ([{"write": {name: f"{text}\n"}}] for name, text in self.work.items())
        mission = {"id": self.name, "title": self.name, "definition_of_done": criteria}
        self.prepare(mission, {}, [first, cut, *others], {"README.md": f"{self.name}\n"})

    def look(self) -> None:
        """Note whatever of another mission, or of a second worker, is in the repository, the state or the books."""
        self.look_at_output()
        state, branch, root = json.loads(self.state.read_text()), self.branch, str(self.root)
        calls = [json.loads(line) for line in read(self.folder / "script.json.calls.jsonl").splitlines()]
        held, totals = self.git("ls-tree", "-r", "--name-only", branch).splitlines(), state["totals"]
        for what, seen, due in (
            ("state", (state["repository"], state["mission_id"]), (root, self.name)),
            ("iterations", state["iterations"], len(PARTS)),
            ("sessions", (totals["session_count"], len(calls)), (SESSIONS, SESSIONS)),
            ("places where the worker ran", {(call["cwd"], call["CCO_RUN"]) for call in calls}, {(root, root)}),
            ("failures", totals["failed_actions"], 0 if self.is_limited else 1),
            ("missions of the commits", self.trailers("CCO-Mission", branch), [self.name] * len(PARTS)),
            ("files", {n: self.git("show", f"{branch}:{n}") for n in held}, {"README.md": self.name, **self.work}),
            ("branches", self.git("branch", "--format=%(refname:short)").split(), [branch, "main"]),
            ("main", self.git("rev-parse", "main"), self.main),
            ("changes", self.git("status", "--porcelain"), ""),
        ):
            self.expect("disturbed", what, seen, due)


def run(missions: list[Mission], shorten: bool) -> None:
    """Start them all and wait until each has ended; whatever happens here, they are ended."""
    begun, options, running = time.monotonic(), ["--no-wait"] * shorten, list[tuple[Mission, subprocess.Popen[bytes]]]()
    try:
        running += [(mission, mission.begin(*options)) for mission in missions]
        while running and time.monotonic() < begun + PATIENCE:
            for mission, process in [one for one in running if one[1].poll() is not None]:
                running.remove((mission, process))
                mission.seconds = time.monotonic() - begun
                if shorten and process.returncode == LATER and mission.skip_wait():
                    running.append((mission, mission.begin(*options)))
                elif process.returncode:
                    mission.note("unended", f"exit code {process.returncode}: {mission.said()[-1500:]}")
            time.sleep(POLL)
    finally:
        for mission, process in running:
            mission.kill(process)
            end_all(mission.folder)
            mission.note("unended", f"it did not end in {PATIENCE:.0f} s")


def main() -> int:
    """Run them all in a scratch folder; 0 when all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missions", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--shorten", action="store_true", help="bring each wait's end forward instead of waiting")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the kits are ended too
    base = Path(tempfile.mkdtemp(prefix="cco-load-")).resolve()
    for name in ("home", "tmp"):
        (base / name).mkdir()
    missions = [Mission(number, base) for number in range(args.missions)]
    run(missions, args.shorten)
    done = [mission for mission in missions if not mission.found]
    for mission in done:
        mission.look()
    for mission in missions:
        mission.expect("leftovers", "living", processes(mission.folder), {})
    missions[0].expect("leftovers", "temporary", [*(base / "tmp").iterdir()], [])
    for mission in missions:
        for kind, what in mission.found:
            print(f"VIOLATION {kind}: {what}\n  see: {mission.folder}")
    states = [state for mission in missions if (state := saved(mission.state))]
    figures = {"done": len(done), "sessions": sum(state.totals["session_count"] for state in states)}
    figures["slowest"] = round(max(mission.seconds for mission in missions))
    results = [{"starts": mission.starts, "found": mission.found} for mission in missions]
    return summary(base, results, ("disturbed", "leftovers", "two_workers", "tracebacks", "unended"), figures)


if __name__ == "__main__":
    sys.exit(main())
