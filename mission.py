"""Mission and settings files: read, validate, fill in defaults, and say what is wrong where.

    mission = load(Path("missions/api.yaml"))
    settings = load_settings(mission, Path(".cco/config.yaml"), os.environ)

Fields, defaults and descriptions live in schema/mission.json and schema/config.json. All that is wrong with a
file is reported at once. Nothing is run or written here, and whether a check makes sense is not known here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import re
import stat
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
PRIORITIES = ("critical", "high", "medium", "low")

MAX_BYTES = 64 * 1024  # of one mission or settings file
MAX_DEPTH = 32  # levels of nesting
MAX_NODES = 10_000  # values of one file, after its aliases are expanded
MAX_NUMBER = 2**53  # beyond it JSON readers disagree
MAX_SECONDS = 10 * 365 * 86_400
TIME_UNITS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86_400}  # seconds
SIZE_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}  # bytes
LOG_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")

NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
ASSIGNMENT = re.compile(r"""\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|(.*?))\s*(?:(?<=[\s=])#.*)?""")

Where = tuple[str | int, ...]  # keys and positions, from the root of a file to a value


class MissionError(Exception):
    """A mission or settings file cannot be used; `problems` holds one complete line for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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


@dataclass(frozen=True)
class Limits:
    """When to stop although the mission is not done; None means no limit."""

    cost_usd: float | None  # US dollars
    iterations: int | None  # worker sessions
    hours: float | None  # since the mission started
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
    protect: tuple[str, ...]  # globs, relative to the repository, that the worker may not change
    network: tuple[str, ...]  # host names that the worker may reach
    limits: Limits  # when to stop although it is not done
    settings: dict[str, Any]  # as written in the mission; load_settings validates them
    criteria: tuple[Criterion, ...]  # the Definition of Done, never empty
    path: Path  # the mission file, absolute
    text: str  # the exact text of the file
    digest: str  # SHA-256 of the text, in hex


class Settings(SimpleNamespace):
    """All settings by section, as `settings.claude_code.timeout`: durations in seconds, sizes in bytes."""

    warnings: list[str]  # accepted settings that do not do what they say


def load(path: Path) -> Mission:
    """Read and validate a mission file; raises MissionError."""
    return parse(_read_text(path), path)


def parse(text: str, path: Path) -> Mission:
    """Validate the text of the mission file that is, or was, at `path`; raises MissionError."""
    document = _parse_document(text, path)
    root = _root(document)
    _validate(document, document.value, _schema("mission"))
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
    document = _parse_document(mission.text, mission.path)
    document.complain((*_root(document), "repository"), f"{_printable(found)}, or correct `repository:`")
    raise MissionError(document.report())


def load_settings(mission: Mission | None, path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Merge defaults, the file at `path`, the mission's settings, and CCO_<SECTION>_<KEY> of `environ`.

    `${NAME}` stands for a variable of `environ`, else of .env in the root of the repository; one that is empty or
    not set is null where the key allows it. Raises MissionError.
    """
    anchor = mission.repository if mission else path.parent if path else None
    root = find_git_root(anchor) if anchor else None
    known = {**(read_dotenv(root / ".env") if root else {}), **environ}
    known = {name: value for name, value in known.items() if value}
    schema = _schema("config")
    chosen: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for document, where, raw in _layers(mission, path, environ, schema):
        value = _fill_in(document, where, raw, schema, known)
        _validate(document, value, schema, where)
        problems += document.report()
        if not document.problems:
            for section, keys in (value or {}).items():
                chosen.setdefault(section, {}).update(keys or {})
    if problems:
        raise MissionError(problems)
    return _settings(schema, chosen, known)


def read_dotenv(path: Path) -> dict[str, str]:
    """KEY=VALUE lines of a .env file; other lines are passed over, and a missing file is an empty one.

    Raises MissionError when the file cannot be read.
    """
    if not os.path.isfile(path):
        return {}
    lines = _read_bytes(path).decode(errors="replace").removeprefix("\ufeff").splitlines()
    return {m[1]: m[2] or m[3] or m[4] or "" for m in map(ASSIGNMENT.fullmatch, lines) if m}


def settings_template() -> str:
    """The text of a settings file that explains every key and changes no default."""
    wrap = functools.partial(textwrap.wrap, width=110, initial_indent="  # ", subsequent_indent="  # ")
    lines = ["# Settings of CCO. Every key shows its default; remove the # in front of a key to change it."]
    for section, part in _schema("config")["properties"].items():
        lines += ["", f"# {part['description']}", f"{section}:"]
        for key, entry in part["properties"].items():
            choices = f" ({_expected(entry)})" if "enum" in entry else ""
            lines += [*wrap(entry["description"] + choices), f"  #{key}: {json.dumps(entry['default'])}"]
    return "\n".join(lines) + "\n"


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
        )
        criteria.append(criterion)
    return tuple(criteria)


