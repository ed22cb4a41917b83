"""Mission files: what loads, and what is said about those that do not."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import random
from pathlib import Path

import pytest
import yaml

import document
import mission
from mission import MissionError

SPECIFICATION_SAMPLE = """\
mission:
  title: "Build REST API for Task Management"
  repository: "./task-api-repo"
  description: |
    Create a complete REST API with CRUD operations for a task management system
    using Node.js, Express, and PostgreSQL.
  
  definition_of_done:
    - criteria: "All CRUD endpoints implemented"
      measurable: true
      priority: critical
    
    - criteria: "Input validation on all endpoints"
      measurable: true
      priority: high
    
    - criteria: "Unit tests with >80% coverage"
      measurable: true
      priority: high
    
    - criteria: "API documentation generated"
      measurable: true
      priority: medium
    
    - criteria: "Docker containerization complete"
      measurable: true
      priority: medium
  
  constraints:
    - "Use TypeScript"
    - "Follow RESTful conventions"
    - "Include error handling middleware"
  
  # No deadline - continues until all criteria are met
"""  # noqa: W293 (to the letter)

FULL = """\
id: api
title: Build an API
description: All of it
context: Python
constraints: [small, tested]
repository: .
setup: make install
confirm: tree
protect: ["tests/acceptance/**"]
network: [pypi.org, "*.npmjs.org"]
limits:
  cost_usd: 12.5
  iterations: 40
  hours: 8
  tokens: 1000000
settings:
  claude_code:
    timeout: 1h
definition_of_done:
  - id: tests
    criteria: All tests pass
    priority: critical
    measurable: true
    check: |
      make test
    timeout: 5m
    when: last
    retries: 2
    guard: true
    exclusive: true
  - description: The README explains it
