"""Mission and settings files: what loads, which source wins, and what is said about wrong ones."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from pathlib import Path

import pytest
import yaml
from conftest import KIT

import mission
from mission import MissionError, load_settings, read_dotenv, settings_template

SAMPLES = Path(__file__).parent / "samples"  # of the specification, to the letter
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
limits: {cost_usd: 12.5, iterations: 40, hours: 8, tokens: 1000000}
settings: {claude_code: {timeout: 1h}}
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
    strict: false
  - description: The README explains it
"""
DONE = "definition_of_done: [{criteria: it works}]\n"
SECRET = "sk-or-v1-0123456789abcdef"


def load(folder: Path, text: str | bytes, name: str = "mission.yaml") -> mission.Mission:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return mission.load(path)


def problems(folder: Path, text: str | bytes, name: str = "mission.yaml") -> list[str]:
    """What is wrong with a file, one line each, without the folder in front."""
    with pytest.raises(MissionError) as caught:
        load(folder, text, name)
    error = caught.value
    assert (str(error).splitlines(), error.code) == (error.problems, 2)
    return [line.removeprefix(f"{folder}/") for line in error.problems]


def config(folder: Path, text: str, name: str = "config.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def with_settings(project: Path, settings: str) -> mission.Mission:
    """A mission, in a git repository, with these settings (flow style YAML)."""
    return load(project, f"title: t\nsettings: {settings}\n{DONE}", "m.yaml")


def refused(loaded: mission.Mission | None, path: Path | None, **environ: str) -> list[str]:
    with pytest.raises(MissionError) as caught:
        load_settings(loaded, path, environ)
    return caught.value.problems


def test_the_samples_of_specification_and_readme_load_unmodified(tmp_path):
    lines = (SAMPLES / "mission.yaml").read_text().splitlines()
    for text in ("\n".join(lines), "\n".join(line.removeprefix("  ") for line in lines[1:])):  # with and without a root
        loaded = load(tmp_path, text)
        assert loaded.title == "Build REST API for Task Management"
        assert loaded.repository == tmp_path / "task-api-repo"
        assert [c.priority for c in loaded.criteria] == ["critical", "high", "high", "medium", "medium"]
        assert loaded.constraints[:2] == ("Use TypeScript", "Follow RESTful conventions")
        assert loaded.description.startswith("Create a complete REST API")


def test_every_field_arrives(tmp_path):
    loaded = load(tmp_path, FULL)
    fields = "id title description context constraints setup confirm protect network settings".split()
    assert [getattr(loaded, field) for field in fields] == [
        *("api", "Build an API", "All of it", "Python", ("small", "tested"), "make install", "tree"),
        *(("tests/acceptance/**",), ("pypi.org", "*.npmjs.org"), {"claude_code": {"timeout": "1h"}}),
    ]
    assert loaded.limits == mission.Limits(cost_usd=12.5, iterations=40, hours=8, tokens=1_000_000)
    tests = ("tests", "All tests pass", "critical", True, "make test\n", 300, "last", 2, True, True, False)
    readme = ("c2", "The README explains it", "medium", True, None, 600, "always", 0, False, False, True)
    assert [tuple(vars(criterion).values()) for criterion in loaded.criteria] == [tests, readme]


def test_text_path_and_digest_are_those_of_the_file_also_when_it_comes_from_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (FULL, "\ufeff" + FULL, FULL.replace("\n", "\r\n")):
        loaded = load(Path(), text)
        assert (loaded.path, loaded.text, loaded.criteria[0].check) == (tmp_path / "mission.yaml", text, "make test\n")
        assert loaded.digest == mission.digest(loaded.path) == hashlib.sha256(text.encode()).hexdigest()
        loaded.path.unlink()
        assert mission.parse(loaded.text, loaded.path) == loaded
        assert mission.digest(loaded.path) == mission.digest(tmp_path) == ""


def test_json_says_the_same_as_yaml(tmp_path):
    criteria = [{"criteria": "x", "check": "a\\b/\t"}, {"description": "y"}]
    raw = {"title": "tab\tand \U0001f600", "definition_of_done": criteria}
    for indent in (None, 2, "\t"):
        loaded = load(tmp_path, json.dumps(raw, indent=indent).replace("/", "\\/"), "m.json")
        assert (loaded.title, loaded.criteria[0].check) == ("tab and \U0001f600", "a\\b/\t")


def test_aliases_and_empty_fields_are_understood(tmp_path):
    empty = "description:\ncontext:\nconstraints:\nrepository:\nsetup:\nconfirm:\nprotect:\nnetwork:\nsettings:\n"
    aliased = "definition_of_done:\n- {criteria: &same text, check: *same}\n"
    loaded = load(tmp_path, f"title: t\nlimits: {{iterations: 5, hours: }}\n{aliased}{empty}")
    assert (loaded.limits, loaded.criteria[0].check) == (mission.Limits(iterations=5), "text")
    assert (loaded.description, loaded.constraints, loaded.setup, loaded.settings) == ("", (), None, {})
    assert loaded.confirm == "clean"


def test_ids_default_to_the_name_of_the_file_and_to_the_position(tmp_path):
    names = {"API v2.yaml": "api-v2", "мир.yaml": "mission", "-a_b-.yml": "a-b", f"{'x' * 60}.yaml": "x" * 40}
    assert {name: load(tmp_path, f"title: t\n{DONE}", name).id for name in names} == names
    done = "definition_of_done: [{criteria: a}, {criteria: b, id: x}, {criteria: c}]"
    assert [c.id for c in load(tmp_path, f"title: t\n{done}").criteria] == ["c1", "x", "c3"]


def test_the_repository_defaults_to_the_one_that_holds_the_mission(project, tmp_path, git, monkeypatch):
    (project / "missions").mkdir()
    git(project, "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, field, expected in (
        (project / "missions", "", project),
        (tmp_path, "repository: tree", tmp_path / "tree"),
        (tmp_path, "repository: ~/tree", tmp_path / "tree"),
    ):
        loaded = load(folder, f"title: t\n{DONE}{field}")
        mission.require_repository(loaded)
        assert loaded.repository == expected


def test_a_bad_repository_is_named_with_its_line_and_the_remedy(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for repository in ("gone", "mission.yaml", ".", "x" * 300, "loop/x"):
        for root, indent, place in (("", "", "2: repository: "), ("mission:\n", " ", "3: mission.repository: ")):
            loaded = load(tmp_path, f"{root}{indent}title: t\n{indent}repository: {repository}\n{indent}{DONE}")
            remedy = "is no folder in a git repository; run `git init` there, or correct `repository:`"
            with pytest.raises(MissionError, match=f"^{tmp_path}/mission.yaml:{place}.* {remedy}$"):
                mission.require_repository(loaded)


def test_a_wrong_field_is_named_with_its_line_and_what_was_expected(tmp_path):
    for field, message in (
        ("title: 2024-01-31", 'title: found "2024-01-31", expected a line of text'),
        ("title: 5", "title: found 5, expected a line of text of at most 200 characters; if it is text, quote it"),
        ("constraints: be nice", 'constraints: found "be nice", expected a list of texts'),
        ("constraints: [ok, 5]", "constraints[1]: found 5, expected text that is not empty; if it is text, quote it"),
        ("confirm: never", 'confirm: found "never", expected one of clean, tree'),
        ("protect: [/etc/passwd]", 'protect[0]: found "/etc/passwd", expected a glob below the root of the repository'),
        ("protect: [a, a/../../b]", 'protect[1]: found "a/../../b", expected a glob below'),
        ("network: [https://pypi.org/simple]", 'network[0]: found "https://pypi.org/simple", expected a host name'),
        ("limits: {cost_usd: '5'}", 'limits.cost_usd: found "5", expected a number of US dollars above 0'),
        (f"limits: {{tokens: 1{'0' * 5000}}}", "limits.tokens: found "),
        ("settings: [a]", 'settings: found ["a"], expected a mapping of sections'),
        ("id: a/b", 'id: found "a/b", expected a name of 1 to 40 of a-z, 0-9 and -'),
        ('id: "line\\n"', "expected a name"),
        ("createdAt: now", "createdAt: unknown, expected one of id, title"),
    ):
        title = "" if field.startswith("title") else "title: t\n"
        (line,) = problems(tmp_path, f"{title}{DONE}{field}\n")
        assert line.startswith(f"mission.yaml:{3 if title else 2}: ") and message in line


def test_a_wrong_field_of_a_criterion_is_named_by_its_path(tmp_path):
    quote = "; if it is text, quote it"
    for field, message in (
        ("check: true", f"found true, expected a shell command that exits 0.*{quote}"),
        ("check:", "found null, expected a shell command.*; leave the field out to have it judged"),
        ("check: ! grep -q x y", "found the YAML tag !, expected a plain value; quote the text"),
        ("check: &a ! grep -q x y", "found the YAML tag !, expected"),
        ('check: "a\\0b"', r"found the character U\+0000, expected text; remove it"),
        ("criteria: 5", f"found 5, expected text that says what must be true{quote}"),
        ("priority: urgent", 'found "urgent", expected one of critical, high, medium, low'),
        ("timeout: soon", r'found "soon", expected a duration above 0, such as 90 \(seconds\), 300s, 10m or 2h'),
        (f"timeout: {'9' * 400}s", "expected a duration"),
        ("retries: 99", "found 99, expected integer from 0 to 10"),
        ("guard: 1", "found 1, expected boolean"),
        ("chek: make", r"unknown; did you mean check\?"),
        ("timeout: 2024-99-99", f"found a date or number that does not exist{quote}"),
    ):
        criteria = "" if field.startswith("criteria") else "criteria: c\n    "
        (line,) = problems(tmp_path, f"title: t\ndefinition_of_done:\n  - criteria: a\n  - {criteria}{field}\n")
        place = rf"mission.yaml:{5 if criteria else 4}: definition_of_done\[1\].{field.split(':')[0]}: "
        assert re.match(f"{place}.*{message}", line)


def test_a_missing_field_is_named(tmp_path):
    wrong = {
        "title: t\n": "mission.yaml:1: definition_of_done: missing, expected a list of 1 to 200 criteria; add it",
        DONE: "mission.yaml:1: title: missing, expected a line of text",
        "title: t\ndefinition_of_done: []\n": "mission.yaml:2: definition_of_done: found [], expected a list of 1",
        "title: t\ndefinition_of_done: [7]\n": "definition_of_done[0]: found 7, expected a mapping with the field",
        "title: t\ndefinition_of_done:\n- id: a\n": 'mission.yaml:3: definition_of_done[0]: found {"id": "a"}',
        "": "the file: found null, expected a mapping with the fields title and definition_of_done",
        "a b": 'the file: found "a b", expected a mapping with the fields',
    }
    for text, message in wrong.items():
        (line,) = problems(tmp_path, text)
        assert message in line


def test_all_errors_come_at_once_in_the_order_of_the_file_with_the_path_from_its_root(tmp_path):
    text = "titel: t\nprotect: [/x]\ndefinition_of_done:\n- {criteria: a, id: a}\n- {criteria: 5, check: ''}\n"
    places = [line.split(": ")[1] for line in problems(tmp_path, text)]
    assert places == ["titel", "title", "protect[0]", "definition_of_done[1].check", "definition_of_done[1].criteria"]
    text = "mission:\n  title: t\n  definition_of_done:\n    - criteria: a\n      check: true\nsettings: {}\n"
    check, beside = problems(tmp_path, text)
    assert check.startswith("mission.yaml:5: mission.definition_of_done[0].check: found true")
    assert beside == "mission.yaml:6: settings: unknown, expected one of mission"


def test_messages_stay_on_one_printable_line(tmp_path):
    (line,) = problems(tmp_path, f'title: t\n{DONE}"a\\nb\\ud800": c\n', "odd\nname.yaml")
    assert line.startswith("odd name.yaml:3: a b : unknown, expected one of id")


def test_repeated_ids_and_keys_are_refused_with_their_lines(tmp_path):
    text = "title: t\ndefinition_of_done:\n- {criteria: a, id: c2}\n- {criteria: b}\n"
    assert problems(tmp_path, text) == ["mission.yaml:4: definition_of_done[1].id: found 'c2' again; rename one"]
    text = '{\n"title": "t",\n"definition_of_done": [{"criteria": "a",\n"check": "x",\n"check": "y"}]\n}'
    for name in ("m.yaml", "m.json"):
        line = f"{name}:4: definition_of_done[0].check: found again in line 5; remove one"
        assert problems(tmp_path, text, name) == [line]


def test_a_refusal_names_the_line_of_each_check_that_proves_nothing(tmp_path):
    lines = ["title: t", "definition_of_done:", *(f"- {{id: {id}, criteria: c, check: 'true'}}" for id in "abc")]
    refusal = mission.refusal(load(tmp_path, "\n".join(lines)), {"c": "it passes anywhere", "a": "it is empty"})
    assert refusal.problems == [
        f"{tmp_path}/mission.yaml:3: definition_of_done[0].check: the check of a proves nothing: it is empty",
        f"{tmp_path}/mission.yaml:5: definition_of_done[2].check: the check of c proves nothing: it passes anywhere",
    ]


def test_a_syntax_error_is_located(tmp_path):
    invalid = "found no valid YAML: "
    for name, text, place, message in (
        ("m.yaml", "title: 'open", 1, invalid),
        ("m.yaml", "a: b\nc: *gone", 2, invalid),
        ("m.yaml", "a: 1\nb: =", 2, invalid),
        ("m.yaml", "title: t\n---\ntitle: u\n", 2, f"{invalid}but found another document"),
        ("m.yaml", "title: t\nx:\n\t- criteria: a\n", 3, "found character '\\t' that cannot start any token"),
        ("m.yaml", "title: t\nx:\n- criteria: All of it: done\n", 3, "quote the text of `criteria`: it has `: `"),
        ("m.yaml", 'x:\n- check: "a" && b\n', 2, "quote the text of `check`"),
        ("m.json", '{"a": 1\n"b": 2}', 2, invalid),
        ("m.json", b'{"title":\n"a\0b"}', 2, "found the character U+0000"),
    ):
        (line,) = problems(tmp_path, text, name)
        assert line.startswith(f"{name}:{place}: found ") and message in line


def test_yaml_tags_are_refused_and_nothing_is_run(tmp_path):
    for tag in ("!!python/object/apply:os.system", "!!binary", "!mine", "!!int"):
        (line,) = problems(tmp_path, f"title: t\ncontext: {tag} 'touch {tmp_path}/ran'\n{DONE}")
        assert line.startswith("mission.yaml:2: context: found the YAML tag ") and not (tmp_path / "ran").exists()


def test_alias_bombs_loops_and_deep_nesting_are_refused(tmp_path):
    bomb = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    texts = [f"l0: &l0 [x]\n{bomb}", "a: &a [*a]", "a: &a {b: *a}", "&a {<<: *a}", "&a [*a, *a]"]
    texts += [opening * 10_000 for opening in ("[", "{a: ", "- ", '{"a":', "? ")]
    for text in texts:
        assert ", expected fewer" in problems(tmp_path, text)[0]


def test_what_is_too_large_no_text_or_no_file_is_refused(tmp_path):
    start = f"title: t\n{DONE}#"
    assert load(tmp_path, start + "x" * (64 * 1024 - len(start))).title == "t"
    assert "mission.yaml: found more than 65536 bytes; move long" in problems(tmp_path, start + "x" * 64 * 1024)[0]
    assert "can't decode byte 0xe9 in position 21" in problems(tmp_path, b"title: t\ncontext: caf\xe9\n")[0]
    load(tmp_path, FULL).path.chmod(0)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    not_read = dict.fromkeys(["mission.yaml", "loop", "a\0b", "x" * 300, "mission.yaml/x"], "cannot be read")
    no_files = dict.fromkeys([".", "pipe", "/dev/zero"], "found a folder, pipe or device, expected a file")
    no_files["gone.yaml"] = "no such file; `make init` writes one"
    user = os.geteuid()
    for name, message in {**no_files, **not_read}.items():
        os.seteuid(user if name in no_files else user or 65534)  # root may read every file
        try:
            with pytest.raises(MissionError, match=message):
                mission.load(tmp_path / name)
        finally:
            os.seteuid(user)


def test_durations_are_seconds():
    good = {90: 90, "90": 90, "300s": 300, "10m": 600, "2h": 7200, "1.5 H": 5400, "1d": 86400, 0.5: 0.5}
    assert {text: mission.parse_duration(text) for text in good} == good
    for text in ("", "m", "0", "-1", "1x", "1m30s", "nan", "1e5", "٣s", "5\n6", "9" * 5000):
        with pytest.raises(ValueError, match="is not a number above 0"):
            mission.parse_duration(text)


def test_a_mutilated_mission_loads_or_is_refused_and_nothing_else():
    junk = [*"\t\0\x7f\ud800\ufeff{]'\"|%@\n", "- ", ": ", "&a ", "*a", "!!x ", "---\n", "9" * 5000]
    for seed in range(300):
        dice, text = random.Random(seed), FULL
        for _ in range(dice.randint(1, 4)):
            at, to = sorted(dice.choices(range(len(text) + 1), k=2))
            put = text[:at] + dice.choice(junk) + text[at:]
            text = dice.choice([text[:at], text[:at] + text[to:], put, text[to:] + text[:at]])
        try:
            assert mission.parse(text, Path("/nowhere/m.yaml")).criteria
        except MissionError as error:
            assert error.problems and all(line.startswith("/nowhere/m.yaml:") for line in error.problems), seed


def with_odd(value, odd):
    """The value with an odd one in each of its places, one at a time."""
    yield odd
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        for changed in with_odd(part, odd):
            yield {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


def test_an_odd_value_anywhere_loads_or_is_refused_and_nothing_else():
    for odd in (None, True, -1, 1.5, "", "../x", [], [None], {}, {"criteria": None}, [{"criteria": "a"}], 10**30):
        for raw in with_odd({"mission": yaml.safe_load(FULL)}, odd):
            try:
                assert mission.parse(json.dumps(raw), Path("/nowhere/m.json")).criteria
            except MissionError as error:
                assert all(line.startswith("/nowhere/m.json") for line in error.problems)


def test_the_settings_of_the_specification_load_unmodified_and_the_defaults_are_complete():
    settings = load_settings(None, SAMPLES / "config.yaml", {"OPENROUTER_API_KEY": SECRET})
    assert (settings.openrouter.api_key, settings.openrouter.model) == (SECRET, "anthropic/claude-3-opus")
    assert (settings.claude_code.max_file_size, settings.claude_code.timeout) == (102400, 300)
    assert settings.warnings == ["persistence.type: sqlite is not used"]
    settings = load_settings(None, None, {})
    assert (settings.warnings, settings.notify, settings.openrouter.fallbacks) == ([], [], [])
    assert (settings.orchestrator.max_iterations, settings.openrouter.api_key) == (None, None)
    claude = settings.claude_code
    assert (claude.timeout, claude.max_file_size, claude.hooks, claude.api_key) == (7200, 5 << 20, False, None)
    assert (settings.session.max_context, settings.monitoring.log_level) == (0.6, "INFO")
    checks = {"sandbox": True, "network": True, "writable": [], "env": [], "jobs": 1, "memory": 8 << 30}
    assert vars(settings.checks) == {**checks, "processes": 1000, "file_size": 2 << 30}


def test_later_sources_win_key_by_key(tmp_path, project):
    path = config(tmp_path, "claude_code: {model: file, timeout: 1h, max_turns: 7, models: {strong: file}}\n")
    loaded = with_settings(project, "{claude_code: {model: mission, timeout: 20m}}")
    environ = {"CCO_CLAUDE_CODE_MODEL": "environment", "CCO_CLAUDE_CODE_MODELS_ECONOMY": "haiku"}
    claude = load_settings(loaded, path, environ).claude_code
    assert (claude.model, claude.timeout, claude.max_turns, claude.idle_timeout) == ("environment", 1200, 7, 1800)
    assert vars(claude.models) == {"economy": "haiku", "standard": None, "strong": "file"}
    path = config(tmp_path, "orchestrator: {iteration_timeout: 5m}\n")
    assert load_settings(None, path, {}).claude_code.timeout == 300
    assert load_settings(None, path, {"CCO_CLAUDE_CODE_TIMEOUT": "1h"}).claude_code.timeout == 3600


def test_empty_files_and_sections_change_nothing(tmp_path):
    for text in ("", "# nothing\n", "\ufeff", "openrouter:\nclaude_code:\nnotify:\n", "{}", settings_template()):
        assert load_settings(None, config(tmp_path, text), {}) == load_settings(None, None, {})
    assert "gone.yaml: no such file" in refused(None, tmp_path / "gone.yaml")[0]


def test_a_variable_sets_a_key():
    for name, text, value in (
        ("orchestrator.max_iterations", "5", 5),
        ("orchestrator.max_iterations", "unlimited", None),
        ("openrouter.api_key", "12345", "12345"),
        ("claude_code.command", "@odd: [", "@odd: ["),
        ("claude_code.hooks", "on", True),
        ("session.max_context", "60%", 0.6),
        ("monitoring.log_level", "debug", "DEBUG"),
        ("checks.writable", "[~/.config/tool, /run/docker.sock]", ["~/.config/tool", "/run/docker.sock"]),
        ("checks.processes", "null", None),
    ):
        environ = {f"CCO_{name.replace('.', '_').upper()}": text, "CCO_NO_SKIPS": "1", "CCO_UNHEARD_OF": "1"}
        section, key = name.split(".")
        assert getattr(getattr(load_settings(None, None, environ), section), key) == value


def test_a_wrong_variable_is_named():
    for name, text, message in (
        ("OPENROUTER_MODELS_STRNG", "x", "openrouter.models.strng: unknown; did you mean strong?"),
        ("SESSION_ID", "x", "session.id: unknown, expected one of max_context"),
        ("OPENROUTER_TEMPERATURE", "hot", 'openrouter.temperature: found "hot", expected number from 0 to 2'),
        ("OPENROUTER_BASE_URL", "ftp://x", "expected an address that starts with https:// or http://"),
        ("MONITORING_LOG_LEVEL", "LOUD", 'found "LOUD", expected one of ERROR, WARN, INFO, DEBUG, TRACE'),
        ("ORCHESTRATOR_MAX_ITERATIONS", "0", "found 0, expected a whole number from 1, or unlimited"),
        ("SESSION_MAX_CONTEXT", "60", "found 60, expected a number from 0.1 to 1, or a percentage such as 60%"),
        ("MANAGER_PROVIDER", "openruter", "expected one of rules, openrouter, claude; did you mean openrouter?"),
    ):
        (line,) = refused(None, None, **{f"CCO_{name}": text})
        assert line.startswith(f"CCO_{name}: {name.split('_')[0].lower()}") and message in line


def test_names_that_git_takes_for_no_branch_are_refused():
    names = "-x a..b x.lock x/ /x .x a/.b a~1 a:b a\\b HEAD @ --help @{-1} a//b".split()
    for name in [*names, "a b", "a\x07"]:
        assert "expected the name of a branch" in refused(None, None, CCO_REPOSITORY_BRANCH=name)[0]


def test_errors_of_all_sources_come_at_once_with_file_and_line(tmp_path, project):
    text = "openruter:\n  model: x\nclaude_code:\n  timeout: soon\n  sandbox: 1\nsession: 5\n"
    loaded = with_settings(project, "{claude_code: {modus: manual}}")
    lines = refused(loaded, config(tmp_path, text), CCO_MANAGER_PROVIDER="me")
    assert [line.rpartition("/")[2].split(", expected")[0] for line in lines] == [
        "config.yaml:1: openruter: unknown; did you mean openrouter?",
        'config.yaml:4: claude_code.timeout: found "soon"',
        "config.yaml:5: claude_code.sandbox: found 1",
        "config.yaml:6: session: found 5",
        "m.yaml:2: settings.claude_code.modus: unknown; did you mean models?",
        'CCO_MANAGER_PROVIDER: manager.provider: found "me"',
    ]
    for text in ("- a\n", "hello\n", "openrouter: x\n", "a: ]\n", "a: !!python/name:os.system x\n"):
        assert "config.yaml:1: " in refused(None, config(tmp_path, text))[0]


def test_names_are_replaced_from_the_environment(tmp_path, project):
    environ = {"NAME": SECRET, "HOST": "example.invalid", "EMPTY": ""}
    for key, text, value in (
        ("api_key", "${NAME}", SECRET),
        ("api_key", "${UNSET}", None),
        ("api_key", "${EMPTY}", None),
        ("base_url", "https://${HOST}/v1", "https://example.invalid/v1"),
        ("fallbacks", "['${HOST}/a']", ["example.invalid/a"]),
        ("model", "$NAME-is-left-alone", "$NAME-is-left-alone"),
    ):
        text = f"openrouter:\n   {key}: {text}\n"
        given = ((None, config(tmp_path, text)), (load(project, f"title: t\nsettings:\n  {text}{DONE}"), None))
        assert [getattr(load_settings(*one, environ).openrouter, key) for one in given] == [value] * 2
    (line,) = refused(None, config(tmp_path, "openrouter:\n  base_url: https://${HOST}/v1\n"))
    assert "config.yaml:2: openrouter.base_url: found ${HOST}, which is not set" in line


def test_dotenv_fills_in_names_and_the_environment_wins(project):
    (project / ".env").write_text(f"export OPENROUTER_API_KEY='{SECRET}'\n")
    (project / ".cco").mkdir()
    for loaded, path in ((with_settings(project, "{}"), None), (None, config(project / ".cco", ""))):
        for environ, key in (
            ({}, SECRET),
            ({"OPENROUTER_API_KEY": "other"}, "other"),
            ({"OPENROUTER_API_KEY": ""}, None),
        ):
            assert load_settings(loaded, path, environ).openrouter.api_key == key
    assert os.environ.get("OPENROUTER_API_KEY") != SECRET


def test_lines_of_dotenv(tmp_path):
    lines = {
        "A=b": "b", "  export A = b  ": "b", "A='b # c'  # comment": "b # c", 'A="b c"': "b c", "A=b # comment": "b",
        "A=b#c": "b#c", "A=": "", "A= # comment": "", "A=b=c==": "b=c==", "A='b": "'b", 'A="it\'s"': "it's",
        "A=$B": "$B", "\ufeffA=b": "b", "A=b\r": "b", "A=1\nA=2": "2",
    }  # fmt: skip
    for line, value in lines.items():
        (tmp_path / ".env").write_bytes(line.encode())
        assert read_dotenv(tmp_path / ".env") == {"A": value}, line
    (tmp_path / ".env").write_bytes(b"# A=b\n\nhello\n=x\n1A=b\nA-B=c\n\xff\xfe=d\nGOOD=e\xff\n")
    assert read_dotenv(tmp_path / ".env") == {"GOOD": "e\ufffd"}
    assert read_dotenv(tmp_path) == read_dotenv(tmp_path / "gone") == {}


def test_secrets_are_not_echoed(tmp_path):
    lines = [f"api_key: [{SECRET}]", f"api_key: '{SECRET} '", f"api_key: {SECRET}: x", "api_key: 1234512345"]
    for line in (*lines, "api_key: 2099-99-99", "model: ' ${KEY}'", "temperature: ${KEY}"):
        (problem,) = refused(None, config(tmp_path, f"openrouter:\n  {line}\n"), KEY=SECRET)
        assert not re.search(f"{SECRET}|1234512345|2099-99-99", problem)
    (problem,) = refused(None, None, CCO_OPENROUTER_API_KEY=f"{SECRET}\n{SECRET}")
    assert problem.startswith("CCO_OPENROUTER_API_KEY: openrouter.api_key: found something that is not shown, expected")


def test_the_template_explains_every_key_with_its_default(tmp_path):
    text = settings_template()
    active = re.sub(r"(?m)^( *)#(?! )", r"\1", text)
    environ = {"OPENROUTER_API_KEY": SECRET}
    assert active.count("#") < text.count("#") - 40
    assert load_settings(None, config(tmp_path, active), environ) == load_settings(None, None, environ)


def test_the_schemas_describe_every_field_and_every_default_is_allowed():
    from jsonschema import Draft202012Validator

    sections = json.loads((KIT / "schema/config.json").read_text())["properties"]
    parts = json.loads((KIT / "schema/mission.json").read_text())["$defs"]
    for part in (*sections.values(), *parts.values()):
        for key, entry in part.get("properties", {"": part}).items():
            assert entry["description"].endswith("."), key
            assert "default" not in entry or Draft202012Validator(entry).is_valid(entry["default"]) or key == "api_key"
    assert tuple(parts["criterion"]["properties"]["priority"]["enum"]) == mission.PRIORITIES


def test_notify_is_a_list_of_commands_and_a_stronger_list_replaces_a_weaker_one(tmp_path, project):
    path = config(tmp_path, "notify:\n- {command: 'echo ${CCO_X}', events: [blocked, done]}\n- {command: b}\n")
    first, second = load_settings(None, path, {"CCO_X": "y"}).notify
    assert (first.command, first.events) == ("echo ${CCO_X}", ["blocked", "done"])  # the shell's to replace
    assert (second.command, len(second.events)) == ("b", 10)
    second.events.clear()
    assert len(load_settings(with_settings(project, "{notify: null}"), path, {}).notify[1].events) == 10
    loaded = with_settings(project, "{notify: [{command: mission}]}")
    for environ, commands in (({}, ["mission"]), ({"CCO_NOTIFY": "[]"}, []), ({"CCO_NOTIFY": "[{command: v}]"}, ["v"])):
        assert [one.command for one in load_settings(loaded, path, environ).notify] == commands


def test_a_wrong_entry_of_notify_is_named(tmp_path, project):
    no_list = "notify: found something that is not shown, expected a list of at most 8"
    wrong = {
        "curl x": no_list,
        f"[{', '.join(['{command: c}'] * 9)}]": no_list,
        "[{}]": "notify[0].command: missing, expected a shell command of at most 4000 characters; add it",
        "[{command: 'curl', type: slack}]": "notify[0].type: unknown",
        "[{command: ' '}]": "notify[0].command: found something that is not shown, expected a shell command",
        "[{command: c, events: []}]": "notify[0].events: found [], expected a list of events, such as",
        "[{command: c, events: [block]}]": "; did you mean blocked?",
    }
    for text, message in wrong.items():
        of_file = refused(None, config(tmp_path, f"notify: {text}\n"))
        of_mission = refused(with_settings(project, f"{{notify: {text}}}"), None)
        for (line,) in (of_file, of_mission, refused(None, None, CCO_NOTIFY=text)):
            assert message in line and "curl" not in line
