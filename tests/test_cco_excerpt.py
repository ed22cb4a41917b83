"""Failing output of many tools: what is kept of it, what is folded, and that no junk is too much."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import KIT, need

import excerpt

ROOM = 1500  # bytes; less than any of the outputs here


def size(text: str) -> int:
    return len(text.encode())


def output(*argv: str, cwd: Path) -> str:
    """What a command printed that failed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C"}
    done = subprocess.run(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode
    return done.stdout.decode()


def noise(many: int, line: str = "step {0}: copied {1} to the folder of {2}") -> str:
    """Lines that say nothing, none like another."""
    words = ("apple", "river", "stone", "cloud", "table", "green", "house", "paper", "light", "music")
    return "".join(
        line.format(*(f"{words[n % 10]}-{words[n // 10 % 10]}-{words[(n * k) // 7 % 10]}" for k in (1, 2, 3))) + "\n"
        for n in range(many)
    )


# --------------------------------------------------------------------------------------------------------
# Real tools
# --------------------------------------------------------------------------------------------------------

SHOP = """
import json, unittest, pytest
def price(text): return json.loads(text)
@pytest.mark.parametrize("n", range(40))
def test_fine(n): pass
@pytest.mark.parametrize("n", range(9))
def test_many(n):
    values = [n, n + 1]
    assert sum(values) == n
def test_parse():
    assert price("{bad") == 3
@pytest.fixture
def broken(): raise RuntimeError("the database is away")
def test_fixture(broken): pass
class T(unittest.TestCase):
    def test_u(self): self.assertEqual(price("[1]"), 2)
    def test_e(self): price("{")
"""


def test_pytest(tmp_path):
    (tmp_path / "test_shop.py").write_text(SHOP)
    said = output(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "test_shop.py", cwd=tmp_path)
    kept = excerpt.useful(said, 3000)
    assert size(kept) <= 3000 < size(said)
    for words in ("E   RuntimeError: the database is away", ">       assert sum(values) == n", "E       assert 1 == 0"):
        assert kept.count(words) == 1
    assert "[8 more like the 12 lines above]" in kept
    assert re.search(r"12 failed, 40 passed, 1 error in", kept)
    assert "E           json.decoder.JSONDecodeError: Expecting property name" in kept
    assert "in decode" not in kept
    assert "PASSED" not in kept


def test_unittest(tmp_path):
    (tmp_path / "test_shop.py").write_text(SHOP)
    said = noise(60) + output(sys.executable, "-m", "unittest", "-v", "test_shop", cwd=tmp_path)
    kept = excerpt.useful(said, ROOM)
    assert kept.startswith("[60 lines left out]")
    for words in (
        "FAIL: test_u",
        "AssertionError: [1] != 2",
        "JSONDecodeError: Expecting",
        "FAILED (failures=1, errors=1)",
    ):
        assert words in kept
    assert 'test_shop.py", line 17, in test_e' in kept
    assert "decoder.py" not in kept


def test_a_compiler_and_make(tmp_path):
    need(shutil.which("gcc") and shutil.which("make"), "gcc or make is missing")
    warns = "".join(f"int warns_{n}(void) {{ int unused_{n}; return 0; }}\n" for n in range(30))
    (tmp_path / "a.c").write_text(
        f"{warns}int f(int a) {{ return a }}\nint main(void) {{ struct x y; return gone; }}\n"
    )
    (tmp_path / "Makefile").write_text("a.o: a.c\n\tgcc -Wall -c a.c\n")
    said = output("make", cwd=tmp_path)
    kept = excerpt.useful(said, 1000)
    assert size(kept) <= 1000 < size(said)
    for words in (
        "a.c:31:24: error: expected ';' before '}' token",
        "storage size of 'y'",
        "make: *** [Makefile:2: a.o]",
    ):
        assert words in kept
    assert "unused variable" not in kept


def test_node(tmp_path):
    need(shutil.which("node"), "node is missing")
    (tmp_path / "t.test.js").write_text(
        "const test = require('node:test'), assert = require('node:assert');\n"
        "for (let i = 0; i < 40; i++) test('good ' + i, () => {});\n"
        "test('adds', () => { assert.strictEqual(1 + 2, 4) });\n"
        "test('throws', () => { JSON.parse('{bad') });\n"
    )
    for style in ("tap", "spec"):
        said = output("node", "--test", f"--test-reporter={style}", "t.test.js", cwd=tmp_path)
        kept = excerpt.useful(said, ROOM)
        assert size(kept) <= ROOM < size(said)
        for words in ("adds", "3 !== 4", "t.test.js:3:", "throws", "in JSON at position 1", "fail 2"):
            assert words in kept
        assert "good" not in kept
        assert "processPendingSubtests" not in kept


def test_a_shell_and_git(tmp_path):
    script = "set -x; cat missing.txt; nosuchcommand --now; git clone ./nowhere; git -C / log; exit 3"
    said = noise(60) + output("bash", "-c", script, cwd=tmp_path) + noise(60)
    kept = excerpt.useful(said, ROOM)
    for words in ("missing.txt: No such file", "nosuchcommand: command not found", "fatal: repository './nowhere'"):
        assert words in kept


def test_mypy_and_ruff(tmp_path):
    tools = KIT / ".tools/lint/bin"
    need(tools.is_dir(), "ruff and mypy are not installed in .tools/lint")
    (tmp_path / "bad.py").write_text("import os\n" + "x: int = 'a'\ny: str = 1\n" * 40 + "gone()\n")
    said = output(str(tools / "mypy"), "--cache-dir=/dev/null", "bad.py", cwd=tmp_path)
    kept = excerpt.useful(said, 800)
    for words in (
        "bad.py:2: error: Incompatible types",
        "[38 more like the 2 lines above]",
        'Name "gone" is not defined',
        "errors in 1 file",
    ):
        assert words in kept
    said = output(str(tools / "ruff"), "check", "--no-cache", "--isolated", "bad.py", cwd=tmp_path)
    kept = excerpt.useful(noise(60) + said, 400)
    for words in ("F401", "`os` imported but unused", "F821", "Undefined name `gone`", " errors."):
        assert words in kept


# --------------------------------------------------------------------------------------------------------
# Tools that are not at hand
# --------------------------------------------------------------------------------------------------------

GO = (
    "".join(f"=== RUN   Test{n}\n--- PASS: Test{n} (0.00s)\n" for n in noise(30, "{0}").split())
    + """=== RUN   TestAdd
    add_test.go:8: Add(1, 2) = 4, want 3
--- FAIL: TestAdd (0.00s)
=== RUN   TestIndex
--- FAIL: TestIndex (0.00s)
panic: runtime error: index out of range [3] with length 0 [recovered]
	panic: runtime error: index out of range [3] with length 0

goroutine 7 [running]:
testing.tRunner.func1.2({0x5111a0, 0xc0000141c8})
	/usr/local/go/src/testing/testing.go:1545 +0x238
example.com/shop.Index(...)
	/srv/shop/index.go:12
FAIL	example.com/shop	0.004s
FAIL
"""
)
CARGO = (
    noise(40, "   Compiling {0} v1.0.0")
    + noise(40, "test shop::{0} ... ok")
    + """test tests::adds ... FAILED

failures:

---- tests::adds stdout ----
thread 'tests::adds' panicked at src/lib.rs:10:9:
assertion `left == right` failed
  left: 4
 right: 3
stack backtrace:
   0: rust_begin_unwind
             at /rustc/90b35a623/library/std/src/panicking.rs:597:5
   1: core::panicking::panic_fmt
             at /rustc/90b35a623/library/core/src/panicking.rs:72:14
   2: shop::tests::adds
             at ./src/lib.rs:10:9

failures:
    tests::adds

test result: FAILED. 40 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

error: test failed, to rerun pass `--lib`
"""
)
RUSTC = (
    noise(60, "   Compiling {0} v1.0.0")
    + """warning: unused variable: `total`
 --> src/main.rs:2:9
error[E0308]: mismatched types
 --> src/main.rs:4:18
  |
4 |     let x: i32 = "a";
  |            ---   ^^^ expected `i32`, found `&str`

error: could not compile `shop` (bin "shop") due to 1 previous error; 1 warning emitted
"""
)
JEST = (
    noise(40, "PASS src/{0}.test.js")
    + """FAIL src/sum.test.js
  ✓ keeps zero (2 ms)
  ✕ adds (5 ms)

  ● adds

    expect(received).toBe(expected) // Object.is equality

    Expected: 4
    Received: 3

      3 | test('adds', () => {
    > 4 |   expect(sum(1, 2)).toBe(4);
        |                     ^
      5 | });

      at Object.<anonymous> (src/sum.test.js:4:21)
      at Promise.then.completed (node_modules/jest-circus/build/utils.js:298:28)
      at new Promise (<anonymous>)
      at callAsyncCircusFn (node_modules/jest-circus/build/utils.js:231:10)

Test Suites: 1 failed, 40 passed, 41 total
Tests:       1 failed, 41 passed, 42 total
Snapshots:   0 total
Time:        1.2 s
Ran all test suites.
"""
)
MOCHA = (
    noise(40, "    ✔ handles {0}")
    + """    1) adds

  40 passing (12ms)
  1 failing

  1) sum
       adds:

      AssertionError [ERR_ASSERTION]: 3 == 4
      + expected - actual

      -3
      +4

      at Context.<anonymous> (test/sum.js:5:12)
      at process.processImmediate (node:internal/timers:476:21)
"""
)
TSC = (
    noise(40, "src/{0}.ts(3,5): warning TS6133: '{1}' is declared but never used.")
    + "src/app.ts(12,7): error TS2322: Type 'string' is not assignable to type 'number'.\n"
    + "src/routes/user.ts:40:3 - error TS2304: Cannot find name 'User'.\n\nFound 2 errors in 2 files.\n"
)
ESLINT = (
    "/home/ada/app/src/index.js\n"
    + noise(40, "  3:5  warning  Unexpected console statement in {0}  no-console")
    + "  9:1  error    'gone' is not defined  no-undef\n\n✖ 41 problems (1 error, 40 warnings)\n"
)
DOTNET = (
    noise(40, "  Passed Shop.Tests.{0} [1 ms]")
    + """  Failed Shop.Tests.Adds [12 ms]
  Error Message:
   Assert.Equal() Failure: Values differ
Expected: 4
Actual:   3
  Stack Trace:
     at Shop.Tests.Adds() in /srv/shop/Tests.cs:line 12
     at System.RuntimeMethodHandle.InvokeMethod(Object target, Void** arguments, Signature sig, Boolean isConstructor)
     at System.Reflection.MethodBaseInvoker.InvokeWithNoArgs(Object obj, BindingFlags invokeAttr)
/srv/shop/Program.cs(3,5): error CS0103: The name 'gone' does not exist in the current context [/srv/shop/a.csproj]

Failed!  - Failed:     1, Passed:    40, Skipped:     0, Total:    41, Duration: 20 ms - shop.dll (net8.0)
"""
)
MAVEN = (
    noise(40, "[INFO] Downloaded from central: {0}.jar")
    + """[INFO] Running com.example.AppTest
[ERROR] Tests run: 2, Failures: 1, Errors: 0, Skipped: 0, Time elapsed: 0.05 s <<< FAILURE! - in com.example.AppTest
[ERROR] adds(com.example.AppTest)  Time elapsed: 0.01 s  <<< FAILURE!
java.lang.AssertionError: expected:<4> but was:<3>
	at org.junit.Assert.fail(Assert.java:89)
	at org.junit.Assert.assertEquals(Assert.java:647)
	at com.example.AppTest.adds(AppTest.java:12)
	at java.base/java.lang.reflect.Method.invoke(Method.java:580)
Caused by: java.lang.IllegalStateException: the basket is closed
	at com.example.Basket.open(Basket.java:40)

[ERROR] Failures:
[ERROR]   AppTest.adds:12 expected:<4> but was:<3>
[ERROR] Tests run: 2, Failures: 1, Errors: 0, Skipped: 0
[INFO] BUILD FAILURE
[INFO] Total time:  2.1 s
[ERROR] Failed to execute goal org.apache.maven.plugins:maven-surefire-plugin:2.22.2:test: There are test failures.
[ERROR] -> [Help 1]
[ERROR] To see the full stack trace of the errors, re-run Maven with the -e switch.
[ERROR] Re-run Maven using the -X switch to enable full debug logging.
[ERROR] For more information about the errors and possible solutions, please read the following articles:
[ERROR] [Help 1] http://cwiki.apache.org/confluence/display/MAVEN/MojoFailureException
"""
)
GRADLE = (
    noise(50, "> Task :{0}:compileJava")
    + """> Task :test FAILED

AppTest > adds FAILED
    org.opentest4j.AssertionFailedError: expected: <4> but was: <3>
        at app//org.junit.jupiter.api.AssertionUtils.fail(AssertionUtils.java:55)
        at app//com.example.AppTest.adds(AppTest.java:12)

2 tests completed, 1 failed

FAILURE: Build failed with an exception.

* What went wrong:
Execution failed for task ':test'.
> There were failing tests. See the report at: file:///srv/build/reports/tests/test/index.html

BUILD FAILED in 3s
"""
)
PHPUNIT = (
    "PHPUnit 10.5.1 by Sebastian Bergmann and contributors.\n\n"
    + noise(40, "loaded {0}")
    + """There was 1 failure:

1) AppTest::testAdds
Failed asserting that 3 matches expected 4.

/srv/tests/AppTest.php:12

FAILURES!
Tests: 41, Assertions: 41, Failures: 1.
"""
)
RSPEC = (
    noise(40, "  keeps {0}")
    + """Failures:

  1) Calculator adds
     Failure/Error: expect(Calculator.add(1, 2)).to eq(4)

       expected: 4
            got: 3

       (compared using ==)
     # ./spec/calculator_spec.rb:6:in `block (2 levels) in <top (required)>'
     # /usr/lib/ruby/gems/3.0.0/gems/rspec-core-3.12.2/lib/rspec/core/example.rb:263:in `instance_exec'

Finished in 0.01 seconds (files took 0.1 seconds to load)
41 examples, 1 failure

Failed examples:

rspec ./spec/calculator_spec.rb:5 # Calculator adds
"""
)
OTHERS = {
    "go": (
        GO,
        ["add_test.go:8: Add(1, 2) = 4, want 3", "panic: runtime error", "index.go:12", "FAIL\texample"],
        ["PASS"],
    ),
    "cargo": (
        CARGO,
        ["src/lib.rs:10:9:\n", "left: 4", "right: 3", "at ./src", "result: FAILED"],
        ["panicking.rs", "... ok"],
    ),
    "rustc": (RUSTC, ["error[E0308]", "main.rs:4:18", "expected `i32`", "could not compile"], ["apple"]),
    "jest": (JEST, ["● adds", "Expected: 4", "> 4 |", "sum.test.js:4:21", "Tests:       1 failed"], ["circus", "PASS"]),
    "mocha": (MOCHA, ["1) adds", "3 == 4", "-3\n", "+4\n", "test/sum.js:5:12", "1 failing"], ["handles", "timers"]),
    "tsc": (TSC, ["error TS2322: Type", "user.ts:40:3 - error TS2304", "Found 2 errors"], ["never used"]),
    "eslint": (ESLINT, ["9:1  error    'gone'", "✖ 41 problems (1 error"], ["console"]),
    "dotnet": (
        DOTNET,
        ["Failed Shop.Tests.Adds", "Actual:   3", "Tests.cs:line 12", "CS0103", "Failed!"],
        ["System.R"],
    ),
    "maven": (
        MAVEN,
        ["expected:<4> but was:<3>", "AppTest.java:12", "the basket is closed"],
        ["org.junit.Assert.", "Re-run"],
    ),
    "gradle": (GRADLE, ["AppTest > adds FAILED", "expected: <4>", "AppTest.java:12", "BUILD FAILED"], ["apple-apple"]),
    "phpunit": (PHPUNIT, ["1) AppTest::testAdds", "that 3 matches", "AppTest.php:12", "Failures: 1."], ["apple-apple"]),
    "rspec": (RSPEC, ["Failure/Error: expect", "got: 3", "_spec.rb:6", "41 examples, 1 failure"], ["instance_exec"]),
}


@pytest.mark.parametrize(("text", "kept", "gone"), OTHERS.values(), ids=OTHERS)
def test_other_tools(text, kept, gone):
    found = excerpt.useful(text, 1100)
    assert size(found) <= 1100 < size(text)
    assert [words for words in kept if words not in found] == []
    assert [words for words in gone if words in found] == []


# --------------------------------------------------------------------------------------------------------
# Rules
# --------------------------------------------------------------------------------------------------------


def test_what_fits_is_only_cleaned():
    said = "\n\x1b[31mred\x1b[0m \x1b]0;title\x07x  \r\n 10%\r 50%\r100%\ndone\r\n\n\n\tin\x00dented\n\n"
    assert excerpt.useful(said, 100) == "red x\n100%\ndone\n\n\n\tin dented"
    assert excerpt.useful("same\n" * 9, 100) == "same\n" * 8 + "same"
    assert excerpt.useful("", 100) == ""


def test_the_first_failures_come_first_and_the_sum_stays():
    said = "".join(
        f"error: the {word} is wrong\n  because of {word}\n{noise(20, word + ' {0} {1}')}"
        for word in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
    )
    kept = excerpt.useful(said + "7 errors\n", 700)
    assert "the first is wrong\n  because of first" in kept
    assert kept.index("first") < kept.index("second") < kept.index("third")
    assert kept.endswith("\n7 errors")
    assert all(f"error: the {word} is wrong" in kept for word in ("fifth", "sixth", "seventh"))
    assert "because of seventh" not in kept


def test_repeated_blocks_are_folded_whatever_their_numbers_paths_and_digests():
    block = (
        "Error: no answer from /srv/{0}/sock after {1} s\n  request 0x{1}f of 4{1}d5bb0ea6c\n  at src/net.js:{1}:3\n"
    )
    said = "".join(block.format("abcdefghi"[n % 9], n + 10) for n in range(50))
    assert excerpt.useful(said, 300) == block.format("a", 10) + "[49 more like the 3 lines above]"


def test_what_came_before_is_not_shown_again_further_down():
    block = "Error: the database is away\n  host is down\n  port is shut\n  give up now\n"
    said = "".join(f"test {name}\n{block}" for name in ("alpha", "beta", "gamma")) + noise(30)
    kept = excerpt.useful(said, 500)
    assert kept.count("port is shut") == 1
    assert "test beta\n[4 lines like earlier ones]\ntest gamma\n[4 lines like earlier ones]" in kept


def test_a_success_that_speaks_of_errors_is_no_failure():
    said = (
        noise(30, "PASS handles the {0} error")
        + noise(30, "ok 3 - an Error: {0} is told")
        + noise(30, "{0} was built with 0 errors and no failures")
        + "Error: the real one\n"
        + noise(30)
    )
    kept = excerpt.useful(said, 900)
    assert "Error: the real one" in kept
    assert "handles" not in kept
    assert "is told" not in kept


def test_without_a_failure_the_end_is_shown():
    kept = excerpt.useful(noise(100), 500)
    assert kept.startswith("[9")
    assert kept.endswith(noise(100).splitlines()[-1])
    assert size(kept) > 400


def test_a_difference_of_texts_is_shown_where_nothing_else_failed():
    said = noise(60) + "--- expected\n+++ actual\n@@ -1 +1 @@\n-the old answer\n+the new answer\n" + noise(60)
    kept = excerpt.useful(said, 600)
    assert "-the old answer\n+the new answer" in kept


def test_a_long_line_keeps_both_ends():
    kept = excerpt.useful("Error: begin " + "x" * 50_000 + " the end", 600)
    assert kept.startswith("Error: begin xxx")
    assert kept.endswith("xxx the end")
    assert " characters left out] " in kept


JUNK = {
    "bytes": bytes(random.Random(1).randbytes(60_000)).decode("utf-8", "replace"),
    "halves of characters": "\ud83d\udcff Error: x\n" * 3000,
    "one endless line": "error:" * 100_000,
    "empty lines": "\n" * 300_000,
    "four bytes a character": "\U0001f600" * 5000 + "\n" + "Error: \U0001f600\n" * 5000,
    "notes": "[12 lines left out]\n[7 bytes left out]\n[3 more like the 2 lines above]\n[9 more like the line above]\n"
    * 500,
    "numbers": "".join(f"{n}\n" for n in range(20_000)),
    "escapes": "\x1b[" * 50_000 + "\r\r\n" * 5000,
    "go": GO * 30,
    "maven": MAVEN * 30,
}


@pytest.mark.parametrize("text", JUNK.values(), ids=JUNK)
def test_it_is_never_longer_than_the_limit_and_always_the_same(text):
    for limit in (-1, 0, 1, 2, 7, 26, 60, 199, 800, 5000):
        kept = excerpt.useful(text, limit)
        assert size(kept) <= max(0, limit)
        assert kept == excerpt.useful(text, limit)


@pytest.mark.parametrize("seed", range(4))
def test_every_line_is_shown_or_counted(seed):
    dice = random.Random(seed)
    words = [
        "Error: {} is wrong",
        "  at {} (x.js:3:4)",
        "ok {}",
        "{} goes on",
        "same",
        "again {}",
        "1 failed, {} passed",
    ]
    for _ in range(60):
        said = [dice.choice(words).format(dice.choice("abcdefgh") * 3) for _ in range(dice.randint(30, 120))]
        said += said[dice.randint(0, 20) :][: dice.randint(0, 30)]
        kept = excerpt.useful("\n".join(said), dice.randint(150, 500)).splitlines()
        notes = [re.fullmatch(r"\[(\d+) (?:lines? left out|lines like earlier ones)\]", line) for line in kept]
        folds = [re.fullmatch(r"\[(\d+) more like the (?:(\d+) lines|line) above\]", line) for line in kept]
        shown = sum(line in said for line in kept)
        counted = sum(int(note[1]) for note in notes if note) + sum(int(f[1]) * int(f[2] or 1) for f in folds if f)
        assert shown + counted == len(said)


@pytest.mark.parametrize(
    "text",
    [
        "Error: x is wrong at step 17\n" * 350_000,
        noise(200_000, "error {0} of {1} in a/b/{2}.py:3: no"),
        noise(20_000, "fail" + " " * 450 + "{0} {1} {2}"),
        noise(20_000, "{0} " + "http://a.b/c " * 35 + "{1} {2}"),
        "a" * 10_000_000,
        "a/" * 5_000_000,
        "a.b:" * 2_500_000,
        ("a" * 5000 + "\n") * 2000,
        "x\n" * 5_000_000,
        "\r" * 10_000_000,
        "\x1b[0" * 3_000_000,
        "at " * 3_000_000,
        "".join(f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n * 7 % 25)}\n" for n in range(2_500_000)),
    ],
    ids=lambda text: repr(text[:8]),
)
def test_ten_megabytes_take_no_time_that_grows_out_of_hand(text):
    begun = time.process_time()
    assert size(excerpt.useful(text, 4000)) <= 4000
    assert time.process_time() - begun < 5


# --------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------


def test_of_a_large_file_both_ends_are_read(tmp_path):
    path = tmp_path / "check.log"
    path.write_bytes(b"Error: the cause\n" + b"\xff\xfe junk %s\n" % (b"x" * 90) * 40_000 + b"1 test failed\n")
    kept = excerpt.of_file(path, 400)
    assert kept.startswith("Error: the cause\n")
    assert f"[{path.stat().st_size - 2 * excerpt.READ} bytes left out]" in kept
    assert kept.endswith("1 test failed")
    assert size(kept) <= 400


@pytest.mark.parametrize("length", [0, 10, excerpt.READ, excerpt.READ + 1, 2 * excerpt.READ])
def test_a_file_that_is_read_whole_is_read_once(tmp_path, length):
    path = tmp_path / "check.log"
    path.write_text("x" * length)
    assert excerpt.of_file(path, 3 * excerpt.READ) == "x" * length


def test_what_is_no_file_gives_nothing(tmp_path):
    (tmp_path / "file").write_text("Error: secret")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing", "."):
        assert excerpt.of_file(tmp_path / name, 100) == ""