"""

DONE = "definition_of_done: [{criteria: it works}]\n"


def load(folder: Path, text: str | bytes, name: str = "mission.yaml") -> mission.Mission:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return mission.load(path)


def problems(folder: Path, text: str | bytes, name: str = "mission.yaml") -> list[str]:
    """What is wrong with a file, one line each, without the folder in front."""
    with pytest.raises(MissionError) as caught:
        load(folder, text, name)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all("\n" not in line for line in caught.value.problems)
    return [line.removeprefix(f"{folder}/") for line in caught.value.problems]


@pytest.mark.parametrize("wrapped", (True, False))
def test_the_samples_of_specification_and_readme_load_unmodified(tmp_path, wrapped):
    lines = SPECIFICATION_SAMPLE.splitlines()
    text = SPECIFICATION_SAMPLE if wrapped else "\n".join(line.removeprefix("  ") for line in lines[1:])
    loaded = load(tmp_path, text)
    assert loaded.title == "Build REST API for Task Management"
    assert loaded.repository == tmp_path / "task-api-repo"
    assert [c.priority for c in loaded.criteria] == ["critical", "high", "high", "medium", "medium"]
    assert loaded.constraints == ("Use TypeScript", "Follow RESTful conventions", "Include error handling middleware")
    assert loaded.description.startswith("Create a complete REST API")


def test_every_field_arrives(tmp_path):
    loaded = load(tmp_path, FULL)
    assert (loaded.id, loaded.title, loaded.description, loaded.context) == (
        "api",
        "Build an API",
        "All of it",
        "Python",
    )
    assert (loaded.constraints, loaded.setup) == (("small", "tested"), "make install")
    assert loaded.confirm == "tree"
    assert (loaded.protect, loaded.network) == (("tests/acceptance/**",), ("pypi.org", "*.npmjs.org"))
    assert loaded.limits == mission.Limits(cost_usd=12.5, iterations=40, hours=8, tokens=1_000_000)
    assert loaded.settings == {"claude_code": {"timeout": "1h"}}
    tests, readme = loaded.criteria
    assert tests == mission.Criterion(
        "tests", "All tests pass", "critical", True, "make test\n", 300, "last", 2, guard=True, exclusive=True
    )
    assert readme == mission.Criterion(
        "c2", "The README explains it", "medium", True, None, 600, "always", 0, guard=False, exclusive=False
    )


@pytest.mark.parametrize(("text", "where"), [("", "clean"), ("confirm:", "clean"), ("confirm: clean", "clean")])
def test_the_end_is_confirmed_in_a_clean_checkout_unless_the_mission_says_otherwise(tmp_path, text, where):
    assert load(tmp_path, f"title: t\n{text}\n{DONE}").confirm == where


@pytest.mark.parametrize("root", ("", "mission:\n"))
def test_a_refusal_names_the_line_of_each_check_that_proves_nothing(tmp_path, root):
    lines = ["title: t", "definition_of_done:", *(f"- {{id: {id}, criteria: c, check: 'true'}}" for id in "abc")]
    loaded = load(tmp_path, root + "\n".join(f"{' ' * bool(root)}{line}" for line in lines))
    refused = mission.refusal(loaded, {"c": "it passes anywhere", "a": "it passes in an empty folder too"})
    first, second = (line.removeprefix(f"{tmp_path}/") for line in refused.problems)
    above, prefix = (1, "mission.") if root else (0, "")
    assert first == (
        f"mission.yaml:{3 + above}: {prefix}definition_of_done[0].check:"
        " the check of a proves nothing: it passes in an empty folder too"
    )
    assert second.startswith(f"mission.yaml:{5 + above}: {prefix}definition_of_done[2].check: the check of c ")
    assert isinstance(refused, MissionError)


def test_text_path_and_digest_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load(Path(), FULL)
    assert loaded.path == tmp_path / "mission.yaml"
    assert loaded.text == FULL
    assert loaded.digest == hashlib.sha256(Path("mission.yaml").read_bytes()).hexdigest()


def test_parsing_the_text_again_gives_the_same_mission(tmp_path):
    loaded = load(tmp_path, FULL)
    loaded.path.unlink()
    assert mission.parse(loaded.text, loaded.path) == loaded


@pytest.mark.parametrize("text", ("\ufeff" + FULL, FULL.replace("\n", "\r\n")))
def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path, text):
    loaded = load(tmp_path, text)
    assert loaded.text == text
    assert loaded.criteria[0].check == "make test\n"
    assert loaded.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("indent", (None, 2, "\t"))
def test_json_says_the_same_as_yaml(tmp_path, indent):
    raw = {
        "title": "tab\tand \U0001f600",
        "definition_of_done": [{"criteria": "x", "check": "a\\b"}, {"description": "y"}],
    }
    loaded = load(tmp_path, json.dumps(raw, indent=indent), "m.json")
    assert loaded.title == "tab and \U0001f600"
    assert [c.check for c in loaded.criteria] == ["a\\b", None]


def test_a_whole_number_may_be_written_with_a_point(tmp_path):
    iterations = load(tmp_path, f"title: t\nlimits: {{iterations: 5.0}}\n{DONE}").limits.iterations
    assert (iterations, type(iterations)) == (5, int)


def test_small_aliases_work(tmp_path):
    loaded = load(tmp_path, "title: t\ndefinition_of_done:\n- {criteria: &same text, check: *same}\n")
    assert loaded.criteria[0].check == "text"


def test_fields_without_a_value_count_as_left_out(tmp_path):
    empty = "description:\ncontext:\nconstraints:\nrepository:\nsetup:\nprotect:\nnetwork:\nlimits:\nsettings:\n"
    loaded = load(tmp_path, f"title: t\n{DONE}{empty}")
    assert (loaded.description, loaded.constraints, loaded.setup, loaded.settings) == ("", (), None, {})
    assert loaded.limits == mission.Limits(None, None, None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("API v2.yaml", "api-v2"), ("мир.yaml", "mission"), ("-a_b-.yml", "a-b"), (f"{'x' * 60}.yaml", "x" * 40)],
)
def test_the_id_defaults_to_the_name_of_the_file(tmp_path, name, expected):
    assert load(tmp_path, f"title: t\n{DONE}", name).id == expected


def test_default_ids_of_criteria_avoid_given_ones(tmp_path):
    done = "definition_of_done: [{criteria: a}, {criteria: b, id: c1}, {criteria: c, id: c1-2}, {criteria: d}]"
    assert [c.id for c in load(tmp_path, f"title: t\n{done}").criteria] == ["c1-3", "c1", "c1-2", "c4"]


def test_the_repository_defaults_to_the_one_that_holds_the_mission(project):
    (project / "missions").mkdir()
    loaded = load(project / "missions", f"title: t\n{DONE}")
    assert loaded.repository == project
    mission.require_repository(loaded)


def test_without_a_repository_around_it_the_mission_folder_is_taken_and_then_refused(tmp_path):
    loaded = load(tmp_path, f"title: t\n{DONE}")
    assert loaded.repository == tmp_path
    with pytest.raises(
        MissionError, match=r"mission\.yaml:1: repository: .* in no git repository; run `git init` there"
    ):
        mission.require_repository(loaded)


def test_a_git_file_counts_as_a_repository(tmp_path, project, git):
    tree = tmp_path / "tree"
    git(project, "worktree", "add", "-q", str(tree))
    assert (tree / ".git").is_file()
    mission.require_repository(load(tmp_path, f"title: t\nrepository: tree\n{DONE}"))


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("gone", "gone does not exist"),
        ("mission.yaml", "is a file"),
        (".", "is in no git repository"),
        ("x" * 300, "does not exist"),
    ],
)
@pytest.mark.parametrize("root", ("", "mission:\n"))
def test_a_bad_repository_is_named_with_its_line_and_the_remedy(tmp_path, repository, said, root):
    indent = " " if root else ""
    loaded = load(tmp_path, f"{root}{indent}title: t\n{indent}repository: {repository}\n{indent}{DONE}")
    with pytest.raises(MissionError) as caught:
        mission.require_repository(loaded)
    (line,) = caught.value.problems
    assert line.startswith(f"{tmp_path}/mission.yaml:{3 if root else 2}: {'mission.' if root else ''}repository: ")
    assert said in line
    assert "correct `repository:`" in line


def test_home_is_expanded_in_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(tmp_path, f"title: t\nrepository: ~/x\n{DONE}").repository == tmp_path / "home/x"


def test_a_symlink_loop_as_repository_is_refused_not_followed(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MissionError, match="does not exist"):
        mission.require_repository(load(tmp_path, f"title: t\nrepository: loop/x\n{DONE}"))


WRONG_FIELDS = [
    ("title: [a]", "title: found a list, expected a line of text"),
    ("title: 2024-01-31", "title: found the date 2024-01-31, expected a line of text"),
    (
        "title: 5",
        'title: found 5, expected a line of text of at most 200 characters; if it is text, quote it: title: "5"',
    ),
    ("title: yes", 'quote it: title: "yes"'),
    ("title: ''", "title: found '', expected a line of text"),
    (f"title: {'x' * 201}", "expected a line of text of at most 200 characters"),
    ("description: {a: b}", "description: found a mapping, expected text"),
    ("context: 1.5", 'context: found 1.5, expected text; if it is text, quote it: context: "1.5"'),
    ("constraints: be nice", "constraints: found 'be nice', expected a list of texts"),
    (
        "constraints: [ok, 5]",
        'constraints[1]: found 5, expected text that is not empty; if it is text, quote it: - "5"',
    ),
    ("repository: 7", "repository: found 7, expected a path"),
    ("setup: true", "setup: found true, expected a shell command"),
    ("setup: ' '", "setup: found ' ', expected a shell command"),
    ("confirm: never", "confirm: found 'never', expected one of clean or tree"),
    ("confirm: true", "confirm: found true, expected one of clean or tree"),
    ("protect: tests", "protect: found 'tests', expected a list of globs"),
    ("protect: [/etc/passwd]", "protect[0]: found '/etc/passwd', expected a glob below the root of the repository"),
    ("protect: [a, a/../../b]", "protect[1]: found 'a/../../b', expected a glob below"),
    ('protect: ["a\\n/../b"]', "protect[0]: found 'a\\n/../b', expected a glob below"),
    ("protect: ['..']", "protect[0]: found '..', expected a glob below"),
    ("protect: [~/x]", "protect[0]: found '~/x', expected a glob below"),
    ("protect: ['']", "protect[0]: found '', expected a glob below"),
    ("network: [https://pypi.org/simple]", "network[0]: found 'https://pypi.org/simple', expected a host name"),
    ("limits: 5", "limits: found 5, expected a mapping"),
    ("limits: {cost_usd: '5'}", "limits.cost_usd: found '5', expected a number of US dollars above 0"),
    ("limits: {cost_usd: 0}", "limits.cost_usd: found 0, expected a number of US dollars above 0; leave the field out"),
    ("limits: {cost_usd: -1}", "limits.cost_usd: found -1, expected"),
    ("limits: {hours: .nan}", "limits.hours: found a number that is not finite or too large"),
    ("limits: {hours: .inf}", "limits.hours: found a number that is not finite or too large"),
    ("limits: {iterations: 1.5}", "limits.iterations: found 1.5, expected a whole number from 1"),
    ("limits: {iterations: true}", "limits.iterations: found true, expected a whole number from 1"),
    (f"limits: {{tokens: 1{'0' * 400}}}", "limits.tokens: found a number that is not finite or too large"),
    (f"limits: {{tokens: 1{'0' * 5000}}}", "limits.tokens: found "),
    ("settings: [a]", "settings: found a list, expected a mapping of sections"),
    ("id: a/b", "id: found 'a/b', expected a name of 1 to 40 of a-z, 0-9 and -"),
    ("id: ..", "id: found '..', expected a name"),
    ("id: UPPER", "id: found 'UPPER', expected a name"),
    ("id: -x", "id: found '-x', expected a name"),
    ('id: "line\\n"', "id: found 'line\\n', expected a name"),
    (f"id: {'x' * 300}", "..., expected a name of 1 to 40"),
    ("createdAt: now", "createdAt: unknown, expected one of id, title"),
    ("constraint: [a]", "constraint: unknown; did you mean constraints?"),
    ("limits: {cost: 5}", "limits.cost: unknown; did you mean cost_usd?"),
    ("? [a, b]\n: c", "?: unknown"),
]


@pytest.mark.parametrize(("field", "said"), WRONG_FIELDS, ids=[field[:40] for field, _ in WRONG_FIELDS])
def test_a_wrong_field_is_named_with_its_line_and_what_was_expected(tmp_path, field, said):
    title = "" if field.startswith("title") else "title: t\n"
    (line,) = problems(tmp_path, f"{title}{DONE}{field}\n")
    assert line.startswith(f"mission.yaml:{3 if title else 2}: ")
    assert said in line


WRONG_IN_CRITERION = [
    ("check: true", "found true, expected a shell command that exits 0", 'quote it: check: "true"'),
    ("check: ''", "found '', expected a shell command", "leave the field out to have it judged"),
    ("check:", "found nothing, expected a shell command", "leave the field out"),
    ("check: [make, test]", "found a list, expected a shell command", ""),
    ('check: "a\\0b"', "found the character U+0000, expected text; remove it", ""),
    ('check: "\\ud800"', "found the character U+D800, expected text; remove it", ""),
    ("criteria: 5", "found 5, expected text that says what must be true", 'quote it: criteria: "5"'),
    ("priority: urgent", "found 'urgent', expected one of critical, high, medium or low", ""),
    ("priority: High", "found 'High', expected one of", "did you mean high?"),
    ("measurable: 'yes'", "found 'yes', expected true or false", ""),
    ("timeout: soon", "found 'soon', expected a duration above 0, such as 90 (seconds), 300s, 10m or 2h", ""),
    ("timeout: 0", "found 0, expected a duration above 0", ""),
    ("timeout: -5m", "found '-5m', expected a duration", ""),
    ("timeout: 10 weeks", "found '10 weeks', expected a duration", ""),
    ("timeout: .nan", "found a number that is not finite", ""),
    ("timeout: [5m]", "found a list, expected a duration", ""),
    (f"timeout: {'9' * 400}s", "expected a duration", ""),
    ("when: never", "found 'never', expected one of always or last", ""),
    ("retries: -1", "found -1, expected a whole number from 0 to 10", ""),
    ("retries: 99", "found 99, expected a whole number from 0 to 10", ""),
    ("guard: 1", "found 1, expected true or false", ""),
    ("guard:", "found nothing, expected true or false", ""),
    ("exclusive: 'yes'", "found 'yes', expected true or false", ""),
    ("id: ../x", "found '../x', expected a name", ""),
    ("chek: make", "unknown; did you mean check?", ""),
    ("completed: true", "unknown, expected one of id, criteria, description, priority", ""),
    ("timeout: 2024-99-99", "found a date that does not exist", "quote it"),
]


@pytest.mark.parametrize(
    ("field", "said", "remedy"), WRONG_IN_CRITERION, ids=[field[:40] for field, *_ in WRONG_IN_CRITERION]
)
def test_a_wrong_field_of_a_criterion_is_named_by_its_path(tmp_path, field, said, remedy):
    criteria = "" if field.startswith("criteria") else "criteria: c\n    "
    text = f"title: t\ndefinition_of_done:\n  - criteria: a\n  - {criteria}{field}\n"
    (line,) = problems(tmp_path, text)
    assert line.startswith(f"mission.yaml:{5 if criteria else 4}: definition_of_done[1].{field.split(':')[0]}: ")
    assert said in line
    assert remedy in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: t\n", "mission.yaml:1: definition_of_done: missing, expected a list of 1 to 200 criteria; add it"),
        (DONE, "mission.yaml:1: title: missing, expected a line of text"),
        (
            "title: t\ndefinition_of_done: []\n",
            "mission.yaml:2: definition_of_done: found a list, expected a list of 1 to",
        ),
        (
            "title: t\ndefinition_of_done:\n",
            "mission.yaml:2: definition_of_done: found nothing, expected a list of 1 to 200",
        ),
        ("title: t\ndefinition_of_done: [null]\n", "definition_of_done[0]: found nothing, expected a mapping with"),
        ("title: t\ndefinition_of_done: [7]\n", "definition_of_done[0]: found 7, expected a mapping with the field"),
        (
            "title: t\ndefinition_of_done: [done]\n",
            "definition_of_done[0]: found 'done', expected a mapping with the field",
        ),
        (
            "title: t\ndefinition_of_done:\n- id: a\n",
            "mission.yaml:3: definition_of_done[0]: found none of criteria, desc",
        ),
        (
            "title: t\ndefinition_of_done: [{criteria: a, description: b}]\n",
            "definition_of_done[0]: found more than one of criteria",
        ),
    ],
)
def test_a_missing_field_is_named(tmp_path, text, said):
    (line,) = problems(tmp_path, text)
    assert said in line


@pytest.mark.parametrize(
    ("text", "found"), [("", "nothing"), ("# only this\n", "nothing"), ("- a\n", "a list"), ("a b", "'a b'")]
)
def test_a_file_without_fields_is_refused(tmp_path, text, found):
    (line,) = problems(tmp_path, text)
    assert f"the file: found {found}, expected a mapping with the fields title and definition_of_done" in line


def test_under_the_root_key_paths_begin_with_it_and_nothing_may_stand_beside_it(tmp_path):
    text = "mission:\n  title: t\n  definition_of_done:\n    - criteria: a\n      check: true\nsettings: {}\n"
    check, beside = problems(tmp_path, text)
    assert check.startswith("mission.yaml:5: mission.definition_of_done[0].check: found true")
    assert beside == "mission.yaml:6: settings: unknown, expected mission"


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path):
    text = "titel: t\nprotect: [/x]\ndefinition_of_done:\n- {criteria: a, id: a}\n- {criteria: 5, id: a, check: ''}\n"
    found = problems(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == [
        "titel", "title", "protect[0]", "definition_of_done[1].check", "definition_of_done[1].criteria",
        "definition_of_done[1].id",
    ]  # fmt: skip


def test_repeated_criterion_ids_are_refused_with_both_lines(tmp_path):
    text = "title: t\ndefinition_of_done:\n- criteria: a\n  id: x\n- criteria: b\n  id: x\n"
    assert problems(tmp_path, text) == [
        "mission.yaml:6: definition_of_done[1].id: found 'x' again, first in line 4; choose another name"
    ]


@pytest.mark.parametrize("name", ("m.yaml", "m.json"))
def test_repeated_keys_are_refused_with_both_lines(tmp_path, name):
    text = '{\n"title": "t",\n"definition_of_done": [{"criteria": "a",\n"check": "x",\n"check": "y"}]\n}'
    assert problems(tmp_path, text, name) == [
        f"{name}:5: definition_of_done[0].check: found again, first in line 4; remove one"
    ]


def test_bytes_that_are_not_utf_8_are_located(tmp_path):
    (line,) = problems(tmp_path, b"title: t\ncontext: caf\xe9\n")
    assert line == "mission.yaml:2: the file: found byte 0xe9 at offset 21, expected UTF-8; save it as UTF-8"


def test_a_utf_16_file_is_refused(tmp_path):
    assert "found byte 0xff at offset 0, expected UTF-8" in problems(tmp_path, FULL.encode("utf-16"))[0]


@pytest.mark.parametrize("name", ("m.yaml", "m.json"))
def test_a_nul_byte_is_located(tmp_path, name):
    (line,) = problems(tmp_path, b'{"title":\n"a\0b"}', name)
    assert line.startswith(f"{name}:2: the file: found ")


def test_a_tab_as_indentation_is_explained(tmp_path):
    (line,) = problems(tmp_path, "title: t\ndefinition_of_done:\n\t- criteria: a\n")
    assert "mission.yaml:3: the file: " in line
    assert "indent with spaces" in line


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("m.yaml", "title: 'open", 1),
        ("m.yaml", "a: b\nc: *gone", 2),
        ("m.yaml", "a: 1\nb: =", 2),
        ("m.json", '{"a": 1\n"b": 2}', 2),
        ("m.json", "", 1),
    ],
)
def test_a_syntax_error_is_located(tmp_path, name, text, line):
    (found,) = problems(tmp_path, text, name)
    assert found.startswith(f"{name}:{line}: the file: found no valid {'JSON' if 'json' in name else 'YAML'}: ")


def test_json_has_no_trailing_commas_comments_or_nan(tmp_path):
    raw = '{"title": "t", "definition_of_done": [{"criteria": "a"}], "limits": {"hours": NaN}}'
    assert "limits.hours: found a number that is not finite" in problems(tmp_path, raw, "m.json")[0]
    assert "found no valid JSON" in problems(tmp_path, "# c\n{}", "m.json")[0]


def test_a_second_document_is_refused(tmp_path):
    (line,) = problems(tmp_path, f"title: t\n{DONE}---\ntitle: u\n")
    assert line.startswith("mission.yaml:3: the file: found a second document")


@pytest.mark.parametrize("tag", ("!!python/object/apply:os.system", "!!binary", "!!timestamp", "!mine", "!!int"))
def test_yaml_tags_are_refused_and_nothing_is_run(tmp_path, tag):
    (line,) = problems(tmp_path, f"title: t\ncontext: {tag} 'touch {tmp_path}/ran'\n{DONE}")
    assert line.startswith("mission.yaml:2: the file: found the YAML tag ")
    assert not (tmp_path / "ran").exists()


def test_an_alias_bomb_is_defused(tmp_path):
    bomb = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (line,) = problems(tmp_path, f"l0: &l0 [x]\n{bomb}")
    assert "found more than 10000 values" in line


@pytest.mark.parametrize("text", ("a: &a [*a]", "a: &a {b: *a}", "&a {<<: *a}", "&a [*a, *a]"))
def test_an_alias_of_itself_is_defused(tmp_path, text):
    assert "levels" in problems(tmp_path, text)[0]


@pytest.mark.parametrize("opening", ("[", "{a: ", "- ", '{"a":', "? "))
@pytest.mark.parametrize("name", ("m.yaml", "m.json"))
def test_deep_nesting_is_refused(tmp_path, opening, name):
    assert len(problems(tmp_path, opening * 10_000, name)) == 1


def test_deep_nesting_in_blocks_is_refused(tmp_path):
    text = "\n".join(" " * n + "a:" for n in range(300))
    assert "mission.yaml:33: the file: found more than 32 levels" in problems(tmp_path, text)[0]


def test_a_huge_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "m.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(
        MissionError, match="found 50000000 bytes, expected at most 65536; move long text into a file of the"
    ):
        mission.load(path)


def test_a_file_of_the_largest_size_loads(tmp_path):
    start = f"title: t\n{DONE}"
    filler = "#" + "x" * (64 * 1024 - len(start) - 2) + "\n"
    assert load(tmp_path, start + filler).title == "t"
    assert "found 65537 bytes" in problems(tmp_path, start + filler + "\n")[0]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(MissionError, match="found a folder, expected a file"):
        mission.load(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "m.yaml")
    with pytest.raises(MissionError, match="found a pipe, socket or device, expected a file"):
        mission.load(tmp_path / "m.yaml")


def test_a_device_is_refused():
    with pytest.raises(MissionError, match="found a pipe, socket or device"):
        mission.load(Path("/dev/zero"))


def test_a_missing_file_suggests_the_nearest_one_and_make_init(tmp_path):
    load(tmp_path, FULL, "api.yaml")
    with pytest.raises(
        MissionError, match=r"apis\.yaml: no such file; did you mean api\.yaml\? `make init` writes one"
    ):
        mission.load(tmp_path / "apis.yaml")
    with pytest.raises(MissionError, match=r"no such file; there is api\.yaml; `make init` writes one"):
        mission.load(tmp_path / "something-else")
    with pytest.raises(MissionError, match="no such file; `make init` writes one"):
        mission.load(tmp_path / "no" / "where.yaml")


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    load(tmp_path, FULL).path.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read every file
    try:
        with pytest.raises(MissionError, match=r"cannot be read \(Permission denied\)"):
            mission.load(tmp_path / "mission.yaml")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ("loop", "a\0b", "x" * 300, "mission.yaml/x"))
def test_a_path_that_cannot_be_opened_is_refused(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "mission.yaml").touch()
    with pytest.raises(MissionError, match="cannot be read"):
        mission.load(tmp_path / name)


def test_messages_stay_on_one_printable_line(tmp_path):
    (line,) = problems(tmp_path, f'title: t\n{DONE}"a\\nb\\ud800": c\n', "odd\nname.yaml")
    assert line == r"odd\nname.yaml:3: a\nb\ud800: unknown, expected one of " + line.partition("one of ")[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(90, 90), ("90", 90), ("300s", 300), ("10m", 600), ("2h", 7200), ("1.5 H", 5400), ("1d", 86400), (0.5, 0.5)],
)
def test_durations_are_seconds(text, seconds):
    assert document.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [(512, 512), ("100KB", 102400), ("5mb", 5 << 20), ("1 GB", 1 << 30), ("7B", 7), ("0.5KB", 512)]
)
def test_sizes_are_bytes(text, size):
    assert document.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ("", "m", "0", "-1", "1x", "1m30s", "nan", "inf", "1e5", "٣s", "5\n6", "4000d", "9" * 5000)
)
def test_bad_durations_raise_value_error(text):
    with pytest.raises(ValueError, match=r"is not a number|is out of range"):
        document.parse_duration(text)


@pytest.mark.parametrize("text", ("", "KB", "0", "-1KB", "5XB", "10m", "9" * 400 + "GB", "0.1"))
def test_bad_sizes_raise_value_error(text):
    with pytest.raises(ValueError, match=r"is not a number|is out of range"):
        document.parse_size(text)


JUNK = (
    "\t",
    "\0",
    "\x7f",
    "\ud800",
    "\ufeff",
    "{",
    "]",
    "- ",
    ": ",
    "&a ",
    "*a",
    "!!x ",
    "\n",
    "---\n",
    "'",
    '"',
    "|",
    "%",
    "@",
    "9" * 5000,
)


def mutilated(text: str, seed: int) -> str:
    """The text with a few cuts, insertions and swaps that the seed determines."""
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 4)):
        at, to = sorted(dice.choices(range(len(text) + 1), k=2))
        text = dice.choice(
            [text[:at], text[:at] + text[to:], text[:at] + dice.choice(JUNK) + text[at:], text[to:] + text[:at]]
        )
    return text


@pytest.mark.parametrize("seed", range(300))
def test_a_mutilated_mission_loads_or_is_refused_and_nothing_else(seed):
    name = "m.json" if seed % 3 == 0 else "m.yaml"
    raw = {"title": "t", "limits": {"hours": 3}, "definition_of_done": [{"criteria": "a", "timeout": "5m"}]}
    text = mutilated(json.dumps(raw, indent=1) if seed % 3 == 0 else FULL, seed)
    try:
        assert mission.parse(text, Path("/nowhere", name)).criteria
    except MissionError as error:
        assert error.problems
        assert all(line.startswith(f"/nowhere/{name}:") for line in error.problems)


ODD_VALUES = (
    None,
    True,
    -1,
    1.5,
    "",
    "x",
    "../x",
    "5m",
    [],
    [None],
    {},
    {"criteria": None},
    [{"criteria": "a"}],
    10**30,
)


def places(value, path=()):
    """The path of every value below this one."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.mark.parametrize("odd", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("wrapped", (True, False))
def test_an_odd_value_anywhere_loads_or_is_refused_and_nothing_else(tmp_path, odd, wrapped):
    full = yaml.safe_load(FULL)
    full = {"mission": full} if wrapped else full
    for place in list(places(full)):
        raw = json.loads(json.dumps(full))
        functools.reduce(operator.getitem, place[:-1], raw)[place[-1]] = odd
        try:
            assert mission.parse(json.dumps(raw), tmp_path / "m.json").criteria
        except MissionError as error:
            assert all(line.startswith(f"{tmp_path}/m.json:1: ") for line in error.problems)


def test_the_schema_describes_every_field():
    schema = json.loads((Path(mission.__file__).parent / "schema/mission.json").read_text())
    for part in schema["$defs"].values():
        assert all(entry["description"] for entry in part["properties"].values())
    assert tuple(schema["$defs"]["criterion"]["properties"]["priority"]["enum"]) == mission.PRIORITIES
