"""What was learned from failures: real files and processes, and outputs as pytest, npm, cargo and tsc print them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT

import lessons
import log
from lessons import Lesson


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "lessons.jsonl"


def lesson(failure: str = "E   ValueError: the cart has no currency", **fields: Any) -> Lesson:
    """A lesson from this output."""
    known = {"mission": "shop", "criterion": "The total is right", "strategy": "alternative", "sessions": 3}
    known |= {"resolved": "Sum the prices: the total was of strings", "commit": "8ff6fc9" + "0" * 33}
    known |= {"at": "2026-11-27T10:00:00+00:00", **fields}
    return Lesson(lessons.signature(failure), lessons.telling(failure), **known)


def python(code: str, *args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a few lines in a process of their own."""
    argv = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(KIT)!r})\nimport lessons\n{code}"]
    options = {"capture_output": True, "text": True, "timeout": 60, **kwargs}
    return subprocess.run([*argv, *map(str, args)], check=False, **options)


# --------------------------------------------------------------------------------------------------------
# Kept and found again
# --------------------------------------------------------------------------------------------------------


def test_a_lesson_is_kept_and_found_again_as_it_was(file):
    made = lesson()
    lessons.learn(file, made)
    assert lessons.fitting(file, "E   ValueError: the cart has no currency") == [made]
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["version"] == lessons.VERSION


def test_without_a_file_there_is_no_lesson_and_none_is_made(file):
    assert lessons.fitting(file, "E   ValueError: the cart has no currency") == []
    assert not file.exists()


def test_the_same_resolution_of_the_same_failure_is_kept_once(file):
    for _ in range(3):
        lessons.learn(file, lesson())
    lessons.learn(file, lesson(resolved="another way"))
    lessons.learn(file, lesson("E   TypeError: unsupported operand type"))
    assert len(file.read_text().splitlines()) == 3


def test_the_same_failure_comes_first_then_the_most_alike_then_the_newest(file):
    old = "E   KeyError: no such fee name\nshop.py:1: in total\nshop.py:2: in fee of countries"
    for name, output in {
        "same, older": old,
        "same, newer": old,
        "alike": old + "\nshop.py:9: in discount of members",
        "one line in common": "E   KeyError: no such fee name\ntax.py:1: in vat of regions\ntax.py:8: in rate of goods",
        "nothing in common": "E   ValueError: the cart has no currency",
    }.items():
        lessons.learn(file, lesson(output, resolved=name))
    found = [one.resolved for one in lessons.fitting(file, old, limit=9)]
    assert found == ["same, newer", "same, older", "alike", "one line in common"]
    assert [one.resolved for one in lessons.fitting(file, old)] == found[:3]
    assert lessons.fitting(file, old, limit=0) == lessons.fitting(file, old, limit=-1) == []


def test_of_equals_the_newest_comes_first(file):
    for name in ("first", "second", "third", "fourth"):
        lessons.learn(file, lesson(resolved=name))
    found = lessons.fitting(file, "E   ValueError: the cart has no currency")
    assert [one.resolved for one in found] == ["fourth", "third", "second"]


def test_one_line_tells_a_prompt_what_helped(file):
    made = lesson(resolved="Sum the prices:\nthe total \x1b[1m was of strings")
    lessons.learn(file, made)
    (found,) = lessons.fitting(file, "E   ValueError: the cart has no currency")
    assert lessons.told(found) == (
        '"E ValueError: the cart has no currency" was resolved in 3 sessions (alternative):'
        " Sum the prices: the total [1m was of strings (mission shop, commit 8ff6fc900000)"
    )
    bare = replace(found, lines=(), commit="", sessions=1, resolved="x" * 5000)
    assert lessons.told(bare).startswith('"The total is right" was resolved in 1 session (alternative): xxx')
    assert len(lessons.told(bare)) <= lessons.MAX_TOLD


