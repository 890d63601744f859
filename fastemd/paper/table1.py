"""Table 1: the time per gradient for a batch of 512 on the ImageNet tree."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from fastemd import datasets
from fastemd.functions import emd_grad
from fastemd.ground import GroundSpace
from fastemd.paper.common import Progress, options, predictions, save_table
from fastemd.paper.contenders import CONTENDERS, Contender
from fastemd.rivals import Run

LAM = 1.0  # nothing underflows, so all do the work of every iteration
EMD2 = "EMD^2"
NO_CUDA = "fastemd, CUDA"
PAPERS_BATCH = 512
PAPER = "the paper (GPU)"
# Of the paper's own figures only this one could be checked when this was written.
PAPER_MS = {EMD2: 25.0}
# A full batch of pairs would take hours; a pair takes as long in a batch as alone.
PAIR_BY_PAIR = "sinkhorn, pair by pair (POT)"


class Cell(NamedTuple):
    """One entry of the table."""

    gradient: str
    implementation: str
    milliseconds: float | None  # for the whole batch; None if there is no figure
    rows_timed: int  # the time is scaled up from so many rows
    note: str


def cells(batch: int, iterations: Sequence[int], part: int, repeats: int) -> list[Cell]:
    """Time everything: `part` rows stand for the batch where all would take too long."""
    tree = datasets.imagenet_tree()
    names = [name for name in CONTENDERS if name != "sinkhorn, batched (POT)"]
    work = {(n, name): _work(n, name, batch, part) for n in iterations for name in names}
    progress = Progress(sum(n * rows for (n, _), rows in work.items()) + batch)
    result = []
    for (n, name), rows in work.items():
        seconds = _timed(CONTENDERS[name], tree, n, rows, repeats if n <= 100 else 1)
        progress.add(n * rows)
        gradient = f"SD, {n} iterations"
        if seconds is None:
            result.append(Cell(gradient, name, None, 0, "not installed"))
            continue
        note = f"timed on {rows} rows and scaled up" if rows < batch else ""
        result.append(Cell(gradient, name, seconds * 1e3 * batch / rows, rows, note))
    p, q = (predictions(batch, tree.n_bins, seed).astype(np.float32) for seed in (0, 1))
    seconds = _median(lambda: emd_grad(p, q, tree, 2), 10 * repeats)
    progress.add(batch)
    result.append(Cell(EMD2, "fastemd", seconds * 1e3, batch, ""))
    for gradient in dict.fromkeys(cell.gradient for cell in list(result)):
        result.append(Cell(gradient, NO_CUDA, None, 0, "not available yet"))
        if batch == PAPERS_BATCH:
            paper = PAPER_MS.get(gradient)
            note = "" if paper else "could not be checked, left out"
            result.append(Cell(gradient, PAPER, paper, batch if paper else 0, note))
    return result


def _work(n_iter: int, name: str, batch: int, part: int) -> int:
    if name == PAIR_BY_PAIR:
        return min(batch, max(1, 400 // n_iter))
    return batch if n_iter <= 100 else min(batch, part)


def _timed(
    make: Contender, tree: GroundSpace, n_iter: int, rows: int, repeats: int
) -> float | None:
    """Seconds per call, or None if it is not installed."""
    p, q = (predictions(rows, tree.n_bins, seed).astype(np.float32) for seed in (0, 1))
    cost = tree.cost_matrix().astype(np.float32)
    try:
        make(p[:1], q[:1], cost, LAM, 1)()  # compiles, wakes threads
        return _median(make(p, q, cost, LAM, n_iter), repeats)
    except NotImplementedError:
        return None


def _median(run: Run, repeats: int) -> float:
    seconds = []
    if repeats > 1:
        run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def as_text(measured: Sequence[Cell], batch: int) -> str:
    """The table for people."""
    columns = list(dict.fromkeys(cell.implementation for cell in measured))
    lines = [f"ms per gradient of a batch of {batch}, float32, {numba.get_num_threads()} threads"]
    lines.append("".join([f"{'':22}", *(f"{name:>30}" for name in columns)]))
    for gradient in dict.fromkeys(cell.gradient for cell in measured):
        line = f"{gradient:22}"
        for name in columns:
            found = [c for c in measured if (c.gradient, c.implementation) == (gradient, name)]
            line += f"{_entry(found[0]) if found else '':>30}"
        lines.append(line)
    lines.append("* timed on a part of the batch and scaled up; the rows are in the CSV")
    lines.append("- no figure: CUDA is not available yet, the paper's could not be checked")
    return "\n".join(lines)


def _entry(cell: Cell) -> str:
    if cell.milliseconds is None:
        return "-" if cell.note != "not installed" else cell.note
    return f"{cell.milliseconds:.4g}{'*' if 'scaled' in cell.note else ' '}"


def picture(measured: Sequence[Cell], batch: int, path: Path) -> None:
    """The times as bars on a logarithmic scale."""
    from matplotlib.figure import Figure

    shown = [cell for cell in measured if cell.milliseconds is not None]
    gradients = list(dict.fromkeys(cell.gradient for cell in shown))
    names = list(dict.fromkeys(cell.implementation for cell in shown))
    figure = Figure(figsize=(9, 0.8 + 0.38 * len(shown)), layout="constrained")
    axes = figure.subplots()
    position, ticks = 0.0, []
    for gradient in gradients:
        group = [cell for cell in shown if cell.gradient == gradient]
        ticks.append(position + (len(group) - 1) / 2)
        for cell in group:
            width = cell.milliseconds or 0.0
            color = f"C{names.index(cell.implementation)}"
            axes.barh(position, width, color=color)
            label = f" {width:.3g} ms{'*' if 'scaled' in cell.note else ''}"
            axes.text(width, position, label, va="center", fontsize="small")
            position += 1
        position += 0.6
    for i, name in enumerate(names):
        axes.bar(0, 0, color=f"C{i}", label=name)
    axes.set_yticks(ticks, gradients)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xscale="log", xlabel="ms (* scaled up from a part of the batch)")
    axes.set_title(f"time per gradient of a batch of {batch} on the ImageNet tree")
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the process's exit code."""
    chosen = options("-m fastemd table1", __doc__, arguments)
    if chosen.quick:
        batch, iterations, part, repeats = 8, [2, 5], 8, 1
    else:
        batch, iterations, part, repeats = PAPERS_BATCH, [10, 100, 1000], 64, 3
    measured = cells(batch, iterations, part, repeats)
    print(as_text(measured, batch))
    numbers, drawn = chosen.folder / "fastemd-table1.csv", chosen.folder / "fastemd-table1.png"
    save_table(numbers, Cell._fields, measured)
    picture(measured, batch, drawn)
    print(f"Numbers: {numbers}\nPicture: {drawn}")
    return 0
