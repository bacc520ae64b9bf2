"""Where the heads of a model look: maps of a short text, patterns over a long one."""

import math

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from seugpt.errors import ConfigError, DataError
from seugpt.plots.attention_patterns import OTHER_TARGETS, attention_patterns, window_shape
from seugpt.plots.internals import MAX_MAP_TOKENS, attention_weights, load_model_and_text
from seugpt.plots.language import ENGLISH
from seugpt.plots.style import quote, saved_figure, token_labels

WIDTH = 8  # inches
MIN_FONT_SIZE = 5.5  # points: smaller text cannot be read
MAX_PERCENTAGES = 24  # tokens whose weights are written into their cells
MAX_RATIO = 8  # of attention to a uniform head's: the ends of the colour scale are 1/8 and 8
NORM = PowerNorm(0.5, 0, 1)  # 2% is visible beside 100%
TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]


def select(name, index, count):
    """The layers or heads to show; `index` None: all. Raises ConfigError."""
    if index is None:
        return list(range(count))
    if not 0 <= index < count:
        raise ConfigError(f"{name}={index} does not exist: the model has {name}s 0 to {count - 1}")
    return [index]


def plot_attention_maps(path, source, text, layer=None, head=None, language=ENGLISH, show=False):
    """Plot where each token of a text looks, a map for each head or the given one.

    Returns the path.
    """
    model, tokenizer, ids = load_model_and_text(source, text)
    layers = select("layer", layer, model.config.n_layer)
    heads = select("head", head, model.config.n_head)
    T = min(MAX_MAP_TOKENS, model.config.block_size)
    labels = token_labels(tokenizer, ids[:T], max_chars=10)
    weights = [of_layer[0].numpy() for of_layer in attention_weights(model, ids[None, :T])]
    is_grid = len(layers) > 1 and len(heads) > 1  # a row for each layer
    num_maps = len(layers) * len(heads)
    columns = len(heads) if is_grid else min(num_maps, 4)
    rows = -(-num_maps // columns)
    side = (WIDTH - 1.9) / columns  # inches of a map
    font_size = min(side * 72 / len(labels) * 0.85, 11)
    height = rows * (side + (0.05 if is_grid else 0.25)) + 1.2
    with saved_figure(path, WIDTH, height, show, language) as figure:
        figure.suptitle(maps_title(labels, layers, heads, len(ids), language))
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        pairs = [(n, m) for n in layers for m in heads]
        for axes, (n, m) in zip(panels.flat, pairs, strict=False):
            image = draw_map(axes, weights[n][m], labels, font_size)
            if not is_grid and num_maps > 1:
                axes.set_title(language("layer {n}, head {m}", n=n, m=m), fontsize=9)
            if num_maps == 1 and len(labels) <= MAX_PERCENTAGES:
                write_percentages(axes, weights[n][m], is_dark=weights[n][m] < 0.4, font_size=7)
        for axes in panels.flat[num_maps:]:
            axes.set_visible(False)
        if is_grid:
            label_grid(panels, layers, heads, language)
        if font_size >= MIN_FONT_SIZE:
            x_label = language("key: the token attended to")
            y_label = language("query: the token that attends")
        else:
            x_label = language("key: the token attended to, by position")
            y_label = language("query: the token that attends, by position")
        figure.supxlabel(x_label, fontsize=10)
        figure.supylabel(y_label, fontsize=10)
        bar = figure.colorbar(image, ax=panels, label=language("share of attention"), aspect=40)
        bar.set_ticks(TICKS, labels=[f"{tick:.0%}" for tick in TICKS])
    return path


def maps_title(labels, layers, heads, num_tokens, language):
    if len(layers) == len(heads) == 1:
        title = language(
            "Layer {n}, head {m}: where each token (row) looks, at itself (diagonal) or back",
            n=layers[0],
            m=heads[0],
        )
    else:
        title = language("Where each token (row) looks, at itself (diagonal) or back (left of it)")
    title += f"\n{quote(labels)}"
    if num_tokens > len(labels):
        title += language(
            ", the first {shown:,} of {total:,} tokens", shown=len(labels), total=num_tokens
        )
    return title


def label_grid(panels, layers, heads, language):
    """Name the heads above the first row and the layers beside the first column."""
    font_size = 9 if len(heads) < 9 else 7
    for axes, m in zip(panels[0], heads, strict=True):
        axes.set_title(language("head {m}", m=m), fontsize=font_size)
    for axes, n in zip(panels[:, 0], layers, strict=True):
        axes.set_ylabel(language("layer {n}", n=n), fontsize=font_size)


def draw_map(axes, weights, labels, font_size):
    """One head's weights (T, T), with the tokens along both axes if they are legible there."""
    future = np.triu(np.ones_like(weights, dtype=bool), 1)
    image = axes.imshow(np.ma.masked_where(future, weights), cmap="viridis", norm=NORM)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2, labelsize=7)
    if font_size >= MIN_FONT_SIZE:
        rotation = 90 if max(map(len, labels)) > 1 else 0
        axes.set_xticks(range(len(labels)), labels, fontsize=font_size, rotation=rotation)
        axes.set_yticks(range(len(labels)), labels, fontsize=font_size)
    return image