def test_no_text_is_longer_than_it_may_be_and_none_has_two_lines(file):
    output = "\n".join(f"E   ValueError: {chr(97 + n) * 3} was not found {'long ' * 99}" for n in range(26))
    lessons.learn(file, lesson(output, resolved="a\nb\r\n" * 500, criterion="c\u2028" * 500, mission="m" * 500))
    (found,) = lessons.fitting(file, output)
    assert len(found.lines) == lessons.LINES
    assert max(map(len, found.lines)) <= lessons.WIDTH
    for text in (found.resolved, found.criterion, found.mission):
        assert len(text) <= lessons.TEXT
        assert len(text.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------
# Secrets
# --------------------------------------------------------------------------------------------------------


def test_no_secret_is_written_not_even_half_of_one(file, fresh_mask):
    secret = "hunter2-31415926-hunter2"
    output = f"E   ValueError: cannot log in as {secret} here\nE   OSError: {'x' * 130} cannot use {secret}"
    made = lesson(output, resolved=secret + "y" * 270 + secret, criterion=secret, mission=secret, strategy=secret)
    made = replace(made, lines=(secret, "z" * 150 + secret))  # as if whoever called had not masked them
    log.know_value(secret)
    lessons.learn(file, made)
    written = file.read_text()
    assert "hunter2" not in written
    assert written.count(log.MASK) >= 6
    assert not any("hunter" in line for line in lessons.normalised(output))


def test_what_looks_like_a_key_is_written_nowhere(file):
    lessons.learn(file, lesson(resolved="used sk-ant-oat01-abcdefghijklmnopqrstuvwxyz"))
    assert "abcdefghij" not in file.read_text()


# --------------------------------------------------------------------------------------------------------
# The file, whatever befalls it
# --------------------------------------------------------------------------------------------------------

WRITES = """
from pathlib import Path
name, many = sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(many):
    lessons.learn(Path(sys.argv[1]), lessons.Lesson("s", (), name, "c", "x", 1, f"{name} {number}", "", ""))
"""


def write_at_once(file: Path, many: int) -> None:
    """Let two processes learn so many lessons each, begun at the same time."""
    argv = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(KIT)!r})\nimport lessons\n{WRITES}", str(file)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([*argv, "one", str(many)], stdin=pipe, stdout=pipe, stderr=pipe) as one,
        subprocess.Popen([*argv, "other", str(many)], stdin=pipe, stdout=pipe, stderr=pipe) as other,
    ):
        for process in (one, other):
            assert process.stdout.readline() == b"ready\n"
        for process in (one, other):
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in (one, other):
            assert (*process.communicate(timeout=60), process.returncode) == (b"", b"", 0)


def resolved(file: Path) -> list[str]:
    return [json.loads(line)["resolved"] for line in file.read_text().splitlines()]


def test_of_what_two_processes_learn_at_once_nothing_is_lost(file):
    write_at_once(file, 60)
    assert sorted(resolved(file)) == sorted(f"{name} {number}" for name in ("one", "other") for number in range(60))


def test_nothing_new_is_lost_either_while_the_oldest_go(file):
    write_at_once(file, 180)
    found = resolved(file)
    assert lessons.MOST * lessons.SPARE <= len(found) <= lessons.MOST
    for name in ("one", "other"):
        last = [int(text.split()[1]) for text in found if text.startswith(f"{name} ")]
        assert last == list(range(180 - len(last), 180))


def test_the_file_does_not_grow_without_end(file):
    sizes = []
    for number in range(450):
        lessons.learn(file, lesson(resolved=f"in way {number}"))
        sizes.append(len(file.read_text().splitlines()))
    assert max(sizes) <= lessons.MOST
    assert sizes.count(lessons.MOST * lessons.SPARE) >= 2  # it was written anew, and not each time
    assert min(sizes[lessons.MOST :]) >= lessons.MOST * lessons.SPARE
    assert resolved(file)[-1] == "in way 449"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_large_lessons_go_earlier(file):
    for number in range(40):
        made = lesson(resolved=f"{number} " + "ä" * 1000, criterion="ö" * 1000)
        lessons.learn(file, replace(made, lines=tuple(f"{line} " + "ü" * 1000 for line in range(50))))
    assert 100_000 < file.stat().st_size <= lessons.MAX_SIZE
    assert resolved(file)[-1].startswith("39 ")


