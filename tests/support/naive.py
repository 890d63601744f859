"""Oracles of the test suite: plain loops and dense matrices, without fastemd and Numba.

A ground space is a `Ground` of plain sequences, with nodes in any order. A function has the name of
the function of fastemd that it checks.
"""

import decimal
import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.optimize import linprog
from scipy.special import logsumexp

SMALLEST_NORMAL = np.finfo(np.float64).tiny


class Ground(NamedTuple):
    """A rooted tree; the parent of the root is -1 and its weight is 0."""

    parent: list
    weight: list
    bin_node: list


def ground(space):
    """Return the tree of a fastemd space."""
    return Ground(space.parent.tolist(), space.weight.tolist(), space.bin_node.tolist())


def chain(n_bins, gaps=None):
    gaps = [1.0] * (n_bins - 1) if gaps is None else list(gaps)
    return Ground([*range(1, n_bins), -1], [*gaps, 0.0], list(range(n_bins)))


# Trees --------------------------------------------------------------------------------------------


def graph(g):
    """Return the undirected networkx graph of a tree."""
    result = nx.Graph()
    result.add_nodes_from(range(len(g.parent)))
    for node, parent in enumerate(g.parent):
        if parent != -1:
            result.add_edge(parent, node, weight=g.weight[node])
    return result


def cost_matrix(g):
    """Return the shortest path lengths between bins."""
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph(g)))
    return np.array([[lengths[a][b] for b in g.bin_node] for a in g.bin_node], dtype=np.float64)


def mean_distance(g):
    """Return the mean of the shortest path lengths over all pairs of different bins."""
    cost = cost_matrix(g)
    lengths = [cost[pair] for pair in itertools.combinations(range(len(cost)), 2)]
    return math.fsum(lengths) / len(lengths)


def reroot(g, root):
    """Return the same undirected tree with another root."""
    undirected = graph(g)
    parent, weight = [-1] * len(g.parent), [0.0] * len(g.parent)
    for above, below in nx.bfs_edges(undirected, root):
        parent[below] = above
        weight[below] = undirected.edges[above, below]["weight"]
    return Ground(parent, weight, list(g.bin_node))


def relabel(g, order):
    """Return the same tree with node `i` renamed to `order[i]`."""
    parent, weight = [-1] * len(order), [0.0] * len(order)
    for node, above in enumerate(g.parent):
        parent[order[node]] = -1 if above == -1 else order[above]
        weight[order[node]] = g.weight[node]
    return Ground(parent, weight, [order[node] for node in g.bin_node])


def subdivide(g, pieces):
    """Divide the edge above every node `i` into `pieces[i]` equal edges by unary nodes."""
    parent, weight = list(g.parent), list(g.weight)
    for node, count in enumerate(pieces):
        if g.parent[node] == -1:
            continue
        below = node
        weight[node] = g.weight[node] / count
        for _ in range(count - 1):
            parent.append(parent[below])
            weight.append(g.weight[node] / count)
            parent[below] = len(parent) - 1
            below = len(parent) - 1
    return Ground(parent, weight, list(g.bin_node))


def ancestors(g):
    """Return A without the row of the root: A[i, k] = 1 if bin k is below the edge above node i."""
    matrix = np.zeros((len(g.parent), len(g.bin_node)))
    for k, bin_node in enumerate(g.bin_node):
        node = bin_node
        while node != -1:
            matrix[node, k] = 1.0
            node = g.parent[node]
    return matrix[_edges(g)]


def _edges(g):
    return [node for node, parent in enumerate(g.parent) if parent != -1]


def _weights(g):
    return np.array([g.weight[node] for node in _edges(g)], dtype=np.float64)


# The functions, dense, in float64 -----------------------------------------------------------------


def emd_flow(p, q, g):
    return (np.asarray(p, np.float64) - np.asarray(q, np.float64)) @ ancestors(g).T


def _slope(phi, w, rho):
    phi = np.where(w > 0, phi, 0 * phi)  # an edge of length 0 has cost 0
    return rho * w * np.sign(phi) * np.abs(phi) ** (rho - 1)


def _curvature(phi, w, rho):
    if rho == 1:
        return np.zeros_like(phi)
    if rho == 2:
        return np.broadcast_to(2 * w, phi.shape)
    phi = np.where(w > 0, phi, 0 * phi)
    size = np.where(np.abs(phi) < SMALLEST_NORMAL, np.inf if rho < 2 else 0.0, np.abs(phi))
    return rho * (rho - 1) * w * size ** (rho - 2)


