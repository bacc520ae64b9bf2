"""What bench.py compares: trainers behind one interface, each in a process of its own; seuGPT here, others in peers.py.

A contender makes `step()`s of training, `evaluate()`s the whole validation split, and `write()`s text. What it does
between two of them, its allocator and its threads cannot touch another's.
"""

import multiprocessing
import resource
import sys
import time
import traceback
from dataclasses import replace

import torch

from model import pick_device
from seugpt.data.dataset import Dataset, dataset_path
from seugpt.errors import ConfigError
from seugpt.training.init_from import with_vocabulary


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Contender:
    """A model that is trained: `step`, `evaluate` and `write` are the classes' own."""

    def __init__(self, model_config, options):
        self.options = replace(
            options, eval_only=True, eval_iters=0
        )  # writes nothing, and evaluates the whole split
        self.device = pick_device(options.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # as all of them do
        self.dataset = Dataset(dataset_path(options.dataset))
        self.config = with_vocabulary(model_config, self.dataset.tokenizer, options.dataset)
        self.index, self.compile_seconds = 0, 0.0

    def steps(self, count):
        """Milliseconds of each of so many steps, waiting for the device after each."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self.step()
            synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
        return times

    def train_until(self, target, interval):
        """Train until the loss over the whole validation split is at most `target`, asked every `interval` steps.

        Returns {seconds, steps, loss, history}: seconds of training alone; steps None where max_iters did not do.
        """
        seconds, history = 0.0, []
        while self.index < self.options.max_iters:
            count = min(interval, self.options.max_iters - self.index)
            seconds += sum(self.steps(count)) / 1000
            loss = self.evaluate()
            history.append((self.index, round(seconds, 3), round(loss, 4)))
            if loss <= target:
                return {"seconds": seconds, "steps": self.index, "loss": loss, "history": history}
        return {"seconds": seconds, "steps": None, "loss": loss, "history": history}

    def speed(self, batch_size, tokens):
        """Tokens per second of writing so many tokens in so many rows at once, after one token."""
        self.model.eval()
        start = time.perf_counter()
        self.write(batch_size, tokens)
        synchronize(self.device)
        return batch_size * tokens / (time.perf_counter() - start)

    def about(self):
        """{parameters, peak_memory_bytes, dtype, compile_seconds} of this process so far."""
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        parameters = sum(p.numel() for p in self.model.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        about = {"parameters": parameters, "peak_memory_bytes": peak, "dtype": dtype}
        return {**about, "compile_seconds": self.compile_seconds}


class Process:
    """A contender in a process of its own; its methods are called from here, and run there."""

    def __init__(self, kind, *arguments):
        spawn = multiprocessing.get_context(
            "spawn"
        )  # with fork, the threads of torch would be missing
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, kind, arguments), daemon=True)
        self.process.start()
        self.receive()

    def __call__(self, name, *arguments):
        self.pipe.send((name, arguments))
        return self.receive()

    def receive(self):
        try:
            result, error = self.pipe.recv()
        except EOFError:
            raise ConfigError(
                "a contender's process died; a smaller model or batch may fit into the memory"
            ) from None
        if error:
            raise error
        return result

    def close(self):
        self.pipe.close()
        self.process.join()


def serve(pipe, kind, arguments):
    """In the contender's process: make it, then call what is asked for until the other end closes."""
    sys.stdout = sys.stderr  # peers print what they do
    try:
        contender = kind(*arguments)
        pipe.send((None, None))
        while True:
            name, arguments = pipe.recv()
            pipe.send((getattr(contender, name)(*arguments), None))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # for the other process to tell
        error.add_note(traceback.format_exc())
        pipe.send((None, error))
