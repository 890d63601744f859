"""From the functions of a tile to compiled kernels, serial and parallel, cached on disk.

All tile kernels take the same arguments, so that one driver (`tiles`) and one parallel launcher
serve them. An output that is not wanted has no elements. A kernel returns the first row of the
batch that failed the checks, or the number of rows if none did.
"""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import from_dtype, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastemd.kernels import blocks, cpu, dense, edges, lanes, power, rows
from fastemd.kernels.cpu import TILES, Tile, chain_above, chain_join, tree_above, tree_join
from fastemd.kernels.dense import matrices
from fastemd.kernels.edges import CURVATURE, SLOPE
from fastemd.kernels.lanes import (
    LANES,
    address,
    aligned,
    integer_at,
    lane,
    put_integer,
    splat,
    store,
)
from fastemd.kernels.rows import is_finite, is_histogram_pair, locate
from fastemd.plan import Plan

# The processor fetches ahead along a row. Where rows are too short for that to begin, the kernel
# asks for those of the tile after the next: a chain of 64 bins 1.7 times as fast, of 100 1.5 times,
# of 384 1.3 times, of 512 not.
SHORT_ROW = 1536  # bytes
AHEAD = 2 * LANES  # rows


@register_jitable
def first_bad_row(tile, with_v, first, n_rows, tolerance):
    for r in range(min(LANES, n_rows - first)):
        p_row, q_row = integer_at(tile.p_rows, r), integer_at(tile.q_rows, r)
        if not is_histogram_pair(p_row, q_row, tile.n_bins, tolerance, tile.like):
            return first + r
        if with_v and not is_finite(integer_at(tile.v_rows, r), tile.n_bins, tile.like):
            return first + r
    return n_rows


