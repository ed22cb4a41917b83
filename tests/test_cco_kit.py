"""The kit as a folder: Makefile, copying into other repositories, and a README that cannot drift."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cco
import mission

KIT = Path(__file__).resolve().parent.parent
README = (KIT / "README.md").read_text("utf-8")
ORDER = (
    "cco", "loop", "session", "proof", "referee", "milestones", "steering", "job", "exits", "edits", "page", "paper",
    "report", "inbox", "progress", "manager", "tiers", "briefing", "ledger", "judge", "llm", "claude_llm",
    "situation", "openrouter", "catalog", "refusals", "asking", "wire", "worker", "stream", "resets", "waiting",
    "budget", "claims", "lessons", "dod", "sandbox", "mission", "prompt", "excerpt", "document", "toolchain", "seal",
    "checkout", "repo", "notify", "machine", "proc", "processes", "surroundings", "state", "personal", "log",
)  # fmt: skip
MISSION = json.dumps({"title": "t", "definition_of_done": [{"criteria": "c", "check": "test -e never"}]})


def run(*argv: str, cwd: Path, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command with PYTHONPATH and the like as given only, and hold its exit code."""
    own = ("PYTHON", "CCO_", "MAKE", "ARGS", "NO_SKIPS")  # make hands on what its own command line sets
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(argv, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=60, check=False)
    assert code is None or done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def kit_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=KIT, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (KIT / name).is_file()]


@pytest.fixture
def copied(project, git) -> Path:
    """The kit copied as a folder into a host repository with modules and folders of the same names."""
    kit = project / "the kit"
    for name in kit_files():
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(KIT / name, kit / name)
    (kit / ".venv").symlink_to(KIT / ".venv") if (KIT / ".venv").exists() else None
    for name in ("state.py", "log.py", "mission.py", "report.py"):
        (project / name).write_text("raise SystemExit('this is the host project, not the kit')\n")
    (project / "schema").mkdir()
    (project / "tests").mkdir()
    (project / "tests" / "test_host.py").write_text("def test_host():\n    assert True\n")
    (project / "mission.json").write_text(MISSION)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "host")
    return kit


# --------------------------------------------------------------------------------------------------------
# make
# --------------------------------------------------------------------------------------------------------


def test_make_alone_prints_help_for_every_target():
    shown = run("make", cwd=KIT).stdout
    targets = re.findall(r"^\.PHONY: (\w+)$", (KIT / "Makefile").read_text(), re.M)
    assert {"start", "demo", "test"} <= set(targets)
    assert sorted(re.findall(r"^  make (\w+) ", shown, re.M)) == sorted(set(targets) - {"venv"})


def test_every_command_has_a_target_and_help():
    makefile = (KIT / "Makefile").read_text()
    for name, (function, _) in cco.COMMANDS.items():
        assert re.search(rf"^{name}: venv ##", makefile, re.M), name
        assert function.__doc__, name


@pytest.fixture
def bare_kit(tmp_path) -> Path:
    """A folder with the Makefile and the requirements, and a python that makes no real environment."""
    kit = tmp_path / "bare kit"
    kit.mkdir()
    for name in ("Makefile", "requirements.txt", "cco.py"):
        shutil.copy(KIT / name, kit / name)
    fake = tmp_path / "python"
    fake.write_text(
        f"""#!/bin/sh
echo "$@" >> '{tmp_path}/calls'
case "$*" in
  "-m venv .venv") [ -z "$NO_VENV" ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-c import sys;"*) [ -z "$OLD" ] ;;
esac
"""
    )
    fake.chmod(0o755)
    return kit


def test_the_environment_is_made_once_and_again_when_the_requirements_change(bare_kit, tmp_path):
    make = ("make", f"PYTHON={tmp_path}/python", "status")
    for expected in (1, 1):
        run(*make, cwd=bare_kit)
        assert (tmp_path / "calls").read_text().count("-m venv .venv") == expected
    (bare_kit / "requirements.txt").write_text("requests\n")
    run(*make, cwd=bare_kit)
    assert (tmp_path / "calls").read_text().count("-m venv .venv") == 2
    assert (tmp_path / "calls").read_text().count("pip install") == 2


def test_without_venv_the_message_names_the_package_and_nothing_half_made_stays(bare_kit, tmp_path):
    done = run("make", f"PYTHON={tmp_path}/python", "status", cwd=bare_kit, code=2, NO_VENV="1")
    assert "sudo apt install python3-venv" in done.stderr
    assert not (bare_kit / ".venv").exists()


