"""Faults through the real command line: what is killed, lost, full, gone, damaged, hanging or left behind.

Only claude is a stand-in. Where the kit's times are too long or a kill has to come at an exact moment, `launched`
starts it by a few lines that patch it and call `cco.main`.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench import KILLED, TWO_CRITERIA, WORK, WRITES_A, WRITES_B, Bench, over, said
from bench import bench as bench
from conftest import KIT, need, until

from extras.claude_stand_in import cost

NO_SANDBOX = {"checks": {"sandbox": False}}
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "tests", "node_modules")
LAUNCHER = """
import sys
sys.path.insert(0, {kit!r})
import functools, os, proc, state, stream
proc.Limits, stream.LINGER = functools.partial(proc.Limits, grace=1.0), 1.0
{more}
import cco
sys.exit(cco.main(sys.argv[1:]))
"""
KILL = """
save, left = state.save, [{nth}]
def kill(path, document):
    left[0] -= document.current_phase == {phase!r}
    left[0] or {before} and os.kill(os.getpid(), 9)
    return (save(path, document), left[0] or os.kill(os.getpid(), 9))[0]
state.save = kill
"""


def launched(bench: Bench, more: str = "") -> None:
    """From here on the kit is started with short times. more: lines before it starts."""
    folder = bench.folder / "launched"
    folder.mkdir(exist_ok=True)
    bench.kit = folder
    (folder / "cco.py").write_text(LAUNCHER.format(kit=str(KIT), more=more))


def ended(process: subprocess.Popen[bytes], seconds: float = 90.0) -> int:
    """The exit code of what ends by itself; what does not is ended, with all of its group."""
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture(autouse=True)
def nothing_is_left(bench):
    """Whatever happened: no process of the mission is there afterwards."""
    yield
    left = bench.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_done(bench: Bench, git: Any, sessions: int = 0, iterations: int = 0, paid: bool = True) -> None:
    """Done, each iteration is committed and counted once, each cent once, and nothing lies about.

    sessions, iterations: 0 for any. paid: no session was killed, so the stand-in knows what each took.
    """
    state, root = bench.state(), bench.project
    iterations, sessions = iterations or state["iterations"], sessions or len(bench.calls())
    assert (state["current_phase"], state["iterations"], len(bench.calls())) == ("completed", iterations, sessions)
    form = "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)"
    assert git(root, "log", "--reverse", form, "main..cco/demo").split() == [str(n + 1) for n in range(iterations)]
    assert git(root, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"
    assert git(root, "status", "--porcelain") == ""
    took = sum(cost(json.loads(book.read_text())) for book in Path(f"{bench.script}.sessions").iterdir())
    assert state["totals"]["estimated_cost"] == pytest.approx(took) or not paid
    assert not [*root.glob(".cco/**/.*.tmp"), *root.glob(".git/**/*.lock")]
    assert not bench.alive()


def goes_on(bench: Bench, git: Any, sessions: int = 0, iterations: int = 0, paid: bool = True) -> str:
    """The next start ends done; what it prints."""
    done = bench.start()
    assert done.returncode == 0, said(done)
    is_done(bench, git, sessions, iterations, paid)
    return said(done)


def half_done(bench: Bench) -> None:
    """One of two sessions has run."""
    bench.sessions(WRITES_A, WRITES_B)
    assert bench.start("--once").returncode == 75


MOMENTS = [("validation", 1), ("planning", 1), ("execution", 1), ("execution", 2), ("committing", 1),
           ("waiting", 1), ("validation", 2), ("validation", 3), ("planning", 2), ("completed", 1)]  # fmt: skip


@pytest.mark.parametrize("before", [True, False], ids=["before it is saved", "after"])
@pytest.mark.parametrize("phase, nth", MOMENTS, ids=[f"{phase}-{nth}" for phase, nth in MOMENTS])
def test_a_kit_that_is_killed_at_any_phase_is_survived(bench, git, phase, nth, before):
    limit = [{"limit": {"resetsAt": int(time.time()) + 7200}}] * (phase == "waiting")
    bench.sessions([*WRITES_A, *limit], WRITES_B)
    launched(bench, KILL.format(phase=phase, nth=nth, before=before))
    assert ended(bench.begin()) == KILLED
    launched(bench)
    if (bench.project / ".cco/demo.json").exists() and bench.state()["wait"]:
        assert bench.start("--no-wait").returncode == 75  # it waits on
        over(bench)
    elif limit:
        bench.sessions(WRITES_B)
    goes_on(bench, git)
    assert bench.state()["iterations"] <= 2 <= len(bench.calls()) <= 3  # a killed session goes on with what was next


@pytest.mark.parametrize("orphaned", [True, False], ids=["the worker lives on", "with the worker"])
def test_a_kit_that_is_killed_while_the_worker_is_at_work_goes_on_with_its_session(bench, git, orphaned):
    bench.sessions([*WRITES_A, {"hang": True}], WRITES_B)
    kit = bench.begin()
    until((bench.project / "a").exists, "the first session's work")
    kit.kill()
    kit.wait()
    for pid in bench.alive() if not orphaned else ():
        os.kill(pid, signal.SIGKILL)
    assert ("that an earlier run left behind" in goes_on(bench, git, sessions=2, iterations=1)) == orphaned
    assert bench.resumed() == [False, True]


def test_what_a_killed_git_and_a_killed_sandbox_left_lying_about_is_removed(bench, git, project):
    half_done(bench)
    for name in (".git/index.lock", ".git/refs/heads/cco/demo.lock", ".cco/.demo.json.x1.tmp", ".gitmodules"):
        (project / name).touch()
    (project / ".gitmodules").chmod(0o444)
    assert "which a git that died left behind" in goes_on(bench, git, sessions=2, iterations=2)
    assert not (project / ".gitmodules").exists()


# Started by the worker or by a check, they outlive a plain kill of their parent.
STUBBORN = "(trap '' TERM INT; setsid sleep 1000 & sleep 1000 & touch '{0}'; wait) & wait"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["worker", "check", "setup"])
def test_a_signal_ends_all_that_runs_and_the_next_start_goes_on(bench, git, number, where):
    launched(bench)
    begun, command = bench.folder / "begun", STUBBORN.format(bench.folder / "begun")
    slow = f"test -e '{begun}' || {{ {command}; }}"
    check = {**TWO_CRITERIA[0], "check": f"{slow}; test -e a"} if where == "check" else TWO_CRITERIA[0]
    setup = slow if where == "setup" else None
    bench.write([check, TWO_CRITERIA[1]], setup=setup, settings=NO_SANDBOX)
    bench.sessions(*[[*WORK, {"bash": command}]] * (where == "worker"), WORK)
    kit = bench.begin()
    until(begun.exists, "the commands")
    kit.send_signal(number)
    assert ended(kit) == 128 + number, bench.output()
    assert not bench.alive()
    assert "start again to go on" in bench.output()
    goes_on(bench, git, sessions=1 + (where == "worker"), iterations=1)
    assert bench.resumed() == ([False, True] if where == "worker" else [False])


def in_terminal(bench: Bench, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command as the leader of a terminal of its own, and the other end of that."""
    master, slave = pty.openpty()
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", take, *bench.command(*args)]
    options = {"env": bench.environment, "cwd": bench.project, "start_new_session": True}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, **options)
    os.close(slave)
    return process, master


