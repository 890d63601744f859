"""Read and write the user's rows: as lanes, in blocks, and as cache lines.

In memory the bins of a row are contiguous, as float32 or float64; the sweeps need the same bin of
all rows of a tile in one vector of float64. So a block of `WIDTH` bins of as many rows as there are
lanes is loaded, converted, subtracted and transposed in registers, and results are rounded once,
when they are written. (A scalar transpose takes as long as the sweeps.) Rows are given as a table
of their addresses, so that strides, broadcasting and the end of a batch cost nothing in the loops.
Rows whose bins are apart in memory, as where the class axis is not the last one, are first copied,
tile by tile. `like` is any number of the type of the rows.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastemd.kernels.cpu.simd import F64, I32, I64, LanesType, pointer
from fastemd.kernels.jitable import jitable

WIDTH = 4  # of a block; any vector unit transposes 4 x 4 float64 well; unrolled in the sweeps


def _shuffle(builder, a, b, lanes):
    index = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(a, b, index)


def _transposed_square(builder, vectors):
    """Transpose n vectors of n numbers in log2(n) stages of pairwise exchanges."""
    n = len(vectors)
    step = n // 2
    while step:
        low = [j if not j & step else n + j - step for j in range(n)]
        high = [j + step if not j & step else n + j for j in range(n)]
        vectors = list(vectors)
        for i in range(n):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i] = _shuffle(builder, a, b, low)
                vectors[i + step] = _shuffle(builder, a, b, high)
        step //= 2
    return vectors


def _to_columns(builder, rows):
    """Return a vector per column, with a lane per row; one row, one column or whole squares."""
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
    """Return a vector per row, from one per column."""
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
    """Return the bytes of a float32 or float64 of LLVM."""
    return 4 if isinstance(element, ir.FloatType) else 8


def _place(builder, rows, row, column, element):
    """Return the pointer to `column` of a row; `rows` is the table of the rows' addresses."""
    start = builder.load(pointer(builder, rows, I64, I64(row)))
    return pointer(builder, start, element, column)


def _load(builder, place, element, count):
    """Load `count` numbers as float64."""
    kind = ir.VectorType(element, count)
    numbers = builder.load(builder.bitcast(place, kind.as_pointer()), align=size_of(element))
    return numbers if element == F64 else builder.fpext(numbers, ir.VectorType(F64, count))


def _store(builder, numbers, place, element):
    kind = ir.VectorType(element, numbers.type.count)
    if element != F64:
        numbers = builder.fptrunc(numbers, kind)
    builder.store(numbers, builder.bitcast(place, kind.as_pointer()), align=size_of(element))


def _difference(builder, rows, subtracted, row, column, element, count):
    a = _load(builder, _place(builder, rows, row, column, element), element, count)
    if subtracted is None:
        return a
    return builder.fsub(
        a, _load(builder, _place(builder, subtracted, row, column, element), element, count)
    )


def _reader(width, pack):
    @intrinsic
    def read(typingctx, rows, subtracted, column, like):
        lanes, by_lane = rows.lanes, isinstance(subtracted, LanesType)

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
        return result(rows, subtracted, types.intp, like), codegen

    return read


# Read WIDTH columns, or one, of `rows`, minus those of other rows or one number per lane.
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
    """Write lanes that hold neighbouring columns of the one row at address `row`."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[3])
        _store(builder, args[0], pointer(builder, args[1], element, args[2]), element)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, like), codegen


# ------------------------------------------------------------------------------------- cache lines
#
# Memory 64 bytes at a time, ignoring the boundaries of rows. `line` values are 64 bytes in a
# register that hold numbers of the type of `like`.

LINE = 64  # bytes
_line = LanesType(8)
_BYTES = ir.IntType(8).as_pointer()


def _numbers(element):
    return ir.VectorType(element, LINE // size_of(element))


@intrinsic
def number(typingctx, row, column, like):
    """Return one number of the row at address `row`."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        value = builder.load(pointer(builder, args[0], element, args[1]))
        return context.cast(builder, value, sig.args[2], types.float64)

    return types.float64(types.intp, types.intp, like), codegen


@intrinsic
def write_number(typingctx, value, row, column, like):
    """Write one number of the row at address `row`, rounded to its type."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[3])
        value = context.cast(builder, args[0], types.float64, sig.args[3])
        builder.store(value, pointer(builder, args[1], element, args[2]))
        return context.get_dummy_value()

    return types.void(types.float64, types.intp, types.intp, like), codegen


@intrinsic
def numbers_per_line(typingctx, like):
    """Return how many numbers a line holds."""

    def codegen(context, builder, sig, args):
        return I64(_numbers(context.get_data_type(sig.args[0])).count)

    return types.intp(like), codegen


@intrinsic
def line_at(typingctx, row, column, like):
    """Return 64 bytes of the row at address `row`, from `column` on."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        place = pointer(builder, args[0], element, args[1])
        return builder.load(
            builder.bitcast(place, _line.vector.as_pointer()), align=size_of(element)
        )

    return _line(types.intp, types.intp, like), codegen


@intrinsic
def add_lines(typingctx, a, b, like):
    """Return the sum of two lines, in the type of their numbers."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[2]))
        sums = builder.fadd(*(builder.bitcast(line, kind) for line in args[:2]))
        return builder.bitcast(sums, _line.vector)

    return _line(_line, _line, like), codegen


@intrinsic
def or_lines(typingctx, a, b):
    """Return the bits that are set in either line."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(I64, 8)
        return builder.bitcast(builder.or_(*(builder.bitcast(a, kind) for a in args)), _line.vector)

    return _line(_line, _line), codegen


