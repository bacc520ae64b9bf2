"""What an optimizer step does to each layer: sizes of activations, weights, gradients, updates.

Shapes: B rows, T tokens, C channels.
"""

import contextlib
import math

import torch


class LayerStats:
    """What one optimizer step does to each layer: created before the step, read after it."""

    def __init__(self, model, x):
        """`x`: the step's first micro-batch, int64 (B, T)."""
        self.model = model
        self.activations = activation_rms(model, x)
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def changes(self):
        """{quantity/layer: number} for each layer of layer_of.

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
    """The layer that a parameter belongs to: embedding, h.0, h.1, ..., ln_f, lm_head.

    A tied lm_head is the embedding's matrix and has no statistics of its own.
    """
    module, child, *_ = name.split(".")
    if module == "h":
        return f"h.{child}"
    return "embedding" if module in ("wte", "wpe") else module


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
