"""Git: the branch, one commit a session, protected files, and the clean checkout.

    repository = Repo(root, excluded=[kit, mission])
    repository.commit(base, branch, title, report, trailers, max_size)

Every git is told where its files are, and runs with the repository's hooks, signing, pagers and monitors switched off,
because a worker may have written them. Limitations: filter drivers (git-lfs) run as configured; what is in a submodule
or not tracked by git is not protected, only named; fifos, sockets and empty folders do not count as changes; without
a sandbox a protected folder that lost its rights ends the run with 4; secrets in the names of files are not noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import log
import proc
import state

TIMEOUT = proc.Limits(600.0)  # seconds for one git; the first look at a large tree is slow
TITLE, BODY = 72, 4000  # characters of a commit's title, and of the report in it
MISSION, ITERATION = "CCO-Mission", "CCO-Iteration"  # trailers by which a commit is found again
CLONED = r"^remote\..*\.(url|fetch|promisor|partialclonefilter)$"  # settings that a clean checkout has
TOOLS = {".cco", ".claude"}  # folders that are never committed, wherever they are
CACHES = {"__pycache__", ".pytest_cache"}  # written by every run of the tests
COMPILED = re.compile(r"(^|/)(__pycache__|\.pytest_cache)(/|$)|\.py[co]$")
# Against what a worker may have planted, and what would change the output that is read here.
SETTINGS = """
    core.fsmonitor=false commit.gpgSign=false gc.auto=0 maintenance.auto=false submodule.recurse=false
    color.ui=false color.diff=false grep.patternType=basic log.showSignature=false core.safecrlf=false
    i18n.commitEncoding=UTF-8 i18n.logOutputEncoding=UTF-8 trailer.separators=: safe.directory=*
"""
NO_HOOKS = "core.hooksPath=/dev/null"
STRICT = f"""
    core.checkStat=default core.ignoreCase={str(not proc.LINUX).lower()} core.ignoreStat=false core.symlinks=true
    core.sparseCheckout=false core.splitIndex=false core.trustctime=true core.untrackedCache=false
"""  # by which no change of a protected file can be hidden
IDENTITY = ("-c", "user.name=CCO", "-c", "user.email=cco@localhost")  # where git knows no user
UNFINISHED = {"MERGE_HEAD": "a merge", "rebase-merge": "a rebase", "rebase-apply": "a rebase", "sequencer": "a series"}
UNFINISHED |= {"CHERRY_PICK_HEAD": "a cherry-pick", "REVERT_HEAD": "a revert"}
KIT_FOLDERS = ("extras", "prompts", "schema")  # of which everything belongs to the kit
KIT_FILES = rf"({'|'.join(KIT_FOLDERS)})/.*|[^./][^/]*\.(py|pyc|so)|(GNU)?[Mm]akefile|requirements\.txt"
IN_KIT = re.compile(rf"{KIT_FILES}|[^/]+/__init__\.[^/]*", re.S)  # a package would hide an installed one
GIVE_RIGHTS = ("-type", "d", "!", "-perm", "-700", "-exec", "chmod", "u+rwx", "{}", ";")  # to a folder and all in it
GITLINK = "160000"  # mode of a submodule
UNSTAGED = {"??", ".M", ".D", ".T"}  # letters of `git status` of what the index has as HEAD does
TEST_FILE = re.compile(r"(^|/)(tests?|spec|__tests__)/|(^|/)test_|[._-](test|spec)s?\.", re.I)


class GitError(proc.Stop):
    """Git refused, or the repository is not in the state that is needed. The message says what to do."""


@dataclass
class Commit:
    """What became of a session's changes."""

    sha: str  # the commit that holds them, or the one before when nothing changed
    changed: list[str] = field(default_factory=list)  # paths in it
    omitted: dict[str, str] = field(default_factory=dict)  # path -> why it stayed uncommitted


