"""One question to an LLM, one JSON object back, valid by a schema.

    answer = llm.ask(Question(system, user, "plan"), settings)     raises NoAnswer

Asks a chat completions server (OpenRouter, or any other by openrouter.base_url) or Claude Code itself, as
manager.provider says. What is wrong with an answer is shown to the LLM once. Not promised: that an answer is right.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import log
import proc
import prompt
import worker
from mission import find_git_root
from proc import Stop
from state import Usage
from stream import TOKENS

SCHEMAS = Path(__file__).resolve().parent / "schema"
DEADLINE = 120.0  # seconds for one answer of one model, with all retries
SHOWN, PROBLEM = 1000, 800  # bytes of an unusable answer, and of what is wrong with it, that the LLM is shown
DEFAULT = "anthropic/claude-sonnet-5.5"  # of openrouter.model, see schema/config.json
ECONOMY = "openai/gpt-6-luna"  # for the economy tier at OpenRouter, while openrouter.model is the default
OFFICIAL = "://openrouter.ai"
BACKOFF = (1.0, 2.0, 4.0)  # seconds before each time that a model is asked again, if the server names none
LONGEST = 30.0  # seconds that a server may want to be waited for; else the next model is asked
MAX_ANSWER = 8_000_000  # bytes
MAX_COST = 100.0  # dollars that one answer may claim; one absurd number would use up every limit
DAILY = "free-models-per-day"  # what an error says when the quota of all free models is used up
FIELDS = {  # of a request, which are left out when an error says by these words that the model does not take them
    "response_format": r"response.?format|json.?schema|structured|requested parameters|\bschema\b",
    "reasoning": "reasoning",
    "temperature": "temperature",
    "max_tokens": "max_completion_tokens",
}
# Without the rule, a path after an @ in the question is read and sent along, though there are no tools.
CLAUDE_SETTINGS = {"permissions": {"deny": ["Read"]}, "disableAllHooks": True}
CLAUDE_VARIABLES = {"CLAUDE_CODE_SAFE_MODE": "1", "CLAUDE_CODE_MAX_RETRIES": "2"}
CLAUDE_FIRST = "Give the one JSON object by calling the tool for structured output."  # a / would be a command
# What comes of reading JSON that is none, or not of the shape that was agreed on.
GARBAGE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)


class NoAnswer(Exception):
    """The LLM gave no usable answer. The message says why, without secrets."""

    def __init__(self, message: str, usage: Usage | None = None, until: float | None = None):
        super().__init__(message)
        self.usage = usage or Usage()  # what it cost all the same
        self.until = until  # epoch seconds from which on asking makes sense again, where that is known


class Unreachable(NoAnswer):
    """Nobody answers, or only that it is too much, too early or not paid for."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what an answer to it has to be."""

    system: str  # who it is and what the rules are: the same for as long as possible, for the provider's cache
    user: str  # what is asked now
    schema: str  # name of the file in schema/, without .json, that describes the answer
    tier: str = "standard"  # economy, standard or strong: which model is asked first
    objection: Callable[[dict[str, Any]], str] = lambda content: ""  # what is wrong with a valid answer, "" if nothing
    session: str = ""  # questions of one session go to the same provider, for the sake of its cache
    root: Path = Path()  # the repository, whose programs are not taken for Claude Code


@dataclass(frozen=True)
class Answer:
    """What the LLM said, and what that cost."""

    content: dict[str, Any]  # valid by the schema, masked and without control characters
    model: str  # the one that answered
    usage: Usage  # a repair included


def ask(question: Question, settings: Any) -> Answer:
    """Ask, and once more where the answer is unusable. Raises NoAnswer, Unreachable, proc.Interrupted."""
    schema = json.loads((SCHEMAS / f"{question.schema}.json").read_text("utf-8"))
    usage, problems = Usage(), list[str]()
    asking = (_Server if provider(settings) == "openrouter" else _Claude)(question, schema, settings, usage)
    texts = [log.mask_personal(question.system), log.mask_personal(question.user)]
    try:
        while len(problems) < 2:
            log.trace(f"{question.schema} prompt", texts=texts)
            text, model = asking.complete(texts)
            log.trace(f"{question.schema} answer", model=model, text=text)
            content, problem = _read(text, schema, question)
            if not problem:
                return Answer(content, model, usage)
            problems.append(prompt.bounded(problem, PROBLEM))
            wrong = prompt.fill("repair.md", {"problem": problems[-1]})
            texts += [prompt.bounded(_bare(text), SHOWN) or "(nothing)", f"{wrong}\n{_in_words(schema)}"]
        raise NoAnswer("; asked once more: ".join(problems))
    except NoAnswer as error:
        error.usage = usage
        raise