GARBAGE = bytes(range(256)) * 40  # 10,240 bytes


@pytest.mark.parametrize(
    "damage",
    [
        GARBAGE,
        GARBAGE.replace(b"\n", b" "),
        b'{"version": 1, "signature": "cut in the mid',
        b"[" * 10_000,
        b"9" * 10_000,
        b'"a text"\n[]\nnull\n17\n{}\n',
        b'{"version": 2, "lines": "of a later version"}\n',
        b"\n\n\n",
        "{}\n".encode("utf-16"),
    ],
)
@pytest.mark.parametrize("before", (True, False))
def test_what_is_damaged_is_passed_over(file, damage, before, capsys):
    if before:
        lessons.learn(file, lesson(resolved="before"))
    with file.open("ab") as planted:
        planted.write(damage)
    lessons.learn(file, lesson(resolved="after"))
    found = lessons.fitting(file, "E   ValueError: the cart has no currency")
    assert [one.resolved for one in found] == ["after", "before"][: 1 + before]
    assert damage in file.read_bytes()  # it stays for whoever wants to look
    assert capsys.readouterr() == ("", "")


def test_what_is_damaged_is_said_to_be_gone_when_the_file_is_written_anew(file, capsys, monkeypatch):
    monkeypatch.setattr(lessons, "MOST", 3)
    file.write_bytes(GARBAGE)
    for name in ("one", "two", "three", "four"):
        lessons.learn(file, lesson(resolved=name))
    assert resolved(file) == ["two", "three", "four"][-int(3 * lessons.SPARE + 1) :]
    lines = sum(bool(line.strip()) for line in GARBAGE.split(b"\n"))
    assert f"lessons.jsonl: {lines} damaged lines are gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"signature": 1},
        {"lines": "text"},
        {"lines": [1]},
        {"lines": None},
        {"sessions": "3"},
        {"sessions": True},
        {"sessions": None},
        {"resolved": None},
        {"mission": ["shop"]},
        {"commit": {}},
        {"version": "1"},
        {"version": None},
    ],
)
def test_a_line_of_another_shape_is_no_lesson(file, change):
    lessons.learn(file, lesson())
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}) + "\n")
    assert lessons.fitting(file, "E   ValueError: the cart has no currency") == []


def test_a_line_that_somebody_else_wrote_cannot_flood_or_steer_a_prompt(file):
    lessons.learn(file, lesson())
    planted = json.loads(file.read_text()) | {"resolved": "\x1b]0;x\x07\n" + "y" * 90_000, "unknown": 1}
    planted["lines"] = [f"{planted['lines'][0]}\n\ud800", *["z\n" * 900] * 99]
    file.write_text(json.dumps(planted) + "\n")
    (found,) = lessons.fitting(file, "E   ValueError: the cart has no currency")
    assert len(found.lines) <= lessons.LINES
    told = lessons.told(found)
    assert len(told) <= lessons.MAX_TOLD
    assert told.isprintable()
    assert told.encode()


def test_of_a_huge_file_only_the_end_is_read_and_it_is_made_small(file, capsys):
    with file.open("wb") as planted:
        planted.truncate(3_000_000_000)  # sparse
    begun = time.monotonic()
    assert lessons.fitting(file, "E   ValueError: the cart has no currency") == []
    lessons.learn(file.with_name("another"), lesson(resolved="at the end"))
    with file.open("ab") as planted:
        planted.write(b"\n" + file.with_name("another").read_bytes())
    assert [one.resolved for one in lessons.fitting(file, "E   ValueError: the cart has no currency")] == ["at the end"]
    lessons.learn(file, lesson())
    assert time.monotonic() - begun < 10
    assert resolved(file) == ["at the end", lesson().resolved]
    assert file.stat().st_size < lessons.MAX_SIZE
    assert "damaged lines are gone" in capsys.readouterr().err


