"""The loop end to end: the real command line, real git and real checks; claude is a stand-in, the LLM is on loopback.

Where a test would wait for hours, `Clocked` starts the kit with a clock that each wait puts forward.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench import KILLED, TWO_CRITERIA, WORK, WRITES_A, WRITES_B, Bench, over, said
from bench import bench as bench
from conftest import KIT, until
from tools.openrouter_api import OpenRouterAPI

from extras.claude_stand_in import cost

A, B = TWO_CRITERIA
IDLE: list[dict[str, Any]] = [{"say": "nothing done"}]
LIMITED = {"limit": {"rateLimitType": "five_hour"}}  # names no reset, so that it is an hour
OVERLOADED = {"error": {"assistant_error": "server_error", "text": "API Error: 529", "api_error_status": 529}}
FULL = {"assistant_error": "invalid_request", "text": "Prompt is too long", "terminal_reason": "prompt_too_long"}
LOST = {"result": {"subtype": "error_during_execution", "is_error": True, "errors": ["No conversation found"]}}
DOWN = {"status": 402, "body": {"error": {"code": 402, "message": "Insufficient credits"}}}
KEY = "sk-or-planted-5a7c90d1"
WAYS_UP = ["retry_modified", "retry_modified", "alternative", "alternative"]  # then it is set aside
TONE = {"id": "tone", "criteria": "the tone is friendly"}
MET = {"id": "tone", "met": True, "reason": "It is.", "quotes": [{"path": "a", "text": "a friendly word"}]}
CLOCK = """
import os, sys, time
sys.path.insert(0, {kit!r})
import llm, loop, proc, state, worker
real, file = time.time, open({folder!r} + "/skipped", "a+", buffering=1)
file.seek(0)
skipped = [float(line) for line in file]
time.time = lambda: real() + sum(skipped)
def skip(seconds):
    skipped.append(seconds)
    file.write("%r\\n" % seconds)
def pause(seconds):
    skip(9000.0 if seconds == 5.0 else seconds)  # the loop's are of 5 s, the LLM's are others
    during = {folder!r} + "/during.%d" % len(skipped)
    os.path.exists(during) and os.system("exec sh " + during)
def save(path, document, save=state.save):
    digest = save(path, document)
    with open({folder!r} + "/saves", "a") as saves:
        saves.write(path.read_text().replace("\\n", "") + "\\n")
    return digest
state.save, proc.pause = save, pause
{more}
import cco
sys.exit(cco.main(sys.argv[1:]))
"""


class Clocked:
    """A kit whose clock each wait puts forward, over all its starts, and which keeps every state that it saves."""

    def __init__(self, bench: Bench, more: str = ""):
        bench.kit = self.folder = bench.folder / "clocked"
        self.folder.mkdir()
        (self.folder / "cco.py").write_text(CLOCK.format(kit=str(KIT), folder=str(self.folder), more=more))

    def during(self, number: int, command: str) -> None:
        """In that wait the user runs this command."""
        (self.folder / f"during.{number}").write_text(command)

    def saves(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "saves").read_text().splitlines()]

    def waits(self) -> list[float]:
        """How long each wait was to take, in seconds."""
        waits = (one["wait"] for one in self.saves() if one["current_phase"] == "waiting")
        return [wait["until"] - wait["since"] for wait in waits]


def mission(bench: Bench, criteria: list[dict[str, Any]] = TWO_CRITERIA, **fields: Any) -> None:
    """Write the mission. Its checks run without a sandbox, which is quicker; its messages are kept."""
    notify = [{"command": f"cat > $(mktemp '{bench.folder}/messages/XXXXXX')"}]
    settings = {"checks": {"sandbox": False}, "notify": notify, **fields.pop("settings", {})}
    bench.write(criteria, settings=settings, **fields)


def messages(bench: Bench, *events: str) -> list[dict[str, Any]]:
    """What the user's command got, of all events or of these, by iteration and event; they are sent side by side."""
    found = [json.loads(path.read_text()) for path in (bench.folder / "messages").iterdir()]
    found.sort(key=lambda one: (one["iteration"], one["event"], one["cost_usd"]))
    return [one for one in found if not events or one["event"] in events]


def prompts(bench: Bench) -> list[str]:
    return [call["prompt"] for call in bench.calls()]


def history(bench: Bench, key: str) -> list[Any]:
    """That of each iteration in which a worker ran."""
    return [entry[key] for entry in bench.state()["history"] if entry["focus"]]


def commits(bench: Bench, git: Any) -> list[str]:
    """The iterations that have a commit, oldest first."""
    form = "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)"
    return str(git(bench.project, "log", "--reverse", form, "main..cco/demo")).split()


