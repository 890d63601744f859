"""Newick text and scikit-bio's trees -> validated post-order arrays -> Newick text.

Both descriptions become lists of parents, names and lengths in post-order, children in the order of
the description. The tips are the bins. No function is recursive, because a phylogeny may have more
levels than Python's stack.
"""

import collections
import errno
import math
import numbers
import os
import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastemd import validation
from fastemd.tree_input import Floats, Index, TreeArrays, post_order_arrays, quoted
from fastemd.validation.arguments import _kind

NEEDS_QUOTES = re.compile(r"[\s()\[\]{}:;,='\"_]")  # an unquoted "_" may be read as a blank
# What the text has described of the current node.
NOTHING, CHILDREN, NAME, COLON, LENGTH = range(5)


class Nodes(NamedTuple):
    """Nodes in post-order, the root last."""

    parent: list[int]  # -1 for the root
    names: list[str]  # "" for unnamed nodes
    lengths: list[Any]  # None where there is none


def from_newick(source: Any, bins: Any, missing_length: Any, negative_length: Any) -> TreeArrays:
    """Read a tree in Newick format; see `Tree.from_newick`."""
    nodes = _parse(_text(source))
    return _tree_arrays("source", nodes, bins, missing_length, negative_length)


def _text(source: Any) -> str:
    if isinstance(source, str) and ("(" in source or ";" in source):
        return source
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, encoding="utf-8-sig") as file:
                return file.read()
        except FileNotFoundError as error:
            reason = "source: no such file; a string without '(' and ';' is a path"
            raise FileNotFoundError(errno.ENOENT, reason, source) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"source: not UTF-8 text; {error}; save the file as UTF-8") from error
    if not hasattr(source, "read"):
        raise TypeError(
            f"source: expected Newick text, a path or an open text file, got {_kind(source)}"
        )
    text = source.read()
    if not isinstance(text, str):
        raise TypeError(
            "source: a file in binary mode; expected a text file, open it with mode 'r'"
        )
    return text


def _parse(text: str) -> Nodes:
    """Return the nodes of a text with one tree.

    The package newick splits the text into tokens. Its reader of whole trees is recursive,
    and takes more than twice as long.
    """
    try:
        import newick
    except ModuleNotFoundError as error:
        validation.not_installed("newick", error, "fastemd.Tree.from_newick", "bio")
    if "\0" in text:
        raise _syntax_error("a NUL character; expected plain text")
    try:
        # The package takes a backslash for an escape character, which Newick does not have.
        tokens = newick.NewickString(text.replace("\\", "\0"))
    except ValueError as error:
        reason = str(error).rstrip("!").lower()
        raise _syntax_error(
            f"{reason}; expected quotes, parentheses and the brackets of comments in pairs"
        ) from error

    def unexpected(i: int) -> ValueError:
        context = "".join(token.char for token in tokens[max(0, i - 12) : i + 1])
        context = context.replace("\0", "\\")[-60:]
        return _syntax_error(
            f"{tokens[i].char!r} is not allowed at the end of {context!r}; expected "
            "(children)name:length, with quotes around names that hold blanks or punctuation"
        )

    kinds = newick.TokenType
    nodes = Nodes([], [], [])
    siblings: list[list[int]] = []  # of the current node and of its ancestors, as far as read
    children: list[int] = []
    name, length, state, is_complete = "", None, NOTHING, False
    for i, token in enumerate(tokens):
        kind = token.type
        if kind is kinds.WHITESPACE or kind is kinds.COMMENT:
            continue
        if is_complete:
            raise _syntax_error(f"{token.char!r} follows the first tree; expected one tree only")
        if kind is kinds.WORD or kind is kinds.QWORD:
            if state < NAME:
                name, state = token.char.replace("\0", "\\"), NAME
                if kind is kinds.QWORD:
                    name = name[1:-1].replace("''", "'")
            elif state == COLON and kind is kinds.WORD:
                length, state = _number(token.char), LENGTH
            else:
                raise unexpected(i)
        elif kind is kinds.COLON:
            if state >= COLON:
                raise unexpected(i)
            state = COLON
        elif kind is kinds.OBRACE:
            if state != NOTHING:
                raise unexpected(i)
            siblings.append([])
        else:
            is_complete = kind is kinds.SEMICOLON
            if is_complete and siblings:
                raise _syntax_error(
                    f"';' before the last {len(siblings)} ')'; expected it after them"
                )
            if state == COLON or not (is_complete or siblings):
                raise unexpected(i)
            number = len(nodes.parent)
            for child in children:
                nodes.parent[child] = number
            nodes.parent.append(-1)
            nodes.names.append(name)
            nodes.lengths.append(length)
            children, name, length, state = [], "", None, NOTHING
            if not is_complete:
                siblings[-1].append(number)
            if kind is kinds.CBRACE:
                children, state = siblings.pop(), CHILDREN
    if not is_complete:
        raise _syntax_error("no ';' at the end; expected the whole text of a tree")
    return nodes


