"""Git: what a session changed becomes one commit on the branch, and what may not be in it is named."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import log
import proc
import repo
from repo import GitError, Repo

SECRET = "Zk9-planted+value/4711=="
TRAILERS = {repo.MISSION: "api", repo.ITERATION: "1"}
NAMES = [
    "with space",
    "ümläut-€",
    "new\nline",
    "-dash",
    "--all",
    "*",
    "[a]?.txt",
    ":(exclude)x",
    ":!y",
    'quo"te',
    "back\\slash",
    "tab\t",
    "\x1b[2J",
    "trailing ",
    "#hash",
    os.fsdecode(b"latin-\xe4"),
    "deep/er/-f",
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home, and an environment, without any settings of git."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    return folder


@pytest.fixture
def tree(project) -> Repo:
    """The project, with a kit and a mission in it."""
    (project / "kit").mkdir()
    (project / "missions").mkdir()
    return Repo(project, [project / "kit", project / "missions" / "api.yaml", Path("/elsewhere"), project])


@pytest.fixture
def empty(tmp_path, git) -> Repo:
    """A repository without a commit."""
    root = tmp_path / "empty"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    return Repo(root)


def write(root: Path, *names: str, content: str | bytes = "x\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def commit(tree: Repo, base: str | None = None, **given: Any) -> repo.Commit:
    """A session's commit, made on the commit that is checked out."""
    base = tree.head() if base is None else base
    options = {"title": "Do it", "body": "It is done.", "trailers": TRAILERS, "max_size": 1000, "hooks": False}
    return tree.commit(base, "main", **{**options, **given})


def files(git: Any, root: Path, commit: str = "HEAD") -> set[str]:
    """The names in a commit."""
    return {name for name in git(root, "ls-tree", "-rz", "--name-only", commit).split("\0") if name}


def parents(git: Any, root: Path) -> list[str]:
    return str(git(root, "log", "-1", "--format=%P")).split()


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --------------------------------------------------------------------------------------------------------
# Before the first session
# --------------------------------------------------------------------------------------------------------


def test_a_clean_tree_is_not_dirty(tree):
    assert tree.dirty() == []


def test_every_kind_of_change_is_dirty(tree, git):
    write(tree.root, "changed", "deleted", "staged", "moved", "unstaged")
    git(tree.root, "add", "-A")
    git(tree.root, "commit", "-qm", "x")
    write(tree.root, "new", "changed", "staged", content="other\n")
    (tree.root / "deleted").unlink()
    git(tree.root, "add", "staged")
    git(tree.root, "mv", "moved", "moved away")
    git(tree.root, "rm", "-q", "--cached", "unstaged")
    assert set(tree.dirty()) == {"new", "changed", "deleted", "staged", "moved", "moved away", "unstaged"}


def test_the_kit_the_mission_and_the_folders_of_tools_are_not_dirty(tree):
    write(tree.root, "kit/cco.py", "missions/api.yaml", ".cco/api.json", ".claude/settings.json", "a/b/.claude/x")
    write(tree.root, "a/.cco/lock")
    assert tree.dirty() == []
    write(tree.root, "kit2/x", "missions/api.yaml.bak", ".cco2", "a/c")
    assert set(tree.dirty()) == {"kit2/", "missions/", ".cco2", "a/"}


def test_names_are_told_as_they_are(tree):
    write(tree.root, *NAMES)
    assert {found.rstrip("/") for found in tree.dirty()} == {name.split("/")[0] for name in NAMES}


def test_what_git_ignores_is_not_dirty(tree):
    write(tree.root, ".git/info/exclude", content="*.log\n")
    write(tree.root, "x.log")
    assert tree.dirty() == []


def test_an_empty_repository_has_no_head_and_may_be_dirty(empty):
    assert (empty.head(), empty.branch(), empty.dirty()) == ("", "main", [])
    write(empty.root, "new")
    assert empty.dirty() == ["new"]


def test_a_branch_has_a_head_of_its_own(tree, git):
    git(tree.root, "branch", "other")
    write(tree.root, "a")
    made = commit(tree)
    assert (tree.head_of("main"), tree.head_of("other")) == (made.sha, git(tree.root, "rev-parse", "other"))
    assert tree.head_of("none") == ""


def test_a_snapshot_changes_with_what_git_does_not_ignore(tree, git):
    write(tree.root, ".git/info/exclude", content="*.log\n")
    seen = [tree.snapshot()]
    for change in (
        lambda: write(tree.root, "new"),
        lambda: write(tree.root, "new", content="longer than before\n"),
        lambda: (tree.root / "link").symlink_to("nowhere"),
        lambda: (tree.root / "README.md").unlink(),
        lambda: git(tree.root, "commit", "-q", "--allow-empty", "-m", "x"),
    ):
        change()
        assert tree.snapshot() not in seen
        seen.append(tree.snapshot())
    write(tree.root, "x.log", ".cco/api.json", "kit/cco.py", "missions/api.yaml")
    assert tree.snapshot() == seen[-1]


def test_a_detached_head_is_on_no_branch(tree, git):
    git(tree.root, "checkout", "-q", "--detach")
    assert (tree.branch(), tree.head()) == ("", git(tree.root, "rev-parse", "main"))


def test_a_changed_submodule_is_dirty(tree, git, tmp_path):
    module(tree, git, tmp_path)
    assert tree.dirty() == []
    write(tree.root, "module/README.md", content="changed\n")
    assert tree.dirty() == ["module"]


def module(tree: Repo, git: Any, tmp_path: Path) -> None:
    """A submodule in the project, committed."""
    git(tmp_path, "clone", "-q", str(tree.root), "other")
    git(tree.root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "other"), "module")
    git(tree.root, "commit", "-qm", "add the module")


def test_a_nested_repository_is_dirty(tree, git):
    (tree.root / "nested").mkdir()
    git(tree.root / "nested", "init", "-q")
    assert tree.dirty() == ["nested/"]


def test_a_folder_that_is_no_repository_is_an_error_that_names_it(tmp_path):
    with pytest.raises(GitError, match="not a git repository") as caught:
        Repo(tmp_path).dirty()
    assert str(tmp_path) in str(caught.value)


def test_a_machine_without_git_is_an_error_that_says_so(tree, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GitError, match="No such file or directory: git"):
        tree.dirty()


# --------------------------------------------------------------------------------------------------------
# The branch
# --------------------------------------------------------------------------------------------------------


def test_a_branch_is_made_where_we_are_and_found_again(tree, git):
    start = tree.head()
    tree.switch("cco/api")
    assert (tree.branch(), tree.head()) == ("cco/api", start)
    write(tree.root, "a")
    commit(tree, hooks=False)
    git(tree.root, "checkout", "-q", "-B", "cco/api", git(tree.root, "rev-parse", "main"))
    git(tree.root, "checkout", "-q", "main")
    tree.switch("cco/api")
    tree.switch("cco/api")
    assert tree.branch() == "cco/api"


