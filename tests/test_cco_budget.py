"""What a mission may still use: limits that are reached, what is left of them, and when there is a warning."""

from __future__ import annotations

from typing import Any

import pytest
from test_cco_progress import Memory, outcome

import budget
from mission import Limits

NO_LIMITS = Limits(None, None, None, None)
NOTHING_MET = "None of the 1 criteria is met yet, so what it would take cannot be told."


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
    raise_it = f"Raise it in the mission and start again to go on. {NOTHING_MET}"
    assert budget.reached(spent(**used), given, None) == (said and said + raise_it)


def test_the_settings_limit_iterations_too_and_the_message_names_what_to_raise():
    memory = spent(iterations=7)
    assert budget.reached(memory, NO_LIMITS, 8) == ""
    said = "orchestrator.max_iterations is reached: 7 of 7. Raise it in the settings and start again to go on."
    assert budget.reached(memory, NO_LIMITS, 7) == f"{said} {NOTHING_MET}"
    limits = Limits(None, 7, None, None)
    assert budget.reached(memory, limits, 100).startswith("limits.iterations is reached: 7 of 7.")


def test_input_and_output_tokens_count_against_the_limit_and_cached_ones_do_not():
    worked = Memory("a")
    worked.ran(outcome())
    assert budget.reached(worked.memory, Limits(None, None, None, 31), None) == ""
    assert budget.reached(worked.memory, Limits(None, None, None, 30), None).startswith("limits.tokens")


@pytest.mark.parametrize(
    ("cost", "cap", "left"), [(0, 5, 5), (1.5, 5, 3.5), (4.999, 5, 0.01), (5, 5, 0.01), (9, 5, 0.01), (9, None, None)]
)
def test_what_the_next_session_may_cost_is_what_is_left_and_never_nothing(cost, cap, left):
    assert budget.left_usd(spent(cost=cost), Limits(cap, None, None, None)) == left


def test_what_the_others_would_take_is_told_by_what_those_that_are_met_took():
    memory = Memory("a", "b", "c", "d").memory
    memory["completed_tasks"] = ["a", "b"]
    memory["metrics"]["estimated_cost"] = 12.0
    memory["iterations"] = 3
    assert budget.reached(memory, Limits(12, None, None, None), None).endswith(
        "By what it took so far, about 24.0 would be needed (2 more at what each of the 2 met ones took)."
    )
    assert "about 6 would be needed" in budget.reached(memory, Limits(None, 3, None, None), None)


def test_an_iteration_that_has_begun_is_stopped_by_cost_alone():
    memory = spent(iterations=3)
    assert budget.reached(memory, Limits(None, 3, None, None), 3, begun=True) == ""
    assert budget.reached(spent(cost=2, iterations=3), Limits(1, 3, None, None), None, begun=True)


@pytest.mark.parametrize(
    ("hours", "limit", "left"), [(0, None, 7200), (0, 10, 7200), (9, 10, 3600), (9.999, 10, 60), (11, 10, 60)]
)
def test_a_session_runs_no_longer_than_what_is_left_of_the_hours(hours, limit, left):
    assert budget.left_seconds(spent(hours=hours), Limits(None, None, limit, None), 7200.0) == pytest.approx(left)


def test_a_warning_comes_once_at_half_at_four_fifths_and_at_the_end_and_again_when_the_limit_was_raised():
    memory, said = spent(), []
    for cost in (1, 4.9, 5, 7, 7.9, 8, 9, 10, 11):
        memory["metrics"]["estimated_cost"] = cost
        said += [(cost, line.split(" %")[0]) for line in budget.alerts(memory, Limits(10, None, None, None), None)]
    assert said == [(5, "50"), (8, "80"), (10, "100")]
    assert budget.alerts(memory, Limits(20, None, None, None), None) == []
    memory["metrics"]["estimated_cost"] = 16
    assert budget.alerts(memory, Limits(20, None, None, None), None) == ["80 % of limits.cost_usd is used: 16 of 20"]


@pytest.mark.parametrize(
    ("first_met", "verdicts", "rest"),
    [
        ((1, None, None), "met unmet unmet", None),  # one is no rule
        ((1, 2, None), "met met unmet", 3.0),
        ((1, 2, None, None), "met met unmet unjudged", 6.0),
        ((0, 1, None), "met met unmet", None),  # what was met before cost nothing, and tells nothing
        ((0, 1, 2, None), "met met met unmet", 3.0),
        ((1, 2, 3), "met met unmet", 3.0),  # a regression has to be paid for again
        ((1, 2), "met met", None),
    ],
)
def test_what_the_rest_costs_is_foretold_from_the_second_one_that_was_earned(first_met, verdicts, rest):
    memory = Memory(*(f"c{n}" for n in range(len(first_met)))).memory
    memory["metrics"]["estimated_cost"] = 6.0
    for known, first, verdict in zip(memory["criteria"].values(), first_met, verdicts.split(), strict=True):
        known.update(first_met=first, verdict=verdict)
    assert budget.forecast(memory) == rest


@pytest.mark.parametrize(
    ("used", "limits", "line"),
    [
        ({}, {}, ""),
        ({"cost": 0}, {"cost_usd": 5}, "Left: 100 % of limits.cost_usd."),
        ({"cost": 1.02}, {"cost_usd": 5}, "Left: 80 % of limits.cost_usd."),
        ({"cost": 1.4}, {"cost_usd": 5}, "Left: 80 % of limits.cost_usd."),  # the same for a while: it is in the prompt
        ({"cost": 9}, {"cost_usd": 5, "iterations": 4}, "Left: 0 % of limits.cost_usd, 100 % of limits.iterations."),
    ],
)
def test_what_is_left_is_told_in_tenths(used, limits, line):
    whole = Limits(*(limits.get(name) for name in ("cost_usd", "iterations", "hours", "tokens")))
    assert budget.left_line(spent(**used), whole, None) == line