def _number(word: str) -> float:
    try:
        if "_" in word:  # float() ignores it
            raise ValueError
        return float(word)
    except ValueError:
        raise _syntax_error(f"the length {word!r}; expected a number") from None


def _syntax_error(reason: str) -> ValueError:
    return ValueError(f"source: not Newick: {reason}")


def from_skbio(node: Any, bins: Any, missing_length: Any, negative_length: Any) -> TreeArrays:
    """Read a tree of scikit-bio; see `Tree.from_skbio`."""
    if not all(hasattr(node, attribute) for attribute in ("children", "name", "length")):
        raise TypeError(f"node: expected a skbio.TreeNode, got {_kind(node)}")
    order, stack = [], [node]
    while stack:
        order.append(current := stack.pop())
        stack.extend(current.children)
    order.reverse()
    number = {id(current): i for i, current in enumerate(order)}
    parent = [-1] * len(order)
    for i, current in enumerate(order):
        for child in current.children:
            parent[number[id(child)]] = i
    names = ["" if current.name is None else current.name for current in order]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"node: the name {quoted(name)} is of type {type(name).__name__}; expected a string"
            )
    nodes = Nodes(parent, names, [current.length for current in order])
    return _tree_arrays("node", nodes, bins, missing_length, negative_length)


def _tree_arrays(
    argument: str, nodes: Nodes, bins: Any, missing_length: Any, negative_length: Any
) -> TreeArrays:
    """Name the nodes, apply the policy of lengths, and validate."""
    parent = np.array(nodes.parent, np.intp)
    is_tip = np.ones(parent.size, bool)
    is_tip[parent[:-1]] = False
    tips = np.flatnonzero(is_tip).tolist()
    tip_names = [nodes.names[tip] for tip in tips]
    _check_tip_names(argument, tip_names)
    counts = collections.Counter(nodes.names)
    labels: list[Hashable] = [
        name if name and counts[name] == 1 else node for node, name in enumerate(nodes.names)
    ]
    for tip, name in zip(tips, tip_names, strict=True):
        labels[tip] = name
    lengths = _with_lengths(argument, nodes, labels, missing_length, negative_length)
    bins = tip_names if bins is None else bins
    return post_order_arrays(argument, labels, parent, argument, lengths, bins)


def _check_tip_names(argument: str, names: list[str]) -> None:
    unnamed = [i for i, name in enumerate(names) if not name]
    if unnamed:
        i = unnamed[0]
        place = f" (after {quoted(names[i - 1])})" if i else ""
        raise ValueError(
            f"{argument}: {len(unnamed)} of {len(names)} tips without a name, the first is tip "
            f"{i}{place}; expected a name for every tip"
        )
    if len(set(names)) < len(names):
        duplicates = [name for name, count in collections.Counter(names).items() if count > 1]
        more = ", ..." if len(duplicates) > 5 else ""
        raise ValueError(
            f"{argument}: duplicate tip names {', '.join(map(quoted, duplicates[:5]))}{more}; "
            "each name may appear once; rename or remove tips"
        )


