"""The loop: plan, execute, validate, and again, until every criterion is met.

    with job.lock():
        job.recall()
        loop.loop(job)

Each phase writes what it is about to do before it does it, and the phase in the state is the one that a restart goes
on with. So the loop is nothing but a look at the phase. Between two phases a person's edits are taken up: by a restart.
"""

from __future__ import annotations

import time
from contextlib import suppress

import budget
import dod
import inbox
import ledger
import log
import machine
import manager
import milestones
import page
import proc
import progress
import proof
import repo
import report
import session
import waiting
from exits import DONE, LATER, PERSON, Edited, Stop
from job import Job
from situation import Plan

NONSENSE = 4  # times in a row that the judge gives no usable answer, until the same
PATIENCE = 24  # times in a row that the judge cannot be reached, until a person is asked in its place: half a day
TELL = 3600.0  # seconds between two lines about a long wait


def loop(job: Job) -> int:
    """Phase after phase, each saved before the next begins, until done or until something raises Stop (or Edited)."""
    phases = {"planning": plan, "execution": session.execute, "validation": validate, "waiting": wait}
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
        question = job.memory["blocked"]["question"]
        story = page.write_question(job.folder, question, job.situation())
        how = "Answer with make tell TEXT=..., or by editing the mission or the code, then start again"
        raise Stop(PERSON, f"{question}\n{how}. The whole story: {story}")
    milestones.write_report(job)
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
    session.stop_where_asked(job)
    session.end_if_once(job)
    if job.was_edited():  # no worker and no check ran since it was compared, so it was a person
        raise Edited
    seen = job.fingerprint()
    if best := memory["returning"] or ledger.way_back(memory):
        return _go_back(job, best)
    job.take_notes()
    session.end_at_limit(job)
    decision = _decide(job)
    if job.was_edited():  # while it thought: that is a person's, and the worker is not to be blamed for it
        memory["plan"] = None
        job.save()
        raise Edited
    if decision.strategy != "escalate" and (doubt := decision.impossible or decision.question):
        _hear(memory, decision, doubt)
    if decision.strategy == "escalate":
        return _ask_person(job, decision, seen)
    memory["iterations"] += 1
    if decision.session == "fresh" or not memory["worker"]:
        memory["worker"] = session.new()
    log.context(iteration=memory["iterations"])
    how = "same session" if memory["worker"]["begun"] else "fresh session"
    log.info(
        f"iteration {memory['iterations']}: {decision.title} ({decision.strategy}, {how}, decided by {decision.source})"
    )
    job.save("execution")


def validate(job: Job) -> None:
    """Commit what the session changed, run every check, and see whether that is all."""
    memory = job.memory
    commit = job.commit() if memory["plan"] else repo.Commit(memory["commit"])
    if memory["plan"]:
        progress.note_commit(memory, commit)
    memory["checking"] = True
    job.save()
    begun, before, outputs = time.monotonic(), ledger.standing(memory), job.last_outputs()
    try:
        verdicts = proof.prove(job)
    except Exception:
        with suppress(OSError, repo.GitError):  # whatever lies there now is the checks' doing, what comes later is not
            memory["checking"] = False
            job.note_litter()
            job.save()
        raise
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
    told = time.monotonic()
    end = told + left
    # Whichever clock comes first: the wall's may be set back, and the other one stands still while the machine sleeps.
    while (left := min(waiting.left(memory), end - time.monotonic())) > 0 and proc.pause(min(left, 5.0)):
        session.stop_where_asked(job)
        if time.monotonic() - told >= TELL:
            told = time.monotonic()
            log.info(f"still waiting for {memory['wait']['why']}: {waiting.span(left)} left")
        log.live(f"waiting for {memory['wait']['why']}: {waiting.span(left)} left")
    log.live("")
    if proc.stopping:
        return job.save()
    over, limits = memory["wait"], (memory["worker"] or {}).get("limits")
    progress.note_wait(memory, waiting.end(memory))
    job.save("execution" if memory["plan"] else "validation")
    if over["kind"] == waiting.LIMIT:
        said = f"{over['why']} is over; iteration {memory['iterations']} goes on"
        milestones.tell(job, "limit_over", said) if limits == 1 else log.info(said)
    if job.was_edited():  # while nothing ran
        raise Edited


def end_if_impatient(job: Job) -> None:
    """Raise Stop where there is a wait, or a person has stopped it, and this call is not to wait."""
    memory = job.memory
    if not job.patient and job.stop_file.exists():
        raise Stop(LATER, "stopped as asked (make stop); make start goes on")
    if not job.patient and memory.get("current_phase") == "waiting" and (left := waiting.left(memory)) > 0:
        why = f"waiting for {memory['wait']['why']}, until {waiting.when(memory)}"
        raise Stop(LATER, f"{why} ({waiting.span(left)}); start again then")


# --------------------------------------------------------------------------------------------------------
# Their steps
# --------------------------------------------------------------------------------------------------------


def _decide(job: Job) -> Plan:
    """The next plan. A manager LLM that cannot be reached is left alone for longer each time; the rules stand in."""
    memory = job.memory
    machine.require_room(job.folder)  # what is bought has to be written down
    with proc.interruptible():  # an answer may take minutes
        decision = manager.decide(job.situation(), job.settings, waiting.may_ask(memory, "manager"), memory["answers"])
    progress.note_plan(memory, decision)
    if decision.bill.calls or decision.unreachable:
        waiting.note_asked(memory, "manager", not decision.unreachable, decision.until)
    milestones.limits(job)
    return decision


def _ask_person(job: Job, decision: Plan, seen: str) -> None:
    """Nothing is to be carried out: the mission waits for an answer. seen: what a person may change, as it stood."""
    memory = job.memory
    memory["plan"] = None
    if memory["criteria"][decision.focus]["verdict"] == "unjudged":
        failed = memory["judge"]
        is_due = 0 < failed["failures"] < PATIENCE and failed["useless"] < NONSENSE
        if manager.has_judge(job.settings) and is_due:
            waiting.begin(memory, failed["until"] - time.time(), waiting.JUDGE, "the judge to answer")
            return job.save("waiting")
    elif inbox.waits(job.folder, memory):
        log.info("a note was left meanwhile: it goes on with that")
        progress.unblock(memory)
        return job.save()
    memory["blocked"] = {"question": decision.question, "seen": seen}
    job.save("blocked")
    milestones.write_report(job)
    milestones.send(job, "blocked", str(decision.question))


def _hear(memory: progress.Memory, decision: Plan, doubt: str) -> None:
    """What the manager LLM doubts of a criterion is a question to a person when it says so before and after a session.

    Once is not enough: it may have been talked into it by what the worker printed.
    """
    if first := ledger.note_impossible(memory, decision.focus, doubt):
        decision.strategy = "escalate"
        decision.question = decision.question or _impossible(decision.focus, first, doubt)
    else:
        log.info(f"the manager doubts {decision.focus}, and one more session is spent on it first: {doubt}")
        decision.question = None


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


def _cost(job: Job, before: str = "") -> str:
    metrics, rest = job.memory["metrics"], budget.forecast(job.memory)
    count = metrics["calls_of_unknown_cost"]
    unknown = f" (answers of unknown cost: {count})" if count else ""
    forecast = "" if rest is None else f", the rest about ${rest:.2f}"
    return f"{before}${metrics['estimated_cost']:.4f}{unknown} so far{forecast}"
