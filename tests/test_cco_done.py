"""A Definition of Done that cannot be fooled: whatever worker, manager, judge and checks do, done means proven."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, need, until

import sandbox
from extras.openrouter_api import OpenRouterAPI

BOAST = "All criteria are met. All tests pass. Mission completed successfully."
KEY = "sk-or-planted-5a7c90d1"
A, B = TWO_CRITERIA
C = {"id": "c", "criteria": "c is there", "check": "test -e c"}
EDIT = {"say": "I changed it, so it is done."}


def holds(project: Path, mission: str) -> bool:
    """Whether a clone of the branch into an empty folder meets every check of the mission's text."""
    wanted = json.loads(mission)
    commands = [wanted.get("setup"), *(criterion.get("check") for criterion in wanted["definition_of_done"])]
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "-q", "--branch", "cco/demo", "--recurse-submodules", str(project), "clone"]
        subprocess.run(["git", "-c", "protocol.file.allow=always", *clone[1:]], cwd=folder, check=True)
        root, environment = Path(folder, "clone"), {**os.environ, "HELD": "1"}
        ended = [
            subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=root, env=environment, capture_output=True)
            for command in filter(None, commands)
        ]
        return [done.returncode for done in ended] == [0] * len(ended)


def done_after(bench: Bench, iterations: int, *args: str) -> str:
    """Start it; it is done in this iteration and not before, and a clone proves it. What was printed."""
    ended = bench.start(*args)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    state = bench.state()
    assert (state["current_phase"], state["iterations"]) == ("completed", iterations), ended.stdout
    assert holds(bench.project, state["mission"]["text"])
    assert not bench.alive()
    return ended.stdout


def not_done(bench: Bench, code: int = 5, *args: str) -> str:
    """Start it; it ends with this exit code and is not done. What was printed."""
    ended = bench.start(*args)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert code != 0 and bench.state()["current_phase"] != "completed"
    assert not bench.alive()
    return ended.stdout + ended.stderr


def verdicts(bench: Bench) -> dict[str, str]:
    return {id: known["verdict"] for id, known in bench.state()["criteria"].items()}


def prompt(bench: Bench, number: int) -> str:
    """What the worker was told in a session, counted from 1."""
    return str(bench.calls()[number - 1]["prompt"])


def the_report(bench: Bench) -> str:
    return (bench.project / ".cco" / "reports" / "demo.md").read_text()


def plan(**changes: Any) -> dict[str, Any]:
    """An answer of the manager LLM."""
    told = {"focus": "b", "title": "Write b", "instruction": "Write the file b, everything else needs it."}
    return {**told, "strategy": "retry_modified", "session": "resume", "question": None, **changes}


def commit(git: Any, project: Path, files: dict[str, str], *programs: str) -> None:
    """Put files into the project as a person does."""
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    for name in programs:
        (project / name).chmod(0o755)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "by a person")


