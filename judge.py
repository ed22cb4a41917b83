"""Criteria that no command can check: an LLM judges them by quotes, which are looked up in the committed files.

The judge sees the mission, the names of the files and what changed, and may ask once for the text of some files. It
never sees the worker's report. "Met" counts only with quotes that are literally in the commit. Limitation: whether a
quote proves what it is said to prove is the LLM's judgement, and the worker writes the files that it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import llm
import log
import prompt
from mission import Criterion, Mission
from repo import Repo
from state import CriterionState, Usage, Verdict

QUOTE = 12  # characters, without spaces, below which a quote proves nothing
QUOTES, FILES = 10, 12  # that are looked up for one criterion, that may be asked for
REASON, SHOWN = 1000, 100  # characters of a reason, and of a rejected quote that it shows


@dataclass
class Judgements:
    """What the judge said, and what that cost."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    failed: bool = False  # whether criteria that it was asked about got no verdict
    until: float | None = None  # epoch seconds from which on it can be asked again, where that is known


def still_valid(
    states: Mapping[str, CriterionState], criteria: Sequence[Criterion], files: Mapping[str, str], commit: str
) -> dict[str, Verdict]:
    """Return the verdicts that need no new judgement: proofs that still hold, and "unmet" of this very commit."""
    verdicts = {}
    for criterion in criteria:
        record, proof = states[criterion.id], states[criterion.id].proof
        is_current = proof and (proof["where"] != "user" or proof["commit"] == commit)
        if proof and is_current and all(files.get(quote["path"]) == quote["blob"] for quote in proof["quotes"]):
            verdicts[criterion.id] = Verdict(criterion.id, "met", tail=proof["reason"], where=proof["where"])
        elif record.judged_at == commit and record.verdict == "unmet":
            verdicts[criterion.id] = Verdict(criterion.id, "unmet", failure=record.failure)
        else:
            record.proof = None
    return verdicts


def judge(
    mission: Mission,
    criteria: Sequence[Criterion],
    repo: Repo,
    base: str,
    commit: str,
    files: Mapping[str, str],
    settings: Any,
    left_usd: float | None,
) -> Judgements:
    """Judge criteria, as many at a time as fit into a fifth of a prompt; what stays undecided has no verdict.

    base, commit: between which the work was done. files: path and blob of every file in the commit. left_usd: dollars
    after which no further question is asked, None without a limit. Raises MissionError, GitError, proc.Interrupted.
    """
    result, left, room = Judgements(), list(criteria), settings.openrouter.max_prompt // 5
    diff = repo.diff(base, commit) if criteria else ""
    while left and not result.failed and (left_usd is None or result.usage.cost_usd < left_usd):
        batch = [left.pop(0)]
        while left and len(_lines([*batch, left[0]]).encode()) <= room:
            batch.append(left.pop(0))
        try:
            if len(_lines(batch).encode()) > room:
                raise llm.NoAnswer(f"criterion {batch[0].id} is too long: shorten it, or raise openrouter.max_prompt")
            result.verdicts |= _Hearing(mission, batch, diff, files, repo, settings, result.usage).verdicts()
        except llm.NoAnswer as error:
            log.warn(f"the judge gave no usable answer: {error}")
            result.until = error.until
        result.failed = any(criterion.id not in result.verdicts for criterion in batch)
    return result


def _lines(criteria: Sequence[Criterion]) -> str:
    return "\n".join(f"- {criterion.id}: {criterion.criteria}" for criterion in criteria)


@dataclass
class _Hearing:
    """What is judged with one question, or with two where the judge wants to read files first."""

    mission: Mission
    criteria: Sequence[Criterion]
    diff: str
    files: Mapping[str, str]
    repo: Repo
    settings: Any
    usage: Usage

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdicts by criterion; of two that differ, "not met" counts. Raises NoAnswer."""
        answer = self._ask([])
        if answer.content["files"]:
            answer = self._ask(answer.content["files"][:FILES])
        worst = {one["id"]: one for one in sorted(answer.content["verdicts"], key=lambda one: not one["met"])}
        ids = [criterion.id for criterion in self.criteria if criterion.id in worst]
        return {id: self._verdict(worst[id], answer.model) for id in ids}

    def _ask(self, wanted: Sequence[str]) -> llm.Answer:
        most = 4 * self.settings.openrouter.max_prompt  # characters of one text that are masked to be cut to its share
        changed = [path for path in re.findall(r"^\+\+\+ b/([^\t\n]+)", self.diff, re.M) if path in self.files]
        texts = {
            "title": self.mission.title,
            "description": self.mission.description,
            "constraints": "\n".join(f"- {text}" for text in self.mission.constraints),
            "criteria": _lines(self.criteria),
            "files": "\n".join(dict.fromkeys([*changed, *self.files]))[:most],
            "diff": self.diff[:most],
        }
        contents = {path: (self._text(path) or "(no text file of the commit)")[:most] for path in wanted}
        system, user = prompt.for_judge(texts, contents, self.settings.openrouter.max_prompt)
        complaints: list[str] = []

        def objection(content: dict[str, Any]) -> str:
            """Return which criteria are not decided; once, since half an answer is better than none."""
            if complaints or (content["files"] and not wanted):
                return ""
            decided = {one["id"] for one in content["verdicts"] if one["quotes"] or not one["met"]}
            if missing := [one.id for one in self.criteria if one.id not in decided]:
                complaints.append(f"There is no verdict on, or no quote that proves: {', '.join(missing)}. Decide.")
            return "".join(complaints)

        question = llm.Question(system, user, "judge", objection=objection, root=self.mission.repository)
        try:
            answer = llm.ask(question, self.settings)
        except llm.NoAnswer as error:
            self.usage.add(error.usage)
            raise
        self.usage.add(answer.usage)
        return answer

    def _verdict(self, answer: Mapping[str, Any], model: str) -> Verdict:
        """Return what a verdict of the judge counts: "met" is void unless every quote of it holds."""
        id, reason, proven = answer["id"], answer["reason"][:REASON], list[dict[str, str]]()
        if not answer["met"]:
            return _unmet(id, reason)
        if not answer["quotes"]:
            return _unmet(id, "the judge says it is met and quotes nothing that proves it")
        for quote in answer["quotes"][:QUOTES]:
            path, text = quote["path"], quote["text"].replace("\r\n", "\n").strip()
            if len("".join(text.split())) < QUOTE or text not in (self._text(path) or ""):
                shown = log.mask(f"{path}: {text!r}")[:SHOWN]
                return _unmet(id, f"the judge says it is met, but its quote is too short or not in that file: {shown}")
            proven.append({"path": path, "blob": self.files[path], "text": text[:SHOWN]})
        evidence = {"by": model, "reason": reason, "quotes": proven}
        return Verdict(id, "met", tail=reason, where="judge", evidence=evidence)

    def _text(self, path: str) -> str | None:
        text = self.repo.read(self.files[path]) if path in self.files else None
        return None if text is None else text.replace("\r\n", "\n")


def _unmet(id: str, reason: str) -> Verdict:
    return Verdict(id, "unmet", tail=reason, failure=prompt.fingerprint(reason), where="judge")
