"""The loop: plan, execute, validate, and again, until every criterion is met.

    with job.lock():
        job.recall()
        loop.loop(job)

Each phase writes what it is about to do before it does it, and the phase in the state is the one that a restart goes
on with. So the loop is nothing but a look at the phase. Between two phases a person's edits are taken up: by a restart.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import budget
import claims
import dod
import inbox
import ledger
import log
import manager
import milestones
import page
import proc
import processes
import progress
import proof
import referee
import repo
import report
import waiting
import worker
from job import CANNOT, DONE, HERE, LATER, LIMIT, PERSON, Edited, Job, Stop
from stream import WINDOW, Outcome

CRASHES = 3  # in a row that are retried within one iteration
TELL = 3600.0  # seconds between two lines about a long wait
REMEDIES = {
    "auth": "log in again: run `claude` once and /login, or set ANTHROPIC_API_KEY",
    "credit": "add credit or raise the spending limit of the Anthropic account",
    "missing": "install Claude Code, or set claude_code.command",
    "denied": "claude refuses to start with these settings; see claude_code.* in .cco/config.yaml",
}


def loop(job: Job) -> int:
    """Phase after phase, each saved before the next begins, until done or until something raises Stop (or Edited)."""
    phases = {"planning": plan, "execution": execute, "validation": validate, "waiting": wait}
    while work := phases.get(job.memory["current_phase"]):
        if proc.stopping:
            raise Stop(128 + proc.stopping, "interrupted; start again to go on")
        log.context(mission=job.mission.id, session=job.memory["session_id"], iteration=job.memory["iterations"])
        log.debug(f"phase {job.memory['current_phase']}")
        work(job)
    return conclude(job)


def is_over(job: Job) -> bool:
    """Whether there is nothing to do: done, or waiting for a person."""
    return bool(job.memory) and job.memory["current_phase"] in ("completed", "blocked")


def conclude(job: Job) -> int:
    """Say that the mission is done, or raise Stop with the question that a person has to answer."""
    if job.memory["blocked"]:
        raise Stop(PERSON, job.write_question())
    _write_report(job)
    log.info(f"done: all {len(job.mission.criteria)} criteria are met, {_cost(job)}")
    proven, now = job.memory["commit"], job.repo.head_of(job.branch)
    take = report.how_to_take(job.memory)
    if now != proven:
        log.warn(f"that was proven of commit {proven[:12]}; {job.branch} is {f'at {now[:12]}' if now else 'gone'} now")
        take = f"git merge {proven[:12]}"
    for left_out in job.memory["left_out"]:
        log.warn(f"not on the branch, although the checks saw it: {left_out}")
    log.info(f"to take the work: {take}")
    return DONE


def plan(job: Job) -> None:
    """Decide what the worker does next, and write that down before anything is done."""
    memory = job.memory
    _stop_where_asked(job)
    _end_if_once(job)
    if job.was_edited():  # no worker and no check ran since it was compared, so it was a person
        raise Edited
    if best := memory["returning"] or ledger.way_back(memory):
        return _go_back(job, best)
    job.take_notes()
    _end_at_limit(job)
    decision = _decide(job)
    if decision.impossible and (first := ledger.note_impossible(memory, decision.focus, decision.impossible)):
        decision.strategy = "escalate"
        decision.question = _impossible(decision.focus, first, decision.impossible)
    if decision.strategy == "escalate":
        return _ask_person(job, decision)
    memory["iterations"] += 1
    if decision.session == "fresh" or not memory["worker"]:
        memory["worker"] = _new_session()
    log.context(iteration=memory["iterations"])
    how = "same session" if memory["worker"]["begun"] else "fresh session"
    log.info(
        f"iteration {memory['iterations']}: {decision.title} ({decision.strategy}, {how}, decided by {decision.source})"
    )
    job.save("execution")


def execute(job: Job) -> None:
    """One session of the worker, or the rest of one that was interrupted."""
    memory, session = job.memory, job.memory["worker"]
    _end_if_once(job)
    _end_at_limit(job, begun=True)
    job.require_branch()
    job.take_notes()
    claude = job.settings.claude_code
    decision = manager.Plan(**memory["plan"])
    decision.session = "resume" if session["begun"] else "fresh"
    prompt = manager.worker_prompt(job.situation(), decision)
    log.trace("worker prompt", prompt=prompt)
    task = worker.Task(
        prompt=prompt,
        rules=HERE / "prompts" / "rules.md",
        session=session["session"],
        resume=session["begun"],
        root=job.root,
        sealed=referee.sealed_paths(job),
        network=job.mission.network,
        model=next(iter(waiting.models(memory, claude.model, claude.fallbacks)), claude.model),
        timeout=budget.left_seconds(memory, job.mission.limits, claude.timeout),
        window=session["window"],
        spent=session["spent"],
        budget_usd=budget.left_usd(memory, job.mission.limits),
        marker=job.marker,
        stream=job.sessions / f"{memory['iterations']:04d}-{session['session']}.jsonl",
    )

    def started(pid: int) -> None:
        session.update(begun=True, process=processes.identity(pid))
        job.save()

    outcome = _by_hand(job, task) if claude.mode == "manual" else _by_worker(job, task, started)
    inbox.passed_on(memory)
    session.update(process=None, context=outcome.context, window=outcome.window, spent=outcome.session)
    progress.note_outcome(memory, outcome, claims.claims(outcome.report, job.mission.criteria))
    _tell_outcome(job, outcome)
    referee.compare(job)
    milestones.limits(job)
    _go_on_after(job, task, outcome)
    if job.sessions_left is not None and memory["current_phase"] == "validation":
        job.sessions_left -= 1


def _by_worker(job: Job, task: worker.Task, started: Callable[[int], None]) -> Outcome:
    """The worker carries it out. From before its start the state says so: killed in between, we may have started it."""
    session = job.memory["worker"]
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
        session["failures"] = 0
        return job.save("validation")
    if kind == "context_full":
        memory["worker"] = None  # the next plan starts afresh; what was done so far is kept and checked
        return job.save("validation")
    if kind == "lost_session" and session["begun"] and session["failures"] == 0:
        memory["worker"] = {**_new_session(), "failures": 1}  # a second loss in a row is no loss but a failure
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
    memory, claude, why = job.memory, job.settings.claude_code, "the usage limit"
    wait = waiting.until_reset(outcome.resets_at)
    if outcome.limited:
        waiting.note_limited(memory, task.model, outcome.limited, wait)
        if models := waiting.models(memory, claude.model, claude.fallbacks):
            other = models[0] or "the usual model"
            milestones.tell(
                job, "limit", f"{outcome.limited} is used up for {waiting.span(wait)}; going on with {other}"
            )
            return job.save("execution")
        wait, why = waiting.first_reset(memory), "the usage limit of each model"
    waiting.begin(memory, wait, why)
    job.save("waiting")
    said = outcome.message.splitlines()[0]
    milestones.send(job, "limit", f"{said}; going on {waiting.when(memory)}, in {waiting.span(wait)}")


def _after_failure(job: Job, outcome: Outcome) -> None:
    """Try the same session again later, for ever when it is the service that fails; a claude that crashes costs it."""
    memory, session = job.memory, job.memory["worker"]
    session["failures"] += 1
    if outcome.kind != "overloaded" and session["failures"] > CRASHES:
        memory["worker"] = None  # what was done is kept, checked and held against the limits
        return job.save("validation")
    why = "the service to answer again" if outcome.kind == "overloaded" else "another try"
    waiting.begin(memory, waiting.backoff(session["failures"]), f"{why} ({session['failures']} failed)")
    job.save("waiting")


def validate(job: Job) -> None:
    """Commit what the session changed, run every check, and see whether that is all."""
    memory = job.memory
    commit = job.commit() if memory["plan"] else repo.Commit(memory["commit"])
    if memory["plan"]:
        progress.note_commit(memory, commit)
    memory["checking"] = True
    job.save()
    begun, before, outputs = time.monotonic(), ledger.standing(memory), job.last_outputs()
    verdicts = proof.prove(job)
    memory["checking"] = False
    memory["metrics"]["check_seconds"] = round(memory["metrics"]["check_seconds"] + time.monotonic() - begun, 1)
    for line in ledger.note_verdicts(memory, verdicts):
        log.info(line)
    milestones.progress(job, before)
    if memory["plan"]:
        for line in ledger.note_claims(memory):
            log.warn(line)
        milestones.learn(job, before, outputs)
        progress.close_iteration(memory, commit, job.repo.statistics(memory["base"]))
        inbox.forget(memory)
    if memory["commit"]:  # whatever becomes of the branch
        job.repo.remember(f"{job.mission.id}/head", memory["commit"])
    if memory["best"]:
        job.repo.remember(f"{job.mission.id}/best", memory["best"]["commit"])
    met, total = len(memory["completed_tasks"]), len(memory["criteria"])
    log.info(f"{met} of {total} criteria met{_cost(job, ', ')}")
    job.note_litter()
    milestones.limits(job)
    done = dod.all_met(verdicts.values())
    job.save("completed" if done else "planning")
    if done:
        milestones.send(job, "done", f"all {total} criteria are met. To take the work: {report.how_to_take(memory)}")


def wait(job: Job) -> None:
    """Wait for a limit's reset or after a failure. The time is in the state, so a restart waits on."""
    memory, left = job.memory, waiting.left(job.memory)
    end_if_impatient(job)
    if left > 0:
        log.info(f"waiting for {memory['wait']['why']}, until {waiting.when(memory)}: {waiting.span(left)}")
    begun = told = time.monotonic()
    end = begun + left
    # Whichever clock comes first: the wall's may be set back, and the other one stands still while the machine sleeps.
    while (left := min(waiting.left(memory), end - time.monotonic())) > 0 and proc.pause(min(left, 5.0)):
        _stop_where_asked(job)
        if time.monotonic() - told >= TELL:
            told = time.monotonic()
            log.info(f"still waiting for {memory['wait']['why']}: {waiting.span(left)} left")
        log.live(f"waiting for {memory['wait']['why']}: {waiting.span(left)} left")
    log.live("")
    progress.note_wait(memory, time.monotonic() - begun)
    if proc.stopping:
        return job.save()
    if memory["wait"] and "limit" in memory["wait"]["why"]:
        milestones.tell(job, "limit_over", f"{memory['wait']['why']} is over; iteration {memory['iterations']} goes on")
    waiting.end(memory)
    job.save("execution")
    if job.was_edited():  # while nothing ran
        raise Edited


