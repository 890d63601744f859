"""The files of the commands: tables of counts, distances, and parts of them."""

import argparse
import contextlib
import importlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import validation
from fastemd.pairwise import assign_square
from fastemd.spaces import Tree

Array = NDArray[Any]
Block = tuple[slice, slice, Array]

OUTPUTS = ".tsv, .h5, .hdf5 or .npy"
OPTION = re.compile(r"\b(missing|negative)_length=?(?:, for example \w+=)?([\d.]*)")
DAMAGED = (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)


def package(name: str, purpose: str) -> Any:
    """Import a package of the extra ``bio``."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        validation.not_installed(name, error, purpose, "bio")


class Counts(NamedTuple):
    """A table of counts, samples as rows, and the names of both axes, if it has any."""

    values: Any
    ids: list[str] | None
    taxa: list[str] | None


# -------------------------------------------------------------------------------------------- input


def read_tree(path: Path, missing_length: float | None, negative_length: float | None) -> Tree:
    """Read a tree in Newick format; errors name the options of the command."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return Tree.from_newick(
                file, missing_length=missing_length, negative_length=negative_length
            )
    except ValueError as error:
        text = OPTION.sub(lambda m: f"--{m[1]}-length {m[2]}", str(error))
        raise ValueError(f"{path}: {text.removeprefix('source: ')}") from error


def read_table(path: Path, tips: Iterable[Any]) -> Counts:
    """Read a table of counts."""
    readers: dict[str, Callable[[Path, set[Any]], Counts]] = {
        ".biom": _read_biom, ".tsv": _read_text, ".txt": _read_text, ".npz": _read_npz,
    }  # fmt: skip
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: unknown kind of table; expected {', '.join(readers)}; "
            "convert it to text with tabs"
        )
    return readers[path.suffix](path, set(tips))


def _read_biom(path: Path, tips: set[Any]) -> Counts:
    biom = package("biom", f"{path}: a BIOM table")
    with path.open("rb"):
        pass  # the package raises other errors for files that cannot be opened
    try:
        table = biom.load_table(str(path))
    except Exception as error:
        raise ValueError(f"{path}: not a BIOM table: {error}") from error
    return Counts(table.matrix_data.T, _strings(table.ids()), _strings(table.ids("observation")))