@pytest.mark.parametrize("before", ["unborn", "detached", "a file of the same name", "untracked files"])
def test_a_branch_is_made_from_wherever_we_are(tree, empty, git, before):
    here = empty if before == "unborn" else tree
    if before == "detached":
        git(here.root, "checkout", "-q", "--detach")
    write(here.root, "work")
    here.switch("work")
    assert here.branch() == "work"
    assert (here.root / "work").read_text() == "x\n"


@pytest.mark.parametrize(
    "name", ["", "-x", "--help", "a b", "a..b", "a.lock", "@{-1}", "HEAD", "a//b", "a~1", "main/x"]
)
def test_a_branch_of_an_impossible_name_is_refused(tree, name):
    with pytest.raises(GitError):
        tree.switch(name)
    assert tree.branch() == "main"


def test_work_that_a_switch_would_lose_is_kept(tree, git):
    git(tree.root, "checkout", "-q", "-b", "work")
    write(tree.root, "README.md", content="on work\n")
    git(tree.root, "commit", "-qam", "x")
    git(tree.root, "checkout", "-q", "main")
    write(tree.root, "README.md", content="precious\n")
    with pytest.raises(GitError, match=r"(?s)would be overwritten.*README\.md"):
        tree.switch("work")
    assert (tree.branch(), (tree.root / "README.md").read_text()) == ("main", "precious\n")


def test_a_linked_work_tree_is_worked_in_like_any_other(tree, git, tmp_path):
    git(tree.root, "worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"))
    linked = Repo(tmp_path / "linked")
    assert (linked.branch(), linked.dirty()) == ("linked", [])
    with pytest.raises(GitError, match="already"):
        linked.switch("main")
    linked.switch("work")
    write(linked.root, "a")
    made = linked.commit(linked.head(), "work", "t", "b", TRAILERS, 1000, False)
    assert (made.changed, linked.branch(), linked.dirty()) == (["a"], "work", [])
    assert (tree.branch(), tree.dirty()) == ("main", [])
    assert linked.last_iteration("api") == 1


# --------------------------------------------------------------------------------------------------------
# A session's commit
# --------------------------------------------------------------------------------------------------------


def test_everything_that_changed_is_in_one_commit(tree, git):
    write(tree.root, "deleted", "changed", "made executable", "becomes a link", "a folder/file")
    git(tree.root, "add", "-A")
    git(tree.root, "commit", "-qm", "before")
    base = tree.head()
    for name in ("deleted", "becomes a link", "a folder/file"):
        (tree.root / name).unlink()
    (tree.root / "a folder").rmdir()
    (tree.root / "a folder").write_text("a file now\n")
    (tree.root / "becomes a link").symlink_to("/etc/passwd")
    (tree.root / "dangling").symlink_to("nowhere")
    (tree.root / "made executable").chmod(0o755)
    write(tree.root, "changed", "new", content=b"\0\xff")
    made = commit(tree, base)
    expected = {
        "deleted",
        "changed",
        "made executable",
        "becomes a link",
        "a folder/file",
        "a folder",
        "dangling",
        "new",
    }
    assert (set(made.changed), made.left_out) == (expected, {})
    assert (made.sha, parents(git, tree.root), tree.dirty()) == (tree.head(), [base], [])
    modes = {line.split("\t")[1]: line[:6] for line in git(tree.root, "ls-tree", "HEAD").splitlines()}
    assert modes["becomes a link"] == modes["dangling"] == "120000"
    assert (modes["made executable"], modes["a folder"]) == ("100755", "100644")


def test_files_of_any_name_are_committed(tree):
    write(tree.root, *NAMES)
    assert set(commit(tree).changed) == set(NAMES)
    assert tree.dirty() == []


def test_files_of_any_name_are_left_out(tree):
    write(tree.root, *NAMES, content="x" * 2000)
    write(tree.root, "small")
    made = commit(tree)
    assert (made.changed, set(made.left_out)) == (["small"], set(NAMES))
    assert all((tree.root / name).exists() for name in NAMES)


def test_a_session_that_changed_nothing_makes_no_commit(tree):
    base = tree.head()
    write(tree.root, ".cco/api.json", ".claude/settings.json")
    assert commit(tree) == repo.Commit(base, left_out={".claude/settings.json": repo.TOOLS_OWN})
    assert tree.head() == base


def test_the_first_commit_of_a_repository_can_be_made(empty, git):
    write(empty.root, "a", "large", content="x" * 900)
    write(empty.root, "large", content="x" * 2000)
    made = commit(empty, "", trailers={})
    assert (made.changed, list(made.left_out)) == (["a"], ["large"])
    assert (parents(git, empty.root), files(git, empty.root)) == ([], {"a"})
    assert commit(empty).changed == []


def test_a_commit_of_nothing_in_an_empty_repository_is_none(empty):
    assert commit(empty, "") == repo.Commit("")
    assert empty.statistics("") == {"files_modified": 0, "lines_of_code_added": 0, "tests_created": 0}


def test_a_signal_to_the_kit_does_not_cut_a_commit_short(tree, git, monkeypatch):
    git(tree.root, "config", "filter.slow.clean", "sleep 0.3; cat")
    write(tree.root, ".git/info/attributes", content="a filter=slow\n")
    write(tree.root, "a")
    monkeypatch.setattr(proc, "stopping", signal.SIGTERM)
    assert commit(tree).changed == ["a"]


# --------------------------------------------------------------------------------------------------------
# What the worker did with git
# --------------------------------------------------------------------------------------------------------


def own_commits(root: Path, git: Any) -> None:
    """Two commits of the worker's, the first with our trailers, and something uncommitted."""
    write(root, "one")
    git(root, "add", "-A")
    git(root, "commit", "-qm", f"Claude was here\n\n{repo.MISSION}: api\n{repo.ITERATION}: 7")
    write(root, "two")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "again")
    write(root, "three")


@pytest.mark.parametrize("where", ["on the branch", "on a branch of its own", "detached"])
def test_the_workers_own_commits_become_part_of_ours(tree, git, where):
    base = tree.head()
    if where != "on the branch":
        git(tree.root, "checkout", "-q", *(["--detach"] if where == "detached" else ["-b", "feature"]))
    own_commits(tree.root, git)
    made = commit(tree, base)
    assert (made.changed, parents(git, tree.root)) == (["one", "three", "two"], [base])
    assert (tree.branch(), tree.head(), tree.dirty()) == ("main", made.sha, [])
    assert git(tree.root, "log", "-1", "--format=%an %cn") == "Test Test"
    assert tree.last_iteration("api") == 1


