"""Definition of Done: run the checks and say what they prove.

    verdicts = dod.check(mission.criteria, place)
    setup, verdicts = dod.confirm(mission, criteria, place, clean)      in a clean checkout, one by one

A check is a shell command of the mission; exit code 0 is the only thing that closes its criterion. It runs in the
root of a checkout, without the API keys, under limits, within walls where there are some, with its output in a file
of its own. Several run side by side without threads; nothing of one is left when the next begins.

What is not covered: without bubblewrap a check runs what the worker wrote with the rights of whoever started the kit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import checkout
import log
import machine
import proc
import processes
import sandbox
import surroundings
from mission import Criterion, Mission

MAX_OUTPUT = 10_000_000  # bytes; a check that prints more is ended
TAIL = 4000  # characters of output that are shown and handed on
COMPARED = TAIL // 2  # characters by which two failures are compared, see `failure`
NAMED = 3  # processes that a check left behind, or files that it changed, that its output names
STREAK = 3  # times in a row that a flaky check has to pass
SETUP = "setup"  # what the output of the mission's setup command is called
SETUP_TIME = 3600.0  # seconds that it may take
LEFT = "ended what it left behind"
VARIABLE = re.compile(  # what differs from run to run: that, paths, UUIDs, addresses and digests, numbers and times
    rf"\[{LEFT}[^\n]*"
    r"|(/[\w.+-]+)+/?|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|0x[0-9a-f]+|\b[0-9a-f]{7,}\b"
    r"|\d+([.,:]\d+)*(e[+-]?\d+)?",
    re.I,
)
CANNOT_RUN = (126, 127)  # the shell's exit codes for "not executable" and "not found"
CANNOT_FORK = 254  # bash's exit code when it can start no process
WALLS_FAILED = b"bwrap: "  # how bubblewrap's own complaints begin
BEYOND = {"cpu": "processor time", "memory": "memory", "processes": "processes"}


@dataclass(frozen=True)
class Verdict:
    """What one check proved."""

    id: str
    """The criterion."""
    verdict: str
    """met, unmet, broken (the command cannot run), timeout, flaky, tampered, or unjudged (nothing was run)."""
    code: int | None = None
    """Exit code of the command."""
    seconds: float = 0.0
    """How long it took."""
    digest: str = ""
    """SHA-256 of the output."""
    tail: str = ""
    """The end of the output, masked; for a verdict without output, the reason."""
    runs: int = 1
    """How often the command was run for this verdict."""
    flaky: bool = False
    """Whether these runs differed although nothing had changed."""
    where: str = "tree"
    """"tree", or "checkout" for a clean one."""


@dataclass(frozen=True)
class Place:
    """Where checks run, and within which walls."""

    root: Path
    """The checkout."""
    outputs: Path
    """Folder of the whole outputs, one file per criterion."""
    marker: str
    """Value of CCO_RUN for the commands."""
    settings: Any
    """The settings' section `checks`."""
    walls: sandbox.Walls | None = None
    """None where there are none."""
    broken: Callable[[], Sequence[str]] = tuple
    """Puts the referee back as it was and says what had been changed of it."""
    suspects: frozenset[str] = frozenset()
    """Criteria whose checks were seen to be flaky."""
    twice: frozenset[str] = frozenset()
    """Criteria that were not met before: their checks have to pass twice, so that luck is noticed."""
    why: str = ""
    """What is added to the output of a check that fails here."""
    apart: Path | None = None
    """A work tree that the environment of the commands must not lead to."""
    again: Callable[[], object] = bool
    """What is done before a command is run once more."""


def check(criteria: Sequence[Criterion], place: Place, everything: bool = False) -> dict[str, Verdict]:
    """Run every check and return the verdict of each criterion, in the given order.

    everything: also what runs last, whatever the others say. Raises proc.Interrupted when a signal arrived meanwhile,
    OSError for what the machine lacks.
    """
    now = [c for c in criteria if everything or c.when == "always"]
    found = _run_all(now, place)
    last = [c for c in criteria if c not in now]
    found |= (
        _run_all(last, place)
        if all_met(found[c.id] for c in now if c.check is not None)
        else {c.id: Verdict(c.id, "unjudged", tail="runs when all others are met") for c in last}
    )
    return {criterion.id: found[criterion.id] for criterion in criteria}


