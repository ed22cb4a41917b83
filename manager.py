"""What to do next: ask the manager LLM, or decide by rule.

    plan = manager.decide(situation, settings)

Both deciders return the same `Plan`. The rules need no key and no network; they also stand in for one iteration
whenever the LLM is down, out of credit or talks nonsense, so a mission never stops because of its manager. Neither
of them decides whether a criterion is met.

The texts are in prompts/, for people to read and change.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import log
from document import NOT_TEXT
from mission import PRIORITIES, Mission

HERE = Path(__file__).resolve().parent
DEADLINE = 120.0  # seconds for one answer of the LLM, wall time
MAX_ANSWER = 2_000_000  # bytes of an HTTP answer
STRATEGIES = ("retry_modified", "alternative", "partial", "escalate")  # the ladder, lowest step first
RUNGS = (2, 4)  # stalled iterations from which on another approach, and setting aside, are due
FAILURES_SHOWN = 3  # failing checks whose output goes into a prompt
FAILURE_TAIL = 2500  # characters of each of them
FENCE = re.compile(r"<\s*/\s*data", re.I)  # the end of what programs printed, see prompts/
MAX_AMOUNT = 1e12  # dollars or tokens that an answer may say it cost
TITLE = 100  # characters of a plan's title


class ManagerError(Exception):
    """The LLM gave no usable answer. The message says why; the rules decide instead.

    bill: what the answer cost all the same, as the fields of a Plan.
    """

    bill: dict[str, Any] = {}


@dataclass(frozen=True)
class Standing:
    """One criterion as it stands now."""

    id: str
    criteria: str
    priority: str
    verdict: str
    check: str | None = None
    regressed: bool = False
    """It was met before."""
    stalls: int = 0
    """Iterations that worked on it without any change in its failure."""
    tail: str = ""
    """The end of its check's output."""


@dataclass(frozen=True)
class Situation:
    """All that a decision rests on."""

    mission: Mission
    standings: Sequence[Standing]
    iteration: int
    """The number of the iteration that is being planned."""
    resumable: bool
    """Whether the worker has a conversation with room left."""
    last: str = "none yet"
    """How the last session ended, for people."""
    report: str = ""
    """The worker's last words."""
    tried: Sequence[str] = ()
    """One line per session, newest last."""


@dataclass
class Plan:
    """What the worker is to do next."""

    focus: str
    """Id of the criterion that it works on."""
    title: str
    """One line for the commit."""
    instruction: str
    """What it is told."""
    strategy: str = "retry_modified"
    """One of STRATEGIES."""
    session: str = "resume"
    """"resume" or "fresh"."""
    question: str | None = None
    """For a person, when the strategy is "escalate"."""
    source: str = "rules"
    """Who decided: "rules" or the model that answered."""
    cost_usd: float = 0.0
    """What the decision cost."""
    tokens: dict[str, int] = field(default_factory=dict)
    """input and output tokens of the decision."""


def decide(situation: Situation, settings: Any) -> Plan:
    """The plan for the next session. Never fails: the rules stand in for an LLM that does."""
    by_rule = rules(situation)
    if by_rule.strategy == "escalate" or provider(settings) == "rules":
        return by_rule
    try:
        plan = ask(situation, settings)
    except ManagerError as error:
        log.warn(f"the manager LLM did not help, the rules decide this iteration: {error}")
        return replace(by_rule, **error.bill)
    focus = next(s for s in situation.standings if s.id == plan.focus)
    if focus.stalls >= RUNGS[0]:  # it may climb the ladder, not step down
        plan.strategy, plan.session = max(plan.strategy, "alternative", key=STRATEGIES.index), "fresh"
    if not situation.resumable:
        plan.session = "fresh"
    return plan


def provider(settings: Any) -> str:
    """Who decides by these settings: "openrouter" or "rules"."""
    return str(settings.manager.provider or ("openrouter" if settings.openrouter.api_key else "rules"))


# --------------------------------------------------------------------------------------------------------
# By rule
# --------------------------------------------------------------------------------------------------------


def rules(situation: Situation) -> Plan:
    """The most important unmet criterion; another approach after two stalls, a person when nothing else is left."""
    unmet = [s for s in situation.standings if s.verdict != "met"]
    # Of the unjudged, what runs last waits for the others, and what has no check waits for a person.
    failing = [s for s in unmet if s.verdict != "unjudged"]
    open_ones = [s for s in failing if not _set_aside(s)]
    if not open_ones:
        return _escalate(failing or [s for s in unmet if s.check is None])
    focus = min(open_ones, key=lambda s: (PRIORITIES.index(s.priority), not s.regressed))
    strategy = "alternative" if focus.stalls >= RUNGS[0] else "retry_modified"
    session = "resume" if situation.resumable and strategy == "retry_modified" else "fresh"
    title = " ".join(f"{focus.id}: {focus.criteria}".split())[:TITLE]
    return Plan(focus.id, title, _instruction(focus, strategy, situation), strategy, session)


