"""Claude Code as the one who is asked: the real program, with only the model's answers made up by a server on loopback.

It has a home of its own, so that nobody's login, settings or history take part. What the real program cannot be made to
do is done by a shell script in its place.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import marked

import claude_llm
import llm
import proc
import worker
from extras.messages_api import MessagesAPI
from mission import load_settings
from openrouter import Bill, NoAnswer, Reply, Shape, Unreachable

RESET = 1893456000  # an epoch in 2030
ROUTER_KEY = "sk-or-v1-planted-router-key-4711"
UNIFIED = "anthropic-ratelimit-unified-"
LIMIT = {f"{UNIFIED}status": "rejected", f"{UNIFIED}reset": RESET, f"{UNIFIED}representative-claim": "five_hour"}
LIMIT |= {f"{UNIFIED}5h-status": "rejected", f"{UNIFIED}5h-reset": RESET, f"{UNIFIED}5h-utilization": "1.0"}
LIMIT |= {f"{UNIFIED}overage-status": "rejected"}
GOOD = {
    "focus": "c1",
    "title": "Mend the parser",
    "instruction": "Mend the parser in src/parser.py until `make c1` exits 0.",
    "strategy": "retry_modified",
    "session": "resume",
    "question": None,
}
PLAN = Shape("plan", json.loads((llm.FOLDER / "plan.json").read_text()))


def gives(**changed: Any) -> dict[str, Any]:
    """The model calls the tool that takes its answer."""
    return {"tools": [{"name": "StructuredOutput", "input": {**GOOD, **changed}}]}


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Desk:
    """A repository, a home, and a claude that is asked from there."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root, self.home, self.temp = folder, root, folder / "home", folder / "temp"
        self.bill = Bill()
        self.settings = load_settings(None, None, {"CCO_MANAGER_PROVIDER": "claude"})
        for place in (self.home, self.temp):
            place.mkdir()

    def use(self, claude: Path) -> None:
        self.settings.claude_code.command = str(claude)

    def use_script(self, text: str) -> None:
        """A program in its place. $out is a file that can be printed."""
        self.use(program(self.folder / "bin" / "claude", f"out={self.folder}/out\n{text}"))

    def use_events(self, *events: dict[str, Any], code: int = 0, then: str = "") -> None:
        """A program in its place that prints these events; then: what it does before it ends."""
        (self.folder / "out").write_text("".join(f"{json.dumps(event)}\n" for event in events))
        self.use_script(f"cat > /dev/null; cat $out; {then}\nexit {code}")

    @contextmanager
    def model(self, *script: dict[str, Any]) -> Iterator[MessagesAPI]:
        with MessagesAPI(list(script)) as api, pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANTHROPIC_BASE_URL", api.url)
            yield api

    def ask(self, user: str = "What next?", seconds: float = 60, models: tuple[str, ...] = (), shape: Shape = PLAN):
        messages = [{"role": "system", "content": "You manage."}, {"role": "user", "content": user}]
        end = time.monotonic() + seconds
        try:
            return claude_llm.complete(messages, shape, models, self.settings, self.bill, end, self.root)
        finally:
            assert marked(str(self.root.resolve())) == {}
            assert list(self.temp.iterdir()) == []

    def refused(self, *args: Any, **kwargs: Any) -> NoAnswer:
        with pytest.raises(NoAnswer) as caught:
            self.ask(*args, **kwargs)
        assert len(str(caught.value)) < 400 or isinstance(caught.value.__cause__, worker.CannotRun)  # it tells PATH
        return caught.value

    def ask_whole(self, **question: Any) -> llm.Answer:
        return llm.ask(llm.Question("You manage.", "What next?", "plan", root=self.root, **question), self.settings)