class Repo:
    """One work tree."""

    def __init__(self, root: Path, excluded: Sequence[Path] = (), marker: str = ""):
        """excluded: what is never committed. marker: CCO_RUN of every git."""
        self.root, self.marker = root, marker
        inside = (path.relative_to(root) for path in excluded if path != root and path.is_relative_to(root))
        self.excluded = sorted({".cco", *(path.as_posix() for path in inside)})

    @cached_property
    def git_dir(self) -> Path:
        """Git's folder of this work tree. Raises GitError."""
        return Path(self.git("rev-parse", "--absolute-git-dir", env=self.plain))

    def folder(self) -> Path:
        """Return where git keeps objects, branches and settings: `.git`, or that of the main work tree."""
        link = self.git_dir / "commondir"  # asked several times an iteration, so git is not
        return (self.git_dir / link.read_text().strip()).resolve() if link.exists() else self.git_dir

    def at(self, root: Path) -> Repo:
        """Return this repository with another work tree."""
        there = Repo(root, marker=self.marker)
        there.git_dir = self.git_dir
        return there

    def head(self) -> str:
        """Return the commit that is checked out, "" in an empty repository."""
        return self._resolve("HEAD")[1]

    def branch(self) -> str:
        """Return the branch that is checked out, "" when HEAD is detached."""
        return self._resolve("HEAD")[0].removeprefix("HEAD").removeprefix("refs/heads/")

    def head_of(self, branch: str) -> str:
        """Return the commit that a branch points to, "" if there is none."""
        return self._resolve(f"refs/heads/{branch}")[1]

    def _resolve(self, name: str) -> tuple[str, str]:
        """Return the reference that HEAD or another one leads to, and its commit, "" if there is none."""
        path, text = (self.git_dir if name == "HEAD" else self.folder()) / name, ""
        with suppress(OSError):  # git is asked only what no plain file says: what is packed, and what leads elsewhere
            if path.is_file() and not path.is_symlink() and not (self.folder() / "reftable").exists():
                text = os.fsdecode(path.read_bytes()).strip()
        if name == "HEAD" and text.startswith("ref: refs/") and text.isprintable():
            return self._resolve(text.removeprefix("ref: "))
        if re.fullmatch("[0-9a-f]{40,64}", text):
            return name, text
        target = self.git("symbolic-ref", "--quiet", name, may_fail=True)
        return target or name, self.git("rev-parse", "--verify", "--quiet", name, may_fail=True)

    def unfinished(self) -> list[str]:
        """Return the names by which git remembers what was begun and not ended: a merge, a rebase and the like."""
        return [what for name, what in UNFINISHED.items() if (self.git_dir / name).exists()]

    def status(self) -> dict[str, str]:
        """Return path and letters of `git status` of what differs from HEAD, excluded paths and caches left out."""
        return {path: letters for path, (letters, _) in self._look().items() if not self._is_excluded(path)}

    def _look(self) -> dict[str, tuple[str, str]]:
        """Return path, two letters, and what there is of a submodule, of all that differs from HEAD."""
        changes: dict[str, tuple[str, str]] = {}
        look = ("--porcelain=v2", "--no-renames", "--untracked-files=all", "--ignore-submodules=none", "-z")
        for line in self.names("status", *look):
            if line.startswith("? "):
                changes.setdefault(line[2:], ("??", ""))
            else:  # 1 XY sub mH mI mW hH hI path; u XY sub m1 m2 m3 mW h1 h2 h3 path
                _, letters, module, *_, path = line.split(" ", 8 if line[0] == "1" else 10)
                changes[path] = (letters, module)
        return changes

    def _is_excluded(self, path: str) -> bool:
        return bool({*path.split("/")} & TOOLS or COMPILED.search(path)) or self._is_own(path)

    def _is_own(self, path: str) -> bool:
        return any(f"{path}/".startswith(f"{name}/") for name in self.excluded)

    def submodules(self) -> list[Path]:
        """Return the `.git` of each submodule that is checked out, nested ones too. Who writes it decides what runs."""
        gits = [self.root / name / ".git" for name, (mode, *_) in self.tracked().items() if mode == GITLINK]
        gits = [git for git in gits if git.exists()]
        return gits + [inner for git in gits for inner in Repo(git.parent).submodules()]

    def tracked(self, *pathspecs: str, env: dict[str, str] | None = None) -> dict[str, list[str]]:
        """Return path, and mode, object and stage, of what is in the index."""
        entries = (e.partition("\t") for e in self.names("ls-files", "--stage", "-z", "--", *pathspecs, env=env))
        return {name: facts.split() for facts, _, name in entries}

    def files(self, commit: str) -> dict[str, str]:
        """Return path and blob of every file in a commit but links and excluded paths; of "" nothing."""
        lines = self.names("ls-tree", "-r", "-z", "--full-tree", commit) if commit else []
        entries = (line.partition("\t") for line in lines if line.startswith("100"))
        return {name: facts.split()[2] for facts, _, name in entries if not self._is_excluded(name)}

    def read(self, blob: str) -> str | None:
        """Return the text of a blob, None when it is no text."""
        content = self.git("cat-file", "blob", blob)
        return None if "\0" in content else os.fsencode(content).decode("utf-8", "replace")

    def diff(self, base: str, commit: str) -> str:
        """Return what changed between two commits, excluded paths left out; "" stands for no commit yet."""
        return self.git("diff", "--no-ext-diff", "--no-textconv", *self._trees(base, commit), "--", *self._scope())

    def statistics(self, base: str, commit: str) -> dict[str, int]:
        """Return files modified, lines of code added and tests created between two commits."""
        look = ("--no-ext-diff", "-M", "--numstat", "--summary", *self._trees(base, commit))
        lines = self.git("diff", *look).splitlines()
        rows = [line.split("\t") for line in lines if line[0] != " "]  # "-" counts the lines of what is no text
        new = [line.split(" ", 4)[4].strip('"') for line in lines if line.startswith(" create mode ")]
        added, tests = sum(int(row[0]) for row in rows if row[0] != "-"), sum(map(bool, map(TEST_FILE.search, new)))
        return {"files_modified": len(rows), "lines_of_code_added": added, "tests_created": tests}

    def _trees(self, *commits: str) -> list[str]:
        return [commit or self.git("hash-object", "-t", "tree", "/dev/null") for commit in commits]

    def iterations(self, mission: str) -> list[tuple[int, str]]:
        """Return number and commit of the mission's iterations among the commits of HEAD, newest first."""
        fields = ("%H", *(f"%(trailers:key={key},valueonly,separator=%x2C)" for key in (MISSION, ITERATION)))
        ours = re.compile(rf"([0-9a-f]+)\x1f{re.escape(mission)}\x1f([0-9]{{1,9}})")  # anybody may write a trailer
        look = ("-z", f"--grep=^{MISSION}: {mission}$", f"--format={'%x1f'.join(fields)}", "HEAD", "--")
        rows = self.names("log", *look) if self.head() else []
        return [(int(match[2]), match[1]) for row in rows if (match := ours.fullmatch(row))]

    def commit_after(self, base: str, mission: str, iteration: int) -> Commit | None:
        """Return the commit of an iteration where it is HEAD and follows `base`: it was made before a crash."""
        head, parent = self.head(), self.git("rev-parse", "--verify", "--quiet", "HEAD^", may_fail=True)
        if parent != base or self.iterations(mission)[:1] != [(iteration, head)]:
            return None
        return Commit(head, self.names("diff", "--name-only", "--no-renames", "-z", *self._trees(base, head)))

    def switch(self, branch: str) -> None:
        """Check out a branch, made from what is checked out if it does not exist yet. Raises GitError."""
        if self.branch() == branch:
            return
        is_new = not self.head_of(branch)
        self.require_name(branch)
        self.git("checkout", "--quiet", *["-b"] * is_new, branch, "--")

    def require_name(self, branch: str) -> None:
        """Raise GitError where a branch of this name cannot be made since another one's name is part of it."""
        below = self.git("for-each-ref", "--count=1", "--format=%(refname:lstrip=2)", f"refs/heads/{branch}/")
        for other in [*map(str, [*PurePosixPath(branch).parents][:-1]), below]:
            if other and self.head_of(other):
                remedy = f"git branch -m {other} another-name, or set repository.branch"
                raise GitError(proc.USAGE, f"{branch} cannot be made while there is a branch {other}: {remedy}")

    def commit(
        self,
        base: str,
        branch: str,
        title: str,
        body: str,
        trailers: Mapping[str, str],
        max_size: int,
        protected: Iterable[str] = (),
    ) -> Commit:
        """Put everything that changed since `base`, but protected files, into one commit on the branch.

        max_size: bytes of the largest file that is committed. Raises GitError.
        """
        self.remove_placeholders()
        self._return_to(base, branch)
        changes = self._look()
        if {letters for letters, _ in changes.values()} - UNSTAGED:  # what the worker staged does not count
            self.git("reset", "--quiet", "--mixed")
            changes = self._look()
        for path in protected:  # restored by now: where one still differs, a filter of git's would change it
            changes.pop(path, None)
        reasons = {path: self._objection(path, *facts, max_size) for path, facts in changes.items()}
        omitted = {path.rstrip("/"): reason for path, reason in reasons.items() if reason}
        if not (changed := sorted(path for path, reason in reasons.items() if reason == "")):
            return Commit(base, [], omitted)
        links = {path for path in changed if (self.root / path).is_symlink()}  # to add one removes what is below it
        paths = "".join(f"{p}\0" for p in changed if not links.intersection(map(str, PurePosixPath(p).parents)))
        self.git("update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=paths)
        self._write_commit(_message(title, body, trailers))
        return Commit(self.head(), changed, omitted)

    def _return_to(self, base: str, branch: str) -> None:
        """Point HEAD to the accepted commit on our branch; the work tree stays as the worker left it."""
        head, here = self.head(), self.branch()
        if head != base:
            if base and here != branch and (not head or self.git("merge-base", base, head, may_fail=True) != base):
                reason = f"was moved to a commit without the accepted one: git checkout {branch}"
                raise GitError(proc.CANNOT, f"{self.root} {reason}")
            text = f"{head[:12]} was committed by the worker, or by you; its changes go into this session's commit"
            log.warn(text if head else f"{branch} was removed by the worker, or by you; it is made again")
        for name in UNFINISHED:  # else our commit would get their parents or their author
            delete(self.git_dir / name)
        if here != branch:
            self.git("symbolic-ref", "HEAD", f"refs/heads/{branch}")
        if self.head() != base or self.branch() != branch:  # which the worker may have made a link to another branch
            name = f"refs/heads/{branch}"
            self.git("update-ref", "--no-deref", *([name, base] if base else ["-d", name]))

    def _objection(self, name: str, letters: str, module: str, max_size: int) -> str | None:
        """Return why a path is not committed, "" when it is; None for what need not be named."""
        path = self.root / name
        if self._is_own(name) or (COMPILED.search(name) and letters[1] != "D"):
            return None
        if {*name.split("/")} & TOOLS:
            return "a tool's own settings"
        if name.endswith("/") or (module.startswith("S.") and letters == ".M"):  # it stands at its commit
            return "a repository of its own: what is inside it is not committed"
        if path.is_symlink() or path.is_dir() or not path.exists():
            return ""
        if not path.is_file() or not os.access(path, os.R_OK):
            return "it cannot be read"
        if (size := path.stat().st_size) > max_size:
            return f"{size} bytes are more than claude_code.max_file_size allows ({max_size})"
        return "it holds a known secret" if log.holds_secret(path.read_bytes()) else ""

    @cached_property
    def _identity(self) -> tuple[str, ...]:
        """Options that say who commits: none where git knows a user."""
        user = self.git("config", "--get-regexp", r"^user\.(name|email)$", may_fail=True)
        return () if "user.name " in user and "user.email " in user else IDENTITY

    def _write_commit(self, message: str) -> None:
        command = ("commit", "--quiet", "--allow-empty", "--cleanup=whitespace", "--file=-")
        self.git(*self._identity, *command, stdin=message)

    def restore(self, commit: str, title: str, mission: str, protect: Sequence[str]) -> str:
        """Make a commit on top of HEAD whose files are those of an earlier one; return it.

        protect: globs of files that stay as they are, like excluded paths. Raises GitError.
        """
        if aside := self.git(*IDENTITY, "stash", "create"):  # what is uncommitted of the files that git tracks
            self.remember({f"{mission}/uncommitted": aside})
            log.warn(f"uncommitted changes are kept as refs/cco/{mission}/uncommitted (git stash apply {aside[:12]})")
        scope = [*self._scope(), *_pathspecs(protect, "exclude,")]
        self.git("restore", f"--source={commit}", "--staged", "--worktree", "--", *scope)
        if self.names("diff", "--cached", "--name-only", "-z"):
            self._write_commit(_message(title, "", {MISSION: mission}))
        return self.head()

    def remember(self, objects: Mapping[str, str]) -> None:
        """Point refs/cco/NAME to objects, so that git keeps them and they are found again."""
        self.git("update-ref", "--stdin", stdin="".join(f"update refs/cco/{n} {o}\n" for n, o in objects.items()))

    def remove_stale_locks(self) -> None:
        """Remove the locks of a git that died, while no git works here. Only Linux says whether one does."""
        patterns = ("*.lock", "refs/**/*.lock")
        locks = {lock for place in (self.folder(), self.git_dir) for name in patterns for lock in place.glob(name)}
        busy = not proc.LINUX or any(proc.working_in(place, "git") for place in (self.root, self.folder().parent))
        for lock in () if busy else sorted(locks):
            log.warn(f"removed {lock}, which a git that died left behind")
            lock.unlink()

    def remove_placeholders(self) -> None:
        """Remove the empty read-only dot files on which a killed sandbox had mounted something; git tracks none."""
        files = [path for pattern in (".*", ".claude/*") for path in self.root.glob(pattern)]
        empty = {str(path.relative_to(self.root)) for path in files if _version(path)[:2] == (stat.S_IFREG | 0o444, 0)}
        for name in empty.difference(self.tracked(*(f":(literal){name}" for name in empty)) if empty else ()):
            (self.root / name).unlink()

    def _scope(self) -> list[str]:
        """Return pathspecs of everything but excluded paths."""
        tools = [f":(exclude,glob)**/{name}/**" for name in sorted(TOOLS)]
        return [".", *(f":(exclude,literal){name}" for name in self.excluded), *tools]

    def names(self, *args: str, env: dict[str, str] | None = None) -> list[str]:
        """Return what a git command prints with -z, one by one."""
        return [name for name in self.git(*args, env=env).split("\0") if name]

    def git(self, *args: str, stdin: str = "", may_fail: bool = False, env: dict[str, str] | None = None) -> str:
        """Return what git prints, less newlines at the end; with may_fail "" for exit code 1. Raises GitError."""
        argv, given = [proc.find("git", self.root) or "git", "--no-pager", *args], os.fsencode(stdin)
        env = self.fixed if env is None else env
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # a hook's child keeps no pipe open
            running = proc.Running(argv, self.root, env, out, TIMEOUT, errors=err, stdin=given)
            with closing(running):
                while not running.over(TIMEOUT.timeout):
                    pass
            result = running.result
            printed, errors = proc.read(out, 0, result.size), proc.tail(err, 2000).strip()
        log.trace("git", argv=argv, code=result.code, errors=errors)
        if result.code == 0 or (may_fail and result.code == 1):
            return "" if result.code else os.fsdecode(printed).rstrip("\n")
        reason = result.error or result.stopped or errors or f"exit code {result.code}"
        proc.require_space(self.root, Path(tempfile.gettempdir()))  # git does not always say that it found no room
        raise GitError(proc.CANNOT, f"git {' '.join(args)[:60]} in {self.root}: {reason}")

    @cached_property
    def plain(self) -> dict[str, str]:
        """The environment of hooks: no variable of a surrounding git, no question, English, nothing replaced."""
        env = {name: value for name, value in proc.clean_env(os.environ).items() if not name.startswith("GIT_")}
        env |= {"GIT_CEILING_DIRECTORIES": str(self.root.resolve().parent), "GIT_NO_REPLACE_OBJECTS": "1"}
        env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        env |= {"PATH": proc.trusted_path(env.get("PATH", os.defpath), self.root)}
        return {**env, **({proc.MARKER: self.marker} if self.marker else {}), **_settings(SETTINGS)}

    @cached_property
    def fixed(self) -> dict[str, str]:
        """The environment of every other git: no hooks, and whatever the settings say this work tree and its folder."""
        places = {"GIT_DIR": str(self.git_dir), "GIT_WORK_TREE": str(self.root)}
        return {**self.plain, **places, **_settings(f"{SETTINGS} {NO_HOOKS}")}


class Protected:
    """The tracked files under some globs, compared with a commit by an index of our own: the worker may write git's."""

    def __init__(self, repo: Repo, globs: Sequence[str], commit: str, anew: bool = True, folder: Path | None = None):
        """Read the commit. folder: for the index, .cco if it is None. Raises GitError.

        anew: no worker ran since the last comparison, so what is untracked now is the user's.
        """
        self.repo, self.root, self.globs = repo, repo.root, globs
        self.tracked: dict[str, list[str]] = {}  # path -> mode, object, stage
        self.ignored: set[str] = set()  # untracked paths of the user
        if not globs:
            return
        folder = folder or self.root / ".cco"
        index, record = folder / "protected.index", folder / "protected.untracked"
        index.with_name("protected.index.lock").unlink(missing_ok=True)  # of a git that died
        modes = repo.git("config", "--type=bool", "--default=true", "core.fileMode")
        self.env = {**repo.fixed, **_settings(f"{SETTINGS} {NO_HOOKS} {STRICT} core.fileMode={modes}")}
        self.env |= {"GIT_INDEX_FILE": str(index), "GIT_OPTIONAL_LOCKS": "1"}
        self.index, self.commit = index, commit
        self._fill()
        self.tracked = repo.tracked(*_pathspecs(globs), env=self.env)
        if anew or not record.exists():
            state.write(record, os.fsencode("\0".join(n for n, what in self.changes().items() if what == "new")))
        self.ignored = {*os.fsdecode(record.read_bytes()).split("\0")} - {""}

    def _fill(self) -> None:
        """Read the commit into the index."""
        self.index.parent.mkdir(mode=0o700, exist_ok=True)
        self.index.unlink(missing_ok=True)
        self.repo.git("read-tree", self.commit or "--empty", env=self.env)
        self.seen = _version(self.index)

    def untracked(self) -> list[str]:
        """Return what is not protected: globs under which git tracks nothing, submodules, untracked files."""
        empty = [glob for glob in self.globs if not self.repo.tracked(*_pathspecs([glob]), env=self.env)]
        names = [name for name, facts in self.tracked.items() if facts[0] == GITLINK] + sorted(self.ignored)
        return [*empty, *names[:20], *[f"what else is untracked ({len(names) - 20} files)"] * (len(names) > 20)]

    def paths(self) -> list[Path]:
        """Return what a sandbox makes read-only: folders that a glob names, and tracked files under the others."""
        folders = [glob.rstrip("/").removesuffix("/**") for glob in self.globs]
        folders = [name for name in folders if (self.root / name).is_dir()]
        files = [name for name in self.tracked if not any(PurePosixPath(name).is_relative_to(f) for f in folders)]
        return [self.root / name for name in (*folders, *files) if (self.root / name).exists()]

    def changes(self) -> dict[str, str]:
        """Return path and what became of it: changed, deleted or new."""
        look = ("--porcelain=v1", "--no-renames", "--untracked-files=all", "--ignored", "--ignore-submodules=all", "-z")
        if not self.globs:
            return {}
        if _version(self.index) != self.seen:  # a worker without a sandbox removed it, or wrote another
            self._fill()
        lines = self.repo.names("status", *look, "--", *_pathspecs(self.globs), env=self.env)
        self.seen = _version(self.index)  # git remembers there what it compared
        words = {"D": "deleted", "?": "new", "!": "new"}  # else it has another content, mode or type
        changes = {line[3:].rstrip("/"): words.get(line[1], "changed") for line in lines if line[1] != " "}
        caches = {name for name in changes.keys() - self.tracked.keys() if {*name.split("/")} & CACHES}
        for name in caches:  # bytecode decides instead of the file beside it
            delete(self.root / name)
        ignored = self.ignored | caches
        return {name: what for name, what in changes.items() if name not in ignored and not self.repo._is_own(name)}

    def restore(self, changes: Mapping[str, str], kept: Path) -> None:
        """Move the changed versions to a new folder in `kept`, and write the committed ones."""
        _set_aside(self.root, changes, kept)
        if committed := "".join(f"{name}\0" for name, what in changes.items() if what != "new"):
            self.repo.git("checkout-index", "--force", "-uz", "--stdin", stdin=committed, env=self.env)
            self.seen = _version(self.index)


class Kit:
    """The kit's own files, compared with what they were when this was made."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = {name: (_version(folder / name), _content(folder / name)) for name in self._names()}

    def changes(self) -> dict[str, str]:
        """Return name and what became of it: changed, deleted or new. Only what has another time or size is read."""
        now, place = {*self._names()}, f"{self.folder}/"  # no Path: it is asked after each check
        changes = dict.fromkeys(now - self.files.keys(), "new")
        for name, (version, content) in self.files.items():
            if name not in now:
                changes[name] = "deleted"
            elif _version(place + name) != version and _content(self.folder / name) != content:
                changes[name] = "changed"
        return changes

    def restore(self, changes: Mapping[str, str], kept: Path) -> None:
        """Move the changed versions to a new folder in `kept`, and write what was."""
        _set_aside(self.folder, changes, kept)
        for name in (name for name, what in changes.items() if what != "new"):
            path, (mode, content) = self.folder / name, self.files[name][1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)

    def _names(self) -> Iterator[str]:
        for place, folders, files in os.walk(self.folder):
            above = os.path.relpath(place, self.folder)
            is_deep = above == "." or above.split("/")[0] in KIT_FOLDERS
            folders[:] = [name for name in folders if is_deep and name[0] != "." and name not in CACHES]
            yield from filter(IN_KIT.fullmatch, (os.path.normpath(f"{above}/{name}") for name in files))


def _settings(settings: str) -> dict[str, str]:
    """Return the variables by which git takes settings over those of any file."""
    pairs = [setting.split("=", 1) for setting in settings.split()]
    variables = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _pathspecs(globs: Iterable[str], magic: str = "") -> list[str]:
    """Return pathspecs for globs; one that means a folder means all that is in it."""
    return [f":({magic}glob){spec}" for glob in globs for spec in (glob.rstrip("/"), f"{glob.rstrip('/')}/**")]


def _set_aside(root: Path, names: Mapping[str, str], kept: Path) -> None:
    """Move what is at these paths, or took the place of a folder above them, to a new folder in `kept`."""
    kept = kept / str(time.time_ns())  # none is overwritten
    for place in sorted({part for name in names for part in (name, *map(str, PurePosixPath(name).parents))} - {"."}):
        path = root / place
        if path.is_symlink() or (os.path.lexists(path) and (place in names or not path.is_dir())):
            (kept / place).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.move(path, kept / place)


def _version(path: str | Path) -> tuple[int, ...]:
    """Return what changes with a file, and () for a folder or nothing. Only the kernel sets the last of its times."""
    with suppress(OSError):
        s = os.lstat(path)
        if not stat.S_ISDIR(s.st_mode):
            return s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino
    return ()


def _content(path: Path) -> tuple[int, bytes]:
    """Return mode and bytes of a file; of what cannot be read neither."""
    readable = path.is_file() and os.access(path, os.R_OK)
    return (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) if readable else (0, b"")


class Checkout:
    """A commit as a colleague would clone it: with branches, tags, remotes and submodules, and nothing untracked.

    Objects are shared with the repository. No git runs here from outside once a command may have changed what it reads.
    """

    def __init__(self, repo: Repo, commit: str, folder: Path, accepted: Protected | None = None):
        """Check out below the folder; of commit "" nothing. accepted: protected files that count. Raises GitError."""
        accepted = accepted or Protected(repo, (), "")
        self.root, self.commit, self.copy = folder / "tree", commit, folder / "copy"
        self.sources: list[Path] = []  # folders of the repository that the commands have to read
        self.root.mkdir()
        if commit:
            self._add(repo, self.root, commit)
        self.protected = Protected(repo.at(self.root), accepted.globs, commit, folder=folder)
        here, there = self.protected.tracked, accepted.tracked
        names = {*here, *there} - accepted.ignored
        self.differing = sorted(name for name in names if here.get(name) != there.get(name))

    def restore(self) -> list[str]:
        """Restore what a command changed of the protected files, and return its names."""
        if changes := self.protected.changes():
            self.protected.restore(changes, self.copy.with_name("kept"))
        return [*changes]

    def _add(self, source: Repo, root: Path, commit: str) -> None:
        """Check a repository out, and its submodules as far as they are there."""
        repo, origin = Repo(root, marker=source.marker), source.folder()
        form = "sha256" if len(commit) == 64 else "sha1"
        source.git("init", "--quiet", f"--object-format={form}", "--template=", "--", str(root), env=source.plain)
        (root / ".git/objects/info/alternates").write_text(f"{origin / 'objects'}\n")
        refs = source.git(
            "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/remotes"
        )
        (root / ".git/packed-refs").write_bytes(os.fsencode(f"{refs}\n"))
        if (origin / "shallow").exists():
            shutil.copy(origin / "shallow", root / ".git")
        remotes = source.git("config", "--local", "-z", "--get-regexp", CLONED, may_fail=True)
        settings = [*remotes.split("\0"), f"lfs.storage\n{origin / 'lfs'}" if (origin / "lfs").is_dir() else ""]
        for key, _, value in (setting.partition("\n") for setting in settings if setting):
            repo.git("config", "--add", key, value)
        repo.git("checkout", "--quiet", "--force", "--detach", commit)
        self.sources += [folder for name in ("objects", "lfs") if (folder := origin / name).is_dir()]
        for name, (mode, sha, _) in repo.tracked().items():
            if mode == GITLINK and (source.root / name / ".git").exists():
                (root / name).mkdir(parents=True, exist_ok=True)
                self._add(Repo(source.root / name, marker=source.marker), root / name, sha)

    def keep(self) -> None:
        """Let everything that is here now be here after each reset: setup has run. Raises OSError."""
        delete(self.copy)
        _system("cp", "-a", "--", str(self.root), str(self.copy))
        self.made = self._versions()

    def reset(self) -> None:
        """Make everything what it was when it was kept, times included, which a build compares. Raises OSError."""
        self.root.mkdir(exist_ok=True)
        _system("find", str(self.root), *GIVE_RIGHTS)
        now = self._versions()
        wrong = sorted({name for name, _ in now.items() ^ self.made.items()})
        for name in wrong:
            delete(self.root / name)
        for name in (name for name in wrong if name in self.made):
            if self.made[name]:
                shutil.copy2(self.copy / name, self.root / name, follow_symlinks=False)
                self.made[name] = _version(self.root / name)
            else:
                (self.root / name).mkdir()

    def _versions(self) -> dict[str, tuple[int, ...]]:
        """Return all that is here, with what changes when it does."""
        walk = os.walk(self.root)
        paths = [os.path.join(folder, name) for folder, folders, files in walk for name in (*folders, *files)]
        return {os.path.relpath(path, self.root): _version(path) for path in paths}


def scratch(marker: str, name: str) -> Path:
    """Return a new temporary folder of a run's."""
    return Path(tempfile.mkdtemp(prefix=f"{_prefix(marker)}{name}-"))


def remove_scratch(marker: str) -> None:
    """Remove the temporary folders that a killed run left. Only when nothing of it runs."""
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix(marker)}*"):
        delete(path)


def _prefix(marker: str) -> str:
    return f"cco-{hashlib.sha256(os.fsencode(marker)).hexdigest()[:12]}-"


def delete(path: Path) -> None:
    """Remove a file or a whole folder, also where a command took away the rights to do so, however deep it is."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except (OSError, RecursionError):
        _system("find", str(path), *GIVE_RIGHTS)
        _system("rm", "-rf", "--", str(path))


def _system(name: str, *args: str) -> None:
    """Run a program of the system, not one that a worker put on PATH. Raises OSError with what it says."""
    done = subprocess.run([name, *args], env={"PATH": os.defpath}, capture_output=True)
    if done.returncode:
        raise OSError(os.fsdecode(done.stderr).strip()[-300:])


def _message(title: str, body: str, trailers: Mapping[str, str]) -> str:
    """Return title, the worker's report indented so that no line of it can pose as a trailer, and the trailers."""
    subject = log.printable(" ".join(title.split()))[:TITLE].strip() or "Work on the mission"
    report = "\n".join(f"    {line}".rstrip() for line in log.printable(body).strip()[:BODY].splitlines())
    ends = "\n".join(f"{name}: {value}" for name, value in trailers.items())
    return "\n\n".join(part for part in (subject, report, ends) if part) + "\n"
