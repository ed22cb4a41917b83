"""One command: what it gives back, what ends it, and that nothing of it stays behind."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import KIT, marked, need, until

import log
import proc

LIMITS = proc.Limits(60, grace=5)
FOREVER = "exec sleep 1000"
LEAF = "sh -c 'touch ready; sleep 1000; true'"
READY = "until test -e ready; do sleep 0.02; done"
SECRET = "Zk9-planted+value/4711=="
# A kit in a process of its own: runs a line of shell, and prints what became of it.
SUPERVISOR = """
import json, os, signal, sys
from pathlib import Path
import proc

def signal_at(name):  # the signal arrives exactly there
    original = getattr(proc, name)
    def function(*args, **options):
        result = original(*args, **options)
        signal.raise_signal(signal.SIGTERM)
        return result
    setattr(proc, name, function)

proc.handle_signals()
for name in sys.argv[2:]:
    signal_at(name)
ended = {}
try:
    with open("output", "wb+") as out:
        argv = ["sh", "-c", sys.argv[1]]
        result = proc.run(argv, cwd=Path("."), env=dict(os.environ), output=out, limits=proc.Limits(60, grace=1))
except proc.Interrupted as error:
    result, ended = error.result, {"exit": error.code}
print(json.dumps({**ended, "signal": proc.stopping, **vars(result)}))
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark for everything that a test starts; the test fails when something with it is left."""
    value = uuid.uuid4().hex
    yield value
    left = marked(value)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left and not proc._open


@pytest.fixture
def env(mark) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], proc.MARKER: mark, "PYTHONPATH": str(KIT)}


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
def kit(tmp_path, env) -> Iterator[Any]:
    """Start a kit in a process of its own; `until` its command made the file `ready`."""
    with ExitStack() as stack:

        def start(command: str, *at: str, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            argv = [*under, sys.executable, "-c", SUPERVISOR, command, *at]
            process = subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            until(lambda: at or (tmp_path / "ready").exists(), "the command runs")
            return process

        yield start


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the kit in a process of its own said at its end."""
    return dict(json.loads(process.communicate(timeout=60)[0]))


def python(code: str, env: dict[str, str]) -> list[str]:
    """Run Python in a process of its own; the last line of its output, and of its errors."""
    argv = [sys.executable, "-c", f"import os, proc, signal, sys\n{code}"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    return [text.strip().rpartition("\n")[2] for text in (done.stdout, done.stderr)]


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """Start a process with this mark in its environment, by which it is known to run its own program."""
    with ExitStack() as stack:

        def start(mark: str, *argv: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(argv or ["sleep", "1000"], env={"PATH": os.environ["PATH"], proc.MARKER: mark})
            stack.callback(process.wait)
            stack.callback(process.kill)
            until(lambda: process.pid in marked(mark), "it runs its own program")
            return process

        yield start


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9)])
def test_the_exit_code_is_the_commands_own(run, command, code, monkeypatch):
    result, _ = run(command)
    assert (result.code, result.stopped, result.error, result.swept) == (code, "", "", [])
    monkeypatch.delattr(os, "pidfd_open")  # as where there is no Linux, or it is forbidden
    monkeypatch.setattr(proc, "_pids", None)  # nothing was left: no scan of /proc, which takes long on a busy machine
    assert run(command)[0].code == code


def test_an_exit_code_survives_a_parent_that_ignores_its_children(kit):
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    assert ended(kit("touch ready; false", under=(sys.executable, "-c", code)))["code"] == 1


