"""Make the CPU kernels and compile them, or load them from the cache on disk.

A kernel processes one of several equal parts of the batch, ``(chunk, n_chunks, *arguments)``, and
returns the first invalid row, or the number of rows. There are three kinds, with different
arguments: on histograms, losses, and the dense Hessian.
"""

import functools

import numpy as np
from numba import from_dtype, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastemd import layout as layouts
from fastemd.kernels import caching, edges, operations
from fastemd.kernels.cpu import checks, hessian, losses, row_io, simd, sweeps, tiles
from fastemd.kernels.cpu.losses import LOSSES, Loss
from fastemd.kernels.cpu.simd import address
from fastemd.kernels.cpu.tiles import run_tiles
from fastemd.kernels.edges import COSTS, Numbers
from fastemd.kernels.operations import OPERATIONS

# A part of the cache's key: the code of this module and of those whose functions kernels call.
SOURCES = (checks, hessian, losses, row_io, simd, sweeps, tiles, edges, operations, layouts)
DIGEST = caching.digest_of_code(__name__, *(module.__name__ for module in SOURCES))


# By the character of the type: hashing the type itself takes longer than all the rest of a call.
@functools.cache
def serial_kernel(operation, is_chain, cost, narrow, char):
    """Return a compiled kernel: ``(chunk, n_chunks, *arguments)``."""
    if operation == "hessian":
        function = hessian_kernel()
    else:
        function = tile_kernel(operation, is_chain, cost, narrow)
    # Numba finds machine code by this name, so kernels from the cache must have different ones.
    space, lanes = "chain" if is_chain else "tree", "narrow" if narrow else "wide"
    function.__qualname__ = "_".join((operation, space, cost, lanes))
    return _compiled(function, _signature(operation, np.dtype(char)))


@functools.cache
def parallel_kernel(operation, is_chain, cost, narrow, char):
    """Return what runs a kernel in all threads: ``(n_chunks, *arguments)``."""
    kernel = serial_kernel(operation, is_chain, cost, narrow, char)
    code = kernel.overloads[kernel.signatures[0]]  # kept alive by the cache
    address_of_code = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
    launcher = histograms_in_parallel
    if operation == "hessian":
        launcher = hessian_in_parallel
    elif operation in LOSSES:
        launcher = losses_in_parallel
    signature = _signature(operation, np.dtype(char))
    return functools.partial(_compiled(launcher, signature, parallel=True), address_of_code)


@functools.cache  # all operations with the same arguments share a launcher
def _compiled(function, signature, **options):
    return caching.compiled(function, signature, DIGEST, **options)


# ----------------------------------------------------------------------------------------- kernels


def tile_kernel(operation, is_chain, cost, narrow):
    """Make the kernel of an operation on histograms, or of a loss."""
    place, row = simd.narrow if narrow else simd.wide, OPERATIONS[operation]
    if operation in LOSSES:
        make_sweep, n_scratch = LOSSES[operation]
        return loss_kernel(place, n_scratch, make_sweep(row, COSTS[cost], is_chain))
    sweep = sweeps.histogram_sweep(row, COSTS[cost], is_chain)
    return histogram_kernel(place, 2 if row.other else 1, checks.pair_check(row.pairs), sweep)


def histogram_kernel(place, n_scratch, check, sweep):
    def kernel(
        chunk, n_chunks, edges, p, q, v, rho, length_factor, curvature_ratio, cost_factor,
        value, out, project, tolerance,
    ):  # fmt: skip
        numbers = Numbers(rho, length_factor, curvature_ratio, cost_factor, project)
        return run_tiles(
            place, n_scratch, check, sweep, chunk, n_chunks, edges, p, q, v, numbers, value, out,
            tolerance, None,
        )  # fmt: skip

    return kernel


