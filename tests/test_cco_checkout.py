"""A clean checkout: the files of the commit and nothing else, and nothing of it is left afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, need

import checkout
from checkout import Clean
from repo import GitError, Repo

NAMES = [
    "with space",
    "ümläut-€",
    "new\nline",
    "-dash",
    "*",
    "[a]?.txt",
    'quo"te',
    "back\\slash",
    ":(exclude)x",
    os.fsdecode(b"latin-\xe4"),
    "deep/er/-f",
]


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """Where the checkout is made."""
    made = tmp_path / "cco clean"
    made.mkdir()
    yield made
    if made.exists():
        checkout.delete(made)


def write(root: Path, *names: str, content: str = "x\n") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def committed(git: Any, root: Path, *names: str, content: str = "x\n") -> str:
    write(root, *names, content=content)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    return str(git(root, "rev-parse", "HEAD"))


def files(root: Path) -> set[str]:
    """All that is below a folder and is no folder, but for git's own."""
    found = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {os.path.relpath(path, root) for path in found if ".git" not in path.parts}


def work_trees(git: Any, root: Path) -> list[str]:
    lines = str(git(root, "worktree", "list", "--porcelain")).splitlines()
    return [line.removeprefix("worktree ") for line in lines if line.startswith("worktree ")]


# --------------------------------------------------------------------------------------------------------
# What is in it
# --------------------------------------------------------------------------------------------------------


def test_only_the_files_of_the_commit_are_in_it(project, git, folder):
    write(project, ".gitignore", content="*.log\n.venv/\n")
    commit = committed(git, project, "src/app.py")
    write(project, "untracked", "x.log", ".venv/bin/python", ".cco/state.json", "src/new.py")
    write(project, "src/app.py", content="changed, not committed\n")
    write(project, "staged")
    git(project, "add", "staged")
    clean = Clean(Repo(project), commit, folder)
    assert files(clean.root) == {".gitignore", "README.md", "src/app.py"}
    assert (clean.root / "src/app.py").read_text() == "x\n"
    assert clean.made == {}
    assert git(clean.root, "rev-parse", "HEAD") == commit
    assert git(clean.root, "branch", "--show-current") == ""


def test_an_older_commit_is_as_it_was(project, git, folder):
    older = git(project, "rev-parse", "HEAD")
    committed(git, project, "later")
    assert files(Clean(Repo(project), older, folder).root) == {"README.md"}


def test_the_work_tree_and_the_branch_are_not_touched(project, git, folder):
    commit = committed(git, project, "a")
    write(project, "a", content="changed\n")
    write(project, "b")
    git(project, "add", "b")
    before = git(project, "status", "--porcelain"), git(project, "branch", "-a")
    clean = Clean(Repo(project), commit, folder)
    write(clean.root, "a", content="by a check\n")
    clean.reset()
    checkout.delete(folder)
    assert (git(project, "status", "--porcelain"), git(project, "branch", "-a")) == before
    assert (project / "a").read_text() == "changed\n"


def test_files_of_any_name_are_in_it_and_are_reset(project, git, folder):
    commit = committed(git, project, *NAMES)
    clean = Clean(Repo(project), commit, folder)
    assert files(clean.root) == {*NAMES, "README.md"}
    write(clean.root, *NAMES, content="changed\n")
    write(clean.root, *(f"new {name}" for name in NAMES))
    clean.reset()
    assert files(clean.root) == {*NAMES, "README.md"}
    assert {(clean.root / name).read_text() for name in NAMES} == {"x\n"}


def test_modes_and_links_are_those_of_the_commit(project, git, folder):
    write(project, "run.sh")
    (project / "run.sh").chmod(0o755)
    (project / "link").symlink_to("run.sh")
    commit = committed(git, project)
    clean = Clean(Repo(project), commit, folder)
    (clean.root / "run.sh").chmod(0o644)
    (clean.root / "link").unlink()
    (clean.root / "link").write_text("no link")
    clean.reset()
    assert os.access(clean.root / "run.sh", os.X_OK)
    assert os.readlink(clean.root / "link") == "run.sh"


def test_of_an_empty_repository_nothing_is_in_it(tmp_path, git, folder):
    root = tmp_path / "empty"
    root.mkdir()
    git(root, "init", "-q")
    clean = Clean(Repo(root), "", folder)
    assert clean.made == {}
    write(clean.root, "made by setup/x")
    clean.keep()
    write(clean.root, "by a check", "deep/by a check")
    clean.reset()
    assert files(clean.root) == {"made by setup/x"}
    checkout.delete(folder)
    assert not folder.exists()


