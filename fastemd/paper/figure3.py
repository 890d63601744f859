"""Figure 3: how near Sinkhorn comes to the Earth Mover's Distance on the ImageNet tree."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import datasets
from fastemd.functions import emd_value_and_grad
from fastemd.paper.common import Progress, clear_bar, open_table, options, predictions
from fastemd.sinkhorn import sinkhorn

Array = NDArray[Any]
SAME_LIMIT = 1000  # of the comparison of types
DONE = 1e-12  # iterations after this error change nothing that can be seen


class Setting(NamedTuple):
    """One curve."""

    method: str
    dtype: str
    limit: int


class Point(NamedTuple):
    """What a setting gives for one lambda; means over the rows that did not fail."""

    method: str
    dtype: str
    limit: int
    lam: float
    ratio: float  # SD / EMD
    cosine_distance: float  # between the centred gradients
    error: float  # by how much the plan misses p, the worst row that did not fail
    failed: int  # rows without a finite value and gradient
    rows: int


def points(
    settings: Sequence[Setting], lams: Sequence[float], rows: int, progress: Progress
) -> Iterator[Point]:
    """Every setting at every lambda, on random pairs of histograms on the ImageNet tree."""
    tree = datasets.imagenet_tree()
    cost = tree.cost_matrix()
    p, q = (predictions(rows, tree.n_bins, seed) for seed in (0, 1))
    value, grad = emd_value_and_grad(p, q, tree, 1)
    for setting in settings:
        for lam in lams:
            result = sinkhorn(
                p,
                q,
                cost,
                lam=lam,
                max_iter=setting.limit,
                tol=DONE,
                method=setting.method,
                dtype=setting.dtype,
            )
            progress.add(setting.limit)
            good = np.isfinite(result.value) & np.isfinite(result.grad).all(axis=-1)
            ratio = distance = error = np.nan
            if good.any():
                ratio = float((result.value[good].astype(np.float64) / value[good]).mean())
                directions = result.grad[good].astype(np.float64), grad[good]
                distance = float(cosine_distance(*directions).mean())
                error = float(result.error[good].max())
            failed = int((~good).sum())
            yield Point(*setting, float(lam), ratio, distance, error, failed, rows)


def cosine_distance(a: Array, b: Array) -> Array:
    """1 - cos of the angle between rows, centred; 0 for the same direction."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    distance: Array = 1.0 - (a * b).sum(axis=-1) / lengths
    return distance


def picture(measured: Sequence[Point], limits: Sequence[int], path: Path) -> None:
    """Four panels as in the paper: (a, c) iteration limits, (b, d) types."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    same = min(SAME_LIMIT, max(limits))
    left = {f"{n} iterations": Setting("paper", "float64", n) for n in limits}
    right = {
        "float32, as printed": Setting("paper", "float32", same),
        "float64, as printed": Setting("paper", "float64", same),
        "float64, log domain": Setting("log", "float64", same),
    }
    titles = ("iteration limits (float64, as printed)", f"types ({same} iterations)")
    marks = ("o", "s", "^", "D")
    widths = {"o": 5, "s": 3, "^": 1.5, "D": 0.8}
    for column, curves in enumerate((left, right)):
        top, bottom = panels[:, column]
        for mark, (label, setting) in zip(marks, curves.items(), strict=False):
            chosen = [x for x in measured if x[:3] == setting]
            lam = [x.lam for x in chosen]
            style = {"marker": mark, "label": label, "markersize": widths[mark] + 3}
            style |= {"linewidth": widths[mark]}  # so that curves on each other all show
            top.plot(lam, [x.ratio for x in chosen], **style)
            bottom.plot(lam, [x.cosine_distance for x in chosen], **style)
        top.axhline(1.0, color="black", linewidth=0.8)
        top.set(title=f"({'ab'[column]}) {titles[column]}", ylim=(0, None))
        bottom.set(title=f"({'cd'[column]})", xlabel="lambda", xscale="log", yscale="log")
        top.legend(fontsize="small")
    panels[0, 0].set_ylabel("SD / EMD")
    panels[1, 0].set_ylabel("cosine distance of the gradients")
    figure.suptitle("Sinkhorn distances on the ImageNet tree; a curve ends where all rows fail")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the process's exit code."""
    chosen = options("-m fastemd figure3", __doc__, arguments)
    limits, rows = [10, 100, 1000, 10000], 4
    lams = [float(10.0**x) for x in np.arange(-1.0, 3.0, 0.5)]
    if chosen.quick:
        limits, rows, lams = [5, 20], 2, lams[::2]
    same = min(SAME_LIMIT, max(limits))
    settings = [Setting("paper", "float64", n) for n in limits]
    settings += [Setting("paper", "float32", same), Setting("log", "float64", same)]
    progress = Progress(len(lams) * sum(setting.limit for setting in settings))
    numbers, drawn = chosen.folder / "fastemd-figure3.csv", chosen.folder / "fastemd-figure3.png"
    print(f"Numbers: {numbers}")
    print(f"{'':26}{'lambda':>8}{'SD / EMD':>12}{'cosine dist.':>14}{'misses p by':>13}  failed")
    measured = []
    with open_table(numbers, Point._fields) as add:
        for point in points(settings, lams, rows, progress):
            add(point)
            measured.append(point)
            clear_bar()
            print(
                f"{point.method:6}{point.dtype:8}{point.limit:6} times{point.lam:8.2f}"
                f"{point.ratio:12.4g}{point.cosine_distance:14.3g}{point.error:13.1e}"
                f"  {point.failed} of {point.rows}",
                flush=True,
            )
    picture(measured, limits, drawn)
    print(f"Picture: {drawn}")
    return 0
