"""What the mission's memory says: how far it is, what was tried, what it cost. No files, no processes.

    memory = progress.begin(mission, ...)
    progress.note_outcome(memory, outcome)
    situation = progress.situation(memory, mission, tails, max_context)

The document is the one that schema/state.json describes; `state` writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import judge
import ledger
import personal
import repo
from asking import Bill
from claims import Claim
from mission import Criterion, Mission
from situation import Plan, Situation, Standing
from stream import Outcome

HISTORY = 200  # iterations kept one by one; older ones live on in the totals
ERRORS = 20  # kept in all
MESSAGE = 200  # characters of each of them
REPORT = 4000  # characters of the worker's last words
LEFT_OUT = 20  # uncommitted paths named at the end
ARTIFACTS = 100  # files listed of the last commit
TRIED = 8  # sessions that a prompt tells of
NAMED = 10  # criteria or claims kept of one session
NO_SESSION: dict[str, Any] = {
    "kind": "none yet",
    "message": "",
    "turns": 0,
    "report": "",
    "denials": [],
    "claims": {"made": 0, "lies": []},
}
ASKED = {"failures": 0, "since": 0, "until": 0, "useless": 0}  # of an LLM that has answered
NOTHING: Mapping[str, Sequence[str]] = {}
PASSING = ("bill", "avoided", "unreachable", "until")  # of a plan, what is booked at once and not kept with it
FINE = ("none yet", "ended", "turn_cap", "budget_cap")  # ends of a session after which nothing has to be mended
DOCUMENTS = (".md", ".rst", ".txt", ".adoc", ".html")

Memory = ledger.Memory


def begin(mission: Mission, branch: str, base: str, iterations: int, instance: str) -> Memory:
    """The memory of a mission that starts now, or whose state was lost after so many iterations."""
    return {
        "session_id": str(uuid.uuid4()),
        "mission_id": mission.id,
        "repository": str(mission.repository),
        "cc_instance_id": instance,
        "current_phase": "validation",  # the baseline comes before the first session
        "iterations": iterations,
        "completed_tasks": [],
        "pending_tasks": [],
        "artifacts": [],
        "errors": [],
        "timestamp": ledger.now(),
        "mission": {},
        "settings": {"path": "", "digest": "", "suspect": None, "values": {}},
        "criteria": {},
        "plan": None,
        "last": None,
        "worker": None,
        "wait_until": None,
        "wait": None,
        "limited": {},
        **{who: dict(ASKED) for who in ("manager", "judge")},
        "answers": {},
        "alerts": {},
        "notes": [],
        "told": "",
        "blocked": None,
        "answered": 0,
        "branch": branch,
        "start_branch": "",
        "litter": [],
        "left_out": [],
        "base": base,
        "commit": base,
        "tree": "",
        "sealed": "",
        "tampering": [],
        "returning": "",
        "checking": False,
        "confirmed": None,
        "best": None,
        "history": [],
        "metrics": _no_metrics(),
    }


def adopt(memory: Memory, mission: Mission) -> None:
    """Take a mission's text as the accepted one. Criteria that it no longer has, or proves otherwise, are forgotten."""
    memory["mission"] = {"path": str(mission.path), "text": mission.text, "digest": mission.digest, "suspect": None}
    before, memory["criteria"] = memory["criteria"], {}
    for criterion in mission.criteria:
        proof_by = ledger.fingerprint(f"{criterion.check} {criterion.guard}" if criterion.check else criterion.criteria)
        known = before.get(criterion.id, {})
        if known.get("proof_by") != proof_by:
            known = {**_blank(), "proof_by": proof_by, "changes": known.get("changes", [])}
        memory["criteria"][criterion.id] = {**known, "criteria": criterion.criteria, "priority": criterion.priority}
    memory["best"] = None
    ledger.count(memory)