def test_a_commit_that_is_not_there_is_an_error_and_leaves_nothing(project, git, folder):
    with pytest.raises(GitError):
        Clean(Repo(project), "0" * 40, folder)
    checkout.delete(folder)
    assert not folder.exists()
    assert work_trees(git, project) == [str(project)]


@pytest.mark.parametrize("where", ["hooks", "configured"])
def test_no_hook_of_the_repository_runs(project, git, folder, tmp_path, where):
    hooks = project / ".git" / "hooks" if where == "hooks" else tmp_path / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/it ran'\n")
        (hooks / name).chmod(0o755)
    if where == "configured":
        git(project, "config", "core.hooksPath", str(hooks))
    (tmp_path / "it ran").unlink(missing_ok=True)
    clean = Clean(Repo(project), Repo(project).head(), folder)
    clean.reset()
    checkout.delete(folder)
    assert not (tmp_path / "it ran").exists()


def test_a_repository_that_is_a_work_tree_itself_is_checked_out_like_any_other(project, git, folder, tmp_path):
    git(project, "worktree", "add", "-q", "-b", "other", str(tmp_path / "linked"))
    commit = committed(git, tmp_path / "linked", "only here")
    clean = Clean(Repo(tmp_path / "linked"), commit, folder)
    assert files(clean.root) == {"README.md", "only here"}
    checkout.delete(folder)
    assert work_trees(git, project) == [str(project), str(tmp_path / "linked")]


def test_of_a_sparse_checkout_all_files_are_in_it(project, git, folder):
    commit = committed(git, project, "wanted/a", "unwanted/b")
    git(project, "sparse-checkout", "set", "wanted")
    assert files(project) == {"README.md", "wanted/a"}
    clean = Clean(Repo(project), commit, folder)
    assert files(clean.root) == {"README.md", "wanted/a", "unwanted/b"}


@pytest.mark.parametrize("rule", ["info/exclude", "info/attributes", "a filter", "replace", "hook"])
def test_what_is_in_the_repositorys_own_git_folder_alone_is_not_in_it(project, git, folder, rule):
    write(project, ".gitattributes", content="x filter=x\n")
    commit = committed(git, project, "x", "y")
    if rule.startswith("info/"):
        (project / ".git" / rule).write_text("made\n" if "exclude" in rule else "y text eol=crlf\n")
    elif rule == "a filter":
        git(project, "config", "filter.x.smudge", "sed s/x/other/")
    elif rule == "replace":
        (project / "y").write_text("other\n")
        git(project, "replace", git(project, "rev-parse", "HEAD:y"), git(project, "hash-object", "-w", "y"))
    else:
        write(project, ".git/hooks/post-checkout", content="#!/bin/sh\necho other > y\n")
        (project / ".git/hooks/post-checkout").chmod(0o755)
    clean = Clean(Repo(project), commit, folder)
    assert [(clean.root / name).read_bytes() for name in ("x", "y")] == [b"x\n", b"x\n"]
    write(clean.root, "made")
    assert git(clean.root, "status", "--porcelain") == "?? made"


def test_a_check_may_compare_with_other_branches_and_tags(project, git, folder):
    git(project, "tag", "v1")
    commit = committed(git, project, "a")
    git(project, "branch", "other", "v1")
    clean = Clean(Repo(project), commit, folder)
    assert git(clean.root, "diff", "--name-only", "other", "HEAD") == "a"
    assert git(clean.root, "describe", "--tags") == f"v1-1-g{commit[:7]}"


# --------------------------------------------------------------------------------------------------------
# As setup left it
# --------------------------------------------------------------------------------------------------------


def test_what_a_check_made_is_removed_and_what_setup_made_stays(project, git, folder):
    write(project, ".gitignore", content="node_modules/\n*.o\n")
    commit = committed(git, project, "src/app.c", "src/sub/x")
    clean = Clean(Repo(project), commit, folder)
    of_setup = {"node_modules/left/index.js", "src/app.o", "src/generated.c", "build/deep/x"}
    write(clean.root, *of_setup)
    clean.keep()
    write(clean.root, "src/other.o", "out/deep/y", "src/sub/new", "other.o", "src/new/.gitignore")
    (clean.root / "empty").mkdir()
    (clean.root / "link").symlink_to("/etc")
    clean.reset()
    assert files(clean.root) == {".gitignore", "README.md", "src/app.c", "src/sub/x", *of_setup}
    assert not (clean.root / "empty").exists()
    assert os.path.isdir("/etc")
    assert clean._untracked().keys() == clean.made.keys()


