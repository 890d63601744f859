"""Vector registers for Numba: some rows of a batch side by side.

LLVM does not vectorise an inner loop over the rows of a tile when it cannot rule out that the
arrays overlap, so the kernels name the vectors themselves. A ``Lanes`` value is a few float64
numbers that behave like one: it can be added, multiplied, compared (to 1.0 or 0.0) and raised to a
power, hence the scalar functions of :mod:`fastemd.kernels.edges` run on it as they stand.

How many lanes there are is part of the type, of a value and of the place in memory where it lies
(`At`): what works on a place works for any number of lanes.
"""

import math
import operator

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

from fastemd.kernels.power import exponential, power

F64 = ir.DoubleType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)


class LanesType(types.Type):
    """Numba's type of `count` float64 numbers in vector registers."""

    def __init__(self, count) -> None:
        super().__init__(name=f"Lanes({count})")
        self.count = count
        self.vector = ir.VectorType(F64, count)


class At(types.Type):
    """Numba's type of an address at which things lie that come `count` at a time."""

    def __init__(self, count) -> None:
        super().__init__(name=f"At({count})")
        self.lanes = LanesType(count)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


@register_model(At)
class _AtModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, I64)


def _as_vector(context, builder, typ, value, vector):
    if isinstance(typ, LanesType):
        return value
    scalar = context.cast(builder, value, typ, types.float64)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _lanes_among(*operands):
    return next((typ for typ in operands if isinstance(typ, LanesType)), None)


def _operator(op, emit, n_operands):
    """Let `op` act on lanes, or on lanes and a number, as `emit` writes it."""
    if n_operands == 1:
        type_callable(op)(lambda context: lambda a: _lanes_among(a))
    else:
        type_callable(op)(lambda context: lambda a, b: _lanes_among(a, b))

    def lower(context, builder, sig, args):
        vector = sig.return_type.vector
        operands = zip(sig.args, args, strict=True)
        return emit(builder, *(_as_vector(context, builder, *each, vector) for each in operands))

    lower_builtin(op, *[LanesType] * n_operands)(lower)
    if n_operands == 2:
        lower_builtin(op, LanesType, types.Number)(lower)
        lower_builtin(op, types.Number, LanesType)(lower)


def _compare(symbol):
    def emit(builder, a, b):
        one, zero = (ir.Constant(a.type, [number] * a.type.count) for number in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered(symbol, a, b), one, zero)

    return emit


def _choose(symbol):
    """Python's `min` and `max`: the second where it compares so to the first, else the first."""

    def emit(builder, a, b):
        return builder.select(builder.fcmp_ordered(symbol, b, a), b, a)

    return emit


def _llvm(name):
    def emit(builder, *args):
        vector = args[0].type
        signature = ir.FunctionType(vector, [vector] * len(args))
        name_of_type = f"llvm.{name}.v{vector.count}f64"
        function = cgutils.get_or_insert_function(builder.module, signature, name_of_type)
        return builder.call(function, args)

    return emit


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b), 2)
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b), 2)
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b), 2)
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b), 2)
_operator(operator.lt, _compare("<"), 2)
_operator(operator.ge, _compare(">="), 2)
_operator(operator.pow, power, 2)
_operator(min, _choose("<"), 2)
_operator(max, _choose(">"), 2)
_operator(math.copysign, _llvm("copysign"), 2)
_operator(abs, _llvm("fabs"), 1)


@intrinsic
def multiply_add(typingctx, a, b, total):
    """``a * b + total``, in one rounding where the processor can.

    LLVM might do so of itself for some numbers of lanes and not for others.
    """

    def codegen(context, builder, sig, args):
        vector = sig.return_type.vector
        operands = zip(sig.args, args, strict=True)
        operands = [_as_vector(context, builder, *each, vector) for each in operands]
        return _llvm("fmuladd")(builder, *operands)

    return _lanes_among(a, b, total)(a, b, total), codegen


@intrinsic
def exp_below(typingctx, a, like):
    """``e ** a`` for a <= 0; the smallest normal number and less is 0."""
    single = like == types.float32
    return a(a, like), lambda context, builder, sig, args: exponential(builder, args[0], single)


@intrinsic
def lane(typingctx, a, index):
    """One of the numbers in `a`."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], args[1])

    return types.float64(a, types.intp), codegen


@intrinsic
def splat(typingctx, place, x):
    """All lanes equal to the number `x`, as many as lie at `place`."""

    def codegen(context, builder, sig, args):
        return _as_vector(context, builder, sig.args[1], args[1], place.lanes.vector)

    return place.lanes(place, x), codegen


# ------------------------------------------------------------------------------ memory, by address
#
# Kernels know memory by addresses (intp, or At). An array would have its references counted
# wherever it is passed on, and its eight fields take longer to compile than the loops.


def at(count):
    """A function for kernels that makes an address a place for `count` lanes."""

    @intrinsic
    def place(typingctx, address):
        return At(count)(types.intp), lambda context, builder, sig, args: args[0]

    return place


@intrinsic
def n_lanes(typingctx, place):
    """How many lanes lie at a place."""
    count = place.lanes.count
    return types.intp(place), lambda context, builder, sig, args: I64(count)


def pointer(builder, address, element, index=None):
    """The LLVM pointer to item `index` of the `element`s at `address`."""
    start = builder.inttoptr(address, element.as_pointer())
    return start if index is None else builder.gep(start, [index])


@intrinsic
def load(typingctx, place, index):
    """The lanes at `place`, `index` vectors further on."""
    vector = place.lanes.vector

    def codegen(context, builder, sig, args):
        return builder.load(pointer(builder, args[0], vector, args[1]), align=8 * vector.count)

    return place.lanes(place, types.intp), codegen


@intrinsic
def store(typingctx, place, index, value):
    """Write the lanes `value` where `load` finds them."""
    vector = place.lanes.vector

    def codegen(context, builder, sig, args):
        start = pointer(builder, args[0], vector, args[1])
        builder.store(args[2], start, align=8 * vector.count)
        return context.get_dummy_value()

    return types.void(place, types.intp, place.lanes), codegen


def _reader(element, numba_type):
    @intrinsic
    def read(typingctx, address, index):
        def codegen(context, builder, sig, args):
            return builder.load(pointer(builder, args[0], element, args[1]), align=8)

        return numba_type(address, types.intp), codegen

    return read


def _writer(element, numba_type):
    @intrinsic
    def write(typingctx, address, index, value):
        def codegen(context, builder, sig, args):
            builder.store(args[2], pointer(builder, args[0], element, args[1]), align=8)
            return context.get_dummy_value()

        return types.void(address, types.intp, numba_type), codegen

    return write


number_at, put_number = _reader(F64, types.float64), _writer(F64, types.float64)
integer_at, put_integer = _reader(I64, types.intp), _writer(I64, types.intp)


@intrinsic
def address(typingctx, array):
    """The address of an array's first number, or of a place for lanes."""

    def codegen(context, builder, sig, args):
        if isinstance(array, At):
            return args[0]
        data = arrayobj.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.intp(array), codegen


@register_jitable
def aligned(address):
    """The next address at which a cache line starts, else lanes lie in two."""
    return (address + 63) // 64 * 64
