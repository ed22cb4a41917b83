"""What people and programs are told: one line, the table, and `status --json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT

import ledger
import progress
import report
import state
from dod import Verdict
from mission import parse

CONTRACT = {  # of `status --json`, see the design
    "mission": str,
    "session_id": str,
    "phase": str,
    "iterations": int,
    "criteria": list,
    "cost_usd": (int, float),
    "forecast_usd": (type(None), float),
    "manager": dict,
    "wait_until": (type(None), int, float),
    "wait": (type(None), str),
    "notes": list,
    "commit": str,
    "confirmed": (type(None), dict),
    "claims": dict,
    "tampering": list,
    "branch": str,
    "blocked": (type(None), str),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BROKE = {"iteration": 3, "commit": COMMIT, "session": "s", "focus": "c1"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The `.cco` folder of a project."""
    made = tmp_path / "a project" / ".cco"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def utc(monkeypatch):
    """The time zone of this test."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def saved(folder: Path, name: str = "api", *verdicts: str, **more: Any) -> dict[str, Any]:
    """A mission with criteria c1, c2, ... of these verdicts, in a file as the kit writes it."""
    shown = verdicts or ("met", "unmet")
    entries = [{"id": f"c{n}", "criteria": f"number {n}", "check": "true"} for n, _ in enumerate(shown, 1)]
    text = json.dumps({"id": name, "title": name, "repository": str(folder.parent), "definition_of_done": entries})
    mission = parse(text, folder.parent / f"{name}.yaml")
    memory = progress.begin(mission, f"cco/{name}", COMMIT, 0, "cc")
    progress.adopt(memory, mission)
    found = {c.id: Verdict(c.id, verdict, 1) for c, verdict in zip(mission.criteria, shown, strict=True)}
    ledger.note_verdicts(memory, found)
    memory.update(more)
    state.save(folder / f"{name}.json", memory)
    return memory


def status(folder: Path | None, session: str | None = None) -> str:
    return report.status(folder and str(folder), session, as_json_text=False)


def as_json(folder: Path, session: str | None = None) -> Any:
    return json.loads(report.status(str(folder), session, as_json_text=True))


def test_a_wait_tells_what_for_and_notes_and_models_that_are_used_up_are_shown(folder, utc):
    wait = {"since": 1893452400.0, "kind": "limit", "why": "the usage limit"}
    notes = [
        {"id": "1", "text": "use the\nstaging database", "iteration": 3},
        {"id": "2", "text": "go", "iteration": None},
    ]
    more = {"wait_until": 1893456000.0, "wait": wait, "notes": notes, "limited": {"opus": 1893456000.0}}
    saved(folder, current_phase="waiting", **more)
    shown = status(folder, "api")
    assert "waits for the usage limit until Tue 00:00" in shown
    assert "note told in iteration 3: use the staging database" in shown
    assert "note waits for the next instruction: go" in shown
    assert "opus is used up until Tue 00:00" in shown


# For programs


def test_the_keys_and_types_of_the_json_are_the_contract(folder):
    saved(folder)
    found = as_json(folder)
    assert list(found) == list(CONTRACT)
    assert all(isinstance(found[key], kind) for key, kind in CONTRACT.items())
    assert [list(criterion) for criterion in found["criteria"]] == [
        ["id", "criteria", "priority", "verdict", "regressions", "stalls", "flaky", "unconfirmed"]
        + ["cost_usd", "proof", "evidence"]
    ] * 2


def test_the_json_says_what_the_memory_holds(folder):
    known = saved(folder, "api", "met", "timeout", iterations=4, current_phase="planning")
    found = as_json(folder)
    assert found["criteria"].pop(0) == {
        "id": "c1",
        "criteria": "number 1",
        "priority": "medium",
        "verdict": "met",
        "regressions": [],
        "stalls": 0,
        "flaky": False,
        "unconfirmed": False,
        "cost_usd": 0.0,
        "proof": None,
        "evidence": None,
    }
    assert [criterion["verdict"] for criterion in found.pop("criteria")] == ["timeout"]
    assert found == {
        "mission": "api",
        "session_id": known["session_id"],
        "phase": "planning",
        "iterations": 4,
        "cost_usd": 0,
        "forecast_usd": None,
        "manager": {"cost_usd": 0, "calls": 0, "avoided": 0, "of_unknown_cost": 0},
        "wait_until": None,
        "wait": None,
        "notes": [],
        "commit": COMMIT,
        "confirmed": None,
        "claims": {"made": 0, "false": 0},
        "tampering": [],
        "branch": "cco/api",
        "blocked": None,
    }


def test_what_the_manager_cost_what_is_not_known_of_it_and_what_the_rest_may_cost_is_said(folder):
    memory = saved(folder, "api", "met", "met", "unmet", "unmet", iterations=3)
    for id in ("c1", "c2"):
        memory["criteria"][id]["first_met"] = 2
    memory["metrics"].update(estimated_cost=3.0, manager_cost=0.0125, api_calls_total=7, api_calls_avoided=2)
    memory["metrics"]["calls_of_unknown_cost"] = 1
    state.save(folder / "api.json", memory)
    found = as_json(folder)
    assert found["forecast_usd"] == 3.0
    assert found["manager"] == {"cost_usd": 0.0125, "calls": 7, "avoided": 2, "of_unknown_cost": 1}
    assert (
        "the rest about $3.00, by what is met so far; the manager's model was asked 7 times for $0.0125;"
        " 1 of its answers do not say what they cost; 2 questions were not needed"
    ) in status(folder, "api")


def test_that_the_manager_is_left_alone_is_said_only_while_it_matters(folder):
    memory = saved(folder, "api", "met", "unmet", iterations=3)
    memory["manager"].update(failures=3, since=0, until=4_000_000_000)
    state.save(folder / "api.json", memory)
    assert "is not asked before" in status(folder, "api")
    state.save(folder / "api.json", {**memory, "current_phase": "completed"})
    assert "is not asked before" not in status(folder, "api")


def test_the_json_names_the_question_and_the_time_that_is_waited_for(folder):
    saved(folder, blocked={"question": "Which port?", "seen": "x"}, wait_until=1893456000.5)
    found = as_json(folder)
    assert (found["blocked"], found["wait_until"]) == ("Which port?", 1893456000.5)


def test_one_mission_is_an_object_several_are_a_list_and_none_is_an_empty_one(folder):
    assert as_json(folder) == []
    saved(folder, "api")
    assert as_json(folder)["mission"] == "api"
    saved(folder, "web")
    assert [found["mission"] for found in as_json(folder)] == ["api", "web"]
    assert as_json(folder, "web")["mission"] == "web"


# Which mission is meant


@pytest.mark.parametrize("name", ["api", "a", "ap", "7f3c2a1e-0b5d-4c6e-8f90-112233445566", "7f3c", "7"])
def test_a_mission_is_named_by_either_id_or_a_beginning_of_either(folder, name):
    saved(folder, "api", session_id="7f3c2a1e-0b5d-4c6e-8f90-112233445566")
    saved(folder, "web", session_id="00c0ffee-0b5d-4c6e-8f90-112233445566")
    assert as_json(folder, name)["mission"] == "api"
    assert status(folder, name).startswith("api: ")


def test_a_whole_id_means_that_mission_although_another_begins_with_it(folder):
    saved(folder, "api")
    saved(folder, "api-2")
    assert as_json(folder, "api")["mission"] == "api"
    assert as_json(folder, "api-")["mission"] == "api-2"


def test_a_beginning_of_several_shows_all_of_them(folder):
    saved(folder, "web-one")
    saved(folder, "web-two")
    assert [found["mission"] for found in as_json(folder, "web")] == ["web-one", "web-two"]
    assert status(folder, "web").count("branch cco/web-") == 2


def test_an_unknown_name_is_answered_with_the_names_there_are(folder):
    saved(folder, "api")
    saved(folder, "web")
    with pytest.raises(LookupError, match=r"no mission or session begins with 'docs'; there are: api, web"):
        status(folder, "docs")
    with pytest.raises(LookupError, match="docs"):
        as_json(folder, "docs")


def test_without_any_mission_the_name_is_answered_too(folder):
    with pytest.raises(LookupError, match="there are: none"):
        status(folder, "docs")


# For people


def test_a_mission_is_one_line(folder):
    saved(folder, "api", "met", "unmet", "unjudged", iterations=3, current_phase="planning")
    assert status(folder) == "api: planning, 1/3 met, iteration 3, $0.00"


def test_several_missions_are_one_line_each_the_one_saved_last_at_the_end(folder):
    for name in ("api", "web", "docs"):
        saved(folder, name)
    os.utime(folder / "api.json", (time.time() + 60,) * 2)
    assert [line.split(":")[0] for line in status(folder).splitlines()] == ["web", "docs", "api"]


def test_the_line_says_how_long_it_waits_and_that_it_runs(folder, utc):
    memory = saved(folder, wait_until=1893456000.0, current_phase="waiting")
    memory["metrics"]["estimated_cost"] = 12.345
    state.save(folder / "api.json", memory)
    with state.Lock(folder / "lock", {"mission": "api", "pid": os.getpid()}):
        assert status(folder) == "api: waiting (running), 1/2 met, iteration 0, $12.35, waits until Tue 00:00"
    assert "(running)" not in status(folder)


def test_a_lock_of_another_mission_does_not_make_this_one_run(folder):
    saved(folder)
    with state.Lock(folder / "lock", {"mission": "web"}):
        assert "(running)" not in status(folder)


def test_the_table_shows_every_criterion_as_it_stands(folder):
    memory = saved(folder, "api", "met", "unmet", "unjudged", "broken")
    memory["criteria"]["c2"].update(stalls=3, regressions=[BROKE, BROKE])
    state.save(folder / "api.json", memory)
    line, shown, remark, _ = status(folder, "api").split("\n\n")
    header, _, *rows = shown.splitlines()
    assert line == "api: validation, 1/4 met, iteration 0, $0.00"
    assert remark == "c2 was met, and broken in iteration 3, commit 0123456789ab"
    assert header.split() == ["id", "verdict", "priority", "regressions", "stalls", "criterion"]
    assert [row.split() for row in rows] == [
        ["[x]", "c1", "met", "medium", "number", "1"],
        ["[", "]", "c2", "unmet", "medium", "2", "3", "number", "2"],
        ["[?]", "c3", "unjudged", "medium", "number", "3"],
        ["[", "]", "c4", "broken", "medium", "number", "4"],
    ]


@pytest.mark.parametrize("id", ["1e5", "007", "10", "0x10", "1-2", "inf", "nan"])
def test_an_id_that_looks_like_a_number_is_shown_as_it_is(folder, id):
    memory = saved(folder)
    memory["criteria"] = {id: memory["criteria"]["c1"]}
    assert f"[x]  {id} " in report.table(memory)


def test_a_criterion_takes_one_line_of_the_table_however_it_was_written(folder):
    memory = saved(folder, "api", "met")
    memory["criteria"]["c1"]["criteria"] = "All tests\n  pass,\n" + "really " * 100
    last = report.table(memory).splitlines()[-1]
    assert last.startswith("[x]  c1 ")
    assert "All tests pass, really" in last
    assert len(last) < 140


def test_what_is_odd_about_criteria_and_worker_is_said_below_the_table(folder):
    evidence = {"kind": "accepted", "by": "ada", "at": "2026-01-01T00:00:00+00:00", "commit": COMMIT, "quotes": []}
    memory = saved(folder, "api", "unmet", "met", "met", "met")
    for id, known in zip(
        memory["criteria"],
        (
            {"regressions": [BROKE]},
            {"regressions": [BROKE], "flaky": True},
            {"unconfirmed": True},
            {"evidence": evidence},
        ),
        strict=True,
    ):
        memory["criteria"][id].update(known)
    memory["tampering"] = [{"iteration": n, "path": f"tests/{n}", "what": "changed", "kept": ""} for n in range(7)]
    memory["metrics"].update(claims_made=4, claims_false=1)
    memory["confirmed"] = {"commit": COMMIT, "at": "", "where": "tree", "seconds": 0.0, "setup": None}
    state.save(folder / "api.json", memory)
    changed = ", ".join(f"iteration {n}: tests/{n} (changed)" for n in range(2, 7))
    assert status(folder, "api").split("\n\n")[2].splitlines() == [
        "c1 was met, and broken in iteration 3, commit 0123456789ab",
        "c2 is flaky: its check gave different results on the same tree",
        "c3 is met in the work tree alone, not in a clean checkout",
        "c4 was accepted by ada at 2026-01-01T00:00:00+00:00",
        f"protected, and changed: {changed}",
        "the worker claimed 4 times that something is finished; 1 times it was not",
        "no clean checkout confirmed it: confirm is tree, or auto_commit off",
    ]
    found = as_json(folder)
    assert found["claims"] == {"made": 4, "false": 1}
    assert found["confirmed"]["where"] == "tree"
    assert [entry["path"] for entry in found["tampering"]] == [f"tests/{n}" for n in range(7)]
    assert found["criteria"][3]["evidence"] == evidence


def test_the_branch_and_commit_are_named_and_what_to_do_next(folder):
    saved(folder, "api", "met", current_phase="completed", start_branch="main")
    shown = status(folder, "api")
    assert "\n\nbranch cco/api, commit 0123456789ab\n\n" in shown
    assert shown.endswith("To take the work: git checkout main && git merge cco/api")


def test_a_question_stands_in_the_status_of_its_mission(folder):
    saved(folder, blocked={"question": "Which port?", "seen": "x"}, current_phase="blocked", commit="")
    shown = status(folder, "api")
    assert "\n\nbranch cco/api, commit none\n\nA person has to answer: Which port?" in shown
    assert "git merge" not in shown


# Where it looks


def test_the_folder_is_found_from_a_folder_below_the_project(folder):
    deep = folder.parent / "src" / "deep"
    deep.mkdir(parents=True)
    assert report.find_folder(str(deep)) == str(folder)
    assert report.find_folder(str(folder.parent)) == str(folder)


def test_the_first_place_that_has_a_folder_counts(folder, tmp_path):
    (tmp_path / "other" / ".cco").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    places = [str(tmp_path / name) for name in ("nothing", "other", "a project")]
    assert report.find_folder(*places) == str(tmp_path / "other" / ".cco")


def test_a_file_named_like_the_folder_is_passed_over(folder):
    below = folder.parent / "below"
    below.mkdir()
    (below / ".cco").write_text("no folder")
    assert report.find_folder(str(below)) == str(folder)


def test_where_nothing_was_started_it_says_so(folder):
    with pytest.raises(LookupError, match="no mission was started here yet"):
        status(None)
    assert status(folder) == "no mission was started here yet"


def test_other_files_of_the_folder_are_no_missions(folder):
    saved(folder)
    for name in (".api.json.x7.tmp", "api.json.unreadable-1795219200", "config.yaml", "lock", "lessons.jsonl"):
        (folder / name).write_text("no state")
    assert [memory["mission_id"] for memory in report.memories(str(folder))] == ["api"]


def test_a_damaged_file_is_named_and_left_alone_and_hides_no_other_mission(folder):
    saved(folder)
    (folder / "web.json").write_text("{torn")
    first, second = status(folder).splitlines()
    assert first.startswith("api: validation")
    assert "web.json: not a readable state" in second
    assert as_json(folder)["mission"] == "api"
    assert (folder / "web.json").read_text() == "{torn"


def test_looking_writes_nothing(folder):
    saved(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    status(folder)
    status(folder, "api")
    as_json(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())} == before


def test_the_command_answers_from_a_folder_below_with_the_same_json(folder):
    saved(folder)
    below = folder.parent / "src"
    below.mkdir()
    argv = [sys.executable, str(KIT / "cco.py"), "status", "--json"]
    done = subprocess.run(argv, cwd=below, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == as_json(folder)
