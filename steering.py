"""What a person says to a mission while it runs or waits: stop, a note for the worker, a verdict.

    print(steering.stop(folder))                     after this session; asked twice: now
    print(steering.tell(folder, "api", "..."))       the next instruction carries it
    steering.accept(job, "c3")                       a criterion that no check can prove

Nothing here waits for the orchestrator: it finds what was left for it in `.cco`.
"""

from __future__ import annotations

import getpass
import os
import signal
from pathlib import Path

import inbox
import ledger
import log
import processes
import report
import state
from exits import USAGE, Stop
from job import Job


def require_person() -> None:
    """Raise Stop in a session of the worker and in a check."""
    if os.environ.get(processes.MARKER):
        raise Stop(USAGE, "this is a session or a check of CCO; only a person can do that")


def stop(folder: Path) -> str:
    """Ask the orchestrator that runs here to end after its session, or at once if that was asked already."""
    holder, asked = state.holder(folder / "lock"), folder / "stop"
    if holder is None:
        asked.touch(mode=0o600)
        return "nothing is running here; starts with --no-wait (cron) end at once until make start or make resume"
    who = f"mission {holder.get('mission')} (pid {holder.get('pid')})"
    pid = holder.get("pid")
    if asked.exists() and isinstance(pid, int) and {"start", "boot"} <= holder.keys() and processes.is_alive(holder):
        processes.send(pid, signal.SIGINT)
        return f"{who} ends now; what its session did so far stays in the work tree, and the next start goes on with it"
    asked.touch(mode=0o600)
    return f"{who} ends after the current session; ask once more to end it now"


def tell(folder: Path, mission: str, text: str) -> str:
    """Leave a note that the next instruction of this mission carries. Raises Stop, OSError."""
    require_person()
    known = next((one for one in report.memories(str(folder)) if one["mission_id"] == mission), None)
    if known and known["current_phase"] == "completed":
        raise Stop(USAGE, f"mission {mission} is done: there is nobody to tell")
    try:
        inbox.leave(folder, mission, text)
    except ValueError as error:
        raise Stop(USAGE, str(error)) from None
    running = (state.holder(folder / "lock") or {}).get("mission") == mission
    return f"the next instruction of {mission} carries it" + ("" if running else "; nothing is running: start it")


def accept(job: Job, id: str) -> None:
    """Say as a person that a criterion without a check is met; recorded with name and time. Raises Stop, OSError."""
    wanted = [c for c in job.mission.criteria if c.id == id]
    if not wanted or wanted[0].check is not None:
        open_ones = ", ".join(c.id for c in job.mission.criteria if c.check is None) or "none"
        has = "has a check, and only its exit code closes it" if wanted else "is no criterion of this mission"
        raise Stop(USAGE, f"{id} {has}; without a check are: {open_ones}")
    if job.memory["current_phase"] == "completed":
        raise Stop(USAGE, "the mission is done already")
    if job.memory["plan"] is None:
        job.memory["commit"] = job.repo.head_of(job.branch) or job.memory["commit"]
        job.memory.update(current_phase="validation", blocked=None, wait_until=None, wait=None)
    ledger.note_evidence(job.memory, id, "accepted", _user(), "accepted by a person", [])
    job.save()
    log.info(f"{id} is accepted as it is in commit {job.memory['commit'][:12]}; start again to go on")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # nobody of that number is known here
        return f"user {os.getuid()}"
