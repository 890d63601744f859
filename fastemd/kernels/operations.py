"""The table of operations, for both targets, and the normalisations of the losses.

Every operation sweeps up the tree, applies an edge function on every edge, and sweeps down. A row
of the table says what the sweep up starts from, which edge function is applied, what the sweep down
starts from, and what is written. To add an operation is to add an edge function and a row.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from fastemd.kernels import edges
from fastemd.kernels.edges import COSTS, Cost, EdgeCost
from fastemd.kernels.jitable import jitable_everywhere


class Operation(NamedTuple):
    """The parts of an operation."""

    edge: Callable[[EdgeCost], Any]  # makes the edge function
    start: str = "p - q"  # what the sweep up starts from: "p - q", "v" or, of a loss, "loss"
    other: str = ""  # what a sweep up before it starts from, whose flow is `Edge.other`: "v"
    length_factor: str = ""  # "slope", "curvature" or "": what multiplies the lengths
    mean: float = -1.0  # the sweep down starts from the second sum times this, if projected
    output: str = "bins"  # one column per "bins", "nodes" (every edge of the tree) or "edges"
    layout: str = "levels"  # the layout whose edges are swept: "levels", "full" or "subtrees"
    pairs: bool = True  # whether p and q are compared; otherwise there is only p


OPERATIONS = {
    "gradient": Operation(edges.slope_edge, length_factor="slope"),
    "hessian_diag": Operation(edges.diagonal_edge, length_factor="curvature", mean=1.0),
    "hvp": Operation(edges.product_edge, other="v", length_factor="curvature"),
    "constant_hvp": Operation(edges.constant_product_edge, start="v", length_factor="curvature"),
    "curvature": Operation(
        edges.curvature_edge, length_factor="curvature", output="edges", layout="subtrees"
    ),
    "flow": Operation(edges.flow_edge, output="nodes", layout="full"),
    "embed": Operation(edges.coordinate_edge, output="nodes", layout="full", pairs=False),
    "loss": Operation(edges.loss_edge, start="loss", length_factor="slope"),
    "loss_diagonal": Operation(edges.second_edge, start="loss", length_factor="slope"),
    "loss_product": Operation(edges.change_edge, start="loss", length_factor="slope"),
}


@functools.lru_cache(maxsize=1024)
def variant(operation: str, cost: Cost) -> tuple[str, str, tuple[float, float, float, float]]:
    """Return which operation and which row of `COSTS` serve an operation, and its `Numbers`.

    Kernels are shared where they would be the same: where the curvature does not depend on the
    flow, a Hessian-vector product needs no `p - q`; at rho = 1 it is 0, by its factor.
    """
    name, rho = cost
    functions = COSTS[name]
    factors = {
        "": 1.0,
        "slope": functions.slope_factor(rho),
        "curvature": functions.slope_factor(rho) * functions.curvature_ratio(rho),
    }
    if operation == "hvp" and functions.constant_curvature:
        operation = "constant_hvp"
    row = OPERATIONS[operation]
    length_factor = factors[row.length_factor]
    numbers = rho, length_factor, functions.curvature_ratio(rho), functions.cost_factor(rho)
    if row.length_factor == "":
        name = "any"
    elif row.length_factor == "curvature" and functions.curvature is COSTS["2"].curvature:
        name = "2"
    return operation, name, numbers


# ---------------------------------------------------------------------------------- normalisations


class Jacobian(NamedTuple):
    """Of a normalisation, in terms of ``y``: p = y scale, a = y a_y + a_1, r = y r_y + r_1.

    The derivative in x of a function of p whose derivative in p is D is ``a (D - <r, D>)``.
    """

    a_y: Any
    a_1: Any
    r_y: Any
    r_1: Any
    depends: Any  # 1 if a depends on x, else 0


NORMALIZATIONS = {"softmax": 0, "l1": 1, None: 2}
SOFTMAX, L1, NONE = NORMALIZATIONS.values()


@jitable_everywhere
def jacobian(normalize, scale, n_bins):
    """Return the Jacobian; `scale` is 1 / sum(y), a number or lanes."""
    zero, one = 0.0 * scale, 0.0 * scale + 1.0
    if normalize == SOFTMAX:  # y = exp(x)
        return Jacobian(scale, zero, scale, zero, one)
    if normalize == L1:  # y = x
        return Jacobian(zero, scale, scale, zero, one)
    return Jacobian(zero, one, zero, zero + 1.0 / n_bins, zero)