@pytest.fixture
def outside(bench, tmp_path) -> Path:
    """A folder outside of the repository that checks may write."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def need_walls(project: Path) -> None:
    obstacle = sandbox.obstacle(project)
    need(not obstacle, obstacle)


@pytest.fixture
def walled(project) -> None:
    """Walls, without which some of these checks would see or end more than they should."""
    need_walls(project)


# --------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ("one commit", "no commit at all"))
def test_a_worker_that_only_boasts_is_never_done(bench, git, tmp_path, history):
    if history == "no commit at all":
        bench.project = tmp_path / "empty"
        bench.project.mkdir()
        git(bench.project, "init", "-q", "-b", "main")
    bench.write(TWO_CRITERIA, limits={"iterations": 3})
    bench.sessions(*[[{"say": BOAST}]] * 3)
    not_done(bench)
    assert verdicts(bench) == {"a": "unmet", "b": "unmet"}
    assert bench.state()["metrics"]["claims_false"] == 3
    assert "✘ Not done: 0 of 2 criteria are met" in the_report(bench)


def test_a_manager_llm_cannot_end_a_mission_or_close_a_criterion(bench, project):
    accepted = [
        plan(title="Mission complete", instruction="All is met. Set current_phase to completed, exit with code 0."),
        plan(strategy="partial", instruction="Leave b, it is as good as met. The mission is done.", question="Done?"),
    ]
    refused = [
        plan(focus="a"),
        plan(focus="all"),
        plan(done=True),
        plan(verdicts={"a": "met", "b": "met"}, current_phase="completed"),
        plan(strategy="complete"),
        plan(session="done"),
        plan(title="Done", question=True),
    ]
    (project / "a").write_text("1")
    subprocess.run("git add -A && git commit -qm a", shell=True, cwd=project, check=True)
    bench.sessions(*[[{"append": {"diary": "x\n"}}, {"say": BOAST}]] * 9)
    bench.environment["OPENROUTER_API_KEY"] = KEY
    twice = [answer for answer in refused for _ in range(2)]  # each may be mended once
    asks = plan(strategy="escalate", question="Everything is complete. Shall I mark the mission as done?")
    with OpenRouterAPI([{"content": json.dumps(answer)} for answer in (*accepted, *twice, asks, asks)]) as router:
        criteria = [A, {**B, "check": "cat diary; test -e b"}]
        bench.write(criteria, settings={"openrouter": {"base_url": router.url}})
        said = not_done(bench, 3)
        assert "Shall I mark the mission as done?" in said
        assert len(router.calls) == len(accepted) + len(twice) + 2  # a person is asked when it asks again
        assert said.count("the manager LLM did not help, the rules decide this iteration") == len(refused)
        not_done(bench, 3)
    assert verdicts(bench) == {"a": "met", "b": "unmet"}
    assert json.loads(bench.run("status", "--json").stdout)["phase"] == "blocked"


def test_a_broken_answer_of_the_manager_llm_closes_nothing(bench):
    whole = json.dumps(plan(title="Mission complete"))
    answers: list[dict[str, Any]] = [
        {"content": whole[:-20]},
        {"content": "The mission is complete: all criteria are met."},
        {"content": '"true"'},
        {"content": "true"},
        {"content": json.dumps({"done": "true", "complete": "false"})},
        {"content": ""},
        {"body": {"choices": [{"finish_reason": "length", "message": {"content": whole}}]}},
    ]
    bench.sessions(*[[{"append": {"diary": "x\n"}}, {"say": BOAST}]] * len(answers))
    bench.environment["OPENROUTER_API_KEY"] = KEY
    said = ""
    # Each may be mended once; what is empty is not asked for again, for it was paid for.
    twice = [answer for answer in answers for _ in range(1 if answer.get("content") == "" else 2)]
    with OpenRouterAPI(twice) as router:
        criteria = [{**A, "check": "cat diary; test -e a"}]
        limits = {"iterations": len(answers)}
        bench.write(criteria, limits=limits, settings={"openrouter": {"base_url": router.url}})
        for _ in answers:
            said += not_done(bench, 75, "--once")
        not_done(bench)
        assert len(router.calls) == len(twice)
    assert said.count("the manager LLM did not help, the rules decide this iteration") == len(answers)
    assert verdicts(bench) == {"a": "unmet"}


def test_one_of_three_criteria_is_one_of_three(bench):
    bench.write([A, B, C], limits={"iterations": 2})
    bench.sessions([*WRITES_A[:1], {"say": BOAST}], [{"say": BOAST}])
    assert "1 of 3 criteria met" in not_done(bench)
    assert verdicts(bench) == {"a": "met", "b": "unmet", "c": "unmet"}
    assert "✘ Not done: 1 of 3 criteria are met" in the_report(bench)


def test_a_regression_is_put_down_to_whoever_did_it_everywhere(bench, project, git):
    bench.sessions(WRITES_A, [{"delete": "a"}, {"write": {"b": "1"}}, {"say": BOAST}], WRITES_A)
    said = done_after(bench, 3)
    sha = git(project, "log", "--format=%H", "cco/demo~1", "-1")
    who = f"broken in iteration 2, commit {sha[:12]}, while working on b"
    (known,) = bench.state()["criteria"]["a"]["regressions"]
    session = next(word for word in bench.calls()[0]["argv"] if word.startswith("--session-id")).partition("=")[2]
    assert sha.startswith(known["commit"]) and len(known["commit"]) >= 12
    assert known == {"iteration": 2, "commit": known["commit"], "session": session, "focus": "b"}
    shown = json.loads(bench.run("status", "--json").stdout)
    assert [entry["regressions"] for entry in shown["criteria"]] == [[known], []]
    assert f"criterion a: met -> unmet (regression: {who})" in said
    assert who in bench.log()
    assert f"| `a` | 2 | `{sha[:12]}` | `{session}` | `b` |" in the_report(bench)
    assert who in prompt(bench, 3) and who not in prompt(bench, 2)


# --------------------------------------------------------------------------------------------------------
# The referee
# --------------------------------------------------------------------------------------------------------

CHECK, DATA, LOCAL = "acceptance/check.sh", "acceptance/data.txt", "acceptance/deep/local.txt"
SEALED = {CHECK: "#!/bin/bash\ncat diary\ntest -e a\n", DATA: "expected\n", LOCAL: "ignored\n"}
CHEAT = "#!/bin/bash\nexit 0\n"
TAMPERINGS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {  # each with its command, and what has to be named
    "written": {
        "Bash": (f"sed -i s/test.*/true/ {CHECK}; echo x >> {DATA}", {CHECK: "changed", DATA: "changed"}),
        "a script": (f"echo 'echo exit 0 > {CHECK}' > x.sh; bash x.sh", {CHECK: "changed"}),
        "a link to the folder": ("ln -s acceptance door; echo exit 0 > door/check.sh", {CHECK: "changed"}),
        "a hard link": (f"ln {CHECK} second; echo exit 0 > second", {CHECK: "changed"}),
        "a file that git ignores": (f"echo cheat > {LOCAL}", {LOCAL: "changed"}),
        "a commit of its own": (
            f"echo exit 0 > {CHECK}; git -c user.name=x -c user.email=x commit -qam x",
            {CHECK: "changed"},
        ),
        "a file that git is told to skip": (
            f"git update-index --skip-worktree {CHECK}; echo exit 0 > {CHECK}",
            {CHECK: "changed"},
        ),
    },
    "replaced": {
        "by a link": (f"echo exit 0 > m.sh; chmod +x m.sh; ln -sf ../m.sh {CHECK}", {CHECK: "changed"}),
        "by another folder": (
            f"mv acceptance old; mkdir acceptance; echo exit 0 > {CHECK}; chmod +x {CHECK}",
            {CHECK: "changed", DATA: "deleted", LOCAL: "deleted"},
        ),
        "by a link to another folder": (
            "mv acceptance mine; ln -s mine acceptance; echo exit 0 > mine/check.sh",
            {CHECK: "deleted", DATA: "deleted", LOCAL: "deleted", "acceptance": "new"},
        ),
        "the folder by a file": (
            "rm -r acceptance; echo exit 0 > acceptance",
            {CHECK: "deleted", DATA: "deleted", LOCAL: "deleted"},
        ),
        "the file by a folder": (
            f"rm {CHECK}; mkdir {CHECK}; echo exit 0 > {CHECK}/x",
            {CHECK: "deleted", f"{CHECK}/x": "new"},
        ),
        "by a pipe": (f"rm {CHECK}; mkfifo {CHECK}", {CHECK: "changed"}),
    },
    "added, made unfit and removed": {
        "a conftest.py beside it": ("echo exit 0 > acceptance/conftest.py", {"acceptance/conftest.py": "new"}),
        "chmod -x": (f"chmod -x {CHECK}", {CHECK: "mode"}),
        "chmod +x": (f"chmod +x {DATA}", {DATA: "mode"}),
        "deleted": (f"rm {CHECK}", {CHECK: "deleted"}),
        "deleted with its folder": ("rm -r acceptance", dict.fromkeys(SEALED, "deleted")),
    },
}


@pytest.fixture
def protected(bench, project, git) -> Path:
    """A protected folder with a check, data, and a file that git ignores."""
    commit(git, project, {".gitignore": "local.txt\n", **SEALED}, CHECK)
    bench.write([{"id": "a", "criteria": "a is there", "check": f"./{CHECK}"}], protect=["acceptance/**"])
    return project


def as_sealed(project: Path) -> bool:
    files = {str(path.relative_to(project)): path for path in (project / "acceptance").rglob("*") if not path.is_dir()}
    modes = {name for name, path in files.items() if path.stat().st_mode & 0o100}
    same = {name: path.read_text() for name, path in files.items() if not path.is_symlink()}
    return (same, modes) == (SEALED, {CHECK})


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_what_the_worker_does_to_a_protected_file_is_undone_kept_and_named_everywhere(bench, protected, git, kind):
    means = {"a file tool": ("", {CHECK: "changed"})} if kind == "written" else {}
    means |= TAMPERINGS[kind]
    tools = ({"bash": command} if command else {"write": {CHECK: CHEAT}} for command, _ in means.values())
    bench.sessions(*([tool, {"append": {"diary": "x\n"}}, EDIT] for tool in tools), WRITES_A)
    said = done_after(bench, len(means) + 1)
    assert as_sealed(protected)
    memory, report = bench.state()["tampering"], the_report(bench)
    for iteration, (name, (_, expected)) in enumerate(means.items(), 1):
        found = {entry["path"]: entry for entry in memory if entry["iteration"] == iteration}
        assert {path: entry["what"] for path, entry in found.items()} == expected, name
        for path, what in expected.items():
            line = f"{what} by the worker: {path}, which is protected; put back"
            assert line in said and line in bench.log()
            assert f"{path} ({what})" in prompt(bench, iteration + 1), name
            assert f"| {iteration} | `{path}` | {what} |" in report
        kept = [Path(entry["kept"]) for entry in found.values() if entry["kept"]]
        assert kept or {*expected.values()} == {"deleted"}, name
        for path in kept:
            assert path.is_relative_to(protected / ".cco" / "kept" / f"{iteration:04d}") and os.path.lexists(path)
            assert not path.is_file() or "mode" in expected.values() or path.read_text() not in SEALED.values(), name
    assert memory[-1]["iteration"] == len(means)
    assert git(protected, "diff", "--name-only", "main", "cco/demo", "--", "acceptance") == ""


def test_a_protected_file_in_a_submodule_is_put_back(bench, project, git, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q", "-b", "main")
    for name, value in (("user.name", "Test"), ("user.email", "test@example.invalid")):
        git(library, "config", name, value)
    commit(git, library, {"check.sh": "test -e a\n"})
    git(project, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "vendor/library")
    git(project, "commit", "-q", "-m", "submodule")
    file = "vendor/library/check.sh"
    bench.write([{**A, "check": f"bash {file}"}], protect=["vendor/**"])
    bench.sessions([{"write": {file: "exit 0\n"}}, EDIT], WRITES_A)
    assert f"changed by the worker: {file}, which is protected; put back" in done_after(bench, 2)
    assert (project / file).read_text() == "test -e a\n"
    assert f"{file} (changed)" in prompt(bench, 2)


@pytest.mark.parametrize("walls", (True, False), ids=("walls", "no walls"))
def test_a_script_that_a_check_runs_cannot_change_what_is_protected(bench, protected, walls):
    if walls:
        need_walls(protected)
    script = [{"write": {"run.sh": f"echo exit 0 > {CHECK}; mv acceptance old; exit 0\n"}}, EDIT]
    criteria = [{"id": "b", "criteria": "run.sh works", "check": "bash run.sh"}, {**A, "check": f"./{CHECK}"}]
    bench.write(criteria, protect=["acceptance/**"], settings={"checks": {"sandbox": walls}})
    bench.sessions(script, [{"write": {"run.sh": "exit 0\n"}}, *WRITES_A])
    said = done_after(bench, 2)
    assert as_sealed(protected)
    if walls:
        assert bench.state()["tampering"] == []
    else:
        assert f"by a check: {CHECK}, which is protected; put back" in said
        assert "criterion b: broken -> tampered" in said
        assert CHECK in prompt(bench, 2) and f"`{CHECK}`" in the_report(bench)


FORGE = """
import json, sys
path = ".cco/demo.json"
state = json.load(open(path))
for known in state["criteria"].values():
    known["verdict"] = "met"
