"""Criteria that no command can check: an LLM judges them, on quotes that the kit looks up itself.

    ruling = judge.judge(mission, criteria, evidence, settings)

The judge sees the mission, the files' names and what changed, may ask once for the text of some files, and never
sees a word of the worker's report. "Met" counts only with quotes that are literally in the tree. Whatever else it
says or fails to say, nothing is met by that. Its prompt stays below openrouter.max_prompt; ORDER says what is cut.

What is not covered: whether a quote that is there proves what it is said to prove. That is the LLM's judgement, and
the worker writes the files that it reads.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llm
import log
import prompt
from mission import Criterion, Mission
from openrouter import Bill, NoAnswer, Unreachable
from prompt import HEAD, size

RULES, CASE = "judge.md", "dod_validation.md"  # in prompts/
FENCE, END = "A file, its path in the first line:\n<data>\n", "\n</data>"
BETWEEN = f"{END}\n\n{FENCE}"
LEAST = 300  # bytes of one file or one file's changes; less than that is not worth sending
BESIDES = 2_000  # bytes that the prompt holds besides the criteria when all in ORDER is cut as far as can be
# What is cut first when a prompt grows too long: the part, the bytes that are left of it, and the end that is kept.
ORDER = (
    ("files", 3_000, HEAD),
    ("diff", 2_000, HEAD),  # it gives way to the files that were asked for
    ("description", 2_000, HEAD),
    ("constraints", 1_000, HEAD),
    ("contents", 3_000, HEAD),
    *((name, 60, HEAD) for name in ("files", "diff", "description", "constraints")),  # room for how much is missing
    ("contents", 500, HEAD),
)
QUOTE = 12  # characters, without spaces, below which a quote proves nothing
SHOWN = 100  # characters of a void quote in the reason, and of a path that does not exist
PIECE = re.compile(r"^(?=diff --git )", re.M)  # where one file's changes begin
HIDDEN = re.compile(r"\*\*\*|\[\w+\]|~")  # what a masked path may hold
CHANGED = re.compile(r"^\+\+\+ b/([^\t\n]+)", re.M)


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
    bill: Bill = field(default_factory=Bill)
    """What all questions together cost."""
    unreachable: bool = False
    """Whether nobody answered."""
    until: float | None = None
    """When somebody will again, in epoch seconds, where that is known."""


@dataclass(frozen=True)
class _Case:
    """What all questions of one ruling have in common."""

    root: Path
    evidence: Evidence
    settings: Any
    models: Sequence[str]
    room: int
    """Bytes for all that prompts/dod_validation.md is filled with."""
    parts: dict[str, str]
    """What it is filled with; the criteria and the files that were asked for come to it."""
    changes: Sequence[str]
    """What changed, by file."""


def judge(
    mission: Mission, criteria: Sequence[Criterion], evidence: Evidence, settings: Any, models: Sequence[str] = ()
) -> Ruling:
    """Judge these criteria, all at once where they fit into one prompt.

    models: ids, first choice first; those of the settings when empty. Nothing that the LLM does makes this fail: then
    nothing is judged.
    """
    ruling = Ruling()
    case = _case(mission, evidence, settings, models)
    for batch in _batches(criteria, min(case.room // 2, case.room - BESIDES)):
        try:
            said = _decide(ruling, case, batch)
        except NoAnswer as error:
            ruling.unreachable = isinstance(error, Unreachable)
            ruling.until = error.until if isinstance(error, Unreachable) else None
            log.warn(f"the judge gave no usable answer, so nothing is judged: {error}")
            break
        for criterion in batch:
            if verdicts := [verdict for verdict in said["verdicts"] if verdict["id"] == criterion.id]:
                ruling.judgements.append(_judgement(verdicts, evidence))
    return ruling


def _decide(ruling: Ruling, case: _Case, criteria: Sequence[Criterion]) -> dict[str, Any]:
    """One question, or two when the judge wants to read files first. Raises NoAnswer."""
    said = _ask(ruling, case, criteria, ())
    return _ask(ruling, case, criteria, said["files"]) if said["files"] else said


def _ask(ruling: Ruling, case: _Case, criteria: Sequence[Criterion], wishes: Sequence[str]) -> dict[str, Any]:
    """One question, booked whether or not its answer is of use. Raises NoAnswer."""
    objection = _objection([criterion.id for criterion in criteria], deciding=bool(wishes))
    user = _user(case, criteria, wishes)
    question = llm.Question(_text(RULES), user, "judge", case.models, objection, root=case.root)
    try:
        answer = llm.ask(question, case.settings)
    except NoAnswer as error:
        _book(ruling.bill, error.bill)
        raise
    _book(ruling.bill, answer.bill)
    ruling.model = answer.model
    return answer.content


def _book(total: Bill, bill: Bill) -> None:
    total.cost_usd += bill.cost_usd
    total.calls += bill.calls
    total.unknown += bill.unknown
    for kind, count in bill.tokens.items():
        total.tokens[kind] = total.tokens.get(kind, 0) + count


def _objection(ids: Sequence[str], deciding: bool) -> Callable[[dict[str, Any]], str]:
    """What the judge should mend in an answer; raised once, since half of an answer is better than none.

    A quote that is not in the tree is not mended: to be told so would teach it to look for one that is.
    """
    raised: list[str] = []

    def objection(content: dict[str, Any]) -> str:
        if raised or (content["files"] and not deciding):
            return ""
        verdicts = content["verdicts"]
        if missing := [id for id in ids if all(verdict["id"] != id for verdict in verdicts)]:
            raised.append(f"There is no verdict on: {', '.join(missing)}. Decide from what you were shown.")
        if bare := [v["id"] for v in verdicts if v["id"] in ids and v["met"] and not v["quotes"]]:
            raised.append(f"Called met, but without a quote: {', '.join(bare)}. Prove it, or say that it is not met.")
        return " ".join(raised)

    return objection


# --------------------------------------------------------------------------------------------------------
# What it sees
# --------------------------------------------------------------------------------------------------------


def _text(name: str) -> str:
    return (prompt.FOLDER / name).read_text("utf-8")


def _shown(text: str) -> str:
    """A text as it is sent: as data, and without secrets and personal data."""
    return log.mask_personal(prompt.as_data(text))


def _batches(criteria: Sequence[Criterion], room: int) -> Iterator[list[Criterion]]:
    """The criteria in their order, as many at a time as take at most so many bytes."""
    batch: list[Criterion] = []
    for criterion in criteria:
        if size(_item(criterion)) > room:
            log.warn(f"criterion {criterion.id} is too long for the judge: shorten it, or raise openrouter.max_prompt")
            continue
        if sum(size(_item(other)) + 1 for other in batch) + size(_item(criterion)) > room:
            yield batch
            batch = []
        batch.append(criterion)
    if batch:
        yield batch


def _item(criterion: Criterion) -> str:
    return f"- {_shown(f'{criterion.id}: {criterion.criteria}')}"


def _case(mission: Mission, evidence: Evidence, settings: Any, models: Sequence[str]) -> _Case:
    room = prompt.room(settings.openrouter.max_prompt) - size(_text(RULES)) - size(_text(CASE))
    changes = [piece.rstrip("\n") for piece in PIECE.split(_shown(evidence.diff)) if piece]
    parts = {
        "title": _shown(mission.title),
        "description": _shown(mission.description) or "none",
        "constraints": _shown("\n".join(f"- {item}" for item in mission.constraints)) or "none",
        "files": _list(evidence) or "none",
        "diff": "\n".join(changes) or "none",
    }
    return _Case(mission.repository, evidence, settings, models, room, parts, changes)


def _user(case: _Case, criteria: Sequence[Criterion], wishes: Sequence[str]) -> str:
    """The question, with what there is room for."""
    blocks = [_block(path, case.evidence) for path in dict.fromkeys(wishes)]
    contents = f"{FENCE}{BETWEEN.join(blocks)}{END}" if blocks else "none yet"
    parts = {**case.parts, "criteria": "\n".join(map(_item, criteria)), "contents": contents}
    fitted = prompt.fit(parts, ORDER, case.room)  # what it cut of these two is cut again, file by file
    if fitted["diff"] != parts["diff"]:
        fitted["diff"] = _share(case.changes, size(fitted["diff"]), "\n")
    if fitted["contents"] != contents:
        inside = size(fitted["contents"]) - size(FENCE + END)
        fitted["contents"] = f"{FENCE}{_share(blocks, inside, BETWEEN)}{END}"
    return string.Template(_text(CASE)).substitute(fitted)  # not prompt.fill: quotes are held against every space


def _list(evidence: Evidence) -> str:
    """Paths, in the order in which they matter: what changed, then what is near the root."""
    changed = {*CHANGED.findall(evidence.diff)}
    files = sorted(evidence.files, key=lambda path: (path not in changed, path.count("/"), path))
    return _shown("\n".join(files))


def _block(path: str, evidence: Evidence) -> str:
    """A file that the judge asked for."""
    text = _read(_meant(path, evidence), evidence)
    if text is None:
        return f"{_shown(path)[:SHOWN]}\n(not a text file of the tree)"
    return f"{_shown(path)}\n{_shown(text)}"


def _meant(path: str, evidence: Evidence) -> str:
    """The file that a path from the judge stands for: it was shown masked."""
    if path in evidence.files or not HIDDEN.search(path):
        return path
    meant = [name for name in evidence.files if _shown(name) == path]
    return meant[0] if len(meant) == 1 else path


def _read(path: str, evidence: Evidence) -> str | None:
    text = evidence.read(path) if path in evidence.files else None
    return None if text is None else text.replace("\r\n", "\n")  # models quote with plain line ends


def _share(pieces: Sequence[str], room: int, joint: str) -> str:
    """Texts that take so many bytes together: short ones whole, of each long one an equal part, and how many more."""
    shown = list(pieces[: max(1, room // LEAST)])
    more = [f"[{len(pieces) - len(shown)} more files are not shown]"] if len(shown) < len(pieces) else []
    left = room - size(joint) * (len(shown) + len(more) - 1) - sum(map(size, more))
    for done, at in enumerate(sorted(range(len(shown)), key=lambda at: size(shown[at]))):
        shown[at] = prompt.cut(shown[at], left // (len(shown) - done))
        left -= size(shown[at])
    return joint.join([*shown, *more])


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
    quotes = tuple(Quote(_meant(quote["path"], evidence), _bare(quote["text"])) for quote in first["quotes"])
    for quote in quotes:
        if fault := _fault(quote, evidence):
            shown = f"{_shown(quote.path)[:SHOWN]}: {quote.text[:SHOWN]!r}"
            return Judgement(first["id"], False, f"the judge says it is met, but its quote {fault}: {shown}")
    return Judgement(first["id"], True, first["reason"], quotes)


def _fault(quote: Quote, evidence: Evidence) -> str:
    """Why a quote does not hold; empty when it does."""
    text = _read(quote.path, evidence)
    if text is None:
        return "is from what is not a text file of the tree"
    if len("".join(quote.text.split())) < QUOTE:
        return f"has fewer than {QUOTE} characters"
    there, shown = quote.text in text, quote.text in _shown(text)
    if log.MASK in quote.text or there != shown:
        return "holds what was masked"
    return "" if there else "is not in that file"


def _bare(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
