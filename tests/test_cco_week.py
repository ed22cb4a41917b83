"""A week in which nobody looks: a limit every five hours, two power cuts, one night without the network; it ends done.

The real command line, git and checks; the kit's clock is put forward by each wait (see tests/test_cco_faults.py), and
the stand-in for claude reads the same clock. What takes a week there takes seconds here.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from datetime import datetime, timezone
from typing import Any

import pytest
from bench import Bench
from bench import bench as bench
from conftest import KIT
from test_cco_faults import charged, hurried

PIECES = 10  # each is a criterion, and takes three windows of the usage limit
MONDAY = datetime(2026, 11, 30, 9, 0, tzinfo=timezone.utc).timestamp()
DAY, HOUR = 86400.0, 3600.0
WINDOW = 5 * HOUR  # of the usage limit
NIGHT = (MONDAY + 1.5 * DAY, MONDAY + 2 * DAY)  # without the network
CUTS = (MONDAY + 0.7 * DAY, MONDAY + 4 * DAY)  # power cuts: in a wait, and in the middle of a session
OUTAGE = 2 * HOUR  # until the machine is on again
STARTS = 6

CLOCK = """
import os
import time

real, clock = time.time, open({clock!r}, "a+", buffering=1)


def ahead():
    clock.seek(0)
    return sum(map(float, clock))


passed = ahead()


def pause(seconds):
    global passed
    passed += seconds
    clock.write("%r\\n" % seconds)
    if not os.path.exists({cut!r}) and time.time() > {when!r}:
        open({cut!r}, "w").close()
        os.kill(os.getpid(), 9)
    return not proc.stopping


time.time = lambda: real() + passed
proc.pause = pause
processes._boot_id = lambda: open({boot!r}).read()
"""

CLAUDE = """
import json
import os
import sys
import time

sys.path.insert(0, {kit!r})
now = time.time() + sum(map(float, open({clock!r})))
book = json.load(open({book!r})) if os.path.exists({book!r}) else {{"window": 0, "sessions": 0}}
down = {{"assistant_error": "server_error", "text": "API Error: Unable to connect to API (ConnectionRefused)"}}
if {night[0]!r} < now < {night[1]!r}:
    steps = [{{"error": down}}]
elif now < book["window"] and book["sessions"] >= 1:
    steps = [{{"limit": {{"resetsAt": int(book["window"])}}}}]
else:
    if now >= book["window"]:
        book.update(window=now - now % 60 + {window!r}, sessions=0, pieces=book.get("pieces", 0) + 1)
    book["sessions"] += 1
    done = sorted(os.listdir("parts")) if os.path.isdir("parts") else []
    write = {{"append": {{"notes.txt": "%d\\n" % now}}}}
    steps = [write, {{"limit": {{"resetsAt": int(book["window"])}}}}]
    if book["pieces"] % 3 == 0:
        piece = "parts/%02d" % (len(done) + 1)
        steps = [write, {{"write": {{piece: "here\\n"}}}}, {{"say": "wrote " + piece}}]
    if now > {when!r} and not os.path.exists({cut!r}):
        open({cut!r}, "w").close()
        steps = [write, {{"bash": "kill -9 %d %d" % (os.getppid(), os.getpid())}}]
json.dump(book, open({book!r}, "w"))
script = {book!r} + ".steps"
json.dump([steps], open(script, "w"))
for leftover in (script + ".used",):
    if os.path.exists(leftover):
        os.unlink(leftover)
