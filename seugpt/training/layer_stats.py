"""A look inside a run, every snapshot_interval steps, for `visualize.py animate` and `visualize.py activations`.

out_dir/snapshots/00000100.npz has the embeddings after 100 steps; metrics.jsonl what step 100 did to each layer. A look
throws no dice and writes to nothing that the run reads: the run is the same with it and without.
"""

import contextlib
import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from seugpt.errors import DataError
from seugpt.files import replacing
from seugpt.training.metrics import read_metrics

ROWS = 1024  # of an embedding, at most: of BPE's tokens the first are the bytes, then the most frequent pieces


def save_embeddings(folder, step, model):
    """Write the first ROWS rows of wte, and of wpe where positions are learned, as float16 (rows, C)."""
    tables = {"wte": model.wte, "wpe": model.wpe}
    arrays = {
        name: t.weight[:ROWS].detach().half().cpu().numpy()
        for name, t in tables.items()
        if t is not None
    }
    path = Path(folder, "snapshots", f"{step:08d}.npz")
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def steps_of(folder):
    """{step: file} of a run's snapshots, in their order."""
    return {
        int(path.stem): path
        for path in sorted(Path(folder, "snapshots").glob("[0-9]" * 8 + ".npz"))
    }


def load_embeddings(path):
    """{"wte": float32 (rows, C), and "wpe" where positions are learned} of a snapshot. Raises DataError."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name].astype(np.float32) for name in arrays.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as a snapshot ({type(error).__name__})") from error


def captions(folder, steps):
    """What to write over the pictures of steps: each with the validation loss of the last evaluation until there."""
    lines = read_metrics(Path(folder) / "metrics.jsonl")[0]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    texts = []
    for step in steps:
        loss = next((loss for at, loss in sorted(losses.items(), reverse=True) if at <= step), None)
        texts.append(
            f"step {step:>7,}" + ("" if loss is None else f"   validation loss {loss:.3f}")
        )
    return texts


def drop_snapshots_after(step, folder):
    """A run that goes on from its checkpoint does again what came after it."""
    for later, path in steps_of(folder).items():
        if later > step:
            path.unlink()


def layer_of(name):
    """The part of the model that a parameter belongs to: embedding, h.0, h.1, ..., head."""
    first, second, *_ = name.split(".")
    return f"h.{second}" if first == "h" else "embedding" if first in ("wte", "wpe") else "head"


class Look:
    """What one optimizer step does to each layer; made before the step, asked after it, while gradients are there."""

    def __init__(self, model, x):
        """x: the step's first micro-batch, int64 (B, T)."""
        self.model, self.activations = model, activations(model, x)
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def changes(self):
        """{quantity/layer: number}, for the embedding, each block and the head.

        weight_norm: length of all the layer's weights as one vector, before the step; grad_norm: of their gradient as
        the optimizer took it, after clipping; update_ratio: of what the step added, over weight_norm; activation_rms:
        root of the mean square of the residual stream that the layer leaves. What overflowed in float16 is left out.
        """
        squares = {}  # {layer: sums of squares of weights, gradients, updates}
        for name, p in self.model.named_parameters():
            parts = torch.stack(
                [
                    t.float().square().sum()
                    for t in (self.before[name], p.grad, p - self.before[name])
                ]
            )
            squares[layer_of(name)] = squares.get(layer_of(name), 0) + parts
        values = {}
        for layer, sums in squares.items():
            weight, gradient, update = sums.sqrt().tolist()
            values |= {f"weight_norm/{layer}": weight, f"grad_norm/{layer}": gradient}
            values[f"update_ratio/{layer}"] = update / weight if weight else 0.0
        return {
            name: value
            for name, value in {**values, **self.activations}.items()
            if math.isfinite(value)
        }


@contextlib.contextmanager
def listening(modules, hear):
    """While the body runs, hear(module, inputs) is called before each forward of the modules."""
    handles = [module.register_forward_pre_hook(hear) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def streams(model, idx):
    """The residual stream as each block finds it, and as the last one leaves it: L + 1 tensors (B, T, C)."""
    found = []
    with listening([*model.h, model.ln_f], lambda module, inputs: found.append(inputs[0])):
        model(idx)
    return found


def activations(model, x):
    """{activation_rms/layer: number} of a batch, without dropout: of the embedding and of each block."""
    training = model.training
    try:
        found = streams(model.eval(), x)
    finally:
        model.train(training)
    names = ["embedding", *(f"h.{layer}" for layer in range(len(model.h)))]
    return {
        f"activation_rms/{n}": t.float().square().mean().sqrt().item()
        for n, t in zip(names, found, strict=True)
    }
