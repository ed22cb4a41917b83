"""The referee's seal: what no worker and no check may change, compared by content and put back.

    seal = Seal(repo, ("tests/acceptance/**",), (kit,))
    name = seal.take()                      what it is now, kept as git objects
    changes = seal.changes()                what became of it since
    seal.put_back(changes, folder)          as it was; what it had become is kept in the folder

Links, renamed parents, new files, modes, files in submodules and files that git ignores count like any other. What
Python and pytest leave beside the tests that they run is removed without a word.

What is not covered: owner, times and empty folders; what a link points to outside of the repository.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import checkout
import machine
import repo

STARS = re.compile(r"(?<=[^/])\*\*+|\*\*+(?=[^/])")  # ** as part of a name, which Path.glob refuses, is a *
ALL = re.compile(r"(\./)*\*\*/?")  # means folders to Path.glob, and with them the root, whose own files are missing
ENTRIES = "entries"  # name of the list in the tree that git keeps
CACHES = ("__pycache__", ".pytest_cache")  # made by every run of the tests; nothing in them is anybody's work
NOT_WORK = re.compile(r"\.git|\.cco")  # what no glob means: git's own, and ours
NOT_KIT = re.compile(r"\..*|node_modules|missions|tests|extras|deploy|.*\.(log|out)")  # what the kit does not run
SETTLED = 100_000_000  # nanoseconds after which a change of a file must show in its times
ARGUMENTS = 60_000  # bytes of paths in one git command
FILE, PROGRAM, LINK, OTHER = "100644", "100755", "120000", "other"  # modes as git writes them


@dataclass(frozen=True)
class Change:
    """What became of one sealed path."""

    path: Path
    """Absolute."""
    what: str
    """changed, deleted, new, or mode."""
    kept: str = ""
    """Where the changed version lies now; "" when there is none."""

    @property
    def is_cache(self) -> bool:
        """Whether it is nothing that needs to be named."""
        return not {*self.path.parts}.isdisjoint(CACHES)


class Seal:
    """The sealed files of one repository."""

    def __init__(self, git: repo.Repo, protect: Sequence[str], kit: Path, apart: Iterable[Path] = ()):
        """protect: globs below the root. kit: the folder of the kit. apart: files that are watched by others."""
        self.git, self.root, self.protect, self.kit = git, git.root, protect, kit
        self.apart = {*apart}
        self.entries: dict[str, tuple[str, str]] = {}  # path: mode, and name of the blob or where the link leads
        self._now: dict[str, tuple[str, str]] = {}  # the same, when `changes` looked
        self._seen: dict[str, tuple[object, str]] = {}  # path: what identifies a version, and its blob

    def take(self) -> str:
        """Seal what is there now; the name by which `load` finds it again. Raises repo.GitError."""
        self.entries = self._look(keep=True)
        blobs = {blob: blob for mode, blob in self.entries.values() if mode in (FILE, PROGRAM) and blob}
        blobs[ENTRIES] = self.git.keep(json.dumps(self.entries).encode())
        tree = "".join(f"{FILE} blob {blob}\t{name}\n" for name, blob in blobs.items())  # so that no gc removes them
        return self.git.git("mktree", stdin=tree.encode()).decode().strip()

    def load(self, name: str) -> bool:
        """Go on with what `take` sealed in an earlier run; whether it is still known."""
        text = self.git.git("cat-file", "blob", f"{name}:{ENTRIES}", may_fail=True) if name else b""
        self.entries = {path: (mode, blob) for path, (mode, blob) in json.loads(text or b"{}").items()}
        return bool(text)

    def changes(self) -> list[Change]:
        """How it differs from what was sealed. Raises repo.GitError."""
        self._now = now = self._look()
        return [
            Change(Path(path), _difference(self.entries.get(path), now.get(path)))
            for path in sorted({*self.entries, *now})
            if self.entries.get(path) != now.get(path)
        ]

    def put_back(self, changes: Sequence[Change], kept: Path) -> list[Change]:
        """Make it what was sealed; the changed versions are moved into the folder, see `Change.kept`.

        What lies outside of the repository is left as it is: others may use it, and have changed it for good reasons.
        Raises repo.GitError, OSError.
        """
        ours = [change for change in changes if change.path.is_relative_to(self.root)]
        away = {change.path: self._take_away(change.path, kept) for change in ours}
        for change in ours:  # not before all that is wrong has gone: one may stand in the way of another
            self._restore(change.path)
        outside = {str(change.path) for change in changes if change not in ours}  # is named once
        kept_as_it_is = {path: self._now[path] for path in outside & self._now.keys()}
        self.entries = {path: entry for path, entry in self.entries.items() if path not in outside} | kept_as_it_is
        return [replace(change, kept="" if change.is_cache else away.get(change.path, "")) for change in changes]

    # ------------------------------------------------------------------------------------------------
    # What is there
    # ------------------------------------------------------------------------------------------------

    def _look(self, keep: bool = False) -> dict[str, tuple[str, str]]:
        """Mode and blob of every sealed path. keep: let git keep the contents."""
        modes = {str(path): mode for path in self._paths(everything=keep) if (mode := _mode(path))}
        self._hash([path for path, mode in modes.items() if mode in (FILE, PROGRAM)], keep)
        return {path: (mode, self._content(path, mode)) for path, mode in modes.items()}

    def _content(self, path: str, mode: str) -> str:
        if mode == LINK:
            return os.readlink(path)
        return self._seen[path][1] if mode != OTHER else ""

    def _paths(self, everything: bool) -> set[Path]:
        """Every sealed path that is no folder, and what links among them lead to in the repository.

        everything: follow all links. Else only those that are as they were sealed: whoever made another link does not
        thereby make the files that it leads to his own.
        """
        todo = [] if everything else [Path(path) for path in self.entries]
        for pattern in (STARS.sub("*", pattern) for pattern in self.protect):
            todo += [*self.root.glob(pattern), *(self.root.glob("*") if ALL.fullmatch(pattern) else ())]
        found: set[Path] = set()
        while todo:
            new = {file for path in todo if self._is_work(path) for file in self._files(path)} - found
            found |= new
            links = [file for file in new if os.path.islink(file)]
            todo = [_next(link) for link in links if everything or self._is_sealed(link)]
            todo += [Path(os.path.realpath(link)) for link in links if everything]
        return (found | {*_walk(self.kit, NOT_KIT)}) - self.apart

    def _is_sealed(self, link: Path) -> bool:
        return self.entries.get(str(link)) == (LINK, os.readlink(link))

    def _is_work(self, path: Path) -> bool:
        inside = self.root in path.parents
        return inside and not any(NOT_WORK.fullmatch(part) for part in path.relative_to(self.root).parts)

    def _files(self, path: Path) -> Iterator[Path]:
        """What a path stands for: itself, all files of a folder, or the link that stands in its way."""
        above = [path, *path.parents[: len(path.relative_to(self.root).parts) - 1]]
        link = next((place for place in reversed(above) if os.path.islink(place)), None)
        yield from [link] if link else _walk(path, NOT_WORK)

    def _hash(self, paths: Sequence[str], keep: bool) -> None:
        """Learn the blobs of files whose times have changed since they were looked at."""
        fresh = {path: version for path in paths if (version := _version(path)) != self._seen.get(path, ((), ""))[0]}
        todo = [*(paths if keep else fresh)]
        while todo:
            size = count = 0
            while count < len(todo) and size < ARGUMENTS:
                size += len(os.fsencode(todo[count])) + 1
                count += 1
            part, todo = todo[:count], todo[count:]
            readable = [path for path in part if os.access(path, os.R_OK)]
            self._seen |= dict.fromkeys(part, ((), ""))  # what cannot be read
            if readable:
                self._seen |= self._hashed(readable, keep)

    def _hashed(self, paths: Sequence[str], keep: bool) -> dict[str, tuple[object, str]]:
        command = ["hash-object", *["-w"] * keep, "--no-filters", "--", *paths]
        try:
            blobs = self.git.git(*command).decode().split()
        except repo.GitError:
            left = [path for path in paths if os.access(path, os.R_OK)]
            if left == paths:
                raise
            return self._hashed(left, keep) if left else {}  # a check that still runs removed some
        return {path: (_version(path), blob) for path, blob in zip(paths, blobs, strict=True)}

    # ------------------------------------------------------------------------------------------------
    # As it was
    # ------------------------------------------------------------------------------------------------

    def _take_away(self, path: Path, kept: Path) -> str:
        """Move away what is at the path, and what is no folder where its parents should be; where it is now."""
        away = ""
        inside = [place for place in reversed(path.parents) if self.root in place.parents]
        for place in (*inside, path):
            if place.is_symlink() or (place.exists() and (place == path or not place.is_dir())):
                away = _move_away(place, kept, place.relative_to(self.root))
            elif place.is_dir() and not os.access(place, os.R_OK | os.W_OK | os.X_OK):
                place.chmod(0o755)
        return away

    def _restore(self, path: Path) -> None:
        mode, content = self.entries.get(str(path), ("", ""))
        if not content or mode == OTHER:
            self.entries.pop(str(path), None)  # what cannot be made again is named once, not after every check
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == LINK:
            path.symlink_to(content)
        else:
            path.write_bytes(self.git.git("cat-file", "blob", content))
            path.chmod(0o755 if mode == PROGRAM else 0o644)


def _difference(before: tuple[str, str] | None, now: tuple[str, str] | None) -> str:
    if before is None or now is None:
        return "new" if before is None else "deleted"
    return "mode" if before[1] == now[1] and {before[0], now[0]} == {FILE, PROGRAM} else "changed"


def _walk(path: Path, without: re.Pattern[str]) -> Iterator[Path]:
    """The path itself, or all that is in a folder and is no folder."""
    if os.path.islink(path) or not os.path.isdir(path):
        yield path
        return
    yield from (Path(entry.path) for entry in checkout.walk(path, without) if not entry.is_dir(follow_symlinks=False))


def _mode(path: Path) -> str:
    """As git writes it, "" for nothing and for a folder."""
    try:
        status = path.lstat()
    except OSError as error:
        if error.errno in machine.LACKS:
            raise  # else it would be taken for deleted
        return ""
    if stat.S_ISLNK(status.st_mode):
        return LINK
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISREG(status.st_mode):
        return OTHER
    return PROGRAM if status.st_mode & stat.S_IXUSR else FILE


def _version(path: str) -> object:
    """What changes with a file's content; nobody but the kernel sets the time of its last change."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    settled = time.time_ns() - status.st_ctime_ns > SETTLED
    return (status.st_mode, status.st_size, status.st_ctime_ns, status.st_ino) if settled else object()


def _next(link: Path) -> Path:
    """Where a link leads at once; that may be, or lie below, a link again."""
    return Path(os.path.normpath(link.parent / os.readlink(link)))


def _move_away(path: Path, folder: Path, name: Path) -> str:
    """Move what is at `path` to a place of its own in the folder; where it is now. A cache is removed instead."""
    if not {*name.parts}.isdisjoint(CACHES):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return ""
    for part in name.parent.parts:
        folder = _free(
            folder, part, lambda place: os.path.lexists(place) and (place.is_symlink() or not place.is_dir())
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = _free(folder, name.name, os.path.lexists)
    shutil.move(path, place)
    return str(place)


def _free(folder: Path, name: str, is_taken: Callable[[Path], bool]) -> Path:
    """The first of NAME, NAME.2, NAME.3 and so on that is not taken."""
    places = (folder / (f"{name}.{number}" if number > 1 else name) for number in itertools.count(1))
    return next(place for place in places if not is_taken(place))
