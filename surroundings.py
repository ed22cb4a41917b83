"""What a command finds around it: programs that no worker can replace, and an environment without secrets.

bash = surroundings.find("bash", root)
env = surroundings.clean_env(os.environ)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import log

SURROUNDING = (
    "CLAUDECODE",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_CHILD_SESSION",
    "MAKEFLAGS",
    "MAKEOVERRIDES",
    "MFLAGS",
)


def find(name: str, outside: Path, path: str | None = None) -> str | None:
    """Where a program of the system is: like shutil.which, but never relative and never inside `outside`.

    What a worker can write must not be taken for git, bash or bwrap. path: default PATH.
    """
    found = shutil.which(name, path=_trusted(path, outside)[0])
    return os.path.abspath(found) if found else None


def trusted_first(path: str, outside: Path) -> str:
    """The same PATH with the folders inside `outside` at its end: they add programs, but replace none."""
    return os.pathsep.join(part for part in _trusted(path, outside) if part)


def _trusted(path: str | None, outside: Path) -> tuple[str, str]:
    """The folders of a PATH that are out of a worker's reach, and the others."""
    places = (path if path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep)
    root = outside.resolve()
    ours = [place for place in places if os.path.isabs(place) and not Path(place).resolve().is_relative_to(root)]
    return os.pathsep.join(ours), os.pathsep.join(place for place in places if place not in ours)


def clean_env(environ: Mapping[str, str], keep: Sequence[str] = (), apart: Path | None = None) -> dict[str, str]:
    """A copy of the environment for a child: without secrets, and without what a surrounding claude or make left.

    keep: names, or beginnings of names ending in `*`, that stay although they look like secrets. apart: a folder that
    the environment must not lead to.
    """

    def kept(name: str) -> bool:
        return any(name == k or (k.endswith("*") and name.startswith(k[:-1])) for k in keep)

    def told(name: str, value: str) -> bool:
        return log.is_secret_name(name) or name in SURROUNDING or log.holds_secret(os.fsencode(value))

    plain = {n: v for n, v in environ.items() if kept(n) or not told(n, v)}
    if apart is None:
        return plain
    path = {"PATH": _trusted(plain.get("PATH"), apart)[0]}
    return {**{n: v for n, v in plain.items() if str(apart) not in v and not n.startswith("GIT_")}, **path}
