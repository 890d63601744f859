"""Lanes: the numbers of bins side by side that a thread processes at the same time.

They behave like one number, and are read and written 16 bytes at a time: value and gradient on a
tree execute a quarter of the loads of rows and tables. In Numba's simulator lanes are NumPy arrays.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.memory import load, store
from fastemd.kernels.cuda.numba_cuda import SIMULATED, device

VECTOR_BYTES = 16  # read or written at a time


class LaneFunctions(NamedTuple):
    """The functions of lanes of float64 numbers; of one lane, they are numbers."""

    count: int
    zeros: Callable[..., Any]  # ``()``
    read: Callable[..., Any]  # ``(memory, index)``: the numbers side by side
    write: Callable[..., Any]  # ``(memory, index, lanes)``
    places: Callable[..., Any]  # ``(memory, index)``: the integers side by side
    gather: Callable[..., Any]  # ``(memory, places)``
    scatter: Callable[..., Any]  # ``(memory, places, lanes)``
    total: Callable[..., Any]  # ``(lanes)``: the sum of the numbers


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

        zeros = functools.partial(np.zeros, count)
        return LaneFunctions(count, zeros, read, write, places, gather, scatter, np.sum)

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

    def _define_for_lanes(function, *operands):
        """Define a function of numbers for lanes."""

        @lower_builtin(function, *operands)
        def lower(context, builder, sig, args):
            of_numbers = types.float64(*[types.float64] * len(args))
            compute = context.get_function(function, of_numbers)
            pairs, count = zip(sig.args, args, strict=True), sig.return_type.count
            numbers = zip(*(_split(context, builder, *pair, count) for pair in pairs), strict=True)
            return _join(builder, [compute(builder, each) for each in numbers])

    type_callable(abs)(lambda context: lambda a: _lanes_among(a))
    _define_for_lanes(abs, Lanes)
    for _function in operator.add, operator.sub, operator.mul:
        type_callable(_function)(lambda context: lambda a, b: _lanes_among(a, b))
        for _operands in (Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes):
            _define_for_lanes(_function, *_operands)

    def _several_lanes(count):
        kind, places_kind = Lanes(count), types.UniTuple(types.int32, count)

        def vector_at(context, builder, memory, index):
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

        @intrinsic
        def total(typingctx, lanes):
            def codegen(context, builder, sig, args):
                numbers = _split(context, builder, kind, args[0], count)
                while len(numbers) > 1:
                    pairs = zip(numbers[::2], numbers[1::2], strict=True)
                    numbers = [builder.fadd(a, b) for a, b in pairs]
                return numbers[0]

            return types.float64(kind), codegen

        return LaneFunctions(count, zeros, read, write, places, gather, scatter, total)


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
    def total(number):
        return number

    return LaneFunctions(count, zeros, read, store, load, load, store, total)
