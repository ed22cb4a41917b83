"""Lines: what they hold, where they go, and that no secret and no personal data is in what is written or sent."""

from __future__ import annotations

import io
import json
import os
import random
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT

import log
from mission import LEVELS

SECRET = "Zk9-planted+value/4711=="
TOKENS = f"""
    sk-ant-api03-{"aB3_" * 20} sk-or-v1-{"0af9" * 16} sk-{"Ab9-" * 10} ghp_{"aB3d" * 9} github_pat_{"11AB_cd" * 8}
    glpat-{"aB3_" * 5} AKIA{"IOSFODNN7EXAMPLE"} ASIA{"IOSFODNN7EXAMPLE"} AIza{"SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"}
    GOCSPX-{"aB3_" * 7} ya29.{"aB3_" * 9} xoxb-{"123456789012-abcdefABCDEF"} xapp-{"1-A0AB1CD2E-0123456789-0af9"}
    hooks.slack.com/services/T00000000/B00000000/{"aB3dE5fG" * 3} discordapp.com/api/v10/webhooks/12345/{"a_" * 10}
    eyJhbGciOiJIUzI1NiJ9.{"eyJzdWIiOiIxMjM0NTY3ODkwIn0"}.dozjgNryP4J3jVmNHl0w5N sk_live_{"aB3dE5fG" * 3}
    AGE-SECRET-KEY-1{"QQPQ9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2} npm_{"aB3dE5" * 6} pypi-AgEIcHlwaS5vcmc{"aB3-_" * 10}
    hf_{"aBcDeFgH" * 4}ab SG.{"aB3dE5fG7h_" * 2}.{"aB3-E5fG" * 5} hvs.{"aB3dE5fG" * 4} shpat_{"0af9" * 8}
"""
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA0Z3\nabcDEF+/==\n-----END RSA PRIVATE KEY-----"
PATTERNS = {  # what stands between two marks is masked
    "private key": 'k = "§-----BEGIN EC PRIVATE KEY-----\\nMIIE\\n§"; x() §-----BEGIN PRIVATE KEY-----\nMIIEow\ncut§',
    "login in an address": "https://§ada:pa55w0rd§@example.org postgres://§u:p%40ss§@db:5432/app redis://§:pa55§@cache",
    "authorization header": """Authorization: §Bearer abc.def-123§\n'authorization: §basic dTpw§' -v
        {"Authorization": "§Bearer abc§"} {'Authorization': '§token 0123abcd§'}""",
    "bearer token": "sent Bearer §aB3dE5fG7hI9jK1l§, got 401 -H 'auth: bearer §9f8e7d6c5b4a3210==§'",
}
PERSONAL = {
    "email": "Ada <§ada.lovelace+x@mail.firm.co.uk§>, hello §m\u00fcller@b\u00fcro.de§.",
    "iban": "§DE89370400440532013000§. §GB82 WEST 1234 5698 7654 32§",
    "card": '§4111 1111 1111 1111§ and §5500-0000-0000-0004§, "§4111111111111111§"',
    "phone": "tel:§+49 170 1234567§, call §+1 (555) 234-5678§!",
    "address": "from §93.184.216.34§:51234 to http://§142.250.74.110§/x",
    "home": "§/home/ada§/app/x.py:3: file://§/Users/bob§/x, §C:\\Users\\ada§\\app",
    "secret in quotes": r"""{"client_secret": "§a8Qx-77lmPzR2§"} {\"password\": \"§hunter22pass§\"}
        os.environ["DB_PASSWORD"] = "§hunter22pass§" 'password' => '§hunter22§', let token: &str = b"§abc123def§";""",
    "secret in settings": """-API_KEY=§abc123def456§\n+API_KEY=§abc123def457§ export API_TOKEN=§9f8e7d6c5b4a3210§ && run
        password: §hunter22pass§\n  user: ada Server=db;Password=§Hunter22pass§;Encrypt=true
        //registry.npmjs.org/:_authToken=§3f1c9a7e-aaaa§ AccountKey=§Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50==§;""",
}


