"""Print the tables of docs/performance.md.

    python -m benchmarks.report

All figures of a table are medians of runs taken in turns in one process, and ratios to
``np.subtract(p, q, out=g)`` on the same arrays where that makes sense.
"""

import platform

import numba
import numpy as np

import fastemd
from benchmarks.common import histograms, random_tree, timed
from fastemd.rivals import IMPLEMENTATIONS


def machine():
    """What the figures were taken on."""
    try:
        with open("/proc/cpuinfo") as info:
            name = next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or "unknown processor"
    return (
        f"{name}, {numba.get_num_threads()} threads, {platform.system()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    )


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells):
    print()
    row(*cells)
    row(*["---"] + ["--:"] * (len(cells) - 1))


def ratio(time, unit):
    middle, spread = time
    return f"{middle / unit:.2f} ± {spread / unit:.2f}"


def against_subtraction(space, name, dtype, batches):
    p, q = (
        histograms((max(batches), space.n_bins), dtype),
        histograms((max(batches), space.n_bins), dtype, 1),
    )
    for batch in batches:
        a, b = p[:batch], q[:batch]
        g = np.empty_like(a)
        contenders = {"subtract": lambda a=a, b=b, g=g: np.subtract(a, b, out=g)}
        for rho in (1, 2, 3.7):
            contenders[rho] = IMPLEMENTATIONS["fastemd"](space, a, b, rho)
        contenders["checked"] = IMPLEMENTATIONS["fastemd, checked"](space, a, b, 2)
        times = timed(contenders)
        unit = times["subtract"][0]
        ratios = [ratio(times[key], unit) for key in (1, 2, 3.7, "checked")]
        row(name, np.dtype(dtype).name, batch, f"{unit * 1e3:.3f} ms", *ratios)


def against_peers(space, batch):
    p, q = (histograms((batch, space.n_bins), np.float32, seed) for seed in (0, 1))
    g = np.empty_like(p)
    contenders = {"np.subtract": lambda: np.subtract(p, q, out=g)}
    contenders |= {name: make(space, p, q, 2) for name, make in IMPLEMENTATIONS.items()}
    times = timed(contenders)
    unit = times["fastemd"][0]
    for name, (middle, spread) in times.items():
        row(name, f"{middle * 1e3:.3f} ± {spread * 1e3:.3f} ms", f"{middle / unit:.2f}")


def growth():
    header("tree", "nodes", "batch", "time", "per node and row")
    cases = [("ImageNet", fastemd.datasets.imagenet_tree(), batch) for batch in (16, 512, 8192)]
    cases += [("random", random_tree(10**k), 16) for k in (2, 3, 4, 5, 6)]
    cases += [("path", fastemd.Tree.from_parents(range(-1, 99_999), bins=range(100_000)), 16)]
    for name, space, batch in cases:
        p, q = (histograms((batch, space.n_bins), np.float32, seed) for seed in (0, 1))
        middle, spread = timed({"": IMPLEMENTATIONS["fastemd"](space, p, q, 2)})[""]
        per_node = middle / space.n_nodes / batch
        took = f"{middle * 1e3:.3f} ± {spread * 1e3:.3f} ms"
        row(name, space.n_nodes, batch, took, f"{per_node * 1e9:.2f} ns")


def main():
    print(machine())
    tree, chain = fastemd.datasets.imagenet_tree(), fastemd.Chain(1000)
    header("space", "type", "batch", "np.subtract", "rho = 1", "2", "3.7", "2, checked")
    for dtype in (np.float32, np.float64):
        against_subtraction(tree, "ImageNet tree", dtype, (512, 8192))
        against_subtraction(chain, "chain of 1000", dtype, (512, 8192))
    header("ImageNet tree, batch of 512, float32, rho = 2", "time", "ratio to fastemd")
    against_peers(tree, 512)
    growth()


if __name__ == "__main__":
    main()
