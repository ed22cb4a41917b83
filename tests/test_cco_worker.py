"""One session of the worker: how it is started, what it may not touch, and what is left of it.

The worker is the stand-in of extras/, which answers as Claude Code 2.1.329 was measured to. How what it prints is
understood is in test_cco_stream.py.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked

import log
import mission
import proc
import sandbox
import state
import stream
import worker

SESSION = "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10"
PLANTED = "Zk9-planted+value/4711=="  # looks like no known family of keys, so only its variable gives it away


def program(path: Path, text: str = "") -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Bench:
    """A repository, a scripted claude, and the settings it is run with."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "a project"
        (self.root / ".cco").mkdir(parents=True)
        self.script = folder / "script.json"
        self.sessions: list[list[dict[str, Any]]] = []
        stand_in = f'exec "{sys.executable}" -I "{KIT}/extras/claude_stand_in.py" "$@"'
        self.program = program(folder / "bin" / "claude", stand_in)
        self.settings = mission.load_settings(None, None, {"CCO_CLAUDE_CODE_COMMAND": str(self.program)})
        self.claude = self.settings.claude_code
        self.stream = folder / "0001.jsonl.gz"

    def task(self, **given: Any) -> worker.Task:
        usual: dict[str, Any] = {"prompt": "Go on.", "session": SESSION, "resume": False, "root": self.root}
        usual |= {"protected": (), "network": (), "budget_usd": None, "model": self.claude.model, "window": 200_000}
        usual |= {"timeout": self.claude.timeout, "spent": {}, "marker": f"test-{self.folder}", "stream": self.stream}
        usual |= {"criteria": ["a", "b"]}
        return worker.Task(**usual | given)

    def run(self, *steps: dict[str, Any], started: Any = None, **given: Any) -> state.Outcome:
        """One session with these steps; nothing that it started is left."""
        self.sessions.append(list(steps))
        self.script.write_text(json.dumps(self.sessions))
        task = self.task(**given)
        outcome = worker.run(task, self.settings, started)
        assert marked(task.marker) == {}
        return outcome

    def restrictions(self, **given: Any) -> dict[str, Any]:
        return worker.restrictions(self.task(**given), self.settings)

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(f"{self.script}.calls.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("CLAUDE_STAND_IN", str(made.script))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("ANTHROPIC_API_KEY", "OPENROUTER_API_KEY", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_a_session_does_its_work_in_the_repository_and_claims_what_it_met(bench):
    report = "I wrote it.\n\nMet: a, other"
    outcome = bench.run({"write": {"a": "1"}}, {"bash": "cat a"}, {"say": report}, marker="run-0815")
    assert (outcome.kind, outcome.report, outcome.claimed) == ("ended", report, ["a"])
    assert (bench.root / "a").read_text() == "1"
    (call,) = bench.calls()
    assert (call["cwd"], call["CCO_RUN"], call["prompt"]) == (str(bench.root), "run-0815", "Go on.")


def test_a_resumed_session_costs_what_it_added(bench):
    usage = {"usage": {"input_tokens": 1000}}
    first = bench.run(usage, {"say": "One."})
    cut = bench.run(usage, {"bash": "true"}, {"exit": 143}, resume=True, spent=first.spent)
    last = bench.run(usage, {"say": "Three."}, resume=True, spent=cut.spent)
    assert (first.kind, cut.kind, last.kind) == ("ended", "interrupted", "ended")
    assert first.tokens["input"] + cut.tokens["input"] + last.tokens["input"] == 3000
    assert first.cost_usd + cut.cost_usd + last.cost_usd == pytest.approx(3 * 0.0042)
    assert last.context == 0.001


def test_a_session_that_nobody_knows_and_one_in_use_are_lost(bench):
    assert bench.run(resume=True).kind == "lost_session"
    assert bench.run({"say": "First."}).kind == "ended"
    outcome = bench.run({"say": "Second."})
    assert (outcome.kind, outcome.message) == ("lost_session", f"Error: Session ID {SESSION} is already in use.")


def test_the_turn_cap_and_the_budget_end_it(bench):
    bench.claude.max_turns = 2
    assert bench.run(*[{"bash": "true"}] * 3).kind == "turn_cap"
    bench.claude.max_turns = None
    dear = {"usage": {"input_tokens": 500_000}}
    outcome = bench.run(dear, {"bash": "true"}, budget_usd=0.5, session=SESSION[::-1])
    assert (outcome.kind, outcome.cost_usd) == ("budget_cap", pytest.approx(2.0, rel=0.01))


@pytest.mark.parametrize(("limit", "word"), [("timeout", "timeout"), ("idle_timeout", "idle")])
def test_a_hanging_claude_is_ended_after_the_time_in_the_settings(bench, monkeypatch, limit, word):
    monkeypatch.setattr(proc, "Limits", functools.partial(proc.Limits, grace=0.2))
    setattr(bench.claude, limit, 0.6)
    outcome = bench.run({"ignore_term": True}, {"say": "One moment."}, {"wait_for": "/nowhere"})
    assert (outcome.kind, outcome.message.rpartition(": ")[2]) == ("timeout", word)


def test_an_output_without_end_is_ended_at_its_largest_size(bench, monkeypatch):
    monkeypatch.setattr(worker, "MAX_OUTPUT", 200_000)
    bench.claude.command = str(program(bench.folder / "flood", "yes | head -c 300000; exec sleep 600"))
    assert bench.run().message.endswith(": size")


@pytest.fixture
def signals(monkeypatch):
    """The kit's handlers, for one test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(proc, "stopping", 0)
    monkeypatch.setattr(proc, "_raised", False)
    proc.handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_to_the_kit_interrupts_the_session_and_what_it_did_is_reported(bench, monkeypatch, signals):
    tick = stream.Stream.tick

    def stop_when_begun(self: stream.Stream) -> str:
        if (bench.root / "begun").exists() and not proc.stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        return tick(self)

    monkeypatch.setattr(stream.Stream, "tick", stop_when_begun)
    outcome = bench.run({"say": "One moment."}, {"bash": "touch begun; sleep 600"})
    assert (outcome.kind, outcome.report, proc.stopping) == ("interrupted", "One moment.", signal.SIGTERM)
    with pytest.raises(proc.Interrupted):  # before claude is started there is no outcome
        bench.run()


def test_the_stream_is_recorded_masked_private_and_in_one_file(bench, fresh_mask, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", PLANTED)
    log.register_secrets(os.environ)
    (bench.folder / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(bench.folder / "temporary"))
    names: list[list[str]] = []
    steps = [{"bash": f"echo {PLANTED}"}, {"raw": f"no JSON but {PLANTED}"}, {"say": f"The token is {PLANTED}."}]
    outcome = bench.run(*steps, started=lambda pid: names.append(os.listdir(tempfile.tempdir)))
    assert (outcome.report, names) == ("The token is ***.", [[]])  # what is not masked yet is in a file without a name
    assert stat.S_IMODE(bench.stream.stat().st_mode) == 0o600
    refused = [{"init": False}, {"spawn": f"sleep 613 {PLANTED} || sleep 613"}, {"stderr": f"error: option {PLANTED}"}]
    outcome = bench.run(*refused, {"exit": 1}, resume=True)
    assert (outcome.kind, outcome.message) == ("denied", "error: option ***")
    recorded = gzip.decompress(bench.stream.read_bytes()).decode()
    assert PLANTED not in recorded + repr(outcome)
    types = ["system", "assistant", "user", "assistant", "result", "assistant", "user"]
    assert [json.loads(line)["type"] for line in recorded.splitlines() if line[0] == "{"] == types


def test_by_hand_the_instruction_is_shown_without_secrets_and_written_for_its_owner(bench, fresh_mask, capsys):
    log.register_secret(PLANTED)
    path = bench.folder / "instruction.md"
    worker.write_instruction(bench.task(prompt=f"Do it.\nWith \x1b[2J and {PLANTED}."), path)
    shown = capsys.readouterr().out
    assert "Do it.\nWith  [2J and ***." in shown and str(path) in shown
    assert path.read_text().startswith("Do it.\n") and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_neither_a_secret_nor_the_prompt_is_in_the_arguments(bench, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the-workers-own-key")
    monkeypatch.setenv("MY_SERVICE_TOKEN", PLANTED)
    bench.claude.api_key = "a-key-from-the-settings"
    bench.run(
        {"bash": "test $ANTHROPIC_API_KEY = a-key-from-the-settings && touch is-there"}, prompt="A prompt\nof two"
    )
    (call,) = bench.calls()
    assert call["prompt"] == "A prompt\nof two" and (bench.root / "is-there").exists()  # that key is its login
    secrets = ("the-workers-own-key", PLANTED, "a-key-from-the-settings", "A prompt")
    assert not [secret for secret in secrets if secret in "\0".join(call["argv"])]


def test_a_session_is_begun_with_its_id_and_resumed_with_it(bench):
    bench.claude.model, bench.claude.max_turns, file = "sonnet", 7, bench.root / "settings"
    begun = worker.command_line(bench.task(budget_usd=0.123456), bench.settings, file)
    assert begun == [
        *(str(bench.program), "-p", "--output-format", "stream-json", "--verbose", f"--session-id={SESSION}"),
        *("--permission-mode", "acceptEdits", "--setting-sources", "user,project", "--settings", str(file)),
        *("--append-system-prompt-file", str(worker.RULES), "--strict-mcp-config"),
        *("--model=sonnet", "--max-turns=7", "--max-budget-usd=0.1235"),
    ]
    bench.claude.model = bench.claude.max_turns = None
    bench.claude.mcp_config = "servers.json"
    servers = str(bench.root / "servers.json")
    resumed = worker.command_line(bench.task(resume=True), bench.settings, file)
    assert resumed == [*begun[:5], f"--resume={SESSION}", *begun[6:15], "--mcp-config", servers]
    assert servers in bench.restrictions()["sandbox"]["filesystem"]["denyWrite"]  # what it starts runs outside of it


def test_claude_gets_the_users_environment_without_what_is_the_kits(bench, monkeypatch):
    logins = {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANTHROPIC_AUTH_TOKEN"}
    users = {*logins, "CLAUDE_CODE_USE_BEDROCK", "NODE_EXTRA_CA_CERTS"}
    kits = "OPENROUTER_API_KEY CCO_NOTIFY CCO_OPENROUTER_API_KEY MY_ROUTER CLAUDECODE CLAUDE_CODE_ENTRYPOINT MAKEFLAGS"
    for name in (*users, *kits.split()):
        monkeypatch.setenv(name, "value of it")
    bench.settings.openrouter.api_key = "the router's key"  # which ${MY_ROUTER} in the settings named
    for name in ("MY_ROUTER", "ANTHROPIC_AUTH_TOKEN"):  # OpenRouter is a login of claude, too
        monkeypatch.setenv(name, "the router's key")
    bench.run({"say": "Done."})
    names = set(bench.calls()[0]["env"])
    assert {*users, "PATH", "HOME", "DISABLE_AUTOUPDATER"} <= names and not names & set(kits.split())
    hidden = {entry["name"] for entry in bench.restrictions()["sandbox"]["credentials"]["envVars"]}  # from Bash
    assert logins <= hidden and not {"PATH", "HOME", "CLAUDE_CODE_USE_BEDROCK"} & hidden


def test_what_the_repository_offers_on_path_comes_last(bench, monkeypatch):
    monkeypatch.setenv("PATH", f"{bench.root}/bin:/usr/bin:.:/bin")
    path = worker.environment(bench.settings, bench.root, "m")["PATH"]
    assert path == f"/usr/bin:/bin:{bench.root}/bin:."


def test_the_settings_file_is_private_and_no_state(bench):
    bench.run({"say": "Done."}, network=("pypi.org",))
    (call,) = bench.calls()
    file = Path(call["argv"][call["argv"].index("--settings") + 1])
    assert json.loads(file.read_text()) == bench.restrictions(network=("pypi.org",))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.parent == bench.root / ".cco"
    assert state.load_all(bench.root / ".cco") == ([], [])
    assert str(file.parent) in bench.restrictions()["sandbox"]["filesystem"]["denyWrite"]


def test_protected_files_are_denied_to_file_tools_and_commands_alike(bench):
    folder, file, link = bench.root / "tests", bench.root / "pages" / "[id].ts", bench.root / "link"
    for path in (folder, file.parent):
        path.mkdir()
    file.touch()
    link.symlink_to("tests")
    given = bench.restrictions(protected=(file, link))
    rules = given["permissions"]["deny"]
    assert {f"Edit(/{folder}/**)", f"Edit(/{link}/**)", f"Edit(/{bench.root}/pages/\\[id\\].ts)"} <= {*rules}
    assert {str(folder), str(link), str(file)} <= {*given["sandbox"]["filesystem"]["denyWrite"]}


def test_more_protected_files_than_the_sandbox_takes_are_refused_with_the_way_out(bench):
    protected = tuple(bench.root / f"test_{number}.py" for number in range(worker.MAX_PROTECTED))
    with pytest.raises(proc.Stop, match="more than (.|\n)*name folders") as error:
        bench.run({"say": "Done."}, protected=protected)
    assert error.value.code == proc.CANNOT


def test_files_that_hold_logins_are_hidden_where_there_are_any(bench, monkeypatch):
    home, moved = bench.folder / "home", bench.folder / "config of claude"
    (home / ".ssh").mkdir(parents=True)
    moved.mkdir()
    for file in (bench.root / ".env", moved / ".credentials.json"):
        file.touch()
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(moved))
    given = bench.restrictions()
    hidden, secrets = given["sandbox"]["filesystem"]["denyRead"], [home / ".ssh", bench.root / ".env"]
    assert {*map(str, secrets), str(moved / ".credentials.json")} <= {*hidden}
    assert {f"Read(/{secrets[0]}/**)", f"Read(/{secrets[1]})"} <= {*given["permissions"]["deny"]}


def test_the_sandbox_is_on_and_its_network_holds_the_missions_hosts_alone(bench):
    given = bench.restrictions(network=("pypi.org", "*.example.org"))
    assert given["sandbox"]["network"] == {"allowedDomains": ["pypi.org", "*.example.org"], "strictAllowlist": True}
    for name, value in (("enabled", True), ("failIfUnavailable", True), ("allowUnsandboxedCommands", False)):
        assert given["sandbox"][name] is value
    assert given["permissions"]["allow"] == ["Bash"]
    bench.claude.sandbox = False
    given = bench.restrictions()
    assert (given["sandbox"]["enabled"], given["permissions"]["allow"]) == (False, [])


def test_commands_in_the_repositorys_settings_are_off_and_the_users_are_not(bench):
    folder = bench.folder / "home" / ".claude"
    folder.mkdir(parents=True)
    for text, helper in (("{", ""), ("[]", ""), ('{"apiKeyHelper": "my-vault"}', "my-vault")):
        (folder / "settings.json").write_text(text)
        given = bench.restrictions()
        assert (given["disableAllHooks"], given["apiKeyHelper"], given["awsAuthRefresh"]) == (True, helper, "")
    bench.claude.hooks = True
    given = bench.restrictions()
    assert (given["disableAllHooks"], "apiKeyHelper" in given) == (False, False)


def test_claude_is_found_by_its_name_by_its_place_and_never_in_the_repository(bench, monkeypatch, tmp_path):
    for folder in ("", "node_modules/.bin"):
        program(bench.root / folder / "claude")
    monkeypatch.setenv("PATH", f".:{bench.root}/node_modules/.bin:{bench.program.parent}")
    monkeypatch.chdir(bench.root)
    assert worker.find(None, bench.root) == str(bench.program)
    other = program(tmp_path / "home" / "bin" / "my-claude")
    monkeypatch.chdir(tmp_path / "home")
    for command in (str(other), "~/bin/my-claude", "bin/my-claude"):
        assert worker.find(command, bench.root) == str(other)


@pytest.mark.parametrize("place", ["~/.local/bin", "~/.claude/local"])
def test_claude_is_found_where_its_installer_puts_it_under_the_path_of_cron(bench, monkeypatch, place):
    monkeypatch.setenv("PATH", "/nowhere")
    there = program(Path(os.path.expanduser(place), "claude"))
    assert worker.find(None, bench.root) == str(there)


@pytest.mark.parametrize("command", [None, "~/claude", "no-such-claude"])
def test_a_claude_that_is_missing_is_named_with_the_remedy(bench, monkeypatch, command):
    monkeypatch.setenv("PATH", str(bench.folder))
    monkeypatch.setattr(worker, "USUAL_PLACES", ())
    (bench.folder / "claude").touch(mode=0o644)
    with pytest.raises(proc.Stop, match="npm install -g @anthropic-ai/claude-code") as error:
        worker.find(command, bench.root)
    assert (command or "claude") in str(error.value).splitlines()[0]
    assert error.value.code == proc.CANNOT


@pytest.mark.parametrize(("there", "missing"), [("socat", "bubblewrap"), ("bwrap", "socat"), ("", "bubblewrap socat")])
def test_a_missing_package_of_the_sandbox_is_named(bench, monkeypatch, there, missing):
    monkeypatch.setenv("PATH", str(program(bench.folder / "programs" / there if there else bench.folder / "x").parent))
    monkeypatch.setattr(proc, "LINUX", True)
    with pytest.raises(proc.Stop, match=f"missing: {missing}\n.*sudo apt install {missing}\n") as error:
        worker.require(bench.settings, bench.root)
    assert "claude_code.sandbox: off" in str(error.value)


def test_a_sandbox_that_the_machine_forbids_is_noticed_before_the_first_session(bench, monkeypatch):
    monkeypatch.setenv("PATH", str(program(program(bench.folder / "programs" / "bwrap").with_name("socat")).parent))
    monkeypatch.setattr(proc, "LINUX", True)
    monkeypatch.setattr(sandbox, "obstacle", lambda root: "bubblewrap says: no")
    monkeypatch.setattr(sandbox, "remedy", lambda: "say yes")
    with pytest.raises(proc.Stop, match="cannot start; bubblewrap says: no\nTo fix it: say yes"):
        worker.require(bench.settings, bench.root)
    monkeypatch.setattr(sandbox, "obstacle", lambda root: "")
    worker.require(bench.settings, bench.root)