def test_it_gets_its_input_and_environment_and_its_output_and_errors_are_in_their_files(run, tmp_path, monkeypatch):
    result, printed = run(r"echo one; echo two >&2; printf '\377\376\000end'")
    assert (os.fsencode(printed), result.size) == (b"one\ntwo\n\xff\xfe\0end", 14)
    with open(tmp_path / "errors", "wb+") as errors:
        result, printed = run("echo one; echo two >&2", errors=errors)
    assert (printed, (tmp_path / "errors").read_text(), result.size) == ("one\n", "two\n", 8)
    assert run("echo a long first line; echo b > /dev/stdout; echo c")[1] == "b\nc\n"  # no hole where it was reopened
    for data in (b"", bytes(range(256)) * 4096):
        assert os.fsencode(run("cat", stdin=data)[1]) == data
    monkeypatch.setenv("OF_THE_KIT", "not for others")
    given = {"PATH": os.environ["PATH"], "EMPTY": "", "UMLAUT": "ä\n=", "BYTES": os.fsdecode(b"\xff")}
    _, printed = run(["env", "-0"], env=given)
    assert dict(line.split("=", 1) for line in printed.split("\0")[:-1]) == given


def test_what_cannot_be_started_is_a_result(run, tmp_path):
    (tmp_path / "plain").write_text("echo\n")
    for argv, reason, given in (
        (["no-such-program"], "No such file or directory: no-such-program", {}),
        (["./plain"], "Permission denied: ./plain", {}),
        (["echo", "x" * 3_000_000], "Argument list too long: echo", {}),
        (["true"], f"No such file or directory: {tmp_path}/gone", {"cwd": tmp_path / "gone"}),
    ):
        result, printed = run(argv, **given)
        assert (result.error, result.code, printed, bool(result.errno)) == (reason, None, "", True)


EATERS = f"setsid {sys.executable} -c 'import signal; eaten = b\"x\" * 60_000_000; signal.pause()' &\n" * 4
REACHED = {  # reason -> limits, what runs before it hangs
    "timeout": ({"timeout": 0.3}, ":"),
    "idle": ({"idle": 0.3}, ":"),
    "size": ({"max_output": 200_000}, "head -c 300000 /dev/zero"),
    "memory": ({"memory": 150_000_000}, f"{EATERS} wait"),  # of all processes together
    "processes": ({"processes": 50}, "for n in $(seq 100); do setsid sleep 1000 & done"),
}


@pytest.mark.parametrize("reason", REACHED)
def test_a_limit_ends_it_and_all_that_it_started(run, reason, mark):
    limits, command = REACHED[reason]
    result, _ = run(f"{command}; {FOREVER}", proc.Limits(**{"timeout": 60, "grace": 5, **limits}))
    assert (result.stopped, -result.code) == (reason, signal.SIGKILL if reason in ("memory", "processes") else 15)
    assert not marked(mark)


def test_a_command_that_keeps_printing_or_stays_at_its_limits_is_left_alone(run, tmp_path, monkeypatch):
    assert run("head -c 2000 /dev/zero", proc.Limits(60, idle=50, max_output=2000))[0].stopped == ""
    clock = Mock(now=0.0)
    monkeypatch.setattr(proc, "time", Mock(monotonic=lambda: clock.now))

    def tick() -> str:
        clock.now += 90
        (tmp_path / "output").write_text("x" * int(clock.now))
        return "enough" if clock.now > 400 else ""

    assert run(FOREVER, proc.Limits(10_000, idle=100, grace=5), tick=tick)[0].stopped == "enough"


def test_it_is_asked_to_end_and_killed_after_the_grace(run, tmp_path):
    loop = "touch ready; while :; do sleep 0.1; done"
    tick = lambda: "seen" if (tmp_path / "ready").exists() else ""  # noqa: E731
    for trap, code, grace in (("echo tidied up; exit 7", 7, 5), ("", -signal.SIGKILL, 0.5)):
        result, printed = run(f"trap '{trap}' TERM; {loop}", proc.Limits(60, grace=grace), tick=tick)
        assert (result.code, result.stopped, printed) == (code, "seen", "tidied up\n" if code == 7 else "")
        (tmp_path / "ready").unlink()


