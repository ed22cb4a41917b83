"""Criteria that no command can check: an LLM judges them, on quotes that the kit looks up itself.

    ruling = judge.judge(mission, criteria, evidence, settings, models, saved)

The judge sees the mission, the files' names and what changed, may ask once for the text of some files, and never
sees a word of the worker's report. "Met" counts only with quotes that are literally in the tree. Whatever else it
says or fails to say, nothing is met by that. Its prompt stays below openrouter.max_prompt; ORDER says what is cut. What
it said of a tree is not asked again of the same tree, unless a quote of it did not hold.

What is not covered: what stands in a file, or in what changed, beyond LOOKED_AT; and whether a quote that is there
proves what it is said to prove. That is the LLM's judgement, and the worker writes the files that it reads.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llm
import log
import personal
import prompt
from asking import Bill, NoAnswer, Unreachable
from llm import Saved
from mission import Criterion, Mission, MissionError
from prompt import HEAD, size

RULES, CASE = "judge.md", "dod_validation.md"  # in prompts/
TREE = "tree"  # key of a saved answer: digest of the tree that it is about
FENCE, END = "A file, its path in the first line:\n<data>\n", "\n</data>"
BETWEEN = f"{END}\n\n{FENCE}"
UNBROKEN = 300  # characters dropped at the end of what has no place to cut it; half a secret may be among them
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
LOOKED_AT = 1_000_000  # characters of a file, and of what changed, that are looked at
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
    useless: bool = False
    """Whether it could be reached, and did not judge all that it was asked about."""
    avoided: int = 0
    """Questions that were answered from `saved`."""


@dataclass(frozen=True)
class _File:
    """What is looked at of a file."""

    text: str
    shown: str
    """As the judge sees it."""
    is_whole: bool


class _Tree:
    """The evidence of one ruling, of which every file is read and masked once."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        self.names = frozenset(evidence.files)
        self._by_shown: dict[str, list[str]] = {}
        self.digest = hashlib.sha256("\0".join([evidence.diff, *evidence.files]).encode("utf-8", "replace")).hexdigest()
        self._files: dict[str, _File | None] = {}

    def file(self, path: str) -> _File | None:
        """One of the files; None when it is not listed, or no text."""
        if path in self.names and path not in self._files:
            text = self.evidence.read(path)
            self._files[path] = None if text is None else _file(text)
        return self._files.get(path)

    def meant(self, path: str) -> str:
        """The file that a path from the judge stands for: it was shown masked."""
        if path in self.names or not HIDDEN.search(path):
            return path
        if not self._by_shown:
            for name in self.names:
                self._by_shown.setdefault(_shown(name), []).append(name)
        meant = self._by_shown.get(path, [])
        return meant[0] if len(meant) == 1 else path


@dataclass(frozen=True)
class _Case:
    """What all questions of one ruling have in common."""

    root: Path
    tree: _Tree
    settings: Any
    models: Sequence[str]
    saved: Saved | None
    room: int
    """Bytes for all that prompts/dod_validation.md is filled with."""
    parts: dict[str, str]
    """What it is filled with; the criteria and the files that were asked for come to it."""
    changes: Sequence[str]
    """What changed, by file."""


