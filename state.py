"""The state of a mission: one JSON file, and every function that changes it.

    state = load(folder / "api.json")
    state.record_results(verdicts)
    save(folder / "api.json", state)

A save either happened or did not, also when the power fails: the file is written whole beside the old one, synced, and
renamed over it. Other modules read the attributes; what changes them stands here. The words in which the modules speak
with each other (Plan, Outcome, Verdict, Usage) are here too, beside the state that records them.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import log
from mission import Limits, Mission
from proc import CANNOT, USAGE, Stop

TOTALS = (  # numbers; most are named by the specification's metrics
    "api_calls_total api_calls_avoided calls_of_unknown_cost session_count error_recoveries successful_actions"
    " failed_actions files_modified lines_of_code_added tests_created estimated_cost manager_cost worker_seconds"
    " check_seconds claims_made claims_false tampered"
).split()
VERBATIM = {"mission_id", "mission_path", "mission_text", "repository", "settings_path", "branch", "start_branch"}
TOKENS = {"input": 0, "output": 0, "cache_read": 0, "cache_creation": 0}
VERSION = 5  # of the file's format
HERE = Path(__file__).resolve().parent
MAX_SIZE = 100_000  # bytes of the file; the oldest history is dropped above this
MAX_HISTORY, MAX_TAMPERING = 200, 20  # iterations and changes of protected files that are kept; totals go on
MAX_REPORT = 4000  # characters of the worker's last words
STALLS = (2, 4, 6)  # stalls at which another approach, setting aside, and asking the user are due
ATTEMPTS = 5  # sessions on a criterion with changing failures that weigh as much as one stall
ALERTS = (100, 80, 50)  # percent of a limit at which there is a warning
BACKOFF = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds after each failure in a row, the last one for ever
LONGEST_WAIT = 8 * 86400.0  # seconds; no limit of the API lasts longer


@dataclass
class Usage:
    """What asking an LLM cost."""

    cost_usd: float = 0.0
    calls: int = 0  # requests that were sent
    unknown: int = 0  # answers whose cost nobody says
    tokens: dict[str, int] = field(default_factory=dict)  # input, output, cache_read

    def add(self, other: Usage) -> None:
        """Add another usage to this one."""
        self.cost_usd += other.cost_usd
        self.calls += other.calls
        self.unknown += other.unknown
        self.tokens = dict(Counter(self.tokens) + Counter(other.tokens))


@dataclass
class Plan:
    """What the worker does next."""

    focus: str  # id of the criterion that it works on
    title: str  # one line, for the commit
    instruction: str
    strategy: str = "retry_modified"  # retry_modified, alternative, partial or escalate
    session: str = "resume"  # "resume" or "fresh"
    tier: str | None = None  # economy, standard or strong; None: as the settings say
    encouragement: str | None = None  # a sentence for the worker
    question: str | None = None  # for the user, with escalate
    decided_by: str = "rules"  # "rules", or the model that answered
    usage: Usage = field(default_factory=Usage)
    avoided: int = 0  # calls of the LLM that were not needed
    unreachable: bool = False  # the LLM should have decided and could not be reached
    until: float | None = None  # epoch seconds from which on it can be reached again


@dataclass
class Outcome:
    """How a session ended."""

    kind: str  # see design "The worker": ended, limit, auth, credit, overloaded, context_full, turn_cap, ...
    message: str = ""  # what claude or the kit said about it
    report: str = ""  # the worker's last words
    claimed: list[str] | None = None  # ids after "Met:"; None: the report has no such line
    resets_at: float | None = None  # epoch seconds, when a limit ends
    limited: str = ""  # family of the only model that a limit is of; "": of all of them
    turns: int = 0
    cost_usd: float = 0.0  # of this run, by claude's own estimate
    tokens: dict[str, int] = field(default_factory=dict)  # input, output, cache_read, cache_creation, of this run
    spent: dict[str, float] = field(default_factory=dict)  # the same totals (and usd) of the whole session
    context: float = 0.0  # share of the model's window that the conversation fills, 0 to 1
    window: int = 200_000  # tokens of that window
    denials: list[str] = field(default_factory=list)  # tool calls that the sandbox or a rule refused
    seconds: float = 0.0
    swept: list[str] = field(default_factory=list)  # command lines of processes that it left behind
    model: str = ""
    version: str = ""  # of Claude Code


@dataclass
class Verdict:
    """What a check, a judge or the user says of one criterion."""

    id: str
    verdict: str  # met, unmet, broken, timeout, flaky, tampered or unjudged
    code: int | None = None  # exit code; negative: a signal
    seconds: float = 0.0  # all runs together
    digest: str = ""  # SHA-256 of the output
    tail: str = ""  # the end of the output, or the reason
    failure: str = ""  # fingerprint, by which a failure is recognised; "" when met
    runs: int = 0  # how often it ran; 0: remembered
    flaky: bool = False  # it gave different results on the same tree
    where: str = "tree"  # "tree", "checkout", "judge" or "user"
    evidence: dict[str, Any] | None = None  # of a judge or the user: by, reason, quotes


@dataclass
class CriterionState:
    """One criterion: what is known of it."""

    criteria: str
    priority: str
    check_digest: str  # of what decides it; another one makes it a new criterion
    verdict: str = "unjudged"
    since: int = 0  # iteration in which it got this verdict
    first_met: int | None = None  # iteration; 0: met before the first session
    failure: str = ""  # fingerprint of the failing output
    stalls: int = 0  # sessions on it in a row that changed nothing in its failure
    attempts: int = 0  # sessions on it since it was met last
    recent_failures: list[str] = field(default_factory=list)  # fingerprints, newest last
    failed_instructions: list[str] = field(default_factory=list)  # digests of what did not make it true
    doubt: str = ""  # the question that the manager would ask the user, if it comes again
    flaky: bool = False
    seen_failing: bool = False
    fails_when_empty: bool = False  # its check fails in an empty folder, so passing proves something
    fails_in_clean_checkout: bool = False
    proof: dict[str, Any] | None = None  # exit code, seconds, digest, runs, where, commit, at; or evidence
    judged_at: str = ""  # commit on which the judge said "unmet"
    cost_usd: float = 0.0


@dataclass
class Iteration:
    """One turn of the loop; number 0 is the baseline."""

    __hash__ = object.__hash__  # one in the history stays as it is, so its JSON is made once

    number: int
    focus: str = ""  # "": no session, the checks ran by themselves
    strategy: str = ""
    decided_by: str = ""
    outcome: str = ""  # Outcome.kind; "": no session has ended yet
    commit: str = ""  # "": nothing changed
    session_id: str = ""  # Claude Code's
    changed: dict[str, str] = field(default_factory=dict)  # criterion -> new verdict
    broke: list[str] = field(default_factory=list)  # of these, what was met before
    met: int = 0  # criteria met afterwards
    turns: int = 0
    cost_usd: float = 0.0
    manager_usd: float = 0.0
    seconds: float = 0.0
    claimed: list[str] = field(default_factory=list)
    false_claims: list[str] = field(default_factory=list)
    tampered: list[str] = field(default_factory=list)
    report: str = ""


@dataclass
class Session:
    """A conversation of Claude Code."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    first: int = 0  # iteration in which it began
    begun: bool = False  # claude may know this id
    context: float = 0.0
    window: int = 200_000
    spent: dict[str, float] = field(default_factory=dict)
    process: dict[str, Any] | None = None  # proc.identity of what runs
    failures: int = 0  # overloads and crashes in a row
    limits: int = 0  # usage limits in a row
    lost: bool = False  # it replaces one that claude did not know
    seen: str = ""  # of the repository, when the user was asked to carry it out by hand


