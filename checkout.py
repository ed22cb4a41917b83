"""A clean checkout of one commit: a temporary clone, with nothing in it that git does not track.

    folder = checkout.scratch(owner, "clean")       a temporary folder
    clean = checkout.Clean(git, commit, folder)     a new clone in the folder
    clean.reset(made)                               as it was after setup
    checkout.delete(folder)
    checkout.remove_scratch(owner)                  all of an owner's, after a run that was killed

It shares the repository's objects, so it costs no more than its files. Settings, filters, hooks, ignore rules and
replaced objects that are in the repository's `.git` alone are not in it.

What is not covered: objects of no commit, which a worker without a sandbox may have made, can be read by their names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from repo import GITLINK, Repo

TREE = "tree"  # name of the clone in its folder
REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")  # a check may compare with another branch


class Clean:
    """The files of a commit and nothing else."""

    def __init__(self, git: Repo, commit: str, folder: Path):
        """Check the commit out below the folder; of no commit, nothing. Raises GitError."""
        self.root, self.commit = folder / TREE, commit
        self.source, self.git, self.modules = git, Repo(self.root), list[Repo]()
        if commit:
            _clone(git, git.root, self.root)
            self.git.git("fetch", "--quiet", "--force", "--update-head-ok", "origin", *REFS)
            if (lfs := git.folder() / "lfs").is_dir():
                self.git.git("config", "lfs.storage", str(lfs))
            self.git.git("checkout", "--quiet", "--force", "--detach", commit)
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
                    _clone(self.git, source, target)
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


def _clone(git: Repo, source: Path, target: Path) -> None:
    # Not beside its settings: a template folder of the user's may bring hooks and ignore rules.
    git.git("clone", "--quiet", "--no-checkout", "--shared", "--template=", "--", str(source), str(target))


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
