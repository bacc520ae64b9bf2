"""Shared by many tests: runs, processes, reference models, tokenizers, documentation pages."""

import atexit
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import GPT, ModelConfig
from seugpt.checkpoint.storage import RESUME_KEYS, load_checkpoint, save_checkpoint
from seugpt.cli.config_parser import parse_configs
from seugpt.data.tokenizer import gpt2_tokenizer, load_tokenizer
from seugpt.errors import DataError
from train import TrainConfig

ROOT = Path(__file__).parent.parent
TEXT = "O menino viu a maçã — e não comeu.\r\n\tSíssifo 🦜🦜 disse: 'não!' 12345 ==>  fim\n\n"
RUN = {  # the options of a run on data/tiny that takes seconds
    "dataset": "tiny",
    "out_dir": "out",
    "device": "cpu",
    "compile": False,
    "dtype": "float32",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 16,
    "dropout": 0.0,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "min_lr": 1e-3,
    "warmup_iters": 2,
    "lr_decay_iters": 10,
    "max_iters": 10,
    "eval_interval": 5,
    "eval_iters": 2,
    "log_interval": 1,
}
SHARDED = {**RUN, "dp_shard_size": 2, "keep_last": 3, "optimizer": "muon"}  # for two ranks
STATE_KEYS = ("model", "optimizer", "scaler", "rng_states", "train_state", "step", "val_loss")
BLOCK_SIZE = 16  # of save_perturbed_gpt
EVAL_TEXT = (
    "O menino viu a maçã — 🦜🦜 e não comeu.\n\n\tSíssifo disse: 'não!' 12345 ação\n" * 4 + "maçã"
)
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "norm_eps": 1e-6}
EVAL_ARCHITECTURES = {
    "gpt2": {"bias": True},
    "llama": {**LLAMA, "n_kv_head": 2, "tie_embeddings": False},
    "other": {"qk_norm": True, "logit_softcap": 5.0, "mlp": "relu2", "n_kv_head": 1},
}


