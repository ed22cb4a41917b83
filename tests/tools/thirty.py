#!/usr/bin/env python3
"""What the manager LLM is asked, and how much, for one mission of 30 criteria on which all goes well.

    python tests/tools/thirty.py [--parts 30]

A scratch repository, a scripted manager on loopback that plans one criterion for each session, a stand-in for claude
that does one after the other, and the real command line until the mission is done. Prints `key: value` lines. The exit
code is 1 when the mission did not end done, or took more than a call for each criterion and 2,000 characters each. Not
promised: what a mission costs in which something goes wrong. The manager reads more then.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from openrouter_api import OpenRouterAPI
from scratch import Scratch, saved

ROOM = 2000  # characters of one prompt, on average: 60,000 for 30 criteria
OPEN = re.compile(r"^- (c\d\d): (.+?)(?: \[.*)?$", re.M)  # a criterion that is not met, as the manager reads it
INSTRUCTION = """\
See to it that {} and nothing else: one line, with a line break at its end. Look at the parts that are there before \
you begin, and write it in the same way. Run its check before you finish. Leave the other parts alone."""
REPORT = """\
I wrote {} with its answer, and ran its check, which exits with 0 now. Nothing else was changed. What is still open \
are the other parts, each with an answer of its own."""


def plan(request: dict[str, Any]) -> str:
    """The scripted manager: the first criterion that is not met, alone."""
    focus, words = OPEN.findall(request["messages"][-1]["content"])[0]
    answer = {"focus": focus, "title": f"Write the part of {focus}", "instruction": INSTRUCTION.format(words)}
    answer |= {"strategy": "retry_modified", "session": "resume"}
    return json.dumps({**answer, **dict.fromkeys(("tier", "encouragement", "question"))})


def main() -> int:
    """Run the mission in a scratch folder; 0 when it ended done within its calls and characters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=30, help="criteria; each takes a session")
    parts = range(1, parser.parse_args().parts + 1)
    files = [f"part-{n:02}.txt" for n in parts]
    checks = [f"echo {n} | diff - {file}" for n, file in zip(parts, files, strict=True)]
    criteria = [
        {"id": f"c{n:02}", "criteria": f"{file} holds the answer {n}", "check": check}
        for n, file, check in zip(parts, files, checks, strict=True)
    ]
    about = "A file for each question, part-01.txt to part-30.txt, which holds the answer and nothing else."
    mission = {"title": "The answers to thirty questions", "description": about, "definition_of_done": criteria}
    sessions = [[{"write": {file: f"{n}\n"}}, {"say": REPORT.format(file)}] for n, file in enumerate(files, 1)]
    settings = {"checks": {"sandbox": False}, "manager": {"provider": "openrouter", "when": "always"}}
    with tempfile.TemporaryDirectory(prefix="cco-thirty-") as name, OpenRouterAPI(content=plan) as api:
        trial = Scratch(Path(name).resolve())
        trial.env["OPENROUTER_API_KEY"] = "sk-or-scripted"
        trial.prepare(mission, {**settings, "openrouter": {"base_url": api.url}}, sessions, {"README.md": ""})
        running = trial.begin()
        trial.wait(running)
        state = saved(trial.state)
        if running.returncode or not state:
            print(trial.said(), file=sys.stderr)
            return 1
    sizes = [sum(len(message["content"]) for message in call["body"]["messages"]) for call in api.calls]
    print(f"iterations: {state.iterations}\nmanager_calls: {len(sizes)}\nprompt_characters: {sum(sizes)}")
    print(f"manager_cost_usd: {state.totals['manager_cost']:.2f}\nlongest_prompt: {max(sizes, default=0)}")
    return 1 if len(sizes) > len(parts) or sum(sizes) > len(parts) * ROOM else 0


if __name__ == "__main__":
    sys.exit(main())
