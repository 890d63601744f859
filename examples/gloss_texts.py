"""Read, hash and split the texts of examples/wordnet_glosses.py."""

import csv
import functools
import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastemd

N_BUCKETS = 1 << 13


class Task(NamedTuple):
    tree: fastemd.Tree
    words: list  # of every text, the buckets of its words
    label: np.ndarray
    parts: dict  # "training", "validation", "test": indices of texts


@functools.cache
def task():
    data = Path(__file__).parent / "data"
    with (data / "gloss_tree.tsv").open(encoding="utf-8") as file:
        nodes = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    with gzip.open(data / "gloss_samples.tsv.gz", "rt", encoding="utf-8") as file:
        texts = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    index = {node["child"]: i for i, node in enumerate(nodes)} | {"": -1}
    class_node = {int(text["label"]): index[text["class_wnid"]] for text in texts}
    tree = fastemd.Tree.from_parents(
        [index[node["parent"]] for node in nodes],
        bins=[class_node[label] for label in range(len(class_node))],
    )
    label = np.array([int(text["label"]) for text in texts])
    return Task(tree, [buckets(text["text"]) for text in texts], label, split(label))


def buckets(text):
    """Hash words to numbers below N_BUCKETS, the same in every process."""
    return [zlib.crc32(w.encode()) % N_BUCKETS for w in set(re.findall("[a-z]+", text.lower()))]


def split(label):
    """Return 20 % of every class for the test, 15 % for validation, the rest for training."""
    order = np.random.default_rng(0).permutation(len(label))
    share = (rank_in_class(label, order) / np.bincount(label)[label])[order]
    return {
        "test": order[share < 0.2],
        "validation": order[(share >= 0.2) & (share < 0.35)],
        "training": order[share >= 0.35],
    }


def rank_in_class(label, order):
    """Return for every text the number of texts of its class before it in `order`."""
    order = order[np.argsort(label[order], kind="stable")]
    size = np.bincount(label)
    rank = np.empty(len(label), int)
    rank[order] = np.arange(len(label)) - np.repeat(np.cumsum(size) - size, size)
    return rank
