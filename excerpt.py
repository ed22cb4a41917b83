"""What matters in the output of a command that failed: the failures first, repetitions folded, what is left out marked.

    excerpt.useful(text, 3000)         at most 3000 bytes of it
    excerpt.of_file(path, 3000)        of a check's log, of which only the two ends are read

Tools are not told apart. The words and shapes that they share give each line a rank, and lines are taken by rank until
there is no room: the sums at the end, the first failures with what stands around them, the other failures, their
surroundings, and then the end of the output. A text that fits is only cleaned.

Mask the text before: half a secret is not known as one. What is not covered: the middle of an output that is larger
than 2 MB or has more than 40,000 lines, and failures in other languages than English.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from document import NOT_TEXT

READ = 1_000_000  # bytes that are looked at, from each end
LINES = 20_000  # lines that are looked at, from each end
BEFORE, AFTER = 4, 8  # lines around a failure that belong to it
LONGEST = 24  # lines of one failure, after which it counts as the next
FIRST = 3  # failures that are shown with all that belongs to them before the next ones are
ZONE, LAST = 60, 3  # lines at the end in which sums are looked for, and that are shown in any case
ALIKE = 4  # lines in a row that stood before, and are left out then
NARROWEST, WIDEST = 200, 1000  # characters of a line that are shown at least, and at most
GAP = len("[1000000 lines left out]\n")  # bytes that the note takes at most
NOW, NEAR, LATER, HINT, AROUND, END, DULL = range(7)  # ranks of a line: which are taken first

ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# What differs between two lines that say the same: paths, the file at the beginning, UUIDs, digests, numbers.
VARIABLE = re.compile(
    r"(?im)(?<![\w.~-])[\w.~-]*/[^\s:'\"(),]*|^[ \t]*[^\s:(]+(?=[:(]\d)"
    r"|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b0x[0-9a-f]+|\b[0-9a-f]{7,}\b|\d+"
)
NONE = re.compile(r"(?i)\b(?:0|no|zero|without) (?:errors?|fail\w*|exceptions?)\b|\b(?:errors?|fail\w*) ?[:=]? ?0\b")
# What is searched for begins with plain characters, and LOW_ ones are searched for in small letters: both make it fast.
# PASSED, BEGINS, SHAPE and FRAME say how a line begins.
PASSED = re.compile(
    r"\s*(?:ok\b|[✓✔√]|PASS(?:ED)?\b|--- PASS|=== (?:RUN|PAUSE|CONT)|\[ +(?:OK|RUN) |Passed |# Subtest: )"
)
SUCCESS = re.compile(r"(?:PASSED|\.\.\. ok|success) *(?:\[ *\d+%\])?$")
BEGINS = re.compile(  # what is a failure for certain
    r"E {2,}\S|[A-Z]{1,5}\d{3,5} |_{3,} .+ _{3,}$|Traceback \(|Caused by:|thread '.+' panicked"
    r"|\s*(?:not ok\b|--- FAIL|FAIL(?:ED|URE)?\b|ERROR\b|[✗✕✖×●] |\d+\) \S|---- .+ ----$|\d+:\d+ +error )"
    r"|\s*(?:\[ERROR\]|error|fatal|panic)(?:\[\w+\])?[: ]\s*\S"
    r"|(?!.*\b(?:warning|note|info)\b)(?:\.{0,2}/)?[\w@./\\-]+\.\w+[:(]\d+(?:[:,]\d+)?\)?:? "
)
SAYS = re.compile(
    r"(?:Error|Exception|Failure)(?: \[\w+\])?: |error(?: ?\[?\w+\d+\]?)?: |panicked at |\*\*\* "
    r"|command not found|: not found|undefined reference|[Nn]o such file|[Pp]ermission denied|core dumped"
)
LOW_WORDS = re.compile(  # what may be one
    r"error|fail|fatal|exception|panic|cannot|could not|can't|unable|not (?:ok|found|defined|equal)|no such|no module"
    r"|denied|refused|timed out|timeout|killed|abort|assert|unexpected|invalid|mismatch|missing|undefined|unresolved"
)
SHAPE = re.compile(
    r"\s*(?:> +\d+ \||\^|(?i:expected|actual|received|got|want|left|right|location)\b[^:]*:)|> {2}|[-+](?![-+]{2})\S"
)
LOW_ADVICE = re.compile(
    r"re-?run|for more information|for help|full (?:stack|list|log|report)|backtrace\b|\[help \d|complete log"
    r"|short test summary"
)
SUMMARY = re.compile(
    r"\b\d+ (?:tests?|specs?|examples?|pass(?:ed|ing)|fail\w*|errors?|problems?)\b|\bTests?(?: run)?: .*\d"
    r"|^# (?:tests|pass|fail) \d|^FAILED|test result:|BUILD FAIL|\*\*\* |\bexit(?:ed)?(?: with)? (?:code|status)"
    r"|Error \d+$"
)
REPEATED = re.compile(r"\[\d+ more like the (?:(\d+) lines|line) above\]")
UNREAD = re.compile(r"\[\d+ bytes left out\]")
FRAME = re.compile(r"\s+(?:File \"|at |from |\d+: )|\s*#\d+ |\t\S+\.go:\d+|\S+:\d+: in \w")
LIBRARY = re.compile(
    r"(?:site|dist)-packages|node_modules|/lib/python\d|<frozen |\(<anonymous>\)$|node:(?:internal|\w+:\d)|\(internal/"
    r"|/usr/(?:lib|include|local/go)/|/rustc/|\.cargo/|/(?:gems|vendor|_pytest)/|\bat (?:async )?(?:javax?|jdk|sun"
    r"|com\.sun|org\.(?:junit|apache|gradle)|System|Microsoft|Xunit|NUnit|kotlin|scala)\."
    r"|\d+: +(?:0x\w+ - )?(?:core|std|test|rust_begin_unwind|__rust)\b"
)


def useful(text: str, limit: int) -> str:
    """The part of a failing command's output that tells most about the failure, at most `limit` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return _useful(data[:READ], max(0, len(data) - 2 * READ), data[READ:][-READ:], limit)