def _refuse_repeated_ids(document: _Document, where: Where) -> None:
    criteria = functools.reduce(lambda v, key: v.get(key) if isinstance(v, dict) else None, where, document.value)
    first: dict[Any, int] = {}
    for n, raw in enumerate(criteria if isinstance(criteria, list) else []):
        given = raw.get("id") if isinstance(raw, dict) else None
        place = (*where, n, "id")
        if isinstance(given, str) and given in first:
            document.complain(place, f"found {_shown(given)} again, first in line {first[given]}; choose another name")
        elif isinstance(given, str):
            first[given] = document.lines.get(place, 0)


def _layers(
    mission: Mission | None, path: Path | None, environ: Mapping[str, str], schema: Mapping[str, Any]
) -> Iterator[tuple[_Document, Where, Any]]:
    """What a user set, weakest first: the document, the place of the settings in it, the settings."""
    if path:
        document = _parse_document(_read_text(path), path)
        yield document, (), document.value
    if mission:
        document = _parse_document(mission.text, mission.path)
        yield document, (*_root(document), "settings"), mission.settings
    for section, part in schema["properties"].items():
        prefix = f"CCO_{section.upper()}_"
        for name in sorted(name for name in environ if name.startswith(prefix) and environ[name]):
            key = name[len(prefix) :].lower()
            yield _Document(name), (), {section: {key: _typed(environ[name], part["properties"].get(key, {}))}}


