"""The three tasks of examples/which_loss.py: texts and images on trees, diamonds on a chain."""

import csv
import functools
import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import fastemd

DATA = Path(__file__).parent / "data"
N_BUCKETS = 1 << 13


class Setting(NamedTuple):
    """How much of the training data is used, and for how long."""

    name: str
    n_per_class: int | None  # None: all
    n_epochs: int
    batch_size: int
    seconds: float  # of a training, approximately


class Task(NamedTuple):
    space: fastemd.Tree | fastemd.Chain
    unit: str  # of a length of 1
    inputs: Callable[[np.ndarray], tuple]  # rows: arguments of the network
    label: np.ndarray
    parts: dict  # "training", "validation", "test": rows
    network: Callable[[], nn.Module]
    optimizer: Callable  # (parameters, rate)
    rates: tuple  # to choose from
    settings: tuple


class TextNetwork(nn.Module):
    """The sum of the vectors of a text's words, ReLU, dropout and one linear layer."""

    def __init__(self, n_classes, n_hidden=128):
        super().__init__()
        self.words = nn.EmbeddingBag(N_BUCKETS, n_hidden, mode="sum")
        nn.init.normal_(self.words.weight, std=0.1)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(n_hidden, n_classes)

    def forward(self, words, offsets):
        return self.out(self.drop(self.words(words, offsets).relu()))


def read_glosses():
    """Return the tree of the classes, the buckets of the words of every text, and the labels."""
    with (DATA / "gloss_tree.tsv").open(encoding="utf-8") as file:
        nodes = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    with gzip.open(DATA / "gloss_samples.tsv.gz", "rt", encoding="utf-8") as file:
        texts = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    index = {node["child"]: i for i, node in enumerate(nodes)} | {"": -1}
    class_node = {int(text["label"]): index[text["class_wnid"]] for text in texts}
    tree = fastemd.Tree.from_parents(
        [index[node["parent"]] for node in nodes],
        bins=[class_node[label] for label in range(len(class_node))],
    )
    label = np.array([int(text["label"]) for text in texts])
    return tree, [buckets(text["text"]) for text in texts], label


def buckets(text):
    """Hash words to numbers below N_BUCKETS, the same in every process."""
    return [zlib.crc32(w.encode()) % N_BUCKETS for w in set(re.findall("[a-z]+", text.lower()))]


@functools.cache
def glosses():
    """Predict the class of a noun, one of 982, from the words of its gloss."""
    tree, words, label = read_glosses()

    def inputs(rows):
        texts = [words[row] for row in rows]
        offsets = np.cumsum([0, *map(len, texts[:-1])])
        return torch.from_numpy(np.concatenate(texts)), torch.from_numpy(offsets)

    return Task(
        space=tree,
        unit="edges",
        inputs=inputs,
        label=label,
        parts=split_by_class(label, validation=0.15, test=0.2),
        network=lambda: TextNetwork(tree.n_bins),
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
        rates=(0.57, 0.8, 1.1, 1.6),
        settings=(
            Setting("all texts", None, 10, 256, 6.4),
            Setting("10 texts per class", 10, 15, 256, 3.9),
        ),
    )


@functools.cache
def omniglot():
    """Recognise 242 handwritten characters of eight alphabets, drawn by other people."""
    data = np.load(DATA / "omniglot8_28.npz")
    tree = fastemd.Tree.from_paths([name.split("/") for name in data["class_names"]])
    images = torch.from_numpy(data["X"])[:, None].float() / 255
    drawer = np.arange(len(images)) % 20  # the same person within an alphabet
    return Task(
        space=tree,
        unit="edges",
        inputs=lambda rows: (images[rows],),
        label=data["y"].astype(int),
        parts={
            "training": np.flatnonzero(drawer < 10),
            "validation": np.flatnonzero((drawer >= 10) & (drawer < 14)),
            "test": np.flatnonzero(drawer >= 14),
        },
        network=lambda: nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16 * 6 * 6, tree.n_bins),
        ),
        optimizer=torch.optim.Adam,
        rates=(0.005, 0.01, 0.02, 0.04),
        settings=(
            Setting("10 drawings per class", None, 15, 64, 2.3),
            Setting("5 drawings per class", 5, 20, 64, 1.6),
        ),
    )


@functools.cache
def diamonds():
    """Predict the clarity of a diamond, one of eight grades, from its other properties."""
    data = np.load(DATA / "diamonds.npz")
    columns = [np.log(data[name]) for name in ("carat", "price")]
    columns += [data[name] for name in ("depth", "table", "x", "y", "z", "cut", "color")]
    features = np.stack(columns, axis=-1).astype(np.float32)
    # Over all samples: no label is used, and single samples hardly matter.
    features = torch.from_numpy((features - features.mean(axis=0)) / features.std(axis=0))
    label = data["clarity"].astype(int)
    return Task(
        space=fastemd.Chain(8),
        unit="grades",
        inputs=lambda rows: (features[rows],),
        label=label,
        parts=split_by_class(label, validation=0.15, test=0.25),
        network=lambda: nn.Sequential(
            nn.Linear(features.shape[1], 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 8),
        ),
        optimizer=torch.optim.Adam,
        rates=(0.005, 0.01, 0.02, 0.04),
        settings=(
            Setting("all", None, 40, 64, 3.2),
            Setting("10 diamonds per class", 10, 60, 16, 0.3),
        ),
    )


TASKS = {"glosses": glosses, "Omniglot": omniglot, "diamonds": diamonds}


def split_by_class(label, validation, test):
    """Return the same shares of every class as "training", "validation" and "test"."""
    order = np.random.default_rng(0).permutation(len(label))
    share = (rank_in_class(label, order) / np.bincount(label)[label])[order]
    return {
        "test": order[share < test],
        "validation": order[(share >= test) & (share < test + validation)],
        "training": order[share >= test + validation],
    }


def training_rows(task, setting, seed):
    """Return the rows of the training part, or a number per class that the seed chooses."""
    rows = task.parts["training"]
    if setting.n_per_class is None:
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[rank_in_class(task.label[rows], order) < setting.n_per_class]


def rank_in_class(label, order):
    """Return for every sample the number of samples of its class before it in `order`."""
    order = order[np.argsort(label[order], kind="stable")]
    size = np.bincount(label)
    rank = np.empty(len(label), int)
    rank[order] = np.arange(len(label)) - np.repeat(np.cumsum(size) - size, size)
    return rank
