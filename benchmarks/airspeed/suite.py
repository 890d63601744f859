"""Ratios to other implementations, memory, and times that `history.py` does not have.

    asv run --python=same --quick --launch-method spawn

Parameters do not depend on the version, data are seeded, and everything is compiled in `setup`.
"""

from functools import partial

import numpy as np

import fastemd
from benchmarks.common import histograms, logits, timed
from benchmarks.frameworks import binned_regression, cross_entropy, small_calls, training
from benchmarks.samples import problem
from benchmarks.unifrac import scikit_bio
from fastemd.demo.baselines import EMD_BASELINES, SINKHORN_BASELINES


def _space(name):
    return fastemd.datasets.imagenet_tree() if name == "tree" else fastemd.Chain(int(name))


class _ValueAndGradient:
    """All baselines; a case that a baseline cannot solve is skipped."""

    param_names = ("space", "dtype", "batch", "rho", "implementation")
    timeout = 300

    def setup(self, space, dtype, batch, rho, implementation):
        space = _space(space)
        if batch * space.n_bins > 1e6 and not implementation.startswith("fastemd"):
            raise NotImplementedError  # the time per row is the same as in a small batch
        p, q = (histograms((batch, space.n_bins), dtype, seed) for seed in (0, 1))
        self.run = EMD_BASELINES[implementation](space, p, q, rho)
        self.run()
        grad = np.empty_like(p)
        self.subtract = lambda: np.subtract(p, q, out=grad)

    def track_ratio_to_subtraction(self, *_):
        times = timed({"subtract": self.subtract, "run": self.run}, seconds=0.2)
        return times["run"][0] / times["subtract"][0]

    track_ratio_to_subtraction.unit = "np.subtract"


class Tree(_ValueAndGradient):
    """The ImageNet tree."""

    params = (
        ("tree",),
        ("float32", "float64"),
        (1, 512, 8192),
        (1, 2, 3.7),
        tuple(EMD_BASELINES),
    )


class Chain(_ValueAndGradient):
    """Chains of different lengths; 1024 is a power-of-two stride."""

    params = (("64", "100", "1000", "1024"), ("float32", "float64"), (8000,), (2,), ("fastemd",))


class Loss:
    """EMD^2 and cross entropy of logits and labels, next to torch's cross entropy alone."""

    params = (("tree", "1000"), ("float32", "float64"), (512, 8192))
    param_names = ("space", "dtype", "batch")

    def setup(self, space, dtype, batch):
        space = _space(space)
        x, target = logits((batch, space.n_bins), dtype)
        self.loss = lambda: fastemd.emd_loss(x, target, space, cross_entropy=1.0)
        self.torch = cross_entropy(x, target)
        self.loss()

    def peakmem_loss(self, *_):
        self.loss()

    def track_ratio_to_cross_entropy(self, *_):
        times = timed({"torch": self.torch, "loss": self.loss}, seconds=0.2)
        return times["loss"][0] / times["torch"][0]

    track_ratio_to_cross_entropy.unit = "torch cross_entropy"


class LossAxis:
    """The loss of images or sequences with the classes on axis 1, next to the last axis."""

    params = (((8, 21, 128, 128), (8, 1000, 500)), (1, -1))
    param_names = ("shape", "axis")

    def setup(self, shape, axis):
        x, target = logits((shape[0], *shape[2:], shape[1]), "float32")
        x, chain = np.ascontiguousarray(np.moveaxis(x, -1, axis)), fastemd.Chain(shape[1])
        self.loss = lambda: fastemd.emd_loss(x, target, chain, cross_entropy=1.0, axis=axis)
        self.loss()

    def time_loss(self, *_):
        self.loss()

    def peakmem_loss(self, *_):
        self.loss()


class Hessian:
    """The dense Hessian, next to filling an array of its size."""

    params = (("tree", "1000"), ("float32", "float64"), (1, 8))
    param_names = ("space", "dtype", "batch")

    def setup(self, space, dtype, batch):
        space = _space(space)
        p, q = (histograms((batch, space.n_bins), dtype, seed) for seed in (0, 1))
        out = np.empty((batch, space.n_bins, space.n_bins), dtype)
        self.run = lambda: fastemd.emd_hessian(p, q, space, 2, out=out)
        self.fill = lambda: out.fill(1.0)
        self.run()

    def peakmem_hessian(self, *_):
        self.run()

    def track_ratio_to_filling(self, *_):
        times = timed({"fill": self.fill, "run": self.run}, seconds=0.2)
        return times["run"][0] / times["fill"][0]

    track_ratio_to_filling.unit = "ndarray.fill"


class Sinkhorn:
    """Ten iterations on the ImageNet tree; all predictions have one target, as POT needs it."""

    params = (("float32", "float64"), (1, 128), tuple(SINKHORN_BASELINES))
    param_names = ("dtype", "batch", "implementation")
    timeout = 300

    def setup(self, dtype, batch, implementation):
        if batch > 1 and "pair by pair" in implementation:
            raise NotImplementedError  # the time per row is the same as in a small batch
        tree = fastemd.datasets.imagenet_tree()
        p = histograms((batch, tree.n_bins), dtype, 0)
        q = np.repeat(histograms((1, tree.n_bins), dtype, 1), batch, axis=0)
        self.run = SINKHORN_BASELINES[implementation](
            p, q, tree.cost_matrix().astype(dtype), 1.0, 10
        )
        self.run()

    def time_ten_iterations(self, *_):
        self.run()


