"""Lines: what they hold, where they go, and that no secret is in any of them."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, until

import log

SECRET = "Zk9-planted+value/4711=="
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA0Z3\nabcDEF+/==\n-----END RSA PRIVATE KEY-----"
FAMILIES = {
    "anthropic": "sk-ant-api03-" + "aB3_" * 20,
    "openrouter": "sk-or-v1-" + "0af9" * 16,
    "openai": "sk-proj-" + "Ab9-" * 10,
    "github": "ghp_" + "aB3d" * 9,
    "github app": "ghs_" + "aB3d" * 9,
    "github fine": "github_pat_" + "11AB_cd" * 8,
    "gitlab": "glpat-" + "aB3_" * 5,
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws session": "ASIA" + "IOSFODNN7EXAMPLE",
    "google": "AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
    "slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N",
    "age": "AGE-SECRET-KEY-1" + "QQPQ9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2,
    "private key": PEM,
    "stripe": "sk_live_" + "aB3dE5fG" * 3,
    "stripe restricted": "rk_live_" + "aB3dE5fG" * 3,
    "npm": "npm_" + "aB3dE5" * 6,
    "hugging face": "hf_" + "aBcDeFgH" * 4 + "ab",
    "groq": "gsk_" + "aB3dE5fG" * 6,
    "docker": "dckr_pat_" + "aB3dE5fG" * 3,
    "sendgrid": "SG." + "aB3dE5fG7h_" * 2 + "." + "aB3-E5fG" * 5,
    "pypi": "pypi-AgEIcHlwaS5vcmc" + "aB3-_" * 10,
    "digitalocean": "dop_v1_" + "0af9" * 16,
    "vault": "hvs." + "aB3dE5fG" * 4,
    "slack app": "xapp-" + "1-A0AB1CD2E-0123456789-0af9",
    "slack webhook": "hooks.slack.com/services/T00000000/B00000000/" + "aB3dE5fG" * 3,
    "discord webhook": "discord.com/api/webhooks/123456789012345678/" + "aB3_E5-G" * 8,
    "discord webhook of a version": "discordapp.com/api/v10/webhooks/123456789012345678/" + "aB3_E5-G" * 8,
}


@pytest.fixture(autouse=True)
def forget(fresh_mask) -> Iterator[None]:
    yield
    log.stop()


@pytest.fixture
def written(tmp_path):
    """Let the log write something at level TRACE; what then is in combined.log, as objects."""

    def write(*calls: Any) -> list[dict[str, Any]]:
        log.start(tmp_path, "TRACE")
        for call in calls:
            call()
        return lines(tmp_path / "combined.log")

    return write


def lines(path: Path) -> list[dict[str, Any]]:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constants) for line in path.read_bytes().splitlines()]


def run(code: str, *shell: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with the kit's log in a process of its own."""
    argv = [*shell, sys.executable, "-c", f"import sys, log\n{code}"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(KIT), **given.pop("env", {})}
    return subprocess.run(argv, env=env, text=True, timeout=30, check=False, **{"capture_output": True, **given})


# --------------------------------------------------------------------------------------------------------
# What is a secret
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("API_KEY", "APIKEY", "OPENROUTER_API_KEY", "KEY", "aws_secret_access_key", "GITHUB_TOKEN", "API_TOKENS"),
        *("DB_PASSWORD", "MYSQL_PWD", "PGPASSWORD", "DB_PASS", "PASS", "SECRET_BASE", "CREDENTIALS", "HTTP_AUTH"),
        *("SSH_AUTH_SOCK", "GPG_PASSPHRASE", "TOKEN_OF_MAX", "npm_config__auth"),
    ],
)
def test_a_variable_of_this_name_holds_a_secret(name):
    assert log.is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "PWD", "OLDPWD", "KEYBOARD", "KEYMAP", "AUTHOR", "GIT_AUTHOR_NAME", "XAUTHORITY", "COMPASS", ""),
        *("BYPASS", "TOKENIZERS_PARALLELISM", "MAX_THINKING_TOKENS", "CLAUDE_CODE_MAX_OUTPUT_TOKENS", "PASSENGER"),
    ],
)
def test_a_variable_of_this_name_holds_none(name):
    assert not log.is_secret_name(name)


