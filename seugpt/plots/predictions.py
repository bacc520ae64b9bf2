"""What a model expects next: its distribution, what each layer would say, and how each token of a text surprised it."""

import math

import matplotlib
import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from seugpt.data.tokenizer import characters_in
from seugpt.errors import DataError
from seugpt.generation.decoder import Sampling
from seugpt.plots import inside
from seugpt.plots.style import (
    BLUE,
    ORANGE,
    RED,
    WHITE_SPACE,
    label,
    labels,
    picture,
    quoted,
    shortened,
)

WIDTH = 8  # inches
COLUMNS, LINES = 88, 50  # letters in a line of a text, and lines in its picture
LETTER = 10  # points: the size of its letters
ADVANCE = 0.602 * LETTER / 72  # inches: their width in DejaVu Sans Mono
LINE = 0.2  # inches between its lines
FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]  # the second one has more characters
LENS_TOKENS, LENS_LETTER = 40, 8  # in a lens at most; points


def following(path, source, text, samplings, bars, samples, show=False):
    """Draw which token may follow a text, a panel for each Sampling. Returns the path.

    A bar for each of the `bars` likeliest tokens; dots say how often they were drawn. The others, which together
    would dwarf them, are told in numbers.
    """
    model, tokenizer, ids = inside.read(source, text)
    logits = inside.last_logits(model, tokenizer.vocab_size, ids)
    order, dice = logits.argsort(descending=True, stable=True), torch.Generator().manual_seed(1337)
    first, others = order[:bars], order[bars:]
    names, places, highest = labels(tokenizer, first, longest=14), np.arange(len(first)), 0
    with picture(path, WIDTH, 2.2 + 0.21 * len(names), show) as figure:
        figure.suptitle(
            f"The next token after {quoted(labels(tokenizer, ids[-60:], 60), end=True)}\n"
            f"as the model expects it (bars), and as it came up in {samples:,} draws (dots)"
        )
        panels = figure.subplots(1, len(samplings), sharex=True, sharey=True, squeeze=False)[0]
        for axes, sampling in zip(panels, samplings, strict=True):
            everything = inside.probabilities(logits, Sampling(sampling.temperature, top_k=None))
            drawn_from = inside.probabilities(logits, sampling)
            drawn = inside.draws(logits, sampling, samples, dice) / samples
            axes.barh(places, everything[first], color="0.82", height=0.75)
            axes.barh(
                places, drawn_from[first], color=[RED, *[BLUE] * (len(first) - 1)], height=0.75
            )
            axes.plot(
                drawn[first],
                places,
                "o",
                color=ORANGE,
                mec="black",
                mew=0.6,
                ms=5,
                clip_on=False,
                zorder=3,
            )
            if len(others):
                share = f" {drawn_from[others].sum():.1%}, drawn {drawn[others].sum():.1%}"
                axes.text(0, len(first), share, va="center", fontsize=9)
            highest = max(
                highest, *(float(values[first].max()) for values in (everything, drawn_from, drawn))
            )
            axes.set(title=f"temperature {sampling.temperature:g}", xlabel="probability")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.3g}%")
            axes.tick_params(axis="y", length=0)
            axes.set_axisbelow(True)
            axes.grid(axis="x")
        names += [f"{len(others):,} others"] if len(others) else []
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set(xlim=(0, 1.05 * highest), ylim=(len(names) - 0.4, -0.6), ylabel="next token")
        marks = [
            Patch(color=RED, label="the greedy choice"),
            Patch(color=BLUE, label="probability in the draw"),
        ]
        if any(sampling.top_k or sampling.top_p < 1 for sampling in samplings):
            marks.append(Patch(color="0.82", label="before top_k and top_p"))
        marks.append(
            Line2D(
                [],
                [],
                ls="",
                marker="o",
                color=ORANGE,
                mec="black",
                mew=0.6,
                ms=5,
                label="share of the draws",
            )
        )
        figure.legend(
            handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False
        )
    return path


