"""Make the CPU kernels and compile them, or load them from the cache on disk.

A kernel, ``(launcher, n_threads, n_chunks, *arguments)``, processes the batch in `n_chunks` equal
parts and returns what `threads.run_chunks` does. There are three kinds, with different arguments:
on histograms, losses, and the dense Hessian.
"""

import functools

import numpy as np
from numba import from_dtype, types

from fastemd import layout as layouts
from fastemd.kernels import caching, edges, operations
from fastemd.kernels import jitable as jitables
from fastemd.kernels.cpu import (
    checks,
    hessian,
    losses,
    pairwise,
    powers,
    references,
    row_io,
    simd,
    sweeps,
    threads,
    tiles,
)
from fastemd.kernels.cpu.losses import LOSSES, Loss
from fastemd.kernels.cpu.simd import address
from fastemd.kernels.cpu.threads import run_chunks
from fastemd.kernels.cpu.tiles import run_tiles
from fastemd.kernels.edges import COSTS, Numbers
from fastemd.kernels.jitable import jitable
from fastemd.kernels.operations import OPERATIONS

# A part of the cache's key: the code of this module and of those whose functions kernels call.
SOURCES = (
    checks, hessian, losses, pairwise, powers, references, row_io, simd, sweeps, threads, tiles,
    edges, jitables, operations, layouts,
)  # fmt: skip
DIGEST = caching.digest_of_code(__name__, *(module.__name__ for module in SOURCES))


# By the character of the type: hashing the type itself takes longer than all the rest of a call.
@functools.cache
def kernel(operation, is_chain, cost, narrow, char):
    """Return a compiled kernel: ``(launcher, n_threads, n_chunks, *arguments)``.

    It does not check the types of its arguments.
    """
    if operation == "hessian":
        function = hessian_kernel()
    elif operation in PAIRWISE:
        function = PAIRWISE[operation](is_chain, cost)
    else:
        place = simd.at(1 if narrow else 8, char == "f")
        function = tile_kernel(operation, is_chain, cost, place)
    function.__qualname__ = _name(operation, is_chain, cost, narrow)
    signature = _signature(operation, np.dtype(char))
    compiled = caching.compiled(function, signature, DIGEST)
    # The dispatcher would look at the types of all arguments again: 1 us for a pair.
    return compiled.overloads[signature.args].entry_point


def is_cached(operation, is_chain, cost, narrow, char):
    """Return whether `kernel` finds a kernel in the cache."""
    name = f"{__name__}.{_name(operation, is_chain, cost, narrow)}"
    return caching.is_cached(name, _signature(operation, np.dtype(char)), DIGEST)


def _name(operation, is_chain, cost, narrow):
    """Name a kernel. Numba finds machine code by this name, so no two kernels have the same."""
    space, lanes = "chain" if is_chain else "tree", "narrow" if narrow else "wide"
    return f"{operation}_{space}_{cost}_{lanes}"


@functools.cache
def _compiled_launch():
    return caching.compiled(threads.launch, types.intp(*_INTS), DIGEST, parallel=True)


@functools.cache
def launcher():
    """Return the address of `threads.launch`."""
    code = _compiled_launch().overloads[_INTS]
    return code.library.get_pointer_to_function(code.fndesc.llvm_func_name)


# ----------------------------------------------------------------------------------------- kernels


def tile_kernel(operation, is_chain, cost, place):
    """Make the kernel of an operation on histograms, or of a loss."""
    row = OPERATIONS[operation]
    if operation in LOSSES:
        make_sweep, n_scratch = LOSSES[operation]
        return loss_kernel(place, n_scratch, make_sweep(row, COSTS[cost], is_chain))
    sweep = sweeps.histogram_sweep(row, COSTS[cost], is_chain)
    return histogram_kernel(place, 2 if row.other else 1, checks.pair_check(row.pairs), sweep)


def histogram_kernel(place, n_scratch, check, sweep):
    @jitable
    def process(
        chunk, n_chunks, edges, p, q, v, rho, length_factor, curvature_ratio, cost_factor,
        value, out, project, tolerance,
    ):  # fmt: skip
        numbers = Numbers(rho, length_factor, curvature_ratio, cost_factor, project)
        return run_tiles(
            place, n_scratch, check, sweep, chunk, n_chunks, edges, p, q, v, numbers, value, out,
            tolerance, None,
        )  # fmt: skip

    def kernel(
        launcher, n_threads, n_chunks, edges, p, q, v, rho, length_factor, curvature_ratio,
        cost_factor, value, out, project, tolerance,
    ):  # fmt: skip
        arguments = (
            edges, p, q, v, rho, length_factor, curvature_ratio, cost_factor, value, out, project,
            tolerance,
        )  # fmt: skip
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


def loss_kernel(place, n_scratch, sweep):
    check = losses.first_invalid_row

    @jitable
    def process(
        chunk, n_chunks, edges, x, target, v, labels, row_weights, rho, length_factor,
        curvature_ratio, cost_factor, value, out, class_weights, weighted, sum_of_weights,
        normalize, root, cross_entropy, label_smoothing, tolerance,
    ):  # fmt: skip
        numbers = Numbers(rho, length_factor, curvature_ratio, cost_factor, 1.0)
        n_bins = x.shape[2]
        loss = Loss(
            address(row_weights), address(labels), labels.size > 0, normalize, cross_entropy,
            1.0 - label_smoothing, label_smoothing / n_bins, root, address(class_weights),
            weighted != 0, sum_of_weights,
        )  # fmt: skip
        return run_tiles(
            place, n_scratch, check, sweep, chunk, n_chunks, edges, x, target, v, numbers, value,
            out, tolerance, loss,
        )  # fmt: skip

    def kernel(
        launcher, n_threads, n_chunks, edges, x, target, v, labels, row_weights, rho, length_factor,
        curvature_ratio, cost_factor, value, out, class_weights, weighted, sum_of_weights,
        normalize, root, cross_entropy, label_smoothing, tolerance,
    ):  # fmt: skip
        arguments = (
            edges, x, target, v, labels, row_weights, rho, length_factor, curvature_ratio,
            cost_factor, value, out, class_weights, weighted, sum_of_weights, normalize, root,
            cross_entropy, label_smoothing, tolerance,
        )  # fmt: skip
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


