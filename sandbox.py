"""The walls around a command that runs what a worker wrote: bubblewrap.

    if why := sandbox.obstacle(root): ...              # it cannot be used here; sandbox.remedy() says what to do
    with tempfile.TemporaryDirectory() as scratch:
        walls = sandbox.Walls(root, sealed=(tests,), hidden=(state,), writable=(), network=False)
        argv = sandbox.command(sandbox.capped(["bash"], "npm test", 10**9), walls, Path(scratch))
        proc.run(argv, ...)

The command sees the machine as it is, but may write only in the repository, in the caches of build tools and in a
/tmp of its own. Its processes are in a world of their own: they see no others, and end with it or with the kit.
Of two walls, the one whose path is longer holds: a folder in a hidden one may be shown, a file in a sealed one written.

What is not covered: a symbolic link in the repository may be replaced even when what it leads to is sealed; so may
what is sealed but does not exist. A file with a second name (hard link) may be written by that. What the command puts
into a tool's cache, other builds of this user run. With the network on, it reaches every service of this machine that
listens on loopback or an abstract socket. A timeout ends it with SIGKILL, since bubblewrap does not pass SIGTERM on.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import log
import machine
import proc
import processes
import surroundings

MOUNTS = 400  # for what is sealed; each costs time, and 2000 of them seconds
BLOCK = 512  # bytes in which every `sh` counts `ulimit -f`; bash by its own name counts 1024
PROBE_TIME = 30  # seconds
SYSCTL = Path("/proc/sys")
PROGRAM = "bwrap"
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # all the same folder
# A session of its own, or `kill 0` would end bubblewrap. No terminal is in reach: proc.run's session has none either.
ALONE = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session")
PROBE = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *ALONE, "--unshare-net", "true")
# Root keeps what it needs for files and users, not what takes walls down; others have no powers to begin with.
POWERS = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
SECRET_PLACES = (
    "~/.ssh",
    "~/.aws",
    "~/.azure",
    "~/.gnupg",
    "~/.netrc",
    "~/.pgpass",
    "~/.pypirc",
    "~/.git-credentials",
    "~/.config/git/credentials",
    "~/.config/gh",
    "~/.config/glab-cli",
    "~/.config/gcloud",
    "~/.config/doctl",
    "~/.config/rclone",
    "~/.config/op",
    "~/.config/sops",
    "~/.kube",
    "~/.docker",
    "~/.config/containers/auth.json",
    "~/.vault-token",
    "~/.terraform.d/credentials.tfrc.json",
    "~/.cargo/credentials",
    "~/.cargo/credentials.toml",
    "~/.gem/credentials",
    "~/.composer/auth.json",
    "~/.config/composer/auth.json",
    "~/.cache/huggingface/token",
    "~/.password-store",
    "~/.local/share/keyrings",
    "~/.mozilla",
    "~/.thunderbird",
    "~/.config/google-chrome",
    "~/.config/chromium",
    "~/.config/microsoft-edge",
    "~/.config/BraveSoftware",
    "~/.claude/.credentials.json",
)
OURS = ("~/.claude", "~/.claude.json", "~/.config/cco")  # no business of a check
# Files that tools read in any case: hidden only with a login in them.
CONFIGS = ("~/.npmrc", "~/.yarnrc.yml", "~/.m2/settings.xml", "~/.gradle/gradle.properties", "~/.config/pip/pip.conf")
LOGIN = re.compile(rb"_auth|authtoken|password|://[^/\s:@]+:[^/\s@]+@", re.I)
# Whoever listens there would run a command outside.
SOCKETS = (
    f"/run/user/{os.getuid()}",
    "/run/docker.sock",
    "/run/docker",
    "/run/podman",
    "/run/containerd",
    "/run/crio",
    "/run/buildkit",
    "/run/dbus",
    "/run/systemd/private",
    "/run/snapd.socket",
    "/run/libvirt",
    "/run/screen",
    "/var/lib/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
)
# Only what is fetched and built: no settings that later builds would follow, no folders for programs.
CACHES = (
    "~/.cache",
    "~/.npm",
    "~/.yarn/berry",
    "~/.pnpm-store",
    "~/.local/share/pnpm/store",
    "~/.bun/install/cache",
    "~/.cargo/registry",
    "~/.cargo/git",
    "~/go/pkg",
    *(f"~/.gradle/{name}" for name in ("caches", "daemon", "native", "notifications", "workers", "wrapper", ".tmp")),
    "~/.m2/repository",
    "~/.m2/wrapper",
    "~/.ivy2/cache",
    "~/.ivy2/local",
    "~/.sbt/boot",
    "~/.nuget/packages",
    "~/.pub-cache/hosted",
    "~/.pub-cache/git",
    "~/.composer/cache",
)

READ, WRITE, HIDE, OWN, DEV, PROC = "--ro-bind", "--bind", "hide", "own", "--dev", "--proc"  # kinds of wall


@dataclass(frozen=True)
class Walls:
    """What a command may reach."""

    root: Path
    """The checkout: its working directory, which it may write."""
    sealed: tuple[Path, ...]
    """What it may only read, although it lies in there; elsewhere, what it is shown although it lies below /tmp."""
    hidden: tuple[Path, ...]
    """Files and folders that it is not to see: a folder shows up empty, and so does a file."""
    writable: tuple[Path, ...]
    """Further places that it may write, or talk to."""
    network: bool
    """Whether it has the host's network; without, it has a loopback of its own."""


