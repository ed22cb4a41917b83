"""Settings: where they come from, which one wins, and what is said about wrong ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import mission
from mission import MissionError, load_settings, read_dotenv, settings_template

SPECIFICATION_SAMPLE = """\
# config.yaml
orchestrator:
  mode: "single_instance"  # Always 1:1 CCO to CC mapping
  max_iterations: unlimited  # No iteration limit by default
  iteration_timeout: 300s
  checkpoint_interval: 5
  
repository:
  path: "./project-repo"  # Single repository for this CCO instance
  auto_commit: true
  commit_frequency: "per_session"
  
openrouter:
  api_key: ${OPENROUTER_API_KEY}
  model: "anthropic/claude-3-opus"
  temperature: 0.5
  
claude_code:
  api_key: ${ANTHROPIC_API_KEY}
  instance_id: "cc-worker-001"  # Single CC instance identifier
  workspace: "./project-repo"   # Same as repository path
  max_file_size: 100KB
  
persistence:
  type: "sqlite"
  path: "./orchestrator.db"
  
monitoring:
  log_level: "INFO"
  metrics_enabled: true
  dashboard_port: 8080
"""  # noqa: W293 (to the letter)
SECRET = "sk-or-v1-0123456789abcdef"
WRITABLE = ["~/.config/tool", "/run/docker.sock"]


@pytest.fixture
def config(tmp_path):
    """Write a settings file and return its path."""

    def write(text: str, name: str = "config.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def mission_with(project):
    """A mission, in a git repository, with these settings (flow style YAML)."""

    def write(settings: str) -> mission.Mission:
        path = project / "m.yaml"
        path.write_text(f"title: t\nsettings: {settings}\ndefinition_of_done: [{{criteria: c}}]\n")
        return mission.load(path)

    return write


def refused(task: mission.Mission | None, path: Path | None, **environ: str) -> list[str]:
    with pytest.raises(MissionError) as caught:
        load_settings(task, path, environ)
    return caught.value.problems


def test_defaults_alone_are_complete():
    settings = load_settings(None, None, {})
    assert settings.warnings == []
    assert settings.orchestrator.max_iterations is None
    assert settings.openrouter.api_key is None
    assert settings.openrouter.fallbacks == []
    assert settings.claude_code.timeout == 7200
    assert settings.claude_code.max_file_size == 5 * 1024 * 1024
    assert settings.session.max_context == 0.6
    assert settings.monitoring.log_level == "INFO"
    assert settings.manager.provider is None
    assert vars(settings.checks) == {
        "sandbox": True,
        "network": True,
        "writable": [],
        "jobs": 1,
        "cpu": 7200,
        "memory": 8 << 30,
        "processes": 1000,
        "file_size": 2 << 30,
    }


def test_changing_one_result_does_not_change_the_next():
    load_settings(None, None, {}).openrouter.fallbacks.append("x")
    assert load_settings(None, None, {}).openrouter.fallbacks == []


def test_the_sample_of_the_specification_loads_unmodified(config):
    settings = load_settings(None, config(SPECIFICATION_SAMPLE), {"OPENROUTER_API_KEY": SECRET})
    assert settings.openrouter.api_key == SECRET
    assert settings.openrouter.model == "anthropic/claude-3-opus"
    assert settings.claude_code.api_key is None
    assert settings.claude_code.max_file_size == 102400
    assert settings.claude_code.timeout == 300
    assert settings.warnings == ["persistence.type: sqlite is not used, this kit stores its state as one JSON file"]


def test_later_sources_win_key_by_key(config, mission_with):
    path = config("claude_code: {model: file, timeout: 1h, max_turns: 7}\n")
    task = mission_with("{claude_code: {model: mission, timeout: 20m}}")
    settings = load_settings(task, path, {"CCO_CLAUDE_CODE_MODEL": "environment"}).claude_code
    assert (settings.model, settings.timeout, settings.max_turns, settings.idle_timeout) == (
        "environment",
        1200,
        7,
        1800,
    )


def test_claude_code_timeout_beats_iteration_timeout_wherever_it_is_set(config):
    path = config("orchestrator: {iteration_timeout: 5m}\n")
    assert load_settings(None, path, {}).claude_code.timeout == 300
    assert load_settings(None, path, {"CCO_CLAUDE_CODE_TIMEOUT": "1h"}).claude_code.timeout == 3600


@pytest.mark.parametrize("text", ("", "# nothing\n", "\ufeff", "openrouter:\nclaude_code:\n", "{}"))
def test_an_empty_file_or_section_changes_nothing(config, text):
    assert load_settings(None, config(text), {}) == load_settings(None, None, {})


def test_a_json_settings_file_works(config):
    assert (
        load_settings(None, config('{"claude_code":\n\t{"sandbox": false}}', "c.json"), {}).claude_code.sandbox is False
    )


def test_a_given_file_that_is_missing_is_an_error(tmp_path):
    (line,) = refused(None, tmp_path / "config.yaml")
    assert "config.yaml: no such file" in line


@pytest.mark.parametrize(("text", "value"), [("true", True), ("off", False), ("on", True), ("no", False)])
def test_switches_take_the_words_of_yaml(config, text, value):
    assert load_settings(None, config(f"repository: {{hooks: {text}}}\n"), {}).repository.hooks is value
    assert load_settings(None, None, {"CCO_REPOSITORY_HOOKS": text}).repository.hooks is value


@pytest.mark.parametrize(
    ("name", "text", "section", "key", "value"),
    [
        ("CCO_ORCHESTRATOR_MAX_ITERATIONS", "5", "orchestrator", "max_iterations", 5),
        ("CCO_ORCHESTRATOR_MAX_ITERATIONS", "unlimited", "orchestrator", "max_iterations", None),
        ("CCO_OPENROUTER_API_KEY", "12345", "openrouter", "api_key", "12345"),
        ("CCO_OPENROUTER_API_KEY", "2024-01-01", "openrouter", "api_key", "2024-01-01"),
        ("CCO_CLAUDE_CODE_COMMAND", "/opt/a #1", "claude_code", "command", "/opt/a #1"),
        ("CCO_OPENROUTER_FALLBACKS", "[a, b]", "openrouter", "fallbacks", ["a", "b"]),
        ("CCO_OPENROUTER_MODEL", "meta/llama:free", "openrouter", "model", "meta/llama:free"),
        ("CCO_CLAUDE_CODE_TIMEOUT", "90", "claude_code", "timeout", 90),
        ("CCO_CLAUDE_CODE_MODEL", "null", "claude_code", "model", None),
        ("CCO_CLAUDE_CODE_COMMAND", "@odd: [", "claude_code", "command", "@odd: ["),
        ("CCO_CLAUDE_CODE_MODEL", "", "claude_code", "model", None),
        ("CCO_LOGGING_MAX_SIZE", "1GB", "logging", "max_size", 1 << 30),
        ("CCO_SESSION_MAX_CONTEXT", "60%", "session", "max_context", 0.6),
        ("CCO_SESSION_MAX_CONTEXT", "1", "session", "max_context", 1),
        ("CCO_MONITORING_LOG_LEVEL", "debug", "monitoring", "log_level", "DEBUG"),
        ("CCO_REPOSITORY_BRANCH", "work/2024", "repository", "branch", "work/2024"),
        ("CCO_CHECKS_SANDBOX", "off", "checks", "sandbox", False),
        ("CCO_CHECKS_NETWORK", "no", "checks", "network", False),
        ("CCO_CHECKS_WRITABLE", "[~/.config/tool, /run/docker.sock]", "checks", "writable", WRITABLE),
        ("CCO_CHECKS_JOBS", "4", "checks", "jobs", 4),
        ("CCO_CHECKS_CPU", "30m", "checks", "cpu", 1800),
        ("CCO_CHECKS_CPU", "null", "checks", "cpu", None),
        ("CCO_CHECKS_MEMORY", "512MB", "checks", "memory", 512 << 20),
        ("CCO_CHECKS_PROCESSES", "null", "checks", "processes", None),
        ("CCO_CHECKS_FILE_SIZE", "1000", "checks", "file_size", 1000),
        ("CCO_NO_SKIPS", "1", "manager", "provider", None),
        ("CCO_UNHEARD_OF", "1", "manager", "provider", None),
    ],
)
def test_a_variable_sets_a_key(name, text, section, key, value):
    assert getattr(getattr(load_settings(None, None, {name: text}), section), key) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("CCO_OPENROUTER_MODLE", "x", "openrouter.modle: unknown; did you mean model?"),
        ("CCO_SESSION_ID", "x", "session.id: unknown, expected max_context"),
        ("CCO_OPENROUTER_TEMPERATURE", "hot", "openrouter.temperature: found 'hot', expected a number from 0 to 2"),
        ("CCO_OPENROUTER_TEMPERATURE", ".nan", "openrouter.temperature: found '.nan', expected a number"),
        ("CCO_OPENROUTER_TEMPERATURE", "3", "found 3, expected a number from 0 to 2"),
        ("CCO_OPENROUTER_BASE_URL", "ftp://x", "expected an address that starts with https:// or http://"),
        ("CCO_OPENROUTER_FALLBACKS", "[a, b, c]", "found a list, expected a list of at most 2 model ids"),
        ("CCO_MONITORING_DASHBOARD_PORT", "70000", "found 70000, expected a whole number from 1 to 65535"),
        ("CCO_MONITORING_LOG_LEVEL", "LOUD", "found 'LOUD', expected one of ERROR, WARN, INFO, DEBUG, TRACE"),
        ("CCO_ORCHESTRATOR_MAX_ITERATIONS", "0", "found 0, expected a whole number from 1, or unlimited"),
        ("CCO_ORCHESTRATOR_MAX_ITERATIONS", "many", "found 'many', expected a whole number from 1, or unlimited"),
        ("CCO_ORCHESTRATOR_MODE", "swarm", "found 'swarm', expected single_instance"),
        ("CCO_SESSION_MAX_CONTEXT", "60", "found 60, expected a number from 0.1 to 1, or a percentage such as 60%"),
        ("CCO_SESSION_MAX_CONTEXT", "5%", "found '5%', expected a number from 0.1 to 1"),
        ("CCO_CHECKS_SANDBOX", "maybe", "found 'maybe', expected true or false"),
        ("CCO_CHECKS_WRITABLE", "[tmp]", "found 'tmp', expected a path that starts with / or ~"),
        ("CCO_CHECKS_JOBS", "0", "found 0, expected a whole number from 1 to 64"),
        ("CCO_CHECKS_CPU", "long", "found 'long', expected a duration"),
        ("CCO_CHECKS_MEMORY", "much", "found 'much', expected a size"),
        ("CCO_CHECKS_PROCESSES", "0", "found 0, expected a whole number from 1 to 1000000"),
        ("CCO_CHECKS_PROCESS", "5", "checks.process: unknown; did you mean processes?"),
        ("CCO_CLAUDE_CODE_SANDBOX", "maybe", "found 'maybe', expected true or false"),
        ("CCO_CLAUDE_CODE_MAX_FILE_SIZE", "big", "found 'big', expected a size such as 512 (bytes), 100KB"),
        ("CCO_CLAUDE_CODE_PERMISSION_MODE", "acceptedits", "did you mean acceptEdits?"),
        (
            "CCO_MANAGER_PROVIDER",
            "openruter",
            "found 'openruter', expected one of rules, openrouter or claude; did you mean openrouter?",
        ),
        *(
            ("CCO_REPOSITORY_BRANCH", name, "expected the name of a branch")
            for name in (
                "-x",
                "a..b",
                "a b",
                "a\x07",
                "x.lock",
                "x/",
                "/x",
                ".x",
                "a/.b",
                "a~1",
                "a:b",
                "a\\b",
                "HEAD",
                "@",
            )
        ),
    ],
)
def test_a_wrong_variable_is_named(name, text, said):
    (line,) = refused(None, None, **{name: text})
    assert line.startswith(f"{name}: {name.split('_')[1].lower()}")
    assert said in line


def test_errors_of_all_sources_come_at_once_with_file_and_line(config, mission_with):
    path = config("openruter:\n  model: x\nclaude_code:\n  timeout: soon\n  sandbox: 1\nsession: 5\n")
    found = refused(mission_with("{claude_code: {modus: manual}}"), path, CCO_MANAGER_PROVIDER="me")
    assert [line.rpartition("/")[2].split(", expected")[0] for line in found] == [
        "config.yaml:1: openruter: unknown; did you mean openrouter?",
        "config.yaml:4: claude_code.timeout: found 'soon'",
        "config.yaml:5: claude_code.sandbox: found 1",
        "config.yaml:6: session: found 5",
        "m.yaml:2: settings.claude_code.modus: unknown; did you mean models?",
        "CCO_MANAGER_PROVIDER: manager.provider: found 'me'",
    ]


@pytest.mark.parametrize("text", ("- a\n", "hello\n", "openrouter: x\n", "a: ]\n", "a: !!python/name:os.system x\n"))
def test_a_file_that_is_no_settings_file_is_refused(config, text):
    (line,) = refused(None, config(text))
    assert "config.yaml:1: " in line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("api_key: ${NAME}", SECRET),
        ("api_key: ${UNSET}", None),
        ("api_key: ${EMPTY}", None),
        ("base_url: https://${HOST}/v1", "https://example.invalid/v1"),
        ("temperature: ${NUMBER}", 1),
        ("fallbacks: ['${HOST}/a']", ["example.invalid/a"]),
        ("model: $NAME-is-left-alone", "$NAME-is-left-alone"),
    ],
)
def test_names_are_replaced_from_the_environment(config, text, value):
    environ = {"NAME": SECRET, "HOST": "example.invalid", "NUMBER": "1", "EMPTY": ""}
    settings = load_settings(None, config(f"openrouter:\n  {text}\n"), environ)
    assert getattr(settings.openrouter, text.split(":")[0]) == value


@pytest.mark.parametrize("text", ("base_url: ${HOST}", "base_url: https://${HOST}/v1", "api_key: prefix-${HOST}"))
def test_a_name_that_is_not_set_is_an_error_where_null_is_not_allowed(config, text):
    (line,) = refused(None, config(f"openrouter:\n  {text}\n"))
    assert f"config.yaml:2: openrouter.{text.split(':')[0]}: found ${{HOST}}, which is not set" in line


def test_names_are_replaced_in_a_mission_too(mission_with):
    task = mission_with('{openrouter: {model: "${MODEL}"}}')
    assert load_settings(task, None, {"MODEL": "a/b"}).openrouter.model == "a/b"


def test_dotenv_fills_in_names_and_the_environment_wins(project, mission_with, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    (project / ".env").write_text(f"OPENROUTER_API_KEY={SECRET}\n")
    task = mission_with("{}")
    assert load_settings(task, None, {}).openrouter.api_key == SECRET
    assert load_settings(task, None, {"OPENROUTER_API_KEY": "other"}).openrouter.api_key == "other"
    assert load_settings(task, None, {"OPENROUTER_API_KEY": ""}).openrouter.api_key is None
    assert "OPENROUTER_API_KEY" not in os.environ


def test_dotenv_is_found_from_the_settings_file_where_there_is_no_mission(project):
    (project / ".cco").mkdir()
    (project / ".cco/config.yaml").touch()
    (project / ".env").write_text(f"export OPENROUTER_API_KEY='{SECRET}'\n")
    assert load_settings(None, project / ".cco/config.yaml", {}).openrouter.api_key == SECRET


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("  export A = b  ", "b"),
        ("A='b # c'  # comment", "b # c"),
        ('A="b c"', "b c"),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A=", ""),
        ("A= # comment", ""),
        ("A=b=c==", "b=c=="),
        ("A='b", "'b"),
        ('A="it\'s"', "it's"),
        ("A=$B", "$B"),
        ("\ufeffA=b", "b"),
        ("A=b\r", "b"),
        ("A=1\nA=2", "2"),
    ],
)
def test_lines_of_dotenv(tmp_path, line, value):
    (tmp_path / ".env").write_bytes(line.encode())
    assert read_dotenv(tmp_path / ".env") == {"A": value}


def test_bad_lines_of_dotenv_are_passed_over(tmp_path):
    (tmp_path / ".env").write_bytes(b"# A=b\n\nhello\n=x\n1A=b\nA-B=c\n\xff\xfe=d\nGOOD=e\xff\n")
    assert read_dotenv(tmp_path / ".env") == {"GOOD": "e\ufffd"}


def test_a_missing_dotenv_or_a_folder_of_that_name_is_empty(tmp_path):
    assert read_dotenv(tmp_path / ".env") == {}
    assert read_dotenv(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        f"openrouter:\n  api_key: [{SECRET}]",
        f"openrouter:\n  api_key: '{SECRET} '",
        f"openrouter:\n  api_key: {SECRET}: x",
        "openrouter:\n  api_key: 1234512345",
        "openrouter:\n  api_key: 2099-99-99",
        "openrouter:\n  model: ' ${KEY}'",
        "openrouter:\n  temperature: ${KEY}",
    ],
)
def test_secrets_are_not_echoed(config, text):
    (line,) = refused(None, config(text + "\n"), KEY=SECRET)
    assert not any(secret in line for secret in (SECRET, "1234512345", "2099-99-99"))


def test_a_secret_in_a_variable_is_not_echoed():
    (line,) = refused(None, None, CCO_OPENROUTER_API_KEY=f"{SECRET}\n{SECRET}")
    assert line.startswith(
        "CCO_OPENROUTER_API_KEY: openrouter.api_key: found something that is not shown, expected a key"
    )
    assert SECRET not in line


def test_the_template_explains_every_key_and_changes_nothing(config):
    text = settings_template()
    assert load_settings(None, config(text), {}) == load_settings(None, None, {})
    schema = json.loads((Path(mission.__file__).parent / "schema/config.json").read_text())
    for section, part in schema["properties"].items():
        assert f"\n{section}:\n" in text
        for key, entry in part.get("properties", {}).items():
            inside = entry.get("properties", {})
            assert f"\n  {key}:\n" in text if inside else f"\n  #{key}: {json.dumps(entry['default'])}\n" in text
            for inner, one in inside.items():
                assert f"\n    #{inner}: {json.dumps(one['default'])}\n" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_template_still_loads_with_every_key_set_to_its_default(config):
    lines = settings_template().splitlines()
    active = [line.replace("#", "", 1) if line.startswith("  #") and line[3] != " " else line for line in lines]
    settings = load_settings(None, config("\n".join(active)), {"OPENROUTER_API_KEY": SECRET})
    assert settings == load_settings(None, None, {"OPENROUTER_API_KEY": SECRET})


def test_the_schema_gives_every_key_a_description_and_a_default_that_it_allows():
    from jsonschema import Draft202012Validator

    schema = json.loads((Path(mission.__file__).parent / "schema/config.json").read_text())
    for part in schema["properties"].values():
        for key, entry in part.get("properties", {}).items():
            assert entry["description"].endswith("."), key
            assert Draft202012Validator(entry).is_valid(entry["default"]) or key == "api_key"


# --------------------------------------------------------------------------------------------------------
# notify, which is a list
# --------------------------------------------------------------------------------------------------------

WEBHOOK = "https://hooks.slack.com/services/T00000000/B00000000/aB3dE5fG7hI9jK1lM3nO5pQ7"
WRONG_RECEIVERS = [
    (WEBHOOK, "notify: found something that is not shown, expected a list of at most 8 receivers"),
    (f"{{type: slack, url: '{WEBHOOK}'}}", "notify: found something that is not shown, expected a list of at most 8"),
    (f"['{WEBHOOK}']", "notify[0]: found something that is not shown, expected a receiver, such as {type: slack, url"),
    (
        f"[{', '.join(['{type: command, command: c}'] * 9)}]",
        "notify: found something that is not shown, expected a list",
    ),
    ("[{}]", "notify[0].type: missing, expected one of slack, discord, webhook or command; add it"),
    (
        "[{type: slak, url: https://x}]",
        "notify[0].type: found 'slak', expected one of slack, discord, webhook or command",
    ),
    ("[{type: slak, url: https://x}]", "; did you mean slack?"),
    ("[{type: slack}]", "notify[0].url: missing, expected an address that starts with https:// or http://; add it"),
    ("[{type: webhook, url: 5}]", "notify[0].url: found something that is not shown, expected an address that starts"),
    (
        f"[{{type: discord, url: '{WEBHOOK[8:]}'}}]",
        "notify[0].url: found something that is not shown, expected an addr",
    ),
    (
        f"[{{type: discord, url: '{WEBHOOK} '}}]",
        "notify[0].url: found something that is not shown, expected an address",
    ),
    (
        "[{type: slack, url: '${UNSET}'}]",
        "notify[0].url: found ${UNSET}, which is not set; set it in the environment or",
    ),
    (
        "[{type: slack, url: https://x, command: c}]",
        "notify[0].command: found something that is not shown, expected none",
    ),
    ("[{type: command}]", "notify[0].command: missing, expected a shell command of at most 4000 characters; add it"),
    ("[{type: command, command: ' '}]", "notify[0].command: found ' ', expected a shell command of at most 4000"),
    (
        "[{type: command, command: 5}]",
        "notify[0].command: found 5, expected a shell command of at most 4000 characters",
    ),
    (
        f"[{{type: command, command: c, url: '{WEBHOOK}'}}]",
        "notify[0].url: found something that is not shown, expected no",
    ),
    ("[{type: slack, url: https://x, evnts: [done]}]", "notify[0].evnts: unknown; did you mean events?"),
    (
        "[{type: slack, url: https://x, events: done}]",
        "notify[0].events: found 'done', expected a list of events, such",
    ),
    (
        "[{type: slack, url: https://x, events: []}]",
        "notify[0].events: found a list, expected a list of events, such as",
    ),
    (
        "[{type: slack, url: https://x, events: [block]}]",
        "notify[0].events[0]: found 'block', expected one of criterion_m",
    ),
    ("[{type: slack, url: https://x, events: [block]}]", "; did you mean blocked?"),
]


def receivers(settings: mission.Settings) -> list[dict[str, object]]:
    return [vars(receiver) for receiver in settings.notify]


def test_nobody_is_told_of_milestones_by_default(config):
    for text in ("", "notify:\n", "notify: []\n"):
        assert load_settings(None, config(text), {}).notify == []


def test_receivers_of_milestones_are_objects_with_all_of_their_keys(config):
    text = """\
