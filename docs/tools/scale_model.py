"""A step's time on 8, 64 and 1,024 GPUs, computed, not measured: what limits DDP, FSDP and HSDP.

    python docs/tools/scale_model.py

Prints a table in Markdown, and draws scale_model.png in docs/images and docs/images/pt.

What is assumed:
- A machine has 8 GPUs. FLOP/s, memory and its bandwidth, and link speeds are NVIDIA's: see GPUS.
- Kernels reach EFFICIENCY of the FLOP/s, and collectives all of a link.
- A GPU has one micro-batch per step, so that the work grows with the GPUs, and nothing hides the
  communication but the computation of the same step.
- Weights and gradients are sent in float32, as train.py keeps them.
- An all-gather or a reduce-scatter of S bytes among n ranks goes around a ring: S (n - 1) / n bytes
  through the slowest link, and n - 1 latencies. An all-reduce sends twice as much, through NCCL's
  trees, whose latency grows with the logarithm of the machines. Between machines both use all 8
  network cards.
- DDP sends the gradients while the backward pass computes them, 25 MB at a time, and waits for what
  is left at the end. FSDP gathers each block before its forward and its backward pass, one block
  ahead, and scatters its gradients. HSDP does so within a machine, and all-reduces shards between
  machines.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model import ModelConfig  # noqa: E402
from seugpt.checkpoint.shapes import parameter_shapes  # noqa: E402
from seugpt.plots.language import Language  # noqa: E402
from seugpt.plots.style import BLUE, GREEN, GREY, ORANGE, saved_figure  # noqa: E402
from seugpt.training.report import format_si, forward_flops  # noqa: E402

IMAGES = {"en": ROOT / "docs" / "images", "pt": ROOT / "docs" / "images" / "pt"}
GPUS_PER_MACHINE = 8
WORLD_SIZES = (8, 64, 1024)
EFFICIENCY = 0.5  # of the peak FLOP/s
BUCKET_BYTES = 25 * 2**20  # DDP's default
BYTES_PER_WEIGHT = 4  # float32
STATE_BYTES = 16  # of a weight: itself, its gradient and AdamW's two moments
UPDATE_BYTES = 28  # of a weight: AdamW reads these four and writes all but the gradient
NVLINK_LATENCY = 1e-6  # seconds per hop; an assumption, as is the next
NETWORK_LATENCY = 5e-6


@dataclass(frozen=True)
class GPU:
    """FLOP/s in bfloat16 without sparsity; bytes; bytes per second in one direction."""

    flops: float
    memory: float
    memory_bandwidth: float
    nvlink: float  # to the GPUs of the same machine
    network: float  # of the GPU's own network card


GPUS = {
    # NVIDIA H100 SXM and DGX H100 data sheets: NVLink 900 GB/s both ways, 400 Gb/s InfiniBand.
    "H100": GPU(989e12, 80e9, 3.35e12, 450e9, 50e9),
    # The same in machines that share 100 Gb/s Ethernet, as is common in clouds: an assumption.
    "H100, Ethernet": GPU(989e12, 80e9, 3.35e12, 450e9, 12.5e9 / 8),
    # NVIDIA A100 80GB SXM and DGX A100 data sheets: NVLink 600 GB/s both ways, 200 Gb/s.
    "A100": GPU(312e12, 80e9, 2.04e12, 300e9, 25e9),
}


@dataclass(frozen=True)
class Work:
    """A model, and the sequences in a GPU's micro-batch."""

    config: ModelConfig
    rows: int

    def num_params(self):
        return sum(map(math.prod, parameter_shapes(self.config, "these options").values()))

    def forward_flops(self):
        shapes = parameter_shapes(self.config, "these options")
        return sum(forward_flops(shapes, self.config).values()) * self.tokens()

    def tokens(self):
        return self.rows * self.config.block_size


def gpt2(n_layer, n_head, n_embd, **changes):
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "vocab_size": 50304}
    return ModelConfig(**{"block_size": 1024, **shape, **changes})


LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "mlp_hidden": 11008}
WORKS = {
    "124M": Work(gpt2(12, 12, 768), rows=12),
    "1.5B": Work(gpt2(48, 25, 1600), rows=8),
    "7B": Work(gpt2(32, 32, 4096, block_size=4096, tie_embeddings=False, **LLAMA), rows=1),
}
WAYS = {"DDP": BLUE, "FSDP": ORANGE, "HSDP": GREEN}


def split_machines(gpu, ranks):
    """(machines, bytes per second through the slowest link) of ranks that fill whole machines."""
    machines = ranks // GPUS_PER_MACHINE
    if machines == 1:
        return 1, gpu.nvlink
    return machines, min(gpu.nvlink, GPUS_PER_MACHINE * gpu.network)


def ring(size, gpu, ranks):
    """Seconds of an all-gather or reduce-scatter of `size` bytes."""
    machines, bandwidth = split_machines(gpu, ranks)
    latency = (ranks - machines) * NVLINK_LATENCY + (machines - 1) * NETWORK_LATENCY
    return size * (ranks - 1) / ranks / bandwidth + latency


def all_reduce(size, gpu, ranks):
    """Seconds of an all-reduce of `size` bytes."""
    machines, bandwidth = split_machines(gpu, ranks)
    hops = GPUS_PER_MACHINE * NVLINK_LATENCY + math.log2(machines) * NETWORK_LATENCY
    return 2 * (size * (ranks - 1) / ranks / bandwidth + hops)


def all_reduce_shards(size, gpu, machines):
    """Seconds of an all-reduce of `size` bytes among one GPU of each machine."""
    hops = math.log2(machines) * NETWORK_LATENCY
    return 2 * (size * (machines - 1) / machines / gpu.network + hops)


