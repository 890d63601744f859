"""SIMD lanes for Numba: a few rows of a batch in one vector register.

LLVM does not vectorise an inner loop over the rows of a tile if it cannot rule out that the arrays
overlap, so the kernels use explicit vectors. A ``Lanes`` value is a vector of float64 numbers that
behaves like one number: it can be added, multiplied, compared (to 1.0 or 0.0) and raised to a
power, so the edge functions of `fastemd.kernels.edges` work on it unchanged.

The number of lanes is part of the type, both of a value and of the address at which it is stored
(`At`): code written for an address works for any number of lanes.
"""

import functools
import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_model,
    type_callable,
)
from numba.np import arrayobj

from fastemd.kernels.cpu.powers import exponential, power
from fastemd.kernels.jitable import jitable

F64 = ir.DoubleType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)


# ---------------------------------------------------------------------- types and operators


class LanesType(types.Type):
    """Numba's type of `count` float64 numbers in vector registers.

    If `single`, the rows are float32, for which powers and exponentials may be less exact.
    """

    def __init__(self, count, single=False) -> None:
        super().__init__(name=f"Lanes({count}, {single})")
        self.count, self.single = count, single
        self.vector = ir.VectorType(F64, count)


class At(types.Type):
    """Numba's type of an address of vectors of `count` numbers."""

    def __init__(self, count, single) -> None:
        super().__init__(name=f"At({count}, {single})")
        self.lanes = LanesType(count, single)


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
    """Define `op` for lanes, or for lanes and a number, by the instructions that `emit` writes."""
    if n_operands == 1:
        type_callable(op)(lambda context: lambda a: _lanes_among(a))
    else:
        type_callable(op)(lambda context: lambda a, b: _lanes_among(a, b))

    def lower(context, builder, sig, args):
        kind = sig.return_type
        operands = zip(sig.args, args, strict=True)
        operands = (_as_vector(context, builder, *each, kind.vector) for each in operands)
        return emit(builder, kind, *operands)

    lower_builtin(op, *[LanesType] * n_operands)(lower)
    if n_operands == 2:
        lower_builtin(op, LanesType, types.Number)(lower)
        lower_builtin(op, types.Number, LanesType)(lower)


def _instruction(name):
    return lambda builder, kind, a, b: getattr(builder, name)(a, b)


def _compare(symbol):
    def emit(builder, kind, a, b):
        one, zero = (ir.Constant(a.type, [number] * a.type.count) for number in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered(symbol, a, b), one, zero)

    return emit


def _choose(symbol):
    """Python's `min` and `max`: the second operand where the comparison holds, else the first."""

    def emit(builder, kind, a, b):
        return builder.select(builder.fcmp_ordered(symbol, b, a), b, a)

    return emit


def _llvm(name):
    def emit(builder, kind, *args):
        signature = ir.FunctionType(kind.vector, [kind.vector] * len(args))
        name_of_type = f"llvm.{name}.v{kind.count}f64"
        function = cgutils.get_or_insert_function(builder.module, signature, name_of_type)
        return builder.call(function, args)

    return emit


_operator(operator.add, _instruction("fadd"), 2)
_operator(operator.sub, _instruction("fsub"), 2)
_operator(operator.mul, _instruction("fmul"), 2)
_operator(operator.truediv, _instruction("fdiv"), 2)
_operator(operator.lt, _compare("<"), 2)
_operator(operator.ge, _compare(">="), 2)
_operator(operator.pow, lambda builder, kind, a, y: power(builder, a, y, kind.single), 2)
_operator(min, _choose("<"), 2)
_operator(max, _choose(">"), 2)
_operator(math.copysign, _llvm("copysign"), 2)
_operator(abs, _llvm("fabs"), 1)


@intrinsic
def multiply_add(typingctx, a, b, total):
    """Return ``a * b + total``, fused where the processor has an instruction for it.

    Without this, LLVM might fuse for some numbers of lanes and not for others.
    """

    def codegen(context, builder, sig, args):
        vector = sig.return_type.vector
        operands = zip(sig.args, args, strict=True)
        operands = [_as_vector(context, builder, *each, vector) for each in operands]
        return _llvm("fmuladd")(builder, sig.return_type, *operands)

    return _lanes_among(a, b, total)(a, b, total), codegen


@intrinsic
def add_term(typingctx, factors, total):
    """Add the product of two factors to lanes, fused as by `multiply_add`; None adds nothing."""

    def codegen(context, builder, sig, args):
        if isinstance(factors, types.NoneType):
            return args[1]
        vector = sig.return_type.vector
        pairs = zip(factors, cgutils.unpack_tuple(builder, args[0]), strict=True)
        a, b = (_as_vector(context, builder, *pair, vector) for pair in pairs)
        return _llvm("fmuladd")(builder, total, a, b, args[1])

    return total(factors, total), codegen


def _of_two(symbol):
    @intrinsic
    def choose(typingctx, a, b):
        kind = typingctx.unify_types(a, b)

        def codegen(context, builder, sig, args):
            a, b = (context.cast(builder, x, t, kind) for x, t in zip(args, sig.args, strict=True))
            compare = builder.fcmp_ordered if kind in types.real_domain else builder.icmp_signed
            return builder.select(compare(symbol, b, a), b, a)

        return kind(a, b), codegen

    return choose


