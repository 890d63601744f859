"""From the functions of a tile to compiled kernels, serial and parallel, cached on disk.

All tile kernels take the same arguments, so that one driver (`tiles`) and one parallel launcher
serve them. An output that is not wanted has no elements. A kernel returns the first row of the
batch that failed the checks, or the number of rows if none did.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
from numba import from_dtype, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastemd.kernels import cpu, dense, edges, lanes, power, rows
from fastemd.kernels.cpu import TILES, Job
from fastemd.kernels.dense import matrices
from fastemd.kernels.lanes import LANES, lane
from fastemd.kernels.rows import is_finite, is_histogram_pair, locate
from fastemd.plan import Plan


@register_jitable
def first_bad_row(job, first, n_rows, tolerance):
    for r in range(min(LANES, n_rows - first)):
        if not is_histogram_pair(job.p, job.p_rows, job.q_rows, r, tolerance):
            return first + r
        if job.v.size and not is_finite(job.v, job.v_rows, r):
            return first + r
    return n_rows


@register_jitable
def lanes_of(n_vectors):
    """Scratch for lane vectors that start where a cache line does, else each lies in two."""
    room = np.empty((n_vectors + 1) * LANES)
    skip = (-room.ctypes.data) % (8 * LANES) // 8
    return room[skip : skip + n_vectors * LANES]


@register_jitable
def tiles(tile, plan, p, q, v, rho, value, out, project, tolerance, chunk, n_chunks):
    """Every `n_chunks`-th tile from tile `chunk` on; stop at the first bad row and return it."""
    n_rows, n_bins, n_inner = p.shape[0] * p.shape[1], p.shape[2], plan.weight.size
    with_v = 1 if v.size else 0
    starts = np.empty((5, LANES), np.intp)
    zeros = np.zeros((1, 1, n_bins * with_v), p.dtype)
    job = Job(
        p, q, v, zeros, out, rho, project,
        starts[0], starts[1], starts[2], starts[3], starts[4],
        lanes_of(n_bins), lanes_of(n_inner),
        lanes_of(n_bins * with_v), lanes_of(n_inner * with_v), lanes_of(out.shape[2]),
    )  # fmt: skip
    locate(zeros, 0, job.zero_rows)
    for first in range(chunk * LANES, n_rows, n_chunks * LANES):
        locate(p, first, job.p_rows)
        locate(q, first, job.q_rows)
        if with_v:
            locate(v, first, job.v_rows)
        if out.size:
            locate(out, first, job.out_rows)
        if tolerance >= 0.0:
            bad = first_bad_row(job, first, n_rows, tolerance)
            if bad < n_rows:
                return bad
        values = tile(plan, job)
        for row in range(first, min(first + LANES, value.size)):
            value[row] = lane(values, row - first)
    return n_rows


# A part of the cache's key, since Numba looks for changes in this file only.
SOURCE_DIGEST = hashlib.sha256(
    b"".join(
        Path(str(module.__file__)).read_bytes()
        for module in (edges, power, lanes, rows, cpu, dense)
    )
).hexdigest()


def _rows_kernel(tile):
    digest = SOURCE_DIGEST

    def kernel(chunk, n_chunks, plan, p, q, v, rho, value, out, project, tolerance):
        _ = digest
        return tiles(tile, plan, p, q, v, rho, value, out, project, tolerance, chunk, n_chunks)

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


_FLOATS = {"bin_weight", "bin_share", "weight", "share"}
_PLAN = types.NamedTuple(
    [_array(np.float64 if f in _FLOATS else np.intp, 1, readonly=True) for f in Plan._fields], Plan
)


def _arguments(operation, dtype):
    if operation == "hessian":
        return _PLAN, _array(np.float64, 2), _array(dtype, 3), types.float64
    histograms = _array(dtype, 3, "A", readonly=True)
    out = _array(np.float64 if operation == "curvature" else dtype, 3)
    number = types.float64
    return _PLAN, histograms, histograms, histograms, number, _array(dtype, 1), out, number, number


def serial_kernel(operation, dtype):
    """The kernel of an operation for arrays of `dtype`: ``(chunk, n_chunks, *arguments)``."""
    function = _hessian_kernel() if operation == "hessian" else _rows_kernel(TILES[operation])
    # Numba finds machine code by this name, and kernels from its cache must not meet under one.
    function.__qualname__ = f"{operation}_kernel"
    return _compile(function, types.intp(types.intp, types.intp, *_arguments(operation, dtype)))


def parallel_launcher(operation, dtype):
    """What runs a serial kernel in all threads: ``(address, n_chunks, *arguments)``."""
    function = hessian_in_parallel if operation == "hessian" else rows_in_parallel
    signature = types.intp(types.intp, types.intp, *_arguments(operation, dtype))
    return _compile(function, signature, parallel=True)


def address_of(kernel):
    """Where the machine code of a serial kernel starts."""
    compiled = kernel.overloads[kernel.signatures[0]]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@functools.cache  # all operations of one array type share a launcher
def _compile(function, signature, **options):
    try:
        return njit(signature, cache=True, nogil=True, **options)(function)
    except RuntimeError:  # Numba finds no folder it may write its cache to
        return njit(signature, nogil=True, **options)(function)
