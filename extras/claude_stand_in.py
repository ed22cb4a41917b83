#!/usr/bin/env python3
"""A stand-in for the `claude` program: speaks its protocol, does what a script says, needs no login.

    CLAUDE_STAND_IN=SCRIPT.json claude_stand_in.py -p --output-format stream-json --verbose < PROMPT

Output, exit codes and refusals are those measured with Claude Code 2.1.329. SCRIPT is a JSON list of sessions,
one per run, in order; when they are used up a run says "Nothing left to do." A session is a list of steps:

    {"write": {PATH: TEXT}}   {"append": {PATH: TEXT}}   {"delete": PATH}   {"bash": COMMAND}    tool calls
    {"spawn": COMMAND}        a tool call that leaves a process behind, in a session of its own
    {"hold": COMMAND}         a process in this one's group that keeps its output open and stays when it ends
    {"say": TEXT}             what the assistant claims; the last one is the result's text
    {"usage": {"input_tokens": N, "output_tokens": M}}   of each turn from here; 250000 input tokens cost a dollar
    {"event": {...}}          any event, say an api_retry
    {"raw": TEXT, "times": N, "end": ""}   a verbatim line; N repeats the text; "\\udcff" is the byte ff
    {"stderr": TEXT}          a line there
    {"wait_for": PATH}        go on when that file exists
    {"hang": true}            for ever
    {"ignore_term": true}     from here on
    {"init": false}           as first step: no init event, as when a start is refused
    {"error": {"assistant_error", "text", "api_error_status", "terminal_reason"}}    the API failed: ends here
    {"limit": {"resetsAt": EPOCH, "rateLimitType": "five_hour"}}    the subscription's limit: ends here
    {"result": {...}}         a result with these values; the usual one at the end is then left out
    {"exit": CODE}   {"signal": NUMBER}    ends here, without another word

Next to SCRIPT it keeps SCRIPT.used (one byte per run), SCRIPT.sessions/ (so that --resume and --session-id
accept, refuse and add up costs as they should) and SCRIPT.calls.jsonl (each run's argv, cwd, prompt, names of
the environment variables, CCO_RUN and pid). `--version` and `auth status` answer too.

Not promised: permissions and sandbox (a step does what it says, anywhere), hooks, other output formats.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NoReturn

VERSION = "2.1.329"
MODEL = "claude-opus-5-5"
WINDOW = 1_000_000  # tokens
PRICE = {"input_tokens": 4e-6, "output_tokens": 2e-5}  # dollars per token
POLL = 0.02  # seconds between two looks for a wait_for file
PART = 1000  # repeats written at a time, so that an endless line takes no memory here
DAY = 86400  # seconds; a reset that is further away is told with its date
LIMITS = {"five_hour": "5-hour limit", "seven_day": "weekly limit", "seven_day_opus": "Opus limit"}
LIMITS |= {"seven_day_sonnet": "Sonnet limit", "seven_day_overage_included": "Fable limit"}


class Stopped(Exception):
    """SIGTERM or SIGINT arrived: args[0] is its number."""


class Run:
    """One run: each step is the do_* method of its name; `code` is None until something decided it."""

    def __init__(self, options: argparse.Namespace, session: str, file: Path):
        self.options = options
        self.session = session
        self.file = file
        self.model = options.model or MODEL
        self.before = json.loads(file.read_text()) if file.exists() else dict.fromkeys(PRICE, 0)
        self.used = dict.fromkeys(PRICE, 0)
        self.usage = {"input_tokens": 100, "output_tokens": 10}
        self.turns = 0
        self.said = ""
        self.message_id, self.tool_id = fresh("msg"), ""
        self.tool: subprocess.Popen[bytes] | None = None
        self.code: int | None = None

    def play(self, steps: list[dict[str, Any]]) -> int:
        """Do the steps and return the exit code; what was spent is lost only by SIGKILL."""
        self.file.write_text(json.dumps(self.before))
        try:
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
            for step in steps:
                (name, value), *more = step.items()
                getattr(self, f"do_{name}")(value, **dict(more))
            if self.code is None:
                self.end()
        except Stopped as stopped:
            self.stopped(stopped.args[0])
        finally:
            self.file.write_text(json.dumps(self.spent()))
        return self.code or 0

    def end(self) -> None:
        self.turn()
        if not self.said:
            self.do_say("Done.")
        self.pay()
        self.do_result({})

    def spent(self) -> dict[str, int]:
        """The tokens of the whole session."""
        return {kind: self.before[kind] + self.used[kind] for kind in PRICE}

    def emit(self, kind: str, **more: Any) -> None:
        self.do_raw(json.dumps({"session_id": self.session, "uuid": str(uuid.uuid4()), "type": kind, **more}))

    def assistant(self, block: dict[str, Any], model: str, **more: Any) -> None:
        usage = self.usage | {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        message = {"id": self.message_id, "type": "message", "role": "assistant", "model": model, "usage": usage}
        self.emit("assistant", message={**message, "content": [block], "stop_reason": None}, **more)

    def turn(self) -> None:
        """One answer of the model."""
        self.turns += 1
        self.used = {kind: count + self.usage[kind] for kind, count in self.used.items()}

    def pay(self) -> None:
        budget = self.options.max_budget_usd
        if budget and cost(self.used) >= budget:
            self.fail("error_max_budget_usd", "budget_exhausted", f"Reached maximum budget (${budget:g})")

    def call(self, name: str, **given: Any) -> None:
        self.turn()
        self.said, self.tool_id = "", fresh("toolu")
        self.assistant({"type": "tool_use", "id": self.tool_id, "name": name, "input": given}, self.model)
        self.pay()

    def answer(self, text: str, is_error: bool = False) -> None:
        """The tool's result, which may be the last that --max-turns lets happen."""
        block = {"type": "tool_result", "tool_use_id": self.tool_id, "content": text, "is_error": is_error}
        self.emit("user", message={"role": "user", "content": [block]})
        self.message_id = fresh("msg")
        most = self.options.max_turns
        if most and self.turns >= most:
            self.turns += 1
            self.fail("error_max_turns", "max_turns", f"Reached maximum number of turns ({most})")

    def fail(self, subtype: str, reason: str, error: str) -> NoReturn:
        self.do_result({"subtype": subtype, "is_error": True, "terminal_reason": reason, "errors": [error]})
        raise SystemExit(1)

    def stopped(self, number: int) -> None:
        """SIGTERM: exit 143 without a result. SIGINT: the turn is aborted, exit 0."""
        if self.tool:
            os.killpg(self.tool.pid, signal.SIGKILL)
            self.tool.wait()
        if number == signal.SIGINT:
            reasons = {"terminal_reason": "aborted_tools", "errors": ["interrupted"]}
            self.do_result({"subtype": "error_during_execution", "is_error": True, **reasons})
        self.code = 143 if number == signal.SIGTERM else 0

    def do_init(self, wanted: bool) -> None:
        if wanted:
            mode, key = (
                self.options.permission_mode or "default",
                {"apiKeySource": "none", "claude_code_version": VERSION},
            )
            self.emit("system", subtype="init", cwd=os.getcwd(), model=self.model, permissionMode=mode, **key)

    def do_write(self, files: dict[str, str], mode: str = "w") -> None:
        for path, text in files.items():
            self.call("Write", file_path=path, content=text)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, mode, encoding="utf-8") as file:
                file.write(text)
            self.answer(f"File created successfully at: {path}")

    def do_append(self, files: dict[str, str]) -> None:
        self.do_write(files, "a")

    def do_delete(self, path: str) -> None:
        self.call("Bash", command=f"rm {path}")
        Path(path).unlink()
        self.answer("")

    def do_bash(self, command: str, wait: bool = True) -> None:
        self.call("Bash", command=command)
        with tempfile.TemporaryFile() as output:
            argv = ["bash", "-c", command]
            nothing = subprocess.DEVNULL
            self.tool = subprocess.Popen(argv, stdin=nothing, stdout=output, stderr=output, start_new_session=True)
            code = self.tool.wait() if wait else 0
            self.tool = None
            output.seek(0)
            text = output.read(30_000).decode(errors="replace")
        self.answer(f"Exit code {code}\n{text}" if code else text, code != 0)

    def do_spawn(self, command: str) -> None:
        self.do_bash(command, wait=False)

    def do_hold(self, command: str) -> None:
        subprocess.Popen(["bash", "-c", command], stdin=subprocess.DEVNULL)

    def do_say(self, text: str) -> None:
        self.said = text
        self.assistant({"type": "text", "text": text}, self.model)

    def do_usage(self, usage: dict[str, int]) -> None:
        self.usage |= usage

    def do_event(self, event: dict[str, Any]) -> None:
        self.emit(**{"kind" if key == "type" else key: value for key, value in event.items()})

    def do_raw(self, text: str, times: int = 1, end: str = "\n") -> None:
        part = (text * min(times, PART)).encode("utf-8", "surrogateescape")
        for _ in range(times // PART):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.write((text * (times % PART) + end).encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()

    def do_stderr(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def do_wait_for(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(POLL)

    def do_hang(self, _: bool) -> None:
        while True:
            signal.pause()

    def do_ignore_term(self, _: bool) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)

    def do_exit(self, code: int) -> None:
        raise SystemExit(code)

    def do_signal(self, number: int) -> None:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def do_error(self, error: dict[str, Any], **more: Any) -> None:
        self.turns += 1
        self.message_id, self.usage, text = str(uuid.uuid4()), dict.fromkeys(PRICE, 0), error["text"]
        status = {"api_error_status": error.get("api_error_status"), **more}
        self.assistant({"type": "text", "text": text}, "<synthetic>", error=error["assistant_error"], **status)
        reason = error.get("terminal_reason", "api_error")
        self.do_result({"is_error": True, "result": text, "terminal_reason": reason, **status})
        raise SystemExit(1)

    def do_limit(self, limit: dict[str, Any]) -> None:
        info = {"status": "rejected", "rateLimitType": "five_hour", "isUsingOverage": False, **limit}
        self.emit("rate_limit_event", rate_limit_info=info)
        text = f"You've hit your {LIMITS.get(info['rateLimitType'], 'limit')}"
        text += f" · resets {moment(limit['resetsAt'])} (UTC)" if "resetsAt" in limit else ""
        error = {"assistant_error": "rate_limit", "text": text, "api_error_status": 429}
        self.do_error(error, api_error="usage_limit_reached")

    def do_result(self, given: dict[str, Any]) -> None:
        """The cost is the session's, the usage this run's, as the real program counts them."""
        spent = self.spent()
        tokens = {"inputTokens": spent["input_tokens"], "outputTokens": spent["output_tokens"]}
        model_usage = (
            {self.model: {**tokens, "costUSD": cost(spent), "contextWindow": WINDOW}} if any(spent.values()) else {}
        )
        result = {"subtype": "success", "is_error": False, "num_turns": self.turns, "duration_ms": 1}
        result |= {"stop_reason": "end_turn", "total_cost_usd": cost(spent), "usage": self.used}
        result |= {"modelUsage": model_usage, "permission_denials": []}
        if given.get("subtype", "success") == "success":
            result |= {"terminal_reason": "completed", "api_error_status": None, "result": self.said}
        result |= given
        self.code = 1 if result["is_error"] else 0
        self.emit("result", **result)


def fresh(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def moment(epoch: float) -> str:
    """A reset as the real program tells it: 9pm, 5:49am, Nov 28, 10pm or Jan 6, 2027, 7pm."""
    at, now = time.gmtime(epoch), time.gmtime()
    date = f"%b {at.tm_mday}, " if epoch - time.time() > DAY else ""
    year = "%Y, " if date and at.tm_year != now.tm_year else ""
    clock = f"{at.tm_hour % 12 or 12}" + (":%M" if at.tm_min else "") + ("am" if at.tm_hour < 12 else "pm")
    return time.strftime(date + year + clock, at)


def cost(tokens: dict[str, int]) -> float:
    return sum(PRICE[kind] * count for kind, count in tokens.items())


def refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(1)


def options_of(argv: list[str]) -> argparse.Namespace:
    """The flags that an unattended run uses, refused in the real program's words when wrong."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-p", "--print", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--strict-mcp-config", action="store_true")
    for flag in ("output-format", "session-id", "resume", "model", "settings", "setting-sources", "permission-mode"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--append-system-prompt-file")
    parser.add_argument("--mcp-config")
    parser.add_argument("--max-turns", type=int)
    parser.add_argument("--max-budget-usd", type=float)
    try:
        options, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        refuse(f"error: {error}")
    if unknown:
        refuse(f"error: unknown option '{unknown[0]}'")
    if options.output_format != "stream-json" or not options.verbose:
        refuse("Error: When using --print, --output-format=stream-json requires --verbose")
    if options.max_budget_usd is not None and options.max_budget_usd <= 0:
        refuse("error: option '--max-budget-usd <amount>' argument is invalid. It must be a number greater than 0")
    for what, file in (("Settings", options.settings), ("Append system prompt", options.append_system_prompt_file)):
        if file and not Path(file).exists():
            refuse(f"Error: {what} file not found: {file}")
    return options


def run_of(options: argparse.Namespace, folder: Path) -> Run:
    """A run in the session to begin or to go on with, if that is possible."""
    session = options.resume or options.session_id or str(uuid.uuid4())
    file = folder / session
    if options.session_id and file.exists():
        refuse(f"Error: Session ID {session} is already in use.")
    run = Run(options, session, file)
    if options.resume and not file.exists():
        lost = f"No conversation found with session ID: {session}"
        run.do_result({"subtype": "error_during_execution", "is_error": True, "stop_reason": None, "errors": [lost]})
        refuse(lost)
    return run


def steps_of(script: Path) -> list[dict[str, Any]]:
    """This run's steps; whatever becomes of it, the next one gets the next."""
    with open(f"{script}.used", "ab") as used:
        used.write(b".")
        index = used.tell() - 1
    sessions = json.loads(script.read_text(encoding="utf-8"))
    steps = sessions[index] if index < len(sessions) else [{"say": "Nothing left to do."}]
    return steps if steps and "init" in steps[0] else [{"init": True}, *steps]


def stop(number: int, _: object) -> NoReturn:
    raise Stopped(number)


def main() -> int:
    argv = sys.argv[1:]
    if argv in (["--version"], ["-v"], ["auth", "status"]):
        print(f"{VERSION} (Claude Code)" if len(argv) == 1 else '{"loggedIn": true, "authMethod": "stand_in"}')
        return 0
    options = options_of(argv)
    prompt = sys.stdin.buffer.read().decode(errors="replace")
    if not prompt.strip():
        refuse("Error: Input contained only whitespace. Provide a prompt with text through stdin")
    script = Path(os.environ["CLAUDE_STAND_IN"])
    call = {"argv": argv, "cwd": os.getcwd(), "prompt": prompt, "env": sorted(os.environ), "pid": os.getpid()}
    with open(f"{script}.calls.jsonl", "a", encoding="utf-8") as calls:
        calls.write(json.dumps({**call, "CCO_RUN": os.environ.get("CCO_RUN")}) + "\n")
    folder = Path(f"{script}.sessions")
    folder.mkdir(exist_ok=True)
    return run_of(options, folder).play(steps_of(script))


if __name__ == "__main__":
    raise SystemExit(main())
