"""How long whole commands take, from start to end: prepare.py, and train.py beside nanoGPT's."""

import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from pickle import dumps  # to write what nanoGPT reads; no pickle is loaded here

import tiktoken

from model import pick_device
from seugpt.cli.config_parser import to_source
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path, token_dtype
from seugpt.data.records import import_pyarrow
from seugpt.errors import ConfigError
from seugpt.training.init_from import with_vocabulary

DOCUMENT_CHARS = 3000  # of a benchmark's document
NUM_FILES = 8  # of a benchmark's corpus
ROOT = Path(__file__).resolve().parents[2]
NANOGPT_OPTIONS = (  # of nanoGPT's train.py, beside the data, the device and the folder
    "eval_interval",
    "log_interval",
    "eval_iters",
    "gradient_accumulation_steps",
    "batch_size",
    "block_size",
    "n_layer",
    "n_head",
    "n_embd",
    "dropout",
    "bias",
    "learning_rate",
    "max_iters",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "decay_lr",
    "warmup_iters",
    "lr_decay_iters",
    "min_lr",
)
EVALUATION_LINE = re.compile(r"^step (\d+): train loss .*val loss (\S+)", re.MULTILINE)


def run_timed(words, folder="."):
    """Run a command in a folder. Returns (seconds, what it printed).

    Raises ConfigError if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, words)), cwd=folder, capture_output=True, encoding="utf-8", errors="replace"
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else "no message"
        raise ConfigError(f"{words[1]} failed with exit code {done.returncode}: {last}")
    return seconds, done.stdout


def time_prepare(text, tokenizer, folder):
    """Seconds of prepare.py on the file `text`, in a scratch folder."""
    words = [
        sys.executable,
        ROOT / "prepare.py",
        "bench",
        f"--input={text}",
        f"--tokenizer={tokenizer}",
    ]
    seconds, _ = run_timed(words, folder)
    return seconds


def split_documents(text):
    """The text in pieces of about DOCUMENT_CHARS characters, each of whole paragraphs."""
    documents = [""]
    for paragraph in text.split("\n\n"):
        if len(documents[-1]) > DOCUMENT_CHARS:
            documents.append("")
        documents[-1] += paragraph + "\n\n"
    return documents


def write_parquet_files(folder, documents, repeat):
    """Write `repeat` copies of the documents to NUM_FILES files, and one document to val.parquet.

    Returns the bytes of the text in all of them.
    """
    pyarrow = import_pyarrow()
    folder.mkdir()
    all_documents = documents * repeat
    files = {f"{n}.parquet": all_documents[n::NUM_FILES] for n in range(NUM_FILES)}
    for name, texts in {**files, "val.parquet": documents[:1]}.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / name)
    return sum(len(text.encode()) for text in [*all_documents, documents[0]])


def time_tiktoken(documents, repeat):
    """Seconds that tiktoken takes for the documents on one core."""
    encoding = tiktoken.get_encoding("gpt2")
    start = time.perf_counter()
    for _ in range(repeat):
        for text in documents:
            encoding.encode_ordinary(text)
    return time.perf_counter() - start


def time_shards(folder, num_workers):
    """Seconds of prepare.py --shard_tokens on the files of write_parquet_files in folder/texts."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    words = [
        sys.executable,
        ROOT / "prepare.py",
        "bench",
        "--input=texts",
        "--val_input=texts/val.parquet",
        "--tokenizer=gpt2",
        "--shard_tokens=1e7",
        f"--workers={num_workers}",
    ]
    seconds, _ = run_timed(words, folder)
    return seconds


def time_run(words, folder):
    """(seconds, step, validation loss at its end) of a train.py. Raises ConfigError."""
    seconds, printed = run_timed(words, folder)
    evaluations = EVALUATION_LINE.findall(printed)
    if not evaluations:
        raise ConfigError(f"{words[1]} printed no validation loss")
    step, loss = evaluations[-1]
    return seconds, int(step), float(loss.rstrip(","))


def our_command(folder, model_config, config):
    """(words, working folder) of our run, with everything that it writes in `folder`."""
    config = replace(config, out_dir=str(folder / "out"), wandb_log=False)
    (folder / "run.py").write_text(to_source(model_config, config), encoding="utf-8")
    return [sys.executable, ROOT / "train.py", folder / "run.py"], "."


def nanogpt_command(source, folder, model_config, config):
    """(words, working folder) of the same run by nanoGPT, from its source.

    It has GPT-2's architecture at our sizes. Raises ConfigError.
    """
    data = dataset_path(config.dataset)
    dataset = Dataset(data, config.tokenizer)
    vocab_size = link_data_for_nanogpt(dataset, folder / "data" / data.name, model_config)
    # Its train.py looks for the vocabulary in a pickle, and here for configurator.py.
    (folder / "data" / data.name / "meta.pkl").write_bytes(dumps({"vocab_size": vocab_size}))
    (folder / "configurator.py").symlink_to(Path(source, "configurator.py").resolve())
    device = pick_device(config.device)
    ours = {**vars(model_config), **vars(config)}
    theirs = {name: ours[name] for name in NANOGPT_OPTIONS}
    theirs |= {
        "dataset": data.name,
        "device": str(device),
        "compile": config.compiles(device),
        "always_save_checkpoint": False,
        "out_dir": "out",
    }
    if config.dtype != "auto":
        theirs["dtype"] = config.dtype
    lines = [f"{name} = {value!a}\n" for name, value in theirs.items()]
    (folder / "run.py").write_text("".join(lines), encoding="ascii")
    return [sys.executable, Path(source, "train.py").resolve(), "run.py"], folder


def link_data_for_nanogpt(dataset, target, model_config):
    """Link train.bin and val.bin of a data set to `target`. Returns the vocab_size.

    Raises ConfigError.
    """
    data = dataset.path
    if not (data / "train.bin").is_file() or token_dtype(dataset.tokenizer.vocab_size).itemsize > 2:
        raise ConfigError(
            f"nanoGPT cannot read {data}: it needs train.bin and val.bin, with ids of 16 bits"
        )
    target.mkdir(parents=True)
    for file in ("train.bin", "val.bin"):
        (target / file).symlink_to((data / file).resolve())
    return with_vocabulary(model_config, dataset.tokenizer, data.name).vocab_size


def check_whole_run(baseline, config):
    """Raise ConfigError unless it is a run from scratch that nanoGPT evaluates when we do."""
    unusual = []
    if config.eval_only or config.report:
        unusual.append("eval_only=True" if config.eval_only else "report=True")
    if config.init_from != "scratch":
        unusual.append(f"init_from={config.init_from}")
    if unusual:
        raise ConfigError(
            f"{', '.join(unusual)}: run measures whole runs from scratch; remove that"
        )
    if baseline and (config.eval_iters == 0 or config.max_iters % config.eval_interval):
        raise ConfigError(
            f"eval_iters={config.eval_iters}, eval_interval={config.eval_interval}, "
            f"max_iters={config.max_iters}: nanoGPT cannot evaluate a whole split, "
            "and evaluates at its end only if eval_interval divides max_iters"
        )
