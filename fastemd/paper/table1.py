"""Table 1: the time per gradient for a batch of 512 on the ImageNet tree."""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from fastemd import datasets
from fastemd.functions import emd_grad
from fastemd.paper.common import Progress, clear_bar, open_table, options, predictions
from fastemd.paper.contenders import CONTENDERS, Contender
from fastemd.rivals import Run
from fastemd.spaces import GroundSpace

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


def columns(batch: int) -> list[str]:
    """The implementations, in the order in which `cells` gives them for every gradient."""
    names = [name for name in CONTENDERS if name != "sinkhorn, batched (POT)"]
    return [*names, NO_CUDA, *([PAPER] if batch == PAPERS_BATCH else [])]


def cells(batch: int, iterations: Sequence[int], part: int, repeats: int) -> Iterator[Cell]:
    """Time everything: `part` rows stand for the batch where all would take too long."""
    tree = datasets.imagenet_tree()
    names = [name for name in columns(batch) if name in CONTENDERS]
    work = {n: {name: _work(n, name, batch, part) for name in names} for n in iterations}
    progress = Progress(sum(n * sum(rows.values()) for n, rows in work.items()) + batch)
    for n, rows_of in work.items():
        gradient = f"SD, {n} iterations"
        for name, rows in rows_of.items():
            seconds = _timed(CONTENDERS[name], tree, n, rows, repeats if n <= 100 else 1)
            progress.add(n * rows)
            if seconds is None:
                yield Cell(gradient, name, None, 0, "not installed")
                continue
            note = f"timed on {rows} rows and scaled up" if rows < batch else ""
            yield Cell(gradient, name, seconds * 1e3 * batch / rows, rows, note)
        yield from _not_timed(gradient, batch)
    p, q = (predictions(batch, tree.n_bins, seed).astype(np.float32) for seed in (0, 1))
    seconds = _median(lambda: emd_grad(p, q, tree, 2), 10 * repeats)
    progress.add(batch)
    yield Cell(EMD2, "fastemd", seconds * 1e3, batch, "")
    yield from _not_timed(EMD2, batch)


def _not_timed(gradient: str, batch: int) -> Iterator[Cell]:
    """The last columns of a row."""
    yield Cell(gradient, NO_CUDA, None, 0, "not available yet")
    if batch == PAPERS_BATCH:
        paper = PAPER_MS.get(gradient)
        note = "" if paper else "could not be checked, left out"
        yield Cell(gradient, PAPER, paper, batch if paper else 0, note)


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


def as_rows(measured: Iterable[Cell], batch: int) -> Iterator[str]:
    """The lines of the table for people, each as soon as its last cell is there."""
    names = columns(batch)
    yield f"ms per gradient of a batch of {batch}, float32, {numba.get_num_threads()} threads"
    yield "".join([f"{'':22}", *(f"{name:>30}" for name in names)])
    entries: dict[str, str] = {}
    for cell in measured:
        entries[cell.implementation] = _entry(cell)
        if cell.implementation == names[-1]:
            yield "".join([f"{cell.gradient:22}", *(f"{entries.get(n, ''):>30}" for n in names)])
            entries.clear()
    yield "* timed on a part of the batch and scaled up; the rows are in the CSV"
    yield "- no figure: CUDA is not available yet, the paper's could not be checked"


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
    numbers, drawn = chosen.folder / "fastemd-table1.csv", chosen.folder / "fastemd-table1.png"
    print(f"Numbers: {numbers}")
    measured = []

    def saved() -> Iterator[Cell]:
        with open_table(numbers, Cell._fields) as add:
            for cell in cells(batch, iterations, part, repeats):
                add(cell)
                measured.append(cell)
                yield cell

    for row in as_rows(saved(), batch):
        clear_bar()
        print(row, flush=True)
    picture(measured, batch, drawn)
    print(f"Picture: {drawn}")
    return 0