def test_an_error_of_the_kit_itself_leaves_nothing_running(run, mark):
    for where in ("started", "tick"):
        with pytest.raises(RuntimeError, match="the disk is full"):
            broken = Mock(side_effect=RuntimeError("the disk is full"))
            run(f"sleep 1000 & setsid sleep 1000 & {FOREVER}", **{where: broken})
        assert not marked(mark)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=["TERM", "INT", "QUIT"])
def test_a_signal_to_the_kit_ends_the_command_and_all_it_left(kit, number, mark):
    process = kit(f"setsid {LEAF} & trap '' TERM; until test -e ready; do :; done; while :; do sleep 0.1; done")
    for one in (signal.SIGHUP, number, number):  # a lost terminal ends nothing, a second one cuts nothing short
        process.send_signal(one)
    report = ended(process)
    assert (report["exit"], report["signal"], report["stopped"]) == (128 + number, number, "interrupted")
    assert report["code"] == -signal.SIGKILL and any("sleep 1000" in name for name in report["swept"])
    assert not marked(mark)


@pytest.mark.parametrize(
    ("place", "end", "became"), [("_spawn", FOREVER, ["interrupted", -15]), ("_kill", ":", ["", 0])]
)
def test_a_signal_while_it_is_started_or_swept_up_leaves_nothing_and_is_raised_once(kit, mark, place, end, became):
    report = ended(kit(f"setsid {LEAF} & {READY}; {end}", place))
    assert [report[name] for name in ("exit", "signal", "stopped", "code")] == [143, 15, *became]
    assert not marked(mark)


def test_a_signal_ends_a_pause_nothing_begins_after_it_and_later_ones_are_only_noted(env):
    code = """if True:
        proc.handle_signals()
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            proc.pause(600)
        except proc.Interrupted as error:
            signal.raise_signal(signal.SIGINT)
            print(error.code, proc.stopping)
        proc.run(["touch", "begun"])"""
    assert python(code, env) == ["142 2", "proc.Interrupted: 130"]


LEFT_BEHIND = (
    f"{LEAF} &",
    f"setsid --fork {LEAF}",
    f'(setsid sh -c "setsid {LEAF} & exit" &)',
    f"trap '' TERM INT HUP; setsid {LEAF} &",
)


@pytest.mark.parametrize("command", LEFT_BEHIND, ids=["child", "daemon", "deep", "deaf"])
def test_what_it_leaves_behind_is_ended_and_named(run, mark, command, fresh_mask):
    log.register_secret(SECRET)
    result, _ = run(f": {SECRET}; {command}\n{READY}; exit 3")
    assert result.code == 3 and any("sleep 1000" in name for name in result.swept)
    assert SECRET not in str(result) and not marked(mark)


def test_children_that_were_there_before_and_detached_ones_are_never_touched(run, mark, sleeper, tmp_path, env, capfd):
    before, during = sleeper(f"{mark}-2"), []

    def started(_: int) -> None:
        detached = ["sh", "-c", "cat > arrived; echo unheard; echo went wrong >&2; exec sleep 1000"]
        during.append(proc.start_detached(detached, tmp_path, {**env, proc.MARKER: f"{mark}-3"}, b"text"))

    result, _ = run(f"setsid {LEAF} & {READY}; until test -s arrived; do sleep 0.02; done", started=started)
    assert (before.poll(), during[0].poll(), (tmp_path / "arrived").read_text()) == (None, None, "text")
    assert result.swept and not marked(mark)
    until(lambda: capfd.readouterr() == ("", "went wrong\n"), "its errors are the kit's")
    during[0].kill()
    during[0].wait()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_may_not_be_ended_does_not_hang_the_kit(run, mark, monkeypatch, capfd):
    """As with `sudo`, whose process belongs to root."""
    started: list[int] = []
    with monkeypatch.context() as machine:
        machine.setattr(os, "kill", Mock(side_effect=PermissionError))
        machine.setattr(proc, "KILL_TIME", 0.1)
        result, _ = run(f"setsid {LEAF} & {FOREVER}", proc.Limits(60, processes=1), started=started.append)
    assert (result.code, result.stopped) == (None, "processes")
    assert re.search(rf"cannot be killed are left running: \[.*{started[0]}", capfd.readouterr().err)
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_commands_side_by_side_have_ends_of_their_own_and_are_swept_up_after_together(tmp_path, env, mark):
    with open(tmp_path / "output", "wb") as output:

        def beside(line: str, limits: proc.Limits = LIMITS) -> proc.Running:
            return proc.Running(["sh", "-c", line], tmp_path, env, output, limits)

        first, second = beside(f"{READY}; exit 3"), beside("touch ready; until test -e go; do sleep 0.02; done; exit 4")
        late = beside(FOREVER, proc.Limits(0.3, grace=5))
        until(lambda: proc.wait_for_any([first, second], 60.0) or first.over(), "the first one ends")
        until(late.over, "its time is up")
        assert (late.close().stopped, first.close().code, second.over()) == ("timeout", 3, False)
        (tmp_path / "go").touch()
        until(second.over, "it ends")
        assert second.close().code == 4 and second.close() is second.result
        (tmp_path / "ready").unlink()
        first, second = beside(f"setsid -f {LEAF}; {READY}"), beside(FOREVER)
        until(first.over, "it ends")
        assert first.close().swept == [] and len(marked(mark)) > 1
        assert any("sleep 1000" in name for name in second.close().swept) and not marked(mark)


