"""A Definition of Done that cannot be fooled: whatever worker, manager, judge and checks do, done means proven."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, need, until
from tools.openrouter_api import OpenRouterAPI

import sandbox

BOAST = "All criteria are met. All tests pass. Mission completed successfully.\n\nMet: a, b"
KEY = "sk-or-planted-5a7c90d1"
A, B = TWO_CRITERIA
C = {"id": "c", "criteria": "c is there", "check": "test -e c"}
EDIT = {"say": "I changed it, so it is done."}


def holds(project: Path, mission: str) -> bool:
    """Whether a clone of the branch into an empty folder meets every check of the mission's text."""
    wanted = json.loads(mission)
    commands = [wanted.get("setup"), *(criterion.get("check") for criterion in wanted["definition_of_done"])]
    with tempfile.TemporaryDirectory() as folder:
        clone = ["git", "clone", "-q", "--branch", "cco/demo", str(project), "clone"]
        subprocess.run(clone, cwd=folder, check=True)
        given = {"cwd": Path(folder, "clone"), "capture_output": True}
        ended = [subprocess.run(["bash", "-c", command], **given) for command in filter(None, commands)]
        return [done.returncode for done in ended] == [0] * len(ended)


def done_after(bench: Bench, iterations: int, *args: str) -> str:
    """Start it; it is done in this iteration and not before, and a clone proves it. Return what was printed."""
    ended = bench.start(*args)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    state = bench.state()
    assert (state["current_phase"], state["iterations"]) == ("completed", iterations), ended.stdout
    assert holds(bench.project, state["mission_text"])
    assert not bench.alive()
    return ended.stdout + ended.stderr


def not_done(bench: Bench, code: int = 5, *args: str) -> str:
    """Start it; it ends with this exit code and is not done. Return what was printed."""
    ended = bench.start(*args)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert code != 0 and bench.state()["current_phase"] != "completed"
    assert not bench.alive()
    return ended.stdout + ended.stderr


def verdicts(bench: Bench) -> dict[str, str]:
    return {id: known["verdict"] for id, known in bench.state()["criteria"].items()}


def prompt(bench: Bench, number: int) -> str:
    """What the worker read in a session, counted from 1."""
    return str(bench.calls()[number - 1]["prompt"])


def report(bench: Bench) -> str:
    return (bench.project / ".cco" / "reports" / "demo.md").read_text()


def commit(git: Any, project: Path, files: dict[str, str]) -> None:
    """Put files into the project as the user does."""
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "by the user")


def need_sandbox(project: Path) -> None:
    need(not sandbox.obstacle(project), sandbox.obstacle(project))


