"""Which loss for classes on a tree or a chain? Ten losses compared on three tasks.

    python examples/which_loss.py [--quick] [--folder FOLDER]

Prints tables and saves `which_loss.csv` and `which_loss.png`. Results are saved in
`which_loss.jsonl`, so that an interrupted run continues from there. See docs/which_loss.md.
"""

import contextlib
import functools
import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import matplotlib.pyplot as plt
import numba
import numpy as np
import torch
from experiments import Runs, mean_and_spread
from loss_tasks import TASKS, training_rows
from torch.nn.functional import cross_entropy

from fastemd.demo.common import parse_options, save_table
from fastemd.torch import EMDLoss

# Steps are too small for several threads; runs are distributed to processes instead.
torch.set_num_threads(1)
numba.set_num_threads(1)

MEASURES = {"top-1": -1, "distance": 1, "least expected distance": 1, "EMD": 1}  # 1: minimise
PARTS = ("validation", "test")
CRITERIA = ("top-1", "distance")  # the measures that select the value of a loss
SHARES = (0.1, 1.0, 3.0, 10.0, 30.0)
CE = "CE"


class Loss(NamedTuple):
    """A family of losses that differ by the value of one parameter.

    ``build(space, value)`` returns a function of logits, labels and the elapsed part of training.
    """

    parameter: str
    values: tuple | None  # None: the learning rates of the task
    build: Callable


def cross_entropy_loss(space, rate):
    return lambda logits, label, elapsed: cross_entropy(logits, label)


def smoothed_cross_entropy(space, smoothing):
    return lambda logits, label, elapsed: cross_entropy(logits, label, label_smoothing=smoothing)


def soft_targets(space, beta):
    """Return the CE of targets that decrease exponentially with the distance from the label."""
    target = (-beta * torch.from_numpy(space.scaled().cost_matrix())).softmax(-1).float()
    return lambda logits, label, elapsed: cross_entropy(logits, target[label])


def emd_alone(space, rate, rho):
    loss = EMDLoss(space, rho=rho)  # with edges of length 1, as in the paper
    return lambda logits, label, elapsed: loss(logits, label)


def with_emd(space, share, rho):
    """Return CE + share * EMD^rho, which is linear in the lengths, so they contain the share."""
    loss = EMDLoss(space.scaled(mean_distance=share), rho=rho, cross_entropy=1)
    return lambda logits, label, elapsed: loss(logits, label)


def with_decaying_emd(space, share, rho):
    loss = EMDLoss(space.scaled(mean_distance=share), rho=rho)

    def total(logits, label, elapsed):
        return cross_entropy(logits, label) + (1 - elapsed) * loss(logits, label)

    return total


def with_sinkhorn(space, share, lam=3.0):
    """Return the Sinkhorn distance with the paper's lambda, times the share, plus CE, for labels.

    All mass of a label is in one bin, so there is only one transport plan, and Sinkhorn's first
    iteration finds it. Its objective <T, cost> - h(T) / lambda is EMD (rho = 1) minus the entropy
    of the prediction over lambda. tests/examples/test_which_loss.py compares with
    `fastemd.sinkhorn`, which computes two products of matrices per iteration.
    """
    cost = torch.from_numpy(space.cost_matrix()).float()

    def total(logits, label, elapsed):
        log_p = logits.log_softmax(-1)
        distance = (log_p.exp() * (cost[label] + log_p / lam)).sum(-1).mean()
        return share * distance + torch.nn.functional.nll_loss(log_p, label)

    return total


LOSSES = {
    CE: Loss("rate", None, cross_entropy_loss),
    "label smoothing": Loss("smoothing", (0.02, 0.05, 0.1, 0.2, 0.3), smoothed_cross_entropy),
    "soft targets": Loss("beta", (2.0, 4.0, 7.0, 12.0, 20.0, 35.0), soft_targets),
    "CE + EMD": Loss("share", SHARES, functools.partial(with_emd, rho=1)),
    "CE + EMD^1.5": Loss("share", SHARES, functools.partial(with_emd, rho=1.5)),
    "CE + EMD²": Loss("share", SHARES, functools.partial(with_emd, rho=2)),
    "CE + EMD, decaying": Loss("share", SHARES, functools.partial(with_decaying_emd, rho=1)),
    "CE + SD": Loss("share, unscaled", (1 / 3,), with_sinkhorn),
    "EMD": Loss("rate", None, functools.partial(emd_alone, rho=1)),
    "EMD²": Loss("rate", None, functools.partial(emd_alone, rho=2)),
}


