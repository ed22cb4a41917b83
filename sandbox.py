"""The sandbox for checks, which run what a worker wrote: bubblewrap.

    if why := sandbox.obstacle(root): ...              it cannot start here; sandbox.remedy() says what to do
    argv = sandbox.command(sandbox.capped(["bash"], "npm test", 10**9), Sandbox(root, (tests,), (), False), scratch)

A check sees the machine as it is, but writes only in the repository, in caches of build tools and in a /tmp of its own;
it sees no other processes, and ends with all it started. Of two places the rule of the inner one holds. Limitations:
a protected link, or one that does not exist, can be replaced, and a second hard link written; with the network on, a
check reaches every service of this machine; what it writes in a hidden folder is lost. A timeout is SIGKILL in there:
bubblewrap does not pass SIGTERM on.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import proc

PROGRAM = "bwrap"
MOUNTS = 200  # protected paths that are mounted; each costs time, and the rest is compared anyway
BLOCK = 1024  # bytes in which bash counts `ulimit -f`
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # all the same folder
# A session of its own, or `kill 0` would end bubblewrap.
ALONE = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session")
PROBE = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *ALONE, "--unshare-net", "true")
# Root keeps what it needs for files and users, not what ends a sandbox; others have no capabilities to begin with.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
# Logins, as VARIABLE=PLACE:NAME. The variable moves the place; only the name in there is secret, else all of it.
SECRETS = """
    ~/.ssh ~/.git-credentials ~/.pypirc ~/.vault-token ~/.terraform.d/credentials.tfrc.json ~/.gem/credentials
    NETRC=~/.netrc PGPASSFILE=~/.pgpass GNUPGHOME=~/.gnupg PASSWORD_STORE_DIR=~/.password-store
    AWS_SHARED_CREDENTIALS_FILE=~/.aws AWS_CONFIG_FILE=~/.aws AZURE_CONFIG_DIR=~/.azure KUBECONFIG=~/.kube
    CLOUDSDK_CONFIG=~/.config/gcloud GOOGLE_APPLICATION_CREDENTIALS=~/.config/gcloud DOCKER_CONFIG=~/.docker
    REGISTRY_AUTH_FILE=~/.config/containers/auth.json GH_CONFIG_DIR=~/.config/gh GLAB_CONFIG_DIR=~/.config/glab-cli
    CARGO_HOME=~/.cargo:credentials CARGO_HOME=~/.cargo:credentials.toml COMPOSER_HOME=~/.composer:auth.json
    HF_HOME=~/.cache/huggingface:token XDG_CACHE_HOME=~/.cache:huggingface/token XDG_DATA_HOME=~/.local/share:keyrings
    XDG_CONFIG_HOME=~/.config:git/credentials XDG_CONFIG_HOME=~/.config:gh XDG_CONFIG_HOME=~/.config:glab-cli
    XDG_CONFIG_HOME=~/.config:gcloud XDG_CONFIG_HOME=~/.config:doctl XDG_CONFIG_HOME=~/.config:rclone
    XDG_CONFIG_HOME=~/.config:op XDG_CONFIG_HOME=~/.config:sops XDG_CONFIG_HOME=~/.config:containers/auth.json
    XDG_CONFIG_HOME=~/.config:composer/auth.json XDG_CONFIG_HOME=~/.config:google-chrome
    XDG_CONFIG_HOME=~/.config:chromium XDG_CONFIG_HOME=~/.config:microsoft-edge
    XDG_CONFIG_HOME=~/.config:BraveSoftware ~/.mozilla ~/.thunderbird CLAUDE_CONFIG_DIR=~/.claude:.credentials.json
"""
# Files that tools read in any case: secret only with a login in them.
CONFIGS = """
    NPM_CONFIG_USERCONFIG=~/.npmrc ~/.yarnrc.yml ~/.m2/settings.xml GRADLE_USER_HOME=~/.gradle:gradle.properties
    PIP_CONFIG_FILE=~/.config/pip/pip.conf
