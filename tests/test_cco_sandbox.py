"""The walls around a check: what it can write, see and reach, and that nothing of it survives. All with bubblewrap."""

from __future__ import annotations

import os
import pwd
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

import log
import proc
import processes
import sandbox

BASH = ("/bin/bash", "-o", "pipefail")
LIMITS = proc.Limits(60, grace=5)
FOREVER = "exec sleep 1000"
ODD = [
    "a b",
    "[x]*?",
    'it\'s "so"',
    "two\nlines",
    "ta\tb",
    "back\\slash",
    "\\040",
    "ünï ✓",
    "$HOME;`id`",
    "-x",
    "\udcff",
]
KEY = "Zk9-planted-4711"
# A kit in a process of its own, which runs a line of shell within walls.
SUPERVISOR = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import proc, sandbox

walls = sandbox.Walls(Path.cwd(), (), (), (), network=True)
env = {name: value for name, value in os.environ.items() if name != "PLANTED"}
Path("../scratch").mkdir()
with open("../output", "wb+") as out:
    argv = sandbox.command(["sh", "-c", sys.argv[2]], walls, Path("../scratch"))
    print(proc.run(argv, cwd=Path.cwd(), env=env, output=out, limits=proc.Limits(60)).code)
"""


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    reason = sandbox.obstacle(KIT / "nowhere")
    need(not reason, reason)


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
    """A home directory; like all of the test's folder it lies below /tmp, so it is seen only where walls name it."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path, home) -> Path:
    (tmp_path / "a checkout").mkdir()
    return tmp_path / "a checkout"


@pytest.fixture
def run(tmp_path, root, mark):
    """Run a line of shell within walls; the result, and what it printed."""

    def start(command: str, limits: proc.Limits = LIMITS, **given: Any) -> tuple[proc.Result, str]:
        tick, size = given.pop("tick", None), given.pop("file_size", None)
        walls = sandbox.Walls(**{"root": root, "sealed": (), "hidden": (), "writable": (), "network": False, **given})
        scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
        scratch.mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], processes.MARKER: mark}
        argv = sandbox.command(sandbox.capped(BASH, command, size), walls, scratch)
        with open(tmp_path / "output", "wb+") as output:
            result = proc.run(argv, cwd=walls.root, env=env, output=output, limits=limits, tick=tick)
        return result, os.fsdecode((tmp_path / "output").read_bytes())

    return start