def test_the_workers_own_commits_in_an_empty_repository_become_one(empty, git):
    git(empty.root, "config", "user.email", "worker@example.invalid")
    git(empty.root, "config", "user.name", "Worker")
    own_commits(empty.root, git)
    made = commit(empty, "")
    assert (made.changed, parents(git, empty.root)) == (["one", "three", "two"], [])


def test_what_the_worker_committed_and_took_back_is_no_change(tree, git):
    base = tree.head()
    write(tree.root, "README.md", content="changed\n")
    git(tree.root, "commit", "-qam", "try")
    git(tree.root, "revert", "--no-edit", "HEAD")
    assert commit(tree, base) == repo.Commit(base)
    assert tree.head() == base


def test_what_is_in_the_work_tree_is_committed_and_not_what_the_worker_staged(tree, git):
    write(tree.root, ".git/info/exclude", content="*.out\n")
    write(tree.root, "staged", "forced.out", "ignored.out", content="staged\n")
    git(tree.root, "add", "-f", "staged", "forced.out")
    git(tree.root, "rm", "-q", "--cached", "README.md")
    git(tree.root, "update-index", "--skip-worktree", "staged")
    write(tree.root, "staged", content="in the work tree\n")
    assert commit(tree).changed == ["staged"]
    assert git(tree.root, "show", "HEAD:staged") == "in the work tree"


def test_an_amended_commit_of_the_worker_becomes_part_of_the_sessions_commit(tree, git):
    write(tree.root, "accepted")
    base = commit(tree).sha
    write(tree.root, "new")
    git(tree.root, "add", "new")
    git(tree.root, "commit", "-q", "--amend", "-m", "mine now")
    made = commit(tree, base)
    assert made.changed == ["new"]
    assert git(tree.root, "rev-parse", "HEAD~1") == base


@pytest.mark.parametrize("how", ["unrelated", "orphan", "older"])
def test_a_head_without_the_accepted_commit_is_refused(tree, git, how):
    write(tree.root, "accepted")
    base = commit(tree).sha
    moves = {
        "unrelated": [["checkout", "-q", "--orphan", "other"], ["commit", "-qm", "unrelated"]],
        "orphan": [["checkout", "-q", "--orphan", "other"]],
        "older": [["checkout", "-q", "--detach", "HEAD~1"]],
    }
    for move in moves[how]:
        git(tree.root, *move)
    before = (tree.head(), tree.branch())
    write(tree.root, "new")
    with pytest.raises(GitError, match="moved to a commit without the accepted one: git checkout main"):
        commit(tree, base)
    assert (tree.head(), tree.branch()) == before
    assert (tree.root / "new").exists()


def diverge(root: Path, git: Any) -> None:
    """A branch `other` whose change to the README contradicts the one on main."""
    git(root, "checkout", "-q", "-b", "other")
    write(root, "README.md", content="theirs\n")
    git(root, "commit", "-qam", "theirs", "--author", "Somebody Else <else@example.invalid>")
    git(root, "checkout", "-q", "main")
    write(root, "README.md", content="ours\n")
    git(root, "commit", "-qam", "ours")


@pytest.mark.parametrize(
    "how", ["merge other", "cherry-pick other", "revert HEAD~1", "rebase HEAD~1 --exec false", "stash apply"]
)
def test_what_the_worker_left_half_done_is_committed_as_it_stands(tree, git, how):
    diverge(tree.root, git)
    base = tree.head()
    if how == "stash apply":
        write(tree.root, "README.md", content="stashed\n")
        git(tree.root, "stash", "-q")
        write(tree.root, "README.md", content="against it\n")
        git(tree.root, "commit", "-qam", "against the stash")
    with pytest.raises(AssertionError):  # it stops half-way
        git(tree.root, *how.split())
    write(tree.root, "README.md", content="as it stands\n")
    made = commit(tree, base)
    assert (made.changed, parents(git, tree.root)) == (["README.md"], [base])
    assert (tree.branch(), tree.dirty()) == ("main", [])
    assert git(tree.root, "log", "-1", "--format=%an") == "Test"
    left = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply", "sequencer")
    assert not [name for name in left if (tree.root / ".git" / name).exists()]


# --------------------------------------------------------------------------------------------------------
# What a commit may not hold
# --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_left_out_and_one_at_the_limit_is_not(tree, git):
    write(tree.root, "at the limit", content="x" * 1000)
    write(tree.root, "over it", content="x" * 1001)
    made = commit(tree)
    assert made.changed == ["at the limit"]
    assert made.left_out == {"over it": "1001 bytes are more than claude_code.max_file_size allows (1000)"}
    again = commit(tree)
    assert (again.changed, list(again.left_out)) == ([], ["over it"])


def test_a_tracked_file_that_grew_too_large_stays_as_it_was(tree, git):
    write(tree.root, "README.md", content="x" * 2000)
    made = commit(tree)
    assert (made.changed, list(made.left_out)) == ([], ["README.md"])
    assert git(tree.root, "show", "HEAD:README.md") == "# a project"
    assert (tree.root / "README.md").stat().st_size == 2000


def test_a_file_with_a_known_secret_is_left_out(tree, fresh_mask):
    log.know_value(SECRET)
    write(tree.root, "config.ini", "new\nline", content=f"[db]\npassword = {SECRET}\n")
    write(tree.root, "small")
    made = commit(tree)
    assert made.changed == ["small"]
    assert made.left_out == dict.fromkeys(["config.ini", "new\nline"], "it holds a known secret")


def test_a_link_to_a_secret_is_committed_as_a_link(tree, tmp_path, git, fresh_mask):
    log.know_value(SECRET)
    write(tmp_path, "outside", content=SECRET)
    (tree.root / "link").symlink_to(tmp_path / "outside")
    assert commit(tree).changed == ["link"]
    assert git(tree.root, "show", "HEAD:link") == str(tmp_path / "outside")


OWN = ["kit/cco.py", "missions/api.yaml", ".cco/api.json", ".claude/settings.json", "a/.claude/x", "a/b/.cco/lock"]


@pytest.mark.parametrize("how", ["untracked", "force-added", "committed by the worker"])
def test_the_referee_and_the_folders_of_tools_are_never_committed(tree, git, how):
    base = tree.head()
    write(tree.root, *OWN, "kit2/own", "a/b/c")
    write(tree.root, ".cco/.gitignore", content="*\n")
    if how != "untracked":
        git(tree.root, "add", "-f", ".")
    if how == "committed by the worker":
        git(tree.root, "commit", "-qm", "all of it")
    made = commit(tree, base)
    assert made.changed == ["a/b/c", "kit2/own"]
    assert files(git, tree.root) == {"README.md", "a/b/c", "kit2/own"}
    assert set(made.left_out) == {".claude/settings.json", "a/.claude/x", "a/b/.cco/lock"}
    assert all((tree.root / name).exists() for name in OWN)


