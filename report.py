"""What people read: the status lines, the table of criteria, and `status --json`. Reads the state, writes nothing."""

from __future__ import annotations

import json
import os
import time

import state

TYPE_CHECKING = False  # `typing` and `pathlib` cost 10 ms, which `status` does not pay
if TYPE_CHECKING:
    from typing import Any

SHOWN = (  # keys of the state that are read here
    "mission_id",
    "session_id",
    "repository",
    "current_phase",
    "iterations",
    "completed_tasks",
    "criteria",
    "metrics",
    "mission",
    "settings",
    "worker",
    "wait_until",
    "wait",
    "notes",
    "limited",
    "blocked",
    "branch",
    "start_branch",
    "commit",
    "tampering",
    "confirmed",
)


COUNTS = ("api_calls_total", "api_calls_avoided", "calls_of_unknown_cost")
OBJECTS = ("criteria", "metrics", "mission", "settings", "worker", "wait", "limited")


def memories(folder: str) -> list[dict[str, Any]]:
    """The memory of every mission in a `.cco` folder that can be read, the one that was saved last at the end."""
    return [memory for memory in map(_read, _files(folder)) if isinstance(memory, dict)]


def damaged(folder: str) -> list[str]:
    """One line for each state file in a `.cco` folder that cannot be read."""
    return [str(error) for error in map(_read, _files(folder)) if isinstance(error, Exception)]


def _files(folder: str) -> list[str]:
    names = (name for name in os.listdir(folder) if name.endswith(".json") and name[0] != ".")
    files = [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]
    return sorted(files, key=os.path.getmtime)


def _read(file: str) -> dict[str, Any] | Exception:
    try:
        memory = state.load(file, validate=False)
        if missing := [key for key in SHOWN if key not in memory]:
            raise state.StateError(f"{file}: not a readable state: {missing[0]} is missing")
        if wrong := [key for key in OBJECTS if not isinstance(memory[key] or {}, dict)]:
            raise state.StateError(f"{file}: not a readable state: {wrong[0]} is no object")
        return memory
    except (state.StateError, OSError) as error:
        return error


def find_folder(*starts: str) -> str | None:
    """The `.cco` folder of the first of these places that has one, in it or above it."""
    for start in starts:
        place = os.path.abspath(start)
        while not os.path.isdir(os.path.join(place, ".cco")):
            if place == os.path.dirname(place):
                break
            place = os.path.dirname(place)
        else:
            return os.path.join(place, ".cco")
    return None