def write_percentages(axes, table, is_dark, font_size):
    """The numbers on a heat map's cells; is_dark (rows, columns): where they must be white."""
    for (row, column), share in np.ndenumerate(table):
        if share >= 0.005:
            colour = "white" if is_dark[row, column] else "black"
            style = {"ha": "center", "va": "center", "fontsize": font_size, "color": colour}
            axes.text(column, row, f"{share:.0%}", **style)


def plot_attention_patterns(path, source, text, language=ENGLISH, show=False):
    """Plot what each head looks at, on average over a text, a row per head. Returns the path."""
    model, tokenizer, ids = load_model_and_text(source, text)
    if len(ids) < 2:
        raise DataError(
            "--text has one token, which can look at nothing but itself; give a longer text"
        )
    starts_with_space = {
        i: tokenizer.decode_bytes([i])[:1].isspace() for i in ids.unique().tolist()
    }
    is_space = torch.tensor([starts_with_space[i] for i in ids.tolist()])
    names, shares, uniform = attention_patterns(model, ids, is_space, language)
    num_layers = model.config.n_layer
    num_heads = model.config.n_head
    table = torch.cat((shares.flatten(0, 1), uniform[None])).numpy()  # (L nh + 1, K)
    legible = num_layers * num_heads <= 40
    max_log = np.log2(MAX_RATIO)
    log_ratios = np.log2(np.maximum(table, 1e-9) / table[-1]).clip(-max_log, max_log)
    height = 2.2 + (0.2 if legible else 0.08) * len(table)
    with saved_figure(path, WIDTH, height, show, language) as figure:
        axes = figure.subplots()
        image = axes.imshow(log_ratios, cmap="RdBu_r", vmin=-max_log, vmax=max_log, aspect="auto")
        axes.set_title(
            language(
                "Red: what a head looks at more than the last row, which looks everywhere equally"
            )
        )
        axes.set_xticks(
            range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor", fontsize=9
        )
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.set_xlabel(
            language(
                "Shares of a head's attention, averaged over {count:,} tokens. "
                "Each average covers only\nthe tokens that have such a token before them, "
                "so the distances of a row add up to more than 100%.",
                count=math.prod(window_shape(len(ids), model.config.block_size)),
            )
        )
        label_rows(axes, num_layers, num_heads, legible, language)
        if legible:
            write_percentages(axes, table, is_dark=np.abs(log_ratios) > 2.1, font_size=8)
        for row in range(num_heads, num_layers * num_heads + 1, num_heads):
            axes.axhline(row - 0.5, color="black", lw=0.8)
        others = set(map(language, OTHER_TARGETS))
        num_distances = sum(name not in others for name in names)
        axes.axvline(num_distances - 0.5, color="black", lw=0.8)
        bar = figure.colorbar(image, ax=axes, label=language("ratio to the last row"), aspect=40)
        bar.set_ticks(range(-3, 4), labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    return path


def label_rows(axes, num_layers, num_heads, legible, language):
    """A label for each head, or for each layer if there are too many heads."""
    if legible:
        pairs = [(n, m) for n in range(num_layers) for m in range(num_heads)]
        labels = [language("layer {n}, head {m}", n=n, m=m) for n, m in pairs]
        positions = np.arange(len(labels) + 1)
    else:
        labels = [language("layer {n}", n=n) for n in range(num_layers)]
        centres = np.arange(num_layers) * num_heads + (num_heads - 1) / 2
        positions = np.append(centres, num_layers * num_heads)
        axes.set_ylabel(language("heads 0 to {last} of each layer", last=num_heads - 1))
    axes.set_yticks(positions, [*labels, language("uniform")], fontsize=9)
