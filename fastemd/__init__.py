"""Earth Mover's Distances on chains and trees: values, gradients, Hessians, fast and exact.

After Martinez et al., "Relaxed Earth Mover's Distances for Chain- and Tree-connected Spaces and
their use as a Loss Function in Deep Learning" (arXiv:1611.07573).
"""

from fastemd import datasets
from fastemd.exact import exact_emd
from fastemd.functions import (
    embed,
    emd,
    emd_flow,
    emd_grad,
    emd_value_and_grad,
)
from fastemd.hessians import emd_hessian, emd_hessian_diag, emd_hvp
from fastemd.losses import emd_loss, emd_loss_hessian_diag
from fastemd.on_device import synchronize
from fastemd.sinkhorn import SinkhornResult, sinkhorn
from fastemd.spaces import Chain, Tree

__version__ = "0.1.0"

__all__ = [
    "Chain",
    "SinkhornResult",
    "Tree",
    "__version__",
    "datasets",
    "embed",
    "emd",
    "emd_flow",
    "emd_grad",
    "emd_hessian",
    "emd_hessian_diag",
    "emd_hvp",
    "emd_loss",
    "emd_loss_hessian_diag",
    "emd_value_and_grad",
    "exact_emd",
    "sinkhorn",
    "synchronize",
]
