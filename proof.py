"""Hold every criterion against the tree: its check, a judge's quotes, a person's word, and a clean checkout.

    verdicts = proof.prove(job)

All checks run after every session, unless it changed nothing at all. When all are met, the commit is checked out
into a temporary folder, `setup` runs there, and every check once more; only that makes the mission done.

What is not covered: a check that fails now and then, but passed each of the three times that it was looked at.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import budget
import checkout
import dod
import judge
import ledger
import log
import machine
import manager
import proc
import progress
import referee
import tiers
import toolchain
import waiting
from dod import Verdict
from exits import PERSON, Stop
from job import HERE, Job
from mission import Criterion, refusal

NAMED = 12  # files that are not in the commit and that a failed confirmation names
WAY_OUT = (
    "Let it test what the mission is about, so that it fails until that is done."
    " If it guards what must stay as it is, say so: guard: true"
)


def prove(job: Job) -> dict[str, Verdict]:
    """The verdict of every criterion, in mission order.

    Raises MissionError for a check that proves nothing (Stop, once a session was paid for), proc.Interrupted,
    repo.GitError, OSError.
    """
    memory = job.memory
    if memory["plan"] is not None and memory["tree"] and memory["tree"] == _tree(job):
        log.info("nothing changed since the checks ran, so they say the same")
        return {id: _remembered(job, id) for id in memory["criteria"]}
    memory["tree"] = ""
    try:
        verdicts = check(job)
        if reasons := proving_nothing(job, verdicts):
            refused = refusal(job.mission, ways_out(reasons))
            raise Stop(PERSON, str(refused)) if memory["iterations"] else refused
        verdicts |= _judged(job, verdicts)
        verdicts |= _confirmed(job, verdicts)
    finally:  # whatever ran here, what is written after it is a person's
        referee.compare(job, "while the checks ran")
    log.live("")
    memory["tree"] = _tree(job)
    return verdicts


def check(job: Job) -> dict[str, Verdict]:
    """Run the checks in the work tree; all of them as long as one was never run."""
    known = job.memory["criteria"]
    never_run = any(c.when == "last" and known[c.id]["proof"] is None for c in job.mission.criteria)
    new = frozenset(c.id for c in job.mission.criteria if c.when == "always" and known[c.id]["verdict"] != "met")
    place = replace(_place(job, job.root), twice=new)
    return dod.check(job.mission.criteria, place, everything=never_run)


def proving_nothing(job: Job, verdicts: dict[str, Verdict]) -> dict[str, str]:
    """Which of the checks that pass, and were never seen to fail, prove nothing, and why. Raises proc.Interrupted."""
    reasons = {}
    for criterion in job.mission.criteria:
        known = job.memory["criteria"][criterion.id]
        met = criterion.check is not None and verdicts[criterion.id].verdict == "met"
        if met and not (criterion.guard or known["seen_red"] or known["proves"]):
            if reason := _proves_nothing(job, criterion):
                reasons[criterion.id] = reason
            else:
                known["proves"] = True
                log.warn(f"criterion {criterion.id} is met already; its check was never seen to fail")
    return reasons


def ways_out(reasons: dict[str, str]) -> dict[str, str]:
    """What to tell about checks that prove nothing."""
    return {id: f"{reason}. {WAY_OUT}" for id, reason in reasons.items()}


def announce(job: Job) -> None:
    """Say at the start what will be missing at the end, and which of the manager's models are no good choice."""
    for line in manager.warnings(job.settings):
        log.warn(line)
    if lacking := missing_setup(job):
        log.warn(lacking)
    if people := needs_person(job):
        log.warn(f"nothing here can judge {', '.join(people)}; you will be asked (make accept ID={people[0]})")


def missing_setup(job: Job) -> str:
    """What to say about a mission without `setup` in a repository that plainly needs one; "" otherwise."""
    if job.mission.setup or job.mission.confirm == "tree":
        return ""
    if not (wanted := toolchain.setup_for(job.repo.files(job.repo.head()))):
        return ""
    name, command = wanted
    return (
        f"{name} is here, but the mission has no `setup`: in the clean checkout that confirms the work, what it names"
        f" will be missing. Add to the mission, say, `setup: {command}` (or `confirm: tree`)."
    )


