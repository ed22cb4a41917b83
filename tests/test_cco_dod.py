"""Checks: how a command is read, what its result proves, what it may touch, and what is left of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import KIT, marked, need, until

import dod
import log
import mission
import proc
import repo
import sandbox
from mission import Mission
from state import CriterionState, Verdict

SECRET = "correct-horse-battery-staple-7"


def mission_of(root: Path, *criteria: str | dict[str, Any], **fields: Any) -> Mission:
    """A mission with these criteria: c1, c2, ...; a text is a check."""
    given = [{"check": c} if isinstance(c, str) else c for c in criteria]
    entries = [{"id": f"c{n}", "criteria": f"number {n}", **entry} for n, entry in enumerate(given, 1)]
    text = json.dumps({"title": "a mission", "repository": str(root), "definition_of_done": entries, **fields})
    return mission.parse(text, root / "mission.json")


def known(**verdicts: str) -> dict[str, CriterionState]:
    """What the state knows of criteria: a verdict, or "flaky" for one that was met and has shown to be flaky."""
    records = {id: CriterionState(id, "medium", "", proof={}) for id in verdicts}
    for id, word in verdicts.items():
        records[id].verdict, records[id].flaky = ("met", True) if word == "flaky" else (word, False)
    return records


class Checks:
    """Checks run in a project; the outputs are in `folder`."""

    def __init__(self, root: Path, folder: Path, boxed: bool):
        self.root, self.folder, self.boxed = root, folder, boxed
        self.settings = mission.load_settings(None, None, {}).checks
        self.marker = f"test-{uuid.uuid4().hex}"

    def place(self, **given: Any) -> dod.Place:
        root = given.pop("root", self.root)
        box = sandbox.Sandbox(root, (), (), network=False) if self.boxed else None
        usual = {"outputs": self.folder, "marker": self.marker, "settings": self.settings, "sandbox": box}
        return dod.Place(root, **{**usual, **given})

    def __call__(self, *criteria: str | dict[str, Any], everything: bool = False, **given: Any) -> dict[str, Verdict]:
        records = given.pop("known", {})
        return dod.check(mission_of(self.root, *criteria).criteria, self.place(**given), records, everything)

    def one(self, check: str, **more: Any) -> Verdict:
        return self({"check": check, **more})["c1"]

    def output(self, id: str = "c1") -> str:
        return (self.folder / f"{id}.log").read_bytes().decode("utf-8")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder for what is temporary; nothing is in it when a test ends."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(params=["plain"])
def checks(request, project, tmp_path) -> Iterator[Checks]:
    if request.param == "sandbox":
        obstacle = sandbox.obstacle(KIT / "nowhere")
        need(not obstacle, obstacle)
    made = Checks(project, tmp_path / "outputs", request.param == "sandbox")
    yield made
    assert marked(made.marker) == {}


either = pytest.mark.parametrize("checks", ["plain", "sandbox"], indirect=True)
boxed = pytest.mark.parametrize("checks", ["sandbox"], indirect=True)


def words(verdicts: dict[str, Verdict]) -> list[str]:
    return [verdict.verdict for verdict in verdicts.values()]


@either
def test_the_exit_code_decides_and_a_verdict_carries_duration_digest_and_the_end_of_the_output(checks):
    expected = {
        "true": ("met", 0),
        "exit 25": ("unmet", 25),
        "kill -KILL $$": ("unmet", 137 if checks.boxed else -9),  # bubblewrap ends as a shell does after a signal
        "if then": ("unmet", 2),
        "a-program-that-does-not-exist": ("broken", 127),
        "./README.md": ("broken", 126),
        "echo bwrap: no such folder; exit 1": ("broken", 1),
    }
    for check, (verdict, code) in expected.items():
        found = checks.one(check)
        assert (found.verdict, found.code, bool(found.failure)) == (verdict, code, verdict != "met"), check
    found = checks.one("echo first; echo last >&2; exit 7")
    assert (found.id, found.code, found.tail) == ("c1", 7, "first\nlast\n")
    assert (found.runs, found.flaky, found.where) == (1, False, "tree")
    assert found.digest == hashlib.sha256(b"first\nlast\n").hexdigest()


def test_a_machine_that_can_start_nothing_or_has_no_space_gives_no_verdict(checks, monkeypatch):
    with pytest.raises(FileNotFoundError):  # the first one takes the folder away in which the second one would run
        checks('rm -rf "$PWD"', "true")
    checks.root.mkdir()
    monkeypatch.setattr(proc, "require_space", Mock(side_effect=OSError(errno.ENOSPC, "no space left")))
    with pytest.raises(OSError, match="no space left"):
        checks("touch ran")
    assert not (checks.root / "ran").exists()


def test_a_bash_that_the_worker_put_on_the_path_does_not_run_the_check(checks, monkeypatch):
    fake = checks.root / "bash"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{checks.root}:.:{os.environ['PATH']}")
    assert checks.one("test -e never").verdict == "unmet"


@either
def test_a_check_that_takes_too_long_is_a_timeout_also_when_it_answers_the_signal_with_success(checks):
    found = checks.one("echo begun; exec sleep 300", timeout=1)
    assert found.verdict == "timeout"
    assert found.tail.startswith("begun\n") and "it took too long" in found.tail
    assert checks.one("trap 'exit 0' TERM; sleep 300 & wait", timeout=1).verdict == "timeout"
    found = checks.one("test -e ran || { touch ran; exec sleep 300; }", timeout=2, retries=1)
    assert (found.verdict, found.flaky, found.runs) == ("met", True, 4)  # a failure like any other


def test_verdicts_come_in_the_order_of_the_mission_and_last_ones_run_after_the_others(checks):
    last = {"check": "echo c1 >> order", "when": "last"}
    judged = {"criteria": "judged"}
    assert words(checks(last, judged, "echo c3 >> order; exit 1")) == ["unjudged", "unjudged", "unmet"]
    assert (checks.root / "order").read_text() == "c3\n"
    found = checks(last, judged, "echo c3 >> order", known=known(c1="met", c3="met"))
    assert list(found) == ["c1", "c2", "c3"] and words(found) == ["met", "unjudged", "met"]
    assert (checks.root / "order").read_text() == "c3\nc3\nc1\n"
    assert words(checks(last, "false", everything=True)) == ["met", "unmet"]


def following(pattern: str, runs: str | Path = "runs") -> str:
    """A check that passes (P) or fails (F) in this order, and prints which run it is. runs: where it counts them."""
    return f'echo x >> {runs}; n=$(wc -l < {runs}); echo "run $n"; p={pattern}; test "${{p:$((n - 1)):1}}" = P'


DIFFER = "its two readings differ: `bash -e -o pipefail -c` passes, `bash -c` ends with exit code 1"
LONG = "password=x\n" + "nothing to see\n" * 100_000


@either
@pytest.mark.parametrize(
    ("check", "verdict", "output"),
    [
        ("! cat app.log | grep -q password=", "unmet", DIFFER),
        ("! sh tests.sh | grep -q FAILED", "unmet", DIFFER),
        ("! cat README.md | grep -q password=", "met", ""),
        ("sh lint.sh\ntest -f README.md", "unmet", "[bash -e stopped at line 1 (exit code 3): sh lint.sh]"),
        ("true\nsh lint.sh | tee log\ntrue", "unmet", "[bash -e stopped at line 2 (exit code 3 0): tee log]"),
        ("seq 1 300000 | grep -q '^7$'", "met", ""),
        ("seq 1 300000 | head -1 > log\nsh lint.sh\ntrue", "unmet", "at line 2 (exit code 3): sh lint.sh"),
        ("seq 1 300000 | head -1 > log\ntest -s log", "met", ""),
        (". ./lint.inc", "unmet", ""),
        ("bash once.sh", "flaky", "[flaky: 1 of 2 runs on the same files passed]"),
    ],
    ids=range(10),
)
def test_met_takes_both_readings(checks, check, verdict, output):
    tests = "echo FAILED; seq 1 300000; exit 1\n"
    files = {"app.log": LONG, "tests.sh": tests, "lint.sh": "exit 3\n", "lint.inc": "false\ntrue\n"}
    files["once.sh"] = following("PF")
    for name, text in files.items():
        (checks.root / name).write_text(text)
    found = checks.one(check)
    assert found.verdict == verdict
    assert output in found.tail and output in checks.output()
    assert output != DIFFER or found.code == 1


@pytest.mark.parametrize(
    ("record", "given", "readings"),
    [
        ({}, {}, ["strict", "typed"]),
        ({"c1": "met"}, {}, ["strict"]),
        ({"c1": "met"}, {"both": True}, ["strict", "typed"]),
        ({"c1": "flaky"}, {}, ["strict", "typed", "strict"]),
        ({}, {"strict": False}, ["typed", "typed"]),
    ],
)
def test_what_turns_green_is_run_as_typed_too_and_what_stays_green_is_run_once(checks, record, given, readings):
    check = "case $SHELLOPTS in *errexit*pipefail*) echo strict;; *pipefail*|*errexit*) exit 1;; *) echo typed;; esac"
    entry = {"check": f"({check}) | tee -a log", "strict": given.pop("strict", True)}
    assert checks(entry, known=known(**record), **given)["c1"].runs == len(readings)
    assert (checks.root / "log").read_text().split() == readings


def test_differences_names_the_checks_whose_readings_differ_today_and_leaves_the_outputs(checks):
    (checks.root / "app.log").write_text(LONG)
    checks_ = ["! cat app.log | grep -q password=", "echo said; false; true", "false | false", "true; true", "false"]
    criteria = mission_of(checks.root, *checks_, {"check": "false; true", "strict": False}).criteria
    verdicts = dod.check(criteria, checks.place(), {})
    assert dod.differences(criteria, checks.place(), verdicts) == {
        "c1": DIFFER,
        "c2": "its two readings differ: `bash -c` passes, `bash -e -o pipefail -c` ends with exit code 1",
    }
    assert checks.output("c2").startswith("said\n[bash -e stopped")


@pytest.mark.parametrize(
    ("pattern", "retries", "record", "verdict", "flaky"),
    [
        ("P", 0, "met", "met", False),
        ("F", 0, "met", "unmet", False),
        ("FPPP", 1, "unmet", "met", True),
        ("FPF", 1, "unmet", "flaky", True),
        ("PFF", 0, "unmet", "unmet", False),  # strict, typed, typed: the readings differ
        ("PFP", 0, "unmet", "flaky", True),
        ("PPP", 0, "flaky", "met", False),
        ("PPF", 0, "flaky", "flaky", True),
        ("F", 0, "flaky", "unmet", False),
        ("PPFPPFPPF", 2, "flaky", "flaky", True),  # there cannot be more runs than that
    ],
)
def test_a_check_is_run_until_its_verdict_is_certain(checks, pattern, retries, record, verdict, flaky):
    found = checks({"check": following(pattern), "retries": retries}, known=known(c1=record))["c1"]
    assert (found.verdict, found.flaky, found.runs) == (verdict, flaky, len(pattern))
    assert (checks.root / "runs").read_text() == "x\n" * len(pattern)
    assert found.tail == checks.output() and found.tail.startswith(f"run {len(pattern)}\n")  # of the last run
    assert bool(found.failure) is (verdict != "met")


@either
def test_a_check_runs_in_the_root_with_an_empty_input_and_a_temporary_folder_of_its_own(checks, scratch):
    check = 'pwd -P; test -f README.md && test -z "$(cat)" && test ! -e "$TMPDIR/kept" && mkdir -p "$TMPDIR/kept/a"'
    check += '; chmod -R 000 "$TMPDIR/kept"; test "$(dirname "$(mktemp)")" = "$TMPDIR" && echo $TMPDIR'
    root, folder = checks.one(check).tail.splitlines()
    assert root == str(checks.root.resolve())
    assert folder == "/tmp" if checks.boxed else folder.startswith(str(scratch))


def test_a_check_sees_no_secret_of_the_environment_but_what_the_settings_name(checks, monkeypatch):
    for name in ("GITHUB_TOKEN", "DB_PASSWORD", "CLAUDECODE", "PLAIN"):
        monkeypatch.setenv(name, SECRET[:9] if name == "PLAIN" else SECRET)
    checks.settings.env = ["DB_*"]
    checks.one("env > environment")
    seen = dict(line.split("=", 1) for line in (checks.root / "environment").read_text().splitlines())
    assert (seen["DB_PASSWORD"], seen["PLAIN"], seen["CCO_RUN"]) == (SECRET, SECRET[:9], checks.marker)
    assert not {"GITHUB_TOKEN", "CLAUDECODE"} & {*seen}


@boxed
def test_a_signal_ends_all_that_run_and_proves_nothing(checks, monkeypatch):
    def signalled(*_: Any) -> None:
        until(lambda: len([*checks.root.glob("tmp.*")]) == 3, "three checks run")
        raise proc.Interrupted(signal.SIGTERM)

    checks.settings.jobs = 3
    monkeypatch.setattr(proc, "wait_for_any", signalled)
    with pytest.raises(proc.Interrupted):
        checks(*["mktemp -p .; exec sleep 300"] * 3, "touch last-ran")
    assert (marked(checks.marker), (checks.root / "last-ran").exists(), checks.folder.exists()) == ({}, False, False)


def test_the_whole_output_is_kept_masked_and_private_and_its_tail_is_shown(checks, fresh_mask):
    log.register_secret(SECRET)
    checks.one("seq 100000")
    found = checks.one(rf"echo {SECRET}; printf 'a\377b\n'; seq 2000; echo the key is {SECRET}; exit 1")
    kept = checks.output()
    assert kept == "***\na\ufffdb\n" + "".join(f"{n}\n" for n in range(1, 2001)) + "the key is ***\n"
    assert (checks.folder / "c1.log").stat().st_mode & 0o777 == 0o600
    assert kept.endswith(found.tail) and dod.TAIL - 10 < len(found.tail) <= dod.TAIL
    assert dod.last_output("c1", checks.folder) == found.tail


def test_a_reason_is_kept_like_an_output_and_nothing_is_written_through_a_link(checks, fresh_mask, tmp_path):
    log.register_secret(SECRET)
    checks.folder.mkdir()
    (tmp_path / "precious").write_text("as it was")
    (checks.folder / "c1.log").symlink_to(tmp_path / "precious")
    assert dod.last_output("c1", checks.folder) == dod.last_output("c2", checks.folder) == ""
    dod.keep_reason("c1", checks.folder, f"the judge says {SECRET}")
    assert dod.last_output("c1", checks.folder) == "the judge says ***"
    assert (checks.folder / "c1.log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "precious").read_text() == "as it was"


@either
def test_background_processes_are_ended_and_do_not_change_the_verdict(checks):
    begun = "until grep -qsx sleep /proc/$!/comm; do :; done;"
    found = checks.one(f"sleep 301 & {begun} setsid sleep 302 & {begun} echo the output")
    left = "" if checks.boxed else "\n[ended what it left behind (2): sleep 301; sleep 302]"
    assert (found.verdict, found.tail) == ("met", f"the output\n{left}")


@either
def test_a_check_that_goes_beyond_a_limit_is_unmet_and_its_output_says_so_however_fast_it_prints(checks, monkeypatch):
    monkeypatch.setattr(dod, "MAX_OUTPUT", 10_000)
    checks.settings.processes, checks.settings.file_size = 20, 5_000_000
    beyond = {
        "for n in $(seq 30); do sleep 300 & done; wait": "it used more processes than checks.processes allows",
        "head -c 6000000 /dev/zero > big; exit": "larger file than checks.file_size allows",
        "yes": "[it printed more than 10000 bytes]",
        "head -c 50000 /dev/zero | tr '\\0' y": "[it printed more than 10000 bytes]",
    }
    for check, note in beyond.items():
        found = checks.one(check)
        assert found.verdict == "unmet" and note in found.tail and note in checks.output()
        assert len(checks.output()) < 10_200
    assert checks.one("head -c 10000 /dev/zero | tr '\\0' y").verdict == "met"


def test_a_failure_is_the_same_when_only_numbers_and_temporary_names_differ_and_else_another(checks):
    long = "seq -f 'case %.0f took {0} ms' 300; exit 1"  # of which the tail begins at another line
    leaves = "sleep 30{0} & echo failed in $TMPDIR after {0} s; exit 1"
    for check in (long, leaves):
        one, other = (checks.one(check.format(took)).failure for took in (7, 1234567))
        assert one == other != ""
    given = ["echo x; exit 1", "echo y; exit 1", "echo x; exit 2", "exit 1", "! false | true", "missing"]
    given += ["seq 3000; echo red; exit 1", "seq 3000; echo blue; exit 1"]
    failures = [verdict.failure for verdict in checks(*given, {"check": "echo x; sleep 300", "timeout": 1}).values()]
    assert len({*failures}) == len(given) + 1


TOGETHER = ["echo x > one; read x < three", "read x < one; echo x > two", "read x < two; echo x > three"]
ORDER = "echo begin {0} >> order; {1}; echo end {0} >> order"
MET = known(**{f"c{n}": "met" for n in range(1, 9)})  # what is met already runs once


@boxed
def test_as_many_as_the_settings_say_run_side_by_side_and_an_exclusive_one_alone(checks):
    checks.settings.jobs = 3
    for name in ("one", "two", "three"):  # each waits for the one before it, and the first for the last
        os.mkfifo(checks.root / name)
    beside = [ORDER.format(f"c{n}", meets) for n, meets in enumerate(TOGETHER, 1)]
    alone = {"check": ORDER.format("alone", "true"), "exclusive": True}
    assert words(checks(*beside, alone, *beside, "exit 1", known=MET)) == ["met"] * 7 + ["unmet"]
    lines = (checks.root / "order").read_text().splitlines()
    assert lines[6:8] == ["begin alone", "end alone"]
    assert {line.split()[1] for line in lines[:6]} == {"c1", "c2", "c3"}


def test_without_a_sandbox_they_run_one_after_the_other(checks):
    checks.settings.jobs = 3
    assert words(checks(*[ORDER.format("one", "true")] * 3, known=MET)) == ["met"] * 3
    assert (checks.root / "order").read_text() == "begin one\nend one\n" * 3


class Protected:
    """A protected file, compared and restored as the loop does it."""

    def __init__(self, root: Path):
        self.file, self.compared = root / "protected", 0
        self.file.write_text("as it was\n")

    def restore(self) -> list[str]:
        self.compared += 1
        changed = self.file.read_text() != "as it was\n"
        self.file.write_text("as it was\n")
        return ["protected (changed)"] if changed else []


@pytest.mark.parametrize("code", [0, 1])
def test_a_check_that_changes_a_protected_file_is_tampered_whatever_its_exit_code(checks, code):
    protected, intact = Protected(checks.root), "grep -qx 'as it was' protected"
    found = checks(intact, f"echo said; echo x > protected; exit {code}", intact, restore=protected.restore)
    assert words(found) == ["met", "tampered", "met"]
    assert found["c2"].tail == checks.output("c2") == "said\n\n[protected files were changed: protected (changed)]"
    assert (found["c2"].code, bool(found["c2"].failure)) == (code, True)


@boxed
def test_in_the_sandbox_it_is_read_only_and_compared_once_after_all_of_them(checks, monkeypatch):
    protected, judged = Protected(checks.root), {"criteria": "x"}
    (checks.root / "hidden").write_text("a secret\n")
    box = sandbox.Sandbox(checks.root, (protected.file,), (), False, hidden=(checks.root / "hidden",))
    given = {"sandbox": box, "restore": protected.restore}
    found = checks("echo x > protected", "mv protected away", "cat protected; test -s hidden", judged, **given)
    assert words(found) == ["unmet"] * 3 + ["unjudged"]
    assert found["c3"].tail.startswith("as it was\n") and protected.compared == 1
    # A change that it could not prevent: all run again, to see who does it.
    found = checks("true", "echo x > protected", {"check": "true", "when": "last"}, judged, restore=protected.restore)
    assert words(found) == ["met", "tampered", "unjudged", "unjudged"]
    assert checks.output("c2") == "\n[protected files were changed: protected (changed)]"
    assert protected.compared == 1 + 1 + 2
    checks("true", "true", both=True, **given)  # no clean checkout follows, which each would find anew
    monkeypatch.setattr(sandbox, "MOUNTS", 0)  # not all of them are mounted
    checks("true", "true", "true", **given)
    assert protected.compared == 4 + 2 + 3


# In a clean checkout


class Confirming:
    """A commit of the project, confirmed in a clean checkout."""

    def __init__(self, checks: Checks, git: Any, folder: Path):
        self.checks, self.git, self.folder = checks, git, folder

    def commit(self, **files: str) -> None:
        for name, text in files.items():
            (self.checks.root / name).write_text(text)
        self.git(self.checks.root, "add", "-A")
        self.git(self.checks.root, "commit", "-q", "--allow-empty", "-m", "work")

    def __call__(
        self, *criteria: str | dict[str, Any], setup: str | None = None, commit: str | None = None, **given: Any
    ) -> tuple[Verdict | None, dict[str, Verdict]]:
        asked = mission_of(self.checks.root, *criteria, **({"setup": setup} if setup else {}))
        records, not_committed = given.pop("known", {}), given.pop("not_committed", {})
        criteria, git = given.pop("criteria", asked.criteria), repo.Repo(self.checks.root)
        self.folder.mkdir()
        try:
            clean = repo.Checkout(git, git.head() if commit is None else commit, self.folder)
            return dod.confirm(asked, criteria, self.checks.place(**given), clean, records, git, not_committed)
        finally:
            repo.delete(self.folder)
            assert not self.folder.exists()


@pytest.fixture
def confirm(checks, git, tmp_path) -> Confirming:
    return Confirming(checks, git, tmp_path / "clean")


@either
def test_setup_runs_first_and_then_every_check_in_a_checkout_of_the_commit(confirm):
    confirm.commit(committed="yes\n")
    (confirm.checks.root / "uncommitted").touch()
    last = {"check": "test -e made", "when": "last"}
    setup, found = confirm(last, "cat committed; test ! -e uncommitted", setup="pwd -P; cat committed > made")
    assert setup and (setup.verdict, setup.code, setup.tail) == ("met", 0, f"{confirm.folder.resolve()}/tree\n")
    assert [(verdict.verdict, verdict.where) for verdict in found.values()] == [("met", "checkout")] * 2
    assert found["c2"].tail == "yes\n"
    assert (confirm.checks.output("setup"), (confirm.checks.root / "made").exists()) == (setup.tail, False)
    setup, found = confirm("touch made", 'test -z "$(ls -A)"', commit="")
    assert (setup, words(found)) == (None, ["met", "met"])
    setup, found = confirm("true", setup="echo ready", criteria=[])
    assert setup and (setup.verdict, setup.tail, found) == ("met", "ready\n", {})
    assert confirm("true", criteria=[]) == (None, {})


def test_a_setup_that_fails_makes_everything_unmet_and_is_the_reason(confirm):
    setup, found = confirm("touch ran; true", "exit 1", setup="echo no lock file\nno-such-program\ntrue")
    assert setup and setup.verdict == "broken" and setup.tail.startswith("no lock file\n")
    assert "[bash -e stopped at line 2 (exit code 127): no-such-program]" in setup.tail
    for id in ("c1", "c2"):
        assert (found[id].id, found[id].verdict, found[id].where, found[id].code) == (id, "unmet", "checkout", None)
        assert found[id].tail == f"`setup` fails (broken), so nothing can be checked there.\n{setup.tail}"
        assert found[id].failure and dod.last_output(id, confirm.checks.folder) == found[id].tail
    assert not (confirm.checks.root / "ran").exists()


@either
def test_each_check_finds_the_checkout_as_setup_left_it(confirm):
    confirm.commit(**{".gitignore": "made*\n", "tracked": "as it was\n"})
    leaves = (
        *("mkdir -p new/a; touch new/a/b; chmod 000 new", "rm tracked; mkdir tracked; touch tracked/new"),
        *("echo worse > made/deep", "echo x > tracked; git -c user.name=x -c user.email=x@y commit -qam sneaked"),
    )
    as_it_was = "test ! -e new && grep -qx 'as it was' tracked && test ! -s made/deep && git diff --quiet HEAD"
    found = confirm(*[check for does in leaves for check in (does, as_it_was)], setup="mkdir made; touch made/deep")[1]
    assert dod.all_met(found.values()), found


def test_a_second_look_tells_a_check_that_fails_there_from_a_flaky_one_and_both_readings_count(confirm):
    confirm.commit(**{"app.log": LONG})
    patterns = {"PP": "met", "FF": "unmet", "FPPP": "met", "FPF": "flaky", "PPP": "met"}
    checks = [following(pattern, confirm.folder.parent / pattern) for pattern in patterns]
    others = ["! cat app.log | grep -q password=", {"check": "test -e made && exit; touch made; false", "retries": 3}]
    found = confirm(*checks, *others, known=known(c1="met", c5="flaky", c6="met"))[1]
    assert words(found) == [*patterns.values(), "unmet", "unmet"]
    for pattern, verdict in zip(patterns, found.values(), strict=False):
        assert (verdict.runs, verdict.where) == (len(pattern), "checkout")
        assert verdict.flaky is ("P" in pattern and "F" in pattern)
        assert ("It passes in the work tree" in verdict.tail) is (verdict.verdict != "met")
    assert found["c6"].runs == 4 and DIFFER in found["c6"].tail
    assert "flaky" not in found["c7"].tail  # nothing is there of what its first run left


@either
def test_nothing_leads_to_the_work_tree(confirm, monkeypatch):
    root = confirm.checks.root
    confirm.commit(**{".gitignore": ".venv\n", "run.sh": f"grep -q fine '{root}/.venv/out'\n"})
    (program := root / ".venv" / "bin" / "only-here").parent.mkdir(parents=True)
    for path, text in {program: "#!/bin/sh\n", root / ".venv/out": "fine\n", root / ".git/out": "fine\n"}.items():
        path.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}/.venv/bin:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", f"{root}/.venv")
    monkeypatch.setenv("GIT_DIR", f"{root}/.git")
    assert confirm.checks.one("only-here && sh run.sh").verdict == "met"
    found = confirm("only-here", 'cat "$VIRTUAL_ENV/out"', "git status", "sh run.sh", f"cat '{root}/.git/out'")[1]
    assert words(found) == ["broken", "unmet", "met", *["unmet" if confirm.checks.boxed else "met"] * 2]


def test_a_protected_file_that_setup_or_a_check_changes_there_makes_it_tampered(confirm):
    protected = Protected(confirm.checks.root)
    change = f"echo x > '{protected.file}'"
    setup, found = confirm("true", setup=change, restore=protected.restore)
    assert setup and (setup.verdict, found["c1"].verdict) == ("tampered", "unmet")
    assert words(confirm("true", change, "true", restore=protected.restore)[1]) == ["met", "tampered", "met"]


BUILD = "echo build/ > .gitignore; git add .; git commit -qm x; mkdir build; touch build/file"
ONLY_HERE: list[tuple[str, str]] = [  # what was done in the work tree, and what the reason names
    ("mkdir .cco; touch .cco/file; git update-ref refs/cco/demo/best HEAD", ""),
    (BUILD, "build (git ignores it)"),
    ("touch big", "big (it is too large)"),
    ("touch $(seq 10 39)", "10, 11, 12, 13, 14, 15, 16, 17 and 22 more (not committed)"),
    ("mkdir empty; git init -q nested", "empty, nested (not committed)"),
    ("chmod 600 README.md", "README.md (its mode is 600, there {there})"),
    ("git config core.fileMode false; chmod 755 README.md", "README.md (its mode is 755, there {there})"),
    (
        "git update-index --skip-worktree README.md; rm README.md",
        "README.md (skip-worktree or assume-unchanged is set)",
    ),
    ("git update-index --assume-unchanged README.md", "README.md (skip-worktree or assume-unchanged is set)"),
    ("git config filter.x.smudge cat", "filter.x.smudge (set in .git alone)"),
    ("echo '* text' > .git/info/attributes", "info/attributes (set in .git alone)"),
    ("git notes add -m x; echo x > README.md; git stash -q", "refs/notes/commits, refs/stash (no clone has it)"),
]


@pytest.mark.parametrize(("command", "named"), ONLY_HERE, ids=range(len(ONLY_HERE)))
def test_what_only_the_work_tree_has_is_named(confirm, git, command, named):
    root = confirm.checks.root
    named = named.format(there=f"{(root / 'README.md').stat().st_mode & 0o777:o}")
    subprocess.run(command, shell=True, cwd=root, check=True)
    not_committed = {"big": "it is too large"} if "big" in named else {}
    found = confirm("true", "test -d build", "false", not_committed=not_committed)[1]
    assert words(found) == ["met", "unmet", "unmet"]
    reason = found["c2"].tail
    assert reason == found["c3"].tail == confirm.checks.output("c2") != found["c1"].tail
    assert f"not in a clean checkout of commit {git(root, 'rev-parse', 'HEAD')[:12]}" in reason
    assert reason.endswith(f" What is only here: {named}.]" if named else "has run before it.]")


# Checks that prove nothing, and a mission without setup


@either
def test_a_check_that_passes_without_the_repository_proves_nothing(checks):
    plan, kit = checks.root / "plan" / "work.yaml", checks.root / "kit"
    for path, text in {plan: "check: grep -rq hello .\n", kit / "dod.py": "# what a check may use\n"}.items():
        path.parent.mkdir()
        path.write_text(text)
    (kit / "__pycache__").mkdir()
    (kit / ".secret").touch()
    empty, own = "it passes in an empty folder too", "it passes where there is nothing but the mission and the kit"
    expected = {
        "true": empty,
        "! cat app.log | grep -q password=": empty,
        "grep -rq hello .": own,
        "grep -rq 'what a check may use' .": own,
        "test -f README.md": "",
        "cat missing | tee log": "",  # as typed alone it passes
        "test -e kit/.secret -o -e kit/__pycache__": "",
        "test -e ran || { touch ran; false; }": "",
    }
    if checks.boxed:
        expected[f"test -e '{checks.root}/README.md'"] = ""
    for check, reason in expected.items():
        criterion = mission_of(checks.root, {"check": check, "retries": 5}).criteria[0]
        found = dod.proves_nothing(criterion, checks.place(), [plan, kit])
        assert found.startswith(reason) and bool(found) is bool(reason), check
    assert not checks.folder.exists()  # the outputs of the checks themselves stay


def test_only_what_passes_and_was_never_seen_to_fail_is_refused_and_looked_at_once(checks, monkeypatch):
    guard = {"check": "true", "guard": True}
    criteria = mission_of(checks.root, "true", "test -f README.md", "false", guard, "true", {"criteria": "x"}).criteria
    records = known(**{criterion.id: "unjudged" for criterion in criteria})
    records["c5"].seen_failing = True
    verdicts = dod.check(criteria, checks.place(), records)
    reasons = dod.trivial(criteria, checks.place(), verdicts, records, [])
    assert reasons == {"c1": f"it passes in an empty folder too. {dod.WAY_OUT}"}
    assert [id for id, record in records.items() if record.fails_when_empty] == ["c2"]
    monkeypatch.setattr(dod, "proves_nothing", lambda criterion, *_: criterion.id)
    assert [*dod.trivial(criteria, checks.place(), verdicts, records, [])] == ["c1"]


def test_a_mission_without_setup_in_a_repository_with_a_lock_file_is_told(project):
    files = ["README.md", "package-lock.json"]
    assert dod.missing_setup(mission_of(project, "true"), files).startswith(
        "package-lock.json is here, but the mission"
    )
    assert dod.missing_setup(mission_of(project, "true"), ["package.json"]) == ""
    for given in ({"setup": "true"}, {"confirm": "tree"}):
        assert dod.missing_setup(mission_of(project, "true", **given), files) == ""
