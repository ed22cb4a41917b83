"""One Claude Code session: its arguments, its walls, its stream, and what became of it.

    outcome = worker.run(worker.Task(...), settings)

Runs `claude -p --output-format stream-json --verbose` with the prompt on stdin. What claude says about itself is
read from the events and never from the prose: `Outcome.kind` says how the session ended, not whether the work is
done. The stream is kept in a file without a name while it is written, so only masked lines reach the disk's folders.

What is not covered: the sandbox is Claude Code's own. It walls Bash and the file tools, not MCP servers or hooks of
the user's settings.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import select
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import log
import machine
import proc
import processes
import sandbox
import surroundings
from stream import Outcome, Stream, classify

MAX_STREAM = 300_000_000  # bytes of a session's output; it is ended above this
MAX_WALLS = 120_000  # bytes of settings; Linux takes 131,071 in one argument
USUAL_PLACES = ("~/.local/bin", "~/.claude/local", "/usr/local/bin", "/opt/homebrew/bin")  # not on cron's PATH
OWN_LOGIN = ("ANTHROPIC_*", "CLAUDE_CODE_OAUTH_TOKEN")  # what claude gets of the secrets in the environment
LOGIN_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")  # its settings may set them
CLOUD_LOGIN = {"CLAUDE_CODE_USE_BEDROCK": ("AWS_*",), "CLAUDE_CODE_USE_VERTEX": ("GOOGLE_*", "CLOUDSDK_*")}


class CannotRun(Exception):
    """No session can be started here. The message says what is missing and what to do."""


@dataclass(frozen=True)
class Task:
    """What one session is to do, and within which walls."""

    prompt: str
    """The instruction, whole."""
    rules: Path
    """File whose text is appended to the system prompt (it survives compaction)."""
    session: str
    """Claude's session id, a UUID."""
    resume: bool
    """Whether that session exists and is continued."""
    root: Path
    """The repository: working directory, and the only place that may be written."""
    sealed: tuple[Path, ...]
    """Files and folders that may not be written although they lie in the repository."""
    network: tuple[str, ...]
    """Host names that sandboxed commands may reach."""
    budget_usd: float | None
    """What this run may cost, None for no cap."""
    model: str | None
    """Which model works; None for Claude Code's own choice."""
    timeout: float
    """Seconds that it may run."""
    window: int
    """Tokens of the model's context window, as far as it is known."""
    spent: Mapping[str, float]
    """`Outcome.session` after the session's last run: claude reports totals of the whole session."""
    marker: str
    """Value of CCO_RUN for everything it starts."""
    stream: Path
    """Where the masked stream is kept."""


# --------------------------------------------------------------------------------------------------------
# Before a session
# --------------------------------------------------------------------------------------------------------


def find(command: str | None, root: Path) -> str:
    """Path of the claude program: `claude_code.command`, or `claude` on PATH or where its installer puts it.

    root: the repository; what its files offer on PATH does not count. Raises CannotRun.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(os.path.expanduser, USUAL_PLACES)])
    if found := surroundings.find(os.path.expanduser(command or "claude"), root, path):
        return found
    wanted = f"claude_code.command is {command!r}, which" if command else "claude"
    raise CannotRun(
        f"{wanted} is not an executable file on PATH ({path}).\n"
        "Install it (npm install -g @anthropic-ai/claude-code), or set claude_code.command to its full path."
    )


def environment(settings: Any, root: Path, marker: str) -> dict[str, str]:
    """What claude is given of the environment: its own login and no other secret, and only programs that are trusted.

    settings: the kit's settings. root: the repository; what it offers on PATH comes last. marker: value of CCO_RUN.
    """
    cloud = [name for switch, names in CLOUD_LOGIN.items() if os.environ.get(switch) for name in names]
    env = surroundings.clean_env(os.environ, keep=[*OWN_LOGIN, *cloud])
    if settings.claude_code.api_key:
        env["ANTHROPIC_API_KEY"] = settings.claude_code.api_key
    switches = ("DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "CLAUDE_CODE_DISABLE_CRON")
    # claude starts bwrap and git from its PATH, outside of any sandbox
    path = {"PATH": surroundings.trusted_first(env.get("PATH", os.defpath), root)}
    return {**env, **path, **dict.fromkeys(switches, "1"), processes.MARKER: marker}


def require_sandbox(root: Path) -> None:
    """Raise CannotRun, saying which package or right is missing, when Claude Code's sandbox cannot start here."""
    if not processes.LINUX:
        return  # macOS brings its own
    packages = {"bubblewrap": "bwrap", "socat": "socat"}
    lacking = [package for package, program in packages.items() if not surroundings.find(program, root)]
    if lacking:
        raise CannotRun(_no_sandbox(f"missing: {' '.join(lacking)}", f"sudo apt install {' '.join(lacking)}"))
    if obstacle := sandbox.obstacle(root):
        raise CannotRun(_no_sandbox(obstacle, sandbox.remedy()))


def _no_sandbox(reason: str, remedy: str) -> str:
    return (
        f"the worker's sandbox cannot start; {reason}\n"
        f"To mend it: {remedy}\n"
        "Or choose to run without: claude_code.sandbox: off. Then nothing holds the worker's commands inside the"
        " repository, so do it only in a container or a virtual machine that you can lose."
    )


# --------------------------------------------------------------------------------------------------------
# The session
# --------------------------------------------------------------------------------------------------------


