"""Table 1: the time per gradient for a batch of 512 on the ImageNet tree."""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from fastemd import datasets
from fastemd.demo.baselines import SINKHORN_BASELINES, Baseline, Run
from fastemd.demo.common import parse_options, predictions, save_rows
from fastemd.functions import emd_grad
from fastemd.progress import Progress, show_status
from fastemd.spaces import GroundSpace

LAM = 1.0  # nothing underflows, so that every iteration is computed in full
EMD2 = "EMD^2"
# A full batch of pairs would take hours; a pair takes as long in a batch as alone.
PAIR_BY_PAIR = "sinkhorn, pair by pair (POT)"
TIMED = [name for name in SINKHORN_BASELINES if name != "sinkhorn, batched (POT)"]
NO_CUDA = "fastemd, CUDA"
PAPER = {"the paper (CPU)": "i5-6600K", "the paper (GPU)": "GTX 1080"}  # columns, hardware
PAPER_BATCH = 512
PAPER_MS = {  # Table 1: CPU, GPU
    "SD, 10 iterations": (942.0, 15.1),
    "SD, 100 iterations": (7510.0, 88.9),
    "SD, 1000 iterations": (74500.0, 865.0),
    EMD2: (126.0, 25.0),
}


class Cell(NamedTuple):
    """One entry of the table."""

    gradient: str
    implementation: str
    milliseconds: float | None  # for the whole batch; None if there is no figure
    rows_timed: int  # the time is scaled up from so many rows
    note: str


def columns(batch: int) -> list[str]:
    """Return the implementations, in the order in which `cells` yields them for every gradient."""
    return [*TIMED, NO_CUDA, *(PAPER if batch == PAPER_BATCH else [])]


def cells(batch: int, iterations: Sequence[int], part: int, repeats: int) -> Iterator[Cell]:
    """Time everything; `part` rows stand for the batch where all rows would take too long."""
    tree = datasets.imagenet_tree()
    n_rows = {(n, name): _n_rows(n, name, batch, part) for n in iterations for name in TIMED}
    progress = Progress(sum(n * rows for (n, _), rows in n_rows.items()) + batch)
    for n in iterations:
        gradient = f"SD, {n} iterations"
        for name in TIMED:
            rows, baseline = n_rows[n, name], SINKHORN_BASELINES[name]
            seconds = _seconds(baseline, tree, n, rows, repeats if n <= 100 else 1)
            progress.add(n * rows)
            if seconds is None:
                yield Cell(gradient, name, None, 0, "not installed")
                continue
            note = f"timed on {rows} rows and scaled up" if rows < batch else ""
            yield Cell(gradient, name, seconds * 1e3 * batch / rows, rows, note)
        yield from _untimed_cells(gradient, batch)
    p, q = (predictions(batch, tree.n_bins, seed).astype(np.float32) for seed in (0, 1))
    seconds = _median_seconds(lambda: emd_grad(p, q, tree, 2), 10 * repeats)
    progress.add(batch)
    yield Cell(EMD2, "fastemd", seconds * 1e3, batch, "")
    yield from _untimed_cells(EMD2, batch)


