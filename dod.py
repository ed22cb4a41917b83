"""Definition of Done: run the checks and say what they prove.

    verdicts = dod.check(mission, root, folder, marker)

A check is a shell command of the mission; exit code 0 is the only thing that closes its criterion. It runs in the
repository's root, without the API keys, under limits, with its output in a file of its own.

What is not covered: a check runs what the worker wrote, with the rights of the user who started the kit.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import log
import proc
import processes
import surroundings
from mission import Criterion, Mission

MAX_OUTPUT = 10_000_000  # bytes; a check that prints more is ended
TAIL = 4000  # characters of output that are shown and handed on
COMPARED = TAIL // 2  # characters by which two failures are compared, see `failure`
NAMED = 3  # processes that a check left behind and that its output names
LEFT = "ended what it left behind"
VARIABLE = re.compile(  # what differs from run to run: that, paths, UUIDs, addresses and digests, numbers and times
    rf"\[{LEFT}[^\n]*"
    r"|(/[\w.+-]+)+/?|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|0x[0-9a-f]+|\b[0-9a-f]{7,}\b"
    r"|\d+([.,:]\d+)*(e[+-]?\d+)?",
    re.I,
)
CANNOT_RUN = (126, 127)  # the shell's exit codes for "not executable" and "not found"


@dataclass(frozen=True)
class Verdict:
    """What one check proved."""

    id: str
    """The criterion."""
    verdict: str
    """met, unmet, broken (the command cannot run), timeout, or unjudged (nothing was run)."""
    code: int | None = None
    """Exit code of the command."""
    seconds: float = 0.0
    """How long it took."""
    digest: str = ""
    """SHA-256 of the output."""
    tail: str = ""
    """The end of the output, masked; for a verdict without output, the reason."""


def check(mission: Mission, root: Path, folder: Path, marker: str) -> dict[str, Verdict]:
    """Run every check of the mission in `root` and return the verdict of each criterion, in mission order.

    folder: where the whole outputs go, one file per criterion. marker: value of CCO_RUN for the commands.
    Raises proc.Interrupted when a signal arrived meanwhile.
    """
    found: dict[str, Verdict] = {}
    for criterion in (c for c in mission.criteria if c.when == "always"):
        found[criterion.id] = _judge(criterion, root, folder, marker)
    rest_met = all_met(found.values())
    for criterion in (c for c in mission.criteria if c.when == "last"):
        found[criterion.id] = (
            _judge(criterion, root, folder, marker)
            if rest_met
            else Verdict(criterion.id, "unjudged", tail="runs when all others are met")
        )
    return {criterion.id: found[criterion.id] for criterion in mission.criteria}


def all_met(verdicts: Iterable[Verdict]) -> bool:
    """Whether every one of them is met; nothing else counts."""
    return all(verdict.verdict == "met" for verdict in verdicts)


def last_output(criterion: str, folder: Path) -> str:
    """The end of what a criterion's check printed when it ran last, masked; "" if it never ran."""
    try:
        with open(folder / f"{criterion}.log", "rb") as file:
            return proc.tail(file, TAIL)
    except FileNotFoundError:
        return ""


def failure(verdict: Verdict) -> str:
    """What identifies a failure from one run to the next: digest of the output without numbers, paths and times."""
    if verdict.verdict == "met":
        return ""
    text = VARIABLE.sub("_", verdict.tail)[-COMPARED:]  # longer numbers let the tail begin at a later line
    return hashlib.sha256(f"{verdict.verdict} {verdict.code} {text}".encode("utf-8", "replace")).hexdigest()[:16]


def _judge(criterion: Criterion, root: Path, folder: Path, marker: str) -> Verdict:
    if criterion.check is None:
        return Verdict(criterion.id, "unjudged", tail="it has no check, so nothing here can prove it")
    for attempt in range(criterion.retries + 1):
        log.live(f"check {criterion.id}: {criterion.check}")
        verdict = _run(criterion, criterion.check, root, folder, marker)
        log.debug(
            f"check {criterion.id}: {verdict.verdict}", code=verdict.code, seconds=verdict.seconds, attempt=attempt
        )
        if verdict.verdict == "met":
            break
    return verdict


def _run(criterion: Criterion, command: str, root: Path, folder: Path, marker: str) -> Verdict:
    env = {**surroundings.clean_env(os.environ), processes.MARKER: marker}
    shell = (
        [bash, "-o", "pipefail"]
        if (bash := surroundings.find("bash", root))
        else [surroundings.find("sh", root) or "sh"]
    )
    limits = proc.Limits(criterion.timeout, max_output=MAX_OUTPUT)
    with tempfile.TemporaryFile() as output:
        result = proc.run([*shell, "-c", command], cwd=root, env=env, output=output, limits=limits)
        if result.stopped == "interrupted":
            raise proc.Interrupted
        digest = _keep(output, _note(result), folder / f"{criterion.id}.log")
    tail = last_output(criterion.id, folder)
    return Verdict(criterion.id, _verdict(result), result.code, round(result.seconds, 2), digest, tail)


def _verdict(result: proc.Result) -> str:
    if result.stopped == "timeout":
        return "timeout"
    if result.error or result.code in CANNOT_RUN:
        return "broken"
    return "met" if result.code == 0 and not result.stopped and result.size <= MAX_OUTPUT else "unmet"


def _note(result: proc.Result) -> str:
    """What the output cannot say."""
    left = " ".join("; ".join(sorted(result.swept)[:NAMED]).split())
    notes = [
        f"ended after {result.seconds:.0f} s: it took too long" if result.stopped == "timeout" else "",
        f"it printed more than {MAX_OUTPUT} bytes" if result.size > MAX_OUTPUT else "",
        f"could not be started: {result.error}" if result.error else "",
        f"{LEFT} ({len(result.swept)}): {left}" if left else "",
    ]
    return "".join(f"\n[{note}]" for note in notes if note)


def _keep(output: IO[bytes], note: str, path: Path) -> str:
    """Write the output, masked, beside the others; its digest."""
    data = proc.read(output, 0, MAX_OUTPUT)
    with open(path, "w", encoding="utf-8", errors="replace", opener=log.private) as file:
        file.write(log.mask(data.decode("utf-8", "replace")) + note)
    return hashlib.sha256(data).hexdigest()
