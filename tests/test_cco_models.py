"""`make models`: the list as a table, and what is said where there is none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from conftest import KIT
from test_cco_catalog import free, row, served

KEY = f"sk-or-v1-{'0123456789abcdef' * 4}"
PROGRAM = [sys.executable, str(KIT / "extras" / "models.py")]
SOON = (date.today() + timedelta(5)).isoformat()
ROWS = [
    row("acme/dear", pricing={"prompt": "0.000002", "completion": "0.00001"}),
    row("acme/cheap", pricing={"prompt": "0.0000001", "completion": "0.0000005"}, expiration_date=SOON),
    row("acme/router", pricing={"prompt": "-1", "completion": "-1"}),
    free("acme/plain:free", supported_parameters=["max_tokens"], context_length=32_000),
    free("acme/json:free", supported_parameters=["max_tokens", "response_format"]),
    row("acme/painter", architecture={"input_modalities": ["text"], "output_modalities": ["image", "text"]}),
    row("acme/dear:batch"),
]


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    """No settings but those of the test, and a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CCO_", "OPENROUTER_"))}
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OPENROUTER_API_KEY": KEY}


def show(
    environ: dict[str, str], url: str, folder: Path, *args: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """What the program says about the server at this address."""
    env = {"CCO_OPENROUTER_BASE_URL": url, "CCO_OPENROUTER_MODEL": "acme/dear", **environ}
    done = subprocess.run([*PROGRAM, *args], env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and KEY not in done.stdout + done.stderr
    return done


def table(text: str) -> list[list[str]]:
    """The words of each line of the table."""
    return [line.split() for line in text.split("\n\n")[0].splitlines()]


def test_the_free_ones_come_first_then_the_cheapest_and_those_without_a_price_last(environ, tmp_path):
    with served(*ROWS) as server:
        done = show(environ, server.url, tmp_path)
    assert table(done.stdout) == [
        ["model", "context", "$", "in", "$", "out", "structured", "ends"],
        ["acme/json:free", "256", "k", "free", "free", "json", "only"],
        ["acme/plain:free", "32", "k", "free", "free", "no"],
        ["acme/cheap", "256", "k", "0.1", "0.5", "yes", SOON],
        ["*", "acme/dear", "256", "k", "2", "10", "yes"],
        ["acme/router", "256", "k", "?", "?", "yes"],
    ]
    assert f"5 of 7 models of {server.url}/models, as they are now." in done.stdout
    assert "Free models share one cap: 20 requests a minute and 50 a day" in done.stdout
    assert "In your settings" not in done.stdout
    assert server.calls == [("/api/v1/models", f"Bearer {KEY}")]


def test_it_is_asked_for_without_a_key_too(environ, tmp_path):
    del environ["OPENROUTER_API_KEY"]
    with served(*ROWS) as server:
        show(environ, server.url, tmp_path)
    assert server.calls == [("/api/v1/models", None)]


def test_the_free_ones_alone_or_all_of_them_can_be_asked_for(environ, tmp_path):
    with served(*ROWS) as server:
        assert [line[0] for line in table(show(environ, server.url, tmp_path, "--free").stdout)[1:]] == [
            "acme/json:free",
            "acme/plain:free",
        ]
        everything = show(environ, server.url, tmp_path, "--all").stdout
    assert len(table(everything)) == 8 and "acme/painter" in everything and "acme/dear:batch" in everything


def test_where_nothing_is_free_it_says_so(environ, tmp_path):
    with served(row("acme/dear")) as server:
        done = show(environ, server.url, tmp_path, "--free")
    assert done.stdout.startswith("There is no such model.\n\n0 of 1 models")
    assert "Free models share" not in done.stdout


def test_a_server_that_tells_only_ids_has_a_table_of_them(environ, tmp_path):
    with served({"id": "llama3.2:latest", "object": "model"}) as server:
        done = show(environ, server.url, tmp_path)
    assert table(done.stdout)[1] == ["llama3.2:latest", "?", "?", "?", "?"]
    assert "Free models share" not in done.stdout


def test_the_settings_of_the_repository_are_read_and_their_models_marked(environ, project):
    with served(*ROWS) as server:
        (project / ".cco").mkdir()
        (project / "src").mkdir()
        (project / ".cco" / "config.yaml").write_text(
            f"openrouter:\n  base_url: {server.url}\n  model: acme/dear:nitro\n"
            "  fallbacks: [acme/cheap, 'acme/gone:free']\n  models: {economy: 'acme/json:free', strong: acme/painter}\n"
        )
        env = {name: value for name, value in environ.items() if name != "OPENROUTER_API_KEY"}
        done = subprocess.run(PROGRAM, env=env, cwd=project / "src", capture_output=True, text=True, check=True)
    marked = [line[1] for line in table(done.stdout)[1:] if line[0] == "*"]
    assert marked == ["acme/json:free", "acme/cheap", "acme/dear"]
    told = [line for line in done.stdout.splitlines() if line.startswith("In your settings: ")]
    assert [line.split()[3] for line in told] == ["acme/cheap", "acme/gone:free"]
    assert "use openrouter/free" in told[1]


def test_settings_that_cannot_be_read_are_an_error_with_a_remedy(environ, project):
    (project / ".cco").mkdir()
    (project / ".cco" / "config.yaml").write_text("openrouter:\n  modle: acme/dear\n")
    done = show(environ, "http://127.0.0.1:1/v1", project, code=2)
    assert "did you mean" in done.stderr and not done.stdout


def test_without_a_network_the_kept_list_is_shown_with_its_age(environ, tmp_path):
    with served(*ROWS) as server:
        show(environ, server.url, tmp_path)
    done = show(environ, server.url, tmp_path)
    assert len(table(done.stdout)) == 6
    assert f"5 of 7 models of {server.url}/models, as they were " in done.stdout
    assert "The list cannot be fetched now: " in done.stdout


def test_without_any_list_it_says_so_and_ends_with_4(environ, tmp_path):
    done = show(environ, "http://user:a-long-password@127.0.0.1:1/v1", tmp_path, code=4)
    assert not done.stdout
    assert done.stderr.startswith("There is no list of models: http://***@127.0.0.1:1/v1/models: ")
    assert "a mission runs without this list" in done.stderr and "a-long-password" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(environ, tmp_path):
    with served(*(row(f"acme/{number}") for number in range(2000))) as server:
        env = {**environ, "CCO_OPENROUTER_BASE_URL": server.url}
        with subprocess.Popen(
            PROGRAM, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout and process.stderr
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
    assert process.returncode == 0


def test_ctrl_c_ends_it_at_once_without_a_traceback(environ, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        env = {**environ, "CCO_OPENROUTER_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}
        with subprocess.Popen(PROGRAM, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            connection.close()
    assert (process.returncode, said) == (130, "")
