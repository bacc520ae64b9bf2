"""What the attention heads of page 2's model look at, and what each is worth (page 6).

    python docs/tools/heads.py

data/machado_char must be prepared: the losses are over its validation text.
"""

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.data.dataset import Dataset  # noqa: E402
from seugpt.evaluation.loss import summed_loss  # noqa: E402
from seugpt.plots.attention_patterns import attention_patterns, distance_ranges  # noqa: E402
from seugpt.plots.internals import attention_weights, load_model_and_text  # noqa: E402
from seugpt.training.layer_stats import forward_pre_hooks  # noqa: E402

RUN = str(ROOT / "docs" / "data" / "out-gptlab-10000")
TEXT = f"FILE:{ROOT / 'docs' / 'data' / 'janela.txt'}"
NUM_BATCHES = 50


def print_patterns(model, tokenizer, ids):
    """The table of heads.png, and the sums of its distance columns."""
    is_space = torch.tensor([tokenizer.decode_bytes([i]).isspace() for i in ids.tolist()])
    names, shares, uniform = attention_patterns(model, ids, is_space)
    num_distances = len(distance_ranges(model.config.block_size))
    print("columns: " + ", ".join(names) + "; last, the sum of the distances\n")
    rows = {f"layer {n}, head {m}": shares[n, m] for n, m in all_heads(model)}
    for name, row in [*rows.items(), ("uniform", uniform)]:
        total = row[:num_distances].sum()
        print(f"{name:17}" + "".join(f"{x:5.0%}" for x in row.tolist()) + f"{total:7.0%}")


def print_last_position(model, ids):
    """The same, from the last position of each window alone: there every distance exists."""
    T = model.config.block_size
    windows = ids[: len(ids) // T * T].view(-1, T)
    last = attention_weights(model, windows, lambda weights: weights[:, :, -1].mean(0))  # (nh, T)
    print(f"\n{windows.numel():,} tokens are {len(windows)} windows of {T}; of the {T} positions")
    print(", ".join(f"{T - d} have a token {d} back" for d in (1, 5, 9, 17, 31)))
    print("\ndistances as above, seen from position 31 alone")
    rows = {f"layer {n}, head {m}": last[n][m] for n, m in ((0, 0), (0, 2), (1, 3))}
    for name, row in [*rows.items(), ("uniform", torch.full((T,), 1 / T))]:
        row = row.flip(0)  # from distance 0
        sums = [row[first : end + 1].sum() for first, end in distance_ranges(T)]
        print(f"{name:17}" + "".join(f"{x:5.0%}" for x in sums) + f"{row.sum():7.0%}")


def all_heads(model):
    return [(n, m) for n in range(model.config.n_layer) for m in range(model.config.n_head)]


def mean_loss(model, batches):
    total, count = summed_loss(model, batches, torch.device("cpu"), nullcontext()).tolist()
    return total / count


def loss_without(model, batches, n, m, uniform):
    """The loss without head m of layer n; or, if uniform, with a head that weighs all tokens alike.

    The head's part of what c_proj reads becomes 0; or the mean of its values up to each token.
    """
    attn = model.h[n].attn
    hs = attn.head_size
    part = slice(m * hs, (m + 1) * hs)
    values = []

    def record_values(attn, inputs):
        x, cos_sin, _ = inputs
        v = attn.qkv(x, cos_sin)[2][:, m]  # (B, T, hs)
        counts = torch.arange(1, v.shape[1] + 1)[:, None]
        values[:] = [v.cumsum(dim=1) / counts]

    def replace_part(c_proj, inputs):
        y = inputs[0].clone()  # (B, T, nh hs)
        y[..., part] = values[0] if uniform else 0
        return (y,)

    with ExitStack() as stack:
        stack.enter_context(forward_pre_hooks([attn], record_values))
        stack.enter_context(forward_pre_hooks([attn.c_proj], replace_part))
        return mean_loss(model, batches)


def main():
    model, tokenizer, ids = load_model_and_text(RUN, TEXT)
    print_patterns(model, tokenizer, ids)
    print_last_position(model, ids)
    dataset = Dataset(ROOT / "data" / "machado_char")
    batches = list(dataset.evaluation_batches("val", NUM_BATCHES, 32, model.config.block_size))
    base = mean_loss(model, batches)
    print(f"\nvalidation loss over {NUM_BATCHES} batches: {base:.4f}; what is added to it")
    print("                 without the head   with a uniform head in its place")
    for n, m in all_heads(model):
        removed, averaged = (loss_without(model, batches, n, m, u) - base for u in (False, True))
        print(f"layer {n}, head {m} {removed:+17.3f} {averaged:+17.3f}")


if __name__ == "__main__":
    main()