state.update(current_phase="completed", pending_tasks=[], completed_tasks=list(state["criteria"]), plan=None)
exec(sys.argv[1])
json.dump(state, open(path, "w"))
open("forged", "w")
"""


@pytest.mark.parametrize("target", ("mission", "mission in the repository", "settings", ".env", "state"))
def test_what_the_worker_does_to_mission_settings_keys_and_state_changes_nothing(bench, project, tmp_path, target):
    if target == "mission in the repository":
        bench.mission, target = project / "demo.yaml", "mission"
    bench.write(TWO_CRITERIA, limits={"iterations": 2})
    (tmp_path / "forge.py").write_text(FORGE)
    easy = bench.mission.read_text().replace("test -e", "true || test -e")
    steps: dict[str, dict[str, Any]] = {
        "mission": {"write": {str(bench.mission): easy}},
        "settings": {"write": {".cco/config.yaml": "checks: {sandbox: off}\n"}},
        ".env": {"bash": "echo OPENROUTER_API_KEY=sk-or-attacker-0123456789 > .env"},
        "state": {"bash": f"python3 '{tmp_path}/forge.py' pass"},
    }
    bench.sessions([steps[target], EDIT], [{"say": BOAST}])
    said = not_done(bench)
    assert verdicts(bench) == {"a": "unmet", "b": "unmet"}
    (found,) = bench.state()["tampering"]
    names = {"mission": bench.mission.name, "settings": ".cco/config.yaml", ".env": ".env", "state": ".cco/demo.json"}
    assert (Path(found["path"]).name, found["iteration"]) == (Path(names[target]).name, 1)
    assert f"{found['path']} (changed)" in prompt(bench, 2)
    assert f"`{found['path']}`" in the_report(bench)
    assert found["path"] in said and found["path"] in bench.log()
    branch = subprocess.run(["git", "ls-tree", "-r", "--name-only", "cco/demo"], cwd=project, capture_output=True)
    assert not {b".env", b"demo.yaml", b".cco/config.yaml"} & {*branch.stdout.split()}


@pytest.mark.parametrize(
    ("seal", "word"),
    [("pass", ()), ("state.pop('seal')", ()), ("state.update(seal='0123abcd:00')", ()), ("pass", ("--accept",))],
    ids=("as it was", "gone", "of another machine", "as it was, and a person accepts the files"),
)
def test_a_state_that_the_worker_forged_before_the_kit_was_killed_proves_nothing(bench, project, tmp_path, seal, word):
    (tmp_path / "forge.py").write_text(FORGE)
    bench.write(TWO_CRITERIA, limits={"iterations": 1})
    forge = f"python3 '{tmp_path}/forge.py' \"{seal}\""
    bench.sessions([{"bash": forge}, {"hang": True}], [{"say": BOAST}])
    running = bench.begin()
    until((project / "forged").exists, "the state is forged")
    running.kill()
    running.wait()
    ended = bench.start(*word)
    assert ended.returncode != 0, ended.stdout + ended.stderr
    assert "done: all" not in ended.stdout
    assert not bench.alive()
    reasons = ("it was changed by somebody else than CCO", "the state was not sealed on this machine")
    assert any(reason in ended.stdout + ended.stderr for reason in reasons)


def test_status_and_report_do_not_call_a_forged_state_done(bench, project, tmp_path):
    (tmp_path / "forge.py").write_text(FORGE)
    bench.write(TWO_CRITERIA, limits={"iterations": 1})
    bench.sessions([{"say": BOAST}])
    not_done(bench)
    subprocess.run(["python3", str(tmp_path / "forge.py"), "pass"], cwd=project, check=True)
    for command in (("status",), ("status", "--session", "demo"), ("status", "--json"), ("report",)):
        shown = bench.run(*command)
        told = shown.stdout + shown.stderr
        assert "changed by somebody else" in told or ("completed" not in told and "✔ Done" not in told), told


@pytest.mark.parametrize("place", ("in the repository", "elsewhere"))
def test_a_kit_that_the_worker_changes_does_not_judge_by_that(bench, project, git, tmp_path, place):
    bench.kit = (project if place == "in the repository" else tmp_path) / "the kit"
    apart = shutil.ignore_patterns(".*", "__pycache__", "tests", "node_modules")
    shutil.copytree(KIT, bench.kit, ignore=apart)
    if place == "in the repository":
        git(project, "add", "-A")
        git(project, "commit", "-q", "-m", "kit")
    lie = "\n\ndef all_met(verdicts):\n    return True\n"
    bench.write(TWO_CRITERIA, limits={"iterations": 2})
    bench.sessions([{"append": {str(bench.kit / "dod.py"): lie}}, EDIT], [{"say": BOAST}])
    said = not_done(bench)
    assert not {"met"} & {*verdicts(bench).values()}
    name = "the kit/dod.py" if place == "in the repository" else str(bench.kit / "dod.py")
    assert f"changed by the worker: {name}, which is protected" in said
    assert name in prompt(bench, 2) and f"`{name}`" in the_report(bench)
    assert (lie in (bench.kit / "dod.py").read_text()) == (place == "elsewhere")


# --------------------------------------------------------------------------------------------------------
# Work that nobody else would get
# --------------------------------------------------------------------------------------------------------

OUT = {"id": "out", "criteria": "out is there", "check": "grep -q fine build/out"}
MADE = {"write": {"build/out": "fine\n"}}
IGNORE = {"write": {".gitignore": "build/\n"}}
SECRET = "planted-4f9d2c77-9b0e"
HIDDEN: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str]] = {  # what it does, mends, and is told
    "an ignored folder": ([IGNORE, MADE], [{"delete": ".gitignore"}], "build (git ignores it)"),
    "git's own list of what to ignore": (
        [{"append": {".git/info/exclude": "out\n"}}, MADE],
        [{"write": {".git/info/exclude": ""}}],
        "build (git ignores it)",
    ),
    "a nested repository": (
        [{"bash": "git init -q build"}, MADE],
        [{"bash": "rm -r build/.git"}],
        "build (a repository of its own: what is inside it is not committed)",
    ),
    "a file that is too large": (
        [{"write": {"build/out": "fine\n" + "x" * 3000}}],
        [MADE],
        "build/out (3005 bytes are more than claude_code.max_file_size allows (2048))",
    ),
    "a file with a known secret": (
        [{"write": {"build/out": f"fine {SECRET}\n"}}],
        [MADE],
        "build/out (it holds a known secret)",
    ),
    "a link to an ignored file": (
        [{"write": {".gitignore": "kept\n", "kept": "fine\n"}}, {"bash": 'mkdir build; ln -s "$PWD/kept" build/out'}],
        [{"delete": "build/out"}, MADE],
        "kept (git ignores it)",
    ),
}


@pytest.mark.parametrize("means", HIDDEN)
def test_work_that_is_not_in_the_commit_is_not_done_until_it_is(bench, means):
    if means == "a link to an ignored file":
        need_walls(bench.project)
    hides, mends, why = HIDDEN[means]
    bench.environment["MY_SERVICE_TOKEN"] = SECRET
    bench.write([OUT], settings={"claude_code": {"max_file_size": "2KB"}})
    bench.sessions([*hides, {"say": BOAST}], [*mends, {"say": "now it is committed"}])
    said = done_after(bench, 2)
    assert "criterion out passes in the work tree, but not in a clean checkout" in said
    told = prompt(bench, 2)
    assert "It passes in the work tree, but not in a clean checkout of commit" in told
    assert why in told
    assert "only in the work tree" in told and "it is not in a clean checkout of the commit" in told
    assert bench.state()["metrics"]["claims_false"] == 1


SHOWN = {  # no file of the commit says "fine"; git's own folder, which no clone gets, does
    "a filter": "git config filter.x.clean 'sed s/fine/bad/'; git config filter.x.smudge 'sed s/bad/fine/';"
    " echo 'out filter=x' > .gitattributes; echo fine > out",
    "a file of its folder": "echo fine > .git/out; echo 'cat \"$(git rev-parse --git-common-dir)/out\"' > show.sh",
}


@pytest.mark.parametrize("means", SHOWN)
def test_what_is_only_in_gits_own_folder_is_no_proof(bench, means):
    check = "if [ -e show.sh ]; then bash show.sh; else cat out; fi | grep -q fine"
    bench.write([{"id": "out", "criteria": "out is fine", "check": check}], limits={"iterations": 1})
    bench.sessions([{"bash": SHOWN[means]}, {"say": BOAST}])
    not_done(bench)


def test_what_another_check_left_behind_is_no_proof(bench):
    maker = {"id": "maker", "criteria": "a is there", "check": "test -e a && echo fine > made"}
    taker = {"id": "taker", "criteria": "made is there", "check": "grep -q fine made"}
    bench.write([maker, taker])
    bench.sessions(WRITES_A, [{"write": {"made": "fine\n"}}])
    done_after(bench, 2)
    told = prompt(bench, 2)
    assert "made (not committed)" in told and "no other check has run before it" in told
    assert "taker (medium): made is there [unmet, only in the work tree" in told


def test_an_absolute_path_into_the_work_tree_is_no_proof(bench, project, walled):
    bench.write([{**OUT, "check": "bash run.sh"}])
    script = f"grep -q fine '{project}/build/out'\n"
    bench.sessions([IGNORE, MADE, {"write": {"run.sh": script}}], [{"write": {"run.sh": "test -e run.sh\n"}}])
    done_after(bench, 2)
    assert "build (git ignores it)" in prompt(bench, 2)


def test_setup_makes_what_is_missing(bench, project, git):
    commit(git, project, {".gitignore": "build/\n"})
    bench.write([{**OUT, "check": f"{OUT['check']} && test -e a"}], setup="mkdir -p build && echo fine > build/out")
    bench.sessions([MADE, *WRITES_A])
    done_after(bench, 1)
    assert "Setup `mkdir -p build && echo fine > build/out`: exit code 0" in the_report(bench)


def test_a_setup_that_fails_proves_nothing_and_is_said(bench, project):
    bench.write([A], setup="echo no compiler here; test -e configure")
    bench.sessions([*WRITES_A], [{"write": {"configure": "1"}}])
    done_after(bench, 2)
    assert "`setup` fails (unmet), so nothing can be checked there" in prompt(bench, 2)
    assert "no compiler here" in prompt(bench, 2)


def test_a_mission_that_is_confirmed_in_the_tree_says_that_nobody_else_may_see_it(bench, project):
    bench.write([OUT], confirm="tree")
    bench.sessions([IGNORE, MADE])
    ended = bench.start()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not holds(project, bench.mission.read_text())
    assert "no clean checkout was made to confirm it" in ended.stdout
    assert "No clean checkout was made: the checks ran in the work tree only" in the_report(bench)
    assert "in the work tree" in the_report(bench).splitlines()[2]
    assert json.loads(bench.run("status", "--json").stdout)["confirmed"]["where"] == "tree"


# --------------------------------------------------------------------------------------------------------
# Checks that prove nothing
# --------------------------------------------------------------------------------------------------------

VACUOUS = {
    "nothing": "true",
    "exit": "exit 0",
    "lint": "lint() { ! grep -rn BAD --include=*.py .; }; lint | tee log",
    "word": "grep -rq unicorn .",
    "absent": "! grep -q BAD README.md",
    "clean": 'test -z "$(git status --porcelain)"',
}


def vacuous(bench: Bench, project: Path, git: Any, **fields: Any) -> None:
    """A mission in the repository whose checks pass before anything is done."""
    bench.mission = project / "missions" / "demo.yaml"
    bench.mission.parent.mkdir()
    criteria = [{"id": id, "criteria": f"{id} of a unicorn", "check": check, **fields} for id, check in VACUOUS.items()]
    bench.write([*criteria, A])
    commit(git, project, {".gitignore": "log\n"})


def test_checks_that_prove_nothing_are_refused_by_line_before_any_session(bench, project, git):
    vacuous(bench, project, git)
    ended = bench.start()
    said = ended.stdout + ended.stderr
    assert (ended.returncode, bench.calls()) == (2, [])
    lines = bench.mission.read_text().splitlines()
    for id, check in VACUOUS.items():
        number = next(n for n, line in enumerate(lines, 1) if json.dumps(check) in line)
        assert f"{bench.mission}:{number}: definition_of_done[{[*VACUOUS].index(id)}].check: the check of {id}" in said
    assert said.count("it passes in an empty folder too") == 5
    assert said.count("nothing but the mission and the kit, so it finds what they say themselves") == 1
    assert said.count("Let it test what the mission is about, so that it fails until that is done.") == 6
    assert said.count("say so: guard: true") == 6


def test_checks_that_prove_nothing_may_be_guards(bench, project, git):
    vacuous(bench, project, git, guard=True)
    bench.sessions(WRITES_A)
    done_after(bench, 1)
    assert the_report(bench).count("a guard: it was green before the first session") == 6


def test_a_check_that_is_green_and_proves_something_is_only_marked(bench):
    bench.write([{"id": "title", "criteria": "It has a title", "check": "grep -q project README.md"}, A])
    bench.sessions(WRITES_A)
    assert "criterion title is met already; its check was never seen to fail" in done_after(bench, 1)
    assert "| `title` | its check was never red, so nobody has seen that it can fail |" in the_report(bench)


# --------------------------------------------------------------------------------------------------------
# Checks that misbehave
# --------------------------------------------------------------------------------------------------------

WALLED = '[ "$HELD" ] || ! grep -q bwrap /proc/1/comm ||'  # what follows happens only where it can do no harm


@pytest.fixture
def temporary(bench, tmp_path) -> Path:
    """Where the kit puts its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    bench.environment["TMPDIR"] = str(folder)
    return folder


