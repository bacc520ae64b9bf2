"""The loss over a whole text: its windows, their batches, and the sum over all targets."""

import itertools

import numpy as np
import torch

from model import IGNORE


@torch.no_grad()
def summed_loss(model, batches, device, autocast):
    """(loss in nats summed over the targets, their number), float64 (2,), of a model in eval mode.

    batches: of x and y, int64 arrays (B, T); targets that are IGNORE do not count.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for x, y in batches:
        with autocast:
            loss = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))[1]
        total += torch.tensor([loss.item(), 1.0]) * int((y != IGNORE).sum())
    return total


def windows(pieces, block_size, stride):
    """(ids, first) of windows over ids that come in pieces: of the targets ids[1:] those from `first` on are scored.

    At most block_size + 1 ids each, in the order of the text. A window scores `stride` targets that the one before has
    not, but for the first, which scores all; so each token but the text's first is scored once.
    """
    held, first = np.empty(0, dtype=np.int64), 0
    for piece in pieces:
        held = np.concatenate((held, piece))
        while len(held) > block_size:
            yield held[: block_size + 1], first
            held, first = held[stride:], block_size - stride
    if len(held) > first + 1:
        yield held, first


def batched(windows, batch_size):
    """x, y int64 (B, T) of at most batch_size windows; y is IGNORE where nothing is to be scored."""
    while rows := list(itertools.islice(windows, batch_size)):
        shape = len(rows), max(len(ids) for ids, _ in rows) - 1
        x, y = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        for row, (ids, first) in enumerate(rows):
            x[row, : len(ids) - 1], y[row, first : len(ids) - 1] = ids[:-1], ids[first + 1 :]
        yield x, y
