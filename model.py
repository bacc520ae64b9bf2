"""The network, from the leaves to the root; then the device, the dtype and torch.compile.

GPT-2, the Llama family and everything between them are values of one ModelConfig. Each variant is
chosen where its module is constructed, so forward has almost no branches. Parameters carry GPT-2's
names.

Shapes: B batch, T tokens, C channels (n_embd), V vocabulary, nh query heads, nkv key/value heads,
hs head size (C / nh, unless head_dim says otherwise).

Sources: GPT-2 (Language Models are Unsupervised Multitask Learners, 2019), attention (1706.03762),
GELU (1606.08415), tied embeddings (1608.05859), Llama (2302.13971); others are named where they are
used.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from seugpt.errors import DeviceError, one_line

IGNORE_INDEX = -1  # a target that does not count in the loss, such as padding
CPU_ATTENTION_MAX_TOKENS = 512
CPU_ATTENTION_MIN_KEYS = 2**18  # numbers in a KV cache from which on it pays


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; the defaults are those of GPT-2 124M, without biases.

    A field is `name: Annotated[type, help text, limits] = default`; it is also the option
    --name=value. Raises ValueError if two fields contradict each other.
    """

    block_size: Annotated[int, "context length in tokens", ">= 1"] = 1024
    vocab_size: Annotated[int | None, "token embeddings; None: the tokenizer's", ">= 1"] = None
    n_layer: Annotated[int, "transformer blocks", ">= 1"] = 12
    n_head: Annotated[int, "attention heads", ">= 1"] = 12
    n_kv_head: Annotated[int | None, "key/value heads; None: n_head, 1: MQA", ">= 1"] = None
    n_embd: Annotated[int, "embedding dimension, the width of the model", ">= 1"] = 768
    head_dim: Annotated[int | None, "size of a head; None: n_embd / n_head", ">= 1"] = None
    dropout: Annotated[float, "0 to pretrain, 0.1 or more for small data", ">= 0", "< 1"] = 0.0
    bias: Annotated[bool, "biases in linear layers and layer norms, as in GPT-2"] = False
    qkv_bias: Annotated[bool | None, "biases of queries, keys, values; None: as bias"] = None
    position: Annotated[Literal["learned", "rope"], "position embeddings"] = "learned"
    rope_base: Annotated[float, "RoPE base (theta)", "> 0"] = 10_000.0
    rope_scaling: Annotated[
        tuple[float, ...], "RoPE for longer contexts: a factor, or Llama 3.1's four numbers", "> 0"
    ] = ()
    norm: Annotated[Literal["layernorm", "rmsnorm"], "normalization layers"] = "layernorm"
    norm_eps: Annotated[float, "epsilon of the normalization layers", "> 0"] = 1e-5
    mlp: Annotated[Literal["gelu", "gelu_exact", "swiglu", "relu2"], "MLP activation"] = "gelu"
    mlp_hidden: Annotated[int | None, "MLP size; None: 4 n_embd, swiglu 8/3 n_embd", ">= 1"] = None
    qk_norm: Annotated[bool, "normalize queries and keys"] = False
    embedding_std: Annotated[float, "initial std of the token embedding", ">= 0"] = 0.02
    tie_embeddings: Annotated[bool, "one matrix for token embedding and output head"] = True
    logit_softcap: Annotated[float, "smooth bound on the logits; 0: none", ">= 0"] = 0.0

    @property
    def head_size(self):
        return self.head_dim or self.n_embd // self.n_head

    @property
    def has_qkv_bias(self):
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def mlp_hidden_size(self):
        """SwiGLU has a third matrix: 8/3 C gives it as many parameters as 4 C gives the others."""
        if self.mlp_hidden:
            return self.mlp_hidden
        if self.mlp == "swiglu":
            return math.ceil(self.n_embd / 3) * 8
        return 4 * self.n_embd

    def __post_init__(self):
        C, nh, nkv = self.n_embd, self.n_head, self.kv_heads
        problems = []
        if self.head_dim is None and C % nh:
            nearest = max(round(C / nh), 1) * nh
            problems.append(f"n_embd={C} must be divisible by n_head={nh}; nearest: {nearest}")
        elif self.position == "rope" and self.head_size % 2:
            given = f"head_dim={self.head_dim}" if self.head_dim else f"n_embd/n_head={C // nh}"
            problems.append(f"position=rope needs an even head size, not {given}")
        if len(self.rope_scaling) not in (0, 1, 4):
            problems.append(f"rope_scaling={self.rope_scaling} must have one or four numbers")
        elif len(self.rope_scaling) == 4 and self.rope_scaling[1] >= self.rope_scaling[2]:
            problems.append(f"rope_scaling={self.rope_scaling}: the second must be below the third")
        if nh % nkv:
            divisors = ", ".join(str(n) for n in range(1, nh + 1) if nh % n == 0)
            problems.append(f"n_kv_head={nkv} must divide n_head={nh}: {divisors}")
        if problems:
            raise ValueError("\n".join(problems))