def run(task: Task, settings: Any, started: Callable[[int], None] | None = None) -> Outcome:
    """Run one session until it ends or has to be ended. Raises CannotRun, see `command_line`.

    settings: the kit's settings. started: called with claude's pid as soon as there is one.
    """
    argv = command_line(task, settings)
    machine.require_room(task.root)
    if not os.access(task.root, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(task.root))
    limits = proc.Limits(task.timeout, settings.claude_code.idle_timeout, MAX_STREAM)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with open(task.stream, "a", encoding="utf-8", opener=log.private) as kept:
            stream = Stream(out, kept)
            result = proc.run(
                argv,
                cwd=task.root,
                env=environment(settings, task.root, task.marker),
                output=out,
                errors=err,
                limits=limits,
                stdin=task.prompt.encode("utf-8", "replace"),
                tick=stream.tick,
                started=started,
            )
            stream.in_time = bool(stream.result)
            if result.stopped != "size":  # what is too much is not read to its end either
                stream.finish()
        outcome = classify(stream, result, proc.tail(err, 4000).strip(), task.spent, task.window)
    if outcome.kind == "crashed":  # where nothing can be written, it is not claude that fails
        machine.require_room(tempfile.gettempdir(), task.stream.parent, task.root)
    log.live("")
    log.debug(f"session {outcome.kind}", code=result.code, stopped=result.stopped, swept=result.swept)
    return outcome


def run_by_hand(task: Task, path: Path) -> Outcome:
    """Manual mode: show the instruction and wait until a person says that it was done.

    Raises proc.Interrupted on a signal.
    """
    show_instruction(task, path)
    print("Press Enter when it has been done.", flush=True)
    while not select.select([sys.stdin], [], [], proc.STEP)[0]:
        if proc.stopping:
            raise proc.Interrupted
    if not sys.stdin.readline():  # the terminal is gone, nobody pressed anything
        raise CannotRun("nobody is at the terminal any more: start again on another one")
    return Outcome("ended", report="(carried out by hand)")


def show_instruction(task: Task, path: Path) -> None:
    """Print the instruction for a person and write it to `path`."""
    with open(path, "w", encoding="utf-8", opener=log.private) as file:
        file.write(task.prompt)
    print(f"\n{log.printable(task.prompt)}\nGive this to Claude Code; it also stands in {path}.")


def compress(stream: Path) -> None:
    """Replace a finished stream by its gzip file; the parts of a session that was interrupted follow each other."""
    if not stream.exists():  # a worker without a sandbox may have removed it
        return
    with (
        open(stream, "rb") as source,
        open(f"{stream}.gz", "ab", opener=log.private) as target,
        gzip.GzipFile(fileobj=target, mode="wb") as packed,
    ):
        shutil.copyfileobj(source, packed)
    stream.unlink()


def command_line(task: Task, settings: Any) -> list[str]:
    """The arguments of claude. Nothing secret and nothing of the prompt is in them.

    Raises CannotRun when there is no claude, or when more is sealed than it can be told.
    """
    claude, walls = settings.claude_code, json.dumps(_walls(task, settings))
    if len(walls) > MAX_WALLS:
        raise CannotRun(
            f"{len(task.sealed)} files are more than Claude Code can be told to protect one by one.\n"
            "Under `protect`, name their folders instead of files: tests/** counts as one."
        )
    argv = [find(claude.command, task.root), "-p", "--output-format", "stream-json", "--verbose"]
    argv += [f"--resume={task.session}" if task.resume else f"--session-id={task.session}"]
    argv += ["--permission-mode", claude.permission_mode, "--setting-sources", "user", "--strict-mcp-config"]
    argv += ["--settings", walls, "--append-system-prompt-file", str(task.rules)]
    argv += [f"--model={task.model}"] if task.model else []
    argv += [f"--max-turns={claude.max_turns}"] if claude.max_turns else []
    argv += [f"--max-budget-usd={task.budget_usd:.4f}"] if task.budget_usd is not None else []
    return argv


def _walls(task: Task, settings: Any) -> dict[str, Any]:
    """Claude Code settings that keep the worker in its repository and away from what is sealed.

    Measured: an Edit rule holds for file tools and sandboxed commands alike, but is void for a path with brackets, so
    each path also stands in denyWrite. Without `allow: Bash` a plain `for` loop is refused although it is sandboxed.
    """
    walled = settings.claude_code.sandbox
    environ = environment(settings, task.root, task.marker)
    hidden = sorted({*LOGIN_VARIABLES, *filter(log.is_secret_name, environ)})
    sealed = sorted({str(path) for given in task.sealed for path in (given, given.resolve())})
    places = [*map(os.path.expanduser, sandbox.SECRET_PLACES), *sandbox.key_places(), str(task.root / ".env")]
    secrets = [path for path in places if os.path.exists(path)]
    rules = [_rule("Edit", path) for path in sealed] + [_rule("Read", path) for path in secrets]
    return {
        "permissions": {"deny": rules, "allow": ["Bash"] if walled else []},
        "sandbox": {
            "enabled": walled,
            "failIfUnavailable": True,
            "allowUnsandboxedCommands": False,
            "autoAllowBashIfSandboxed": True,
            "network": {"allowedDomains": list(task.network), "strictAllowlist": True},
            "filesystem": {"denyWrite": sealed, "denyRead": secrets},
            "credentials": {"envVars": [{"name": name, "mode": "deny"} for name in hidden]},
        },
    }


def _rule(tool: str, path: str) -> str:
    escaped = re.sub(r"([\[\]])", r"\\\1", path)  # the rule is a gitignore pattern; other characters hold as they are
    return f"{tool}(/{escaped}{'/**' if os.path.isdir(path) else ''})"
