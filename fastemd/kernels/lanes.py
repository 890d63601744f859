"""Vector registers for Numba: ``LANES`` rows of a batch side by side.

LLVM does not vectorise an inner loop over the rows of a tile when it cannot rule out that the
arrays overlap, so the kernels name the vectors themselves. A ``Lanes`` value is ``LANES`` float64
numbers that behave like one: it can be added, multiplied, compared (to 1.0 or 0.0) and raised to a
power, hence the scalar functions of :mod:`fastemd.kernels.edges` run on it as they stand.
"""

import operator
from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_jitable,
    register_model,
    type_callable,
)
from numba.np import arrayobj

from fastemd.kernels.power import power

LANES = 8
F64 = ir.DoubleType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
_FUSE = ["contract"]  # a product may join a sum in one rounding


class LanesType(types.Type):
    """Numba's type of ``LANES`` float64 numbers in vector registers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes_type = LanesType()
VECTOR = ir.VectorType(F64, LANES)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, VECTOR)


def _broadcast(builder, scalar):
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), zeros)


def _as_vector(context, builder, typ, value):
    if isinstance(typ, LanesType):
        return value
    return _broadcast(builder, context.cast(builder, value, typ, types.float64))


@intrinsic
def splat(typingctx, x):
    """All lanes equal to the number `x`."""

    def codegen(context, builder, sig, args):
        return _as_vector(context, builder, sig.args[0], args[0])

    return lanes_type(x), codegen


def _unary(op, emit):
    """Let `op` act on lanes as `emit` writes it."""
    type_callable(op)(lambda context: lambda a: lanes_type if a is lanes_type else None)
    _lower(op, emit, LanesType)


def _binary(op, emit):
    """Let `op` act on lanes, or on lanes and a number, as `emit` writes it."""
    type_callable(op)(lambda context: lambda a, b: lanes_type if lanes_type in (a, b) else None)
    _lower(op, emit, LanesType, LanesType)
    _lower(op, emit, LanesType, types.Number)
    _lower(op, emit, types.Number, LanesType)


def _lower(op, emit, *operands):
    @lower_builtin(op, *operands)
    def lower(context, builder, sig, args):
        return emit(builder, *map(partial(_as_vector, context, builder), sig.args, args))


def _compare(symbol):
    one, zero = (ir.Constant(VECTOR, [number] * LANES) for number in (1.0, 0.0))
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(symbol, a, b), one, zero)


def _llvm(name):
    def emit(builder, *args):
        signature = ir.FunctionType(VECTOR, [VECTOR] * len(args))
        function = cgutils.get_or_insert_function(builder.module, signature, f"{name}.v{LANES}f64")
        return builder.call(function, args)

    return emit


_binary(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=_FUSE))
_binary(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=_FUSE))
_binary(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=_FUSE))
_binary(operator.lt, _compare("<"))
_binary(operator.gt, _compare(">"))
_binary(operator.ge, _compare(">="))
_binary(operator.pow, power)
_unary(abs, _llvm("llvm.fabs"))


@intrinsic
def lane(typingctx, a, index):
    """One of the numbers in `a`."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], args[1])

    return types.float64(a, types.intp), codegen


# ------------------------------------------------------------------------------ memory, by address
#
# Kernels know memory by addresses (intp). An array would have its references counted wherever it is
# passed on, and its eight fields take longer to compile than the loops.


def pointer(builder, address, element, index=None):
    """The LLVM pointer to item `index` of the `element`s at `address`."""
    start = builder.inttoptr(address, element.as_pointer())
    return start if index is None else builder.gep(start, [index])


def _loader(element, numba_type, align):
    @intrinsic
    def load(typingctx, address, index):
        def codegen(context, builder, sig, args):
            return builder.load(pointer(builder, args[0], element, args[1]), align=align)

        return numba_type(types.intp, types.intp), codegen

    return load


load = _loader(VECTOR, lanes_type, 8 * LANES)  # the lanes at `address`, `index` vectors further on
number_at = _loader(F64, types.float64, 8)
integer_at = _loader(I64, types.int64, 8)


@intrinsic
def store(typingctx, address, index, value):
    """Write the lanes `value` where `load` finds them."""

    def codegen(context, builder, sig, args):
        place = pointer(builder, args[0], VECTOR, args[1])
        builder.store(args[2], place, align=8 * LANES)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, lanes_type), codegen


@intrinsic
def put_number(typingctx, address, index, value):
    """Write a number where `number_at` finds it."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], pointer(builder, args[0], F64, args[1]), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float64), codegen


@intrinsic
def put_integer(typingctx, address, index, value):
    """Write an integer where `integer_at` finds it."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], pointer(builder, args[0], I64, args[1]), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def address(typingctx, array):
    """The address of an array's first number."""

    def codegen(context, builder, sig, args):
        data = arrayobj.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.intp(array), codegen


@register_jitable
def aligned(scratch):
    """The first address in an array at which a cache line starts, else lanes lie in two."""
    return (address(scratch) + 63) // 64 * 64
