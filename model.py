"""The network, from the leaves to the root: configuration, attention, MLP, block, model; then the device it runs on.

GPT-2, the Llama family and all between them are values of one ModelConfig. Each part of the architecture is chosen
at one place, where it is constructed: so forward has no branches to follow. Parameters carry GPT-2's names.

Shapes: B batch, T tokens of context, C channels (n_embd), V vocabulary, nh heads, nkv heads of keys and values,
hs head size (C / nh), L slots of the cache.
Sources: GPT-2 (Language Models are Unsupervised Multitask Learners, 2019), Llama (2302.13971), attention (1706.03762),
GELU (1606.08415), tied embeddings (1608.05859); others stand where they are used.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from seugpt.errors import DeviceError

IGNORE = -1  # a target that counts for nothing: the padding of the last evaluation window


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; the defaults are GPT-2. Raises ValueError, one line for each field that is out of range."""

    block_size: Annotated[int, "context length in tokens"] = 1024
    vocab_size: Annotated[
        int | None, "rows of the token embedding; None: the tokenizer's, more: padded"
    ] = None
    n_layer: Annotated[int, "number of transformer blocks"] = 12
    n_head: Annotated[int, "attention heads in each block"] = 12
    n_kv_head: Annotated[
        int | None, "heads of keys and values, shared by groups of heads; None: n_head, 1: MQA"
    ] = None
    n_embd: Annotated[int, "channels: the width of the model"] = 768
    dropout: Annotated[
        float, "share of activations zeroed in training; 0 to pretrain, 0.1+ for small data"
    ] = 0.0
    bias: Annotated[
        bool, "biases in linear layers and layer norms, as GPT-2 has; without is a bit faster"
    ] = False
    position: Annotated[Literal["learned", "rope"], "places are learned vectors, or rotations"] = (
        "learned"
    )
    rope_base: Annotated[
        float, "rope: the slowest rotation takes about 2 pi times as many tokens"
    ] = 10_000.0
    norm: Annotated[
        Literal["layernorm", "rmsnorm"], "rmsnorm subtracts no mean and has no bias"
    ] = "layernorm"
    norm_eps: Annotated[float, "added to the variance before dividing by its root"] = 1e-5
    mlp: Annotated[
        Literal["gelu", "gelu_exact", "swiglu", "relu2"], "between the MLP's linear layers"
    ] = "gelu"
    mlp_hidden: Annotated[int | None, "channels there; None: 4 n_embd, for swiglu 8/3 n_embd"] = (
        None
    )
    qk_norm: Annotated[
        bool, "normalize queries and keys, so that attention cannot grow too sharp"
    ] = False
    embedding_std: Annotated[
        float, "of the tokens' embedding at the start; Muon learns faster from 0.3"
    ] = 0.02
    tie_embeddings: Annotated[bool, "one matrix reads tokens and scores them"] = True
    logit_softcap: Annotated[
        float, "bend logits so that none is beyond this; Gemma 2 has 30; 0: no cap"
    ] = 0.0

    @property
    def head_size(self):
        return self.n_embd // self.n_head

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def hidden(self):
        """Width of the MLP. With swiglu's third matrix, 8/3 C makes as many parameters as 4 C without it."""
        return self.mlp_hidden or (
            math.ceil(self.n_embd / 3) * 8 if self.mlp == "swiglu" else 4 * self.n_embd
        )

    def __post_init__(self):
        values = vars(self)
        counts = (
            "block_size",
            "vocab_size",
            "n_layer",
            "n_head",
            "n_kv_head",
            "n_embd",
            "mlp_hidden",
        )
        problems = [
            f"{k}={values[k]} must be at least 1"
            for k in counts
            if values[k] is not None and values[k] < 1
        ]
        problems += [
            f"{k}={values[k]} must be above 0" for k in ("rope_base", "norm_eps") if values[k] <= 0
        ]
        choices = {
            "position": ("learned", "rope"),
            "norm": ("layernorm", "rmsnorm"),
            "mlp": ACTIVATIONS,
        }
        problems += [
            f"{k}={values[k]} is none of {', '.join(c)}"
            for k, c in choices.items()
            if values[k] not in c
        ]
        problems += [
            f"{k}={values[k]} must be at least 0"
            for k in ("embedding_std", "logit_softcap")
            if values[k] < 0
        ]
        problems += (
            []
            if 0 <= self.dropout < 1
            else [f"dropout={self.dropout} must be at least 0 and below 1"]
        )
        if self.n_head > 0 and self.n_embd % self.n_head:
            below = self.n_embd - self.n_embd % self.n_head
            near = f"{below} or {below + self.n_head}" if below > 0 else self.n_head
            problems.append(
                f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}; the nearest is {near}"
            )
        elif self.n_head > 0 and self.position == "rope" and self.head_size % 2:
            problems.append(
                f"position=rope turns pairs of channels: n_embd/n_head={self.head_size} must be even"
            )
        if self.n_head > 0 and self.kv_heads > 0 and self.n_head % self.kv_heads:
            near = ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            problems.append(f"n_kv_head={self.n_kv_head} must divide n_head={self.n_head}: {near}")
        if problems:
            raise ValueError("\n".join(problems))


