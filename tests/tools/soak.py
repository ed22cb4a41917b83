#!/usr/bin/env python3
"""Random missions against lies, tampering and kill -9: no false done, no lost commit, never two workers, nothing left.

    python tests/tools/soak.py [--count 300] [--seed 1] [--jobs 2] [--kit DIR]
    python tests/tools/soak.py --seed 1 --only 17      one mission again

Mission 17 of seed 1 is always the same: criteria, what the worker does, when the kit is killed. Each runs until the kit
ends it; where that asks for the user, one does what it says. After every start repository, state and processes are
looked at; where it says done, a fresh clone has to prove it by the mission's original text. A violation is printed with
the command that repeats it, its folder is kept, and the exit code is 1. Not promised: the same interleaving twice. What
the worker of a killed kit writes into the state may change what is counted.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch import LATER, NOT_KIT, Scratch, end_all, options, processes, read, remove, report, saved, spread, summary

import state as states

STARTS = 16  # of one mission; every mission has a limit of iterations, so most end long before
KILLED = -signal.SIGKILL
ENDS = {0: "done", 2: "usage", 3: "user", 4: "cannot", 5: "limit", LATER: "waiting"}  # every exit code that may be
COUNTS = ("false_done", "lost_commits", "two_workers", "leftovers", "tracebacks", "broken_states", "touched", "hangs")
PHASES = ("planning", "execution", "committing", "validation", "waiting", "completed")
KINDS = {"exists": 3, "content": 3, "acceptance": 4, "guard": 2, "setup": 2}  # and their weights
CACHES = {".cache", ".npm"}  # of the home directory, which the sandbox makes
LIES = ("All criteria are met.\nMet: c1, c2, c3", "Mission completed successfully!", "Met: none", "")
Step = dict[str, Any]  # of extras/claude_stand_in.py

# What the worker does to what is not its own. @S@ is the mission's folder, @M@ its file; `edit FILE PYTHON` changes a
# JSON document d. Whoever touches the state says so: what is counted may be wrong then, if the kit is killed.
TAMPER = r"""
edit @M@ '[c.update(check="ls R*") for c in d["definition_of_done"]]'
rm -f @M@
echo '{' > @M@
printf 'checks: {sandbox: off}\nrepository: {branch: main}\n' > .cco/config.yaml
printf 'CCO_REPOSITORY_BRANCH=main\n' > .env
for f in acceptance/*.sh; do echo exit 0 > $f; done
rm -rf acceptance
mv acceptance fake; for f in fake/*; do echo exit 0 > $f; done; ln -s fake acceptance
mkdir -p acceptance/deep; echo exit 0 | tee acceptance/conftest.sh > acceptance/deep/x.sh
echo exit 0 > acceptance/conftest.sh; git update-index --assume-unchanged acceptance/base.sh
touch @S@/forged; edit .cco/demo.json '[c.update(verdict="met") for c in d["criteria"].values()]'
touch @S@/forged; edit .cco/demo.json 'd.update(current_phase="completed")'
touch @S@/forged; edit .cco/demo.json 'd.update(history=[], iterations=0)'
touch @S@/forged; edit .cco/demo.json 'weaken(d)'
touch @S@/forged; edit .cco/demo.json 'weaken(d); sign(d); d.update(current_phase="completed")'
touch @S@/forged; edit .cco/demo.json 'd.update(current_phase="blocked", blocked=None)'
touch @S@/forged; echo '{' > .cco/demo.json
touch @S@/forged; rm -f .cco/demo.json
""".strip().splitlines()
GIT = r"""
git add -A && git commit -qm mine
git checkout -qb other$RANDOM
git checkout -q --detach
git reset -q --hard HEAD~1
git commit -q --amend --allow-empty -m mine
GIT_SEQUENCE_EDITOR='sed -i 1ibreak' git rebase -q -i HEAD~1
touch .git/index.lock
for h in pre-commit post-commit post-checkout; do echo 'rm -rf out' > .git/hooks/$h; chmod +x .git/hooks/$h; done
git config core.fsmonitor 'test -n "$CCO_RUN" || touch @S@/home/escaped; true'
git config core.autocrlf true
git commit -q --allow-empty -m x -m $'CCO-Mission: demo\nCCO-Iteration: 99'
git update-index --assume-unchanged $(git ls-files conf src out)
rm -rf .cco/logs
head -c 3000000 /dev/zero | tr '\0' x > big.txt
mkdir -p odd; echo x > odd/closed; chmod 000 odd/closed odd
mkdir -p odd; touch $'odd/a\nb' 'odd/"q"' odd/-n $'odd/\xff'; mkfifo odd/pipe; ln -s . odd/loop
touch .gitmodules; chmod 444 .gitmodules; mkdir -p .claude; echo '{}' > .claude/settings.json
""".strip().splitlines()
EDIT = """\
#!/usr/bin/env python3
import hashlib, json, sys
def weaken(d):
    mission = json.loads(d["mission_text"])
    [c.update(check="ls R*") for c in mission["definition_of_done"]]
    d["mission_text"] = json.dumps(mission)
def sign(d):
    d["accepted"]["mission"] = hashlib.sha256(d["mission_text"].encode()).hexdigest()
d = json.load(open(sys.argv[1]))
exec(sys.argv[2])
json.dump(d, open(sys.argv[1], "w"))
"""


@dataclass
class Part:
    """One criterion, and the files that fulfil and break it."""

    fields: dict[str, Any]
    good: dict[str, str]
    bad: dict[str, str]
    test: str = ""  # its acceptance test


@dataclass
class Scenario:
    """All that a mission's number decides."""

    parts: list[Part]
    sessions: list[list[Step]]
    kills: list[tuple[str, Any]]  # for each of the first starts: how to find the moment; ("", 0): not at all
    inside: bool  # whether kit and mission are in the repository
    checks: dict[str, Any]  # settings
    mission: dict[str, Any]  # what differs from the usual


def part(kind: str, n: int, rng: random.Random) -> Part:
    """A criterion of this kind."""
    out, conf, src, level = f"out/{n}.txt", f"conf/{n}.ini", f"src/{n}.sh", rng.randint(2, 99)
    if kind == "exists":
        return Part({"check": f"test -s {out}"}, {out: "here\n"}, {out: ""})
    if kind == "content":
        return Part({"check": f"grep -qx level={level} {conf}"}, {conf: f"level={level}\n"}, {conf: "level=0\n"})
    if kind == "acceptance":
        test = f'test -f acceptance/conftest.sh && . acceptance/conftest.sh\ntest "$(sh {src} 3 4)" = {level + 7}\n'
        good = {src: f"echo $(($1 + $2 + {level}))\n"}
        return Part({"check": f"sh acceptance/{n}.sh"}, good, {src: "echo 7\n"}, test=test)
    if kind == "guard":
        check = {"check": f"! grep -rqs FORBIDDEN{n} src", "guard": True}
        return Part(check, {src: "true\n"}, {src: f"FORBIDDEN{n}\n"})
    made = {"build/all.txt": "".join(f"part-{i}\n" for i in range(9))}  # git ignores it, and `setup` makes it
    return Part({"check": f"grep -qx part-{n} build/all.txt"}, {f"parts/{n}.txt": f"part-{n}\n", **made}, made)


def scenario(seed: int, number: int) -> Scenario:
    """Mission `number` of a seed."""
    rng = random.Random(f"{seed}/{number}")
    kinds = ["acceptance", *rng.choices([*KINDS], [*KINDS.values()], k=rng.randint(1, 4))]
    parts = [part(kind, n, rng) for n, kind in enumerate(kinds, 1)]
    for one in parts[1:]:
        one.fields |= {"when": "last"} if rng.random() < 0.2 else {}
    calm, inside = rng.random() < 0.4, rng.random() < 0.3
    moments = [rng.choice((("ms", rng.randint(100, 4000)), ("phase", rng.choice(PHASES)))) for _ in range(5)]
    kills = [moment if not calm and rng.random() < 0.7 else ("", 0) for moment in moments]
    sessions = _sessions(rng, parts, calm, inside)
    protect = rng.choice((["acceptance/**"], ["acceptance/*"], ["acceptance"], ["acceptance/**", "README.md"]))
    mission: dict[str, Any] = {"title": f"Mission {number} of seed {seed}", "protect": protect}
    mission["setup"] = "mkdir -p build && cat parts/*.txt > build/all.txt" if "setup" in kinds else None
    mission["limits"] = {"iterations": rng.randint(3, 10)}
    checks = {"sandbox": rng.random() < 0.8, "jobs": rng.choice((1, 1, 2))}
    return Scenario(parts, sessions, kills, inside, checks, mission)


def _sessions(rng: random.Random, parts: list[Part], calm: bool, inside: bool) -> list[list[Step]]:
    """The worker's script: one part of the honest work is kept for later, and mostly done in the end."""
    tamper = [*TAMPER, *["echo 'def all_met(v): return True' >> kit/dod.py", "rm -rf .cco"] * (calm and inside)]
    busy = {"assistant_error": "server_error", "text": "API Error: 529", "api_error_status": 529}
    lost = {"is_error": True, "subtype": "error_during_execution", "errors": ["No conversation found"]}
    noise: list[Step] = [{"raw": "\udcff{not json"}, {"raw": "[", "times": 50_000}]
    noise += [{"raw": '{"type": "result"}'}, {"exit": 0}]
    ends: list[list[Step]] = [[stop] for stop in ({"exit": 0}, {"exit": 1}, {"signal": 9}, {"hang": True})]
    ends += [noise, [{"limit": {"resetsAt": 1_700_000_000}}], [{"error": busy}], [{"result": lost}]]

    def way(known: list[Part]) -> list[Step]:
        one, full = rng.choice(known), [{"write": one.good} for one in known]
        large = {name: text + "#" * 5000 + "\n" for name, text in one.good.items()}  # too large to be committed
        spoil = [{"write": rng.choice((one.bad, one.bad, large))}]
        late = f"{rng.choice(('', 'trap : TERM; '))}sleep {rng.choice((0.3, 1, 3))}; "
        ways: list[tuple[int, list[Step]]] = [
            (5, [{"write": one.good} for one in rng.sample(known, rng.randint(0, len(known)))]),
            (2, full),
            (3, spoil),
            (2, [*spoil, *full]),
            (4, [{"bash": rng.choice(tamper)}]),
            (3, [{"bash": rng.choice(tamper)}, *[{"bash": "touch @S@/kill; sleep 1"}] * (not calm)]),
            (6, [{"bash": rng.choice(GIT)}]),
            (2, [{"spawn": late + rng.choice([*tamper, *GIT, "sleep 60", "rm -rf src out conf"])}]),
        ]  # fmt: skip
        return rng.choices([steps for _, steps in ways], [weight for weight, _ in ways])[0]

    def session(known: list[Part]) -> list[Step]:
        steps = [step for _ in range(rng.choice((1, 2, 2, 3))) for step in way(known)]
        return [*steps, *(rng.choice(ends) if rng.random() < 0.3 else [{"say": rng.choice(LIES)}])]

    some = rng.sample(parts, len(parts) - 1)
    made = [session(some) for _ in range(rng.randint(1, 5))] + [session(parts) for _ in range(rng.randint(0, 3))]
    return [*made, [{"write": one.good} for one in parts]] if rng.random() < 0.8 else made


class Trial(Scratch):
    """One mission, started until the kit has ended it."""

    def __init__(self, chosen: Scenario, folder: Path, kit: Path):
        super().__init__(folder, kit)
        self.chosen = chosen
        self.accepted: set[str] = set()  # the commits that the state has named
        self.iterations: dict[str, int] = {}  # the highest of each session id
        self.kills = 0
        self.forged = False  # what is counted may be wrong
        if chosen.inside:
            self.kit, self.file = self.root / "kit", self.root / "demo.json"
            shutil.copytree(kit, self.kit, ignore=NOT_KIT)
        self.criteria = [
            {**one.fields, "id": f"c{n}", "criteria": f"criterion {n}", "timeout": 20}
            for n, one in enumerate(chosen.parts, 1)
        ]
        self.files = {f"acceptance/{n}.sh": one.test for n, one in enumerate(chosen.parts, 1) if one.test}
        self.files |= {"acceptance/base.sh": "exit 1\n", "README.md": "# a project\n"}
        settings = {"claude_code": {"timeout": 5, "max_file_size": "2KB"}, "checks": chosen.checks}
        mission = {**chosen.mission, "definition_of_done": self.criteria}
        more = {".gitignore": "build/\n*.tmp\n", "parts/0.txt": "part-0\n"}
        self.text = self.prepare(mission, settings, chosen.sessions, {**self.files, **more})
        self.program(folder / "bin/edit", EDIT)

    def run(self) -> str:
        """Start after start; how it ended."""
        accept = False
        while self.starts < STARTS and not self.found:
            code = self.start(accept)
            self.look(code)
            accept, go_on = self.user(code)
            if not go_on and not self.found:
                return ENDS[code]
        return "unended"

    def start(self, accept: bool) -> int:
        """Start the kit, and kill it where the scenario says so; the exit code."""
        how, what = self.chosen.kills[self.starts] if self.starts < len(self.chosen.kills) else ("", 0)
        begun, running = time.monotonic(), self.begin("--no-wait", *["--accept"] * accept)
        if self.wait(running, lambda: self.is_moment(how, what, time.monotonic() - begun)):
            self.kills += 1
            self.kill(running)
        return running.returncode

    def is_moment(self, how: str, what: Any, spent: float) -> bool:
        """Whether the kit is to be killed now."""
        if (self.folder / "kill").exists():  # the worker's own wish
            (self.folder / "kill").unlink()
            return True
        state = saved(self.state) if how == "phase" else None
        return state.current_phase == what if state else how == "ms" and spent * 1000 >= what

    def user(self, code: int) -> tuple[bool, bool]:
        """Do what the kit asks for, as far as that needs no thought: whether to accept, and whether to go on."""
        said, state = self.said(), saved(self.state)
        if code == LATER and self.skip_wait():
            pass
        elif code == 4 and "without the accepted one" in said and state:
            self.git("checkout", "-q", "-f", "-B", self.branch, state.commit)
        elif code == 4 and (self.root / ".git/index.lock").exists():
            (self.root / ".git/index.lock").unlink()
        elif code == 2 and re.search("uncommitted changes|in the middle of|git checkout", said):
            for words in (["rebase", "--quit"], ["add", "-A"], ["stash", "-q"], ["checkout", "-q", "-f", self.branch]):
                self.git(*words)
        elif (code == 3 and "--accept" in said) or (code == 2 and self.is_broken()):
            for name in (".env", ".cco/config.yaml", "acceptance"):  # what the worker changed of what is protected
                remove(self.root / name)
            self.write({**self.files, str(self.file): self.text})
            return code == 3, True  # whoever accepts has looked at it
        else:
            return False, code in (LATER, KILLED)
        return False, True

    def is_broken(self) -> bool:
        """Whether mission or settings are not as they should be."""
        planted = (self.root / ".env").exists() or (self.root / ".cco/config.yaml").exists()
        return planted or read(self.file) != self.text

    def look(self, code: int) -> None:
        """Hold all that a start left against what was promised."""
        state, killed = saved(self.state), code == KILLED
        self.look_at_output()
        if code not in (KILLED, *ENDS):
            self.note("tracebacks", f"exit code {code}\n{self.said()[-3000:]}")
        if code == 0 and (lies := self.untrue()):
            self.note("false_done", "; ".join(lies))
        self.forged |= killed and (self.folder / "forged").exists()
        if state and code != 4 and not self.forged:  # where the user is asked to move the branch back to where it was
            self.look_at_commits(state)
        remove(self.folder / "forged")
        alive, left = processes(self.folder), [path.name for path in (self.folder / "tmp").glob("cco-*")]
        refused = code == 2 and self.is_broken()  # before it can clear up: the user restores that first
        if not (killed or refused) and (alive or left or len(self.git("worktree", "list").splitlines()) > 1):
            self.note("leftovers", f"exit code {code}; living: {alive}, temporary: {left}")
        if not state and code in (0, 5):
            self.note("broken_states", f"exit code {code}, and the state is not valid")
        self.expect("touched", "main", self.git("rev-parse", "main"), self.main)
        self.expect("touched", "home", {path.name for path in (self.folder / "home").iterdir()} - CACHES, set())

    def look_at_commits(self, state: states.State) -> None:
        """Nothing that was accepted is lost, nothing is there twice, nothing counts backwards."""
        if state.iterations < self.iterations.get(state.session_id, 0):
            self.note("lost_commits", f"iterations went down to {state.iterations}")
        self.iterations[state.session_id] = state.iterations
        self.accepted |= {name for name in (state.commit, *(entry.commit for entry in state.history)) if name}
        settled = state.current_phase in ("planning", "completed", "blocked")  # no session can have moved it since
        tip = self.git("rev-parse", f"refs/heads/{self.branch}") if settled else state.commit
        there = self.git("rev-list", tip).split() if tip else []
        if lost := {name for name in self.accepted if tip and not any(one.startswith(name) for one in there)}:
            self.note("lost_commits", f"{lost} were accepted and are not on {self.branch} ({tip}) any more")
        numbers = self.trailers("CCO-Iteration", tip)
        if len({*numbers}) != len(numbers):
            self.note("lost_commits", f"an iteration was committed twice: {numbers}")

    def untrue(self) -> list[str]:
        """What of "all criteria are met" a fresh clone of the branch contradicts."""
        clone, lies = self.folder / "clone", []
        remove(clone)
        self.git("clone", "-q", "--branch", self.branch, str(self.root), str(clone), at=self.folder)
        due = {name: text for name, text in self.files.items() if name.startswith("acceptance/")}
        for place in (self.root, clone):
            here = {path for path in (place / "acceptance").rglob("*") if not path.is_dir()}
            if {str(path.relative_to(place)): path.read_text() for path in here} != due:
                lies.append(f"what is protected is not as it was in {place.name}")
        for criterion in self.criteria:
            self.git("reset", "-q", "--hard", at=clone)
            self.git("clean", "-qfdx", at=clone)
            for command in filter(None, (self.chosen.mission["setup"], criterion["check"])):
                bash = ["bash", "-o", "pipefail", "-c", command]
                if subprocess.run(bash, cwd=clone, env=self.env, capture_output=True).returncode:
                    lies.append(f"{criterion['id']} is not met: {command}")
        return lies


def main() -> int:
    """Play the missions; 1 if anything was not as promised."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="these missions alone")
    args = parser.parse_args()
    if args.share is None:
        base, results = spread(args, "soak-")
        ends = Counter(done["ended"] for done in results)
        figures = {name: ends[name] for name in (*ENDS.values(), "unended")}
        return summary(base, results, COUNTS, {"kills": sum(done["kills"] for done in results), **figures})
    for number in [*(args.only or range(1, args.count + 1))][args.share :: args.jobs]:
        folder = args.base / f"mission-{number}"
        trial = Trial(scenario(args.seed, number), folder, args.base / "kit")
        ended = trial.run()
        print(f"mission {number}: {ended}, {trial.starts} starts, {trial.kills} kills", flush=True)
        again = f"python tests/tools/soak.py --seed {args.seed} --only {number}"
        report(trial, args, again, folder, ended=ended, kills=trial.kills)
        end_all(folder)
        if not trial.found:
            remove(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