def choose(known: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The missions that a mission id, a session id, or a beginning of either, names."""
    exact = [m for m in known if name in (m["mission_id"], m["session_id"])]
    return exact or [m for m in known if m["mission_id"].startswith(name) or m["session_id"].startswith(name)]


def as_json(memory: dict[str, Any]) -> dict[str, Any]:
    """What `status --json` prints for one mission."""
    import budget

    shown = ("verdict", "regressions", "stalls", "flaky", "unconfirmed", "cost_usd", "proof", "evidence")
    metrics = memory["metrics"]
    return {
        "mission": memory["mission_id"],
        "session_id": memory["session_id"],
        "phase": memory["current_phase"],
        "iterations": memory["iterations"],
        "criteria": [
            {"id": id, "criteria": known["criteria"], "priority": known["priority"], **{k: known[k] for k in shown}}
            for id, known in memory["criteria"].items()
        ],
        "cost_usd": metrics["estimated_cost"],
        "forecast_usd": budget.forecast(memory),
        "manager": {
            "cost_usd": metrics["manager_cost"],
            "calls": metrics["api_calls_total"],
            "avoided": metrics["api_calls_avoided"],
            "of_unknown_cost": metrics["calls_of_unknown_cost"],
        },
        "wait_until": memory["wait_until"],
        "wait": (memory["wait"] or {}).get("why"),
        "notes": memory["notes"],
        "commit": memory["commit"],
        "confirmed": memory["confirmed"],
        "claims": {"made": memory["metrics"]["claims_made"], "false": memory["metrics"]["claims_false"]},
        "tampering": memory["tampering"],
        "branch": memory["branch"],
        "blocked": (memory["blocked"] or {}).get("question"),
    }


def line(memory: dict[str, Any], holder: dict[str, Any] | None) -> str:
    """One mission in one line."""
    met, total = len(memory["completed_tasks"]), len(memory["criteria"])
    running = " (running)" if holder and holder.get("mission") == memory["mission_id"] else ""
    why = f" for {memory['wait']['why']}" if memory["wait"] else ""
    wait = f", waits{why} until {_local(memory['wait_until'])}" if memory["wait_until"] else ""
    far = f"{met}/{total} met, iteration {memory['iterations']}, ${memory['metrics']['estimated_cost']:.2f}"
    return f"{memory['mission_id']}: {memory['current_phase']}{running}, {far}{wait}"


def table(memory: dict[str, Any]) -> str:
    """The criteria of one mission."""
    from tabulate import tabulate

    signs = {"met": "[x]", "unjudged": "[?]"}
    rows = [
        [
            signs.get(known["verdict"], "[ ]"),
            id,
            known["verdict"],
            known["priority"],
            len(known["regressions"]) or "",
            known["stalls"] or "",
            " ".join(known["criteria"].split())[:60],
        ]
        for id, known in memory["criteria"].items()
    ]
    headers = ["", "id", "verdict", "priority", "regressions", "stalls", "criterion"]
    return str(tabulate(rows, headers, disable_numparse=True))  # an id such as 1e5 is no number


def whole(memory: dict[str, Any], holder: dict[str, Any] | None) -> str:
    """One mission with its criteria, and what a person may have to do."""
    parts = [
        line(memory, holder),
        table(memory),
        costs(memory),
        "\n".join(remarks(memory)),
        f"branch {memory['branch']}, commit {memory['commit'][:12] or 'none'}",
    ]
    if memory["blocked"]:
        parts.append(f"A person has to answer: {memory['blocked']['question']}")
    if memory["current_phase"] == "completed":
        parts.append(f"To take the work: {how_to_take(memory)}")
    return "\n\n".join(part for part in parts if part)


def costs(memory: dict[str, Any]) -> str:
    """What the rest may cost, and what the manager's model did."""
    import budget

    metrics, rest = memory["metrics"], budget.forecast(memory)
    calls, avoided, unknown = (metrics[name] for name in COUNTS)
    parts = [f"the rest about ${rest:.2f}, by what is met so far"] if rest is not None else []
    asked = f"the manager's model was asked {calls} times for ${metrics['manager_cost']:.4f}"
    parts += [asked] if calls else []
    parts += [f"{unknown} of its answers do not say what they cost"] if unknown else []
    parts += [f"{avoided} questions were not needed"] if avoided else []
    return "; ".join(parts)


def remarks(memory: dict[str, Any]) -> list[str]:
    """What a person should know of the criteria and of the worker besides the verdicts."""
    found = []
    for id, known in memory["criteria"].items():
        if known["regressions"] and known["verdict"] != "met":
            last = known["regressions"][-1]
            found.append(f"{id} was met, and broken in iteration {last['iteration']}, commit {last['commit'][:12]}")
        if known["unconfirmed"]:
            found.append(f"{id} is met in the work tree alone, not in a clean checkout")
        if known["flaky"]:
            found.append(f"{id} is flaky: its check gave different results on the same tree")
        if known["evidence"]:
            found.append(
                f"{id} was {known['evidence']['kind']} by {known['evidence']['by']} at {known['evidence']['at']}"
            )
    changes = [f"iteration {e['iteration']}: {e['path']} ({e['what']})" for e in memory["tampering"][-5:]]
    found += [f"protected, and changed: {', '.join(changes)}"] if changes else []
    claimed, false = memory["metrics"]["claims_made"], memory["metrics"]["claims_false"]
    found += [f"the worker claimed {claimed} times that something is finished; {false} times it was not"] * bool(
        claimed
    )
    for note in memory["notes"]:
        passed_on = (
            "waits for the next instruction" if note["iteration"] is None else f"told in iteration {note['iteration']}"
        )
        found.append(f"note {passed_on}: {' '.join(note['text'].split())[:100]}")
    found += [
        f"{model or 'the usual model'} is used up until {_local(until)}" for model, until in memory["limited"].items()
    ]
    if (until := memory["manager"]["until"]) > time.time() and memory["current_phase"] != "completed":
        found.append(f"the manager's model gave no answer, and is not asked before {_local(until)}; the rules decide")
    if memory["confirmed"] and memory["confirmed"]["where"] == "tree":
        found.append("no clean checkout confirmed it: confirm is tree, or auto_commit off")
    return found


def how_to_take(memory: dict[str, Any]) -> str:
    """The commands that bring the work to the branch that the mission started from."""
    return f"git checkout {memory['start_branch'] or '<your branch>'} && git merge {memory['branch']}"


def status(folder: str | None, session: str | None, as_json_text: bool) -> str:
    """What the command `status` prints. Raises LookupError when there is no such mission."""
    if folder is None:
        raise LookupError("no mission was started here yet: no .cco folder in this directory or above it")
    known = memories(folder)
    if session and not (known := choose(known, session)):
        raise LookupError(f"no mission or session begins with {session!r}; there are: {_names(memories(folder))}")
    if as_json_text:
        found = [as_json(memory) for memory in known]
        return json.dumps(found[0] if len(found) == 1 else found, indent=2)
    holder = state.holder(os.path.join(folder, "lock"))
    if session:
        return "\n\n".join(whole(memory, holder) for memory in known)
    lines = [*(line(memory, holder) for memory in known), *damaged(folder)]
    return "\n".join(lines) or "no mission was started here yet"


def _names(known: list[dict[str, Any]]) -> str:
    return ", ".join(memory["mission_id"] for memory in known) or "none"


def _local(epoch: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(epoch))
