"""The report of a mission, as Markdown and as one HTML page that needs nothing from elsewhere.

    markdown_file, html_file = page.write(Path(".cco"), memory, mission)

What is told is collected once, as sections of paragraphs, commands, tables and a grid; paper.py writes them down.
Every number comes from the memory.

What is not covered: whether the memory is right.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import budget
import ledger
import log
import paper
import report
from mission import Mission
from paper import BREAK, STATES, Block, Code, Commands, Grid, Sign, Table, Text
from situation import Situation

COLUMNS = 120  # iterations shown in the grid
SHA = 12  # characters of a commit
LETTERS = {"met": "m", "flaky": "f", "tampered": "t", "unjudged": "?"}  # of a verdict; all others are "u"
PLACES = {"checkout": " in a clean checkout", "tree": " in the work tree"}
ONLY_TREE = (
    "No clean checkout was made: the checks ran in the work tree only. What passes there may rest on files that are "
    "in no commit, on caches or on installed packages, and may fail for others who take the commit."
)
WARNINGS = {
    "guard": "a guard: it was green before the first session, so it shows that nothing broke, not that work was done",
    "never": "its check was never red, so nobody has seen that it can fail",
    "flaky": "its check gave different verdicts on the same tree",
    "unconfirmed": "it passes in the work tree, but failed in a clean checkout",
}


def markdown(memory: dict[str, Any], mission: Mission) -> str:
    """The report in Markdown, without links, pictures and HTML."""
    return paper.markdown(mission.title, _sections(memory, mission))


def html(memory: dict[str, Any], mission: Mission) -> str:
    """The report as one page without scripts that needs nothing from elsewhere."""
    return paper.html(mission.title, _sections(memory, mission), memory["current_phase"] == "completed")


def write(folder: Path, memory: dict[str, Any], mission: Mission) -> tuple[Path, Path]:
    """Write both to `<folder>/reports`, readable for their owner only, and return their paths. Raises OSError."""
    reports = folder / "reports"
    reports.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = reports / f"{memory['mission_id']}.md", reports / f"{memory['mission_id']}.html"
    for path, render in zip(paths, (markdown, html), strict=True):
        text, temporary = render(memory, mission), path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", opener=log.private) as file:
                file.write(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths


def write_question(folder: Path, question: str, situation: Situation) -> Path:
    """Write the question to `<folder>/reports` with all that a person needs to answer it; its path. Raises OSError."""
    path = folder / "reports" / f"{situation.mission.id}.blocked.md"
    failing = [s for s in situation.standings if s.verdict != "met"]
    tried = situation.tried or ["nothing"]
    fails: list[Block] = []
    for standing in failing:
        fails += [(Code(standing.id), ": ", standing.criteria), Commands(standing.tail.strip())]
    sections: list[tuple[str, list[Block]]] = [("", [question]), ("What was tried", [*tried]), ("What fails", fails)]
    path.write_text(paper.markdown(f"{situation.mission.title}: a person has to answer", sections))
    return path


# --------------------------------------------------------------------------------------------------------
# What is told
# --------------------------------------------------------------------------------------------------------


def _sections(memory: dict[str, Any], mission: Mission) -> list[tuple[str, list[Block]]]:
    """Headings, written here, with what stands below them; the first has none, and begins with the verdict."""
    left_out = [(Code(text),) for text in memory["left_out"]]
    told = [
        ("", [_verdict(memory), *_circumstances(memory, mission)]),
        ("Criteria", _criteria(memory, mission)),
        ("Warnings", _warnings(memory, mission)),
        ("Iteration by iteration", _grid(memory)),
        ("Regressions", _regressions(memory)),
        ("Sessions", _sessions(memory["history"])),
        ("Cost", _cost(memory)),
        ("Claims", _claims(memory)),
        ("Tampering", _tampering(memory)),
        ("Accepted by a person", _accepted(memory)),
        ("Not on the branch", _table("path and reason", left_out)),
        ("Best so far", _best(memory)),
        ("Taking the work, and undoing it", _taking(memory)),
    ]
    return [(heading, blocks) for heading, blocks in told if blocks]


def _table(head: str, rows: Iterable[Sequence[Text]]) -> list[Block]:
    """A table with these columns, nothing without rows."""
    rows = list(rows)
    return [Table(head.split(", "), rows)] if rows else []


def _verdict(memory: dict[str, Any]) -> Text:
    """The whole in one sentence."""
    known, confirmed = memory["criteria"].values(), memory["confirmed"] or {}
    met = sum(c["verdict"] == "met" for c in known)
    if memory["current_phase"] != "completed":
        return f"✘ Not done: {met} of {len(known)} criteria are met", *_next(memory, met == len(known))
    commit, where = Code(confirmed.get("commit") or memory["commit"]), PLACES.get(confirmed.get("where", ""), "")
    everything = "the only criterion is" if len(known) == 1 else f"all {len(known)} criteria are"
    kinds = Counter((c["evidence"] or {"kind": "proven"})["kind"] for c in known)
    if kinds["proven"] == len(known):
        return f"✔ Done: {everything} proven on commit ", commit, f"{where}."
    words = {"proven": f"proven by checks{where}", "judged": "judged by a model", "accepted": "accepted by a person"}
    how = ", ".join(f"{kinds[kind]} {text}" for kind, text in words.items() if kinds[kind])
    return f"✔ Done: {everything} met on commit ", commit, f": {how}."


def _next(memory: dict[str, Any], all_met: bool) -> Sequence[str]:
    """What a mission that is not done is waiting for."""
    if memory["blocked"]:
        return ". A person has to answer: ", memory["blocked"]["question"]
    if memory["current_phase"] == "waiting" and memory["wait_until"]:
        until = datetime.fromtimestamp(memory["wait_until"], timezone.utc).isoformat()
        return (f". It waits until {_when(until)}.",)
    return (", but they are not confirmed yet." if all_met else f". It is in phase {memory['current_phase']}.",)


def _circumstances(memory: dict[str, Any], mission: Mission) -> list[Block]:
    """Which mission this is, and how it was confirmed."""
    base, commit = (Code(memory[name][:SHA] or "none") for name in ("base", "commit"))
    file, digest = Code(memory["mission"]["path"]), Code(memory["mission"]["digest"])
    which = ("Mission ", Code(memory["mission_id"]), ", file ", file, ", SHA-256 ", digest)
    where = (
        f"; iteration {memory['iterations']}, branch ",
        Code(memory["branch"]),
        ", base ",
        base,
        ", commit ",
        commit,
    )
    told: list[Block] = [(*which, *where, f"; as of {_when(memory['timestamp'])}.")]
    confirmed = memory["confirmed"] or {}
    if confirmed:
        how = f" was confirmed{PLACES.get(confirmed['where'], '')} in {_time(confirmed['seconds'])}, "
        setup = confirmed.get("setup")
        ran = (" Setup ", Code(mission.setup or ""), ": ", *_ran(setup), ".") if setup else ()
        told.append(("Commit ", Code(confirmed["commit"]), how, f"{_when(confirmed['at'])}.", *ran))
    if confirmed.get("where", mission.confirm) == "tree":
        told.append(ONLY_TREE)
    return told


def _ran(ended: dict[str, Any]) -> Sequence[str]:
    return f"exit code {ended['code']}, {_time(ended['seconds'])}, output SHA-256 ", Code(ended["digest"])


def _criteria(memory: dict[str, Any], mission: Mission) -> list[Block]:
    checks = {c.id: c.check for c in mission.criteria}
    now = range(memory["iterations"], memory["iterations"] + 1)
    return _table(
        ", id, what, verdict, priority, cost, how proven",
        (
            (Sign(_states(known, now)), Code(id), known["criteria"], known["verdict"], known["priority"])
            + (f"${known['cost_usd']:.2f}", (*_proof(known["proof"], checks.get(id)), *_evidence(known["evidence"])))
            for id, known in memory["criteria"].items()
        ),
    )


def _proof(proof: dict[str, Any] | None, check: str | None) -> Sequence[str]:
    command = (Code(check), BREAK) if check else ()
    if not proof:
        return command
    runs = f", run {proof['runs']} times" if proof["runs"] > 1 else ""
    where = (f"{PLACES.get(proof['where'], '')[1:]}{runs}, {_when(proof['at'])}, commit ", Code(proof["commit"][:SHA]))
    return *command, *where, BREAK, *_ran(proof), BREAK


def _evidence(evidence: dict[str, Any] | None) -> Sequence[str]:
    """Who found without a check that it is met, and by which words."""
    if not evidence:
        return ()
    parts = [f"{evidence['kind']} by ", evidence["by"], f", {_when(evidence['at'])}, commit "]
    parts += [Code(evidence["commit"][:SHA]), ": ", evidence["reason"], BREAK]
    for quote in evidence["quotes"]:
        parts += ["“", quote["text"], "” in ", Code(quote["path"]), ", blob ", Code(quote["blob"][:SHA]), BREAK]
    return parts


def _warnings(memory: dict[str, Any], mission: Mission) -> list[Block]:
    checked = {c.id for c in mission.criteria if c.check}
    guards = {c.id for c in mission.criteria if c.guard}
    rows = []
    for id, known in memory["criteria"].items():
        never = id in checked - guards and known["verdict"] == "met" and not known["seen_red"]
        found = {**known, "guard": id in guards, "never": never}
        rows += [(Code(id), text) for key, text in WARNINGS.items() if found.get(key)]
    for first, second in ledger.conflicts(memory):
        rows.append((Code(f"{first}, {second}"), "in conflict: when one became met, the other broke, several times"))
    return _table("criterion, what to know about it", rows)


def _grid(memory: dict[str, Any]) -> list[Block]:
    """Every criterion, and the referee, at each iteration; 0 is before the first session."""
    last, history = memory["iterations"], memory["history"]
    columns = range(last - COLUMNS + 1 if last > COLUMNS else 0, last + 1)
    tampered = {entry["iteration"] for entry in memory["tampering"]}
    tampered |= {entry["iteration"] for entry in history if entry["tampered"]}
    watched = {entry["iteration"] for entry in history}
    referee = "".join("t" if i in tampered else "-" if i in watched else "." for i in columns)
    rows = [*((id, _states(known, columns)) for id, known in memory["criteria"].items()), ("referee", referee)]
    note = "Iteration 0 is what was found before the first session."
    if last > COLUMNS:
        note = f"Only the last {COLUMNS} of {last} iterations are shown."
    return [note, Grid(columns, rows)]


def _states(known: dict[str, Any], columns: range) -> str:
    """The letter of a criterion at each iteration: that of its last change until then."""
    changes = known["changes"] or [[known["since"], LETTERS.get(known["verdict"], "u")]]
    letters = (next((letter for when, letter in reversed(changes) if when <= i), ".") for i in columns)
    return "".join(letter if letter in STATES else "." for letter in letters)


def _regressions(memory: dict[str, Any]) -> list[Block]:
    return _table(
        "criterion, iteration, commit, session, while working on",
        (
            (
                Code(id),
                r["iteration"],
                Code(r["commit"][:SHA]),
                Code(r["session"]),
                Code(r["focus"]),
            )
            for id, known in memory["criteria"].items()
            for r in known["regressions"]
        ),
    )


def _sessions(history: Sequence[dict[str, Any]]) -> list[Block]:
    head = ", worked on, strategy, ended, turns, cost, time, commit, met, tampered, broke, it said"
    rows = []
    for known in history:
        plan = Code(known["focus"]), (known["strategy"], ", by ", known["source"])
        used = f"${known['cost_usd'] + known['manager_usd']:.2f}", _time(known["seconds"])
        after = Code(known["commit"]), known["met"], known["tampered"], Code(", ".join(known["broke"]))
        rows.append((known["iteration"], *plan, known["kind"], known["turns"], *used, *after, known["report"]))
    return _table(head, rows)


def _cost(memory: dict[str, Any]) -> list[Block]:
    metrics, rest = memory["metrics"], budget.forecast(memory)
    unknown = f" (answers of unknown cost: {metrics['calls_of_unknown_cost']})"
    rows = {
        "cost": f"${metrics['estimated_cost']:.2f}{unknown if metrics['calls_of_unknown_cost'] else ''}",
        **({} if rest is None else {"what the rest would cost, by what the first took": f"${rest:.2f}"}),
        "of it the manager's model": f"${metrics['manager_cost']:.4f}",
        "tokens": ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in metrics["token_usage"].items()),
        "sessions": metrics["session_count"],
        "questions to the manager's model": metrics["api_calls_total"],
        "questions that were not needed": metrics["api_calls_avoided"],
        "worker time": _time(metrics["worker_seconds"]),
        "check time": _time(metrics["check_seconds"]),
        "waits": f"{metrics['waits']}, {_time(metrics['wait_seconds'])}",
    }
    return _table("what, how much", rows.items())


def _claims(memory: dict[str, Any]) -> list[Block]:
    """What the worker said is met, held against what was."""
    made, false = (memory["metrics"][f"claims_{name}"] for name in ("made", "false"))
    if not made:
        return ["None: no claim of the worker was found."]
    told = [(entry["iteration"], *entry["claims"]) for entry in memory["history"]]
    rows = ((iteration, claimed, claimed - lies, lies) for iteration, claimed, lies in told if claimed)
    total = f"Claimed {made}, true {made - false}, false {false or 'none'}."
    return [total, *_table("iteration, claimed, true, false", rows)]


def _tampering(memory: dict[str, Any]) -> list[Block]:
    listed = memory["tampering"]
    if not (count := max(memory["metrics"]["tampered"], len(listed))):
        return ["None: no change of the referee was found."]
    rows = ((t["iteration"], Code(t["path"]), t["what"], Code(t["kept"])) for t in listed)
    table = _table("iteration, path, what, the changed version is kept in", rows)
    return [f"Files of the referee that were touched: {count}. The last {len(listed)}:", *table]


def _accepted(memory: dict[str, Any]) -> list[Block]:
    said = [(id, known["evidence"] or {}) for id, known in memory["criteria"].items()]
    rows = (
        (Code(id), e["by"], _when(e["at"]), Code(e["commit"][:SHA]), e["reason"])
        for id, e in said
        if e.get("kind") == "accepted"
    )
    return _table("criterion, by, when, commit, reason", rows)


def _best(memory: dict[str, Any]) -> list[Block]:
    if not (best := memory["best"]):
        return []
    met = f" of iteration {best['iteration']}: {best['met']} criteria met. Times returned to it: {best['returns']}."
    return [("Commit ", Code(best["commit"]), met)]


def _taking(memory: dict[str, Any]) -> list[Block]:
    """Commands to copy into a shell, so the names in them are quoted for it."""
    start, branch = (memory[name] and shlex.quote(memory[name]) for name in ("start_branch", "branch"))
    return [
        "To take the work:",
        Commands(report.how_to_take({**memory, "start_branch": start, "branch": branch})),
        "To drop it before it is merged:",
        Commands(f"git checkout {start or '<your branch>'} && git branch -D {branch}"),
        "To undo it after it was merged:",
        Commands("git revert -m 1 <merge commit>"),
        "To undo one session, by its commit:",
        Commands("git revert <commit>"),
    ]


def _when(utc: str) -> str:
    return utc[:19].replace("T", " ") + " UTC"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    short = f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return f"{round(seconds, 2):g} s" if seconds < 100 else short
