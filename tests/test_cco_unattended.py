"""Unattended: cron, nohup, a lost terminal, and a machine that lacks room, rights, processes, files or its repository.

Each fault through the real command line: a clear word and the exit code for it, the last good state intact, nothing
held against the work that is not its fault, and a later start that ends done.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, need, until

import machine
import processes
import state as store
from repo import Repo

README = (KIT / "README.md").read_text()
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "tests", "node_modules")
WRITES_B: list[dict[str, Any]] = [{"write": {"b": "1\n"}}, {"say": "wrote b"}]
NO_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root keeps to the rights of files, too
NO_WALLS = {"checks": {"sandbox": False}}
KEPT = "start again; the last good state is kept"


def ended(process: subprocess.Popen[bytes], seconds: float = 90.0) -> int:
    """The exit code of what ends by itself; what does not is ended, with all of its group."""
    try:
        return process.wait(seconds)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def begin():
    """Start a command in the background, in a group of its own; what still runs after the test is ended."""
    processes = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        end(process)


def in_background(begin: Any, bench: Bench, *args: str) -> subprocess.Popen[bytes]:
    with (bench.folder / "output").open("wb") as output:
        command = bench.command("start", str(bench.mission), *args)
        return begin(command, env=bench.environment, cwd=bench.project, stdout=output, stderr=subprocess.STDOUT)


def working(bench: Bench, sessions: int = 1) -> None:
    until(lambda: len(bench.calls()) == sessions, "a worker was started")


def require_nothing_false(bench: Bench) -> None:
    """The state is whole, and no check is said to have failed for what it did not do."""
    path = bench.folder / "seen.json"
    path.write_text(json.dumps(bench.state()))
    document = store.load(path)
    assert {known["verdict"] for known in document["criteria"].values()} <= {"met", "unmet", "unjudged"}
    assert not any(known["regressions"] for known in document["criteria"].values())


def require_done(bench: Bench, git: Any, sessions: int = 2) -> None:
    """Done, each session's work is in one commit, and nobody is left."""
    document = bench.state()
    assert (document["current_phase"], len(bench.calls())) == ("completed", sessions)
    trailers = git(
        bench.project, "log", "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)", "main..cco/demo"
    )
    assert [int(number) for number in trailers.split()] == list(range(document["iterations"], 0, -1))
    assert git(bench.project, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"
    assert not bench.alive()


# --------------------------------------------------------------------------------------------------------
# cron and nohup
# --------------------------------------------------------------------------------------------------------


class Crontab:
    """A home with a project that the kit was copied into, and the lines of README.md."""

    def __init__(self, home: Path, project: Path, git: Any):
        self.home, self.project = home, project.rename(home / "my-project")
        self.kit, self.script = self.project / "cco", home / "script.json"
        shutil.copytree(KIT, self.kit, ignore=NOT_COPIED)
        shutil.copy(KIT / ".gitignore", self.kit)
        _program(self.kit / ".venv" / "bin" / "python", f'exec {shlex.quote(sys.executable)} "$@"')
        shutil.copy(self.kit / "requirements.txt", self.kit / ".venv" / ".installed")
        stand_in = f"{shlex.quote(sys.executable)} {shlex.quote(str(KIT / 'extras' / 'claude_stand_in.py'))}"
        where = f"CLAUDE_STAND_IN={shlex.quote(str(self.script))}"
        _program(home / ".local" / "bin" / "claude", f'{where} exec {stand_in} "$@"')
        mission = {"title": "A demo", "settings": {"claude_code": {"sandbox": False}}}
        (self.project / "mission.yaml").write_text(json.dumps({**mission, "definition_of_done": TWO_CRITERIA}))
        git(self.project, "add", "mission.yaml")
        git(self.project, "commit", "-q", "-m", "mission")
        nohup, cron = re.findall(r"^    (nohup .*|\*/10 .*)$", README, re.M)
        self.nohup, self.cron = nohup, cron.removeprefix("*/10 * * * * ")

    def shell(self, line: str, cwd: Path) -> list[str]:
        """What cron makes of a line: no login, no terminal, next to no environment."""
        bare = ["env", "-i", f"HOME={self.home}", "PATH=/usr/bin:/bin", f"XDG_STATE_HOME={self.home}/state"]
        return [*bare, "/bin/sh", "-c", f"cd {shlex.quote(str(cwd))} && {line}"]

    def tick(self) -> tuple[int, list[str]]:
        """One run of the line for cron: its exit code, and the lines that it added to its log."""
        log = self.kit / "cco.log"
        before = log.stat().st_size if log.exists() else 0
        done = subprocess.run(self.shell(self.cron, self.home), capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == ("", "")  # else cron sends a mail
        return done.returncode, log.read_bytes()[before:].decode().splitlines()

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.project / ".cco" / "mission.json").read_text()))

    def contents(self) -> dict[Path, bytes]:
        """All files but the logs, the lock, and what Python keeps."""
        files = (path for path in self.project.rglob("*") if path.is_file())
        own = re.compile(r"/cco\.log$|/\.cco/logs/|/\.cco/lock$|__pycache__")
        return {path: path.read_bytes() for path in files if not own.search(str(path))}


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def crontab(tmp_path, project, git) -> Crontab:
    return Crontab(tmp_path, project, git)


