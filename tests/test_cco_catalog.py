"""The list of models: fetched once, kept, read without trust, and never needed."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import catalog
import wire
from catalog import (
    DAY,
    HOUR,
    Catalog,
    Model,
    cost,
    form,
    free_until,
    load,
    note_form,
    note_free_until,
    refresh,
    warnings,
)

KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
OFFICIAL = "https://openrouter.ai/api/v1"
ALL = ["max_tokens", "temperature", "response_format", "structured_outputs", "reasoning"]


def row(id: str = "acme/one", **changed: Any) -> dict[str, Any]:
    """One row of OpenRouter's list, with everything that it says about a model."""
    return {
        "id": id,
        "canonical_slug": f"{id.split(':')[0]}-20260616",
        "name": f"Acme: {id}",
        "created": 1781631930,
        "description": "What its maker says about it. " * 20,
        "context_length": 256000,
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": "0.000002", "completion": "0.00001", "input_cache_read": "0.0000002"},
        "top_provider": {"context_length": 256000, "max_completion_tokens": 64000, "is_moderated": False},
        "supported_parameters": ALL,
        "expiration_date": None,
        **changed,
    }


def free(id: str = "acme/one:free", **changed: Any) -> dict[str, Any]:
    return row(id, pricing={"prompt": "0", "completion": "0"}, **changed)


def body(*rows: Any) -> bytes:
    return json.dumps({"data": rows, "links": {"next": None}}).encode()


class Server:
    """A server that gives one answer to everything; `calls` holds path and key of each request."""

    def __init__(self, url: str, answer: tuple[int, bytes]):
        self.url, self.answer = url, answer
        self.calls: list[tuple[str, str | None]] = []