@pytest.fixture
def desk(tmp_path, project, monkeypatch) -> Desk:
    made = Desk(tmp_path, project)
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE", "CCO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none-is-needed")
    monkeypatch.setenv("OPENROUTER_API_KEY", ROUTER_KEY)
    monkeypatch.setenv("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
    monkeypatch.setitem(claude_llm.SWITCHES, "CLAUDE_CODE_MAX_RETRIES", "0")
    monkeypatch.setattr(tempfile, "tempdir", str(made.temp))
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def real(desk, real_claude) -> Desk:
    """With the real program, which writes down before it begins what it was started with."""
    place = shlex.quote(str(desk.folder))
    keep = f"printf '%s\\0' \"$@\" > {place}/argv; env -0 > {place}/env; ls -A > {place}/seen; pwd > {place}/cwd"
    desk.use(program(desk.folder / "bin" / "claude", f'{keep}\nexec {shlex.quote(str(real_claude))} "$@"'))
    return desk


def text_of(request: dict[str, Any], part: str = "messages") -> str:
    return json.dumps(request["body"][part])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------
# The real program
# --------------------------------------------------------------------------------------------------------


def test_a_valid_plan_comes_back_with_its_model_and_what_it_cost(real):
    with real.model({**gives(), "input_tokens": 1000, "output_tokens": 50}) as api:
        answer = real.ask_whole()
    assert answer.content == GOOD
    assert answer.model.startswith("claude-")
    assert answer.bill.tokens == {"input": 1000, "output": 50, "cache_read": 0}
    assert (answer.bill.calls, answer.bill.unknown) == (1, 0)
    assert 0 < answer.bill.cost_usd < 1
    (request,) = api.requests
    assert "You manage." in text_of(request, "system")
    assert request["text"].startswith(f"{claude_llm.FIRST}\n\nWhat next?")
    (tool,) = [tool for tool in request["body"]["tools"] if tool["name"] == "StructuredOutput"]
    assert tool["input_schema"]["properties"] == PLAN.schema["properties"]
    assert not {"$schema", "if", "then"} & {*tool["input_schema"]}


def test_the_question_is_on_its_stdin_and_no_key_of_another_service_in_its_environment(real):
    with real.model(gives()):
        real.ask("A question about the parser.")
    argv = (real.folder / "argv").read_text().split("\0")
    assert not [word for word in argv if "parser" in word or "You manage" in word]
    environ = (real.folder / "env").read_text()
    assert ROUTER_KEY not in environ
    assert "OPENROUTER" not in environ
    assert "ANTHROPIC_API_KEY=none-is-needed\0" in environ
    assert f"CCO_RUN={real.root.resolve()}\0" in environ


def test_it_works_in_an_empty_folder_and_writes_neither_to_the_repository_nor_a_history(real):
    before = tree(real.root)
    with real.model(gives()):
        real.ask()
    assert (real.folder / "seen").read_text() == ""
    assert not Path((real.folder / "cwd").read_text().strip()).exists()
    assert tree(real.root) == before
    assert not (real.home / ".claude" / "projects").exists()
    assert not list(real.home.rglob("*.jsonl"))
    assert "temp" not in (real.home / ".claude.json").read_text()  # it does not grow by a folder each time


def test_it_has_no_tools(real):
    target = real.folder / "planted"
    calls = [
        {"name": "Bash", "input": {"command": f"touch {target}"}},
        {"name": "Write", "input": {"file_path": str(target), "content": "x"}},
        {"name": "Read", "input": {"file_path": str(real.root / "README.md")}},
        {"name": "Agent", "input": {"description": "x", "prompt": "x", "subagent_type": "general-purpose"}},
    ]
    with real.model({"tools": calls}, gives()) as api:
        assert json.loads(real.ask().text) == GOOD
    assert {tool["name"] for tool in api.requests[0]["body"]["tools"]} <= {
        "StructuredOutput",
        "DeferredToolPlaceholder",
    }
    results = api.requests[1]["results"]
    assert [result["is_error"] for result in results] == [True] * len(calls)
    assert "a project" not in json.dumps(results)
    assert not target.exists()


@pytest.mark.parametrize("lacking", ["the rule", "the switch"])
def test_a_path_in_the_question_is_not_read_and_a_slash_is_no_command(real, lacking, monkeypatch):
    """lacking: which of the two walls is down; each of them has to hold by itself."""
    if lacking == "the rule":
        monkeypatch.setitem(claude_llm.NO_FILES, "permissions", {})
    else:
        monkeypatch.delitem(claude_llm.SWITCHES, "CLAUDE_CODE_DISABLE_ATTACHMENTS")
    secret = real.folder / "secret.txt"
    secret.write_text("a private thing\n")
    (real.root / "inside.txt").write_text("a private thing\n")
    asked = f'/context @{secret} and @"{secret}" and @{real.root}/inside.txt\n@{secret}\n/context'
    with real.model(gives()) as api:
        real.ask(asked)
    (request,) = api.requests
    assert str(secret) in text_of(request)
    assert "a private thing" not in text_of(request)


def test_neither_memory_nor_hooks_nor_verbosity_of_the_user_take_part(real):
    hook = [{"hooks": [{"type": "command", "command": f"touch {real.folder}/hooked"}]}]
    hooks = dict.fromkeys(("SessionStart", "UserPromptSubmit", "Stop"), hook)
    (real.home / ".claude").mkdir()
    (real.home / ".claude" / "settings.json").write_text(json.dumps({"hooks": hooks, "verbose": True}))
    (real.home / ".claude" / "CLAUDE.md").write_text("Remember the milk.\n")
    with real.model(gives()) as api:
        assert json.loads(real.ask().text) == GOOD
    assert "milk" not in json.dumps(api.requests[0]["body"])
    assert not (real.folder / "hooked").exists()


def test_an_answer_that_does_not_fit_the_schema_is_given_again(real):
    with real.model(gives(instruction="x"), gives()) as api:
        assert json.loads(real.ask().text) == GOOD
    assert "/instruction: must NOT have fewer than 20 characters" in api.requests[1]["results"][0]["text"]
    assert real.bill.calls == 1
    assert real.bill.tokens["input"] == 200


def test_one_that_never_fits_is_no_answer_and_is_paid_for(real):
    with real.model({**gives(instruction="x"), "repeat": "forever"}) as api:
        error = real.refused()
    assert type(error) is NoAnswer
    assert "must NOT have fewer than 20 characters" in str(error)
    assert len(api.requests) == 2
    assert real.bill.cost_usd > 0


def test_prose_comes_back_as_it_is_and_is_mended_by_a_second_question(real):
    with real.model({"text": "I would mend it.", "repeat": 2}, gives()) as api:
        answer = real.ask_whole()
    assert answer.content == GOOD
    assert answer.bill.calls == 2
    (*_, last) = api.requests
    assert claude_llm.EARLIER.format("I would mend it.") in last["text"]
    assert "not one JSON object" in last["text"]


def test_what_the_schema_of_a_tool_cannot_say_is_mended_too(real):
    with real.model(gives(strategy="escalate"), gives()) as api:
        assert real.ask_whole().content == GOOD
    assert "$.question: None is not of type 'string'" in api.requests[1]["text"]


def test_the_models_of_the_question_are_taken_else_claudes_own_choice(real):
    with real.model(gives()) as api:
        assert "sonnet" in real.ask(models=("sonnet", "haiku")).model
    assert "sonnet" in api.requests[0]["model"]
    assert "--fallback-model=haiku" in (real.folder / "argv").read_text().split("\0")
    real.use_script('printf "%s " "$@" > "$out"; exit 1')
    real.refused()
    assert "--json-schema" in (real.folder / "out").read_text()
    assert "-model" not in (real.folder / "out").read_text()


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"status": 401}, "auth"),
        ({"status": 529}, "overloaded"),
        ({"status": 400, "error": {"message": "Your credit balance is too low to access the API."}}, "credit"),
    ],
)
def test_what_another_call_cannot_change_is_unreachable(real, reply, kind):
    with real.model({**reply, "repeat": "forever"}):
        error = real.refused()
    assert isinstance(error, Unreachable)
    assert f"({kind})" in str(error)
    assert error.until is None
    assert (real.bill.cost_usd, real.bill.unknown) == (0, 0)


