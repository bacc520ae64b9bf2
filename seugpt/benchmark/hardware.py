"""What a machine is, and the most that it can do."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "tiktoken", "transformers")
WARMUP = 2  # repetitions that are not measured
REPETITIONS = 10


def median_seconds(function):
    """The median time of a function that waits for the device."""
    times = []
    for _ in range(WARMUP + REPETITIONS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARMUP:])


def matmul_flops(device, dtype):
    """FLOP/s of a large matrix product: the most that a step can reach."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    seconds = median_seconds(lambda: (a @ b).sum().item())
    return 2 * n**3 / seconds


def copy_bandwidth(device):
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)

    def copy():
        target.copy_(source)
        target[-1].item()

    return 2 * source.nbytes / median_seconds(copy)


def machine_info(device):
    """What a figure belongs to: the hardware, the versions and the commit."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = torch.cpu.get_capabilities()["cpu_name"]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(
            git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()  # of this program, whatever the current folder is
    except OSError:  # no git on this machine
        commit = os.environ.get("SEUGPT_COMMIT", "")
    return {"device": f"{name}, {os.cpu_count()} cores", "versions": versions, "commit": commit}