def of_file(path: Path, limit: int) -> str:
    """`useful` of what stands at both ends of a file; "" where there is no file of that name, also for a link."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return ""
            head, left = file.read(READ), max(0, status.st_size - 2 * READ)
            file.seek(len(head) + left)
            return _useful(head, left, file.read(READ), limit)
    except OSError:
        return ""


def _useful(head: bytes, left: int, tail: bytes, limit: int) -> str:
    """left: bytes between both ends."""
    if not left and _size(text := _clean((head + tail).decode("utf-8", "replace"))) <= limit:
        return text
    text = _clean(_ends(head, left, tail))
    lines, counts = _folded(_fitting_lines(text, min(WIDEST, max(NARROWEST, limit // 8))))
    shown = _joined(lines, counts, _chosen(lines, _ranks(lines), limit))
    return shown or text.encode("utf-8", "replace")[: max(0, limit)].decode("utf-8", "ignore")


def _ends(head: bytes, left: int, tail: bytes) -> str:
    """Both ends of an output, of no more than so many lines each, and how many bytes are left out between them."""
    first, last = b"\n".join(head.split(b"\n", LINES)[:LINES]), b"\n".join(tail.rsplit(b"\n", LINES)[-LINES:])
    left += len(head) + len(tail) - len(first) - len(last)
    note = f"\n[{left} bytes left out]\n".encode() if left else b""
    return (first + note + last).decode("utf-8", "replace")


def _clean(text: str) -> str:
    """Without colours, without what a progress display wrote over, and without what is no text."""
    text = ESCAPE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line.rstrip() for line in NOT_TEXT.sub(" ", text).split("\n")).strip("\n")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _fitting_lines(text: str, width: int) -> list[str]:
    """The lines, none longer than so many characters and a note, and no two empty ones in a row."""
    lines = text.split("\n")
    head, tail = width * 2 // 3, width // 3
    return [
        line if len(line) <= width else f"{line[:head]} [{len(line) - head - tail} characters left out] {line[-tail:]}"
        for number, line in enumerate(lines)
        if line or (number and lines[number - 1])
    ]


def _folded(lines: Sequence[str]) -> tuple[list[str], list[int]]:
    """The lines, with a note in place of those that repeat others but for what is VARIABLE; how many each stands for.

    As in LZ77: where the next two lines stood before, as many as are the same from there on are one repetition.
    """
    keys = VARIABLE.sub("#", "\n".join(lines)).split("\n")
    texts, counts, seen, here = list[str](), list[int](), dict[tuple[str, str], int](), 0
    while here < len(lines):
        source = seen.get((keys[here], keys[here + 1]), -1) if here + 1 < len(lines) else -1
        text, count = _repetition(keys, source, here) if source >= 0 else ("", 0)
        texts.append(text or lines[here])
        counts.append(count or 1)
        for number in range(here, min(here + counts[-1], len(lines) - 1)):
            seen[keys[number], keys[number + 1]] = number
        here += counts[-1]
    return texts, counts


def _repetition(keys: Sequence[str], source: int, here: int) -> tuple[str, int]:
    """A note about the lines from here on that are those from `source` on, and how many they are; 0 for too few."""
    period, length = here - source, 0
    while here + length < len(keys) and keys[here + length] == keys[source + length]:
        length += 1
    if times := length // period:
        note = f"[{times} more like the {f'{period} lines' if period > 1 else 'line'} above]"
        return (note, times * period) if sum(map(len, keys[here : here + times * period])) > len(note) else ("", 0)
    return (f"[{length} lines like earlier ones]", length) if length >= ALIKE else ("", 0)


def _ranks(lines: Sequence[str]) -> list[int]:
    """How soon each line is taken."""
    found = [DULL if inside else _own_rank(line) for line, inside in zip(lines, _in_library(lines), strict=True)]
    ranks = list(found)
    leading = NOW if NOW in found else HINT  # where no line is a failure for certain, those that may be one
    groups, begun, last = 0, 0, -LONGEST
    # No surroundings reach beyond a success, or a note of repetitions.
    barriers = [_tells_success(line) or bool(REPEATED.fullmatch(line)) for line in lines]
    for number in (number for number, rank in enumerate(found) if rank == leading):
        if number - last > AFTER or number - begun > LONGEST:
            groups, begun = groups + 1, number
        last = number
        for steps in (range(number - 1, number - BEFORE - 1, -1), range(number + 1, number + AFTER + 1)):
            for near in itertools.takewhile(lambda n: 0 <= n < len(lines) and not barriers[n], steps):
                if found[near] != DULL:
                    ranks[near] = min(ranks[near], NEAR if groups <= FIRST else AROUND)
        ranks[number] = NOW if groups <= FIRST else LATER
    for number, line in enumerate(lines):
        if repeated := REPEATED.fullmatch(line):  # is worth as much as what it repeats
            ranks[number] = max(ranks[max(0, number - int(repeated[1] or 1)) : number], default=END)
    return ranks


def _tells_success(line: str) -> bool:
    return bool(PASSED.match(line) or SUCCESS.search(line))


def _own_rank(line: str) -> int:
    low = line.lower()
    if _tells_success(line) or LOW_ADVICE.search(low) or ("warn" in low and "error" not in low):
        return DULL
    line, low = NONE.sub("", line), NONE.sub("", low)
    if BEGINS.match(line) or SAYS.search(line):
        return NOW
    return HINT if LOW_WORDS.search(low) or SHAPE.match(line) or FRAME.match(line) else END


def _in_library(lines: Sequence[str]) -> Iterator[bool]:
    """Whether each line belongs to a frame of a stack that is in somebody else's code."""
    depth = -1  # of the frame, when it is one
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if FRAME.match(line):
            depth = indent if LIBRARY.search(line) else -1
        elif indent <= depth or not line:
            depth = -1
        yield depth >= 0 or (bool(LIBRARY.search(line)) and _own_rank(line) == END)


