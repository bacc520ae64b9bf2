"""The classes used from Python, as in a notebook: build, train, load and sample a GPT."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch

from model import GPT, ModelConfig
from seugpt.checkpoint import load_for_inference
from seugpt.data.dataset import Dataset
from seugpt.data.tokenizer import CharTokenizer
from seugpt.generation.text_stream import sample_text
from tests.helpers import logged_values
from train import TrainConfig, Trainer

CONFIG = TrainConfig(
    out_dir="out",
    device="cpu",
    dtype="float32",
    compile=False,
    batch_size=8,
    gradient_accumulation_steps=1,
    learning_rate=1e-2,
    warmup_iters=2,
    max_iters=60,
    lr_decay_iters=60,
    eval_interval=30,
    eval_iters=2,
)


class Countdown:
    """A custom data set, 98765432109876..., with only the attributes that Trainer needs."""

    def __init__(self):
        self.tokenizer = CharTokenizer("0123456789")
        self.ids = self.tokenizer.encode("9876543210" * 100).astype(np.int64)
        self.fingerprint = hashlib.sha256(self.ids.tobytes()).hexdigest()

    def batch(self, split, index, batch_size, block_size, seed):
        rng = np.random.default_rng((seed, index))
        starts = rng.integers(len(self.ids) - block_size, size=batch_size)
        windows = np.stack([self.ids[start : start + block_size + 1] for start in starts])
        return windows[:, :-1], windows[:, 1:]

    def evaluation_batches(self, split, eval_iters, batch_size, block_size, rank=0, world_size=1):
        for index in range(rank, eval_iters, world_size):
            yield self.batch(split, index, batch_size, block_size, seed=0)


def train_on(dataset):
    """Train a small GPT on a data set. Returns its Trainer."""
    torch.manual_seed(0)
    vocab_size = dataset.tokenizer.vocab_size
    model = GPT(ModelConfig(block_size=16, vocab_size=vocab_size, n_layer=1, n_head=2, n_embd=32))
    trainer = Trainer(model, CONFIG, dataset)
    assert trainer.run() == 0
    return trainer


def test_trained_gpt_can_be_loaded_and_sampled(tiny):
    dataset = Dataset("data/tiny")
    trainer = train_on(dataset)
    assert trainer.state.step == 60
    assert trainer.state.best_val_loss < math.log(dataset.tokenizer.vocab_size) - 0.5
    assert len(logged_values("out", "loss")) == 60

    model, tokenizer, description = load_for_inference("out")
    assert "out/best.pt" in description[-1]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trainer.raw_model.state_dict()[name])
    prompt = tokenizer.encode("o menino ").tolist()
    text = sample_text(model, tokenizer, prompt, seed=1, max_new_tokens=40)
    assert len(text) == 40
    assert set(text) <= set(dataset.tokenizer.chars)
    assert text == sample_text(model, tokenizer, prompt, seed=1, max_new_tokens=40)


def test_trainer_learns_a_custom_data_set(workspace):
    trainer = train_on(Countdown())
    assert trainer.state.best_val_loss < 0.2
    assert Path("out/latest.pt").exists()
    model, tokenizer, _ = load_for_inference("out/best.pt")
    prompt = tokenizer.encode("87654321").tolist()
    text = sample_text(model, tokenizer, prompt, seed=1, max_new_tokens=8)
    assert text == "09876543"


def test_second_trainer_moves_the_first_run_aside(workspace):
    """As when a notebook cell runs twice, so that the first Trainer still exists."""
    first = train_on(Countdown())
    second = train_on(Countdown())
    assert first.state == second.state
    assert Path("out/previous-1/best.pt").exists()
    assert Path("out/best.pt").exists()
