"""Status, report and question: what they say, and that nobody's text becomes markup in them."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT

import log
import proc
import report
import state as states
from mission import Mission, parse
from proc import Stop
from state import Iteration, Session, State, Verdict, Wait

COMMIT = "0123456789abcdef0123456789abcdef01234567"
AT = "2026-11-21T09:50:31+00:00"
SECRET = "s3cr3t-value-0001"
HOSTILE = (
    "</td></title></style><script>alert(1)</script>|`x` ``y ![i](http://x.y/z) [a](javascript:b) <img src=x onerror=1> "
    "<http://x.y> https://x.y/z|jq www.x.y a@b.c :octocat: #12 **b** _i_ ~~s~~ &lt; $m$ %s {0} a\\|b 'q' \"r\" --> \\\n"
    "\n# h\n\n- l\n```\n~~~\n| a | b |\n| --- | --- |\n[r]: http://x.y\n    code\n\x1b]0;t\x07\x1b[31mred\x1b[0m \u202e"
    + SECRET
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the `.cco` folder of a project."""
    (tmp_path / "a project" / ".cco").mkdir(parents=True)
    return tmp_path / "a project" / ".cco"


def mission_of(folder: Path, name: str, *ids: str, **more: Any) -> Mission:
    criteria = [{"id": id, "criteria": f"{id} works", "check": f"make {id}"} for id in ids]
    document = {"id": name, "title": "A mission", "repository": str(folder.parent), "definition_of_done": criteria}
    return parse(json.dumps({**document, **more}), folder.parent / f"{name}.json")


def begin(folder: Path, name: str = "api", *verdicts: str, **more: Any) -> tuple[State, Mission]:
    """Return a mission with criteria c1, c2, ... of these verdicts, saved as the loop does it."""
    verdicts = verdicts or ("met", "unmet")
    mission = mission_of(folder, name, *(f"c{number}" for number, _ in enumerate(verdicts, 1)))
    state = State(mission.id, str(mission.repository), str(mission.path), mission.text)
    state.adopt(mission)
    state.branch, state.start_branch, state.commit = f"cco/{name}", "main", COMMIT
    pairs = zip(state.criteria, verdicts, strict=True)
    state.record_results({id: Verdict(id, verdict, 1, failure="x", runs=1) for id, verdict in pairs})
    return change(folder, state, **more), mission


def change(folder: Path, state: State, **more: Any) -> State:
    """Set attributes of a state and save it."""
    for name, value in more.items():
        setattr(state, name, value)
    states.save(folder / f"{state.mission_id}.json", state)
    return state


def rich(folder: Path, word: str = "word") -> tuple[State, Mission]:
    """Return a mission in which everything has happened, with this text wherever a text can be."""
    mission = mission_of(folder, "api", "a", "b", "c")
    criteria = tuple(replace(criterion, check=word) for criterion in mission.criteria)
    mission = replace(mission, title=word, setup=word, criteria=criteria)
    state = State(mission.id, str(mission.repository), "", mission.text)
    state.adopt(mission)
    here = {"commit": COMMIT, "at": AT}
    checked = {"where": "checkout", **here, "code": 0, "seconds": 12.5, "digest": "ab" * 32, "runs": 2}
    judged = {"where": "judge", **here, "by": word, "reason": word}
    judged["quotes"] = [{"path": word, "text": word, "blob": word}]
    proofs = (checked, judged, {**judged, "where": "user", "quotes": []})
    for record, proof in zip(state.criteria.values(), proofs, strict=True):
        record.criteria, record.verdict, record.flaky, record.fails_in_clean_checkout = word, "met", True, True
        record.proof, record.stalls = proof, 4
    state.branch, state.start_branch, state.base_commit, state.commit = word, word, "f" * 40, COMMIT
    state.iterations, state.current_phase = 5, "completed"
    for number in range(1, 6):
        entry = Iteration(number, word, word, word, word, COMMIT[:12], word, {"a": "unmet"}, ["a"])
        entry.met, entry.cost_usd, entry.manager_usd, entry.seconds = 2, 0.25, 0.01, 90.0
        entry.false_claims, entry.report = ["a"], word
        state.history.append(entry)
    state.tampering = [{"iteration": 3, "path": word, "what": word, "kept": word}]
    state.totals |= {"tampered": 1, "estimated_cost": 1.25}
    state.confirmed = {"commit": COMMIT, "where": "checkout", "at": AT, "seconds": 48.2, "setup": {"code": 0}}
    state.not_committed = {word: word}
    return state, mission