@pytest.fixture
def outside(bench, tmp_path) -> Path:
    """A folder outside of the repository that checks may write."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


# --- Claims ---


@pytest.mark.parametrize("history", ("one commit", "no commit at all"))
def test_a_worker_that_only_boasts_is_never_done(bench, git, tmp_path, history):
    if history == "no commit at all":
        bench.project = tmp_path / "empty"
        bench.project.mkdir()
        git(bench.project, "init", "-q", "-b", "main")
    bench.write(TWO_CRITERIA, limits={"iterations": 2})
    bench.sessions(*[[{"say": BOAST}]] * 2)
    not_done(bench)
    assert verdicts(bench) == {"a": "unmet", "b": "unmet"}
    assert bench.state()["totals"]["claims_false"] == 4
    assert "✘ Not done: 0 of 2 criteria are met" in report(bench)


def test_false_claims_are_counted_and_fed_back_and_an_honest_report_is_not_accused(bench):
    honest = "I wrote a. The criterion b is still open: I could not write it.\n\nMet: a"
    bench.sessions([{"say": BOAST}], [*WRITES_A[:1], {"say": honest}], [{"write": {"b": "1"}}, {"say": BOAST}])
    said = done_after(bench, 3)
    for id in "ab":
        assert said.count(f"the worker reported {id} as met; its check says otherwise") == 1
    history = bench.state()["history"]
    assert [(entry["claimed"], entry["false_claims"]) for entry in history if entry["focus"]] == [
        (["a", "b"], ["a", "b"]), (["a"], []), (["a", "b"], []),
    ]  # fmt: skip
    totals = bench.state()["totals"]
    assert (totals["claims_made"], totals["claims_false"]) == (5, 2)
    assert "the worker reported 5 criteria as met, and 2 of them were not" in report(bench)
    accused = ["You reported these as met, and their checks say otherwise: a, b" in prompt(bench, n) for n in (1, 2, 3)]
    assert accused == [False, True, False]


def test_a_regression_is_attributed_to_who_caused_it_everywhere(bench, project, git):
    bench.sessions(WRITES_A, [{"delete": "a"}, {"write": {"b": "1"}}, {"say": BOAST}], WRITES_A)
    said = done_after(bench, 3)
    sha = git(project, "log", "--format=%H", "cco/demo~1", "-1")
    who = f"broken in iteration 2, commit {sha[:12]}, while working on b"
    assert "criterion a: met -> unmet (regression)" in said
    (shown,) = json.loads(bench.run("status", "--json").stdout)["criteria"][0]["regressions"]
    assert (shown["iteration"], shown["focus"]) == (2, "b") and sha.startswith(shown["commit"])
    assert who in prompt(bench, 3) and who not in prompt(bench, 2)


# --- Protected files, the mission, the settings, the state and the kit ---

FORGE = "sed -i 's/unmet/met/g; s/execution/completed/g' .cco/demo.json"
CHECK, DATA = "acceptance/check.sh", "acceptance/data.txt"
ACCEPTED = {CHECK: "#!/bin/bash\ncat diary\ntest -e a\n", DATA: "expected\n"}
TAMPERINGS: list[tuple[str, dict[str, str]]] = [  # a command of the worker, and what has to be named
    (f"sed -i s/test.*/true/ {CHECK}; echo x >> {DATA}", {CHECK: "changed", DATA: "changed"}),
    ("ln -s acceptance door; echo exit 0 > door/check.sh", {CHECK: "changed"}),
    (
        f"echo exit 0 > {CHECK}; git -c user.name=x -c user.email=x commit -qam x; git update-index --skip-worktree"
        f" {CHECK}",
        {CHECK: "changed"},
    ),
    ("mv acceptance mine; ln -s mine acceptance", {CHECK: "deleted", DATA: "deleted"}),
    (f"echo exit 0 > acceptance/conftest.py; chmod -x {CHECK}", {CHECK: "changed", "acceptance/conftest.py": "new"}),
    ("rm -r acceptance", {CHECK: "deleted", DATA: "deleted"}),
]


@pytest.fixture
def protected(bench, project, git) -> Path:
    """A protected folder with a check, data, and a file that git ignores."""
    (project / "acceptance").mkdir()
    (project / CHECK).touch(mode=0o755)
    commit(git, project, {".gitignore": "local.txt\n", "acceptance/local.txt": "ignored\n", **ACCEPTED})
    bench.write([{"id": "a", "criteria": "a is there", "check": f"./{CHECK}"}], protect=["acceptance/**"])
    return project


def as_accepted(project: Path) -> bool:
    names = {path.name for path in (project / "acceptance").iterdir()} - {"local.txt"}
    same = {name: (project / name).read_text() for name in ACCEPTED}
    return (names, same) == ({"check.sh", "data.txt"}, ACCEPTED) and os.access(project / CHECK, os.X_OK)


def test_what_the_worker_does_to_protected_files_is_restored_kept_and_named_everywhere(bench, protected, git):
    tools = [{"bash": command} for command, _ in TAMPERINGS]
    bench.sessions(*([tool, {"append": {"diary": "x\n"}}, EDIT] for tool in tools), WRITES_A)
    said = done_after(bench, len(TAMPERINGS) + 1)
    assert as_accepted(protected)
    assert "acceptance/local.txt is not tracked by git, so it is not protected: commit it" in said
    shown = json.loads(bench.run("status", "--json").stdout)["tampering"]
    rows = report(bench).partition("## Protected files that were changed")[2].splitlines()
    for iteration, (command, expected) in enumerate(TAMPERINGS, 1):
        found = {entry["path"]: entry for entry in bench.state()["tampering"] if entry["iteration"] == iteration}
        assert {path: entry["what"] for path, entry in found.items()} == expected, command
        for path, what in expected.items():
            line = f"protected file {what} by the worker: {path}; it counts as it was before"
            assert line in said and line in bench.log()
            assert f"- {path}\n" in prompt(bench, iteration + 1), command
            assert any((entry["path"], entry["what"]) == (path, what) for entry in shown)
            row = next(row for row in rows if row.startswith(f"| {iteration} ") and path in row)
            assert [cell.strip(" `") for cell in row.split("|")[2:4]] == [path, what]
        kept = protected / ".cco" / "kept" / f"{iteration:04d}"
        files = [path for path in kept.rglob("*") if not path.is_dir()]
        assert files or {*expected.values()} == {"deleted"}, command
    assert git(protected, "diff", "--name-only", "main", "cco/demo", "--", "acceptance") == ""


@pytest.mark.parametrize("is_clean", [False, True], ids=["killed", "ended before it compared"])
def test_what_a_session_did_before_the_kit_was_killed_is_restored_and_what_it_forged_is_not_believed(
    bench, protected, is_clean
):
    cheat = (
        f"echo exit 0 > {CHECK}; echo > acceptance/new; {'true' if is_clean else FORGE}; touch '{bench.folder}/cheated'"
    )
    bench.sessions([{"bash": cheat}, {"hang": True}], [{"say": BOAST}], WRITES_A)
    running = bench.begin()
    until((bench.folder / "cheated").exists, "the session has cheated")
    running.kill()
    running.wait()
    bench.run("check", str(bench.mission))  # settles nothing
    if is_clean:
        (protected / ".cco" / "lock").write_text("")
    ended = bench.start()
    said = ended.stdout + ended.stderr
    assert f"protected file changed since the last session began: {CHECK}" in said
    assert is_clean or said.index(CHECK) < said.index("met -> unmet")
    assert (bench.state()["current_phase"], len(bench.calls()), as_accepted(protected)) == ("completed", 3, True)


@pytest.mark.parametrize("sandboxed", (True, False), ids=("sandbox", "no sandbox"))
def test_a_script_that_a_check_runs_cannot_change_what_is_protected(bench, protected, sandboxed):
    if sandboxed:
        need_sandbox(protected)
    script = [{"write": {"run.sh": f"echo exit 0 > {CHECK}; mv acceptance old; exit 0\n"}}, EDIT]
    criteria = [{"id": "b", "criteria": "run.sh works", "check": "bash run.sh"}, {**A, "check": f"./{CHECK}"}]
    bench.write(criteria, protect=["acceptance/**"], settings={"checks": {"sandbox": sandboxed}})
    bench.sessions(script, [{"write": {"run.sh": "exit 0\n"}}, *WRITES_A])
    said = done_after(bench, 2)
    assert as_accepted(protected)
    if sandboxed:
        assert bench.state()["tampering"] == []
    else:
        assert f"by a check: {CHECK}; it counts as it was before" in said
        assert "criterion b: broken -> tampered" in said
        assert CHECK in prompt(bench, 2) and CHECK in report(bench)


@pytest.mark.parametrize("target", ("mission", "mission in the repository", "settings", ".env", "state"))
def test_what_the_worker_does_to_mission_settings_keys_and_state_changes_nothing(bench, project, git, target):
    if target == "mission in the repository":
        bench.mission, target = project / "demo.yaml", "mission"
    bench.write(TWO_CRITERIA, limits={"iterations": 2})
    easy = bench.mission.read_text().replace("test -e", "true || test -e")
    steps: dict[str, tuple[dict[str, Any], str]] = {
        "mission": ({"write": {str(bench.mission): easy}}, "demo.yaml"),
        "settings": ({"write": {".cco/config.yaml": "checks: {sandbox: off}\n"}}, ".cco/config.yaml"),
        ".env": ({"bash": "echo OPENROUTER_API_KEY=sk-or-attacker-0123456789 > .env"}, ".env"),
        "state": ({"bash": FORGE}, ".cco/demo.json"),
    }
    step, name = steps[target]
    bench.sessions([step, EDIT], [{"say": BOAST}])
    said = not_done(bench)
    assert verdicts(bench) == {"a": "unmet", "b": "unmet"}
    (found,) = bench.state()["tampering"]
    assert found["iteration"] == 1 and name in found["path"]
    assert found["path"] in said and found["path"] in prompt(bench, 2) and name in report(bench)
    if target == "state":
        return
    assert git(project, "ls-tree", "-r", "--name-only", "cco/demo") == "README.md"
    asked = bench.start()
    assert asked.returncode == 3 and "changed while a worker ran. Look at it, then:" in asked.stdout
    assert "and is adopted" in bench.start("--accept").stdout


def test_a_kit_that_the_worker_changes_is_restored_and_does_not_judge_by_that(bench, project, git):
    bench.kit = project / "the kit"
    shutil.copytree(KIT, bench.kit, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    commit(git, project, {})
    lie = "\n\ndef all_met(verdicts):\n    return True\n"
    bench.write(TWO_CRITERIA, limits={"iterations": 2})
    planted = {"write": {str(bench.kit / "json.py"): "raise SystemExit(0)\n"}}
    bench.sessions([{"append": {str(bench.kit / "dod.py"): lie}}, planted, EDIT], [{"say": BOAST}])
    said = not_done(bench)
    assert not {"met"} & {*verdicts(bench).values()}
    assert "protected file changed by the worker: the kit/dod.py" in said
    assert "protected file new by the worker: the kit/json.py" in said
    assert "the kit/dod.py" in prompt(bench, 2)
    assert (bench.kit / "dod.py").read_bytes() == (KIT / "dod.py").read_bytes()
    assert not (bench.kit / "json.py").exists()


# --- The clean checkout ---

OUT = {"id": "out", "criteria": "out is there", "check": "grep -q fine build/out"}
MADE = {"write": {"build/out": "fine\n"}}
IGNORES, LARGE = {"write": {".gitignore": "build/\n"}}, {"write": {"build/out": "fine\n" + "x" * 3000}}
HIDDEN: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {  # what it does, how it is fixed, the reason
    "ignored": ([IGNORES, MADE], {"delete": ".gitignore"}, "build (git ignores it)"),
    "large": ([LARGE], MADE, "build/out (3005 bytes are more than claude_code.max_file_size allows (2048))"),
}


@pytest.mark.parametrize("means", HIDDEN)
def test_work_that_is_not_in_the_commit_is_not_done_until_it_is(bench, means):
    hides, fixes, why = HIDDEN[means]
    bench.write([OUT], settings={"claude_code": {"max_file_size": "2KB"}})
    bench.sessions([*hides, {"say": "Met: out"}], [fixes, {"say": "now it is committed"}])
    assert "criterion out passes in the work tree, but not in a clean checkout" in done_after(bench, 2)
    text = prompt(bench, 2)
    assert "It passes in the work tree, but not in a clean checkout of commit" in text
    assert why in text and "[unmet, fails in a clean checkout" in text
    assert bench.state()["totals"]["claims_false"] == 1


def test_setup_makes_what_is_missing_and_one_that_fails_proves_nothing_and_is_named(bench, project, git):
    commit(git, project, {".gitignore": "build/\n"})
    setup = "echo no compiler here; test -e configure; mkdir -p build && echo fine > build/out"
    bench.write([{**OUT, "check": f"{OUT['check']} && test -e a"}], setup=setup)
    bench.sessions([MADE, *WRITES_A], [{"write": {"configure": "1"}}])
    assert f"running setup in the clean checkout: {setup}" in done_after(bench, 2)
    assert "`setup` fails (unmet), so nothing can be checked there" in prompt(bench, 2)
    assert "no compiler here" in prompt(bench, 2)
    assert ": exit code 0" in next(line for line in report(bench).splitlines() if "was confirmed" in line)


def test_a_mission_that_is_confirmed_in_the_tree_says_that_nobody_else_may_see_it(bench, project):
    bench.write([OUT], confirm="tree")
    bench.sessions([IGNORES, MADE])
    ended = bench.start()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not holds(project, bench.mission.read_text())
    assert "no clean checkout was made to confirm it" in ended.stderr + ended.stdout
    assert "the checks ran in the work tree only, where files count that are in no commit" in report(bench)
    assert bench.state()["confirmed"]["where"] == "tree"


# --- Checks that prove nothing ---

VACUOUS = {
    "nothing": "true",
    "lint": "lint() { ! grep -rn BAD --include=*.py .; }; lint | tee /dev/null",
    "word": "grep -rq unicorn .",
    "clean": 'test -z "$(git status --porcelain)"',
}


def test_checks_that_prove_nothing_are_refused_by_line_before_any_session_unless_they_are_guards(bench, project, git):
    bench.mission = project / "missions" / "demo.yaml"
    bench.mission.parent.mkdir()
    criteria = [{"id": id, "criteria": f"{id} of a unicorn", "check": check} for id, check in VACUOUS.items()]
    bench.write([*criteria, A])
    commit(git, project, {})
    lines = bench.mission.read_text().splitlines()
    for command in ("check", "start"):
        ended = bench.run(command, str(bench.mission))
        said = ended.stdout + ended.stderr
        assert (ended.returncode, bench.calls()) == (2, [])
        for number, (id, check) in enumerate(VACUOUS.items()):
            line = next(n for n, line in enumerate(lines, 1) if json.dumps(check) in line)
            assert f"{bench.mission}:{line}: definition_of_done[{number}].check: the check of {id}" in said
        assert said.count("it passes in an empty folder too") == 3
        assert said.count("nothing but the mission and the kit, so it finds what they say themselves") == 1
        assert said.count("If it guards what must stay as it is, say so: guard: true") == 4
    bench.write([*({**criterion, "guard": True} for criterion in criteria), A])
    commit(git, project, {})
    bench.sessions(WRITES_A)
    done_after(bench, 1)


def test_a_check_that_passes_at_first_and_proves_something_is_only_marked(bench):
    bench.write([{"id": "title", "criteria": "It has a title", "check": "grep -q project README.md"}, A])
    bench.sessions(WRITES_A)
    assert "criterion title is met already; its check was never seen to fail" in done_after(bench, 1)
    assert "its check was never seen to fail: it shows that nothing broke" in report(bench)


def test_a_check_counts_only_as_ci_runs_it_and_as_it_is_typed_unless_it_says_otherwise(bench):
    """As typed, `tests | tee log` hides what failed; strict, `! cat big | grep` passes because cat was cut off."""
    tests = "test -e tests.sh && sh tests.sh | tee /dev/null"
    criteria = [
        {"id": "tests", "criteria": "the tests pass", "check": tests},
        {"id": "clean", "criteria": "no BAD is in big", "check": "test -s big; ! cat big | grep -q BAD"},
        {"id": "typed", "criteria": "the same as typed", "check": tests, "strict": False},
    ]
    bench.write(criteria)
    fails = {"tests.sh": "echo 1 failed; exit 1\n", "big": "BAD\n" + "x\n" * 100_000}
    bench.sessions([{"write": fails}, {"say": BOAST}], [{"write": {"tests.sh": "exit 0\n", "big": "x\n"}}])
    done_after(bench, 2)
    assert bench.state()["history"][1]["changed"] == {"typed": "met"}
    assert "[bash -e stopped at line 1" in prompt(bench, 2) and "met takes both" in prompt(bench, 2)


# --- Checks that misbehave, and when they run ---


def test_a_process_that_goes_on_after_the_session_is_ended_and_cannot_change_what_is_checked(bench, project):
    bench.write([A], limits={"iterations": 1})
    what = "touch .git/looping; if grep -q '.current_phase.: .validation.' .cco/demo.json; then echo 1 > a; fi"
    spawn = {"spawn": f'exec setsid bash -c "while :; do {what}; done"'}
    bench.sessions([spawn, {"wait_for": ".git/looping"}, {"say": BOAST}])
    assert "looping" in not_done(bench)
    assert not (project / "a").exists()


def test_a_check_that_runs_last_runs_at_first_and_then_only_when_all_others_are_met_after_what_may_change_it(
    bench, outside
):
    runs, seen = outside / "runs", outside / "seen"
    last = {"id": "last", "criteria": "b is there", "check": f"echo last >> '{runs}'; test -e b", "when": "last"}
    bench.write(
        [last, {**A, "check": f"echo a >> '{runs}'; {A['check']}"}], settings={"checks": {"writable": [str(outside)]}}
    )
    look = {"bash": f"sort '{runs}' | uniq -c | xargs >> '{seen}'"}
    bench.sessions([look], [look, *WRITES_A], [look, {"write": {"b": "1"}}])
    done_after(bench, 3)
    assert seen.read_text().splitlines()[:2] == ["1 a 1 last", "2 a 1 last"]
    assert seen.read_text().splitlines()[2].endswith("2 last")


def test_a_check_sees_no_keys_no_dotenv_no_state_and_no_login(bench, project, git, tmp_path, outside):
    need_sandbox(project)
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
cat '{project}/.env' '{project}'/.cco/*.json; echo probed) >> '{outside}/seen' 2>&1
test -e a
"""
    settings = {"manager": {"provider": "rules"}, "checks": {"writable": [str(outside)]}}
    bench.write([{**A, "check": "bash probe.sh"}], description=planted["state"], settings=settings)
    bench.sessions([{"write": {"probe.sh": probe}}], WRITES_A)
    assert bench.start().returncode == 0
    seen = (outside / "seen").read_text()
    assert seen.count("probed") >= 3  # in the tree, and in the clean checkout
    assert [name for name, secret in planted.items() if secret in seen] == []
    assert not any(word in seen for word in ("API_KEY", "demo.json", "id_ed25519"))