def needs_person(job: Job) -> list[str]:
    """Ids of the criteria that nobody but a person can judge here."""
    known = job.memory["criteria"]
    without = [c.id for c in job.mission.criteria if c.check is None and not known[c.id]["evidence"]]
    return [] if manager.has_judge(job.settings) else without


# --------------------------------------------------------------------------------------------------------
# In the work tree
# --------------------------------------------------------------------------------------------------------


def _place(job: Job, root: Path, **more: Any) -> dod.Place:
    return dod.Place(
        root,
        job.checks,
        job.marker,
        job.settings.checks,
        walls=referee.walls(job, root),
        broken=lambda: referee.broken(job),
        suspects=frozenset(id for id, known in job.memory["criteria"].items() if known["flaky"]),
        **more,
    )


def _tree(job: Job) -> str:
    """Changes whenever a file does, also one that git ignores."""
    apart = tuple(f"{job.root / name}/" for name in job.repo.never)
    found = []
    for entry in checkout.walk(job.root):
        if not entry.is_dir(follow_symlinks=False) and not entry.path.startswith(apart):
            s = entry.stat(follow_symlinks=False)
            found.append((entry.path, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    return hashlib.sha256(repr((job.repo.head(), sorted(found))).encode("utf-8", "replace")).hexdigest()


def _remembered(job: Job, id: str) -> Verdict:
    known = job.memory["criteria"][id]
    proof = known["proof"] or {}
    return Verdict(
        id,
        known["verdict"],
        proof.get("code"),
        proof.get("seconds", 0.0),
        proof.get("digest", ""),
        dod.last_output(id, job.checks),
        runs=0,
        flaky=known["flaky"],
        where="checkout" if known["unconfirmed"] else proof.get("where", "tree"),
    )


def _proves_nothing(job: Job, criterion: Criterion) -> str:
    inside = (path for path in {job.mission.path, HERE} if path.is_relative_to(job.root))
    texts = [(path, str(path.relative_to(job.root))) for path in inside]
    folder = checkout.scratch(job.marker, "empty")
    root, outputs = folder / "empty", folder / "outputs"
    try:
        root.mkdir()
        outputs.mkdir()
        return dod.proves_nothing(criterion, replace(_place(job, root), broken=tuple, outputs=outputs), texts)
    finally:
        checkout.delete(folder)  # whatever rights the check took away


# --------------------------------------------------------------------------------------------------------
# By a judge, or a person
# --------------------------------------------------------------------------------------------------------


def _judged(job: Job, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts of the criteria without a check."""
    memory, found = job.memory, {}
    without = [c for c in job.mission.criteria if c.check is None]
    files = job.repo.files(memory["commit"]) if without else {}
    for criterion in without:
        known = memory["criteria"][criterion.id]
        if known["evidence"] and not _holds(known["evidence"], files, memory["commit"]):
            log.info(f"criterion {criterion.id} has to be judged again: what its verdict rests on has changed")
            known["evidence"] = None
        if known["evidence"]:
            found[criterion.id] = Verdict(criterion.id, "met", tail=known["evidence"]["reason"])
    rest = [c for c in without if c.id not in found]
    checked = (verdicts[c.id] for c in job.mission.criteria if c.check is not None)
    if rest and manager.has_judge(job.settings) and dod.all_met(checked):
        found |= _ask_judge(job, rest, files)
    return found


def _holds(evidence: dict[str, Any], files: dict[str, str], commit: str) -> bool:
    if evidence["kind"] == "accepted":
        return bool(evidence["commit"] == commit)
    return all(files.get(quote["path"]) == quote["blob"] for quote in evidence["quotes"])


def _ask_judge(job: Job, criteria: list[Criterion], files: dict[str, str]) -> dict[str, Verdict]:
    memory, found = job.memory, {}

    def read(path: str) -> str | None:
        try:
            return job.repo.git("cat-file", "blob", files[path]).decode() if path in files else None
        except UnicodeDecodeError:
            return None

    if not waiting.may_ask(memory, "judge") or budget.reached(memory, job.mission.limits, None, begun=True):
        return {}
    evidence = judge.Evidence(job.repo.diff(memory["base"], memory["commit"]), sorted(files), read)
    models, left = manager.models(tiers.JUDGING, job.settings), budget.left_usd(memory, job.mission.limits)
    machine.require_room(job.folder)  # what is bought has to be written down
    with proc.interruptible():  # an answer may take minutes
        ruling = judge.judge(job.mission, criteria, evidence, job.settings, models, memory["answers"], left)
    failed = ruling.unreachable or ruling.useless
    waiting.note_asked(memory, "judge", not failed, ruling.until, ruling.useless and not ruling.unreachable)
    progress.note_ruling(memory, ruling, [criterion.id for criterion in criteria])
    job.save()  # it is paid for, and setup and all checks may come next
    for judgement in ruling.judgements:
        log.info(f"judged {judgement.id}: {'met' if judgement.met else 'not met'}: {judgement.reason}")
        dod.keep_reason(judgement.id, job.checks, judgement.reason)
        if judgement.met:
            quotes = [{"path": q.path, "blob": files[q.path], "text": q.text} for q in judgement.quotes]
            ledger.note_evidence(memory, judgement.id, "judged", ruling.model, judgement.reason, quotes)
        verdict = "met" if judgement.met else "unmet"
        found[judgement.id] = Verdict(judgement.id, verdict, tail=judgement.reason)
    return found


# --------------------------------------------------------------------------------------------------------
# In a clean checkout
# --------------------------------------------------------------------------------------------------------


def _confirmed(job: Job, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """What a clean checkout says: when all are met, and of those that it contradicted before."""
    memory = job.memory
    checked = [c for c in job.mission.criteria if c.check is not None]
    everything = dod.all_met(verdicts.values())
    doubtful = [c for c in checked if memory["criteria"][c.id]["unconfirmed"] and verdicts[c.id].verdict == "met"]
    memory["confirmed"] = None
    if not (wanted := checked if everything else doubtful):
        return {}
    commit, begun = memory["commit"], time.monotonic()
    if job.mission.confirm == "tree" or not job.settings.repository.auto_commit:
        if everything:
            log.warn("all criteria are met in the work tree; no clean checkout was made to confirm it")
            ledger.note_confirmed(memory, "tree", 0.0, None)
        return {}
    log.info(f"confirming {len(wanted)} criteria in a clean checkout of {commit[:12] or 'nothing'}")
    with _clean(job, commit) as clean:
        place = replace(_place(job, clean.root), why=_why(job, commit), apart=job.root)
        setup, found = dod.confirm(job.mission, wanted, place, clean)
    for id in (id for id, verdict in found.items() if verdict.verdict != "met"):
        log.warn(f"criterion {id} passes in the work tree, but not in a clean checkout of {commit[:12]}")
    if everything and dod.all_met(found.values()):
        ledger.note_confirmed(memory, "checkout", time.monotonic() - begun, setup)
    return found


@contextmanager
def _clean(job: Job, commit: str) -> Iterator[checkout.Clean]:
    """A clean checkout that is removed afterwards; the next start removes it where this run is killed."""
    folder = checkout.scratch(job.marker, "clean")
    try:
        yield checkout.Clean(job.repo, commit, folder)
    finally:
        checkout.delete(folder)


def _why(job: Job, commit: str) -> str:
    """What may be the reason that a check passes in the work tree alone."""
    absent = {**job.repo.left_behind(), **dict(line.split(": ", 1) for line in job.memory["left_out"])}
    marked = (line.split(" ", 1) for line in job.repo.names("ls-files", "-v", "-z"))  # S and small letters are skipped
    skipped = [name for letter, name in marked if letter == "S" or letter.islower()]
    absent |= {name: "git is told to skip it" for name in skipped if os.path.lexists(job.root / name)}
    names = "; ".join(f"{name} ({reason})" for name, reason in [*absent.items()][:NAMED])
    more = f"; and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
    lacking = f" What the work tree has and the commit has not: {names}{more}." if names else ""
    return (
        f"\n[It passes in the work tree, but not in a clean checkout of commit {commit[:12]}, where nothing is but"
        f" committed files and what `setup` makes, and where no other check has run before it.{lacking}]"
    )
