"""Page 12's short runs: a learning rate for each batch size, the same number of tokens in all.

    python prepare.py shakespeare_char
    python docs/tools/hyperparameters.py

Ten minutes on one CPU core. Each line is what train.py with the same options prints as its
last validation loss; here a run evaluates once, at the end, and writes nothing.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model import ModelConfig
from seugpt.cli.config_parser import parse_configs
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.training.init_from import build_model
from seugpt.training.logger import RunLogger
from train import TrainConfig, Trainer

TOKENS = 1_024_000  # of every run
EVALUATED = 3200  # validation windows
RATES = {
    16: ("2e-4", "6e-4", "2e-3", "6e-3", "2e-2", "1e-1"),
    64: ("2e-3", "6e-3", "2e-2"),
    4: ("6e-4", "2e-3", "6e-3"),
}


def short_run(batch_size, rate, seed=1337):
    """(steps, validation loss, CPU seconds) of a run of config/tier1_char.py, warmup 10%."""
    steps = TOKENS // (batch_size * 64)
    options = [
        f"--batch_size={batch_size}",
        f"--learning_rate={rate}",
        f"--max_iters={steps}",
        f"--lr_decay_iters={steps}",
        f"--warmup_iters={steps // 10}",
        f"--eval_iters={EVALUATED // batch_size}",
        f"--seed={seed}",
        "--min_lr=0",
        "--threads=1",
    ]
    model_config, config = parse_configs(
        ["config/tier1_char.py", *options], ModelConfig, TrainConfig, description=__doc__
    )
    dataset = Dataset(dataset_path(config.dataset))
    model, _ = build_model(model_config, config, None, dataset.tokenizer)
    start = time.process_time()
    trainer = Trainer(model, config, dataset, log=RunLogger(config, quiet=True))
    for _ in range(steps):
        trainer.train_step()
    seconds = time.process_time() - start
    return steps, trainer.mean_loss(model.eval(), "val"), seconds


def print_run(batch_size, rate, seed=1337):
    steps, loss, seconds = short_run(batch_size, rate, seed)
    print(
        f"batch_size={batch_size:<3} learning_rate={rate}  seed={seed:<5} {steps:>5,} steps  "
        f"validation loss {loss:.4f}  {seconds:.0f} s of CPU",
        flush=True,
    )


def main():
    print(f"{TOKENS:,} tokens in each run")
    for batch_size, rates in RATES.items():
        for rate in rates:
            print_run(batch_size, rate)
    print_run(16, "2e-3", seed=1)


if __name__ == "__main__":
    main()
