"""The rows of one model that are generated together."""

import math
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from seugpt.generation.continuous import ContinuousDecoder
from seugpt.generation.sampling import SamplingParams, apply_penalties, sample_token
from seugpt.generation.text_stream import TextStream
from seugpt.server.errors import ApiError


@dataclass(frozen=True)
class GenerationRequest:
    """One text to be written. `model`: a name; `num_top`: alternatives to report at each token.

    `score_prompt`: report the prompt's tokens too, each with its probability.
    """

    model: str
    prompt_ids: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    num_top: int = 0
    stop: tuple[str, ...] = ()
    score_prompt: bool = False

    @property
    def params(self):
        names = SamplingParams.__dataclass_fields__
        return SamplingParams(**{name: getattr(self, name) for name in names})


@dataclass
class Token:
    """A token, and the text that is certain with it: "" while a character is incomplete.

    `logprob` (in nats, of the model's own distribution; None for the first token of a prompt) and
    `top`, the likeliest [(id, logprob)] there. `finish_reason`: "stop" or "length" on the last one.
    """

    id: int
    text: str
    logprob: float | None
    top: list[tuple[int, float]]
    is_prompt: bool = False
    finish_reason: str | None = None


@dataclass(eq=False)
class Row:
    """A request in work. `deliver(row, Token or Exception)` hands on what there is to report.

    `queue`: where the event loop awaits it, each token (`streams`) or all of them at the end;
    deadline: of time.monotonic().
    """

    request: GenerationRequest
    index: int
    deliver: object
    deadline: float
    queue: object
    streams: bool
    undelivered: list = field(default_factory=list)
    is_over: bool = False  # the text has ended, or nobody waits for it any more
    rng: torch.Generator | None = None
    stream: TextStream | None = None
    num_tokens: int = 0
    params: SamplingParams | None = None
    prompt_counts: torch.Tensor | None = None  # (V,), where a penalty needs them
    reply_counts: torch.Tensor | None = None


