"""All that only a GPU can tell, in one call of under eight minutes.

Run: python -m benchmarks.gpu --out FOLDER, or `make bench-gpu`. The steps are in `gpu_steps.py`, the most
telling first. Each runs in a process of its own with a time-out of its own, so that none takes the others
down. After each, FOLDER/gpu.json holds the results of all so far: seconds, what the step found, or how it
failed with the end of its standard error.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import RESULT
from benchmarks.gpu_steps import STEPS, Step

LEAST_SECONDS = 10.0
"""Time under which no step is begun."""
LAST_LETTERS = 2000
"""Letters of standard error that are kept of a step that failed."""


def run_step(step: Step, arguments: list[str], seconds_left: float) -> dict[str, Any]:
    """Run a step in a process of its own, and return what it found, or how it failed."""
    timeout = min(step.seconds, seconds_left)
    command = [sys.executable, "-m", "benchmarks.gpu_steps", step.name, *arguments]
    started = time.monotonic()
    result: dict[str, Any] = {"step": step.name, "tells": step.tells}
    try:
        ended = subprocess.run(  # noqa: S603  (ours)
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = _text(error.stdout)
        result |= {
            "failed": f"not done after {timeout:.0f} s",
            "stderr": _text(error.stderr)[-LAST_LETTERS:],
        }
    else:
        output = ended.stdout
        if ended.returncode:
            result |= {"failed": f"exit code {ended.returncode}", "stderr": ended.stderr[-LAST_LETTERS:]}
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith(RESULT):
            found |= json.loads(line.removeprefix(RESULT))
    return result | {"seconds": round(time.monotonic() - started, 1), "found": found}


def _text(output: str | bytes | None) -> str:
    """Return what a process that was ended had written until then."""
    if isinstance(output, bytes):
        return output.decode(errors="replace")
    return output or ""


def main(steps: tuple[Step, ...] = STEPS) -> int:
    """Run the steps, or those that are named; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--steps", nargs="+", help="names of steps; by default all")
    parser.add_argument("--limit", type=float, default=470.0, help="seconds of all steps together")
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, with a tiny model")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + arguments.limit
    results: list[dict[str, Any]] = []
    for step in steps:
        if arguments.steps and step.name not in arguments.steps:
            continue
        seconds_left = ends - time.monotonic()
        if seconds_left < LEAST_SECONDS:
            print(f"{step.name}: not begun, of {arguments.limit:g} s {seconds_left:.0f} are left")
            continue
        results.append(run_step(step, ["--device", arguments.device], seconds_left))
        file = arguments.out / "gpu.json"
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        last = results[-1]
        print(f"{last['step']}: {last['seconds']} s, {last.get('failed', 'done')}", flush=True)
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
