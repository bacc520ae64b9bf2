"""Measure a model exactly: its loss, perplexity and bits per byte over a text; and zero-shot tasks.

    python evaluate.py --out_dir=out-quickstart
    python evaluate.py --out_dir=out-quickstart --input=book.txt --stride=32
    python evaluate.py --out_dir=gpt2 --tasks=lambada_openai,hellaswag

Every token but the first is scored once. Losses over different tokenizers compare in bits per byte, of the same text.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from tqdm import tqdm

from model import IGNORE, pick_device, pick_dtype
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.cli.values import in_utf8
from seugpt.data.dataset import Dataset, dataset_path
from seugpt.data.text import Text, cut_between_words, find_files
from seugpt.data.tokenizer import characters_in
from seugpt.errors import ConfigError, DataError
from seugpt.evaluation.loss import batched, summed_loss, windows
from seugpt.training.memory import memory_guard

TOKENS_AT_ONCE = 8192  # of GPT-2's, their logits take 1.6 GB
UNITS = ("tokens", "bytes", "characters")


@dataclass(frozen=True)
class EvaluateConfig:
    out_dir: Annotated[
        str, "what to evaluate: a run's folder, a checkpoint, or anything that init_from takes"
    ] = "out"
    dataset: Annotated[
        str | None, "folder in data/; None: the one that the model was trained on"
    ] = None
    split: Annotated[Literal["val", "train"], "which part of it"] = "val"
    input: Annotated[
        str | None, "a UTF-8 text instead: a file, or a folder whose files are all read"
    ] = None
    stride: Annotated[
        int, "score the last so many tokens of each window, which overlap; 0: all, side by side"
    ] = 0
    batch_size: Annotated[
        int | None, "windows, or texts of a task, at a time; None: as many as have 8,192 tokens"
    ] = None
    tasks: Annotated[
        str | None, "lm-evaluation-harness's, as in lambada_openai,hellaswag, or their .yaml files"
    ] = None
    num_fewshot: Annotated[
        int | None, "solved examples before each question of a task; None: as the task says"
    ] = None
    limit: Annotated[int | None, "questions of each task, to try it; None: all"] = None
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "of the matrix products; auto: float32 on the CPU",
    ] = "auto"

    def __post_init__(self):
        values, texts = vars(self), ("out_dir", "dataset", "input", "tasks")
        lowest = {"batch_size": 1, "stride": 0, "num_fewshot": 0, "limit": 1}
        problems = [f"{name}= is empty" for name in texts if values[name] == ""]
        problems += [
            f"{name}={values[name]} must be at least {low}"
            for name, low in lowest.items()
            if values[name] is not None and values[name] < low
        ]
        apart = [
            ("dataset", "input"),
            ("tasks", "dataset"),
            ("tasks", "input"),
            ("tasks", "stride"),
        ]
        problems += [
            f"{a}={values[a]} and {b}={values[b]}: one only"
            for a, b in apart
            if values[a] and values[b]
        ]
        lonely = [
            name
            for name in ("num_fewshot", "limit")
            if self.tasks is None and values[name] is not None
        ]
        problems += [
            f"{name}={values[name]} is for tasks; name some with --tasks=" for name in lonely
        ]
        if problems:
            raise ValueError("\n".join(problems))


@dataclass
class Source:
    """A text in tokens: `pieces` of ids, one after the other, of which the model and `tokenizer` know each."""

    name: str
    tokenizer: object
    pieces: Iterator[np.ndarray]
    size: int  # of the whole text, as it is known beforehand
    unit: int  # of `size`, one of UNITS
    notes: list[str]


def split_of(content, options):
    """A split of a data set, prepared by us or elsewhere. Raises ConfigError, DataError, CheckpointError."""
    name = options.dataset or content["train_config"].get("dataset")
    if not isinstance(name, str):
        raise ConfigError(
            f"{content['path']} does not say what text it was trained on; name one: --dataset=NAME or --input=FILE"
        )
    dataset = Dataset(dataset_path(name))
    weights.check_tokenizer(content, dataset.tokenizer.spec(), name)
    V = min(dataset.tokenizer.vocab_size, weights.config_of(content).vocab_size)
    dataset.check_ids(options.split, V)  # before hours of work, not after
    ids, known = dataset.ids[options.split], dataset.bytes[options.split]
    size, unit = (len(ids), 0) if known is None else (known, 1)
    pieces = (piece for _, piece in ids.pieces())
    return Source(
        f"{dataset.path}, {options.split}", dataset.tokenizer, pieces, size, unit, dataset.notes
    )


def text_of(content, options):
    """A text that the checkpoint's own tokenizer cuts, as prepare.py does, in pieces. Raises DataError."""
    tokenizer = weights.tokenizer_of(content)
    text = Text(find_files(options.input), tokenizer.separator, alphabet=True)
    if unknown := sorted(text.alphabet - set(getattr(tokenizer, "chars", text.alphabet))):
        characters = itertools.chain.from_iterable(text.pieces())
        place = next(
            number for number, character in enumerate(characters, start=1) if character in unknown
        )
        named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:8]) + (
            ", ..." if len(unknown) > 8 else ""
        )
        raise DataError(
            f"{options.input} has what the model never saw in training, first at character {place:,}: {named}. "
            "A model of bpe or gpt2 tokens knows every text"
        )
    pieces = (tokenizer.encode(piece) for piece in cut_between_words(text.pieces()))
    return Source(in_utf8(options.input), tokenizer, pieces, text.characters, 2, [])


