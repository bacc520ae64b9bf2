"""What the page shows of a model's inside: the numbers that visualize.py draws.

Shapes: T tokens, L layers, nh heads, N tokens of the tokenizer.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import Annotated

import anyio
import torch
from starlette.responses import JSONResponse
from starlette.routing import Route

from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import TextStream
from seugpt.plots.internals import (
    LENS_TOKENS,
    MAX_MAP_TOKENS,
    attention_weights,
    logit_lens,
    mean_surprisal,
    next_token_logits,
    sampling_probs,
    surprisal,
)
from seugpt.plots.token_text import hex_bytes, readable_token, token_label
from seugpt.server.errors import ApiError, busy_error
from seugpt.server.request_fields import parse_fields, read_ids, read_object
from seugpt.threads import start_in_own_thread

MAX_SURPRISAL_TOKENS = 2048
MAX_WAITING = 32  # requests to look inside; they are answered one after another
NUM_BARS = 15  # of the next token
DIGITS = 5  # of a probability or an attention weight


@dataclass(frozen=True)
class TextFields:
    model: Annotated[str | None, "a name of /v1/models"] = None


@dataclass(frozen=True)
class AttentionFields(TextFields):
    layer: Annotated[int, "layer, counted from 0", ">= 0"] = 0


@dataclass(frozen=True)
class NextFields(TextFields):
    temperature: Annotated[float, "randomness", ">= 0", "<= 100"] = 1.0
    top_k: Annotated[int, "keep the k likeliest tokens; 0: all", ">= 0"] = 0
    top_p: Annotated[float, "keep the likeliest that reach it", "> 0", "<= 1"] = 1.0
    min_p: Annotated[float, "drop tokens far below the likeliest", ">= 0", "<= 1"] = 0.0


def describe_tokens(tokenizer, ids):
    """Each token's id, label and bytes, and the text that is certain with it.

    `is_open`: whether the token ends inside a character, which the next ones complete.
    """
    stream = TextStream(tokenizer)
    tokens = []
    for number, token in enumerate(ids, start=1):
        data = tokenizer.decode_bytes([token])
        text = stream.feed(token, last=number == len(ids))
        label = readable_token(data)
        is_open = bool(stream.utf8.getstate()[0])
        described = {"id": token, "label": label, "bytes": hex_bytes(data)}
        tokens.append({**described, "text": text, "is_open": is_open})
    return tokens


def rounded(tensor):
    return [round(value, DIGITS) for value in tensor.tolist()]


# What is computed of a text's ids, a list; each returns what is sent as JSON


def look_at_tokens(loaded, ids, fields):
    return {"tokens": describe_tokens(loaded.tokenizer, ids)}


def look_at_attention(loaded, ids, fields):
    """The weights of one layer, [nh][T], each row up to the token itself: it sees none after."""
    n_layer = loaded.config.n_layer
    if fields.layer >= n_layer:
        message = f"layer={fields.layer} does not exist: the model has layers 0 to {n_layer - 1}"
        raise ApiError(400, message, param="layer")
    shown = ids[: min(MAX_MAP_TOKENS, loaded.config.block_size)]
    of_layer = attention_weights(loaded.model, as_tensor(loaded, shown)[None])[fields.layer][0]
    weights = [
        [rounded(row[: n + 1]) for n, row in enumerate(of_head)]
        for of_head in of_layer.float().cpu()
    ]
    tokens = describe_tokens(loaded.tokenizer, shown)
    return {"tokens": tokens, "weights": weights, "total": len(ids)}


def look_at_next(loaded, ids, fields):
    """The likeliest next tokens: `p` to be drawn, `p_all` before top_k, top_p and min_p."""
    N = loaded.tokenizer.vocab_size
    logits = next_token_logits(loaded.model, N, as_tensor(loaded, ids)).float().cpu()
    params = SamplingParams(fields.temperature, fields.top_k, fields.top_p, fields.min_p)
    all_probs = sampling_probs(logits, SamplingParams(fields.temperature, top_k=None))
    probs = sampling_probs(logits, params)
    order = logits.argsort(descending=True, stable=True)[:NUM_BARS]
    columns = zip(order.tolist(), rounded(probs[order]), rounded(all_probs[order]), strict=True)
    top = [
        {"id": token, "label": token_label(loaded.tokenizer, token), "p": p, "p_all": p_all}
        for token, p, p_all in columns
    ]
    rest = max(1 - probs[order].sum().item(), 0.0)
    return {"top": top, "num_others": N - len(top), "p_others": round(rest, DIGITS)}


def look_through_lens(loaded, ids, fields):
    """What each layer would predict after each token: L + 1 rows of T."""
    tokenizer = loaded.tokenizer
    shown = ids[: min(LENS_TOKENS, loaded.config.block_size)]
    idx = as_tensor(loaded, shown)
    probs, likeliest = logit_lens(loaded.model, tokenizer.vocab_size, idx)  # (L + 1, T) each
    rows = [
        [
            {"id": token, "label": token_label(tokenizer, token), "p": p}
            for token, p in zip(token_row.tolist(), rounded(prob_row.float()), strict=True)
        ]
        for token_row, prob_row in zip(likeliest, probs, strict=True)
    ]
    next_ids = ids[1 : len(shown) + 1]
    tokens = describe_tokens(tokenizer, shown)
    return {"tokens": tokens, "rows": rows, "next_ids": next_ids, "total": len(ids)}


def look_at_surprisal(loaded, ids, fields):
    """Bits of each token; None for the first one, which is never predicted."""
    shown = ids[:MAX_SURPRISAL_TOKENS]
    if len(shown) < 2:
        message = "text has one token, and the first one is never predicted; give a longer text"
        raise ApiError(400, message, param="text", code="one_token")
    bits = surprisal(loaded.model, as_tensor(loaded, shown))
    data = [loaded.tokenizer.decode_bytes([token]) for token in shown]
    per_token, per_char = mean_surprisal(bits.numpy(), data)
    tokens = describe_tokens(loaded.tokenizer, shown)
    return {
        "tokens": tokens,
        "bits": [None, *rounded(bits[1:])],
        "per_token": float(per_token),
        "per_char": float(per_char),
        "uniform": math.log2(loaded.tokenizer.vocab_size),
        "total": len(ids),
    }


def as_tensor(loaded, ids):
    return torch.tensor(ids, device=loaded.model.wte.weight.device)


# Routes

LOOKS = {
    "/api/tokens": (look_at_tokens, TextFields),
    "/api/attention": (look_at_attention, AttentionFields),
    "/api/next": (look_at_next, NextFields),
    "/api/logit_lens": (look_through_lens, TextFields),
    "/api/surprisal": (look_at_surprisal, TextFields),
}


def inspect_routes(engine):
    """The routes of LOOKS: {model, text or ids, ...} -> JSON."""
    turn = anyio.CapacityLimiter(1)  # these compute beside the thread that generates
    return [
        Route(path, endpoint(engine, turn, look, fields_class), methods=["POST"])
        for path, (look, fields_class) in LOOKS.items()
    ]


def endpoint(engine, turn, look, fields_class):
    async def answer(request):
        content = await read_object(request)
        fields = parse_fields(fields_class, content, special=("text", "ids"))
        loaded = engine.find(fields.model)
        ids = await read_ids(loaded.tokenizer, content, engine.limits)
        if turn.statistics().tasks_waiting >= MAX_WAITING:
            raise busy_error(f"{MAX_WAITING} requests to look inside wait; try again in a second")
        async with turn:
            looking = start_in_own_thread(locked, look, loaded, ids, fields)
            result = await asyncio.wrap_future(looking)
        return JSONResponse(result)

    return answer


def locked(look, loaded, ids, fields):
    """A look at a model that nobody else has put hooks on."""
    with loaded.lock, torch.inference_mode():
        return look(loaded, ids, fields)
