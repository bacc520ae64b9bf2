"""Memory that is kept, and memory that is not there."""

import ctypes
import subprocess
import sys

import pytest
import torch

from seugpt.errors import DeviceError
from seugpt.training.memory import keep_freed_memory, memory_guard
from tests.helpers import ROOT

# Page faults while 64 MB are taken, the fewest of ten times: the system may take pages back in between.
FAULTS = """
import resource, sys, torch
from seugpt.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="only glibc can be told to keep memory",
)
def test_freed_memory_is_used_again():
    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        )

    assert faults("kept") < 100 < faults("not")


def test_elsewhere_nothing_happens(monkeypatch):
    """ctypes.CDLL(None) is an error on Windows."""
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        keep_freed_memory()
    assert not asked


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                         RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])  # fmt: skip
def test_no_memory_is_said_with_advice(error):
    with (
        pytest.raises(DeviceError, match=r"out of memory: half the batch"),
        memory_guard("half the batch"),
    ):
        raise error


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="something else"), memory_guard("half the batch"):
        raise RuntimeError("something else")
