"""A run over time, from its metrics.jsonl: losses, and what happens in each layer."""

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from seugpt.errors import DataError
from seugpt.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, picture
from seugpt.training.metrics import parsed_lines

POINTS = 2000  # drawn of a line, at most: a picture has a thousand columns
X_LABELS = {
    "step": "step",
    "tokens": "training tokens",
    "seconds": "seconds of training, without evaluations",
}
QUANTITIES = {
    "activation_rms": ("Size of the residual stream", "root of the mean square"),
    "weight_norm": ("Length of the weights", "norm"),
    "grad_norm": ("Length of the gradient", "norm"),
    "update_ratio": ("How far a step moves the weights", "length of the update / of the weights"),
}


@dataclass
class Run:
    """The lines of metrics.jsonl as columns: {key: array} for logged batches, for evaluations and for looks inside."""

    name: str
    batches: dict
    evaluations: dict
    looks: dict

    def at(self, x, steps):
        """Where steps lie on the axis `x`."""
        if x == "step" or not len(self.batches["step"]):
            return steps
        made, per_step = self.batches["step"] + 1, self.batches["step_ms"] / 1000
        if x == "tokens":
            return steps * np.median(self.batches["tokens_per_s"] * per_step)
        seconds = np.cumsum(np.diff(made, prepend=0) * per_step)
        return np.interp(steps, np.concatenate(([0], made)), np.concatenate(([0], seconds)))


def read_run(folder):
    """A run's metrics.jsonl. Raises DataError where there is none, or nothing in it."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(
            f"there is no {path}. A run writes it: python train.py CONFIG --out_dir={folder}"
        )
    run = to_run(Path(folder).name, parsed_lines(path))
    if not len(run.batches["step"]) and not len(run.evaluations["step"]):
        raise DataError(f"{path} has no line of a run in it")
    return run


class Columns(dict):
    """{key: array} of lines that have numbers under keys, NaN where one has none; small for a million lines."""

    def __init__(self):
        super().__init__(step=array("d"))

    def add(self, line):
        before = len(self["step"])
        for key, value in line.items():
            self.setdefault(key, array("d", [math.nan]) * before).append(value)
        for column in self.values():
            column.extend([math.nan] * (before + 1 - len(column)))


def to_run(name, lines):
    """A Run of the lines that metrics.parse has read; None is a damaged one."""
    kinds = {"loss": Columns(), "val_loss": Columns(), "update_ratio/embedding": Columns()}
    for line in filter(None, lines):
        for kind, columns in kinds.items():
            if math.isfinite(line.get(kind, math.nan)):
                columns.add(line)
    return Run(
        name,
        *({key: np.array(column) for key, column in columns.items()} for columns in kinds.values()),
    )


def smooth(values):
    """The mean of each value and its neighbours, a thirtieth of the curve on either side, less at its ends."""
    reach = len(values) // 30
    sums = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    reach = np.minimum(reach, np.minimum(middle, len(values) - 1 - middle))
    return (sums[middle + reach + 1] - sums[middle - reach]) / (2 * reach + 1)


def summary(run):
    """What the validation losses of a run say, in a line."""
    losses, steps = run.evaluations["val_loss"], run.evaluations["step"]
    best = int(np.argmin(losses))
    text = f"best validation loss {losses[best]:.4f} at step {steps[best]:,.0f}"
    if losses[-1] > losses[best] + 0.02:
        return f"{text}; from there on it rises, to {losses[-1]:.4f}: overfitting"
    return text


def losses(path, runs, x="step", show=False):
    """Draw the loss curves of runs. Returns the path."""
    with picture(path, 8, 4.5, show) as figure:
        axes = figure.subplots()
        for number, run in enumerate(runs):
            # One run: a colour for each curve. Several: a colour for each run.
            one, mine = len(runs) == 1, (BLUE, RED, GREEN, PURPLE, SKY, ORANGE, BLACK)[number % 7]
            name = "" if one else f"{run.name}: "
            if len(run.batches["step"]):
                thin = slice(None, None, max(len(run.batches["step"]) // POINTS, 1))
                loss, at = run.batches["loss"], run.at(x, run.batches["step"] + 1)[thin]
                axes.plot(
                    at, loss[thin], color="0.8" if one else mine, lw=0.6, alpha=1 if one else 0.2
                )
                line = smooth(loss)[thin]
                axes.plot(
                    at, line, color=GREY if one else mine, lw=1.2, label=f"{name}batches, smoothed"
                )
            if len(run.evaluations["step"]):
                draw_evaluations(axes, run, x, name, *((BLUE, RED) if one else (None, mine)))
        evaluated = [run for run in runs if len(run.evaluations["step"])]
        if len(runs) == 1 and evaluated:
            axes.set_title(summary(runs[0]).capitalize())
        elif evaluated:
            lowest = min(evaluated, key=lambda run: np.min(run.evaluations["val_loss"]))
            axes.set_title(f"The lowest is of {lowest.name}: {summary(lowest)}")
        axes.set(xlabel=X_LABELS[x], ylabel="loss (nats per token)")
        axes.grid()
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return path


def draw_evaluations(axes, run, x, name, training, validation):
    """Both splits' losses at the evaluations, with a star at the best; training: its colour, or None to leave it."""
    at, values = run.at(x, run.evaluations["step"]), run.evaluations
    if training:
        axes.plot(at, values["train_loss"], "o-", color=training, ms=3, label="training")
    axes.plot(at, values["val_loss"], "s-", color=validation, ms=3, label=f"{name}validation")
    best = int(np.argmin(values["val_loss"]))
    axes.plot(at[best], values["val_loss"][best], "*", color=validation, ms=13, mec="white")


def layers(path, run, show=False):
    """Draw what the looks inside a run have measured, a panel for each quantity. Returns the path."""
    if not len(run.looks["step"]):
        raise DataError(
            f"{run.name} has no looks inside. Train with --snapshot_interval=100, and look again"
        )
    with picture(path, 10, 7, show) as figure:
        figure.suptitle("Each layer over the run: where one line leaves the others, look closer")
        panels = dict(zip(QUANTITIES, figure.subplots(2, 2, sharex=True).flat, strict=True))
        names = [key.partition("/")[2] for key in run.looks if key.startswith("weight_norm/")]
        blocks = matplotlib.colormaps["viridis"](
            np.linspace(0, 0.85, sum(n.startswith("h.") for n in names))
        )
        colours = {"embedding": RED, "head": BLACK} | {
            f"h.{i}": colour for i, colour in enumerate(blocks)
        }
        for quantity, axes in panels.items():
            for name in (n for n in names if f"{quantity}/{n}" in run.looks):
                values, called = run.looks[f"{quantity}/{name}"], name.replace("h.", "block ")
                axes.plot(run.looks["step"], values, color=colours[name], lw=1.3, label=called)
            axes.set(title=QUANTITIES[quantity][0], ylabel=QUANTITIES[quantity][1], yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid()
        for axes in list(panels.values())[2:]:
            axes.set_xlabel("step")
        panels["activation_rms"].legend(
            *panels["weight_norm"].get_legend_handles_labels(), fontsize=8, ncols=2
        )
    return path
