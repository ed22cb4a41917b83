"""What still fooled a green Definition of Done: one reading alone, and proof that is forged."""

from __future__ import annotations

import re
import sys

import pytest
from bench import Bench
from bench import bench as bench
from test_cco_dod import LONG, Checks
from test_cco_dod import checks as checks
from test_cco_done import commit, need_sandbox, not_done

A = {"id": "a", "criteria": "a is there", "check": "test -e a"}

# --- A check has two readings, and one alone is no proof ---

READ: dict[str, tuple[str, str]] = {  # the check, its verdict
    "history": ("! git log -p | grep -q password=", "unmet"),
    "if": ("if cat app.log | grep -q password=; then exit 1; fi", "unmet"),
    "and": ("cat app.log | grep -q password= && exit 1; true", "unmet"),
    "group": ("! { cat app.log | grep -q password=; }", "unmet"),
    "three": ("test -e README.md && ! (cat app.log | head -1 | grep -q password=)", "unmet"),
    "pytest": ("! sh pytest.sh | grep -q FAILED", "unmet"),
    "semicolon": ("sh lint.sh; test -f README.md", "unmet"),
    "lines": ("# first the style\nsh lint.sh > log\n\ncat log\n", "unmet"),
    "tee": ("{ sh lint.sh; echo linted; } | tee log", "unmet"),
    "loop": ("for n in 1 2; do sh lint.sh; echo $n; done", "unmet"),
    "function": ("lint() { sh lint.sh; true; }\nlint", "unmet"),
    "quiet": ("seq 1 300000 | grep -q '^7$' && test -f README.md", "met"),
    "head": ("yes | head -1; test -f README.md", "met"),
    "clean history": ("! git log -p | grep -q no-such-word", "met"),
    "substituted": ('test "$(seq 1 300000 | head -1)" = 1', "met"),
    "cut in a function": ("first() { git log -p | head -1; }; first | grep -q commit", "met"),
}


@pytest.mark.parametrize(("check", "verdict"), READ.values(), ids=READ)
def test_neither_reading_alone_is_a_proof(checks: Checks, git, check, verdict):
    failing = "echo '1 FAILED'; seq 1 300000; exit 1\n"
    commit(git, checks.root, {"app.log": LONG, "lint.sh": "exit 3\n", "pytest.sh": failing})
    found = checks.one(check)
    assert found.verdict == verdict, found.tail
    assert verdict == "met" or "its two readings differ" in found.tail or "stopped at line" in found.tail


# --- Protected files hold in the clean checkout, too ---

TEST = "test ! -e tests/lib.sh || . tests/lib.sh\ngrep -q fine build/out\n"
GREEN = "echo exit 0 > tests/t.sh"
FORGED = {  # what the product does in the clean checkout, where build/out is not
    "written": GREEN,
    "renamed": f"mv tests old; mkdir tests; {GREEN}",
    "linked": "echo exit 0 > green; ln -sf ../green tests/t.sh",
    "new": "echo exit 0 > tests/lib.sh",
    "committed": f"{GREEN}; git -c user.name=x -c user.email=x@y commit -qam x; true",
    "hidden": f"git update-index --skip-worktree tests/t.sh; {GREEN}",
}
CHECKED = {"setup": ("sh product.sh", "sh tests/t.sh"), "check": (None, "sh product.sh; sh tests/t.sh")}


@pytest.mark.parametrize("sandboxed", (True, False), ids=("sandbox", "no sandbox"))
@pytest.mark.parametrize("where", CHECKED)
@pytest.mark.parametrize("how", FORGED)
def test_what_is_forged_in_the_clean_checkout_alone_is_named_and_proves_nothing(
    bench: Bench, project, git, how, where, sandboxed
):
    if sandboxed:
        need_sandbox(project)
    commit(git, project, {".gitignore": "build/\n", "tests/t.sh": TEST, "product.sh": "true\n"})
    setup, check = CHECKED[where]
    settings, limits = {"checks": {"sandbox": sandboxed}}, {"iterations": 1}
    bench.write([{**A, "check": check}], protect=["tests/*.sh"], setup=setup, settings=settings, limits=limits)
    product = f"test ! -e build/out || exit 0\n{FORGED[how]}\n"
    bench.sessions([{"write": {"build/out": "fine\n", "product.sh": product}}, {"say": "Met: a"}])
    shown = not_done(bench) + "".join(path.read_text() for path in (project / ".cco/logs/checks").iterdir())
    assert re.search(r"\btests(/(t|lib)\.sh|'|:)", shown), shown  # the tests themselves print nothing
    assert git(project, "diff", "--name-only", "main", "cco/demo", "--", "tests") == ""


