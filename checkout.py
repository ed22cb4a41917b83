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

    def untracked(self) -> set[str]:
        """What is here and not in the commit, ignored or not; of a folder without anything tracked, its name."""
        if not self.commit:
            return {*os.listdir(self.root)}
        return {
            os.path.relpath(place.root / name, self.root)
            for place in (self.git, *self.modules)
            for name in place.names("ls-files", "--others", "--directory", "-z")
        }

    def reset(self, made: set[str]) -> None:
        """Undo what a check changed. made: what stays, see `untracked`. Raises GitError."""
        if self.commit:  # no `reset`: it would move a branch that a check has switched to
            self.git.git("checkout", "--quiet", "--force", "--detach", self.commit)
            self._fill_modules()
        for name in self.untracked() - made:
            delete(self.root / name)


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


def delete(path: Path) -> None:
    """Remove a file or a whole folder, also where a command took away the rights to do so."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    path.chmod(stat.S_IRWXU)
    for folder, folders, _ in os.walk(path):
        for name in (inner for inner in folders if not os.path.islink(os.path.join(folder, inner))):
            os.chmod(os.path.join(folder, name), stat.S_IRWXU)
    shutil.rmtree(path)
