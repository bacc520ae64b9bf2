"""What bench.py compares: trainers behind one interface, each in a process of its own; seuGPT here, others in peers.py.

A contender makes `step()`s of training, `evaluate()`s the whole validation split, and `write()`s text. What it does
between two of them, its allocator and its threads cannot touch another's.
"""

import multiprocessing
import resource
import shlex
import statistics
import sys
import time
import traceback
from dataclasses import replace

import torch

from config import ConfigError, Options
from data.dataset import Dataset, dataset_path
from distributed import Ranks
from generation import Decoder, Sampling, generate
from init_from import build_model, with_vocabulary
from log import RunLog
from memory import keep_freed_memory
from model import ModelConfig, pick_device, pick_dtype
from train import TrainConfig, Trainer


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_of(text, seed):
    """(ModelConfig, TrainConfig) of a run, from what is typed after train.py. Raises ConfigError."""
    try:
        given = shlex.split(text)
    except ValueError as error:  # a quotation mark that is not closed
        raise ConfigError(f"config={text}: {error}") from None
    return Options([*given, f"--seed={seed}"], ModelConfig, TrainConfig, description="").build()


class Contender:
    """A model that is trained: `step`, `evaluate` and `write` are the classes' own."""

    def __init__(self, model_config, options):
        self.options = replace(options, eval_only=True, eval_iters=0)  # writes nothing, and evaluates the whole split
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


class SeuGPT(Contender):
    def __init__(self, model_config, options):
        super().__init__(model_config, options)
        self.dtype, self.decoders = pick_dtype(options.dtype, self.device, training=True), {}
        keep_freed_memory()
        self.model, _ = build_model(model_config, options, None, self.dataset.tokenizer)
        start = time.perf_counter()
        log = RunLog(self.options, silent=True)
        self.trainer = Trainer(self.model, self.options, self.dataset, Ranks(), self.device, self.dtype, log)
        self.trainer.restart_clock()
        if options.compiles(self.device):
            self.compile_seconds = time.perf_counter() - start

    def step(self):
        self.trainer.train_step()
        self.index = self.trainer.step

    def evaluate(self):
        self.model.eval()
        loss = self.trainer.evaluate(self.model, ("val",))["val"]
        self.model.train()
        return loss

    def flops_per_token(self):
        return self.model.flops_per_token()

    def parts(self, count):
        """Median milliseconds of {data, forward, backward, optimizer} in a step of one micro-batch."""
        times = {"data": [], "forward": [], "backward": [], "optimizer": []}
        for _ in range(count):
            clock = [time.perf_counter()]

            def mark(clock=clock):
                synchronize(self.device)
                clock.append(time.perf_counter())

            x, y = self.trainer.batch(0)
            mark()
            with self.trainer.autocast:
                loss = self.model(x, y)[1]
            mark()
            self.trainer.scaler.scale(loss).backward()
            mark()
            self.trainer.clip()
            self.trainer.update()
            mark()
            for name, start, end in zip(times, clock, clock[1:], strict=False):
                times[name].append(1000 * (end - start))
        return {name: statistics.median(values) for name, values in times.items()}

    def decoder(self, batch_size, length):
        """Made, and compiled, once for each size, as sample.py does."""
        if (batch_size, length) not in self.decoders:
            self.model.to(pick_dtype(self.options.dtype, self.device))
            self.decoders[batch_size, length] = Decoder(self.model, batch_size, length, self.options.compile is True)
        return self.decoders[batch_size, length]

    def write(self, batch_size, tokens):
        decoder = self.decoder(batch_size, min(tokens + 1, self.config.block_size))
        for row in generate(decoder, [[0]] * batch_size, tokens, self.config.vocab_size, Sampling()):
            row.tolist()  # as a terminal needs each token at once

    def prefill(self, batch_size):
        """(median milliseconds of reading prompts of a full context, bytes that a step then reads)."""
        self.model.eval()
        decoder, times = self.decoder(batch_size, self.config.block_size), []
        rows = [torch.zeros(self.config.block_size, dtype=torch.long, device=self.device)] * batch_size
        for _ in range(5):
            start = time.perf_counter()
            decoder.prefill(rows)
            synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
        tensors = [*self.model.parameters(), *decoder.cache.keys, *decoder.cache.values]
        return statistics.median(times), sum(tensor.nbytes for tensor in tensors)


class Process:
    """A contender in a process of its own; its methods are called from here, and run there."""

    def __init__(self, kind, *arguments):
        spawn = multiprocessing.get_context("spawn")  # with fork, the threads of torch would be missing
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
            raise ConfigError("a contender's process died; a smaller model or batch may fit into the memory") from None
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
