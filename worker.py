"""One Claude Code session: its arguments, its settings, its environment, and what became of it.

    outcome = worker.run(worker.Task(...), settings)

Runs `claude -p --output-format stream-json --verbose` with the prompt on stdin. `Outcome.kind` says how the session
ended, not whether the work is done. Limitation: the sandbox is Claude Code's own. It holds Bash and the file tools, not
MCP servers and hooks; without it (`claude_code.sandbox: off`) commands see claude's whole environment.
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import log
import proc
import sandbox
import state
from mission import HERE, Settings
from proc import CANNOT, Stop
from state import Outcome
from stream import Stream, claimed, classify

RULES = HERE / "prompts" / "rules.md"  # appended to the system prompt, so that compaction does not lose it
SETTINGS = ".claude-settings.json"  # in .cco; begins with a dot, since what does not is a state
MAX_OUTPUT = 300_000_000  # bytes of a session; it is ended above this
MAX_PROTECTED = 2500  # paths; Claude Code's sandbox takes about 3000 mounts, and refuses every command above that
USUAL_PLACES = ("~/.local/bin", "~/.claude/local", "/usr/local/bin", "/opt/homebrew/bin")  # not on cron's PATH
SWITCHES = ("DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "CLAUDE_CODE_DISABLE_CRON")
# Commands by which claude gets credentials. It runs those of a repository's settings, too, also of one without trust.
HELPERS = ("apiKeyHelper", "awsAuthRefresh", "awsCredentialExport", "gcpAuthRefresh", "otelHeadersHelper")
MARGIN, SPREAD = 60.0, 60.0  # seconds waited after a reset, and at most added by chance
NO_RESET = 3600.0  # seconds waited for a limit that names no reset
REMEDIES = {  # for kinds of Outcome after which no further session can help
    "auth": "log in again: run `claude` once and /login, or set ANTHROPIC_API_KEY",
    "credit": "add credit or raise the spending limit of the Anthropic account",
    "missing": "install Claude Code, or set claude_code.command",
    "denied": "claude refuses to start with these settings; see claude_code.* in .cco/config.yaml",
}
LOGINS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")  # the user's settings may set them


@dataclass(frozen=True)
class Task:
    """What one session is to do, and what it may not touch."""

    prompt: str
    session: str  # claude's session id, a UUID
    resume: bool  # that session exists and is continued
    root: Path  # the repository: working directory, and the only place that may be written
    protected: Sequence[Path]  # files and folders that may not be written although they lie in it
    network: Sequence[str]  # host names that its commands may reach
    budget_usd: float | None  # what this run may cost; None: no cap
    model: str | None  # None: Claude Code's own choice
    timeout: float  # seconds
    window: int  # tokens of the context window, as far as it is known
    spent: Mapping[str, float]  # `Outcome.spent` of the session's last run
    marker: str  # value of CCO_RUN for everything that it starts
    stream: Path  # gzip file to which the masked stream is appended
    criteria: Sequence[str] = ()  # ids that its report may name as met


def find(command: str | None, root: Path) -> str:
    """Return the path of claude: `command`, or `claude` on PATH or where its installer puts it. Raises Stop."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(os.path.expanduser, USUAL_PLACES)])
    if program := proc.find(os.path.expanduser(command or "claude"), root, path):
        return program
    install = "Install it (npm install -g @anthropic-ai/claude-code), or set claude_code.command to its full path."
    raise Stop(CANNOT, f"{command or 'claude'} is not an executable file on PATH ({path}).\n{install}")


def require(settings: Settings, root: Path) -> None:
    """Raise Stop where no session can be started here, with the missing program, package or right."""
    if settings.claude_code.mode != "automatic":
        return
    find(settings.claude_code.command, root)
    if not settings.claude_code.sandbox or not proc.LINUX:  # macOS brings its own
        return
    packages = {"bubblewrap": "bwrap", "socat": "socat"}
    missing = " ".join(package for package, program in packages.items() if not proc.find(program, root))
    if reason := f"missing: {missing}" if missing else sandbox.obstacle(root):
        remedy = f"sudo apt install {missing}" if missing else sandbox.remedy()
        raise Stop(
            CANNOT,
            f"the worker's sandbox cannot start; {reason}\nTo fix it: {remedy}\n"
            "Or choose to run without: claude_code.sandbox: off. Then nothing holds the worker's commands inside the"
            " repository, so do it only in a container or a virtual machine that you can lose.",
        )