def test_tracked_files_of_the_referee_and_of_tools_stay_as_they_were(tree, git):
    write(tree.root, *OWN, content="before\n")
    git(tree.root, "add", "-f", ".")
    git(tree.root, "commit", "-qm", "with everything")
    write(tree.root, *OWN[1:], content="after\n")
    write(tree.root, "work")
    (tree.root / OWN[0]).unlink()
    git(tree.root, "add", "-f", "-A", ".")
    made = commit(tree)
    assert made.changed == ["work"]
    assert {git(tree.root, "show", f"HEAD:{name}") for name in OWN} == {"before"}


def test_a_submodule_is_committed_as_the_commit_it_stands_at(tree, git, tmp_path):
    module(tree, git, tmp_path)
    write(tree.root, "module/README.md", content="changed\n")
    assert commit(tree).changed == []
    git(tree.root / "module", "config", "user.email", "a@example.invalid")
    git(tree.root / "module", "commit", "-qam", "changed")
    assert commit(tree).changed == ["module"]


@pytest.mark.parametrize("committed", [False, True], ids=["without a commit", "with a commit"])
def test_a_nested_repository_does_not_keep_the_rest_out(tree, git, committed):
    write(tree.root, "nested/x", "a", "z")
    git(tree.root / "nested", "init", "-q")
    if committed:
        git(tree.root / "nested", "add", "x")
        git(tree.root / "nested", "-c", "user.name=a", "-c", "user.email=a@example.invalid", "commit", "-qm", "x")
    made = commit(tree)
    assert (made.changed, made.left_out) == (["a", "z"], {"nested": repo.OWN_REPOSITORY})
    assert (tree.root / "nested" / "x").exists()


def test_the_git_of_each_submodule_is_known(tree, git, tmp_path):
    assert tree.submodules() == []
    module(tree, git, tmp_path)
    assert tree.submodules() == [tree.root / "module" / ".git"]
    git(tree.root, "submodule", "--quiet", "deinit", "-f", "module")
    assert tree.submodules() == []


# --------------------------------------------------------------------------------------------------------
# The message
# --------------------------------------------------------------------------------------------------------


def test_a_message_is_title_report_and_trailers(tree, git):
    write(tree.root, "a")
    commit(tree, title="Make the first test green", body="It was\n\n  indented.\n")
    assert git(tree.root, "log", "-1", "--format=%B") == (
        "Make the first test green\n\n    It was\n\n      indented.\n\nCCO-Mission: api\nCCO-Iteration: 1"
    )
    assert git(tree.root, "log", "-1", "--format=%an <%ae>") == "Test <test@example.invalid>"


TITLES = [
    ("# not a comment", "# not a comment"),
    ("two\nlines\tand  spaces", "two lines and spaces"),
    ("red \x1b[31mred\x00\u202e", "red  [31mred"),
    ("", "Work on the mission"),
    (" \n ", "Work on the mission"),
    ("x" * 10_000_000, "x" * 72),
    ("€" * 100, "€" * 72),
    ("-F /etc/passwd", "-F /etc/passwd"),
    ("half \ud83d", "half"),
    ("bytes \udcff", "bytes"),
    ("CCO-Iteration: 99", "CCO-Iteration: 99"),
    ("fixup! x", "fixup! x"),
]


def test_a_title_is_one_short_printable_line(tree, git):
    for number, (title, subject) in enumerate(TITLES):
        write(tree.root, f"{number}")
        commit(tree, title=title)
        assert git(tree.root, "log", "-1", "--format=%s") == subject
    assert (tree.last_iteration("api"), tree.last_iteration("99")) == (1, 0)


BODIES = [
    "",
    "# all\n#comments",
    f"{repo.MISSION}: api\n{repo.ITERATION}: 99",
    f"done\n\n{repo.MISSION}: api\n{repo.ITERATION}: 99\n\n",
    f"done\r\n\r\n{repo.MISSION}: api\r{repo.ITERATION}: 99",
    f"done\u2028{repo.MISSION}: api\u2028{repo.ITERATION}: 99",
    f"done\x0b{repo.ITERATION}: 99\x85{repo.ITERATION}: 98",
    "---\ndiff --git a/x b/x",
    "------------------------ >8 ------------------------\ncut",
    "control \x1b[2J \x00 \x07 half \ud83d bytes \udcff",
    "a line\n" * 1_500_000,
    " \n" * 3000 + "late",
]


def test_whatever_the_worker_reports_stays_a_report(tree, git):
    for number, body in enumerate(BODIES):
        write(tree.root, f"{number}")
        commit(tree, body=body)
        message = git(tree.root, "log", "-1", "--format=%B")
        assert message.endswith("CCO-Mission: api\nCCO-Iteration: 1")
        assert len(message) < 12_000
        assert message.replace("\n", "").isprintable()
        assert "late" in message or "late" not in body
    assert tree.last_iteration("api") == 1


def test_a_secret_is_in_no_message(tree, git, fresh_mask):
    log.know_value(SECRET)
    write(tree.root, "a")
    commit(tree, title=f"Log in with {SECRET}", body=f"I used {SECRET}.\n" + "x" * 3975 + SECRET)
    assert SECRET[:8] not in git(tree.root, "log", "-1", "--format=%B")


# --------------------------------------------------------------------------------------------------------
# Who and what commits
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "author"),
    [
        ([], "CCO <cco@localhost>"),
        (["user.name=Ada"], "Ada <cco@localhost>"),
        (["user.email=ada@example.invalid", "user.useConfigOnly=true"], "CCO <ada@example.invalid>"),
        (["user.name=Ada", "user.email=ada@example.invalid"], "Ada <ada@example.invalid>"),
    ],
    ids=["nobody", "a name", "an address", "both"],
)
def test_whoever_git_knows_commits_and_else_the_kit(empty, git, monkeypatch, known, author):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for setting in known:
        git(empty.root, "config", *setting.split("="))
    write(empty.root, "a")
    commit(empty, "")
    assert git(empty.root, "log", "-1", "--format=%an <%ae>") == author
    assert git(empty.root, "log", "-1", "--format=%cn <%ce>") == author


