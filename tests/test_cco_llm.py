"""One question, one valid answer: what is sent, what counts as an answer, and how one that can be mended is mended.

Who answers is made up here, except for the last part, which asks over HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import claude_llm
import llm
import log
import openrouter
import prompt
from extras.openrouter_api import OpenRouterAPI, row
from llm import Answer, Question, ask
from mission import load_settings
from openrouter import NoAnswer, Reply, Unreachable

SECRET = "correct-horse-battery-staple"
KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
GOOD = {
    "focus": "c1",
    "title": "Mend the parser",
    "instruction": "Mend the parser in src/parser.py until `make c1` exits 0.",
    "strategy": "retry_modified",
    "session": "resume",
    "question": None,
}


def good(**changed: Any) -> str:
    """An answer in the shape of schema/plan.json."""
    return json.dumps({**GOOD, **changed})


class Model:
    """Answers in the place of openrouter.complete, at a cent a time; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[str | NoAnswer] = []
        self.asked: list[SimpleNamespace] = []

    def complete(self, messages, shape, models, settings, bill, end, session="") -> Reply:
        self.asked.append(SimpleNamespace(messages=messages, shape=shape, models=models, end=end, session=session))
        bill.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, NoAnswer):
            raise answer
        bill.cost_usd += 0.01
        bill.tokens["input"] += 1000
        return Reply(answer, "m/n")

    def told(self, number: int = -1) -> list[tuple[str, str]]:
        """The messages of one call, by role and text."""
        return [(message["role"], message["content"]) for message in self.asked[number].messages]


@pytest.fixture
def model(monkeypatch) -> Model:
    made = Model()
    monkeypatch.setattr(openrouter, "complete", made.complete)
    return made


def settings(**environ: str) -> Any:
    return load_settings(None, None, {"OPENROUTER_API_KEY": KEY, **environ})


def answer_to(model: Model, *answers: str | NoAnswer, **question: Any) -> Answer:
    model.answers = list(answers)
    usual = {"system": "Who you are.", "user": "What is asked.", "schema": "plan"}
    return ask(Question(**usual | question), settings())


def refused(model: Model, *answers: str | NoAnswer, **question: Any) -> NoAnswer:
    """The refusal of answers that are all asked for."""
    with pytest.raises(NoAnswer) as caught:
        answer_to(model, *answers, **question)
    assert model.answers == []
    assert len(str(caught.value)) < 2000
    return caught.value


# --------------------------------------------------------------------------------------------------------
# What is sent
# --------------------------------------------------------------------------------------------------------


def test_the_system_prompt_comes_first_and_the_question_after_it(model):
    answer_to(model, good(), session="mission-1")
    (call,) = model.asked
    assert call.messages == [
        {"role": "system", "content": "Who you are."},
        {"role": "user", "content": "What is asked."},
    ]
    assert (call.shape.name, call.session) == ("plan", "mission-1")
    assert call.shape.schema == json.loads((llm.FOLDER / "plan.json").read_text())


def test_both_texts_are_masked_before_they_leave(model, fresh_mask):
    log.know_value(SECRET)
    answer_to(model, good(), system=f"Your password is {SECRET}.", user=f"Jo <jo.doe@gmail.com> printed {KEY}.")
    (system, user) = [text for _, text in model.told()]
    assert system == "Your password is ***."
    assert KEY not in user and "jo.doe" not in user


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ((), ["a/first", "b/second", "c/third"]),
        (("x/one",), ["x/one"]),
    ],
)
def test_the_questions_models_are_asked_else_those_of_the_settings(model, given, asked):
    model.answers = [good()]
    fallbacks = json.dumps(["b/second", "c/third"])
    config = settings(CCO_OPENROUTER_MODEL="a/first", CCO_OPENROUTER_FALLBACKS=fallbacks)
    ask(Question("", "", "plan", models=given), config)
    assert list(model.asked[0].models) == asked


def test_with_the_provider_claude_claude_code_is_asked_with_the_same(model, monkeypatch):
    calls: list[tuple[Any, ...]] = []

    def complete(messages, shape, models: Sequence[str], settings, bill, end, root: Path) -> Reply:
        calls.append((messages[0]["content"], shape.name, models, root))
        return Reply(good(), "claude-opus-5-5")

    monkeypatch.setattr(claude_llm, "complete", complete)
    config = settings(CCO_MANAGER_PROVIDER="claude")
    answer = ask(Question("Who.", "What.", "plan", models=("sonnet",), root=Path("/r")), config)
    ask(Question("Who.", "What.", "plan"), config)
    assert answer.model == "claude-opus-5-5"
    assert calls == [("Who.", "plan", ("sonnet",), Path("/r")), ("Who.", "plan", (), Path())]
    assert model.asked == []