@intrinsic
def magnitudes(typingctx, line, like):
    """Return the absolute values of the numbers of a line."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[1]))
        name = f"llvm.fabs.v{kind.count}f{8 * size_of(kind.element)}"
        fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.bitcast(builder.call(fabs, [builder.bitcast(args[0], kind)]), _line.vector)

    return _line(_line, like), codegen


@intrinsic
def empty_line(typingctx):
    """Return a line of zeros."""
    return _line(), lambda context, builder, sig, args: ir.Constant(_line.vector, None)


def _largest(builder, a, b):
    """Return the maximum of two vectors; NaN where either has one."""
    bits = 8 * size_of(a.type.element)
    name, kind = f"llvm.maximum.v{a.type.count}f{bits}", ir.FunctionType(a.type, [a.type] * 2)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b])


@intrinsic
def max_lines(typingctx, a, b, like):
    """Return the maximum of two lines; NaN where either has one."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[2]))
        largest = _largest(builder, *(builder.bitcast(line, kind) for line in args[:2]))
        return builder.bitcast(largest, _line.vector)

    return _line(_line, _line, like), codegen


def _folder(fold):
    @intrinsic
    def of_line(typingctx, line, like):
        def codegen(context, builder, sig, args):
            kind = _numbers(context.get_data_type(sig.args[1]))
            numbers = builder.bitcast(args[0], kind)
            if kind.element != F64:
                numbers = builder.fpext(numbers, ir.VectorType(F64, kind.count))
            step = kind.count // 2
            while step:
                low, high = (
                    builder.shuffle_vector(
                        numbers,
                        numbers,
                        ir.Constant(ir.VectorType(I32, step), list(range(start, start + step))),
                    )
                    for start in (0, step)
                )
                numbers, step = fold(builder, low, high), step // 2
            return builder.extract_element(numbers, I32(0))

        return types.float64(_line, like), codegen

    return of_line


# The sum of the numbers of a line, in float64, and their maximum.
sum_of_line = _folder(lambda builder, a, b: builder.fadd(a, b))
max_of_line = _folder(_largest)


@intrinsic
def has_sign(typingctx, line, like):
    """Return whether a number of the line is negative or -0."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[1]))
        bits = ir.VectorType(ir.IntType(8 * size_of(kind.element)), kind.count)
        negative = builder.icmp_signed("<", builder.bitcast(args[0], bits), ir.Constant(bits, None))
        flags = builder.bitcast(negative, ir.IntType(kind.count))
        return builder.icmp_unsigned("!=", flags, ir.Constant(flags.type, 0))

    return types.boolean(_line, like), codegen


# ------------------------------------------------------------------------------ prefetch and copy


@intrinsic
def fetch(typingctx, address):
    """Prefetch the line at an address; any address is allowed."""

    def codegen(context, builder, sig, args):
        signature = ir.FunctionType(ir.VoidType(), [_BYTES, I32, I32, I32])
        prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
        builder.call(prefetch, [builder.inttoptr(args[0], _BYTES), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def lines_per_block(typingctx, rows, like):
    """Return how many lines a block of rows fills."""
    count = rows.lanes.count

    def codegen(context, builder, sig, args):
        return I64(count * WIDTH * size_of(context.get_data_type(sig.args[1])) // LINE)

    return types.intp(rows, like), codegen


def _line_copier(align, nontemporal):
    @intrinsic
    def copy_line(typingctx, source, target):
        def codegen(context, builder, sig, args):
            kind = ir.VectorType(I64, LINE // 8)
            line = builder.load(pointer(builder, args[0], kind), align=4)
            write = builder.store(line, pointer(builder, args[1], kind), align=align)
            if nontemporal:
                write.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return copy_line


copy_line = _line_copier(4, nontemporal=False)
stream_line = _line_copier(LINE, nontemporal=True)  # to an aligned address, bypassing the caches


@intrinsic
def fence(typingctx):
    """Make streamed lines visible to all threads."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def transpose_square(typingctx, source, source_stride, target, target_stride, place, like):
    """Copy a square of numbers, as many on a side as `place` has lanes, and transpose it.

    `source` and `target` are the addresses of the first number; the strides are from a row of the
    square to the next one.
    """

    def codegen(context, builder, sig, args):
        source, source_stride, target, target_stride = args[:4]
        element = context.get_data_type(sig.args[5])
        side = sig.args[4].lanes.count
        kind, rows = ir.VectorType(element, side), []
        for _ in range(side):
            rows.append(builder.load(pointer(builder, source, kind), align=size_of(element)))
            source = builder.add(source, source_stride)
        for column in _transposed_square(builder, rows):
            builder.store(column, pointer(builder, target, kind), align=size_of(element))
            target = builder.add(target, target_stride)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(integer, integer, integer, integer, place, like), codegen


@intrinsic
def copy_element(typingctx, source, target, like):
    """Copy one number of the type of `like` between two addresses."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        value = builder.load(pointer(builder, args[0], element), align=size_of(element))
        builder.store(value, pointer(builder, args[1], element), align=size_of(element))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, like), codegen


@intrinsic
def _copy_number(typingctx, source, target):
    def codegen(context, builder, sig, args):
        value = builder.load(pointer(builder, args[0], I32))
        builder.store(value, pointer(builder, args[1], I32))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@jitable
def copy(source, target, n_bytes):
    """Copy `n_bytes` bytes, a multiple of 4."""
    whole = n_bytes - n_bytes % LINE
    for i in range(0, whole, LINE):
        copy_line(source + i, target + i)
    for i in range(whole, n_bytes, 4):
        _copy_number(source + i, target + i)
