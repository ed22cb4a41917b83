"""How long is waited, whatever the clock does, and which model is free: the arithmetic, with a clock of the test."""

from __future__ import annotations

import time
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

import waiting

HOUR, DAY = 3600.0, 86400.0
NOW = 1_900_000_000.0  # epoch seconds
STEPS = (30, 60, 120, 300, 600, 1800)  # seconds, as README.md tells them


class Clock:
    """The wall clock that `waiting` sees, and the share of its chance: 0 the least, 1 the most."""

    def __init__(self) -> None:
        self.now, self.chance = NOW, 0.0

    def uniform(self, low: float, high: float) -> float:
        return low + self.chance * (high - low)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(time=lambda: made.now))
    monkeypatch.setattr(waiting, "random", made)
    return made


def memory(**limited: float) -> dict[str, Any]:
    return {"wait_until": None, "wait": None, "limited": limited}


# --------------------------------------------------------------------------------------------------------
# How long
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resets_in, least",
    [
        (5 * HOUR, 5 * HOUR + 60),
        (1.0, 61.0),
        (0.0, 60.0),
        (-1.0, 60.0),
        (-400 * DAY, 60.0),
        (None, HOUR),
        (8 * DAY, 8 * DAY),
        (90 * DAY, 8 * DAY),
        (1e12, 8 * DAY),
    ],
)
def test_a_reset_is_waited_for_with_a_minute_and_up_to_one_more_by_chance(clock, resets_in, least):
    resets_at = None if resets_in is None else NOW + resets_in
    for clock.chance in (0.0, 0.5, 1.0):
        assert waiting.until_reset(resets_at) == pytest.approx(least + 60 * clock.chance)


def test_chance_spreads_those_who_wait_for_one_reset():
    waits = {round(waiting.until_reset(time.time() + HOUR), 3) for _ in range(50)}
    assert len(waits) > 40
    assert all(HOUR + 59 < wait < HOUR + 121 for wait in waits)


@pytest.mark.parametrize("failures, step", [*enumerate(STEPS, 1), (7, 1800), (8, 1800), (10_000, 1800)])
def test_after_each_failure_in_a_row_it_backs_off_for_longer_up_to_half_an_hour(clock, failures, step):
    assert waiting.backoff(failures) == step
    clock.chance = 1.0
    assert waiting.backoff(failures) == pytest.approx(step * 1.1)


def test_a_back_off_is_never_shorter_than_its_step_and_at_most_a_tenth_longer():
    waits = [waiting.backoff(1) for _ in range(200)]
    assert len(set(waits)) > 100
    assert 30 <= min(waits) <= max(waits) <= 33


# --------------------------------------------------------------------------------------------------------
# What is left
# --------------------------------------------------------------------------------------------------------


def begun(seconds: float) -> dict[str, Any]:
    found = memory()
    waiting.begin(found, seconds, waiting.LIMIT, "the usage limit")
    return found


def test_a_wait_goes_by_and_is_forgotten(clock):
    found = begun(1000)
    assert (found["wait_until"], found["wait"]) == (
        NOW + 1000,
        {"since": NOW, "kind": "limit", "why": "the usage limit"},
    )
    for passed in (0, 1, 999):
        clock.now = NOW + passed
        assert waiting.left(found) == 1000 - passed
    clock.now = NOW + 1000
    assert waiting.left(found) == 0
    clock.now = NOW + 2000
    assert waiting.left(found) < 0
    waiting.end(found)
    assert (found["wait_until"], found["wait"], waiting.left(found)) == (None, None, 0)


@pytest.mark.parametrize("back", [500, DAY, 400 * DAY, NOW])
def test_a_clock_that_is_set_back_makes_no_wait_longer_than_it_was_planned(clock, back):
    found = begun(1000)
    clock.now = NOW - back
    assert waiting.left(found) == 1000


def test_a_clock_that_is_set_forward_ends_the_wait(clock):
    found = begun(5 * HOUR)
    clock.now = NOW + 400 * DAY
    assert waiting.left(found) <= 0


