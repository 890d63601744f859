"""The progress bar and the status line of a terminal."""

import sys
import time


def show_status(text: str = "") -> None:
    """Replace the status line of the terminal; without a text, remove it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class Progress:
    """A progress bar with the time left, on a terminal, once the work has taken some seconds."""

    def __init__(self, total: float, after: float = 0.0) -> None:
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self.start, self.after = time.perf_counter(), after
        self.is_shown = False

    def skip(self, work: float) -> None:
        """Count work that was done before, in no time."""
        self.skipped += work
        self.done += work

    def add(self, work: float) -> None:
        """Count work that has just been done, and show the bar."""
        self.done += work
        spent = time.perf_counter() - self.start
        if spent < self.after:
            return
        if self.done >= self.total:
            show_status()
            self.is_shown = False
            return
        part = self.done / self.total
        left = spent * (self.total - self.done) / (self.done - self.skipped)
        show_status(f"[{'#' * round(30 * part):30}] {part:4.0%}, {left:.0f} s left")
        self.is_shown = True

    def close(self) -> None:
        """Remove the bar."""
        if self.is_shown:
            show_status()
        self.is_shown = False
