"""Cache lines: memory as it lies, 64 bytes at once, whoever's rows they are.

`line` values are 64 bytes in a register that hold numbers of the type of `like`.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastemd.kernels.blocks import WIDTH, size_of
from fastemd.kernels.lanes import F64, I32, I64, LanesType, pointer

LINE = 64  # bytes
_line = LanesType(8)
_BYTES = ir.IntType(8).as_pointer()


def _numbers(element):
    return ir.VectorType(element, LINE // size_of(element))


@intrinsic
def number(typingctx, row, column, like):
    """One number of the row at address `row`."""

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
    """How many numbers fit into a line."""

    def codegen(context, builder, sig, args):
        return I64(_numbers(context.get_data_type(sig.args[0])).count)

    return types.intp(like), codegen


@intrinsic
def line_at(typingctx, row, column, like):
    """The 64 bytes of the row at address `row` from `column` on."""

    def codegen(context, builder, sig, args):
        element = context.get_data_type(sig.args[2])
        place = pointer(builder, args[0], element, args[1])
        return builder.load(
            builder.bitcast(place, _line.vector.as_pointer()), align=size_of(element)
        )

    return _line(types.intp, types.intp, like), codegen


@intrinsic
def add_lines(typingctx, a, b, like):
    """The sums of two lines, in the type of their numbers."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[2]))
        sums = builder.fadd(*(builder.bitcast(line, kind) for line in args[:2]))
        return builder.bitcast(sums, _line.vector)

    return _line(_line, _line, like), codegen


@intrinsic
def or_lines(typingctx, a, b):
    """The bits that are set in either line."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(I64, 8)
        return builder.bitcast(builder.or_(*(builder.bitcast(a, kind) for a in args)), _line.vector)

    return _line(_line, _line), codegen


@intrinsic
def empty_line(typingctx):
    """A line without a bit set."""
    return _line(), lambda context, builder, sig, args: ir.Constant(_line.vector, None)


def _largest(builder, a, b):
    """Of two vectors of numbers; NaN where there is one."""
    bits = 8 * size_of(a.type.element)
    name, kind = f"llvm.maximum.v{a.type.count}f{bits}", ir.FunctionType(a.type, [a.type] * 2)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b])


@intrinsic
def max_lines(typingctx, a, b, like):
    """The larger numbers of two lines, NaN where either has one."""

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


# The sum of a line's numbers, in float64, and the largest.
sum_of_line = _folder(lambda builder, a, b: builder.fadd(a, b))
max_of_line = _folder(_largest)


@intrinsic
def has_sign(typingctx, line, like):
    """Whether a number of the line is negative or -0."""

    def codegen(context, builder, sig, args):
        kind = _numbers(context.get_data_type(sig.args[1]))
        bits = ir.VectorType(ir.IntType(8 * size_of(kind.element)), kind.count)
        negative = builder.icmp_signed("<", builder.bitcast(args[0], bits), ir.Constant(bits, None))
        flags = builder.bitcast(negative, ir.IntType(kind.count))
        return builder.icmp_unsigned("!=", flags, ir.Constant(flags.type, 0))

    return types.boolean(_line, like), codegen


# --------------------------------------------------------------------------------- ahead of time


@intrinsic
def fetch(typingctx, address):
    """Ask for the line at an address; the answer may come later, and any address will do."""

    def codegen(context, builder, sig, args):
        signature = ir.FunctionType(ir.VoidType(), [_BYTES, I32, I32, I32])
        ask = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
        builder.call(ask, [builder.inttoptr(args[0], _BYTES), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def lines_per_block(typingctx, rows, like):
    """How many lines a block of `fastemd.kernels.blocks` fills."""
    count = rows.lanes.count

    def codegen(context, builder, sig, args):
        return I64(count * WIDTH * size_of(context.get_data_type(sig.args[1])) // LINE)

    return types.intp(rows, like), codegen


def _line_copier(align, past_the_caches):
    @intrinsic
    def copy_line(typingctx, source, target):
        def codegen(context, builder, sig, args):
            kind = ir.VectorType(I64, LINE // 8)
            line = builder.load(pointer(builder, args[0], kind), align=4)
            write = builder.store(line, pointer(builder, args[1], kind), align=align)
            if past_the_caches:
                write.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return copy_line


copy_line = _line_copier(4, past_the_caches=False)
stream_line = _line_copier(LINE, past_the_caches=True)  # to where a line of memory starts


@intrinsic
def fence(typingctx):
    """What was streamed is there for all threads."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _copy_number(typingctx, source, target):
    def codegen(context, builder, sig, args):
        value = builder.load(pointer(builder, args[0], I32))
        builder.store(value, pointer(builder, args[1], I32))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@register_jitable
def copy(source, target, n_bytes):
    """Copy some numbers."""
    whole = n_bytes - n_bytes % LINE
    for i in range(0, whole, LINE):
        copy_line(source + i, target + i)
    for i in range(whole, n_bytes, 4):
        _copy_number(source + i, target + i)