def shown(folder: Path, session: str | None = None) -> str:
    return report.status(folder, session, as_json=False)


def as_json(folder: Path, session: str | None = None) -> Any:
    return json.loads(report.status(folder, session, as_json=True))


def test_the_json_has_the_keys_of_the_contract(folder):
    state, _ = begin(folder, "api", "met", "timeout", iterations=4, current_phase="planning")
    broke = Iteration(3, "c1", commit=COMMIT[:12], session_id="s", changed={"c2": "timeout"}, broke=["c2"])
    wait, blocked = Wait(1.0, 1893456000.5, "limit", "it"), {"question": "Which port?", "seen": ""}
    change(folder, state, history=[*state.history, broke], wait=wait, blocked=blocked)
    shown = as_json(folder)
    wanted = {"mission": "api", "session_id": state.session_id, "phase": "planning", "iterations": 4, "cost_usd": 0}
    wanted |= {"wait_until": 1893456000.5, "blocked": "Which port?", "tampering": []}
    wanted |= {"commit": COMMIT, "branch": "cco/api"}
    assert {key: shown[key] for key in wanted} == wanted
    keys = ("id", "criteria", "priority", "verdict", "regressions", "stalls")
    regression = {"iteration": 3, "commit": COMMIT[:12], "session": "s", "focus": "c1"}
    assert [tuple(criterion[key] for key in keys) for criterion in shown["criteria"]] == [
        ("c1", "c1 works", "medium", "met", [], 0),
        ("c2", "c2 works", "medium", "timeout", [regression], 0),
    ]


def test_one_mission_is_an_object_several_are_a_list_and_a_line_each_the_one_saved_last_at_the_end(folder):
    assert (as_json(folder), shown(folder)) == ([], "no mission was started here yet")
    with pytest.raises(Stop, match="no mission was started here yet"):
        report.status(None, None, as_json=False)
    begin(folder, "api")
    assert as_json(folder)["mission"] == "api"
    begin(folder, "web")
    os.utime(folder / "api.json", (time.time() + 60,) * 2)
    assert [one["mission"] for one in as_json(folder)] == ["web", "api"]
    line, other = shown(folder).splitlines()
    assert line == "web: validation, 1/2 met, iteration 0, $0.00; stopped: start it again to go on"
    assert other.startswith("api: ")


def test_a_name_may_be_a_beginning_a_whole_one_wins_and_an_unknown_one_is_answered_with_those_there_are(folder):
    begin(folder, "api", session_id="7f3c2a1e-0b5d-4c6e-8f90-112233445566")
    begin(folder, "api-2", session_id="00c0ffee-0b5d-4c6e-8f90-112233445566")
    for name, mission in {"api": "api", "api-": "api-2", "7f3": "api", "00c0ffee": "api-2"}.items():
        assert as_json(folder, name)["mission"] == mission
    assert shown(folder, "ap").count("branch cco/api") == 2
    with pytest.raises(Stop, match="no mission or session begins with 'docs'; there are: api, api-2") as raised:
        shown(folder, "docs")
    assert raised.value.code == proc.USAGE


def test_a_single_mission_is_shown_with_its_criteria(folder):
    state, _ = begin(folder, "api", "met", "unmet", "unjudged")
    state.criteria["c1"].seen_failing = True
    state.history.append(Iteration(3, "c1", commit=COMMIT[:12], changed={"c2": "unmet"}, broke=["c2"]))
    change(folder, state)
    line, table, remark, place = shown(folder).split("\n\n")
    assert [row.split() for row in table.splitlines()] == [
        ["id", "verdict", "priority", "criterion"],
        ["[x]", "c1", "met", "medium", "c1", "works"],
        ["[", "]", "c2", "unmet", "medium", "c2", "works"],
        ["[?]", "c3", "unjudged", "medium", "c3", "works"],
    ]
    assert remark == f"c2: broken in iteration 3, commit {COMMIT[:12]}, while working on c1"
    assert place == f"branch cco/api, commit {COMMIT[:12]}, $0.0000 so far"


def why(folder: Path, state: State, **more: Any) -> str:
    return report.reason(folder, change(folder, state, **more))


