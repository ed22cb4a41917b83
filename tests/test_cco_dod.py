"""Checks: what they prove, what they may see, and what is left of them; with walls around them and without."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked, need, until

import checkout
import dod
import log
import mission
import processes
import repo
import sandbox
from dod import Verdict
from mission import Mission, parse

SECRET = "correct-horse-battery-staple"
KIT_ALONE = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import dod, log, mission, os, proc, sandbox
proc.catch_signals()
log.know(os.environ)
root, folder = Path(sys.argv[2]), Path(sys.argv[3])
walls = sandbox.Walls(root, (), (), (), True) if sys.argv[4] == "walls" else None
place = dod.Place(root, folder, sys.argv[5], mission.load_settings(None, None, os.environ).checks, walls)
try:
    for id, verdict in dod.check(mission.load(root / "mission.json").criteria, place).items():
        print(id, verdict.verdict)
except proc.Interrupted:
    print("interrupted")
"""


def mission_of(root: Path, *criteria: str | dict[str, Any], **fields: Any) -> Mission:
    """A mission with these criteria: c1, c2, ...; a text is a check."""
    given = [{"check": c} if isinstance(c, str) else c for c in criteria]
    entries = [{"id": f"c{n}", "criteria": f"number {n}", **entry} for n, entry in enumerate(given, 1)]
    text = json.dumps({"title": "a mission", "repository": str(root), "definition_of_done": entries, **fields})
    return parse(text, root / "mission.json")


class Checks:
    """Checks run in a project; the outputs are in `folder`."""

    def __init__(self, root: Path, folder: Path, walled: bool = False):
        self.root, self.folder, self.walled = root, folder, walled
        self.settings = mission.load_settings(None, None, {}).checks
        self.marker = f"test-{uuid.uuid4().hex}"

    def place(self, **given: Any) -> dod.Place:
        root = given.pop("root", self.root)
        sealed = (root / ".git", self.root / ".git") if root != self.root else ()
        walls = sandbox.Walls(root, sealed, (), (), network=False) if self.walled else None
        usual = {"outputs": self.folder, "marker": self.marker, "settings": self.settings, "walls": walls}
        return dod.Place(root, **{**usual, **given})

    def __call__(self, *criteria: str | dict[str, Any], everything: bool = False, **place: Any) -> dict[str, Verdict]:
        return dod.check(mission_of(self.root, *criteria).criteria, self.place(**place), everything)

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


@pytest.fixture(params=["no walls"])
def checks(request, project, tmp_path) -> Iterator[Checks]:
    if request.param == "walls":
        obstacle = sandbox.obstacle(KIT / "nowhere")
        need(not obstacle, obstacle)
    (tmp_path / "outputs").mkdir()
    made = Checks(project, tmp_path / "outputs", request.param == "walls")
    yield made
    assert marked(made.marker) == {}


# Where it matters, with walls and without.
either = pytest.mark.parametrize("checks", ["no walls", "walls"], indirect=True)
walls = pytest.mark.parametrize("checks", ["walls"], indirect=True)


@pytest.fixture
def secret(fresh_mask) -> str:
    """A value that the kit knows to be secret."""
    log.know_value(SECRET)
    return SECRET


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# What a check proves


@either
@pytest.mark.parametrize(
    ("check", "verdict", "code"),
    [
        ("true", "met", 0),
        ("echo all good; exit 0", "met", 0),
        ("exit 1", "unmet", 1),
        ("exit 125", "unmet", 125),
        ("exit 255", "unmet", 255),
        ("kill -KILL $$", "unmet", (-9, 137)),
        ("if then", "unmet", 2),
        ("a-program-that-does-not-exist", "broken", 127),
        ("a-program-that-does-not-exist | cat", "broken", 127),
        ("./README.md", "broken", 126),
        ("./no/such/script.sh", "broken", 127),
        ("false | cat", "unmet", 1),
        ("exit 4 | exit 3", "unmet", 3),
    ],
)
def test_the_exit_code_of_the_command_decides(checks, check, verdict, code):
    found = checks.one(check)
    if isinstance(code, tuple):  # bubblewrap ends as a shell does after a signal
        code = code[checks.walled]
    assert (found.verdict, found.code) == (verdict, code)
    assert dod.all_met([found]) is (verdict == "met")


@either
def test_a_verdict_carries_code_duration_digest_and_the_end_of_the_output(checks):
    found = checks.one("echo first; echo last >&2; exit 7")
    assert (found.id, found.code, found.tail) == ("c1", 7, "first\nlast\n")
    assert (found.runs, found.flaky, found.where) == (1, False, "tree")
    assert found.digest == hashlib.sha256(b"first\nlast\n").hexdigest()
    assert 0 <= found.seconds < 20


@either
def test_a_check_that_cannot_be_started_is_broken_and_says_why(checks):
    shutil.rmtree(checks.root)
    found = checks.one("true")
    assert (found.verdict, found.code) == ("broken", None)
    assert "could not be started" in found.tail
    assert "a project" in found.tail


