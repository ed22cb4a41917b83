"""What is known of each criterion: its verdicts, who broke it, what proves it; and what the worker claimed of it.

    for line in ledger.note_verdicts(memory, verdicts): ...
    for line in ledger.note_claims(memory, claims): ...

Part of the document that schema/state.json describes, like progress.py. No files, no processes.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import dod
from situation import digest

REGRESSIONS = 6  # kept for each criterion, of many criteria fewer
MESSAGE = 200  # characters of each of them
CHANGES = 60  # changes of verdict kept for each criterion
TAMPERING = 20  # changes of the referee kept in all
QUOTES = 5  # of a judge's evidence whose text is kept; all of them are watched
NAMED = 10  # criteria or claims kept of one session
STREAK = 3  # iterations in a row below the best commit, after which it is gone back to
FAILED = 8  # instructions remembered of a criterion that did not make it true
SEEN = 4  # earlier failures remembered of a criterion, by which one that comes back is known
TRIES = 5  # sessions on a criterion that is not met, whatever changed, that weigh as much as one without any change
DEADLOCK = 5  # times that they did so since a person was asked, until a person is asked
CONFLICT = 3  # times that one criterion became met while another broke, until they are called conflicting
STUCK = 6  # iterations without a newly met criterion, until morale is low
RETURNS = 2  # times that one commit is gone back to

Memory = dict[str, Any]


def now() -> str:
    """The time in UTC, for people; nothing is decided by it."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def note_verdicts(memory: Memory, verdicts: Mapping[str, dod.Verdict]) -> list[str]:
    """Take in what the checks say now; one line for people for each verdict that changed."""
    lines = []
    for id, verdict in verdicts.items():
        known = memory["criteria"][id]
        _note_failure(memory, id, verdict)
        _note_proof(memory, known, verdict)
        if verdict.verdict != known["verdict"]:
            broke = _regressed(known, verdict)
            if broke:
                known["regressions"] = [*known["regressions"], _whose_work(memory)][-_share(memory, REGRESSIONS) :]
            if verdict.verdict == "met" and known["first_met"] is None:
                known["first_met"] = memory["iterations"]
            why = f" (regression: {broken_by(known)})" if broke else ""
            lines.append(f"criterion {id}: {known['verdict']} -> {verdict.verdict}{why}")
            known["verdict"], known["since"] = verdict.verdict, memory["iterations"]
        _note_change(memory, known)
    count(memory)
    _note_best(memory)
    return lines


