"""Section 5.3 of the paper on texts: 982 classes in a hierarchy, learned from their glosses.

    python examples/wordnet_glosses.py [--quick] [--folder FOLDER]

Prints tables, saves `wordnet_glosses.csv` and `wordnet_glosses.png`. What has been computed is kept
in `wordnet_glosses.jsonl`; started again, it goes on from there. docs/glosses.md says more.
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

import fastemd
import fastemd.torch
from fastemd.demo.common import parse_options, save_table

# Steps are too small to be shared between threads; runs are shared between processes.
torch.set_num_threads(1)
numba.set_num_threads(1)

N_HIDDEN, BATCH, FEW = 128, 128, 10
MEASURES = {"top-1": -1, "tree distance": 1, "EMD": 1}  # and the sign that makes less better
CHOOSING = ("top-1", "EMD")  # the measures to choose a learning rate by
BASE = "CE"


class SinkhornLoss(nn.Module):
    """A quarter of Sinkhorn distance, three of cross entropy, for labels.

    All of a label's mass is in one bin, so there is one transport plan: everything goes there.
    Sinkhorn's first iteration finds it, and what it minimises, <T, cost> - h(T) / lambda, is
    EMD (rho = 1) less the entropy of the prediction over lambda. tests/examples/test_glosses.py
    checks that against `fastemd.sinkhorn`, which takes two products with a matrix of 982 x 982 per
    iteration.
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
    """One training: with which loss and rate, on how many texts of a class, measured on what."""

    few: bool
    loss: str
    rate: float
    seed: int
    part: str  # "validation" or "test"
    epochs: int
    n_measured: int | None  # so many texts; None: all


def train(run):
    """The measures after every epoch (epochs, measures)."""
    tree, words, label, parts = task()
    torch.manual_seed(run.seed)
    rows, others = parts["training"], parts[run.part][: run.n_measured]
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
    inputs, truth = batch(others)
    seen = []
    for _ in range(run.epochs):
        net.train()
        for chosen in torch.randperm(len(rows)).split(BATCH):
            some, labels = batch(rows[chosen.numpy()])
            optimizer.zero_grad()
            loss(net(*some), labels).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            logits = net(*inputs)
            best = logits.argmax(-1)
            right = (best == truth).double().mean()
            seen.append([right, distance[best, truth].mean(), holistic(logits, truth)])
    return np.array(seen, dtype=float)


class Form(NamedTuple):
    """How much is done."""

    settings: dict  # name: (few texts per class?, epochs)
    losses: tuple
    rates: tuple
    seeds: tuple
    n_measured: int | None


FULL = Form(
    {"all texts": (False, 12), f"{FEW} per class": (True, 20)},
    tuple(LOSSES),
    (0.1, 0.2, 0.5, 1.0, 2.0),
    (1, 2, 3, 4, 5),
    None,
)
QUICK = Form({f"{FEW} per class": (True, 2)}, tuple(LOSSES)[:3], (2.0,), (1, 2), 1000)


class Experiment:
    """The runs of a form: to choose rates, and with the chosen ones."""

    def __init__(self, form, runs, submit):
        self.form, self.runs, self.submit = form, runs, submit

    def run(self, setting, loss, rate, seed, part):
        few, epochs = self.form.settings[setting]
        return Run(few, loss, rate, seed, part, epochs, self.form.n_measured)

    def results(self, plan):
        """The measures of every key's run; those that are not kept yet run side by side."""
        names = {key: " ".join(map(str, run)) for key, run in plan.items()}
        new = {names[key]: run for key, run in plan.items() if names[key] not in self.runs.kept}
        futures = {name: self.submit(train, run) for name, run in new.items()}
        found = {}
        for key, run in plan.items():
            future = futures.get(names[key])
            found[key] = self.runs.get(names[key], work(run), future.result if future else None)
        return found

    def choose_rates(self):
        """{(setting, loss, measure): rate}, best on the validation texts after the last epoch."""
        plan = {
            (setting, loss, rate): self.run(setting, loss, rate, 0, "validation")
            for setting in self.form.settings
            for loss in self.form.losses
            for rate in self.form.rates
        }
        found = self.results(plan)
        chosen = {}
        for setting in self.form.settings:
            for loss in self.form.losses:
                at_end = np.array([found[setting, loss, rate][-1] for rate in self.form.rates])
                for measure, sign, values in zip(
                    MEASURES, MEASURES.values(), at_end.T, strict=True
                ):
                    best = np.nan_to_num(sign * values, nan=np.inf).argmin()
                    chosen[setting, loss, measure] = self.form.rates[best]
                    pairs = zip(self.form.rates, values, strict=True)
                    seen = ", ".join(f"{rate:g} -> {value:.3f}" for rate, value in pairs)
                    print(f"{setting}, {loss}, validation {measure}: {seen}")
        return {key: rate for key, rate in chosen.items() if key[2] in CHOOSING}

    def measure(self, rates):
        """{(setting, loss, measure): (seeds, epochs, measures)} on the test texts."""
        plan = {
            (setting, loss, measure, seed): self.run(setting, loss, rate, seed, "test")
            for (setting, loss, measure), rate in rates.items()
            for seed in self.form.seeds
        }
        found = self.results(plan)
        return {key: np.array([found[*key, seed] for seed in self.form.seeds]) for key in rates}


