"""Damaged files of every kind that is read: each loads, or raises a UserError that names it.

A mutation is a pure function of its case and number. With 500 of each instead of 10:
python -m pytest -m slow tests/robustness/test_fuzz.py
"""

import json
import random
import re
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seugpt.checkpoint import pretrained
from seugpt.checkpoint.sharded import describe_file
from seugpt.errors import CheckpointError, UserError
from tests.helpers import replace_pickle
from tests.robustness.loaders import (
    SHARD,
    export_model,
    fine_tune,
    generate,
    plot_metrics,
    read_batches,
    read_metrics,
    resume,
    use_tokenizer,
)

MAX_BYTES = 2**30  # by which the process may grow in one test
DEEP = "<deep nesting>"  # replaced by brackets in the text: json.dumps cannot nest that deep
WRONG_VALUES = (
    *(None, True, False, 0, -1, 3, 2**31, 2**63, 10**12, 10**400),
    *(0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "cpu", "../x", "\0", "\ud800", "é" * 999, DEEP),
    *([], [0], {}, {"a": 1}, {"kind": "char"}, [[1]]),
)
# What a UserError may name instead of the file: the content is valid but does not fit the data or
# the machine, leads to a NaN loss, or has no equivalent in transformers.
OTHER_CAUSES = {"data/", "device=", "tuned", "cannot express this model"}


# Mutations: functions of a random.Random and the intact content


def random_slice(rng, content):
    size = len(content)
    start, stop = sorted(rng.randrange(size + 1) for _ in range(2))
    return start, rng.choice([stop, min(start + rng.randint(1, 16), size)])


def flip_bits(rng, content):
    if content:
        for position in rng.choices(range(len(content)), k=rng.randint(1, 8)):
            content[position] ^= 1 << rng.randrange(8)


def truncate(rng, content):
    del content[rng.randrange(len(content) + 1) :]


def append_noise(rng, content):
    content += rng.randbytes(rng.choice([1, 2, 100, 5000]))


def zero_slice(rng, content):
    start, stop = random_slice(rng, content)
    content[start:stop] = bytes(stop - start)


def repeat_slice(rng, content):
    start, stop = random_slice(rng, content)
    content[stop:stop] = content[start:stop]


def move_slice(rng, content):
    """Swap a slice with what follows it."""
    start, stop = random_slice(rng, content)
    content[start:stop] = content[stop : stop + (stop - start)] + content[start:stop]


def change_digits(rng, content):
    digits = [position for position, byte in enumerate(content) if 48 <= byte < 58]
    if digits:
        for position in rng.choices(digits, k=rng.randint(1, 4)):
            content[position] = rng.choice(b"0123456789-e.")


def mutate_bytes(rng, content):
    """The content with one to three faults of a disk, a download, a copy or an editor."""
    faults = [flip_bits, truncate, append_noise, zero_slice]
    faults += [repeat_slice, move_slice, change_digits]
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        rng.choice(faults)(rng, content)
    return bytes(content)


