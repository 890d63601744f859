"""The functions applied on every edge: one source for the CPU, CUDA and plain Python.

`x` is the flow through an edge, `rho >= 1` the power, and `w >= 0` the edge's length times a factor
that depends on `rho` alone, so that nobody multiplies by it more than once. All are written in what
`fastemd.kernels.lanes` can do, too, so `x` may be a number or a vector of them. Conventions at
``x = 0``: the slope is 0 for every `rho` (the subgradient ``sgn(0) = 0`` at ``rho = 1``), and for
``rho < 2`` an edge without flow adds no curvature (instead of an infinite one). A flow below the
smallest normal number counts as none where a power is taken, and less than 1 as a sign.

The powers that people use need no power: they have functions of their own. `SLOPE` and `CURVATURE`
name the function for a power; any power but 1 and 2 is "any". With the factor `rho (rho - 1)` in
`w`, 1 and 2 share a curvature.
"""

import math

from numba.extending import register_jitable

SMALLEST_FLOW = 2.0**-1022  # below the smallest normal float64, a flow is none


@register_jitable
def size(x, w):
    """The size of a flow; on an edge of length 0, where its power may overflow, 0 (or NaN)."""
    return abs(x) * (1.0 if w > 0.0 else 0.0)


# The slope ``rho length sgn(x) |x|^(rho - 1)``; the edge's cost is x slope / rho.


@register_jitable
def slope_factor(rho):
    return rho


@register_jitable
def slope_1(x, w, rho):
    return w * max(min(x * 2.0**1023, 1.0), -1.0)  # comparisons would take twice the time


@register_jitable
def slope_2(x, w, rho):
    return w * x


@register_jitable
def slope_any(x, w, rho):
    return math.copysign(w * size(x, w) ** (rho - 1.0), x)


# The curvature ``rho (rho - 1) length |x|^(rho - 2)``, the derivative of the slope.


@register_jitable
def curvature_factor(rho):
    return rho * (rho - 1.0)


@register_jitable
def curvature_constant(x, w, rho):
    return w + 0.0 * x


@register_jitable
def curvature_any(x, w, rho):
    flow = size(x, w)
    flows, none = flow >= SMALLEST_FLOW, (flow < SMALLEST_FLOW) * 1.0
    return w * (flows * (flow + none) ** (rho - 2.0))


# Both, from the factor of the slope.


@register_jitable
def bend_1(x, w, rho):
    return slope_1(x, w, rho), 0.0 * x


@register_jitable
def bend_2(x, w, rho):
    return slope_2(x, w, rho), curvature_constant(x, w, rho)


@register_jitable
def bend_any(x, w, rho):
    return slope_any(x, w, rho), (rho - 1.0) * curvature_any(x, w, rho)


# Nothing happens on the edges of `emd_flow`; `embed` multiplies by a length as it is.


@register_jitable
def no_factor(rho):
    return 1.0


SLOPE = {"1": slope_1, "2": slope_2, "any": slope_any}
CURVATURE = {"1": curvature_constant, "2": curvature_constant, "any": curvature_any}
BEND = {"1": bend_1, "2": bend_2, "any": bend_any}
