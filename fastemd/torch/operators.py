"""The kernels as operators of torch, and their derivatives.

A ground space is three tensors: `parents`, `lengths` and `shares` of its edge layout by levels.
"""

import concurrent.futures
import functools
import inspect
import math
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastemd import validation
from fastemd.call import resolve, run
from fastemd.kernels.edges import power
from fastemd.layout import EdgeLayout
from fastemd.length_gradients import loss_length_gradient
from fastemd.losses import Loss, resolve_loss, run_loss
from fastemd.sinkhorn import sinkhorn
from fastemd.spaces import GroundSpace

# -- ground spaces as tensors ----------------------------------------------------------------------

Edges = Sequence[Tensor]  # parents, lengths, shares

_edges: weakref.WeakKeyDictionary[GroundSpace, dict[Any, Edges]] = weakref.WeakKeyDictionary()
_layouts: dict[tuple[int, ...], EdgeLayout] = {}  # by `_key`


def new_edges(space: GroundSpace, kind: str = "levels") -> Edges:
    """Return new tensors of the edges of a space, on torch's default device."""
    with torch.inference_mode(False):  # other tensors cannot be saved for backward
        return [torch.tensor(array) for array in space.layout(kind).edges]


def edges_of(space: GroundSpace, device: torch.device, kind: str = "levels") -> Edges:
    """Return the tensors of the edges of a space on a device, the same in every call."""
    on_devices, key = _edges.setdefault(space, {}), (device, kind)
    if key not in on_devices:
        # Another thread has no FakeTensorMode, torch.func transform or inference mode. Tensors
        # that are made under one cannot be used after it.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            on_devices[key] = pool.submit(_uploaded_edges, space, device, kind).result()
    return on_devices[key]


def _uploaded_edges(space: GroundSpace, device: torch.device, kind: str) -> Edges:
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")  # for fake tensors
    edges = [tensor.to(device) for tensor in new_edges(space, kind)]
    _remember(edges, space.layout(kind))
    return edges


def _layout_of(edges: Edges, n_bins: int) -> EdgeLayout:
    """Return the layout of tensors."""
    layout = _layouts.get(_key(edges, n_bins))
    if layout is None:
        arrays = [tensor.detach().cpu().numpy() for tensor in edges]
        validation.check_edges(n_bins, *arrays)
        layout = EdgeLayout(n_bins, *arrays)
        _remember(edges, layout)
    return layout


def _key(edges: Edges, n_bins: int) -> tuple[int, ...]:
    """Identify live tensors with their content, which may be written to."""
    a, b, c = edges
    return id(a), id(b), id(c), a._version, b._version, c._version, n_bins


def _remember(edges: Edges, layout: EdgeLayout) -> None:
    """Cache the layout of tensors as long as all of them live."""
    key = _key(edges, layout.n_bins)
    _layouts[key] = layout

    def forget() -> None:
        _layouts.pop(key, None)
        for finalizer in finalizers:  # of tensors that live on: learned lengths are new every time
            finalizer.detach()

    finalizers = [weakref.finalize(tensor, forget) for tensor in edges]


# -- the kernels -----------------------------------------------------------------------------------


