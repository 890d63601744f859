"""Rebuild fastemd/datasets/imagenet_tree.tsv, the 1000 ILSVRC2012 classes under WordNet 3.0.

Two sources, neither of them in this repository:

- ``data.noun`` of WordNet 3.0, as in Debian's package wordnet-base (1:3.0-37), where it is
  /usr/share/wordnet/data.noun. A WordNet id is "n" and the synset's eight-digit offset.
- the 1000 WordNet ids, one a line in class order, as in the Python package timm, where they are
  timm/data/_info/imagenet_synsets.txt.

WordNet is not a tree: some synsets have several hypernyms. The rule that selects one:

1. Start with the classes and all their ancestors, hypernyms before instance hypernyms, each in
   data.noun's order.
2. Contract inner nodes with a single child: the child takes the node's place among its parents.
3. Drop a parent that is also an ancestor through another parent.
4. Keep only the last remaining parent of every node, and only the ancestors of classes.
5. Contract once more, since step 4 creates inner nodes with a single child.

The last parent results in the 1374 nodes that the paper reports (the first one in 1373).

    python tools/build_imagenet_tree.py data.noun imagenet_synsets.txt --output imagenet_tree.tsv
    python tools/build_imagenet_tree.py data.noun imagenet_synsets.txt --check imagenet_tree.tsv
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

Parents = dict[str, list[str]]  # node -> its parents, in order; the root has none


def read_nouns(lines: Iterable[str]) -> tuple[Parents, dict[str, str]]:
    """Return hypernyms and names (the first lemma) of every synset in data.noun (wndb(5WN))."""
    hypernyms: Parents = {}
    names: dict[str, str] = {}
    for line in lines:
        if line.startswith("  "):  # the licence that opens the file
            continue
        fields = line.split(" | ")[0].split()
        wnid = "n" + fields[0]
        names[wnid] = fields[4].replace("_", " ")
        start = 4 + 2 * int(fields[3], 16)  # lemmas are counted in hexadecimal, pointers are not
        pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
        triples = list(zip(pointers[0::4], pointers[1::4], pointers[2::4], strict=True))
        hypernyms[wnid] = [
            "n" + offset
            for wanted in ("@", "@i")  # hypernym, instance hypernym
            for symbol, offset, part_of_speech in triples
            if symbol == wanted and part_of_speech == "n"
        ]
    return hypernyms, names


def restrict(parents: Parents, classes: Iterable[str]) -> Parents:
    """Return the part of the graph at and above the classes."""
    restricted: Parents = {}
    stack = list(classes)
    while stack:
        node = stack.pop()
        if node not in restricted:
            restricted[node] = parents[node]
            stack += parents[node]
    return restricted


def contract(parents: Parents, classes: Collection[str]) -> Parents:
    """Remove inner nodes with a single child, the smallest id first, until none is left."""
    parents = dict(parents)
    while True:
        children: dict[str, list[str]] = defaultdict(list)
        for node, above in parents.items():
            for parent in above:
                children[parent].append(node)
        unary = [node for node, below in children.items() if len(below) == 1]
        node = min((node for node in unary if node not in classes), default="")
        if not node:
            return parents
        (child,) = children[node]
        i = parents[child].index(node)
        parents_of_child = parents[child][:i] + parents.pop(node) + parents[child][i + 1 :]
        parents[child] = list(dict.fromkeys(parents_of_child))  # without duplicates


def drop_shortcuts(parents: Parents) -> Parents:
    """Drop every parent that is also an ancestor through another parent."""
    reduced: Parents = {}
    for node, above in parents.items():
        ancestors = [restrict(parents, parents[parent]) for parent in above]
        reduced[node] = [p for p in above if not any(p in graph for graph in ancestors)]
    return reduced


def build_tree(hypernyms: Parents, classes: Sequence[str]) -> Parents:
    """Return the tree over the classes by the rule at the top of this file."""
    known = set(classes)
    graph = drop_shortcuts(contract(restrict(hypernyms, classes), known))
    last = {node: above[-1:] for node, above in graph.items()}
    return contract(restrict(last, classes), known)


def format_table(tree: Parents, names: dict[str, str], classes: Sequence[str]) -> str:
    """Return the table, rows in the order of the ids; the root's parent is empty."""
    class_index = {wnid: k for k, wnid in enumerate(classes)}
    rows = [("child", "parent", "name", "class_index")]
    for node in sorted(tree):
        parent = "".join(tree[node])
        rows.append((node, parent, names[node], str(class_index.get(node, -1))))
    return "".join("\t".join(row) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, or with --check compare it and return 1 on a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nouns", type=Path, help="data.noun of WordNet 3.0")
    parser.add_argument("synsets", type=Path, help="the 1000 WordNet ids in class order")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, metavar="FILE", help="write the table to FILE")
    action.add_argument("--check", type=Path, metavar="FILE", help="exit 1 if FILE differs")
    args = parser.parse_args(argv)

    hypernyms, names = read_nouns(args.nouns.read_text(encoding="latin-1").splitlines())
    classes = args.synsets.read_text(encoding="ascii").split()
    unknown = [wnid for wnid in classes if wnid not in names]
    if unknown:
        parser.error(f"{unknown[0]} of {args.synsets} is not in {args.nouns}")
    table = format_table(build_tree(hypernyms, classes), names, classes).encode()

    if args.output:
        args.output.write_bytes(table)  # bytes: the same line ends on every system
    elif args.check.read_bytes() != table:
        print(f"{args.check} differs from the table built here", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
