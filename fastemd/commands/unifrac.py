"""python -m fastemd unifrac: UniFrac between all samples of a table."""

import argparse
import hashlib
from pathlib import Path

from fastemd.commands.files import (
    OUTPUTS,
    check_output,
    part_of,
    read_table,
    write_distances,
    write_part,
)
from fastemd.spaces import Tree
from fastemd.unifrac import METRICS, unifrac_sums

DESCRIPTION = "Compute UniFrac between all pairs of samples."
TABLES = """a BIOM table (.biom), text with tabs (.tsv, .txt; taxa in rows or columns), or .npz with
counts, ids and taxa, or of scipy.sparse.save_npz (columns are the tips of the tree in its order)"""


def main(arguments: list[str]) -> int:
    """Run the command; return the process's exit code."""
    options = _parser().parse_args(arguments)
    check_output(options.out, ".npz" if options.block else OUTPUTS)
    tree = Tree.from_newick(
        options.tree, missing_length=options.missing_length, negative_length=options.negative_length
    )
    values, ids, taxa = read_table(options.table, tree.bins)
    sums, _ = unifrac_sums(values, tree, options.metric, options.alpha, ids, taxa)
    names = [str(each) for each in (range(sums.a.n_rows) if ids is None else ids)]
    pairs = sums.block_pairs()
    if options.block is None:
        results = sums.results(progress=not options.quiet)
        write_distances(options.out, names, results)
        return 0
    number, count = options.block
    part = pairs[(number - 1) * len(pairs) // count : number * len(pairs) // count]
    key = hashlib.sha256(repr((options.metric, options.alpha, names)).encode()).hexdigest()
    results = sums.results(part, progress=not options.quiet)
    write_part(options.out, key, (number, count), names, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastemd unifrac", description=DESCRIPTION)
    add = parser.add_argument
    add("table", type=Path, metavar="TABLE", help=TABLES)
    add("tree", type=Path, metavar="TREE", help="the phylogeny in Newick format")
    add("-m", "--metric", choices=METRICS, default=METRICS[0], help="default: %(default)s")
    add("-o", "--out", type=Path, required=True, help=f"where to write the distances: {OUTPUTS}")
    add("-a", "--alpha", type=float, default=1.0, help="of generalized, from 0 to 1 (%(default)s)")
    add(
        "--block", type=part_of, metavar="i/n",
        help="compute part i of n of the pairs, on any machine; write it to an .npz file for merge",
    )  # fmt: skip
    add("--missing-length", type=float, help="use this length where the tree has none")
    add("--negative-length", type=float, help="use this length where the tree has a negative one")
    add("--quiet", action="store_true", help="show no progress bar")
    return parser
