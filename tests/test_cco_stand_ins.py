"""The stand-ins behave as what they stand in for: the same session through the real `claude` and through
extras/claude_stand_in.py gives the same events, values and exit codes, as far as a supervisor looks at them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from extras.messages_api import MessagesAPI
from extras.openrouter_api import OpenRouterAPI, row

EXTRAS = Path(__file__).resolve().parent.parent / "extras"
FLAGS = ["-p", "--output-format", "stream-json", "--verbose", "--permission-mode", "acceptEdits"]
LOOKED_AT = ("subtype", "is_error", "terminal_reason", "session_id", "api_error_status", "num_turns", "errors")
SESSION = "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10"
BEGIN = ("--session-id", SESSION)
RESET = 1893456000  # an epoch in 2030
UNIFIED = "anthropic-ratelimit-unified-"
LIMIT = {f"{UNIFIED}status": "rejected", f"{UNIFIED}reset": RESET, f"{UNIFIED}representative-claim": "five_hour"}
LIMIT |= {f"{UNIFIED}5h-status": "rejected", f"{UNIFIED}5h-reset": RESET, f"{UNIFIED}5h-utilization": "1.0"}
API_KEY = {"ANTHROPIC_API_KEY": "none"}
SUBSCRIPTION = {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-dummy"}


class Outcome:
    """What one run left: exit code, standard error, and the events of its stream."""

    def __init__(self, code: int, out: bytes, err: bytes):
        self.code = code
        self.error = err.decode().strip()
        self.events = [json.loads(line) for line in out.splitlines()]

    def last(self) -> dict[str, Any]:
        return self.events[-1]

    def looked_at(self) -> dict[str, Any]:
        """What a supervisor goes by."""
        results = [event for event in self.events if event["type"] == "result"]
        return {
            "code": self.code,
            "kinds": {(event["type"], event["type"] == "system" and event["subtype"]) for event in self.events},
            "results": [{key: result[key] for key in LOOKED_AT if key in result} for result in results],
            "failures": [event["error"] for event in self.events if "error" in event],
        }


class RealClaude:
    """The real program, with a home and a project of its own and a scripted model."""

    def __init__(self, program: Path, folder: Path):
        self.program = program
        self.home, self.project = folder / "home", folder / "project"
        self.home.mkdir()
        self.project.mkdir()

    def run(self, replies: list[dict[str, Any]], *flags: str, login: dict[str, str] = API_KEY) -> Outcome:
        with MessagesAPI(replies) as api:
            env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "ANTHROPIC_BASE_URL": api.url, **login}
            env |= {"DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
            return ran([str(self.program), *FLAGS, *flags], self.project, env | {"CLAUDE_CODE_MAX_RETRIES": "0"})


class StandIn:
    """The stand-in, whose script grows by one session a run."""

    def __init__(self, folder: Path):
        self.project = folder / "stand in"
        self.project.mkdir()
        self.script = folder / "script.json"
        self.sessions: list[list[dict[str, Any]]] = []
        self.argv = [sys.executable, str(EXTRAS / "claude_stand_in.py"), *FLAGS]
        self.env = {"PATH": os.environ["PATH"], "CLAUDE_STAND_IN": str(self.script)}

    def plan(self, steps: list[dict[str, Any]]) -> None:
        self.sessions.append(steps)
        self.script.write_text(json.dumps(self.sessions))

    def run(self, steps: list[dict[str, Any]], *flags: str, prompt: bytes = b"Go on.") -> Outcome:
        self.plan(steps)
        return ran([*self.argv, *flags], self.project, self.env, prompt)

    @contextmanager
    def running(self, steps: list[dict[str, Any]], *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        self.plan(steps)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*self.argv, *flags], cwd=self.project, env=self.env, **pipes) as process:
            assert process.stdin
            process.stdin.write(b"Go on.")
            process.stdin.close()
            process.stdin = None
            try:
                yield process
            finally:
                process.kill()

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(f"{self.script}.calls.jsonl").read_text().splitlines()]


def ran(argv: list[str], folder: Path, env: dict[str, str], prompt: bytes = b"Go on.") -> Outcome:
    done = subprocess.run(argv, input=prompt, capture_output=True, cwd=folder, env=env, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def appears(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} never appeared"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture
def claude(real_claude: Path, tmp_path: Path) -> RealClaude:
    return RealClaude(real_claude, tmp_path)


@pytest.fixture
def ours(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


def tool(name: str, **given: str) -> dict[str, Any]:
    return {"tools": [{"name": name, "input": given}]}


def failure(status: int, message: str, **more: Any) -> list[dict[str, Any]]:
    return [{"status": status, "error": {"message": message}, "repeat": "forever", **more}]


def error(kind: str, text: str, status: int | None, reason: str = "api_error") -> list[dict[str, Any]]:
    given = {"assistant_error": kind, "text": text, "api_error_status": status, "terminal_reason": reason}
    return [{"error": given}]


WORK = [tool("Write", file_path="a.txt", content="a\n"), tool("Bash", command="echo b"), {"text": "All is well."}]
SAME = [{"write": {"a.txt": "a\n"}}, {"bash": "echo b"}, {"say": "All is well."}]
AGAIN = [tool("Bash", command="true") | {"repeat": "forever"}]
DEAR = [tool("Bash", command="true") | {"input_tokens": 500_000}]
OURS_DEAR = [{"usage": {"input_tokens": 500_000}}, {"bash": "true"}]


@pytest.mark.parametrize(
    ("replies", "steps", "flags", "login"),
    [
        (WORK, SAME, ["--allowedTools", "Bash"], API_KEY),
        (failure(429, "no", headers=LIMIT), [{"limit": {"resetsAt": RESET}}], [], SUBSCRIPTION),
        ([], error("authentication_failed", "Not logged in", None), [], {}),
        (failure(401, "invalid x-api-key"), error("authentication_failed", "Invalid API key", 401), [], API_KEY),
        (failure(400, "Your credit balance is too low"), error("billing_error", "Too low", 400), [], API_KEY),
        (failure(529, "Overloaded"), error("server_error", "Overloaded", 529), [], API_KEY),
        (
            failure(400, "prompt is too long: 9 tokens > 8 maximum"),
            error("invalid_request", "Prompt is too long", 400, "prompt_too_long"),
            [],
            API_KEY,
        ),
        (AGAIN, [{"bash": "true"}] * 3, ["--max-turns", "2"], API_KEY),
        (DEAR, OURS_DEAR, ["--max-budget-usd", "0.5"], API_KEY),
    ],
    ids=("end", "limit", "no login", "bad key", "no credit", "overload", "prompt too long", "turns", "budget"),
)
def test_a_session_ends_as_with_the_real_claude(claude, ours, replies, steps, flags, login):
    real = claude.run(replies, *BEGIN, *flags, login=login)
    known = [flag for flag in flags if flag not in ("--allowedTools", "Bash")]
    assert ours.run(steps, *BEGIN, *known).looked_at() == real.looked_at()


def test_a_limit_names_its_reset_as_with_the_real_claude(claude, ours):
    streams = [claude.run(failure(429, "no", headers=LIMIT), *BEGIN, login=SUBSCRIPTION)]
    streams.append(ours.run([{"limit": {"resetsAt": RESET}}], *BEGIN))
    for stream in streams:
        info = next(event["rate_limit_info"] for event in stream.events if event["type"] == "rate_limit_event")
        assert (info["status"], info["resetsAt"], info["rateLimitType"]) == ("rejected", RESET, "five_hour")


@pytest.mark.parametrize("ahead", [600, 2 * 3600, 26 * 3600, 40 * 86400], ids=("soon", "hours", "a day", "weeks"))
@pytest.mark.parametrize("exact", [True, False], ids=("full hour", "any minute"))
def test_a_limit_tells_its_reset_in_the_words_of_the_real_claude(claude, ours, ahead, exact):
    reset = int(time.time()) + ahead
    reset = reset - reset % 3600 + 3600 if exact else reset - reset % 3600 + 1740
    headers = {name: reset if name.endswith("reset") else value for name, value in LIMIT.items()}
    real = claude.run(failure(429, "no", headers=headers), *BEGIN, login={**SUBSCRIPTION, "TZ": "UTC"})
    assert ours.run([{"limit": {"resetsAt": reset}}], *BEGIN).last()["result"] == real.last()["result"]


@pytest.mark.parametrize("window", ["seven_day", "seven_day_opus", "seven_day_sonnet", "seven_day_overage_included"])
def test_a_limit_of_any_window_is_told_as_with_the_real_claude(claude, ours, window):
    headers = {**LIMIT, f"{UNIFIED}representative-claim": window}
    real = claude.run(failure(429, "no", headers=headers), *BEGIN, login={**SUBSCRIPTION, "TZ": "UTC"})
    stood_in = ours.run([{"limit": {"resetsAt": RESET, "rateLimitType": window}}], *BEGIN)
    assert stood_in.last()["result"] == real.last()["result"]
    for stream in (real, stood_in):
        info = next(event["rate_limit_info"] for event in stream.events if event["type"] == "rate_limit_event")
        assert (info["status"], info["rateLimitType"]) == ("rejected", window)


def test_a_session_that_nobody_knows_is_lost_as_with_the_real_claude(claude, ours):
    real, stood_in = claude.run([], f"--resume={SESSION}"), ours.run([], f"--resume={SESSION}")
    assert stood_in.looked_at() == real.looked_at()
    assert stood_in.error == real.error


def test_a_session_that_was_used_is_in_use_as_with_the_real_claude(claude, ours):
    for again in (claude, ours):
        assert again.run([], *BEGIN).code == 0
    real, stood_in = claude.run([], *BEGIN), ours.run([], *BEGIN)
    assert (stood_in.code, stood_in.events, stood_in.error) == (real.code, real.events, real.error)
    assert (real.code, real.events) == (1, [])


def test_a_resumed_session_adds_up_its_cost_as_with_the_real_claude(claude, ours):
    costs = []
    for program in (claude, ours):
        first = program.run([], *BEGIN).last()
        second = program.run([], f"--resume={SESSION}").last()
        costs.append((first["total_cost_usd"], second["total_cost_usd"], second["usage"]["input_tokens"]))
    assert costs[0] == pytest.approx(costs[1])
    assert costs[0][1] == pytest.approx(2 * costs[0][0])


def test_on_a_resumed_session_a_budget_is_of_this_run_alone_as_with_the_real_claude(claude, ours):
    dear = [{"text": "Dear.", "input_tokens": 250_000}]
    calls = [tool("Bash", command="true") | {"input_tokens": 100_000, "repeat": 9}]
    begun = (claude.run(dear, *BEGIN), ours.run([{"usage": {"input_tokens": 250_000}}], *BEGIN))
    flags = (f"--resume={SESSION}", "--max-budget-usd", "0.5")
    steps = [{"usage": {"input_tokens": 100_000}}, *[{"bash": "true"}] * 9]
    ended = (claude.run(calls, *flags), ours.run(steps, *flags))
    for first, second in zip(begun, ended, strict=True):
        assert first.last()["total_cost_usd"] == pytest.approx(1, abs=0.01)
        assert (second.code, second.last()["subtype"], second.last()["num_turns"]) == (1, "error_max_budget_usd", 2)
        assert second.last()["total_cost_usd"] == pytest.approx(1.8, abs=0.01)


def test_both_report_the_window_that_the_context_is_measured_by(claude, ours):
    for program in (claude, ours):
        (usage,) = program.run([]).last()["modelUsage"].values()
        assert usage["contextWindow"] == 1_000_000


@pytest.mark.parametrize(
    ("flags", "prompt", "said"),
    [(["--no-such-flag"], b"Go on.", "unknown option '--no-such-flag'"), ([], b" \n", "only whitespace")],
    ids=("flag", "prompt"),
)
def test_what_cannot_start_says_so_on_stderr_alone(ours, flags, prompt, said):
    refused = ours.run([], *flags, prompt=prompt)
    assert (refused.code, refused.events) == (1, [])
    assert said in refused.error


def test_a_run_that_is_killed_still_uses_up_its_session(ours, tmp_path):
    with ours.running([{"write": {"begun": ""}}, {"hang": True}], *BEGIN) as process:
        appears(ours.project / "begun")
        process.kill()
        process.communicate()
    assert ours.run([{"say": "Second."}], f"--resume={SESSION}").last()["result"] == "Second."
    assert [call["prompt"] for call in ours.calls()] == ["Go on.", "Go on."]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_signal_ends_the_tool_and_the_run(ours, number, code):
    with ours.running([{"bash": "echo $$ > begun.new && mv begun.new begun && exec sleep 600"}]) as process:
        appears(ours.project / "begun")
        process.send_signal(number)
        out, err = process.communicate()
    outcome = Outcome(process.returncode, out, err)
    assert outcome.code == code
    assert [event["terminal_reason"] for event in outcome.events if event["type"] == "result"] == (
        ["aborted_tools"] if number == signal.SIGINT else []
    )
    assert not alive(int((ours.project / "begun").read_text()))


def test_it_can_lie_babble_and_end_without_a_result(ours):
    babble = [{"raw": "\udcff", "times": 3}, {"raw": "x", "times": 10, "end": ""}]
    ours.plan([{"say": "All tests pass."}, *babble, {"exit": 0}])
    done = subprocess.run(ours.argv, input=b"Go on.", capture_output=True, cwd=ours.project, env=ours.env, check=True)
    assert done.stdout.endswith(b"\xff\xff\xff\nxxxxxxxxxx")
    assert b'"result"' not in done.stdout


def test_a_child_can_hold_its_output_after_the_end(ours, tmp_path):
    ours.plan([{"hold": "until test -e go; do sleep 0.02; done; echo late; touch gone"}])
    with (tmp_path / "output").open("w+b") as output:
        argv = [*ours.argv, *BEGIN]
        subprocess.run(argv, input=b"Go on.", stdout=output, cwd=ours.project, env=ours.env, check=True)
        (ours.project / "go").touch()
        appears(ours.project / "gone")
        output.seek(0)
        lines = output.read().splitlines()
    assert json.loads(lines[-2])["type"] == "result"
    assert lines[-1] == b"late"


def test_a_line_of_300_mb_takes_no_memory_here(ours):
    ours.plan([{"raw": "x", "times": 300_000_000}])
    command = 'ulimit -v 200000; exec "$0" "$@" > /dev/null'
    subprocess.run(["bash", "-c", command, *ours.argv], input=b"Go on.", cwd=ours.project, env=ours.env, check=True)


def test_the_messages_api_holds_an_answer_until_a_file_exists(tmp_path):
    body = {"model": "m", "tools": [{}], "messages": [{"role": "user", "content": "Go on."}]}
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"text": "Now.", "wait_for": str(tmp_path / "go")}]))
    with served("messages_api.py", str(script), "--log", str(tmp_path / "log")) as url:
        with pytest.raises(requests.Timeout):
            requests.post(f"{url}/v1/messages", json=body, timeout=0.2)
        (tmp_path / "go").touch()
        answer = requests.post(f"{url}/v1/messages", json=body, timeout=20).json()
        assert answer["content"] == [{"type": "text", "text": "Nothing left to do."}]
    assert [json.loads(line)["text"] for line in (tmp_path / "log").read_text().splitlines()] == ["Go on.", "Go on."]


@contextmanager
def served(program: str, *args: str) -> Iterator[str]:
    """A server on the command line: its address, and at the end its clean exit."""
    with subprocess.Popen([sys.executable, str(EXTRAS / program), *args], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(20) == 0


def ask(url: str, bearer: str = "Bearer sk-or-v1-none", **body: Any) -> requests.Response:
    body = {"model": "a/b", "messages": [{"role": "user", "content": "What next?"}]} | body
    return requests.post(f"{url}/chat/completions", json=body, headers={"Authorization": bearer}, timeout=20)


def test_openrouter_refuses_what_the_real_one_refuses():
    with OpenRouterAPI([{"content": "kept"}]) as api:
        assert ask(api.url, bearer="Bearer ").status_code == 401
        assert ask(api.url, messages=[]).status_code == 400
        assert ask(api.url, model="claude-sonnet").status_code == 400
        assert "3 items or fewer" in ask(api.url, models=["a/b"] * 4).json()["error"]["message"]
        assert requests.get(f"{api.url}/nowhere", timeout=20).status_code == 404
        assert ask(api.url).json()["choices"][0]["message"]["content"] == "kept"
        assert len(api.calls) == 6


STRICT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
FULL = {
    "model": "openai/gpt-6-luna",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "What next?"},
    ],
    "max_tokens": 4000,
    "reasoning": {"effort": "low", "exclude": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": STRICT}},
    "provider": {"require_parameters": True, "data_collection": "deny", "zdr": True},
    "session_id": "s" * 256,
    "metadata": dict.fromkeys(map(str, range(16)), "x"),
    "stream": False,
}


def test_openrouter_takes_a_request_in_which_everything_is_used():
    with OpenRouterAPI([{"content": "kept"}]) as api:
        assert ask(api.url, **FULL).json()["choices"][0]["message"]["content"] == "kept"


def form(**changed: Any) -> dict[str, Any]:
    """A strict form of answer whose schema is changed."""
    return {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": {**STRICT, **changed}}}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"messages": "hello"}, "$.messages"),
        ({"messages": [{"role": "worker", "content": "x"}]}, "$.messages[0].role"),
        ({"messages": [{"role": "user"}]}, "'content' is a required property"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "$.messages[0].content"),
        ({"model": 7}, "$.model"),
        ({"models": ["openai/gpt-6-luna", "sonnet"]}, "sonnet is not a valid model ID"),
        ({"models": "a/b"}, "$.models"),
        ({"temperature": 2.1}, "$.temperature"),
        ({"temperature": "hot"}, "$.temperature"),
        ({"max_tokens": 0}, "$.max_tokens"),
        ({"max_tokens": 1.5}, "$.max_tokens"),
        ({"session_id": "s" * 257}, "$.session_id"),
        ({"metadata": dict.fromkeys(map(str, range(17)), "x")}, "$.metadata"),
        ({"metadata": {"a": 1}}, "$.metadata.a"),
        ({"provider": {"require_parameter": True}}, "$.provider"),
        ({"provider": {"max_price": {"prompt": 1}}}, "$.provider.max_price.prompt"),
        ({"reasoning": {"effort": "little"}}, "$.reasoning.effort"),
        ({"reasoning": {"effort": "low", "max_tokens": 5}}, "$.reasoning"),
        ({"response_format": {"type": "json"}}, "$.response_format"),
        ({"response_format": {"type": "json_schema"}}, "$.response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a plan"}}}, "$.response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 65}}}, "$.response_format"),
        ({"response_format": form(additionalProperties=True)}, "'additionalProperties' is required"),
        ({"response_format": form(required=[])}, "'required' is required"),
        (
            {"response_format": form(properties={"a": {"minLength": 1, "type": "string"}})},
            "'minLength' is not permitted",
        ),
        ({"response_format": form(properties={"a": {"enum": ["x"]}})}, "must have a 'type' key"),
        ({"response_format": form(properties={"a": {"type": "array", "items": {}}})}, "('a', 'items')"),
        ({"response_format": form(properties={"a": {"anyOf": [{"type": "object"}]}})}, "('a', 'anyOf 0')"),
        ({"max_token": 5}, "'max_token' was unexpected"),
    ],
)
def test_openrouter_refuses_what_does_not_fit_its_published_shape(changed, says):
    with OpenRouterAPI() as api:
        answer = ask(api.url, **{**FULL, **changed})
        assert answer.status_code == 400
        assert says in answer.text.replace("\\", "")


def test_openrouter_refuses_required_parameters_that_the_model_does_not_take():
    with OpenRouterAPI([{"content": "kept"}]) as api:
        for field in ({"temperature": 0.5}, {"model": "z-ai/glm-5.2:free"}):
            answer = ask(api.url, **{**FULL, **field})
            assert (answer.status_code, "requested parameters" in answer.text) == (404, True)
        assert ask(api.url, **{**FULL, "temperature": 0.5, "provider": {}}).status_code == 200


def test_openrouter_shows_the_models_that_it_was_given():
    with OpenRouterAPI(models=[row("a/b", "1", "2", "seed")]) as api:
        (shown,) = requests.get(f"{api.url}/models", timeout=20).json()["data"]
        assert (shown["id"], shown["pricing"]["completion"]) == ("a/b", "2")
        assert shown["supported_parameters"] == ["max_tokens", "seed"]
        assert (api.looks, api.calls) == (["/models"], [])
    with OpenRouterAPI(models=[]) as api:
        assert requests.get(f"{api.url}/models", timeout=20).status_code == 404


def test_openrouter_takes_its_steps_in_order_and_then_answers_by_default(tmp_path):
    steps = tmp_path / "steps.json"
    limited = {"status": 429, "headers": {"Retry-After": "1"}, "body": {"error": {"code": 429, "message": "slow down"}}}
    steps.write_text(json.dumps([limited, {"raw": "<html>"}, {"content": "x", "drip": [3, 0]}]))
    with served("openrouter_api.py", str(steps), "--content", "the end", "--log", str(tmp_path / "log")) as url:
        first, second, third, last = (ask(url) for _ in range(4))
        assert (first.status_code, first.headers["Retry-After"]) == (429, "1")
        assert second.text == "<html>"
        assert third.text.startswith("   {")
        assert third.headers["X-Generation-Id"]
        assert last.json()["choices"][0]["message"]["content"] == "the end"
        assert requests.get(f"{url}/models", timeout=20).json()["data"]
    assert "sk-or" not in (tmp_path / "log").read_text()


def test_openrouter_can_hang_up_in_the_middle_of_an_answer():
    hung_up = pytest.raises(requests.exceptions.ChunkedEncodingError)
    with OpenRouterAPI([{"content": "long", "close_early": 5}]) as api, hung_up:
        ask(api.url)
