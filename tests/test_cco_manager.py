"""What to do next: the rules and their ladder, the manager LLM at its best and at its worst, and which model works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_cco_prompt import METS, criterion, situation

import llm
import prompt
from manager import WITHOUT_PROGRESS, decide, objection, rules, warnings, way_back, worker_models
from mission import HERE, Settings, load_settings
from state import ATTEMPTS, STALLS, Best, Outcome, Plan, State, Usage, Verdict, digest

FIX = "Fix the parser in src/parser.py until `make c1` exits 0."
GOOD: dict[str, Any] = {"focus": "c1", "title": "Fix the parser", "instruction": FIX, "strategy": "retry_modified"}
GOOD |= {"session": "resume", "tier": None, "encouragement": None, "question": None}
USER = {"strategy": "escalate", "question": "Which port?"}
CENT = Usage(0.01, 1, 0, {"input": 1000})
BROKEN = {"mets": (2,), "broke": ["c2"]}


def settings(**environ: str) -> Settings:
    """The kit's real settings, from an environment."""
    return load_settings(None, None, {"OPENROUTER_API_KEY": f"sk-or-v1-{'0123456789abcdef' * 4}", **environ})


@pytest.fixture
def asked(monkeypatch) -> list[Any]:
    """A manager LLM that gives the answers in `asked.answers`, else GOOD; the questions that it was asked."""

    class Asked(list):
        answers: list[Any] = []

    asked = Asked()

    def ask(question: llm.Question, _: Any) -> llm.Answer:
        asked.append(question)
        answer = asked.answers.pop(0) if asked.answers else GOOD
        if isinstance(answer, Exception):
            raise answer
        return llm.Answer(answer, "m/n", CENT)

    monkeypatch.setattr(llm, "ask", ask)
    return asked


# By rules


def test_the_rules_choose_the_most_pressing_open_criterion():
    low, critical = criterion("c2", priority="low"), {"priority": "critical"}
    for criteria, focus in (
        ([criterion(), criterion("c2")], "c1"),
        ([criterion(), low, criterion("c3", **critical)], "c3"),
        ([criterion(stalls=3), criterion("c2")], "c1"),
        ([criterion(stalls=4), criterion("c2")], "c2"),
        ([criterion(verdict="unjudged", check=None, **critical), low], "c2"),
        ([criterion(verdict="unjudged", **critical), low], "c2"),
        ([criterion(verdict="broken"), criterion("c2", "timeout")], "c1"),
    ):
        plan = rules(situation(*criteria))
        assert (plan.focus, plan.decided_by, plan.usage, plan.question) == (focus, "rules", Usage(), None)
    assert rules(situation(criterion(), criterion("c2"), **BROKEN)).focus == "c2"  # a regression, among equals
    assert rules(situation(criterion(**critical), criterion("c2"), **BROKEN)).focus == "c1"


def test_the_ladder_of_one_criterion():
    ways = {1: ("retry_modified", "resume"), 2: ("alternative", "fresh"), 5: ("alternative", "fresh")}
    for stalls, way in {**ways, 6: ("escalate", "fresh")}.items():
        plan = rules(situation(criterion(stalls=stalls), resumable=True))
        assert (plan.strategy, plan.session) == way
        assert ("another approach" in plan.instruction) is (stalls in (2, 5))
    assert rules(situation(criterion(stalls=1), resumable=False)).session == "fresh"


def test_what_is_set_aside_is_left_alone_until_nothing_else_is_open():
    plan = rules(situation(criterion(), criterion("c2", stalls=4), criterion("c3"), resumable=True))
    assert (plan.focus, plan.strategy, plan.session) == ("c1", "partial", "resume")
    assert plan.instruction.endswith("go on with the next of these: c3.")
    assert rules(situation(criterion(stalls=2), criterion("c2", stalls=4))).strategy == "alternative"


