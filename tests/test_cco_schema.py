"""schema/state.json says the same as the dataclasses of state.py, and refuses what they could not take."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields

import pytest
from conftest import KIT

import state
from proc import Stop
from state import Best, CriterionState, Iteration, Outcome, Plan, Session, State, Usage, Wait

SCHEMA = json.loads((KIT / "schema/state.json").read_text())


def example() -> State:
    """A state in which every field that may be empty is filled."""
    made = State("api", "/repository", "/repository/api.yaml", "title: t\n", accepted={"mission": "5e"}, rejected=["7"])
    check = {"where": "tree", "commit": "c0ffee", "at": "now", "code": 0, "seconds": 0.5, "digest": "5e", "runs": 2}
    quotes = [{"path": "README.md", "blob": "b10b", "text": "quoted"}]
    judged = {"where": "judge", "commit": "c0ffee", "at": "now", "by": "a/model", "reason": "so", "quotes": quotes}
    made.criteria = {
        "tests": CriterionState("the tests pass", "high", "5e", "met", first_met=1, proof=check),
        "docs": CriterionState("it is documented", "low", "5f", "met", first_met=0, proof=judged),
        "lint": CriterionState("it is clean", "low", "60", "unmet", recent_failures=["f"], failed_instructions=["i"]),
    }
    made.history = [Iteration(1, "tests", "alternative", "rules", "ended", "c0ffee", "id", {"tests": "met"}, ["lint"])]
    made.plan = Plan("lint", "Clean up", "Do it.", tier="strong", usage=Usage(0.1, 1, tokens={"input": 3}), until=5.5)
    made.current = Iteration(2, "lint", claimed=["lint"], tampered=["tests/a.py"])
    made.last = Outcome("limit", claimed=["tests"], resets_at=1.5, tokens={"input": 1}, spent={"usd": 0.2})
    made.session = Session(first=1, begun=True, spent={"usd": 0.1}, process={"pid": 5, "start": "9", "boot": "b"})
    made.wait, made.limited_models = Wait(1.5, 2.5, "limit", "the usage limit"), {"": 5.5}
    made.best = Best("c0ffee", 2, 1)
    made.asked, made.alerts = {"judge": {"failures": 1, "until": 5.0}}, {"limits.hours": 80}
    made.blocked = {"question": "Which one?", "seen": "digest"}
    made.confirmed = {"commit": "c0ffee", "where": "checkout", "at": "now", "seconds": 1.5, "setup": None}
    made.record_tampering({"tests/a.py": "changed"})
    made.not_committed, made.untracked, made.notes = {"big.bin": "too large"}, ["x"], ["api.1.md"]
    return made


def test_every_state_that_is_saved_can_be_loaded(tmp_path):
    made = example()
    state.save(tmp_path / "api.json", made)
    loaded = state.load(tmp_path / "api.json")
    assert {**asdict(loaded), "totals": None} == {**asdict(made), "totals": None}
    assert made.totals.items() <= loaded.totals.items()


def test_the_schema_names_every_field_and_no_other():
    for kind in (State, CriterionState, Iteration, Plan, Usage, Outcome, Session, Wait, Best):
        part = SCHEMA if kind is State else SCHEMA["$defs"][kind.__name__]
        names = {field.name for field in fields(kind)}
        assert set(part["properties"]) == set(part["required"]) == names, kind
        assert kind is State or part["additionalProperties"] is False
    assert SCHEMA["properties"]["version"]["const"] == state.VERSION
    assert set(SCHEMA["properties"]["totals"]["required"]) == set(State("api", "", "", "").totals)
    assert State("api", "", "", "").current_phase in SCHEMA["properties"]["current_phase"]["enum"]


def places(value, path=()):
    """The path of every value below this one."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(part, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("odd", (None, True, -1.5, "-odd", [], [7], {"odd": 1}), ids=str)
def test_a_state_of_wrong_shape_is_refused_or_harmless(tmp_path, odd):
    file = tmp_path / "api.json"
    state.save(file, example())
    whole, refused = json.loads(file.read_text()), 0
    for place in list(places(whole)):
        raw = copy.deepcopy(whole)
        at(raw, place[:-1])[place[-1]] = odd
        file.write_text(json.dumps(raw))
        try:
            loaded = state.load(file)
        except Stop:
            refused += 1
            continue
        for name in (name for name, one in vars(State).items() if isinstance(one, property)):
            getattr(loaded, name)  # nothing raises
        loaded.distrust()
        state.save(tmp_path / "again.json", loaded)
    assert refused > 100


def test_a_state_that_lacks_a_key_or_has_an_unknown_one_is_refused(tmp_path):
    file = tmp_path / "api.json"
    state.save(file, example())
    whole = json.loads(file.read_text())
    parts = ("current", "last", "session", "wait", "best", "plan")
    wrong = [{**whole, name: {**whole[name], "odd": 1}} for name in parts]
    for place in places(whole):
        if place[-1] in ("criteria", "verdict", "proof", "number", "focus", "usage", "pid", "until", "token_usage"):
            wrong.append(copy.deepcopy(whole))
            del at(wrong[-1], place[:-1])[place[-1]]
    for raw in wrong:
        file.write_text(json.dumps(raw))
        with pytest.raises(Stop, match="not a readable state"):
            state.load(file)