def confirm(
    mission: Mission, criteria: Sequence[Criterion], place: Place, clean: checkout.Clean
) -> tuple[Verdict | None, dict[str, Verdict]]:
    """Run `setup` and then the checks in a clean checkout, each on it as setup left it.

    Returns what setup proved (None: there is none) and the verdict of each criterion that was given.
    Raises proc.Interrupted, repo.GitError.
    """
    setup = _set_up(mission, place)
    if setup and setup.verdict != "met":
        said = f"`setup` fails ({setup.verdict}), so nothing can be checked there.\n{setup.tail}"
        return setup, {c.id: _unproven(c, said, place) for c in criteria}
    clean.keep()

    def reset() -> None:
        if not clean.reset():  # what setup had made was changed
            clean.reset(everything=True)
            _set_up(mission, place)
            clean.keep()

    found: dict[str, Verdict] = {}
    for criterion in criteria:
        # A second look tells a check that fails there from one that fails now and then.
        found |= _run_all([replace(criterion, retries=max(1, criterion.retries))], replace(place, again=reset))
        reset()
    return setup, {id: replace(verdict, where="checkout") for id, verdict in found.items()}


def _set_up(mission: Mission, place: Place) -> Verdict | None:
    if not mission.setup:
        return None
    step = replace(mission.criteria[0], id=SETUP, check=mission.setup, timeout=SETUP_TIME, retries=0)
    return _run_all([step], replace(place, suspects=frozenset()))[SETUP]


def proves_nothing(criterion: Criterion, place: Place, referee: Sequence[tuple[Path, str]]) -> str:
    """Why a check that passes proves nothing: it does so without the repository; "" when it does prove something.

    place: its root is an empty folder, which is used. referee: files of the mission and the kit, and where they lie in
    a checkout. Raises proc.Interrupted.
    """
    once = replace(criterion, retries=0)
    nothing, texts = (_moved(place, place.root / name) for name in ("nothing", "texts"))
    nothing.root.mkdir()
    if _run_all([once], nothing)[criterion.id].verdict == "met":
        return "it passes in an empty folder too"
    for source, name in referee:
        target = texts.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, target)
    if referee and _run_all([once], texts)[criterion.id].verdict == "met":
        return "it passes where there is nothing but the mission and the kit, so it finds what they say themselves"
    return ""


def _moved(place: Place, root: Path) -> Place:
    return replace(place, root=root, walls=place.walls and replace(place.walls, root=root))


def all_met(verdicts: Iterable[Verdict]) -> bool:
    """Whether every one of them is met; nothing else counts."""
    return all(verdict.verdict == "met" for verdict in verdicts)


def last_output(criterion: str, folder: Path) -> str:
    """The end of what a criterion's check printed when it ran last, masked; "" if it never ran."""
    path = folder / f"{criterion}.log"
    if path.is_symlink() or not path.is_file():
        return ""
    with open(path, "rb") as file:
        return proc.tail(file, TAIL)


def keep_reason(criterion: str, folder: Path, reason: str) -> None:
    """Write why a verdict was given that no command printed, where `last_output` finds it."""
    _write(folder / f"{criterion}.log", log.mask(reason))


def _write(path: Path, text: str) -> None:
    """Write a file anew: what a worker without a sandbox put in its place is not written through."""
    checkout.delete(path)
    with open(path, "x", encoding="utf-8", errors="replace", opener=log.private) as file:
        file.write(text)


def failure(verdict: Verdict) -> str:
    """What identifies a failure from one run to the next: digest of the output without numbers, paths and times."""
    if verdict.verdict == "met":
        return ""
    text = VARIABLE.sub("_", verdict.tail)[-COMPARED:]  # longer numbers let the tail begin at a later line
    return hashlib.sha256(f"{verdict.verdict} {verdict.code} {text}".encode("utf-8", "replace")).hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------