def test_the_instruction_says_what_the_list_of_criteria_does_not():
    assert rules(situation(resumable=True)).instruction == 'Make the criterion "c1 works" (c1) true.'
    said = rules(situation(criterion("c2"), criterion("c4"), criterion("c3", "met"), **BROKEN)).instruction
    assert "It was met before: find what in the change named above broke it" in said
    assert "go on with the next of these: c4." in said and "c3" not in said
    said = rules(situation(criterion(fails_in_clean_checkout=True, flaky=True))).instruction
    assert "not in a clean checkout of the commit" in said and "three times in a row" in said
    assert "whoever judges it reads nothing but the files" in rules(situation(criterion(check=None))).instruction


# The questions to the user


def test_the_user_is_asked_about_the_most_important_one_that_is_stuck():
    stuck = [criterion(stalls=6), criterion("c2", stalls=6, priority="high"), criterion("c3", "met")]
    plan = rules(situation(*stuck, criterion("c4", "unjudged", "critical")))
    assert (plan.focus, plan.strategy, plan.session) == ("c2", "escalate", "fresh")
    assert plan.question == plan.instruction and plan.title == "Ask about c2"
    assert "The last sessions on c2 (c2 works) changed nothing in how its check fails: `make c2`" in str(plan.question)
    assert "ended as" not in str(plan.question)
    last = Outcome("crashed", "Segmentation fault")
    judged = str(rules(situation(criterion(check=None, stalls=6), mets=(0,), last=last)).question)
    assert "in how it is judged. Is it clear" in judged and "`" not in judged
    assert "The last session ended as crashed: Segmentation fault" in judged


def test_without_a_judge_a_session_works_on_a_criterion_first_and_then_the_user_looks_at_it():
    ideas = [criterion("tone", "unjudged", check=None), criterion("looks", "unjudged", check=None)]
    plan = rules(situation(criterion("tests", "met"), *ideas))
    assert (plan.focus, plan.strategy) == ("tone", "retry_modified")
    for idea in ideas:
        idea["known"]["attempts"] = 1
    plan = rules(situation(criterion("tests", "met"), *ideas))
    assert (plan.focus, plan.strategy) == ("tone", "escalate")
    assert "Nothing here can prove tone, looks" in str(plan.question)
    assert "make accept ID=tone. Else say what is missing (make tell TEXT=...)" in str(plan.question)
    here = situation(criterion("tone", "unjudged", check=None))
    here.state.asked["judge"] = {"failures": 1, "until": 0.0}
    assert rules(here).strategy == "escalate"  # there is a judge, who cannot be reached: it may be met


def test_many_sessions_without_progress_end_in_a_question():
    here = situation(criterion(), criterion("c2", priority="high"), criterion("c3", "met"), mets=(1,) * 41)
    here.state.best, here.state.answered = Best("", 1, 41, since=1), 2
    assert rules(here).strategy == "retry_modified"
    here.state.answered = 0
    plan = rules(here)
    assert (plan.focus, plan.strategy) == ("c2", "escalate")
    assert f"{WITHOUT_PROGRESS} sessions in a row" in str(plan.question)
    assert "Not met now: c2, c1." in str(plan.question)


# The ladder over many iterations