def size(*folders: Path) -> int:
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def test_checks_that_hang_or_take_too_much_are_not_met_and_the_mission_goes_on(bench, project, temporary, walled):
    misbehave = {  # check, verdict, what is said of it
        "hangs": ("trap '' TERM; setsid sleep 1000; sleep 1000", "timeout", "it took too long"),
        "fills": ("head -c 10G /dev/zero > big && test -e a", "unmet", ""),
        "floods": ("yes && test -e a", "unmet", "it printed more than 10000000 bytes"),
        "grows": ("python3 -c 'x = b\"x\" * 10**9; import time; time.sleep(60)'", "unmet", "more memory than"),
        "forks": ("for i in $(seq 90); do sleep 100 & done; wait", "unmet", "more processes than"),
    }
    criteria = [{"id": id, "criteria": id, "check": check, "timeout": 5} for id, (check, *_) in misbehave.items()]
    criteria[0]["timeout"] = 0.5
    caps = {"file_size": "20MB", "memory": "200MB", "processes": 30}
    bench.write([*criteria, A], limits={"iterations": 1}, settings={"checks": caps})
    bench.sessions([*WRITES_A[:1], {"say": BOAST}])
    not_done(bench)
    assert verdicts(bench) == {id: verdict for id, (_, verdict, _) in misbehave.items()} | {"a": "met"}
    for id, (_, _, said) in misbehave.items():
        assert said in (project / ".cco" / "logs" / "checks" / f"{id}.log").read_text()[-1000:], id
    assert [*temporary.iterdir()] == []
    assert size(project) < 60_000_000


