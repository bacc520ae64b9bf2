"""Bits per byte of texts longer than a model's block_size, as generation reads them: the table in architecture.md.

    python docs/context_length.py out-gpt2-1 out-rope-1

Each row of the validation split is 1, 2 or 4 times block_size tokens long and read token by token through the cache;
the loss is of the last block_size tokens, so that every column predicts the same kind of place.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from seugpt.checkpoint import pretrained as weights
from seugpt.data.dataset import Dataset, dataset_path
from seugpt.generation.decoder import Decoder


@torch.no_grad()
def bits_per_byte(model, rows, bytes_per_token):
    """rows (n, multiple * T + 1) tokens, read with the window that generate() would have; mean over the last T."""
    T, length = model.config.block_size, rows.shape[1]
    decoder = Decoder(model, len(rows), T)
    logits, held, total = decoder.prefill(list(rows[:, :1])), 1, 0.0
    for t in range(1, length):  # logits predict token t from the `held` tokens before it
        if t >= length - T:
            total += F.cross_entropy(logits[:, -1], rows[:, t]).item() / T
        if model.config.position == "learned" and held == T:
            held = T // 2
            logits = decoder.prefill(list(rows[:, t + 1 - held : t + 1]))
        else:
            held += 1
            logits = decoder.step(rows[:, t : t + 1])
    return total / math.log(2) / bytes_per_token


@torch.no_grad()
def whole_bits_per_byte(model, rows, bytes_per_token):
    """The same with all of a row as one context: what a model with rotary positions makes of unseen distances."""
    T = model.config.block_size
    longer = weights.GPT(replace(model.config, block_size=rows.shape[1] - 1)).eval()
    longer.load_state_dict(model.state_dict())
    losses = [
        F.cross_entropy(
            longer(part[:, :-1], part[:, 1:])[0][:, -T:].flatten(0, 1), part[:, -T:].flatten()
        )
        for part in rows.split(64)
    ]
    sizes = [len(part) for part in rows.split(64)]
    mean = sum(loss.item() * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    return mean / math.log(2) / bytes_per_token


for folder in sys.argv[1:]:
    content = weights.load(folder)
    model = weights.build(content)[0].eval()
    dataset = Dataset(dataset_path(content["train_config"]["dataset"]))
    ids = torch.from_numpy(dataset.ids["val"][:].astype("int64"))
    T, bytes_per_token = model.config.block_size, dataset.bytes["val"] / dataset.tokens["val"]
    for multiple in (1, 2, 4):
        n = (len(ids) - 1) // (4 * T)  # the same ends of rows in each column
        ends = 4 * T * torch.arange(1, n + 1)
        rows = ids[ends[:, None] + torch.arange(-multiple * T, 1)]  # (n, multiple * T + 1)
        line = f"{folder}: {multiple} x {T} tokens: {bits_per_byte(model, rows, bytes_per_token):.3f} as generated"
        if model.config.position == "rope":
            line += f", {whole_bits_per_byte(model, rows, bytes_per_token):.3f} in one context"
        print(line, flush=True)
