"""EMD^rho as a function and a loss of PyTorch: differentiable, and under torch's transforms."""

from typing import Any

import numpy as np

from fastemd import validation

try:
    import torch
except ModuleNotFoundError as error:
    validation.not_installed("torch", error)

from torch import Tensor

from fastemd.registry import number_of
from fastemd.spaces import GroundSpace
from fastemd.torch.operators import distances, values

_number_of = torch.compiler.assume_constant_result(number_of)


def emd(
    p: Tensor, q: Tensor, space: GroundSpace, rho: float, *, validate: bool | float = True
) -> Tensor:
    """EMD^rho between histograms on a chain or tree, differentiable twice in both.

    Parameters
    ----------
    p, q : Tensor, (..., N)
        Histograms over the N bins of `space`: finite, >= 0 and of equal mass. Leading axes
        broadcast. They are computed in their common type (`torch.promote_types`), but float16 and
        bfloat16 in float32, and integers in float64.
    space : Chain or Tree
        The ground space.
    rho : float
        The power of the flow, >= 1.
    validate : bool or float
        Whether to check the numbers; a float is the relative tolerance of masses, by default
        1e-5 for float64, 3.5e-4 for float32 and the root of the precision of coarser types.

    Returns
    -------
    Tensor, (...)
        The sum over all edges of length times ``|flow|^rho``.

    Raises
    ------
    ValueError
        If shapes do not fit, `rho` is < 1 or a histogram is bad; the message names the row.
    TypeError
        If an argument is of another kind, or neither on the CPU nor on CUDA.

    Notes
    -----
    On CUDA bad histograms are complained of later, by `fastemd.synchronize`.

    The first derivative is `fastemd.emd_grad`, projected onto what conserves the mass; it comes
    with the value, in one pass. The second derivative is `fastemd.emd_hvp`. `torch.func.grad`,
    ``vmap``, ``jacrev`` and ``torch.compile(fullgraph=True)`` work; forward mode does not, nor
    do third derivatives unless `rho` is 1 or 2, where they are 0.

    Examples
    --------
    >>> import torch, fastemd, fastemd.torch
    >>> logits = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    >>> target = torch.tensor([1.0, 0.0, 0.0])
    >>> loss = fastemd.torch.emd(logits.softmax(-1), target, fastemd.Chain(3), rho=2)
    >>> loss.backward()
    >>> logits.grad
    tensor([[-0.2288, -0.1765,  0.4053]])
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    _check_tensors(space.n_bins, p=p, q=q)
    _check_devices(p=p, q=q)
    dtype = _computing_type(p.dtype, q.dtype)
    tolerance = validation.check_validate(validate, _mass_tolerance(p.dtype, q.dtype))
    p, q = _broadcast(p.to(dtype), q.to(dtype))
    constants = validation.check_rho(rho), tolerance
    return values(p, q, None, "emd", _number_of(space), *constants)


def sinkhorn(
    p: Tensor,
    q: Tensor,
    cost: Tensor | GroundSpace,
    *,
    lam: float,
    max_iter: int = 100,
    tol: float = 0.0,
    method: str = "paper",
    dtype: torch.dtype | None = None,
    validate: bool | float = True,
) -> Tensor:
    """Sinkhorn distance between histograms, differentiable once in `p`: a loss to compare with.

    Parameters
    ----------
    p, q : Tensor, (..., N)
        Histograms over N bins: finite, >= 0 and of equal mass. Leading axes broadcast.
    cost : Tensor, (N, N), or Chain or Tree
        What moving one unit of mass from a bin of `p` to a bin of `q` costs, or the ground space.
    lam, max_iter, tol, method, validate
        As for `fastemd.sinkhorn`.
    dtype : torch.float32 or torch.float64, optional
        To compute in and to return; by default the common type, as for `emd`. With a large `lam`
        "paper" needs float64.

    Returns
    -------
    Tensor, (...)
        The cost of the transport plan of the last iteration.

    Raises
    ------
    ValueError, TypeError
        As `fastemd.sinkhorn`; and TypeError if `q` or `cost` requires grad, of which there is none.

    Notes
    -----
    The gradient is the paper's, ``log(u) / lam``, less its mean over the bins that are not empty;
    an empty bin has none. It is that of the minimum, ``<T, cost> - h(T) / lam``, and not that of
    the value. `emd` takes a thousandth of the time.

    Examples
    --------
    >>> import torch, fastemd, fastemd.torch
    >>> logits = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    >>> target = torch.tensor([1.0, 0.0, 0.0])
    >>> loss = fastemd.torch.sinkhorn(logits.softmax(-1), target, fastemd.Chain(3), lam=3)
    >>> loss.backward(torch.ones(1))
    >>> logits.grad
    tensor([[-0.1891, -0.1877,  0.3768]])
    """
    if isinstance(cost, GroundSpace):
        n_bins = cost.n_bins
    else:
        if not isinstance(cost, Tensor):
            validation.not_a_tensor("cost", cost)
        validation.check_cost_shape(tuple(cost.shape))
        n_bins = len(cost)
    _check_tensors(n_bins, p=p, q=q)
    for name, tensor in (("q", q), ("cost", cost)):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            validation.no_gradient(name)
    common = _computing_type(p.dtype, q.dtype)
    options = {"lam": lam, "max_iter": max_iter, "tol": tol, "method": method}
    options["dtype"] = str(dtype or common).removeprefix("torch.")
    tolerance = validation.check_validate(validate, _mass_tolerance(p.dtype, q.dtype))
    options["validate"] = tolerance >= 0.0 and tolerance
    p, q = _broadcast(p.to(common), q.to(common))
    return distances(p, q, cost, options)


class EMDLoss(torch.nn.Module):
    """EMD^rho between what a model puts out and targets, as a loss to train with.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of the N classes.
    rho : float
        The power of the flow, >= 1.
    normalize : {"softmax", "l1", None}
        How `x` becomes a histogram: as logits, by division by its sum (it is >= 0), or as
        it is.
    cross_entropy : float
        Add this many times the cross entropy.
    ignore_index : int, optional
        Rows with this label are ignored.
    reduction : {"mean", "sum", "none"}
        As in `torch.nn.CrossEntropyLoss`, but the mean of nothing is 0.

    Raises
    ------
    ValueError
        If an option is not one of those; when called, as `fastemd.emd_loss`.
    TypeError
        If an argument is of another kind, neither on the CPU nor on CUDA, or the target requires
        grad.

    See Also
    --------
    fastemd.emd_loss : The same on arrays; says more about the options and the errors.

    Notes
    -----
    Call it with ``x`` (..., N), ``target`` and, if wanted, ``sample_weight``, the weight of every
    row (>= 0, which is not checked); both broadcast to the rows of ``x``. The target is either
    labels (...) of an integer type or histograms (..., N); no gradient flows to it. A row of weight
    0 or with the ignored label is not read: whatever it holds, NaN included, its loss and gradient
    are 0. The classes are the last axis,
    also where `torch.nn.CrossEntropyLoss` wants them second. float16 and bfloat16 are computed in
    float32, and the loss is of that type.

    Loss and gradient take one pass, without a tensor of the size of ``x`` but the gradient.
    On CUDA bad rows are complained of later, by `fastemd.synchronize`.
    Differentiable twice; transforms and `torch.compile` as for `emd`.

    Examples
    --------
    >>> import torch, fastemd, fastemd.torch
    >>> loss = fastemd.torch.EMDLoss(fastemd.Chain(3), cross_entropy=1.0)
    >>> logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]], requires_grad=True)
    >>> loss(logits, torch.tensor([0, 1]))
    tensor(2.8032, grad_fn=<MeanBackward0>)
    """

    def __init__(
        self,
        space: GroundSpace,
        rho: float = 2,
        *,
        normalize: str | None = "softmax",
        cross_entropy: float = 0.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        validation.check_normalize(normalize)
        validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.space, self.rho = space, validation.check_rho(rho)
        self.normalize, self.reduction = normalize, reduction
        self.cross_entropy = validation.check_cross_entropy(cross_entropy)
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """What `print` shows."""
        parts = [f"{self.space!r}, rho={self.rho:g}"]
        defaults = {"normalize": "softmax", "cross_entropy": 0.0, "ignore_index": None}
        for name, default in {**defaults, "reduction": "mean"}.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts)

    def forward(self, x: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss; see the class."""
        _check_tensors(self.space.n_bins, x=x)
        if not isinstance(target, Tensor) or target.requires_grad:
            validation.bad_target(target)
        _check_tensor("target", target)
        if sample_weight is not None:
            _check_tensor("sample_weight", sample_weight)
        _check_devices(x=x, target=target, sample_weight=sample_weight)
        labelled = not target.is_floating_point()
        if target.dtype == torch.bool:
            validation.check_target(np.dtype(bool))
        validation.check_target_shape(tuple(target.shape), tuple(x.shape), labelled)
        dtype, rows = _computing_type(x.dtype, target.dtype), x.shape[:-1]
        target = target.expand(rows if labelled else x.shape)
        weight = None if sample_weight is None else _weights(sample_weight, rows, dtype)
        counted = self._counted(target, labelled, weight)
        losses = values(
            x.to(dtype),
            target if labelled else target.to(dtype),
            counted,
            "emd_loss",
            _number_of(self.space),
            self.rho,
            _mass_tolerance(x.dtype, target.dtype),
            self.normalize or "none",
            self.cross_entropy,
        )
        if counted is not None:
            weight = counted.to(dtype) if weight is None else weight.where(counted, 0.0)
        return self._reduced(losses, weight)

    def _counted(self, target: Tensor, labelled: bool, weight: Tensor | None) -> Tensor | None:
        """Which rows count, if not all do: without the ignored label, of a weight that is not 0."""
        counted = None
        if self.ignore_index is not None:
            ignored = validation.check_ignore_index(self.ignore_index, labelled)
            limits = torch.iinfo(target.dtype)
            if limits.min <= ignored <= limits.max:
                counted = target != ignored
        if weight is not None:
            counted = weight != 0.0 if counted is None else counted & (weight != 0.0)
        return counted

    def _reduced(self, losses: Tensor, weight: Tensor | None) -> Tensor:
        """The losses of the rows, of which those that do not count are 0, as `reduction` says."""
        if weight is None:
            if self.reduction == "mean" and losses.numel():
                return losses.mean()
            return losses if self.reduction == "none" else losses.sum()
        if self.reduction == "mean" and losses.numel():  # the sum of the weights might overflow
            largest = weight.detach().amax()
            weight = weight / largest.where(largest > 0.0, 1.0)
        weighted = (losses * weight).to(losses.dtype)
        if self.reduction == "none":
            return weighted
        if self.reduction == "sum":
            return weighted.sum()
        total = weight.sum().to(losses.dtype)
        return weighted.sum() / total.where(total > 0.0, 1.0)


