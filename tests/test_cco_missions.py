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
from conftest import need

import mission
from extras.messages_api import MessagesAPI

KIT = Path(__file__).resolve().parent.parent
APP = """\
export function app() {
  const tasks = new Map();
  let next = 1;
  return (method, id, body) => {
    if (method === "GET" && id === undefined) return [200, [...tasks.values()]];
    if (method === "POST") {
      if (typeof body?.title !== "string" || !body.title) return [400, { error: "title is required" }];
      const task = { id: next++, title: body.title };
      tasks.set(task.id, task);
      return [201, task];
    }
    if (!tasks.has(id)) return [404, { error: "no such task" }];
    if (method === "GET") return [200, tasks.get(id)];
    if (method === "PUT") return [200, Object.assign(tasks.get(id), { title: body.title })];
    tasks.delete(id);
    return [204];
  };
}
"""
CRUD = """\
import assert from "node:assert";
import test from "node:test";
import { app } from "../src/app.mjs";

test("create, read, update, delete", () => {
  const call = app();
  assert.equal(call("POST", undefined, { title: "a" })[0], 201);
  assert.deepEqual(call("GET", 1), [200, { id: 1, title: "a" }]);
  assert.equal(call("PUT", 1, { title: "b" })[1].title, "b");
  assert.equal(call("GET")[1].length, 1);
  assert.equal(call("DELETE", 1)[0], 204);
  assert.equal(call("GET", 1)[0], 404);
});
"""
VALIDATION = """\
import assert from "node:assert";
import test from "node:test";
import { app } from "../src/app.mjs";

test("a task needs a title", () => assert.equal(app()("POST", undefined, {})[0], 400));
"""
PACKAGE = {
    "name": "task-api",
    "private": True,
    "scripts": {
        "test:crud": "node --test tests/crud.test.mjs",
        "test:validation": "node --test tests/validation.test.mjs",
        "coverage": "node --test --experimental-test-coverage tests/",
    },
}
LOCK = {"name": "task-api", "lockfileVersion": 3, "requires": True, "packages": {"": {"name": "task-api"}}}
OPENAPI = "openapi: 3.1.0\npaths:\n  /tasks: {}\n  /tasks/{id}: {}\n"


def writing(words: str, **files: str) -> list[dict[str, Any]]:
    """The replies of one session: it writes the files and says something."""
    tools = [{"name": "Write", "input": {"file_path": name, "content": text}} for name, text in files.items()]
    return [{"tools": tools}, {"text": words}]


def start(project: Path, home: Path, claude: Path, file: str, replies: list[dict[str, Any]]) -> tuple[int, str]:
    """Run a mission of the kit in the project with the real claude and return the exit code and the output."""
    text = (KIT / "missions" / file).read_text()
    (project / file).write_text(text)
    with MessagesAPI(replies) as api:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CCO_", "OPENROUTER"))}
        environment |= {
            "HOME": str(home),
            "PATH": f"{claude.parent}:{os.environ['PATH']}",
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_API_KEY": "no-key-is-needed",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "NPM_CONFIG_OFFLINE": "true",
        }
        command = [sys.executable, str(KIT / "cco.py"), "start", file]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(path.name for path in (KIT / "missions").glob("*.yaml")))
def test_every_mission_of_the_kit_loads_and_every_criterion_has_a_check(file):
    loaded = mission.load(KIT / "missions" / file)
    assert loaded.criteria and all(criterion.check for criterion in loaded.criteria)


def test_the_task_api_of_the_specification_runs_to_done(project, git, tmp_path, real_claude):
    need(shutil.which("bwrap") and shutil.which("socat"), "bubblewrap and socat are not installed")
    need(shutil.which("npm"), "npm is not installed")
    replies = [
        *writing("I created the API. All endpoints work, all criteria are complete.", **{"src/app.mjs": APP}),
        *writing("CRUD is tested.", **{"package.json": json.dumps(PACKAGE), "tests/crud.test.mjs": CRUD}),
        *writing("Validation is tested.", **{"tests/validation.test.mjs": VALIDATION}),
        *writing("Documented.", **{"docs/openapi.yaml": OPENAPI}),
        *writing("In a container.", Dockerfile="FROM node:22\nCMD node src/app.mjs\n", **{".dockerignore": ".git\n"}),
        *writing("It can be installed.", **{"package-lock.json": json.dumps(LOCK)}),
    ]
    code, said = start(project, tmp_path, real_claude, "api.yaml", replies)
    assert code == 0, said
    status = json.loads((project / ".cco" / "api.json").read_text())
    assert status["completed_tasks"] == ["crud", "validation", "coverage", "documented", "containerized"]
    assert status["iterations"] == 6
    assert git(project, "rev-list", "--count", "main..cco/api") == "6"
    assert said.count("0 of 5 criteria met") == 3  # before, after the first session's words, and without a lock file
    assert "criterion crud passes in the work tree, but not in a clean checkout" in said
    assert (status["confirmed"]["where"], status["confirmed"]["setup"]["code"]) == ("checkout", 0)


def test_hello_runs_to_done(project, git, tmp_path, real_claude):
    need(shutil.which("bwrap") and shutil.which("socat"), "bubblewrap and socat are not installed")
    script = 'echo "Hello, ${1:-world}!"\n'
    replies = [*writing("Both are there.", **{"hello.sh": script, "HELLO.md": "sh hello.sh NAME\n"})]
    code, said = start(project, tmp_path, real_claude, "hello.yaml", replies)
    assert code == 0, said
    assert (
        git(project, "log", "--format=%an: %s", "-1")
        == "Test: greets: hello.sh greets the person whose name it is given, or the world"[:78]
    )  # noqa: E501
