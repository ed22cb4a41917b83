#!/usr/bin/env python3
"""CCO, the Claude Code Orchestrator: works on a mission until its Definition of Done is proven.

    python cco.py start missions/api.yaml      (or: make start MISSION=missions/api.yaml)
    python cco.py status

Exit codes: 0 done, 1 unexpected error, 2 bad mission, settings or usage, 3 needs a person, 4 cannot run, 5 a limit
was reached, 75 try again later, 130 / 143 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)  # siblings first, also under -m, -P, -I and PYTHONSAFEPATH

import report
import state

if os.path.dirname(os.path.realpath(state.__file__)) != HERE:
    sys.exit(f"cco: wrong 'state': {state.__file__}; run it as: python {HERE}/cco.py")

if sys.argv[1:2] != ["status"]:  # it answers at once because it reads the state and loads nothing else
    import glob
    import hashlib
    import shutil
    import signal
    import time
    import traceback
    import uuid
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    import dod
    import log
    import manager
    import proc
    import progress
    import repo
    import worker
    from mission import Mission, MissionError, load, load_settings, parse, require_repository, settings_template

DONE, ERROR, USAGE, PERSON, CANNOT, LIMIT, LATER = 0, 1, 2, 3, 4, 5, 75
MARGIN = 60.0  # seconds waited after a usage limit's reset
NO_RESET = 3600.0  # seconds waited for a limit that names no reset
LONGEST_WAIT = 8 * 86400.0  # seconds; no limit of the API is longer
BACKOFF = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds after each failure in a row, the last one for ever
REMEDIES = {
    "auth": "log in again: run `claude` once and /login, or set ANTHROPIC_API_KEY",
    "credit": "add credit or raise the spending limit of the Anthropic account",
    "missing": "install Claude Code, or set claude_code.command",
    "denied": "claude refuses to start with these settings; see claude_code.* in .cco/config.yaml",
}


class Stop(Exception):
    """Ends the run here, with an exit code. Everything is saved and can be resumed."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


# --------------------------------------------------------------------------------------------------------
# The loop
# --------------------------------------------------------------------------------------------------------


class Run:
    """One mission being worked on: what was read, what is remembered, and where things are."""

    def __init__(self, mission: Mission, args: argparse.Namespace):
        self.mission, self.args = mission, args
        self.root = Path(mission.repository)
        self.folder = self.root / ".cco"
        self.file = self.folder / f"{mission.id}.json"
        self.config = Path(os.path.abspath(args.config)) if args.config else self.folder / "config.yaml"
        self.settings = load_settings(mission, self.config if args.config or self.config.exists() else None, os.environ)
        self.branch = self.settings.repository.branch or f"cco/{mission.id}"
        self.referee = [Path(HERE), mission.path, self.config]
        self.repo = repo.Repo(self.root, self.referee)
        self.memory: dict[str, Any] = {}
        self.sessions_left = 1 if args.once else None

    def save(self, phase: str | None = None) -> None:
        """Write the memory, in a new phase if one is given."""
        if phase:
            self.memory["current_phase"] = phase
        self.memory["timestamp"] = progress.now()
        state.save(self.file, self.memory)

    def situation(self) -> manager.Situation:
        tails = {c.id: dod.last_output(c.id, self.folder / "logs" / "checks") for c in self.mission.criteria}
        return progress.situation(self.memory, self.mission, tails, self.settings.session.max_context)


def loop(run: Run) -> int:
    """Phase after phase, each saved before the next begins, until done or until something raises Stop."""
    phases = {"planning": plan, "execution": execute, "validation": validate, "waiting": wait}
    while work := phases.get(run.memory["current_phase"]):
        if proc.stopping:
            raise Stop(128 + proc.stopping, "interrupted; start again to go on")
        log.context(mission=run.mission.id, session=run.memory["session_id"], iteration=run.memory["iterations"])
        log.debug(f"phase {run.memory['current_phase']}")
        work(run)
    if blocked := run.memory["blocked"]:
        raise Stop(PERSON, _question(run, blocked["question"]))
    log.info(f"done: all {len(run.mission.criteria)} criteria are met, {_cost(run)}. To take it: git merge {run.branch}")
    return DONE


