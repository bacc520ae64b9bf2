"""Embeddings in two dimensions: where tokens and positions lie, and how they get there.

Shapes: n rows (tokens or positions), C channels.
"""

import functools
import io
import itertools
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seugpt.errors import ConfigError
from seugpt.files import atomic_write
from seugpt.plots.labels import spread_labels
from seugpt.plots.language import ENGLISH
from seugpt.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    TOKEN_CLASSES,
    format_ticks,
    saved_figure,
    token_class,
    token_label,
)
from seugpt.training.metrics import read_metrics
from seugpt.training.snapshots import MAX_ROWS

PCA_LABELS = (
    "first principal component ({share:.0%} of the variance)",
    "second principal component ({share:.0%} of the variance)",
)
PCA_LABELS_AT_THE_END = (
    "first principal component, of the last step",
    "second principal component, of the last step",
)
TITLES = {
    "tokens": "Tokens that are used alike end up near each other",
    "positions": "Neighbouring positions end up near each other, along a curve",
    "similarity": "Positions near each other become similar: the light band along the diagonal",
}
HIGHLIGHT_COLOURS = (RED, BLUE, GREEN, PURPLE, ORANGE, SKY)
CENTRED = {"ha": "center", "va": "center", "clip_on": True}  # a text at its point
WIDTH = 8  # inches
MIN_CLUSTER = 4  # points
MAX_LINK = 0.08  # of the plot's size
NAME_OFFSET = 0.04  # of the plot's height
MAX_TOKENS = 250  # shown on a plot: more cannot be read
MAX_POSITIONS = 128  # with a number on a plot
FRAME_MS = 120  # duration of a frame
LAST_FRAME_MS = 3000


def principal_components(table):
    """The two directions (C, 2) in which rows (n, C) vary most.

    Principal component analysis (Pearson, 1901), by the singular value decomposition of the centred
    rows. The largest coordinate of each direction is positive.
    """
    centred = table - table.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2].T  # (C, 2)
    missing = 2 - directions.shape[1]
    if missing:  # a model of one channel, or of one row
        directions = np.pad(directions, ((0, 0), (0, missing)))
    largest = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[largest, [0, 1]])
    return directions * np.where(signs == 0, 1, signs)


def tsne(table, init=None):
    """t-SNE (van der Maaten and Hinton, 2008) of rows (n, C) -> (n, 2).

    It starts from `init` (n, 2), an earlier map, or from PCA. Raises ConfigError if scikit-learn is
    missing or there are too few rows.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError(
            "method=tsne needs the package scikit-learn: python -m pip install "
            "scikit-learn==1.9.1, or --method=pca"
        ) from None
    if len(table) < 4:
        raise ConfigError(
            f"method=tsne needs at least 4 points, and there are {len(table)}; use --method=pca"
        )
    continues = init is not None
    if not continues:
        init = (table - table.mean(axis=0)) @ principal_components(table)
        init *= 1e-4 / max(init[:, 0].std(), 1e-12)  # the scale of scikit-learn's own PCA start
    # From an earlier map points move on without the first phase, which pulls them together.
    model = TSNE(
        perplexity=min(20, (len(table) - 1) / 3),
        init=init.astype(np.float32),
        early_exaggeration=1 if continues else 12,
        max_iter=300 if continues else 1000,
        random_state=0,
    )
    return model.fit_transform(table)


def project(table, method):
    """Rows (n, C) in two dimensions (n, 2), and the share of the variance that each shows.

    t-SNE's dimensions show no share of it: (None, None).
    """
    if method == "tsne":
        return tsne(table), (None, None)
    centred = table - table.mean(axis=0)
    points = centred @ principal_components(table)
    return points, points.var(axis=0) / max(centred.var(axis=0).sum(), 1e-12)


def choose_tokens(tokenizer):
    """(bytes of tokens, their ids): the first ones that can be drawn.

    With BPE the bytes come first, even those that no text contains: of them, only letters, digits
    and white space are taken. Then come the most frequent tokens.
    """
    is_char = hasattr(tokenizer, "chars")
    tokens = []
    ids = []
    for i in range(min(tokenizer.vocab_size, MAX_ROWS)):
        token = tokenizer.decode_bytes([i])
        has_glyphs = not token_label(token).startswith("U+")
        drawable = has_glyphs and token_class(token) != "parts of characters"
        if drawable and (is_char or len(token) > 1 or token.isalnum() or token in b" \n"):
            tokens.append(token)
            ids.append(i)
    return tokens[:MAX_TOKENS], ids[:MAX_TOKENS]


def highlight_groups(texts, tokens, of):
    """[(name, colour, rows)] of --highlight: characters, as in aeiou, or a range, as in 12-14.

    Raises ConfigError if none of them is on the plot.
    """
    row_of = {token_label(token): row for row, token in enumerate(tokens)}
    groups = []
    for text, colour in zip(texts, itertools.cycle(HIGHLIGHT_COLOURS), strict=False):
        labels = position_range(text, len(tokens)) if of == "positions" else character_range(text)
        rows = [row_of[label] for label in labels if label in row_of]
        if not rows:
            problem = "no token on the plot has this text; give characters, as in aeiou or 0-9"
            if of == "positions":
                problem = f"positions are 0 to {len(tokens) - 1}; give a range, as in 12-14"
            raise ConfigError(f"highlight={text}: {problem}")
        groups.append((text, colour, rows))
    return groups


def position_range(text, num_positions):
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal()):
        return []
    return [str(n) for n in range(int(first), min(int(last) + 1, num_positions))]


def character_range(text):
    first, dash, last = text.partition("-")
    if dash and len(first) == len(last) == 1:
        return [chr(n) for n in range(ord(first), ord(last) + 1)]
    return list(text)


def draw_tokens(axes, points, tokens, colours=None):
    """Each token's text at its point, in the colour of its class or the given one. Returns them."""
    classes = [TOKEN_CLASSES[token_class(token)] for token in tokens]
    size = 10 if len(tokens) <= 150 else 7
    texts = []
    for (x, y), token, colour in zip(points, tokens, colours or classes, strict=True):
        style = {"color": colour, "size": size, "weight": "bold", **CENTRED}
        if colours:
            style |= emphasis(colour)
        texts.append(axes.text(x, y, token_label(token), **style))
    return texts


