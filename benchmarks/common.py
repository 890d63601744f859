"""Problems and timing for all benchmarks."""

import time

import numpy as np
from scipy.special import softmax

import fastemd


def histograms(shape, dtype, seed=0):
    """Return random softmax predictions."""
    rng = np.random.default_rng(seed)
    return softmax(3.0 * rng.standard_normal(shape, np.float32).astype(dtype), axis=-1)


def logits(shape, dtype, seed=0):
    """Return random logits, and a class for every row."""
    rng = np.random.default_rng(seed)
    x = 3.0 * rng.standard_normal(shape, np.float32).astype(dtype)
    return x, rng.integers(0, shape[-1], shape[:-1])


def random_tree(n_nodes, seed=0):
    """Return a random recursive tree: the parent of every node is a random earlier one."""
    rng = np.random.default_rng(seed)
    parents = np.append(-1, rng.integers(0, np.arange(1, n_nodes)))
    return fastemd.Tree.from_parents(parents, rng.exponential(size=n_nodes))


def yule_tree(n_taxa, rng):
    """Return the parents of a binary tree: two random subtrees are joined until one is left."""
    parents, subtrees = np.full(2 * n_taxa - 1, -1), list(range(n_taxa))
    for node in range(n_taxa, 2 * n_taxa - 1):
        for _ in range(2):
            drawn = rng.integers(len(subtrees))
            subtrees[drawn], subtrees[-1] = subtrees[-1], subtrees[drawn]
            parents[subtrees.pop()] = node
        subtrees.append(node)
    return parents


def timed(runs, seconds=1.0):
    """Return median and half the interquartile range of the seconds of interleaved runs."""
    from fastemd.demo.baselines import CALLS_PER_TURN, measure  # version 0.1 has no fastemd.demo

    for run in runs.values():
        run()  # compile, allocate
    start = time.perf_counter()
    for run in runs.values():
        run()
    once = (time.perf_counter() - start) / len(runs)
    times = measure(runs, max(CALLS_PER_TURN, min(100, int(seconds / once))))
    quartiles = {name: np.quantile(values, (0.25, 0.5, 0.75)) for name, values in times.items()}
    return {name: (middle, (high - low) / 2) for name, (low, middle, high) in quartiles.items()}


def peak_growth(run, device="cpu"):
    """Return by how many bytes the memory of the process grows at its peak in three runs.

    All allocators count: NumPy's, torch's and Numba's. On the CPU this is the peak of the resident
    memory, as Linux reports it. On CUDA it is the memory of the device that is in use after the
    runs, when torch's allocator still holds all that it needed. No other process may use the
    device.
    """
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        before, _ = torch.cuda.mem_get_info()
        for _ in range(3):
            run()
        return before - torch.cuda.mem_get_info()[0]
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak so far is forgotten
    before = resident_bytes("VmRSS")
    for _ in range(3):
        run()
    return resident_bytes("VmHWM") - before


def resident_bytes(name):
    """Return an entry of /proc/self/status: VmRSS is the resident memory, VmHWM its peak."""
    with open("/proc/self/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024
