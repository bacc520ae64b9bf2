"""Measure speed: of this program, and of other trainers in turn with it.

    python bench.py step config/train_shakespeare_char.py --device=cpu --baseline=transformers
    python bench.py time_to_loss --config=config/fast_shakespeare_char_cpu.py --target=1.898
    python bench.py decode config/quickstart.py --baseline=PATH_TO_NANOGPT
    python bench.py prepare --input=book.txt --repeat=100
    python bench.py prepare --input=book.txt --repeat=100 --workers=1 --workers=2
    python bench.py run config/train_shakespeare_char.py --baseline=PATH_TO_NANOGPT
    python bench.py serve --out_dir=out-quickstart --baseline=transformers
    python bench.py suite --smoke

step, decode and run take train.py's options too. Times drift on a shared machine; the ratios of
paired rounds count.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import contextlib
import math
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch

from model import ModelConfig, pick_device
from seugpt.benchmark.baselines import NanoGPT, Transformers
from seugpt.benchmark.contenders import Contender, synchronize
from seugpt.benchmark.hardware import copy_bandwidth, matmul_flops
from seugpt.benchmark.results import median_range, ratios, record
from seugpt.benchmark.serving import our_server, transformers_server
from seugpt.benchmark.whole_commands import (
    check_whole_run,
    nanogpt_command,
    our_command,
    split_documents,
    time_prepare,
    time_run,
    time_shards,
    time_tiktoken,
    write_parquet_files,
)
from seugpt.benchmark.workers import Worker, in_turn
from seugpt.checkpoint.pretrained import ModelSource
from seugpt.cli.command import command, out_of_memory_advice, split_subcommand
from seugpt.cli.config_parser import parse_configs
from seugpt.data.corpora import download_corpus
from seugpt.errors import ConfigError
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.quantize import inference_dtype, quantize
from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import fetch
from seugpt.training.batch_ramp import num_micro_batches
from seugpt.training.init_from import build_model
from seugpt.training.logger import RunLogger, format_duration
from seugpt.training.memory import keep_freed_memory
from seugpt.training.throughput import peak_flops
from train import TrainConfig, Trainer, get_lr

NANOGPT_FILES = ("model.py", "train.py", "configurator.py")  # the last is nanoGPT's alone
WARMUP_STEPS = 5  # buffers, caches, the choice of kernels


class SeuGPT(Contender):
    """Our own trainer."""

    def __init__(self, model_config, config):
        super().__init__(model_config, config)
        keep_freed_memory()
        self.model, _ = build_model(model_config, config, None, self.dataset.tokenizer)
        start = time.perf_counter()
        log = RunLogger(self.config, quiet=True)
        self.trainer = Trainer(self.model, self.config, self.dataset, log)
        self.dtype = self.trainer.dtype
        if config.compiles(self.device):
            self.compile_seconds = time.perf_counter() - start
        self.decoders = {}
        self.is_quantized = False

    def step(self):
        self.trainer.train_step()
        self.step_index = self.trainer.state.step

    def evaluate(self):
        self.model.eval()
        loss = self.trainer.mean_loss(self.model, "val")
        self.model.train()
        return loss

    def flops_per_token(self):
        return self.model.flops_per_token()

    def evaluation_seconds(self, eval_iters):
        """Seconds of an evaluation, estimated from one of the whole validation split."""
        shape = (self.config.batch_size, self.model_config.block_size)
        num_windows = sum(
            len(self.dataset.evaluation_windows(split, eval_iters, *shape))
            for split in ("train", "val")
        )
        start = time.perf_counter()
        self.evaluate()
        seconds = time.perf_counter() - start
        return seconds * num_windows / len(self.dataset.evaluation_windows("val", 0, *shape))

    def parts(self, count):
        """Median milliseconds of {data, forward, backward, optimizer} of one micro-batch."""
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
            self.trainer.optimizer_step(self.trainer.clip_grad_norm())
            self.model.zero_grad(set_to_none=True)
            mark()
            for part, start, end in zip(times, clock, clock[1:], strict=False):
                times[part].append(1000 * (end - start))
        return {part: statistics.median(values) for part, values in times.items()}

    def decoder(self, rows, length):
        """Created, and compiled, once for each size, as in sample.py."""
        if (rows, length) not in self.decoders:
            if not self.is_quantized:
                num_params = self.model.num_params()
                self.model.to(inference_dtype(self.config.dtype, self.device, num_params))
            compiles = self.config.compiles(self.device)
            self.decoders[rows, length] = Decoder(self.model, rows, length, compiles)
        return self.decoders[rows, length]

    def quantize(self):
        """Generate from 8-bit weights from here on."""
        quantize(self.model)
        self.is_quantized = True

    def generate(self, rows, tokens):
        decoder = self.decoder(rows, min(tokens + 1, self.model_config.block_size))
        prompts = [[0]] * rows
        vocab_size = self.model_config.vocab_size
        next_ids = generate_tokens(decoder, prompts, tokens, vocab_size, SamplingParams())
        for _ in fetch(next_ids):
            pass

    def prefill(self, rows):
        self.model.eval()
        block_size = self.model_config.block_size
        prompt = torch.zeros(block_size, dtype=torch.long, device=self.device)
        self.decoder(rows, block_size).prefill([prompt] * rows)

    def bytes_per_step(self, rows):
        """Bytes of the weights and of the cache, which a decoding step reads."""
        cache = self.decoder(rows, self.model_config.block_size).cache
        weights = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.nbytes for tensor in [*weights, *cache.keys, *cache.values])


def contenders(baseline):
    """{name: function of (ModelConfig, TrainConfig) that starts the Worker of this contender}."""
    starters = {"seuGPT": partial(Worker, SeuGPT)}
    if baseline == "transformers":
        starters["transformers"] = partial(Worker, Transformers, get_lr)
    elif baseline:
        starters["nanoGPT"] = partial(Worker, NanoGPT, baseline, get_lr)
    return starters


def start_workers(baseline, model_config, config):
    """{name: Worker}, of steps with all micro-batches: the baselines have no batch ramp."""
    config = replace(config, rampup_start=0, rampup_iters=0)
    return {name: start(model_config, config) for name, start in contenders(baseline).items()}


@dataclass(frozen=True)
class BenchConfig:
    results: Annotated[str | None, "file to append each result to, as a line of JSON", "path"] = (
        None
    )

    def problems(self):
        return []

    def __post_init__(self):
        problems = self.problems()
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True)
class BaselineConfig(BenchConfig):
    baseline: Annotated[
        str | None, "transformers, or the folder of nanoGPT's source, measured in turn", "path"
    ] = None

    def problems(self):
        known = self.baseline in (None, "transformers")
        if known or all(Path(self.baseline, file).is_file() for file in NANOGPT_FILES):
            return super().problems()
        problem = f"baseline={self.baseline} is neither transformers nor a folder with nanoGPT's"
        return [*super().problems(), f"{problem} {', '.join(NANOGPT_FILES)}"]


@dataclass(frozen=True)
class StepConfig(BaselineConfig):
    steps: Annotated[int, "steps per round", ">= 1"] = 20
    rounds: Annotated[int, "rounds of each contender", ">= 1"] = 5
    busy: Annotated[int, "other busy processes, beside which to measure once more", ">= 0"] = 0


def bench_step(options, model_config, config):
    """Milliseconds of a training step, where they go, and how long the whole run will take."""
    device = pick_device(config.device)
    workers = start_workers(options.baseline, model_config, config)
    for worker in workers.values():
        worker("steps", WARMUP_STEPS)
    results = in_turn(options.rounds, workers, "steps", options.steps)
    medians = {
        name: [statistics.median(times) for times in rounds] for name, rounds in results.items()
    }
    tokens = config.tokens_per_step(model_config.block_size)
    flops = tokens * workers["seuGPT"]("flops_per_token")
    for name, rounds_ms in medians.items():
        info = workers[name]("info")
        result = describe_step(name, rounds_ms, info, device, tokens, flops)
        result["block_size"] = model_config.block_size
        if name == "seuGPT":
            result["parts_ms"] = parts = workers[name]("parts", options.steps)
            print("    " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()) + " ms")
            print_run_time(
                config, result["step_ms"], workers[name]("evaluation_seconds", config.eval_iters)
            )
        else:
            result["ratios"] = ratios(rounds_ms, medians["seuGPT"])
            print(f"    {median_range(result['ratios'], '.2f')} times ours")
        record(options.results, device, bench="step", contender=name, **result)
    if options.busy:
        bench_busy_step(options, workers, medians, device)
    for worker in workers.values():
        worker.close()


def bench_busy_step(options, workers, quiet_ms, device):
    """The same steps while other processes keep the CPU busy."""
    with busy_processes(options.busy):
        in_turn(1, workers, "steps", options.steps)  # in which a trainer may adapt
        results = in_turn(options.rounds, workers, "steps", options.steps)
    for name, rounds in results.items():
        busy_ms = [statistics.median(times) for times in rounds]
        times = ratios(busy_ms, quiet_ms[name])
        print(
            f"{name}, {options.busy} other busy process(es): {median_range(busy_ms, '.1f')} ms "
            f"per step, {median_range(times, '.2f')} times the quiet step"
        )
        result = {"contender": name, "busy": options.busy, "rounds_ms": busy_ms, "ratios": times}
        record(options.results, device, bench="busy_step", **result)


@contextlib.contextmanager
def busy_processes(count):
    """While entered, `count` processes each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def describe_step(name, rounds_ms, info, device, tokens, flops):
    """Print a contender's speed. Returns what is recorded of it."""
    ms = statistics.median(rounds_ms)
    dtype = getattr(torch, info["dtype"])
    matmul_peak = matmul_flops(device, dtype)
    roofline_ms = 1000 * flops / matmul_peak
    flops_per_s = 1000 * flops / ms
    tokens_per_s = 1000 * tokens / ms
    speed = f"{tokens_per_s:,.0f} tokens/s, {flops_per_s / 1e9:,.0f} GFLOP/s"
    peak = peak_flops(device, dtype)
    if peak:
        speed += f", MFU {flops_per_s / peak:.1%}"
    memory = f"peak memory {info['peak_memory_bytes'] / 1e6:,.0f} MB"
    print(
        f"{name}, {info['dtype']}: {median_range(rounds_ms, '.1f')} ms per step, {speed}; {memory}"
    )
    print(
        f"    roofline {roofline_ms:.1f} ms, at the "
        f"{matmul_peak / 1e9:,.0f} GFLOP/s of a large matmul"
    )
    return {
        "step_ms": ms,
        "tokens_per_s": tokens_per_s,
        "flops_per_s": flops_per_s,
        **info,
        "roofline_ms": roofline_ms,
        "matmul_flops_per_s": matmul_peak,
        "rounds_ms": rounds_ms,
        "tokens_per_step": tokens,
    }


