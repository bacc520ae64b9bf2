"""What the machine is, and the most that it can do."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

# Dense tensor peaks in FLOP/s, bf16 where there is bf16, from NVIDIA's data sheets; the keys are found in device names.
PEAK_FLOPS = {
    r"H200$": 989e12,
    r"H100 80GB HBM3": 989e12,
    r"H100 PCIe": 756e12,
    r"A100[- ]": 312e12,
    r"L40S$": 362e12,
    r"\bL4$": 121e12,
    r"A10$": 125e12,
    r"RTX 4090$": 165e12,
    r"RTX 3090$": 71e12,
    r"V100-SXM2": 125e12,
    r"\bT4$": 65e12,
}


def peak_flops(device, dtype):
    """The hardware's peak in FLOP/s, or None where it is not known: a guessed MFU is worse than none."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(key, name)), None)


def matmul_flops(device, dtype):
    """FLOP/s of a large matrix product: the most that a step can reach. Median of 10."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        (a @ b).sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times[2:])


def copy_bandwidth(device):
    """Bytes per second that a large copy reads and writes together. Median of 10."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        target.copy_(source)
        target[-1].item()
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times[2:])


def machine(device):
    """What a figure belongs to: the hardware, the versions and the commit."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.cpu.get_capabilities()["cpu_name"]
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    packages = ("torch", "numpy", "tiktoken", "transformers")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "versions": versions,
        "commit": commit.stdout.strip(),
    }


def record(path, device, **result):
    """Append a result to the file, if there is one, as a line of JSON with the machine and the command."""
    if path:
        typed = "\0".join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace(
            "\0--peer\0", "\0--peer="
        )
        typed = re.sub(r"--peer=(?!transformers(\0|$))[^\0]*", "--peer=PATH_TO_NANOGPT", typed)
        command = "python " + shlex.join(typed.split("\0"))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**result, **machine(device), "command": command}) + "\n")


def spread(values, form):
    """What rounds came to: the median (lowest to highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours, theirs):
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
