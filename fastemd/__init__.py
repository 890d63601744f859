"""Compute Earth Mover's Distances on chains and trees, with exact gradients and Hessians.

The method is that of Martinez et al., "Relaxed Earth Mover's Distances for Chain- and
Tree-connected Spaces and their use as a Loss Function in Deep Learning" (arXiv:1611.07573).
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from fastemd import datasets, functions
from fastemd.call import synchronize
from fastemd.exact import exact_emd
from fastemd.functions import *
from fastemd.losses import emd_loss, emd_loss_hessian_diag
from fastemd.pairwise import neighbors, pairwise
from fastemd.sinkhorn import SinkhornResult, sinkhorn
from fastemd.spaces import Chain, Tree
from fastemd.unifrac import unifrac
from fastemd.warming import warm_up

if TYPE_CHECKING:
    from fastemd import boosting as boosting
    from fastemd import dask as dask
    from fastemd import jax as jax
    from fastemd import metrics as metrics
    from fastemd import plotting as plotting
    from fastemd import torch as torch

__version__ = "0.2.0"

__all__ = [
    "Chain",
    "SinkhornResult",
    "Tree",
    "__version__",
    "datasets",
    "emd_loss",
    "emd_loss_hessian_diag",
    "exact_emd",
    "neighbors",
    "pairwise",
    "sinkhorn",
    "synchronize",
    "unifrac",
    "warm_up",
]
__all__ += functions.__all__

_FRAMEWORKS = ("dask", "jax", "torch")
_LAZY = (*_FRAMEWORKS, "boosting", "metrics", "plotting")  # submodules, imported when first used


if not TYPE_CHECKING:  # type checkers resolve the submodules by the imports above

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # help() reads every name listed here, so exclude frameworks that are not installed.
    missing = {name for name in _FRAMEWORKS if importlib.util.find_spec(name) is None}
    return sorted({*globals(), *_LAZY} - missing)
