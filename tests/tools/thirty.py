#!/usr/bin/env python3
"""What the manager LLM is asked, and how much, for one mission of 30 criteria on which all goes well.

    python tests/tools/thirty.py [--parts 30]

A scratch repository, a scripted manager on loopback that plans one criterion for each session, a stand-in for claude
that does what its instruction says, and the real command line until the mission is done. Prints `key: value` lines. The
exit code is 1 when the mission did not end done, or took more than a call for each criterion and 2,000 characters each.
Not promised: what a mission costs in which something goes wrong. The manager reads more then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from openrouter_api import OpenRouterAPI

KIT = Path(__file__).resolve().parents[2]
ROOM = 2000  # characters of one prompt, on average: 60,000 for 30 criteria
PATIENCE = 300.0  # seconds for all of it
OPEN = re.compile(r"^- (c\d\d): (.+?)(?: \[.*)?$", re.M)  # a criterion that is not met, as the manager reads it
WORKER = """\
#!{python}
import json, re, sys
sys.path.insert(0, {extras!r})
import claude_stand_in

def steps_of(script):  # what the instruction says, and nothing else
    with open(f"{{script}}.calls.jsonl", encoding="utf-8") as calls:
        prompt = json.loads(calls.readlines()[-1])["prompt"]
    file, answer = re.findall(r"(part-\\d+\\.txt) holds the answer (\\d+) and nothing else", prompt)[-1]
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
    answer |= {"strategy": "retry_modified", "session": "resume"}
    return json.dumps({**answer, **dict.fromkeys(("tier", "encouragement", "question"))})


def text_of(message: dict[str, Any]) -> str:
    """What a message says; parts of it may be marked for a cache."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def make(folder: Path, parts: int, settings: dict[str, Any]) -> None:
    """The repository with one commit, the mission, and its worker."""
    root, worker = folder / "repository", folder / "claude"
    root.mkdir()
    for args in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "An empty repository"]):
        subprocess.run(["git", "-c", "user.name=Thirty", "-c", "user.email=x@localhost", *args], cwd=root, check=True)
    worker.write_text(WORKER.format(python=sys.executable, extras=str(KIT / "extras")))
    worker.chmod(0o755)
    criteria = []
    for n in range(1, parts + 1):
        file = f"part-{n:02}.txt"
        check = f"echo {n} | diff - {file}"
        criteria.append({"id": f"c{n:02}", "criteria": f"{file} holds the answer {n}", "check": check})
    about = "A file for each question, part-01.txt to part-30.txt, which holds the answer and nothing else."
    mission = {"title": "The answers to thirty questions", "description": about, "repository": str(root)}
    mission |= {"settings": {**settings, "claude_code": {"command": str(worker), "sandbox": False}}}
    (folder / "thirty.json").write_text(json.dumps({**mission, "definition_of_done": criteria}))


def run(folder: Path, parts: int, settings: dict[str, Any]) -> tuple[int, str, list[dict[str, Any]]]:
    """The exit code of `cco.py start`, what it printed, and the requests that the manager got."""
    env = {**os.environ, "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home")}
    env |= {"CLAUDE_STAND_IN": str(folder / "script.json"), "OPENROUTER_API_KEY": "sk-or-scripted"}
    env.pop("CCO_RUN", None)
    with OpenRouterAPI(content=plan) as api:
        make(folder, parts, {**settings, "openrouter": {"base_url": api.url}, "checks": {"sandbox": False}})
        argv = [sys.executable, str(KIT / "cco.py"), "start", str(folder / "thirty.json")]
        done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr, [call["body"] for call in api.calls]


def main() -> int:
    """Run the mission in a scratch folder; 0 when it ended done within its calls and characters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=30, help="criteria; each takes a session")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cco-thirty-") as name:
        folder = Path(name).resolve()
        code, output, requests = run(folder, args.parts, {"manager": {"when": "always"}})
        if code:
            print(output, file=sys.stderr)
            return 1
        state = json.loads((folder / "repository" / ".cco" / "thirty.json").read_text("utf-8"))
    sizes = [sum(len(text_of(message)) for message in request["messages"]) for request in requests]
    figures = {
        "iterations": state["iterations"],
        "manager_calls": len(requests),
        "prompt_characters": sum(sizes),
        "manager_cost_usd": f"{state['totals']['manager_cost']:.2f}",
        "longest_prompt": max(sizes, default=0),
    }
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    return 1 if len(requests) > args.parts or sum(sizes) > args.parts * ROOM else 0


if __name__ == "__main__":
    sys.exit(main())
