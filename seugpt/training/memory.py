"""Memory: kept for the next step, checked before a model is built, and counted for the report."""

import ctypes
import os
import sys
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def prepare_device(device):
    """Set what holds for the whole process: its CUDA device, TF32 matmuls, and the allocator."""
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")


def check_memory(size, advice):
    """Raise DeviceError if `size` bytes exceed the memory: the system would kill the process."""
    if hasattr(os, "sysconf"):  # not on Windows
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > available:
            raise DeviceError(
                f"out of memory: the weights alone take {size:,} "
                f"bytes, and this machine has {available:,}; {advice}"
            )


class AllocationCounter(TorchDispatchMode):
    """While entered, counts the bytes of all live tensors: `current`, and their maximum `peak`."""

    def __init__(self, tensors):
        """`tensors`: those that already exist."""
        super().__init__()
        self.sizes = {}  # by weak reference to a storage, which views share
        self.current = 0
        self.peak = 0
        self.add(tensors)

    def add(self, tensors):
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = weakref.ref(storage, self.remove)
            if reference not in self.sizes:
                self.sizes[reference] = storage.nbytes()
                self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)

    def remove(self, reference):
        self.current -= self.sizes.pop(reference)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result
