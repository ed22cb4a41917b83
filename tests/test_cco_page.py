"""The report as Markdown and HTML: what it tells, and that nobody's text becomes markup in it."""

from __future__ import annotations

import json
import re
import shlex
import stat
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import log
import page
import paper
import progress
from mission import Mission, parse

FIRST, COMMIT, DIGEST = "f" * 40, "0123456789abcdef0123456789abcdef01234567", "ab12" * 16
SECRET = "s3cr3t-value-0001"
HOSTILE = (
    "</td></title></style><script>alert(1)</script>|`x` ``y ![i](http://x.y/z) [a](javascript:b) <img src=x onerror=1> "
    "<http://x.y> https://x.y/z www.x.y a@b.c :octocat: **b** _i_ ~~s~~ &lt; $m$ {{x}} a\\|b 'q' \"r\" --> \\\n\n# h\n"
    "\n- l\n```\n~~~\n| a | b |\n| --- | --- |\n[r]: http://x.y\n    code\n\x1b]0;t\x07\x1b[31mred\x1b[0m \u202e"
    + SECRET
)
SPECIAL = set("\\`*_{}[]<>&@!|#~$^")  # what has to be escaped, or in code
TAGS = re.compile(
    "html|head|meta|title|style|body|main|h1|h2|p|div|table|thead|tbody|tr|th|td|code|pre|br|span"
    "|svg|defs|g|rect|path|circle|text|use"
)


def mission_of(*ids: str, **more: Any) -> Mission:
    criteria = [{"id": id, "criteria": f"{id} works", "check": f"make {id}"} for id in ids]
    document = {"title": "A mission", "repository": "/a/project", "definition_of_done": criteria, **more}
    return parse(json.dumps(document), Path("/a/project/api.json"))


def begin(*ids: str) -> tuple[dict[str, Any], Mission]:
    """A mission as it is before its first session."""
    mission = mission_of(*ids)
    memory = progress.begin(mission, "cco/api", FIRST, 0, "cc")
    progress.adopt(memory, mission)
    return memory, mission


def proof(**more: Any) -> dict[str, Any]:
    at = "2026-11-21T09:50:31+00:00"
    return {
        "code": 0,
        "seconds": 12.5,
        "digest": DIGEST,
        "commit": COMMIT,
        "where": "checkout",
        "runs": 2,
        "at": at,
        **more,
    }


def session(iteration: int, word: str = "a", **more: Any) -> dict[str, Any]:
    entry = {"iteration": iteration, "focus": word, "strategy": word, "source": word, "kind": word, "turns": 7}
    entry |= {
        "cost_usd": 0.25,
        "manager_usd": 0.01,
        "seconds": 90.0,
        "commit": "c0ffee000000",
        "met": 1,
        "report": word,
    }
    return {**entry, "claims": [2, 1], "tampered": 0, "broke": [word], **more}


def rich(word: str = "word") -> tuple[dict[str, Any], Mission]:
    """A finished mission in which everything has happened, with this text wherever a text can be."""
    memory, plain = begin("a", "b", "c")
    whole = [
        SimpleNamespace(**{**vars(c), "id": f"{c.id} {word}", "check": word if c.id == "a" else None, "guard": False})
        for c in plain.criteria
    ]
    mission = replace(plain, title=word, criteria=tuple(whole), setup=word)
    progress.adopt(memory, mission)
    a, b, c = memory["criteria"].values()
    for known in (a, b, c):
        known.update(criteria=word, verdict="met", flaky=True, unconfirmed=True, seen_red=False)
    a.update(proof=proof(), changes=[[0, "u"], [2, "m"], [3, "r"], [4, "m"]])
    a["regressions"] = [{"iteration": 3, "commit": COMMIT, "session": word, "focus": word}]
    said = {"by": word, "at": "2026-11-21T09:50:31+00:00", "commit": COMMIT, "reason": word}
    b["evidence"] = {"kind": "judged", "quotes": [{"path": word, "blob": word, "text": word}] * 2, **said}
    c["evidence"] = {"kind": "accepted", "quotes": [], **said}
    memory.update(iterations=5, current_phase="completed", commit=COMMIT, branch=word, start_branch=word)
    memory["history"] = [session(i, word, tampered=int(i == 3)) for i in range(1, 6)]
    memory["tampering"] = [{"iteration": 3, "path": word, "what": word, "kept": word}]
    memory["metrics"].update(
        tampered=1, claims_made=10, claims_false=5, waits=3, wait_seconds=7260, estimated_cost=1.25
    )
    memory["best"] = {"commit": COMMIT, "met": 3, "iteration": 5, "returns": 4}
    setup = {"code": 0, "seconds": 3.5, "digest": "cd34" * 16}
    memory["confirmed"] = {"commit": COMMIT, "at": said["at"], "seconds": 48.2, "where": "checkout", "setup": setup}
    memory["left_out"] = [word]
    memory["mission"]["path"] = word
    return memory, mission