def print_run_time(config, step_ms, evaluation_seconds):
    """How long the whole run will take at this speed of a step with all micro-batches."""
    micro_batch_ms = step_ms / config.gradient_accumulation_steps
    training = num_micro_batches(config.max_iters, config) * micro_batch_ms / 1000
    num_evaluations = math.ceil(config.max_iters / config.eval_interval) + 1
    total = training + num_evaluations * evaluation_seconds
    print(
        f"    the run: {config.max_iters:,} steps in {format_duration(training)}; "
        f"{format_duration(total)} with its {num_evaluations:,} evaluations, without saving"
    )


@dataclass(frozen=True)
class TimeToLossConfig(BaselineConfig):
    config: Annotated[
        tuple[str, ...], "one of our runs, as typed after train.py; may be repeated"
    ] = ()
    baseline_config: Annotated[str | None, "the baseline's run; None: the first of ours"] = None
    target: Annotated[float, "loss over the whole validation split that ends a run"] = 0.0
    seeds: Annotated[int, "runs of each contender", ">= 1"] = 3
    interval: Annotated[
        int | None, "steps between evaluations, off the clock; None: max_iters / 20", ">= 1"
    ] = None

    def problems(self):
        if all(self.config or [None]) and self.target > 0:
            return super().problems()
        problem = "time_to_loss needs --config=FILE, once for each run, and --target=LOSS"
        return [*super().problems(), f"{problem}; target={self.target}"]


