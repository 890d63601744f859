r"""
The effect of rho
=================

The classes are ordered, like the grades 1 to 9. :math:`EMD^\rho` raises the flow between
neighbours to the power :math:`\rho`. A larger :math:`\rho` gives more weight to gaps that much mass
crosses, and less to gaps that little mass crosses.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastemd

# %%
# The truth is grade 3. The prediction is a broad hump around grade 6.

grades = np.arange(1, 10)
chain = fastemd.Chain(grades.size)
truth = (grades == 3).astype(float)
prediction = np.exp(-0.5 * ((grades - 6) / 1.5) ** 2)
prediction /= prediction.sum()

flow = fastemd.emd_flow(prediction, truth, chain)
print("flow across each gap:", flow.round(2))

# %%
# For ``rho=1`` every gap that is crossed counts the same: the gradient increases linearly with the
# distance from the truth, independently of the mass there. Larger powers weigh a gap by the mass
# that crosses it, so the gradient is flat where hardly any mass has to cross.

figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
top.bar(grades, prediction, label="prediction")
top.bar(grades, truth, fill=False, edgecolor="black", label="truth")
top.set(ylabel="mass")
top.legend()
for rho in (1, 1.5, 2, 3):
    gradient = fastemd.emd_grad(prediction, truth, chain, rho)
    bottom.plot(grades, gradient, marker="o", label=f"rho = {rho}")
bottom.axhline(0, color="black", linewidth=0.8)
bottom.set(xlabel="grade", ylabel="gradient", xticks=grades)
bottom.legend()
plt.show()