def judge(
    mission: Mission,
    criteria: Sequence[Criterion],
    evidence: Evidence,
    settings: Any,
    models: Sequence[str] = (),
    saved: Saved | None = None,
    left_usd: float | None = None,
) -> Ruling:
    """Judge these criteria, all at once where they fit into one prompt.

    models: ids, first choice first; those of the settings when empty. saved: answers to earlier questions, see llm.ask;
    those are added that are worth it. left_usd: what may still be spent; no further question is asked when that is used
    up. Nothing that the LLM does makes this fail: then nothing is judged.
    """
    ruling, put, failed = Ruling(), list[str](), False
    try:
        case = _case(mission, evidence, settings, models, saved)
        for batch in _batches(criteria, min(case.room // 2, case.room - BESIDES)):
            if left_usd is not None and ruling.bill.cost_usd >= left_usd:
                log.warn("the mission's money is used up before everything was judged")
                break
            put += [criterion.id for criterion in batch]
            ruling.judgements += _decide(ruling, case, batch)
    except (NoAnswer, MissionError) as error:  # the latter: a text of prompts/ was edited meanwhile
        failed = True
        ruling.unreachable = isinstance(error, Unreachable)
        ruling.until = error.until if isinstance(error, Unreachable) else None
        log.warn(f"the judge gave no usable answer, so nothing is judged: {error}")
    missing = {*put} - {judgement.id for judgement in ruling.judgements}
    ruling.useless = bool(failed or missing) and not ruling.unreachable
    return ruling


def _decide(ruling: Ruling, case: _Case, criteria: Sequence[Criterion]) -> list[Judgement]:
    """One question, or two when the judge wants to read files first. Raises NoAnswer."""
    said, answers = _ask(ruling, case, criteria, ())
    if said["files"]:
        _keep(case, answers)
        said, answers = _ask(ruling, case, criteria, said["files"])
    of_each = ([verdict for verdict in said["verdicts"] if verdict["id"] == one.id] for one in criteria)
    judgements = [_judgement(verdicts, case.tree) for verdicts in of_each if verdicts]
    met = {verdict["id"] for verdict in said["verdicts"] if verdict["met"]}
    if len(judgements) == len(criteria) and all(found.met or found.id not in met for found in judgements):
        _keep(case, answers)
    return judgements


def _ask(
    ruling: Ruling, case: _Case, criteria: Sequence[Criterion], wishes: Sequence[str]
) -> tuple[dict[str, Any], Saved | None]:
    """One question, booked whether or not its answer is of use; and all answers about this tree. Raises NoAnswer."""
    objection = _objection([criterion.id for criterion in criteria], deciding=bool(wishes))
    user = _user(case, criteria, wishes)
    question = llm.Question(prompt.fill(RULES, {}), user, "judge", case.models, objection, root=case.root)
    tree, saved = case.tree.digest, case.saved
    answers = None if saved is None else {key: saved[key] for key in saved if saved[key].get(TREE) == tree}
    try:
        answer = llm.ask(question, case.settings, answers)
    except NoAnswer as error:
        _book(ruling.bill, error.bill)
        raise
    _book(ruling.bill, answer.bill)
    ruling.model = answer.model
    ruling.avoided += answer.is_saved
    return answer.content, answers


def _keep(case: _Case, answers: Saved | None) -> None:
    """Save these answers about this tree in the place of those about another one: no prompt shows all of a tree."""
    if case.saved is None or answers is None:
        return
    others = {key: known for key, known in case.saved.items() if TREE not in known}
    case.saved.clear()
    case.saved.update(others, **{key: {**known, TREE: case.tree.digest} for key, known in answers.items()})


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


def _shown(text: str) -> str:
    """A text as it is sent: as data, and without secrets and personal data."""
    return personal.mask(prompt.as_data(text))


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


def _case(mission: Mission, evidence: Evidence, settings: Any, models: Sequence[str], saved: Saved | None) -> _Case:
    """Raises MissionError where the texts of prompts/ cannot be filled."""
    changes = _changes([piece for piece in PIECE.split(evidence.diff) if piece])
    parts = {
        "title": _shown(mission.title),
        "description": _shown(mission.description) or "none",
        "constraints": _shown("\n".join(f"- {item}" for item in mission.constraints)) or "none",
        "files": _list(evidence) or "none",
        "diff": "\n".join(changes) or "none",
    }
    names = {name: f"${name}" for name in (*parts, "criteria", "contents")}
    texts = size(prompt.fill(RULES, {})) + size(prompt.fill(CASE, names))
    room = prompt.room(settings.openrouter.max_prompt) - texts
    return _Case(mission.repository, _Tree(evidence), settings, models, saved, room, parts, changes)


def _user(case: _Case, criteria: Sequence[Criterion], wishes: Sequence[str]) -> str:
    """The question, with what there is room for."""
    blocks = [_block(path, case.tree) for path in dict.fromkeys(wishes)]
    contents = f"{FENCE}{BETWEEN.join(blocks)}{END}" if blocks else "none yet"
    parts = {**case.parts, "criteria": "\n".join(map(_item, criteria)), "contents": contents}
    fitted = prompt.fit(parts, ORDER, case.room)  # what it cut of these two is cut again, file by file
    if fitted["diff"] != parts["diff"]:
        fitted["diff"] = _share(case.changes, size(fitted["diff"]), "\n")
    if fitted["contents"] != contents:
        inside = size(fitted["contents"]) - size(FENCE + END)
        fitted["contents"] = f"{FENCE}{_share(blocks, inside, BETWEEN)}{END}"
    text = (prompt.FOLDER / CASE).read_text("utf-8")
    return string.Template(text).substitute(fitted)  # not prompt.fill: quotes are held against every space


def _list(evidence: Evidence) -> str:
    """Paths, in the order in which they matter: what changed, then what is near the root."""
    changed = {*CHANGED.findall(evidence.diff)}
    files = sorted(evidence.files, key=lambda path: (path not in changed, path.count("/"), path))
    return _shown(_first("\n".join(files)))


def _block(path: str, tree: _Tree) -> str:
    """A file that the judge asked for."""
    file = tree.file(tree.meant(path))
    if file is None:
        return f"{_shown(path)[:SHOWN]}\n(not a text file of the tree)"
    return f"{_shown(path)}\n{file.shown}"


def _file(text: str) -> _File:
    text = text.replace("\r\n", "\n")  # models quote with plain line ends
    first = _first(text)
    return _File(first, _shown(first), first == text)


def _first(text: str, limit: int = LOOKED_AT) -> str:
    """What is looked at of a text; cut between words, so that no secret is cut in half."""
    if len(text) <= limit:
        return text
    end = max(text.rfind("\n", 0, limit), text.rfind(" ", 0, limit)) + 1
    return text[:end] if end > limit // 2 else text[: limit - UNBROKEN]


def _changes(pieces: Sequence[str]) -> list[str]:
    """What is looked at of the changes, by file: short ones whole, of each long one an equal part, of too many none."""
    shown, left = [""] * len(pieces), LOOKED_AT
    order = sorted(range(min(len(pieces), LOOKED_AT // LEAST)), key=lambda at: len(pieces[at]))
    for done, at in enumerate(order):
        first = _first(pieces[at], left // (len(order) - done))
        shown[at], left = _shown(first), left - len(first)
    return shown


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


def _judgement(verdicts: Sequence[dict[str, Any]], tree: _Tree) -> Judgement:
    """What the verdicts on one criterion are worth."""
    first = verdicts[0]
    if any(verdict != first for verdict in verdicts):
        return Judgement(first["id"], False, "the judge answered twice, and differently")
    if not first["met"]:
        return Judgement(first["id"], False, first["reason"])
    if not first["quotes"]:
        return Judgement(first["id"], False, "the judge says it is met and quotes nothing that proves it")
    quotes = tuple(Quote(tree.meant(quote["path"]), _bare(quote["text"])) for quote in first["quotes"])
    for quote in quotes:
        if fault := _fault(quote, tree):
            shown = f"{_shown(quote.path)[:SHOWN]}: {quote.text[:SHOWN]!r}"
            return Judgement(first["id"], False, f"the judge says it is met, but its quote {fault}: {shown}")
    return Judgement(first["id"], True, first["reason"], quotes)


def _fault(quote: Quote, tree: _Tree) -> str:
    """Why a quote does not hold; empty when it does."""
    file = tree.file(quote.path)
    if file is None:
        return "is from what is not a text file of the tree"
    if len("".join(quote.text.split())) < QUOTE:
        return f"has fewer than {QUOTE} characters"
    is_there = quote.text in file.text
    if log.MASK in quote.text or is_there != (quote.text in file.shown):
        return "holds what was masked"
    if not is_there and not file.is_whole:
        return f"is not in the first {LOOKED_AT:,} characters of that file, and no more of it is looked at"
    return "" if is_there else "is not in that file"


def _bare(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