def test_the_line_for_cron_works_as_printed_and_a_tick_after_the_end_says_done(crontab):
    crontab.script.write_text(json.dumps([WRITES_A, WRITES_B]))
    code, lines = crontab.tick()
    assert (code, crontab.state()["current_phase"]) == (0, "completed"), lines
    code, lines = crontab.tick()
    assert code == 0 and any("done: all 2 criteria are met" in line for line in lines)


def test_a_tick_while_the_line_for_nohup_runs_ends_at_once_with_75_and_one_line(crontab, begin):
    go = crontab.home / "go"
    crontab.script.write_text(json.dumps([[{"wait_for": str(go)}, {"write": {"a": "1", "b": "1"}}]]))
    line = crontab.shell(f"{crontab.nohup} wait $!", crontab.project)
    nohup = begin(line, stdin=subprocess.DEVNULL)
    until(Path(f"{crontab.script}.calls.jsonl").exists, "the worker was started")
    before = crontab.contents()
    for _ in range(2):
        code, lines = crontab.tick()
        assert (code, len(lines)) == (75, 1), lines
        assert "another orchestrator works here: pid" in lines[0]
    assert crontab.contents() == before
    go.touch()
    assert ended(nohup) == 0
    assert crontab.state()["current_phase"] == "completed"


def test_a_tick_during_a_wait_ends_at_once_with_75_and_one_line_and_touches_nothing(crontab):
    reset = {"resetsAt": int(time.time()) + 7200, "rateLimitType": "five_hour"}
    crontab.script.write_text(json.dumps([[{"limit": reset}]]))
    assert crontab.tick()[0] == 75
    crontab.tick()  # whatever is put in order after a run is so by now
    before = crontab.contents()
    code, lines = crontab.tick()
    assert (code, len(lines)) == (75, 1), lines
    assert "waiting for the usage limit" in lines[0]
    assert crontab.contents() == before
    assert len(Path(f"{crontab.script}.calls.jsonl").read_text().splitlines()) == 1


# --------------------------------------------------------------------------------------------------------
# Terminal and standard files
# --------------------------------------------------------------------------------------------------------


class Terminal:
    """A command as the leader of a terminal of its own."""

    def __init__(self, begin: Any, bench: Bench, *args: str):
        self.master, slave = pty.openpty()
        take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        code = f"{take}; os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", code, *bench.command(*args)]
        files = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = begin(command, env=bench.environment, cwd=bench.project, **files)
        os.close(slave)
        self.shown = b""

    def shows(self) -> str:
        """All that has come so far."""
        while select.select([self.master], [], [], 0)[0]:
            self.shown += os.read(self.master, 10_000)
        return self.shown.decode(errors="replace")

    def close(self) -> None:
        """What a lost connection does: the kernel tells the leader with SIGHUP, and every write fails."""
        os.close(self.master)


@pytest.mark.parametrize("command", ["start", "resume"])
def test_a_lost_terminal_does_not_end_a_mission(bench, begin, git, tmp_path, command):
    bench.sessions(WRITES_A, [{"wait_for": str(tmp_path / "go")}, *WRITES_B])
    assert bench.start("--once").returncode == 75
    terminal = Terminal(begin, bench, *(("start", str(bench.mission)) if command == "start" else ("resume",)))
    until(lambda: terminal.shows() and len(bench.calls()) == 2, "the second worker was started")
    terminal.close()
    until(lambda: "the terminal is gone; the mission goes on" in bench.log(), "the log tells of it")
    (tmp_path / "go").touch()
    assert ended(terminal.process) == 0
    require_done(bench, git)


