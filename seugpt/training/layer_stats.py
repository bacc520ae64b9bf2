"""Every snapshot_interval steps: the embeddings, and what an optimizer step does to each layer.

out_dir/snapshots/00000100.npz has the embeddings after 100 steps (`visualize.py animate`);
metrics.jsonl has what step 100 did to each layer (`visualize.py activations`). Consumes no RNG,
changes no training state.

Shapes: B rows, T tokens, C channels.
"""

import contextlib
import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from seugpt.errors import DataError
from seugpt.files import atomic_write

MAX_ROWS = 1024  # of an embedding: with BPE the bytes come first, then the most frequent tokens


def save_embeddings(folder, step, model):
    """Write the first MAX_ROWS rows of wte, and of wpe if there is one, as float16 (rows, C)."""
    arrays = {}
    for name, embedding in (("wte", model.wte), ("wpe", model.wpe)):
        if embedding is not None:
            arrays[name] = embedding.weight[:MAX_ROWS].detach().half().cpu().numpy()
    path = Path(folder, "snapshots", f"{step:08d}.npz")
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def find_snapshots(folder):
    """{step: file} of a run's snapshots, in order."""
    paths = sorted(Path(folder, "snapshots").glob("[0-9]" * 8 + ".npz"))
    return {int(path.stem): path for path in paths}


def load_embeddings(path):
    """{"wte": float32 (rows, C), and "wpe" if positions are learned} of a snapshot.

    Raises DataError.
    """
    try:
        with np.load(path) as arrays:
            return {name: arrays[name].astype(np.float32) for name in arrays.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as a snapshot ({type(error).__name__})") from error


def remove_snapshots_after(folder, step):
    """Remove what a run resumed at `step` will write again."""
    for later, path in find_snapshots(folder).items():
        if later > step:
            path.unlink()


class SnapshotRecorder:
    """Takes the snapshots of a run, every `interval` steps (0: none), for its RunLogger."""

    def __init__(self, model, interval, log, throughput, autocast):
        self.model = model
        self.interval = interval
        self.log = log
        self.throughput = throughput
        self.autocast = autocast
        self.enabled = bool(interval and log.folder)

    def is_due(self, step):
        return self.enabled and step % self.interval == 0

    def save_embeddings(self, step, last=False):
        """Save the embeddings if a snapshot is due, or at the end of the run."""
        if self.is_due(step) or (self.enabled and last):
            with self.throughput.paused():
                save_embeddings(self.log.folder, step, self.model)

    @contextlib.contextmanager
    def layer_stats(self, step, batch):
        """Around an optimizer step: if a snapshot is due, log what the step does to each layer.

        `batch`: the function that returns x and y of a micro-batch.
        """
        if not self.is_due(step):
            yield
            return
        eager = torch.compiler.set_stance("force_eager")  # hooks would compile the model again
        with self.throughput.paused(), self.autocast, eager:
            x, _ = batch(0)
            stats = LayerStats(self.model, x)
        yield
        with self.throughput.paused():
            self.log.metrics(step=step, **stats.changes())


class LayerStats:
    """What one optimizer step does to each layer: created before the step, read after it."""

    def __init__(self, model, x):
        """`x`: the step's first micro-batch, int64 (B, T)."""
        self.model = model
        self.activations = activation_rms(model, x)
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def changes(self):
        """{quantity/layer: number} for the embedding, each block and the head.

        weight_norm: the norm of all weights of the layer, before the step; grad_norm: of their
        gradient, after clipping; update_ratio: the norm of the update over weight_norm;
        activation_rms: the root mean square of the residual stream that the layer outputs. Values
        that overflowed in float16 are left out.
        """
        squares = {}  # {layer: sums of squares of weights, gradients, updates}
        for name, p in self.model.named_parameters():
            before = self.before[name]
            parts = [tensor.float().square().sum() for tensor in (before, p.grad, p - before)]
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0) + torch.stack(parts)
        values = {}
        for layer, sums in squares.items():
            weight_norm, grad_norm, update_norm = sums.sqrt().tolist()
            values[f"weight_norm/{layer}"] = weight_norm
            values[f"grad_norm/{layer}"] = grad_norm
            values[f"update_ratio/{layer}"] = update_norm / weight_norm if weight_norm else 0.0
        values |= self.activations
        return {name: value for name, value in values.items() if math.isfinite(value)}


def layer_of(name):
    """The layer that a parameter belongs to: embedding, h.0, h.1, ..., head."""
    module, child, *_ = name.split(".")
    if module == "h":
        return f"h.{child}"
    return "embedding" if module in ("wte", "wpe") else "head"


@contextlib.contextmanager
def forward_pre_hooks(modules, hook):
    """While the body runs, hook(module, inputs) is called before each forward of the modules."""
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def residual_streams(model, idx):
    """The residual stream before each block and after the last: n_layer + 1 tensors (B, T, C)."""
    streams = []

    def hook(module, inputs):
        streams.append(inputs[0])

    with forward_pre_hooks([*model.h, model.ln_f], hook):
        model(idx)
    return streams


def activation_rms(model, x):
    """{activation_rms/layer: number} of a batch, for the embedding and each block; no dropout."""
    was_training = model.training
    try:
        streams = residual_streams(model.eval(), x)
    finally:
        model.train(was_training)
    names = ["embedding", *(f"h.{i}" for i in range(len(model.h)))]
    values = {}
    for name, stream in zip(names, streams, strict=True):
        values[f"activation_rms/{name}"] = stream.float().square().mean().sqrt().item()
    return values
