"""Distances of all pairs of histograms as a task graph of Dask, for more than one machine."""

from typing import Any

import numpy as np

from fastemd import validation
from fastemd.call import edge_cost, result_type
from fastemd.docstrings import documented
from fastemd.pairwise import pairwise as pairwise_of_arrays
from fastemd.spaces import GroundSpace, restore

try:
    import dask.array
except ModuleNotFoundError as error:
    validation.not_installed("dask", error)

from dask._task_spec import Task, TaskRef  # the documentation of Dask calls it dask.Task
from dask.base import tokenize
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph


@documented
def pairwise(
    P: Any,  # noqa: N803  # a matrix
    Q: Any = None,  # noqa: N803
    *,
    space: GroundSpace,
    rho: float,
    validate: bool | float | None = None,
) -> Any:
    """Compute EMD^rho between all pairs of histograms, lazily and block by block.

    Parameters
    ----------
    P : dask.array.Array, (n, N)
        Histograms over the N bins of `space`, one per row. The chunks are NumPy arrays or sparse
        arrays of SciPy. The chunks of rows are the blocks of the result; the bins are joined to one
        chunk.
    Q : dask.array.Array, (m, N), optional
        Other histograms, of the same mass; by default `P` itself.
    space : Chain or Tree
        The ground space.
    {rho}
    {validate_rows}

    Returns
    -------
    dask.array.Array, (n, m)
        Of float32 if `P` and `Q` are, of float64 otherwise. Its chunks are those of the rows of `P`
        and `Q`.

    Raises
    ------
    ValueError
        If shapes do not fit, the size of a chunk is unknown, or a power is < 1 or not finite. A
        histogram that is invalid raises when its blocks are computed; the message names the rows
        of the block and the row in it.
    TypeError
        If an argument has an unsupported type.

    See Also
    --------
    fastemd.pairwise : The distances of arrays in memory.

    Notes
    -----
    A task computes the distances of two chunks by `fastemd.pairwise`. Without `Q`, the blocks below
    the diagonal are the transposes of those above. The edges of the ground space are one entry of
    the graph, which every worker receives once; the names of its nodes are not sent.

    Examples
    --------
    >>> import dask.array, fastemd
    >>> P = dask.array.from_array([[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]], chunks=(2, 3))
    >>> distances = fastemd.dask.pairwise(P, space=fastemd.Chain(3), rho=1)
    >>> distances.chunks
    ((2, 1), (2, 1))
    >>> distances.compute()
    array([[0. , 1. , 1.5],
           [1. , 0. , 0.5],
           [1.5, 0.5, 0. ]])
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    rho = edge_cost(rho).rho
    validation.check_validate(validate, 0.0)
    is_same = Q is None
    a = _table("P", P, space)
    b = a if is_same else _table("Q", Q, space)

    edges = space.parent, space.weight, space.bin_node
    unnamed = restore(GroundSpace, *edges, range(space.n_nodes))
    shared = delayed(unnamed, name=f"space-{tokenize(*edges)}", traverse=False)
    name = f"pairwise-{tokenize(a.name, b.name, is_same, shared.key, rho, validate)}"
    tasks: dict[Any, Task] = {}
    for i, first in enumerate(_first_rows(a)):
        for j, second in enumerate(_first_rows(b)):
            key = name, i, j
            if is_same and j < i:
                tasks[key] = Task(key, np.transpose, TaskRef((name, j, i)))
                continue
            names = {"P": first} if is_same and i == j else {"P": first, "Q": second}
            blocks = [TaskRef((a.name, i, 0)), TaskRef((b.name, j, 0))][: len(names)]
            tasks[key] = Task(
                key, _block, names, is_same, TaskRef(shared.key), rho, validate, *blocks
            )
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[a, b, shared])
    return dask.array.Array(graph, name, (a.chunks[0], b.chunks[0]), dtype=result_type([a, b]))


def _table(name: str, values: Any, space: GroundSpace) -> Any:
    """Return a validated table whose chunks have all bins."""
    if not isinstance(values, dask.array.Array):
        validation.not_a_dask_array(name, values)
    validation.check_known_chunks(name, values.shape)
    validation.check_table_shape(name, values.shape)
    validation.check_bins_axis(name, values.shape, space.n_bins)
    return values.rechunk({1: -1})


def _first_rows(table: Any) -> list[int]:
    """Return the first row of every chunk."""
    return [0, *np.cumsum(table.chunks[0])[:-1].tolist()]


def _block(
    first_rows: dict[str, int],
    is_same: bool,
    space: GroundSpace,
    rho: float,
    validate: bool | float | None,
    *blocks: Any,
) -> Any:
    """Compute the distances of one block, or of two; errors name their rows in the tables."""
    names = {
        name: f"{'P' if is_same else name}[{first}:{first + block.shape[0]}]"
        for (name, first), block in zip(first_rows.items(), blocks, strict=True)
    }
    with validation.renaming(names):
        return pairwise_of_arrays(*blocks, space=space, rho=rho, progress=False, validate=validate)
