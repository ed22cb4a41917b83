"""The sandbox for checks: what they can write, see and reach, and that nothing of them survives."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, marked, need, until

import proc
import sandbox

BASH = ("/bin/bash", "-o", "pipefail")
LIMITS = proc.Limits(60, grace=5)
ODD = 'a b|[x]*?|it\'s "so"|two\nlines|ta\tb|back\\slash|\\040|ünï ✓|$HOME;`id`|-x|\udcff'
KEY = "Zk9-planted-4711"


@pytest.fixture(autouse=True)
def _bubblewrap() -> Iterator[None]:
    sandbox.obstacle.cache_clear()
    reason = sandbox.obstacle(KIT / "nowhere")
    need(not reason, reason)
    yield
    sandbox.obstacle.cache_clear()


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
def home(tmp_path, monkeypatch) -> Path:
    """A home directory; like all of the test's folder it lies below /tmp, so it is seen only where it is named."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path, home) -> Path:
    (tmp_path / "a checkout").mkdir()
    return tmp_path / "a checkout"


@pytest.fixture
def argv(tmp_path, root):
    """The command that runs a line of shell in the sandbox."""

    def make(command: str, file_size: int | None = None, **given: Any) -> list[str]:
        box = sandbox.Sandbox(**{"root": root, "protected": (), "writable": (), "network": False, **given})
        scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
        scratch.mkdir()
        return sandbox.command(sandbox.capped(BASH, command, file_size), box, scratch)

    return make


@pytest.fixture
def run(tmp_path, argv, mark):
    """Run a line of shell in the sandbox; the result, and what it printed."""

    def start(command: str, limits: proc.Limits = LIMITS, **given: Any) -> tuple[proc.Result, str]:
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], proc.MARKER: mark}
        with open(tmp_path / "output", "wb+") as output:
            run = {"cwd": tmp_path, "env": env, "output": output, "limits": limits, "tick": given.pop("tick", None)}
            result = proc.run(argv(command, **given), **run)
        return result, os.fsdecode((tmp_path / "output").read_bytes())

    return start


