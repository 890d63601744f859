"""Write the tables and the picture of docs/alternatives.md: fastemd and its baselines.

    python -m benchmarks.alternatives
    python -m benchmarks.alternatives --quick

The first command takes a few minutes, and writes docs/alternatives.inc and
docs/images/alternatives.png. With ``--quick`` the problems are small, and the tables are only
printed. Libraries that are not installed are left out. The extra ``bench`` has all of them but
dlordinal, which requires torchvision. Its losses work without it::

    pip install --no-deps dlordinal deprecated wrapt

All runs of a problem use the same arrays, and are interleaved in one process. torch uses Numba's
number of threads, XLA all cores, and SciPy, scikit-bio and POT's exact solver use one. Figures are
medians, with half of the interquartile range, per row (a pair of histograms). Slow libraries get
fewer rows. Errors are relative to the values of products with the matrix of ancestors in float64,
which do not use fastemd. That of values is the mean absolute error, relative to the mean. That of
gradients is relative in the Euclidean norm.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse
from scipy.special import softmax
from scipy.stats import wasserstein_distance

import fastemd
from benchmarks.common import histograms, logits, random_tree, timed
from benchmarks.report import machine
from benchmarks.samples import Problem as Samples
from benchmarks.samples import problem as random_samples
from benchmarks.unifrac import run_fastemd, scikit_bio
from fastemd.demo.baselines import ancestor_matrix, available, emd_by_products, installed

DOCS = Path(__file__).parents[1] / "docs"
SINGLE = np.float32
CHAIN_BLUR, TREE_BLUR = 0.01, 0.05  # Sinkhorn's regularisation, relative to the largest distance
VERSIONED = {"POT": "POT", "OTT": "ott-jax", "geomloss": "geomloss", "dlordinal": "dlordinal"}
VERSIONED |= {"scikit-bio": "scikit-bio", "SciPy": "scipy", "torch": "torch", "jax": "jax"}


class Problem(NamedTuple):
    """Predictions and targets on a ground space, with the exact result."""

    space: Any
    x: np.ndarray  # histograms, or logits if a gradient is wanted
    target: np.ndarray  # histograms or labels
    rho: float
    value: np.ndarray
    grad: np.ndarray | None = None

    def first(self, n_rows):
        """Return the problem of the first rows."""
        grad = None if self.grad is None else self.grad[:n_rows]
        rows = self.x[:n_rows], self.target[:n_rows], self.rho, self.value[:n_rows], grad
        return Problem(self.space, *rows)

    @property
    def positions(self):
        """Return the positions of the bins of a chain."""
        return np.append(0.0, self.space.weight[:-1].cumsum()).astype(SINGLE)


class Method(NamedTuple):
    """A function from a problem to a run, which returns values and gradients."""

    of: Callable[..., Any]
    rows: int | None = None  # of the problem; all by default
    dtype: str = "float32"
    limits: tuple[float, float] = (1e-5, 1e-5)  # of the errors in small problems


class Table(NamedTuple):
    """A problem, and the methods that solve it by name; the first one is fastemd."""

    title: str
    text: str
    problem: Problem
    methods: dict[str, Method]


class Result(NamedTuple):
    """Seconds per row and errors of a method."""

    name: str
    dtype: str
    rows: int
    time: float
    spread: float
    value_error: float
    grad_error: float | None


def solved(space, x, target, rho, gradient=True):
    """Return a problem with its exact result, and the gradient to logits."""
    p = softmax(x.astype(float), axis=-1) if gradient else x.astype(float)
    q = np.eye(space.n_bins)[target] if target.ndim == 1 else target.astype(float)
    ancestors, length = ancestor_matrix(space)
    value, grad = emd_by_products(scipy.sparse.csr_array(ancestors), length, p, q, rho)
    if not gradient:
        return Problem(space, x, target, rho, value)
    return Problem(space, x, target, rho, value, p * (grad - (p * grad).sum(-1, keepdims=True)))


# Distances of ordered histograms ------------------------------------------------------------------


def emd(case):
    return lambda: (fastemd.emd(case.x, case.target, case.space, case.rho), None)


def distance_by_cumsum(case):
    torch = installed("torch")
    p, q = torch.from_numpy(case.x), torch.from_numpy(case.target)
    gaps = torch.from_numpy(case.space.weight[:-1].astype(SINGLE))
    return lambda: (((p - q).cumsum(-1)[:, :-1].abs() * gaps).sum(-1).numpy(), None)


def distance_by_scipy(case):
    at = case.positions.astype(float)
    p, q = case.x.astype(float), case.target.astype(float)

    def run():
        values = [wasserstein_distance(at, at, *row) for row in zip(p, q, strict=True)]
        return np.array(values), None

    return run


def distance_by_pot(case):
    ot = installed("ot")
    p, q = (np.ascontiguousarray(a.T) for a in (case.x, case.target))  # bins come first
    at = np.repeat(case.positions[:, None], len(case.x), axis=1)
    return lambda: (ot.wasserstein_1d(at, at, p, q, require_sort=False), None)


def distance_by_ott(case):
    jax, linear = installed("jax"), ott("solvers.linear")
    at = jax.numpy.asarray(case.positions)[:, None]
    cost = ott("geometry.costs").Euclidean()
    geometry = ott("geometry.pointcloud").PointCloud(at, at, cost_fn=cost)
    solve = jax.jit(jax.vmap(lambda p, q: linear.solve_univariate(geometry, p, q).ot_costs[0]))
    p, q = jax.numpy.asarray(case.x), jax.numpy.asarray(case.target)
    return lambda: (np.asarray(solve(p, q)), None)


def ott(module):
    """Import a module of OTT, whose dependency JAXopt warns that it is not maintained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return installed(f"ott.{module}")


