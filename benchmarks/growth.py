"""Measure how time and memory of `fastemd.pairwise` grow with samples and tips.

Run it by ``python -m benchmarks.growth``. The tables are random and sparse, the trees random and
binary, and rho is 1, as for weighted UniFrac. Each size is measured in a separate process: the
fastest of three calls, and the peak resident memory of the process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import scipy.sparse

import fastemd
from benchmarks.common import yule_tree

DENSITY = 0.03
BY_SAMPLES = [(n, 10_000) for n in (250, 500, 1000, 2500, 5000)]
BY_TIPS = [(1000, n) for n in (2500, 5000, 20_000, 40_000)]
EXTRAPOLATED = (25_000, 100_000)
FIT_FROM = 1000  # samples; with fewer, constant costs dominate
REPEATS = 3
GIB = 2.0**30


def binary_tree(n_tips, seed=0):
    """Return a random binary tree."""
    rng = np.random.default_rng(seed)
    parent = yule_tree(n_tips, rng)
    return fastemd.Tree.from_parents(parent, rng.exponential(size=parent.size), bins=range(n_tips))


def random_table(n_samples, n_tips, seed=0):
    """Return a sparse table whose rows have `DENSITY` non-zero entries on average, and mass 1."""
    rng = np.random.default_rng(seed)
    table = scipy.sparse.random_array((n_samples, n_tips), density=DENSITY, format="csr", rng=rng)
    return scipy.sparse.diags_array(1.0 / table.sum(axis=1)) @ table


def measure(n_samples, n_tips):
    """Return the seconds of the fastest call, and the peak resident bytes of this process."""
    tree, table = binary_tree(n_tips), random_table(n_samples, n_tips)
    fastemd.pairwise(table[:16], space=tree, rho=1)  # compile
    seconds = np.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        fastemd.pairwise(table, space=tree, rho=1, progress=False)
        seconds = min(seconds, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, peak if sys.platform == "darwin" else 1024 * peak


def measure_in_process(n_samples, n_tips):
    command = [sys.executable, "-m", "benchmarks.growth", "--one", str(n_samples), str(n_tips)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def power_law(x, y):
    """Return the exponent and the factor of the power law through points, by least squares."""
    exponent, constant = np.polyfit(np.log(x), np.log(y), 1)
    return exponent, np.exp(constant)


def show(n_samples, n_tips, seconds, memory):
    print(f"| {n_samples:,} | {n_tips:,} | {seconds} | {memory} |", flush=True)


def report(sizes, fit_from=FIT_FROM):
    """Print the table, with the times extrapolated to more samples."""
    print("| samples | tips | seconds | peak memory |\n|--:|--:|--:|--:|")
    seconds = {}
    for size in sizes:
        seconds[size], peak = measure_in_process(*size)
        show(*size, f"{seconds[size]:.2f}", f"{peak / GIB:.2f} GiB")

    n_tips = sizes[0][1]
    fitted = [size for size in sizes if size[1] == n_tips and size[0] >= fit_from]
    samples = [n for n, _ in fitted]
    exponent, factor = power_law(samples, [seconds[size] for size in fitted])
    for n in EXTRAPOLATED:
        matrix = 8.0 * n * n / GIB
        # The exponent of the fit is below 2 if costs of single rows still count.
        estimates = factor * n**exponent, seconds[fitted[-1]] * (n / samples[-1]) ** 2
        extrapolated = f"{min(estimates):,.0f} to {max(estimates):,.0f} (extrapolated)"
        show(n, n_tips, extrapolated, f"matrix alone: {matrix:,.1f} GiB")
    print(
        f"\nExtrapolated, not measured: seconds = {factor:.3g} * samples^{exponent:.2f}, fitted to "
        f"{min(samples):,} to {samples[-1]:,} samples at {n_tips:,} tips; and the square of the "
        f"samples, from {samples[-1]:,} samples."
    )
    fitted = [size for size in sizes if size[0] == 1000]
    exponent, factor = power_law([n for _, n in fitted], [seconds[size] for size in fitted])
    print(f"With tips, at 1,000 samples: seconds = {factor:.3g} * tips^{exponent:.2f}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--one", nargs=2, type=int, metavar=("SAMPLES", "TIPS"), help="print the JSON of one size"
    )
    sizes = parser.parse_args().one
    if sizes:
        print(json.dumps(measure(*sizes)))
    else:
        report(BY_SAMPLES + BY_TIPS)


if __name__ == "__main__":
    main()