def test_it_says_what_a_mission_waits_for_and_why_it_stopped(folder):
    state, _ = begin(folder)
    assert why(folder, state) == "stopped: start it again to go on"
    assert why(folder, state, failed="a port is\nused") == "stopped: a port is used"
    state.session = Session(seen="x")
    assert "carried out .cco/instruction.md" in why(folder, state, current_phase="execution")
    state.session = Session(process={"pid": 1, "start": "0", "boot": "x"})
    assert "ended in the middle of a session" in why(folder, state)
    wait = Wait(1893452400.0, 1893456000.0, "limit", "the usage limit")
    end = report._local(1893456000.0)
    assert why(folder, state, wait=wait, current_phase="waiting") == f"waits for the usage limit until {end}"
    assert why(folder, state, blocked={"question": "Which\nport?", "seen": ""}) == "needs your answer: Which port?"
    here = {"commit": COMMIT, "where": "checkout", "at": AT, "seconds": 1.0, "setup": None}
    done = why(folder, state, current_phase="completed", blocked=None, confirmed=here)
    assert done == "done, proven by checks in a clean checkout"


def test_a_mission_runs_while_its_process_holds_the_lock_and_no_other_does(folder):
    state, _ = begin(folder, current_phase="planning")
    begin(folder, "web")
    with proc.lock(folder / "lock", "api"):
        assert shown(folder).splitlines()[0] == "api: planning (running), 1/2 met, iteration 0, $0.00"
        assert "web: validation, " in shown(folder)
        assert [one["running"] for one in as_json(folder)] == [True, False]
    assert "(running)" not in shown(folder)


def test_what_the_user_may_have_to_know_stands_below_the_table(folder):
    state, _ = begin(folder, "api", "met", "met", "met", "unmet", iterations=9, notes=["api.1.md"])
    for id, more in (("c1", "flaky"), ("c2", "fails_in_clean_checkout"), ("c3", "seen_failing")):
        setattr(state.criteria[id], more, True)
        state.criteria[id].seen_failing, state.criteria[id].first_met = True, 1
    state.criteria["c3"].proof = {"where": "user", "by": "ada", "at": AT, "commit": COMMIT, "reason": "", "quotes": []}
    state.criteria["c4"].stalls = 4
    for number in range(1, 4):
        state.history.append(Iteration(number, "c4", changed={"c1": "met", "c2": "unmet"}, broke=["c2"]))
    state.totals |= {"claims_made": 4, "claims_false": 1, "estimated_cost": 3.0}
    (folder / "inbox").mkdir()
    for number, text in enumerate(("use the\nstaging database", "go"), 1):
        (folder / "inbox" / f"api.{number}.md").write_text(text)
    (folder / "inbox" / "web.1.md").write_text("of another mission")
    state.tampering = [{"iteration": n, "path": f"tests/{n}", "what": "new", "kept": ""} for n in range(7)]
    state.asked = {"manager": {"failures": 2, "since": 0.0, "until": 1893456000.0}}
    change(folder, state)
    (folder / "stop").touch()
    *_, remarks, place, stop = shown(folder).split("\n\n")
    assert remarks.splitlines() == [
        "c1: flaky: its check gave different results on the same tree",
        "c2: passes in the work tree, but failed in a clean checkout",
        "c3: confirmed by the user, not proven by a check",
        "c4: set aside: the last sessions on it changed nothing",
        f"protected files: changed: {', '.join(f'tests/{n} (new, iteration {n})' for n in range(2, 7))}",
        "claims: the worker reported 4 criteria as met, and 1 of them were not",
        f"the manager's model gave no answer, and is not asked before {report._local(1893456000.0)}",
        "note (carried by the current instruction): use the staging database",
        "note (waits for the next instruction): go",
    ]
    assert place.endswith("$3.0000 so far, the rest about $1.00") and "a stop was asked for" in stop
    assert as_json(folder)["notes"] == ["use the\nstaging database", "go"]
    state.totals["claims_false"] = 0
    change(folder, state)
    assert "claims" not in shown(folder)


def test_the_next_command_of_the_user_is_named(folder):
    state, _ = begin(folder, "api", "met", current_phase="completed", start_branch="it's&me", branch="cco/$(x);y")
    command = shown(folder).split("To merge the result: ")[1]
    assert shlex.split(command) == ["git", "checkout", "it's&me", "&&", "git", "merge", "cco/$(x);y"]
    change(folder, state, current_phase="blocked", blocked={"question": "Which port?", "seen": ""}, commit="")
    text = shown(folder)
    assert f"commit none, $0.0000 so far\n\nHow to answer: {folder}/reports/api.blocked.md" in text
    assert "merge" not in text
    assert report.merge_command(change(folder, state, start_branch="")).startswith("git checkout YOUR_BRANCH && ")