def test_a_lesson_that_the_disk_has_no_room_for_is_said_and_the_next_one_begins_a_line(file):
    lessons.learn(file, lesson(resolved="before"))
    code = """
import resource, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
lessons.learn(Path(sys.argv[1]), lessons.Lesson("s", (), "m", "c", "x", 1, "no room", "", ""))
"""
    for room in (100, 0):  # first a part of it is written, then nothing
        done = python(code, file, file.stat().st_size + room)
        assert done.returncode == 0
        assert "a lesson could not be kept: [Errno " in done.stderr
    lessons.learn(file, lesson(resolved="after"))
    found = lessons.fitting(file, "E   ValueError: the cart has no currency")
    assert [one.resolved for one in found] == ["after", "before"]
    assert len(file.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("planted", ("symlink", "dangling symlink", "hard link", "pipe", "folder", "device"))
def test_what_is_planted_in_its_place_is_neither_followed_nor_waited_for(file, planted, tmp_path):
    target = tmp_path / "precious"
    if planted != "dangling symlink":
        target.write_text("precious\n")
    if planted.endswith("symlink"):
        file.symlink_to(target)
    elif planted == "hard link":
        file.hardlink_to(target)
    elif planted == "pipe":
        os.mkfifo(file)
    elif planted == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    code = """
from pathlib import Path
path = Path(sys.argv[1])
lessons.learn(path, lessons.Lesson("s", (), "m", "c", "x", 1, "r", "", ""))
print(lessons.fitting(path, "E   ValueError: the cart has no currency"))
"""
    done = python(code, file)
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "a lesson could not be kept" in done.stderr
    assert "the lessons cannot be read" in done.stderr
    assert not target.exists() if planted == "dangling symlink" else target.read_text() == "precious\n"


def test_a_folder_that_is_gone_costs_the_lesson_only(tmp_path, capsys):
    lessons.learn(tmp_path / "gone" / "lessons.jsonl", lesson())
    assert "a lesson could not be kept: [Errno 2]" in capsys.readouterr().err
    assert lessons.fitting(tmp_path / "gone" / "lessons.jsonl", "x") == []


def test_whoever_never_lets_go_of_the_file_does_not_stop_the_mission(file, capsys, monkeypatch):
    monkeypatch.setattr(lessons, "PATIENCE", 0.2)
    lessons.learn(file, lesson(resolved="before"))
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lessons.learn(file, lesson(resolved="meanwhile"))
        assert "another process writes it" in capsys.readouterr().err
        assert [one.resolved for one in lessons.fitting(file, "E   ValueError: the cart has no currency")] == ["before"]
    lessons.learn(file, lesson(resolved="after"))
    assert resolved(file) == ["before", "after"]


# --------------------------------------------------------------------------------------------------------
# What resembles what
# --------------------------------------------------------------------------------------------------------

PYTEST = """\
============================= test session starts ==============================
platform linux -- Python 3.11.7, pytest-8.4.1, pluggy-1.6.0
rootdir: /home/me/shop
collected 14 items

tests/test_cart.py ..F...........                                        [100%]

=================================== FAILURES ===================================
__________________________________ test_total __________________________________

    def test_total():
>       assert total([1,2,3]) == 6
               ^^^^^^^^^^^^^^

tests/test_cart.py:3:
_ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _

>   return sum(i["price"] for i in items)
E   TypeError: 'int' object is not subscriptable

shop.py:2: TypeError
=========================== short test summary info ============================
FAILED tests/test_cart.py::test_total - TypeError: 'int' object is not subscriptable
========================= 1 failed, 13 passed in 0.12s =========================
"""
# The same in a clean checkout, months later: other folders, lines, widths, times, counts.
PYTEST_AGAIN = (
    PYTEST.replace("/home/me/shop", "/tmp/tmpab3x_9q1/checkout")
    .replace("shop.py:2:", "/tmp/tmpab3x_9q1/checkout/shop.py:31:")
    .replace("test_cart.py:3:", "test_cart.py:77:")
    .replace("=====", "==")
    .replace("13 passed in 0.12s", "240 passed in 12.30s")
    .replace("14 items", "241 items")
    .replace("3.11.7", "3.13.1")
)
PYTEST_SAME_CAUSE = """\
    def test_invoice():
>       assert "9.50" in invoice([9])
tests/test_invoice.py:12:
src/invoice.py:40: in invoice
    lines.append(row["net"])
E   TypeError: 'int' object is not subscriptable
src/invoice.py:40: TypeError
FAILED tests/test_invoice.py::test_invoice - TypeError: 'int' object is not subscriptable
1 failed in 0.05s
"""
PYTEST_OTHER = """\
============================= test session starts ==============================
platform linux -- Python 3.11.7, pytest-8.4.1, pluggy-1.6.0
rootdir: /home/me/shop
collected 14 items
=================================== FAILURES ===================================
___________________________________ test_sum ___________________________________
    def test_sum():
>       assert 1 + 1 == 3
E       assert (1 + 1) == 3
tests/test_eq.py:2: AssertionError
=========================== short test summary info ============================
FAILED tests/test_eq.py::test_sum - assert (1 + 1) == 3
========================= 1 failed, 13 passed in 0.12s =========================
"""
PYTEST_OTHER_SUM = PYTEST_OTHER.replace("test_sum", "test_product").replace("1 + 1", "2 * 3").replace("eq.py", "ne.py")
PYTEST_MODULE = """\
==================================== ERRORS ====================================
_____________________ ERROR collecting tests/test_api.py _____________________
ImportError while importing test module '/home/me/shop/tests/test_api.py'.
Hint: make sure your test modules/packages have valid Python names.
Traceback:
/usr/lib/python3.11/importlib/__init__.py:126: in import_module
    return _bootstrap._gcd_import(name[level:], package, level)
tests/test_api.py:1: in <module>
    import yaml
E   ModuleNotFoundError: No module named 'yaml'
=========================== short test summary info ============================
ERROR tests/test_api.py
!!!!!!!!!!!!!!!!!!!! Interrupted: 1 error during collection !!!!!!!!!!!!!!!!!!!!
1 error in 0.09s
"""
PYTEST_MODULE_ELSEWHERE = PYTEST_MODULE.replace("test_api", "test_config").replace("import yaml", "from yaml import x")
PYTEST_OTHER_MODULE = PYTEST_MODULE_ELSEWHERE.replace("yaml", "requests")
PYTHON_MODULE = """\
Traceback (most recent call last):
  File "/srv/app/main.py", line 3, in <module>
    from config import load
  File "/srv/app/config.py", line 1, in <module>
    import yaml
ModuleNotFoundError: No module named 'yaml'
"""
NPM_MODULE = """\
> shop@1.0.0 build
> node build.js

node:internal/modules/cjs/loader:1210
  throw err;
  ^

Error: Cannot find module 'express'
Require stack:
- /home/me/shop/build.js
    at Module._resolveFilename (node:internal/modules/cjs/loader:1207:15)
    at Module._load (node:internal/modules/cjs/loader:1038:27)
    at require (node:internal/modules/helpers:182:18)
    at Object.<anonymous> (/home/me/shop/build.js:1:9)
    at Module._compile (node:internal/modules/cjs/loader:1521:14) {
  code: 'MODULE_NOT_FOUND',
  requireStack: [ '/home/me/shop/build.js' ]
}

Node.js v20.20.2
npm ERR! code 1
npm ERR! path /home/me/shop
npm ERR! command failed
npm ERR! A complete log of this run can be found in: /root/.npm/_logs/2026-11-27T10_00_00_123Z-debug-0.log
"""
NPM_MODULE_ELSEWHERE = NPM_MODULE.replace("build", "server").replace("v20.20.2", "v22.1.0").replace(":1210", ":1404")
NPM_OTHER_MODULE = NPM_MODULE_ELSEWHERE.replace("express", "koa")
NPM_NO_JEST = "> shop@1.0.0 test\n> jest --ci\n\nsh: 1: jest: not found\nnpm ERR! code 127\n"
JEST = """\
FAIL src/cart.test.js
  cart
    ✕ adds up the prices (3 ms)

  ● cart › adds up the prices

    TypeError: Cannot read properties of undefined (reading 'price')

      3 | function total(items) {
    > 4 |   return items.reduce((sum, item) => sum + item.offer.price, 0);
        |                                                       ^
      5 | }

      at price (src/cart.js:4:57)
      at Array.reduce (<anonymous>)
      at Object.total (src/cart.test.js:5:10)

Test Suites: 1 failed, 2 passed, 3 total
Tests:       1 failed, 9 passed, 10 total
Snapshots:   0 total
Time:        0.612 s
Ran all test suites.
"""
JEST_OTHER = """\
FAIL src/user.test.js
  user
    ✕ says hello (2 ms)

  ● user › says hello

    expect(received).toBe(expected) // Object.is equality

    Expected: "Hello"
    Received: "Hi"

      at Object.toBe (src/user.test.js:9:21)

Test Suites: 1 failed, 2 passed, 3 total
Tests:       1 failed, 9 passed, 10 total
Snapshots:   0 total
Time:        0.498 s
Ran all test suites.
"""
JEST_THIRD = JEST_OTHER.replace("user", "mail").replace("says hello", "sends a mail").replace("Hello", "sent")
CARGO_PANIC = """\
   Compiling shop v0.1.0 (/home/me/shop)
    Finished `test` profile [unoptimized + debuginfo] target(s) in 2.11s
     Running unittests src/lib.rs (target/debug/deps/shop-507999230d6984fa)

running 2 tests
test tests::empty_is_zero ... ok
test tests::adds_up ... FAILED

---- tests::adds_up stdout ----

thread 'tests::adds_up' (29045) panicked at src/lib.rs:6:20:
assertion `left == right` failed
  left: 4
 right: 3
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/std/src/panicking.rs:689:5
   1: core::panicking::panic_fmt
             at /rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/core/src/panicking.rs:80:14
   2: shop::tests::adds_up
             at ./src/lib.rs:6:20
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.

failures:
    tests::adds_up

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.22s

error: test failed, to rerun pass `--lib`
"""
CARGO_PANIC_AGAIN = CARGO_PANIC.replace("29045", "311").replace("left: 4", "left: 40").replace("6:20", "19:9")
CARGO_OTHER_PANIC = CARGO_PANIC.replace("adds_up", "is_sorted").replace("shop", "list")
CARGO_ERROR = """\
   Compiling shop v0.1.0 (/home/me/shop)
error[E0425]: cannot find value `missing_fee` in this scope
 --> src/lib.rs:1:72
  |
1 | pub fn total(items: &[i32]) -> i32 { items.iter().sum::<i32>() + missing_fee }
  |                                                                  ^^^^^^^^^^^ not found in this scope

For more information about this error, try `rustc --explain E0425`.
error: could not compile `shop` (lib) due to 1 previous error
warning: build failed, waiting for other jobs to finish...
"""
CARGO_ERROR_AGAIN = CARGO_ERROR.replace("1:72", "14:66").replace("1 | pub", "14 | pub").replace("(lib)", "(lib test)")
CARGO_OTHER_ERROR = """\
   Compiling shop v0.1.0 (/home/me/shop)
error[E0308]: mismatched types
 --> src/mail.rs:4:9
  |
4 |     let s: String = 5;
  |            ------   ^ expected `String`, found integer

For more information about this error, try `rustc --explain E0308`.
error: could not compile `shop` (lib) due to 1 previous error
"""
CARGO_OTHER_MISMATCH = """\
error[E0308]: mismatched types
 --> src/stock.rs:19:12
   |
19 |     stock.put(weight);
   |           --- ^^^^^^ expected `u64`, found `f64`

error: could not compile `shop` (lib) due to 1 previous error
"""
TSC = """\
src/cart.ts(14,7): error TS2339: Property 'price' does not exist on type 'Offer'.
src/mail.ts(2,21): error TS2307: Cannot find module 'nodemailer' or its corresponding type declarations.

Found 2 errors in 2 files.
"""
TSC_AGAIN = """\
src/cart.ts(31,19): error TS2339: Property 'price' does not exist on type 'Offer'.

Found 1 error in src/cart.ts:31
"""
TSC_OTHER = "src/user.ts(3,1): error TS2322: Type 'string' is not assignable to type 'number'.\n\nFound 1 error.\n"
MAKE_ONLY = "make: *** [Makefile:3: test] Error 1\n"


@pytest.mark.parametrize(
    ("learned", "failure"),
    [
        (PYTEST, PYTEST_AGAIN),
        (PYTEST, PYTEST_SAME_CAUSE),
        (PYTEST_MODULE, PYTEST_MODULE_ELSEWHERE),
        (NPM_MODULE, NPM_MODULE_ELSEWHERE),
        (NPM_NO_JEST, NPM_NO_JEST.replace("shop@1.0.0", "mail@2.1.0")),
        (JEST, JEST.replace("3 ms", "41 ms").replace("0.612", "1.02").replace("10 total", "11 total")),
        (CARGO_PANIC, CARGO_PANIC_AGAIN),
        (CARGO_ERROR, CARGO_ERROR_AGAIN),
        (TSC, TSC_AGAIN),
        (PYTEST, f"\x1b[1m\x1b[31m{PYTEST}\x1b[0m"),
        (PYTEST, PYTEST.replace("\n", "\r\n")),
        (PYTEST + MAKE_ONLY, MAKE_ONLY * 3 + PYTEST),
        ("KeyError: 'total'", "KeyError: 'total'"),
    ],
)
def test_a_failure_is_recognised(file, learned, failure):
    lessons.learn(file, lesson(learned))
    lessons.learn(file, lesson(JEST_OTHER, resolved="something else"))
    assert [one.resolved for one in lessons.fitting(file, failure)] == [lesson().resolved]
    assert lessons.fitting(file, learned)


ALL = [PYTEST, PYTEST_OTHER, PYTEST_OTHER_SUM, PYTEST_MODULE, PYTEST_OTHER_MODULE, NPM_MODULE, NPM_OTHER_MODULE,
       NPM_NO_JEST, JEST, JEST_OTHER, JEST_THIRD, CARGO_PANIC, CARGO_OTHER_PANIC, CARGO_ERROR, CARGO_OTHER_ERROR,
       CARGO_OTHER_MISMATCH, TSC, TSC_OTHER]  # fmt: skip


@pytest.mark.parametrize("learned", range(len(ALL)))
def test_failures_of_the_same_tool_are_not_taken_for_each_other(file, learned):
    lessons.learn(file, lesson(ALL[learned]))
    assert [number for number, output in enumerate(ALL) if lessons.fitting(file, output)] == [learned]


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n \n\t\n",
        "FAILED",
        "FAILED\n=====\n-----\nexit code 1\n",
        "1 failed, 3 passed in 0.1s",
        MAKE_ONLY,
        "npm ERR! code ELIFECYCLE\nnpm ERR! errno 1\nnpm ERR! Exit status 1\n",
        "npm ERR! Test failed.  See above for more details.",
        "Error: Process completed with exit code 1.",
        "Traceback (most recent call last):\n",
        "error: could not compile `shop` (lib) due to 2 previous errors",
        "assertion `left == right` failed\n  left: 3\n right: 4\n",
        "E       assert 3 == 4\nE        +  where 3 = len([1, 2, 3])",
        "Expected: 3\nReceived: 4",
        "AssertionError",
        "Tests:       1 failed, 9 passed, 10 total\nTime: 3 s\nRan all test suites.\n",
        "ok 1\nnot ok 2\n1..2\n",
        "✕ ✕ ✕",
        "*** !!! ###\n" * 50,
    ],
)
def test_what_any_failure_prints_recognises_none(file, output):
    lessons.learn(file, lesson(output, resolved="alone"))
    lessons.learn(file, lesson(output + "\nE   ValueError: the cart has no currency", resolved="with more"))
    assert lessons.fitting(file, output) == []
    assert lessons.fitting(file, output + "\nE   KeyError: no such fee name") == []


