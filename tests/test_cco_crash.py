"""The crash sweep: a fixed part of its points, and that it can fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KIT, need, until

from extras import crash_sweep

SWEEP = [sys.executable, str(KIT / "extras" / "crash_sweep.py")]
FIXED = "71"  # every so many points


@pytest.fixture(autouse=True)
def tools() -> None:
    """What the sweep stands on: strace that may trace, and a process namespace."""
    for program in ("strace", "bwrap"):
        need(shutil.which(program), f"{program} is not installed (sudo apt install strace bubblewrap)")
    probe = [*crash_sweep.CONTAINED, "strace", "-o", os.devnull, "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"tracing in a process namespace is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def run(tmp_path):
    """Run the sweep, with its folder in ours."""

    def sweep(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run([*SWEEP, *args], env=env, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        return done

    return sweep


@pytest.fixture
def sabotaged(tmp_path):
    """A copy of the kit in which some texts of its files are others."""

    def sabotage(*changes: tuple[str, str, str]) -> Path:
        kit = tmp_path / "sabotaged"
        shutil.copytree(KIT, kit, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "missions"))
        for file, before, after in changes:
            text = (kit / file).read_text()
            assert text.count(before) == 1, f"{file} has changed: sabotage it in another way"
            (kit / file).write_text(text.replace(before, after))
        return kit

    return sabotage


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The lines at the end."""
    lines = (line.split(": ") for line in done.stdout.splitlines() if line.partition(": ")[2].isdigit())
    return {name: int(value) for name, value in lines}


# --------------------------------------------------------------------------------------------------------
# The kit holds
# --------------------------------------------------------------------------------------------------------


def test_a_fixed_part_of_all_points_is_survived(run):
    done = run("--every", FIXED, "--jobs", "2")
    found = figures(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["points"] >= 16
    assert found["points"] == found["injected"] == found["survived"] <= found["starts"]
    assert not any(found[kind] for kind in crash_sweep.KINDS)


# --------------------------------------------------------------------------------------------------------
# The sweep can fail
# --------------------------------------------------------------------------------------------------------

SABOTAGE = {
    "the state is written in place": (
        [("state.py", "        os.replace(name, path)\n", "        path.write_text(open(name).read())\n")],
        "2:write:4:before",
        "states",
    ),
    "a killed session is another iteration": (
        [
            (
                "job.py",
                "        self._distrust()\n",
                '        if self.memory.get("plan"): self.memory["iterations"] += 1\n',
            )
        ],
        "2:worker:worked:killed",
        "counts",
    ),
    "a commit that is made is made again": (
        [
            ("job.py", " if self.recovering else None\n", " if False else None\n"),
            ("repo.py", '            self._git("update-ref", "HEAD", base)\n', ""),
            ("repo.py", "        if not changed:\n", "        if False:\n"),
            ("repo.py", '"commit", "--quiet"', '"commit", "--allow-empty", "--quiet"'),
        ],
        "2:rename:8:before",
        "commits",
    ),
    "what a session cost before is counted again": (
        [("stream.py", "if goes_on[name] else 0 for name in totals", "if not goes_on[name] else 0 for name in totals")],
        "2:worker:begun:orphaned",
        "cost",
    ),
    "nothing that was left is ended": (
        [("processes.py", "return _tree(started, parents) -", "return set() -")],
        "2:worker:begun:orphaned",
        "two_workers",
    ),
    "what a killed save left stays": (
        [("state.py", "        stale.unlink(missing_ok=True)\n", "        pass\n")],
        "2:rename:2:before",
        "leftovers",
    ),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_sabotaged_kit_is_found_out(run, sabotaged, name):
    changes, point, kind = SABOTAGE[name]
    done = run("--only", point, "--jobs", "1", "--kit", str(sabotaged(*changes)))
    assert done.returncode == 1
    assert figures(done)[kind] > 0
    assert figures(done)["injected"] == figures(done)["points"] == 1


def test_a_violation_is_told_with_the_command_that_repeats_it_and_its_folder_stays(run, sabotaged):
    changes, point, kind = SABOTAGE["the state is written in place"]
    done = run("--only", point, "--jobs", "1", "--kit", str(sabotaged(*changes)))
    assert f"VIOLATION {kind}: after the kill" in done.stdout
    assert f"again: python extras/crash_sweep.py --only {point} --verbose" in done.stdout
    assert (Path(done.stdout.partition("see: ")[2].splitlines()[0]) / "now/repository/.cco/demo.json").exists()


def test_a_kit_that_does_not_end_well_even_without_a_kill_is_told(run, sabotaged):
    kit = sabotaged(("exits.py", "= 0, 1, 2, 3, 4, 5, 75", "= 0, 1, 2, 3, 4, 5, 76"))
    done = run("--only", "1:*", "--kit", str(kit))
    assert done.returncode == 1 and "although nothing was killed" in done.stderr


def test_a_point_that_is_not_there_is_no_success(run):
    done = run("--only", "1:rename:999:before", "--jobs", "1")
    assert done.returncode == 1 and "no point was tried" in done.stderr


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_ctrl_c_leaves_nothing(tmp_path, number):
    running = subprocess.Popen(SWEEP, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    until(lambda: [*tmp_path.glob("crash-sweep-*/job-*/start-*"), *tmp_path.glob("crash-sweep-*/job-*/pid")], "a start")
    running.send_signal(number)
    assert running.wait(30) == 130
    assert not [*tmp_path.glob("crash-sweep-*")]
    until(lambda: not _working_in(tmp_path), "all that worked there is gone")


def _working_in(folder: Path) -> list[str]:
    """The processes that name the folder in their command line."""
    found = []
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        found += [words] if str(folder) in words else []
    return found
