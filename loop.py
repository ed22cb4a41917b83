"""One mission: plan, execute, commit, validate, and again, until every criterion is met.

    run = loop.Run(Path("missions/api.yaml"), loop.Options())
    code = run.run()        under the lock, once cco.py has loaded the state and prepared the checkout

Each phase ends by saving the next one, and the saved phase is where a restart begins; each may run twice without harm.
What the user edits meanwhile (mission or settings) is taken up between two phases: by saving and starting over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import dod
import judge
import llm
import log
import manager
import mission as missions
import proc
import prompt
import repo
import report
import sandbox
import state as states
import worker
from mission import MissionError
from proc import CANNOT, DONE, LATER, LIMIT, USAGE, USER, Stop
from state import Outcome, Plan, Session, State, Verdict

HERE = Path(__file__).resolve().parent
CRASHES = 3  # failures in a row that are retried within one iteration
JUDGE_FAILURES = 12  # times in a row that the judge cannot be asked, until the user is
LASTING = 5  # failures in a row, which only an overload reaches, of which the user is notified
EXCERPT = 2500  # bytes of a check's output in a prompt
NOT_ADOPTED = "changed while a worker ran; if it was you, make start ACCEPT=1 adopts it"
DONE_SOMETHING = ("ended", "turn_cap", "budget_cap", "timeout")  # kinds of Outcome after which the checks decide


@dataclass
class Options:
    """How a run was asked for on the command line."""

    config: str | None = None  # a settings file other than .cco/config.yaml
    once: bool = False  # end after one session
    no_wait: bool = False  # end with 75 instead of waiting
    accept: bool = False  # adopt what changed while a worker ran


class Edited(Exception):
    """The user has edited mission or settings: start over with them."""


class Run:
    """One mission being worked on, from one start to its end."""

    def __init__(self, path: Path, options: Options):
        """Read mission and settings, make the folders, begin the log. Raises MissionError, Stop, OSError."""
        self.options = options
        log.register_secrets(os.environ)
        prompt.require_texts()
        self.mission = missions.load(path)
        missions.require_repository(self.mission)
        self.root = missions.find_git_root(self.mission.repository) or self.mission.repository
        self.folder = self.root / ".cco"
        self.file = self.folder / f"{self.mission.id}.json"
        self.outputs = self.folder / "logs" / "checks"
        self.sessions = self.folder / "logs" / "sessions"
        self.config = Path(os.path.abspath(options.config)) if options.config else self.folder / "config.yaml"
        self.settings = self.load_settings()
        # Both limits of iterations hold, the mission's own and that of the settings.
        self.limits = replace(self.mission.limits, max_iterations=self.settings.orchestrator.max_iterations)
        self.branch = self.settings.repository.branch or f"cco/{self.mission.id}"
        proc.distrust(self.root)
        self.marker = str(self.root.resolve())  # value of CCO_RUN: what this repository's missions started carries it
        self.own = [HERE, self.mission.path, self.config, self.root / ".env"]
        self.repo = repo.Repo(self.root, self.own, self.marker)
        self.kit = repo.Kit(HERE)
        self.protected = repo.Protected(self.repo, (), "")
        self.state = State(self.mission.id, str(self.mission.repository), str(path), "")
        self.saved_digest = ""  # SHA-256 of the state file as it was written last; "": there is none
        self.has_run = False  # a session has run since the start
        self.recovering = False  # an earlier run ended in this committing or validation: it may have done half of it
        self.killed_in = ""  # phase in which the last run was killed: what is uncommitted may not be the user's
        self.unusable: set[str] = set()  # digests of edits that cannot be used, named once
        box = self.settings.checks.sandbox
        self.sandbox_obstacle = sandbox.obstacle(self.root) if box else "checks.sandbox is off"
        self.notifier = report.Notifier(self.settings.notify, self.mission, self.root)
        self.require_usable()
        make_folders(self.folder)
        log.register_secrets(missions.read_dotenv(self.root / ".env"))
        for secret in (self.settings.openrouter.api_key, self.settings.claude_code.api_key):
            log.register_secret(secret)
        log.start(self.folder / "logs", self.settings.monitoring.log_level, self.settings.logging.max_size)
        log.context(mission=self.mission.id)
        for warning in self.settings.warnings:
            log.warn(warning)

    def load_settings(self) -> missions.Settings:
        """Read the settings as they are now. Raises MissionError."""
        given = self.config if self.options.config or self.config.exists() else None
        return missions.load_settings(self.mission, given, os.environ)

    def require_usable(self) -> None:
        """Raise Stop where this repository or these settings cannot serve."""
        if self.root.is_relative_to(HERE):
            raise Stop(USAGE, f"{self.root} is the kit. Copy the kit as a folder into your repository.")
        if "\\" in str(self.root) or "\n" in str(self.root):
            raise Stop(USAGE, f"{str(self.root)!r} has a character in it that voids write protection. Move it.")
        if (ids := self.unchecked()) and not self.settings.repository.auto_commit:
            reason = f"without commits no judgement of {', '.join(ids)} could be held to anything"
            raise Stop(USAGE, f"{reason}: give each a check, or leave repository.auto_commit on")

    def unchecked(self) -> list[str]:
        """Return the ids of the criteria without a check."""
        return [criterion.id for criterion in self.mission.criteria if criterion.check is None]

    # --- The loop ---

    def run(self) -> int:
        """Go on where the state says, phase after phase, until done or until something raises Stop or Edited."""
        phases = {
            "planning": self.plan,
            "execution": self.execute,
            "committing": self.commit,
            "validation": self.validate,
            "waiting": self.wait,
        }
        while phase := phases.get(self.state.current_phase):
            if proc.stopping:
                raise proc.Interrupted(128 + proc.stopping)
            log.context(mission=self.mission.id, session=self.state.session_id, iteration=self.state.iterations)
            phase()
        return self.conclude()

    def save(self, phase: str | None = None) -> None:
        """Write the state, in a new phase if one is given. Raises OSError."""
        self.state.current_phase = phase or self.state.current_phase
        make_folders(self.folder)  # a worker without a sandbox may have removed them
        self.saved_digest = states.save(self.file, self.state)

    def plan(self) -> None:
        """Decide what the worker does next, and save that before anything is done."""
        state = self.state
        self.stop_if_asked()
        if self.options.once and self.has_run:
            raise Stop(LATER, "one session was asked for, and the mission is not done yet; start again to go on")
        self.take_up_edits()
        seen = self.user_digest()
        if commit := state.returning or manager.way_back(state):
            return self.restore_best(commit)
        self.stop_at_limit()
        proc.require_space(self.folder)  # what is bought has to be written down
        plan = manager.decide(self.situation(), self.settings, state.may_ask("manager"))
        state.record_plan(plan)
        self.warn_of_limits()
        self.take_up_edits()  # it may have taken minutes
        if plan.strategy == "escalate":
            return self.ask_user(plan, seen)
        if plan.question:  # once is not enough: the worker's output may have talked the manager into it
            state.criteria[plan.focus].doubt = plan.question
        session = state.begin_iteration()
        log.context(mission=self.mission.id, session=state.session_id, iteration=state.iterations)
        how = "same session" if session.begun else "new session"
        log.info(f"iteration {state.iterations}: {plan.title} ({plan.strategy}, {how}, chosen by {plan.decided_by})")
        self.save("execution")

    def execute(self) -> None:
        """Run one session, or go on with one that was interrupted."""
        state, plan, session = self.state, self.state.plan, self.state.session
        assert plan and session
        self.stop_if_asked()
        if state.current and state.current.outcome and self.limits.reached(state.used(), begun=True):
            return self.save("committing")  # what was done so far may be all that it takes
        self.stop_at_limit(begun=True)
        self.require_branch()
        task = self.task(plan, session)
        outcome = self.run_worker(task, session)
        state.record_outcome(outcome)
        self.restore_protected("by the worker")
        session.process = None  # not before: until it is compared, nothing that changed is the user's
        self.warn_of_limits()
        self.has_run = True
        self.after(outcome, task, session)

    def commit(self) -> None:
        """Make the commit of this iteration, unless it was made before a crash."""
        state, plan, current = self.state, self.state.plan, self.state.current
        assert plan and current
        commit = self.recovering and self.repo.commit_after(state.commit, self.mission.id, state.iterations)
        if not commit and self.settings.repository.auto_commit:
            trailers = {repo.MISSION: self.mission.id, repo.ITERATION: str(state.iterations)}
            body = state.last.report if state.last else ""
            size, protected = self.settings.claude_code.max_file_size, self.protected.tracked
            commit = self.repo.commit(state.commit, self.branch, plan.title, body, trailers, size, protected)
            for path, reason in commit.omitted.items():
                log.warn(f"not committed: {path}: {reason}")
            made = f"committed {len(commit.changed)} file(s) as {commit.sha[:12]}"
            log.info(made if commit.changed else "the session changed nothing")
            state.not_committed = dict([*commit.omitted.items()][:20])
        if commit:
            state.commit, current.commit = commit.sha, commit.sha[:12] if commit.changed else ""
        self.recovering = False
        self.save("validation")

    def validate(self) -> None:
        """Run every check, have the rest judged, and see whether that is all."""
        state, begun = self.state, time.monotonic()
        before = {id: replace(record) for id, record in state.criteria.items()}
        outputs = {id: dod.last_output(id, self.outputs) for id, record in before.items() if record.attempts}
        try:
            verdicts = self.check_all()
        except BaseException:
            with suppress(OSError, repo.GitError):
                self.end_checks()
                self.save()
            raise
        self.end_checks()
        for line in state.record_results(verdicts, time.monotonic() - begun):
            log.info(line)
        if state.plan:
            resolved = f"{state.plan.title}. {' '.join(state.last.report.split()) if state.last else ''}"
            for id in (id for id in outputs if id in state.met and before[id].failure):
                prompt.learn(self.folder, before[id], outputs[id], resolved)
            for id in state.finish_iteration(self.repo.statistics(state.base_commit, state.commit)):
                log.warn(f"the worker reported {id} as met; its check says otherwise")
            prompt.file_notes(self.folder, state.notes)
            state.notes = []
        for event, text in report.milestones(state, before):
            self.notifier.send(event, text, state)
        marks = {"head": state.commit, "best": state.best.commit if state.best else ""}
        self.repo.remember({f"{self.mission.id}/{name}": commit for name, commit in marks.items() if commit})
        log.info(f"{len(state.met)} of {len(state.criteria)} criteria met, {report.cost(state)}")
        self.warn_of_limits()
        self.recovering = False
        self.save("planning" if state.open else "completed")  # what a clean checkout contradicts is open
        if not state.open:
            text = f"all criteria are met. To merge the result: {report.merge_command(state)}"
            self.notifier.send("done", text, state)

    def wait(self) -> None:
        """Wait until the saved time, in epoch seconds; a restart or a reboot waits on."""
        state, wait = self.state, self.state.wait
        assert wait
        log.info(report.until(state))
        while (left := state.wait_left()) > 0:
            self.stop_if_asked()
            self.take_up_edits()
            log.live(report.until(state))
            proc.pause(min(left, 5.0))
        log.live("")
        state.end_wait()
        self.save()
        if wait.kind == "limit" and state.session and state.session.limits == 1:
            self.notify("limit_over", f"{wait.why} is over; iteration {state.iterations} goes on")
        self.take_up_edits()

    def conclude(self) -> int:
        """Say that the mission is done, or raise Stop with the question to the user."""
        state = self.state
        if state.blocked:
            path = report.write_question(self.folder, state, self.mission)
            answer = "Answer with make tell TEXT=..., or by editing the mission or the code, then start again"
            raise Stop(USER, f"{state.blocked['question']}\n{answer}. The details: {path}")
        self.write_report()
        log.info(f"done: all {len(state.criteria)} criteria are met, {report.cost(state)}")
        if (now := self.repo.head_of(self.branch)) != state.commit:
            log.warn(f"that was proven of {state.commit[:12]}; {self.branch} is at {now[:12] or 'no commit'} now")
        log.info(f"to merge the result: {report.merge_command(state)}")
        return DONE

    def require_branch(self) -> None:
        """Raise Stop where the user has begun something else in this checkout."""
        if (now := self.repo.branch()) != self.branch:
            raise Stop(USAGE, f"{self.root} is on {now or 'no branch'}: git checkout {self.branch}, then start again")
        self.require_finished()

    def require_finished(self) -> None:
        """Raise Stop in the middle of a merge, a rebase and the like."""
        if begun := self.repo.unfinished():
            raise Stop(USAGE, f"{self.root} is in the middle of {', '.join(begun)}: end or abort it, then start again")

    # --- What the user edits ---

    def digests(self) -> dict[str, str]:
        """Return the digests of mission and settings as they are now; settings include .env."""
        settings = f"{missions.digest(self.config)} {missions.digest(self.root / '.env')}"
        return {"mission": missions.digest(self.mission.path), "settings": settings}

    def user_digest(self) -> str:
        """Return what changes when the user did something that may unblock the mission."""
        return f"{self.digests()} {self.repo.head_of(self.branch)}"

    def take_up_edits(self) -> None:
        """Raise Edited where the user has changed mission or settings to something usable. Only while nothing runs."""
        digests, state = {*self.digests().values()}, self.state
        if digests <= {*state.accepted.values(), *state.rejected, *self.unusable}:
            return
        try:
            missions.require_repository(missions.load(self.mission.path))
            self.load_settings()
        except MissionError as error:
            self.unusable |= digests
            return log.warn(f"an edit cannot be used yet, what was accepted counts:\n{error}")
        if not state.current:  # what was decided before the edit is decided again
            state.plan = None
        self.save()
        self.stop_if_asked()  # the next start would not know of it
        raise Edited

    # --- Planning ---

    def situation(self) -> prompt.Situation:
        """Return all that the next decision and its prompt rest on."""
        state, session = self.state, self.state.session
        resumable = bool(session and session.begun and session.context < self.settings.session.max_context)
        outputs = {id: dod.last_output(id, self.outputs) for id in state.open}
        limits = self.limits.compare(state.used())
        left = [f"{max(0, 10 - int(10 * used / most)) * 10} % of {name}" for name, (used, most) in limits.items()]
        return prompt.Situation(
            self.mission,
            state,
            outputs={id: prompt.excerpt(text, EXCERPT) for id, text in outputs.items()},
            lessons={id: prompt.lessons(self.folder, state.criteria[id].failure, text) for id, text in outputs.items()},
            notes=[path.read_text("utf-8", "replace").strip() for path in self.notes()],
            earlier_notes=prompt.delivered_notes(self.folder, self.mission.id),
            resumable=resumable,
            budget=f"Left: {', '.join(left)}." if left else "",
        )

    def notes(self) -> list[Path]:
        """Return the user's notes that wait for this mission."""
        return prompt.notes(self.folder, self.mission.id)

    def ask_user(self, plan: Plan, seen: str) -> None:
        """Wait for the user's answer, or for a judge that cannot be asked. seen: user_digest before the decision."""
        state = self.state
        state.plan = None
        asked = state.asked.get("judge", {"failures": JUDGE_FAILURES})
        if plan.focus in self.unchecked() and asked["failures"] < JUDGE_FAILURES:
            state.wait_for(asked["until"] - time.time(), "judge", "the judge to answer")
            return self.save()
        if self.notes() and state.answered < state.iterations:
            log.info("a note was left meanwhile: it goes on with that")
            state.unblock()
            return self.save()
        state.blocked = {"question": plan.question or plan.title, "seen": seen}
        self.save("blocked")
        self.write_report()
        self.notify("blocked", state.blocked["question"])

    def restore_best(self, commit: str) -> None:
        """Make the files those of the best commit so far, in a commit of its own on top of the later work."""
        state, best = self.state, self.state.best
        self.require_branch()
        state.returning = commit
        self.save()
        assert best
        title = f"Return to iteration {best.iteration}: {best.met} criteria were met"
        log.warn(f"{title}; the later commits stay in the history", commit=commit)
        state.record_return(self.repo.restore(commit, title, self.mission.id, self.mission.protect))
        self.save()

    def stop_if_asked(self) -> None:
        """Raise Stop where the user has asked to stop, or where there is a wait and this call is not to wait."""
        cron, is_over = self.options.no_wait, self.options.once and self.has_run
        if (self.folder / "stop").exists():  # it stays, so that cron does not start it again
            raise Stop(LATER if cron else 130, "stopped as asked (make stop); make start goes on")
        if (cron or is_over) and self.state.wait_left() > 0:
            raise Stop(LATER, f"{report.until(self.state)}; start again then")

    def stop_at_limit(self, begun: bool = False) -> None:
        """Raise Stop before anything is paid for that the limits do not cover."""
        if reached := self.limits.reached(self.state.used(), begun):
            self.write_report()
            raise Stop(LIMIT, f"{reached} It is {report.cost(self.state)}.")

    # --- Execution ---

    def task(self, plan: Plan, session: Session) -> worker.Task:
        """Return what the session is to do, with what, and what it may not touch."""
        state, claude = self.state, self.settings.claude_code
        state.notes = [path.name for path in self.notes()]  # first: one that comes now may be read twice, never not
        situation = self.situation()
        text = prompt.for_worker(situation, replace(plan, session="resume" if session.begun else "fresh"))
        seconds, usd = self.limits.left(state.used(), claude.timeout)
        return worker.Task(
            prompt=text,
            session=session.id,
            resume=session.begun,
            root=self.root,
            protected=self.protected_paths(),
            network=self.mission.network,
            model=next(iter(manager.worker_models(plan, state, self.settings)), claude.model),
            timeout=seconds,
            window=session.window,
            spent=session.spent,
            budget_usd=usd,
            marker=self.marker,
            criteria=[*state.criteria],
            stream=self.sessions / f"{session.first:04d}-{session.id}.jsonl.gz",
        )

    def run_worker(self, task: worker.Task, session: Session) -> Outcome:
        """Run the session. The state says so once claude runs; killed before that, `after` finds the id in use."""
        if self.settings.claude_code.mode == "manual":
            return self.run_by_hand(task, session)

        def started(pid: int) -> None:
            session.begun, session.process = True, proc.identity(pid)
            self.save()

        return worker.run(task, self.settings, started)

    def run_by_hand(self, task: worker.Task, session: Session) -> Outcome:
        """Let the user carry out the instruction: shown once, and done when the repository has changed."""
        path, seen = self.folder / "instruction.md", f"{self.repo.status()} {self.repo.head()}"
        if session.seen not in ("", seen):
            session.seen = ""
            return Outcome("ended", report="(carried out by hand)")
        worker.write_instruction(task, path)
        session.begun, session.seen = True, seen
        self.save()
        raise Stop(LATER, f"carry out {path}, then start again: the checks decide")

    def after(self, outcome: Outcome, task: worker.Task, session: Session) -> None:
        """Commit and check what a session did, try it again, wait, or raise Stop: by how it ended."""
        state, kind = self.state, outcome.kind
        if kind in DONE_SOMETHING or (kind == "interrupted" and not proc.stopping):  # by somebody else's signal
            session.failures, session.limits, session.lost = 0, 0, False
            return self.save("committing")
        if kind == "limit":
            return self.after_limit(outcome, task, session)
        if kind == "interrupted":
            self.save()
            raise proc.Interrupted(128 + proc.stopping)
        if kind in worker.REMEDIES:  # no login, no credit, no program, refused settings
            self.save()
            raise Stop(CANNOT, f"session failed: {outcome.message}\nTo fix it: {worker.REMEDIES[kind]}")
        if kind == "lost_session" and not task.resume:  # the id is in use: a run that was killed had begun it
            session.begun = True
            return self.save()
        if kind == "lost_session" and not session.lost:  # a second loss in a row counts as a crash
            state.session = Session(first=state.iterations, lost=True, failures=session.failures)
            return self.save()
        session.failures += 1
        if kind == "context_full" or (kind != "overloaded" and session.failures > CRASHES):
            state.session = None  # the next plan begins a new one; what was done so far is kept and checked
            return self.save("committing")
        why = "the service to answer again" if kind == "overloaded" else "another attempt"
        state.wait_for(states.backoff(session.failures), "failure", f"{why} (failed {session.failures} times)")
        if session.failures == LASTING:
            self.notify("failed", f"claude failed {LASTING} times in a row, and is tried again: {outcome.message}")
        self.save()

    def after_limit(self, outcome: Outcome, task: worker.Task, session: Session) -> None:
        """Wait for the reset; where only one model is limited, go on with another while there is one."""
        state, why = self.state, "the usage limit"
        is_news = outcome.resets_at is None or outcome.resets_at > time.time()
        session.limits = 1 if outcome.cost_usd and is_news else session.limits + 1  # in a row, without any work between
        wait = worker.until_reset(outcome.resets_at)
        if session.limits > 1:  # a reset that is over already comes again by a wrong clock, or as old news
            wait = max(wait, states.backoff(session.limits - 1))
        if outcome.limited and state.plan:
            state.limit_model(task.model, outcome.limited, wait)
            if models := manager.worker_models(state.plan, state, self.settings):
                other = models[0] or "the usual model"
                self.notify("limit", f"{outcome.limited} is used up for {report.span(wait)}; going on with {other}")
                return self.save()
            wait, why = min(state.limited_models.values()) - time.time(), "the usage limit of each model"
        state.wait_for(wait, "limit", why)
        self.save()
        if session.limits == 1:
            self.notify("limit", f"{outcome.message}; {report.until(state)}")

    # --- Protected files ---

    def protected_paths(self) -> tuple[Path, ...]:
        """Return what the worker may not write: kit, mission, settings, state, git's own files, protected files."""
        git = [self.root / ".git", self.repo.folder(), *self.repo.submodules()]
        return tuple(dict.fromkeys([*self.own, self.folder, *git, *self.protected.paths()]))

    def restore_protected(self, by: str, with_edits: bool = True) -> list[str]:
        """Restore what was changed of protected files and the kit, and name it. Raises repo.GitError, OSError.

        with_edits: also name a changed state, mission or settings.
        """
        state, kept = self.state, self.folder / "kept" / f"{self.state.iterations:04d}"
        changes, kit = self.protected.changes(), self.kit.changes()
        if changes:
            self.protected.restore(changes, kept)
        if kit:
            self.kit.restore(kit, kept)
        changes = {**changes, **{f"{HERE.name}/{path}": what for path, what in kit.items()}}
        if with_edits and self.saved_digest and missions.digest(self.file) != self.saved_digest:
            changes[f".cco/{self.file.name}"] = "changed"  # the next save writes it again
        for name, digest in self.digests().items() if with_edits else ():
            if digest not in (state.accepted[name], *state.rejected, *self.unusable):
                state.rejected = [*state.rejected, digest][-10:]
                changes[str(self.mission.path) if name == "mission" else f"{self.config} or .env"] = NOT_ADOPTED
        for path, what in changes.items():
            log.error(f"protected file {what} {by}: {path}; it counts as it was before")
        if changes:
            state.record_tampering(changes)
            names = ", ".join(changes)
            self.notify("tampering", f"protected files were changed, and count as they were before: {names}")
        return [f"{path} ({what})" for path, what in changes.items()]

    # --- Validation ---

    def check_all(self) -> dict[str, Verdict]:
        """Return the verdict of every criterion: of its check or its judge, and once all are met of a clean checkout.

        Raises MissionError or Stop for a check that proves nothing.
        """
        records, place = self.state.criteria, self.place(self.root)
        never_run = any(c.when == "last" and records[c.id].proof is None for c in self.mission.criteria)
        verdicts = dod.check(self.mission.criteria, place, records, everything=never_run)
        self.refuse_trivial(verdicts, place)
        verdicts |= self.judge_unchecked(dod.all_met(verdicts[id] for id in verdicts if id not in self.unchecked()))
        return verdicts | self.confirm(verdicts)

    def end_checks(self) -> None:
        """Take note of what the checks left: what changes later is the user's."""
        self.restore_protected("while the checks ran")
        self.state.untracked = [*self.repo.status()][:300]

    def place(self, root: Path) -> dod.Place:
        """Return where checks run and what they may touch."""
        box, checks = None, self.settings.checks
        if not self.sandbox_obstacle:
            hidden = (self.folder, self.config, self.root / ".env")
            box = sandbox.Sandbox(root, self.protected_paths(), tuple(checks.writable), checks.network, hidden)
        return dod.Place(
            root,
            self.outputs,
            self.marker,
            checks,
            sandbox=box,
            restore=lambda: self.restore_protected("by a check", with_edits=False),
            both=self.confirms_in == "tree",  # no clean checkout follows that takes both readings
        )

    @property
    def confirms_in(self) -> str:
        """Where all criteria have to be met in the end: "checkout" or "tree"."""
        return "checkout" if self.mission.confirm == "clean" and self.settings.repository.auto_commit else "tree"

    def refuse_trivial(self, verdicts: Mapping[str, Verdict], place: dod.Place) -> None:
        """Raise MissionError, later Stop, for checks that were never seen to fail and pass in an empty folder."""
        texts = [path for path in (self.mission.path, HERE) if path.is_relative_to(self.root)]
        if reasons := dod.trivial(self.mission.criteria, place, verdicts, self.state.criteria, texts):
            error = missions.refusal(self.mission, reasons)
            raise Stop(USER, str(error)) if self.state.iterations else error

    def judge_unchecked(self, all_met: bool) -> dict[str, Verdict]:
        """Return what still holds of the criteria without a check, and once all checks pass what a judge says."""
        state, commit = self.state, self.state.commit
        unchecked = [criterion for criterion in self.mission.criteria if criterion.check is None]
        if not unchecked:
            return {}
        files = self.repo.files(commit)
        verdicts = judge.still_valid(state.criteria, unchecked, files, commit)
        rest = [criterion for criterion in unchecked if criterion.id not in verdicts]
        is_paid = not self.limits.reached(state.used(), begun=True)
        if rest and all_met and is_paid and llm.has_judge(self.settings) and state.may_ask("judge"):
            proc.require_space(self.folder)
            _, left = self.limits.left(state.used(), 0)
            result = judge.judge(self.mission, rest, self.repo, state.base_commit, commit, files, self.settings, left)
            state.pay(result.usage, [criterion.id for criterion in rest])
            state.record_asked("judge", not result.failed, result.until)
            for verdict in result.verdicts.values():
                log.info(f"judged {verdict.id}: {verdict.verdict}: {verdict.tail}")
                dod.keep_reason(verdict.id, self.outputs, verdict.tail)
            verdicts |= result.verdicts
        return verdicts

    def confirm(self, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Return what a clean checkout says: of all once they are met, else of those that it contradicted before."""
        state, commit, begun = self.state, self.state.commit, time.monotonic()
        state.confirmed = None
        everything = dod.all_met(verdicts.values())
        checked = [criterion for criterion in self.mission.criteria if criterion.check is not None]
        doubtful = [c for c in checked if state.criteria[c.id].fails_in_clean_checkout]
        wanted = checked if everything else [c for c in doubtful if verdicts[c.id].verdict == "met"]
        if not wanted:
            return {}
        setup, confirmed = None, dict[str, Verdict]()
        if self.confirms_in == "checkout":
            log.info(f"confirming {len(wanted)} criteria in a clean checkout of {commit[:12] or 'nothing'}")
            setup, confirmed = self.check_out_clean(wanted)
        elif everything:
            log.warn("all criteria are met in the work tree; no clean checkout was made to confirm it")
        for id in (id for id, verdict in confirmed.items() if verdict.verdict != "met"):
            log.warn(f"criterion {id} passes in the work tree, but not in a clean checkout of {commit[:12]}")
        if everything and dod.all_met(confirmed.values()):
            made = {"code": setup.code, "seconds": setup.seconds, "digest": setup.digest} if setup else None
            here = {"commit": commit, "where": self.confirms_in, "at": states.now(), "setup": made}
            state.confirmed = {**here, "seconds": round(time.monotonic() - begun, 1)}
        return confirmed

    def check_out_clean(self, criteria: Sequence[missions.Criterion]) -> tuple[Verdict | None, dict[str, Verdict]]:
        """Return what `setup`, if there is one, and these checks say in a clean checkout of the commit."""
        state, folder = self.state, repo.scratch(self.marker, "clean")
        try:
            checkout = repo.Checkout(self.repo, state.commit, folder, self.protected)
            place, absent = self.place(checkout.root), state.not_committed
            return dod.confirm(self.mission, criteria, place, checkout, state.criteria, self.repo, absent)
        finally:
            repo.delete(folder)

    # --- Messages to the user ---

    def notify(self, event: str, text: str) -> None:
        """Log a milestone, and start the user's commands for it."""
        log.info(text)
        self.notifier.send(event, text, self.state)

    def warn_of_limits(self) -> None:
        """Warn at half, four fifths and all of each limit."""
        for line in self.state.limit_alerts(self.limits):
            self.notify("budget", line)

    def write_report(self) -> None:
        """Write the report as it stands now, and say where it is."""
        log.info(f"the report: {report.write(self.folder, self.state, self.mission)[0]} (and .html)")


def make_folders(folder: Path) -> None:
    """Make the `.cco` folder, readable by its owner alone and ignored by git except for its settings."""
    for path in (folder, *(folder / name for name in ("logs", "logs/checks", "logs/sessions", "reports"))):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise Stop(CANNOT, f"{path} is no folder: move it away, CCO keeps its files there")
        path.mkdir(mode=0o700, exist_ok=True)
    if not (folder / ".gitignore").exists():
        states.write(folder / ".gitignore", b"*\n!config.yaml\n")
