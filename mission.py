"""Mission and settings files: read, validate, fill in defaults, and say what is wrong where.

    mission = load(Path("missions/api.yaml"))
    settings = load_settings(mission, Path(".cco/config.yaml"), os.environ)

Fields, defaults and descriptions are in schema/mission.json and schema/config.json. Everything that is wrong with a
file is reported at once. Nothing is run or written here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import log

HERE = Path(__file__).resolve().parent
PRIORITIES = ("critical", "high", "medium", "low")
LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")  # of the log
MAX_BYTES = 64 * 1024  # of one mission or settings file
MAX_NODES = 10_000  # values of one file, after its aliases are expanded
MAX_NUMBER = 2**53  # seconds or bytes
TIME_UNITS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86_400}  # seconds
SIZE_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}  # bytes
TAG = re.compile(r"(?:&\S+\s+)?(!\S*)")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
ASSIGNMENT = re.compile(r"""\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|(.*?))\s*(?:(?<=[\s=])#.*)?""")

Where = tuple[str | int, ...]  # keys and positions, from the root of a file to a value
Layer = tuple["Document", Where, Any]  # what one source of settings sets, and where it stands
Settings = SimpleNamespace  # all settings by section, as `settings.claude_code.timeout`: seconds and bytes


class MissionError(Exception):
    """A mission or settings file cannot be used; `problems` holds one complete line for each thing wrong."""

    code = 2  # exit code

    def __init__(self, problems: list[str]) -> None:
        self.problems = [log.printable(problem).replace("\n", " ") for problem in problems]
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Criterion:
    """One line of the Definition of Done."""

    id: str  # unique within the mission
    criteria: str  # what must be true, in words
    priority: str = "medium"  # one of PRIORITIES
    measurable: bool = True  # whether it can be verified objectively
    check: str | None = None  # shell command that exits 0 when it is met; None: to be judged
    timeout: float = 600.0  # seconds that the check may run
    when: str = "always"  # or "last": only when all others are met
    retries: int = 0  # times that a failed check is run again on the same tree
    guard: bool = False  # whether it may be met from the start
    exclusive: bool = False  # whether its check runs while no other does
    strict: bool = True  # whether the check has to pass as CI systems run it (bash -e -o pipefail), too

    @property
    def digest(self) -> str:
        """Digest of what decides it."""
        decides = repr((self.check or self.criteria, self.guard, self.strict))
        return hashlib.sha256(decides.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Limits:
    """When to stop although the mission is not done; None means no limit."""

    cost_usd: float | None = None  # US dollars
    iterations: int | None = None  # worker sessions
    hours: float | None = None  # of sessions and checks together
    tokens: int | None = None  # input and output together
    max_iterations: int | None = None  # the settings' limit of worker sessions

    def compare(self, used: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Return name -> (used, limit) for each limit that is set. used: by field."""
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        place = {"max_iterations": "orchestrator"}
        return {f"{place.get(name, 'limits')}.{name}": (used[name], limit) for name, limit in limits.items()}

    def reached(self, used: Mapping[str, float], begun: bool = False) -> str:
        """Say which limit stops another session; "" if none does. begun: its iteration has begun."""
        for name, (spent, limit) in self.compare(used).items():
            if spent >= limit and not (begun and name.endswith("iterations")):
                where = "mission" if name.startswith("limits.") else "settings"
                return f"{name} is reached: {round(spent, 4)} of {limit}. Raise it in the {where} and start again."
        return ""

    def left(self, used: Mapping[str, float], timeout: float) -> tuple[float, float | None]:
        """Return the seconds and dollars that a session may take. timeout: seconds, by the settings."""
        seconds = timeout if self.hours is None else min(timeout, max(60.0, 3600 * (self.hours - used["hours"])))
        return seconds, None if self.cost_usd is None else max(0.01, self.cost_usd - used["cost_usd"])


@dataclass(frozen=True)
class Mission:
    """What is to be built, and how one can tell that it is done."""

    id: str  # short name, safe in paths and branch names
    title: str  # one line
    repository: Path  # absolute; need not exist, see require_repository
    criteria: tuple[Criterion, ...]  # the Definition of Done, never empty
    path: Path  # the mission file, absolute
    text: str  # the exact text of the file
    digest: str  # SHA-256 of the text, in hex
    description: str = ""  # what is to be built
    context: str = ""  # what the worker should know about the repository
    constraints: tuple[str, ...] = ()  # rules that hold for all of the work
    setup: str | None = None  # shell command that makes a fresh checkout ready
    confirm: str = "clean"  # where all criteria must be met in the end: a "clean" checkout, or the work "tree"
    protect: tuple[str, ...] = ()  # globs, relative to the repository, that the worker may not change
    network: tuple[str, ...] = ()  # host names that the worker may reach
    limits: Limits = Limits()
    settings: dict[str, Any] = field(default_factory=dict)  # as written in the mission; load_settings validates them


def load(path: Path) -> Mission:
    """Read and validate a mission file. Raises MissionError."""
    return parse(_read(path), path)


def parse(text: str, path: Path) -> Mission:
    """Validate the text of the mission file that is, or was, at `path`. Raises MissionError."""
    document = _parse(text, path)
    _validate(document, document.value, _schema("mission"))
    if document.problems:
        raise MissionError(document.report())
    raw = document.value["mission"] if document.root else document.value
    mission = _mission(raw, text, Path(os.path.abspath(path)))
    ids = [criterion.id for criterion in mission.criteria]
    repeated = {("definition_of_done", n, "id"): id for n, id in enumerate(ids) if id in ids[:n]}
    if repeated:
        raise _error(mission, {where: f"found {id!r} again; rename one" for where, id in repeated.items()})
    return mission


def require_repository(mission: Mission) -> None:
    """Raise MissionError unless the mission's repository is a folder in a git repository."""
    folder = mission.repository
    if not (os.path.isdir(folder) and find_git_root(folder)):
        remedy = "run `git init` there, or correct `repository:`"
        raise _error(mission, {("repository",): f"{folder} is no folder in a git repository; {remedy}"})


def refusal(mission: Mission, problems: Mapping[str, str]) -> MissionError:
    """Return an error that names the line of each check. problems: criterion id -> what is wrong with its check."""
    checks = {("definition_of_done", n, "check"): criterion.id for n, criterion in enumerate(mission.criteria)}
    wrong = {where: id for where, id in checks.items() if id in problems}
    return _error(mission, {where: f"the check of {id} proves nothing: {problems[id]}" for where, id in wrong.items()})


def _error(mission: Mission, problems: Mapping[Where, str]) -> MissionError:
    """Return an error about places in the mission's file."""
    document = _parse(mission.text, mission.path)
    for where, problem in problems.items():
        document.complain((*document.root, *where), problem)
    return MissionError(document.report())


def find_git_root(folder: Path) -> Path | None:
    """Return the nearest folder, from `folder` upwards, that has a `.git` folder or file."""
    folder = Path(os.path.abspath(folder))
    return next((place for place in (folder, *folder.parents) if os.path.exists(place / ".git")), None)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _mission(raw: dict[str, Any], text: str, path: Path) -> Mission:
    given: dict[str, Any] = {key: one for key, one in raw.items() if one is not None}
    given |= {key: tuple(one) for key, one in given.items() if isinstance(one, list)}
    name = re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].strip("-")
    repository = os.path.expanduser(given.get("repository") or find_git_root(path.parent) or path.parent)
    given["id"] = given.get("id") or name or "mission"
    given["title"] = " ".join(given["title"].split())
    given["repository"] = Path(os.path.realpath(path.parent / repository))
    given["limits"] = Limits(**given.get("limits", {}))
    entries = enumerate(given.pop("definition_of_done"), 1)
    given["criteria"] = tuple(_criterion(**{"id": f"c{number}", **entry}) for number, entry in entries)
    return Mission(**given, path=path, text=text, digest=hashlib.sha256(text.encode()).hexdigest())


def _criterion(criteria: str = "", description: str = "", timeout: str | float = "10m", **given: Any) -> Criterion:
    return Criterion(criteria=(criteria or description).strip(), timeout=parse_duration(timeout), **given)


def load_settings(mission: Mission | None, path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Merge defaults, the file at `path`, the mission's settings, and CCO_<SECTION>_<KEY> of `environ`.

    `${NAME}` stands for a variable of `environ`, else of .env in the root of the repository; one that is empty or in
    neither is null where the key allows it. Raises MissionError.
    """
    anchor = mission.repository if mission else path.parent if path else None
    root = find_git_root(anchor) if anchor else None
    variables = {**(read_dotenv(root / ".env") if root else {}), **environ}
    schema = _schema("config")
    layers: list[Any] = []
    problems: list[str] = []
    for document, where, raw in _layers(mission, path, environ):
        value = _fill_in(document, where, raw, schema, variables)
        _validate(document, value, schema, where)
        problems += document.report()
        layers.append(value)
    if problems:
        raise MissionError(problems)
    settings: Settings = _attributes(schema, layers, variables)
    settings.claude_code.timeout = settings.claude_code.timeout or settings.orchestrator.iteration_timeout or 7200.0
    settings.warnings = ["persistence.type: sqlite is not used"] if settings.persistence.type == "sqlite" else []
    return settings


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the KEY=VALUE lines of a .env file; a missing file is an empty one. Raises MissionError."""
    lines = _read(path, errors="replace").removeprefix("\ufeff").splitlines() if os.path.isfile(path) else []
    return {m[1]: m[2] or m[3] or m[4] or "" for m in map(ASSIGNMENT.fullmatch, lines) if m}


def settings_template() -> str:
    """Return the text of a settings file that explains every key and changes no default."""
    head = "# Settings of CCO. Every key shows its default; remove the # in front of a key to change it."
    return "\n".join([head, *_keys(_schema("config"), "")]) + "\n"


def _keys(schema: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, entry in schema["properties"].items():
        text = entry["description"] + (f" ({_expected(entry)})" if "enum" in entry else "")
        yield from [] if indent else [""]
        yield from textwrap.wrap(text, width=110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if "properties" in entry:
            yield from [f"{indent}{key}:", *_keys(entry, f"{indent}  ")]
        else:
            yield f"{indent}#{key}: {json.dumps(entry['default'])}"


def _layers(mission: Mission | None, path: Path | None, env: Mapping[str, str]) -> Iterator[Layer]:
    """Yield what the user set, weakest first: the document, the place of the settings in it, the settings."""
    if path:
        document = _parse(_read(path), path)
        yield document, (), document.value
    if mission:
        document = _parse(mission.text, mission.path)
        yield document, (*document.root, "settings"), mission.settings
    schema = _schema("config")
    sections = tuple(f"{section}_" for section in schema["properties"])
    for name in sorted(name for name in env if name.startswith("CCO_") and env[name]):
        key = name.removeprefix("CCO_").lower()
        if f"{key}_".startswith(sections):
            yield Document(name), (), _from_variable(key, env[name], schema)


def _from_variable(key: str, text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a variable sets: claude_code_model is {"claude_code": {"model": text}}."""
    for section, part in schema["properties"].items():
        if "properties" in part and key.startswith(f"{section}_"):
            return {section: _from_variable(key.removeprefix(f"{section}_"), text, part)}
    return {key: _typed(text, schema["properties"].get(key, {}))}


def _fill_in(document: Document, where: Where, value: Any, schema: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    """Return the settings with every `${NAME}` replaced; one that is not set is null where the schema allows it."""
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return {key: _fill_in(document, (*where, key), one, parts.get(key, {}), env) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill_in(document, (*where, n), one, schema.get("items", {}), env) for n, one in enumerate(value)]
    if not isinstance(value, str) or schema.get("literal"):  # literal: a `${NAME}` in it is the shell's
        return value
    missing = [name for name in VARIABLE.findall(value) if not env.get(name)]
    if not missing:
        return VARIABLE.sub(lambda match: env[match[1]], value)
    if "null" not in _types(schema):
        document.complain(where, f"found ${{{missing[0]}}}, which is not set; set it in the environment or in .env")
    return None


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the text of a variable as the number, switch or list that it would be in YAML, if the schema wants one."""
    from jsonschema import Draft202012Validator

    wanted = Draft202012Validator({"type": [name for name in _types(schema) if name != "string"]})
    try:
        document = _parse(text, Path("variable"))
    except MissionError:
        return text
    return document.value if wanted.is_valid(document.value) and not document.problems else text


def _attributes(schema: Mapping[str, Any], layers: Sequence[Any], env: Mapping[str, str]) -> Any:
    """Merge layers, the weakest first, to objects with an attribute a key: durations in seconds, sizes in bytes."""
    if "properties" in schema:
        given = {key: [layer[key] for layer in layers if layer and key in layer] for key in schema["properties"]}
        return Settings(**{key: _attributes(part, given[key], env) for key, part in schema["properties"].items()})
    if "array" in _types(schema):
        # A list replaces a weaker one; like a section, null sets nothing.
        value = next((layer for layer in reversed(layers) if layer is not None), schema["default"])
        return [_attributes(schema["items"], [one], env) for one in value]
    value = layers[-1] if layers else _fill_in(Document(""), (), schema.get("default"), schema, env)
    return FORMATS[schema["format"]][0](value) if "format" in schema and value is not None else value


@dataclass
class Document:
    """One parsed file: its value, where each part of it stands, and what is wrong with it."""

    name: str  # as it appears in front of problems
    text: str = ""
    construct: Callable[[Any], Any] = str  # makes a value of a scalar YAML node
    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    problems: dict[Where, tuple[int, str]] = field(default_factory=dict)  # line, message

    @property
    def root(self) -> Where:
        """The place of the mission in a mission file."""
        return ("mission",) if isinstance(self.value, dict) and "mission" in self.value else ()

    def complain(self, where: Where, message: str) -> None:
        """Note what is wrong at a place; the first complaint about a place stands."""
        above = (where[:length] for length in range(len(where), -1, -1))  # what is missing has the line of its parent
        line = next((self.lines[place] for place in above if place in self.lines), 0)
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:60]}" for part in where)
        self.problems.setdefault(where, (line, f"{path.lstrip('.') or 'the file'}: {message}"))

    def report(self) -> list[str]:
        """Return one line for each problem, in the order of the file."""
        problems = sorted(self.problems.values())
        return [f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}" for line, text in problems]

    def build(self, node: Any, where: Where = ()) -> Any:
        """Make values of a YAML node and note their lines; bounded, so that aliases cannot explode."""
        self.lines.setdefault(where, node.start_mark.line + 1)
        if len(self.lines) > MAX_NODES:
            raise MissionError([f"{self.name}: found more than {MAX_NODES} values, expected fewer"])
        if tag := TAG.match(self.text, node.start_mark.index):  # `check: ! grep x` would lose its `!`
            return self.complain(where, f"found the YAML tag {tag[1]}, expected a plain value; quote the text")
        if node.id == "sequence":
            return [self.build(item, (*where, n)) for n, item in enumerate(node.value)]
        if node.id == "scalar":
            return self._scalar(node, where)
        value: dict[str, Any] = {}
        for key, child in node.value:
            name, line = str(key.value) if key.id == "scalar" else "?", key.start_mark.line + 1
            place = (*where, name)
            if name in value:
                self.complain(place, f"found again in line {line}; remove one")
            else:
                self.lines[place] = line
                value[name] = self.build(child, place)
        return value

    def _scalar(self, node: Any, where: Where) -> Any:
        try:
            value = self.construct(node)
            value = float("inf") if value != value else value  # a NaN is neither above nor below any bound
        except (ValueError, LookupError, AttributeError):
            return self.complain(where, "found a date or number that does not exist; if it is text, quote it")
        if not isinstance(value, str):
            return value
        if "\0" in value:
            self.complain(where, "found the character U+0000, expected text; remove it")
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two escapes of JSON may be one


def _parse(text: str, path: Path) -> Document:
    """Parse YAML, of which JSON is a part. Raises MissionError and nothing else."""
    import yaml

    document = Document(str(path), text.removeprefix("\ufeff"))
    if path.suffix.lower() == ".json":
        document.text = document.text.replace("\t", " ")  # JSON has tabs only where YAML insists on spaces
    try:
        loader = yaml.SafeLoader(document.text)
        node = loader.get_single_node()
        document.construct = loader.construct_object
        document.value = document.build(node) if node else None
    except RecursionError:
        raise MissionError([f"{path}: found too many levels, expected fewer"]) from None
    except yaml.reader.ReaderError as error:
        number = document.text.count("\n", 0, error.position) + 1
        raise MissionError([f"{path}:{number}: found the character U+{error.character:04X}; remove it"]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or loader.get_mark()
        message = f"{path}:{mark.line + 1}: found no valid YAML: {error.problem} in column {mark.column + 1}"
        line = [*document.text.splitlines(), ""][mark.line]
        if written := re.match(r"[ -]*([\w-]+): +\S", line):
            message += f"; quote the text of `{written[1]}`: it has `: ` or another sign of YAML in it"
        raise MissionError([message]) from error
    return document


def _read(path: Path, errors: str = "strict") -> str:
    """Read a regular file of at most MAX_BYTES; never wait for a pipe or device. Raises MissionError."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise MissionError([f"{path}: found a folder, pipe or device, expected a file; name the file itself"])
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise MissionError([f"{path}: found more than {MAX_BYTES} bytes; move long text into a file, name that"])
        return data.decode(errors=errors)
    except FileNotFoundError as error:
        raise MissionError([f"{path}: no such file; `make init` writes one"]) from error
    except (OSError, ValueError) as error:
        raise MissionError([f"{path}: cannot be read ({error}), expected a readable file of UTF-8"]) from error


def _quantity(units: Mapping[str, int], value: str | float) -> float:
    """Return the seconds or bytes in `90`, `300s`, `2h` or `100KB`. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)\s*", str(value).upper())
    quantity = float(match[1]) * units[match[2]] if match and match[2] in units else 0.0
    if not 0 < quantity <= MAX_NUMBER:
        raise ValueError(f"{value!r} is not a number above 0 with one of the units")
    return quantity


parse_duration = functools.partial(_quantity, TIME_UNITS)
FORMATS: dict[str, tuple[Callable[[Any], Any], str]] = {  # `format` in the schemas: how to read it, what it expects
    "duration": (parse_duration, "a duration above 0, such as 90 (seconds), 300s, 10m or 2h"),
    "size": (lambda value: math.ceil(_quantity(SIZE_UNITS, value)), "a size such as 512 (bytes), 100KB, 5MB or 1GB"),
    "share": (
        lambda value: float(value.strip("%")) / 100 if isinstance(value, str) else value,
        "a number from 0.1 to 1, or a percentage such as 60%",
    ),
    "count": (lambda value: None if value == "unlimited" else value, "a whole number from 1, or unlimited"),
    "level": (lambda value: LEVELS[LEVELS.index(str(value).upper())], f"one of {', '.join(LEVELS)}"),
}


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / "schema" / f"{name}.json").read_text(encoding="utf-8")))


def _validate(document: Document, value: Any, schema: Mapping[str, Any], root: Where = ()) -> None:
    """Complain about everything in `value`, which stands at `root`, that the schema does not allow."""
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())
    for name, (read, _) in FORMATS.items():  # null is for the type to refuse
        checker.checks(name, raises=ValueError)(lambda value, read=read: value is None or read(value) != "")
    for error in Draft202012Validator(schema, format_checker=checker).iter_errors(value):
        for where, message in _explain(error):
            document.complain((*root, *where), message)


