"""Section 5.3 of the paper on texts: 982 classes in a hierarchy, learned from their glosses.

    python examples/wordnet_glosses.py [--quick] [--folder FOLDER]

Prints tables and saves `wordnet_glosses.csv` and `wordnet_glosses.png`. Results are saved in
`wordnet_glosses.jsonl`, so that an interrupted run continues from there. See docs/glosses.md.
"""

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import matplotlib.pyplot as plt
import numba
import numpy as np
import torch
from experiments import Runs, band, mean_and_spread
from gloss_texts import N_BUCKETS, rank_in_class, task
from torch import nn

import fastemd.torch
from fastemd.demo.common import parse_options, save_table

# Steps are too small for several threads; runs are distributed to processes instead.
torch.set_num_threads(1)
numba.set_num_threads(1)

N_HIDDEN, BATCH, FEW = 128, 128, 10
MEASURES = {"top-1": -1, "tree distance": 1, "EMD": 1}  # 1 if smaller values are better
CRITERIA = ("top-1", "EMD")  # the measures that select a learning rate
BASE = "CE"


class SinkhornLoss(nn.Module):
    """A quarter of the Sinkhorn distance plus three quarters of the cross entropy, for labels.

    All mass of a label is in one bin, so there is only one transport plan, and Sinkhorn's first
    iteration finds it. Its objective <T, cost> - h(T) / lambda is EMD (rho = 1) minus the entropy
    of the prediction over lambda. tests/examples/test_glosses.py compares with `fastemd.sinkhorn`,
    which computes two products with a matrix of 982 x 982 per iteration.
    """

    def __init__(self, space, lam):
        super().__init__()
        self.cost, self.lam = torch.from_numpy(space.cost_matrix()).float(), lam

    def forward(self, logits, label):
        log_p = logits.log_softmax(-1)
        distance = (log_p.exp() * (self.cost[label] + log_p / self.lam)).sum(-1).mean()
        return (distance + 3 * nn.functional.nll_loss(log_p, label)) / 4


LOSSES = {
    BASE: lambda tree: nn.CrossEntropyLoss(),
    "EMD² + CE": lambda tree: fastemd.torch.EMDLoss(tree, rho=2, cross_entropy=1),
    "SD + CE": lambda tree: SinkhornLoss(tree, lam=3.0),
    "EMD²": lambda tree: fastemd.torch.EMDLoss(tree, rho=2),
    "EMD": lambda tree: fastemd.torch.EMDLoss(tree, rho=1),
}


class Net(nn.Module):
    """The sum of the vectors of a text's words, ReLU, and one linear layer."""

    def __init__(self, n_classes):
        super().__init__()
        self.words = nn.EmbeddingBag(N_BUCKETS, N_HIDDEN, mode="sum")
        nn.init.normal_(self.words.weight, std=0.1)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(N_HIDDEN, n_classes)

    def forward(self, words, offsets):
        return self.out(self.drop(self.words(words, offsets).relu()))


class Run(NamedTuple):
    """The settings of one training."""

    few: bool  # only FEW texts per class
    loss: str
    rate: float
    seed: int
    part: str  # "validation" or "test"
    epochs: int
    n_measured: int | None  # number of texts of `part`; None: all


