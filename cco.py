#!/usr/bin/env python3
"""CCO, the Claude Code Orchestrator: works on a mission until its Definition of Done is proven.

    python cco.py start missions/api.yaml      (or: make start MISSION=missions/api.yaml)
    python cco.py status

This file is the command line; the work itself is in loop.py. Exit codes: 0 done, 1 unexpected error, 2 bad mission,
settings or usage, 3 needs a person, 4 cannot run, 5 a limit was reached, 75 try again later, 130 / 143 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)  # siblings first, also under -m, -P, -I and PYTHONSAFEPATH

import report
import state

if os.path.dirname(os.path.realpath(state.__file__)) != HERE:
    sys.exit(f"cco: wrong 'state': {state.__file__}; run it as: python {HERE}/cco.py")

# What a command needs is imported by it, so that `status` answers at once.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, NoReturn

    from job import Job


# --------------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------------


def init(args: argparse.Namespace) -> int:
    """Write .cco/config.yaml with every setting explained, and a mission to start from if one is named."""
    from pathlib import Path

    import exits
    import job
    from mission import find_git_root, settings_template

    root = find_git_root(Path.cwd())
    if root is None:
        raise exits.Stop(exits.USAGE, f"{Path.cwd()} is in no git repository: run git init first")
    job.make_folders(root / ".cco")
    written = [_write_new(root / ".cco" / "config.yaml", settings_template())]
    if args.mission:
        template = Path(HERE, "missions", f"{args.template}.yaml")
        if not template.is_file():
            names = ", ".join(sorted(path.stem for path in template.parent.glob("*.yaml")))
            raise exits.Stop(exits.USAGE, f"there is no template {args.template!r}; there are: {names}")
        written.append(_write_new(Path(os.path.abspath(args.mission)), template.read_text("utf-8")))
    print("\n".join(written))
    return exits.DONE


def check(args: argparse.Namespace) -> int:
    """Validate the mission, run every check once, and show what would be sent; starts no session."""
    import checkout
    import dod
    import ledger
    import log
    import mission
    import proc
    import proof
    from exits import DONE
    from job import open_job

    proc.catch_signals()
    job = open_job(_mission_path(args.mission), args.config)
    with job.lock():
        checkout.remove_scratch(job.marker)
        job.begin()
        job.say_walls()
        job.memory["sealed"] = job.seal.take()
        verdicts = proof.check(job)
        reasons = proof.proving_nothing(job, verdicts)
        lacking = proof.missing_setup(job)
    ledger.note_verdicts(job.memory, verdicts)
    print(report.table(job.memory))
    for verdict in (v for v in verdicts.values() if v.verdict in ("broken", "timeout", "flaky", "tampered")):
        print(f"\n{verdict.id} is {verdict.verdict}:\n{log.printable(verdict.tail.strip())}")
    if lacking:
        print(f"\n{lacking}")
    if people := proof.needs_person(job):
        print(f"\nOnly you can judge {', '.join(people)}: there is no check and no LLM (accept).")
    if reasons:
        raise mission.refusal(job.mission, proof.ways_out(reasons))
    if dod.all_met(verdicts.values()):
        print("\nEvery criterion is met: there would be nothing to do but to confirm it.")
    else:
        _show_next(job)
    return DONE


def _show_next(job: Job) -> None:
    """Print what a start would do next: who would be asked what, and what the worker would be told."""
    import briefing
    import log
    import manager
    import tiers

    for line in manager.warnings(job.settings):
        print(f"\n{line}")
    here = job.situation()
    decision = manager.rules(here)
    judged = [s.id for s in here.standings if s.check is None and s.verdict == "unjudged"]
    if decision.focus in judged and manager.has_judge(job.settings):
        return print(f"\nAn LLM would judge {', '.join(judged)} first, by what is in the tree.")
    if decision.strategy == "escalate":
        return print(f"\nNo session would be started, you would be asked: {decision.question}")
    told = "The worker would be told"
    if manager.provider(job.settings) != "rules" and job.settings.manager.when == "always":
        model = next(iter(manager.models(tiers.planning(here, 0), job.settings)), "claude")
        system, user = briefing.for_manager(here, job.settings.openrouter.max_prompt)
        print(f"\n{model} would be asked:\n\n{log.printable(system)}\n{log.printable(user)}")
        told = "By the rules the worker would be told"
    print(f"\n{told}:\n\n{log.printable(briefing.for_worker(here, decision))}")


def start(args: argparse.Namespace) -> int:
    """Run the mission until it is done; safe to call again at any time."""
    import exits
    import job
    import notify
    import proc

    proc.catch_signals(hangup=False)
    sessions_left, mission_id, first = 1 if args.once else None, "", True
    try:
        while True:
            one = job.open_job(_mission_path(args.mission), args.config, args.accept)
            one.sessions_left, one.patient = sessions_left, not args.no_wait
            if mission_id and mission_id != one.mission.id:
                another = f"its id was edited from {mission_id} to {one.mission.id}, which is another mission"
                raise exits.Stop(exits.USAGE, f"{one.mission.path}: {another}: start that by itself")
            mission_id = one.mission.id
            try:
                return _run(one, first)
            except exits.Edited:
                args.accept, sessions_left, first = False, one.sessions_left, False
    finally:
        notify.finish(2.0 if proc.stopping else 10.0)


def _run(job: Job, first: bool) -> int:
    """One run of the mission as it is written now. Raises exits.Edited when that is not so any more.

    first: whether somebody has started it just now; a stop that was asked for before that is over.
    """
    import exits
    import loop
    import milestones
    import proof
    import referee
    import worker
    from exits import CANNOT, ERROR, PERSON, USAGE

    with job.lock():
        try:
            if first and job.patient:  # a person, not cron
                job.stop_file.unlink(missing_ok=True)
            job.recall()
            if loop.is_over(job):  # the checkout is left as it is
                return loop.conclude(job)
            loop.end_if_impatient(job)
            if not job.memory:
                referee.require_known(job)
            if job.settings.claude_code.mode == "automatic":
                worker.find(job.settings.claude_code.command, job.root)
                if job.settings.claude_code.sandbox:
                    worker.require_sandbox(job.root)
            job.enter()
            referee.inspect(job)
            job.say_walls()
            proof.announce(job)
            return loop.loop(job)
        except exits.Edited:
            raise
        except Exception as error:
            code, said = exits.reading(error)
            if code in (ERROR, USAGE, PERSON, CANNOT) and not (job.memory and job.memory["blocked"]):
                milestones.failed(job, code, said)
            raise


def resume(args: argparse.Namespace) -> int:
    """Go on with a mission that was started before."""
    memory = _one_mission(args)
    args.mission = memory["mission"]["path"]
    args.config = args.config or _other_config(memory)
    return start(args)


def _other_config(memory: dict[str, Any]) -> str | None:
    """The settings file that the mission was started with, if it is not the usual one."""
    path = str(memory["settings"]["path"])
    return None if path == os.path.join(memory["repository"], ".cco", "config.yaml") else path


def status(args: argparse.Namespace) -> int:
    """Show where the missions of this repository stand."""
    try:
        shown = report.status(report.find_folder(*_places(args)), args.session, args.json)
    except (LookupError, OSError, state.StateError) as error:
        print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)
        return 2
    print(shown)
    return 0


def stop(args: argparse.Namespace) -> int:
    """Ask the orchestrator that runs here to end after the current session; ask twice: now."""
    from pathlib import Path

    folder = report.find_folder(*_places(args))
    if folder is None:
        print("no mission was started here: name the mission, or go to its repository", file=sys.stderr)
        return 2
    import steering

    print(steering.stop(Path(folder)))
    return 0


def tell(args: argparse.Namespace) -> int:
    """Leave a note for the worker; the next instruction carries it."""
    from pathlib import Path

    import steering

    folder = report.find_folder(os.getcwd(), HERE)
    running = (state.holder(os.path.join(folder, "lock")) or {}).get("mission") if folder else None
    args.session = args.session or running
    memory = _one_mission(args)
    print(steering.tell(Path(str(folder)), memory["mission_id"], args.text))
    return 0


def accept(args: argparse.Namespace) -> int:
    """Say as a person that a criterion without a check is met; recorded with your name and the time."""
    from pathlib import Path

    import steering
    from exits import DONE
    from job import open_job

    steering.require_person()
    memory = _one_mission(args)
    job = open_job(Path(memory["mission"]["path"]), _other_config(memory))
    with job.lock():
        job.recall()
        steering.accept(job, args.id)
    return DONE


def write_report(args: argparse.Namespace) -> int:
    """Write the report as Markdown and HTML, and print it."""
    from pathlib import Path

    import log
    import mission
    import page

    memory = _one_mission(args)
    known = mission.parse(memory["mission"]["text"], Path(memory["mission"]["path"]))
    folder = Path(memory["repository"])
    paths = page.write((mission.find_git_root(folder) or folder) / ".cco", memory, known)
    print(log.printable(paths[0].read_text("utf-8")))
    print("\n".join(str(path) for path in paths), file=sys.stderr)
    return 0


def _one_mission(args: argparse.Namespace) -> dict[str, Any]:
    """The memory of the mission that is meant: the named one, or the only one. Raises Stop."""
    from exits import USAGE, Stop

    folder = report.find_folder(os.getcwd(), HERE)
    known = report.memories(folder) if folder else []
    chosen = report.choose(known, args.session) if args.session else known
    if len(chosen) > 1 and sys.stdin.isatty():
        chosen = [_ask_which(chosen)]
    if len(chosen) != 1:
        names = ", ".join(memory["mission_id"] for memory in known) or "none"
        raise Stop(USAGE, f"which mission? Name it with --session (SESSION=); there are: {names}")
    return chosen[0]


def demo(args: argparse.Namespace) -> int:
    """Show the whole loop offline in a scratch repository, in seconds."""
    _become("demo", ["--real"] if args.real else [])


def models(args: argparse.Namespace) -> int:
    """List the models that the manager may be: prices, and which give structured answers."""
    _become("models", [*(["--free"] if args.free else []), *(["--all"] if args.all else [])])


def draft(args: argparse.Namespace) -> int:
    """Make a mission with checks from plain words; written only when you have said yes."""
    options = [f"--{name}={value}" for name in ("output", "config") if (value := getattr(args, name))]
    _become("draft", [*options, *(["--yes"] if args.yes else []), "--", args.text])


def _become(extra: str, argv: list[str]) -> NoReturn:
    """Run an optional tool of extras/ in place of this process."""
    os.execv(sys.executable, [sys.executable, os.path.join(HERE, "extras", f"{extra}.py"), *argv])


def _places(args: argparse.Namespace) -> list[str]:
    """Where to look for `.cco`: the repository of the mission that is named, here, and where the kit is."""
    if args.mission:
        import mission

        return [str(mission.load(_mission_path(args.mission)).repository)]
    return [os.getcwd(), HERE]


def _mission_path(given: str | None) -> Path:
    """As given, seen from here; what is not there is looked for in the kit, where make runs."""
    from pathlib import Path

    name = given or os.path.join(HERE, "missions", "hello.yaml")
    inside = os.path.join(HERE, name)
    return Path(os.path.abspath(name if os.path.exists(name) or not os.path.exists(inside) else inside))


def _ask_which(known: list[dict[str, Any]]) -> dict[str, Any]:
    from exits import USAGE, Stop

    for number, memory in enumerate(known, 1):
        print(f"{number}  {report.line(memory, None)}")
    answer = input("Which one? ")
    if not answer.isdigit() or not 1 <= int(answer) <= len(known):
        raise Stop(USAGE, f"there is no mission {answer!r} in the list")
    return known[int(answer) - 1]


def _write_new(path: Path, text: str) -> str:
    if path.exists():
        return f"kept   {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return f"wrote  {path}"


# --------------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "mission": {"metavar": "MISSION", "nargs": "?", "help": "the mission file; default: missions/hello.yaml"},
    "--mission": {"metavar": "FILE", "help": "also write a mission to this file"},
    "--template": {"metavar": "NAME", "default": "hello", "help": "the mission of missions/ to start from"},
    "--config": {"metavar": "FILE", "help": "settings; default: .cco/config.yaml of the repository"},
    "--session": {"metavar": "ID", "help": "mission id, session id, or a beginning of either"},
    "--once": {"action": "store_true", "help": "end after one iteration (75 if the mission is not done)"},
    "--no-wait": {"action": "store_true", "help": "end with 75 instead of waiting for a limit's reset"},
    "--accept": {"action": "store_true", "help": "adopt what changed while a worker ran"},
    "id": {"metavar": "ID", "help": "the criterion"},
    "text": {"metavar": "TEXT", "help": "what you want to say"},
    "--json": {"action": "store_true", "help": "for programs"},
    "--output": {"metavar": "FILE", "help": "where to write the mission; default: missions/<id>.yaml"},
    "--yes": {"action": "store_true", "help": "write without asking"},
    "--free": {"action": "store_true", "help": "only models that cost nothing"},
    "--all": {"action": "store_true", "help": "also batch variants, and models that give more than text"},
    "--real": {"action": "store_true", "help": "with the real claude against a scripted API"},
}
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], tuple[str, ...]]] = {
    "init": (init, ("--mission", "--template")),
    "check": (check, ("mission", "--config")),
    "start": (start, ("mission", "--config", "--once", "--no-wait", "--accept")),
    "resume": (resume, ("--session", "--config", "--once", "--no-wait", "--accept")),
    "status": (status, ("mission", "--session", "--json")),
    "stop": (stop, ("mission",)),
    "tell": (tell, ("text", "--session")),
    "accept": (accept, ("id", "--session")),
    "report": (write_report, ("--session",)),
    "draft": (draft, ("text", "--output", "--yes", "--config")),
    "models": (models, ("--free", "--all")),
    "demo": (demo, ("--real",)),
}


def parser(wanted: str = "") -> argparse.ArgumentParser:
    """The command line; each command's help is its function's first line. Of one that is wanted, only that part."""

    def layout(prog: str) -> argparse.HelpFormatter:  # a fixed width: asking the terminal loads much more
        return argparse.HelpFormatter(prog, width=100)

    summary = "Works on a mission until its Definition of Done is proven."
    top = argparse.ArgumentParser(prog="cco.py", description=summary, formatter_class=layout)
    commands = top.add_subparsers(prog="cco.py", dest="command", required=True, metavar="COMMAND")
    for name, (function, options) in COMMANDS.items():
        if name == wanted or wanted not in COMMANDS:
            summary = (function.__doc__ or " ").splitlines()[0]  # python -OO has no docstrings
            one = commands.add_parser(name, help=summary, description=summary, formatter_class=layout)
            one.set_defaults(function=function)
            for option in options:
                one.add_argument(option, **OPTIONS[option])
    return top


def main(argv: list[str]) -> int:
    """Run one command and return its exit code; a foreseen failure is a message and a code, never a traceback."""
    _open_standard_files()
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    args = parser(*argv[:1]).parse_args(argv)
    if not os.path.isdir("."):
        print("the current folder is gone: go to one that exists", file=sys.stderr)
        return 2
    try:
        return int(args.function(args))
    except KeyboardInterrupt:  # before a run began; afterwards signals only set a flag
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        try:
            return _failed(error)
        except (OSError, ImportError, MemoryError) as also:  # not even the kit's own files can be read
            with contextlib.suppress(OSError):
                print(f"{error}; {also}", file=sys.stderr)
            return 4


def _open_standard_files() -> None:
    """Put /dev/null where a caller closed stdin, stdout or stderr: the next file to be opened would take its place."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _failed(error: Exception) -> int:
    """Say what went wrong, where people and the log find it, and return the exit code for it."""
    import traceback

    import exits
    import log

    code, said = exits.reading(error)
    details = {"traceback": "".join(traceback.format_exception(error))} if code == exits.ERROR else {}
    say = log.warn if isinstance(error, state.Busy) else log.info if code in (exits.LATER, 130, 143) else log.error
    say(said, **details)
    log.stop()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
