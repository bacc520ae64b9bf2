"""The memory of a training process, counted without taking any: torch's fake tensors have no data.

Shards are counted as FSDP has them: weights, gradients and optimizer state in parts, and whole what
is at work: the embeddings, the head and two blocks, one of them on its way.
"""

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, make_autocast
from seugpt.checkpoint.shapes import SkipInit
from seugpt.training.allocations import AllocationCounter
from seugpt.training.gradient_checkpointing import checkpoint_blocks
from seugpt.training.optimizer import make_optimizers


def count_memory(
    model_config, config, device, dtype, micro_steps, rows, world_size=1, dp_shard_size=1
):
    """{part: bytes} of a process whose steps have `micro_steps` micro-batches of `rows` sequences.

    "peak" is the maximum at one time, not the sum. With shards it is an upper bound: gradients are
    counted as if a micro-batch before had left them.
    """
    has_gradients = micro_steps > 1 or dp_shard_size > 1
    parts = dict(count_step(model_config, config, device, dtype, has_gradients, rows))
    update_peak = parts.pop("update_peak")
    held = parts.pop("held")
    gathered = parts.pop("gathered")
    step = parts.pop("step")
    if dp_shard_size > 1:
        for name in ("weights", "gradients", "optimizer"):
            parts[name] //= dp_shard_size
        parts["gathered"] = gathered
        update_peak //= dp_shard_size
        held = held // dp_shard_size + gathered
    elif world_size > 1:  # DDP sends the gradients from buffers of its own
        update_peak += parts["gradients"]
        held += parts["gradients"]
        parts["gradients"] *= 2
    return {**parts, "peak": max(update_peak, held + step)}


@functools.cache
def count_step(model_config, config, device, dtype, has_gradients, rows):
    """{part: bytes} of one process alone, in a step that begins with gradients or without.

    The run's own code runs on fake tensors, and live tensors are counted: exact except for what
    kernels allocate internally. "held": between the steps; "update_peak": the maximum of the
    optimizer's part; "step": the maximum that forward and backward pass add to what is held.
    """
    parts = {}
    with FakeTensorMode():
        with device, SkipInit():
            model = GPT(model_config)
        parts["gathered"] = gathered_bytes(model)
        if config.gradient_checkpointing:
            checkpoint_blocks(model, preserve_rng_state=False)  # fake tensors draw no numbers
        idx = torch.zeros(rows, model_config.block_size, dtype=torch.long, device=device)
        with AllocationCounter(model.parameters()) as counter:
            parts["weights"] = counter.current
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            parts["gradients"] = counter.current - parts["weights"]
            optimizers = make_optimizers(model, config, device, dtype)
            for optimizer in optimizers:
                optimizer.step()
            parts["optimizer"] = counter.current - parts["weights"] - parts["gradients"]
            parts["update_peak"] = counter.peak
            if not has_gradients:
                model.zero_grad(set_to_none=True)
            counter.peak = counter.current
            parts["held"] = counter.current
            with make_autocast(device, dtype):
                loss = model(idx, idx)[1]  # as in Trainer.backward
            parts["activations"] = counter.current - parts["held"]
            loss.backward()
            parts["step"] = counter.peak - parts["held"]
    return parts


def gathered_bytes(model):
    """Bytes of the weights that a process with shards holds whole at a time, and their gradients.

    These are all outside the blocks, the block at work, and the next one.
    """
    blocks = [sum(p.nbytes for p in block.parameters()) for block in model.h]
    outside = sum(p.nbytes for p in model.parameters()) - sum(blocks)
    return 2 * (outside + sum(blocks[:2]))


def kv_cache_bytes(model_config, dtype):
    """Bytes of the KV cache of one sequence at full context."""
    per_token = model_config.n_layer * model_config.kv_heads * model_config.head_size
    return 2 * per_token * model_config.block_size * dtype.itemsize


def largest_rows(peaks, capacity):
    """The most sequences in a micro-batch whose peak is at most `capacity` bytes; 0: not even one.

    `peaks`: {rows: peak in bytes} for three numbers of rows, the smallest 1. A peak is the largest
    of several sums that grow with the rows, so that between two counts a straight line is an upper
    bound, and beyond them the last two give the slope.
    """
    counts = sorted(peaks)
    if peaks[counts[0]] > capacity:
        return 0
    start = max(rows for rows in counts[:2] if peaks[rows] <= capacity)
    end = counts[counts.index(start) + 1]
    per_row = (peaks[end] - peaks[start]) / (end - start)
    return start + int((capacity - peaks[start]) / per_row)