@pytest.fixture(autouse=True)
def watched(bench):
    """Quick checks before; afterwards no process is left, and status and report agree with the state."""
    (bench.folder / "messages").mkdir()
    mission(bench)
    yield
    left = bench.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    if (bench.project / ".cco" / "demo.json").exists():
        state, named = bench.state(), ("--session", "demo")
        shown = json.loads(bench.run("status", *named, "--json").stdout)
        assert (shown["phase"], shown["cost_usd"]) == (state["current_phase"], state["totals"]["estimated_cost"])
        assert all(shown[key] == state[key] for key in ("iterations", "branch", "commit", "tampering"))
        assert (shown["wait_until"] is None, shown["blocked"] is None) == (not state["wait"], not state["blocked"])
        assert bench.run("status", *named).stdout.startswith(f"demo: {state['current_phase']}")
        verdict = "✔ Done" if state["current_phase"] == "completed" else "✘ Not done"
        assert verdict in bench.run("report", *named).stdout


def test_each_phase_saves_the_next_one_and_what_a_restart_needs_and_each_session_is_one_commit(bench, project, git):
    clock = Clocked(bench)
    bench.sessions(IDLE, WRITES_A, WRITES_B)
    assert bench.start().returncode == 0
    saves, turn = clock.saves(), ["execution", "execution", "committing", "validation", "planning"]
    assert [one["current_phase"] for one in saves] == ["validation", "planning", *turn * 3][:-1] + ["completed"]
    planned, started, committing, validation, planning = saves[2:7]
    assert planned["plan"]["focus"] == planned["current"]["focus"] == "a" and not planned["session"]["begun"]
    assert started["session"]["begun"] and started["session"]["process"]["pid"] > 0
    assert committing["last"]["kind"] == committing["current"]["outcome"] == "ended"
    assert validation["commit"] == validation["base_commit"]  # the first session changed nothing
    assert (planning["plan"], planning["current"], planning["history"][-1]["number"]) == (None, None, 1)
    assert saves[-1]["commit"] == saves[-1]["confirmed"]["commit"] == git(project, "rev-parse", "cco/demo")
    assert bench.resumed() == [False, True, True] and {call["cwd"] for call in bench.calls()} == {str(project)}
    form = "--format=%s|%(trailers:key=CCO-Mission,valueonly,separator=)|%an"
    assert git(project, "log", form, "main..cco/demo", "-1") == "b: b is there|demo|Test"
    assert commits(bench, git) == ["2", "3"] and git(project, "log", "--format=%s", "main") == "first"
    assert git(project, "status", "--porcelain") == "" and git(project, "branch", "--show-current") == "cco/demo"


def test_a_finished_mission_leaves_the_checkout_alone_and_its_merge_line_works(bench, project, git):
    mission(bench, settings={"repository": {"branch": "feature/x"}})
    bench.sessions(WORK)
    command = bench.start().stdout.rpartition("to merge the result: ")[2].strip()
    assert command == "git checkout main && git merge feature/x"
    subprocess.run(["bash", "-c", command], cwd=project, check=True, capture_output=True)
    again = bench.start()
    assert (again.returncode, len(bench.calls())) == (0, 1) and "done: all 2 criteria are met" in again.stdout
    assert git(project, "branch", "--show-current") == "main" and (project / "b").exists()


def test_by_hand_the_user_carries_out_the_instruction_and_nothing_is_counted_until_something_changed(bench, project):
    mission(bench, settings={"claude_code": {"mode": "manual"}})
    for _ in range(3):
        assert (bench.start().returncode, bench.state()["iterations"]) == (75, 1)
    assert "a is there" in (project / ".cco" / "instruction.md").read_text()
    (project / "a").write_text("1")
    assert bench.start().returncode == 75
    assert (bench.state()["iterations"], bench.state()["completed_tasks"], bench.calls()) == (2, ["a"], [])
    (project / "b").write_text("1")
    assert bench.start().returncode == 0


# --- Limits, and how a session may end -----------------------------------------------------------------


def test_a_usage_limit_is_waited_for_and_is_neither_an_iteration_nor_a_stall(bench):
    reset = int(time.time()) + 3600
    bench.sessions([*WRITES_A[:1], {"limit": {"resetsAt": reset, "rateLimitType": "five_hour"}}], WORK)
    done = bench.start("--no-wait")
    assert done.returncode == 75 and "waiting for the usage limit, until" in said(done)
    wait = bench.state()["wait"]
    assert reset + 60 <= wait["until"] <= reset + 125  # a minute more, and up to one by chance
    assert bench.start("--no-wait").returncode == 75
    assert (bench.state()["wait"], bench.state()["current_phase"], len(bench.calls())) == (wait, "waiting", 1)
    over(bench)
    assert bench.start("--no-wait").returncode == 0
    assert (history(bench, "number"), bench.resumed()) == ([1], [False, True])
    assert history(bench, "cost_usd") == [pytest.approx(bench.state()["totals"]["estimated_cost"], abs=1e-4)]


def test_where_only_one_model_is_limited_another_goes_on_and_then_the_first_reset_is_waited_for(bench):
    clock, now = Clocked(bench), int(time.time())
    opus = {"limit": {"resetsAt": now + 5 * 3600, "rateLimitType": "seven_day_opus"}}
    sonnet = {"limit": {"resetsAt": now + 9 * 3600, "rateLimitType": "seven_day_sonnet"}}
    mission(bench, [A], settings={"claude_code": {"model": "sonnet", "models": {"strong": "opus"}, "fallbacks": []}})
    bench.sessions(IDLE, IDLE, [opus], [sonnet], WRITES_A)
    done = bench.start()
    assert done.returncode == 0 and "waiting for the usage limit of each model" in done.stdout, said(done)
    models = re.findall("--model=([a-z]+)", json.dumps([call["argv"] for call in bench.calls()]))
    assert models == ["sonnet", "sonnet", "opus", "sonnet", "opus"]  # the strong one after two stalls
    assert len(clock.waits()) == 1 and 4 * 3600 < clock.waits()[0] < 6 * 3600


