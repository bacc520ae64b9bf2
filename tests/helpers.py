"""What several tests share: runs and their files, processes, models away from their initial weights, tokenizers."""

import atexit
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from model import GPT, ModelConfig
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.options import Options
from seugpt.data.tokenizer import gpt2_tokenizer, load_tokenizer
from seugpt.data.tokenizer_json import BYTES
from seugpt.errors import DataError
from train import TrainConfig

ROOT = Path(__file__).parent.parent
TEXT = "O menino viu a maçã — e não comeu.\r\n\tSíssifo 🦜🦜 disse: 'não!' 12345 ==>  fim\n\n"
RUN = {  # the options of a run of seconds on data/tiny
    "dataset": "tiny", "out_dir": "out", "device": "cpu", "compile": False, "dtype": "float32",
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.0,
    "batch_size": 4, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 2, "lr_decay_iters": 10,
    "max_iters": 10, "eval_interval": 5, "eval_iters": 2, "log_interval": 1,
}  # fmt: skip
STATE = ("model", "optimizer", "scaler", "generators", "step", "best_val_loss", "val_loss")
BLOCK_SIZE = 16  # of save_perturbed_gpt
EVAL_TEXT = (
    "O menino viu a maçã — 🦜🦜 e não comeu.\n\n\tSíssifo disse: 'não!' 12345 ação\n" * 4 + "maçã"
)
EVAL_ARCHITECTURES = {
    "gpt2": {"bias": True},
    "llama": {
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "n_kv_head": 2,
        "tie_embeddings": False,
    },
    "other": {"qk_norm": True, "logit_softcap": 5.0, "mlp": "relu2", "n_kv_head": 1},
}
LLAMA = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "norm_eps": 1e-6}


# Runs and their files