def test_a_lost_terminal_ends_a_check_and_what_it_runs(bench, begin, tmp_path):
    bench.write([{"id": "slow", "criteria": "slow", "check": f"touch {shlex.quote(str(tmp_path / 'on'))}; sleep 1000"}],
                settings=NO_WALLS)  # fmt: skip
    terminal = Terminal(begin, bench, "check", str(bench.mission))
    until((tmp_path / "on").exists, "the check runs")
    terminal.close()
    assert ended(terminal.process) == 128 + signal.SIGHUP
    assert not bench.alive()


def test_a_lost_terminal_is_not_taken_for_a_persons_answer(bench, begin):
    bench.write(TWO_CRITERIA, settings={"claude_code": {"mode": "manual"}})
    terminal = Terminal(begin, bench, "start", str(bench.mission))
    until(lambda: "Press Enter when it has been done." in terminal.shows(), "the person is asked")
    terminal.close()
    assert ended(terminal.process) == 4
    assert (bench.state()["current_phase"], bench.state()["iterations"]) == ("execution", 1)
    assert "nobody is at the terminal any more" in bench.log()


def in_shell(bench: Bench, files: str, *args: str) -> int:
    line = f"exec {shlex.join(bench.command(*args))} {files}"
    done = subprocess.run(["sh", "-c", line], env=bench.environment, cwd=bench.project, timeout=60, check=False)
    return done.returncode


