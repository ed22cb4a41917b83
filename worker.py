"""One Claude Code session: its arguments, its walls, its stream, and what became of it.

    outcome = worker.run(worker.Task(...), settings)

Runs `claude -p --output-format stream-json --verbose` with the prompt on stdin. What claude says about itself is
read from the events and never from the prose: `Outcome.kind` says how the session ended, not whether the work is
done. The stream is kept in a file without a name while it is written, so only masked lines reach the disk's folders.

What is not covered: the sandbox is Claude Code's own. It walls Bash and the file tools, not MCP servers or hooks of
the user's settings.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import log
import proc

MAX_STREAM = 300_000_000  # bytes of a session's output; it is ended above this
MAX_LINE = 10_000_000  # bytes; a longer line is dropped, the stream goes on
LINGER = 60.0  # seconds that claude may live on after its result
REPORT = 8000  # characters of the worker's last words that are kept
USUAL_PLACES = ("~/.local/bin", "~/.claude/local", "/usr/local/bin", "/opt/homebrew/bin")  # cron's PATH has none of these
OWN_LOGIN = ("ANTHROPIC_*", "CLAUDE_CODE_OAUTH_TOKEN")  # of the environment, for claude; its commands do not see
LOGIN_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")  # these
CLOUD_LOGIN = {"CLAUDE_CODE_USE_BEDROCK": ("AWS_*",), "CLAUDE_CODE_USE_VERTEX": ("GOOGLE_*", "CLOUDSDK_*")}
SECRET_PLACES = ("~/.ssh", "~/.aws", "~/.gnupg", "~/.netrc", "~/.config/gh", "~/.kube", "~/.docker", "~/.claude/.credentials.json")  # fmt: skip
PROBE = ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid", "--unshare-net", "true")

TOKENS = {"input": "inputTokens", "output": "outputTokens", "cache_read": "cacheReadInputTokens", "cache_creation": "cacheCreationInputTokens"}  # noqa: E501  # fmt: skip

# Only error results and synthetic messages are matched against these, never what the model wrote.
AUTH = re.compile(r"not logged in|/login|invalid api key|failed to authenticate|oauth|subscription access", re.I)
CREDIT = re.compile(r"credit balance|spend limit|usage credits? required|specified api usage limits", re.I)
LIMIT = re.compile(r"hit your .*limit|limit reached|usage limit|out of extra usage", re.I)
TOO_LONG = re.compile(r"prompt is too long|request too large", re.I)
LOST = re.compile(r"no conversation found|session id \S+ is already in use", re.I)
REFUSED = re.compile(r"sandbox required but unavailable|cannot be used with root|error: (unknown )?option|file not found", re.I)


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
    spent: Mapping[str, float]
    """`Outcome.session` after the session's last run: claude reports totals of the whole session."""
    marker: str
    """Value of CCO_RUN for everything it starts."""
    stream: Path
    """Where the masked stream is kept."""


@dataclass
class Outcome:
    """How a session ended."""

    kind: str
    """ended, limit, auth, credit, overloaded, context_full, turn_cap, budget_cap, lost_session, timeout, interrupted,
    missing, crashed or denied."""
    message: str = ""
    """For people: what claude or the kit said about it."""
    report: str = ""
    """The worker's last words."""
    resets_at: float | None = None
    """When a limit ends, epoch seconds."""
    turns: int = 0
    """API turns taken."""
    cost_usd: float = 0.0
    """Claude's own estimate for this run; 0 when it ended without a result, its next run then includes it."""
    tokens: dict[str, int] = field(default_factory=dict)
    """input, output, cache_read, cache_creation, of this run."""
    session: dict[str, float] = field(default_factory=dict)
    """The same totals (and `usd`) of the whole session so far."""
    context: float = 0.0
    """Share of the model's window that the conversation fills, 0 to 1."""
    denials: list[str] = field(default_factory=list)
    """Tool calls that the walls refused."""
    seconds: float = 0.0
    """Wall time."""
    swept: list[str] = field(default_factory=list)
    """Command lines of processes that it left behind and that were ended."""
    model: str = ""
    """The model that answered."""
    version: str = ""
    """Claude Code's version."""


# --------------------------------------------------------------------------------------------------------
# Before a session
# --------------------------------------------------------------------------------------------------------