@pytest.mark.parametrize("name", ["pre-commit", "commit-msg", "prepare-commit-msg"])
def test_a_hook_that_refuses_is_said_and_does_not_lose_the_work(tree, git, capsys, name):
    program(tree.root / ".git/hooks" / name, f"touch {name}-ran; echo the linter says no >&2; exit 1")
    write(tree.root, "a")
    made = commit(tree, hooks=True)
    assert made.changed == ["a"]
    assert files(git, tree.root) == {"README.md", "a"}
    assert (tree.root / f"{name}-ran").exists()
    assert "committed without them: " in (said := capsys.readouterr().err)
    assert "the linter says no" in said


def test_a_hook_that_agrees_runs_where_hooks_are_wanted(tree, git, capsys):
    program(tree.root / ".git/hooks/commit-msg", 'echo "Reviewed-by: a hook" >> "$1"')
    write(tree.root, "a")
    commit(tree, hooks=True)
    assert "Reviewed-by: a hook" in git(tree.root, "log", "-1", "--format=%B")
    assert tree.last_iteration("api") == 1
    assert capsys.readouterr().err == ""


HOOKS = [
    *("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-checkout", "post-rewrite", "pre-auto-gc"),
    *("post-index-change", "reference-transaction", "post-merge", "applypatch-msg"),
]


def pairs(text: str) -> list[tuple[str, str]]:
    """The names and values of `name=value name=value ...`."""
    return [(name, value) for name, _, value in (word.partition("=") for word in text.split())]


def use_everything(tree: Repo) -> repo.Commit:
    """Every command that the kit gives to git, and what the commit was."""
    tree.dirty()
    tree.switch("elsewhere")
    tree.switch("main")
    base = tree.head()
    write(tree.root, "a", "b.x", "tests/test_a.py")
    write(tree.root, "README.md", content="changed\n")
    tree.remove_placeholders()
    made = commit(tree, base)
    assert tree.last_iteration("api") == 1
    assert tree.commit_after(base, "api", 1) == made
    assert tree.statistics(base) == {"files_modified": 4, "lines_of_code_added": 4, "tests_created": 1}
    assert set(made.changed) == {"README.md", "a", "b.x", "tests/test_a.py"}
    assert (made.left_out, tree.dirty(), tree.branch()) == ({}, [], "main")
    return made


PGP = "-----BEGIN PGP SIGNATURE-----\n \n iQEzBAABCAAdFiEE\n -----END PGP SIGNATURE-----"


def sign(root: Path, git: Any) -> None:
    """Make the last commit look like ours, and signed, so that showing it may ask a program about the signature."""
    text = git(root, "cat-file", "commit", "HEAD").replace("\n\n", f"\ngpgsig {PGP}\n\n", 1)
    (root / ".git" / "signed").write_text(f"{text}\n\n{repo.MISSION}: api\n{repo.ITERATION}: 0\n")
    git(root, "update-ref", "HEAD", git(root, "hash-object", "-t", "commit", "-w", str(root / ".git" / "signed")))


@pytest.mark.parametrize(
    "settings",
    [
        "",  # hooks alone
        "core.fsmonitor=SPY core.hooksPath=HOOKS core.untrackedCache=true",
        "commit.gpgSign=true gpg.program=SPY user.signingKey=x log.showSignature=true",
        """
        core.pager=SPY pager.log=SPY pager.diff=SPY pager.status=SPY core.editor=SPY sequence.editor=SPY
        core.sshCommand=SPY core.askPass=SPY credential.helper=SPY core.gitProxy=SPY
        interactive.diffFilter=SPY diff.external=SPY diff.spy.command=SPY diff.spy.textconv=SPY
        trailer.spy.command=SPY trailer.CCO-Mission.cmd=SPY core.alternateRefsCommand=SPY
        alias.status=!SPY alias.commit=!SPY alias.diff=!SPY alias.add=!SPY gc.auto=1 gc.autoDetach=false
        maintenance.auto=true
        """,
    ],
    ids=["hooks", "monitor", "signatures", "everything else"],
)
def test_no_program_that_a_worker_planted_is_run(tree, git, tmp_path, settings):
    sign(tree.root, git)
    spy = program(tmp_path / "spy", f'echo "$0" "$@" >> "{tmp_path}/spied"; exit 1')
    for name in HOOKS:
        program(tmp_path / "hooks" / name, f'echo {name} >> "{tmp_path}/spied"')
        program(tree.root / ".git" / "hooks" / name, f'echo {name} >> "{tmp_path}/spied"')
    write(tree.root, ".git/info/attributes", content="*.x diff=spy\n")
    for name, value in pairs(settings):
        git(tree.root, "config", name, value.replace("SPY", str(spy)).replace("HOOKS", str(tmp_path / "hooks")))
    use_everything(tree)
    assert not (tmp_path / "spied").exists(), (tmp_path / "spied").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        """
        color.ui=always color.status=always color.diff=always core.quotePath=false core.abbrev=4
        core.commentChar=; diff.noprefix=true diff.renames=copies diff.relative=true
        diff.orderFile=/dev/null diff.statGraphWidth=5 log.date=human log.decorate=full
        log.showSignature=true log.showRoot=false format.pretty=oneline status.showUntrackedFiles=no
        status.branch=true status.short=true status.showStash=true status.relativePaths=true
        core.autocrlf=true core.safecrlf=true trailer.separators== grep.patternType=fixed
        """,
        """
        commit.cleanup=scissors commit.verbose=true commit.template=/dev/null
        i18n.commitEncoding=ISO-8859-1 i18n.logOutputEncoding=ISO-8859-1 log.diffMerges=on
        core.untrackedCache=true index.version=4 feature.manyFiles=true core.splitIndex=true
        submodule.recurse=true diff.submodule=log status.submoduleSummary=true checkout.defaultRemote=x
        checkout.guess=false branch.autoSetupMerge=always trailer.where=start trailer.ifexists=doNothing
        core.logAllRefUpdates=false rebase.autoStash=true merge.ff=only diff.mnemonicPrefix=true
        diff.wordRegex=. diff.algorithm=patience log.follow=true
        """,
    ],
    ids=["what is shown", "what is written"],
)
def test_no_setting_of_a_users_changes_what_is_done(tree, git, home, settings):
    for name, value in pairs(settings):
        git(tree.root, "config", "--global", name, value)
    use_everything(tree)


def test_untracked_files_are_dirty_also_for_a_user_who_hides_them(tree, git):
    git(tree.root, "config", "--global", "status.showUntrackedFiles", "no")
    write(tree.root, "new", "a/.claude/x")
    assert set(tree.dirty()) == {"new"}


