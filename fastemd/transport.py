"""Optimal transport plans between integer masses, in exact arithmetic.

Python's integers do not round. Whether a plan is optimal is therefore decided without a tolerance,
however much the masses and the costs differ in size.
"""

from collections.abc import Sequence
from itertools import cycle, islice, pairwise, product

from fastemd.ground import GroundSpace

Flow = dict[tuple[int, int], int]  # the mass moved, by source and sink
Tree = dict[int, set[int]]  # the neighbours of every node: source i is node i, sink j is node ~j


def match_on_tree(supply: Sequence[int], demand: Sequence[int], space: GroundSpace) -> Flow:
    """Compute an optimal plan on a tree, by matching supply and demand as low as possible.

    Only the surplus or the deficit of a subtree passes the edge above it, which every plan must
    move. Takes O(nodes + N log N + entries of the plan) steps.
    """
    flow: Flow = {}
    left, missing = list(supply), list(demand)
    bin_of = {node: k for k, node in enumerate(space.bin_node.tolist())}
    # Unmatched bins in the subtree of every node; the bin of the node itself is matched first.
    sources: list[list[int]] = [[] for _ in range(space.n_nodes)]
    sinks: list[list[int]] = [[] for _ in range(space.n_nodes)]
    for node, above in enumerate(space.parent.tolist()):
        if node in bin_of:
            sources[node].append(bin_of[node])
            sinks[node].append(bin_of[node])
        while sources[node] and sinks[node]:
            i, j = sources[node][-1], sinks[node][-1]
            if moved := min(left[i], missing[j]):
                flow[i, j] = moved
                left[i] -= moved
                missing[j] -= moved
            if not left[i]:
                sources[node].pop()
            if not missing[j]:
                sinks[node].pop()
        if above >= 0:
            for bins in sources, sinks:
                few, many = sorted((bins[node], bins[above]), key=len)
                many.extend(few)
                bins[above] = many
    return flow


def simplex(supply: Sequence[int], demand: Sequence[int], cost: Sequence[Sequence[int]]) -> Flow:
    """Compute an optimal plan for any costs by the transportation simplex method.

    The arcs of a basis are a spanning tree of sources and sinks. The plan is optimal once no arc
    costs less than the sum of the prices at its ends, where prices are such that arcs of the tree
    cost exactly that: the certificate by linear programming duality.
    """
    sources = [i for i, mass in enumerate(supply) if mass]
    sinks = [j for j, mass in enumerate(demand) if mass]
    if not sources:
        return {}
    # Every source gets a small extra mass, and the last sink takes all of it. No group of sources
    # then has the mass of a group of sinks, so all flows are > 0, every pivot lowers the cost, and
    # the method ends. The extra flow of an arc is between 1 - len(sources) and len(sources).
    scale = 2 * len(sources)
    left = {i: supply[i] * scale + 1 for i in sources}
    missing = {j: demand[j] * scale for j in sinks}
    missing[sinks[-1]] += len(sources)
    flow: Flow = {}
    tree: Tree = {node: set() for node in (*sources, *(~j for j in sinks))}
    for i, j in sorted(product(sources, sinks), key=lambda arc: cost[arc[0]][arc[1]]):
        if moved := min(left[i], missing[j]):
            left[i] -= moved
            missing[j] -= moved
            _add(i, j, moved, flow, tree)
    rows = {i: [cost[i][j] for j in sinks] for i in sources}
    turns = cycle(sources)
    while True:
        parent, price = _prices(sources[0], tree, cost)
        sink_prices = [price[~j] for j in sinks]
        for i in islice(turns, len(sources)):
            reduced = [arc - end for arc, end in zip(rows[i], sink_prices, strict=True)]
            least = min(reduced)
            if least < price[i]:
                _pivot(i, sinks[reduced.index(least)], parent, flow, tree)
                break
        else:
            return {arc: (moved + len(sources) - 1) // scale for arc, moved in flow.items()}


def _add(i: int, j: int, moved: int, flow: Flow, tree: Tree) -> None:
    flow[i, j] = moved
    tree[i].add(~j)
    tree[~j].add(i)


def _arc(node: int, other: int) -> tuple[int, int]:
    return (node, ~other) if node >= 0 else (other, ~node)


def _prices(
    root: int, tree: Tree, cost: Sequence[Sequence[int]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Parents and prices of the nodes; along the tree, two prices sum to the cost of the arc."""
    parent: dict[int, int] = {}
    price = {root: 0}
    order = [root]
    for node in order:  # breadth first: the list grows while it is walked
        above = parent.get(node)
        for other in tree[node]:
            if other != above:
                i, j = _arc(node, other)
                parent[other] = node
                price[other] = cost[i][j] - price[node]
                order.append(other)
    return parent, price


def _pivot(i: int, j: int, parent: dict[int, int], flow: Flow, tree: Tree) -> None:
    """Move as much mass as possible to a new arc, along the cycle that it closes."""
    paths = [i], [~j]
    for path in paths:
        while path[-1] in parent:
            path.append(parent[path[-1]])
    up, down = paths
    while len(up) > 1 and len(down) > 1 and up[-2] == down[-2]:
        up.pop()
        down.pop()
    arcs = [_arc(*ends) for ends in pairwise(up + down[-2::-1])]
    shrinking, growing = arcs[::2], arcs[1::2]
    leaving = min(shrinking, key=lambda arc: flow[arc])
    moved = flow[leaving]
    for arc in shrinking:
        flow[arc] -= moved
    for arc in growing:
        flow[arc] += moved
    del flow[leaving]
    tree[leaving[0]].remove(~leaving[1])
    tree[~leaving[1]].remove(leaving[0])
    _add(i, j, moved, flow, tree)