def _explain(error: Any) -> list[tuple[Where, str]]:
    """Return each place that a jsonschema error is about, and what is wrong there."""
    where, schema, value = tuple(error.absolute_path), error.schema, error.instance
    fields, expected = schema.get("properties", {}), _expected(schema)
    if error.validator == "required":
        missing = {name: f"missing, expected {_expected(fields[name])}; add it" for name in error.validator_value}
        return [((*where, name), text) for name, text in missing.items() if name not in value]
    if error.validator == "additionalProperties":
        names = f", expected one of {', '.join(fields)}"
        return [((*where, name), f"unknown{_nearest(name, fields) or names}") for name in value if name not in fields]
    shown = json.dumps(value, default=str, ensure_ascii=False)[:80]
    shown = "something that is not shown" if schema.get("writeOnly") else shown
    quote = "; if it is text, quote it" * ("string" in _types(schema) and not isinstance(value, str))
    return [(where, f"found {shown}, expected {expected}{quote}{_nearest(value, schema.get('enum', ()))}")]


def _nearest(name: object, names: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(name).lower(), filter(None, names), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _expected(schema: Mapping[str, Any]) -> str:
    """Say what a schema wants."""
    if "expected" in schema:
        return str(schema["expected"])
    if "format" in schema:
        return FORMATS[schema["format"]][1]
    if "enum" in schema:
        return f"one of {', '.join(filter(None, schema['enum']))}"
    kind = " or ".join(_types(schema))
    return f"{kind} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else kind


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)
