"""One sound file of every kind that is read, and what reads each of them as a command does."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import export
import prepare
import sample
import train
from seugpt.data.dataset import Dataset
from seugpt.data.tokenizer import bpe_tokenizer
from seugpt.errors import CheckpointError, ConfigError, DataError, DeviceError, TrainingError
from seugpt.generation.decoder import Sampling
from seugpt.plots.curves import losses, to_run
from seugpt.training.metrics import drop_metrics_from, parsed_lines
from tests.helpers import NanoGPT, write_token_files

KNOWN_ERRORS = (CheckpointError, ConfigError, DataError, DeviceError, TrainingError)
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 2, "eval_iters": 1}


def make_files():
    """One sound file of every kind, in the current folder."""
    dice = random.Random(0)
    text = " ".join(dice.choices("o menino viu a maçã e não comeu; \n".split(" "), k=300))
    Path("tiny.txt").write_text(text, encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    train.main([*(f"--{k}={v}" for k, v in TINY.items()), "--dataset=tiny", "--out_dir=out", "--max_iters=2",
                "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32", "--position=rope",
                "--dropout=0.1", "--norm=rmsnorm", "--mlp=swiglu"])  # fmt: skip
    V = Dataset("data/tiny").tokenizer.vocab_size
    shape = {"block_size": 8, "vocab_size": V, "n_layer": 1, "n_head": 2, "n_embd": 8, "bias": True}
    Path("nano").mkdir()
    torch.save({"model": NanoGPT(**shape).state_dict(), "model_args": {**shape, "dropout": 0.0}, "iter_num": 2,
                "best_val_loss": torch.tensor(2.5), "config": {"dataset": "tiny"}}, "nano/ckpt.pt")  # fmt: skip
    export.export("out", Path("hf"))
    shutil.copytree("hf", "sharded")
    tensors = load_file("sharded/model.safetensors")
    Path("sharded/model.safetensors").unlink()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file(
            {name: tensors[name] for name in tensors if places[name] == file}, f"sharded/{file}"
        )
    Path("sharded/model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    shutil.copytree("data/tiny", "data/ranks")
    meta = json.loads(Path("data/ranks/meta.json").read_text(encoding="utf-8"))
    bpe = bpe_tokenizer([bytes([i]) for i in range(256)] + [b"ab", b"abc"])
    spec = {"tokenizer": bpe.spec(), "vocab_size": bpe.vocab_size}
    Path("data/ranks/meta.json").write_text(json.dumps({**meta, **spec}), encoding="utf-8")
    for name, change in {"foreign": {"normalizer": {"type": "Lowercase"}}, "merged": {}}.items():
        content = json.loads(
            bpe.json()
            if name == "merged"
            else Path("hf/tokenizer.json").read_text(encoding="utf-8")
        )
        content |= (
            {
                "decoder": {
                    "type": "Metaspace",
                    "replacement": "_",
                    "prepend_scheme": "never",
                    "split": True,
                }
            }
            if change
            else {}
        )
        Path(name).mkdir()
        Path(name, "tokenizer.json").write_text(json.dumps({**content, **change}), encoding="utf-8")
    for name, layout in {"nanogpt": "nanoGPT", "numpy": "NumPy", "llmc": "llm.c"}.items():
        write_token_files(Path("data", name), layout, np.arange(100) % V, np.arange(30) % V)
    for path in [*Path().glob("*/*.pt"), *Path().glob("*/*.safetensors")]:
        shutil.copy(path, path.with_suffix(".whole"))


def speak(source):
    """Two tokens, as sample.py draws them."""
    options = sample.SampleConfig(init_from=source, device="cpu", max_new_tokens=2)
    sample.Writer(options, Sampling()).write([[0]], lambda row, text: None)


def write_out(source):
    """As export.py does."""
    shutil.rmtree("exported", ignore_errors=True)
    export.export(source, Path("exported"))


def resume(source):
    """One step more, as train.py makes it."""
    given = train.Options(
        ["--init_from=resume", "--out_dir=out", "--max_iters=3"],
        train.ModelConfig,
        train.TrainConfig,
        description="",
    )
    train.train(*train.resolve(given))


def fine_tune(source):
    """As train.py with --init_from=FOLDER."""
    words = [f"--init_from={source}", "--dataset=tiny", "--batch_size=1", "--eval_only=True", "--eval_iters=1",
             "--gradient_accumulation_steps=1", "--device=cpu", "--out_dir=tuned"]  # fmt: skip
    given = train.Options(words, train.ModelConfig, train.TrainConfig, description="")
    train.train(*train.resolve(given))


def take_batches(folder):
    dataset = Dataset(folder)
    dataset.check(dataset.tokenizer.vocab_size, 8)
    dataset.batch("train", 0, 4, 8, 0)
    list(dataset.evaluation_batches("val", 0, 4, 8))
    dataset.tokenizer.decode_bytes([0])


def take_tokenizer(folder):
    """As prepare.py does with --tokenizer=FOLDER."""
    tokenizer = prepare.ready_tokenizer(folder)
    tokenizer.decode_bytes(range(tokenizer.vocab_size))
    tokenizer.encode(getattr(tokenizer, "chars", " "))


def read_logged(path):
    """As a run that goes on does with its metrics."""
    drop_metrics_from(2, Path(path))


def draw_logged(path):
    """The same, and the picture of its next evaluation."""
    read_logged(path)
    losses(Path("loss.png"), [to_run("out", parsed_lines(Path(path)))])