# --------------------------------------------------------------------------------------------------------
# Whether there can be walls
# --------------------------------------------------------------------------------------------------------


def obstacle(root: Path) -> str:
    """Why bubblewrap does not work here, in one line; "" when it does. root: what its files offer does not count.

    Raises OSError for what the machine lacks only for now: no check is to run without walls for that.
    """
    if not processes.LINUX:
        return "bubblewrap needs Linux"
    program = surroundings.find(PROGRAM, root)
    if not program:
        return "bubblewrap is not installed"
    env, limits = surroundings.clean_env(os.environ), proc.Limits(PROBE_TIME)
    with tempfile.TemporaryFile() as out:
        result = proc.run([program, *PROBE], cwd=Path("/"), env=env, output=out, limits=limits)
        said = " ".join(proc.tail(out, 500).split())
    if result.code != 0 and (lack := machine.lack(result.errno, said, machine.SCARCE)):
        raise lack
    return "" if result.code == 0 else f"bubblewrap says: {said or result.error or result.stopped or result.code}"


def remedy() -> str:
    """What would mend it: the package, or which of the usual limits on user namespaces stands in the way."""

    def setting(name: str) -> str:
        try:
            return (SYSCTL / name).read_text().strip()
        except OSError:
            return ""

    if not shutil.which(PROGRAM):
        return "sudo apt install bubblewrap"
    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids user namespaces (kernel.apparmor_restrict_unprivileged_userns=1, the default since Ubuntu"
            " 24.04). Add a profile that allows them for /usr/bin/bwrap, see https://code.claude.com/docs/en/sandboxing"
        )
    if setting("kernel/unprivileged_userns_clone") == "0":
        return "the kernel forbids user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1"
    if setting("user/max_user_namespaces") == "0":
        return "the kernel allows no user namespace: sudo sysctl user.max_user_namespaces=10000"
    if any(os.path.exists(sign) for sign in ("/.dockerenv", "/run/.containerenv")) or os.environ.get("container"):
        return "this container may not make user namespaces: start it with --security-opt seccomp=unconfined"
    return "allow unprivileged user namespaces for bwrap on this machine"


# --------------------------------------------------------------------------------------------------------
# The walls
# --------------------------------------------------------------------------------------------------------


def command(argv: Sequence[str], walls: Walls, scratch: Path) -> list[str]:
    """The same command within the walls. scratch: an empty folder for its /tmp, on disk since a tmpfs is memory."""
    (scratch / "tmp").mkdir(exist_ok=True)
    (scratch / "tmp").chmod(0o1777)
    (scratch / "empty").touch()
    kinds = _pinned(_needed(_kinds(walls)))
    options = [word for place, kind in kinds.items() for word in _option(kind, place, scratch.resolve())]
    # Last, for nothing can be mounted in a folder that may not be written. Without it both would hold files in memory.
    options += [
        word for place, kind in kinds.items() if _in_memory(kind, place) for word in ("--remount-ro", str(place))
    ]
    options += ALONE if walls.network else [*ALONE, "--unshare-net"]
    if os.geteuid() == 0:
        options += ["--cap-drop", "ALL", *(word for power in POWERS for word in ("--cap-add", f"CAP_{power}"))]
    options += ["--setenv", "TMPDIR", "/tmp", "--chdir", str(walls.root.resolve())]
    return [surroundings.find(PROGRAM, walls.root) or PROGRAM, *options, "--", *argv]


