"""The state: what is read is what was written, what follows from it, and the notes and lessons beside it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from test_cco_prompt import criterion, mission_of

import log
import proc
import prompt
import state as states
from mission import Limits
from state import Outcome, Plan, State, Usage, Verdict

SECRET = "Zk9-planted+value/4711=="


def new(*ids: str) -> State:
    made = State("api", "/a/project", "/a/project/api.json", "", commit="c0ffee0123456789")
    made.adopt(mission_of(*map(criterion, ids or ("a",))))
    return made


def see(known: State, *failures: str, **more: Any) -> list[str]:
    """Record what the checks say of each criterion: "" is met, else its failure."""
    ids = zip(known.criteria, failures, strict=True)
    return known.record_results({id: Verdict(id, "unmet" if f else "met", failure=f, runs=1, **more) for id, f in ids})


def begin(known: State, focus: str = "a", text: str = "Do it.") -> State:
    """Begin a session on a criterion."""
    known.record_plan(Plan(focus, "Work", text))
    known.begin_iteration()
    known.current_phase = "execution"
    return known


def iterate(known: State, focus: str, *failures: str, text: str = "Do it.", **outcome: Any) -> Any:
    """One iteration on a criterion; return the false claims."""
    begin(known, focus, text)
    known.record_outcome(Outcome(**{"kind": "ended", **outcome}))
    known.current.commit = known.commit[:12]
    see(known, *failures)
    known.current_phase = "planning"
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


def test_the_file_is_its_owners_alone_and_masked_but_for_what_a_start_needs(path, fresh_mask):
    log.register_secret(SECRET)
    known = new()
    known.mission_text = f"the password is {SECRET} \ud800" + 3_000 * "ж"
    known.blocked = {"question": f"is it {SECRET}? ä", "seen": ""}
    path.symlink_to("elsewhere")
    digest = states.save(path, known)
    content = path.read_bytes()
    assert content.startswith(b'{\n"version": 5,\n') and len(content) < 3_000 + 2 * 3_000  # no six bytes a character
    assert digest == hashlib.sha256(content).hexdigest()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600 and [*path.parent.iterdir()] == [path]
    loaded = states.load(path)
    assert (loaded.mission_text, loaded.blocked) == (known.mission_text, {"question": "is it ***? ä", "seen": ""})


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new_state(path, monkeypatch, error):
    known, calls, steps = new(), list[str](), ["open", "fsync", "replace", "open", "fsync"]

    def failing(name: str, real: Any, nth: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == nth:
                raise error
            return real(*args, **kwargs)

        return call

    for nth, left in enumerate((1, 1, 1, 2, 2), 1):
        known.iterations = 1
        states.save(path, known)
        known.iterations = 2
        calls.clear()
        with monkeypatch.context() as machine, pytest.raises(type(error)):
            for name in {*steps}:
                machine.setattr(os, name, failing(name, getattr(os, name), nth))
            states.save(path, known)
        assert calls == steps[:nth]
        assert (states.load(path).iterations, [*path.parent.iterdir()]) == (left, [path])


def test_a_file_that_is_no_state_of_this_version_is_one_error_that_names_it(path):
    states.save(path, new())
    text = path.read_bytes()
    damaged = [b"", text[: len(text) // 2], b"[" + text + b"]", text.replace(b'"commit": "', b'"commit": "\xff')]
    others = {6: "a state of version 6, and this CCO reads 5", 4: "finish it with the CCO that began it", None: "None"}
    cases = [(content, 4, "not a readable state") for content in damaged]
    cases += [(text.replace(b" 5,", f" {json.dumps(n)},".encode(), 1), 2, reason) for n, reason in others.items()]
    for content, code, reason in cases:
        path.write_bytes(content)
        for validate in (True, False):
            with pytest.raises(proc.Stop, match=re.escape(reason)) as caught:
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
    for name, used in known.used().items():
        assert f"{name} is reached: {used} of {used}. Raise it in" in Limits(**{name: used}).reached(known.used())
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
    b = {**criterion("b", priority="critical"), "criteria": "in other words"}
    known.adopt(mission_of(b, criterion("a", check="make other")))
    assert {id: criterion.verdict for id, criterion in known.criteria.items()} == {"b": "unmet", "a": "unjudged"}
    kept = known.criteria["b"]
    assert (kept.criteria, kept.priority, kept.attempts, kept.failure) == ("in other words", "critical", 0, "no")
    known.adopt(mission_of({**b, "strict": False}))
    assert known.criteria["b"].verdict == "unjudged"


def test_an_edit_throws_away_a_plan_and_never_what_a_session_has_done():
    known = begin(new())
    known.adopt(mission_of(criterion("a"), criterion("b")))
    assert (known.plan, known.iterations, known.current_phase) == (None, 0, "validation")
    known = begin(new())
    known.record_outcome(Outcome("ended"))
    known.current_phase, known.returning = "validation", "c0ffee"
    known.adopt(mission_of(criterion("a"), criterion("b")))
    assert (bool(known.plan), known.current_phase, known.returning) == (True, "validation", "")  # it is committed
    known = begin(new())
    known.record_outcome(Outcome("limit"))
    known.wait_for(100, "limit", "the usage limit")
    known.adopt(mission_of(criterion("a"), criterion("b")))
    assert (bool(known.plan), known.iterations, known.current_phase, known.wait) == (True, 1, "committing", None)


def test_after_an_unclean_end_nothing_counts_as_proven_any_more_and_what_was_begun_goes_on():
    for phase in ("planning", "execution", "blocked", "completed", "waiting", "committing", "validation"):
        goes_on = phase if phase in ("committing", "validation") else "execution"
        for known, then in ((new(), "validation"), (begin(new()), goes_on)):
            known.criteria["a"].proof = {"where": "user"}
            known.confirmed, known.current_phase = {"where": "checkout"}, phase
            if phase == "committing":  # after a full context there is none
                known.session = None
            known.distrust()
            assert (known.confirmed, known.current_phase, known.criteria["a"].proof) == (None, then, None)


def test_a_state_that_somebody_made_senseless_begins_with_the_checks():
    for phase in ("waiting", "blocked", "completed", "committing", "execution"):
        known = new()
        assert known.is_sound
        known.current_phase, known.current = phase, states.Iteration(1) if phase == "blocked" else None
        assert not known.is_sound
        known.distrust()
        assert (known.is_sound, known.current_phase) == (True, "validation")


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
    for failure, output, criteria, resolved in (
        ("f1", f"{error}\n", "it loads", f"pip install pyyaml {SECRET}"),
        ("f2", "1\n", "it prints two", "print 2"),
        ("f3", f"line 7\n{error}\n", "it loads", "add requirements.txt"),
    ):
        prompt.learn(tmp_path, states.CriterionState(criteria, "high", "", failure=failure), output, resolved)
    found = prompt.lessons(tmp_path, "unknown", error)
    assert found == [f"{error}: add requirements.txt", f"{error}: pip install pyyaml ***"]
    assert prompt.lessons(tmp_path, "f2", "something else") == ["it prints two: print 2"]
    (tmp_path / "lessons.jsonl").write_text("[1]\n")
    assert prompt.lessons(tmp_path, "f1", error) == []