def end_if_impatient(job: Job) -> None:
    """Raise Stop where there is a wait, and this call is not to wait."""
    memory = job.memory
    if not job.patient and memory.get("current_phase") == "waiting" and (left := waiting.left(memory)) > 0:
        why = f"waiting for {memory['wait']['why']}, until {waiting.when(memory)}"
        raise Stop(LATER, f"{why} ({waiting.span(left)}); start again then")


# --------------------------------------------------------------------------------------------------------
# Their steps
# --------------------------------------------------------------------------------------------------------


def _end_at_limit(job: Job, begun: bool = False) -> None:
    """Raise Stop before anything is paid for that the limits do not cover."""
    if reached := budget.reached(job.memory, job.mission.limits, job.settings.orchestrator.max_iterations, begun):
        _write_report(job)
        raise Stop(LIMIT, reached)


def _decide(job: Job) -> manager.Plan:
    """The next plan. A manager LLM that cannot be reached is left alone for longer each time; the rules stand in."""
    memory = job.memory
    with proc.interruptible():  # an answer may take minutes
        decision = manager.decide(job.situation(), job.settings, time.time() >= memory["manager"]["until"])
    progress.note_plan(memory, decision)
    if decision.unreachable:
        failures = memory["manager"]["failures"] + 1
        memory["manager"] = {"failures": failures, "until": time.time() + waiting.backoff(failures)}
    elif decision.source != "rules":
        memory["manager"] = {"failures": 0, "until": 0}
    milestones.limits(job)
    return decision


