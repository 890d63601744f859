"""Vector registers for Numba: ``LANES`` rows of a batch side by side.

LLVM does not vectorise an inner loop over the rows of a tile when it cannot rule out that the
arrays overlap, so the kernels name the vectors themselves. A ``Lanes`` value is ``LANES`` float64
numbers that behave like one: it can be added, multiplied, compared (to 1.0 or 0.0) and raised to a
power, hence the scalar functions of :mod:`fastemd.kernels.edges` run on it as they stand.

Scratch holds float64. The user's arrays hold float32 or float64: blocks of LANES rows and columns
are widened, transposed in registers and stored as lanes, and the other way round they are rounded,
once. (A scalar transpose costs as much as the sweeps.) Rows are known by their addresses, so that
any strides, broadcasting and the end of a batch cost nothing in the loops.
"""

import operator
from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numba.np import arrayobj

from fastemd.kernels.power import power

LANES = 8
_F64 = ir.DoubleType()
_I32 = ir.IntType(32)


class LanesType(types.Type):
    """Numba's type of ``LANES`` float64 numbers in vector registers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes_type = LanesType()
_VECTOR = ir.VectorType(_F64, LANES)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _broadcast(builder, scalar):
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zeros)


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
    return lambda builder, a, b: builder.uitofp(builder.fcmp_ordered(symbol, a, b), _VECTOR)


def _llvm(name):
    def emit(builder, *args):
        signature = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
        function = cgutils.get_or_insert_function(builder.module, signature, f"{name}.v{LANES}f64")
        return builder.call(function, args)

    return emit


_binary(operator.add, lambda builder, a, b: builder.fadd(a, b))
_binary(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_binary(operator.mul, lambda builder, a, b: builder.fmul(a, b))
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


def _element_pointer(context, builder, array_type, array, index):
    data = arrayobj.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _vector_at(builder, pointer, element):
    return builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())


def _align(element) -> int:
    return 4 if isinstance(element, ir.FloatType) else 8


def _lanes_at(context, builder, scratch_type, scratch, index):
    start = builder.mul(index, ir.Constant(index.type, LANES))
    pointer = _element_pointer(context, builder, scratch_type, scratch, start)
    return _vector_at(builder, pointer, _F64)


@intrinsic
def load(typingctx, scratch, index):
    """The lanes at ``scratch[index * LANES:(index + 1) * LANES]``, a contiguous float64 array."""

    def codegen(context, builder, sig, args):
        return builder.load(_lanes_at(context, builder, sig.args[0], *args), align=8)

    return lanes_type(scratch, types.intp), codegen


@intrinsic
def store(typingctx, scratch, index, value):
    """Write the lanes `value` where `load` finds them."""

    def codegen(context, builder, sig, args):
        pointer = _lanes_at(context, builder, sig.args[0], *args[:2])
        builder.store(args[2], pointer, align=8)
        return context.get_dummy_value()

    return types.void(scratch, types.intp, value), codegen


@intrinsic
def address(typingctx, array, group, row):
    """The address of ``array[group, row, 0]`` of a 3-D array of any strides."""

    def codegen(context, builder, sig, args):
        struct = arrayobj.make_array(sig.args[0])(context, builder, args[0])
        strides = cgutils.unpack_tuple(builder, struct.strides, 3)
        base = builder.ptrtoint(struct.data, args[1].type)
        offset = builder.add(builder.mul(args[1], strides[0]), builder.mul(args[2], strides[1]))
        return builder.add(base, offset)

    return types.intp(array, types.intp, types.intp), codegen


def _row_element(context, builder, rows_type, rows, row, column, element):
    slot = _element_pointer(context, builder, rows_type, rows, row)
    start = builder.inttoptr(builder.load(slot), element.as_pointer())
    return builder.gep(start, [column])


def _widened(builder, pointer, element):
    value = builder.load(_vector_at(builder, pointer, element), align=_align(element))
    return value if element == _F64 else builder.fpext(value, _VECTOR)


@intrinsic
def peek(typingctx, rows, row, column, array):
    """One number: column `column` of the row of `array` at address ``rows[row]``."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[3].dtype)
        number = builder.load(_row_element(context, builder, sig.args[0], *args[:3], element))
        return context.cast(builder, number, sig.args[3].dtype, types.float64)

    return types.float64(rows, types.intp, types.intp, array), codegen


