"""The losses of page 2's runs, from the metrics that docs/data keeps of them.

python docs/tools/machado.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model import GPT, ModelConfig  # noqa: E402
from seugpt.training.metrics import read_metrics  # noqa: E402

RUNS = {  # the steps shown of each
    "out-gptlab-cpu": (500, 5000),
    "out-gptlab-10000": (1000, 2000, 4000, 5000, 8000, 10_000),
    "out-gptlab-dropout": (5000, 10_000),  # --dropout=0.2
}
TOKENS_PER_STEP = 32 * 32
TRAINING_TOKENS = 1_551_804
SHAPE = {"vocab_size": 115, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}


def evaluations(run):
    """{step: (training loss, validation loss)} of a run."""
    lines, _ = read_metrics(ROOT / "docs" / "data" / run / "metrics.jsonl")
    evaluated = [line for line in lines if "val_loss" in line]
    return {line["step"]: (line["train_loss"], line["val_loss"]) for line in evaluated}


def print_run(run, steps):
    losses = evaluations(run)
    print(f"{run}\n  steps   epochs   training   validation   gain since half the steps")
    for step in steps:
        train_loss, val_loss = losses[step]
        epochs = step * TOKENS_PER_STEP / TRAINING_TOKENS
        row = f"{step:>7,}{epochs:>9.2f}{train_loss:>11.4f}{val_loss:>13.4f}"
        if step >= 1000:
            row += f"{losses[step // 2][1] - val_loss:>12.3f}"
        print(row)


def main():
    for run, steps in RUNS.items():
        print_run(run, steps)
    print("out-gptlab-dropout has --dropout=0.2, the others 0.0")
    model = GPT(ModelConfig(**SHAPE))
    norms = [name for name, _ in model.named_parameters() if "ln_" in name]
    biases = 64 * len(norms) + 192 * len(model.h)
    total = model.num_params()
    print(f"\nparameters: {total:,}, all without biases")
    print(f"64 biases in {len(norms)} norms and 192 in {len(model.h)} c_attn: {biases:,}")
    print(f"together: {total + biases:,}")


if __name__ == "__main__":
    main()
