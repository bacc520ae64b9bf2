"""Measure a model exactly: its loss, perplexity and bits per byte over a text; and zero-shot tasks.

    python evaluate.py --out_dir=out-quickstart
    python evaluate.py --out_dir=out-quickstart --input=book.txt --stride=32
    python evaluate.py --init_from=gpt2 --tasks=lambada_openai,hellaswag
    torchrun --nproc_per_node=8 evaluate.py --init_from=gpt2 --dataset=openwebtext

Every token but the first is scored once. Losses over different tokenizers compare in bits per byte
of the same text.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from model import allow_tf32, make_autocast, pick_device, pick_dtype
from seugpt.checkpoint.pretrained import (
    ModelSource,
    build_from_checkpoint,
    load_pretrained,
    tokenizer_of,
)
from seugpt.checkpoint.storage import describe
from seugpt.cli.command import command, out_of_memory_advice
from seugpt.cli.config_parser import parse_configs
from seugpt.data.text import FieldOption, KeepCrlfOption
from seugpt.errors import ConfigError, DataError
from seugpt.evaluation.eval_text import UNITS, TokenCounter, text_from_dataset, text_from_files
from seugpt.evaluation.loss import batch_windows, sliding_windows, summed_loss
from seugpt.generation.quantize import quantize
from seugpt.threads import CpuThreads, ThreadsOption
from seugpt.training.distributed import DistributedEnv, process_group

BATCH_TOKENS = 8192  # with GPT-2's vocabulary their logits take 1.6 GB
EXCLUSIVE = [("dataset", "input"), ("tasks", "dataset"), ("tasks", "input"), ("tasks", "stride")]


@dataclass(frozen=True)
class EvaluateConfig(ModelSource):
    dataset: Annotated[str | None, "as in train.py; None: the model's training data", "path"] = None
    split: Annotated[Literal["val", "train"], "split of the data set"] = "val"
    input: Annotated[str | None, "a UTF-8 text instead: a file, or a folder of files", "path"] = (
        None
    )
    field: FieldOption = None
    keep_crlf: KeepCrlfOption = False
    stride: Annotated[
        int,
        "window stride: score only each window's last `stride` tokens; 0: windows do not overlap",
        ">= 0",
    ] = 0
    batch_size: Annotated[
        int | None, "windows per batch; None: as many as have 8,192 tokens", ">= 1"
    ] = None
    tasks: Annotated[
        str | None,
        "tasks of lm-evaluation-harness, or their .yaml files, comma-separated",
        "not empty",
    ] = None
    num_fewshot: Annotated[
        int | None, "solved examples per question of a task; None: the task's default", ">= 0"
    ] = None
    limit: Annotated[int | None, "questions per task; None: all", ">= 1"] = None
    threads: ThreadsOption = None
    device: Annotated[str, "auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "autocast dtype"] = "auto"
    quantize: Annotated[Literal["int8"] | None, "weights in 8 bits, as in sample.py"] = None

    def __post_init__(self):
        problems = []
        for a, b in EXCLUSIVE:
            if getattr(self, a) and getattr(self, b):
                problems.append(
                    f"{a}={getattr(self, a)} and {b}={getattr(self, b)} cannot be used together"
                )
        if self.input is None and (self.field is not None or self.keep_crlf):
            problems.append("field= and keep_crlf= are for a text of your own; give --input=FILE")
        for name in ("num_fewshot", "limit"):
            if self.tasks is None and getattr(self, name) is not None:
                problems.append(f"{name}={getattr(self, name)} is for tasks; give --tasks=NAME")
        if problems:
            raise ValueError("\n".join(problems))


@dataclass
class Evaluator:
    """A checkpoint's model in eval mode on the device of this process."""

    ckpt: dict
    model: torch.nn.Module
    device: torch.device
    autocast: torch.autocast
    batch_size: int
    dist_env: DistributedEnv


