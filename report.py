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
import prompt
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
PROVEN = {"checkout": "proven by checks in a clean checkout", "tree": "proven by checks in the work tree"}
PROVEN |= {"judge": "judged by a model", "user": "confirmed by the user"}
MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~&!$^]")
LINK = re.compile(r"://|www\.|@|:[a-z+-][\w+-]*:|^#\d", re.I)  # viewers make links and pictures of these, even escaped
Table = list[Sequence[object]]  # the names of the columns, and the rows
Block = str | Table  # a text that has line breaks keeps them
Section = tuple[str, list[Block]]  # a heading, "" for none, and what stands below it
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/><title>%s</title><style>
:root { color-scheme: light dark }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
div, pre { overflow-x: auto }
table { border-collapse: collapse; font-size: .87rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid gray }
</style></head><body>
%s
</body></html>
"""


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
        for problem in problems:
            log.warn(problem)  # before the log is started a line on stderr, so the output stays JSON
        objects = [to_json(folder, state) for state in chosen]
        return json.dumps(log.mask_tree(objects[0] if len(objects) == 1 else objects), indent=2)
    in_full = bool(session) or len(chosen) == 1
    parts = [(in_words if in_full else status_line)(folder, state) for state in chosen] + problems
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
        return f"done, {PROVEN[state.confirmed['where']]}" if state.confirmed else "done"
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
    return f"stopped: {_one_line(state.failed or 'start it again to go on')}"


def table(state: State) -> str:
    """Return the criteria as a table. By hand, since importing tabulate takes longer than the rest of `status`."""
    rows = [("", "id", "verdict", "priority", "criterion")]
    for id, one in state.criteria.items():
        sign = {"met": "[x]", "unjudged": "[?]"}.get(one.verdict, "[ ]")
        rows.append((sign, id, one.verdict, one.priority, _one_line(one.criteria)[:80]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def in_words(folder: Path, state: State) -> str:
    """Return one mission with its criteria, and what the user may have to do."""
    lines = [": ".join(pair) for pair in _warnings(state)]
    for who in (who for who in ("manager", "judge") if not state.may_ask(who)):
        lines.append(f"the {who}'s model gave no answer, and is not asked before {_local(state.asked[who]['until'])}")
    for path in prompt.notes(folder, state.mission_id):
        when = "carried by the current instruction" if path.name in state.notes else "waits for the next instruction"
        lines.append(f"note ({when}): {_one_line(path.read_text('utf-8', 'replace'))[:100]}")
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
        criteria.append({"id": id, **{name: getattr(criterion, name) for name in of_each}, "regressions": regressions})
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
        "notes": [path.read_text("utf-8", "replace") for path in prompt.notes(folder, state.mission_id)],
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


def write(folder: Path, state: State, mission: Mission) -> list[Path]:
    """Write the report as .md and as .html to `reports/` and return the paths. Raises OSError."""
    sections = _sections(state, mission)
    texts = {suffix: _render(mission.title, sections, suffix == ".html") for suffix in (".md", ".html")}
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
        path = folder / "logs" / "checks" / f"{id}.log"
        output = log.mask(path.read_text("utf-8", "replace"))[-TAIL:] if path.exists() else ""
        failing.append(f"{output or '(no output)'}\n")
    sections: list[Section] = [
        ("", [f"Question: {state.blocked['question'] if state.blocked else 'none'}"]),
        ("To answer", ["Leave a note, or edit the mission or the code. Then start again.", "\n".join(answers)]),
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
    """Return a document in Markdown, or as one page that needs nothing from elsewhere. Empty sections are left out."""
    parts = [f"<h1>{escape(_one_line(title))}</h1>" if as_html else f"# {cell(title)}"]
    for heading, blocks in sections:
        texts = [_block(block, as_html) for block in blocks if not isinstance(block, list) or block[1:]]
        if heading and texts:
            parts.append(f"<h2>{heading}</h2>" if as_html else f"## {heading}")
        parts += texts
    text = "\n\n".join(parts) + "\n"
    return PAGE % (escape(_one_line(title)), text) if as_html else text


def _block(block: Block, as_html: bool) -> str:
    from tabulate import tabulate

    if isinstance(block, list):
        rows = [[_one_line(one) if as_html else cell(one) for one in row] for row in block]
        form = "html" if as_html else "github"  # of these two, only html escapes by itself
        made = tabulate(rows, "firstrow", form, disable_numparse=True)  # an id such as 1e5 is no number
        return f"<div>{made}</div>" if as_html else str(made)
    if "\n" in block:
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
    first = [_verdict(state), f"Mission {state.mission_id}, {state.mission_path}, SHA-256 {mission.digest}; {place}"]
    if done := state.confirmed:
        setup = f"; setup ({mission.setup}): exit code {done['setup']['code']}" if done["setup"] else ""
        first.append(f"It was confirmed in {span(done['seconds'])}, {done['at']}{setup}")
    checks = {criterion.id: criterion.check or "" for criterion in mission.criteria}
    criteria = [
        (id, one.criteria, one.verdict, one.priority, f"${one.cost_usd:.2f}", checks.get(id, ""), _proof(one))
        for id, one in state.criteria.items()
    ]
    totals = {name.replace("_", " "): value for name, value in state.totals.items() if name != "token_usage"}
    totals |= {f"tokens {name}": count for name, count in state.totals["token_usage"].items()}
    changed = [tuple(one.values()) for one in state.tampering]
    merging = f"{merge_command(state)}\ngit revert -m 1 MERGE_COMMIT   # undo the merge"
    return [
        ("", [*first]),
        ("Criteria", [[("id", "what", "verdict", "priority", "cost", "check", "proof"), *criteria]]),
        ("Warnings", [[("about", "what to know"), *_warnings(state)]]),
        ("Iteration by iteration", [_grid(state), _history(state.history)]),
        ("Protected files that were changed", [[("iteration", "path", "what", "changed version"), *changed]]),
        ("Not on the branch", [[("path", "why"), *state.not_committed.items()]]),
        ("Cost, and what else was measured", [[("what", "how much"), *totals.items()]]),
        ("To merge the result, or to undo it", [merging]),
    ]


def _verdict(state: State) -> str:
    """Return the whole in one sentence."""
    met, total = len(state.met), len(state.criteria)
    if state.current_phase != "completed":
        asks = f" Question: {_one_line(state.blocked['question'])}" if state.blocked else ""
        return f"✘ Not done: {met} of {total} criteria are met. Phase: {state.current_phase}.{asks}"
    proofs = Counter(criterion.proof["where"] for criterion in state.criteria.values() if criterion.proof)
    how = ", ".join(f"{count} {PROVEN[where]}" for where, count in proofs.items())
    return f"✔ Done: all {total} criteria are met on commit {state.commit}: {how}."


def _proof(criterion: CriterionState) -> str:
    """Return what a verdict rests on: an exit code, or a judge with quotes, or the user."""
    if not (proof := criterion.proof):
        return ""
    what = f"{PROVEN[proof['where']]}, {proof['at']}, commit {proof['commit'][:SHA]}"
    if "code" in proof:
        return f"{what}: exit code {proof['code']}, {span(proof['seconds'])}, output SHA-256 {proof['digest']}"
    quotes = "".join(f"; “{quote['text']}” in {quote['path']}" for quote in proof["quotes"])
    return f"{what} ({proof['by']}): {proof['reason']}{quotes}"


def _warnings(state: State) -> list[tuple[str, str]]:
    """Return what the user should know besides the verdicts: what it is about, and the words."""
    rows = []
    for id, criterion in state.criteria.items():
        proof = criterion.proof or {}
        unseen = criterion.verdict == "met" and "code" in proof and not criterion.seen_failing
        texts = {
            prompt.broken_by(state, id): True,
            "flaky: its check gave different results on the same tree": criterion.flaky,
            "passes in the work tree, but failed in a clean checkout": criterion.fails_in_clean_checkout,
            "set aside: the last sessions on it changed nothing": state.is_set_aside(id),
            "its check was never seen to fail: it shows that nothing broke, not that work was done": unseen,
            f"{PROVEN.get(proof.get('where', ''))}, not proven by a check": "by" in proof,
        }
        rows += [(id, text) for text, holds in texts.items() if text and holds]
    if state.tampering:
        changes = (f"{one['path']} ({one['what']}, iteration {one['iteration']})" for one in state.tampering[-5:])
        rows.append(("protected files", f"changed: {', '.join(changes)}"))
    made, false = state.totals["claims_made"], state.totals["claims_false"]
    if false:
        rows.append(("claims", f"the worker reported {made} criteria as met, and {false} of them were not"))
    if state.confirmed and state.confirmed["where"] == "tree":
        rows.append(("confirmation", "the checks ran in the work tree only, where files count that are in no commit"))
    return rows


def _grid(state: State) -> str:
    """Return a sign for each criterion after each of the last iterations, and what the signs mean."""
    lines, width = [], max(map(len, state.criteria), default=0) + 2
    for id in state.criteria:
        signs, sign = "", "·"
        for entry in state.history:
            if id in entry.changed:
                sign = "!" if id in entry.broke else SIGNS.get(entry.changed[id], "□")
            signs += sign
        lines.append(f"{id:{width}}{signs[-COLUMNS:]}")
    return "\n".join([*lines, "", LEGEND])


def _history(entries: Sequence[states.Iteration]) -> Table:
    """Return what each iteration did and brought; one without a session ran the checks alone."""
    head = ", worked on, how, ended, cost, time, commit, met, changed, reported falsely, its last words"
    rows = []
    for e in entries:
        changed = (f"{id} {verdict}{' (broken)' if id in e.broke else ''}" for id, verdict in e.changed.items())
        how = f"{e.strategy}, by {e.decided_by}" if e.focus else ""
        cost = f"${e.cost_usd + e.manager_usd:.2f}"
        row = (e.number, e.focus, how, e.outcome, cost, span(e.seconds), e.commit, e.met, ", ".join(changed))
        rows.append((*row, ", ".join(e.false_claims), e.report))
    return [head.split(", "), *rows]


def _one_line(text: object) -> str:
    return " ".join(log.printable(str(text)).split())


def _runs(folder: Path, state: State) -> bool:
    return (proc.holder(folder / "lock") or {}).get("mission") == state.mission_id


def _local(epoch: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(epoch))


def span(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3 h 5 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{hours} h {minutes} min" if hours else f"{minutes} min"


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
    met = [id for id in state.met if before[id].verdict != "met"]
    broke = [id for id in state.open if before[id].verdict == "met" and prompt.broken_by(state, id)]
    aside = [id for id in state.open if state.is_set_aside(id) and before[id].stalls < states.STALLS[1]]
    lines = {
        "criterion_met": [f"{id} is met: {state.criteria[id].criteria}" for id in met],
        "regression": [f"{id} was met and is not any more: {prompt.broken_by(state, id)}" for id in broke],
        "stalled": [f"{id} is set aside: the last sessions on it changed nothing" for id in aside],
    }
    return [(event, "\n".join(texts)) for event, texts in lines.items() if texts]
