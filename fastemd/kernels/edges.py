"""Edge functions: what is computed on an edge between the sweep up and the sweep down.

One source for numbers, SIMD lanes and CUDA: everything here uses only operators, `abs`, `min`,
`max`, `math.copysign` and powers, which `fastemd.kernels.cpu.simd` defines for lanes.

An `EdgeCost` is the cost of an edge as a function of its flow. An edge function gets an `Edge` and
the flow through it. It returns the edge value, which replaces the flow and is what the sweep down
sums, and the two factors of the edge's term in each of two sums over all edges, or None where an
operation has no such sum. Both targets add a term by their own fused multiply-add.

Conventions at ``flow = 0``: the slope is 0 for every `rho` (the subgradient ``sgn(0) = 0`` at
``rho = 1``), and for ``rho < 2`` an edge without flow has no curvature (instead of an infinite
one). Where a power is taken, a flow below the smallest normal number counts as 0. NaN gives NaN.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fastemd.kernels.jitable import jitable_everywhere

SMALLEST_FLOW = 2.0**-1022


class Edge(NamedTuple):
    """One edge, as an edge function sees it."""

    length: Any  # times the factor that `Operation.length_factor` names
    share: Any  # fraction of the bins that are below
    other: Any  # the flow of a second vector, if the operation sweeps one up
    numbers: Any  # Numbers


class Numbers(NamedTuple):
    """Numbers of an operation; all but `project` are computed from `rho` on the host."""

    rho: float
    length_factor: float
    curvature_ratio: float
    cost_factor: float
    project: float  # 1 to conserve the total mass, 0 for the raw derivatives


class EdgeCost(NamedTuple):
    """The cost of an edge: ``length |flow|^rho``, or another convex function of the flow.

    The functions work on numbers, lanes and CUDA. Factors that depend on `rho` alone are computed
    on the host: `length` is that of the edge times ``slope_factor(rho)``, for Hessians times
    ``slope_factor(rho) * curvature_ratio(rho)``.
    """

    slope: Callable[..., Any]  # (flow, length, rho): derivative of the cost
    curvature: Callable[..., Any]  # (flow, length, rho): derivative of the slope / curvature_ratio
    cost: Callable[..., Any]  # (flow, slope, length, rho): two factors of the cost / cost_factor
    constant_curvature: bool = False  # whether the curvature does not depend on the flow
    slope_factor: Callable[[float], float] = lambda rho: 1.0
    curvature_ratio: Callable[[float], float] = lambda rho: 1.0
    cost_factor: Callable[[float], float] = lambda rho: 1.0


# ------------------------------------------------------------------------ powers: length |flow|^rho


@jitable_everywhere
def magnitude(flow, length):
    """Return ``|flow|``; on an edge of length 0, where its power may overflow, 0 (or NaN)."""
    return abs(flow) * (1.0 if length > 0.0 else 0.0)


@jitable_everywhere
def slope_1(flow, length, rho):
    sign = max(min(flow * 2.0**1023, 1.0), -1.0)  # comparisons would take twice the time
    return length * (sign + 0.0 * flow)  # on CUDA, min and max drop NaN


@jitable_everywhere
def slope_2(flow, length, rho):
    return length * flow


@jitable_everywhere
def slope_any(flow, length, rho):
    return math.copysign(length * magnitude(flow, length) ** (rho - 1.0), flow)


@jitable_everywhere
def curvature_constant(flow, length, rho):
    return length + 0.0 * flow


@jitable_everywhere
def curvature_any(flow, length, rho):
    size = magnitude(flow, length)
    flows, none = size >= SMALLEST_FLOW, (size < SMALLEST_FLOW) * 1.0
    return length * (flows * (size + none) ** (rho - 2.0))


@jitable_everywhere
def power_cost(flow, slope, length, rho):
    return flow, slope  # rho times the cost


def _power(slope: Any, curvature: Any) -> EdgeCost:
    return EdgeCost(
        slope,
        curvature,
        power_cost,
        constant_curvature=curvature is curvature_constant,
        slope_factor=lambda rho: rho,
        curvature_ratio=lambda rho: rho - 1.0,
        cost_factor=lambda rho: 1.0 / rho,
    )


# The powers that people use need no `**`. At rho = 1 the curvature is 0, by its ratio.
COSTS = {
    "1": _power(slope_1, curvature_constant),
    "2": _power(slope_2, curvature_constant),
    "any": _power(slope_any, curvature_any),
}


class Cost(NamedTuple):
    """The cost of an edge: the name of a row of `COSTS`, and its parameter."""

    name: str
    rho: float


@functools.lru_cache(maxsize=1024)
def power(rho: float) -> Cost:
    """Return the cost ``length |flow|^rho``."""
    return Cost({1.0: "1", 2.0: "2"}.get(rho, "any"), rho)


# ------------------------------------------------------------------ edge functions, for an EdgeCost
#
# A function with a second edge value returns a pair of them; the second one replaces `edge.other`.


def slope_edge(cost: EdgeCost) -> Any:
    """Compute the slope. Sums: the cost, and the mean of the gradient over the bins."""
    slope, cost_of = cost.slope, cost.cost

    @jitable_everywhere
    def edge_values(edge, flow):
        psi = slope(flow, edge.length, edge.numbers.rho)
        return psi, cost_of(flow, psi, edge.length, edge.numbers.rho), (psi, edge.share)

    return edge_values


def loss_edge(cost: EdgeCost) -> Any:
    """Compute the slope. Sums: the cost, and ``<p - q, D>`` for the derivative D in p."""
    slope, cost_of = cost.slope, cost.cost

    @jitable_everywhere
    def edge_values(edge, flow):
        psi = slope(flow, edge.length, edge.numbers.rho)
        return psi, cost_of(flow, psi, edge.length, edge.numbers.rho), (flow, psi)

    return edge_values


def curvature_edge(cost: EdgeCost) -> Any:
    """Compute the curvature, of which the dense Hessian is made."""
    curvature = cost.curvature

    @jitable_everywhere
    def edge_values(edge, flow):
        return curvature(flow, edge.length, edge.numbers.rho), None, None

    return edge_values


def diagonal_edge(cost: EdgeCost) -> Any:
    """Compute the Hessian's diagonal without its grand mean, which is the second sum."""
    curvature = cost.curvature

    @jitable_everywhere
    def edge_values(edge, flow):
        h, share = curvature(flow, edge.length, edge.numbers.rho), edge.share
        return h * (1.0 - 2.0 * edge.numbers.project * share), None, (h, share * share)

    return edge_values


