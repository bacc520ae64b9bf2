"""Plots of a run over time: losses, and what happens in each layer."""

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from seugpt.errors import ConfigError, DataError
from seugpt.plots.language import ENGLISH
from seugpt.plots.loss_findings import (
    GAP_MARGIN,
    OVERFITTING_MARGIN,
    compare_runs,
    describe_doublings,
    describe_run,
    final_gap,
    final_rise,
)
from seugpt.plots.run_metrics import best_evaluation, num_steps, smooth
from seugpt.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, saved_figure

MAX_POINTS = 2000  # drawn per line: a plot has a thousand columns
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
LAYERS = {  # that are no blocks: (label, colour)
    "embedding": ("embedding", RED),
    "ln_f": ("final norm", BLACK),
    "lm_head": ("output matrix", GREY),
}


# Loss curves


def plot_losses(path, runs, x="step", xscale="linear", from_step=0, language=ENGLISH, show=False):
    """Plot the loss curves of one or several runs from a step on. Returns the path.

    Of a single run, the training steps as well; of several, each in a colour, the evaluations.
    Raises ConfigError if no run gets to `from_step`.
    """
    last_step = max(map(num_steps, runs))
    if from_step > last_step:
        raise ConfigError(f"from_step={from_step}: the runs end at step {last_step:.0f}")
    evaluated = [run for run in runs if len(run.evaluations["step"])]
    with saved_figure(path, 8, 4.5, show, language) as figure:
        axes = figure.subplots()
        if len(runs) == 1:
            plot_single_run(axes, runs[0], x, language)
        else:
            for number, run in enumerate(runs):
                # Each is thinner than the one before: where they coincide, all can be seen.
                width = 1.5 + 2 * min(len(runs) - 1 - number, 3)
                colour = RUN_COLOURS[number % len(RUN_COLOURS)]
                plot_one_of_several(axes, run, x, colour, width, language)
        x_label = language(X_LABELS[x])
        if xscale == "log":
            use_log_steps(axes, language)
            x_label = language("{label} (logarithmic scale)", label=x_label)
        if from_step or xscale == "log":
            first_x = min(run.x_values(x, np.array([from_step]))[0] for run in runs)
            crop_left(axes, first_x, xscale)
        if evaluated:
            axes.set_title(losses_title(evaluated, xscale, language))
        axes.set(xlabel=x_label, ylabel=language("loss (nats per token)"))
        axes.grid()
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return path


def losses_title(runs, xscale, language):
    lowest = min(runs, key=lambda run: run.evaluations["val_loss"].min())
    title = describe_doublings(lowest, language) if xscale == "log" else ""
    if not title:
        title = describe_run(runs[0], language) if len(runs) == 1 else compare_runs(runs, language)
    return title


