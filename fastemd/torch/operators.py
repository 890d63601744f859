"""The kernels as operators of torch, and their derivatives."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastemd import validation
from fastemd.functions import emd_value_and_grad
from fastemd.hessians import emd_hvp
from fastemd.losses import LossCall
from fastemd.registry import space_of
from fastemd.sinkhorn import sinkhorn
from fastemd.spaces import GroundSpace

# The kernels as operators, which torch.compile takes as they are: values and derivatives of rows,
# and second derivatives times vectors. Declared like this they cost 3 us per call, by
# `torch.library.custom_op` 11.

_SCHEMAS = {
    "emd": "Tensor p, Tensor q, {} SymInt space, float rho, float tolerance",
    "emd_loss": (
        "Tensor x, Tensor target, Tensor? counted, {} SymInt space, float rho, float tolerance, "
        "str normalize, float cross_entropy"
    ),
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"fastemd::{_name}", f"({_schema.format('')}) -> (Tensor, Tensor)")
    torch.library.define(f"fastemd::{_name}_hvp", f"({_schema.format('Tensor v,')}) -> Tensor")


@torch.library.register_fake("fastemd::emd")
@torch.library.register_fake("fastemd::emd_loss")
def _(first: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return first.new_empty(first.shape[:-1]), first.new_empty(first.shape)


@torch.library.register_fake("fastemd::emd_hvp")
@torch.library.register_fake("fastemd::emd_loss_hvp")
def _(first: Tensor, *rest: Any) -> Tensor:
    return first.new_empty(first.shape)


def _keeping_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whenever Numba starts its threads torch keeps the number of its own.

    If both use the same OpenMP library, that changes it once per process.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        threads = torch.get_num_threads()
        try:
            return function(*args)
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    return run


def _implements(name: str) -> Callable[[Callable[..., Any]], Any]:
    """On the CPU and on CUDA."""
    register = torch.library.impl(name, ("cpu", "cuda"))
    return lambda function: register(_keeping_threads(function))


@_implements("fastemd::emd")
def _(p: Tensor, q: Tensor, space: int, rho: float, tolerance: float) -> tuple[Tensor, Tensor]:
    p, q = p.detach(), q.detach()
    result: tuple[Tensor, Tensor]
    validate = tolerance >= 0.0 and tolerance
    result = emd_value_and_grad(p, q, space_of(space), rho, validate=validate)
    return result


@_implements("fastemd::emd_hvp")
def _(p: Tensor, q: Tensor, v: Tensor, space: int, rho: float, tolerance: float) -> Tensor:
    p, q, v = p.detach(), q.detach(), v.detach()
    product: Tensor = emd_hvp(p, q, v, space_of(space), rho, validate=False)
    return product


@_implements("fastemd::emd_loss")
def _(x: Tensor, target: Tensor, counted: Tensor | None, *constants: Any) -> tuple[Tensor, Tensor]:
    return _loss("loss", constants, counted, x=x.detach(), target=target)


@_implements("fastemd::emd_loss_hvp")
def _(x: Tensor, target: Tensor, counted: Tensor | None, v: Tensor, *constants: Any) -> Tensor:
    inputs = {"x": x.detach(), "target": target, "v": v.detach()}
    return _loss("loss_product", constants, counted, **inputs)[1]


def _loss(
    operation: str, constants: Any, counted: Tensor | None, **inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses and derivatives of all rows; those that are not `counted` are not read."""
    number, rho, tolerance, normalize, cross_entropy = constants
    normalize = None if normalize == "none" else normalize
    call = LossCall(
        space_of(number), rho, normalize, cross_entropy, weight=counted, tolerance=tolerance,
        **inputs,
    )  # fmt: skip
    return call.values_and_derivatives(operation, None, "none")


# Their derivatives, as functions that torch.func can transform.


@torch.compiler.allow_in_graph  # left to autograd, which is better at it than Dynamo
def values(
    first: Tensor, second: Tensor, counted: Tensor | None, operator: str, *constants: Any
) -> Tensor:
    """The value of every row; `counted` is for losses, `constants` those of the schema."""
    return _Values.apply(first, second, counted, operator, *constants)[0]


def _tensors(operator: str, first: Tensor, second: Tensor, counted: Tensor | None) -> list[Any]:
    """The leading arguments of an operator."""
    return [first, second] if operator == "emd" else [first, second, counted]