def draw_positions(axes, points, colours=None):
    """Each position's number at its point, lighter for later ones, and a line through them.

    Returns the numbers' texts.
    """
    axes.plot(*points.T, color="0.85", lw=1, zorder=0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(points)))
    texts = []
    for n in range(0, len(points), -(-len(points) // MAX_POSITIONS)):
        style = emphasis(colours[n]) if colours else {"size": 9}
        colour = colours[n] if colours else shades[n]
        texts.append(axes.text(*points[n], n, color=colour, **CENTRED, **style))
    return texts


def emphasis(colour):
    """The style of a text that is highlighted, or grey because others are."""
    if colour == GREY:
        return {"size": 9, "weight": "normal"}
    return {"size": 13, "weight": "bold", "zorder": 4}


def fit_axes(axes, points, method):
    """Limits slightly beyond all points (n, 2); t-SNE's axes have no unit, and no numbers."""
    low = points.min(axis=0)
    high = points.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    if method == "tsne":
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="0.8")
    axes.grid()


def clusters(points, labels):
    """[(label, rows)] of MIN_CLUSTER or more points (n, 2) of one label that lie together.

    Points are linked that are nearer than MAX_LINK of the plot's width and height. Where a third of
    the points nearby have other labels, no label is the cluster's.
    """
    scaled = points / np.maximum(np.ptp(points, axis=0), 1e-12)
    near = np.linalg.norm(scaled[:, None] - scaled, axis=-1) < MAX_LINK
    linked = near & (np.array(labels)[:, None] == np.array(labels))
    for _ in range(len(points).bit_length()):  # paths of 2 links, then of 4, 8, ...
        linked = linked @ linked
    found = []
    for rows in sorted({tuple(np.flatnonzero(row).tolist()) for row in linked}):
        num_near = near[list(rows)].any(axis=0).sum()
        if len(rows) >= MIN_CLUSTER and len(rows) > 2 / 3 * num_near:
            found.append((labels[rows[0]], list(rows)))
    return found


def draw_cluster_names(axes, points, tokens, language):
    """The class of each cluster of tokens, above it. Returns the texts."""
    height = np.ptp(points[:, 1])
    texts = []
    for name, rows in clusters(points, [token_class(token) for token in tokens]):
        x = points[rows, 0].mean()
        y = points[rows, 1].max() + NAME_OFFSET * height
        style = {"color": TOKEN_CLASSES[name], "style": "italic", **CENTRED}
        texts.append(axes.text(x, y, language(name), **style))
    return texts


def draw_legend(owner, entries, **where):
    """`owner`: a figure, or axes; `entries`: {label: colour}."""
    handles = [
        Line2D([], [], marker="s", ls="", color=colour, label=label)
        for label, colour in entries.items()
    ]
    owner.legend(handles=handles, handletextpad=0.2, **where)


def classes_of(tokens, language):
    """{class: colour} of those classes that occur."""
    present = {token_class(token) for token in tokens}
    return {language(name): colour for name, colour in TOKEN_CLASSES.items() if name in present}


def plot_embeddings(path, tables, titles, tokens, of, method, language=ENGLISH, show=False):
    """Plot one or two embedding tables (n, C) side by side. Returns the path.

    `of`: tokens, positions, or similarity, the cosine similarity of all pairs of positions;
    `tokens`: their bytes.
    """
    if of == "similarity":
        return plot_similarity(path, tables, titles, language, show)
    with saved_figure(path, WIDTH, 5.6, show, language) as figure:
        figure.suptitle(language(TITLES[of]))
        ratios = [1, 1.7][-len(tables) :]  # what training made of them has more room
        panels = figure.subplots(1, len(tables), squeeze=False, width_ratios=ratios)[0]
        labels = {}
        for table, title, axes in zip(tables, titles, panels, strict=True):
            axes.set_title(title)
            points, shares = project(table, method)
            if of == "tokens":
                texts = draw_tokens(axes, points, tokens)
                if axes is panels[-1]:
                    texts += draw_cluster_names(axes, points, tokens, language)
            else:
                texts = draw_positions(axes, points)
            fit_axes(axes, points, method)
            if method == "pca":
                label_components(axes, shares, language)
            labels[axes] = texts
        if of == "tokens":
            entries = classes_of(tokens, language)
            where = {"loc": "outside lower center", "ncols": 4, "frameon": False}
            draw_legend(figure, entries, **where)
        for axes, texts in labels.items():
            spread_labels(axes, texts)
    return path


def label_components(axes, shares, language):
    x_label, y_label = (
        language(label, share=share) for label, share in zip(PCA_LABELS, shares, strict=True)
    )
    axes.set(xlabel=x_label, ylabel=y_label)


def plot_similarity(path, tables, titles, language, show):
    with saved_figure(path, WIDTH, 4, show, language) as figure:
        figure.suptitle(language(TITLES["similarity"]))
        panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for table, title, axes in zip(tables, titles, panels, strict=True):
            norms = np.linalg.norm(table, axis=1, keepdims=True)
            unit = table / np.maximum(norms, 1e-12)
            image = axes.imshow(unit @ unit.T, vmin=-1, vmax=1, cmap="cividis")
            axes.set(title=title, xlabel=language("position"))
        panels[0].set_ylabel(language("position"))
        figure.colorbar(image, ax=panels, label=language("cosine similarity"), shrink=0.8)
    return path


def align(points, target):
    """Points (n, 2), centred and rotated or mirrored to lie near `target`: Procrustes, unscaled."""
    centred = points - points.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ target)
    return centred @ (left @ right)