def test_a_damaged_file_is_named_and_hides_no_other_mission_and_looking_writes_nothing(folder, capsys):
    begin(folder)
    (folder / "old.json").write_text(json.dumps({**json.loads((folder / "api.json").read_bytes()), "totals": {}}))
    for name in ("web.json", ".api.json.x7.tmp", "api.json.unreadable-1795219200", "config.yaml", "lessons.jsonl"):
        (folder / name).write_text("{torn")
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    assert shown(folder).startswith("api: validation") and "web.json: not a readable state" in shown(folder)
    assert "old.json: not a readable state" in shown(folder)
    assert as_json(folder)["mission"] == "api" and "web.json: not a readable state" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())} == before


def test_text_of_others_drives_no_terminal_and_takes_one_line_of_the_table(folder, fresh_mask):
    log.register_secret(SECRET)
    state, _ = rich(folder, HOSTILE)
    change(folder, state, blocked={"question": HOSTILE, "seen": ""})
    text = shown(folder)
    assert not log.CONTROL.search(text) and SECRET not in text
    assert len(report.table(state).splitlines()) == 4
    assert SECRET not in report.status(folder, None, as_json=True)


def test_status_imports_nothing_that_takes_long(folder):
    begin(folder)
    code = "import sys, pathlib, report; report.status(pathlib.Path(sys.argv[1]), 'api', False); print(*sys.modules)"
    argv = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(argv, cwd=KIT, capture_output=True, text=True, check=True)
    assert not {"yaml", "jsonschema", "requests", "tabulate"} & set(done.stdout.split())


def both(state: State, mission: Mission) -> tuple[str, str]:
    """Return the report in Markdown and as a page."""
    markdown, page = report.write(Path(state.repository) / ".cco", state, mission)
    return markdown.read_text("utf-8"), page.read_text("utf-8")


def says(text: str, state: State, mission: Mission) -> bool:
    """Return whether both formats say this."""
    markdown, page = both(state, mission)
    plain = re.sub(r"\\(?=\W)", "", markdown)
    shown = "".join(f"{part} " for part in ET.fromstring(page).find("body").itertext())
    wanted, *forms = (" ".join(re.findall(r"[\w$.]+", one)) for one in (text, shown, plain))
    assert len({wanted in form for form in forms}) == 1, f"only one of the formats says {text!r}"
    return wanted in forms[0]


def test_the_first_sentence_says_what_is_met_and_how_that_is_known(folder):
    state, mission = rich(folder)
    state.confirmed["where"] = state.criteria["a"].proof["where"] = "tree"
    kinds = "1 proven by checks in the work tree, 1 judged by a model, 1 confirmed by the user"
    assert says(f"✔ Done: all 3 criteria are met on commit {COMMIT}: {kinds}.", state, mission)
    assert says("the checks ran in the work tree only", state, mission)
    state, mission = begin(folder)
    assert says("✘ Not done: 1 of 2 criteria are met. Phase: validation.", state, mission)
    state.blocked = {"question": "Which\nport?", "seen": ""}
    assert says("Phase: validation. Question: Which port?", state, mission)


def test_a_full_report_says(folder):
    for fact in (
        f"in a clean checkout, {AT}, commit {COMMIT[:12]}: exit code 0, 12 s, output SHA-256 {'ab' * 32}",
        f"judged by a model, {AT}, commit {COMMIT[:12]} (word): word; “word” in word",
        f"confirmed by the user, {AT}, commit {COMMIT[:12]} (word): word",
        f"It was confirmed in 48 s, {AT}; setup (word): exit code 0",
        "b judged by a model, not proven by a check",
        f"1 word word, by word word $0.26 90 s {COMMIT[:12]} 2 a unmet broken a word",
        "protected files changed: word (word, iteration 3)",
        "3 word word word",
        "path why word word",
        "estimated cost 1.25",
        "git checkout word && git merge word",
        "git revert -m 1 MERGE_COMMIT",
    ):
        assert says(fact, *rich(folder)), fact


