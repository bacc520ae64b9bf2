"""What a model predicts: the next token, each layer's guess, and the surprisal of a text."""

import math

import matplotlib
import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from seugpt.errors import DataError
from seugpt.generation.sampling import SamplingParams
from seugpt.plots.internals import (
    LENS_TOKENS,
    count_draws,
    load_model_and_text,
    logit_lens,
    mean_surprisal,
    next_token_logits,
    sampling_probs,
    surprisal,
)
from seugpt.plots.language import ENGLISH
from seugpt.plots.style import (
    BLUE,
    ORANGE,
    RED,
    quote,
    saved_figure,
    token_label,
    token_labels,
)
from seugpt.plots.token_text import WHITE_SPACE, shorten

WIDTH = 8  # inches
LENS_FONT_SIZE = 8  # points
TEXT_COLUMNS = 88  # characters in a line of a drawn text
TEXT_LINES = 50
TEXT_FONT_SIZE = 10  # points
TEXT_FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]  # the second one has more characters
CHAR_WIDTH = 0.602 * TEXT_FONT_SIZE / 72  # inches, in DejaVu Sans Mono
LINE_HEIGHT = 0.2  # inches


def plot_next_token(
    path, source, text, params_list, num_bars, num_draws, language=ENGLISH, show=False
):
    """Plot which token may follow a text, a panel for each SamplingParams. Returns the path.

    A bar for each of the `num_bars` likeliest tokens; dots show how often they were drawn. The
    rest, which together would dwarf them, are given in numbers.
    """
    model, tokenizer, ids = load_model_and_text(source, text)
    logits = next_token_logits(model, tokenizer.vocab_size, ids)
    order = logits.argsort(descending=True, stable=True)
    labels = token_labels(tokenizer, order[:num_bars], max_chars=14)
    num_others = len(order) - len(labels)
    rng = torch.Generator().manual_seed(1337)
    prompt = quote(token_labels(tokenizer, ids[-60:], 60), from_end=True)
    with saved_figure(path, WIDTH, 2.2 + 0.21 * len(labels), show, language) as figure:
        figure.suptitle(
            language(
                "The next token after {prompt}\n"
                "as the model predicts it (bars), and as drawn {count:,} times (dots)",
                prompt=prompt,
                count=num_draws,
            )
        )
        panels = figure.subplots(1, len(params_list), sharex=True, sharey=True, squeeze=False)[0]
        highest = 0
        for axes, params in zip(panels, params_list, strict=True):
            all_probs = sampling_probs(logits, SamplingParams(params.temperature, top_k=None))
            probs = sampling_probs(logits, params)
            drawn = count_draws(logits, params, num_draws, rng) / num_draws
            values = [each[order].numpy() for each in (all_probs, probs, drawn)]
            draw_bars(axes, *values, num_bars, language)
            title = language("temperature {value:g}", value=params.temperature)
            axes.set(title=title, xlabel=language("probability"))
            highest = max(highest, *(float(each[0:num_bars].max()) for each in values))
        if num_others:
            labels = [*labels, language("{count:,} others", count=num_others)]
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set(xlim=(0, 1.05 * highest), ylim=(len(labels) - 0.4, -0.6))
        panels[0].set_ylabel(language("next token"))
        handles = next_token_legend(params_list, language)
        legend = {"loc": "outside lower center", "fontsize": 9, "frameon": False}
        figure.legend(handles=handles, ncols=len(handles), **legend)
    return path


def draw_bars(axes, all_probs, probs, drawn, num_bars, language):
    """Bars for the probabilities before and after top_k and top_p, and dots for the draws.

    The values are sorted, the likeliest token first; those after `num_bars` are summed up in words.
    """
    rows = np.arange(min(num_bars, len(probs)))
    axes.barh(rows, all_probs[:num_bars], color="0.82", height=0.75)
    axes.barh(rows, probs[:num_bars], color=[RED, *[BLUE] * (len(rows) - 1)], height=0.75)
    dots = {"color": ORANGE, "mec": "black", "mew": 0.6, "ms": 5, "clip_on": False, "zorder": 3}
    axes.plot(drawn[:num_bars], rows, "o", **dots)
    if len(probs) > num_bars:
        sums = {"share": probs[num_bars:].sum(), "drawn": drawn[num_bars:].sum()}
        text = language(" {share:.1%}, drawn {drawn:.1%}", **sums)
        axes.text(0, num_bars, text, va="center", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda x, _: language.number(f"{100 * x:.3g}%"))
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="x")