def test_ctrl_c_in_a_terminal_ends_all_that_runs_and_a_terminal_that_is_lost_does_not_end_a_mission(bench, git):
    go = bench.folder / "go"
    bench.sessions([*WRITES_A, {"hang": True}], [{"wait_for": str(go)}, *WRITES_B])
    process, terminal = in_terminal(bench, "start", str(bench.mission))
    until((bench.project / "a").exists, "the first session's work")
    os.write(terminal, b"\x03\x03")
    assert ended(process) == 130
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "start again to go on" in shown and "Traceback" not in shown and not bench.alive()
    process, terminal = in_terminal(bench, "start", str(bench.mission))
    until(lambda: len(bench.calls()) == 2, "the worker was started")
    os.close(terminal)  # the kernel tells the leader with SIGHUP, and every write fails
    go.touch()
    assert ended(process) == 0
    is_done(bench, git, sessions=2, iterations=1)


@pytest.mark.parametrize("files", [">/dev/full 2>&1", "<&-", ">&-", "<&- >&- 2>&-"])
def test_full_and_closed_standard_files_do_a_mission_no_harm(bench, git, files):
    bench.sessions(WRITES_A, WRITES_B)
    line = f"exec {shlex.join(bench.command('start', str(bench.mission)))} {files}"
    done = subprocess.run(["sh", "-c", line], env=bench.environment, cwd=bench.project, timeout=90, check=False)
    assert done.returncode == 0
    is_done(bench, git, sessions=2, iterations=2)