def identity(x, *_):
    """Where an architecture lacks a part; calling nn.Identity would cost a microsecond."""
    return x


def make_norm(config, width):
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, config.norm_eps)  # 1910.07467
    return nn.LayerNorm(width, config.norm_eps, bias=config.bias)


def make_dropout(config):
    return Dropout(config.dropout) if config.dropout else identity


class Dropout(nn.Dropout):
    """nn.Dropout, faster on a CPU."""

    def forward(self, x):
        return dropout(x, self.p if self.training else 0.0)


def dropout(x, p):
    """x with each element zero with probability p, else divided by 1 - p.

    On a CPU torch draws each number apart, which took a third of a step; here 16 random bits are
    compared with p, four elements at a time (docs/SPEED.md).
    """
    if p == 0 or not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p)
    zeros = round(p * 2**16)  # of the 2^16 values that 16 bits have
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = bits.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.ge(bits, zeros - 2**15, out=torch.empty(x.shape, dtype=x.dtype))  # 1: kept
    return x * mask.mul_(2**16 / (2**16 - zeros))


def gelu(x):
    """The tanh approximation that GPT-2 was trained with, up to 5e-4 off nanoGPT's exact GELU."""
    return F.gelu(x, approximate="tanh")


def swiglu(x):
    """One half of the channels gates the other (2002.05202). (B, T, 2H) -> (B, T, H).

    Course: page 9.
    """
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def relu2(x):
    """Squared ReLU (Primer, 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS = {"gelu": gelu, "gelu_exact": F.gelu, "swiglu": swiglu, "relu2": relu2}


def softcap(logits, cap):
    """Bound logits smoothly to (-cap, cap) (Gemma 2, 2408.00118); a cap of 0 changes nothing."""
    return cap * torch.tanh(logits / cap) if cap else logits


def rope_cos_sin(positions, config):
    """RoPE's cos and sin for positions (..., T): two float32 tensors (..., T, 1, hs) (2104.09864).

    Of the two conventions this is Hugging Face's: channel i forms a pair with channel i + hs/2
    (halves, not neighbours), rotated by position * base^(-2i/hs). The sin of the first half is
    negated, as apply_rotary_emb needs it. Course: page 9.
    """
    hs = config.head_size
    exponents = torch.arange(0, hs, 2, device=positions.device) / hs
    frequencies = config.rope_base**-exponents  # (hs/2,)
    if config.rope_scaling:
        frequencies = scale_frequencies(frequencies, *config.rope_scaling)
    angles = positions[..., None, None] * frequencies  # (..., T, 1, hs/2)
    cos = angles.cos()
    sin = angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def scale_frequencies(frequencies, factor, low=None, high=None, trained_length=None):
    """RoPE's frequencies for a context longer than the one trained first: divided by `factor`.

    With Llama 3.1's four numbers only low frequencies are: those that turn less than `low` times in
    trained_length tokens. Those that turn more than `high` times stay, with a slope in between.
    """
    if low is None:
        return frequencies / factor
    turns = trained_length * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: the frequency stays
    return frequencies * (kept + (1 - kept) / factor)


def apply_rotary_emb(x, cos_sin):
    """Rotate each channel pair of x (B, T, n, hs) by the angle of its position, in float32."""
    cos, sin = cos_sin
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


def attention(q, k, v, mask, p):
    """softmax(q kᵀ / √hs + mask) v -> (B, nh, T, hs), of q (B, nh, T, hs) and k, v (B, nkv, S, hs).

    mask, 0 or -inf, broadcasts to (B, nh, T, S); None is the causal mask: no token sees a later
    one. p: dropout's probability. Course: pages 3 and 6.
    """
    is_slow = mask is None or (q.dtype == torch.bfloat16 and k.numel() >= CPU_ATTENTION_MIN_KEYS)
    if q.is_cpu and q.shape[2] <= CPU_ATTENTION_MAX_TOKENS and is_slow:
        return cpu_attention(q, k, v, mask, p)
    gqa = k.shape[1] < q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None, enable_gqa=gqa)


def cpu_attention(q, k, v, mask, p):
    """Attention written out: faster on a CPU than torch's fused kernel (docs/SPEED.md).

    With GQA the query heads that share a key head become more rows of one matrix, so that no key is
    copied. Without it group is 1, and the reshapes only merge B and nh.
    """
    B, nh, T, hs = q.shape
    nkv, S = k.shape[1:3]
    group = nh // nkv
    q = q.reshape(-1, group * T, hs)  # (B nkv, group T, hs)
    k = k.reshape(-1, S, hs)  # (B nkv, S, hs)
    v = v.reshape(-1, S, hs)  # (B nkv, S, hs)
    if mask is None:
        mask = q.new_full((1, T, S), -torch.inf).triu(1)  # -inf above the diagonal
    elif B > 1:
        mask = mask.expand(B, nkv, T, S).flatten(0, 1)  # (B nkv, T, S)
    else:
        mask = mask[0]  # (1, T, S)
    mask = mask.repeat(1, group, 1)  # (B nkv or 1, group T, S)

    scores = torch.baddbmm(mask, q, k.mT, alpha=hs**-0.5)  # mask + q kᵀ / √hs
    weights = scores.softmax(dim=-1)  # (B nkv, group T, S)
    weights = dropout(weights, p)
    y = weights @ v  # (B nkv, group T, hs)

    return y.view(B, nh, T, hs)


class CausalSelfAttention(nn.Module):
    """Causal self-attention; with nkv < nh it is GQA (2305.13245). (B, T, C) -> (B, T, C).

    cos_sin: RoPE's, None for learned positions; cache: a KVCache, None in training.
    Course: pages 3 and 6.
    """

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_size = config.head_size
        self.num_heads = (config.n_head, config.kv_heads, config.kv_heads)  # of q, k, v
        qkv_size = sum(self.num_heads) * config.head_size  # q, k, v in one matmul
        self.c_attn = nn.Linear(config.n_embd, qkv_size, bias=config.has_qkv_bias)
        self.c_proj = nn.Linear(config.n_head * config.head_size, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, config.head_size) if config.qk_norm else identity
        self.k_norm = make_norm(config, config.head_size) if config.qk_norm else identity
        self.apply_rope = apply_rotary_emb if config.position == "rope" else identity
        self.attn_dropout = config.dropout
        self.resid_dropout = make_dropout(config)

    def qkv(self, x, cos_sin):
        """x (B, T, C) -> q (B, nh, T, hs), k and v (B, nkv, T, hs); q and k rotated by position."""
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.head_size)  # (B, T, nh + 2 nkv, hs)
        q, k, v = qkv.split_with_sizes(self.num_heads, dim=2)
        q = self.apply_rope(self.q_norm(q), cos_sin)
        k = self.apply_rope(self.k_norm(k), cos_sin)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x, cos_sin, cache):
        q, k, v = self.qkv(x, cos_sin)
        mask = None
        if cache is not None:
            k, v = cache.update(self.layer_idx, k, v)
            mask = cache.mask
        y = attention(q, k, v, mask, self.attn_dropout if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)  # (B, T, nh hs): the heads side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers with an activation between them. (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        hidden = config.mlp_hidden_size
        num_projections = 2 if config.mlp == "swiglu" else 1  # gate and value in one matmul
        self.c_fc = nn.Linear(config.n_embd, num_projections * hidden, bias=config.bias)
        self.act = ACTIVATIONS[config.mlp]
        self.c_proj = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = make_dropout(config)

    def forward(self, x):
        x = self.act(self.c_fc(x))  # (B, T, mlp_hidden_size)
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """A pre-norm block: attention and MLP add to the residual stream. (B, T, C) -> (B, T, C)."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = CausalSelfAttention(config, layer_idx)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, cos_sin, cache):
        x = x + self.attn(self.ln_1(x), cos_sin, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """Token ids in, logits of the next token out. Course: pages 1 (its first loss) and 3.

    | parameter                   | initial value                                            |
    |-----------------------------|----------------------------------------------------------|
    | wte (token embedding)       | normal, std embedding_std                                |
    | wpe, other linear weights   | normal, std 0.02                                         |
    | c_proj of attention and MLP | normal, std 0.02 / sqrt(2 n_layer), as 2 n_layer of them |
    |                             | add to the residual stream                               |
    | biases                      | 0                                                        |
    | norm weights                | 1                                                        |
    """

    def __init__(self, config):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError(
                "vocab_size=None: a model needs a number, such as the tokenizer's vocab_size"
            )
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        learned = config.position == "learned"
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.drop = make_dropout(config)
        self.h = nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.n_layer))
        self.ln_f = make_norm(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Draw every parameter from torch's global generator, as the table above says."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif name == "wte.weight":
                nn.init.normal_(parameter, std=self.config.embedding_std)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) token ids -> (logits, loss).

        With targets (B, T): logits (B, T, V) and the mean cross-entropy in nats per token, in which
        targets equal to IGNORE_INDEX do not count. Without: the logits of the last position alone,
        (B, 1, V), and None. With a cache (seugpt.generation.kv_cache), idx continues the tokens in
        it. Raises ValueError if T exceeds block_size.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens exceed block_size={self.config.block_size}")
        if cache is None:
            positions = torch.arange(T, device=idx.device)  # (T,)
        else:
            positions = cache.advance(T)  # (B, T)
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
            cos_sin = None
        else:
            cos_sin = rope_cos_sin(positions, self.config)
        x = self.drop(x)
        for block in self.h:
            x = block(x, cos_sin, cache)
        x = self.ln_f(x)
        if targets is None:
            return self.unembed(x[:, -1:]), None
        logits = self.unembed(x)
        # In float32 whatever autocast chose: a sum of V exponentials needs the precision.
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX
        )
        # In training detached: the loss's backward pass would fill a gradient of zeros for them.
        return logits.detach() if self.training else logits, loss

    def unembed(self, x):
        """The logits (..., V) of normalized activations (..., C)."""
        return softcap(self.lm_head(x), self.config.logit_softcap)

    @classmethod
    def from_pretrained(cls, source):
        """A model in eval mode with the weights of a run's folder, a checkpoint or gpt2: any source
        that --init_from takes. Raises CheckpointError, DataError.
        """
        from seugpt.checkpoint import load_for_inference  # not above: it imports this module

        model, _, _ = load_for_inference(source)
        return model

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        """Append max_new_tokens tokens to each row of idx (B, T), drawn one by one.

        temperature > 0; top_k: draw from the k likeliest tokens alone. This is the reference, which
        reads the whole context for each token; sample.py does the same with a KV cache.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            logits = logits[:, -1, :] / temperature  # (B, V)
            if top_k is not None:
                smallest_kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
            probs = logits.softmax(dim=-1)
            next_ids = torch.multinomial(probs, num_samples=1)  # (B, 1)
            idx = torch.cat((idx, next_ids), dim=1)
        return idx

    def num_params(self):
        return sum(p.numel() for p in self.parameters())  # a tied matrix counts once

    def flops_per_token(self):
        """FLOPs of forward and backward per token at full context: 6N + 12·L·H·Q·T.

        Source: PaLM (2204.02311), appendix B. N excludes embeddings that are looked up and never
        multiplied: positions, and tokens unless they are tied.
        """
        looked_up = {"wpe.weight"} if self.config.tie_embeddings else {"wpe.weight", "wte.weight"}
        N = sum(p.numel() for name, p in self.named_parameters() if name not in looked_up)
        HQ = self.config.n_head * self.config.head_size
        return 6 * N + 12 * self.config.n_layer * HQ * self.config.block_size


def pick_device(name="auto", local_rank=0, local_world_size=1):
    """The torch.device of a name; "auto" is CUDA if there is one, else MPS, else the CPU.

    Raises DeviceError for a device that torch cannot see.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"(cpu|cuda|mps)(:\d{1,2})?", name):
        raise DeviceError(f"device={name} is unknown; choose auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device=mps is not available: it needs a Mac with Apple silicon; try --device=auto"
        )
    if device.type == "cuda":
        return pick_cuda_device(device, local_rank, local_world_size)
    return device


