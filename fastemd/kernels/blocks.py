"""Blocks of the user's rows to lanes, and back.

Memory holds the bins of a row side by side, as float32 or float64; the sweeps want the rows of a
bin side by side, as float64. So a block of LANES rows and WIDTH bins is loaded, widened,
subtracted and transposed in registers, and rounded, once, on its way out. (A scalar transpose
costs as much as the sweeps.) Rows are known by a table of their addresses, so that any strides,
broadcasting and the end of a batch cost nothing in the loops. `like` is any number of the type
of the rows.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastemd.kernels.lanes import F64, I32, I64, LANES, VECTOR, lanes_type, pointer

WIDTH = 4  # a square of float64 that any vector unit transposes well; unrolled in kernels.cpu
_SQUARE = ir.VectorType(F64, WIDTH)
_BYTES = ir.IntType(8).as_pointer()


def _shuffle(builder, a, b, lanes):
    index = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(a, b, index)


def _transposed(builder, vectors):
    """WIDTH vectors of WIDTH numbers: log2(WIDTH) stages of pairwise exchanges."""
    step = WIDTH // 2
    while step:
        low = [j if not j & step else WIDTH + j - step for j in range(WIDTH)]
        high = [j + step if not j & step else WIDTH + j for j in range(WIDTH)]
        vectors = list(vectors)
        for i in range(WIDTH):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i] = _shuffle(builder, a, b, low)
                vectors[i + step] = _shuffle(builder, a, b, high)
        step //= 2
    return vectors


def _size(element) -> int:
    return 4 if isinstance(element, ir.FloatType) else 8


def _place(builder, rows, row, column, element):
    """Where `column` of a row is; `rows` is the address of the table of the rows' addresses."""
    start = builder.load(pointer(builder, rows, I64, I64(row)))
    return pointer(builder, start, element, column)


def _load(builder, place, element, count):
    """`count` numbers, as float64."""
    kind = ir.VectorType(element, count)
    numbers = builder.load(builder.bitcast(place, kind.as_pointer()), align=_size(element))
    return numbers if element == F64 else builder.fpext(numbers, ir.VectorType(F64, count))


def _store(builder, numbers, place, element):
    kind = ir.VectorType(element, numbers.type.count)
    if element != F64:
        numbers = builder.fptrunc(numbers, kind)
    builder.store(numbers, builder.bitcast(place, kind.as_pointer()), align=_size(element))


@intrinsic
def read_block(typingctx, p_rows, q_rows, column, like):
    """The lanes of ``p[row, column] - q[row, column]`` for WIDTH columns."""

    def codegen(context, builder, sig, args):
        p_rows, q_rows, column, _ = args
        element = context.get_data_type(sig.args[3])
        squares = []
        for first in range(0, LANES, WIDTH):
            rows = []
            for row in range(first, first + WIDTH):
                p = _load(builder, _place(builder, p_rows, row, column, element), element, WIDTH)
                q = _load(builder, _place(builder, q_rows, row, column, element), element, WIDTH)
                rows.append(builder.fsub(p, q))
            squares.append(_transposed(builder, rows))
        joined = list(range(LANES))
        columns = [_shuffle(builder, a, b, joined) for a, b in zip(*squares, strict=True)]
        return cgutils.pack_array(builder, columns)

    lanes = types.UniTuple(lanes_type, WIDTH)
    return lanes(types.intp, types.intp, types.intp, like), codegen


@intrinsic
def read_column(typingctx, p_rows, q_rows, column, like):
    """The lanes of ``p[row, column] - q[row, column]``."""

    def codegen(context, builder, sig, args):
        p_rows, q_rows, column, _ = args
        element = context.get_data_type(sig.args[3])
        lanes = ir.Constant(VECTOR, ir.Undefined)
        for row in range(LANES):
            p = _load(builder, _place(builder, p_rows, row, column, element), element, 1)
            q = _load(builder, _place(builder, q_rows, row, column, element), element, 1)
            number = builder.extract_element(builder.fsub(p, q), I32(0))
            lanes = builder.insert_element(lanes, number, I32(row))
        return lanes

    return lanes_type(types.intp, types.intp, types.intp, like), codegen


@intrinsic
def write_block(typingctx, a, b, c, d, rows, column, like):
    """Write the lanes of WIDTH columns to the rows, rounded to their type."""

    def codegen(context, builder, sig, args):
        *columns, rows, column, _ = args
        element = context.get_data_type(sig.args[-1])
        for first in range(0, LANES, WIDTH):
            half = list(range(first, first + WIDTH))
            square = _transposed(builder, [_shuffle(builder, x, x, half) for x in columns])
            for row, numbers in zip(half, square, strict=True):
                _store(builder, numbers, _place(builder, rows, row, column, element), element)
        return context.get_dummy_value()

    lanes = (lanes_type,) * WIDTH
    return types.void(*lanes, types.intp, types.intp, like), codegen


