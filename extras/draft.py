#!/usr/bin/env python3
"""Plain words to a mission with checks: `make draft TEXT="a --json flag for the export command"`.

    python cco.py draft TEXT [--output FILE] [--yes] [--config FILE]

The LLM is asked once and writes criteria with checks; without one, a template is filled from the repository's profile.
Then each check runs once, in a copy of the last commit: one that proves something fails there. You see the mission
with what its checks say, and what it cost; it is written when you say so, and no file is ever overwritten.

A check that nobody has read yet runs only within the walls of checks.sandbox, without the network. Where there are no
walls, you see the checks first and are asked.

Exit codes: 0 written, 2 bad usage or settings, 3 nothing was written for want of your word, 4 cannot run, 130 and 143
interrupted.

What is not covered: whether the checks prove all that you meant, and whether `setup` works: read them. A run that is
killed (-9) leaves its copy in the temporary folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import checkout  # noqa: E402
import document  # noqa: E402
import dod  # noqa: E402
import llm  # noqa: E402
import log  # noqa: E402
import manager  # noqa: E402
import mission  # noqa: E402
import proc  # noqa: E402
import prompt  # noqa: E402
import referee  # noqa: E402
import sandbox  # noqa: E402
import surroundings  # noqa: E402
import toolchain  # noqa: E402
from asking import Bill, NoAnswer  # noqa: E402
from exits import DONE, PERSON, USAGE, Stop, reading  # noqa: E402
from job import Job  # noqa: E402

MAX_WORDS = 12_000  # bytes of the wish
FILES = 12_000  # bytes of the list of files that are sent
TITLE = 100  # characters of a title that is made from the wish
RUN_TIME = 120.0  # seconds that a check may take when it is tried
WIDTH = 110  # characters of a line of prose
SAID = 300  # characters of the last line of a check that is broken
SHOWN = 60  # characters of a check in the table
PROBLEMS = 5  # problems of a draft that are told at once
UNSEEN = re.compile("[\u200b\u2060\ufeff\U000e0000-\U000e007f]")  # what no writing needs; joiners are needed
RED, PASSES, NOTHING, UNRUN, UNCHECKED = "red", "passes already", "proves nothing", "not run", "no check"
INSTALLED = ("node_modules", ".venv", "venv", "vendor")  # folders that a copy of the commit lacks
PROBE = "{title: draft, definition_of_done: [{criteria: draft}]}"
BY_TEMPLATE = "a template, filled from the repository's profile"
PASSES_NOTE = "This passes already: it guards what must stay as it is."
NOTHING_NOTE = """\
Its check was left out, for {reason}, so it proves nothing: {check}
If it guards what must stay as it is, put it back as `check:`, with `guard: true`."""
UNCHECKED_NOTE = """\
No command checks this: an LLM judges it by quotes from the tree, or you do (make accept ID={id}).
Better is a command that fails now and passes when it is done: add it here as `check:`."""

Draft = dict[str, Any]  # by schema/draft.json


@dataclass(frozen=True)
class Trial:
    """What a criterion's check says now."""

    now: str
    """RED and the like, or the verdict: broken, timeout, flaky."""
    note: str = ""
    """What is written above the criterion."""


# --------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Draft one mission and return the exit code; a failure is a message and a code, never a traceback."""
    parser = argparse.ArgumentParser(prog="cco.py draft", description="Turns plain words into a mission with checks.")
    parser.add_argument("text", metavar="TEXT", help="what you want, in plain words")
    parser.add_argument("--output", metavar="FILE", help="default: missions/<name>.yaml in the repository")
    parser.add_argument("--yes", action="store_true", help="write it without asking")
    parser.add_argument("--config", metavar="FILE", help="settings; default: .cco/config.yaml of the repository")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    proc.catch_signals()
    try:
        return draft(args.text, args.output, args.yes, args.config)
    except proc.Interrupted:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 128 + proc.stopping
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PERSON
    except Exception as error:
        code, said = reading(error)
        print(log.printable(said), file=sys.stderr)
        return code