def test_after_a_streak_of_regressions_the_files_of_the_best_commit_are_restored(bench, project, git):
    bench.write([A, B, C], limits={"iterations": 4})
    breaks = [{"delete": "a"}, {"delete": "b"}, {"write": {"x": "1"}}]
    bench.sessions([{"write": {"a": "1", "b": "1"}}], breaks, [{"write": {"y": "1"}}], [{"write": {"z": "1"}}])
    title = "Return to iteration 1: 2 criteria were met"
    assert f"{title}; the later commits stay in the history" in not_done(bench)
    subjects = git(project, "log", "--format=%s", "main..cco/demo").splitlines()
    assert len(subjects) == 5 and subjects[0] == title
    assert git(project, "diff", "--stat", git(project, "rev-parse", "cco/demo~4"), "cco/demo") == ""
    assert git(project, "ls-tree", "--name-only", "cco/demo~1").split() == ["README.md", "x", "y", "z"]
    assert bench.state()["best"]["commit"] == git(project, "rev-parse", "refs/cco/demo/best")
    assert verdicts(bench) == {"a": "met", "b": "met", "c": "unmet"}
    bench.write([A, B, C])
    bench.sessions([{"write": {"c": "1"}}])
    done_after(bench, 5)


# --- Criteria without a check ---