@dataclass
class Wait:
    """What is waited for."""

    since: float  # epoch seconds
    until: float
    kind: str  # limit, failure or judge
    why: str


@dataclass
class Best:
    """The commit with the most criteria met so far."""

    commit: str
    met: int
    iteration: int
    since: int = 0  # iteration in which so many were met first
    returns: int = 0  # times that its files were restored
    returned: int = 0  # iteration in which that happened last


@dataclass
class State:
    """All that is known of a mission. Facts that follow from others are properties and are not saved."""

    mission_id: str
    repository: str
    mission_path: str
    mission_text: str
    version: int = VERSION
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))  # of the mission's run
    cc_instance_id: str = ""
    settings_path: str = ""
    accepted: dict[str, str] = field(default_factory=dict)  # "mission", "settings" -> SHA-256 of what counts
    rejected: list[str] = field(default_factory=list)  # SHA-256 of versions that appeared while a worker ran
    branch: str = ""
    start_branch: str = ""
    base_commit: str = ""  # where the mission's branch began; "" in an empty repository
    commit: str = ""  # the last accepted one
    current_phase: str = "validation"  # the baseline comes before the first session
    iterations: int = 0
    criteria: dict[str, CriterionState] = field(default_factory=dict)
    history: list[Iteration] = field(default_factory=list)
    plan: Plan | None = None
    current: Iteration | None = None  # the iteration that carries the plan out
    last: Outcome | None = None  # how the last session ended
    session: Session | None = None
    wait: Wait | None = None
    asked: dict[str, dict[str, float]] = field(default_factory=dict)  # "manager", "judge" -> failures, until
    limited_models: dict[str, float] = field(default_factory=dict)  # model or family -> epoch seconds of its reset
    alerts: dict[str, int] = field(default_factory=dict)  # limit -> percent that was warned of
    blocked: dict[str, str] | None = None  # question, and the digest of what the user may change
    answered: int = 0  # iteration in which the user answered last
    failed: str = ""  # why the last run could not go on; cron does not report it again
    notes: list[str] = field(default_factory=list)  # files of inbox/ that the instruction carries
    best: Best | None = None
    returning: str = ""  # commit whose files are being restored
    confirmed: dict[str, Any] | None = None  # commit, where, at, seconds, setup
    tampering: list[dict[str, Any]] = field(default_factory=list)  # iteration, path, what, kept
    not_committed: dict[str, str] = field(default_factory=dict)  # path -> why it is in no commit
    untracked: list[str] = field(default_factory=list)  # uncommitted paths after the checks: not the user's
    totals: dict[str, Any] = field(default_factory=lambda: {**dict.fromkeys(TOTALS, 0), "token_usage": {**TOKENS}})

    @property
    def met(self) -> list[str]:
        """Ids of the criteria that are met."""
        return [id for id, criterion in self.criteria.items() if criterion.verdict == "met"]

    @property
    def open(self) -> list[str]:
        """Ids of the criteria that are not met."""
        return [id for id, criterion in self.criteria.items() if criterion.verdict != "met"]

    @property
    def is_running(self) -> bool:
        """Whether a worker was at work when this was saved."""
        return self.current_phase == "execution" and bool(self.session and self.session.process)

    @property
    def is_sound(self) -> bool:
        """Whether there is what the phase needs; else somebody has edited the file."""
        needs: dict[str, Any] = {"waiting": self.wait, "blocked": self.blocked, "completed": not self.open}
        needs |= {"execution": self.plan and self.session, "committing": self.plan}
        return bool(needs.get(self.current_phase, True)) and bool(self.plan) == bool(self.current)

    @property
    def sessions(self) -> list[Iteration]:
        """The iterations in which a worker ran."""
        return [entry for entry in self.history if entry.focus]

    def is_set_aside(self, id: str) -> bool:
        """Whether so many sessions on a criterion changed nothing that the others come first."""
        return self.criteria[id].stalls >= STALLS[1]

    def adopt(self, mission: Mission) -> None:
        """Take a mission's text as the accepted one; criteria that are decided otherwise now begin anew."""
        self.mission_path, self.mission_text = str(mission.path), mission.text
        self.accepted["mission"] = mission.digest
        before, self.criteria, self.best, self.returning = self.criteria, {}, None, ""
        for criterion in mission.criteria:
            record = before.get(criterion.id)
            if record is None or record.check_digest != criterion.digest:
                record = CriterionState("", "", criterion.digest)
            record.criteria, record.priority = criterion.criteria, criterion.priority
            self.criteria[criterion.id] = record
        if self.current_phase != "validation" and (self.is_running or (self.current and self.current.outcome)):
            self.current_phase, self.wait = "committing", None
        elif self.current_phase != "validation" or not self.plan:
            self.iterations -= self.current is not None
            self.plan = self.current = None
            self.unblock()

    def unblock(self) -> None:
        """Begin with the checks, and count anew: the user did something."""
        self.current_phase, self.blocked, self.wait = "validation", None, None
        self.answered, self.asked = self.iterations, {}
        for record in self.criteria.values():
            record.stalls = record.attempts = 0
            record.recent_failures, record.doubt, record.judged_at = [], "", ""

    def distrust(self) -> None:
        """Forget what is called proven: the run that said so ended uncleanly."""
        self.confirmed = None
        for record in self.criteria.values():
            record.proof = None
        if not (self.plan and self.current):
            self.plan, self.current, self.blocked, self.current_phase = None, None, None, "validation"
        elif not self.session:
            self.current_phase = "committing"
        elif self.current_phase not in ("committing", "validation"):
            self.blocked, self.current_phase = None, "waiting" if self.wait else "execution"

    def record_plan(self, plan: Plan) -> None:
        """Remember what the manager decided, and what that cost."""
        self.totals["api_calls_avoided"] += plan.avoided
        self.pay(plan.usage, [plan.focus])
        if plan.usage.calls or plan.unreachable:
            self.record_asked("manager", not plan.unreachable, plan.until)
        self.plan = plan

    def begin_iteration(self) -> Session:
        """Begin to carry out the plan, in the session that it asks for."""
        plan = self.plan
        assert plan
        self.iterations += 1
        if plan.session == "fresh" or not self.session:
            self.session = Session(first=self.iterations)
        self.current = Iteration(self.iterations, plan.focus, plan.strategy, plan.decided_by)
        self.current.manager_usd = round(plan.usage.cost_usd, 4)
        return self.session

    def record_outcome(self, outcome: Outcome) -> None:
        """Add what a session cost and how it ended."""
        session, current, totals = self.session, self.current, self.totals
        assert session and current
        totals["session_count"] += 1
        totals["worker_seconds"] = round(totals["worker_seconds"] + outcome.seconds, 1)
        self.pay(Usage(outcome.cost_usd, tokens=outcome.tokens), [current.focus])
        if outcome.kind == "ended":
            totals["successful_actions"] += 1
            totals["error_recoveries"] += bool(self.last and self.last.kind not in ("ended", "limit"))
            self.failed = ""
        elif outcome.kind != "limit":  # which is nobody's error
            totals["failed_actions"] += 1
        current.outcome, current.session_id = outcome.kind, session.id
        current.turns += outcome.turns
        current.cost_usd = round(current.cost_usd + outcome.cost_usd, 4)
        current.seconds = round(current.seconds + outcome.seconds, 1)
        current.claimed = outcome.claimed or []
        current.report = log.mask_personal(" ".join(outcome.report.split()))[:120]
        session.context = outcome.context or session.context
        session.window, session.spent = outcome.window, outcome.spent
        self.last = outcome
        outcome.report, outcome.message = outcome.report[-MAX_REPORT:], outcome.message[:200]
        outcome.denials, outcome.swept = outcome.denials[:10], outcome.swept[:10]

    def pay(self, usage: Usage, criteria: Sequence[str]) -> None:
        """Add a cost to the totals and, in equal shares, to the criteria that it was paid for."""
        totals, cost = self.totals, usage.cost_usd
        totals["estimated_cost"] = round(totals["estimated_cost"] + cost, 6)
        for name, count in usage.tokens.items():
            totals["token_usage"][name] += count
        if usage.calls:
            totals["api_calls_total"] += usage.calls
            totals["calls_of_unknown_cost"] += usage.unknown
            totals["manager_cost"] = round(totals["manager_cost"] + cost, 6)
        for record in (self.criteria[id] for id in criteria if id in self.criteria):
            record.cost_usd = round(record.cost_usd + cost / len(criteria), 6)

    def record_tampering(self, changes: Mapping[str, str]) -> None:
        """Remember which protected files were changed. changes: path -> what became of it."""
        number, kept = self.iterations, f".cco/kept/{self.iterations:04d}"
        entries = [{"iteration": number, "path": path, "what": what, "kept": kept} for path, what in changes.items()]
        self.tampering = [*self.tampering, *entries][-MAX_TAMPERING:]
        self.totals["tampered"] += len(entries)
        if self.current:
            self.current.tampered = list(dict.fromkeys([*self.current.tampered, *changes]))[:MAX_TAMPERING]

    def record_results(self, verdicts: Mapping[str, Verdict], seconds: float = 0.0) -> list[str]:
        """Take in what checks, judge and user say now; return a line for each change of verdict. seconds: it took."""
        self.totals["check_seconds"] = round(self.totals["check_seconds"] + seconds, 1)
        entry, lines = self.current or Iteration(self.iterations, commit=self.commit[:12]), []
        for id, verdict in verdicts.items():
            record = self.criteria[id]
            self._record_failure(id, verdict)
            record.flaky |= verdict.flaky
            record.seen_failing |= verdict.verdict in ("unmet", "timeout", "flaky")  # a broken command shows nothing
            if verdict.where == "checkout":
                record.fails_in_clean_checkout = verdict.verdict != "met"
            self._record_proof(record, verdict)
            if verdict.verdict != record.verdict:
                is_failing = verdict.verdict not in ("met", "unjudged")  # what runs last is unjudged, nothing broke it
                was_met = record.first_met is not None and record.verdict in ("met", "unjudged")
                broke = was_met and is_failing and verdict.where != "checkout"
                entry.changed[id] = verdict.verdict
                entry.broke += [id] if broke else []
                before, record.verdict, record.since = record.verdict, verdict.verdict, self.iterations
                if verdict.verdict == "met" and record.first_met is None:
                    record.first_met = self.iterations
                lines.append(f"criterion {id}: {before} -> {verdict.verdict}{' (regression)' if broke else ''}")
        entry.met = len(self.met)
        if self.current is None and entry.changed:
            self.history = [*self.history, entry][-MAX_HISTORY:]
        if entry.met and entry.met >= (self.best.met if self.best else 0):
            best = self.best if self.best and entry.met == self.best.met else Best("", 0, 0, since=self.iterations)
            self.best = Best(self.commit, entry.met, self.iterations, best.since, best.returns)
        return lines

    def _record_failure(self, id: str, verdict: Verdict) -> None:
        """Count the sessions that changed nothing in a failure or brought back an earlier one; slowly all others."""
        record, worked_on = self.criteria[id], self.plan is not None and self.plan.focus == id
        if verdict.verdict == "unjudged":
            record.attempts += worked_on
            return
        if verdict.verdict == "met":
            record.stalls = record.attempts = 0
            record.failure, record.doubt = "", ""
            record.recent_failures, record.failed_instructions = [], []
            return
        if worked_on and self.plan:
            given = digest(self.plan.instruction)
            record.failed_instructions = [*(one for one in record.failed_instructions if one != given), given][-8:]
        if verdict.failure != record.failure:
            record.doubt = ""  # the checks say that something moved
        unchanged = verdict.failure in (record.failure, *record.recent_failures)
        record.attempts += worked_on
        record.stalls = max(record.stalls + worked_on if unchanged else 0, record.attempts // ATTEMPTS)
        others = (one for one in record.recent_failures if one != verdict.failure)
        record.recent_failures = [*others, verdict.failure][-4:]
        record.failure = verdict.failure

    def _record_proof(self, record: CriterionState, verdict: Verdict) -> None:
        here = {"where": verdict.where, "commit": self.commit, "at": now()}
        if verdict.evidence is not None and verdict.verdict == "met":
            record.proof = {**here, **verdict.evidence}
        elif verdict.where == "judge" and verdict.verdict == "unmet":
            record.proof, record.judged_at = None, self.commit
        elif verdict.runs:
            shown = {name: getattr(verdict, name) for name in ("code", "seconds", "digest", "runs")}
            record.proof = {**here, **shown}

    def finish_iteration(self, statistics: Mapping[str, int]) -> list[str]:
        """Hold the worker's claims against the verdicts and add the iteration to the history; return the false ones."""
        current = self.current
        assert current
        judged = [id for id in current.claimed if id in self.criteria and self.criteria[id].verdict != "unjudged"]
        current.false_claims = [id for id in judged if self.criteria[id].verdict != "met"]
        self.totals["claims_made"] += len(judged)
        self.totals["claims_false"] += len(current.false_claims)
        self.totals.update(statistics)
        self.history = [*self.history, current][-MAX_HISTORY:]
        self.plan = self.current = None
        return current.false_claims

    def record_return(self, commit: str) -> None:
        """Remember that the files of the best commit were restored in this new commit; they are checked next."""
        assert self.best
        self.best.returns, self.best.returned = self.best.returns + 1, self.iterations
        self.commit, self.session, self.returning, self.current_phase = commit, None, "", "validation"
        for record in self.criteria.values():
            record.stalls = 0

    def wait_for(self, seconds: float, kind: str, why: str) -> None:
        """Wait from now on. kind: limit, failure or judge."""
        self.wait = Wait(time.time(), time.time() + min(seconds, LONGEST_WAIT), kind, why)
        self.current_phase = "waiting"

    def wait_left(self) -> float:
        """Return the seconds to wait, 0 when it is over; never more than planned, wherever the clock was set."""
        return max(0.0, min(self.wait.until - time.time(), self.wait.until - self.wait.since)) if self.wait else 0.0

    def end_wait(self) -> None:
        """Forget the wait."""
        self.wait = None
        self.current_phase = "execution" if self.plan else "validation"

    def may_ask(self, who: str) -> bool:
        """Whether the "manager" or "judge" LLM may be asked: not for a while after it could not be reached."""
        return time.time() >= self.asked.get(who, {}).get("until", 0.0)

    def record_asked(self, who: str, answered: bool, until: float | None = None) -> None:
        """Remember whether an LLM gave an answer. until: epoch seconds before which it will not."""
        if answered:
            self.asked.pop(who, None)
            return
        failures = int(self.asked.get(who, {}).get("failures", 0)) + 1
        end = time.time() + backoff(failures)
        if until is not None and until < time.time() + 26 * 3600:  # a daily quota; credit may come sooner than a month
            end = max(end, until)
        self.asked[who] = {"failures": failures, "until": end}

    def limit_model(self, model: str | None, family: str, seconds: float) -> None:
        """Remember that a model, and with it its family, is used up. model: None for claude's default."""
        self.limited_models = {name: until for name, until in self.limited_models.items() if until > time.time()}
        self.limited_models |= dict.fromkeys(((model or "").lower(), family.lower()), time.time() + seconds)

    def used(self) -> dict[str, float]:
        """Return what was used of what the mission may limit."""
        totals, tokens = self.totals, self.totals["token_usage"]
        hours = (totals["worker_seconds"] + totals["check_seconds"]) / 3600
        used = {"cost_usd": totals["estimated_cost"], "iterations": self.iterations, "hours": round(hours, 4)}
        return {**used, "tokens": tokens["input"] + tokens["output"], "max_iterations": self.iterations}

    def limit_alerts(self, limits: Limits) -> list[str]:
        """Return a line for each limit of which half, four fifths or all is used since this was last asked."""
        lines = []
        for name, (used, limit) in limits.compare(self.used()).items():
            step = next((step for step in ALERTS if used * 100 >= limit * step), 0)
            if step > self.alerts.get(name, 0):
                lines.append(f"{step} % of {name} is used: {round(used, 4)} of {limit}")
            self.alerts[name] = step  # lower again when the user has raised the limit
        return lines


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, 1 or more."""
    return BACKOFF[min(failures, len(BACKOFF)) - 1] * random.uniform(1, 1.1)


def now() -> str:
    """Return the time in UTC, for people; nothing is decided by it."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def digest(text: str) -> str:
    """Return a short digest of a text, whatever its spacing, case and punctuation."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", text.lower())).encode("utf-8", "replace")).hexdigest()[:16]


def load(path: Path, validate: bool = True) -> State:
    """Read a state file. validate=False skips the schema, for a quick look. Raises Stop, OSError."""
    try:
        data = json.loads(path.read_bytes())
        if (version := data.get("version")) != VERSION:
            remedy = "finish it with the CCO that began it, or move the file away to start anew"
            raise Stop(USAGE, f"{path}: a state of version {version!r:.20}, and this CCO reads {VERSION}: {remedy}")
        if validate:
            from jsonschema import Draft202012Validator

            schema = json.loads((HERE / "schema" / "state.json").read_text("utf-8"))
            for problem in Draft202012Validator(schema).iter_errors(data):
                raise ValueError(f"{problem.json_path}: {problem.message[:200]}")
        return _from_json(data)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise Stop(CANNOT, f"{path}: not a readable state: {error}") from error


def save(path: Path, state: State) -> str:
    """Write the state durably, masked; return its SHA-256. Raises OSError.

    An error before the rename changed nothing; after it, the state is in place but may not survive a power cut.
    """
    while len(text := _to_json(state)) > MAX_SIZE and len(state.history) > 10:
        del state.history[: max(1, int(len(state.history) * (1 - MAX_SIZE / len(text))))]
    write(path, text)
    return hashlib.sha256(text).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Replace a file durably, readable for its owner alone. Raises OSError, see save."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # a signal may come right after the rename
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(folder)


def _to_json(state: State) -> bytes:
    """Return the state as JSON, one top-level key a line; all but VERBATIM, which a start depends on, is masked."""
    data = {name: value for name, value in vars(state).items() if name != "history"}
    failed = [f"{entry.number}: {entry.outcome}" for entry in state.sessions if entry.outcome not in ("ended", "limit")]
    met, total, cost = len(state.met), len(state.criteria), state.totals["estimated_cost"]
    share, each = round(100 * met / max(1, total), 1), round(cost / met, 4) if met else 0
    seeds = {"total_iterations": state.iterations, "dod_criteria_completed": met, "dod_criteria_total": total}
    data["totals"] = {**state.totals, **seeds, "completion_percentage": share, "cost_per_criteria": each}
    data |= {"completed_tasks": state.met, "pending_tasks": state.open, "errors": failed[-20:], "timestamp": now()}
    data["artifacts"] = [{"type": "commit", "path": state.branch, "version": state.commit}]
    shown = {"version": VERSION, **{key: v if key in VERBATIM else log.mask_tree(v) for key, v in data.items()}}
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False, allow_nan=False)}' for key, value in shown.items()]
    lines.append(f'"history": [{", ".join(map(_entry, state.history))}]')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "surrogatepass")  # as json.loads reads it


@functools.lru_cache(maxsize=2 * MAX_HISTORY)
def _entry(entry: Iteration) -> str:
    return json.dumps(log.mask_tree(entry), ensure_ascii=False, allow_nan=False)


def _from_json(data: dict[str, Any]) -> State:
    state = State(**{one.name: data[one.name] for one in fields(State)})
    state.criteria = {id: CriterionState(**value) for id, value in data["criteria"].items()}
    state.history = [Iteration(**entry) for entry in data["history"]]
    for name, kind in (("current", Iteration), ("last", Outcome), ("session", Session), ("wait", Wait), ("best", Best)):
        if data[name] is not None:
            setattr(state, name, kind(**data[name]))
    if not {*TOTALS, "token_usage"} <= data["totals"].keys():
        raise ValueError("totals are missing")
    if data["plan"] is not None:
        state.plan = Plan(**{**data["plan"], "usage": Usage(**data["plan"]["usage"])})
    return state


def load_all(folder: Path) -> tuple[list[State], list[str]]:
    """Return every state in a `.cco` folder, last saved last, and a line for each that cannot be read."""
    states, problems = [], []
    files = [path for path in folder.glob("[!.]*.json") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        try:
            states.append(load(path, validate=False))
        except (Stop, OSError) as error:
            problems.append(str(error))
    return states, problems


def choose(states: Sequence[State], name: str) -> list[State]:
    """Return the states of a mission id or session id, else of those that begin so."""
    exact = [one for one in states if name in (one.mission_id, one.session_id)]
    return exact or [one for one in states if one.mission_id.startswith(name) or one.session_id.startswith(name)]
