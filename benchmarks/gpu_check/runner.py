"""Run steps in processes with time limits, log their output, and summarise them in a table."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OK, FAILED, SKIPPED, TIMED_OUT = "ok", "FAILED", "skipped", "timed out"
SKIP = 77  # the exit code of a process that cannot run on this machine
GRACE = 15.0  # seconds to print a summary after an interrupt
TAIL, WIDTH = 40, 240  # lines of a log, characters of a detail


class UnavailableError(Exception):
    """The machine cannot run a check."""


def last_line(log: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no output")


class Step(NamedTuple):
    """A command and how to judge its outcome."""

    name: str
    command: Sequence[str]  # the executable must be in the PATH of the step
    limit: float | None = None  # seconds; None: all that is left
    devices: Sequence[str] = ("cuda", "cpu")
    detail: Callable[[str], str] = last_line  # one line of the log for the table
    skip: str = ""  # a line that matches means that the machine cannot run the step
    partial: str = ""  # at the limit the step is interrupted; a detail that matches is a success


class Result(NamedTuple):
    """A row of the table."""

    name: str
    status: str
    seconds: float
    detail: str
    failed: bool


def run(step: Step, limit: float, log: Path, environment: dict[str, str]) -> Result:
    """Run a step for at most `limit` seconds, with its output in the file `log`."""
    if shutil.which(step.command[0], path=environment.get("PATH")) is None:
        return Result(step.name, SKIPPED, 0.0, f"{step.command[0]} is not installed", False)
    if limit <= 0:
        return Result(step.name, TIMED_OUT, 0.0, "no time was left", True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        code = _exit_code(step, limit, file, environment)
    seconds = time.monotonic() - start
    text = log.read_text(encoding="utf-8", errors="replace")
    unavailable = re.search(f"^.*{step.skip}.*$", text, re.MULTILINE) if step.skip else None
    if unavailable:
        return Result(step.name, SKIPPED, seconds, unavailable.group().strip()[:WIDTH], False)
    detail = step.detail(text)[:WIDTH]
    if code is None:
        passed = bool(step.partial and re.search(f"{step.partial}|no tests ran", detail))
        status = FAILED if step.partial and not passed else TIMED_OUT
        return Result(step.name, status, seconds, detail, not passed)
    status = {0: OK, SKIP: SKIPPED}.get(code, FAILED)
    return Result(step.name, status, seconds, detail, status == FAILED)


def _exit_code(step, limit, file, environment):
    """Return the exit code, or None if the process was stopped at the limit."""
    # The background jobs of a shell ignore SIGINT, and so do the processes that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        step.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        env=environment, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    grace = min(GRACE, limit / 2) if step.partial else 0.0
    try:
        return process.wait(limit - grace)
    except subprocess.TimeoutExpired:
        if grace:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what the process started
        process.wait()


def run_all(
    steps: Sequence[Step], device: str, seconds: float, logs: Path, environment: dict[str, str]
) -> list[Result]:
    """Run steps in order within a total time, and print each result as it arrives."""
    end, results = time.monotonic() + seconds, []
    for step in steps:
        left = end - time.monotonic()
        limit = left if step.limit is None else min(step.limit, left)
        if device in step.devices:
            print(f"{step.name}: at most {limit:.0f} s", flush=True)
            result = run(step, limit, logs / f"{step.name}.log", environment)
        else:
            result = Result(step.name, SKIPPED, 0.0, "needs a GPU", False)
        print(f"{step.name}: {result.status}, {result.detail}", flush=True)
        results.append(result)
    return results


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| step | status | seconds | detail |", "| --- | --- | --: | --- |"]
    for result in results:
        detail = result.detail.replace("|", "/")
        lines.append(f"| {result.name} | {result.status} | {result.seconds:.1f} | {detail} |")
    return "\n".join(lines)


def tails(results: Sequence[Result], logs: Path) -> str:
    """Return the ends of the logs of the failed steps."""
    parts = []
    for result in results:
        log = logs / f"{result.name}.log"
        if result.failed and log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            parts.append("\n".join([f"---- end of {log}", *lines]))
    return "\n".join(parts)
