"""Sections shared by the docstrings of the public functions."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from fastemd.eager import eager

Function = TypeVar("Function", bound=Callable[..., Any])

_SHARED = {
    "p_q": """
        p, q : array_like, (..., N)
            Histograms over the N bins of `space`: finite, >= 0 and of equal mass (see `validate`).
            Leading axes broadcast. float32 arrays give float32 results, and every other real type
            gives float64. Sums are computed in float64. Data frames and object arrays of numbers
            are accepted. All arrays of a call must have the same backend, NumPy or any with
            DLPack (PyTorch, JAX, ...). Results have the same backend, without a copy.
        space : Chain or Tree
            The ground space.
    """,
    "loss": """
        x : array_like, (..., N)
            Logits, or masses (see `normalize`), over the N bins of `space`, which may be another
            axis than the last one (see `axis`). With "softmax", an
            entry of -inf masks a class: its probability and gradient are 0. float32 gives float32
            results, if a floating point target is float32 as well. Every other real type gives
            float64. Sums are computed in float64.
        target : array_like of int, (...), or of float, (..., N)
            The class of every row, never expanded to one-hot, or histograms of mass 1 up to the
            tolerance of their type (1e-5 for float64, 3.5e-4 for float32). The target broadcasts
            to the rows of `x`, and `x` never broadcasts to the target.
        space : Chain or Tree
            The ground space.
        rho : float
            The power of the flow, >= 1.
        normalize : {"softmax", "l1", None}
            How `x` is converted to a histogram: "softmax" of logits, "l1" division of masses >= 0
            by their sum, or None for histograms of mass 1, whose derivatives are projected like
            those of `emd`.
        cross_entropy : float
            Coefficient >= 0 of the cross entropy ``-sum(target * log p)``, which is added to the
            loss. Requires ``normalize="softmax"`` unless 0.
        sample_weight : array_like, (...), optional
            Weight of every row, >= 0; broadcasts to the rows. A row of weight 0 is not read: its
            loss and gradient are 0, even if it contains NaN.
        class_weight : array_like, (N,), optional
            Weight of every class, >= 0. A row's EMD is multiplied by the weight of its label, or by
            ``<class_weight, target>``; its cross entropy is that of the target
            ``class_weight * target``, as in `torch.nn.CrossEntropyLoss`.
        label_smoothing : float
            From 0 to 1: the share of every target that is spread evenly over all N bins.
        root : bool
            Whether to take the `rho`-th root of every row's EMD, before the cross entropy is added
            and the rows are reduced. The root's gradient is 0 where the EMD is 0.
        ignore_index : int, optional
            Rows with this label are ignored, like rows of weight 0. A number outside the range of
            the labels' type ignores no rows.
        reduction : {"mean", "sum", "none"}
            The mean is the weighted sum divided by the sum of the weights of the rows that are
            not ignored, each times the `class_weight` of the row's label (not of histograms, as in
            torch). It is 0 if that sum is 0.
        axis : int
            The axis of `x` that holds the bins: 1 for images of shape (B, N, H, W), whose labels
            are (B, H, W). Histograms as targets have it at the same place, counted from the end.
            Nothing is transposed or copied.
    """,
    "loss_raises": """
        Raises
        ------
        ValueError
            If the target does not broadcast to the rows of `x`; a logit is NaN or inf, or all
            logits of a row are -inf; masses are negative, or do not sum to 1 where required; a
            class does not exist; a weight is negative; `cross_entropy` is used without softmax;
            the cross entropy is infinite, since the target is a masked class; labels are floating
            point. The message names the row.
        TypeError
            If an argument has an unsupported type.
    """,
    "rho": """
        rho : float
            The power of the flow, >= 1. 1 is the Earth Mover's Distance itself, 2 its smooth
            variant. It is not the p of the Wasserstein-p distance.
    """,
    "P": """
        P : array_like, sparse array or data frame, (n, N)
            Histograms over the N bins of `space`, one per row: finite, >= 0 and all of equal mass
            (see `validate`). Arrays of NumPy or any library with DLPack, or sparse arrays or
            matrices of SciPy, which stay sparse. Columns of data frames are matched with
            ``space.bins`` by name, unless they are a ``RangeIndex``, or those of a chain have other
            names.
    """,
    "progress": """
        progress : bool, optional
            False for no progress bar. By default it is shown on a terminal, if the work takes more
            than a few seconds.
    """,
    "validate_rows": """
        validate : bool or float, optional
            Whether to validate the numbers, by default True. A float is the relative tolerance
            between the masses of all rows, by default 1e-5 for float64 and 3.5e-4 for float32.
    """,
    "out": """
        out : array, optional
            Array for the result, with its shape and dtype and the backend of `p`. If an error is
            raised, its contents are undefined.
    """,
    "project": """
        project : bool
            Whether to project the derivatives onto the directions that conserve the total mass
            (the default). Otherwise they are the derivatives of the formula, which depend on the
            root of the tree.
    """,
    "validate": """
        validate : bool or float, optional
            Whether to validate the numbers; the default is to do so. A float is the relative
            tolerance, by default 1e-5 for float64 and 3.5e-4 for float32 (the coarser of two
            types). Two masses may differ by the tolerance, and the negative entries of a histogram
            may sum to at most the tolerance times its mass. 0.0 allows no difference. Without
            validation, a NaN in a row gives NaN in its results, and unequal masses give the value
            of the formula. For arrays on a CUDA device, `synchronize` raises the error, unless
            `validate` is True: then the function waits and raises.
    """,
    "plot": """
        columns : iterable of int, optional
            Columns of the bins to show, with the nodes above them; `max_bins` then has no effect.
            All bins by default.
        labels : mapping of Hashable to str, optional
            Texts of nodes, by their label (`fastemd.Tree.nodes`); by default the label itself, of a
            path (`fastemd.Tree.from_paths`) its last name.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; a new figure by default, high enough for the longest label.
        max_bins : int
            Largest number of bins and groups to draw of a tree, >= 1. In a tree of more bins,
            subtrees in which little happens are drawn as triangles, labelled "name (12 bins)". If
            other children of the same node are shown, the label is "12 more", and if a node has no
            name but an integer, "first bin, 11 more". All bins of a chain are drawn.
        to_scale : bool
            Whether the vertical position in a tree is the distance from the top, with a scale bar.
            By default all edges are one unit high, and a note says so if the edges shown differ in
            length. A chain is always to scale.
    """,
    "raises": """
        Raises
        ------
        ValueError
            If the length of the last axis is not N, batch shapes do not broadcast, a power is < 1
            or not finite, `out` has a wrong shape or is read-only, or a histogram is invalid. The
            message names the row.
        TypeError
            If an argument has an unsupported type, arrays have different backends or an
            unsupported device, or `out` has a wrong dtype.
    """,
}


def documented(function: Function) -> Function:
    """Insert the shared sections into the docstring and exclude the function from torch.compile."""
    shared = {name: inspect.cleandoc(text) for name, text in _SHARED.items()}
    function.__doc__ = inspect.cleandoc(function.__doc__ or "").format(**shared)
    return eager(function)
