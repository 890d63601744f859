"""What the experiments on real data share: runs that are kept on disk, and their statistics."""

import json

import numpy as np

from fastemd.demo.common import Progress


class Runs:
    """Results of training runs by name, kept in a file as soon as there is one.

    An experiment that was interrupted goes on where it was when it is started again; delete the
    file to start anew. `settings` is what all runs depend on; a file of other settings is refused.
    `total` is the work of all runs together, in any unit, for the bar.
    """

    def __init__(self, path, settings, total):
        self.path, self.progress = path, Progress(total)
        lines = path.read_text().split("\n") if path.exists() else []
        if not lines or not lines[0]:
            lines = [json.dumps(settings), ""]
            path.write_text("\n".join(lines))
        if json.loads(lines[0]) != json.loads(json.dumps(settings)):
            raise SystemExit(f"{path} is from a run with other settings; delete it or move it away")
        whole = lines[1:-1]  # what follows the last end of a line was cut off while it was written
        if lines[-1]:
            path.write_text("\n".join([*lines[:-1], ""]))
        self.kept = dict(json.loads(line) for line in whole)

    def get(self, name, work, compute, *arguments):
        """The result of a run as an array; ``compute(*arguments)`` if it is not there yet."""
        if name in self.kept:
            self.progress.skip(work)
        else:
            result = np.asarray(compute(*arguments)).tolist()
            with self.path.open("a") as file:
                file.write(json.dumps([name, result]) + "\n")
            self.kept[name] = result
            self.progress.add(work)
        return np.array(self.kept[name])


def mean_and_spread(values):
    """Mean and standard deviation over the first axis."""
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1)


def band(axis, x, values, label):
    """The mean over runs (runs, len(x)) as a line, one standard deviation as a band."""
    mean, spread = mean_and_spread(values)
    (line,) = axis.plot(x, mean, label=label)
    axis.fill_between(x, mean - spread, mean + spread, alpha=0.2, color=line.get_color())
