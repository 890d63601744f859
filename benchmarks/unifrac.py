"""Print a table of UniFrac of all pairs of samples: fastemd, scikit-bio, and ssu where installed.

    python -m benchmarks.unifrac
    python -m benchmarks.unifrac --samples 1000 --taxa 10000 --density 0.03 --metrics unweighted

The problem is random, and the same for the same sizes. The tree is binary and from the Yule model,
with exponential lengths. The prevalence of the taxa is log-normal: a few are in most samples, most
in few. With 1,000 samples, 10,000 taxa and 3 % of the counts non-zero, more than an eighth of the
samples have counts below 4,245 of the 19,998 edges, and more than half below 1,201.

Programs named "from files" are processes that read the table (BIOM) and the tree (Newick) and
write the distances; their time is that of the process. The others start from arrays and trees in
memory. All use the number of threads of Numba. Runs are interleaved. Figures are medians, with
half of the interquartile range. The difference is the largest one from the first program of the
metric, relative to its largest distance; ssu reads lengths in float32 also where it computes in
float64.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numba
import numpy as np
from scipy import sparse

import fastemd
from benchmarks.report import header, machine, row
from benchmarks.samples import problem

SIZES = [(400, 2_000, 0.05), (1_000, 10_000, 0.03)]
ALPHA = 0.5  # of the generalized metric
SCIKIT_BIO = {
    "weighted": ("weighted_unifrac", {"normalized": False}),
    "weighted_normalized": ("weighted_unifrac", {"normalized": True}),
    "unweighted": ("unweighted_unifrac", {}),
}
SSU = {  # method and options; the method with the suffix _fp64 computes in float64
    "weighted": ("weighted_unnormalized", []),
    "weighted_normalized": ("weighted_normalized", []),
    "unweighted": ("unweighted", []),
    "generalized": ("generalized", ["-a", str(ALPHA)]),
    "variance_adjusted": ("weighted_normalized", ["--vaw"]),
}


# The programs -------------------------------------------------------------------------------------


def programs(case, folder, metric):
    """Return runs by name; every run returns the matrix of distances."""
    tree = fastemd.Tree.from_parents(case.parents, case.lengths)
    runs = {
        "fastemd": partial(run_fastemd, case.table, tree, metric),
        "fastemd, from files": partial(run_command_line, folder, metric),
    }
    if metric in SCIKIT_BIO:
        runs["scikit-bio"] = scikit_bio(case, metric)
    if shutil.which("ssu"):
        runs["ssu, from files"] = partial(run_ssu, folder, metric, "_fp64")
        runs["ssu, float32, from files"] = partial(run_ssu, folder, metric, "_fp32")
    return runs


def run_fastemd(table, tree, metric):
    result = fastemd.unifrac(table, tree, metric=metric, alpha=ALPHA)
    return result.data if hasattr(result, "ids") else np.asarray(result)


def run_command_line(folder, metric):
    out = folder / "fastemd.npy"
    command = [sys.executable, "-m", "fastemd", "unifrac", folder / "table.biom"]
    command += [folder / "tree.nwk", "-m", metric, "-o", out]
    command += ["--alpha", str(ALPHA)] if metric == "generalized" else []
    threads = {"NUMBA_NUM_THREADS": str(numba.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | threads)
    return np.load(out)


def scikit_bio(case, metric):
    """Return a run of the Numba engine, from dense counts and without validation."""
    import skbio

    name, keywords = SCIKIT_BIO[metric]
    counts = case.table.toarray().astype(np.int64)
    tree = skbio.TreeNode.read([case.newick])
    keywords = keywords | {"taxa": case.taxa, "tree": tree, "validate": False, "engine": "numba"}
    return lambda: skbio.diversity.beta_diversity(name, counts, **keywords).data


def run_ssu(folder, metric, suffix):
    import h5py

    method, options = SSU[metric]
    out = folder / "ssu.h5"
    command = ["ssu", "-i", folder / "table.biom", "-t", folder / "tree.nwk", "-o", out, *options]
    command += ["-m", method + suffix, "-r", f"hdf5{suffix}", "--pcoa", "0"]
    threads = {"OMP_NUM_THREADS": str(numba.get_num_threads()), "UNIFRAC_USE_GPU": "N"}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | threads)
    with h5py.File(out) as file:
        ids = [name.decode() for name in file["order"][:]]
        order = np.argsort([int(name[1:]) for name in ids])
        return file["matrix"][:][np.ix_(order, order)]


def write_files(case, folder):
    import biom
    import h5py

    table = biom.Table(sparse.csr_matrix(case.table.T), case.taxa, case.samples)
    with h5py.File(folder / "table.biom", "w") as file:
        table.to_hdf5(file, "benchmarks")
    (folder / "tree.nwk").write_text(case.newick, encoding="utf-8")


# The table ----------------------------------------------------------------------------------------


def timed_results(runs, repeats):
    """Return the seconds of interleaved runs by name, and their results."""
    results = {name: run() for name, run in runs.items()}  # compile
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def compare(case, metric, density, repeats, folder):
    seconds, results = timed_results(programs(case, folder, metric), repeats)
    first = next(iter(results.values()))
    unit = np.median(seconds["fastemd"])
    for name, times in seconds.items():
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
        difference = np.abs(results[name] - first).max() / first.max()
        sizes = f"{case.table.shape[0]:,} x {case.table.shape[1]:,}, {density:.0%}", metric
        time_cell = f"{middle:.3f} ± {(high - low) / 2:.3f} s"
        row(*sizes, name, time_cell, f"{middle / unit:.2f}", f"{difference:.1e}")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, help="size of one problem; by default, two sizes")
    parser.add_argument("--taxa", type=int, default=10_000)
    parser.add_argument("--density", type=float, default=0.03)
    parser.add_argument(
        "--metrics", nargs="+", choices=[*SSU, "all"], default=["weighted", "unweighted"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if not options.samples and (options.taxa, options.density) != (10_000, 0.03):
        parser.error("--taxa and --density need --samples")
    sizes = [(options.samples, options.taxa, options.density)] if options.samples else SIZES
    print(machine())
    header("samples x taxa, density", "metric", "program", "time", "ratio to fastemd", "difference")
    for n_samples, n_taxa, density in sizes:
        case = problem(n_samples, n_taxa, density)
        with tempfile.TemporaryDirectory() as folder:
            write_files(case, Path(folder))
            for metric in SSU if "all" in options.metrics else options.metrics:
                compare(case, metric, density, options.repeats, Path(folder))


if __name__ == "__main__":
    main()