class Scale(NamedTuple):
    """The size of the experiment."""

    tasks: tuple
    settings: tuple  # of every task
    losses: tuple
    seeds: tuple
    n_epochs: int | None  # None: those of the setting


FULL = Scale(tuple(TASKS), (0, 1), tuple(LOSSES), (1, 2, 3, 4, 5), None)
QUICK = Scale(("diamonds",), (1,), (CE, "soft targets", "CE + EMD"), (1, 2), 20)


class Run(NamedTuple):
    """The settings of one training."""

    task: str
    setting: int
    loss: str
    value: float  # of the parameter of the loss
    rate: float
    seed: int
    n_epochs: int | None


def train(run):
    """Return the measures on the validation and test parts after training (2, measures)."""
    task = TASKS[run.task]()
    setting = task.settings[run.setting]
    torch.manual_seed(run.seed)
    rows = training_rows(task, setting, run.seed)
    network, loss = task.network(), LOSSES[run.loss].build(task.space, run.value)
    optimizer = task.optimizer(network.parameters(), run.rate)
    n_epochs = run.n_epochs or setting.n_epochs
    n_steps = n_epochs * -(-len(rows) // setting.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.rate, n_steps, cycle_momentum=False
    )
    steps = itertools.count()
    network.train()
    for _ in range(n_epochs):
        for chosen in torch.randperm(len(rows)).split(setting.batch_size):
            batch = rows[chosen.numpy()]
            optimizer.zero_grad()
            logits, label = network(*task.inputs(batch)), torch.from_numpy(task.label[batch])
            loss(logits, label, next(steps) / n_steps).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return np.array([measure(task, network, task.parts[part]) for part in PARTS])


@torch.no_grad()
def measure(task, network, rows):
    """Return the measures of `MEASURES` on the samples."""
    label, cost = task.label[rows], task.space.cost_matrix().astype(np.float32)
    p = network(*task.inputs(rows)).softmax(-1).numpy()
    best_guess, expected = p.argmax(axis=-1), p @ cost  # distances of all guesses
    return [
        (best_guess == label).mean(),
        cost[best_guess, label].mean(),
        cost[expected.argmin(axis=-1), label].mean(),
        np.take_along_axis(expected, label[:, None], axis=-1).mean(),  # EMD at rho = 1
    ]


class Experiment:
    """The runs that select learning rates, and those with the selected rates."""

    def __init__(self, scale, runs, submit):
        self.scale, self.runs, self.submit = scale, runs, submit

    def results(self, runs):
        """Return the measures of runs by key; runs that are not saved are computed in parallel."""
        names = {key: " ".join(map(str, run)) for key, run in runs.items()}
        futures = {}
        for key, run in runs.items():
            if names[key] in self.runs.results:
                self.runs.get(names[key], seconds(run), None)
            else:
                futures[self.submit(train, run)] = key
        for future in as_completed(futures):
            key = futures[future]
            self.runs.get(names[key], seconds(runs[key]), future.result)
        return {key: np.array(self.runs.results[name]) for key, name in names.items()}

    def choose_rates(self):
        """Return {(task, setting, loss, value): rate}, the best top-1 on the validation part."""
        trials, rates = {}, {}
        for key in cases(self.scale):
            if LOSSES[key[2]].values is None:
                rates[key] = key[3]
            else:
                for rate in TASKS[key[0]]().rates:
                    trials[*key, rate] = Run(*key, rate, 0, self.scale.n_epochs)
        results = self.results(trials)
        for key, trials_of_key in itertools.groupby(trials, lambda trial: trial[:-1]):
            rates[key] = max(trials_of_key, key=lambda trial: results[trial][0, 0])[-1]
        return rates

    def measure(self, rates):
        """Return {(task, setting, loss, value): (seeds, parts, measures)}."""
        runs = {
            (*key, seed): Run(*key, rate, seed, self.scale.n_epochs)
            for key, rate in rates.items()
            for seed in self.scale.seeds
        }
        results = self.results(runs)
        return {key: np.array([results[*key, seed] for seed in self.scale.seeds]) for key in rates}


def cases(scale):
    """Yield the combinations of task, setting, loss and value."""
    for task, setting, loss in itertools.product(scale.tasks, scale.settings, scale.losses):
        for value in LOSSES[loss].values or TASKS[task]().rates:
            yield task, setting, loss, value


def seconds(run):
    """Return the approximate time of a run on one of two busy cores."""
    return TASKS[run.task]().settings[run.setting].seconds