def _n_rows(n_iter: int, name: str, batch: int, part: int) -> int:
    if name == PAIR_BY_PAIR:
        return min(batch, max(1, 400 // n_iter))
    return batch if n_iter <= 100 else min(batch, part)


def _untimed_cells(gradient: str, batch: int) -> Iterator[Cell]:
    yield Cell(gradient, NO_CUDA, None, 0, "not measured")
    if batch == PAPER_BATCH:
        for (name, hardware), milliseconds in zip(PAPER.items(), PAPER_MS[gradient], strict=True):
            yield Cell(gradient, name, milliseconds, batch, hardware)


def _seconds(
    baseline: Baseline, tree: GroundSpace, n_iter: int, rows: int, repeats: int
) -> float | None:
    """Return the seconds per call, or None if the baseline is not installed."""
    p, q = (predictions(rows, tree.n_bins, seed).astype(np.float32) for seed in (0, 1))
    cost = tree.cost_matrix().astype(np.float32)
    try:
        baseline(p, q, cost, LAM, 1)()  # compile for a batch, start threads
        return _median_seconds(baseline(p, q, cost, LAM, n_iter), repeats)
    except NotImplementedError:
        return None


def _median_seconds(run: Run, repeats: int) -> float:
    seconds = []
    if repeats > 1:
        run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def as_lines(measured_cells: Iterable[Cell], batch: int) -> Iterator[str]:
    """Yield the lines of the printed table, each as soon as its last cell is measured."""
    names = columns(batch)
    yield f"ms per gradient of a batch of {batch}, float32, {numba.get_num_threads()} threads"
    yield "".join([f"{'':22}", *(f"{name:>30}" for name in names)])
    entries: dict[str, str] = {}
    for cell in measured_cells:
        entries[cell.implementation] = _entry(cell)
        if cell.implementation == names[-1]:
            yield "".join([f"{cell.gradient:22}", *(f"{entries.get(n, ''):>30}" for n in names)])
            entries.clear()
    yield "* timed on a part of the batch and scaled up; the rows are in the CSV"
    yield "- not measured: this command does not use CUDA"
    if batch == PAPER_BATCH:
        yield "the paper: i5-6600K (4 cores) or GTX 1080, Torch7; SD with lambda 3, float32 on CUDA"


def _entry(cell: Cell) -> str:
    if cell.milliseconds is None:
        return "-" if cell.note != "not installed" else cell.note
    return f"{_number(cell.milliseconds)}{'*' if 'scaled' in cell.note else ' '}"


def _number(milliseconds: float) -> str:
    """Return four digits, or all before the decimal point."""
    return f"{milliseconds:{'.4g' if milliseconds < 1000 else '.0f'}}"


def draw(measured_cells: Iterable[Cell], batch: int, path: Path) -> None:
    """Draw the times as bars on a logarithmic scale."""
    from matplotlib.figure import Figure

    timed_cells = [cell for cell in measured_cells if cell.milliseconds is not None]
    names = list(dict.fromkeys(cell.implementation for cell in timed_cells))
    figure = Figure(figsize=(9, 0.8 + 0.38 * len(timed_cells)), layout="constrained")
    axes = figure.subplots()
    position, ticks = 0.0, {}
    for gradient, group in itertools.groupby(timed_cells, lambda cell: cell.gradient):
        first = position
        for cell in group:
            width = cell.milliseconds or 0.0
            axes.barh(position, width, color=f"C{names.index(cell.implementation)}")
            label = f" {_number(width)} ms{'*' if 'scaled' in cell.note else ''}"
            axes.text(width, position, label, va="center", fontsize="small")
            position += 1
        ticks[gradient] = (first + position - 1) / 2
        position += 0.6
    for i, name in enumerate(names):
        label = f"{name}, {PAPER[name]}" if name in PAPER else name
        axes.bar(0, 0, color=f"C{i}", label=label)
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xscale="log", xlabel="ms (* scaled up from a part of the batch)")
    axes.set_title(f"time per gradient of a batch of {batch} on the ImageNet tree")
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the process's exit code."""
    options = parse_options("-m fastemd table1", __doc__, arguments)
    if options.quick:
        batch, iterations, part, repeats = 8, [2, 5], 8, 1
    else:
        batch, iterations, part, repeats = PAPER_BATCH, [10, 100, 1000], 64, 3
    table, picture = options.folder / "fastemd-table1.csv", options.folder / "fastemd-table1.png"
    print(f"Numbers: {table}")
    saved_cells = save_rows(table, Cell._fields, cells(batch, iterations, part, repeats))
    for_print, for_picture = itertools.tee(saved_cells)
    for line in as_lines(for_print, batch):
        show_status()
        print(line, flush=True)
    draw(for_picture, batch, picture)
    print(f"Picture: {picture}")
    return 0
