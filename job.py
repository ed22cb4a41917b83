"""One mission being worked on: what was read, what is remembered, and where things are.

    job = open_job(path, config)    read mission and settings, make the folders, begin the log
    with job.lock():
        job.recall()                the memory as it was saved, and the world put in order after whatever happened
        job.commit()                what a session changed, as one commit

The order of the work is in cco.py; here is what each step needs of the repository and of its `.cco` folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

import dod
import log
import manager
import proc
import progress
import repo
import state
from mission import Mission, find_git_root, load, load_settings, parse, require_repository

HERE = Path(__file__).resolve().parent
STARS = re.compile(r"(?<=[^/])\*\*+|\*\*+(?=[^/])")  # ** as part of a name, which Path.glob refuses, is a *
DONE, ERROR, USAGE, PERSON, CANNOT, LIMIT, LATER = 0, 1, 2, 3, 4, 5, 75  # exit codes; a signal's is 128 + its number


class Stop(Exception):
    """Ends the run here, with an exit code. Everything is saved and can be resumed."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Job:
    """One mission being worked on."""

    def __init__(self, mission: Mission, config: str | None, accept: bool = False):
        """config: a settings file other than .cco/config.yaml. accept: adopt files that changed under a worker."""
        self.mission, self.accept = mission, accept
        self.root = find_git_root(mission.repository) or mission.repository
        self.folder = self.root / ".cco"
        self.file = self.folder / f"{mission.id}.json"
        self.checks = self.folder / "logs" / "checks"
        self.sessions = self.folder / "logs" / "sessions"
        self.config = Path(os.path.abspath(config)) if config else self.folder / "config.yaml"
        self.settings = load_settings(mission, self.config if config or self.config.exists() else None, os.environ)
        self.branch = self.settings.repository.branch or f"cco/{mission.id}"
        self.referee = [HERE, mission.path, self.config]
        self.repo = repo.Repo(self.root, self.referee)
        self.memory: progress.Memory = {}
        self.patient = True  # whether waits are waited for here
        self.sessions_left: int | None = None  # how many iterations this call may begin; None: any number

    # ------------------------------------------------------------------------------------------------
    # The memory
    # ------------------------------------------------------------------------------------------------

    def lock(self) -> state.Lock:
        """One repository, one orchestrator. Raises state.Busy on entering."""
        return state.Lock(
            self.folder / "lock",
            {**proc.identity(os.getpid()), "mission": self.mission.id, "host": os.uname().nodename},
        )

    def save(self, phase: str | None = None) -> None:
        """Write the memory, in a new phase if one is given. Raises OSError."""
        if phase:
            self.memory["current_phase"] = phase
        self.memory["timestamp"] = progress.now()
        state.save(self.file, self.memory)

    def situation(self) -> manager.Situation:
        """All that the next decision rests on."""
        tails = {c.id: dod.last_output(c.id, self.checks) for c in self.mission.criteria}
        return progress.situation(self.memory, self.mission, tails, self.settings.session.max_context)

    def begin(self) -> None:
        """A new memory for the mission on the branch that is checked out; iterations that git knows are counted."""
        head, known = self.repo.head(), self.repo.last_iteration(self.mission.id)
        self.memory = progress.begin(self.mission, self.branch, head, known, self.settings.claude_code.instance_id)
        self.memory["settings_digest"]["digest"] = _digest(self.config)
        progress.adopt(self.memory, self.mission)

    def recall(self) -> None:
        """Load the memory or begin one, after ending what a killed run left. Raises Stop, OSError, repo.GitError."""
        self._tidy()
        try:
            self.memory = state.load(self.file) if self.file.exists() else {}
        except state.StateError as error:
            kept = self.file.with_suffix(f".json.unreadable-{int(time.time())}")
            self.file.rename(kept)
            log.error(f"{error}. It is kept as {kept.name}; iterations and commits are rebuilt from git.")
        if self.memory:
            self._end_leftovers()
            self._adopt_edits()
        if self.repo.branch() != self.branch:
            self._require_clean()
            self.repo.switch(self.branch)
        if not self.memory:
            if not self.repo.last_iteration(self.mission.id):  # else it is unfinished work of a lost memory
                self._require_clean()
            self.begin()
            log.info(f"mission {self.mission.id}: {len(self.mission.criteria)} criteria, branch {self.branch}")
        elif self.memory["plan"] is None:
            self.memory["commit"] = self.repo.head()  # what a person committed in between stays as it is
        if self.memory["blocked"] and self.memory["blocked"]["seen"] != self.fingerprint():
            log.info("something changed since the question was asked: checking again")
            self.memory.update(blocked=None, current_phase="validation")
        self.save()

    def _tidy(self) -> None:
        state.remove_stale(self.folder)
        (self.folder / "stop").unlink(missing_ok=True)
        oldest = time.time() - self.settings.logging.retention_days * 86400
        for path in self.sessions.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink()

    def _end_leftovers(self) -> None:
        recorded = (self.memory["worker"] or {}).get("process")
        if ended := proc.end_leftovers(self.memory["session_id"], recorded):
            log.warn(f"ended {ended} processes that an earlier run left behind")
        self.repo.remove_placeholders()

    def _require_clean(self) -> None:
        if dirty := self.repo.dirty():
            names = "".join(f"\n  {name}" for name in dirty[:20]) + ("\n  ..." if len(dirty) > 20 else "")
            raise Stop(
                USAGE, f"{self.root} has uncommitted changes. Commit or stash them, so that none is touched:{names}"
            )

    # ------------------------------------------------------------------------------------------------
    # The referee
    # ------------------------------------------------------------------------------------------------

    def sealed(self) -> tuple[Path, ...]:
        """What the worker may not write: the referee, git's own files, the kit's state, what the mission protects."""
        protected = (path for pattern in self.mission.protect for path in self.root.glob(STARS.sub("*", pattern)))
        paths = {path for path in (*self.referee, self.root / ".git", self.folder, *protected) if path.exists()}
        return tuple(sorted(path for path in paths if not paths.intersection(path.parents)))  # a folder holds its files

    def notice_tampering(self) -> None:
        """Remember what became of mission and settings while a worker ran; only a person's word adopts it."""
        for path, known in ((self.mission.path, self.memory["mission"]), (self.config, self.memory["settings_digest"])):
            if (found := _digest(path)) not in (known["digest"], known["suspect"]):
                log.error(f"{path} changed while the worker ran. It is not adopted; what was accepted counts.")
                known["suspect"] = found

    def fingerprint(self) -> str:
        """Changes when a person did something that may unblock the mission."""
        return f"{_digest(self.mission.path)} {_digest(self.config)} {self.repo.head()}"

    def _adopt_edits(self) -> None:
        """Take up a person's edits between two runs; what changed while a worker ran only with `accept`."""
        memory = self.memory
        running = memory["current_phase"] == "execution" and (memory["worker"] or {}).get("process")
        found, known = _digest(self.config), memory["settings_digest"]
        if found != known["digest"]:
            if not self.accept and (running or found == known["suspect"]):
                raise Stop(
                    PERSON,
                    f"{self.config} changed while a worker ran. Look at it, then: make start ACCEPT=1 (--accept)",
                )
            log.info(f"the settings were edited; adopted: {self.config}")
            memory["settings_digest"] = {"digest": found, "suspect": ""}
        known = memory["mission"]
        if self.mission.digest != known["digest"]:
            if not self.accept and (running or self.mission.digest == known["suspect"]):
                log.warn(
                    f"{self.mission.path} changed while a worker ran: what was accepted counts. ACCEPT=1 adopts it."
                )
                self.mission = parse(known["text"], self.mission.path)
                return
            log.info(f"the mission was edited; adopted: {self.mission.path}")
            progress.adopt(memory, self.mission)
            if memory["plan"] is None:
                memory.update(current_phase="validation", blocked=None)

    # ------------------------------------------------------------------------------------------------
    # The results
    # ------------------------------------------------------------------------------------------------

    def commit(self) -> repo.Commit:
        """This iteration's commit: the one that is there already after a crash, else a new one."""
        memory, number = self.memory, self.memory["iterations"]
        if made := self.repo.commit_of(self.mission.id, number):
            return repo.Commit(made, ["(recovered)"])
        if not self.settings.repository.auto_commit:
            return repo.Commit(memory["commit"])
        self.repo.remove_placeholders()
        commit = self.repo.commit(
            memory["commit"],
            self.branch,
            memory["plan"]["title"],
            memory["last"]["report"],
            {repo.MISSION: self.mission.id, repo.ITERATION: str(number)},
            self.settings.claude_code.max_file_size,
            self.settings.repository.hooks,
        )
        for path, reason in commit.left_out.items():
            log.warn(f"not committed: {path}: {reason}")
        files = f"{len(commit.changed)} file{'s' * (len(commit.changed) != 1)}"
        log.info(f"committed {files} as {commit.sha[:12]}" if commit.changed else "the session changed nothing")
        return commit

    def write_question(self) -> str:
        """Write the blocked file; what to tell the person."""
        question, situation = self.memory["blocked"]["question"], self.situation()
        path = self.folder / "reports" / f"{self.mission.id}.blocked.md"
        tried = "\n".join(f"- {line}" for line in situation.tried) or "- nothing"
        failing = (s for s in situation.standings if s.verdict != "met")
        tails = "\n\n".join(f"### {s.id}: {s.criteria}\n\n```\n{s.tail.strip()}\n```" for s in failing)
        parts = (
            f"# {self.mission.title}: a person has to answer",
            question,
            "## What was tried",
            tried,
            "## What fails",
            tails,
        )
        path.write_text(log.mask("\n\n".join(parts)) + "\n", "utf-8")
        return f"{question}\nAnswer by editing the mission or the code, then start again. The whole story: {path}"


def open_job(path: Path, config: str | None, accept: bool = False) -> Job:
    """Read mission and settings, make the folders and begin the log.

    Raises MissionError, Stop for a repository that cannot be worked on, OSError without write access.
    """
    log.know(os.environ)
    mission = load(path)
    require_repository(mission)
    job = Job(mission, config, accept)
    for secret in (job.settings.openrouter.api_key, job.settings.claude_code.api_key):
        log.know_value(secret)
    if job.root.is_relative_to(HERE):
        raise Stop(
            USAGE, f"{job.root} is the kit itself. Copy the kit as a folder into your repository, or set `repository`."
        )
    if "\\" in str(job.root):
        raise Stop(USAGE, f"{job.root} has a backslash in it, which voids the worker's write protection. Move it.")
    make_folders(job.folder)
    log.start(job.folder / "logs", job.settings.monitoring.log_level, job.settings.logging.max_size)
    log.context(mission=mission.id)
    for warning in job.settings.warnings:
        log.warn(warning)
    return job


def make_folders(folder: Path) -> None:
    """Make the `.cco` folder, readable by its owner alone and ignored by git except for its settings."""
    for name in ("", "logs", "logs/checks", "logs/sessions", "reports"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n!config.yaml\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
