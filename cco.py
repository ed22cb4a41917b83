#!/usr/bin/env python3
"""CCO, the Claude Code Orchestrator: works on a mission until its Definition of Done is proven.

    python cco.py start missions/api.yaml      (or: make start MISSION=missions/api.yaml)
    python cco.py status

This file is the command line; the work itself is in loop.py. Exit codes: 0 done, 1 unexpected error, 2 bad mission,
settings or usage, 3 needs the user, 4 cannot run, 5 a limit was reached, 75 try again later, 130 / 143 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import io
import os
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # siblings first, also under -m, -P, -I and PYTHONSAFEPATH

import dod
import llm
import log
import manager
import mission as missions
import proc
import prompt
import repo
import report
import state as states
import worker
from loop import Edited, Options, Run, make_folders
from proc import CANNOT, DONE, ERROR, LATER, LIMIT, USAGE, USER, Stop
from state import State

EXTRAS = {  # programs of extras/ that are commands
    "draft": "Make a mission with checks from plain words; written only when you have said yes.",
    "models": "List the models that the manager may be: prices, and which give structured answers.",
    "demo": "Show the whole loop offline in a scratch repository, in seconds.",
}
ACCEPT = "make start ACCEPT=1 (--accept)"


def init(args: argparse.Namespace) -> int:
    """Write .cco/config.yaml with every setting explained, and a mission from a template."""
    if not (root := _git_root()):
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: run git init first")
    make_folders(root / ".cco")
    _write_new(root / ".cco" / "config.yaml", missions.settings_template())
    if args.mission:
        template = HERE / "missions" / f"{args.template}.yaml"
        if not template.is_file():
            names = ", ".join(sorted(path.stem for path in template.parent.glob("*.yaml")))
            raise Stop(USAGE, f"there is no template {args.template!r}; there are: {names}")
        _write_new(Path(args.mission).absolute(), template.read_text("utf-8"))
    return DONE


def check(args: argparse.Namespace) -> int:
    """Validate the mission, look whether it can run here, and run every check once; starts no session."""
    proc.handle_signals()
    path = _mission_path(args.mission)
    run = Run(path, Options(args.config))
    with proc.lock(run.folder / "lock", run.mission.id):
        end_leftovers(run)
        worker.require(run.settings, run.root)
        worker.require_login(run.settings, run.root, run.marker)  # `start` learns it from the first session
        if run.file.exists():
            run.state = states.load(run.file)
        if run.state.plan:
            print(f"iteration {run.state.iterations} is under way; what is uncommitted is its work. make start goes on")
            return DONE
        if run.repo.branch() != run.branch:
            run.repo.require_name(run.branch)
        require_clean(run)
        state, place = begin(run), run.place(run.root)
        verdicts = dod.check(run.mission.criteria, place, state.criteria, everything=True)
        state.record_results(verdicts)
        print(report.table(state))
        for verdict in verdicts.values():
            if verdict.verdict in ("broken", "timeout", "flaky", "tampered"):
                print(f"\n{verdict.id} is {verdict.verdict}:\n{log.printable(verdict.tail.strip())}")
        run.refuse_trivial(verdicts, place)
        for line in remarks(run):
            print(f"\n{line}")
        setup = run.check_out_clean([])[0] if run.mission.setup and run.confirms_in == "checkout" else None
        if setup and setup.verdict != "met":
            print(f"\nas the repository is now, `setup` fails in a clean checkout ({setup.verdict}):\n{setup.tail}")
        for id, line in dod.differences(run.mission.criteria, place, verdicts).items():
            print(f"\n{id}: {line}")
    print(f"\nready: make start MISSION={shlex.quote(str(path))}")
    return DONE


def start(args: argparse.Namespace) -> int:
    """Run the mission until it is done; safe to call again at any time."""
    proc.handle_signals()
    run = Run(_mission_path(args.mission), Options(args.config, args.once, args.no_wait, args.accept))
    try:
        with proc.lock(run.folder / "lock", run.mission.id) as lock:
            try:  # a killed holder left its name in the lock: that counts until `prepare` has saved what follows
                if not args.no_wait:  # the user, not cron
                    (run.folder / "stop").unlink(missing_ok=True)
                recover(run, lock.was_unclean)
                if run.state.current_phase not in ("completed", "blocked"):
                    run.stop_if_asked()
                    prepare(run)
                    lock.is_settled = True
                return run.run()
            except Exception as error:
                report_failure(run, error)
                raise
            finally:
                run.notifier.finish(2.0 if proc.stopping else 10.0)
    except Edited:  # by the user: start over with what is written now
        log.stop()
        os.execv(sys.executable, [sys.executable, *(arg for arg in sys.orig_argv[1:] if arg != "--accept")])


def resume(args: argparse.Namespace) -> int:
    """Go on with a mission that was started before."""
    state = _one_mission(args.session)
    args.mission, args.config = state.mission_path, args.config or _other_config(state)
    return start(args)


def status(args: argparse.Namespace) -> int:
    """Show where the missions of this repository stand."""
    name = missions.load(_mission_path(args.mission)).id if args.mission else args.session
    print(report.status(_folder(args.mission), name, args.json))
    return DONE


def stop(args: argparse.Namespace) -> int:
    """Ask the orchestrator that runs here to end after the current session; ask twice: now."""
    folder = _folder(args.mission)
    if not folder:
        raise Stop(USAGE, "no mission was started here: name the mission, or go to its repository")
    holder, asked = proc.holder(folder / "lock"), folder / "stop"
    if holder is None:
        asked.touch(mode=0o600)
        print("nothing is running here; starts with --no-wait (cron) end at once until make start or make resume")
    elif asked.exists() and proc.is_alive(holder):
        os.kill(int(holder["pid"]), signal.SIGINT)
        print(f"mission {holder.get('mission')} (pid {holder.get('pid')}) ends now; the next start goes on with it")
    else:
        asked.touch(mode=0o600)
        print(f"mission {holder.get('mission')} ends after the current session; ask once more to end it now")
    return DONE


def tell(args: argparse.Namespace) -> int:
    """Leave a note for the worker; the next instruction carries it."""
    _require_user()
    folder = _folder(None)
    holder = proc.holder(folder / "lock") if folder else None
    state = _one_mission(args.session or (holder or {}).get("mission"))
    if state.current_phase == "completed":
        raise Stop(USAGE, f"mission {state.mission_id} is done: no worker will read it")
    assert folder
    prompt.leave_note(folder, state.mission_id, args.text)
    running = "" if (holder or {}).get("mission") == state.mission_id else "; nothing is running: start it"
    print(f"the next instruction of {state.mission_id} carries it{running}")
    return DONE


def accept(args: argparse.Namespace) -> int:
    """Say as the user that a criterion without a check is met; recorded with your name and the time."""
    _require_user()
    before = _one_mission(args.session)
    run = Run(Path(before.mission_path), Options(args.config or _other_config(before)))
    with proc.lock(run.folder / "lock", run.mission.id) as lock:
        recover(run, lock.was_unclean)
        if not run.saved_digest:
            raise Stop(USAGE, "its state could not be read: start the mission once, then accept")
        if args.id not in (unchecked := run.unchecked()):
            names = ", ".join(unchecked) or "none"
            raise Stop(USAGE, f"{args.id} is no criterion without a check, which nobody but you could judge: {names}")
        if run.state.current_phase == "completed":
            raise Stop(USAGE, "the mission is done already")
        user = os.environ.get("LOGNAME") or os.environ.get("USER") or f"user {os.getuid()}"
        if run.state.plan is None:
            if (head := run.repo.head_of(run.branch)) and head != run.state.commit:
                run.state.commit, run.state.best = head, None
            run.state.current_phase, run.state.blocked, run.state.wait = "validation", None, None
        proof = {"where": "user", "by": user, "reason": f"accepted by {user}", "quotes": []}
        run.state.criteria[args.id].proof = {**proof, "commit": run.state.commit, "at": states.now()}
        run.save()
        lock.is_settled = True
    print(f"{args.id} is accepted as it is in commit {run.state.commit[:12]}; start again to go on")
    return DONE


def write_report(args: argparse.Namespace) -> int:
    """Write the report as Markdown and HTML, and print it."""
    state = _one_mission(args.session)
    mission = missions.parse(state.mission_text, Path(state.mission_path))
    folder = Path(state.repository)
    paths = report.write((missions.find_git_root(folder) or folder) / ".cco", state, mission)
    print(log.printable(paths[0].read_text("utf-8")))
    print("\n".join(map(str, paths)), file=sys.stderr)
    return DONE


# --- Before the first phase ---


def recover(run: Run, was_unclean: bool) -> None:
    """Clear what a killed run left, load the state, and adopt what the user edited. Raises Stop, OSError."""
    end_leftovers(run)
    run.repo.remove_stale_locks()
    run.repo.remove_placeholders()
    for folder in (run.folder, run.folder / "reports"):
        for stale in folder.glob(".*.tmp"):  # what a killed state.write left
            stale.unlink(missing_ok=True)
    worker.remove_old_streams(run.sessions, run.settings.logging.retention_days)
    look = f"Mission and settings cannot be compared with what you accepted. Look at them, then: {ACCEPT}"
    is_unknown = was_unclean and not run.options.accept  # a killed worker may have written anything
    if not run.file.exists():
        if is_unknown and any(run.sessions.iterdir()):
            raise Stop(USER, f"{run.file} is gone. {look}")
        return
    try:
        run.state = state = states.load(run.file)
    except Stop as error:
        if error.code == USAGE:  # of another version: nothing is overwritten
            raise
        if is_unknown:
            raise Stop(USER, f"{error}. {look}") from error
        aside = run.file.with_suffix(f".json.unreadable-{int(time.time())}")
        run.file.rename(aside)
        return log.error(f"{error}. It is kept as {aside.name}; iterations and commits are rebuilt from git.")
    run.saved_digest = missions.digest(run.file)
    run.recovering = state.current_phase in ("committing", "validation")
    run.killed_in = state.current_phase if was_unclean else ""
    if was_unclean or not state.is_sound:  # who wrote the state since is not known
        state.distrust()
        run.save()
        text = hashlib.sha256(state.mission_text.encode("utf-8", "surrogateescape")).hexdigest()
        if text != state.accepted.get("mission") and not run.options.accept:
            raise Stop(USER, f"{run.file}: mission text and digest do not agree. Look at it, then: {ACCEPT}")
    adopt_edits(run)
    if state.blocked and (state.blocked["seen"] != run.user_digest() or run.notes()):
        log.info("something changed since the question was asked: checking again")
        state.unblock()


def end_leftovers(run: Run) -> None:
    """End what a killed run left running, and remove its temporary folders."""
    running = (one.session.process for one in states.load_all(run.folder)[0] if one.is_running and one.session)
    if ended := proc.end_leftovers(run.marker, next(running, None)):
        log.warn(f"ended {ended} processes that an earlier run left behind")
    repo.remove_scratch(run.marker)


def adopt_edits(run: Run) -> None:
    """Adopt what the user changed between two runs; what changed while a worker ran only with --accept."""
    state, digests = run.state, run.digests()
    edited = [name for name in ("settings", "mission") if digests[name] != state.accepted[name]]
    for name in edited:
        path = run.mission.path if name == "mission" else f"{run.config} or .env"
        if (run.killed_in or state.is_running or digests[name] in state.rejected) and not run.options.accept:
            raise Stop(USER, f"{path} changed while a worker ran. Look at it, then: {ACCEPT}")
        before, now = state.mission_text.splitlines(), run.mission.text.splitlines()
        lines = [*difflib.unified_diff(before, now, "accepted", "now", lineterm="", n=0)]
        log.info("\n".join([f"the {name} was edited and is adopted", *lines[: 60 * (name == "mission")]]))
    before_path = Path(state.mission_path)
    if before_path.exists() and not before_path.samefile(run.mission.path):
        both = f"{before_path} and {run.mission.path} are two missions of one name"
        raise Stop(USAGE, f"{both}: give one of them an `id` of its own")
    if "settings" in edited:
        adopt_settings(run)
    if "mission" in edited:
        state.adopt(run.mission)


def adopt_settings(run: Run) -> None:
    """Take the settings as they are now as the accepted ones."""
    run.state.settings_path = str(run.config)
    run.state.accepted["settings"] = run.digests()["settings"]
    run.state.asked = {}  # it may be another manager by now


def prepare(run: Run) -> None:
    """Check out the mission's branch, with a new state if there is none. Raises Stop, OSError, repo.GitError."""
    worker.require(run.settings, run.root)
    state, before = run.state, run.repo.branch()
    require_clean(run)
    run.repo.switch(run.branch)
    if not run.saved_digest:
        state = begin(run)
        state.start_branch = before if before != run.branch else ""
        log.info(f"mission {run.mission.id}: {len(state.criteria)} criteria, branch {run.branch}")
    else:
        where = f"iteration {state.iterations} ({state.current_phase})"
        met = f"{len(state.met)} of {len(state.criteria)} criteria met"
        log.info(f"mission {run.mission.id} goes on in {where}: {met}")
        if state.plan is None and state.commit != run.repo.head():
            state.commit, state.best = run.repo.head(), None  # what the user committed stays as it is
            state.returning = ""
    state.branch = run.branch
    is_compared = not (run.killed_in or run.recovering or state.is_running)  # else a worker may have left changes
    run.protected = repo.Protected(run.repo, run.mission.protect, state.commit, is_compared)
    for line in remarks(run):
        log.warn(line)
    if not is_compared:
        run.restore_protected("since the last session began")
    if state.session:
        state.session.process = None
    run.save()