@pytest.fixture
def kit(root, mark) -> Iterator[Any]:
    """Start a kit in a process of its own, with a key in its environment."""
    kits = []

    def start(command: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", SUPERVISOR, str(KIT), command]
        env = {"PATH": os.environ["PATH"], processes.MARKER: mark, "PLANTED": KEY}
        kits.append(subprocess.Popen(argv, cwd=root, env=env, stdout=subprocess.PIPE, text=True))
        return kits[-1]

    yield start
    for process in kits:
        process.kill()
        process.communicate()


@pytest.fixture
def bystander(mark) -> Iterator[subprocess.Popen[bytes]]:
    """A process outside that no check may touch."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def server() -> Iterator[int]:
    """A port of the host on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def put(path: Path, text: str = "as it was\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sh(path: Path | str) -> str:
    return shlex.quote(str(path))


# --------------------------------------------------------------------------------------------------------
# What it may write
# --------------------------------------------------------------------------------------------------------


def test_the_repository_may_be_written_and_is_the_working_directory(run, root):
    result, printed = run("pwd; mkdir -p build/deep; echo made > build/deep/file; mv build/deep out; rm -r build")
    assert (result.code, printed) == (0, f"{root}\n")
    assert (root / "out" / "file").read_text() == "made\n"


@pytest.mark.parametrize(
    "place", ["/", "/etc", "/usr/bin", "/var", "/dev", "/sys", KIT, os.path.expanduser("~")], ids=str
)
def test_nothing_else_may_be_written(run, place):
    result, printed = run(f"touch {sh(place)}/cco-was-here")
    assert result.code == 1, printed
    assert not (Path(place) / "cco-was-here").exists()


def test_settings_of_the_kernel_may_not_be_written_even_by_root(run):
    before = Path("/proc/sys/kernel/domainname").read_text()
    result, _ = run("echo changed > /proc/sys/kernel/domainname")
    assert result.code == 1
    assert Path("/proc/sys/kernel/domainname").read_text() == before


@pytest.mark.parametrize(
    "attack",
    [
        "mount -o remount,rw,bind /",
        "umount .secret",
        "unshare -Urm sh -c 'umount .secret || mount -o remount,rw,bind /'",
        "mount --bind /tmp /etc",
        "mknod disk b 254 0",
        "python3 -c 'import os; os.chroot(\"/proc/1/root\")'",
        "nsenter -t 1 -m true",
    ],
)
def test_the_walls_cannot_be_taken_down_from_within(run, root, attack):
    (root / ".secret").mkdir()
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
    result, printed = run(f"test ! -e /tmp/{name} && echo $TMPDIR")
    assert (result.code, printed) == (0, "/tmp\n")


def test_shared_memory_and_temporary_files_work(run):
    code = "from multiprocessing import shared_memory as s, Lock; Lock(); s.SharedMemory(create=True, size=9).unlink()"
    result, printed = run(f"python3 -c {sh(code)} && mktemp && echo x | tee >(cat) > /dev/null && cat /dev/null")
    assert result.code == 0, printed


def test_a_place_that_is_named_may_be_written_and_its_neighbours_not(run, tmp_path):
    (tmp_path / "shared" / "in").mkdir(parents=True)
    shared = tmp_path / "shared"
    result, _ = run(f"touch {shared}/in/file", writable=(shared / "in", tmp_path / "missing"))
    assert (result.code, (shared / "in" / "file").exists()) == (0, True)
    result, _ = run(f"touch {shared}/file", writable=(shared / "in",), sealed=(shared,))
    assert (result.code, (shared / "file").exists()) == (1, False)


def test_caches_of_tools_may_be_written_except_for_programs_in_them(run, home, monkeypatch):
    tool = put(home / ".cache" / "tools" / "bin" / "tool")
    put(home / ".cargo" / "registry" / "index")
    put(home / ".cargo" / "bin" / "cargo")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert sandbox.caches() == [home / ".cache", home / ".cargo" / "registry"]
    assert run("touch ~/.cache/tools/file ~/.cargo/registry/file")[0].code == 0
    assert (home / ".cargo" / "registry" / "file").exists()
    for attack in ("echo > ~/.cache/tools/bin/tool", "touch ~/.cache/tools/bin/new", "mv ~/.cache/tools ~/.cache/old"):
        assert run(attack)[0].code == 1
    assert run("touch ~/.cargo/bin/file", sealed=(home,))[0].code == 1
    assert tool.read_text() == "as it was\n"


# --------------------------------------------------------------------------------------------------------
# What is sealed
# --------------------------------------------------------------------------------------------------------

BREAKING_A_SEAL = [
    "echo changed > tests/deep/test_api.py",
    "echo more >> tests/deep/test_api.py",
    "rm tests/deep/test_api.py",
    "mv tests/deep/test_api.py elsewhere",
    "touch other && mv other tests/deep/test_api.py",
    "ln -f tests/deep/test_api.py second && echo changed > second",
    "chmod 777 tests/deep/test_api.py",
    "sed -i s/was/is/ tests/deep/test_api.py",
    "touch folder/new",
    "mkdir folder/new",
    "echo changed > folder/inner/file",
    "rm -r folder",
    "mv folder elsewhere",
    "mv folder/inner elsewhere",
    "mv tests elsewhere",
    "mv tests/deep elsewhere",
    "rm -r tests",
    'mv ../$(basename "$PWD") ../elsewhere',
]


@pytest.mark.parametrize("attack", BREAKING_A_SEAL)
def test_what_is_sealed_stays_as_it_is_and_where_it_is(run, root, attack):
    file, inner = put(root / "tests" / "deep" / "test_api.py"), put(root / "folder" / "inner" / "file")
    result, printed = run(
        f"cat tests/deep/test_api.py folder/inner/file > /dev/null || exit 9; {attack}",
        sealed=(file, root / "folder", inner, root / "missing"),
    )
    assert result.code not in (0, 9, 127), printed
    assert file.read_text() == inner.read_text() == "as it was\n"
    assert list((root / "folder").rglob("*")) == [inner.parent, inner]


def test_beside_what_is_sealed_everything_may_be_written(run, root):
    file = put(root / "tests" / "deep" / "test_api.py")
    result, printed = run("touch tests/new tests/deep/new && mv tests/new tests/newer", sealed=(file,))
    assert result.code == 0, printed
    assert (root / "tests" / "newer").exists() and (root / "tests" / "deep" / "new").exists()


def test_of_walls_within_walls_the_innermost_holds(run, root, tmp_path):
    file = put(root / "tests" / "snapshots" / "kept" / "file")
    sealed, writable = (root / "tests", file), (tmp_path, root / "tests" / "snapshots", root)
    command = "touch tests/snapshots/new ../new; touch tests/new; echo x > tests/snapshots/kept/file"
    assert run(command, sealed=sealed, writable=writable)[0].code == 1
    assert (tmp_path / "new").exists() and (root / "tests" / "snapshots" / "new").exists()
    assert (file.read_text(), (root / "tests" / "new").exists()) == ("as it was\n", False)


def test_a_repository_that_is_hidden_itself_is_empty(run, root):
    put(root / "file")
    assert run("ls -A", hidden=(root,))[1] == ""


def test_everything_may_be_named_as_writable_but_not_what_is_sealed(run, root, tmp_path):
    file = put(root / "sealed")
    result, _ = run(f"touch {tmp_path}/new && echo x > sealed", writable=(Path("/"), Path("/tmp")), sealed=(file,))
    assert (result.code, (tmp_path / "new").exists(), file.read_text()) == (1, True, "as it was\n")


def test_a_link_to_what_is_sealed_leads_to_a_seal(run, root):
    put(root / "real" / "file")
    (root / "link").symlink_to("real")
    (root / "broken").symlink_to("nowhere")
    result, _ = run("echo changed > real/file", sealed=(root / "link", root / "broken"))
    assert (result.code, (root / "real" / "file").read_text()) == (1, "as it was\n")


def test_of_too_many_sealed_paths_the_outer_ones_are_sealed(run, root, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(log, "debug", lambda message, **_: said.append(message))
    monkeypatch.setattr(sandbox, "MOUNTS", 3)
    outer, deep = put(root / "outer"), [put(root / "a" / str(number) / "file") for number in range(3)]
    result, _ = run("echo x > outer; for n in 0 1 2; do echo x > a/$n/file; done 2>/dev/null", sealed=(*deep, outer))
    assert result.code == 0
    assert outer.read_text() == "as it was\n"
    assert [path.read_text() for path in deep] == ["x\n"] * 3
    assert said == ["3 of 4 sealed paths are only compared: too many mounts"]


def test_four_hundred_sealed_files_are_no_burden(run, root):
    files = tuple(put(root / f"file {number}") for number in range(sandbox.MOUNTS))
    result, _ = run("echo x > 'file 399'", sealed=files)
    assert (result.code, files[-1].read_text()) == (1, "as it was\n")
    assert result.seconds < 10


# --------------------------------------------------------------------------------------------------------
# What is hidden
# --------------------------------------------------------------------------------------------------------


def test_what_is_hidden_shows_up_empty_and_stays_as_it_is(run, root):
    folder, file = put(root / ".cco" / "state.json").parent, put(root / "keys" / ".env")
    result, printed = run("ls -A .cco; cat keys/.env; wc -c < keys/.env", hidden=(folder, file, root / "missing"))
    assert (result.code, printed) == (0, "0\n")
    for attack in ("touch .cco/new", "echo x > keys/.env", "rm keys/.env", "rmdir .cco", "mv keys elsewhere"):
        assert run(attack, hidden=(folder, file))[0].code == 1
    assert (folder / "state.json").read_text() == file.read_text() == "as it was\n"


@pytest.mark.parametrize(
    "place", [".ssh/id_ed25519", ".netrc", ".aws/credentials", ".claude/x", ".config/gh/hosts.yml"]
)
def test_secrets_of_the_home_directory_are_not_readable(run, home, place):
    put(home / place, KEY)
    put(home / ".gitconfig", "plain")
    for given in ({"sealed": (home,)}, {"writable": (home,)}):
        _, printed = run(f"cat ~/.gitconfig; cat ~/{place}; grep -r {KEY} ~", **given)
        assert printed.startswith("plain") and KEY not in printed


def test_secrets_that_are_kept_elsewhere_and_linked_are_not_readable(run, home, tmp_path):
    put(tmp_path / "vault" / "id_ed25519", KEY)
    (home / ".ssh").symlink_to(tmp_path / "vault")
    _, printed = run(f"ls {tmp_path}/vault; cat ~/.ssh/* {tmp_path}/vault/*", sealed=(tmp_path,))
    assert "vault" not in printed.splitlines() and KEY not in printed


@pytest.mark.parametrize(
    ("text", "seen"), [("registry=https://example.org\n", True), (f"//r/:_authToken={KEY}\n", False)]
)
def test_settings_of_a_tool_are_hidden_only_with_a_login_in_them(run, home, text, seen):
    put(home / ".npmrc", text)
    assert run("cat ~/.npmrc", sealed=(home,))[1] == (text if seen else "")


def test_a_secret_place_that_is_named_as_writable_is_seen(run, home):
    put(home / ".docker" / "config.json", KEY)
    assert run("cat ~/.docker/config.json", writable=(home / ".docker",))[1] == KEY


def test_a_checkout_in_a_hidden_folder_is_seen_and_its_neighbours_are_not(run, home):
    state = home / ".local" / "state" / "cco"
    put(state / "state.json", KEY)
    (state / "checkout").mkdir()
    result, printed = run(f"touch made; ls {state}", root=state / "checkout", sealed=(home,))
    assert (result.code, printed, (state / "checkout" / "made").exists()) == (0, "checkout\n", True)


def test_the_sockets_of_daemons_are_hidden_unless_they_are_named(run, tmp_path, monkeypatch):
    path = tmp_path / "docker.sock"
    monkeypatch.setattr(sandbox, "SOCKETS", (str(path),))
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        assert run(f"python3 -c {sh(code)}", sealed=(tmp_path,))[0].code == 1
        assert run(f"python3 -c {sh(code)}", sealed=(tmp_path,), writable=(path,))[0].code == 0


def test_a_home_directory_that_nobody_knows_is_no_obstacle(run, monkeypatch):
    monkeypatch.setattr(sandbox, "_homes", list)
    assert run("true")[0].code == 0
    assert sandbox.caches() == []


@pytest.mark.parametrize(("uid", "homes"), [(0, [pwd.getpwuid(0).pw_dir]), (4711, [])], ids=["known", "unknown"])
def test_without_home_the_user_database_is_asked(monkeypatch, uid, homes):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: uid)
    assert sandbox._homes() == homes
    assert isinstance(sandbox.caches(), list)


def test_the_kits_own_keys_are_out_of_reach(kit, tmp_path):
    process = kit("tr '\\0' '\\n' < /proc/$PPID/environ; cat /proc/*/environ; echo; ls -d /proc/[0-9]*; true")
    said, _ = process.communicate(timeout=60)
    printed = (tmp_path / "output").read_text(errors="replace")
    assert (said, KEY in printed) == ("0\n", False)
    assert f"/proc/{process.pid}" not in printed.splitlines()
    assert "/proc/1" in printed.splitlines()


# --------------------------------------------------------------------------------------------------------
# What it reaches
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [True, False])
def test_the_hosts_loopback_is_reached_only_with_the_network(run, server, network):
    result, printed = run(f"exec 3<> /dev/tcp/127.0.0.1/{server} && echo reached", network=network)
    assert (result.code, "reached" in printed) == ((0, True) if network else (1, False))


def test_without_the_network_it_has_a_loopback_of_its_own(run):
    code = "import socket as s; a = s.create_server(('127.0.0.1', 0)); s.create_connection(a.getsockname()); a.accept()"
    assert run(f"python3 -c {sh(code)}")[0].code == 0


# --------------------------------------------------------------------------------------------------------
# How it ends
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("false | true", 1),
        ("no-such-program", 127),
        ("kill -9 $$", 137),
    ],
)
def test_the_exit_code_is_the_commands_own(run, command, code):
    assert run(command)[0].code == code


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("sh -c 'kill -9 $PPID; true'; exit 0", 137),
        ("sh -c 'kill -9 -1; true'; exit 0", 137),
        ("kill -9 $PPID; exit 3", 3),  # nothing within can end the first process there
        ("kill -9 1; exit 3", 3),
        ("kill -9 -1; exit 3", 3),
        ("kill -9 0", 137),
        ("trap '' TERM; kill 0; exit 0", 0),  # does not reach bubblewrap itself
    ],
)
def test_a_command_that_kills_all_it_can_harms_itself_alone(run, bystander, command, code):
    assert run(command)[0].code == code
    assert bystander.poll() is None