def test_a_limit_that_is_old_news_is_backed_off_from_and_the_user_is_notified_once(bench):
    clock = Clocked(bench)
    event = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": int(time.time()) - 900}}
    stale = {"error": {"assistant_error": "rate_limit", "text": "You've hit your session limit"}}
    bench.sessions(*[[{"event": event}, stale]] * 6, WORK)
    assert bench.start().returncode == 0
    assert len(clock.waits()) == 6 and clock.waits()[0] < 150 and clock.waits()[-1] >= 600
    assert [one["event"] for one in messages(bench, "limit", "limit_over")] == ["limit", "limit_over"]


def test_a_claude_that_crashes_again_and_again_is_committed_checked_and_held_against_the_limits(bench, git):
    clock = Clocked(bench)
    mission(bench, settings={"orchestrator": {"max_iterations": 1}})
    bench.sessions([*WRITES_A[:1], {"exit": 1}], [{"init": False}, {"signal": 9}], *[[{"exit": 0}]] * 9)
    done = bench.start()
    assert done.returncode == 5 and "orchestrator.max_iterations is reached: 1 of 1" in said(done)
    assert "Raise it in the settings and start again" in said(done)
    assert [round(wait / 31.5) for wait in clock.waits()] == [1, 2, 4] and len(bench.calls()) == 4
    assert (bench.state()["completed_tasks"], commits(bench, git), bench.state()["session"]) == (["a"], ["1"], None)


def test_after_a_full_context_a_worker_that_knows_nothing_is_told_how_far_it_came(bench):
    bench.sessions([*WRITES_A[:1], {"say": "I tried the long way."}, {"error": FULL}], WRITES_B)
    assert bench.start().returncode == 0
    assert (bench.resumed(), bench.state()["iterations"]) == ([False, False], 2)
    told = ("# Mission: A demo", "[met]", "1: a (retry_modified): context_full", "I tried the long way.")
    assert all(part in prompts(bench)[1] for part in told), prompts(bench)[1]


def test_a_lost_session_is_replaced_one_whose_id_is_in_use_is_resumed_and_neither_is_a_hot_loop(bench):
    bench.sessions(WRITES_A, [{"say": "no"}, LIMITED], WRITES_B)
    assert bench.start("--once").returncode == 75
    shutil.rmtree(f"{bench.script}.sessions")
    assert bench.start("--no-wait").returncode == 75
    assert bench.resumed() == [False, True, False]  # the second one was lost
    over(bench)
    begun = {**bench.state()["session"], "begun": False}  # as a kit that was killed had saved it
    bench.save({**bench.state(), "session": begun})
    assert bench.start("--no-wait").returncode == 0
    assert (bench.state()["iterations"], bench.resumed()[3:]) == (2, [False, True])
    mission(bench, [*TWO_CRITERIA, {"id": "c", "criteria": "c is there", "check": "test -e c"}])
    bench.sessions(*[[{"init": False}, LOST, {"exit": 1}]] * 9)
    assert bench.start("--no-wait").returncode == 75
    assert len(bench.calls()) <= 5 + 4 and bench.state()["wait"]["kind"] == "failure"


def test_a_session_that_ends_at_its_turn_cap_or_in_time_is_committed_checked_paid_for_and_goes_on(bench, git):
    mission(bench, settings={"claude_code": {"max_turns": 2, "timeout": 3}})
    dear = [{"usage": {"input_tokens": 200_000}}, {"write": {"x": "2"}}, {"hang": True}]
    bench.sessions([*WRITES_A[:1], {"write": {"x": "1"}}, {"write": {"y": "1"}}], dear, WRITES_B)
    assert bench.start().returncode == 0
    assert (history(bench, "outcome"), bench.resumed()) == (["turn_cap", "timeout", "ended"], [False, True, True])
    assert commits(bench, git) == ["1", "2", "3"] and history(bench, "cost_usd")[1] >= 0.8


def test_what_only_the_user_can_fix_ends_with_4_and_the_remedy_and_one_message(bench):
    login = ("authentication_failed", "Not logged in", "log in again")
    credit = ("billing_error", "Credit balance is too low", "add credit")
    sessions = [
        [{"error": {"assistant_error": kind, "text": f"{text} (request {number})"}}]
        for number, (kind, text, _) in enumerate([login, login, credit, credit], 11)
    ]
    bench.sessions(*sessions, WRITES_A, sessions[-1], WRITES_B)
    for number, (_, text, remedy) in enumerate([login, login, credit, credit], 1):
        done = bench.start()
        assert (done.returncode, len(bench.calls())) == (4, number) and text in said(done) and remedy in said(done)
        assert f"stopped: session failed: {text}" in bench.run("status").stdout
    assert (len(messages(bench)), bench.state()["iterations"]) == (2, 1)  # of two like ones one
    assert [bench.start().returncode for _ in range(2)] == [4, 0]  # after a session that worked it is news again
    assert (len(messages(bench, "failed")), bench.state()["iterations"]) == (3, 2)