def main(arguments=None):
    options = parse_options("examples/which_loss.py", __doc__, arguments)
    scale, path = QUICK if options.quick else FULL, options.folder / "which_loss"
    settings = scale, [TASKS[task]().settings for task in scale.tasks]
    runs = Runs(path.with_suffix(".jsonl"), settings, total_seconds(scale))
    with process_pool(1 if options.quick else 2) as submit:
        experiment = Experiment(scale, runs, submit)
        rates = experiment.choose_rates()
        results = experiment.measure(rates)
    save_table(
        path.with_suffix(".csv"),
        ["task", "setting", "loss", "value", "rate", "seed", "part", *MEASURES],
        (
            [task, setting_name(task, setting), loss, value, rates[key], seed, part, *row]
            for key, values in results.items()
            for task, setting, loss, value in [key]
            for seed, parts in zip(scale.seeds, values, strict=True)
            for part, row in zip(PARTS, np.round(parts, 6), strict=True)
        ),
    )
    for key, values in results.items():
        if key[2] == CE:
            check(key, values)
    print("\n**CE + EMD with a share of 3**\n")
    print_changes(scale, results, "CE + EMD", 3.0)
    for loss in scale.losses:
        if LOSSES[loss].values and loss != "CE + SD":
            print(f"\n**{loss}, minus CE: top-1 in points, distance and EMD in percent**\n")
            print_all_values(scale, results, loss)
    for criterion in CRITERIA:
        for task, setting in itertools.product(scale.tasks, scale.settings):
            print(f"\n**{setting_name(task, setting)}, values chosen by {criterion}**\n")
            print_chosen(select(results, task, setting), criterion)
    draw(scale, results, path.with_suffix(".png"))


def total_seconds(scale):
    total = 0
    for case in cases(scale):
        n_rates = 0 if LOSSES[case[2]].values is None else len(TASKS[case[0]]().rates)
        total += (n_rates + len(scale.seeds)) * seconds(Run(*case, 0, 0, None))
    return total


def setting_name(task, setting):
    return f"{task}, {TASKS[task]().settings[setting].name}"


def select(results, task, setting):
    """Return {loss: {value: (seeds, parts, measures)}} of a setting."""
    selected = {}
    for key, values in results.items():
        if key[:2] == (task, setting):
            selected.setdefault(key[2], {})[key[3]] = values
    return selected


def best(by_value, criterion):
    """Return the value with the best mean of a measure on the validation part."""
    i = list(MEASURES).index(criterion)
    return min(by_value, key=lambda value: MEASURES[criterion] * by_value[value][:, 0, i].mean())


def best_cross_entropy(by_loss):
    """Return the results of CE with the rate of the best top-1 (seeds, parts, measures)."""
    return by_loss[CE][best(by_loss[CE], CRITERIA[0])]


def differences(results, reference):
    """Return mean, spread, and whether the mean is beyond two spreads, on the test part."""
    mean, spread = mean_and_spread(results[:, 1] - reference[:, 1])
    return mean, spread, abs(mean) > 2 * spread


def changes(results, reference):
    """Return the same with top-1 in points, and the other measures in percent of the reference."""
    mean, spread, is_clear = differences(results, reference)
    unit = reference[:, 1].mean(axis=0) / 100
    unit[0] = 0.01
    return mean / unit, spread / unit, is_clear


def format_change(mean, spread, is_clear, digits):
    return f"{mean:+.{digits}f} ± {spread:.{digits}f}{' *' if is_clear else ''}"


def print_changes(scale, results, loss, value):
    """Print the changes against CE in every setting, with their spread."""
    columns = [i for i, measure in enumerate(MEASURES) if measure != "least expected distance"]
    header = [f"{list(MEASURES)[i]} of CE | change, {'%' if i else 'points'}" for i in columns]
    print("| task |", " | ".join(header), "|")
    print("|---|" + "--:|" * 2 * len(columns))
    for task, setting in itertools.product(scale.tasks, scale.settings):
        by_loss = select(results, task, setting)
        reference = best_cross_entropy(by_loss)
        mean, spread, is_clear = changes(by_loss[loss][value], reference)
        cells = [setting_name(task, setting)]
        for i in columns:
            cells.append(f"{reference[:, 1, i].mean():.3f}")
            cells.append(format_change(mean[i], spread[i], is_clear[i], digits=1))
        print("|", " | ".join(cells), "|")


