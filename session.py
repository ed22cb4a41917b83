"""One session of a mission: what it is given, what became of it, and what follows from that.

    session.execute(job)      the phase "execution" of the loop

The table "after / next" of the design is `_go_on_after`: checks, a wait, another session, or a person.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from typing import Any

import briefing
import budget
import claims
import inbox
import log
import milestones
import proc
import processes
import progress
import referee
import tiers
import waiting
import worker
from exits import CANNOT, LATER, LIMIT, Stop
from job import HERE, Job
from stream import WINDOW, Outcome

IN_USE = "already in use"  # what claude says of a session that was begun before
CRASHES = 3  # in a row that are retried within one iteration
REMEDIES = {
    "auth": "log in again: run `claude` once and /login, or set ANTHROPIC_API_KEY",
    "credit": "add credit or raise the spending limit of the Anthropic account",
    "missing": "install Claude Code, or set claude_code.command",
    "denied": "claude refuses to start with these settings; see claude_code.* in .cco/config.yaml",
}


def execute(job: Job) -> None:
    """One session of the worker, or the rest of one that was interrupted."""
    memory, session = job.memory, job.memory["worker"]
    stop_where_asked(job)
    end_if_once(job)
    if progress.has_worked(memory) and _reached(job, begun=True):
        return job.save("validation")  # what was done so far may be all that it takes; checks cost nothing
    end_at_limit(job, begun=True)
    job.require_branch()
    job.take_notes()
    task = _task(job)
    outcome = _by_hand(job, task) if job.settings.claude_code.mode == "manual" else _by_worker(job, task)
    inbox.passed_on(memory)
    session.update(context=outcome.context or session["context"], window=outcome.window, spent=outcome.session)
    progress.note_outcome(memory, outcome, claims.claims(outcome.report, job.mission.criteria))
    _tell_outcome(job, outcome)
    referee.compare(job)
    session["process"] = None  # not before: what a session changed that was not compared is nobody's edit
    milestones.limits(job)
    _go_on_after(job, task, outcome)
    if job.sessions_left is not None and memory["current_phase"] == "validation":
        job.sessions_left -= 1


def _task(job: Job) -> worker.Task:
    """What the session is to do, with what, and within which walls."""
    memory, session, claude = job.memory, job.memory["worker"], job.settings.claude_code
    decision = progress.plan(memory)
    decision.session = "resume" if session["begun"] else "fresh"
    prompt = briefing.for_worker(job.situation(), decision)
    log.trace("worker prompt", prompt=prompt)
    models = _models(job)
    model = next(iter(waiting.models(memory, models)), models[0])
    if model != claude.model:
        log.info(f"the worker's model: {model or 'the usual one'}")
    return worker.Task(
        prompt=prompt,
        rules=HERE / "prompts" / "rules.md",
        session=session["session"],
        resume=session["begun"],
        root=job.root,
        sealed=referee.sealed_paths(job),
        network=job.mission.network,
        model=model,
        timeout=budget.left_seconds(memory, job.mission.limits, claude.timeout),
        window=session["window"],
        spent=session["spent"],
        budget_usd=budget.left_usd(memory, job.mission.limits),
        marker=job.marker,
        stream=job.sessions / f"{memory['iterations']:04d}-{session['session']}.jsonl",
    )


def _models(job: Job) -> list[str | None]:
    """The models that may do this session, the first choice first."""
    plan, claude = progress.plan(job.memory), job.settings.claude_code
    known = job.memory["criteria"].get(plan.focus, {})
    return list(dict.fromkeys([*tiers.for_worker(plan.tier, known.get("stalls", 0), job.settings), *claude.fallbacks]))


def _by_worker(job: Job, task: worker.Task) -> Outcome:
    """The worker carries it out. From before its start the state says so: killed in between, we may have started it."""
    session = job.memory["worker"]

    def started(pid: int) -> None:
        session.update(begun=True, process=processes.identity(pid))
        job.save()

    session["process"] = processes.identity(os.getpid())
    job.save()
    try:
        outcome = worker.run(task, job.settings, started)
    except worker.CannotRun:
        session["process"] = None
        job.save()
        raise
    worker.compress(task.stream)
    return outcome


def _by_hand(job: Job, task: worker.Task) -> Outcome:
    """A person carries out the session. Without a terminal to ask on, a change in the repository is the answer."""
    session, path = job.memory["worker"], job.folder / "instruction.md"
    if not sys.stdin.isatty() and session.get("seen") in (None, job.repo.snapshot()):
        if session.get("seen") is None:
            worker.show_instruction(task, path)
        session["seen"] = job.repo.snapshot()
        job.save()
        raise Stop(LATER, f"carry out {path}, then start again: the checks decide")
    outcome = worker.run_by_hand(task, path) if sys.stdin.isatty() else Outcome("ended", report="(carried out by hand)")
    session["seen"] = None
    return outcome


def _go_on_after(job: Job, task: worker.Task, outcome: Outcome) -> None:
    """The table "after / next" of the design."""
    memory, session, kind = job.memory, job.memory["worker"], outcome.kind
    if kind in ("ended", "turn_cap", "budget_cap", "timeout") or (kind == "interrupted" and not proc.stopping):
        session.update(overloads=0, crashes=0, limits=0, lost=False)
        return job.save("validation")
    if kind == "context_full":
        memory["worker"] = None  # the next plan starts afresh; what was done so far is kept and checked
        return job.save("validation")
    if kind == "lost_session" and not task.resume and IN_USE in outcome.message:
        return job.save("execution")  # a run that was killed had begun it, so it can be resumed
    if kind == "lost_session" and not session["lost"]:
        memory["worker"] = {**new(), "lost": True, "crashes": session["crashes"]}  # a second loss in a row is a crash
        return job.save("execution")
    if kind == "limit":
        return _after_limit(job, task, outcome)
    if kind in ("overloaded", "crashed", "lost_session"):
        return _after_failure(job, outcome)
    job.save("execution")
    if kind == "interrupted":
        raise Stop(128 + proc.stopping, "interrupted; the session is kept, start again to go on")
    raise Stop(CANNOT, f"{outcome.message}\nTo mend it: {REMEDIES[kind]}")


def _after_limit(job: Job, task: worker.Task, outcome: Outcome) -> None:
    """Wait for the reset; where it is the limit of one model alone, go on with another while there is one."""
    memory, session, why = job.memory, job.memory["worker"], "the usage limit"
    is_news = outcome.resets_at is None or outcome.resets_at > time.time()
    session["limits"] = 1 if outcome.cost_usd and is_news else session["limits"] + 1
    wait = waiting.until_reset(outcome.resets_at)
    if session["limits"] > 1:  # a reset that is over already comes again and again by a wrong clock, or as old news
        wait = max(wait, waiting.backoff(session["limits"] - 1))
    if outcome.limited:
        waiting.note_limited(memory, task.model, outcome.limited, wait)
        if models := waiting.models(memory, _models(job)):
            other = models[0] or "the usual model"
            milestones.tell(
                job, "limit", f"{outcome.limited} is used up for {waiting.span(wait)}; it goes on with {other}"
            )
            return job.save("execution")
        wait, why = waiting.first_reset(memory), "the usage limit of each model"
    waiting.begin(memory, wait, waiting.LIMIT, why)
    job.save("waiting")
    if session["limits"] == 1:  # else it is the same one still
        said = outcome.message.splitlines()[0]
        milestones.send(job, "limit", f"{said}; going on {waiting.when(memory)}, in {waiting.span(wait)}")


def _after_failure(job: Job, outcome: Outcome) -> None:
    """Try the same session again later, for ever when it is the service that fails; a claude that crashes costs it."""
    memory, session = job.memory, job.memory["worker"]
    kind, why = (
        ("overloads", "the service to answer again") if outcome.kind == "overloaded" else ("crashes", "another try")
    )
    session[kind] += 1
    if session["crashes"] > CRASHES:
        memory["worker"] = None  # what was done is kept, checked and held against the limits
        return job.save("validation")
    waiting.begin(memory, waiting.backoff(session[kind]), waiting.FAILURE, f"{why} ({session[kind]} failed)")
    job.save("waiting")


def stop_where_asked(job: Job) -> None:
    """Raise Stop where a person has asked to stop."""
    if job.stop_file.exists():  # it stays, so that cron does not start it again
        raise Stop(128 + signal.SIGINT, "stopped as asked; make start goes on")


def end_if_once(job: Job) -> None:
    """Raise Stop where this call was for one session, and that has run."""
    if job.sessions_left == 0:
        raise Stop(LATER, "one session was asked for, and the mission is not done yet; start again to go on")


def end_at_limit(job: Job, begun: bool = False) -> None:
    """Raise Stop before anything is paid for that the limits do not cover."""
    if reached := _reached(job, begun):
        milestones.write_report(job)
        raise Stop(LIMIT, reached)


def _reached(job: Job, begun: bool) -> str:
    return budget.reached(job.memory, job.mission.limits, job.settings.orchestrator.max_iterations, begun)


def new() -> dict[str, Any]:
    """A session of Claude Code that was not begun yet."""
    counts = {"overloads": 0, "crashes": 0, "limits": 0, "lost": False}
    empty: dict[str, Any] = {"context": 0.0, "window": WINDOW, "process": None, "spent": {}}
    return {"session": str(uuid.uuid4()), "begun": False, **counts, **empty}


def _tell_outcome(job: Job, outcome: Outcome) -> None:
    level = log.info if outcome.kind in ("ended", "turn_cap", "interrupted", "limit") else log.warn
    said = f": {outcome.message}" if outcome.message and outcome.kind != "ended" else ""
    took = f"{outcome.turns} turns and {outcome.seconds:.0f} s, ${outcome.cost_usd:.4f}"
    level(
        f"session {outcome.kind} after {took}{said}",
        turns=outcome.turns,
        cost_usd=outcome.cost_usd,
        tokens=outcome.tokens,
        context=outcome.context,
        model=outcome.model,
        version=outcome.version,
        claude_session=job.memory["worker"]["session"],
    )
    for denial in outcome.denials:
        log.warn(f"refused to the worker: {denial}")
    for left in outcome.swept:
        log.warn(f"ended what the worker left behind: {left}")