class NoWaiting(TorchDispatchMode):
    """Fails on operations that make a program wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ), func
        return func(*args, **(kwargs or {}))


# Runs and their files


def logged_metrics(out_dir="out"):
    """The lines of a run's metrics.jsonl, as dictionaries."""
    text = Path(out_dir, "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def logged_values(out_dir, key):
    """The values logged under one key of metrics.jsonl, in order."""
    return [line[key] for line in logged_metrics(out_dir) if key in line]


def resume_state(out_dir):
    """What two equal runs must agree on in latest.pt; their paths and options may differ."""
    ckpt = load_checkpoint(Path(out_dir, "latest.pt"), RESUME_KEYS)
    return {key: ckpt[key] for key in STATE_KEYS}


def rewrite_archive(path, change):
    """Write a .pt file again; change(record, data) may alter a zip record, or return other data."""
    with zipfile.ZipFile(path) as archive:
        records = [(record, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records:
            record.external_attr = 0
            archive.writestr(record, change(record, data) or data)


def replace_pickle(path, data):
    """Put another pickle into a .pt file, in which all checksums are right."""
    rewrite_archive(path, lambda record, old: data if record.filename.endswith("data.pkl") else old)


def nested_equal(a, b):
    """Whether nested dictionaries, lists and tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(nested_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(nested_equal, a, b))
    return a == b


def train_configs(argv):
    """(ModelConfig, TrainConfig) of a train.py command line. Raises ConfigError."""
    return parse_configs(argv, ModelConfig, TrainConfig, description="Test.")


# Processes


def run_python(*words, cwd=ROOT, **environment):
    """Run `python words...` in a process of its own and wait for it."""
    base = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**base, **environment},
        timeout=300,
    )


def torchrun(*argv, ranks=2, restarts=0, script=ROOT / "train.py"):
    """Run a script under torchrun in the current folder and wait for it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run_python(*launcher, f"--max_restarts={restarts}", script, *argv, cwd=None)


def start_script(argv, *launcher, script=ROOT / "train.py", **popen_options):
    """Start a script in the current folder, its output redirected to the file `output`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, *launcher, str(script), *argv]
    with open("output", "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, **popen_options
        )
    atexit.register(process.kill)  # in case the test fails
    return process


def wait_until(condition, process=None):
    """Poll until condition() is true, and return its value. Fails if the process ends first."""
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline
        if process is not None:
            assert process.poll() is None, Path("output").read_text(encoding="utf-8")
        time.sleep(0.01)
    return value


def wait_for_output(process, words):
    """Wait until the process has written `words` to the file `output`."""
    wait_until(lambda: words in Path("output").read_text(encoding="utf-8"), process)


# Models


@torch.no_grad()
def perturb(model, std=0.1):
    """Add noise to every parameter, and put the model in eval mode. Returns the model.

    Initially biases are zero and norm weights one, so a test could not tell if they were ignored.
    """
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(std * torch.randn_like(parameter))
    return model.eval()


def perturbed_gpt(model_config, std=0.1):
    torch.manual_seed(0)
    return perturb(GPT(model_config), std)


def save_perturbed_gpt(spec, path="out/best.pt", padding=0, dataset="text", **changes):
    """Save a perturbed GPT for the tokenizer `spec` as a checkpoint. Returns the model.

    `padding`: rows of the vocabulary beyond the tokenizer's tokens.
    """
    vocab_size = load_tokenizer(spec).vocab_size + padding
    shape = {"vocab_size": vocab_size, "block_size": BLOCK_SIZE}
    shape |= {"n_layer": 2, "n_head": 4, "n_embd": 32}
    model = perturbed_gpt(ModelConfig(**{**shape, **changes}))
    ckpt = {
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "train_config": {"dataset": dataset},
        "tokenizer": spec,
        "step": 1,
        "val_loss": 1.0,
    }
    save_checkpoint(Path(path), ckpt)
    return model


class NanoBlock(nn.Module):
    """nanoGPT's block, written independently with torch's layers and the exact GELU."""

    def __init__(self, C, n_head):
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.ln_2 = nn.LayerNorm(C)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, nh, T, hs)
        future_mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores = (q @ k.mT / (C // self.n_head) ** 0.5).masked_fill(future_mask, -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    """nanoGPT's model, with its parameter names."""

    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, bias):
        super().__init__()
        modules = {
            "wte": nn.Embedding(vocab_size, n_embd),
            "wpe": nn.Embedding(block_size, n_embd),
            "h": nn.ModuleList(NanoBlock(n_embd, n_head) for _ in range(n_layer)),
            "ln_f": nn.LayerNorm(n_embd),
        }
        self.transformer = nn.ModuleDict(modules)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx):
        x = self.transformer["wte"](idx) + self.transformer["wpe"].weight[: idx.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def load_with_transformers(folder):
    """(model in eval mode, tokenizer) of a Hugging Face folder, loaded by transformers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


# Tokenizers and token files


def gpt2_or_skip():
    try:
        return gpt2_tokenizer()
    except DataError as error:
        pytest.skip(str(error))


def llmc_file(ids, magic=20240520, version=1, tokens=None):
    """The bytes of a token file in llm.c's layout."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if tokens is None else tokens
    return header.tobytes() + np.asarray(ids, dtype="<u2").tobytes()


def write_token_files(folder, layout, train, val, shards=3):
    """Write a data set in an external layout: nanoGPT (one file per split), NumPy or llm.c."""
    folder.mkdir(parents=True)
    for split, ids in (("train", train), ("val", val)):
        ids = np.asarray(ids, dtype="<u2")
        if layout == "nanoGPT":
            ids.tofile(folder / f"{split}.bin")
            continue
        for number, part in enumerate(np.array_split(ids, shards)):
            if layout == "NumPy":
                np.save(folder / f"fineweb_edu_{split}_{number:06d}.npy", part)
            else:
                (folder / f"fineweb_{split}_{number:06d}.bin").write_bytes(llmc_file(part))
    return folder


# Documentation pages


README = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"
OPTIONS_TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)


def code_blocks(page):
    """(language, text) of a page's code blocks, without comments and the labels of diagrams.

    A translation may change nothing else in them.
    """
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        yield language, re.sub(r'"[^"]*"' if language == "mermaid" else r" *#.*", "", block)


def text_blocks(page):
    """A page's headings, paragraphs, list items and table rows, in order.

    Code blocks and the options table are left out.
    """
    text = OPTIONS_TABLE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.split(r"\n\s*\n|\n(?=[|-] )", text.strip())


def lost_in_translation(english, portuguese):
    """What a Portuguese block must have in common with the English one, and has not.

    That is the heading level, `code`, the number of columns, and the numbers. Portuguese prose
    writes 5.000 and 0,6 for 5,000 and 0.6; a version such as 3.11 stays what it is.
    """
    return (kept_parts(english) ^ kept_parts(portuguese)) | (
        other_numbers(english, portuguese) | other_numbers(portuguese, english)
    )


NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def kept_parts(block):
    found = re.findall(r"^#+ |`[^`]+`", block)
    return {" ".join(each.split()) for each in found} | {f"{block.count(' |')} columns"}


def other_numbers(block, other):
    """The numbers of a block that the other language's block lacks."""
    numbers, others = (set(NUMBER.findall(re.sub(r"`[^`]+`", "", b))) for b in (block, other))
    swapped = {number.translate(str.maketrans(",.", ".,")) for number in others}
    versions = {number for number in others if "," not in number}
    return numbers - swapped - versions


FIGURE = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?")


def assert_same_figures(computed, committed, absolute):
    """Two texts of a lesson: the same words, and numbers that differ by rounding alone."""
    words = []
    numbers = []
    for text in (computed, committed):
        words.append(FIGURE.sub("#", text).split())
        numbers.append([float(figure.replace(",", "")) for figure in FIGURE.findall(text)])
    assert words[0] == words[1]
    assert numbers[0] == pytest.approx(numbers[1], abs=absolute, rel=1e-3)
