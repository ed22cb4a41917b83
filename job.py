"""One mission being worked on: what was read, what is remembered, and where things are.

    job = open_job(path, config)    read mission and settings, make the folders, begin the log
    with job.lock():
        job.recall()                the memory as it was saved, and the world put in order after whatever happened
        job.enter()                 the mission's branch
        job.commit()                what a session changed, as one commit

The order of the work is in loop.py; here is what each step needs of the repository and of its `.cco` folder.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import briefing
import budget
import checkout
import dod
import edits
import excerpt
import inbox
import ledger
import lessons
import log
import notify
import processes
import progress
import repo
import report
import sandbox
import seal
import state
import toolchain
import waiting
from edits import digest, is_running
from exits import CANNOT, PERSON, USAGE, Stop
from mission import (
    PRIORITIES,
    Mission,
    MissionError,
    find_git_root,
    load,
    load_settings,
    read_dotenv,
    require_repository,
)
from situation import Situation

HERE = Path(__file__).resolve().parent
LEARNED = 5  # criteria that lessons are looked up for
SHOWN = 5  # commits that the hand-over to a fresh session names
STREAM = re.compile(r"\d{4,}-[0-9a-f-]{36}\.jsonl(\.gz)?")  # name of what a session printed
LITTER = 300  # uncommitted paths that are remembered


class Job:
    """One mission being worked on."""

    def __init__(self, mission: Mission, config: str | None, accept: bool = False):
        """config: a settings file other than .cco/config.yaml. accept: adopt files that changed under a worker."""
        self.mission, self.given, self.accept = mission, config, accept
        self.root = find_git_root(mission.repository) or mission.repository
        self.folder = self.root / ".cco"
        self.file = self.folder / f"{mission.id}.json"
        self.checks = self.folder / "logs" / "checks"
        self.sessions = self.folder / "logs" / "sessions"
        self.lessons = self.folder / "lessons.jsonl"
        self.config = Path(os.path.abspath(config)) if config else self.folder / "config.yaml"
        self.settings = load_settings(mission, self.config if config or self.config.exists() else None, os.environ)
        self.branch = self.settings.repository.branch or f"cco/{mission.id}"
        self.referee = [HERE, mission.path, self.config, self.root / ".env"]
        self.marker = str(self.root.resolve())  # value of CCO_RUN: what this repository's missions started carries it
        apart = [*self.referee, Path(state.key_path()).parent]
        self.repo = repo.Repo(self.root, apart, marker=self.marker)
        self.seal = seal.Seal(self.repo, mission.protect, HERE, apart=self.referee[1:])
        about = {**processes.identity(os.getpid()), "mission": mission.id, "host": os.uname().nodename}
        self._lock = state.Lock(self.folder / "lock", about)
        self.no_walls = sandbox.obstacle(self.root) if self.settings.checks.sandbox else "checks.sandbox is off"
        self.memory: progress.Memory = {}
        self.lost = ""  # name of what was sealed, where the state that remembered it is lost
        self.saved = ""  # digest of the state file as it was written last
        self.has_saved = False  # whether this run has written it
        self.recovering = False  # whether the phase was begun by a run that ended in the middle of it
        self.interrupted = False  # whether that was in the middle of the checks
        self.patient = True  # whether waits are waited for here
        self.profile = ("", "")  # of the repository, and the commit of which it was taken
        self.sessions_left: int | None = None  # how many sessions this call may run; None: any number

    # ------------------------------------------------------------------------------------------------
    # The memory
    # ------------------------------------------------------------------------------------------------

    def lock(self) -> state.Lock:
        """One repository, one orchestrator. Raises state.Busy on entering."""
        return self._lock

    def save(self, phase: str | None = None) -> None:
        """Write the memory, in a new phase if one is given. Raises OSError."""
        if phase:
            self.memory["current_phase"] = phase
        self.memory["timestamp"] = ledger.now()
        make_folders(self.folder)  # a worker without a sandbox may have removed them
        self._lock.keep()
        self.saved, self.has_saved = state.save(self.file, self.memory), True

    def situation(self) -> Situation:
        """All that the next decision rests on."""
        tails, memory = self.last_outputs(), self.memory
        failing = [c for c in self.mission.criteria if c.id in memory["pending_tasks"] and tails[c.id]]
        failing.sort(key=lambda c: PRIORITIES.index(c.priority))
        learned = {c.id: self._lessons(tails[c.id]) for c in failing[:LEARNED]}
        here = progress.situation(
            memory,
            self.mission,
            tails,
            self.settings.session.max_context,
            learned,
            commits=self._last_commits(),
            notes=inbox.current(memory),
            told=inbox.earlier(memory),
            profile=self._profile(),
            budget=budget.left_line(memory, self.mission.limits, self.settings.orchestrator.max_iterations),
            sealed=self._sealed_names(),
        )
        shown = {s.id for s in briefing.shown(here)}
        standings = [replace(s, tail=self._excerpt(s.id)) if s.id in shown else s for s in here.standings]
        return replace(here, standings=standings)

    def _excerpt(self, criterion: str) -> str:
        return log.mask(excerpt.of_file(self.checks / f"{criterion}.log", briefing.FAILURE))

    def _profile(self) -> str:
        """One line on the repository's languages, tools and commands, as of the accepted commit."""
        if self.profile[1] != (commit := self.memory["commit"]) and commit:
            self.profile = (toolchain.survey(self.root, self.repo.files(commit)).line(), commit)
        return self.profile[0]

    def _sealed_names(self) -> list[str]:
        """What an instruction must not ask to change, as it would name it: paths and globs."""
        inside = (path for path in self.referee if path.is_relative_to(self.root))
        return [*(str(path.relative_to(self.root)) for path in inside), *self.mission.protect]

    def last_outputs(self) -> dict[str, str]:
        """The end of what each criterion's check printed last."""
        return {c.id: dod.last_output(c.id, self.checks) for c in self.mission.criteria}

    def _lessons(self, failure: str) -> list[str]:
        return [lessons.told(lesson) for lesson in lessons.fitting(self.lessons, failure)]

    def _last_commits(self) -> list[str]:
        """The mission's last commits with what they changed, newest first."""
        if not (head := self.memory["commit"]) or head == self.memory["base"]:
            return []
        since = [f"^{self.memory['base']}"] if self.memory["base"] else []
        shown = self.repo.git("log", "--shortstat", "--format=%x00%h %s", f"-n{SHOWN}", head, *since, may_fail=True)
        return [" ".join(entry.split()) for entry in shown.decode("utf-8", "replace").split("\0")[1:]]

    def take_notes(self) -> None:
        """Take up what a person has left for the worker. Raises OSError."""
        for text in inbox.take(self.folder, self.memory):
            log.info(f"a note for the worker: {text}")
            self.save()
        inbox.clear(self.folder, self.memory)

    def begin(self) -> None:
        """A new memory for the mission; iterations that git knows of on the mission's branch are counted."""
        known = self.repo.last_iteration(self.mission.id)
        self.memory = progress.begin(
            self.mission, self.branch, self.repo.head(), known, self.settings.claude_code.instance_id
        )
        self._adopt_settings()
        progress.adopt(self.memory, self.mission)

    def recall(self) -> None:
        """Load the memory, if there is one, after ending what a killed run left; take up a person's edits.

        Raises Stop, OSError.
        """
        self._tidy()
        try:
            self.memory = state.load(self.file) if self.file.exists() else {}
        except state.Forged as error:
            self._require_word(error)
        except state.StateError as error:
            kept = self.file.with_suffix(f".json.unreadable-{int(time.time())}")
            self.file.rename(kept)
            log.error(f"{error}. It is kept as {kept.name}; iterations and commits are rebuilt from git.")
        self._distrust()
        before = copy.deepcopy(self.memory)
        if self.memory:
            waiting.set_right(self.memory)
            self._adopt_edits()
            self.recovering = self.memory["current_phase"] == "validation"
            self.interrupted, self.memory["checking"] = self.memory["checking"], False
            blocked = self.memory["blocked"]
            if blocked and (blocked["seen"] != self.fingerprint() or inbox.names(self.folder, self.mission.id)):
                log.info("something changed since the question was asked: checking again")
                progress.unblock(self.memory)
            self.saved = digest(self.file)
            if self.memory != before or not state.is_sealed(self.memory):  # a tick of cron in a wait touches nothing
                self.save()

    def _require_word(self, error: state.Forged) -> None:
        """What somebody wrote into the state counts only by a person's word. Raises Stop."""
        if not self.accept:
            raise Stop(
                PERSON,
                f"{error}. Look at it, at the mission and at what it protects; then: make start ACCEPT=1 (--accept)",
            )
        self.memory = state.load(self.file, sealed=False)

    def _distrust(self) -> None:
        """Prove anew what a state says that was not sealed here, or was forged; what ran when it was saved is gone."""
        memory = self.memory
        if memory and not state.is_sealed(memory):
            log.warn("the state was not sealed on this machine; everything that it calls proven is proven again")
            progress.adopt(memory, self.mission)  # the text of the file that a person has looked at
            for known in memory["criteria"].values():
                known["evidence"] = None
            begun = memory["current_phase"] in ("execution", "waiting") and memory["plan"] and memory["worker"]
            if not begun:  # a session is gone on with; all else begins with the checks
                progress.unblock(memory)
                memory["plan"] = None
            memory["commit"] = self.repo.head_of(self.branch) or memory["commit"]
            memory["iterations"] = max(memory["iterations"], self.repo.last_iteration(self.mission.id) + bool(begun))
        if memory:
            memory["tree"] = ""

    def enter(self) -> None:
        """Check out the mission's branch, and begin a memory if there is none. Raises Stop, OSError, repo.GitError."""
        before = self.repo.branch()
        going_back = self.memory.get("returning")  # a run was killed in the middle of that
        if before != self.branch or not self.memory or (self.memory["plan"] is None and not going_back):
            self._require_clean()  # also later: what a person changed in between is not the worker's
        self.repo.switch(self.branch)
        if self.memory:
            self.memory["branch"] = self.branch  # the settings may name another one by now
        if not self.memory:
            self.begin()
            self.memory["start_branch"] = before if before != self.branch else ""
            log.info(f"mission {self.mission.id}: {len(self.mission.criteria)} criteria, branch {self.branch}")
        else:
            self._say_where_it_stands()
            if self.memory["plan"] is None and self.memory["commit"] != self.repo.head():
                self.memory["commit"] = self.repo.head()  # what a person committed in between stays as it is
                self.memory["best"] = None
        self.save()

    def _say_where_it_stands(self) -> None:
        memory = self.memory
        far = f"{len(memory['completed_tasks'])} of {len(memory['criteria'])} criteria met"
        log.info(
            f"mission {self.mission.id} goes on in iteration {memory['iterations']} ({memory['current_phase']}): {far}"
        )

    def require_branch(self) -> None:
        """Raise Stop where a person has begun something else in this checkout since the last session."""
        if (found := self.repo.branch()) != self.branch:
            raise Stop(
                USAGE, f"{self.root} is on {found or 'no branch'} now: git checkout {self.branch}, then start again"
            )
        if begun := self.repo.unfinished():
            raise Stop(USAGE, f"{self.root} is in the middle of {', '.join(begun)}: end or abort it, then start again")

    def say_walls(self) -> None:
        """One line where the checks have no walls around them, and what follows from that."""
        if self.no_walls:
            follows = "they can read and write whatever you can, also from the clean checkout; the referee is compared"
            log.warn(f"the checks run without a sandbox ({self.no_walls}): {follows}")

    def note_litter(self) -> None:
        """Remember what is uncommitted after the checks ran: left out, or made by the checks, not by a person."""
        self.memory["litter"] = self.repo.dirty()[:LITTER]

    def _tidy(self) -> None:
        running = (memory for memory in report.memories(str(self.folder)) if is_running(memory))
        ended = processes.end_leftovers(self.marker, next((memory["worker"]["process"] for memory in running), None))
        if ended:
            log.warn(f"ended {ended} processes that an earlier run left behind")
        self.repo.remove_stale_locks()
        self.repo.remove_placeholders()
        for folder in (self.folder, self.folder / "reports"):
            state.remove_stale(folder)
        checkout.remove_scratch(self.marker)
        streams = (path for path in self.sessions.iterdir() if STREAM.fullmatch(path.name))
        written = {path: path.stat().st_mtime for path in streams}
        oldest = max(written.values(), default=0.0) - self.settings.logging.retention_days * 86400
        for path in (path for path, when in written.items() if when < oldest):  # by the newest, whatever the clock says
            path.unlink()

    @property
    def stop_file(self) -> Path:
        """Appears when a person asks to stop."""
        return self.folder / "stop"

    def _require_clean(self) -> None:
        if begun := self.repo.unfinished():
            raise Stop(USAGE, f"{self.root} is in the middle of {', '.join(begun)}: end or abort it first")
        known = set(self.memory.get("litter", ()))
        if dirty := [name for name in self.repo.dirty() if log.mask(name) not in known]:  # it was saved masked
            names = "".join(f"\n  {name}" for name in dirty[:20]) + ("\n  ..." if len(dirty) > 20 else "")
            if self.interrupted:
                log.warn(f"the checks were interrupted, and may have left these; they go into the next commit:{names}")
                return
            raise Stop(
                USAGE,
                f"{self.root} has uncommitted changes. Commit, ignore or stash them, so that none is touched:{names}",
            )

    # ------------------------------------------------------------------------------------------------
    # The referee
    # ------------------------------------------------------------------------------------------------

    def state_was_changed(self) -> bool:
        """Whether somebody else than this run wrote the state file."""
        return digest(self.file) != self.saved

    def fingerprint(self) -> str:
        """Changes when a person did something that may unblock the mission."""
        return f"{digest(self.mission.path)} {self.settings_digest()} {self.repo.head_of(self.branch)}"

    def settings_digest(self) -> str:
        """Changes with the settings file and with .env."""
        return f"{digest(self.config)} {digest(self.root / '.env')}"

    def was_edited(self) -> bool:
        """Whether mission or settings are others than those that were accepted, and usable. Only while nothing runs.

        What cannot be used is named once; what was accepted counts until it can.
        """
        found = {"mission": digest(self.mission.path), "settings": self.settings_digest()}
        known = {name: self.memory[name] for name in found}
        looked_at = ("digest", "suspect", "unusable")
        if all(found[name] in map(known[name].get, looked_at) for name in found):
            return False
        try:
            mission = load(self.mission.path)
            require_repository(mission)
            Job(mission, self.given)
            return True
        except MissionError as error:
            log.warn(f"an edit cannot be used yet, what was accepted counts:\n{error}")
            for name in found:
                known[name]["unusable"] = found[name]
            return False

    def _adopt_edits(self) -> None:
        """Take up a person's edits between two runs; settings that changed while a worker ran only with `accept`."""
        memory, found, known = self.memory, self.settings_digest(), self.memory["settings"]
        if found != known["digest"] or str(self.config) != known["path"]:
            under_worker = found != known["digest"] and (is_running(memory) or found == known["suspect"])
            if under_worker and not self.accept:
                changed = f"{self.config} or {self.root / '.env'}"
                raise Stop(
                    PERSON, f"{changed} changed while a worker ran. Look at it, then: make start ACCEPT=1 (--accept)"
                )
            changes = edits.of_settings(known["values"], edits.values(self.settings))
            log.info(f"the settings were edited; adopted: {self.config} ({'; '.join(changes) or 'no other values'})")
            self._adopt_settings()
        before = str(memory["mission"]["path"])
        if os.path.exists(before) and not os.path.samefile(before, self.mission.path):
            both = f"{before} and {self.mission.path} are two missions of one name"
            raise Stop(USAGE, f"{both}: give one of them an `id` of its own")
        if self.mission.digest != memory["mission"]["digest"]:
            if (is_running(memory) or self.mission.digest == memory["mission"]["suspect"]) and not self.accept:
                changed = f"{self.mission.path} changed while a worker ran"
                raise Stop(PERSON, f"{changed}. Look at it, then: make start ACCEPT=1 (--accept)")
            changes = edits.of_mission(memory["mission"]["text"], self.mission)
            log.info(f"the mission was edited; adopted: {self.mission.path} ({'; '.join(changes) or 'no other words'})")
            memory["settings"]["values"] = edits.values(self.settings)  # the mission may set some
            progress.adopt(memory, self.mission)
            if memory["plan"] is None or progress.drop_plan(memory):
                progress.unblock(memory)

    def _adopt_settings(self) -> None:
        here = {"path": str(self.config), "digest": self.settings_digest(), "suspect": None}
        self.memory["settings"] = {**here, "values": edits.values(self.settings)}
        for who in ("manager", "judge"):
            waiting.note_asked(self.memory, who, reached=True)  # it may be another one by now

    # ------------------------------------------------------------------------------------------------
    # The results
    # ------------------------------------------------------------------------------------------------

    def commit(self) -> repo.Commit:
        """This iteration's commit: the one that is there already after a crash, else a new one. Raises GitError."""
        memory, number = self.memory, self.memory["iterations"]
        made = self.repo.commit_after(memory["commit"], self.mission.id, number) if self.recovering else None
        self.recovering = False
        if made:
            return made
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