PRETTY = {"id": "pretty", "criteria": "The README explains what this is"}
CLEAR = {"id": "clear", "criteria": "The README says who it is for"}
QUOTE = {"path": "README.md", "text": "It counts unicorns at night."}
WORDS = {"append": {"README.md": QUOTE["text"] + "\n"}}


def judged(**met: bool | None) -> str:
    """An answer of the judge. met: of each criterion; None: met, and without a quote."""
    found = [
        {"id": id, "met": value is not False, "reason": f"of {id}", "quotes": [QUOTE] if value else []}
        for id, value in met.items()
    ]
    return json.dumps({"files": [], "verdicts": found})


class Judge:
    """Answers in turn as the judge, and as the manager nothing of use."""

    def __init__(self, *answers: str):
        self.answers = [*answers]

    def __call__(self, request: dict[str, Any]) -> str:
        return self.answers.pop(0) if "You are the judge" in json.dumps(request["messages"][0]) else "{}"


def with_judge(bench: Bench, router: OpenRouterAPI, *criteria: dict[str, Any], **fields: Any) -> None:
    bench.environment["OPENROUTER_API_KEY"] = KEY
    bench.write([*criteria], settings={"openrouter": {"base_url": router.url}}, **fields)


def test_a_judges_quote_has_to_be_in_the_commit_and_the_verdict_falls_with_the_file_that_it_quotes(bench):
    unquoted, half = [judged(pretty=None, clear=False)] * 2, judged(pretty=True, clear=False)
    answers = Judge(half, *unquoted, half, judged(pretty=False, clear=False), judged(pretty=True, clear=True))
    bench.sessions([*WRITES_A], [{"write": {"x": "1"}}], [WORDS], [{"write": {"README.md": "# nothing\n"}}], [WORDS])
    with OpenRouterAPI(content=answers) as router:
        with_judge(bench, router, A, PRETTY, CLEAR)
        ended = bench.start()
    assert (ended.returncode, bench.state()["iterations"], answers.answers) == (0, 5, []), ended.stdout + ended.stderr
    assert "quote is too short or not in that file: README.md: 'It counts unicorns at night.'" in prompt(bench, 2)
    assert "quotes nothing that proves it" in prompt(bench, 3)
    assert "criterion pretty: met -> unmet (regression)" in ended.stdout
    proof = bench.state()["criteria"]["pretty"]["proof"]
    assert (proof["where"], proof["quotes"][0]["path"]) == ("judge", "README.md")
    assert QUOTE["text"] in report(bench)


