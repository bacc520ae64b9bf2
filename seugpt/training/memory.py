"""Memory: kept by the process that will need it again, a clear word where there is not enough, and a count of it."""

import contextlib
import ctypes
import os
import sys
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seugpt.errors import DeviceError


def keep_freed_memory():
    """Tell the C library to keep what torch frees, for the next step, rather than give it back to the system.

    Pages that come anew must be zeroed first, which makes a step on the CPU longer (docs/SPEED.md says by how much).
    Only glibc can be told so; the numbers are those of its malloc.h.
    """
    if sys.platform == "linux" and hasattr(glibc := ctypes.CDLL(None), "mallopt"):
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no block, however large, is a mapping of its own
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def demand_room(size, advice):
    """Raise DeviceError where so many bytes are more than the machine has: the system would kill us, and not tell."""
    if hasattr(os, "sysconf"):  # not on Windows
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > room:
            raise DeviceError(
                f"out of memory: the weights alone are {size:,} bytes, and this machine has {room:,}; {advice}"
            )


def memory_advice(batch_size, accumulation):
    """How to make the same step with less memory: fewer sequences at a time, more often."""
    factor = next((n for n in range(2, batch_size + 1) if batch_size % n == 0), None)
    if factor is None:
        return "batch_size=1 is the least: a smaller --block_size, --n_embd or --n_layer needs less"
    less, more = batch_size // factor, accumulation * factor
    return f"the same step in less memory: --batch_size={less} --gradient_accumulation_steps={more}"


@contextlib.contextmanager
def memory_guard(advice):
    """Turns running out of memory, on a GPU or the CPU, into a DeviceError that says what to do."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        sizes = (
            "allocate memory",
            "size calculation overflowed",
            "index-sized integer",
            "are too long",
        )
        if not known and not any(words in str(error) for words in sizes):
            raise
        first_line = str(error).partition("\n")[0]
        raise DeviceError(
            f"out of memory: {advice}. The first line of the report: {first_line}"
        ) from error


class AliveTensors(TorchDispatchMode):
    """While it is entered: `now`, the bytes of the tensors that are alive, and `peak`, the most that there were."""

    def __init__(self, tensors):
        """tensors: those that are there already."""
        super().__init__()
        self.sizes, self.now, self.peak = (
            {},
            0,
            0,
        )  # sizes: by weak references to storages, which views share
        self.add(tensors)

    def add(self, tensors):
        for storage in (tensor.untyped_storage() for tensor in tensors):
            reference = weakref.ref(storage, self.drop)
            if reference not in self.sizes:
                self.sizes[reference] = storage.nbytes()
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def drop(self, reference):
        self.now -= self.sizes.pop(reference)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result
