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
    from job import CANNOT, DONE, ERROR, LATER, LIMIT, PERSON, USAGE, Job, Stop, make_folders, open_job
    from mission import MissionError, find_git_root, settings_template
    from stream import Outcome

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


# --------------------------------------------------------------------------------------------------------
# The loop
# --------------------------------------------------------------------------------------------------------


def loop(job: Job) -> int:
    """Phase after phase, each saved before the next begins, until done or until something raises Stop."""
    phases = {"planning": plan, "execution": execute, "validation": validate, "waiting": wait}
    while work := phases.get(job.memory["current_phase"]):
        if proc.stopping:
            raise Stop(128 + proc.stopping, "interrupted; start again to go on")
        log.context(mission=job.mission.id, session=job.memory["session_id"], iteration=job.memory["iterations"])
        log.debug(f"phase {job.memory['current_phase']}")
        work(job)
    if job.memory["blocked"]:
        raise Stop(PERSON, job.write_question())
    log.info(
        f"done: all {len(job.mission.criteria)} criteria are met, {_cost(job)}. To take it: git merge {job.branch}"
    )
    return DONE


def plan(job: Job) -> None:
    """Decide what the worker does next, and write that down before anything is done."""
    memory = job.memory
    _stop_where_asked(job)
    if reached := progress.limit_reached(memory, job.mission.limits, job.settings.orchestrator.max_iterations):
        raise Stop(LIMIT, reached)
    decision = manager.decide(job.situation(), job.settings)
    progress.note_plan(memory, decision)
    if decision.strategy == "escalate":
        memory["blocked"] = {"question": decision.question, "seen": job.fingerprint()}
        return job.save("blocked")
    memory["iterations"] += 1
    if decision.session == "fresh" or not memory["worker"]:
        memory["worker"] = _new_session()
    log.context(iteration=memory["iterations"])
    how = "same session" if memory["worker"]["begun"] else "fresh session"
    log.info(
        f"iteration {memory['iterations']}: {decision.title} ({decision.strategy}, {how}, decided by {decision.source})"
    )
    job.save("execution")


def execute(job: Job) -> None:
    """One session of the worker, or the rest of one that was interrupted."""
    memory, session = job.memory, job.memory["worker"]
    decision = manager.Plan(**memory["plan"])
    decision.session = "resume" if session["begun"] else "fresh"
    prompt = manager.worker_prompt(job.situation(), decision)
    log.trace("worker prompt", prompt=prompt)
    task = worker.Task(
        prompt=prompt,
        rules=Path(HERE, "prompts", "rules.md"),
        session=session["session"],
        resume=session["begun"],
        root=job.root,
        sealed=job.sealed(),
        network=job.mission.network,
        spent=session["spent"],
        budget_usd=progress.budget_left(memory, job.mission.limits),
        marker=memory["session_id"],
        stream=job.sessions / f"{memory['iterations']:04d}-{session['session']}.jsonl",
    )

    def started(pid: int) -> None:
        session.update(begun=True, process=proc.identity(pid))
        job.save()

    by_hand = job.settings.claude_code.mode == "manual"
    if by_hand:
        outcome = worker.run_by_hand(task, job.folder / "instruction.md")
    else:
        outcome = worker.run(task, job.settings, started)
        worker.compress(task.stream)
    session.update(process=None, context=outcome.context, spent=outcome.session)
    progress.note_outcome(memory, outcome)
    _tell_outcome(job, outcome)
    job.notice_tampering()
    _go_on_after(job, outcome)
    if by_hand and not sys.stdin.isatty():
        raise Stop(LATER, f"carry out {job.folder / 'instruction.md'}, then start again: the checks decide")


def _go_on_after(job: Job, outcome: Outcome) -> None:
    """The table "after / next" of the design."""
    memory, session, kind = job.memory, job.memory["worker"], outcome.kind
    if kind in ("ended", "turn_cap", "budget_cap", "timeout") or (kind == "interrupted" and not proc.stopping):
        session["failures"] = 0
        return job.save("validation")
    if kind == "context_full":
        memory["worker"] = None  # the next plan starts afresh; what was done so far is kept and checked
        return job.save("validation")
    if kind == "lost_session":
        memory["worker"] = _new_session()
        return job.save("execution")
    if kind == "limit":
        memory["wait_until"] = min(outcome.resets_at or time.time() + NO_RESET, time.time() + LONGEST_WAIT) + MARGIN
        return job.save("waiting")
    if kind in ("overloaded", "crashed"):
        memory["wait_until"] = time.time() + BACKOFF[min(session["failures"], len(BACKOFF) - 1)]
        session["failures"] += 1
        return job.save("waiting")
    job.save("execution")
    if kind == "interrupted":
        raise Stop(128 + proc.stopping, "interrupted; the session is kept, start again to go on")
    raise Stop(CANNOT, f"{outcome.message}\nTo mend it: {REMEDIES[kind]}")


def validate(job: Job) -> None:
    """Commit what the session changed, run every check, and see whether that is all."""
    memory = job.memory
    commit = job.commit() if memory["plan"] else repo.Commit(memory["commit"])
    memory["commit"] = commit.sha
    begun = time.monotonic()
    verdicts = dod.check(job.mission, job.root, job.checks, memory["session_id"])
    log.live("")
    memory["metrics"]["check_seconds"] = round(memory["metrics"]["check_seconds"] + time.monotonic() - begun, 1)
    for line in progress.note_verdicts(memory, verdicts):
        log.info(line)
    if memory["plan"]:
        progress.close_iteration(memory, commit, job.repo.statistics(memory["base"]))
    met, total = len(memory["completed_tasks"]), len(memory["criteria"])
    log.info(f"{met} of {total} criteria met{_cost(job, ', ')}")
    job.save("completed" if dod.all_met(verdicts.values()) else "planning")