def lens(path, source, text, show=False):
    """Draw what each layer would say after each token of a text. Returns the path."""
    model, tokenizer, ids = inside.read(source, text)
    T = min(len(ids), LENS_TOKENS, model.config.block_size)
    read = labels(tokenizer, ids[: T + 1], longest=8)
    probabilities, likeliest = inside.lens(model, tokenizer.vocab_size, ids[:T])  # (L + 1, T) each
    probabilities = probabilities.numpy()
    said = [labels(tokenizer, row, longest=8) for row in likeliest]
    letters = max(len(each) for row in (read, *said) for each in row)
    T = min(
        T, math.floor(6 / max(letters * 0.6 * LENS_LETTER / 72 + 0.05, 0.15))
    )  # as many as have room
    with picture(path, WIDTH, 2.2 + 0.24 * len(said), show) as figure:
        axes = figure.subplots()
        image = axes.imshow(probabilities[:, :T], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (row, column), probability in np.ndenumerate(probabilities[:, :T]):
            colour = "black" if probability > 0.6 else "white"
            axes.text(
                column,
                row,
                said[row][column],
                ha="center",
                va="center",
                fontsize=LENS_LETTER,
                color=colour,
            )
            if column + 1 < len(ids) and likeliest[row, column] == ids[column + 1]:
                axes.add_patch(
                    Rectangle((column - 0.45, row - 0.43), 0.9, 0.86, fill=False, ec=ORANGE, lw=1.5)
                )
        axes.set_title(
            "The logit lens: the next token that each layer would say; the last row is what the model says.\n"
            "A frame: that is what really comes"
            + (f" (the first {T} of {len(ids):,} tokens)" if len(ids) > T else "")
        )
        axes.set_yticks(
            range(len(said)), ["embedding", *(f"layer {n}" for n in range(len(said) - 1))]
        )
        axes.set_xticks(range(T), [*read[1 : T + 1], ""][:T], fontsize=LENS_LETTER)
        axes.set(xlabel="the token that really comes next", ylabel="said after")
        above = axes.secondary_xaxis("top")
        above.set_xticks(range(T), read[:T], fontsize=LENS_LETTER)
        above.set_xlabel("the token that is read")
        for each in (axes, above):
            each.tick_params(length=0)
            each.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, label="probability of what is said")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return path


def surprises(path, source, text, show=False):
    """Draw a text with each token on the colour of its surprise. Returns the path."""
    model, tokenizer, ids = inside.read(source, text)
    tokens = [tokenizer.decode_bytes([i]) for i in ids[: COLUMNS * LINES].tolist()]
    texts = [shortened(label(token).replace(WHITE_SPACE[" "], " "), COLUMNS) for token in tokens]
    places = [
        place for place in lay_out(tokens, texts) if place[0] < LINES
    ]  # (line, column) of each
    shown = len(places)
    if shown < 2:
        raise DataError(
            "text= has one token, and the first one is never predicted; give a longer text"
        )
    bits = inside.surprise(model, ids[:shown]).numpy()
    characters = sum(map(characters_in, tokens[1:shown]))
    guess, lines = math.log2(tokenizer.vocab_size), places[-1][0] + 1
    height, width = lines * LINE + 1.3, COLUMNS * ADVANCE
    with picture(path, WIDTH, height, show) as figure:
        figure.suptitle(
            "How much each token surprised the model: the darker, the less it was expected\n"
            f"{np.nanmean(bits):.2f} bits per token, {np.nansum(bits) / max(characters, 1):.2f} per character"
            + (f", over the first {shown:,} of {len(ids):,} tokens" if shown < len(ids) else ""),
            y=1 - 0.1 / height,
        )
        figure.set_layout_engine("none")  # each letter has its place
        box = ((1 - width / WIDTH) / 2, 0.7 / height, width / WIDTH, lines * LINE / height)
        axes = figure.add_axes(box, xlim=(0, COLUMNS), ylim=(lines, 0))
        axes.axis("off")
        colours = matplotlib.colormaps["YlGnBu"].with_extremes(
            bad="0.85"
        )  # grey: the first, which nobody foretold
        boxes = [
            Rectangle((column, line), len(text), 1)
            for (line, column), text in zip(places, texts, strict=False)
        ]
        drawn = axes.add_collection(
            PatchCollection(boxes, cmap=colours, norm=Normalize(0, guess), ec="white", lw=0.5)
        )
        drawn.set_array(np.ma.masked_invalid(bits))
        for (line, column), text, surprise in zip(places, texts, bits, strict=False):
            colour = "white" if surprise > 0.65 * guess else "black"
            axes.text(
                column,
                line + 0.5,
                text,
                va="center_baseline",
                fontsize=LETTER,
                family=FONTS,
                color=colour,
            )
        bar = figure.colorbar(
            drawn,
            cax=figure.add_axes((0.2, 0.5 / height, 0.6, 0.12 / height)),
            orientation="horizontal",
            extend="max",
        )
        bar.set_label(
            f"surprise in bits; {guess:.1f} is that of a guess among all {tokenizer.vocab_size:,} tokens"
        )
    return path


def lay_out(tokens, texts):
    """The (line, column) of each token: lines end where the text says so, or between words before they get too long.

    tokens: their bytes; texts: what is drawn for each.
    """
    places, line, column, start = [], 0, 0, 0
    while start < len(tokens):
        stop = start + 1
        while stop < len(tokens) and not begins_word(tokens[stop - 1], tokens[stop]):
            stop += 1
        if column + sum(map(len, texts[start:stop])) > COLUMNS and column:
            line, column = line + 1, 0
        for token, text in zip(tokens[start:stop], texts[start:stop], strict=True):
            if column + len(text) > COLUMNS and column:  # in a word of more than a line
                line, column = line + 1, 0
            places.append((line, column))
            line, column = (
                (line + token.count(b"\n"), 0) if b"\n" in token else (line, column + len(text))
            )
        start = stop
    return places


def begins_word(before, token):
    return before[-1:].isspace() or (token[:1].isspace() and not token.isspace())