@pytest.mark.parametrize(
    "variables",
    [
        """
        GIT_DIR=/other/.git GIT_WORK_TREE=/other GIT_INDEX_FILE=/other/.git/index
        GIT_OBJECT_DIRECTORY=/other/.git/objects GIT_CEILING_DIRECTORIES=/ GIT_NAMESPACE=other
        GIT_PREFIX=sub/ GIT_QUARANTINE_PATH=/x GIT_COMMON_DIR=/other/.git
        """,
        """
        GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.bare GIT_CONFIG_VALUE_0=true
        GIT_CONFIG_PARAMETERS='core.bare=true' GIT_CONFIG_GLOBAL=/missing GIT_CONFIG=/missing
        GIT_AUTHOR_DATE=nonsense GIT_AUTHOR_NAME=Mallory GIT_COMMITTER_EMAIL=<>
        """,
        """
        GIT_EXTERNAL_DIFF=false GIT_PAGER=false GIT_EDITOR=false GIT_DIFF_OPTS=-u9
        GIT_LITERAL_PATHSPECS=1 GIT_ICASE_PATHSPECS=1 GIT_TRACE=1 GIT_TRACE2=1 LC_ALL=de_DE.UTF-8
        LANGUAGE=de EDITOR=false PAGER=false VISUAL=false SSH_ASKPASS=false TERM=dumb
        """,
    ],
    ids=["places", "settings", "programs"],
)
def test_no_variable_of_a_surrounding_git_changes_what_is_done(tree, git, tmp_path, monkeypatch, variables):
    git(tmp_path, "clone", "-q", str(tree.root), "other")
    with monkeypatch.context() as surrounding:
        for name, value in pairs(variables):
            surrounding.setenv(name, value.replace("/other", str(tmp_path / "other")))
        made = use_everything(tree)
    assert git(tree.root, "rev-parse", "HEAD") == made.sha
    assert git(tree.root, "log", "-1", "--format=%an <%ce>") == "Test <test@example.invalid>"
    assert git(tmp_path / "other", "status", "--porcelain") == ""
    assert git(tmp_path / "other", "log", "--format=%s") == "first"


# --------------------------------------------------------------------------------------------------------
# Locks that somebody left
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["index.lock", "HEAD.lock", "refs/heads/main.lock"])
def test_a_lock_that_a_killed_git_left_is_an_error_that_names_it(tree, lock):
    write(tree.root, "a")
    write(tree.root, f".git/{lock}", content="")
    base = tree.head()
    with pytest.raises(GitError, match=lock):
        commit(tree)
    assert (tree.head(), tree.dirty()) == (base, ["a"])
    (tree.root / ".git" / lock).unlink()
    assert commit(tree).changed == ["a"]


def test_locks_that_are_not_needed_do_no_harm(tree):
    for lock in ("config.lock", "packed-refs.lock", "shallow.lock", "gc.pid"):
        write(tree.root, f".git/{lock}", content="")
    before = tree.head()
    use_everything(tree)
    assert tree.head() != before
    assert (tree.root / ".git" / "config.lock").exists()


def test_every_lock_that_a_dead_git_left_is_removed_and_named(tree, git, tmp_path, capsys):
    git(tree.root, "worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"))
    for here in (tree, Repo(tmp_path / "linked")):
        for name in ("index.lock", "HEAD.lock", "refs/heads/cco/demo.lock", "refs/cco/demo/head.lock", "config.lock"):
            lock = here.root / git(here.root, "rev-parse", "--git-path", name)
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
            here.remove_stale_locks()
            assert not lock.exists()
            assert f"removed {lock.resolve()}, " in capsys.readouterr().err
    (tree.root / "yarn.lock").touch()
    tree.remove_stale_locks()
    assert (tree.root / "yarn.lock").exists()


# --------------------------------------------------------------------------------------------------------
# What the commits tell
# --------------------------------------------------------------------------------------------------------


def test_iterations_are_found_again_by_mission(tree, git):
    for mission, number in (("api", 1), ("api", 10), ("api", 2), ("api-2", 7), ("ap", 99)):
        message = f"x\n\n{repo.MISSION}: {mission}\n{repo.ITERATION}: {number}"
        git(tree.root, "commit", "-q", "--allow-empty", "-m", message)
    assert [tree.last_iteration(name) for name in ("api", "api-2", "ap", "a", "api-22")] == [10, 7, 99, 0, 0]


def test_a_commit_that_was_made_before_a_crash_is_found_again(tree):
    base = tree.head()
    write(tree.root, "a", "ümläut\n€")
    made = commit(tree, trailers={repo.MISSION: "api", repo.ITERATION: "2"})
    assert tree.commit_after(base, "api", 2) == made
    for other in ((base, "api", 1), (base, "api-2", 2), (made.sha, "api", 2), ("", "api", 2)):
        assert tree.commit_after(*other) is None
    write(tree.root, "b")
    commit(tree, trailers={repo.MISSION: "api", repo.ITERATION: "3"})
    assert tree.commit_after(base, "api", 2) is None


def test_the_first_commit_of_a_repository_is_found_again(empty):
    assert empty.commit_after("", "api", 1) is None
    write(empty.root, "a")
    made = commit(empty, "")
    assert empty.commit_after("", "api", 1) == made


def test_a_trailer_that_is_no_number_counts_for_nothing(tree, git):
    message = tree.root / ".git" / "message"
    for number in ("x", "", "-1", "1.5", "²", "9" * 5000, "1\n 2", "1\x1f2", "1\u20282", "1, 2", "0x10"):
        message.write_text(f"x\n\n{repo.MISSION}: api\n{repo.ITERATION}: {number}")
        git(tree.root, "commit", "-q", "--allow-empty", "--cleanup=verbatim", "-F", str(message))
        assert tree.last_iteration("api") == 0
    write(tree.root, "a")
    commit(tree)
    assert tree.last_iteration("api") == 1


def test_commits_of_other_branches_do_not_count(tree):
    tree.switch("work")
    write(tree.root, "a")
    tree.commit(tree.head(), "work", "t", "b", TRAILERS, 1000, False)
    tree.switch("main")
    assert tree.last_iteration("api") == 0


def test_an_empty_repository_has_no_iterations(empty):
    assert (empty.last_iteration("api"), empty.head_of("main")) == (0, "")


def test_statistics_count_files_lines_and_tests(tree, git):
    write(tree.root, "old", content="1\n2\n3\n")
    start = commit(tree).sha
    write(tree.root, "old", content="1\n2\nthree\nfour\n")
    write(tree.root, "tests/test_new.py", "new\nline", content="a\nb\n")
    write(tree.root, "picture", content=b"\0\xff" * 10)
    (tree.root / "README.md").unlink()
    commit(tree)
    assert tree.statistics(start) == {"files_modified": 5, "lines_of_code_added": 6, "tests_created": 1}
    assert tree.statistics("")["files_modified"] == 4
    assert tree.statistics(tree.head()) == {"files_modified": 0, "lines_of_code_added": 0, "tests_created": 0}


