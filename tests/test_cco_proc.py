"""One command: what it gives back, what ends it, and that nothing of it stays behind."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked, need, until

import log
import proc
import processes
import surroundings

LIMITS = proc.Limits(60, grace=5)
FOREVER = "exec sleep 1000"
LEAF = "sh -c 'touch ready; sleep 1000; true'"
SECRET = "Zk9-planted+value/4711=="
# A kit in a process of its own: runs a line of shell, and prints what became of it.
SUPERVISOR = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import proc

def tick():
    if proc.stopping:
        Path("noticed").touch()
    return ""

proc.catch_signals()
with open("output", "wb+") as out:
    result = proc.run(["sh", "-c", sys.argv[2]], cwd=Path("."), env=dict(os.environ), output=out, tick=tick,
                      limits=proc.Limits(60, grace=1), shielded="shielded" in sys.argv)
print(json.dumps({"signal": proc.stopping, **vars(result)}))
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark for everything that a test starts; the test fails when something with it is left."""
    value = uuid.uuid4().hex
    yield value
    left = marked(value)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def env(mark) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], processes.MARKER: mark}


@pytest.fixture
def run(tmp_path, env):
    """Run a line of shell, or an argument vector; the result, and what it printed."""

    def start(command: str | list[str], limits: proc.Limits = LIMITS, **given: Any) -> tuple[proc.Result, str]:
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        with open(tmp_path / "output", "wb+") as output:
            result = proc.run(argv, limits=limits, **{"cwd": tmp_path, "env": env, "output": output, **given})
        return result, os.fsdecode((tmp_path / "output").read_bytes())

    return start


@pytest.fixture
def when_ready(tmp_path):
    """A tick that ends the command when it has made the file `ready`."""
    return lambda: "seen" if (tmp_path / "ready").exists() else ""