@contextmanager
def served(*rows: Any, status: int = 200, raw: bytes | None = None) -> Iterator[Server]:
    """A server with this list of models, or another answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.calls.append((self.path, self.headers.get("Authorization")))
            code, content = server.answer
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}/api/v1", (status, body(*rows) if raw is None else raw))
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def settings(url: str, key: str | None = None) -> Any:
    return SimpleNamespace(openrouter=SimpleNamespace(base_url=url, api_key=key))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of its own for each test, not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "the cache"))
    forget()
    return tmp_path / "the cache" / "cco"


def forget() -> None:
    """As a process that has just begun."""
    catalog._known.clear()


@pytest.fixture
def later(monkeypatch):
    """Have it be so many seconds after the test began."""
    begun = time.time()

    def pass_by(seconds: float) -> None:
        now = begun + seconds
        monkeypatch.setattr(catalog.time, "time", lambda: now)

    return pass_by


@pytest.fixture
def listed(monkeypatch):
    """Have OpenRouter itself give these rows, without a network."""

    def give(*rows: Any) -> Any:
        monkeypatch.setattr(wire, "exchange", lambda *_: (200, {}, body(*rows)))
        return settings(OFFICIAL)

    return give


@pytest.fixture
def no_network(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise wire.Failed("there is no network")

    monkeypatch.setattr(wire, "exchange", fail)


# --------------------------------------------------------------------------------------------------------
# A row
# --------------------------------------------------------------------------------------------------------


def only(**changed: Any) -> Model:
    """The model that one row is read as."""
    with served(row(**changed)) as server:
        (model,) = refresh(settings(server.url)).models
    return model


def test_a_row_of_openrouter_is_read_whole():
    assert only() == Model(
        id="acme/one",
        parameters=frozenset(ALL),
        prompt_usd=0.000002,
        completion_usd=0.00001,
        cached_usd=0.0000002,
        context=256000,
        max_output=64000,
        free=False,
        expires=None,
        name="Acme: acme/one",
        text_only=True,
        slug="acme/one-20260616",
    )


@pytest.mark.parametrize(
    ("rows", "context"),
    [
        ([{"id": "llama3.2:latest", "object": "model", "created": 1, "owned_by": "library"}], None),
        ([{"id": "Qwen/Qwen3-8B", "object": "model", "owned_by": "vllm", "max_model_len": 40960}], 40960),
        ([{"id": "gpt-4o", "object": "model", "created": 1677610602, "owned_by": "openai"}], None),
    ],
)
def test_a_server_that_tells_only_ids_is_normal(rows, context):
    with served(*rows) as server:
        found = load(settings(server.url))
    assert found.known and not found.is_openrouter and not found.problem
    (model,) = found.models
    assert (model.parameters, model.form, model.prompt_usd, model.free) == (None, "", None, False)
    assert model.context == context


def test_a_bare_list_of_models_is_read_too():
    with served(raw=json.dumps([row()]).encode()) as server:
        assert load(settings(server.url)).find("acme/one")


def test_a_price_of_minus_one_is_not_known_before():
    model = only(pricing={"prompt": "-1", "completion": "-1"})
    assert (model.prompt_usd, model.completion_usd, model.free) == (None, None, False)


@pytest.mark.parametrize("value", ["", "much", "nan", "inf", "-0.1", True, [], {}, None, "2.5", 10**400])
def test_what_is_no_price_of_a_token_is_none(value):
    model = only(pricing={"prompt": value, "completion": "0.00001", "input_cache_read": value})
    assert (model.prompt_usd, model.completion_usd, model.cached_usd) == (None, 0.00001, None)


@pytest.mark.parametrize(
    ("changed", "is_free"),
    [
        ({"id": "acme/one:free"}, True),
        ({"id": "openrouter/free", "pricing": {"prompt": "-1", "completion": "-1"}}, True),
        ({"pricing": {"prompt": "0", "completion": "0"}}, True),
        ({"pricing": {"prompt": "0", "completion": "0.00001"}}, False),
        ({"pricing": {}}, False),
        ({"pricing": {"prompt": "0", "completion": "0"}, "architecture": {"output_modalities": ["image"]}}, False),
    ],
)
def test_free_is_what_says_so_or_gives_text_at_no_price(changed, is_free):
    assert only(**changed).free is is_free


@pytest.mark.parametrize(
    ("architecture", "text_only"),
    [
        ({"input_modalities": ["text", "image"], "output_modalities": ["text"]}, True),
        ({"input_modalities": ["text"], "output_modalities": ["image", "text"]}, False),
        ({"input_modalities": ["text"], "output_modalities": ["audio"]}, False),
        ({"input_modalities": ["audio"], "output_modalities": ["text"]}, False),
        (None, True),
    ],
)
def test_a_model_that_gives_more_than_text_is_told_apart(architecture, text_only):
    assert only(architecture=architecture).text_only is text_only


@pytest.mark.parametrize(
    ("value", "expires"),
    [
        ("2026-12-11", "2026-12-11"),
        ("2026-12-11T00:00:00Z", "2026-12-11"),
        ("2098-12-31", None),
        ("soon", None),
        (None, None),
    ],
)
def test_an_end_is_a_day_and_one_in_seventy_years_is_none(value, expires):
    assert only(expiration_date=value).expires == expires


@pytest.mark.parametrize(
    ("parameters", "best"),
    [
        (ALL, "json_schema"),
        (["max_tokens", "response_format"], "json_object"),
        (["max_tokens"], "plain"),
        ([], "plain"),
        (None, ""),
        ("all", ""),
    ],
)
def test_the_best_form_of_structured_answer_follows_from_the_parameters(parameters, best):
    assert only(supported_parameters=parameters).form == best


@pytest.mark.parametrize("bad", [None, 7, [], {}, {"id": None}, {"id": ""}, {"id": "a b"}, {"id": "a\x1b[2J"}])
def test_what_names_no_model_is_passed_over(bad):
    with served(bad, row()) as server:
        assert [model.id for model in load(settings(server.url)).models] == ["acme/one"]


def test_rows_of_the_wrong_types_lose_only_what_is_wrong():
    wrong = dict.fromkeys(("canonical_slug", "name", "context_length", "expiration_date"), ["?"])
    wrong |= dict.fromkeys(("architecture", "pricing", "top_provider", "supported_parameters"), "?")
    model = only(**wrong)
    assert (model.parameters, model.prompt_usd, model.context, model.max_output) == (None, None, None, None)
    assert model.text_only and not model.free


def test_a_name_cannot_drive_a_terminal():
    assert only(name="Acme\x1b[2J\u202e one").name == "Acme [2J  one"


# --------------------------------------------------------------------------------------------------------
# Finding
# --------------------------------------------------------------------------------------------------------


LIST = Catalog(
    [
        Model("acme/one:free", slug="acme/one-20260616", free=True),
        Model("acme/one", slug="acme/one-20260616"),
        Model("acme/two:batch", slug="acme/two"),
        Model("acme/preview", slug="acme/two"),
        Model("acme/two", slug="acme/two"),
        Model("acme/gone:thinking", slug="acme/gone-1"),
        Model("local"),
    ]
)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("acme/one", "acme/one"),
        ("acme/one:free", "acme/one:free"),
        ("acme/one-20260616", "acme/one"),
        ("acme/one:nitro", "acme/one"),
        ("acme/one:floor", "acme/one"),
        ("acme/one-20260616:floor", "acme/one"),
        ("acme/two", "acme/two"),
        ("acme/two:free", None),
        ("acme/one:thinking", None),
        ("acme/gone", None),
        ("acme/gone-1", None),
        ("~acme/one-latest", None),
        ("openrouter/auto", None),
        ("openrouter/free", None),
        ("", None),
        (":nitro", None),
    ],
)
def test_a_model_is_found_by_id_by_slug_and_without_what_only_chooses_a_provider(asked, found):
    model = LIST.find(asked)
    assert (model.id if model else None) == found


def test_an_empty_list_knows_nothing():
    assert not Catalog().known
    assert Catalog().find("acme/one") is None


# --------------------------------------------------------------------------------------------------------
# Cost
# --------------------------------------------------------------------------------------------------------


PRICED = Model("acme/one", prompt_usd=0.002, completion_usd=0.01, cached_usd=0.0002)


@pytest.mark.parametrize(
    ("model", "tokens", "usd"),
    [
        (PRICED, {"input": 10, "output": 3, "cache_read": 0}, 0.05),
        (PRICED, {"input": 10, "output": 3, "cache_read": 100}, 0.07),
        (PRICED, {"input": 10, "output": 3}, 0.05),
        (Model("acme/one", prompt_usd=0.002, completion_usd=0.01), {"input": 0, "output": 3, "cache_read": 10}, 0.05),
        (PRICED, {"input": 0, "output": 0, "cache_read": 0}, None),
        (Model("acme/one", prompt_usd=0.002), {"input": 10, "output": 3, "cache_read": 0}, None),
        (Model("acme/one", completion_usd=0.002), {"input": 10, "output": 3, "cache_read": 0}, None),
        (Model("acme/one"), {"input": 10, "output": 3, "cache_read": 0}, None),
        (Model("acme/one:free", free=True), {"input": 0, "output": 0, "cache_read": 0}, 0.0),
        (None, {"input": 10, "output": 3, "cache_read": 0}, None),
    ],
)
def test_an_answer_costs_what_its_tokens_cost_or_nobody_knows(model, tokens, usd):
    assert cost(model, tokens) == (None if usd is None else pytest.approx(usd))


# --------------------------------------------------------------------------------------------------------
# When it is asked for, and how
# --------------------------------------------------------------------------------------------------------


def test_a_hundred_questions_in_many_processes_ask_once_a_day(later):
    with served(row()) as server:
        for _ in range(100):
            assert load(settings(server.url)).known
            forget()
        assert len(server.calls) == 1
        later(DAY - 10)
        assert load(settings(server.url)).known and len(server.calls) == 1
        later(DAY + 10)
        assert load(settings(server.url)).known and len(server.calls) == 2


@pytest.mark.parametrize("key", [KEY, None])
def test_the_key_goes_into_the_header_and_nowhere_else(key, folder):
    with served(row()) as server:
        load(settings(f"{server.url}/", key))
        load(settings(server.url, key))
    assert server.calls == [("/api/v1/models", f"Bearer {key}" if key else None)]
    (file,) = folder.iterdir()
    assert KEY not in file.name + file.read_text()


def test_who_may_not_ask_gets_what_is_kept():
    with served(row()) as server:
        assert not load(settings(server.url), may_ask=False).known
        assert not server.calls
        load(settings(server.url))
        forget()
        assert load(settings(server.url), may_ask=False).known
        assert len(server.calls) == 1


def test_two_servers_have_a_list_each():
    with served(row("a/a")) as one, served(row("b/b")) as two:
        assert load(settings(one.url)).find("a/a") and not load(settings(one.url)).find("b/b")
        assert load(settings(two.url)).find("b/b") and not load(settings(two.url)).find("a/a")


FAILURES = {
    "not found": (404, b'{"error": "no route"}'),
    "not allowed": (401, b'{"error": {"code": 401, "message": "User not found."}}'),
    "moved": (301, b""),
    "html": (200, b"<html>a captive portal</html>"),
    "cut off": (200, body(row())[:-40]),
    "not utf-8": (200, b'{"data": "\xff"}'),
    "deep": (200, b"[" * 100_000),
    "no list": (200, b'{"data": null}'),
    "an empty one": (200, b'{"data": []}'),
    "nothing": (200, b"null"),
    "a number": (200, b"7"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_server_without_a_list_is_asked_again_after_an_hour(name, later):
    status, raw = FAILURES[name]
    with served(status=status, raw=raw) as server:
        for _ in range(3):
            found = load(settings(server.url))
            assert not found.known and found.problem
            forget()
        assert len(server.calls) == 1
        later(HOUR + 10)
        server.answer = (200, body(row()))
        found = load(settings(server.url))
        assert found.known and not found.problem


def test_a_wrong_key_is_named():
    with served(status=401, raw=b"{}") as server:
        assert load(settings(server.url, KEY)).problem == "HTTP 401: is openrouter.api_key right?"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://[::1/v1", "http://a..b/v1", "http://x:99999/v1"])
def test_an_address_that_nobody_answers_at_raises_nothing(url):
    found = load(settings(url, KEY))
    assert not found.known
    assert found.problem and KEY not in found.problem
    assert warnings(settings(url, KEY), ["openai/gpt-4o"]) == []


def test_a_key_in_what_went_wrong_is_neither_told_nor_kept(monkeypatch, folder):
    def fail(*_: object) -> None:
        raise wire.Failed(f"Bearer {KEY} is no header\x1b[2J")

    monkeypatch.setattr(wire, "exchange", fail)
    assert load(settings(OFFICIAL, KEY)).problem == "Bearer *** is no header [2J"
    (file,) = folder.iterdir()
    assert KEY not in file.read_text()


def test_an_old_list_serves_when_the_server_is_gone(later):
    with served(row()) as server:
        begun = time.time()
        load(settings(server.url))
        later(3 * DAY)
        server.answer = (503, b"")
        for _ in range(2):
            found = load(settings(server.url))
            assert found.find("acme/one") and found.problem == "HTTP 503"
            assert found.fetched == pytest.approx(begun, abs=5)
            forget()
        assert len(server.calls) == 2


def test_a_clock_that_was_set_back_does_not_keep_a_list_for_ever(later):
    with served(row()) as server:
        load(settings(server.url))
        forget()
        later(-30 * DAY)
        load(settings(server.url))
        assert len(server.calls) == 2


def test_refreshing_asks_at_once():
    with served(row()) as server:
        load(settings(server.url))
        server.answer = (200, body(row("acme/two")))
        assert refresh(settings(server.url)).find("acme/two")
        assert load(settings(server.url)).find("acme/two")
        assert len(server.calls) == 2


# --------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------


def test_only_its_owner_can_read_it_and_only_what_is_needed_is_kept(folder):
    with served(*(row(f"acme/{n}") for n in range(400))) as server:
        load(settings(server.url))
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "What its maker says" not in file.read_text()
    assert file.stat().st_size < len(server.answer[1]) / 2


BROKEN = {
    "empty": b"",
    "half": b'{"version":1,"fetched":1795',
    "binary": bytes(range(256)),
    "a list": b"[]",
    "of another version": b'{"version":2,"fetched":1,"rows":[]}',
    "deep": b"[" * 100_000,
    "of wrong types": b'{"version":1,"fetched":"x","asked":[],"rows":{"id":1},"problem":{}}',
    "huge": b'{"version":1,"fetched":' + b"9" * 400 + b',"rows":[]}',
    "too long": b" " * (catalog.MAX_FILE + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_passed_over_and_replaced(name, folder):
    with served(row()) as server:
        load(settings(server.url))
        (file,) = folder.iterdir()
        file.write_bytes(BROKEN[name])
        forget()
        assert load(settings(server.url)).find("acme/one")
        forget()
        assert load(settings(server.url)).find("acme/one")
        assert len(server.calls) == 2


def test_what_others_wrote_into_the_file_is_read_without_trust(folder):
    with served(row()) as server:
        load(settings(server.url))
        (file,) = folder.iterdir()
        kept = json.loads(file.read_text())
        kept["rows"] += [{"id": "evil\x1b[2J"}, 7, {"id": "acme/odd", "pricing": {"prompt": "-5", "completion": "1e9"}}]
        file.write_text(json.dumps(kept))
        forget()
        found = load(settings(server.url))
        assert [model.id for model in found.models] == ["acme/one", "acme/odd"]
        assert cost(found.find("acme/odd"), {"input": 10, "output": 10}) is None


def test_a_pipe_in_the_files_place_is_not_waited_for(folder):
    with served(row()) as server:
        load(settings(server.url))
        (file,) = folder.iterdir()
        file.unlink()
        os.mkfifo(file)
        forget()
        assert load(settings(server.url)).known
        assert file.is_file()


@pytest.mark.parametrize("obstacle", ["a file", "a folder", "a relative path"])
def test_without_a_place_to_write_it_works_in_memory(obstacle, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with served(row()) as server:
        if obstacle == "a file":
            folder.parent.write_text("")
        elif obstacle == "a folder":
            Path(catalog._place(server.url, "models"), "inside").mkdir(parents=True)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        for _ in range(3):
            assert load(settings(server.url)).known
        note_form(server.url, "acme/one", "plain")
        assert form(server.url, "acme/one") == "plain"
        assert len(server.calls) == 1
    assert not Path("relative").exists()


def test_without_the_variable_it_is_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with served(row()) as server:
        load(settings(server.url))
    assert len(list((tmp_path / ".cache" / "cco").iterdir())) == 1


def test_the_files_name_does_not_tell_a_password_in_the_address(folder):
    with served(row()) as server:
        load(settings(server.url.replace("//", "//user:a-long-password@")))
    (file,) = folder.iterdir()
    assert "a-long-password" not in file.name + file.read_text()


# --------------------------------------------------------------------------------------------------------
# The form of structured answers
# --------------------------------------------------------------------------------------------------------


def test_a_form_is_remembered_for_a_day_by_server_and_model(later):
    note_form(OFFICIAL, "acme/one", "json_object")
    note_form(f"{OFFICIAL}/", "acme/two", "plain")
    forget()
    assert form(OFFICIAL, "acme/one") == "json_object"
    assert form(OFFICIAL, "acme/two") == "plain"
    assert form(OFFICIAL, "acme/three") == ""
    assert form("http://127.0.0.1:1/v1", "acme/one") == ""
    later(DAY + 10)
    assert form(OFFICIAL, "acme/one") == ""


def test_noting_the_same_form_again_does_not_put_off_the_day_on_which_it_is_forgotten(later):
    note_form(OFFICIAL, "acme/one", "plain")
    later(DAY - 10)
    note_form(OFFICIAL, "acme/one", "plain")
    later(DAY + 10)
    assert form(OFFICIAL, "acme/one") == ""
    note_form(OFFICIAL, "acme/one", "json_object")
    note_form(OFFICIAL, "acme/one", "plain")
    assert form(OFFICIAL, "acme/one") == "plain"


def test_not_more_forms_are_kept_than_anybody_needs():
    many = {f"m/{number}": ["plain", time.time()] for number in range(catalog.MAX_FORMS + 100)}
    catalog._keep(catalog._place(OFFICIAL, "forms"), {"forms": many})
    note_form(OFFICIAL, "acme/one", "plain")
    forget()
    assert form(OFFICIAL, "acme/one") == "plain"
    assert len(catalog._forms(catalog._place(OFFICIAL, "forms"))) == catalog.MAX_FORMS


@pytest.mark.parametrize(
    "kept", [[], {"m": "plain"}, {"m": ["xml", 1]}, {"m": ["plain", "now"]}, {"m": ["plain", 1, 2]}]
)
def test_forms_that_cannot_be_read_are_forgotten(kept):
    catalog._keep(catalog._place(OFFICIAL, "forms"), {"forms": kept})
    forget()
    assert form(OFFICIAL, "m") == ""
    note_form(OFFICIAL, "m", "plain")
    assert form(OFFICIAL, "m") == "plain"


# --------------------------------------------------------------------------------------------------------
# The daily limit of the free models
# --------------------------------------------------------------------------------------------------------


def test_until_when_the_free_models_are_used_up_is_remembered_by_server(later):
    until = time.time() + HOUR
    note_free_until(OFFICIAL, until)
    forget()
    assert free_until(f"{OFFICIAL}/") == until
    assert free_until("http://127.0.0.1:1/v1") is None
    later(HOUR - 10)
    assert free_until(OFFICIAL) == until
    later(HOUR + 10)
    assert free_until(OFFICIAL) is None


@pytest.mark.parametrize("seconds", [-10, 0, DAY + 10, float("inf"), float("nan")])
def test_a_daily_limit_that_has_ended_or_lasts_longer_than_a_day_is_none(seconds):
    note_free_until(OFFICIAL, time.time() + 100)
    note_free_until(OFFICIAL, time.time() + seconds)
    assert free_until(OFFICIAL) == pytest.approx(time.time() + 100, abs=5)


@pytest.mark.parametrize("until", [None, "soon", [], {}, True, 1e300, DAY + 10])
def test_a_limit_that_others_wrote_is_read_without_trust(until):
    until = time.time() + until if until == DAY + 10 else until
    catalog._keep(catalog._place(OFFICIAL, "free"), {"until": until})
    forget()
    assert free_until(OFFICIAL) is None


def test_a_clock_that_was_set_back_does_not_keep_the_free_models_away_for_ever(later):
    note_free_until(OFFICIAL, time.time() + HOUR)
    later(-2 * DAY)
    assert free_until(OFFICIAL) is None


# --------------------------------------------------------------------------------------------------------
# Warnings
# --------------------------------------------------------------------------------------------------------


def test_models_that_are_there_are_nothing_to_warn_of(listed):
    config = listed(row("acme/one"), free("acme/two:free"), row("acme/three", expiration_date="2098-12-31"))
    fine = ["acme/one", "acme/one:nitro", "acme/two:free", "acme/three", "~acme/one-latest", "openrouter/auto"]
    assert warnings(config, [*fine, "openrouter/free"]) == []


@pytest.mark.parametrize(
    ("gone", "instead"),
    [
        ("anthropic/claude-3-opus", "anthropic/claude-opus-5.5"),
        ("anthropic/claude-3.5-sonnet", "anthropic/claude-sonnet-5.5"),
        ("google/gemini-pro-1.5", "google/gemini-3.7-flash"),
        ("deepseek/deepseek-v3", "deepseek/deepseek-v4-flash-0731"),
        ("deepseek/deepseek-r1", "deepseek/deepseek-v4-pro-0813"),
        ("mistralai/mistral-7b-instruct:free", "openrouter/free"),
        ("google/gemini-2.0-flash-exp:free", "openrouter/free"),
    ],
)
def test_an_id_that_is_gone_is_answered_with_its_successor(gone, instead, listed):
    config = listed(row("acme/one"), *(row(successor) for successor, _ in catalog.OLD.values()))
    assert warnings(config, [gone, gone]) == [f"{gone} is not on the server's list of models: use {instead}"]


def test_a_successor_that_is_gone_too_is_not_named(listed):
    (line,) = warnings(listed(row("zeta/other")), ["anthropic/claude-3-opus"])
    assert line.endswith("`make models` shows those that there are")


def test_a_slip_of_the_pen_is_answered_with_the_nearest_id_that_serves(listed):
    config = listed(row("acme/sonnet-5.5"), row("acme/sonnet-5.5:batch"))
    (line,) = warnings(config, ["acme/sonnet-5.5:batc"])
    assert line == "acme/sonnet-5.5:batc is not on the server's list of models: did you mean acme/sonnet-5.5?"


@pytest.mark.parametrize(("days", "said"), [(-1, "ended"), (0, "ended"), (1, "ends"), (29, "ends"), (32, "")])
def test_an_end_is_warned_of_thirty_days_before(days, said, listed):
    end = (date.today() + timedelta(days)).isoformat()
    found = warnings(listed(row("acme/one", expiration_date=end)), ["acme/one"])
    assert found == ([f"acme/one {said} on {end}: `make models` shows those that there are"] if said else [])


def test_an_end_that_its_maker_has_published_is_warned_of_also_without_the_list(no_network):
    found = warnings(settings(OFFICIAL), ["openai/gpt-4o", "openai/gpt-4o-mini:floor", "anthropic/claude-3-opus"])
    for line, name, instead in zip(
        found, ("gpt-4o", "gpt-4o-mini:floor"), ("openai/gpt-6.1-sol", "openai/gpt-6-luna"), strict=True
    ):
        assert line.startswith(f"openai/{name} end") and line.endswith(f" on 2027-01-14: use {instead}")


def test_the_earlier_of_two_ends_counts(listed):
    end = (date.today() + timedelta(3)).isoformat()
    first = min(end, "2026-12-11")
    (line,) = warnings(listed(row("openai/o3", expiration_date=end)), ["openai/o3"])
    assert f" on {first}: " in line


def test_a_model_without_structured_answers_is_warned_of(listed):
    config = listed(row("acme/one", supported_parameters=["max_tokens"]), row("acme/two", supported_parameters=None))
    (line,) = warnings(config, ["acme/one", "acme/two"])
    assert line == "acme/one cannot give structured answers: take one that can, see `make models`"


def test_another_server_is_free_to_call_its_models_as_it_likes():
    with served({"id": "openai/gpt-4o"}, {"id": "llama3.2:latest"}) as server:
        assert warnings(settings(server.url), ["openai/gpt-4o", "anthropic/claude-3-opus", "llama3.2"]) == []


@pytest.mark.parametrize(
    ("url", "official"),
    [
        (OFFICIAL, True),
        ("https://OpenRouter.ai/api/v1", True),
        ("https://openrouter.ai:443/api/v1", True),
        ("https://openrouter.ai.example.com/api/v1", False),
        ("https://example.com/openrouter.ai/v1", False),
        ("https://notopenrouter.ai/api/v1", False),
    ],
)
def test_openrouter_is_known_by_its_address(url, official, no_network):
    assert load(settings(url)).is_openrouter is official