def token_sizes(tokenizer):
    """What each token adds to a text, int64 (V, 3): itself, its UTF-8 bytes, the characters that begin in it."""
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    return np.array([[1, len(token), characters_in(token)] for token in tokens])


class Tally:
    """What passed by of a text: `scored` of each of UNITS, `whole` with the first token, `context` tokens in all."""

    def __init__(self, source):
        self.source, self.sizes = source, token_sizes(source.tokenizer)
        self.scored, self.whole, self.context = (
            np.zeros(3, dtype=np.int64),
            np.zeros(3, dtype=np.int64),
            0,
        )

    def watch(self, batches):
        """The same batches, counted, with a bar on a terminal where they take long."""
        unit = f" {UNITS[self.source.unit]}"
        with tqdm(
            total=self.source.size, unit=unit, unit_scale=True, leave=False, disable=None, delay=2
        ) as bar:
            for x, y in batches:
                if not self.whole.any():
                    self.whole += self.sizes[x[0, 0]]
                counts = y != IGNORE
                scored = self.sizes[y[counts]].sum(axis=0)
                self.scored, self.whole = self.scored + scored, self.whole + scored
                self.context += int((np.nonzero(counts)[1] + 1).sum())
                yield x, y
                bar.update(self.whole[self.source.unit] - bar.n)


def load(options):
    """(content, model in eval mode on its device, device, autocast). Raises CheckpointError, DataError, DeviceError."""
    content = weights.load(options.out_dir)
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for float32 products, as train.py has it
    model = weights.build(content)[0].to(device).eval()
    return (
        content,
        model,
        device,
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    )


def score(content, model, device, autocast, options):
    """Print the loss over a whole text, each token but the first scored once, and what it is per byte."""
    block_size = model.config.block_size
    if options.stride > block_size:
        raise ConfigError(
            f"stride={options.stride} is above block_size={block_size}, and would leave tokens between windows unscored"
        )
    stride = options.stride or block_size
    source = split_of(content, options) if options.input is None else text_of(content, options)
    tally = Tally(source)
    batches = batched(windows(source.pieces, block_size, stride), options.batch_size)
    nats = summed_loss(model, tally.watch(batches), device, autocast)[0]
    tokens, size, characters = tally.scored.tolist()
    if not tokens:
        raise DataError(
            f"{source.name} is too short: two tokens at least, as the first is only read and never scored"
        )
    if tally.whole[source.unit] != source.size:
        source.notes.append(
            f"{source.name} has {source.size:,} {UNITS[source.unit]}, and its tokens stand for "
            f"{tally.whole[source.unit]:,}: they do not keep all of the text, and its bits are not quite those"
        )
    for note in source.notes:
        print(f"note: {note}")
    print(
        f"{source.name}: {tokens:,} tokens scored, of {size:,} bytes and {characters:,} characters"
    )
    least = block_size - stride + 1
    beyond = (
        f"; at least {least} beyond the first window" if least > 1 and tokens > block_size else ""
    )
    print(
        f"each from 1 to {min(tokens, block_size)} tokens before it, {tally.context / tokens:.1f} on average{beyond}"
    )
    print(f"loss                {nats / tokens:.4f} nats per token")
    print(f"perplexity          {(nats / tokens).exp():.4f}")
    print(f"bits per byte       {nats / math.log(2) / size:.4f}")
    print(f"bits per character  {nats / math.log(2) / characters:.4f}")


def evaluate(options):
    run = score
    if options.tasks is not None:
        try:
            from seugpt.evaluation.harness import run
        except ModuleNotFoundError as error:
            command = "python -m pip install lm_eval==0.4.13"
            raise ConfigError(f"--tasks needs the package {error.name}: {command}") from error
    content, model, device, autocast = load(options)
    batch_size = options.batch_size or max(TOKENS_AT_ONCE // model.config.block_size, 1)
    for line in [*content.get("notes", []), checkpoint.describe(content)]:
        print(line, flush=True)
    run(content, model, device, autocast, replace(options, batch_size=batch_size))


def main(argv=None):
    with command():
        (options,) = Options(argv, EvaluateConfig, description=__doc__).build()
        with memory_guard(
            f"fewer at a time, as in --batch_size={max((options.batch_size or 8) // 2, 1)}"
        ):
            evaluate(options)


if __name__ == "__main__":
    main()