class Training:
    """Losses in torch, forward and backward, with labels."""

    params = (("tree", "1000"), (512, 8192), ("cross_entropy", "EMDLoss", "EMDLoss + CE"))
    param_names = ("space", "batch", "loss")

    def setup(self, space, batch, loss):
        self.run = training(_space(space), batch, np.dtype("float32"))[loss]
        self.run()

    def time_forward_and_backward(self, *_):
        self.run()


class BinnedRegression:
    """The CRPS of 5,000 unequal bins in torch, forward and backward, with labels."""

    params, param_names = ("plain torch", "EMDLoss"), ("loss",)

    def setup(self, loss):
        self.run = binned_regression(1024, 5000)[loss]
        self.run()

    def time_forward_and_backward(self, _):
        self.run()

    def peakmem_forward_and_backward(self, _):
        self.run()


class Calls:
    """Small calls in the frameworks."""

    params = (
        "emd_grad, NumPy",
        "emd_grad, PyTorch",
        "emd_grad, JAX",
        "fastemd.torch.emd",
        "jit of fastemd.jax.emd",
    )
    param_names = ("call",)

    def setup(self, call):
        self.run = small_calls()[call]
        self.run()

    def time_call(self, _):
        self.run()


class Memory:
    """Peak memory of a big batch: little more than inputs and results."""

    params = ("tree", "1000")
    param_names = ("space",)

    def setup(self, space):
        self.space = _space(space)
        self.p, self.q = (histograms((8192, 1000), "float32", seed) for seed in (0, 1))

    def peakmem_inputs_alone(self, space):
        self.p += 0.0

    def peakmem_value_and_gradient(self, space):
        fastemd.emd_value_and_grad(self.p, self.q, self.space, 2)


class Pairs:
    """All pairs of sparse samples on a phylogeny, next to scikit-bio and POT."""

    params, param_names = ("200 x 1000", "400 x 2000"), ("samples x taxa",)
    timeout = 300

    def setup(self, size):
        n_samples, n_taxa = map(int, size.split(" x "))
        self.case = problem(n_samples, n_taxa, 0.05)
        self.tree = fastemd.Tree.from_parents(self.case.parents, self.case.lengths)
        self.histograms = self.case.histograms
        self.pairwise()
        for metric in ("weighted", "unweighted"):
            self.unifrac(metric)

    def pairwise(self):
        return fastemd.pairwise(self.histograms, space=self.tree, rho=1)

    def unifrac(self, metric):
        return fastemd.unifrac(self.case.table, self.tree, metric=metric)

    def peakmem_pairwise(self, *_):
        self.pairwise()

    def ratio_to_scikit_bio(self, metric):
        runs = {
            "scikit-bio": scikit_bio(self.case, metric),
            "unifrac": partial(self.unifrac, metric),
        }
        times = timed(runs, seconds=0.2)
        return times["unifrac"][0] / times["scikit-bio"][0]

    def track_weighted_ratio_to_scikit_bio(self, *_):
        return self.ratio_to_scikit_bio("weighted")

    def track_unweighted_ratio_to_scikit_bio(self, *_):
        return self.ratio_to_scikit_bio("unweighted")

    def track_ratio_to_pot(self, *_):
        """Compare the times per pair; POT solves a few."""
        pairs, tree = self.histograms[:5], self.tree
        runs = {"pot": EMD_BASELINES["linear programme (POT)"](tree, pairs[:-1], pairs[1:], 1)}
        runs["pairwise"] = self.pairwise
        times = timed(runs, seconds=0.2)
        n = len(self.histograms)
        return (times["pairwise"][0] / (n * (n - 1) / 2)) / (times["pot"][0] / (len(pairs) - 1))

    track_weighted_ratio_to_scikit_bio.unit = "scikit-bio"
    track_unweighted_ratio_to_scikit_bio.unit = "scikit-bio"
    track_ratio_to_pot.unit = "POT, per pair"


class Path:
    """16 rows on a path, the deepest tree; time is linear in the nodes."""

    params, param_names = (10, 10**2, 10**3, 10**4, 10**5, 10**6), ("nodes",)
    timeout = 300

    def setup(self, nodes):
        space = fastemd.Tree.from_parents(np.arange(-1, nodes - 1), bins=range(nodes))
        p, q = (histograms((16, space.n_bins), "float32", seed) for seed in (0, 1))
        self.run = EMD_BASELINES["fastemd"](space, p, q, 2)
        self.run()

    def time_value_and_gradient(self, *_):
        self.run()


class Metrics:
    """Time of the ground distances of many labels."""

    params, param_names = ["tree", 1000], ["space"]

    def setup(self, space):
        tree = fastemd.datasets.imagenet_tree()
        self.space = tree if space == "tree" else fastemd.Chain(space)
        self.labels = np.random.default_rng(0).integers(0, 1000, (2, 100_000))

    def time_ground_distance(self, _):
        fastemd.metrics.ground_distance(*self.labels, self.space)

    def time_mean_ground_distance(self, _):
        fastemd.metrics.mean_ground_distance(*self.labels, self.space)
