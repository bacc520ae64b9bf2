"""GPT-2, from the leaves to the root: configuration, attention, MLP, block, model; then the device it runs on.

Each part of the architecture is chosen at one place, where it is constructed: the norm in make_norm, the feed-forward
part in MLP, the positions in GPT. So forward has no branches to follow.

Shapes: B batch, T tokens of context, C channels (n_embd), V vocabulary, nh heads, hs head size (C / nh).
Sources: GPT-2, "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019);
attention, "Attention Is All You Need" (1706.03762); GELU (1606.08415); tied embeddings (1608.05859).
"""

import contextlib
import math
import re
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn


class DeviceError(ValueError):
    """A device or number format that was asked for and is not there."""


IGNORE = -1  # a target that counts for nothing: the padding of the last evaluation window


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. Raises ValueError, one line for each field that is out of range."""

    block_size: Annotated[int, "context length in tokens"] = 1024
    vocab_size: Annotated[int | None, "rows of the token embedding; None: the tokenizer's, more: padded"] = None
    n_layer: Annotated[int, "number of transformer blocks"] = 12
    n_head: Annotated[int, "attention heads in each block"] = 12
    n_embd: Annotated[int, "channels: the width of the model"] = 768
    dropout: Annotated[
        float, "share of activations set to zero in training; 0 for pretraining, 0.1+ for small data"
    ] = 0.0
    bias: Annotated[bool, "biases in linear layers and layer norms, as in GPT-2; False is a bit better and faster"] = (
        False
    )

    def __post_init__(self):
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.n_head > 0 and self.n_embd % self.n_head != 0:
            below = self.n_embd - self.n_embd % self.n_head
            nearest = " or ".join(str(n) for n in (below, below + self.n_head) if n > 0)
            problems.append(
                f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}; the nearest n_embd is {nearest}"
            )
        if problems:
            raise ValueError("\n".join(problems))


def make_norm(config):
    return nn.LayerNorm(config.n_embd, bias=config.bias)


class Attention(nn.Module):
    """Causal self-attention over all heads at once. (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.attn_dropout = config.dropout
        self.c_attn = nn.Linear(
            config.n_embd, 3 * config.n_embd, bias=config.bias
        )  # query, key and value in one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        )  # 3 x (B, nh, T, hs)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_dropout if self.training else 0.0, is_causal=True
        )
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, nh, T, hs) -> (B, T, C): the heads side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times wider inside. (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        # The tanh approximation is what GPT-2 was trained with; nanoGPT's exact (erf) GELU differs by up to 5e-4.
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """Pre-norm: each half reads a normalized copy and adds to the residual stream. (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """Tokens in, logits of the next token out. Parameters carry GPT-2's names (wte, wpe, h.0.attn.c_attn, ...).

    | parameter                          | initial value                                                      |
    |------------------------------------|--------------------------------------------------------------------|
    | embeddings, linear weights         | normal, std 0.02                                                   |
    | c_proj of attention and MLP        | normal, std 0.02 / sqrt(2 * n_layer): 2 * n_layer of them add up   |
    | biases; layer norm biases, weights | 0; 0, 1                                                            |
    """

    def __init__(self, config):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size=None: a model needs a number; take it from the tokenizer")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one matrix reads tokens and scores them
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Draw every parameter anew from torch's global generator, as the class's table says."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx, targets=None):
        """idx (B, T) token ids -> logits and the mean cross-entropy in nats per token.

        With targets (B, T): logits (B, T, V) and the loss, where targets equal to IGNORE do not count.
        Without: logits of the last position alone, (B, 1, V), which is what generation needs, and None.
        Raises ValueError when T exceeds block_size.
        """
        T = idx.shape[1]
        if T > self.config.block_size:  # noqa: SIM300, T is the shape's letter and no constant
            raise ValueError(f"{T} tokens do not fit into block_size={self.config.block_size}")
        x = self.wte(idx) + self.wpe.weight[:T]  # (B, T, C)
        x = self.drop(x)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None
        logits = self.lm_head(x)  # (B, T, V)
        # In float32 whatever autocast chose: a sum of V exponentials needs the digits.
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)

    def crop_block_size(self, block_size):
        """The same model with a shorter context: the position embeddings beyond it are cut off. Returns a new GPT."""
        cropped = GPT(type(self.config)(**{**vars(self.config), "block_size": block_size}))
        state = self.state_dict()
        state["wpe.weight"] = state["wpe.weight"][:block_size]
        cropped.load_state_dict(state)
        return cropped

    def parameter_count(self):
        """Number of parameters; the tied embedding counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self):
        """FLOPs of forward and backward per token of a full context: 6N + 12·L·H·Q·T (PaLM, 2204.02311, appendix B).

        N leaves out the position embeddings, which are added and never multiplied.
        """
        N = self.parameter_count() - self.wpe.weight.numel()
        return 6 * N + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size  # H·Q = C


