"""Steering: stop, notes, edits while it waits, raised limits; and each message about a milestone, once.

Through the real command line, with a scripted worker, a loopback LLM and a clock that every wait puts forward.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, until
from test_cco_faults import CLOCK, hurried

import edits
import inbox
import mission
import processes
import progress
import state as store
import steering
from extras.openrouter_api import OpenRouterAPI

NO_WALLS = {"checks": {"sandbox": False}}  # what is tested here has no need of them, and they take their time
WRITES_B: list[dict[str, Any]] = [{"write": {"b": "1\n"}}, {"say": "wrote b"}]
IDLE: list[dict[str, Any]] = [{"say": "nothing done"}]
AUTH = {"error": {"assistant_error": "authentication_failed", "text": "Not logged in", "api_error_status": 401}}
LIMITED = {"limit": {"rateLimitType": "five_hour"}}  # without a time, so that it is an hour
ONE = TWO_CRITERIA[:1]


@pytest.fixture(autouse=True)
def nothing_is_left(bench):
    yield
    left = bench.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def begin(bench):
    """Start in the background; what still runs after the test is ended."""
    started = []

    def start(*args: str) -> subprocess.Popen[bytes]:
        started.append(bench.begin(*args))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def commits(bench: Bench, git: Any) -> list[str]:
    """The iterations that have a commit, oldest first."""
    form = "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)"
    return str(git(bench.project, "log", "--reverse", form, "main..cco/demo")).split()


def prompts(bench: Bench) -> list[str]:
    return [call["prompt"] for call in bench.calls()]


# --------------------------------------------------------------------------------------------------------
# Stop
# --------------------------------------------------------------------------------------------------------


def test_stop_once_ends_it_after_the_session_and_a_start_goes_on(bench, begin, git, tmp_path):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}], WRITES_B)
    kit = begin()
    until((bench.project / "a").exists, "the first session's work")
    assert f"mission demo (pid {kit.pid}) ends after the current session" in bench.run("stop").stdout
    assert kit.poll() is None
    (tmp_path / "go").touch()
    assert kit.wait(60) == 130, bench.output()
    assert (len(bench.calls()), bench.state()["current_phase"]) == (1, "planning")
    assert bench.state()["completed_tasks"] == ["a"]  # the session was committed and checked before
    assert "stopped as asked" in bench.output()
    assert "nothing is running here" in bench.run("stop").stdout
    assert bench.start().returncode == 0
    assert commits(bench, git) == ["1", "2"]


def test_stop_twice_ends_it_at_once_and_the_next_start_goes_on_in_the_same_session(bench, begin, git):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    bench.sessions([*WRITES_A[:1], {"hang": True}], WRITES_B)
    kit = begin()
    until((bench.project / "a").exists, "the first session's work")
    assert "ask once more to end it now" in bench.run("stop").stdout
    assert "ends now; what its session did so far stays in the work tree" in bench.run("stop").stdout
    assert kit.wait(60) == 130, bench.output()
    assert not bench.alive()
    state = bench.state()
    assert (state["current_phase"], state["iterations"], commits(bench, git)) == ("execution", 1, [])
    assert (bench.project / "a").exists()
    assert bench.start().returncode == 0
    assert (bench.state()["iterations"], bench.resumed()) == (1, [False, True])
    assert commits(bench, git) == ["1"]
    assert git(bench.project, "ls-tree", "--name-only", "cco/demo", "a", "b") == "a\nb"


class Sleeper:
    """A process that has nothing to do with the kit, and a lock that names somebody as its holder."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(["sleep", "600"])
        self.folder = folder
        self.known = processes.identity(self.process.pid)

    def is_left_alone(self) -> bool:
        return self.process.poll() is None


@pytest.fixture
def sleeper(tmp_path):
    folder = tmp_path / ".cco"
    folder.mkdir()
    made = Sleeper(folder)
    yield made
    made.process.kill()
    made.process.wait()


STRANGERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another start time": lambda known: {**known, "start": "1"},
    "another boot": lambda known: {**known, "boot": "another"},
    "no start time": lambda known: {"pid": known["pid"], "boot": known["boot"]},
    "the number alone": lambda known: {"pid": known["pid"]},
    "nobody any more": lambda known: {**known, "pid": 2**22 + 1},
    "no number": lambda known: {**known, "pid": "it"},
    "a list": lambda known: {**known, "pid": [known["pid"]]},
    "all processes": lambda known: {**known, "pid": -1},
    "nothing": lambda known: {},
}