class _Values(torch.autograd.Function):
    """Values and derivatives. That these are an output makes it differentiable twice."""

    @staticmethod
    def forward(
        first: Tensor, second: Tensor, counted: Tensor | None, operator: str, *constants: Any
    ) -> tuple[Tensor, Tensor]:
        tensors = _tensors(operator, first, second, counted)
        return getattr(torch.ops.fastemd, operator)(*tensors, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        first, second, counted, ctx.operator, *ctx.constants = inputs
        ctx.space = space_of(ctx.constants[0])  # lives until the last derivative
        ctx.save_for_backward(first, second, counted, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, to_value: Tensor | None, to_grad: Tensor | None) -> tuple[Any, ...]:
        first, second, counted, grad = ctx.saved_tensors
        to_first = None if to_value is None else to_value.unsqueeze(-1) * grad
        if to_grad is not None:
            tensors = first, second, counted, to_grad
            product = _Product.apply(*tensors, ctx.operator, *ctx.constants)
            to_first = product if to_first is None else to_first + product
        to_second = None
        if to_first is not None and ctx.needs_input_grad[1]:  # only `emd` of q
            to_second = -to_first
        return to_first, to_second, None, None, *[None] * len(ctx.constants)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        return _Values.apply(*_rows_first(info, in_dims, inputs)), (0, 0)


class _Product(torch.autograd.Function):
    """Second derivatives times vectors `v`, differentiable in `v`."""

    @staticmethod
    def forward(
        first: Tensor, second: Tensor, counted: Tensor | None, v: Tensor, operator: str,
        *constants: Any,
    ) -> Tensor:  # fmt: skip
        tensors = _tensors(operator, first, second, counted)
        return getattr(torch.ops.fastemd, f"{operator}_hvp")(*tensors, v, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, counted, _, ctx.operator, *ctx.constants = inputs
        ctx.space = space_of(ctx.constants[0])
        ctx.save_for_backward(first, second, counted)

    @staticmethod
    def backward(ctx: Any, to_product: Tensor) -> tuple[Any, ...]:
        rho = ctx.constants[1]
        if any(ctx.needs_input_grad[:2]) and (ctx.operator != "emd" or rho not in (1.0, 2.0)):
            validation.no_third_derivative(ctx.operator, rho)
        to_v = _Product.apply(*ctx.saved_tensors, to_product, ctx.operator, *ctx.constants)
        return None, None, None, to_v, None, *[None] * len(ctx.constants)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        return _Product.apply(*_rows_first(info, in_dims, inputs)), 0


def distances(p: Tensor, q: Tensor, cost: Tensor | GroundSpace, options: dict[str, Any]) -> Tensor:
    """Sinkhorn distances by `fastemd.sinkhorn`, differentiable in `p`, of the shape of `q`."""
    value: Tensor = _Sinkhorn.apply(p, q, cost, options)[0]
    return value


class _Sinkhorn(torch.autograd.Function):
    """Sinkhorn distances and what `fastemd.sinkhorn` calls their gradient with respect to `p`."""

    @staticmethod
    @_keeping_threads
    def forward(
        p: Tensor, q: Tensor, cost: Tensor | GroundSpace, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        result: Any = sinkhorn(p.detach(), q.detach(), cost, **options)
        filled = result.grad != -math.inf
        mean = result.grad.where(filled, 0.0).sum(-1, True) / filled.sum(-1, True)
        return result.value, (result.grad - mean).where(filled, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.dtype = inputs[0].dtype

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_value: Tensor, to_grad: Tensor) -> tuple[Any, ...]:
        (grad,) = ctx.saved_tensors
        return (to_value.unsqueeze(-1) * grad).to(ctx.dtype), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        if in_dims[2] is not None:
            validation.one_cost()
        p, q = _rows_first(info, in_dims[:2], inputs[:2])
        return _Sinkhorn.apply(p, q, *inputs[2:]), (0, 0)


# Torch asks for the signatures in every call; taken from here that is 25 us faster.
for _function in (_Values.forward, _Product.forward):
    setattr(_function, "__signature__", inspect.signature(_function))  # noqa: B010


def _rows_first(info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The axis that `vmap` took away, back in front of every tensor."""
    moved = []
    for value, dim in zip(inputs, in_dims, strict=True):
        if dim is not None:
            value = value.movedim(dim, 0)
        elif isinstance(value, Tensor):
            value = value.expand(info.batch_size, *value.shape)
        moved.append(value)
    return moved