def _read_text(path: Path, tips: set[Any]) -> Counts:
    """Read text with tabs; names are read as they are, also numbers and "NA"."""
    pandas = package("pandas", f"{path}: a table of text")
    try:
        with path.open(encoding="utf-8-sig") as file:
            header, n_lines = file.readline(), 1
            is_converted = header.startswith("# Constructed")  # by biom convert
            if is_converted:
                header, n_lines = file.readline(), 2
        frame = pandas.read_csv(
            path, sep="\t", header=None, skiprows=n_lines, index_col=0, dtype={0: str},
            na_filter=False, quoting=3, low_memory=False,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: not a table of text with tabs: {error}") from error
    corner, *columns = header.rstrip("\r\n").split("\t")
    if frame.shape[1] != len(columns):
        raise ValueError(
            f"{path}: {len(columns)} names of columns, but {frame.shape[1]} columns; expected a "
            "name for each in the first line, after one for the column of names"
        )
    if "taxonomy" in columns and "taxonomy" not in tips:
        frame = frame.drop(columns=frame.columns[columns.index("taxonomy")])
        columns.remove("taxonomy")
        is_converted = True
    for name, dtype in zip(columns, frame.dtypes, strict=True):
        if dtype.kind not in "biuf":
            raise ValueError(f"{path}: text or an empty cell in column {name!r}; expected counts")
    rows, values = _strings(frame.index), frame.to_numpy()
    if is_converted or corner == "#OTU ID" or _are_taxa(path, rows, columns, tips):
        return Counts(values.T, columns, rows)
    return Counts(values, rows, columns)


def _are_taxa(path: Path, rows: list[str], columns: list[str], tips: set[Any]) -> bool:
    """Return whether the names of the rows are those of tips, and not those of the columns."""
    known = [(len(tips.intersection(names)), names) for names in (rows, columns)]
    for are_taxa in (
        [n > 0 for n, _ in known],
        [n == len(set(names)) for n, names in known],
    ):
        if are_taxa[0] != are_taxa[1]:
            return are_taxa[0]
    which = "both the rows and the columns have" if known[0][0] else "neither rows nor columns have"
    raise ValueError(
        f"{path}: {which} names of tips of the tree; expected the taxa as one of them; "
        "if they are the rows, let the first line start with '#OTU ID'"
    )


def _read_npz(path: Path, tips: set[Any]) -> Counts:
    """Read ``counts``, ``ids`` and ``taxa``, or the file of `scipy.sparse.save_npz`."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            names = [_strings(file[name]) if name in file else None for name in ("ids", "taxa")]
            if "counts" in file:
                return Counts(file["counts"], *names)
        from scipy.sparse import load_npz

        return Counts(load_npz(path), *names)
    except DAMAGED as error:
        raise ValueError(
            f"{path}: not a table: {error}; expected numbers 'counts' and strings 'ids' and "
            "'taxa', or a file of scipy.sparse.save_npz"
        ) from error


def _strings(names: Any) -> list[str]:
    strings: list[str] = np.asarray(names).astype(str).tolist()
    return strings


@contextlib.contextmanager
def errors_of(path: Path, counts: Counts) -> Iterator[None]:
    """Name the file, the sample and the taxon in errors, which name a row and a column."""

    def name_of(match: re.Match[str]) -> str:
        names, what = (counts.ids, "sample") if match[1] == "row" else (counts.taxa, "taxon")
        return match[0] if names is None else f"{what} {names[int(match[2])]!r}"

    try:
        yield
    except ValueError as error:
        text = str(error)
        if text.startswith("table: "):
            text = re.sub(r"\b(row|bin) (\d+)", name_of, text.removeprefix("table: "))
        raise ValueError(f"{path}: {text}") from error


# --------------------------------------------------------------------------------------- distances


def check_output(path: Path, suffixes: str = OUTPUTS) -> None:
    """Raise before the work if the distances cannot be written."""
    if path.suffix not in suffixes.replace(",", " ").split():
        raise ValueError(f"{path}: unknown kind of output; expected {suffixes}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.suffix in (".h5", ".hdf5"):
        package("h5py", f"{path}: a file of HDF5")


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Write to another file, which replaces `path` once it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_distances(path: Path, ids: list[str], blocks: Iterable[Block]) -> None:
    """Write all distances; those of .npy and HDF5 are never all in memory."""
    n = len(ids)
    if path.suffix not in (".h5", ".hdf5"):
        for name in ids:
            if set("\t\r\n").intersection(name):
                raise ValueError(f"the name {name!r} holds a tab or line end; expected -o *.h5")
    with _complete(path) as partial:
        if path.suffix == ".tsv":
            matrix = np.zeros((n, n))
            for block in blocks:
                assign_square(matrix, *block, mirrored=True)
            with partial.open("w", encoding="utf-8") as file:
                print("", *ids, sep="\t", file=file)
                for name, row in zip(ids, matrix, strict=True):
                    print(name, *map(repr, row.tolist()), sep="\t", file=file)
        elif path.suffix == ".npy":
            target = np.lib.format.open_memmap(partial, "w+", np.float64, (n, n))
            try:
                for block in blocks:
                    assign_square(target, *block, mirrored=True)
                target.flush()
            finally:
                del target  # Windows replaces and removes closed files only
            with _complete(path.with_suffix(".ids.txt")) as partial_ids:
                partial_ids.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
        else:
            h5py = package("h5py", f"{path}: a file of HDF5")
            with h5py.File(partial, "w") as file:  # the layout of unifrac-binaries and scikit-bio
                file["format"], file["version"] = np.array([b"BDSM"]), np.array([b"2020.12"])
                file.create_dataset("order", data=ids, dtype=h5py.string_dtype())
                matrix = file.create_dataset("matrix", (n, n), np.float64)
                for block in blocks:
                    assign_square(matrix, *block, mirrored=True)


# ------------------------------------------------------------------------------------------- parts


def write_part(
    path: Path, key: str, part: tuple[int, int], ids: list[str], blocks: Iterable[Block]
) -> None:
    """Write part i of n of the blocks, one after the other; `key` identifies the problem."""

    def arrays() -> Iterator[tuple[str, Any]]:
        yield from (("key", key), ("part", part), ("ids", np.array(ids, str)))
        for i, j, block in blocks:
            yield f"{i.start} {i.stop} {j.start} {j.stop}", block

    with _complete(path) as partial, zipfile.ZipFile(partial, "w") as file:
        for name, array in arrays():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def read_parts(paths: list[Path]) -> tuple[list[str], Iterator[Block]]:
    """Validate that parts make a whole; return the names of the samples, and all blocks."""
    ids: list[str] = []
    parts: dict[int, Path] = {}
    first = ("", 0)
    for path in paths:
        try:
            with path.open("rb") as opened, np.load(opened) as file:
                problem = str(file["key"]), int(file["part"][1])
                number, names = int(file["part"][0]), file["ids"].tolist()
        except DAMAGED:
            raise ValueError(f"{path}: not a part; expected a file of unifrac --block") from None
        if parts and problem[0] != first[0]:
            raise ValueError(
                f"{path}: a part of other distances than {paths[0]}; expected parts of the same "
                "table and tree, with the same options and version"
            )
        if parts and problem != first:
            raise ValueError(
                f"{path}: one of {problem[1]} parts, but {paths[0]} is one of {first[1]}"
            )
        if number in parts:
            raise ValueError(f"{path}: part {number} as well as {parts[number]}; pass one of them")
        first, ids, parts[number] = problem, names, path
    missing = [f"{i}/{first[1]}" for i in range(1, first[1] + 1) if i not in parts]
    if missing:
        listed = ", ".join([*missing[:5], *(["..."] if len(missing) > 5 else [])])
        raise ValueError(f"no file of --block {listed}; expected one of each")
    return ids, _blocks_of(list(parts.values()))


def _blocks_of(paths: list[Path]) -> Iterator[Block]:
    for path in paths:
        with np.load(path) as file:
            for name in (name for name in file.files if name not in ("key", "part", "ids")):
                try:
                    i, to, j, end = map(int, name.split())
                    block = file[name]
                except DAMAGED as error:
                    raise ValueError(f"{path}: damaged: {error}; compute this part again") from None
                yield slice(i, to), slice(j, end), block


# ----------------------------------------------------------------------------------------- options


def part_of(text: str) -> tuple[int, int]:
    """Parse ``i/n``."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, got {text!r}")
    return int(number), int(count)


def number_up_to(limit: float) -> Callable[[str], float]:
    """Return a parser of finite numbers from 0 to a limit."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0.0 <= (number := float(text)) <= limit and number < np.inf:
                return number
        expected = ">= 0" if limit == np.inf else f"from 0 to {limit:g}"
        raise argparse.ArgumentTypeError(f"expected a number {expected}, got {text!r}")

    return parse


def parse_options(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse the options of a command, and check where it writes."""
    options = parser.parse_args(arguments)
    try:
        check_output(options.out, ".npz" if getattr(options, "block", None) else OUTPUTS)
        for path in options.parts if "parts" in options else (options.table, options.tree):
            if path.exists() and options.out.exists() and options.out.samefile(path):
                raise ValueError(f"{options.out}: is also an input; expected another file")
    except ValueError as error:
        parser.error(f"argument -o/--out: {error}")
    return options