def test_tracked_files_are_restored_whatever_a_check_did_to_them(project, git, folder):
    commit = committed(git, project, "changed", "deleted", "deep/moved", "folder/x", "staged", "file")
    clean = Clean(Repo(project), commit, folder)
    write(clean.root, "changed", "staged", content="changed\n")
    (clean.root / "deleted").unlink()
    (clean.root / "deep").rename(clean.root / "elsewhere")
    shutil.rmtree(clean.root / "folder")
    write(clean.root, "folder")
    (clean.root / "file").unlink()
    write(clean.root, "file/x")
    git(clean.root, "add", "staged")
    git(clean.root, "rm", "-q", "--cached", "README.md")
    clean.reset()
    assert files(clean.root) == {"README.md", "changed", "deleted", "deep/moved", "folder/x", "staged", "file"}
    assert {(clean.root / name).read_text() for name in ("changed", "staged", "deleted", "file")} == {"x\n"}
    assert git(clean.root, "status", "--porcelain") == ""


def test_a_check_that_commits_or_switches_moves_no_branch_and_is_undone(project, git, folder):
    commit = committed(git, project, "a")
    git(project, "branch", "other", "HEAD~1")
    other = git(project, "rev-parse", "other")
    clean = Clean(Repo(project), commit, folder)
    git(clean.root, "checkout", "-q", "other")
    clean.reset()
    assert (clean.root / "a").exists()
    write(clean.root, "b")
    git(clean.root, "add", "-A")
    git(clean.root, "-c", "user.name=x", "-c", "user.email=x@example.invalid", "commit", "-qm", "by a check")
    clean.reset()
    assert files(clean.root) == {"README.md", "a"}
    assert (git(project, "rev-parse", "other"), git(project, "rev-parse", "main")) == (other, commit)


def test_what_a_check_took_the_rights_from_is_removed_all_the_same(project, git, folder):
    need(os.geteuid() != 0 or shutil.which("setpriv"), "root may do all, and setpriv is not installed")
    code = """
import os, checkout
from pathlib import Path
from repo import Repo
git, folder = Repo(Path(sys.argv[1])), Path(sys.argv[2])
clean = checkout.Clean(git, git.head(), folder)
(clean.root / "locked/deep/er").mkdir(parents=True)
(clean.root / "locked/deep/er/x").write_text("x")
for name in ("locked/deep/er", "locked/deep", "locked"):
    (clean.root / name).chmod(0)
clean.reset()
print(os.path.exists(clean.root / "locked"))
(clean.root / "locked/deep").mkdir(parents=True)
for place in (clean.root / "locked/deep", clean.root / "locked", clean.root, folder):
    place.chmod(0)
checkout.delete(folder)
print(os.path.exists(folder))
"""
    assert run(code, project, folder) == "False\nFalse\n"
    assert work_trees(git, project) == [str(project)]


