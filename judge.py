"""Criteria that no command can check: an LLM judges them, on quotes that the kit looks up itself.

    ruling = judge.judge(mission, criteria, evidence, settings)

The judge sees the mission, the files' names and what changed, may ask once for the text of some files, and never
sees a word of the worker's report. "Met" counts only with quotes that are literally in the tree. Whatever else it
says or fails to say, nothing is met by that.

What is not covered: whether a quote that is there proves what it is said to prove. That is the LLM's judgement, and
the worker writes the files that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import log
import openrouter
from mission import Criterion, Mission
from openrouter import NoAnswer, as_data, fill

DIFF = 60_000  # characters of what changed that are sent
FILE = 12_000  # characters of one file
FILES = 80_000  # characters of all files together
LISTED = 400  # paths that are sent
LIST = 40_000  # characters of them together
QUOTE = 12  # characters, without spaces, below which a quote proves nothing
SHOWN = 100  # characters of a void quote in the reason


@dataclass(frozen=True)
class Evidence:
    """The tree at HEAD, as far as the judge may look at it."""

    diff: str
    """What changed since the mission began; may be cut."""
    files: Sequence[str]
    """Paths that may be quoted."""
    read: Callable[[str], str | None]
    """The text of one of them; None when it is no text. Never called with another path."""


@dataclass(frozen=True)
class Quote:
    """A passage of a file."""

    path: str
    text: str


@dataclass(frozen=True)
class Judgement:
    """What was found about one criterion."""

    id: str
    met: bool
    reason: str
    """The judge's own words, or why they do not count."""
    quotes: tuple[Quote, ...] = ()
    """What proves it, each of them found in the tree; none when it is not met."""


@dataclass
class Ruling:
    """All that the judge said, and what it cost."""

    judgements: list[Judgement] = field(default_factory=list)
    """In the order of the criteria; what is missing was not judged."""
    model: str = ""
    """The model that answered last; empty when none did."""
    cost_usd: float = 0.0
    """All calls together."""
    tokens: dict[str, int] = field(default_factory=lambda: {"input": 0, "output": 0})
    """input and output tokens of all calls."""
    calls: int = 0
    """Requests that were sent: 0, 1 or 2."""
    unreachable: bool = False
    """Whether nobody answered."""


def judge(mission: Mission, criteria: Sequence[Criterion], evidence: Evidence, settings: Any) -> Ruling:
    """Judge all these criteria at once. Nothing that the LLM does makes this fail: then nothing is judged."""
    ruling = Ruling()
    if not criteria:
        return ruling
    parts = _parts(mission, criteria, evidence)
    try:
        said = _ask(ruling, {**parts, "contents": "none yet"}, settings)
        if said["files"]:
            said = _ask(ruling, {**parts, "contents": _contents(said["files"], evidence)}, settings)
    except NoAnswer as error:
        ruling.unreachable = isinstance(error, openrouter.Unreachable)
        log.warn(f"the judge gave no usable answer, so nothing is judged: {error}")
        return ruling
    for criterion in criteria:
        if verdicts := [verdict for verdict in said["verdicts"] if verdict["id"] == criterion.id]:
            ruling.judgements.append(_judgement(verdicts, evidence))
    return ruling


def _ask(ruling: Ruling, parts: dict[str, str], settings: Any) -> dict[str, Any]:
    """One call, booked whether or not its answer is of use."""
    ruling.calls += 1
    try:
        answer = openrouter.ask(fill("judge.md", {}), fill("evidence.md", parts), "judge", settings)
    except NoAnswer as error:
        _book(ruling, error.bill)
        raise
    _book(ruling, answer.bill)
    ruling.model = answer.model
    return answer.content


def _book(ruling: Ruling, bill: dict[str, Any]) -> None:
    ruling.cost_usd += bill.get("cost_usd", 0.0)
    for kind, count in bill.get("tokens", {}).items():
        ruling.tokens[kind] += count


# --------------------------------------------------------------------------------------------------------
# What it sees
# --------------------------------------------------------------------------------------------------------


def _parts(mission: Mission, criteria: Sequence[Criterion], evidence: Evidence) -> dict[str, str]:
    parts = {
        "title": as_data(mission.title),
        "description": as_data(mission.description),
        "constraints": as_data("\n".join(f"- {item}" for item in mission.constraints)),
        "criteria": as_data("\n".join(f"- {criterion.id}: {criterion.criteria}" for criterion in criteria)),
        "files": _list(evidence.files),
        "diff": _cut(as_data(evidence.diff), DIFF),
    }
    return {name: text or "none" for name, text in parts.items()}


def _list(files: Sequence[str]) -> str:
    more = f"\nand {len(files) - LISTED} more" if len(files) > LISTED else ""
    return _cut(as_data("\n".join(files[:LISTED])), LIST) + more


def _contents(wishes: Sequence[str], evidence: Evidence) -> str:
    """The files that it asked for, each in a fence of its own, as far as there is room."""
    blocks, room = [], FILES
    for path in dict.fromkeys(wishes):
        text = _read(path, evidence)
        shown = "(not a text file of the tree)" if text is None else _cut(as_data(text), min(FILE, room))
        room = max(0, room - len(shown))
        blocks.append(f"A file, its path in the first line:\n<data>\n{as_data(path)}\n{shown}\n</data>")
    return "\n\n".join(blocks)


def _read(path: str, evidence: Evidence) -> str | None:
    text = evidence.read(path) if path in evidence.files else None
    return None if text is None else text.replace("\r\n", "\n")  # models quote with plain line ends


def _cut(text: str, limit: int) -> str:
    """The first lines of it that fit, and how much is missing. Masked before, so that no secret is cut in half."""
    if len(text) <= limit:
        return text
    kept = text[:limit]
    kept = kept[: kept.rfind("\n") + 1] or kept  # one endless line is cut in itself
    return f"{kept.rstrip()}\n[{len(text) - len(kept)} more characters are not shown]"


# --------------------------------------------------------------------------------------------------------
# What counts
# --------------------------------------------------------------------------------------------------------


def _judgement(verdicts: Sequence[dict[str, Any]], evidence: Evidence) -> Judgement:
    """What the verdicts on one criterion are worth."""
    first = verdicts[0]
    if any(verdict != first for verdict in verdicts):
        return Judgement(first["id"], False, "the judge answered twice, and differently")
    if not first["met"]:
        return Judgement(first["id"], False, first["reason"])
    if not first["quotes"]:
        return Judgement(first["id"], False, "the judge says it is met and quotes nothing that proves it")
    quotes = tuple(Quote(quote["path"], _bare(quote["text"])) for quote in first["quotes"])
    for quote in quotes:
        if fault := _fault(quote, evidence):
            shown = f"{quote.path[:SHOWN]}: {quote.text[:SHOWN]!r}"
            return Judgement(first["id"], False, f"the judge says it is met, but its quote {fault}: {shown}")
    return Judgement(first["id"], True, first["reason"], quotes)


def _fault(quote: Quote, evidence: Evidence) -> str:
    """Why a quote does not hold; empty when it does."""
    text = _read(quote.path, evidence)
    if text is None:
        return "is from what is not a text file of the tree"
    if len("".join(quote.text.split())) < QUOTE:
        return f"has fewer than {QUOTE} characters"
    if log.MASK in quote.text or (quote.text in text and quote.text not in as_data(text)):
        return "holds what was masked"
    return "" if quote.text in text else "is not in that file"


def _bare(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
