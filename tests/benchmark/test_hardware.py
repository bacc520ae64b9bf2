"""What a machine can do, looked up or measured, and what is recorded with each result."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch

from seugpt.benchmark import hardware
from seugpt.benchmark.results import record
from seugpt.training.throughput import peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA RTX A1000", None),
        ("Tesla T4", 65e12),
        ("NVIDIA T400", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A10G", None),
    ],
)
def test_peak_flops_are_of_exactly_this_gpu_or_none(monkeypatch, name, peak):
    """An MFU relative to another GPU's peak is wrong (nanoGPT#182)."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak
    assert peak_flops(torch.device("cuda", 0), torch.float32) is None
    assert peak_flops(CPU, torch.bfloat16) is None


def test_median_seconds_excludes_the_warmup(monkeypatch):
    """With a fake clock; the warmup takes 9 seconds, the measured calls 1, 2 and 6."""
    monkeypatch.setattr(hardware, "WARMUP", 1)
    monkeypatch.setattr(hardware, "REPETITIONS", 3)
    clock = iter([0, 9, 10, 11, 20, 22, 30, 36])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert hardware.median_seconds(lambda: None) == 2


def test_matmul_flops_and_copy_bandwidth_count_their_work(monkeypatch):
    """A product of n x n matrices has 2 n^3 FLOPs; a copy reads and writes each of its bytes."""

    def half_a_second(function):
        function()
        return 0.5

    monkeypatch.setattr(hardware, "median_seconds", half_a_second)
    assert hardware.matmul_flops(CPU, torch.float32) == 2 * 2048**3 / 0.5
    assert hardware.copy_bandwidth(CPU) == 2 * 4 * 2**26 / 0.5


def recorded():
    lines = Path("new/results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_results_are_appended_with_their_machine(workspace):
    """Without a file, nothing is recorded."""
    record("new/results.jsonl", CPU, ms=1.5)
    record("new/results.jsonl", CPU, ms=2.5)
    record(None, CPU, ms=3.5)
    assert [result["ms"] for result in recorded()] == [1.5, 2.5]
    for result in recorded():
        # Without the "+cu130" that torch.__version__ may have.
        assert result["versions"]["torch"] == importlib.metadata.version("torch")
        assert result["device"] == hardware.machine_info(CPU)["device"]
        assert "cores" in result["device"]


@pytest.mark.parametrize(
    "baseline, recorded_baseline",
    [
        (["--baseline=/home/me/nanoGPT"], "--baseline=PATH_TO_NANOGPT"),
        (["--baseline", "../my nanoGPT"], "--baseline=PATH_TO_NANOGPT"),
        (["--baseline=transformers", "--results=/home/me/cpu.jsonl"], "--baseline=transformers"),
        (["--baseline", "transformers"], "--baseline=transformers"),
    ],
)
def test_recorded_command_hides_private_paths(workspace, monkeypatch, baseline, recorded_baseline):
    monkeypatch.setattr(sys, "argv", ["/home/me/seugpt/bench.py", "step", *baseline, "--x=a b"])
    record("new/results.jsonl", CPU, ms=1.5)
    assert recorded()[0]["command"] == f"python bench.py step {recorded_baseline} '--x=a b'"


def test_the_commit_is_of_the_program_whatever_the_current_folder_is(tmp_path, monkeypatch):
    """Results measured from another folder carried no commit, or that of another repository."""
    here = hardware.machine_info(torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    assert hardware.machine_info(torch.device("cpu")) == here
    assert here["commit"]