"""
LOGIN = re.compile(rb"_auth|authtoken|password|://[^/\s:@]+:[^/\s@]+@", re.I)
CLAUDE = "CLAUDE_CONFIG_DIR=~/.claude ~/.claude.json XDG_CONFIG_HOME=~/.config:cco"  # no business of a check
# Whoever listens there would run a command outside.
SOCKETS = """
    /run/docker.sock /run/docker /run/podman /run/containerd /run/crio /run/buildkit /run/dbus /run/systemd/private
    /run/snapd.socket /run/libvirt /run/screen /var/lib/lxd/unix.socket /var/lib/incus/unix.socket
    /var/snap/lxd/common/lxd/unix.socket
"""
# Only what is fetched and built: no settings that later builds would follow, no folders for programs.
CACHES = """
    ~/.cache ~/.npm ~/.yarn/berry ~/.local/share/pnpm/store ~/.bun/install/cache ~/.cargo/registry ~/.cargo/git
    ~/go/pkg ~/.gradle/caches ~/.gradle/daemon ~/.gradle/native ~/.gradle/notifications ~/.gradle/workers
    ~/.gradle/wrapper ~/.gradle/.tmp ~/.m2/repository ~/.m2/wrapper ~/.ivy2/cache ~/.ivy2/local ~/.sbt/boot
    ~/.nuget/packages ~/.pub-cache/hosted ~/.pub-cache/git ~/.composer/cache