def pick_cuda_device(device, local_rank, local_world_size):
    """The CUDA device asked for; several processes on one machine get one each, by local rank."""
    count = torch.cuda.device_count()
    if local_world_size > count > 0:
        raise DeviceError(
            f"{local_world_size} processes but only {count} CUDA devices; "
            f"use --nproc_per_node={count}"
        )
    index = local_rank if local_world_size > 1 or device.index is None else device.index
    if index >= count:
        raise DeviceError(
            f"device={device} is not available: torch sees {count} CUDA devices; try --device=auto"
        )
    return torch.device("cuda", index)


def has_native_bfloat16(device, training):
    """Whether the hardware multiplies in bfloat16 rather than emulating it.

    On CUDA from compute capability 8.0 on: torch.cuda.is_bf16_supported() is also true for slow
    emulation. On a CPU it pays in training alone (docs/SPEED.md).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and training:
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def pick_dtype(name, device, training=False):
    """The torch.dtype of a name. Raises DeviceError for one that the device does not support.

    "auto" is bfloat16 where it is native, else float16 on CUDA, else float32.
    """
    native_bfloat16 = has_native_bfloat16(device, training)
    if name == "auto":
        if native_bfloat16:
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "bfloat16" and device.type == "cuda" and not native_bfloat16:
        raise DeviceError(
            "dtype=bfloat16 needs a GPU of compute capability 8.0 or higher; use --dtype=float16"
        )
    if name == "float16" and device.type == "mps":
        raise DeviceError(
            "dtype=float16 needs a gradient scaler, which "
            "MPS lacks; use --dtype=bfloat16 or float32"
        )
    return getattr(torch, name)


def make_autocast(device, dtype):
    """The context in which a model computes in `dtype`; in float32 it changes nothing."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def allow_tf32(device):
    """On CUDA, multiply float32 matrices in TF32: faster, with 10 bits after the binary point."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def pick_compile(choice, device):
    """Whether to compile; "auto": on CUDA."""
    return device.type == "cuda" if choice == "auto" else choice


def compile_model(model, warmup):
    """Compile the model in place, so that no wrapper adds a prefix to its parameter names.

    `warmup()` is called to trigger compilation. Returns None, or the reason in one line if
    compilation fails; the model then runs uncompiled.
    """
    model.compile(dynamic=False)
    try:
        warmup()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch, Triton and the C compiler each raise their own types
        uncompile(model)
        return one_line(error)
    finally:
        model.zero_grad(set_to_none=True)
    return None


def uncompile(model):
    model._compiled_call_impl = None  # undoes Module.compile(); torch has no public way
