"""Figure 3: how near Sinkhorn comes to the Earth Mover's Distance on the ImageNet tree."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import datasets
from fastemd.demo.common import parse_options, predictions, save_rows
from fastemd.functions import emd_value_and_grad
from fastemd.progress import Progress, show_status
from fastemd.sinkhorn import sinkhorn

Array = NDArray[Any]
TYPES_LIMIT = 1000  # iterations in the comparison of types
TOL = 1e-12  # iterations after this error change nothing visible


class Setting(NamedTuple):
    """One curve."""

    method: str
    dtype: str
    limit: int


class Point(NamedTuple):
    """The results of a setting for one lambda; means over the rows that did not fail."""

    method: str
    dtype: str
    limit: int
    lam: float
    ratio: float  # SD / EMD
    cosine_distance: float  # between the centred gradients
    error: float  # mass by which the plan misses p, in the worst row that did not fail
    failed: int  # rows without a finite value and gradient
    rows: int


def points(
    settings: Sequence[Setting], lams: Sequence[float], rows: int, progress: Progress
) -> Iterator[Point]:
    """Yield every setting at every lambda, for random histograms on the ImageNet tree."""
    tree = datasets.imagenet_tree()
    cost = tree.cost_matrix()
    p, q = (predictions(rows, tree.n_bins, seed) for seed in (0, 1))
    value, grad = emd_value_and_grad(p, q, tree, 1)
    for setting in settings:
        for lam in lams:
            method, dtype, limit = setting
            result = sinkhorn(
                p, q, cost, lam=lam, max_iter=limit, tol=TOL, method=method, dtype=dtype
            )
            progress.add(limit)
            valid = np.isfinite(result.value) & np.isfinite(result.grad).all(axis=-1)
            ratio = distance = error = np.nan
            if valid.any():
                ratio = float((result.value[valid].astype(np.float64) / value[valid]).mean())
                directions = result.grad[valid].astype(np.float64), grad[valid]
                distance = float(cosine_distance(*directions).mean())
                error = float(result.error[valid].max())
            failed = int((~valid).sum())
            yield Point(*setting, float(lam), ratio, distance, error, failed, rows)


def cosine_distance(a: Array, b: Array) -> Array:
    """Return 1 - cos of the angle between centred rows; 0 for the same direction."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    distance: Array = 1.0 - (a * b).sum(axis=-1) / lengths
    return distance


def draw(measured_points: Sequence[Point], limits: Sequence[int], path: Path) -> None:
    """Draw four panels as in the paper: (a, c) iteration limits, (b, d) types."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    types_limit = min(TYPES_LIMIT, max(limits))
    left = {f"{n} iterations": Setting("paper", "float64", n) for n in limits}
    right = {
        "float32, as printed": Setting("paper", "float32", types_limit),
        "float64, as printed": Setting("paper", "float64", types_limit),
        "float64, log domain": Setting("log", "float64", types_limit),
    }
    titles = ("iteration limits (float64, as printed)", f"types ({types_limit} iterations)")
    markers = ("o", "s", "^", "D")
    widths = {"o": 5, "s": 3, "^": 1.5, "D": 0.8}
    for column, curves in enumerate((left, right)):
        top, bottom = panels[:, column]
        for marker, (label, setting) in zip(markers, curves.items(), strict=False):
            curve = [x for x in measured_points if x[:3] == setting]
            lam = [x.lam for x in curve]
            style = {"marker": marker, "label": label, "markersize": widths[marker] + 3}
            style |= {"linewidth": widths[marker]}  # so that coinciding curves all show
            top.plot(lam, [x.ratio for x in curve], **style)
            bottom.plot(lam, [x.cosine_distance for x in curve], **style)
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
    options = parse_options("-m fastemd figure3", __doc__, arguments)
    limits, rows = [10, 100, 1000, 10000], 4
    lams = [float(10.0**x) for x in np.arange(-1.0, 3.0, 0.5)]
    if options.quick:
        limits, rows, lams = [5, 20], 2, lams[::2]
    types_limit = min(TYPES_LIMIT, max(limits))
    settings = [Setting("paper", "float64", n) for n in limits]
    settings += [Setting("paper", "float32", types_limit), Setting("log", "float64", types_limit)]
    progress = Progress(len(lams) * sum(setting.limit for setting in settings))
    table, picture = options.folder / "fastemd-figure3.csv", options.folder / "fastemd-figure3.png"
    print(f"Numbers: {table}")
    print(f"{'':26}{'lambda':>8}{'SD / EMD':>12}{'cosine dist.':>14}{'misses p by':>13}  failed")
    measured_points = []
    for point in save_rows(table, Point._fields, points(settings, lams, rows, progress)):
        measured_points.append(point)
        show_status()
        print(
            f"{point.method:6}{point.dtype:8}{point.limit:6} times{point.lam:8.2f}"
            f"{point.ratio:12.4g}{point.cosine_distance:14.3g}{point.error:13.1e}"
            f"  {point.failed} of {point.rows}",
            flush=True,
        )
    draw(measured_points, limits, picture)
    print(f"Picture: {picture}")
    return 0