# Of two numbers, as Python's `min` and `max`, which Numba compiles for every pair of types.
least, greatest = _of_two("<"), _of_two(">")


@intrinsic
def exp_below(typingctx, a):
    """Return ``e ** a`` for a <= 0; below the smallest normal number it is 0."""
    return a(a), lambda context, builder, sig, args: exponential(builder, args[0], a.single)


@intrinsic
def lane(typingctx, a, index):
    """Return one of the numbers in `a`."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], args[1])

    return types.float64(a, types.intp), codegen


@intrinsic
def has_any(typingctx, a):
    """Return whether one of the numbers in `a` is not 0."""

    def codegen(context, builder, sig, args):
        zeros = ir.Constant(args[0].type, [0.0] * a.count)
        mask = builder.fcmp_unordered("!=", args[0], zeros)
        bits = ir.IntType(a.count)
        return builder.icmp_unsigned("!=", builder.bitcast(mask, bits), bits(0))

    return types.boolean(a), codegen


@intrinsic
def lowest_bit(typingctx, word):
    """Return the place of the lowest bit that is set in an integer."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.intp(types.int64), codegen


@intrinsic
def splat(typingctx, place, x):
    """Return lanes for `place`, all equal to the number `x`."""

    def codegen(context, builder, sig, args):
        return _as_vector(context, builder, sig.args[1], args[1], place.lanes.vector)

    return place.lanes(place, x), codegen


# ------------------------------------------------------------------------------ memory, by address
#
# Kernels pass addresses (intp, or At) instead of arrays: an array has its references counted
# wherever it is passed, and its eight fields take longer to compile than the loops.


@functools.cache
def at(count, single=False):
    """Make the function that turns an address into one of vectors; see `LanesType`."""

    @intrinsic
    def place(typingctx, address):
        return At(count, single)(types.intp), lambda context, builder, sig, args: args[0]

    return place


@intrinsic
def place_like(typingctx, place, address):
    """Return a place of the same number of lanes at an address."""
    return place(place, types.intp), lambda context, builder, sig, args: args[1]


@intrinsic
def n_lanes(typingctx, place):
    """Return the number of lanes at a place."""
    count = place.lanes.count
    return types.intp(place), lambda context, builder, sig, args: I64(count)


def pointer(builder, address, element, index=None):
    """Return the LLVM pointer to item `index` of the `element`s at `address`."""
    start = builder.inttoptr(address, element.as_pointer())
    return start if index is None else builder.gep(start, [index])


@intrinsic
def load(typingctx, place, index):
    """Return vector number `index` at `place`."""
    vector = place.lanes.vector

    def codegen(context, builder, sig, args):
        return builder.load(pointer(builder, args[0], vector, args[1]), align=8 * vector.count)

    return place.lanes(place, types.intp), codegen


@intrinsic
def store(typingctx, place, index, value):
    """Write lanes, or a number to all lanes, as vector number `index` at `place`."""
    vector = place.lanes.vector

    def codegen(context, builder, sig, args):
        start = pointer(builder, args[0], vector, args[1])
        lanes = _as_vector(context, builder, sig.args[2], args[2], vector)
        builder.store(lanes, start, align=8 * vector.count)
        return context.get_dummy_value()

    return types.void(place, types.intp, value), codegen


@intrinsic
def store_each(typingctx, place, other, index, values):
    """Write lanes to `place`; of a pair, the second ones to `other`."""
    vector = place.lanes.vector
    is_pair = isinstance(values, types.BaseTuple)

    def codegen(context, builder, sig, args):
        kinds = sig.args[3] if is_pair else (sig.args[3],)
        each = cgutils.unpack_tuple(builder, args[3]) if is_pair else (args[3],)
        for address, kind, value in zip(args, kinds, each, strict=False):
            start = pointer(builder, address, vector, args[2])
            lanes = _as_vector(context, builder, kind, value, vector)
            builder.store(lanes, start, align=8 * vector.count)
        return context.get_dummy_value()

    return types.void(place, other, types.intp, values), codegen


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
    """Return the address of an array's first number, or of a place."""

    def codegen(context, builder, sig, args):
        if isinstance(array, At):
            return args[0]
        data = arrayobj.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.intp(array), codegen


@intrinsic
def allocate(typingctx, n_numbers):
    """Return the address of memory for float64 numbers, or raise MemoryError; see `free`."""

    def codegen(context, builder, sig, args):
        memory = context.nrt.allocate(builder, builder.mul(args[0], I64(8)))
        return builder.ptrtoint(memory, I64)

    return types.intp(types.intp), codegen


@intrinsic
def free(typingctx, address):
    """Free memory of `allocate`."""

    def codegen(context, builder, sig, args):
        context.nrt.free(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@jitable
def aligned(address):
    """Return the next address at which a cache line starts, so that no vector crosses two."""
    return (address + 63) // 64 * 64
