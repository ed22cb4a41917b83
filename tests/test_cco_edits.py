"""Edits of mission and settings: what is said about each, what is kept of it, and whose it was."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edits
import log
import mission
import progress
import state
from mission import MissionError, load_settings

CRITERIA: list[dict[str, Any]] = [
    {"id": "a", "criteria": "a is there", "check": "test -e a"},
    {"id": "b", "criteria": "b is there", "check": "test -e b"},
]
MISSION: dict[str, Any] = {"title": "A demo", "definition_of_done": CRITERIA}
SECRET = "sk-or-v1-5a7c90d1e2f3a4b5"  # no real key


def text(**changes: Any) -> str:
    return json.dumps({**MISSION, **changes})


def said(before: dict[str, Any], now: dict[str, Any], path: Path = Path("/tmp/demo.yaml")) -> list[str]:
    """What is told of a mission that said `before` and says `now`."""
    return edits.of_mission(text(**before), mission.parse(text(**now), path))


# --------------------------------------------------------------------------------------------------------
# What a mission says otherwise
# --------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "title": "Another demo",
    "description": "more words",
    "context": "what is known",
    "constraints": ["no Perl"],
    "setup": "make ready",
    "confirm": "tree",
    "protect": ["tests/**"],
    "network": ["example.org"],
    "repository": "/tmp/elsewhere",
}


@pytest.mark.parametrize("name", OTHER)
def test_each_part_that_says_something_else_is_named(name):
    assert said({}, {name: OTHER[name]}) == said({name: OTHER[name]}, {}) == [name]


def test_every_field_of_a_mission_is_told_of_or_says_nothing_by_itself():
    told = {*edits.PROSE, "limits", "settings", "criteria"}
    assert {field.name for field in fields(mission.Mission)} - told == {"id", "path", "text", "digest"}
    assert told - {"limits", "settings", "criteria"} == set(OTHER)


def test_a_limit_is_told_with_both_its_values():
    before, now = {"limits": {"cost_usd": 5, "hours": 2}}, {"limits": {"cost_usd": 12.5, "tokens": 1000}}
    assert said(before, now) == [
        "limits.cost_usd: 5 -> 12.5",
        "limits.hours: 2 -> as usual",
        "limits.tokens: as usual -> 1000",
    ]


def test_settings_within_the_mission_are_named_without_their_values():
    assert said({}, {"settings": {"openrouter": {"api_key": SECRET}}}) == ["settings"]


CHANGES: dict[str, Any] = {
    "criteria": "a is really there",
    "priority": "critical",
    "measurable": False,
    "check": "test -s a",
    "timeout": "5m",
    "when": "last",
    "retries": 2,
    "guard": True,
    "exclusive": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_part_of_a_criterion_that_says_something_else_is_named(name):
    changed = [{**CRITERIA[0], name: CHANGES[name]}, CRITERIA[1]]
    assert said({}, {"definition_of_done": changed}) == [f"criterion a: {name}"]


def test_every_field_of_a_criterion_is_told_of():
    assert {field.name for field in fields(mission.Criterion)} - {"id"} == set(CHANGES)


def test_criteria_that_are_new_or_gone_are_named_and_their_order_alone_says_nothing():
    new = {"id": "c", "criteria": "c is there", "check": "test -e c"}
    assert said({}, {"definition_of_done": [CRITERIA[1], new]}) == ["criterion a is gone", "criterion c is new"]
    assert said({}, {"definition_of_done": CRITERIA[::-1]}) == []


def test_other_white_space_and_comments_change_nothing_that_could_be_told():
    now = mission.parse("# a comment\n" + json.dumps(MISSION, indent=4), Path("/tmp/demo.yaml"))
    assert edits.of_mission(text(), now) == []


def test_an_earlier_text_that_this_kit_does_not_take_any_more_is_no_obstacle():
    now = mission.parse(text(), Path("/tmp/demo.yaml"))
    assert edits.of_mission("no mission at all", now) == ["all of it"]


def test_all_changes_are_told_at_once():
    both = {"title": "Another demo", "limits": {"cost_usd": 1}, "definition_of_done": CRITERIA[:1]}
    assert said({}, both) == ["title", "limits.cost_usd: as usual -> 1", "criterion b is gone"]


# --------------------------------------------------------------------------------------------------------
# What the settings say otherwise
# --------------------------------------------------------------------------------------------------------


def values(tmp_path: Path, settings: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, str]:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    return edits.values(load_settings(None, path, environ or {}))


def test_settings_that_are_as_usual_are_not_kept(tmp_path):
    assert values(tmp_path, {}) == {}
    assert values(tmp_path, {"claude_code": {"timeout": "2h"}, "checks": {"jobs": 1}}) == {}


def test_what_was_set_changed_or_taken_back_is_told_with_both_values(tmp_path):
    before = values(tmp_path, {"claude_code": {"model": "opus", "timeout": "1h"}})
    now = values(tmp_path, {"claude_code": {"model": "sonnet"}, "checks": {"jobs": 3}})
    assert before["claude_code.model"] == "opus"
    assert edits.of_settings(before, now) == [
        "claude_code.model: opus -> sonnet",
        f"claude_code.timeout: {before['claude_code.timeout']} -> as usual",
        "checks.jobs: as usual -> 3",
    ]
    assert edits.of_settings(now, now) == []


def test_what_the_environment_sets_is_a_setting_too(tmp_path):
    assert values(tmp_path, {}, {"CCO_CLAUDE_CODE_MODEL": "opus"}) == {"claude_code.model": "opus"}


def test_a_long_value_is_told_shortened(tmp_path):
    now = values(tmp_path, {"checks": {"writable": [f"/a/long/path/{number}" for number in range(50)]}})
    (line,) = edits.of_settings({}, now)
    assert line.startswith("checks.writable: as usual -> ['/a/long/path/0'") and len(line) < 130


def test_no_key_and_no_address_of_a_receiver_is_kept_or_told(tmp_path):
    settings = {
        "openrouter": {"api_key": SECRET, "model": "a/b"},
        "claude_code": {"api_key": f"{SECRET}2"},
        "notify": [{"type": "slack", "url": f"https://hooks.example.org/{SECRET}3"}],
    }
    kept = values(tmp_path, settings)
    assert kept == {"openrouter.model": "a/b"}
    assert "no other" not in str(edits.of_settings({}, kept)) and SECRET not in str(edits.of_settings({}, kept))


def test_a_secret_inside_another_setting_is_masked(tmp_path, fresh_mask):
    """The state keeps its part about settings to the letter."""
    log.know({"PROXY_TOKEN": "a1b2c3d4e5f6a7b8"})
    settings = {"openrouter": {"base_url": "https://proxy.example.org/${PROXY_TOKEN}/v1"}}
    kept = values(tmp_path, settings, {"PROXY_TOKEN": "a1b2c3d4e5f6a7b8"})
    assert kept == {"openrouter.base_url": "https://proxy.example.org/***/v1"}


def test_settings_of_every_section_are_kept_by_their_full_names(tmp_path):
    usual = load_settings(None, None, {})

    def names_in(part: SimpleNamespace, place: str = "") -> set[str]:
        found = set()
        for key, value in vars(part).items():
            inside = isinstance(value, SimpleNamespace)
            found |= names_in(value, f"{place}{key}.") if inside else {place + key} if place else set()
        return found

    names = names_in(usual)
    everything = edits._flat(usual)
    assert names - set(everything) == {"openrouter.api_key", "claude_code.api_key"}


# --------------------------------------------------------------------------------------------------------
# Whose edit it was
# --------------------------------------------------------------------------------------------------------


class Started:
    """A mission that was started from a file of the project, with its state as it was saved last."""

    def __init__(self, project: Path):
        self.project, self.path = project, project / "demo.yaml"
        self.path.write_text(text())
        self.mission = mission.load(self.path)
        self.memory = progress.begin(self.mission, "cco/demo", "", 0, "worker")
        progress.adopt(self.memory, self.mission)
        self.folder = project / ".cco"
        self.folder.mkdir()
        self.between_runs()

    def save(self, **more: Any) -> None:
        self.memory.update(more)
        state.save(self.folder / "demo.json", self.memory)

    def between_runs(self) -> None:
        self.save(current_phase="planning", worker=None)

    def with_a_worker(self) -> None:
        process = {"pid": 4711, "start": "1", "boot": "b"}
        self.save(current_phase="execution", worker={"session": "s", "process": process})

    def edit(self, **changes: Any) -> None:
        self.path.write_text(text(**changes))

    def suspect(self) -> None:
        """What is in the file now was compared after a session, and not adopted."""
        self.save(mission={**self.memory["mission"], "suspect": edits.digest(self.path)})

    def title(self, accept: bool = False) -> str:
        return edits.accepted(self.path, accept).title


@pytest.fixture
def started(project, monkeypatch) -> Started:
    monkeypatch.chdir(project)
    return Started(project)


def test_a_mission_that_was_never_started_is_what_its_file_says(project):
    path = project / "demo.yaml"
    path.write_text(text())
    assert edits.accepted(path, False).title == "A demo"
    path.write_text("title: no criteria")
    with pytest.raises(MissionError):
        edits.accepted(path, False)


def test_what_changed_between_two_runs_is_a_persons_and_counts(started, capsys):
    started.edit(title="Mine")
    assert started.title() == "Mine"
    started.save(current_phase="execution", worker={"session": "s", "process": None})  # a worker that has ended
    assert started.title() == "Mine"
    started.save(current_phase="waiting")
    assert started.title() == "Mine"
    assert capsys.readouterr().err == ""


def test_what_changed_while_a_worker_ran_does_not_count_without_a_persons_word(started, capsys):
    started.with_a_worker()
    assert started.title() == "A demo"
    assert capsys.readouterr().err == ""  # nothing has changed yet
    started.edit(title="The worker's")
    assert started.title() == "A demo"
    warned = capsys.readouterr().err
    assert "changed while a worker ran: what was accepted counts. ACCEPT=1 (--accept) adopts it" in warned
    assert started.title(accept=True) == "The worker's"


def test_what_was_found_changed_after_a_session_stays_without_effect_until_it_is_edited_again(started):
    started.edit(title="The worker's")
    started.suspect()
    assert started.title() == "A demo"
    assert started.title(accept=True) == "The worker's"
    started.edit(title="Mine")
    assert started.title() == "Mine"


@pytest.mark.parametrize("damage", ["gone", "broken", "a folder"])
def test_a_file_that_breaks_under_a_worker_is_no_obstacle_and_between_two_runs_it_is(started, damage):
    started.path.unlink()
    if damage == "broken":
        started.path.write_text("title: [")
    elif damage == "a folder":
        started.path.mkdir()
    with pytest.raises(MissionError):
        started.title()
    started.with_a_worker()
    assert started.title() == "A demo"
    with pytest.raises(MissionError):
        started.title(accept=True)


def test_another_id_does_not_make_another_mission_of_what_a_worker_changed(started):
    started.with_a_worker()
    started.edit(id="another")
    assert edits.accepted(started.path, False).id == "demo"


def test_another_repository_does_not_make_another_mission_of_what_a_worker_changed(started, tmp_path):
    """Where the worker prepared a repository of its own, with a folder for the kit."""
    (tmp_path / "trap" / ".cco").mkdir(parents=True)
    (tmp_path / "trap" / ".git").mkdir()
    started.with_a_worker()
    started.edit(repository=str(tmp_path / "trap"))
    assert edits.accepted(started.path, False).repository == Path(os.path.realpath(started.project))


def test_from_elsewhere_the_mission_is_known_by_the_place_of_its_file(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started.with_a_worker()
    started.path.unlink()
    assert started.title() == "A demo"


def test_a_forged_state_vouches_for_nothing(started):
    started.with_a_worker()
    document = json.loads((started.folder / "demo.json").read_text())
    document["mission"]["text"] = text(title="Forged")
    (started.folder / "demo.json").write_text(json.dumps(document))
    started.edit(title="What a person can read")
    assert started.title() == "What a person can read"


def test_missions_that_were_started_from_other_files_do_not_matter(started, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(text(title="Other", repository=str(started.project)))
    started.with_a_worker()
    assert edits.accepted(other, False).title == "Other"


@pytest.mark.parametrize(
    "phase, worker, running",
    [
        ("execution", {"process": {"pid": 1}}, True),
        ("execution", {"process": None}, False),
        ("execution", {}, False),
        ("execution", None, False),
        ("execution", {"process": {"pid": "1"}}, False),
        ("execution", {"process": "1"}, False),
        ("planning", {"process": {"pid": 1}}, False),
        ("waiting", {"process": {"pid": 1}}, False),
    ],
)
def test_a_worker_is_at_work_only_where_the_memory_names_its_process(phase, worker, running):
    assert edits.is_running({"current_phase": phase, "worker": worker}) is running