# Side by side
# --------------------------------------------------------------------------------------------------------


def _run_all(criteria: Sequence[Criterion], place: Place) -> dict[str, Verdict]:
    """Run the checks, as many at once as the settings say; none beside one that wants to be alone."""
    unjudged = (c for c in criteria if c.check is None)
    found = {c.id: Verdict(c.id, "unjudged", tail="it has no check") for c in unjudged}
    waiting, trials = [c for c in criteria if c.check is not None], list[_Trial]()
    try:
        while waiting or trials:
            while waiting and len(trials) < place.settings.jobs and _may_run(waiting[0], trials):
                trials.append(_Trial(waiting.pop(0), place))
            log.live("; ".join(f"check {trial.criterion.id}: {trial.criterion.check}" for trial in trials))
            ended = [trial for trial in trials if trial.over(proc.STEP / len(trials))]
            if ended and (changed := place.broken()):
                for trial in trials:  # whichever of those that ran now did it
                    trial.tampered = changed
            for trial in ended:
                if trial.is_certain():
                    trials.remove(trial)
                    found[trial.criterion.id] = trial.verdict()
                else:
                    trial.start()
    finally:  # also when a signal has arrived
        for trial in trials:
            trial.end()
    return {c.id: found[c.id] for c in criteria}


def _may_run(criterion: Criterion, trials: Sequence[_Trial]) -> bool:
    return not trials or not (criterion.exclusive or any(trial.criterion.exclusive for trial in trials))


class _Trial:
    """One check, run until its verdict is certain: again after a failure, and three times once it was flaky."""

    def __init__(self, criterion: Criterion, place: Place):
        self.criterion, self.place = criterion, place
        self.streak = self.fails = self.runs = 0
        self.passed = False
        self.tampered: Sequence[str] = ()
        self.seconds = 0.0
        self.last = Verdict(criterion.id, "unjudged")
        self.start()

    def start(self) -> None:
        """Run the check, once more if it has run already."""
        if self.runs:
            self.place.again()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.scratch = checkout.scratch(self.place.marker, "check")
        argv, env = _command(self.criterion.check or "", self.place, self.scratch)
        settings = self.place.settings
        limits = proc.Limits(
            self.criterion.timeout,
            max_output=MAX_OUTPUT,
            cpu=settings.cpu,
            memory=settings.memory,
            processes=settings.processes,
        )
        part = self.criterion.id if settings.jobs > 1 else ""
        self.running = proc.Running(argv, self.place.root, env, self.output, limits, part=part)

    def over(self, seconds: float) -> bool:
        """Wait up to so many seconds for the end of this run; whether it came. Raises proc.Interrupted."""
        if not self.running.over(seconds):
            return False
        result = self.running.close()
        if result.stopped == "interrupted":
            raise proc.Interrupted
        self._take(result)
        return True

    def is_certain(self) -> bool:
        """Whether it has run often enough."""
        return self.streak >= self._needed() or self.fails > self.criterion.retries

    def verdict(self) -> Verdict:
        """What all runs together prove."""
        found = replace(self.last, runs=self.runs, seconds=round(self.seconds, 2), flaky=self.fails > 0 and self.passed)
        if self.tampered:
            names = ", ".join(self.tampered[:NAMED])
            return replace(found, verdict="tampered", tail=f"{found.tail}\n[what is protected was changed: {names}]")
        return replace(found, verdict="flaky") if found.flaky and found.verdict != "met" else found

    def end(self) -> None:
        """End it where it is."""
        self.running.close()
        self._tidy()

    def _needed(self) -> int:
        """How often in a row it has to pass."""
        if self.fails or self.criterion.id in self.place.suspects:
            return STREAK
        return 2 if self.criterion.id in self.place.twice else 1

    def _take(self, result: proc.Result) -> None:
        """Count one run."""
        if self.place.walls:
            result.swept = []  # all of it ends with its walls; what was still about to is nobody's daemon
        verdict = _verdict(result, proc.read(self.output, 0, len(WALLS_FAILED)))
        if verdict != "met":
            checkout.delete(self.scratch)  # with which it may have filled the disk itself
            _require_machine(verdict, result, self.output, self.place)
        why = self.place.why if verdict != "met" else ""
        if self.place.outputs.parents[2].is_dir():  # the repository, where somebody may have removed what is ours
            self.place.outputs.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = _keep(self.output, _note(result, self.output) + why, self.place.outputs / f"{self.criterion.id}.log")
        self._tidy()
        tail = last_output(self.criterion.id, self.place.outputs)
        self.last = Verdict(self.criterion.id, verdict, result.code, digest=digest, tail=tail)
        self.runs += 1
        self.seconds += result.seconds
        self.streak, self.fails = (self.streak + 1, self.fails) if verdict == "met" else (0, self.fails + 1)
        self.passed |= verdict == "met"
        log.debug(f"check {self.criterion.id}: {verdict}", code=result.code, seconds=result.seconds, run=self.runs)

    def _tidy(self) -> None:
        self.output.close()
        checkout.delete(self.scratch)