def test_after_a_reboot_with_a_wrong_clock_it_waits_as_long_as_planned_and_goes_on_where_the_clock_is_set(clock):
    found = begun(5 * HOUR)
    clock.now = 0.0  # a machine without a battery
    assert waiting.left(found) == 5 * HOUR
    clock.now = NOW + 3 * HOUR
    assert waiting.left(found) == 2 * HOUR


def test_no_wait_that_stands_in_a_state_is_longer_than_the_longest_one(clock):
    found = {**memory(), "wait_until": NOW + 1e9, "wait": {"since": NOW, "kind": "limit", "why": "?"}}
    assert waiting.left(found) == 8 * DAY + 120


# --------------------------------------------------------------------------------------------------------
# Which model
# --------------------------------------------------------------------------------------------------------

FALLBACKS = ("sonnet", "haiku")


@pytest.mark.parametrize(
    "model, family, wanted, free",
    [
        (None, "opus", None, ["sonnet", "haiku"]),
        (None, "sonnet", None, ["haiku"]),
        ("opus", "opus", "opus", ["sonnet", "haiku"]),
        ("claude-opus-5-5", "opus", "claude-opus-5-5", ["sonnet", "haiku"]),
        ("claude-opus-5-5", "opus", "Claude-Opus-4", ["sonnet", "haiku"]),
        ("claude-opus-5-5", "opus", None, [None, "sonnet", "haiku"]),
        ("sonnet", "sonnet", "opus", ["opus", "haiku"]),
        ("sonnet", "sonnet", "claude-sonnet-5-5[1m]", ["haiku"]),
        ("best", "fable", "best", ["sonnet", "haiku"]),
        ("Our-Best", "fable", "Our-Best", ["sonnet", "haiku"]),
        ("us.Anthropic/Opus", "Opus", "us.Anthropic/Opus", ["sonnet", "haiku"]),
    ],
)
def test_a_model_that_is_used_up_is_not_chosen_nor_any_of_its_family(clock, model, family, wanted, free):
    found = memory()
    waiting.note_limited(found, model, family, HOUR)
    assert waiting.models(found, [wanted, *FALLBACKS]) == free


def test_without_a_limit_all_are_free_and_the_wanted_one_comes_first(clock):
    assert waiting.models(memory(), [None, *FALLBACKS]) == [None, "sonnet", "haiku"]
    assert waiting.models(memory(), ["opus"]) == ["opus"]


def test_of_several_limits_each_ends_at_its_own_time_and_the_first_is_waited_for(clock):
    found = memory()
    waiting.note_limited(found, None, "opus", 5 * HOUR)
    waiting.note_limited(found, "sonnet", "sonnet", 2 * HOUR)
    waiting.note_limited(found, "haiku", "haiku", 9 * HOUR)
    assert waiting.models(found, [None, *FALLBACKS]) == []
    assert waiting.first_reset(found) == 2 * HOUR
    clock.now = NOW + 2 * HOUR
    assert waiting.models(found, [None, *FALLBACKS]) == ["sonnet"]
    clock.now = NOW + 5 * HOUR
    assert waiting.models(found, [None, *FALLBACKS]) == [None, "sonnet"]
    assert waiting.first_reset(found) == 4 * HOUR
    clock.now = NOW + 9 * HOUR
    assert waiting.models(found, [None, *FALLBACKS]) == [None, "sonnet", "haiku"]
    assert found["limited"] == {}  # what is over is forgotten


def test_a_limit_that_comes_again_takes_the_later_time(clock):
    found = memory()
    waiting.note_limited(found, None, "opus", HOUR)
    waiting.note_limited(found, None, "opus", 3 * HOUR)
    clock.now = NOW + 2 * HOUR
    assert waiting.models(found, [None]) == []


@pytest.mark.parametrize("change", [-30 * DAY, -NOW, 30 * DAY])
def test_a_clock_that_is_set_back_or_forward_by_weeks_frees_all_models(clock, change):
    """One session too many is cheap; a model that is left out for as long as the clock was wrong is not."""
    found = memory()
    waiting.note_limited(found, "opus", "opus", 5 * HOUR)
    clock.now = NOW + change
    assert waiting.models(found, ["opus", *FALLBACKS]) == ["opus", "sonnet", "haiku"]


