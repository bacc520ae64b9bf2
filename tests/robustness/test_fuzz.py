"""Damaged files of every kind that is read: each is loaded, or refused with this program's own message naming it.

A mutation is a pure function of its case and number. The long form:
python -m pytest -m slow tests/robustness/test_fuzz.py
"""

import json
import random
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seugpt.errors import CheckpointError
from tests.robustness.loaders import (
    KNOWN_ERRORS,
    draw_logged,
    fine_tune,
    read_logged,
    resume,
    speak,
    take_batches,
    take_tokenizer,
    write_out,
)

SECONDS, BYTES = (
    20,
    2**30,
)  # one damaged file may take so long, and all of a case so much more memory
DEEP = "<deep nesting>"  # becomes brackets in the text: json.dumps would not write so many
WRONG = (None, True, False, 0, -1, 3, 2**31, 2**63, 10**12, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
         "cpu", "../x", "\0", "\ud800", "é" * 999, DEEP, [], [0], {}, {"a": 1}, {"kind": "char"}, [[1]])  # fmt: skip


def mutate_bytes(dice, content):
    """The content with one to three faults of a disk, a download, a copy or an editor."""
    content = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        size = len(content)
        a, b = sorted(dice.randrange(size + 1) for _ in range(2))
        b = dice.choice([b, min(a + dice.randint(1, 16), size)])
        how = dice.randrange(7)
        if how == 0:
            for at in dice.choices(range(size), k=dice.randint(1, 8)) if size else ():
                content[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            del content[a:]
        elif how == 2:
            content += dice.randbytes(dice.choice([1, 2, 100, 5000]))
        elif how == 3:
            content[a:b] = bytes(b - a)
        elif how == 4:
            content[b:b] = content[a:b]
        elif how == 5:
            content[a:b] = content[b : b + (b - a)] + content[a:b]
        else:
            digits = [at for at, byte in enumerate(content) if 48 <= byte < 58]
            for at in dice.choices(digits, k=dice.randint(1, 4)) if digits else ():
                content[at] = dice.choice(b"0123456789-e.")
    return bytes(content)


def mutate_value(dice, value, wrong):
    """A nest of dictionaries and lists with one key less, or one value changed by `wrong`(dice, value)."""
    if not isinstance(value, dict | list | tuple) or not value or dice.random() < 0.15:
        return wrong(dice, value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = dice.choice(keys)
    result = dict(value) if isinstance(value, dict) else list(value)
    how = dice.random()
    if how < 0.1:
        del result[key]
    elif how < 0.15 and isinstance(value, dict):
        result[dice.choice(["x", "", 7, "../x"])] = result.pop(key)
    else:
        result[key] = mutate_value(dice, value[key], wrong)
    return type(value)(result)


def wrong_value(dice, value):
    return dice.choice(WRONG)


def mutate_json(dice, content):
    text = json.dumps(mutate_value(dice, json.loads(content), wrong_value))
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def mutate_lines(dice, content):
    """One line of metrics.jsonl, mutated as JSON."""
    lines = content.splitlines()
    at = dice.randrange(len(lines))
    lines[at] = mutate_json(dice, lines[at])
    return b"\n".join(lines)


def wrong_tensor(dice, value):
    """A tensor that no run writes in this place, or any other wrong value."""
    if not isinstance(value, torch.Tensor) or dice.random() < 0.1:
        return dice.choice(
            [*WRONG, torch.tensor(2.5), torch.zeros(0), torch.zeros(1, dtype=torch.uint8)]
        )
    if value.is_quantized or value.is_sparse or value.is_meta:  # by the mutation before
        return value
    floating = value.float()
    changes = [
        lambda: value.to(
            dice.choice([torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64])
        ),
        lambda: value.flatten() if value.dim() > 1 else value[None],
        lambda: value[:-1] if value.dim() else value[None],
        lambda: torch.cat((floating, floating)) if value.dim() else floating.expand(3),
        lambda: torch.full_like(floating, dice.choice([float("nan"), float("inf"), 1e38])),
        lambda: floating.to_sparse(),
        lambda: torch.quantize_per_tensor(floating, 0.1, 0, torch.qint8),
        lambda: torch.empty_like(value, device="meta"),
        lambda: torch.zeros(1).expand(2**18, 2**18),  # 256 GiB, if anybody computes with it
        lambda: torch.zeros(()).expand(value.shape),
        lambda: torch.nn.Parameter(floating),
    ]
    return dice.choice(changes)()


def mutate_checkpoint(dice, content, path):
    """A whole .pt file with something else inside: here and there several things."""
    content = torch.load(path.with_suffix(".whole"), weights_only=True)
    for _ in range(dice.choice([1, 1, 2])):
        content = mutate_value(dice, content, wrong_tensor)
    torch.save(content, path)
    return path.read_bytes()


def mutate_safetensors(dice, content, path):
    tensors = load_file(path.with_suffix(".whole"))
    name = dice.choice(list(tensors))
    value = wrong_tensor(dice, tensors.pop(name))
    if (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    ):
        value = (
            torch.zeros(3)
            if value.is_quantized or value.numel() > 10**6
            else value.detach().clone().contiguous()
        )
        tensors[dice.choice([name, name, name, "x"])] = value
    save_file(tensors, path)
    return path.read_bytes()


CASES = {  # the mutated file, what loads it from which argument, and the kinds of its mutations
    "best.pt": ("out/best.pt", speak, "out/best.pt", (mutate_bytes, mutate_checkpoint)),
    "best.pt, exported": ("out/best.pt", write_out, "out/best.pt", (mutate_checkpoint,)),
    "best.pt, trained on": ("out/best.pt", fine_tune, "out/best.pt", (mutate_checkpoint,)),
    "latest.pt": ("out/latest.pt", resume, "out", (mutate_bytes,)),
    "latest.pt, inside": ("out/latest.pt", resume, "out", (mutate_checkpoint,)),
    "ckpt.pt": ("nano/ckpt.pt", speak, "nano", (mutate_bytes, mutate_checkpoint)),
    "config.json": ("hf/config.json", speak, "hf", (mutate_bytes, mutate_json)),
    "model.safetensors": ("hf/model.safetensors", speak, "hf", (mutate_bytes, mutate_safetensors)),
    "tokenizer.json": ("hf/tokenizer.json", speak, "hf", (mutate_bytes, mutate_json)),
    "index.json": ("sharded/model.safetensors.index.json", speak, "sharded", (mutate_bytes, mutate_json)),
    "model-1.safetensors": ("sharded/model-1.safetensors", speak, "sharded", (mutate_bytes, mutate_safetensors)),
    "tokenizer.json, another kind": ("foreign/tokenizer.json", take_tokenizer, "foreign", (mutate_json, mutate_bytes)),
    "tokenizer.json, BPE": ("merged/tokenizer.json", take_tokenizer, "merged", (mutate_bytes, mutate_json)),
    "meta.json": ("data/tiny/meta.json", take_batches, "data/tiny", (mutate_bytes, mutate_json)),
    "meta.json, BPE": ("data/ranks/meta.json", take_batches, "data/ranks", (mutate_bytes, mutate_json)),
    "meta.json as a tokenizer": ("data/tiny/meta.json", take_tokenizer, "data/tiny", (mutate_bytes, mutate_json)),
    "train.bin": ("data/tiny/train.bin", take_batches, "data/tiny", (mutate_bytes,)),
    "nanoGPT's val.bin": ("data/nanogpt/val.bin", take_batches, "data/nanogpt", (mutate_bytes,)),
    ".npy": ("data/numpy/fineweb_edu_train_000001.npy", take_batches, "data/numpy", (mutate_bytes,)),
    "llm.c's .bin": ("data/llmc/fineweb_train_000001.bin", take_batches, "data/llmc", (mutate_bytes,)),
    "metrics.jsonl": ("out/metrics.jsonl", read_logged, "out/metrics.jsonl", (mutate_bytes,)),
    "metrics.jsonl, drawn": ("out/metrics.jsonl", draw_logged, "out/metrics.jsonl", (mutate_lines,)),
}  # fmt: skip


def outcome(load, argument, path):
    """None where all is well: it was loaded, or refused with a message that names the file; else what went wrong."""
    start = time.perf_counter()
    try:
        load(argument)
    except KNOWN_ERRORS as error:
        # What is sound in itself may not fit the data or the machine, lead to a loss of NaN, or have no place in
        # transformers.
        names = {
            path.name,
            str(path.parent),
            argument,
            "data/",
            "device=",
            "tuned",
            "cannot express this model",
        }
        fault = None if any(name in str(error) for name in names) else f"no file is named: {error}"
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    else:
        fault = None
    seconds = time.perf_counter() - start
    return f"{seconds:.0f} seconds" if seconds > SECONDS else fault


def peak_memory():
    """The most memory that this process had so far, in bytes; 0 where no one counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.parametrize("name", CASES)
def test_the_sound_file_is_loaded(sound_files, name):
    """Without this, a fuzz that only meets the first refusal would look well."""
    _, load, argument, _ = CASES[name]
    load(argument)


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_damage_is_loaded_or_refused_by_name(sound_files, name, count, capsys):
    file, load, argument, mutations = CASES[name]
    path, faults, before = Path(file), [], peak_memory()
    whole, others = (
        path.read_bytes(),
        {other: other.read_bytes() for other in Path("out").iterdir()},
    )
    for mutate in mutations:
        for number in range(count):
            dice = random.Random(f"{file} {mutate.__name__} {number}")
            made_of_file = mutate in (mutate_checkpoint, mutate_safetensors)
            path.write_bytes(mutate(dice, whole, path) if made_of_file else mutate(dice, whole))
            fault = outcome(load, argument, path)
            if fault:
                faults.append(f"{mutate.__name__} {number}: {re.sub(r'[^ -~]+', ' ', fault)[:300]}")
            if load is resume:  # which writes into its folder
                for other, content in others.items():
                    other.write_bytes(content)
    assert not faults, f"{len(faults)} of {count * len(mutations)}:\n" + "\n".join(faults[:20])
    assert peak_memory() - before < BYTES


@pytest.mark.parametrize("wrong", [
    lambda tensor: tensor.long(), lambda tensor: tensor.to(torch.complex64), lambda tensor: tensor > 0,
    lambda tensor: tensor.to_sparse(), lambda tensor: torch.empty_like(tensor, device="meta"),
    lambda tensor: torch.zeros(()).expand(tensor.shape), lambda tensor: tensor.tolist(), lambda tensor: None,
])  # fmt: skip
@pytest.mark.parametrize("name", ["wte.weight", "unknown.weight"])
def test_weights_that_are_no_plain_numbers_are_refused_by_name(sound_files, wrong, name):
    """Integers and complex numbers were cast in silence; a view of one number as 2**36 was computed with."""
    content = torch.load("out/best.pt", weights_only=True)
    content["model"][name] = wrong(content["model"]["wte.weight"])
    torch.save(content, "out/best.pt")
    with pytest.raises(
        CheckpointError,
        match=rf"out/best\.pt: .*{name} is no plain array of floating-point numbers",
    ):
        speak("out/best.pt")


@pytest.mark.parametrize("change", [
    {"n_layer": 10**12}, {"n_embd": 2**40}, {"n_head": 10**30}, {"vocab_size": 2**62}, {"block_size": 10**400},
    {"n_layer": -1}, {"n_layer": 1.5}, {"n_layer": None}, {"mlp_hidden": 10**15}, {"n_layer": 10**5},
])  # fmt: skip
def test_sizes_beyond_all_measure_take_neither_time_nor_memory(sound_files, change):
    content = torch.load("out/best.pt", weights_only=True)
    torch.save(
        {**content, "model_config": {**content["model_config"], "position": "learned", **change}},
        "out/best.pt",
    )
    before, start = peak_memory(), time.perf_counter()
    with pytest.raises(CheckpointError, match=r"out/best\.pt"):
        speak("out/best.pt")
    assert time.perf_counter() - start < SECONDS and peak_memory() - before < BYTES