@intrinsic
def write_column(typingctx, a, rows, column, like):
    """Write the lanes of one column to the rows, rounded to their type."""

    def codegen(context, builder, sig, args):
        lanes, rows, column, _ = args
        element = context.get_data_type(sig.args[-1])
        for row in range(LANES):
            number = _shuffle(builder, lanes, lanes, [row])
            _store(builder, number, _place(builder, rows, row, column, element), element)
        return context.get_dummy_value()

    return types.void(lanes_type, types.intp, types.intp, like), codegen


@intrinsic
def prefetch_block(typingctx, rows, column, like):
    """Fetch what the rows hold around `column`: some rows now, the others with the next blocks."""

    def codegen(context, builder, sig, args):
        rows, column, _ = args
        element = context.get_data_type(sig.args[2])
        per_block = LANES * WIDTH * _size(element) // 64
        turn = builder.urem(builder.udiv(column, I64(WIDTH)), I64(LANES // per_block))
        first = builder.mul(turn, I64(per_block))
        signature = ir.FunctionType(ir.VoidType(), [_BYTES, I32, I32, I32])
        fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
        for i in range(per_block):
            start = builder.load(pointer(builder, rows, I64, builder.add(first, I64(i))))
            place = builder.bitcast(pointer(builder, start, element, column), _BYTES)
            builder.call(fetch, [place, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, like), codegen


# ------------------------------------------------------------------------------- one row at a time
#
# To look whether a row is good, its numbers are taken as they lie in memory, a cache line at once.


@intrinsic
def number(typingctx, row, column, like):
    """One number of the row at address `row`."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        value = builder.load(pointer(builder, args[0], element, args[1]))
        return context.cast(builder, value, sig.args[2], types.float64)

    return types.float64(types.intp, types.intp, like), codegen


def _line_type(element):
    return ir.VectorType(element, 64 // _size(element))


@intrinsic
def line_at(typingctx, row, column, like):
    """The 64 bytes of the row at address `row` from `column` on, as they are."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        place = builder.bitcast(pointer(builder, args[0], element, args[1]), VECTOR.as_pointer())
        return builder.load(place, align=_size(element))

    return lanes_type(types.intp, types.intp, like), codegen


@intrinsic
def add_lines(typingctx, a, b, like):
    """The sums of two lines, in the type of their numbers."""

    def codegen(context, builder, sig, args):
        kind = _line_type(context.get_data_type(sig.args[2]))
        numbers = [builder.bitcast(line, kind) for line in args[:2]]
        return builder.bitcast(builder.fadd(*numbers), VECTOR)

    return lanes_type(lanes_type, lanes_type, like), codegen


@intrinsic
def or_lines(typingctx, a, b):
    """The bits that are set in either line."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(I64, LANES)
        return builder.bitcast(builder.or_(*[builder.bitcast(a, kind) for a in args]), VECTOR)

    return lanes_type(lanes_type, lanes_type), codegen


@intrinsic
def sum_of_line(typingctx, line, like):
    """The sum of a line's numbers."""

    def codegen(context, builder, sig, args):
        kind = _line_type(context.get_data_type(sig.args[1]))
        numbers = builder.bitcast(args[0], kind)
        if kind.element != F64:
            numbers = builder.fpext(numbers, ir.VectorType(F64, kind.count))
        total = F64(0.0)
        for i in range(kind.count):
            total = builder.fadd(total, builder.extract_element(numbers, I32(i)))
        return total

    return types.float64(lanes_type, like), codegen


@intrinsic
def has_sign(typingctx, line, like):
    """Whether a number of the line is negative or -0."""

    def codegen(context, builder, sig, args):
        kind = _line_type(context.get_data_type(sig.args[1]))
        bits = ir.VectorType(ir.IntType(8 * _size(kind.element)), kind.count)
        negative = builder.icmp_signed("<", builder.bitcast(args[0], bits), ir.Constant(bits, None))
        flags = builder.bitcast(negative, ir.IntType(kind.count))
        return builder.icmp_unsigned("!=", flags, ir.Constant(flags.type, 0))

    return types.boolean(lanes_type, like), codegen


@intrinsic
def numbers_per_line(typingctx, like):
    """How many numbers fit into 64 bytes."""

    def codegen(context, builder, sig, args):
        return I64(_line_type(context.get_data_type(sig.args[0])).count)

    return types.intp(like), codegen