def tree(text: str) -> ET.Element:
    """The page as XML, which it is only when every element is closed and every character is escaped."""
    return ET.fromstring(text)


def shape(text: str) -> list[tuple[str, list[str]]]:
    """The elements of a page in their order, with the names of their attributes."""
    return [(element.tag, sorted(element.attrib)) for element in tree(text).iter()]


class Seen(HTMLParser):
    """The same, as a browser's tokenizer sees it."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, sorted(name.replace("viewbox", "viewBox") for name, _ in attrs)))


def without_fenced(text: str) -> str:
    return re.sub(r"^(`{3,})\n.*?\n\1$", "code", text, flags=re.S | re.M)


def without_code(text: str) -> str:
    """Markdown without fenced blocks, code spans, and characters that are escaped; `code` stands for code."""
    text = without_fenced(text)
    text = re.sub(r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)", "code", text)
    return re.sub(r"\\[^A-Za-z0-9\s]", "", text)


def skeleton(text: str) -> list[str]:
    """What is left of Markdown when only its structure is looked at: what a line is, and how many cells it has."""
    lines = without_code(text).splitlines()
    return [(re.match(r"#* ?", line) or [""])[0] + "|" * line.count("|") + "." * bool(line) for line in lines]


def both(memory: dict[str, Any], mission: Mission) -> list[str]:
    """The words of both formats, without markup and with one space between them."""
    page_words = " ".join(
        "".join(f"{text} " for text in tree(page.html(memory, mission)).find("body").itertext()).split()
    )
    markdown_words = re.sub(r"\\([^A-Za-z0-9\s])", r"\1", page.markdown(memory, mission))
    return [re.sub(r"[`|\s]+", " ", text) for text in (page_words, markdown_words)]


def told(text: str, memory: dict[str, Any], mission: Mission) -> bool:
    """Whether both formats say this."""
    found = [re.sub(r"\W+", " ", text).strip() in re.sub(r"\W+", " ", words) for words in both(memory, mission)]
    assert len(set(found)) == 1, f"only one of the formats says {text!r}"
    return found[0]


def squares(text: str) -> dict[str, str]:
    """The grid in the HTML: name of the row, and the letters of its cells in order."""
    letters = {state[0]: letter for letter, state in paper.STATES.items()}
    found = {}
    for row in tree(text).findall(".//svg[@role='img']/g"):
        cells = row.findall("use")
        assert [int(cell.attrib["x"]) for cell in cells] == [paper.PITCH * n for n in range(len(cells))]
        found[row.find("text").text] = "".join(letters[cell.attrib["href"][1:]] for cell in cells)
    return found


def signs(text: str) -> dict[str, str]:
    """The grid in the Markdown, as `squares`."""
    letters = {state[1]: letter for letter, state in paper.STATES.items()}
    _, *lines = text.split("## Iteration by iteration")[1].split("```")[1].strip("\n").split("\n\n")[0].splitlines()
    rows = (line.rsplit(None, 1) for line in lines)
    return {name: "".join(letters[sign] for sign in row) for name, row in rows}


# The whole in one sentence


def test_a_finished_mission_says_what_is_proven_where():
    memory, mission = begin("a", "b")
    for known in memory["criteria"].values():
        known.update(verdict="met", proof=proof())
    memory["current_phase"] = "completed"
    memory["confirmed"] = {"commit": COMMIT, "at": "2026-11-21T09:50:31+00:00", "seconds": 9, "where": "checkout"}
    assert told(f"✔ Done: all 2 criteria are proven on commit {COMMIT} in a clean checkout.", memory, mission)
    assert not told("No clean checkout was made", memory, mission)


def test_a_finished_mission_without_a_confirmation_claims_none():
    memory, mission = begin("a")
    memory["criteria"]["a"]["verdict"] = "met"
    memory.update(current_phase="completed", commit=COMMIT)
    assert told(f"Done: the only criterion is proven on commit {COMMIT}.", memory, mission)
    assert not told("in a clean checkout", memory, mission)


def test_what_a_model_or_a_person_said_is_not_called_proven():
    memory, mission = rich()
    words = "1 proven by checks in a clean checkout, 1 judged by a model, 1 accepted by a person"
    assert told(f"Done: all 3 criteria are met on commit {COMMIT}: {words}.", memory, mission)
    assert not told("criteria are proven", memory, mission)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "✘ Not done: 1 of 2 criteria are met. It is in phase validation."),
        (
            {"blocked": {"question": "Which port?"}},
            "Not done: 1 of 2 criteria are met. A person has to answer: Which port?",
        ),
        (
            {"current_phase": "waiting", "wait_until": 86400.0},
            "criteria are met. It waits until 1970-01-02 00:00:00 UTC.",
        ),
    ],
)
def test_an_unfinished_mission_says_how_far_it_is_and_what_it_waits_for(change, sentence):
    memory, mission = begin("a", "b")
    memory["criteria"]["a"]["verdict"] = "met"
    memory.update(change)
    assert told(sentence, memory, mission)


def test_met_in_all_is_not_done_before_it_is_confirmed():
    memory, mission = begin("a")
    memory["criteria"]["a"]["verdict"] = "met"
    assert told("Not done: 1 of 1 criteria are met, but they are not confirmed yet.", memory, mission)


def test_without_a_clean_checkout_it_says_so_and_what_that_means():
    memory, mission = rich()
    memory["confirmed"]["where"] = "tree"
    assert told("No clean checkout was made: the checks ran in the work tree only.", memory, mission)
    assert told("proven by checks in the work tree", memory, mission)
    memory, mission = begin("a")
    in_tree = SimpleNamespace(**{**vars(mission), "confirm": "tree"})
    assert told("No clean checkout was made: the checks ran in the work tree only.", memory, in_tree)


# Content


def test_both_formats_tell_the_same():
    words, others = both(*rich())
    for text in (words, others):
        for heading in re.findall(r'\("([A-Z][\w ,]+)", _', Path(page.__file__).read_text("utf-8")):
            assert heading in text
    # Signs and the grid are drawn in one and written in the other.
    facts = [set(re.findall(r"[\w$.:/-]*\w", text.split("Iteration by iteration")[0])) for text in (words, others)]
    assert facts[0] == facts[1]
    facts = [set(re.findall(r"[\w$.:/-]*\w", text.split("Regressions")[1])) for text in (words, others)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize(
    "fact",
    [
        f"word in a clean checkout, run 2 times, 2026-11-21 09:50:31 UTC, commit {COMMIT[:12]}",
        f"exit code 0, 12.5 s, output SHA-256 {DIGEST}",
        f"judged by word, 2026-11-21 09:50:31 UTC, commit {COMMIT[:12]}: word",
        "“word” in word, blob word",
        f"accepted by word, 2026-11-21 09:50:31 UTC, commit {COMMIT[:12]}: word",
        f"Commit {COMMIT} was confirmed in a clean checkout in 48.2 s",
        f"Setup word: exit code 0, 3.5 s, output SHA-256 {'cd34' * 16}",
        "a word its check was never red",
        "b word its check gave different verdicts on the same tree",
        "c word it passes in the work tree, but failed in a clean checkout",
        f"a word 3 {COMMIT[:12]} word word",
        "1 word word, by word word 7 $0.26 90 s c0ffee000000 1 0 word word",
        "cost $1.25",
        "waits 3, 2 h 1 min",
        "Claimed 10, true 5, false 5.",
        "4 2 1 1",
        "3 word word word",
        f"c word word 2026-11-21 09:50:31 UTC {COMMIT[:12]} word",
        "path and reason word",
        f"Commit {COMMIT} of iteration 5: 3 criteria met. Times returned to it: 4.",
        "git revert -m 1 <merge commit>",
        "git revert <commit>",
    ],
)
def test_a_full_report_tells(fact):
    assert told(fact, *rich())


def test_a_criterion_that_nobody_checks_by_command_is_not_blamed_for_never_being_red():
    memory, mission = rich()
    assert not told("b word its check was never red", memory, mission)


def test_a_guard_is_named_as_one_and_not_as_never_seen_red():
    memory, plain = begin("a")
    guards = tuple(SimpleNamespace(**{**vars(c), "guard": True}) for c in plain.criteria)
    memory["criteria"]["a"].update(verdict="met", seen_red=False)
    assert told("a a guard: it was green before the first session", memory, replace(plain, criteria=guards))
    assert not told("never red", memory, replace(plain, criteria=guards))


def test_a_new_mission_leaves_out_what_has_no_content_and_says_that_nobody_cheated():
    memory, mission = begin("a")
    text = page.markdown(memory, mission)
    headings = re.findall("^## (.*)", text, re.M)
    assert headings == [
        "Criteria",
        "Iteration by iteration",
        "Cost",
        "Claims",
        "Tampering",
        "Taking the work, and undoing it",
    ]
    assert re.findall("<h2>(.*)</h2>", page.html(memory, mission)) == headings
    assert told("None: no claim of the worker was found.", memory, mission)
    assert told("None: no change of the referee was found.", memory, mission)


# Commands


def test_the_commands_quote_branch_names_for_the_shell():
    memory, mission = begin("a")
    memory.update(branch="cco/$(x);y", start_branch="it's&me")
    commands = [block.text for block in tree(page.html(memory, mission)).iter("pre")]
    take, drop = (shlex.split(command) for command in commands[:2])
    assert take == ["git", "checkout", "it's&me", "&&", "git", "merge", "cco/$(x);y"]
    assert drop == ["git", "checkout", "it's&me", "&&", "git", "branch", "-D", "cco/$(x);y"]
    assert all(f"```\n{command}\n```" in page.markdown(memory, mission) for command in commands)


def test_without_a_branch_at_the_start_the_commands_name_none():
    memory, mission = begin("a")
    assert told("git checkout <your branch> && git branch -D cco/api", memory, mission)


# The grid

CHANGES = {"a": [[0, "u"], [2, "m"], [3, "r"], [4, "m"]], "b": [[1, "f"], [2, "t"], [2, "?"]], "c": []}


@pytest.fixture
def gridded() -> tuple[dict[str, Any], Mission]:
    memory, mission = begin(*CHANGES)
    for id, changes in CHANGES.items():
        memory["criteria"][id].update(changes=changes or [[9, "m"]])
    memory["iterations"] = 5
    memory["history"] = [session(1), session(2, tampered=2), session(4)]
    memory["tampering"] = [{"iteration": 5, "path": "x", "what": "new", "kept": ""}]
    return memory, mission


def test_the_grid_shows_the_last_change_until_each_iteration(gridded):
    expected = {"a": "uumrmm", "b": ".f????", "c": "......", "referee": ".-t.-t"}
    assert squares(page.html(*gridded)) == expected
    assert signs(page.markdown(*gridded)) == expected


def test_the_numbers_stand_above_their_columns(gridded):
    picture = tree(page.html(*gridded)).find(".//svg[@role='img']")
    left = int(picture.find("g").attrib["transform"].split("(")[1].split()[0])
    middles = {text.text: int(text.attrib["x"]) - left - paper.CELL // 2 for text in picture.findall("text")}
    assert middles == {"0": 0, "5": 5 * paper.PITCH}


def test_every_cell_says_what_it_is(gridded):
    titles = [title.text for title in tree(page.html(*gridded)).findall(".//use/title")]
    assert len(titles) == 4 * 6
    assert titles[3] == "a, iteration 3: regression"
    assert titles[-1] == "referee, iteration 5: tampered"


def test_the_picture_has_a_role_a_title_and_a_legend_of_shapes_that_differ(gridded):
    root = tree(page.html(*gridded))
    (picture,) = root.findall(".//svg[@role='img']")
    assert picture.find("title").text == "The verdict of each criterion at each iteration"
    shapes = {
        g.attrib["id"]: re.sub(r' (id|class)="\w+"', "", ET.tostring(g, "unicode")) for g in root.findall(".//defs/g")
    }
    assert len(set(shapes.values())) == len(shapes) == len(paper.STATES)
    assert {use.attrib["href"][1:] for use in root.iter("use")} <= set(shapes)
    legend = "".join(root.find(".//p[@class='legend']").itertext())
    for _, sign, meaning, _ in paper.STATES.values():
        assert meaning in legend and f"\n{sign} {meaning}\n" in page.markdown(*gridded)


@pytest.mark.parametrize(("iterations", "first"), [(119, 0), (120, 0), (121, 2), (500, 381)])
def test_a_long_mission_shows_its_last_iterations_and_says_so(iterations, first):
    memory, mission = begin("a")
    memory["iterations"] = iterations
    memory["criteria"]["a"]["changes"] = [[0, "u"], [iterations, "m"]]
    expected = "u" * (iterations - first) + "m"
    assert squares(page.html(memory, mission))["a"] == signs(page.markdown(memory, mission))["a"] == expected
    ruler = page.markdown(memory, mission).split("```\n")[1].splitlines()
    number = str(iterations // 5 * 5)
    assert ruler[0].index(number) - ruler[1].index("□") == int(number) - first
    assert told(f"Only the last 120 of {iterations} iterations are shown.", memory, mission) == (iterations > 120)


def test_two_hundred_criteria_over_two_hundred_iterations_stay_fast_and_small():
    memory, mission = begin(*(f"criterion-number-{n}" for n in range(200)))
    memory["iterations"] = 200
    memory["history"] = [session(i, "words " * 20) for i in range(1, 201)]
    for known in memory["criteria"].values():
        known.update(proof=proof(), changes=[[i, "mu"[i % 2]] for i in range(0, 200, 4)])
    began = time.monotonic()
    texts = page.html(memory, mission), page.markdown(memory, mission)
    assert time.monotonic() - began < 10
    assert all(len(text.encode()) < 3_000_000 for text in texts)


# Hostile texts


def test_no_text_becomes_an_element_or_an_attribute():
    text = page.html(*rich(HOSTILE))
    assert shape(text) == shape(page.html(*rich()))
    assert all(TAGS.fullmatch(tag) for tag, _ in shape(text))
    assert Seen(text).found == shape(text)


def test_no_element_loads_or_runs_anything():
    for element in tree(page.html(*rich(HOSTILE))).iter():
        assert not {"src", "style", "srcset", "action"} & set(element.attrib)
        assert not [name for name in element.attrib if name.startswith("on")]
        assert element.attrib.get("href", "#")[0] == "#"
    assert not re.search(r"url\(|@import", paper.STYLE)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.html(*rich())


def test_no_text_becomes_markup_in_markdown():
    text = page.markdown(*rich(HOSTILE))
    assert skeleton(text) == skeleton(page.markdown(*rich()))
    for line in without_code(text).splitlines():
        words = re.sub(r"^#+ ", "", line).replace("|", "")
        assert not set(words) & SPECIAL, line
        assert not re.search(r"://|www\.|:octocat:", words), line


@pytest.mark.parametrize(
    "word", ["`", "``", " ", "\n", "|", "\\", "\\|", "`|`", "``` ```", "~~~", "---", "1. x", "=", "#"]
)
def test_short_hostile_texts_change_no_structure(word):
    assert shape(page.html(*rich(word))) is not None
    cells = [line.count("|") for line in skeleton(page.markdown(*rich(word))) if "|" in line]
    assert cells == [line.count("|") for line in skeleton(page.markdown(*rich())) if "|" in line]


@pytest.mark.parametrize("word", [HOSTILE, "a | b", "grep 'a\\|b'", "`|`", "\\", "||"])
def test_no_bar_in_a_text_begins_a_cell(word):
    def bars(text: str) -> list[int]:
        return [
            len(re.findall(r"(?<!\\)\|", line)) for line in without_fenced(text).splitlines() if line.startswith("| ")
        ]

    assert bars(page.markdown(*rich(word))) == bars(page.markdown(*rich()))


def test_no_secret_and_no_control_character_is_written(fresh_mask):
    log.know_value(SECRET)
    for text in (page.html(*rich(HOSTILE)), page.markdown(*rich(HOSTILE))):
        assert SECRET not in text and log.MASK in text.replace("\\", "")
        assert not log.CONTROL.search(text)


def test_a_name_beside_the_grid_is_masked_before_it_is_cut(fresh_mask):
    log.know_value(SECRET)
    memory, mission = rich("x" * (paper.NAME - 10) + SECRET)
    assert SECRET[:6] not in page.html(memory, mission) + page.markdown(memory, mission)


# Files


def test_both_files_are_written_for_their_owner_only(tmp_path):
    memory, mission = rich()
    paths = page.write(tmp_path / ".cco", memory, mission)
    reports = tmp_path / ".cco" / "reports"
    assert paths == (reports / "api.md", reports / "api.html")
    assert [path.read_text("utf-8") for path in paths] == [page.markdown(memory, mission), page.html(memory, mission)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    assert stat.S_IMODE(reports.stat().st_mode) == 0o700


def test_a_report_is_replaced_and_nothing_else_is_left_in_its_folder(tmp_path):
    memory, mission = begin("a")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "api.md").write_text("old")
    page.write(tmp_path, memory, mission)
    page.write(tmp_path, memory, mission)
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["api.html", "api.md"]
    assert stat.S_IMODE((tmp_path / "reports" / "api.md").stat().st_mode) == 0o600


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    memory, mission = begin("a")
    markdown_file, _ = page.write(tmp_path, memory, mission)
    before = markdown_file.read_text("utf-8")
    memory["iterations"] = 9

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(page.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        page.write(tmp_path, memory, mission)
    assert markdown_file.read_text("utf-8") == before
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["api.html", "api.md"]
