"""EMD^rho as functions and losses of PyTorch: differentiable, and under torch's transforms."""

import math
from typing import Any

import torch
from torch import Tensor

from fastemd import validation
from fastemd.functions import emd_value_and_grad
from fastemd.ground import GroundSpace
from fastemd.hessians import emd_hvp
from fastemd.registry import number_of, space_of

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
        Whether to check the numbers; a float is the relative tolerance between two masses, by
        default the root of the precision of the coarser type given.

    Returns
    -------
    Tensor, (...)
        The sum over all edges of length times ``|flow|^rho``.

    Raises
    ------
    ValueError
        If shapes do not fit, `rho` is < 1 or a histogram is bad; the message names the row.
    TypeError
        If an argument is of another kind.

    Notes
    -----
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
    for name, value in (("p", p), ("q", q)):
        if not isinstance(value, Tensor):
            validation.not_a_tensor(name, value)
        validation.check_bins_axis(name, tuple(value.shape), space.n_bins)
    dtype = _computing_type(p.dtype, q.dtype)
    if validate is True:
        types = [x for x in (p.dtype, q.dtype, torch.float64) if x.is_floating_point]
        validate = math.sqrt(max(torch.finfo(x).eps for x in types))
    tolerance = validation.check_validate(validate)
    p, q = p.to(dtype), q.to(dtype)
    if p.shape != q.shape:
        p, q = torch.broadcast_tensors(p, q)
    return _values(p, q, _number_of(space), validation.check_rho(rho), tolerance)


def _computing_type(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    common = torch.promote_types(a, b)
    if not common.is_floating_point:
        return torch.float64
    return torch.float32 if common.itemsize < 4 else common


@torch.compiler.allow_in_graph  # left to autograd, which is better at it than Dynamo
def _values(p: Tensor, q: Tensor, number: int, rho: float, tolerance: float) -> Tensor:
    return _Emd.apply(p, q, number, rho, tolerance)[0]


# The kernels as operators, which torch.compile takes as they are. Declared like this they cost
# 3 us per call, by `torch.library.custom_op` 11.

torch.library.define(
    "fastemd::emd",
    "(Tensor p, Tensor q, SymInt space, float rho, float tolerance) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastemd::emd_hvp", "(Tensor p, Tensor q, Tensor v, SymInt space, float rho) -> Tensor"
)


@torch.library.impl("fastemd::emd", "cpu")
def _(p: Tensor, q: Tensor, space: int, rho: float, tolerance: float) -> tuple[Tensor, Tensor]:
    p, q = p.detach(), q.detach()
    result: tuple[Tensor, Tensor]
    result = emd_value_and_grad(p, q, space_of(space), rho, validate=tolerance >= 0.0 and tolerance)
    return result


@torch.library.register_fake("fastemd::emd")
def _(p: Tensor, q: Tensor, space: int, rho: float, tolerance: float) -> tuple[Tensor, Tensor]:
    return p.new_empty(p.shape[:-1]), p.new_empty(p.shape)


@torch.library.impl("fastemd::emd_hvp", "cpu")
def _(p: Tensor, q: Tensor, v: Tensor, space: int, rho: float) -> Tensor:
    p, q, v = p.detach(), q.detach(), v.detach()
    product: Tensor = emd_hvp(p, q, v, space_of(space), rho, validate=False)
    return product


@torch.library.register_fake("fastemd::emd_hvp")
def _(p: Tensor, q: Tensor, v: Tensor, space: int, rho: float) -> Tensor:
    return p.new_empty(p.shape)


# Their derivatives, as functions that torch.func can transform.


class _Emd(torch.autograd.Function):
    """Values and gradients. That the gradients are an output makes it differentiable twice."""

    @staticmethod
    def forward(
        p: Tensor, q: Tensor, number: int, rho: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.fastemd.emd(p, q, number, rho, tolerance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        p, q, ctx.number, ctx.rho, _ = inputs
        ctx.space = space_of(ctx.number)  # lives until the last derivative
        ctx.save_for_backward(p, q, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, to_value: Tensor | None, to_grad: Tensor | None) -> tuple[Any, ...]:
        p, q, grad = ctx.saved_tensors
        to_p = None if to_value is None else to_value.unsqueeze(-1) * grad
        if to_grad is not None:
            product = _Product.apply(p, q, to_grad, ctx.number, ctx.rho)
            to_p = product if to_p is None else to_p + product
        to_q = -to_p if to_p is not None and ctx.needs_input_grad[1] else None
        return to_p, to_q, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, p: Tensor, q: Tensor, *constants: Any) -> tuple[Any, Any]:
        return _Emd.apply(*_rows_first(info, in_dims, p, q), *constants), (0, 0)


class _Product(torch.autograd.Function):
    """Hessians times vectors `v`, differentiable in `v`."""

    @staticmethod
    def forward(p: Tensor, q: Tensor, v: Tensor, number: int, rho: float) -> Tensor:
        return torch.ops.fastemd.emd_hvp(p, q, v, number, rho)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        p, q, _, ctx.number, ctx.rho = inputs
        ctx.space = space_of(ctx.number)
        ctx.save_for_backward(p, q)

    @staticmethod
    def backward(ctx: Any, to_product: Tensor) -> tuple[Any, ...]:
        if any(ctx.needs_input_grad[:2]) and ctx.rho not in (1.0, 2.0):
            validation.no_third_derivative(ctx.rho)
        p, q = ctx.saved_tensors
        to_v = _Product.apply(p, q, to_product, ctx.number, ctx.rho)
        return None, None, to_v, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, p: Tensor, q: Tensor, v: Tensor, *constants: Any) -> Any:
        return _Product.apply(*_rows_first(info, in_dims, p, q, v), *constants), 0


def _rows_first(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """The axis that `vmap` took away, back in front of every tensor."""
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