def make_norm(config, width):
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, config.norm_eps)  # 1910.07467
    return nn.LayerNorm(width, config.norm_eps, bias=config.bias)


def unchanged(x, *_):
    """Where an architecture has no such part; nn.Identity would cost a microsecond a call."""
    return x


def make_dropout(config):
    return nn.Dropout(config.dropout) if config.dropout else unchanged


def gelu(x):
    """In the tanh approximation that GPT-2 was trained with; F.gelu, which nanoGPT has, differs by up to 5e-4."""
    return F.gelu(x, approximate="tanh")


def swiglu(x):
    """One half of the channels gates the other (GLU Variants, 2002.05202). (B, T, 2H) -> (B, T, H)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def relu2(x):
    """The square of ReLU (Primer, 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS = {"gelu": gelu, "gelu_exact": F.gelu, "swiglu": swiglu, "relu2": relu2}


def soft_cap(logits, cap):
    """Bend logits smoothly into (-cap, cap), as Gemma 2 does (2408.00118); cap 0 leaves them alone."""
    return cap * torch.tanh(logits / cap) if cap else logits


def rotation(positions, head_size, base):
    """RoPE's cos and sin for positions (..., T), float32 (..., T, 1, hs) each (RoFormer, 2104.09864).

    The convention is Hugging Face's Llama: channel i turns with channel i + hs/2, by position * base^(-2i/hs).
    The sin of the first half is negative, so that `rotate` needs no other sign.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device) / head_size
    angles = positions[..., None, None] * base**-exponents  # (..., T, 1, hs/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x, turn):
    """Turn each pair of channels of x (B, T, n, hs) by its position's angle, in float32; turn: of `rotation`."""
    return (x * turn[0] + x.roll(x.shape[-1] // 2, dims=-1) * turn[1]).type_as(x)


class KVCache:
    """Keys and values of the tokens so far: a new token then costs one pass of itself, O(T), not of all, O(T^2).

    Preallocated for each layer as (B, nkv, L, hs), and a ring: token n lies in slot n % L, so that past L tokens each
    sees the last L. Rows shorter than the longest are padded on the left.
    """

    def __init__(self, config, batch_size, length, like):
        """For up to `length` tokens at a time, on the device and in the dtype of the tensor `like`."""
        self.length, shape = length, (batch_size, config.kv_heads, length, config.head_size)
        self.keys, self.values = (
            [like.new_zeros(shape) for _ in range(config.n_layer)] for _ in range(2)
        )
        self.slot_mask = like.new_empty(
            (batch_size, 1, 1, length)
        )  # 0: a token, -inf: padding, or nothing yet
        self.seen = torch.zeros(
            1, dtype=torch.long, device=like.device
        )  # a tensor: a captured step can count it
        self.padding = torch.zeros((batch_size, 1), dtype=torch.long, device=like.device)
        self.reset(0)

    def reset(self, padding):
        """Forget everything, and expect rows with so many tokens of padding, (B, 1) or one number; the memory stays."""
        self.slot_mask.fill_(-torch.inf)
        self.seen.zero_()
        self.padding[:] = padding

    def advance(self, T):
        """Take in T tokens: 1 more, or the first ones, as many as fit. Returns their positions, (B, T).

        `mask` then says what they see, 0, and what not, -inf: of all slots, (B, 1, 1, L), or of each other where T > 1.
        """
        numbers = (
            self.seen if T == 1 else self.seen + torch.arange(T, device=self.seen.device)
        )  # (T,)
        positions, self.slots = numbers - self.padding, numbers % self.length  # (B, T) and (T,)
        if T == 1:  # whatever lies in the slots is earlier
            self.mask = self.slot_mask.index_fill_(3, self.slots, 0)
        else:  # padding, before position 0, counts as later than every token, so that none sees it
            order = positions.where(positions >= 0, self.length)
            later = order[:, None, None, :] > order[:, None, :, None]  # (B, 1, T, T)
            self.mask = self.slot_mask.new_zeros(later.shape).masked_fill_(later, -torch.inf)
            self.slot_mask[..., :T] = self.mask[:, :, -1:]
            positions = positions.clamp(min=0)
        self.seen += T
        return positions

    def update(self, layer, k, v):
        """Store k and v (B, nkv, T, hs). Returns the keys and values that `mask` is about."""
        stored = self.keys[layer], self.values[layer]
        for slots, new in zip(stored, (k, v), strict=True):
            slots.index_copy_(2, self.slots, new.type_as(slots))
        return stored if k.shape[2] == 1 else (k, v)


def attention(q, k, v, mask, dropout):
    """softmax(q kᵀ / √hs + mask) v; without a mask no token sees a later one. q (B, nh, T, hs), k, v (B, nkv, ...).

    Written out in training on the CPU, where torch's kernel is slow (docs/SPEED.md), as long as T x T weights are few.
    """
    B, nh, T, hs = q.shape
    if mask is not None or not q.is_cpu or T > 512:
        grouped = k.shape[1] < nh
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=grouped
        )
    q = q.reshape(
        B * k.shape[1], -1, hs
    )  # (B nkv, nh/nkv T, hs): queries that share keys, one head below the other
    k, v = k.reshape(-1, T, hs), v.reshape(-1, T, hs)  # (B nkv, T, hs)
    later = q.new_full((T, T), -torch.inf).triu(1).repeat(q.shape[1] // T, 1)  # (nh/nkv T, T)
    weights = torch.baddbmm(later, q, k.mT, alpha=hs**-0.5).softmax(dim=-1)  # (B nkv, nh/nkv T, T)
    return (F.dropout(weights, dropout) if dropout else weights).bmm(v).view(B, nh, T, hs)


class Attention(nn.Module):
    """Causal self-attention over all heads at once, with GQA (2305.13245) where nkv < nh. (B, T, C) -> (B, T, C)."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.attn_dropout, self.head_size = layer, config.dropout, config.head_size
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # of queries, keys, values
        self.c_attn = nn.Linear(
            config.n_embd, sum(self.heads) * config.head_size, bias=config.bias
        )  # one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = make_dropout(config)
        self.q_norm = make_norm(config, config.head_size) if config.qk_norm else unchanged
        self.k_norm = make_norm(config, config.head_size) if config.qk_norm else unchanged
        self.rotate = rotate if config.position == "rope" else unchanged

    def qkv(self, x, turn):
        """Queries, keys and values of x (B, T, C), turned to their positions: (B, nh or nkv, T, hs) each."""
        heads = self.c_attn(x).view(*x.shape[:2], -1, self.head_size)  # (B, T, nh + 2 nkv, hs)
        q, k, v = heads.split(self.heads, dim=2)
        q, k = self.rotate(self.q_norm(q), turn), self.rotate(self.k_norm(k), turn)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x, turn, cache):
        q, k, v = self.qkv(x, turn)
        mask, dropout = None, self.attn_dropout if self.training else 0.0
        if cache is not None:
            mask, (k, v) = cache.mask, cache.update(self.layer, k, v)
        y = attention(q, k, v, mask, dropout).transpose(1, 2)  # (B, T, nh, hs)
        return self.resid_dropout(
            self.c_proj(y.reshape(x.shape))
        )  # (B, T, C): the heads side by side


class MLP(nn.Module):
    """Two linear layers, wider inside, with the activation between. (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        matrices = 2 if config.mlp == "swiglu" else 1  # its gate and its value, in one matmul
        self.c_fc = nn.Linear(config.n_embd, matrices * config.hidden, bias=config.bias)
        self.act = ACTIVATIONS[config.mlp]
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.dropout = make_dropout(config)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """Pre-norm: each half reads a normalized copy and adds to the residual stream. (B, T, C) -> (B, T, C)."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, turn, cache):
        x = x + self.attn(self.ln_1(x), turn, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Tokens in, logits of the next token out. Parameters carry GPT-2's names (wte, wpe, h.0.attn.c_attn, ...).

    | parameter                      | initial value                                                    |
    |--------------------------------|------------------------------------------------------------------|
    | wte                            | normal, std embedding_std                                        |
    | wpe, other linear weights      | normal, std 0.02                                                 |
    | c_proj of attention and MLP    | normal, std 0.02 / sqrt(2 * n_layer): 2 * n_layer of them add up |
    | biases; norm biases, weights   | 0; 0, 1                                                          |
    """

    def __init__(self, config):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size=None: a model needs a number; take it from the tokenizer")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = (
            nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        )
        self.drop = make_dropout(config)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Draw every parameter anew from torch's global generator, as the class's table says."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=self.config.embedding_std if name == "wte.weight" else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) token ids -> logits and the mean cross-entropy in nats per token.

        With targets (B, T): logits (B, T, V) and the loss, where targets equal to IGNORE do not count.
        Without: the last position's logits alone, (B, 1, V), and None. With a cache, idx goes on after its tokens.
        Raises ValueError when T exceeds block_size.
        """
        if (T := idx.shape[1]) > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit into block_size={self.config.block_size}")
        positions = (
            torch.arange(T, device=idx.device) if cache is None else cache.advance(T)
        )  # (T,) or (B, T)
        x, turn = self.wte(idx), None  # (B, T, C)
        if self.wpe is None:
            turn = rotation(positions, self.config.head_size, self.config.rope_base)
        else:
            x = x + self.wpe(positions)
        x = self.drop(x)
        for block in self.h:
            x = block(x, turn, cache)
        x = self.ln_f(x)
        if targets is None:
            return soft_cap(self.lm_head(x[:, -1:]), self.config.logit_softcap), None
        logits = soft_cap(self.lm_head(x), self.config.logit_softcap)  # (B, T, V)
        # In float32 whatever autocast chose: a sum of V exponentials needs the digits.
        return logits, F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE
        )

    def make_cache(self, batch_size, length):
        return KVCache(self.config, batch_size, length, self.wte.weight)

    def parameter_count(self):
        return sum(p.numel() for p in self.parameters())  # a tied embedding is one

    def flops_per_token(self):
        """FLOPs of forward and backward per token of a full context: 6N + 12·L·H·Q·T (PaLM, 2204.02311, appendix B).

        N leaves out embeddings that are looked up and never multiplied: the positions', and the tokens' if not tied.
        """
        looked_up = {"wpe.weight"} if self.config.tie_embeddings else {"wpe.weight", "wte.weight"}
        N = sum(p.numel() for name, p in self.named_parameters() if name not in looked_up)
        return (
            6 * N + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size
        )  # H·Q = C


def pick_device(name="auto", local_rank=0, local_world_size=1):
    """The torch.device of a name; "auto" is CUDA, else MPS, else CPU. Raises DeviceError where torch cannot see it.

    Of several processes on a machine each takes the CUDA device with the number of its local rank.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if not re.fullmatch(r"(cpu|cuda|mps)(:\d{1,2})?", name):
        raise DeviceError(f"device={name} is unknown; choose auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device=mps is not there: it needs a Mac with Apple silicon; try --device=auto"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local_world_size > count > 0:
            raise DeviceError(
                f"{local_world_size} processes on {count} CUDA devices; use --nproc_per_node={count}"
            )
        index = local_rank if local_world_size > 1 or device.index is None else device.index
        if index >= count:
            raise DeviceError(
                f"device={name} is not there: torch sees {count} CUDA devices; try --device=auto"
            )
        return torch.device("cuda", index)
    return device


def pick_dtype(name, device, training=False):
    """The torch.dtype of a name; "auto" is bfloat16 where the hardware has it, else float16 on CUDA, else float32.

    CUDA has it from compute capability 8.0 on: torch.cuda.is_bf16_supported() also says yes to emulation, which is
    slow. On the CPU it pays in training alone (docs/SPEED.md). Raises DeviceError for what the device has not got.
    """
    cuda, cpu = (
        device.type == "cuda",
        training and device.type == "cpu" and torch.cpu.get_capabilities(),
    )
    native_bf16 = cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    native_bf16 = native_bf16 or (cpu and (cpu.get("avx512_bf16") or cpu.get("amx_bf16")))
    if name == "auto":
        return torch.bfloat16 if native_bf16 else torch.float16 if cuda else torch.float32
    if name == "bfloat16" and cuda and not native_bf16:
        raise DeviceError(
            "dtype=bfloat16 needs a GPU of compute capability 8.0 or more; use --dtype=float16"
        )
    if name == "float16" and device.type == "mps":
        raise DeviceError(
            "dtype=float16 needs a gradient scaler, which MPS has not; use --dtype=bfloat16 or float32"
        )
    return getattr(torch, name)


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
