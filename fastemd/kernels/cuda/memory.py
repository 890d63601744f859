"""Memory of the device by 32-bit indices.

Numba computes places in arrays with 64 bits, for which a GPU needs two registers and several
instructions each, and handles negative indices. Here a row is a pointer, and an index in a row is
an integer of 32 bits that is not negative. Numbers of rows have 64 bits.

In Numba's simulator pointers are NumPy arrays.
"""

from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.numba_cuda import SIMULATED

VECTOR_BYTES = 16  # the most that a thread reads or writes at a time


class Rows(NamedTuple):
    """An array (G, R, columns)."""

    start: Any  # pointer to the first number
    group_stride: int  # in bytes
    row_stride: int


class Steps(NamedTuple):
    """From a bin to the next one, in numbers, and from an output to the next one, in bytes."""

    p: int
    q: int
    v: int
    out: int
    out_group: int
    out_row: int


if SIMULATED:

    def int32(number):
        """Return an integer of 32 bits."""
        return np.int32(number)

    def int64(number):
        """Return an integer of 64 bits."""
        return np.int64(number)

    def quotient(a, b):
        """Return ``a // b`` for integers that are not negative."""
        return a // b

    def count(start, stop, step):
        """Return the range of integers of 32 bits; `step` is positive."""
        return map(np.int32, range(start, stop, step))

    def row_of(rows, group, row):
        """Return the pointer to a row, see `Rows`."""
        return rows.start[group, row] if rows.start.size else rows.start[0, 0]

    def row_at(memory, row, size):
        """Return the pointer to a row of memory with rows of a size."""
        flat = memory.reshape(-1)
        return flat[int(row) * int(size) :]

    def pointer(array, index):
        """Return the pointer to an entry of an array (n,), or of what a pointer points to."""
        return array[index:]

    def shared_pointer(array):
        """Return the pointer to the array in shared memory.

        It is aligned to vectors, as it is the only one and starts where that memory does.
        """
        return array

    def load(memory, index):
        """Return a number."""
        return memory[index]

    def store(memory, index, number):
        """Write a number."""
        memory[index] = number

    def load_two(memory, index):
        """Return pair number `index` of numbers."""
        return memory[2 * index], memory[2 * index + 1]

    def load_four(memory, index):
        """Return the four numbers from number ``4 index`` on."""
        return tuple(memory[4 * index + i] for i in range(4))

