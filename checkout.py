"""A clean checkout of one commit, in a temporary work tree beside the repository's own.

    clean = checkout.Clean(git, commit, folder)     a new work tree in the folder
    clean.reset(made)                               as it was after setup
    checkout.remove(git, folder)                    also what a killed run left
    folder = checkout.scratch(owner, "clean")       a temporary folder
    checkout.remove_scratch(owner)                  all of an owner's, after a run that was killed

What is not covered: objects that git-lfs or a partial clone would have to fetch are fetched as configured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from repo import GITLINK, Repo

TREE = "tree"  # name of the work tree in its folder


class Clean:
    """The files of a commit and nothing else."""

    def __init__(self, git: Repo, commit: str, folder: Path):
        """Check the commit out below the folder; of no commit, nothing. Raises GitError."""
        self.root, self.commit = folder / TREE, commit
        self.source, self.git, self.modules = git, Repo(self.root), list[Repo]()
        if commit:
            git.git("worktree", "add", "--quiet", "--force", "--detach", str(self.root), commit)
            self._fill_modules()
        else:
            self.root.mkdir()

    def _fill_modules(self) -> None:
        """Every submodule that the repository has checked out, at its commit."""
        self.modules = []
        for mode, sha, name in self.git.tracked():
            source, target = self.source.root / name, self.root / name
            if mode == GITLINK and (source / ".git").exists():
                if not (target / ".git").exists():
                    delete(target)
                    self.git.git("clone", "--quiet", "--no-checkout", "--shared", "--", str(source), str(target))
                self.modules.append(Repo(target))
                self.modules[-1].git("checkout", "--quiet", "--force", "--detach", sha)

    def untracked(self) -> dict[str, object]:
        """What is here and not in the commit, ignored or not, each with what changes when it does."""
        tracked = {Path(place.root, name) for place in self._places() for name in place.names("ls-files", "-z")}
        tracked |= {folder for path in tracked for folder in path.parents}
        found: dict[str, object] = {}
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name != ".git"]
            paths = {Path(folder, name) for name in (*folders, *files) if name != ".git"} - tracked
            found |= {os.path.relpath(path, self.root): _version(path) for path in paths}
        return found

    def reset(self, made: dict[str, object]) -> bool:
        """Undo what a check changed; whether that is all there was to undo. Raises GitError.

        made: what may stay, see `untracked`; of that, what a check changed or removed cannot be made good here.
        """
        _open(self.root)
        if self.commit:  # no `reset`: it would move a branch that a check has switched to
            self.git.git("checkout", "--quiet", "--force", "--detach", self.commit)
            self._fill_modules()
        for name in sorted(self.untracked().keys() - made.keys()):
            delete(self.root / name)
        return self.untracked() == made

    def _places(self) -> list[Repo]:
        return [self.git, *self.modules] if self.commit else []


def remove(git: Repo, folder: Path) -> None:
    """Remove the work tree and its folder, whatever is left of them; no work tree of anybody else."""
    delete(folder)
    git.git("worktree", "remove", "--force", "--force", str(folder / TREE), may_fail=True)


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


def _version(path: Path) -> object:
    s = path.lstat()
    return s.st_mode if stat.S_ISDIR(s.st_mode) else (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def delete(path: Path) -> None:
    """Remove a file or a whole folder, also where a command took away the rights to do so."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    _open(path)
    shutil.rmtree(path)


def _open(folder: Path) -> None:
    """Give back the rights to every folder in it that a command took away."""
    _give_rights(folder)
    for place, folders, _ in os.walk(folder):
        for name in folders:
            _give_rights(Path(place, name))


def _give_rights(folder: Path) -> None:
    if not folder.is_symlink() and folder.stat().st_mode & stat.S_IRWXU != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)
