"""What the long tests share: a repository with a home and a worker of its own, its processes, and jobs side by side."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(KIT))

import state as states  # noqa: E402
from proc import Stop  # noqa: E402

LATER = 75  # exit code of a kit that is to be started again
CONTAINED = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent")
NOT_KIT = shutil.ignore_patterns(".*", "__pycache__", "tests", "missions", "deploy", "docs")
CLAUDE = """\
#!/bin/bash
case " $* " in *" -p "*) exec 9>>'@S@/alone'; flock -n 9 || echo "$$: not alone" >> '@S@/two';; esac
exec '@PYTHON@' '@KIT@/extras/claude_stand_in.py' "$@"
"""


class Scratch:
    """A repository in a folder of its own, with a home, a mission, a worker and all else that the kit may reach."""

    poll = 0.01  # seconds between two looks at a run
    patience = 180.0  # seconds for one start

    def __init__(self, folder: Path, kit: Path = KIT, name: str = "demo"):
        self.folder, self.root, self.kit, self.branch = folder, folder / "repository", kit, f"cco/{name}"
        self.file, self.state = folder / f"{name}.json", self.root / ".cco" / f"{name}.json"
        self.starts = 0
        self.found: list[tuple[str, str]] = []  # kind and words of each violation
        own = {"HOME": folder / "home", "TMPDIR": folder / "tmp", "CLAUDE_STAND_IN": folder / "script.json"}
        usual = {n: v for n, v in os.environ.items() if not n.startswith(("CCO_", "OPENROUTER_", "GIT_"))}
        self.env = {**usual, **{n: str(v) for n, v in own.items()}, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        for place in ("repository", "bin", "home", "tmp"):
            (folder / place).mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "Scratch")
        self.git("config", "user.email", "scratch@example.invalid")
        self.program(folder / "bin/claude", CLAUDE)

    def fill(self, text: str, **more: object) -> str:
        """Replace @S@, @M@, @KIT@, @PYTHON@ and more of that form."""
        places = {"S": self.folder, "M": self.file, "KIT": self.kit, "PYTHON": sys.executable, **more}
        return re.sub("@([A-Z]+)@", lambda found: str(places[found[1]]), text)

    def program(self, path: Path, text: str, **more: object) -> None:
        """Write a program."""
        path.write_text(self.fill(text, **more))
        path.chmod(0o755)

    def write(self, files: dict[str, str]) -> None:
        """Write files, their names seen from the repository."""
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def prepare(self, mission: dict[str, Any], settings: dict[str, Any], sessions: Any, files: dict[str, str]) -> str:
        """Write mission and script, and commit all that is there, on main; the mission's text."""
        claude = {"command": "@S@/bin/claude", "sandbox": False, **settings.pop("claude_code", {})}
        settings = {"claude_code": claude, "manager": {"provider": "rules"}, **settings}
        text = self.fill(json.dumps({"repository": str(self.root), **mission, "settings": settings}, indent=1))
        self.write({**files, str(self.file): text, self.env["CLAUDE_STAND_IN"]: self.fill(json.dumps(sessions))})
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "first")
        self.main = self.git("rev-parse", "main")
        return text

    def git(self, *args: str, at: Path | None = None) -> str:
        """What git prints; "" when it fails."""
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-C", str(at or self.root)]
        return subprocess.run([*command, *args], env=self.env, capture_output=True, text=True).stdout.strip()

    def trailers(self, key: str, tip: str) -> list[str]:
        """The trailers of this key, the oldest first."""
        return self.git("log", "--reverse", f"--format=%(trailers:key={key},valueonly,separator=)", tip).split()

    # --- Starts ---

    def begin(self, *args: str) -> subprocess.Popen[bytes]:
        """Begin `cco.py start` with the mission, its output in a file."""
        self.starts += 1
        command = [sys.executable, str(self.kit / "cco.py"), "start", *args, str(self.file)]
        return self.popen(command, self.folder / f"start-{self.starts}")

    def popen(self, command: list[str], output: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Begin a command in the repository."""
        with output.open("wb") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.root, env=self.env | (env or {}),
                start_new_session=True,
            )  # fmt: skip

    def wait(self, running: subprocess.Popen[bytes], moment: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the end of a run, or for a moment: whether that came first. A run that never ends is noted."""
        end = time.monotonic() + self.patience
        while running.poll() is None:
            if moment():
                return True
            if time.monotonic() > end:
                self.kill(running)
                self.note("hangs", f"it did not end in {self.patience:.0f} s")
            time.sleep(self.poll)
        return False

    def kill(self, running: subprocess.Popen[bytes]) -> None:
        """Kill the process alone, and wait until it is gone."""
        running.kill()
        running.wait()

    def skip_wait(self) -> bool:
        """Let the time of the saved wait have come; whether there was one."""
        state = saved(self.state)
        if not state or not state.wait:
            return False
        state.wait.until = 0
        states.save(self.state, state)
        return True

    # --- What must be so ---

    def note(self, kind: str, what: str) -> None:
        self.found.append((kind, what))

    def expect(self, kind: str, what: str, found: Any, wanted: Any) -> None:
        """Note it when it is not as it must be."""
        if found != wanted:
            self.note(kind, f"{what}: {found!r}, and not {wanted!r}")

    def said(self) -> str:
        """What the last start printed."""
        return read(self.folder / f"start-{self.starts}")

    def look_at_output(self) -> None:
        """Note an error that nobody expected, and a worker that was not alone."""
        if re.search(r"^Traceback|unexpected error", self.said(), re.M):
            self.note("tracebacks", self.said()[-3000:])
        if (self.folder / "two").exists():
            self.note("two_workers", read(self.folder / "two"))


def read(path: Path) -> str:
    """What a file holds, "" where there is none."""
    return path.read_text(errors="replace") if path.exists() else ""


def saved(path: Path) -> states.State | None:
    """The state, if there is a valid one."""
    with suppress(Stop, OSError):
        return states.load(path)
    return None


def processes(folder: Path) -> dict[int, str]:
    """The processes that carry the mark of the folder's repository, or work in the folder."""
    found, mark = {}, f"CCO_RUN={folder / 'repository'}".encode()
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            carries = mark in (entry / "environ").read_bytes().split(b"\0")
            if carries or Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def end_all(folder: Path) -> None:
    """End all processes of a folder."""
    while alive := processes(folder):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, whatever its rights."""
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- Jobs side by side ---


def options(description: str) -> argparse.ArgumentParser:
    """The command line that soak and crash sweep share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kit", type=Path, default=KIT, help="the kit that is tried")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # the number of a job
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    return parser


def spread(args: argparse.Namespace, prefix: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run this program again for each job, in a process namespace that nothing survives; its folder and results."""
    for number in (signal.SIGTERM, signal.SIGINT):  # also where it was ignored, as in the background
        signal.signal(number, signal.default_int_handler)
    base, jobs = Path(tempfile.mkdtemp(prefix=prefix)).resolve(), list[subprocess.Popen[bytes]]()
    try:
        shutil.copytree(args.kit, base / "kit", ignore=NOT_KIT)  # which may be edited meanwhile
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(base / "kit")], check=True)
        for job in range(args.jobs):
            command = [*CONTAINED, sys.executable, *sys.argv, "--share", str(job), "--base", str(base)]
            jobs.append(subprocess.Popen(command, start_new_session=True))
        if max([job.wait() for job in jobs]):
            sys.exit(f"a job failed; see {base}")
    except KeyboardInterrupt:
        for running in jobs:
            running.kill()
            running.wait()
        remove(base)
        sys.exit(130)
    return base, [json.loads(line) for path in base.glob("results-*") for line in path.read_text().splitlines()]


def report(trial: Scratch, args: argparse.Namespace, again: str, folder: Path, **more: Any) -> None:
    """Hand the result of a job's trial on, and print what was not as promised."""
    with (args.base / f"results-{args.share}").open("a") as results:
        print(json.dumps({"starts": trial.starts, "found": trial.found, **more}), file=results)
    for kind, what in trial.found:
        print(f"VIOLATION {kind}: {what}\n  again: {again}\n  see: {folder}", flush=True)


def summary(base: Path, results: list[dict[str, Any]], kinds: Sequence[str], figures: dict[str, Any]) -> int:
    """Print the figures; the exit code."""
    found = Counter(kind for done in results for kind, _ in done["found"])
    figures = {"trials": len(results), "starts": sum(done["starts"] for done in results), **figures}
    print("\n".join(f"{name}: {value}" for name, value in {**figures, **{kind: found[kind] for kind in kinds}}.items()))
    if not found:
        remove(base)
    return 1 if found or not results else 0