def product_edge(cost: EdgeCost) -> Any:
    """Multiply the curvature by the flow of `v`. Sum: the mean of the product over the bins."""
    curvature = cost.curvature

    @jitable_everywhere
    def edge_values(edge, flow):
        product = curvature(flow, edge.length, edge.numbers.rho) * edge.other
        return product, None, (product, edge.share)

    return edge_values


def constant_product_edge(cost: EdgeCost) -> Any:
    """Compute the same product where the curvature is the length; the flow is that of `v`."""

    @jitable_everywhere
    def edge_values(edge, flow):
        product = edge.length * flow
        return product, None, (product, edge.share)

    return edge_values


def flow_edge(cost: EdgeCost) -> Any:
    """Return the flow itself."""

    @jitable_everywhere
    def edge_values(edge, flow):
        return flow, None, None

    return edge_values


def coordinate_edge(cost: EdgeCost) -> Any:
    """Multiply the flow by the length, which the layout holds to the power ``1 / rho``."""

    @jitable_everywhere
    def edge_values(edge, flow):
        return flow * edge.length, None, None

    return edge_values


def second_edge(cost: EdgeCost) -> Any:
    """Compute the slope, and the part of the loss's second derivative that the sweep down sums.

    `edge.other` is the flow of r, see `fastemd.kernels.operations.Jacobian`. Sums: ``<r, D>`` and
    ``<r, H r>``.
    """
    slope, curvature = cost.slope, cost.curvature

    @jitable_everywhere
    def edge_values(edge, flow):
        psi, share = slope(flow, edge.length, edge.numbers.rho), edge.other
        h = edge.numbers.curvature_ratio * curvature(flow, edge.length, edge.numbers.rho)
        return (psi, h - 2.0 * (h * share)), (psi, share), (h, share * share)

    return edge_values


def change_edge(cost: EdgeCost) -> Any:
    """Compute the slope, and the curvature times the flow of the change of p, `edge.other`."""
    slope, curvature = cost.slope, cost.curvature

    @jitable_everywhere
    def edge_values(edge, flow):
        h = edge.numbers.curvature_ratio * curvature(flow, edge.length, edge.numbers.rho)
        return (slope(flow, edge.length, edge.numbers.rho), h * edge.other), None, None

    return edge_values