@pytest.mark.parametrize("files", [">/dev/full", ">/dev/full 2>&1", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_full_and_closed_standard_files_do_a_mission_no_harm(bench, git, files):
    bench.sessions(WRITES_A, WRITES_B)
    assert in_shell(bench, files, "start", str(bench.mission)) == 0
    require_done(bench, git)


@pytest.mark.parametrize("args, code", [(("status",), 4), (("status", "no such"), 2), (("start", "no such"), 2)])
def test_a_full_output_is_an_exit_code_and_no_traceback(bench, capfd, args, code):
    bench.sessions(WRITES_A)
    assert bench.start("--once").returncode == 75
    for files in (">/dev/full", ">/dev/full 2>&1"):
        assert in_shell(bench, files, *args) == code
    assert "Traceback" not in capfd.readouterr().err


# --------------------------------------------------------------------------------------------------------
# No room, nothing that may be written
# --------------------------------------------------------------------------------------------------------


class World:
    """A mount namespace: nobody else sees what is mounted in it, and it goes with its process."""

    def __init__(self, how: list[str]):
        self.holder = subprocess.Popen([*how, "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
        assert self.holder.stdout
        self.works = bool(self.holder.stdout.readline())
        user = ["--user", "--preserve-credentials"] if "--user" in how else []
        self.enter = ["nsenter", f"--target={self.holder.pid}", *user, "--mount", "--"]

    def run(self, *argv: str) -> str:
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def end(self) -> None:
        self.holder.kill()
        self.holder.wait()
        if self.holder.stdout:
            self.holder.stdout.close()


class Inside(Bench):
    """A mission in a world of its own."""

    world: World

    def command(self, *args: str) -> list[str]:
        enter = [*self.world.enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.project)]
        return [*enter, *super().command(*args)]

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.world.run("cat", str(self.project / ".cco" / "demo.json"))))

    def git(self, _: Path, *args: str) -> str:
        return self.world.run("git", "-C", str(self.project), *args).strip()


@pytest.fixture
def inside(project, tmp_path):
    made = Inside(project, tmp_path)
    made.write(TWO_CRITERIA)
    ways = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
    for how in ways if shutil.which("nsenter") else ():
        made.world = World(how)
        if made.world.works:
            yield made
            made.world.end()
            return
        made.world.end()
    need(False, "no mount namespace can be made here (unshare, nsenter)")


SMALL = {
    "repository": "a project",
    ".cco": "a project/.cco",
    "temporary folder": "temporary",
}  # what is on a small disk


def small_disk(bench: Inside, what: str) -> Path:
    """Put a part of the project on a disk of 12 MB; the file to fill it with."""
    disk, world = bench.folder / SMALL[what], bench.world
    disk.mkdir(exist_ok=True)
    shutil.copytree(disk, bench.folder / "copy", symlinks=True)
    world.run("mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "small", str(disk))
    world.run("cp", "-a", f"{bench.folder}/copy/.", str(disk))
    if what == "temporary folder":
        bench.environment["TMPDIR"] = str(disk)
    return disk / (".git" if what == "repository" else ".") / "filler"


def fill(path: Path) -> str:
    return f"head -c 100000000 /dev/zero 2>/dev/null > {shlex.quote(str(path))}; true"


@pytest.mark.parametrize("what", ["repository", ".cco"])
def test_a_full_disk_before_the_start(inside, what):
    filler = small_disk(inside, what)
    inside.sessions(WRITES_A, WRITES_B)
    inside.world.run("sh", "-c", fill(filler))
    for _ in range(2):
        done = inside.start()
        assert (done.returncode, inside.calls()) == (4, []), done.stdout
        assert f"free some space, then {KEPT}" in done.stdout + done.stderr
    inside.world.run("rm", str(filler))
    assert inside.start().returncode == 0
    require_done(inside, inside.git)


def test_a_full_temporary_folder_before_the_start_is_passed_over_for_another_one(inside):
    filler = small_disk(inside, "temporary folder")
    inside.sessions(WRITES_A, WRITES_B)
    inside.world.run("sh", "-c", fill(filler))
    assert inside.start().returncode == 0
    require_done(inside, inside.git)


@pytest.mark.parametrize("what", SMALL)
def test_a_disk_that_fills_while_the_worker_runs(inside, what):
    filler = small_disk(inside, what)
    inside.sessions([*WRITES_A[:1], {"bash": fill(filler)}], WRITES_B, [])
    done = inside.start()
    assert done.returncode == 4, done.stdout
    assert f"free some space, then {KEPT}" in done.stdout + done.stderr
    require_nothing_false(inside)
    assert inside.start().returncode == 4
    require_nothing_false(inside)
    inside.world.run("rm", str(filler))
    assert inside.start().returncode == 0
    require_done(inside, inside.git, len(inside.calls()))


@pytest.mark.parametrize("what", SMALL)
def test_a_disk_that_fills_while_a_check_runs_is_no_verdict_on_the_work(inside, what):
    """The check of what is met fails for want of room, so that it would be a regression."""
    filler, trigger = small_disk(inside, what), inside.folder / "trigger"
    probe = shlex.quote(f"{filler}.probe")
    check = f"if test -e '{trigger}'; then {fill(filler)}; fi; head -c 100000 /dev/zero > {probe} && rm {probe}"
    inside.write([{**TWO_CRITERIA[0], "check": f"{check} && test -e a"}, TWO_CRITERIA[1]], settings=NO_WALLS)
    inside.sessions(WRITES_A, WRITES_B)
    assert inside.start("--once").returncode == 75
    assert inside.state()["completed_tasks"] == ["a"]
    trigger.touch()
    done = inside.start()
    assert done.returncode == 4, done.stdout
    require_nothing_false(inside)
    assert inside.state()["completed_tasks"] == ["a"]
    trigger.unlink()
    inside.world.run("rm", str(filler))
    assert inside.start().returncode == 0
    require_done(inside, inside.git)


def read_only(bench: Inside, place: Path) -> None:
    """Cover a folder by itself; what is open in it stays open."""
    bench.world.run("sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"', str(place))


def test_a_read_only_file_system_before_the_start(inside):
    inside.sessions(WRITES_A, WRITES_B)
    read_only(inside, inside.project)
    done = inside.start()
    assert (done.returncode, inside.calls()) == (4, [])
    assert f"make the file system writable again (see: mount, dmesg), then {KEPT}" in done.stdout + done.stderr
    inside.world.run("umount", str(inside.project))
    assert inside.start().returncode == 0
    require_done(inside, inside.git)


@pytest.mark.parametrize("place", [".", ".git", ".cco"])
def test_a_file_system_that_becomes_read_only_while_the_worker_runs(inside, begin, tmp_path, place):
    inside.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    running = in_background(begin, inside)
    working(inside)
    read_only(inside, inside.project / place)
    (tmp_path / "go").touch()
    assert ended(running) == 4
    assert "Traceback" not in inside.output()
    assert f"make the file system writable again (see: mount, dmesg), then {KEPT}" in inside.output()
    require_nothing_false(inside)
    inside.world.run("umount", str(inside.project / place))
    assert inside.start().returncode == 0
    require_done(inside, inside.git, len(inside.calls()))


# --------------------------------------------------------------------------------------------------------
# Something is gone
# --------------------------------------------------------------------------------------------------------


def test_a_cco_folder_that_is_deleted_while_it_runs_is_made_anew(bench, begin, project, git, tmp_path):
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    running = in_background(begin, bench)
    working(bench)
    shutil.rmtree(project / ".cco")
    (tmp_path / "go").touch()
    assert ended(running) == 0, bench.output()
    require_done(bench, git)
    assert "done: all 2 criteria are met" in bench.log()
    assert store.load(project / ".cco" / "demo.json")["iterations"] == 2


def test_a_deleted_lock_does_not_let_two_work_here(bench, begin, project, git, tmp_path):
    bench.sessions([{"wait_for": str(tmp_path / "go")}], [{"write": {"a": "1", "b": "1"}}])
    running = in_background(begin, bench)
    working(bench)
    shutil.rmtree(project / ".cco")
    second = begin(
        bench.command("start", str(bench.mission)), env=bench.environment, cwd=project, stdout=subprocess.DEVNULL
    )
    codes = sorted([ended(running), ended(second)])
    assert codes == [0, 75], bench.output()
    assert bench.state()["current_phase"] == "completed" and not bench.alive()


def test_a_cco_folder_that_is_deleted_between_two_runs_is_made_anew_from_git(bench, project, git):
    bench.sessions(WRITES_A, WRITES_B)
    assert bench.start("--once").returncode == 75
    shutil.rmtree(project / ".cco")
    assert bench.start().returncode == 0
    assert bench.state()["iterations"] == 2
    require_done(bench, git)


def test_a_repository_that_is_moved_away_while_it_runs(bench, begin, project, git, tmp_path):
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    running = in_background(begin, bench)
    working(bench)
    project.rename(tmp_path / "elsewhere")
    (tmp_path / "go").touch()
    assert ended(running) == 4
    assert not project.exists()  # nothing was made in its place
    assert (
        f"is gone: '{project}': bring it back, from where it was moved to or from a backup, then {KEPT}"
        in bench.output()
    )
    (tmp_path / "elsewhere").rename(project)
    require_nothing_false(bench)
    assert bench.start().returncode == 0
    require_done(bench, git)


@pytest.mark.parametrize("gone", [".", ".git"])
def test_a_repository_that_is_deleted_while_it_runs(bench, begin, project, tmp_path, gone):
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    running = in_background(begin, bench)
    working(bench)
    shutil.rmtree(project / gone)
    (tmp_path / "go").touch()
    assert ended(running) == 4
    assert "Traceback" not in bench.output()
    assert ("is gone" if gone == "." else "not a git repository") in bench.output()
    assert not (project / gone).exists()
    assert not bench.alive()


@pytest.mark.parametrize(
    "place, mode",
    [(".", 0o000), (".", 0o500), (".git", 0o000), (".git", 0o500), (".git/refs/heads", 0o000), (".git/objects", 0o500),
     (".cco", 0o000), (".cco", 0o500), (".cco/logs/checks", 0o500), (".cco/demo.json", 0o000)],
)  # fmt: skip
def test_lost_rights(bench, project, git, place, mode):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    bench.sessions(WRITES_A, WRITES_B)
    assert bench.start("--once").returncode == 75
    path = project / place
    before, known = path.stat().st_mode, bench.state()
    as_owner = NO_OVERRIDE if os.geteuid() == 0 else ()
    need(not as_owner or shutil.which("setpriv"), "root may do all, and setpriv is not installed")
    path.chmod(mode)
    try:
        options = {"env": bench.environment, "cwd": bench.folder, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run([*as_owner, *bench.command("start", str(bench.mission))], **options, check=False)
    finally:
        path.chmod(before)
    assert done.returncode in (2, 4), done.stdout
    said = done.stdout + done.stderr
    assert "Traceback" not in said and re.search("Permission denied|is in no git repository", said), said
    require_nothing_false(bench)
    assert {**bench.state(), "timestamp": ""}["completed_tasks"] == known["completed_tasks"]
    assert bench.start().returncode == 0
    require_done(bench, git)


# --------------------------------------------------------------------------------------------------------
# No more files, processes, memory
# --------------------------------------------------------------------------------------------------------


def test_with_too_few_open_files_every_start_says_so_until_there_are_enough(bench, git):
    bench.sessions(WRITES_A, WRITES_B)
    for limit in range(5, 40):
        shell = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "-"]
        options = {"env": bench.environment, "cwd": bench.project, "capture_output": True, "text": True, "timeout": 60}
        command = [*shell, *bench.command("start", str(bench.mission), "--no-wait")]
        done = subprocess.run(command, **options, check=False)
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            break
        assert done.returncode in (4, 75), (limit, done.stdout)
        assert "Too many open files" in done.stdout + done.stderr
        if (bench.project / ".cco" / "demo.json").exists():
            require_nothing_false(bench)
            end_wait(bench)
    assert limit > 6  # else nothing was tried
    require_done(bench, git)


def end_wait(bench: Bench) -> None:
    """As if the time of a wait had gone by."""
    document = bench.state()
    if document.get("wait_until"):
        bench.remember({**document, "wait_until": 1.0})


@pytest.mark.parametrize("error, step", [("EAGAIN", 9), ("ENOMEM", 13)])
def test_when_no_process_can_be_started_every_start_says_so_and_none_is_a_verdict(bench, git, tmp_path, error, step):
    """At one process after the other, the kit alone is told that there are no more; what it starts is not."""
    need(shutil.which("strace"), "strace is not installed")
    bench.sessions(WRITES_A, WRITES_B)
    trace, failures, number_of_error = tmp_path / "trace", 0, getattr(errno, error)
    for number in range(1, 400, step):
        fail = ["-e", f"inject=vfork:error={error}:when={number}", "-e", f"inject=clone,clone3,fork:error={error}"]
        shell = ["strace", "-o", str(trace), "-e", "trace=clone,clone3,vfork,fork", *fail]
        options = {"env": bench.environment, "cwd": bench.project, "capture_output": True, "text": True, "timeout": 90}
        command = [*shell, *bench.command("start", str(bench.mission), "--no-wait")]
        done = subprocess.run(command, **options, check=False)
        need(trace.exists() and trace.read_text(), "strace cannot trace here")
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            break
        assert "(INJECTED)" in trace.read_text()
        assert done.returncode in (4, 75), done.stdout
        assert os.strerror(number_of_error) in done.stdout + done.stderr
        if done.returncode == 4:
            assert machine.ADVICE[number_of_error] in done.stdout + done.stderr
        failures += 1
        if (bench.project / ".cco" / "demo.json").exists():
            require_nothing_false(bench)
            end_wait(bench)
    assert failures > 3
    require_done(bench, git)


@pytest.mark.parametrize(
    "said, code",
    [
        ("bash: fork: Resource temporarily unavailable", 254),
        ("bash: /bin/x: Cannot allocate memory", 126),
        ("bash: /bin/x: Text file busy", 126),
        ("bwrap: Creating new namespace failed: Resource temporarily unavailable", 1),
    ],
)
def test_a_check_that_the_machine_could_not_run_is_not_broken(bench, git, tmp_path, said, code):
    lacking = tmp_path / "lacking"
    check = f"if test -e {shlex.quote(str(lacking))}; then echo '{said}' >&2; exit {code}; fi; test -e a"
    bench.write([{**TWO_CRITERIA[0], "check": check}, TWO_CRITERIA[1]], settings=NO_WALLS)
    bench.sessions(WRITES_A, WRITES_B)
    assert bench.start("--once").returncode == 75
    lacking.touch()
    done = bench.start()
    assert done.returncode == 4 and said.rpartition(": ")[2] in done.stdout
    require_nothing_false(bench)
    lacking.unlink()
    assert bench.start().returncode == 0
    require_done(bench, git)


def test_what_a_check_says_of_its_own_troubles_is_a_verdict(bench):
    bench.write([{"id": "a", "criteria": "a", "check": "echo 'x: Resource temporarily unavailable'; exit 1"}])
    bench.sessions(WRITES_A)
    assert bench.start("--once").returncode == 75
    assert bench.state()["criteria"]["a"]["verdict"] == "unmet"


def test_without_memory_it_says_so(bench):
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import cco, report
def fails(*_): raise MemoryError
report.status = fails
sys.exit(cco.main(["status"]))
"""
    command = [sys.executable, "-c", code, str(KIT)]
    options = {"env": bench.environment, "cwd": bench.project, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, **options, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    assert "Cannot allocate memory: there is not enough memory" in done.stderr


# --------------------------------------------------------------------------------------------------------
# Clocks
# --------------------------------------------------------------------------------------------------------


def test_whatever_the_clock_says_a_git_at_work_keeps_its_lock_and_a_dead_one_does_not(project):
    lock, repo = project / ".git" / "index.lock", Repo(project)
    command = ["git", "cat-file", "--batch"]
    with subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as git:
        until(lambda: git.pid in processes.working_in(project, "git"), "git is at work")
        for when in (1, time.time() + 10**6):
            lock.touch()
            os.utime(lock, (when, when))
            repo.remove_stale_locks()
            assert lock.exists()
        git.communicate()
    for when in (1, time.time() + 10**6):
        lock.touch()
        os.utime(lock, (when, when))
        repo.remove_stale_locks()
        assert not lock.exists()