class Worked:
    """A mission whose sessions fail as told."""

    def __init__(self, *ids: str):
        self.here = situation(*map(criterion, ids), resumable=True)
        self.see("it failed")

    def see(self, *failures: str) -> None:
        """Record what the checks say: "" is met; the last failure holds for all others."""
        ids = list(self.here.state.criteria)
        pairs = zip(ids, [*failures, *failures[-1:] * len(ids)], strict=False)
        verdicts = {id: Verdict(id, "unmet" if failure else "met", failure=failure) for id, failure in pairs}
        self.here.state.record_results(verdicts)

    def climb(self, results: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
        """Return focus and strategy of each iteration until the user is asked. results: after each of them."""
        made = []
        while (plan := rules(self.here)).strategy != "escalate":
            assert len(made) < 100, "it never ends"
            state, failures = self.here.state, results[min(len(made), len(results) - 1)]
            made.append((plan.focus, plan.strategy))
            state.record_plan(plan)
            state.begin_iteration()
            state.record_outcome(Outcome("ended"))
            self.see(*failures)
            state.finish_iteration({})
        return made


def test_what_no_session_changes_is_asked_about_after_six_and_what_fails_anew_each_time_in_the_end():
    way = Worked("a").climb([["it failed"]])
    assert [strategy for _, strategy in way] == ["retry_modified"] * 2 + ["alternative"] * 4
    way = Worked("a").climb([[f"failure {n}"] for n in range(100)])
    assert len(way) == STALLS[2] * ATTEMPTS


def test_what_is_set_aside_is_tried_again_when_nothing_else_is_left():
    way = Worked("a", "b").climb([["it failed"]] * 4 + [["it failed", ""]])
    assert way[:4] == [("a", "retry_modified")] * 2 + [("a", "alternative")] * 2
    assert way[4:] == [("b", "partial"), *[("a", "alternative")] * 2]


def test_criteria_that_keep_breaking_each_other_are_for_the_user_to_weigh():
    worked = Worked("a", "b", "c")
    way = worked.climb([["", "no"], ["no", "", "no"]] * 9)
    assert [focus for focus, _ in way] == [*"abab"]  # in three of these one became met and the other broke
    plan, state = rules(worked.here), worked.here.state
    assert (plan.focus, plan.strategy) == ("a", "escalate")
    assert "a (a works) and b (b works) keep breaking each other" in str(plan.question)
    state.answered = state.iterations
    assert rules(worked.here).strategy == "retry_modified"
    state.answered = 0
    worked.see("", "", "no")  # both hold now
    assert rules(worked.here).focus == "c"


def test_the_way_back_is_the_best_commit_after_a_streak_below_it():
    state = situation(mets=(3, 1, 1, 2)).state
    assert way_back(state) == ""
    state.best = Best("b" * 40, 3, 1)
    assert way_back(state) == ""  # nothing broke
    state.history[1].broke = ["c1"]
    assert way_back(state) == "b" * 40
    for changed in (replace(state.best, returns=2), replace(state.best, iteration=2), replace(state.best, met=2)):
        assert way_back(State(**{**vars(state), "best": changed})) == ""


# By the LLM


def test_no_call_is_made_when_rules_decide_or_the_user_is_asked(asked):
    stuck, no_judge = situation(criterion(stalls=6)), situation(criterion("c2", "unjudged", check=None, attempts=1))
    assert decide(situation(), settings(CCO_MANAGER_PROVIDER="rules")) == rules(situation())
    assert decide(situation(), settings(), may_ask=False) == rules(situation())
    assert all(decide(here, settings()) == rules(here) for here in (stuck, no_judge))
    assert asked == []


def test_the_llm_is_asked_when_the_settings_say_so_and_calls_avoided_are_counted(asked):
    well = situation(criterion(), criterion("c2", "met"), mets=(1,))
    badly = [
        situation(criterion(stalls=1), criterion("c2", "met"), mets=(1,)),
        situation(criterion(), mets=(1,), last=Outcome("crashed")),
        situation(criterion(), mets=METS["struggling"]),
        situation(criterion(), mets=METS["stuck"]),
        situation(criterion(check=None, stalls=1)),
    ]
    judged = situation(criterion(check=None))  # the judge has just said what is missing
    one_aside = situation(criterion(), criterion("c2", stalls=4), mets=(1,))
    ways = [("always", well, 1), ("always", judged, 0), *(("stalled", here, 0) for here in (well, judged, one_aside))]
    ways += [*(("stalled", here, 1) for here in badly), *(("never", here, 0) for here in (well, *badly))]
    for when, here, calls in ways:
        asked.clear()
        plan = decide(here, settings(CCO_MANAGER_WHEN=when))
        assert len(asked) == calls and plan.avoided == 1 - calls
        assert plan.decided_by == ("m/n" if calls else "rules")
        assert calls or replace(plan, avoided=0) == rules(here)


def test_the_question_is_the_prompt_for_the_tier_of_what_presses_most(asked):
    for stalls in (0, 1, 2, 3):
        here = situation(criterion(stalls=stalls), criterion("c2", stalls=9))
        decide(here, settings(CCO_OPENROUTER_MAX_PROMPT="12KB"))
        assert (asked[-1].system, asked[-1].user) == prompt.for_manager(here, 12 * 1024)
        known = (asked[-1].schema, asked[-1].session, asked[-1].root)
        assert known == ("plan", here.state.session_id, here.mission.repository)
    assert [question.tier for question in asked] == ["economy", "standard", "strong", "strong"]


def test_a_good_answer_is_the_plan_and_names_who_decided_and_what_it_cost(asked, capsys):
    expected = {**GOOD, "tier": "strong", "encouragement": "Half of it is there.", "title": "Fix it"}
    asked.answers = [{**expected, "title": "Fix\n it"}]
    plan = decide(situation(resumable=True), settings())
    assert plan == Plan(**expected, decided_by="m/n", usage=CENT)
    assert capsys.readouterr().err == ""


def test_the_llm_may_climb_the_ladder_of_its_criterion_but_not_stay_below_it(asked):
    ways: list[tuple[int, dict[str, Any], str, str]] = [
        (0, {"session": "fresh"}, "retry_modified", "fresh"),
        (0, {"strategy": "alternative", "session": "fresh"}, "alternative", "fresh"),
        (0, {"strategy": "partial"}, "partial", "resume"),
        (1, {}, "retry_modified", "resume"),
        (2, {}, "alternative", "fresh"),
        (3, {"strategy": "partial"}, "partial", "fresh"),
        (3, USER, "escalate", "fresh"),
    ]
    for stalls, answer, *way in ways:
        asked.answers = [{**GOOD, **answer, "focus": "c2"}]
        here = situation(criterion(priority="critical"), criterion("c2", stalls=stalls), resumable=True)
        plan = decide(here, settings())
        assert [plan.focus, plan.strategy, plan.session] == ["c2", *way]
        assert (plan.instruction, plan.question) == (GOOD["instruction"], answer.get("question"))
    assert decide(situation(resumable=False), settings()).session == "fresh"


def test_the_user_is_asked_when_the_llm_wants_that_again_after_one_more_session(asked):
    asked.answers = [{**GOOD, **USER}, {**GOOD, **USER}, {**GOOD, "question": "unasked"}]
    first = decide(situation(), settings())
    assert (first.strategy, first.question) == ("retry_modified", "Which port?")
    again = decide(situation(criterion(doubt="Which port?")), settings())
    assert (again.strategy, again.question) == ("escalate", "Which port?")
    assert decide(situation(), settings()).question is None


def refusal(*criteria: dict[str, Any], **changed: Any) -> str:
    return objection({**GOOD, **changed}, situation(*criteria))


def test_only_what_is_open_can_be_chosen():
    criteria = [criterion(), criterion("green", "met"), criterion("aside", stalls=4), criterion("c2", "unjudged")]
    for focus in ("c9", "green", "aside", "", "C1"):
        assert refusal(*criteria, focus=focus) == f'"focus" is {focus!r}, which is not one of c1, c2'
    assert refusal(*criteria, focus="c2") == ""  # it may work ahead
    for stalls, is_refused in ((4, False), (6, True)):  # nothing else is left
        here = situation(criterion(stalls=stalls), criterion("c2", "met"), criterion("c3", "met"), mets=(1,))
        assert bool(objection(GOOD, here)) == is_refused


def test_what_failed_is_not_asked_for_again_word_for_word():
    tried = criterion(failed_instructions=[digest("another"), digest(FIX)])
    for again in (FIX, "  FIX the\n\nparser, in `src/parser.py`; until make c1 exits 0!\n"):
        assert 'this "instruction" was given before, word for word, and c1 is' in refusal(tried, instruction=again)
        assert refusal(tried, instruction=f"{again} Begin at line 3.") == ""
        assert refusal(criterion(), {**tried, "id": "c2"}, instruction=again) == ""
        assert refusal(tried, instruction=again, **USER) == ""


def test_an_answer_without_a_word_or_question_or_without_end_is_refused():
    for nothing in (" " * 30, ". " * 20, "…" * 25):
        assert refusal(instruction=nothing) == '"instruction" is empty'
    for no in (None, " \n"):
        assert refusal(strategy="escalate", question=no) == '"strategy" is "escalate", and there is no "question"'
    assert refusal(instruction="é" * 4_000) == "it is too long: say it in fewer words"


def test_the_rules_stand_in_for_an_llm_that_gives_no_plan(asked, capsys):
    asked.answers = [llm.NoAnswer("nonsense", CENT), llm.Unreachable("no credit", CENT, 4_000_000_000.0)]
    assert decide(situation(), settings()) == replace(rules(situation()), usage=CENT)
    assert "gave no plan, the rules decide this iteration: nonsense" in capsys.readouterr().err
    later = replace(rules(situation()), usage=CENT, unreachable=True, until=4_000_000_000.0)
    assert decide(situation(), settings()) == later
    assert decide(situation(), settings()).decided_by == "m/n"  # the next iteration asks again


def test_the_schema_of_the_answer_and_the_plan_agree():
    known = json.loads((HERE / "schema" / "plan.json").read_text("utf-8"))["properties"]
    assert known["strategy"]["enum"] == ["retry_modified", "alternative", "partial", "escalate"]
    assert known["tier"]["enum"] == ["economy", "standard", "strong", None]
    assert known["session"]["enum"] == ["resume", "fresh"]
    assert {*known} == {*GOOD} <= {*Plan.__dataclass_fields__}


# Models


def test_the_worker_gets_the_model_of_the_plans_tier_and_the_strong_one_when_sessions_changed_nothing():
    state, opus = situation().state, {"MODEL": "opus"}
    for named, standard, economy, strong in (
        ({}, [None], [None], [None]),
        (opus, ["opus"], ["opus"], ["opus"]),
        ({"MODELS_ECONOMY": "haiku"}, [None], ["haiku", None], [None]),
        ({**opus, "MODELS_STANDARD": "sonnet"}, ["sonnet"], ["sonnet"], ["sonnet"]),
        ({"MODELS_STRONG": "opus"}, [None], [None], ["opus", None]),
    ):
        chosen = settings(**{f"CCO_CLAUDE_CODE_{name}": model for name, model in named.items()})
        chosen.claude_code.fallbacks = ["fable"]
        for tier, models in ((None, standard), ("economy", economy), ("standard", standard), ("strong", strong)):
            for stalls, expected in ((0, models), (2, strong)):
                state.criteria["c1"].stalls = stalls
                assert worker_models(Plan("c1", "", "", tier=tier), state, chosen) == [*expected, "fable"]


def test_a_model_that_is_used_up_is_passed_over_with_all_of_its_family():
    chosen, state = settings(CCO_CLAUDE_CODE_MODEL="claude-opus-5"), situation().state
    chosen.claude_code.fallbacks = ["opus", "sonnet"]
    state.limit_model("claude-opus-5", "opus", 60)
    assert worker_models(Plan("c1", "", ""), state, chosen) == ["sonnet"]
    state.limited_models = dict.fromkeys(state.limited_models, 0.0)  # long over
    assert worker_models(Plan("c1", "", ""), state, chosen) == ["claude-opus-5", "opus", "sonnet"]


def test_a_manager_without_a_key_is_warned_of():
    assert len(warnings(settings(OPENROUTER_API_KEY="", CCO_MANAGER_PROVIDER="openrouter"))) == 1
    local = {"CCO_OPENROUTER_BASE_URL": "http://127.0.0.1:11434/v1"}
    for fine in ({"CCO_MANAGER_PROVIDER": "openrouter"}, {"OPENROUTER_API_KEY": "", **local}):
        assert warnings(settings(**fine)) == []
