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

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(KIT))

import state as states  # noqa: E402
from proc import Stop  # noqa: E402

BRANCH = "cco/demo"
STARTS = 16  # of one mission; every mission has a limit of iterations, so most end long before
PATIENCE = 180.0  # seconds for one start
POLL = 0.01  # seconds between two looks for the moment to kill
KILLED = -signal.SIGKILL
ENDS = {0: "done", 2: "usage", 3: "user", 4: "cannot", 5: "limit", 75: "waiting"}  # every exit code that may be
COUNTS = ("false_done", "lost_commits", "two_workers", "leftovers", "tracebacks", "broken_states", "touched")
PHASES = ("planning", "execution", "committing", "validation", "waiting", "completed")
KINDS = {"exists": 3, "content": 3, "acceptance": 4, "guard": 2, "setup": 2}  # and their weights
CACHES = {".cache", ".npm"}  # of the home directory, which the sandbox makes
LIES = ("All criteria are met.\nMet: c1, c2, c3", "Mission completed successfully!", "Met: none", "")
CONTAINED = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent")
NOT_KIT = shutil.ignore_patterns(".*", "__pycache__", "tests", "missions", "deploy", "docs")
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
CLAUDE = """\
#!/bin/bash
case " $* " in *" -p "*) exec 9>>'@S@/alone'; flock -n 9 || echo "$$: not alone" >> '@S@/two';; esac
exec '@PYTHON@' '@KIT@/extras/claude_stand_in.py' "$@"
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
    return Scenario(parts, _sessions(rng, parts, calm, inside), kills, inside, {
        "title": f"Mission {number} of seed {seed}",
        "setup": "mkdir -p build && cat parts/*.txt > build/all.txt" if "setup" in kinds else None,
        "protect": rng.choice((["acceptance/**"], ["acceptance/*"], ["acceptance"], ["acceptance/**", "README.md"])),
        "limits": {"iterations": rng.randint(3, 10)},
        "checks": {"sandbox": rng.random() < 0.8, "jobs": rng.choice((1, 1, 2))},
    })  # fmt: skip


def _sessions(rng: random.Random, parts: list[Part], calm: bool, inside: bool) -> list[list[Step]]:
    """The worker's script: one part of the honest work is kept for later, and mostly done in the end."""
    tamper = [*TAMPER, *["echo 'def all_met(v): return True' >> kit/dod.py", "rm -rf .cco"] * (calm and inside)]
    busy = {"assistant_error": "server_error", "text": "API Error: 529", "api_error_status": 529}
    lost = {"is_error": True, "subtype": "error_during_execution", "errors": ["No conversation found"]}
    noise = [{"raw": "\udcff{not json"}, {"raw": "[", "times": 50_000}, {"raw": '{"type": "result"}'}, {"exit": 0}]
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