@pytest.mark.parametrize(
    ("learned", "failure", "fits"),
    [
        ("in total of carts\nin price of goods", "in total of carts\nin rate of taxes", False),
        ("in total of carts\nin price of goods\nin fee of lands", "in total of carts\nin price of goods\nin x y", True),
        ("in total of carts\nin price of goods", "in total of carts", True),
        # a line with one word of its own says nothing alone
        ("E   KeyError: 'id'", "E   KeyError: 'id'\nshop.py:4: in total of carts", False),
        ("E   KeyError: 'id'", "E   KeyError: 'id'", True),
    ],
)
def test_more_than_half_has_to_be_in_common(file, learned, failure, fits):
    lessons.learn(file, lesson(learned))
    assert bool(lessons.fitting(file, failure)) is fits


def test_what_it_names_first_is_the_error():
    assert lessons.telling(PYTEST)[0] == "E TypeError: 'int' object is not subscriptable"
    assert lessons.telling(PYTHON_MODULE)[0] == "ModuleNotFoundError: No module named 'yaml'"
    assert lessons.telling(NPM_MODULE)[0] == "Error: Cannot find module 'express'"
    assert lessons.telling(CARGO_ERROR)[0] == "error[E_]: cannot find value `missing_fee` in this scope"
    assert lessons.telling(CARGO_ERROR * 2) == lessons.telling(CARGO_ERROR)
    assert lessons.telling(CARGO_PANIC)[0] == "thread 'tests::adds_up' (_) panicked at lib.rs:_:"
    assert lessons.telling(TSC)[0] == "cart.ts(_): error TS_: Property 'price' does not exist on type 'Offer'."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("in /tmp/tmpab3x_9q/x.log", "in /var/folders/zz/T/x.log"),
        ("src/a/b.py:3: cannot", "b.py:99: cannot"),
        (r"see ~/project/b.py", "see b.py"),
        ("https://a.example/b/c.py", "https://a.other/d/c.py"),
        ("wrote /tmp/tmpab3x_9qz and /tmp/tmp.Xy12abCD", "wrote /tmp/tmpzzzzzzzz and /tmp/tmp.aaaaaaaaaa"),
        ("at 2026-11-21T07:34:11.123456Z", "at 2027-01-02T23:59:00Z"),
        ("<object at 0x7f3a2c>", "<object at 0xdeadbeef01>"),
        ("commit 8ff6fc9", "commit c52e0cbf9bf9784fe12be9533b231138a98cc277"),
        ("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07", "red link"),
        ("======== FAILURES ========", "=== FAILURES ==="),
        ("a    b\t c", "a b c"),
        ("took 3 s\n12 rows", "took 1,234.5 s\n1e6 rows"),
        ("x\n\n\r\n \ny\r\n", "x\ny"),
    ],
)
def test_what_differs_from_run_to_run_is_left_out(one, other):
    assert lessons.normalised(one) == lessons.normalised(other) != ()
    assert lessons.signature(one) == lessons.signature(other)


