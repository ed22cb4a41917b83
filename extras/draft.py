#!/usr/bin/env python3
"""Make a mission with checks from plain words: `make draft TEXT="a --json flag for the export command"`.

    python cco.py draft TEXT [--output FILE] [--yes] [--config FILE]

An LLM writes criteria with checks; without one, a template is filled with the commands of the repository. `cco.py
check` runs each check once in a clone of the last commit, in the sandbox and without the network, and says which prove
nothing; without a sandbox none runs. You see that and what it cost; the mission is written when you say yes, and no
file is ever overwritten. Whether the checks prove all that you meant is for you to read.

Exit codes: 0 written, 2 bad usage or settings, 3 you did not say yes, 4 cannot run, 130 and 143 interrupted.
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
UNCHECKED = """\
No command checks this: an LLM judges it by quotes from committed files, or you do (make accept ID={id}). \
Better is a command that fails now and passes when it is done: add it here as `check:`."""

Draft = dict[str, Any]  # by schema/draft.json
Commands = dict[str, list[str]]  # the shell commands that test, lint, build and set up


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
    """Draft, try and show a mission, write it if the user says yes; the exit code. Raises Stop, MissionError, OSError.

    text: the wish. output: where to write it. yes: write without asking. config: a settings file.
    """
    root = mission.find_git_root(Path.cwd())
    if root is None:
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: go to yours, or run git init first")
    if output and os.path.lexists(output):
        raise Stop(USAGE, f"{output} exists and is not overwritten: name another file, or move it away")
    usual = root / ".cco" / "config.yaml"
    file = Path(os.path.abspath(config)) if config else usual if usual.exists() else None
    settings = _settings(root, file)
    words = prompt.as_data(text)
    if not 0 < len(words.encode()) <= MAX_WORDS:
        raise Stop(USAGE, f"TEXT: expected 1 to {MAX_WORDS} bytes; put long texts into a file and name that")
    files, commands = survey(root)
    made, by, usage = write(words, files, commands, settings, root)
    path = Path(os.path.realpath(output)) if output else _free_name(root, made["title"])
    is_away = mission.find_git_root(path.parent) != root
    finished = render(made, words, by, one_line(commands), os.path.relpath(root, path.parent) if is_away else "")
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
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _free_name(root: Path, title: str) -> Path:
    """Return missions/<name>.yaml for a title, with a number where a mission or a state has that name."""
    name = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:32].strip("-") or "mission"
    taken = {path.stem for path in [*(root / "missions").glob("*.*"), *(root / ".cco").glob("*.json")]}
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return root / "missions" / f"{next(name for name in names if name not in taken)}.yaml"


def _cost(usage: Usage) -> str:
    tokens = f"{usage.tokens.get('input', 0)} tokens in, {usage.tokens.get('output', 0)} out"
    return f"it cost ${usage.cost_usd:.4f} ({tokens})" if usage.calls else "it cost nothing: no LLM was asked"


# The words become a draft


def write(words: str, files: list[str], commands: Commands, settings: Any, root: Path) -> tuple[Draft, str, Usage]:
    """Return the draft, who wrote it, and what that cost."""
    usage = Usage()
    if llm.provider(settings) != "rules":
        system = prompt.fill("draft.md", {})
        room = (max(settings.openrouter.max_prompt, prompt.LEAST) - len(system.encode()) - LINE - 200) // 2
        names = "\n".join(sorted(files, key=lambda name: (name.count("/"), name))) or "none yet"
        parts = {"words": prompt.cut(words, room), "files": prompt.cut(prompt.as_data(names), room)}
        parts["profile"] = prompt.as_data(one_line(commands)) or "nothing usual is there"
        question = llm.Question(system, prompt.fill("wish.md", parts), "draft", objection=objection, root=root)
        print("asking the LLM ...")
        try:
            answer = llm.ask(question, settings)
            setup = answer.content["setup"] or [*commands["setup"], None][0]
            return {**answer.content, "setup": setup}, answer.model, answer.usage
        except llm.NoAnswer as error:
            print(log.printable(f"the LLM gave no usable draft, so this is the template: {error}"), file=sys.stderr)
            usage = error.usage
    return template(words, commands), "a template, filled with the commands of the repository", usage


def template(words: str, commands: Commands) -> Draft:
    """Return a draft without an LLM: the wish, which nothing can check yet, and the commands of the repository."""
    criteria = [_criterion("wanted", "all that the description asks for is there", "critical", None)]
    for kind, text in {"test": "the tests pass", "lint": "the code is clean", "build": "it builds"}.items():
        for number, command in enumerate(commands[kind], 1):
            id = kind if number == 1 else f"{kind}-{number}"
            criteria.append(_criterion(id, f"{text}: {command}", "high" if kind == "test" else "medium", command))
    title, setup = textwrap.shorten(words.splitlines()[0], TITLE, placeholder=" ..."), [*commands["setup"], None][0]
    return {"title": title, "description": words, "constraints": [], "setup": setup, "criteria": criteria}


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
        for name in INSTALLED:  # in the sandbox it is read-only
            if (root / name).is_dir() and not os.path.lexists(clone / name):
                (clone / name).symlink_to((root / name).resolve())
                with open(clone / ".git" / "info" / "exclude", "a", encoding="utf-8") as exclude:
                    exclude.write(f"/{name}\n")
        inside = clone / (path.relative_to(root) if path.is_relative_to(root) else "missions/draft.yaml")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text, "utf-8")
        argv = [sys.executable, str(KIT / "cco.py"), "check", str(inside)]
        argv += ["--config", str(file)] if file else []
        with open(Path(folder) / "output", "w+b") as printed:
            null, env = subprocess.DEVNULL, {**os.environ, **UNREAD}
            with subprocess.Popen(argv, cwd=clone, env=env, stdin=null, stdout=printed, stderr=printed) as running:
                try:
                    code = running.wait()
                except BaseException:
                    running.terminate()  # it ends what its checks have started, and is waited for
                    raise
            printed.seek(0)
            lines = printed.read().decode("utf-8", "replace").replace(f"{clone}/", "").splitlines()
    shown = "\n".join(line for line in lines if not line.startswith("ready:")).strip()
    return f"{shown}\n\n{'fix this before you start' if code else 'every check proves something'}\n"


def _has_sandbox() -> bool:
    """Return whether bubblewrap can start here."""
    bwrap = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    probe = [bwrap or "", "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", "--", "true"]
    return bool(bwrap) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def render(made: Draft, words: str = "", by: str = "", context: str = "", repository: str = "") -> str:
    """Return the text of the mission file. words: the wish. by: who drafted it. repository: named if not empty."""
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
TARGET = r"(?m)^{}\s*:(?!=|.*no test specified)"  # of a Makefile or a script of package.json; `npm init` writes that
BUILT = (  # a file in the root, what tests, and what builds
    ("Cargo.toml", "cargo test", "cargo build"),
    ("go.mod", "go test ./...", "go build ./..."),
    ("pom.xml", "mvn test", "mvn package"),
    ("build.gradle", "gradle test", "gradle build"),
)
USUAL = [  # what a command is for, the command, a file in the root, what has to be in it
    ("test", "make test", "Makefile", TARGET.format("test")),
    ("test", "make tests", "Makefile", TARGET.format("tests")),
    ("test", "make check", "Makefile", TARGET.format("check")),
    ("lint", "make lint", "Makefile", TARGET.format("lint")),
    ("build", "make build", "Makefile", TARGET.format("build")),
    *((kind, f"{{node}} run {kind}", "package.json", TARGET.format(kind)) for kind in ("test", "lint", "build")),
    *(("test", "{python} pytest", name, "pytest") for name in PYTHON),
    *(("lint", "{python} ruff check .", name, "ruff") for name in PYTHON),
    ("test", "{python} pytest", "conftest.py", ""),
    *(("test", test, name, "") for name, test, _ in BUILT),
    *(("build", build, name, "") for name, _, build in BUILT),
]


def survey(root: Path) -> tuple[list[str], Commands]:
    """Return the paths that git tracks, and the commands that the usual files in the root stand for.

    Nothing of a file's text gets into a command.
    """
    git = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "-z"]
    listed = subprocess.run(git, capture_output=True, check=False).stdout.decode("utf-8", "replace")
    files = [name for name in listed.split("\0") if name and name.isprintable()]
    tools = {tool: setup for name, (tool, setup) in LOCKS.items() if name in files}
    node = next((tool for tool in ("yarn", "pnpm") if tool in tools), "npm")
    python = ".venv/bin/python -m" if "requirements.txt" in files else "python3 -m"
    python = next((f"{tool} run" for tool in ("poetry", "uv") if tool in tools), python)
    commands: Commands = {"test": [], "lint": [], "build": [], "setup": [*tools.values()][:1]}
    for kind, command, name, pattern in USUAL:
        filled, known = command.format(node=node, python=python), commands[kind]
        is_made = known and known[0].startswith("make ")  # by what runs all the others
        if name in files and filled not in known and not is_made and re.search(pattern, _read(root / name)):
            known.append(filled)
    return files, commands


def one_line(commands: Commands) -> str:
    """Return the commands on one line of at most LINE characters; "" where there are none."""
    parts = [f"{kind}: {' | '.join(found)}" for kind, found in commands.items() if found]
    return textwrap.shorten("; ".join(parts), LINE, placeholder=" ...")


def _read(path: Path) -> str:
    """Return the beginning of a plain file, of package.json its scripts; "" for what is none, or leads elsewhere."""
    if path.is_symlink() or not path.is_file():
        return ""
    text = path.read_text("utf-8", "replace")[:MAX_READ]
    try:
        scripts = json.loads(text)["scripts"] if path.name == "package.json" else {}
        return "\n".join(f"{name}: {body}" for name, body in scripts.items()) or text
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
