"""Shared by the commands: random predictions, options, CSV files."""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Array = NDArray[Any]
Row = TypeVar("Row", bound=Sequence[object])


def predictions(rows: int, n_bins: int, seed: int) -> Array:
    """Return random softmax outputs, float64; every bin has some mass."""
    logits = 3.0 * np.random.default_rng(seed).standard_normal((rows, n_bins))
    return np.asarray(softmax(logits, axis=-1))


def parse_options(
    command: str, description: str | None, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse ``--folder`` and ``--quick``, by default from `sys.argv`."""
    parser = argparse.ArgumentParser(prog=f"python {command}", description=description)
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where to save the numbers and the picture (.)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small problem, in seconds: to see that it runs"
    )
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"--folder: there is no folder {options.folder}")
    return options


def save_rows(path: Path, header: Sequence[str], rows: Iterable[Row]) -> Iterator[Row]:
    """Save rows as a CSV file; yield every row once it is written, so that none is lost."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            file.flush()
            yield row


def save_table(path: Path, header: Sequence[str], rows: Iterable[Row]) -> None:
    """Save rows as a CSV file."""
    for _ in save_rows(path, header, rows):
        pass
