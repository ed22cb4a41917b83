"""The fault list: each thing that a worker can do wrong, once, through the real command line.

Only claude is a stand-in (extras/claude_stand_in.py). Two of the kit's own times are too long for a test: the minute
that claude may live on after its result, and the ten seconds between SIGTERM and SIGKILL. They are constants of its
modules and no settings, so where they matter the kit is started by a script that sets them and then calls `cco.main`
(`hurried`). Where hours pass, that script brings the clock too: `time.time` is ahead by what was waited so far, and
`proc.pause` puts it forward at once (`Clock`). The kit has no hook for either.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, until

from extras.claude_stand_in import cost, moment

WORK: list[dict[str, Any]] = [{"write": {"a": "1\n", "b": "1\n"}}, {"say": "both are there"}]
MARGIN = 60.0  # seconds waited after a limit's reset
JITTER = 60.0  # seconds, at most, on top of that
PATIENCE = 60.0  # seconds within which every start here has to end, on a machine with other work
INSTANT = 0.1  # of a back-off, at most, on top of it
LATE = 5.0  # seconds that a start may take until it waits
RETRIES = 3  # of a session that crashed, then the iteration is closed
STEPS = (30, 60, 120, 300, 600, 1800)  # seconds of the back-off, as documented


# --------------------------------------------------------------------------------------------------------
# What is looked at
# --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_left(bench):
    """Whatever the worker did: no process of the mission is there afterwards."""
    yield
    left = bench.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def start(bench: Bench, *args: str) -> subprocess.CompletedProcess[str]:
    """A start that ends in bounded time, and leaves no process."""
    done = bench.run("start", str(bench.mission), *args, timeout=PATIENCE)
    assert not bench.alive()
    return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def counted(bench: Bench) -> dict[str, Any]:
    """The phase and what the state has counted; the kinds of its errors, oldest first."""
    state = bench.state()
    return {
        "phase": state["current_phase"],
        "iterations": state["iterations"],
        "stalls": max(known["stalls"] for known in state["criteria"].values()),
        "errors": [error["message"].partition(":")[0] for error in state["errors"]],
        "sessions": state["metrics"]["session_count"],
    }


def count(phase: str, iterations: int = 1, stalls: int = 0, errors: tuple[str, ...] = (), sessions: int = 1) -> Any:
    """What `counted` shall be."""
    return {"phase": phase, "iterations": iterations, "stalls": stalls, "errors": [*errors], "sessions": sessions}


def spent(bench: Bench) -> float:
    """What the state says that the mission has cost."""
    return float(bench.state()["metrics"]["estimated_cost"])


def charged(bench: Bench) -> float:
    """The same from the stand-in's own books, all sessions together."""
    return sum(cost(json.loads(book.read_text())) for book in Path(f"{bench.script}.sessions").iterdir())


def commits(bench: Bench, git: Any) -> list[str]:
    """The iterations that have a commit, oldest first."""
    form = "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)"
    return str(git(bench.project, "log", "--reverse", form, "main..cco/demo")).split()


def models(bench: Bench) -> list[str]:
    """The model that each session was started with, "" where that was left to claude."""
    words = ([word for word in call["argv"] if word.startswith("--model=")] for call in bench.calls())
    return [found[0].partition("=")[2] if found else "" for found in words]


def waits_for(bench: Bench, seconds: float, extra: float, before: float) -> None:
    """The state waits for so long, counted from `before`, and at most for `extra` more."""
    wait = bench.state()["wait_until"] - before
    assert seconds <= wait <= seconds + extra + LATE, f"it waits {wait} s, not {seconds} to {seconds + extra}"


def over(bench: Bench) -> None:
    """The time of the wait comes."""
    bench.remember({**bench.state(), "wait_until": time.time()})


def ticks_in_vain(bench: Bench) -> None:
    """What cron does while the mission waits: it ends at once and starts no session."""
    before, sessions = counted(bench), len(bench.calls())
    assert start(bench, "--no-wait").returncode == 75
    assert (counted(bench), len(bench.calls())) == (before, sessions)


def set_claude(bench: Bench, **claude: Any) -> None:
    bench.write(TWO_CRITERIA, settings={"claude_code": claude})


def running(command: str) -> list[int]:
    """The processes with exactly this command line, whatever their environment says."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")[:-1] if entry.name.isdigit() else []
        except OSError:  # it ended meanwhile
            continue
        if words == command.encode().split():
            found.append(int(entry.name))
    return found


@pytest.fixture
def sleeper():
    """A command of its own for each test that is told apart from all others, and that is gone afterwards."""
    command = f"sleep {10_000_000 + os.getpid()}"
    yield command
    for pid in running(command):
        os.kill(pid, signal.SIGKILL)


HURRIED = """
import sys

sys.path.insert(0, {kit!r})
import processes

processes.GRACE = 1.0  # before `proc` takes it for its default
import proc
import stream

stream.LINGER = 1.0
{more}
import cco