def draft(text: str, output: str | None, yes: bool, config: str | None) -> int:
    """Draft, try and show a mission, and write it on a person's word; the exit code.

    text: the wish. output: where to write it. yes: whether that word is given already. config: a settings file.
    Raises Stop, MissionError, proc.Interrupted, repo.GitError, OSError.
    """
    log.know(os.environ)
    job = _job(output, config)
    words = prompt.plain(text).strip()
    if not 0 < prompt.size(words) <= MAX_WORDS:
        found = "nothing" if not words else f"{prompt.size(words)} bytes"
        raise Stop(USAGE, f"TEXT: found {found}, expected up to {MAX_WORDS}; put long texts into a file and name that")
    files = [*job.repo.files(job.repo.head())]
    profile = toolchain.survey(job.root, files)
    made, by, bill = _write(job, words, files, profile)
    path = Path(os.path.realpath(output)) if output else _free_name(job.root, made["title"])
    away = mission.find_git_root(path.parent) != job.root
    about = {"words": words, "by": by, "repository": os.path.relpath(job.root, path.parent) if away else ""}
    trials = try_out(job, made, path, render(made, {}, **about))
    finished = render(made, trials, **about)
    open_ones = [criterion.id for criterion in mission.parse(finished, path).criteria if not criterion.check]
    print(log.printable(f"\n{finished}\n{_table(made, trials)}\n\n{_cost(bill)}"))
    if not (yes or _agrees(f"Write it to {path}?")):
        print(f"nothing was written{'' if sys.stdin.isatty() else ': say --yes, or call it from a terminal'}")
        return PERSON
    _write_new(path, finished)
    if open_ones and not manager.has_judge(job.settings):
        print(f"first give {', '.join(open_ones)} a check: without one you are asked, before anybody works on it")
    make, told = f"make -C {shlex.quote(str(KIT))}", shlex.quote(str(path))
    print(f"wrote {path}\nnext: {make} check MISSION={told}, then: {make} start MISSION={told}")
    return DONE


def _job(output: str | None, config: str | None) -> Job:
    """Settings and repository, although there is no mission yet; writes nothing. Raises Stop, MissionError."""
    root = mission.find_git_root(Path.cwd())
    if root is None:
        raise Stop(USAGE, f"{Path.cwd()} is in no git repository: go to yours, or run git init first")
    if root.is_relative_to(KIT):
        raise Stop(USAGE, f"{root} is the kit. Copy the kit as a folder into your repository, and draft there.")
    if output and not output.endswith((".yaml", ".yml")):
        raise Stop(USAGE, f"--output: found {output!r}, expected the name of a .yaml file")
    if output and os.path.lexists(output):
        raise Stop(USAGE, f"{output} is there already, and is not overwritten: name another file, or move it away")
    job = Job(mission.parse(PROBE, root / "missions" / "draft.yaml"), config)
    job.marker = f"{job.marker}#draft-{os.getpid()}"  # a mission that runs here goes on
    log.know(mission.read_dotenv(job.root / ".env"))
    for secret in (job.settings.openrouter.api_key, job.settings.claude_code.api_key):
        log.know_value(secret)
    return job


def _agrees(question: str) -> bool:
    """Whether a person at the terminal says yes. Raises proc.Interrupted."""
    if not sys.stdin.isatty():
        return False
    try:
        with proc.interruptible():
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _free_name(root: Path, title: str) -> Path:
    """missions/<name>.yaml for a title; another number where a file, or what is known of a mission, has that name."""
    name = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:32].strip("-") or "mission"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    taken = (root / "missions").glob("*.*"), (root / ".cco").glob("*.json")
    known = {path.stem for paths in taken for path in paths}
    return root / "missions" / f"{next(name for name in names if name not in known)}.yaml"