def plan(run: Run) -> None:
    """Decide what the worker does next, and write that down before anything is done."""
    memory = run.memory
    _stop_where_asked(run)
    if reached := progress.limit_reached(memory, run.mission.limits, run.settings.orchestrator.max_iterations):
        raise Stop(LIMIT, reached)
    decision = manager.decide(run.situation(), run.settings)
    progress.note_plan(memory, decision)
    if decision.strategy == "escalate":
        memory["blocked"] = {"question": decision.question, "seen": _fingerprint(run)}
        return run.save("blocked")
    memory["iterations"] += 1
    if decision.session == "fresh" or not memory["worker"]:
        memory["worker"] = _new_session()
    log.context(iteration=memory["iterations"])
    how = "same session" if memory["worker"]["begun"] else "fresh session"
    log.info(f"iteration {memory['iterations']}: {decision.title} ({decision.strategy}, {how}, decided by {decision.source})")
    run.save("execution")


def execute(run: Run) -> None:
    """One session of the worker, or the rest of one that was interrupted."""
    memory, session = run.memory, run.memory["worker"]
    logs = run.folder / "logs" / "sessions"
    decision = manager.Plan(**memory["plan"])
    decision.session = "resume" if session["begun"] else "fresh"
    prompt = manager.worker_prompt(run.situation(), decision)
    log.trace("worker prompt", prompt=prompt)
    task = worker.Task(
        prompt=prompt, rules=Path(HERE, "prompts", "rules.md"), session=session["session"], resume=session["begun"],
        root=run.root, sealed=tuple(_sealed(run)), network=run.mission.network, spent=session["spent"],
        budget_usd=progress.budget_left(memory, run.mission.limits), marker=memory["session_id"],
        stream=logs / f"{memory['iterations']:04d}-{session['session']}.jsonl",
    )  # fmt: skip

    def started(pid: int) -> None:
        session.update(begun=True, process=proc.identity(pid))
        run.save()

    by_hand = run.settings.claude_code.mode == "manual"
    if by_hand:
        outcome = worker.run_by_hand(task, run.folder / "instruction.md")
    else:
        outcome = worker.run(task, run.settings, started)
        worker.compress(task.stream)
    session.update(process=None, context=outcome.context, spent=outcome.session)
    progress.note_outcome(memory, outcome)
    _tell_outcome(run, outcome)
    _notice_tampering(run)
    _go_on_after(run, outcome)
    if by_hand and not sys.stdin.isatty():
        raise Stop(LATER, f"carry out {run.folder / 'instruction.md'}, then start again: the checks decide")


def _go_on_after(run: Run, outcome: worker.Outcome) -> None:
    """The table "after / next" of the design."""
    memory, session, kind = run.memory, run.memory["worker"], outcome.kind
    if kind in ("ended", "turn_cap", "budget_cap", "timeout") or (kind == "interrupted" and not proc.stopping):
        session["failures"] = 0
        return run.save("validation")
    if kind == "context_full":
        memory["worker"] = None  # the next plan starts afresh; what was done so far is kept and checked
        return run.save("validation")
    if kind == "lost_session":
        memory["worker"] = _new_session()
        return run.save("execution")
    if kind == "limit":
        memory["wait_until"] = min(outcome.resets_at or time.time() + NO_RESET, time.time() + LONGEST_WAIT) + MARGIN
        return run.save("waiting")
    if kind in ("overloaded", "crashed"):
        memory["wait_until"] = time.time() + BACKOFF[min(session["failures"], len(BACKOFF) - 1)]
        session["failures"] += 1
        return run.save("waiting")
    run.save("execution")
    if kind == "interrupted":
        raise Stop(128 + proc.stopping, "interrupted; the session is kept, start again to go on")
    raise Stop(CANNOT, f"{outcome.message}\nTo mend it: {REMEDIES[kind]}")


