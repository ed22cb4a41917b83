"""The mission's memory: what is remembered, what is counted, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import judge
import ledger
import manager
import progress
import repo
import session
import state
from claims import Claim
from dod import Verdict
from mission import Mission, parse
from openrouter import Bill
from situation import Plan, Situation
from stream import Outcome

SCHEMA = Draft202012Validator(json.loads(Path(state.SCHEMA).read_text("utf-8")))
STATISTICS = {"files_modified": 3, "lines_of_code_added": 40, "tests_created": 1}
FIRST = "f" * 40


def mission_of(*ids: str, **more: Any) -> Mission:
    criteria = [{"id": id, "criteria": f"{id} works", "check": f"make {id}"} for id in ids]
    document = {"title": "A mission", "repository": "/a/project", "definition_of_done": criteria, **more}
    return parse(json.dumps(document), Path("/a/project/api.json"))


def plan(focus: str = "a", **more: Any) -> Plan:
    return Plan(focus, "Mend it", "Mend what is broken.", **more)


def outcome(kind: str = "ended", **more: Any) -> Outcome:
    tokens = {"input": 10, "output": 20, "cache_read": 300, "cache_creation": 40}
    return Outcome(kind, **{"cost_usd": 0.25, "turns": 3, "seconds": 60.0, "tokens": tokens, **more})


def sha(number: int) -> str:
    """The commit of an iteration."""
    return f"{number:02x}" * 20


class Memory:
    """A memory that is held against schema/state.json after every step."""

    def __init__(self, *ids: str):
        self.mission = mission_of(*(ids or ("a",)))
        self.memory = progress.begin(self.mission, "cco/api", FIRST, 0, "cc-worker-001")
        self.adopt(self.mission)

    def fits(self) -> None:
        problems = [
            f"{p.json_path}: {p.message}" for p in SCHEMA.iter_errors({"version": state.VERSION, **self.memory})
        ]
        assert problems == []

    def adopt(self, mission: Mission) -> None:
        self.mission = mission
        progress.adopt(self.memory, mission)
        self.fits()

    def see(self, *verdicts: str, output: str = "it failed", **more: Any) -> list[str]:
        """What the checks say now, in the order of the mission."""
        found = {
            c.id: Verdict(c.id, verdict, int(verdict != "met"), tail=output, **more)
            for c, verdict in zip(self.mission.criteria, verdicts, strict=True)
        }
        lines = ledger.note_verdicts(self.memory, found)
        self.fits()
        return lines

    def ran(self, result: Outcome, *said: Claim) -> None:
        progress.note_outcome(self.memory, result, said)
        self.fits()

    def iterate(
        self,
        focus: str,
        *verdicts: str,
        output: str = "it failed",
        result: Outcome | None = None,
        said: Sequence[Claim] = (),
        **more: Any,
    ) -> list[str]:
        """One iteration: plan, session, commit, checks."""
        self.memory["iterations"] += 1
        progress.note_plan(self.memory, plan(focus))
        self.memory["worker"] = {**session.new(), "session": "0ccb0c9e", "begun": True, "context": 0.1}
        self.fits()
        self.ran(result or outcome(), *said)
        commit = repo.Commit(sha(self.memory["iterations"]), ["src/a.py"])
        progress.note_commit(self.memory, commit)
        lines = self.see(*verdicts, output=output, **more) + ledger.note_claims(self.memory)
        progress.close_iteration(self.memory, commit, STATISTICS)
        self.fits()
        return lines

    def by_hand(self, *verdicts: str, commit: str = "e" * 40) -> list[str]:
        """A person changes something between two runs."""
        self.memory["commit"] = commit
        return self.see(*verdicts)

    def known(self, id: str, key: str) -> Any:
        return self.memory["criteria"][id][key]

    def metric(self, name: str) -> Any:
        return self.memory["metrics"][name]

    def situation(self, max_context: float = 0.6) -> Situation:
        tails = {c.id: f"output of {c.id}" for c in self.mission.criteria}
        return progress.situation(self.memory, self.mission, tails, max_context)


# Beginning, and a mission that is edited


def test_a_new_memory_is_whole_and_knows_the_mission():
    new = Memory("a", "b")
    assert new.memory["mission_id"] == "api"
    assert new.memory["repository"] == "/a/project"
    assert new.memory["current_phase"] == "validation"
    assert (new.memory["base"], new.memory["commit"]) == (FIRST, FIRST)
    assert (new.memory["completed_tasks"], new.memory["pending_tasks"]) == ([], ["a", "b"])
    assert new.memory["mission"]["text"] == new.mission.text
    assert new.memory["mission"]["digest"] == new.mission.digest
    assert (new.known("a", "verdict"), new.known("a", "since")) == ("unjudged", 0)
    assert (new.metric("dod_criteria_completed"), new.metric("dod_criteria_total")) == (0, 2)


def test_two_memories_have_different_session_ids():
    assert Memory("a").memory["session_id"] != Memory("a").memory["session_id"]


def test_a_memory_rebuilt_after_a_loss_goes_on_counting_iterations():
    memory = progress.begin(mission_of("a"), "cco/api", FIRST, 12, "cc")
    assert memory["iterations"] == 12


def test_an_edit_keeps_what_is_known_forgets_what_is_gone_and_adds_what_is_new():
    edited = Memory("a", "b", "c")
    edited.see("met", "unmet", "unmet")
    edited.iterate("b", "met", "unmet", "unmet")
    edited.adopt(mission_of("d", "b", "a", title="Another title"))
    assert list(edited.memory["criteria"]) == ["d", "b", "a"]
    assert (edited.known("a", "verdict"), edited.known("a", "first_met")) == ("met", 0)
    assert (edited.known("b", "verdict"), edited.known("b", "stalls")) == ("unmet", 1)
    assert (edited.known("d", "verdict"), edited.known("d", "stalls")) == ("unjudged", 0)
    assert (edited.memory["completed_tasks"], edited.memory["pending_tasks"]) == (["a"], ["d", "b"])
    assert edited.metric("dod_criteria_total") == 3
    assert edited.see("unmet", "unmet", "met") == ["criterion d: unjudged -> unmet"]


@pytest.mark.parametrize("changed", [{"check": "make other"}, {"guard": True}, {"check": None}])
def test_a_criterion_that_is_proven_otherwise_is_forgotten_but_for_its_course(changed):
    edited = Memory("a", "b")
    edited.iterate("a", "met", "met", digest="d" * 64)
    edited.memory["criteria"]["a"].update(flaky=True, seen_red=True, proves=True, unconfirmed=True)
    edited.memory["best"] = {"commit": FIRST, "met": 2, "iteration": 1, "returns": 0}
    entry = {"id": "a", "criteria": "a works", "check": "make a", **changed}
    entries = [{name: value for name, value in entry.items() if value is not None}]
    edited.adopt(mission_of(definition_of_done=[*entries, {"id": "b", "criteria": "b works", "check": "make b"}]))
    forgotten = ("verdict", "first_met", "proof", "flaky", "seen_red", "proves", "unconfirmed", "evidence")
    assert [edited.known("a", key) for key in forgotten] == ["unjudged", None, None, *[False] * 4, None]
    assert edited.known("a", "changes") == [[1, "m"]]
    assert (edited.known("b", "verdict"), edited.known("b", "first_met")) == ("met", 1)
    assert edited.memory["best"] is None
    assert edited.memory["completed_tasks"] == ["b"]


def test_a_judged_criterion_in_other_words_has_to_be_judged_again():
    judged = Memory()
    entry = {"id": "tone", "criteria": "the README is friendly"}
    judged.adopt(mission_of(definition_of_done=[entry]))
    ledger.note_evidence(judged.memory, "tone", "judged", "m/n", "it greets", [])
    judged.adopt(mission_of(definition_of_done=[entry], title="Another title"))
    assert judged.known("tone", "evidence") is not None
    judged.adopt(mission_of(definition_of_done=[{**entry, "criteria": "the README is short"}]))
    assert judged.known("tone", "evidence") is None


def test_a_check_in_other_words_proves_the_same():
    edited = Memory("a")
    edited.iterate("a", "met")
    edited.adopt(mission_of(definition_of_done=[{"id": "a", "criteria": "in other words", "check": "make a"}]))
    assert edited.known("a", "verdict") == "met"


def test_an_edit_takes_over_new_words_and_priorities():
    edited = Memory("a")
    entry = {"id": "a", "criteria": "in other words", "check": "make a", "priority": "critical"}
    edited.adopt(mission_of(definition_of_done=[entry]))
    assert (edited.known("a", "criteria"), edited.known("a", "priority")) == ("in other words", "critical")


# Sessions


def test_what_a_session_cost_is_added_to_the_totals():
    worked = Memory("a")
    for _ in range(3):
        worked.ran(outcome(cost_usd=0.1, seconds=0.1))
    assert worked.metric("session_count") == 3
    assert worked.metric("estimated_cost") == 0.3
    assert worked.metric("worker_seconds") == 0.3
    assert worked.metric("token_usage") == {"input": 30, "output": 60, "cache_read": 900, "cache_creation": 120}


def test_a_session_without_a_result_adds_nothing_but_itself():
    worked = Memory("a")
    worked.ran(Outcome("crashed", "claude ended with exit code 1 and without a result"))
    assert (worked.metric("session_count"), worked.metric("estimated_cost")) == (1, 0)
    assert sum(worked.metric("token_usage").values()) == 0


def test_what_is_kept_of_the_last_session_is_bounded():
    worked = Memory("a")
    worked.ran(outcome(report="x" * 5000 + "the end", denials=[f"Bash {n}" for n in range(50)]))
    last = worked.memory["last"]
    assert len(last["report"]) == progress.REPORT
    assert last["report"].endswith("xthe end")
    assert last["denials"] == [f"Bash {n}" for n in range(10)]


def test_successes_failures_and_recoveries_are_told_apart():
    worked = Memory("a")
    for kind in ("ended", "crashed", "timeout", "ended", "ended", "overloaded", "ended"):
        worked.ran(outcome(kind))
    counts = ("successful_actions", "failed_actions", "error_recoveries")
    assert [worked.metric(name) for name in counts] == [4, 3, 2]
    assert [error["message"].split(":")[0] for error in worked.memory["errors"]] == ["crashed", "timeout", "overloaded"]


def test_a_usage_limit_is_no_error_and_no_recovery():
    worked = Memory("a")
    worked.ran(outcome("limit", message="You've hit your session limit"))
    worked.ran(outcome("ended"))
    assert worked.memory["errors"] == []
    assert (worked.metric("failed_actions"), worked.metric("error_recoveries")) == (0, 0)


def test_errors_are_few_and_short():
    worked = Memory("a")
    for n in range(50):
        worked.ran(outcome("crashed", message=f"number {n} {'x' * 5000}"))
    assert len(worked.memory["errors"]) == progress.ERRORS
    assert worked.memory["errors"][-1]["message"].startswith("crashed: number 49 ")
    assert all(len(error["message"]) <= 200 for error in worked.memory["errors"])


def test_a_plan_is_remembered_whole_and_its_cost_is_added():
    planned = Memory("a")
    made = plan(source="m/n", bill=Bill(0.02, {"input": 5, "output": 6, "cache_read": 9}, calls=2, unknown=1))
    progress.note_plan(planned.memory, made)
    planned.fits()
    planned.memory = json.loads(json.dumps(planned.memory))
    assert progress.plan(planned.memory) == replace(made, bill=Bill())
    assert (planned.metric("estimated_cost"), planned.metric("api_calls_total")) == (0.02, 2)
    assert (planned.metric("manager_cost"), planned.metric("calls_of_unknown_cost")) == (0.02, 1)
    assert planned.metric("token_usage") == {"input": 5, "output": 6, "cache_read": 9, "cache_creation": 0}
    assert planned.known("a", "cost_usd") == planned.memory["plan"]["cost_usd"] == 0.02


def test_an_answer_of_no_use_is_paid_for_and_a_plan_of_the_rules_costs_nothing():
    planned = Memory("a")
    progress.note_plan(planned.memory, plan(avoided=1))
    assert (planned.metric("api_calls_total"), planned.metric("api_calls_avoided")) == (0, 1)
    progress.note_plan(planned.memory, plan(bill=Bill(0.01, {"input": 9, "output": 9}, calls=1)))
    assert (planned.metric("api_calls_total"), planned.metric("api_calls_avoided")) == (1, 1)
    assert planned.metric("estimated_cost") == 0.01


def test_what_a_criterion_cost_is_its_sessions_its_plans_and_its_share_of_the_judge():
    worked = Memory("a", "b")
    progress.note_plan(worked.memory, plan(focus="b", bill=Bill(0.02)))
    worked.ran(outcome(cost_usd=0.5))
    progress.note_ruling(worked.memory, judge.Ruling(bill=Bill(0.04)), ["a", "b"])
    assert (worked.known("a", "cost_usd"), worked.known("b", "cost_usd")) == (0.02, 0.54)
    assert worked.memory["plan"]["cost_usd"] == 0.06  # of this iteration, besides the session
    assert (worked.metric("estimated_cost"), worked.metric("manager_cost")) == (0.56, 0.06)


def test_what_a_judge_cost_is_added_whether_or_not_it_answered():
    judged = Memory("a")
    bill = Bill(0.02, {"input": 7, "output": 5, "cache_read": 0}, calls=2)
    progress.note_ruling(judged.memory, judge.Ruling(bill=bill), ["a"])
    judged.fits()
    assert (judged.metric("estimated_cost"), judged.metric("api_calls_total")) == (0.02, 2)
    assert (judged.metric("token_usage")["input"], judged.metric("token_usage")["output"]) == (7, 5)


def test_what_a_session_claimed_is_kept_until_the_checks_have_spoken():
    worked = Memory("a")
    worked.ran(outcome(), Claim("all are complete", tuple(f"c{n}" for n in range(30))))
    said = worked.memory["last"]["said"]
    assert said == [{"text": "all are complete", "ids": [f"c{n}" for n in range(10)]}]
    assert worked.memory["last"]["claims"] == {"made": 0, "lies": []}


# History


def test_a_closed_iteration_is_one_line_of_history():
    worked = Memory("a", "b")
    worked.see("unmet", "unmet")
    said = [Claim("a and b are complete", ("a", "b")), Claim("a is complete", ("a",))]
    report = "I did\n  this and that. " + "x" * 500
    ledger.note_tampering(worked.memory, [("tests/old.py", "changed", "")])
    worked.memory["iterations"] = 1  # tampering is found before the checks run
    ledger.note_tampering(worked.memory, [("tests/a.py", "changed", ""), ("tests/b.py", "new", "/kept/b.py")])
    worked.memory["iterations"] = 0
    worked.iterate("a", "met", "unmet", result=outcome(report=report), said=said)
    (entry,) = worked.memory["history"]
    assert entry["report"].startswith("I did this and that. xxx")
    assert len(entry.pop("report")) == 120
    assert entry == {
        "iteration": 1,
        "focus": "a",
        "strategy": "retry_modified",
        "source": "rules",
        "kind": "ended",
        "turns": 3,
        "cost_usd": 0.25,
        "manager_usd": 0.0,
        "seconds": 60.0,
        "commit": sha(1)[:12],
        "met": 1,
        "broke": [],
        "claims": [2, 1],
        "tampered": 2,
    }
    assert worked.memory["plan"] is None
    assert worked.metric("total_iterations") == 1
    assert worked.metric("lines_of_code_added") == 40


def test_an_iteration_names_what_it_broke_and_no_later_one_does():
    worked = Memory("a", "b", "c")
    worked.iterate("a", "met", "met", "unmet")
    worked.iterate("c", "unmet", "broken", "unmet")
    worked.iterate("c", "unmet", "broken", "met")
    assert [entry["broke"] for entry in worked.memory["history"]] == [[], ["a", "b"], []]


def test_an_iteration_that_changed_nothing_has_no_commit_and_no_files():
    worked = Memory("a")
    worked.memory["iterations"] = 1
    progress.note_plan(worked.memory, plan())
    worked.ran(outcome())
    progress.note_commit(worked.memory, repo.Commit(FIRST))
    progress.close_iteration(worked.memory, repo.Commit(FIRST), STATISTICS)
    worked.fits()
    assert worked.memory["history"][0]["commit"] == ""
    assert worked.memory["artifacts"] == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("src/parser.py", "code"),
        ("tests/parser.py", "test"),
        ("src/parser.test.ts", "test"),
        ("test_parser.py", "test"),
        ("README.md", "documentation"),
        ("docs/INDEX.HTML", "documentation"),
        ("Makefile", "other"),
        ("v1.2/LICENSE", "other"),
        ("src/latest/contest.c", "code"),
    ],
)
def test_files_of_a_commit_are_listed_with_their_kind(path, kind):
    worked = Memory("a")
    progress.note_commit(worked.memory, repo.Commit("c" * 40, [path]))
    worked.fits()
    assert worked.memory["commit"] == "c" * 40
    assert worked.memory["artifacts"] == [{"path": path, "type": kind, "version": "c" * 40}]


def test_what_a_commit_left_out_is_kept_with_the_reasons_but_for_the_settings_of_tools():
    worked = Memory("a")
    left_out = {".claude/x": repo.TOOLS_OWN, **{f"{n}.bin": "it is too large" for n in range(50)}}
    progress.note_commit(worked.memory, repo.Commit(FIRST, [f"{n}.py" for n in range(500)], left_out))
    worked.fits()
    assert worked.memory["left_out"] == [f"{n}.bin: it is too large" for n in range(20)]
    assert len(worked.memory["artifacts"]) == 100


@pytest.mark.parametrize(
    ("letter", "iterations", "least", "size"), [("x", 10_000, 60, 100_000), ("測", 300, state.LEAST_HISTORY, 185_000)]
)
def test_the_state_stays_small_for_ever_with_long_reports_lies_and_tampering(tmp_path, letter, iterations, least, size):
    worked = Memory(*(f"criterion-{n}" for n in range(12)))
    ids, file = list(worked.memory["criteria"]), tmp_path / "api.json"
    paths = [f"src/some/package/module_{n}.py" for n in range(500)]
    claim, touched = Claim(letter * 160, tuple(ids)), [(letter * 60, "changed", letter * 60)] * 30
    quotes = [{"path": letter * 60, "blob": "b" * 40, "text": letter * 1000}] * 9
    for n in range(1, iterations + 1):
        worked.memory["iterations"] = n
        progress.note_plan(worked.memory, plan(ids[n % 12]))
        kind = ("ended", "timeout", "crashed")[n % 3]
        said = {"message": letter * 3000, "report": letter * 8000, "denials": [letter * 100] * 20}
        progress.note_outcome(worked.memory, outcome(kind, **said), [claim] * 20)
        ledger.note_tampering(worked.memory, touched)
        left_out = {letter * 60 + str(number): "it is too large" for number in range(50)}
        progress.note_commit(worked.memory, repo.Commit(sha(n % 256), paths, left_out))
        verdict = "met" if n // 3 % 2 else "unmet"
        found = {id: Verdict(id, verdict, 1, 1.0, "d" * 64, str(n), flaky=n % 2 == 1) for id in ids}
        ledger.note_verdicts(worked.memory, found)
        ledger.note_evidence(worked.memory, ids[n % 2], "judged", "m/n", letter * 1000, quotes)
        ledger.note_claims(worked.memory)
        progress.close_iteration(worked.memory, repo.Commit(sha(n % 256), paths), STATISTICS)
        if n in (iterations - 1, iterations):
            state.save(file, worked.memory)
            assert file.stat().st_size <= size
            loaded = state.load(file)
            assert {name: value for name, value in loaded.items() if name != "seal"} == worked.memory
    numbers = [entry["iteration"] for entry in worked.memory["history"]]
    assert least <= len(numbers) <= progress.HISTORY
    assert numbers == list(range(iterations + 1 - len(numbers), iterations + 1))
    assert worked.metric("session_count") == worked.metric("total_iterations") == iterations
    assert worked.metric("estimated_cost") == iterations / 4


def test_history_is_bounded_also_before_it_is_saved():
    worked = Memory("a")
    for _ in range(progress.HISTORY + 5):
        worked.iterate("a", "unmet")
    assert len(worked.memory["history"]) == progress.HISTORY
    assert worked.memory["history"][0]["iteration"] == 6


# The situation


def test_a_situation_holds_every_criterion_as_it_stands():
    worked = Memory("a", "b", "c")
    worked.see("met", "unmet", "unmet")
    worked.iterate("b", "unmet", "unmet", "unmet", result=outcome(report="I tried."))
    here = worked.situation()
    assert (here.mission, here.iteration, here.report, here.last) == (worked.mission, 2, "I tried.", "ended, 3 turns")
    broken = f"broken in iteration 1, commit {sha(1)[:12]}, while working on b"
    assert [(s.id, s.verdict, s.broken_by, s.stalls) for s in here.standings] == [
        ("a", "unmet", broken, 0),
        ("b", "unmet", "", 1),
        ("c", "unmet", "", 0),
    ]
    assert [(s.check, s.tail) for s in here.standings][1] == ("make b", "output of b")
    assert here.tried == ["1: b (retry_modified): ended, 0 met afterwards. It said: I tried."]


def test_what_is_met_again_is_no_regression_any_more():
    worked = Memory("a")
    for verdict in ("met", "unmet", "met"):
        worked.iterate("a", verdict)
    assert [s.broken_by for s in worked.situation().standings] == [""]


def test_a_situation_says_what_is_flaky_and_what_a_clean_checkout_contradicted():
    worked = Memory("a", "b")
    worked.iterate("a", "met", "met")
    worked.memory["criteria"]["a"]["flaky"] = worked.memory["criteria"]["b"]["unconfirmed"] = True
    assert [(s.flaky, s.unconfirmed) for s in worked.situation().standings] == [(True, False), (False, True)]


def test_a_situation_tells_of_the_lies_and_the_tampering_of_the_last_session_alone():
    worked = Memory("a", "b")
    worked.memory["iterations"] = 1
    ledger.note_tampering(worked.memory, [("tests/a.py", "changed", "/kept/a.py")])
    worked.memory["iterations"] = 0
    worked.iterate("a", "unmet", "met", said=[Claim("both are complete", ("a", "b")), Claim("b is complete", ("b",))])
    here = worked.situation()
    assert here.lies == ['"both are complete": the checks say otherwise of a']
    assert here.tampering == ["tests/a.py (changed)"]
    worked.iterate("a", "unmet", "met")
    here = worked.situation()
    assert (here.lies, here.tampering) == ([], [])


def test_a_situation_before_the_first_session_says_so():
    here = Memory("a").situation()
    assert (here.iteration, here.last, here.report, here.tried, here.resumable) == (
        1,
        "none yet, 0 turns",
        "",
        [],
        False,
    )


@pytest.mark.parametrize(
    ("worker", "resumable"),
    [
        (None, False),
        ({"begun": False, "context": 0.0}, False),
        ({"begun": True, "context": 0.0}, True),
        ({"begun": True, "context": 0.59}, True),
        ({"begun": True, "context": 0.6}, False),
        ({"begun": True, "context": 0.9}, False),
    ],
)
def test_a_session_is_resumable_while_its_context_has_room(worker, resumable):
    worked = Memory("a")
    worked.memory["worker"] = worker and {**session.new(), **worker}
    worked.fits()
    assert worked.situation(max_context=0.6).resumable is resumable


def test_a_situation_tells_of_the_last_sessions_only_and_of_what_was_refused():
    worked = Memory("a")
    for n in range(1, 21):
        worked.iterate(
            "a", "unmet", result=outcome("timeout", report=f"report {n}", denials=[f"Bash rm {n}", "Edit x"])
        )
    here = worked.situation()
    assert [line.split(":")[0] for line in here.tried] == [str(n) for n in range(13, 21)]
    assert here.last == "timeout, 3 turns; refused to it: Bash rm 20, Edit x"
    assert "report 20" in here.tried[-1]


def test_the_ladder_ends_in_a_question_when_nothing_changes():
    """What is counted here is what the rules climb by."""
    worked = Memory("a", "b")
    worked.see("unmet", "unmet")
    strategies = []
    while (made := manager.rules(worked.situation())).strategy != "escalate":
        strategies.append((made.focus, made.strategy))
        worked.iterate(made.focus, "unmet", "unmet")
    climb = ["alternative"] * 2
    assert strategies == [
        *(("a", strategy) for strategy in ["retry_modified"] * 2 + climb),
        *(("b", strategy) for strategy in ["partial"] * 2 + climb),  # a is set aside
    ]