def run(code: str, *args: object) -> str:
    """Python in a process of its own that has to keep to the rights of files."""
    shell = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    argv = [*shell, sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{code}"]
    done = subprocess.run([*argv, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


# --------------------------------------------------------------------------------------------------------
# Submodules
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_module(project, git, tmp_path) -> Path:
    """A project with a submodule whose origin is gone, and that stands at another commit than the committed one."""
    git(tmp_path, "clone", "-q", str(project), "origin")
    for name, value in (("user.name", "x"), ("user.email", "x@example.invalid")):
        git(tmp_path / "origin", "config", name, value)
    committed(git, tmp_path / "origin", "of the module")
    allowed = ("-c", "protocol.file.allow=always")
    git(project, *allowed, "submodule", "--quiet", "add", str(tmp_path / "origin"), "libs/a module")
    git(project, "commit", "-qm", "add the module")
    inside = project / "libs/a module"
    for name, value in (("user.name", "x"), ("user.email", "x@example.invalid")):
        git(inside, "config", name, value)
    committed(git, inside, "not committed outside")
    write(inside, "untracked")
    shutil.rmtree(tmp_path / "origin")
    return project


def test_a_submodule_is_at_the_committed_state_without_any_network(with_module, git, folder):
    clean = Clean(Repo(with_module), Repo(with_module).head(), folder)
    of_module = {"libs/a module/README.md", "libs/a module/of the module"}
    assert files(clean.root) == {".gitmodules", "README.md", *of_module}
    assert git(clean.root, "status", "--porcelain") == ""


def test_a_submodule_is_reset_like_the_rest(with_module, git, folder):
    clean = Clean(Repo(with_module), Repo(with_module).head(), folder)
    before = files(clean.root)
    write(clean.root, "libs/a module/made/by setup")
    clean.keep()
    write(clean.root, "libs/a module/README.md", content="changed\n")
    write(clean.root, "libs/a module/by a check", "libs/a module/deep/by a check")
    clean.reset()
    assert files(clean.root) == {*before, "libs/a module/made/by setup"}
    assert (clean.root / "libs/a module/README.md").read_text() == "# a project\n"


@pytest.mark.parametrize("gone", ["libs", "libs/a module", "libs/a module/.git", ".gitmodules"])
def test_a_submodule_that_a_check_removed_is_there_again(with_module, git, folder, gone):
    clean = Clean(Repo(with_module), Repo(with_module).head(), folder)
    before = files(clean.root)
    checkout.delete(clean.root / gone)
    clean.reset()
    assert files(clean.root) == before
    assert git(clean.root, "status", "--porcelain") == ""


def test_the_submodule_in_the_work_tree_is_not_touched(with_module, git, folder):
    inside = with_module / "libs/a module"
    before = git(inside, "rev-parse", "HEAD"), git(inside, "status", "--porcelain"), files(inside)
    clean = Clean(Repo(with_module), Repo(with_module).head(), folder)
    write(clean.root, "libs/a module/README.md", content="changed\n")
    clean.reset()
    checkout.delete(folder)
    assert (git(inside, "rev-parse", "HEAD"), git(inside, "status", "--porcelain"), files(inside)) == before
    git(inside, "fsck")


def test_a_submodule_that_was_never_checked_out_is_an_empty_folder(with_module, git, folder):
    git(with_module, "submodule", "--quiet", "deinit", "--force", "libs/a module")
    clean = Clean(Repo(with_module), Repo(with_module).head(), folder)
    assert files(clean.root) == {".gitmodules", "README.md"}
    clean.reset()
    assert os.listdir(clean.root / "libs/a module") == []


# --------------------------------------------------------------------------------------------------------
# Afterwards
# --------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_it(project, git, folder):
    before = files(project / ".git")
    clean = Clean(Repo(project), Repo(project).head(), folder)
    write(clean.root, "made", "node_modules/x")
    assert work_trees(git, project) == [str(project)]
    checkout.delete(folder)
    assert not folder.exists()
    assert files(project / ".git") == before


def test_a_folder_deeper_than_python_can_walk_is_deleted(tmp_path):
    deep = "import os\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')"
    (tmp_path / "it").mkdir()
    subprocess.run([sys.executable, "-c", deep], cwd=tmp_path / "it", check=True)
    assert len(list(checkout.walk(tmp_path / "it"))) > 500
    checkout.delete(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_only_the_owners_temporary_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine, others = [checkout.scratch("/a/b", kind) for kind in ("clean", "check")], checkout.scratch("/a/c", "clean")
    write(mine[0], "tree/x")
    (mine[0] / "tree").chmod(0)
    (tmp_path / "cco-notes").mkdir()
    checkout.remove_scratch("/a/b")
    assert sorted(tmp_path.iterdir()) == sorted([others, tmp_path / "cco-notes"])


@pytest.mark.parametrize("kind", ["nothing", "file", "link to a folder", "dangling link", "fifo", "folder"])
def test_whatever_is_there_can_be_deleted_and_what_a_link_leads_to_stays(tmp_path, kind):
    (tmp_path / "target").mkdir()
    write(tmp_path, "target/precious")
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("x")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        write(path, "a/b/c")
        (path / "a/out").symlink_to(tmp_path / "target")
        (path / "a/b").chmod(0)
    elif kind != "nothing":
        path.symlink_to(tmp_path / ("target" if kind == "link to a folder" else "nowhere"))
    checkout.delete(path)
    assert not os.path.lexists(path)
    assert (tmp_path / "target/precious").exists()
