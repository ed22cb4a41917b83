"""Mission and settings files: read, validate, fill in defaults, and say what is wrong where.

    mission = load(Path("missions/api.yaml"))
    settings = load_settings(mission, Path(".cco/config.yaml"), os.environ)

Fields, defaults and descriptions live in schema/mission.json and schema/config.json. All that is wrong with a
file is reported at once. Nothing is run or written here, and whether a check makes sense is not known here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from document import (
    FORMATS,
    Document,
    Where,
    expected,
    parse_document,
    parse_duration,
    printable,
    read_bytes,
    read_text,
    shown,
    types_of,
    validate,
)
from document import MissionError as MissionError

HERE = Path(__file__).resolve().parent
PRIORITIES = ("critical", "high", "medium", "low")


VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
ASSIGNMENT = re.compile(r"""\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|(.*?))\s*(?:(?<=[\s=])#.*)?""")


@dataclass(frozen=True)
class Criterion:
    """One line of the Definition of Done."""

    id: str  # unique within the mission
    criteria: str  # what must be true, in words
    priority: str  # one of PRIORITIES
    measurable: bool  # whether it can be verified objectively
    check: str | None  # shell command that exits 0 when it is met; None: to be judged
    timeout: float  # seconds the check may run
    when: str  # "always", or "last": only when all others are met
    retries: int  # how often a failed check is run again on the same tree
    guard: bool  # whether it may be met from the start, and prove nothing by being so
    exclusive: bool  # whether its check runs while no other does


@dataclass(frozen=True)
class Limits:
    """When to stop although the mission is not done; None means no limit."""

    cost_usd: float | None  # US dollars
    iterations: int | None  # worker sessions
    hours: float | None  # of sessions and checks together
    tokens: int | None  # input and output together


@dataclass(frozen=True)
class Mission:
    """What is to be built, and how one can tell that it is done."""

    id: str  # short name, safe in paths and branch names
    title: str  # one line
    description: str  # what is to be built; may be empty
    context: str  # what the worker should know about the repository; may be empty
    constraints: tuple[str, ...]  # rules that hold for all of the work
    repository: Path  # absolute; need not exist, see require_repository
    setup: str | None  # shell command that makes a fresh checkout ready
    confirm: str  # where all criteria must be met in the end: a "clean" checkout, or the work "tree"
    protect: tuple[str, ...]  # globs, relative to the repository, that the worker may not change
    network: tuple[str, ...]  # host names that the worker may reach
    limits: Limits  # when to stop although it is not done
    settings: dict[str, Any]  # as written in the mission; load_settings validates them
    criteria: tuple[Criterion, ...]  # the Definition of Done, never empty
    path: Path  # the mission file, absolute
    text: str  # the exact text of the file
    digest: str  # SHA-256 of the text, in hex


class Settings(SimpleNamespace):
    """All settings by section, as `settings.claude_code.timeout`: durations in seconds, sizes in bytes.

    A key that takes a list of mappings (`notify`) is a list of such objects.
    """

    warnings: list[str]  # accepted settings that do not do what they say


def load(path: Path) -> Mission:
    """Read and validate a mission file; raises MissionError."""
    return parse(read_text(path), path)


def parse(text: str, path: Path) -> Mission:
    """Validate the text of the mission file that is, or was, at `path`; raises MissionError."""
    document = parse_document(text, path)
    root = _root(document)
    validate(document, document.value, _schema("mission"))
    _refuse_repeated_ids(document, (*root, "definition_of_done"))
    if document.problems:
        raise MissionError(document.report())
    return _mission(document.value["mission"] if root else document.value, text, Path(os.path.abspath(path)))


def require_repository(mission: Mission) -> None:
    """Raise MissionError unless the mission's repository is a folder in a git repository."""
    folder = mission.repository
    if not os.path.exists(folder):
        found = f"{folder} does not exist, expected a git repository; create it with `git init`"
    elif not os.path.isdir(folder):
        found = f"{folder} is a file, expected the folder of a git repository; name that"
    elif find_git_root(folder) is None:
        found = f"{folder} is in no git repository; run `git init` there"
    else:
        return
    document = parse_document(mission.text, mission.path)
    document.complain((*_root(document), "repository"), f"{printable(found)}, or correct `repository:`")
    raise MissionError(document.report())


def refusal(mission: Mission, problems: Mapping[str, str]) -> MissionError:
    """An error that names the line of each check. problems: what is wrong with it, by the criterion's id."""
    document = parse_document(mission.text, mission.path)
    for number, criterion in enumerate(mission.criteria):
        if criterion.id in problems:
            where = (*_root(document), "definition_of_done", number, "check")
            document.complain(where, f"the check of {criterion.id} proves nothing: {problems[criterion.id]}")
    return MissionError(document.report())


def load_settings(mission: Mission | None, path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Merge defaults, the file at `path`, the mission's settings, and CCO_<SECTION>_<KEY> of `environ`.

    A list (`notify`, CCO_NOTIFY) takes the place of a weaker one as a whole. `${NAME}` stands for a variable of
    `environ`, else of .env in the root of the repository; one that is empty or not set is null where the key allows
    it. Raises MissionError.
    """
    anchor = mission.repository if mission else path.parent if path else None
    root = find_git_root(anchor) if anchor else None
    known = {**(read_dotenv(root / ".env") if root else {}), **environ}
    known = {name: value for name, value in known.items() if value}
    schema = _schema("config")
    chosen: dict[str, Any] = {}
    problems: list[str] = []
    for document, where, raw in _layers(mission, path, environ, schema):
        value = _fill_in(document, where, raw, schema, known)
        validate(document, value, schema, where)
        problems += document.report()
        if not document.problems:
            for name, part in (value or {}).items():
                if part is not None:
                    chosen[name] = _over(chosen.get(name), part)
    if problems:
        raise MissionError(problems)
    return _settings(schema, chosen, known)


def read_dotenv(path: Path) -> dict[str, str]:
    """KEY=VALUE lines of a .env file; other lines are passed over, and a missing file is an empty one.

    Raises MissionError when the file cannot be read.
    """
    if not os.path.isfile(path):
        return {}
    lines = read_bytes(path).decode(errors="replace").removeprefix("\ufeff").splitlines()
    return {m[1]: m[2] or m[3] or m[4] or "" for m in map(ASSIGNMENT.fullmatch, lines) if m}


def settings_template() -> str:
    """The text of a settings file that explains every key and changes no default."""
    lines = ["# Settings of CCO. Every key shows its default; remove the # in front of a key to change it."]
    for section, part in _schema("config")["properties"].items():
        lines += ["", *_wrapped(part["description"], "# "), f"{section}:"]
        lines += _keys_template(part, "  ")
        if "items" in part:
            lines += _list_template(part)
    return "\n".join(lines) + "\n"


def _keys_template(part: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, entry in part.get("properties", {}).items():
        lines += _wrapped(entry["description"] + _choices(entry), f"{indent}# ")
        inside = _keys_template(entry, f"{indent}  ")
        lines += [f"{indent}{key}:", *inside] if inside else [f"{indent}#{key}: {json.dumps(entry['default'])}"]
    return lines


def _list_template(part: Mapping[str, Any]) -> list[str]:
    """A list that is empty by default: what an entry may say, and an example to take the `# ` from."""
    import yaml

    lines = []
    for key, entry in part["items"]["properties"].items():
        lines += _wrapped(f"{key}: {entry['description']}{_choices(entry.get('items', entry))}")
    example = yaml.safe_dump(part["examples"][0], sort_keys=False, default_flow_style=None, width=110)
    return [*lines, "  # For example:", *(f"  # {line}" for line in example.splitlines())]


def _wrapped(text: str, sign: str = "  # ") -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent=sign, subsequent_indent=sign)


def _choices(entry: Mapping[str, Any]) -> str:
    return f" ({expected(entry)})" if "enum" in entry else ""


def find_git_root(folder: Path) -> Path | None:
    """The nearest folder, from `folder` upwards, that has a `.git` folder or file."""
    folder = Path(os.path.abspath(folder))
    return next((f for f in (folder, *folder.parents) if os.path.exists(f / ".git")), None)


def _mission(raw: dict[str, Any], text: str, path: Path) -> Mission:
    limits = raw.get("limits") or {}
    name = re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].strip("-")
    repository = os.path.expanduser(raw.get("repository") or find_git_root(path.parent) or path.parent)
    return Mission(
        id=raw.get("id") or name or "mission",
        title=" ".join(raw["title"].split()),
        description=raw.get("description") or "",
        context=raw.get("context") or "",
        constraints=tuple(raw.get("constraints") or ()),
        repository=Path(os.path.realpath(path.parent / repository)),
        setup=raw.get("setup"),
        confirm=raw.get("confirm") or "clean",
        protect=tuple(raw.get("protect") or ()),
        network=tuple(raw.get("network") or ()),
        limits=Limits(*(limits.get(name) for name in ("cost_usd", "iterations", "hours", "tokens"))),
        settings=raw.get("settings") or {},
        criteria=_criteria(raw["definition_of_done"]),
        path=path,
        text=text,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def _criteria(raw: list[dict[str, Any]]) -> tuple[Criterion, ...]:
    taken = {entry["id"] for entry in raw if "id" in entry}
    criteria = []
    for n, entry in enumerate(raw, 1):
        names = (f"c{n}", *(f"c{n}-{m}" for m in range(2, len(raw) + 2)))
        criterion = Criterion(
            id=entry.get("id") or next(name for name in names if name not in taken),
            criteria=(entry.get("criteria") or entry["description"]).strip(),
            priority=entry.get("priority", "medium"),
            measurable=entry.get("measurable", True),
            check=entry.get("check"),
            timeout=parse_duration(entry.get("timeout", "10m")),
            when=entry.get("when", "always"),
            retries=entry.get("retries", 0),
            guard=entry.get("guard", False),
            exclusive=entry.get("exclusive", False),
        )
        criteria.append(criterion)
    return tuple(criteria)


def _refuse_repeated_ids(document: Document, where: Where) -> None:
    criteria = functools.reduce(lambda v, key: v.get(key) if isinstance(v, dict) else None, where, document.value)
    first: dict[Any, int] = {}
    for n, raw in enumerate(criteria if isinstance(criteria, list) else []):
        given = raw.get("id") if isinstance(raw, dict) else None
        place = (*where, n, "id")
        if isinstance(given, str) and given in first:
            document.complain(place, f"found {shown(given)} again, first in line {first[given]}; choose another name")
        elif isinstance(given, str):
            first[given] = document.lines.get(place, 0)


def _layers(
    mission: Mission | None, path: Path | None, environ: Mapping[str, str], schema: Mapping[str, Any]
) -> Iterator[tuple[Document, Where, Any]]:
    """What a user set, weakest first: the document, the place of the settings in it, the settings."""
    if path:
        document = parse_document(read_text(path), path)
        yield document, (), document.value
    if mission:
        document = parse_document(mission.text, mission.path)
        yield document, (*_root(document), "settings"), mission.settings
    for section, part in schema["properties"].items():
        whole, prefix = f"CCO_{section.upper()}", f"CCO_{section.upper()}_"
        if "items" in part:
            if environ.get(whole):
                yield Document(whole), (), {section: _typed(environ[whole], part)}
            continue
        for name in sorted(name for name in environ if name.startswith(prefix) and environ[name]):
            key, _, inner = name[len(prefix) :].lower().partition("_")
            if inner in part["properties"].get(key, {}).get("properties", {}):
                yield Document(name), (), {section: {key: {inner: environ[name]}}}
                continue
            key = name[len(prefix) :].lower()
            yield Document(name), (), {section: {key: _typed(environ[name], part["properties"].get(key, {}))}}


def _over(weaker: Any, stronger: Any) -> Any:
    """What stands in two layers of settings: mappings key by key, all else as the stronger one has it."""
    if not isinstance(weaker, dict):
        return stronger
    if not isinstance(stronger, dict):  # a mapping that is empty in YAML is null
        return weaker if stronger is None else stronger
    return {**weaker, **{key: _over(weaker.get(key), value) for key, value in stronger.items()}}


def _fill_in(document: Document, where: Where, value: Any, schema: Mapping[str, Any], known: Mapping[str, str]) -> Any:
    """The settings with every `${NAME}` replaced; an unknown name is null where the schema allows that."""
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return {k: _fill_in(document, (*where, k), v, parts.get(k, {}), known) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill_in(document, (*where, n), v, schema.get("items", {}), known) for n, v in enumerate(value)]
    if not isinstance(value, str) or schema.get("literal"):  # literal: a `${NAME}` in it is the shell's
        return value
    missing = [name for name in VARIABLE.findall(value) if name not in known]
    if missing and VARIABLE.fullmatch(value) and "null" in types_of(schema):
        return None
    if missing:
        document.complain(where, f"found ${{{missing[0]}}}, which is not set; set it in the environment or in .env")
        return value
    text = VARIABLE.sub(lambda match: known[match[1]], value)
    return _typed(text, schema) if VARIABLE.fullmatch(value) else text


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """The text of a variable as the number, switch or list that it would be in YAML, if the schema wants one."""
    from jsonschema import Draft202012Validator

    try:
        document = parse_document(text, Path("variable"))
    except MissionError:
        return text
    is_type = Draft202012Validator.TYPE_CHECKER.is_type
    fits = any(is_type(document.value, name) for name in types_of(schema) if name != "string")
    return document.value if fits and not document.problems else text


def _settings(schema: Mapping[str, Any], chosen: Mapping[str, Any], known: Mapping[str, str]) -> Settings:
    values: dict[str, Any] = {}
    for name, part in schema["properties"].items():
        if "items" in part:
            values[name] = [_complete(part["items"], entry, known) for entry in chosen.get(name, part["default"])]
        else:
            values[name] = _complete(part, chosen.get(name, {}), known)
    if values["orchestrator"].iteration_timeout and "timeout" not in chosen.get("claude_code", {}):
        values["claude_code"].timeout = values["orchestrator"].iteration_timeout
    warnings = []
    if values["persistence"].type == "sqlite":
        warnings.append("persistence.type: sqlite is not used, this kit stores its state as one JSON file")
    return Settings(warnings=warnings, **values)


def _complete(schema: Mapping[str, Any], chosen: Mapping[str, Any], known: Mapping[str, str]) -> SimpleNamespace:
    """What was chosen, with the defaults of the other keys, durations in seconds and sizes in bytes."""
    values = SimpleNamespace()
    for key, entry in schema["properties"].items():
        value = chosen.get(key, _fill_in(Document("defaults"), (), entry.get("default"), entry, known))
        if "properties" in entry:
            value = _complete(entry, value or {}, known)
        if "format" in entry and value is not None:
            value = FORMATS[entry["format"]][0](value)
        setattr(values, key, value)
    return values


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((HERE / "schema" / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def _root(document: Document) -> Where:
    return ("mission",) if isinstance(document.value, dict) and "mission" in document.value else ()
