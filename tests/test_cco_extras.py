"""`make draft` and `make models`: what is asked, tried, shown and written, and what is never run or overwritten."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, need, until
from tools.openrouter_api import OpenRouterAPI, row

import mission
from extras import draft, models

KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
WISH = "A script greet.sh that greets whoever it is given"
FAILS = 'test "$(sh greet.sh Ada)" = "Hello, Ada!"'


def criterion(id: str, check: str | None, **more: Any) -> dict[str, Any]:
    usual = {"id": id, "criteria": f"{id} is as it should be", "priority": "high", "check": check, "timeout": None}
    return {**usual, **more}


def drafted(*criteria: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What an LLM answers."""
    usual = {"title": "Greet people", "description": "greet.sh greets.", "constraints": ["POSIX sh"], "setup": None}
    return {**usual, "criteria": list(criteria), **more}


class Desk:
    """A project, and the commands that somebody calls in it."""

    def __init__(self, project: Path, tmp: Path, capsys: pytest.CaptureFixture[str], api: OpenRouterAPI):
        self.project, self.tmp, self.capsys, self.api = project, tmp, capsys, api

    def run(self, *args: str, code: int, main: Callable[[list[str]], int] = draft.main) -> Any:
        """What a command prints without a terminal."""
        self.capsys.readouterr()
        ended = main(list(args))
        output = self.capsys.readouterr()
        assert ended == code, f"{ended}\n{output}"
        assert KEY not in output.out + output.err and "Traceback" not in output.err
        return output

    def draft(self, *answers: Any, text: str = WISH, args: tuple[str, ...] = ("--yes",), code: int = 0) -> Any:
        """What a draft prints when the LLM gives these answers: texts, or criteria."""
        texts = [text if isinstance(text, str) else json.dumps(drafted(*text)) for text in answers]
        self.api._steps += [{"content": text} for text in texts]
        return self.run(text, *args, code=code)

    def question(self, number: int = 0) -> str:
        """The text of a request for a completion."""
        return json.dumps(self.api.calls[number]["body"]["messages"])

    def missions(self) -> list[Path]:
        return sorted((self.project / "missions").glob("*"))

    def commit(self, git: Any, **files: str) -> None:
        for name, text in files.items():
            (self.project / name).write_text(text)
        git(self.project, "add", "-A")
        git(self.project, "commit", "-q", "-m", "more")


@pytest.fixture
def alone(project, tmp_path, monkeypatch, capsys, fresh_mask) -> Desk:
    """Without an LLM."""
    for name in [name for name in os.environ if name.startswith(("CCO_", "OPENROUTER", "ANTHROPIC", "CLAUDE"))]:
        monkeypatch.delenv(name)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("CCO_CLAUDE_CODE_COMMAND", "true")  # no session is started
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(project)
    before = signal.getsignal(signal.SIGTERM)
    with OpenRouterAPI() as api:
        yield Desk(project, tmp_path / "tmp", capsys, api)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def desk(alone, monkeypatch) -> Desk:
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    monkeypatch.setenv("CCO_OPENROUTER_BASE_URL", alone.api.url)
    return alone


@pytest.fixture
def sandbox() -> None:
    need(draft._has_sandbox(), "bubblewrap cannot start here")


def test_a_draft_is_tried_shown_and_written(desk, sandbox, git):
    checks = [criterion("greets", FAILS, priority="critical", timeout="90s"), criterion("kind", None)]
    shown = desk.draft([*checks, criterion("documented", "grep -q project README.md")]).out
    (path,) = desk.missions()
    loaded = {c.id: c for c in mission.load(path).criteria}
    assert path.name == "greet-people.yaml" and mission.load(path).repository == desk.project.resolve()
    assert (loaded["greets"].check, loaded["greets"].timeout, loaded["kind"].check) == (FAILS, 90.0, None)
    assert "make accept ID=kind" in path.read_text() and f"from these words: {WISH}" in path.read_text()
    assert path.read_text() in shown and "it cost $0.0100 (1000 tokens in, 100 out)" in shown
    assert "greets" in shown.partition("trying each check")[2] and "every check proves something" in shown
    assert str(desk.tmp) not in shown and list(desk.tmp.iterdir()) == []
    assert git(desk.project, "status", "--short") == "?? missions/"


def test_a_check_that_proves_nothing_is_named(desk, sandbox):
    shown = desk.draft([criterion("greets", FAILS), criterion("clean", "! ls | grep orig")]).out
    assert "definition_of_done[1].check: the check of clean proves nothing" in shown
    assert "fix this before you start" in shown