def require_login(settings: Settings, root: Path, marker: str) -> None:
    """Raise Stop where claude says that it is not logged in; a version that cannot say so tells in a session."""
    if settings.claude_code.mode != "automatic":
        return
    argv = [find(settings.claude_code.command, root), "auth", "status"]
    env = environment(settings, root, marker)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        proc.run(argv, cwd=root, env=env, output=out, errors=err, limits=proc.Limits(60.0))
        text = proc.tail(out, 2000)
    with suppress(ValueError, AttributeError):
        if json.loads(text).get("loggedIn") is False:
            raise Stop(CANNOT, f"claude is not logged in\nTo fix it: {REMEDIES['auth']}")


def environment(settings: Settings, root: Path, marker: str) -> dict[str, str]:
    """Return claude's environment: the user's, so that every login works, less what is the kit's own."""
    own = {name for name in os.environ if name.startswith("CCO_") or name in (*proc.NESTED, "OPENROUTER_API_KEY")}
    same = {name for name, value in os.environ.items() if value == settings.openrouter.api_key}
    own |= {name for name in same if not name.startswith(("ANTHROPIC_", "CLAUDE_"))}  # else it is claude's login, too
    env = {name: value for name, value in os.environ.items() if name not in own}
    if settings.claude_code.api_key:
        env["ANTHROPIC_API_KEY"] = settings.claude_code.api_key
    path = proc.trusted_path(env.get("PATH", os.defpath), root)  # claude starts bwrap and git outside of any sandbox
    return {**env, **dict.fromkeys(SWITCHES, "1"), "PATH": path, proc.MARKER: marker}


def run(task: Task, settings: Settings, started: Callable[[int], None] | None = None) -> Outcome:
    """Run one session until it ends or has to be ended. Raises Stop where it cannot run, OSError.

    started: called with claude's pid. A signal to the kit ends the session, too: then the outcome is "interrupted",
    `proc.stopping` is set and no signal raises any more.
    """
    log.trace("worker prompt", prompt=task.prompt)
    proc.require_space(task.root, Path(tempfile.gettempdir()))
    settings_file = task.root / ".cco" / SETTINGS
    argv = command_line(task, settings, settings_file)
    state.write(settings_file, json.dumps(restrictions(task, settings)).encode())
    env, prompt = environment(settings, task.root, task.marker), task.prompt.encode("utf-8", "replace")
    limits = proc.Limits(task.timeout, settings.claude_code.idle_timeout, MAX_OUTPUT)
    with (
        tempfile.TemporaryFile() as out,  # without a name: what is not masked yet is in no folder
        tempfile.TemporaryFile() as err,
        open(task.stream, "ab", opener=log.private) as archive,
    ):
        stream = Stream(out, archive)
        options: Any = {"output": out, "errors": err, "limits": limits, "stdin": prompt, "tick": stream.tick}
        try:
            result = proc.run(argv, started=started, cwd=task.root, env=env, **options)
        except proc.Interrupted as interrupted:
            if interrupted.result is None:  # before claude was started
                raise
            result = interrupted.result
        stream.finish()
        outcome = classify(stream, result, proc.tail(err, 4000).strip(), task.spent, task.window)
    outcome.claimed = claimed(outcome.report, task.criteria)
    log.live("")
    log.debug(f"session {outcome.kind}", code=result.code, stopped=result.stopped)
    return outcome


def command_line(task: Task, settings: Settings, settings_file: Path) -> list[str]:
    """Return the arguments of claude, in which nothing is secret and nothing of the prompt. Raises Stop."""
    claude = settings.claude_code
    argv = [find(claude.command, task.root), "-p", "--output-format", "stream-json", "--verbose"]
    argv += [f"--resume={task.session}" if task.resume else f"--session-id={task.session}"]
    argv += ["--permission-mode", claude.permission_mode, "--setting-sources", "user,project"]
    argv += ["--settings", str(settings_file), "--append-system-prompt-file", str(RULES), "--strict-mcp-config"]
    argv += ["--mcp-config", str(_mcp_config(task, settings))] if claude.mcp_config else []
    argv += [f"--model={task.model}"] if task.model else []
    argv += [f"--max-turns={claude.max_turns}"] if claude.max_turns else []
    argv += [f"--max-budget-usd={task.budget_usd:.4f}"] if task.budget_usd is not None else []
    return argv


