"""What a repository is made of, and which commands test, lint and build it, read from the usual files.

    found = toolchain.survey(root, files)       files: the paths that git tracks
    found.line()                                "Python; pytest; pip; test: .venv/bin/python -m pytest; ..."
    toolchain.setup_for(files)                  ("package-lock.json", "npm ci")

Nothing is run, and nothing of a file's text gets into a command: that `npm test` exists is read, not what it does.

What is not covered: whether a command works here, and projects that hide below more than DEEPEST folders.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_READ = 200_000  # bytes of one file that are looked at
MAX_FILES = 24  # files that are read, the nearest to the root first
DEEPEST = 2  # folders above a project's own files
LINE = 300  # characters of the line for a prompt
LANGUAGES = 4  # that are named, the one with most files first
COMMANDS = 3  # of a kind that are named
LOCK_FILES = {  # a checkout without what these name is not ready
    "package-lock.json": "npm ci",
    "npm-shrinkwrap.json": "npm ci",
    "yarn.lock": "yarn install --frozen-lockfile",
    "pnpm-lock.yaml": "pnpm install --frozen-lockfile",
    "bun.lock": "bun install --frozen-lockfile",
    "bun.lockb": "bun install --frozen-lockfile",
    "poetry.lock": "poetry install",
    "Pipfile.lock": "pipenv sync --dev",
    "uv.lock": "uv sync --frozen",
    "pdm.lock": "pdm sync",
    "requirements.txt": "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt",
    "Gemfile.lock": "bundle install",
    "composer.lock": "composer install",
    "mix.lock": "mix deps.get",
}
SUFFIXES = {
    "Python": "py pyi", "TypeScript": "ts tsx mts cts", "JavaScript": "js jsx mjs cjs", "Rust": "rs", "Go": "go",
    "C#": "cs", "F#": "fs", "Java": "java", "Kotlin": "kt kts", "Scala": "scala", "Ruby": "rb", "PHP": "php",
    "Elixir": "ex exs", "Swift": "swift", "Dart": "dart", "C": "c h", "C++": "cc cpp cxx hpp hh", "Vue": "vue",
    "Svelte": "svelte", "Shell": "sh bash",
}  # fmt: skip
LANGUAGE = {f".{suffix}": name for name, suffixes in SUFFIXES.items() for suffix in suffixes.split()}
NODE = {  # here and below: what is depended on, and the framework's name
    "next": "Next.js", "react": "React", "vue": "Vue", "nuxt": "Nuxt", "svelte": "Svelte", "@angular/core": "Angular",
    "express": "Express", "fastify": "Fastify", "@nestjs/core": "NestJS", "electron": "Electron", "vite": "Vite",
    "jest": "Jest", "vitest": "Vitest", "mocha": "Mocha", "@playwright/test": "Playwright", "cypress": "Cypress",
}  # fmt: skip
PYTHON = {
    "django": "Django", "flask": "Flask", "fastapi": "FastAPI", "sqlalchemy": "SQLAlchemy", "pydantic": "Pydantic",
    "celery": "Celery", "numpy": "NumPy", "pandas": "pandas", "torch": "PyTorch", "pytest": "pytest",
}  # fmt: skip
RUST = {"tokio": "Tokio", "axum": "Axum", "actix-web": "Actix Web", "rocket": "Rocket", "clap": "clap"}
GO = {
    "github.com/gin-gonic/gin": "Gin", "github.com/labstack/echo": "Echo", "github.com/gofiber/fiber": "Fiber",
    "github.com/go-chi/chi": "chi", "github.com/spf13/cobra": "Cobra", "google.golang.org/grpc": "gRPC",
}  # fmt: skip
RUBY = {"rails": "Rails", "sinatra": "Sinatra", "rspec": "RSpec", "rspec-rails": "RSpec", "minitest": "Minitest"}
PHP = {"laravel/framework": "Laravel", "symfony/framework-bundle": "Symfony", "phpunit/phpunit": "PHPUnit"}
JAVA = {"spring-boot": "Spring Boot", "quarkus": "Quarkus", "micronaut": "Micronaut", "junit": "JUnit"}
NET = {"Microsoft.NET.Sdk.Web": "ASP.NET Core", "xunit": "xUnit", "NUnit": "NUnit", "MSTest": "MSTest"}
NOT_WRITTEN_HERE = re.compile(r"(^|/)(node_modules|vendor|third_party|dist|\.venv)/")
COMMENT = re.compile(r"(?m)(^|\s)(#|//).*$")
TARGET = re.compile(r"(?m)^([A-Za-z0-9][\w-]*)\s*:(?!=)")
CI_FILE = re.compile(r"\.github/workflows/[^/]+\.ya?ml|\.gitlab-ci\.yml|\.circleci/config\.yml|azure-pipelines\.yml")
CI_COMMANDS = {  # whole commands that are usual in CI files, and what they do
    "cargo clippy": "lint", "go vet ./...": "lint", "golangci-lint run": "lint", "ruff check .": "lint",
    "pre-commit run --all-files": "lint", "dotnet format --verify-no-changes": "lint", "tox": "test", "nox": "test",
}  # fmt: skip
NO_TEST = "no test specified"  # what `npm init` writes where there is none


@dataclass(frozen=True)
class Toolchain:
    """What a repository is made of; empty where nothing usual was found."""

    languages: tuple[str, ...] = ()
    """The one with most files first."""
    frameworks: tuple[str, ...] = ()
    """Names, as people write them."""
    managers: tuple[str, ...] = ()
    """Package managers and build tools."""
    setup: str = ""
    """The shell command that makes a fresh checkout ready."""
    test: tuple[str, ...] = ()
    """Shell commands for the root of the repository."""
    lint: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    def line(self) -> str:
        """All of it on one line of at most LINE characters; "" where nothing was found."""
        commands = {"test": self.test, "lint": self.lint, "build": self.build, "setup": (self.setup,)}
        parts = [", ".join(names) for names in (self.languages, self.frameworks, self.managers)]
        parts += [f"{kind}: {' | '.join(lines)}" if any(lines) else "" for kind, lines in commands.items()]
        whole = "; ".join(part for part in parts if part)
        return whole if len(whole) <= LINE else f"{whole[: LINE - 3]}..."


def survey(root: Path, files: Iterable[str]) -> Toolchain:
    """Look at the usual files among those that git tracks.

    root: the checkout. files: paths relative to it; those that lead out of it are not read.
    """
    paths = sorted((name for name in files if name.isprintable()), key=lambda name: (name.count("/"), name))
    found = _Found(_Tree(root, paths))
    near = [path for path in paths if path.count("/") <= DEEPEST and not NOT_WRITTEN_HERE.search(path)]
    for names, read in READERS:
        done: list[str] = []
        for folder, name in map(os.path.split, near):
            if re.fullmatch(names, name) and not any(f"{folder}/".startswith(above) for above in done):
                read(found, folder, name)
                done.append(f"{folder}/" if folder else "")  # what is below another of its kind is a part of that
    _ci(found)
    named = {kind: tuple(dict.fromkeys(lines))[:COMMANDS] for kind, lines in found.commands.items()}
    lock = setup_for(paths)
    return Toolchain(
        languages=_languages(paths),
        frameworks=tuple(dict.fromkeys(found.frameworks)),
        managers=tuple(dict.fromkeys(found.managers)),
        setup=lock[1] if lock else "",
        **named,
    )


def setup_for(files: Iterable[str]) -> tuple[str, str] | None:
    """The lock file that is nearest to the root, and the command that installs what it names; None without any.

    The command is for the root, whatever folder the file is in.
    """
    locks = [name for name in files if os.path.basename(name) in LOCK_FILES]
    if not locks:
        return None
    name = min(locks, key=lambda name: name.count("/"))
    return name, _inside(os.path.dirname(name), LOCK_FILES[os.path.basename(name)])


def _languages(paths: Sequence[str]) -> tuple[str, ...]:
    ours = (name for name in paths if not NOT_WRITTEN_HERE.search(name))
    known = Counter(LANGUAGE[end] for end in (os.path.splitext(name)[1] for name in ours) if end in LANGUAGE)
    return tuple(name for name, _ in known.most_common(LANGUAGES))


def _inside(folder: str, command: str) -> str:
    """The command for another folder than the root. The name of a folder is a stranger's text."""
    return f"cd -- {shlex.quote(folder)} && {command}" if folder else command


