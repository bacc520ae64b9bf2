"""From tokens to text."""

import codecs
import itertools

import torch

from seugpt.data.tokenizer import decode
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams

GPU_CHUNK = 16  # tokens fetched from a GPU at a time: asking for each one would make the GPU wait


class TextStream:
    """Tokens in, printable text out.

    It buffers bytes until they form a character, and characters that may be the beginning of a stop
    sequence. A text ends with one of these, or with one of the ids in `stop_ids` (`stopped`).
    """

    def __init__(self, tokenizer, stop_sequences=(), stop_ids=()):
        self.tokenizer = tokenizer
        self.stop_sequences = stop_sequences
        self.stop_ids = stop_ids
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.buffer = ""
        self.finished = False
        self.stopped = False

    def feed(self, token, last=False):
        """The text that is certain after one more token; "" once it has ended (`finished`)."""
        if self.finished:
            return ""
        if token in self.stop_ids:
            self.finished = self.stopped = True
            return self.buffer + self.utf8.decode(b"", final=True)
        text = self.buffer + self.utf8.decode(self.tokenizer.decode_bytes([token]), final=last)
        stops = [text.index(stop) for stop in self.stop_sequences if stop in text]
        self.stopped = bool(stops)
        self.finished = last or self.stopped
        if stops:
            return text[: min(stops)]
        end = len(text) if last else len(text) - self.partial_stop_length(text)
        self.buffer = text[end:]
        return text[:end]

    def partial_stop_length(self, text):
        """The length of the longest end of `text` that begins a stop sequence."""
        beginnings = [stop[:n] for stop in self.stop_sequences for n in range(len(stop))]
        return max((len(part) for part in beginnings if text.endswith(part)), default=0)


def stream_texts(tokens, streams, max_new_tokens):
    """Yields (row, text) for each token of each row; text is what is certain by then.

    `tokens`: as from generate_tokens; `streams`: a TextStream for each row. Ends once the texts of
    all rows have.
    """
    for count, ids in enumerate(fetch(tokens), start=1):
        for row, token in enumerate(ids):
            yield row, streams[row].feed(token, last=count == max_new_tokens)
        if all(stream.finished for stream in streams):
            return


def fetch(tokens):
    """Tensors (B,) as lists: one by one from a CPU, GPU_CHUNK at a time from another device."""
    tokens = iter(tokens)
    for first in tokens:
        if first.is_cpu:
            yield first.tolist()
        else:
            rest = itertools.islice(tokens, GPU_CHUNK - 1)
            yield from torch.stack([first, *rest]).tolist()


def sample_text(model, tokenizer, prompt, seed, max_new_tokens=120):
    """The model's continuation of the prompt's ids, drawn from a generator of its own."""
    rng = torch.Generator(model.wte.weight.device).manual_seed(seed)
    params = SamplingParams()
    decoder = Decoder(model, 1, len(prompt) + max_new_tokens)
    tokens = generate_tokens(decoder, [prompt], max_new_tokens, tokenizer.vocab_size, params, rng)
    return decode(tokenizer, torch.cat(list(tokens)).tolist())