def test_a_budget_is_warned_of_once_a_step_ends_with_5_and_goes_on_when_the_user_raises_it(bench):
    mission(bench, limits={"cost_usd": 1})
    turns = zip((0.25, 0.3, 0.2, 0.4), (WRITES_A[:1], [], [], WRITES_B), strict=True)  # one more than tool calls
    bench.sessions(*[[{"usage": {"input_tokens": int(usd * 250_000), "output_tokens": 0}}, *do] for usd, do in turns])
    for _ in range(2):  # the second one has no news, and pays for nothing
        done = bench.start("--no-wait")
        assert (done.returncode, len(bench.calls())) == (5, 3)
        assert "limits.cost_usd is reached: 1.0 of 1. Raise it in the mission and start again" in said(done)
        lines = [f"{step} % of limits.cost_usd is used: {step / 100} of 1" for step in (50, 80, 100)]
        assert [one["text"] for one in messages(bench, "budget")] == lines
    assert "stopped: limits.cost_usd is reached" in bench.run("status").stdout
    caps = [next(word for word in call["argv"] if word.startswith("--max-budget-usd")) for call in bench.calls()]
    assert [float(cap.partition("=")[2]) for cap in caps] == pytest.approx([1, 0.5, 0.2])
    mission(bench, limits={"cost_usd": 2})
    assert bench.start().returncode == 0
    assert [one["text"] for one in messages(bench, "budget")[3:]] == ["80 % of limits.cost_usd is used: 1.8 of 2"]


def test_what_a_session_did_before_its_limits_were_used_up_is_checked_and_no_further_one_is_paid_for(bench):
    mission(bench, limits={"tokens": 100})
    bench.sessions([*WORK, LIMITED], IDLE)
    assert bench.start("--no-wait").returncode == 75
    over(bench)
    assert (bench.start("--no-wait").returncode, len(bench.calls())) == (0, 1)


# --- The ladder, and the question ----------------------------------------------------------------------


def test_a_mission_that_is_stuck_asks_once_and_a_note_makes_it_go_on(bench, project):
    mission(bench, [{**A, "check": "test -e a || { echo 'there is no a'; false; }"}])
    bench.sessions(*[[{"say": "I have no idea."}]] * 6, WRITES_A)
    for _ in range(3):
        done = bench.start()
        assert (done.returncode, len(bench.calls())) == (3, 6) and "what is the worker missing?" in said(done)
    assert len(done.stdout.splitlines()) <= 3  # cron says little
    assert (history(bench, "strategy"), bench.resumed()) == ([*WAYS_UP, *WAYS_UP[2:]], [False, True, *[False] * 4])
    assert "take another approach" in prompts(bench)[3]
    question = bench.state()["blocked"]["question"]
    asked = (project / ".cco" / "reports" / "demo.blocked.md").read_text()
    for part in ("what is the worker missing?", "there is no a", "I have no idea.", "tell SESSION=demo TEXT="):
        assert part in asked, part
    stalled, blocked = messages(bench)
    assert (blocked["event"], blocked["question"], stalled["event"]) == ("blocked", question, "stalled")
    assert "nothing is running: start it" in bench.run("tell", "the file is called a").stdout
    done = bench.start()
    assert (done.returncode, len(bench.calls())) == (0, 7), said(done)
    assert "something changed since the question was asked: checking again" in said(done)
    assert "the file is called a" in prompts(bench)[6]


@pytest.mark.parametrize("by", ("an edit of the mission", "a commit"))
def test_what_is_stuck_is_set_aside_for_others_tried_once_more_and_asked_about(bench, project, git, by):
    bench.sessions(*[IDLE] * 4, WRITES_B, *[IDLE] * 2)
    assert bench.start().returncode == 3
    ways = [*(("a", way) for way in WAYS_UP), ("b", "partial"), *[("a", "alternative")] * 2]
    assert [*zip(history(bench, "focus"), history(bench, "strategy"), strict=True)] == ways
    if by == "a commit":
        (project / "a").write_text("the user helped")
        git(project, "add", "a")
        git(project, "commit", "-qm", "help")
    else:
        mission(bench, [{**A, "check": "test -e b"}, B])
    done = bench.start()
    assert (done.returncode, len(bench.calls())) == (0, 7), said(done)


# --- The manager LLM -----------------------------------------------------------------------------------

ANSWER = {"focus": "a", "title": "Go on", "instruction": "Write the files that are missing.", "session": "resume"}
ANSWER |= {"strategy": "retry_modified", "question": None, "tier": None, "encouragement": None}
DOUBT = {"strategy": "escalate", "question": "Is there a disk at all?"}


def answer(**changed: Any) -> str:
    """A plan of the LLM that can be carried out, but for what is changed."""
    return json.dumps({**ANSWER, **changed})