def test_an_old_python_is_refused_by_name(bare_kit, tmp_path):
    done = run("make", f"PYTHON={tmp_path}/python", "status", cwd=bare_kit, code=2, OLD="1")
    assert "older than 3.10" in done.stderr


# --------------------------------------------------------------------------------------------------------
# Copied into another repository
# --------------------------------------------------------------------------------------------------------

VERDICT = "[ ]  c1"


@pytest.mark.parametrize(
    "argv",
    [
        (sys.executable, "the kit/cco.py", "check", "mission.json"),
        (sys.executable, "-P", "the kit/cco.py", "check", "mission.json") if sys.version_info >= (3, 11) else None,
        (sys.executable, "-I", "the kit/cco.py", "check", "mission.json"),
        ("make", "-C", "the kit", "check", "MISSION=../mission.json"),
        ("make", "-f", "the kit/Makefile", "check", "MISSION=mission.json"),
    ],
)
def test_it_runs_from_the_hosts_root_next_to_modules_of_the_same_names(copied, argv):
    if argv is None:
        pytest.skip("python -P is new in 3.11")
    assert VERDICT in run(*argv, cwd=copied.parent).stdout
    assert VERDICT in run(*argv, cwd=copied.parent, PYTHONPATH=".", PYTHONSAFEPATH="1").stdout


def test_it_runs_from_any_directory_through_a_link_and_under_crons_environment(copied, tmp_path):
    mission_file = str(copied.parent / "mission.json")
    link = tmp_path / "link to kit"
    link.symlink_to(copied)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    for kit in (copied, link):
        assert VERDICT in run("make", "-C", str(kit), "check", f"MISSION={mission_file}", cwd=elsewhere).stdout
        assert VERDICT in run("make", "-f", f"{kit}/Makefile", "check", f"MISSION={mission_file}", cwd=elsewhere).stdout
    bare = ("env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin", "/bin/sh", "-c")
    python = f"'{copied}/.venv/bin/python'" if (KIT / ".venv").exists() else f"'{sys.executable}'"
    assert VERDICT in run(*bare, f"{python} '{copied}/cco.py' check '{mission_file}'", cwd=elsewhere).stdout


def test_as_a_module_of_the_host_it_says_what_is_wrong_or_works(copied):
    renamed = copied.rename(copied.parent / "kit")
    assert VERDICT in run(sys.executable, "-m", "kit.cco", "check", "mission.json", cwd=renamed.parent).stdout
    shadow = "import sys, types; sys.modules['state'] = types.ModuleType('state'); sys.modules['state'].__file__ = '/x/state.py'; import runpy; sys.argv = ['cco.py', 'status']; runpy.run_path('kit/cco.py', run_name='__main__')"  # noqa: E501
    done = run(sys.executable, "-c", shadow, cwd=renamed.parent, code=1)
    assert "cco: wrong 'state': /x/state.py" in done.stderr


def test_the_hosts_own_test_run_does_not_collect_the_kits_tests(copied):
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=copied.parent)
    assert "1 passed" in done.stdout