def _blank() -> dict[str, Any]:
    """A criterion that nothing is known of."""
    switches = dict.fromkeys(("seen_red", "proves", "flaky", "unconfirmed"), False)
    lists: dict[str, Any] = {"regressions": [], "changes": [], "seen": [], "failed": []}
    nothing = {"verdict": "unjudged", "since": 0, "first_met": None, "stalls": 0, "tries": 0, "failure": ""}
    return {**nothing, **lists, **switches, "proof": None, "evidence": None, "impossible": None, "cost_usd": 0.0}


# --------------------------------------------------------------------------------------------------------
# What happened
# --------------------------------------------------------------------------------------------------------


def note_outcome(memory: Memory, outcome: Outcome, said: Sequence[Claim] = ()) -> None:
    """Add what a session cost and how it ended to the totals. said: what it claims to be finished."""
    metrics = memory["metrics"]
    metrics["session_count"] += 1
    metrics["worker_seconds"] = round(metrics["worker_seconds"] + outcome.seconds, 1)
    _pay(memory, outcome.cost_usd, outcome.tokens, [memory["plan"]["focus"]] if memory["plan"] else [])
    if outcome.kind == "ended":
        metrics["successful_actions"] += 1
        metrics["error_recoveries"] += metrics["failing"]
        metrics["failing"], memory["told"] = False, ""
    elif outcome.kind != "limit":  # which is nobody's error
        error = {"timestamp": ledger.now(), "message": f"{outcome.kind}: {outcome.message}"[:MESSAGE]}
        memory["errors"] = [*memory["errors"], error][-ERRORS:]
        metrics["failed_actions"] += 1
        metrics["failing"] = True
    before = memory["last"] if has_worked(memory) else {"cost_usd": 0.0, "seconds": 0.0}
    memory["last"] = {
        "iteration": memory["iterations"],
        "kind": outcome.kind,
        "message": outcome.message[:MESSAGE] if outcome.kind != "ended" else "",
        "report": outcome.report[-REPORT:],
        "turns": outcome.turns,
        "cost_usd": before["cost_usd"] + outcome.cost_usd,  # also of a session that was cut short in this iteration
        "seconds": before["seconds"] + outcome.seconds,
        "denials": outcome.denials[:10],
        "said": [{"text": claim.text, "ids": [*claim.ids][:NAMED]} for claim in said],
        "claims": {"made": 0, "lies": []},
    }


def note_plan(memory: Memory, plan: Plan) -> None:
    """Remember the intent of the next session, and what it cost to make it."""
    kept = {name: value for name, value in asdict(plan).items() if name not in PASSING}
    memory["plan"] = {**kept, "cost_usd": 0.0}
    memory["metrics"]["api_calls_avoided"] += plan.avoided
    _pay_llm(memory, plan.bill, [plan.focus])


def plan(memory: Memory) -> Plan:
    """The intent that is remembered."""
    return Plan(**{name: value for name, value in memory["plan"].items() if name != "cost_usd"})


def note_ruling(memory: Memory, ruling: judge.Ruling, judged: Sequence[str]) -> None:
    """Add what a judge cost to the totals. judged: the criteria that it was asked about."""
    memory["metrics"]["api_calls_avoided"] += ruling.avoided
    _pay_llm(memory, ruling.bill, judged)


def _pay_llm(memory: Memory, bill: Bill, criteria: Sequence[str]) -> None:
    metrics = memory["metrics"]
    metrics["api_calls_total"] += bill.calls
    metrics["calls_of_unknown_cost"] += bill.unknown
    metrics["manager_cost"] = round(metrics["manager_cost"] + bill.cost_usd, 6)
    if memory["plan"]:
        memory["plan"]["cost_usd"] = round(memory["plan"]["cost_usd"] + bill.cost_usd, 6)
    _pay(memory, bill.cost_usd, bill.tokens, criteria)