def begin(run: Run) -> State:
    """Begin a new state; iterations that git knows of are counted."""
    commit, mission = run.repo.head(), run.mission
    run.state = state = State(mission.id, str(mission.repository), str(mission.path), mission.text)
    state.base_commit = state.commit = commit
    state.iterations = max((number for number, _ in run.repo.iterations(mission.id)), default=0)
    state.branch, state.cc_instance_id = run.branch, run.settings.claude_code.instance_id
    state.adopt(mission)
    adopt_settings(run)
    run.protected = repo.Protected(run.repo, mission.protect, commit, anew=not run.file.exists())
    return state


def remarks(run: Run) -> list[str]:
    """Return what the user should know before a session is paid for."""
    lines, ids = manager.warnings(run.settings), run.unchecked()
    if run.sandbox_obstacle:
        lines.append(f"the checks run without a sandbox ({run.sandbox_obstacle}): they can do whatever you can")
    if not run.limits.compare(run.state.used()):
        lines.append("no limit is set (limits.cost_usd, iterations, hours, tokens): it runs until done or stopped")
    for path in run.protected.untracked():
        lines.append(f"{path} is not tracked by git, so it is not protected: commit it")
    if ids and not llm.has_judge(run.settings):
        lines.append(f"nothing here can judge {', '.join(ids)}; you will be asked (make accept ID={ids[0]})")
    if missing := dod.missing_setup(run.mission, run.repo.files(run.state.commit)):
        lines.append(missing)
    return lines


