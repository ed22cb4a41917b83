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
    made = tmp_path / "a project" / ".cco"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def utc(monkeypatch):
    """Set the time zone of this test."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def mission_of(folder: Path, name: str, *ids: str, **more: Any) -> Mission:
    criteria = [{"id": id, "criteria": f"{id} works", "check": f"make {id}"} for id in ids]
    document = {"id": name, "title": "A mission", "repository": str(folder.parent), "definition_of_done": criteria}
    return parse(json.dumps({**document, **more}), folder.parent / f"{name}.json")


def begin(folder: Path, name: str = "api", *verdicts: str, **more: Any) -> tuple[State, Mission]:
    """Return a mission with criteria c1, c2, ... of these verdicts, saved as the loop does it."""
    shown = verdicts or ("met", "unmet")
    mission = mission_of(folder, name, *(f"c{number}" for number, _ in enumerate(shown, 1)))
    state = State(mission.id, str(mission.repository), str(mission.path), mission.text)
    state.adopt(mission)
    state.branch, state.start_branch, state.commit = f"cco/{name}", "main", COMMIT
    found = zip(state.criteria, shown, strict=True)
    state.record_results({id: Verdict(id, verdict, 1, failure="x", runs=1) for id, verdict in found})
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
    state = State(mission.id, str(mission.repository), word, mission.text)
    state.adopt(mission)
    here = {"commit": COMMIT, "at": AT}
    checked = {"where": "checkout", **here, "code": 0, "seconds": 12.5, "digest": "ab" * 32, "runs": 2}
    said = {**here, "by": word, "reason": word, "quotes": [{"path": word, "text": word, "blob": word}]}
    proofs = (checked, {"where": "judge", **said}, {"where": "user", **said, "quotes": []})
    for known, proof in zip(state.criteria.values(), proofs, strict=True):
        known.criteria, known.verdict, known.flaky, known.fails_in_clean_checkout = word, "met", True, True
        known.proof, known.stalls = proof, 4
    state.branch, state.start_branch, state.base_commit, state.commit = word, word, "f" * 40, COMMIT
    state.iterations, state.current_phase = 5, "completed"
    for number in range(1, 6):
        entry = Iteration(number, word, word, word, word, COMMIT[:12], word, {"a": "unmet"}, ["a"])
        entry.met, entry.turns, entry.cost_usd, entry.manager_usd, entry.seconds = 2, 7, 0.25, 0.01, 90.0
        entry.claimed, entry.false_claims, entry.tampered, entry.report = ["a", "b"], ["a"], [word], word
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
    found = as_json(folder)
    wanted = {"mission": "api", "session_id": state.session_id, "phase": "planning", "iterations": 4, "cost_usd": 0}
    wanted |= {"wait_until": 1893456000.5, "blocked": "Which port?", "tampering": []}
    wanted |= {"commit": COMMIT, "branch": "cco/api"}
    assert {key: found[key] for key in wanted} == wanted
    keys = ("id", "criteria", "priority", "verdict", "regressions", "stalls")
    regression = {"iteration": 3, "commit": COMMIT[:12], "session": "s", "focus": "c1"}
    assert [tuple(criterion[key] for key in keys) for criterion in found["criteria"]] == [
        ("c1", "c1 works", "medium", "met", [], 0),
        ("c2", "c2 works", "medium", "timeout", [regression], 0),
    ]


def test_one_mission_is_an_object_several_are_a_list_and_none_is_an_empty_one(folder):
    assert as_json(folder) == []
    begin(folder, "api")
    assert as_json(folder)["mission"] == "api"
    begin(folder, "web")
    assert [found["mission"] for found in as_json(folder)] == ["api", "web"]
    assert as_json(folder, "web")["mission"] == "web"


def test_several_missions_are_one_line_each_the_one_saved_last_at_the_end(folder):
    for name in ("api", "web", "docs"):
        begin(folder, name)
    os.utime(folder / "api.json", (time.time() + 60,) * 2)
    lines = shown(folder).splitlines()
    assert [line.split(":")[0] for line in lines] == ["web", "docs", "api"]
    assert lines[0] == "web: validation, 1/2 met, iteration 0, $0.00; stopped: start it again to go on"


def test_a_name_may_be_a_beginning_a_whole_one_wins_and_an_unknown_one_is_answered_with_those_there_are(folder):
    begin(folder, "api", session_id="7f3c2a1e-0b5d-4c6e-8f90-112233445566")
    begin(folder, "api-2", session_id="00c0ffee-0b5d-4c6e-8f90-112233445566")
    for name, found in {"api": "api", "api-": "api-2", "7f3": "api", "00c0ffee": "api-2"}.items():
        assert as_json(folder, name)["mission"] == found
    assert shown(folder, "ap").count("branch cco/api") == 2
    with pytest.raises(Stop, match="no mission or session begins with 'docs'; there are: api, api-2") as raised:
        shown(folder, "docs")
    assert raised.value.code == proc.USAGE


def test_where_nothing_was_started_it_says_so(folder):
    with pytest.raises(Stop, match="no mission was started here yet"):
        report.status(None, None, as_json=False)
    assert shown(folder) == "no mission was started here yet"


def test_a_single_mission_is_shown_with_its_criteria(folder):
    state, _ = begin(folder, "api", "met", "unmet", "unjudged", "broken")
    state.criteria["c1"].seen_failing = True
    state.history.append(Iteration(3, "c1", commit=COMMIT[:12], changed={"c2": "unmet"}, broke=["c2"]))
    state.criteria["c2"].stalls = 3
    change(folder, state)
    line, table, remark, place = shown(folder).split("\n\n")
    header, *rows = table.splitlines()
    assert header.split() == ["id", "verdict", "priority", "regressions", "stalls", "criterion"]
    assert [row.split() for row in rows] == [
        ["[x]", "c1", "met", "medium", "c1", "works"],
        ["[", "]", "c2", "unmet", "medium", "1", "3", "c2", "works"],
        ["[?]", "c3", "unjudged", "medium", "c3", "works"],
        ["[", "]", "c4", "broken", "medium", "c4", "works"],
    ]
    assert remark == f"c2: broken in iteration 3, commit {COMMIT[:12]}, while working on c1"
    assert place == f"branch cco/api, commit {COMMIT[:12]}, $0.0000 so far"


def why(folder: Path, state: State, **more: Any) -> str:
    return report.reason(folder, change(folder, state, **more))


def test_it_says_what_a_mission_waits_for_and_why_it_stopped(folder, utc):
    state, _ = begin(folder)
    assert why(folder, state) == "stopped: start it again to go on"
    (folder / "logs").mkdir()
    lines = [{"msg": "a port is\nused", "mission": "api"}, {"msg": "of another", "mission": "web"}, {"msg": "of none"}]
    assert why(folder, state, failed="f00") == "stopped: see .cco/logs/error.log"
    (folder / "logs" / "error.log").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert why(folder, state) == "stopped: a port is used"
    assert why(folder, state, failed="", alerts={"limits.hours": 80}) == "stopped: start it again to go on"
    assert why(folder, state, alerts={"limits.hours": 80, "limits.cost_usd": 100}) == "stopped: a port is used"
    state.session = Session(seen="x")
    assert "carried out .cco/instruction.md" in why(folder, state, current_phase="execution")
    state.session = Session(process={"pid": 1, "start": "0", "boot": "x"})
    assert "ended in the middle of a session" in why(folder, state)
    wait = Wait(1893452400.0, 1893456000.0, "limit", "the usage limit")
    assert why(folder, state, wait=wait, current_phase="waiting") == "waits for the usage limit until Tue 00:00"
    assert why(folder, state, blocked={"question": "Which\nport?", "seen": ""}) == "needs your answer: Which port?"
    here = {"commit": COMMIT, "where": "checkout", "at": AT, "seconds": 1.0, "setup": None}
    done = why(folder, state, current_phase="completed", blocked=None, confirmed=here)
    assert done == "done, confirmed in a clean checkout"


def test_a_mission_runs_while_its_process_holds_the_lock_and_no_other_does(folder):
    state, _ = begin(folder, current_phase="planning")
    begin(folder, "web")
    me = {**proc.identity(os.getpid()), "mission": "api"}
    with proc.lock(folder / "lock", "api"):
        assert proc.holder(folder / "lock") == me
        assert shown(folder).splitlines()[0] == "api: planning (running), 1/2 met, iteration 0, $0.00"
        assert "web: validation, " in shown(folder)
        assert [found["running"] for found in as_json(folder)] == [True, False]
    assert "(running)" not in shown(folder)


def test_what_the_user_may_have_to_know_stands_below_the_table(folder, utc):
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
    state.tampering = [{"iteration": n, "path": f"tests/{n}", "what": "changed", "kept": ""} for n in range(7)]
    state.asked = {"manager": {"failures": 2, "since": 0.0, "until": 1893456000.0}}
    change(folder, state)
    (folder / "stop").touch()
    *_, remarks, place, stop = shown(folder).split("\n\n")
    assert remarks.splitlines() == [
        "c1: flaky: its check gave different results on the same tree",
        "c2: passes in the work tree, but failed in a clean checkout",
        "c3: confirmed by the user, not proven by a check",
        "c4: set aside: the last sessions on it changed nothing",
        f"protected files: changed: {', '.join(f'tests/{n} (changed, iteration {n})' for n in range(2, 7))}",
        "claims: the worker reported 4 criteria as met, and 1 of them were not",
        "the manager's model gave no answer, and is not asked before Tue 00:00",
        "note (carried by the current instruction): use the staging database",
        "note (waits for the next instruction): go",
    ]
    assert place.endswith("$3.0000 so far, the rest about $1.00") and "a stop was asked for" in stop
    assert as_json(folder)["notes"] == ["use the\nstaging database", "go"]


def test_the_next_command_of_the_user_is_named(folder):
    state, _ = begin(folder, current_phase="completed", start_branch="it's&me", branch="cco/$(x);y")
    command = shown(folder).split("To merge the result: ")[1]
    assert shlex.split(command) == ["git", "checkout", "it's&me", "&&", "git", "merge", "cco/$(x);y"]
    change(folder, state, current_phase="blocked", blocked={"question": "Which port?", "seen": ""}, commit="")
    text = shown(folder)
    assert (
        f"commit none, $0.0000 so far\n\nHow to answer: {folder}/reports/api.blocked.md" in text and "merge" not in text
    )
    assert report.merge_command(change(folder, state, start_branch="")).startswith("git checkout YOUR_BRANCH && ")


def test_a_damaged_file_is_named_and_hides_no_other_mission_and_looking_writes_nothing(folder):
    begin(folder)
    (folder / "web.json").write_text("{torn")
    for name in (".api.json.x7.tmp", "api.json.unreadable-1795219200", "config.yaml", "lessons.jsonl"):
        (folder / name).write_text("no state")
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    assert shown(folder).startswith("api: validation") and "web.json: not a readable state" in shown(folder)
    assert as_json(folder)["mission"] == "api"
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


def words(text: str) -> str:
    return " ".join(re.findall(r"[\w$.]+", text))


def says(text: str, state: State, mission: Mission) -> bool:
    """Return whether both formats say this."""
    page = "".join(f"{part} " for part in ET.fromstring(report.html(state, mission)).find("body").itertext())
    plain = re.sub(r"\\(?=\W)", "", report.markdown(state, mission))
    found = [words(text) in words(form) for form in (page, plain)]
    assert len(set(found)) == 1, f"only one of the formats says {text!r}"
    return found[0]


def test_the_first_sentence_says_what_is_met_and_how_that_is_known(folder):
    state, mission = rich(folder)
    kinds = "1 proven by checks in a clean checkout, 1 judged by a model, 1 confirmed by the user"
    assert says(f"✔ Done: all 3 criteria are met on commit {COMMIT}: {kinds}.", state, mission)
    state.confirmed["where"] = "tree"
    assert says("1 proven by checks in the work tree", state, mission)
    assert says("the checks ran in the work tree only", state, mission)
    state, mission = begin(folder)
    assert says("✘ Not done: 1 of 2 criteria are met. Phase: validation.", state, mission)
    state.blocked = {"question": "Which port?", "seen": ""}
    assert says("Phase: validation. Question: Which port?", state, mission)


def test_a_full_report_says(folder):
    for fact in (
        f"exit code 0, 12.5 s, output SHA-256 {'ab' * 32}, in a clean checkout, {AT}",
        f"judged by a model (word), {AT}, commit {COMMIT[:12]}: word; “word” in word",
        f"confirmed by the user (word), {AT}, commit {COMMIT[:12]}: word",
        "b judged by a model, not proven by a check",
        f"1 word word, by word word 7 $0.26 90 s {COMMIT[:12]} 2 a unmet broken a word word",
        f"It was confirmed in a clean checkout in 48.2 s, {AT}; setup (word): exit code 0",
        "protected files changed: word (word, iteration 3)",
        "3 word word word",
        "path why word word",
        "estimated cost 1.25",
        "git checkout word && git merge word",
        "git revert -m 1 MERGE_COMMIT",
    ):
        assert says(fact, *rich(folder)), fact


def test_a_new_mission_leaves_out_what_has_no_content(folder):
    state, mission = begin(folder, "api", "unmet")
    headings = re.findall("^## (.*)", report.markdown(state, mission), re.M)
    wanted = [
        "Criteria",
        "Iteration by iteration",
        "Cost, and what else was measured",
        "To merge the result, or to undo it",
    ]
    assert re.findall("<h2>(.*)</h2>", report.html(state, mission)) == headings == wanted


def elements(text: str) -> list[tuple[str, list[str]]]:
    """Return the elements of a page with the names of their attributes; as XML, so all of them are closed."""
    return [(element.tag, sorted(element.attrib)) for element in ET.fromstring(text).iter()]


class Seen(HTMLParser):
    """The same, as the tokenizer of a browser sees it."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, sorted(name for name, _ in attrs)))