def validate(run: Run) -> None:
    """Commit what the session changed, run every check, and see whether that is all."""
    memory = run.memory
    commit = _commit(run) if memory["plan"] else repo.Commit(memory["commit"])
    memory["commit"] = commit.sha
    begun = time.monotonic()
    verdicts = dod.check(run.mission, run.root, run.folder / "logs" / "checks", memory["session_id"])
    log.live("")
    memory["metrics"]["check_seconds"] = round(memory["metrics"]["check_seconds"] + time.monotonic() - begun, 1)
    for line in progress.note_verdicts(memory, verdicts):
        log.info(line)
    if memory["plan"]:
        progress.close_iteration(memory, commit, run.repo.statistics(memory["base"]))
    met, total = len(memory["completed_tasks"]), len(memory["criteria"])
    log.info(f"{met} of {total} criteria met{_cost(run, ', ')}")
    run.save("completed" if dod.all_met(verdicts.values()) else "planning")


def wait(run: Run) -> None:
    """Wait for a limit's reset or after a failure. The time is in the state, so a restart waits on."""
    until = run.memory["wait_until"] or 0
    when = datetime.fromtimestamp(until).strftime("%a %H:%M:%S")
    if run.args.no_wait and time.time() < until:
        raise Stop(LATER, f"waiting until {when}; start again then")
    log.info(f"waiting until {when}")
    while (left := until - time.time()) > 0 and proc.pause(min(left, 5.0)):
        log.live(f"waiting until {when}, {int(left)} s left")
    log.live("")
    if not proc.stopping:
        run.memory["wait_until"] = None
        run.save("execution")


# --------------------------------------------------------------------------------------------------------
# Steps of the phases
# --------------------------------------------------------------------------------------------------------


def _new_session() -> dict[str, Any]:
    return {"session": str(uuid.uuid4()), "begun": False, "context": 0.0, "failures": 0, "process": None, "spent": {}}


def _stop_where_asked(run: Run) -> None:
    if (run.folder / "stop").exists():
        (run.folder / "stop").unlink()
        raise Stop(128 + signal.SIGINT, "stopped after the session, as asked; start again to go on")
    if run.sessions_left == 0:
        raise Stop(LATER, "one iteration was asked for, and the mission is not done yet; start again to go on")
    if run.sessions_left is not None:
        run.sessions_left -= 1


def _sealed(run: Run) -> list[Path]:
    """What the worker may not write: the referee, git's own files, the kit's state, and what the mission protects."""
    protected = [Path(p) for pattern in run.mission.protect for p in glob.iglob(str(run.root / pattern), recursive=True)]
    return [path for path in (*run.referee, run.root / ".git", run.folder, *protected) if path.exists()]


def _commit(run: Run) -> repo.Commit:
    """This iteration's commit: the one that is there already after a crash, else a new one."""
    memory, number = run.memory, run.memory["iterations"]
    if made := run.repo.commit_of(run.mission.id, number):
        return repo.Commit(made, ["(recovered)"])
    if not run.settings.repository.auto_commit:
        return repo.Commit(memory["commit"])
    trailers = {repo.MISSION: run.mission.id, repo.ITERATION: str(number)}
    limit, hooks = run.settings.claude_code.max_file_size, run.settings.repository.hooks
    title, body = memory["plan"]["title"], memory["last"]["report"]
    run.repo.remove_placeholders()
    commit = run.repo.commit(memory["commit"], run.branch, title, body, trailers, limit, hooks)
    for path, reason in commit.left_out.items():
        log.warn(f"not committed: {path}: {reason}")
    files = f"{len(commit.changed)} file{'s' * (len(commit.changed) != 1)}"
    log.info(f"committed {files} as {commit.sha[:12]}" if commit.changed else "the session changed nothing")
    return commit