@register_jitable
def tiles(
    operation, join, above, function,
    chunk, n_chunks, plan, p, q, v, rho, value, out, project, tolerance,
):  # fmt: skip
    """The tiles of one of `n_chunks` equal parts; stop at the first bad row and return it."""
    n_rows, n_bins, n_edges = p.shape[0] * p.shape[1], p.shape[2], plan.weight.size
    with_v = v.size > 0
    line = 8 * LANES
    x = 7 + with_v * (n_bins // LANES + 1)  # in lane vectors, after the tables and a row of zeros
    y = x + n_edges + 1
    scratch = np.empty((y + with_v * (n_edges + 1) + 1) * LANES)
    start = aligned(scratch)
    for i in range(7, x):
        store(start, i, splat(0.0))
    tile = Tile(
        n_bins, n_edges,
        address(plan.parent), address(plan.weight), address(plan.share),
        start, start + line, start + 2 * line, start + 3 * line, start + 4 * line,
        start + 5 * line, start + 6 * line,
        out.size > 0 and n_bins * p.itemsize <= SHORT_ROW,
        out.shape[2] if out.size else 0,
        start + x * line, start + y * line,
        rho, project, p.dtype.type(0), out.dtype.type(0),
    )  # fmt: skip
    for r in range(LANES):
        put_integer(tile.zero_rows, r, start + 7 * line)
    n_tiles, bad = -(-n_rows // LANES), n_rows
    for t in range(chunk * n_tiles // n_chunks, (chunk + 1) * n_tiles // n_chunks):
        first = t * LANES
        locate(p, first, tile.p_rows)
        locate(q, first, tile.q_rows)
        if tile.ahead:
            locate(p, first + AHEAD, tile.later_p)
            locate(q, first + AHEAD, tile.later_q)
        if with_v:
            locate(v, first, tile.v_rows)
        if out.size:
            locate(out, first, tile.out_rows)
        if tolerance >= 0.0:
            bad = first_bad_row(tile, with_v, first, n_rows, tolerance)
            if bad < n_rows:
                break
        values = operation(tile, join, above, function)
        for row in range(first, min(first + LANES, value.size)):
            value[row] = lane(values, row - first)
    scratch[0] = 0.0  # Numba frees an array after its last use by name
    return bad


# A part of the cache's key, since Numba looks for changes in this file only.
SOURCE_DIGEST = hashlib.sha256(
    b"".join(
        Path(str(module.__file__)).read_bytes()
        for module in (edges, power, lanes, blocks, rows, cpu, dense)
    )
).hexdigest()


def _rows_kernel(operation, join, above, function):
    digest = SOURCE_DIGEST

    def kernel(chunk, n_chunks, plan, p, q, v, rho, value, out, project, tolerance):
        _ = digest
        return tiles(
            operation, join, above, function,
            chunk, n_chunks, plan, p, q, v, rho, value, out, project, tolerance,
        )  # fmt: skip

    return kernel


def _hessian_kernel():
    digest = SOURCE_DIGEST

    def kernel(chunk, n_chunks, plan, curvatures, out, project):
        _ = digest
        return matrices(plan, curvatures, out, project, chunk, n_chunks)

    return kernel


# A kernel is compiled once, for one thread; the parallel form hands its chunks to the compiled
# code by address. (Called by name it would be compiled twice more: 6 s more per operation.)


def rows_in_parallel(address, n_chunks, plan, p, q, v, rho, value, out, project, tolerance):
    bad = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        arguments = plan, p, q, v, rho, value, out, project, tolerance
        bad[chunk] = call(address, np.intp(chunk), n_chunks, *arguments)
    return bad.min()


def hessian_in_parallel(address, n_chunks, plan, curvatures, out, project):
    done = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        done[chunk] = call(address, np.intp(chunk), n_chunks, plan, curvatures, out, project)
    return done.min()


@intrinsic
def call(typingctx, address, *arguments):
    """Call the compiled kernel at `address`, which returns an intp."""
    types_of_arguments = arguments[0] if isinstance(arguments[0], tuple) else arguments

    def codegen(context, builder, sig, args):
        convention = context.call_conv
        operands = cgutils.unpack_tuple(builder, args[1])
        signature = convention.get_function_type(types.intp, types_of_arguments)
        kernel = builder.inttoptr(args[0], signature.as_pointer())
        status, result = convention.call_function(
            builder, kernel, types.intp, types_of_arguments, operands
        )
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return result

    return types.intp(address, types.StarArgTuple(types_of_arguments)), codegen


def _array(dtype, ndim, layout="C", readonly=False):
    return types.Array(from_dtype(np.dtype(dtype)), ndim, layout, readonly=readonly)


_PLAN = types.NamedTuple(
    [_array(dtype, 1, readonly=True) for dtype in (np.intp, np.float64, np.float64)], Plan
)


def _arguments(operation, dtype):
    if operation == "hessian":
        return _PLAN, _array(np.float64, 2), _array(dtype, 3), types.float64
    histograms = _array(dtype, 3, "A", readonly=True)
    out = _array(np.float64 if operation == "curvature" else dtype, 3)
    number = types.float64
    return _PLAN, histograms, histograms, histograms, number, _array(dtype, 1), out, number, number


class Kernel(NamedTuple):
    """What a kernel is made for."""

    operation: str
    space: str  # "chain", "tree" or "any"
    rho: str  # "1", "2" or "any"


@functools.cache
def serial_kernel(kernel, dtype):
    """The compiled `kernel` for arrays of `dtype`: ``(chunk, n_chunks, *arguments)``."""
    operation, space, rho = kernel
    if operation == "hessian":
        function = _hessian_kernel()
    else:
        sweeps = (chain_join, chain_above) if space == "chain" else (tree_join, tree_above)
        functions = SLOPE if operation == "gradient" else CURVATURE
        function = _rows_kernel(TILES[operation], *sweeps, functions[rho])
    # Numba finds machine code by this name, and kernels from its cache must not meet under one.
    function.__qualname__ = "_".join(kernel)
    return _compile(function, types.intp(types.intp, types.intp, *_arguments(operation, dtype)))


def parallel_launcher(kernel, dtype):
    """What runs a serial kernel in all threads: ``(address, n_chunks, *arguments)``."""
    function = hessian_in_parallel if kernel.operation == "hessian" else rows_in_parallel
    signature = types.intp(types.intp, types.intp, *_arguments(kernel.operation, dtype))
    return _compile(function, signature, parallel=True)


def address_of_code(kernel, dtype):
    """Where the machine code of a serial kernel starts; its cache keeps it alive."""
    dispatcher = serial_kernel(kernel, dtype)
    compiled = dispatcher.overloads[dispatcher.signatures[0]]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@functools.cache  # all operations of one array type share a launcher
def _compile(function, signature, **options):
    try:
        return njit(signature, cache=True, nogil=True, **options)(function)
    except RuntimeError:  # Numba finds no folder it may write its cache to
        return njit(signature, nogil=True, **options)(function)