@pytest.mark.parametrize(
    ("name", "is_test"),
    [
        *(
            (name, True)
            for name in ("tests/a.py", "a/test/B.java", "test_x.py", "src/x_test.go", "x.spec.ts", "a.test.js")
        ),
        *((name, True) for name in ("__tests__/a.js", "spec/a.rb", "lib/Test_X.py", "x_tests.rs", "x-test.ts")),
        *((name, False) for name in ("latest/a.py", "contest.py", "testing.md", "a/attest.py", "inspect/a.c", "x.py")),
    ],
)
def test_a_test_file_is_known_by_its_name(name, is_test):
    assert bool(repo.TEST_FILE.search(name)) is is_test


# --------------------------------------------------------------------------------------------------------
# What is in a commit, what changed, and what is not in it
# --------------------------------------------------------------------------------------------------------


def test_the_files_of_a_commit_are_those_that_are_work(tree, git):
    write(tree.root, "kit/cco.py", "missions/api.yaml", "missions/other.yaml", ".cco/x", "a/.claude/x", "src/app.py")
    write(tree.root, *NAMES)
    program(tree.root / "run.sh", "true")
    (tree.root / "link").symlink_to("run.sh")
    git(tree.root, "add", "-Af")
    git(tree.root, "commit", "-qm", "x")
    found = tree.files(tree.head())
    assert {*found} == {"README.md", "missions/other.yaml", "src/app.py", "run.sh", *NAMES}
    assert found["README.md"] == git(tree.root, "rev-parse", "HEAD:README.md")
    assert tree.files("") == {}


def test_the_files_of_a_commit_are_not_those_of_the_work_tree(tree, git, tmp_path):
    first = tree.head()
    module(tree, git, tmp_path)
    write(tree.root, "uncommitted")
    (tree.root / "README.md").unlink()
    assert {*tree.files(tree.head())} == {"README.md", ".gitmodules"}
    assert {*tree.files(first)} == {"README.md"}


def test_a_diff_shows_the_work_between_two_commits_and_nothing_of_the_referee(tree, git):
    first = tree.head()
    write(tree.root, "kit/cco.py", ".claude/settings.json", content="referee\n")
    write(tree.root, "src/app.py", content="work\n")
    write(tree.root, os.fsdecode(b"latin-\xe4"), content=b"caf\xe9\n")
    git(tree.root, "add", "-Af")
    git(tree.root, "commit", "-qm", "x")
    write(tree.root, "src/app.py", content="uncommitted\n")
    shown = tree.diff(first, tree.head())
    assert "+work" in shown
    assert "caf\udce9" in shown
    assert not any(word in shown for word in ("referee", "uncommitted", "# a project"))
    assert "+# a project" in tree.diff("", tree.head())
    assert "-work" in tree.diff(tree.head(), first)
    assert tree.diff(first, first) == ""


def test_a_diff_where_there_is_no_commit_yet_is_empty(empty):
    assert empty.diff("", "") == ""


@pytest.mark.parametrize(
    "settings", [("color.ui", "always"), ("color.diff", "always"), ("diff.external", "false"), ("core.pager", "false")]
)
def test_a_diff_is_plain_whatever_a_user_likes(tree, git, settings):
    first = tree.head()
    write(tree.root, "a", content="work\n")
    commit(tree)
    git(tree.root, "config", *settings)
    assert tree.diff(first, tree.head()).splitlines()[-1] == "+work"


def test_no_text_converter_runs_for_a_diff(tree, git, tmp_path):
    ran = program(tmp_path / "convert", f"touch '{tmp_path}/it ran'; cat \"$1\"")
    git(tree.root, "config", "diff.odd.textconv", f"'{ran}'")
    git(tree.root, "config", "diff.odd.command", f"'{ran}'")
    write(tree.root, ".gitattributes", content="* diff=odd\n")
    first = tree.head()
    commit(tree)
    assert "+* diff=odd" in tree.diff(first, tree.head())
    assert not (tmp_path / "it ran").exists()


def test_what_is_left_behind_is_named_with_the_reason(tree, git):
    write(tree.root, ".gitignore", content="*.log\nnode_modules/\n")
    git(tree.root, "add", "-A")
    git(tree.root, "commit", "-qm", "x")
    write(tree.root, "x.log", "node_modules/a/b.js", "new", "deep/er/new", "kit/x", "missions/api.yaml", ".cco/x")
    write(tree.root, "README.md", content="changed\n")
    write(tree.root, *NAMES)
    names = {name.split("/")[0] for name in NAMES}
    assert tree.left_behind() == {
        "x.log": "git ignores it",
        "node_modules": "git ignores it",
        **dict.fromkeys(("new", "deep", "README.md", *names), "not committed"),
    }


def test_nothing_is_left_behind_of_a_clean_tree(tree):
    assert tree.left_behind() == {}


@pytest.mark.parametrize("content", [b"", b"text", b"\0\xff\r\n", b"x" * 300_000])
def test_git_keeps_bytes_and_remembers_them_under_a_name_also_through_a_gc(tree, git, content):
    name = tree.keep(content)
    tree.remember("api/sealed", name)
    git(tree.root, "gc", "-q", "--prune=now")
    assert tree.remembered("api/sealed") == name
    assert tree.git("cat-file", "blob", name) == content
    assert git(tree.root, "branch", "-a") == "* main"


def test_what_is_remembered_is_replaced_by_the_next_and_unknown_before_the_first(tree):
    assert tree.remembered("api/best") == ""
    first, second = tree.keep(b"1"), tree.keep(b"2")
    tree.remember("api/best", first)
    tree.remember("web/best", second)
    assert tree.remembered("api/best") == first
    tree.remember("api/best", second)
    assert (tree.remembered("api/best"), tree.remembered("web/best"), tree.remembered("api")) == (second, second, "")


def test_the_folder_of_git_is_that_of_the_main_work_tree(tree, git, tmp_path):
    git(tree.root, "worktree", "add", "-q", "-b", "other", str(tmp_path / "linked"))
    assert tree.folder() == tree.root / ".git" == Repo(tmp_path / "linked").folder()


