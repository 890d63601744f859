"""Run the main kernels on arrays of Numba, for compute-sanitizer and ncu.

    compute-sanitizer --tool racecheck python -m benchmarks.gpu_check.kernels small
    ncu python -m benchmarks.gpu_check.kernels large

Without PyTorch or JAX in the process, all kernels that the tools see are those of fastemd.
"""

import argparse
import itertools

import numpy as np
from numba import cuda

import fastemd
from benchmarks.common import histograms, random_tree


def small():
    """Run kernels on five rows: few, as each is compiled, but with all sweeps and sums.

    By one warp per row, as for many rows, and by four, as for few.
    """
    from fastemd.kernels.cuda import driver

    for space, n_threads in itertools.product((random_tree(700), fastemd.Chain(601)), (32, 128)):
        block = n_threads, 128 // n_threads
        driver.block_of = lambda *_, block=block: block
        shape = 5, space.n_bins
        p, q, v = (cuda.to_device(histograms(shape, np.float64, seed)) for seed in range(3))
        grad = fastemd.emd_value_and_grad(p, q, space, 2)[1]
        assert np.isfinite(grad.copy_to_host()).all()
        fastemd.emd_hvp(p, q, v, space, 2)
        fastemd.emd_loss(v, cuda.to_device(np.arange(5)), space, cross_entropy=1.0)
    rows = cuda.to_device(histograms((2500, 3), np.float64, 0))  # sums in several blocks
    labels, weights = cuda.to_device(np.arange(2500) % 3), cuda.to_device(np.ones(2500))
    fastemd.emd_loss(rows, labels, fastemd.Chain(3), sample_weight=weights, ignore_index=2)
    p, q = (cuda.to_device(histograms((3, 40), np.float64, seed)) for seed in range(2))
    fastemd.emd_hessian(p, q, fastemd.Chain(40), 2)
    fastemd.synchronize()


def large():
    """Run value and gradient of 65,536 rows on the ImageNet tree three times."""
    rows = (histograms((1024, 1000), np.float32, seed) for seed in (0, 1))
    p, q = (cuda.to_device(np.tile(x, (64, 1))) for x in rows)
    for _ in range(3):
        fastemd.emd_value_and_grad(p, q, fastemd.datasets.imagenet_tree(), 2, validate=False)
    fastemd.synchronize()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.kernels")
    parser.add_argument("size", choices=("small", "large"))
    {"small": small, "large": large}[parser.parse_args().size]()
    print("done")


if __name__ == "__main__":
    main()
