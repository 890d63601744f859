"""What all benchmarks share: problems, and how long their solutions take."""

import time

import numpy as np

import fastemd
from fastemd.demo.baselines import CALLS_PER_TURN, measure
from fastemd.demo.common import softmax


def histograms(shape, dtype, seed=0):
    """Random softmax predictions."""
    rng = np.random.default_rng(seed)
    return softmax(3.0 * rng.standard_normal(shape, np.float32).astype(dtype))


def logits(shape, dtype, seed=0):
    """Random logits, and a class for every row."""
    rng = np.random.default_rng(seed)
    x = 3.0 * rng.standard_normal(shape, np.float32).astype(dtype)
    return x, rng.integers(0, shape[-1], shape[:-1])


def random_tree(n_nodes, seed=0):
    """A random recursive tree: every node hangs below a random earlier one."""
    rng = np.random.default_rng(seed)
    parents = np.append(-1, rng.integers(0, np.arange(1, n_nodes)))
    return fastemd.Tree.from_parents(parents, rng.exponential(size=n_nodes))


def timed(contenders, seconds=1.0):
    """Median and half the range between the quartiles of everyone's run times, taken in turns."""
    for run in contenders.values():
        run()  # compiles, allocates
    start = time.perf_counter()
    for run in contenders.values():
        run()
    once = (time.perf_counter() - start) / len(contenders)
    times = measure(contenders, max(CALLS_PER_TURN, min(100, int(seconds / once))))
    quartiles = {name: np.quantile(values, (0.25, 0.5, 0.75)) for name, values in times.items()}
    return {name: (middle, (high - low) / 2) for name, (low, middle, high) in quartiles.items()}
