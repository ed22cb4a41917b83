"""The loop end to end: the real command line, real git and real checks, with a scripted stand-in for claude."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import TWO_CRITERIA, WRITES_A
from bench import bench as bench
from conftest import KIT

from extras.openrouter_api import OpenRouterAPI
from waiting import MARGIN, SPREAD


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that can be observed; fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------------------
# To the end
# --------------------------------------------------------------------------------------------------------


def test_it_ends_done_only_when_every_check_passes_in_spite_of_a_lie_and_a_regression(bench, project, git):
    bench.sessions(
        [{"say": "Everything is complete, all tests pass."}],
        WRITES_A,
        [{"delete": "a"}, {"write": {"b": "2\n"}}, {"say": "b is there now"}],
        [{"write": {"a": "3\n"}}, {"say": "both"}],
    )
    done = bench.start()
    assert done.returncode == 0, done.stdout
    assert "criterion a: met -> unmet (regression" in done.stdout
    state = bench.state()
    assert (state["current_phase"], state["iterations"], state["completed_tasks"]) == ("completed", 4, ["a", "b"])
    assert [entry["iteration"] for entry in state["criteria"]["a"]["regressions"]] == [3]
    assert bench.resumed() == [False, True, True, True]
    assert len({call["cwd"] for call in bench.calls()}) == 1
    assert git(project, "branch", "--show-current") == "cco/demo"
    trailers = git(project, "log", "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)", "main..cco/demo")
    assert trailers.split() == ["4", "3", "2"]  # the first session changed nothing
    assert git(project, "log", "--format=%s", "main") == "first"
    assert git(project, "status", "--porcelain") == ""
    assert not bench.alive()


def test_a_finished_mission_says_so_and_starts_no_session(bench):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    assert bench.start().returncode == 0
    again = bench.start()
    assert (again.returncode, len(bench.calls())) == (0, 1)
    assert "done: all 2 criteria are met" in again.stdout


def test_a_boasting_worker_in_an_empty_repository_ends_with_a_question(bench, project, git):
    bench.sessions(*[[{"say": "All criteria are met. Mission completed successfully."}]] * 9)
    done = bench.start()
    assert done.returncode == 3
    assert "Is the check right, and what is the worker missing?" in done.stderr + done.stdout
    assert git(project, "log", "--format=%s") == "first"
    blocked = (project / ".cco" / "reports" / "demo.blocked.md").read_text()
    assert "Mission completed successfully" in blocked
    sessions = len(bench.calls())
    assert sessions == 8  # four on each criterion, the last two with another approach
    assert any("take another approach" in call["prompt"] for call in bench.calls())

    again = bench.start()
    assert (again.returncode, len(bench.calls())) == (3, sessions)

    (project / "a").write_text("a person helped")
    (project / "b").write_text("a person helped")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "help")
    helped = bench.start()
    assert (helped.returncode, len(bench.calls())) == (0, sessions)
    assert git(project, "log", "-1", "--format=%s") == "help"


def test_criteria_without_a_check_need_a_person_and_the_others_are_done_first(bench):
    bench.write([TWO_CRITERIA[0], {"id": "pretty", "criteria": "It is pretty"}])
    bench.sessions(WRITES_A)
    done = bench.start()
    assert done.returncode == 3
    assert "Nothing here can prove pretty" in done.stdout + done.stderr
    assert bench.state()["completed_tasks"] == ["a"]


@pytest.mark.parametrize("kind", ("unborn", "detached", "worktree"))
def test_it_works_in_every_kind_of_checkout(bench, project, git, tmp_path, kind):
    if kind == "unborn":
        bench.project = tmp_path / "empty"
        bench.project.mkdir()
        git(bench.project, "init", "-q", "-b", "main")
    elif kind == "detached":
        git(project, "checkout", "-q", "--detach")
    else:
        bench.project = tmp_path / "tree"
        git(project, "worktree", "add", "-q", "--detach", str(bench.project))
    bench.write(TWO_CRITERIA)
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    done = bench.start()
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(bench.project, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"
    assert git(bench.project, "branch", "--show-current") == "cco/demo"


def test_it_works_without_a_git_identity(bench, project, git, tmp_path):
    git(project, "config", "--unset", "user.name")
    git(project, "config", "--unset", "user.email")
    bench.environment |= {"HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": "/dev/null", "XDG_CONFIG_HOME": str(tmp_path)}
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    assert bench.start().returncode == 0
    assert git(project, "log", "-1", "--format=%an") == "CCO"


def test_what_may_not_be_committed_stays_out_and_is_named(bench, project, git):
    bench.environment["MY_SERVICE_TOKEN"] = "planted-4f9d2c77"
    bench.write(TWO_CRITERIA, settings={"claude_code": {"max_file_size": "1KB"}})
    files = {"a": "1", "b": "1", "big": "x" * 5000, "leak": "planted-4f9d2c77", ".claude/settings.json": "{}"}
    bench.sessions([{"write": files}])
    done = bench.start()
    assert done.returncode == 0
    assert git(project, "ls-tree", "-r", "--name-only", "HEAD") == "README.md\na\nb"
    for name in ("big", "leak", ".claude/settings.json"):
        assert f"not committed: {name}: " in bench.log()
    assert "planted-4f9d2c77" not in bench.log() + done.stdout


def test_background_processes_of_the_worker_are_ended_and_named(bench):
    bench.sessions([{"spawn": "sleep 1000"}, {"write": {"a": "1", "b": "1"}}])
    done = bench.start()
    assert done.returncode == 0
    assert "ended what the worker left behind: sleep 1000" in done.stdout
    assert not bench.alive()


# --------------------------------------------------------------------------------------------------------
# Not to the end
# --------------------------------------------------------------------------------------------------------


def test_uncommitted_changes_are_refused_and_named_and_nothing_is_touched(bench, project, git):
    (project / "README.md").write_text("changed")
    (project / "new file").write_text("mine")
    done = bench.start()
    assert done.returncode == 2
    assert "README.md" in done.stderr + done.stdout and "new file" in done.stderr + done.stdout
    assert git(project, "branch", "--show-current") == "main"
    assert not (project / ".cco" / "demo.json").exists() and bench.calls() == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"iterations": 2}, "limits.iterations is reached: 2 of 2"),
        ({"cost_usd": 0.001}, "limits.cost_usd is reached"),
        ({"tokens": 200}, "limits.tokens is reached"),
    ],
)
def test_a_reached_limit_ends_with_5_and_says_what_would_lift_it(bench, limits, said):
    bench.write(TWO_CRITERIA, limits=limits)
    bench.sessions(*[[{"say": "nothing done"}]] * 5)
    done = bench.start()
    assert done.returncode == 5
    assert said in done.stdout + done.stderr and "Raise it in the mission" in done.stdout + done.stderr
    sessions = len(bench.calls())
    assert bench.start().returncode == 5
    assert len(bench.calls()) == sessions


def test_what_is_left_of_the_budget_goes_to_the_worker(bench):
    bench.write(TWO_CRITERIA, limits={"cost_usd": 1.5})
    bench.sessions([{"usage": {"input_tokens": 250_000}}, {"say": "a dollar spent"}], [{"write": {"a": "1", "b": "1"}}])
    assert bench.start().returncode == 0
    caps = [next(word for word in call["argv"] if word.startswith("--max-budget-usd")) for call in bench.calls()]
    assert caps[0] == "--max-budget-usd=1.5000"
    assert float(caps[1].partition("=")[2]) < 0.51


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ({"assistant_error": "authentication_failed", "text": "Not logged in · Please run /login"}, "log in again"),
        ({"assistant_error": "billing_error", "text": "Credit balance is too low"}, "add credit"),
    ],
)
def test_what_only_a_person_can_mend_ends_with_4_and_the_remedy(bench, error, remedy):
    bench.sessions([{"error": error}], [{"write": {"a": "1", "b": "1"}}])
    done = bench.start()
    assert done.returncode == 4
    assert error["text"] in done.stdout + done.stderr and remedy in done.stdout + done.stderr
    assert bench.start().returncode == 0
    assert bench.state()["iterations"] == 1


def test_a_missing_claude_ends_with_4_before_anything_is_touched(bench, project, git):
    bench.write(TWO_CRITERIA, settings={"claude_code": {"command": "no-such-claude"}})
    done = bench.start()
    assert done.returncode == 4
    assert "no-such-claude" in done.stderr + done.stdout and "Install it" in done.stderr + done.stdout
    assert git(project, "branch", "--show-current") == "main"


def test_a_usage_limit_is_waited_for_and_is_neither_an_iteration_nor_a_stall(bench):
    reset = time.time() + 3600
    bench.sessions([{"limit": {"resetsAt": int(reset), "rateLimitType": "five_hour"}}])
    done = bench.start("--no-wait")
    assert done.returncode == 75
    state = bench.state()
    assert (state["current_phase"], state["iterations"]) == ("waiting", 1)
    assert int(reset) + MARGIN <= state["wait_until"] <= int(reset) + MARGIN + SPREAD + 5
    assert bench.start("--no-wait").returncode == 75
    assert len(bench.calls()) == 1
    status = json.loads(bench.run("status", "--json").stdout)
    assert status["wait_until"] == state["wait_until"] and status["phase"] == "waiting"

    state["wait_until"] = time.time() + 1  # the reset comes
    bench.remember(state)
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    assert bench.start().returncode == 0
    state = bench.state()
    assert (state["iterations"], state["criteria"]["a"]["stalls"]) == (1, 0)
    assert bench.resumed() == [False, True]


def test_failures_in_a_row_are_backed_off_from_for_longer_each_time(bench):
    bench.sessions([{"exit": 1}], [{"exit": 1}], [{"write": {"a": "1", "b": "1"}}])
    for longest in (30, 60):
        before = time.time()
        assert bench.start("--no-wait").returncode == 75
        state = bench.state()
        assert longest - 1 < state["wait_until"] - before < longest + 20
        state["wait_until"] = 0
        bench.remember(state)
    assert bench.start("--no-wait").returncode == 0
    assert bench.state()["iterations"] == 1


def test_a_full_context_costs_one_iteration_and_the_next_session_is_fresh(bench):
    full = {"assistant_error": "invalid_request", "text": "Prompt is too long", "terminal_reason": "prompt_too_long"}
    bench.sessions([{"write": {"a": "1"}}, {"error": full}], [{"write": {"b": "1"}}])
    assert bench.start().returncode == 0
    assert bench.resumed() == [False, False]
    assert "# Mission: A demo" in bench.calls()[1]["prompt"]
    assert bench.state()["iterations"] == 2


def test_a_lost_session_is_replaced_within_the_same_iteration(bench):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    shutil.rmtree(f"{bench.script}.sessions")
    assert bench.start().returncode == 0
    assert bench.state()["iterations"] == 2


def test_once_ends_after_one_iteration(bench):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    assert bench.state()["iterations"] == 1
    assert bench.start("--once").returncode == 0


def test_manual_mode_writes_the_instruction_and_checks_at_the_next_start(bench, project):
    bench.write(TWO_CRITERIA, settings={"claude_code": {"mode": "manual"}})
    done = bench.start()
    assert done.returncode == 75
    assert "a is there" in (project / ".cco" / "instruction.md").read_text()
    (project / "a").write_text("1")
    (project / "b").write_text("1")
    assert bench.run("start", str(bench.mission), stdin=subprocess.DEVNULL).returncode == 0


# --------------------------------------------------------------------------------------------------------
# Interrupted
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_session_ends_everything_and_the_next_start_goes_on(bench, git, project, number, code):
    bench.sessions([{"write": {"half": "1"}}, {"bash": "sleep 1000"}], [{"write": {"a": "1", "b": "1"}}])
    running = bench.begin()
    until(lambda: (project / "half").exists())
    running.send_signal(number)
    assert running.wait(20) == code, bench.output()
    assert not bench.alive()
    assert bench.state()["current_phase"] == "execution"
    done = bench.start()
    assert done.returncode == 0
    assert bench.resumed() == [False, True]
    assert bench.state()["iterations"] == 1
    assert git(project, "rev-list", "--count", "main..cco/demo") == "1"


def test_kill_9_in_mid_session_leaves_one_worker_and_loses_nothing(bench, git, project):
    bench.sessions(
        [{"spawn": "sleep 1000"}, {"write": {"half": "1"}}, {"ignore_term": True}, {"hang": True}],
        [{"write": {"a": "1", "b": "1"}}],
    )
    running = bench.begin()
    until(lambda: (project / "half").exists())
    until(lambda: len(bench.alive()) >= 2)
    running.kill()
    running.wait()
    assert bench.alive(), "kill -9 cannot clean up"
    done = bench.start()
    assert done.returncode == 0, done.stdout
    assert "processes that an earlier run left behind" in done.stdout
    assert not bench.alive()
    assert bench.resumed() == [False, True]
    assert bench.state()["iterations"] == 1
    assert git(project, "rev-list", "--count", "main..cco/demo") == "1"


def test_kill_9_after_the_commit_does_not_commit_twice(bench, git, project, tmp_path):
    place = tmp_path / "gates"
    place.mkdir()
    gate = place / "open"
    slow = {"id": "slow", "criteria": "slow", "check": f"test ! -e a || test -e '{gate}' || sleep 1000; test -e a"}
    bench.write([slow], settings={"checks": {"writable": [str(place)]}})
    bench.sessions(WRITES_A)
    running = bench.begin()
    until(lambda: "committed 1 file" in bench.output())
    until(bench.alive)
    running.kill()
    running.wait()
    gate.touch()
    assert bench.start().returncode == 0
    assert not bench.alive()
    assert len(bench.calls()) == 1
    assert git(project, "rev-list", "--count", "main..cco/demo") == "1"


def test_a_second_orchestrator_ends_at_once_with_75_and_stop_ends_the_first_after_its_session(bench, tmp_path):
    gate = tmp_path / "gate"
    bench.sessions([{"write": {"a": "1"}}, {"wait_for": str(gate)}])
    running = bench.begin()
    until(lambda: (bench.project / "a").exists())
    second = bench.start()
    assert second.returncode == 75
    assert f"pid {running.pid}" in second.stderr + second.stdout
    assert "ends after the current session" in bench.run("stop").stdout
    assert "(running)" in bench.run("status").stdout
    gate.touch()
    assert running.wait(20) == 130, bench.output()
    assert bench.state()["completed_tasks"] == ["a"]
    assert "nothing is running" in bench.run("stop").stdout


def test_a_signal_ends_a_wait(bench):
    bench.sessions([{"limit": {"resetsAt": int(time.time()) + 3600, "rateLimitType": "five_hour"}}])
    running = bench.begin()
    until(lambda: "waiting for the usage limit, until" in bench.output())
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 143
    assert bench.state()["current_phase"] == "waiting"


@pytest.mark.parametrize("damage", ("torn", "gone"))
def test_a_lost_state_is_rebuilt_from_git_and_never_overwritten(bench, project, damage):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    file = project / ".cco" / "demo.json"
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:200])
    else:
        shutil.rmtree(project / ".cco")
    done = bench.start()
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.state()["iterations"] == 2
    kept = list((project / ".cco").glob("demo.json.unreadable-*"))
    assert [len(path.read_bytes()) for path in kept] == ([200] if damage == "torn" else [])


# --------------------------------------------------------------------------------------------------------
# Edits and tampering
# --------------------------------------------------------------------------------------------------------


def test_a_persons_edit_of_the_mission_is_taken_up_at_the_next_start(bench):
    bench.sessions(WRITES_A)
    assert bench.start("--once").returncode == 75
    bench.write(TWO_CRITERIA[:1])
    done = bench.start()
    assert done.returncode == 0
    assert "the mission was edited; adopted" in done.stdout


def test_a_mission_that_the_worker_edits_is_not_adopted_without_a_persons_word(bench):
    accepted = bench.mission.read_text()
    easy = accepted.replace("test -e b", "test -e README.md")
    bench.sessions([{"write": {"a": "1", str(bench.mission): easy}}, {"say": "all done"}], [{"say": "still done"}])
    done = bench.start("--once")
    assert done.returncode == 75
    assert "the mission changed while the worker ran" in done.stdout + done.stderr
    again = bench.start("--once")
    assert again.returncode == 75
    assert "what was accepted counts" in again.stdout + again.stderr
    assert bench.state()["completed_tasks"] == ["a"]
    assert bench.start("--accept").returncode == 0


def test_settings_that_appear_while_the_worker_runs_are_not_used_without_a_persons_word(bench, project):
    bench.sessions([{"write": {".cco/config.yaml": "claude_code: {permission_mode: bypassPermissions}\n"}}])
    assert bench.start("--once").returncode == 75
    done = bench.start("--once")
    assert done.returncode == 3
    assert "changed while a worker ran. Look at it" in done.stdout + done.stderr
    (project / ".cco" / "config.yaml").unlink()
    assert bench.start("--once").returncode == 75


def test_commits_of_a_person_in_between_are_kept(bench, git, project):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    (project / "mine").write_text("1")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "mine")
    assert bench.start().returncode == 0
    assert git(project, "log", "--format=%s").splitlines()[1:] == ["mine", "a: a is there", "first"]


# --------------------------------------------------------------------------------------------------------
# The other commands, and a bad environment
# --------------------------------------------------------------------------------------------------------


def test_check_shows_the_verdicts_and_the_instruction_and_starts_nothing(bench, project, git):
    (project / "a").write_text("1")
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 0
    assert "[x]  a" in done.stdout and "[ ]  b" in done.stdout
    assert 'Make the criterion "b is there" (b) true.' in done.stdout
    assert bench.calls() == [] and git(project, "branch", "--show-current") == "main"
    assert not (project / ".cco" / "demo.json").exists()


def test_resume_needs_a_name_when_there_are_several_missions(bench, tmp_path):
    bench.sessions([{"write": {"a": "1"}}], [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    assert bench.run("resume", "--once", "--session", "nope").returncode == 2
    other = tmp_path / "other.yaml"
    other.write_text(bench.mission.read_text())
    assert bench.run("start", str(other), "--once").returncode == 0  # a and b are there, in its own branch
    several = bench.run("resume", stdin=subprocess.DEVNULL)
    assert several.returncode == 2 and "demo, other" in several.stderr
    assert bench.run("resume", "--session", "oth").returncode == 0
    listed = json.loads(bench.run("status", "--json").stdout)
    assert {entry["mission"] for entry in listed} == {"demo", "other"}


@pytest.mark.parametrize("problem", ("file", "kit", "no git", "missing"))
def test_where_nothing_can_be_done_the_error_says_what_to_do(bench, project, tmp_path, problem):
    if problem == "file":
        (project / ".cco").write_text("")
    elif problem == "kit":
        bench.project = KIT / "missions"
    elif problem == "no git":
        bench.project = tmp_path / "plain"
        bench.project.mkdir()
    bench.write(TWO_CRITERIA)
    if problem == "missing":
        bench.mission.unlink()
    done = bench.start()
    code, said = {
        "file": (4, ".cco"),
        "kit": (2, "Copy the kit as a folder"),
        "no git": (2, "git init"),
        "missing": (2, "no such file"),
    }[problem]
    assert (done.returncode, said in done.stderr + done.stdout) == (code, True), done.stderr + done.stdout


def test_a_full_standard_output_does_not_end_a_mission(bench):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    with Path("/dev/full").open("w") as full:
        done = bench.run("start", str(bench.mission), capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0


def test_status_in_a_pipe_that_closes_early_is_quiet(bench):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    bench.start()
    command = " ".join(f"'{word}'" for word in bench.command("status"))
    done = subprocess.run(["bash", "-c", f"{command} | true"], cwd=bench.project, capture_output=True, check=False)
    assert done.stderr == b""


def test_init_writes_settings_that_load_and_a_mission_and_keeps_what_is_there(bench, project):
    done = bench.run("init", "--mission", "missions/my.yaml")
    assert done.returncode == 0
    assert (project / "missions" / "my.yaml").read_text() == (KIT / "missions" / "hello.yaml").read_text()
    assert "claude_code:" in (project / ".cco" / "config.yaml").read_text()
    assert bench.run("check", "missions/my.yaml").returncode == 0
    (project / ".cco" / "config.yaml").write_text("# mine\n")
    assert "kept" in bench.run("init").stdout
    assert (project / ".cco" / "config.yaml").read_text() == "# mine\n"
    assert bench.run("init", "--mission", "x.yaml", "--template", "nope").returncode == 2


# --------------------------------------------------------------------------------------------------------
# What a strict reader tried
# --------------------------------------------------------------------------------------------------------


def test_a_git_that_cannot_add_ends_with_4_and_not_with_done(bench, project, git):
    bench.sessions([{"write": {"a": "1", "b": "1"}}, {"bash": "touch .git/index.lock"}])
    done = bench.start()
    assert done.returncode == 4
    assert "index.lock" in done.stdout + done.stderr
    (project / ".git" / "index.lock").unlink()
    assert bench.start().returncode == 0
    assert git(project, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"
    assert len(bench.calls()) == 1


def test_the_worker_of_another_mission_that_was_killed_is_ended_first(bench, tmp_path):
    bench.sessions([{"write": {"half": "1"}}, {"ignore_term": True}, {"hang": True}], [{"write": {"a": "1", "b": "1"}}])
    running = bench.begin()
    until(lambda: (bench.project / "half").exists())
    running.kill()
    running.wait()
    (bench.project / "half").unlink()
    assert bench.alive()
    other = tmp_path / "other.yaml"
    other.write_text(bench.mission.read_text())
    done = bench.run("start", str(other))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes that an earlier run left behind" in done.stdout
    assert not bench.alive()


@pytest.mark.parametrize("change", ({"id": "mine"}, {"settings": {"claude_code": {"command": "/bin/evil"}}}, "gone"))
def test_nothing_of_a_mission_that_the_worker_changed_is_used(bench, change):
    bench.sessions(WRITES_A, [{"say": "nothing"}])
    assert bench.start("--once").returncode == 75
    changed = {**json.loads(bench.mission.read_text()), **(change if isinstance(change, dict) else {})}
    steps = (
        [{"delete": str(bench.mission)}] if change == "gone" else [{"write": {str(bench.mission): json.dumps(changed)}}]
    )
    bench.sessions(steps, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    assert "the mission changed while the worker ran" in bench.log()
    done = bench.start()
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.state()["mission_id"] == "demo" and bench.state()["completed_tasks"] == ["a", "b"]


def test_keys_that_the_worker_brings_in_a_dotenv_file_are_not_used(bench, git, project):
    bench.sessions([{"write": {".env": "OPENROUTER_API_KEY=sk-or-attacker-0123456789\n"}}])
    assert bench.start("--once").returncode == 75
    done = bench.start("--once")
    assert done.returncode == 3
    assert "changed while a worker ran" in done.stdout + done.stderr
    assert ".env" not in git(project, "log", "--all", "--name-only", "--format=")


@pytest.mark.parametrize("begun", ("merge", "rebase"))
def test_a_merge_or_rebase_of_the_user_is_refused_and_left_as_it_is(bench, project, git, begun):
    for branch, text in (("other", "theirs"), ("main", "ours")):
        git(project, "checkout", "-q", *(["-b"] if branch == "other" else []), branch)
        (project / "README.md").write_text(text)
        git(project, "commit", "-qam", branch)
    subprocess.run(["git", begun, "other"], cwd=project, capture_output=True, check=False)
    (project / "README.md").write_text("ours")
    git(project, "add", "-A")
    if begun == "rebase":
        git(project, "reset", "-q", "--hard")
    before = git(project, "status")
    done = bench.start()
    assert done.returncode == 2
    assert f"in the middle of a {begun}" in done.stdout + done.stderr
    assert git(project, "status") == before


def test_a_folder_with_a_damaged_git_inside_another_repository_touches_neither(bench, project, git):
    inner = project / "inner"
    (inner / ".git").mkdir(parents=True)
    bench.project = inner
    bench.write(TWO_CRITERIA)
    done = bench.start()
    assert done.returncode == 4, done.stdout + done.stderr
    assert git(project, "branch", "--format=%(refname:short)") == "main"


def test_a_tag_named_like_the_branch_does_no_harm(bench, project, git):
    git(project, "tag", "cco/demo")
    bench.sessions([{"write": {"half": "1"}}, {"bash": "sleep 1000"}], [{"write": {"a": "1", "b": "1"}}])
    running = bench.begin()
    until(lambda: (project / "half").exists())
    running.terminate()
    assert running.wait(20) == 143
    assert bench.start().returncode == 0


def test_work_inside_a_nested_repository_is_not_done_and_is_named(bench):
    bench.write([{"id": "a", "criteria": "a", "check": "test -e sub/a"}])
    bench.sessions([{"bash": "git init -q sub"}, {"write": {"sub/a": "1"}}], [{"bash": "rm -rf sub/.git"}])
    done = bench.start()
    assert done.returncode == 0, done.stdout
    assert len(bench.calls()) == 2
    assert "sub (a repository of its own: what is inside it is not committed)" in bench.calls()[1]["prompt"]


def test_a_worker_that_removes_the_state_folder_loses_nothing(bench, project):
    bench.sessions([{"bash": "rm -rf .cco"}, {"write": {"a": "1"}}], [{"write": {"b": "1"}}])
    done = bench.start()
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.state()["iterations"] == 2


def test_a_flood_of_lines_does_not_keep_a_signal_waiting(bench, project):
    bench.sessions(
        [
            {"write": {"half": "1"}},
            {"raw": "\n", "times": 30_000_000},
            {"raw": "x\n", "times": 3_000_000},
            {"hang": True},
        ]
    )
    running = bench.begin()
    until(lambda: (project / "half").exists())
    running.terminate()
    assert running.wait(30) == 143


def test_what_a_person_changed_in_between_is_not_committed(bench, project, git):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    (project / "README.md").write_text("my own words\n")
    done = bench.start()
    assert done.returncode == 2
    assert "README.md" in done.stdout + done.stderr
    git(project, "checkout", "README.md")
    assert bench.start().returncode == 0


def test_what_the_checks_leave_in_the_tree_does_not_stop_the_next_start(bench):
    checks = [{**TWO_CRITERIA[0], "check": "date +%N > report.xml; test -e a"}, TWO_CRITERIA[1]]
    bench.write(checks)
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    assert bench.start().returncode == 0


def test_a_finished_mission_leaves_the_checkout_alone_and_its_merge_line_works(bench, project, git):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    done = bench.start()
    command = done.stdout.rpartition("to take the work: ")[2].strip()
    assert command == "git checkout main && git merge cco/demo"
    subprocess.run(["bash", "-c", command], cwd=project, check=True, capture_output=True)
    assert (project / "b").exists()
    assert bench.start().returncode == 0
    assert git(project, "branch", "--show-current") == "main"


def test_a_limit_that_is_over_and_a_session_that_is_lost_again_and_again_are_no_hot_loop(bench):
    bench.sessions([{"limit": {"resetsAt": int(time.time()) - 900, "rateLimitType": "five_hour"}}])
    assert bench.start("--no-wait").returncode == 75
    assert bench.state()["wait_until"] > time.time() + 30

    lost = {"result": {"subtype": "error_during_execution", "is_error": True, "errors": ["No conversation found"]}}
    state = bench.state()
    state["wait_until"] = 0
    bench.remember(state)
    bench.sessions(*[[{"init": False}, lost, {"exit": 1}]] * 9)
    assert bench.start("--no-wait").returncode == 75
    assert len(bench.calls()) == 3


def test_a_claude_that_crashes_three_times_is_committed_checked_and_held_against_the_limits(bench):
    bench.write(TWO_CRITERIA, limits={"iterations": 1})
    bench.sessions([{"write": {"a": "1"}}, {"exit": 1}], *[[{"exit": 1}]] * 9)
    for _ in range(3):
        assert bench.start("--no-wait").returncode == 75
        state = bench.state()
        state["wait_until"] = 0
        bench.remember(state)
    assert bench.start("--no-wait").returncode == 5
    assert bench.state()["completed_tasks"] == ["a"]


def test_a_signal_does_not_wait_for_the_manager(bench, tmp_path):
    with OpenRouterAPI([{"content": "{}", "drip": [600, 0.5]}]) as router:
        bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
        bench.write(TWO_CRITERIA, settings={"openrouter": {"base_url": router.url}})
        running = bench.begin()
        until(lambda: router.calls)
        begun = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 143, bench.output()
        assert time.monotonic() - begun < 10
    assert bench.state()["current_phase"] == "planning"


def test_stop_ends_a_wait(bench):
    bench.sessions([{"limit": {"resetsAt": int(time.time()) + 3600, "rateLimitType": "five_hour"}}])
    running = bench.begin()
    until(lambda: "waiting for the usage limit, until" in bench.output())
    assert bench.run("stop", str(bench.mission), cwd="/").returncode == 0
    assert running.wait(20) == 130


def test_manual_mode_under_cron_counts_nothing_until_something_changed(bench, project):
    bench.write(TWO_CRITERIA, settings={"claude_code": {"mode": "manual"}})
    for _ in range(6):
        assert bench.start().returncode == 75
    assert bench.state()["iterations"] == 1
    (project / "a").write_text("1")
    assert bench.start().returncode == 75
    assert (bench.state()["iterations"], bench.state()["completed_tasks"]) == (2, ["a"])


def test_check_of_a_mission_that_is_met_says_so(bench, project):
    (project / "a").write_text("1")
    (project / "b").write_text("1")
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_one_damaged_state_does_not_hide_the_other_missions(bench, project):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    assert bench.start().returncode == 0
    (project / ".cco" / "other.json").write_text("{")
    done = bench.run("status")
    assert done.returncode == 0
    assert "demo: completed" in done.stdout and "other.json: not a readable state" in done.stdout
    assert bench.run("resume", "--session", "demo").returncode == 0


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(bench, project):
    bench.sessions(WRITES_A)
    assert bench.start("--once").returncode == 75
    bench.remember({**bench.state(), "history": [{"iteration": 1, "kind": "x"}]})  # fits, but is not whole
    done = bench.start()
    assert done.returncode == 1
    assert "unexpected error: KeyError" in done.stdout + done.stderr
    assert "Traceback" in (project / ".cco" / "logs" / "error.log").read_text()


def test_closed_standard_files_do_no_harm(bench):
    bench.sessions([{"write": {"a": "1", "b": "1"}}])
    command = " ".join(f"'{word}'" for word in bench.command("start", str(bench.mission)))
    done = subprocess.run(
        ["bash", "-c", f"{command} <&- >&- 2>&-"], cwd=bench.project, env=bench.environment, check=False
    )
    assert done.returncode == 0
    assert bench.state()["current_phase"] == "completed"


# --------------------------------------------------------------------------------------------------------
# With a manager LLM
# --------------------------------------------------------------------------------------------------------


def test_the_manager_llm_decides_and_the_rules_stand_in_when_it_fails(bench, git, project):
    answer = {
        "focus": "b",
        "title": "Write b before a",
        "instruction": "Write the file b, it is the one that everything else needs.",
        "strategy": "retry_modified",
        "session": "fresh",
        "question": None,
    }
    bench.sessions([{"write": {"b": "1"}}], [{"write": {"a": "1"}}])
    bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
    nonsense = {"content": "The mission is complete. No further work is needed!"}
    with OpenRouterAPI([{"content": json.dumps(answer)}, nonsense, nonsense]) as router:
        bench.write(TWO_CRITERIA, settings={"openrouter": {"base_url": router.url}})
        done = bench.start()
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(router.calls) == 3  # what cannot be used may be mended once
    assert "everything else needs" in bench.calls()[0]["prompt"]
    assert "the manager LLM did not help, the rules decide this iteration" in done.stdout
    assert git(project, "log", "--format=%s").splitlines() == ["a: a is there", "Write b before a", "first"]
    assert bench.state()["metrics"]["api_calls_total"] == 3
    assert "planted" not in bench.log() + done.stdout
    assert not any("OPENROUTER_API_KEY" in call.get("env", []) for call in bench.calls())