@intrinsic
def peek_lanes(typingctx, rows, row, column, array):
    """LANES numbers of one row, from column `column` on."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[3].dtype)
        pointer = _row_element(context, builder, sig.args[0], *args[:3], element)
        return _widened(builder, pointer, element)

    return lanes_type(rows, types.intp, types.intp, array), codegen


@intrinsic
def poke(typingctx, rows, row, column, array, number):
    """Write one number where `peek` finds it."""

    def codegen(context, builder, sig, args):
        dtype = sig.args[3].dtype
        element = context.get_data_type(dtype)
        pointer = _row_element(context, builder, sig.args[0], *args[:3], element)
        builder.store(context.cast(builder, args[4], types.float64, dtype), pointer)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, array, types.float64), codegen


def _block_rows(context, builder, rows_type, rows, column, element):
    numbers = [ir.Constant(column.type, i) for i in range(LANES)]
    return [_row_element(context, builder, rows_type, rows, i, column, element) for i in numbers]


def _block_lanes(context, builder, scratch_type, scratch, column):
    columns = [builder.add(column, ir.Constant(column.type, j)) for j in range(LANES)]
    return [_lanes_at(context, builder, scratch_type, scratch, j) for j in columns]


def _transpose(builder, vectors):
    """Transpose LANES vectors in registers: log2(LANES) stages of pairwise exchanges."""
    step = LANES // 2
    while step:
        low = [j if not j & step else LANES + j - step for j in range(LANES)]
        high = [j + step if not j & step else LANES + j for j in range(LANES)]
        index = ir.VectorType(_I32, LANES)
        vectors = list(vectors)
        for i in range(LANES):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i] = builder.shuffle_vector(a, b, ir.Constant(index, low))
                vectors[i + step] = builder.shuffle_vector(a, b, ir.Constant(index, high))
        step //= 2
    return vectors


@intrinsic
def read_block(typingctx, p_rows, q_rows, column, array, scratch):
    """The lanes at ``scratch[column + j]`` = ``p[row, column + j] - q[row, column + j]``."""

    def codegen(context, builder, sig, args):
        p_rows, q_rows, column, _, scratch = args
        element = context.get_data_type(sig.args[3].dtype)
        p = _block_rows(context, builder, sig.args[0], p_rows, column, element)
        q = _block_rows(context, builder, sig.args[1], q_rows, column, element)
        vectors = [
            builder.fsub(_widened(builder, a, element), _widened(builder, b, element))
            for a, b in zip(p, q, strict=True)
        ]
        lanes = _block_lanes(context, builder, sig.args[4], scratch, column)
        for pointer, vector in zip(lanes, _transpose(builder, vectors), strict=True):
            builder.store(vector, pointer, align=8)
        return context.get_dummy_value()

    return types.void(p_rows, q_rows, types.intp, array, scratch), codegen


@intrinsic
def write_block(typingctx, scratch, column, rows, array):
    """``out[row, column + j]`` = the lanes at ``scratch[column + j]``, rounded to its type."""

    def codegen(context, builder, sig, args):
        scratch, column, rows, _ = args
        element = context.get_data_type(sig.args[3].dtype)
        lanes = _block_lanes(context, builder, sig.args[0], scratch, column)
        vectors = _transpose(builder, [builder.load(pointer, align=8) for pointer in lanes])
        out = _block_rows(context, builder, sig.args[2], rows, column, element)
        for pointer, vector in zip(out, vectors, strict=True):
            if element != _F64:
                vector = builder.fptrunc(vector, ir.VectorType(element, LANES))
            builder.store(vector, _vector_at(builder, pointer, element), align=_align(element))
        return context.get_dummy_value()

    return types.void(scratch, types.intp, rows, array), codegen