@pytest.mark.parametrize(
    "daemon", ["sleep 1000 &", "setsid -f sleep 1000", "(setsid env -i sleep 1000 &)", "nohup sleep 1000 &"]
)
def test_what_it_leaves_behind_ends_with_it(run, root, daemon):
    name = f"sleep-{uuid.uuid4().hex[:8]}"  # it may drop the mark, but not its name
    (root / name).symlink_to("/bin/sleep")
    running = f"until grep -qs {name} /proc/[0-9]*/cmdline; do :; done"
    result, _ = run(f"{daemon.replace('sleep', f'./{name}')} {'' if daemon.endswith('&') else ';'} {running}; exit 3")
    assert result.code == 3
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and name in processes.command_line(int(pid))]


def test_at_its_limit_everything_of_it_ends(run, root):
    def ready() -> str:
        return "seen" if (root / "ready").exists() else ""

    result, _ = run(f"trap '' TERM; setsid -f sleep 1000; touch ready; {FOREVER}", tick=ready)
    assert (result.stopped, result.code != 0) == ("seen", True)


def test_when_the_kit_is_killed_nothing_of_it_stays(kit, root, mark):
    process = kit("setsid sleep 1000 & (setsid sleep 1000 &); touch ready; sleep 1000")
    until((root / "ready").exists, "the command runs")
    until(lambda: sum(line.startswith("sleep") for line in marked(mark).values()) == 3, "all run")
    process.kill()
    process.wait()
    until(lambda: not marked(mark), "all of it has ended")
    assert process.returncode == -signal.SIGKILL and not marked(mark)