def next_token_legend(params_list, language):
    handles = [
        Patch(color=RED, label=language("greedy choice")),
        Patch(color=BLUE, label=language("probability when sampling")),
    ]
    if any(params.top_k or params.top_p < 1 for params in params_list):
        handles.append(Patch(color="0.82", label=language("before top_k and top_p")))
    dot = {"marker": "o", "color": ORANGE, "mec": "black", "mew": 0.6, "ms": 5}
    handles.append(Line2D([], [], ls="", label=language("share of the draws"), **dot))
    return handles


def plot_logit_lens(path, source, text, language=ENGLISH, show=False):
    """Plot what each layer would predict after each token of a text. Returns the path."""
    model, tokenizer, ids = load_model_and_text(source, text)
    T = min(len(ids), LENS_TOKENS, model.config.block_size)
    text_labels = token_labels(tokenizer, ids[: T + 1], max_chars=8)
    probs, likeliest = logit_lens(model, tokenizer.vocab_size, ids[:T])  # (L + 1, T) each
    probs = probs.numpy()
    predicted = [token_labels(tokenizer, row, max_chars=8) for row in likeliest]
    longest = max(len(label) for row in (text_labels, *predicted) for label in row)
    cell_width = max(longest * 0.6 * LENS_FONT_SIZE / 72 + 0.05, 0.15)  # inches
    T = min(T, math.floor(6 / cell_width))
    title = language(
        "The logit lens: the next token that each layer would predict; "
        "the last row is the output.\nFramed: correct"
    )
    if len(ids) > T:
        title += language(", the first {shown:,} of {total:,} tokens", shown=T, total=len(ids))
    with saved_figure(path, WIDTH, 2.2 + 0.24 * len(predicted), show, language) as figure:
        axes = figure.subplots()
        image = axes.imshow(probs[:, :T], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (row, column), prob in np.ndenumerate(probs[:, :T]):
            colour = "black" if prob > 0.6 else "white"
            style = {"ha": "center", "va": "center", "fontsize": LENS_FONT_SIZE, "color": colour}
            axes.text(column, row, predicted[row][column], **style)
            if column + 1 < len(ids) and likeliest[row, column] == ids[column + 1]:
                frame = Rectangle((column - 0.45, row - 0.43), 0.9, 0.86, fill=False)
                axes.add_patch(frame).set(edgecolor=ORANGE, linewidth=1.5)
        axes.set_title(title)
        label_lens_axes(axes, text_labels, T, len(predicted), language)
        bar = figure.colorbar(image, ax=axes, label=language("probability of the prediction"))
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return path


def label_lens_axes(axes, text_labels, T, num_rows, language):
    """The tokens read above, those that really come next below, the layers on the left."""
    rows = [language("embedding"), *(language("layer {n}", n=n) for n in range(num_rows - 1))]
    axes.set_yticks(range(num_rows), rows)
    axes.set_xticks(range(T), [*text_labels[1 : T + 1], ""][:T], fontsize=LENS_FONT_SIZE)
    axes.set(xlabel=language("token that really comes next"), ylabel=language("predicted after"))
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(T), text_labels[:T], fontsize=LENS_FONT_SIZE)
    above.set_xlabel(language("token that is read"))
    for each in (axes, above):
        each.tick_params(length=0)
        each.spines[:].set_visible(False)