def test_a_new_mission_leaves_out_what_has_no_content(folder):
    markdown, page = both(*begin(folder, "api", "unmet"))
    headings = re.findall("^## (.*)", markdown, re.M)
    assert re.findall("<h2>(.*)</h2>", page) == headings
    assert [heading.split()[0] for heading in headings] == ["Criteria", "Iteration", "Cost,", "To"]


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, as the tokenizer of a browser sees them."""

    def __init__(self, text: str):
        super().__init__()
        self.all: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.all.append((tag, sorted(name for name, _ in attrs)))


def bare(text: str) -> str:
    """Return Markdown without code, and without characters that are escaped."""
    text = re.sub(r"^(`{3,})\n.*?\n\1$", "code", text, flags=re.S | re.M)
    text = re.sub(r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)", "code", text)
    return re.sub(r"\\[^A-Za-z0-9\s]", "", text)


def skeleton(text: str) -> list[str]:
    """Return what each line of Markdown is, and how many cells it has."""
    marks = ((line, (re.match(r"#* ?", line) or [""])[0]) for line in bare(text).splitlines())
    return [mark + "|" * line.count("|") + "." * bool(line) for line, mark in marks]


def test_no_text_becomes_an_element_an_attribute_or_a_style(folder):
    text = both(*rich(folder, HOSTILE.replace("\n", " ")))[1]  # with its lines, the branch would be a block of text
    assert Elements(text).all == Elements(both(*rich(folder))[1]).all
    names = {name for _, names in Elements(text).all for name in names}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert "default-src 'none'; style-src 'unsafe-inline'" in text and not re.search(r"url\(|@import", report.PAGE)


def test_no_text_becomes_markup_in_markdown(folder):
    for word in (HOSTILE, "`", "``", "|", "\\", "\\|", "`|`", "``` ```", "~~~", "---", "1. x", "=", "a\nb"):
        text = both(*rich(folder, word))[0]
        assert skeleton(text) == skeleton(both(*rich(folder))[0]), word
        for line in (re.sub(r"^#+ ", "", line).replace("|", "") for line in bare(text).splitlines()):
            assert not re.search(r"[\\`*_{}\[\]<>&@!#~$^]|://|www\.|:octocat:", line), line


def test_no_secret_and_no_control_character_is_written(folder, fresh_mask):
    log.register_secret(SECRET)
    state, mission = rich(folder, HOSTILE)
    state.criteria["x" * 14 + SECRET] = state.criteria.pop("a")  # beside the grid it is cut after it was masked
    for text in both(state, mission):
        assert SECRET not in text and SECRET[:8] not in text and log.MASK in text.replace("\\", "")
        assert not log.CONTROL.search(text)


def test_both_formats_are_for_their_owner_only(folder):
    paths = report.write(folder, *begin(folder))
    assert paths == [folder / "reports" / "api.md", folder / "reports" / "api.html"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "reports", *paths)] == [0o700, 0o600, 0o600]


def test_the_question_comes_with_output_history_and_the_command_to_answer(folder):
    state, _ = begin(folder, "api", "met", "unmet", "unjudged")
    criteria = [{"id": "c1", "criteria": "x", "check": "true"}, {"id": "c2", "criteria": "x", "check": "make"}]
    mission = mission_of(folder, "api", definition_of_done=[*criteria, {"id": "c3", "criteria": "it is pretty"}])
    state.blocked = {"question": "Which port?\n# 80 or <8080>", "seen": ""}
    state.history = [Iteration(2, "c2", "alternative", "rules", "ended")]
    (folder / "logs" / "checks").mkdir(parents=True)
    (folder / "logs" / "checks" / "c2.log").write_text("line\n" * 5000 + "```\nError: port is used\n")
    path = report.write_question(folder, state, mission)
    text = path.read_text("utf-8")
    assert path == folder / "reports" / "api.blocked.md" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "\n```\nQuestion: Which port?\n# 80 or <8080>\n```\n" in text
    assert "Criterion c2 (medium, unmet): c2 works\n\n````\nline\n" in text and "```\nError: port is used\n````" in text
    assert "Criterion c3 (medium, unjudged): c3 works\n\n```\n(no output)\n```" in text
    assert "| alternative, by rules |" in text and len(text) < 6000
    cd, tell, accept, start = (shlex.split(line, comments=True) for line in text.split("```")[3].strip().splitlines())
    assert cd == ["cd", str(folder.parent)]
    assert tell == ["make", "-f", str(report.HERE / "Makefile"), "tell", "SESSION=api", "TEXT=..."]
    assert accept[3:] == ["accept", "SESSION=api", "ID=c3"]
    assert start[3:] == ["start", f"MISSION={state.mission_path}"]


def test_the_grid_has_a_sign_for_each_criterion_after_each_iteration():
    changed = [{"a": "unmet", "b": "unjudged"}, {"a": "met"}, {}, {"a": "unmet", "b": "flaky"}]
    history = [Iteration(number, changed=verdicts) for number, verdicts in enumerate(changed)]
    history[3].broke = ["a"]
    criteria = {id: states.CriterionState(id, "high", "") for id in ("a", "b", "never")}
    state = State("api", "", "", "", iterations=4, criteria=criteria, history=history)
    assert report._grid(state).splitlines()[:4] == ["a      □■■!", "b      ???~", "never  ····", ""]
