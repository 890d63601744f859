"""Shared by the commands: random predictions, options, the progress bar, CSV files."""

import argparse
import csv
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Row = TypeVar("Row", bound=Sequence[object])


def softmax(logits: Array) -> Array:
    """Return softmax(logits) over the last axis, in the type of the logits."""
    exponentials: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def predictions(rows: int, n_bins: int, seed: int) -> Array:
    """Return random softmax outputs, float64; every bin has some mass."""
    return softmax(3.0 * np.random.default_rng(seed).standard_normal((rows, n_bins)))


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


def show_status(text: str = "") -> None:
    """Replace the status line of the terminal; without a text, remove it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class Progress:
    """A progress bar with the time left, on a terminal."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self.start = time.perf_counter()

    def skip(self, work: float) -> None:
        """Count work that was done before, in no time."""
        self.skipped += work
        self.done += work

    def add(self, work: float) -> None:
        """Count work that has just been done, and show the bar."""
        self.done += work
        if self.done >= self.total:
            show_status()
            return
        part = self.done / self.total
        spent = time.perf_counter() - self.start
        left = spent * (self.total - self.done) / (self.done - self.skipped)
        show_status(f"[{'#' * round(30 * part):30}] {part:4.0%}, {left:.0f} s left")


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