def managed(bench: Bench, url: str, criteria: list[dict[str, Any]] = TWO_CRITERIA, **settings: Any) -> None:
    """From here on the LLM at this address plans and judges."""
    bench.environment["OPENROUTER_API_KEY"] = KEY
    mission(bench, criteria, settings={"openrouter": {"base_url": url, **settings.pop("openrouter", {})}, **settings})


def deciders(bench: Bench) -> str:
    """Who planned each iteration: r for the rules, L for the LLM."""
    return "".join("r" if by == "rules" else "L" for by in history(bench, "decided_by"))


def test_the_manager_llm_decides_and_the_rules_stand_in_for_what_cannot_be_used(bench, git, project):
    plan = answer(focus="b", title="Write b before a", instruction="Write b, all else needs it.", session="fresh")
    free = {"choices": [{"message": {"content": answer()}, "finish_reason": "stop"}]}  # does not say what it cost
    bench.sessions(WRITES_B, IDLE, WRITES_A)
    with OpenRouterAPI([{"content": plan}, *[{"content": "All is done!"}] * 2, {"body": free}], models=[]) as router:
        managed(bench, router.url)
        done = bench.start()
        assert done.returncode == 0 and len(router.calls) == 4, said(done)  # one answer may be repaired, once
    assert "Write b, all else needs it." in prompts(bench)[0] and deciders(bench) == "LrL"
    assert "the manager LLM gave no plan, the rules decide this iteration" in done.stdout
    assert git(project, "log", "--format=%s").splitlines() == ["Go on", "Write b before a", "first"]
    totals = bench.state()["totals"]
    assert (totals["api_calls_total"], totals["calls_of_unknown_cost"], totals["manager_cost"]) == (4, 1, 0.03)
    assert "answers of unknown cost: 1" in done.stdout
    assert KEY not in bench.log() + done.stdout and "OPENROUTER_API_KEY" not in bench.calls()[0]["env"]


def test_a_manager_that_cannot_be_reached_is_left_alone_for_a_while(bench):
    bench.sessions(IDLE, IDLE, WORK)
    with OpenRouterAPI([DOWN, {"content": answer(focus="b")}]) as router:
        managed(bench, router.url)
        for _ in range(2):
            assert (bench.start("--once").returncode, len(router.calls)) == (75, 1)
        known = {"manager": {**bench.state()["asked"]["manager"], "until": 0}}
        bench.save({**bench.state(), "asked": known})
        assert bench.start().returncode == 0
        assert (len(router.calls), bench.state()["asked"], deciders(bench)) == (2, {}, "rrL")


@pytest.mark.parametrize("how", ("a note", "settings"))
def test_an_answer_that_comes_while_the_manager_still_thinks_counts(bench, project, how):
    asked: list[Any] = []

    def think(request: Any) -> str:
        asked.append(request)
        if len(asked) == 2 and how == "settings":
            (project / ".cco" / "config.yaml").write_text("claude_code: {max_turns: 77}\n")
        elif len(asked) == 2:
            assert bench.run("tell", "the file is called a").returncode == 0
        return answer(instruction=f"Take {len(asked)}.", **DOUBT if len(asked) < 3 else {})

    bench.sessions(IDLE, WORK)
    with OpenRouterAPI(content=think) as router:
        managed(bench, router.url)
        assert bench.start().returncode == 0
    assert not bench.state()["tampering"] and len(bench.calls()) == 2
    assert ("--max-turns=77" in bench.calls()[1]["argv"]) == (how == "settings")
    assert ("the file is called a" in prompts(bench)[1]) == (how == "a note")


@pytest.mark.parametrize("returns", (True, False), ids=("returns", "never"))
def test_a_judge_that_cannot_be_asked_is_waited_for_and_only_when_that_lasts_the_user_is_asked(bench, returns):
    clock = Clocked(bench)
    steps = [DOWN, DOWN, *[{"content": "It is fine."}] * 2]  # it is asked to repair its answer
    bench.sessions([{"write": {"a": "a friendly word\n"}}])
    with OpenRouterAPI(steps, lambda _: json.dumps({"files": [], "verdicts": [MET]}) if returns else "Fine.") as router:
        managed(bench, router.url, [A, TONE], manager={"when": "never"})
        done = bench.start()
    assert (done.returncode, len(bench.calls())) == (0 if returns else 3, 1), said(done)
    assert len(clock.waits()) == (3 if returns else 11) and "waiting for the judge to answer" in done.stdout
    assert (bool(messages(bench, "blocked")), "Nothing here can prove tone" in said(done)) == (not returns, not returns)


# --- Stop, resume, notes and edits ---------------------------------------------------------------------