def find(command: str | None) -> str:
    """Path of the claude program: `claude_code.command`, or `claude` on PATH or where its installer puts it.

    Raises CannotRun.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(os.path.expanduser, USUAL_PLACES)])
    if found := shutil.which(os.path.expanduser(command or "claude"), path=path):
        return os.path.abspath(found)
    wanted = f"claude_code.command is {command!r}, which" if command else "claude"
    raise CannotRun(
        f"{wanted} is not an executable file on PATH ({path}).\n"
        "Install it (npm install -g @anthropic-ai/claude-code), or set claude_code.command to its full path."
    )


def require_sandbox() -> None:
    """Raise CannotRun, saying which package or right is missing, when Claude Code's sandbox cannot start here."""
    if not proc.LINUX:
        return  # macOS brings its own
    lacking = [package for package, program in (("bubblewrap", "bwrap"), ("socat", "socat")) if not shutil.which(program)]
    if lacking:
        raise CannotRun(_no_sandbox(f"missing: {' '.join(lacking)}", f"sudo apt install {' '.join(lacking)}"))
    with tempfile.TemporaryFile() as out:
        result = proc.run(PROBE, cwd=Path("/"), env=proc.clean_env(os.environ), output=out, limits=proc.Limits(30))
        said = proc.tail(out, 500).strip()
    if result.code != 0:
        raise CannotRun(_no_sandbox(f"bubblewrap says: {said or result.error or result.stopped}", _namespace_remedy()))


def _no_sandbox(reason: str, remedy: str) -> str:
    return (
        f"the worker's sandbox cannot start; {reason}\n"
        f"To mend it: {remedy}\n"
        "Or choose to run without: claude_code.sandbox: off. Then nothing holds the worker's commands inside the"
        " repository, so do it only in a container or a virtual machine that you can lose."
    )


def _namespace_remedy() -> str:
    """Which of the usual limits on user namespaces stands in the way."""

    def setting(name: str) -> str:
        try:
            return Path("/proc/sys", name).read_text().strip()
        except OSError:
            return ""

    if setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids user namespaces (kernel.apparmor_restrict_unprivileged_userns=1, the default since Ubuntu"
            " 24.04). Add a profile that allows them for /usr/bin/bwrap, see https://code.claude.com/docs/en/sandboxing"
        )
    if setting("kernel/unprivileged_userns_clone") == "0":
        return "the kernel forbids user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1"
    if setting("user/max_user_namespaces") == "0":
        return "the kernel allows no user namespace: sudo sysctl user.max_user_namespaces=10000"
    if any(os.path.exists(sign) for sign in ("/.dockerenv", "/run/.containerenv")) or os.environ.get("container"):
        return "this container may not make user namespaces: start it with --security-opt seccomp=unconfined"
    return "allow unprivileged user namespaces for bwrap on this machine"


# --------------------------------------------------------------------------------------------------------
# The session
# --------------------------------------------------------------------------------------------------------


def run(task: Task, settings: Any, started: Callable[[int], None] | None = None) -> Outcome:
    """Run one session until it ends or has to be ended. Raises CannotRun only for what `find` raises.

    settings: the kit's settings. started: called with claude's pid as soon as there is one.
    """
    argv = command_line(task, settings)
    limits = proc.Limits(settings.claude_code.timeout, settings.claude_code.idle_timeout, MAX_STREAM)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with open(task.stream, "a", encoding="utf-8", opener=log.private) as kept:
            stream = _Stream(out, kept)
            result = proc.run(
                argv, cwd=task.root, env=_environment(task, settings), output=out, errors=err, limits=limits,
                stdin=task.prompt.encode("utf-8", "replace"), tick=stream.tick, started=started,
            )  # fmt: skip
            stream.in_time = bool(stream.result)
            stream.finish()
        outcome = classify(stream, result, proc.tail(err, 4000).strip(), task.spent)
    log.live("")
    log.debug(f"session {outcome.kind}", code=result.code, stopped=result.stopped, swept=result.swept)
    return outcome


