"""What all benchmarks share: problems, and one table of ways to solve them.

An implementation in `IMPLEMENTATIONS` takes ``(space, p, q, rho)`` and returns a function without
arguments that gives the values and projected gradients of EMD^rho for the batch, or raises
NotImplementedError. `tests/test_peers.py` checks the same table.
"""

import time

import numpy as np
import scipy.sparse

import fastemd
from fastemd.__main__ import TURN, ancestor_matrix, by_products, measure


def histograms(shape, dtype, seed=0):
    """Random softmax predictions."""
    rng = np.random.default_rng(seed)
    weights = np.exp(3.0 * rng.standard_normal(shape, np.float32).astype(dtype))
    return weights / weights.sum(axis=-1, keepdims=True)


def random_tree(n_nodes, seed=0):
    """A random recursive tree: every node hangs below a random earlier one."""
    rng = np.random.default_rng(seed)
    parents = np.append(-1, rng.integers(0, np.arange(1, n_nodes)))
    return fastemd.Tree.from_parents(parents, rng.exponential(size=n_nodes))


def with_fastemd(space, p, q, rho):
    out = np.empty(p.shape[:-1], p.dtype), np.empty_like(p)
    return lambda: fastemd.emd_value_and_grad(p, q, space, rho, out=out, validate=False)


def with_fastemd_checked(space, p, q, rho):
    return lambda: fastemd.emd_value_and_grad(p, q, space, rho)


def with_scipy_sparse(space, p, q, rho):
    ancestors, weight = (array.astype(p.dtype) for array in ancestor_matrix(space))
    sparse = scipy.sparse.csr_array(ancestors)
    return lambda: by_products(sparse, weight, p, q, rho)


def with_dense_blas(space, p, q, rho):
    ancestors, weight = (array.astype(p.dtype) for array in ancestor_matrix(space))
    return lambda: by_products(ancestors, weight, p, q, rho)


IMPLEMENTATIONS = {
    "fastemd": with_fastemd,
    "fastemd, checked": with_fastemd_checked,
    "scipy.sparse": with_scipy_sparse,
    "dense BLAS": with_dense_blas,
}


def timed(contenders, seconds=1.0):
    """Median and half the range between the quartiles of everyone's run times, taken in turns."""
    for run in contenders.values():
        run()  # compiles, allocates
    start = time.perf_counter()
    for run in contenders.values():
        run()
    once = (time.perf_counter() - start) / len(contenders)
    times = measure(contenders, max(TURN, min(100, int(seconds / once))))
    quartiles = {name: np.quantile(values, (0.25, 0.5, 0.75)) for name, values in times.items()}
    return {name: (middle, (high - low) / 2) for name, (low, middle, high) in quartiles.items()}