@pytest.mark.parametrize("holder", STRANGERS.values(), ids=STRANGERS)
def test_stop_signals_nobody_who_is_not_exactly_the_holder_of_the_lock(sleeper, holder):
    with store.Lock(sleeper.folder / "lock", {**holder(sleeper.known), "mission": "demo"}):
        for _ in range(3):
            assert "mission demo" in steering.stop(sleeper.folder)
    assert (sleeper.folder / "stop").exists()  # so that whoever it is ends after its session
    assert sleeper.is_left_alone()


def test_stop_asked_twice_signals_the_holder_of_the_lock(sleeper):
    with store.Lock(sleeper.folder / "lock", {**sleeper.known, "mission": "demo"}):
        assert "ends after the current session" in steering.stop(sleeper.folder)
        assert sleeper.is_left_alone()
        assert "ends now" in steering.stop(sleeper.folder)
    assert sleeper.process.wait(30) == -signal.SIGINT


def test_where_nothing_runs_stop_signals_nobody_and_says_that_cron_is_held(sleeper):
    with store.Lock(sleeper.folder / "lock", {**sleeper.known, "mission": "demo"}):
        pass
    assert steering.stop(sleeper.folder).startswith("nothing is running here; starts with --no-wait (cron) end at once")
    assert (sleeper.folder / "stop").exists()
    assert sleeper.is_left_alone()


def test_after_a_stop_cron_starts_nothing_until_a_person_does(bench):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    assert bench.run("stop").returncode == 0
    for _ in range(2):
        tick = bench.start("--no-wait")
        assert (tick.returncode, len(bench.calls())) == (75, 1)
        assert tick.stdout.splitlines()[0].endswith("stopped as asked (make stop); make start goes on")
    assert bench.start().returncode == 0


# --------------------------------------------------------------------------------------------------------
# Notes
# --------------------------------------------------------------------------------------------------------


def test_a_note_that_is_left_while_a_session_runs_is_in_the_next_instruction_and_in_no_other(bench, begin, tmp_path):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    cco = " ".join(f"'{word}'" for word in bench.command("tell", "the worker talks to itself"))
    by_worker = {"bash": f"{cco} > '{tmp_path}/refused' 2>&1; echo $? >> '{tmp_path}/refused'"}
    bench.sessions([by_worker, {"wait_for": str(tmp_path / "go")}], WRITES_A, WRITES_B)
    kit = begin()
    until(lambda: (tmp_path / "refused").exists() and (tmp_path / "refused").read_text()[-2:] == "2\n", "the refusal")
    assert "only a person can do that" in (tmp_path / "refused").read_text()
    told = bench.run("tell", "use the staging database")
    assert (told.returncode, told.stdout) == (0, "the next instruction of demo carries it\n")
    (tmp_path / "go").touch()
    assert kit.wait(90) == 0, bench.output()
    assert ["use the staging database" in prompt for prompt in prompts(bench)] == [False, True, False]
    assert "From the person who runs this mission:\n\nuse the staging database" in prompts(bench)[1]
    assert bench.output().count("a note for the worker: use the staging database") == 1
    assert "talks to itself" not in "".join(prompts(bench))
    assert bench.output().count("a note for the worker:") == 1
    assert inbox.names(bench.project / ".cco", "demo") == []
    assert [(note["text"], note["iteration"]) for note in bench.state()["notes"]] == [("use the staging database", 2)]


@pytest.mark.parametrize("command", [("tell", "x"), ("accept", "a")])
def test_in_a_session_neither_a_note_nor_a_verdict_is_taken(bench, command):
    known(bench, "demo")
    done = bench.run(*command, env={**bench.environment, "CCO_RUN": str(bench.project)})
    assert done.returncode == 2
    assert "only a person can do that" in said(done)
    assert not (bench.project / ".cco" / "inbox").exists()


@pytest.mark.parametrize("text", ["", " \n", "x" * 4001])
def test_a_note_that_is_empty_or_too_long_is_refused_with_2(bench, text):
    known(bench, "demo")
    done = bench.run("tell", "--", text)
    assert done.returncode == 2
    assert f"a note has 1 to {inbox.MOST} characters" in said(done)