os.environ["CLAUDE_STAND_IN"] = script
os.execv(sys.executable, [sys.executable, {kit!r} + "/extras/claude_stand_in.py", *sys.argv[1:]])
"""


class Week:
    """The clock, the machine that is switched off and on, and a worker that lives by the same clock."""

    def __init__(self, bench: Bench):
        self.bench, folder = bench, bench.folder
        self.clock, self.boot = folder / "clock", folder / "boot id"
        places: dict[str, Any] = {"clock": str(self.clock), "boot": str(self.boot), "kit": str(KIT)}
        cuts = [str(folder / f"cut {number}") for number in (1, 2)]
        self.skip(MONDAY - time.time())
        self.boot.write_text("boot 1")
        hurried(bench, CLOCK.format(**places, cut=cuts[0], when=CUTS[0]))
        program = folder / "claude"
        book, times = str(folder / "book"), {"night": NIGHT, "window": WINDOW}
        text = CLAUDE.format(**places, **times, book=book, cut=cuts[1], when=CUTS[1])
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(0o755)
        bench.script = folder / "book.steps"  # whose books of costs are looked at
        parts = [
            {"id": f"p{n}", "criteria": f"part {n} is there", "check": f"test -s parts/{n:02}"} for n in all_parts()
        ]
        bench.write(parts, settings={"claude_code": {"command": str(program)}, "checks": {"sandbox": False}})

    def skip(self, seconds: float) -> None:
        """Let time go by while nothing runs."""
        with self.clock.open("a") as file:
            print(repr(seconds), file=file)

    def now(self) -> float:
        return time.time() + sum(map(float, self.clock.read_text().split()))

    def live(self) -> list[int]:
        """What somebody who starts it after each power cut sees: the exit codes."""
        codes = []
        while len(codes) < STARTS and (not codes or codes[-1] == -9):
            codes.append(self.bench.run("start", str(self.bench.mission), timeout=120).returncode)
            self.skip(OUTAGE if codes[-1] == -9 else 0.0)
            self.boot.write_text(f"boot {len(codes) + 1}")
        return codes


def all_parts() -> range:
    return range(1, PIECES + 1)


def told(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.log().splitlines()]


@pytest.fixture
def week(bench, monkeypatch) -> Week:
    bench.environment["TZ"] = "UTC"
    return Week(bench)


def test_a_week_of_limits_power_cuts_and_a_night_offline_ends_done_and_its_log_reads_like_a_story(week, bench, git):
    begun = time.monotonic()
    codes = week.live()
    took = time.monotonic() - begun
    state, story = bench.state(), told(bench)
    assert codes == [-9, -9, 0], bench.log()[-3000:]
    assert week.now() - MONDAY > 6 * DAY

    # Each part took one iteration, whatever came in between, and nothing was counted or committed twice.
    assert (state["iterations"], state["completed_tasks"]) == (PIECES, [f"p{n}" for n in all_parts()])
    trailers = git(
        bench.project, "log", "--format=%(trailers:key=CCO-Iteration,valueonly,separator=)", "main..cco/demo"
    )
    assert [int(number) for number in trailers.split()] == [*reversed(all_parts())]
    assert state["metrics"]["estimated_cost"] == pytest.approx(charged(bench), abs=1e-4)
    assert not any(known["stalls"] for known in state["criteria"].values())
    assert not bench.alive()

    # The log is of that week and in its order; it names each thing once, and nothing in it is an error.
    when = [datetime.fromisoformat(line["ts"]).timestamp() for line in story]
    assert when == sorted(when) and when[0] >= MONDAY and when[-1] - when[0] > 6 * DAY
    said = [line["msg"] for line in story]
    limits = [
        line for line in said if re.match(r"session limit after .*: You've hit your 5-hour limit · resets ", line)
    ]
    waits = [
        line for line in said if re.match(r"waiting for the usage limit, until \w+ \d\d:\d\d: \d h \d\d min$", line)
    ]
    over = [line for line in said if line.startswith("the usage limit is over; iteration")]
    assert len(limits) > 25 and len(waits) == len(limits) + 1  # one of them was begun again after a power cut
    assert len(over) == len(limits)
    assert len([line for line in said if line.startswith("mission demo goes on in iteration")]) == len(CUTS)
    tries = [
        t for t, line in zip(when, said, strict=True) if line.startswith("waiting for the service to answer again")
    ]
    assert all(NIGHT[0] <= t <= NIGHT[1] for t in tries)
    assert 20 <= len(tries) <= 40  # at last every half hour of twelve
    assert "ended 1 processes" not in "".join(said)  # what ran before the power cut is nobody of now
    assert not [line["msg"] for line in story if line["level"] == "ERROR"]
    assert said[-2].startswith("done: all 10 criteria are met")
    print(f"a week in {took:.0f} s: {len(limits)} limits, {len(tries)} tries in the night, {len(story)} lines")
    with (bench.folder / "story").open("w") as file:
        file.writelines(f"{line['ts'][:16]}  {line['msg']}\n" for line in story)
    assert os.path.getsize(bench.folder / "story") < 100_000
