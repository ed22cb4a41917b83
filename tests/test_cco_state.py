"""The state: what is read is what was written, what follows from it, the lock, and the notes and lessons beside it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT

import log
import proc
import prompt
import state as states
from mission import Limits, Mission, parse
from state import Outcome, Plan, State, Usage, Verdict

SECRET = "Zk9-planted+value/4711=="
PLAN = Plan("a", "Work", "Do it.")


def mission_of(*ids: str, **more: Any) -> Mission:
    criteria = [{"id": id, "criteria": f"{id} works", "check": f"make {id}"} for id in ids]
    document = {"title": "A mission", "repository": "/a/project", "definition_of_done": criteria, **more}
    return parse(json.dumps(document), Path("/a/project/api.json"))


def new(*ids: str) -> State:
    made = State("api", "/a/project", "/a/project/api.json", "", commit="c0ffee0123456789")
    made.adopt(mission_of(*(ids or ("a",))))
    return made


def see(known: State, *failures: str, **more: Any) -> list[str]:
    """Record what the checks say of each criterion: "" is met, else its failure."""
    ids = zip(known.criteria, failures, strict=True)
    return known.record_results({id: Verdict(id, "unmet" if f else "met", failure=f, runs=1, **more) for id, f in ids})


def iterate(known: State, focus: str, *failures: str, text: str = "Do it.", **outcome: Any) -> Any:
    """One iteration on a criterion; return the false claims."""
    known.record_plan(Plan(focus, "Work", text))
    known.begin_iteration()
    known.record_outcome(Outcome(**{"kind": "ended", **outcome}))
    known.current.commit = known.commit[:12]
    see(known, *failures)
    return known.finish_iteration({})


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "api.json"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, to be set; waits are not lengthened by chance."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    return now


def test_the_file_is_ascii_its_owners_alone_and_masked_but_for_what_a_start_needs(path, fresh_mask):
    log.register_secret(SECRET)
    known = new()
    known.mission_text, known.blocked = f"the password is {SECRET}", {"question": f"is it {SECRET}? ä", "seen": ""}
    path.symlink_to("elsewhere")
    digest = states.save(path, known)
    content = path.read_bytes()
    assert content.isascii() and content.startswith(b'{\n"version": 5,\n')
    assert digest == hashlib.sha256(content).hexdigest()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600 and [*path.parent.iterdir()] == [path]
    loaded = states.load(path)
    assert (loaded.mission_text, loaded.blocked) == (known.mission_text, {"question": "is it ***? ä", "seen": ""})


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new_state(path, monkeypatch, error):
    def failing(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == nth:
                raise error
            return real(*args, **kwargs)

        return call

    known, calls, steps = new(), list[str](), ["open", "fsync", "replace", "open", "fsync"]
    for nth in range(1, len(steps) + 1):
        known.iterations = 1
        states.save(path, known)
        known.iterations = 2
        calls.clear()
        with monkeypatch.context() as machine, pytest.raises(type(error)):
            for name in {*steps}:
                machine.setattr(os, name, failing(name, getattr(os, name)))
            states.save(path, known)
        assert calls == steps[:nth]
        assert (states.load(path).iterations, [*path.parent.iterdir()]) == (1 if nth < 4 else 2, [path])


DAMAGES: dict[str, tuple[Any, int, str]] = {  # what becomes of the text, and the error
    "empty": (lambda text: b"", 4, "not a readable state"),
    "half": (lambda text: text[: len(text) // 2], 4, "not a readable state"),
    "list": (lambda text: b"[" + text + b"]", 4, "not a readable state"),
    "utf-8": (lambda text: text.replace(b'"commit": "', b'"commit": "\xff'), 4, "not a readable state"),
    "newer": (lambda text: text.replace(b" 5,", b" 6,", 1), 2, "a state of version 6, and this CCO reads 5"),
    "older": (lambda text: text.replace(b" 5,", b" 4,", 1), 2, "finish it with the CCO that began it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_state_of_this_version_is_one_error_that_names_it(path, damage):
    make, code, reason = DAMAGES[damage]
    states.save(path, new())
    path.write_bytes(make(path.read_bytes()))
    for validate in (True, False):
        with pytest.raises(match=re.escape(reason)) as caught:
            states.load(path, validate=validate)
        assert caught.value.code == code and str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_a_state_stays_small_however_long_the_mission_runs_and_keeps_the_latest(path):
    known = new()
    for number in range(1, 300):
        iterate(known, "a", f"failure {number}", report="word " * 2000, denials=["x"] * 99)
        known.record_tampering({f"tests/{number}.py": "changed"})
    states.save(path, known)
    assert path.stat().st_size <= states.MAX_SIZE
    loaded = states.load(path)
    assert 50 < len(loaded.history) <= states.MAX_HISTORY and loaded.history[-1].number == 299
    assert (loaded.totals["session_count"], loaded.totals["tampered"], len(loaded.tampering)) == (299, 299, 20)


HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
import proc
from pathlib import Path
with proc.lock(Path(sys.argv[2]), "api"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_the_lock_and_an_unclean_end_is_known_until_that_is_settled(tmp_path):
    path = tmp_path / "lock"
    for is_killed in (False, True):
        argv = [sys.executable, "-c", HOLD, str(KIT), str(path)]
        other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert (proc.holder(path) or {}).items() >= {"pid": other.pid, "mission": "api"}.items()
        with pytest.raises(Exception, match=f"works here: pid {other.pid}") as caught, proc.lock(path, "b"):
            pass
        assert caught.value.code == 75
        if is_killed:
            other.kill()
        other.communicate()
        assert proc.holder(path) is None
        for was_unclean, settles in ((is_killed, False), (is_killed, True), (False, False)):
            with proc.lock(path, "api") as lock:
                assert lock.was_unclean is was_unclean
                lock.is_settled |= settles


def test_a_wait_is_never_longer_than_planned_wherever_the_clock_is_set(clock):
    known, waits = new(), []
    known.wait_for(100, "limit", "the usage limit")
    for passed in (0, 40, -10_000_000, 20_000_000):
        clock[0] += passed
        waits.append(known.wait_left())
    assert (waits, known.current_phase) == ([100, 60, 100, 0], "waiting")
    known.end_wait()
    assert (known.wait, known.current_phase) == (None, "validation")
    known.wait_for(10**9, "failure", "another attempt")
    assert (known.wait_left(), *map(states.backoff, (1, 2, 6, 99))) == (states.LONGEST_WAIT, 30, 60, 1800, 1800)


def test_an_llm_that_cannot_be_reached_is_asked_again_after_a_while_or_when_it_says(clock):
    known, waits = new(), []
    for until_then in (None, 3600, 30 * 86400):  # credit may come sooner than the month's end
        known.record_asked("manager", False, until_then and clock[0] + until_then)
        waits.append(known.asked["manager"]["until"] - clock[0])
        assert not known.may_ask("manager") and known.may_ask("judge")
    clock[0] += 120
    assert (waits, known.may_ask("manager")) == ([30, 3600, 120], True)


def test_limits_are_compared_warned_of_once_a_step_and_leave_a_session_what_is_left():
    known, limits = new(), Limits(cost_usd=10, hours=2)
    iterate(known, "a", "no", cost_usd=8.5, seconds=3600, tokens={"input": 5, "output": 6})
    assert known.used() == {"cost_usd": 8.5, "iterations": 1, "hours": 1.0, "tokens": 11, "max_iterations": 1}
    lines = ["80 % of limits.cost_usd is used: 8.5 of 10", "50 % of limits.hours is used: 1.0 of 2"]
    assert (known.limit_alerts(limits), known.limit_alerts(limits)) == (lines, [])
    assert (limits.reached(known.used()), limits.left(known.used(), 7200)) == ("", (3600, 1.5))
    known.pay(Usage(1.5, 1), ["a"])
    assert "limits.cost_usd is reached: 10.0 of 10. Raise it in the mission" in limits.reached(known.used())
    assert "orchestrator.max_iterations is reached: 1 of 1" in Limits(max_iterations=1).reached(known.used())
    assert Limits(max_iterations=1, iterations=1).reached(known.used(), begun=True) == ""


def test_a_session_that_changes_nothing_or_brings_back_an_earlier_failure_is_a_stall():
    known, counted = new("a", "b"), []
    see(known, "one", "two")
    for failure in ("one", "other", "one", "other", "new", "new"):
        iterate(known, "a", failure, "two", text=f"Do {failure}.")
        counted.append(known.criteria["a"].stalls)
    assert counted == [1, 0, 1, 2, 1, 2]  # five sessions weigh as much as a stall, whatever changed
    assert (known.criteria["a"].attempts, known.criteria["b"].stalls, known.criteria["b"].attempts) == (6, 0, 0)
    assert known.criteria["a"].recent_failures == ["one", "other", "new"]
    assert states.digest("DO  new") in known.criteria["a"].failed_instructions
    iterate(known, "a", "", "two")
    met = known.criteria["a"]
    assert (met.stalls, met.attempts, met.failure, met.recent_failures, met.failed_instructions) == (0, 0, "", [], [])


def test_claims_costs_successes_and_failures_are_counted():
    known = new("a", "b")
    assert iterate(known, "a", "", "no", kind="crashed", claimed=["a", "b", "nobody"], cost_usd=1.0) == ["b"]
    iterate(known, "b", "", "no", kind="limit")
    iterate(known, "b", "", "no")
    known.pay(Usage(0.5, 2, 1), ["a", "b"])
    names = "claims_made claims_false failed_actions successful_actions api_calls_total calls_of_unknown_cost"
    assert [known.totals[name] for name in names.split()] == [2, 1, 1, 1, 2, 1]
    assert (known.totals["estimated_cost"], known.totals["manager_cost"]) == (1.5, 0.5)
    assert (known.criteria["a"].cost_usd, known.criteria["b"].cost_usd) == (1.25, 0.25)


def test_an_edit_keeps_what_is_decided_as_before_and_begins_the_rest_anew():
    known = new("a", "b", "c")
    iterate(known, "b", "", "no", "no")
    b = {"id": "b", "criteria": "in other words", "check": "make b", "priority": "critical"}
    known.adopt(mission_of(definition_of_done=[b, {"id": "a", "criteria": "a works", "check": "make other"}]))
    assert {id: criterion.verdict for id, criterion in known.criteria.items()} == {"b": "unmet", "a": "unjudged"}
    kept = known.criteria["b"]
    assert (kept.criteria, kept.priority, kept.attempts, kept.failure) == ("in other words", "critical", 0, "no")
    known.adopt(mission_of(definition_of_done=[{**b, "strict": False}]))
    assert known.criteria["b"].verdict == "unjudged"


def test_an_edit_throws_away_a_plan_and_never_what_a_session_has_done():
    known, seen = new(), []
    for kind in ("", "limit"):
        known.record_plan(PLAN)
        known.begin_iteration()
        known.current_phase = "execution"
        if kind:
            known.record_outcome(Outcome(kind))
            known.wait_for(100, "limit", "the usage limit")
        known.adopt(mission_of("a", "b"))
        seen.append((known.plan, known.iterations, known.current_phase, known.wait))
    assert seen == [(None, 0, "validation", None), (PLAN, 1, "committing", None)]


def test_after_an_unclean_end_nothing_counts_as_proven_any_more():
    known = new("a", "b")
    see(known, "", "")
    known.criteria["b"].proof = {"where": "user"}
    known.confirmed, known.current_phase = {"where": "checkout"}, "completed"
    known.distrust()
    proofs = [criterion.proof for criterion in known.criteria.values()]
    assert (known.confirmed, known.current_phase, proofs) == (None, "validation", [None, None])


def test_notes_wait_in_order_for_their_mission_and_are_filed_once_an_instruction_carried_them(tmp_path):
    for text in ("", " \n", "x" * 2001):
        with pytest.raises(Exception, match="a note has 1 to 2000 characters"):
            prompt.leave_note(tmp_path, "api", text)
    for number in range(3):
        prompt.leave_note(tmp_path, "api", f"note {number} ä\n")
    prompt.leave_note(tmp_path, "api-two", "for another mission")
    (tmp_path / "inbox" / "api.1.md").symlink_to("/etc/hostname")
    found = prompt.notes(tmp_path, "api")
    assert [path.read_text() for path in found] == [f"note {number} ä\n" for number in range(3)]
    prompt.file_notes(tmp_path, [found[0].name, found[1].name, "gone.md", "../../etc/passwd"])
    assert prompt.notes(tmp_path, "api") == found[2:]
    assert prompt.delivered_notes(tmp_path, "api") == ["note 0 ä", "note 1 ä"]


def test_a_lesson_is_found_by_its_failure_or_its_first_error_newest_first_and_masked(tmp_path, fresh_mask):
    log.register_secret(SECRET)
    error = "ModuleNotFoundError: No module named yaml"
    prompt.learn(tmp_path, "f1", f"{error}\n", "it loads", f"pip install pyyaml {SECRET}")
    prompt.learn(tmp_path, "f2", "1\n", "it prints two", "print 2")
    prompt.learn(tmp_path, "f3", f"line 7\n{error}\n", "it loads", "add requirements.txt")
    lessons = [f"{error}: add requirements.txt", f"{error}: pip install pyyaml ***"]
    assert prompt.lessons(tmp_path, "unknown", error) == lessons
    assert prompt.lessons(tmp_path, "f2", "something else") == ["it prints two: print 2"]
    (tmp_path / "lessons.jsonl").write_text("[1]\n")
    assert prompt.lessons(tmp_path, "f1", error) == []