def require_clean(run: Run) -> None:
    """Raise Stop where the user has uncommitted changes, so that none is touched."""
    run.require_finished()
    if run.repo.branch() == run.branch and (run.state.plan or run.state.returning):
        return  # in the middle of an iteration it is the worker's
    of_checks = {*run.state.untracked}
    changed = [path for path in run.repo.status() if log.mask(path) not in of_checks]  # they were saved masked
    names = "".join(f"\n  {path}" for path in changed[:20]) + ("\n  ..." if len(changed) > 20 else "")
    if changed and run.killed_in == "validation" and run.repo.branch() == run.branch:
        return log.warn(f"the checks were interrupted and may have left these:{names}")
    if changed:
        remedy = "Commit, ignore or stash them, so that none is touched"
        raise Stop(USAGE, f"{run.root} has uncommitted changes. {remedy}:{names}")


def report_failure(run: Run, error: Exception) -> None:
    """Notify once why the run cannot go on; only that is added to the state as it was saved last."""
    code = getattr(error, "code", CANNOT)
    if isinstance(error, Edited) or code == LATER or code > 128 or run.state.blocked:
        return
    with contextlib.suppress(OSError, Stop):  # they may be the very reason
        state, text = states.load(run.file), log.mask(str(error))[:300]
        is_news = prompt.fingerprint(state.failed) != prompt.fingerprint(text)
        state.failed = text
        states.save(run.file, state)
        if is_news and code != LIMIT:  # which the event "budget" has named
            run.notifier.send("failed", str(error), state)


