"""What the manager LLM is asked: the figures of extras/thirty.py, and a prompt that does not grow with the mission."""

from __future__ import annotations

import re
import sys

import pytest
from test_cco_progress import Memory, outcome

import briefing
import ledger
import manager
import progress
import repo
import session
from extras import thirty
from mission import load_settings
from prompt import RESERVE, size
from situation import Situation

ROOM = load_settings(None, None, {}).openrouter.max_prompt
ANSWERED = 18  # iterations after which a person answers; 10 and 1,000 are at the same place between two answers
BROKEN = range(5, 9)  # of them, those after which a second criterion does not hold
FIRST, LAST = range(10, 10 + ANSWERED), range(1001 - ANSWERED, 1001)  # iterations whose prompts are compared


def figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    """What extras/thirty.py prints."""
    monkeypatch.setattr(sys, "argv", ["thirty.py", *args])
    code = thirty.main()
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return dict(line.split(": ", 1) for line in printed.out.splitlines())


# --------------------------------------------------------------------------------------------------------
# Thirty criteria
# --------------------------------------------------------------------------------------------------------


def test_a_mission_of_30_criteria_takes_at_most_30_calls_and_60000_characters(monkeypatch, capsys):
    found = figures(monkeypatch, capsys)
    assert found["iterations"] == "30"
    assert int(found["manager_calls"]) <= 30 and found["calls_avoided"] == "0"
    assert int(found["prompt_characters"]) <= 60_000
    assert int(found["prompt_20"]) <= int(found["prompt_10"]) + 20
    assert found["manager_cost_usd"] == "0.30"  # a cent a call


@pytest.mark.parametrize(
    ("args", "avoided"), [(["--rules"], "0"), (["--when", "stalled"], "3"), (["--when", "never"], "3")]
)
def test_where_all_goes_well_the_llm_is_asked_only_if_that_is_wanted(args, avoided, monkeypatch, capsys):
    monkeypatch.setattr(thirty, "PARTS", range(1, 4))
    found = figures(monkeypatch, capsys, *args)
    assert (found["iterations"], found["manager_calls"], found["prompt_characters"]) == ("3", "0", "0")
    assert found["calls_avoided"] == avoided


def test_a_mission_that_does_not_end_done_is_said_to(monkeypatch, capsys):
    monkeypatch.setattr(thirty, "PARTS", range(1, 2))
    impossible = {**thirty.criterion(1), "check": "false"}
    monkeypatch.setattr(thirty, "criterion", lambda number: impossible)
    monkeypatch.setattr(sys, "argv", ["thirty.py", "--rules"])
    assert thirty.main() == 1
    assert "c01" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------
# A thousand iterations
# --------------------------------------------------------------------------------------------------------


class Long(Memory):
    """A mission of which one criterion never becomes true and another breaks now and then; a person goes on with it."""

    def __init__(self, much: int):
        """much: how many times what a session usually says, a check prints and a lesson tells."""
        super().__init__(*(f"c{n:02}" for n in range(1, 31)))
        self.much, self.prompts = much, dict[int, tuple[str, str]]()
        self.ids = [c.id for c in self.mission.criteria]
        self.see(*self.verdicts(0))

    def fits(self) -> None:
        """Not after each step: that is not what is looked at here."""

    def verdicts(self, number: int) -> list[str]:
        """One is never met, one breaks, ten wait and the others hold."""
        broken = number % ANSWERED in BROKEN
        return ["unmet", "unmet" if broken else "met", *["unmet"] * 10, *["met"] * 18]

    def here(self) -> Situation:
        """What is to be decided on."""
        words = f"at iteration {self.memory['iterations']} it fails in its own way\n" * 3 * self.much
        tails, told = dict.fromkeys(self.ids, words), dict.fromkeys(self.ids, ["This helped before. " * 9] * self.much)
        notes = ["Use the second port. " * 5] * self.much
        return progress.situation(self.memory, self.mission, tails, 0.6, told, notes=notes, commits=["0123456 x"] * 5)

    def go(self, iterations: int) -> None:
        """So many iterations, as the loop has them, by the rules."""
        for number in range(1, iterations + 1):
            here = self.here()
            if number in (*FIRST, *LAST):
                self.prompts[number] = briefing.for_manager(here, ROOM)
            plan = manager.rules(here)
            assert plan.strategy != "escalate", plan.question
            self.memory["iterations"] = number
            progress.note_plan(self.memory, plan)
            self.memory["worker"] = {**session.new(), "session": "0ccb0c9e", "begun": True, "context": 0.1}
            said = f"I worked on {plan.focus} and ran its check. " * self.much
            progress.note_outcome(self.memory, outcome(report=said))
            progress.note_commit(self.memory, repo.Commit(f"{number:040x}", ["src/a.py"]))
            letters = "".join(chr(97 + number * k % 26) for k in (1, 3, 7, 11, 15))
            self.see(*self.verdicts(number), output=f"{letters} is missing")
            ledger.note_claims(self.memory)
            progress.close_iteration(self.memory, repo.Commit(f"{number:040x}", ["src/a.py"]), {})
            if number % ANSWERED == 0:
                progress.unblock(self.memory)


def length(prompt: tuple[str, str]) -> int:
    """Characters of both messages; a number or a commit counts as one, however long it is."""
    return sum(len(re.sub(r"\b[0-9a-f]*\d[0-9a-f]*\b", "9", text)) for text in prompt)


def whole(prompt: tuple[str, str]) -> int:
    """Bytes of both messages."""
    return sum(map(size, prompt))


# What is too much is cut at the end of a line, and where that is depends on the digits.
@pytest.mark.parametrize(("much", "measure", "tolerance"), [(1, length, 0), (40, whole, 200)])
def test_the_prompt_is_as_long_at_iteration_1000_as_at_10(much, measure, tolerance, capsys):
    long = Long(much)
    long.go(1000)
    sizes = {number: measure(prompt) for number, prompt in long.prompts.items()}
    with capsys.disabled():
        print(f" {sizes[10]} and {sizes[1000]} ", end="")
    assert abs(sizes[1000] - sizes[10]) <= tolerance
    assert max(sizes[n] for n in LAST) <= max(sizes[n] for n in FIRST) + tolerance
    assert max(map(whole, long.prompts.values())) <= ROOM - RESERVE
    assert {system for system, _ in long.prompts.values()} == {long.prompts[10][0]}  # read from a cache each time