def _centre(x, project):
    return x - x.mean(axis=-1, keepdims=True) if project else x


def emd(p, q, g, rho):
    phi = np.where(_weights(g) > 0, emd_flow(p, q, g), 0)
    return (_weights(g) * np.abs(phi) ** rho).sum(axis=-1)


def emd_grad(p, q, g, rho, project=True):
    return _centre(_slope(emd_flow(p, q, g), _weights(g), rho) @ ancestors(g), project)


def emd_value_and_grad(p, q, g, rho, project=True):
    return emd(p, q, g, rho), emd_grad(p, q, g, rho, project)


def emd_hessian(p, q, g, rho, project=True):
    a, h = ancestors(g), _curvature(emd_flow(p, q, g), _weights(g), rho)
    if project:
        a = a - a.mean(axis=1, keepdims=True)
    return np.einsum("ek,...e,el->...kl", a, h, a)


def emd_hessian_diag(p, q, g, rho, project=True):
    return np.einsum("...kk->...k", emd_hessian(p, q, g, rho, project)).copy()


def emd_hvp(p, q, v, g, rho, project=True):
    hessian = emd_hessian(p, q, g, rho, project)
    return np.einsum("...kl,...l->...k", hessian, np.asarray(v, np.float64))


def embed(p, g, rho):
    return _weights(g) ** (1 / rho) * emd_flow(p, np.zeros_like(p, np.float64), g)


def emd_length_grad(p, q, g, rho, upstream=1.0):
    powers = np.abs(emd_flow(p, q, g)) ** rho
    terms = np.broadcast_to(upstream, powers.shape[:-1])[..., None] * powers
    return terms.sum(axis=tuple(range(terms.ndim - 1)))


def size(name, arrays, g, rho):
    """Return the scale of rounding errors of a result: the sum of the sizes of its terms."""
    w, masses = _weights(g), [np.abs(np.asarray(x, np.float64)).sum(-1).max() for x in arrays]
    if name in ("emd_flow", "embed"):
        return max(masses) * (w.max(initial=1.0) ** (1 / rho) if name == "embed" else 1.0)
    phi = emd_flow(*arrays[:2], g)
    if name in ("emd", "emd_grad", "emd_value_and_grad"):
        return np.abs(_slope(phi, w, rho)).sum(-1).max()
    terms = np.abs(_curvature(phi, w, rho)).sum(-1).max()
    return terms * (masses[2] if name == "emd_hvp" else 1.0)


# Losses -------------------------------------------------------------------------------------------


def histogram(x, normalize):
    x = np.asarray(x, np.float64)
    if normalize == "softmax":
        x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x if normalize is None else x / x.sum(axis=-1, keepdims=True)


def one_hot(target, n_bins):
    target = np.asarray(target)
    return np.eye(n_bins)[target] if target.dtype.kind in "iu" else target.astype(np.float64)


def emd_loss_rows(x, target, g, rho=2, normalize="softmax", cross_entropy=0.0):
    """Return the losses of all rows and their gradients: a Jacobian times the gradient in p."""
    p = histogram(x, normalize)
    q = np.broadcast_to(one_hot(target, p.shape[-1]), p.shape)
    value, grad = emd_value_and_grad(p, q, g, rho, project=False)
    x, n = np.asarray(x, np.float64), p.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        if normalize == "softmax":
            surprise = logsumexp(x, axis=-1, keepdims=True) - x
        else:
            surprise = -np.log(p)
        value = value + cross_entropy * np.where(q > 0, q * surprise, 0).sum(-1)
        jacobian = np.broadcast_to(np.eye(n), (*p.shape, n))  # dp_k / dx_l
        if normalize == "softmax":
            jacobian = p[..., :, None] * (jacobian - p[..., None, :])
        elif normalize == "l1":
            jacobian = (jacobian - p[..., :, None]) / x.sum(-1)[..., None, None]
        else:
            jacobian = jacobian - 1 / n
            grad = grad - cross_entropy * np.where(q > 0, q / p, 0)
        grad = np.einsum("...k,...kl->...l", grad, jacobian)
        if normalize == "softmax":
            grad = grad + cross_entropy * (p - q)
        elif normalize == "l1":
            ratio = np.where(q > 0, q / p, 0)
            grad = grad + cross_entropy * (1 - ratio) / x.sum(-1, keepdims=True)
    return value, grad