def test_the_values_of_secret_variables_are_masked_and_no_others(tmp_path):
    (tmp_path / "socket").touch()
    known = {"API_KEY": SECRET, "SHORT_KEY": "abc", "SSH_AUTH_SOCK": f"{tmp_path}/socket", "PWD": "/home/somebody"}
    log.know({**known, "GONE_TOKEN": "/run/user/gone-4711", "EMPTY_TOKEN": "", "AUTHOR": "Ada Lovelace"})
    text = " ".join([*known.values(), "/run/user/gone-4711", "Ada Lovelace"])
    assert log.mask(text) == f"*** abc {tmp_path}/socket /home/somebody *** Ada Lovelace"


def test_nothing_is_masked_before_anything_is_known():
    log.know({})
    log.know_value(None)
    log.know_value("")
    log.know_value("   \n ")
    assert log.mask(f"a {SECRET}\n") == f"a {SECRET}\n"


def test_the_longest_secret_is_masked_first():
    for value in ("planted-value", "planted-value-and-more", "planted-"):
        log.know_value(value)
    assert log.mask("planted-value-and-more planted-value planted-x") == "*** *** ***x"


def test_a_secret_is_known_without_the_space_around_it():
    log.know_value(f"  {SECRET}\n")
    assert log.mask(f"[{SECRET}]") == "[***]"


def test_a_secret_is_masked_inside_json():
    nasty = 'quote"back\\slash\ttab-ä€'
    log.know_value(nasty)
    for ascii_only in (True, False):
        assert log.mask(json.dumps({"k": nasty}, ensure_ascii=ascii_only)) == '{"k": "***"}'


def test_each_long_line_of_a_secret_is_masked():
    log.know_value("header: x\nMIIEowIBAAKCAQEA0Z3\nabcDEF\n")
    assert log.mask("MIIEowIBAAKCAQEA0Z3 header: x abcDEF") == "*** header: x abcDEF"
    assert log.mask("header: x\nMIIEowIBAAKCAQEA0Z3\nabcDEF") == "***"


