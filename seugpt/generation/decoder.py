"""Generation: from logits to the next token, from token to token through the cache, from tokens to text.

Shapes: B rows, T tokens, V vocabulary, L slots of the cache.
"""

import codecs
import copy
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from seugpt.data.tokenizer import decode


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises ValueError, one line for each field that is out of range."""

    temperature: Annotated[
        float, "1 as the model believes, below 1 more careful, 0 always the likeliest token"
    ] = 0.8
    top_k: Annotated[int | None, "draw among the k likeliest tokens; 0 or None: among all"] = 200
    top_p: Annotated[
        float, "draw among the likeliest tokens that together reach this probability; 1: among all"
    ] = 1.0
    min_p: Annotated[
        float, "leave out tokens below this share of the likeliest one's probability; 0: none"
    ] = 0.0
    repetition_penalty: Annotated[
        float, "above 1: make every token of the prompt and the reply less likely"
    ] = 1.0
    frequency_penalty: Annotated[
        float, "subtracted from a token's logit each time that the reply has it"
    ] = 0.0
    presence_penalty: Annotated[
        float, "subtracted once from a token's logit if the reply has it"
    ] = 0.0

    def __post_init__(self):
        problems = []
        if self.temperature < 0:
            problems.append(f"temperature={self.temperature} must be at least 0")
        if self.top_k is not None and self.top_k < 0:
            problems.append(f"top_k={self.top_k} must be at least 0")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            problems.append(f"min_p={self.min_p} must be at least 0 and at most 1")
        if not 0 < self.repetition_penalty <= 100:
            problems.append(
                f"repetition_penalty={self.repetition_penalty} must be above 0 and at most 100; 1 is none"
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if abs(getattr(self, name)) > 100:
                problems.append(f"{name}={getattr(self, name)} must lie between -100 and 100")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def counts(self):
        """Whether drawing depends on how often each token was there."""
        return (
            self.repetition_penalty != 1
            or self.frequency_penalty != 0
            or self.presence_penalty != 0
        )


def penalize(logits, sampling, prompt, reply):
    """Logits (B, V) made less likely by what was there; prompt, reply: how often each token was, (B, V).

    repetition_penalty divides positive logits and multiplies negative ones (CTRL, 1909.05858); the two others subtract,
    as in OpenAI's interface.
    """
    penalized = torch.where(
        logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty
    )
    logits = torch.where(prompt + reply > 0, penalized, logits)
    return logits - sampling.frequency_penalty * reply - sampling.presence_penalty * (reply > 0)


def distribution(logits, sampling):
    """What the next token is drawn from. logits (B, V) float32 -> probabilities (B, k) and whose they are, ids (B, k).

    None in place of the ids: they are 0 to V - 1. The sum may be below 1 where tokens were left out.
    """
    if sampling.temperature < 1e-5:  # 0, or so close that the quotient would overflow
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.ones_like(likeliest, dtype=logits.dtype), likeliest
    logits, V, index = logits / sampling.temperature, logits.shape[-1], None
    k = min(sampling.top_k or V, V)
    if k < V or sampling.top_p < 1:
        logits, index = logits.topk(k)  # (B, k), the likeliest first
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:  # nucleus: 1904.09751
        outside = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        outside[:, 0] = False  # also where top_p is too small for float32
        probabilities = probabilities.masked_fill(outside, 0)
    if sampling.min_p > 0:  # 2407.01082
        least = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities, index


def next_token(logits, sampling, generator=None):
    """Draw one token for each row, without waiting for the device. logits (B, V) float32 -> (B, 1)."""
    probabilities, index = distribution(logits, sampling)
    if index is not None and index.shape[-1] == 1:  # there is nothing to draw
        return index
    # The smallest of exponential variables with these rates is distributed as the probabilities are. torch.multinomial
    # draws so too, but first asks the device whether the probabilities are valid, and waits for the answer.
    race = probabilities / torch.empty_like(probabilities).exponential_(generator=generator)
    drawn = race.argmax(dim=-1, keepdim=True)  # (B, 1)
    return drawn if index is None else index.gather(-1, drawn)


def direct(module):
    """The forward method of a copy of the module that finds its parts at once, and calls no hooks.

    nn.Module searches three dictionaries for a part and looks for hooks before it calls it, in Python, 130 times
    in a step of four layers (docs/SPEED.md). The weights are the same tensors.
    """
    if isinstance(module, nn.ModuleList):
        return [direct(part) for part in module]
    copied = copy.copy(module)
    vars(copied).update(
        {**module._parameters, **{name: direct(part) for name, part in module.named_children()}}
    )
    return copied.forward


class Decoder:
    """A model with the cache of a batch: `prefill` reads the prompts, `step` one more token of each row."""

    def __init__(self, model, batch_size, length, compile=False):
        """For contexts of up to `length` tokens (at most block_size); the model must be in eval mode from here on.

        compile=True: the step is captured as a CUDA graph, and elsewhere compiled. Where that fails, `failure` says why
        in one line, and the step runs as it is.
        """
        self.model, self.batch_size, self.failure = model, batch_size, None
        self.cache = model.make_cache(batch_size, min(length, model.config.block_size))
        self.forward = direct(model)
        self.step = self.eager_step
        if compile:
            try:
                self.step = (
                    self.captured_step() if model.wte.weight.is_cuda else self.compiled_step()
                )
            except torch.OutOfMemoryError:
                raise
            except (
                Exception
            ) as error:  # torch, Triton and the C compiler each raise their own kinds
                self.step, self.failure = (
                    self.eager_step,
                    " ".join(f"{type(error).__name__}: {error}".split())[:200],
                )

    @torch.inference_mode()
    def prefill(self, rows):
        """Forget everything and read one tensor of ids (T,) for each row; shorter rows are padded on the left.

        Returns the logits after each row's last token, (B, 1, V).
        """
        longest = max(map(len, rows))
        self.cache.reset(torch.tensor([[longest - len(row)] for row in rows]))
        return self.forward(
            torch.stack([F.pad(row, (longest - len(row), 0)) for row in rows]), cache=self.cache
        )[0]

    @torch.inference_mode()
    def eager_step(self, idx):
        """idx (B, 1), the next token of each row -> logits (B, 1, V)."""
        return self.forward(idx, cache=self.cache)[0]

    def captured_step(self):
        """The step as one CUDA graph, so that its hundreds of kernels start with a single call from Python."""
        idx = torch.zeros(
            (self.batch_size, 1), dtype=torch.long, device=self.model.wte.weight.device
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(
                3
            ):  # what runs only once, such as choosing kernels, must not be captured
                self.cache.reset(0)
                self.eager_step(idx)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.eager_step(idx)

        def step(following):
            idx.copy_(following)
            graph.replay()
            return logits

        return step

    def compiled_step(self):
        step = torch.compile(
            lambda idx: self.model(idx, cache=self.cache)[0], dynamic=False
        )  # all have these shapes
        # Not in inference_mode, as the eager step is: compiling inside it ends in an internal error of torch 2.13.
        with torch.no_grad():
            step(
                torch.zeros(
                    (self.batch_size, 1), dtype=torch.long, device=self.model.wte.weight.device
                )
            )
        return step


@torch.no_grad()
def generate(decoder, prompts, max_new_tokens, vocab_size, sampling, generator=None):
    """Go on from each prompt, a sequence of ids; yields max_new_tokens times the next token of each row, (B,).

    Prompts may differ in length, and each row is what it would be alone. The model sees at most block_size tokens.
    Beyond, with rotary positions the window rolls: each token attends to the last block_size ones. A learned position
    is fixed to its token, so there the window starts anew with the row's last block_size / 2 tokens.
    Ids from vocab_size on are padding and never drawn. `generator` is a torch.Generator on the model's device.
    """
    config, device = decoder.model.config, decoder.model.wte.weight.device
    prompts = [
        torch.tensor([int(i) for i in prompt], dtype=torch.long, device=device)
        for prompt in prompts
    ]
    rows = [prompt[-config.block_size :] for prompt in prompts]  # what the window holds
    lengths, new = [len(row) for row in rows], []
    logits = decoder.prefill(rows)
    if sampling.counts:
        reply = torch.zeros((len(rows), vocab_size), device=device)
        prompt = torch.stack([p.bincount(minlength=vocab_size)[:vocab_size] for p in prompts])
    for count in range(max_new_tokens):
        scores = logits[:, -1, :vocab_size].float()  # (B, V)
        if sampling.counts:
            scores = penalize(scores, sampling, prompt, reply)
        following = next_token(scores, sampling, generator)  # (B, 1)
        if sampling.counts:
            reply.scatter_add_(1, following, torch.ones_like(following, dtype=reply.dtype))
        yield following[:, 0]
        if count == max_new_tokens - 1:
            return
        if (
            config.position == "learned"
        ):  # a rolling window never looks back, and need not remember millions of them
            new.append(following)
            lengths = [n + 1 for n in lengths]
        if max(lengths) > config.block_size:
            rows = [
                torch.cat((row, more))
                for row, more in zip(rows, torch.cat(new, dim=1), strict=True)
            ]
            half = max(config.block_size // 2, 1)
            rows = [row if len(row) <= config.block_size else row[-half:] for row in rows]
            lengths, new = [len(row) for row in rows], []
            logits = decoder.prefill(rows)
        else:
            logits = decoder.step(following)


def short_sample(model, tokenizer, prompt, seed, tokens=120):
    """The text that the model writes after the prompt's ids, with dice of its own."""
    dice = torch.Generator(model.wte.weight.device).manual_seed(seed)
    decoder = Decoder(model, 1, len(prompt) + tokens)
    ids = torch.cat(
        list(generate(decoder, [prompt], tokens, tokenizer.vocab_size, Sampling(), dice))
    )
    return decode(tokenizer, ids.tolist())


class TextStream:
    """Tokens in, printable text out: holds back bytes until they form a character, and what may become a stop text."""

    def __init__(self, tokenizer, stop=()):
        self.tokenizer, self.stop = tokenizer, stop
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.finished = "", False

    def feed(self, token, last=False):
        """The text that is now sure; "" once a stop text was met, which `finished` then says."""
        if self.finished:
            return ""
        text = self.held + self.decoder.decode(self.tokenizer.decode_bytes([token]), final=last)
        ends = [text.index(stop) for stop in self.stop if stop in text]
        self.finished = last or bool(ends)
        if ends:
            return text[: min(ends)]
        sure = len(text) if last else len(text) - self.stop_may_have_begun(text)
        self.held = text[sure:]
        return text[:sure]

    def stop_may_have_begun(self, text):
        """The length of the longest end of `text` that is the beginning of a stop text."""
        return max(
            (n for stop in self.stop for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