class Batch:
    """The rows of one LoadedModel, and those that wait for a place among them."""

    def __init__(self, loaded, max_rows):
        self.loaded = loaded
        self.max_rows = max_rows
        self.waiting = deque()
        self.restart()

    def restart(self):
        """Forget all rows in work."""
        self.decoder = ContinuousDecoder(self.loaded.model, self.max_rows)
        self.rows = []

    def is_idle(self):
        return not self.rows and not self.waiting

    def next_waiting(self):
        """Take the next row from those that wait; None if there is none, or no place.

        Whoever calls it holds the lock under which rows are added to `waiting`.
        """
        self.drop_finished()
        if self.waiting and len(self.rows) < self.max_rows:
            return self.waiting.popleft()
        return None

    def advance(self):
        """Give a token to each row. Returns how many there were."""
        if not self.rows:
            return 0
        logits = self.decoder.step().float()  # (B, V)
        next_ids = self.sample(logits)
        for row, token in zip(self.rows, self.describe(logits, next_ids), strict=True):
            self.take(row, token)
        for number, row in enumerate(self.rows):
            if not row.is_over:
                self.decoder.append(number, next_ids[number])
        return len(next_ids)

    def drop_finished(self):
        """Free the rows whose text has ended, whose client has left or whose time is over."""
        self.waiting = deque(row for row in self.waiting if not self.check_over(row))
        for number in reversed(range(len(self.rows))):
            if self.check_over(self.rows[number]):
                self.decoder.remove(number)
                self.rows[number] = self.rows[-1]
                self.rows.pop()

    def check_over(self, row):
        if not row.is_over and time.monotonic() > row.deadline:
            row.is_over = True
            row.deliver(row, ApiError(504, "the request took longer than max_seconds allows"))
        return row.is_over

    def admit(self, row):
        request = row.request
        tokenizer = self.loaded.tokenizer
        device = self.loaded.model.wte.weight.device
        row.params = request.params
        row.rng = torch.Generator(device).manual_seed(request.seed)
        row.stream = TextStream(tokenizer, request.stop, tokenizer.special.eos_ids(tokenizer))
        if request.score_prompt:
            self.score_prompt(row)
        if not request.max_tokens:
            row.is_over = True
            return
        self.decoder.add(request.prompt_ids, request.max_tokens)
        self.rows.append(row)
        if row.params.needs_counts:
            ids = torch.tensor(request.prompt_ids, device=device)
            row.prompt_counts = ids.bincount(minlength=tokenizer.vocab_size).float()
            row.reply_counts = torch.zeros_like(row.prompt_counts)

    @torch.inference_mode()
    def score_prompt(self, row):
        """Report the tokens of a prompt of at most block_size + 1 of them."""
        ids = torch.tensor([row.request.prompt_ids], device=self.loaded.model.wte.weight.device)
        logprobs = [None]
        tops = [[]]
        if ids.shape[1] > 1:
            logits, _ = self.loaded.model(ids[:, :-1], ids[:, 1:].contiguous())  # (1, T, V)
            rest = self.logprobs(logits[0].float(), ids[0, 1:], row.request.num_top)
            logprobs += rest[0]
            tops += rest[1]
        stream = TextStream(self.loaded.tokenizer)
        for number, token in enumerate(row.request.prompt_ids):
            is_last = number == len(row.request.prompt_ids) - 1
            text = stream.feed(token, last=is_last)
            event = Token(token, text, logprobs[number], tops[number], is_prompt=True)
            if is_last and not row.request.max_tokens:
                event.finish_reason = "length"
            row.deliver(row, event)

    def logprobs(self, logits, ids, num_top):
        """Of logits (B, V) and ids (B,): the ids' log-probabilities, and the likeliest [(id, lp)].

        Two lists with an item for each row.
        """
        logprobs = logits.log_softmax(dim=-1)  # (B, V)
        chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
        if not all(map(math.isfinite, chosen)):
            raise FloatingPointError("the model computes NaN or infinity; try --dtype=float32")
        vocab_size = self.loaded.tokenizer.vocab_size
        values, top_ids = logprobs[:, :vocab_size].topk(min(num_top, vocab_size))  # (B, num_top)
        pairs = zip(top_ids.tolist(), values.tolist(), strict=True)
        return chosen, [list(zip(*pair, strict=True)) for pair in pairs]

    def sample(self, logits):
        """Draw each row's next token as its request says. logits (B, V) -> list of B ids.

        Rows with the same parameters are drawn together, each with dice of its own.
        """
        groups = {}
        for number, row in enumerate(self.rows):
            groups.setdefault(row.params, []).append(number)
        next_ids = [0] * len(self.rows)
        for params, numbers in groups.items():
            rows = [self.rows[number] for number in numbers]
            ids = self.sample_group(logits[numbers], params, rows)
            for number, token in zip(numbers, ids.tolist(), strict=True):
                next_ids[number] = token
        return next_ids

    @torch.inference_mode()
    def sample_group(self, logits, params, rows):
        """logits (B, V) of rows with the same parameters -> ids (B,)."""
        logits = logits[:, : self.loaded.tokenizer.vocab_size]
        if params.needs_counts:
            prompt_counts = torch.stack([row.prompt_counts for row in rows])
            reply_counts = torch.stack([row.reply_counts for row in rows])
            logits = apply_penalties(logits, params, prompt_counts, reply_counts)
        next_ids = sample_token(logits, params, [row.rng for row in rows])[:, 0]
        if params.needs_counts:
            for row, token in zip(rows, next_ids, strict=True):
                row.reply_counts[token] += 1
        return next_ids

    def describe(self, logits, next_ids):
        """The Token of each row, without its text."""
        ids = torch.tensor(next_ids, device=logits.device)
        num_top = max(row.request.num_top for row in self.rows)
        logprobs, tops = self.logprobs(logits, ids, num_top)
        for number, row in enumerate(self.rows):
            top = tops[number][: row.request.num_top]
            yield Token(next_ids[number], "", logprobs[number], top)

    def take(self, row, token):
        """Hand a row's next token on, and see whether it was the last."""
        row.num_tokens += 1
        is_last = row.num_tokens == row.request.max_tokens
        token.text = row.stream.feed(token.id, last=is_last)
        if row.stream.finished:
            row.is_over = True
            token.finish_reason = "stop" if row.stream.stopped else "length"
        row.deliver(row, token)