def trajectories(tables, method):
    """Where the rows of each table (n, C) lie, [(n, 2)], so that they move instead of jumping.

    With PCA all are seen along the directions of the last table; t-SNE starts each map from the one
    before.
    """
    if method == "pca":
        directions = principal_components(tables[-1])
        centre = tables[-1].mean(axis=0)
        return [(table - centre) @ directions for table in tables]
    points = [align(tsne(tables[0]), np.zeros((len(tables[0]), 2)))]
    for table in tables[1:]:
        points.append(align(tsne(table, points[-1]), points[-1]))
    return points


def frame_captions(folder, steps, language=ENGLISH):
    """A caption for each step: its number, and the last evaluation up to there."""
    lines, _ = read_metrics(Path(folder) / "metrics.jsonl")
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    captions = []
    for step in steps:
        caption = language("step {step:>7,}", step=step)
        earlier = [evaluated for evaluated in losses if evaluated <= step]
        if earlier:
            last = max(earlier)
            caption += "   " + language(
                "last evaluation: {loss:.3f} (step {step:,})", loss=losses[last], step=last
            )
        captions.append(caption)
    return captions


def animate_embeddings(path, tables, captions, tokens, of, groups, method, language=ENGLISH):
    """Draw a frame for each table into a GIF. Returns the path.

    `groups`: [(name, colour, rows)] to highlight, the rest in grey; without any, colours as in
    plot_embeddings.
    """
    points = trajectories(tables, method)
    colours = highlight_colours(groups, len(tables[0]))
    draw = draw_positions
    if of == "tokens":
        draw = functools.partial(draw_tokens, tokens=tokens)
    legend = {name: colour for name, colour, _ in groups}
    if of == "tokens" and not groups:
        legend = classes_of(tokens, language)
    frames = []
    shifts = 0
    with matplotlib.rc_context(STYLE):
        for frame_points, caption in zip(points, captions, strict=True):
            figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
            figure.suptitle(language(TITLES[of]))
            axes = figure.subplots()
            texts = draw(axes, frame_points, colours=colours)
            fit_axes(axes, np.concatenate(points), method)
            axes.set_title(caption, loc="left", family="monospace")
            if method == "pca":
                x_label, y_label = map(language, PCA_LABELS_AT_THE_END)
                axes.set(xlabel=x_label, ylabel=y_label)
            if legend:
                draw_legend(axes, legend, loc="upper right", framealpha=0.8)
            format_ticks(figure, language)
            highlighted = [text for text in texts if groups and text.get_color() != GREY]
            shifts = spread_labels(axes, highlighted, 0.8 * shifts)
            frames.append(rasterize(figure))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
    return path


def highlight_colours(groups, num_rows):
    """A colour for each row, grey outside the groups; None without groups."""
    if not groups:
        return None
    colours = [GREY] * num_rows
    for _, colour, rows in groups:
        for row in rows:
            colours[row] = colour
    return colours


def rasterize(figure):
    from PIL import Image  # a dependency of matplotlib

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