@pytest.fixture
def kit(tmp_path, env) -> Iterator[Any]:
    """Start a kit in a process of its own, and wait until its command made the file `ready`."""
    kits = []

    def start(command: str, *options: str, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        argv = [*under, sys.executable, "-c", SUPERVISOR, str(KIT), command, *options]
        kits.append(subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True))
        until((tmp_path / "ready").exists, "the command runs")
        return kits[-1]

    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored, and inherited so, where the tests run under nohup
    yield start
    signal.signal(signal.SIGHUP, hangup)
    for process in kits:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the kit in a process of its own said at its end."""
    said, _ = process.communicate(timeout=30)
    return dict(json.loads(said))


def sleeper(mark: str, *argv: str) -> subprocess.Popen[bytes]:
    """A process that was there before, with this mark in its environment."""
    process = subprocess.Popen(argv or ["sleep", "1000"], env={"PATH": os.environ["PATH"], processes.MARKER: mark})
    until(lambda: process.pid in marked(mark), "it runs its own program")
    return process


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
        process.wait()


# --------------------------------------------------------------------------------------------------------
# What it gives back
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9)])
def test_the_exit_code_is_the_commands_own(run, command, code):
    result, _ = run(command)
    assert (result.code, result.stopped, result.error, result.swept) == (code, "", "", [])


def test_an_exit_code_survives_a_parent_that_ignores_its_children(kit, tmp_path):
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    process = kit("touch ready; false", under=(sys.executable, "-c", code))
    assert ended(process)["code"] == 1


def test_output_and_errors_go_to_the_file_in_order(run):
    result, printed = run("echo one; echo two >&2; echo three")
    assert printed == "one\ntwo\nthree\n"
    assert result.size == len(printed)


def test_errors_can_go_to_a_file_of_their_own(run, tmp_path):
    with open(tmp_path / "errors", "wb+") as errors:
        result, printed = run("echo one; echo two >&2", errors=errors)
    assert (printed, (tmp_path / "errors").read_text(), result.size) == ("one\n", "two\n", 8)


def test_a_command_that_reopens_its_output_leaves_no_hole_in_it(run):
    _, printed = run("echo a long first line; echo b > /dev/stdout; echo c")
    assert printed == "b\nc\n"


def test_what_is_no_text_arrives_as_it_was_printed(run):
    _, printed = run(r"printf '\377\376\000end'")
    assert os.fsencode(printed) == b"\xff\xfe\0end"


@pytest.mark.parametrize("data", [b"", b"words\n", bytes(range(256)) * 4096], ids=["nothing", "words", "a megabyte"])
def test_it_reads_what_it_is_given_and_then_the_end(run, data):
    result, printed = run("cat", stdin=data)
    assert result.code == 0
    assert os.fsencode(printed) == data


def test_the_environment_is_exactly_what_was_given(run, monkeypatch):
    monkeypatch.setenv("OF_THE_KIT", "not for others")
    given = {"PATH": os.environ["PATH"], "EMPTY": "", "UMLAUT": "ä\n=", "BYTES": os.fsdecode(b"\xff")}
    _, printed = run(["env", "-0"], env=given)
    assert dict(line.split("=", 1) for line in printed.split("\0")[:-1]) == given


def test_only_its_own_three_files_are_open(run, tmp_path):
    with open(tmp_path / "lock", "w"):
        _, printed = run(["ls", "/proc/self/fd"])
    assert printed.split() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["no-such-program"], "No such file or directory: no-such-program"),
        (["./plain"], "Permission denied: ./plain"),
        (["./bare"], "Exec format error: ./bare"),
        (["."], "Permission denied: ."),
        (["echo", "a\0b"], "embedded null byte"),
        (["echo", "x" * 3_000_000], "Argument list too long: echo"),
        (["echo", "\ud800"], "surrogates not allowed"),
    ],
    ids=["missing", "not executable", "no shebang", "a folder", "NUL", "too long", "surrogate"],
)
def test_what_cannot_be_started_is_told_and_not_raised(run, tmp_path, argv, reason):
    for name, mode in (("plain", 0o644), ("bare", 0o755)):
        (tmp_path / name).write_text("echo\n")
        (tmp_path / name).chmod(mode)
    result, printed = run(argv)
    assert reason in result.error
    assert (result.code, printed) == (None, "")


def test_a_folder_that_is_missing_is_told_and_not_raised(run, tmp_path):
    result, _ = run("true", cwd=tmp_path / "gone")
    assert (result.code, result.error) == (None, f"No such file or directory: {tmp_path / 'gone'}")


def test_a_machine_that_can_start_no_more_processes_is_told_and_not_raised(run, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    assert run("true")[0].error == "Resource temporarily unavailable: sh"


# --------------------------------------------------------------------------------------------------------
# What ends it
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "limits", "reason"),
    [
        (f"echo; {FOREVER}", proc.Limits(0.3, grace=5), "timeout"),
        (f"echo; {FOREVER}", proc.Limits(60, idle=0.3, grace=5), "idle"),
        (f"head -c 300000 /dev/zero; {FOREVER}", proc.Limits(60, max_output=200_000, grace=5), "size"),
    ],
    ids=["timeout", "idle", "size"],
)
def test_a_limit_ends_it(run, command, limits, reason):
    result, _ = run(command, limits)
    assert (result.code, result.stopped) == (-signal.SIGTERM, reason)
    assert result.seconds < 30


def test_a_command_that_keeps_printing_is_not_idle(run, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(proc, "time", types.SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))

    def tick() -> str:
        clock.now += 90
        with open(tmp_path / "output", "ab") as file:
            file.write(b"x")
        return "enough" if clock.now > 400 else ""

    result, _ = run(FOREVER, proc.Limits(10_000, idle=100, grace=5), tick=tick)
    assert result.stopped == "enough"


def test_a_command_at_its_limits_is_left_alone(run):
    result, printed = run("head -c 2000 /dev/zero; sleep 0.5", proc.Limits(60, idle=50, max_output=2000))
    assert (result.code, result.stopped, len(printed)) == (0, "", 2000)


def test_a_word_from_tick_ends_it(run, when_ready):
    result, _ = run(f"touch ready; {FOREVER}", tick=when_ready)
    assert (result.code, result.stopped) == (-signal.SIGTERM, "seen")


def test_what_ignores_the_request_is_killed_after_the_grace(run, when_ready):
    ignoring = "trap '' TERM; touch ready; while :; do sleep 0.1; done"
    result, _ = run(ignoring, proc.Limits(60, grace=0.5), tick=when_ready)
    assert (result.code, result.stopped) == (-signal.SIGKILL, "seen")


def test_what_ends_in_its_own_way_within_the_grace_has_the_last_word(run, when_ready):
    tidy = "trap 'echo tidied up; exit 7' TERM; touch ready; while :; do sleep 0.1; done"
    result, printed = run(tidy, tick=when_ready)
    assert (result.code, result.stopped, printed) == (7, "seen", "tidied up\n")


def test_a_stopped_process_ends_too(run, when_ready):
    result, _ = run("touch ready; kill -STOP $$", proc.Limits(60, grace=0.5), tick=when_ready)
    assert (result.code, result.stopped) == (-signal.SIGKILL, "seen")


@pytest.mark.parametrize("where", ["started", "tick"])
def test_an_error_of_the_kit_itself_leaves_nothing_running(run, mark, where):
    def broken(*_: object) -> str:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        run(f"sleep 1000 & setsid sleep 1000 & {FOREVER}", **{where: broken})
    assert not marked(mark)


def test_the_process_that_is_told_of_is_the_one_that_runs(run):
    pids: list[int] = []
    _, printed = run("echo $$", started=pids.append)
    assert printed == f"{pids[0]}\n"


# --------------------------------------------------------------------------------------------------------
# Signals to the kit
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_kit_ends_the_command(kit, number):
    process = kit(f"setsid {LEAF} & {FOREVER}")
    process.send_signal(number)
    said = ended(process)
    assert (said["signal"], said["stopped"], said["code"]) == (number, "interrupted", -signal.SIGTERM)
    assert any("sleep 1000" in name for name in said["swept"])


def test_a_signal_to_the_kit_ends_also_what_ignores_requests(kit):
    process = kit("trap '' TERM INT HUP; touch ready; while :; do sleep 0.1; done")
    process.send_signal(signal.SIGTERM)
    assert ended(process)["code"] == -signal.SIGKILL


def test_a_shielded_command_is_finished_first(kit, tmp_path):
    process = kit("touch ready; until test -e go; do sleep 0.05; done; echo whole", "shielded")
    process.send_signal(signal.SIGTERM)
    until((tmp_path / "noticed").exists, "the kit noticed the signal")
    (tmp_path / "go").touch()
    said = ended(process)
    assert (said["signal"], said["stopped"], said["code"]) == (signal.SIGTERM, "", 0)
    assert (tmp_path / "output").read_text() == "whole\n"


def test_under_nohup_a_hangup_is_ignored(kit, tmp_path):
    process = kit("touch ready; until test -e go; do sleep 0.05; done", under=("nohup",))
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    said = ended(process)
    assert (said["signal"], said["stopped"], said["code"]) == (0, "", 0)


def test_a_command_begun_after_the_signal_ends_too(run, monkeypatch):
    monkeypatch.setattr(proc, "stopping", signal.SIGTERM)
    assert run(FOREVER)[0].stopped == "interrupted"


def test_a_pause_ends_with_a_signal(env):
    code = "import proc; proc.catch_signals(); print(proc.pause(0.01), flush=True); print(proc.pause(600))"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env={**env, "PYTHONPATH": str(KIT)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "True\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "False\n"
    assert process.returncode == 0


def test_a_signal_breaks_off_what_would_not_look_for_one(env):
    code = """