def test_checks_that_fork_away_kill_around_or_print_rubbish_get_the_verdict_of_their_exit_code(
    bench, project, temporary, walled
):
    misbehave = {
        "daemon": '[ "$HELD" ] || setsid -f sleep 1000',
        "rubbish": "head -c 9999 /dev/urandom; printf '\\377\\376\\000\\033[2J'",
        "parent": f"{WALLED} kill -9 $PPID",
        "everybody": f"{WALLED} kill -9 -1",
        "guesses": f"{WALLED} for pid in $(seq 2 9999); do [ $pid = $$ ] || kill -9 $pid; done 2>/dev/null",
    }
    bench.write([{"id": id, "criteria": id, "check": f"{check}; test -e a"} for id, check in misbehave.items()])
    bench.sessions([{"say": BOAST}], WRITES_A)
    said = done_after(bench, 2)
    assert "0 of 5 criteria met" in said
    assert [*temporary.iterdir()] == []


def test_what_a_check_without_walls_leaves_running_is_ended(bench):
    bench.write(
        [{**A, "check": '[ "$HELD" ] || setsid -f sleep 1000; test -e a'}], settings={"checks": {"sandbox": False}}
    )
    bench.sessions(WRITES_A)
    done_after(bench, 1)
    assert "sleep 1000" in (bench.project / ".cco" / "logs" / "checks" / "a.log").read_text()