def mutate_value(rng, value, wrong):
    """A copy of nested dictionaries and lists with one change.

    A key is removed or renamed, or a value is replaced by wrong(rng, value).
    """
    if not isinstance(value, dict | list | tuple) or not value or rng.random() < 0.15:
        return wrong(rng, value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    result = dict(value) if isinstance(value, dict) else list(value)
    draw = rng.random()
    if draw < 0.1:
        del result[key]
    elif draw < 0.15 and isinstance(value, dict):
        result[rng.choice(["x", "", 7, "../x"])] = result.pop(key)
    else:
        result[key] = mutate_value(rng, value[key], wrong)
    return type(value)(result)


def wrong_value(rng, value):
    return rng.choice(WRONG_VALUES)


def mutate_json(rng, content):
    text = json.dumps(mutate_value(rng, json.loads(content), wrong_value))
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def mutate_lines(rng, content):
    """Mutate one line of metrics.jsonl as JSON."""
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = mutate_json(rng, lines[number])
    return b"\n".join(lines)


def wrong_tensor(rng, value):
    """A tensor that no run writes in this place, or any other wrong value."""
    if not isinstance(value, torch.Tensor) or rng.random() < 0.1:
        tensors = [torch.tensor(2.5), torch.zeros(0), torch.zeros(1, dtype=torch.uint8)]
        return rng.choice([*WRONG_VALUES, *tensors])
    if value.is_quantized or value.is_sparse or value.is_meta:  # an earlier mutation made it so
        return value
    floats = value.float()
    dtypes = [torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64]
    changes = [
        lambda: value.to(rng.choice(dtypes)),
        lambda: value.flatten() if value.dim() > 1 else value[None],
        lambda: value[:-1] if value.dim() else value[None],
        lambda: torch.cat((floats, floats)) if value.dim() else floats.expand(3),
        lambda: torch.full_like(floats, rng.choice([float("nan"), float("inf"), 1e38])),
        lambda: floats.to_sparse(),
        lambda: torch.quantize_per_tensor(floats, 0.1, 0, torch.qint8),
        lambda: torch.empty_like(value, device="meta"),
        lambda: torch.zeros(1).expand(2**18, 2**18),  # 256 GiB, if anything computes with it
        lambda: torch.zeros(()).expand(value.shape),
        lambda: torch.nn.Parameter(floats),
    ]
    return rng.choice(changes)()


def mutate_checkpoint(rng, path):
    """Write a .pt file that is intact as a file, with one or two wrong values in it."""
    ckpt = torch.load(path.with_suffix(".intact"), weights_only=True)
    for _ in range(rng.choice([1, 1, 2])):
        ckpt = mutate_value(rng, ckpt, wrong_tensor)
    torch.save(ckpt, path)


def mutate_pickle(rng, path):
    """Write a .pt file whose pickle is damaged, while all checksums are right."""
    shutil.copy(path.with_suffix(".intact"), path)
    with zipfile.ZipFile(path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickle = archive.read(name)
    replace_pickle(path, mutate_bytes(rng, pickle))


def mutate_safetensors(rng, path):
    """Write a .safetensors file with one tensor changed, renamed or removed."""
    tensors = load_file(path.with_suffix(".intact"))
    name = rng.choice(list(tensors))
    value = wrong_tensor(rng, tensors.pop(name))
    can_be_stored = (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )
    if can_be_stored:
        if value.is_quantized or value.numel() > 10**6:
            value = torch.zeros(3)
        tensors[rng.choice([name, name, name, "x"])] = value.detach().clone().contiguous()
    save_file(tensors, path)


def mutate_step_folder(rng, path):
    """Write a sharded checkpoint with wrong values, in run.json or a shard, and right checksums."""
    folder = path.parent
    shard = folder / SHARD
    shutil.copy(shard.with_suffix(".intact"), shard)
    run = json.loads((folder / "run.intact").read_text())
    if rng.random() < 0.5:
        mutate_safetensors(rng, shard)
        run["files"] = {SHARD: describe_file(shard)}
    else:
        run = mutate_value(rng, run, wrong_value)
    if isinstance(run, dict):
        run.pop("crc32", None)
        run["crc32"] = zlib.crc32(json.dumps(run).encode())
    path.write_text(json.dumps(run))


WRITERS = (
    mutate_step_folder,
    mutate_checkpoint,
    mutate_pickle,
    mutate_safetensors,
)  # the other mutations return the file's content
JSON = (mutate_bytes, mutate_json)
CHECKPOINT = (mutate_bytes, mutate_pickle, mutate_checkpoint)
SAFETENSORS = (mutate_bytes, mutate_safetensors)
INDEX_FILE = "sharded/model.safetensors.index.json"
SHARD_FILE = "sharded/model-1.safetensors"
NPY_FILE = "data/numpy/fineweb_edu_train_000001.npy"
LLMC_FILE = "data/llmc/fineweb_train_000001.bin"
TOKENS_FILE = "data/web/train_00000_0000.npy"
STEP = "steps/step-00000002"
METRICS_FILE = "out/metrics.jsonl"

# {case: (the file to damage, what loads it, from which argument, mutations)}
CASES = {
    "best.pt": ("out/best.pt", generate, "out/best.pt", CHECKPOINT),
    "best.pt, exported": ("out/best.pt", export_model, "out/best.pt", [mutate_checkpoint]),
    "best.pt, fine-tuned": ("out/best.pt", fine_tune, "out/best.pt", [mutate_checkpoint]),
    "latest.pt": ("out/latest.pt", resume, "out", CHECKPOINT),
    "ckpt.pt": ("nano/ckpt.pt", generate, "nano", CHECKPOINT),
    "config.json": ("hf/config.json", generate, "hf", JSON),
    "model.safetensors": ("hf/model.safetensors", generate, "hf", SAFETENSORS),
    "tokenizer.json": ("hf/tokenizer.json", generate, "hf", JSON),
    "index.json": (INDEX_FILE, generate, "sharded", JSON),
    "model-1.safetensors": (SHARD_FILE, generate, "sharded", SAFETENSORS),
    "tokenizer.json, other": ("other/tokenizer.json", use_tokenizer, "other", JSON),
    "tokenizer.json, our BPE": ("our_bpe/tokenizer.json", use_tokenizer, "our_bpe", JSON),
    "meta.json": ("data/tiny/meta.json", read_batches, "data/tiny", JSON),
    "meta.json, BPE": ("data/ranks/meta.json", read_batches, "data/ranks", JSON),
    "meta.json, shards": ("data/web/meta.json", read_batches, "data/web", JSON),
    "shard": (TOKENS_FILE, read_batches, "data/web", [mutate_bytes]),
    "run.json": (f"{STEP}/run.json", generate, STEP, [mutate_bytes, mutate_step_folder]),
    "run.json, resumed": (f"{STEP}/run.json", resume, "steps", [mutate_step_folder]),
    "shard of a checkpoint": (f"{STEP}/{SHARD}", generate, STEP, [mutate_bytes]),
    "meta.json as a tokenizer": ("data/tiny/meta.json", use_tokenizer, "data/tiny", JSON),
    "train.bin": ("data/tiny/train.bin", read_batches, "data/tiny", [mutate_bytes]),
    "nanoGPT's val.bin": ("data/nanogpt/val.bin", read_batches, "data/nanogpt", [mutate_bytes]),
    ".npy": (NPY_FILE, read_batches, "data/numpy", [mutate_bytes]),
    "llm.c's .bin": (LLMC_FILE, read_batches, "data/llmc", [mutate_bytes]),
    "metrics.jsonl": (METRICS_FILE, read_metrics, METRICS_FILE, [mutate_bytes]),
    "metrics.jsonl, plotted": (METRICS_FILE, plot_metrics, METRICS_FILE, [mutate_lines]),
}


def find_fault(load, argument, path):
    """What went wrong in loading a damaged file; None if it loaded, or if a UserError names it."""
    try:
        load(argument)
    except UserError as error:
        names = {path.name, str(path.parent), argument, *OTHER_CAUSES}
        named = any(name in str(error) for name in names)
        return None if named else f"no file is named: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def files_of(folder):
    return {path: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def peak_memory():
    """The largest size of this process so far, in bytes; 0 where it is not recorded."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.parametrize("name", CASES)
def test_intact_file_loads(intact_files, name):
    """Without this, the fuzz test would pass if the same error always came first."""
    _, load, argument, _ = CASES[name]
    load(argument)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about mutated tensors
@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_damaged_file_loads_or_is_refused_by_name(intact_files, name, count):
    """No mutation leads to another exception than a UserError, or to much memory."""
    file, load, argument, mutations = CASES[name]
    path = Path(file)
    intact = path.read_bytes()
    run_files = files_of(argument) if load is resume else {}
    memory_before = peak_memory()
    faults = []
    for mutate in mutations:
        for number in range(count):
            rng = random.Random(f"{file} {mutate.__name__} {number}")
            if mutate in WRITERS:
                mutate(rng, path)
            else:
                path.write_bytes(mutate(rng, intact))
            fault = find_fault(load, argument, path)
            if fault:
                fault = re.sub(r"[^ -~]+", " ", fault)[:300]
                faults.append(f"{mutate.__name__} {number}: {fault}")
            if load is resume:  # which writes to the run's folder
                for other in files_of(argument):
                    other.unlink()
                for other, content in run_files.items():
                    other.write_bytes(content)
    assert not faults, f"{len(faults)} of {count * len(mutations)}:\n" + "\n".join(faults[:20])
    assert peak_memory() - memory_before < MAX_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.long(),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor > 0,
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.empty_like(tensor, device="meta"),
        lambda tensor: torch.zeros(()).expand(tensor.shape),
        lambda tensor: tensor.tolist(),
        lambda tensor: None,
    ],
    ids=["int64", "complex64", "bool", "sparse", "meta", "expanded view", "list", "None"],
)
@pytest.mark.parametrize("name", ["wte.weight", "unknown.weight"])
def test_weights_that_are_not_plain_float_arrays_are_refused_by_name(intact_files, change, name):
    """Integers and complex numbers were cast silently.

    A view that expands one number to 2**36 was taken too, and took all memory.
    """
    ckpt = torch.load("out/best.pt", weights_only=True)
    ckpt["model"][name] = change(ckpt["model"]["wte.weight"])
    torch.save(ckpt, "out/best.pt")
    reason = rf"{name}.* floating-point|refers to 'torch"
    with pytest.raises(CheckpointError, match=rf"best\.pt.*({reason})"):
        generate("out/best.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 10**12},
        {"n_layer": 10**5},
        {"n_layer": -1},
        {"n_layer": 1.5},
        {"n_layer": None},
        {"n_embd": 2**40},
        {"n_head": 10**30},
        {"vocab_size": 2**62},
        {"block_size": 10**400},
        {"mlp_hidden": 10**15},
    ],
    ids=lambda change: "{}={:.4}".format(*change.keys(), *map(str, change.values())),
)
def test_absurd_sizes_are_refused_without_building_a_model(intact_files, monkeypatch, change):
    ckpt = torch.load("out/best.pt", weights_only=True)
    ckpt["model_config"] |= {"position": "learned", **change}
    torch.save(ckpt, "out/best.pt")
    monkeypatch.setattr(pretrained, "GPT", lambda config: pytest.fail("a model was built"))
    memory_before = peak_memory()
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        generate("out/best.pt")
    assert peak_memory() - memory_before < MAX_BYTES