import proc, signal, sys, time
proc.catch_signals()
try:
    with proc.interruptible():
        print("ready", flush=True)
        time.sleep(600)
except proc.Interrupted:
    print("broken off by", proc.stopping)
signal.raise_signal(signal.SIGINT)
print("now only noted:", proc.stopping)
"""
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env={**env, "PYTHONPATH": str(KIT)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "broken off by 15\nnow only noted: 2\n"
    assert process.returncode == 0


# --------------------------------------------------------------------------------------------------------
# What it leaves behind
# --------------------------------------------------------------------------------------------------------

LEFT_BEHIND = [
    f"{LEAF} &",
    f"nohup {LEAF} > nohup.out 2>&1 &",
    f"setsid {LEAF} &",
    f"setsid --fork {LEAF}",
    f'(setsid sh -c "setsid {LEAF} & exit" &)',
    f"trap '' TERM INT HUP; setsid {LEAF} &",
    f'setsid sh -c "sleep 1000 & {LEAF} & wait" &',
]


@pytest.mark.parametrize("command", LEFT_BEHIND)
def test_what_it_leaves_behind_is_ended_and_named(run, mark, command):
    result, _ = run(f"{command}\nuntil test -e ready; do sleep 0.02; done; exit 3")
    assert result.code == 3
    assert any("sleep 1000" in name for name in result.swept)
    assert not marked(mark)


@pytest.mark.parametrize("command", LEFT_BEHIND)
def test_what_it_leaves_behind_when_it_is_stopped_is_ended(run, mark, command, when_ready):
    limits = proc.Limits(60, grace=0.2)
    result, _ = run(f"{command}\n{FOREVER}", limits, tick=when_ready)
    assert result.stopped == "seen"
    assert not marked(mark)


def test_output_held_open_by_a_grandchild_does_not_delay_the_end(run):
    result, printed = run("sleep 1000 & echo done")
    assert (result.code, printed) == (0, "done\n")
    assert result.seconds < 30


def test_a_tree_of_fifty_processes_is_ended(run, mark, tmp_path):
    (tmp_path / "up").mkdir()
    leaf = "touch up/$1-$2; sleep 1000; true"
    branch = f"for i in 1 2 3 4 5 6 7 8 9; do setsid sh -c '\\''{leaf}'\\'' - $1 $i & done; wait"
    tree = f"for i in 1 2 3 4 5; do setsid sh -c '{branch}' - $i & done"
    result, _ = run(f"{tree}; until test $(ls up | wc -l) = 45; do sleep 0.05; done")
    assert result.code == 0
    assert len(result.swept) >= 50
    assert not marked(mark)


def test_children_that_were_there_before_are_never_touched(run, mark):
    before = sleeper(mark)
    try:
        result, _ = run(f"setsid {LEAF} & until test -e ready; do sleep 0.02; done")
        assert before.poll() is None
        assert set(marked(mark)) == {before.pid}
        assert result.swept
    finally:
        end(before)


def test_what_had_ended_by_itself_is_not_named(run):
    # The subshell hands a process that has ended, and that nobody has waited for, to the kit.
    result, _ = run("(sh -c 'echo $$ > pid' & exec true); until grep -q Z /proc/$(cat pid)/status; do sleep 0.01; done")
    assert result.swept == []


def test_names_of_what_is_ended_are_masked(run, fresh_mask):
    log.know_value(SECRET)
    leaf = f"sh -c 'touch ready; sleep 1000; : {SECRET}'"
    result, _ = run(f"setsid {leaf} & until test -e ready; do sleep 0.02; done")
    assert any("sleep 1000" in name for name in result.swept)
    assert SECRET not in str(result)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(proc.Limits(0.5, grace=0.1), "timeout"), (proc.Limits(60, processes=1), "processes")],
    ids=["asked first", "killed at once"],
)
def test_a_process_that_may_not_be_ended_is_left_and_does_not_hang_the_kit(
    run, mark, monkeypatch, capfd, limits, reason
):
    """As with `sudo`, whose process belongs to root."""
    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, **options)
            started.append(self)

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as machine:
        machine.setattr(subprocess, "Popen", Popen)
        machine.setattr(os, "kill", refuse)
        machine.setattr(os, "killpg", refuse)
        machine.setattr(proc, "KILL_TIME", 0.1)
        result, _ = run(f"setsid {LEAF} & {FOREVER}", limits)
    assert (result.code, result.stopped) == (None, reason)
    assert f"process {started[0].pid} cannot be ended and is left running: sleep 1000" in capfd.readouterr().err
    end(started[0])
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --------------------------------------------------------------------------------------------------------
# What it uses
# --------------------------------------------------------------------------------------------------------

MEGABYTE = 2**20
EATER = "import signal, sys; eaten = b'x' * int(sys.argv[1]); open(sys.argv[2], 'w').close(); signal.pause()"


def eater(megabytes: int, name: str = "ready") -> str:
    """A line of shell that occupies so much memory, and then makes a file."""
    return shlex.join([sys.executable, "-c", EATER, str(megabytes * MEGABYTE), name])


def test_memory_beyond_its_cap_ends_it(run, mark):
    result, _ = run(f"{eater(200)}; true", proc.Limits(60, memory=100 * MEGABYTE))
    assert (result.code, result.stopped) == (-signal.SIGKILL, "memory")


@pytest.mark.parametrize("apart", ["", "setsid", "setsid -f"])
def test_memory_of_a_whole_tree_is_counted_together(run, mark, apart):
    tree = "".join(f"{apart} {eater(60, str(number))} &\n" for number in range(4))
    result, _ = run(f"{tree} wait; {FOREVER}", proc.Limits(60, memory=150 * MEGABYTE))
    assert result.stopped == "memory"
    assert not marked(mark)


def test_what_stays_below_its_caps_is_left_alone(run, when_ready):
    limits = proc.Limits(60, cpu=30, memory=400 * MEGABYTE, processes=10)
    result, _ = run(eater(60), limits, tick=when_ready)
    assert result.stopped == "seen"


def test_memory_that_several_share_is_not_counted_for_each(run, when_ready):
    code = "import mmap, os, signal; shared = mmap.mmap(-1, 10**8); shared.write(b'x' * 10**8)\n"
    code += "for _ in range(4): os.fork() or (shared.find(b'y'), signal.pause())\n"
    code += "open('ready', 'w').close(); signal.pause()"
    limits = proc.Limits(60, memory=150 * MEGABYTE)
    assert run([sys.executable, "-c", code], limits, tick=when_ready)[0].stopped == "seen"


@pytest.mark.parametrize("start", ["sleep 1000 &", "setsid sleep 1000 &", "setsid -f sleep 1000;"])
def test_more_processes_than_its_cap_end_it(run, mark, start):
    result, _ = run(f"for n in $(seq 300); do {start} done; {FOREVER}", proc.Limits(60, processes=50))
    assert (result.code, result.stopped) == (-signal.SIGKILL, "processes")
    assert not marked(mark)


@pytest.mark.parametrize(
    "busy",
    ["while :; do :; done", "(while :; do :; done) & wait", "while :; do head -c 10000000 /dev/zero | sha256sum; done"],
    ids=["alone", "a child", "many that end"],
)
def test_processor_time_beyond_its_cap_ends_it(run, busy):
    result, _ = run(busy, proc.Limits(60, cpu=0.4))
    assert (result.code, result.stopped) == (-signal.SIGKILL, "cpu")


def test_waiting_costs_no_processor_time(run, when_ready):
    assert run("sleep 1; touch ready; sleep 1000", proc.Limits(60, cpu=0.5), tick=when_ready)[0].stopped == "seen"


def test_a_process_that_is_gone_uses_nothing():
    process = subprocess.Popen(["true"])
    process.wait()
    assert processes.usage(process.pid) == (0.0, 0, 0)


def test_what_a_process_uses_is_measured(mark, tmp_path):
    ready = tmp_path / "ready"
    process = subprocess.Popen(["sh", "-c", f"{eater(50, str(ready))}; true"], env={processes.MARKER: mark})
    try:
        until(ready.exists, "it has its memory")
        seconds, memory, count = processes.usage(process.pid)
        assert 0 < seconds < 30
        assert 50 * MEGABYTE <= memory < 100 * MEGABYTE
        assert count == 2
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        until(lambda: not marked(mark), "its child has ended too")


# --------------------------------------------------------------------------------------------------------
# Side by side
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path, env) -> Iterator[Any]:
    """Start a line of shell in a folder of its own, beside others; its name tells what it leaves behind."""
    started: list[proc.Running] = []

    def start(name: str, command: str, limits: proc.Limits = LIMITS, **given: Any) -> proc.Running:
        (tmp_path / name).mkdir()
        output = files.enter_context((tmp_path / name / "output").open("wb+"))
        running = proc.Running(["sh", "-c", command], tmp_path / name, env, output, limits, part=name, **given)
        started.append(running)
        return running

    with ExitStack() as files:
        yield start
        for running in started:
            running.close()
    assert not proc._beside


def over(running: proc.Running) -> proc.Result:
    """What became of it when it has ended, or has to be ended."""
    until(running.over, "it is over")
    return running.close()


def test_two_run_at_once_and_each_has_its_own_end(beside, tmp_path):
    first = beside("first", "until test -e ../second/ready; do sleep 0.02; done; echo one; exit 3")
    second = beside("second", "touch ready; until test -e ../go; do sleep 0.02; done; echo two; exit 4")
    result = over(first)
    assert not second.over()
    (tmp_path / "go").touch()
    assert (result.code, over(second).code) == (3, 4)
    assert [(tmp_path / name / "output").read_text() for name in ("first", "second")] == ["one\n", "two\n"]
    assert result.swept == second.result.swept == []


@pytest.mark.parametrize("apart", ["", "setsid", "setsid -f"])
def test_what_each_leaves_behind_is_its_own(beside, mark, apart):
    def leaving(number: int) -> str:
        return f"{apart} sh -c 'touch ready; sleep 100{number}; true' & until test -e ready; do sleep 0.02; done"

    first, second, third = (beside(name, leaving(n)) for n, name in enumerate(("first", "second", "third")))
    for number, running in ((1, second), (0, first), (2, third)):
        names = over(running).swept
        assert names and all(f"sleep 100{number}" in name for name in names)
    assert not marked(mark)


def test_the_timeout_of_one_does_not_end_the_other(beside):
    late = beside("late", f"{LEAF} & {FOREVER}", proc.Limits(0.3, grace=5))
    other = beside("other", f"setsid {LEAF} & {FOREVER}")
    assert (over(late).stopped, other.over()) == ("timeout", False)
    assert other.process and other.process.poll() is None
    assert other.close().code == -signal.SIGKILL


@pytest.mark.parametrize("end_of", ["exit 0", FOREVER], ids=["ended", "ended from here"])
def test_a_daemon_of_one_outlives_the_end_of_the_other(beside, tmp_path, mark, end_of):
    beside("one", f"setsid -f {LEAF}; {FOREVER}")
    until((tmp_path / "one" / "ready").exists, "the daemon runs")
    before = set(marked(mark))
    assert over(beside("other", end_of, proc.Limits(0.5, grace=5))).swept == []
    assert set(marked(mark)) == before


def test_what_has_dropped_its_name_is_ended_by_the_last_one(beside, tmp_path):
    name = f"sleep-{uuid.uuid4().hex[:8]}"
    (tmp_path / name).symlink_to("/bin/sleep")

    def running() -> bool:
        return any(name in processes.command_line(int(pid)) for pid in os.listdir("/proc") if pid.isdigit())

    first = beside("first", f"env -i setsid -f ../{name} 1000")
    second = beside("second", FOREVER)
    assert over(first).swept == []
    until(running, "it is left")
    assert any(name in line for line in second.close().swept)
    assert not running()


def test_what_one_uses_is_not_counted_for_the_other(beside, tmp_path):
    beside("large", f"for n in 1 2 3 4 5 6 7 8 9; do setsid -f sleep 1000; done; touch ready; {FOREVER}")
    until((tmp_path / "large" / "ready").exists, "they run")
    small = beside("small", "setsid -f sleep 1000; sleep 0.5", proc.Limits(60, processes=4))
    assert (over(small).stopped, small.result.code) == ("", 0)


def test_what_was_there_before_any_of_them_is_never_touched(beside, mark):
    before = sleeper(f"{mark}-2")
    try:
        first, second = beside("first", FOREVER), beside("second", FOREVER)
        assert (first.close().code, second.close().code) == (-signal.SIGKILL, -signal.SIGKILL)
        assert before.poll() is None
    finally:
        end(before)


def test_one_that_cannot_be_started_leaves_the_other_alone(beside, tmp_path, env):
    other = beside("other", FOREVER)
    with open(tmp_path / "output", "wb+") as output:
        failed = proc.Running(["no-such-program"], tmp_path, env, output, LIMITS, part="failed")
        assert failed.over()
        assert failed.close().error == "No such file or directory: no-such-program"
    assert not other.over()


def test_closing_twice_changes_nothing(beside):
    running = beside("one", "exit 3")
    result = over(running)
    seconds = result.seconds
    assert running.close() is result and (result.code, result.seconds) == (3, seconds)


# --------------------------------------------------------------------------------------------------------
# A process and its number
# --------------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_identity(mark):
    process = sleeper(mark)
    identity = processes.identity(process.pid)
    assert processes.is_alive(identity)
    assert processes.is_alive(json.loads(json.dumps(identity)))
    end(process)
    assert not processes.is_alive(identity)


@pytest.mark.parametrize("other", [{"start": "1"}, {"start": ""}, {"boot": "an earlier boot"}], ids=str)
def test_another_process_with_the_same_number_is_not_taken_for_it(other):
    assert not processes.is_alive({**processes.identity(os.getpid()), **other})


def test_a_zombie_is_not_alive(mark):
    process = sleeper(mark)
    identity = processes.identity(process.pid)
    process.kill()
    until(lambda: b") Z " in Path(f"/proc/{process.pid}/stat").read_bytes(), "it is a zombie")
    assert not processes.is_alive(identity)
    assert not processes.is_alive(processes.identity(process.pid))
    process.wait()


@pytest.mark.parametrize("name", ["a) Z 1 1", "plain", "(("])
def test_a_program_can_choose_no_name_that_hides_it(tmp_path, mark, name):
    (tmp_path / name).symlink_to("/bin/sleep")
    process = sleeper(mark, str(tmp_path / name), "1000")
    try:
        assert processes.is_alive(processes.identity(process.pid))
    finally:
        end(process)


# --------------------------------------------------------------------------------------------------------
# What a killed kit left
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_subreaper() -> Iterator[None]:
    """Orphans go to process 1, as they do when the kit is dead."""
    prctl = ctypes.CDLL(None).prctl
    prctl(proc.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    yield
    prctl(proc.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def test_what_a_killed_kit_left_is_ended(kit, mark, no_subreaper):
    process = kit(f"setsid sleep 1000 & (setsid sleep 1001 &) ; touch ready; {FOREVER}")
    until(lambda: sum(line.startswith("sleep") for line in marked(mark).values()) == 3, "all run")
    process.kill()
    process.wait()
    assert len(marked(mark)) == 3
    assert processes.end_leftovers(mark, None) == 3
    assert not marked(mark)
    assert processes.end_leftovers(mark, None) == 0


def test_what_carries_another_mark_is_never_touched(mark):
    like = f"{processes.MARKER}={mark}"
    others = [sleeper(f"{mark}-2"), sleeper(f"{mark[:-1]}"), sleeper("x", "sh", "-c", f": {like}; sleep 1000; true")]
    ours = sleeper(mark)
    try:
        assert processes.end_leftovers(mark, None) == 1
        assert ours.wait() == -signal.SIGKILL
        assert [process.poll() for process in others] == [None] * 3
    finally:
        for group in others:
            for pid in marked("x"):
                os.kill(pid, signal.SIGKILL)
            end(group)


def test_the_recorded_process_is_asked_first(tmp_path, mark):
    asked = f"trap 'touch {tmp_path}/asked; exit' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(["env", "-u", processes.MARKER, "sh", "-c", asked])
    until((tmp_path / "ready").exists, "it runs")
    assert processes.end_leftovers(mark, processes.identity(process.pid)) == 1
    assert (tmp_path / "asked").exists()
    assert process.wait() == 0


def test_the_recorded_process_is_killed_when_it_ignores_the_request(tmp_path, mark):
    process = sleeper(mark, "sh", "-c", f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    until((tmp_path / "ready").exists, "it runs")
    assert processes.end_leftovers(mark, processes.identity(process.pid), grace=0.2) >= 1
    assert process.wait() == -signal.SIGKILL


def test_a_later_process_with_the_recorded_number_is_never_touched(mark):
    process = sleeper(f"{mark}-2")
    try:
        assert processes.end_leftovers(mark, {**processes.identity(process.pid), "start": "1"}) == 0
        assert process.poll() is None
    finally:
        end(process)


def test_a_kit_that_was_started_by_what_it_ends_does_not_end_itself(env, mark):
    code = "import os, sys, processes; print(processes.end_leftovers(sys.argv[1], processes.identity(os.getpid())))"
    argv = [sys.executable, "-c", code, mark]
    done = subprocess.run(argv, env={**env, "PYTHONPATH": str(KIT)}, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "0\n")


# --------------------------------------------------------------------------------------------------------
# The environment for others
# --------------------------------------------------------------------------------------------------------


def test_secrets_and_what_an_outer_claude_or_make_left_do_not_reach_a_child():
    secret = ["OPENROUTER_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "aws_secret_access_key", "SSH_AUTH_SOCK", "PGPASS_"]
    nested = [
        "CLAUDECODE",
        "CLAUDE_CODE_ENTRYPOINT",
        "CLAUDE_CODE_CHILD_SESSION",
        "MAKEFLAGS",
        "MFLAGS",
        "MAKEOVERRIDES",
    ]
    plain = ["PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "AUTHOR", "LANG", "MAX_THINKING_TOKENS", "CLAUDE_CONFIG_DIR"]
    given = dict.fromkeys([*secret, *nested, *plain], "x")
    assert set(surroundings.clean_env(given)) == {*plain, "PGPASS_"}
    assert set(given) == {*secret, *nested, *plain}


def test_what_is_to_be_kept_stays():
    given = dict.fromkeys(["AWS_SECRET_KEY", "AWS_TOKEN", "AWSTOKEN", "API_KEY", "API_KEY_2", "CLAUDECODE"], "x")
    assert set(surroundings.clean_env(given, ["AWS_*", "API_KEY"])) == {"AWS_SECRET_KEY", "AWS_TOKEN", "API_KEY"}


def test_a_command_cannot_read_the_keys_in_the_environment_of_the_kit(kit, tmp_path):
    without_powers = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root could read everybody's otherwise
    need(os.geteuid() != 0 or shutil.which("setpriv"), "setpriv is not installed")
    process = kit("touch ready; cat /proc/$PPID/environ", under=without_powers if os.geteuid() == 0 else ())
    assert ended(process)["code"] == 1
    assert "Permission denied" in (tmp_path / "output").read_text()


@pytest.fixture
def places(tmp_path) -> Path:
    """A work tree with a program in it, one outside, and a link from outside to inside."""
    for place in ("outside", "tree/bin", "tree/node_modules/.bin"):
        (tmp_path / place).mkdir(parents=True)
    for path in ("outside/tool", "tree/bin/tool", "tree/bin/other", "tree/node_modules/.bin/tool"):
        (tmp_path / path).write_text("#!/bin/sh\n")
        (tmp_path / path).chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "tree" / "bin")
    return tmp_path


def test_a_program_is_never_taken_from_the_work_tree(places, monkeypatch):
    tree = places / "tree"
    monkeypatch.chdir(tree / "bin")
    inside = ["", ".", "node_modules/.bin", f"{tree}/bin", f"{tree}/node_modules/.bin", f"{places}/link", str(tree)]
    path = os.pathsep.join([*inside, f"{places}/outside"])
    assert surroundings.find("tool", tree, path) == f"{places}/outside/tool"
    assert surroundings.find("other", tree, path) is None
    monkeypatch.setenv("PATH", path)
    assert surroundings.find("tool", tree) == f"{places}/outside/tool"
    assert surroundings.find("other", tree) is None


def test_a_path_into_the_work_tree_comes_after_all_others(places):
    tree = places / "tree"
    path = os.pathsep.join([f"{tree}/bin", "/usr/bin", f"{places}/link", "relative", f"{places}/tree2", "/bin"])
    ours = ["/usr/bin", f"{places}/tree2", "/bin"]
    assert surroundings.trusted_first(path, tree).split(os.pathsep) == [
        *ours,
        f"{tree}/bin",
        f"{places}/link",
        "relative",
    ]
    assert surroundings.trusted_first("/usr/bin", tree) == "/usr/bin"
    assert surroundings.trusted_first("", tree) == ""


# --------------------------------------------------------------------------------------------------------
# Looking at the output
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path) -> Iterator[Any]:
    """An open file with this in it."""
    with tempfile.TemporaryFile(dir=tmp_path) as file:

        def write(data: bytes) -> Any:
            file.write(data)
            file.flush()
            return file

        yield write


@pytest.mark.parametrize(
    ("data", "limit", "end"),
    [
        (b"", 10, ""),
        (b"short\n", 10, "short\n"),
        (b"one\ntwo\n", 8, "one\ntwo\n"),
        (b"one\ntwo\nthree\n", 9, "three\n"),
        (b"one\ntwo\nthree", 8, "three"),
        (b"one\ntwo", 2, "wo"),
        (b"0123456789", 4, "6789"),
        (b"0123456789\n", 4, "789\n"),
        ("ä".encode() * 4, 3, "äää"),
        (b"x" * 10_000 + b"\n" + b"y" * 10_000, 3, "yyy"),
        (b"\xff\xfe\n", 10, "\ufffd\ufffd\n"),
    ],
)
def test_the_tail_begins_with_a_line_where_there_is_one(written, data, limit, end):
    assert proc.tail(written(data), limit) == end


def test_the_tail_is_masked(written, fresh_mask):
    log.know_value(SECRET)
    assert proc.tail(written(f"a\nlogged in with {SECRET}\n".encode()), 1000) == "a\nlogged in with ***\n"


@pytest.mark.parametrize("limit", range(1, len(SECRET) + 8))
def test_the_tail_never_shows_half_a_secret(written, fresh_mask, limit):
    log.know_value(SECRET)
    seen = proc.tail(written(f"{'x' * 50}{SECRET} end".encode()), limit)
    assert not any(SECRET[-length:] in seen for length in range(4, len(SECRET)))


def test_a_look_at_the_output_does_not_move_the_place_it_is_written_at(run, tmp_path):
    seen = []

    def look() -> str:
        with open(tmp_path / "step", "w") as step:
            step.write("x" * len(seen))
        seen.append((proc.tail(output, 100), proc.read(output, 2, 3)))
        return ""

    with open(tmp_path / "own", "wb+") as output:
        step = 'until test "$(wc -c < step)" -ge $i; do sleep 0.02; done; echo $i'
        run(f"echo 0; touch step; for i in 1 2 3; do {step}; done", tick=look, output=output)
        assert (tmp_path / "own").read_text() == "0\n1\n2\n3\n"
        assert proc.read(output, 2, 3) == b"1\n2"
        assert proc.read(output, 100, 3) == b""
    assert ("0\n1\n", b"1\n") in seen