def test_without_any_shell_a_check_is_broken(checks, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checks.one("true")
    assert (found.verdict, found.code) == ("broken", 127)
    assert "sh" in found.tail


def test_where_there_is_no_bash_sh_runs_the_check(checks, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shutil.which("sh"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert checks.one('echo "$0"; exit 0').tail == f"{tmp_path}/bin/sh\n"
    assert checks.one("exit 3").verdict == "unmet"


@pytest.mark.parametrize("place", (".venv/bin", "."), ids=("absolute", "relative"))
def test_a_bash_that_the_worker_put_on_the_path_does_not_run_the_check(checks, monkeypatch, place):
    fake = checks.root / place / "bash"
    fake.parent.mkdir(parents=True, exist_ok=True)
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    folder = str(fake.parent) if place != "." else place
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert checks.one("test -e never").verdict == "unmet"


@either
def test_a_check_that_takes_too_long_is_a_timeout_and_says_so(checks):
    found = checks.one("echo begun; exec sleep 300", timeout=1)
    assert found.verdict == "timeout"
    assert found.tail.startswith("begun\n")
    assert "it took too long" in found.tail
    assert 1 <= found.seconds < 20


@either
def test_a_timeout_stays_a_timeout_when_the_command_answers_the_signal_with_success(checks):
    assert checks.one("trap 'exit 0' TERM; sleep 300 & wait", timeout=1).verdict == "timeout"


def test_a_criterion_without_a_check_is_unjudged_and_runs_nothing(checks):
    found = checks({"criteria": "it is beautiful"})["c1"]
    assert (found.verdict, found.code, found.digest) == ("unjudged", None, "")
    assert "no check" in found.tail
    assert not list(checks.folder.iterdir())


# Order, `when` and `retries`


def test_verdicts_come_in_the_order_of_the_mission_and_last_ones_run_after_the_others(checks):
    last = {"check": "echo c1 >> order", "when": "last"}
    found = checks(last, "echo c2 >> order", {"criteria": "judged"}, "echo c4 >> order; exit 1")
    assert list(found) == ["c1", "c2", "c3", "c4"]
    assert [verdict.verdict for verdict in found.values()] == ["unjudged", "met", "unjudged", "unmet"]
    assert found["c1"].tail == "runs when all others are met"
    assert (checks.root / "order").read_text() == "c2\nc4\n"


@pytest.mark.parametrize(
    ("other", "verdict"), [("true", "met"), ("false", "unjudged"), ("no-such-program", "unjudged")]
)
def test_a_last_check_runs_only_when_all_others_are_met(checks, other, verdict):
    found = checks({"check": "touch ran", "when": "last"}, "true", other)
    assert found["c1"].verdict == verdict
    assert (checks.root / "ran").exists() is (verdict == "met")


def test_every_last_check_runs_even_when_the_first_of_them_fails(checks):
    found = checks({"check": "exit 1", "when": "last"}, {"check": "exit 0", "when": "last"})
    assert [verdict.verdict for verdict in found.values()] == ["unmet", "met"]


def test_with_everything_the_last_checks_run_whatever_the_others_say(checks):
    last = {"check": "echo it ran", "when": "last"}
    found = checks(last, "false", everything=True)
    assert [verdict.verdict for verdict in found.values()] == ["met", "unmet"]
    assert checks.output() == "it ran\n"


# Again, and again


def following(pattern: str, runs: str | Path = "runs") -> str:
    """A check that passes (P) or fails (F) in this order, and prints which run it is. runs: where it counts them."""
    return f'echo x >> {runs}; n=$(wc -l < {runs}); echo "run $n"; p={pattern}; test "${{p:$((n - 1)):1}}" = P'


@pytest.mark.parametrize(
    ("pattern", "retries", "known", "verdict", "flaky"),
    [
        ("P", 0, "", "met", False),
        ("F", 0, "", "unmet", False),
        ("FF", 1, "", "unmet", False),
        ("FFFF", 3, "", "unmet", False),
        ("FPPP", 1, "", "met", True),
        ("FPPP", 9, "", "met", True),
        ("FPF", 1, "", "flaky", True),
        ("FPPF", 1, "", "flaky", True),
        ("FPFPPP", 2, "", "met", True),
        ("FPPFPPP", 2, "", "met", True),
        ("FPFF", 2, "", "flaky", True),
        ("PP", 0, "twice", "met", False),
        ("PF", 0, "twice", "flaky", True),
        ("PFPPP", 1, "twice", "met", True),
        ("F", 0, "twice", "unmet", False),
        ("PPP", 0, "suspects", "met", False),
        ("PPF", 0, "suspects", "flaky", True),
        ("F", 0, "suspects", "unmet", False),
        ("PPFPPFPPF", 2, "suspects", "flaky", True),  # there cannot be more runs than that
    ],
)
def test_a_check_is_run_until_its_verdict_is_certain(checks, pattern, retries, known, verdict, flaky):
    given = {known: frozenset(["c1"])} if known else {}
    found = checks({"check": following(pattern), "retries": retries}, **given)["c1"]
    assert (found.verdict, found.flaky, found.runs) == (verdict, flaky, len(pattern))
    assert (checks.root / "runs").read_text() == "x\n" * len(pattern)
    assert found.tail == checks.output() == f"run {len(pattern)}\n"  # of the last run
    assert dod.all_met([found]) is (verdict == "met")


def test_a_suspect_that_is_new_needs_three_passes_and_others_one(checks):
    both = {"suspects": frozenset(["c1"]), "twice": frozenset(["c1"])}
    found = checks("true", "true", **both)
    assert [verdict.runs for verdict in found.values()] == [3, 1]


@either
def test_a_timeout_is_a_failure_like_any_other(checks):
    found = checks.one("test -e ran || { touch ran; exec sleep 300; }", timeout=1, retries=1)
    assert (found.verdict, found.flaky, found.runs) == ("met", True, 4)
    assert found.seconds >= 1  # of all runs together


# Where it runs, and what it sees


@either
def test_a_check_runs_in_the_root_of_the_repository_though_its_path_has_a_space(checks):
    assert checks.one("pwd -P; test -f README.md").tail == f"{checks.root.resolve()}\n"


@either
def test_a_check_sees_no_secret_of_the_environment(checks, monkeypatch):
    secrets = ("OPENROUTER_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "CCO_OPENROUTER_API_KEY")
    for name in secrets:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("CLAUDECODE", "1")
    monkeypatch.setenv("A_PLAIN_VARIABLE", "is seen")
    assert checks.one("env > environment").verdict == "met"
    seen = (checks.root / "environment").read_text()
    assert SECRET not in seen
    assert not any(f"{name}=" in seen for name in (*secrets, "CLAUDECODE"))
    assert "A_PLAIN_VARIABLE=is seen\n" in seen
    assert f"CCO_RUN={checks.marker}\n" in seen


def run_alone(checks: Checks, env: dict[str, str]) -> subprocess.Popen[str]:
    """The checks of mission.json in a kit of their own, as one process."""
    argv = [sys.executable, "-c", KIT_ALONE, str(KIT), str(checks.root), str(checks.folder)]
    argv += ["walls" if checks.walled else "no walls", checks.marker]
    return subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not processes.LINUX, reason="there is no /proc")
def test_a_check_that_digs_the_key_out_of_the_kits_process_finds_it_masked_in_what_is_kept(checks):
    check = "echo mine: $OPENROUTER_API_KEY; tr '\\0' '\\n' < /proc/$PPID/environ | grep OPENROUTER_API_KEY"
    (checks.root / "mission.json").write_text(mission_of(checks.root, check).text)
    with run_alone(checks, {"OPENROUTER_API_KEY": SECRET}) as kit:
        assert kit.communicate(timeout=30)[0] == "c1 met\n"
    assert checks.output() == "mine:\nOPENROUTER_API_KEY=***\n"


@either
def test_a_check_that_reads_its_input_finds_it_empty(checks):
    assert checks.one('test -z "$(cat)"; read -r line || echo nothing there').tail == "nothing there\n"


# What is kept of the output


def test_the_whole_output_is_kept_masked_and_private_and_its_tail_is_shown(checks, secret):
    before = os.umask(0)
    try:
        found = checks.one(f"echo {secret}; seq 2000; echo the key is {secret}; exit 1")
    finally:
        os.umask(before)
    kept = checks.output()
    assert kept == "***\n" + "".join(f"{n}\n" for n in range(1, 2001)) + "the key is ***\n"
    assert (checks.folder / "c1.log").stat().st_mode & 0o777 == 0o600
    assert kept.endswith(found.tail)
    assert dod.TAIL - 10 < len(found.tail) <= dod.TAIL
    assert found.tail.splitlines()[0].isdigit()
    assert found.tail.endswith("the key is ***\n")
    assert dod.last_output("c1", checks.folder) == found.tail


def test_a_secret_that_lies_across_the_beginning_of_the_tail_does_not_show_its_end(checks, secret):
    for shift in (0, len(secret) // 2, len(secret)):
        found = checks.one(f"printf %s {secret}; head -c {dod.TAIL - shift} /dev/zero | tr '\\0' x")
        assert not any(secret[-n:] in found.tail for n in range(4, len(secret)))


@either
def test_binary_output_is_kept_as_text(checks):
    found = checks.one(r"printf 'a\377\000\033[31mb\n'; head -c 100000 /dev/urandom; exit 1")
    assert found.verdict == "unmet"
    assert checks.output().startswith("a\N{REPLACEMENT CHARACTER}\0\033[31mb\n")
    assert checks.output().endswith(found.tail)
    json.dumps(found.tail).encode("utf-8")


def test_a_reason_is_kept_like_an_output_masked_and_private(checks, secret):
    dod.keep_reason("c1", checks.folder, f"the judge says {secret}")
    assert dod.last_output("c1", checks.folder) == "the judge says ***"
    assert (checks.folder / "c1.log").stat().st_mode & 0o777 == 0o600


def test_each_run_replaces_the_output_of_the_one_before(checks):
    checks.one("seq 100")
    checks.one("echo short")
    assert checks.output() == "short\n"


def test_what_never_ran_has_no_last_output(checks):
    assert dod.last_output("c1", checks.folder) == ""


@either
@pytest.mark.parametrize("check", ["yes", "head -c 50000 /dev/zero | tr '\\0' y"])
def test_a_check_that_prints_more_than_the_limit_is_unmet_however_fast_it_prints(checks, monkeypatch, check):
    monkeypatch.setattr(dod, "MAX_OUTPUT", 10_000)
    found = checks.one(check)
    assert found.verdict == "unmet"
    assert found.tail.endswith("[it printed more than 10000 bytes]")
    assert len(checks.output()) < 10_100


@either
def test_a_check_that_prints_exactly_the_limit_is_met(checks, monkeypatch):
    monkeypatch.setattr(dod, "MAX_OUTPUT", 10_000)
    found = checks.one("head -c 10000 /dev/zero | tr '\\0' y")
    assert found.verdict == "met"
    assert checks.output() == "y" * 10_000


# What it leaves behind


@pytest.mark.skipif(not processes.LINUX, reason="without a subreaper what leaves its group and its parent stays")
def test_background_processes_are_ended_and_named_and_do_not_change_the_verdict(checks):
    escape = "setsid sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 302' &"
    begun = "until grep -qsx sleep /proc/{pid}/comm; do :; done"
    child = f"sleep 301 & echo $! > child; {begun.format(pid='$!')};"
    found = checks.one(
        f"{child} {escape} until test -e pid; do :; done; {begun.format(pid='$(cat pid)')}; echo the output"
    )
    assert found.verdict == "met"
    assert found.tail == "the output\n\n[ended what it left behind (2): sleep 301; sleep 302]"
    assert all(gone(int((checks.root / name).read_text())) for name in ("child", "pid"))


def test_a_check_that_leaves_many_processes_still_shows_its_output(checks):
    found = checks.one("for n in $(seq 30); do sleep $(seq -s ' ' 3000 3030) & done; echo the output; exit 1")
    assert re.match(r"the output\n\n\[ended what it left behind \([2-9]\d\): ", found.tail)
    assert len(found.tail) < 800


def test_a_failure_is_the_same_whatever_processes_it_leaves_behind():
    notes = ("(1): sleep 300", "(2): bash -c sleep 300; sleep 300")
    one, other = (failure(f"it failed\n\n[ended what it left behind {note}]") for note in notes)
    assert one == other != failure("it failed")


@walls
def test_within_walls_all_processes_end_with_the_check_and_none_has_to_be_named(checks):
    found = checks.one("sleep 301 & setsid sleep 302 & (setsid -f env -i sleep 303); echo the output")
    assert (found.verdict, found.tail) == ("met", "the output\n")


@either
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_signal_raises_interrupted_ends_all_that_run_and_proves_nothing(checks, scratch, jobs):
    begun = {"check": "touch $(mktemp -p .) began; exec sleep 300", "retries": 3}
    (checks.root / "mission.json").write_text(mission_of(checks.root, *[begun] * jobs, "touch last-ran").text)
    with run_alone(checks, {"CCO_CHECKS_JOBS": str(jobs)}) as kit:
        until(lambda: len([*checks.root.glob("tmp.*")]) == jobs, "the checks run")
        kit.send_signal(signal.SIGTERM)
        assert kit.communicate(timeout=30)[0] == "interrupted\n"
    assert marked(checks.marker) == {}
    assert not (checks.root / "last-ran").exists()
    assert not list(checks.folder.iterdir())


# Side by side

TOGETHER = [  # each waits for the one before it, and the first for the last
    "echo begin {id} >> order; echo {id}; echo x > one; read x < three; echo end {id} >> order",
    "echo begin {id} >> order; echo {id}; read x < one; echo x > two; echo end {id} >> order",
    "echo begin {id} >> order; echo {id}; read x < two; echo x > three; echo end {id} >> order",
]


@pytest.fixture
def beside(checks) -> Checks:
    """Three run side by side, and have fifos to wait for each other."""
    checks.settings.jobs = 3
    for name in ("one", "two", "three"):
        os.mkfifo(checks.root / name)
    return checks


def together(*ids: str) -> list[dict[str, Any]]:
    """Three checks that can only end together."""
    return [{"check": check.format(id=id), "timeout": 30} for check, id in zip(TOGETHER, ids, strict=True)]


@either
def test_as_many_as_the_settings_say_run_side_by_side_each_with_its_own_output(beside):
    found = beside(*together("c1", "c2", "c3"), "echo fourth; exit 1")
    assert [(id, verdict.verdict) for id, verdict in found.items()] == [
        ("c1", "met"),
        ("c2", "met"),
        ("c3", "met"),
        ("c4", "unmet"),
    ]
    assert [beside.output(id) for id in found] == ["c1\n", "c2\n", "c3\n", "fourth\n"]
    assert [verdict.tail for verdict in found.values()] == ["c1\n", "c2\n", "c3\n", "fourth\n"]


def test_no_more_of_them_run_than_the_settings_say(beside):
    beside.settings.jobs = 2
    found = beside(*[{**check, "timeout": 1} for check in together("c1", "c2", "c3")])
    assert "timeout" in [verdict.verdict for verdict in found.values()]


def test_the_order_of_the_verdicts_is_that_of_the_mission_whoever_ends_first(beside):
    found = beside("read x < one; echo late", "read x < two; echo x > one", "echo x > two; exit 1")
    assert [(id, verdict.verdict) for id, verdict in found.items()] == [("c1", "met"), ("c2", "met"), ("c3", "unmet")]


def test_what_wants_to_be_alone_runs_beside_no_other(beside):
    alone = {"check": "echo begin alone >> order; echo end alone >> order", "exclusive": True}
    found = beside(*together("a", "b", "c"), alone, *together("d", "e", "f"))
    assert dod.all_met(found.values())
    lines = (beside.root / "order").read_text().splitlines()
    assert lines[6:8] == ["begin alone", "end alone"]
    assert {line.split()[1] for line in lines[:6]} == {"a", "b", "c"}


def test_one_that_takes_too_long_does_not_disturb_the_others(beside):
    """The second one ends when the first one is gone."""
    slow, other = {"check": "exec 9> one; exec sleep 300", "timeout": 1}, "cat one; echo still here"
    found = beside(slow, other)
    assert [verdict.verdict for verdict in found.values()] == ["timeout", "met"]
    assert found["c2"].tail == "still here\n"


def test_what_each_of_them_leaves_behind_is_put_down_to_it(beside):
    left = "{leave} sleep {n} & until grep -qsx sleep /proc/$!/comm; do :; done; "
    meet = [check["check"] for check in together("c1", "c2", "c3")]
    found = beside(
        left.format(leave="", n=301) + meet[0], left.format(leave="exec setsid", n=302) + meet[1], meet[2] + "; exit 1"
    )
    assert [re.findall(r"sleep \d+", verdict.tail) for verdict in found.values()] == [["sleep 301"], ["sleep 302"], []]
    assert [verdict.verdict for verdict in found.values()] == ["met", "met", "unmet"]


def test_each_of_them_is_run_again_by_itself(beside):
    again = {"check": "echo x >> {0}; test $(wc -l < {0}) -ge 2", "retries": 1}
    found = beside(*[{**again, "check": again["check"].format(f"runs-{n}")} for n in range(3)], "exit 1")
    assert [(verdict.verdict, verdict.flaky, verdict.runs) for verdict in found.values()] == [
        ("met", True, 4),
        ("met", True, 4),
        ("met", True, 4),
        ("unmet", False, 1),
    ]


# Protected files


class Referee:
    """A protected file, looked at and put back as the kit does it."""

    def __init__(self, root: Path):
        self.file, self.looks = root / "protected", 0
        self.file.write_text("as it was\n")

    def broken(self) -> list[str]:
        self.looks += 1
        if self.file.read_text() == "as it was\n":
            return []
        self.file.write_text("as it was\n")
        return ["protected (changed)"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_check_that_changes_what_is_protected_is_tampered_whatever_its_exit_code(checks, code):
    referee = Referee(checks.root)
    intact = "grep -qx 'as it was' protected"
    found = checks(intact, f"echo said; echo x > protected; exit {code}", intact, broken=referee.broken)
    assert [verdict.verdict for verdict in found.values()] == ["met", "tampered", "met"]
    assert found["c2"].tail == "said\n\n[what is protected was changed: protected (changed)]"
    assert found["c2"].code == code
    assert not dod.all_met(found.values())
    assert referee.looks == 3  # after each


def test_those_that_ran_beside_a_change_are_tampered_too_and_later_ones_are_not(beside):
    referee = Referee(beside.root)
    changing, witness = "exec 9> one; echo x > protected", "cat one"
    found = beside(changing, witness, {"check": "true", "exclusive": True}, broken=referee.broken)
    assert [verdict.verdict for verdict in found.values()] == ["tampered", "tampered", "met"]


def test_an_error_of_the_referee_ends_everything(beside):
    def fail() -> list[str]:
        raise repo.GitError("no git today")

    with pytest.raises(repo.GitError):
        beside("true", "exec sleep 300", "exec sleep 300", broken=fail)


@walls
def test_within_walls_a_check_can_neither_change_what_is_sealed_nor_see_what_is_hidden(checks):
    for name in ("sealed", "hidden"):
        (checks.root / name).mkdir()
        (checks.root / name / "file").write_text("as it was\n")
    inside = sandbox.Walls(checks.root, (checks.root / "sealed",), (checks.root / "hidden",), (), network=False)
    found = checks(
        "cat sealed/file; echo evil > sealed/file", "rm -rf sealed", "mv sealed away", "cat hidden/file", walls=inside
    )
    assert [verdict.verdict for verdict in found.values()] == ["unmet"] * 4
    assert found["c1"].tail.startswith("as it was\n")
    assert "Read-only file system" in found["c1"].tail
    assert "No such file" in found["c4"].tail
    assert (checks.root / "sealed" / "file").read_text() == "as it was\n"


@walls
def test_what_a_check_puts_into_its_tmp_is_gone_also_without_the_right_to_remove_it(checks, scratch):
    keep = "echo x > /tmp/kept; mkdir -p $TMPDIR/a/b; touch /tmp/a/b/c; chmod -R 000 /tmp/a; echo $TMPDIR"
    assert checks.one(keep).tail == "/tmp\n"
    assert checks.one("test -e /tmp/kept").verdict == "unmet"


# What it may use


@either
@pytest.mark.parametrize(
    ("cap", "value", "check", "said"),
    [
        ("cpu", 0.3, "while :; do :; done", "it used more processor time than checks.cpu allows"),
        ("memory", 60_000_000, "python3 -c 'x = b\"x\" * 10**8; input()' < one", "memory than checks.memory"),
        ("processes", 20, "for n in $(seq 30); do sleep 300 & done; wait", "processes than checks.processes"),
        ("file_size", 5_000_000, "head -c 6000000 /dev/zero > big", "larger file than checks.file_size allows"),
        ("file_size", 5_000_000, "head -c 6000000 /dev/zero > big; exit", "larger file than checks.file_size allows"),
        ("file_size", 5_000_000, 'python3 -c \'open("big", "wb").write(bytes(10**7))\'', "file than checks.file_size"),
    ],
    ids=["cpu", "memory", "processes", "a file", "a file of a child", "a file of a program that is told"],
)
def test_a_check_that_goes_beyond_a_cap_is_unmet_and_its_output_names_the_setting(checks, cap, value, check, said):
    if cap == "memory":
        os.mkfifo(checks.root / "one")
        check = f"exec 9<> one; {check}"
    setattr(checks.settings, cap, value)
    found = checks.one(check)
    assert found.verdict == "unmet"
    assert said in found.tail
    assert found.tail == checks.output()


def test_a_check_below_its_caps_and_one_without_any_are_left_alone(checks):
    assert checks.one("head -c 6000000 /dev/zero > big; sleep 0 & wait").tail == ""
    for cap in ("cpu", "memory", "processes", "file_size"):
        setattr(checks.settings, cap, None)
    assert checks.one("head -c 6000000 /dev/zero > big").tail == ""


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
        self, *criteria: str | dict[str, Any], setup: str | None = None, head: str = "HEAD", **place: Any
    ) -> tuple[Verdict | None, dict[str, Verdict]]:
        asked = mission_of(self.checks.root, *criteria, **({"setup": setup} if setup else {}))
        git = repo.Repo(self.checks.root)
        self.folder.mkdir()
        try:
            clean = checkout.Clean(git, self.git(self.checks.root, "rev-parse", head) if head else "", self.folder)
            return dod.confirm(asked, asked.criteria, self.checks.place(root=clean.root, **place), clean)
        finally:
            checkout.delete(self.folder)
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
    assert (setup.verdict, setup.code, setup.tail) == ("met", 0, f"{confirm.folder.resolve()}/tree\n")
    assert [(verdict.verdict, verdict.where) for verdict in found.values()] == [("met", "checkout")] * 2
    assert found["c2"].tail == "yes\n"
    assert confirm.checks.output("setup") == setup.tail
    assert not (confirm.checks.root / "made").exists()


@pytest.mark.parametrize(
    ("command", "verdict"), [("echo no lock file; exit 3", "unmet"), ("no-such-program", "broken")]
)
def test_a_setup_that_fails_makes_everything_unmet_and_is_the_reason(confirm, command, verdict):
    setup, found = confirm("touch ran; true", "exit 1", setup=command, why="\n[The reason.]")
    assert setup.verdict == verdict
    for id in ("c1", "c2"):
        assert (found[id].verdict, found[id].where, found[id].code) == ("unmet", "checkout", None)
        assert found[id].tail.startswith(f"`setup` fails ({verdict}), so nothing can be checked there.\n")
        assert found[id].tail.endswith(setup.tail)
        assert dod.last_output(id, confirm.checks.folder) == found[id].tail
    assert not (confirm.checks.root / "ran").exists()


def test_without_setup_nothing_is_proven_of_it(confirm):
    setup, found = confirm("true")
    assert (setup, found["c1"].verdict) == (None, "met")


IGNORED = {".gitignore": "ignored*\nmade*\n", "tracked": "as it was\n"}
AS_IT_WAS = "test ! -e {0} && grep -qx 'as it was' tracked && test -e made/deep && git diff --quiet HEAD"


@either
@pytest.mark.parametrize(
    ("does", "leaves"),
    [
        ("touch new", "new"),
        ("touch ignored", "ignored"),
        ("mkdir -p a/b; touch a/b/new; chmod 000 a", "a"),
        ("mkdir ignored; touch ignored/new", "ignored"),
        ("git init -q inner", "inner"),
        ("ln -s /etc link", "link"),
        ("rm tracked", "new"),
        ("echo other > tracked", "new"),
        ("rm tracked; mkdir tracked; touch tracked/new", "tracked/new"),
    ],
)
def test_each_check_finds_the_checkout_as_setup_left_it(confirm, does, leaves):
    confirm.commit(**IGNORED)
    setup = "mkdir made; touch made/deep made2"
    found = confirm(does, AS_IT_WAS.format(leaves), AS_IT_WAS.format(leaves), setup=setup)[1]
    assert dod.all_met(found.values()), found


@pytest.mark.parametrize(
    "does",
    ["touch made/new", "mkdir made/empty", "echo worse > made/deep", "rm made/deep", "rm -rf made", "mkfifo pipe"],
)
def test_not_even_in_what_setup_made_does_a_check_find_what_another_one_did(confirm, does):
    confirm.commit(**IGNORED)
    as_it_was = 'test "$(echo $(find made pipe 2>/dev/null | sort))" = "made made/deep" && test ! -s made/deep'
    found = confirm(does, as_it_was, setup="mkdir made; touch made/deep")[1]
    assert dod.all_met(found.values()), found


def test_what_a_check_commits_is_not_there_for_the_next_one(confirm):
    confirm.commit(**IGNORED)
    sneaks = "echo other > tracked; git -c user.name=x -c user.email=x@y commit -qam sneaked"
    assert dod.all_met(confirm(sneaks, "grep -qx 'as it was' tracked")[1].values())


def test_of_no_commit_an_empty_folder_is_checked(confirm):
    found = confirm("touch made", 'test -z "$(ls -A)"', head="")[1]
    assert [verdict.verdict for verdict in found.values()] == ["met", "met"]


@pytest.mark.parametrize(
    ("pattern", "verdict", "flaky"),
    [("P", "met", False), ("FF", "unmet", False), ("FPPP", "met", True), ("FPF", "flaky", True)],
)
def test_a_second_look_tells_a_check_that_fails_there_from_one_that_fails_now_and_then(
    confirm, pattern, verdict, flaky
):
    found = confirm(following(pattern, confirm.folder.parent / "runs"), why="\n[The reason.]")[1]["c1"]
    assert (found.verdict, found.flaky, found.runs, found.where) == (verdict, flaky, len(pattern), "checkout")
    assert found.tail.endswith("[The reason.]") is (verdict != "met")


def test_what_setup_did_to_tracked_files_and_to_git_is_there_for_every_check(confirm):
    confirm.commit(**IGNORED, deleted="x\n")
    setup = "pwd > tracked; rm deleted; git config a.b c; git tag of-setup; mkdir -m 555 made"
    as_set_up = (
        'test "$(cat tracked)" = "$PWD" && test ! -e deleted && test "$(git config a.b)" = c && git show -s of-setup'
    )
    spoils = f"{as_set_up} && echo x > tracked && git config a.b d && git tag -d of-setup && chmod 755 made"
    verdicts = confirm(spoils, as_set_up, spoils, as_set_up, setup=f"{setup}; echo x >> '{confirm.folder}.setups'")[1]
    assert dod.all_met(verdicts.values()), verdicts
    assert Path(f"{confirm.folder}.setups").read_text() == "x\n"


def test_nothing_that_a_check_does_to_git_runs_when_the_checkout_is_reset(confirm):
    confirm.commit(**IGNORED)
    proof = f"{confirm.folder}.escaped"
    evil = f"git config filter.x.smudge \"touch '{proof}'; cat\"; git config core.fsmonitor \"touch '{proof}'; false\""
    evil += "; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes; rm tracked"
    assert dod.all_met(confirm(evil, "grep -qx 'as it was' tracked", "rm -rf .git", "git status")[1].values())
    assert not os.path.exists(proof)


@pytest.mark.parametrize("retries", [0, 3])
def test_what_passes_only_on_what_its_first_run_left_is_not_met(confirm, retries):
    confirm.commit(**IGNORED)
    check = {"check": "test -e made && exit 0; touch made; exit 1", "retries": retries}
    assert confirm(check)[1]["c1"].verdict == "unmet"


def test_what_is_suspected_needs_three_passes_there_too_and_setup_does_not(confirm):
    setup, found = confirm("true", setup="echo x", suspects=frozenset(["c1", "setup"]))
    assert (setup.runs, found["c1"].runs) == (1, 3)


# What proves nothing


@pytest.fixture
def empty(checks, tmp_path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def proves_nothing(checks: Checks, empty: Path, check: str, *referee: tuple[Path, str], retries: int = 0) -> str:
    criterion = mission_of(checks.root, {"check": check, "retries": retries}).criteria[0]
    return dod.proves_nothing(criterion, checks.place(root=empty), referee)


@either
@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("true", "it passes in an empty folder too"),
        ("test ! -e src/broken.py", "it passes in an empty folder too"),
        ("touch made", "it passes in an empty folder too"),
        ("test -f README.md", ""),
        ("! grep -r nothing README.md && test -s README.md", ""),
        ("grep -rq hello .", "it passes where there is nothing but the mission and the kit"),
        ("grep -q hello plan/work.yaml", "it passes where there is nothing but the mission and the kit"),
        ("grep -rq 'what a check may use' .", "it passes where there is nothing but the mission and the kit"),
        ("test -e kit/.secret -o -e kit/__pycache__", ""),
    ],
)
def test_a_check_that_passes_without_the_repository_proves_nothing(checks, empty, tmp_path, check, reason):
    kit, plan = tmp_path / "kit", tmp_path / "work.yaml"
    (kit / "__pycache__").mkdir(parents=True)
    (kit / ".secret").touch()
    (kit / "dod.py").write_text("# what a check may use\n")
    plan.write_text("check: grep -rq hello .\n")
    given = [(plan, "plan/work.yaml"), (kit, "kit"), (tmp_path / "missing", "missing")]
    found = proves_nothing(checks, empty, check, *given)
    assert found.startswith(reason) and bool(found) is bool(reason)


def test_a_check_that_fails_in_an_empty_folder_proves_something_where_the_referee_is_elsewhere(checks, empty):
    assert proves_nothing(checks, empty, "grep -rq hello .") == ""


def test_luck_in_an_empty_folder_is_not_waited_for(checks, empty):
    assert proves_nothing(checks, empty, "test -e ran || { touch ran; false; }", retries=5) == ""
    assert (empty / "nothing" / "ran").exists()


# The same failure again


def failure(text: str, verdict: str = "unmet", code: int | None = 1) -> str:
    return dod.failure(Verdict("c1", verdict, code, tail=text))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 3 s", "took 1200 s"),
        ("took 1 s", "took 1.25 s"),
        ("1,000 rows", "7 rows"),
        ("loss 1e-05", "loss 0.25"),
        ("at 09:59:59", "at 10:00:01"),
        ("at 2026-11-21T07:34:11.123456Z", "at 2027-01-02T23:59:00Z"),
        ("in /tmp/tmpab3x_9/x.log", "in /var/folders/zz/T/y.log"),
        ("<object at 0x7f3a2c>", "<object at 0xdeadbeef01>"),
        ("at commit 8ff6fc9", "at commit c52e0cbf9bf9784fe12be9533b231138a98cc277"),
        (f"sha256 {'ab' * 32}", f"sha256 {'0c' * 32}"),
        ("id 550e8400-e29b-41d4-a716-446655440000", "id c0ffee00-dead-4bad-8f00-abcdefabcdef"),
        ("http://127.0.0.1:41234/x", "http://127.0.0.1:9/x"),
    ],
)
def test_a_failure_is_the_same_though_numbers_paths_and_times_differ(one, other):
    assert failure(one) == failure(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (failure("NameError: x"), failure("TypeError: x")),
        (failure("x", code=1), failure("x", code=2)),
        (failure("x", "unmet"), failure("x", "broken")),
        (failure("x", "unmet", -9), failure("x", "timeout", -9)),
        (failure("1 passed"), failure("1 passed\n1 failed")),
        (failure(""), failure("now it says something")),
    ],
)
def test_failures_that_differ_are_told_apart(one, other):
    assert one != other


def test_what_is_met_is_no_failure():
    assert failure("0 failed", "met", 0) == ""


def test_a_long_failure_is_the_same_although_its_numbers_are_longer(checks):
    """The tail then begins at another line."""
    lines = "seq -f 'case %.0f took {took} ms' 300; exit 1"
    short, long = checks.one(lines.format(took=7)), checks.one(lines.format(took=1234567))
    assert len(short.tail.splitlines()) != len(long.tail.splitlines())
    assert dod.failure(short) == dod.failure(long)


def test_a_long_failure_that_ends_differently_is_another_one(checks):
    one, other = (checks.one(f"seq 3000; echo {word}; exit 1") for word in ("red", "blue"))
    assert dod.failure(one) != dod.failure(other)