@pytest.mark.parametrize("secret", FAMILIES.values(), ids=FAMILIES)
def test_what_looks_like_a_secret_is_masked(secret):
    for around in ("{}", "key={}\n", 'got "{}", why?', "a\n{} ", "'{}'", "({})", "token:{};"):
        assert log.mask(around.format(secret)) == around.format("***")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://ada:pa55w0rd@example.org/x", "https://***@example.org/x"),
        ("postgres://u:p%40ss@db:5432/app", "postgres://***@db:5432/app"),
        ("redis://:pa55w0rd@cache", "redis://***@cache"),
        ("Authorization: Bearer abc.def-123\nHost: x", "Authorization: ***\nHost: x"),
        ("> authorization: bearer abc123", "> authorization: ***"),
        ('curl -H "Authorization: Basic dTpw" -v', 'curl -H "Authorization: ***" -v'),
        ('{"Authorization": "Bearer abc"}', '{"Authorization": "***"}'),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': '***'}"),
        ("Authorization: token 0123abcd", "Authorization: ***"),
        ("sent Bearer aB3dE5fG7hI9jK1l, got 401", "sent Bearer ***, got 401"),
        ("-H 'auth: bearer 9f8e7d6c5b4a3210=='", "-H 'auth: bearer ***'"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow\ncut off", "***"),
        ('k = "-----BEGIN EC PRIVATE KEY-----\\nMIIE\\n"; x()', 'k = "***"; x()'),
    ],
)
def test_credentials_in_addresses_headers_and_keys_are_masked(text, masked):
    assert log.mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "0d5bb0ea6c1f1e1d9d1f3c3e9c6e7a8b9c0d1e2f",  # a commit
        "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10",  # a session
        "https://example.org:8080/a?b=c@d",
        "git@github.com:owner/name.git",
        "-----BEGIN CERTIFICATE-----\nMIIEow\n-----END CERTIFICATE-----",
        "risk-assessment-of-the-whole-thing, task-force-and-more-than-twenty",
        "the keyboard of the author",
        "Authorization: none",
        "Bearer authentication-is-described-below, the bearer 0123456789",
        "npm_config_registry npm_package_version hf_transfer pypi-simple SG.something sk_live_ do_v1_0123",
        "https://hooks.slack.com/services/ https://discord.com/api/webhooks/ADDRESS",
    ],
)
def test_what_only_resembles_a_secret_stays(text):
    assert log.mask(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "eyJ-" * 500_000,
        "eyJ" + "a" * 2_000_000,
        "://a:" + "b:" * 1_000_000,
        "-----BEGIN PRIVATE KEY-----" * 70_000,
        "-----BEGIN PRIVATE KEY-----" + "\\" * 2_000_000,
        "-----BEGIN " + "A " * 1_000_000,
        "sk-" * 600_000,
        "Authorization: " * 130_000,
        "bearer " * 280_000,
        "Bearer " + "a" * 2_000_000,
        "SG." + "a" * 2_000_000,
        "sk_live_" * 250_000,
        "hooks.slack.com/services/" * 80_000,
    ],
    ids=lambda text: text[:12],
)
def test_masking_takes_no_time_that_grows_out_of_hand(text):
    begun = time.process_time()
    log.mask(text)
    assert time.process_time() - begun < 5


def test_every_string_of_a_tree_is_masked():
    log.know_value(SECRET)
    tree = {"a": [SECRET, {"b": f"x{SECRET}"}], "n": 1, "none": None, "yes": True}
    assert log.mask_tree(tree) == {"a": ["***", {"b": "x***"}], "n": 1, "none": None, "yes": True}


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (SECRET, True),
        ("hunter2hunter2", True),
        ("abcdefgh", False),
        ("postgres", False),
        ("pass-word", True),
        ("correcthorsebatt", True),
        ("passwörter-99", True),
    ],
)
def test_a_file_holds_a_secret_when_the_value_is_no_plain_word(value, counts):
    log.know_value(value)
    assert log.holds_secret(f"a\n= {value}\n".encode()) is counts
    assert not log.holds_secret(b"a\n= something else\n")


def test_a_secret_that_is_no_text_is_found_in_a_file():
    log.know_value(os.fsdecode(b"\xff\xfe-bytes-\xe9"))
    assert log.holds_secret(b"x\0\xff\xfe-bytes-\xe9\0")


# --------------------------------------------------------------------------------------------------------
# The files
# --------------------------------------------------------------------------------------------------------


def test_a_line_says_when_how_grave_and_what(written):
    (line,) = written(lambda: log.info("criterion api is met", criterion="api", seconds=1.5))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("ts"))
    assert line == {"level": "INFO", "msg": "criterion api is met", "criterion": "api", "seconds": 1.5}


def test_every_line_carries_the_ids_that_hold_at_the_time(written):
    found = written(
        lambda: log.context(mission="api", iteration=1),
        lambda: log.info("one"),
        lambda: log.context(iteration=2, session="s"),
        lambda: log.info("two", session="given"),
        lambda: log.context(iteration=None, never=None),
        lambda: log.info("three"),
    )
    ids = [{k: v for k, v in line.items() if k not in ("ts", "level", "msg")} for line in found]
    assert ids[0] == {"mission": "api", "iteration": 1}
    assert ids[1] == {"mission": "api", "iteration": 2, "session": "given"}
    assert ids[2] == {"mission": "api", "session": "s"}


