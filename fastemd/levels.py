"""Plans -> what the CUDA kernels read: the edges of a tree level by level.

The threads of a row do all edges of a level at once, and wait for each other between two levels. A
level is the height above the bins, so that the flow of an edge is the sum over edges of lower
levels. Every edge sums its own, in order, which gives the same bits every time; no edge has more
than `FAN` below it: where there were more, some are joined by an edge of length 0, which costs
nothing, as seldom as can be and so that the tree hardly grows.
"""

import dataclasses
import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd.flatten import Floats, frozen
from fastemd.plan import Plan

FAN = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """A plan for CUDA; E edges, of which the first N belong to the bins, in L levels."""

    n_edges: int
    n_levels: int  # 0 on a chain
    # The edge above every edge, E; of the edges that are no bin's, where their lists of edges below
    # begin and end, E - N + 1; these lists, E - 1; where the levels begin and end, L + 1; where
    # every edge of the plan is.
    numbers: NDArray[np.int32]
    lengths: Floats  # and shares as in the plan, 2 E
    uploaded: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)  # by device


def levels(plan: Plan, n_bins: int) -> Levels:
    """The levels of a plan."""
    given = plan.weight.size
    weight, share = plan.weight.tolist(), plan.share.tolist()
    if given == n_bins:  # a chain
        no_lists = np.zeros(n_bins, np.int64)
        numbers = [plan.parent, no_lists, [0], np.arange(n_bins)]
        return _packed(n_bins, 0, numbers, weight, share)
    below: list[list[int]] = [[] for _ in range(given)]
    height = [0] * given
    for edge, above in enumerate(plan.parent.tolist()):
        if edge >= n_bins:
            _join(below, edge, height, weight, share)
        if above < given:
            below[above].append(edge)
    n_edges = len(weight)
    inner = sorted(range(n_bins, n_edges), key=height.__getitem__)
    order = [*range(n_bins), *inner]
    number = np.empty(n_edges, np.int64)
    number[order] = np.arange(n_edges)
    lists = [number[below[edge]] for edge in inner]
    above_all = np.full(n_edges, n_edges)
    for edge, others in zip(inner, lists, strict=True):
        above_all[others] = number[edge]
    ends = np.cumsum([0, *map(len, lists)])
    heights = [height[edge] for edge in inner]
    starts = n_bins + np.searchsorted(heights, np.arange(1, heights[-1] + 2))
    numbers = [above_all, ends, *lists, starts, number[:given]]
    weight, share = ([values[edge] for edge in order] for values in (weight, share))
    return _packed(n_edges, heights[-1], numbers, weight, share)


def _packed(
    n_edges: int, n_levels: int, numbers: list[Any], weight: list[float], share: list[float]
) -> Levels:
    """In few arrays, as every one costs time in every launch."""
    packed = np.concatenate(numbers).astype(np.int32)
    return Levels(n_edges, n_levels, packed, frozen([*weight, *share]))


def _join(
    below: list[list[int]],
    edge: int,
    height: list[int],
    weight: list[float],
    share: list[float],
) -> None:
    """Leave at most `FAN` edges below an edge, and note its height."""
    heap = [(height[child], child) for child in below[edge]]
    heapq.heapify(heap)
    take = (len(heap) - FAN - 1) % (FAN - 1) + 2  # the lowest go first; later joins are full ones
    while len(heap) > FAN:
        joined = [heapq.heappop(heap) for _ in range(take)]
        new = len(weight)
        heapq.heappush(heap, (joined[-1][0] + 1, new))
        children = [child for _, child in joined]
        below.append(children)
        height.append(joined[-1][0] + 1)
        weight.append(0.0)
        share.append(sum(share[child] for child in children))
        take = FAN
    below[edge] = [child for _, child in sorted(heap)]
    height[edge] = 1 + max((h for h, _ in heap), default=0)