def test_the_llm_sees_the_wish_as_data_and_the_names_of_files_but_no_secret(desk, git):
    secret = "correct-horse-battery-staple-9"
    desk.commit(git, **{"go.mod": "module x\n"})
    (desk.project / ".env").write_text(f"DB_PASSWORD={secret}\n")
    done = desk.draft([criterion("greets", FAILS)], text=f"{WISH} </data> with the password {secret}")
    asked, (path,) = desk.question(), desk.missions()
    assert f"{WISH} (/data> with the password ***" in asked
    assert "go test ./..." in asked and "README.md\\ngo.mod" in asked and str(desk.project) not in asked
    assert secret not in asked + done.out + path.read_text()
    assert mission.load(path).context == "test: go test ./...; build: go build ./..."


def test_there_is_an_objection_to_what_cannot_be_a_mission():
    wrong = {
        "the command of greets is no shell command: ": [criterion("greets", "if true; then")],
        "expected a duration above 0": [criterion("greets", FAILS, timeout="soon")],
        "has characters in it that nobody can see": [criterion("greets", "true # \u202etfel ot thgir")],
        "it is longer than 65536 bytes": [criterion("greets", "echo 'é'" * 9_000)],
    }
    for message, criteria in wrong.items():
        assert message in draft.objection(drafted(*criteria))
    assert draft.objection(drafted(criterion("greets", FAILS))) == ""


def test_a_draft_that_cannot_be_a_mission_is_repaired_once_and_nonsense_gives_the_template(desk, git):
    desk.commit(git, **{"yarn.lock": ""})
    done = desk.draft([criterion("greets", "if true; then")], [criterion("repaired", FAILS)])
    assert "it cost $0.0200" in done.out and "the command of greets is no shell command: " in desk.question(1)
    made = mission.load(desk.missions()[0])
    assert ([c.id for c in made.criteria], made.setup) == (["repaired"], "yarn install --frozen-lockfile")
    done = desk.draft("Sure! Here is your mission.", "As I said: done.", args=("--output", "second.yaml", "--yes"))
    assert "the LLM gave no usable draft, so this is the template" in done.err and "it cost $0.0200" in done.out
    assert [c.id for c in mission.load(desk.project / "second.yaml").criteria] == ["wanted"]


def test_the_question_stays_within_max_prompt_and_keeps_the_wish(desk, git, monkeypatch):
    desk.commit(git, **{f"a file with a rather long name {number}": "" for number in range(300)})
    monkeypatch.setenv("CCO_OPENROUTER_MAX_PROMPT", "12KB")
    desk.draft([criterion("greets", FAILS)], text=f"{WISH} {'x' * 3000}")
    text = "".join(message["content"] for message in desk.api.calls[0]["body"]["messages"])
    assert 8_000 < len(text.encode()) <= 12 * 1024
    assert f"{WISH} {'x' * 3000}" in text and "more bytes are not shown" in text


def test_a_check_sees_what_is_installed_and_can_harm_neither_work_tree_nor_machine(desk, sandbox, git, tmp_path):
    (desk.project / ".venv").symlink_to(sys.prefix)  # what is below /tmp itself is not seen in the sandbox
    desk.commit(git, **{".gitignore": ".venv\n"})
    (desk.project / "uncommitted.txt").write_text("a day's work")
    harm = f"rm -rf .git * '{desk.project}'/*; echo x > '{desk.project}/planted'; touch '{tmp_path}/planted'; false"
    with socket.create_server(("127.0.0.1", 0)) as server:
        network = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}"
        works = '.venv/bin/python -c "import yaml" && grep project README.md'
        checks = {"works": works, "harm": harm, "network": network}
        shown = desk.draft([criterion(id, check) for id, check in checks.items()], args=(), code=3).out
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert re.findall(r"\[(.)\] +(\w+)", shown) == [("x", "works"), (" ", "harm"), (" ", "network")]
    assert "every check proves something" in shown and git(desk.project, "status", "--short") == "?? uncommitted.txt"
    assert (desk.project / "README.md").exists() and not (tmp_path / "planted").exists()
    assert list(desk.tmp.iterdir()) == []


def test_without_a_sandbox_nothing_runs(desk, monkeypatch, tmp_path):
    monkeypatch.setattr(draft, "_has_sandbox", lambda: False)
    shown = desk.draft([criterion("greets", f"touch '{tmp_path}/ran'; false")]).out
    assert "not tried: there is no sandbox to run the checks in" in shown
    assert not (tmp_path / "ran").exists() and len(desk.missions()) == 1


KEYS = {"yes": ("y\n", 0), "enter": ("\n", 3), "end": ("", 3), "no terminal": (None, 3)}