def _pay(memory: Memory, cost_usd: float, tokens: Mapping[str, int], criteria: Sequence[str]) -> None:
    """Add a cost to the totals, and to the criteria that it was paid for, each the same share."""
    metrics = memory["metrics"]
    metrics["estimated_cost"] = round(metrics["estimated_cost"] + cost_usd, 6)
    for name, count in tokens.items():
        metrics["token_usage"][name] += count
    for known in (memory["criteria"][id] for id in criteria if id in memory["criteria"]):
        known["cost_usd"] = round(known["cost_usd"] + cost_usd / len(criteria), 6)


def note_wait(memory: Memory, seconds: float) -> None:
    """Add a wait to the totals."""
    memory["metrics"]["waits"] += 1
    memory["metrics"]["wait_seconds"] = round(memory["metrics"]["wait_seconds"] + seconds, 1)


def note_commit(memory: Memory, commit: repo.Commit) -> None:
    """Remember the commit that holds a session's changes, its files, and what it may not hold."""
    memory["commit"] = commit.sha
    memory["artifacts"] = [
        {"path": path, "type": _kind(path), "version": commit.sha} for path in commit.changed[:ARTIFACTS]
    ]
    left_out = (f"{path}: {reason}" for path, reason in commit.left_out.items() if reason != repo.TOOLS_OWN)
    memory["left_out"] = list(left_out)[:LEFT_OUT]


def close_iteration(memory: Memory, commit: repo.Commit, statistics: Mapping[str, int]) -> None:
    """Turn the carried out plan into a line of the history."""
    plan, last = memory["plan"], memory["last"]
    memory["history"] = [
        *memory["history"],
        {
            "iteration": memory["iterations"],
            "focus": plan["focus"],
            "strategy": plan["strategy"],
            "source": plan["source"],
            "kind": last["kind"],
            "turns": last["turns"],
            "cost_usd": round(last["cost_usd"], 4),
            "manager_usd": round(plan["cost_usd"], 4),
            "seconds": round(last["seconds"], 1),
            "commit": commit.sha[:12] if commit.changed else "",
            "met": len(memory["completed_tasks"]),
            "broke": [id for id, known in memory["criteria"].items() if ledger.broke_in(known, memory["iterations"])][
                :NAMED
            ],
            "claims": [last["claims"]["made"], len(last["claims"]["lies"])],
            "tampered": sum(entry["iteration"] == memory["iterations"] for entry in memory["tampering"]),
            "report": personal.mask(" ".join(last["report"].split()))[:120],  # half of what is personal is not seen
        },
    ][-HISTORY:]
    memory["metrics"].update(statistics)
    memory["metrics"]["total_iterations"] = memory["iterations"]
    memory["plan"] = None


# --------------------------------------------------------------------------------------------------------
# What follows from it
# --------------------------------------------------------------------------------------------------------


def situation(
    memory: Memory,
    mission: Mission,
    tails: Mapping[str, str],
    max_context: float,
    lessons: Mapping[str, Sequence[str]] = NOTHING,
    **more: Any,
) -> Situation:
    """All that the next decision rests on.

    tails: the end of each check's last output. max_context: 0 to 1. lessons: what is told of each criterion's failure.
    more: other fields of the situation, which the memory does not know.
    """
    standings = [
        replace(
            _standing(c, memory["criteria"][c.id], tails[c.id]),
            revived=_is_revived(memory, c.id),
            lessons=lessons.get(c.id, ()),
        )
        for c in mission.criteria
    ]
    session, last = memory["worker"], memory["last"] or NO_SESSION
    last_closed = memory["history"][-1]["iteration"] if memory["history"] else 0
    refused = f"; refused to it: {', '.join(last['denials'])}" if last["denials"] else ""
    return Situation(
        mission,
        standings,
        memory["iterations"] + 1,
        resumable=bool(session and session["begun"] and session["context"] < max_context),
        last=f"{last['kind']}, {last['turns']} turns{refused}{': ' * bool(last['message'])}{last['message']}",
        report=last["report"],
        tried=[_tried(entry) for entry in memory["history"][-TRIED:]],
        went_wrong=last["kind"] not in FINE or bool(memory["history"] and memory["history"][-1]["broke"]),
        session=memory["session_id"],
        lies=[
            f'"{lie["text"]}": the checks say otherwise of {", ".join(lie["false"])}' for lie in last["claims"]["lies"]
        ],
        conflicts=ledger.conflicts(memory),
        deadlock=ledger.deadlock(memory),
        barren=ledger.barren(memory),
        morale=ledger.morale(memory),
        tampering=[
            f"{entry['path']} ({entry['what']})" for entry in memory["tampering"] if entry["iteration"] >= last_closed
        ],
        **more,
    )


