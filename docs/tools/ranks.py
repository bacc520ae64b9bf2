"""What several processes cost on one machine: step time and memory, replicated (DDP) and in shards.

    python docs/tools/ranks.py [MODEL ...]

The models are those of MODELS, by default all, which takes about ten minutes on two cores. Each run
is torchrun's, of train.py, with one thread per process; results go to docs/speed/ranks.jsonl.
data/shakespeare_char must be prepared.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.benchmark.results import record  # noqa: E402

RESULTS = ROOT / "docs" / "speed" / "ranks.jsonl"
STEPS = 12
WARMUP = 4  # steps left out
COMMON = (
    "--dataset=shakespeare_char",
    "--device=cpu",
    "--dropout=0.0",
    "--gradient_accumulation_steps=1",
    "--eval_iters=1",
    f"--max_iters={STEPS}",
    "--log_interval=1",
    "--eval_interval=1000",
)
MODELS = {  # GPT-2's architecture, 1 to 16 times the parameters; nanoGPT's for Tiny Shakespeare
    "1": ("--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=256", "--batch_size=8"),
    "4": ("--n_layer=4", "--n_head=4", "--n_embd=256", "--block_size=256", "--batch_size=8"),
    "16": ("--n_layer=4", "--n_head=4", "--n_embd=512", "--block_size=256", "--batch_size=8"),
    "E1": ("config/train_shakespeare_char.py", "--batch_size=16"),  # a quarter of its batch
}
WORLDS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 4))  # processes, dp_shard_size


def run(words, num_ranks, shard_size):
    """(milliseconds of each step but the first ones, peak memory of the largest rank in bytes,
    parameters).
    """
    with tempfile.TemporaryDirectory() as out_dir:
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
        options = [*words, *COMMON, f"--dp_shard_size={shard_size}", f"--out_dir={out_dir}"]
        process = subprocess.Popen(
            [sys.executable, "-m", *launch, ROOT / "train.py", *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)  # of the process and its children
        if status:
            sys.exit(f"{' '.join(options)} failed")
        lines = (Path(out_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        log = (Path(out_dir) / "training.log").read_text(encoding="utf-8")
        parameters = int(re.search(r"model: ([\d,]+) parameters", log)[1].replace(",", ""))
    steps = [json.loads(line) for line in lines if "step_ms" in line]
    return [line["step_ms"] for line in steps][WARMUP:], usage.ru_maxrss * 1024, parameters


def measure(name, words, rounds=2):
    """Each of WORLDS in turn, several times."""
    times = {world: [] for world in WORLDS}
    peaks = {}
    for _ in range(rounds):
        for world in WORLDS:
            step_ms, peaks[world], parameters = run(words, *world)
            times[world].append(statistics.median(step_ms))
            ranks, shards = world
            print(f"{name}, ranks {ranks}, shards {shards}: {times[world][-1]:.0f} ms", flush=True)
    for (num_ranks, shard_size), rounds_ms in times.items():
        record(
            RESULTS,
            torch.device("cpu"),
            bench="ranks",
            model=name,
            parameters=parameters,
            ranks=num_ranks,
            dp_shard_size=shard_size,
            step_ms=statistics.median(rounds_ms),
            rounds_ms=rounds_ms,
            peak_memory_bytes=peaks[num_ranks, shard_size],
        )


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        measure(name, MODELS[name])
