"""The soak: a few of its random missions, missions made by hand for what it has found, and that it can fail."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, until

from extras import soak

RNG = random.Random(1)
TESTED, LEVEL = soak.part("acceptance", 1, RNG), soak.part("content", 2, RNG)
EIGHT = ("5", "9", "11", "26", "27", "62", "68", "86")  # of seed 1
HONEST: list[soak.Step] = [{"write": {**TESTED.good, **LEVEL.good}}]
KILLED: list[soak.Step] = [{"bash": "touch @S@/kill; sleep 5"}]


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(KIT / "extras" / "soak.py"), *args]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def made(*sessions: list[soak.Step], parts: Any = (TESTED, LEVEL), jobs: int = 1, **given: Any) -> soak.Scenario:
    """A mission by hand; everything about it that is random stays out."""
    for n, part in enumerate(parts, 1):
        part.fields.update(id=f"c{n}", criteria=f"criterion {n}")
    claude = {"command": "@S@/bin/claude", "sandbox": False, "timeout": 20}
    checks = {"writable": ["@S@/luck"], "jobs": jobs}
    files = {"README.md": "# a project\n", ".gitignore": "build/\n*.tmp\n", "parts/0.txt": "part-0\n"}
    usual: dict[str, Any] = {
        "mission": {
            "title": "By hand",
            "setup": soak.SETUP,
            "protect": ["acceptance/**"],
            "limits": {"iterations": 4},
            "settings": {"claude_code": claude, "checks": checks, "manager": {"provider": "rules"}},
            "definition_of_done": [part.fields for part in parts],
        },
        "files": {**files, "acceptance/base.sh": "exit 1\n", "acceptance/1.sh": TESTED.test},
        "good": {name: text for part in parts for name, text in part.good.items()},
        "truths": [part.truth or part.fields["check"] for part in parts],
        "sessions": [*sessions],
        "manager": [],
        "kills": [("", 0)] * soak.STARTS,
        "doubles": [False] * soak.STARTS,
        "kit_inside": False,
        "mission_inside": False,
        "tracked": False,
    }
    return soak.Scenario(**{**usual, **given})


@pytest.fixture
def played(tmp_path):
    """Play a mission and return how it ended and the kinds of what was not as promised."""
    trials = []

    def play(chosen: soak.Scenario, kit: Path = KIT) -> tuple[str, set[str]]:
        trials.append(trial := soak.Trial(chosen, tmp_path / f"trial-{len(trials)}", kit, verbose=False))
        trial.build("", kit)
        ended = trial.run()
        print(trial.said(), trial.found)
        return ended, {kind for kind, _ in trial.found}

    yield play
    for trial in trials:
        trial.clean()


@pytest.fixture
def sabotaged(tmp_path):
    """A copy of the kit in which one text of one file is another."""

    def sabotage(file: str, before: str, after: str) -> Path:
        kit = tmp_path / "sabotaged"
        shutil.copytree(KIT, kit, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "missions"))
        text = (kit / file).read_text()
        assert text.count(before) == 1, f"{file} has changed: sabotage it in another way"
        (kit / file).write_text(text.replace(before, after))
        return kit

    return sabotage


# --------------------------------------------------------------------------------------------------------
# The kit holds
# --------------------------------------------------------------------------------------------------------


def test_eight_random_missions_end_as_promised():  # chosen to be short, and to have each kind of criterion and kill
    done = run("--seed", "1", "--only", *EIGHT, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missions: 8\n" in done.stdout
    assert all(f"{kind}: 0\n" in done.stdout for kind in soak.COUNTS)


@pytest.mark.parametrize("name", ("completed", "blocked", "mission", "history"))
def test_what_a_worker_writes_into_the_state_proves_nothing_even_when_a_person_accepts_it(played, name):
    lie = [{"write": LEVEL.bad}, {"bash": soak.TAMPER[f"state {name}"]}, *KILLED]
    assert played(made([{"say": "nothing"}], lie, HONEST)) == ("done", set())


def test_what_git_replaces_here_alone_does_not_count(played):
    ended, found = played(made([{"write": {**TESTED.bad, **LEVEL.bad}}], [{"bash": soak.GIT["replaced"]}]))
    assert (ended, found) == ("limit", set())


@pytest.mark.parametrize("name", ("settings broken", "mission broken", "dotenv"))
def test_a_worker_of_a_killed_kit_is_ended_also_where_it_has_broken_what_the_next_start_reads(played, name):
    assert played(made([{"bash": soak.TAMPER[name]}, *KILLED, {"hang": True}], HONEST)) == ("done", set())


def test_nothing_temporary_is_left_of_a_check_that_was_killed_with_the_kit(played):
    slow = soak.Part(
        {"check": "touch @S@/kill; sleep 0.5; test -s out/1.txt"}, {"out/1.txt": "x"}, {}, "test -s out/1.txt"
    )
    assert played(made([{"write": slow.good}], parts=(slow, LEVEL)))[1] == set()


@pytest.mark.parametrize("name", [name for name in soak.TAMPER if name.startswith("protected")])
def test_what_is_protected_is_put_back_also_when_the_kit_is_killed_first(played, name):
    cheat: list[soak.Step] = [{"write": LEVEL.good}, {"bash": soak.TAMPER[name]}, *KILLED]
    assert played(made(cheat, [{"say": "All is met."}], HONEST)) == ("done", set())


def test_a_kit_that_is_killed_as_a_session_begins_compares_all_the_same(played):
    cheat: list[soak.Step] = [{"bash": soak.TAMPER["protected written"]}, {"write": LEVEL.good}]
    kills = [("phase", "execution")] * 3 + [("", 0)] * soak.STARTS
    assert played(made(cheat, cheat, cheat, HONEST, HONEST, kills=kills)) == ("done", set())


# --------------------------------------------------------------------------------------------------------
# The soak can fail
# --------------------------------------------------------------------------------------------------------

CHEAT: list[soak.Step] = [{"write": LEVEL.good}, {"bash": soak.TAMPER["protected written"]}]
PART = soak.part("setup", 2, RNG)
SABOTAGE = {
    "a verdict that does not count": (
        ("dod.py", 'return all(verdict.verdict == "met" for verdict in verdicts)', "return True"),
        made([{"say": "All is met."}]),
        "false_done",
    ),
    "no confirmation": (
        ("proof.py", "        verdicts |= _confirmed(job, verdicts)\n", ""),
        made([{"write": {**TESTED.good, **PART.bad}}], parts=(TESTED, PART)),
        "false_done",
    ),
    "no seal": (
        ("referee.py", "    changes = job.seal.changes()\n", "    changes = []\n"),
        made(CHEAT),
        "false_done",
    ),
    "no lock": (
        ("state.py", "        end = time.monotonic() + PATIENCE\n", "        return True\n"),
        made(*[[{"write": LEVEL.good}, {"bash": "sleep 3"}]] * 4, doubles=[True] * soak.STARTS),
        "two_workers",
    ),
    "no sweep": (
        ("proc.py", "        while orphans := self._ours():", "        while orphans := set():"),
        made([*HONEST, {"spawn": "sleep 60"}]),
        "leftovers",
    ),
    "commits over commits": (
        ("repo.py", '"commit", "--quiet", "--cleanup', '"commit", "--amend", "--quiet", "--cleanup'),
        made([{"write": LEVEL.good}], [{"write": TESTED.good}]),
        "lost_commits",
    ),
    "an unexpected error": (
        ("loop.py", "    return conclude(job)", "    return conclude(None)"),
        made(HONEST),
        "tracebacks",
    ),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_sabotaged_kit_is_found_out(played, sabotaged, name):
    where, chosen, kind = SABOTAGE[name]
    assert kind in played(chosen, sabotaged(*where))[1]


def test_a_violation_is_told_with_the_command_that_repeats_it_and_its_folder_stays(sabotaged, tmp_path):
    kit = sabotaged(*SABOTAGE["a verdict that does not count"][0])
    done = run("--only", "3", "--kit", str(kit), "--jobs", "1", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "VIOLATION false_done" in done.stdout and "false_done: 1\n" in done.stdout
    assert "again: python extras/soak.py --seed 1 --only 3 --verbose" in done.stdout
    assert (Path(done.stdout.partition("see: ")[2].splitlines()[0]) / "repository" / ".cco").is_dir()


def test_a_mission_of_one_number_is_always_the_same():
    assert soak.scenario(1, 7) == soak.scenario(1, 7) != soak.scenario(1, 8)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_ctrl_c_leaves_nothing(tmp_path, number):
    command = [sys.executable, str(KIT / "extras" / "soak.py"), "--count", "4"]
    running = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    until(lambda: [*tmp_path.glob("soak-*/mission-*/start-*")], "a start")
    running.send_signal(number)
    assert running.wait(30) == 130
    assert not [*tmp_path.glob("soak-*")] and not soak._processes(tmp_path)