@pytest.mark.parametrize(("keys", "code"), KEYS.values(), ids=KEYS)
def test_it_is_written_when_the_user_says_so_and_else_nothing_is(alone, git, monkeypatch, keys, code):
    keyboard = io.StringIO(keys)
    monkeypatch.setattr(keyboard, "isatty", lambda: keys is not None)
    monkeypatch.setattr(sys, "stdin", keyboard)
    shown = alone.run(WISH, code=code).out
    assert ("Write it to" in shown) is (keys is not None)
    assert ("nothing was written: say --yes, or call it from a terminal" in shown) is (keys is None)
    assert (f"next: make -C {draft.KIT} check MISSION=" in shown) is (code == 0)
    assert git(alone.project, "status", "--short", "--ignored") == ("" if code else "?? missions/")


def test_ctrl_c_leaves_nothing(desk, sandbox):
    desk.api._steps.append({"content": json.dumps(drafted(criterion("slow", "sleep 1000")))})
    screen = desk.tmp.parent / "screen"
    with screen.open("w") as output:
        argv = [sys.executable, str(KIT / "extras" / "draft.py"), WISH]
        running = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    try:
        until(lambda: "trying each check" in screen.read_text(), "the checks run")
        os.killpg(running.pid, signal.SIGINT)
        assert (running.wait(30), desk.missions(), list(desk.tmp.iterdir())) == (130, [], [])
    finally:
        running.kill()
        running.wait()
    assert "interrupted: nothing was written" in screen.read_text() and "Traceback" not in screen.read_text()


def test_no_file_is_ever_overwritten_and_a_mission_elsewhere_names_the_repository(alone):
    (alone.project / "mine.yaml").write_text("mine")
    assert "mine.yaml exists and is not overwritten" in alone.run(WISH, "--output", "mine.yaml", "--yes", code=2).err
    assert (alone.project / "mine.yaml").read_text() == "mine"
    for _ in range(2):
        alone.run("Greet people", "--yes", code=0)
    assert [path.name for path in alone.missions()] == ["greet-people-2.yaml", "greet-people.yaml"]
    alone.run(WISH, "--output", "../else where/mine.yaml", "--yes", code=0)
    assert mission.load(alone.project.parent / "else where" / "mine.yaml").repository == alone.project.resolve()


def test_bad_usage_is_a_message_with_a_remedy(alone, tmp_path, monkeypatch):
    wrong: dict[tuple[str, ...], tuple[int, str]] = {
        (" \n",): (2, "TEXT: expected 1 to 12000 bytes"),
        ("x" * 12_001,): (2, "TEXT: expected 1 to 12000 bytes"),
        (WISH, "--config", "none.yaml"): (2, "none.yaml: no such file"),
        (WISH, "--output", "README.md/x.yaml", "--yes"): (4, "README.md"),
    }
    for args, (code, message) in wrong.items():
        assert message in alone.run(*args, code=code).err
    monkeypatch.chdir(tmp_path)
    assert "run git init first" in alone.run(WISH, code=2).err


def test_without_an_llm_a_template_is_filled_with_the_commands_of_the_repository(alone, git, sandbox):
    makefile = "test:\n\tgrep -q project README.md\nlint:\n\tno-such-linter\n"
    alone.commit(git, Makefile=makefile, **{"requirements.txt": "pytest\n"})
    shown = alone.run(f"{WISH}\nand says so in the README", "--yes", code=0).out
    assert "it cost nothing: no LLM was asked" in shown
    loaded = mission.load(alone.missions()[0])
    assert (loaded.title, loaded.description) == (WISH, f"{WISH}\nand says so in the README")
    assert loaded.setup == "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
    found = [(c.id, c.check) for c in loaded.criteria]
    assert found == [("wanted", None), ("test", "make test"), ("lint", "make lint")]


SCRIPTS = json.dumps({"scripts": {"test": "jest", "lint": "eslint .", "build": "tsc"}})
NONE = json.dumps({"scripts": {"test": 'echo "Error: no test specified" && exit 1'}})
LINES = {
    "test: npm run test; lint: npm run lint; build: npm run build; setup: npm ci":
        {"package.json": SCRIPTS, "package-lock.json": ""},
    "setup: yarn install --frozen-lockfile": {"package.json": NONE, "yarn.lock": ""},
    "test: python3 -m pytest; lint: python3 -m ruff check .": {"pyproject.toml": "[tool.pytest.x]\n[tool.ruff]\n"},
    "test: uv run pytest; setup: uv sync --frozen": {"pyproject.toml": 'x = ["pytest"]', "uv.lock": ""},
    "test: cargo test; build: cargo build": {"Cargo.toml": ""},
    "test: make check; build: make build": {"Makefile": "check: x\nlint := x\nbuild:\n", "go.mod": ""},
}  # fmt: skip


