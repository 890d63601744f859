"""UniFrac: distances of samples of taxa on a phylogeny."""

import importlib.util
import os
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import validation
from fastemd.backends import CudaBackend
from fastemd.eager import eager
from fastemd.pair_sums import Measure, PairSums, used_part
from fastemd.pairwise import collect
from fastemd.spaces import GroundSpace, Tree
from fastemd.tables import Table, column_names

Array = NDArray[Any]

METRICS = ("weighted", "weighted_normalized", "unweighted", "generalized", "variance_adjusted")


@eager
def unifrac(
    table: Any,
    tree: Any,
    *,
    metric: str = "weighted",
    alpha: float = 1.0,
    ids: Iterable[Hashable] | None = None,
    taxa: Iterable[Hashable] | None = None,
    out: Any = None,
    progress: bool | None = None,
) -> Any:
    """Compute UniFrac between all pairs of samples.

    Parameters
    ----------
    table : array_like, sparse array, data frame or biom.Table, (n_samples, n_taxa)
        Counts or frequencies, finite and >= 0. Samples are rows, except in a ``biom.Table``, which
        has them as columns.
    tree : Tree, skbio.TreeNode, str, path or file
        The phylogeny, or what `Tree.from_skbio` or `Tree.from_newick` build it from. Their options
        are a policy for missing and negative lengths, which are errors here. The length above the
        root is not counted.
    metric : {"weighted", "weighted_normalized", "unweighted", "generalized", "variance_adjusted"}
        See Notes.
    alpha : float
        From 0 to 1, how much "generalized" depends on abundant lineages.
    ids : iterable of Hashable, (n_samples,), optional
        The names of the samples; by default those of the table, if it has names.
    taxa : iterable of Hashable, (n_taxa,), optional
        The names of the columns, which are bins of `tree`; by default those of the table, or
        ``tree.bins`` if it has no names. Bins that are not in the table are pruned.
    out : array, optional
        Array for the distances, (n_samples, n_samples), as of `pairwise`. It is returned as it is.
    progress : bool, optional
        False for no progress bar. By default it is shown on a terminal, if the work takes more
        than a few seconds.

    Returns
    -------
    skbio.DistanceMatrix, pandas.DataFrame or array, (n_samples, n_samples)
        With the names of the samples: a ``DistanceMatrix`` if scikit-bio is installed, otherwise a
        data frame if pandas is. Without names, and for `out`, an array, of float32 if the table is.

    Raises
    ------
    ValueError
        If a taxon is not a bin of the tree, names are repeated, shapes do not fit, a count is
        negative or not finite, `metric` is unknown, or `alpha` is out of range.
    TypeError
        If an argument has an unsupported type, or the table is on a CUDA device.
    ModuleNotFoundError
        If `tree` is Newick text and the package of the extra ``bio`` is missing.

    See Also
    --------
    pairwise : EMD^rho between all pairs of histograms.

    Notes
    -----
    ``a`` and ``b`` are the shares of two samples below an edge of length ``l``. All sums are over
    the edges.

    - "weighted": ``sum(l |a - b|)`` [1]_, the Earth Mover's Distance of the samples.
    - "weighted_normalized": the same divided by ``sum(l (a + b))``, from 0 to 1.
    - "unweighted" [2]_: the length below which one sample has taxa, divided by the length below
      which at least one has.
    - "generalized" [3]_: ``sum(l (a + b)^alpha |a - b| / (a + b)) / sum(l (a + b)^alpha)``.
      ``alpha=1`` is "weighted_normalized".
    - "variance_adjusted" [4]_: the terms of both sums of "weighted_normalized" divided by
      ``sqrt(m (M - m))``, where of the ``M`` counts of both samples ``m`` are below the edge. Edges
      above all counts are ignored.

    Where numerator and denominator are 0, as for two samples without counts, the distance is 0.
    Samples without counts have no share of any edge. The metrics equal those of scikit-bio for a
    root without a length, and those of unifrac-binaries ("variance_adjusted": its
    ``weighted_normalized`` with ``--vaw``).

    References
    ----------
    .. [1] Lozupone et al., "Quantitative and qualitative beta diversity measures lead to different
       insights into factors that structure microbial communities", 2007.
    .. [2] Lozupone and Knight, "UniFrac: a new phylogenetic method for comparing microbial
       communities", 2005.
    .. [3] Chen et al., "Associating microbiome composition with environmental covariates using
       generalized UniFrac distances", 2012.
    .. [4] Chang et al., "Variance adjusted weighted UniFrac: a powerful beta diversity measure for
       comparing communities based on phylogeny", 2011.

    Examples
    --------
    >>> import fastemd
    >>> tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], [0, 1, 3, 1, 1], bins=[3, 4, 2])
    >>> counts = [[5, 5, 0], [10, 0, 0], [0, 0, 4]]
    >>> fastemd.unifrac(counts, tree, metric="unweighted")
    array([[0.        , 0.33333333, 1.        ],
           [0.33333333, 0.        , 1.        ],
           [1.        , 1.        , 0.        ]])
    """
    sums, names = unifrac_sums(table, tree, metric, alpha, ids, taxa)
    distances = collect(sums, out=out, progress=progress)
    return distances if out is not None or names is None else _named(distances, names)