class Scratch:
    """A repository in a folder of its own, with a home, a worker and all else that the kit may reach."""

    def __init__(self, folder: Path, kit: Path):
        self.folder, self.root, self.kit, self.file = folder, folder / "repository", kit, folder / "demo.json"
        self.state = self.root / ".cco" / "demo.json"
        self.found: list[tuple[str, str]] = []  # kind and words of each violation
        own = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "CLAUDE_STAND_IN": folder / "script.json"}
        known = {n: v for n, v in os.environ.items() if not n.startswith(("CCO_", "OPENROUTER_", "GIT_"))}
        self.env = {**known, **{n: str(v) for n, v in own.items()}, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        for name in ("repository", "bin", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "Soak")
        self.git("config", "user.email", "soak@example.invalid")
        self.program(folder / "bin/claude", CLAUDE)

    def fill(self, text: str, **more: object) -> str:
        """Replace @S@, @M@, @KIT@, @PYTHON@ and more of that form."""
        places = {"S": self.folder, "M": self.file, "KIT": self.kit, "PYTHON": sys.executable, **more}
        return re.sub("@([A-Z]+)@", lambda found: str(places[found[1]]), text)

    def program(self, path: Path, text: str, **more: object) -> None:
        """Write a program."""
        path.write_text(self.fill(text, **more))
        path.chmod(0o755)

    def write(self, files: dict[str, str]) -> None:
        """Write files, their names seen from the repository."""
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def git(self, *args: str, at: Path | None = None) -> str:
        """What git prints; "" when it fails."""
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-C", str(at or self.root)]
        return subprocess.run([*command, *args], env=self.env, capture_output=True, text=True).stdout.strip()

    def commit(self) -> None:
        """Commit all that is there, on main."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "first")
        self.main = self.git("rev-parse", "main")

    def note(self, kind: str, what: str) -> None:
        self.found.append((kind, what))


class Trial(Scratch):
    """One mission, started until the kit has ended it."""

    def __init__(self, chosen: Scenario, folder: Path, kit: Path):
        super().__init__(folder, kit)
        self.chosen = chosen
        self.accepted: set[str] = set()  # the commits that the state has named
        self.iterations: dict[str, int] = {}  # the highest of each session id
        self.starts = self.kills = 0
        self.forged = False  # what is counted may be wrong
        if chosen.inside:
            self.kit, self.file = self.root / "kit", self.root / "demo.json"
            shutil.copytree(kit, self.kit, ignore=NOT_KIT)
        parts, fields = chosen.parts, dict(chosen.mission)
        for n, one in enumerate(parts, 1):
            one.fields.update(id=f"c{n}", criteria=f"criterion {n}", timeout=20)
        claude = {"command": "@S@/bin/claude", "sandbox": False, "timeout": 5, "max_file_size": "2KB"}
        fields["settings"] = {"claude_code": claude, "checks": fields.pop("checks"), "manager": {"provider": "rules"}}
        fields |= {"repository": str(self.root), "definition_of_done": [one.fields for one in parts]}
        self.text = self.fill(json.dumps(fields, indent=1))
        self.mission = json.loads(self.text)
        self.files = {f"acceptance/{n}.sh": one.test for n, one in enumerate(parts, 1) if one.test}
        self.files |= {"acceptance/base.sh": "exit 1\n", "README.md": "# a project\n"}
        more = {".gitignore": "build/\n*.tmp\n", "parts/0.txt": "part-0\n", str(self.file): self.text}
        self.write({**self.files, **more})
        self.commit()
        self.write({self.env["CLAUDE_STAND_IN"]: self.fill(json.dumps(chosen.sessions))})
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
        kit = [sys.executable, str(self.kit / "cco.py"), "start", "--no-wait", *["--accept"] * accept, str(self.file)]
        begun, options = time.monotonic(), {"env": self.env, "cwd": self.root, "stdin": subprocess.DEVNULL}
        with open(self.folder / f"start-{self.starts}", "wb") as output:
            running = subprocess.Popen(kit, stdout=output, stderr=output, start_new_session=True, **options)
        while running.poll() is None:
            time.sleep(POLL)
            if (spent := time.monotonic() - begun) > PATIENCE:
                self.note("leftovers", f"it did not end in {PATIENCE:.0f} s")
            if spent > PATIENCE or self.is_moment(how, what, spent):
                self.kills += 1
                running.kill()
                running.wait()
        self.starts += 1
        return running.returncode

    def is_moment(self, how: str, what: Any, spent: float) -> bool:
        """Whether the kit is to be killed now."""
        if (self.folder / "kill").exists():  # the worker's own wish
            (self.folder / "kill").unlink()
            return True
        state = saved(self.state) if how == "phase" else None
        return state.current_phase == what if state else how == "ms" and spent * 1000 >= what

    def said(self) -> str:
        """What the last start printed."""
        return (self.folder / f"start-{self.starts - 1}").read_text(errors="replace")

    def user(self, code: int) -> tuple[bool, bool]:
        """Do what the kit asks for, as far as that needs no thought: whether to accept, and whether to go on."""
        said, state = self.said(), saved(self.state)
        if code == 75 and state and state.wait:  # the reset comes
            state.wait.until = 0
            states.save(self.state, state)
        elif code == 4 and "without the accepted one" in said and state:
            self.git("checkout", "-q", "-f", "-B", BRANCH, state.commit)
        elif code == 4 and (self.root / ".git/index.lock").exists():
            (self.root / ".git/index.lock").unlink()
        elif code == 2 and re.search("uncommitted changes|in the middle of|git checkout", said):
            for words in (["rebase", "--quit"], ["add", "-A"], ["stash", "-q"], ["checkout", "-q", "-f", BRANCH]):
                self.git(*words)
        elif (code == 3 and "--accept" in said) or (code == 2 and self.is_broken()):
            self.restore()
            return code == 3, True  # whoever accepts has looked at it
        else:
            return False, code in (75, KILLED)
        return False, True

    def is_broken(self) -> bool:
        """Whether mission or settings are not as they should be."""
        planted = (self.root / ".env").exists() or (self.root / ".cco/config.yaml").exists()
        return planted or not self.file.exists() or self.file.read_text(errors="replace") != self.text

    def restore(self) -> None:
        """Undo what the worker changed of what is protected."""
        for name in (".env", ".cco/config.yaml", "acceptance"):
            remove(self.root / name)
        self.write({**self.files, str(self.file): self.text})

    def look(self, code: int) -> None:
        """Hold all that a start left against what was promised."""
        state, said, killed = saved(self.state), self.said(), code == KILLED
        if re.search(r"^Traceback", said, re.M) or "unexpected error" in said or code not in (KILLED, *ENDS):
            self.note("tracebacks", f"exit code {code}\n{said[-3000:]}")
        if (self.folder / "two").exists():
            self.note("two_workers", (self.folder / "two").read_text())
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
        if not killed and not state and code in (0, 5):
            self.note("broken_states", f"exit code {code}, and the state is not valid")
        home = {path.name for path in (self.folder / "home").iterdir()} - CACHES
        if self.git("rev-parse", "main") != self.main or home:
            self.note("touched", f"main is {self.git('rev-parse', 'main')}; in the home directory: {home}")

    def look_at_commits(self, state: states.State) -> None:
        """Nothing that was accepted is lost, nothing is there twice, nothing counts backwards."""
        if state.iterations < self.iterations.get(state.session_id, 0):
            self.note("lost_commits", f"iterations went down to {state.iterations}")
        self.iterations[state.session_id] = state.iterations
        self.accepted |= {name for name in (state.commit, *(entry.commit for entry in state.history)) if name}
        settled = state.current_phase in ("planning", "completed", "blocked")  # no session can have moved it since
        tip = self.git("rev-parse", f"refs/heads/{BRANCH}") if settled else state.commit
        there = self.git("rev-list", tip).split() if tip else []
        if lost := {name for name in self.accepted if tip and not any(one.startswith(name) for one in there)}:
            self.note("lost_commits", f"{lost} were accepted and are not on {BRANCH} ({tip}) any more")
        numbers = self.git("log", "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)", tip).split()
        if len({*numbers}) != len(numbers):
            self.note("lost_commits", f"an iteration was committed twice: {numbers}")

    def untrue(self) -> list[str]:
        """What of "all criteria are met" a fresh clone of the branch contradicts."""
        clone, lies = self.folder / "clone", []
        remove(clone)
        self.git("clone", "-q", "--branch", BRANCH, str(self.root), str(clone), at=self.folder)
        due = {name: text for name, text in self.files.items() if name.startswith("acceptance/")}
        for place in (self.root, clone):
            here = {path for path in (place / "acceptance").rglob("*") if not path.is_dir()}
            if {str(path.relative_to(place)): path.read_text() for path in here} != due:
                lies.append(f"what is protected is not as it was in {place.name}")
        for criterion in self.mission["definition_of_done"]:
            self.git("reset", "-q", "--hard", at=clone)
            self.git("clean", "-qfdx", at=clone)
            for command in filter(None, (self.mission["setup"], criterion["check"])):
                bash = ["bash", "-o", "pipefail", "-c", command]
                if subprocess.run(bash, cwd=clone, env=self.env, capture_output=True).returncode:
                    lies.append(f"{criterion['id']} is not met: {command}")
        return lies


def saved(path: Path) -> states.State | None:
    """The state, if there is a valid one."""
    with suppress(Stop, OSError):
        return states.load(path)
    return None


def processes(folder: Path) -> dict[int, str]:
    """The processes that carry the mark of the folder's repository, or work in the folder."""
    found, mark = {}, f"CCO_RUN={folder / 'repository'}".encode()
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            carries = mark in (entry / "environ").read_bytes().split(b"\0")
            if carries or Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def end_all(folder: Path) -> None:
    """End all processes of a folder."""
    while alive := processes(folder):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, whatever its rights."""
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def options(description: str) -> argparse.ArgumentParser:
    """The command line that soak and crash sweep share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kit", type=Path, default=KIT, help="the kit that is tried")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # the number of a job
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    return parser


def spread(args: argparse.Namespace, prefix: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run this program again for each job, in a process namespace that nothing survives; its folder and results."""
    for number in (signal.SIGTERM, signal.SIGINT):  # also where it was ignored, as in the background
        signal.signal(number, signal.default_int_handler)
    base, jobs = Path(tempfile.mkdtemp(prefix=prefix)).resolve(), list[subprocess.Popen[bytes]]()
    try:
        shutil.copytree(args.kit, base / "kit", ignore=NOT_KIT)  # which may be edited meanwhile
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(base / "kit")], check=True)
        for job in range(args.jobs):
            command = [*CONTAINED, sys.executable, *sys.argv, "--share", str(job), "--base", str(base)]
            jobs.append(subprocess.Popen(command, start_new_session=True))
        if max([job.wait() for job in jobs]):
            sys.exit(f"a job failed; see {base}")
    except KeyboardInterrupt:
        for running in jobs:
            running.kill()
            running.wait()
        remove(base)
        sys.exit(130)
    return base, [json.loads(line) for path in base.glob("results-*") for line in path.read_text().splitlines()]


def report(trial: Any, args: argparse.Namespace, again: str, folder: Path, **more: Any) -> None:
    """Hand the result of a job's trial on, and print what was not as promised."""
    with (args.base / f"results-{args.share}").open("a") as results:
        print(json.dumps({"starts": trial.starts, "found": trial.found, **more}), file=results)
    for kind, what in trial.found:
        print(f"VIOLATION {kind}: {what}\n  again: {again}\n  see: {folder}", flush=True)


def summary(base: Path, results: list[dict[str, Any]], kinds: Sequence[str], figures: dict[str, int]) -> int:
    """Print the figures; the exit code."""
    found = Counter(kind for done in results for kind, _ in done["found"])
    figures = {"trials": len(results), "starts": sum(done["starts"] for done in results), **figures}
    print("\n".join(f"{name}: {value}" for name, value in {**figures, **{kind: found[kind] for kind in kinds}}.items()))
    if not found:
        remove(base)
    return 1 if found or not results else 0


def main() -> int:
    """Play the missions; 1 if anything was not as promised."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="these missions alone")
    args = parser.parse_args()
    if args.share is None:
        base, results = spread(args, "soak-")
        ended = Counter(done["ended"] for done in results)
        figures = {name: ended[name] for name in (*ENDS.values(), "unended")}
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
