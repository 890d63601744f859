"""EMD^rho as a function and a loss of PyTorch: differentiable, and under torch's transforms."""

from typing import Any

import numpy as np

from fastemd import validation, views

try:
    import torch
except ModuleNotFoundError as error:
    validation.not_installed("torch", error)

from torch import Tensor

from fastemd import adapters
from fastemd.losses import Loss
from fastemd.spaces import GroundSpace
from fastemd.torch.operators import Edges, distances, edges_of, new_edges, on_all_edges, values

_FRAMEWORK = adapters.Framework(
    torch,
    is_floating=lambda dtype: dtype.is_floating_point,
    default_type=lambda: torch.float64,
    cast=lambda tensor, dtype: tensor if tensor.dtype == dtype else tensor.to(dtype),
    broadcast=torch.broadcast_tensors,
    constant=Tensor.detach,
    scalar=lambda number, dtype: number,
)
IGNORE_INDEX = -100  # torch's
_DEFAULTS = {
    "dim": -1, "normalize": "softmax", "cross_entropy": 0.0, "label_smoothing": 0.0, "root": False,
    "ignore_index": IGNORE_INDEX, "reduction": "mean",
}  # fmt: skip
_edges_of = torch.compiler.assume_constant_result(edges_of)


def emd(
    p: Tensor, q: Tensor, space: GroundSpace, rho: float, *, dim: int = -1,
    validate: bool | float = True,
) -> Tensor:  # fmt: skip
    """Return EMD^rho between histograms on a chain or tree, differentiable twice in both.

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
    dim : int
        The axis of `p`, and counted from the end of `q`, that holds the bins.
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
        If shapes do not fit, `rho` is < 1 or a histogram is invalid; the message names the row.
    TypeError
        If an argument is of another kind, or on a device other than the CPU or CUDA.

    Notes
    -----
    On CUDA invalid histograms raise later, in `fastemd.synchronize`.

    The first derivative is `fastemd.emd_grad`, projected onto what conserves the mass; it comes
    with the value, in one pass. The second derivative is `fastemd.emd_hvp`. `torch.func.grad`,
    ``vmap``, ``jacrev`` and ``torch.compile(fullgraph=True)`` work; forward mode does not.
    Third derivatives exist only for `rho` 1 and 2, where they are 0.

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
    adapters.check_space(space)
    _check_tensor("p", p)
    dim = validation.check_axis("dim", dim, p.ndim, "p")
    _check_tensors(space.n_bins, dim, p=p, q=q)
    _check_devices(p=p, q=q)
    if dim != -1:
        p, q = p.movedim(dim, -1), q.movedim(dim, -1)
    tolerance = adapters.mass_tolerance(_FRAMEWORK, p, q)
    constants = validation.check_rho(rho), validation.check_validate(validate, tolerance)
    p, q = adapters.pairs(_FRAMEWORK, p, q)
    return values("emd", p, q, *_edges_of(space, p.device), *constants)


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
    """Return Sinkhorn distances between histograms, differentiable once in `p`.

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
    _check_tensors(n_bins, -1, p=p, q=q)
    for name, tensor in (("q", q), ("cost", cost)):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            validation.no_gradient(name)
    tolerance = adapters.mass_tolerance(_FRAMEWORK, p, q)
    tolerance = validation.check_validate(validate, tolerance)
    p, q = adapters.pairs(_FRAMEWORK, p, q)
    options = {"lam": lam, "max_iter": max_iter, "tol": tol, "method": method}
    options["dtype"] = str(dtype or p.dtype).removeprefix("torch.")
    options["validate"] = tolerance >= 0.0 and tolerance
    return distances(p, q, cost, options)[0]