def ddp_seconds(work, gpu, world_size, forward):
    """Seconds of forward and backward pass with gradients averaged in the second."""
    size = BYTES_PER_WEIGHT * work.num_params()
    buckets = max(size // BUCKET_BYTES, 1)
    bucket = all_reduce(size / buckets, gpu, world_size)
    return forward + max(2 * forward, buckets * bucket) + bucket


def sharded_seconds(work, gpu, shard_size, replicas, forward):
    """The same with weights in `shard_size` shards, block by block."""
    blocks = work.config.n_layer + 1  # the embeddings and the head are one more
    size = BYTES_PER_WEIGHT * work.num_params() / blocks
    gather = ring(size, gpu, shard_size)
    scatter = ring(size, gpu, shard_size)
    if replicas > 1:
        scatter += all_reduce_shards(size / shard_size, gpu, replicas)
    forward_pass = gather + max(forward, blocks * gather)  # during the first one nothing computes
    backward_pass = max(2 * forward, blocks * (gather + scatter)) + scatter
    return forward_pass + backward_pass


def step_seconds(way, work, gpu, world_size):
    """(seconds of a step, bytes of weights, gradients and optimizer state on a GPU)."""
    forward = work.forward_flops() / (EFFICIENCY * gpu.flops)
    shard_size = {"DDP": 1, "FSDP": world_size, "HSDP": GPUS_PER_MACHINE}[way]
    if way == "DDP":
        seconds = ddp_seconds(work, gpu, world_size, forward)
        state = (STATE_BYTES + BYTES_PER_WEIGHT) * work.num_params()  # and DDP's buckets
    else:
        seconds = sharded_seconds(work, gpu, shard_size, world_size // shard_size, forward)
        state = STATE_BYTES * work.num_params() / shard_size
    update = UPDATE_BYTES * work.num_params() / shard_size / gpu.memory_bandwidth
    return seconds + update, state


def compute_seconds(work, gpu):
    """Seconds of a step in which nothing is sent and the update takes no time."""
    return 3 * work.forward_flops() / (EFFICIENCY * gpu.flops)


def markdown_table():
    yield (
        "| GPU | model | way | state of a GPU | "
        + " | ".join(f"{n:,} GPUs" for n in WORLD_SIZES)
        + " |"
    )
    yield "|---|---|---|---|" + "---|" * len(WORLD_SIZES)
    for name, gpu in GPUS.items():
        for size, work in WORKS.items():
            for way in WAYS:
                yield table_row(name, gpu, size, work, way)


def table_row(name, gpu, size, work, way):
    cells = []
    states = []
    for world_size in WORLD_SIZES:
        seconds, state = step_seconds(way, work, gpu, world_size)
        states.append(state)
        share = compute_seconds(work, gpu) / seconds
        cells.append(f"{1000 * seconds:,.0f} ms ({share:.0%})")
        if state > gpu.memory:
            cells[-1] = "does not fit"
    memory = " to ".join(dict.fromkeys(format_si(states[i], "B") for i in (0, -1)))
    return f"| {name} | {size} | {way} | {memory} | {' | '.join(cells)} |"


TEXTS = {
    "en": {
        "title": "Computed, not measured: with InfiniBand, shards cost little\n"
        "until rings grow long; over Ethernet every way waits for the network",
        "x": "GPUs",
        "y": "{network}\ncomputation / step time",
        "panel": "{size}: {tokens} tokens per GPU",
        "limit": "too large for a GPU",
    },
    "pt": {
        "title": "Calculado, não medido: com InfiniBand, repartir o modelo custa pouco\n"
        "até os anéis ficarem longos; com Ethernet, todos esperam pela rede",
        "x": "GPUs",
        "y": "{network}\ncomputação / tempo do passo",
        "panel": "{size}: {tokens} tokens por GPU",
        "limit": "não cabe em uma GPU",
    },
}
NETWORKS = {"H100": "InfiniBand", "H100, Ethernet": "Ethernet"}


def draw(path, lang):
    """A row for each network, a panel for each model: the share of computation."""
    texts = TEXTS[lang]
    language = Language(lang)
    with saved_figure(path, 11, 6.6, language=language) as figure:
        panels = figure.subplots(len(NETWORKS), len(WORKS), sharex=True, sharey=True)
        for row, (name, network) in zip(panels, NETWORKS.items(), strict=True):
            for axes, (size, work) in zip(row, WORKS.items(), strict=True):
                draw_panel(axes, GPUS[name], work, texts)
                tokens = language.number(f"{work.tokens():,}")
                axes.set_title(texts["panel"].format(size=language.number(size), tokens=tokens))
            row[0].set_ylabel(texts["y"].format(network=network))
        for axes in panels[-1]:
            axes.set_xlabel(texts["x"])
        figure.suptitle(texts["title"])


def draw_panel(axes, gpu, work, texts):
    world_sizes = [2**n for n in range(3, 11)]
    for way, color in WAYS.items():
        steps = [step_seconds(way, work, gpu, n) for n in world_sizes]
        shares = [compute_seconds(work, gpu) / seconds for seconds, _ in steps]
        fits = steps[0][1] <= gpu.memory
        label = way if fits else f"{way}: {texts['limit']}"
        style = {"color": color} if fits else {"color": GREY, "linestyle": ":"}
        axes.plot(world_sizes, shares, marker="o", markersize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(world_sizes, [str(n) for n in world_sizes])
    axes.set_ylim(0, 1.05)
    axes.legend(loc="best", fontsize=8)


def main():
    print("\n".join(markdown_table()))
    for lang, folder in IMAGES.items():
        draw(folder / "scale_model.png", lang)


if __name__ == "__main__":
    main()
