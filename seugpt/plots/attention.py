"""Where the heads of a model look: maps of a short text, and the habits of each head over a long one."""

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from seugpt.errors import ConfigError, DataError
from seugpt.plots import inside
from seugpt.plots.style import labels, picture, quoted

WIDTH = 8  # inches
SMALLEST = 5.5  # points: smaller letters cannot be read
MOST_TOKENS = 64  # of a map
NORM = PowerNorm(0.5, 0, 1)  # a share of 2% is to be seen beside one of 100%
TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
MOST_TIMES = 8  # as much, or as little, as a head that looks at all tokens alike: where the colours of habits end


def chosen(what, number, count):
    """The layers or heads that an option names; None: all. Raises ConfigError."""
    if number is not None and not 0 <= number < count:
        raise ConfigError(f"{what}={number} is not there: the model's {what}s are 0 to {count - 1}")
    return range(count) if number is None else [number]


def maps(path, source, text, layer=None, head=None, show=False):
    """Draw where each token of a text looks, a map for each head, or for the one that is named. Returns the path."""
    model, tokenizer, ids = inside.read(source, text)
    layers = chosen("layer", layer, model.config.n_layer)
    heads = chosen("head", head, model.config.n_head)
    T = min(MOST_TOKENS, model.config.block_size)
    called = labels(tokenizer, ids[:T], longest=10)
    weights = [
        found[0].numpy() for found in inside.attention(model, ids[None, :T])
    ]  # (nh, T, T) of each layer
    whole = (
        len(layers) > 1 and len(heads) > 1
    )  # then a row is a layer, and else there are up to four in a row
    columns = len(heads) if whole else min(len(layers) * len(heads), 4)
    rows = -(-len(layers) * len(heads) // columns)
    side = (WIDTH - 1.9) / columns  # inches of a map
    size = min(side * 72 / len(called) * 0.85, 9)  # points of a token's letters
    with picture(path, WIDTH, rows * (side + (0.05 if whole else 0.25)) + 1.2, show) as figure:
        one = columns == rows == 1
        figure.suptitle(
            (f"Layer {layer}, head {head}: w" if one else "W")
            + "here each token (row) looks, at itself (diagonal) or back (left of it)\n"
            + quoted(called)
            + (f", the first {T} of {len(ids):,} tokens" if len(ids) > T else "")
        )
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        pairs = [(n, m) for n in layers for m in heads]
        for axes, (n, m) in zip(panels.flat, pairs, strict=False):
            image = draw_map(axes, weights[n][m], called, size)
            if not whole and not one:
                axes.set_title(f"layer {n}, head {m}", fontsize=9)
            if one and len(called) <= 16:
                write_shares(axes, weights[n][m], weights[n][m] < 0.4)
        for axes in panels.flat[len(pairs) :]:
            axes.set_visible(False)
        if whole:
            for axes, m in zip(panels[0], heads, strict=True):
                axes.set_title(f"head {m}", fontsize=9 if len(heads) < 9 else 7)
            for axes, n in zip(panels[:, 0], layers, strict=True):
                axes.set_ylabel(f"layer {n}", fontsize=9 if len(heads) < 9 else 7)
        unit = "" if size >= SMALLEST else ", by its place"
        figure.supxlabel(f"the token that is looked at{unit}", fontsize=10)
        figure.supylabel(f"the token that looks{unit}", fontsize=10)
        bar = figure.colorbar(image, ax=panels, label="share of its attention", aspect=40)
        bar.set_ticks(TICKS, labels=[f"{tick:.0%}" for tick in TICKS])
    return path


def draw_map(axes, weights, called, size):
    """One head's weights (T, T), with the tokens along both axes where they can be read, else their places."""
    later = np.triu(np.ones_like(weights, dtype=bool), 1)
    image = axes.imshow(np.ma.masked_where(later, weights), cmap="viridis", norm=NORM)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2, labelsize=7)
    if size >= SMALLEST:
        axes.set_xticks(
            range(len(called)),
            called,
            fontsize=size,
            rotation=90 if max(map(len, called)) > 1 else 0,
        )
        axes.set_yticks(range(len(called)), called, fontsize=size)
    return image


def write_shares(axes, table, dark):
    """The numbers on a picture's cells; dark (rows, columns): where they must be white."""
    for (row, column), share in np.ndenumerate(table):
        if share >= 0.005:
            colour = "white" if dark[row, column] else "black"
            axes.text(
                column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color=colour
            )


def habits(path, source, text, show=False):
    """Draw what each head looks at in the mean over a text, a row for each head. Returns the path."""
    model, tokenizer, ids = inside.read(source, text)
    if len(ids) < 2:
        raise DataError(
            "text= has one token, and it can look at nothing but itself; give a longer text"
        )
    blank = {i: tokenizer.decode_bytes([i])[:1].isspace() for i in ids.unique().tolist()}
    names, shares, even = inside.habits(model, ids, torch.tensor([blank[i] for i in ids.tolist()]))
    L, nh = model.config.n_layer, model.config.n_head
    table = torch.cat((shares.flatten(0, 1), even[None])).numpy()  # (L nh + 1, K)
    legible = L * nh <= 40
    with picture(path, WIDTH, 1.9 + (0.2 if legible else 0.08) * len(table), show) as figure:
        axes = figure.subplots()
        times = np.log2(np.maximum(table, 1e-9) / table[-1]).clip(
            -np.log2(MOST_TIMES), np.log2(MOST_TIMES)
        )
        image = axes.imshow(
            times, cmap="RdBu_r", vmin=-np.log2(MOST_TIMES), vmax=np.log2(MOST_TIMES), aspect="auto"
        )
        count = min(len(ids), inside.MOST)
        axes.set_title(
            f"What each head looks at: shares of its attention, in the mean over {count:,} tokens.\n"
            "Red: a habit, it looks there more than the last row, which looks at all tokens alike"
        )
        axes.set_xticks(
            range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor", fontsize=9
        )
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        called = [f"layer {n}, head {m}" for n in range(L) for m in range(nh)]
        places = np.arange(len(table))
        if not legible:
            called = [f"layer {n}" for n in range(L)]
            places = np.append(np.arange(L) * nh + (nh - 1) / 2, L * nh)
            axes.set_ylabel(f"heads 0 to {nh - 1} of each layer")
        axes.set_yticks(places, [*called, "all alike"], fontsize=8)
        if legible:
            write_shares(axes, table, np.abs(times) > 2.1)
        for row in range(nh, L * nh + 1, nh):
            axes.axhline(row - 0.5, color="black", lw=0.8)
        axes.axvline(sum(name not in inside.OTHERS for name in names) - 0.5, color="black", lw=0.8)
        bar = figure.colorbar(image, ax=axes, label="times what the last row has", aspect=40)
        bar.set_ticks(range(-3, 4), labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    return path