notify:
  - {type: slack, url: "${SLACK_WEBHOOK}"}
  - type: command
    command: mail -s "$CCO_EVENT ${CCO_MISSION}" me
    events: [blocked, done]
"""
    events = ["criterion_met", "regression", "tampering", "limit", "limit_over", "stalled", "budget", "blocked"]
    assert receivers(load_settings(None, config(text), {"SLACK_WEBHOOK": WEBHOOK})) == [
        {"type": "slack", "url": WEBHOOK, "command": None, "events": [*events, "done", "failed"]},
        {
            "type": "command",
            "url": None,
            "command": 'mail -s "$CCO_EVENT ${CCO_MISSION}" me',  # what is in it is the shell's to replace
            "events": ["blocked", "done"],
        },
    ]


def test_a_list_of_receivers_takes_the_place_of_a_weaker_one(config, mission_with):
    path = config("notify: [{type: command, command: file}, {type: command, command: too}]\n")
    task = mission_with("{notify: [{type: command, command: mission}]}")
    variable = {"CCO_NOTIFY": "[{type: webhook, url: '${URL}', events: [done]}]", "URL": WEBHOOK}
    assert [r.command for r in load_settings(None, path, {}).notify] == ["file", "too"]
    assert [r.command for r in load_settings(mission_with("{notify: null}"), path, {}).notify] == ["file", "too"]
    assert [r.command for r in load_settings(task, path, {}).notify] == ["mission"]
    assert load_settings(task, path, {"CCO_NOTIFY": "[]"}).notify == []
    assert receivers(load_settings(task, path, variable)) == [
        {"type": "webhook", "url": WEBHOOK, "command": None, "events": ["done"]}
    ]


def test_one_list_of_receivers_does_not_change_the_next(config):
    path = config("notify: [{type: command, command: c}]\n")
    load_settings(None, path, {}).notify[0].events.clear()
    assert len(load_settings(None, path, {}).notify[0].events) == 10


@pytest.mark.parametrize(("text", "said"), WRONG_RECEIVERS)
def test_a_wrong_receiver_is_named_and_no_address_is_shown(config, mission_with, text, said):
    (of_file,) = refused(None, config(f"notify: {text}\n"))
    (of_mission,) = refused(mission_with(f"{{notify: {text}}}"), None)
    (of_variable,) = refused(None, None, CCO_NOTIFY=text)
    assert f"config.yaml:1: {said}" in of_file or said.startswith("; did")
    for line in (of_file, of_mission, of_variable):
        assert said in line
        assert WEBHOOK[-24:] not in line
    assert of_mission.partition("m.yaml:2: settings.")[2] == of_file.partition("config.yaml:1: ")[2]
    assert of_variable.startswith("CCO_NOTIFY: notify")


def test_every_wrong_receiver_is_named_with_its_line(config):
    text = "notify:\n  - type: slack\n  - type: command\n    command: c\n    events:\n      - done\n      - dun\n"
    found = refused(None, config(text))
    assert [line.rpartition("/")[2][:34] for line in found if "url" not in line] == [
        "config.yaml:7: notify[1].events[1]"
    ]
    assert "config.yaml:2: notify[0].url: missing" in found[0]


@pytest.mark.parametrize("text", ("[{type: slack, url: ", "5", "all", "'[]'", "@odd: ["))
def test_a_variable_that_holds_no_list_is_named_and_not_shown(text):
    (line,) = refused(None, None, CCO_NOTIFY=text)
    assert line.startswith(
        "CCO_NOTIFY: notify: found something that is not shown, expected a list of at most 8 receivers"
    )


def test_the_template_shows_receivers_that_work_when_their_comment_signs_are_removed(config):
    text = settings_template()
    before, _, example = text.partition("  # For example:\n")
    lines = [line.replace("# ", "", 1) for line in example.splitlines()]
    settings = load_settings(None, config(before + "\n".join(lines)), {"SLACK_WEBHOOK": WEBHOOK})
    assert [(r["type"], r["url"], bool(r["command"])) for r in receivers(settings)] == [
        ("slack", WEBHOOK, False),
        ("command", None, True),
    ]
    schema = json.loads((Path(mission.__file__).parent / "schema/config.json").read_text())["properties"]["notify"]
    for key, entry in schema["items"]["properties"].items():
        assert entry["description"].endswith("."), key
        assert f"\n  # {key}: {entry['description'][:60]}" in before
    assert "stalled" in before