def loss_kernel(place, n_scratch, sweep):
    check = losses.first_invalid_row

    def kernel(
        chunk, n_chunks, edges, x, target, v, labels, row_weights, rho, length_factor,
        curvature_ratio, cost_factor, value, out, normalize, cross_entropy, tolerance,
    ):  # fmt: skip
        numbers = Numbers(rho, length_factor, curvature_ratio, cost_factor, 1.0)
        loss = Loss(
            address(row_weights), address(labels), labels.size > 0, normalize, cross_entropy
        )
        return run_tiles(
            place, n_scratch, check, sweep, chunk, n_chunks, edges, x, target, v, numbers, value,
            out, tolerance, loss,
        )  # fmt: skip

    return kernel


def hessian_kernel():
    def kernel(chunk, n_chunks, edges, order, curvatures, out, project):
        return hessian.fill_matrices(chunk, n_chunks, edges, order, curvatures, out, project)

    return kernel


# ------------------------------------------------------------------------- the same in all threads
#
# A kernel is compiled once, for one thread; the parallel launchers call its machine code by
# address. (Called by name it would be compiled twice more: 6 s more per operation.)


def histograms_in_parallel(
    code, n_chunks, edges, p, q, v, rho, length_factor, curvature_ratio, cost_factor, value, out,
    project, tolerance,
):  # fmt: skip
    invalid = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        invalid[chunk] = call(
            code, np.intp(chunk), n_chunks, edges, p, q, v, rho, length_factor, curvature_ratio,
            cost_factor, value, out, project, tolerance,
        )  # fmt: skip
    return invalid.min()


def losses_in_parallel(
    code, n_chunks, edges, x, target, v, labels, row_weights, rho, length_factor, curvature_ratio,
    cost_factor, value, out, normalize, cross_entropy, tolerance,
):  # fmt: skip
    invalid = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        invalid[chunk] = call(
            code, np.intp(chunk), n_chunks, edges, x, target, v, labels, row_weights, rho,
            length_factor, curvature_ratio, cost_factor, value, out, normalize, cross_entropy,
            tolerance,
        )  # fmt: skip
    return invalid.min()


def hessian_in_parallel(code, n_chunks, edges, order, curvatures, out, project):
    done = np.empty(n_chunks, np.intp)
    for chunk in prange(n_chunks):
        done[chunk] = call(
            code, np.intp(chunk), n_chunks, edges, order, curvatures, out, project
        )  # fmt: skip
    return done.min()


@intrinsic
def call(typingctx, code, *arguments):
    """Call the compiled kernel at the address `code`, which returns an intp."""
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

    return types.intp(code, types.StarArgTuple(types_of_arguments)), codegen


# ------------------------------------------------------------------------------------------- types


def _array(dtype, ndim, layout="C", readonly=False):
    return types.Array(from_dtype(np.dtype(dtype)), ndim, layout, readonly=readonly)


def _indices():
    return _array(np.intp, 1, readonly=True)


_LENGTHS = _array(np.float64, 1, readonly=True)
_EDGES = types.NamedTuple([_indices(), _LENGTHS, _LENGTHS], layouts.Edges)
_BIN_ORDER = types.NamedUniTuple(_indices(), 3, layouts.BinOrder)
_NUMBERS = (types.float64,) * 4  # the first four of `Numbers`


def _signature(operation, dtype):
    """Return the signature of the kernel and, with the address for `chunk`, of its launcher."""
    real = types.float64
    rows, out = _array(dtype, 3, "A", readonly=True), _array(dtype, 3)
    if operation == "hessian":
        arguments = _EDGES, _BIN_ORDER, _array(np.float64, 2), out, real
    elif operation in LOSSES:
        numbers = _array(np.float64, 1)
        start = _EDGES, rows, rows, rows, _array(np.int64, 1, readonly=True)
        start = *start, _array(np.float64, 1, readonly=True), *_NUMBERS
        arguments = *start, numbers, out, types.intp, real, real
    else:
        if OPERATIONS[operation].output == "edges":
            out = _array(np.float64, 3)
        start = _EDGES, rows, rows, rows, *_NUMBERS
        arguments = *start, _array(dtype, 1), out, real, real
    return types.intp(types.intp, types.intp, *arguments)