# --------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------


class _Tree:
    """The tracked files, as far as they may be read."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self.root, self.paths, self.names = os.path.realpath(root), paths, frozenset(paths)
        self.texts: dict[str, str] = {}

    def has(self, folder: str, *names: str) -> bool:
        return any(os.path.join(folder, name) in self.names for name in names)

    def text(self, folder: str, name: str) -> str:
        """The beginning of a tracked file; "" for what is missing, no plain file, or one file too many."""
        path = os.path.join(folder, name)
        if path not in self.texts and path in self.names and len(self.texts) < MAX_FILES:
            self.texts[path] = self._read(os.path.realpath(os.path.join(self.root, path)))
        return self.texts.get(path, "")

    def json(self, folder: str, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.text(folder, name))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read(self, path: str) -> str:
        if not path.startswith(os.path.join(self.root, "")):
            return ""
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                return (file.read(MAX_READ) or b"").decode("utf-8", "replace")  # a pipe may have nothing
        except (OSError, ValueError):  # also a folder, or a name that no file can have
            return ""


def _without_waiting(path: str, flags: int) -> int:
    """An `opener` that finds nothing in a pipe which nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass
class _Found:
    """What the readers below have found so far."""

    tree: _Tree
    frameworks: list[str] = field(default_factory=list)
    managers: list[str] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=lambda: {"test": [], "lint": [], "build": []})

    def add(self, folder: str, **commands: str) -> None:
        """Commands of a folder by their kind; an empty one is none."""
        for kind, command in commands.items():
            if command:
                self.commands[kind].append(_inside(folder, command))

    def listed(self, text: str, names: Mapping[str, str]) -> None:
        """Note the frameworks that a text lists."""
        self.frameworks += [shown for name, shown in names.items() if _lists(text, name)]