def train(run):
    """Return the measures after every epoch (epochs, measures)."""
    tree, words, label, parts = task()
    torch.manual_seed(run.seed)
    rows, measured_rows = parts["training"], parts[run.part][: run.n_measured]
    if run.few:
        order = np.random.default_rng(run.seed).permutation(len(rows))
        rows = rows[rank_in_class(label[rows], order) < FEW]

    def batch(rows):
        texts = [words[row] for row in rows]
        offsets = np.cumsum([0, *map(len, texts[:-1])])
        inputs = torch.from_numpy(np.concatenate(texts)), torch.from_numpy(offsets)
        return inputs, torch.from_numpy(label[rows])

    net, loss = Net(tree.n_bins), LOSSES[run.loss](tree)
    holistic, distance = fastemd.torch.EMDLoss(tree, rho=1), torch.from_numpy(tree.cost_matrix())
    optimizer = torch.optim.SGD(net.parameters(), run.rate, momentum=0.9)
    n_steps = run.epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.rate, n_steps, cycle_momentum=False
    )
    inputs, truth = batch(measured_rows)
    measures = []
    for _ in range(run.epochs):
        net.train()
        for indices in torch.randperm(len(rows)).split(BATCH):
            texts, labels = batch(rows[indices.numpy()])
            optimizer.zero_grad()
            loss(net(*texts), labels).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            logits = net(*inputs)
            best = logits.argmax(-1)
            accuracy = (best == truth).double().mean()
            measures.append([accuracy, distance[best, truth].mean(), holistic(logits, truth)])
    return np.array(measures, dtype=float)


class Scale(NamedTuple):
    """The size of the experiment."""

    settings: dict  # name: (few texts per class?, epochs)
    losses: tuple
    rates: tuple
    seeds: tuple
    n_measured: int | None


FULL = Scale(
    {"all texts": (False, 12), f"{FEW} per class": (True, 20)},
    tuple(LOSSES),
    (0.1, 0.2, 0.5, 1.0, 2.0),
    (1, 2, 3, 4, 5),
    None,
)
QUICK = Scale({f"{FEW} per class": (True, 2)}, tuple(LOSSES)[:3], (2.0,), (1, 2), 1000)


class Experiment:
    """The runs that select learning rates, and those with the selected rates."""

    def __init__(self, scale, runs, submit):
        self.scale, self.runs, self.submit = scale, runs, submit

    def run(self, setting, loss, rate, seed, part):
        few, epochs = self.scale.settings[setting]
        return Run(few, loss, rate, seed, part, epochs, self.scale.n_measured)

    def results(self, runs):
        """Return the measures of runs by key; runs that are not saved are computed in parallel."""
        names = {key: " ".join(map(str, run)) for key, run in runs.items()}
        new = {names[key]: run for key, run in runs.items() if names[key] not in self.runs.results}
        futures = {name: self.submit(train, run) for name, run in new.items()}
        results = {}
        for key, run in runs.items():
            future = futures.get(names[key])
            results[key] = self.runs.get(names[key], work(run), future.result if future else None)
        return results

    def choose_rates(self):
        """Return {(setting, loss, measure): rate}, the best on the validation texts at the end."""
        runs = {
            (setting, loss, rate): self.run(setting, loss, rate, 0, "validation")
            for setting in self.scale.settings
            for loss in self.scale.losses
            for rate in self.scale.rates
        }
        results = self.results(runs)
        best_rates = {}
        for setting in self.scale.settings:
            for loss in self.scale.losses:
                at_end = np.array([results[setting, loss, rate][-1] for rate in self.scale.rates])
                for measure, sign, values in zip(
                    MEASURES, MEASURES.values(), at_end.T, strict=True
                ):
                    best = np.nan_to_num(sign * values, nan=np.inf).argmin()
                    best_rates[setting, loss, measure] = self.scale.rates[best]
                    pairs = zip(self.scale.rates, values, strict=True)
                    listed = ", ".join(f"{rate:g} -> {value:.3f}" for rate, value in pairs)
                    print(f"{setting}, {loss}, validation {measure}: {listed}")
        return {key: rate for key, rate in best_rates.items() if key[2] in CRITERIA}

    def measure(self, rates):
        """Return {(setting, loss, measure): (seeds, epochs, measures)} on the test texts."""
        runs = {
            (setting, loss, measure, seed): self.run(setting, loss, rate, seed, "test")
            for (setting, loss, measure), rate in rates.items()
            for seed in self.scale.seeds
        }
        results = self.results(runs)
        return {key: np.array([results[*key, seed] for seed in self.scale.seeds]) for key in rates}


def work(run):
    """Return the work of a run, roughly in texts."""
    return run.epochs * (FEW if run.few else 27)


