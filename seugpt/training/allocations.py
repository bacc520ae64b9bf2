"""Counts the memory of live tensors, for the report."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
