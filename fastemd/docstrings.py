"""What the docstrings of the functions on histograms share."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from fastemd.eager import eager

Function = TypeVar("Function", bound=Callable[..., Any])

_SHARED = {
    "p_q": """
        p, q : array_like, (..., N)
            Histograms over the N bins of `space`: finite, >= 0 and of equal mass (see `validate`).
            Leading axes broadcast. float32 arrays give float32 results (with float64 sums inside),
            every other real type gives float64. Data frames, and columns of objects that are
            numbers, are taken, too. All arrays of a call come from one library, NumPy or
            any with DLPack (PyTorch, JAX, ...), and so do the results, without a copy.
        space : Chain or Tree
            The ground space.
    """,
    "loss": """
        x : array_like, (..., N)
            Logits, or masses (see `normalize`), over the N bins of `space`. With "softmax" an
            entry may be -inf: a class that is masked, with probability and gradient 0. float32
            gives float32 results (with float64 sums inside), if a floating point target is
            float32, too; every other real type gives float64.
        target : array_like of int, (...), or of float, (..., N)
            The class of every row, never expanded to one-hot, or histograms of mass 1 up to the
            tolerance of their type (1e-5 for float64, 3.5e-4 for float32). It broadcasts to the
            rows of `x`, never `x` to the target.
        space : Chain or Tree
            The ground space.
        rho : float
            The power of the flow, >= 1.
        normalize : {"softmax", "l1", None}
            How `x` becomes a histogram: as logits, by division by its sum (it is >= 0), or as it
            is (of mass 1; the derivatives are then projected as those of `emd`).
        cross_entropy : float
            Add this many times the cross entropy ``-sum(target * log p)``.
        sample_weight : array_like, (...), optional
            Weight of every row, >= 0; broadcasts to the rows. A row of weight 0 is not read:
            whatever it holds, NaN included, its loss and gradient are 0.
        ignore_index : int, optional
            Rows with this label are ignored, as if their weight were 0. A number that the type of
            the labels cannot hold ignores none.
        reduction : {"mean", "sum", "none"}
            The mean is the weighted sum divided by the sum of the weights of the rows that are
            not ignored, and 0 if that is 0.
    """,
    "loss_raises": """
        Raises
        ------
        ValueError
            If the target does not broadcast to the rows of `x`; a logit is NaN or inf, or all of
            a row are -inf; masses are negative, or do not sum to 1 where they should; a class
            does not exist; a weight is negative; the cross entropy is infinite, since `x`
            excludes the target; labels are floating point. The message names the row.
        TypeError
            If an argument is of another kind.
    """,
    "rho": """
        rho : float
            The power of the flow, >= 1: 1 is the Earth Mover's Distance itself, 2 its smooth
            relative. It is not the p of the Wasserstein-p distance.
    """,
    "out": """
        out : array, optional
            Where to write the result, of its shape and dtype and from the library of `p`. If an
            error is raised, its contents are undefined.
    """,
    "project": """
        project : bool
            Whether to take the part that conserves the total mass (the default), or the raw
            derivatives of the formula for the tree rooted as given.
    """,
    "validate": """
        validate : bool or float, optional
            Whether to check the numbers, by default yes. A float is the relative tolerance of
            masses, by default 1e-5 for float64 and 3.5e-4 for float32 (of two types the coarser
            counts): two masses may differ by so much, and the negative entries of a histogram
            sum to so little. 0.0 allows no difference. Unchecked, NaN in a row gives NaN in its
            results, and a row of unequal masses whatever the formula gives. For arrays on a CUDA
            device `synchronize` raises, unless this is True: then the function waits.
    """,
    "raises": """
        Raises
        ------
        ValueError
            If the last axis is not N long, batch shapes do not broadcast, a power is < 1 or not
            finite, `out` has another shape or is read-only, or a histogram is bad; the message
            names the row.
        TypeError
            If an argument is of another kind, arrays come from different libraries or cannot be
            read where they are, or `out` is of another dtype.
    """,
}


def documented(function: Function) -> Function:
    """Put what the functions share into the docstring; and keep torch's compiler out of them."""
    shared = {name: inspect.cleandoc(text) for name, text in _SHARED.items()}
    function.__doc__ = inspect.cleandoc(function.__doc__ or "").format(**shared)
    return eager(function)
