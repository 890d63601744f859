"""What the commands share: the problem, the options, the progress bar, the files."""

import argparse
import contextlib
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd.rivals import softmax

Array = NDArray[Any]


def predictions(rows: int, n_bins: int, seed: int) -> Array:
    """Random softmax outputs, float64; every bin has some mass."""
    return softmax(3.0 * np.random.default_rng(seed).standard_normal((rows, n_bins)))


def options(
    command: str, description: str | None, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The folder to save to, and whether some seconds must do; by default from `sys.argv`."""
    parser = argparse.ArgumentParser(prog=f"python {command}", description=description)
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where to save the numbers and the picture (.)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small problem, in seconds: to see that it runs"
    )
    chosen = parser.parse_args(arguments)
    if not chosen.folder.is_dir():
        parser.error(f"--folder: there is no folder {chosen.folder}")
    return chosen


def clear_bar() -> None:
    """Remove the progress bar from the terminal, before other output or at an interruption."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


class Progress:
    """A bar with the time left, on a terminal."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self.start = time.perf_counter()
        self.shown = sys.stderr.isatty()

    def skip(self, work: float) -> None:
        """So much of the total was done before, in no time."""
        self.skipped += work
        self.done += work

    def add(self, work: float) -> None:
        """So much of the total has been done."""
        self.done += work
        if not self.shown:
            return
        part = min(self.done / self.total, 1.0)
        spent = time.perf_counter() - self.start
        left = spent * max(self.total - self.done, 0.0) / (self.done - self.skipped)
        bar = "#" * round(30 * part)
        print(
            f"\r\033[K[{bar:30}] {part:4.0%}, {left:.0f} s left",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if self.done >= self.total:
            clear_bar()


@contextlib.contextmanager
def open_table(path: Path, header: Sequence[str]) -> Iterator[Callable[[Sequence[object]], None]]:
    """A CSV file as a function that adds a row; rows added before an interruption are kept."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def add(row: Sequence[object]) -> None:
            writer.writerow(row)
            file.flush()

        add(header)
        yield add


def save_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The numbers as CSV."""
    with open_table(path, header) as add:
        for row in rows:
            add(row)