def _fill_in(document: _Document, where: Where, value: Any, schema: Mapping[str, Any], known: Mapping[str, str]) -> Any:
    """The settings with every `${NAME}` replaced; an unknown name is null where the schema allows that."""
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return {k: _fill_in(document, (*where, k), v, parts.get(k, {}), known) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill_in(document, (*where, n), v, schema.get("items", {}), known) for n, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = [name for name in VARIABLE.findall(value) if name not in known]
    if missing and VARIABLE.fullmatch(value) and "null" in _types(schema):
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
        document = _parse_document(text, Path("variable"))
    except MissionError:
        return text
    is_type = Draft202012Validator.TYPE_CHECKER.is_type
    fits = any(is_type(document.value, name) for name in _types(schema) if name != "string")
    return document.value if fits and not document.problems else text


def _settings(schema: Mapping[str, Any], chosen: dict[str, dict[str, Any]], known: Mapping[str, str]) -> Settings:
    values: dict[str, dict[str, Any]] = {}
    for section, part in schema["properties"].items():
        values[section] = {}
        for key, entry in part["properties"].items():
            default = _fill_in(_Document("defaults"), (), entry["default"], entry, known)
            value = chosen.get(section, {}).get(key, default)
            if "format" in entry and value is not None:
                value = FORMATS[entry["format"]][0](value)
            values[section][key] = value
    if values["orchestrator"]["iteration_timeout"] and "timeout" not in chosen.get("claude_code", {}):
        values["claude_code"]["timeout"] = values["orchestrator"]["iteration_timeout"]
    warnings = []
    if values["persistence"]["type"] == "sqlite":
        warnings.append("persistence.type: sqlite is not used, this kit stores its state as one JSON file")
    return Settings(warnings=warnings, **{name: SimpleNamespace(**keys) for name, keys in values.items()})


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((HERE / "schema" / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def _root(document: _Document) -> Where:
    return ("mission",) if isinstance(document.value, dict) and "mission" in document.value else ()


# --------------------------------------------------------------------------------------------------
# What a file says, where it says it, and what is wrong there. Nothing below knows what a mission is.


def parse_duration(value: str | float) -> float:
    """Seconds in `90`, `300s`, `10m`, `2h` or `1d`; raises ValueError."""
    return _quantity(value, TIME_UNITS, 0.001, MAX_SECONDS)


def parse_size(value: str | float) -> int:
    """Bytes in `512`, `100KB`, `5MB` or `1GB`, where 1 KB is 1024 bytes; raises ValueError."""
    return int(_quantity(value, SIZE_UNITS, 1, MAX_NUMBER))


def _quantity(value: str | float, units: dict[str, int], least: float, most: float) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)\s*", str(value).upper())
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r} is not a number, alone or with one of the units{' '.join(units).lower()}")
    quantity = float(match[1]) * units[match[2]]
    if not least <= quantity <= most:
        raise ValueError(f"{value!r} is out of range")
    return quantity


FORMATS: dict[str, tuple[Callable[[Any], Any], str]] = {  # `format` in the schemas: how to read it, what it expects
    "duration": (parse_duration, "a duration above 0, such as 90 (seconds), 300s, 10m or 2h"),
    "size": (parse_size, "a size such as 512 (bytes), 100KB, 5MB or 1GB"),
    "share": (
        lambda value: float(value.strip("%")) / 100 if isinstance(value, str) else value,
        "a number from 0.1 to 1, or a percentage such as 60%",
    ),
    "count": (lambda value: None if value == "unlimited" else value, "a whole number from 1, or unlimited"),
    "level": (lambda value: LOG_LEVELS[LOG_LEVELS.index(str(value).upper())], "one of " + ", ".join(LOG_LEVELS)),
}
TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


@dataclass
class _Document:
    """One parsed file: its value, the line of every part of it, and what is wrong with it."""

    name: str  # as it appears in front of problems
    construct: Callable[[Any], Any] = str  # makes a value of a scalar YAML node
    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    written: dict[Where, str] = field(default_factory=dict)  # scalars as they stand in the file
    problems: dict[Where, tuple[int, str]] = field(default_factory=dict)
    nodes: int = 0  # values made so far

    def complain(self, where: Where, message: str) -> None:
        """Note what is wrong at a place; the first complaint about a place stands."""
        above = (where[:n] for n in range(len(where), -1, -1))
        line = next((self.lines[place] for place in above if place in self.lines), 0)
        self.problems.setdefault(where, (line, f"{_field(where)}: {message}"))

    def report(self) -> list[str]:
        """One line for each problem, in the order of the file."""
        return [_problem(self.name, line, text) for line, text in sorted(self.problems.values())]

    def build(self, node: Any, where: Where = ()) -> Any:
        """Make values of a YAML node and note their lines; bounded, so that aliases cannot explode."""
        line = node.start_mark.line + 1
        self.nodes += 1
        if self.nodes > MAX_NODES or len(where) > MAX_DEPTH:
            found = f"found more than {MAX_NODES} values or {MAX_DEPTH} levels; use fewer aliases"
            raise MissionError([_problem(self.name, line, f"{_field(where)}: {found}")])
        self.lines.setdefault(where, line)
        if node.id == "mapping":
            return self._mapping(node, where)
        if node.id == "sequence":
            return [self.build(item, (*where, n)) for n, item in enumerate(node.value)]
        return self._scalar(node, where)

    def _mapping(self, node: Any, where: Where) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, child in node.value:
            name, line = str(key.value) if key.id == "scalar" else "?", key.start_mark.line + 1
            place = (*where, name)
            if name in value:
                first = self.lines[place]
                self.problems[place] = line, f"{_field(place)}: found again, first in line {first}; remove one"
            else:
                self.lines[place] = line
                value[name] = self.build(child, place)
        return value

    def _scalar(self, node: Any, where: Where) -> Any:
        self.written[where] = node.value
        try:
            value = self.construct(node)
        except ValueError:
            self.complain(where, "found a date that does not exist, or too long a number; if it is text, quote it")
            return None
        if isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:
            self.complain(where, "found a number that is not finite or too large, expected an ordinary one")
            return None
        if isinstance(value, float) and value.is_integer():
            return int(value)  # as JSON Schema sees it
        odd = NOT_TEXT.search(value) if isinstance(value, str) else None
        if odd:
            self.complain(where, f"found the character U+{ord(odd[0]):04X}, expected text; remove it")
        return value


def _parse_document(text: str, path: Path) -> _Document:
    """Parse YAML, or JSON where the name of the file ends in .json; raises MissionError."""
    import yaml

    text = text.removeprefix("\ufeff")
    document = _Document(_printable(str(path)))
    is_json = path.suffix.lower() == ".json"
    try:
        if is_json:
            json.loads(text, parse_int=str)
            text = text.replace("\t", " ")  # valid JSON has tabs only where YAML insists on spaces
        _refuse_traps(text, path)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        document.construct = loader.construct_object
        if is_json:
            document.construct = lambda node: json.loads(text[node.start_mark.index : node.end_mark.index])
        document.value = document.build(root) if root else None
    except (yaml.YAMLError, json.JSONDecodeError, RecursionError) as error:
        line, found = _syntax_error(error, text)
        raise _refusal(path, f"the file: {found}", line) from error
    return document


def _refuse_traps(text: str, path: Path) -> None:
    """Refuse, before anything is built, what is YAML but no mission: depth, tags, a second document."""
    import yaml

    depth = documents = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        found = ""
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            found = f"found more than {MAX_DEPTH} levels of nesting, expected fewer"
        elif documents > 1:
            found = "found a second document after `---`, expected one; put it into a file of its own"
        elif getattr(event, "tag", None):
            found = f"found the YAML tag {_printable(event.tag)}, expected a plain value; remove it, or quote the text"
        if found:
            raise _refusal(path, f"the file: {found}", event.start_mark.line + 1)


def _syntax_error(error: Exception, text: str) -> tuple[int, str]:
    """Line and plain words of what a YAML or JSON parser raised."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, f"found no valid JSON: {error.msg} in column {error.colno}"
    if isinstance(error, RecursionError):
        return 1, f"found more than {MAX_DEPTH} levels of nesting, expected fewer"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        at = getattr(error, "position", 0)
        return text.count("\n", 0, at) + 1, f"found the character U+{ord(text[at]):04X}, expected text; remove it"
    problem = str(getattr(error, "problem", ""))
    if r"'\t'" in problem:
        problem = "a tab where only spaces may stand; indent with spaces"
    return mark.line + 1, f"found no valid YAML: {problem} in column {mark.column + 1}"


def _read_text(path: Path) -> str:
    data = _read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"found byte 0x{data[error.start]:02x} at offset {error.start}, expected UTF-8; save it as UTF-8"
        raise _refusal(path, f"the file: {found}", data.count(b"\n", 0, error.start) + 1) from error


def _read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES; never waits for a pipe or device. Raises MissionError."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe, socket or device"
            raise _refusal(path, f"found {kind}, expected a file; name the file itself")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise _refusal(path, f"no such file; {_instead(path)}`make init` writes one") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refusal(path, f"cannot be read ({reason}), expected a readable file; see its permissions") from error
    if len(data) > MAX_BYTES:
        found = f"found {max(info.st_size, len(data))} bytes, expected at most {MAX_BYTES}"
        raise _refusal(path, f"{found}; move long text into a file of the repository, and name that file here")
    return data


def _instead(path: Path) -> str:
    """What stands beside a missing file and may have been meant."""
    try:
        beside = sorted(_printable(f.name) for f in path.parent.iterdir() if f.suffix in (".yaml", ".yml", ".json"))
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"did you mean {near[0]}? " if near else f"there is {', '.join(beside[:10])}; " if beside else ""


def _refusal(path: Path, problem: str, line: int = 0) -> MissionError:
    return MissionError([_problem(_printable(str(path)), line, problem)])


def _validate(document: _Document, value: Any, schema: Mapping[str, Any], root: Where = ()) -> None:
    """Complain about all that the schema does not allow in `value`, which stands at `root`."""
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())
    for name, (read, _) in FORMATS.items():
        checker.checks(name, raises=ValueError)(functools.partial(_is_readable, read))
    for error in Draft202012Validator(schema, format_checker=checker).iter_errors(value):
        for where, message in _explain(error, document.written.get((*root, *error.absolute_path), "")):
            document.complain((*root, *where), message)


def _is_readable(read: Callable[[Any], Any], value: object) -> bool:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        read(value)
    return True


def _explain(error: Any, written: str) -> Iterator[tuple[Where, str]]:
    """Each place that a jsonschema error is about, and what is wrong there in plain words."""
    where, schema, value = tuple(error.absolute_path), error.schema, error.instance
    fields = schema.get("properties", {})
    if error.validator == "required":
        for name in (name for name in error.validator_value if name not in value):
            yield (*where, name), f"missing, expected {_expected(fields[name])}; add it"
    elif error.validator == "additionalProperties":
        for name in (name for name in value if name not in fields):
            near = difflib.get_close_matches(name.lower(), fields, 1)
            yield (
                (*where, name),
                f"unknown; did you mean {near[0]}?" if near else f"unknown, expected {_choice(fields)}",
            )
    elif error.validator == "oneOf" and isinstance(value, dict):
        names = [name for choice in error.validator_value for name in choice["required"]]
        found = "more than one" if any(name in value for name in names) else "none"
        yield where, f"found {found} of {', '.join(names)}, expected one of them"
    else:
        secret = schema.get("writeOnly")
        found = "something that is not shown" if secret else _shown(written if "${" in written else value)
        yield where, f"found {found}, expected {_expected(schema)}" + ("" if secret else _remedy(error, written))


def _remedy(error: Any, written: str) -> str:
    choices, value = error.schema.get("enum"), error.instance
    if choices and isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), filter(None, choices), 1)
        return f"; did you mean {near[0]}?" if near else ""
    if "string" in _types(error.schema) and written and not isinstance(value, str):
        key = error.absolute_path[-1]
        return f"; if it is text, quote it: {'-' if isinstance(key, int) else f'{key}:'} {json.dumps(written)}"
    return ""


def _expected(schema: Mapping[str, Any]) -> str:
    """What a schema wants, in plain words."""
    if "expected" in schema:
        return str(schema["expected"])
    if "format" in schema:
        return FORMATS[schema["format"]][1]
    if "enum" in schema:
        return _choice(filter(None, schema["enum"]))
    kind = " or ".join(TYPES[name] for name in _types(schema) if name in TYPES)
    return f"{kind} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else kind


def _choice(names: Iterable[str]) -> str:
    *others, last = names
    return f"one of {', '.join(others)} or {last}" if others else last


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _shown(value: object) -> str:
    """A value as it may stand in a message: on one line, short, printable."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, (str, int, float)):
        return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:70]}..."
    return f"the date {value}"


def _printable(text: str) -> str:
    """Text that can be printed on one line, whatever a file name or a key contains."""
    return text if text.isprintable() else repr(text)[1:-1]


def _field(where: Where) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)[:60]}" for part in where)
    return path.lstrip(".") or "the file"


def _problem(name: str, line: int, text: str) -> str:
    return f"{name}:{line}: {text}" if line else f"{name}: {text}"