def test_the_ids_of_one_log_are_not_in_the_next(written):
    written(lambda: log.context(mission="api"))
    log.stop()
    (line,) = written(lambda: log.info("x"))
    assert "mission" not in line


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("ERROR", ["ERROR"]),
        ("WARN", ["ERROR", "WARN"]),
        ("INFO", ["ERROR", "WARN", "INFO"]),
        ("DEBUG", ["ERROR", "WARN", "INFO", "DEBUG"]),
        ("TRACE", ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]),
    ],
)
def test_the_level_says_what_is_written_and_errors_also_stand_alone(tmp_path, level, expected, capsys):
    log.start(tmp_path, level)
    for say in (log.error, log.warn, log.info, log.debug, log.trace):
        say(say.__name__)
    assert [line["level"] for line in lines(tmp_path / "combined.log")] == expected
    assert [line["level"] for line in lines(tmp_path / "error.log")] == ["ERROR"]
    assert len(capsys.readouterr().out.splitlines()) == len(expected)


def test_files_are_their_owners_alone_also_after_rotation(tmp_path):
    before = os.umask(0)
    try:
        log.start(tmp_path, "INFO", max_size=2000)
        for number in range(200):
            log.error("x" * 100, number=number)
    finally:
        os.umask(before)
    names = [f"{name}.log{n}" for name in ("combined", "error") for n in ("", ".1", ".2", ".3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    kept = [line["number"] for n in (".3", ".2", ".1", "") for line in lines(tmp_path / f"combined.log{n}")]
    assert kept == list(range(200 - len(kept), 200))


def test_a_line_longer_than_a_file_may_be_is_written_whole(tmp_path):
    log.start(tmp_path, "INFO", max_size=1000)
    log.info("x" * 5000)
    assert [len(line["msg"]) for line in lines(tmp_path / "combined.log")] == [5000]


def test_a_second_start_goes_on_in_the_same_files(tmp_path):
    for word in ("one", "two"):
        log.start(tmp_path, "INFO")
        log.info(word)
        log.stop()
    assert [line["msg"] for line in lines(tmp_path / "combined.log")] == ["one", "two"]


def test_a_folder_that_cannot_be_written_in_is_an_error_at_once(tmp_path):
    with pytest.raises(OSError, match="missing"):
        log.start(tmp_path / "missing", "INFO")


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), Path("/a"), {1: "x"}, (1, "b"), b"raw", {"ä": "\ud800"}]
)
def test_any_value_of_a_field_gives_a_line_of_json(written, value):
    (line,) = written(lambda: log.info("x", value=value))
    assert line["value"] is not None


NASTY = [
    'say "hello" twice',
    "back\\slash\\at\\end\\",
    "aaaaaaa\\",
    '{"a": {"b": "c"}}',
    '", "msg": "',
    '\\", "x": "\\',
    "line one is long enough\nline two is long enough",
    "tab\tand\x00null\x1b[2J",
    "ümläut-€-\U0001f600-\ud83d",
    "}}}}}}}}",
    '""""""""',
    "\\\\\\\\\\\\\\\\\\",
]


@pytest.mark.parametrize("secret", [*NASTY, SECRET])
def test_a_masked_line_is_valid_json(written, secret):
    log.know_value(secret)
    for line in written(*(partial(log.error, f"{t} {secret}{t}", value=[t], other=f'"{secret}"') for t in NASTY)):
        assert line["level"] == "ERROR"
        assert secret.strip() not in str(line)


@pytest.mark.parametrize("secret", FAMILIES.values(), ids=FAMILIES)
def test_what_looks_like_a_secret_is_masked_in_a_line_that_stays_json(written, tmp_path, secret):
    around = ('"{}"', "\n{}\n", '\\"{}\\"', '{{"key": "{}"}}', "\t{}\\", "\\{}")
    said = [text.format(secret) for text in around]
    found = written(*(partial(log.info, text, field={"deep": [text]}) for text in said))
    assert [line["msg"] for line in found] == [text.format("***") for text in around]
    for part in re.findall(r"[\w+/-]{12,}", secret.replace("PRIVATE KEY", "")):
        assert part not in (tmp_path / "combined.log").read_text()