def _lists(text: str, name: str) -> bool:
    """Whether a text in one of the many forms of dependency lists has this name in it, comments aside."""
    before, after = r"(?:^|[\s\"'>/(])", r"(?![\w.-]*\w)"
    return bool(re.search(before + re.escape(name) + after, COMMENT.sub("", text), re.I | re.M))


def _makefile(found: _Found, folder: str, name: str) -> None:
    targets = set(TARGET.findall(found.tree.text(folder, name)))
    found.managers.append("make")
    test = next((target for target in ("test", "tests", "check") if target in targets), "")
    found.add(
        folder,
        test=f"make {test}" if test else "",
        lint="make lint" if "lint" in targets else "",
        build="make build" if "build" in targets else "",
    )


def _node(found: _Found, folder: str, name: str) -> None:
    tree, package = found.tree, found.tree.json(folder, name)
    parts = (package.get(key) for key in ("dependencies", "devDependencies", "peerDependencies"))
    needed = {key for part in parts if isinstance(part, dict) for key in part}
    scripts = _scripts(package)
    asked = str(package.get("packageManager", "")).partition("@")[0]
    locks = (("yarn.lock", "yarn"), ("pnpm-lock.yaml", "pnpm"), ("bun.lock", "bun"), ("bun.lockb", "bun"))
    by_lock = next((tool for lock, tool in locks if tree.has(folder, lock) or tree.has("", lock)), "npm")
    manager = asked if asked in ("yarn", "pnpm", "bun") else by_lock
    found.managers.append(manager)
    found.frameworks += [shown for key, shown in NODE.items() if key in needed]
    tests = "test" in scripts and NO_TEST not in scripts["test"]
    found.add(folder, test=f"{manager} {'run ' * (manager == 'bun')}test" if tests else "")
    for kind, script in (("lint", "lint"), ("lint", "typecheck"), ("build", "build")):
        if script in scripts:
            found.add(folder, **{kind: f"{manager} run {script}"})


def _scripts(package: Mapping[str, Any]) -> dict[str, str]:
    scripts = package.get("scripts")
    known = scripts.items() if isinstance(scripts, dict) else ()
    return {name: str(body) for name, body in known if body and isinstance(body, (str, list))}


def _python(found: _Found, folder: str, name: str) -> None:
    tree = found.tree
    listed = (
        "pyproject.toml",
        "requirements.txt",
        "requirements-dev.txt",
        "Pipfile",
        "setup.cfg",
        "setup.py",
        "tox.ini",
    )
    texts = {file: tree.text(folder, file) for file in listed}
    text = "\n".join(texts.values())
    tools = (("poetry.lock", "poetry"), ("uv.lock", "uv"), ("pdm.lock", "pdm"), ("Pipfile", "pipenv"))
    manager = next((tool for lock, tool in tools if tree.has(folder, lock)), "")
    manager = manager or ("poetry" if "[tool.poetry]" in texts["pyproject.toml"] else "pip")
    found.managers.append(manager)
    found.listed(text, PYTHON)
    run = ".venv/bin/python -m" if tree.has(folder, "requirements.txt") else "python3 -m"
    run = run if manager == "pip" else f"{manager} run"
    by_pytest = _lists(text, "pytest") or "[tool.pytest" in text or tree.has(folder, "pytest.ini", "conftest.py")
    by_pytest = by_pytest or tree.has(os.path.join(folder, "tests"), "conftest.py")
    by_django = tree.has(folder, "manage.py") and _lists(text, "django")
    python = run.removesuffix(" -m") if manager == "pip" else f"{manager} run python"
    by_ruff = _lists(text, "ruff") or "[tool.ruff" in text or tree.has(folder, "ruff.toml", ".ruff.toml")
    by_flake8 = _lists(text, "flake8") or tree.has(folder, ".flake8")
    found.add(
        folder,
        test=f"{run} pytest" if by_pytest else f"{python} manage.py test" if by_django else "",
        lint=f"{run} ruff check ." if by_ruff else f"{run} flake8" if by_flake8 else "",
    )