def _tell_outcome(run: Run, outcome: worker.Outcome) -> None:
    level = log.info if outcome.kind in ("ended", "turn_cap", "interrupted", "limit") else log.warn
    said = f": {outcome.message}" if outcome.message and outcome.kind != "ended" else ""
    level(
        f"session {outcome.kind} after {outcome.turns} turns and {outcome.seconds:.0f} s, ${outcome.cost_usd:.4f}{said}",
        turns=outcome.turns, cost_usd=outcome.cost_usd, tokens=outcome.tokens, context=outcome.context,
        model=outcome.model, version=outcome.version, claude_session=run.memory["worker"]["session"],
    )  # fmt: skip
    for denial in outcome.denials:
        log.warn(f"refused to the worker: {denial}")
    for left in outcome.swept:
        log.warn(f"ended what the worker left behind: {left}")


def _notice_tampering(run: Run) -> None:
    """What became of the mission and the settings while a worker ran is not adopted without a person's word."""
    for name, path, known in (
        ("mission", run.mission.path, run.memory["mission"]),
        ("settings", run.config, run.memory["settings_digest"]),
    ):
        if (found := _digest(path)) not in (known["digest"], known["suspect"]):
            log.error(f"{path} changed while the worker ran. It is not adopted: the {name} as it was counts.")
            known["suspect"] = found


def _question(run: Run, question: str) -> str:
    """Write the blocked file and return what to tell the person."""
    path = run.folder / "reports" / f"{run.mission.id}.blocked.md"
    tried = "\n".join(f"- {line}" for line in run.situation().tried) or "- nothing"
    tails = "\n\n".join(
        f"### {s.id}: {s.criteria}\n\n```\n{s.tail.strip()}\n```" for s in run.situation().standings if s.verdict != "met"
    )
    text = f"# {run.mission.title}: a person has to answer\n\n{question}\n\n## What was tried\n\n{tried}\n\n## What fails\n\n{tails}\n"
    path.write_text(log.mask(text), "utf-8")
    return f"{question}\nAnswer by editing the mission or the code, then start again. The whole story: {path}"


def _fingerprint(run: Run) -> str:
    """Changes when a person did something that may unblock the mission."""
    return f"{_digest(run.mission.path)} {_digest(run.config)} {run.repo.head()}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _cost(run: Run, before: str = "") -> str:
    return f"{before}${run.memory['metrics']['estimated_cost']:.4f} so far"


# --------------------------------------------------------------------------------------------------------
# Starting
# --------------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace) -> int:
    """Run the mission until it is done; safe to call again at any time."""
    run = _open(args)
    with state.Lock(run.folder / "lock", {**proc.identity(os.getpid()), "mission": run.mission.id, "host": os.uname().nodename}):
        _prepare_folder(run)
        if run.settings.claude_code.mode == "automatic":
            worker.find(run.settings.claude_code.command)
            if run.settings.claude_code.sandbox:
                worker.require_sandbox()
        _recall(run)
        try:
            return loop(run)
        except proc.Interrupted:
            raise Stop(128 + proc.stopping, "interrupted; start again to go on") from None


def resume(args: argparse.Namespace) -> int:
    """Go on with a mission that was started before."""
    folder = report.find_folder(os.getcwd(), HERE)
    known = report.memories(folder) if folder else []
    chosen = report.choose(known, args.session) if args.session else known
    if len(chosen) > 1 and sys.stdin.isatty():
        chosen = [_ask_which(chosen)]
    if len(chosen) != 1:
        names = ", ".join(memory["mission_id"] for memory in known) or "none"
        raise Stop(USAGE, f"which mission? Name it with --session (SESSION=); there are: {names}")
    args.mission = chosen[0]["mission"]["path"]
    return start(args)