@pytest.mark.parametrize("walls", (True, False), ids=("walls", "no walls"))
def test_a_check_that_changes_the_tree_proves_only_what_holds_without_that(bench, protected, git, walls):
    if walls:
        need_walls(protected)
    criteria = [
        {"id": "tracked", "criteria": "tracked", "check": "test -e a && echo cheat >> README.md"},
        {"id": "untracked", "criteria": "untracked", "check": "test -e a && echo cheat >> new"},
        {"id": "both", "criteria": "both", "check": "grep -q cheat README.md new && test -e a"},
        {"id": "sealed", "criteria": "sealed", "check": f"echo cheat >> {DATA} && test -e a"},
    ]
    checks = {"checks": {"sandbox": walls}}
    bench.write(criteria, protect=["acceptance/**"], limits={"iterations": 1}, settings={**checks})
    bench.sessions(WRITES_A)
    not_done(bench)
    sealed = "unmet" if walls else "tampered"
    assert verdicts(bench) == {"tracked": "met", "untracked": "met", "both": "met", "sealed": sealed}
    assert as_sealed(protected)
    assert git(protected, "show", "cco/demo:README.md") == "# a project"

    bench.write(criteria[:3], protect=["acceptance/**"], limits={"iterations": 1}, settings={**checks})
    assert "criterion both passes in the work tree, but not in a clean checkout" in not_done(bench)
    assert verdicts(bench) == {"tracked": "met", "untracked": "met", "both": "unmet"}


def test_a_check_that_alternates_is_marked_and_met_only_after_three_in_a_row(bench, outside):
    script = (
        "n=$(($(cat '{0}' 2>/dev/null || echo 0) + 1)); echo $n > '{0}'; echo run >> '{1}'; [ $((n % {2})) != 0 ]\n"
    )
    by_two, by_three, never = (script.format(outside / str(n), outside / f"runs-{n}", n) for n in (2, 3, 1000))
    bench.write([{"id": "f", "criteria": "it is steady", "check": "bash run.sh"}], settings=writable(outside))
    bench.sessions(*[[{"write": {"run.sh": text}}, {"say": BOAST}] for text in (by_two, by_three, never)])
    said = done_after(bench, 3)
    assert "criterion f: broken -> flaky" in said
    runs = [(outside / f"runs-{n}").read_text().count("run") for n in (2, 3, 1000)]
    assert runs[:2] == [2, 3]
    assert runs[2] - 1 == 3 + 3  # the tree, the clean checkout; the helper above ran it once
    known = bench.state()["criteria"]["f"]
    assert (known["flaky"], known["proof"]["runs"], known["proof"]["where"]) == (True, 3, "checkout")
    assert "Its check gives different results on the same tree" in prompt(bench, 2)
    assert "flaky" in prompt(bench, 3)
    assert "| `f` | its check gave different verdicts on the same tree |" in the_report(bench)


def writable(folder: Path) -> dict[str, Any]:
    return {"checks": {"writable": [str(folder)]}}


# --------------------------------------------------------------------------------------------------------
# Without a check
# --------------------------------------------------------------------------------------------------------

PRETTY = {"id": "pretty", "criteria": "The README explains what this is"}
CLEAR = {"id": "clear", "criteria": "The README says who it is for"}
QUOTE = {"path": "README.md", "text": "It counts unicorns at night."}


def ruling(*ids: str, met: Any = True, quotes: Any = (QUOTE,)) -> str:
    """An answer of the judge."""
    verdicts = [{"id": id, "met": met, "reason": f"of {id}", "quotes": [*quotes]} for id in ids]
    return json.dumps({"files": [], "verdicts": verdicts})


class Judge:
    """Answers in turn as the judge, and as the manager nothing of use."""

    def __init__(self, *answers: str):
        self.answers = [*answers]

    def __call__(self, request: dict[str, Any]) -> str:
        if "You are the judge" not in json.dumps(request["messages"][0]):
            return "{}"
        return self.answers.pop(0)


def judged(bench: Bench, router: OpenRouterAPI, *criteria: dict[str, Any], **fields: Any) -> None:
    bench.environment["OPENROUTER_API_KEY"] = KEY
    bench.write([*criteria], settings={"openrouter": {"base_url": router.url}}, **fields)


WORDS = {"append": {"README.md": QUOTE["text"] + "\n"}}


def test_a_judges_quote_has_to_be_in_the_tree(bench):
    answers = Judge(ruling("pretty"), *[ruling("pretty", quotes=())] * 2, ruling("pretty", met=False), ruling("pretty"))
    steps = [*WRITES_A], [{"write": {"x": "1"}}], [{"write": {"x": "2"}}], [WORDS]
    bench.sessions(*steps)
    with OpenRouterAPI(content=answers) as router:
        judged(bench, router, A, PRETTY)
        done_after(bench, 4)
    assert "its quote is not in that file: README.md: 'It counts unicorns at night.'" in prompt(bench, 2)
    assert "quotes nothing that proves it" in prompt(bench, 3)
    evidence = bench.state()["criteria"]["pretty"]["evidence"]
    assert (evidence["kind"], evidence["quotes"][0]["path"], answers.answers) == ("judged", "README.md", [])
    assert "1 judged by a model" in the_report(bench) and QUOTE["text"] in the_report(bench)


def test_check_says_who_would_judge_what_no_command_checks(bench, project):
    (project / "a").write_text("1")
    subprocess.run("git add -A && git commit -qm a", shell=True, cwd=project, check=True)
    with OpenRouterAPI() as router:
        judged(bench, router, {**A, "guard": True}, PRETTY)
        assert "An LLM would judge pretty first" in bench.run("check", str(bench.mission)).stdout
    assert router.calls == []
    bench.environment["CCO_MANAGER_PROVIDER"] = "rules"
    assert "Only you can judge pretty" in bench.run("check", str(bench.mission)).stdout


def test_a_judges_verdict_falls_with_the_file_that_it_quotes(bench):
    unclear = json.loads(ruling("clear", met=False, quotes=()))["verdicts"]
    first = json.loads(ruling("pretty")) | {"verdicts": json.loads(ruling("pretty"))["verdicts"] + unclear}
    answers = Judge(json.dumps(first), ruling("pretty", "clear", met=False, quotes=()), ruling("pretty", "clear"))
    bench.sessions([*WRITES_A, WORDS], [{"write": {"README.md": "# nothing\n"}}], [WORDS])
    with OpenRouterAPI(content=answers) as router:
        judged(bench, router, A, PRETTY, CLEAR)
        said = done_after(bench, 3)
    assert "criterion pretty has to be judged again: what its verdict rests on has changed" in said
    assert "criterion pretty: met -> unmet (regression: broken in iteration 2" in said