class Crontab:
    """A home with a project that the kit was copied into, and the lines of README.md."""

    def __init__(self, home: Path, project: Path, git: Any):
        self.home, self.project = home, project.rename(home / "my-project")
        self.kit, self.script, self.state = self.project / "cco", home / "s.json", self.project / ".cco/mission.json"
        shutil.copytree(KIT, self.kit, ignore=NOT_COPIED)
        stand_in = f'{sys.executable} {KIT / "extras" / "claude_stand_in.py"} "$@"'
        programs = {
            self.kit / ".venv/bin/python": f'exec {sys.executable} "$@"',
            home / ".local/bin/claude": f"CLAUDE_STAND_IN={self.script} exec {stand_in}",
        }
        for path, text in programs.items():
            path.parent.mkdir(parents=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        shutil.copy(self.kit / "requirements.txt", self.kit / ".venv" / ".installed")
        mission = {"title": "A demo", "settings": {"claude_code": {"sandbox": False}}}
        (self.project / "mission.yaml").write_text(json.dumps({**mission, "definition_of_done": TWO_CRITERIA}))
        git(self.project, "add", "mission.yaml")
        git(self.project, "commit", "-q", "-m", "mission")
        self.nohup, cron = re.findall(r"^    (nohup .*|\*/10 .*)$", (KIT / "README.md").read_text(), re.M)
        self.cron = cron.removeprefix("*/10 * * * * ")

    def shell(self, line: str, cwd: Path) -> list[str]:
        """What cron makes of a line: no login, no terminal, next to no environment."""
        bare = ["env", "-i", f"HOME={self.home}", "PATH=/usr/bin:/bin"]
        return [*bare, "/bin/sh", "-c", f"cd {shlex.quote(str(cwd))} && {line}"]

    def tick(self) -> tuple[int, list[str]]:
        """One run of the line for cron: its exit code, and the lines that it added to its log."""
        log = self.kit / "cco.log"
        before = log.stat().st_size if log.exists() else 0
        done = subprocess.run(self.shell(self.cron, self.home), capture_output=True, text=True, timeout=90, check=False)
        assert said(done) == ""  # else cron sends a mail
        return done.returncode, log.read_bytes()[before:].decode().splitlines()


def test_the_lines_for_cron_and_nohup_work_as_printed_and_a_tick_that_has_to_wait_is_one_line(tmp_path, project, git):
    crontab, go = Crontab(tmp_path, project, git), tmp_path / "go"
    limited = [*WRITES_A, {"limit": {"resetsAt": int(time.time()) + 7200}}]
    crontab.script.write_text(json.dumps([limited, [{"wait_for": str(go)}, *WRITES_B]]))
    assert crontab.tick()[0] == 75
    before = crontab.state.read_text()
    code, lines = crontab.tick()
    assert (code, len(lines)) == (75, 1) and "waiting for the usage limit" in lines[0], lines
    assert crontab.state.read_text() == before
    crontab.state.write_text(re.sub(r'"until": [\d.]+', '"until": 1', before))
    line = crontab.shell(f"{crontab.nohup} wait $!", crontab.project)
    nohup = subprocess.Popen(line, stdin=subprocess.DEVNULL, start_new_session=True)
    until(lambda: len(Path(f"{crontab.script}.calls.jsonl").read_text().splitlines()) == 2, "the worker was started")
    ticks = [crontab.tick() for _ in range(2)]
    go.touch()
    assert ended(nohup) == 0
    for code, lines in ticks:
        assert (code, len(lines)) == (75, 1) and "another orchestrator works here: pid" in lines[0], lines
    code, lines = crontab.tick()  # after the end
    assert code == 0 and any("done: all 2 criteria are met" in line for line in lines), lines


class Inside(Bench):
    """A mission in a mount namespace: nobody else sees what is mounted there, and it goes with its process."""

    enter: list[str]

    def command(self, *args: str) -> list[str]:
        return [*self.enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.project), *super().command(*args)]

    def do(self, *argv: str) -> str:
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.do("cat", str(self.project / ".cco" / "demo.json"))))

    def git(self, _: Path, *args: str) -> str:
        return self.do("git", "-C", str(self.project), *args).strip()


