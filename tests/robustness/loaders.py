"""An intact file of every kind that is read, and functions that load each as a command does."""

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
from model import ModelConfig
from seugpt.checkpoint.content import RESUME_KEYS
from seugpt.checkpoint.sharded import describe_file, write_run
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.cli.config_parser import ConfigParser
from seugpt.data.dataset import Dataset
from seugpt.data.tokenizer import bpe_tokenizer
from seugpt.generation.sampling import SamplingParams
from seugpt.plots.curves import plot_losses
from seugpt.plots.run_metrics import to_run
from seugpt.training.init_from import resolve_config
from seugpt.training.metrics import iterate_metrics, truncate_metrics
from tests.helpers import NanoGPT, write_token_files
from train import TrainConfig

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}
SHARD = "shard-00001-of-00001.safetensors"
RUN = {
    **SHAPE,
    "position": "rope",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "dropout": 0.1,
    "dataset": "tiny",
    "out_dir": "out",
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_iters": 2,
    "eval_iters": 1,
    "device": "cpu",
    "dtype": "float32",
}


def write_intact_files():
    """Write an intact file of every kind to the current folder."""
    rng = random.Random(0)
    words = "o menino viu a maçã e não comeu; \n".split(" ")
    Path("tiny.txt").write_text(" ".join(rng.choices(words, k=300)), encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    train.main([f"--{name}={value}" for name, value in RUN.items()])
    vocab_size = Dataset("data/tiny").tokenizer.vocab_size
    write_nanogpt_checkpoint(vocab_size)
    export.export("out", Path("hf"))
    write_sharded_model()
    write_bpe_dataset()
    write_tokenizers()
    write_step_folder()
    write_token_shards()
    for name, layout in {"nanogpt": "nanoGPT", "numpy": "NumPy", "llmc": "llm.c"}.items():
        train_ids = np.arange(100) % vocab_size
        val_ids = np.arange(30) % vocab_size
        write_token_files(Path("data", name), layout, train_ids, val_ids)
    for path in [*Path().rglob("*.pt"), *Path().rglob("*.safetensors"), *Path().rglob("run.json")]:
        shutil.copy(path, path.with_suffix(".intact"))


def write_nanogpt_checkpoint(vocab_size):
    """Write nano/ckpt.pt."""
    shape = {**SHAPE, "vocab_size": vocab_size, "bias": True}
    ckpt = {
        "model": NanoGPT(**shape).state_dict(),
        "model_args": {**shape, "dropout": 0.0},
        "iter_num": 2,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "tiny"},
    }
    Path("nano").mkdir()
    torch.save(ckpt, "nano/ckpt.pt")


def write_sharded_model():
    """Write sharded/: the model of hf/ as two shards and an index."""
    shutil.copytree("hf", "sharded")
    tensors = load_file("sharded/model.safetensors")
    Path("sharded/model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, f"sharded/{file}")
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    Path("sharded/model.safetensors.index.json").write_text(index)


def byte_pair_tokenizer():
    return bpe_tokenizer([*(bytes([i]) for i in range(256)), b"ab", b"abc"])


def write_bpe_dataset():
    """Write data/ranks: data/tiny with a BPE tokenizer in its meta.json."""
    shutil.copytree("data/tiny", "data/ranks")
    meta = json.loads(Path("data/ranks/meta.json").read_text(encoding="utf-8"))
    bpe = byte_pair_tokenizer()
    meta |= {"tokenizer": bpe.spec(), "vocab_size": bpe.vocab_size}
    Path("data/ranks/meta.json").write_text(json.dumps(meta), encoding="utf-8")


def write_tokenizers():
    """Write two tokenizer.json files.

    our_bpe/ has one that becomes a BPETokenizer, other/ one that only the tokenizers package can
    run.
    """
    other = json.loads(Path("hf/tokenizer.json").read_text(encoding="utf-8"))
    other["normalizer"] = {"type": "Lowercase"}
    other["decoder"] = {
        "type": "Metaspace",
        "replacement": "_",
        "prepend_scheme": "never",
        "split": True,
    }
    texts = {"our_bpe": byte_pair_tokenizer().to_json(), "other": json.dumps(other)}
    for folder, text in texts.items():
        Path(folder).mkdir()
        Path(folder, "tokenizer.json").write_text(text, encoding="utf-8")


def write_step_folder():
    """Write steps/step-00000002: out/latest.pt as the checkpoint of a sharded run."""
    folder = Path("steps/step-00000002")
    folder.mkdir(parents=True)
    run = load_checkpoint(Path("out/latest.pt"), RESUME_KEYS)
    tensors = {f"model.{name}": tensor for name, tensor in run["model"].items()}
    [optimizer] = run["optimizer"]
    names = list(run["model"])[: len(optimizer["state"])]
    for name, state in zip(names, optimizer["state"].values(), strict=True):
        tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / SHARD)
    run["optimizer"] = [{"param_groups": optimizer["param_groups"], "names": names}]
    kept = {key: run[key] for key in RESUME_KEYS if key != "model"}
    write_run(folder, kept, {SHARD: describe_file(folder / SHARD)})