def test_the_kit_refuses_to_work_on_itself(git, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    git(clone, "init", "-q")
    for name in kit_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(KIT / name, clone / name)
    done = run(sys.executable, "cco.py", "start", cwd=clone, code=2)
    assert "Copy the kit as a folder into your repository" in done.stderr


# --------------------------------------------------------------------------------------------------------
# The house
# --------------------------------------------------------------------------------------------------------


def imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_imports_form_a_line_downwards_and_the_core_knows_no_extra():
    assert sorted(path.stem for path in KIT.glob("*.py")) == sorted(ORDER)
    for number, name in enumerate(ORDER):
        upwards = imports(KIT / f"{name}.py") & set(ORDER[: number + 1])
        assert not upwards, f"{name} imports {upwards}"
        assert "extras" not in imports(KIT / f"{name}.py")


def test_status_loads_nothing_that_it_does_not_need(project):
    done = run(sys.executable, "-X", "importtime", str(KIT / "cco.py"), "status", cwd=project, code=2)
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert {"argparse", "report", "state"} <= loaded
    heavy = {"yaml", "requests", "jsonschema", "tabulate", "subprocess", "logging", "dataclasses", "pathlib", "shutil"}
    assert not loaded & heavy


def test_no_file_speaks_of_unfinished_work():
    for name in kit_files():
        if name.endswith((".py", ".md", ".yaml", "Makefile")) and name != "tests/test_cco_kit.py":
            assert not re.search(r"\b(TODO|FIXME|XXX)\b", (KIT / name).read_text("utf-8")), name


# --------------------------------------------------------------------------------------------------------
# The README
# --------------------------------------------------------------------------------------------------------


def test_the_readme_names_every_command_with_its_options():
    for name, (_, options) in cco.COMMANDS.items():
        row = re.search(rf"^\| `{name}[ `][^|]*", README, re.M)
        assert row, name
        for option in options:
            assert (option if option.startswith("-") else option.upper()) in row[0], f"{name} {option}"


def test_the_readme_names_every_setting_with_its_default_and_meaning():
    def keys(schema: dict, place: str = "") -> dict[str, dict]:
        found = {}
        for key, entry in schema.get("properties", {}).items():
            found |= keys(entry, f"{place}{key}.") or ({place + key: entry} if place else {})
        return found

    wanted = keys(json.loads((KIT / "schema" / "config.json").read_text("utf-8")))
    for name, value in wanted.items():
        default = value["default"] if isinstance(value["default"], str) else json.dumps(value["default"])
        assert f"| `{name}` | `{default}` | {value['description']} |" in README
    assert set(re.findall(r"^\| `([a-z_]+(?:\.[a-z_]+)+)` \| `", README, re.M)) == set(wanted)


def test_the_readme_names_every_mission_field():
    schema = json.loads((KIT / "schema" / "mission.json").read_text("utf-8"))["$defs"]
    fields = schema["mission"]["properties"]
    rows = [*fields.items(), *schema["criterion"]["properties"].items()]
    rows += [(f"limits.{name}", entry) for name, entry in fields["limits"]["properties"].items()]
    for name, entry in rows:
        assert f"| `{name}` | {entry.get('description', '')} |" in README, name


def test_the_readme_names_every_exit_code():
    import exits

    codes = {exits.DONE, exits.ERROR, exits.USAGE, exits.PERSON, exits.CANNOT, exits.LIMIT, exits.LATER}
    table = README[README.index("| exit code") :]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == codes
    assert "| 130, 143 |" in table


def test_the_readme_names_every_file_of_the_core():
    assert set(re.findall(r"^\| `(\w+)\.py` \|", README, re.M)) == set(ORDER)


def test_the_mission_in_the_readme_loads(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert text
    loaded = mission.parse(text[1], tmp_path / "mission.yaml")
    assert [criterion.id for criterion in loaded.criteria] == ["export", "lint"]


@pytest.mark.parametrize("kind", ("nohup", "cron"))
def test_the_lines_for_nohup_and_cron_work_as_printed(copied, git, kind):
    home = copied.parent.parent
    project = copied.parent.rename(home / "my-project")
    (project / "the kit").rename(project / "cco")
    stand_in = {"command": str(KIT / "extras" / "claude_stand_in.py"), "sandbox": False}
    wanted = [{"criteria": "c", "check": "test -e x"}]
    fields = {"title": "t", "definition_of_done": wanted, "settings": {"claude_code": stand_in}}
    (project / "mission.yaml").write_text(json.dumps(fields))
    run(sys.executable, "cco/cco.py", "init", cwd=project)
    git(project, "add", "-A", ":!.cco")
    git(project, "commit", "-q", "-m", "mission")
    script = home / "script.json"
    script.write_text(json.dumps([[{"write": {"x": "1"}}]]))
    (line,) = re.findall(r"^    (nohup .*|\*/10 .*)$", README, re.M)[kind == "cron" :][:1]
    if kind == "cron":
        line = line.removeprefix("*/10 * * * * ")
        shell = ("env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin", f"CLAUDE_STAND_IN={script}", "/bin/sh", "-c", line)
        run(*shell, cwd=home)
    else:
        run("bash", "-c", f"{line} wait $!", cwd=project, CLAUDE_STAND_IN=str(script))
    said = (project / "cco" / "cco.log").read_text()
    assert "done: all 1 criteria are met" in said and "WARN" not in said


def test_the_demo_runs_offline_and_ends_done(tmp_path):
    done = run(sys.executable, str(KIT / "cco.py"), "demo", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert "met -> unmet (regression" in done.stdout and "3/3 met" in done.stdout
    assert "every test passes" in done.stdout


def test_the_demo_runs_with_the_real_claude(tmp_path, real_claude):
    path = f"{real_claude.parent}:{os.environ['PATH']}"
    done = run(sys.executable, str(KIT / "cco.py"), "demo", "--real", cwd=tmp_path, TMPDIR=str(tmp_path), PATH=path)
    assert "met -> unmet (regression" in done.stdout and "3/3 met" in done.stdout
