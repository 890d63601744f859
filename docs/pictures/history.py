import json
from itertools import product
from math import isnan, nan
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

BENCHMARKS = Path("../../benchmarks").resolve()  # Sphinx runs this script in its folder


def load(path):
    return json.loads((BENCHMARKS / path).read_text(encoding="utf-8"))


def read_times():
    """Return the releases, and the seconds by class, label and release; nan is not measured."""
    versions, benchmarks = load("releases.json"), load("results/benchmarks.json")
    measured = map(load, BENCHMARKS.glob("results/xeon-2-cores/*-*.json"))
    results = {versions[each["commit_hash"]]: each["results"] for each in measured}
    releases = sorted(results, key=lambda version: [int(part) for part in version.split(".")])
    times = {}
    for release in releases:
        for benchmark, (seconds, values, *_) in results[release].items():
            _, group, method = benchmark.split(".")
            names = benchmarks[benchmark]["param_names"]
            for row, time in zip(product(*values), seconds or [], strict=False):
                text = ", ".join(map(parameter, names, row)) or method[5:].replace("_", " ")
                series = times.setdefault(group, {}).setdefault(text, dict.fromkeys(releases, nan))
                series[release] = nan if time is None else time
    return releases, times


def parameter(name, value):
    """Return the text of a parameter. Strings are quoted, and need no name."""
    return value.strip("'") if value.startswith("'") else f"{name} {value}"


def duration(seconds):
    """Return a time with three digits and its unit."""
    if isnan(seconds):
        return "-"
    factor, unit = next(
        each for each in ((1, "s"), (1e3, "ms"), (1e6, "us")) if seconds * each[0] >= 1
    )
    return f"{seconds * factor:#.3g}".rstrip(".") + f" {unit}"


def draw_group(ax, group, entries):
    ax.set_title(group, loc="left", fontsize=9, fontweight="bold")
    ax.axvline(1, color="0.6", lw=1)
    for y, series in enumerate(entries.values()):
        first, *later = series.values()
        for color, time in enumerate(later):
            ax.plot(time / first, y, "o", color=f"C{color}")
        text = " → ".join(map(duration, series.values()))
        ax.annotate(text, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.set_yticks(range(len(entries)), entries, fontsize=8)
    ax.set_ylim(len(entries) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.3)


releases, times = read_times()
rows = [len(group) for group in times.values()]
figure, axes = plt.subplots(
    len(times),
    sharex=True,
    figsize=(5.2, 0.2 * sum(rows) + 0.42 * len(rows)),
    height_ratios=rows,
    layout="constrained",
)
for ax, (group, entries) in zip(axes, times.items(), strict=True):
    draw_group(ax, group, entries)
axes[-1].set_xscale("log")
axes[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
axes[-1].xaxis.set_major_formatter("{x:g}")
axes[-1].xaxis.set_minor_formatter(NullFormatter())
left, right = axes[-1].get_xlim()
axes[-1].set_xlim(min(left, 0.4), max(right, 1.5))
axes[-1].set_xlabel(f"time / time of {releases[0]}    (right: {' → '.join(releases)})", fontsize=9)
dots = axes[0].lines[1 : len(releases)]  # of the first result; line 0 is at 1
figure.legend(dots, releases[1:], loc="outside upper right", ncols=len(dots), fontsize=8)
