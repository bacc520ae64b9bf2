"""What a model does with a text: where its heads look, what layers predict, what surprises it.

The model's own modules compute it while hooks record their inputs; afterwards the hooks are
removed.

Shapes: B rows, T tokens, C channels, L layers, nh heads, hs head size, V vocabulary, N tokens of
the tokenizer (V may be padded).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from seugpt.checkpoint.pretrained import load_for_inference
from seugpt.cli.text_option import read_text_option
from seugpt.data.tokenizer import encode_option, num_chars
from seugpt.evaluation.loss import sliding_windows
from seugpt.generation.sampling import logits_to_probs, sample_token
from seugpt.training.layer_stats import forward_pre_hooks, residual_streams

MAX_WINDOW = 1024  # tokens in which attention is recorded, as T x T weights of every head
MAX_TOKENS = 2**14  # of a text for attention patterns, which show long before
MAX_MAP_TOKENS = 64  # of a text in attention maps
LENS_TOKENS = 40  # of a text under the logit lens
CHUNK_LOGITS = 256  # rows of logits at a time: V may be a hundred thousand
CHUNK_ELEMENTS = 2**22  # of a large intermediate tensor


def load_model_and_text(source, text):
    """(model, tokenizer, ids): a model, and a text (or FILE:path) as a tensor of ids (T,).

    Raises CheckpointError, DataError.
    """
    model, tokenizer, _ = load_for_inference(source)
    ids = encode_option(tokenizer, read_text_option(text, "text"), "text")
    return model, tokenizer, torch.tensor(ids.tolist())


@torch.no_grad()
def attention_weights(model, idx, summarize=lambda weights: weights):
    """summarize(weights) of each layer's attention weights (B, nh, T, T), in a list.

    idx (B, T). A row of weights says how a token's attention is distributed over itself and the
    tokens before; its sum is 1. With a summary, only one layer's weights are in memory at a time.
    Course: page 6.
    """
    summaries = []

    def hook(attn, inputs):
        x, cos_sin, _ = inputs
        q, k, _ = attn.qkv(x, cos_sin)
        group = q.shape[1] // k.shape[1]  # query heads that share a key head
        k = k.repeat_interleave(group, dim=1)  # (B, nh, T, hs)
        T = x.shape[1]
        future_mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(future_mask, -torch.inf)
        summaries.append(summarize(scores.softmax(dim=-1)))

    with forward_pre_hooks([block.attn for block in model.h], hook):
        model(idx)
    return summaries


def residual_to_logits(model, x):
    """The logits (..., V) if the residual stream x (..., C) were the last one."""
    return model.unembed(model.ln_f(x))


@torch.no_grad()
def logit_lens(model, N, ids):
    """The likeliest next token after each layer, and its probability: (L + 1, T) each.

    Of ids (T,), at most block_size. The first row is after the embedding, the last one the model's
    output. Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). Course: page 6.
    """
    probs = []
    likeliest = []
    for x in residual_streams(model, ids[None]):
        best = residual_to_logits(model, x[0])[:, :N].softmax(dim=-1).max(dim=-1)
        probs.append(best.values)
        likeliest.append(best.indices)
    return torch.stack(probs), torch.stack(likeliest)


@torch.no_grad()
def surprisal(model, ids):
    """-log2 of the probability that the model gave each of ids (T,), in bits (T,).

    The first one's is NaN. A text longer than block_size is read in windows that overlap by half,
    so that each token has at least half a block_size of context. Course: page 7.
    """
    block_size = model.config.block_size
    bits = [torch.tensor([math.nan])]
    for window, first in sliding_windows([ids.numpy()], block_size, stride=max(block_size // 2, 1)):
        window = torch.from_numpy(window).to(model.wte.weight.device)
        x = residual_streams(model, window[None, :-1])[-1][0, first:]  # (scored tokens, C)
        targets = window[first + 1 :]
        for rows, next_ids in zip(x.split(CHUNK_LOGITS), targets.split(CHUNK_LOGITS), strict=True):
            nats = F.cross_entropy(residual_to_logits(model, rows), next_ids, reduction="none")
            bits.append(nats.float().cpu() / math.log(2))
    return torch.cat(bits)


def mean_surprisal(bits, tokens):
    """(bits per token, bits per character) of surprisal() of a text, given its tokens' bytes.

    The first token, which is never predicted, does not count.
    """
    total_chars = sum(map(num_chars, tokens[1:]))
    return np.nanmean(bits), np.nansum(bits) / max(total_chars, 1)


@torch.no_grad()
def next_token_logits(model, N, ids):
    """The logits (N,) of the token after ids, of which the model sees the last block_size."""
    logits, _ = model(ids[None, -model.config.block_size :])
    return logits[0, -1, :N]


def sampling_probs(logits, params):
    """What sample_token draws from, given logits (N,): (N,), 0 for dropped tokens."""
    probs, ids = logits_to_probs(logits[None], params)
    probs = probs[0] / probs.sum()
    return probs if ids is None else torch.zeros_like(logits).scatter(0, ids[0], probs)


def count_draws(logits, params, num_draws, rng):
    """How often each token is drawn from logits (N,) in `num_draws` draws: (N,)."""
    N = len(logits)
    counts = torch.zeros(N)
    chunk = max(CHUNK_ELEMENTS // N, 1)
    for start in range(0, num_draws, chunk):
        rows = min(chunk, num_draws - start)
        drawn = sample_token(logits.expand(rows, N), params, rng)
        counts += drawn[:, 0].bincount(minlength=N)
    return counts