def _emd(p: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *edges, rho, tolerance = rest
    layout = _layout_of(edges, p.shape[-1])
    batch = resolve(layout, tolerance >= 0.0 and tolerance, p=p.detach(), q=q.detach())
    value, grad = batch.output("value", None), batch.output("grad", None, layout.n_bins)
    run("gradient", layout, batch, power(rho), value, grad)
    return batch.wrap(value), batch.wrap(grad)


def _emd_hvp(v: Tensor, p: Tensor, q: Tensor, *rest: Any) -> Tensor:
    *edges, rho, _ = rest
    layout = _layout_of(edges, p.shape[-1])
    batch = resolve(layout, False, p=p.detach(), q=q.detach(), v=v.detach())
    product = batch.output("product", None, layout.n_bins)
    run("hvp", layout, batch, power(rho), None, product)
    return batch.wrap(product)


def _emd_loss(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _loss("loss", x.detach(), *rest)


def _emd_loss_hvp(v: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return _loss("loss_product", x.detach(), *rest, v=v.detach())[1]


def _loss(
    operation: str, x: Tensor, target: Tensor, counted: Tensor | None,
    class_weight: Tensor | None, *rest: Any, **v: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the losses and derivatives of all rows; those that are not `counted` are not read."""
    *edges, rho, tolerance, normalize, cross_entropy, label_smoothing, root, ignored, dim = rest
    layout = _layout_of(edges, x.shape[dim])
    normalize = None if normalize == "none" else normalize
    loss = Loss(power(rho), normalize, cross_entropy, label_smoothing, root, dim)
    batch = resolve_loss(
        layout, loss, x, target, counted, ignored, class_weight, tolerance=tolerance, **v
    )
    losses, derivatives = run_loss(operation, layout, batch, "none")
    return batch.backend.wrap(losses), batch.backend.wrap(derivatives)


def _emd_loss_length_grad(
    upstream: Tensor, x: Tensor, target: Tensor, counted: Tensor | None,
    class_weight: Tensor | None, *rest: Any,
) -> Tensor:  # fmt: skip
    """Return the derivatives of ``sum(upstream * loss)`` in the lengths of the layout "full"."""
    *edges, rho, _, normalize, _, label_smoothing, root, ignored, dim = rest
    layout = _layout_of(edges, x.shape[dim])
    normalize = None if normalize == "none" else normalize
    loss = Loss(power(rho), normalize, 0.0, label_smoothing, root, dim)
    tensors = (upstream, x, target, counted, class_weight)
    arrays: list[Any] = [None if tensor is None else tensor.detach() for tensor in tensors]
    if not x.is_cuda:
        arrays = [None if tensor is None else tensor.numpy() for tensor in arrays]
    grad = torch.as_tensor(loss_length_gradient(layout, loss, *arrays, ignored=ignored))
    return on_all_edges(grad.to(edges[1].dtype), layout.n_edges)


def on_all_edges(of_nodes: Tensor, n_edges: int) -> Tensor:
    """Extend a number per node but the root to all edges of the layout "full", by zeros."""
    n_before = n_edges - 1 - len(of_nodes)  # edges of the bins, which have no length
    return torch.cat([of_nodes.new_zeros(n_before), of_nodes, of_nodes.new_zeros(1)])


def _keeping_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """Restore torch's number of threads after a call in which Numba starts its own.

    If both use the same OpenMP library, that changes the number once per process.
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


def _register(name: str, schema: str, *functions: Callable[..., Any]) -> None:
    """Make functions for values, products and maybe lengths operators on the CPU and on CUDA.

    torch.compile takes operators as they are. Declared like this they cost 3 us per call, by
    `torch.library.custom_op` 11.
    """
    schema = schema.format(
        "Tensor parents, Tensor lengths, Tensor shares, float rho, float tolerance"
    )
    n_tensors = _N_TENSORS[name]
    operators = (
        (name, "({}) -> (Tensor, Tensor)", _fake_values),
        (f"{name}_hvp", "(Tensor v, {}) -> Tensor", lambda v, *rest: v.new_empty(v.shape)),
        (
            f"{name}_length_grad",
            "(Tensor upstream, {}) -> Tensor",
            lambda upstream, *rest: rest[n_tensors - 2].new_empty(rest[n_tensors - 2].shape),
        ),
    )
    for (operator, form, fake), function in zip(operators, functions, strict=False):
        torch.library.define(f"fastemd::{operator}", form.format(schema))
        torch.library.impl(f"fastemd::{operator}", ("cpu", "cuda"), _keeping_threads(function))
        torch.library.register_fake(f"fastemd::{operator}", fake)


def _fake_values(rows: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return tensors of the shapes of the results, without numbers."""
    dim = dim_of(rest)
    shape = validation.without_axis(tuple(rows.shape), dim)
    return rows.new_empty(shape), rows.new_empty(rows.shape)


def dim_of(constants: Sequence[Any]) -> int:
    """Return the axis of the bins (< 0) from the constants of an operator."""
    last = constants[-1]
    return last if isinstance(last, int) else -1  # those of `emd` end with a tolerance


_N_TENSORS = {"emd": 5, "emd_loss": 7}  # the lengths are the last but one
_N_ROWS = {"emd": 2, "emd_loss": 3}  # of the leading tensors with a number or bins for every row
_register("emd", "Tensor p, Tensor q, {}", _emd, _emd_hvp)
_register(
    "emd_loss",
    "Tensor x, Tensor target, Tensor? counted, Tensor? class_weight, {}, str normalize, "
    "float cross_entropy, float label_smoothing, bool root, int? ignored, int dim",
    _emd_loss,
    _emd_loss_hvp,
    _emd_loss_length_grad,
)


# -- derivatives, as functions that torch.func can transform ---------------------------------------


@torch.compiler.allow_in_graph  # left to autograd, which is better at it than Dynamo
def values(operator: str, *arguments: Any) -> Tensor:
    """Return the value of every row; `arguments` are those of the operator's schema."""
    mode = getattr(arguments[0], "fake_mode", None)
    if mode is not None and not torch.compiler.is_compiling():
        # Torch's tensors without memory do not mix with others.
        arguments = tuple(mode.from_tensor(x) if type(x) is Tensor else x for x in arguments)
    n_tensors = _N_TENSORS[operator]
    return _Values.apply(operator, arguments[n_tensors:], *arguments[:n_tensors])[0]


class _Values(torch.autograd.Function):
    """Values and derivatives. That these are an output makes it differentiable twice."""

    @staticmethod
    def forward(
        operator: str, constants: tuple[Any, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return getattr(torch.ops.fastemd, operator)(*tensors, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.operator, ctx.constants, *tensors = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, to_value: Tensor | None, to_grad: Tensor | None) -> tuple[Any, ...]:
        *tensors, grad = ctx.saved_tensors
        to_first, lengths = None, _N_TENSORS[ctx.operator] - 2
        if to_value is not None:
            to_first = to_value.unsqueeze(dim_of(ctx.constants)) * grad
        if to_grad is not None:
            product = _Product.apply(ctx.operator, ctx.constants, to_grad, *tensors)
            to_first = product if to_first is None else to_first + product
        to_second = None
        if to_first is not None and ctx.needs_input_grad[3]:  # only `emd` of q
            to_second = -to_first
        to_others: list[Tensor | None] = [None] * (len(tensors) - 2)
        if ctx.needs_input_grad[2 + lengths]:
            if to_grad is not None:
                validation.no_second_derivative_in_lengths("learn_lengths")
            if to_value is not None:
                arguments = ctx.operator, ctx.constants, to_value, *tensors
                to_others[lengths - 2] = _LengthGradient.apply(*arguments)
        return None, None, to_first, to_second, *to_others

    @staticmethod
    def vmap(info: Any, in_dims: Any, operator: str, constants: Any, *tensors: Any) -> Any:
        moved = _rows_first(info, in_dims[2:], tensors, _N_ROWS[operator])
        return _Values.apply(operator, constants, *moved), (0, 0)


class _LengthGradient(torch.autograd.Function):
    """Derivatives in the lengths of the edges, which have no derivatives.

    They are sums over all rows, so `vmap` computes one after the other.
    """

    @staticmethod
    def forward(
        operator: str, constants: tuple[Any, ...], to_value: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        operators = torch.ops.fastemd
        return getattr(operators, f"{operator}_length_grad")(to_value, *tensors, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, to_gradient: Tensor) -> NoReturn:
        validation.no_second_derivative_in_lengths("learn_lengths")

    @staticmethod
    def vmap(info: Any, in_dims: Any, operator: str, constants: Any, *tensors: Any) -> Any:
        n_rows = 1 + _N_ROWS[operator]
        moved = _rows_first(info, in_dims[2:], tensors, n_rows)
        grads = []
        for i in range(info.batch_size):
            rows = (None if tensor is None else tensor[i] for tensor in moved[:n_rows])
            grads.append(_LengthGradient.apply(operator, constants, *rows, *moved[n_rows:]))
        return torch.stack(grads), 0


class _Product(torch.autograd.Function):
    """Second derivatives times vectors `v`, differentiable in `v`."""

    @staticmethod
    def forward(
        operator: str, constants: tuple[Any, ...], v: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        return getattr(torch.ops.fastemd, f"{operator}_hvp")(v, *tensors, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.constants, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, to_product: Tensor) -> tuple[Any, ...]:
        rho, tensors = ctx.constants[0], ctx.saved_tensors
        if any(ctx.needs_input_grad[3:5]) and (ctx.operator != "emd" or rho not in (1.0, 2.0)):
            validation.no_third_derivative(ctx.operator, rho)
        to_v = _Product.apply(ctx.operator, ctx.constants, to_product, *tensors)
        return None, None, to_v, *[None] * len(tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, operator: str, constants: Any, *tensors: Any) -> Any:
        moved = _rows_first(info, in_dims[2:], tensors, 1 + _N_ROWS[operator])
        return _Product.apply(operator, constants, *moved), 0


class _Sinkhorn(torch.autograd.Function):
    """Sinkhorn distances and what `fastemd.sinkhorn` calls their gradient with respect to `p`.

    `p` and `q` have one shape. The distances are differentiable in `p`.
    """

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
            validation.not_mapped("cost")
        p, q = _rows_first(info, in_dims[:2], inputs[:2], 2)
        return _Sinkhorn.apply(p, q, *inputs[2:]), (0, 0)


distances = _Sinkhorn.apply


class _Positional(inspect.Signature):
    """The signature of a function that is always called with all its arguments, by position."""

    def bind(self, *args: Any, **keywords: Any) -> Any:
        return types.SimpleNamespace(args=args, kwargs=keywords, apply_defaults=lambda: None)


# Torch binds the arguments to the signature in every call: 10 us, this way 2.
for _function in (_Values.forward, _Product.forward):
    _parameters = inspect.signature(_function).parameters.values()
    setattr(_function, "__signature__", _Positional(list(_parameters)))  # noqa: B010


def _rows_first(
    info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...], n_rows: int
) -> list[Any]:
    """Move the mapped axis to the front of the first `n_rows` tensors; all others have none."""
    moved = list(inputs)
    for i, dim in enumerate(in_dims):
        if dim is not None:
            if i >= n_rows:
                name = "space" if i >= len(inputs) - 3 else "class_weight"
                validation.not_mapped("length" if i == len(inputs) - 2 else name)
            moved[i] = inputs[i].movedim(dim, 0)
        elif i < n_rows and isinstance(inputs[i], Tensor):
            moved[i] = inputs[i].expand(info.batch_size, *inputs[i].shape)
    return moved
