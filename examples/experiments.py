"""Shared by the experiments on real data: runs that are saved on disk, and their statistics."""

import json

import numpy as np

from fastemd.progress import Progress


class Runs:
    """Results of training runs by name, saved in a file as soon as they are computed.

    An interrupted experiment continues when it is started again; delete the file to start anew.
    All runs depend on `settings`; a file of other settings is refused. `total` is the work of all
    runs together, in any unit, for the progress bar.
    """

    def __init__(self, path, settings, total):
        self.path, self.progress = path, Progress(total)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        if not lines or not lines[0]:
            lines = [json.dumps(settings), ""]
            path.write_text("\n".join(lines), encoding="utf-8")
        if json.loads(lines[0]) != json.loads(json.dumps(settings)):
            raise SystemExit(f"{path} is from a run with other settings; delete it or move it away")
        complete = lines[1:-1]  # the last line is empty, or was cut off by an interruption
        if lines[-1]:
            path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
        self.results = dict(json.loads(line) for line in complete)

    def get(self, name, work, compute, *arguments):
        """Return the result of a run as an array, by ``compute(*arguments)`` if it is not saved."""
        if name in self.results:
            self.progress.skip(work)
        else:
            result = np.asarray(compute(*arguments)).tolist()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, result]) + "\n")
            self.results[name] = result
            self.progress.add(work)
        return np.array(self.results[name])


def mean_and_spread(values):
    """Return mean and standard deviation over the first axis."""
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1)


def band(axis, x, values, label):
    """Draw the mean over runs (runs, len(x)) as a line, one standard deviation as a band."""
    mean, spread = mean_and_spread(values)
    (line,) = axis.plot(x, mean, label=label)
    axis.fill_between(x, mean - spread, mean + spread, alpha=0.2, color=line.get_color())