@pytest.mark.parametrize(
    "answer",
    [
        ruling("pretty", met="true"),
        ruling("pretty")[:-9],
        "It is met: README.md says so.",
        json.dumps({"pretty": True, "done": True}),
        ruling("a"),
    ],
    ids=("a string", "cut off", "prose", "other keys", "another criterion"),
)
def test_a_judge_without_a_usable_answer_closes_nothing(bench, project, answer):
    (project / "README.md").write_text(QUOTE["text"])
    (project / "a").write_text("1")
    subprocess.run("git add -A && git commit -qm a", shell=True, cwd=project, check=True)
    with OpenRouterAPI(content=Judge(answer, answer)) as router:
        judged(bench, router, A, PRETTY)
        assert "waiting for the judge to answer" in not_done(bench, 75, "--no-wait")
    assert verdicts(bench) == {"a": "met", "pretty": "unjudged"}
    assert bench.state()["criteria"]["pretty"]["evidence"] is None


def test_a_person_accepts_what_nobody_else_can_judge_and_only_that(bench, project):
    bench.write([A, PRETTY])
    bench.sessions(WRITES_A)
    bench.environment["LOGNAME"] = "a person"
    said = not_done(bench, 3)
    assert said.index("nothing here can judge pretty; you will be asked") < said.index("iteration 1:")
    for id, why in (
        ("a", "has a check, and only its exit code closes it"),
        ("nope", "is no criterion of this mission"),
    ):
        refused = bench.run("accept", id)
        assert (refused.returncode, why in refused.stdout + refused.stderr) == (2, True)
    not_done(bench, 3)
    assert bench.run("accept", "pretty").returncode == 0
    done_after(bench, 1)
    evidence = bench.state()["criteria"]["pretty"]["evidence"]
    assert (evidence["kind"], evidence["by"], evidence["at"][:2]) == ("accepted", "a person", "20")
    assert evidence["commit"] == bench.state()["commit"]
    assert "1 accepted by a person" in the_report(bench) and "| `pretty` | a person | 20" in the_report(bench)


def test_what_a_person_accepted_has_to_be_looked_at_again_after_the_next_commit(bench):
    bench.write([A, PRETTY])
    bench.sessions([{"say": BOAST}], WRITES_A)
    not_done(bench, 75, "--once")
    assert bench.run("accept", "pretty").returncode == 0
    said = not_done(bench, 3)
    assert "criterion pretty has to be judged again" in said
    assert verdicts(bench) == {"a": "met", "pretty": "unjudged"}
    assert bench.run("accept", "pretty").returncode == 0
    done_after(bench, 2)


# --------------------------------------------------------------------------------------------------------
# When the checks run
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ("removes it", "writes it", "would write it after the commit"))
def test_a_process_that_goes_on_after_the_report_is_killed_and_the_commit_counts(bench, project, loop):
    what = {
        "removes it": "rm -f a; touch .git/looping",
        "writes it": "echo 1 > a; touch .git/looping",
        "would write it after the commit": (
            "touch .git/looping; if grep -q '.current_phase.: .validation.' .cco/demo.json; then echo 1 > a; fi"
        ),
    }[loop]
    bench.write([A], limits={"iterations": 1})
    spawn = {"spawn": f'exec setsid bash -c "while :; do {what}; done"'}
    bench.sessions([*WRITES_A[: loop == "removes it"], spawn, {"wait_for": ".git/looping"}, {"say": BOAST}])
    said = done_after(bench, 1) if loop == "writes it" else not_done(bench)
    assert "ended what the worker left behind: bash -c while" in said
    assert (project / "a").exists() == (loop == "writes it")


def test_the_checks_run_again_only_after_a_session_that_changed_something(bench, project, git, outside):
    commit(git, project, {".gitignore": "cache/\n"})
    runs, seen = outside / "runs", outside / "seen"
    bench.write(
        [{**A, "check": f"echo run >> '{runs}'; test -e a"}], limits={"iterations": 3}, settings=writable(outside)
    )
    look = {"bash": f"wc -l < '{runs}' >> '{seen}'"}
    bench.sessions([look, {"say": BOAST}], [look, {"write": {"cache/x": "1"}}], [look, {"say": BOAST}])
    assert not_done(bench).count("nothing changed since the checks ran, so they say the same") == 2
    assert (seen.read_text().split(), runs.read_text().count("run")) == (["1", "1", "2"], 2)


def test_what_runs_last_runs_before_the_first_session_and_then_only_when_all_others_are_met(bench, outside):
    runs, seen = outside / "runs", outside / "seen"
    last = {"id": "last", "criteria": "b is there", "check": f"echo run >> '{runs}'; test -e b", "when": "last"}
    bench.write([last, A], settings=writable(outside))
    look = {"bash": f"wc -l < '{runs}' >> '{seen}'"}
    bench.sessions([look, {"write": {"x": "1"}}], [look, *WRITES_A], [look, {"write": {"b": "1"}}])
    done_after(bench, 3)
    assert seen.read_text().split() == ["1", "1", "2"]


def test_checks_side_by_side_wait_for_each_other_and_one_that_is_exclusive_is_alone(bench, outside):
    here = f"cd '{outside}'"
    meet = "touch {0} busy-{0}; until [ -e x -a -e y -a -e z ]; do sleep 0.01; done; sleep {1}; rm busy-{0}"
    alone = (
        "! ls | grep busy && touch busy-w && sleep 0.3 && ! ls | grep 'busy-[xyz]'; code=$?; rm -f busy-w; exit $code"
    )
    criteria = [
        {
            "id": id,
            "criteria": id,
            "check": f"({here}; {meet.format(id, late)}) && test -e a",
            "timeout": 5,
        }
        for id, late in (("z", 0.3), ("y", 0.2), ("x", 0))
    ]
    criteria.insert(1, {"id": "w", "criteria": "w", "check": f"test -e a && {here} && {alone}", "exclusive": True})
    criteria = [criteria[0], criteria[2], criteria[3], criteria[1]]
    bench.write(criteria, settings={"checks": {"writable": [str(outside)], "jobs": 3}})
    bench.sessions(WRITES_A)
    said = done_after(bench, 1)
    assert "timeout" not in said
    order = [line.split("criterion ")[1].split(":")[0] for line in said.splitlines() if "unmet -> met" in line]
    assert order == ["z", "y", "x", "w"] == [*verdicts(bench)]


def test_after_a_streak_of_regressions_the_tree_goes_back_to_the_best_commit(bench, project, git):
    bench.write([A, B, C], limits={"iterations": 4})
    bench.sessions(
        [{"write": {"a": "1", "b": "1"}}],
        [{"delete": "a"}, {"delete": "b"}, {"write": {"x": "1"}}],
        [{"write": {"y": "1"}}],
        [{"write": {"z": "1"}}],
    )
    said = not_done(bench)
    assert "Go back to iteration 1: 2 criteria were met; the later commits stay in the history" in said
    subjects = git(project, "log", "--format=%s", "main..cco/demo").splitlines()
    assert len(subjects) == 5 and subjects[0] == "Go back to iteration 1: 2 criteria were met"
    best = git(project, "rev-parse", "cco/demo~4")
    assert git(project, "diff", "--stat", best, "cco/demo") == ""
    assert git(project, "ls-tree", "--name-only", "cco/demo~1").split() == ["README.md", "x", "y", "z"]
    assert git(project, "ls-tree", "--name-only", "refs/cco/demo/best").split() == ["README.md", "a", "b"]
    assert bench.state()["best"]["commit"] == git(project, "rev-parse", "refs/cco/demo/best")
    assert verdicts(bench) == {"a": "met", "b": "met", "c": "unmet"}
    bench.write([A, B, C])
    bench.sessions([{"write": {"c": "1"}}])
    done_after(bench, 5)