def _ask_person(job: Job, decision: manager.Plan) -> None:
    """Nothing is to be carried out: the mission waits for an answer."""
    memory = job.memory
    memory["plan"] = None
    asks_again = manager.has_judge(job.settings) and memory["criteria"][decision.focus]["verdict"] == "unjudged"
    memory["blocked"] = {"question": decision.question, "seen": "" if asks_again else job.fingerprint()}
    job.save("blocked")
    _write_report(job)
    milestones.send(job, "blocked", str(decision.question))


def _impossible(id: str, first: str, again: str) -> str:
    return (
        f"The manager calls {id} impossible, before the last session and after it: {first}"
        f"{'' if again == first else f' / {again}'} Is that so? Then change the criterion. Else say what the worker is"
        " missing (make tell TEXT=...)."
    )


def _go_back(job: Job, commit: str) -> None:
    """Make the files those of the best commit so far, in a commit of its own on top of the later work."""
    best = job.memory["best"]
    job.memory["returning"] = commit
    job.save()
    title = f"Go back to iteration {best['iteration']}: {best['met']} criteria were met"
    log.warn(f"{title}; the later commits stay in the history", commit=commit)
    made = job.repo.go_back(commit, title, job.mission.id, job.mission.protect)
    ledger.note_return(job.memory, made)
    job.save()


def _write_report(job: Job) -> None:
    paths = page.write(job.folder, job.memory, job.mission)
    log.info(f"the report: {paths[0]} (and .html)")


def _new_session() -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "begun": False,
        "context": 0.0,
        "window": WINDOW,
        "failures": 0,
        "process": None,
        "spent": {},
    }
    return {"session": str(uuid.uuid4()), **nothing}


def _end_if_once(job: Job) -> None:
    if job.sessions_left == 0:
        raise Stop(LATER, "one session was asked for, and the mission is not done yet; start again to go on")


def _stop_where_asked(job: Job) -> None:
    if job.stop_file.exists():
        job.stop_file.unlink()
        raise Stop(128 + signal.SIGINT, "stopped as asked; start again to go on")


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


def _cost(job: Job, before: str = "") -> str:
    return f"{before}${job.memory['metrics']['estimated_cost']:.4f} so far"