def logged_metrics(out_dir="out"):
    """The lines of a run's metrics.jsonl."""
    return [
        json.loads(line)
        for line in Path(out_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def logged_values(out_dir, key):
    """What metrics.jsonl has under one key, in its order."""
    return [line[key] for line in logged_metrics(out_dir) if key in line]


def resume_state(out_dir):
    """What latest.pt has of a run, without the paths and options that may differ between two equal runs."""
    content = checkpoint.load(Path(out_dir, "latest.pt"), checkpoint.TO_RESUME)
    return {name: content[name] for name in STATE}


def nested_equal(a, b):
    """Equality of nested dictionaries, lists and tensors, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(nested_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(nested_equal, a, b))
    return a == b


def train_configs(argv):
    """(ModelConfig, TrainConfig) of a command line of train.py. Raises ConfigError."""
    return Options(argv, ModelConfig, TrainConfig, description="Test.").build()


# Processes


def run_python(*words, cwd=ROOT, **environment):
    """Run `python words...` as a process of its own, to its end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, timeout=300
    )


def torchrun(*argv, ranks=2, restarts=0, script=ROOT / "train.py"):
    """Run a script under torchrun in the current folder, to its end."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run_python(*launcher, f"--max_restarts={restarts}", script, *argv, cwd=None)


def start_script(argv, *launcher, script=ROOT / "train.py"):
    """A process of train.py in the current folder, which goes on; its output is in the file `output`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, *launcher, str(script), *argv]
    with open("output", "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    atexit.register(process.kill)  # of a test that fails
    return process


def wait_for_output(process, words):
    """Wait until the process has written these words to the file `output`."""
    deadline = time.monotonic() + 120
    while words not in (text := Path("output").read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.01)


# Models


@torch.no_grad()
def perturb(model, std=0.1):
    """The model in eval mode, away from its initial weights: fresh biases are zero, and fresh norms do nothing."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(std * torch.randn_like(parameter))
    return model.eval()


def perturbed_gpt(model_config, std=0.1):
    torch.manual_seed(0)
    return perturb(GPT(model_config), std)


def save_perturbed_gpt(spec, path="out/best.pt", padding=0, dataset="text", **changes):
    """A checkpoint with a model for the tokenizer that `spec` describes; padding: rows beyond its vocabulary."""
    shape = {"block_size": BLOCK_SIZE, "n_layer": 2, "n_head": 4, "n_embd": 32, **changes}
    model = perturbed_gpt(
        ModelConfig(**{"vocab_size": load_tokenizer(spec).vocab_size + padding, **shape})
    )
    checkpoint.save(Path(path), {
        "model": model.state_dict(), "model_config": vars(model.config), "train_config": {"dataset": dataset},
        "tokenizer": spec, "step": 1, "val_loss": 1.0,
    })  # fmt: skip
    return model


class NanoBlock(nn.Module):
    """A block as nanoGPT computes it, of torch's own parts and with the exact GELU: what its weights mean."""

    def __init__(self, C, n_head):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C), "c_proj": nn.Linear(C, C)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})
        self.n_head = n_head

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2)
                   for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1))  # fmt: skip
        scores = (q @ k.mT / (C // self.n_head) ** 0.5).masked_fill(
            torch.ones(T, T).triu(1) > 0, -torch.inf
        )
        x = x + self.attn["c_proj"]((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, bias):
        super().__init__()
        parts = {"wte": nn.Embedding(vocab_size, n_embd), "wpe": nn.Embedding(block_size, n_embd)}
        parts |= {
            "h": nn.ModuleList(NanoBlock(n_embd, n_head) for _ in range(n_layer)),
            "ln_f": nn.LayerNorm(n_embd),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx):
        x = self.transformer["wte"](idx) + self.transformer["wpe"].weight[: idx.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def load_with_transformers(folder):
    """(model in eval mode, tokenizer) as transformers loads a Hugging Face folder."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


# Tokenizers and token files


def gpt2_or_skip():
    try:
        return gpt2_tokenizer()
    except DataError as error:
        pytest.skip(str(error))


def llama3_like():
    """Byte-level BPE that cuts words in its own way and begins each text with a mark, as Llama 3's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(
        tokenizers.Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=sorted(BYTES), special_tokens=["<|begin|>", "</s>"],
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer


def llama2_like():
    """Sentencepiece's form: a blank before each text, blanks as U+2581, single bytes for what it does not know."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ["\u2581", *"omeninvuaçã", "\u2581o", "\u2581m", "\u2581v", "en", "\u2581men"]:
        vocab.setdefault(token, len(vocab))
    merges = [("\u2581", "o"), ("\u2581", "m"), ("\u2581", "v"), ("e", "n"), ("\u2581m", "en")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def llmc_file(ids, magic=20240520, version=1, tokens=None):
    """A token file of llm.c's, as bytes."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if tokens is None else tokens
    return header.tobytes() + np.asarray(ids, dtype="<u2").tobytes()


def write_token_files(folder, layout, train, val, shards=3):
    """data/NAME in a layout from elsewhere: nanoGPT (one file for a split), NumPy or llm.c."""
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


# Pages


README = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"
OPTIONS_TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)


def code_blocks(page):
    """A page's code blocks, without what a translation may change: comments, and the labels of diagrams."""
    for language, block in re.findall(
        r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
    ):
        yield language, re.sub(r'"[^"]*"' if language == "mermaid" else r" *#.*", "", block)


def text_blocks(page):
    """A page's headings, paragraphs, items and table rows in order, without the code blocks and the options table."""
    text = re.sub(
        r"```.*?```", "", OPTIONS_TABLE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL
    )
    return re.split(r"\n\s*\n|\n(?=[|-] )", text.strip())


def untranslated(block):
    """What a translation leaves as it is: the level of a heading, code between backquotes, numbers, columns."""
    found = re.findall(r"^#+ |`[^`]+`|\d+(?:[.,]\d+)*", block)
    return {" ".join(each.split()) for each in found} | {f"{block.count(' |')} columns"}
