"""What a YAML or JSON file says, where it says it, and what is wrong there. Knows no mission and no setting.

    document = parse_document(text, path)      raises MissionError, never anything else
    validate(document, document.value, schema)

Built for files that strangers and models write: too large, too deep, torn, in a wrong encoding or full of aliases,
each is a line with the file, the line in it, the field, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 1024  # of one mission or settings file
MAX_DEPTH = 32  # levels of nesting
MAX_NODES = 10_000  # values of one file, after its aliases are expanded
MAX_NUMBER = 2**53  # beyond it JSON readers disagree
MAX_SECONDS = 10 * 365 * 86_400
TIME_UNITS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86_400}  # seconds
SIZE_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}  # bytes
LOG_LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

Where = tuple[str | int, ...]  # keys and positions, from the root of a file to a value


class MissionError(Exception):
    """A mission or settings file cannot be used; `problems` holds one complete line for each thing wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


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
class Document:
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
        self.problems.setdefault(where, (line, f"{field_name(where)}: {message}"))

    def report(self) -> list[str]:
        """One line for each problem, in the order of the file."""
        return [_problem(self.name, line, text) for line, text in sorted(self.problems.values())]

    def build(self, node: Any, where: Where = ()) -> Any:
        """Make values of a YAML node and note their lines; bounded, so that aliases cannot explode."""
        line = node.start_mark.line + 1
        self.nodes += 1
        if self.nodes > MAX_NODES or len(where) > MAX_DEPTH:
            found = f"found more than {MAX_NODES} values or {MAX_DEPTH} levels; use fewer aliases"
            raise MissionError([_problem(self.name, line, f"{field_name(where)}: {found}")])
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
                self.problems[place] = line, f"{field_name(place)}: found again, first in line {first}; remove one"
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


def parse_document(text: str, path: Path) -> Document:
    """Parse YAML, or JSON where the name of the file ends in .json; raises MissionError."""
    import yaml

    text = text.removeprefix("\ufeff")
    document = Document(printable(str(path)))
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
            found = f"found the YAML tag {printable(event.tag)}, expected a plain value; remove it, or quote the text"
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


def read_text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"found byte 0x{data[error.start]:02x} at offset {error.start}, expected UTF-8; save it as UTF-8"
        raise _refusal(path, f"the file: {found}", data.count(b"\n", 0, error.start) + 1) from error


def read_bytes(path: Path) -> bytes:
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
        beside = sorted(printable(f.name) for f in path.parent.iterdir() if f.suffix in (".yaml", ".yml", ".json"))
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"did you mean {near[0]}? " if near else f"there is {', '.join(beside[:10])}; " if beside else ""


def _refusal(path: Path, problem: str, line: int = 0) -> MissionError:
    return MissionError([_problem(printable(str(path)), line, problem)])


def validate(document: Document, value: Any, schema: Mapping[str, Any], root: Where = ()) -> None:
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
            yield (*where, name), f"missing, expected {expected(fields[name])}; add it"
    elif error.validator == "additionalProperties":
        for name in (name for name in value if name not in fields):
            near = difflib.get_close_matches(name.lower(), fields, 1)
            better = f"; did you mean {near[0]}?" if near else f", expected {_choice(fields)}"
            yield (*where, name), f"unknown{better}"
    elif error.validator == "oneOf" and isinstance(value, dict):
        names = [name for choice in error.validator_value for name in choice["required"]]
        found = "more than one" if any(name in value for name in names) else "none"
        yield where, f"found {found} of {', '.join(names)}, expected one of them"
    else:
        secret = schema.get("writeOnly")
        found = "something that is not shown" if secret else shown(written if "${" in written else value)
        yield where, f"found {found}, expected {expected(schema)}" + ("" if secret else _remedy(error, written))


def _remedy(error: Any, written: str) -> str:
    choices, value = error.schema.get("enum"), error.instance
    if choices and isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), filter(None, choices), 1)
        return f"; did you mean {near[0]}?" if near else ""
    if "string" in types_of(error.schema) and written and not isinstance(value, str):
        key = error.absolute_path[-1]
        return f"; if it is text, quote it: {'-' if isinstance(key, int) else f'{key}:'} {json.dumps(written)}"
    return ""


def expected(schema: Mapping[str, Any]) -> str:
    """What a schema wants, in plain words."""
    if "expected" in schema:
        return str(schema["expected"])
    if "format" in schema:
        return FORMATS[schema["format"]][1]
    if "enum" in schema:
        return _choice(filter(None, schema["enum"]))
    kind = " or ".join(TYPES[name] for name in types_of(schema) if name in TYPES)
    return f"{kind} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else kind


def _choice(names: Iterable[str]) -> str:
    *others, last = names
    return f"one of {', '.join(others)} or {last}" if others else last


def types_of(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def shown(value: object) -> str:
    """A value as it may stand in a message: on one line, short, printable."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, (str, int, float)):
        return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:70]}..."
    return f"the date {value}"


def printable(text: str) -> str:
    """Text that can be printed on one line, whatever a file name or a key contains."""
    return text if text.isprintable() else repr(text)[1:-1]


def field_name(where: Where) -> str:
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{printable(part).partition('://')[0][:60]}" for part in where
    )
    return path.lstrip(".") or "the file"


def _problem(name: str, line: int, text: str) -> str:
    return f"{name}:{line}: {text}" if line else f"{name}: {text}"