# --------------------------------------------------------------------------------------------------------
# Back to an earlier commit
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def best(tree, git) -> str:
    """A commit that is to be gone back to, and a later one."""
    program(tree.root / "mode", "true")
    (tree.root / "link").symlink_to("kept")
    write(tree.root, "kept", "changed", "deleted", "folder/x", "tests/test_a.py", "deep/x.lock", *NAMES, content="1\n")
    write(tree.root, "kit/cco.py", "missions/api.yaml", content="1\n")
    git(tree.root, "add", "-Af")
    git(tree.root, "commit", "-qm", "the best")
    before = tree.head()
    write(tree.root, "changed", "tests/test_a.py", "deep/x.lock", *NAMES, content="2\n")
    write(tree.root, "kit/cco.py", "missions/api.yaml", content="2\n")
    write(tree.root, "added", "more/added", "tests/test_b.py", content="2\n")
    (tree.root / "deleted").unlink()
    (tree.root / "mode").chmod(0o644)
    (tree.root / "link").unlink()
    (tree.root / "link").symlink_to("changed")
    (tree.root / "folder/x").unlink()
    (tree.root / "folder").rmdir()
    write(tree.root, "folder", content="2\n")
    git(tree.root, "add", "-Af")
    git(tree.root, "commit", "-qm", "worse")
    return str(before)


def content(tree: Repo, *names: str) -> set[str]:
    return {(tree.root / name).read_text() for name in names}


def test_the_files_are_those_of_the_earlier_commit_and_the_later_one_stays_an_ancestor(tree, git, best):
    worse = tree.head()
    made = tree.go_back(best, "Go back to iteration 3", "api", [])
    assert made == tree.head() == git(tree.root, "rev-parse", "main")
    assert parents(git, tree.root) == [worse]
    assert content(tree, "kept", "changed", "deleted", "folder/x", "tests/test_a.py", "deep/x.lock", *NAMES) == {"1\n"}
    assert not any((tree.root / name).exists() for name in ("added", "more", "tests/test_b.py"))
    assert os.access(tree.root / "mode", os.X_OK)
    assert os.readlink(tree.root / "link") == "kept"
    assert git(tree.root, "diff", "--name-only", best, "HEAD", "--").splitlines() == ["kit/cco.py", "missions/api.yaml"]
    assert git(tree.root, "status", "--porcelain") == ""
    assert git(tree.root, "log", "-1", "--format=%s") == "Go back to iteration 3"
    assert git(tree.root, "log", "-1", f"--format=%(trailers:key={repo.MISSION},valueonly)") == "api"


def test_the_referee_is_not_gone_back_with(tree, git, best):
    write(tree.root, ".claude/settings.json", ".cco/api.json", content="3\n")
    tree.go_back(best, "x", "api", [])
    assert content(tree, "kit/cco.py", "missions/api.yaml") == {"2\n"}
    assert content(tree, ".claude/settings.json", ".cco/api.json") == {"3\n"}


@pytest.mark.parametrize(
    ("protect", "stays"),
    [
        (["tests/**"], {"tests/test_a.py", "tests/test_b.py"}),
        (["tests"], {"tests/test_a.py", "tests/test_b.py"}),
        (["tests/"], {"tests/test_a.py", "tests/test_b.py"}),
        (["./tests/**"], {"tests/test_a.py", "tests/test_b.py"}),
        (["tests/*_a.py"], {"tests/test_a.py"}),
        (["**/*.lock"], {"deep/x.lock"}),
        (["*.lock", "*.py"], set()),
        (["tests/[!x]*_b.py", "deep/**"], {"tests/test_b.py", "deep/x.lock"}),
    ],
)
def test_protected_files_stay_as_they_are(tree, git, best, protect, stays):
    tree.go_back(best, "x", "api", protect)
    assert {name for name in ("tests/test_a.py", "deep/x.lock") if content(tree, name) == {"2\n"}} == stays - {
        "tests/test_b.py"
    }
    assert (tree.root / "tests/test_b.py").exists() is ("tests/test_b.py" in stays)
    assert content(tree, "changed") == {"1\n"}
    assert git(tree.root, "status", "--porcelain") == ""


def test_where_nothing_differs_no_commit_is_made(tree, best):
    head = tree.head()
    assert tree.go_back(head, "x", "api", []) == head
    made = tree.go_back(best, "x", "api", [])
    assert tree.go_back(best, "x", "api", []) == made


def test_untracked_and_ignored_files_stay(tree, git, best):
    write(tree.root, ".git/info/exclude", content="*.log\n")
    write(tree.root, "x.log", "untracked", "more/untracked")
    tree.go_back(best, "x", "api", [])
    assert content(tree, "x.log", "untracked", "more/untracked") == {"x\n"}


def test_no_hook_runs_when_going_back(tree, best, tmp_path):
    for name in ("pre-commit", "commit-msg", "post-commit", "post-checkout"):
        program(tree.root / ".git/hooks" / name, f"touch '{tmp_path}/it ran'; exit 1")
    assert tree.go_back(best, "x", "api", []) != best
    assert not (tmp_path / "it ran").exists()


def test_a_commit_that_is_not_there_is_an_error_and_changes_nothing(tree, git, best):
    head = tree.head()
    with pytest.raises(GitError, match="git restore"):
        tree.go_back("0" * 40, "x", "api", [])
    assert (tree.head(), git(tree.root, "status", "--porcelain")) == (head, "")


def test_the_next_session_goes_on_from_there(tree, git, best):
    made = tree.go_back(best, "x", "api", [])
    assert tree.last_iteration("api") == 0
    write(tree.root, "added", content="3\n")
    assert commit(tree, made).changed == ["added"]
    assert parents(git, tree.root) == [made]


# --------------------------------------------------------------------------------------------------------
# What a killed sandbox leaves
# --------------------------------------------------------------------------------------------------------


def test_only_placeholders_of_the_sandbox_are_removed(tree, git):
    placeholders = [
        name for name in repo.PLACEHOLDERS if name not in (".bashrc", ".profile", ".gitconfig", ".idea", ".zshrc")
    ]
    write(tree.root, *placeholders, ".bashrc", ".profile", "sub/.mcp.json", "other", content="")
    write(tree.root, ".gitconfig", content="[user]\n")
    write(tree.root, ".idea/workspace.xml", content="")
    (tree.root / ".zshrc").symlink_to("other")
    git(tree.root, "add", "-f", ".bashrc")
    kept = [".profile", ".bashrc", "sub/.mcp.json", "other", ".gitconfig", ".idea/workspace.xml", ".zshrc"]
    for path in map(tree.root.joinpath, [*placeholders, *kept]):
        if not path.is_symlink():
            path.chmod(0o644 if path.name == ".profile" else 0o444)
    tree.remove_placeholders()
    assert not [name for name in placeholders if (tree.root / name).exists()]
    assert [name for name in kept if not (tree.root / name).exists()] == []


def test_placeholders_are_removed_also_where_git_ignores_them(tree):
    write(tree.root, ".git/info/exclude", content=".vscode\n")
    write(tree.root, ".vscode", content="")
    (tree.root / ".vscode").chmod(0o444)
    tree.remove_placeholders()
    assert not (tree.root / ".vscode").exists()
