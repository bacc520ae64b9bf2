"""The diagram of lesson 3: a GPT of one block, with the shapes of transformer.py's tensors."""

from matplotlib.patches import Circle, FancyBboxPatch

from seugpt.plots.style import BLACK, BLUE, GREY, saved_figure

STREAM_X = 2.0  # inches: the middle of the residual stream
BRANCH_X = 5.7  # inches: the middle of the column of attention and MLP
ROW_HEIGHT = 0.62  # inches
INPUT = "#ddeefa"
ATTENTION = "#fdebc8"
MLP = "#cdeee3"
OUTPUT = "#f6dbe9"
NODES = (  # (step on the page, words, shape, column, colour), from top to bottom
    (1, "ids: b e b e", "(4)", STREAM_X, INPUT),
    (1, "wte[idx] + wpe", "(4, 6)", STREAM_X, INPUT),
    (2, "ln_1", "(4, 6)", BRANCH_X, ATTENTION),
    (3, "c_attn: q, k, v", "3 × (2, 4, 3)", BRANCH_X, ATTENTION),
    (4, "q kᵀ / √3", "(2, 4, 4)", BRANCH_X, ATTENTION),
    (5, "mask, softmax", "(2, 4, 4)", BRANCH_X, ATTENTION),
    (6, "weights · v", "(2, 4, 3)", BRANCH_X, ATTENTION),
    (6, "heads side by side", "(4, 6)", BRANCH_X, ATTENTION),
    (6, "c_proj", "(4, 6)", BRANCH_X, ATTENTION),
    (8, "ln_2", "(4, 6)", BRANCH_X, MLP),
    (8, "c_fc, GELU", "(4, 24)", BRANCH_X, MLP),
    (8, "c_proj", "(4, 6)", BRANCH_X, MLP),
    (9, "ln_f", "(4, 6)", STREAM_X, OUTPUT),
    (9, "logits: · wteᵀ", "(4, 8)", STREAM_X, OUTPUT),
    (9, "probabilities", "(4, 8)", STREAM_X, OUTPUT),
    (10, "cross-entropy", "()", STREAM_X, OUTPUT),
)
READING = (2, 9)  # rows that read the residual stream
ADDING = (8, 11)  # rows that add to it
PORTUGUESE = {
    ".": ",",  # 0,95
    "weights of head 1": "pesos da cabeça 1",
    "mask, softmax": "máscara, softmax",
    "weights · v": "pesos · v",
    "heads side by side": "cabeças lado a lado",
    "probabilities": "probabilidades",
    "cross-entropy": "entropia cruzada",
    "residual stream": "fluxo residual",
    "attention, 2 heads": "atenção, 2 cabeças",
    "Each part reads the residual stream and adds to it": (
        "Cada parte lê o fluxo residual e soma algo a ele"
    ),
}


def portuguese(english):
    return PORTUGUESE.get(english, english)


def row_y(row):
    """The height, in inches, of the middle of a row of the diagram."""
    gap = 0.6 * (row > READING[1] - 1) + 0.4 * (row > ADDING[1])
    return (len(NODES) + 1 - row - gap) * ROW_HEIGHT


def draw_node(axes, row, words, box_width=3.3, box_height=0.44):
    step, _, shape, x, colour = NODES[row]
    y = row_y(row)
    corner = (x - box_width / 2, y - box_height / 2)
    box = FancyBboxPatch(
        corner, box_width, box_height, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, zorder=2
    )
    axes.add_patch(box)
    axes.text(corner[0] + 0.1, y, str(step), fontsize=12, va="center", weight="bold")
    axes.text(corner[0] + 0.42, y, words, fontsize=13, va="center")
    axes.text(x + box_width / 2 - 0.1, y, shape, fontsize=12, va="center", ha="right")


def draw_arrow(axes, start, end, **style):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1.8, "fc": BLACK, **style})


def draw_frame(axes, first, last, title):
    """A dashed frame with a title around rows of the branch's column."""
    top = row_y(first) + 0.56
    size = (3.9, top - row_y(last) + 0.32)
    corner = (BRANCH_X - size[0] / 2, row_y(last) - 0.32)
    axes.add_patch(FancyBboxPatch(corner, *size, "round,pad=0", fc="none", ec=GREY, ls="--"))
    axes.text(BRANCH_X + 1.85, top - 0.07, title, fontsize=12, ha="right", va="top", style="italic")


def draw_stream(axes, words):
    """The residual stream from the embedding to ln_f, with its names x0, x1 and x2."""
    top = row_y(1) - 0.22
    draw_arrow(axes, (STREAM_X, top), (STREAM_X, row_y(12) + 0.22), lw=5, color=BLUE)
    for name, y in zip(("x0", "x1", "x2"), (top, row_y(8) - 0.25, row_y(11) - 0.2), strict=True):
        axes.text(STREAM_X - 0.2, y - 0.2, f"{name} (4, 6)", fontsize=12, ha="right", va="center")
    axes.text(STREAM_X - 0.4, row_y(5), words, fontsize=14, rotation=90, va="center", color=BLUE)
    for row in ADDING:
        axes.add_patch(Circle((STREAM_X, row_y(row)), 0.19, fc="white", ec=BLACK, lw=1.8, zorder=3))
        axes.text(STREAM_X, row_y(row), "+", fontsize=17, ha="center", va="center", zorder=4)
        step = 7 if row == ADDING[0] else 8
        axes.text(STREAM_X - 0.35, row_y(row), step, fontsize=12, va="center", weight="bold")


def draw_weights(axes, text, weights, title, decimal_point):
    """What each character of a text looks at in one head. weights (T, T)."""
    axes.imshow(weights, cmap="Blues", vmax=1.8)  # no cell too dark for black digits
    for t in range(len(text)):
        for s in range(t + 1):
            number = f"{weights[t, s]:.2f}".replace(".", decimal_point)
            axes.text(s, t, number, fontsize=10.5, ha="center", va="center")
    axes.set_xticks(range(len(text)), text, fontsize=13)
    axes.set_yticks(range(len(text)), text, fontsize=13)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=12, style="italic")


def draw(path, text, weights, words=str):
    """The diagram, and the weights (T, T) of head 1. words: str, or `portuguese` to translate."""
    height = (len(NODES) + 1.9) * ROW_HEIGHT
    with saved_figure(path, 8, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.61, 0.045, 0.225, 0.16))
        draw_weights(axes, text, weights, words("weights of head 1"), words("."))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 8), ylim=(0.2, 0.2 + height))
        axes.axis("off")
        title = words("Each part reads the residual stream and adds to it")
        axes.text(4, row_y(-0.65), title, fontsize=15, ha="center", va="center", weight="bold")
        draw_frame(axes, 2, 8, words("attention, 2 heads"))
        draw_frame(axes, 9, 11, words("MLP"))
        draw_stream(axes, words("residual stream"))
        for row, (_, english, _, x, _) in enumerate(NODES):
            draw_node(axes, row, words(english))
            if row in READING:
                draw_arrow(axes, (STREAM_X, row_y(row)), (BRANCH_X - 1.65, row_y(row)))
            elif row and row != 12:
                draw_arrow(axes, (x, row_y(row - 1) - 0.22), (x, row_y(row) + 0.22))
            if row in ADDING:
                draw_arrow(axes, (BRANCH_X - 1.65, row_y(row)), (STREAM_X + 0.19, row_y(row)))
