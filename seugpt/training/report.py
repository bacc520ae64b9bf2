"""What a run will cost, before it starts: parameters, FLOPs and memory.

    python train.py config/train_gpt2_15m.py --report

It computes nothing and takes no memory: torch's fake tensors have a shape but no numbers. How long
the run takes on this machine: python bench.py step CONFIG
"""

import math
import sys
import textwrap

import torch

from model import pick_dtype
from seugpt.checkpoint.shapes import parameter_shapes
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.errors import ConfigError, DataError
from seugpt.training.batch_ramp import check_split, describe_ramp
from seugpt.training.distributed import DistributedEnv
from seugpt.training.init_from import with_vocabulary
from seugpt.training.memory_estimate import count_memory, kv_cache_bytes, largest_rows

MAX_LAYERS = 1000  # counting them takes a minute
GPU_SIZES = (8, 16, 24, 40, 80)  # GB
USABLE = 0.9  # of a GPU's memory: CUDA and the allocator need some
COUNTED_ROWS = (1, 64, 128)  # sequences in a micro-batch, from which what fits is computed
MODULES = ("token embedding", "position embedding", "attention", "MLP", "norms", "head")
WHY_6N = """\
Why 6N: in the forward pass each of the N weights is multiplied by one number per token, and the
product is added to a sum: 2N. The backward pass does the same for the gradient of the input and
for that of the weights: 4N. N excludes embeddings that are looked up and not multiplied. Attention
scores (queries times keys, weights times values) have no parameters: with L layers, C channels and
T tokens they add 4·L·C·T forward and 12·L·C·T in total, as PaLM counts (2204.02311, appendix B):
all T x T pairs, although a causal kernel may skip the masked half."""