def load_evaluator(config, dist_env):
    """Raises CheckpointError, DataError, DeviceError."""
    ckpt = load_pretrained(config.source)
    device = pick_device(config.device, dist_env.local_rank, dist_env.local_world_size)
    dtype = pick_dtype(config.dtype, device)
    allow_tf32(device)
    model, _ = build_from_checkpoint(ckpt)
    model.to(device).eval()
    if config.quantize:
        quantize(model)
        dtype = torch.bfloat16
    autocast = make_autocast(device, dtype)
    batch_size = config.batch_size or max(BATCH_TOKENS // model.config.block_size, 1)
    return Evaluator(ckpt, model, device, autocast, batch_size, dist_env)


def evaluate_text(evaluator, config):
    """Print the loss over a whole text, per token, byte and character.

    Raises ConfigError, DataError.
    """
    block_size = evaluator.model.config.block_size
    if config.stride > block_size:
        raise ConfigError(
            f"stride={config.stride} exceeds block_size={block_size}, "
            "and would leave tokens between windows unscored"
        )
    stride = config.stride or block_size
    dist_env = evaluator.dist_env
    if config.input is None:
        text = text_from_dataset(evaluator.ckpt, config.dataset, config.split)
    else:
        text = text_from_files(evaluator.ckpt, config.input, config.field, config.keep_crlf)
    counter = TokenCounter(text, show_progress=dist_env.rank == 0)
    windows = sliding_windows(text.chunks, block_size, stride)
    batches = counter.count(batch_windows(windows, evaluator.batch_size))
    # Each rank reads and counts the whole text, and computes every world_size-th batch.
    own_batches = itertools.islice(batches, dist_env.rank, None, dist_env.world_size)
    own_batches = ticking(own_batches, CpuThreads(config.threads))
    total = summed_loss(evaluator.model, own_batches, evaluator.device, evaluator.autocast)
    nats = dist_env.all_reduce_sum(total, evaluator.device)[0].item()
    if not counter.scored.any():
        raise DataError(
            f"{text.name} is too short: it needs at least "
            "two tokens, as the first one is not scored"
        )
    check_size(text, counter)
    if dist_env.rank == 0:
        print_loss(text, counter, nats, block_size, stride)


def ticking(batches, threads):
    """The same batches; the number of threads is adapted after each."""
    for batch in batches:
        yield batch
        threads.tick()


def check_size(text, counter):
    """Note it if the tokens do not stand for the whole text: then its bits are not exact."""
    found = counter.total[text.unit]
    if found != text.size:
        unit = UNITS[text.unit]
        text.notes.append(
            f"{text.name} has {text.size:,} {unit}, but its tokens stand "
            f"for {found:,}: bits per byte and per character are not exact"
        )


def print_loss(text, counter, nats, block_size, stride):
    num_tokens, num_bytes, num_chars = counter.scored.tolist()
    for note in text.notes:
        print(f"note: {note}")
    print(
        f"{text.name}: {num_tokens:,} tokens scored, {num_bytes:,} bytes, {num_chars:,} characters"
    )
    print(f"context: {describe_context(counter, block_size, stride)}")
    loss = nats / num_tokens
    bits = nats / math.log(2)
    print(f"loss                {loss:.4f} nats per token")
    print(f"perplexity          {math.exp(min(loss, 700)):.4f}")
    print(f"bits per byte       {bits / num_bytes:.4f}")
    print(f"bits per character  {bits / num_chars:.4f}")


def describe_context(counter, block_size, stride):
    """How many tokens the scored ones could see."""
    num_tokens = int(counter.scored[0])
    text = (
        f"1 to {min(num_tokens, block_size)} tokens, {counter.context / num_tokens:.1f} on average"
    )
    least = block_size - stride + 1
    if least > 1 and num_tokens > block_size:
        text += f"; at least {least} after the first window"
    return text


def import_harness():
    """seugpt.evaluation.harness. Raises ConfigError if lm-evaluation-harness is missing."""
    try:
        import seugpt.evaluation.harness as harness
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tasks needs the package {error.name}: python -m pip install lm_eval==0.4.13"
        ) from error
    return harness


def evaluate_tasks(evaluator, config, harness):
    """Print the results of zero-shot tasks. Raises ConfigError, DataError."""
    tokenizer = tokenizer_of(evaluator.ckpt)
    device, autocast = evaluator.device, evaluator.autocast
    lm = harness.HarnessModel(evaluator.model, tokenizer, device, autocast, evaluator.batch_size)
    harness.print_tasks(lm, config.tasks, config.num_fewshot, config.limit)


def evaluate(config):
    harness = import_harness() if config.tasks else None  # before a model is downloaded
    dist_env = DistributedEnv.from_environment()
    if harness and dist_env.world_size > 1:
        raise ConfigError("--tasks runs as one process: python evaluate.py, without torchrun")
    evaluator = load_evaluator(config, dist_env)
    if dist_env.rank == 0:
        for line in [*evaluator.ckpt.get("notes", []), describe(evaluator.ckpt)]:
            print(line, flush=True)
    if harness:
        evaluate_tasks(evaluator, config, harness)
        return
    backend = dist_env.pick_backend("auto", evaluator.device)
    with process_group(backend) as exit_process:
        evaluate_text(evaluator, config)
        exit_process(0)


def main(argv=None):
    with command(distributed=True):
        [config] = parse_configs(argv, EvaluateConfig, description=__doc__)
        smaller = max((config.batch_size or 8) // 2, 1)
        with out_of_memory_advice(f"a smaller batch, as in --batch_size={smaller}"):
            evaluate(config)


if __name__ == "__main__":
    main()
