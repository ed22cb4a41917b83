"""The referee out of the worker's reach: mission, settings, kit, state and protected files, sealed and compared.

    referee.inspect(job)        at the start: seal what is there, or compare what a killed run left
    referee.compare(job)        after a session: changes are put back, remembered and named
    referee.walls(job, root)    what the checks may touch

Mission and settings are not put back: what was accepted counts, whatever the files say, and a person's edit is
adopted by a person's word. What git is told to remember under refs/cco/MISSION/ outlives a state that is lost.

What is not covered: a worker without a sandbox that knows the kit can forge what git remembers, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import ledger
import log
import milestones
import sandbox
import seal
from edits import digest, is_running
from exits import PERSON, Stop
from job import Job

WORD = "then: make start ACCEPT=1 (--accept)"
WITNESS = "accepted"  # name of what git remembers of a mission


def sealed_paths(job: Job) -> tuple[Path, ...]:
    """What the worker may not write: the referee, git's own files, the kit's state, what the mission protects."""
    protected = (path for glob in job.mission.protect for path in job.root.glob(seal.STARS.sub("*", glob)))
    own = (*job.referee, job.root / ".git", job.repo.folder(), job.folder, *job.repo.submodules())
    # .env is sealed also where there is none: whoever makes one would bring keys and settings of his own.
    paths = {path for path in (*own, *protected) if path.exists() or path.name == ".env"}
    return tuple(sorted(path for path in paths if not paths.intersection(path.parents)))  # a folder holds its files


def walls(job: Job, root: Path) -> sandbox.Walls | None:
    """The walls for checks in a checkout; None where there are none. In a clean one the work tree is not to be seen."""
    checks = job.settings.checks
    if not checks.sandbox or job.no_walls:
        return None
    hidden = [job.folder, job.config, job.root / ".env"]
    sealed = [path for path in sealed_paths(job) if not {path, *path.parents} & {*hidden}]
    if root != job.root:
        git = job.repo.folder()
        hidden = [*hidden, job.root, git]
        sealed = [git / "objects", git / "lfs", *(module / "objects" for module in job.repo.module_folders())]
    writable = tuple(Path(os.path.expanduser(place)) for place in checks.writable)
    return sandbox.Walls(root, tuple(sealed), tuple(hidden), writable, checks.network)


# --------------------------------------------------------------------------------------------------------
# Sealing and comparing
# --------------------------------------------------------------------------------------------------------


def inspect(job: Job) -> None:
    """Before the first phase of a run: compare with what was accepted, or accept what is there now.

    Raises Stop where that is lost, repo.GitError, OSError.
    """
    memory = job.memory
    unwatched = is_running(memory) or (memory["plan"] is not None and memory["current_phase"] == "validation")
    if job.accept or not (unwatched or job.lost):
        memory["sealed"] = job.seal.take()  # nothing ran since it was compared, so what is there is a person's
    elif job.seal.load(memory["sealed"] or job.lost):
        memory["sealed"] = memory["sealed"] or job.lost
        compare(job, "since the last session began (if that was you: make start ACCEPT=1)")
    else:
        raise Stop(PERSON, f"what was sealed is lost. Look at what the mission protects, and at the kit; {WORD}")
    accepted = {"mission": memory["mission"]["digest"], "settings": memory["settings"]["digest"]}
    text = json.dumps({**accepted, "sealed": memory["sealed"]}).encode()
    job.repo.remember(f"{job.mission.id}/sealed", memory["sealed"])
    job.repo.remember(f"{job.mission.id}/{WITNESS}", job.repo.keep(text))
    job.save()


def require_known(job: Job) -> None:
    """Raise Stop when there is no memory of a mission that was begun, and mission or settings are not as accepted."""
    known = job.repo.remembered(f"{job.mission.id}/{WITNESS}")
    text = job.repo.git("cat-file", "blob", known, may_fail=True) if known else b""
    if not text or job.accept:
        return
    accepted = json.loads(text)
    if (accepted["mission"], accepted["settings"]) != (job.mission.digest, job.settings_digest()):
        lost = f"the state of this mission is lost, and {job.mission.path} or the settings are not what was accepted"
        raise Stop(PERSON, f"{lost} before. Look at them; {WORD}")
    job.lost = accepted["sealed"]


def compare(job: Job, when: str = "by the worker") -> None:
    """Put back what a session changed of the referee, remember it and name it. Raises repo.GitError, OSError."""
    if job.state_was_changed():
        log.error(f"the state changed {when}: {_name(job, job.file)}. It is written again from memory.")
        _note(job, [seal.Change(job.file, "changed")])
    for name, paths, found in (
        ("mission", [job.mission.path], digest(job.mission.path)),
        ("settings", [job.config, job.root / ".env"], job.settings_digest()),
    ):
        known = job.memory[name]
        if found not in (known["digest"], known["suspect"], known.get("unusable")):
            pairs = zip(paths, known["digest"].split(" "), found.split(" "), strict=True)
            changed = [path for path, before, now in pairs if before != now]
            named = ", ".join(_name(job, path) for path in changed)
            during = when if when.startswith("while") else "while the worker ran"
            log.error(f"the {name} changed {during}: {named}. Not adopted: what was accepted counts.")
            known["suspect"] = found
            _note(job, [seal.Change(path, "changed") for path in changed])
    _restore(job, when)


def broken(job: Job) -> list[str]:
    """Put back what a check changed of the referee; what it was. Raises repo.GitError, OSError."""
    return _restore(job, "by a check")


def _restore(job: Job, by: str) -> list[str]:
    changes = job.seal.changes()
    kept = job.folder / "kept" / f"{job.memory.get('iterations', 0):04d}"
    done = [change for change in job.seal.put_back(changes, kept) if not change.is_cache]
    for change in done:
        put_back = "put back" if change.path.is_relative_to(job.root) else "left as it is, outside of the repository"
        where = f"; the changed version: {change.kept}" if change.kept else ""
        log.error(f"{change.what} {by}: {_name(job, change.path)}, which is protected; {put_back}{where}")
    if job.memory:
        _note(job, done)
    return [f"{_name(job, change.path)} ({change.what})" for change in done]


def _note(job: Job, changes: Sequence[seal.Change]) -> None:
    if changes:
        named = "\n".join(f"{_name(job, change.path)} ({change.what})" for change in changes)
        milestones.send(job, "tampering", f"what is protected was changed, and counts as it was before:\n{named}")
    ledger.note_tampering(job.memory, [(_name(job, c.path), c.what, c.kept) for c in changes])


def _name(job: Job, path: Path) -> str:
    return str(path.relative_to(job.root) if path.is_relative_to(job.root) else path)