def bare(text: str) -> str:
    """Return Markdown without code, and without characters that are escaped."""
    text = re.sub(r"^(`{3,})\n.*?\n\1$", "code", text, flags=re.S | re.M)
    text = re.sub(r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)", "code", text)
    return re.sub(r"\\[^A-Za-z0-9\s]", "", text)


def skeleton(text: str) -> list[str]:
    """Return what each line of Markdown is, and how many cells it has."""
    return [
        (re.match(r"#* ?", line) or [""])[0] + "|" * line.count("|") + "." * bool(line)
        for line in bare(text).splitlines()
    ]


def test_no_text_becomes_an_element_an_attribute_or_a_style(folder):
    text = report.html(*rich(folder, HOSTILE))
    assert elements(text) == elements(report.html(*rich(folder))) == Seen(text).found
    known = {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert {name for _, names in elements(text) for name in names} <= known
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert not re.search(r"url\(|@import", report.PAGE)


@pytest.mark.parametrize(
    "word", [HOSTILE, "`", "``", "|", "\\", "\\|", "`|`", "``` ```", "~~~", "---", "1. x", "=", "a\nb"], ids=range(13)
)
def test_no_text_becomes_markup_in_markdown(folder, word):
    text = report.markdown(*rich(folder, word))
    assert skeleton(text) == skeleton(report.markdown(*rich(folder)))
    for line in (re.sub(r"^#+ ", "", line).replace("|", "") for line in bare(text).splitlines()):
        assert not re.search(r"[\\`*_{}\[\]<>&@!#~$^]|://|www\.|:octocat:", line), line


def test_no_secret_and_no_control_character_is_written(folder, fresh_mask):
    log.register_secret(SECRET)
    state, mission = rich(folder, HOSTILE)
    state.criteria["x" * 14 + SECRET] = state.criteria.pop("a")  # beside the grid it is cut after it was masked
    for text in (report.html(state, mission), report.markdown(state, mission)):
        assert SECRET not in text and SECRET[:8] not in text and log.MASK in text.replace("\\", "")
        assert not log.CONTROL.search(text)


def test_both_formats_are_written_for_their_owner_only_and_replaced_as_a_whole(folder, monkeypatch):
    state, mission = begin(folder)
    paths = report.write(folder, state, mission)
    assert paths == [folder / "reports" / "api.md", folder / "reports" / "api.html"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "reports", *paths)] == [0o700, 0o600, 0o600]
    before = [path.read_text("utf-8") for path in paths]
    monkeypatch.setattr(report, "markdown", lambda *_: "another text")
    monkeypatch.setattr(states.os, "replace", lambda *_: os.stat(folder / "missing"))
    with pytest.raises(FileNotFoundError):
        report.write(folder, state, mission)
    assert [path.read_text("utf-8") for path in paths] == before
    assert sorted(path.name for path in (folder / "reports").iterdir()) == ["api.html", "api.md"]


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
    assert "\nQuestion: Which port? \\# 80 or \\<8080\\>\n" in text
    assert "Criterion c2 (medium, unmet): c2 works\n\n````\nline\n" in text and "```\nError: port is used\n````" in text
    assert "Criterion c3 (medium, unjudged): c3 works\n\n```\n(no output)\n```" in text
    assert "| alternative, by rules |" in text and len(text) < 6000
    cd, tell, accept, start = (shlex.split(line, comments=True) for line in text.split("```")[1].strip().splitlines())
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
    assert report._grid(state).splitlines()[:4] == ["a      □■■!!", "b      ???~~", "never  ·····", ""]
