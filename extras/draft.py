#!/usr/bin/env python3
"""Make a mission with checks from plain words: `make draft TEXT="a --json flag for the export command"`.

    python cco.py draft TEXT [--output FILE] [--yes] [--config FILE]

An LLM is asked once and writes criteria with checks; without one, a template is filled with the commands of the
repository. Then `cco.py check` runs each check once in a clone of the last commit, in the sandbox and without the
network, and says which prove nothing; without a sandbox none runs. You see the mission, what its checks say and what
it cost; it is written when you say yes, and no file is ever overwritten.

Exit codes: 0 written, 2 bad usage or settings, 3 nothing was written since you did not say yes, 4 cannot run, 130 and
143 interrupted.

Limitations: whether the checks prove all that you meant is for you to read; commands of subfolders are not found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import llm  # noqa: E402
import log  # noqa: E402
import mission  # noqa: E402
import prompt  # noqa: E402
from proc import CANNOT, DONE, USAGE, USER, Stop  # noqa: E402
from state import Usage  # noqa: E402

MAX_WORDS = 12_000  # bytes of the wish
MAX_READ = 200_000  # characters of one file that are looked at
TITLE = 100  # characters of a title that is made from the wish
WIDTH = 110  # characters of a line of prose
LINE = 300  # characters of what is said of the repository
PROBLEMS = 5  # problems of a draft that are named at once
INSTALLED = ("node_modules", ".venv", "venv", "vendor")  # folders that a clone lacks
UNREAD = {"CCO_CHECKS_SANDBOX": "on", "CCO_CHECKS_NETWORK": "off", "CCO_CHECKS_WRITABLE": "[]", "CCO_CHECKS_ENV": "[]"}
BY_TEMPLATE = "a template, filled with the commands of the repository"
UNCHECKED = """\
No command checks this: an LLM judges it by quotes from committed files, or you do (make accept ID={id}). \
Better is a command that fails now and passes when it is done: add it here as `check:`."""

Draft = dict[str, Any]  # by schema/draft.json


def main(argv: Sequence[str] | None = None) -> int:
    """Draft one mission and return the exit code; a failure is a message and a code, never a traceback."""
    parser = argparse.ArgumentParser(prog="cco.py draft", description="Makes a mission with checks from plain words.")
    parser.add_argument("text", metavar="TEXT", help="what you want, in plain words")
    parser.add_argument("--output", metavar="FILE", help="default: missions/<name>.yaml in the repository")
    parser.add_argument("--yes", action="store_true", help="write it without asking")
    parser.add_argument("--config", metavar="FILE", help="settings; default: .cco/config.yaml of the repository")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:
        return draft(args.text, args.output, args.yes, args.config)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    except (Stop, mission.MissionError, OSError) as error:
        print(log.printable(str(error)), file=sys.stderr)
        return getattr(error, "code", CANNOT)


def draft(text: str, output: str | None, yes: bool, config: str | None) -> int:
    """Draft, try and show a mission, write it if the user says yes, and return the exit code.

    text: the wish. output: where to write it. yes: write without asking. config: a settings file.
    Raises Stop, MissionError, OSError.
    """
    root = _root(output)
    usual = root / ".cco" / "config.yaml"
    file = Path(os.path.abspath(config)) if config else usual if usual.exists() else None
    settings = _settings(root, file)
    words = prompt.as_data(text)
    if not 0 < len(words.encode()) <= MAX_WORDS:
        raise Stop(USAGE, f"TEXT: expected 1 to {MAX_WORDS} bytes; put long texts into a file and name that")
    profile = survey(root)
    made, by, usage = write(words, profile, settings, root)
    path = Path(os.path.realpath(output)) if output else _free_name(root, made["title"])
    is_away = mission.find_git_root(path.parent) != root
    finished = render(made, words, by, profile.line(), os.path.relpath(root, path.parent) if is_away else "")
    print(log.printable(f"\n{finished}\n{_cost(usage)}\n"))
    print(log.printable(try_out(finished, root, path, file)))
    if not (yes or _agrees(f"Write it to {path}?")):
        print(f"nothing was written{'' if sys.stdin.isatty() else ': say --yes, or call it from a terminal'}")
        return USER
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as new:
        new.write(finished)
    make, name = f"make -C {shlex.quote(str(KIT))}", shlex.quote(str(path))
    print(f"wrote {path}\nnext: {make} check MISSION={name}, then: {make} start MISSION={name}")
    return DONE


def _root(output: str | None) -> Path:
    """Return the repository of the current folder. Raises Stop, also for an output that cannot be written."""
    root = mission.find_git_root(Path.cwd())
    if root is None:
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: go to yours, or run git init first")
    if output and os.path.lexists(output):
        raise Stop(USAGE, f"{output} exists and is not overwritten: name another file, or move it away")
    return root


def _settings(root: Path, file: Path | None) -> mission.Settings:
    """Return the settings, when their secrets are masked from now on. Raises MissionError."""
    probe = mission.parse("{title: draft, definition_of_done: [{criteria: draft}]}", root / "missions" / "draft.yaml")
    settings = mission.load_settings(probe, file, os.environ)
    log.register_secrets({**os.environ, **mission.read_dotenv(root / ".env")})
    for secret in (settings.openrouter.api_key, settings.claude_code.api_key):
        log.register_secret(secret)
    return settings


def _agrees(question: str) -> bool:
    """Return whether a user at the terminal says yes."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _free_name(root: Path, title: str) -> Path:
    """Return missions/<name>.yaml for a title, with a number where a mission or a state has that name."""
    name = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:32].strip("-") or "mission"
    taken = {path.stem for path in [*(root / "missions").glob("*.*"), *(root / ".cco").glob("*.json")]}
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return root / "missions" / f"{next(name for name in names if name not in taken)}.yaml"