def test_stop_once_ends_it_after_the_session_and_resume_goes_on(bench, git, tmp_path):
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    kit = bench.begin()
    until((bench.project / "a").exists, "the first session's work")
    assert "(running)" in bench.run("status").stdout
    assert "mission demo ends after the current session" in bench.run("stop", str(bench.mission), cwd="/").stdout
    assert kit.poll() is None
    (tmp_path / "go").touch()
    assert kit.wait(60) == 130 and "stopped as asked" in bench.output(), bench.output()
    assert (bench.state()["completed_tasks"], bench.state()["current_phase"]) == (["a"], "planning")
    assert "nothing is running here" in bench.run("stop").stdout
    for _ in range(2):  # cron starts nothing until the user does
        tick = bench.start("--no-wait")
        assert (tick.returncode, len(bench.calls())) == (75, 1) and "stopped as asked (make stop)" in said(tick)
    assert bench.run("resume").returncode == 0
    assert commits(bench, git) == ["1", "2"]


def test_stop_twice_ends_it_at_once_and_the_next_start_goes_on_in_the_same_session(bench, git):
    bench.sessions([*WRITES_A[:1], {"hang": True}], WRITES_B)
    kit = bench.begin()
    until((bench.project / "a").exists, "the first session's work")
    assert "ask once more to end it now" in bench.run("stop").stdout
    assert "ends now; the next start goes on with it" in bench.run("stop").stdout
    assert kit.wait(60) == 130 and not bench.alive(), bench.output()
    assert (bench.state()["current_phase"], bench.state()["iterations"]) == ("execution", 1)
    assert bench.start().returncode == 0
    assert (bench.state()["iterations"], bench.resumed(), commits(bench, git)) == (1, [False, True], ["1"])


def test_stop_ends_a_wait_and_what_was_edited_in_it_is_taken_up_by_the_next_start(bench, project):
    before, new = bench.mission.read_text(), bench.folder / "new"
    mission(bench, [B])
    bench.mission.rename(new)
    bench.mission.write_text(before)
    Clocked(bench).during(1, f"mv '{new}' '{bench.mission}'; touch '{project}/.cco/stop'")
    bench.sessions([IDLE[0], {"limit": {"resetsAt": int(time.time()) + 36000}}], WRITES_B)
    assert (bench.start().returncode, bench.state()["current_phase"]) == (130, "waiting")
    done = bench.start()
    assert done.returncode == 0 and "the mission was edited and is adopted" in done.stdout, said(done)
    assert "test -e a" in done.stdout and "a is there" not in prompts(bench)[1]  # that plan has ended
    assert (bench.state()["tampering"], [*bench.state()["criteria"]]) == ([], ["b"])


def test_a_note_that_is_left_while_a_session_runs_is_in_the_next_instruction_and_in_no_other(bench, tmp_path):
    tell, refused = shlex.join(bench.command("tell", "the worker talks to itself")), tmp_path / "refused"
    by_worker = {"bash": f"{tell} > '{refused}' 2>&1; echo $? >> '{refused}'; mv '{refused}' '{refused} and told'"}
    bench.sessions([by_worker, {"wait_for": str(tmp_path / "go")}], WRITES_A, WRITES_B)
    kit = bench.begin()
    until((tmp_path / "refused and told").exists, "the refusal")
    assert re.search(r"only the user can do that\n2\n$", (tmp_path / "refused and told").read_text())
    assert bench.run("tell", "use the staging database").returncode == 0
    assert "note (waits for the next instruction): use the staging database" in bench.run("status").stdout
    (tmp_path / "go").touch()
    assert kit.wait(60) == 0, bench.output()
    assert ["use the staging database" in prompt for prompt in prompts(bench)] == [False, True, False]
    assert "From the user who runs this mission:\nuse the staging database" in prompts(bench)[1]
    assert "talks to itself" not in "".join(prompts(bench)) and bench.run("tell", "too late").returncode == 2


def test_where_there_are_several_missions_they_have_to_be_named(bench, tmp_path):
    other = shutil.copy(bench.mission, tmp_path / "other.yaml")
    bench.sessions(WRITES_A, IDLE, WRITES_A, IDLE)
    assert bench.start("--once").returncode == 75
    assert bench.run("start", str(other), "--once").returncode == 75
    for command in ("resume", "start", "report", "tell x"):
        refused = bench.run(*command.split())
        assert refused.returncode == 2 and "which mission?" in said(refused) and "other" in said(refused), command
    assert bench.run("tell", "--session", "oth", "for the other one").returncode == 0
    resumed = (bench.run("resume", "--once", "--session", name) for name in ("no", "oth", "demo"))
    assert [done.returncode for done in resumed] == [2, 75, 75]
    assert ["for the other one" in prompt for prompt in prompts(bench)] == [False, False, True, False]
    assert {one["mission"] for one in json.loads(bench.run("status", "--json").stdout)} == {"demo", "other"}