@pytest.fixture(autouse=True)
def forget(fresh_mask) -> Iterator[None]:
    yield
    log.stop()


def written(folder: Path, *calls: Any) -> list[dict[str, Any]]:
    """Let the log write something at level TRACE; what then is in combined.log, as objects."""
    log.start(folder, "TRACE")
    for call in calls:
        call()
    return lines(folder / "combined.log")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_bytes().splitlines()]


def run(code: str, *shell: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with the kit's log in a process of its own."""
    argv = [*shell, sys.executable, "-c", f"import os, sys, log\nfrom pathlib import Path\n{code}"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(KIT)}
    return subprocess.run(argv, env=env, text=True, timeout=60, check=False, **{"capture_output": True, **given})


def test_the_name_of_a_variable_says_whether_it_holds_a_secret():
    secret = """API_KEY APIKEY OPENROUTER_API_KEY KEY aws_secret_access_key GITHUB_TOKEN API_TOKENS DB_PASSWORD PASS
        MYSQL_PWD PGPASSWORD DB_PASS SECRET_BASE CREDENTIALS HTTP_AUTH SSH_AUTH_SOCK GPG_PASSPHRASE npm_config__auth"""
    plain = """PATH PWD OLDPWD KEYBOARD KEYMAP AUTHOR GIT_AUTHOR_NAME XAUTHORITY COMPASS BYPASS TOKENIZERS_PARALLELISM
        MAX_THINKING_TOKENS CLAUDE_CODE_MAX_OUTPUT_TOKENS PASSENGER"""
    assert list(filter(log.is_secret_name, f"{secret} {plain}".split())) == secret.split()


def test_the_values_of_secret_variables_are_masked_and_no_others(tmp_path):
    (tmp_path / "socket").touch()
    environ = {"API_KEY": SECRET, "SHORT_KEY": "abc", "SSH_AUTH_SOCK": f"{tmp_path}/socket", "PWD": "/home/somebody"}
    text = " ".join([*environ.values(), "/run/user/gone-4711", "Ada Lovelace"])
    log.register_secret(None)
    assert log.mask(text) == text
    log.register_secrets({**environ, "GONE_TOKEN": "/run/user/gone-4711", "EMPTY_TOKEN": "", "AUTHOR": "Ada Lovelace"})
    assert log.mask(text) == f"*** abc {tmp_path}/socket /home/somebody *** Ada Lovelace"


def test_a_secret_is_masked_the_longest_first_inside_json_and_each_long_line_of_it_alone():
    for value in ("planted-value", "planted-value-and-more", "planted-", f"  {SECRET}\n"):
        log.register_secret(value)
    assert log.mask(f"planted-value-and-more planted-value planted-x [{SECRET}]") == "*** *** ***x [***]"
    nasty = 'quote"back\\slash\ttab-ä€'
    log.register_secret(nasty)
    for ascii_only in (True, False):
        assert log.mask(json.dumps({"k": nasty}, ensure_ascii=ascii_only)) == '{"k": "***"}'
    log.register_secret("header: x\nMIIEowIBAAKCAQEA0Z3\nabcDEF\n")
    assert log.mask("MIIEowIBAAKCAQEA0Z3 header: x abcDEF") == "*** header: x abcDEF"
    assert log.mask("header: x\nMIIEowIBAAKCAQEA0Z3\nabcDEF") == "***"


def test_what_looks_like_a_secret_is_masked(tmp_path):
    for secret in (*TOKENS.split(), PEM):
        for around in ("{}", "key={}\n", 'got "{}", why?', "a\n{} ", "'{}'", "({})", "token:{};"):
            assert log.mask(around.format(secret)) == around.format("***")
        around = ('"{}"', "\n{}\n", '\\"{}\\"', '{{"key": "{}"}}', "\t{}\\", "\\{}")
        texts = [text.format(secret) for text in around]
        entries = written(tmp_path, *(partial(log.info, text, field={"deep": [text]}) for text in texts))
        assert [line["msg"] for line in entries[-len(around) :]] == [text.format("***") for text in around]
        for part in re.findall(r"[\w+/-]{12,}", secret.replace("PRIVATE KEY", "")):
            assert part not in (tmp_path / "combined.log").read_text()


@pytest.mark.parametrize("name", [name for name in log.PATTERNS if name != "token"])
def test_credentials_in_addresses_headers_and_keys_are_masked(name):
    assert log.mask(PATTERNS[name].replace("§", "")) == re.sub("(?s)§.*?§", "***", PATTERNS[name])


@pytest.mark.parametrize("name", log.PERSONAL)
def test_personal_data_and_what_a_name_betrays_is_masked_where_it_leaves_the_machine(name):
    sign = log.PERSONAL[name][1].replace(r"\1", "")
    plain, masked = PERSONAL[name].replace("§", ""), re.sub("§.*?§", sign, PERSONAL[name])
    assert (log.mask_personal(plain), log.mask_personal(masked), log.mask(plain)) == (masked, masked, plain)


def test_what_only_resembles_a_secret_or_personal_data_stays():
    commit, session = "0d5bb0ea6c1f1e1d9d1f3c3e9c6e7a8b9c0d1e2f", "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10"
    for text in (
        "password = get_password()\ntoken: str\ntoken=None\nmax_tokens=4096 password: ${DB_PASSWORD2} TOKEN=$CI_TOKEN2",
        f"{commit} {session} 2026-11-27T12:34:56.789+01:00",
        "127.0.0.1 10.0.0.200 192.168.178.20 v1.2.3 @app.get('/x')\n@pytest.mark.skip @types/node src/home/about.py:12",
        "-----BEGIN CERTIFICATE-----\nMIIEow\n-----END CERTIFICATE-----",
        "risk-assessment-of-the-whole-thing, task-force-and-more-than-twenty, the keyboard of the author",
        "Authorization: none, Bearer authentication-is-described-below, the bearer 0123456789",
        "npm_config_registry npm_package_version hf_transfer pypi-simple SG.something sk_live_ do_v1_0123",
        "https://hooks.slack.com/services/ https://discord.com/api/webhooks/ADDRESS https://example.org:8080/a?b=c@d",
    ):
        assert log.mask_personal(text) == log.mask(text) == text
    assert log.mask("git@github.com:owner/name.git") == "git@github.com:owner/name.git"
    log.register_secret(SECRET)
    assert log.mask_personal(f"{SECRET} of ada@firm.de") == "*** of [email]"


REPEATED = r"""eyJ-|eyJ a|://a: b:|-----BEGIN  A|-----BEGIN PRIVATE KEY-----|-----BEGIN PRIVATE KEY----- \|sk-|bearer
|Authorization:|Bearer a|SG. a|sk_live_|hooks.slack.com/services/|a|a@|a@b. b.|+49|1234|AB12|/home/|1.2.3.|key=|key="
|key-.|api_key|secret=" {a1|TOKEN= a1("""


def test_masking_takes_no_time_that_grows_out_of_hand():
    begun = time.process_time()
    for text in REPEATED.replace("\n", "").split("|"):  # the first word once, the last one again and again
        first, _, again = text.rpartition(" ")
        log.mask(first + again * (50_000 // len(again)))
        log.mask_personal(first + again * (20_000 // len(again)))
        log.mask_personal(f"{again} " * (20_000 // len(again)))
    assert time.process_time() - begun < 12  # of this process, whatever else the machine does


def test_a_file_holds_a_secret_when_the_value_is_no_plain_word(monkeypatch):
    values = {"abcdefgh": False, "postgres": False, "hunter2hunter2": True, "pass-word": True, "correcthorsebatt": True}
    for value, is_secret in {
        **values,
        SECRET: True,
        "passwörter-99": True,
        os.fsdecode(b"\xff-bytes-\xe9"): True,
    }.items():
        monkeypatch.setattr(log, "_secrets", set())
        log.register_secret(value)
        assert log.holds_secret(b"a\0\n= " + os.fsencode(value) + b"\n") is is_secret
        assert not log.holds_secret(b"a\n= something else\n")


def test_a_line_says_when_how_grave_and_what_with_the_ids_that_hold_at_the_time(tmp_path):
    entries = written(
        tmp_path,
        lambda: log.info("criterion api is met", criterion="api", seconds=1.5),
        lambda: log.context(mission="api", iteration=1),
        lambda: log.info("one"),
        lambda: log.context(iteration=2, session="s"),
        lambda: log.info("two", session="given"),
    )
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("ts")) for line in entries)
    assert entries == [
        {"level": "INFO", "msg": "criterion api is met", "criterion": "api", "seconds": 1.5},
        {"level": "INFO", "msg": "one", "mission": "api", "iteration": 1},
        {"level": "INFO", "msg": "two", "mission": "api", "iteration": 2, "session": "given"},
    ]


def test_the_level_says_what_is_written_and_errors_also_stand_alone(tmp_path, capsys):
    for number, level in enumerate(LEVELS, 1):
        log.start(tmp_path, level)  # goes on in the same files, without the ids
        for name in LEVELS:
            getattr(log, name.lower())(f"{number}")
        log.context(mission="api")
        entries = [line for line in lines(tmp_path / "combined.log") if line["msg"] == f"{number}"]
        assert [line["level"] for line in entries] == list(LEVELS[:number])
        assert [line["msg"] for line in lines(tmp_path / "error.log")] == [f"{n}" for n in range(1, number + 1)]
        assert len(capsys.readouterr().out.splitlines()) == number
        assert not any("mission" in line for line in entries)
    with pytest.raises(OSError, match="missing"):
        log.start(tmp_path / "missing", "INFO")


def test_files_are_their_owners_alone_also_after_rotation(tmp_path):
    before = os.umask(0)
    try:
        log.start(tmp_path, "INFO", max_size=2000)
        for number in range(200):
            log.error("x" * 100, number=number)
    finally:
        os.umask(before)
    names = [f"{name}.log{n}" for name in ("combined", "error") for n in ("", ".1")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 2500
    numbers = [line["number"] for n in (".1", "") for line in lines(tmp_path / f"combined.log{n}")]
    assert numbers == list(range(200 - len(numbers), 200))


def test_any_value_of_a_field_gives_a_line_of_json_with_every_string_in_it_masked(tmp_path):
    log.register_secret(SECRET)
    values = [float("nan"), float("-inf"), Path("/a"), {1: [SECRET, {"b": f"x{SECRET}"}]}, (1, "b"), b"raw", "\ud800"]
    entries = written(tmp_path, *(partial(log.info, "x", value=value) for value in values))
    expected = ["NaN", "-Infinity", "/a", {"1": ["***", {"b": "x***"}]}, [1, "b"], "b'raw'", "\ud800"]
    assert [line["value"] for line in entries] == expected
    assert log.mask_tree({"n": 1, "none": None, "yes": True}) == {"n": 1, "none": None, "yes": True}


def test_a_planted_secret_is_in_no_file_wherever_it_was_said(tmp_path, capsys):
    """A secret of characters that JSON escapes, between others of the same kind, in every place of a line."""
    dice = random.Random(4711)

    def words(most: int) -> str:
        return "".join(dice.choices("abcXYZ019 \"\\{}[]:,\n\t/'äß€\U0001f600%&=", k=dice.randint(most // 5, most)))

    log.start(tmp_path, "TRACE")
    for write in (log.error, log.warn, log.info, log.debug, log.trace) * 20:
        secret = f"Z{words(40)}9"
        log.register_secrets({"SOME_TOKEN": secret})
        text = f"{words(20)}{secret}{words(20)}"
        log.context(about=text)
        write(text, plain=text, deep={"list": [1, {"x": text}]}, error=ValueError(text), path=Path(text))
        log.error(json.dumps({"inner": text}), by=(text, 1))
        everything = "".join(path.read_text() for path in tmp_path.iterdir()) + capsys.readouterr().out
        parsed = str([lines(path) for path in tmp_path.iterdir()])
        assert not [form for form in (secret, json.dumps(secret)[1:-1]) if form in everything or form in parsed]
        for path in tmp_path.iterdir():
            os.truncate(path, 0)


def test_the_console_shows_the_sentence_with_the_date_and_neither_fields_nor_secrets_nor_what_drives_it(
    tmp_path, capsys
):
    log.register_secret(SECRET)
    log.live("before the start")
    log.info("nothing")
    log.warn("take care")
    log.error("broken \x1b[31mred")
    assert tuple(capsys.readouterr()) == ("", "take care\nbroken  [31mred\n")
    log.start(tmp_path, "INFO")
    log.live("worker: Bash npm test")
    log.info("criterion api is met", criterion="api")
    log.warn("slow")
    log.error(f"\x1b]0;title\x07 {SECRET} \u202egnp.exe \udcff")
    log.stop()
    shown = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", capsys.readouterr().out, flags=re.M)
    assert shown == "criterion api is met\nWARN  slow\nERROR  ]0;title  ***  gnp.exe  \n"
    driving = [*range(0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)]
    for number in (*driving, *range(0x2066, 0x206A), 0xD83D, 0xDCFF):
        assert log.printable(f"a{chr(number)}b\nc") == "a b\nc"


def test_a_full_disk_a_closed_output_or_a_reader_that_went_away_ends_nothing(tmp_path):
    code = "log.start(Path('.'), 'INFO'); log.info('x' * 100_000); log.error('x'); log.live('y'); log.stop()\n"
    code += "print('on', file=sys.stderr, flush=True); os._exit(0)"  # else the interpreter tries once more to write
    reading, gone = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full, open(gone, "w") as gone_reader:
        for shell, out in (((), full), ((), gone_reader), (("sh", "-c", 'exec "$@" >&-', "-"), subprocess.PIPE)):
            done = run(code, *shell, cwd=tmp_path, capture_output=False, stdout=out, stderr=subprocess.PIPE)
            assert (done.returncode, done.stderr, len(lines(tmp_path / "combined.log"))) == (0, "on\n", 2)
            (tmp_path / "combined.log").unlink()
    (tmp_path / "combined.log").symlink_to("/dev/full")
    done = run("log.start(Path('.'), 'INFO')\nlog.info('hello')\nlog.info('again')", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)


class Terminal(io.StringIO):
    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return os.write(-1, b"") if self.gone else super().write(text)  # an OSError, as from a closed terminal


def test_the_live_line_is_shown_on_a_terminal_and_makes_way_for_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    log.start(tmp_path, "INFO")
    log.live("worker: Bash npm test")
    log.live("worker: Bash npm test")
    log.info("criterion api is met")
    log.register_secret(SECRET)
    log.live(f"a\nb\x1b[2J{SECRET} \u202e \udcff" + "x" * 100)  # fits on one line, and drives nothing
    log.stop()
    assert re.sub(r"\d\d:\d\d:\d\d  ", "TIME ", terminal.getvalue()).split("\r\x1b[2K") == [
        *("", "worker: Bash npm test", "TIME criterion api is met\n", "worker: Bash npm test"),
        *("a b [2J***    xxx".ljust(39, "x"), ""),
    ]
    terminal.gone = True
    log.start(tmp_path, "INFO")
    log.info("on")