def _cost(usage: Usage) -> str:
    if not usage.calls:
        return "it cost nothing: no LLM was asked"
    tokens = usage.tokens
    return f"it cost ${usage.cost_usd:.4f} ({tokens.get('input', 0)} tokens in, {tokens.get('output', 0)} out)"


# The words become a draft


def write(words: str, profile: Survey, settings: mission.Settings, root: Path) -> tuple[Draft, str, Usage]:
    """Return the draft, who wrote it, and what that cost."""
    if llm.provider(settings) == "rules":
        return template(words, profile), BY_TEMPLATE, Usage()
    system = prompt.fill("draft.md", {})
    room = max(settings.openrouter.max_prompt, prompt.LEAST) - len(system.encode()) - LINE - 200
    files = "\n".join(sorted(profile.files, key=lambda name: (name.count("/"), name))) or "none yet"
    parts = {"words": prompt.cut(words, room // 2), "files": prompt.cut(prompt.as_data(files), room // 2)}
    parts["profile"] = prompt.as_data(profile.line()) or "nothing usual is there"
    question = llm.Question(system, prompt.fill("wish.md", parts), "draft", objection=objection, root=root)
    print("asking the LLM ...")
    try:
        answer = llm.ask(question, settings)
    except llm.NoAnswer as error:
        print(log.printable(f"the LLM gave no usable draft, so this is the template: {error}"), file=sys.stderr)
        return template(words, profile), BY_TEMPLATE, error.usage
    made = answer.content
    return {**made, "setup": made["setup"] or profile.setup or None}, answer.model, answer.usage


def template(words: str, profile: Survey) -> Draft:
    """Return a draft without an LLM: the wish, which nothing can check yet, and the commands of the repository."""
    title = words.splitlines()[0]
    criteria = [_criterion("wanted", "all that the description asks for is there", "critical", None)]
    kinds = {"tests": ("the tests pass", profile.test), "lint": ("the code is clean", profile.lint)}
    for name, (text, commands) in {**kinds, "build": ("it builds", profile.build)}.items():
        for number, command in enumerate(commands, 1):
            id = name if number == 1 else f"{name}-{number}"
            criteria.append(_criterion(id, f"{text}: {command}", "high" if name == "tests" else "medium", command))
    return {
        "title": title if len(title) <= TITLE else f"{title[: TITLE - 3]}...",
        "description": words,
        "constraints": [],
        "setup": profile.setup or None,
        "criteria": criteria,
    }


def _criterion(id: str, criteria: str, priority: str, check: str | None) -> dict[str, Any]:
    return {"id": id, "criteria": criteria, "priority": priority, "check": check, "timeout": None}


def objection(made: Draft) -> str:
    """Say what is wrong with a draft that the schema allows; "" if nothing."""
    text, problems = render(made), list[str]()
    if len(text.encode()) > mission.MAX_BYTES:
        problems.append(f"it is longer than {mission.MAX_BYTES} bytes")
    try:
        mission.parse(text, Path("mission.yaml"))
    except mission.MissionError as error:
        problems += error.problems
    commands = {"setup": made["setup"], **{entry["id"]: entry["check"] for entry in made["criteria"]}}
    for name, command in commands.items():
        if any(unicodedata.category(one) in ("Cf", "Cc") and one not in "\n\t" for one in command or ""):
            problems.append(f"the command of {name} has characters in it that nobody can see")
        read = subprocess.run(["bash", "-n"], input=(command or "").encode("utf-8", "replace"), capture_output=True)
        if read.returncode:
            problems.append(f"the command of {name} is no shell command: {os.fsdecode(read.stderr.splitlines()[0])}")
    return "\n".join(problems[:PROBLEMS])


# The draft is tried and shown


def try_out(text: str, root: Path, path: Path, file: Path | None) -> str:
    """Return what `cco.py check` says of a mission in a clone of the last commit, as if it were at `path`.

    What nobody has read runs in the sandbox and without the network, else not at all. file: the settings.
    """
    if not _has_sandbox():
        return "not tried: there is no sandbox to run the checks in; read them, then run make check"
    print("trying each check in a clone of the last commit ...")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the clone
    with tempfile.TemporaryDirectory(prefix="cco-draft-", ignore_cleanup_errors=True) as folder:
        clone = Path(folder) / root.name
        git = ["git", "-c", "core.hooksPath=/dev/null", "clone", "--quiet", "--no-hardlinks", str(root), str(clone)]
        done = subprocess.run(git, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            return f"not tried: {done.stderr.strip()}"
        _link_installed(root, clone)
        inside = clone / (path.relative_to(root) if path.is_relative_to(root) else "missions/draft.yaml")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text, "utf-8")
        argv = [sys.executable, str(KIT / "cco.py"), "check", str(inside)]
        argv += ["--config", str(file)] if file else []
        code, output = _run(argv, clone)
    lines = output.replace(f"{clone}/", "").splitlines()
    shown = "\n".join(line for line in lines if not line.startswith("ready:")).strip()
    return f"{shown}\n\n{'every check proves something' if code == 0 else 'fix this before you start'}\n"


def _run(argv: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed. On an interrupt it ends first."""
    null, pipe, out = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    environ = {**os.environ, **UNREAD}
    with subprocess.Popen(argv, cwd=folder, env=environ, stdin=null, stdout=pipe, stderr=out) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # it ends what its checks have started
            process.communicate()
            raise
    return process.returncode, output.decode("utf-8", "replace")


def _has_sandbox() -> bool:
    """Return whether bubblewrap can start here."""
    bwrap = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    probe = [bwrap or "", "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", "--", "true"]
    return bool(bwrap) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _link_installed(root: Path, clone: Path) -> None:
    """Let a clone use what was installed in the work tree; it is read-only in the sandbox."""
    for name in INSTALLED:
        if (root / name).is_dir() and not os.path.lexists(clone / name):
            (clone / name).symlink_to((root / name).resolve())
            with open(clone / ".git" / "info" / "exclude", "a", encoding="utf-8") as file:
                file.write(f"/{name}\n")


def render(made: Draft, words: str = "", by: str = "", context: str = "", repository: str = "") -> str:
    """Return the text of the mission file.

    words, by: the wish, and who drafted it. context: what the repository is made of. repository: its path, where the
    mission has to name it.
    """
    fields = {"title": made["title"], "description": made["description"], "context": context, "repository": repository}
    fields |= {"constraints": made["constraints"], "setup": made["setup"]}
    text = f"{_comment(f'Drafted by {by} from these words: {words}')}\n" if words else ""
    text += _yaml({name: value for name, value in fields.items() if value}) + "\ndefinition_of_done:\n"
    for entry in made["criteria"]:
        note = "" if entry["check"] else _comment(UNCHECKED.format(id=entry["id"]))
        text += textwrap.indent(note + _yaml([{name: value for name, value in entry.items() if value}]), "  ")
    return text


def _yaml(value: Any) -> str:
    import yaml

    class Readable(yaml.SafeDumper):
        """Lines stay lines, and long ones are not broken."""

    def text(dumper: Any, value: str) -> Any:
        value = value.rstrip("\n")  # a text that ends in blank lines would end the document
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Readable.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Readable, sort_keys=False, allow_unicode=True, width=10**6))


def _comment(text: str) -> str:
    """Return any text as comments of YAML."""
    plain = "".join(letter if letter.isprintable() else " " for letter in log.printable(text))
    return "".join(f"# {line}\n" for line in textwrap.wrap(" ".join(plain.split()), WIDTH))


# What the repository is made of

LOCKS = {  # lock file -> the tool, and the command that makes a fresh checkout ready
    "package-lock.json": ("npm", "npm ci"),
    "yarn.lock": ("yarn", "yarn install --frozen-lockfile"),
    "pnpm-lock.yaml": ("pnpm", "pnpm install --frozen-lockfile"),
    "poetry.lock": ("poetry", "poetry install"),
    "uv.lock": ("uv", "uv sync --frozen"),
    "requirements.txt": ("pip", "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"),
}
PYTHON = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "setup.cfg", "setup.py", "tox.ini")
USUAL = {  # a file in the root -> what tests, lints and builds
    "Cargo.toml": ("cargo test", "", "cargo build"),
    "go.mod": ("go test ./...", "", "go build ./..."),
    "pom.xml": ("mvn test", "", "mvn package"),
    "build.gradle": ("gradle test", "", "gradle build"),
}
Commands = tuple[str, str, str]  # what tests, lints and builds


@dataclass(frozen=True)
class Survey:
    """What a repository has, by the usual files in its root; nothing is run."""

    files: list[str]  # the paths that git tracks
    setup: str  # the shell command that makes a fresh checkout ready
    test: list[str]  # shell commands
    lint: list[str]
    build: list[str]

    def line(self) -> str:
        """Return the commands on one line of at most LINE characters; "" where there are none."""
        commands = {"test": self.test, "lint": self.lint, "build": self.build, "setup": (self.setup,)}
        parts = [f"{kind}: {' | '.join(lines)}" for kind, lines in commands.items() if any(lines)]
        return textwrap.shorten("; ".join(parts), LINE, placeholder=" ...")


def survey(root: Path) -> Survey:
    """Look at the usual files of a repository. Nothing of a file's text gets into a command."""
    git = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "-z"]
    listed = subprocess.run(git, capture_output=True, check=False).stdout.decode("utf-8", "replace")
    files = [name for name in listed.split("\0") if name and name.isprintable()]
    texts = {name: _read(root / name) for name in files if name in ("Makefile", "package.json", *PYTHON)}
    locks = [lock for name, lock in LOCKS.items() if name in files]
    make, rows = _makefile(texts), [_node(texts, locks), _python(texts, files, locks)]
    rows += [row for name, row in USUAL.items() if name in files]
    commands = [[make[kind]] if make[kind] else [row[kind] for row in rows if row[kind]] for kind in range(3)]
    return Survey(files, locks[0][1] if locks else "", *commands)


def _read(path: Path) -> str:
    """Return the beginning of a plain file; "" for what is none, or leads elsewhere."""
    if path.is_symlink() or not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_READ)


def _makefile(texts: dict[str, str]) -> Commands:
    targets = re.findall(r"(?m)^([\w-]+)\s*:(?!=)", texts.get("Makefile", ""))
    test = next((f"make {name}" for name in ("test", "tests", "check") if name in targets), "")
    return test, "make lint" * ("lint" in targets), "make build" * ("build" in targets)


def _node(texts: dict[str, str], locks: Sequence[tuple[str, str]]) -> Commands:
    try:
        scripts = {name: str(body) for name, body in json.loads(texts["package.json"])["scripts"].items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", "", ""
    run = next((tool for tool, _ in locks if tool in ("yarn", "pnpm")), "npm") + " run"
    has_test = "test" in scripts and "no test specified" not in scripts["test"]  # which `npm init` writes
    return f"{run} test" * has_test, f"{run} lint" * ("lint" in scripts), f"{run} build" * ("build" in scripts)


def _python(texts: dict[str, str], files: Sequence[str], locks: Sequence[tuple[str, str]]) -> Commands:
    text = "\n".join(texts.get(name, "") for name in PYTHON)
    python = ".venv/bin/python -m" if "requirements.txt" in files else "python3 -m"
    run = next((f"{tool} run" for tool, _ in locks if tool in ("poetry", "uv")), python)
    by_pytest = "pytest" in text or "conftest.py" in files
    return f"{run} pytest" * by_pytest, f"{run} ruff check ." * ("ruff" in text), ""


if __name__ == "__main__":
    sys.exit(main())