@pytest.mark.parametrize("seed", range(8))
def test_a_planted_secret_is_in_no_file_wherever_it_was_said(tmp_path, capsys, seed):
    """A secret of characters that JSON escapes, between others of the same kind, in every place of a line."""
    dice = random.Random(seed)

    def words(least: int, most: int) -> str:
        return "".join(
            dice.choice("abcXYZ019 \"\\{}[]:,\n\t/'äß€\U0001f600%&=") for _ in range(dice.randint(least, most))
        )

    log.start(tmp_path, "TRACE")
    for _ in range(25):
        secret = f"{dice.choice('aZ9')}{words(8, 40)}{dice.choice('aZ9')}"
        log.know({"SOME_TOKEN": secret})
        said = f"{words(0, 20)}{secret}{words(0, 20)}"
        try:
            raise ValueError(said)
        except ValueError as error:
            say = dice.choice([log.error, log.warn, log.info, log.debug, log.trace])
            say(
                said,
                plain=said,
                deep={"list": [1, {"x": said}]},
                pair=(said, 1),
                error=error,
                path=Path(said),
                **{said: 1},
            )
            log.error("in a key", by={said: {said: said}})
        log.context(about=said)
        log.info(json.dumps({"inner": said}))
        everything = "".join(path.read_text() for path in tmp_path.iterdir())
        for line in lines(tmp_path / "combined.log") + lines(tmp_path / "error.log"):
            assert secret not in json.dumps(line, ensure_ascii=False)
            assert all(secret not in text for text in strings(line))
        assert secret not in everything
        assert json.dumps(secret)[1:-1] not in everything
        assert secret not in capsys.readouterr().out
        for path in tmp_path.iterdir():
            os.truncate(path, 0)


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


# --------------------------------------------------------------------------------------------------------
# The console
# --------------------------------------------------------------------------------------------------------


def test_the_console_shows_the_sentence_with_the_date_and_no_fields(capsys):
    log.start(None, "INFO")
    log.info("criterion api is met", criterion="api")
    log.warn("slow")
    log.error("broken")
    shown = capsys.readouterr().out.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in shown] == [
        "criterion api is met",
        "WARN  slow",
        "ERROR broken",
    ]


def test_without_a_log_only_what_matters_is_said(capsys):
    log.info("nothing")
    log.warn("take care")
    log.error("broken \x1b[31mred")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "take care\nbroken  [31mred\n")


DRIVING = [*map(chr, [*range(0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0)]), "\u061c", "\u200e", "\u200f"]
DRIVING += [
    "\u202a",
    "\u202b",
    "\u202c",
    "\u202d",
    "\u202e",
    "\u2066",
    "\u2067",
    "\u2068",
    "\u2069",
    "\ud83d",
    "\udcff",
]


@pytest.mark.parametrize("character", DRIVING, ids=lambda c: f"U+{ord(c):04X}")
def test_no_character_that_drives_a_terminal_is_printable(character):
    assert log.printable(f"a{character}b\nc") == "a b\nc"


def test_neither_control_characters_nor_secrets_reach_the_console(capsys):
    log.know_value(SECRET)
    log.start(None, "INFO")
    log.info(f"\x1b]0;title\x07 {SECRET} \u202egnp.exe \udcff")
    shown = capsys.readouterr().out
    assert shown.endswith("]0;title  ***  gnp.exe  \n")
    assert shown.isprintable() or shown[:-1].isprintable()


