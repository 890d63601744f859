r"""
Where gradients lead
====================

Figure 5 of the paper: gradient descent moves a smooth histogram p towards a spiky q on a chain. The
losses are the mean squared error, EMD, its relaxed form :math:`EMD^2`, and the Sinkhorn distance
(SD) for three :math:`\lambda`. The figure shows their gradients, and the histograms on the way.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastemd

# %%
# A broad hump and three spikes. Every bin keeps a little mass: without any, the gradient of a
# Sinkhorn distance is infinite.

n_bins, floor = 40, 1e-5
bins = np.arange(n_bins)
chain = fastemd.Chain(n_bins)
p = np.exp(-0.5 * ((bins - 13) / 5) ** 2) + floor
p /= p.sum()
q = np.full(n_bins, floor)
q[[16, 25, 33]] = 0.4, 0.2, 0.4
q /= q.sum()


def sinkhorn_gradient(lam):
    """Return the gradient in the log domain, which is accurate for every lambda.

    Ten times as many iterations change the distances at the end by 0.003 at most.
    """
    return lambda p: (
        fastemd.sinkhorn(p, q, chain, lam=lam, max_iter=300, tol=1e-4, method="log").grad
    )


gradients = {
    "MSE": lambda p: 2 * (p - q) / n_bins,
    "EMD": lambda p: fastemd.emd_grad(p, q, chain, 1),
    "EMD²": lambda p: fastemd.emd_grad(p, q, chain, 2),
    "SD, λ = 0.5": sinkhorn_gradient(0.5),
    "SD, λ = 1": sinkhorn_gradient(1),
    "SD, λ = 10": sinkhorn_gradient(10),
}

# %%
# Every step follows the negative gradient and projects onto the histograms with a minimum mass in
# every bin. All losses move the same amount of mass in their first step; the steps then shrink by
# the same factor.


def nearest_histogram(x):
    """Project onto the histograms with at least `floor` in every bin."""
    mass = 1 - n_bins * floor
    descending = np.sort(x - floor)[::-1]
    excess = (np.cumsum(descending) - mass) / np.arange(1, n_bins + 1)
    return np.maximum(x - floor - excess[np.flatnonzero(descending > excess)[-1]], 0) + floor


def flow(gradient, n_steps=1000, shown=(0, 10, 30, 100, 1000)):
    """Return the histograms after some numbers of steps."""
    x, histograms = p.copy(), {0: p}
    for step in range(1, n_steps + 1):
        g = gradient(x)
        g = g - g.mean()
        x = nearest_histogram(x - 0.04 * 0.994**step * g / np.abs(g).sum())
        if step in shown:
            histograms[step] = x
    return histograms


# sphinx_gallery_thumbnail_path = "images/thumbs/gradient_flow.png"
figure, axes = plt.subplots(6, 2, figsize=(10, 13), sharex=True, layout="constrained")
colors = plt.cm.viridis(np.linspace(0.9, 0.0, 5))
distance = {}
for (name, gradient), (left, right) in zip(gradients.items(), axes, strict=True):
    g = gradient(p)
    g = g - g.mean()
    left.axhline(0, color="black", linewidth=0.8)
    left.bar(bins, g / np.abs(g).max(), color=np.where(g > 0, "C3", "C0"))
    left.set(ylabel=name, yticks=[-1, 0, 1], ylim=(-1.1, 1.1))
    right.bar(bins, q, color="0.85", label="q")
    for (step, x), color in zip(flow(gradient).items(), colors, strict=True):
        right.plot(bins, x, color=color, label=f"{step} steps")
    distance[name] = fastemd.emd(x, q, chain, 1)
    right.set(ylim=(0, 0.45))
axes[0, 0].set_title("gradient at p: from red to blue")
axes[0, 1].set_title("flow from p to q")
axes[0, 1].legend(fontsize="small")
for axis in axes[-1]:
    axis.set_xlabel("bin")
plt.show()

# %%
# MSE treats every bin separately: it raises the spikes and lowers the hump, and ignores that a bin
# next to a spike is nearly right. EMD's gradient has the same slope wherever any mass has to cross:
# it depends on the direction but not on the amount. :math:`EMD^2` is smooth.
# With a small :math:`\lambda` the Sinkhorn distance prefers blurred histograms, and its flow ends
# in a blur of q; at :math:`\lambda = 10` its gradient is close to EMD's.
#
# The EMD that is left at the end:

print(f"p at the start: {fastemd.emd(p, q, chain, 1):.3f}")
for name, value in distance.items():
    print(f"{name}: {value:.3f}")