# --- Which mission ---


def _mission_path(given: str | None) -> Path:
    """Return the mission file that is meant: the named one, the one unfinished mission, or mission.yaml."""
    if given:
        path = Path(given)
        return (path if path.exists() or not (HERE / path).exists() else HERE / path).absolute()
    folder = _folder(None)
    unfinished = [one for one in states.load_all(folder)[0] if one.current_phase != "completed"] if folder else []
    if len(unfinished) == 1:
        return Path(unfinished[0].mission_path)
    root = _git_root() or Path.cwd()
    if not unfinished and (root / "mission.yaml").is_file():
        return root / "mission.yaml"
    names = ", ".join([one.mission_path for one in unfinished] or map(str, sorted(root.glob("missions/*.yaml"))))
    raise Stop(USAGE, f"which mission? Name it (MISSION=missions/api.yaml); there are: {names or 'none'}")


def _git_root() -> Path | None:
    """Return the root of the repository that is here; where that is the kit itself, of the one around it."""
    root = missions.find_git_root(Path.cwd())
    return missions.find_git_root(HERE.parent) if root == HERE else root


def _folder(mission: str | None) -> Path | None:
    """Return the `.cco` folder of the mission's repository, or of the one that is here or around the kit."""
    places = [missions.load(_mission_path(mission)).repository] if mission else [Path.cwd(), HERE]
    folders = (folder / ".cco" for place in places for folder in (place, *place.parents))
    return next((folder for folder in folders if folder.is_dir()), None)