def run_by_hand(task: Task, path: Path) -> Outcome:
    """Manual mode: write the instruction to `path`, show it, and wait until a person says that it was done.

    Where there is no terminal to ask on it does not wait. Raises proc.Interrupted on a signal.
    """
    path.write_text(task.prompt, "utf-8")
    print(f"\n{log.printable(task.prompt)}\nGive this to Claude Code; it also stands in {path}.")
    if sys.stdin.isatty():
        print("Press Enter when it has been done.", flush=True)
        while not select.select([sys.stdin], [], [], proc.STEP)[0]:
            if proc.stopping:
                raise proc.Interrupted
        sys.stdin.readline()
    return Outcome("ended", report="(carried out by hand)")


def compress(stream: Path) -> None:
    """Replace a finished stream by its gzip file; the parts of a session that was interrupted follow each other."""
    with open(stream, "rb") as source, open(f"{stream}.gz", "ab", opener=log.private) as target:
        with gzip.GzipFile(fileobj=target, mode="wb") as packed:
            shutil.copyfileobj(source, packed)
    stream.unlink()


def command_line(task: Task, settings: Any) -> list[str]:
    """The arguments of claude. Nothing secret and nothing of the prompt is in them."""
    claude = settings.claude_code
    argv = [find(claude.command), "-p", "--output-format", "stream-json", "--verbose"]
    argv += [f"--resume={task.session}" if task.resume else f"--session-id={task.session}"]
    argv += ["--permission-mode", claude.permission_mode, "--setting-sources", "user", "--strict-mcp-config"]
    argv += ["--settings", json.dumps(_walls(task, claude.sandbox)), "--append-system-prompt-file", str(task.rules)]
    argv += [f"--model={claude.model}"] if claude.model else []
    argv += [f"--max-turns={claude.max_turns}"] if claude.max_turns else []
    argv += [f"--max-budget-usd={task.budget_usd:.4f}"] if task.budget_usd is not None else []
    return argv


def _walls(task: Task, sandbox: bool) -> dict[str, Any]:
    """Claude Code settings that keep the worker in its repository and away from what is sealed.

    Measured: an Edit rule holds for file tools and sandboxed commands alike, but is void for a path with brackets, so
    each path also stands in denyWrite. Without `allow: Bash` a plain `for` loop is refused although it is sandboxed.
    """
    sealed = sorted({str(path) for given in task.sealed for path in (given, given.resolve())})
    secrets = [path for path in map(os.path.expanduser, SECRET_PLACES) if os.path.exists(path)]
    secrets += [str(task.root / ".env")] * (task.root / ".env").exists()
    rules = [_rule("Edit", path) for path in sealed] + [_rule("Read", path) for path in secrets]
    return {
        "permissions": {"deny": rules, "allow": ["Bash"] if sandbox else []},
        "sandbox": {
            "enabled": sandbox,
            "failIfUnavailable": True,
            "allowUnsandboxedCommands": False,
            "autoAllowBashIfSandboxed": True,
            "network": {"allowedDomains": list(task.network), "strictAllowlist": True},
            "filesystem": {"denyWrite": sealed, "denyRead": secrets},
            "credentials": {"envVars": [{"name": name, "mode": "deny"} for name in LOGIN_VARIABLES]},
        },
    }


def _rule(tool: str, path: str) -> str:
    escaped = re.sub(r"([\[\]])", r"\\\1", path)  # the rule is a gitignore pattern; other characters hold as they are
    return f"{tool}(/{escaped}{'/**' if os.path.isdir(path) else ''})"