@pytest.fixture
def inside(project, tmp_path):
    made = Inside(project, tmp_path)
    made.write(TWO_CRITERIA, settings=NO_SANDBOX)
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    need(shutil.which("unshare") and shutil.which("nsenter"), "unshare or nsenter is not installed")
    hold = ["unshare", *user, "--mount", "sh", "-c", "echo; exec sleep 600"]
    with subprocess.Popen(hold, stdout=subprocess.PIPE) as holder:
        need(holder.stdout and holder.stdout.readline(), "no mount namespace can be made here")
        user = ["--user", "--preserve-credentials"] if user else []
        made.enter = ["nsenter", f"--target={holder.pid}", *user, "--mount", "--"]
        yield made
        holder.kill()


@pytest.mark.parametrize("who", ["worker", "check"])
@pytest.mark.parametrize("what", ["a project", "temporary"])
def test_a_disk_that_fills_while_something_runs_is_named_and_nothing_is_lost(inside, what, who):
    disk, full = inside.folder / what, inside.folder / "full"
    filler = str(disk / (".git" if what == "a project" else ".") / "filler")
    disk.mkdir(exist_ok=True)
    shutil.copytree(disk, inside.folder / "copy", symlinks=True)
    inside.do("mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "small", str(disk))
    inside.do("cp", "-a", f"{inside.folder}/copy/.", str(disk))
    inside.environment["TMPDIR"] = str(inside.folder / ("temporary" if what == "temporary" else "."))
    fill = f"head -c 100000000 /dev/zero 2>/dev/null > '{filler}' || true"
    check = f"if test -e '{full}'; then {fill}; fi; test -e a"
    inside.write([{**TWO_CRITERIA[0], "check": check}, TWO_CRITERIA[1]], settings=NO_SANDBOX)
    inside.sessions(WRITES_A, [*WRITES_B, {"bash": fill if who == "worker" else f"touch '{full}'"}])
    for _ in range(1 if what == "temporary" else 2):  # the next start finds another temporary folder
        done = inside.start()
        assert done.returncode == 4 and re.search("[Nn]o space left", said(done)), said(done)
        assert len(inside.calls()) == 2  # with a full disk no session is paid for
    assert not any(entry["broke"] for entry in inside.state()["history"])
    full.unlink(missing_ok=True)
    inside.do("rm", filler)
    goes_on(inside, inside.git, iterations=2)


@pytest.mark.parametrize("how", ["read-only", "gone"])
@pytest.mark.parametrize("place", [".", ".git", ".cco"])
def test_what_is_read_only_or_gone_while_the_worker_runs_is_named_and_a_later_start_goes_on(inside, place, how):
    go, path, elsewhere = inside.folder / "go", inside.project / place, inside.folder / "elsewhere"
    inside.sessions([*WRITES_A[:1], {"wait_for": str(go)}], WRITES_B)
    kit = inside.begin()
    until((inside.project / "a").exists, "the worker's work")
    lock = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
    inside.do(*(["mv", str(path), str(elsewhere)] if how == "gone" else ["sh", "-c", lock, str(path)]))
    go.touch()
    code, made_anew = ended(kit), (place, how) == (".cco", "gone")  # and the state with it
    assert code == (0 if made_anew else 4) and "Traceback" not in inside.output(), inside.output()
    if not made_anew:
        assert (str(inside.project) if how == "gone" else "Read-only file system") in inside.output()
        assert how != "gone" or not path.exists()  # nothing was made in its place
        inside.do(*(["mv", str(elsewhere), str(path)] if how == "gone" else ["umount", str(path)]))
    goes_on(inside, inside.git)


@pytest.mark.parametrize("place", [".", ".git", ".git/objects", ".cco", ".cco/logs/checks", ".cco/demo.json"])
@pytest.mark.parametrize("mode", [0o000, 0o500], ids=["none", "no writing"])
def test_lost_rights_are_named_and_nothing_is_lost(bench, project, git, place, mode):
    bench.write(TWO_CRITERIA, settings=NO_SANDBOX)
    half_done(bench)
    path = project / place
    before, met = path.stat().st_mode, bench.state()["completed_tasks"]
    as_owner = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    need(not as_owner or shutil.which("setpriv"), "root may do all, and setpriv is not installed")
    path.chmod(mode)
    try:
        options = {"env": bench.environment, "cwd": bench.folder, "capture_output": True, "text": True, "timeout": 90}
        command = [*as_owner, *bench.command("start", "--no-wait", str(bench.mission))]
        done = subprocess.run(command, **options, check=False)
    finally:
        path.chmod(before)
    assert "Traceback" not in said(done) and bench.state()["completed_tasks"][: len(met)] == met
    if (place, mode) != (".cco/demo.json", 0o500):  # which is replaced and not written
        assert done.returncode in (2, 4) and re.search("[Pp]ermission|git repository", said(done)), said(done)
    goes_on(bench, git, iterations=2)


def test_without_git_it_says_so(bench):
    done = bench.run("start", str(bench.mission), env={**bench.environment, "PATH": str(bench.folder)})
    assert done.returncode == 4 and "git" in said(done) and "No such file" in said(done)
    assert bench.calls() == []


@pytest.mark.parametrize("content", [b"", b'{"version": 5}', b"\xff\xfe\0", None])
def test_a_damaged_state_is_kept_aside_and_rebuilt_from_git(bench, project, git, content):
    half_done(bench)
    if content is None:
        shutil.rmtree(project / ".cco")
    else:
        (project / ".cco" / "demo.json").write_bytes(content)
    done = bench.start()
    assert done.returncode == 0, said(done)
    aside = [*(project / ".cco").glob("demo.json.unreadable-*")]
    assert [path.read_bytes() for path in aside] == [content] * (content is not None)
    assert all(path.name in said(done) for path in aside)
    assert (bench.state()["iterations"], bench.state()["base_commit"]) == (2, git(project, "rev-parse", "cco/demo~1"))
    assert bench.resumed() == [False, False]


@pytest.mark.parametrize("content", [b"{torn", None], ids=["damaged", "gone"])
def test_a_state_that_is_lost_after_an_unclean_end_is_asked_about(bench, project, content):
    half_done(bench)
    state, lock = project / ".cco" / "demo.json", project / ".cco" / "lock"
    state.write_bytes(content) if content else state.unlink()
    lock.write_text("{}")  # with the state went what tells an edit of the user from one of the worker
    for _ in range(2):
        done = bench.start()
        assert done.returncode == 3 and str(state) in said(done) and "--accept" in said(done)
    assert bench.start("--accept").returncode == 0 and len(bench.calls()) == 2


def test_a_state_of_another_version_is_refused_and_not_overwritten(bench, project, git):
    half_done(bench)
    before = {**bench.state(), "version": 4}
    bench.save(before)
    done = bench.start()
    assert done.returncode == 2 and "finish it with the CCO that began it" in said(done)
    assert bench.state() == before and len(bench.calls()) == 1
    assert len(git(project, "rev-list", "cco/demo").split()) == 2


def test_what_was_proven_is_proven_anew_after_an_unclean_end_and_a_refused_start_is_no_clean_one(bench, project):
    bench.sessions(WORK)
    assert [bench.start().returncode for _ in range(2)] == [0, 0]
    assert bench.log().count("confirming 2 criteria in a clean checkout") == 1
    state = bench.state()
    bench.save({**state, "mission_text": state["mission_text"].replace("test -e b", "true")})
    (project / ".cco" / "lock").write_text("{}")
    for _ in range(2):
        done = bench.start()
        assert done.returncode == 3 and "do not agree" in said(done) and "--accept" in said(done)
    assert "confirming 2 criteria in a clean checkout" in said(bench.start("--accept"))


def test_a_claude_that_is_missing_or_cannot_be_run_is_named_and_costs_nothing(bench, project, git):
    program = bench.folder / "bin" / "claude"
    bench.write(TWO_CRITERIA, settings={"claude_code": {"command": str(program)}})
    bench.sessions([*WRITES_A, {"bash": f"mv '{program}' '{program}.away'"}], WRITES_B)
    done = bench.start()
    assert done.returncode == 4 and str(program) in said(done) and "Install it" in said(done)
    assert not (project / ".cco" / "demo.json").exists()  # nothing is begun that could be counted
    assert git(project, "branch", "--show-current") == "main"
    program.parent.mkdir()
    shutil.copy(KIT / "extras" / "claude_stand_in.py", program)
    for text in (None, None, "#!/no/such/interpreter\n", "no program\n"):  # None: the first session moved it away
        if text:
            program.write_text(text)
            program.chmod(0o755)
        done = bench.start()
        assert done.returncode == 4 and "nstall" in said(done) and str(program) in said(done)
        assert bench.state()["iterations"] == 2
    program.with_suffix(".away").rename(program)
    goes_on(bench, git, sessions=2, iterations=2)


def test_a_worker_that_floods_and_ignores_a_signal_is_ended_and_what_it_did_counts(bench, git):
    launched(bench)
    bench.write(TWO_CRITERIA, settings={"claude_code": {"timeout": "3s"}})
    rubbish, flood = {"raw": "\udcff\udcfe\udc80", "times": 9}, {"raw": "x", "times": 10**9}
    bench.sessions([{"ignore_term": True}, rubbish, *WRITES_A, flood], [{"hang": True}], WRITES_B)
    assert bench.start().returncode == 0
    outcomes = [entry["outcome"] for entry in bench.state()["history"] if entry["focus"]]
    assert outcomes == ["timeout", "timeout", "ended"]
    assert git(bench.project, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"
    assert sum(path.stat().st_size for path in (bench.project / ".cco").rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.parametrize("is_killed", [False, True], ids=["worker", "killed worker"])
def test_what_a_worker_leaves_running_or_holding_its_output_is_ended(bench, git, is_killed):
    held = [{"hold": "sleep 1000"}, {"hold": "while echo more; do sleep 0.05; done"}]
    hidden = [{"bash": "setsid -f setsid -f sleep 1000"}, {"bash": "(setsid sleep 1000 >/dev/null 2>&1 </dev/null &)"}]
    bench.sessions([*held, *hidden, *WORK, *[{"signal": 9}] * is_killed])
    assert bench.start().returncode == 0  # with a pipe that is read to its end this would take for ever
    is_done(bench, git, sessions=1, iterations=1, paid=not is_killed)