def _command(command: str, place: Place, scratch: Path) -> tuple[list[str], dict[str, str]]:
    env = {**surroundings.clean_env(os.environ, apart=place.apart), processes.MARKER: place.marker}
    bash = surroundings.find("bash", place.root)
    shell = [bash, "-o", "pipefail"] if bash else [surroundings.find("sh", place.root) or "sh"]
    argv = sandbox.capped(shell, command, place.settings.file_size)
    return (sandbox.command(argv, place.walls, scratch), {**env, "TMPDIR": "/tmp"}) if place.walls else (argv, env)


# --------------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------------


def _verdict(result: proc.Result, beginning: bytes) -> str:
    if result.stopped == "timeout":
        return "timeout"
    if result.error or result.code in CANNOT_RUN or (result.code == 1 and beginning == WALLS_FAILED):
        return "broken"
    return "met" if result.code == 0 and not result.stopped and result.size <= MAX_OUTPUT else "unmet"


def _require_machine(verdict: str, result: proc.Result, output: IO[bytes], place: Place) -> None:
    """Raise OSError where a check may have failed for what the machine lacks: that says nothing about the work."""
    if verdict == "broken" or result.code == CANNOT_FORK:
        said = "" if result.error else proc.tail(output, TAIL)
        if lack := machine.lack(result.errno, said, machine.SCARCE):
            raise OSError(lack.errno, lack.strerror, str(place.root))
    machine.require_room(tempfile.gettempdir(), place.outputs, place.root)


def _unproven(criterion: Criterion, reason: str, place: Place) -> Verdict:
    keep_reason(criterion.id, place.outputs, reason)
    return Verdict(criterion.id, "unmet", tail=reason[-TAIL:], where="checkout")


def _too_large(result: proc.Result, output: IO[bytes]) -> bool:
    """Whether a file would have become too large: some are killed then, others told."""
    killed = result.code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)
    return killed or (bool(result.code) and os.strerror(errno.EFBIG) in proc.tail(output, TAIL))


def _note(result: proc.Result, output: IO[bytes]) -> str:
    """What the output cannot say."""
    left = " ".join("; ".join(sorted(result.swept)[:NAMED]).split())
    notes = [
        f"ended after {result.seconds:.0f} s: it took too long" if result.stopped == "timeout" else "",
        f"ended: it used more {BEYOND[result.stopped]} than checks.{result.stopped} allows"
        if result.stopped in BEYOND
        else "",
        "it wanted to write a larger file than checks.file_size allows" if _too_large(result, output) else "",
        f"it printed more than {MAX_OUTPUT} bytes" if result.size > MAX_OUTPUT else "",
        f"could not be started: {result.error}" if result.error else "",
        f"{LEFT} ({len(result.swept)}): {left}" if left else "",
    ]
    return "".join(f"\n[{note}]" for note in notes if note)


def _keep(output: IO[bytes], note: str, path: Path) -> str:
    """Write the output, masked, beside the others; its digest."""
    data = proc.read(output, 0, MAX_OUTPUT)
    _write(path, log.mask(data.decode("utf-8", "replace")) + note)
    return hashlib.sha256(data).hexdigest()