def format_si(number, unit):
    """Three digits and a unit, as in 1.65 GB."""
    power = min(int(math.log10(number)) // 3, 8) if number >= 1 else 0
    value = number / 1000**power
    digits = max(0, 2 - int(math.log10(value))) if power else 0
    prefix = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"][power]
    return f"{value:,.{digits}f} {prefix}{unit}"


def format_table(*rows):
    """Rows of texts as lines: the first and last column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, note in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)]
        lines.append("   ".join([name.ljust(widths[0]), *cells, note]).rstrip())
    return "\n".join(lines)


def module_of(name):
    """The module, one of MODULES, that a parameter belongs to."""
    known = {
        "wte.weight": "token embedding",
        "wpe.weight": "position embedding",
        "lm_head.weight": "head",
    }
    if name in known:
        return known[name]
    if "ln_" in name or "_norm." in name:
        return "norms"
    return "attention" if ".attn." in name else "MLP"


def parameter_table(shapes, config, num_tokens):
    """`shapes`: {name: shape} of the parameters; `num_tokens`: the unpadded vocabulary, or None."""
    notes = {}
    if num_tokens not in (None, config.vocab_size):
        notes["token embedding"] = f"{config.vocab_size:,} rows for {num_tokens:,} tokens"
    if config.position == "rope":
        notes["position embedding"] = "RoPE: rotates queries and keys instead"
    if config.tie_embeddings:
        notes["head"] = "tied to the token embedding, counted once"
    total = sum(map(math.prod, shapes.values()))
    rows = [("Parameters", "tensors", "parameters", "share", "")]
    for module in MODULES:
        counts = [math.prod(shape) for name, shape in shapes.items() if module_of(name) == module]
        share = f"{sum(counts) / total:.1%}"
        rows.append((module, f"{len(counts):,}", f"{sum(counts):,}", share, notes.get(module, "")))
    rows.append(("total", f"{len(shapes):,}", f"{total:,}", "100.0%", ""))
    return format_table(*rows)


def forward_flops(shapes, config):
    """{part: FLOPs of a token's forward pass at full context}; the backward pass takes twice that.

    Three times their sum is GPT.flops_per_token(). Norms and biases are not matrices; they take
    about the 2 FLOPs each that the 6N rule counts.
    """
    HQ = config.n_head * config.head_size
    matrices = dict.fromkeys(MODULES, 0)
    vectors = 0
    for name, shape in shapes.items():
        if len(shape) == 2:
            matrices[module_of(name)] += math.prod(shape)
        else:
            vectors += math.prod(shape)
    return {
        "attention, matrices": 2 * matrices["attention"],
        "attention, scores": 4 * config.n_layer * HQ * config.block_size,
        "MLP": 2 * matrices["MLP"],
        "norms, biases": 2 * vectors,
        "head": 2 * config.vocab_size * config.n_embd,
    }


def flops_table(flops, block_size):
    total = sum(flops.values())
    scores = flops["attention, scores"]
    rows = [("FLOPs per token", "forward", "backward", "both", "share", "")]
    for part, count in [*flops.items(), ("total", total)]:
        numbers = [format_si(factor * count, "FLOP") for factor in (1, 2, 3)]
        note = "grows with block_size" if part == "attention, scores" else ""
        rows.append((part, *numbers, f"{count / total:.1%}", note))
    by_length = [("block_size", "FLOPs per token", "scores", "")]
    for T in (max(block_size // 4, 1), block_size, 4 * block_size):
        scores_at_T = scores * T // block_size
        total_at_T = total - scores + scores_at_T
        share = f"{scores_at_T / total_at_T:.1%}"
        by_length.append((f"{T:,}", format_si(3 * total_at_T, "FLOP"), share, ""))
    return f"{format_table(*rows)}\n\n{WHY_6N}\n\n{format_table(*by_length)}"


def work_table(flops_per_token, block_size, config, dataset):
    """A sequence, a step, an epoch and the run; `dataset` None if there is none."""
    tokens_per_step = config.tokens_per_step(block_size)
    run_tokens = config.tokens_before(config.max_iters, block_size)
    step_note = (
        f"{config.gradient_accumulation_steps:,} micro-batches of {config.batch_size:,} sequences"
    )
    run_note = f"{config.max_iters:,} steps"
    work = [("a sequence", block_size, "")]
    ramp = describe_ramp(config)
    if ramp:
        work.append(("the first step", config.tokens_before(1, block_size), ramp))
    work.append(("a step", tokens_per_step, step_note))
    if dataset:
        epoch_tokens = dataset.tokens["train"]
        work.append(("an epoch", epoch_tokens, f"once over {dataset.path}"))
        run_note += f"; {run_tokens / epoch_tokens:,.2f} epochs"
    work.append(("the run", run_tokens, run_note))
    rows = [("Work", "tokens", "FLOPs", "")]
    for name, tokens, note in work:
        rows.append((name, f"{tokens:,}", format_si(tokens * flops_per_token, "FLOP"), note))
    return format_table(*rows)


def split_micro_batches(config, dist_env):
    """(micro-batches of a step, sequences in each) of one process."""
    micro_steps, row_slice = dist_env.split_step(
        config.gradient_accumulation_steps, config.batch_size
    )
    return micro_steps, len(range(config.batch_size)[row_slice or slice(None)])


def memory_table(model_config, config, device, dtype, dist_env):
    """The memory of each process, by part."""
    micro_steps, rows = split_micro_batches(config, dist_env)
    world_size = dist_env.world_size
    shards = config.dp_shard_size
    sizes = count_memory(model_config, config, device, dtype, micro_steps, rows, world_size, shards)
    T = model_config.block_size
    logits_bytes = 4 * rows * T * model_config.vocab_size
    cache_dtype = pick_dtype("auto", device)
    dtype_name = str(dtype).removeprefix("torch.")
    cache_dtype_name = str(cache_dtype).removeprefix("torch.")
    optimizer_note = "AdamW: two moments per weight"
    if config.optimizer == "muon":
        optimizer_note = "Muon: one moment for block matrices; AdamW: two for the rest"
    kept = "inputs of the blocks" if config.gradient_checkpointing else "kept for the backward pass"
    casts = "" if dtype == torch.float32 else f", with the weights in {dtype_name}"
    cache_note = f"{T:,} tokens in sampling, {cache_dtype_name}"
    weights_note = gradients_note = "float32"
    if shards > 1:
        weights_note = gradients_note = f"float32, one of {shards} shards"
    elif world_size > 1:
        gradients_note = "float32, and DDP's copy"
    parts = [
        ("weights", sizes["weights"], weights_note),
        ("gradients", sizes["gradients"], gradients_note),
        ("optimizer", sizes["optimizer"], optimizer_note),
        ("activations", sizes["activations"], f"{kept}{casts}"),
        ("    of these, the logits", logits_bytes, "as log-probabilities, float32"),
        ("gradients of the logits", 2 * logits_bytes, "briefly, at the start of the backward pass"),
        ("peak", sizes["peak"], "the maximum at one time"),
        ("KV cache per sequence", kv_cache_bytes(model_config, cache_dtype), cache_note),
    ]
    if shards > 1:
        note = "embeddings, head and two blocks, with their gradients"
        parts.insert(3, ("gathered", sizes["gathered"], note))
    table = format_table(*((name, format_si(size, "B"), note) for name, size, note in parts))
    title = f"Memory of each of {world_size:,} processes" if world_size > 1 else "Memory"
    shape = f"{rows} x {T:,} tokens"
    return f"{title}, {device}, {dtype_name}, {shape}\n{table}{memory_notes(config, device)}"


def fit_table(model_config, config, device, dtype, dist_env):
    """What fits into the memory of GPUs: sequences in a micro-batch, and shards."""
    micro_steps, rows = split_micro_batches(config, dist_env)
    world_size = dist_env.world_size

    def peak(rows, shards):
        sizes = count_memory(
            model_config, config, device, dtype, micro_steps, rows, world_size, shards
        )
        return sizes["peak"]

    def row(name, values, note):
        return (name, *(f"{value:,}" if value else "-" for value in values), note)

    capacities = [USABLE * 10**9 * size for size in GPU_SIZES]
    peaks = {count: peak(count, config.dp_shard_size) for count in COUNTED_ROWS}
    largest = [largest_rows(peaks, capacity) for capacity in capacities]
    note = f"with dp_shard_size={config.dp_shard_size}" if world_size > 1 else ""
    lines = [
        (
            "What fits",
            *(f"{size} GB" for size in GPU_SIZES),
            f"of which {1 - USABLE:.0%} stay free",
        ),
        row("sequences in a micro-batch", largest, note),
    ]
    if world_size > 1:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        by_shards = {shards: peak(rows, shards) for shards in divisors}
        smallest = [
            next((n for n in divisors if by_shards[n] <= capacity), None) for capacity in capacities
        ]
        lines.append(row("smallest dp_shard_size", smallest, f"for {rows:,} sequences"))
    return format_table(*lines)


def memory_notes(config, device):
    notes = ""
    if device.type == "cpu":
        notes += "\nOn a CPU the process keeps what it frees, and takes more (docs/SPEED.md)."
    if config.compiles(device):
        notes += "\ntorch.compile, which this run uses, may need less."
    return notes


def print_report(model_config, config, dist_env, device):
    """Print everything that can be said without a step. Raises ConfigError, CheckpointError."""
    if dist_env.rank > 0:
        return
    if config.report_world_size:
        dist_env = DistributedEnv(world_size=config.report_world_size)
    check_split(config, dist_env)
    if dist_env.world_size % config.dp_shard_size:
        raise ConfigError(
            f"dp_shard_size={config.dp_shard_size} must divide the number of processes, "
            f"{dist_env.world_size}; use --report_world_size={config.dp_shard_size}"
        )
    if model_config.n_layer > MAX_LAYERS:
        raise ConfigError(
            f"n_layer={model_config.n_layer}: the report counts at most {MAX_LAYERS} layers"
        )
    dtype = pick_dtype(config.dtype, device, training=True)
    dataset = None
    try:
        dataset = Dataset(dataset_path(config.dataset), config.tokenizer)
        notes = dataset.notes
        model_config = with_vocabulary(model_config, dataset.tokenizer, config.dataset)
    except DataError as error:
        if model_config.vocab_size is None:
            raise ConfigError(
                f"{error}. Or count without data, by giving the size, as in --vocab_size=50304"
            ) from error
        notes = [f"counted without data: {error}"]
    shapes = parameter_shapes(model_config, "these options")
    flops = forward_flops(shapes, model_config)
    for note in notes:
        print("\n".join(textwrap.wrap(f"note: {note}", 100, break_on_hyphens=False)) + "\n")
    num_tokens = dataset and dataset.tokenizer.vocab_size
    flops_per_token = 3 * sum(flops.values())
    print(parameter_table(shapes, model_config, num_tokens), end="\n\n")
    print(flops_table(flops, model_config.block_size), end="\n\n")
    print(work_table(flops_per_token, model_config.block_size, config, dataset), end="\n\n")
    sys.stdout.flush()  # counting the memory of a large model takes seconds
    for table in (memory_table, fit_table):
        print(table(model_config, config, device, dtype, dist_env), end="\n\n", flush=True)