def write_token_shards():
    """Write data/web, from documents, as prepare.py --shard_tokens does."""
    Path("web").mkdir()
    lines = [json.dumps({"text": "o menino viu a maçã " * count}) for count in range(1, 40)]
    for file in ("a", "b"):
        Path(f"web/{file}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ["--val_input=web/b.jsonl", "--tokenizer=our_bpe", "--shard_tokens=20000"]
    prepare.main(["web", "--input=web", *options, "--workers=1"])


# Loaders: each takes the argument that a user would give, and lets errors through.


def generate(source):
    """Load a model and draw two tokens, as sample.py does."""
    config = sample.SampleConfig(init_from=source, device="cpu", max_new_tokens=2)
    generator = sample.TextGenerator(config, SamplingParams())
    list(generator.generate([[0]]))


def export_model(source):
    """Export a model, as export.py does."""
    shutil.rmtree("exported", ignore_errors=True)
    export.export(source, Path("exported"))


def run_train(*argv):
    """Run train.py, without its conversion of errors into messages."""
    parser = ConfigParser(ModelConfig, TrainConfig, description="")
    train.train(*resolve_config(parser.parse(argv)))


def resume(out_dir):
    """Resume a run for one more step."""
    run_train("--init_from=resume", f"--out_dir={out_dir}", "--max_iters=3")


def fine_tune(source):
    """Load a model with train.py --init_from=SOURCE, and evaluate it once."""
    files = (f"--init_from={source}", "--dataset=tiny", "--out_dir=tuned", "--device=cpu")
    batch = ("--batch_size=1", "--gradient_accumulation_steps=1", "--eval_iters=1")
    run_train(*files, *batch, "--eval_only=True")


def read_batches(folder):
    """Read a data set, as a run does."""
    dataset = Dataset(folder, "gpt2")
    dataset.check(dataset.tokenizer.vocab_size, 8)
    dataset.batch("train", 0, 4, 8, 0)
    list(dataset.evaluation_batches("val", 0, 4, 8))
    dataset.tokenizer.decode_bytes([0])


def use_tokenizer(folder):
    """Load a tokenizer, as prepare.py --tokenizer=FOLDER does, and use it."""
    tokenizer = prepare.existing_tokenizer(folder)
    tokenizer.decode_bytes(range(tokenizer.vocab_size))
    tokenizer.encode(getattr(tokenizer, "chars", " "))


def read_metrics(path):
    """Read a metrics.jsonl, as a resumed run does."""
    truncate_metrics(Path(path), 2)


def plot_metrics(path):
    """Read a metrics.jsonl as a resumed run does, and plot it as the next evaluation does."""
    read_metrics(path)
    plot_losses(Path("loss.png"), [to_run("out", iterate_metrics(Path(path)))])