def known(bench: Bench, *ids: str) -> None:
    """Missions that were started here, as far as the commands that look at their states can see."""
    folder = bench.project / ".cco"
    folder.mkdir(exist_ok=True)
    for id in ids:
        path = bench.folder / f"{id}.yaml"
        path.write_text(bench.mission.read_text())
        memory = progress.begin(mission.load(path), f"cco/{id}", "", 0, "worker")
        progress.adopt(memory, mission.load(path))
        memory["settings"]["values"] = edits.values(mission.load_settings(None, None, {}))
        store.save(folder / f"{id}.json", memory)


def notes(bench: Bench, id: str) -> list[str]:
    folder = bench.project / ".cco"
    return [(folder / "inbox" / name).read_text() for name in inbox.names(folder, id)]


def test_with_two_missions_a_note_needs_a_name_and_goes_to_that_one_alone(bench):
    known(bench, "demo", "other")
    done = bench.run("tell", "for whom?", stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "which mission? Name it with --session (SESSION=); there are: demo, other" in said(done)
    assert (notes(bench, "demo"), notes(bench, "other")) == ([], [])
    done = bench.run("tell", "--session", "oth", "for the other one")
    assert done.stdout == "the next instruction of other carries it; nothing is running: start it\n"
    assert (notes(bench, "demo"), notes(bench, "other")) == ([], ["for the other one"])
    assert bench.run("tell", "--session", "nobody", "x").returncode == 2


def test_with_two_missions_a_note_without_a_name_is_for_the_one_that_runs(bench):
    known(bench, "demo", "other")
    about = {**processes.identity(os.getpid()), "mission": "other"}
    with store.Lock(bench.project / ".cco" / "lock", about):
        done = bench.run("tell", "for whoever runs", stdin=subprocess.DEVNULL)
    assert done.stdout == "the next instruction of other carries it\n"
    assert (notes(bench, "demo"), notes(bench, "other")) == ([], ["for whoever runs"])


LITERALLY = 'it\'s $5 "quoted" `touch pwned` $(touch pwned) $(shell touch pwned) ${HOME} $$ # \\ ; & | 100% -x'


@pytest.mark.parametrize("text", [LITERALLY, "-x", "--session", "$(TEXT)", "two\nlines", "$"])
def test_make_tell_passes_on_each_character_as_it_is(bench, text):
    known(bench, "demo")
    own = ("PYTHON", "CCO_", "MAKE", "ARGS", "TEXT")
    environment = {name: value for name, value in bench.environment.items() if not name.startswith(own)}
    command = ["make", "-f", str(KIT / "Makefile"), "tell", f"TEXT={text}"]
    options = {"cwd": bench.project, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 0, said(done)
    assert notes(bench, "demo") == [text]
    assert not any((place / "pwned").exists() for place in (bench.project, KIT, bench.folder))


# --------------------------------------------------------------------------------------------------------
# Edits while it waits, and limits that are raised
# --------------------------------------------------------------------------------------------------------

DURING = """
put_forward, waited = proc.pause, [0]


def pause(seconds):
    waited[0] += 1
    script = {folder!r} + "/during." + str(waited[0])
    if os.path.exists(script):
        os.system("sh " + script)
    return put_forward(7200)


proc.pause = pause
"""


class Waits:
    """A clock that each wait puts forward at once, and what a person does during the first, the second ... of them."""

    def __init__(self, bench: Bench):
        self.folder = bench.folder / "hurried"
        more = CLOCK.format(folder=str(self.folder), script=str(bench.script)) + DURING.format(folder=str(self.folder))
        hurried(bench, more)

    def during(self, number: int, path: Path, text: str) -> None:
        """In that wait the file comes to hold that text."""
        new = self.folder / f"new.{number}"
        new.write_text(text)
        (self.folder / f"during.{number}").write_text(f"mkdir -p '{path.parent}'; cp '{new}' '{path}'\n")

    def tell_during(self, number: int, text: str) -> None:
        """In that wait a person leaves a note."""
        (self.folder / f"during.{number}").write_text(shlex.join([sys.executable, str(KIT / "cco.py"), "tell", text]))


def edited(bench: Bench, **changes: Any) -> str:
    """The mission file's text with these changes."""
    return json.dumps({**json.loads(bench.mission.read_text()), **changes}, indent=1)


def test_what_a_person_edits_during_waits_is_taken_up_and_named_and_what_is_broken_is_named_once(bench, receiver):
    failures = [{**receiver.settings[0], "events": ["failed", "tampering"]}]
    bench.write(TWO_CRITERIA, settings={**NO_WALLS, "notify": failures})
    waits, config = Waits(bench), bench.project / ".cco" / "config.yaml"
    waits.during(1, bench.mission, edited(bench, title="Another demo", limits={"cost_usd": 7}))
    waits.during(2, bench.mission, "title: [")
    waits.tell_during(3, "mind the gap")
    waits.during(4, bench.mission, edited(bench, limits={"cost_usd": 9}, constraints=["no Perl"]))
    waits.during(5, config, "claude_code: {max_turns: 77}\n")
    bench.sessions(*[[LIMITED]] * 5, [*WRITES_A, *WRITES_B])
    done = bench.start()
    assert done.returncode == 0, said(done)
    log = said(done)
    assert len(re.findall("  waiting for the usage limit, until", log)) == 5
    lines = [line for line in log.splitlines() if "edited; adopted" in line or "cannot be used yet" in line]
    assert [line.partition(" (")[2].rpartition(")")[0] for line in lines] == [
        "title; limits.cost_usd: as usual -> 7",
        "",
        "title; constraints; limits.cost_usd: 7 -> 9",
        "claude_code.max_turns: as usual -> 77",
    ]
    assert "an edit cannot be used yet, what was accepted counts:" in lines[1]
    assert f"the mission was edited; adopted: {bench.mission}" in lines[2]
    assert f"the settings were edited; adopted: {config}" in lines[3]
    state = bench.state()
    assert (state["tampering"], state["iterations"], state["metrics"]["waits"]) == ([], 1, 5)
    assert "changed while" not in log
    assert bench.resumed() == [False, True, True, True, True, True]  # the same session, whatever was edited
    carried = ["mind the gap" in prompt for prompt in prompts(bench)]
    assert carried == [False, False, False, True, True, True]  # a session that is cut off is told again
    assert "--max-turns=77" in bench.calls()[-1]["argv"]
    assert receiver.events() == []  # an edit is no failure
    assert bench.start().returncode == 0


def test_an_edit_during_a_wait_that_stop_ends_is_taken_up_by_the_next_start(bench, begin):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    bench.sessions([{"limit": {"resetsAt": int(time.time()) + 3600, "rateLimitType": "five_hour"}}], WRITES_A)
    kit = begin()
    until(lambda: "waiting for the usage limit, until" in bench.output(), "it waits")
    bench.write(TWO_CRITERIA[:1], settings=NO_WALLS)
    assert "ends after the current session" in bench.run("stop").stdout
    assert kit.wait(60) == 130, bench.output()
    assert (bench.state()["current_phase"], len(bench.calls())) == ("waiting", 1)
    bench.remember({**bench.state(), "wait_until": time.time()})
    done = bench.start()
    assert done.returncode == 0, said(done)
    assert f"the mission was edited; adopted: {bench.mission} (criterion b is gone)" in said(done)
    assert (bench.state()["tampering"], bench.state()["iterations"]) == ([], 1)


# --------------------------------------------------------------------------------------------------------
# Messages about milestones
# --------------------------------------------------------------------------------------------------------


class Receiver:
    """A command outside of the repository that keeps each event and its text."""

    def __init__(self, folder: Path):
        self.file = folder / "events"
        self.settings = [{"type": "command", "command": f'echo "$CCO_EVENT|$CCO_TEXT" | tr "\\n" " " >> "{self.file}"'
                          f'; echo >> "{self.file}"'}]  # fmt: skip

    def all(self) -> list[tuple[str, str]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [(event, text.strip()) for event, _, text in (line.partition("|") for line in lines)]

    def events(self) -> list[str]:
        return [event for event, _ in self.all()]


@pytest.fixture
def receiver(tmp_path) -> Receiver:
    return Receiver(tmp_path)


def test_each_milestone_on_the_way_is_told_once(bench, project, receiver):
    settings = {**NO_WALLS, "notify": receiver.settings}
    bench.write(TWO_CRITERIA, settings=settings, protect=["README.md"])
    Waits(bench)
    bench.sessions(
        [{"append": {"README.md": "the worker was here\n"}}, *WRITES_A],
        [{"delete": "a"}, *WRITES_B],
        [LIMITED],
        WRITES_A,
    )
    done = bench.start()
    assert done.returncode == 0, said(done)
    assert receiver.events() == [
        "tampering", "criterion_met", "criterion_met", "regression", "limit", "limit_over", "criterion_met", "done",
    ]  # fmt: skip
    texts = [text for _, text in receiver.all()]
    assert "README.md (changed)" in texts[0]
    assert texts[1] == "a is met: a is there"
    assert texts[3].startswith("a was met and is not any more: broken in iteration 2, commit ")
    assert "You've hit your 5-hour limit; going on" in texts[4]
    assert "iteration 3 goes on" in texts[5]
    assert "all 2 criteria are met" in texts[7] and "git merge cco/demo" in texts[7]
    assert bench.start().returncode == 0
    assert len(receiver.events()) == 8


def test_a_mission_that_is_stuck_says_so_once_and_a_note_makes_it_go_on(bench, receiver):
    bench.write(ONE, settings={**NO_WALLS, "notify": receiver.settings})
    bench.sessions(*[IDLE] * 4, WRITES_A)
    done = bench.start()
    assert (done.returncode, len(bench.calls())) == (3, 4), said(done)
    assert receiver.events() == ["stalled", "blocked"]
    assert "what is the worker missing?" in receiver.all()[1][1]
    for _ in range(3):
        again = bench.start()
        assert (again.returncode, len(bench.calls())) == (3, 4)
        assert "what is the worker missing?" in said(again)
    assert receiver.events() == ["stalled", "blocked"]
    assert "nothing is running: start it" in bench.run("tell", "the file is called a").stdout
    done = bench.start()
    assert (done.returncode, len(bench.calls())) == (0, 5), said(done)
    assert "something changed since the question was asked: checking again" in said(done)
    assert "the file is called a" in prompts(bench)[4]
    assert receiver.events() == ["stalled", "blocked", "criterion_met", "done"]


def test_a_failure_is_told_once_over_many_starts_and_again_when_it_comes_back(bench, receiver):
    bench.write(TWO_CRITERIA, settings={**NO_WALLS, "notify": receiver.settings})
    bench.sessions([AUTH], [AUTH], [AUTH], WRITES_A, [AUTH], WRITES_B)
    for sessions in (1, 2, 3):
        done = bench.start()
        assert (done.returncode, len(bench.calls())) == (4, sessions), said(done)
        assert receiver.events() == ["failed"]
    assert "Not logged in" in receiver.all()[0][1] and "log in again" in receiver.all()[0][1]
    assert bench.start().returncode == 4
    assert receiver.events() == ["failed", "criterion_met", "failed"]
    assert bench.start().returncode == 0
    assert receiver.events()[3:] == ["criterion_met", "done"]


def costing(dollars: float, *steps: dict[str, Any], turns: int = 1) -> list[dict[str, Any]]:
    """A session that costs so much, at four dollars a million input tokens."""
    return [{"usage": {"input_tokens": round(dollars * 250_000 / turns), "output_tokens": 0}}, *steps]


def test_a_budget_is_warned_of_ends_with_5_and_goes_on_when_a_person_raises_it(bench, receiver):
    settings = {**NO_WALLS, "notify": [{**receiver.settings[0], "events": ["budget", "done"]}]}
    bench.write(TWO_CRITERIA, settings=settings, limits={"cost_usd": 1})
    bench.sessions(costing(0.5, {"write": {"a": "1\n"}}, turns=2), costing(0.3), costing(0.2), costing(0.4, *WRITES_B))
    for _ in range(2):  # the second one is told nothing anew, and pays for nothing
        done = bench.start()
        assert (done.returncode, len(bench.calls())) == (5, 3), said(done)
        assert "limits.cost_usd is reached: 1.0 of 1" in said(done)
        assert "Raise it in the mission and start again to go on." in said(done)
        assert "about 2.0 would be needed (1 more at what each of the 1 met ones took)" in said(done)
        assert receiver.all() == [
            ("budget", "50 % of limits.cost_usd is used: 0.5 of 1"),
            ("budget", "80 % of limits.cost_usd is used: 0.8 of 1"),
            ("budget", "100 % of limits.cost_usd is used: 1.0 of 1"),
        ]
    bench.write(TWO_CRITERIA, settings=settings, limits={"cost_usd": 2})
    done = bench.start()
    assert done.returncode == 0, said(done)
    assert f"the mission was edited; adopted: {bench.mission} (limits.cost_usd: 1 -> 2)" in said(done)
    assert receiver.all()[3][1] == "80 % of limits.cost_usd is used: 1.8 of 2"
    assert receiver.events()[3:] == ["budget", "done"]


# --------------------------------------------------------------------------------------------------------
# What the manager LLM may say, and how often it is asked
# --------------------------------------------------------------------------------------------------------


def answer(impossible: str | None = None) -> dict[str, Any]:
    """A plan of the LLM for the criterion a."""
    plan = {"focus": "a", "title": "Make a", "instruction": "Make the file a, whatever it takes.", "question": None}
    how = {"strategy": "retry_modified", "session": "resume"}
    return {"content": json.dumps({**plan, **how, "impossible": impossible})}


def managed(bench: Bench, router: OpenRouterAPI, check: str = "test -e a") -> None:
    bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
    settings = {**NO_WALLS, "openrouter": {"base_url": router.url}}
    bench.write([{**TWO_CRITERIA[0], "check": check}], settings=settings)


def test_what_the_manager_calls_impossible_twice_while_the_check_says_the_same_is_asked_of_a_person(bench, project):
    bench.sessions(IDLE, IDLE)
    with OpenRouterAPI([answer("there is no disk"), answer("there is still no disk")]) as router:
        managed(bench, router)
        done = bench.start()
        assert (done.returncode, len(bench.calls()), len(router.calls)) == (3, 1, 2), said(done)
        assert bench.start().returncode == 3
        assert (len(bench.calls()), len(router.calls)) == (1, 2)
    asked = (project / ".cco" / "reports" / "demo.blocked.md").read_text()
    for text in (said(done), asked):
        assert "The manager calls a impossible" in text
        assert "there is no disk / there is still no disk" in text


def test_what_the_manager_calls_impossible_once_is_tried(bench):
    bench.sessions(IDLE, WRITES_A)
    with OpenRouterAPI([answer("there is no disk"), answer()]) as router:
        managed(bench, router)
        done = bench.start()
    assert (done.returncode, len(bench.calls())) == (0, 2), said(done)


def test_after_a_change_in_the_failure_the_manager_has_to_say_it_twice_again(bench):
    bench.sessions([{"write": {"a": "not yet\n"}}], IDLE, IDLE)
    reasons = ("no disk", "no power", "no time")
    with OpenRouterAPI([answer(reason) for reason in reasons]) as router:
        managed(bench, router, check="cat a && grep -q done a")
        done = bench.start()
    assert (done.returncode, len(bench.calls())) == (3, 2), said(done)
    assert "no power / no time" in said(done) and "no disk" not in bench.state()["blocked"]["question"]


def test_a_manager_that_cannot_be_reached_is_asked_again_only_after_a_back_off(bench):
    down = {"status": 402, "body": {"error": {"code": 402, "message": "Insufficient credits"}}}
    bench.sessions(IDLE, IDLE, IDLE, WRITES_A)

    def once(until: float | None = None) -> tuple[int, float]:
        """One iteration; how often the LLM was asked by then, and for how long it is left alone now, in seconds."""
        if until is not None:
            bench.remember({**bench.state(), "manager": {**bench.state()["manager"], "until": until}})
        before = time.time()
        done = bench.start("--once")
        assert done.returncode in (0, 75), said(done)
        return len(router.calls), bench.state()["manager"]["until"] - before

    with OpenRouterAPI([down, down, answer()]) as router:
        managed(bench, router)
        asked, alone = once()
        assert asked == 1 and 30 <= alone < 90  # 33 at most, and what the start took until then
        assert once(until=time.time() + 1000)[0] == 1
        assert bench.state()["manager"]["failures"] == 1
        asked, alone = once(until=time.time() - 1)
        assert asked == 2 and 60 <= alone < 120
        assert bench.state()["manager"]["failures"] == 2
        assert once(until=time.time() - 1)[0] == 3
    assert bench.state()["manager"] == {"failures": 0, "since": 0, "until": 0, "useless": 0}
    assert [entry["source"] for entry in bench.state()["history"]] == ["rules"] * 3 + ["anthropic/claude-sonnet-5.5"]
    assert len(bench.calls()) == 4


# --------------------------------------------------------------------------------------------------------
# Just before a question
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a note", "settings"])
def test_an_answer_that_comes_while_the_manager_still_thinks_counts(bench, how):
    asked: list[Any] = []

    def think(request: Any) -> str:
        asked.append(request)
        if len(asked) > 1:
            return str(answer()["content"])
        if how == "a note":
            inbox.leave(bench.project / ".cco", "demo", "the file is called a")
        else:
            (bench.project / ".cco" / "config.yaml").write_text("claude_code: {max_turns: 77}\n")
        return json.dumps({**json.loads(answer()["content"]), "strategy": "escalate", "question": "Which file?"})

    bench.sessions(WRITES_A)
    with OpenRouterAPI([], think) as router:
        managed(bench, router)
        done = bench.start()
        assert done.returncode == 0, said(done)
    assert "changed while the worker ran" not in said(done)  # nobody is blamed for what a person did
    assert ("--max-turns=77" in bench.calls()[0]["argv"]) == (how == "settings")
    assert ("the file is called a" in prompts(bench)[0]) == (how == "a note")


def test_a_note_that_is_left_before_the_question_is_passed_on_instead_of_asking(bench, begin, tmp_path):
    bench.write(ONE, settings=NO_WALLS)
    bench.sessions(*[IDLE] * 3, [{"wait_for": str(tmp_path / "go")}], WRITES_A)
    kit = begin()
    until(lambda: len(bench.calls()) == 4, "the last session before the question", 60)
    assert bench.run("tell", "the file is called a").returncode == 0
    (tmp_path / "go").touch()
    assert kit.wait(60) == 0, bench.output()
    assert ["the file is called a" in prompt for prompt in prompts(bench)] == [False] * 4 + [True]


def test_a_note_is_no_answer_to_what_only_a_person_can_judge_and_the_question_comes_once(bench, receiver):
    settings = {**NO_WALLS, "notify": receiver.settings}
    bench.write([{"id": "a", "criteria": "a is nice"}, TWO_CRITERIA[1]], settings=settings)
    bench.sessions(WRITES_B)
    assert bench.start("--once").returncode == 75
    inbox.leave(bench.project / ".cco", "demo", "it is nice")
    done = bench.start()
    assert (done.returncode, len(bench.calls())) == (3, 1), said(done)
    assert receiver.events() == ["criterion_met", "blocked"]


def test_stop_is_heard_before_another_model_goes_on(bench, begin, tmp_path):
    bench.write(TWO_CRITERIA, settings=NO_WALLS)
    opus = {"limit": {"resetsAt": int(time.time()) + 5 * 3600, "rateLimitType": "seven_day_opus"}}
    bench.sessions([*WRITES_A[:1], {"wait_for": str(tmp_path / "go")}, opus], WRITES_B)
    kit = begin()
    until((bench.project / "a").exists, "the first session's work")
    assert "ends after the current session" in bench.run("stop").stdout
    (tmp_path / "go").touch()
    assert kit.wait(60) == 130, bench.output()
    assert (len(bench.calls()), bench.state()["current_phase"]) == (1, "execution")
    assert bench.start().returncode == 0
    assert (bench.state()["iterations"], bench.resumed()) == (1, [False, True])


def test_a_clock_that_was_set_back_does_not_keep_the_manager_silent(bench):
    bench.sessions(IDLE, WRITES_A)
    with OpenRouterAPI([answer()]) as router:
        managed(bench, router)
        rules = {**bench.environment, "CCO_MANAGER_PROVIDER": "rules"}
        assert bench.run("start", str(bench.mission), "--once", env=rules).returncode == 75
        bench.remember({**bench.state(), "manager": {"failures": 3, "until": time.time() + 400 * 86400}})
        assert bench.start().returncode == 0
        assert len(router.calls) == 1


def test_a_mission_that_cannot_go_on_without_a_persons_word_tells_so_once(bench, receiver):
    bench.write(ONE, settings={**NO_WALLS, "notify": receiver.settings})
    config = bench.project / ".cco" / "config.yaml"
    bench.sessions([{"write": {str(config): "claude_code: {max_turns: 77}\n"}}], WRITES_A)
    assert bench.start("--once").returncode == 75
    for _ in range(2):
        assert bench.start().returncode == 3
    assert receiver.events() == ["tampering", "failed"]
    assert "changed while a worker ran. Look at it, then: make start ACCEPT=1" in receiver.all()[1][1]
    assert bench.start("--accept").returncode == 0