def open_job(path: Path, config: str | None, accept: bool = False) -> Job:
    """Read mission and settings, make the folders and begin the log.

    Raises MissionError, Stop for a repository that cannot be worked on, OSError without write access.
    """
    log.know(os.environ)
    place = path.parent
    briefing.require_texts()
    try:
        mission = edits.accepted(path, accept)
        place = mission.repository
        require_repository(mission)
        job = Job(mission, config, accept)
    except MissionError:
        _end_left(place)
        raise
    log.know(read_dotenv(job.root / ".env"))
    for secret in (job.settings.openrouter.api_key, job.settings.claude_code.api_key):
        log.know_value(secret)
    notify.know(job.settings.notify)
    if job.root.is_relative_to(HERE):
        raise Stop(USAGE, f"{job.root} is the kit. Copy the kit as a folder into your repository, or set `repository`.")
    if "\\" in str(job.root):
        raise Stop(USAGE, f"{job.root} has a backslash in it, which voids the worker's write protection. Move it.")
    if not job.settings.repository.auto_commit and (open_ones := [c.id for c in mission.criteria if c.check is None]):
        unfit = f"without commits there is nothing that a verdict on {', '.join(open_ones)} could be held to"
        raise Stop(USAGE, f"{unfit}: give each a check, or leave repository.auto_commit on")
    make_folders(job.folder)
    log.start(job.folder / "logs", job.settings.monitoring.log_level, job.settings.logging.max_size)
    log.context(mission=mission.id)
    for warning in job.settings.warnings:
        log.warn(warning)
    return job


def _end_left(place: Path) -> None:
    """End what a killed run left, also where mission or settings cannot be read any more."""
    if folder := report.find_folder(str(place), os.getcwd()):
        with suppress(state.Busy, OSError), state.Lock(Path(folder, "lock"), processes.identity(os.getpid())):
            processes.end_leftovers(str(Path(folder).parent.resolve()), None)


def make_folders(folder: Path) -> None:
    """Make the `.cco` folder, readable by its owner alone and ignored by git except for its settings."""
    if not folder.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the repository is gone", str(folder.parent))
    for name in ("", "logs", "logs/checks", "logs/sessions", "reports"):
        try:
            if name and (folder / name).is_symlink():  # a repository may bring one, and what is old there is deleted
                raise FileExistsError
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise Stop(CANNOT, f"{folder / name} is no folder: move it away, CCO keeps its files there") from None
    ignore = folder / ".gitignore"
    if not ignore.exists() or not ignore.stat().st_size:  # a run was killed between making and writing it
        ignore.write_text("*\n!config.yaml\n")