def _sums(lines: Sequence[str], ranks: Sequence[int]) -> list[int]:
    """The numbers of lines that are shown before all others, the last one first."""
    unread = [number for number, line in enumerate(lines) if UNREAD.fullmatch(line)]
    zone = [n for n in range(max(0, len(lines) - ZONE), len(lines)) if lines[n] and ranks[n] != DULL]
    sums = {n for n in zone if SUMMARY.search(NONE.sub("", lines[n]))} | set(zone[-LAST:])
    return unread + sorted(sums, reverse=True)


def _chosen(lines: Sequence[str], ranks: Sequence[int], limit: int) -> list[bool]:
    """Which lines are shown: by rank, as long as there is room for them and for the notes of what is left out."""
    of_rank: list[list[int]] = [[] for _ in range(DULL + 1)]
    for number, rank in enumerate(ranks):
        of_rank[rank].append(number)
    last = {END: limit // 3, DULL: 0} if of_rank[NOW] else {END: limit, DULL: limit}
    passes = [(_sums(lines, ranks), limit // 4), (of_rank[NOW], limit), (of_rank[NEAR], limit // 2)]
    passes += [(of_rank[rank], limit) for rank in (LATER, NEAR, HINT, AROUND)]
    passes += [(of_rank[rank][::-1], share) for rank, share in last.items()]
    chosen, used = [False] * len(lines), GAP
    for number, share in ((number, share) for numbers, share in passes for number in numbers):
        left = number > 0 and not chosen[number - 1]
        right = number + 1 < len(lines) and not chosen[number + 1]
        cost = _size(lines[number]) + 1 + (left + right - 1) * GAP
        if not chosen[number] and used + cost <= share:
            chosen[number] = True
            used += cost
    return chosen


def _joined(lines: Sequence[str], counts: Sequence[int], chosen: Sequence[bool]) -> str:
    """The chosen lines, with a note where some are left out, unless the line itself is shorter."""
    shown: list[str] = []
    missing: list[int] = []
    for number, is_chosen in enumerate([*chosen, True]):
        line = "".join(lines[number : number + 1])
        if not is_chosen or (missing and not line and number < len(lines)):
            missing += [number] if line else []
            continue
        if len(missing) == 1 and _size(lines[missing[0]]) < GAP:
            shown.append(lines[missing[0]])
        elif missing:
            left = sum(counts[n] for n in missing)
            shown.append(f"[{left} line{'s' if left > 1 else ''} left out]")
        shown.append(line)
        missing = []
    return "\n".join(shown).strip("\n") if any(chosen) else ""