def wait(job: Job) -> None:
    """Wait for a limit's reset or after a failure. The time is in the state, so a restart waits on."""
    until = job.memory["wait_until"] or 0
    when = datetime.fromtimestamp(until).strftime("%a %H:%M:%S")
    if not job.patient and time.time() < until:
        raise Stop(LATER, f"waiting until {when}; start again then")
    log.info(f"waiting until {when}")
    while (left := until - time.time()) > 0 and proc.pause(min(left, 5.0)):
        log.live(f"waiting until {when}, {int(left)} s left")
    log.live("")
    if not proc.stopping:
        job.memory["wait_until"] = None
        job.save("execution")


# --------------------------------------------------------------------------------------------------------
# Steps of the phases
# --------------------------------------------------------------------------------------------------------


def _new_session() -> dict[str, Any]:
    return {"session": str(uuid.uuid4()), "begun": False, "context": 0.0, "failures": 0, "process": None, "spent": {}}


def _stop_where_asked(job: Job) -> None:
    if (job.folder / "stop").exists():
        (job.folder / "stop").unlink()
        raise Stop(128 + signal.SIGINT, "stopped after the session, as asked; start again to go on")
    if job.sessions_left == 0:
        raise Stop(LATER, "one iteration was asked for, and the mission is not done yet; start again to go on")
    if job.sessions_left is not None:
        job.sessions_left -= 1


def _tell_outcome(job: Job, outcome: Outcome) -> None:
    level = log.info if outcome.kind in ("ended", "turn_cap", "interrupted", "limit") else log.warn
    said = f": {outcome.message}" if outcome.message and outcome.kind != "ended" else ""
    took = f"{outcome.turns} turns and {outcome.seconds:.0f} s, ${outcome.cost_usd:.4f}"
    level(
        f"session {outcome.kind} after {took}{said}",
        turns=outcome.turns,
        cost_usd=outcome.cost_usd,
        tokens=outcome.tokens,
        context=outcome.context,
        model=outcome.model,
        version=outcome.version,
        claude_session=job.memory["worker"]["session"],
    )
    for denial in outcome.denials:
        log.warn(f"refused to the worker: {denial}")
    for left in outcome.swept:
        log.warn(f"ended what the worker left behind: {left}")


def _cost(job: Job, before: str = "") -> str:
    return f"{before}${job.memory['metrics']['estimated_cost']:.4f} so far"


# --------------------------------------------------------------------------------------------------------
# Starting
# --------------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace) -> int:
    """Run the mission until it is done; safe to call again at any time."""
    proc.catch_signals()
    job = open_job(_mission_path(args.mission), args.config, args.accept)
    job.sessions_left, job.patient = 1 if args.once else None, not args.no_wait
    with job.lock():
        if job.settings.claude_code.mode == "automatic":
            worker.find(job.settings.claude_code.command)
            if job.settings.claude_code.sandbox:
                worker.require_sandbox()
        job.recall()
        try:
            return loop(job)
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


def _mission_path(given: str | None) -> Path:
    """As given, seen from here; what is not there is looked for in the kit, where make runs."""
    name = given or os.path.join(HERE, "missions", "hello.yaml")
    inside = os.path.join(HERE, name)
    return Path(os.path.abspath(name if os.path.exists(name) or not os.path.exists(inside) else inside))


# --------------------------------------------------------------------------------------------------------
# The other commands
# --------------------------------------------------------------------------------------------------------


def init(args: argparse.Namespace) -> int:
    """Write .cco/config.yaml with every setting explained, and a mission to start from if one is named."""
    root = find_git_root(Path.cwd())
    if root is None:
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: run git init first")
    make_folders(root / ".cco")
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
    proc.catch_signals()
    job = open_job(_mission_path(args.mission), args.config)
    with job.lock():
        job.begin()
        try:
            verdicts = dod.check(job.mission, job.root, job.checks, job.memory["session_id"])
        except proc.Interrupted:
            raise Stop(128 + proc.stopping, "interrupted") from None
    progress.note_verdicts(job.memory, verdicts)
    print(report.table(job.memory))
    for verdict in (v for v in verdicts.values() if v.verdict in ("broken", "timeout")):
        print(f"\n{verdict.id} is {verdict.verdict}:\n{log.printable(verdict.tail.strip())}")
    decision = manager.rules(job.situation())
    llm = job.settings.openrouter.model if manager.provider(job.settings) == "openrouter" else ""
    told = f"{llm} would be asked; by the rules the worker would be told" if llm else "The worker would be told"
    print(f"\n{told}:\n\n{log.printable(manager.worker_prompt(job.situation(), decision))}")
    return DONE


def status(args: argparse.Namespace) -> int:
    """Show where the missions of this repository stand."""
    start_at = [os.getcwd(), HERE]
    if args.mission:
        import mission

        start_at.insert(0, str(mission.load(_mission_path(args.mission)).repository))
    try:
        print(report.status(report.find_folder(*start_at), args.session, args.json))
    except (LookupError, OSError, state.StateError) as error:
        print(f"{error.args[0] if isinstance(error, LookupError) else error}", file=sys.stderr)
        return 2
    return 0


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
    top = argparse.ArgumentParser(
        prog="cco.py", description="Works on a mission until its Definition of Done is proven."
    )
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
            continue
        one.add_argument("--once", action="store_true", help="end after one iteration (75 if the mission is not done)")
        one.add_argument("--no-wait", action="store_true", help="end with 75 instead of waiting for a limit's reset")
        one.add_argument(
            "--accept", action="store_true", help="adopt a mission or settings that changed while a worker ran"
        )
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