def plot_surprisal(path, source, text, language=ENGLISH, show=False):
    """Plot a text with each token on the colour of its surprisal. Returns the path."""
    model, tokenizer, ids = load_model_and_text(source, text)
    tokens = [tokenizer.decode_bytes([i]) for i in ids[: TEXT_COLUMNS * TEXT_LINES].tolist()]
    labels = [drawn_text(token) for token in tokens]
    cells = [(line, column) for line, column in lay_out(tokens, labels) if line < TEXT_LINES]
    shown = len(cells)
    if shown < 2:
        raise DataError(
            "--text has one token, and the first one is never predicted; give a longer text"
        )
    bits = surprisal(model, ids[:shown]).numpy()
    uniform_bits = math.log2(tokenizer.vocab_size)
    title = surprisal_title(bits, tokens[:shown], language)
    if shown < len(ids):
        title += language(", the first {shown:,} of {total:,} tokens", shown=shown, total=len(ids))
    num_lines = cells[-1][0] + 1
    height = num_lines * LINE_HEIGHT + 1.3
    with saved_figure(path, WIDTH, height, show, language) as figure:
        figure.suptitle(title, y=1 - 0.1 / height)
        figure.set_layout_engine("none")  # each character has its place
        width = TEXT_COLUMNS * CHAR_WIDTH / WIDTH
        box = ((1 - width) / 2, 0.7 / height, width, num_lines * LINE_HEIGHT / height)
        axes = figure.add_axes(box, xlim=(0, TEXT_COLUMNS), ylim=(num_lines, 0))
        axes.axis("off")
        background = draw_background(axes, cells, labels, bits, uniform_bits)
        for (line, column), label, token_bits in zip(cells, labels, bits, strict=False):
            colour = "white" if token_bits > 0.65 * uniform_bits else "black"
            style = {"fontsize": TEXT_FONT_SIZE, "family": TEXT_FONTS, "color": colour}
            axes.text(column, line + 0.5, label, va="center_baseline", **style)
        bar_axes = figure.add_axes((0.2, 0.5 / height, 0.6, 0.12 / height))
        bar = figure.colorbar(background, cax=bar_axes, orientation="horizontal", extend="max")
        bar.set_label(
            language(
                "surprisal in bits; a uniform guess among {count:,} tokens would be {bits:.1f}",
                count=tokenizer.vocab_size,
                bits=uniform_bits,
            )
        )
    return path


def surprisal_title(bits, tokens, language):
    per_token, per_char = mean_surprisal(bits, tokens)
    return language(
        "How much each token surprised the model: the darker, the less it was expected\n"
        "{per_token:.2f} bits per token, {per_char:.2f} per character",
        per_token=per_token,
        per_char=per_char,
    )


def drawn_text(token):
    return shorten(token_label(token).replace(WHITE_SPACE[" "], " "), TEXT_COLUMNS)


def draw_background(axes, cells, labels, bits, uniform_bits):
    """A coloured box behind each token."""
    # Grey for the first token, which is never predicted.
    colours = matplotlib.colormaps["YlGnBu"].with_extremes(bad="0.85")
    boxes = [
        Rectangle((column, line), len(label), 1)
        for (line, column), label in zip(cells, labels, strict=False)
    ]
    norm = Normalize(0, uniform_bits)
    collection = PatchCollection(boxes, cmap=colours, norm=norm, ec="white", lw=0.5)
    collection.set_array(np.ma.masked_invalid(bits))
    return axes.add_collection(collection)


def lay_out(tokens, labels):
    """The (line, column) of each token: lines end where the text's do, or between words.

    `tokens`: their bytes; `labels`: what is drawn for each.
    """
    cells = []
    line = 0
    column = 0
    for start, end in words_of(tokens):
        if column and column + sum(map(len, labels[start:end])) > TEXT_COLUMNS:
            line += 1
            column = 0
        for token, label in zip(tokens[start:end], labels[start:end], strict=True):
            if column and column + len(label) > TEXT_COLUMNS:  # inside a word longer than a line
                line += 1
                column = 0
            cells.append((line, column))
            column += len(label)
            if b"\n" in token:
                line += token.count(b"\n")
                column = 0
    return cells


def words_of(tokens):
    """(start, end) indices of the tokens of each word."""
    starts = [i for i in range(len(tokens)) if i == 0 or begins_word(tokens[i - 1], tokens[i])]
    return zip(starts, [*starts[1:], len(tokens)], strict=True)


def begins_word(previous, token):
    return previous[-1:].isspace() or (token[:1].isspace() and not token.isspace())