def work(run):
    """In texts seen, about."""
    return run.epochs * (FEW if run.few else 27)


def main(arguments=None):
    chosen = parse_options("examples/wordnet_glosses.py", __doc__, arguments)
    form, path = QUICK if chosen.quick else FULL, chosen.folder / "wordnet_glosses"
    n_runs = len(form.losses) * (len(form.rates) + len(CHOOSING) * len(form.seeds))
    total = n_runs * sum(work(Run(few, "", 0, 0, "", n, 0)) for few, n in form.settings.values())
    runs = Runs(path.with_suffix(".jsonl"), form, total)
    with side_by_side(1 if chosen.quick else 2) as submit:
        experiment = Experiment(form, runs, submit)
        rates = experiment.choose_rates()
        results = experiment.measure(rates)
    save_table(
        path.with_suffix(".csv"),
        ["setting", "loss", "rate chosen by", "rate", "seed", "epoch", *MEASURES],
        (
            [*key, rates[key], seed, epoch, *map("{:.6g}".format, row)]
            for key, values in results.items()
            for seed, epochs in zip(form.seeds, values, strict=True)
            for epoch, row in enumerate(epochs, 1)
        ),
    )
    print(f"\nalways the same class, the nearest: tree distance {without_learning():.3f}")
    for setting in form.settings:
        for measure in CHOOSING:
            print(f"\n{setting}, rates chosen by {measure}\n")
            print_table(
                {loss: results[setting, loss, measure] for loss in form.losses},
                {loss: rates[setting, loss, measure] for loss in form.losses},
            )
    draw(form, results, path.with_suffix(".png"))
    for (setting, loss, measure), values in results.items():
        check(f"{loss}, {setting}, rate chosen by {measure}", loss, values[:, -1])


def without_learning():
    """The tree distance, and EMD, of always answering the class nearest to the training texts."""
    tree, _, label, parts = task()
    cost = tree.cost_matrix()
    answer = cost[:, label[parts["training"]]].mean(axis=1).argmin()
    return cost[answer, label[parts["test"]]].mean()


@contextlib.contextmanager
def side_by_side(n_processes):
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def print_table(results, rates):
    """Mean and standard deviation over the seeds after the last epoch, and of what CE has less."""
    print("| loss | rate |", " | ".join(f"{m} | less CE" for m in MEASURES), "|")
    print("|---|--:|" + "--:|" * 2 * len(MEASURES))
    for loss, values in results.items():
        cells = [loss, f"{rates[loss]:g}"]
        for i in range(len(MEASURES)):
            mean, spread = mean_and_spread(values[:, -1, i])
            more, its_spread = mean_and_spread(values[:, -1, i] - results[BASE][:, -1, i])
            star = " *" if abs(more) > 2 * its_spread else ""
            cells.append(f"{mean:.3f} ± {spread:.3f}")
            cells.append("" if loss == BASE else f"{more:+.3f} ± {its_spread:.3f}{star}")
        print("|", " | ".join(cells), "|")


def draw(form, results, path):
    figure, axes = plt.subplots(
        len(form.settings), len(MEASURES), squeeze=False, layout="constrained",
        figsize=(11, 3.2 * len(form.settings)),
    )  # fmt: skip
    for row, (setting, (_, epochs)) in zip(axes, form.settings.items(), strict=True):
        for i, (axis, measure) in enumerate(zip(row, MEASURES, strict=True)):
            for loss in form.losses:
                values = results[setting, loss, CHOOSING[0]][..., i]
                band(axis, np.arange(1, epochs + 1), values, loss)
            axis.set(title=f"{measure}, {setting}", xlabel="epoch")
    axes[0, 0].legend()
    figure.savefig(path, dpi=80)


def check(name, loss, at_end):
    """An untrained net gets a text in 982 right, and the EMD of its predictions is 11."""
    right, _, emd = at_end.T
    assert emd.max() < 10.5, f"{name}: did not learn"
    assert "CE" not in loss or right.min() > 0.03, f"{name}: did not learn"


if __name__ == "__main__":
    main()