def test_what_hides_from_its_parent_is_counted_too(run):
    result, _ = run("for n in $(seq 60); do setsid -f sleep 1000; done; sleep 1000", proc.Limits(60, processes=50))
    assert (result.stopped, result.code != 0) == ("processes", True)


# --------------------------------------------------------------------------------------------------------
# Where the repository lies
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names_hold_as_they_are(run, tmp_path, name):
    root = tmp_path / f"{name}" / name
    put(root / name / "sealed")
    put(root / f"{name}2" / "secret", KEY)
    command = f"echo x > {sh(name)}/sealed; cat ./{sh(name)}2/*; touch ./{sh(name)}3"
    result, printed = run(command, root=root, sealed=(root / name,), hidden=(root / f"{name}2",))
    assert (result.code, KEY in printed) == (0, False)
    assert (root / name / "sealed").read_text() == "as it was\n"
    assert (root / f"{name}3").exists()


def test_a_repository_behind_a_link_is_found(run, root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert run("touch made", root=tmp_path / "link")[0].code == 0
    assert (root / "made").exists()


def test_git_works_in_a_worktree_and_a_sealed_git_folder_takes_no_commit(run, project, git, tmp_path):
    tree = tmp_path / "a worktree"
    git(project, "worktree", "add", "-q", "--detach", str(tree))
    head, sealed = git(tree, "rev-parse", "HEAD"), (tree / ".git", project / ".git")
    result, printed = run("touch new; git status --short && git log --oneline", root=tree, sealed=sealed)
    assert (result.code, "?? new" in printed, "first" in printed) == (0, True, True), printed
    for attack in ("git add new", "git commit --allow-empty -m x", "rm .git", "git update-ref HEAD HEAD^{tree}"):
        result, printed = run(attack, root=tree, sealed=sealed)
        assert result.code not in (0, 127), printed
    assert git(tree, "rev-parse", "HEAD") == head


# --------------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", [BASH, ("/bin/sh",)], ids=["bash", "sh"])
@pytest.mark.parametrize(
    "command",
    [
        "dd if=/dev/zero of=big bs=1M count=10000",
        "truncate -s 10G big",
        'python3 -c \'open("big", "wb").write(bytes(10**8))\'',
        "ulimit -f unlimited; ulimit -Hf unlimited; head -c 10000000000 /dev/zero > big",
    ],
)
def test_a_file_of_more_than_its_size_is_refused(run, root, shell, command, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "BASH", shell)
    result, _ = run(command, proc.Limits(60, max_output=10**6), file_size=5_000_000)
    assert result.code != 0 and not result.stopped
    assert (root / "big").stat().st_size <= 5_000_000


def test_a_file_of_its_size_is_written(run, root):
    assert run("head -c 5120000 /dev/zero > big", file_size=5_120_000)[0].code == 0
    assert run("head -c 5120001 /dev/zero > big", file_size=5_120_000)[0].code != 0


def test_no_core_file_is_written(run):
    assert run("ulimit -c; ulimit -Hc")[1] == "0\n0\n"
    assert run("ulimit -f")[1] == run("ulimit -Hf")[1]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("false | true", 1),
        ("kill -9 $$", -9),
        ("kill -TERM $$", -15),
        ("no-such-program", 127),
        ("test \"$0 $#\" = '/bin/bash 0'", 0),
        ('test \'"$(echo a)"\' = "\\"\\$(echo a)\\"" # ; exit 4\nexit 5', 5),
        ("-c", 2),
    ],
)
@pytest.mark.parametrize("size", [None, 10**9])
def test_with_limits_a_command_ends_as_without(tmp_path, command, code, size):
    ends = []
    for argv in ([*BASH, "-c", command], sandbox.capped(BASH, command, size)):
        with open(tmp_path / "output", "wb+") as output:
            ends.append(proc.run(argv, cwd=tmp_path, env=dict(os.environ), output=output, limits=LIMITS).code)
    assert ends == [code, code]


