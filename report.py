"""What the user reads: `status`, the report as Markdown and HTML, and the question of a mission that is blocked.

A report is one list of sections, which `write` writes down in two formats. Whatever a mission, a model or a worker
wrote is masked and loses its markup in `_block`, so no section has to think of it. Here are the notifications, too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import log
import proc
import state as states
from mission import Mission
from proc import USAGE, Stop
from state import CriterionState, State

HERE = Path(__file__).resolve().parent
SHA = 12  # characters of a commit
OUTPUTS, TAIL, TRIED = 10, 3000, 12  # failing criteria that a question shows, bytes of each, sessions that it names
SIGNS = {"met": "■", "flaky": "~", "tampered": "T", "unjudged": "?"}  # in the grid; all other verdicts are "□"
LEGEND = "■ met   □ not met   ! broken: met before   ~ flaky   T protected file changed   ? not judged   · not known"
COLUMNS = 100  # iterations that the grid shows
PLACES = {"checkout": "in a clean checkout", "tree": "in the work tree"}
KINDS = {"judge": "judged by a model", "user": "confirmed by the user"}  # where a verdict is from, if not from a check
MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~&!$^]")
LINK = re.compile(r"://|www\.|@|:[a-z+-][\w+-]*:|^#\d", re.I)  # viewers make links and pictures of these, even escaped
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/><title>%s</title><style>
:root { color-scheme: light dark }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 + p { padding: .5rem 1rem; border-left: 4px solid; font-weight: 600 }
div, pre { overflow-x: auto }
table { border-collapse: collapse; font-size: .87rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid gray }
td { max-width: 34rem; overflow-wrap: break-word }
</style></head><body>
%s
</body></html>
"""


class Lines(str):
    """Text that keeps its line breaks: commands, output, the grid."""


Table = list[Sequence[object]]  # the names of the columns, and the rows
Block = str | Lines | Table
Section = tuple[str, list[Block]]  # a heading, "" for none, and what stands below it


# --- Status ---


def status(folder: Path | None, session: str | None, as_json: bool) -> str:
    """Return what the command `status` prints: one mission in full, several in one line each. Raises Stop."""
    if folder is None:
        raise Stop(USAGE, "no mission was started here yet: there is no .cco folder in this directory or above it")
    every, problems = states.load_all(folder)
    chosen = states.choose(every, session) if session else every
    if session and not chosen:
        names = ", ".join(state.mission_id for state in every) or "none"
        raise Stop(USAGE, f"no mission or session begins with {session!r}; there are: {names}")
    if as_json:
        objects = [to_json(folder, state) for state in chosen]
        return json.dumps(log.mask_tree(objects[0] if len(objects) == 1 else objects), indent=2)
    in_full = bool(session) or len(chosen) == 1
    parts = [in_words(folder, state) if in_full else status_line(folder, state) for state in chosen] + problems
    if (folder / "stop").exists():
        parts.append("a stop was asked for: starts with --no-wait (cron) end at once until make start or make resume")
    return log.printable(("\n\n" if in_full else "\n").join(parts)) or "no mission was started here yet"


def status_line(folder: Path, state: State) -> str:
    """Return one mission in one line."""
    running = " (running)" if _runs(folder, state) else ""
    met = f"{len(state.met)}/{len(state.criteria)} met, iteration {state.iterations}"
    why = f"; {text}" if (text := reason(folder, state)) else ""
    return f"{state.mission_id}: {state.current_phase}{running}, {met}, ${state.totals['estimated_cost']:.2f}{why}"


def reason(folder: Path, state: State) -> str:
    """Say what a mission waits for or why it stopped; "" while it works."""
    if state.current_phase == "completed":
        return f"done, confirmed {PLACES[state.confirmed['where']]}" if state.confirmed else "done"
    if state.blocked:
        return f"needs your answer: {_one_line(state.blocked['question'])}"
    if state.wait:
        return f"waits for {state.wait.why} until {_local(state.wait.until)}"
    if _runs(folder, state):
        return ""
    if state.session and state.session.seen:
        return "waiting until you have carried out .cco/instruction.md: start it again then"
    if state.is_running:
        return "ended in the middle of a session (kill -9, crash or reboot): start it again to go on"
    has_failed = state.failed or any(percent >= 100 for percent in state.alerts.values())
    return f"stopped: {_last_error(folder, state) if has_failed else 'start it again to go on'}"


