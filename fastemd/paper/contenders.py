"""Ways to the gradient of the Sinkhorn distance of a batch, for Table 1 and the benchmarks.

A contender takes ``(p, q, cost, lam, n_iter)`` and returns a function without arguments that does
`n_iter` iterations and gives the values and the gradients. One that is not installed, or cannot do
a case, raises NotImplementedError instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd.rivals import Run, installed
from fastemd.sinkhorn import sinkhorn

Array = NDArray[Any]
Contender = Callable[[Array, Array, Array, float, int], Run]


def with_fastemd(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """Algorithm 1 as printed."""

    def run() -> tuple[Array, Array]:
        result = sinkhorn(p, q, cost, lam=lam, max_iter=n_iter)
        return result.value, result.grad

    return run


def with_torch(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """The loop that everyone writes, with torch's products."""
    torch = installed("torch")
    mass, target, costs = (torch.from_numpy(array) for array in (p, q, cost))

    def run() -> tuple[Array, Array]:
        kernel = torch.exp(-lam * costs - 1)
        back = kernel.T
        u = torch.ones_like(mass)
        for _ in range(n_iter):
            u = mass / ((target / (u @ kernel)) @ back)
        v = target / (u @ kernel)
        value = (u * (v @ (kernel * costs).T)).sum(-1)
        return value.numpy(), (u.log() / lam).numpy()

    return run


def with_pot(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """POT's `sinkhorn`, a pair at a time, since its batches share one of the two histograms."""
    ot = installed("ot")

    def run() -> tuple[Array, Array]:
        values, grads = [], []
        for a, b in zip(p, q, strict=True):
            options = {"numItermax": n_iter, "stopThr": 0, "warn": False, "log": True}
            plan, log = ot.sinkhorn(b, a, cost.T, 1 / lam, **options)
            values.append((plan * cost.T).sum())
            grads.append(np.log(log["v"]) / lam)
        return np.array(values), np.array(grads)

    return run


def with_pot_batch(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """POT's `sinkhorn` for a batch with one target, `q`'s only row."""
    ot = installed("ot")
    if not (q == q[:1]).all():
        raise NotImplementedError("POT's batches share one of the two histograms")
    target, predictions, back = q[0].copy(), np.ascontiguousarray(p.T), cost.T.copy()

    def run() -> tuple[Array, Array]:
        options = {"numItermax": n_iter, "stopThr": 0, "warn": False, "log": True}
        value, log = ot.sinkhorn(target, predictions, back, 1 / lam, **options)
        return value, (np.log(log["v"]) / lam).T

    return run


CONTENDERS: dict[str, Contender] = {
    "fastemd": with_fastemd,
    "loop (torch)": with_torch,
    "sinkhorn, batched (POT)": with_pot_batch,
    "sinkhorn, pair by pair (POT)": with_pot,
}
