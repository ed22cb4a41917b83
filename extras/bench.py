#!/usr/bin/env python3
"""How fast the kit answers: `make bench`. Ratios within one run, because machines are shared and noisy.

`status` is measured against `python -c pass`, in turn, in a scratch repository with one mission.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
RUNS = 41


def seconds(argv: list[str], folder: str) -> float:
    """Wall time of one process."""
    begun = time.perf_counter()
    subprocess.run(argv, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Print the figures, one `key: value` a line."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "init", "-q", folder], check=True)
        done = [{"criteria": "nothing is missing", "check": "true", "guard": True}]
        claude = {"command": str(KIT / "extras" / "claude_stand_in.py"), "sandbox": False}
        mission = {"title": "Bench", "definition_of_done": done, "settings": {"claude_code": claude}}
        Path(folder, "bench.json").write_text(json.dumps(mission))
        start = [sys.executable, str(KIT / "cco.py"), "start", "bench.json"]
        subprocess.run(start, cwd=folder, stdout=subprocess.DEVNULL, check=True)
        nothing, status = [sys.executable, "-c", "pass"], [sys.executable, str(KIT / "cco.py"), "status"]
        pairs = [(seconds(nothing, folder), seconds(status, folder)) for _ in range(RUNS)]
    print(f"python_pass_ms: {1000 * statistics.median(a for a, _ in pairs):.1f}")
    print(f"status_ms: {1000 * statistics.median(b for _, b in pairs):.1f}")
    print(f"status_ratio: {statistics.median(b / a for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
