"""Git: the branch, one commit per session, and what a commit may hold.

Every command runs with the repository's own hooks, signing, pagers and monitors switched off, because a worker may
have written them. Commits are made from the accepted one: what a worker committed by itself becomes part of them.

What is not covered: filter drivers (git-lfs and the like) run as configured.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import log
import machine
import proc
import processes
import surroundings

LOCKS = ("*.lock", "refs/**/*.lock")
STALE = 600.0  # seconds after which a lock is left over, however slow the git
TIMEOUT = 600.0  # seconds for one git command; a first `git add` of a large tree is slow
MISSION, ITERATION = "CCO-Mission", "CCO-Iteration"  # trailers by which a commit is found again
NEVER = (".cco", ".claude")  # folders that are never committed
QUIET = (  # against what a worker may have planted, and what would change the output that is read here
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "commit.gpgSign=false",
    "gc.auto=0",
    "grep.patternType=basic",
    "log.showSignature=false",
    "core.safecrlf=false",
    "trailer.separators=:",
)
# Claude Code's sandbox mounts over these names where they do not exist; SIGKILL leaves what it mounted on.
PLACEHOLDERS = (
    ".env",
    ".bash_profile",
    ".bashrc",
    ".gitconfig",
    ".gitmodules",
    ".idea",
    ".mcp.json",
    ".profile",
    ".ripgreprc",
    ".vscode",
    ".zprofile",
    ".zshrc",
    ".claude/agents",
    ".claude/commands",
    ".claude/hooks",
    ".claude/launch.json",
    ".claude/loop.md",
    ".claude/output-styles",
    ".claude/routines",
    ".claude/scheduled_tasks.json",
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".claude/skills",
    ".claude/workflows",
)
TOOL_FOLDERS = tuple(f":(glob)**/{name}/**" for name in NEVER)
GITLINK = "160000"  # mode of another repository in a tree
TOOLS_OWN = "a tool's own settings"
OWN_REPOSITORY = "a repository of its own: what is inside it is not committed"
SCAN = 20_000_000  # bytes; larger files are not searched for secrets (and rarely small enough to be committed)
IDENTITY = {"user.name": "CCO", "user.email": "cco@localhost"}  # where git knows no user
UNFINISHED = {
    "a merge": "MERGE_HEAD",
    "a rebase": "rebase-merge",
    "a rebase or am": "rebase-apply",
    "a cherry-pick": "CHERRY_PICK_HEAD",
    "a revert": "REVERT_HEAD",
}
HALF_DONE = ("cherry-pick", "merge", "rebase")  # what a worker may have stopped in the middle of
TITLE = 72  # characters of a commit's title
BODY = 4000  # characters of the worker's report in a commit
COMMAND = re.compile(r"[a-z]+(-[a-z]+)*")
NO, FATAL, USAGE = 1, 128, 129  # git's exit codes
UNREADABLE = re.compile(r"not a git repository|No such ref: HEAD|[Pp]ermission denied")  # said of no missing object
TEST_FILE = re.compile(r"(^|/)(tests?|spec|__tests__)/|(^|/)test_|[._-](test|spec)s?\.", re.I)


class GitError(Exception):
    """Git refused or the repository is not in the state that is needed. The message says what to do."""


@dataclass
class Commit:
    """What became of a session's changes."""

    sha: str
    """The commit that holds them, or the one before when nothing changed."""
    changed: list[str] = field(default_factory=list)
    """Paths in it."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Paths that stayed uncommitted, with the reason."""


