"""How long to wait, for what, and with which model not to wait at all.

    waiting.begin(memory, waiting.until_reset(outcome.resets_at), waiting.LIMIT, "the usage limit")
    while waiting.left(memory) > 0: ...

Waits are in the memory, as a time of the wall clock: they go on after a restart or a reboot. Clocks are set back and
machines sleep, so what is left is never more than what was planned. Part of the document that schema/state.json
describes, like progress.py. No files, no processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

MARGIN = 60.0  # seconds waited after a usage limit's reset
SPREAD = 60.0  # seconds of chance on top, so that not all who wait for one reset come at once
NO_RESET = 3600.0  # seconds waited for a limit that names no reset; then the next session tries
LONGEST = 8 * 86400.0  # seconds; no limit of the API is longer
BACKOFF = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds after each failure in a row, the last one for ever
A_DAY = 26 * 3600.0  # seconds within which a manager LLM's own "not before" counts: a daily cap's reset
LIMIT, FAILURE, JUDGE = "limit", "failure", "judge"  # what may be waited for
JITTER = 0.1  # share of a back-off that chance adds

Memory = dict[str, Any]


def until_reset(resets_at: float | None) -> float:
    """Seconds to wait for a usage limit that ends at this epoch time, None where it names none."""
    now = time.time()
    wait = NO_RESET if resets_at is None else max(0.0, resets_at - now) + MARGIN
    return min(wait, LONGEST) + random.uniform(0, SPREAD)


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, 1 or more."""
    return BACKOFF[min(failures, len(BACKOFF)) - 1] * random.uniform(1, 1 + JITTER)


def begin(memory: Memory, seconds: float, kind: str, why: str) -> None:
    """Remember a wait. kind: LIMIT, FAILURE or JUDGE. why: what is waited for, in words."""
    now = time.time()
    memory["wait_until"], memory["wait"] = now + seconds, {"since": now, "kind": kind, "why": why}


def left(memory: Memory) -> float:
    """Seconds that are still to be waited, 0 or less when the time has come."""
    if memory["wait_until"] is None:
        return 0.0
    planned = memory["wait_until"] - memory["wait"]["since"]
    return float(min(memory["wait_until"] - time.time(), planned, LONGEST + MARGIN + SPREAD))


def set_right(memory: Memory) -> None:
    """Begin a wait anew that, by a clock that was set back, has not begun yet: else each start would find all of it."""
    now = time.time()
    if memory["wait"] and memory["wait_until"] is not None and now < memory["wait"]["since"]:
        memory["wait_until"] = now + max(0.0, left(memory))
        memory["wait"]["since"] = now


def end(memory: Memory) -> float:
    """Forget the wait; how many seconds of it have passed."""
    planned = memory["wait_until"] - memory["wait"]["since"]
    passed = max(0.0, min(planned, time.time() - memory["wait"]["since"]))
    memory["wait_until"] = memory["wait"] = None
    return float(passed)


def may_ask(memory: Memory, who: str) -> bool:
    """Whether an LLM may be asked: not for a while after it could not be reached. who: "manager" or "judge"."""
    since, until = memory[who]["since"], memory[who]["until"]
    return not since <= time.time() < until  # earlier than that: the clock was set back


def note_asked(memory: Memory, who: str, reached: bool, until: float | None = None, useless: bool = False) -> None:
    """Remember whether an LLM gave an answer, and for how long it is left alone otherwise.

    until: when it can be reached again, epoch seconds, where it says so. A time that is far away is not waited for: a
    person may add credit long before a month is over. useless: whether it was reached and talked nonsense; counted by
    itself, until it has answered.
    """
    now = time.time()
    failures = 0 if reached else memory[who]["failures"] + 1
    end = 0.0 if reached else now + backoff(failures)
    if not reached and until is not None and now < until < now + A_DAY:
        end = max(end, until)
    nonsense = 0 if reached else memory[who]["useless"] + useless
    memory[who] = {"failures": failures, "since": 0 if reached else now, "until": end, "useless": nonsense}


def when(memory: Memory) -> str:
    """When the wait ends, for people."""
    return datetime.fromtimestamp(memory["wait_until"]).strftime("%a %H:%M")


def span(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = int(seconds // 60)
    if seconds < 60:
        return f"{max(0, int(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# --------------------------------------------------------------------------------------------------------
# Limits of one model alone
# --------------------------------------------------------------------------------------------------------


def note_limited(memory: Memory, model: str | None, family: str, seconds: float) -> None:
    """Remember that a model, and with it its family, is used up. model: as it was asked for, None for the default."""
    names = ((model or "").lower(), family.lower())
    memory["limited"] = {**memory["limited"], **dict.fromkeys(names, time.time() + seconds)}


def models(memory: Memory, names: Sequence[str | None]) -> list[str | None]:
    """Those of these models that are not used up, in this order; None stands for claude's own choice."""
    return [name for name in names if not _is_limited(memory, name)]


def first_reset(memory: Memory) -> float:
    """Seconds until the first of the models that are used up comes back."""
    return float(min(memory["limited"].values())) - time.time()


def _is_limited(memory: Memory, name: str | None) -> bool:
    now, name = time.time(), (name or "").lower()
    memory["limited"] = {known: until for known, until in memory["limited"].items() if now < until < now + 2 * LONGEST}
    return any(name == known or (known and known in name) for known in memory["limited"])