# Losses with gradients to logits ------------------------------------------------------------------


def by_torch(loss_of, case):
    """Return a run of a loss per row, or of the mean loss, forward and backward to the logits."""
    torch = installed("torch")
    loss = loss_of(case)
    x, target = torch.from_numpy(case.x).requires_grad_(), torch.from_numpy(case.target)

    def run():
        x.grad = None
        value = loss(x, target)
        value.sum().backward()
        return value.detach().numpy(), x.grad.numpy() * (1 if value.ndim else len(x))

    return run


def emd_loss(case):
    from fastemd.torch import EMDLoss

    return EMDLoss(case.space, rho=case.rho, reduction="none")


def cumsum_loss(case):
    torch = installed("torch")
    gaps = torch.from_numpy(case.space.weight[:-1].astype(SINGLE))
    n_bins = case.space.n_bins

    def loss(x, target):
        if target.ndim == 1:
            target = torch.nn.functional.one_hot(target, n_bins).to(x.dtype)
        flow = (x.softmax(-1) - target).cumsum(-1)[:, :-1]
        return (gaps * (flow.abs() if case.rho == 1 else flow.square())).sum(-1)

    return loss


def dlordinal_loss(case):
    return installed("dlordinal.losses").EMDLoss(case.space.n_bins)


def univariate_loss(case):
    """Use POT's one-dimensional solver in torch."""
    ot, torch = installed("ot"), installed("torch")
    at = torch.from_numpy(np.repeat(case.positions[:, None], len(case.x), axis=1))

    def loss(x, target):
        return ot.wasserstein_1d(at, at, x.softmax(-1).T, target.T, require_sort=False)

    return loss


def geomloss_loss(scaling, case):
    """Use the debiased divergence, geomloss' default."""
    torch, geomloss = installed("torch"), installed("geomloss")
    scale = float(case.positions[-1])
    at = torch.from_numpy(case.positions / scale)[None, :, None].expand(len(case.x), -1, -1)
    at = at.contiguous()
    divergence = geomloss.SamplesLoss(
        "sinkhorn", p=1, blur=CHAIN_BLUR, diameter=1.0, scaling=scaling, backend="tensorized"
    )
    return lambda x, target: scale * divergence(x.softmax(-1), at, target, at)


def matrix_loss(sparse, case):
    torch = installed("torch")
    matrix, length = (torch.from_numpy(a.astype(SINGLE)) for a in ancestor_matrix(case.space))
    if sparse:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            matrix = matrix.to_sparse_csr()
    return lambda x, target: length @ (matrix @ (x.softmax(-1) - target).T).abs()


def emd2_loss(case):
    return pair_by_pair(installed("ot").emd2, case)


def sinkhorn2_loss(blur, case):
    regularisation = blur * case.space.cost_matrix().max()
    return pair_by_pair(partial(installed("ot").sinkhorn2, reg=regularisation), case)


