"""Nights that went wrong once: each of these made the kit say, pay or forget what it should not have."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import pytest
from bench import TWO_CRITERIA, WRITES_A, Bench
from bench import bench as bench
from conftest import KIT, until
from test_cco_faults import Clock, models, said, start

import inbox
from extras.openrouter_api import OpenRouterAPI

NO_WALLS = {"checks": {"sandbox": False}}
ANSWER = {"focus": "a", "title": "Go on", "instruction": "Write the files that are missing.", "session": "resume"}
PLAN = {"content": json.dumps({**ANSWER, "strategy": "retry_modified", "question": None})}
CRASHED = {"assistant_error": "server_error", "text": "API Error: 529 Overloaded", "api_error_status": 529}


def events(bench: Bench) -> list[str]:
    path = bench.folder / "events"
    return path.read_text().split() if path.exists() else []


def told(bench: Bench) -> list[dict[str, str]]:
    """Settings by which each message leaves its event in a file."""
    return [{"type": "command", "command": f"echo $CCO_EVENT >> '{bench.folder}/events'"}]


# --------------------------------------------------------------------------------------------------------
# Whose edit it is
# --------------------------------------------------------------------------------------------------------


def test_what_a_check_writes_into_the_mission_while_it_is_confirmed_is_nobodys_edit(bench, project):
    easy = f"sed -i 's/test -e b/true/' '{bench.mission}'"
    here = {"id": "a", "criteria": "a", "check": f'case "$PWD" in *"a project"*) ;; *) {easy};; esac; test -e a'}
    bench.write([here, TWO_CRITERIA[1]], settings=NO_WALLS)
    bench.sessions([{"write": {"a": "1", "b": "1"}}], [{"say": "nothing"}])
    bench.start()
    assert "the mission was edited" not in bench.log()
    assert "the mission changed while the checks ran" in bench.log()
    assert bench.state()["tampering"]


def test_a_mission_that_the_worker_changed_is_not_adopted_by_way_of_a_link(bench, tmp_path):
    bench.sessions(WRITES_A, [{"say": "nothing"}])
    easy = bench.mission.read_text().replace("test -e b", "true")
    bench.sessions([*WRITES_A, {"write": {str(bench.mission): easy}}], [{"say": "nothing"}])
    assert bench.start("--once").returncode == 75
    link = tmp_path / "link"
    link.symlink_to(bench.mission.parent)
    done = bench.run("start", str(link / "demo.yaml"), "--once")
    assert done.returncode == 75, said(done)
    assert bench.state()["completed_tasks"] == ["a"]


def test_a_failure_after_a_session_does_not_make_its_changes_a_persons(bench, project, git):
    (project / "acceptance").mkdir()
    (project / "acceptance" / "t.sh").write_text("test -e b\n")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "acceptance")
    check = {"id": "b", "criteria": "b", "check": "sh acceptance/t.sh"}
    bench.write([check], protect=["acceptance/**"], settings=NO_WALLS)
    bench.sessions(
        [{"write": {"acceptance/t.sh": "exit 0\n"}}, {"bash": "cp .git/HEAD ../HEAD; echo x > .git/HEAD"}],
        [{"say": "nothing"}],
    )
    assert bench.start("--once").returncode == 4
    (project / ".git" / "HEAD").write_text((bench.folder / "HEAD").read_text())
    done = bench.start("--once")
    assert bench.state()["tampering"], said(done)
    assert (project / "acceptance" / "t.sh").read_text() == "test -e b\n"
    assert bench.state()["completed_tasks"] == []


def test_an_edit_that_makes_the_plan_pointless_ends_it(bench):
    reset = int(time.time()) + 3600
    bench.sessions([*WRITES_A, {"limit": {"resetsAt": reset}}], [{"say": "nothing"}])
    assert bench.start("--no-wait").returncode == 75
    assert bench.state()["plan"]["focus"] == "a"
    bench.write(TWO_CRITERIA[1:])
    bench.sessions([{"write": {"b": "1"}}])
    done = bench.start("--no-wait")
    assert done.returncode == 0, said(done)
    assert "criterion a is gone" in done.stdout
    assert "(b)" in bench.calls()[-1]["prompt"] and "a is there" not in bench.calls()[-1]["prompt"]


# --------------------------------------------------------------------------------------------------------
# What it costs
# --------------------------------------------------------------------------------------------------------


def test_sessions_that_hang_are_paid_for_by_their_messages_until_the_limit(bench):
    dear = [{"usage": {"input_tokens": 200_000}}, {"bash": "true"}, {"hang": True}]
    bench.write(TWO_CRITERIA, limits={"cost_usd": 3}, settings={"claude_code": {"timeout": 1}})
    bench.sessions(*[dear] * 12)
    done = bench.start()
    assert done.returncode == 5, said(done)
    assert len(bench.calls()) < 6
    assert 3 <= bench.state()["metrics"]["estimated_cost"] < 5
    assert bench.state()["metrics"]["token_usage"]["input"] >= 600_000


# --------------------------------------------------------------------------------------------------------
# What is counted with what
# --------------------------------------------------------------------------------------------------------


def test_overloads_do_not_use_up_the_tries_of_a_crash(bench):
    clock = Clock(bench)
    bench.sessions(*[[{"error": CRASHED}]] * 4, [{"exit": 1}], [{"exit": 1}], [{"write": {"a": "1", "b": "1"}}])
    assert start(bench).returncode == 0
    assert bench.state()["iterations"] == 1
    assert [round(wait, -1) for wait in clock.waits()][-2:] == [pytest.approx(30, abs=10), pytest.approx(60, abs=10)]


def test_a_limit_that_is_over_again_and_again_is_backed_off_from_and_told_once(bench):
    clock = Clock(bench)
    old = int(clock.now()) - 900
    stale = {"error": {"assistant_error": "rate_limit", "text": "You've hit your session limit"}}
    event = {"event": {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": old}}}
    rounds = [[event, stale]] * 7
    bench.write(TWO_CRITERIA, settings={"notify": told(bench)})
    bench.sessions(*rounds, [{"write": {"a": "1", "b": "1"}}])
    assert start(bench).returncode == 0
    waits = clock.waits()
    assert len(waits) == 7 and waits[-1] >= 1800 and waits[0] < 150
    assert events(bench).count("limit") == 1 and events(bench).count("limit_over") == 1


# --------------------------------------------------------------------------------------------------------
# A judge that is away
# --------------------------------------------------------------------------------------------------------


def test_a_judge_that_cannot_be_reached_is_waited_for_and_nobody_is_woken(bench):
    Clock(bench)
    met = {"id": "tone", "met": True, "reason": "It is there.", "quotes": [{"path": "a", "text": "a friendly word"}]}
    down = {"status": 402, "body": {"error": {"code": 402, "message": "Insufficient credits"}}}
    answers: list[dict[str, Any]] = [PLAN, down, down, {"content": json.dumps({"files": [], "verdicts": [met]})}]
    bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
    bench.sessions([{"write": {"a": "a friendly word"}}])
    with OpenRouterAPI(answers) as router:
        settings = {"openrouter": {"base_url": router.url}, "notify": told(bench)}
        bench.write([TWO_CRITERIA[0], {"id": "tone", "criteria": "the tone is friendly"}], settings=settings)
        done = start(bench)
        assert done.returncode == 0, said(done)
        assert len(router.calls) == 4
    assert done.stdout.count("waiting for the judge to answer") == 2
    assert "blocked" not in events(bench)


JUDGED = {"id": "tone", "criteria": "the tone is friendly"}
MET = {"id": "tone", "met": True, "reason": "It is there.", "quotes": [{"path": "a", "text": "a friendly word"}]}
RULING = {"content": json.dumps({"files": [], "verdicts": [MET]})}


def judged(bench: Bench, url: str) -> None:
    """A mission whose second criterion a judge decides."""
    bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
    settings = {"openrouter": {"base_url": url}, "manager": {"when": "never"}, "notify": told(bench)}
    bench.write([TWO_CRITERIA[0], JUDGED], settings=settings)
    bench.sessions([{"write": {"a": "a friendly word"}}])


def test_one_answer_of_no_use_from_the_judge_wakes_nobody(bench):
    Clock(bench)
    useless = [{"content": "It is fine."}] * 2  # each is asked to mend its answer
    with OpenRouterAPI([*useless, RULING]) as router:
        judged(bench, router.url)
        done = start(bench)
        assert done.returncode == 0, said(done)
        assert len(router.calls) == 3
    assert done.stdout.count("waiting for the judge to answer") == 1
    assert "blocked" not in events(bench)


def test_a_judge_that_never_says_anything_of_use_ends_in_a_question(bench):
    Clock(bench)
    with OpenRouterAPI(content=lambda request: "It is fine.") as router:
        judged(bench, router.url)
        done = start(bench)
        assert done.returncode == 3, said(done)
        assert len(router.calls) == 8  # four times, each with a repair
    assert "Nothing here can prove tone" in said(done)


def test_a_planner_that_cannot_be_reached_does_not_use_up_the_judges_patience(bench):
    with OpenRouterAPI([RULING]) as router:
        judged(bench, router.url)
        assert bench.start("--once").returncode in (0, 75)
        away = {"failures": 99, "since": time.time() - 60, "until": time.time() + 9999, "useless": 0}
        bench.remember({**bench.state(), "manager": away, "current_phase": "validation"})
        done = start(bench, "--no-wait")
        assert done.returncode == 0, said(done)
        assert len(router.calls) == 1


def test_a_ruling_that_was_paid_for_is_booked_and_not_bought_again_after_a_crash(bench, project):
    marker = bench.folder / "confirming"
    wait = f"test -e '{marker}.over' || {{ touch '{marker}'; while test -e '{marker}'; do sleep 0.1; done; }}"
    wait = f"case $PWD in *clean*) {wait};; esac"
    slow = {**TWO_CRITERIA[0], "check": f"test -e a && {wait}"}
    with OpenRouterAPI([RULING]) as router:
        judged(bench, router.url)
        bench.write([slow, JUDGED], settings={**json.loads(bench.mission.read_text())["settings"], **NO_WALLS})
        process = bench.begin()
        until(marker.exists, "the clean checkout")
        process.kill()
        process.wait()
        (bench.folder / "confirming.over").touch()
        marker.unlink()
        assert bench.state()["metrics"]["api_calls_total"] == 1
        done = start(bench)
        assert done.returncode == 0, said(done)
        assert len(router.calls) == 1


def test_a_limit_of_a_tiers_model_goes_on_with_the_usual_one_and_then_waits(bench):
    clock = Clock(bench)
    now = int(time.time())
    opus = {"limit": {"resetsAt": now + 5 * 3600, "rateLimitType": "seven_day_opus"}}
    sonnet = {"limit": {"resetsAt": now + 9 * 3600, "rateLimitType": "seven_day_sonnet"}}
    claude = {"model": "sonnet", "models": {"strong": "opus"}, "fallbacks": []}
    bench.write(TWO_CRITERIA[:1], settings={"claude_code": claude})
    bench.sessions([{"say": "no"}], [{"say": "no"}], [opus], [sonnet], WRITES_A)
    done = start(bench)
    assert done.returncode == 0, said(done)
    assert models(bench) == ["sonnet", "sonnet", "opus", "sonnet", "opus"]
    (wait,) = clock.waits()
    assert 4 * 3600 < wait < 6 * 3600


def test_what_an_iteration_costs_holds_the_session_that_a_limit_cut_short(bench):
    Clock(bench)
    reset = int(time.time()) + 3600
    bench.write(TWO_CRITERIA[:1])
    bench.sessions([{"write": {"x": "1"}}, {"limit": {"resetsAt": reset}}], WRITES_A)
    assert start(bench).returncode == 0
    (entry,) = bench.state()["history"]
    assert entry["cost_usd"] == pytest.approx(bench.state()["metrics"]["estimated_cost"], abs=1e-4)


def test_a_text_of_prompts_that_is_edited_while_a_mission_runs_ends_nothing(bench, tmp_path):
    bench.kit = kit = tmp_path / "kit"
    for name in ("schema", "prompts"):
        shutil.copytree(KIT / name, kit / name)
    for path in KIT.glob("*.py"):
        shutil.copy(path, kit)
    bench.environment["OPENROUTER_API_KEY"] = "sk-or-planted-5a7c90d1"
    plan = {"focus": "a", "title": "Make a", "instruction": "Make the file a, whatever it takes.", "question": None}
    plan |= {"strategy": "retry_modified", "session": "resume"}
    with OpenRouterAPI([{"content": json.dumps(plan)}]) as router:
        bench.write(TWO_CRITERIA[:1], settings={**NO_WALLS, "openrouter": {"base_url": router.url}})
        texts = [kit / "prompts" / f"{name}.md" for name in ("error_recovery", "progress_check", "situation")]
        edits = "; ".join(f"echo 'costs $5 $nobody' >> '{path}'" for path in texts)
        bench.sessions([{"bash": edits}, {"say": "no"}], WRITES_A)
        done = start(bench)
    assert done.returncode == 0, said(done)
    assert "nothing fills $nobody" in said(done)


# --------------------------------------------------------------------------------------------------------
# Who is told
# --------------------------------------------------------------------------------------------------------


def test_what_stops_a_mission_at_night_is_told_once_whatever_number_is_in_it(bench, project):
    bench.write(TWO_CRITERIA, settings={"notify": told(bench)})
    errors = [f"Invalid API key · request req_{number}" for number in (11, 22, 33)]
    login = [{"assistant_error": "authentication_failed", "text": text, "api_error_status": 401} for text in errors]
    bench.sessions(*[[{"error": error}] for error in login], WRITES_A)
    for _ in login:
        assert bench.start().returncode == 4
    assert events(bench).count("failed") == 1
    assert bench.start("--once").returncode == 75
    (project / "README.md").write_text("a person was here")
    for _ in range(2):
        assert bench.start("--no-wait").returncode == 2
    assert events(bench).count("failed") == 2


# --------------------------------------------------------------------------------------------------------
# Whose files they are
# --------------------------------------------------------------------------------------------------------


def test_what_a_person_changes_after_a_refused_check_is_not_committed(bench, project):
    bench.write([{"id": "a", "criteria": "a", "check": "true"}, TWO_CRITERIA[1]])
    assert bench.start().returncode == 2
    bench.write(TWO_CRITERIA)
    (project / "README.md").write_text("my own words\n")
    done = bench.start()
    assert done.returncode == 2
    assert "uncommitted changes" in said(done) and "README.md" in said(done)
    assert bench.calls() == []


def test_a_state_from_elsewhere_names_no_file_to_be_removed(tmp_path):
    mine = tmp_path / "mine.md"
    mine.touch()
    (tmp_path / ".cco" / "inbox").mkdir(parents=True)
    ids = (str(mine), "../../mine.md", "demo./../../mine.md", "other.1.md")
    notes = [{"id": id, "text": "x", "iteration": None} for id in ids]
    inbox.clear(tmp_path / ".cco", {"mission_id": "demo", "notes": notes})
    assert mine.exists()


def test_a_link_in_the_place_of_the_lock_or_of_a_folder_is_not_followed(bench, project, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "old").write_text("mine\n")
    (project / ".cco" / "logs").mkdir(parents=True)
    (project / ".cco" / "lock").symlink_to(mine / "old")
    assert bench.start().returncode == 4
    (project / ".cco" / "lock").unlink()
    (project / ".cco" / "logs" / "sessions").rmdir()
    (project / ".cco" / "logs" / "sessions").symlink_to(mine)
    assert bench.start().returncode == 4
    assert (mine / "old").read_text() == "mine\n"


def test_done_names_the_branch_that_the_work_is_on(bench, git, project):
    bench.sessions(WRITES_A, [{"write": {"b": "1"}}])
    assert bench.start("--once").returncode == 75
    git(project, "checkout", "-q", "-b", "feature/x")
    bench.write(TWO_CRITERIA, settings={"repository": {"branch": "feature/x"}})
    done = bench.start()
    assert done.returncode == 0
    assert "git merge feature/x" in done.stdout
