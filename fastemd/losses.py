"""Training losses: from logits and targets to a number and its derivatives in the logits."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import arrays, validation
from fastemd.docstrings import documented
from fastemd.ground import GroundSpace
from fastemd.kernels.cpu import driver
from fastemd.on_device import Launch

Array = NDArray[Any]
TINY = np.finfo(np.float64).tiny


@documented
def emd_loss(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Any, Any]:
    """EMD^rho between the histograms that logits stand for and targets, and its gradient.

    Parameters
    ----------
    {loss}

    Returns
    -------
    loss : number or array, (...)
        One number, or one per row if `reduction` is "none".
    grad_x : array, (..., N)
        Its gradient with respect to `x`; without reduction, that of every row's own loss.

    {loss_raises}

    Notes
    -----
    With ``p = softmax(x)`` and g the gradient of ``EMD^rho(p, target)`` (eq. 9, 11 and 15 of
    Martinez et al., arXiv:1611.07573) the gradient is ``p * (g - <p, g>)``. One pass over the
    rows, nothing of the size of `x` is made but `grad_x`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    >>> loss, grad = fastemd.emd_loss(logits, [0, 2], fastemd.Chain(3))
    >>> loss.round(6)
    np.float64(0.337862)
    >>> grad.round(6)
    array([[-0.079941,  0.052516,  0.027425],
           [ 0.148148,  0.037037, -0.185185]])
    """
    call = LossCall(space, rho, normalize, cross_entropy, x=x, target=target, weight=sample_weight)
    return call.values_and_derivatives("loss", ignore_index, reduction)


@documented
def emd_loss_hessian_diag(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """Diagonal of the Hessian of `emd_loss` in `x`, exact.

    Parameters
    ----------
    {loss}

    Returns
    -------
    array, (..., N)
        The second derivatives of the loss in every entry of `x`; without reduction, of every
        row's own loss.

    {loss_raises}

    Notes
    -----
    With g and H the gradient and the Hessian of ``EMD^rho`` (eq. 12 of Martinez et al., divided
    by the ``N^2`` that its print lacks) in ``p = softmax(x)``, it is
    ``p^2 (diag(H) - 2 H p + <p, H p>) + p (1 - 2 p) (g - <p, g>)``. Not the Gauss-Newton part
    alone, so entries may be negative. Conventions as for `emd_hessian`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_loss_hessian_diag([[0.0, 0.0, 0.0]], [2], fastemd.Chain(3)).round(6)
    array([[0.222222, 0.074074, 0.      ]])
    """
    call = LossCall(space, rho, normalize, cross_entropy, x=x, target=target, weight=sample_weight)
    return call.values_and_derivatives("loss_diagonal", ignore_index, reduction)[1]


class LossCall:
    """One call of a loss: its checked arguments and the launch of its kernel.

    `inputs` are ``x`` and ``target``, and ``v`` for "loss_product". `tolerance` is for what should
    sum to 1; by default that of its type.
    """

    def __init__(
        self,
        space: GroundSpace,
        rho: float,
        normalize: str | None,
        cross_entropy: float,
        *,
        weight: Any = None,
        tolerance: float | None = None,
        **inputs: Any,
    ) -> None:
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        validation.check_normalize(normalize)
        self.space, self.normalize = space, normalize
        self.rho = validation.check_rho(rho)
        self.cross_entropy = validation.check_cross_entropy(cross_entropy)
        self.weight = {} if weight is None else {"sample_weight": weight}
        self.library = arrays.library_of({**inputs, **self.weight})
        self.launch: Launch | None = None
        if self.library.device is not None:
            self.launch = Launch(self.library.device, inputs)
        target = inputs.pop("target")
        self.target = arrays.real("target", target)
        validation.check_target(self.target.dtype)
        self.labelled = self.target.dtype.kind in "iu"
        self.inputs = {name: arrays.histograms(name, a, space) for name, a in inputs.items()}
        self.batch = arrays.batch_shape(self.inputs)
        shape = *self.batch, space.n_bins
        validation.check_target_shape(self.target.shape, shape, self.labelled)
        if not self.labelled:
            self.inputs["target"] = self.target = arrays.histograms("target", target, space)
        self.dtype = arrays.result_type(self.inputs.values())
        chars = (a.dtype.char for name, a in self.inputs.items() if name != "v")
        self.tolerance = tolerance or validation.mass_tolerance(*chars)

    def values_and_derivatives(
        self, operation: str, ignore_index: int | None, reduction: str, out: Array | None = None
    ) -> tuple[Any, Any]:
        """The loss, one per row without reduction, and its derivatives (..., N)."""
        if self.launch is not None:
            return self._on_device(self.launch, operation, ignore_index, reduction, out)
        factors, weights = self.factors(self._ignored(ignore_index), reduction)
        if out is None:
            shape = *self.batch, self.space.n_bins
            out = arrays.empty(shape, self.dtype, self.library.alignment)
        values = self.run(operation, factors, out)
        with np.errstate(all="ignore"):  # results beyond the type are infinite
            if reduction == "none":
                values = (values * weights).reshape(self.batch)
            else:
                values = values @ factors
            values = np.asarray(values, self.dtype)
        return self.library.take(values), self.library.take(out)

    def _ignored(self, ignore_index: int | None) -> Array | None:
        """Whether the label of a row is to be ignored."""
        if ignore_index is None:
            return None
        ignored: Array = self.target == validation.check_ignore_index(ignore_index, self.labelled)
        return ignored

    def factors(self, ignored: Array | None, reduction: str) -> tuple[Array, Array]:
        """The weights of all rows in the result, and before the reduction; (rows,) of float64."""
        validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
        n_rows = math.prod(self.batch)
        weights = np.ones(n_rows)
        given = self._given_weights()
        with np.errstate(all="ignore"):
            if given is not None:
                weights = given.astype(np.float64).reshape(n_rows)
            if ignored is not None:
                weights[np.broadcast_to(ignored, self.batch).reshape(n_rows)] = 0.0
            if given is not None:
                validation.check_weights(weights, self.batch)
            if reduction != "mean":
                return weights, weights
            if given is not None:  # their sum might overflow
                weights = _divided(weights, weights.max(initial=0.0) or 1.0)
            total = weights.sum()
            if total == 0.0:
                return weights, weights
            factors = weights / total if given is None else _divided(weights, total)
            return factors, weights

    def _given_weights(self) -> Array | None:
        """`sample_weight` for all rows."""
        for name, weight in self.weight.items():
            given = arrays.real(name, weight)
            try:
                return np.broadcast_to(given, self.batch)
            except ValueError:
                validation.do_not_broadcast({name: given.shape, "x": self.batch})
        return None

    def run(self, operation: str, factors: Array, out: Array) -> Array:
        """Put the derivatives times `factors` into `out`, return the losses of all rows."""
        values = np.empty_like(factors)
        n_rows = values.size
        if n_rows == 0:
            return values
        x, *others = arrays.as_rows(list(self.inputs.values()), self.batch, self.dtype)
        rows, labels = self._rows(x, others)
        bad = driver.run_loss(
            operation, self.space.layout("levels"), rows, labels, factors, self.rho, values,
            out.reshape(*x.shape[:2], self.space.n_bins), self.normalize, self.cross_entropy,
            self.tolerance,
        )  # fmt: skip
        if bad < n_rows:
            validation.blame_loss(
                self.inputs["x"], self.target, self.inputs.get("v"), self.batch, bad,
                self.labelled, self.normalize, self.cross_entropy, self.tolerance,
            )  # fmt: skip
        return values

    def _rows(self, x: Array, others: list[Array]) -> tuple[tuple[Array, Array, Array], Array]:
        """The rows that the kernel reads, and the labels."""
        nothing, labels = arrays.nothing(self.dtype.char), np.empty(0, np.int64)
        if self.labelled:
            labels = np.broadcast_to(self.target, self.batch)
            labels = np.ascontiguousarray(labels, np.int64).reshape(-1)
            return (x, nothing, others[0] if others else nothing), labels
        *vs, target = others
        return (x, target, vs[0] if vs else nothing), labels

    def _on_device(
        self, launch: Launch, operation: str, ignore_index: int | None, reduction: str,
        out: Array | None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """`values_and_derivatives`, none of which has been computed yet."""
        validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
        if ignore_index is not None:
            ignore_index = validation.check_ignore_index(ignore_index, self.labelled)
            ignore_index = arrays.as_int64(ignore_index, self.target.dtype)
        labels = weights = None
        if self.labelled:
            target = launch.given.pop("target")
            labels = launch.contiguous(target, self.batch, np.dtype(np.int64)).reshape(-1)
        if self._given_weights() is not None:
            weight = self.weight["sample_weight"]
            weights = launch.contiguous(weight, self.batch, np.dtype(np.float64)).reshape(-1)
        if out is None:
            out = launch.empty((*self.batch, self.space.n_bins), self.dtype)
        values = launch.run_loss(
            operation, self.space.layout("levels"), self.rho, labels, ignore_index, weights,
            reduction, out,
            self.normalize, self.cross_entropy, self.tolerance,
        )  # fmt: skip
        return self.library.take(values), self.library.take(launch.made.get(id(out), out))

    def put(self, values: Any, out: Array) -> None:
        """The losses of all rows into memory that is there, or described, on a device."""
        if self.launch is None:
            out[...] = values
        else:
            self.launch.device.assign(out, values)


def _divided(weights: Array, by: float) -> Array:
    """Divide weights; none becomes 0 that was not, since a row is read unless its weight is 0."""
    return np.where(weights > 0.0, np.maximum(weights / by, TINY), 0.0)
