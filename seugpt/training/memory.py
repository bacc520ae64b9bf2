"""Memory: freed memory is kept for the next step, and too large a model is not built."""

import ctypes
import os
import sys

import torch

from model import allow_tf32
from seugpt.errors import DeviceError

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_MAX = -4


def keep_freed_memory():
    """Tell the C library to keep the memory that torch frees, for the next step.

    New pages from the system have to be zeroed first, which makes a step on the CPU slower
    (docs/SPEED.md says by how much). Only glibc has this setting.
    """
    if sys.platform == "linux" and hasattr(glibc := ctypes.CDLL(None), "mallopt"):
        glibc.mallopt(M_MMAP_MAX, 0)  # allocate every block on the heap, however large
        glibc.mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap


def prepare_device(device, dropout):
    """Set what holds for the whole process: its CUDA device, matmuls, attention, the allocator."""
    keep_freed_memory()
    allow_tf32(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if not (16 * dropout).is_integer():  # some kernels of cuDNN round it to a sixteenth
            torch.backends.cuda.enable_cudnn_sdp(False)


def to_device(array, device):
    """A NumPy array as a tensor on a device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # from pinned memory the copy overlaps with computation
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def check_memory(size, what, advice):
    """Raise DeviceError if `size` bytes exceed the memory: the system would kill the process."""
    if hasattr(os, "sysconf"):  # not on Windows
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > available:
            raise DeviceError(
                f"out of memory: {what} alone take {size:,} bytes, and this machine has "
                f"{available:,}; {advice}"
            )
