"""What a run will cost, before it begins: parameters, FLOPs, memory; and how fast this machine makes its steps.

    python train.py config/train_gpt2_15m.py --report
    python train.py config/quickstart.py --measure

The first computes nothing and takes no memory: torch's fake tensors have a shape and no numbers.
"""

import math
import textwrap
import time
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, pick_dtype
from seugpt.checkpoint.huggingface import Undrawn, shapes
from seugpt.data.dataset import Dataset, dataset_path
from seugpt.errors import ConfigError, DataError
from seugpt.training.init_from import with_vocabulary
from seugpt.training.logger import RunLog, duration
from seugpt.training.memory import AliveTensors
from seugpt.training.optimizer import make_optimizers

MOST_LAYERS = 1000  # which take 20 seconds to count
WARMUP, STEPS = 3, 20  # of --measure
PARTS = ("token embedding", "position embedding", "attention", "MLP", "norms", "head")
SIX_N = """\
Why 6N: forward, each of the N weights multiplies one number of a token, and the product is added
to a sum: 2N. Backward takes as many for the gradient of what came in, and as many for that of the
weights: 4N. N leaves out embeddings that are looked up and not multiplied. Scores (queries times
keys, and weights times values) have no parameters: with L layers, C channels and T tokens, 4·L·C·T
forward and 12·L·C·T in all, as PaLM counts (2204.02311, appendix B): all T x T pairs, though a
causal kernel may skip the half that is masked."""