def test_without_a_login_it_is_unreachable_and_says_so(real, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    error = real.refused()
    assert isinstance(error, Unreachable)
    assert "Not logged in" in str(error)


def test_the_limit_of_a_subscription_says_when_it_ends(real, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-dummy")
    with real.model({"status": 429, "headers": LIMIT, "repeat": "forever"}):
        error = real.refused()
    assert isinstance(error, Unreachable)
    assert error.until == RESET


def test_a_silent_api_is_not_waited_for_past_the_deadline_and_nothing_is_left(real):
    begun = time.monotonic()
    with real.model({**gives(), "wait_for": str(real.folder / "never")}) as api:
        error = real.refused(seconds=1.5)
    assert isinstance(error, Unreachable)
    assert "timeout" in str(error)
    assert time.monotonic() - begun < 1.5 + claude_llm.GRACE + 2
    assert len(api.requests) == 1


# --------------------------------------------------------------------------------------------------------
# What the real program cannot be made to do
# --------------------------------------------------------------------------------------------------------

INIT = {"type": "system", "subtype": "init", "model": "claude-opus-5-5"}
SAID = {"type": "assistant", "message": {"id": "m", "model": "x", "content": [{"type": "text", "text": "A word."}]}}


def result(**more: Any) -> dict[str, Any]:
    usual = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 2, "result": "A wo"}
    return {**usual, "terminal_reason": "completed", **more}


def test_a_claude_that_stays_after_its_answer_is_ended_and_the_answer_counts(desk, monkeypatch):
    monkeypatch.setattr(claude_llm, "LINGER", 0.1)
    desk.use_events(INIT, result(structured_output=GOOD), then="sleep 600")
    assert json.loads(desk.ask().text) == GOOD


def test_what_is_said_after_the_deadline_does_not_count(desk):
    (desk.folder / "out").write_text(json.dumps(result(structured_output=GOOD)))
    desk.use_script("trap 'cat $out; exit 0' TERM; cat > /dev/null; sleep 600 & wait")
    assert isinstance(desk.refused(seconds=0.5), Unreachable)


def test_after_the_deadline_nothing_is_started(desk):
    desk.use_script(f"touch {desk.folder}/started")
    assert isinstance(desk.refused(seconds=-1), Unreachable)
    assert not (desk.folder / "started").exists()
    assert desk.bill == Bill()


def test_endless_output_is_cut_off(desk, monkeypatch):
    monkeypatch.setattr(claude_llm, "MAX_OUTPUT", 100_000)
    desk.use_script("yes")
    assert "size" in str(desk.refused())


def test_without_an_object_the_longest_of_its_last_words_is_the_answer(desk):
    desk.use_events(INIT, SAID, result())
    assert desk.ask() == Reply("A word.", "claude-opus-5-5")
    desk.use_events(INIT, result(result="A whole text."))
    assert desk.ask().text == "A whole text."
    assert desk.bill.unknown == 2  # neither result says what it cost


def test_the_bill_counts_all_models_and_what_the_cache_gave(desk):
    use = {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 300, "cacheCreationInputTokens": 20}
    usage = {"claude-opus-5-5": use, "claude-haiku-5-5": {"inputTokens": 1, "outputTokens": 1}}
    desk.use_events(INIT, result(structured_output=GOOD, total_cost_usd=0.25, modelUsage=usage))
    desk.ask()
    assert desk.bill == Bill(0.25, {"input": 31, "output": 6, "cache_read": 300}, 1, 0)


def test_a_message_holds_no_line_of_the_question_and_no_key(desk):
    question = "\n".join(["What next?", "The parser fails in line 7.", "It prints nothing."])
    desk.use_script("cat >&2; echo \"the key is $ANTHROPIC_API_KEY\" >&2; echo 'Segmentation fault' >&2; exit 139")
    desk.settings.claude_code.api_key = "sk-ant-api03-planted-key-0123456789"
    error = desk.refused(question)
    assert type(error) is NoAnswer
    assert "Segmentation fault" in str(error)
    assert "planted" not in str(error)
    assert not [line for line in question.splitlines() if line in str(error)]


@pytest.mark.parametrize(
    ("script", "kind", "known"),
    [
        ("echo \"error: unknown option '--json-schema'\" >&2; exit 1", "denied", Unreachable),
        ("exit 3", "crashed", NoAnswer),
        ("echo '[1, 2]'; echo '{}'; echo nonsense", "crashed", NoAnswer),
        ("kill -9 $$", "crashed", NoAnswer),
    ],
)
def test_a_program_that_fails_gives_no_answer(desk, script, kind, known):
    desk.use_script(f"cat > /dev/null; {script}")
    error = desk.refused()
    assert type(error) is known
    assert f"({kind})" in str(error)


def test_without_claude_it_is_unreachable_and_says_what_to_do(desk):
    desk.settings.claude_code.command = "no-such-claude"
    error = desk.refused()
    assert isinstance(error, Unreachable)
    assert "claude_code.command" in str(error)
    assert desk.bill == Bill()


def test_a_claude_of_the_repository_is_not_run(desk, monkeypatch):
    program(desk.root / "bin" / "my-claude", f"touch {desk.folder}/started")
    monkeypatch.setenv("PATH", f"{desk.root}/bin{os.pathsep}{os.environ['PATH']}")
    desk.settings.claude_code.command = "my-claude"
    assert isinstance(desk.refused(), Unreachable)
    assert not (desk.folder / "started").exists()


def test_a_signal_ends_it_and_counts_as_no_answer(desk, monkeypatch):
    desk.use_script("sleep 600")
    monkeypatch.setattr(proc, "stopping", signal.SIGTERM)
    with pytest.raises(proc.Interrupted):
        desk.ask()