def use_log_steps(axes, language):
    axes.set_xscale("log", nonpositive="mask")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: language.number(f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def crop_left(axes, first_x, xscale):
    """Leave out what lies left of `first_x`, on a logarithmic axis also 0, and fit what remains."""
    points = np.concatenate([np.stack(line.get_data(), axis=1) for line in axes.lines])
    visible = points[(points[:, 0] >= first_x) & ((points[:, 0] > 0) | (xscale == "linear"))]
    if not len(visible):  # before the first step of a run
        return
    low = visible.min(axis=0)
    high = visible.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    axes.set_xlim(left=low[0] / 1.1 if xscale == "log" else low[0] - margin[0] / 2)
    axes.set_ylim(low[1] - 2 * margin[1], high[1] + margin[1])  # below is the text of mark_best


def plot_single_run(axes, run, x, language):
    """Training steps in grey, evaluations in two colours; at the end, what lies between them."""
    plot_steps(axes, run, x, {"color": "0.8"}, GREY, language("training batches, smoothed"))
    if len(run.evaluations["step"]):
        plot_evaluations(axes, run, x, "train_loss", "o-", color=BLUE, label=language("training"))
        plot_evaluations(axes, run, x, "val_loss", "s-", color=RED, label=language("validation"))
        mark_best(axes, run, x, RED, language)
        if final_gap(run) > GAP_MARGIN:
            mark_gap(axes, run, x, language)


def plot_one_of_several(axes, run, x, colour, width, language):
    """The evaluations in one colour; of a run without any, the training steps."""
    style = {"color": colour, "lw": width}
    if not len(run.evaluations["step"]):
        label = language("{name}: training batches, smoothed", name=run.name)
        plot_steps(axes, run, x, {"color": colour, "alpha": 0.2}, label=label, **style)
        return
    label = language("{name}: training", name=run.name)
    plot_evaluations(axes, run, x, "train_loss", "--", label=label, **style)
    label = language("{name}: validation", name=run.name)
    plot_evaluations(axes, run, x, "val_loss", "s-", label=label, ms=width + 2, **style)
    mark_best(axes, run, x, colour, language)


def plot_steps(axes, run, x, raw_style, color, label, lw=1.2):
    """The loss of each logged step, raw and smoothed."""
    losses = run.steps.get("loss")
    if losses is None or not len(losses):
        return
    thinned = slice(None, None, max(len(losses) // MAX_POINTS, 1))
    x_values = run.x_values(x, run.steps["step"] + 1)[thinned]
    axes.plot(x_values, losses[thinned], lw=0.6, **raw_style)
    axes.plot(x_values, smooth(losses)[thinned], color=color, lw=lw, label=label)


def plot_evaluations(axes, run, x, key, marker, **style):
    x_values = run.x_values(x, run.evaluations["step"])
    axes.plot(x_values, run.evaluations[key], marker, **{"ms": 3, **style})


def mark_best(axes, run, x, colour, language):
    """A star at the best evaluation, with its loss; if the loss then rises, a vertical line too."""
    best = best_evaluation(run)
    step = run.evaluations["step"][best]
    loss = run.evaluations["val_loss"][best]
    best_x = run.x_values(x, np.array([step]))[0]
    axes.plot(best_x, loss, "*", color=colour, ms=13, mec="white", zorder=4)
    style = {"color": colour, "textcoords": "offset points", "annotation_clip": True}
    if final_rise(run) <= OVERFITTING_MARGIN:
        text = language.number(f"{loss:.4f}")
        axes.annotate(text, (best_x, loss), xytext=(3, 8), **style)
        return
    transform = axes.get_xaxis_transform()  # x in data, y from 0 to 1
    axes.vlines(best_x, 0, 1, colour, "dotted", transform=transform, lw=1.2)
    text = language("lowest at step {step:,.0f}: {loss:.4f}", step=step, loss=loss)
    axes.annotate(text, (best_x, 0.03), xytext=(5, 0), xycoords=transform, **style)


def mark_gap(axes, run, x, language):
    """Beside the last evaluation, how far validation loss lies above training loss."""
    low = run.evaluations["train_loss"][-1]
    high = run.evaluations["val_loss"][-1]
    last_x = run.x_values(x, run.evaluations["step"][-1:])[0]
    beside = axes.transData + ScaledTranslation(11 / 72, 0, axes.figure.dpi_scale_trans)
    bracket = {"color": BLACK, "lw": 1.2, "marker": "_", "ms": 6, "transform": beside}
    axes.plot([last_x] * 2, [low, high], clip_on=False, **bracket)
    gap = language.number(f"{high - low:.2f}")
    place = {"xytext": (16, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(gap, (last_x, (low + high) / 2), **place)


# Layers


def plot_layers(path, run, language=ENGLISH, show=False):
    """Plot the layer statistics of a run, a panel for each quantity. Returns the path."""
    stats = run.layer_stats
    if not len(stats["step"]):
        raise DataError(
            f"{run.name} has no layer statistics. Train with --snapshot_interval=100 first"
        )
    layers = [key.partition("/")[2] for key in stats if key.startswith("weight_norm/")]
    with saved_figure(path, 8, 6.6, show, language) as figure:
        figure.suptitle(
            language("Each layer over the run: where one line leaves the others, look closer")
        )
        panels = dict(zip(QUANTITIES, figure.subplots(2, 2, sharex=True).flat, strict=True))
        styles = layer_styles(layers, language)
        for quantity, axes in panels.items():
            for layer in layers:
                if f"{quantity}/{layer}" in stats:
                    axes.plot(stats["step"], stats[f"{quantity}/{layer}"], lw=1.3, **styles[layer])
            title, ylabel = map(language, QUANTITIES[quantity])
            axes.set(title=title, ylabel=ylabel, yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda x, _: language.number(f"{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid()
        for axes in list(panels.values())[2:]:
            axes.set_xlabel(language("step"))
        handles = panels["weight_norm"].get_lines()
        figure.legend(handles=handles, ncols=4, loc="outside lower center", frameon=False)
    return path


def layer_styles(layers, language):
    """{layer: its label and colour}: the blocks from dark to light."""
    blocks = [layer for layer in layers if layer.startswith("h.")]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(blocks)))
    styles = {layer: (language(label), colour) for layer, (label, colour) in LAYERS.items()}
    for layer, shade in zip(blocks, shades, strict=True):
        styles[layer] = language("block {n}", n=int(layer.removeprefix("h."))), shade
    return {layer: {"label": label, "color": colour} for layer, (label, colour) in styles.items()}
