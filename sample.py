"""Let a trained model write.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:"
    python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt --num_samples=1

The tokenizer comes out of the checkpoint, so that nothing else is needed beside it (GPT-2's is tiktoken's to fetch).
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

import checkpoint
import config
from checkpoint import CheckpointError
from data import DataError
from data.tokenizer import load_tokenizer
from model import DeviceError, autocast, compile_model, out_of_memory_advice, pick_device, pick_dtype


@dataclass(frozen=True)
class SampleConfig:
    init_from: Annotated[str, "resume: the checkpoint in out_dir; or the path of a checkpoint or its folder"] = "resume"
    out_dir: Annotated[str, "folder of a training run: best.pt, else latest.pt, is taken"] = "out"
    start: Annotated[str, "the text to go on from, or FILE:path of a UTF-8 file"] = "\n"
    num_samples: Annotated[int, "samples to draw, all in one batch"] = 10
    max_new_tokens: Annotated[int, "tokens in each sample"] = 500
    temperature: Annotated[float, "1 as the model believes, below 1 more careful, 0 always the likeliest token"] = 0.8
    top_k: Annotated[int | None, "draw among the k likeliest tokens; 0 or None: among all"] = 200
    top_p: Annotated[float, "draw among the likeliest tokens that together reach this probability; 1: among all"] = 1.0
    stop: Annotated[tuple[str, ...], "end a sample before this text; may be given several times"] = ()
    seed: Annotated[int, "the same seed gives the same samples on the same machine"] = 1337
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "number format of the matrix products"] = "auto"
    compile: Annotated[bool, "torch.compile the model: pays only for very long samples"] = False

    def __post_init__(self):
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("num_samples", "max_new_tokens")
            if getattr(self, name) < 1
        ]
        if self.temperature < 0:
            problems.append(f"temperature={self.temperature} must be at least 0")
        if self.top_k is not None and self.top_k < 0:
            problems.append(f"top_k={self.top_k} must be at least 0")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must be above 0 and at most 1")
        if not self.start:
            problems.append("start= is empty; a model needs at least one character to go on from")
        if "" in self.stop:
            problems.append("stop= is empty: every text contains it")
        if problems:
            raise ValueError("\n".join(problems))


def next_token(logits, temperature, top_k, top_p, generator):
    """Draw one token for each row. logits (B, V) float32 -> (B, 1)."""
    if temperature < 1e-5:  # 0, or so close that the quotient would overflow
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)  # probability of all likelier tokens
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)


@torch.no_grad()
def generate(model, idx, max_new_tokens, vocab_size, *, temperature=1.0, top_k=None, top_p=1.0, generator=None):
    """Go on from idx (B, T): yields max_new_tokens times the next token of each row, (B,).

    The model sees the last block_size tokens. Rows of the embedding from vocab_size on are padding and never drawn.
    `generator` is a torch.Generator on the model's device. The model should be in eval mode.
    """
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.config.block_size :])
        following = next_token(logits[:, -1, :vocab_size].float(), temperature, top_k, top_p, generator)
        idx = torch.cat((idx[:, -model.config.block_size :], following), dim=1)
        yield following[:, 0]


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
        return max((n for stop in self.stop for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


def read_start(start):
    """The start's text, or the text of the file that it names. Raises DataError."""
    if not start.startswith("FILE:"):
        if not start.isascii() and any("\ud800" <= c <= "\udfff" for c in start):  # bytes that the locale cannot decode
            raise DataError("the start is not UTF-8; write it into a file and use --start=FILE:path")
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (offset {error.start:,})") from error
    if not text:
        raise DataError(f"{path} is empty; a model needs at least one character to go on from")
    return text


def encode_start(tokenizer, start):
    try:
        return tokenizer.encode(start)
    except DataError as error:
        known = getattr(tokenizer, "chars", "")
        raise DataError(f"the start has what the model never saw in training: {error}. It knows: {known!r}") from error


def sample(options):
    """Print the samples: the first one while it is being written, the others, from the same batch, after it."""
    path = checkpoint.find(options.out_dir if options.init_from == "resume" else options.init_from)
    content = checkpoint.load(path)
    tokenizer = load_tokenizer(content["tokenizer"])
    start = read_start(options.start)
    ids = encode_start(tokenizer, start)
    device = pick_device(options.device)
    model = checkpoint.build_model(content).to(device).eval()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for float32 products
    print(f"{path}: step {content['step']:,}, validation loss {content['val_loss']:.4f}", file=sys.stderr)

    idx = torch.tensor(ids, dtype=torch.long, device=device).repeat(options.num_samples, 1)  # (B, T)
    if options.compile and (failure := compile_model(model, lambda: model(idx[:, :1]))):
        print(f"torch.compile failed, so the model runs uncompiled: {failure}", file=sys.stderr)
    streams = [TextStream(tokenizer, options.stop) for _ in range(options.num_samples)]
    texts = ["" for _ in streams]
    print(start, end="", flush=True)
    with autocast(device, pick_dtype(options.dtype, device)):
        tokens = generate(
            model,
            idx,
            options.max_new_tokens,
            tokenizer.vocab_size,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generator=torch.Generator(device).manual_seed(options.seed),
        )
        for count, row in enumerate(tokens, start=1):
            for i, token in enumerate(row.tolist()):
                text = streams[i].feed(token, last=count == options.max_new_tokens)
                texts[i] += text
                if i == 0 and text:
                    print(text, end="", flush=True)
            if all(stream.finished for stream in streams):
                break
    print("\n---------------")
    for text in texts[1:]:
        print(f"{start}{text}\n---------------")


def main(argv=None):
    with config.command(DataError, CheckpointError, DeviceError):
        (options,) = config.Options(argv, SampleConfig, description=__doc__).build()
        with out_of_memory_advice(f"fewer samples at a time, as in --num_samples={max(options.num_samples // 2, 1)}"):
            sample(options)


if __name__ == "__main__":
    main()