def configs_of_run(text, seed):
    """(ModelConfig, TrainConfig) of a run as typed after train.py. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as error:  # an unclosed quotation mark
        raise ConfigError(f"config={text}: {error}") from None
    return parse_configs([*words, f"--seed={seed}"], ModelConfig, TrainConfig, description="")


def bench_time_to_loss(options):
    """Seconds of training until the loss over the whole validation split is at most the target."""
    starters = contenders(options.baseline)
    runs = [(text, text, starters["seuGPT"]) for text in options.config]
    for name, start in starters.items():
        if name != "seuGPT":
            text = options.baseline_config or options.config[0]
            runs.append((f"{name} {text}", text, start))
    seconds = {name: [] for name, _, _ in runs}
    for seed in range(options.seeds):
        for name, text, start in runs:
            model_config, config = configs_of_run(text, seed)
            if config.rampup_start and name not in options.config:
                raise ConfigError(
                    f"{name}: the baseline has no batch ramp; add --rampup_start=0 "
                    "--rampup_iters=0 to its run"
                )
            worker = start(model_config, config)
            interval = options.interval or max(config.max_iters // 20, 1)
            result = worker("train_until", options.target, interval) | worker("info")
            worker.close()
            seconds[name].append(result["seconds"])
            print_time_to_loss(seed, name, result)
            device = pick_device(config.device)
            record(
                options.results, device, bench="time_to_loss", contender=name, seed=seed, **result
            )
    first = seconds[runs[0][0]]
    for name, values in seconds.items():
        times = ratios(values, first)
        print(
            f"{name}: {median_range(values, '.2f')} s, {median_range(times, '.2f')} times the first"
        )


def print_time_to_loss(seed, name, result):
    reached = f"in {result['steps']} steps" if result["steps"] else "NOT REACHED"
    seconds = f"{result['seconds']:.2f} s"
    if result["compile_seconds"]:
        seconds += f" and {result['compile_seconds']:.1f} s to compile"
    print(f"seed {seed}, {name}: {seconds}, {reached}, loss {result['loss']:.4f}", flush=True)


@dataclass(frozen=True)
class DecodeConfig(BaselineConfig):
    tokens: Annotated[int, "tokens to generate in each row", ">= 1"] = 500
    rows: Annotated[tuple[int, ...], "rows at once; may be repeated", ">= 1", "<= 100000"] = (
        1,
        10,
        64,
    )
    rounds: Annotated[int, "rounds of each contender", ">= 1"] = 5
    quantize: Annotated[Literal["int8"] | None, "our weights in 8 bits, as in sample.py"] = None
    baseline_dtype: Annotated[
        Literal["float32", "bfloat16"], "of the weights of transformers; nanoGPT's are float32"
    ] = "float32"

    def problems(self):
        if self.baseline_dtype == "float32" or self.baseline == "transformers":
            return super().problems()
        advice = "is for --baseline=transformers; drop it, or give that"
        return [*super().problems(), f"baseline_dtype={self.baseline_dtype} {advice}"]


def bench_decode(options, model_config, config):
    """Tokens per second of generation, in one row and several; untrained models are as fast."""
    device = pick_device(config.device)
    bandwidth = copy_bandwidth(device)
    workers = start_workers(options.baseline, model_config, config)
    our_dtype = options.quantize or config.dtype
    if options.quantize:
        workers["seuGPT"]("quantize")
    if "transformers" in workers:
        workers["transformers"]("convert", options.baseline_dtype)
    for rows in options.rows:
        for worker in workers.values():
            worker("decoding_speed", rows, options.tokens)  # creates the decoder, may compile it
        speeds = in_turn(options.rounds, workers, "decoding_speed", rows, options.tokens)
        prefill_ms = {name: worker("prefill_ms", rows) for name, worker in workers.items()}
        roofline = rows * bandwidth / workers["seuGPT"]("bytes_per_step", rows)
        for name, rounds in speeds.items():
            times = ratios(speeds["seuGPT"], rounds)
            speed = f"{median_range(rounds, ',.0f')} tokens/s"
            print(
                f"{rows} row(s), {name}: {speed}; ours is {median_range(times, '.2f')} times that"
            )
            result = {
                "rows": rows,
                "tokens": options.tokens,
                "parameters": workers[name]("info")["parameters"],
                "tokens_per_s": statistics.median(rounds),
                "rounds": rounds,
                "ratios": times,
                "compile": config.compiles(device),
                "dtype": our_dtype if name == "seuGPT" else options.baseline_dtype,
                "prefill_ms": prefill_ms[name],
                "roofline_tokens_per_s": roofline,
            }
            record(options.results, device, bench="decode", contender=name, **result)
        each = ", ".join(f"{name} {ms:.1f} ms" for name, ms in prefill_ms.items())
        print(
            f"    prefill of a full context: {each}; roofline {roofline:,.0f} tokens/s", flush=True
        )
    for worker in workers.values():
        worker.close()


@dataclass(frozen=True)
class PrepareBenchConfig(BenchConfig):
    input: Annotated[str | None, "a UTF-8 file; None: Python's documentation", "path"] = None
    repeat: Annotated[int, "copies of it in the text that is measured", ">= 1"] = 1
    tokenizer: Annotated[tuple[str, ...], "tokenizer of prepare.py; may be repeated"] = (
        "char",
        "gpt2",
    )
    rounds: Annotated[int, "runs with each tokenizer", ">= 1"] = 5
    workers: Annotated[
        tuple[int, ...],
        "processes that write shards from .parquet files, in turn with tiktoken alone; "
        "may be repeated; none: train.bin and val.bin",
        ">= 1",
    ] = ()

    def problems(self):
        if self.input is None or Path(self.input).is_file():
            return super().problems()
        return [*super().problems(), f"input={self.input} is not a file"]


def bench_prepare(options):
    """Megabytes per second of prepare.py as a whole, its start included, for each tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        if options.input is None:
            download_corpus("python_docs", text)
        source = Path(options.input or text)
        if options.workers:
            bench_shards(options, source.read_text(encoding="utf-8"), Path(folder))
            return
        size = text.write_bytes(source.read_bytes() * options.repeat)
        for tokenizer in options.tokenizer:
            seconds = [time_prepare(text, tokenizer, folder) for _ in range(options.rounds)]
            speed = size / statistics.median(seconds) / 1e6
            took = f"{size / 1e6:.0f} MB in {median_range(seconds, '.2f')} s"
            print(f"{tokenizer}: {speed:.1f} MB/s ({took})", flush=True)
            result = {"tokenizer": tokenizer, "mb_per_s": speed, "bytes": size, "rounds_s": seconds}
            record(options.results, torch.device("cpu"), bench="prepare", **result)