def _ask_which(known: list[dict[str, Any]]) -> dict[str, Any]:
    for number, memory in enumerate(known, 1):
        print(f"{number}  {report.line(memory, None)}")
    answer = input("Which one? ")
    if not answer.isdigit() or not 1 <= int(answer) <= len(known):
        raise Stop(USAGE, f"there is no mission {answer!r} in the list")
    return known[int(answer) - 1]


def _open(args: argparse.Namespace) -> Run:
    """Read mission and settings, and make sure that this repository can be worked on."""
    proc.catch_signals()
    log.know(os.environ)
    mission = load(_mission_path(args.mission))
    require_repository(mission)
    run = Run(mission, args)
    for secret in (run.settings.openrouter.api_key, run.settings.claude_code.api_key):
        log.know_value(secret)
    if run.root == Path(HERE) or run.root.is_relative_to(HERE) or "\\" in str(run.root):
        raise Stop(USAGE, f"{run.root} is the kit itself. Copy the kit as a folder into your repository, or set `repository`.")
    _make_folders(run.folder)
    log.start(run.folder / "logs", run.settings.monitoring.log_level, run.settings.logging.max_size)
    for warning in run.settings.warnings:
        log.warn(warning)
    return run


def _mission_path(given: str | None) -> Path:
    """As given, seen from here; what is not there is looked for in the kit, where make runs."""
    name = given or os.path.join(HERE, "missions", "hello.yaml")
    inside = os.path.join(HERE, name)
    return Path(os.path.abspath(name if os.path.exists(name) or not os.path.exists(inside) else inside))


