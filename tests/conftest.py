"""What every test may use. Real processes, real git, real files; only the model is fake.

Parts that a machine may lack (the real `claude`, bubblewrap) skip with the reason, and fail instead
when CCO_NO_SKIPS is set, as CI does: a green run there has run everything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent
# The kit that the tests run: a copy, since a run restores what changes in its kit, edits of developers included.
KIT = Path(tempfile.mkdtemp(prefix="cco-tests-")) / "kit"
NOT_RUN = shutil.ignore_patterns(".git", ".venv", ".tools", ".*_cache", "__pycache__", "tests", "docs", "deploy")
shutil.copytree(SOURCE, KIT, ignore=NOT_RUN)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each run would compile it anew


def pytest_ignore_collect(collection_path, config):
    """Stay out of the test run of a project that this kit was copied into."""
    return True if config.rootpath != SOURCE else None


def pytest_unconfigure():
    """Remove the copy."""
    shutil.rmtree(KIT.parent, ignore_errors=True)


def need(present: object, reason: str) -> None:
    """Skip the test with a reason, or fail it where nothing may be skipped."""
    if present:
        return
    if os.environ.get("CCO_NO_SKIPS"):
        pytest.fail(f"nothing may be skipped here, but {reason}")
    pytest.skip(reason)


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait for something that can be observed; fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen in {seconds:g} s: {what}"
        time.sleep(0.02)


def marked(marker: str) -> dict[int, str]:
    """The processes that carry the mark of a run: pid and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"CCO_RUN={marker}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    return found


@pytest.fixture
def fresh_mask(monkeypatch) -> None:
    """A mask that knows no secret yet, and that forgets afterwards what the test told it."""
    import log  # not above: a host that this kit was copied into may have a module of that name

    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_values", None)


@pytest.fixture(scope="session")
def real_claude() -> Path:
    """The real CLI: .tools/ (where CI puts it), else the PATH."""
    local = sorted((SOURCE / ".tools/node_modules/@anthropic-ai").glob("claude-code-*/claude"))
    found = str(local[0]) if local else shutil.which("claude")
    need(found, "the real claude is not installed (npm install --prefix .tools @anthropic-ai/claude-code)")
    return Path(str(found))


@pytest.fixture
def git():
    """Run git in a folder and return what it printed: git(folder, "log", "--oneline")."""

    def run(folder: Path, *args: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"git {args}: {done.stderr}"
        return done.stdout.strip()

    return run


@pytest.fixture
def project(tmp_path, git) -> Path:
    """A git repository with one commit, in a folder whose name has a space."""
    root = tmp_path / "a project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "Test")
    git(root, "config", "user.email", "test@example.invalid")
    (root / "README.md").write_text("# a project\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root