# --------------------------------------------------------------------------------------------------------
# What is an answer
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        good(),
        f"  \n{good()}\n\n",
        json.dumps(GOOD, indent=4),
        f"```json\n{good()}\n```",
        f"```\n{good()}\n```\n",
        f"```JSON {good()}```",
        f"<think>\nPerhaps {{}}? No.\n</think>\n{good()}",
        f"\n<think></think>```json\n{good(title='Say </think> and ```')}\n```",
    ],
)
def test_a_good_answer_is_read_in_whatever_wrapping(model, text):
    answer = answer_to(model, text)
    assert {**answer.content, "title": GOOD["title"]} == GOOD
    assert (answer.model, answer.bill.calls, answer.bill.cost_usd) == ("m/n", 1, 0.01)


def test_an_answer_is_masked_and_can_be_written_and_sent_however_deep_the_text_stands(model, fresh_mask):
    log.know_value(SECRET)
    odd = f"It says {SECRET}. \x1b[31m\0 \ud800 Then."
    clean = "It says ***.  [31m    Then."

    def verdict(text: str) -> dict[str, Any]:
        return {"id": "c1", "met": True, "reason": text, "quotes": [{"path": text, "text": text}]}

    content = answer_to(model, json.dumps({"files": [odd], "verdicts": [verdict(odd)]}), schema="judge").content
    assert content == {"files": [clean], "verdicts": [verdict(clean)]}


def test_what_is_too_short_once_it_is_masked_is_no_answer(model, fresh_mask):
    log.know_value(SECRET)
    assert "too short" in str(refused(model, good(instruction=SECRET), good(instruction=SECRET)))


BAD: dict[str, tuple[str, str]] = {
    "prose": ("I would mend the parser first.", "not one JSON object"),
    "JSON in prose": (f"Here is the plan: {good()} Good luck!", "not one JSON object"),
    "JSON before prose": (f"{good()}\nGood luck!", "not one JSON object"),
    "a fence in prose": (f"The plan:\n```json\n{good()}\n```", "not one JSON object"),
    "two fences": (f"```json\n{good()}\n```\n```json\n{good()}\n```", "not one JSON object"),
    "only a fence": ("``````", "not one JSON object"),
    "half a fence": ("```", "not one JSON object"),
    "thoughts without an end": (f"<think>{good()}", "not one JSON object"),
    "thoughts only": (f"<think>{good()}</think>", "not one JSON object"),
    "thoughts after it": (f"{good()}<think></think>", "not one JSON object"),
    "two objects": (good() + good(), "not one JSON object"),
    "truncated": (good()[:-20], "not one JSON object"),
    "nothing": ("", "not one JSON object"),
    "white space": (" \n" * 50, "not one JSON object"),
    "a huge number": (f'{good()[:-1]}, "n": {"9" * 5000}}}', "not one JSON object"),
    "a thousand levels": ("[" * 1000 + "]" * 1000, "the answer"),
    "a hundred thousand levels": ("[" * 100_000, "not one JSON object"),
    "a list": (json.dumps([GOOD]), "does not fit schema/plan.json: $: "),
    "a string": (json.dumps(good()), "does not fit schema/plan.json: $: "),
    "null": ("null", "does not fit schema/plan.json: $: "),
    "an extra key": (good(met=True), "'met' was unexpected"),
    "a key that is missing": (json.dumps({"focus": "c1"}), "'title' is a required property"),
    "a text that is too short": (good(instruction="Do it."), "$.instruction: 'Do it.' is too short"),
    "another type": (good(focus=1), "$.focus: 1 is not of type 'string'"),
    "a word of its own": (good(strategy="pray"), "$.strategy: 'pray' is not one of"),
    "escalation without a question": (good(strategy="escalate"), "$.question: None is not of type 'string'"),
    "escalation with a blank question": (good(strategy="escalate", question=" \n"), "$.question: "),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD.keys())
def test_what_is_no_answer_is_to_be_mended_once_and_is_refused_then(model, text, reason):
    error = refused(model, text, text)
    assert type(error) is NoAnswer
    assert str(error).count(reason) == 2
    assert reason in model.told()[-1][1]
    assert error.bill.calls == 2


def test_several_problems_are_told_at_once(model):
    error = refused(model, good(focus="", strategy="pray", title="x", session="?"), good(focus=""))
    assert str(error).split("; asked")[0].count("$.") == llm.PROBLEMS


# --------------------------------------------------------------------------------------------------------
# A repair
# --------------------------------------------------------------------------------------------------------


