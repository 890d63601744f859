"""Run the checks of `benchmarks.gpu_check.checks`, and print a line for each and a summary.

    python -m benchmarks.gpu_check.correctness --device cuda

On a GPU every check has a process and a time limit, because an error on a device makes it unusable
for the rest of the process. Several run at the same time; most of their time is compilation.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu_check.runner import (
    FAILED,
    OK,
    SKIP,
    SKIPPED,
    TIMED_OUT,
    UnavailableError,
    last_line,
)

LIMIT = 90  # seconds for one check
WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))


def load(device):
    """Return the checks by name; those that need a GPU are None on the CPU."""
    from benchmarks.gpu_check import checks

    on_gpu = checks.NEED_A_GPU if device == "cuda" else dict.fromkeys(checks.NEED_A_GPU)
    return {**checks.CHECKS, **on_gpu}


def run_here(check, device):
    """Run a check in this process; return its status and a text."""
    if check is None:
        return SKIPPED, "needs a GPU"
    try:
        check(device)
    except UnavailableError as error:
        return SKIPPED, str(error)
    except Exception:
        return FAILED, traceback.format_exc()
    return OK, ""


def run_apart(command):
    """Run a check in a separate process; return its status and its output."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return TIMED_OUT, (error.stdout or b"").decode(errors="replace")
    return {0: OK, SKIP: SKIPPED}.get(done.returncode, FAILED), done.stdout


def report(name, status, text, seconds):
    """Print a line for a check, with the reason if it is skipped and all output if it failed."""
    reason = f": {last_line(text)}" if status == SKIPPED else ""
    print(f"{seconds:6.1f} s  {status:9} {name}{reason}", flush=True)
    if status != SKIPPED and text.strip():
        print(text.rstrip(), flush=True)


def run_all(names, run, workers):
    """Run checks by name and print the outcomes; return the exit code."""

    def timed(name):
        start = time.monotonic()
        status, text = run(name)
        report(name, status, text, time.monotonic() - start)
        return status

    with ThreadPoolExecutor(workers) as pool:
        statuses = dict(zip(names, pool.map(timed, names), strict=True))
    counts = Counter(statuses.values())
    failed = [name for name, status in statuses.items() if status in (FAILED, TIMED_OUT)]
    summary = ", ".join(f"{counts[x]} {x}" for x in (OK, FAILED, TIMED_OUT, SKIPPED) if counts[x])
    print(summary + (f": {'; '.join(failed)}" if failed else ""))
    return int(bool(failed))


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.correctness")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", metavar="CHECK", help="run this check in this process")
    options = parser.parse_args()
    checks = load(options.device)
    if options.only:
        status, text = run_here(checks[options.only], options.device)
        print(text)
        return {OK: 0, SKIPPED: SKIP}.get(status, 1)
    if options.device == "cpu":
        return run_all(checks, lambda name: run_here(checks[name], "cpu"), workers=1)
    command = sys.executable, "-m", __spec__.name, "--device", "cuda", "--only"
    return run_all(checks, lambda name: run_apart((*command, name)), WORKERS)


if __name__ == "__main__":
    sys.exit(main())