def test_a_process_is_known_by_its_identity_until_it_ends_and_by_where_it_works(tmp_path, mark, sleeper):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "z) Z 1 1").symlink_to("/bin/sleep")
    process = sleeper(mark, "sh", "-c", f"cd {tmp_path}/a/b && exec '../z) Z 1 1' 1000")
    until(lambda: proc.working_in(tmp_path / "a", "z) Z"), "it works there")
    assert not proc.working_in(tmp_path / "a" / "b" / "c", "z") and not proc.working_in(tmp_path, "git")
    identity = json.loads(json.dumps({**proc.identity(process.pid), "mission": "x"}))
    assert proc.is_alive(identity)
    for other in ({"start": "1"}, {"start": ""}, {"boot": "an earlier boot"}):
        assert not proc.is_alive({**identity, **other})
    process.kill()
    until(lambda: b"State:\tZ" in Path(f"/proc/{process.pid}/status").read_bytes(), "it is a zombie")
    assert not proc.is_alive(identity) and not proc.is_alive(proc.identity(process.pid)) and not proc.is_alive({})


def test_what_a_killed_kit_left_is_ended(kit, mark):
    process = kit(f"setsid sleep 1000 & (setsid sleep 1001 &) ; touch ready; {FOREVER}")
    until(lambda: sum(line.startswith("sleep") for line in marked(mark).values()) == 3, "all run")
    prctl = ctypes.CDLL(None).prctl
    prctl(proc.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)  # orphans go to process 1, as they do when the kit is dead
    process.kill()
    process.wait()
    prctl(proc.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    assert len(marked(mark)) == 3
    assert proc.end_leftovers(mark, None) == 3
    assert (marked(mark), proc.end_leftovers(mark, None)) == ({}, 0)


def test_what_carries_another_mark_or_a_recorded_number_is_never_touched(mark, sleeper, env):
    deceptive = sleeper("x", "sh", "-c", f": {proc.MARKER}={mark}; exec sleep 9e9")
    others = [sleeper(f"{mark}-2"), sleeper(mark[:-1]), deceptive]
    ours, recorded = sleeper(mark), sleeper("y")
    assert proc.end_leftovers(mark, {**proc.identity(others[0].pid), "start": "1"}) == 1
    assert proc.end_leftovers(mark, proc.identity(recorded.pid)) == 1
    ours.wait(), recorded.wait()
    assert [process.poll() for process in others] == [None] * 3
    code = f"print(proc.end_leftovers({mark!r}, proc.identity(os.getpid())))"  # nor a kit that a worker started
    assert python(code, env) == ["0", ""]


def test_secrets_and_what_an_outer_claude_or_make_left_do_not_reach_a_child():
    secret = ["OPENROUTER_API_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "aws_secret_access_key", "SSH_AUTH_SOCK"]
    plain = ["PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "AUTHOR", "LANG", "MAX_THINKING_TOKENS", "CLAUDE_CONFIG_DIR"]
    given = dict.fromkeys([*secret, *proc.NESTED, *plain], "x")
    assert list(proc.clean_env(given)) == plain
    given = dict.fromkeys(["AWS_SECRET_KEY", "AWS_TOKEN", "AWSTOKEN", "API_KEY", "API_KEY_2", "CLAUDECODE"], "x")
    assert set(proc.clean_env(given, ["AWS_*", "API_KEY"])) == {"AWS_SECRET_KEY", "AWS_TOKEN", "API_KEY"}
    given = {"PATH": "/tree/bin:/usr/bin", "VIRTUAL_ENV": "/tree/.venv", "GIT_DIR": "x", "LANG": "C"}
    assert proc.clean_env(given, apart=Path("/tree")) == {"PATH": "/usr/bin", "LANG": "C"}


def test_a_command_cannot_read_the_keys_in_the_environment_of_the_kit(kit, tmp_path):
    need(os.geteuid() != 0 or shutil.which("setpriv"), "setpriv is not installed")
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()  # root may read all
    assert ended(kit("touch ready; cat /proc/$PPID/environ", under=drop))["code"] == 1
    assert "Permission denied" in (tmp_path / "output").read_text()


def test_a_program_is_never_taken_from_the_work_tree(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for path in ("outside/tool", "tree/bin/tool", "tree/bin/other", "tree/node_modules/.bin/tool"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("#!/bin/sh\n")
        (tmp_path / path).chmod(0o755)
    (tmp_path / "link").symlink_to(tree / "bin")
    monkeypatch.chdir(tree / "bin")
    inside = ["", ".", "node_modules/.bin", f"{tree}/bin", f"{tree}/node_modules/.bin", f"{tmp_path}/link", str(tree)]
    path = os.pathsep.join([*inside, f"{tmp_path}/outside"])
    monkeypatch.setenv("PATH", path)
    assert proc.find("tool", tree) == proc.find("tool", tree, path) == f"{tmp_path}/outside/tool"
    assert proc.find("other", tree) is None
    assert proc.trusted_path(path, tree).split(os.pathsep) == [f"{tmp_path}/outside", *inside]
    assert (proc.trusted_path("/usr/bin", tree), proc.trusted_path("", tree)) == ("/usr/bin", "")
    (tmp_path / "outside" / "other").symlink_to(tmp_path / "outside" / "tool")
    assert proc.find("other", tree) == f"{tmp_path}/outside/other"
    monkeypatch.setattr(proc, "_distrusted", set())
    proc.distrust(tmp_path)
    assert proc.find("other", tree) is None


def test_the_tail_is_the_end_and_never_shows_a_secret_or_half_of_it(tmp_path, fresh_mask):
    def tail(data: str, limit: int) -> str:
        (tmp_path / "output").write_text(data)
        with open(tmp_path / "output", "rb") as file:
            return proc.tail(file, limit)

    assert (tail("one\n", 5), tail("one\ntwo", 5), tail("ä" * 9999, 5)) == ("one\n", "e\ntwo", "äääää")
    log.register_secret(SECRET)
    assert tail(f"a\nlogged in with {SECRET}\n", 1000) == "a\nlogged in with ***\n"
    for limit in range(1, len(SECRET) + 8):
        seen = tail(f"{'x' * 50}{SECRET} end", limit)
        assert not any(SECRET[-length:] in seen for length in range(4, len(SECRET)))


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    proc.require_space(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: Mock(f_bavail=1, f_frsize=4096, f_files=10, f_favail=5))
    with pytest.raises(OSError, match=f"no space left.*{tmp_path}"):
        proc.require_space(tmp_path)