def test_what_the_user_edits_during_waits_is_taken_up_by_starting_over_and_what_is_broken_is_named_once(bench, project):
    clock, config, before = Clocked(bench), project / ".cco" / "config.yaml", json.loads(bench.mission.read_text())
    clock.during(1, shlex.join([sys.executable, str(KIT / "cco.py"), "tell", "mind the gap"]))
    clock.during(2, f"echo 'claude_code: {{max_turns: 77}}' > '{config}'")
    clock.during(3, f"echo 'title: [' > '{bench.mission}'")
    clock.during(5, f"cp '{bench.folder}/new' '{bench.mission}'")
    (bench.folder / "new").write_text(json.dumps({**before, "constraints": ["no Perl"]}, indent=1))
    bench.sessions(*[[LIMITED]] * 5, WORK)
    done = bench.start("--accept")  # which counts for what was there at the start
    assert done.returncode == 0, said(done)
    assert len(re.findall("the (?:settings|mission) (?:was|were) edited and", done.stdout)) == 2
    assert said(done).count("an edit cannot be used yet, what was accepted counts:") == 1
    assert '+ "constraints": [' in done.stdout  # the lines that differ are shown
    assert (bench.state()["tampering"], messages(bench, "failed", "tampering")) == ([], [])
    assert ["mind the gap" in prompt for prompt in prompts(bench)] == [False, *[True] * 4, False]  # until one has ended
    assert ["--max-turns=77" in call["argv"] for call in bench.calls()] == [False, False, *[True] * 4]
    assert bench.resumed() == [False, *[True] * 5]
    assert bench.state()["iterations"] == 2  # what the first one did is checked by the mission as it is now


def test_each_milestone_is_one_message_in_json_to_the_users_command(bench, project):
    Clocked(bench)
    mission(bench, protect=["README.md"])
    first = [{"append": {"README.md": "the worker was here\n"}}, *WRITES_A]
    bench.sessions(first, [{"delete": "a"}, *WRITES_B], [LIMITED], WRITES_A)
    assert bench.start().returncode == 0
    assert [f"{one['iteration']} {one['event']}" for one in messages(bench)] == [
        "1 criterion_met", "1 tampering", "2 criterion_met", "2 regression", "3 criterion_met", "3 done", "3 limit",
        "3 limit_over",
    ]  # fmt: skip
    met, tampering, _, regression, _, done, limit, goes_on = messages(bench)
    assert met["text"] == "a is met: a is there" and "README.md" in tampering["text"]
    assert regression["text"].startswith("a was met and is not any more: broken in iteration 2, commit ")
    assert "You've hit your 5-hour limit" in limit["text"] and limit["wait_until"] > time.time()
    assert "iteration 3 goes on" in goes_on["text"]
    assert (done["mission"], done["title"], done["repository"]) == ("demo", "A demo", str(project))
    assert (done["met"], done["total"], done["question"]) == (2, 2, None) and "git merge cco/demo" in done["text"]
    assert done["cost_usd"] == bench.state()["totals"]["estimated_cost"]
    assert (bench.start().returncode, len(messages(bench))) == (0, 8)


def test_what_met_a_criterion_that_was_hard_is_a_lesson_for_a_later_mission(bench, project, git):
    (project / "reason").write_text("ImportError: cannot load libfrobnicate, symbol frob_init is undefined\n")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "reason")
    mission(bench, [{"id": "lib", "criteria": "the library loads", "check": "test -e lib || { cat reason; false; }"}])
    resolved, work = "The linker needed -lfrob before -lm.", {"write": {"lib": "1"}}
    bench.sessions([{"say": "hm"}], [{"say": "hm again"}], [work, {"say": resolved}], [work])
    assert bench.start().returncode == 0
    (lesson,) = (project / ".cco" / "lessons.jsonl").read_text().splitlines()
    assert resolved in json.loads(lesson)["resolved"]
    git(project, "checkout", "-q", "main")
    other = shutil.copy(bench.mission, bench.mission.with_name("other.yaml"))
    assert bench.run("start", str(other)).returncode == 0
    assert [resolved in prompt for prompt in prompts(bench)] == [False, False, False, True]


def test_a_week_of_limits_power_cuts_and_a_night_offline_ends_done_and_its_log_reads_like_a_story(bench, git):
    mission(bench, [{"id": f"p{n}", "criteria": f"part {n} is there", "check": f"test -e p{n}"} for n in range(4)])
    Clocked(bench).during(9, "kill -9 $PPID")  # the other one comes in the middle of a session
    notes, kill = {"append": {"notes": "x\n"}}, {"bash": "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat) $PPID"}
    windows = [[notes, LIMITED]] * 6
    parts = [[{"write": {f"p{n}": "1"}}] for n in range(4)]
    week = [*windows, parts[0], *windows, *[[OVERLOADED]] * 20, parts[1], *windows, [notes, kill], parts[2], *windows]
    bench.sessions(*week, parts[3])
    assert [bench.start().returncode for _ in range(3)] == [KILLED, KILLED, 0], bench.log()[-3000:]
    state, lines = bench.state(), [json.loads(line) for line in bench.log().splitlines()]
    assert (state["iterations"], len(state["completed_tasks"]), commits(bench, git)) == (4, 4, ["1", "2", "3", "4"])
    books = (cost(json.loads(book.read_text())) for book in Path(f"{bench.script}.sessions").iterdir())
    assert state["totals"]["estimated_cost"] == pytest.approx(sum(books), abs=1e-4)
    (message,) = messages(bench, "failed")
    assert "5 times in a row" in message["text"] and "API Error: 529" in message["text"]
    assert len(bench.calls()) == len(week) + 1 and not any(one["stalls"] for one in state["criteria"].values())
    when = [line["ts"] for line in lines]
    assert when == sorted(when) and not [line["msg"] for line in lines if line["level"] == "ERROR"]
    begins = ("the usage limit is over", "waiting for the service to answer again", "mission demo goes on in iteration")
    assert [sum(line["msg"].startswith(begin) for line in lines) for begin in begins] == [24, 20, 2]