def hessian_kernel():
    process = hessian.fill_matrices

    def kernel(launcher, n_threads, n_chunks, edges, order, curvatures, out, project):
        arguments = edges, order, curvatures, out, project
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


def masses_kernel(is_chain, cost):
    check, sweep = checks.pair_check(False), pairwise.masses_sweep(is_chain, cost)
    return histogram_kernel(simd.at(pairwise.LANES), 1, check, sweep)


def counting_kernel(is_chain, cost):
    process = pairwise.count_rows

    def kernel(launcher, n_threads, n_chunks, masses, counts):
        return run_chunks(launcher, n_threads, n_chunks, process, (masses, counts))

    return kernel


def filling_kernel(is_chain, cost):
    process = pairwise.fill_rows

    def kernel(launcher, n_threads, n_chunks, masses, dense, sparse, panels, end_of, row, mass):
        arguments = masses, dense, sparse, panels, end_of, row, mass
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


def sparse_kernel(is_chain, cost):
    process = pairwise.sweep_sparse_rows

    def kernel(
        launcher, n_threads, n_chunks, parent, length, indptr, indices, data, bins, reference, slot,
        presence, start, panels, edge, mass,
    ):  # fmt: skip
        arguments = (
            parent, length, indptr, indices, data, bins, reference, slot, presence, start, panels,
            edge, mass,
        )  # fmt: skip
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


def pairs_kernel(is_chain, cost):
    process = pairwise.sums_over_edges(*pairwise.TERMS[cost])

    def kernel(launcher, n_threads, n_chunks, a, b, lengths, exponent, same, sums, norms):
        arguments = a, b, lengths, exponent, same, sums, norms
        return run_chunks(launcher, n_threads, n_chunks, process, arguments)

    return kernel


# The kernels for all pairs, which compute in float64 only.
PAIRWISE = {
    "masses": masses_kernel,
    "count": counting_kernel,
    "fill": filling_kernel,
    "sparse": sparse_kernel,
    "pairs": pairs_kernel,
}


# ------------------------------------------------------------------------------------------- types


def _array(dtype, ndim, layout="C", readonly=False):
    return types.Array(from_dtype(np.dtype(dtype)), ndim, layout, readonly=readonly)


def _indices():
    return _array(np.intp, 1, readonly=True)


_LENGTHS = _array(np.float64, 1, readonly=True)
_EDGES = types.NamedTuple([_indices(), _LENGTHS, _LENGTHS], layouts.Edges)
_BIN_ORDER = types.NamedUniTuple(_indices(), 3, layouts.BinOrder)
_REALS, _PANELS = _array(np.float64, 1), _array(np.float64, 3)
_INTEGERS, _ROW_NUMBERS = _array(np.int64, 1), _array(np.int32, 1)
_ROWS = types.NamedTuple([_PANELS, _INTEGERS, _ROW_NUMBERS, *[_REALS] * 4], pairwise.Rows)
_PAIR_LENGTHS = types.NamedUniTuple(_REALS, 2, pairwise.Lengths)
_INTS = (types.intp,) * 3
_NUMBERS = (types.float64,) * 4  # the first four of `Numbers`


def _signature(operation, dtype):
    """Return the signature of a kernel."""
    real = types.float64
    rows, out = _array(dtype, 3, "A", readonly=True), _array(dtype, 3, "A")
    if operation == "hessian":
        arguments = _EDGES, _BIN_ORDER, _array(np.float64, 2), out, real
    elif operation == "count":
        arguments = _PANELS, _array(np.float64, 2)
    elif operation == "fill":
        arguments = _PANELS, _INTEGERS, _INTEGERS, _PANELS, _INTEGERS, _ROW_NUMBERS, _REALS
    elif operation == "sparse":
        rows = _INTEGERS, _INTEGERS, _REALS, _INTEGERS, _REALS, _INTEGERS, types.intp
        arguments = _indices(), _LENGTHS, *rows, _INTEGERS, _PANELS, _ROW_NUMBERS, _REALS
    elif operation == "pairs":
        sums = _array(np.float64, 2)
        arguments = _ROWS, _ROWS, _PAIR_LENGTHS, real, types.intp, sums, sums
    elif operation in LOSSES:
        numbers = _array(np.float64, 1)
        start = _EDGES, rows, rows, rows, _array(np.int64, 1, readonly=True)
        start = *start, _array(np.float64, 1, readonly=True), *_NUMBERS
        class_weights = _array(np.float64, 1, readonly=True)
        options = types.intp, real, types.intp, types.intp, real, real, real
        arguments = *start, numbers, out, class_weights, *options
    else:
        if operation == "masses" or OPERATIONS[operation].output == "edges":
            out = _array(np.float64, 3, "A")
        start = _EDGES, rows, rows, rows, *_NUMBERS
        arguments = *start, _array(dtype, 1), out, real, real
    return types.UniTuple(types.intp, 2)(*_INTS, *arguments)
