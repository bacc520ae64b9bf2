"""Weights in 8 bits for generation on a CPU, which mostly waits for weights to arrive from memory.

Each row of a matrix, one output channel, becomes integers from -127 to 127 times one scale; the
activations stay in bfloat16. docs/SPEED.md says what it gains, and what it costs in loss.
"""

import torch
import torch.nn.functional as F
from torch import nn

from model import pick_dtype
from seugpt.errors import DeviceError

MAX_KERNEL_ROWS = 16  # beyond that, converting the matrix once is faster than torch's int8 kernel
KERNEL_MULTIPLE = 32  # of inputs; for others torch 2.13's kernel reads past the end of the weights
LARGEST = 127
MIN_BFLOAT16_PARAMS = 5_000_000  # on a CPU smaller models decode faster in float32


def inference_dtype(name, device, num_params):
    """The torch.dtype of weights that only generate. Raises DeviceError.

    "auto" on a CPU is bfloat16 where the CPU has instructions for it and the model is so large that
    reading its weights takes most of the time; elsewhere it is pick_dtype's choice.
    """
    if name == "auto" and device.type == "cpu":
        is_large = num_params >= MIN_BFLOAT16_PARAMS
        return pick_dtype("auto", device, training=True) if is_large else torch.float32
    return pick_dtype(name, device)


def quantize(model):
    """Replace a GPT's linear layers and token embedding by 8-bit ones, in place. Returns it.

    Raises DeviceError unless the model is on the CPU.
    """
    if model.wte.weight.device.type != "cpu":
        raise DeviceError("--quantize=int8 is for the CPU; add --device=cpu")
    model.to(torch.bfloat16)
    for block in model.h:
        for module in (block.attn, block.mlp):
            for name in ("c_attn", "c_fc", "c_proj"):
                if hasattr(module, name):
                    setattr(module, name, Int8Linear(getattr(module, name)))
    model.lm_head = Int8Linear(model.lm_head)
    tied = model.config.tie_embeddings
    model.wte = Int8Embedding(model.lm_head if tied else Int8Linear(model.wte))
    return model


class Int8Linear(nn.Module):
    """nn.Linear, or the table of an nn.Embedding, with an int8 weight and a scale for each row."""

    def __init__(self, module):
        super().__init__()
        weight = module.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / LARGEST).clamp(min=1e-12).bfloat16()
        quotients = weight / scale.float()[:, None]
        self.register_buffer("weight", quotients.round().clamp(-LARGEST, LARGEST).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", getattr(module, "bias", None))

    def forward(self, x):
        """(..., in) -> (..., out), in bfloat16."""
        rows = x.reshape(-1, x.shape[-1]).to(self.scale.dtype)
        if len(rows) <= MAX_KERNEL_ROWS and rows.shape[1] % KERNEL_MULTIPLE == 0:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(rows.dtype)) * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)


class Int8Embedding(nn.Module):
    """Looks rows up in an Int8Linear's weight, which may be the output head's."""

    def __init__(self, table):
        super().__init__()
        self.weight = table.weight
        self.scale = table.scale

    def forward(self, idx):
        return self.weight[idx].to(self.scale.dtype) * self.scale[idx].unsqueeze(-1)
