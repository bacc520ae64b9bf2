"""What metrics.jsonl says of a run, as columns: training steps, evaluations, layer statistics."""

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seugpt.errors import DataError
from seugpt.training.metrics import iterate_metrics


@dataclass
class Run:
    """metrics.jsonl as columns, {key: array}: of training steps, evaluations, layer statistics."""

    name: str
    steps: dict
    evaluations: dict
    layer_stats: dict

    def x_values(self, x, steps):
        """Where `steps` lie on the axis `x`, one of "step", "tokens" and "seconds"."""
        if x == "step" or not len(self.steps["step"]):
            return steps
        per_step = self.steps["step_ms"] / 1000  # seconds
        if x == "tokens":
            per_step = per_step * self.steps["tokens_per_s"]
        steps_made = np.concatenate(([0], self.steps["step"] + 1))
        totals = np.concatenate(([0], np.cumsum(np.diff(steps_made) * per_step)))
        steps_after = np.maximum(steps - steps_made[-1], 0)  # those not logged at the end
        return np.interp(steps, steps_made, totals) + steps_after * per_step[-1]


def read_run(folder):
    """A run's metrics.jsonl. Raises DataError if it is missing or empty."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(
            f"there is no {path}. A run writes it: python train.py CONFIG --out_dir={folder}"
        )
    run = to_run(Path(folder).name, iterate_metrics(path))
    if not len(run.steps["step"]) and not len(run.evaluations["step"]):
        raise DataError(f"{path} has no line of a run")
    return run


class Columns(dict):
    """{key: array}, with NaN where a line lacks a key; compact, for a million lines."""

    def __init__(self):
        super().__init__(step=array("d"))

    def add(self, line):
        length = len(self["step"])
        for key, value in line.items():
            self.setdefault(key, array("d", [math.nan]) * length).append(value)
        for column in self.values():
            column.extend([math.nan] * (length + 1 - len(column)))

    def to_numpy(self):
        return {key: np.array(column) for key, column in self.items()}


def to_run(name, lines):
    """A Run of lines from parse_line; None is a damaged line."""
    columns = {
        ("loss",): Columns(),
        ("train_loss", "val_loss"): Columns(),
        ("update_ratio/embedding",): Columns(),
    }
    for line in filter(None, lines):
        for keys, column in columns.items():
            if all(math.isfinite(line.get(key, math.nan)) for key in keys):
                column.add(line)
    return Run(name, *(column.to_numpy() for column in columns.values()))


def smooth(values):
    """A moving average over a window that grows: loss falls fast at first, then slowly.

    A value is averaged with an eighth of those before it, and as many after it, but at most a
    thirtieth of the curve or 4 values on either side. Where the curve ends, the window has only its
    left half: one that shrank to the last value would end the line on the noise of that value.
    """
    positions = np.arange(len(values))
    reach = np.minimum(positions // 8, max(len(values) // 30, 4))
    first = positions - reach
    end = np.minimum(positions + reach + 1, len(values))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return (sums[end] - sums[first]) / (end - first)


def num_steps(run):
    """The number of steps after which the run has its last loss."""
    return np.concatenate((run.steps["step"] + 1, run.evaluations["step"])).max(initial=0)


def best_evaluation(run):
    return int(np.argmin(run.evaluations["val_loss"]))
