#!/usr/bin/env python3
"""What the manager LLM is asked, and how much, for one mission of 30 criteria on which all goes well.

    python extras/thirty.py [--when always|stalled|never] [--rules] [--keep]

A scratch repository, a scripted manager on loopback that plans one criterion for each session, a stand-in for claude
that does what its instruction says, and the real command line until the mission is done. Prints `key: value` lines:
requests and characters of their messages, beside those that the original of this kit took for the same mission. The
exit code is 1 when the mission did not end done.

Not promised: what a mission costs in which something goes wrong. The manager is told more then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXTRAS = Path(__file__).resolve().parent
KIT = EXTRAS.parent
sys.path.insert(0, str(KIT))

from extras.openrouter_api import OpenRouterAPI  # noqa: E402

PARTS = range(1, 31)  # each is a criterion, and takes a session
SHOWN = (2, 10, 20, 30)  # iterations whose prompt's size is printed
ORIGINAL = {"original_manager_calls": 90, "original_prompt_characters": 157_695}  # measured on this mission
PATIENCE = 300.0  # seconds for all of it
OPEN = re.compile(r"^- (c\d\d): (.+?)(?: \[.*)?$", re.M)  # a criterion that is not met, as the manager reads it
WORKER = """\
#!{python}
import json
import re
import sys

sys.path.insert(0, {extras!r})
import claude_stand_in


def steps_of(script):
    \"\"\"What the instruction says, and nothing else.\"\"\"
    with open(f"{{script}}.calls.jsonl", encoding="utf-8") as calls:
        prompt = json.loads(calls.readlines()[-1])["prompt"]
    task = prompt[prompt.rindex("Your task") :]
    file, answer = re.search(r"(part-\\d+\\.txt) holds the answer (\\d+)", task).groups()
    report = f"I wrote {{file}} with the answer {{answer}}, and ran its check, which exits with 0 now. Nothing else was"
    report += " changed. What is still open are the other parts, each with an answer of its own."
    return [{{"init": True}}, {{"write": {{file: f"{{answer}}\\n"}}}}, {{"say": report}}]


claude_stand_in.steps_of = steps_of
raise SystemExit(claude_stand_in.main())
"""


def plan(request: dict[str, Any]) -> str:
    """The scripted manager: the first criterion that is not met, alone."""
    focus, words = OPEN.findall(text_of(request["messages"][-1]))[0]
    instruction = (
        f"See to it that {words} and nothing else: one line, with a line break at its end. Look at the parts that are"
        " there before you begin, and write it in the same way. Run its check before you finish. Leave the other parts"
        " alone."
    )
    answer = {"focus": focus, "title": f"Write the part of {focus}", "instruction": instruction}
    answer |= {"strategy": "retry_modified", "session": "resume", "tier": None, "encouragement": None}
    return json.dumps({**answer, "question": None, "impossible": None})


def text_of(message: dict[str, Any]) -> str:
    """What a message says; parts of it may be marked for a cache."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def make(folder: Path, settings: dict[str, Any]) -> None:
    """The repository with one commit, the mission, and its worker."""
    root, worker = folder / "repository", folder / "claude"
    root.mkdir()
    for args in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "An empty repository"]):
        subprocess.run(["git", "-c", "user.name=Thirty", "-c", "user.email=x@localhost", *args], cwd=root, check=True)
    worker.write_text(WORKER.format(python=sys.executable, extras=str(EXTRAS)))
    worker.chmod(0o755)
    document = {
        "id": "thirty",
        "title": "The answers to thirty questions",
        "description": "A file for each question, part-01.txt to part-30.txt, which holds the answer and nothing else.",
        "repository": str(root),
        "definition_of_done": [criterion(n) for n in PARTS],
        "settings": {
            **settings,
            "claude_code": {"command": str(worker), "sandbox": False},
            "checks": {"sandbox": False},
        },
    }
    (folder / "thirty.json").write_text(json.dumps(document, indent=1))


def criterion(number: int) -> dict[str, Any]:
    """One part: its check fails unless the file holds the answer and nothing else, and shows what it holds instead."""
    file = f"part-{number:02}.txt"
    words = f"{file} holds the answer {number}"
    return {"id": f"c{number:02}", "criteria": words, "check": f"echo {number} | diff - {file}"}


def run(folder: Path, settings: dict[str, Any]) -> tuple[int, str, list[dict[str, Any]]]:
    """The exit code of `cco.py start`, what it printed, and the requests that the manager got."""
    home = folder / "home"
    places = {"HOME": home, "XDG_STATE_HOME": home / "state", "XDG_CACHE_HOME": home / "cache"}
    env = {**os.environ, **{name: str(path) for name, path in places.items()}}
    env |= {"CLAUDE_STAND_IN": str(folder / "script.json"), "OPENROUTER_API_KEY": "sk-or-scripted"}
    env.pop("CCO_RUN", None)
    with OpenRouterAPI(content=plan) as api:
        make(folder, {**settings, "openrouter": {"base_url": api.url}})
        argv = [sys.executable, str(KIT / "cco.py"), "start", str(folder / "thirty.json")]
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr, [call["body"] for call in api.calls]


def figures(state: dict[str, Any], requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What is printed. The size of a prompt is that of all its messages, whatever they are marked with."""
    sizes = [sum(len(text_of(message)) for message in request["messages"]) for request in requests]
    forms = [len(json.dumps(request["response_format"])) for request in requests if "response_format" in request]
    metrics = state["metrics"]
    return {
        "iterations": state["iterations"],
        "manager_calls": len(requests),
        "prompt_characters": sum(sizes),
        "characters_with_schema": sum(sizes) + sum(forms),
        "calls_avoided": metrics["api_calls_avoided"],
        "manager_cost_usd": f"{metrics['manager_cost']:.2f}",
        **{f"prompt_{n}": sizes[n - 1] for n in SHOWN if n <= len(sizes)},
        **ORIGINAL,
    }


def main() -> int:
    """Run the mission in a scratch folder; 0 when it ended done."""
    parser = argparse.ArgumentParser(description="Measures what the manager LLM is asked for a mission of 30 criteria.")
    parser.add_argument("--when", choices=("always", "stalled", "never"), default="always", help="manager.when")
    parser.add_argument("--rules", action="store_true", help="the rules decide, and no LLM")
    parser.add_argument(
        "--keep", action="store_true", help="keep the scratch folder, with all prompts in requests.json"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cco-thirty-")).resolve()
    try:
        manager = {"when": args.when, "provider": "rules" if args.rules else "openrouter"}
        code, output, requests = run(folder, {"manager": manager})
        if code:
            print(output, file=sys.stderr)
            return 1
        state = json.loads((folder / "repository" / ".cco" / "thirty.json").read_text("utf-8"))
        print("\n".join(f"{name}: {value}" for name, value in figures(state, requests).items()))
        (folder / "requests.json").write_text(json.dumps(requests, indent=1))
        return 0
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
