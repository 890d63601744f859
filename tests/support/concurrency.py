"""Scenes of test_concurrency.py, each run in a process: calls from threads and from processes."""

import ctypes
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if os.environ.get("NUMBA_THREADING_LAYER") == "tbb":  # Numba does not find what pip installed
    ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)

import numba
import numpy as np

import fastemd

TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2])
CHAIN = fastemd.Chain(50)
ROWS = 20_000  # enough to run in parallel


def problem(seed):
    rng = np.random.default_rng(seed)
    space = (TREE, CHAIN)[seed % 2]
    return *rng.dirichlet(np.ones(space.n_bins), (2, ROWS)), space


def solve(seed):
    """Return whether a call large enough to run in parallel agrees with calls of single rows."""
    p, q, space = problem(seed)
    value, grad = fastemd.emd_value_and_grad(p, q, space, 2)
    some = [0, 1, ROWS // 2, ROWS - 1]
    rows = [fastemd.emd_value_and_grad(p[i], q[i], space, 2) for i in some]
    return all(
        value[i] == row[0] and np.array_equal(grad[i], row[1])
        for i, row in zip(some, rows, strict=True)
    )


def threads():
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(solve, range(64)))


def forked():
    solve(0)  # starts threads, which a child does not inherit
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        return all(pool.map(solve, range(12))) and solve(1)


def forked_while_busy():
    """Fork while other threads are inside a parallel kernel, as a data loader may.

    The kernels are compiled before: a fork during compilation leaves the lock of Numba held.
    """
    assert all(map(solve, range(2)))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(solve, seed) for seed in range(40)]
        with multiprocessing.get_context("fork").Pool(2) as children:
            good = all(children.map(solve, range(8)))
        return good and all(job.result() for job in jobs)


def nested():
    """Call from a pool of threads whose workers start further pools."""

    def inner(seed):
        with ThreadPoolExecutor(2) as pool:
            return all(pool.map(solve, [seed, seed + 1]))

    with ThreadPoolExecutor(4) as pool:
        return all(pool.map(inner, range(12)))


def spawned():
    solve(0)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return all(pool.map(solve, range(4)))


def users_threads_stay():
    """Return whether the number of threads and the error state of NumPy are preserved."""
    numba.set_num_threads(1)
    with np.errstate(all="raise"):
        before = np.geterr()
        solve(0)
        return numba.get_num_threads() == 1 and np.geterr() == before


if __name__ == "__main__":
    scene, layer = sys.argv[1:]
    good = globals()[scene]()
    if layer != "default" and scene != "users_threads_stay":
        assert numba.threading_layer() == layer, numba.threading_layer()
    sys.exit(not good)