def _one_mission(name: str | None) -> State:
    """Return the state of the named mission, or of the only one. Raises Stop."""
    folder = _folder(None)
    here = states.load_all(folder)[0] if folder else []
    chosen = states.choose(here, name) if name else here
    if len(chosen) != 1:
        names = ", ".join(state.mission_id for state in here) or "none"
        raise Stop(USAGE, f"which mission? Name it with --session (SESSION=); there are: {names}")
    return chosen[0]


def _other_config(state: State) -> str | None:
    """Return the settings file that a mission was started with, None for the usual one."""
    usual = str((missions.find_git_root(Path(state.repository)) or Path(state.repository)) / ".cco" / "config.yaml")
    return None if state.settings_path in ("", usual) else state.settings_path


def _require_user() -> None:
    if os.environ.get(proc.MARKER):
        raise Stop(USAGE, "this is a session or a check of CCO; only the user can do that")


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        return print(f"exists {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    states.write(path, text.encode())
    print(f"wrote  {path}")


# --- The command line ---


def parser() -> argparse.ArgumentParser:
    """Return the command line; a command's help is its function's docstring."""
    top = argparse.ArgumentParser(
        prog="cco.py", description="Works on a mission until its Definition of Done is proven."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function: object, *arguments: str) -> argparse.ArgumentParser:
        text = function.__doc__ or ""
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        if "mission" in arguments:
            command.add_argument("mission", metavar="MISSION", nargs="?", help="the mission file")
        if "session" in arguments:
            command.add_argument("--session", metavar="ID", help="mission id, session id, or a beginning of either")
        if "config" in arguments:
            command.add_argument("--config", metavar="FILE", help="settings; default: .cco/config.yaml")
        if "run" in arguments:
            command.add_argument("--once", action="store_true", help="end after one session (75 if not done)")
            command.add_argument("--no-wait", action="store_true", help="end with 75 instead of waiting")
            command.add_argument("--accept", action="store_true", help="adopt what changed while a worker ran")
        return command

    command = add("init", init)
    command.add_argument("--mission", metavar="FILE", help="also write a mission to this file")
    command.add_argument("--template", metavar="NAME", default="hello", help="the mission of missions/ to start from")
    add("check", check, "mission", "config")
    add("start", start, "mission", "config", "run")
    add("resume", resume, "session", "config", "run")
    add("status", status, "mission", "session").add_argument("--json", action="store_true", help="for programs")
    add("stop", stop, "mission")
    add("tell", tell, "session").add_argument("text", metavar="TEXT", help="what the worker should know")
    add("accept", accept, "session", "config").add_argument("id", metavar="ID", help="the criterion")
    add("report", write_report, "session")
    for name, text in EXTRAS.items():  # their options are their own, see main
        commands.add_parser(name, help=text, description=text)
    return top


def main(argv: list[str]) -> int:
    """Run one command and return its exit code; a foreseen failure is a message and a code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where a caller closed it
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    if argv and argv[0] in EXTRAS:
        os.execv(sys.executable, [sys.executable, str(HERE / "extras" / f"{argv[0]}.py"), *argv[1:]])
    args = parser().parse_args(argv)
    try:
        return int(args.function(args))
    except KeyboardInterrupt as error:
        log.info("interrupted; start again to go on")
        log.stop()
        return getattr(error, "code", 130)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        code = getattr(error, "code", CANNOT if isinstance(error, (OSError, MemoryError)) else ERROR)
        foreseen = code != ERROR
        text = str(error) if foreseen else f"unexpected error: {type(error).__name__}: {error}"
        more = {} if foreseen else {"traceback": traceback.format_exc()}
        with contextlib.suppress(OSError):
            (log.info if code == LATER or code > 128 else log.error)(text, **more)
            log.stop()
        return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