def bench_shards(options, text, folder):
    """Megabytes per second of prepare.py --shard_tokens with GPT-2's tokens, its start included.

    Beside it, in turn, tiktoken's own speed on one core.
    """
    documents = split_documents(text)
    size = write_parquet_files(folder / "texts", documents, options.repeat)
    seconds = {num_workers: [] for num_workers in options.workers}
    tiktoken_seconds = []
    for _ in range(options.rounds):
        tiktoken_seconds.append(time_tiktoken(documents, options.repeat))
        for num_workers in seconds:
            seconds[num_workers].append(time_shards(folder, num_workers))
    print(f"tiktoken: {size / statistics.median(tiktoken_seconds) / 1e6:.1f} MB/s")
    for num_workers, times in seconds.items():
        rate = size / statistics.median(times) / 1e6
        times_tiktoken = ratios(tiktoken_seconds, times)
        print(
            f"{num_workers} process(es): {rate:.1f} MB/s ({size / 1e6:.0f} MB in "
            f"{median_range(times, '.2f')} s), {median_range(times_tiktoken, '.2f')} times tiktoken"
        )
        result = {"workers": num_workers, "mb_per_s": rate, "bytes": size, "rounds_s": times}
        result |= {"tiktoken_s": tiktoken_seconds, "ratios": times_tiktoken}
        record(options.results, torch.device("cpu"), bench="prepare_shards", **result)