def test_the_user_accepts_what_nobody_else_can_judge_and_only_that(bench, project):
    accept = " ".join(f"'{word}'" for word in bench.command("accept", "pretty"))
    bench.write([A, PRETTY], settings={"manager": {"provider": "rules"}})
    bench.sessions([{"bash": f"{accept}; echo $? > '{bench.folder}/refused'"}, *WRITES_A])
    bench.environment["LOGNAME"] = "the user"
    assert "nothing here can judge pretty; you will be asked" in bench.run("check", str(bench.mission)).stdout
    said = not_done(bench, 3)
    assert said.index("nothing here can judge pretty; you will be asked") < said.index("iteration 1:")
    assert (bench.folder / "refused").read_text() == "2\n"
    for id in ("a", "nope"):
        refused = bench.run("accept", id)
        assert refused.returncode == 2 and f"{id} is no criterion without a check" in refused.stdout + refused.stderr
    not_done(bench, 3)
    assert bench.run("accept", "pretty").returncode == 0
    (project / "README.md").write_text("half an edit")
    refused = bench.start()
    assert refused.returncode == 2 and "has uncommitted changes" in refused.stdout + refused.stderr
    (project / "README.md").write_text("# a project\n")
    assert bench.start().returncode == 0
    proof = bench.state()["criteria"]["pretty"]["proof"]
    assert (proof["where"], proof["by"], proof["commit"]) == ("user", "the user", bench.state()["commit"])
    assert "(the user)" in report(bench)
