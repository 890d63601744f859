"""Derivatives of the losses in the lengths of the edges, for fastemd.torch and fastemd.jax."""

from typing import Any

import array_api_compat
import numpy as np

from fastemd.call import resolve, run
from fastemd.functions import sum_powers_of_flows
from fastemd.layout import EdgeLayout
from fastemd.losses import Loss


def loss_length_gradient(
    layout: EdgeLayout, loss: Loss, upstream: Any, x: Any, target: Any, counted: Any = None,
    class_weight: Any = None, *, ignored: int | None = None,
) -> Any:  # fmt: skip
    """Return the derivatives of ``sum(upstream * losses)`` in the lengths, (n_nodes - 1,).

    The arrays are valid arguments of a loss, broadcast to its rows: of NumPy, or of another library
    on a CUDA device. Rows that are not `counted`, or have the `ignored` label, may contain
    anything. `layout` is the layout "full" with the lengths of the loss.
    """
    if ignored is not None:
        kept = target != ignored
        counted = kept if counted is None else counted & kept
    xp, n_bins = array_api_compat.array_namespace(x), x.shape[loss.axis]
    with np.errstate(all="ignore"):  # in rows that are not counted
        p = xp.moveaxis(x, loss.axis, -1)
        if loss.normalize == "softmax":
            p = xp.exp(p - xp.max(p, axis=-1, keepdims=True))
        if loss.normalize is not None:
            p = p / xp.sum(p, axis=-1, keepdims=True)
        if xp.isdtype(target.dtype, "integral"):
            bins = xp.arange(n_bins, dtype=xp.int64, device=array_api_compat.device(x))
            q = xp.astype(xp.astype(target, xp.int64)[..., None] == bins, p.dtype)
        else:
            q = xp.moveaxis(target, loss.axis, -1)
        q = q * (1.0 - loss.label_smoothing) + loss.label_smoothing / n_bins
    if counted is not None:  # no flow in the other rows
        p, q = (xp.where(counted[..., None], rows, 1.0 / n_bins) for rows in (p, q))
    if class_weight is not None:
        upstream = upstream * (q @ xp.astype(class_weight, q.dtype))
    batch = resolve(layout, False, p=p, q=q)
    if loss.root:
        value = batch.output("value", None)
        run("gradient", layout, batch, loss.cost, value)
        emd = batch.wrap(value)
        has_slope = emd >= xp.finfo(emd.dtype).tiny  # as in the kernels; elsewhere it is 0
        emd = xp.where(has_slope, emd, 1.0)
        upstream = upstream * xp.where(has_slope, emd ** (1.0 / loss.cost.rho - 1.0), 0.0)
        upstream = upstream / loss.cost.rho
    return sum_powers_of_flows(layout, batch, loss.cost.rho, upstream, p)