def capped(shell: Sequence[str], command: str, file_size: int | None) -> list[str]:
    """What runs a line of shell with limits it cannot lift: no core files, no file of more bytes than file_size."""
    limits, blocks = "ulimit -c 0", "" if file_size is None else str(file_size // BLOCK)
    if blocks:
        limits += '; ulimit -f "$1" 2>/dev/null'  # where a lower one is in force already, that one stays
    return ["/bin/sh", "-c", f'{limits}; shift; exec "$@"', "sh", blocks, *shell, "-c", command]


def caches() -> list[Path]:
    """The caches of build tools that exist in the home directory."""
    return _existing(place.replace("~", home, 1) for home in _homes()[:1] for place in CACHES)


def key_places() -> list[str]:
    """Where the key that seals the states may be."""
    given = os.environ.get("XDG_STATE_HOME")
    states = [*([given] if given else []), *(os.path.join(home, ".local", "state") for home in _homes())]
    return [os.path.abspath(os.path.join(place, "cco")) for place in states]


def _kinds(walls: Walls) -> dict[Path, str]:
    """The kind of wall at each place; a later one replaces an earlier one at the same place."""
    path, stores = os.environ.get("PATH", os.defpath).split(os.pathsep), set(caches())
    tools = [place for place in _existing(filter(os.path.isabs, path)) if not stores.isdisjoint(place.parents)]
    writable = [*_existing(walls.writable), walls.root.resolve()]
    return {
        **dict.fromkeys([Path("/")], READ),
        **dict.fromkeys([Path("/dev")], DEV),
        **dict.fromkeys([Path("/proc")], PROC),
        # bubblewrap 0.8 leaves it writable for root; for others this would only forbid walls within walls.
        **dict.fromkeys([SYSCTL] if os.geteuid() == 0 else [], READ),
        **dict.fromkeys(_existing(TEMPORARY), OWN),
        **dict.fromkeys(_secrets(), HIDE),
        **dict.fromkeys(stores, WRITE),
        **dict.fromkeys(tools, READ),
        **dict.fromkeys(writable, WRITE),
        **dict.fromkeys(_sealed(_existing(walls.sealed), writable), READ),
        **dict.fromkeys(_existing(walls.hidden), HIDE),
    }


def _needed(kinds: dict[Path, str]) -> dict[Path, str]:
    """Outer folders first, since a mount covers what is in it, and without those that change nothing."""
    kept: dict[Path, str] = {}
    for place in _outer_first(kinds):
        if kept.get(_around(place, kept)) != kinds[place]:
            kept[place] = kinds[place]
    return kept


def _pinned(kinds: dict[Path, str]) -> dict[Path, str]:
    """With the folders above each wall as mounts of their own: else they could be renamed, and the wall with them."""
    pins: dict[Path, str] = {}
    for place in kinds:
        around = _around(place, kinds)
        if kinds[around] == WRITE:
            pins.update((parent, WRITE) for parent in place.parents if around in parent.parents)
    kinds = {**kinds, **pins}
    return {place: kinds[place] for place in _outer_first(kinds)}


def _around(place: Path, kinds: Mapping[Path, str]) -> Path:
    """The innermost folder above a place that has a wall of its own."""
    return next((parent for parent in place.parents if parent in kinds), Path("/"))


def _outer_first(places: Iterable[Path]) -> list[Path]:
    return sorted(places, key=lambda place: (len(place.parts), place))


def _option(kind: str, place: Path, scratch: Path) -> list[str]:
    """What tells bubblewrap of one wall."""
    if kind in (READ, WRITE):
        return [kind, str(place), str(place)]
    if kind == OWN:
        return [WRITE, str(scratch / "tmp"), str(place)]
    if kind == HIDE:
        return ["--tmpfs", str(place)] if place.is_dir() else [READ, str(scratch / "empty"), str(place)]
    return [kind, str(place)]


def _in_memory(kind: str, place: Path) -> bool:
    return kind == DEV or (kind == HIDE and place.is_dir())


def _sealed(places: Iterable[Path], writable: Iterable[Path]) -> list[Path]:
    """The outermost of what is sealed, as far as there are mounts for it and for the folders above it."""
    kinds = _needed({**dict.fromkeys(writable, WRITE), **dict.fromkeys(places, READ)})
    outermost = [place for place, kind in kinds.items() if kind == READ]
    taken: set[Path] = set()
    for number, place in enumerate(outermost):
        taken |= {place, *(parent for parent in place.parents if _around(place, kinds) in parent.parents)}
        if len(taken) > MOUNTS:
            log.debug(f"{len(outermost) - number} of {len(outermost)} sealed paths are only compared: too many mounts")
            return outermost[:number]
    return outermost


def _secrets() -> list[Path]:
    """What belongs to the user alone, and what takes commands for the outside."""
    at_home = [place.replace("~", home, 1) for home in _homes() for place in (*SECRET_PLACES, *OURS)]
    configs = [place.replace("~", home, 1) for home in _homes() for place in CONFIGS]
    return _existing([*at_home, *key_places(), *filter(_holds_login, configs), *SOCKETS])


def _holds_login(path: str) -> bool:
    try:
        return bool(LOGIN.search(Path(path).read_bytes()))
    except OSError as error:
        return error.errno in machine.LACKS


def _homes() -> list[str]:
    """The home directory, and the one that the user database knows, where they differ."""
    homes = [os.path.expanduser("~")]
    with suppress(KeyError):  # a container may run as a user that has no entry
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return [home for home in dict.fromkeys(homes) if os.path.isabs(home)]


def _existing(places: Iterable[str | Path]) -> list[Path]:
    """Those that exist, where they really are: nothing can be mounted on a symbolic link."""
    return [Path(os.path.realpath(place)) for place in places if os.path.exists(place)]
