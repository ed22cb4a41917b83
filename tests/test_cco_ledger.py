"""What is known of each criterion: verdicts and who broke them, claims, evidence, and the way back to the best."""

from __future__ import annotations

from typing import Any

import pytest
from test_cco_progress import FIRST, Memory, outcome, sha

import ledger
from claims import Claim
from dod import Verdict

# --------------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------------


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
    assert seen.iterate("b", "broken", "unmet") == [
        f"criterion a: met -> broken (regression: broken in iteration 1, commit {sha(1)[:12]}, while working on b)"
    ]
    assert seen.known("a", "regressions") == [
        {"iteration": 1, "commit": sha(1)[:12], "session": "0ccb0c9e", "focus": "b"}
    ]
    seen.iterate("a", "met", "unmet")
    seen.iterate("b", "unmet", "met")
    assert [entry["iteration"] for entry in seen.known("a", "regressions")] == [1, 3]


def test_only_the_latest_regressions_are_kept():
    seen = Memory("a")
    for _ in range(30):
        seen.iterate("a", "met")
        seen.iterate("a", "unmet")
    assert [entry["iteration"] for entry in seen.known("a", "regressions")] == [50, 52, 54, 56, 58, 60]


def test_what_runs_last_is_not_broken_by_waiting_for_the_others():
    seen = Memory("a", "slow")
    seen.see("met", "met")
    assert seen.iterate("a", "unmet", "unjudged") == [
        f"criterion a: met -> unmet (regression: broken in iteration 1, commit {sha(1)[:12]}, while working on a)",
        "criterion slow: met -> unjudged",
    ]
    assert seen.known("slow", "regressions") == []
    assert seen.iterate("a", "met", "unmet") == [
        "criterion a: unmet -> met",
        "criterion slow: unjudged -> unmet"
        f" (regression: broken in iteration 2, commit {sha(2)[:12]}, while working on a)",
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


# --------------------------------------------------------------------------------------------------------
# Stalls
# --------------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------------
# Who broke it
# --------------------------------------------------------------------------------------------------------


def test_what_a_person_broke_between_two_runs_is_not_put_down_to_a_session():
    seen = Memory("a")
    seen.iterate("a", "met")
    (line,) = seen.by_hand("unmet")
    assert line == (
        "criterion a: met -> unmet (regression: broken in iteration 1, commit eeeeeeeeeeee, outside of the sessions)"
    )
    (regression,) = seen.known("a", "regressions")
    assert regression == {"iteration": 1, "commit": "e" * 12, "session": "", "focus": ""}


def test_a_regression_in_a_repository_without_a_commit_says_so():
    seen = Memory("a")
    seen.iterate("a", "met")
    seen.by_hand("unmet", commit="")
    assert ledger.broken_by(seen.memory["criteria"]["a"]) == (
        "broken in iteration 1, commit none, outside of the sessions"
    )


def test_what_nobody_broke_is_broken_by_nobody():
    seen = Memory("a")
    seen.iterate("a", "unmet")
    assert ledger.broken_by(seen.memory["criteria"]["a"]) == ""


def test_a_red_clean_checkout_is_no_regression_and_says_that_it_was_never_proven():
    seen = Memory("a")
    seen.iterate("a", "met")
    assert seen.iterate("a", "unmet", where="checkout") == ["criterion a: met -> unmet"]
    assert seen.known("a", "regressions") == []
    assert seen.known("a", "unconfirmed") is True
    assert ledger.broken_by(seen.memory["criteria"]["a"]) == ""
    seen.iterate("a", "met")  # the work tree alone takes nothing of that back
    assert seen.known("a", "unconfirmed") is True
    seen.iterate("a", "met", where="checkout")
    assert seen.known("a", "unconfirmed") is False


def test_what_is_tampered_with_or_flaky_after_it_was_met_is_a_regression():
    for verdict in ("tampered", "flaky", "timeout", "broken", "unmet"):
        seen = Memory("a")
        seen.iterate("a", "met")
        seen.iterate("a", verdict)
        assert len(seen.known("a", "regressions")) == 1


@pytest.mark.parametrize(("iteration", "broke"), [(1, False), (2, True), (3, False)])
def test_it_is_known_which_iteration_broke_a_criterion(iteration, broke):
    seen = Memory("a", "b")
    for verdict in ("met", "unmet", "unmet"):
        seen.iterate("b", verdict, "unmet")
    assert ledger.broke_in(seen.memory["criteria"]["a"], iteration) is broke
    assert ledger.broke_in(seen.memory["criteria"]["b"], iteration) is False


# --------------------------------------------------------------------------------------------------------
# The course of the verdicts
# --------------------------------------------------------------------------------------------------------


def test_the_course_holds_one_letter_for_each_change():
    seen = Memory("a")
    seen.see("unmet")
    for verdict in ("unmet", "broken", "met", "met", "timeout", "unmet", "met", "flaky", "tampered", "unjudged", "met"):
        seen.iterate("a", verdict)
    expected = [[0, "u"], [3, "m"], [5, "r"], [7, "m"], [8, "f"], [9, "t"], [10, "?"], [11, "m"]]
    assert seen.known("a", "changes") == expected


def test_of_two_verdicts_in_one_iteration_the_last_counts():
    seen = Memory("a")
    seen.see("unmet")
    seen.iterate("a", "met")
    seen.see("unmet")
    assert seen.known("a", "changes") == [[0, "u"], [1, "r"]]
    seen.see("met")
    assert seen.known("a", "changes") == [[0, "u"], [1, "m"]]


def test_what_was_red_from_the_start_is_no_regression_in_the_course():
    seen = Memory("a")
    for verdict in ("unmet", "unjudged", "unmet"):
        seen.iterate("a", verdict)
    assert seen.known("a", "changes") == [[1, "u"], [2, "?"], [3, "u"]]


def test_a_red_clean_checkout_is_a_plain_red_in_the_course():
    seen = Memory("a")
    seen.iterate("a", "met")
    seen.iterate("a", "unmet", where="checkout")
    assert seen.known("a", "changes") == [[1, "m"], [2, "u"]]


def test_a_red_clean_checkout_after_a_mended_regression_is_a_plain_red_in_the_course():
    seen = Memory("a")
    for verdict in ("met", "unmet", "met"):
        seen.iterate("a", verdict)
    seen.iterate("a", "unmet", where="checkout")
    assert seen.known("a", "changes") == [[1, "m"], [2, "r"], [3, "m"], [4, "u"]]


def test_the_course_is_bounded_and_shorter_where_there_are_many_criteria():
    for count, most in ((1, ledger.CHANGES), (120, ledger.CHANGES // 6)):
        seen = Memory(*(f"c{n}" for n in range(count)))
        for n in range(most + 5):
            seen.iterate("c0", *["met" if n % 2 else "unmet"] * count)
        changes = seen.known("c0", "changes")
        assert len(changes) == most
        assert changes[-1][0] == most + 5


# --------------------------------------------------------------------------------------------------------
# What proves it
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "red"),
    [("unmet", True), ("timeout", True), ("flaky", True), ("broken", False), ("tampered", False), ("unjudged", False)],
)
def test_only_a_check_that_ran_and_failed_was_seen_red(verdict, red):
    seen = Memory("a")
    seen.see(verdict)
    assert seen.known("a", "seen_red") is red
    seen.iterate("a", "met")
    assert seen.known("a", "seen_red") is red


def test_what_was_flaky_once_stays_so():
    seen = Memory("a")
    seen.iterate("a", "met", flaky=True)
    assert seen.known("a", "flaky") is True
    seen.iterate("a", "met")
    assert seen.known("a", "flaky") is True


def test_the_last_run_is_the_proof_with_its_commit_and_what_did_not_run_changes_none():
    seen = Memory("a")
    seen.iterate("a", "met", digest="d" * 64, seconds=1.5, runs=2)
    proof = seen.known("a", "proof")
    assert proof.pop("at").endswith("+00:00")
    ran = {"code": 0, "seconds": 1.5, "digest": "d" * 64, "runs": 2, "where": "tree"}
    assert proof == {**ran, "commit": sha(1)}
    seen.iterate("a", "met", digest="e" * 64, runs=0)
    seen.iterate("a", "unjudged")
    assert (seen.known("a", "proof")["digest"], seen.known("a", "proof")["commit"]) == ("d" * 64, sha(1))
    seen.iterate("a", "unmet", digest="f" * 64, where="checkout")
    assert (seen.known("a", "proof")["where"], seen.known("a", "proof")["commit"]) == ("checkout", sha(4))


def test_evidence_names_who_when_and_what_commit_and_is_bounded():
    seen = Memory("a")
    quotes = [{"path": "README.md", "blob": "b" * 40, "text": "x" * 999}] * 9
    ledger.note_evidence(seen.memory, "a", "judged", "m/n", "y" * 999, quotes)
    seen.fits()
    evidence = seen.known("a", "evidence")
    assert evidence.pop("at").endswith("+00:00")
    assert evidence == {
        "kind": "judged",
        "by": "m/n",
        "commit": FIRST,
        "reason": "y" * 200,
        "quotes": [{"path": "README.md", "blob": "b" * 40, "text": "x" * length} for length in [200] * 5 + [0] * 4],
    }
    assert len(quotes[0]["text"]) == 999


def test_what_confirmed_the_mission_is_kept_with_what_setup_did():
    seen = Memory("a")
    ledger.note_confirmed(seen.memory, "checkout", 12.345, Verdict("setup", "met", 0, 3.5, "d" * 64))
    seen.fits()
    confirmed = seen.memory["confirmed"]
    assert confirmed.pop("at").endswith("+00:00")
    setup = {"code": 0, "seconds": 3.5, "digest": "d" * 64}
    assert confirmed == {"commit": FIRST, "where": "checkout", "seconds": 12.3, "setup": setup}
    ledger.note_confirmed(seen.memory, "tree", 0.0, None)
    assert (seen.memory["confirmed"]["where"], seen.memory["confirmed"]["setup"]) == ("tree", None)


def test_tampering_is_counted_whole_and_kept_in_part():
    seen = Memory("a")
    for n in range(10):
        seen.memory["iterations"] = n
        ledger.note_tampering(seen.memory, [(f"{n}", "changed", f"/kept/{n}"), (f"{n} too", "new", "")] * 2)
    seen.fits()
    assert seen.metric("tampered") == 40
    assert len(seen.memory["tampering"]) == ledger.TAMPERING
    assert seen.memory["tampering"][-1] == {"iteration": 9, "path": "9 too", "what": "new", "kept": ""}


# --------------------------------------------------------------------------------------------------------
# What the worker claimed
# --------------------------------------------------------------------------------------------------------

ALL = Claim("everything is done", ("a", "b", "c"))
B = Claim("b is complete", ("b",))
C = Claim("c is complete", ("c",))


@pytest.mark.parametrize(
    ("verdicts", "made", "false"),
    [
        (("met", "met", "met"), 3, {}),
        (("met", "unmet", "met"), 3, {ALL.text: ["b"], B.text: ["b"]}),
        (("broken", "timeout", "flaky"), 3, {ALL.text: ["a", "b", "c"], B.text: ["b"], C.text: ["c"]}),
        (("met", "tampered", "met"), 3, {ALL.text: ["b"], B.text: ["b"]}),
        (("met", "met", "unjudged"), 2, {}),
        (("unjudged", "unmet", "unjudged"), 2, {ALL.text: ["b"], B.text: ["b"]}),
        (("unjudged", "unjudged", "unjudged"), 0, {}),
    ],
)
def test_a_claim_is_held_against_the_verdicts_and_what_is_unjudged_is_neither(verdicts, made, false):
    seen = Memory("a", "b", "c")
    lines = seen.iterate("a", *verdicts, said=[ALL, B, C])
    assert seen.memory["last"]["claims"] == {
        "made": made,
        "lies": [{"text": text, "false": ids} for text, ids in false.items()],
    }
    assert (seen.metric("claims_made"), seen.metric("claims_false")) == (made, len(false))
    assert [line for line in lines if "reported" in line] == [
        f'the worker reported "{text}"; the checks say otherwise: {", ".join(ids)}' for text, ids in false.items()
    ]


def test_claims_add_up_over_the_sessions_and_what_is_kept_of_one_is_bounded():
    seen = Memory("a")
    for _ in range(3):
        seen.iterate("a", "unmet", said=[Claim(f"a is complete {n}", ("a",)) for n in range(20)])
    assert (seen.metric("claims_made"), seen.metric("claims_false")) == (60, 60)
    assert len(seen.memory["last"]["claims"]["lies"]) == ledger.NAMED


def test_a_claim_on_a_criterion_that_the_mission_has_lost_meanwhile_is_neither():
    seen = Memory("a")
    assert seen.iterate("a", "met", said=[Claim("gone is complete", ("gone",))]) == ["criterion a: unjudged -> met"]
    assert seen.memory["last"]["claims"] == {"made": 0, "lies": []}


# --------------------------------------------------------------------------------------------------------
# The best so far, and the way back to it
# --------------------------------------------------------------------------------------------------------


def course(*rows: str) -> Memory:
    """A mission whose iterations ended with these verdicts: one letter for each criterion, m for met."""
    seen = Memory(*(f"c{n}" for n, _ in enumerate(rows[0])))
    for row in rows:
        seen.iterate("c0", *("met" if letter == "m" else "unmet" for letter in row))
    return seen


def best(seen: Memory) -> tuple[Any, ...]:
    return tuple(seen.memory["best"][key] for key in ("commit", "met", "iteration", "returns"))


def test_the_best_commit_is_the_latest_of_those_with_most_criteria_met():
    assert course("uu").memory["best"] is None
    assert best(course("uu", "mu")) == (sha(2), 1, 2, 0)
    assert best(course("mu", "um", "uu")) == (sha(2), 1, 2, 0)
    assert best(course("mu", "mm", "uu", "mu")) == (sha(2), 2, 2, 0)


@pytest.mark.parametrize(
    ("rows", "back"),
    [
        (("mm", "um", "um"), 0),
        (("mm", "um", "um", "um"), 1),
        (("mm", "um", "mu", "uu"), 1),
        (("mm", "um", "um", "um", "um"), 1),
        (("mmu", "umu", "umu", "mmu", "umu", "umu"), 0),
        (("mmu", "umu", "umu", "mmu", "umu", "umu", "umu"), 4),
        (("uu", "uu", "uu", "uu"), 0),
        (("um", "um", "um", "um", "um"), 0),
    ],
)
def test_after_three_iterations_below_it_in_a_row_it_is_time_to_go_back_to_the_best(rows, back):
    assert ledger.way_back(course(*rows).memory) == (sha(back) if back else "")


def test_nothing_is_gone_back_to_where_nothing_was_broken():
    """A clean checkout that says no breaks nothing; the work was never better."""
    seen = course("mm")
    for _ in range(5):
        seen.iterate("c0", "unmet", "met", where="checkout")
    assert ledger.way_back(seen.memory) == ""


def test_going_back_is_a_fresh_start_and_is_done_twice_at_most():
    seen = course("mm", "um", "um", "um")
    assert ledger.way_back(seen.memory) == sha(1)
    returns = 0
    while ledger.way_back(seen.memory):
        returns += 1
        ledger.note_return(seen.memory, "abcd" * 10)
        seen.fits()
        assert seen.memory["commit"] == "abcd" * 10
        assert (seen.memory["current_phase"], seen.memory["worker"]) == ("validation", None)
        assert [seen.known(id, "stalls") for id in ("c0", "c1")] == [0, 0]
        assert ledger.way_back(seen.memory) == ""  # not again before three more iterations
        seen.see("met", "met")
        for _ in range(3):
            assert ledger.way_back(seen.memory) == ""
            seen.iterate("c0", "unmet", "met")
    assert returns == ledger.RETURNS


def test_a_return_to_what_does_not_pass_any_more_is_not_repeated_for_ever():
    seen, returns = course("mm", "um", "um", "um"), 0
    for _ in range(20):
        if ledger.way_back(seen.memory):
            returns += 1
            ledger.note_return(seen.memory, "abcd" * 10)
            seen.see("unmet", "met")
        seen.iterate("c0", "unmet", "met")
    assert returns == 1  # nothing was broken since then


def test_a_better_commit_may_be_gone_back_to_again():
    seen = course("mmu", *["umu"] * 3)
    for _ in range(ledger.RETURNS):
        ledger.note_return(seen.memory, "abcd" * 10)
    for row in ("mmm", "umm", "umm", "umm"):
        seen.iterate("c0", *("met" if letter == "m" else "unmet" for letter in row))
    assert best(seen)[3] == 0
    assert ledger.way_back(seen.memory) == sha(5)


# --------------------------------------------------------------------------------------------------------
# Conflicts and morale
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        (("mu", "um", "mu"), []),
        (("mu", "um", "mu", "um"), [("c0", "c1")]),
        (("muu", "umu", "muu", "umu"), [("c0", "c1")]),
        (("mu", "uu", "um", "uu", "mu", "uu", "um"), []),
        (("mm", "uu", "mm", "uu", "mm", "uu"), []),
    ],
)
def test_two_criteria_of_which_three_times_one_broke_the_other_are_in_conflict(rows, pairs):
    assert ledger.conflicts(course(*rows).memory) == pairs


@pytest.mark.parametrize(
    ("rows", "morale"),
    [
        ((), "steady"),
        (("uu",), "steady"),
        (("mu",), "rising"),
        (("mu", "mu"), "steady"),
        (("mu", "mu", "mu"), "struggling"),
        (("mm", "um"), "struggling"),
        (("mu", *["mu"] * 6), "stuck"),
        (("mu", *["mu"] * 6, "mm"), "rising"),
    ],
)
def test_morale_is_what_the_last_iterations_brought(rows, morale):
    seen = course(*rows) if rows else Memory("a")
    assert ledger.morale(seen.memory) == morale
    assert seen.situation().morale == morale
