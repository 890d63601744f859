"""EMD^rho as a metric of torchmetrics; `fastemd.metrics.EMDMetric`."""

from typing import Any

import fastemd.torch as adapter
from fastemd import validation

try:
    import torchmetrics
except ModuleNotFoundError as error:
    validation.not_installed("torchmetrics", error, "fastemd.metrics.EMDMetric")

import torch
from torch import Tensor

from fastemd.spaces import GroundSpace


class EMDMetric(torchmetrics.Metric):
    """Accumulate the mean EMD^rho between predictions and targets, as a metric of torchmetrics.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of the N classes.
    rho : float
        The power of the flow, >= 1.
    normalize : {"softmax", "l1", None}
        How predictions are converted to histograms, as by `fastemd.emd_loss`: "softmax" of logits,
        "l1" division by their sum, or None (the default) for probabilities.
    ignore_index : int, optional
        Rows with this label are left out.
    **kwargs
        Options of `torchmetrics.Metric`, for example ``sync_on_compute``.

    Raises
    ------
    ModuleNotFoundError
        If torchmetrics or PyTorch is not installed, when the class is first accessed.
    TypeError, ValueError
        If an option is not one of those. From ``update``, as from `fastemd.torch.EMDLoss`; a
        prediction must have mass 1 unless it is normalised, and on the CPU a weight must be finite
        and >= 0.

    See Also
    --------
    fastemd.metrics.emd_score : The same of arrays.
    fastemd.torch.EMDLoss : The loss.

    Notes
    -----
    Call ``update(preds, target, sample_weight=None)`` for every batch: ``preds`` (..., N), with the
    classes last, ``target`` as labels (...) of an integer type or histograms (..., N), and the
    weight of every row. ``compute()`` returns the weighted mean over all batches and processes, a
    tensor of float64 without axes. It is NaN while no row has a positive weight.

    The states are two sums in float64, which processes add up. Lower is better. There is no
    gradient. On CUDA, where weights are not validated, invalid rows raise later, in
    `fastemd.synchronize`. In a `torchmetrics.MetricCollection` a metric is a compute group of its
    own: metrics of several spaces or powers may have equal states after a batch.

    Examples
    --------
    >>> import torch, fastemd
    >>> metric = fastemd.metrics.EMDMetric(fastemd.Chain(3), rho=1)
    >>> metric.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]), torch.tensor([0, 2]))
    >>> metric.update(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([0]))
    >>> metric.compute()
    tensor(0.8333, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    total: Tensor
    weight: Tensor

    def __init__(
        self,
        space: GroundSpace,
        rho: float = 2,
        *,
        normalize: str | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loss = adapter.EMDLoss(
            space, rho, normalize=normalize, ignore_index=ignore_index, reduction="none"
        )
        for name in ("total", "weight"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")
        # Metrics with equal states share them from then on, and NaN is not equal to NaN.
        self.add_state("unequal", torch.tensor(torch.nan), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> None:
        """Add the rows of a batch; see the class."""
        with torch.no_grad(), validation.renaming({"x": "preds"}):  # `forward` enables gradients
            losses, weight, counts = self.loss._rows(preds, target, sample_weight)
        losses = losses.double()
        weight = counts if weight is None else weight  # 0 for ignored labels
        weight = torch.ones_like(losses) if weight is None else weight.detach().double()
        if weight.device.type == "cpu":
            validation.check_weights(weight.numpy(), tuple(weight.shape))
        self.total += (losses * weight).sum()
        self.weight += weight.sum()

    def compute(self) -> Tensor:
        """Return the weighted mean; see the class."""
        return self.total / self.weight
