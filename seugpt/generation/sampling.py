"""From logits to the next token.

Shapes: B rows, V vocabulary, k candidates.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

GREEDY_TEMPERATURE = 1e-5  # below this the quotient would overflow; the likeliest token is taken


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn."""

    temperature: Annotated[float, "randomness: below 1 safer, above 1 wilder, 0 greedy", ">= 0"] = (
        0.8
    )
    top_k: Annotated[int | None, "keep the k likeliest tokens; 0 or None: all", ">= 0"] = 200
    top_p: Annotated[
        float,
        "keep the likeliest tokens that together reach this probability; 1: all",
        "> 0",
        "<= 1",
    ] = 1.0
    min_p: Annotated[
        float, "drop tokens below this fraction of the likeliest one's probability", ">= 0", "<= 1"
    ] = 0.0
    repetition_penalty: Annotated[
        float, "above 1: make tokens of the prompt and the reply less likely", "> 0", "<= 100"
    ] = 1.0
    frequency_penalty: Annotated[
        float,
        "subtracted from a token's logit for each time it is in the reply",
        ">= -100",
        "<= 100",
    ] = 0.0
    presence_penalty: Annotated[
        float, "subtracted once from the logit of each token in the reply", ">= -100", "<= 100"
    ] = 0.0

    @property
    def needs_counts(self):
        """Whether the draw depends on how often each token has occurred."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1, 0, 0)


def apply_penalties(logits, params, prompt_counts, reply_counts):
    """Logits (B, V) lowered for tokens that have occurred; the counts (B, V) say how often.

    repetition_penalty divides positive logits and multiplies negative ones (CTRL, 1909.05858); the
    other two subtract, as in OpenAI's API.
    """
    penalty = params.repetition_penalty
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(prompt_counts + reply_counts > 0, penalized, logits)
    logits = logits - params.frequency_penalty * reply_counts
    return logits - params.presence_penalty * (reply_counts > 0)


def logits_to_probs(logits, params):
    """Logits (B, V) float32 -> probabilities (B, k) and the token ids (B, k) they belong to.

    The ids are None if they are 0 to V - 1. Dropped tokens have probability 0, and the others are
    not normalized again. Course: page 7.
    """
    if params.temperature < GREEDY_TEMPERATURE:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.ones_like(likeliest, dtype=logits.dtype), likeliest
    V = logits.shape[-1]
    k = min(params.top_k or V, V)
    logits = logits / params.temperature
    ids = None
    if k < V or params.top_p < 1:
        logits, ids = logits.topk(k)  # (B, k), the likeliest first
    probs = logits.softmax(dim=-1)
    if params.top_p < 1:  # nucleus sampling, 1904.09751
        outside = probs.cumsum(dim=-1) - probs >= params.top_p
        outside[:, 0] = False  # even if top_p is too small for float32
        probs = probs.masked_fill(outside, 0)
    if params.min_p > 0:  # 2407.01082
        threshold = params.min_p * probs.amax(dim=-1, keepdim=True)
        probs = probs.masked_fill(probs < threshold, 0)
    return probs, ids


def exponential_noise(probs, rng):
    """Exp(1) noise of the shape of probs (B, k), row by row if there are several generators."""
    noise = torch.empty_like(probs)
    if not isinstance(rng, list):
        return noise.exponential_(generator=rng)
    for row, generator in zip(noise, rng, strict=True):
        row.exponential_(generator=generator)
    return noise


def sample_token(logits, params, rng=None):
    """Draw a token for each row without waiting for the device. logits (B, V) -> (B, 1).

    rng: a torch.Generator, or a list with one for each row, which is then drawn as it would be
    alone.
    """
    probs, ids = logits_to_probs(logits, params)
    if ids is not None and ids.shape[-1] == 1:  # there is no choice
        return ids
    # The argmax of p / Exp(1) is distributed as p. torch.multinomial draws that way too, but first
    # asks the device whether the probabilities are valid, and waits for the answer.
    scores = probs / exponential_noise(probs, rng)
    drawn = scores.argmax(dim=-1, keepdim=True)  # (B, 1)
    return drawn if ids is None else ids.gather(-1, drawn)
