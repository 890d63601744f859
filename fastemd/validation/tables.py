"""Invalid tables of histograms, and invalid arguments of functions on all their pairs."""

import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import _kind

Array = NDArray[Any]


def check_table_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"{name}: shape {shape}; expected two axes, (rows, bins)")


def not_a_dask_array(name: str, value: object) -> NoReturn:
    raise TypeError(
        f"{name}: expected a dask.array.Array, got {_kind(value)}; convert an array by "
        "dask.array.from_array, a data frame of Dask by to_dask_array(lengths=True)"
    )


def check_known_chunks(name: str, shape: tuple[float, ...]) -> None:
    if any(np.isnan(length) for length in shape):
        raise ValueError(
            f"{name}: chunks of unknown size; expected known sizes, which "
            f"{name}.compute_chunk_sizes() sets"
        )


def columns_of(name: str, names: Sequence[Hashable], bins: Sequence[Hashable]) -> list[int] | None:
    """Return where the bins are among the names of columns; None if in the same order."""
    if list(names) == list(bins):
        return None
    index = {label: i for i, label in enumerate(names)}
    known = set(bins)
    problem = next((f"there is no column {label!r}" for label in bins if label not in index), "")
    for label in names:
        problem = problem or ("" if label in known else f"column {label!r} is not a bin")
    if not problem and len(names) > len(bins):
        problem = f"duplicate column {_first_repeated(names)!r}"
    if problem:
        raise ValueError(f"{name}: {problem}; expected one column for each of space.bins")
    return [index[label] for label in bins]


def check_equal_masses(masses: Mapping[str, Array], tolerance: float) -> None:
    """Raise if the rows of all tables do not have the same mass."""
    if tolerance < 0.0 or not any(each.size for each in masses.values()):
        return
    mass = np.concatenate(list(masses.values()))
    if not np.isfinite(mass).all() or mass.min() < 0.0:
        return  # the rows are validated one by one
    low, high = int(mass.argmin()), int(mass.argmax())
    if mass[high] - mass[low] > tolerance * mass[high]:
        rows = [(name, i) for name, each in masses.items() for i in range(each.size)]
        (a, i), (b, j) = rows[low], rows[high]
        names = a if a == b else f"{a} and {b}"
        raise ValueError(
            f"{names}: unequal masses, row {i} of {a} sums to {mass[low]} and row {j} of {b} to "
            f"{mass[high]}; normalise all rows, for example by P / P.sum(-1, keepdims=True) "
            f"(relative tolerance {tolerance:.1e})"
        )


def condensed_with_two_tables() -> NoReturn:
    raise ValueError("condensed: expected False for the pairs of two tables; leave out Q")


def check_neighbors(k: object, n_rows: int) -> int:
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"k: expected an integer, got {_kind(k)}")
    count = int(k)
    if not 1 <= count <= n_rows:
        raise ValueError(f"k: expected 1 to {n_rows}, the number of rows of P, got {count}")
    return count


def check_pairs_out(out: Any, shape: tuple[int, ...]) -> None:
    found = getattr(out, "shape", None)
    if found != shape:
        what = f"shape {found}" if isinstance(found, tuple) else _kind(out)
        raise ValueError(f"out: {what}; expected an array of shape {shape}")
    if np.dtype(out.dtype).kind != "f":
        raise TypeError(f"out: expected an array of floating point numbers, got {out.dtype}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: the array is read-only")


def only_squares_on_cuda(rho: float) -> NoReturn:
    raise TypeError(
        f"P: all pairs on a CUDA device are computed for rho=2 only, got rho={rho:g}; "
        "copy the arrays to the CPU first"
    )


def unknown_metric(metric: object, known: Sequence[str]) -> NoReturn:
    raise ValueError(f"metric: expected one of {', '.join(known)}, got {metric!r}")


def check_alpha(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise TypeError(f"alpha: expected a number from 0 to 1, got {_kind(alpha)}")
    if not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
    return float(alpha)


def check_names(argument: str, names: Sequence[Hashable], count: int, what: str) -> None:
    """Raise unless there is one name for each of the table's rows or columns, all different."""
    if len(names) != count:
        raise ValueError(
            f"{argument}: {len(names)} names; expected one for each of the table's {count} {what}"
        )
    if len(set(names)) < count:
        raise ValueError(
            f"{argument}: duplicate name {_first_repeated(names)!r}; each may appear once"
        )


def _first_repeated(names: Sequence[Hashable]) -> Hashable:
    """Return the first name that appears again."""
    last = {name: i for i, name in enumerate(names)}
    return next(name for i, name in enumerate(names) if last[name] != i)


def bins_of_taxa(taxa: Sequence[Hashable], bins: Sequence[Hashable]) -> Array:
    """Return which bins of a tree the taxa are."""
    if not taxa:
        raise ValueError("table: no columns; expected one for each taxon")
    index = {label: i for i, label in enumerate(bins)}
    missing = [taxon for taxon in taxa if taxon not in index]
    if missing:
        named = ", ".join(repr(taxon) for taxon in missing[:3])
        raise ValueError(
            f"taxa: {len(missing)} of {len(taxa)} are not bins of the tree: {named}"
            f"{', ...' if len(missing) > 3 else ''}; expected names such as {bins[0]!r}; "
            "remove these columns, or pass the tree that they were placed on"
        )
    return np.array([index[taxon] for taxon in taxa], np.intp)


def not_a_phylogeny(tree: object) -> NoReturn:
    raise TypeError(
        f"tree: expected a fastemd.Tree, a skbio.TreeNode or a tree in Newick format, got "
        f"{_kind(tree)}"
    )