"""
READ, WRITE, HIDE, OWN, DEV, PROC = "--ro-bind", "--bind", "hide", "own", "--dev", "--proc"  # kinds of mount


@dataclass(eq=False)
class Sandbox:
    """What checks may reach. Which of the places exist is looked up once for each object."""

    root: Path  # the checkout: its working directory, which it may write
    protected: tuple[Path, ...]  # what it may only read, and is shown although it lies below /tmp
    writable: tuple[str | Path, ...]  # further places that it may write, or talk to
    network: bool  # whether it has the host's network; else a loopback of its own
    hidden: tuple[Path, ...] = ()  # what it is not to see: a folder shows up empty, and so does a file


@functools.lru_cache
def obstacle(root: Path) -> str:
    """Return why bubblewrap does not work here, in one line, or "". root: what its files offer does not count.

    Raises OSError where it cannot even be started, which may be so only for now.
    """
    if not proc.LINUX:
        return "bubblewrap needs Linux"
    program = proc.find(PROGRAM, root)
    if not program:
        return "bubblewrap is not installed"
    env, limits = proc.clean_env(os.environ), proc.Limits(30.0)
    with tempfile.TemporaryFile() as output:
        result = proc.run([program, *PROBE], cwd=Path("/"), env=env, output=output, limits=limits)
        text = " ".join(proc.tail(output, 500).split())
    if result.errno:
        raise OSError(result.errno, result.error)
    return "" if result.code == 0 else f"bubblewrap says: {text or result.stopped or result.code}"


def remedy() -> str:
    """Return what helps: the package, or what else allows it user namespaces."""
    if not shutil.which(PROGRAM):
        return "sudo apt install bubblewrap"
    with suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            return (
                "AppArmor forbids user namespaces (the default since Ubuntu 24.04). Add a profile that allows them for"
                " /usr/bin/bwrap, see https://code.claude.com/docs/en/sandboxing"
            )
    return (
        "allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000;"
        " in a container: --security-opt seccomp=unconfined"
    )


def command(argv: Sequence[str], sandbox: Sandbox, scratch: Path) -> list[str]:
    """Return the command that runs another one in the sandbox. scratch: an empty folder, on disk, for its /tmp."""
    scratch = scratch.resolve()
    (scratch / "tmp").mkdir(exist_ok=True)
    (scratch / "tmp").chmod(0o1777)
    (scratch / "empty").touch()
    options = [word for place, kind in _mounts(sandbox).items() for word in _option(kind, place, scratch)]
    options += ALONE if sandbox.network else [*ALONE, "--unshare-net"]
    if os.geteuid() == 0:
        options += ["--cap-drop", "ALL", *(word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}"))]
    options += ["--setenv", "TMPDIR", "/tmp", "--chdir", str(sandbox.root.resolve())]
    return [proc.find(PROGRAM, sandbox.root) or PROGRAM, *options, "--", *argv]


def capped(shell: Sequence[str], command: str, file_size: int | None) -> list[str]:
    """Return what runs a line of shell with limits it cannot lift: no core files, no file of more bytes than that."""
    limits = "ulimit -c 0; "  # on the command's own first line, so that the shell's line numbers stay right
    if file_size is not None:  # where a lower one is in force already, that one stays
        limits += f"ulimit -f {file_size // BLOCK} 2>/dev/null || :; "
    return [*shell, "-c", f"{limits}{command}"]


def secret_places() -> list[str]:
    """Return the files and folders with logins that no command is to read, also where a variable moved them."""
    configs = [path for path in _existing(_places(CONFIGS)) if path.is_file() and os.access(path, os.R_OK)]
    with_login = [path for path in configs if LOGIN.search(path.read_bytes())]
    return [str(path) for path in (*_existing(_places(SECRETS)), *with_login)]


def caches() -> list[Path]:
    """Return the caches of build tools in the home directory; one whose folder is there is made."""
    for place in map(Path, map(os.path.expanduser, CACHES.split())):
        if place.parent.is_dir() and not place.exists():
            with suppress(OSError):
                place.mkdir(mode=0o700)
    return _existing(CACHES.split())


@functools.lru_cache(maxsize=8)
def _mounts(sandbox: Sandbox) -> dict[Path, str]:
    """Return the kind of mount at each place, outer folders first, since a mount covers what is in it."""
    protected = sorted(_existing(sandbox.protected), key=lambda place: len(place.parts))
    # A folder on which something is mounted cannot be renamed, with the protected file in it.
    root = sandbox.root.resolve()
    folders = {folder for place in protected[:MOUNTS] for folder in place.parents if folder.is_relative_to(root)}
    around = [folder for folder in folders - {root} if not {folder, *folder.parents}.intersection(protected)]
    rules: list[tuple[str, Sequence[str | Path]]] = [  # of two for one place the later one holds
        (READ, ["/"]),
        (DEV, ["/dev"]),
        (PROC, ["/proc"]),
        # bubblewrap 0.8 leaves it writable for root; for others this would only forbid a sandbox in the sandbox
        (READ, ["/proc/sys"] if os.geteuid() == 0 else []),
        (OWN, TEMPORARY),
        (HIDE, [*secret_places(), *_places(CLAUDE), *SOCKETS.split(), f"/run/user/{os.getuid()}"]),
        (WRITE, caches()),
        (WRITE, sandbox.writable),
        (WRITE, [sandbox.root]),
        (WRITE, around),
        (READ, protected[:MOUNTS]),
        (HIDE, sandbox.hidden),
    ]
    kinds = {place: kind for kind, places in rules for place in _existing(places)}
    return dict(sorted(kinds.items(), key=lambda item: len(item[0].parts)))


def _option(kind: str, place: Path, scratch: Path) -> list[str]:
    if kind == OWN:
        return [WRITE, str(scratch / "tmp"), str(place)]
    if kind == HIDE:
        return ["--tmpfs", str(place)] if place.is_dir() else [READ, str(scratch / "empty"), str(place)]
    return [kind, str(place)] if kind in (DEV, PROC) else [kind, str(place), str(place)]


def _places(table: str) -> Iterable[str]:
    """Yield the places of a table like SECRETS: by default, also in the home that the account has, and as moved."""
    with suppress(KeyError):  # a container may run as a user without an account
        table = f"{table} {table.replace('~', pwd.getpwuid(os.getuid()).pw_dir)}"
    for word in table.split():
        variable, _, rest = word.rpartition("=")
        default, _, name = rest.partition(":")
        for base in filter(None, [default, *os.environ.get(variable, "").split(os.pathsep)]):
            yield os.path.abspath(os.path.join(os.path.expanduser(base), name))


def _existing(places: Iterable[str | Path]) -> list[Path]:
    """Return those that exist, where they really are: nothing can be mounted on a symbolic link."""
    paths = map(os.path.expanduser, places)
    return [Path(os.path.realpath(path)) for path in paths if os.path.exists(path)]