def provider(settings: Any) -> str:
    """Return who decides by these settings: "openrouter", "claude" or "rules"."""
    router = settings.openrouter
    is_there = router.api_key or OFFICIAL not in router.base_url  # another server may need no key
    return str(settings.manager.provider or ("openrouter" if is_there else "rules"))


def has_judge(settings: Any) -> bool:
    """Whether an LLM judges criteria without a check: without a key Claude Code does; not if rules are asked for."""
    return bool(settings.manager.provider != "rules")


def models(tier: str, settings: Any) -> list[str]:
    """Return the models for a tier, the first choice first; none: Claude Code's own choice."""
    router, others = settings.openrouter, settings.openrouter.fallbacks
    named, usual = router.models, router.model
    if provider(settings) != "openrouter":
        named, usual, others = settings.claude_code.models, settings.claude_code.model, []
    first = getattr(named, tier)
    if tier == "economy" and usual == DEFAULT and OFFICIAL in router.base_url:
        first = first or ECONOMY
    return [*dict.fromkeys(filter(None, [first, named.standard or usual, *others]))]


def _in_words(schema: Mapping[str, Any]) -> str:
    return prompt.fill("answer.md", {"schema": json.dumps(schema, separators=(",", ":"))})


def _read(text: str, schema: Mapping[str, Any], question: Question) -> tuple[dict[str, Any], str]:
    """Return the JSON object that an answer is, and what is wrong with it: then the object does not count."""
    from jsonschema import Draft202012Validator

    try:
        content = log.mask_tree(json.loads(_bare(text)), prompt.NOT_TEXT)
        errors = list(Draft202012Validator(schema).iter_errors(content))[:3]
    except (ValueError, RecursionError) as error:
        return {}, f"the answer is not one JSON object and nothing else: {error}"
    if errors:
        problems = "; ".join(f"{error.json_path}: {error.message}" for error in errors)
        return {}, f"the answer does not fit schema/{question.schema}.json: {problems}"
    return content, question.objection(content)


def _bare(text: str) -> str:
    """Return an answer without its thoughts and without one fence around the rest."""
    text = re.sub(r"\A\s*<think>.*?</think>", "", text.removeprefix("\ufeff"), flags=re.S).strip()
    fenced = re.fullmatch(r"```[A-Za-z]*(.+)```", text, re.S)
    return fenced[1] if fenced else text


@dataclass(eq=False)
class _Failed(Exception):
    """A request without a usable answer."""

    message: str
    action: str = "next"  # "retry", "next" model, or "stop"
    wait: float | None = None  # seconds to wait before a retry, by the server
    change: str = ""  # field of the request to leave out, or "length"


class _Late(BaseException):
    """The deadline has come. Not an Exception: the network's libraries would take it for one of theirs."""


