"""The table of the functions on histograms, for tests that hold for all of them."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

import fastemd
from fastemd.losses import Loss, resolve_loss, run_loss
from tests.support import naive
from tests.support.device import BACKEND
from tests.support.strategies import random_pair


class Operation(NamedTuple):
    name: str
    arrays: tuple = ("p", "q")
    takes_rho: bool = True
    projects: bool = True
    tails: tuple = ("N",)  # shape per row of each result: "" scalar, N bins, E edges

    def __call__(self, arrays, space, rho, **keywords):
        """Return the results of the backend, always as a tuple."""
        result = getattr(BACKEND, self.name)(*arrays, space, *self._rho(rho), **keywords)
        return result if isinstance(result, tuple) else (result,)

    def naive(self, arrays, case, rho, **keywords):
        # Only results per edge depend on the order of the nodes in the space.
        ground = naive.ground(case.space) if self.tails == ("E",) else case.ground
        keywords.pop("validate", None)
        result = getattr(naive, self.name)(*arrays, ground, *self._rho(rho), **keywords)
        return result if isinstance(result, tuple) else (result,)

    def _rho(self, rho):
        return (rho,) if self.takes_rho else ()

    def shapes(self, batch, space):
        sizes = {"N": space.n_bins, "E": space.n_nodes - 1}
        return [tuple(batch) + tuple(sizes[letter] for letter in tail) for tail in self.tails]

    def out(self, buffers):
        """Return the argument `out` from a list of buffers."""
        return buffers[0] if len(buffers) == 1 else tuple(buffers)

    def draw(self, rng, batch, n_bins, dtype=np.float64):
        """Draw valid arguments; v has multiples of 1/4, so that its sums are exact as well."""
        arrays = random_pair(rng, (*batch, n_bins), dtype)
        v = (rng.integers(-8, 9, (*batch, n_bins)) / 4).astype(dtype)
        return [dict(zip("pqv", [*arrays, v], strict=True))[name] for name in self.arrays]


OPERATIONS = [
    Operation("emd", projects=False, tails=("",)),
    Operation("emd_grad"),
    Operation("emd_value_and_grad", tails=("", "N")),
    Operation("emd_hessian", tails=("NN",)),
    Operation("emd_hessian_diag"),
    Operation("emd_hvp", arrays=("p", "q", "v")),
    Operation("emd_flow", takes_rho=False, projects=False, tails=("E",)),
    Operation("embed", arrays=("p",), projects=False, tails=("E",)),
]
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def assert_close(comp, ref, size=0.0, rtol=1e-12):
    """Assert equality up to `rtol`, relative to the largest entry of the reference or to `size`."""
    comp, ref = np.asarray(comp), np.asarray(ref)
    assert comp.shape == ref.shape
    scale = max(float(np.abs(ref).max(initial=0.0)), float(size))
    np.testing.assert_allclose(comp, ref, rtol=rtol, atol=rtol * scale)


def assert_agrees(operation, arrays, case, rho, rtol=1e-12, **keywords):
    """Assert that fastemd and the oracle agree."""
    comp = operation(arrays, case.space, rho, **keywords)
    ref = operation.naive(arrays, case, rho, **keywords)
    size = naive.size(operation.name, arrays, case.ground, rho)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs, size, rtol)


def call_by_name(name, p, q, v, space, rho, reduction="mean", sample_weight=None):
    """Call a function of `fastemd.warming.FUNCTIONS`, with p, q or logits and targets, and v."""
    if name == "emd_loss_hvp":  # second derivatives of losses in torch and JAX
        loss = Loss.checked(rho, "softmax", 0.0)
        batch = resolve_loss(space, loss, p, q, v=v, sample_weight=sample_weight)
        return run_loss("loss_product", space.layout("levels"), batch, reduction)
    function = getattr(fastemd, name)
    if "loss" in name:
        return function(p, q, space, rho, reduction=reduction, sample_weight=sample_weight)
    if name == "emd_flow":
        return function(p, q, space)
    if name == "embed":
        return function(p, space, rho)
    if name in ("pairwise", "neighbors"):
        keywords = {"space": space, "rho": rho} | ({"k": 1} if name == "neighbors" else {})
        return [function(x, y, **keywords) for x, y in ((p, q), (csr_array(p), csr_array(q)))]
    return function(p, q, *([v] if name == "emd_hvp" else []), space, rho)
