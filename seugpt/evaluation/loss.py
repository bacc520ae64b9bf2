"""The loss of a model over batches of tokens, and the windows in which a whole text is read.

Shapes: B windows, T tokens.
"""

import itertools

import numpy as np
import torch

from model import IGNORE_INDEX


@torch.no_grad()
def summed_loss(model, batches, device, autocast):
    """(loss in nats summed over the targets, number of targets), float64 (2,).

    The model is in eval mode. `batches`: x and y, int64 arrays (B, T); targets equal to
    IGNORE_INDEX do not count. Course: pages 2 and 8.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for x, y in batches:
        x_on_device = torch.from_numpy(x).to(device)
        y_on_device = torch.from_numpy(y).to(device)
        with autocast:
            loss = model(x_on_device, y_on_device)[1]
        num_targets = int((y != IGNORE_INDEX).sum())
        if num_targets == 0:  # a batch that only keeps the other ranks company
            continue
        total += torch.tensor([loss.item(), 1.0], dtype=torch.float64) * num_targets
    return total


def sliding_windows(chunks, block_size, stride):
    """(ids, first) of windows over ids in chunks: targets ids[1:] are scored from `first` on.

    A window has at most block_size + 1 ids. Each scores the `stride` targets that the one before
    did not, except for the first window, which scores all: every token but the text's first is
    scored exactly once.
    """
    buffer = np.empty(0, dtype=np.int64)
    first = 0
    for chunk in chunks:
        buffer = np.concatenate((buffer, chunk))
        while len(buffer) > block_size:
            yield buffer[: block_size + 1], first
            buffer = buffer[stride:]
            first = block_size - stride
    if len(buffer) > first + 1:
        yield buffer, first


def batch_windows(windows, batch_size):
    """x, y, int64 (B, T), of at most batch_size windows; y is IGNORE_INDEX where not scored."""
    while rows := list(itertools.islice(windows, batch_size)):
        longest = max(len(ids) for ids, _ in rows) - 1
        x = np.zeros((len(rows), longest), dtype=np.int64)
        y = np.full((len(rows), longest), IGNORE_INDEX, dtype=np.int64)
        for row, (ids, first) in enumerate(rows):
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, first : len(ids) - 1] = ids[first + 1 :]
        yield x, y
