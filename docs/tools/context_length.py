"""Bits per byte of texts longer than a model's block_size: the table in docs/architecture.md.

    python docs/tools/context_length.py out-gpt2-1 out-rope-1

Each row of the validation split is 1, 2 or 4 times block_size tokens long, and read token by token
through the KV cache as in generation. The loss is of the last block_size tokens, so that every
column predicts the same places.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model import GPT
from seugpt.checkpoint.pretrained import build_from_checkpoint, load_pretrained
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.generation.decoder import Decoder

MULTIPLES = (1, 2, 4)  # of block_size
CHUNK_ROWS = 64


@torch.no_grad()
def loss_as_generated(model, rows):
    """The mean loss of the last T tokens of rows (n, multiple * T + 1), with the window of
    generation.
    """
    T = model.config.block_size
    length = rows.shape[1]
    decoder = Decoder(model, len(rows), T)
    logits = decoder.prefill(list(rows[:, :1]))
    window = 1  # tokens that the logits are based on
    total = 0.0
    for t in range(1, length):
        if t >= length - T:
            total += F.cross_entropy(logits[:, -1], rows[:, t]).item() / T
        if model.config.position == "learned" and window == T:
            window = T // 2
            logits = decoder.prefill(list(rows[:, t + 1 - window : t + 1]))
        else:
            window += 1
            logits = decoder.step(rows[:, t : t + 1])
    return total


@torch.no_grad()
def loss_in_one_context(model, rows):
    """The same with a whole row as context: what RoPE makes of distances never seen in training."""
    T = model.config.block_size
    longer = GPT(replace(model.config, block_size=rows.shape[1] - 1)).eval()
    longer.load_state_dict(model.state_dict())
    total = 0.0
    for part in rows.split(CHUNK_ROWS):
        logits, _ = longer(part[:, :-1], part[:, 1:])
        loss = F.cross_entropy(logits[:, -T:].flatten(0, 1), part[:, -T:].flatten())
        total += loss.item() * len(part)
    return total / len(rows)


def main(folders):
    for folder in folders:
        ckpt = load_pretrained(folder)
        model, _ = build_from_checkpoint(ckpt)
        model.eval()
        dataset = Dataset(dataset_path(ckpt["train_config"]["dataset"]))
        ids = torch.from_numpy(dataset.ids["val"][:].astype("int64"))
        bits_per_nat = dataset.tokens["val"] / dataset.bytes["val"] / math.log(2)  # per byte
        T = model.config.block_size
        longest = max(MULTIPLES) * T
        ends = longest * torch.arange(1, (len(ids) - 1) // longest + 1)  # the same in each column
        for multiple in MULTIPLES:
            rows = ids[ends[:, None] + torch.arange(-multiple * T, 1)]  # (n, multiple * T + 1)
            bits = bits_per_nat * loss_as_generated(model, rows)
            line = f"{folder}: {multiple} x {T} tokens: {bits:.3f} as generated"
            if model.config.position == "rope":
                bits = bits_per_nat * loss_in_one_context(model, rows)
                line += f", {bits:.3f} in one context"
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
