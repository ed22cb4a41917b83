#!/usr/bin/env python3
"""The whole loop offline, in a scratch repository: `make demo`, or `make demo CLAUDE=real`.

A stand-in for claude works on three criteria that start red. It lies in its first session and breaks an earlier
criterion in its third, so that you can see what the kit does about it. With --real the real claude does the same,
its model's answers scripted on loopback: no login, no key, no network either way.

The scratch repository stays for you to look at; its path is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

EXTRAS = Path(__file__).resolve().parent
KIT = EXTRAS.parent

MISSION = """\
mission:
  title: A greeting for the command line
  description: A shell script greet.sh that greets people, also loudly, and a README that says so.
  definition_of_done:
    - id: greets
      criteria: greet.sh greets the person whose name it is given
      priority: critical
      check: said=$(sh greet.sh Ada); echo "it said '$said'"; test "$said" = "Hello, Ada!"
    - id: shouts
      criteria: with --loud it greets in capitals
      priority: high
      check: said=$(sh greet.sh --loud Ada); echo "it said '$said'"; test "$said" = "HELLO, ADA!"
    - id: documented
      criteria: the README names --loud
      priority: medium
      check: grep -e --loud README.md
"""
LOUD = """\
if [ "$1" = --loud ]; then
  printf 'HELLO, %s!\\n' "$(printf %s "$2" | tr a-z A-Z)"
else
  printf '{plain}\\n' "$1"
fi
"""
SESSIONS = [  # the file that is written, its text, and what the worker says about it
    ("greet.sh", 'printf "Hello %s\\n" "$1"\n', "Done! All three criteria are complete and every test passes."),
    ("greet.sh", 'printf "Hello, %s!\\n" "$1"\n', "greet.sh now greets with the comma and the exclamation mark."),
    ("greet.sh", LOUD.format(plain="Hi %s"), "I added --loud. Everything else still works."),
    ("greet.sh", LOUD.format(plain="Hello, %s!"), "I put the plain greeting back; both forms work."),
    ("README.md", "# Greetings\n\nsh greet.sh [--loud] NAME\n", "The README shows how to call it, with --loud."),
]


def main() -> int:
    """Run the demo and return the exit code of `cco.py start`."""
    parser = argparse.ArgumentParser(description="Shows the whole loop offline, in a scratch repository.")
    parser.add_argument("--real", action="store_true", help="with the real claude against a scripted API")
    real = parser.parse_args().real
    scratch = Path(tempfile.mkdtemp(prefix="cco-demo-"))
    try:
        code = _run(scratch, real)
    except KeyboardInterrupt:
        shutil.rmtree(scratch)
        return 128 + signal.SIGINT
    if code:
        shutil.rmtree(scratch)
    else:
        _tell_where_to_look(scratch)
    return code


def _run(scratch: Path, real: bool) -> int:
    repository = scratch / "repository"
    mission = scratch / "greeting.yaml"
    repository.mkdir()
    for args in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "An empty repository"]):
        identity = ["-c", "user.name=Demo", "-c", "user.email=demo@localhost"]
        subprocess.run(["git", *identity, *args], cwd=repository, check=True)
    claude, environment, server = _real_claude(scratch) if real else _stand_in(scratch)
    settings = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in claude.items())
    mission.write_text(f"{MISSION}  repository: ./repository\n  settings:\n   claude_code:\n{settings}")
    print(
        f"A scratch repository with nothing in it: {repository}\nThe mission, three criteria: {mission}\n", flush=True
    )
    try:
        env = {**os.environ, "CCO_MANAGER_PROVIDER": "rules", **environment}
        cco = [sys.executable, str(KIT / "cco.py")]
        code = subprocess.run([*cco, "start", str(mission)], env=env, check=False).returncode
        if code == 0:
            print(flush=True)
            subprocess.run([*cco, "status", "--session", "greeting"], cwd=repository, check=False)
        return code
    finally:
        if server:
            server.terminate()
            server.wait()


def _stand_in(scratch: Path) -> tuple[dict[str, object], dict[str, str], None]:
    """Settings and environment for the stand-in, which does what its script says."""
    script = scratch / "script.json"
    script.write_text(json.dumps([[{"write": {name: text}}, {"say": words}] for name, text, words in SESSIONS]))
    claude = {"command": str(EXTRAS / "claude_stand_in.py"), "sandbox": False}
    return claude, {"CLAUDE_STAND_IN": str(script)}, None


def _real_claude(scratch: Path) -> tuple[dict[str, object], dict[str, str], subprocess.Popen[str]]:
    """Settings and environment for the real claude, and the server that answers for its model."""
    replies: list[dict[str, object]] = []
    for number, (name, text, words) in enumerate(SESSIONS):
        if number and name == SESSIONS[number - 1][0]:  # it overwrites only what it has read
            replies.append({"tools": [{"name": "Read", "input": {"file_path": name}}]})
        replies.append({"tools": [{"name": "Write", "input": {"file_path": name, "content": text}}]})
        replies.append({"text": words})
    script = scratch / "replies.json"
    script.write_text(json.dumps(replies))
    api = [sys.executable, str(EXTRAS / "messages_api.py"), str(script)]
    server = subprocess.Popen(api, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = server.stdout.readline().strip()
    server.stdout.close()
    sandbox = bool(shutil.which("bwrap") and shutil.which("socat"))
    if not sandbox and sys.platform.startswith("linux"):
        print("bubblewrap or socat is missing: this demo runs without the sandbox\n")
    environment = {
        "HOME": str(scratch),  # neither your login nor your settings take part
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "no-key-is-needed",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return {"sandbox": sandbox}, environment, server


def _tell_where_to_look(scratch: Path) -> None:
    repository = scratch / "repository"
    print(f"""
What you saw: the first session claimed that everything was done, and the checks were not impressed. The third broke
a criterion that was met before; it was noticed at once and put right. Only exit codes closed anything, and at the end
every check passed once more in a clean checkout of the last commit.

Where to look next:
  git -C {repository} log --stat main..cco/greeting
      one commit for each session
  {repository}/.cco/reports/greeting.html
      the report: each criterion at each iteration, what proves it, what the worker claimed
  {repository}/.cco/greeting.json
      the state, one file
  {repository}/.cco/logs/combined.log
      what happened, as JSON lines
  rm -r {scratch}
      when you have seen enough""")


if __name__ == "__main__":
    sys.exit(main())
