"""A run over time, from its metrics.jsonl: losses, and what happens in each layer."""

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from seugpt.errors import DataError
from seugpt.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, saved_figure
from seugpt.training.metrics import iterate_metrics

MAX_POINTS = 2000  # drawn per line: a plot has a thousand columns
OVERFITTING_MARGIN = 0.02  # nats above the best validation loss
RUN_COLOURS = (BLUE, RED, GREEN, PURPLE, SKY, ORANGE, BLACK)
X_LABELS = {
    "step": "step",
    "tokens": "training tokens",
    "seconds": "seconds of training, without evaluations",
}
QUANTITIES = {  # of snapshots: (title, label of the y axis)
    "activation_rms": ("Size of the residual stream", "root mean square"),
    "weight_norm": ("Size of the weights", "norm"),
    "grad_norm": ("Size of the gradient", "norm"),
    "update_ratio": ("How far a step moves the weights", "norm of the update / of the weights"),
}


@dataclass
class Run:
    """metrics.jsonl as columns, {key: array}: of training steps, evaluations, layer statistics."""

    name: str
    steps: dict
    evaluations: dict
    layer_stats: dict

    def x_values(self, x, steps):
        """Where `steps` lie on the axis `x`, a key of X_LABELS."""
        if x == "step" or not len(self.steps["step"]):
            return steps
        step_seconds = self.steps["step_ms"] / 1000
        if x == "tokens":
            return steps * np.median(self.steps["tokens_per_s"] * step_seconds)
        steps_made = self.steps["step"] + 1
        seconds = np.cumsum(np.diff(steps_made, prepend=0) * step_seconds)
        return np.interp(steps, np.concatenate(([0], steps_made)), np.concatenate(([0], seconds)))


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
    columns = {"loss": Columns(), "val_loss": Columns(), "update_ratio/embedding": Columns()}
    for line in filter(None, lines):
        for key, column in columns.items():
            if math.isfinite(line.get(key, math.nan)):
                column.add(line)
    return Run(name, *(column.to_numpy() for column in columns.values()))


def smooth(values):
    """A moving average over a thirtieth of the curve on either side, over less at its ends."""
    positions = np.arange(len(values))
    to_edge = np.minimum(positions, len(values) - 1 - positions)
    reach = np.minimum(len(values) // 30, to_edge)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return (sums[positions + reach + 1] - sums[positions - reach]) / (2 * reach + 1)


def summarize(run):
    """What the validation losses of a run show, in one line."""
    losses = run.evaluations["val_loss"]
    steps = run.evaluations["step"]
    best = int(np.argmin(losses))
    text = f"best validation loss {losses[best]:.4f} at step {steps[best]:,.0f}"
    if losses[-1] > losses[best] + OVERFITTING_MARGIN:
        return f"{text}; then it rises to {losses[-1]:.4f}: overfitting"
    return text


def plot_losses(path, runs, x="step", show=False):
    """Plot the loss curves of one or several runs. Returns the path."""
    with saved_figure(path, 8, 4.5, show) as figure:
        axes = figure.subplots()
        if len(runs) == 1:
            plot_single_run(axes, runs[0], x)
        else:
            for number, run in enumerate(runs):
                plot_one_of_several(axes, run, x, RUN_COLOURS[number % len(RUN_COLOURS)])
        evaluated = [run for run in runs if len(run.evaluations["step"])]
        if len(runs) == 1 and evaluated:
            axes.set_title(summarize(runs[0]).capitalize())
        elif evaluated:
            lowest = min(evaluated, key=lambda run: np.min(run.evaluations["val_loss"]))
            axes.set_title(f"Lowest: {lowest.name}, {summarize(lowest)}")
        axes.set(xlabel=X_LABELS[x], ylabel="loss (nats per token)")
        axes.grid()
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return path


def plot_single_run(axes, run, x):
    """Training steps in grey, evaluations in two colours."""
    plot_steps(
        axes, run, x, raw_style={"color": "0.8"}, colour=GREY, label="training batches, smoothed"
    )
    if len(run.evaluations["step"]):
        x_values = run.x_values(x, run.evaluations["step"])
        train_losses = run.evaluations["train_loss"]
        axes.plot(x_values, train_losses, "o-", color=BLUE, ms=3, label="training")
        plot_validation(axes, run, x, colour=RED, label="validation")


def plot_one_of_several(axes, run, x, colour):
    """Everything in one colour."""
    label = f"{run.name}: training batches, smoothed"
    plot_steps(axes, run, x, raw_style={"color": colour, "alpha": 0.2}, colour=colour, label=label)
    if len(run.evaluations["step"]):
        plot_validation(axes, run, x, colour, label=f"{run.name}: validation")


def plot_steps(axes, run, x, raw_style, colour, label):
    """The loss of each logged step, raw and smoothed."""
    losses = run.steps.get("loss")
    if losses is None or not len(losses):
        return
    thinned = slice(None, None, max(len(losses) // MAX_POINTS, 1))
    x_values = run.x_values(x, run.steps["step"] + 1)[thinned]
    axes.plot(x_values, losses[thinned], lw=0.6, **raw_style)
    axes.plot(x_values, smooth(losses)[thinned], color=colour, lw=1.2, label=label)


def plot_validation(axes, run, x, colour, label):
    """The validation losses, with a star at the best one."""
    x_values = run.x_values(x, run.evaluations["step"])
    losses = run.evaluations["val_loss"]
    axes.plot(x_values, losses, "s-", color=colour, ms=3, label=label)
    best = int(np.argmin(losses))
    axes.plot(x_values[best], losses[best], "*", color=colour, ms=13, mec="white")


def plot_layers(path, run, show=False):
    """Plot the layer statistics of a run, a panel for each quantity. Returns the path."""
    stats = run.layer_stats
    if not len(stats["step"]):
        raise DataError(
            f"{run.name} has no layer statistics. Train with --snapshot_interval=100 first"
        )
    layers = [key.partition("/")[2] for key in stats if key.startswith("weight_norm/")]
    with saved_figure(path, 10, 7, show) as figure:
        figure.suptitle("Each layer over the run: where one line leaves the others, look closer")
        panels = dict(zip(QUANTITIES, figure.subplots(2, 2, sharex=True).flat, strict=True))
        colours = layer_colours(layers)
        for quantity, axes in panels.items():
            for layer in layers:
                if f"{quantity}/{layer}" in stats:
                    label = layer.replace("h.", "block ")
                    values = stats[f"{quantity}/{layer}"]
                    axes.plot(stats["step"], values, color=colours[layer], lw=1.3, label=label)
            title, ylabel = QUANTITIES[quantity]
            axes.set(title=title, ylabel=ylabel, yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid()
        for axes in list(panels.values())[2:]:
            axes.set_xlabel("step")
        handles_and_labels = panels["weight_norm"].get_legend_handles_labels()
        panels["activation_rms"].legend(*handles_and_labels, fontsize=8, ncols=2)
    return path


def layer_colours(layers):
    """{layer: colour}: the blocks from dark to light."""
    blocks = [layer for layer in layers if layer.startswith("h.")]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(blocks)))
    return {"embedding": RED, "head": BLACK, **dict(zip(blocks, shades, strict=True))}
