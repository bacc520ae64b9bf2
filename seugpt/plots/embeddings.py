"""Embeddings in two dimensions: where tokens and positions lie before training and after, and how they get there."""

import functools
import io
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from seugpt.errors import ConfigError
from seugpt.files import replacing
from seugpt.plots.style import (
    BLUE,
    GREEN,
    GREY,
    KINDS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    kind_of,
    label,
    picture,
)
from seugpt.training.layer_stats import ROWS

AXES = {
    "pca": ("first principal component", "second principal component"),
    "tsne": ("t-SNE, first dimension", "t-SNE, second dimension"),
}
SHOWN = 250  # tokens on a picture, at most: more cannot be read
FRAME_MS, LAST_MS = 120, 3000  # how long an animation shows each frame


def components(table):
    """The two directions in which rows (n, C) differ most, (C, 2); the larger coordinate of each is positive.

    Principal component analysis (Pearson, 1901), by the singular values of the centred rows.
    """
    directions = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)[2][:2].T  # (C, 2)
    if directions.shape[1] < 2:  # a model of one channel, or of one row
        directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    largest = np.abs(directions).argmax(axis=0)
    return directions * np.sign(directions[largest, [0, 1]] + (directions[largest, [0, 1]] == 0))


def tsne(table, start=None):
    """t-SNE's map of rows (n, C), (n, 2) (van der Maaten and Hinton, 2008), from PCA's or from an earlier one on.

    Raises ConfigError where the package scikit-learn is missing, or there are too few rows.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError(
            "method=tsne needs the package scikit-learn: python -m pip install scikit-learn==1.9.1, or --method=pca"
        ) from None
    if len(table) < 4:
        raise ConfigError(
            f"method=tsne needs at least 4 points, and there are {len(table)}; use --method=pca"
        )
    first = start is None
    if first:
        start = (table - table.mean(axis=0)) @ components(table)
        start = start / max(start[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its own start
    # From an earlier map on, points move without the first phase, which would draw all of them together again.
    map = TSNE(
        perplexity=min(20, (len(table) - 1) / 3),
        init=start.astype(np.float32),
        early_exaggeration=12 if first else 1,
        max_iter=1000 if first else 300,
        random_state=0,
    )
    return map.fit_transform(table)


def project(table, method):
    """Rows (n, C) in two dimensions (n, 2), and the names of the axes."""
    if method == "tsne":
        return tsne(table), AXES["tsne"]
    centred = table - table.mean(axis=0)
    points = centred @ components(table)
    shares = points.var(axis=0) / max(centred.var(axis=0).sum(), 1e-12)
    return points, [
        f"{name} ({share:.0%} of the variance)"
        for name, share in zip(AXES["pca"], shares, strict=True)
    ]


def token_rows(tokenizer):
    """(bytes of tokens, their ids): the first ones that can be written.

    BPE's first are the bytes, also those that no text ever had: of them, only letters, digits and white space. Then
    come the most frequent pieces.
    """
    tokens = {n: tokenizer.decode_bytes([n]) for n in range(min(tokenizer.vocab_size, ROWS))}
    characters = hasattr(tokenizer, "chars")
    rows = [
        n
        for n, token in tokens.items()
        if not {"U+", "part"} & {label(token)[:2], kind_of(token)[:4]}
        and (characters or len(token) > 1 or token.isalnum() or token in b" \n")
    ][:SHOWN]
    return [tokens[n] for n in rows], rows


def highlighted(texts, tokens, of):
    """[(name, colour, rows)] of what was asked for: characters, as in aeiou; or a range, as in 0-9 or 12-14.

    Raises ConfigError where there is none of them.
    """
    places, groups = {label(token): row for row, token in enumerate(tokens)}, []
    for text, colour in zip(
        texts, itertools.cycle((RED, BLUE, GREEN, PURPLE, ORANGE, SKY)), strict=False
    ):
        first, dash, last = text.partition("-")
        if of == "positions":
            ends = [n for n in (first, last or first) if n.isdecimal()]
            wanted = (
                [str(n) for n in range(int(ends[0]), min(int(ends[1]), len(tokens)) + 1)]
                if len(ends) == 2
                else []
            )
        elif dash and len(first) == len(last) == 1:
            wanted = [chr(n) for n in range(ord(first), ord(last) + 1)]
        else:
            wanted = list(text)
        rows = [places[name] for name in wanted if name in places]
        if not rows:
            there = (
                f"positions are 0 to {len(tokens) - 1}"
                if of == "positions"
                else "it names no token on the picture"
            )
            raise ConfigError(
                f"highlight={text}: {there}; write it as in {'12-14' if of == 'positions' else 'aeiou'}"
            )
        groups.append((text, colour, rows))
    return groups


def draw_tokens(axes, points, tokens, colours=None):
    """Each token's text at its place, in the colour of its kind or in the one given."""
    colours = colours or [KINDS[kind_of(token)] for token in tokens]
    size = 10 if len(tokens) <= 150 else 7
    for (x, y), token, colour in zip(points, tokens, colours, strict=True):
        style = {"weight": "bold", "zorder": 3} if colour != GREY else {}
        axes.text(
            x,
            y,
            label(token),
            color=colour,
            size=size,
            ha="center",
            va="center",
            clip_on=True,
            **style,
        )


