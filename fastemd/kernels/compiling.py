"""From the functions of a tile to compiled kernels, serial and parallel, cached on disk.

All tile kernels take the same arguments, so that one driver (`tiles`) and one parallel launcher
serve them. An output that is not wanted has no elements. A kernel returns the first row of the
batch that failed the checks, or the number of rows if none did.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import from_dtype, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastemd.kernels import (
    blocks,
    caching,
    cpu,
    dense,
    edges,
    entropy,
    lanes,
    lines,
    losses,
    memory,
    normalize,
    power,
    rows,
)
from fastemd.kernels.cpu import TILES, Tile, chain_above, chain_join, tree_above, tree_join
from fastemd.kernels.dense import matrices
from fastemd.kernels.edges import (
    CURVATURE,
    SLOPE,
    curvature_factor,
    no_factor,
    slope_factor,
)
from fastemd.kernels.lanes import (
    address,
    aligned,
    at,
    integer_at,
    lane,
    n_lanes,
    number_at,
    put_integer,
    put_number,
)
from fastemd.kernels.lines import LINE, fence, lines_per_block
from fastemd.kernels.losses import LOSSES
from fastemd.kernels.memory import AHEAD_FROM, STREAM_FROM, settle
from fastemd.kernels.normalize import admit_losses
from fastemd.kernels.rows import (
    address_of_row,
    are_crowded,
    is_finite,
    is_histogram_pair,
    locate,
    locate_next,
    put_aside,
)
from fastemd.layout import Edges

TABLE = 2 * LINE  # bytes, for the addresses of the rows of a tile
_eight_at, _one_at = at(8), at(1)


# The intrinsics share one name in the symbols of the machine code, by which Numba finds functions.


@register_jitable
def wide(address):
    return _eight_at(address)


@register_jitable
def narrow(address):
    return _one_at(address)


LANES = {"wide": wide, "narrow": narrow}


@register_jitable
def admit(tile, value, with_v, first, n_rows, tolerance):
    """The first bad row of a tile, `n_rows` if there is none."""
    if tolerance < 0.0:
        return n_rows
    for r in range(min(n_lanes(tile.x), n_rows - first)):
        p_row, q_row = integer_at(tile.p_rows, r), integer_at(tile.q_rows, r)
        if not is_histogram_pair(p_row, q_row, tile.n_bins, tolerance, tile.like):
            return first + r
        if with_v and not is_finite(integer_at(tile.v_rows, r), tile.n_bins, tile.like):
            return first + r
    return n_rows


@register_jitable
def admit_one(tile, value, with_v, first, n_rows, tolerance):
    """The same for rows that are compared with none."""
    if tolerance < 0.0:
        return n_rows
    for r in range(min(n_lanes(tile.x), n_rows - first)):
        p_row = integer_at(tile.p_rows, r)
        if not is_histogram_pair(p_row, p_row, tile.n_bins, tolerance, tile.like):
            return first + r
    return n_rows


@register_jitable
def whole_lines(n_numbers):
    """Bytes that so many float64 numbers take in scratch."""
    return (8 * n_numbers + LINE - 1) // LINE * LINE


@register_jitable
def tiles(
    place, n_scratch, operation, check, join, above, function, factor,
    chunk, n_chunks, layout, p, q, v, rho, value, out, project, tolerance,
    labelled, how, cross_entropy,
):  # fmt: skip
    """The tiles of one of `n_chunks` equal parts; stop at the first bad row and return it."""
    n_rows, n_bins, n_edges = p.shape[0] * p.shape[1], p.shape[2], layout.length.size
    with_v, n_out = v.size > 0, out.shape[2] if out.size else 0
    lanes = n_lanes(place(0))
    per_row = n_out * out.itemsize
    streamed = (
        out.size * out.itemsize >= STREAM_FROM
        and n_out == n_bins
        and lines_per_block(place(0), out.dtype.type(0)) > 0
    )
    n_tiles = -(-n_rows // lanes)
    begin, end = chunk * n_tiles // n_chunks, (chunk + 1) * n_tiles // n_chunks

    # In scratch, after ten tables:
    weight = 10 * TABLE
    x = weight + whole_lines(n_edges)
    per_scratch = whole_lines((n_edges + 1) * lanes)
    staged = x + n_scratch * per_scratch
    aside = staged + streamed * whole_lines(lanes * per_row // 8)
    room = whole_lines(lanes * (n_bins * p.itemsize + LINE) // 8)  # for the rows of a tile
    crowded = lanes > 1 and (are_crowded(p) or are_crowded(q) or are_crowded(v))
    blank = aside + crowded * (2 + with_v) * room
    scratch = np.empty(blank // 8 + n_bins + 8)
    start = aligned(address(scratch))
    tile = Tile(
        n_bins, n_edges, n_out,
        address(layout.parent), start + weight, address(layout.share),
        place(start), place(start + TABLE), place(start + 2 * TABLE), place(start + 3 * TABLE),
        place(start + x), place(start + x + per_scratch),
        place(start + x + 2 * per_scratch), place(start + x + 3 * per_scratch),
        place(start + 7 * TABLE), place(start + 8 * TABLE), place(start + 9 * TABLE),
        start + 4 * TABLE, start + 5 * TABLE, p.size * p.itemsize >= AHEAD_FROM,
        start + 6 * TABLE, start + staged, lanes * per_row, start + blank,
        rho, project, labelled, how, cross_entropy, p.dtype.type(0), out.dtype.type(0),
    )  # fmt: skip
    for e in range(n_edges):
        put_number(tile.weight, e, factor(rho) * number_at(address(layout.length), e))
    put_integer(tile.pending, 0, 0)
    for i in range(2):
        put_integer(tile.next_pq, i, start)
        put_integer(tile.next_v, i, start)

    bad, last = n_rows, n_rows
    for t in range(begin, end):
        first = t * lanes
        last = min(first + lanes, n_rows)
        locate(p, first, tile.p_rows)
        locate(q, first, tile.q_rows)
        locate_next(p, first + lanes, tile.next_pq, 0)
        if labelled:
            put_integer(tile.next_pq, 1, integer_at(tile.next_pq, 0))
        else:
            locate_next(q, first + lanes, tile.next_pq, 1)
        if with_v:
            locate(v, first, tile.v_rows)
            locate_next(v, first + lanes, tile.next_v, 0)
            locate_next(v, first + lanes, tile.next_v, 1)
        if crowded:
            put_aside(p, tile.p_rows, start + aside)
            put_aside(q, tile.q_rows, start + aside + room)
            if with_v:
                put_aside(v, tile.v_rows, start + aside + 2 * room)
        if streamed:
            for r in range(lanes):
                row = min(r, last - first - 1)
                put_integer(tile.out_rows, r, tile.staged + row * per_row)
        elif n_out:
            locate(out, first, tile.out_rows)
        bad = check(tile, value, with_v, first, n_rows, tolerance)
        if bad < n_rows:
            put_integer(tile.pending, 0, 0)  # there will be no result
            break
        values = operation(tile, join, above, function)
        for row in range(first, min(last, value.size)):
            value[row] = lane(values, row - first)
        if streamed:
            put_integer(tile.pending, 0, address_of_row(out, first))
    if integer_at(tile.pending, 0) != 0:
        settle(tile, 0, (last - (end - 1) * lanes) * per_row)
        fence()
    scratch[0] = 0.0  # Numba frees an array after its last use by name
    return bad


# A part of the cache's key: the code of this module and of those whose functions kernels call.
SOURCES = (
    blocks, cpu, dense, edges, entropy, lanes, lines, losses, memory, normalize, power, rows,
)  # fmt: skip
DIGEST = caching.digest_of_code(__name__, Edges.__module__, *(m.__name__ for m in SOURCES))


def _rows_kernel(place, n_scratch, operation, check, join, above, function, factor):
    def kernel(
        chunk, n_chunks, layout, p, q, v, rho, value, out, project, tolerance,
        labelled, how, cross_entropy,
    ):  # fmt: skip
        return tiles(
            place, n_scratch, operation, check, join, above, function, factor,
            chunk, n_chunks, layout, p, q, v, rho, value, out, project, tolerance,
            labelled, how, cross_entropy,
        )  # fmt: skip

    return kernel


def _hessian_kernel():
    def kernel(chunk, n_chunks, layout, curvatures, out, project):
        return matrices(layout, curvatures, out, project, chunk, n_chunks)

    return kernel


# A kernel is compiled once, for one thread; the parallel form hands its chunks to the compiled
# code by address. (Called by name it would be compiled twice more: 6 s more per operation.)


def rows_in_parallel(
    address, n_chunks, layout, p, q, v, rho, value, out, project, tolerance,
    labelled, how, cross_entropy,
):  # fmt: skip
    bad = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        bad[chunk] = call(
            address, np.intp(chunk), n_chunks, layout, p, q, v, rho, value, out, project, tolerance,
            labelled, how, cross_entropy,
        )  # fmt: skip
    return bad.min()


def hessian_in_parallel(address, n_chunks, layout, curvatures, out, project):
    done = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        done[chunk] = call(address, np.intp(chunk), n_chunks, layout, curvatures, out, project)
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


_EDGES = types.NamedTuple(
    [_array(dtype, 1, readonly=True) for dtype in (np.intp, np.float64, np.float64)], Edges
)


def _arguments(operation, dtype):
    if operation == "hessian":
        return _EDGES, _array(np.float64, 2), _array(dtype, 3), types.float64
    histograms = _array(dtype, 3, "A", readonly=True)
    value = _array(np.float64 if operation in LOSSES else dtype, 1)
    out = _array(np.float64 if operation == "curvature" else dtype, 3)
    number = types.float64
    return (
        _EDGES, histograms, histograms, histograms, number, value, out, number, number,
        types.boolean, types.intp, number,
    )  # fmt: skip


class Kernel(NamedTuple):
    """What a kernel is made for."""

    operation: str
    space: str  # "chain", "tree" or "any"
    rho: str  # "1", "2" or "any"
    lanes: str  # "wide", or "narrow" for single rows


@functools.cache
def serial_kernel(kernel, dtype):
    """The compiled `kernel` for arrays of `dtype`: ``(chunk, n_chunks, *arguments)``."""
    operation, space, rho, width = kernel
    if operation == "hessian":
        function = _hessian_kernel()
    else:
        sweeps = (chain_join, chain_above) if space == "chain" else (tree_join, tree_above)
        functions, factor, check = CURVATURE, curvature_factor, admit
        tile, n_scratch = TILES.get(operation), 2 if operation == "hvp" else 1
        if operation == "gradient":
            functions, factor = SLOPE, slope_factor
        elif operation == "embed":
            factor, check = no_factor, admit_one
        if operation in LOSSES:
            tile, functions, n_scratch = LOSSES[operation]
            factor, check = slope_factor, admit_losses
        function = _rows_kernel(
            LANES[width], n_scratch, tile, check, *sweeps, functions[rho], factor
        )
    # Numba finds machine code by this name, and kernels from the cache must not meet under one.
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
    return caching.compiled(function, signature, DIGEST, **options)