def restrictions(task: Task, settings: Settings) -> dict[str, Any]:
    """Return the Claude Code settings that keep the worker in its repository, and from protected files and secrets.

    Measured with 2.1.329: an Edit rule holds for file tools and sandboxed commands alike, but is void for a path with
    brackets, so each path is in denyWrite, too. Without `allow: Bash` a plain `for` loop is refused. Raises Stop.
    """
    claude = settings.claude_code
    own = [task.root / ".cco"]  # with these settings in it
    own += [_mcp_config(task, settings)] if claude.mcp_config else []  # what it starts runs outside of the sandbox
    protected = sorted({str(path) for given in (*task.protected, *own) for path in (given, given.resolve())})
    if len(protected) > MAX_PROTECTED:
        reason = f"{len(protected)} paths are more than Claude Code's sandbox can protect one by one."
        raise Stop(CANNOT, f"{reason}\nUnder `protect`, name folders instead of files: tests/** counts as one.")
    secrets = [path for path in (*sandbox.secret_places(), str(task.root / ".env")) if os.path.exists(path)]
    hidden = sorted({*LOGINS, *filter(log.is_secret_name, environment(settings, task.root, task.marker))})
    rules = [_rule("Edit", path) for path in protected] + [_rule("Read", path) for path in secrets]
    return {
        **({} if claude.hooks else _helpers()),
        "disableAllHooks": not claude.hooks,
        "permissions": {"deny": rules, "allow": ["Bash"] if claude.sandbox else []},
        "sandbox": {
            "enabled": claude.sandbox,
            "failIfUnavailable": True,
            "allowUnsandboxedCommands": False,
            "autoAllowBashIfSandboxed": True,
            "network": {"allowedDomains": list(task.network), "strictAllowlist": True},
            "filesystem": {"denyWrite": protected, "denyRead": secrets},
            "credentials": {"envVars": [{"name": name, "mode": "deny"} for name in hidden]},
        },
    }


def _helpers() -> dict[str, str]:
    """Return the helpers of the user's own settings, and "" for the others, which turns the repository's off."""
    folder = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
    try:
        own = dict(json.loads(Path(folder, "settings.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # there is none, or none that claude could read
        own = {}
    return {name: own.get(name, "") for name in HELPERS}


def _mcp_config(task: Task, settings: Settings) -> Path:
    return task.root / Path(settings.claude_code.mcp_config).expanduser()


def _rule(tool: str, path: str) -> str:
    escaped = re.sub(r"([\[\]])", r"\\\1", path)  # the rule is a gitignore pattern; other characters hold as they are
    return f"{tool}(/{escaped}{'/**' if os.path.isdir(path) else ''})"


def until_reset(resets_at: float | None) -> float:
    """Return the seconds to wait for a usage limit that ends at this epoch time; None: it names none."""
    left = NO_RESET if resets_at is None else max(0.0, resets_at - time.time()) + MARGIN
    return left + random.uniform(0, SPREAD)  # not all who wait for one reset come at once


def remove_old_streams(folder: Path, days: int) -> None:
    """Remove the streams that are so many days older than the newest, whatever the clock says."""
    written = {path: path.stat().st_mtime for path in folder.glob("*.jsonl.gz")}
    oldest = max(written.values(), default=0.0) - days * 86400
    for path in (path for path, when in written.items() if when < oldest):
        path.unlink()


def write_instruction(task: Task, path: Path) -> None:
    """Write the instruction for a user who carries it out, and print it (claude_code.mode: manual)."""
    state.write(path, task.prompt.encode("utf-8", "replace"))
    print(f"\n{log.printable(task.prompt)}\nGive this to Claude Code; it is also in {path}.", flush=True)