def test_a_clock_that_is_set_back_by_a_little_keeps_the_limit(clock):
    found = memory()
    waiting.note_limited(found, "opus", "opus", 5 * HOUR)
    clock.now = NOW - DAY
    assert waiting.models(found, ["opus", *FALLBACKS]) == ["sonnet", "haiku"]


# --------------------------------------------------------------------------------------------------------
# For people
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, shown",
    [
        (-5, "0 s"), (0, "0 s"), (0.9, "0 s"), (40, "40 s"), (59.9, "59 s"), (60, "1 min"), (12 * 60 + 59, "12 min"),
        (59 * 60 + 59, "59 min"), (HOUR, "1 h 00 min"), (3 * HOUR + 5 * 60, "3 h 05 min"), (DAY, "24 h 00 min"),
        (48 * HOUR - 1, "47 h 59 min"), (48 * HOUR, "2 d 0 h"), (52 * HOUR, "2 d 4 h"), (8 * DAY + 120, "8 d 0 h"),
    ],
)  # fmt: skip
def test_a_span_is_told_in_the_units_of_people(seconds, shown):
    assert waiting.span(seconds) == shown


def test_the_end_of_a_wait_is_told_as_day_and_time_of_the_machines_own_clock(clock):
    found = begun(5 * HOUR)
    assert waiting.when(found) == datetime.fromtimestamp(NOW + 5 * HOUR).strftime("%a %H:%M")


def test_a_wait_of_the_future_begins_anew_and_then_passes_from_one_start_to_the_next(clock):
    found = memory()
    waiting.begin(found, 3600.0, waiting.LIMIT, "the usage limit")
    clock.now -= 400 * DAY  # the clock was wrong, and is right now
    for hours, left in ((0.0, 3600.0), (0.5, 1800.0), (0.5, 0.0)):
        clock.now += hours * HOUR
        waiting.set_right(found)
        assert waiting.left(found) == left


# --------------------------------------------------------------------------------------------------------
# The manager LLM
# --------------------------------------------------------------------------------------------------------


def alone(until: float | None = None, failures: int = 0) -> dict[str, Any]:
    """A memory after the manager LLM could not be reached once more."""
    made = {"manager": {"failures": failures, "since": 0, "until": 0, "useless": 0}}
    waiting.note_asked(made, "manager", reached=False, until=until)
    return made


def test_a_manager_that_cannot_be_reached_is_left_alone_for_longer_each_time_and_is_asked_then(clock):
    for failures, step in enumerate(STEPS):
        made = alone(failures=failures)
        clock.now = NOW + step - 1
        assert not waiting.may_ask(made, "manager")
        clock.now = NOW + step
        assert waiting.may_ask(made, "manager")
        clock.now = NOW
    waiting.note_asked(made, "manager", reached=True)
    assert made == {"manager": {"failures": 0, "since": 0, "until": 0, "useless": 0}}
    assert waiting.may_ask(made, "manager")


@pytest.mark.parametrize(
    ("until", "asked_in"),
    [
        (20 * HOUR, 20 * HOUR),  # the daily cap of free models
        (5.0, 30.0),  # sooner than it would be asked anyway
        (-5.0, 30.0),
        (20 * DAY, 30.0),  # the month of a key: a person may add credit long before
    ],
)
def test_when_a_manager_says_when_it_can_be_reached_again_it_is_left_alone_for_that_day(clock, until, asked_in):
    made = alone(until=NOW + until)
    clock.now = NOW + asked_in - 1
    assert not waiting.may_ask(made, "manager")
    clock.now = NOW + asked_in
    assert waiting.may_ask(made, "manager")


def test_a_clock_that_was_set_back_does_not_keep_the_manager_silent(clock):
    made = alone(until=NOW + 20 * HOUR)
    clock.now = NOW - DAY
    assert waiting.may_ask(made, "manager")
