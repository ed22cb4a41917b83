"""The seal: whatever became of a protected file is noticed and put back to the byte, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, need, until

import repo
import seal
from seal import Seal

NAMES = [
    "with space",
    "ümläut-€",
    "new\nline",
    "-dash",
    "*",
    "[a]?.txt",
    "[!a]",
    'quo"te',
    "it's",
    "back\\slash",
    "tab\t",
    "\x1b[2J",
    "trailing ",
    ":(exclude)x",
    "$HOME `id`",
    os.fsdecode(b"latin-\xe4"),
]


class Tree:
    """A repository with a seal, and what lies in it."""

    def __init__(self, root: Path, kit: Path, protect: Iterable[str] = ("tests/**",)):
        self.root, self.kept = root, root / ".cco" / "kept"
        self.seal = Seal(repo.Repo(root), tuple(protect), kit)

    def take(self) -> str:
        """Seal it, and see that this alone changes nothing."""
        name = self.seal.take()
        assert self.seal.changes() == []
        return name

    def write(self, name: str, content: str | bytes = "x\n") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def found(self) -> list[tuple[str, str]]:
        """Path below the root and what became of it."""
        return [(os.path.relpath(change.path, self.root), change.what) for change in self.seal.changes()]

    def put_back(self) -> dict[str, str]:
        """What was changed, and where the changed versions are; afterwards nothing is changed any more."""
        done = self.seal.put_back(self.seal.changes(), self.kept)
        assert self.seal.changes() == []
        return {os.path.relpath(change.path, self.root): change.kept for change in done}


@pytest.fixture
def kit(tmp_path) -> Path:
    """A kit outside of the repository."""
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "cco.py").write_text("print('kit')\n")
    return folder


@pytest.fixture
def tree(project, kit) -> Tree:
    """A project whose folder tests is protected."""
    made = Tree(project, kit)
    made.write("tests/test_a.py", "assert a\n")
    made.write("tests/deep/er/data.bin", bytes(range(256)) + b"no newline at the end")
    made.write("src/app.py", "app = 1\n")
    (made.root / "tests" / "run.sh").write_text("#!/bin/sh\n")
    (made.root / "tests" / "run.sh").chmod(0o755)
    (made.root / "tests" / "link").symlink_to("test_a.py")
    return made


def picture(*places: Path) -> dict[str, tuple[int, bytes]]:
    """All that is there but folders: path, kind and mode, and content."""
    found = {}
    for place in places:
        for path in sorted((place, *place.rglob("*"))):
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode):
                content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
                found[str(path)] = (mode, path.read_bytes() if stat.S_ISREG(mode) else content)
    return found


# --------------------------------------------------------------------------------------------------------
# Every way to change a protected file
# --------------------------------------------------------------------------------------------------------


def swapped(tree: Tree) -> None:
    """Other content of the same size, with the same time of modification."""
    path = tree.root / "tests/test_a.py"
    before = path.stat()
    path.write_text("assert b\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def linked(tree: Tree) -> None:
    """Written through a second name outside of the folder."""
    os.link(tree.root / "tests/test_a.py", tree.root / "second name")
    (tree.root / "second name").write_text("assert True\n")
    assert (tree.root / "tests/test_a.py").read_text() == "assert True\n"


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        path = tree.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def filled(path: Path) -> None:
    (path / "below").mkdir(parents=True)
    (path / "below" / "x").write_text("x")


def renamed_and_linked(tree: Tree) -> None:
    (tree.root / "tests").rename(tree.root / "moved")
    (tree.root / "tests").symlink_to("moved")


def linked_to_a_copy(tree: Tree) -> None:
    shutil.copytree(tree.root / "tests", tree.root / "copy", symlinks=True)
    shutil.rmtree(tree.root / "tests")
    (tree.root / "tests").symlink_to(tree.root / "copy")


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ALL_DELETED = [(f"tests/{name}", "deleted") for name in ("deep/er/data.bin", "link", "run.sh", "test_a.py")]
WAYS: dict[str, tuple[Callable[[Tree], Any], list[tuple[str, str]]]] = {
    "changed": (lambda t: t.write("tests/test_a.py", "assert True\n"), [("tests/test_a.py", "changed")]),
    "one byte more": (lambda t: t.write("tests/test_a.py", "assert a\n\n"), [("tests/test_a.py", "changed")]),
    "emptied": (lambda t: t.write("tests/test_a.py", ""), [("tests/test_a.py", "changed")]),
    "same size and time": (swapped, [("tests/test_a.py", "changed")]),
    "through a hard link": (linked, [("tests/test_a.py", "changed")]),
    "deleted": (lambda t: (t.root / "tests/test_a.py").unlink(), [("tests/test_a.py", "deleted")]),
    "new": (lambda t: t.write("tests/conftest.py"), [("tests/conftest.py", "new")]),
    "new in a new folder": (lambda t: t.write("tests/a/b/c.py"), [("tests/a/b/c.py", "new")]),
    "hidden": (lambda t: t.write("tests/.hidden/x"), [("tests/.hidden/x", "new")]),
    "executable": (lambda t: (t.root / "tests/test_a.py").chmod(0o755), [("tests/test_a.py", "mode")]),
    "not executable": (lambda t: (t.root / "tests/run.sh").chmod(0o644), [("tests/run.sh", "mode")]),
    "a link instead": (
        replaced("tests/test_a.py", lambda path: path.symlink_to("../src/app.py")),
        [("tests/test_a.py", "changed")],
    ),
    "a link to nothing instead": (
        replaced("tests/test_a.py", lambda path: path.symlink_to("nowhere")),
        [("tests/test_a.py", "changed")],
    ),
    "a link to itself instead": (
        replaced("tests/test_a.py", lambda path: path.symlink_to("test_a.py")),
        [("tests/test_a.py", "changed")],
    ),
    "another target": (
        replaced("tests/link", lambda path: path.symlink_to("../src/app.py")),
        [("tests/link", "changed")],
    ),
    "a file instead of a link": (
        replaced("tests/link", lambda path: path.write_text("assert a\n")),
        [("tests/link", "changed")],
    ),
    "a folder instead of a link": (
        replaced("tests/link", filled),
        [("tests/link", "deleted"), ("tests/link/below/x", "new")],
    ),
    "a folder instead of a file": (
        replaced("tests/test_a.py", filled),
        [("tests/test_a.py", "deleted"), ("tests/test_a.py/below/x", "new")],
    ),
    "an empty folder instead of a file": (
        replaced("tests/test_a.py", lambda path: path.mkdir()),
        [("tests/test_a.py", "deleted")],
    ),
    "a file instead of a folder": (
        replaced("tests/deep", lambda path: path.write_text("x")),
        [("tests/deep", "new"), ("tests/deep/er/data.bin", "deleted")],
    ),
    "a link instead of a folder": (
        replaced("tests/deep", lambda path: path.symlink_to("../src")),
        [("tests/deep", "new"), ("tests/deep/er/data.bin", "deleted")],
    ),
    "a fifo": (lambda t: os.mkfifo(t.root / "tests/fifo"), [("tests/fifo", "new")]),
    "a fifo instead": (replaced("tests/test_a.py", os.mkfifo), [("tests/test_a.py", "changed")]),
    "a socket": (lambda t: listening(t.root / "tests/socket"), [("tests/socket", "new")]),
    "all renamed": (lambda t: (t.root / "tests").rename(t.root / "other"), ALL_DELETED),
    "all deleted": (lambda t: shutil.rmtree(t.root / "tests"), ALL_DELETED),
    "a file instead of all": (
        replaced("tests", lambda path: path.write_text("x")),
        ALL_DELETED,
    ),
    "renamed, and a link instead": (renamed_and_linked, [("tests", "new"), *ALL_DELETED]),
    "a link to a copy": (linked_to_a_copy, [("tests", "new"), *ALL_DELETED]),
    "a link to elsewhere": (replaced("tests", lambda path: path.symlink_to("/etc")), [("tests", "new"), *ALL_DELETED]),
    "a new link to the work": (
        lambda t: (t.root / "tests/more").symlink_to("../src"),
        [("tests/more", "new")],
    ),
}


@pytest.mark.parametrize(("change", "found"), WAYS.values(), ids=WAYS.keys())
def test_every_change_is_named_and_put_back_and_what_is_not_protected_stays(tree, change, found):
    tree.take()
    before, work = picture(tree.root / "tests"), picture(tree.root / "src")
    change(tree)
    assert tree.found() == found
    assert [*tree.put_back()] == [name for name, _ in found]
    assert picture(tree.root / "tests") == before
    assert picture(tree.root / "src") == work


def test_what_cannot_be_made_again_is_named_once(tree):
    os.mkfifo(tree.root / "tests/fifo")
    tree.take()
    (tree.root / "tests/fifo").unlink()
    assert tree.found() == [("tests/fifo", "deleted")]
    tree.put_back()
    assert tree.found() == []
    tree.write("tests/fifo")
    assert tree.found() == [("tests/fifo", "new")]


def test_what_links_lead_to_is_protected_too_as_long_as_they_are_as_they_were(tree):
    tree.write("shared/data.json", "{}\n")
    (tree.root / "tests/data.json").symlink_to("../shared/data.json")
    tree.take()
    tree.write("shared/data.json", "[]\n")
    tree.write("shared/more.json")
    assert tree.found() == [("shared/data.json", "changed")]
    tree.put_back()
    assert (tree.root / "shared/data.json").read_text() == "{}\n"
    assert (tree.root / "shared/more.json").exists()


def test_a_link_that_leads_elsewhere_is_put_back_and_the_file_that_it_left_is_not_touched(tree):
    target = tree.write("shared/data.json", "{}\n")
    (tree.root / "tests/data.json").symlink_to("../shared/data.json")
    tree.take()
    number = target.stat().st_ino
    (tree.root / "tests/data.json").unlink()
    (tree.root / "tests/data.json").symlink_to("../src/app.py")
    assert tree.found() == [("tests/data.json", "changed")]
    tree.put_back()
    assert os.readlink(tree.root / "tests/data.json") == "../shared/data.json"
    assert target.stat().st_ino == number
    assert (tree.root / "src/app.py").read_text() == "app = 1\n"


def test_every_link_on_the_way_is_protected(tree):
    tree.write("shared/data.json", "{}\n")
    (tree.root / "middle").symlink_to("shared")
    (tree.root / "first").symlink_to("middle/data.json")
    (tree.root / "tests/data.json").symlink_to("../first")
    tree.take()
    (tree.root / "middle").unlink()
    tree.write("evil/data.json", "evil")
    (tree.root / "middle").symlink_to("evil")
    assert tree.found() == [("middle", "changed")]
    tree.put_back()
    assert (tree.root / "tests/data.json").read_text() == "{}\n"
    assert (tree.root / "evil/data.json").read_text() == "evil"


def test_a_linked_folder_is_protected_with_all_that_is_in_it(tree):
    tree.write("shared/a.json", "{}\n")
    (tree.root / "tests/shared").symlink_to("../shared")
    tree.take()
    tree.write("shared/new.json")
    tree.write("shared/a.json", "[]")
    assert tree.found() == [("shared/a.json", "changed"), ("shared/new.json", "new")]
    tree.put_back()
    assert os.listdir(tree.root / "shared") == ["a.json"]


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "loop", "../.git", "../.cco"])
def test_links_that_lead_out_or_round_in_circles_are_sealed_as_links(tree, target):
    (tree.root / "tests/loop").symlink_to(target)
    (tree.root / ".cco").mkdir()
    tree.take()
    tree.write("src/new.py")
    tree.write(".cco/state.json")
    assert tree.found() == []
    (tree.root / "tests/loop").unlink()
    assert tree.found() == [("tests/loop", "deleted")]
    tree.put_back()
    assert os.readlink(tree.root / "tests/loop") == target


def without_rights(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that has to keep to the rights of files; root has to give up not having to."""
    shell = []
    if os.geteuid() == 0:
        need(shutil.which("setpriv"), "root reads every file, and setpriv is not installed")
        shell = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    argv = [*shell, sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{code}"]
    return subprocess.run([*argv, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


RIGHTS = """
import json, os, repo, seal
from pathlib import Path
root, kit, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
here = seal.Seal(repo.Repo(root), ("tests/**",), kit)
assert here.load(name)
changes = here.changes()
print(json.dumps([[str(c.path.relative_to(root)), c.what] for c in changes]))
here.put_back(changes, root / ".cco" / "kept")
print(here.changes())
"""


@pytest.mark.parametrize(
    ("path", "mode", "found"),
    [
        ("tests/test_a.py", 0o000, [["tests/test_a.py", "changed"]]),
        ("tests/deep", 0o000, [["tests/deep/er/data.bin", "deleted"]]),
        ("tests/deep/er", 0o500, []),
        ("tests", 0o000, [list(entry) for entry in ALL_DELETED]),
    ],
)
def test_what_nobody_may_read_any_more_is_put_back_too(tree, kit, path, mode, found):
    name = tree.take()
    before = picture(tree.root / "tests")
    (tree.root / path).chmod(mode)
    done = without_rights(RIGHTS, tree.root, kit, name)
    assert (done.stderr, done.stdout.splitlines()) == ("", [json.dumps(found), "[]"])
    if found:
        assert picture(tree.root / "tests") == before


def test_a_file_in_a_folder_that_nobody_may_write_is_put_back(tree, kit):
    name = tree.take()
    tree.write("tests/deep/er/data.bin", "x")
    (tree.root / "tests/deep/er").chmod(0o500)
    done = without_rights(RIGHTS, tree.root, kit, name)
    assert (done.stderr, done.stdout.splitlines()[1]) == ("", "[]")
    assert (tree.root / "tests/deep/er/data.bin").read_bytes().endswith(b"no newline at the end")


# --------------------------------------------------------------------------------------------------------
# Names, contents, and what git thinks of them
# --------------------------------------------------------------------------------------------------------


def test_files_of_any_name_are_sealed_changed_and_put_back(tree):
    for name in NAMES:
        tree.write(f"tests/{name}", f"{name!r}\n")
        tree.write(f"tests/in {name}/file", "x\n")
    tree.take()
    before = picture(tree.root / "tests")
    for name in NAMES:
        tree.write(f"tests/{name}", "changed")
        (tree.root / f"tests/in {name}/file").unlink()
    assert len(tree.found()) == 2 * len(NAMES)
    kept = tree.put_back()
    assert picture(tree.root / "tests") == before
    assert {Path(place).read_text() for place in kept.values() if place} == {"changed"}
    assert {name for name, place in kept.items() if place} == {f"tests/{name}" for name in NAMES}


def test_new_files_of_any_name_are_found_and_taken_away(tree):
    tree.take()
    for name in NAMES:
        tree.write(f"tests/{name}")
    assert {name for name, _ in tree.found()} == {f"tests/{name}" for name in NAMES}
    tree.put_back()
    assert not any((tree.root / "tests" / name).exists() for name in NAMES)


@pytest.mark.parametrize(
    "content",
    [b"", b"no end", b"\r\n\r\n", b"a\nb\r\nc\r", b"\0\xff\xfe", "ä€".encode("utf-16"), b"$Id$\n", b"x" * 300_000],
)
@pytest.mark.parametrize(
    "attributes", ["", "* text=auto eol=crlf ident\n", "* text eol=lf working-tree-encoding=UTF-16\n"]
)
def test_contents_come_back_to_the_byte_whatever_git_would_make_of_them(tree, git, content, attributes):
    git(tree.root, "config", "core.autocrlf", "true")
    git(tree.root, "config", "filter.odd.clean", "tr a b")
    git(tree.root, "config", "filter.odd.required", "true")
    tree.write(".gitattributes", attributes and f"{attributes}tests/* filter=odd\n")
    path = tree.write("tests/data", content)
    tree.take()
    tree.write("tests/data", b"changed" + content)
    tree.put_back()
    assert path.read_bytes() == content


def test_files_that_git_ignores_or_does_not_know_count_like_any_other(tree, git):
    tree.write(".gitignore", "*.key\n/tests/ignored/\n")
    tree.write("tests/secret.key", "1\n")
    tree.write("tests/ignored/x", "2\n")
    git(tree.root, "add", "-A")
    git(tree.root, "commit", "-qm", "x")
    tree.write("tests/untracked", "3\n")
    tree.take()
    for name in ("secret.key", "ignored/x", "untracked"):
        tree.write(f"tests/{name}", "changed")
    tree.write("tests/ignored/new")
    assert tree.found() == [
        ("tests/ignored/new", "new"),
        ("tests/ignored/x", "changed"),
        ("tests/secret.key", "changed"),
        ("tests/untracked", "changed"),
    ]
    tree.put_back()
    assert [(tree.root / f"tests/{name}").read_text() for name in ("secret.key", "ignored/x", "untracked")] == [
        "1\n",
        "2\n",
        "3\n",
    ]


def test_files_in_a_submodule_count_and_its_git_does_not(tree, git, tmp_path):
    git(tmp_path, "clone", "-q", str(tree.root), "other")
    git(
        tree.root,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(tmp_path / "other"),
        "tests/sub",
    )
    git(tree.root / "tests/sub", "config", "user.name", "x")
    git(tree.root / "tests/sub", "config", "user.email", "x@example.invalid")
    tree.take()
    git(tree.root / "tests/sub", "commit", "-q", "--allow-empty", "-m", "x")
    assert tree.found() == []
    tree.write("tests/sub/README.md", "changed")
    (tree.root / "tests/sub/.git").chmod(0o755)
    assert tree.found() == [("tests/sub/README.md", "changed")]
    tree.put_back()
    assert (tree.root / "tests/sub/README.md").read_text() == "# a project\n"


def test_a_gc_does_not_take_away_what_is_needed_to_put_things_back(tree, git):
    tree.write("tests/untracked", "the only copy\n")
    name = tree.take()
    tree.seal.git.remember("demo/sealed", name)
    (tree.root / "tests/untracked").unlink()
    git(tree.root, "reflog", "expire", "--expire=now", "--all")
    git(tree.root, "gc", "-q", "--prune=now")
    tree.put_back()
    assert (tree.root / "tests/untracked").read_text() == "the only copy\n"


def test_the_index_the_branch_and_the_commits_are_left_alone(tree, git):
    git(tree.root, "add", "tests/test_a.py")
    before = [git(tree.root, *args) for args in (["status", "--porcelain"], ["rev-parse", "HEAD"], ["branch", "-a"])]
    tree.take()
    tree.write("tests/test_a.py", "changed")
    tree.put_back()
    after = [git(tree.root, *args) for args in (["status", "--porcelain"], ["rev-parse", "HEAD"], ["branch", "-a"])]
    assert after[1:] == before[1:]
    assert {line for line in after[0].splitlines() if ".cco" not in line} == {*before[0].splitlines()}


# --------------------------------------------------------------------------------------------------------
# Globs
# --------------------------------------------------------------------------------------------------------

FILES = ["a.py", "b.lock", "c.txt", "dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt", ".hidden/a.py"]


@pytest.mark.parametrize(
    ("protect", "sealed"),
    [
        ("dir/**", {"dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"}),
        ("dir", {"dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"}),
        ("dir/", {"dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"}),
        ("dir/*", {"dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"}),
        ("./dir/**", {"dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"}),
        ("*.py", {"a.py"}),
        ("**/*.py", {"a.py", "dir/a.py", ".hidden/a.py"}),
        ("**/*.lock", {"b.lock", "dir/deep/b.lock"}),
        ("**", {*FILES, "README.md"}),
        ("./**", {*FILES, "README.md"}),
        ("**/*", {*FILES, "README.md"}),
        ("dir/deep**", {"dir/deep/b.lock", "dir/deep/c.txt"}),
        ("**.lock", {"b.lock"}),
        ("[ab].*", {"a.py", "b.lock"}),
        ("nothing/**", set()),
        (".git/**", set()),
        (".cco/**", set()),
    ],
)
def test_a_glob_means_these_files_those_that_are_there_and_those_to_come(project, kit, protect, sealed):
    tree = Tree(project, kit, [protect])
    for name in [*FILES, ".cco/state.json"]:
        tree.write(name)
    tree.take()
    assert {os.path.relpath(path, project) for path in tree.seal.entries} == {*sealed, "../kit/cco.py"}
    for name in [*FILES, "README.md", ".cco/state.json", ".git/config"]:
        (project / name).unlink()
    git_is_gone = not (project / ".git/config").exists()
    assert git_is_gone
    assert {name for name, _ in tree.found()} == sealed
    assert {what for _, what in tree.found()} <= {"deleted"}
    tree.put_back()
    assert not (project / ".cco/state.json").exists()
    for name in [*FILES, "README.md"]:
        assert (project / name).exists() is (name in sealed)


@pytest.mark.parametrize(
    ("protect", "name", "found"),
    [
        ("**/*.lock", "new/deep/x.lock", True),
        ("*.py", "json.py", True),
        ("*.py", "deep/json.py", False),
        ("dir", "dir/new", True),
        ("nothing/**", "nothing/new", True),
        ("**", "anything", True),
        ("**", ".cco/anything", False),
        ("**", ".git/anything", False),
        ("**", "dir/.git/anything", False),
    ],
)
def test_a_new_file_is_found_where_a_glob_means_it(project, kit, protect, name, found):
    tree = Tree(project, kit, [protect])
    tree.write("dir/x")
    tree.take()
    tree.write(name)
    assert tree.found() == [(name, "new")] * found
    tree.put_back()
    assert (project / name).exists() is not found


def test_globs_that_overlap_name_a_change_once(project, kit):
    tree = Tree(project, kit, ["tests/**", "tests", "**/*.py"])
    tree.write("tests/a.py")
    tree.take()
    tree.write("tests/a.py", "changed")
    assert tree.found() == [("tests/a.py", "changed")]


def test_what_others_watch_is_left_to_them(project, kit):
    mission = project / "tests" / "mission.yaml"
    tree = Tree(project, kit)
    tree.seal = Seal(repo.Repo(project), ("tests/**",), kit, apart=[mission])
    tree.write("tests/mission.yaml")
    tree.take()
    tree.write("tests/mission.yaml", "changed")
    assert tree.found() == []
    mission.unlink()
    assert tree.found() == []


# --------------------------------------------------------------------------------------------------------
# Caches
# --------------------------------------------------------------------------------------------------------


def test_caches_are_put_back_without_a_word(tree):
    old = tree.write("tests/__pycache__/old.pyc", b"\0old")
    tree.take()
    old.write_bytes(b"\0planted")
    tree.write("tests/__pycache__/new.pyc")
    tree.write("tests/deep/__pycache__/sub/new.pyc")
    tree.write("tests/.pytest_cache/v/lastfailed")
    changes = tree.seal.changes()
    assert len(changes) == 4
    assert all(change.is_cache for change in changes)
    assert {*tree.put_back().values()} == {""}
    assert old.read_bytes() == b"\0old"
    assert not (tree.root / "tests/__pycache__/new.pyc").exists()
    assert not tree.kept.exists()


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("../src"), lambda path: path.write_text("x"), lambda path: os.mkfifo(path)]
)
def test_a_cache_that_is_no_folder_is_removed_too_and_what_it_leads_to_is_not(tree, make):
    tree.take()
    make(tree.root / "tests/__pycache__")
    tree.put_back()
    assert not os.path.lexists(tree.root / "tests/__pycache__")
    assert (tree.root / "src/app.py").read_text() == "app = 1\n"


def test_what_only_sounds_like_a_cache_is_named(tree):
    tree.take()
    tree.write("tests/__pycache__.py")
    tree.write("tests/my__pycache__/x")
    assert [change.is_cache for change in tree.seal.changes()] == [False, False]


def test_a_run_of_pytest_in_a_protected_folder_is_nothing_to_speak_of(tree):
    tree.write("tests/test_a.py", "def test_a():\n    pass\n")
    tree.take()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    argv = [sys.executable, "-m", "pytest", "-q", "--rootdir=tests", "tests"]
    subprocess.run(argv, cwd=tree.root, env=env, capture_output=True, check=True)
    changes = tree.seal.changes()
    assert {part for change in changes for part in change.path.parts} > {"__pycache__", ".pytest_cache"}
    assert all(change.is_cache for change in changes)
    tree.put_back()


# --------------------------------------------------------------------------------------------------------
# The kit
# --------------------------------------------------------------------------------------------------------


def copied(root: Path) -> Tree:
    """A project with the kit in a folder of its own, as users have it."""
    kit = root / "tools" / "cco"
    kit.mkdir(parents=True)
    for path in KIT.glob("*.py"):
        shutil.copy(path, kit)
    for name in ("prompts", "schema", "missions"):
        shutil.copytree(KIT / name, kit / name)
    return Tree(root, kit, [])


@pytest.mark.parametrize("name", ["json.py", "yaml/__init__.py", "typing.so", "prompts/rules.md", "schema/x.json"])
def test_a_module_that_would_shadow_another_is_taken_out_of_the_kit(project, name):
    tree = copied(project)
    tree.take()
    known = (tree.seal.kit / name).exists()
    tree.write(f"tools/cco/{name}", "import os\n")
    assert tree.found() == [(f"tools/cco/{name}", "changed" if known else "new")]
    tree.put_back()
    assert (tree.seal.kit / name).exists() is known


def test_the_kit_itself_is_put_back_and_runs(project):
    tree = copied(project)
    tree.take()
    tree.write("tools/cco/dod.py", "raise SystemExit(0)\n")
    (tree.seal.kit / "seal.py").unlink()
    assert tree.found() == [("tools/cco/dod.py", "changed"), ("tools/cco/seal.py", "deleted")]
    tree.put_back()
    done = subprocess.run(
        [sys.executable, str(tree.seal.kit / "cco.py"), "status"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert all((tree.seal.kit / path.name).read_bytes() == path.read_bytes() for path in KIT.glob("*.py"))


def test_a_link_instead_of_the_kit_is_taken_away(project):
    tree = copied(project)
    tree.take()
    tree.seal.kit.rename(project / "moved")
    tree.seal.kit.symlink_to(project / "moved")
    found = tree.found()
    assert found[0] == ("tools/cco", "new")
    assert {what for _, what in found[1:]} == {"deleted"}
    tree.put_back()
    assert not tree.seal.kit.is_symlink()


@pytest.mark.parametrize(
    "name", ["cron.log", "nohup.out", "missions/mine.yaml", ".venv/x", "tests/x.py", "extras/x.py", ".ruff_cache/x"]
)
def test_what_the_kit_does_not_run_is_not_counted(project, name):
    tree = copied(project)
    tree.take()
    tree.write(f"tools/cco/{name}")
    assert tree.found() == []


def test_a_kit_outside_of_the_repository_is_named_and_left_as_it_is(tree, kit):
    tree.take()
    (kit / "cco.py").write_text("a new version\n")
    (kit / "new.py").write_text("x\n")
    changes = tree.seal.changes()
    assert [(change.path, change.what) for change in changes] == [(kit / "cco.py", "changed"), (kit / "new.py", "new")]
    assert tree.seal.put_back(changes, tree.kept) == changes
    assert (kit / "cco.py").read_text() == "a new version\n"
    assert (kit / "new.py").exists()
    assert not tree.kept.exists()


# --------------------------------------------------------------------------------------------------------
# From one run to the next
# --------------------------------------------------------------------------------------------------------

NEXT = """
import json, repo, seal
from pathlib import Path
here = seal.Seal(repo.Repo(Path(sys.argv[1])), ("tests/**",), Path(sys.argv[2]))
known = here.load(sys.argv[3])
print(json.dumps([known, [[str(c.path), c.what] for c in here.changes()]]))
"""


def in_a_new_process(tree: Tree, kit: Path, name: str) -> Any:
    argv = [sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{NEXT}", tree.root, kit, name]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_a_later_run_goes_on_with_what_was_sealed(tree, kit):
    odd = tree.write(f"tests/{NAMES[-1]}")
    name = tree.take()
    assert in_a_new_process(tree, kit, name) == [True, []]
    tree.write("tests/test_a.py", "changed")
    odd.unlink()
    changed = [[str(odd), "deleted"], [str(tree.root / "tests/test_a.py"), "changed"]]
    assert in_a_new_process(tree, kit, name) == [True, changed]


def test_the_same_files_have_the_same_name(tree):
    name = tree.take()
    assert tree.take() == name
    tree.write("tests/test_a.py", "changed")
    assert tree.seal.take() != name


@pytest.mark.parametrize("name", ["", "0" * 40, "HEAD", "nonsense", "--help"])
def test_a_name_that_git_does_not_know_is_told_from_a_seal_of_nothing(tree, kit, name):
    assert tree.seal.load(name) is False
    assert tree.seal.entries == {}
    nothing = Tree(tree.root, kit / "nothing", [])
    assert nothing.seal.load(nothing.take()) is True


# --------------------------------------------------------------------------------------------------------
# What is kept of the changes
# --------------------------------------------------------------------------------------------------------


def test_changed_versions_land_in_the_folder_and_none_overwrites_another(tree):
    tree.take()
    places = []
    for content in ("first", "second", "third"):
        tree.write("tests/test_a.py", content)
        places.append(tree.put_back()["tests/test_a.py"])
    assert [Path(place).read_text() for place in places] == ["first", "second", "third"]
    assert [os.path.relpath(place, tree.kept) for place in places] == [
        "tests/test_a.py",
        "tests/test_a.py.2",
        "tests/test_a.py.3",
    ]
    assert stat.S_IMODE((tree.kept / "tests").stat().st_mode) == 0o700


def test_what_was_deleted_has_no_changed_version(tree):
    tree.take()
    (tree.root / "tests/test_a.py").unlink()
    assert tree.put_back() == {"tests/test_a.py": ""}


def test_what_was_kept_before_is_in_the_way_of_nothing(tree, tmp_path):
    """First the folder is a file, then a link that leads out, then a file in it changes."""
    tree.take()
    (tmp_path / "outside").mkdir()
    for make in (lambda path: path.write_text("x"), lambda path: path.symlink_to(tmp_path / "outside")):
        replaced("tests", make)(tree)
        tree.put_back()
    tree.write("tests/test_a.py", "changed")
    place = Path(tree.put_back()["tests/test_a.py"])
    assert place.read_text() == "changed"
    assert place.resolve().is_relative_to(tree.kept)
    assert [*(tmp_path / "outside").iterdir()] == []


def test_a_whole_folder_is_kept_as_it_was(tree):
    tree.take()
    replaced("tests/test_a.py", filled)(tree)
    kept = tree.put_back()["tests/test_a.py"]
    assert (Path(kept) / "below" / "x").read_text() == "x"


# --------------------------------------------------------------------------------------------------------
# What it costs
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """What git is called for."""
    seen: list[tuple[str, ...]] = []
    real = repo.Repo.git

    def git(self: repo.Repo, *args: str, **more: Any) -> bytes:
        seen.append(args)
        return real(self, *args, **more)

    monkeypatch.setattr(repo.Repo, "git", git)
    return seen


def test_two_thousand_files_are_sealed_and_put_back_in_a_few_calls_of_git(tree, calls):
    for n in range(2000):
        tree.write(f"tests/many/{n % 20}/{'long ' * 10}{n}.txt", f"{n}\n")
    tree.seal.take()
    assert len(calls) < 20
    assert len(tree.seal.entries) == 2005
    for n in range(0, 2000, 500):
        tree.write(f"tests/many/{n % 20}/{'long ' * 10}{n}.txt", "changed")
    assert len(tree.found()) == 4
    tree.put_back()
    assert (tree.root / f"tests/many/0/{'long ' * 10}500.txt").read_text() == "500\n"


def test_where_nothing_changed_git_is_not_called_at_all(tree, kit, calls):
    paths = [str(path) for path in (*tree.root.glob("tests/**/*"), kit / "cco.py")]
    until(lambda: all(seal._version(path) == seal._version(path) for path in paths), "the files' times are in the past")
    tree.seal.take()
    calls.clear()
    assert tree.seal.changes() == []
    assert calls == []


def test_a_file_that_vanishes_while_it_is_looked_at_is_no_error(tree, monkeypatch):
    """A check that runs beside the one that has ended may do that."""
    tree.take()
    passing = tree.write("tests/__pycache__/x.pyc.1234")
    other = tree.write("tests/other", "x")
    real = repo.Repo.git

    def git(self: repo.Repo, *args: str, **more: Any) -> bytes:
        passing.unlink(missing_ok=True)
        return real(self, *args, **more)

    monkeypatch.setattr(repo.Repo, "git", git)
    assert ("tests/other", "new") in tree.found()
    tree.put_back()
    assert not other.exists()