def _weights(sample_weight: Tensor, rows: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of every row, in its own type or in that of the losses, whatever is wider."""
    if not sample_weight.is_floating_point():
        sample_weight = sample_weight.to(dtype)
    sample_weight = sample_weight.to(torch.promote_types(sample_weight.dtype, dtype))
    try:
        return sample_weight.expand(rows)
    except RuntimeError:
        shapes = {"sample_weight": tuple(sample_weight.shape), "x": tuple(rows)}
        validation.do_not_broadcast(shapes)


def _broadcast(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    if p.shape == q.shape:
        return p, q
    try:
        p, q = torch.broadcast_tensors(p, q)
    except RuntimeError:
        validation.do_not_broadcast({"p": tuple(p.shape[:-1]), "q": tuple(q.shape[:-1])})
    return p, q


def _check_tensors(n_bins: int, **tensors: Any) -> None:
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        validation.check_bins_axis(name, tuple(tensor.shape), n_bins)


def _check_tensor(name: str, tensor: Any) -> None:
    """A dense tensor of real numbers."""
    if not isinstance(tensor, Tensor):
        validation.not_a_tensor(name, tensor)
    if tensor.layout != torch.strided:
        validation.sparse(name, tensor, "to_dense")
    if tensor.is_complex():
        validation.not_an_array(name, tensor)


def _check_devices(**tensors: Tensor | None) -> None:
    """All on one, the CPU, CUDA, or `meta`: there torch has shapes without numbers."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    name, first = next(iter(devices.items()))
    if any(device != first for device in devices.values()):
        validation.mixed_devices({name: str(device) for name, device in devices.items()})
    if first.type not in ("cpu", "cuda", "meta"):
        validation.unknown_device(name, str(first))


def _computing_type(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    common = torch.promote_types(a, b)
    if not common.is_floating_point:
        return torch.float64
    return torch.float32 if common.itemsize < 4 else common


def _mass_tolerance(*dtypes: torch.dtype) -> float:
    """As `validation.mass_tolerance`, also for types that NumPy does not have."""
    return validation.tolerance_of(*(torch.finfo(x).eps for x in dtypes if x.is_floating_point))