def _make_folders(folder: Path) -> None:
    for name in ("", "logs", "logs/checks", "logs/sessions", "reports"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n!config.yaml\n")


def _prepare_folder(run: Run) -> None:
    """Under the lock: remove what killed runs left, and old session logs."""
    state.remove_stale(run.folder)
    (run.folder / "stop").unlink(missing_ok=True)
    oldest = time.time() - run.settings.logging.retention_days * 86400
    for path in (run.folder / "logs" / "sessions").iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink()


def _recall(run: Run) -> None:
    """The memory as it was saved, or a new one; and what a killed run left is ended first."""
    try:
        run.memory = state.load(run.file) if run.file.exists() else {}
    except state.StateError as error:
        kept = run.file.with_suffix(f".json.unreadable-{int(time.time())}")
        run.file.rename(kept)
        log.error(f"{error}. It is kept as {kept.name}; iterations and commits are rebuilt from git.")
    if run.memory:
        _end_leftovers(run)
        _adopt_edits(run)
        if run.repo.branch() != run.branch:
            _require_clean(run)
            run.repo.switch(run.branch)
        if run.memory["plan"] is None:
            run.memory["commit"] = run.repo.head()  # what a person committed in between stays as it is
    else:
        _require_clean(run)
        base = run.repo.head()
        run.repo.switch(run.branch)
        done = run.repo.last_iteration(run.mission.id)
        run.memory = progress.begin(run.mission, run.branch, base, done, run.settings.claude_code.instance_id)
        run.memory["commit"] = run.repo.head()
        progress.adopt(run.memory, run.mission)
        run.memory["settings_digest"]["digest"] = _digest(run.config)
        run.save()
        log.info(f"mission {run.mission.id}: {len(run.mission.criteria)} criteria, branch {run.branch}")
    if run.memory["blocked"] and run.memory["blocked"]["seen"] != _fingerprint(run):
        log.info("something changed since the question was asked: checking again")
        run.memory["blocked"] = None
        run.save("validation")


def _end_leftovers(run: Run) -> None:
    memory = run.memory
    ended = proc.end_leftovers(memory["session_id"], (memory["worker"] or {}).get("process"))
    if ended:
        log.warn(f"ended {ended} processes that an earlier run left behind")
    run.repo.remove_placeholders()


def _adopt_edits(run: Run) -> None:
    """A person's edits between two runs are taken up; what changed while a worker ran only with --accept."""
    memory, accept = run.memory, run.args.accept
    running = memory["current_phase"] == "execution" and (memory["worker"] or {}).get("process")
    known = memory["settings_digest"]
    if (found := _digest(run.config)) != known["digest"]:
        if not accept and (running or found == known["suspect"]):
            raise Stop(PERSON, f"{run.config} changed while a worker ran. Look at it, then start with ACCEPT=1 (--accept).")
        log.info(f"the settings were edited; adopted: {run.config}")
        memory["settings_digest"] = {"digest": found, "suspect": ""}
    known = memory["mission"]
    if run.mission.digest != known["digest"]:
        if not accept and (running or run.mission.digest == known["suspect"]):
            log.warn(f"{run.mission.path} changed while a worker ran: the mission as it was counts. ACCEPT=1 adopts it.")
            run.mission = parse(known["text"], run.mission.path)
        else:
            log.info(f"the mission was edited; adopted: {run.mission.path}")
            progress.adopt(memory, run.mission)
            if memory["current_phase"] == "completed":
                memory["current_phase"] = "validation"
    run.save()


def _require_clean(run: Run) -> None:
    if dirty := run.repo.dirty():
        names = "".join(f"\n  {name}" for name in dirty[:20]) + ("\n  ..." if len(dirty) > 20 else "")
        raise Stop(USAGE, f"{run.root} has uncommitted changes; commit or stash them first, so that none is touched:{names}")


# --------------------------------------------------------------------------------------------------------
# The other commands
# --------------------------------------------------------------------------------------------------------


def init(args: argparse.Namespace) -> int:
    """Write .cco/config.yaml with every setting explained, and a mission to start from if one is named."""
    from mission import find_git_root

    root = find_git_root(Path.cwd())
    if root is None:
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: run git init first")
    _make_folders(root / ".cco")
    written = [_write_new(root / ".cco" / "config.yaml", settings_template())]
    if args.mission:
        template = Path(HERE, "missions", f"{args.template}.yaml")
        if not template.is_file():
            names = ", ".join(sorted(path.stem for path in template.parent.glob("*.yaml")))
            raise Stop(USAGE, f"there is no template {args.template!r}; there are: {names}")
        written.append(_write_new(Path(os.path.abspath(args.mission)), template.read_text("utf-8")))
    print("\n".join(written))
    return DONE


def _write_new(path: Path, text: str) -> str:
    if path.exists():
        return f"kept   {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return f"wrote  {path}"


def check(args: argparse.Namespace) -> int:
    """Validate the mission, run every check once, and show what would be sent. Starts no session."""
    run = _open(args)
    with state.Lock(run.folder / "lock", {**proc.identity(os.getpid()), "mission": run.mission.id}):
        run.memory = progress.begin(run.mission, run.branch, run.repo.head(), 0, "")
        progress.adopt(run.memory, run.mission)
        try:
            verdicts = dod.check(run.mission, run.root, run.folder / "logs" / "checks", run.memory["session_id"])
        except proc.Interrupted:
            raise Stop(128 + proc.stopping, "interrupted") from None
    progress.note_verdicts(run.memory, verdicts)
    print(report.table(run.memory))
    for verdict in (v for v in verdicts.values() if v.verdict in ("broken", "timeout")):
        print(f"\n{verdict.id} is {verdict.verdict}:\n{log.printable(verdict.tail.strip())}")
    situation = run.situation()
    decision = manager.rules(situation)
    who = manager.provider(run.settings)
    told = "The first instruction" if who == "rules" else f"{run.settings.openrouter.model} decides; the rules would say"
    print(f"\n{told}:\n\n{log.printable(manager.worker_prompt(situation, decision))}")
    return DONE


def status(args: argparse.Namespace) -> int:
    """Show where the missions of this repository stand."""
    start_at = [os.getcwd(), HERE]
    if args.mission:
        import mission

        start_at.insert(0, str(mission.load(_mission_path(args.mission)).repository))
    try:
        print(report.status(report.find_folder(*start_at), args.session, args.json))
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return USAGE
    return DONE


def stop(args: argparse.Namespace) -> int:
    """Ask the orchestrator that runs here to end after the current session."""
    folder = report.find_folder(os.getcwd(), HERE)
    holder = state.holder(folder / "lock") if folder else None
    if folder is None or holder is None:
        print("nothing is running here")
        return DONE
    (folder / "stop").touch(mode=0o600)
    print(f"mission {holder.get('mission')} (pid {holder.get('pid')}) ends after the current session")
    return DONE


def demo(args: argparse.Namespace) -> int:
    """Show the whole loop offline in a scratch repository, in seconds."""
    argv = [sys.executable, os.path.join(HERE, "extras", "demo.py"), *(["--real"] if args.real else [])]
    os.execv(sys.executable, argv)


def parser() -> argparse.ArgumentParser:
    """The command line; each command's help is its function's first line."""
    top = argparse.ArgumentParser(prog="cco.py", description="Works on a mission until its Definition of Done is proven.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Any) -> argparse.ArgumentParser:
        summary = (function.__doc__ or "").splitlines()[0]
        added = commands.add_parser(function.__name__, help=summary, description=summary)
        added.set_defaults(function=function)
        return added

    one = command(init)
    one.add_argument("--mission", metavar="FILE", help="also write a mission to this file")
    one.add_argument("--template", metavar="NAME", default="hello", help="the mission of missions/ to start from")
    for function in (check, start, resume):
        one = command(function)
        if function is resume:
            one.add_argument("--session", metavar="ID", help="mission id, session id, or a beginning of either")
        else:
            one.add_argument("mission", metavar="MISSION", nargs="?", help="default: missions/hello.yaml")
        one.add_argument("--config", metavar="FILE", help="settings; default: .cco/config.yaml of the repository")
        if function is check:
            one.set_defaults(once=False, no_wait=False, accept=False)
            continue
        one.add_argument("--once", action="store_true", help="end after one iteration (75 if the mission is not done)")
        one.add_argument("--no-wait", action="store_true", help="end with 75 instead of waiting for a limit's reset")
        one.add_argument("--accept", action="store_true", help="adopt a mission or settings that changed while a worker ran")
    one = command(status)
    one.add_argument("mission", metavar="MISSION", nargs="?", help="a mission of the repository that is meant")
    one.add_argument("--session", metavar="ID", help="mission id, session id, or a beginning of either")
    one.add_argument("--json", action="store_true", help="for programs")
    command(stop)
    command(demo).add_argument("--real", action="store_true", help="with the real claude against a scripted API")
    return top


def main(argv: list[str]) -> int:
    """Run one command and return its exit code; every foreseen failure is a message and a code, never a traceback."""
    args = parser().parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    if args.command == "status":
        return status(args)
    try:
        return int(args.function(args))
    except Stop as stopped:
        quiet = stopped.code in (LATER, 128 + signal.SIGINT, 128 + signal.SIGTERM)
        (log.info if quiet else log.error)(str(stopped))
        code = stopped.code
    except state.Busy as busy:
        code = _say(LATER, f"{busy} (mission {busy.holder.get('mission', '?')})")
    except MissionError as error:
        code = _say(USAGE, str(error))
    except (worker.CannotRun, repo.GitError) as error:
        code = _say(CANNOT, str(error))
    except OSError as error:
        code = _say(CANNOT, f"{error.strerror}: {error.filename}")
    except Exception as error:  # the last resort: recorded with all that is known, and said in one line
        log.debug("where the unexpected error came from", traceback=traceback.format_exc())
        code = _say(ERROR, f"unexpected error: {type(error).__name__}: {error}")
    except KeyboardInterrupt:  # before a run began; afterwards signals only set a flag
        code = 128 + signal.SIGINT
    finally:
        log.stop()
    return code


def _say(code: int, text: str) -> int:
    log.error(text)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
