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
from fractions import Fraction

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

from fastemd.kernels.jitable import jitable

F64 = ir.DoubleType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)


# ------------------------------------------------------------------ powers, as LLVM instructions
#
# The C library computes one power at a time; all lanes at once made value and gradient at
# ``rho = 3.7`` on the ImageNet tree 15 times faster.

_BELOW_ONE = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
_ONE = 0x3FF0000000000000
_FRACTION = 0x000FFFFFFFFFFFFF
_SHIFT = 1.5 * 2.0**52  # adding it leaves an integer in the low bits
_SHIFT_BITS = 0x4338000000000000
_LN2 = Fraction(0x58B90BFBE8E7BCD5E4F1D9CC01F97B57, 1 << 127)
_LOG2_E = float(1 / _LN2)
_LOG2_E_REST = float(1 / _LN2 - Fraction(_LOG2_E))
LOWEST = -708.0  # 2^-1022, the smallest normal number, is e^-708.4


def _product(a, b):
    result = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return result


def _economised(series, n_terms, low, high):
    """Return the series with fewer terms: subtract multiples of Chebyshev polynomials.

    They have the smallest maximum on [low, high] of all polynomials with their leading term; the
    error is about 2^-58.
    """
    unit = [Fraction(-low - high, high - low), Fraction(2, high - low)]  # [low, high] to [-1, 1]
    chebyshev = [[Fraction(1)], unit]
    while len(chebyshev) < len(series):
        twice = _product([Fraction(2)], _product(unit, chebyshev[-1]))
        before = [*chebyshev[-2], 0, 0]
        chebyshev.append([a - b for a, b in zip(twice, before, strict=True)])
    while len(series) > n_terms:
        last = chebyshev[len(series) - 1]
        series = [a - b * series[-1] / last[-1] for a, b in zip(series, last, strict=True)][:-1]
    return [float(a) for a in series]


def _log2(n_terms):
    series = [2 / (_LN2 * k) for k in range(1, 27, 2)]
    return _economised(series, n_terms, Fraction(0), Fraction(295, 10000))


def _exp2(n_terms):
    series = [_LN2**k / math.factorial(k) for k in range(17)]
    return _economised(series, n_terms, Fraction(-1, 2), Fraction(1, 2))


# Series in (m - 1)^2 / (m + 1)^2 < 0.0295, and in |r| <= 1/2. Truncated Taylor series of the same
# accuracy have 11 and 14 terms, with which a power took 7 % longer.
_LOG2, _EXP2 = _log2(8), _exp2(12)
_LOG2_SINGLE, _EXP2_SINGLE = _log2(6), _exp2(10)
_EXP2_SINGLE[0] = 1.0  # e ** 0


class _Emitter:
    """Emit operations on vectors of float64 of one length."""

    def __init__(self, builder, floats) -> None:
        self.builder, self.floats = builder, floats
        self.integers = ir.VectorType(ir.IntType(64), floats.count)

    def real(self, x):
        return ir.Constant(self.floats, [x] * self.floats.count)

    def integer(self, x):
        return ir.Constant(self.integers, [x] * self.floats.count)

    def bits(self, x):
        return self.builder.bitcast(x, self.integers)

    def number(self, bits):
        return self.builder.bitcast(bits, self.floats)

    def call(self, name, *args):
        signature = ir.FunctionType(self.floats, [self.floats] * len(args))
        name = f"llvm.{name}.v{self.floats.count}f64"
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, args)

    def series(self, x, coefficients):
        return self.call("fma", self._halves(x, coefficients[1:]), x, self.real(coefficients[0]))

    def _halves(self, x, coefficients):
        """Sum even and odd terms separately: short dependency chains run in parallel."""
        if len(coefficients) == 1:
            return self.real(coefficients[0])
        square = self.builder.fmul(x, x)
        even, odd = (
            self._halves(square, coefficients[::2]),
            self._halves(square, coefficients[1::2]),
        )
        return self.call("fma", odd, x, even)

    def horner(self, x, coefficients):
        *others, total = map(self.real, coefficients)
        for a in reversed(others):
            total = self.call("fma", total, x, a)
        return total

    def clamp(self, x, low, high):
        return self.at_least(
            self.builder.select(
                self.builder.fcmp_ordered("<", x, self.real(high)), x, self.real(high)
            ),
            low,
        )

    def at_least(self, x, low):
        return self.builder.select(
            self.builder.fcmp_ordered(">", x, self.real(low)), x, self.real(low)
        )

    def exp2(self, r, shifted, coefficients):
        """Return ``2 ** (n + r)`` for the integer ``n = shifted - _SHIFT``; it must be normal."""
        square = self.builder.fmul(r, r)
        even, odd = (self.horner(square, coefficients[i::2]) for i in range(2))
        bits = self.bits(self.call("fma", odd, r, even))
        return self.number(
            self.builder.add(bits, self.builder.shl(self.bits(shifted), self.integer(52)))
        )

    def power_of_two(self, k):
        biased = self.builder.add(k, self.integer(1023))
        return self.number(self.builder.shl(biased, self.integer(52)))


