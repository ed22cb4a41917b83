"""What was learned from failures: how each looked, and what resolved it, also for later missions of the repository.

    lessons.learn(folder / "lessons.jsonl", Lesson(lessons.signature(output), lessons.telling(output), ...))
    for lesson in lessons.fitting(folder / "lessons.jsonl", output): print(lessons.told(lesson))

One JSON object a line, the newest last; the oldest go when there are too many. A lesson helps and decides nothing: what
cannot be written or read is told in the log, and the mission goes on without it.

A failure resembles a lesson when both share a line that names an error in three words of its own or more, or more than
half of the telling lines of whichever has fewer. A line is telling when it is no phrase of a tool (GENERIC) and has two
words that are not COMMON. Lines are compared whole, without numbers, times, folders, digests and colours.

What is not covered: a failure that is put into other words, and a worker without a sandbox that writes lessons itself.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import dod
import log
import state
from excerpt import ESCAPE

VERSION = 1  # of a line's format
MOST = 200  # lessons in the file
MAX_SIZE = 256_000  # bytes of it
SPARE = 0.8  # share of both that is left after the oldest have gone, so that not every lesson rewrites the file
MAX_READ = 1_000_000  # bytes from its end that are looked at, whatever somebody put there
PATIENCE = 5.0  # seconds to wait for another process that writes
LINES = 10  # telling lines kept of one failure
WIDTH = 160  # characters of each of them
TEXT = 300  # characters of every other text
MAX_TOLD = 800  # characters of a lesson in a prompt
MAX_LINE = 1000  # characters of a line of output that are looked at

RULE = re.compile(r"([^\w\s])\1{2,}|_{3,}")  # a line drawn across the terminal
FOLDERS = re.compile(r"(?<![\w.+/~-])~?(?:[\w.+-]*/)+")
TEMPORARY = re.compile(r"\btmp(?:[a-z0-9_]{8}|\.\w{6,12})\b")  # by mkdtemp and mktemp
WORD = re.compile(r"[^\W\d_]{3,}")

# What tools print around any failure: sums, advice, stack frames; then pytest, npm and node, cargo.
GENERIC = re.compile(
    r"""\b_\ (?:passed|failed|failures?|errors?|tests?|total|skipped|problems?)\b | ^found\ _ | ^(?:not\ )?ok\b | \bok$
    | \bexit(?:ed\ with)?\ (?:code|status)\b | ^make\b.*\berror\ _ | \bwarn(?:ing)?s?\b | deprecat
    | ^(?:=\ )?(?:note|help|hint): | more\ information\ about | complete\ log\ of | see\ above\ for
    | ^at\ | ^_:\  | \(node: | ^node: | <anonymous> | \bstack(?:\ backtrace)?:? (?:\ \|-)? $ | traceback\ \(most
    | short\ test\ summary | test\ session\ starts | ^(?:platform|rootdir|cachedir|plugins|collected|self\ =)\b
    | \+\ where\b | importlib | _bootstrap | importing\ test\ module
    | ^npm\ (?:err!|error)\ (?:code|errno|syscall|path|command|signal|enoent$) | lifecycle | failed\ at\ the\ .*\ script
    | ^>\ \S+@_ | ^(?:test\ suites|tests|test\ files|snapshots|time|duration|start\ at|pass|tap|ran)\b | ^throw\ err
    | strictly\ equal | ^(?:operator|failuretype):
    | could\ not\ compile | aborting\ due\ to | to\ rerun\ pass | have\ detailed\ explanations | rust_backtrace
    | ^(?:compiling|finished|running|downloading|updating|checking|doc-tests)\b""",
    re.I | re.X,
)
COMMON = re.compile(
    r"actual|all|and|are|assert|assertion|assertionerror|but|code|did|equal|equality|errors?|exception|expect|expected"
    r"|fail|failed|failing|failures?|false|file|for|from|got|has|have|is|left|line|message|none|not|null|object"
    r"|received|result|right|status|tests?|that|the|there|this|true|undefined|value|was|were|with"
)
NAMES_ERROR = re.compile(
    r"error|exception|cannot|can't|could not|unable|not found|not defined|no such|no module|unexpected|invalid|missing"
    r"|denied|refused|panicked|mismatch|fatal|unresolved|unknown|unsupported|does not|required",
    re.I,
)


@dataclass(frozen=True)
class Lesson:
    """A failure that was resolved."""

    signature: str
    """See `signature`."""
    lines: tuple[str, ...]
    """See `telling`."""
    mission: str
    """Id of the mission."""
    criterion: str
    """Text of the criterion."""
    strategy: str
    """The strategy of the session that resolved it."""
    sessions: int
    """How many sessions it took."""
    resolved: str
    """What resolved it: title of the plan, and the worker's last words."""
    commit: str
    """The commit that did it, "" if it is not known."""
    at: str
    """When, in UTC; for people."""


# --------------------------------------------------------------------------------------------------------
# Failures
# --------------------------------------------------------------------------------------------------------


def normalised(text: str) -> tuple[str, ...]:
    """The lines of an output without what differs from run to run, and without those that are empty then."""
    lines = ESCAPE.sub("", log.mask(text)).splitlines()
    return tuple(filter(None, (_normalised_line(line[:MAX_LINE]) for line in lines if line.strip())))


def _normalised_line(line: str) -> str:
    for pattern, by in ((RULE, " "), (FOLDERS, ""), (TEMPORARY, "_"), (dod.VARIABLE, "_")):
        line = pattern.sub(by, line)
    return _one_line(line, WIDTH)


def signature(failure: str) -> str:
    """Digest of a failing output; the same as long as its normalised end is."""
    text = "\n".join(normalised(failure))[-dod.COMPARED :]  # longer numbers let a tail begin at a later line
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def telling(failure: str) -> tuple[str, ...]:
    """The normalised lines by which a failing output is told from others, those that name an error first."""
    lines = [line for line in dict.fromkeys(normalised(failure)) if _is_telling(line)]
    return tuple(sorted(lines, key=lambda line: not _names_error(line))[:LINES])


def _words(line: str) -> set[str]:
    """The words of a line that other failures do not have; none of a phrase of a tool."""
    if GENERIC.search(line):
        return set()
    return {word for word in map(str.lower, WORD.findall(line)) if not COMMON.fullmatch(word)}


@functools.lru_cache(4096)  # the same few lines are asked about for each failure
def _is_telling(line: str) -> bool:
    return len(_words(line)) >= 2


@functools.lru_cache(4096)
def _names_error(line: str) -> bool:
    """Whether this line alone says what went wrong."""
    return len(_words(line)) >= 3 and bool(NAMES_ERROR.search(line))


# --------------------------------------------------------------------------------------------------------
# Lessons
# --------------------------------------------------------------------------------------------------------


def fitting(path: Path, failure: str, limit: int = 3) -> list[Lesson]:
    """The lessons whose failure resembles this output: the same failure first, then the most alike; new before old."""
    try:
        handle = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warn(f"the lessons cannot be read: {error}")
        return []
    try:
        known, damaged = _read(handle)
    finally:
        os.close(handle)
    if damaged:
        log.debug(f"{path.name}: {damaged} damaged lines are passed over")
    lines = normalised(failure)
    ours, same = {line for line in lines if _is_telling(line)}, signature(failure) if any(map(_words, lines)) else None
    likeness = [(lesson.signature == same) or _likeness(lesson, ours) for lesson in known]
    best = sorted((number for number, like in enumerate(likeness) if like), key=lambda n: (-likeness[n], -n))
    return [known[number] for number in best[: max(0, limit)]]


def _likeness(lesson: Lesson, ours: set[str]) -> float:
    """How much a failure with these telling lines resembles the lesson's, below 1; 0 for no resemblance."""
    theirs = {line for line in lesson.lines if _is_telling(line)}
    shared = theirs & ours
    share = len(shared) / max(1, min(len(theirs), len(ours)))
    return share * 0.99 if share > 0.5 or any(map(_names_error, shared)) else 0.0


def told(lesson: Lesson) -> str:
    """One line for a prompt."""
    what = lesson.lines[0] if lesson.lines else lesson.criterion
    many = f"{lesson.sessions} session{'s' if lesson.sessions != 1 else ''}"
    commit = f", commit {lesson.commit[:12]}" if lesson.commit else ""
    said = f'"{what}" was resolved in {many} ({lesson.strategy}): {lesson.resolved} (mission {lesson.mission}{commit})'
    return _one_line(said, MAX_TOLD)


def learn(path: Path, lesson: Lesson) -> None:
    """Add a lesson durably, masked; nothing if the same failure was resolved in the same way before. Never raises."""
    record = _record(lesson)
    try:
        with _locked(path) as handle:
            known, damaged = _read(handle)
            if any((one.signature, one.resolved) == (record["signature"], record["resolved"]) for one in known):
                return
            _append(handle, _line(record))
            if len(known) >= MOST or os.fstat(handle).st_size > MAX_SIZE:
                _rewrite(path, [*map(_record, known), record])
                if damaged:
                    log.warn(f"{path.name}: {damaged} damaged lines are gone")
    except OSError as error:
        log.warn(f"a lesson could not be kept: {error}")


# --------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------


def _record(lesson: Lesson) -> dict[str, Any]:
    """The lesson as it is written: masked, then cut, since half a secret would not be known as one."""
    plain = log.mask_tree({**asdict(lesson), "lines": list(lesson.lines)})
    texts = {name: _one_line(value, TEXT) for name, value in plain.items() if isinstance(value, str)}
    return {"version": VERSION, **plain, **texts, "lines": [_one_line(line, WIDTH) for line in plain["lines"][:LINES]]}


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode("ascii") + b"\n"


def _lesson(line: bytes) -> Lesson | None:
    """The lesson in a line of the file, None if it is damaged or of another version."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        return None
    values = {field.name: record.get(field.name) for field in fields(Lesson)}
    lines, sessions = values.pop("lines"), values.pop("sessions")
    texts = {name: _one_line(value, TEXT) for name, value in values.items() if isinstance(value, str)}
    if len(texts) < len(values) or not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        return None
    if not isinstance(sessions, int) or isinstance(sessions, bool):
        return None
    return Lesson(lines=tuple(_one_line(line, WIDTH) for line in lines[:LINES]), sessions=sessions, **texts)


def _open(path: Path, flags: int) -> int:
    """Open what is a file of its own; a link, a pipe or a folder in its place is an OSError, at once."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file of its own", str(path))
    return handle


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, open for appending, while nobody else writes or replaces it. Raises OSError."""
    end = time.monotonic() + PATIENCE
    while True:
        handle = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            if _lock(handle, end) and _is_still(path, handle):
                yield handle
                return
        finally:
            os.close(handle)
        if time.monotonic() > end:
            raise BlockingIOError(errno.EAGAIN, "another process writes it", str(path))


def _lock(handle: int, end: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
        time.sleep(0.01)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the file was not replaced before we got its lock."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> tuple[list[Lesson], int]:
    """The lessons in the file, oldest first, and how many lines are none."""
    start = max(0, os.fstat(handle).st_size - MAX_READ)
    with open(handle, "rb", closefd=False) as file:
        file.seek(start)
        lines = file.read(MAX_READ).split(b"\n")[bool(start) :]  # the first one may have begun before
    found = [_lesson(line) for line in lines if line.strip()]
    known = [lesson for lesson in found if lesson]
    return known, len(found) - len(known) + bool(start)


def _append(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    whole = not size or os.pread(handle, 1, size - 1) == b"\n"  # else the last one was cut by a crash or a full disk
    data = line if whole else b"\n" + line
    if os.write(handle, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(handle)


def _rewrite(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Replace the file by one with the newest of these; whoever reads sees the old or the new one."""
    kept: list[bytes] = []
    for line in map(_line, reversed(records)):
        if len(kept) >= MOST * SPARE or sum(map(len, kept)) + len(line) > MAX_SIZE * SPARE:
            break
        kept.insert(0, line)
    state.write(path, b"".join(kept))


def _one_line(text: str, most: int) -> str:
    return " ".join(log.CONTROL.sub(" ", text).split())[:most]
