"""Freed memory is kept for the next step; running out of memory ends in one message."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch

import train
from seugpt.cli.command import out_of_memory_advice
from seugpt.errors import DeviceError
from seugpt.training.failures import memory_advice
from seugpt.training.memory import keep_freed_memory
from tests.helpers import run_python, train_configs
from train import TrainConfig

# Prints the page faults of allocating 64 MB, before and after keep_freed_memory: the minimum of
# eleven times, as the system may take pages back in between.
COUNT_PAGE_FAULTS = """
import resource, torch
from seugpt.training.memory import keep_freed_memory

def page_faults():
    faults = []
    for _ in range(11):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)

print(page_faults())
keep_freed_memory()
print(page_faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="only glibc can be told to keep memory",
)
def test_keep_freed_memory_avoids_page_faults():
    """In a process of its own, as the setting cannot be taken back."""
    before, after = map(int, run_python("-c", COUNT_PAGE_FAULTS).stdout.split())
    assert after < 100 < before


def test_keep_freed_memory_does_nothing_without_glibc(monkeypatch):
    """ctypes.CDLL(None) is an error on Windows."""
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory()
    assert not loaded


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_out_of_memory_error_carries_the_advice(error):
    with (
        pytest.raises(DeviceError, match="out of memory: half the batch"),
        out_of_memory_advice("half the batch"),
    ):
        raise error


def test_other_errors_pass_unchanged():
    with (
        pytest.raises(RuntimeError, match="something else"),
        out_of_memory_advice("half the batch"),
    ):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    "batch_size, accumulation_steps, advice",
    [
        (4, 2, "--batch_size=2 --gradient_accumulation_steps=4"),
        (9, 1, "--batch_size=3 --gradient_accumulation_steps=3"),
        (7, 3, "--batch_size=1 --gradient_accumulation_steps=21"),
        (1, 3, "--gradient_checkpointing or a smaller --block_size"),
    ],
)
def test_memory_advice_keeps_the_tokens_per_step(batch_size, accumulation_steps, advice):
    config = TrainConfig(batch_size=batch_size, gradient_accumulation_steps=accumulation_steps)
    assert advice in memory_advice(config)


def test_memory_advice_keeps_the_batch_ramp():
    config = TrainConfig(
        batch_size=9, gradient_accumulation_steps=8, rampup_start=2, rampup_iters=10
    )
    words = memory_advice(config).split()
    argv = [word for word in words if word.startswith("--")]
    _, smaller = train_configs([*argv, "--rampup_iters=10"])
    for step in range(12):
        assert smaller.tokens_before(step, 1) == config.tokens_before(step, 1)
    assert smaller.batch_size == 3


def test_impossibly_large_model_ends_in_one_message(tiny, run, refused):
    assert "out of memory" in refused(train.main, *run(n_embd=10_000_000))


def test_model_larger_than_the_machine_is_refused_before_it_is_built(
    tiny, run, refused, monkeypatch
):
    """A system that overcommits memory would kill the process without a message."""
    monkeypatch.setattr(os, "sysconf", lambda name: 10, raising=False)  # 10 pages of 10 bytes
    monkeypatch.setattr("seugpt.training.init_from.GPT", None)
    message = refused(train.main, *run())
    assert "this machine has 100" in message
    assert "--n_layer" in message


def test_batch_larger_than_the_machine_is_refused_before_anything_is_written(tiny, run, refused):
    """It wrote out_dir, and advised half of 2**53 sequences."""
    message = refused(train.main, *run(batch_size=2**53))
    assert "--batch_size" in message
    assert not Path("out").exists()