def draw_positions(axes, points, colours=None):
    """Each position's number at its place, and a line from each to the next; later ones are lighter."""
    axes.plot(*points.T, color="0.85", lw=1, zorder=0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(points)))
    step = -(-len(points) // 128)  # of a long context not each number
    for n in range(0, len(points), step):
        axes.text(*points[n], n, color=shades[n] if colours is None else colours[n], size=8, ha="center", va="center",
                  weight="bold" if colours is not None and colours[n] != GREY else "normal", clip_on=True)  # fmt: skip


def fit_axes(axes, points):
    """Limits a little beyond all the points, (n, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.06 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.tick_params(labelsize=8)
    axes.grid()


def kinds_legend(axes, tokens, place="best"):
    kinds = {kind_of(token) for token in tokens}
    handles = [
        Line2D([], [], marker="s", ls="", color=c, label=kind)
        for kind, c in KINDS.items()
        if kind in kinds
    ]
    axes.legend(handles=handles, fontsize=8, loc=place, framealpha=0.8)


def embeddings(path, tables, titles, tokens, of, method, show=False):
    """Draw one or two tables of embeddings, (n, C), side by side. Returns the path.

    of: tokens, positions, or similarity, the cosines between the vectors of any two positions; tokens: their bytes.
    """
    heads = {
        "tokens": "Tokens that are used alike end up near each other",
        "positions": "Neighbouring positions end up near each other, along a curve",
        "similarity": "Positions that are near in the text become similar: the light band along the diagonal",
    }
    with picture(path, 5.2 * len(tables) + 0.6, 4.6 if of == "similarity" else 5.4, show) as figure:
        figure.suptitle(heads[of])
        for table, title, axes in zip(
            tables, titles, figure.subplots(1, len(tables), squeeze=False)[0], strict=True
        ):
            axes.set_title(title)
            if of == "similarity":
                draw_similarity(figure, axes, table)
                continue
            points, names = project(table, method)
            draw_tokens(axes, points, tokens) if of == "tokens" else draw_positions(axes, points)
            fit_axes(axes, points)
            axes.set(xlabel=names[0], ylabel=names[1])
        if of == "tokens":
            kinds_legend(axes, tokens)
    return path


def draw_similarity(figure, axes, table):
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    image = axes.imshow(unit @ unit.T, vmin=-1, vmax=1, cmap="cividis")
    axes.set(xlabel="position", ylabel="position")
    figure.colorbar(image, ax=axes, label="cosine of the angle between two vectors", shrink=0.8)


def align(points, to):
    """Points (n, 2) turned or mirrored to lie as near as they can to others, (n, 2), about 0: Procrustes, unscaled."""
    left, _, right = np.linalg.svd((points - points.mean(axis=0)).T @ to)
    return (points - points.mean(axis=0)) @ (left @ right)


def paths(tables, method):
    """Where each row of each of the tables (n, C) lies, [(n, 2)], so that it moves and does not jump.

    With PCA all are seen from the directions of the last one; t-SNE begins each map from the one before.
    """
    if method == "pca":
        directions, centre = components(tables[-1]), tables[-1].mean(axis=0)
        return [(table - centre) @ directions for table in tables]
    points = [np.zeros((len(tables[0]), 2))]
    for number, table in enumerate(tables):
        points.append(align(tsne(table, points[-1] if number else None), points[-1]))
    return points[1:]


def animate(path, tables, captions, tokens, of, groups, method):
    """Draw one frame for each table as a GIF. Returns the path.

    groups: [(name, colour, rows)] that are highlighted, the others are grey; none: as in `embeddings`.
    """
    from PIL import Image  # matplotlib brings it

    points, frames = paths(tables, method), []
    colours = None
    if groups:
        colours = [GREY] * len(tables[0])
        for _, colour, rows in groups:
            for row in rows:
                colours[row] = colour
    draw = functools.partial(draw_tokens, tokens=tokens) if of == "tokens" else draw_positions
    with matplotlib.rc_context(STYLE):
        for now, caption in zip(points, captions, strict=True):
            figure = Figure(figsize=(6.4, 5.6), layout="constrained")
            axes = figure.subplots()
            draw(axes, now, colours=colours)
            fit_axes(axes, np.concatenate(points))
            axes.set_title(caption, loc="left", family="monospace")
            axes.set(
                xlabel=AXES[method][0] + " of the end" * (method == "pca"), ylabel=AXES[method][1]
            )
            if groups:
                handles = [
                    Line2D([], [], marker="s", ls="", color=colour, label=name)
                    for name, colour, _ in groups
                ]
                axes.legend(handles=handles, fontsize=8, loc="upper right")
            elif of == "tokens":
                kinds_legend(axes, tokens, "upper right")
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=90)
            frames.append(Image.open(image).convert("P", palette=Image.Palette.ADAPTIVE, colors=32))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    with replacing(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
    return path