class Repo:
    """One work tree. referee: paths inside it that belong to the kit or the mission and are never committed."""

    def __init__(self, root: Path, referee: Sequence[Path] = (), git_folder: Path | None = None, marker: str = ""):
        """git_folder: where git keeps its things, if that is not `.git` in the root. marker: CCO_RUN of each git."""
        self.root, self.git_folder, self.marker = root, git_folder, marker
        inside = (path.relative_to(root) for path in referee if path != root and path.is_relative_to(root))
        self.never = sorted({*NEVER, *(path.as_posix() for path in inside)})

    # ------------------------------------------------------------------------------------------------
    # Before the first session
    # ------------------------------------------------------------------------------------------------

    def dirty(self) -> list[str]:
        """Paths with uncommitted changes, those of the kit and the mission excepted."""
        return [line[3:] for line in self._status("--untracked-files=normal", "--", *self._but_never())]

    def head(self) -> str:
        """The commit that is checked out, "" in an empty repository."""
        return self._git("rev-parse", "--verify", "--quiet", "HEAD", may_fail=True)

    def branch(self) -> str:
        """The branch that is checked out, "" when HEAD is detached."""
        return self._git("symbolic-ref", "--quiet", "HEAD", may_fail=True).removeprefix("refs/heads/")

    def unfinished(self) -> list[str]:
        """What was begun in this work tree and not ended: a merge, a rebase and the like."""
        return [name for name, sign in UNFINISHED.items() if self._git_path(sign).exists()]

    def switch(self, branch: str) -> None:
        """Check out the branch, made from what is checked out now if it does not exist yet. Raises GitError."""
        if (top := Path(self._git("rev-parse", "--show-toplevel"))).resolve() != self.root.resolve():
            raise GitError(f"{self.root} is no repository of its own, git takes {top} for it: its .git is damaged")
        self._git("check-ref-format", "--branch", branch)
        if self.branch() == branch:
            return
        self._git("checkout", "--quiet", *([] if self.head_of(branch) else ["-b"]), branch, "--")

    def last_iteration(self, mission: str) -> int:
        """The highest iteration of the mission among the commits of HEAD, 0 if there is none."""
        return max((number for number, _ in self._iterations(mission)), default=0)

    def head_of(self, branch: str) -> str:
        """The commit that a branch points to, "" if there is none."""
        return self._git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", may_fail=True)

    def commit_after(self, base: str, mission: str, iteration: int) -> Commit | None:
        """The commit of this iteration when it is HEAD and the next one after `base`: it was made before a crash."""
        head = self.head()
        if not head or self._git("rev-parse", "--verify", "--quiet", f"{head}^", may_fail=True) != base:
            return None
        if next(iter(self._iterations(mission)), None) != (iteration, head):
            return None
        changed = ["diff-tree", "--no-commit-id", "--root", "-r", "--no-renames", "--name-only", "-z", head]
        return Commit(head, self.names(*changed))

    def submodules(self) -> list[Path]:
        """The `.git` of each submodule that is checked out: who writes it decides what git runs there."""
        paths = (self.root / name / ".git" for mode, _, name in self.tracked() if mode == GITLINK)
        return [path for path in paths if path.exists()]

    def module_folders(self) -> list[Path]:
        """Where git keeps the objects and settings of each submodule that is checked out."""
        return [Repo(path.parent).folder() for path in self.submodules()]

    def tracked(self) -> list[tuple[str, str, str]]:
        """Mode, object and path of everything in the index."""
        entries = (line.partition("\t") for line in self.names("ls-files", "--stage", "-z"))
        return [(*fields.split()[:2], name) for fields, _, name in entries]  # type: ignore[misc]

    def files(self, commit: str) -> dict[str, str]:
        """Path and object of every file in a commit that is work: no link, nothing of the kit or the mission."""
        if not commit:
            return {}
        entries = (line.partition("\t") for line in self.names("ls-tree", "-r", "-z", "--full-tree", commit))
        plain = ((fields.split(), name) for fields, _, name in entries if fields.startswith("100"))
        return {name: fields[2] for fields, name in plain if not self._is_never(name)}

    def diff(self, base: str, commit: str) -> str:
        """What changed between two commits, the kit and the mission excepted; "" stands for no commit yet."""
        start, end = base or self._empty_tree(), commit or self._empty_tree()
        plain = ("--no-ext-diff", "--no-textconv", "--no-color")
        return self._git("diff", *plain, start, end, "--", *self._but_never())

    def left_behind(self) -> dict[str, str]:
        """What is in the work tree and not in the commit that is checked out, with the reason."""
        lines = self._status("--untracked-files=normal", "--ignored", "--", *self._but_never())
        return {line[3:].rstrip("/"): "git ignores it" if line.startswith("!!") else "not committed" for line in lines}

    def keep(self, content: bytes) -> str:
        """Make git keep some bytes; the name of the object, which `git cat-file blob` prints again."""
        return self.git("hash-object", "-w", "--stdin", stdin=content).decode().strip()

    def folder(self) -> Path:
        """Where git keeps its objects and settings: `.git`, or that of the main work tree."""
        return Path(os.path.normpath(self.root / self._git("rev-parse", "--git-common-dir")))

    def remember(self, name: str, target: str) -> None:
        """Point refs/cco/NAME to an object, so that git keeps it and it is found again."""
        self._git("update-ref", f"refs/cco/{name}", target)

    def remembered(self, name: str) -> str:
        """The object that refs/cco/NAME points to, "" if there is none."""
        return self._git("rev-parse", "--verify", "--quiet", f"refs/cco/{name}", may_fail=True)

    def go_back(self, commit: str, title: str, mission: str, protect: Sequence[str]) -> str:
        """Make a commit on top of HEAD whose files are those of an earlier one; the commits in between stay.

        protect: globs of files that stay as they are, like the kit and the mission. Raises GitError.
        """
        apart = [f":(exclude,glob){pattern}" for pattern in protect]
        self._git("restore", f"--source={commit}", "--staged", "--worktree", "--", *self._but_never(), *apart)
        if self.names("diff", "--cached", "--name-only", "-z"):
            self._write_commit(_message(title, "", {MISSION: mission}), hooks=False)
        return self.head()

    def snapshot(self) -> str:
        """Changes whenever HEAD or anything that git does not ignore changes."""
        lines = self._status("--untracked-files=all", "--", *self._but_never())
        stats = []
        for path in (self.root / line[3:] for line in lines):
            status = path.lstat() if path.exists() else None
            stats.append((status.st_size, status.st_mtime_ns) if status else ())
        return hashlib.sha256(repr((self.head(), lines, stats)).encode("utf-8", "replace")).hexdigest()

    def _empty_tree(self) -> str:
        return self._git("hash-object", "-t", "tree", "/dev/null")

    def _git_path(self, name: str) -> Path:
        return self.root / self._git("rev-parse", "--git-path", name)

    def remove_stale_locks(self) -> None:
        """Remove the locks of a git that died: of the index, of HEAD, of branches. Only when no git of ours runs.

        As long as any git works here, and without /proc for STALE seconds, a lock is taken for its own.
        """
        folder, own = self.folder(), self._git_path("index.lock").parent
        locks = {lock for place in (folder, own) for name in LOCKS for lock in place.glob(name)}
        if locks and any(processes.working_in(place, "git") for place in (self.root, folder.parent)):
            return
        for lock in sorted(locks):
            if processes.LINUX or not 0 < time.time() - lock.stat().st_mtime < STALE:
                log.warn(f"removed {lock}, which a git that died left behind")
                lock.unlink()

    def remove_placeholders(self) -> None:
        """Remove the empty read-only files that a killed sandbox leaves behind; git tracks none of them."""
        untracked = self.names("ls-files", "--others", "-z", "--", *(f":(literal){name}" for name in PLACEHOLDERS))
        for path in (self.root / name for name in untracked if name in PLACEHOLDERS):  # not what is in a folder
            status = path.lstat()
            if status.st_size == 0 and status.st_mode & 0o777 == 0o444:
                path.unlink()

    # ------------------------------------------------------------------------------------------------
    # After each session
    # ------------------------------------------------------------------------------------------------

    def commit(
        self, base: str, branch: str, title: str, body: str, trailers: dict[str, str], max_size: int, hooks: bool
    ) -> Commit:
        """Put everything that changed since `base` into one commit on the branch.

        max_size: bytes of the largest file that is committed. hooks: run the repository's own; if they refuse, the
        commit is made without them and the log says so. Raises GitError.
        """
        self._return_to(base, branch)
        left_out = self._stage(max_size)
        changed = self.names("diff", "--cached", "--no-renames", "--name-only", "-z")
        if not changed:
            return Commit(base, left_out=left_out)
        self._write_commit(_message(title, body, trailers), hooks)
        return Commit(self.head(), changed, left_out)

    def statistics(self, base: str) -> dict[str, int]:
        """Files modified, lines of code added and tests created since a commit."""
        start = base or self._empty_tree()
        if not self.head():
            return {"files_modified": 0, "lines_of_code_added": 0, "tests_created": 0}
        rows = [
            line.split("\t") for line in self._git("diff", "--no-ext-diff", "--numstat", start, "HEAD").splitlines()
        ]
        new = self.names("diff", "--no-renames", "--name-only", "--diff-filter=A", "-z", start, "HEAD")
        return {
            "files_modified": len(rows),
            "lines_of_code_added": sum(int(row[0]) for row in rows if row[0].isdigit()),
            "tests_created": sum(bool(TEST_FILE.search(name)) for name in new),
        }

    def _return_to(self, base: str, branch: str) -> None:
        """HEAD at the accepted commit on our branch, the work tree as the worker left it."""
        head = self.head()
        if head != base:
            if base and self.branch() != branch and self._git("merge-base", base, head, may_fail=True) != base:
                raise GitError(f"{self.root} was moved to a commit without the accepted one: git checkout {branch}")
            log.warn("the worker committed by itself; its changes go into this session's commit")
        for command in HALF_DONE:  # else our commit would have its parents or its author
            self._git(command, "--quit", may_fail=True)
        self._git("symbolic-ref", "HEAD", f"refs/heads/{branch}")
        if base:
            self._git("update-ref", "HEAD", base)
            self._git("reset", "--quiet", "--mixed")  # what the worker had staged, or told git to skip, is forgotten
        elif self.head():
            self._git("update-ref", "-d", f"refs/heads/{branch}")

    def _stage(self, max_size: int) -> dict[str, str]:
        """Add everything that a commit may hold to the index; what it may not hold, with the reason.

        Raises GitError when git did not add what it should have added.
        """
        failed = ""
        try:
            sparse = self._git("config", "--bool", "core.sparseCheckout", may_fail=True) == "true"
            self._git("add", "--all", "--ignore-errors", *["--sparse"] * sparse, "--", *self._but_never())
        except GitError as error:
            failed = str(error)
        raw = self.names("diff", "--cached", "--raw", "--no-renames", "-z")
        staged = dict(zip(raw[1::2], raw[::2], strict=True))  # path: ":OLD-MODE NEW-MODE ..."
        left_out = {name: why for name, modes in staged.items() if (why := self._objection(name, modes, max_size))}
        if left_out:
            paths = "".join(f"{name}\0" for name in left_out)
            unstage = ("--literal-pathspecs", "reset", "--quiet", "--pathspec-from-file=-", "--pathspec-file-nul")
            self._git(*unstage, stdin=paths)
        return left_out | self._not_added(left_out, failed)

    def _not_added(self, left_out: Mapping[str, str], failed: str) -> dict[str, str]:
        """What stays changed in the work tree although it was to be added, with the reason."""
        reasons = {}
        for line in self._status("--untracked-files=all"):
            name, path = line[3:].rstrip("/"), self.root / line[3:]
            if line[1] == " " or name in left_out or self._is_never(name):
                continue
            if (path / ".git").exists():
                reasons[name] = OWN_REPOSITORY
            elif failed and path.exists() and os.access(path, os.R_OK):
                raise GitError(failed)
            elif failed:
                reasons[name] = "it cannot be read"
        for name in (line[3:] for line in self._status("--untracked-files=all", "--", *TOOL_FOLDERS)):
            if not name.startswith(".cco/"):  # which is the kit's own, and no news
                reasons[name] = TOOLS_OWN
        return reasons

    def _is_never(self, name: str) -> bool:
        inside = any(name == never or name.startswith(f"{never}/") for never in self.never)
        return inside or bool({*name.split("/")} & {*NEVER})

    def _objection(self, name: str, modes: str, max_size: int) -> str:
        if self._is_never(name):
            return "it belongs to the kit, the mission or a tool's settings"
        if modes.split()[1] == GITLINK and modes.split()[0] != f":{GITLINK}":
            return OWN_REPOSITORY
        path = self.root / name
        link = os.readlink(path) if path.is_symlink() else ""
        if log.holds_secret(f"{name} {link}".encode("utf-8", "surrogateescape")):
            return "its name or target holds a known secret"
        if path.is_symlink() or not path.is_file():
            return ""
        if (size := path.stat().st_size) > max_size:
            return f"{size} bytes are more than claude_code.max_file_size allows ({max_size})"
        if size <= SCAN and log.holds_secret(path.read_bytes()):
            return "it holds a known secret"
        return ""

    def _write_commit(self, message: str, hooks: bool) -> None:
        unknown = [f"{key}={value}" for key, value in IDENTITY.items() if not self._git("config", key, may_fail=True)]
        identity = [part for setting in unknown for part in ("-c", setting)]
        command = [*identity, "commit", "--quiet", "--cleanup=whitespace", "--file=-"]
        if hooks:
            try:
                self._git(*command, stdin=message, quiet=QUIET[1:])
                return
            except GitError as error:
                log.warn(f"the repository's commit hooks refused; committed without them: {error}")
        self._git(*command, stdin=message)

    # ------------------------------------------------------------------------------------------------
    # Git itself
    # ------------------------------------------------------------------------------------------------

    def _iterations(self, mission: str) -> list[tuple[int, str]]:
        """(iteration, commit) of the mission's commits, newest first."""
        if not self.head():
            return []
        fields = ("%H", *(f"%(trailers:key={key},valueonly,separator=%x2C)" for key in (MISSION, ITERATION)))
        ours = re.compile(rf"([0-9a-f]+)\x1f{re.escape(mission)}\x1f([0-9]{{1,9}})")  # anybody may write a trailer
        log_of = ["log", "-z", f"--grep=^{MISSION}: {mission}$", f"--format={'%x1f'.join(fields)}", "HEAD"]
        return [(int(found[2]), found[1]) for row in self.names(*log_of) if (found := ours.fullmatch(row))]

    def _but_never(self) -> list[str]:
        """Pathspecs of everything but what is never committed, wherever a tool puts its folder."""
        anywhere = [f":(exclude,glob)**/{name}/**" for name in NEVER]
        return [".", *(f":(exclude,literal){name}" for name in self.never), *anywhere]

    def names(self, *args: str) -> list[str]:
        """What a git command prints with -z, one by one."""
        return [name for name in self._git(*args).split("\0") if name]

    def _status(self, *args: str) -> list[str]:
        """Lines `XY path` of git status; never of what lies inside another repository."""
        return self.names("status", "--porcelain=v1", "-z", "--no-renames", *args)

    def _git(self, *args: str, stdin: str = "", may_fail: bool = False, quiet: Sequence[str] = QUIET) -> str:
        printed = self.git(*args, stdin=stdin.encode("utf-8", "surrogateescape"), may_fail=may_fail, quiet=quiet)
        return printed.decode("utf-8", "surrogateescape").rstrip("\n")

    def git(self, *args: str, stdin: bytes = b"", may_fail: bool = False, quiet: Sequence[str] = QUIET) -> bytes:
        """What a git command prints, to the byte; nothing when it may fail and did.

        Raises GitError, OSError for what the machine lacks.
        """
        settings = [part for setting in quiet for part in ("-c", setting)]
        place = [f"--git-dir={self.git_folder}", f"--work-tree={self.root}"] if self.git_folder else []
        argv = [surroundings.find("git", self.root) or "git", "--no-pager", *settings, *place, *args]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            result = proc.run(
                argv,
                cwd=self.root,
                env=self._environment(),
                output=out,
                errors=err,
                limits=proc.Limits(TIMEOUT),
                stdin=stdin,
                shielded=True,
            )
            out.seek(0)
            printed = out.read()
            said = proc.tail(err, 2000).strip()
        log.trace("git", argv=argv, code=result.code, said=said)
        if result.code == 0:
            return printed
        self._require_machine(result, said if quiet is QUIET else "")  # a hook may say whatever it likes
        if may_fail and (result.code in (NO, USAGE) or (result.code == FATAL and not UNREADABLE.search(said))):
            return b""
        why = result.error or result.stopped or said or "failed"
        raise GitError(f"git {' '.join(args)[:60]} in {self.root}: {why}")

    def _require_machine(self, result: proc.Result, said: str) -> None:
        """Raise OSError where git may have failed for what the machine lacks: that is no answer."""
        if not self.root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "this folder is gone", str(self.root))
        if lack := machine.lack(result.errno, said):
            raise OSError(lack.errno, lack.strerror, str(self.root))
        machine.require_room(tempfile.gettempdir())  # where it prints to
        if forbidden := self._forbidden():
            machine.require_room(forbidden)  # which says so where it is the file system that is read-only
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(forbidden))

    def _forbidden(self) -> Path | None:
        """The first folder of git's that we have no rights to: what is in it looks like nothing."""
        inside = ("", ".git", ".git/objects", ".git/refs", ".git/refs/heads") if self.git_folder is None else ()
        places = (self.root / name for name in inside)
        return next((p for p in places if os.path.isdir(p) and not os.access(p, os.R_OK | os.W_OK | os.X_OK)), None)

    def _environment(self) -> dict[str, str]:
        """No variable of a surrounding git command, no look at a repository around this one, no question, English.

        And nothing that `git replace` puts in the place of what is committed: a clone would not have it.
        """
        env = {n: v for n, v in surroundings.clean_env(os.environ).items() if not n.startswith("GIT_")}
        ceiling = {"GIT_CEILING_DIRECTORIES": str(self.root.resolve().parent), "GIT_NO_REPLACE_OBJECTS": "1"}
        path = {"PATH": surroundings.trusted_first(env.get("PATH", os.defpath), self.root)}
        mark = {processes.MARKER: self.marker} if self.marker else {}  # by which a git is found that outlived the kit
        return {**env, **path, **ceiling, **mark, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def _message(title: str, body: str, trailers: dict[str, str]) -> str:
    """Title, the worker's words indented so that none of them can pose as a trailer, and the trailers."""
    words = log.printable(" ".join(title.split()))[:TITLE].strip() or "Work on the mission"
    report = "\n".join(f"    {line}".rstrip() for line in log.printable(body).strip()[:BODY].splitlines())
    ends = "\n".join(f"{name}: {value}" for name, value in trailers.items())
    return "\n\n".join(part for part in (words, report, ends) if part) + "\n"