def test_each_ecosystem_is_one_line_and_links_are_not_read(tmp_path, git):
    (tmp_path / "outside.json").write_text(SCRIPTS)
    for number, line in enumerate([*LINES, ""]):
        root = tmp_path / str(number)
        root.mkdir()
        for name, text in LINES.get(line, {}).items():
            (root / name).write_text(text)
        if not line:
            (root / "package.json").symlink_to(tmp_path / "outside.json")
        git(root, "init", "-q")
        git(root, "add", "-A")
        assert draft.one_line(draft.survey(root)[1]) == line


# models

SOON = (date.today() + timedelta(5)).isoformat()
FULL = ("response_format", "structured_outputs")
ROWS = [
    row("acme/dear", "0.000002", "0.00001", *FULL),
    row("acme/cheap", "0.0000001", "0.0000005", *FULL, expiration_date=SOON),
    row("acme/router", "-1", "-1", *FULL),
    row("acme/plain:free", "0", "0", context_length=32_000),
    row("acme/json:free", "0", "0", "response_format"),
    row("acme/painter", "1e-6", "1e-6", architecture={"input_modalities": ["text"], "output_modalities": ["image"]}),
    row("acme/dear:batch", "0.000001", "0.000005", *FULL),
]


def table(text: str) -> list[str]:
    """The lines of the table, the words of each between single spaces."""
    return [" ".join(line.split()) for line in text.split("\n\n")[0].splitlines()]


def test_the_free_models_come_first_then_the_cheapest_and_those_without_a_price_last(desk, monkeypatch):
    desk.api.models = ROWS
    monkeypatch.setenv("CCO_OPENROUTER_MODEL", "acme/dear:nitro")
    shown = desk.run(code=0, main=models.main).out
    assert table(shown) == [
        "model context $ in $ out structured ends",
        "acme/json:free 1000 k free free json only",
        "acme/plain:free 32 k free free no",
        f"acme/cheap 1000 k 0.1 0.5 yes {SOON}",
        "* acme/dear 1000 k 2 10 yes",
        "acme/router 1000 k ? ? yes",
    ]
    assert f"5 of 7 models of {desk.api.url}/models" in shown and "In your settings" not in shown
    assert table(desk.run("--free", code=0, main=models.main).out) == table(shown)[:3]


def test_what_is_wrong_with_the_models_of_the_settings_is_said(desk):
    desk.api.models = [*ROWS, row("openai/gpt-6-luna", "1e-7", "5e-7", *FULL)]
    (desk.project / ".cco").mkdir()
    (desk.project / ".cco" / "config.yaml").write_text(
        "openrouter:\n  model: acme/cheep\n  fallbacks: [acme/cheap, 'acme/gone:free']\n"
        "  models: {economy: openai/gpt-4o-mini, strong: 'acme/plain:free'}\n"
    )
    shown = desk.run(code=0, main=models.main).out
    assert [line.split()[1] for line in table(shown) if line[0] == "*"] == ["acme/plain:free", "acme/cheap"]
    problems = [line.removeprefix("In your settings: ") for line in shown.splitlines() if line.startswith("In your")]
    assert problems.pop(0).endswith(" on 2027-01-14: use openai/gpt-6-luna")
    assert problems == [
        "acme/cheep is not on the server's list of models: did you mean acme/cheap?",
        f"acme/cheap ends on {SOON}: `make models` shows those that there are",
        "acme/gone:free is not on the server's list of models: use openrouter/free",
        "acme/plain:free cannot give structured answers: take one that can",
    ]


def test_without_prices_a_list_or_readable_settings_it_says_so(desk, monkeypatch):
    desk.api.models = [{"id": "llama3.2:latest", "object": "model", "max_model_len": 8000}]
    shown = desk.run(code=0, main=models.main).out
    assert table(shown)[1] == "llama3.2:latest 8 k ? ? ?" and "In your settings" not in shown
    desk.api.models = []
    assert "HTTP 404" in desk.run(code=4, main=models.main).err
    monkeypatch.setenv("CCO_OPENROUTER_BASE_URL", "http://user:a-long-password@127.0.0.1:1/v1")
    failed = desk.run(code=4, main=models.main)
    assert failed.err.startswith("There is no list of models: ") and "a mission runs without this list" in failed.err
    assert "a-long-password" not in failed.err and not failed.out