def _rust(found: _Found, folder: str, name: str) -> None:
    found.managers.append("cargo")
    found.listed(found.tree.text(folder, name), RUST)
    found.add(folder, test="cargo test", build="cargo build")


def _go(found: _Found, folder: str, name: str) -> None:
    found.managers.append("go")
    text = found.tree.text(folder, name)
    found.frameworks += [shown for module, shown in GO.items() if module in text]
    lints = found.tree.has(folder, ".golangci.yml", ".golangci.yaml", ".golangci.toml")
    found.add(folder, test="go test ./...", lint="golangci-lint run" if lints else "", build="go build ./...")


def _dotnet(found: _Found, folder: str, name: str) -> None:
    tree = found.tree
    if name.endswith("proj") and any(path.endswith((".sln", ".slnx")) for path in tree.paths):
        return  # it is a part of that
    projects = [path for path in tree.paths if re.search(r"\.(cs|fs)proj$", path) and path.count("/") <= DEEPEST + 1]
    text = "\n".join(tree.text("", path) for path in projects)
    found.managers.append("dotnet")
    found.frameworks += [shown for key, shown in NET.items() if re.search(rf'"{re.escape(key)}\b', text, re.I)]
    target = shlex.quote(name)  # there may be several side by side
    found.add(folder, test=f"dotnet test {target}", build=f"dotnet build {target}")


def _maven(found: _Found, folder: str, name: str) -> None:
    tool = "./mvnw" if found.tree.has(folder, "mvnw") else "mvn"
    found.managers.append("maven")
    _java(found, found.tree.text(folder, name))
    found.add(folder, test=f"{tool} test", build=f"{tool} package")


def _gradle(found: _Found, folder: str, name: str) -> None:
    tool = "./gradlew" if found.tree.has(folder, "gradlew") else "gradle"
    found.managers.append("gradle")
    _java(found, found.tree.text(folder, name))
    found.add(folder, test=f"{tool} test", build=f"{tool} build")


def _java(found: _Found, text: str) -> None:
    found.frameworks += [shown for key, shown in JAVA.items() if key in text]


def _ruby(found: _Found, folder: str, name: str) -> None:
    text = found.tree.text(folder, name)
    found.managers.append("bundler")
    found.listed(text, RUBY)
    rspec = _lists(text, "rspec") or _lists(text, "rspec-rails") or found.tree.has(folder, ".rspec")
    rails = _lists(text, "rails") and found.tree.has(folder, "bin/rails")
    rake = found.tree.has(folder, "Rakefile")
    found.add(
        folder,
        test="bundle exec rspec" if rspec else "bin/rails test" if rails else "bundle exec rake test" if rake else "",
        lint="bundle exec rubocop" if _lists(text, "rubocop") or found.tree.has(folder, ".rubocop.yml") else "",
    )


def _php(found: _Found, folder: str, name: str) -> None:
    package = found.tree.json(folder, name)
    needed = {
        key for part in ("require", "require-dev") if isinstance(package.get(part), dict) for key in package[part]
    }
    scripts = _scripts(package)
    found.managers.append("composer")
    found.frameworks += [shown for key, shown in PHP.items() if key in needed]
    unit = "vendor/bin/phpunit" if "phpunit/phpunit" in needed else ""
    stan = "vendor/bin/phpstan analyse" if "phpstan/phpstan" in needed else ""
    found.add(
        folder,
        test="composer run-script test" if "test" in scripts else unit,
        lint="composer run-script lint" if "lint" in scripts else stan,
    )


def _ci(found: _Found) -> None:
    """What CI does of the usual and no other file tells; where there is a command of that kind, nothing."""
    texts = [found.tree.text("", path) for path in found.tree.paths if CI_FILE.fullmatch(path)]
    lines = {
        line.strip().removeprefix("- ").removeprefix("run:").strip() for text in texts for line in text.splitlines()
    }
    for command, kind in CI_COMMANDS.items():
        known = found.commands[kind]
        if not known and any(line == command or line.startswith(f"{command} ") for line in lines):
            known.append(command)


READERS: tuple[tuple[str, Callable[[_Found, str, str], None]], ...] = (  # names of files, and who reads them
    (r"Makefile|GNUmakefile", _makefile),
    (r"package\.json", _node),
    (r"pyproject\.toml|setup\.py|setup\.cfg|requirements\.txt|Pipfile", _python),
    (r"Cargo\.toml", _rust),
    (r"go\.mod", _go),
    (r".+\.slnx?|.+\.(cs|fs)proj", _dotnet),
    (r"pom\.xml", _maven),
    (r"build\.gradle(\.kts)?", _gradle),
    (r"Gemfile", _ruby),
    (r"composer\.json", _php),
)