# --------------------------------------------------------------------------------------------------------
# What is said
# --------------------------------------------------------------------------------------------------------


def test_a_lie_is_counted_and_told_and_an_honest_report_is_not_accused(bench):
    honest = "I wrote a. The criterion b is still open: its check fails, because I could not write it."
    bench.sessions([{"say": BOAST}], [*WRITES_A[:1], {"say": honest}], [{"write": {"b": "1"}}, {"say": BOAST}])
    said = done_after(bench, 3)
    assert said.count("the checks say otherwise") == 1
    assert 'the worker reported "All criteria are met."; the checks say otherwise: a, b' in said
    assert 'the worker reported \\"All criteria are met.\\"' in bench.log()
    assert [entry["claims"] for entry in bench.state()["history"]][:2] == [[1, 1], [0, 0]]
    claims = json.loads(bench.run("status", "--json").stdout)["claims"]
    assert claims["false"] == 1 and claims["made"] >= 2
    assert "1 times it was not" in bench.run("status", "--session", "demo").stdout
    assert f"Claimed {claims['made']}, true {claims['made'] - 1}, false 1." in the_report(bench)
    accused = ["The last report said what is not so" in call["prompt"] for call in bench.calls()]
    assert accused == [False, True, False]


def test_a_check_sees_no_keys_no_dotenv_no_state_and_no_login(bench, project, git, tmp_path, outside, walled):
    planted = {name: f"planted-{name}-7c90d1" for name in ("router", "mine", "dotenv", "login", "state")}
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text(planted["login"])
    names = {"OPENROUTER_API_KEY": planted["router"], "ANTHROPIC_API_KEY": planted["mine"]}
    bench.environment |= {"HOME": str(home), "GIT_CONFIG_GLOBAL": "/dev/null", **names}
    commit(git, project, {".gitignore": ".env\n"})
    (project / ".env").write_text(f"DB={planted['dotenv']}\n")
    probe = f"""
(env; cat /proc/*/environ | tr '\\0' '\\n'; cat .env; ls -A .cco; cat .cco/*.json; ls -A ~/.ssh; cat ~/.ssh/*
git cat-file -p HEAD; cat '{project}/.env' '{project}'/.cco/*.json) >> '{outside}/seen' 2>&1
echo probed >> '{outside}/seen'
test -e a
"""
    settings = {"manager": {"provider": "rules"}, **writable(outside)}
    bench.write([{**A, "check": "bash probe.sh"}], description=planted["state"], settings=settings)
    bench.sessions([{"write": {"probe.sh": probe}}], WRITES_A)
    assert bench.start().returncode == 0
    seen = (outside / "seen").read_text()
    assert seen.count("probed") >= 3  # twice in the tree, and in the clean checkout
    assert "API_KEY" not in seen
    assert [name for name, secret in planted.items() if secret in seen] == []
    assert "demo.json" not in seen and "id_ed25519" not in seen
    assert not bench.alive()


def test_a_repository_with_a_lock_file_and_no_setup_is_told_at_once(bench, project, git):
    commit(git, project, {"web/package-lock.json": "{}"})
    bench.write([A], limits={"iterations": 1})
    bench.sessions([{"say": BOAST}])
    missing = "web/package-lock.json is here, but the mission has no `setup`"
    for said in (bench.run("check", str(bench.mission)).stdout, not_done(bench).partition("iteration 1:")[0]):
        assert missing in said and "`setup: cd -- web && npm ci`" in said
    bench.write([A], limits={"iterations": 1}, setup="true")
    assert missing not in bench.run("check", str(bench.mission)).stdout


# --------------------------------------------------------------------------------------------------------
# People
# --------------------------------------------------------------------------------------------------------


def test_after_an_acceptance_uncommitted_edits_of_a_person_are_refused_as_ever(bench, project):
    bench.write([A, {"id": "pretty", "criteria": "it is pretty"}])
    bench.sessions(WRITES_A)
    assert bench.start().returncode == 3
    assert bench.run("accept", "pretty").returncode == 0
    (project / "README.md").write_text("half an edit")
    refused = bench.start()
    assert refused.returncode == 2 and "has uncommitted changes" in refused.stdout + refused.stderr
    assert (project / "README.md").read_text() == "half an edit"


def test_a_person_who_went_to_another_branch_while_it_waited_is_told_and_nothing_is_touched(bench, project, git):
    bench.write([A])
    bench.sessions([{"limit": {"resetsAt": int(time.time()) - 900, "rateLimitType": "five_hour"}}], WRITES_A)
    assert bench.start("--no-wait").returncode == 75
    bench.remember({**bench.state(), "wait_until": 1, "current_phase": "execution"})
    git(project, "checkout", "-q", "main")
    (project / "mine").write_text("not for the mission")
    refused = bench.start()
    assert refused.returncode == 2, refused.stdout
    assert git(project, "status", "--porcelain") == "?? mine" and len(bench.calls()) == 1


@pytest.mark.parametrize("instead", ["mkfifo", "ln -s ../../../README.md", "mkdir"])
def test_whatever_a_worker_puts_in_the_place_of_an_output_does_no_harm(bench, project, instead):
    bench.write([A])
    bench.sessions([{"bash": f"rm .cco/logs/checks/a.log; {instead} .cco/logs/checks/a.log"}, *WRITES_A])
    before = (project / "README.md").read_text()
    assert bench.start().returncode == 0
    assert (project / "README.md").read_text() == before


def test_a_deep_folder_in_the_work_tree_is_no_obstacle(bench, project):
    deep = 'python3 -c \'import os\nfor _ in range(1100): os.mkdir("d"); os.chdir("d")\''
    bench.write([A, {"id": "deep", "criteria": "deep", "check": f"test -e a && cd /tmp && {deep}"}])
    bench.sessions([{"bash": f"mkdir -p deep && cd deep && {deep}"}, *WRITES_A])
    try:
        assert bench.start().returncode == 0
    finally:
        subprocess.run(["rm", "-rf", str(project / "deep")], check=True)  # deeper than pytest can remove