def put(path: Path, text: str = "as it was\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sh(path: Path | str) -> str:
    return shlex.quote(str(path))


def test_the_repository_may_be_written_and_is_the_working_directory_and_nothing_else(run, root, tmp_path):
    result, printed = run("pwd; mkdir -p build/deep; echo made > build/deep/file; mv build/deep out; rm -r build")
    assert (result.code, printed, (root / "out" / "file").read_text()) == (0, f"{root}\n", "made\n")
    (tmp_path / "link").symlink_to(root)
    assert run("touch made", root=tmp_path / "link")[0].code == 0 and (root / "made").exists()
    home = os.path.expanduser("~root")
    places = [Path(name) for name in ("/", "/etc", "/usr/bin", "/var", "/sys", KIT, home)]
    tries = "".join(f"touch {sh(place)}/cco-was-here && echo {sh(place)}\n" for place in places)
    _, printed = run(f"{tries} echo changed > /proc/sys/kernel/domainname && echo domain")
    assert not {*map(str, places), "domain"} & {*printed.splitlines()}
    assert not any(os.path.lexists(place / "cco-was-here") for place in places)


def test_the_sandbox_cannot_be_taken_down_from_within(run, root):
    (root / ".secret").mkdir()
    for attack in (
        *("mount -o remount,rw,bind /", "umount .secret", "mount --bind /tmp /etc", "mknod disk b 254 0"),
        *("unshare -Urm sh -c 'umount .secret || mount -o remount,rw,bind /'", "nsenter -t 1 -m true"),
        "python3 -c 'import os; os.chroot(\"/proc/1/root\")'",
    ):
        result, printed = run(attack, hidden=(root / ".secret",))
        assert result.code not in (0, 127), printed


def test_what_it_puts_into_tmp_is_its_own_and_on_disk(run, tmp_path):
    (tmp_path / "seen").touch()
    name = f"cco-{uuid.uuid4().hex}"
    result, printed = run(
        f"test ! -e {sh(tmp_path / 'seen')} && touch /tmp/{name} && stat -f -c %T /tmp /var/tmp /dev/shm"
    )
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    assert (result.code, printed) == (0, kind * 3)
    assert not any(Path(place, name).exists() for place in ("/tmp", "/var/tmp", "/dev/shm"))
    code = "from multiprocessing import shared_memory as s, Lock; Lock(); s.SharedMemory(create=True, size=9).unlink()"
    command = f"test ! -e /tmp/{name} && python3 -c {sh(code)} && mktemp && echo x | tee >(cat) > /dev/null"
    assert "\n/tmp\n" in run(f"{command} && echo $TMPDIR")[1]


def test_places_that_are_named_may_be_written_but_not_what_is_protected_and_the_inner_rule_holds(run, root, tmp_path):
    (tmp_path / "shared" / "in").mkdir(parents=True)
    shared, file = tmp_path / "shared", put(root / "protected")
    result, _ = run(f"touch {shared}/in/file", writable=(str(shared / "in"), tmp_path / "missing"))
    assert (result.code, (shared / "in" / "file").exists()) == (0, True)
    result, _ = run(f"touch {shared}/file", writable=(shared / "in",), protected=(shared,))
    assert (result.code, (shared / "file").exists()) == (1, False)
    result, _ = run(f"touch {tmp_path}/new && echo x > protected", writable=("/", "/tmp"), protected=(file,))
    assert (result.code, (tmp_path / "new").exists(), file.read_text()) == (1, True, "as it was\n")
    file = put(root / "tests" / "snapshots" / "kept" / "file")
    protected, writable = (root / "tests", file), (tmp_path, root / "tests" / "snapshots", root)
    command = "touch tests/snapshots/new ../inner; touch tests/new; echo x > tests/snapshots/kept/file"
    assert run(command, protected=protected, writable=writable)[0].code == 1
    assert (tmp_path / "inner").exists() and (root / "tests" / "snapshots" / "new").exists()
    assert (file.read_text(), (root / "tests" / "new").exists()) == ("as it was\n", False)


def test_caches_of_tools_may_be_written_and_nothing_beside_them(run, home, monkeypatch):
    put(home / ".cargo" / "bin" / "cargo")
    made = [home / name for name in (".cache", ".npm", ".cargo/registry", ".cargo/git")]
    assert sandbox.caches() == made  # those of tools that were never used here are not made
    assert run("touch ~/.cache/file ~/.cargo/registry/file")[0].code == 0
    assert (home / ".cargo" / "registry" / "file").exists()
    assert run("touch ~/.cargo/bin/file", protected=(home,))[0].code == 1
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user without an account or home is no obstacle
    assert run("true")[0].code == 0
    monkeypatch.delenv("HOME")
    assert sandbox.caches() == []


ATTACKS = """
echo changed > tests/deep/test_api.py
rm tests/deep/test_api.py
mv tests/deep/test_api.py elsewhere
touch other && mv other tests/deep/test_api.py
ln -f tests/deep/test_api.py second && echo changed > second
chmod 777 tests/deep/test_api.py
sed -i s/was/is/ tests/deep/test_api.py
touch folder/new
echo changed > folder/inner/file
mv folder elsewhere
mv folder/inner elsewhere
mv ../$(basename "$PWD") ../elsewhere
echo changed > real/file
"""


def test_what_is_protected_stays_as_it_is(run, root):
    file, inner = put(root / "tests" / "deep" / "test_api.py"), put(root / "folder" / "inner" / "file")
    linked = put(root / "real" / "file")
    (root / "link").symlink_to("real")
    (root / "broken").symlink_to("nowhere")
    protected = (file, root / "folder", inner, root / "missing", root / "link", root / "broken")
    attacks = "".join(f"({attack}) && echo {sh(attack)} succeeded\n" for attack in ATTACKS.strip().splitlines())
    result, printed = run(f"cat tests/deep/test_api.py folder/inner/file || exit 9; {attacks}", protected=protected)
    assert printed.startswith("as it was\n" * 2) and "succeeded" not in printed
    assert file.read_text() == inner.read_text() == linked.read_text() == "as it was\n"
    assert list((root / "folder").rglob("*")) == [inner.parent, inner]
    outer, deep = put(root / "outer"), [put(root / "a" / str(number) / "file") for number in range(300)]
    run("for name in outer a/*/file; do echo x > $name; done", protected=(*deep, outer))
    assert [path.read_text() for path in (outer, *deep)].count("as it was\n") == sandbox.MOUNTS
    assert outer.read_text() == "as it was\n"


def test_what_is_hidden_shows_up_empty_and_stays_as_it_is_but_what_is_named_in_it_is_seen(run, root, home):
    folder, file = put(root / ".cco" / "state.json").parent, put(root / "keys" / ".env")
    result, printed = run("ls -A .cco; cat keys/.env; wc -c < keys/.env", hidden=(folder, file, root / "missing"))
    assert (result.code, printed) == (0, "0\n")
    for attack in ("echo x > keys/.env", "rm keys/.env", "rmdir .cco", "mv .cco elsewhere"):
        assert run(attack, hidden=(folder, file))[0].code == 1
    assert (folder / "state.json").read_text() == file.read_text() == "as it was\n"
    assert run("touch new; ls -A", hidden=(root,))[1] == "new\n" and not (root / "new").exists()  # it is lost
    put(home / ".docker" / "config.json", KEY)
    assert run("cat ~/.docker/config.json", writable=("~/.docker",))[1] == KEY
    put(home / ".aws" / "credentials", KEY)
    (home / ".aws" / "checkout").mkdir()
    result, printed = run("touch made; ls ~/.aws", root=home / ".aws" / "checkout", protected=(home,))
    assert (result.code, printed, (home / ".aws" / "checkout" / "made").exists()) == (0, "checkout\n", True)


def test_logins_are_not_readable_wherever_a_variable_moved_them(run, home, tmp_path, monkeypatch):
    names = (".ssh/id_ed25519", ".netrc", ".aws/credentials", ".config/gh/hosts.yml", ".cargo/credentials.toml")
    secret = [*(put(home / name, KEY) for name in names), put(home / ".npmrc", f"//r/:_authToken={KEY}\n")]
    for word in sandbox.SECRETS.split():
        variable, _, place = word.rpartition("=")
        if variable:
            secret.append(put(tmp_path / "moved" / variable / (place.partition(":")[2] or "file"), KEY))
            monkeypatch.setenv(variable, f"{tmp_path}/nowhere:{tmp_path}/moved/{variable}")
    (home / ".gnupg").symlink_to(put(tmp_path / "vault" / "key", KEY).parent)
    plain = [put(home / name, "plain") for name in (".gitconfig", ".yarnrc.yml", ".cargo/config.toml")]
    read = " ".join(sh(path) for path in (*plain, *secret))
    for given in ({"protected": (tmp_path,)}, {"writable": (home, tmp_path)}):
        _, printed = run(f"cat {read} 2>/dev/null; grep -r {KEY} {tmp_path}", **given)
        assert printed.startswith("plain" * 3) and KEY not in printed
    hidden = sandbox.secret_places()
    assert all(any(os.path.realpath(path).startswith(place) for place in hidden) for path in secret)


def test_the_sockets_of_daemons_are_hidden_unless_they_are_named(run, tmp_path, monkeypatch):
    path = tmp_path / "docker.sock"
    monkeypatch.setattr(sandbox, "SOCKETS", str(path))
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        assert run(f"python3 -c {sh(code)}", protected=(tmp_path,))[0].code == 1
        assert run(f"python3 -c {sh(code)}", protected=(tmp_path,), writable=(path,))[0].code == 0


@pytest.mark.parametrize("network", [True, False], ids=["network", "none"])
def test_the_hosts_loopback_is_reached_only_with_the_network(run, network):
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"exec 3<> /dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo reached"
        assert ("reached" in run(reach, network=network)[1]) is network
    code = "import socket as s; a = s.create_server(('127.0.0.1', 0)); s.create_connection(a.getsockname()); a.accept()"
    assert run(f"python3 -c {sh(code)}", network=network)[0].code == 0


def test_the_exit_code_is_the_commands_own_and_killing_harms_itself_alone(run):
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        for command, code in (
            *(("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("false | true", 1), ("no-such-program", 127)),
            *(("kill -9 $$", 137), ("sh -c 'kill -9 $PPID; true'; exit 0", 137), ("kill -9 0", 137)),
            *(("kill -9 $PPID; exit 3", 3), ("kill -9 1; exit 3", 3), ("kill -9 -1; exit 3", 3)),  # the first one stays
            ("trap '' TERM; kill 0; exit 0", 0),  # does not reach bubblewrap itself
        ):
            assert (run(command)[0].code, bystander.poll()) == (code, None), command
    finally:
        bystander.kill()
        bystander.wait()


def test_what_it_leaves_behind_ends_with_it(run, root):
    for daemon in ("{} 1000 &", "setsid -f {} 1000;", "(setsid env -i {} 1000 &);"):
        name = f"sleep-{uuid.uuid4().hex[:8]}"  # it may drop the mark, but not its name
        (root / name).symlink_to("/bin/sleep")
        result, _ = run(f"{daemon.format(f'./{name}')} until grep -qs {name} /proc/[0-9]*/cmdline; do :; done; exit 3")
        assert result.code == 3
        assert not any(name.encode() in proc._read(f"/proc/{pid}/cmdline") for pid in proc._pids())
    assert len(run("cd /proc; echo [0-9]*")[1].split()) < 6  # it sees no other processes


def test_at_its_limit_or_when_the_kit_is_killed_everything_of_it_ends(run, argv, root, mark):
    tick = lambda: "seen" if (root / "ready").exists() else ""  # noqa: E731
    result, _ = run("trap '' TERM; setsid -f sleep 1000; touch ready; exec sleep 1000", tick=tick)
    assert (result.stopped, result.code != 0, marked(mark)) == ("seen", True, {})
    many = "for n in $(seq 60); do setsid -f sleep 1000; done; sleep 1000"
    assert run(many, proc.Limits(60, processes=50))[0].stopped == "processes"
    kit = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    command = argv("setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000")
    with subprocess.Popen([*kit, *command], env={**os.environ, proc.MARKER: mark}) as process:
        until(lambda: sum(line.startswith("sleep") for line in marked(mark).values()) == 3, "all run")
        process.kill()
    until(lambda: not marked(mark), "all of it has ended")


@pytest.mark.parametrize("name", ODD.split("|"), ids=ascii)
def test_odd_names_hold_as_they_are(run, tmp_path, name):
    root = tmp_path / f"{name}" / name
    put(root / name / "protected")
    put(root / f"{name}2" / "secret", KEY)
    command = f"echo x > {sh(name)}/protected; cat ./{sh(name)}2/*; touch ./{sh(name)}3"
    result, printed = run(command, root=root, protected=(root / name,), hidden=(root / f"{name}2",))
    assert (result.code, KEY in printed) == (0, False)
    assert ((root / name / "protected").read_text(), (root / f"{name}3").exists()) == ("as it was\n", True)


def test_git_works_where_its_folder_is_protected_and_takes_no_commit(run, project, git):
    head, protected = git(project, "rev-parse", "HEAD"), (project / ".git",)
    attacks = ("git add new", "git commit --allow-empty -m x", "rm -r .git", "git update-ref HEAD HEAD^{tree}")
    tries = "".join(f"{attack} && echo succeeded\n" for attack in attacks)
    _, printed = run(f"touch new; git status --short; git log --oneline; {tries}", root=project, protected=protected)
    assert printed.startswith("?? new") and "first" in printed and "succeeded" not in printed
    assert git(project, "rev-parse", "HEAD") == head


def test_a_file_of_more_than_its_size_is_refused_and_no_core_file_is_written(run, root):
    for command in ("truncate -s 10G big", "ulimit -f unlimited; ulimit -Hf unlimited; head -c 9G /dev/zero > big"):
        result, _ = run(command, proc.Limits(60, max_output=10**6), file_size=5_000_000)
        assert result.code != 0 and not result.stopped
        assert (root / "big").stat().st_size <= 5_000_000
    assert run("head -c 5120000 /dev/zero > big; ulimit -c; ulimit -Hc", file_size=5_120_000)[1] == "0\n0\n"
    assert run("ulimit -f")[1] == run("ulimit -Hf")[1]


def test_an_obstacle_is_named_in_one_line(monkeypatch, tmp_path):
    def obstacle(root: Path) -> str:
        sandbox.obstacle.cache_clear()
        return sandbox.obstacle(root)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert obstacle(tmp_path / "root") == "bubblewrap is not installed"
    assert sandbox.remedy() == "sudo apt install bubblewrap"
    put(tmp_path / "bwrap", "#!/bin/sh\necho 'bwrap: setting up uid map:\n  denied'; exit 1\n").chmod(0o755)
    assert obstacle(tmp_path / "root") == "bubblewrap says: bwrap: setting up uid map: denied"
    assert obstacle(tmp_path) == "bubblewrap is not installed"  # a worker's own bwrap is none
    put(tmp_path / "bwrap", "#!/no/such/interpreter\n")
    with pytest.raises(OSError, match="No such file"):  # it may be so only for now: no reason to run without
        obstacle(tmp_path / "root")
    monkeypatch.setattr(proc, "LINUX", False)
    assert obstacle(tmp_path) == "bubblewrap needs Linux"
