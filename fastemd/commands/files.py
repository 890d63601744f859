"""The files of the commands: tables of counts, distances, and parts of them."""

import argparse
import importlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import validation
from fastemd.pairwise import assign_square

Array = NDArray[Any]
Block = tuple[slice, slice, Array]

OUTPUTS = ".tsv, .h5, .hdf5 or .npy"


def package(name: str, purpose: str) -> Any:
    """Import a package of the extra ``bio``."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        validation.not_installed(name, error, purpose, "bio")


# ------------------------------------------------------------------------------------------ tables


def read_table(path: Path, tips: Iterable[Any]) -> tuple[Any, Any, Any]:
    """Read a table of counts; return its values, samples as rows, and the names of both axes."""
    readers: dict[str, Callable[[Path, set[Any]], tuple[Any, Any, Any]]] = {
        ".biom": _read_biom, ".tsv": _read_text, ".txt": _read_text, ".npz": _read_npz,
    }  # fmt: skip
    if path.suffix not in readers:
        raise ValueError(f"{path}: unknown kind of table; expected {', '.join(readers)}")
    return readers[path.suffix](path, set(tips))


def _read_biom(path: Path, tips: set[Any]) -> tuple[Any, Any, Any]:
    table = package("biom", f"{path}: a BIOM table").load_table(str(path))
    return table.matrix_data.T, table.ids("sample"), table.ids("observation")


def _read_text(path: Path, tips: set[Any]) -> tuple[Any, Any, Any]:
    """Read text with tabs; the taxa are the axis whose names are tips of the tree."""
    pandas = package("pandas", f"{path}: a table of text")
    with path.open(encoding="utf-8") as file:
        skipped = int(file.readline().startswith("# Constructed"))  # written by biom convert
    names = {"index_col": 0, "dtype": {0: str}}
    frame = pandas.read_csv(path, sep="\t", skiprows=skipped, **names)
    if "taxonomy" in frame.columns and "taxonomy" not in tips:
        frame = frame.drop(columns="taxonomy")
    known_rows, known_columns = (
        len(tips.intersection(axis)) for axis in (frame.index, frame.columns)
    )
    if known_rows > known_columns:
        frame = frame.T
    return frame.to_numpy(), list(frame.index), list(frame.columns)


def _read_npz(path: Path, tips: set[Any]) -> tuple[Any, Any, Any]:
    """Read ``counts``, ``ids`` and ``taxa``, or what `scipy.sparse.save_npz` has written."""
    with np.load(path) as file:
        if "counts" not in file:
            from scipy.sparse import load_npz

            values = load_npz(path)
        else:
            values = file["counts"]
        ids, taxa = (file[name].tolist() if name in file else None for name in ("ids", "taxa"))
    return values, ids, taxa


# --------------------------------------------------------------------------------------- distances


def check_output(path: Path, suffixes: str = OUTPUTS) -> None:
    """Raise before the work if the distances cannot be written."""
    if path.suffix not in suffixes.replace(",", " ").split():
        raise ValueError(f"{path}: unknown kind of output; expected {suffixes}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.suffix in (".h5", ".hdf5"):
        package("h5py", f"{path}: a file of HDF5")


def write_distances(path: Path, ids: list[str], blocks: Iterable[Block]) -> None:
    """Write all distances, block by block; files of text are written at the end."""
    n = len(ids)
    if path.suffix == ".tsv":
        matrix = np.zeros((n, n))
        for block in blocks:
            assign_square(matrix, *block, mirrored=True)
        with path.open("w", encoding="utf-8") as file:
            print("", *ids, sep="\t", file=file)
            for name, row in zip(ids, matrix, strict=True):
                print(name, *map(repr, row.tolist()), sep="\t", file=file)
    elif path.suffix == ".npy":
        target = np.lib.format.open_memmap(path, "w+", np.float64, (n, n))
        for block in blocks:
            assign_square(target, *block, mirrored=True)
        target.flush()
        path.with_suffix(".ids.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    else:
        h5py = package("h5py", f"{path}: a file of HDF5")
        with h5py.File(path, "w") as file:  # the layout of unifrac-binaries
            file.create_dataset("order", data=ids, dtype=h5py.string_dtype())
            matrix = file.create_dataset("matrix", (n, n), np.float64)
            for block in blocks:
                assign_square(matrix, *block, mirrored=True)


# ------------------------------------------------------------------------------------------- parts


def write_part(path: Path, key: str, part: tuple[int, int], ids: list[str], blocks: Any) -> None:
    """Write part i of n of the blocks; `key` identifies the problem."""
    arrays = {f"{i.start} {i.stop} {j.start} {j.stop}": block for i, j, block in blocks}
    with path.open("wb") as file:
        np.savez(file, key=key, part=part, ids=np.array(ids, str), allow_pickle=False, **arrays)


def read_parts(paths: list[Path]) -> tuple[list[str], Iterator[Block]]:
    """Validate that parts make a whole; return the names of the samples, and all blocks."""
    ids: list[str] = []
    parts: dict[int, Path] = {}
    first = ("", 0)
    for path in paths:
        try:
            with np.load(path) as file:
                problem = str(file["key"]), int(file["part"][1])
                number, names = int(file["part"][0]), file["ids"].tolist()
        except (KeyError, ValueError, zipfile.BadZipFile):
            raise ValueError(f"{path}: not a part; expected a file of --block") from None
        if parts and problem != first:
            raise ValueError(f"{path}: a part of other distances than {paths[0]}")
        if number in parts:
            raise ValueError(f"{path}: part {number} as well as {parts[number]}")
        first, ids, parts[number] = problem, names, path
    missing = [i for i in range(1, first[1] + 1) if i not in parts]
    if missing:
        raise ValueError(f"parts {', '.join(map(str, missing))} of {first[1]} are missing")
    return ids, _blocks_of(list(parts.values()))


def _blocks_of(paths: list[Path]) -> Iterator[Block]:
    for path in paths:
        with np.load(path) as file:
            for name in set(file.files).difference(("key", "part", "ids")):
                i, to, j, end = map(int, name.split())
                yield slice(i, to), slice(j, end), file[name]


def part_of(text: str) -> tuple[int, int]:
    """Parse ``i/n``."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, got {text!r}")
    return int(number), int(count)