def power(builder, a, y, single):
    """Emit ``a ** y``, ``a >= 0``, for two vectors of float64.

    ``a = 2^e m`` with m between the roots of 1/2 and 2; ``log2 m`` is an odd series in
    ``(m - 1) / (m + 1)``; ``y (e + log2 m)`` is split into an integer n and a remainder r, with the
    product ``y e`` kept in two parts; ``2^r`` is its Taylor series. The relative error is at most
    about ``(1 + |y| / 2) 2^-52``. Below the smallest normal number, `a` counts as 0.

    If `single`, for results that are rounded to float32, it is about ``(1 + |y| / 4) 2^-43``, and
    results below 2^-1021 are 0: value and gradient at ``rho = 3.7`` take 0.75 of the time.
    """
    v = _Emitter(builder, a.type)
    bits = builder.add(v.bits(a), v.integer(_ONE - _BELOW_ONE))
    e = builder.sub(builder.lshr(bits, v.integer(52)), v.integer(1023))
    e = v.number(builder.add(e, v.integer(_SHIFT_BITS)))
    e = builder.fsub(e, v.real(_SHIFT))
    m = v.number(builder.add(builder.and_(bits, v.integer(_FRACTION)), v.integer(_BELOW_ONE)))
    s = builder.fdiv(builder.fsub(m, v.real(1.0)), builder.fadd(m, v.real(1.0)))
    square = builder.fmul(s, s)
    too_small = builder.fcmp_ordered("<", a, v.real(2.0**-1022))
    if single:
        t = builder.fmul(y, v.call("fma", s, v.series(square, _LOG2_SINGLE), e))
        within = v.clamp(t, -1021.0, 1024.0)
        shifted = builder.fadd(within, v.real(_SHIFT))
        r = builder.fsub(within, builder.fsub(shifted, v.real(_SHIFT)))
        result = v.exp2(r, shifted, _EXP2_SINGLE)
        result = builder.select(builder.fcmp_ordered("<", within, t), v.real(math.inf), result)
        too_small = builder.or_(too_small, builder.fcmp_ordered(">", within, t))
    else:
        log2_m = builder.fmul(s, v.series(square, _LOG2))
        y = v.clamp(y, -1e18, 1e18)  # y e must not overflow
        high = builder.fmul(y, e)
        low = builder.fadd(v.call("fma", y, e, builder.fneg(high)), builder.fmul(y, log2_m))
        n = v.clamp(v.call("rint", builder.fadd(high, low)), -2000.0, 2000.0)
        r = v.clamp(builder.fadd(builder.fsub(high, n), low), -1.0, 1.0)
        k = builder.sub(v.bits(builder.fadd(n, v.real(_SHIFT))), v.integer(_SHIFT_BITS))
        # 2^n itself may be out of range. (Shifts of unsigned numbers: AVX2 has no others.)
        half = builder.lshr(builder.add(k, v.integer(4096)), v.integer(1))
        half = builder.sub(half, v.integer(2048))
        result = builder.fmul(v.series(r, _EXP2), v.power_of_two(half))
        result = builder.fmul(result, v.power_of_two(builder.sub(k, half)))
    result = builder.select(too_small, v.real(0.0), result)
    return v.call("fma", v.real(0.0), a, result)  # NaN and inf give NaN


def exponential(builder, x, single):
    """Emit ``e ** x``, ``x <= 0``, for a vector of float64; below `LOWEST` it is 0.

    Like `power` from ``n + r = x log2 e`` on, with a logarithm of two parts. The relative error is
    at most about 2^-52, or 2^-44 if `single`: two more terms and the second part of the logarithm
    made a loss 6 % slower.
    """
    v = _Emitter(builder, x.type)
    y = v.at_least(x, LOWEST)
    shifted = v.call("fma", y, v.real(_LOG2_E), v.real(_SHIFT))
    n = builder.fsub(shifted, v.real(_SHIFT))
    r = v.call("fma", y, v.real(_LOG2_E), builder.fneg(n))
    if not single:
        r = v.call("fma", y, v.real(_LOG2_E_REST), r)
    result = v.exp2(r, shifted, _EXP2_SINGLE if single else _EXP2)
    return builder.select(builder.fcmp_ordered("<", x, y), v.real(0.0), result)


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
