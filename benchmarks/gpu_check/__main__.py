"""Check the CUDA half of the library on a machine with a GPU.

    python -m benchmarks.gpu_check

Runs the steps below in processes with time limits, at most `--minutes` in total, and prints a table
of their outcomes. The exit code is 0 if no step failed. Every step writes its output to a file in
the folder `--logs`. ``--device cpu`` is a dry run of the steps that need no GPU.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_check.environment import child_environment
from benchmarks.gpu_check.runner import Step, run_all, table, tails

ROWS = {"cuda": ("512", "8192", "65536"), "cpu": ("8",)}
TESTS = {"cuda": ("tests",), "cpu": ("tests/test_flows.py",)}
# Workers of pytest; files are distributed to them, so that each kernel is compiled in one worker.
WORKERS = str(max(1, min(13, (os.cpu_count() or 2) - 2)))
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats")
METRICS = (
    "Duration", "Memory Throughput", "DRAM Throughput", "Compute (SM) Throughput",
    "Achieved Occupancy", "Registers Per Thread", "Warp Cycles Per Issued Instruction",
)  # fmt: skip


def steps(device):
    """Return all steps, in order."""
    python, kernels = (sys.executable, "-m"), "benchmarks.gpu_check.kernels"
    sanitizer = "compute-sanitizer", "--error-exitcode", "9", "--tool"
    ncu = ["ncu", "--clock-control", "none", "--print-details", "all"]
    ncu += [part for name in SECTIONS for part in ("--section", name)]
    pytest = (
        *python, "pytest", "-q", "-n", WORKERS, "--dist", "loadfile", "--tb", "short",
        "-o", "filterwarnings=default", "-p", "no:cacheprovider",
    )  # fmt: skip
    if device == "cuda":
        pytest = "env", "FASTEMD_DEVICE=torch", "CI=true", *pytest
    return [
        Step("environment", (*python, "benchmarks.gpu_check.environment", "--device", device), 20),
        Step("correctness", (*python, "benchmarks.gpu_check.correctness", "--device", device), 120),
        Step(
            "speed",
            (*python, "benchmarks.gpu", "--device", device, "--rows", *ROWS[device]),
            80,
        ),
        Step("memcheck", (*sanitizer, "memcheck", *python, kernels, "small"), 60, ("cuda",)),
        Step("racecheck", (*sanitizer, "racecheck", *python, kernels, "small"), 60, ("cuda",)),
        Step(
            "profile",
            (*ncu, *python, kernels, "large"),
            40,
            ("cuda",),
            detail=metrics,
            skip="ERR_NVGPUCTRPERM",
        ),
        Step("tests", (*pytest, *TESTS[device]), partial=r"^\d+ passed(?!.*\b(failed|errors?)\b)"),
    ]


def metrics(log):
    """Return the main metrics and the largest stall of the last kernel in a report of ncu."""
    rows = re.findall(r"^\s*(\S.*?\S)\s{2,}(\S+)\s+([\d.,]+)\s*$", log, re.MULTILINE)
    values = {name: (value, unit) for name, unit, value in rows}
    stalls = [name for name in values if "Stall" in name]
    names = [name for name in METRICS if name in values]
    names += (
        [max(stalls, key=lambda name: float(values[name][0].replace(",", "")))] if stalls else []
    )
    text = ", ".join(" ".join((name, *values[name])) for name in names)
    return text or "no kernel was profiled"


def main(arguments=None, steps=steps):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    names = [step.name for step in steps("cuda")]
    parser.add_argument("--steps", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--logs", type=Path, default=Path("gpu-check"))
    options = parser.parse_args(arguments)
    logs = options.logs.absolute()
    logs.mkdir(parents=True, exist_ok=True)
    selected = [step for step in steps(options.device) if step.name in options.steps]
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as cache:
        environment = child_environment(os.environ, options.device, cache)
        results = run_all(selected, options.device, end - time.monotonic(), logs, environment)
    (logs / "table.md").write_text(table(results) + "\n", encoding="utf-8")
    print(f"{tails(results, logs)}\n{table(results)}")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
