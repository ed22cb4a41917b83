"""Which model is asked and which one works: the cheapest that serves, and never one that the settings do not name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import catalog
import manager
import tiers
from mission import load_settings, parse
from situation import RUNGS, TIERS, Situation, Standing
from tiers import DEFAULT, ECONOMY, JUDGING, MANY, for_manager, for_worker, planning

KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
LOCAL = "http://127.0.0.1:11434/v1"


def situation(*standings: Standing, **more: Any) -> Situation:
    criteria = [{"id": "c1", "criteria": "c1 works", "check": "make c1"}]
    document = {"title": "A parser", "repository": "/a/project", "definition_of_done": criteria}
    mission = parse(json.dumps(document), Path("/a/project/mission.json"))
    one = Standing("c1", "c1 works", "medium", "unmet", "make c1")
    return Situation(mission, standings or (one,), **{"iteration": 7, "resumable": True, "tried": ["6: c1"], **more})


def settings(**environ: str) -> Any:
    return load_settings(None, None, {"OPENROUTER_API_KEY": KEY, **environ})


def router(base_url: str = "", **named: str) -> Any:
    """Settings that name these models: model, economy, standard, strong, and fallbacks."""
    names = {"model": "MODEL", "fallbacks": "FALLBACKS", **{tier: f"MODELS_{tier.upper()}" for tier in TIERS}}
    environ = {f"CCO_OPENROUTER_{names[name]}": value for name, value in named.items()}
    return settings(CCO_OPENROUTER_BASE_URL=base_url, **environ)


def claude(**named: str) -> Any:
    names = {"model": "MODEL", **{tier: f"MODELS_{tier.upper()}" for tier in TIERS}}
    return settings(**{f"CCO_CLAUDE_CODE_{names[name]}": value for name, value in named.items()})


# --------------------------------------------------------------------------------------------------------
# How hard the next step is
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "stalls", "tier"),
    [
        ({}, 0, "economy"),
        ({"morale": "rising"}, 0, "economy"),
        ({"resumable": False}, 0, "economy"),
        ({"lies": ["a lie"], "tampering": ["a file"]}, 0, "economy"),
        ({"tried": []}, 0, "standard"),
        ({}, 1, "standard"),
        ({"went_wrong": True}, 0, "standard"),
        ({"conflicts": [("a", "b")]}, 0, "standard"),
        ({"morale": "struggling"}, 0, "standard"),
        ({}, RUNGS[0], "strong"),
        ({}, RUNGS[0] + 1, "strong"),
        ({"tried": []}, RUNGS[0], "strong"),
        ({"morale": "stuck"}, 0, "strong"),
        ({"conflicts": [("a", "b")], "deadlock": [("a", "b")]}, 0, "strong"),
    ],
)
def test_the_cheapest_model_plans_while_things_go_well_and_the_strongest_when_nothing_helps(more, stalls, tier):
    assert planning(situation(**more), stalls) == tier


def test_what_checks_that_pass_print_needs_no_dearer_model():
    green = [Standing(f"c{n}", "", "medium", "met", tail="x" * MANY) for n in range(3)]
    assert planning(situation(*green, Standing("d", "", "medium", "unmet", tail="x")), 0) == "economy"


@pytest.mark.parametrize(("sizes", "tier"), [((MANY,), "economy"), ((MANY + 1,), "standard"), ((MANY, 1), "standard")])
def test_much_failing_output_takes_more_than_the_cheapest(sizes, tier):
    failing = [Standing(f"c{n}", "", "medium", "unmet", tail="x" * count) for n, count in enumerate(sizes)]
    assert planning(situation(*failing), 0) == tier


def test_the_size_of_output_is_counted_in_bytes():
    assert planning(situation(Standing("c1", "", "medium", "unmet", tail="é" * (MANY // 2 + 1))), 0) == "standard"


def test_a_tier_for_each_case_is_one_of_the_tiers():
    assert {"economy", "standard", "strong", JUDGING} == {*TIERS}


# --------------------------------------------------------------------------------------------------------
# The manager's models
# --------------------------------------------------------------------------------------------------------

A, B, C, D = "a/cheap", "b/usual", "c/dear", "d/mine"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, (ECONOMY, DEFAULT, DEFAULT)),
        ({"model": D}, (D, D, D)),
        ({"economy": A}, (A, DEFAULT, DEFAULT)),
        ({"standard": B}, (B, B, B)),
        ({"strong": C}, (ECONOMY, DEFAULT, C)),
        ({"economy": A, "standard": B}, (A, B, B)),
        ({"economy": A, "strong": C}, (A, DEFAULT, C)),
        ({"standard": B, "strong": C}, (B, B, C)),
        ({"economy": A, "standard": B, "strong": C}, (A, B, C)),
        ({"model": D, "economy": A}, (A, D, D)),
        ({"model": D, "standard": B}, (D, B, B)),
        ({"model": D, "strong": C}, (D, D, C)),
        ({"model": D, "economy": A, "standard": B, "strong": C}, (A, B, C)),
    ],
)
def test_a_tier_that_is_not_named_is_one_that_is(named, expected):
    assert tuple(next(iter(for_manager(tier, router(**named)))) for tier in TIERS) == expected


@pytest.mark.parametrize("named", [{}, {"model": D}, {"standard": B}, {"strong": C}])
def test_another_server_is_asked_for_no_model_that_the_settings_do_not_name(named):
    asked = {model for tier in TIERS for model in for_manager(tier, router(LOCAL, **named))}
    assert ECONOMY not in asked
    assert asked <= {DEFAULT, *named.values()}
    assert not named.get("standard") or asked == {B}


def test_nothing_is_asked_that_is_neither_named_nor_a_default():
    for chosen in itertools.product((None, A), (None, B), (None, C), (None, D)):
        named = {n: m for n, m in zip((*TIERS, "model"), chosen, strict=True) if m}
        for url in ("", LOCAL):
            asked = {model for tier in TIERS for model in for_manager(tier, router(url, **named))}
            defaults = {DEFAULT} if "model" in named or url else {DEFAULT, ECONOMY}
            assert asked <= {*named.values(), *defaults}
            assert "model" not in named or DEFAULT not in asked
            if "economy" in named:
                assert for_manager("economy", router(url, **named))[0] == A


def test_the_default_of_the_settings_is_the_one_that_is_known_here_and_both_ids_are_listed():
    assert settings().openrouter.model == DEFAULT
    assert "openrouter.ai" in settings().openrouter.base_url


def test_the_standard_model_and_then_the_fallbacks_follow_each_tier_once():
    chosen = router(economy=A, standard=B, fallbacks=f"[{B}, {C}]")
    assert for_manager("economy", router(economy=A, fallbacks=f"[{C}]")) == [A, DEFAULT, C]
    assert [for_manager(tier, chosen) for tier in TIERS] == [[A, B, C], [B, C], [B, C]]


# --------------------------------------------------------------------------------------------------------
# The worker's models
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, (None, None, None, None)),
        ({"model": "opus"}, ("opus", "opus", "opus", "opus")),
        ({"economy": "haiku"}, (None, "haiku", None, None)),
        ({"standard": "sonnet"}, ("sonnet", "sonnet", "sonnet", "sonnet")),
        ({"strong": "opus"}, (None, None, None, "opus")),
        ({"model": "sonnet", "economy": "haiku"}, ("sonnet", "haiku", "sonnet", "sonnet")),
        ({"model": "opus", "standard": "sonnet"}, ("sonnet", "sonnet", "sonnet", "sonnet")),
        ({"economy": "haiku", "standard": "sonnet", "strong": "opus"}, ("sonnet", "haiku", "sonnet", "opus")),
    ],
)
def test_the_workers_model_is_that_of_the_plans_tier_or_the_one_below(named, expected):
    assert tuple(for_worker(tier, 0, claude(**named))[0] for tier in (None, *TIERS)) == expected


def test_after_the_model_of_a_tier_comes_the_usual_one():
    chosen = claude(economy="haiku", standard="sonnet", strong="opus")
    assert [for_worker(tier, 0, chosen) for tier in TIERS] == [["haiku", "sonnet"], ["sonnet"], ["opus", "sonnet"]]
    assert for_worker("strong", 0, claude(strong="opus")) == ["opus", None]


@pytest.mark.parametrize(
    ("stalls", "expected"),
    [(0, ("sonnet", "haiku", "sonnet", "opus")), (1, ("sonnet", "haiku", "sonnet", "opus")), (2, ("opus",) * 4)],
)
def test_the_strongest_works_where_sessions_changed_nothing_whatever_the_plan_says(stalls, expected):
    chosen = claude(economy="haiku", standard="sonnet", strong="opus")
    assert tuple(for_worker(tier, stalls, chosen)[0] for tier in (None, *TIERS)) == expected


def test_where_no_stronger_one_is_named_the_usual_one_goes_on():
    assert for_worker("economy", 2, claude(model="sonnet", economy="haiku")) == ["sonnet"]


# --------------------------------------------------------------------------------------------------------
# Who is asked
# --------------------------------------------------------------------------------------------------------


def test_claude_as_the_manager_is_asked_for_the_workers_models_and_none_of_openrouters():
    environ = {"CCO_MANAGER_PROVIDER": "claude", "CCO_OPENROUTER_MODEL": D, "CCO_OPENROUTER_FALLBACKS": f"[{A}]"}
    assert [manager.models(tier, settings(**environ)) for tier in TIERS] == [[], [], []]
    environ |= {"CCO_CLAUDE_CODE_MODELS_ECONOMY": "haiku", "CCO_CLAUDE_CODE_MODEL": "sonnet"}
    asked = [manager.models(tier, settings(**environ)) for tier in TIERS]
    assert asked == [["haiku", "sonnet"], ["sonnet"], ["sonnet"]]
    assert manager.models("economy", router(economy=A)) == [A, DEFAULT]


def test_warnings_are_looked_for_of_each_model_that_may_be_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(catalog, "warnings", lambda settings, models: asked.append([*models]) or ["gone"])
    assert manager.warnings(router(economy=A, strong=C, fallbacks=f"[{B}]")) == ["gone"]
    assert asked == [[A, DEFAULT, B, C]]
    for provider in ("claude", "rules"):
        assert manager.warnings(settings(CCO_MANAGER_PROVIDER=provider)) == []
    assert len(asked) == 1


def test_the_default_ids_are_in_the_settings_file_that_is_explained():
    text = (Path(tiers.__file__).parent / "schema" / "config.json").read_text("utf-8")
    assert DEFAULT in text and ECONOMY in text
