"""Missions side by side: a small part of extras/load.py, and that it would see what it looks for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import KIT, marked, until

from extras import load


def lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


@pytest.fixture
def mission(tmp_path, monkeypatch) -> load.Mission:
    """One mission that has ended done."""
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    one = load.Mission(7, tmp_path / "007")
    load.make(one)
    load.run([one], 1, shorten=True)
    assert one.code == 0, (one.folder / "output").read_text()
    return one


def test_eight_missions_at_once_end_done_and_none_disturbs_another():
    argv = [sys.executable, str(KIT / "extras" / "load.py"), "--missions", "8", "--shorten"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    seen = lines(done.stdout)
    due = {"missions": "8", "done": "8", "sessions": "32", "disturbed": "0", "leftovers": "0"}
    assert {name: seen[name] for name in due} == due
    assert 10 < float(seen["peak_rss_mb"]) < 100
    assert 0 < float(seen["slowest"]) <= float(seen["seconds"])


def test_whatever_does_not_belong_to_a_mission_is_found(mission, git):
    def found() -> set[str]:
        mission.found.clear()
        load.look(mission)
        return {line.partition(":")[0] for line in mission.found}

    assert found() == set()
    (mission.folder / "two_workers").touch()
    assert found() == {"two workers"}
    git(mission.root, "branch", "cco/load-8")
    (mission.root / "part-8-1.txt").write_text("of another mission")
    assert found() == {"two workers", "branches", "changes"}
    git(mission.root, "add", "-A")
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    git(mission.root, *identity, "commit", "-q", "-m", "foreign\n\nCCO-Mission: load-8")
    assert found() == {"two workers", "branches", "files", "missions of the commits"}
    calls = mission.folder / "script.json.calls.jsonl"
    calls.write_text(calls.read_text() + json.dumps({"cwd": "/elsewhere", "CCO_RUN": "/elsewhere"}) + "\n")
    assert {"sessions that the worker knows of", "places where the worker ran"} < found()
    (mission.root / ".cco" / "load-7.json").write_text(json.dumps({**mission.state(), "mission_id": "load-8"}))
    assert "mission of the state" in found()


def test_a_process_or_a_temporary_file_that_is_left_is_found(tmp_path):
    mission, temporary = load.Mission(1, tmp_path / "001"), tmp_path / "tmp"
    temporary.mkdir()
    assert load.leftovers([mission], temporary) == []
    (temporary / "clone").mkdir()
    marker = str(mission.root.resolve())
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, "CCO_RUN": marker}) as process:
        until(lambda: "sleep" in marked(marker).get(process.pid, ""), "the process")
        assert load.leftovers([mission], temporary) == ["sleep 1000", str(temporary / "clone")]
        process.kill()


def test_a_mission_that_does_not_end_in_time_is_ended_counted_and_kept(tmp_path, monkeypatch, capsys):
    for name in ("HOME", "TMPDIR", "XDG_STATE_HOME"):  # it sets them for itself
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(load, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "argv", ["load.py", "--missions", "2"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert load.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    printed = capsys.readouterr()
    assert lines(printed.out)["done"] == "0"
    kept = Path(printed.err.splitlines()[-1].removeprefix("kept: "))
    assert (kept / "001" / "mission.yaml").exists()
    assert not any(marked(str(kept / name / "repository")) for name in ("000", "001"))