def _with_lengths(
    argument: str,
    nodes: Nodes,
    labels: Sequence[Hashable],
    missing_length: Any,
    negative_length: Any,
) -> list[Any]:
    """Return the lengths above all nodes, with missing and negative ones replaced."""
    for_missing, for_negative = (
        value if value is None else validation.check_amount(name, value, zero=True)
        for name, value in (
            ("missing_length", missing_length), ("negative_length", negative_length),
        )
    )  # fmt: skip
    lengths = [*nodes.lengths[:-1], 0.0]
    missing = [node for node, length in enumerate(lengths) if length is None]
    if missing and for_missing is None:
        if len(missing) == len(lengths) - 1:
            raise ValueError(
                f"{argument}: no edge has a length; expected one for every edge; "
                "pass missing_length=1.0 for edges of length 1"
            )
        raise ValueError(
            f"{argument}: no length above node {_place(nodes, labels, missing[0])}, "
            f"{len(missing)} are missing; expected one above every node but the root; "
            "pass missing_length=, for example missing_length=0.0"
        )
    for node in missing:
        lengths[node] = for_missing
    for node, length in enumerate(lengths):
        is_real = type(length) is float or isinstance(length, numbers.Real)  # the first is fast
        if is_real and -math.inf < length < 0:
            if for_negative is None:
                raise ValueError(
                    f"{argument}: the length above node {_place(nodes, labels, node)} is {length}; "
                    "expected a number >= 0; pass negative_length=0.0 to replace negative lengths"
                )
            lengths[node] = for_negative
    return lengths


def _place(nodes: Nodes, labels: Sequence[Hashable], node: int) -> str:
    """Return the label of a node, and for an unnamed node also a tip below it."""
    if isinstance(labels[node], str):
        return quoted(labels[node])
    below = node
    while not isinstance(labels[below], str):
        below = nodes.parent.index(below)
    return f"{node} (above {quoted(labels[below])})"


def to_newick(parent: Index, length: Floats, labels: Sequence[Hashable]) -> str:
    """Return a tree in Newick format; see `Tree.to_newick`."""
    parents, root = parent.tolist(), parent.size - 1
    first_tip = list(range(parent.size))
    n_opened = [0] * parent.size  # parentheses before a tip
    for node, above in enumerate(parents[:-1]):
        first_tip[above] = min(first_tip[above], first_tip[node])
    for node, tip in enumerate(first_tip):
        n_opened[tip] += node != tip
    label_of: dict[str, Hashable] = {}
    pieces = []
    for node, (label, edge) in enumerate(zip(labels, length.tolist(), strict=True)):
        is_tip = first_tip[node] == node
        pieces.append("(" * n_opened[node] if is_tip else ")")
        if is_tip or not isinstance(label, numbers.Integral):
            pieces.append(_written(label, label_of))
        if node == root:
            break
        pieces.append(f":{edge!r}")
        if parents[node] > node + 1:  # the last child comes directly before its parent
            pieces.append(",")
    return "".join([*pieces, ";"])


def _written(label: Hashable, label_of: dict[str, Hashable]) -> str:
    """Return the name of a node as Newick text, and record whose it is."""
    name = str(label)
    if not name:
        raise ValueError(f"to_newick: the label {quoted(label)} is empty as text; relabel the node")
    if name in label_of:
        raise ValueError(
            f"to_newick: nodes {quoted(label_of[name])} and {quoted(label)} are both written as "
            f"{quoted(name)}; expected labels that differ as text; relabel one of them"
        )
    label_of[name] = label
    return "'{}'".format(name.replace("'", "''")) if NEEDS_QUOTES.search(name) else name
