"""Run a kernel in one thread or in all.

A kernel is a job of chunks. Every thread that takes part processes the next chunk until there is
none, so a thread that comes late leaves its share to the others. `launch` is compiled once for all
kernels, which call it by address: a launcher for each kind of kernel took 1.5 s to compile.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastemd.kernels.cpu.simd import I64
from fastemd.kernels.jitable import jitable, lower_into_kernel

# Fields of a job in memory; the arguments of the kernel follow.
NEXT_CHUNK, INVALID, N_ACTIVE = range(3)  # N_ACTIVE: threads that have processed a chunk
FAILED = -1


def launch(work, job, n_threads):
    """Call the function at address `work` in all threads."""
    for _ in prange(n_threads):
        call(work, job)
    return 0


@jitable
def run_chunks(launcher, n_threads, n_chunks, function, arguments):
    """Call ``function(chunk, n_chunks, *arguments)`` for all chunks.

    `launcher` is the address of `launch`, which is called for more than one thread. Return the
    smallest result, and the number of threads that have processed a chunk.
    """
    result, n_active = in_threads(launcher, n_threads, n_chunks, function, arguments)
    if result == FAILED:
        raise MemoryError(
            "not enough memory for the scratch of all threads; pass fewer rows, or use fewer "
            "threads (numba.set_num_threads)"
        )
    return result, n_active


@intrinsic
def call(typingctx, work, job):
    """Call the function at an address, which returns nothing."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def in_threads(typingctx, launcher, n_threads, n_chunks, function, arguments):
    """Do what `run_chunks` says; the result is FAILED if a call has raised."""
    signature = typingctx.resolve_function_type(
        function, (types.intp, types.intp, *arguments.types), {}
    )

    def codegen(context, builder, sig, args):
        launcher, n_threads, n_chunks, _, values = args
        values = [n_chunks, *cgutils.unpack_tuple(builder, values)]
        kind = ir.LiteralStructType([I64, I64, I64, *(value.type for value in values)])
        job = cgutils.alloca_once(builder, kind)
        largest = np.iinfo(np.int64).max
        for i, value in enumerate([I64(0), I64(largest), I64(0), *values]):
            builder.store(value, cgutils.gep_inbounds(builder, job, 0, i))

        work = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [I64]), "work")
        work.linkage = "internal"
        kernel = lower_into_kernel(context, function.typing_key, signature.args).fndesc
        _process_chunks(context, ir.IRBuilder(work.append_basic_block()), kind, kernel, signature)

        address = builder.ptrtoint(job, I64)
        with builder.if_else(builder.icmp_signed(">", n_threads, I64(1))) as (many, one):
            with many:
                convention, integers = context.call_conv, (types.intp,) * 3
                pointer = convention.get_function_type(types.intp, integers).as_pointer()
                status, _ = convention.call_function(
                    builder, builder.inttoptr(launcher, pointer), types.intp, integers,
                    [builder.ptrtoint(work, I64), address, n_threads],
                )  # fmt: skip
                with cgutils.if_unlikely(builder, status.is_error):
                    convention.return_status_propagate(builder, status)
            with one:
                builder.call(work, [address])
        results = [
            builder.load(cgutils.gep_inbounds(builder, job, 0, i)) for i in (INVALID, N_ACTIVE)
        ]
        return cgutils.pack_array(builder, results)

    return types.UniTuple(types.intp, 2)(
        types.intp, types.intp, types.intp, function, arguments
    ), codegen


def _process_chunks(context, builder, kind, kernel, signature):
    """Emit the loop of a thread: take the next chunk, until there is none."""
    function = builder.function
    job = builder.inttoptr(function.args[0], kind.as_pointer())
    field = [cgutils.gep_inbounds(builder, job, 0, i) for i in range(len(kind.elements))]
    n_chunks, *values = (builder.load(place) for place in field[N_ACTIVE + 1 :])
    is_active = cgutils.alloca_once_value(builder, I64(0))
    loop, body, end = (function.append_basic_block(name) for name in ("loop", "body", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    chunk = builder.atomic_rmw("add", field[NEXT_CHUNK], I64(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", chunk, n_chunks), body, end)
    builder.position_at_end(body)
    status, result = context.call_internal_no_propagate(
        builder, kernel, signature, [chunk, n_chunks, *values]
    )
    result = builder.select(status.is_error, I64(FAILED), result)
    builder.atomic_rmw("min", field[INVALID], result, "monotonic")
    builder.store(I64(1), is_active)
    builder.branch(loop)
    builder.position_at_end(end)
    builder.atomic_rmw("add", field[N_ACTIVE], builder.load(is_active), "monotonic")
    builder.ret_void()
