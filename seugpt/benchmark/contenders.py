"""Trainers behind one interface, each in a process, allocator and threads of its own.

A contender has `step()`, one training step; `evaluate()`, the loss over the whole validation split;
`generate(rows, tokens)`, and `prefill(rows)`, which reads prompts of a full context.
"""

import itertools
import math
import resource
import statistics
import time
from dataclasses import replace

import torch

from model import allow_tf32, pick_device
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.training.init_from import with_vocabulary


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Contender:
    """A model in training; subclasses bring `model`, `dtype`, step, evaluate and generate."""

    def __init__(self, model_config, config):
        # It writes nothing, and evaluates whole splits.
        self.config = replace(config, eval_only=True, eval_iters=0)
        self.device = pick_device(config.device)
        allow_tf32(self.device)  # for all contenders alike
        self.dataset = Dataset(dataset_path(config.dataset), config.tokenizer)
        self.model_config = with_vocabulary(model_config, self.dataset.tokenizer, config.dataset)
        self.step_index = 0
        self.compile_seconds = 0.0

    def steps(self, count):
        """Milliseconds of each of `count` steps; on a GPU their mean, waiting for it once."""
        times = []
        start = time.perf_counter()
        for _ in range(count):
            self.step()
            times.append(time.perf_counter())
        if self.device.type == "cuda":
            synchronize(self.device)
            return [1000 * (time.perf_counter() - start) / count] * count
        return [1000 * (b - a) for a, b in itertools.pairwise([start, *times])]

    def train_until(self, target, interval):
        """Train until the validation loss is at most `target`, checked every `interval` steps.

        Returns {seconds, steps, loss, history}: the loss over the whole split; seconds of training
        alone; steps None if max_iters did not suffice.
        """
        seconds = 0.0
        loss = math.inf
        history = []
        while self.step_index < self.config.max_iters:
            count = min(interval, self.config.max_iters - self.step_index)
            seconds += sum(self.steps(count)) / 1000
            loss = self.evaluate()
            history.append((self.step_index, round(seconds, 3), round(loss, 4)))
            if loss <= target:
                break
        steps = self.step_index if loss <= target else None
        return {"seconds": seconds, "steps": steps, "loss": loss, "history": history}

    def decoding_speed(self, rows, tokens):
        """Tokens per second of generating `tokens` tokens in each of `rows` rows at once."""
        self.model.eval()
        start = time.perf_counter()
        self.generate(rows, tokens)
        synchronize(self.device)
        return rows * tokens / (time.perf_counter() - start)

    def prefill_ms(self, rows):
        """Median milliseconds of reading `rows` prompts of a full context."""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self.prefill(rows)
            synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def info(self):
        """{parameters, peak_memory_bytes, dtype, compile_seconds} of this process so far."""
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "peak_memory_bytes": peak,
            "dtype": str(self.dtype).removeprefix("torch."),
            "compile_seconds": self.compile_seconds,
        }