def test_a_lower_limit_of_the_machine_stays_in_force(tmp_path):
    argv = sandbox.capped(("/bin/sh",), "ulimit -f", 10**9)
    lowered = ["sh", "-c", 'ulimit -f 10; ulimit -f 20 2>/dev/null && exit 9; exec "$@"', "sh", *argv]
    without_powers = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=4711", "--clear-groups", "--"]
    if os.geteuid() == 0:  # root may raise any limit
        lowered = [*without_powers, *lowered]
    done = subprocess.run(lowered, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


# --------------------------------------------------------------------------------------------------------
# Whether there can be walls
# --------------------------------------------------------------------------------------------------------


def test_an_obstacle_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.obstacle(tmp_path / "root") == "bubblewrap is not installed"
    assert sandbox.remedy() == "sudo apt install bubblewrap"
    put(tmp_path / "bwrap", "#!/bin/sh\necho 'bwrap: setting up uid map:\n  denied'; exit 1\n").chmod(0o755)
    assert sandbox.obstacle(tmp_path / "root") == "bubblewrap says: bwrap: setting up uid map: denied"
    assert sandbox.obstacle(tmp_path) == "bubblewrap is not installed"  # a worker's own bwrap is none
    put(tmp_path / "bwrap", "#!/bin/sh\nexit 7\n")
    assert sandbox.obstacle(tmp_path / "root") == "bubblewrap says: 7"


def test_there_is_no_bubblewrap_beyond_linux(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "LINUX", False)
    assert sandbox.obstacle(tmp_path) == "bubblewrap needs Linux"
