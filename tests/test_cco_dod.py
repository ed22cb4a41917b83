"""Checks: what they prove, what they may see, and what is left of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, until

import dod
import log
import processes
from dod import Verdict
from mission import Mission, parse

SECRET = "correct-horse-battery-staple"
KIT_ALONE = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import dod, log, mission, os, proc
proc.catch_signals()
log.know(os.environ)
root, folder = Path(sys.argv[2]), Path(sys.argv[3])
try:
    for id, verdict in dod.check(mission.load(root / "mission.json"), root, folder, "a-run").items():
        print(id, verdict.verdict)
except proc.Interrupted:
    print("interrupted")
"""


def mission_of(root: Path, *criteria: str | dict[str, Any]) -> Mission:
    """A mission with these criteria: c1, c2, ...; a text is a check."""
    given = [{"check": c} if isinstance(c, str) else c for c in criteria]
    entries = [{"id": f"c{n}", "criteria": f"number {n}", **entry} for n, entry in enumerate(given, 1)]
    text = json.dumps({"title": "a mission", "repository": str(root), "definition_of_done": entries})
    return parse(text, root / "mission.json")


class Checks:
    """Checks run in a project; the outputs are in `folder`."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder

    def __call__(self, *criteria: str | dict[str, Any]) -> dict[str, Verdict]:
        return dod.check(mission_of(self.root, *criteria), self.root, self.folder, "a-run")

    def one(self, check: str, **more: Any) -> Verdict:
        return self({"check": check, **more})["c1"]

    def output(self, id: str = "c1") -> str:
        return (self.folder / f"{id}.log").read_bytes().decode("utf-8")


@pytest.fixture
def checks(project, tmp_path) -> Checks:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return Checks(project, folder)


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


@pytest.mark.parametrize(
    ("check", "verdict", "code"),
    [
        ("true", "met", 0),
        ("echo all good; exit 0", "met", 0),
        ("exit 1", "unmet", 1),
        ("exit 125", "unmet", 125),
        ("exit 255", "unmet", 255),
        ("kill -KILL $$", "unmet", -9),
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
    assert (found.verdict, found.code) == (verdict, code)
    assert dod.all_met([found]) is (verdict == "met")


def test_a_verdict_carries_code_duration_digest_and_the_end_of_the_output(checks):
    found = checks.one("echo first; echo last >&2; exit 7")
    assert (found.id, found.code, found.tail) == ("c1", 7, "first\nlast\n")
    assert found.digest == hashlib.sha256(b"first\nlast\n").hexdigest()
    assert 0 <= found.seconds < 20


def test_a_check_that_cannot_be_started_is_broken_and_says_why(checks):
    shutil.rmtree(checks.root)
    found = checks.one("true")
    assert (found.verdict, found.code) == ("broken", None)
    assert "could not be started" in found.tail
    assert "a project" in found.tail


def test_without_any_shell_a_check_is_broken(checks, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checks.one("true")
    assert (found.verdict, found.code) == ("broken", None)
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


def test_a_check_that_takes_too_long_is_a_timeout_and_says_so(checks):
    found = checks.one("echo begun; exec sleep 300", timeout=1)
    assert found.verdict == "timeout"
    assert found.tail.startswith("begun\n")
    assert "it took too long" in found.tail
    assert 1 <= found.seconds < 20


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


@pytest.mark.parametrize(
    ("retries", "verdict", "runs"), [(0, "unmet", 1), (1, "unmet", 2), (2, "met", 3), (9, "met", 3)]
)
def test_a_failing_check_is_run_again_as_often_as_the_mission_allows(checks, retries, verdict, runs):
    found = checks.one("echo x >> runs; test $(wc -l < runs) -ge 3", retries=retries)
    assert found.verdict == verdict
    assert (checks.root / "runs").read_text() == "x\n" * runs


def test_what_is_kept_is_the_output_of_the_last_try(checks):
    assert checks.one("echo x >> runs; wc -l < runs; test $(wc -l < runs) -ge 2", retries=5).tail.strip() == "2"
    assert checks.output().strip() == "2"


# Where it runs, and what it sees


def test_a_check_runs_in_the_root_of_the_repository_though_its_path_has_a_space(checks):
    assert checks.one("pwd -P; test -f README.md").tail == f"{checks.root.resolve()}\n"


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
    assert "CCO_RUN=a-run\n" in seen


def run_alone(checks: Checks, env: dict[str, str]) -> subprocess.Popen[str]:
    """The checks of mission.json in a kit of their own, as one process."""
    argv = [sys.executable, "-c", KIT_ALONE, str(KIT), str(checks.root), str(checks.folder)]
    return subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not processes.LINUX, reason="there is no /proc")
def test_a_check_that_digs_the_key_out_of_the_kits_process_finds_it_masked_in_what_is_kept(checks):
    check = "echo mine: $OPENROUTER_API_KEY; tr '\\0' '\\n' < /proc/$PPID/environ | grep OPENROUTER_API_KEY"
    (checks.root / "mission.json").write_text(mission_of(checks.root, check).text)
    with run_alone(checks, {"OPENROUTER_API_KEY": SECRET}) as kit:
        assert kit.communicate(timeout=30)[0] == "c1 met\n"
    assert checks.output() == "mine:\nOPENROUTER_API_KEY=***\n"


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


def test_binary_output_is_kept_as_text(checks):
    found = checks.one(r"printf 'a\377\000\033[31mb\n'; head -c 100000 /dev/urandom; exit 1")
    assert found.verdict == "unmet"
    assert checks.output().startswith("a\N{REPLACEMENT CHARACTER}\0\033[31mb\n")
    assert checks.output().endswith(found.tail)
    json.dumps(found.tail).encode("utf-8")


def test_each_run_replaces_the_output_of_the_one_before(checks):
    checks.one("seq 100")
    checks.one("echo short")
    assert checks.output() == "short\n"


def test_what_never_ran_has_no_last_output(checks):
    assert dod.last_output("c1", checks.folder) == ""


@pytest.mark.parametrize("check", ["yes", "head -c 50000 /dev/zero | tr '\\0' y"])
def test_a_check_that_prints_more_than_the_limit_is_unmet_however_fast_it_prints(checks, monkeypatch, check):
    monkeypatch.setattr(dod, "MAX_OUTPUT", 10_000)
    found = checks.one(check)
    assert found.verdict == "unmet"
    assert found.tail.endswith("[it printed more than 10000 bytes]")
    assert len(checks.output()) < 10_100


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
    assert re.match(r"the output\n\n\[ended what it left behind \([3-9]\d\): ", found.tail)
    assert len(found.tail) < 800


def test_a_failure_is_the_same_whatever_processes_it_leaves_behind():
    notes = ("(1): sleep 300", "(2): bash -c sleep 300; sleep 300")
    one, other = (failure(f"it failed\n\n[ended what it left behind {note}]") for note in notes)
    assert one == other != failure("it failed")


def test_a_signal_raises_interrupted_ends_the_check_and_proves_nothing(checks):
    check = {"check": "echo $$ > pid.new; mv pid.new pid; exec sleep 300", "retries": 3}
    (checks.root / "mission.json").write_text(mission_of(checks.root, check, "touch second-ran").text)
    with run_alone(checks, {}) as kit:
        until((checks.root / "pid").exists, "the check runs")
        kit.send_signal(signal.SIGTERM)
        assert kit.communicate(timeout=30)[0] == "interrupted\n"
    assert gone(int((checks.root / "pid").read_text()))
    assert not (checks.root / "second-ran").exists()
    assert not list(checks.folder.iterdir())


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
