"""Blocks of the user's rows to lanes, and back.

Memory holds the bins of a row side by side, as float32 or float64; the sweeps want the rows of a
bin side by side, as float64. So a block of as many rows as there are lanes and `WIDTH` bins is
loaded, widened, subtracted and transposed in registers, and rounded, once, on its way out. (A
scalar transpose costs as much as the sweeps.) Rows are known by a table of their addresses, so that
any strides, broadcasting and the end of a batch cost nothing in the loops. `like` is any number of
the type of the rows.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastemd.kernels.lanes import F64, I32, I64, LanesType, pointer

WIDTH = 4  # a square of float64 that any vector unit transposes well; unrolled in kernels.cpu


def _shuffle(builder, a, b, lanes):
    index = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(a, b, index)


def _transposed_square(builder, vectors):
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


def _to_columns(builder, rows):
    """A vector with a lane for every row, for every column; rows are few or come in squares."""
    width = rows[0].type.count
    if len(rows) == 1:
        return [_shuffle(builder, rows[0], rows[0], [k]) for k in range(width)]
    if width == 1:
        lanes = ir.Constant(ir.VectorType(F64, len(rows)), ir.Undefined)
        for i, row in enumerate(rows):
            number = builder.extract_element(row, I32(0))
            lanes = builder.insert_element(lanes, number, I32(i))
        return [lanes]
    squares = [
        _transposed_square(builder, rows[first : first + WIDTH])
        for first in range(0, len(rows), WIDTH)
    ]
    columns = squares[0]
    for square in squares[1:]:
        joined = list(range(columns[0].type.count + WIDTH))
        columns = [_shuffle(builder, a, b, joined) for a, b in zip(columns, square, strict=True)]
    return columns


def _to_rows(builder, columns):
    """The reverse."""
    count = columns[0].type.count
    if count == 1:
        halves = [_shuffle(builder, *columns[i : i + 2], [0, 1]) for i in range(0, WIDTH, 2)]
        return [_shuffle(builder, *halves, list(range(WIDTH)))]
    rows = []
    for first in range(0, count, WIDTH):
        part = list(range(first, first + WIDTH))
        rows += _transposed_square(builder, [_shuffle(builder, c, c, part) for c in columns])
    return rows


def size_of(element) -> int:
    """Bytes of a float32 or float64 of LLVM."""
    return 4 if isinstance(element, ir.FloatType) else 8


def _place(builder, rows, row, column, element):
    """Where `column` of a row is; `rows` is the address of the table of the rows' addresses."""
    start = builder.load(pointer(builder, rows, I64, I64(row)))
    return pointer(builder, start, element, column)


def _load(builder, place, element, count):
    """`count` numbers, as float64."""
    kind = ir.VectorType(element, count)
    numbers = builder.load(builder.bitcast(place, kind.as_pointer()), align=size_of(element))
    return numbers if element == F64 else builder.fpext(numbers, ir.VectorType(F64, count))


def _store(builder, numbers, place, element):
    kind = ir.VectorType(element, numbers.type.count)
    if element != F64:
        numbers = builder.fptrunc(numbers, kind)
    builder.store(numbers, builder.bitcast(place, kind.as_pointer()), align=size_of(element))


def _difference(builder, rows, less, row, column, element, count):
    a = _load(builder, _place(builder, rows, row, column, element), element, count)
    if less is None:
        return a
    return builder.fsub(
        a, _load(builder, _place(builder, less, row, column, element), element, count)
    )


def _reader(width, pack):
    @intrinsic
    def read(typingctx, rows, less, column, like):
        lanes, by_lane = rows.lanes, isinstance(less, LanesType)

        def codegen(context, builder, sig, args):
            element = context.get_data_type(sig.args[3])
            others = None if by_lane else args[1]
            numbers = [
                _difference(builder, args[0], others, row, args[2], element, width)
                for row in range(lanes.count)
            ]
            columns = _to_columns(builder, numbers)
            if by_lane:
                columns = [builder.fsub(column, args[1]) for column in columns]
            return cgutils.pack_array(builder, columns) if pack else columns[0]

        result = types.UniTuple(lanes, width) if pack else lanes
        return result(rows, less, types.intp, like), codegen

    return read


# The lanes of WIDTH columns, or of one, of `rows`, less those of other rows or a number per lane.
read_block = _reader(WIDTH, pack=True)
read_column = _reader(1, pack=False)


@intrinsic
def write_block(typingctx, a, b, c, d, rows, column, like):
    """Write the lanes of WIDTH columns to the rows, rounded to their type."""

    def codegen(context, builder, sig, args):
        *columns, rows, column, _ = args
        element = context.get_data_type(sig.args[-1])
        for row, numbers in enumerate(_to_rows(builder, columns)):
            _store(builder, numbers, _place(builder, rows, row, column, element), element)
        return context.get_dummy_value()

    return types.void(a, b, c, d, rows, types.intp, like), codegen


@intrinsic
def write_column(typingctx, a, rows, column, like):
    """Write the lanes of one column to the rows, rounded to their type."""

    def codegen(context, builder, sig, args):
        lanes, rows, column, _ = args
        element = context.get_data_type(sig.args[-1])
        for row in range(lanes.type.count):
            number = _shuffle(builder, lanes, lanes, [row])
            _store(builder, number, _place(builder, rows, row, column, element), element)
        return context.get_dummy_value()

    return types.void(a, rows, types.intp, like), codegen


@intrinsic
def write_along(typingctx, a, row, column, like):
    """Write lanes that are columns, side by side in the one row at address `row`."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[3])
        _store(builder, args[0], pointer(builder, args[1], element, args[2]), element)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, like), codegen