def _write_new(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Stop(USAGE, f"{path} has appeared meanwhile, and is not overwritten: name another --output") from None


# --------------------------------------------------------------------------------------------------------
# The words become a draft
# --------------------------------------------------------------------------------------------------------


def _write(job: Job, words: str, files: Sequence[str], profile: toolchain.Toolchain) -> tuple[Draft, str, Bill]:
    """The draft, who wrote it, and what that cost. Raises proc.Interrupted."""
    if manager.provider(job.settings) == "rules":
        return template(words, profile), BY_TEMPLATE, Bill()
    parts = {
        "words": prompt.as_data(words),
        "profile": prompt.as_data(profile.line() or "nothing usual was found"),
        "files": prompt.as_data("\n".join(sorted(files, key=lambda name: (name.count("/"), name)))) or "none yet",
    }
    parts["files"] = prompt.cut(parts["files"], FILES)
    if problems := [*prompt.problems("draft.md", ()), *prompt.problems("wish.md", tuple(parts))]:
        raise Stop(USAGE, "\n".join(problems))  # people may change the texts
    system = prompt.fill("draft.md", {})
    room = prompt.room(job.settings.openrouter.max_prompt) - prompt.size(system)
    question = llm.Question(
        system,
        prompt.fill("wish.md", prompt.fit(parts, (("files", 200, prompt.HEAD), ("words", 200, prompt.HEAD)), room)),
        "draft",
        manager.models("standard", job.settings),
        lambda made: objection(made, job.root),
        root=job.root,
    )
    try:
        with proc.interruptible():  # an answer may take minutes
            print("asking the LLM ...")
            answer = llm.ask(question, job.settings)
    except NoAnswer as error:
        print(log.printable(f"the LLM gave no usable draft, so this is the template: {error}"), file=sys.stderr)
        return template(words, profile), BY_TEMPLATE, error.bill
    made = answer.content
    return {**made, "setup": made["setup"] or profile.setup or None}, answer.model, answer.bill


def template(words: str, profile: toolchain.Toolchain) -> Draft:
    """A draft without an LLM: the wish, which nobody can check yet, and the commands of the repository."""
    title = words.splitlines()[0]
    criteria = [_criterion("wanted", "all that the description asks for is there", "critical", None)]
    kinds = (("tests", "the tests pass", profile.test), ("lint", "the code is clean", profile.lint))
    for name, said, commands in (*kinds, ("build", "it builds", profile.build)):
        chosen = commands[:1] if commands and commands[0].startswith("make ") else commands  # which runs the others
        for number, command in enumerate(chosen, 1):
            id = name if number == 1 else f"{name}-{number}"
            criteria.append(_criterion(id, f"{said}: {command}", "high" if name == "tests" else "medium", command))
    return {
        "title": title if len(title) <= TITLE else f"{title[: TITLE - 3]}...",
        "description": words,
        "constraints": [],
        "setup": profile.setup or None,
        "criteria": criteria,
    }


def _criterion(id: str, criteria: str, priority: str, check: str | None) -> dict[str, Any]:
    return {"id": id, "criteria": criteria, "priority": priority, "check": check, "timeout": None}


def objection(made: Draft, root: Path) -> str:
    """What is wrong with a draft that the schema allows; "" if nothing. root: its own bash is not used."""
    text, problems = render(made, {}), []
    try:
        mission.parse(text, Path("mission.yaml"))
    except document.MissionError as error:
        problems = error.problems
    if len(text.encode()) > document.MAX_BYTES:
        problems.append(f"it is longer than {document.MAX_BYTES} bytes")
    commands = {"setup": made["setup"], **{f"the check of {c['id']}": c["check"] for c in made["criteria"]}}
    if UNSEEN.search(text) or log.CONTROL.search(text.replace("\t", " ")):
        problems.append("it has characters in it that nobody can see")
    for name, command in commands.items():
        unseen = command and any(unicodedata.category(letter) == "Cf" for letter in command)
        if unseen or (command and log.CONTROL.search(command.replace("\t", " "))):
            problems.append(f"{name} has characters in it that nobody can see")
        if command and (fault := _syntax(command, root)):
            problems.append(f"{name} is no shell command: {fault}")
    return "\n".join(problems[:PROBLEMS])


def _syntax(check: str, root: Path) -> str:
    """What the shell says of a command that it only reads; "" if nothing."""
    shell = surroundings.find("bash", root) or surroundings.find("sh", root) or "sh"
    done = subprocess.run([shell, "-n"], input=check.encode(), capture_output=True, check=False)
    return done.stderr.decode("utf-8", "replace").partition("\n")[0] if done.returncode else ""


# --------------------------------------------------------------------------------------------------------
# The draft is tried
# --------------------------------------------------------------------------------------------------------


def try_out(job: Job, made: Draft, path: Path, text: str) -> dict[str, Trial]:
    """What each check says now, by criterion; nothing that is unread runs without walls.

    path, text: of the mission file, as if it were written. Raises proc.Interrupted, repo.GitError, OSError.
    """
    trials = {c["id"]: Trial(UNCHECKED, UNCHECKED_NOTE.format(id=c["id"])) for c in made["criteria"]}
    checked = [c for c in mission.parse(text, path).criteria if c.check]
    if checked and job.no_walls:
        print(log.printable(f"{text}\nThere is no sandbox here ({job.no_walls}). {sandbox.remedy()}"))
        if not _agrees(f"Run these {len(checked)} checks in a copy of the last commit, with all your rights?"):
            return trials | {c.id: Trial(UNRUN, "Not tried: there was no sandbox to run it in.") for c in checked}
    job.settings.checks.network, job.settings.checks.writable = False, []  # nobody has read them yet
    folder = checkout.scratch(job.marker, "draft")
    try:
        clean, place, texts = _copy(job, folder, path, text)
        for criterion in checked:
            print(f"trying the check of {criterion.id} ...")
            trials[criterion.id] = _try(criterion, place, texts)
            clean.reset()
    finally:
        checkout.delete(folder)
    return trials


def _copy(job: Job, folder: Path, path: Path, text: str) -> tuple[checkout.Clean, dod.Place, list[tuple[Path, str]]]:
    """A copy of the last commit with the mission in it, where checks run in it, and what says nothing of the work.

    What was installed in the work tree is there too, to be read.
    """
    clean, written = checkout.Clean(job.repo, job.repo.head(), folder), folder / "mission.yaml"
    (folder / "outputs").mkdir()
    written.write_text(text, "utf-8")
    texts = [(KIT, str(KIT.relative_to(job.root)))] if KIT.is_relative_to(job.root) else []
    if path.is_relative_to(job.root):
        texts.append((written, str(path.relative_to(job.root))))
        (clean.root / texts[-1][1]).parent.mkdir(parents=True, exist_ok=True)
        (clean.root / texts[-1][1]).write_text(text, "utf-8")
    installed = {clean.root / name: Path(os.path.realpath(job.root / name)) for name in INSTALLED}
    installed = {link: to for link, to in installed.items() if to.is_dir() and not os.path.lexists(link)}
    for link, to in installed.items():
        link.symlink_to(to)
    clean.keep()
    walls = referee.walls(job, clean.root)
    walls = walls and replace(walls, sealed=(*walls.sealed, *installed.values()))
    place = dod.Place(clean.root, folder / "outputs", job.marker, job.settings.checks, walls=walls, apart=job.root)
    return clean, place, texts


def _try(criterion: mission.Criterion, place: dod.Place, texts: Sequence[tuple[Path, str]]) -> Trial:
    short = replace(criterion, timeout=min(criterion.timeout, RUN_TIME))
    found = dod.check([short], place, everything=True)[criterion.id]
    if found.verdict == "unmet":
        return Trial(RED)
    if found.verdict != "met":
        last = found.tail.strip().rpartition("\n")[2][:SAID]
        return Trial(found.verdict, f"When it was tried, its check was {found.verdict}: {last or 'it printed nothing'}")
    empty = place.outputs.with_name("empty")
    empty.mkdir()
    reason = dod.proves_nothing(short, replace(place, root=empty), texts)
    checkout.delete(empty)
    left_out = Trial(NOTHING, NOTHING_NOTE.format(reason=reason, check=criterion.check))
    return left_out if reason else Trial(PASSES, PASSES_NOTE)


# --------------------------------------------------------------------------------------------------------
# What is shown and written
# --------------------------------------------------------------------------------------------------------


def render(made: Draft, trials: Mapping[str, Trial], words: str = "", by: str = "", repository: str = "") -> str:
    """The text of the mission file.

    trials: what is known of the checks; one that proves nothing is left out. words, by: the wish, and who drafted it.
    repository: its path, where the mission has to name it.
    """
    lines = (textwrap.wrap(line, WIDTH, break_long_words=False) or [""] for line in made["description"].splitlines())
    prose = "\n".join("\n".join(wrapped) for wrapped in lines)
    fields = {"title": made["title"], "description": prose, "repository": repository}
    fields |= {"constraints": made["constraints"], "setup": made["setup"]}
    head = f"{_comment(f'Drafted by {by} from these words: {words}')}\n" if words else ""
    text = head + _yaml({name: value for name, value in fields.items() if value}) + "\ndefinition_of_done:\n"
    for number, entry in enumerate(made["criteria"]):
        trial = trials.get(entry["id"], Trial(RED))
        kept = {**entry, "check": entry["check"] if trial.now != NOTHING else None, "guard": trial.now == PASSES}
        part = _yaml([{name: value for name, value in kept.items() if value}])
        text += "\n" * bool(number) + textwrap.indent("".join(map(_comment, trial.note.splitlines())) + part, "  ")
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
    """Any text as a comment of YAML, which ends with its line."""
    import yaml

    plain = yaml.reader.Reader.NON_PRINTABLE.sub(" ", log.printable(text).replace("\ufeff", " "))
    return "".join(f"# {line}\n" for line in textwrap.wrap(" ".join(plain.split()), WIDTH))


def _table(made: Draft, trials: Mapping[str, Trial]) -> str:
    from tabulate import tabulate

    rows = [
        (c["id"], c["priority"], trials[c["id"]].now, textwrap.shorten(c["check"] or "", SHOWN, placeholder=" ..."))
        for c in made["criteria"]
    ]
    return tabulate(rows, ("id", "priority", "now", "check"), disable_numparse=True)


def _cost(bill: Bill) -> str:
    if not bill.calls:
        return "it cost nothing: no LLM was asked"
    unknown = f", and {bill.unknown} of {bill.calls} answers do not say what they cost" if bill.unknown else ""
    return f"it cost ${bill.cost_usd:.4f} ({bill.tokens['input']} tokens in, {bill.tokens['output']} out){unknown}"


if __name__ == "__main__":
    sys.exit(main())
