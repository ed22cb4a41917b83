"""Definition of Done: run the checks, and say what their results prove.

    verdicts = dod.check(mission.criteria, place, state.criteria)
    setup, verdicts = dod.confirm(mission, mission.criteria, place, checkout, state.criteria, repository, {})

A check is a shell command of the mission; exit code 0 means met, and nothing else closes its criterion. It runs in the
root of a checkout, without secrets, under limits, in the sandbox where there is one, with its output in a file of its
own. Limitations: checks need bash; without bubblewrap a check has the rights of the user.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import log
import proc
import prompt
import repo
import sandbox
from mission import Criterion, Mission
from state import CriterionState, Verdict

MAX_OUTPUT = 10_000_000  # bytes; a check that prints more is ended
TAIL = 4000  # characters of output that are shown and handed on
COMPARED = TAIL // 2  # characters by which two failures are compared: with longer numbers the tail begins later
NAMED = 8  # paths, and reasons for them, that a failed confirmation names
LEFT = 3  # processes that a check left behind, or protected files that it changed, that its output names
STREAK = 3  # passes in a row that a flaky check needs
SETUP, SETUP_TIME = "setup", 3600.0  # name of the setup command's output, and seconds that it may take
STEP = 0.2  # seconds between two looks at running checks
WAY_OUT = "Let it fail until the work is done. If it guards what must stay as it is, say so: guard: true"
CONVERTS = r"^filter\.|^core\.(autocrlf|eol)$"  # settings that decide what a checked out file contains
CLONED = ("refs/heads/", "refs/tags/", "refs/remotes/", "refs/cco/")  # refs of the checkout, and our own
LOCK_FILES = {"package-lock.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "poetry.lock", "uv.lock", "Pipfile.lock"}
LOCK_FILES |= {"requirements.txt", "Gemfile.lock", "composer.lock"}  # without what these name a checkout is not ready

Reading = tuple[str, ...]  # options of bash by which a command is read
Records = Mapping[str, CriterionState]  # what the state says of each criterion
STRICT: Reading = ("-e", "-o", "pipefail")  # as CI systems run it
UNCUT: Reading = ("-e",)  # instead of it, once a reader like `| head` or `| grep -q` cut a writer off
TYPED: Reading = ()
CUT_OFF = (128 + signal.SIGPIPE, -signal.SIGPIPE)  # exit codes of a writer that was cut off
CANNOT_RUN = (126, 127)  # the shell's for what is not executable, and not found
TOO_LARGE = (128 + signal.SIGXFSZ, -signal.SIGXFSZ)  # of what writes a larger file than it may
ONE_READING = re.compile(r"[^|!;&\n]*")  # a command without these means the same in both
DIFFER = "its two readings differ"
# Says which line ended bash -e. It stands on the command's own first line, so that bash's line numbers stay right.
TRAP = (
    "set -E; trap 'cco=${PIPESTATUS[*]}; case $- in *e*)"
    ' echo "[bash -e stopped at line $LINENO (exit code $cco): $BASH_COMMAND]" >&2;; esac\' ERR; '
)


@dataclass(frozen=True)
class Place:
    """Where checks run, and what they may touch."""

    root: Path  # the checkout
    outputs: Path  # folder of the outputs, one file a criterion
    marker: str  # value of CCO_RUN for the commands
    settings: Any  # the section `checks` of the settings
    sandbox: sandbox.Sandbox | None = None
    restore: Callable[[], Sequence[str]] = tuple  # restores protected files and names those that were changed
    both: bool = False  # also what was met before passes in both readings: where no clean checkout follows
    work_tree: Path | None = None  # the repository, where the root is another place: nothing may lead there
    before: Callable[[], None] | None = None  # called before each run of a check


def check(
    criteria: Sequence[Criterion], place: Place, records: Records, everything: bool = False
) -> dict[str, Verdict]:
    """Run every check and return the verdicts in the given order. everything: also what runs last, in any case.

    Raises proc.Interrupted, OSError for what the machine lacks.
    """
    proc.require_space(Path(tempfile.gettempdir()), place.root)
    first = [criterion for criterion in criteria if everything or criterion.when == "always"]
    last = [criterion for criterion in criteria if criterion not in first]
    verdicts = _run(first, place, records)
    if all_met(verdicts[criterion.id] for criterion in first if criterion.check is not None):
        verdicts |= _run(last, place, records)
    else:
        verdicts |= {criterion.id: _unjudged(criterion, "runs when all others are met") for criterion in last}
    return {criterion.id: verdicts[criterion.id] for criterion in criteria}


def confirm(
    mission: Mission,
    criteria: Sequence[Criterion],
    place: Place,
    checkout: repo.Checkout,
    records: Records,
    repository: repo.Repo,
    not_committed: Mapping[str, str],
) -> tuple[Verdict | None, dict[str, Verdict]]:
    """Run `setup` in a clean checkout, and each check, in both readings, on it as setup left it.

    not_committed: path -> why. Returns the verdict of setup (None: there is none) and those of the criteria; without
    criteria only setup runs. Raises proc.Interrupted, repo.GitError, OSError.
    """
    proc.require_space(checkout.root)
    shown, restore = [*checkout.sources, *checkout.protected.paths()], place.restore
    place = _away(place, checkout.root, (repository.root, repository.folder()), shown)
    place = replace(place, restore=lambda: [*restore(), *checkout.restore()])  # here and in the work tree
    setup, reason = _set_up(mission, place), ""
    if checkout.differing:
        reason = f"protected files are not in the commit as they were accepted: {', '.join(checkout.differing[:NAMED])}"
    if setup and setup.verdict != "met":
        reason = f"`setup` fails ({setup.verdict}), so nothing can be checked there.\n{setup.tail}"
    if reason:
        unmet = Verdict("", "unmet", tail=reason[-TAIL:], failure=prompt.fingerprint(reason), where="checkout")
        for criterion in criteria:
            keep_reason(criterion.id, place.outputs, reason)
        return setup, {criterion.id: replace(unmet, id=criterion.id) for criterion in criteria}
    if not criteria:
        return setup, {}
    checkout.keep()
    # A second look tells a check that fails there from one that fails now and then.
    again = [replace(criterion, retries=max(1, criterion.retries)) for criterion in criteria]
    verdicts = _run(again, replace(place, both=True, before=checkout.reset), records)
    if not all_met(verdicts.values()):
        reason = why(repository, checkout, not_committed)
        verdicts = {id: v if v.verdict == "met" else _noted(v, reason, place) for id, v in verdicts.items()}
    return setup, {id: replace(verdict, where="checkout") for id, verdict in verdicts.items()}


def trivial(
    criteria: Sequence[Criterion],
    place: Place,
    verdicts: Mapping[str, Verdict],
    records: Records,
    texts: Sequence[Path],
) -> dict[str, str]:
    """Say which checks prove nothing, of those that pass and were never seen to fail; the others need no second look.

    texts: the mission and the kit, where they are in the repository. Raises proc.Interrupted, OSError.
    """
    reasons = {}
    for criterion in criteria:
        record = records[criterion.id]
        proven = criterion.guard or record.seen_failing or record.fails_when_empty
        if criterion.check is None or proven or verdicts[criterion.id].verdict != "met":
            continue
        if reason := proves_nothing(criterion, place, texts):
            reasons[criterion.id] = f"{reason}. {WAY_OUT}"
        else:
            record.fails_when_empty = True
            log.warn(f"criterion {criterion.id} is met already; its check was never seen to fail")
    return reasons


def proves_nothing(criterion: Criterion, place: Place, texts: Sequence[Path]) -> str:
    """Say why a check that passes proves nothing: it does so without the repository; "" when it proves something."""
    folder, hidden = repo.scratch(place.marker, "empty"), shutil.ignore_patterns(".*", "__pycache__")
    own = "it passes where there is nothing but the mission and the kit, so it finds what they say themselves"
    try:
        for reason, given in {"it passes in an empty folder too": (), own: texts}.items():
            root = Path(tempfile.mkdtemp(dir=folder))
            for path in given:
                target = root / path.relative_to(place.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=hidden, dirs_exist_ok=True)
                else:
                    shutil.copy(path, target)
            empty = _away(replace(place, outputs=folder / "outputs", restore=tuple), root, (place.root,))
            if all_met(_run([replace(criterion, retries=0)], empty, {}).values()):
                return reason
        return ""
    finally:
        repo.delete(folder)  # whatever rights the check took away


def differences(criteria: Sequence[Criterion], place: Place, verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    """Say of which checks the two readings differ today, and how. verdicts: what `check` said, with no records."""
    differing = {}
    for criterion in criteria:
        verdict = verdicts[criterion.id]
        if not _has_two_readings(criterion) or verdict.verdict in ("met", "unjudged"):
            continue
        if note := re.search(rf"{DIFFER}: [^;\n]*", verdict.tail):
            differing[criterion.id] = note[0]
            continue
        with tempfile.TemporaryDirectory() as folder:  # so that the output of the strict run stays
            typed = replace(criterion, strict=False, retries=0)
            passes = all_met(_run([typed], replace(place, outputs=Path(folder)), {}).values())
        if passes:
            differing[criterion.id] = _difference(TYPED, STRICT, verdict.code)
    return differing


def missing_setup(mission: Mission, files: Iterable[str]) -> str:
    """Say that a mission has no `setup` although its repository plainly needs one; "" otherwise."""
    name = next((name for name in files if name in LOCK_FILES), "")
    if mission.setup or mission.confirm == "tree" or not name:
        return ""
    return (
        f"{name} is here, but the mission has no `setup`: in the clean checkout that confirms the work, what it names"
        " will be missing. Add the command that installs it as `setup`, say `setup: npm ci` (or `confirm: tree`)."
    )


def all_met(verdicts: Iterable[Verdict]) -> bool:
    """Return whether every one of them is met; nothing else counts."""
    return all(verdict.verdict == "met" for verdict in verdicts)


def last_output(id: str, folder: Path) -> str:
    """Return the end of what a criterion's check printed last, masked; "" if it never ran."""
    path = folder / f"{id}.log"
    if path.is_symlink() or not path.is_file():
        return ""
    with open(path, "rb") as file:
        return proc.tail(file, TAIL)