def test_init_keeps_what_is_there_and_check_shows_the_verdicts_and_starts_nothing(bench, project, git):
    assert bench.run("init", "--mission", "missions/my.yaml").returncode == 0
    assert (project / ".cco" / "config.yaml").exists() and (project / "missions" / "my.yaml").exists()
    (project / ".cco" / "config.yaml").write_text("# mine\n")
    assert "exists" in bench.run("init").stdout and (project / ".cco" / "config.yaml").read_text() == "# mine\n"
    (project / "a").write_text("1")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "mine")
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 0 and "ready: make start MISSION=" in done.stdout, said(done)
    assert re.search(r"^\[x\]  a  ", done.stdout, re.M) and re.search(r"^\[ \]  b  ", done.stdout, re.M)
    assert git(project, "branch", "--show-current") == "main" and not (project / ".cco" / "demo.json").exists()


def test_check_says_that_setup_fails_in_a_clean_checkout_and_refuses_a_claude_without_login(bench, project, git):
    (project / ".gitignore").write_text("local\n")
    (project / "local").touch()  # so that setup works here, and nowhere else
    git(project, "add", "-A")
    git(project, "commit", "-qm", "ignore")
    mission(bench, TWO_CRITERIA, setup="echo no compiler here; test -e local")
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 0 and "`setup` fails in a clean checkout (unmet):\nno compiler here" in done.stdout
    program = bench.folder / "claude"
    program.write_text("""#!/bin/sh\n[ "$*" = "auth status" ] && echo '{"loggedIn": false}'\nexit 1\n""")
    program.chmod(0o755)
    mission(bench, TWO_CRITERIA, settings={"claude_code": {"command": str(program)}})
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 4 and "not logged in" in said(done) and "log in again" in said(done)
    mission(bench, TWO_CRITERIA, settings={"claude_code": {"command": str(program), "mode": "manual"}})
    assert bench.run("check", str(bench.mission)).returncode == 0
    assert not (project / ".cco" / "demo.json").exists() and not bench.calls()


def test_a_branch_that_is_in_the_way_is_named_with_the_remedy(bench, project, git):
    for other in ("cco", "cco/demo/x"):
        git(project, "branch", other)
        for command in ("check", "start"):
            done = bench.run(command, str(bench.mission))
            assert done.returncode == 2 and f"git branch -m {other} another-name, or set repository.branch" in said(
                done
            )
        git(project, "branch", "-D", other)
    assert (git(project, "branch", "--show-current"), bench.calls()) == ("main", [])


def test_check_leaves_alone_what_the_session_under_way_has_not_committed_yet(bench, project):
    bench.sessions([*WRITES_A, {"limit": {"resetsAt": int(time.time()) + 7200}}])
    assert bench.start("--no-wait").returncode == 75
    done = bench.run("check", str(bench.mission))
    assert done.returncode == 0 and "iteration 1 is under way" in done.stdout, said(done)
    assert (project / "a").exists() and bench.state()["current_phase"] == "waiting"


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(bench, project):
    Clocked(bench, "def decide(*args):\n    raise KeyError('odd')\nloop.manager.decide = decide")
    done = bench.start()
    assert done.returncode == 1 and "unexpected error: KeyError: 'odd'" in said(done)
    assert "Traceback" in (project / ".cco" / "logs" / "error.log").read_text()


def test_a_kit_that_is_a_clone_means_the_repository_around_it_and_a_named_mission_is_the_one_shown(bench, project, git):
    bench.kit = project / "kit"
    shutil.copytree(KIT, bench.kit, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "node_modules"))
    git(bench.kit, "init", "-q")
    assert bench.run("init", "--mission", "../mission.yaml", cwd=bench.kit).returncode == 0
    assert (project / ".cco" / "config.yaml").exists() and not (bench.kit / ".cco").exists()
    git(project, "add", "mission.yaml")
    git(project, "commit", "-qm", "a mission")
    bench.sessions(WRITES_A, WRITES_A)
    assert bench.start("--once").returncode == 75
    other = bench.mission.with_name("other.json")
    other.write_text(bench.mission.read_text().replace('"demo"', '"other"'))
    assert bench.run("start", "--once", str(other)).returncode == 75
    assert len(json.loads(bench.run("status", "--json", cwd=bench.kit).stdout)) == 2
    assert json.loads(bench.run("status", str(other), "--json").stdout)["mission"] == "other"


def test_a_mission_in_the_repository_of_the_kit_is_refused(bench, git):
    bench.kit = bench.project = bench.folder / "kit"
    shutil.copytree(KIT, bench.kit, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "node_modules"))
    git(bench.kit, "init", "-q")
    mission(bench)
    done = bench.start()
    assert done.returncode == 2 and "Copy the kit as a folder into your repository" in said(done)