class _Server:
    """One question to a chat completions server."""

    def __init__(self, question: Question, schema: dict[str, Any], settings: Any, usage: Usage):
        self.question, self.schema, self.router, self.usage = question, schema, settings.openrouter, usage
        self.models = models(question.tier, settings)

    def complete(self, texts: Sequence[str]) -> tuple[str, str]:
        """Return what the first model says that answers, and its name. Raises Unreachable, proc.Interrupted."""
        failures = dict[str, _Failed]()
        for model in self.models:
            if model.endswith(":free") and any(DAILY in failure.message for failure in failures.values()):
                continue  # they share one quota
            try:
                return self._ask(self._body(model, texts))
            except _Failed as failure:
                log.debug("a model gave no answer", model=model, why=failure.message)
                failures[model] = failure
                if failure.action == "stop":
                    break
        wait = failures[self.models[0]].wait
        message = "; ".join(f"{model}: {failure.message}" for model, failure in failures.items())
        raise Unreachable(message, until=None if wait is None else time.time() + wait)

    def _body(self, model: str, texts: Sequence[str]) -> dict[str, Any]:
        roles = ("system", "user", "assistant", "user")  # the last two where it is asked once more
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        shape = {"name": self.question.schema, "strict": True, "schema": self.schema}
        body = {"model": model, "messages": messages, "temperature": self.router.temperature}
        body |= {"max_tokens": self.router.max_tokens, "response_format": {"type": "json_schema", "json_schema": shape}}
        if OFFICIAL in self.router.base_url:
            body["reasoning"] = {"effort": "low"}  # it is spent inside max_tokens
            body |= {"session_id": self.question.session} if self.question.session else {}
        return body

    def _ask(self, body: dict[str, Any]) -> tuple[str, str]:
        """Return what a model says, when the request was changed and repeated as far as that may help."""
        end, waits = time.monotonic() + DEADLINE, iter(BACKOFF)
        while True:
            try:
                return self._request(body, end)
            except _Failed as failure:
                if self._change(body, failure.change):
                    continue
                wait = next(waits, None) if failure.action == "retry" else None
                if wait is None or (failure.wait or 0.0) > LONGEST:
                    raise
                proc.pause(wait if failure.wait is None else failure.wait)

    def _change(self, body: dict[str, Any], field: str) -> bool:
        """Change a request as the server wants it; return False where there is nothing (more) to change."""
        if field == "length" and body.get("max_tokens") == self.router.max_tokens:
            body["max_tokens"] *= 2
            return True
        if field not in body:
            return False
        value = body.pop(field)
        if field == "max_tokens":
            body["max_completion_tokens"] = value  # the newer name, by which some servers want it
        if field == "response_format":
            body["messages"][-1]["content"] += f"\n\n{_in_words(self.schema)}"
        return True

    def _request(self, body: dict[str, Any], end: float) -> tuple[str, str]:
        """Send one request and add what it cost. Raises _Failed."""
        status, headers, data = self._exchange(body, end)
        usage = Usage(unknown=int(status == 200))
        try:
            answer = json.loads(data)
            usage = _usage(answer)
            return _text(status, headers, answer, usage), _shown(answer.get("model") or body["model"])
        except GARBAGE:
            text = _shown(data[:2000].decode("utf-8", "replace"))
            message = f"HTTP {status}: no answer but {text!r} (is openrouter.base_url right?)"
            raise _Failed(message, "retry" if status in (200, 408, 429) or status >= 500 else "stop") from None
        finally:
            self.usage.add(usage)

    def _exchange(self, body: dict[str, Any], end: float) -> tuple[int, Mapping[str, str], bytes]:
        """Send a request and return status, headers and body. Raises _Failed."""
        import requests

        def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if self.router.api_key:  # as a plain header, ~/.netrc would win
                request.headers["Authorization"] = f"Bearer {self.router.api_key}"
            return request

        self.usage.add(Usage(calls=1, unknown=1))  # its cost is unknown until there is a whole answer
        left, data = max(1.0, end - time.monotonic()), bytearray()
        options: dict[str, Any] = {"auth": bearer, "timeout": (10, None), "stream": True, "allow_redirects": False}
        try:
            url = f"{self.router.base_url.rstrip('/')}/chat/completions"
            with _deadline(left), requests.post(url, json=body, **options) as response:
                for part in response.iter_content(65_536):
                    data += part
                    if len(data) > MAX_ANSWER:
                        raise _Failed(f"the answer is longer than {MAX_ANSWER} bytes")
        except _Late:
            raise _Failed(f"no whole answer within {left:.0f} s") from None
        except (OSError, ValueError) as error:  # requests' own, a missing file of certificates, an address that is none
            cause = error.args[0] if error.args else error
            reason = getattr(cause, "reason", cause)  # without the address, which may hold a secret
            raise _Failed(_shown(f"{type(error).__name__}: {reason}"), "retry") from None
        self.usage.unknown -= 1
        return response.status_code, response.headers, bytes(data)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _Late in here when the time is over: padding that drips in restarts every timeout of a socket."""

    def ring(*_: object) -> None:
        raise _Late

    signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _text(status: int, headers: Mapping[str, str], answer: Mapping[str, Any], usage: Usage) -> str:
    """Return the text of an answer. Raises _Failed for an error, which may come with status 200 too, and GARBAGE."""
    choice = (answer.get("choices") or [{}])[0]
    text, reason = (choice.get("message") or {}).get("content"), choice.get("finish_reason")
    error = answer.get("error") or choice.get("error")
    if status != 200 or error or reason == "error":
        raise _error(status, error or (answer if status != 200 else {}), headers)
    tokens = usage.tokens.get("output", 0)
    if reason in ("length", "max_tokens"):
        raise _Failed(f"its answer was cut off after {tokens} tokens (raise openrouter.max_tokens)", change="length")
    if not isinstance(text, str) or not text.strip():
        raise _Failed(f"its answer of {tokens} tokens is empty ({_shown(reason)})", "next" if tokens else "retry")
    return text


def _error(status: int, error: Any, headers: Mapping[str, str]) -> _Failed:
    """Return what follows from an error: what it says of itself counts before the status that it was sent with."""
    error = error if isinstance(error, dict) else {"message": str(error)}
    more, code = error.get("metadata") or {}, str(error.get("code"))
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else 500 if status == 200 else status
    reason = str(more.get("raw") or error.get("message") or json.dumps(error))  # raw: of the provider behind the router
    hint = " (put a valid key into OPENROUTER_API_KEY or openrouter.api_key)" if status == 401 else ""
    message = f"HTTP {status}: {_shown(reason)}{hint}"
    seconds = str(headers.get("Retry-After") or more.get("retry_after_seconds"))
    wait = float(seconds) if re.fullmatch(r"\d{1,9}(\.\d+)?", seconds) else None  # else it is a date
    wait = 86400 - time.time() % 86400 if DAILY in reason else wait  # the quota ends at 00:00 UTC
    if status in (408, 429) or status >= 500 or (status == 402 and wait is not None):
        return _Failed(message, "retry", wait=wait)
    if status == 401 or status < 400:  # a redirect would take the prompt elsewhere
        return _Failed(message, "stop")
    change = next((name for name, pattern in FIELDS.items() if re.search(pattern, reason, re.I)), "")
    return _Failed(message, change=change)


def _usage(answer: Mapping[str, Any]) -> Usage:
    """Return what an answer says that it cost: unknown where it does not say so, or nothing that can be true."""
    usage = Usage(unknown=int(bool(answer.get("choices"))))
    with suppress(*GARBAGE):
        stated = answer["usage"]
        read, cached = stated.get("prompt_tokens"), (stated.get("prompt_tokens_details") or {}).get("cached_tokens")
        usage.tokens = {"input": int(read or 0) - int(cached or 0), "output": int(stated.get("completion_tokens") or 0)}
        usage.tokens["cache_read"] = int(cached or 0)
        cost = float(stated["cost"])
        if stated.get("is_byok") is True:  # then it is the router's fee alone
            cost += float(stated["cost_details"]["upstream_inference_cost"])
        if 0 <= cost < MAX_COST:
            usage.cost_usd, usage.unknown = cost, 0
    return usage


def _shown(text: Any) -> str:
    """Return a stranger's words on one line, short, masked, harmless to a terminal."""
    return " ".join(log.printable(str(text)).split())[:220]


