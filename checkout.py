"""A clean checkout of one commit: a temporary repository, with nothing in it that git does not track.

    folder = checkout.scratch(owner, "clean")       a temporary folder
    clean = checkout.Clean(git, commit, folder)     a new repository in the folder
    clean.keep()                                    what `setup` did stays from now on
    clean.reset()                                   as it was then
    checkout.delete(folder)
    checkout.remove_scratch(owner)                  all of an owner's, after a run that was killed

It shares the repository's objects, so it costs no more than its files. Settings, filters, hooks, ignore rules and
replaced objects that are in the repository's `.git` alone are not in it. Commands in it have a `.git` of their own,
which may be written; what is done to the checkout from here is done by another one that they cannot reach.

What is not covered: objects of no commit, which a worker without a sandbox may have made, can be read by their names.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import machine
from repo import GITLINK, Repo

TREE, GIT, SET_UP = "tree", "git", "git after setup"  # names in the folder: the checkout, our .git, the commands' own
LONGEST = 4096  # bytes of a path, with its end (limits.h: PATH_MAX)
GITS_OWN = re.compile(r"\.git")
REFS = ("refs/heads", "refs/tags")  # a check may compare with another branch


class Clean:
    """The files of a commit and nothing else."""

    def __init__(self, git: Repo, commit: str, folder: Path):
        """Check the commit out below the folder; of no commit, nothing. Raises GitError."""
        self.root, self.commit, self.folder, self.source = folder / TREE, commit, folder, git
        self.root.mkdir()
        self.modules: list[Repo] = []
        self.made: dict[str, object] = {}
        self.changed = ""  # a commit that holds what setup changed of the tracked files
        if commit:
            self.git = _repository(git, self.root, folder / GIT)
            self._check_out()
        self.keep()

    def keep(self) -> None:
        """Let everything that is here now stay when it is reset. Raises GitError."""
        self.made = self._untracked()
        if self.commit:
            who = ("-c", "user.name=CCO", "-c", "user.email=cco@localhost")
            self.changed = self.git.git(*who, "stash", "create").decode().strip()
            delete(self.folder / SET_UP)
            shutil.copytree(self.root / ".git", self.folder / SET_UP, symlinks=True)

    def reset(self, everything: bool = False) -> bool:
        """Undo what a check changed; whether that is all there was to undo. Raises GitError.

        everything: also what was kept. Else, what a check changed of that cannot be made good here.
        """
        self.root.mkdir(exist_ok=True)
        _open(self.root)
        if self.commit:
            self._check_out()
            source = self.folder / (GIT if everything or not (self.folder / SET_UP).exists() else SET_UP)
            delete(self.root / ".git")
            shutil.copytree(source, self.root / ".git", symlinks=True)
            if self.changed and not everything:
                self.git.git("restore", f"--source={self.changed}", "--worktree", "--", ".")
        made = {} if everything else self.made
        now = self._untracked()
        for name in sorted(now.keys() - made.keys()):
            delete(self.root / name)
        return all(name in now and now[name] == version for name, version in made.items())

    def _check_out(self) -> None:
        self.git.git("checkout", "--quiet", "--force", "--detach", self.commit)
        if not os.path.lexists(self.root / ".git"):
            shutil.copytree(self.folder / GIT, self.root / ".git", symlinks=True)
        self.modules = []
        for mode, sha, name in self.git.tracked():
            source, target = self.source.root / name, self.root / name
            if mode == GITLINK and (source / ".git").exists():
                if not target.is_dir() or target.is_symlink():
                    delete(target)
                target.mkdir(parents=True, exist_ok=True)
                own = self.folder / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
                module = (
                    Repo(target, git_folder=own, marker=self.git.marker)
                    if own.exists()
                    else _repository(Repo(source, marker=self.git.marker), target, own)
                )
                module.git("checkout", "--quiet", "--force", "--detach", sha)
                delete(target / ".git")
                shutil.copytree(own, target / ".git", symlinks=True)
                self.modules.append(module)

    def _untracked(self) -> dict[str, object]:
        """What is here and not in the commit, ignored or not, each with what changes when it does."""
        places = [self.git, *self.modules] if self.commit else []
        tracked = {Path(place.root, name) for place in places for name in place.names("ls-files", "-z")}
        tracked |= {folder for path in tracked for folder in path.parents}
        entries = (entry for entry in walk(self.root) if Path(entry.path) not in tracked)
        return {os.path.relpath(entry.path, self.root): _version(entry) for entry in entries}


def _repository(source: Repo, root: Path, folder: Path) -> Repo:
    """An empty work tree whose repository, in `folder`, has the source's objects, branches and tags."""
    form = source.git("rev-parse", "--show-object-format").decode().strip()
    source.git("init", "--quiet", "--template=", "--bare", f"--object-format={form}", "--", str(folder))
    (folder / "objects" / "info").mkdir(parents=True, exist_ok=True)
    (folder / "objects" / "info" / "alternates").write_text(f"{source.folder() / 'objects'}\n")
    if (shallow := source.folder() / "shallow").exists():
        shutil.copy(shallow, folder / "shallow")
    made = Repo(root, git_folder=folder, marker=source.marker)
    made.git("config", "core.bare", "false")
    if (lfs := source.folder() / "lfs").is_dir():
        made.git("config", "lfs.storage", str(lfs))
    (folder / "packed-refs").write_bytes(source.git("for-each-ref", "--format=%(objectname) %(refname)", *REFS))
    return made


def walk(folder: Path | str, without: re.Pattern[str] = GITS_OWN) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; of a path that is too long for the system, only its beginning.

    without: names of files and folders that are passed over. Raises OSError for what the machine lacks.
    """
    todo = [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                inside = [entry for entry in entries if not without.fullmatch(entry.name)]
            inside = [entry for entry in inside if len(os.fsencode(entry.path)) < LONGEST]
        except OSError as error:
            if error.errno in machine.LACKS:
                raise  # else all that is in it would be taken for deleted
            continue
        todo += [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
        yield from inside


def scratch(owner: str, kind: str) -> Path:
    """A new temporary folder of an owner, such as a repository."""
    return Path(tempfile.mkdtemp(prefix=f"{_prefix(owner)}{kind}-"))


def remove_scratch(owner: str) -> None:
    """Remove the owner's temporary folders. Only when nothing of it runs."""
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix(owner)}*"):
        if path.lstat().st_uid == os.getuid():
            delete(path)


def _prefix(owner: str) -> str:
    return f"cco-{hashlib.sha256(os.fsencode(owner)).hexdigest()[:12]}-"


def _version(entry: os.DirEntry[str]) -> object:
    if entry.is_dir(follow_symlinks=False):
        return None
    s = entry.stat(follow_symlinks=False)
    return s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def delete(path: Path) -> None:
    """Remove a file or a whole folder, also where a command took away the rights to do so, however deep it is."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    _open(path)
    try:
        shutil.rmtree(path)
    except (RecursionError, OSError):  # Python's own gives up where a path is longer than the system allows
        subprocess.run(["rm", "-rf", "--", str(path)], check=False)


def _open(folder: Path) -> None:
    """Give back the rights to every folder in it that a command took away."""
    _give_rights(str(folder))
    for entry in walk(folder):
        if entry.is_dir(follow_symlinks=False):
            _give_rights(entry.path)


def _give_rights(folder: str) -> None:
    if os.stat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(folder, stat.S_IRWXU)