class EMDLoss(torch.nn.Module):
    """Compute EMD^rho between what a model predicts and targets, as a loss to train with.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of the N classes.
    rho : float
        The power of the flow, >= 1.
    dim : int
        The axis of ``x`` that holds the classes: 1 for images (B, N, H, W), whose labels are
        (B, H, W). Histograms as targets have it at the same place, counted from the end.
    normalize : {"softmax", "l1", None}
        How `x` becomes a histogram: as logits, by division by its sum (it is >= 0), or as
        it is.
    cross_entropy : float
        Add this many times the cross entropy; with "softmax" only.
    class_weight : Tensor or array_like, (N,), optional
        Weight of every class, >= 0, as in `torch.nn.CrossEntropyLoss`; see `fastemd.emd_loss`.
    label_smoothing : float
        From 0 to 1: the share of every target that is spread evenly over all classes.
    root : bool
        Whether to take the `rho`-th root of every row's EMD.
    ignore_index : int, optional
        Rows with this label are ignored, as in torch. A number that the type of the labels cannot
        hold ignores none.
    reduction : {"mean", "sum", "none"}
        As in `torch.nn.CrossEntropyLoss`, but the mean of nothing is 0.
    learn_lengths : bool
        Whether the lengths of the edges are a parameter of the module, ``length`` (n_nodes - 1,),
        in the order of `fastemd.emd_flow`. It starts from those of `space`. The loss takes its
        absolute value, so that lengths stay >= 0 whatever an optimiser does; an edge of length 0
        stays so. Alone the loss is smallest without lengths: learn them with a term that holds
        them, as :doc:`/losses` shows.

    Raises
    ------
    ValueError
        If an option is not one of those; when called, as `fastemd.emd_loss`.
    TypeError
        If an argument is of another kind, on a device other than the CPU or CUDA, or the target
        requires grad.

    See Also
    --------
    fastemd.emd_loss : The same on arrays; says more about the options and the errors.

    Notes
    -----
    Call it with ``x`` (..., N), ``target`` and, optionally, ``sample_weight``, the weight of every
    row (>= 0, which is not checked); both broadcast to the rows of ``x``. The target is either
    labels (...) of an integer type or histograms (..., N); no gradient flows to it. A row of weight
    0 or with the ignored label is not read: its loss and gradient are 0, even if it
    contains NaN. The classes are the last axis, unless `dim` says otherwise; for
    `torch.nn.CrossEntropyLoss` they are always the second one. float16 and bfloat16 are computed
    in float32, and the loss is of that type.

    To learn classes, start with ``EMDLoss(space.scaled(mean_distance=3), rho=1, cross_entropy=1)``,
    cross entropy plus three times the EMD; :doc:`/which_loss` compares losses.

    Loss and gradient take one pass, without a tensor of the size of ``x`` except the gradient.
    On CUDA invalid rows raise later, in `fastemd.synchronize`.
    Differentiable twice; transforms and `torch.compile` as for `emd`.

    The edges of the ground space are the buffers ``parents``, ``lengths`` and ``shares``. They
    follow the module from device to device, but stay int64 and float64. They are not part of
    the ``state_dict``, which is empty without `learn_lengths`. So is ``class_weight``. With
    `learn_lengths`, every call on CUDA waits for the lengths on the host, and there are no second
    derivatives.

    Examples
    --------
    >>> import torch, fastemd, fastemd.torch
    >>> loss = fastemd.torch.EMDLoss(fastemd.Chain(3), cross_entropy=1.0)
    >>> logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]], requires_grad=True)
    >>> loss(logits, torch.tensor([0, 1]))
    tensor(2.8032, grad_fn=<DivBackward0>)
    """

    parents: Tensor
    lengths: Tensor
    shares: Tensor
    class_weight: Tensor | None
    length: torch.nn.Parameter | None

    def __init__(
        self,
        space: GroundSpace,
        rho: float = 2,
        *,
        dim: int = -1,
        normalize: str | None = "softmax",
        cross_entropy: float = 0.0,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        root: bool = False,
        ignore_index: int | None = IGNORE_INDEX,
        reduction: str = "mean",
        learn_lengths: bool = False,
    ) -> None:
        super().__init__()
        adapters.check_space(space)
        validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
        loss = Loss.checked(rho, normalize, cross_entropy, label_smoothing, root)
        self.rho, self.root = loss.cost.rho, loss.root
        self.dim = validation.check_axis("dim", dim, None)
        self.cross_entropy, self.label_smoothing = loss.cross_entropy, loss.label_smoothing
        self.space, self.normalize, self.reduction = space, normalize, reduction
        self.ignore_index = ignore_index
        self._class_weight = _class_weights(class_weight, space.n_bins)
        self.register_buffer("class_weight", self._new_class_weight(), persistent=False)
        validation.check_flag("learn_lengths", learn_lengths)
        self._kind = "full" if learn_lengths else "levels"
        length = torch.tensor(space.weight[:-1], dtype=torch.get_default_dtype())
        self.register_parameter("length", torch.nn.Parameter(length) if learn_lengths else None)
        # Not persistent: the space is an argument, not something learned, and a state_dict of a
        # model whose loss had no buffers loads with strict=True.
        for name, tensor in zip(_BUFFERS, new_edges(space, self._kind), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "EMDLoss":
        """Move the buffers to the device of `fn`, but not to its type or content.

        A length in float16 would be another length, and `to_empty` has no numbers.
        """
        device = torch.device("cpu") if self.lengths.is_meta else self.lengths.device
        device = fn(torch.empty(0, device=device)).device
        self._buffers.update(dict.fromkeys((*_BUFFERS, "class_weight")))
        super()._apply(fn, recurse)
        self._buffers["class_weight"] = self._new_class_weight(device)
        edges = edges_of(self.space, device, self._kind)
        for name, tensor in zip(_BUFFERS, edges, strict=True):
            self._buffers[name] = tensor
        return self

    def _new_class_weight(self, device: torch.device | None = None) -> Tensor | None:
        if self._class_weight is None:
            return None
        return torch.tensor(self._class_weight, device=device)

    def extra_repr(self) -> str:
        """Return the options that `print` shows."""
        parts = [f"{self.space!r}, rho={self.rho:g}"]
        for name, default in _DEFAULTS.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        if self.class_weight is not None:
            parts.append("class_weight=...")
        if self.length is not None:
            parts.append("learn_lengths=True")
        return ", ".join(parts)

    def forward(self, x: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see the class."""
        losses, weight, counts = self._rows(x, target, sample_weight)
        return adapters.reduced(_FRAMEWORK, losses, weight, counts, self.reduction)

    def _rows(
        self, x: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the losses of all rows, their weights and what they count in the mean.

        The weights and counts are None if all are 1.
        """
        _check_tensor("x", x)
        dim = validation.check_axis("dim", self.dim, x.ndim)
        _check_tensors(self.space.n_bins, dim, x=x)
        if not isinstance(target, Tensor) or target.requires_grad:
            validation.not_a_target(target)
        _check_tensor("target", target)
        if sample_weight is not None:
            _check_tensor("sample_weight", sample_weight)
        class_weight = self.class_weight
        if class_weight is not None and class_weight.device != x.device:
            class_weight = self._new_class_weight(x.device)
        _check_devices(x=x, target=target, sample_weight=sample_weight)
        if target.dtype == torch.bool:
            validation.check_target(np.dtype(bool))
        ignore_index = self.ignore_index
        if target.is_floating_point() and ignore_index == IGNORE_INDEX:
            ignore_index = None
        kept = adapters.kept_labels(_FRAMEWORK, target, ignore_index)
        tolerance = adapters.mass_tolerance(_FRAMEWORK, x, target)
        x, target, counted, weight, counts = adapters.loss_rows(
            _FRAMEWORK, x, target, kept, sample_weight, class_weight, dim, "dim"
        )
        edges: Edges = self.parents, self.lengths, self.shares
        if self.lengths.device != x.device:  # the module was not moved to the device of the data
            edges = _edges_of(self.space, x.device, self._kind)
        if self.length is not None:
            edges = edges[0], self._lengths(edges[1]), edges[2]
        losses = values(
            "emd_loss", x, target, counted, class_weight, *edges, self.rho, tolerance,
            self.normalize or "none", self.cross_entropy, self.label_smoothing, self.root,
            None if kept is None else ignore_index, dim,
        )  # fmt: skip
        return losses, weight, counts

    def _lengths(self, given: Tensor) -> Tensor:
        """Return the lengths of the layout "full" that are learned, for those that are given."""
        learned = self.length.abs().to(given)  # type: ignore[union-attr]
        return on_all_edges(learned, len(given))


_BUFFERS = "parents", "lengths", "shares"


def _class_weights(value: Any, n_bins: int) -> Any:
    """Return weights of classes as float64 of NumPy, or raise."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.requires_grad:
            validation.no_gradient("class_weight")
        value = value.double().cpu().numpy()
    return views.as_class_weights(value, n_bins).copy()


def _check_tensors(n_bins: int, dim: int, **tensors: Any) -> None:
    """Raise unless all are tensors whose axis `dim` (< 0) holds the bins."""
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        validation.check_bins_axis(name, tuple(tensor.shape), n_bins, dim, "dim")


def _check_tensor(name: str, tensor: Any) -> None:
    """Raise unless the argument is a dense tensor of real numbers."""
    if not isinstance(tensor, Tensor):
        validation.not_a_tensor(name, tensor)
    if tensor.layout != torch.strided:
        validation.sparse(name, tensor, "to_dense")
    if tensor.is_complex():
        validation.not_an_array(name, tensor)


def _check_devices(**tensors: Tensor | None) -> None:
    """Raise unless all are on one device: the CPU, CUDA, or `meta`, which has shapes only."""
    name, first = next(iter(tensors.items()))
    device = first.device  # type: ignore[union-attr]  # only `sample_weight` may be missing
    for tensor in tensors.values():
        if tensor is not None and tensor.device != device:
            present = {name: x.device for name, x in tensors.items() if x is not None}
            validation.mixed_devices({name: str(device) for name, device in present.items()})
    if device.type not in ("cpu", "cuda", "meta"):
        validation.unknown_device(name, str(device))