def test_failures_that_differ_have_another_signature():
    assert len({lessons.signature(output) for output in ALL}) == len(ALL)


def test_a_failure_that_is_cut_at_another_line_is_the_same():
    short, long = ("\n".join(f"case took {took} ms in {n}" for n in "abcdefghij" * 40) for took in (7, 1234567))
    assert short[-4000:].count("\n") != long[-4000:].count("\n")
    end = "\n" + "\n".join(f"the end of {letter}" * 9 for letter in "klmnopqrstuvwxyz")
    assert lessons.signature((short + end)[-4000:]) == lessons.signature((long + end)[-4000:])


@pytest.mark.parametrize(
    "piece",
    ["a", "/", "a/", "\x1b[", "\x1b]", "=", "_", "1.", "0x", "a-", "tmp", "error ", "failed at the ", "\n", "\r", " ",
     "E   KeyError: 'x'\n", "[ended what it left behind", "\udc80", "e1e+"],
)  # fmt: skip
def test_a_hostile_output_takes_no_long_time(file, piece):
    output = (piece * 1_000_000)[:1_000_000]
    begun = time.process_time()
    lessons.signature(output), lessons.telling(output)
    assert time.process_time() - begun < 5
    begun = time.process_time()
    for _ in range(10):
        lessons.telling(output[-4000:])
    assert time.process_time() - begun < 1
