"""The documents: their tables agree with schemas and command line, their commands and links exist.

python tests/test_cco_docs.py     writes the generated tables of docs/reference.md anew
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import cco  # noqa: E402
import mission  # noqa: E402
import proc  # noqa: E402
import repo  # noqa: E402
import report  # noqa: E402
import state  # noqa: E402

REFERENCE = KIT / "docs" / "reference.md"
DOCUMENTS = [KIT / "README.md", *sorted((KIT / "docs").glob("*.md"))]


def schema(name: str) -> dict[str, Any]:
    return json.loads((KIT / "schema" / f"{name}.json").read_text("utf-8"))


def entries(part: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key of a schema with its path, outer ones first."""
    for key, entry in part.get("properties", {}).items():
        yield path + key, entry
        yield from entries(entry, f"{path}{key}.")
        yield from entries(entry.get("items", {}), f"{path}{key}[].")


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    cells = (tuple(escaped(cell) for cell in row) for row in rows)
    lines = ["| " + " | ".join(row) + " |" for row in (tuple(head.split(", ")), *cells)]
    return "\n".join([lines[0], "|---" * len(head.split(", ")) + "|", *lines[1:]])


def escaped(text: str) -> str:
    """Return a text for a cell of a table; what stands between backticks is code."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def meaning(entry: Mapping[str, Any]) -> str:
    chosen = [json.dumps(one).strip('"') for one in entry.get("enum", []) if one is not None]
    return entry["description"] + (f" One of `{'`, `'.join(chosen)}`." if len(chosen) > 1 else "")


def default(entry: Mapping[str, Any]) -> str:
    return f"`{json.dumps(entry['default']).strip(chr(34))}`" if "default" in entry else ""


def usage(name: str, command: Any) -> tuple[str, str]:
    """Return a row of the table of commands, from the command line itself."""
    shown = []
    for action in command._actions[1:]:  # the first is --help
        option = " ".join(filter(None, (*action.option_strings, "" if action.nargs == 0 else action.metavar)))
        shown.append(option if action.required else f"[{option}]")
    return f"`{' '.join([name, *shown])}`", command.description


def tables() -> dict[str, str]:
    """Return the generated tables of the reference, by the heading that they stand below."""
    fields = schema("mission")["$defs"]
    of_mission = [(f"`{name}`", meaning(one), default(one)) for name, one in entries(fields["mission"])]
    of_criterion = [(f"`{name}`", meaning(one), default(one)) for name, one in entries(fields["criterion"])]
    settings = [
        (f"`{name}`", default(one), meaning(one)) for name, one in entries(schema("config")) if "properties" not in one
    ]
    (commands,) = (action for action in cco.parser()._actions if isinstance(action.choices, dict))
    return {
        "## Mission fields": table("field, meaning, default", of_mission),
        "## Criterion fields": table("field, meaning, default", of_criterion),
        "## Settings": table("key, default, meaning", settings),
        "## Commands": table("command, what it does", [usage(*one) for one in commands.choices.items()]),
    }


def table_below(heading: str, text: str) -> re.Match[str]:
    """Return the first table below a heading of the reference."""
    found = re.search(rf"(?<=\n){heading}\n(?:(?!## |\|).*\n)*((?:\|.*\n)+)", text)
    assert found, f"docs/reference.md has no table below {heading!r}"
    return found


@pytest.mark.parametrize("heading", ["## Mission fields", "## Criterion fields", "## Settings", "## Commands"])
def test_the_reference_agrees_with_schemas_and_command_line(heading):
    written = table_below(heading, REFERENCE.read_text("utf-8"))[1].strip()
    assert written == tables()[heading], "write it anew: python tests/test_cco_docs.py"


def test_the_reference_names_every_exit_code_event_verdict_and_key(tmp_path):
    text = REFERENCE.read_text("utf-8")
    codes = {proc.DONE, proc.ERROR, proc.USAGE, proc.USER, proc.CANNOT, proc.LIMIT, proc.LATER}
    rows = re.findall(r"^\| (\d+(?:, \d+)*) \|", table_below("## Exit codes", text)[1], re.M)
    assert {int(code) for row in rows for code in row.split(", ")} == {*codes, 130, 131, 143}
    events = schema("config")["properties"]["notify"]["items"]["properties"]["events"]["items"]["enum"]
    assert re.findall(r"^\| `(\w+)`", table_below("## Notifications", text)[1], re.M) == events
    shown = report.to_json(tmp_path, state.State("api", "", "", ""))
    assert set(re.findall(r"`(\w+)`", table_below("## status --json", text)[1])) >= set(shown)
    assert all(f"`{trailer}`" in text for trailer in (repo.MISSION, repo.ITERATION))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_link_make_target_and_file_in_a_document_exists(path):
    text = path.read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):.* ## ", (KIT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"(?:`|^ {4}.*\b)make (?:-C cco )?([a-z]+)\b", text, re.M)) <= targets
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (path.parent / link).exists(), link
    for name in re.findall(r"`((?:extras|prompts|schema|missions|tests|docs|deploy)/[\w./-]+)`", text):
        assert (KIT / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (KIT / name).exists() or list(KIT.glob(f"*/{name}")), name


def test_the_readme_is_short_and_its_missions_are_valid(tmp_path):
    text = (KIT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 200
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.S)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        if "definition_of_done" in block:
            assert mission.load(file).criteria
        else:
            (tmp_path / ".git").mkdir(exist_ok=True)
            mission.load_settings(None, file, {})


def test_the_house_is_described_as_it_stands():
    text = (KIT / "docs" / "architecture.md").read_text("utf-8")
    described = re.findall(r"^\| `(\w+\.py)` \|", text, re.M)
    assert sorted(described) == sorted(path.name for path in KIT.glob("*.py"))
    below: dict[str, list[str]] = {name: described[number + 1 :] for number, name in enumerate(described)}
    for name in described:
        source = (KIT / name).read_text("utf-8")
        imported = {f"{one}.py" for one in re.findall(r"^(?:from|import) (\w+)", source, re.M)} & set(described)
        assert imported <= set(below[name]), f"{name} imports from above it: {imported - set(below[name])}"


if __name__ == "__main__":
    reference = REFERENCE.read_text("utf-8")
    for title, made in tables().items():
        start, end = table_below(title, reference).span(1)
        reference = f"{reference[:start]}{made}\n{reference[end:]}"
    REFERENCE.write_text(reference, "utf-8")
