"""python -m fastemd unifrac: UniFrac between all samples of a table."""

import argparse
import hashlib
import math
from pathlib import Path

import fastemd
from fastemd.commands.files import (
    OUTPUTS,
    errors_of,
    number_up_to,
    parse_options,
    part_of,
    read_table,
    read_tree,
    write_distances,
    write_part,
)
from fastemd.pair_sums import PairSums
from fastemd.unifrac import METRICS, unifrac_sums

DESCRIPTION = "Compute UniFrac between all pairs of samples."
TABLES = """the counts: a BIOM table (.biom), text with tabs (.tsv, .txt), or .npz with the arrays
counts (samples as rows), ids and taxa, or of scipy.sparse.save_npz (samples as rows, the tips of
the tree in its order as columns)"""
TEXT = """In text the taxa are the rows if the file is of 'biom convert', its first line starts with
'#OTU ID' or it has a column 'taxonomy', which is ignored. Otherwise they are the axis whose names
are tips of the tree. An output .npy has the names of the samples beside it, in .ids.txt."""


def main(arguments: list[str]) -> int:
    """Run the command; return the process's exit code."""
    options = parse_options(_parser(), arguments)
    tree = read_tree(options.tree, options.missing_length, options.negative_length)
    counts = read_table(options.table, tree.bins)
    with errors_of(options.table, counts):
        sums, _ = unifrac_sums(
            counts.values, tree, options.metric, options.alpha, counts.ids, counts.taxa
        )
        names = counts.ids or [str(i) for i in range(sums.a.n_rows)]
        pairs, part = sums.block_pairs(), options.block
        if part:
            first, last = ((part[0] + i) * len(pairs) // part[1] for i in (-1, 0))
            pairs = pairs[first:last]
        results = sums.results(pairs, progress=not options.quiet)
        if part:
            write_part(options.out, _key_of(options, names, sums), part, names, results)
        else:
            write_distances(options.out, names, results)
    return 0


def _key_of(options: argparse.Namespace, names: list[str], sums: PairSums) -> str:
    """Return a number that parts of the same distances share."""
    lengths = options.missing_length, options.negative_length
    blocks = sums.blocks(sums.a)
    parameters = fastemd.__version__, options.metric, options.alpha, *lengths, names, blocks
    digest = hashlib.sha256(repr(parameters).encode())
    for path in (options.table, options.tree):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastemd unifrac", description=DESCRIPTION, epilog=TEXT
    )
    add, length = parser.add_argument, number_up_to(math.inf)
    add("table", type=Path, metavar="TABLE", help=TABLES)
    add("tree", type=Path, metavar="TREE", help="the phylogeny in Newick format")
    add("-m", "--metric", choices=METRICS, default=METRICS[0], help="default: %(default)s")
    add("-o", "--out", type=Path, required=True, help=f"where to write the distances: {OUTPUTS}")
    add(
        "-a", "--alpha", type=number_up_to(1.0), default=1.0,
        help="of generalized, from 0 to 1 (%(default)s)",
    )  # fmt: skip
    add(
        "--block", type=part_of, metavar="i/n",
        help="compute part i of n of the pairs, on any machine, and write it to .npz for merge; "
        "parts are made of blocks of 512 x 512 samples: those of small tables may be empty",
    )  # fmt: skip
    add(
        "--missing-length",
        type=length,
        metavar="LENGTH",
        help="use this length where the tree has none",
    )
    add(
        "--negative-length", type=length, metavar="LENGTH",
        help="use this length where the tree has a negative one",
    )  # fmt: skip
    add("--quiet", action="store_true", help="show no progress bar")
    return parser
