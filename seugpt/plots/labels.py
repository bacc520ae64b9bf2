"""Texts at the points of a plot, moved apart where they would cover each other."""

import numpy as np

ROUNDS = 150  # at most: a crowd of labels grows apart step by step
GAP = 1  # pixels that two labels are moved apart beyond what they overlap
LINE_HEIGHT = 0.85  # of a text's box, which has room for accents and descenders


def separate(centres, sizes, limits):
    """The centres (n, 2) of boxes with `sizes` (n, 2), moved until no two overlap, if they can.

    Two that overlap each move half the way, across where the overlap is smaller. `limits`: the
    lower left and the upper right corner of the plot, (2, 2).
    """
    centres = centres.copy()
    needed = (sizes[:, None] + sizes) / 2  # (n, n, 2)
    order = np.sign(np.arange(len(centres)) - np.arange(len(centres))[:, None])  # (n, n)
    for _ in range(ROUNDS):
        offsets = centres[:, None] - centres  # (n, n, 2)
        overlaps = needed - np.abs(offsets)
        overlapping = (overlaps > 0.1).all(axis=-1) & (order != 0)
        if not overlapping.any():
            break
        directions = np.where(offsets == 0, order[..., None], np.sign(offsets))
        narrower = overlaps == overlaps.min(axis=-1, keepdims=True)
        moves = directions * (overlaps + GAP) * narrower * overlapping[..., None]
        centres += moves.sum(axis=1) / 2
        centres = np.clip(centres, limits[0] + sizes / 2, limits[1] - sizes / 2)
    return centres


def spread_labels(axes, texts, shifts=0):
    """Move n texts, each centred at its point, to where they can be read.

    A thin line leads from a text that is not at its point to a dot there. `shifts` (n, 2): by how
    many pixels each was moved in the frame before, so that it need not jump; returns those of now.
    """
    if not texts:
        return shifts
    axes.figure.draw_without_rendering()  # the layout, which says where the points lie
    points = np.array([text.get_position() for text in texts])
    boxes = [text.get_window_extent() for text in texts]
    sizes = np.array([[box.width, LINE_HEIGHT * box.height] for box in boxes])
    at = axes.transData.transform(points)
    centres = separate(at + shifts, sizes, axes.bbox.get_points())
    positions = axes.transData.inverted().transform(centres)
    is_moved = (np.abs(centres - at) > 0.6 * sizes).any(axis=1)
    for text, point, position, moved in zip(texts, points, positions, is_moved, strict=True):
        text.set_position(position)
        text.set_in_layout(False)
        if moved:
            style = {"color": text.get_color(), "lw": 0.4, "ms": 3, "alpha": 0.6, "zorder": 1}
            axes.plot(*zip(point, position, strict=True), ".-", markevery=[0], **style)
    return centres - at