def test_in_the_sandbox_nothing_protected_is_exchanged_for_the_time_of_a_check(bench: Bench, project, git):
    need_sandbox(project)
    commit(git, project, {"tests/unit/t.sh": "test -e a\n", "product.sh": "true\n"})
    bench.write(
        [{**A, "check": "sh product.sh && sh tests/unit/t.sh && sh product.sh"}],
        protect=["tests/unit/*.sh"], limits={"iterations": 1},
    )  # fmt: skip
    back = "if test -e old; then rm -r tests; mv old tests"
    exchange = f"{back}; else mv tests old; mkdir -p tests/unit; echo exit 0 > tests/unit/t.sh; fi\n"
    bench.sessions([{"write": {"product.sh": exchange}}, {"say": "Met: a"}])
    not_done(bench)


@pytest.mark.parametrize("attributes", (".git/info/attributes", ".gitattributes"))
def test_what_is_committed_of_a_protected_file_is_what_was_accepted(bench: Bench, project, git, attributes):
    commit(git, project, {".gitignore": "build/\n", "tests/t.sh": TEST})
    bench.write([{**A, "check": "sh tests/t.sh"}], protect=["tests/**"], limits={"iterations": 1})
    plant = "git config filter.green.clean 'echo exit 0'; mkdir -p build .git/info; echo fine > build/out"
    bench.sessions([{"bash": f"{plant}; echo 'tests/t.sh filter=green' > {attributes}; touch tests/t.sh"}])
    assert "tests/t.sh" in not_done(bench)
    assert git(project, "cat-file", "blob", "cco/demo:tests/t.sh") == TEST.strip()


UNITTEST = "import os, unittest\nclass T(unittest.TestCase):\n    def test(self):\n        {}\n"
PYC = f"""
import importlib.util, os, _pytest.assertion.rewrite as rewrite
from importlib import _bootstrap_external as external
name = "tests/test_a.py"
code, true = compile({UNITTEST.format("pass")!r}, name, "exec"), importlib.util.source_hash(open(name, "rb").read())
forged = {{importlib.util.cache_from_source(name): external._code_to_hash_pyc(code, b"x" * 8, False)}}
forged["tests/__pycache__/test_a" + rewrite.PYC_TAIL] = external._code_to_hash_pyc(code, true)
os.makedirs("tests/__pycache__", exist_ok=True)
for path, text in forged.items():
    open(path, "wb").write(text)
"""
RUNNERS = {"unittest": "-m unittest -q tests.test_a", "pytest": "-m pytest -q tests/test_a.py"}
RUNNERS |= {"no variables": "-E -m unittest -q tests.test_a"}


@pytest.mark.parametrize("confirm", ("tree", "clean"))
@pytest.mark.parametrize("runner", RUNNERS)
def test_forged_bytecode_decides_nothing_and_is_never_committed(bench: Bench, project, git, runner, confirm):
    python = f"'{sys.executable}'"
    commit(git, project, {"tests/test_a.py": UNITTEST.format('assert os.path.exists("a")'), "make.py": ""})
    criteria = [{**A, "check": f"{python} {RUNNERS[runner]}"}]
    bench.write(criteria, protect=["tests/**"], setup=f"{python} make.py", confirm=confirm, limits={"iterations": 1})
    adds = "git add -fA; git -c user.name=x -c user.email=x@y commit -qm x"
    bench.sessions([{"write": {"make.py": PYC}}, {"bash": f"{python} make.py; {adds}"}, {"say": "Met: a"}])
    not_done(bench)
    assert "passes in the work tree" not in bench.log()
    assert bench.state()["criteria"]["a"]["first_met"] is None
    assert not re.search(r"\.pyc|__pycache__", git(project, "ls-tree", "-r", "--name-only", "cco/demo"))
