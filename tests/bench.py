"""A mission, a scripted worker and the real command line, for the tests that drive the whole loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked

import state as store

WRITES_A: list[dict[str, Any]] = [{"write": {"a": "1\n"}}, {"say": "wrote a"}]
WRITES_B: list[dict[str, Any]] = [{"write": {"b": "1\n"}}, {"say": "wrote b"}]
WORK: list[dict[str, Any]] = [{"write": {"a": "1\n", "b": "1\n"}}, {"say": "both are there"}]
KILLED = -signal.SIGKILL
TWO_CRITERIA = [
    {"id": "a", "criteria": "a is there", "check": "test -e a"},
    {"id": "b", "criteria": "b is there", "check": "test -e b"},
]


class Bench:
    """A mission for the project, a scripted worker, and the command line."""

    def __init__(self, project: Path, folder: Path):
        self.project, self.folder, self.kit = project, folder, KIT
        self.script = folder / "script.json"
        self.mission = folder / "demo.yaml"
        self.environment = {**os.environ, "CLAUDE_STAND_IN": str(self.script)}
        for name in ("OPENROUTER_API_KEY", "CCO_RUN"):
            self.environment.pop(name, None)

    def write(self, criteria: list[dict[str, Any]], **fields: Any) -> None:
        claude = {"command": str(KIT / "extras" / "claude_stand_in.py"), "sandbox": False}
        settings = fields.pop("settings", {})
        settings["claude_code"] = {**claude, **settings.get("claude_code", {})}
        mission = {"title": "A demo", "repository": str(self.project), "definition_of_done": criteria}
        self.mission.write_text(json.dumps({**mission, "settings": settings, **fields}, indent=1))

    def sessions(self, *sessions: list[dict[str, Any]]) -> None:
        """What the worker does in its sessions from here on."""
        Path(f"{self.script}.used").unlink(missing_ok=True)
        self.script.write_text(json.dumps(sessions))

    def command(self, *args: str) -> list[str]:
        return [sys.executable, str(self.kit / "cco.py"), *args]

    def run(self, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        options = {"env": self.environment, "cwd": self.project, "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run(self.command(*args), **{**options, **kwargs}, check=False)
        assert "Traceback" not in (done.stderr or ""), done.stderr
        return done

    def start(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("start", str(self.mission), *args)

    def begin(self, *args: str) -> subprocess.Popen[bytes]:
        """Start in the background, with the output in a file."""
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                self.command("start", str(self.mission), *args),
                env=self.environment, cwd=self.project, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def calls(self) -> list[dict[str, Any]]:
        """What the worker was called with, one entry a session."""
        path = Path(f"{self.script}.calls.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def resumed(self) -> list[bool]:
        return [any(word.startswith("--resume") for word in call["argv"]) for call in self.calls()]

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.project / ".cco" / "demo.json").read_text()))

    def save(self, document: dict[str, Any]) -> None:
        """Write a state as the kit does."""
        store.write(self.project / ".cco" / "demo.json", json.dumps(document).encode())

    def log(self) -> str:
        return (self.project / ".cco" / "logs" / "combined.log").read_text()

    def alive(self) -> dict[int, str]:
        """Processes that carry the mark of this repository."""
        return marked(str(self.project.resolve()))


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def over(bench: Bench) -> None:
    """The time of the wait comes."""
    state = bench.state()
    bench.save({**state, "wait": {**state["wait"], "until": time.time()}})


@pytest.fixture
def bench(project, tmp_path) -> Bench:
    made = Bench(project, tmp_path)
    made.write(TWO_CRITERIA)
    return made
