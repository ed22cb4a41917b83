"""The missions that come with the kit really run: with the real claude, only its model's answers are scripted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, need

from extras.messages_api import MessagesAPI

SCRIPTS = {"test:crud": "node --check src/app.mjs", "coverage": "echo 'all files | 85.1 |'"}
CRUD = json.dumps({"scripts": SCRIPTS})
VALIDATION = json.dumps({"scripts": {**SCRIPTS, "test:validation": "node --check src/app.mjs"}})
LOCK = json.dumps({"name": "api", "lockfileVersion": 3, "requires": True, "packages": {"": {"name": "api"}}})


def writing(words: str, **files: str) -> list[dict[str, Any]]:
    """The replies of one session: it writes the files and says something."""
    tools = [{"name": "Write", "input": {"file_path": name, "content": text}} for name, text in files.items()]
    return [{"tools": tools}, {"text": words}]


def start(project: Path, home: Path, claude: Path, file: str, replies: list[dict[str, Any]]) -> str:
    """Run a mission of the kit in the project with the real claude until it is done, and return the output."""
    need(shutil.which("bwrap") and shutil.which("socat"), "bubblewrap and socat are not installed")
    shutil.copy(KIT / "missions" / file, project)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CCO_", "OPENROUTER"))}
    environment |= {"HOME": str(home), "PATH": f"{claude.parent}:{os.environ['PATH']}", "NPM_CONFIG_OFFLINE": "true"}
    environment |= {"ANTHROPIC_API_KEY": "no-key-is-needed", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    with MessagesAPI(replies) as api:
        environment["ANTHROPIC_BASE_URL"] = api.url
        argv = [sys.executable, str(KIT / "cco.py"), "start", file]
        done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_task_api_of_the_specification_runs_to_done(project, git, tmp_path, real_claude):
    need(shutil.which("npm"), "npm is not installed")
    claims = "It is done.\nMet: crud, validation, coverage, documented, containerized"
    replies = [
        *writing(claims, **{"src/app.mjs": "export const app = 1;\n"}),
        *writing("CRUD and coverage are tested.", **{"package.json": CRUD}),
        *writing("Validation is tested.", **{"package.json": VALIDATION}),
        *writing("Documented.", **{"docs/openapi.yaml": "openapi: 3.1.0\npaths:\n  /tasks/{id}: {}\n"}),
        *writing("In a container.", Dockerfile="FROM node:22\nCMD node src/app.mjs\n", **{".dockerignore": ".git\n"}),
        *writing("It can be installed.", **{"package-lock.json": LOCK}),
    ]
    output = start(project, tmp_path, real_claude, "api.yaml", replies)
    status = json.loads((project / ".cco" / "api.json").read_text())
    assert (status["totals"]["claims_false"], status["iterations"]) == (5, 6)
    assert status["completed_tasks"] == ["crud", "validation", "coverage", "documented", "containerized"]
    assert git(project, "rev-list", "--count", "main..cco/api") == "6"
    assert "criterion crud passes in the work tree, but not in a clean checkout" in output
    assert (status["confirmed"]["where"], status["confirmed"]["setup"]["code"]) == ("checkout", 0)


def test_hello_runs_to_done(project, git, tmp_path, real_claude):
    files = {"hello.sh": 'echo "Hello, ${1:-world}!"\n', "HELLO.md": "sh hello.sh NAME\n"}
    start(project, tmp_path, real_claude, "hello.yaml", writing("Both are there.", **files))
    assert git(project, "log", "--format=%s", "-1").startswith("greets: hello.sh greets the person")