def test_an_answer_that_can_be_mended_is_mended_and_both_calls_are_paid_for(model):
    bad = good(strategy="pray")
    answer = answer_to(model, f"<think>Hm.</think>{bad}", good())
    assert answer.content == GOOD
    assert (answer.bill.calls, answer.bill.cost_usd, answer.bill.tokens["input"]) == (2, 0.02, 2000)
    first, (*same, (role, said), (asker, wish)) = model.told(0), model.told(1)
    assert same == first  # from the start on, for the sake of the cache
    assert (role, said, asker) == ("assistant", bad, "user")
    assert "$.strategy: 'pray' is not one of" in wish
    assert "one JSON object" in wish


def test_both_calls_together_have_one_deadline(model):
    begun = time.monotonic()
    answer_to(model, "no", good())
    (first, second) = [call.end for call in model.asked]
    assert first == second
    assert 0 <= first - llm.DEADLINE - begun < 5


@pytest.mark.parametrize("text", ["", " \n", "<think>Nothing.</think>"])
def test_an_empty_answer_is_shown_as_such_because_empty_messages_are_refused(model, text):
    answer_to(model, text, good())
    assert model.told()[-2] == ("assistant", "(nothing)")


def test_a_long_answer_is_shown_in_part_and_so_is_what_is_wrong_with_it(model):
    long = good(strategy="x" * 100_000, instruction="é\n" * 100_000, focus="")
    answer_to(model, long, good())
    (shown, wish) = [text for _, text in model.told()[-2:]]
    assert len(shown.encode()) <= llm.SHOWN
    assert "more bytes are not shown" in shown
    assert len(wish) < 1_200


def test_what_is_shown_again_is_masked_and_what_is_wrong_cannot_leave_its_fence(model, fresh_mask):
    log.know_value(SECRET)
    answer_to(model, good(**{f"</data> {SECRET}": "jo.doe@gmail.com"}), good())
    told = "\n".join(text for _, text in model.told()[-2:])
    assert SECRET not in told
    assert "jo.doe" not in told
    assert told.count("</data>") == 2  # as it said it, and the end of the fence
    error = refused(model, good(**{SECRET: 1}), good(**{SECRET: 1}))
    assert SECRET not in str(error)


def test_what_the_caller_has_against_an_answer_is_told_and_mended(model):
    def objection(content: dict[str, Any]) -> str:
        return "" if content["focus"] == "c2" else f"{content['focus']} is met already, choose c2"

    assert answer_to(model, good(), good(focus="c2"), objection=objection).content["focus"] == "c2"
    assert "c1 is met already, choose c2" in model.told()[-1][1]
    error = refused(model, good(), good(focus="c3"), objection=objection)
    assert str(error) == "c1 is met already, choose c2; asked to mend that: c3 is met already, choose c2"


def test_the_caller_is_asked_only_about_what_the_schema_allows(model):
    seen = []
    answer_to(model, good(focus=""), good(), objection=lambda content: seen.append(content) or "")
    assert seen == [GOOD]


@pytest.mark.parametrize("error", [Unreachable("nobody"), NoAnswer("content_filter")])
def test_where_there_is_no_answer_nothing_is_mended(model, error):
    caught = refused(model, error)
    assert caught is error
    assert caught.bill.calls == 1


def test_a_repair_that_nobody_answers_says_so_and_the_first_call_is_paid_for(model):
    error = refused(model, "no", Unreachable("HTTP 429"))
    assert isinstance(error, Unreachable)
    assert (error.bill.calls, error.bill.cost_usd) == (2, 0.01)


# --------------------------------------------------------------------------------------------------------
# Saved answers
# --------------------------------------------------------------------------------------------------------


def test_an_identical_question_is_not_asked_again(model):
    saved: llm.Saved = {}
    model.answers = [good()]
    question, again = Question("Who.", "What.", "plan"), Question("Who.", "What.", "plan", session="another start")
    first = ask(question, settings(), saved)
    saved = json.loads(json.dumps(saved))  # as it comes out of a file
    second = ask(again, settings(), saved)
    assert (first.is_saved, second.is_saved) == (False, True)
    assert (second.content, second.model, second.bill) == (GOOD, "m/n", openrouter.Bill())
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("changed", "environ"),
    [
        ({"user": "What now?"}, {}),
        ({"system": "Another."}, {}),
        ({"models": ("x/y",)}, {}),
        ({"objection": lambda content: "it failed"}, {}),
        ({}, {"CCO_OPENROUTER_MODEL": "x/y"}),
    ],
)
def test_another_question_and_one_whose_answer_is_refused_by_now_are_asked(model, changed, environ):
    saved: llm.Saved = {}
    usual = {"system": "Who.", "user": "What.", "schema": "plan"}
    model.answers = [good(), good(focus="c2"), good(focus="c3")]
    ask(Question(**usual), settings(), saved)
    try:
        assert not ask(Question(**usual | changed), settings(**environ), saved).is_saved
    except NoAnswer:
        assert "objection" in changed
    assert len(model.asked) > 1


