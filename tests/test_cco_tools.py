"""The long tests in a small size: what they try holds, and each of them can fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KIT, SOURCE, need, until

TOOLS = SOURCE / "tests" / "tools"
pytestmark = pytest.mark.slow


@pytest.fixture
def tool(tmp_path):
    """Run a tool with its folders in ours: exit code, figures, and all that it printed."""
    for program in ("strace", "bwrap"):
        need(shutil.which(program), f"{program} is not installed (sudo apt install strace bubblewrap)")

    def run(name: str, *args: str) -> tuple[int, dict[str, str], str]:
        env = {**os.environ, "TMPDIR": str(tmp_path)}
        command = [sys.executable, str(TOOLS / f"{name}.py"), *args]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        figures = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
        return done.returncode, figures, done.stdout

    return run


LEAST = {
    "soak --count 8": {"trials": 8, "kills": 1},
    "crash_sweep --every 53": {"survived": 8},
    "load --missions 6 --shorten": {"done": 6, "sessions": 24},
    "thirty": {"iterations": 30},
}


@pytest.mark.parametrize("words", LEAST)
def test_what_they_try_holds(tool, words):
    code, figures, printed = tool(*words.split())
    assert code == 0 and "VIOLATION" not in printed
    assert {name: figures[name] for name, least in LEAST[words].items() if int(figures[name]) < least} == {}


SABOTAGE = {
    "open criteria that do not count": (
        "soak --only 1", "false_done", "state.py", r"return \[.* if criterion.verdict != .met.\]", "return []"
    ),
    "commits over commits": (
        "soak --only 1 2 4 8", "lost_commits", "repo.py", '"commit", "--quiet"', '"commit", "--amend", "--quiet"'
    ),
    "a state written in place": (
        "crash_sweep --only 2:write:*:before", "states", "state.py", r"os\.replace\(name, path\)",
        "path.write_bytes(b'{'); path.write_bytes(content); os.unlink(name)",
    ),
    "leftovers that stay": (
        "crash_sweep --only 2:worker:begun:orphaned", "two_workers", "cco.py", r"proc\.end_leftovers\(.*\)", "0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("words, kind, file, before, after", SABOTAGE.values(), ids=SABOTAGE)
def test_a_sabotaged_kit_is_found_out(tool, tmp_path, words, kind, file, before, after):
    kit = tmp_path / "sabotaged"
    shutil.copytree(KIT, kit)
    text, count = re.subn(before, lambda _: after, (kit / file).read_text())
    assert count == 1, f"{file} has changed: sabotage it in another way"
    (kit / file).write_text(text)
    name, *args = words.split()
    code, figures, printed = tool(name, "--kit", str(kit), *args)
    assert code == 1 and int(figures[kind]) > 0
    assert f"VIOLATION {kind}: " in printed and f"again: python tests/tools/{name}.py" in printed
    assert Path(printed.partition("see: ")[2].splitlines()[0]).exists()


@pytest.mark.parametrize("name", ["soak", "crash_sweep"])
def test_ctrl_c_leaves_nothing(tmp_path, name):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    running = subprocess.Popen([sys.executable, str(TOOLS / f"{name}.py")], env=environment, stdout=subprocess.DEVNULL)
    until(lambda: [*tmp_path.rglob("demo.json")], "a mission")
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert not [*tmp_path.iterdir()]
