"""Times of fastemd that are compared over releases, back to version 0.1.

    asv run --bench "^history" --launch-method spawn HEAD^!

Only public names of fastemd are used. A function that a release does not have is
skipped. Everything is compiled in `setup`. The class `Start` measures compilation.
"""

import os
import subprocess
import sys
import tempfile

import fastemd
from benchmarks.common import histograms, logits, random_tree
from benchmarks.samples import problem


def function(name):
    """Return a function of fastemd; asv skips the benchmark if the release does not have it."""
    if not hasattr(fastemd, name):
        raise NotImplementedError
    return getattr(fastemd, name)


class _ValueAndGradient:
    param_names = ("rows", "rho")
    timeout = 300
    dtype = "float32"

    def setup(self, rows, rho):
        space = self.space()
        p, q = (histograms((rows, space.n_bins), self.dtype, seed) for seed in (0, 1))
        self.run = lambda: fastemd.emd_value_and_grad(p, q, space, rho)
        self.run()

    def time_value_and_gradient(self, *_):
        self.run()


class Tree(_ValueAndGradient):
    """The ImageNet tree, in float32."""

    params = ((1, 512, 8192), (1, 2, 3.7))
    space = staticmethod(fastemd.datasets.imagenet_tree)


class TreeFloat64(Tree):
    """The ImageNet tree, in float64."""

    params = ((512,), (2,))
    dtype = "float64"


class Chain(_ValueAndGradient):
    """A chain of 1000 bins, in float32."""

    params = ((512, 8192), (2,))

    def space(self):
        return fastemd.Chain(1000)


class Operations:
    """512 rows on the ImageNet tree."""

    params = (
        "emd",
        "emd_grad",
        "emd_hessian_diag",
        "emd_hvp",
        "emd_length_grad",
        "emd_flow",
        "embed",
    )
    param_names = ("function",)

    def setup(self, name):
        call, tree = function(name), fastemd.datasets.imagenet_tree()
        p, q, v = (histograms((512, tree.n_bins), "float32", seed) for seed in range(3))
        arguments = {
            "emd_hvp": (p, q, v, tree, 2),
            "emd_flow": (p, q, tree),
            "embed": (p, tree, 2),
        }.get(name, (p, q, tree, 2))
        self.run = lambda: call(*arguments)
        self.run()

    def time_operation(self, _):
        self.run()


class Hessian:
    """The dense Hessian of 8 rows on the ImageNet tree."""

    def setup(self):
        tree = fastemd.datasets.imagenet_tree()
        p, q = (histograms((8, tree.n_bins), "float32", seed) for seed in (0, 1))
        self.run = lambda: fastemd.emd_hessian(p, q, tree, 2)
        self.run()

    def time_hessian(self):
        self.run()


class Loss:
    """EMD^2 and cross entropy of logits and labels on the ImageNet tree."""

    params = (("emd_loss", "emd_loss_hessian_diag"), (512, 8192))
    param_names = ("function", "rows")

    def setup(self, name, rows):
        call, tree = function(name), fastemd.datasets.imagenet_tree()
        x, target = logits((rows, tree.n_bins), "float32")
        self.run = lambda: call(x, target, tree, cross_entropy=1.0)
        self.run()

    def time_loss(self, *_):
        self.run()


class Pairs:
    """All pairs of 400 sparse samples on a phylogeny of 2,000 taxa."""

    params = ("pairwise, rho 1", "pairwise, rho 2", "neighbors", "unifrac")
    param_names = ("function",)
    timeout = 300

    def setup(self, name):
        name, _, option = name.partition(", rho ")
        call, case = function(name), problem(400, 2000, 0.05)
        tree = fastemd.Tree.from_parents(case.parents, case.lengths)
        x = case.histograms
        self.run = {
            "pairwise": lambda: call(x, space=tree, rho=int(option)),
            "neighbors": lambda: call(x, x, space=tree, rho=1, k=10),
            "unifrac": lambda: call(case.table, tree, metric="unweighted"),
        }[name]
        self.run()

    def time_pairs(self, _):
        self.run()


class Growth:
    """Value and gradient of 16 rows on random trees; time is linear in the nodes."""

    params = (10**2, 10**4, 10**6)
    param_names = ("nodes",)
    timeout = 300

    def setup(self, nodes):
        tree = random_tree(nodes)
        p, q = (histograms((16, tree.n_bins), "float32", seed) for seed in (0, 1))
        self.run = lambda: fastemd.emd_value_and_grad(p, q, tree, 2)
        self.run()

    def time_value_and_gradient(self, _):
        self.run()


class Start:
    """Time of a new process until its first result."""

    timeout = 300
    number, repeat, warmup_time = 1, (3, 5, 30.0), 0
    FIRST_CALL = "import fastemd; fastemd.emd_grad([1, 0], [0, 1], fastemd.Chain(2), 2)"

    def setup(self):
        self.python(self.FIRST_CALL)  # fill the caches

    def python(self, code, **environment):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **environment})

    def time_python_alone(self):
        self.python("import numpy")

    def time_import(self):
        self.python("import fastemd")

    def time_first_result_from_the_cache(self):
        self.python(self.FIRST_CALL)

    def time_first_result_compiled(self):
        with tempfile.TemporaryDirectory() as empty:
            self.python(self.FIRST_CALL, NUMBA_CACHE_DIR=empty)
