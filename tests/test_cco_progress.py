"""The mission's memory: what is remembered, what is counted, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import manager
import progress
import repo
import state
from dod import Verdict
from manager import Plan
from mission import Limits, Mission, parse
from stream import Outcome

SCHEMA = Draft202012Validator(json.loads(Path(state.SCHEMA).read_text("utf-8")))
STATISTICS = {"files_modified": 3, "lines_of_code_added": 40, "tests_created": 1}
NO_LIMITS = Limits(None, None, None, None)
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


class Memory:
    """A memory that is held against schema/state.json after every step."""

    def __init__(self, *ids: str):
        self.mission = mission_of(*ids)
        self.memory = progress.begin(self.mission, "cco/api", FIRST, 0, "cc-worker-001")
        self.adopt(self.mission)

    def fits(self) -> None:
        problems = [f"{p.json_path}: {p.message}" for p in SCHEMA.iter_errors({"version": 1, **self.memory})]
        assert problems == []

    def adopt(self, mission: Mission) -> None:
        self.mission = mission
        progress.adopt(self.memory, mission)
        self.fits()

    def see(self, *verdicts: str, output: str = "it failed") -> list[str]:
        """What the checks say now, in the order of the mission."""
        found = {
            c.id: Verdict(c.id, verdict, int(verdict != "met"), tail=output)
            for c, verdict in zip(self.mission.criteria, verdicts, strict=True)
        }
        lines = progress.note_verdicts(self.memory, found)
        self.fits()
        return lines

    def ran(self, result: Outcome) -> None:
        progress.note_outcome(self.memory, result)
        self.fits()

    def iterate(
        self, focus: str, *verdicts: str, output: str = "it failed", result: Outcome | None = None
    ) -> list[str]:
        """One iteration: plan, session, checks."""
        self.memory["iterations"] += 1
        progress.note_plan(self.memory, plan(focus))
        self.fits()
        self.ran(result or outcome())
        self.memory["commit"] = f"{self.memory['iterations']:040x}"
        lines = self.see(*verdicts, output=output)
        progress.close_iteration(self.memory, repo.Commit(self.memory["commit"], ["src/a.py"]), STATISTICS)
        self.fits()
        return lines

    def known(self, id: str, key: str) -> Any:
        return self.memory["criteria"][id][key]

    def metric(self, name: str) -> Any:
        return self.memory["metrics"][name]

    def situation(self, max_context: float = 0.6) -> manager.Situation:
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


def test_an_edit_takes_over_new_words_and_priorities():
    edited = Memory("a")
    entry = {"id": "a", "criteria": "in other words", "check": "make a", "priority": "critical"}
    edited.adopt(mission_of(definition_of_done=[entry]))
    assert (edited.known("a", "criteria"), edited.known("a", "priority")) == ("in other words", "critical")


# Verdicts


def test_each_changed_verdict_is_one_line_and_an_unchanged_one_is_none():
    seen = Memory("a", "b")
    assert seen.see("unmet", "met") == ["criterion a: unjudged -> unmet", "criterion b: unjudged -> met"]
    assert seen.see("unmet", "met") == []
    assert seen.see("timeout", "met") == ["criterion a: unmet -> timeout"]


def test_first_met_and_since_are_the_iterations_that_brought_it():
    seen = Memory("a", "b")
    seen.see("met", "unmet")
    seen.iterate("b", "met", "unmet", output="another failure")
    seen.iterate("b", "unmet", "met")
    seen.iterate("a", "met", "met")
    assert (seen.known("a", "first_met"), seen.known("a", "since")) == (0, 3)
    assert (seen.known("b", "first_met"), seen.known("b", "since")) == (2, 2)


def test_a_regression_is_said_and_kept_with_the_commit_that_brought_it():
    seen = Memory("a", "b")
    seen.see("met", "unmet")
    assert seen.iterate("b", "broken", "unmet") == ["criterion a: met -> broken (regression)"]
    assert seen.known("a", "regressions") == [{"iteration": 1, "commit": f"{1:040x}"}]
    seen.iterate("a", "met", "unmet")
    seen.iterate("b", "unmet", "met")
    assert [entry["iteration"] for entry in seen.known("a", "regressions")] == [1, 3]


def test_only_the_latest_regressions_are_kept():
    seen = Memory("a")
    for _ in range(30):
        seen.iterate("a", "met")
        seen.iterate("a", "unmet")
    assert [entry["iteration"] for entry in seen.known("a", "regressions")] == [52, 54, 56, 58, 60]


def test_what_runs_last_is_not_broken_by_waiting_for_the_others():
    seen = Memory("a", "slow")
    seen.see("met", "met")
    assert seen.iterate("a", "unmet", "unjudged") == [
        "criterion a: met -> unmet (regression",
        "criterion slow: met -> unjudged",
    ]
    assert seen.known("slow", "regressions") == []
    assert seen.iterate("a", "met", "unmet") == [
        "criterion a: unmet -> met",
        "criterion slow: unjudged -> unmet (regression)",
    ]
    assert [entry["iteration"] for entry in seen.known("slow", "regressions")] == [2]


def test_what_was_never_met_does_not_regress():
    seen = Memory("a")
    for verdict in ("unmet", "timeout", "unjudged", "broken"):
        seen.iterate("a", verdict)
    assert seen.known("a", "regressions") == []


def test_completion_is_measured():
    seen = Memory("a", "b", "c")
    seen.ran(outcome(cost_usd=0.3))
    seen.see("met", "unmet", "unmet")
    assert seen.memory["completed_tasks"] == ["a"]
    assert seen.memory["pending_tasks"] == ["b", "c"]
    assert seen.metric("completion_percentage") == 33.3
    assert seen.metric("cost_per_criteria") == 0.3
    seen.see("unmet", "unmet", "unmet")
    assert (seen.metric("completion_percentage"), seen.metric("cost_per_criteria")) == (0.0, 0)


# Stalls


def test_stalls_are_counted_for_the_focus_alone():
    seen = Memory("a", "b")
    seen.see("unmet", "unmet")
    for expected in (1, 2, 3):
        seen.iterate("a", "unmet", "unmet")
        assert (seen.known("a", "stalls"), seen.known("b", "stalls")) == (expected, 0)
    seen.iterate("b", "unmet", "unmet")
    assert (seen.known("a", "stalls"), seen.known("b", "stalls")) == (3, 1)


@pytest.mark.parametrize(
    ("verdict", "output", "stalls"),
    [
        ("unmet", "it failed", 3),
        ("unmet", "it failed differently", 0),
        ("timeout", "it failed", 0),
        ("met", "it failed", 0),
    ],
)
def test_any_change_in_the_failure_begins_the_count_anew(verdict, output, stalls):
    seen = Memory("a")
    seen.see("unmet")
    seen.iterate("a", "unmet")
    seen.iterate("a", "unmet")
    seen.iterate("a", verdict, output=output)
    assert seen.known("a", "stalls") == stalls


def test_numbers_and_times_in_the_output_are_no_change():
    seen = Memory("a")
    seen.see("unmet", output="1 failed in 0.12s")
    seen.iterate("a", "unmet", output="1 failed in 73.5s")
    assert seen.known("a", "stalls") == 1


def test_the_first_look_after_the_baseline_is_no_stall():
    seen = Memory("a")
    seen.see("unmet")
    seen.see("unmet")
    assert seen.known("a", "stalls") == 0


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
    made = plan(source="m/n", cost_usd=0.02, tokens={"input": 5, "output": 6})
    progress.note_plan(planned.memory, made)
    planned.fits()
    assert Plan(**json.loads(json.dumps(planned.memory["plan"]))) == made
    assert (planned.metric("estimated_cost"), planned.metric("api_calls_total")) == (0.02, 1)
    assert (planned.metric("token_usage")["input"], planned.metric("token_usage")["output"]) == (5, 6)


def test_a_plan_of_the_rules_is_no_api_call_also_when_an_answer_of_no_use_was_paid_for():
    planned = Memory("a")
    progress.note_plan(planned.memory, plan())
    progress.note_plan(planned.memory, plan(cost_usd=0.01, tokens={"input": 9, "output": 9}))
    assert planned.metric("api_calls_total") == 0
    assert planned.metric("estimated_cost") == 0.01


# History


def test_a_closed_iteration_is_one_line_of_history():
    worked = Memory("a", "b")
    worked.see("unmet", "unmet")
    worked.iterate("a", "met", "unmet", result=outcome(report="I did\n  this and that. " + "x" * 500))
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
        "seconds": 60.0,
        "commit": f"{1:040x}"[:12],
        "met": 1,
    }
    assert worked.memory["plan"] is None
    assert worked.metric("total_iterations") == 1
    assert worked.metric("lines_of_code_added") == 40


def test_an_iteration_that_changed_nothing_has_no_commit_and_no_files():
    worked = Memory("a")
    worked.memory["iterations"] = 1
    progress.note_plan(worked.memory, plan())
    worked.ran(outcome())
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
    worked.memory["iterations"] = 1
    progress.note_plan(worked.memory, plan())
    worked.ran(outcome())
    progress.close_iteration(worked.memory, repo.Commit("c" * 40, [path]), STATISTICS)
    worked.fits()
    assert worked.memory["artifacts"] == [{"path": path, "type": kind, "version": "c" * 40}]


@pytest.mark.parametrize(("letter", "iterations", "left"), [("x", 10_000, 100), ("測", 300, 10)])
def test_the_state_stays_below_100_kilobytes_for_ever_with_long_reports(tmp_path, letter, iterations, left):
    worked = Memory(*(f"criterion-{n}" for n in range(12)))
    ids, file = list(worked.memory["criteria"]), tmp_path / "api.json"
    paths = [f"src/some/package/module_{n}.py" for n in range(500)]
    for n in range(1, iterations + 1):
        worked.memory["iterations"] = n
        progress.note_plan(worked.memory, plan(ids[n % 12]))
        kind = ("ended", "timeout", "crashed")[n % 3]
        said = {"message": letter * 3000, "report": letter * 8000, "denials": [letter * 100] * 20}
        progress.note_outcome(worked.memory, outcome(kind, **said))
        worked.memory["commit"] = f"{n:040x}"
        verdict = "met" if n // 3 % 2 else "unmet"
        progress.note_verdicts(worked.memory, {id: Verdict(id, verdict, 1, tail=str(n)) for id in ids})
        progress.close_iteration(worked.memory, repo.Commit(f"{n:040x}", paths), STATISTICS)
        if n in (iterations - 1, iterations):
            state.save(file, worked.memory)
            assert file.stat().st_size <= 100_000
            assert state.load(file)["history"] == worked.memory["history"]
    numbers = [entry["iteration"] for entry in worked.memory["history"]]
    assert left < len(numbers) <= progress.HISTORY
    assert numbers == list(range(iterations + 1 - len(numbers), iterations + 1))
    assert worked.metric("session_count") == worked.metric("total_iterations") == iterations
    assert worked.metric("estimated_cost") == iterations / 4


def test_history_is_bounded_also_before_it_is_saved():
    worked = Memory("a")
    for _ in range(progress.HISTORY + 5):
        worked.iterate("a", "unmet")
    assert len(worked.memory["history"]) == progress.HISTORY
    assert worked.memory["history"][0]["iteration"] == 6


# Limits


def spent(cost: float = 0.0, iterations: int = 0, hours: float = 0.0, tokens: int = 0) -> dict[str, Any]:
    memory = Memory("a").memory
    memory["iterations"] = iterations
    memory["metrics"].update(estimated_cost=cost, worker_seconds=hours * 1800, check_seconds=hours * 1800)
    memory["metrics"]["token_usage"].update(input=tokens // 2, output=tokens - tokens // 2)
    return memory


@pytest.mark.parametrize(
    ("used", "limits", "said"),
    [
        ({"cost": 4.99}, {"cost_usd": 5}, ""),
        ({"cost": 5}, {"cost_usd": 5}, "limits.cost_usd is reached: 5 of 5. "),
        ({"cost": 5.123456}, {"cost_usd": 5.0}, "limits.cost_usd is reached: 5.1235 of 5.0. "),
        ({"iterations": 39}, {"iterations": 40}, ""),
        ({"iterations": 40}, {"iterations": 40}, "limits.iterations is reached: 40 of 40. "),
        ({"hours": 1.999}, {"hours": 2}, ""),
        ({"hours": 2}, {"hours": 2}, "limits.hours is reached: 2.0 of 2. "),
        ({"hours": 0.002}, {"hours": 0.001}, "limits.hours is reached: 0.002 of 0.001. "),
        ({"tokens": 2_999_999}, {"tokens": 3_000_000}, ""),
        ({"tokens": 3_000_000}, {"tokens": 3_000_000}, "limits.tokens is reached: 3000000 of 3000000. "),
        ({"cost": 9, "iterations": 9, "hours": 9, "tokens": 9}, {}, ""),
    ],
)
def test_a_limit_is_reached_when_it_is_equalled_and_not_before(used, limits, said):
    given = Limits(**{**vars(NO_LIMITS), **limits})
    raise_it = "Raise it in the mission and start again to go on."
    assert progress.limit_reached(spent(**used), given, None) == (said and said + raise_it)


def test_the_settings_limit_iterations_too_and_the_message_names_what_to_raise():
    memory = spent(iterations=7)
    assert progress.limit_reached(memory, NO_LIMITS, 8) == ""
    said = "orchestrator.max_iterations is reached: 7 of 7. Raise it in the settings and start again to go on."
    assert progress.limit_reached(memory, NO_LIMITS, 7) == said
    limits = Limits(None, 7, None, None)
    assert progress.limit_reached(memory, limits, 100).startswith("limits.iterations is reached: 7 of 7.")


def test_input_and_output_tokens_count_against_the_limit_and_cached_ones_do_not():
    worked = Memory("a")
    worked.ran(outcome())
    assert progress.limit_reached(worked.memory, Limits(None, None, None, 31), None) == ""
    assert progress.limit_reached(worked.memory, Limits(None, None, None, 30), None).startswith("limits.tokens")


@pytest.mark.parametrize(
    ("cost", "cap", "left"), [(0, 5, 5), (1.5, 5, 3.5), (4.999, 5, 0.01), (5, 5, 0.01), (9, 5, 0.01), (9, None, None)]
)
def test_what_the_next_session_may_cost_is_what_is_left_and_never_nothing(cost, cap, left):
    assert progress.budget_left(spent(cost=cost), Limits(cap, None, None, None)) == left


# The situation


def test_a_situation_holds_every_criterion_as_it_stands():
    worked = Memory("a", "b", "c")
    worked.see("met", "unmet", "unmet")
    worked.iterate("b", "unmet", "unmet", "unmet", result=outcome(report="I tried."))
    here = worked.situation()
    assert (here.mission, here.iteration, here.report, here.last) == (worked.mission, 2, "I tried.", "ended, 3 turns")
    assert [(s.id, s.verdict, s.regressed, s.stalls) for s in here.standings] == [
        ("a", "unmet", True, 0),
        ("b", "unmet", False, 1),
        ("c", "unmet", False, 0),
    ]
    assert [(s.check, s.tail) for s in here.standings][1] == ("make b", "output of b")
    assert here.tried == ["1: b (retry_modified): ended, 0 met afterwards. It said: I tried."]


def test_what_is_met_again_is_no_regression_any_more():
    worked = Memory("a")
    for verdict in ("met", "unmet", "met"):
        worked.iterate("a", verdict)
    assert [s.regressed for s in worked.situation().standings] == [False]


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
    session = {"session": "0ccb0c9e", "failures": 0, "process": None, "spent": {}}
    worked.memory["worker"] = worker and {**session, **worker}
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
    climb = ["retry_modified"] * 2 + ["alternative"] * 2
    assert strategies == [(focus, strategy) for focus in ("a", "b") for strategy in climb]