def _set_aside(standing: Standing) -> bool:
    return standing.stalls >= RUNGS[1]


def _instruction(focus: Standing, strategy: str, situation: Situation) -> str:
    parts = [f'Make the criterion "{focus.criteria}" ({focus.id}) true.']
    if focus.regressed:
        parts.append("It was met before and is not any more: find what broke it, and mend that.")
    parts.append(
        f"Its check is this command, run in the repository's root; exit code 0 means met:\n\n    {focus.check}"
    )
    if strategy == "alternative":
        parts.append(
            f"{focus.stalls} sessions on it changed nothing in how the check fails. Do not go on in the same way:"
            " find the cause first, write it down in your report, then take another approach."
        )
    if green := [s.id for s in situation.standings if s.verdict == "met"]:
        parts.append(f"These are met and have to stay met: {', '.join(green)}.")
    if others := [s.id for s in situation.standings if s.verdict not in ("met", "unjudged") and s is not focus]:
        parts.append(f"When it is met and you have room, go on with the next of these: {', '.join(others)}.")
    return "\n\n".join(parts)


def _escalate(stuck: Sequence[Standing]) -> Plan:
    worst = min(stuck, key=lambda s: PRIORITIES.index(s.priority))
    if worst.check is None:
        ids = ", ".join(s.id for s in stuck)
        question = f"Nothing here can prove {ids}: which shell command shows it? Add it as `check` in the mission."
    else:
        question = (
            f"{worst.stalls} sessions on {worst.id} ({worst.criteria}) changed nothing in how its check fails:"
            f" `{worst.check}`. Is the check right, and what is the worker missing?"
        )
    return Plan(worst.id, f"Ask about {worst.id}", question, "escalate", "fresh", question)


# --------------------------------------------------------------------------------------------------------
# By the LLM
# --------------------------------------------------------------------------------------------------------


def ask(situation: Situation, settings: Any) -> Plan:
    """One call of the manager LLM (OpenRouter chat completions, or any server that speaks them).

    Raises ManagerError for everything that is not a complete answer in the shape of schema/plan.json.
    """
    router = settings.openrouter
    body = {
        "model": router.model,
        "messages": [
            {"role": "system", "content": log.mask(_system_prompt(situation.mission))},
            {"role": "user", "content": log.mask(_fill("situation.md", _parts(situation)))},
        ],
        "temperature": router.temperature,
        "max_tokens": router.max_tokens,
        "response_format": {"type": "json_object"},
    }
    if router.fallbacks:
        body["models"] = [router.model, *router.fallbacks]
    log.trace("manager prompt", messages=body["messages"])
    answer = _post(f"{router.base_url.rstrip('/')}/chat/completions", body, router.api_key)
    bill = _bill(answer)
    try:
        found = _parse(answer, [s.id for s in situation.standings if s.verdict != "met" and not _set_aside(s)])
    except ManagerError as error:
        error.bill = bill
        raise
    return Plan(**found, **bill, source=str(answer.get("model") or router.model))


