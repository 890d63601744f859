"""From a minute of chest movement to the spectrum of the breath: four losses on a chain.

Section 5.2 of Martinez et al. (arXiv:1611.07573) on eight sleepers; docs/breathing.md has the
results. An interrupted run continues if it is started again in the same folder.
"""

from pathlib import Path

import numba
import numpy as np
import torch
from experiments import Runs, band, mean_and_spread
from matplotlib.figure import Figure
from torch import nn

import fastemd
import fastemd.torch
from fastemd.demo.common import parse_options, save_table

# Steps are too small for a second thread, in torch and in fastemd.
torch.set_num_threads(1)
numba.set_num_threads(1)

DATA = Path(__file__).parent / "data" / "apnea_breathing.npz"
SECONDS, FILTERS, WIDTH, BATCH = 60, 16, 11, 64
CHAIN = fastemd.Chain(SECONDS // 2 + 1)  # frequencies in steps of 1/60 Hz
# The cuts between c01, c02 and c03 are approximate, so these patients form one fold.
FOLDS = ("a01", "a02", "a03", "a04", "b01", "c")
REGULAR = ("b01", "c")  # regular breath, which the net must learn from the other folds
POINTS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
FULL = {
    "folds": FOLDS,
    "steps": (100, 1000),  # a short and a long training, with separate rates
    "rates": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "seeds": (1, 2, 3),
    "every": 1,  # stride of the clips that are used
}
QUICK = {
    "folds": REGULAR, "steps": (10, 30), "rates": (0.003, 0.01), "seeds": (1, 2), "every": 8
}  # fmt: skip


LOSSES = {
    "MSE": lambda p, q: (p - q).square().sum(-1),
    "SD": lambda p, q: fastemd.torch.sinkhorn(p, q, CHAIN, lam=3, dtype=torch.float64),
    "EMD": lambda p, q: fastemd.torch.emd(p, q, CHAIN, 1),
    "EMD^2": lambda p, q: fastemd.torch.emd(p, q, CHAIN, 2),
}
WORK = {"MSE": 1, "SD": 5, "EMD": 1, "EMD^2": 1}  # per step, roughly; for the progress bar


class Net(nn.Sequential):
    """The paper's net: temporal convolutions, tanh, one full layer, square, l1."""

    def __init__(self):
        n_hidden = FILTERS * (SECONDS - WIDTH + 1)
        super().__init__(
            nn.Conv1d(1, FILTERS, WIDTH),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(n_hidden, CHAIN.n_bins),
        )

    def forward(self, chest):
        power = super().forward(chest[:, None]).square() + 1e-9  # no bin is empty
        return power / power.sum(-1, keepdim=True)


def centred(clips):
    clips = clips.astype(float)
    return clips - clips.mean(-1, keepdims=True)


def spectrum(clips):
    """Return power spectral densities with sum 1, (..., seconds) -> (..., bins)."""
    power = np.abs(np.fft.rfft(centred(clips) * np.hanning(SECONDS))) ** 2
    return power / power.sum(-1, keepdims=True)


class Clips:
    """Chest movement, the input of the net; the spectra to predict; the fold of every clip."""

    def __init__(self, every):
        with np.load(DATA) as data:
            chest, nasal, patient = (data[name][::every] for name in ("chest", "nasal", "patient"))
        chest = centred(chest)
        self.chest = torch.from_numpy(chest / chest.std(-1, keepdims=True)).float()
        self.chest_spectrum = spectrum(chest)
        self.spectrum = torch.from_numpy(spectrum(nasal)).float()
        self.fold = np.minimum(patient, FOLDS.index("c"))  # the last patients are c01 to c03

    def of(self, *folds):
        """Return the indices of the clips of some folds."""
        return torch.from_numpy(np.flatnonzero(np.isin(self.fold, [*map(FOLDS.index, folds)])))


def split(fold):
    """Return folds to fit and folds to validate, for tuning without the test patients."""
    at = FOLDS.index(fold)
    others = FOLDS[at + 1 :] + FOLDS[:at]
    return others[2:], others[:2]


def train(clips, loss, rate, seed, training, test, n_steps):
    """Return the EMD on the folds `test` at all POINTS up to `n_steps`."""
    torch.manual_seed(seed)  # first weights and batches are the same for all losses
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), rate)
    rows, test_rows = clips.of(*training), clips.of(*test)
    distances = []
    for step in range(n_steps + 1):
        if step in POINTS:
            with torch.no_grad():
                p = net(clips.chest[test_rows])
            emd = fastemd.torch.emd(p, clips.spectrum[test_rows], CHAIN, 1)
            distances.append(emd.double().mean().item())
        batch = rows[torch.randint(len(rows), (BATCH,))]
        optimizer.zero_grad()
        LOSSES[loss](net(clips.chest[batch]), clips.spectrum[batch]).mean().backward()
        optimizer.step()
    return distances


def tuning(clips, scale, runs):
    """Return curves on the validation folds, by rate, for every fold and loss."""
    n_steps, seed = max(scale["steps"]), 0
    return {
        (fold, loss): {
            rate: runs.get(
                f"tune {fold} {loss} {rate}", WORK[loss] * n_steps,
                train, clips, loss, rate, seed, *split(fold), n_steps,
            )
            for rate in scale["rates"]
        }
        for fold in scale["folds"]
        for loss in LOSSES
    }  # fmt: skip


