"""How long a checkpoint in shards stops training, written while it goes on and while it waits.

    torchrun --standalone --nproc_per_node=2 docs/tools/save_stall.py

The model is nanoGPT's for Tiny Shakespeare (10.6M parameters), trained for a few steps of 2 x 64
tokens and saved before each; results go to docs/speed/ranks.jsonl.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from seugpt.benchmark.results import record  # noqa: E402
from seugpt.training import run_checkpoint  # noqa: E402
from seugpt.training.sharded_checkpoint import ShardedSaver  # noqa: E402

RESULTS = ROOT / "docs" / "speed" / "ranks.jsonl"
ROUNDS = 10  # of each kind; the first, which imports modules, is left out
OPTIONS = (
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--block_size=64",
    "--batch_size=2",
    "--eval_iters=1",
    "--eval_interval=1",
    f"--max_iters={2 * ROUNDS}",
    "--dp_shard_size=2",
)


class TimedSaver(ShardedSaver):
    """Saves in turn while the run goes on ("asynchronous") and while it waits."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seconds = {"asynchronous": [], "synchronous": []}

    def save(self, *args):
        self.finish()
        kind = min(self.seconds, key=lambda kind: len(self.seconds[kind]))
        start = time.perf_counter()
        super().save(*args)
        if kind == "synchronous":
            self.finish()
        self.seconds[kind].append(time.perf_counter() - start)

    def close(self):
        super().close()
        if self.rank == 0:
            for kind, seconds in self.seconds.items():
                kept = [1000 * value for value in seconds[1:]]
                print(f"{kind}: {statistics.median(kept):.0f} ms", kept, flush=True)
                device = torch.device("cpu")
                record(RESULTS, device, bench="save", kind=kind, milliseconds=kept)


if __name__ == "__main__":
    run_checkpoint.ShardedSaver = TimedSaver
    folder = Path(tempfile.gettempdir(), "seugpt-save-stall")  # the same on both ranks
    train.main([*OPTIONS, f"--out_dir={folder}"])