@pytest.mark.parametrize(
    "code", ["log.info('x' * 100_000)", "log.error('x'); log.live('y')", "log.warn('x'); log.stop()"]
)
def test_a_full_disk_behind_the_console_ends_nothing(tmp_path, code):
    with open("/dev/full", "w") as full:
        done = run(
            f"from pathlib import Path\nlog.start(Path('.'), 'INFO')\n{code}\nprint('on', file=sys.stderr)\n"
            "log.stop()\nsys.stderr.flush()\nimport os; os._exit(0)",
            cwd=tmp_path,
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (0, "on\n")
    assert len(lines(tmp_path / "combined.log")) == 1


def test_a_closed_standard_output_ends_nothing():
    done = run(
        "log.start(None, 'INFO'); log.info('hello'); log.live('x'); log.stop()", "sh", "-c", 'exec "$@" >&-', "-"
    )
    assert done.returncode == 0
    assert done.stderr.endswith("hello\n")


def test_a_reader_that_went_away_ends_nothing(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    code = "from pathlib import Path\nlog.start(Path('.'), 'INFO')\nfor n in range(9): log.info('x' * 9000)\n"
    code += "import os; os._exit(0)"  # else the interpreter tries once more to write what is left
    done = run(code, cwd=tmp_path, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines(tmp_path / "combined.log")) == 9


def test_a_full_disk_behind_the_files_ends_nothing(tmp_path):
    (tmp_path / "combined.log").symlink_to("/dev/full")
    done = run("from pathlib import Path\nlog.start(Path('.'), 'INFO')\nlog.info('hello')", cwd=tmp_path)
    assert done.stdout.endswith("hello\n")


class Terminal:
    """A terminal that the log writes to, and what it was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **size: str):
        self.master, slave = pty.openpty()
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", self.stream)
        for name, value in {"COLUMNS": "40", **size}.items():
            monkeypatch.setenv(name, value)
        log.start(None, "INFO")

    def sent(self, ending: str) -> str:
        """What arrived since the last look, up to this ending."""
        arrived = bytearray()

        def has_ended() -> bool:
            if select.select([self.master], [], [], 0)[0]:
                arrived.extend(os.read(self.master, 100_000))
            return arrived.endswith(ending.encode())

        until(has_ended, f"the terminal shows {ending!r}")
        return arrived.decode()

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        log.stop()
        if self.master >= 0:
            self.hang_up()
        try:
            self.stream.close()
        except OSError:
            pass  # what could not be written to a terminal that is gone


@pytest.fixture
def terminal(monkeypatch) -> Iterator[Terminal]:
    found = Terminal(monkeypatch)
    yield found
    found.close()


CLEAR = "\r\x1b[2K"


def test_the_live_line_is_shown_on_a_terminal_and_makes_way_for_lines(terminal):
    doing = f"{CLEAR}worker: Bash npm test"
    log.live("worker: Bash npm test")
    log.live("worker: Bash npm test")
    assert terminal.sent("test") == doing
    log.info("criterion api is met")
    line = r"\d\d:\d\d:\d\d  criterion api is met\r\n"
    assert re.fullmatch(re.escape(CLEAR) + line + re.escape(doing), terminal.sent("test"))
    log.live("worker: Edit a.py")
    log.stop()
    assert terminal.sent("2K") == f"{CLEAR}worker: Edit a.py{CLEAR}"


def test_the_live_line_fits_on_one_line_and_drives_nothing(terminal):
    log.know_value(SECRET)
    log.live(f"a\nb\x1b[2J{SECRET} \u202e \udcff" + "x" * 100)
    shown = terminal.sent("x" * 24).removeprefix(CLEAR)
    assert shown == "a b [2J***    xxx".ljust(39, "x")


def test_a_terminal_that_is_closed_ends_nothing(terminal):
    terminal.hang_up()
    log.live("worker: Bash npm test")
    log.info("on")
    assert log._console is not None and not log._console.tty  # it is not tried again


def test_there_is_no_live_line_without_a_terminal(capsys):
    log.live("before the start")
    log.start(None, "INFO")
    log.live("worker: Bash npm test")
    log.stop()
    assert capsys.readouterr().out == ""