def _environment(task: Task, settings: Any) -> dict[str, str]:
    cloud = [name for switch, names in CLOUD_LOGIN.items() if os.environ.get(switch) for name in names]
    env = proc.clean_env(os.environ, keep=[*OWN_LOGIN, *cloud])
    if settings.claude_code.api_key:
        env["ANTHROPIC_API_KEY"] = settings.claude_code.api_key
    switches = ("DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "CLAUDE_CODE_DISABLE_CRON")
    return {**env, **dict.fromkeys(switches, "1"), proc.MARKER: task.marker}


# --------------------------------------------------------------------------------------------------------
# The stream
# --------------------------------------------------------------------------------------------------------


class _Stream:
    """Follows claude's output while it grows: keeps it masked, shows what happens, remembers what counts."""

    def __init__(self, output: IO[bytes], kept: IO[str]):
        self.output, self.kept = output, kept
        self.offset, self.rest, self.skipping = 0, b"", False
        self.begun = time.monotonic()
        self.doing = "starting"
        self.init: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.result_seen = 0.0
        self.in_time = True  # whether the result came before the kit had to end the session
        self.limit: dict[str, Any] = {}
        self.error: dict[str, Any] = {}  # the last synthetic message: claude's own words, not the model's
        self.usage: dict[str, dict[str, int]] = {}
        self.words: list[str] = []

    def tick(self) -> str:
        """Take in what is new; a word when claude does not go although it has answered."""
        while data := proc.read(self.output, self.offset, 1_000_000):
            self.offset += len(data)
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self._line(line)
            if len(self.rest) > MAX_LINE:
                self.rest, self.skipping = b"", True
        log.live(f"worker {_clock(time.monotonic() - self.begun)} · {self.doing}")
        return "lingering" if self.result_seen and time.monotonic() - self.result_seen > LINGER else ""

    def finish(self) -> None:
        """Take in the rest, also a last line without an end."""
        self.tick()
        if self.rest:
            self._line(self.rest)
        self.rest = b""

    def _line(self, raw: bytes) -> None:
        if self.skipping:  # this is the end of a line that was too long to keep
            self.skipping = False
            return
        line = log.mask(raw.decode("utf-8", "replace"))
        self.kept.write(line + "\n")
        self.kept.flush()
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            log.debug("a line of the worker's output is no JSON", line=line[:200])
            return
        if isinstance(event, dict):
            self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        kind, subtype = event.get("type"), event.get("subtype")
        if kind == "system" and subtype == "init":
            self.init = event
        elif kind == "system" and subtype == "api_retry":
            log.info(f"worker: the API answers {event.get('error_status') or 'nothing'}, claude tries again")
        elif kind == "assistant":
            self._assistant(event)
        elif kind == "rate_limit_event":
            self.limit = _dict(event.get("rate_limit_info"))
        elif kind == "result":
            self.result, self.result_seen = event, time.monotonic()

    def _assistant(self, event: dict[str, Any]) -> None:
        message = _dict(event.get("message"))
        if event.get("error") or message.get("model") == "<synthetic>":
            self.error = event
            return
        if usage := _dict(message.get("usage")):
            self.usage[str(message.get("id"))] = usage  # one event per block: the same message comes several times
        for block in _list(message.get("content")):
            if block.get("type") == "text" and str(block.get("text", "")).strip():
                self.words.append(str(block["text"]))
                self._show(str(block["text"]).strip().splitlines()[0])
            elif block.get("type") == "tool_use":
                self._show(f"{block.get('name')} {_subject(_dict(block.get('input')))}")

    def _show(self, doing: str) -> None:
        self.doing = doing[:160]
        log.info(f"worker: {self.doing}")


def classify(stream: _Stream, result: proc.Result, stderr: str, spent: Mapping[str, float]) -> Outcome:
    """The outcome of a session from its events, its process and its stderr, in this order of trust:

    what the kit itself did, the structured limit, claude's own error words, the result, the exit code.
    """
    said = _error_text(stream, stderr)
    kind = _kind(stream, result, said)
    session = _session_totals(stream) or dict(spent)
    # A total below the last one is of a version that reports each run by itself.
    run = {name: value - (spent.get(name, 0) if value >= spent.get(name, 0) else 0) for name, value in session.items()}
    return Outcome(
        kind,
        message=said or _how_it_ended(result),
        report=_report(stream),
        resets_at=_resets_at(stream.limit) if kind == "limit" else None,
        turns=int(_number(stream.result.get("num_turns")) or len(stream.usage)),
        cost_usd=round(run.pop("usd", 0.0), 6),
        tokens={name: int(count) for name, count in run.items()},
        session=session,
        context=_context(stream),
        denials=[_denial(item) for item in _list(stream.result.get("permission_denials"))],
        seconds=round(result.seconds, 1),
        swept=result.swept,
        model=str(stream.init.get("model", "")),
        version=str(stream.init.get("claude_code_version", "")),
    )


def _kind(stream: _Stream, result: proc.Result, said: str) -> str:
    subtype, reason = stream.result.get("subtype"), stream.result.get("terminal_reason")
    failed = bool(stream.result.get("is_error")) or subtype != "success"
    if result.error:
        return "missing"
    if result.stopped and not stream.in_time:  # a claude that is told to stop may still call it a success
        return "interrupted" if result.stopped == "interrupted" else "timeout"
    if stream.result and not failed:
        return "ended" if reason in (None, "completed") else "interrupted"
    if subtype == "error_max_turns":
        return "turn_cap"
    if subtype == "error_max_budget_usd":
        return "budget_cap"
    if kind := _error_kind(stream, said, reason):
        return kind
    if not stream.result and result.code in (-15, -9, -2, 130, 137, 143):
        return "interrupted"
    if str(reason).startswith("aborted"):
        return "interrupted"
    return "crashed"


def _error_kind(stream: _Stream, said: str, reason: object) -> str:
    """The kind that claude's own error speaks of, "" if it speaks of none."""
    error, status = stream.error.get("error"), stream.result.get("api_error_status")
    if stream.limit.get("errorCode") == "credits_required" or error == "billing_error" or CREDIT.search(said):
        return "credit"
    if stream.limit.get("status") == "rejected" or LIMIT.search(said):
        return "limit"
    if error in ("authentication_failed", "oauth_org_not_allowed", "account_on_hold") or status == 401:
        return "auth"
    if reason in ("prompt_too_long", "rapid_refill_breaker") or TOO_LONG.search(said):
        return "context_full"
    if LOST.search(said):
        return "lost_session"
    if REFUSED.search(said) or error == "model_not_found":
        return "denied"
    if error in ("rate_limit", "overloaded", "server_error") or (isinstance(status, int) and (status == 429 or status >= 500)):
        return "overloaded"
    return "auth" if AUTH.search(said) else ""


def _error_text(stream: _Stream, stderr: str) -> str:
    """What claude itself said went wrong: never the prose of the model."""
    if stream.result and not stream.result.get("is_error"):
        return ""
    words = [str(item) for item in stream.result.get("errors") or []]
    words += [str(stream.result.get("result") or "")] if stream.result else []
    words += [str(block.get("text", "")) for block in _list(_dict(stream.error.get("message")).get("content"))]
    return "\n".join(dict.fromkeys(word for word in [*words, stderr] if word))[:2000]


def _how_it_ended(result: proc.Result) -> str:
    if result.error:
        return f"claude could not be started: {result.error}"
    if result.stopped:
        return f"ended from here after {result.seconds:.0f} s: {result.stopped}"
    return "" if result.code == 0 else f"claude ended with exit code {result.code} and without a result"


def _report(stream: _Stream) -> str:
    """The result's text; it may be empty or cut although the model said more, then its last words."""
    text = "" if stream.result.get("is_error") else str(stream.result.get("result") or "")
    last = stream.words[-1] if stream.words else ""
    return (text if len(text) >= len(last) else last)[-REPORT:]


def _resets_at(limit: dict[str, Any]) -> float | None:
    """The latest reset among the windows that are used up."""
    windows = [_dict(window) for window in _dict(limit.get("unifiedWindows")).values()]
    used_up = [limit, *(window for window in windows if window.get("status") == "rejected")]
    return max((_number(window.get("resetsAt")) for window in used_up), default=0.0) or None


def _session_totals(stream: _Stream) -> dict[str, float]:
    """Cost and tokens of the whole session, all models and subagents; empty without a result that knows them."""
    models = [_dict(use) for use in _dict(stream.result.get("modelUsage")).values()]
    if not models:
        return {}
    tokens = {name: sum(_number(use.get(key)) for use in models) for name, key in TOKENS.items()}
    return {"usd": _number(stream.result.get("total_cost_usd")), **tokens}


def _context(stream: _Stream) -> float:
    last: dict[str, int] = next(reversed(stream.usage.values()), {})
    filled = sum(_number(last.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_"))
    windows = [_number(_dict(use).get("contextWindow")) for use in _dict(stream.result.get("modelUsage")).values()]
    return round(filled / max(windows), 3) if windows and max(windows) else 0.0


def _denial(item: dict[str, Any]) -> str:
    return f"{item.get('tool_name')} {_subject(_dict(item.get('tool_input')))}"[:200]


def _subject(tool_input: dict[str, Any]) -> str:
    """The one argument of a tool call that tells a person what it is about."""
    for name in ("command", "file_path", "path", "pattern", "url", "description", "prompt"):
        if tool_input.get(name):
            return " ".join(str(tool_input[name]).split())
    return ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