@dataclass(frozen=True)
class RunConfig(BaselineConfig):
    rounds: Annotated[int, "runs of each contender", ">= 1"] = 3

    def problems(self):
        if self.baseline != "transformers":
            return super().problems()
        return ["baseline=transformers has no train.py to run; give the folder of nanoGPT's source"]


def bench_run(options, model_config, config):
    """Seconds of a whole run of train.py, with its start, compilation, evaluations, checkpoints."""
    check_whole_run(options.baseline, config)
    makers = {"seuGPT": our_command}
    if options.baseline:
        makers["nanoGPT"] = partial(nanogpt_command, options.baseline)
        with tempfile.TemporaryDirectory() as folder:  # shows what is wrong before our run is made
            makers["nanoGPT"](Path(folder), model_config, config)
    seconds = {name: [] for name in makers}
    for _ in range(options.rounds):
        for name, make_command in makers.items():
            with tempfile.TemporaryDirectory() as folder:
                words, cwd = make_command(Path(folder), model_config, config)
                took, step, loss = time_run(words, cwd)
            print(f"{name}: {took:.1f} s, validation loss {loss:.4f} at step {step}", flush=True)
            seconds[name].append(took)
            result = {"contender": name, "seconds": took, "steps": step, "loss": loss}
            record(options.results, pick_device(config.device), bench="run", **result)
    for name, rounds in seconds.items():
        times = ratios(rounds, seconds["seuGPT"])
        print(f"{name}: {median_range(rounds, '.1f')} s, {median_range(times, '.2f')} times ours")


