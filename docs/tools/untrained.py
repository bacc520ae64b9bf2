"""The losses of page 1: models before training, and a target that is not shifted.

    python docs/tools/untrained.py

data/machado_char must be prepared, and data/machado_bpe and data/machado_gpt2 as page 1 says.
"""

import contextlib
import io
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from model import GPT, ModelConfig  # noqa: E402
from seugpt.data.dataset import Dataset  # noqa: E402

SMALL = "config/tier1_char.py --eval_only --eval_iters=20"
STDS = (0.0, 0.02, 0.1, 0.3, 1.0)
COMMANDS = [
    "config/gptlab_cpu.py --eval_only",
    f"{SMALL} --dataset=machado_bpe",
    f"{SMALL} --dataset=machado_gpt2",
    *(f"config/gptlab_cpu.py --eval_only --embedding_std={std}" for std in STDS),
]
SHOWN_STEPS = (0, 10, 20, 50, 100)
LEARNING_RATE = 2e-3


def print_loss_lines(line):
    """Run train.py, and print the two lines of its output that speak of the loss."""
    print(f"$ python train.py {line}")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        train.main(line.split())
    for text in output.getvalue().splitlines():
        if "loss" in text:
            print(text.partition(": an untrained")[0])
    print()


def training_losses(dataset, tied, shifted):
    """The training loss at SHOWN_STEPS of page 2's model; not shifted: each target is its input."""
    torch.manual_seed(1337)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 32}
    model = GPT(ModelConfig(vocab_size=115, tie_embeddings=tied, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(max(SHOWN_STEPS) + 1):
        x, y = map(torch.from_numpy, dataset.batch("train", step, 32, 32, seed=1337))
        _, loss = model(x, y if shifted else x)
        if step in SHOWN_STEPS:
            losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def main():
    for line in COMMANDS:
        print_loss_lines(line)
    dataset = Dataset(ROOT / "data" / "machado_char")
    print(f"training loss at a learning rate of {LEARNING_RATE:g}")
    print("step            " + "".join(f"{step:>9}" for step in SHOWN_STEPS))
    for shifted in (True, False):
        for tied in (True, False):
            name = f"{'tied' if tied else 'untied'}{'' if shifted else ', no shift'}"
            losses = training_losses(dataset, tied, shifted)
            print(f"{name:16}" + "".join(f"{loss:9.4f}" for loss in losses))


if __name__ == "__main__":
    main()
