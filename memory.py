"""The machine's memory: kept by the process that will need it again, and a clear word where there is not enough."""

import contextlib
import ctypes
import sys

import torch

from model import DeviceError


def keep_freed_memory():
    """Tell the C library to keep what torch frees, for the next step, rather than give it back to the system.

    Pages that come anew must be zeroed first, which makes a step on the CPU longer (docs/SPEED.md says by how much).
    Only glibc can be told so; the numbers are those of its malloc.h.
    """
    if sys.platform == "linux" and hasattr(glibc := ctypes.CDLL(None), "mallopt"):
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no block, however large, is a mapping of its own
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


@contextlib.contextmanager
def memory_guard(advice):
    """Turns running out of memory, on a GPU or the CPU, into a DeviceError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        first_line = str(error).partition("\n")[0]
        raise DeviceError(f"out of memory: {advice}. The first line of the report: {first_line}") from error