def _is_revived(memory: Memory, id: str) -> bool:
    """Whether more criteria are met now than after the last session on this one."""
    met = next((entry["met"] for entry in reversed(memory["history"]) if entry["focus"] == id), None)
    return met is not None and len(memory["completed_tasks"]) > met


def has_worked(memory: Memory) -> bool:
    """Whether a session of this iteration has done something that is not checked yet."""
    return bool(memory["plan"] and memory["last"] and memory["last"]["iteration"] == memory["iterations"])


def drop_plan(memory: Memory) -> bool:
    """Drop a plan whose criterion is gone or proven otherwise by now, if no session has worked on it yet.

    Returns whether there is none any more. Where a session has, it is over: what it did is to be checked.
    """
    if memory["current_phase"] == "validation":
        return False
    known = memory["criteria"].get(memory["plan"]["focus"])
    if known and known["verdict"] != "unjudged":  # `adopt` forgets what another check had said
        return False
    memory["wait_until"] = memory["wait"] = None
    if has_worked(memory):
        memory["current_phase"] = "validation"
        return False
    memory["plan"] = None
    memory["iterations"] -= 1
    return True


def unblock(memory: Memory) -> None:
    """A person did something: check again, and count stalls anew."""
    memory.update(current_phase="validation", blocked=None, tree="", answered=memory["iterations"], answers={})
    memory["wait_until"] = memory["wait"] = None
    for who in ("manager", "judge"):  # a person may have mended that as well
        memory[who] = dict(ASKED)
    for known in memory["criteria"].values():
        known.update(stalls=0, tries=0, seen=[], impossible=None)


def _standing(criterion: Criterion, known: Mapping[str, Any], tail: str) -> Standing:
    return Standing(
        criterion.id,
        criterion.criteria,
        criterion.priority,
        known["verdict"],
        criterion.check,
        broken_by=ledger.broken_by(known) if known["verdict"] != "met" else "",
        flaky=known["flaky"],
        unconfirmed=known["unconfirmed"],
        stalls=known["stalls"],
        failed=known["failed"],
        tail=tail,
    )


def _tried(entry: Mapping[str, Any]) -> str:
    how = f"{entry['kind']}, {entry['met']} met afterwards"
    return (
        f"{entry['iteration']}: {entry['focus']} ({entry['strategy']}): {how}. It said: {entry['report'] or 'nothing'}"
    )


def _kind(path: str) -> str:
    if repo.TEST_FILE.search(path):
        return "test"
    if path.lower().endswith(DOCUMENTS):
        return "documentation"
    return "code" if "." in path.rpartition("/")[2] else "other"


def _no_metrics() -> dict[str, Any]:
    zero = dict.fromkeys(
        (
            "total_iterations",
            "dod_criteria_completed",
            "dod_criteria_total",
            "completion_percentage",
            "api_calls_total",
            "api_calls_avoided",
            "calls_of_unknown_cost",
            "manager_cost",
            "session_count",
            "error_recoveries",
            "successful_actions",
            "failed_actions",
            "files_modified",
            "lines_of_code_added",
            "tests_created",
            "estimated_cost",
            "cost_per_criteria",
            "worker_seconds",
            "check_seconds",
            "wait_seconds",
            "waits",
            "claims_made",
            "claims_false",
            "tampered",
        ),
        0,
    )
    usage = dict.fromkeys(("input", "output", "cache_read", "cache_creation"), 0)
    return {**zero, "failing": False, "token_usage": usage}