class _Claude:
    """One question to Claude Code, in an empty folder and without any tool."""

    def __init__(self, question: Question, schema: dict[str, Any], settings: Any, usage: Usage):
        self.settings, self.usage = settings, usage
        self.root, chosen = find_git_root(question.root) or question.root, models(question.tier, settings)
        self.options = ["-p", "--output-format", "json", "--json-schema", json.dumps(schema), "--tools", ""]
        self.options += ["--settings", json.dumps(CLAUDE_SETTINGS), "--setting-sources", "user", "--strict-mcp-config"]
        self.options += ["--permission-mode", "dontAsk", "--no-session-persistence", "--max-turns=4"]
        self.options += [f"--model={chosen[0]}"] if chosen else []

    def complete(self, texts: Sequence[str]) -> tuple[str, str]:
        """Return what it says, and the model's name. Raises Unreachable, proc.Interrupted."""
        try:
            program = worker.find(self.settings.claude_code.command, self.root)
        except Stop as error:
            raise Unreachable(str(error)) from error
        env = {**worker.environment(self.settings, self.root, str(self.root.resolve())), **CLAUDE_VARIABLES}
        limits = proc.Limits(DEADLINE, max_output=MAX_ANSWER, grace=2.0)
        with TemporaryDirectory(prefix="cco-") as folder, TemporaryFile() as output, TemporaryFile() as errors:
            Path(folder, "system.md").write_text(texts[0], "utf-8", "replace")
            argv = [program, *self.options, "--system-prompt-file", "system.md"]
            self.usage.calls += 1
            again = f"Your answer to that was:\n<data>\n{texts[2]}\n</data>\n\n{texts[3]}" if texts[2:] else ""
            stdin = f"{CLAUDE_FIRST}\n\n{texts[1]}\n\n{again}".encode("utf-8", "replace")
            proc.run(argv, cwd=Path(folder), env=env, output=output, errors=errors, limits=limits, stdin=stdin)
            return self._reply(proc.read(output, 0, MAX_ANSWER), proc.tail(errors, 1000))

    def _reply(self, output: bytes, errors: str) -> tuple[str, str]:
        """Return the answer in what was printed, and add what it cost. Raises Unreachable."""
        try:
            result = json.loads(output)
            result = dict(result[-1] if isinstance(result, list) else result)  # a list: the user's settings say verbose
        except GARBAGE:
            result = {}
        used, cost = result.get("modelUsage") or {}, result.get("total_cost_usd")
        keys = {name: key for name, (key, *_) in TOKENS.items()}
        tokens = {name: sum(one.get(key, 0) for one in used.values()) for name, key in keys.items()}
        self.usage.add(Usage(cost or 0.0, unknown=int(cost is None), tokens=tokens))
        if result.get("subtype") != "success" or result.get("is_error"):
            reason = result.get("result") or result.get("errors") or errors or "it printed no result in time"
            raise Unreachable(f"Claude Code gave no answer: {_shown(reason)}")
        content = result.get("structured_output")
        text = str(result.get("result") or "") if content is None else json.dumps(content)
        return text, max(used, key=lambda name: used[name].get("outputTokens", 0), default="claude")