def pick_device(name="auto", local_rank=0, local_world_size=1):
    """The torch.device of a name; "auto" is CUDA, else MPS, else CPU. Raises DeviceError where torch cannot see it.

    Of several processes on a machine each takes the CUDA device with the number of its local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device={name} is unknown; choose auto, cpu, cuda, cuda:1 or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device=mps is not there: it needs a Mac with Apple silicon; try --device=auto")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local_world_size > count > 0:
            raise DeviceError(f"{local_world_size} processes on {count} CUDA devices; use --nproc_per_node={count}")
        index = local_rank if local_world_size > 1 or device.index is None else device.index
        if index >= count:
            raise DeviceError(f"device={name} is not there: torch sees {count} CUDA devices; try --device=auto")
        return torch.device("cuda", index)
    return device


def pick_dtype(name, device):
    """The torch.dtype of a name; "auto" is bfloat16 where CUDA has it in hardware, float16 on older CUDA, else float32.

    Compute capability 8.0 is the test: torch.cuda.is_bf16_supported() also says yes to emulation, which is slow.
    Raises DeviceError for a format that the device has not got.
    """
    native_bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if native_bf16 else torch.float16
    if name == "bfloat16" and not native_bf16:
        raise DeviceError("dtype=bfloat16 needs a GPU of compute capability 8.0 or more; use --dtype=float16")
    if name == "float16" and device.type == "mps":
        raise DeviceError(
            "dtype=float16 needs a gradient scaler, which MPS has not got; use --dtype=bfloat16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def autocast(device, dtype):
    """The context in which matrix products run in dtype while the parameters stay float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextlib.contextmanager
def out_of_memory_advice(advice):
    """Turns running out of memory, on a GPU or the CPU, into a DeviceError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not full:
            raise
        raise DeviceError(
            f"out of memory: {advice}. The first line of torch's report: {str(error).splitlines()[0]}"
        ) from error


def compile_model(model, trial):
    """Compile the model in place, so that no wrapper changes its parameters' names, and run `trial()` to see it work.

    Returns None, or where compilation fails the reason in one line; the model then runs uncompiled.
    """
    model.compile()
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch, Triton and the C compiler each raise their own kinds
        model._compiled_call_impl = None  # what Module.compile() sets; torch has no public way back
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    finally:
        model.zero_grad(set_to_none=True)


# Dense tensor peaks in FLOP/s, bf16 where there is bf16, from NVIDIA's data sheets; the keys are found in device names.
PEAK_FLOPS = {
    r"H200$": 989e12,
    r"H100 80GB HBM3": 989e12,
    r"H100 PCIe": 756e12,
    r"A100[- ]": 312e12,
    r"L40S$": 362e12,
    r"\bL4$": 121e12,
    r"A10$": 125e12,
    r"RTX 4090$": 165e12,
    r"RTX 3090$": 71e12,
    r"V100-SXM2": 125e12,
    r"\bT4$": 65e12,
}


def peak_flops(device, dtype):
    """The hardware's peak in FLOP/s, or None where it is not known: a guessed MFU is worse than none."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(key, name)), None)