def keep_reason(id: str, folder: Path, text: str) -> None:
    """Write the reason of a verdict that no command printed where `last_output` finds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{id}.log"
    repo.delete(path)  # what a worker without a sandbox put in its place is not written through
    with open(path, "x", encoding="utf-8", errors="replace", opener=log.private) as file:
        file.write(log.mask(text))


# --- Until a verdict is certain ---


def _run(criteria: Sequence[Criterion], place: Place, records: Records, each: bool = False) -> dict[str, Verdict]:
    """Run checks until their verdicts are certain. each: compare protected files after each, also in the sandbox.

    In the sandbox, where each has its processes to itself, as many at once as the settings say; an exclusive one alone.
    There protected files are read-only; where a clean checkout follows, comparing them once in the end is enough.
    """
    verdicts = {c.id: _unjudged(c, "it has no check") for c in criteria if c.check is None}
    waiting, trials = [c for c in criteria if c.check is not None], list[_Trial]()
    jobs = place.settings.jobs if place.sandbox and not (place.before or each) else 1
    once = waiting and not (each or place.both) and place.sandbox and len(place.sandbox.protected) <= sandbox.MOUNTS
    try:
        while waiting or trials:
            while waiting and len(trials) < jobs:
                if trials and (waiting[0].exclusive or trials[0].criterion.exclusive):
                    break
                criterion = waiting.pop(0)
                trials.append(_Trial(criterion, place, _needed(criterion, place, records)))
            now = time.monotonic()
            lines = (f"check {t.criterion.id} ({now - t.running.begun:.0f} s): {t.criterion.check}" for t in trials)
            log.live("; ".join(lines))
            proc.wait_for_any([trial.running for trial in trials], STEP)
            for trial in list(trials):
                if verdict := trial.look():
                    trials.remove(trial)
                    verdicts[verdict.id] = verdict if once else _compared(verdict, place)
    finally:  # also after a signal
        log.live("")
        for trial in trials:
            trial.close()
    if once and place.restore():  # one of them got around that; which one?
        return _run(criteria, place, records, each=True)
    return verdicts


def _needed(criterion: Criterion, place: Place, records: Records) -> int:
    """Return how often in a row a check has to pass: twice where it turns green, for luck and for the other reading."""
    record = records.get(criterion.id)
    if record and record.flaky:
        return STREAK
    proven = record and record.verdict == "met" and record.proof is not None
    return 1 if proven and not place.both else 2


def _steps(criterion: Criterion, place: Place, needed: int) -> Generator[Reading, Verdict, Verdict]:
    """Yield the reading of each run, take what it gave, and return the verdict of them all."""
    strict = STRICT if criterion.strict else TYPED
    runs: list[Verdict] = []
    passes: dict[Reading, list[bool]] = {STRICT: [], UNCUT: [], TYPED: []}
    streak = fails = 0

    def differ() -> bool:
        theirs, typed = passes[strict], passes[TYPED]
        return _has_two_readings(criterion) and bool(theirs and typed) and all(theirs) and not any(typed)

    while streak < needed and fails <= criterion.retries:
        reading = TYPED if streak % 2 else strict
        runs.append((yield reading))
        if reading == STRICT and runs[-1].code in CUT_OFF:
            strict = UNCUT
            continue
        passes[reading].append(runs[-1].verdict == "met")
        streak, fails, needed = (streak + 1, fails, needed) if passes[reading][-1] else (0, fails + 1, STREAK)
    if fails > criterion.retries and differ() and len(passes[TYPED]) == 1:
        runs.append((yield TYPED))  # once is no difference, it may be luck
        passes[TYPED].append(runs[-1].verdict == "met")
    last = replace(runs[-1], runs=len(runs), seconds=round(sum(run.seconds for run in runs), 3))
    if streak >= needed:
        return replace(last, flaky=fails > 0)
    if differ():
        note = _difference(strict, TYPED, last.code)
        last = replace(last, verdict="unmet", failure=f"differ {last.failure}")
        return _noted(last, f"\n[{note}; met takes both]", place)
    results = [passed for reading in passes.values() for passed in reading]
    if not any(results):
        return last
    last = replace(last, verdict="flaky", flaky=True, failure=f"flaky {last.failure}")
    return _noted(last, f"\n[flaky: {results.count(True)} of {len(results)} runs on the same files passed]", place)


def _has_two_readings(criterion: Criterion) -> bool:
    return criterion.strict and criterion.check is not None and not ONE_READING.fullmatch(criterion.check)


def _difference(passing: Reading, failing: Reading, code: int | None) -> str:
    names = [" ".join(("bash", *reading, "-c")) for reading in (passing, failing)]
    return f"{DIFFER}: `{names[0]}` passes, `{names[1]}` ends with exit code {code}"


def _compared(verdict: Verdict, place: Place) -> Verdict:
    """Restore protected files; where one was changed, the verdict is tampered."""
    if not (changed := place.restore()):
        return verdict
    verdict = replace(verdict, verdict="tampered", failure=f"tampered {verdict.failure}")
    return _noted(verdict, f"\n[protected files were changed: {', '.join(changed[:LEFT])}]", place)


def _unjudged(criterion: Criterion, reason: str) -> Verdict:
    return Verdict(criterion.id, "unjudged", tail=reason, failure=prompt.fingerprint(f"unjudged {reason}"))


def _noted(verdict: Verdict, note: str, place: Place) -> Verdict:
    """Add to an output what it cannot say itself."""
    path = place.outputs / f"{verdict.id}.log"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    keep_reason(verdict.id, place.outputs, text + note)
    return replace(verdict, tail=verdict.tail + note)


# --- One check ---


class _Trial:
    """A check that is run until its verdict is certain; one run of it is always under way."""

    def __init__(self, criterion: Criterion, place: Place, needed: int):
        self.criterion, self.place = criterion, place
        self.steps = _steps(criterion, place, needed)
        self._start(next(self.steps))

    def look(self) -> Verdict | None:
        """Return the verdict where this run has ended and made it certain."""
        if not self.running.over():
            return None
        run = self._result(self.running.close())
        self._tidy()
        try:
            reading = self.steps.send(run)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict
        self._start(reading)
        return None

    def close(self) -> None:
        """End it where it is."""
        self.running.result.stopped = "interrupted"  # gets SIGTERM, so that it can remove what it made
        self.running.close()
        self._tidy()

    def _start(self, reading: Reading) -> None:
        if self.place.before:
            self.place.before()
        criterion, place, settings = self.criterion, self.place, self.place.settings
        self.scratch = repo.scratch(place.marker, "check")
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        bash = proc.find("bash", place.work_tree or place.root) or "/bin/bash"
        trap = TRAP if reading and _has_two_readings(criterion) else ""
        argv = sandbox.capped([bash, *reading], f"{trap}{criterion.check}", settings.file_size)
        self.prefix = argv[-1].removesuffix(f"{criterion.check}")
        argv = sandbox.command(argv, place.sandbox, self.scratch) if place.sandbox else argv
        env = {**proc.clean_env(os.environ, settings.env, place.work_tree), proc.MARKER: place.marker}
        env["TMPDIR"] = str(self.scratch)  # in the sandbox it is another one
        env["PYTHONPYCACHEPREFIX"] = "/tmp/pycache" if place.sandbox else str(self.scratch / "pycache")
        caps = {"memory": settings.memory, "processes": settings.processes}
        limits = proc.Limits(criterion.timeout, max_output=MAX_OUTPUT, **caps)
        self.running = proc.Running(argv, place.root, env, self.output, limits)

    def _tidy(self) -> None:
        self.output.close()
        repo.delete(self.scratch)

    def _result(self, result: proc.Result) -> Verdict:
        """Keep the output, and say what this run alone shows. Raises OSError for what the machine lacks."""
        if result.errno:
            raise OSError(result.errno, result.error)
        id, outputs = self.criterion.id, self.place.outputs
        data = proc.read(self.output, 0, MAX_OUTPUT)
        verdict, text = _word(result, data), data.decode("utf-8", "replace").replace(self.prefix, "")
        keep_reason(id, outputs, text + _notes(result, bool(self.place.sandbox)))
        compared = prompt.VARIABLE.sub("_", log.mask(text[-2 * TAIL :]))[-COMPARED:]
        failure = "" if verdict == "met" else f"{verdict} {result.code} {prompt.fingerprint(compared)}"
        log.debug(f"check {id}: {verdict}", code=result.code, seconds=result.seconds)
        digest = hashlib.sha256(data).hexdigest()
        return Verdict(id, verdict, result.code, result.seconds, digest, last_output(id, outputs), failure)


def _word(result: proc.Result, output: bytes) -> str:
    if result.stopped == "timeout":
        return "timeout"
    if result.error or result.code in CANNOT_RUN or (result.code == 1 and output.startswith(b"bwrap: ")):
        return "broken"
    return "met" if result.code == 0 and not result.stopped and result.size <= MAX_OUTPUT else "unmet"


def _notes(result: proc.Result, in_sandbox: bool) -> str:
    """Return what the output cannot say."""
    stopped = result.stopped
    left = [] if in_sandbox else sorted(" ".join(line.split()) for line in result.swept)
    notes = {
        f"ended after {result.seconds:.0f} s: it took too long": stopped == "timeout",
        f"ended: it used more {stopped} than checks.{stopped} allows": stopped in ("memory", "processes"),
        "it wanted to write a larger file than checks.file_size allows": result.code in TOO_LARGE,
        f"it printed more than {MAX_OUTPUT} bytes": result.size > MAX_OUTPUT,
        f"ended what it left behind ({len(left)}): {'; '.join(left[:LEFT])}": bool(left),
    }
    return "".join(f"\n[{note}]" for note, holds in notes.items() if holds)


# --- Places without the work tree ---


def _set_up(mission: Mission, place: Place) -> Verdict | None:
    """Run `setup` once, as strictly as a check: so the line that fails is named, and not what follows from it."""
    if not mission.setup:
        return None
    log.info(f"running setup in the clean checkout: {' '.join(mission.setup.split())}")
    step = Criterion(SETUP, SETUP, check=mission.setup, timeout=SETUP_TIME)
    return _run([step], place, {SETUP: CriterionState(SETUP, "", "", verdict="met", proof={})})[SETUP]


def _away(place: Place, root: Path, hidden: Sequence[Path], shown: Sequence[Path] = ()) -> Place:
    """Return the place for another root, from where nothing leads to the repository but what is shown of it."""
    box = place.sandbox
    if box:
        box = replace(box, root=root, protected=tuple(shown), hidden=(*box.hidden, *hidden))
    return replace(place, root=root, sandbox=box, work_tree=hidden[0])


def why(repository: repo.Repo, checkout: repo.Checkout, not_committed: Mapping[str, str]) -> str:
    """Say why a check may pass in the work tree alone. not_committed: path -> why."""
    own = tuple(f"{name}/" for name in repository.excluded)
    paths: dict[str, list[str]] = {}  # by reason
    for name, reason in {**_only_here(repository, checkout), **not_committed}.items():
        if not f"{name}/".startswith(own):
            paths.setdefault(reason, []).append(log.printable(name))
    named = []
    for reason, names in [*paths.items()][:NAMED]:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        named.append(f"{', '.join(names[:NAMED])}{more} ({reason})")
    lacking = f" What is only here: {'; '.join(named)}." if named else ""
    return (
        f"\n[It passes in the work tree, but not in a clean checkout of commit {checkout.commit[:12]}, where nothing is"
        f" but committed files and what `setup` makes, and where no other check has run before it.{lacking}]"
    )


def _only_here(repository: repo.Repo, checkout: repo.Checkout) -> dict[str, str]:
    """Return path, setting or ref, and why a checkout, as setup left it, has another one or none."""
    others = ("ls-files", "--others", "--directory", "--exclude-standard", "-z")
    reasons = {name.rstrip("/"): "git ignores it" for name in repository.names(*others, "--ignored")}
    reasons |= {name.rstrip("/"): "not committed" for name in repository.names(*others)}
    for tag, name in (line.split(" ", 1) for line in repository.names("ls-files", "-v", "-z")):
        places = [root / name for root in (repository.root, checkout.copy)]
        modes = [f"{stat.S_IMODE(path.lstat().st_mode):o}" for path in places if path.is_file()]
        if tag != "H":
            reasons[name] = "skip-worktree or assume-unchanged is set"
        elif len({*modes}) > 1:
            reasons[name] = f"its mode is {modes[0]}, there {modes[1]}"
    settings = repository.git("config", "--local", "--name-only", "--get-regexp", CONVERTS, may_fail=True)
    attributes = ["info/attributes"] * (repository.folder() / "info" / "attributes").exists()
    reasons |= dict.fromkeys([*settings.splitlines(), *attributes], "set in .git alone")
    refs = repository.git("for-each-ref", "--format=%(refname)").split()
    return reasons | {ref: "no clone has it" for ref in refs if not ref.startswith(CLONED)}
