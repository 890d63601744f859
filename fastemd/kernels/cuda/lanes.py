"""Lanes: the numbers of bins side by side that a thread processes at the same time.

They behave like one number, and are read and written 16 bytes at a time: value and gradient on a
tree execute a quarter of the loads of rows and tables. In Numba's simulator lanes are NumPy arrays.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.memory import VECTOR_BYTES, int32, load, quotient, store
from fastemd.kernels.cuda.numba_cuda import SIMULATED, device


class LaneFunctions(NamedTuple):
    """The functions of lanes of float64 numbers; of one lane, they are numbers."""

    count: int
    zeros: Callable[..., Any]  # ``()``
    read: Callable[..., Any]  # ``(memory, index)``: the numbers side by side
    write: Callable[..., Any]  # ``(memory, index, lanes)``
    places: Callable[..., Any]  # ``(memory, index)``: the integers side by side
    gather: Callable[..., Any]  # ``(memory, places)``
    scatter: Callable[..., Any]  # ``(memory, places, lanes)``
    # For memory of n numbers that a thread writes and reads at the same indices k:
    read_own: Callable[..., Any]  # ``(memory, k, n)``
    write_own: Callable[..., Any]  # ``(memory, k, n, lanes)``
    total: Callable[..., Any]  # ``(lanes)``: the sum of the numbers
    most: Callable[..., Any]  # ``(memory, index)``: the largest number, unless it is NaN
    negative: Callable[..., Any]  # ``(memory, index)``: minus the sum of the negative numbers
    exp: Callable[..., Any]
    equal: Callable[..., Any]  # ``(index, i)``: 1 where ``index + lane == i``, else 0


if SIMULATED:

    def _several_lanes(count):
        def read(memory, index):
            return np.array([memory[index + i] for i in range(count)], float)

        def write(memory, index, lanes):
            for i in range(count):
                memory[index + i] = lanes[i]

        def places(memory, index):
            return [memory[index + i] for i in range(count)]

        def gather(memory, places):
            return np.array([memory[place] for place in places])

        def scatter(memory, places, lanes):
            for place, number in zip(places, lanes, strict=True):
                memory[place] = number

        def most(memory, index):
            return np.fmax.reduce(read(memory, index))

        def negative(memory, index):
            return -np.fmin(read(memory, index), 0.0).sum()

        def equal(index, i):
            return (np.arange(count) == i - index).astype(float)

        zeros, total = functools.partial(np.zeros, count), np.sum

        def read_own(memory, k, n):
            return read(memory, k)

        def write_own(memory, k, n, lanes):
            write(memory, k, lanes)

        return LaneFunctions(
            count, zeros, read, write, places, gather, scatter, read_own, write_own, total, most,
            negative, np.exp, equal,
        )  # fmt: skip

else:
    from llvmlite import ir
    from numba.cuda import cgutils, types
    from numba.cuda.extending import (
        intrinsic,
        lower_builtin,
        models,
        register_model,
        type_callable,
    )

    from fastemd.kernels.cuda.memory import place_at

    _I32 = ir.IntType(32)

    class Lanes(types.Type):
        """Numba's type of `count` float64 numbers."""

        def __init__(self, count) -> None:
            super().__init__(name=f"Lanes({count})")
            self.count, self.vector = count, ir.VectorType(ir.DoubleType(), count)

    @register_model(Lanes)
    class _LanesModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type) -> None:
            super().__init__(dmm, fe_type, fe_type.vector)

    def _lanes_among(*kinds):
        return next((kind for kind in kinds if isinstance(kind, Lanes)), None)

    def _split(context, builder, kind, value, count):
        """Return the `count` numbers of a value: lanes, or a number for all of them."""
        if isinstance(kind, Lanes):
            return [builder.extract_element(value, _I32(i)) for i in range(count)]
        return [context.cast(builder, value, kind, types.float64)] * count

    def _join(builder, numbers):
        lanes = ir.Constant(ir.VectorType(numbers[0].type, len(numbers)), ir.Undefined)
        for i, number in enumerate(numbers):
            lanes = builder.insert_element(lanes, number, _I32(i))
        return lanes

    def _define_for_lanes(function, *operands, result=types.float64):
        """Define a function of numbers for lanes; booleans become 1 and 0."""

        @lower_builtin(function, *operands)
        def lower(context, builder, sig, args):
            compute = context.get_function(function, result(*[types.float64] * len(args)))
            pairs, count = zip(sig.args, args, strict=True), sig.return_type.count
            numbers = zip(*(_split(context, builder, *pair, count) for pair in pairs), strict=True)
            results = (compute(builder, each) for each in numbers)
            cast = context.cast
            return _join(builder, [cast(builder, x, result, types.float64) for x in results])

    for _function in abs, math.exp:
        type_callable(_function)(lambda context: lambda a: _lanes_among(a))
        _define_for_lanes(_function, Lanes)
    for _function in operator.add, operator.sub, operator.mul, operator.gt, operator.eq, max:
        type_callable(_function)(lambda context: lambda a, b: _lanes_among(a, b))
        _result = types.boolean if _function in (operator.gt, operator.eq) else types.float64
        for _operands in (Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes):
            _define_for_lanes(_function, *_operands, result=_result)

    def _several_lanes(count):
        kind, places_kind = Lanes(count), types.UniTuple(types.int32, count)

        def vector_at(context, builder, memory, index, count=count):
            """Return the pointer to numbers side by side, and its alignment."""
            place = place_at(builder, memory, index)
            size = count * context.get_abi_sizeof(place.type.pointee)
            vector = ir.VectorType(place.type.pointee, count)
            return builder.bitcast(place, vector.as_pointer(place.type.addrspace)), min(
                size, VECTOR_BYTES
            )

        @intrinsic
        def zeros(typingctx):
            return kind(), lambda context, builder, sig, args: ir.Constant(kind.vector, None)

        @intrinsic
        def read(typingctx, memory, index):
            def codegen(context, builder, sig, args):
                place, align = vector_at(context, builder, *args)
                numbers = builder.load(place, align=align)
                return (
                    numbers
                    if memory.dtype == types.float64
                    else builder.fpext(numbers, kind.vector)
                )

            return kind(memory, types.int32), codegen

        @intrinsic
        def write(typingctx, memory, index, lanes):
            def codegen(context, builder, sig, args):
                place, align = vector_at(context, builder, *args[:2])
                lanes = args[2]
                if memory.dtype != types.float64:
                    lanes = builder.fptrunc(lanes, place.type.pointee)
                builder.store(lanes, place, align=align)
                return context.get_dummy_value()

            return types.none(memory, types.int32, kind), codegen

        @intrinsic
        def places(typingctx, memory, index):
            def codegen(context, builder, sig, args):
                place, align = vector_at(context, builder, *args)
                numbers = builder.load(place, align=align)
                numbers = [builder.extract_element(numbers, _I32(i)) for i in range(count)]
                return context.make_tuple(builder, sig.return_type, numbers)

            return places_kind(memory, types.int32), codegen

        @intrinsic
        def gather(typingctx, memory, places):
            def codegen(context, builder, sig, args):
                each = cgutils.unpack_tuple(builder, args[1])
                numbers = [builder.load(place_at(builder, args[0], place)) for place in each]
                return _join(builder, numbers)

            return kind(memory, places_kind), codegen

        @intrinsic
        def scatter(typingctx, memory, places, lanes):
            def codegen(context, builder, sig, args):
                each = cgutils.unpack_tuple(builder, args[1])
                numbers = _split(context, builder, kind, args[2], count)
                for place, number in zip(each, numbers, strict=True):
                    builder.store(number, place_at(builder, args[0], place))
                return context.get_dummy_value()

            return types.none(memory, places_kind, kind), codegen

        half, block = count // 2, np.int32(32 * count)

        @device
        def own_places(k, n):
            """Return the places of two halves: the threads of a warp write side by side."""
            first = int32(k & -block)
            place = int32(first + quotient(int32(k - first), np.int32(2)))
            return place, int32(
                place + min(quotient(block, np.int32(2)), quotient(int32(n - first), np.int32(2)))
            )

        @intrinsic
        def read_halves(typingctx, memory, place, other):
            def codegen(context, builder, sig, args):
                numbers = []
                for index in args[1:]:
                    start, align = vector_at(context, builder, args[0], index, half)
                    vector = builder.load(start, align=align)
                    numbers += [builder.extract_element(vector, _I32(i)) for i in range(half)]
                return _join(builder, numbers)

            return kind(memory, types.int32, types.int32), codegen

        @intrinsic
        def write_halves(typingctx, memory, place, other, lanes):
            def codegen(context, builder, sig, args):
                numbers = _split(context, builder, kind, args[3], count)
                for index, part in zip(args[1:3], (numbers[:half], numbers[half:]), strict=True):
                    start, align = vector_at(context, builder, args[0], index, half)
                    builder.store(_join(builder, part), start, align=align)
                return context.get_dummy_value()

            return types.none(memory, types.int32, types.int32, kind), codegen

        @device
        def read_own(memory, k, n):
            place, other = own_places(k, n)
            return read_halves(memory, place, other)

        @device
        def write_own(memory, k, n, lanes):
            place, other = own_places(k, n)
            write_halves(memory, place, other, lanes)

        @intrinsic
        def total(typingctx, lanes):
            def codegen(context, builder, sig, args):
                return add(builder, _split(context, builder, kind, args[0], count))

            return types.float64(kind), codegen

        def reduced(reduce):
            """Make a function of numbers side by side, computed in their type."""

            @intrinsic
            def of_memory(typingctx, memory, index):
                def codegen(context, builder, sig, args):
                    place, align = vector_at(context, builder, *args)
                    vector, number = builder.load(place, align=align), memory.dtype
                    numbers = [builder.extract_element(vector, _I32(i)) for i in range(count)]
                    minmax = {
                        f: context.get_function(f, number(number, number)) for f in (min, max)
                    }
                    result = reduce(builder, minmax, numbers)
                    return context.cast(builder, result, number, types.float64)

                return types.float64(memory, types.int32), codegen

            return of_memory

        def add(builder, numbers):
            while len(numbers) > 1:
                pairs = zip(numbers[::2], numbers[1::2], strict=True)
                numbers = [builder.fadd(a, b) for a, b in pairs]
            return numbers[0]

        @reduced
        def most(builder, minmax, numbers):
            return functools.reduce(lambda a, b: minmax[max](builder, (a, b)), numbers)

        @reduced
        def negative(builder, minmax, numbers):
            zero = ir.Constant(numbers[0].type, 0.0)
            total = add(builder, [minmax[min](builder, (x, zero)) for x in numbers])
            return builder.fsub(zero, total)

        @device
        def exp(lanes):
            return math.exp(lanes)

        @intrinsic
        def equal(typingctx, index, i):
            def codegen(context, builder, sig, args):
                distance = builder.sub(args[1], args[0])
                are_equal = (builder.icmp_signed("==", distance, _I32(j)) for j in range(count))
                return _join(builder, [builder.uitofp(x, ir.DoubleType()) for x in are_equal])

            return kind(types.int32, types.int32), codegen

        return LaneFunctions(
            count, zeros, read, write, places, gather, scatter, read_own, write_own, total, most,
            negative, exp, equal,
        )  # fmt: skip


@functools.cache
def lane_functions(count: int) -> LaneFunctions:
    """Return the functions of lanes."""
    if count > 1:
        return _several_lanes(count)

    @device
    def zeros():
        return 0.0

    @device
    def read(memory, index):
        return np.float64(load(memory, index))

    @device
    def read_own(memory, k, n):
        return load(memory, k)

    @device
    def write_own(memory, k, n, number):
        store(memory, k, number)

    @device
    def total(number):
        return number

    @device
    def negative(memory, index):
        return -min(read(memory, index), 0.0)

    @device
    def exp(number):
        return math.exp(number)

    @device
    def equal(index, i):
        return 1.0 if index == i else 0.0

    return LaneFunctions(
        count, zeros, read, store, load, load, store, read_own, write_own, total, read, negative,
        exp, equal,
    )  # fmt: skip