def unifrac_sums(
    table: Any, tree: Any, metric: str, alpha: float, ids: Iterable[Hashable] | None = None,
    taxa: Iterable[Hashable] | None = None,
) -> tuple[PairSums, list[Hashable] | None]:  # fmt: skip
    """Validate the arguments of `unifrac`; return its sums, and the names of the samples."""
    tree, measure = _as_tree(tree), _measure(metric, alpha)
    values, known_ids, known_taxa = _with_names(table)
    counts = Table("table", values)
    if isinstance(counts.backend, CudaBackend):
        validation.only_on_cpu("UniFrac distances")
    names = known_ids if ids is None else list(ids)
    columns = known_taxa if taxa is None else list(taxa)
    if names is not None:
        validation.check_names("ids", [str(name) for name in names], counts.n_rows, "rows")
    bins = None
    if columns is None:
        counts = counts.over(tree)
    else:
        validation.check_names("taxa", columns, counts.n_bins, "columns")
        bins = validation.bins_of_taxa(columns, tree.bins)
    totals = counts.masses()
    invalid = ~((totals >= 0.0) & (totals < np.inf))
    if invalid.any():
        counts.raise_invalid(int(invalid.argmax()), tolerance=0.0)
    if metric == "variance_adjusted":
        scale = np.full(counts.n_rows, 2.0 ** np.frexp(totals.max(initial=0.0))[1])
        counts, totals = counts.divided_by(scale), totals / scale  # exact
    elif metric != "unweighted":
        counts = counts.divided_by(totals)
    layout, tables = used_part(tree, [counts], bins)
    return PairSums(measure, layout, tables, 0.0, totals), names


def _as_tree(tree: Any) -> GroundSpace:
    if isinstance(tree, GroundSpace):
        return tree
    is_node = hasattr(tree, "is_tip")
    if not (is_node or isinstance(tree, str | os.PathLike) or hasattr(tree, "read")):
        validation.not_a_phylogeny(tree)
    build: Any = Tree.from_skbio if is_node else Tree.from_newick
    advice = f"build the tree by Tree.{build.__name__} with"  # has the options that messages name
    with validation.renaming({"source": "tree", "pass": advice}):
        return build(tree)  # type: ignore[no-any-return]


def _length_times_power(mass: Array, length: Array, exponent: float) -> Array:
    return length * mass**exponent


def _measure(metric: str, alpha: float) -> Measure:
    alpha = validation.check_alpha(alpha)
    if metric == "generalized" and alpha == 1.0:
        metric = "weighted_normalized"
    if metric not in METRICS:
        validation.unknown_metric(metric, METRICS)
    return {
        "weighted": Measure("difference", relative=True),
        "weighted_normalized": Measure("difference", denominator="both"),
        "unweighted": Measure("difference", values="presence", denominator="union"),
        "generalized": Measure(
            "generalized", alpha, root=0.0, single=_length_times_power, denominator="norm"
        ),
        "variance_adjusted": Measure("variance_adjusted", root=0.0, denominator="norm"),
    }[metric]


def _with_names(table: Any) -> tuple[Any, list[Hashable] | None, list[Hashable] | None]:
    """Return the values of a table, samples as rows, and the names of its rows and columns."""
    if hasattr(table, "matrix_data") and callable(getattr(table, "ids", None)):  # biom.Table
        return table.matrix_data.T, list(table.ids("sample")), list(table.ids("observation"))
    rows: Any = getattr(table, "index", None) if hasattr(table, "columns") else None
    is_named = rows is not None and type(rows).__name__ != "RangeIndex"
    return table, list(rows) if is_named else None, column_names(table)


def _named(distances: Array, ids: list[Hashable]) -> Any:
    """Return distances with the names of the samples, as the best type that is installed."""
    if ids and importlib.util.find_spec("skbio"):  # it has no empty matrices
        from skbio import DistanceMatrix

        return DistanceMatrix(np.asarray(distances, np.float64), [str(each) for each in ids])
    if importlib.util.find_spec("pandas"):
        from pandas import DataFrame

        return DataFrame(distances, ids, ids)
    return distances
