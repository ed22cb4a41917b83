"""Git: one commit a session and what may not be in it, protected files, the kit's own, and the clean checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import need

import log
import proc
import repo
from repo import Checkout, GitError, Kit, Protected, Repo

SECRET = "Zk9-planted+value/4711=="
OWN = ["kit/cco.py", "missions/api.yaml", ".cco/api.json", ".claude/settings.json", "a/.claude/x", "a/b/.cco/lock"]
OWN_REPOSITORY = "a repository of its own: what is inside it is not committed"
TRAILERS = {repo.MISSION: "api", repo.ITERATION: "1"}
NAMES = ["with space", "ümläut-€", "new\nline", "-dash", "--all", "*", "[a]?.txt", ":(exclude)x", ":!y", 'quo"te', "#"]
NAMES += ["back\\slash", "tab\t", "\x1b[2J", "end ", "$HOME `id`", os.fsdecode(b"latin-\xe4"), "deep/er/-f"]


@pytest.fixture(autouse=True)
def no_settings(tmp_path, monkeypatch) -> None:
    """A home, and an environment, without any settings of git."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def tree(project) -> Repo:
    """The project, with a kit and a mission in it."""
    (project / ".cco").mkdir()
    (project / "kit").mkdir()
    (project / "missions").mkdir()
    return Repo(project, [project / "kit", project / "missions" / "api.yaml", Path("/elsewhere"), project])


@pytest.fixture
def empty(tmp_path, git) -> Repo:
    """A repository without a commit."""
    git(tmp_path, "init", "-q", "-b", "main", "empty")
    return Repo(tmp_path / "empty")