def _note_failure(memory: Memory, id: str, verdict: dod.Verdict) -> None:
    """Count the sessions that changed nothing in a failure, or brought back an earlier one; and slowly all others."""
    known, failure = memory["criteria"][id], dod.failure(verdict)
    worked_on = id == (memory["plan"] or {}).get("focus")
    if not failure:
        known.update(stalls=0, tries=0, seen=[], failed=[], failure="", impossible=None)
        return
    if worked_on:
        given = digest(memory["plan"]["instruction"])
        known["failed"] = [*(one for one in known["failed"] if one != given), given][-_share(memory, FAILED) :]
    if failure != known["failure"]:
        known["impossible"] = None  # the checks say that something moved
    unchanged = failure in (known["failure"], *known["seen"])
    known["tries"] += worked_on
    known["stalls"] = max(known["stalls"] + worked_on if unchanged else 0, known["tries"] // TRIES)
    known["seen"] = [*(one for one in known["seen"] if one != failure), failure][-_share(memory, SEEN) :]
    known["failure"] = failure


def _note_proof(memory: Memory, known: dict[str, Any], verdict: dod.Verdict) -> None:
    known["flaky"] |= verdict.flaky
    known["seen_red"] |= verdict.verdict in ("unmet", "timeout", "flaky")  # a broken command has shown nothing yet
    if verdict.where == "checkout":
        known["unconfirmed"] = verdict.verdict != "met"
    if verdict.digest and verdict.runs:
        shown = ("code", "seconds", "digest", "runs", "where")
        known["proof"] = {**{k: getattr(verdict, k) for k in shown}, "commit": memory["commit"], "at": now()}


def _regressed(known: Mapping[str, Any], verdict: dod.Verdict) -> bool:
    """Whether what was met is not any more, by somebody's doing.

    What runs last, or is judged, is unjudged as soon as another criterion is red; that alone breaks nothing. Nor does
    a clean checkout: it says that the criterion was never met.
    """
    was_well = known["first_met"] is not None and known["verdict"] in ("met", "unjudged")
    return was_well and verdict.verdict not in ("met", "unjudged") and verdict.where != "checkout"


def _whose_work(memory: Memory) -> dict[str, Any]:
    """The iteration, commit, session and focus that a regression is put down to; without a session, to a person."""
    plan = memory["plan"]
    session = memory["worker"]["session"] if plan and memory["worker"] else ""
    here = {"iteration": memory["iterations"], "commit": memory["commit"][:12]}
    return {**here, "session": session, "focus": plan["focus"] if plan else ""}


def broken_by(known: Mapping[str, Any]) -> str:
    """Who broke a criterion last, in which iteration and commit; "" when nobody did."""
    if not known["regressions"]:
        return ""
    last = known["regressions"][-1]
    who = f"while working on {last['focus']}" if last["focus"] else "outside of the sessions"
    return f"broken in iteration {last['iteration']}, commit {last['commit'][:12] or 'none'}, {who}"


def _note_change(memory: Memory, known: dict[str, Any]) -> None:
    """Remember the verdict as one letter, where it is another than before."""
    letter = {"met": "m", "flaky": "f", "tampered": "t", "unjudged": "?"}.get(known["verdict"], "u")
    if letter == "u" and known["regressions"] and known["regressions"][-1]["iteration"] >= _last_met(known):
        letter = "r"
    changes = [change for change in known["changes"] if change[0] != memory["iterations"]]
    if not changes or changes[-1][1] != letter:
        changes.append([memory["iterations"], letter])
    known["changes"] = changes[-_share(memory, CHANGES) :]


def _share(memory: Memory, most: int) -> int:
    """How many entries each of the criteria may keep, so that the state of a large mission stays small."""
    return max(1, most // 6, min(most, most * 20 // len(memory["criteria"])))


def _last_met(known: Mapping[str, Any]) -> int:
    return max((iteration for iteration, letter in known["changes"] if letter == "m"), default=0)


def _note_best(memory: Memory) -> None:
    met, best = len(memory["completed_tasks"]), memory["best"] or {"met": 0, "returns": 0}
    if met and met >= best["met"]:
        returns = best["returns"] if met == best["met"] else 0
        here = {"commit": memory["commit"], "met": met, "iteration": memory["iterations"]}
        memory["best"] = {**here, "returns": returns}


def note_evidence(memory: Memory, id: str, kind: str, by: str, reason: str, quotes: list[dict[str, str]]) -> None:
    """What closes a criterion without a check. kind: "judged" by a model, or "accepted" by a person."""
    who = {"kind": kind, "by": by, "at": now(), "commit": memory["commit"]}
    memory["criteria"][id]["evidence"] = {**who, "reason": reason[:MESSAGE], "quotes": _short(quotes)}


def _short(quotes: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {**quote, "text": quote["text"][: MESSAGE if number < QUOTES else 0]} for number, quote in enumerate(quotes)
    ]


def note_confirmed(memory: Memory, where: str, seconds: float, setup: dod.Verdict | None) -> None:
    """Remember on what commit, and where, all criteria were met."""
    done = {"code": setup.code, "seconds": setup.seconds, "digest": setup.digest} if setup else None
    here = {"commit": memory["commit"], "at": now(), "where": where}
    memory["confirmed"] = {**here, "seconds": round(seconds, 1), "setup": done}


def note_tampering(memory: Memory, changes: Sequence[tuple[str, str, str]]) -> None:
    """Remember what was changed of the referee. changes: path, what became of it, where the changed version is."""
    found = [
        {"iteration": memory["iterations"], "path": path, "what": what, "kept": kept} for path, what, kept in changes
    ]
    memory["tampering"] = [*memory["tampering"], *found][-TAMPERING:]
    memory["metrics"]["tampered"] += len(found)


def note_claims(memory: Memory) -> list[str]:
    """Hold what the worker said of its work against the verdicts; one line for people for each lie.

    What is unjudged is neither true nor false.
    """
    verdicts, last = {id: known["verdict"] for id, known in memory["criteria"].items()}, memory["last"]
    made, lies = 0, []
    for claim in last["said"]:
        judged = [id for id in claim["ids"] if verdicts.get(id, "unjudged") != "unjudged"]
        false = [id for id in judged if verdicts[id] != "met"]
        made += bool(judged)
        lies += [{"text": claim["text"], "false": false[:NAMED]}] if false else []
    last["claims"] = {"made": made, "lies": lies[:NAMED]}
    memory["metrics"]["claims_made"] += made
    memory["metrics"]["claims_false"] += len(lies)
    return [f'the worker reported "{lie["text"]}"; the checks say otherwise: {", ".join(lie["false"])}' for lie in lies]


def conflicts(memory: Memory, least: int = CONFLICT, after: int = 0) -> list[tuple[str, str]]:
    """Pairs of criteria of which, so many times, one became met in the very iteration in which the other broke.

    after: only what happened later than this iteration counts.
    """
    turns = {id: dict(known["changes"]) for id, known in memory["criteria"].items() if known["regressions"]}
    found = []
    for first, second in itertools.combinations(turns, 2):
        both = (n for n in turns[first].keys() & turns[second].keys() if n > after)
        met_and_broken = [n for n in both if {turns[first][n], turns[second][n]} == {"m", "r"}]
        found += [(first, second)] * (len(met_and_broken) >= least)
    return found


def deadlock(memory: Memory) -> list[tuple[str, str]]:
    """Pairs that have gone on breaking each other although the worker was told."""
    return conflicts(memory, DEADLOCK, memory["answered"])


def barren(memory: Memory) -> int:
    """Iterations since more criteria were met than ever before, or since a person answered."""
    most, last = 0, int(memory["answered"])
    for entry in memory["history"]:
        if entry["met"] > most:
            most, last = entry["met"], max(last, entry["iteration"])
    return int(memory["iterations"]) - last


def note_impossible(memory: Memory, id: str, reason: str) -> str:
    """Remember that the manager calls a criterion impossible; its first reason, if it said so before.

    What the checks say since counts for more: when a failure has changed, the first time is forgotten.
    """
    known = memory["criteria"][id]
    before, known["impossible"] = known["impossible"], reason[:MESSAGE]
    return str(before or "")


def morale(memory: Memory) -> str:
    """rising, steady, struggling or stuck, by what the last iterations brought."""
    best, gains = 0, list[bool]()
    for entry in memory["history"]:
        gains.append(entry["met"] > best)
        best = max(best, entry["met"])
    if gains[-1:] == [True]:
        return "rising"
    if len(gains) >= STUCK and not any(gains[-STUCK:]):
        return "stuck"
    setback = bool(memory["history"] and memory["history"][-1]["broke"])
    return "struggling" if setback or (len(gains) > 1 and not any(gains[-2:])) else "steady"


def way_back(memory: Memory) -> str:
    """The commit that it is time to go back to: the best so far, after a streak of iterations below it; else ""."""
    best, history = memory["best"], memory["history"]
    if not best or best["returns"] >= RETURNS or best["commit"] == memory["commit"]:
        return ""
    since = [entry for entry in history if entry["iteration"] > max(best["iteration"], best.get("returned", 0))]
    streak = since[-STREAK:]
    worse = len(streak) == STREAK and all(entry["met"] < best["met"] for entry in streak)
    return str(best["commit"]) if worse and any(entry["broke"] for entry in since) else ""


def note_return(memory: Memory, commit: str) -> None:
    """The files are again those of the best commit; check them before anything else is decided."""
    best = memory["best"]
    memory["best"] = {**best, "returns": best["returns"] + 1, "returned": memory["iterations"]}
    memory.update(commit=commit, worker=None, current_phase="validation", returning="")
    for known in memory["criteria"].values():
        known["stalls"] = 0


def broke_in(known: Mapping[str, Any], iteration: int) -> bool:
    """Whether that iteration broke the criterion."""
    return bool(known["regressions"]) and known["regressions"][-1]["iteration"] == iteration


def count(memory: Memory) -> None:
    """Sort the criteria by what is met, and measure how far that is."""
    verdicts = {id: known["verdict"] for id, known in memory["criteria"].items()}
    memory["completed_tasks"] = [id for id, verdict in verdicts.items() if verdict == "met"]
    memory["pending_tasks"] = [id for id, verdict in verdicts.items() if verdict != "met"]
    metrics, met, total = memory["metrics"], len(memory["completed_tasks"]), len(verdicts)
    metrics["dod_criteria_completed"], metrics["dod_criteria_total"] = met, total
    metrics["completion_percentage"] = round(100 * met / total, 1)
    metrics["cost_per_criteria"] = round(metrics["estimated_cost"] / met, 4) if met else 0


def standing(memory: Memory) -> dict[str, dict[str, Any]]:
    """What is to be compared after the next checks: verdict, stalls, tries and failure of each criterion."""
    shown = ("verdict", "stalls", "tries", "failure")
    return {id: {name: known[name] for name in shown} for id, known in memory["criteria"].items()}


def fingerprint(text: str) -> str:
    """A short digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
