"""`make bench` prints its whole table, and an iteration takes no more than it has to. Nothing here asserts a time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import KIT, marked, need

pytestmark = pytest.mark.slow

MOST = {"processes": 12, "fsyncs": 12, "kB": 100, "files": 50}  # of one iteration; and in .cco


def bench(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    for name in ("strace", "bwrap"):
        need(shutil.which(name), f"{name} is not installed")
    env = {**os.environ, "HOME": str(home), "CCO_RUN": str(home)}
    argv = [sys.executable, str(KIT / "extras" / "bench.py"), "--rounds", "1", *args]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_the_table_is_whole_and_an_iteration_takes_few_processes_and_saves(tmp_path):
    cases = {"1": 1, "2+sandbox+idle": 2, "1+protect@300": 1}
    done = bench(tmp_path, "--cases", ",".join(cases))
    head, rule, *rows = done.stdout.splitlines()
    columns = [(match.start(), match.end()) for match in re.finditer("-+", rule)]
    names = [head[slice(*column)].strip() for column in columns]
    for row, (name, criteria) in zip(rows, cases.items(), strict=False):
        cells = dict(zip(names, [row[slice(*column)].strip() for column in columns], strict=True))
        counts = {key: float(cells[key].split()[0]) for key in ("shells", *MOST)}  # with an ! it is no number
        assert (cells["case"], counts.pop("shells")) == (name, criteria)  # what is met already runs once
        assert {key: number for key, number in counts.items() if number > MOST[key]} == {}, name
    figures = dict(re.split(" {2,}", line) for line in rows[len(cases) :] if line)
    assert {"python -c pass, ms", "status, ms"} <= figures.keys(), done.stdout + done.stderr
    assert figures["peak memory, MB"].endswith(" (40)") and "!" not in figures["peak memory, MB"]
    assert (done.returncode, [*tmp_path.iterdir()], marked(str(tmp_path))) == (0, [], {})