def table(state: State) -> str:
    """Return the criteria as a table. By hand, since importing tabulate takes longer than the rest of `status`."""
    rows = [("", "id", "verdict", "priority", "regressions", "stalls", "criterion")]
    for id, criterion in state.criteria.items():
        regressions = sum(id in entry.broke for entry in state.history)
        counts = (str(regressions or ""), str(criterion.stalls or ""))
        sign = {"met": "[x]", "unjudged": "[?]"}.get(criterion.verdict, "[ ]")
        rows.append((sign, id, criterion.verdict, criterion.priority, *counts, _one_line(criterion.criteria)[:60]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def in_words(folder: Path, state: State) -> str:
    """Return one mission with its criteria, and what the user may have to do."""
    lines = [": ".join(pair) for pair in _warnings(state)]
    for who in (who for who in ("manager", "judge") if not state.may_ask(who)):
        lines.append(f"the {who}'s model gave no answer, and is not asked before {_local(state.asked[who]['until'])}")
    for name, text in _notes(folder, state).items():
        when = "carried by the current instruction" if name in state.notes else "waits for the next instruction"
        lines.append(f"note ({when}): {_one_line(text)[:100]}")
    parts = [status_line(folder, state), table(state), "\n".join(lines)]
    parts.append(f"branch {state.branch}, commit {state.commit[:SHA] or 'none'}, {cost(state)}")
    if state.blocked:
        parts.append(f"How to answer: {folder / 'reports' / state.mission_id}.blocked.md")
    if state.current_phase == "completed":
        parts.append(f"To merge the result: {merge_command(state)}")
    return "\n\n".join(part for part in parts if part)


def to_json(folder: Path, state: State) -> dict[str, Any]:
    """Return what `status --json` prints for one mission. Its keys are a contract: add, do not rename."""
    of_state = ("session_id", "iterations", "limited_models", "totals", "commit", "branch", "confirmed", "tampering")
    of_each = ("criteria", "priority", "verdict", "stalls", "flaky", "fails_in_clean_checkout", "cost_usd", "proof")
    criteria = []
    for id, criterion in state.criteria.items():
        regressions = [
            {"iteration": entry.number, "commit": entry.commit, "session": entry.session_id, "focus": entry.focus}
            for entry in state.history
            if id in entry.broke
        ]
        shown = {name: getattr(criterion, name) for name in of_each}
        criteria.append({"id": id, **shown, "regressions": regressions})
    return {
        "mission": state.mission_id,
        "phase": state.current_phase,
        "running": _runs(folder, state),
        "reason": reason(folder, state),
        "criteria": criteria,
        "cost_usd": state.totals["estimated_cost"],
        "forecast_usd": forecast(state),
        "wait_until": state.wait.until if state.wait else None,
        "blocked": state.blocked["question"] if state.blocked else None,
        "notes": list(_notes(folder, state).values()),
        **{name: getattr(state, name) for name in of_state},
    }


def forecast(state: State) -> float | None:
    """Return the dollars that the open criteria would cost, as those that sessions met did; None: too early."""
    earned = sum(bool(one.first_met) and one.verdict == "met" for one in state.criteria.values())
    return state.totals["estimated_cost"] / earned * len(state.open) if earned > 1 and state.open else None


def cost(state: State) -> str:
    """Return what it cost so far, and what the rest may cost."""
    rest, unknown = forecast(state), state.totals["calls_of_unknown_cost"]
    more = f" (answers of unknown cost: {unknown})" if unknown else ""
    more += " so far" if rest is None else f" so far, the rest about ${rest:.2f}"
    return f"${state.totals['estimated_cost']:.4f}{more}"


def until(state: State) -> str:
    """Return what is waited for, until when and how long, for people; "" without a wait."""
    wait = state.wait
    return f"waiting for {wait.why}, until {_local(wait.until)} ({span(state.wait_left())})" if wait else ""


def merge_command(state: State) -> str:
    """Return what to type to merge the result into the branch that the mission started from."""
    start = shlex.quote(state.start_branch) if state.start_branch else "YOUR_BRANCH"
    return f"git checkout {start} && git merge {shlex.quote(state.branch)}"


# --- The report, and the question ---


def markdown(state: State, mission: Mission) -> str:
    """Return the report in Markdown, without links, pictures and HTML."""
    return _render(mission.title, _sections(state, mission))


def html(state: State, mission: Mission) -> str:
    """Return the report as one page without scripts that needs nothing from elsewhere."""
    body = _render(mission.title, _sections(state, mission), as_html=True)
    return PAGE % (escape(_one_line(mission.title)), body)


def write(folder: Path, state: State, mission: Mission) -> list[Path]:
    """Write both formats to `reports/`, readable for their owner only, and return their paths. Raises OSError."""
    texts = {".md": markdown(state, mission), ".html": html(state, mission)}
    return [_write(folder, state.mission_id + suffix, text) for suffix, text in texts.items()]


def write_question(folder: Path, state: State, mission: Mission) -> Path:
    """Write the question to the user with all that it takes to answer it; return the file. Raises OSError."""
    make, mission_id = f"make -f {shlex.quote(str(HERE / 'Makefile'))}", state.mission_id
    answers = [f"cd {shlex.quote(str(folder.parent))}", f"{make} tell SESSION={mission_id} TEXT='...'"]
    for one in (one for one in mission.criteria if one.check is None and one.id in state.open):
        answers.append(f"{make} accept SESSION={mission_id} ID={one.id}   # if it is met")
    answers += [f"{make} start MISSION={shlex.quote(state.mission_path)}"]
    failing: list[Block] = []
    for id in state.open[:OUTPUTS]:
        criterion = state.criteria[id]
        failing.append(f"Criterion {id} ({criterion.priority}, {criterion.verdict}): {criterion.criteria}")
        failing.append(Lines(_output(folder / "logs" / "checks" / f"{id}.log") or "(no output)"))
    sections: list[Section] = [
        ("", [f"Question: {state.blocked['question'] if state.blocked else 'none'}"]),
        ("To answer", ["Leave a note, or edit the mission or the code. Then start again.", Lines("\n".join(answers))]),
        ("What fails", failing),
        ("What was tried", [_history(state.sessions[-TRIED:])]),
    ]
    return _write(folder, f"{mission_id}.blocked.md", _render(f"{mission.title}: needs your answer", sections))


def cell(text: object) -> str:
    """Return a text as one line of Markdown that shows its characters and is nothing else, also in a table."""

    def shown(match: re.Match[str]) -> str:
        return f"`{match[0]}`" if LINK.search(match[0]) else MARKUP.sub(r"\\\g<0>", match[0])

    return re.sub(r"[^\s|`]+|[|`]", shown, _one_line(text))


def _render(title: str, sections: Sequence[Section], as_html: bool = False) -> str:
    """Return a document; tables without rows, and headings with nothing below, are left out."""
    parts = [f"<h1>{escape(_one_line(title))}</h1>" if as_html else f"# {cell(title)}"]
    for heading, blocks in sections:
        texts = [_block(block, as_html) for block in blocks if not isinstance(block, list) or block[1:]]
        if heading and texts:
            parts.append(f"<h2>{heading}</h2>" if as_html else f"## {heading}")
        parts += texts
    return "\n\n".join(parts) + "\n"


def _block(block: Block, as_html: bool) -> str:
    from tabulate import tabulate

    if isinstance(block, list):
        rows = [[_one_line(one) if as_html else cell(one) for one in row] for row in block]
        form = "html" if as_html else "github"  # of these two, only html escapes by itself
        made = tabulate(rows, "firstrow", form, disable_numparse=True)  # an id such as 1e5 is no number
        return f"<div>{made}</div>" if as_html else str(made)
    if isinstance(block, Lines):
        text = log.printable(block).strip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"<pre>{escape(text)}</pre>" if as_html else f"{fence}\n{text}\n{fence}"
    return f"<p>{escape(_one_line(block))}</p>" if as_html else cell(block)


def _write(folder: Path, name: str, text: str) -> Path:
    (folder / "reports").mkdir(mode=0o700, parents=True, exist_ok=True)
    states.write(folder / "reports" / name, text.encode("utf-8", "replace"))
    return folder / "reports" / name


def _sections(state: State, mission: Mission) -> list[Section]:
    """Return headings with what stands below them; the first has none, and begins with the verdict."""
    place = f"branch {state.branch}, base {state.base_commit[:SHA] or 'none'}; as of {states.now()}"
    first = [f"Mission {state.mission_id}, file {state.mission_path}, SHA-256 {mission.digest}; {place}"]
    if done := state.confirmed:
        setup = f"; setup ({mission.setup}): exit code {done['setup']['code']}" if done["setup"] else ""
        first.append(f"It was confirmed {PLACES[done['where']]} in {span(done['seconds'])}, {done['at']}{setup}")
    changed: Table = [("iteration", "path", "what", "changed version")]
    changed += [tuple(one.values()) for one in state.tampering]
    merging = f"{merge_command(state)}\ngit revert -m 1 MERGE_COMMIT   # undo the merge"
    return [
        ("", [_verdict(state), *first]),
        ("Criteria", [_criteria(state, mission)]),
        ("Warnings", [[("about", "what to know"), *_warnings(state)]]),
        ("Iteration by iteration", [_grid(state), _history(state.history)]),
        ("Protected files that were changed", [changed]),
        ("Not on the branch", [[("path", "why"), *state.not_committed.items()]]),
        ("Cost, and what else was measured", [_cost(state)]),
        ("To merge the result, or to undo it", [Lines(merging)]),
    ]


def _verdict(state: State) -> str:
    """Return the whole in one sentence."""
    met, total = len(state.met), len(state.criteria)
    if state.current_phase != "completed":
        asks = f" Question: {state.blocked['question']}" if state.blocked else ""
        return f"✘ Not done: {met} of {total} criteria are met. Phase: {state.current_phase}.{asks}"
    place = f" {PLACES[state.confirmed['where']]}" if state.confirmed else ""
    kinds = Counter(criterion.proof["where"] if criterion.proof else "" for criterion in state.criteria.values())
    how = ", ".join(f"{count} {KINDS.get(kind, f'proven by checks{place}')}" for kind, count in kinds.items())
    return f"✔ Done: all {total} criteria are met on commit {state.commit}: {how}."


def _criteria(state: State, mission: Mission) -> Table:
    checks = {criterion.id: criterion.check or "" for criterion in mission.criteria}
    rows = [
        (id, one.criteria, one.verdict, one.priority, f"${one.cost_usd:.2f}", checks.get(id, ""), _proof(one))
        for id, one in state.criteria.items()
    ]
    return [("id", "what", "verdict", "priority", "cost", "check", "proof"), *rows]


def _proof(criterion: CriterionState) -> str:
    """Return what a verdict rests on: an exit code, or a judge with quotes, or the user."""
    if not (proof := criterion.proof):
        return ""
    when = f"{proof['at']}, commit {proof['commit'][:SHA]}"
    if proof["where"] in PLACES:
        ran = f"exit code {proof['code']}, {span(proof['seconds'])}, output SHA-256 {proof['digest']}"
        return f"{ran}, {PLACES[proof['where']]}, {when}"
    quotes = "".join(f"; “{quote['text']}” in {quote['path']}" for quote in proof["quotes"])
    return f"{KINDS[proof['where']]} ({proof['by']}), {when}: {proof['reason']}{quotes}"


def _warnings(state: State) -> list[tuple[str, str]]:
    """Return what the user should know besides the verdicts: what it is about, and the words."""
    rows = []
    for id, criterion in state.criteria.items():
        where = criterion.proof["where"] if criterion.proof else ""
        unseen = criterion.verdict == "met" and where in PLACES and not criterion.seen_failing
        texts = {
            state.broken_by(id): True,
            "flaky: its check gave different results on the same tree": criterion.flaky,
            "passes in the work tree, but failed in a clean checkout": criterion.fails_in_clean_checkout,
            "set aside: the last sessions on it changed nothing": state.is_set_aside(id),
            "its check was never seen to fail: it shows that nothing broke, not that work was done": unseen,
            f"{KINDS.get(where)}, not proven by a check": where in KINDS,
        }
        rows += [(id, text) for text, holds in texts.items() if text and holds]
    if state.tampering:
        changes = (f"{one['path']} ({one['what']}, iteration {one['iteration']})" for one in state.tampering[-5:])
        rows.append(("protected files", f"changed: {', '.join(changes)}"))
    if made := state.totals["claims_made"]:
        false = state.totals["claims_false"] or "none"
        rows.append(("claims", f"the worker reported {made} criteria as met, and {false} of them were not"))
    if state.confirmed and state.confirmed["where"] == "tree":
        rows.append(("confirmation", "the checks ran in the work tree only, where files count that are in no commit"))
    return rows


def _grid(state: State) -> Lines:
    """Return a sign for each criterion after each of the last iterations; 0 is before the first session."""
    first, width = max(0, state.iterations - COLUMNS + 1), max(map(len, state.criteria), default=0) + 2
    lines = []
    for id in state.criteria:
        entries = [entry for entry in state.history if id in entry.changed]
        changes = {e.number: "!" if id in e.broke else SIGNS.get(e.changed[id], "□") for e in entries}
        signs, sign = "", "·"
        for number in range(state.iterations + 1):
            signs += (sign := changes.get(number, sign))
        lines.append(f"{id:{width}}{signs[first:]}")
    return Lines("\n".join([*lines, "", f"iterations {first} to {state.iterations}", LEGEND]))


def _history(entries: Sequence[states.Iteration]) -> Table:
    """Return what each iteration did and brought; one without a session ran the checks alone."""
    head = ", worked on, how, ended, turns, cost, time, commit, met, changed, false claims, tampered, its last words"
    rows = []
    for e in entries:
        changed = (f"{id} {verdict}{' (broken)' if id in e.broke else ''}" for id, verdict in e.changed.items())
        how = f"{e.strategy}, by {e.decided_by}" if e.focus else ""
        cost = f"${e.cost_usd + e.manager_usd:.2f}"
        row = (e.number, e.focus, how, e.outcome, e.turns, cost, span(e.seconds), e.commit, e.met, ", ".join(changed))
        rows.append((*row, ", ".join(e.false_claims), ", ".join(e.tampered), e.report))
    return [head.split(", "), *rows]


def _cost(state: State) -> Table:
    totals = dict(state.totals)
    tokens = {f"tokens {name}": count for name, count in totals.pop("token_usage").items()}
    return [("what", "how much"), *((name.replace("_", " "), value) for name, value in (totals | tokens).items())]


def _one_line(text: object) -> str:
    return " ".join(log.printable(str(text)).split())


def _runs(folder: Path, state: State) -> bool:
    return (proc.holder(folder / "lock") or {}).get("mission") == state.mission_id


def _notes(folder: Path, state: State) -> dict[str, str]:
    """Return the user's notes that no session has read to the end yet: file name -> text."""
    paths = sorted((folder / "inbox").glob(f"{state.mission_id}.[0-9]*.md"))
    return {path.name: path.read_text("utf-8", "replace") for path in paths}


def _output(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return proc.tail(file, TAIL)
    except OSError:  # it has not run yet
        return ""


def _last_error(folder: Path, state: State) -> str:
    """Return the last error of a mission in the log, on one line."""
    try:
        lines = [json.loads(line) for line in (folder / "logs" / "error.log").read_text("utf-8").splitlines()[-50:]]
        return _one_line([line["msg"] for line in lines if line.get("mission") == state.mission_id][-1])[:200]
    except (OSError, ValueError, LookupError, AttributeError):  # rotated away, or damaged
        return "see .cco/logs/error.log"


def _local(epoch: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(epoch))


def span(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{round(seconds, 1):g} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- Notifications ---


class Notifier:
    """Starts the user's commands for milestones. A message never delays or breaks a mission."""

    def __init__(self, targets: Sequence[Any], mission: Mission, root: Path):
        self.targets, self.mission, self.root = targets, mission, root
        self.running: list[subprocess.Popen[bytes]] = []

    def send(self, event: str, text: str, state: State) -> None:
        """Start the commands that want an event, with one JSON object on their standard input."""
        payload: dict[str, Any] = {"event": event, "mission": self.mission.id, "title": self.mission.title}
        payload |= {"text": text, "repository": str(self.root), "branch": state.branch, "commit": state.commit}
        payload |= {"iteration": state.iterations, "met": len(state.met), "total": len(state.criteria)}
        payload |= {"cost_usd": state.totals["estimated_cost"], "wait_until": state.wait.until if state.wait else None}
        payload |= {"question": state.blocked["question"] if state.blocked else None}
        content = json.dumps(log.mask_tree(payload)).encode()
        for target in (one for one in self.targets if not one.events or event in one.events):
            shell = [proc.find("bash", self.root) or "/bin/sh", "-c", target.command]
            try:
                self.running.append(proc.start_detached(shell, self.root, os.environ, content))
            except OSError as error:
                log.warn(f"a notification could not be started: {error}")

    def finish(self, seconds: float) -> None:
        """Wait a little for what is under way, and say what failed."""
        end = time.monotonic() + seconds
        for process in self.running:
            try:
                if code := process.wait(max(0.1, end - time.monotonic())):
                    log.warn(f"a notification failed: its command ended with exit code {code}")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started; it leads a group of its own
                process.wait()
                log.warn("a notification took too long and was ended")


def milestones(state: State, before: Mapping[str, CriterionState]) -> list[tuple[str, str]]:
    """Return event and text for the criteria that became met, broke, or were set aside. before: the checks."""
    if not state.iterations:
        return []  # the baseline is nobody's doing
    met, broke, aside = list[str](), list[str](), list[str]()
    for id, criterion in state.criteria.items():
        if criterion.verdict == "met" and before[id].verdict != "met":
            met.append(f"{id} is met: {criterion.criteria}")
        if before[id].verdict == "met" and (broken := state.broken_by(id)):
            broke.append(f"{id} was met and is not any more: {broken}")
        if state.is_set_aside(id) and before[id].stalls < states.STALLS[1]:
            aside.append(f"{id} is set aside: the last sessions on it changed nothing")
    lines = {"criterion_met": met, "regression": broke, "stalled": aside}
    return [(event, "\n".join(texts)) for event, texts in lines.items() if texts]