@dataclass(frozen=True)
class ServeBenchConfig(ModelSource, BenchConfig):
    clients: Annotated[
        tuple[int, ...], "clients at the same time; may be repeated; none: 4 and 16", ">= 2"
    ] = ()
    requests: Annotated[int, "texts in each round, of each number of clients", ">= 1"] = 32
    tokens: Annotated[int, "tokens of each text", ">= 1"] = 100
    rounds: Annotated[int, "rounds", ">= 1"] = 3
    flood: Annotated[
        int, "short requests at the end: how many are lost, how memory grows", ">= 0"
    ] = 0
    baseline: Annotated[
        Literal["transformers"] | None,
        "transformers: its server too, in turn, as it is and with its continuous batching",
    ] = None
    device: Annotated[str, "device of the model, as in train.py"] = "auto"


def servers(options, device):
    """{name: function that starts the server of this contender, as a context}."""
    starters = {"seuGPT": partial(our_server, options.source, device)}
    if options.baseline:
        theirs = partial(transformers_server, options.source, device)
        starters["transformers serve"] = theirs
        starters["transformers serve --continuous-batching"] = partial(
            theirs, "--continuous-batching"
        )
    return starters


def bench_serve(options):
    """Tokens per second of clients that ask serve.py at the same time, and one after the other."""
    device = pick_device(options.device)
    counts = (1, *(options.clients or (4, 16)))
    starters = servers(options, device)
    speeds = {name: {count: [] for count in counts} for name in starters}
    for _ in range(options.rounds):
        for name, start in starters.items():
            with start() as server:
                server.load(16, 16, options.tokens)  # warms up
                for count in counts:
                    speeds[name][count].append(tokens_per_second(server, count, options))
    for name, by_count in speeds.items():
        for count, rounds in by_count.items():
            gains = ratios(rounds, by_count[1])
            ours = ratios(speeds["seuGPT"][count], rounds)
            print(
                f"{name}, {count} client(s): {median_range(rounds, ',.0f')} tokens/s, "
                f"{median_range(gains, '.2f')} times one after the other; "
                f"ours is {median_range(ours, '.2f')} times that",
                flush=True,
            )
            record(
                options.results,
                device,
                bench="serve",
                contender=name,
                clients=count,
                tokens=options.tokens,
                tokens_per_s=rounds,
                gains=gains,
                ratios=ours,
            )
    if options.flood:
        with starters["seuGPT"]() as server:
            flood(server, options, device)


def tokens_per_second(server, num_clients, options):
    seconds, tokens, lost = server.load(num_clients, options.requests, options.tokens)
    if lost:
        raise ConfigError(f"{lost} of {options.requests} requests were lost")
    return tokens / seconds


