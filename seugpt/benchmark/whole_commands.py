"""How long whole commands take, from their start to their end: prepare.py, and train.py beside nanoGPT's."""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import dumps  # to write what nanoGPT reads; no pickle is read here

import torch

from model import pick_device
from seugpt.benchmark.hardware import ratios, record, spread
from seugpt.cli.options import to_source
from seugpt.data.corpora import obtain
from seugpt.data.dataset import Dataset, dataset_path, token_dtype
from seugpt.errors import ConfigError
from seugpt.training.init_from import with_vocabulary

HERE = Path(__file__).resolve().parents[2]
# What nanoGPT's train.py can be told, beside the data, the device and the folder.
NANOGPT_OPTIONS = (
    *(
        "eval_interval",
        "log_interval",
        "eval_iters",
        "gradient_accumulation_steps",
        "batch_size",
        "block_size",
    ),
    *(
        "n_layer",
        "n_head",
        "n_embd",
        "dropout",
        "bias",
        "learning_rate",
        "max_iters",
        "weight_decay",
    ),
    *("beta1", "beta2", "grad_clip", "decay_lr", "warmup_iters", "lr_decay_iters", "min_lr"),
)


def timed(command, folder="."):
    """Run a command in a folder. Returns (seconds, what it printed). Raises ConfigError where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, encoding="utf-8", errors="replace"
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:] or [
            "it said nothing"
        ]
        raise ConfigError(f"{command[1]} failed, with the exit code {done.returncode}: {last[0]}")
    return seconds, done.stdout


def prepare(options):
    """Megabytes per second of prepare.py as a whole, its start included, for each tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        if options.input is None:
            obtain("python_docs", path)
        size = path.write_bytes(Path(options.input or path).read_bytes() * options.repeat)
        for tokenizer in options.tokenizer:
            command = [
                sys.executable,
                HERE / "prepare.py",
                "bench",
                f"--input={path}",
                f"--tokenizer={tokenizer}",
            ]
            seconds = [timed(command, folder)[0] for _ in range(options.rounds)]
            speed = size / statistics.median(seconds) / 1e6
            print(
                f"{tokenizer}: {speed:.1f} MB/s ({size / 1e6:.0f} MB in {spread(seconds, '.2f')} s)"
            )
            result = {"bench": "prepare", "tokenizer": tokenizer, "mb_per_s": speed, "bytes": size}
            record(options.results, torch.device("cpu"), **result, rounds_s=seconds)


def our_command(folder, model_config, train_config):
    """The command of the run, with all that it writes in the folder; and where to call it."""
    options = replace(train_config, out_dir=str(folder / "out"), wandb_log=False)
    (folder / "run.py").write_text(to_source(model_config, options), encoding="utf-8")
    return [sys.executable, HERE / "train.py", folder / "run.py"], "."


def nanogpt_command(source, folder, model_config, train_config):
    """The same for nanoGPT, from its source: GPT-2's architecture at our sizes, on our tokens. Raises ConfigError."""
    data = dataset_path(train_config.dataset)
    dataset = Dataset(data)
    if not (data / "train.bin").is_file() or token_dtype(dataset.tokenizer.vocab_size).itemsize > 2:
        raise ConfigError(
            f"nanoGPT cannot read {data}: it needs train.bin and val.bin, with ids of 16 bits"
        )
    theirs = folder / "data" / data.name
    theirs.mkdir(parents=True)
    for split in ("train.bin", "val.bin"):
        (theirs / split).symlink_to((data / split).resolve())
    V = with_vocabulary(model_config, dataset.tokenizer, data.name).vocab_size
    (theirs / "meta.pkl").write_bytes(dumps({"vocab_size": V}))  # where its train.py looks for it
    (folder / "configurator.py").symlink_to(
        Path(source, "configurator.py").resolve()
    )  # found in the current folder
    device = pick_device(train_config.device)
    given = {**vars(model_config), **vars(train_config)}
    given = {name: given[name] for name in NANOGPT_OPTIONS} | {
        "dataset": data.name,
        "device": str(device),
    }
    given |= {
        "compile": train_config.compiles(device),
        "always_save_checkpoint": False,
        "out_dir": "out",
    }
    given |= {"dtype": train_config.dtype} if train_config.dtype != "auto" else {}
    (folder / "run.py").write_text(
        "".join(f"{k} = {v!a}\n" for k, v in given.items()), encoding="ascii"
    )
    return [sys.executable, Path(source, "train.py").resolve(), "run.py"], folder


def demand_whole_run(options, train_config):
    """Raise ConfigError where train.py would not train from the start, or nanoGPT would not evaluate when we do."""
    names = ("eval_only", "report", "measure", "init_from")
    odd = [f"{n}={v}" for n in names if (v := getattr(train_config, n)) not in (False, "scratch")]
    if odd:
        raise ConfigError(f"{', '.join(odd)}: run measures whole runs from scratch; leave that out")
    steps, interval = train_config.max_iters, train_config.eval_interval
    if options.peer and (train_config.eval_iters == 0 or steps % interval):
        raise ConfigError(
            f"eval_iters={train_config.eval_iters}, eval_interval={interval}, max_iters={steps}: nanoGPT cannot "
            "evaluate a whole split, and evaluates at its end only where eval_interval divides max_iters"
        )


def run(options, model_config, train_config):
    """Seconds of a whole run of train.py: its start, compilation, evaluations and checkpoints included."""
    demand_whole_run(options, train_config)
    makers = {"seuGPT": our_command}
    if options.peer:
        makers["nanoGPT"] = partial(nanogpt_command, options.peer)
        with tempfile.TemporaryDirectory() as folder:  # what is wrong shows before our run is made
            makers["nanoGPT"](Path(folder), model_config, train_config)
    seconds = {name: [] for name in makers}
    for _ in range(options.rounds):
        for name, make in makers.items():
            with tempfile.TemporaryDirectory() as folder:
                took, printed = timed(*make(Path(folder), model_config, train_config))
            losses = re.findall(
                r"^step (\d+): train loss .*val\w* loss (\S+)", printed, re.MULTILINE
            )
            if not losses:
                raise ConfigError(f"the train.py of {name} printed no validation loss")
            step, loss = losses[-1]
            print(
                f"{name}: {took:.1f} s, validation loss {float(loss):.4f} at step {step}",
                flush=True,
            )
            seconds[name].append(took)
            result = {"contender": name, "seconds": took, "steps": int(step), "loss": float(loss)}
            record(options.results, pick_device(train_config.device), bench="run", **result)
    for name, rounds in seconds.items():
        times = ratios(rounds, seconds["seuGPT"])
        print(f"{name}: {spread(rounds, '.1f')} s, {spread(times, '.2f')} times ours")