def human(number, unit):
    """Three digits and a unit: 1.65 GB."""
    power = min(int(math.log10(number)) // 3, 8) if number >= 1 else 0
    value = number / 1000**power
    digits = max(0, 2 - int(math.log10(value))) if power else 0
    return f"{value:,.{digits}f} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'][power]}{unit}"


def table(*rows):
    """Rows of texts as lines: names and the notes of the last column to the left, all between to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, note in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)]
        lines.append("   ".join([name.ljust(widths[0]), *cells, note]).rstrip())
    return "\n".join(lines)


def part_of(name):
    """The part of the model, one of PARTS, that a parameter belongs to."""
    known = {"wte.weight": 0, "wpe.weight": 1, "lm_head.weight": 5}
    inside = 4 if "ln_" in name or "_norm." in name else 2 if ".attn." in name else 3
    return PARTS[known.get(name, inside)]


def parameter_table(sizes, config, tokens):
    """sizes: {name: shape} of the parameters; tokens: of the vocabulary without its padding, or None."""
    total, notes = sum(map(math.prod, sizes.values())), {}
    if tokens not in (None, config.vocab_size):
        notes["token embedding"] = f"{config.vocab_size:,} rows for {tokens:,} tokens"
    if config.position == "rope":
        notes["position embedding"] = "rope: turns queries and keys instead"
    if config.tie_embeddings:
        notes["head"] = "tied: token embedding again, counted once"
    rows = [("Parameters", "tensors", "parameters", "share", "")]
    for part in PARTS:
        counts = [math.prod(shape) for name, shape in sizes.items() if part_of(name) == part]
        rows.append(
            (
                part,
                f"{len(counts):,}",
                f"{sum(counts):,}",
                f"{sum(counts) / total:.1%}",
                notes.get(part, ""),
            )
        )
    return table(*rows, ("all", f"{len(sizes):,}", f"{total:,}", "100.0%", ""))


def forward_flops(sizes, config):
    """{part: FLOPs of a token's forward pass in a full context}; the backward pass takes twice as many.

    Three times their sum is GPT.flops_per_token(). Norms and biases are no matrices; they take about the 2 FLOPs each
    that the 6N rule reckons.
    """
    matrices, vectors = dict.fromkeys(PARTS, 0), 0
    for name, shape in sizes.items():
        if len(shape) == 2:
            matrices[part_of(name)] += math.prod(shape)
        else:
            vectors += math.prod(shape)
    return {
        "attention, matrices": 2 * matrices["attention"],
        "attention, scores": 4 * config.n_layer * config.n_embd * config.block_size,
        "MLP": 2 * matrices["MLP"],
        "norms, biases": 2 * vectors,
        "head": 2 * config.vocab_size * config.n_embd,
    }


def flops_table(flops, block_size):
    total, scores = sum(flops.values()), flops["attention, scores"]
    rows = [("FLOPs of a token", "forward", "backward", "both", "share", "")]
    for part, count in [*flops.items(), ("all", total)]:
        numbers = [human(times * count, "FLOP") for times in (1, 2, 3)]
        rows.append(
            (
                part,
                *numbers,
                f"{count / total:.1%}",
                "grow with block_size" if "scores" in part else "",
            )
        )
    longer = [("block_size", "FLOPs of a token", "scores", "")]
    for T in (max(block_size // 4, 1), block_size, 4 * block_size):
        theirs = scores * T // block_size
        all_of_it = total - scores + theirs
        longer.append((f"{T:,}", human(3 * all_of_it, "FLOP"), f"{theirs / all_of_it:.1%}", ""))
    return f"{table(*rows)}\n\n{SIX_N}\n\n{table(*longer)}"


def work_table(flops_per_token, block_size, options, dataset):
    """A sequence, a step, a pass over the data and the run; dataset: None where there is none."""
    step = options.tokens_per_step(block_size)
    parts = (
        f"{options.gradient_accumulation_steps:,} micro-batches of {options.batch_size:,} sequences"
    )
    run, passes = options.max_iters * step, ""
    work = [("a sequence", block_size, ""), ("a step", step, parts)]
    if dataset:
        tokens = dataset.tokens["train"]
        work.append(("a pass", tokens, f"over {dataset.path}, also called an epoch"))
        passes = f"; {run / tokens:,.2f} passes"
    work.append(("the run", run, f"{options.max_iters:,} steps{passes}"))
    rows = [
        (name, f"{tokens:,}", human(tokens * flops_per_token, "FLOP"), note)
        for name, tokens, note in work
    ]
    return table(("Work", "tokens", "FLOPs", ""), *rows)


def count_memory(config, options, device, dtype, micro_steps, rows):
    """{part: bytes} of a process whose steps are so many micro-batches of so many rows; "peak" is not their sum.

    The run's own code runs, on fake tensors, and what is alive is counted: exact but for what kernels take inside.
    """
    with FakeTensorMode():
        with device, Undrawn():
            model = GPT(config)
        idx = torch.zeros(rows, config.block_size, dtype=torch.long, device=device)
        with AliveTensors(model.parameters()) as alive:
            parts = {"weights": alive.now}
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            parts["gradients"] = alive.now - sum(parts.values())
            optimizers = make_optimizers(model, options, device, dtype)
            for optimizer in optimizers:
                optimizer.step()
            parts["optimizer"] = alive.now - sum(parts.values())
            if micro_steps == 1:  # no micro-batch before has left gradients
                model.zero_grad(set_to_none=True)
            before = alive.now
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = model(idx, idx)[1]
            parts["activations"] = alive.now - before
            loss.backward()
    return {**parts, "peak": alive.peak}


def memory_table(config, options, device, dtype, ranks):
    micro_steps, part = ranks.share(options.gradient_accumulation_steps, options.batch_size)
    rows = len(range(options.batch_size)[part or slice(None)])
    bytes_of = count_memory(config, options, device, dtype, micro_steps, rows)
    T, cached, kind = (
        config.block_size,
        pick_dtype("auto", device),
        str(dtype).removeprefix("torch."),
    )
    logits = 4 * rows * T * config.vocab_size
    cache = 2 * config.n_layer * config.kv_heads * config.head_size * T * cached.itemsize
    moments = "AdamW: two moments of each weight"
    if options.optimizer == "muon":
        moments = "Muon: one moment of the blocks' matrices; AdamW: two of others"
    casts = "" if dtype == torch.float32 else f", with the weights in {kind}"
    if ranks.world_size > 1:  # DDP sends the gradients from buffers of its own
        bytes_of["peak"] += bytes_of["gradients"]
        bytes_of["gradients"] *= 2
    lines = [
        ("weights", bytes_of["weights"], "float32"),
        (
            "gradients",
            bytes_of["gradients"],
            "float32" + (", and DDP's copy" if ranks.world_size > 1 else ""),
        ),
        ("optimizer", bytes_of["optimizer"], moments),
        ("activations", bytes_of["activations"], f"kept for the backward pass{casts}"),
        ("    of these, the logits", logits, "as log-probabilities, float32"),
        ("gradients of the logits", 2 * logits, "for a moment, as the backward pass begins"),
        ("at the peak", bytes_of["peak"], "the most that is alive at one time"),
        (
            "KV cache of a sequence",
            cache,
            f"{T:,} tokens in sampling, {str(cached).removeprefix('torch.')}",
        ),
    ]
    title = f"{'Memory of each process' if ranks.world_size > 1 else 'Memory'}, {device}, {kind}, {rows} x {T:,} tokens"
    text = "\n".join(
        [title, table(*((name, human(size, "B"), note) for name, size, note in lines))]
    )
    if device.type == "cpu":
        text += "\nOn the CPU the process keeps what it frees, and takes more (README, Memory)."
    return text + (
        "\ntorch.compile, which this run uses, may need less." if options.compiles(device) else ""
    )


def print_report(model_config, options, ranks, device, dtype):
    """What can be said without a step. Raises ConfigError, CheckpointError."""
    if ranks.rank > 0:
        return
    if model_config.n_layer > MOST_LAYERS:
        raise ConfigError(
            f"n_layer={model_config.n_layer:,}: a report counts layer by layer, at most {MOST_LAYERS:,}"
        )
    dataset, notes = None, []
    try:
        dataset = Dataset(dataset_path(options.dataset))
        notes = dataset.notes
        model_config = with_vocabulary(model_config, dataset.tokenizer, options.dataset)
    except DataError as error:
        if model_config.vocab_size is None:
            raise ConfigError(
                f"vocab_size is not known: give it, as in --vocab_size=50304. Or: {error}"
            ) from error
        notes = [f"without data: {error}"]
    sizes = shapes(model_config, "these options")
    flops = forward_flops(sizes, model_config)
    for note in notes:
        print("\n".join(textwrap.wrap(f"note: {note}", 100, break_on_hyphens=False)) + "\n")
    print(parameter_table(sizes, model_config, dataset and dataset.tokenizer.vocab_size) + "\n")
    print(flops_table(flops, model_config.block_size) + "\n")
    print(
        work_table(3 * sum(flops.values()), model_config.block_size, options, dataset) + "\n",
        flush=True,
    )
    print(memory_table(model_config, options, device, dtype, ranks), flush=True)


def timed(function, device):
    """Seconds that it takes, with all that it has the device do."""
    synchronize = getattr(torch, device.type).synchronize
    synchronize()
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


def measure(trainer):
    """Print how long steps and evaluations take: real ones, of which nothing is kept. Returns 0, for no signal."""
    options, data, model, device = trainer.options, trainer.dataset, trainer.bare, trainer.device
    T, few = model.config.block_size, 2 * trainer.ranks.world_size

    def windows(eval_iters):
        return sum(
            len(data.evaluation_windows(split, eval_iters, options.batch_size, T))
            for split in data.ids
        )

    trainer.log = RunLog(options, silent=True)
    trainer.restart_clock()
    timed(lambda: [trainer.train_step() for _ in range(WARMUP)], device)
    step = timed(lambda: [trainer.train_step() for _ in range(STEPS)], device) / STEPS
    model.eval()
    trainer.options = replace(options, eval_iters=few)
    trainer.evaluate(model)  # which warms up
    evaluation = (
        timed(lambda: trainer.evaluate(model), device) * windows(options.eval_iters) / windows(few)
    )
    if trainer.ranks.rank == 0:
        tokens_per_s = options.tokens_per_step(T) / step
        flops = tokens_per_s * model.flops_per_token()
        mfu = f", MFU {flops / trainer.peak_flops:.1%}" if trainer.peak_flops else ""
        speed = f"{tokens_per_s:,.0f} tokens/s, {human(flops, 'FLOP/s')}{mfu}"
        print(f"\n{STEPS} steps after {WARMUP} to warm up: {1000 * step:,.1f} ms a step, {speed}")
        count, training = (
            math.ceil(options.max_iters / options.eval_interval) + 1,
            options.max_iters * step,
        )
        print(
            f"the {options.max_iters:,} steps of the run: {duration(training)} without evaluations;"
        )
        print(
            f"{duration(training + count * evaluation)} with its {count:,} evaluations, and without saving"
        )
    return 0
