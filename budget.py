"""What a mission may still use: its limits, what is left of them, when to warn, and what more it would take.

    if reached := budget.reached(memory, limits, max_iterations): ...
    for line in budget.alerts(memory, limits, max_iterations): ...

Counted over all starts, the worker and the manager together. Part of the document that schema/state.json describes.

What is not covered: a session in flight may pass the limits of tokens; those of cost and time are handed to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mission import Limits

STEPS = (100, 80, 50)  # percent of a limit at which there is a warning
LEARNED_FROM = 2  # criteria that have to be met before what the others cost is foretold
LEAST = 0.01  # US dollars that a session is given at least
SHORTEST = 60.0  # seconds that a session is given at least

Memory = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One limit, and what is used of it."""

    name: str
    used: float
    cap: float
    exact: bool = True
    """Whether it is a whole number."""


def lines(memory: Memory, limits: Limits, max_iterations: int | None) -> list[Line]:
    """The limits that are set."""
    metrics, done = memory["metrics"], memory["iterations"]
    tokens = metrics["token_usage"]["input"] + metrics["token_usage"]["output"]
    found = (
        ("limits.cost_usd", metrics["estimated_cost"], limits.cost_usd, False),
        ("limits.iterations", done, limits.iterations, True),
        ("orchestrator.max_iterations", done, max_iterations, True),
        ("limits.hours", _seconds(memory) / 3600, limits.hours, False),
        ("limits.tokens", tokens, limits.tokens, True),
    )
    return [Line(name, used, cap, exact) for name, used, cap, exact in found if cap is not None]


def reached(memory: Memory, limits: Limits, max_iterations: int | None, begun: bool = False) -> str:
    """Which limit stands in the way of another session, and what it would take to go on; "" when none does.

    begun: the session's iteration has begun, so that the number of iterations does not stand in its way.
    """
    for line in lines(memory, limits, max_iterations):
        if line.used >= line.cap and not (begun and line.name.endswith("iterations")):
            place = "mission" if line.name.startswith("limits.") else "settings"
            raise_it = f"Raise it in the {place} and start again to go on."
            return f"{line.name} is reached: {round(line.used, 4)} of {line.cap}. {raise_it}{_more(memory, line)}"
    return ""


def _more(memory: Memory, line: Line) -> str:
    """What the criteria that are not met would take, if each of them takes what those that are met took."""
    met, total = len(memory["completed_tasks"]), len(memory["criteria"])
    if met == total:
        return " Every criterion is met, only the confirmation is left."
    if not met:
        return f" None of the {total} criteria is met yet, so what it would take cannot be told."
    needed = line.used + (total - met) * line.used / met
    shown = int(needed + 0.999) if line.exact else round(needed + 0.005, 2)
    rest = (
        f"{total - met} more at what each of the {met} met ones took" if total > met else "the clean checkout is left"
    )
    return f" By what it took so far, about {shown} would be needed ({rest})."


def forecast(memory: Memory) -> float | None:
    """US dollars that the criteria which are not met would cost, at what each took that sessions made true.

    None while fewer than two are met that way, and when none is left.
    """
    known = memory["criteria"].values()
    earned = sum(bool(c["first_met"]) and c["verdict"] == "met" for c in known)  # 0: met before the first session
    left = sum(c["verdict"] != "met" for c in known)
    if earned < LEARNED_FROM or not left:
        return None
    return float(memory["metrics"]["estimated_cost"] / earned * left)


def left_line(memory: Memory, limits: Limits, max_iterations: int | None) -> str:
    """What is left of the limits, in tenths, so that it reads the same for a while; "" without any."""
    shown = (
        f"{max(0, 10 - int(10 * line.used / line.cap)) * 10} % of {line.name}"
        for line in lines(memory, limits, max_iterations)
    )
    left = ", ".join(shown)
    return f"Left: {left}." if left else ""


def left_usd(memory: Memory, limits: Limits) -> float | None:
    """US dollars that the next session may cost, None without a limit."""
    return None if limits.cost_usd is None else max(LEAST, limits.cost_usd - memory["metrics"]["estimated_cost"])


def left_seconds(memory: Memory, limits: Limits, timeout: float) -> float:
    """Seconds that the next session may run, of the `timeout` that the settings allow."""
    return timeout if limits.hours is None else min(timeout, max(SHORTEST, limits.hours * 3600 - _seconds(memory)))


def alerts(memory: Memory, limits: Limits, max_iterations: int | None) -> list[str]:
    """One line for each limit of which half, four fifths or all is used since this was last asked."""
    found = []
    for line in lines(memory, limits, max_iterations):
        step = next((step for step in STEPS if line.used * 100 >= line.cap * step), 0)
        if step > memory["alerts"].get(line.name, 0):
            found.append(f"{step} % of {line.name} is used: {round(line.used, 4)} of {line.cap}")
        memory["alerts"][line.name] = step  # lower again when a person has raised the limit
    return found


def _seconds(memory: Memory) -> float:
    return float(memory["metrics"]["worker_seconds"] + memory["metrics"]["check_seconds"])