def print_all_values(scale, results, loss):
    """Print the changes of top-1, distance and EMD against CE, for every value."""
    settings = list(itertools.product(scale.tasks, scale.settings))
    print(f"| {LOSSES[loss].parameter} |", " | ".join(setting_name(*s) for s in settings), "|")
    print("|--:|" + "--:|" * len(settings))
    for value in LOSSES[loss].values:
        cells = [f"{value:g}"]
        for setting in settings:
            by_loss = select(results, *setting)
            mean, _, is_clear = changes(by_loss[loss][value], best_cross_entropy(by_loss))
            stars = ["*" if clear else "" for clear in is_clear]
            cells.append(", ".join(f"{mean[i]:+.1f}{stars[i]}" for i in (0, 1, 3)))
        print("|", " | ".join(cells), "|")


def print_chosen(by_loss, criterion):
    """Print the losses with the best values, and their differences to CE seed by seed."""
    print("| loss | value |", " | ".join(f"{m} | minus CE" for m in MEASURES), "|")
    print("|---|--:|" + "--:|" * 2 * len(MEASURES))
    reference = by_loss[CE][best(by_loss[CE], criterion)]
    for loss, by_value in by_loss.items():
        value = best(by_value, criterion)
        cells = [loss, f"{LOSSES[loss].parameter} {value:.2g}"]
        columns = by_value[value][:, 1].mean(axis=0), *differences(by_value[value], reference)
        for mean, *difference in zip(*columns, strict=True):
            cells.append(f"{mean:.3f}")
            cells.append("" if loss == CE else format_change(*difference, digits=3))
        print("|", " | ".join(cells), "|")


STYLES = {
    CE: "ko",
    "label smoothing": "s-C7",
    "soft targets": "v-C2",
    "CE + EMD": "o-C0",
    "CE + EMD, decaying": "o:C9",
    "CE + SD": "*C3",
    "CE + EMD^1.5": "o-C4",
    "CE + EMD²": "o-C1",
    "EMD²": "xC1",
}


def draw(scale, results, path):
    """Draw top-1 and distance on the test part, a curve per loss through its values."""
    figure, axes = plt.subplots(
        len(scale.tasks), len(scale.settings), squeeze=False, layout="constrained",
        figsize=(5.2 * len(scale.settings), 3.9 * len(scale.tasks) + 0.6),
    )  # fmt: skip
    for row, task in zip(axes, scale.tasks, strict=True):
        for axis, setting in zip(row, scale.settings, strict=True):
            by_loss = select(results, task, setting)
            points = {
                loss: np.array([values[:, 1, :2].mean(axis=0) for values in by_value.values()])
                for loss, by_value in by_loss.items()
            }
            for loss, style in STYLES.items():
                if loss in points:
                    axis.plot(*points[loss].T, style, label=loss, markersize=4, linewidth=1)
            reference = best_cross_entropy(by_loss)[:, 1, :2].mean(axis=0)
            axis.plot(*reference, "ko", markersize=9, fillstyle="none")
            axis.errorbar(*reference, *typical_spread(by_loss)[::-1], "k", elinewidth=0.7)
            zoom(axis, np.concatenate(list(points.values())), reference)
            for share, point in zip(SHARES, points["CE + EMD"], strict=True):
                axis.annotate(
                    f"{share:g}", point, (4, 4), textcoords="offset points", color="C0",
                    fontsize="small", annotation_clip=True,
                )  # fmt: skip
            axis.set(title=setting_name(task, setting), xlabel="top-1")
            axis.set_ylabel(f"distance of the best guess, {TASKS[task]().unit}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=80)


def typical_spread(by_loss):
    """Return the median of the spreads of top-1 and distance minus those of CE."""
    reference = best_cross_entropy(by_loss)
    spreads = [
        differences(results, reference)[1][:2]
        for by_value in by_loss.values()
        for results in by_value.values()
        if results is not reference
    ]
    return np.median(spreads, axis=0)


def zoom(axis, points, reference):
    """Limit the axes to points not much worse than a reference; smaller distances are higher."""
    ratio = points / reference
    near = points[(ratio[:, 0] > 0.93) & (ratio[:, 1] < 1.07)]
    low, high = near.min(axis=0), near.max(axis=0)
    margin = 0.06 * (high - low)
    axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axis.set_ylim(high[1] + margin[1], low[1] - margin[1])


@contextlib.contextmanager
def process_pool(n_processes):
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"))
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def check(key, values):
    """Check that CE learned: its distance is below that of the best constant guess."""
    task = TASKS[key[0]]()
    cost = task.space.cost_matrix()[:, task.label[task.parts["test"]]]
    distance, constant = values[:, 1, 1].max(), cost.mean(axis=1).min()
    assert distance < constant, f"{key}: did not learn: {distance:.3f}, constant {constant:.3f}"


if __name__ == "__main__":
    main()
