"""What the machine can do: known, measured, and written beside each result."""

import json
import sys
from pathlib import Path

import pytest
import torch

from seugpt.benchmark.hardware import copy_bandwidth, machine, matmul_flops, peak_flops, record

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, peak",
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
     ("NVIDIA H100 NVL", None), ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12),
     ("NVIDIA RTX A1000", None), ("Tesla T4", 65e12), ("NVIDIA T400", None), ("NVIDIA L4", 121e12),
     ("NVIDIA L40", None), ("NVIDIA GeForce RTX 4090", 165e12),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA A10G", None)],
)  # fmt: skip
def test_a_peak_is_known_or_not_named(monkeypatch, name, peak):
    """An MFU against another card's peak is wrong (nanoGPT#182)."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak
    assert peak_flops(torch.device("cuda", 0), torch.float32) is None
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


def test_rates_are_measured():
    """Far from exact, but no machine that runs this is beyond these bounds."""
    assert 1e9 < matmul_flops(CPU, torch.float32) < 1e15
    assert 1e8 < copy_bandwidth(CPU) < 1e13


@pytest.mark.parametrize("peer", [["--peer=/home/me/nanoGPT"], ["--peer", "../my nanoGPT"]])
def test_a_result_says_what_it_belongs_to(workspace, monkeypatch, peer):
    monkeypatch.setattr(sys, "argv", ["/home/me/seugpt/bench.py", "step", *peer, "--x=a b"])
    record("new/results.jsonl", CPU, ms=1.5)
    record("new/results.jsonl", CPU, ms=2.5)
    first, second = map(
        json.loads, Path("new/results.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert (
        first["ms"] == 1.5
        and second["ms"] == 2.5
        and first["versions"]["torch"] == torch.__version__
    )
    assert first["command"] == "python bench.py step --peer=PATH_TO_NANOGPT '--x=a b'"
    assert first["device"] == machine(CPU)["device"] and "cores" in first["device"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "step", "--peer", "transformers"])
    record("new/results.jsonl", CPU, ms=2.5)
    last = json.loads(Path("new/results.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["command"] == "python bench.py step --peer=transformers"
    record(None, CPU, ms=3.5)