def torch_loss(
    x, q, g, rho=2, normalize="softmax", cross_entropy=0.0, class_weight=None,
    label_smoothing=0.0, root=False, lengths=None,
):  # fmt: skip
    """Return the losses of all rows, differentiable by torch, also in lengths that are given."""
    import torch

    lengths = torch.tensor(_weights(g)) if lengths is None else lengths

    n = x.shape[-1]
    q = (1 - label_smoothing) * q + label_smoothing / n
    of_class = torch.ones(n, dtype=x.dtype) if class_weight is None else torch.tensor(class_weight)
    of_row = 1.0 if class_weight is None else (q * of_class).sum(-1)

    if normalize == "softmax":
        log_p = x.log_softmax(-1)
        p = log_p.exp()
    else:
        p = x / x.sum(-1, keepdim=True) if normalize == "l1" else x
        log_p = p.log()
    flow = (p - q) @ torch.tensor(ancestors(g)).T
    size = flow.abs() if rho != 2 else flow
    loss = (lengths * size**rho).sum(-1)
    loss = of_row * (loss ** (1 / rho) if root else loss)
    return loss - cross_entropy * (of_class * q * log_p).sum(-1) if cross_entropy else loss


# Exact rational arithmetic ------------------------------------------------------------------------


def _power(x, exponent):
    """Return x >= 0 to a power: exact for an integer, otherwise to 50 digits."""
    if exponent == int(exponent):
        return x ** int(exponent)
    if x == 0:
        return Fraction(0)
    with decimal.localcontext(prec=50):
        root = decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)
        return Fraction(root ** decimal.Decimal(exponent))


def exact_flow(p, q, g):
    """Return {node: flow through the edge above it} of one row, as fractions."""
    flow = {node: Fraction(0) for node in _edges(g)}
    for k, bin_node in enumerate(g.bin_node):
        dirt, node = Fraction(float(p[k])) - Fraction(float(q[k])), bin_node
        while g.parent[node] != -1:
            flow[node] += dirt
            node = g.parent[node]
    return flow


def exact_emd(p, q, g, rho):
    flow = exact_flow(p, q, g)
    return sum(
        (Fraction(float(g.weight[i])) * _power(abs(x), rho) for i, x in flow.items()), Fraction(0)
    )


def exact_grad(p, q, g, rho, project=True):
    """Return a list of N fractions."""
    slope = {}
    for i, x in exact_flow(p, q, g).items():
        sign = (x > 0) - (x < 0)
        w = Fraction(float(g.weight[i]))
        slope[i] = Fraction(rho) * w * sign * _power(abs(x), rho - 1) if sign else Fraction(0)
    result = []
    for bin_node in g.bin_node:
        total, node = Fraction(0), bin_node
        while g.parent[node] != -1:
            total += slope[node]
            node = g.parent[node]
        result.append(total)
    mean = sum(result) / len(result) if project else 0
    return [x - mean for x in result]


# Optimal transport in exact rational arithmetic ---------------------------------------------------


def _fractions(values):
    return [Fraction(float(x)) for x in values]


def _balanced(p, q):
    """Return both histograms as fractions, with q scaled to the mass of p."""
    p, q = _fractions(p), _fractions(q)
    return p, [x * sum(p) / (sum(q) or 1) for x in q]


def transport_vertices(p, q):
    """Yield all vertices of eq. 2, as {(i, j): mass}, by spanning trees of sources and sinks."""
    p, q = _balanced(p, q)
    n = len(p)
    arcs = list(itertools.product(range(n), range(n, 2 * n)))
    for tree in itertools.combinations(arcs, 2 * n - 1):
        left, plan, rest = [*p, *q], {}, list(tree)
        while rest:
            degree = Counter(itertools.chain(*rest))
            arc = min(rest, key=lambda arc: min(degree[end] for end in arc))
            leaf = min(arc, key=degree.get)
            if degree[leaf] > 1:
                break  # a cycle
            moved = left[leaf]
            for end in arc:
                left[end] -= moved
            plan[arc[0], arc[1] - n] = moved
            rest.remove(arc)
        if not rest and min(plan.values()) >= 0:
            yield plan


def transport_cost(plan, cost):
    """Return the cost of a transport plan, as a fraction."""
    return sum((moved * Fraction(float(cost[i][j])) for (i, j), moved in plan.items()), Fraction(0))


def exact_transport(p, q, cost):
    """Solve eq. 1-2 for a few bins: the least cost of all vertices, as a fraction."""
    return min(transport_cost(plan, cost) for plan in transport_vertices(p, q))


