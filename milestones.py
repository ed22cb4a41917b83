"""What is worth telling and remembering of a mission's way: messages, warnings of limits, lessons.

    milestones.tell(job, "limit", "5-hour limit until 14:00")      one line in the log, one message
    milestones.progress(job, before)                               what the checks changed
    milestones.learn(job, before, outputs)                         what resolved a failure that took several sessions

What lasts is told once, also where the kit is started every ten minutes. A message whose moment is a crash may be lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import budget
import ledger
import lessons
import log
import notify
import page
import state
from job import Job
from situation import RUNGS

NUMBER = re.compile(r"\w*\d\w*")
LESSON = 1  # sessions that have failed on a criterion before what resolves it is worth remembering


def tell(job: Job, event: str, text: str) -> None:
    """One line in the log and one message to whoever wants it. event: one of notify.EVENTS."""
    log.info(text)
    send(job, event, text)


def send(job: Job, event: str, text: str) -> None:
    """One message; the log has its own line."""
    if not job.settings.notify:
        return
    memory = job.memory
    facts = {
        "iteration": memory["iterations"],
        "met": len(memory["completed_tasks"]),
        "total": len(memory["criteria"]),
        "cost_usd": memory["metrics"]["estimated_cost"],
        "branch": memory["branch"],
        "commit": memory["commit"],
        "wait_until": memory["wait_until"],
        "question": (memory["blocked"] or {}).get("question"),
    }
    notify.send(job.settings.notify, notify.Message(event, job.mission.id, job.mission.title, text, facts, job.root))


def failed(job: Job, code: int, text: str) -> None:
    """Why the kit cannot go on; told once, until a session has ended well again or the reason is another.

    Only that is added to the state, as it was saved last: what the failure left half done in the memory is not.
    """
    mark = ledger.fingerprint(f"{code} {NUMBER.sub('_', text)}")  # a request's id makes no other reason
    with suppress(OSError, state.StateError):  # they may be the very reason
        known = state.load(job.file)
        if known["told"] != mark:
            try:
                job.saved = state.save(job.file, {**known, "told": mark})
            except OSError:
                if not job.has_saved:  # one start of many that cannot save
                    return
            send(job, "failed", text)


def progress(job: Job, before: Mapping[str, Mapping[str, Any]]) -> None:
    """Tell of the criteria that became met, broke, or were set aside. before: `ledger.standing` of then."""
    memory, aside = job.memory, RUNGS[1]
    if not memory["iterations"]:
        return  # the baseline is nobody's doing
    now = memory["criteria"]
    met = [id for id in now if now[id]["verdict"] == "met" != before[id]["verdict"]]
    broken = [id for id in now if before[id]["verdict"] == "met" and ledger.broke_in(now[id], memory["iterations"])]
    left = [id for id in now if now[id]["stalls"] >= aside > before[id]["stalls"]]
    if met:
        send(job, "criterion_met", "\n".join(f"{id} is met: {now[id]['criteria']}" for id in met))
    if broken:
        lines = (f"{id} was met and is not any more: {ledger.broken_by(now[id])}" for id in broken)
        send(job, "regression", "\n".join(lines))
    if left:
        tell(job, "stalled", f"set aside, since the last sessions on it brought it no nearer: {', '.join(left)}")


def write_report(job: Job) -> None:
    """The report as it stands now, and one line that says where it is."""
    paths = page.write(job.folder, job.memory, job.mission)
    log.info(f"the report: {paths[0]} (and .html)")


def limits(job: Job) -> None:
    """Warn at half, four fifths and all of each limit."""
    for line in budget.alerts(job.memory, job.mission.limits, job.settings.orchestrator.max_iterations):
        log.warn(line)
        send(job, "budget", line)


def learn(job: Job, before: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, str]) -> None:
    """Remember what made the criteria true that sessions had failed on before. outputs: of their checks, then."""
    memory, plan = job.memory, job.memory["plan"]
    report = " ".join(memory["last"]["report"].split())
    for id, was in before.items():
        if was["tries"] >= LESSON and memory["criteria"][id]["verdict"] == "met" and outputs[id].strip():
            lesson = lessons.Lesson(
                signature=lessons.signature(outputs[id]),
                lines=lessons.telling(outputs[id]),
                mission=job.mission.id,
                criterion=memory["criteria"][id]["criteria"],
                strategy=plan["strategy"],
                sessions=was["tries"] + (plan["focus"] == id),
                resolved=f"{plan['title']}. {report}",
                commit=memory["commit"][:12],
                at=ledger.now(),
            )
            lessons.learn(job.lessons, lesson)
            log.info(f"a lesson for next time: {lessons.told(lesson)}")
