"""The texts of prompts/: filled, fenced, and kept to a size.

    text = prompt.fill("situation.md", {"iteration": "3", ...})
    parts = prompt.fit(parts, (("lessons", 0, HEAD), ("report", 500, TAIL), ...), room)

What programs and strangers printed goes in as data, between <data> and </data>, and cannot close that fence.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import log
from document import NOT_TEXT, MissionError

FOLDER = Path(__file__).resolve().parent / "prompts"
FENCE = re.compile(r"<\s*/\s*data", re.I)  # the end of what programs printed
LONGEST = 4_000  # bytes of a text of prompts/ with nothing filled in
HEAD, TAIL = "head", "tail"  # which end of a text is kept
LEAST = 8_000  # bytes of a prompt to an LLM, whatever the settings say: below, nothing could be decided
RESERVE = 4_000  # bytes of a prompt kept free for the shape of the answer, and for one repair


def fill(name: str, parts: Mapping[str, str]) -> str:
    """A text of prompts/ with its $placeholders filled, without the gaps that empty parts leave.

    Raises MissionError for a placeholder that does not exist, and for a text that cannot be read.
    """
    try:
        filled = string.Template((FOLDER / name).read_text("utf-8")).substitute(parts)
    except (OSError, KeyError, ValueError) as error:
        raise MissionError(problems(name, [*parts]) or [f"{FOLDER / name}: {error}"]) from error
    text = "\n".join(line.rstrip() for line in filled.splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def problems(name: str, known: Sequence[str], needed: Sequence[str] = ()) -> list[str]:
    """What is wrong with a text of prompts/: file, line and remedy of each placeholder that nothing fills.

    needed: placeholders of which it has to hold one, the usual one first; none: it may do without.
    """
    import difflib

    path, found = FOLDER / name, []
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path}: cannot be read ({error}): take it from the kit again"]
    if not text.strip() or size(text) > LONGEST:
        return [f"{path}: holds {size(text)} bytes, expected 1 to {LONGEST}: it is a part of every prompt"]
    for number, line in enumerate(text.splitlines(), 1):
        for match in string.Template.pattern.finditer(line):
            word = match["named"] or match["braced"]
            if match["invalid"] is not None:
                found.append(f"{path}:{number}: a $ that begins no placeholder: write $$")
            elif word and word not in known:
                near = difflib.get_close_matches(word, known, 1)
                hint = f"did you mean ${near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
                found.append(f"{path}:{number}: nothing fills ${word}; {hint}")
    held = {match["named"] or match["braced"] for match in string.Template.pattern.finditer(text)}
    if needed and not found and held.isdisjoint(needed):
        found.append(f"{path}: has to hold ${needed[0]}: without it nobody would be told")
    return found


def as_data(text: str) -> str:
    """A stranger's text, masked, that cannot close the fence it is shown in."""
    return FENCE.sub("(/data", plain(text)).strip()


def plain(text: str) -> str:
    """Masked, and without what can neither be shown nor sent."""
    return NOT_TEXT.sub(" ", log.mask(text))


def room(most: int) -> int:
    """Bytes that the two messages of a question may take. most: openrouter.max_prompt."""
    return max(most, LEAST) - RESERVE


def size(text: str) -> int:
    """Bytes that a text takes when it is sent."""
    return len(text.encode("utf-8", "replace"))


def cut(text: str, limit: int, keep: str = HEAD) -> str:
    """The whole lines at one end of a text that fit into so many bytes, and a note of how much is missing.

    Mask it before, so that no secret is cut in half.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    note = f"[{len(data) - limit} more bytes are not shown]"
    room = limit - len(note) - 1
    if room <= 0:
        return ""
    if keep == TAIL:
        kept = data[-room:].decode("utf-8", "ignore")
        return f"{note}\n{kept[kept.find(chr(10)) + 1 :].lstrip() or kept}"
    kept = data[:room].decode("utf-8", "ignore")
    return f"{(kept[: kept.rfind(chr(10)) + 1] or kept).rstrip()}\n{note}"


def fit(parts: Mapping[str, str], order: Sequence[tuple[str, int, str]], room: int) -> dict[str, str]:
    """The parts, cut until all of them together take at most `room` bytes.

    order: name of a part, bytes that are left of it, and which end is kept. What stands first is cut first; a part may
    stand in it more than once.
    """
    fitted = dict(parts)
    for name, least, keep in order:
        over = sum(map(size, fitted.values())) - room
        if over <= 0:
            break
        fitted[name] = cut(fitted[name], max(least, size(fitted[name]) - over), keep)
    return fitted