def is_transport_plan(plan, p, q):
    """Return whether a plan in float64 is an exact transport plan with rounded entries."""
    p, q = _balanced(p, q)
    lines = [*zip(plan, p, strict=True), *zip(plan.T, q, strict=True)]
    return (plan >= 0).all() and all(
        abs(sum(_fractions(line)) - mass)
        <= mass / 2**53 + len(line) * Fraction(1, 2**1075)  # the second term for subnormal numbers
        for line, mass in lines
    )


def is_optimal_transport(plan, cost):
    """Return whether no cycle of added and removed mass makes a transport plan cheaper.

    Bellman-Ford in integers, from all nodes at once: the lengths of the shortest paths converge
    after one round per node unless there is a cycle of negative cost.
    """
    n = len(plan)
    costs = _fractions(np.ravel(cost))
    unit = math.lcm(*(x.denominator for x in costs))
    arcs = []
    for (i, j), x in zip(np.ndindex(n, n), costs, strict=True):
        arcs.append((i, n + j, int(x * unit)))
        if plan[i, j] > 0:
            arcs.append((n + j, i, -int(x * unit)))
    length = [0] * (2 * n)
    for _ in range(2 * n):
        settled = True
        for start, end, x in arcs:
            if length[start] + x < length[end]:
                length[end] = length[start] + x
                settled = False
        if settled:
            return True
    return False


# Sinkhorn: one row, plain NumPy ------------------------------------------------------------------


def sinkhorn(p, q, cost, lam, n_iter):
    """Run algorithm 1, line by line, and return the value and the gradient."""
    kernel = np.exp(-lam * cost - 1)
    u = np.ones_like(p)
    for _ in range(n_iter):
        u = _ratio(p, kernel @ _ratio(q, kernel.T @ u))
    v = _ratio(q, kernel.T @ u)
    with np.errstate(divide="ignore"):
        return np.sum(u * ((kernel * cost) @ v)), np.log(u) / lam


def _ratio(mass, sums):
    return np.where(mass > 0, mass / sums, 0)


def log_sinkhorn(p, q, cost, lam, n_iter):
    """Run the same on logarithms and return the value, the gradient and the transport plan.

    A large lambda is reached in stages: each doubles it, and ends if the marginal differs from p by
    at most 1e-4 or the share of iterations is used. A stage starts by extrapolating the last two.
    """
    lams = [lam]
    while lam * cost.max() > 700 and lams[0] * cost.max() > 100:
        lams = [lams[0] / 2, *lams]
    ends, done = [(-1.0, np.zeros(len(p))), (0.0, np.zeros(len(p)))], 0
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = np.log(p), np.log(q)
        for stage, lam in enumerate(lams, 1):
            (lam_0, phi_0), (lam_1, phi_1) = ends[-2:]
            phi = phi_1 + (phi_1 - phi_0) / (lam_1 - lam_0) * (lam - lam_1)
            phi = np.where(phi_1 == -np.inf, -np.inf, phi)
            while done < n_iter * stage // len(lams):
                psi = log_q - logsumexp(phi[:, None] - lam * cost - 1, axis=0)
                log_sums = logsumexp(psi[None, :] - lam * cost - 1, axis=1)
                missed = np.abs(np.exp(phi + log_sums) - p).sum() / p.sum()
                phi = log_p - log_sums
                done += 1
                if missed <= 1e-4 and stage < len(lams):
                    break
            ends.append((lam, phi))
    psi = log_q - logsumexp(phi[:, None] - lam * cost - 1, axis=0)
    plan = np.exp(phi[:, None] + psi[None, :] - lam * cost - 1)
    return (plan * cost).sum(), phi / lam, plan


# The linear programme and differences -------------------------------------------------------------


def linear_programme(p, q, cost):
    """Solve eq. 1-2 for one row: the least cost of moving the histogram p to q."""
    n = len(p)
    sums = np.zeros((2 * n, n * n))
    for k in range(n):
        sums[k, k * n : (k + 1) * n] = 1.0
        sums[n + k, k::n] = 1.0
    # One of the 2 N sums follows from the others; with it, rounding could make them infeasible.
    solution = linprog(
        np.ravel(cost), A_eq=sums[:-1], b_eq=np.concatenate([p, q])[:-1], method="highs"
    )
    assert solution.success, solution.message
    return solution.fun


def central_difference(f, x, direction, step):
    """Return the derivative of f at x along a direction, with an error of order step^2."""
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)