code = cco.main(sys.argv[1:])
with open("/proc/self/status") as status, open({folder!r} + "/peak", "w") as peak:
    peak.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
sys.exit(code)
"""

CLOCK = """
import os
import time

real, waits, used = time.time, open({folder!r} + "/waits", "a+", buffering=1), {script!r} + ".used"
waits.seek(0)
ahead = sum(float(line.split()[1]) for line in waits)


def pause(seconds):
    global ahead
    ahead += seconds
    waits.write("%d %r\\n" % (os.path.getsize(used) if os.path.exists(used) else 0, seconds))
    return not proc.stopping


time.time = lambda: real() + ahead
proc.pause = pause
"""


def hurried(bench: Bench, more: str = "") -> Path:
    """From here on the kit is started with short times; the folder of that script. more: lines before it starts."""
    folder = bench.folder / "hurried"
    folder.mkdir(exist_ok=True)
    bench.kit = folder
    (folder / "cco.py").write_text(HURRIED.format(kit=str(KIT), folder=str(folder), more=more))
    return folder


def peak(bench: Bench) -> float:
    """The most memory that the last hurried start had, in MB: VmHWM of /proc/PID/status."""
    return int((bench.kit / "peak").read_text()) / 1000


class Clock:
    """A clock that every wait of the kit puts forward at once, over all its starts."""

    def __init__(self, bench: Bench):
        folder = bench.folder / "hurried"
        hurried(bench, CLOCK.format(folder=str(folder), script=str(bench.script)))
        self.file = folder / "waits"  # one line for each: how many sessions there were before it, and its seconds
        self.file.touch()

    def lines(self) -> list[tuple[str, float]]:
        words = (line.split() for line in self.file.read_text().splitlines())
        return [(sessions, float(seconds)) for sessions, seconds in words]

    def now(self) -> float:
        return time.time() + sum(seconds for _, seconds in self.lines())

    def skip(self, seconds: float) -> None:
        """Let time go by while nothing runs."""
        with self.file.open("a") as file:
            print("nobody", seconds, file=file)

    def waits(self) -> list[float]:
        """How long was waited after each session that was waited after, in seconds."""
        after: defaultdict[str, float] = defaultdict(float)
        for sessions, seconds in self.lines():
            after[sessions] += seconds * (sessions != "nobody")
        return [wait for wait in after.values() if wait]


# --------------------------------------------------------------------------------------------------------
# No session at all
# --------------------------------------------------------------------------------------------------------


def test_claude_missing(bench, project, git):
    set_claude(bench, command="no-such-claude")
    done = start(bench)
    assert done.returncode == 4
    assert "no-such-claude" in said(done) and "Install it" in said(done)
    assert not (project / ".cco" / "demo.json").exists()  # nothing is begun that could be counted
    assert git(project, "branch", "--show-current") == "main"
    bench.write(TWO_CRITERIA)
    bench.sessions(WORK)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed")


def test_claude_missing_in_the_middle_of_a_mission(bench, git, tmp_path):
    program = tmp_path / "bin" / "claude"
    program.parent.mkdir()
    shutil.copy(KIT / "extras" / "claude_stand_in.py", program)
    set_claude(bench, command=str(program))
    bench.sessions([*WRITES_A, {"bash": f"mv '{program}' '{program}.away'"}], [{"write": {"b": "1\n"}}])
    done = start(bench)
    assert done.returncode == 4
    assert "Install it" in said(done)
    assert counted(bench) == count("execution", iterations=2)
    assert start(bench).returncode == 4  # and again, without counting anything
    assert counted(bench) == count("execution", iterations=2)
    program.with_suffix(".away").rename(program)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", iterations=2, sessions=2)
    assert (len(bench.calls()), commits(bench, git)) == (2, ["1", "2"])
    assert spent(bench) == pytest.approx(charged(bench))


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 0\n", "#!/no/such/interpreter\n", "no program\n"])
def test_claude_not_executable(bench, project, tmp_path, text):
    program = tmp_path / "claude"
    program.write_text(text)
    program.chmod(0o644 if "sh" in text else 0o755)  # the first may not be run, the others cannot be
    set_claude(bench, command=str(program))
    for _ in range(2):
        done = start(bench)
        assert done.returncode == 4
        assert "install" in said(done).lower() and str(program) in said(done)
        if program.stat().st_mode & stat.S_IXUSR:
            seen = counted(bench)
            assert (seen["phase"], seen["iterations"], seen["stalls"]) == ("execution", 1, 0)
        else:
            assert not (project / ".cco" / "demo.json").exists()
    bench.write(TWO_CRITERIA)
    bench.sessions(WORK)
    done = start(bench)
    assert done.returncode == 0, said(done)
    seen = counted(bench)
    assert (seen["phase"], seen["iterations"], seen["stalls"]) == ("completed", 1, 0)
    assert spent(bench) == pytest.approx(charged(bench))


# --------------------------------------------------------------------------------------------------------
# Sessions that die
# --------------------------------------------------------------------------------------------------------

DEATHS: dict[str, list[dict[str, Any]]] = {
    "exit 0 without a word": [{"init": False}, {"exit": 0}],
    "exit 1 after the first line": [{"init": True}, {"exit": 1}],
    "an empty success": [{"result": {"result": "", "num_turns": 0}}],
    "exit 143": [{"init": False}, {"exit": 143}],
    "SIGTERM": [{"init": False}, {"signal": 15}],
    "SIGKILL": [{"init": True}, {"signal": 9}],
    "SIGSEGV": [{"init": False}, {"signal": 11}],
}


def test_exit_1_at_once(bench, git):
    bench.sessions(*[[{"init": False}, {"stderr": "no such file"}, {"exit": 1}]] * RETRIES, WORK)
    for failures, wait in enumerate(STEPS[:RETRIES], 1):
        before = time.time()
        done = start(bench, "--no-wait")
        assert done.returncode == 75, said(done)
        assert counted(bench) == count("waiting", errors=("crashed",) * failures, sessions=failures)
        assert len(bench.calls()) == failures
        waits_for(bench, wait, INSTANT * wait, before)
        ticks_in_vain(bench)
        over(bench)
    done = start(bench, "--no-wait")
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", errors=("crashed",) * RETRIES, sessions=RETRIES + 1)
    assert (len(bench.calls()), commits(bench, git)) == (RETRIES + 1, ["1"])
    assert spent(bench) == pytest.approx(charged(bench))


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
def test_every_other_death_at_once_and_without_a_turn(bench, git, death):
    bench.sessions(death, WORK)
    before = time.time()
    done = start(bench, "--no-wait")
    assert done.returncode == 75, said(done)
    assert counted(bench) == count("waiting", errors=("crashed",))
    assert len(bench.calls()) == 1
    waits_for(bench, 30, INSTANT * 30, before)
    over(bench)
    done = start(bench, "--no-wait")
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", errors=("crashed",), sessions=2)
    assert (len(bench.calls()), commits(bench, git)) == (2, ["1"])
    assert spent(bench) == pytest.approx(charged(bench))


def test_crashes_in_a_row_close_the_iteration_and_what_was_done_before_them_is_kept(bench, git):
    bench.sessions([*WRITES_A, {"exit": 1}], *[[{"exit": 1}]] * RETRIES, [{"write": {"b": "1\n"}}])
    clock = Clock(bench)
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert len(clock.waits()) == RETRIES
    assert counted(bench) == count("completed", 2, errors=("crashed",) * (RETRIES + 1), sessions=RETRIES + 2)
    assert [(entry["iteration"], entry["met"]) for entry in bench.state()["history"]] == [(1, 1), (2, 2)]
    assert commits(bench, git) == ["1", "2"]
    assert bench.resumed() == [False, *[True] * RETRIES, False]  # the session that only crashes is given up


def test_a_claude_that_dies_at_once_for_ever_ends_with_a_question_and_is_no_hot_loop(bench):
    clock = Clock(bench)
    bench.sessions(*[[{"init": False}, {"stderr": "no such file"}, {"exit": 1}]] * 200)
    done = start(bench)
    assert done.returncode == 3, said(done)
    sessions, seen = len(bench.calls()), counted(bench)
    assert (seen["phase"], seen["sessions"]) == ("blocked", sessions)
    assert sessions == (RETRIES + 1) * seen["iterations"] < 50
    waits = clock.waits()
    assert len(waits) == RETRIES * seen["iterations"]
    for wait, step in zip(waits, [*STEPS[:RETRIES]] * seen["iterations"], strict=True):
        assert step - LATE <= wait <= step * (1 + INSTANT) + LATE
    assert "no such file" in said(done)
    assert start(bench).returncode == 3
    assert len(bench.calls()) == sessions


def test_no_result_line(bench, git):
    bench.sessions([*WRITES_A, {"exit": 0}], [{"write": {"b": "1\n"}}])
    before = time.time()
    done = start(bench, "--no-wait")
    assert done.returncode == 75
    assert "without a result" in said(done)
    assert counted(bench) == count("waiting", errors=("crashed",))
    waits_for(bench, 30, 3, before)
    ticks_in_vain(bench)
    over(bench)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("crashed",), sessions=2)
    assert (bench.resumed(), commits(bench, git)) == ([False, True], ["1"])  # the work before it is in that commit too
    assert spent(bench) == pytest.approx(charged(bench))  # the second run's result tells what both have cost


@pytest.mark.parametrize("end", ["", "\n"], ids=("without its end", "with its end"))
def test_a_result_cut_in_half(bench, git, end):
    half = '{"type": "result", "subtype": "success", "is_error": false, "result": "All is do'
    bench.sessions([*WRITES_A, {"raw": half, "end": end}, {"exit": 0}], [{"write": {"b": "1\n"}}])
    before = time.time()
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench) == count("waiting", errors=("crashed",))
    waits_for(bench, 30, 3, before)
    ticks_in_vain(bench)
    over(bench)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("crashed",), sessions=2)
    assert (bench.resumed(), commits(bench, git)) == ([False, True], ["1"])
    assert spent(bench) == pytest.approx(charged(bench))


# --------------------------------------------------------------------------------------------------------
# Sessions that do not end
# --------------------------------------------------------------------------------------------------------


def test_it_hangs_before_the_first_line(bench):
    set_claude(bench, idle_timeout="2s")
    bench.sessions([{"init": False}, {"hang": True}], WORK)
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert "session timeout" in said(done)
    assert counted(bench) == count("completed", iterations=2, errors=("timeout",), sessions=2)
    assert len(bench.calls()) == 2
    assert spent(bench) == pytest.approx(charged(bench))


def test_it_hangs_for_ever_and_the_mission_ends_with_a_question(bench):
    set_claude(bench, idle_timeout="1s")
    bench.sessions(*[[{"init": False}, {"hang": True}]] * 20)
    done = bench.run("start", str(bench.mission))
    assert done.returncode == 3, said(done)
    seen = counted(bench)
    assert seen["phase"] == "blocked"
    assert seen["iterations"] == seen["sessions"] == len(bench.calls()) <= 12
    assert set(seen["errors"]) == {"timeout"}
    assert spent(bench) == 0


@pytest.mark.parametrize("stubborn", [[], [{"ignore_term": True}]], ids=("polite", "ignores SIGTERM"))
def test_it_hangs_after_the_result(bench, git, stubborn):
    hurried(bench)
    bench.sessions([*stubborn, *WORK, {"result": {"result": "both are there"}}, {"hang": True}])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed")  # the result counts, the hang does not
    assert (len(bench.calls()), commits(bench, git)) == (1, ["1"])
    assert spent(bench) == pytest.approx(0.0012)  # the two turns that the result speaks of


def test_it_ignores_sigterm(bench, git):
    hurried(bench)
    set_claude(bench, timeout="2s")
    bench.sessions([{"ignore_term": True}, *WRITES_A, {"hang": True}], [{"write": {"b": "1\n"}}])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert "session timeout" in said(done)
    assert counted(bench) == count("completed", iterations=2, errors=("timeout",), sessions=2)
    assert (len(bench.calls()), commits(bench, git)) == (2, ["1", "2"])
    assert spent(bench) == pytest.approx(charged(bench))


def test_it_ignores_sigterm_when_a_person_stops_the_kit(bench, project):
    hurried(bench)
    bench.sessions([{"ignore_term": True}, *WRITES_A, {"hang": True}], [{"write": {"b": "1\n"}}])
    kit = bench.begin()
    until((project / "a").exists, "the first session's work")
    kit.terminate()
    assert kit.wait(PATIENCE) == 143, bench.output()
    assert not bench.alive()
    assert counted(bench) == count("execution", errors=("interrupted",))
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("interrupted",), sessions=2)
    assert bench.resumed() == [False, True]


# --------------------------------------------------------------------------------------------------------
# Strange output
# --------------------------------------------------------------------------------------------------------


def test_two_results(bench, git):
    first = [{"write": {"a": "1\n"}}, {"say": "a is there"}, {"result": {"result": "a is there"}}]
    second = [{"write": {"b": "1\n"}}, {"say": "b too"}, {"result": {"result": "b too"}}]
    bench.sessions([*first, *second])
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed")
    assert (len(bench.calls()), commits(bench, git)) == (1, ["1"])
    assert spent(bench) == pytest.approx(0.0012)  # the last total, not the sum of both
    assert spent(bench) == pytest.approx(charged(bench))
    assert bench.state()["last"]["report"] == "b too"


def test_of_an_error_and_a_success_the_last_result_counts(bench):
    failed = {"result": {"subtype": "error_during_execution", "is_error": True, "errors": ["a hook failed"]}}
    bench.sessions([*WORK, failed, {"result": {"result": "both are there"}}])
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed")
    assert spent(bench) == pytest.approx(charged(bench))


def test_300_mb_in_one_line_go_by_without_filling_the_memory(bench, git):
    hurried(bench)
    bench.sessions([{"raw": "x", "times": 299_000_000}, *WORK])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed")
    assert (len(bench.calls()), commits(bench, git)) == (1, ["1"])
    assert spent(bench) == pytest.approx(charged(bench))
    assert 10 < peak(bench) < 120, f"{peak(bench)} MB"
    kept = sum(path.stat().st_size for path in (bench.project / ".cco").rglob("*") if path.is_file())
    assert kept < 5_000_000


def test_output_without_end_is_ended_at_its_cap(bench, git):
    hurried(bench)
    bench.sessions([*WRITES_A, {"raw": "x", "times": 2_000_000_000}], [{"write": {"b": "1\n"}}])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert "session timeout" in said(done) and ": size" in said(done)
    assert counted(bench) == count("completed", iterations=2, errors=("timeout",), sessions=2)
    assert (len(bench.calls()), commits(bench, git)) == (2, ["1", "2"])
    assert 10 < peak(bench) < 120, f"{peak(bench)} MB"


def test_invalid_utf_8(bench, git):
    noise = {"raw": "\udcff\udcfe\udc80", "times": 50}
    words = '{"type": "text", "text": "it is in the caf\udce9"}'  # as Latin-1 has it
    event = '{"type": "assistant", "message": {"id": "msg_1", "model": "m", "content": [' + words + "]}}"
    bench.sessions([noise, *WORK, {"raw": event}, noise])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed")
    assert (len(bench.calls()), commits(bench, git)) == (1, ["1"])
    assert spent(bench) == pytest.approx(charged(bench))
    for path in (bench.project / ".cco").rglob("*.log"):
        path.read_text("utf-8")


# --------------------------------------------------------------------------------------------------------
# Limits
# --------------------------------------------------------------------------------------------------------


def torn(info: dict[str, Any]) -> list[dict[str, Any]]:
    """A limit event in the middle of another line, as Claude Code 2.1.74 wrote it."""
    line = '{"type": "assistant", "message": {"content": [{"type": "text", "text": "half of a sentence'
    event = json.dumps({"type": "rate_limit_event", "rate_limit_info": info})
    return [{"raw": line + event}, {"raw": ' and its other half."}]}, "session_id": "s"}'}]


def refused(text: str) -> dict[str, Any]:
    """The error that ends a session at a limit."""
    return {"error": {"assistant_error": "rate_limit", "text": text, "api_error_status": 429}}


@pytest.mark.parametrize("status", ["allowed", "allowed_warning", "rejected"])
def test_a_limit_event_inside_another_line_does_not_stop_a_session_that_succeeds(bench, status):
    info = {"status": status, "resetsAt": int(time.time()) + 9000, "rateLimitType": "five_hour"}
    bench.sessions([*torn(info), *WORK])
    assert start(bench, "--no-wait").returncode == 0
    assert counted(bench) == count("completed")
    assert len(bench.calls()) == 1
    assert spent(bench) == pytest.approx(charged(bench))


def test_a_limit_event_inside_another_line_is_made_up_for_by_the_words_of_the_result(bench):
    reset = int(time.time()) // 60 * 60 + 9000
    info = {"status": "rejected", "resetsAt": reset, "rateLimitType": "five_hour"}
    said_so = f"You've hit your session limit · resets {moment(reset)} (UTC)"
    bench.sessions([*WRITES_A, *torn(info), refused(said_so)], [{"write": {"b": "1\n"}}])
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench) == count("waiting")
    waits_for(bench, MARGIN, JITTER, reset)
    ticks_in_vain(bench)
    over(bench)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", sessions=2)
    assert bench.resumed() == [False, True]
    assert spent(bench) == pytest.approx(charged(bench))


@pytest.mark.parametrize("status", ["allowed", "allowed_warning"])
def test_a_limit_event_that_says_allowed_is_no_limit(bench, status):
    window = {"utilization": 0.99, "resetsAt": int(time.time()) + 9000, "status": status}
    info = {**window, "rateLimitType": "five_hour", "unifiedWindows": {"five_hour": window}}
    event = {"event": {"type": "rate_limit_event", "rate_limit_info": info}}
    busy = {
        "error": {"assistant_error": "overloaded", "text": "Repeated 529 Overloaded errors", "api_error_status": 529}
    }
    bench.sessions([event, *WRITES_A], [event, busy], [event, {"write": {"b": "1\n"}}])
    before = time.time()
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench) == count("waiting", iterations=2, errors=("overloaded",), sessions=2)
    waits_for(bench, 30, 3, before)  # for the servers, not for the window's reset
    over(bench)
    assert start(bench, "--no-wait").returncode == 0
    assert counted(bench) == count("completed", iterations=2, errors=("overloaded",), sessions=3)
    assert len(bench.calls()) == 3
    assert spent(bench) == pytest.approx(charged(bench))


PROSE = (
    "You've hit your session limit · resets 3:45pm (UTC). Claude AI usage limit reached|1895813200. "
    "5-hour limit reached. Credit balance is too low. Not logged in · Please run /login. Overloaded, 529."
)


def test_a_model_that_writes_about_limits_has_none(bench, git):
    bench.sessions([{"write": {"a": PROSE}}, {"bash": f"echo '{PROSE.replace(chr(39), '')}'; false"}, {"say": PROSE}])
    assert start(bench, "--once", "--no-wait").returncode == 75
    assert counted(bench) == count("planning", stalls=1) | {"stalls": counted(bench)["stalls"]}
    assert bench.state()["wait_until"] is None
    assert commits(bench, git) == ["1"]


def test_a_model_that_writes_about_limits_and_dies_has_crashed(bench):
    bench.sessions([{"write": {"a": PROSE}}, {"say": PROSE}, {"exit": 1}], WORK)
    before = time.time()
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench) == count("waiting", errors=("crashed",))
    waits_for(bench, 30, 3, before)
    over(bench)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("crashed",), sessions=2)
    assert spent(bench) == pytest.approx(charged(bench))


def test_a_limit_with_several_windows_is_waited_for_until_the_last_of_them(bench):
    soon, late, far = (int(time.time()) + hours * 3600 for hours in (2, 50, 100))
    windows = {
        "five_hour": {"utilization": 1, "resetsAt": soon, "status": "rejected"},
        "seven_day": {"utilization": 1, "resetsAt": late, "status": "rejected"},
        "seven_day_overage_included": {"utilization": 0.2, "resetsAt": far, "status": "allowed"},
    }
    limit = {"limit": {"resetsAt": soon, "rateLimitType": "five_hour", "unifiedWindows": windows}}
    bench.sessions([*WRITES_A, limit], [{"write": {"b": "1\n"}}])
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench) == count("waiting")
    waits_for(bench, MARGIN, JITTER, late)
    ticks_in_vain(bench)
    over(bench)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", sessions=2)
    assert (len(bench.calls()), bench.resumed()) == (2, [False, True])
    assert spent(bench) == pytest.approx(charged(bench))


def test_a_limit_without_a_time_waits_an_hour_and_asks_again(bench):
    clock = Clock(bench)
    bench.sessions([{"limit": {}}], [{"limit": {}}], WORK)
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", sessions=3)
    assert len(bench.calls()) == 3
    assert [3600 <= wait <= 3600 + MARGIN + JITTER + LATE for wait in clock.waits()] == [True, True]


def test_a_limit_that_is_far_away_is_waited_for_eight_days_at_most(bench):
    clock = Clock(bench)
    bench.sessions([{"limit": {"resetsAt": int(time.time()) + 90 * 86400}}], WORK)
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", sessions=2)
    (wait,) = clock.waits()
    assert 8 * 86400 - LATE <= wait <= 8 * 86400 + MARGIN + JITTER + LATE


def test_a_limit_of_one_model_alone_is_worked_around_with_another_model(bench, git):
    reset = int(time.time()) + 50 * 3600
    opus = {"limit": {"resetsAt": reset, "rateLimitType": "seven_day_opus"}}
    bench.sessions([*WRITES_A, opus], [{"write": {"b": "1\n"}}])
    done = start(bench, "--no-wait")
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", sessions=2)
    assert models(bench) == ["", "sonnet"]
    assert (bench.resumed(), commits(bench, git)) == ([False, True], ["1"])  # the same session, the same iteration
    assert spent(bench) == pytest.approx(charged(bench))


def test_when_every_model_has_its_limit_the_first_reset_is_waited_for_and_the_usual_model_comes_back(bench):
    clock = Clock(bench)
    now = int(time.time())
    opus = {"limit": {"resetsAt": now + 5 * 3600, "rateLimitType": "seven_day_opus"}}
    sonnet = {"limit": {"resetsAt": now + 9 * 3600, "rateLimitType": "seven_day_sonnet"}}
    bench.write(TWO_CRITERIA, settings={"claude_code": {"fallbacks": ["sonnet"]}})
    bench.sessions([opus], [*WRITES_A, sonnet], [{"write": {"b": "1\n"}}])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert models(bench) == ["", "sonnet", ""]
    assert counted(bench) == count("completed", sessions=3)
    (wait,) = clock.waits()
    assert 5 * 3600 + MARGIN - LATE <= wait <= 5 * 3600 + MARGIN + JITTER


def test_the_usual_model_comes_back_when_its_limit_is_over(bench):
    opus = {"limit": {"resetsAt": int(time.time()) + 100, "rateLimitType": "seven_day_opus"}}
    clock = Clock(bench)
    bench.sessions([opus], WRITES_A, [{"write": {"b": "1\n"}}])
    assert start(bench, "--once", "--no-wait").returncode == 75  # the other model goes on at once
    clock.skip(100 + MARGIN + JITTER + LATE)
    assert start(bench).returncode == 0
    assert models(bench) == ["", "sonnet", ""]
    assert counted(bench) == count("completed", iterations=2, sessions=3)


# --------------------------------------------------------------------------------------------------------
# Logins, money and servers
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Not logged in · Please run /login", "Invalid API key · Fix external API key"])
def test_auth(bench, git, text):
    error = {"assistant_error": "authentication_failed", "text": text, "api_error_status": 401}
    bench.sessions([*WRITES_A, {"error": error}], [{"error": error}], [{"write": {"b": "1\n"}}])
    for sessions in (1, 2):  # once a start, and no more
        done = start(bench)
        assert done.returncode == 4
        assert text in said(done) and "log in again" in said(done)
        assert counted(bench) == count("execution", errors=("auth",) * sessions, sessions=sessions)
        assert len(bench.calls()) == sessions
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("auth",) * 2, sessions=3)
    assert (bench.resumed(), commits(bench, git)) == ([False, True, True], ["1"])
    assert spent(bench) == pytest.approx(charged(bench))


def test_credit(bench, git):
    error = {"assistant_error": "billing_error", "text": "Credit balance is too low", "api_error_status": 400}
    bench.sessions([*WRITES_A, {"error": error}], [{"error": error}], [{"write": {"b": "1\n"}}])
    for sessions in (1, 2):
        done = start(bench)
        assert done.returncode == 4
        assert error["text"] in said(done) and "add credit" in said(done)
        assert counted(bench) == count("execution", errors=("credit",) * sessions, sessions=sessions)
        assert len(bench.calls()) == sessions
    assert start(bench).returncode == 0
    assert counted(bench) == count("completed", errors=("credit",) * 2, sessions=3)
    assert commits(bench, git) == ["1"]
    assert spent(bench) == pytest.approx(charged(bench))


def test_overloaded_for_hours(bench, git):
    clock = Clock(bench)
    error = {"assistant_error": "overloaded", "text": "Repeated 529 Overloaded errors", "api_error_status": 529}
    failing = 17  # sessions, so that the waits after them are more than six hours
    bench.sessions(*[[{"error": error}]] * failing, WORK)
    begun = clock.now()
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", errors=("overloaded",) * failing, sessions=failing + 1)
    assert (len(bench.calls()), commits(bench, git)) == (failing + 1, ["1"])
    waits = clock.waits()
    assert len(waits) == failing
    for wait, step in zip(waits, [*STEPS, *[STEPS[-1]] * failing], strict=False):
        assert step - LATE <= wait <= step * (1 + INSTANT) + LATE
    assert 6 * 3600 < clock.now() - begun < 8 * 3600
    assert bench.state()["plan"] is None and bench.state()["wait_until"] is None
    assert spent(bench) == pytest.approx(charged(bench))


# --------------------------------------------------------------------------------------------------------
# Sessions that claude does not know, or knows already
# --------------------------------------------------------------------------------------------------------


def test_a_lost_session(bench, git):
    bench.sessions(WRITES_A, [{"write": {"b": "1\n"}}])
    assert start(bench, "--once").returncode == 75
    before = charged(bench)
    shutil.rmtree(f"{bench.script}.sessions")
    done = start(bench, "--no-wait")
    assert done.returncode == 0, said(done)
    assert counted(bench) == count("completed", iterations=2, errors=("lost_session",), sessions=3)
    assert bench.resumed() == [False, True, False]
    assert "# Mission: A demo" in bench.calls()[2]["prompt"]  # the fresh one is told what it is about
    assert commits(bench, git) == ["1", "2"]
    assert spent(bench) == pytest.approx(before + charged(bench))


def test_a_session_that_is_lost_again_and_again_is_backed_off_from(bench):
    lost = [{"init": False}, {"stderr": "No conversation found with session ID: x"}, {"exit": 1}]
    bench.sessions(WRITES_A, *[lost] * 3, [{"write": {"b": "1\n"}}])
    assert start(bench, "--once").returncode == 75
    before = time.time()
    assert start(bench, "--no-wait").returncode == 75
    assert counted(bench)["phase"] == "waiting"
    assert len(bench.calls()) == 3  # the session, a fresh one in its place, and then a wait
    assert bench.state()["wait_until"] >= before + 30
    ticks_in_vain(bench)
    over(bench)
    while (done := start(bench, "--no-wait")).returncode == 75:
        over(bench)
    assert done.returncode == 0, said(done)
    assert counted(bench)["iterations"] <= 3


def test_a_session_id_in_use(bench, project, git):
    """Killed between the start of claude and the note of it, the kit does not know that the session was begun."""
    bench.sessions([*WRITES_A, {"hang": True}], [{"write": {"b": "1\n"}}])
    kit = bench.begin()
    until((project / "a").exists, "the first session's work")
    kit.kill()
    kit.wait()
    state = bench.state()
    bench.remember({**state, "worker": {**state["worker"], "begun": False}})
    done = start(bench, "--no-wait")
    assert done.returncode == 0, said(done)
    assert "already in use" in said(done)
    used = [
        next(word for word in call["argv"] if "--session-id" in word or "--resume" in word) for call in bench.calls()
    ]
    assert used[0] == used[1] != used[2]  # begun twice, then another one
    assert counted(bench) == count("completed", errors=("lost_session",), sessions=2)
    assert commits(bench, git) == ["1"]


# --------------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chatty", [False, True], ids=("quiet", "still writing"))
def test_children_that_hold_the_output(bench, sleeper, chatty):
    command = f"while echo more; do sleep 0.05; done & exec {sleeper}" if chatty else f"exec {sleeper}"
    bench.sessions([{"hold": command}, *WORK])
    done = start(bench)  # with a pipe that is read to its end this would take for ever
    assert done.returncode == 0, said(done)
    assert f"ended what the worker left behind: {sleeper}" in said(done)
    assert running(sleeper) == []
    assert counted(bench) == count("completed")
    assert len(bench.calls()) == 1
    assert spent(bench) == pytest.approx(charged(bench))


HIDING = {
    "a session of its own": "setsid -f {}",
    "two sessions deep": "setsid -f setsid -f {}",
    "no environment": "env -i $(command -v setsid) -f {}",
    "a parent that has ended": "(setsid {} > /dev/null 2>&1 < /dev/null &)",
}


@pytest.mark.parametrize("how", HIDING.values(), ids=HIDING)
def test_children_that_setsid(bench, sleeper, how):
    bench.sessions([{"bash": how.format(sleeper)}, *WORK])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert f"ended what the worker left behind: {sleeper}" in said(done)
    assert running(sleeper) == []
    assert counted(bench) == count("completed")
    assert len(bench.calls()) == 1


@pytest.mark.parametrize("how", HIDING.values(), ids=HIDING)
def test_children_that_setsid_of_a_worker_that_is_killed(bench, sleeper, how):
    bench.sessions([{"bash": how.format(sleeper)}, *WRITES_A, {"signal": 9}], [{"write": {"b": "1\n"}}])
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert re.search(f"ended what the worker left behind: .*{sleeper}", said(done)), said(done)
    assert running(sleeper) == []
    assert counted(bench) == count("completed", iterations=2, errors=("interrupted",), sessions=2)
    assert len(bench.calls()) == 2


KILL_PARENT = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"  # of the shell's parent, which is claude


@pytest.mark.parametrize("how", ["", *[command for name, command in HIDING.items() if name != "no environment"]])
def test_a_worker_that_kills_its_parent(bench, git, sleeper, how):
    """Not covered: a process without the environment it was started with, when the kit was killed without a sandbox."""
    leaves = [{"bash": how.format(sleeper)}] if how else []
    bench.sessions([*leaves, *WRITES_A, {"bash": KILL_PARENT}, {"hang": True}], [{"write": {"b": "1\n"}}])
    kit = bench.begin()
    assert kit.wait(PATIENCE) == -signal.SIGKILL
    assert len([pid for pid, line in bench.alive().items() if "claude_stand_in" in line]) == 1
    assert bench.state()["iterations"] == 1
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert re.search(r"ended \d+ process(es)? that an earlier run left behind", said(done))
    assert running(sleeper) == []
    assert counted(bench) == count(
        "completed"
    )  # of the session that the kit did not survive nothing is known but its cost
    assert (bench.resumed(), len(bench.calls())) == ([False, True], 2)
    assert commits(bench, git) == ["1"]
    assert spent(bench) == pytest.approx(charged(bench))


def test_a_worker_that_kills_its_parent_every_time_starts_one_worker_a_start(bench, git):
    kills = [{"append": {"log": "once\n"}}, {"bash": KILL_PARENT}, {"hang": True}]
    bench.sessions(kills, kills, WORK)
    for sessions in (1, 2):
        kit = bench.begin()
        assert kit.wait(PATIENCE) == -signal.SIGKILL
        assert len([pid for pid, line in bench.alive().items() if "claude_stand_in" in line]) == 1
        assert (len(bench.calls()), bench.state()["iterations"]) == (sessions, 1)
    assert start(bench).returncode == 0
    assert (counted(bench), commits(bench, git)) == (count("completed"), ["1"])
    assert (bench.project / "log").read_text() == "once\n" * 2
    assert spent(bench) == pytest.approx(charged(bench))


# Forty shells that would write after their `sleep`. Process numbers are used up in between, so that whoever goes over
# them as Python's set holds them (by number modulo its size, which is 512 then) meets each `sleep` before its shell.
STEPWISE = """
upto() {{ until p=$(sh -c 'echo $$'); test $((p % 512)) -gt $1 && test $((p % 512)) -lt $2; do :; done; }}
upto 250 350
for i in $(seq 40); do (until test -e go; do sleep 0.2; done; {sleeper}; echo $i >> went_on) & done
upto 0 60
touch go
wait
"""


def test_no_command_goes_on_to_its_next_step_while_what_is_left_of_a_worker_is_ended(bench, project, sleeper):
    bench.sessions([{"bash": STEPWISE.format(sleeper=sleeper)}, {"hang": True}], WORK)
    kit = bench.begin()
    until(lambda: len(running(sleeper)) == 40, "its commands")
    kit.kill()
    kit.wait()
    for pid in [pid for pid, line in bench.alive().items() if "claude_stand_in" in line]:
        os.kill(pid, signal.SIGKILL)
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert running(sleeper) == []
    assert not (project / "went_on").exists()
    assert counted(bench) == count("completed")


def test_no_command_goes_on_to_its_next_step_while_a_session_is_ended(bench, project, sleeper):
    hurried(bench)
    set_claude(bench, idle_timeout="6s")
    bench.sessions([{"ignore_term": True}, {"bash": STEPWISE.format(sleeper=sleeper)}], WORK)
    kit = bench.begin()
    until(lambda: len(running(sleeper)) == 40, "its commands")
    assert kit.wait(PATIENCE) == 0, bench.output()
    assert running(sleeper) == []
    assert not (project / "went_on").exists()
    assert counted(bench) == count("completed", iterations=2, errors=("timeout",), sessions=2)