else:
    from llvmlite import ir
    from numba.cuda import cgutils, types
    from numba.cuda.core.imputils import RefType, iternext_impl
    from numba.cuda.cudadrv import nvvm
    from numba.cuda.extending import (
        intrinsic,
        lower_builtin,
        models,
        register_model,
    )

    _I32, _I64 = ir.IntType(32), ir.IntType(64)

    def _cast_to(kind):
        @intrinsic
        def cast(typingctx, number):
            def codegen(context, builder, sig, args):
                return context.cast(builder, args[0], sig.args[0], kind)

            return kind(number), codegen

        return cast

    int32, int64 = _cast_to(types.int32), _cast_to(types.int64)

    @intrinsic
    def quotient(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return builder.udiv(*args)

        return a(a, a), codegen

    class CountIterator(types.SimpleIteratorType):
        """Numba's type of an iterator over a `Count`."""

        def __init__(self) -> None:
            super().__init__("CountIterator", types.int32)

    class Count(types.SimpleIterableType):
        """Numba's type of a range of integers of 32 bits.

        Numba's own divides by the step, and LLVM unrolls loops over it, up to four times: with it,
        value and gradient on a tree took 920 instructions and 72 registers instead of 624 and 56.
        """

        def __init__(self) -> None:
            super().__init__("Count", CountIterator())

    def _struct_model(kind, **members):
        @register_model(kind)
        class _Model(models.StructModel):
            def __init__(self, dmm, fe_type) -> None:
                super().__init__(dmm, fe_type, list(members.items()))

    _bounds = {"stop": types.int32, "step": types.int32}
    _struct_model(Count, start=types.int32, **_bounds)
    _struct_model(CountIterator, number=types.EphemeralPointer(types.int32), **_bounds)

    @intrinsic
    def count(typingctx, start, stop, step):
        def codegen(context, builder, sig, args):
            numbers = [
                context.cast(builder, *pair, types.int32)
                for pair in zip(args, sig.args, strict=True)
            ]
            return cgutils.pack_struct(builder, numbers)

        return Count()(start, stop, step), codegen

    @lower_builtin("getiter", Count)
    def _iterator(context, builder, sig, args):
        start, stop, step = cgutils.unpack_tuple(builder, args[0])
        return cgutils.pack_struct(builder, [cgutils.alloca_once_value(builder, start), stop, step])

    @lower_builtin("iternext", CountIterator)
    @iternext_impl(RefType.UNTRACKED)
    def _next_number(context, builder, sig, args, result):
        place, stop, step = cgutils.unpack_tuple(builder, args[0])
        number = builder.load(place)
        valid = builder.icmp_signed("<", number, stop)
        result.set_valid(valid)
        with builder.if_then(valid):
            result.yield_(number)
            add = ir.FunctionType(_I32, [_I32, _I32])  # opaque to LLVM
            after = builder.asm(add, "add.s32 $0, $1, $2;", "=r,r,r", [number, step], False)
            builder.store(after, place)

    @intrinsic
    def row_of(typingctx, rows, group, row):
        def codegen(context, builder, sig, args):
            start, *strides = cgutils.unpack_tuple(builder, args[0])
            place = builder.ptrtoint(start, _I64)
            for number, stride in zip(args[1:], strides, strict=True):
                place = builder.add(place, builder.mul(number, stride))
            in_global = ir.PointerType(start.type.pointee, nvvm.ADDRSPACE_GLOBAL)
            return builder.addrspacecast(builder.inttoptr(place, in_global), start.type)

        return rows[0](rows, types.int64, types.int64), codegen

    @intrinsic
    def row_at(typingctx, memory, row, size):
        def codegen(context, builder, sig, args):
            memory, row, size = args
            return builder.gep(memory, [builder.mul(row, builder.zext(size, _I64))])

        return memory(memory, types.int64, types.int32), codegen

    class SharedPointer(types.Type):
        """Numba's type of a pointer to float64 in shared memory, of 32 bits."""

        dtype = types.float64

        def __init__(self) -> None:
            super().__init__("SharedPointer")

    @register_model(SharedPointer)
    class _SharedPointerModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type) -> None:
            super().__init__(dmm, fe_type, _I32)

    @intrinsic
    def shared_pointer(typingctx, array):
        def codegen(context, builder, sig, args):
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            in_shared = ir.PointerType(data.type.pointee, nvvm.ADDRSPACE_SHARED)
            return builder.ptrtoint(builder.addrspacecast(data, in_shared), _I32)

        return SharedPointer()(array), codegen

    @intrinsic
    def pointer(typingctx, array, index):
        def codegen(context, builder, sig, args):
            data, index = args
            if isinstance(array, SharedPointer):
                return builder.add(data, builder.shl(index, _I32(3)))
            if isinstance(array, types.Array):
                data = context.make_array(sig.args[0])(context, builder, data).data
            return builder.gep(data, [builder.zext(index, _I64)])

        kind = array if isinstance(array, SharedPointer) else types.CPointer(array.dtype)
        return kind(array, types.int32), codegen

    def place_at(builder, memory, index):
        """Return the LLVM pointer to an entry."""
        if memory.type == _I32:
            address = builder.add(memory, builder.shl(index, _I32(3)))
            kind = ir.PointerType(ir.DoubleType(), nvvm.ADDRSPACE_SHARED)
            return builder.inttoptr(address, kind)
        return builder.gep(memory, [builder.zext(index, _I64) if index.type == _I32 else index])

    def _index(kind):
        return types.int64 if kind == types.int64 else types.int32

    @intrinsic
    def load(typingctx, memory, index):
        def codegen(context, builder, sig, args):
            return builder.load(place_at(builder, *args))

        return memory.dtype(memory, _index(index)), codegen

    @intrinsic
    def store(typingctx, memory, index, number):
        def codegen(context, builder, sig, args):
            value = context.cast(builder, args[2], sig.args[2], sig.args[0].dtype)
            builder.store(value, place_at(builder, *args[:2]))
            return context.get_dummy_value()

        return types.none(memory, _index(index), number), codegen

    def _load_several(n):
        @intrinsic
        def read(typingctx, memory, index):
            def codegen(context, builder, sig, args):
                start, index = args
                kind = ir.VectorType(start.type.pointee, n)
                size = n * context.get_abi_sizeof(start.type.pointee)
                start = builder.bitcast(start, kind.as_pointer(start.type.addrspace))
                vector = builder.load(place_at(builder, start, index), align=size)
                numbers = [builder.extract_element(vector, _I32(i)) for i in range(n)]
                return context.make_tuple(builder, sig.return_type, numbers)

            return types.UniTuple(memory.dtype, n)(memory, types.int32), codegen

        return read

    load_two, load_four = _load_several(2), _load_several(4)