def write(root: Path, *names: str, content: str | bytes = "x\n") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sh(root: Path, script: str) -> None:
    """Run a script in a folder, as a worker or a user who git knows would."""
    who = {f"GIT_{role}_{what}": "w@example.invalid" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    allow = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}
    env = {**os.environ, **who, **allow}
    done = subprocess.run(["bash", "-ec", script], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commit(tree: Repo, base: str | None = None, **given: Any) -> repo.Commit:
    """A session's commit, made on the commit that is checked out."""
    base = tree.head() if base is None else base
    options = {"title": "Do it", "body": "It is done.", "trailers": TRAILERS, "max_size": 1000}
    return tree.commit(base, "main", **{**options, **given})


def save(git: Any, root: Path, *names: str, content: str | bytes = "x\n") -> str:
    """The user's commit of some files, and of all else."""
    write(root, *names, content=content)
    sh(root, "git add -Af; git commit -qm x")
    return str(git(root, "rev-parse", "HEAD"))


def changed(tree: Repo) -> set[str]:
    return {*tree.status()}


def picture(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a folder and is no folder: mode and content."""
    found = {os.path.join(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)}
    links = {path: os.fsencode(os.readlink(path)) for path in found if os.path.islink(path)}
    rest = {path: Path(path).read_bytes() for path in found - links.keys() if not os.path.isdir(path)}
    return {os.path.relpath(path, folder): (os.lstat(path).st_mode, text) for path, text in {**links, **rest}.items()}


def files(root: Path) -> set[str]:
    """The names of all that, but for git's own."""
    return {name for name in picture(root) if ".git" not in name.split("/")}


def program(path: Path, text: str) -> Path:
    write(path.parent, path.name, content=f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


PLAIN = {  # commit and branch that are checked out, commit of cco/deep/er: as git's files say
    "true": ("a", "main", "a"),
    "git checkout -q cco/deep/er": ("a", "cco/deep/er", "a"),
    "git checkout -q --detach b": ("b", "", "a"),
    "git worktree add -q ../linked other; cd ../linked": ("b", "other", "a"),
}
ASKED = {  # as git itself says
    "git pack-refs --all; git reset -q --hard b": ("b", "main", "a"),
    "git worktree add -q --detach ../linked b; git pack-refs --all; cd ../linked": ("b", "", "a"),
    "git checkout -q --orphan new": ("", "new", "a"),
    "git symbolic-ref refs/heads/cco/deep/er refs/heads/other; git checkout -q cco/deep/er": ("b", "other", "b"),
    "git symbolic-ref HEAD refs/heads/other; git pack-refs --all": ("b", "other", "a"),
    "git checkout -q other; ln -sf refs/heads/main .git/HEAD": ("a", "main", "a"),
    "mkdir .git/reftable": ("a", "main", "a"),
}


@pytest.mark.parametrize("how", [*PLAIN, *ASKED])
def test_head_and_branches_are_what_git_says_however_it_keeps_them(tree, git, tmp_path, monkeypatch, how):
    commits = {"a": git(tree.root, "rev-parse", "HEAD"), "": ""}
    sh(tree.root, "git commit -q --allow-empty -m b; git branch other; git tag b; git reset -q --hard HEAD~1")
    commits["b"] = git(tree.root, "rev-parse", "other")
    sh(tree.root, f"git branch cco/deep/er; {how}")
    here, asked, ask = Repo(tmp_path / "linked" if "linked" in how else tree.root), list[str](), Repo.git
    assert here.folder() == tree.root / ".git"
    monkeypatch.setattr(Repo, "git", lambda self, *args, **more: asked.append(args[0]) or ask(self, *args, **more))
    head, branch, other = {**PLAIN, **ASKED}[how]
    assert (here.head(), here.branch(), here.head_of("cco/deep/er")) == (commits[head], branch, commits[other])
    assert (bool(asked), here.head_of("gone"), here.head_of("cco")) == (how in ASKED, "", "")


def test_what_git_cannot_say_is_an_error_that_names_the_folder(tree, tmp_path):
    (tree.root / ".git/refs/heads/main").write_text("")  # as a power cut leaves it
    for root, look, reason in ((tree.root, Repo.head, "No such ref"), (tmp_path, Repo.status, "not a git repository")):
        with pytest.raises(GitError, match=f"{root}: .*{reason}") as caught:
            look(Repo(root))
        assert caught.value.code == 4
    (tree.root / ".git/HEAD").write_bytes(b"ref: refs/heads/\0x\n")
    with pytest.raises(GitError):
        tree.head()


def test_every_kind_of_work_tree_is_switched_to_a_branch_and_committed_in(tree, empty, tmp_path):
    sh(tree.root, "git worktree add -q -b linked ../linked; git clone -q . ../origin")
    sh(tree.root, "git submodule --quiet add ../origin module; git commit -qm x; git checkout -q --detach")
    assert (empty.head(), empty.branch(), empty.folder()) == ("", "main", empty.root / ".git")
    for number, here in enumerate([tree, empty, Repo(tmp_path / "linked"), Repo(tree.root / "module")]):
        branch = f"work-{number}"
        write(here.root, branch)  # a file of the same name
        for _ in range(2):
            here.switch(branch)
            assert here.branch() == branch
        assert here.commit(here.head(), branch, "t", "b", TRAILERS, 1000).changed == [branch]
        assert (here.branch(), changed(here), here.iterations("api")) == (branch, set(), [(1, here.head())])
    tree.switch("main")
    assert (tree.branch(), changed(tree)) == ("main", {"module"})


CHANGES = """
rm -r deleted folder linked 'to a link'; echo a file now > folder; ln -s src linked; ln -s /etc 'to a link'
ln -s nowhere dangling; chmod +x executable; mkdir src; printf '\\0\\377' | tee changed > src/file
git mv moved 'moved away'; git rm -q --cached unstaged; echo x > staged; git add staged
"""


def test_everything_that_changed_is_named_and_in_one_commit(tree, git):
    before = ["deleted", "changed", "executable", "to a link", "folder/file", "linked/file", "moved"]
    base = save(git, tree.root, *before, "unstaged")
    assert tree.status() == {}
    sh(tree.root, CHANGES)
    expected = {*before, "folder", "linked", "dangling", "src/file", "moved away", "staged"}
    assert changed(tree) == expected | {"unstaged"}
    assert (tree.status()["deleted"], tree.status()["dangling"]) == (".D", "??")
    made = commit(tree, base)
    assert ({*made.changed}, made.omitted) == (expected, {})
    assert (made.sha, git(tree.root, "rev-parse", "HEAD^@"), changed(tree)) == (tree.head(), base, set())
    modes = {line.split("\t")[1]: line[:6] for line in git(tree.root, "ls-tree", "HEAD").splitlines()}
    assert {modes.pop(name) for name in ("to a link", "dangling", "linked")} == {"120000"}
    assert (modes["executable"], modes["folder"]) == ("100755", "100644")
    assert git(tree.root, "status", "--porcelain") == ""


def test_files_of_any_name_are_committed_or_left_out_with_the_reason(tree, git, tmp_path, fresh_mask):
    write(tree.root, *NAMES)
    assert changed(tree) == {*commit(tree).changed} == {*NAMES}
    assert changed(tree) == set()
    write(tree.root, "README.md", *NAMES, content="x" * 1001)
    write(tree.root, "small", content="x" * 1000)
    for expected in (["small"], []):
        made = commit(tree)
        assert (made.changed, {*made.omitted}) == (expected, {*NAMES, "README.md"})
    assert made.omitted["*"] == "1001 bytes are more than claude_code.max_file_size allows (1000)"
    assert (tree.root / "*").read_text() == "x" * 1001
    log.register_secret(SECRET)
    write(tmp_path, "outside", content=SECRET)
    write(tree.root, "config.ini", *NAMES, content=f"[db]\npassword = {SECRET}\n")
    (tree.root / "link").symlink_to(tmp_path / "outside")  # a link is committed, not what it leads to
    made = commit(tree, title=f"Log in with {SECRET}", body=f"I used {SECRET}.\n" + "x" * 3975 + SECRET)
    assert (made.changed, made.omitted.pop("README.md")[:4]) == (["link"], "1001")
    assert made.omitted == dict.fromkeys(["config.ini", *NAMES], "it holds a known secret")
    assert SECRET[:8] not in git(tree.root, "log", "-1", "--format=%B")


def test_the_first_commit_can_be_made_by_whoever_git_knows_and_else_by_the_kit(empty, git):
    assert (commit(empty, ""), {*empty.statistics("", "").values()}) == (repo.Commit(""), {0})
    assert (empty.iterations("api"), empty.commit_after("", "api", 1), empty.diff("", "")) == ([], None, "")
    assert empty.files("") == {}
    write(empty.root, "a")
    sh(empty.root, "git commit -q --allow-empty -m mine")
    made = commit(empty, "")
    assert (made.changed, git(empty.root, "log", "--name-only", "--format=%an")) == (["a"], "CCO\n\na")
    assert empty.commit_after("", "api", 1) == made
    authors = {"useConfigOnly": "CCO <cco@localhost>", "name": "CCO <cco@localhost>", "email": "true <true>"}
    for key, author in authors.items():
        git(empty.root, "config", f"user.{key}", "true")
        write(empty.root, key)
        commit(Repo(empty.root))
        assert git(empty.root, "log", "-1", "--format=%an <%ae> %cn <%ce>") == f"{author} {author}"


MINE = f"""
echo 1 > one; git add one; git commit -qm 'mine

{repo.MISSION}: api
{repo.ITERATION}: 7'; echo 2 > two; git add -A; touch three
"""
STAGED = """
echo '*.out' > .git/info/exclude; touch staged forced.out gone; git add -f staged forced.out gone
git rm -q --cached README.md; rm gone; git update-index --skip-worktree staged; echo in the work tree > staged
"""
AS_IT_STANDS = "; echo as it stands > README.md"
LEFT = {  # by a session: script, what is committed of it, what is half done
    "commits": (MINE, ["one", "three", "two"], ""),
    "commits elsewhere": (f"git checkout -q -b feature; {MINE}", ["one", "three", "two"], ""),
    "its branch a link": ("git branch keep; git symbolic-ref refs/heads/main refs/heads/keep; touch one", ["one"], ""),
    "a file named HEAD": ("touch HEAD", ["HEAD"], ""),
    "commits on no branch": (f"git checkout -q --detach; {MINE}", ["one", "three", "two"], ""),
    "staged": (STAGED, ["staged"], ""),
    "to be added": ("echo '*.out' > .git/info/exclude; touch a.out b; git add -fN a.out", ["b"], ""),
    "merge": (f"! git merge other{AS_IT_STANDS}", ["README.md"], "a merge"),
    "cherry-pick": (f"! git cherry-pick other other~1{AS_IT_STANDS}", ["README.md"], "a cherry-pick"),
    "revert": (f"! git revert HEAD~1{AS_IT_STANDS}", ["README.md"], "a revert"),
    "rebase": (f"! git rebase HEAD~1 --exec false{AS_IT_STANDS}", ["README.md"], "a rebase"),
    "am": (f"! git am ../0001-theirs.patch{AS_IT_STANDS}", ["README.md"], "a rebase"),
}
DIVERGED = """
git checkout -q -b other; echo theirs > README.md; git commit -qam theirs; git format-patch -q -1 -o ..
git checkout -q main; echo ours > README.md; git commit -qam ours
"""


@pytest.mark.parametrize(("script", "expected", "half_done"), LEFT.values(), ids=LEFT)
def test_what_is_in_the_work_tree_is_one_commit_whatever_git_was_left_with(tree, git, script, expected, half_done):
    sh(tree.root, DIVERGED)
    base = tree.head()
    assert tree.unfinished() == []
    sh(tree.root, script)
    assert {half_done} - {""} <= {*tree.unfinished()}
    made = commit(tree, base)
    assert (made.changed, git(tree.root, "rev-parse", "HEAD^@").split(), tree.branch()) == (expected, [base], "main")
    assert (tree.head(), changed(tree), tree.unfinished()) == (made.sha, set(), [])
    assert tree.iterations("api") == [(1, made.sha)]
    assert git(tree.root, "status", "--porcelain") == ""
    for name in expected:
        assert git(tree.root, "show", f"HEAD:{name}") == (tree.root / name).read_text().strip()


def test_a_head_without_the_accepted_commit_is_refused(tree):
    write(tree.root, "accepted")
    base = commit(tree).sha
    for how in ("--orphan other", f"--detach {base}~1"):
        sh(tree.root, f"git checkout -qf {how}")
        before = (tree.head(), tree.branch())
        with pytest.raises(GitError, match="moved to a commit without the accepted one: git checkout main"):
            commit(tree, base)
        assert (tree.head(), tree.branch()) == before


def test_kit_mission_and_folders_of_tools_are_never_committed_and_compiled_files_may_only_be_removed(tree, git):
    write(tree.root, ".cco/.gitignore", content="*\n")
    for how in ("true", "git add -f .; git commit -qm 'all of it'"):
        base = tree.head()
        write(tree.root, *OWN, "a/b/c", "kit2/own", "missions/api.yaml.bak", content=how)
        write(tree.root, "src/__pycache__/x.pyc", "new.pyc", ".pytest_cache/x")
        assert changed(tree) == {"a/b/c", "kit2/own", "missions/api.yaml.bak"}
        sh(tree.root, how)
        made = commit(tree, base)
        assert made.changed == ["a/b/c", "kit2/own", "missions/api.yaml.bak"]
        assert {*git(tree.root, "ls-tree", "-r", "--name-only", "HEAD").split()} == {"README.md", *made.changed}
        tools = [".claude/settings.json", "a/.claude/x", "a/b/.cco/lock"]
        assert made.omitted == dict.fromkeys(tools, "a tool's own settings")
        assert all((tree.root / name).read_text() == how for name in OWN)
    compiled = ["src/__pycache__/a.pyc", "src/__pycache__/b.pyc"]
    save(git, tree.root, *OWN, "old.pyc", compiled[0], content="before\n")  # the user tracks them
    write(tree.root, "work", *OWN[1:], "new.pyc", *compiled, content="after\n")
    sh(tree.root, "rm kit/cco.py old.pyc; git add -Af .")
    assert commit(tree).changed == ["old.pyc", "work"]
    assert {git(tree.root, "show", f"HEAD:{name}") for name in [*OWN, compiled[0]]} == {"before"}


def test_a_submodule_is_committed_as_its_commit_and_what_cannot_be_committed_does_not_keep_the_rest_out(tree):
    sh(tree.root, "git clone -q . ../origin; git submodule --quiet add ../origin module; git commit -qm x")
    assert tree.submodules() == [tree.root / "module" / ".git"]
    write(tree.root, "module/README.md", content="changed\n")
    assert commit(tree) == repo.Commit(tree.head(), [], {"module": OWN_REPOSITORY})
    sh(tree.root / "module", "git commit -qam changed")
    assert commit(tree).changed == ["module"]
    sh(tree.root, "git submodule --quiet deinit -f module")
    assert tree.submodules() == []
    write(tree.root, "nested/x", "a", "z")
    sh(tree.root, "git init -q nested; git -C nested add x; git -C nested commit -qm x; git add nested")
    sh(tree.root, "rm README.md; mkfifo README.md")
    left_out = {"nested": OWN_REPOSITORY, "README.md": "it cannot be read"}
    assert commit(tree) == repo.Commit(tree.head(), ["a", "z"], left_out)


MESSAGES = [  # title, subject, report
    ("# not a comment", "# not a comment", "It was\n\n  indented.\n"),
    ("two\nlines\tand  spaces", "two lines and spaces", "\x1b[2J \x00 half \ud83d \udcff"),
    ("red \x1b[31mred\x00\u202e", "red  [31mred", "---\ndiff --git a/x b/x"),
    (" \n ", "Work on the mission", "a line\n" * 500_000),
    ("€" * 99_000, "€" * 72, f"done\r\n\r\n{repo.MISSION}: api\r{repo.ITERATION}: 99\n\n"),
    ("CCO-Iteration: 99", "CCO-Iteration: 99", f"{repo.MISSION}: api\n{repo.ITERATION}: 99"),
]


def test_a_message_is_a_short_title_the_report_and_trailers_whatever_the_worker_says(tree, git):
    for number, (title, subject, body) in enumerate(MESSAGES):
        write(tree.root, f"{number}")
        commit(tree, title=title, body=body)
        message = git(tree.root, "log", "-1", "--format=%B")
        assert message.startswith(f"{subject}\n\n    ")
        assert message.endswith("\n\nCCO-Mission: api\nCCO-Iteration: 1")
        assert (len(message) < 12_000, message.replace("\n", "").isprintable()) == (True, True)
        assert number or "\n\n    It was\n\n      indented.\n\n" in message
    assert {number for number, _ in tree.iterations("api")} == {1}


HOOKS = "pre-commit prepare-commit-msg commit-msg post-commit post-checkout post-index-change reference-transaction"
COMMANDS = "core.pager pager.log pager.diff pager.status core.editor diff.external diff.spy.command diff.spy.textconv"
COMMANDS += " trailer.spy.command trailer.CCO-Mission.cmd core.alternateRefsCommand gpg.program core.fsmonitor"
PLANTED = "core.hooksPath=HOOKS core.untrackedCache=true commit.gpgSign=true user.signingKey=x log.showSignature=true"
PLANTED += " gc.auto=1 gc.autoDetach=false maintenance.auto=true alias.status=!SPY alias.commit=!SPY alias.diff=!SPY"
USUAL = """
color.ui=always color.status=always color.diff=always core.quotePath=false core.commentChar=; diff.renames=copies
diff.orderFile=/dev/null diff.statGraphWidth=5 log.date=human log.decorate=full log.showRoot=false format.pretty=oneline
status.showUntrackedFiles=no status.branch=true status.short=true status.showStash=true core.autocrlf=true
core.safecrlf=true trailer.separators== grep.patternType=fixed commit.cleanup=scissors commit.verbose=true
commit.template=/dev/null i18n.commitEncoding=ISO-8859-1 log.diffMerges=on i18n.logOutputEncoding=ISO-8859-1
index.version=4 diff.wordRegex=. diff.submodule=log core.splitIndex=true submodule.recurse=true trailer.where=start
trailer.ifexists=doNothing core.logAllRefUpdates=false diff.mnemonicPrefix=true feature.manyFiles=true
"""
PLACES = "core.worktree=/tmp core.bare=true"
PROGRAMS = PLANTED + "".join(f" {name}=SPY" for name in COMMANDS.split())


VARIABLES = """
GIT_DIR=OTHER/.git GIT_WORK_TREE=OTHER GIT_INDEX_FILE=OTHER/.git/index GIT_OBJECT_DIRECTORY=OTHER/.git/objects
GIT_CEILING_DIRECTORIES=/ GIT_NAMESPACE=other GIT_PREFIX=sub/ GIT_COMMON_DIR=OTHER/.git GIT_CONFIG_COUNT=1
GIT_CONFIG_KEY_0=core.bare GIT_CONFIG_VALUE_0=true GIT_CONFIG_PARAMETERS='core.bare=true' GIT_CONFIG_GLOBAL=/missing
GIT_AUTHOR_DATE=nonsense GIT_AUTHOR_NAME=Mallory GIT_COMMITTER_EMAIL=<> GIT_EXTERNAL_DIFF=false GIT_PAGER=false
GIT_LITERAL_PATHSPECS=1 GIT_TRACE=1 LC_ALL=de_DE.UTF-8 LANGUAGE=de OPENROUTER_API_KEY=a-secret-of-the-kit
"""


@pytest.mark.parametrize("planted", [PLACES, PROGRAMS, USUAL, ""], ids=["places", "programs", "usual", "variables"])
def test_no_setting_variable_or_program_but_the_kits_own_runs_or_counts(tree, git, tmp_path, monkeypatch, planted):
    sh(tree.root, "git clone -q . ../other")
    spied, seen = tmp_path / "spied", tmp_path / "seen"
    spy = program(tmp_path / "spy", f'echo "$0" "$@" >> "{spied}"; exit 1')
    for folder in (tmp_path / "hooks", tree.root / ".git/hooks"):
        for name in HOOKS.split():
            program(folder / name, f'echo {name} >> "{spied}"')
    write(tree.root, ".git/info/attributes", content="*.x diff=spy\na filter=env\n")
    for name, _, value in (setting.partition("=") for setting in [*planted.split(), "filter.env.clean=SEEN"]):
        value = value.replace("SEEN", f"env > '{seen}'; cat")
        git(tree.root, "config", name, value.replace("SPY", str(spy)).replace("HOOKS", str(tmp_path / "hooks")))
    spied.unlink(missing_ok=True)
    with monkeypatch.context() as surrounding:
        for name, _, value in (variable.partition("=") for variable in VARIABLES.split() if not planted):
            surrounding.setenv(name, value.replace("OTHER", str(tmp_path / "other")))
        tree = Repo(tree.root, marker="the marker")
        assert changed(tree) == set()
        tree.switch("elsewhere")
        tree.switch("main")
        base, expected = tree.head(), ["README.md", "a", "b.x", "tests/test_a.py"]
        write(tree.root, *expected, content="changed\n")
        write(tree.root, ".vscode", content="")
        (tree.root / ".vscode").chmod(0o444)  # a placeholder
        assert Protected(tree, ["READ*"], base).changes() == {"README.md": "changed"}
        made = commit(tree, base)
        assert (made.changed, made.omitted, tree.branch(), changed(tree)) == (expected, {}, "main", set())
        assert (tree.iterations("api")[0], tree.commit_after(base, "api", 1)) == ((1, made.sha), made)
        statistics = {"files_modified": 4, "lines_of_code_added": 4, "tests_created": 1}
        assert (tree.statistics(base, made.sha), [*tree.files(made.sha)]) == (statistics, expected)
        assert tree.diff(base, made.sha).splitlines()[-1] == "+changed"
        tree.remember({"api/head": made.sha, "api/best": made.sha})
        assert tree.git("rev-parse", "refs/cco/api/head", "refs/cco/api/best").split() == [made.sha] * 2
        assert tree.restore(base, "back", "api", ["tests"]) != made.sha
    assert not spied.exists(), spied.read_text()
    assert git(tree.root, "log", "-1", "--format=%an <%ce>", made.sha) == "Test <test@example.invalid>"
    assert git(tmp_path / "other", "log", "--format=%s") == "first"
    assert "CCO_RUN=the marker\n" in seen.read_text() and "a-secret-of-the-kit" not in seen.read_text()


def test_only_the_locks_of_a_dead_git_and_the_placeholders_of_a_killed_sandbox_are_removed(tree, git, tmp_path, capsys):
    need(proc.LINUX, "only Linux says whether a git is at work")
    sh(tree.root, "git worktree add -q -b linked ../linked")
    for here in (Repo(tmp_path / "linked"), tree):
        for name in ("refs/cco/demo/head.lock", "index.lock", "HEAD.lock", "refs/heads/main.lock"):
            lock = (here.root / git(here.root, "rev-parse", "--git-path", name)).resolve()
            write(lock.parent, lock.name)
            here.remove_stale_locks()
            assert f"removed {lock}, " in capsys.readouterr().err
    placeholders = [".mcp.json", ".bash_profile", ".claude/commands", ".claude/settings.json"]
    write(tree.root, ".git/info/exclude", content=".claude\n")
    write(tree.root, *placeholders, ".bashrc", ".profile", "sub/.mcp.json", "other", "yarn.lock", content="")
    write(tree.root, ".gitconfig", ".idea/workspace.xml")
    sh(tree.root, "git add -f .bashrc; ln -s other .zshrc; chmod 444 .claude/* .[b-m]*[a-z] sub/.mcp.json other")
    rest = [".bashrc", "sub/.mcp.json", "other", ".gitconfig", ".idea/workspace.xml", ".profile", ".zshrc", "yarn.lock"]
    tree.remove_placeholders()
    assert [name for name in [*placeholders, *rest] if os.path.lexists(tree.root / name)] == rest


def test_iterations_are_found_again_by_mission_and_the_commit_that_was_made_before_a_crash(tree):
    odd = ("x", "", "-1", "1.5", "²", "9" * 5000, "1\n 2", "1\x1f2", "1\u20282", "1, 2", "0x10")
    pairs = [("api", "1"), ("api", "10"), ("api", "2"), ("api-2", "7"), ("ap", "99"), *(("api", text) for text in odd)]
    for mission, number in pairs:
        write(tree.root, ".git/message", content=f"x\n\n{repo.MISSION}: {mission}\n{repo.ITERATION}: {number}")
        sh(tree.root, "git commit -q --allow-empty --cleanup=verbatim -F .git/message")
    found = {name: [number for number, _ in tree.iterations(name)] for name in ("api", "api-2", "ap", "a")}
    assert found == {"api": [2, 10, 1], "api-2": [7], "ap": [99], "a": []}
    base = tree.head()
    write(tree.root, "a", "ümläut\n€")
    made = commit(tree)
    assert tree.commit_after(base, "api", 1) == made
    for other in ((base, "api", 2), (base, "api-2", 1), (made.sha, "api", 1), ("", "api", 1)):
        assert tree.commit_after(*other) is None


def test_files_and_diff_of_a_commit_show_the_work_and_nothing_of_the_kit(tree, git):
    first = tree.head()
    sh(tree.root, "git clone -q . ../origin; git submodule --quiet add ../origin module; ln -s README.md link")
    head = save(git, tree.root, "kit/cco.py", "missions/api.yaml", ".cco/x", "a/.claude/x", "src/app.py", *NAMES)
    write(tree.root, "uncommitted")
    found = tree.files(head)
    assert {*found} == {"README.md", ".gitmodules", "src/app.py", *NAMES}
    assert tree.read(found["README.md"]) == "# a project"
    assert tree.read(git(tree.root, "hash-object", "-w", "/bin/sh")) is None
    assert "b/src/app.py" in (shown := tree.diff(first, head))
    assert not any(word in shown for word in ("kit/", "api.yaml", ".claude", "uncommitted"))
    assert "+# a project" in tree.diff("", first)


def test_the_files_are_those_of_the_earlier_commit_and_the_later_one_stays_an_ancestor(tree, git):
    def content(*names: str) -> set[str]:
        return {(tree.root / name).read_text() for name in names}

    ours = ["kit/cco.py", "changed", "tests/a.py", "deep/x.lock", *NAMES]
    best = save(git, tree.root, *ours, "deleted", "folder/x", content="1\n")
    sh(tree.root, "rm -r deleted folder; chmod +x changed")
    worse = save(git, tree.root, *ours, "folder", "tests/b.py", content="2\n")
    write(tree.root, "untracked", ".claude/settings.json", ".cco/api.json")
    with pytest.raises(GitError, match="git restore"):
        tree.restore("0" * 40, "x", "api", [])
    made = tree.restore(best, "Return to iteration 3", "api", [])
    assert (made, git(tree.root, "rev-parse", "HEAD^@").split()) == (tree.head(), [worse])
    assert content("changed", "deleted", "folder/x", "tests/a.py", "deep/x.lock", *NAMES) == {"1\n"}
    assert (os.access(tree.root / "changed", os.X_OK), (tree.root / "tests/b.py").exists()) == (False, False)
    assert content("kit/cco.py") == {"2\n"}
    assert content("untracked", ".claude/settings.json", ".cco/api.json") == {"x\n"}
    tree.restore(worse, "x", "api", ["./tests/a*", "**/*.lock", "*.py"])
    assert (content("changed"), content("tests/a.py", "deep/x.lock")) == ({"2\n"}, {"1\n"})
    shown = git(tree.root, "log", "-1", "HEAD~1", f"--format=%s %(trailers:key={repo.MISSION},valueonly)")
    assert (shown, tree.restore(tree.head(), "x", "api", [])) == ("Return to iteration 3 api", tree.head())


NAMED = [f"tests/acc/names/{name}" for name in NAMES]


@pytest.fixture
def accepted(tree, git) -> Repo:
    """A project with acceptance tests, committed."""
    write(tree.root, ".gitignore", content="*.ign\n.cco\n")
    write(tree.root, "tests/acc/deep/data.bin", content=bytes(range(256)))
    sh(tree.root, "cd tests/acc; ln -s a.py link; echo true > run.sh; chmod +x run.sh")
    write(tree.root, *NAMED, content=b"\r\n\0\xff$Id$")
    save(git, tree.root, "tests/acc/a.py", "tests/acc/b.py", "src/app.py", content="assert a\n")
    return tree


A, DATA = "tests/acc/a.py", "tests/acc/deep/data.bin"
CHANGED = {A: "changed"}
DELETED = dict.fromkeys([*NAMED, A, DATA, "tests/acc/b.py", "tests/acc/link", "tests/acc/run.sh"], "deleted")
EDIT = f"echo 'assert True' > {A}"
SWAP = f"touch -r {A} ../time; echo 'assert b' > {A}; touch -r ../time {A}"
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "changed": (EDIT, CHANGED),
    "same size and time": (SWAP, CHANGED),
    "any name": ("find tests/acc/names -type f -exec cp README.md {} ';'", dict.fromkeys(NAMED, "changed")),
    "executable": (f"chmod +x {A}", CHANGED),
    "not executable": ("git config core.fileMode false; chmod -x tests/acc/run.sh", {"tests/acc/run.sh": "changed"}),
    "new": ("touch tests/acc/conftest.py", {"tests/acc/conftest.py": "new"}),
    "new and ignored": ("mkdir tests/acc/x.ign; touch tests/acc/x.ign/x", {"tests/acc/x.ign/x": "new"}),
    "ignore rules": ("echo '*' | tee .gitignore > .git/info/exclude; touch tests/acc/n", {"tests/acc/n": "new"}),
    "relinked": ("ln -sf ../../src/app.py tests/acc/link", {"tests/acc/link": "changed"}),
    "link for folder": ("cd tests/acc; rm -r deep; ln -s ../../src deep", {DATA: "deleted", "tests/acc/deep": "new"}),
    "file for folder": ("cd tests/acc; rm -r deep; echo x > deep", {DATA: "deleted", "tests/acc/deep": "new"}),
    "all deleted": ("rm -r tests", DELETED),
    "link for all": ("rm -r tests/acc; ln -s /etc tests/acc", DELETED),
    "parent renamed and linked": ("mv tests other; ln -s other tests", DELETED),
    "skip-worktree": (f"{EDIT}; git update-index --skip-worktree {A}", CHANGED),
    "assume-unchanged": (f"{EDIT}; git update-index --assume-unchanged {A}", CHANGED),
    "staged": (f"{EDIT}; git add -A", CHANGED),
    "committed": (f"{EDIT}; git commit -qam x", CHANGED),
    "into the kit's index": (f"{EDIT}; GIT_INDEX_FILE=.cco/protected.index git add -f {A}", CHANGED),
    "without the kit's index": (f"{EDIT}; rm -r .cco", CHANGED),
    "config": (f"git config core.checkStat minimal; git config core.trustctime false; {SWAP}", CHANGED),
    "a repository": ("git init -q tests/acc; touch tests/acc/n", {"tests/acc/n": "new"}),
}


@pytest.mark.parametrize(("change", "expected"), WAYS.values(), ids=WAYS.keys())
def test_every_change_of_a_protected_file_is_named_and_restored(accepted, change, expected):
    protected, root = Protected(accepted, ["tests/acc/**"], accepted.head()), accepted.root
    assert protected.changes() == {}
    before, work = picture(root / "tests"), picture(root / "src")
    sh(root, change)
    assert protected.changes() == expected
    protected.restore(expected, root / ".cco/kept")
    assert protected.changes() == {}
    changed = [name for name, what in expected.items() if what != "deleted"]
    assert all(any(os.path.lexists(kept / name) for kept in root.glob(".cco/kept/*")) for name in changed)
    shutil.rmtree(root / "tests/acc/.git", ignore_errors=True)
    assert (picture(root / "tests"), picture(root / "src")) == (before, work)


def test_what_git_does_not_track_is_named_and_left_alone_also_after_a_crash(accepted, git):
    write(accepted.root, "tests/acc/mine.py", "tests/acc/node_modules/x.ign", "tests/other/y")
    sh(accepted.root, "git clone -q . ../origin; git submodule --quiet add ../origin tests/acc/sub; git commit -qm x")
    globs = ["tests/acc/**", "nothing/**", "tests/other"]
    protected = Protected(accepted, globs, accepted.head())
    named = ["tests/acc/mine.py", "tests/acc/node_modules/x.ign", "tests/other/y"]
    assert protected.untracked() == ["nothing/**", "tests/other", "tests/acc/sub", *named]
    write(accepted.root, "tests/acc/mine.py", "tests/acc/sub/README.md", content="changed\n")
    assert protected.changes() == {}
    write(accepted.root, "tests/acc/planted.py", ".cco/protected.index.lock")
    assert Protected(accepted, globs, accepted.head(), anew=False).changes() == {"tests/acc/planted.py": "new"}
    assert Protected(accepted, globs, accepted.head()).changes() == {}
    commit = save(git, accepted.root, A, content="the user's\n")
    assert (protected.changes()[A], Protected(accepted, globs, commit).changes()) == ("changed", {})
    cached, mission = "tests/acc/__pycache__/tracked.pyc", "tests/acc/mission.yaml"
    here = Repo(accepted.root, [accepted.root / mission])
    protected = Protected(here, ["tests/**", "**/*.pyc"], save(git, here.root, mission, cached))
    write(here.root, mission, "tests/acc/__pycache__/a.pyc", "tests/.pytest_cache/v/x", content="2\n")
    assert protected.changes() == {}
    write(here.root, cached, "tests/acc/my__pycache__/x", content="2\n")
    assert {*protected.changes()} == {cached, "tests/acc/my__pycache__/x"}


IN_DIR, DEEP = ["dir/a.py", "dir/x", "dir/deep/b.lock", "dir/deep/c.txt"], ["dir/deep/b.lock", "dir/deep/c.txt"]
GLOBS = {  # the files that it means, what a sandbox makes read-only
    "dir/**": (IN_DIR, ["dir"]),
    "./dir/*": (IN_DIR, IN_DIR),
    "**/*.py": (["a.py", "dir/a.py", ".hidden/a.py"], ["a.py", "dir/a.py", ".hidden/a.py"]),
    "**/deep/**": (DEEP, DEEP),
    "[ab].*": (["a.py", "b.lock"], ["a.py", "b.lock"]),
    ".git/**": ([], [".git"]),
}


def test_a_glob_means_these_files_those_that_are_there_and_those_to_come(tree, git):
    names = ["a.py", "b.lock", "c.txt", *IN_DIR, ".hidden/a.py"]
    commit = save(git, tree.root, *names)
    for glob, (_, places) in GLOBS.items():
        assert {*Protected(tree, [glob], commit).paths()} == {tree.root / place for place in places}
    write(tree.root, *names, *(f"{name}.new.py" for name in names), "README.md", content="changed\n")
    for glob, (expected, _) in GLOBS.items():
        changes = Protected(tree, [glob], commit, anew=False).changes()
        assert {name for name, what in changes.items() if what == "changed"} == {*expected}
        if glob.endswith("/**"):
            assert {name for name, what in changes.items() if what == "new"} == {f"{name}.new.py" for name in expected}


def test_every_change_of_the_kit_is_named_and_restored_by_content(tmp_path, monkeypatch):
    kit = tmp_path / "tools" / "cco"
    write(kit, "cco.py", "repo.py", "state.py", "Makefile", "requirements.txt", "prompts/rules.md", "schema/a.json")
    write(kit, "extras/a.py", "extras/deep/b.py", "tests/test_cco_x.py", ".venv/x.py")
    watched = Kit(kit)
    with monkeypatch.context() as context:  # what did not change is not read again
        context.setattr(Path, "read_bytes", None)
        assert watched.changes() == {}
    write(kit, "cron.log", "missions/mine.yaml", ".venv/y.py", "tests/x.py", ".cco/x.py", "notes.md", "docs/x.py")
    write(kit, "__pycache__/repo.cpython.pyc", "extras/__pycache__/x.pyc")
    assert watched.changes() == {}  # the kit runs none of these
    before = picture(kit)
    new = ["json.py", "yaml/__init__.py", "GNUmakefile", "schema/new.json", "os.pyc", "re.abi3.so"]
    write(kit, "prompts/rules.md", *new, content="planted\n")
    sh(kit, "rm repo.py; ln -sf /etc/passwd state.py; chmod 600 cco.py; mv extras/deep extras/a.py ..; touch Makefile")
    sh(kit, "rm requirements.txt; mkfifo requirements.txt")
    deleted, altered = ["repo.py", "extras/a.py", "extras/deep/b.py"], ["prompts/rules.md", "state.py", "cco.py"]
    expected = {**dict.fromkeys(deleted, "deleted"), **dict.fromkeys(new, "new"), "requirements.txt": "changed"}
    assert watched.changes() == expected | dict.fromkeys(altered, "changed")
    watched.restore(watched.changes(), tmp_path / "kept")
    assert (watched.changes(), picture(kit)) == ({}, before)
    assert next((tmp_path / "kept").glob("*/yaml/__init__.py")).read_text() == "planted\n"


def test_only_what_is_committed_is_checked_out_with_branches_tags_and_remotes_to_compare_with(project, git, tmp_path):
    sh(project, 'git clone -q --bare . \'../the "origin"\'; git remote add origin "$PWD/../the \\"origin\\""')
    sh(project, "git fetch -q origin; git tag v1; git pack-refs --all; ln -s run.sh link; install -T /dev/null run.sh")
    commit = save(git, project, ".gitignore", "src/app.py", *NAMES, content="*.log\n.venv/\n")
    write(project, "untracked", "x.log", ".venv/bin/python", "src/app.py", content="not committed\n")
    sh(project, "git branch other v1; git add untracked")
    before = git(project, "status", "--porcelain"), git(project, "for-each-ref"), files(project / ".git")
    checkout = Checkout(Repo(project), commit, tmp_path)
    root = checkout.root
    assert files(root) == {".gitignore", "README.md", "src/app.py", "run.sh", "link", *NAMES}
    assert (root / "src/app.py").read_text() == "*.log\n.venv/\n"
    assert (os.access(root / "run.sh", os.X_OK), os.readlink(root / "link")) == (True, "run.sh")
    assert (git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")) == (commit, "")
    assert checkout.sources == [project / ".git" / "objects"]
    for base in ("other", "origin/main", "v1"):
        assert git(root, "diff", "--name-only", base, "HEAD", "--", "src") == "src/app.py"
    assert git(root, "describe", "--tags") == f"v1-1-g{commit[:7]}"
    sh(root, "git fetch -q origin")
    repo.delete(root)
    assert (git(project, "status", "--porcelain"), git(project, "for-each-ref"), files(project / ".git")) == before


KINDS = {
    "worktree": "git worktree add -q -b other ../source",
    "sparse": "git clone -q . ../source; git -C ../source sparse-checkout set wanted",
    "shallow": 'git clone -q --depth=1 "file://$PWD" ../source',
    "sha256": "git init -q --object-format=sha256 ../source; cp -r README.md *wanted ../source",
    "partial": 'git config uploadpack.allowFilter 1; git clone -q --filter=blob:none --sparse "file://$PWD" ../source',
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_repository_is_checked_out_whole(project, empty, git, tmp_path, kind):
    commit = save(git, project, "wanted/a", "unwanted/b")
    sh(project, KINDS[kind])
    if kind in ("worktree", "sha256"):
        commit = save(git, tmp_path / "source", "wanted/c")
    checkout = Checkout(Repo(tmp_path / "source"), commit, tmp_path)
    expected = {"README.md", "wanted/a", "unwanted/b", *["wanted/c"] * (kind in ("worktree", "sha256"))}
    assert (files(checkout.root), git(checkout.root, "log", "--format=%H", "-1")) == (expected, commit)
    assert files(Checkout(empty, "", checkout.root / ".git").root) == set()


RULES = """
echo made > .git/info/exclude; echo y text eol=crlf > .git/info/attributes; git config filter.x.smudge 'sed s/x/other/'
echo 'echo other > y' > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout
echo other > z; git replace $(git rev-parse HEAD:y) $(git hash-object -w z)
git config --global filter.up.smudge 'tr a-z A-Z'; git config --global filter.up.clean 'tr A-Z a-z'
"""


def test_the_users_settings_count_those_of_the_git_folder_do_not_and_lfs_objects_are_at_hand(project, git, tmp_path):
    sh(project, RULES.splitlines()[-1])
    commit = save(git, project, "x", "y", "up", ".gitattributes", content="x filter=x\nup filter=up\n")
    sh(project, RULES)
    write(project, ".git/lfs/objects/x")
    checkout = Checkout(Repo(project), commit, tmp_path)
    x, y, up = ((checkout.root / name).read_text() for name in ("x", "y", "up"))
    assert (x, y, up) == ("x filter=x\nup filter=up\n", x, x.upper())
    write(checkout.root, "made")
    assert git(checkout.root, "status", "--porcelain") == "?? made"
    assert git(checkout.root, "config", "lfs.storage") == str(project / ".git/lfs")
    assert checkout.sources == [project / ".git/objects", project / ".git/lfs"]


def test_submodules_are_at_the_committed_state_without_any_network_nested_ones_too(project, git, tmp_path):
    sh(project, "git clone -q . ../inner; git clone -q . ../outer")
    sh(project, 'cd ../outer; git submodule --quiet add "$PWD/../inner" sub; git commit -qm x')
    sh(project, "git submodule --quiet add ../outer 'libs/a module'; git commit -qm x")
    sh(project, "git submodule --quiet update --init --recursive; rm -rf ../inner ../outer")
    module = project / "libs/a module"
    sh(module, "echo changed > README.md; git commit -qam 'not committed outside'; touch untracked")
    assert Repo(project).submodules() == [module / ".git", module / "sub/.git"]
    before = picture(project)
    checkout = Checkout(Repo(project), git(project, "rev-parse", "HEAD"), tmp_path)
    expected = {".gitmodules", "README.md", "libs/a module/README.md", "libs/a module/.gitmodules"}
    assert files(checkout.root) == expected | {"libs/a module/sub/README.md"}
    assert (checkout.root / "libs/a module/README.md").read_text() == "# a project\n"
    assert (git(checkout.root, "status", "--porcelain"), len(checkout.sources)) == ("", 3)
    assert picture(project) == before


SETUP = """
mkdir -p node_modules/left empty; echo setup | tee node_modules/left/index.js src/app.o src/generated.c > by_setup
ln -s left node_modules/link; rm deleted_by_setup; chmod 444 src/app.o
"""
CHECK = """
chmod 644 src/app.o; echo check | tee src/app.c src/app.o by_setup deleted_by_setup node_modules/left/y src/new
echo forged > node_modules/left/index.js; touch -d 1990-01-01 src/sub/x; rm -r node_modules/link a c empty
mkdir node_modules/link c; ln -s /etc a; touch c/d; git checkout -q -b other; git commit -qam mine
"""
TAKE = "mkdir -p locked/deep/er; touch locked/deep/er/x; chmod 0 locked/deep/er locked/deep locked ."


def test_everything_is_reset_as_setup_left_it_times_included_and_can_be_deleted(project, git, tmp_path):
    write(project, ".gitignore", content="node_modules/\n*.o\n")
    commit = save(git, project, "src/app.c", "src/sub/x", "by_setup", "deleted_by_setup", "a/b", "c")
    checkout = Checkout(Repo(project), commit, tmp_path)
    root = checkout.root
    sh(root, SETUP)
    checkout.keep()
    before = picture(root)
    times = {name: (root / name).lstat().st_mtime_ns for name in before}
    for script in (CHECK, CHECK, TAKE):
        sh(root, script)
        checkout.reset()
        assert (picture(root), {name: (root / name).lstat().st_mtime_ns for name in before}) == (before, times)
        assert ((root / "empty").is_dir(), git(root, "rev-parse", "HEAD")) == (True, commit)
    sh(root, TAKE)
    repo.delete(root)
    assert not os.path.lexists(root)


DEEP_DOWN = f"mkdir it; cd it; {sys.executable} -c \"import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\""


def test_whatever_is_there_can_be_deleted_and_of_temporary_folders_those_of_one_repository(tmp_path, monkeypatch):
    write(tmp_path, "target/precious", "cco-notes/x")
    for make in ("true", "touch it", "ln -s target it", "ln -s nowhere it", "mkfifo it", DEEP_DOWN):
        sh(tmp_path, make)
        repo.delete(tmp_path / "it")
        assert (os.path.lexists(tmp_path / "it"), (tmp_path / "target/precious").exists()) == (False, True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine, other = [repo.scratch("/a/b", name) for name in ("clean", "check")], repo.scratch("/a/c", "clean")
    write(mine[0], "tree/x")
    before = {*tmp_path.iterdir()}
    repo.remove_scratch("/a/b")
    assert (before - {*tmp_path.iterdir()}, other.exists()) == ({*mine}, True)