def main(arguments=None):
    options = parse_options("examples/wordnet_glosses.py", __doc__, arguments)
    scale, path = QUICK if options.quick else FULL, options.folder / "wordnet_glosses"
    n_runs = len(scale.losses) * (len(scale.rates) + len(CRITERIA) * len(scale.seeds))
    total = n_runs * sum(work(Run(few, "", 0, 0, "", n, 0)) for few, n in scale.settings.values())
    runs = Runs(path.with_suffix(".jsonl"), scale, total)
    with process_pool(1 if options.quick else 2) as submit:
        experiment = Experiment(scale, runs, submit)
        rates = experiment.choose_rates()
        results = experiment.measure(rates)
    save_table(
        path.with_suffix(".csv"),
        ["setting", "loss", "rate chosen by", "rate", "seed", "epoch", *MEASURES],
        (
            [*key, rates[key], seed, epoch, *map("{:.6g}".format, row)]
            for key, values in results.items()
            for seed, epochs in zip(scale.seeds, values, strict=True)
            for epoch, row in enumerate(epochs, 1)
        ),
    )
    print(f"\nalways the same class, the nearest: tree distance {constant_answer_distance():.3f}")
    for setting in scale.settings:
        for measure in CRITERIA:
            print(f"\n{setting}, rates chosen by {measure}\n")
            print_table(
                {loss: results[setting, loss, measure] for loss in scale.losses},
                {loss: rates[setting, loss, measure] for loss in scale.losses},
            )
    draw(scale, results, path.with_suffix(".png"))
    for (setting, loss, measure), values in results.items():
        check(f"{loss}, {setting}, rate chosen by {measure}", loss, values[:, -1])


def constant_answer_distance():
    """Return the tree distance of always predicting the class nearest to the training texts."""
    tree, _, label, parts = task()
    cost = tree.cost_matrix()
    answer = cost[:, label[parts["training"]]].mean(axis=1).argmin()
    return cost[answer, label[parts["test"]]].mean()


@contextlib.contextmanager
def process_pool(n_processes):
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def print_table(results, rates):
    """Print mean and standard deviation over the seeds at the end, also of differences to CE."""
    print("| loss | rate |", " | ".join(f"{m} | less CE" for m in MEASURES), "|")
    print("|---|--:|" + "--:|" * 2 * len(MEASURES))
    for loss, values in results.items():
        cells = [loss, f"{rates[loss]:g}"]
        for i in range(len(MEASURES)):
            mean, spread = mean_and_spread(values[:, -1, i])
            difference, its_spread = mean_and_spread(values[:, -1, i] - results[BASE][:, -1, i])
            star = " *" if abs(difference) > 2 * its_spread else ""
            cells.append(f"{mean:.3f} ± {spread:.3f}")
            cells.append("" if loss == BASE else f"{difference:+.3f} ± {its_spread:.3f}{star}")
        print("|", " | ".join(cells), "|")


def draw(scale, results, path):
    figure, axes = plt.subplots(
        len(scale.settings), len(MEASURES), squeeze=False, layout="constrained",
        figsize=(11, 3.2 * len(scale.settings)),
    )  # fmt: skip
    for row, (setting, (_, epochs)) in zip(axes, scale.settings.items(), strict=True):
        for i, (axis, measure) in enumerate(zip(row, MEASURES, strict=True)):
            for loss in scale.losses:
                values = results[setting, loss, CRITERIA[0]][..., i]
                band(axis, np.arange(1, epochs + 1), values, loss)
            axis.set(title=f"{measure}, {setting}", xlabel="epoch")
    axes[0, 0].legend()
    figure.savefig(path, dpi=80)


def check(name, loss, at_end):
    """Check that the net learned: untrained, 1 text in 982 is right, and the EMD is 11."""
    accuracy, _, emd = at_end.T
    assert emd.max() < 10.5, f"{name}: did not learn"
    assert "CE" not in loss or accuracy.min() > 0.03, f"{name}: did not learn"


if __name__ == "__main__":
    main()