def pair_by_pair(solver, case):
    """Use a solver of POT in float64: its check of the masses is too strict for float32."""
    torch = installed("torch")
    cost = torch.from_numpy(case.space.cost_matrix())

    def loss(x, target):
        p, q = x.double().softmax(-1), target.double()
        q = q / q.sum(-1, keepdim=True)
        return torch.stack([solver(*row, cost) for row in zip(p, q, strict=True)])

    return loss


def sinkhorn_by_ott(blur, case):
    """Differentiate the regularised cost, by its dual potentials; the value is the cost alone."""
    jax, linear = installed("jax"), ott("solvers.linear")
    cost = case.space.cost_matrix().astype(SINGLE)
    geometry = ott("geometry.geometry").Geometry(
        jax.numpy.asarray(cost), epsilon=blur * float(cost.max())
    )

    def loss(x, target):
        solution = linear.solve(geometry, jax.nn.softmax(x), target)
        return solution.reg_ot_cost, solution.primal_cost

    both = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
    x, target = jax.numpy.asarray(case.x), jax.numpy.asarray(case.target)

    def run():
        (_, value), grad = both(x, target)
        return np.asarray(value), np.asarray(grad)

    return run


# All pairs on a tree ------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Samples, and the exact distances of all pairs."""

    samples: Samples
    value: np.ndarray
    grad: None = None

    def first(self, n_pairs):
        """Return the problem with as many pairs of few samples."""
        n_samples = next(n for n in itertools.count(2) if n * (n - 1) // 2 >= n_pairs)
        samples = self.samples._replace(table=self.samples.table[:n_samples])
        return Pairs(samples, distances_of_samples(samples))


def distances_of_samples(samples):
    """Compute weighted UniFrac by sums over the parents, in float64."""
    below = np.zeros((len(samples.parents), samples.table.shape[0]))
    shares = samples.table / samples.table.sum(axis=1)[:, None]
    below[: shares.shape[1]] = shares.toarray().T
    for node, parent in enumerate(samples.parents[:-1]):
        below[parent] += below[node]
    below, length = below[:-1].T.copy(), samples.lengths[:-1]
    rows = [np.abs(below[i] - below[i + 1 :]) @ length for i in range(len(below))]
    return np.concatenate(rows)


def upper(square):
    return square[np.triu_indices(len(square), 1)], None


def unifrac(case):
    tree = fastemd.Tree.from_parents(case.samples.parents, case.samples.lengths)
    return lambda: upper(run_fastemd(case.samples.table, tree, "weighted"))


def unifrac_by_scikit_bio(case):
    installed("skbio")
    run = scikit_bio(case.samples, "weighted")
    return lambda: upper(run())


def unifrac_by_pot(case):
    """Solve the linear programme of every pair, with the taxa that its samples have."""
    ot = installed("ot")
    samples = case.samples
    tree = fastemd.Tree.from_parents(samples.parents, samples.lengths)
    cost = tree.cost_matrix()
    shares = (samples.table / samples.table.sum(axis=1)[:, None]).toarray()

    def distance(p, q):
        i, j = np.flatnonzero(p), np.flatnonzero(q)
        return ot.emd2(p[i], q[j], cost[np.ix_(i, j)])

    return lambda: (np.array([distance(*pair) for pair in itertools.combinations(shares, 2)]), None)


# The tables ---------------------------------------------------------------------------------------


def tables(quick=False):
    """Return all tables, or those of small problems for a test."""
    batch, few = (8, 2) if quick else (512, None)
    return [
        distances(100 if quick else 1000, batch),
        losses_of_labels(20 if quick else 100, batch),
        losses_of_histograms(20 if quick else 100, batch, few),
        losses_on_tree(random_tree(60) if quick else fastemd.datasets.imagenet_tree(), batch, few),
        all_pairs(*((20, 100, 0.2) if quick else (400, 2_000, 0.05))),
    ]


def distances(n_bins, batch):
    space = fastemd.Chain(n_bins)
    p, q = (histograms((batch, n_bins), SINGLE, seed) for seed in (0, 1))
    text = f"The values of EMD between {batch} pairs of histograms of {n_bins:,} bins, `rho = 1`."
    methods = {
        "fastemd.emd": Method(emd),
        "torch: cumsum": Method(distance_by_cumsum),
        "SciPy: wasserstein_distance": Method(distance_by_scipy, dtype="float64"),
        "POT: wasserstein_1d": Method(distance_by_pot),
        "OTT: solve_univariate": Method(distance_by_ott, 64),
    }
    problem = solved(space, p, q, 1, gradient=False)
    return Table("Distances of ordered histograms", text, problem, methods)


def losses_of_labels(n_bins, batch):
    x, labels = logits((batch, n_bins), SINGLE)
    text = f"The loss of {batch} rows of {n_bins} ordered classes and its gradient, `rho = 2`."
    methods = {
        "fastemd.torch.EMDLoss": Method(partial(by_torch, emd_loss)),
        "torch: cumsum": Method(partial(by_torch, cumsum_loss)),
        "dlordinal: EMDLoss": Method(partial(by_torch, dlordinal_loss)),
    }
    problem = solved(fastemd.Chain(n_bins), x, labels, 2)
    return Table("Losses of ordered classes with labels", text, problem, methods)


def losses_of_histograms(n_bins, batch, few):
    x, _ = logits((batch, n_bins), SINGLE)
    q = histograms((batch, n_bins), SINGLE, 1)
    text = (
        f"The loss of {batch} rows of {n_bins} ordered classes and its gradient, `rho = 1`. The "
        f"regularisation of Sinkhorn is {CHAIN_BLUR} of the largest distance."
    )
    methods = {
        "fastemd.torch.EMDLoss": Method(partial(by_torch, emd_loss)),
        "torch: cumsum": Method(partial(by_torch, cumsum_loss)),
        "POT: wasserstein_1d": Method(partial(by_torch, univariate_loss)),
        **{
            f"geomloss: scaling={scaling}": Method(
                partial(by_torch, partial(geomloss_loss, scaling)), few or 16, limits=limits
            )
            for scaling, limits in ((0.5, (0.3, 0.7)), (0.9, (0.12, 0.5)))  # 0.5 is the default
        },
        "OTT: sinkhorn": Method(
            partial(sinkhorn_by_ott, CHAIN_BLUR), few or 16, limits=(1e-3, 0.12)
        ),
        "POT: sinkhorn2": Method(
            partial(by_torch, partial(sinkhorn2_loss, CHAIN_BLUR)),
            few or 4,
            "float64",
            (1e-5, 1e-4),
        ),
    }
    problem = solved(fastemd.Chain(n_bins), x, q, 1)
    return Table("Losses of ordered classes with histograms", text, problem, methods)


def losses_on_tree(tree, batch, few):
    x, _ = logits((batch, tree.n_bins), SINGLE)
    q = histograms((batch, tree.n_bins), SINGLE, 1)
    text = (
        f"The loss of {batch} rows of {tree.n_bins:,} classes on a tree of {tree.n_nodes:,} nodes "
        f"and its gradient, `rho = 1`. The regularisation of Sinkhorn is {TREE_BLUR} of the "
        "largest distance."
    )
    methods = {
        "fastemd.torch.EMDLoss": Method(partial(by_torch, emd_loss)),
        "torch: sparse matrix": Method(partial(by_torch, partial(matrix_loss, True))),
        "torch: dense matrix": Method(partial(by_torch, partial(matrix_loss, False))),
        "POT: emd2": Method(partial(by_torch, emd2_loss), few or 2, "float64"),
        "OTT: sinkhorn": Method(partial(sinkhorn_by_ott, TREE_BLUR), 1, limits=(0.03, 0.3)),
        "POT: sinkhorn2": Method(
            partial(by_torch, partial(sinkhorn2_loss, TREE_BLUR)), 1, "float64", (0.03, 0.1)
        ),
    }
    return Table("Losses on a tree", text, solved(tree, x, q, 1), methods)


def all_pairs(n_samples, n_taxa, density):
    samples = random_samples(n_samples, n_taxa, density)
    text = (
        f"Weighted UniFrac of all pairs of {n_samples} samples of {n_taxa:,} taxa, {density:.0%} "
        "of the counts non-zero. A row is a pair."
    )
    methods = {
        "fastemd.unifrac": Method(unifrac, dtype="float64"),
        "scikit-bio: beta_diversity": Method(unifrac_by_scikit_bio, dtype="float64"),
        "POT: emd2": Method(unifrac_by_pot, 10, "float64"),
    }
    problem = Pairs(samples, distances_of_samples(samples))
    return Table("All pairs on a tree", text, problem, methods)


# Measurement --------------------------------------------------------------------------------------


def runs_of(table):
    """Return the problems and runs of the methods that are installed, by name."""
    problems = {
        name: table.problem.first(method.rows) if method.rows else table.problem
        for name, method in table.methods.items()
    }
    baselines = {name: partial(method.of, problems[name]) for name, method in table.methods.items()}
    runs = available(baselines)
    return {name: problems[name] for name in runs}, runs


def errors(problem, value, grad):
    """Return the relative errors of values, or of their mean, and of gradients."""
    exact = problem.value if value.ndim else problem.value.mean()
    value_error = np.abs(value - exact).mean() / problem.value.mean()
    if grad is None:
        return value_error, None
    return value_error, np.linalg.norm(grad - problem.grad) / np.linalg.norm(problem.grad)


def measured(table):
    """Return the results of all methods that are installed."""
    problems, runs = runs_of(table)
    results = []
    for name, (middle, spread) in timed(runs).items():
        rows = len(problems[name].value)
        error = errors(problems[name], *runs[name]())
        dtype = table.methods[name].dtype
        results.append(Result(name, dtype, rows, middle / rows, spread / rows, *error))
    return results


def markdown(table, results):
    """Return a table in Markdown."""
    cells = ["method", "type", "rows", "time per row", "ratio to fastemd", "error", "of gradient"]
    lines = [f"### {table.title}", "", table.text, ""]
    lines += [as_row(cells), as_row(["---", "---", *["--:"] * 5])]
    for r in results:
        time = f"{r.time * 1e6:,.2f} ± {r.spread * 1e6:,.2f} us"
        ratio = f"{r.time / results[0].time:,.2f}"
        grad = "" if r.grad_error is None else f"{r.grad_error:.1e}"
        lines.append(as_row([r.name, r.dtype, r.rows, time, ratio, f"{r.value_error:.1e}", grad]))
    return "\n".join([*lines, ""])


def as_row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def versions():
    """Return the versions of the libraries that are installed."""
    texts = []
    for name, package in VERSIONED.items():
        try:
            texts.append(f"{name} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            texts.append(f"{name} not installed")
    return ", ".join(texts)


def draw(results, file):
    """Draw time and error of every method, by problem."""
    import matplotlib.pyplot as plt

    sizes = [len(rows) for rows in results.values()]
    figure, axes = plt.subplots(
        len(results), 2, sharex="col", figsize=(9, 1.6 + 0.36 * sum(sizes)), layout="constrained",
        gridspec_kw={"height_ratios": sizes},
    )  # fmt: skip
    for (title, rows), (left, right) in zip(results.items(), axes, strict=True):
        colours = ["C1" if r.name.startswith("fastemd") else "C0" for r in rows]
        at = range(len(rows))
        left.set_yticks(at, [r.name for r in rows])
        left.set_title(title, loc="left", fontsize=10)
        right.set_yticks(at, [])
        left.scatter([r.time * 1e6 for r in rows], at, c=colours)
        right.scatter([max(r.value_error, 1e-16) for r in rows], at, c=colours)
        for ax in (left, right):
            ax.set(xscale="log", ylim=(len(rows) - 0.5, -0.5))
            ax.grid(alpha=0.4)
    axes[-1, 0].set_xlabel("time per row (us)")
    axes[-1, 1].set_xlabel("relative error of values")
    figure.savefig(file, dpi=100)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="print tables of small problems")
    options = parser.parse_args(arguments)
    with contextlib.suppress(NotImplementedError):
        installed("torch").set_num_threads(numba.get_num_threads())
    parts = [f"{machine()}.\n\n{versions()}.\n"]
    print(parts[0], flush=True)
    results = {}
    for table in tables(options.quick):
        results[table.title] = measured(table)
        parts.append(markdown(table, results[table.title]))
        print(parts[-1], flush=True)
    if not options.quick:
        (DOCS / "alternatives.inc").write_text("\n".join(parts), encoding="utf-8")
        draw(results, DOCS / "images" / "alternatives.png")


if __name__ == "__main__":
    main()