def flood(server, options, device):
    """Many short requests from 16 clients, in ten parts: those that are lost, and the memory."""
    part = math.ceil(options.flood / 10)
    megabytes = [server.resident_mb()]
    num_lost = 0
    seconds = 0.0
    for _ in range(10):
        took, _, lost = server.load(16, part, 2)
        seconds += took
        num_lost += lost
        megabytes.append(server.resident_mb())
    print(
        f"{10 * part:,} short requests: {num_lost} lost, {10 * part / seconds:,.0f} per second; "
        f"memory {', '.join(f'{mb:,.0f}' for mb in megabytes if mb)} MB"
    )
    result = {"requests": 10 * part, "lost": num_lost, "seconds": seconds, "memory_mb": megabytes}
    record(options.results, device, bench="serve_flood", **result)


PRETRAIN_124M = (
    "config/train_gpt2.py --dataset=shakespeare_char --gradient_accumulation_steps=1 --batch_size="
)
GPU_SUITE = {  # each part takes at most ten minutes of a GPU, by its expected speed
    "steps": (
        f"step {PRETRAIN_124M}32",
        "step config/train_shakespeare_char.py",
        "decode config/train_gpt2.py --dataset=shakespeare_char --rows=1 --rows=64 --rounds=3",
    ),
    "batches": tuple(f"step {PRETRAIN_124M}{batch_size} --rounds=2" for batch_size in (32, 40, 64)),
    "race": (
        "time_to_loss --config=config/fast_shakespeare_char.py --target=1.4697 --interval=50 "
        "--baseline_config=config/train_shakespeare_char.py",
    ),
    "run": ("run config/train_shakespeare_char.py --rounds=1",),
}
COMMANDS_WITHOUT_BASELINE = ("prepare",)
PARTS_WITHOUT_BASELINE = ("batches",)  # compares our own steps
SMOKE_SUITE = (
    "step config/quickstart.py --n_layer=1 --device=cpu --steps=1 --rounds=1",
    "time_to_loss --config='config/quickstart.py --max_iters=2 "
    "--device=cpu' --target=0.1 --interval=1 --seeds=1",
    "decode config/quickstart.py --n_layer=1 --device=cpu --rows=2 --tokens=3 --rounds=1",
    "prepare --tokenizer=char --rounds=1",
    "run config/quickstart.py --max_iters=1 --eval_iters=1 --device=cpu --rounds=1",
)


@dataclass(frozen=True)
class SuiteConfig(BaselineConfig):
    smoke: Annotated[bool, "every path at tiny sizes on the CPU, to see that it works"] = False
    part: Annotated[
        Literal["steps", "batches", "race", "run"] | None, "a part of the suite; None: all"
    ] = None


def bench_suite(options):
    """What docs/SPEED.md will say of a GPU; with smoke=True every path, tiny, on the CPU."""
    parts = {"smoke": SMOKE_SUITE} if options.smoke else GPU_SUITE
    if options.part and not options.smoke:
        parts = {options.part: GPU_SUITE[options.part]}
    for part, lines in parts.items():
        for line in lines:
            print(f"== bench.py {line}", flush=True)
            main([*shlex.split(line), *suite_options(options, part, line)])


def suite_options(options, part, line):
    """The suite's own options that a line of it takes."""
    name = line.split()[0]
    words = [f"--results={options.results}"] if options.results else []
    takes_none = name in COMMANDS_WITHOUT_BASELINE or part in PARTS_WITHOUT_BASELINE
    cannot = name == "run" and options.baseline == "transformers"  # which has no train.py
    if options.baseline and not takes_none and not cannot:
        words.append(f"--baseline={options.baseline}")
    return words


COMMANDS = {
    "step": (bench_step, StepConfig, ModelConfig, TrainConfig),
    "time_to_loss": (bench_time_to_loss, TimeToLossConfig),
    "decode": (bench_decode, DecodeConfig, ModelConfig, TrainConfig),
    "prepare": (bench_prepare, PrepareBenchConfig),
    "run": (bench_run, RunConfig, ModelConfig, TrainConfig),
    "serve": (bench_serve, ServeBenchConfig),
    "suite": (bench_suite, SuiteConfig),
}


def main(argv=None):
    with command():
        name, rest = split_subcommand(argv, COMMANDS, __doc__)
        bench, *classes = COMMANDS[name]
        with out_of_memory_advice("use a smaller model or batch, as in --batch_size=1"):
            bench(*parse_configs(rest, *classes, description=bench.__doc__))


if __name__ == "__main__":
    # An exit, unlike the default of SIGTERM, ends the workers too.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    main()