def _post(url: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
    """POST with a deadline that keep-alive padding cannot stretch (facts: it resets the read timeout for ever)."""
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"  # given as a header, a ~/.netrc would replace it
        return request

    end, data = time.monotonic() + DEADLINE, bytearray()
    try:
        with requests.post(
            url,
            json=body,
            headers={"Accept-Encoding": "identity"},
            auth=authorize if key else None,
            timeout=(10, DEADLINE / 2),
            stream=True,
            allow_redirects=False,
        ) as response:
            for byte in response.iter_content(1):  # more at a time would be waited for, however slowly it drips
                data += byte
                if time.monotonic() > end or len(data) > MAX_ANSWER:
                    raise ManagerError(f"no complete answer within {DEADLINE:.0f} s and {MAX_ANSWER} bytes")
            status = response.status_code
    except (requests.RequestException, ValueError) as error:  # ValueError: a base_url that is none
        raise ManagerError(f"{type(error).__name__}: {error}") from error
    try:
        answer = json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise ManagerError(f"HTTP {status} and no JSON: {bytes(data[:200])!r}") from None
    problem = answer.get("error") if isinstance(answer, dict) else "not an object"
    if status != 200 or problem:
        raise ManagerError(f"HTTP {status}: {json.dumps(problem)[:300]}")
    return dict(answer)


def _bill(answer: dict[str, Any]) -> dict[str, Any]:
    """What the answer cost, by its own words; 0 for what it does not say."""
    usage = answer.get("usage")
    known = usage if isinstance(usage, dict) else {}
    cost, asked, answered = (_amount(known.get(name)) for name in ("cost", "prompt_tokens", "completion_tokens"))
    return {"cost_usd": cost, "tokens": {"input": int(asked), "output": int(answered)}}


def _amount(value: Any) -> float:
    try:
        return float(value) if 0 <= float(value) < MAX_AMOUNT else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _parse(answer: dict[str, Any], choices: Sequence[str]) -> dict[str, Any]:
    """The fields of the plan in the answer. Nothing is ever guessed from prose."""
    from jsonschema import Draft202012Validator

    schema = json.loads((HERE / "schema" / "plan.json").read_text("utf-8"))
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        found = json.loads(text.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
        problem = next(Draft202012Validator(schema).iter_errors(found), None)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ManagerError(f"its answer holds no JSON object: {type(error).__name__}: {error}") from error
    if problem:
        raise ManagerError(f"its answer does not fit schema/plan.json: {problem.json_path}: {problem.message[:200]}")
    if choice.get("finish_reason") not in ("stop", None):
        raise ManagerError(f"its answer ended with {choice.get('finish_reason')!r}")
    if found["focus"] not in choices:
        raise ManagerError(f"it wants to work on {found['focus']!r}, which is not one of {', '.join(choices)}")
    return {key: _plain(value) if isinstance(value, str) else value for key, value in found.items()}


# --------------------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------------------


def worker_prompt(situation: Situation, plan: Plan) -> str:
    """What the worker reads: everything for a fresh session, what is new for one that goes on.

    The mission's own text is in it as it is, also where it looks like a secret: the work may depend on it.
    """
    parts = {**_parts(situation), "instruction": plan.instruction}
    return _fill("resume.md" if plan.session == "resume" else "fresh.md", parts)


def _system_prompt(mission: Mission) -> str:
    return _fill("manager.md", {**_mission_parts(mission), "repository": str(mission.repository)})


def _mission_parts(mission: Mission) -> dict[str, str]:
    constraints = "\n".join(f"- {item}" for item in mission.constraints) or "- none"
    return {
        "title": mission.title,
        "description": mission.description,
        "context": mission.context,
        "constraints": constraints,
        "setup": f"A fresh checkout is made ready with: {mission.setup}" if mission.setup else "",
    }


def _parts(situation: Situation) -> dict[str, str]:
    return {
        **_mission_parts(situation.mission),
        "iteration": str(situation.iteration),
        "criteria": "\n".join(map(_line, situation.standings)),
        "failures": "\n".join(map(_failure, _failing(situation.standings))),
        "last": _as_data(situation.last[:FAILURE_TAIL]),
        "report": _as_data(situation.report[-FAILURE_TAIL:]),
        "tried": _as_data("\n".join(f"- {line}" for line in situation.tried)) or "- nothing yet",
    }


def _line(standing: Standing) -> str:
    regressed = ", was met before" if standing.regressed else ""
    stalled = f", sessions on it without a change: {standing.stalls}" if standing.stalls else ""
    aside = ", set aside for now" if _set_aside(standing) else ""
    check = f"\n  check: {standing.check}" if standing.check else ""
    state = f"{standing.verdict}{regressed}{stalled}{aside}"
    return f"- {standing.id} ({standing.priority}): {standing.criteria} [{state}]{check}"


def _failing(standings: Sequence[Standing]) -> list[Standing]:
    failing = [s for s in standings if s.verdict not in ("met", "unjudged") and s.tail.strip()]
    return sorted(failing, key=lambda s: PRIORITIES.index(s.priority))[:FAILURES_SHOWN]


def _failure(standing: Standing) -> str:
    return f"The end of the output of check {standing.id}:\n<data>\n{_as_data(standing.tail[-FAILURE_TAIL:])}\n</data>"


def _as_data(text: str) -> str:
    """A program's output that cannot close the fence it is shown in."""
    return FENCE.sub("(/data", _plain(text)).strip()


def _plain(text: str) -> str:
    """Masked, and without what can neither be shown nor sent."""
    return NOT_TEXT.sub(" ", log.mask(text))


def _fill(name: str, parts: dict[str, str]) -> str:
    """A text of prompts/ with its $placeholders filled. Raises KeyError for one that does not exist."""
    text = string.Template((HERE / "prompts" / name).read_text("utf-8")).substitute(parts)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"