def testing(clips, scale, runs, rates, n_steps):
    """Return curves on the test folds, (folds, seeds, losses, points)."""

    def curve(fold, seed, loss):
        name, work = f"test {fold} {loss} {seed} {n_steps}", WORK[loss] * n_steps
        others, rate = set(FOLDS) - {fold}, rates[fold, loss]
        return runs.get(name, work, train, clips, loss, rate, seed, others, (fold,), n_steps)

    return np.array([
        [[curve(fold, seed, loss) for loss in LOSSES] for seed in scale["seeds"]]
        for fold in scale["folds"]
    ])  # fmt: skip


def work(scale):
    per_step = sum(WORK.values()) * len(scale["folds"])
    tuning = max(scale["steps"]) * len(scale["rates"])
    return per_step * (tuning + sum(scale["steps"]) * len(scale["seeds"]))


def table(curves):
    """Yield statistics over all folds and seeds, and of the differences to MSE over the folds."""
    for n_steps, values in curves.items():
        for at, step in enumerate(POINTS[: values.shape[-1]]):
            for i, loss in enumerate(LOSSES):
                mean, spread = mean_and_spread(values[:, :, i, at].ravel())
                less = (values[:, :, i, at] - values[:, :, 0, at]).mean(1)  # paired, per fold
                yield n_steps, step, loss, mean, spread, *mean_and_spread(less), (less < 0).sum()


def by_fold(clips, folds, values):
    """Yield the EMD per fold: without training, and at the end, the mean over the seeds."""
    for fold, of_fold in zip(folds, values, strict=True):
        rows, others = clips.of(fold), clips.of(*(set(FOLDS) - {fold}))
        truth = clips.spectrum[rows].double().numpy()
        guesses = clips.spectrum[others].double().mean(0).numpy(), clips.chest_spectrum[rows]
        references = [fastemd.emd(p, truth, CHAIN, 1, validate=1e-5).mean() for p in guesses]
        yield fold, len(rows), *references, of_fold[:, :, 0].mean(), *of_fold[..., -1].mean(0)


def draw(curves, folds, path):
    """Draw all folds for each length of training, then single folds for the longest."""
    panels = [(f"all folds, rates for {n_steps} steps", runs) for n_steps, runs in curves.items()]
    longest = curves[max(curves)]
    panels += [(f"{fold} left out", runs[None]) for fold, runs in zip(folds, longest, strict=True)]
    rows = len(panels) // 4
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 4)
    for axis, (title, runs) in zip(axes.flat, panels, strict=True):
        reached = POINTS[: runs.shape[-1]]
        for i, loss in enumerate(LOSSES):
            band(axis, reached, runs[:, :, i].reshape(-1, len(reached)), loss)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_title(title, fontsize="medium")
    figure.supxlabel("steps")
    figure.supylabel("EMD on patients not seen")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=75)


def check(rows):
    """Check that on regular breath every loss beats the mean spectrum, unlike an untrained net."""
    for fold, _, constant, _, untrained, *ends in rows:
        if fold in REGULAR:
            assert untrained > constant, f"{fold}: the untrained net beats the mean spectrum"
            assert max(ends) < constant, f"{fold}: a loss did not learn, {ends}"


def main():
    options = parse_options("examples/breathing_psd.py", __doc__)
    scale = QUICK if options.quick else FULL
    clips = Clips(scale["every"])
    settings = scale | {"batch": BATCH, "points": POINTS}
    runs = Runs(options.folder / "breathing-runs.jsonl", settings, work(scale))
    tuned, curves, rates = tuning(clips, scale, runs), {}, {}
    for n_steps in scale["steps"]:  # use the rate that is best after n_steps
        at = POINTS.index(n_steps)
        rates[n_steps] = {key: min(by, key=lambda rate: by[rate][at]) for key, by in tuned.items()}
        curves[n_steps] = testing(clips, scale, runs, rates[n_steps], n_steps)

    header = ["tuned_for", "fold", "seed", "loss", "rate", "step", "emd"]
    save_table(options.folder / "breathing-curves.csv", header, (
        (n_steps, fold, seed, loss, rates[n_steps][fold, loss], step, values[f, s, i, at])
        for n_steps, values in curves.items()
        for f, fold in enumerate(scale["folds"])
        for s, seed in enumerate(scale["seeds"])
        for i, loss in enumerate(LOSSES)
        for at, step in enumerate(POINTS[: values.shape[-1]])
    ))  # fmt: skip
    header = [
        "tuned_for",
        "step",
        "loss",
        "mean",
        "spread",
        "less_mse",
        "its_spread",
        "folds_below",
    ]
    rows = list(table(curves))
    save_table(options.folder / "breathing-table.csv", header, rows)
    for n_steps, step, loss, mean, spread, less, its_spread, below in rows:
        if step in (10, 30, 100, 300, 1000):
            print(
                f"tuned for {n_steps:4}, step {step:4}: {loss:5} {mean:.2f} ± {spread:.2f},"
                f" less MSE {less:+.2f} ± {its_spread:.2f}, below it in {below} folds"
            )
    header = ["fold", "clips", "mean_spectrum", "chest_spectrum", "untrained", *LOSSES]
    rows = list(by_fold(clips, scale["folds"], curves[max(scale["steps"])]))
    save_table(options.folder / "breathing-folds.csv", header, rows)
    print(*header)
    for fold, n_clips, *numbers in rows:
        print(fold, n_clips, *(f"{number:.2f}" for number in numbers))
    draw(curves, scale["folds"], options.folder / "breathing.png")
    check(rows)


if __name__ == "__main__":
    main()