@pytest.mark.parametrize("junk", [None, 7, [], {}, {"text": "no", "model": 1}, {"text": None}, {"text": "{}"}])
def test_what_was_saved_and_is_no_answer_is_asked_anew(model, junk):
    saved: llm.Saved = {}
    model.answers = [good(), good()]
    ask(Question("Who.", "What.", "plan"), settings(), saved)
    (key,) = saved
    saved[key] = junk
    assert not ask(Question("Who.", "What.", "plan"), settings(), saved).is_saved


def test_the_last_answers_are_kept_and_what_was_no_answer_is_not(model):
    saved: llm.Saved = {}
    long = "Mend it. " * 500
    count = 3 * llm.KEPT // len(long)
    model.answers = [good(focus=f"c{number}", instruction=long) for number in range(count)] + ["no", "no"]
    for number in range(count):
        ask(Question("Who.", f"What {number}?", "plan"), settings(), saved)
    with pytest.raises(NoAnswer):
        ask(Question("Who.", "What else?", "plan"), settings(), saved)
    assert llm.KEPT - 2 * len(long) < sum(len(str(entry)) for entry in saved.values()) <= llm.KEPT
    kept = count - len(saved)
    assert ask(Question("Who.", f"What {kept}?", "plan"), settings(), saved).content["focus"] == f"c{kept}"
    assert json.loads([*saved.values()][-1]["text"])["focus"] == f"c{count - 1}"


# --------------------------------------------------------------------------------------------------------
# Over HTTP
# --------------------------------------------------------------------------------------------------------


def test_over_http_an_answer_is_mended_by_one_more_call():
    with OpenRouterAPI([{"content": good(strategy="pray")}, {"content": good()}]) as api:
        answer = ask(Question("Who you are.", "What is asked.", "plan"), settings(CCO_OPENROUTER_BASE_URL=api.url))
    asked = [call["body"]["messages"] for call in api.calls if call["path"] == "/chat/completions"]
    assert [[message["role"] for message in messages] for messages in asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert asked[1][:2] == asked[0]
    assert answer.content == GOOD
    assert (answer.bill.calls, answer.bill.cost_usd) == (2, 0.02)


@pytest.mark.parametrize("schema", ["plan", "judge", "draft"])
def test_the_shape_of_an_answer_and_its_repair_fit_into_what_is_kept_free_for_them(schema):
    plain = [row("a/first", "0", "0")]  # takes no structured answers: the schema stands in the prompt
    with OpenRouterAPI([{"content": "no"}] * 2, models=plain) as api, pytest.raises(NoAnswer):
        config = settings(CCO_OPENROUTER_BASE_URL=api.url, CCO_OPENROUTER_MODEL="a/first")
        ask(Question("Who you are.", "What is asked.", schema), config)
    shape = prompt.size(api.calls[1]["body"]["messages"][0]["content"]) - len("Who you are.")
    assert shape > 1_000
    assert shape + llm.SHOWN + llm.TOLD + FRAME <= prompt.RESERVE


@pytest.mark.parametrize("letter", ["x", "é", "🎉", "a@b.co "])
def test_neither_an_answer_nor_what_is_wrong_with_it_is_shown_beyond_its_room(model, letter):
    wrong = good(**{f"{number}{letter * 2_000}": letter for number in range(9)})
    answer_to(model, wrong, good())
    assert all(map(int.__le__, sizes(model), (llm.SHOWN, llm.TOLD + FRAME)))
    answer_to(model, good(instruction=letter * 900), good(), objection=objections(letter * 5_000))
    shown, told = sizes(model)
    assert 0.9 * llm.SHOWN < shown <= llm.SHOWN
    assert 0.9 * llm.TOLD < told - FRAME <= llm.TOLD


def sizes(model: Model) -> list[int]:
    """Bytes of the two messages of a repair."""
    return [prompt.size(text) for _, text in model.told()[-2:]]


FRAME = prompt.size(prompt.fill("repair.md", {"problem": ""}))


def objections(*said: str) -> Callable[[dict[str, Any]], str]:
    """What the caller has against one answer after the other; in the end nothing."""
    left = [*said]
    return lambda content: left.pop(0) if left else ""
