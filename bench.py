"""Measure speed: of this program, and of its peers in turn with it.

    python bench.py step config/train_shakespeare_char.py --device=cpu --peer=transformers
    python bench.py race --config=config/fast_shakespeare_char_cpu.py --target=1.898 --seeds=3
    python bench.py decode config/quickstart.py --peer=PATH_TO_NANOGPT
    python bench.py prepare --input=book.txt --repeat=100
    python bench.py suite --smoke

All but prepare take train.py's options too. Absolute times of a shared machine drift; what counts are the ratios of
runs in turn. --results=FILE appends one JSON object a result, with machine, versions, commit and command.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

import config
from checkpoint import CheckpointError
from config import ConfigError
from contenders import Process, SeuGPT
from data import DataError
from data.corpora import obtain
from hardware import copy_bandwidth, machine, matmul_flops
from memory import memory_guard
from model import DeviceError, ModelConfig, pick_device
from peers import NanoGPT, Transformers
from train import TrainConfig, TrainingError


@dataclass(frozen=True)
class BenchConfig:
    peer: Annotated[str | None, "transformers, or the folder of nanoGPT's source: measured in turn with us"] = None
    results: Annotated[str | None, "file to which each result is appended as one JSON object"] = None
    rounds: Annotated[int, "turns of each contender; their median is told"] = 5

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} must be at least 1")
        if self.peer not in (None, "transformers") and not (Path(self.peer) / "model.py").is_file():
            raise ValueError(f"peer={self.peer} is neither transformers nor a folder with nanoGPT's model.py")


@dataclass(frozen=True)
class StepConfig(BenchConfig):
    steps: Annotated[int, "in each round"] = 20

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


@dataclass(frozen=True)
class RaceConfig(BenchConfig):
    config: Annotated[tuple[str, ...], "a run of ours, as after train.py; may be given several times"] = ()
    peer_config: Annotated[str | None, "the peer's run; None: the first of ours"] = None
    target: Annotated[float, "loss over the whole validation split that ends a run"] = 0.0
    seeds: Annotated[int, "runs of each contender"] = 3
    interval: Annotated[int | None, "steps between evaluations, off the clock; None: a 20th of the run"] = None

    def __post_init__(self):
        super().__post_init__()
        if not self.config:
            raise ValueError("config= names no contender: --config=FILE, once for each")
        if self.target <= 0:
            raise ValueError(f"target={self.target} must be above 0: --target=1.898")
        if self.seeds < 1 or (self.interval is not None and self.interval < 1):
            raise ValueError(f"seeds={self.seeds} and interval={self.interval} must be at least 1")


@dataclass(frozen=True)
class DecodeConfig(BenchConfig):
    tokens: Annotated[int, "to write in each row"] = 500
    rows: Annotated[tuple[str, ...], "how many at once; may be given several times"] = ("1", "10", "64")

    def __post_init__(self):
        super().__post_init__()
        if self.tokens < 1 or not all(text.isdecimal() and int(text) > 0 for text in self.rows):
            raise ValueError(f"tokens={self.tokens} and rows={', '.join(self.rows)} must be integers of at least 1")


@dataclass(frozen=True)
class SuiteConfig(BenchConfig):
    smoke: Annotated[bool, "every path at tiny sizes on the CPU, to see that it works"] = False


@dataclass(frozen=True)
class PrepareBenchConfig(BenchConfig):
    input: Annotated[str | None, "a UTF-8 file; None: Python's documentation"] = None
    repeat: Annotated[int, "times that it stands in the text that is measured"] = 1
    tokenizer: Annotated[tuple[str, ...], "of prepare.py; may be given several times"] = ("char", "gpt2")

    def __post_init__(self):
        super().__post_init__()
        if self.input is not None and not Path(self.input).is_file():
            raise ValueError(f"input={self.input} is not a file")
        if self.repeat < 1:
            raise ValueError(f"repeat={self.repeat} must be at least 1")


def entries(peer):
    """[(name, kind of contender, its own arguments)]: seuGPT, and the peer where one is asked for."""
    ours = [("seuGPT", SeuGPT, ())]
    if peer is None:
        return ours
    return [*ours, ("transformers", Transformers, ()) if peer == "transformers" else ("nanoGPT", NanoGPT, (peer,))]


def report(options, device, **result):
    """Append a result to the file of results, if there is one."""
    if options.results:
        command = "python " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        Path(options.results).parent.mkdir(parents=True, exist_ok=True)
        with open(options.results, "a", encoding="utf-8") as file:
            file.write(json.dumps({**result, **machine(device), "command": command}) + "\n")


def in_turn(options, processes, method, *arguments):
    """{name: [result of each round]}, the contenders one after the other in each round."""
    results = {name: [] for name in processes}
    for _ in range(options.rounds):
        for name, process in processes.items():
            results[name].append(process(method, *arguments))
    return results


def ratios(ours, theirs):
    """Ours over theirs, round by round: (median, lowest, highest)."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def step(options, model_config, train_config):
    """Milliseconds of a training step, and where they go."""
    device = pick_device(train_config.device)
    processes = {name: Process(kind, *own, model_config, train_config) for name, kind, own in entries(options.peer)}
    for process in processes.values():
        process("steps", 5)
    rounds = {
        name: [statistics.median(times) for times in results]
        for name, results in in_turn(options, processes, "steps", options.steps).items()
    }
    tokens = train_config.tokens_per_step(model_config.block_size)
    flops_per_token = processes["seuGPT"]("flops_per_token")
    for name, medians in rounds.items():
        about, ms = processes[name]("about"), statistics.median(medians)
        peak = matmul_flops(device, getattr(torch, about["dtype"]))
        floor_ms = 1000 * flops_per_token * tokens / peak
        print(
            f"{name}: {ms:.1f} ms a step ({min(medians):.1f} to {max(medians):.1f}), {1000 * tokens / ms:,.0f} tokens/s, "
            f"{flops_per_token * tokens / ms / 1e6:,.0f} GFLOP/s, {about['dtype']}"
        )
        print(
            f"    floor {floor_ms:.1f} ms at the {peak / 1e9:,.0f} GFLOP/s of a large product; "
            f"peak memory {about['peak_memory_bytes'] / 1e6:,.0f} MB; {about['parameters']:,} parameters"
        )
        result = {"bench": "step", "contender": name, "step_ms": ms, "rounds_ms": medians, "tokens_per_step": tokens}
        result |= {"floor_ms": floor_ms, "flops_per_token": flops_per_token, **about}
        if name == "seuGPT":
            result["parts_ms"] = parts = processes[name]("parts", options.steps)
            print("    " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()) + " ms")
        else:
            result["ratio"] = times = ratios(medians, rounds["seuGPT"])
            print(f"    {times[0]:.2f} times ours ({times[1]:.2f} to {times[2]:.2f})")
        report(options, device, **result)
        processes[name].close()


def race(options):
    """Seconds of training until the loss over the whole validation split is at most the target; runs in turn."""
    ours, *peers = entries(options.peer)
    field = [(text, text, ours) for text in options.config]
    theirs = options.peer_config or options.config[0]
    field += [(f"{peer[0]} {theirs}", theirs, peer) for peer in peers]
    runs = {name: [] for name, _, _ in field}
    for seed in range(options.seeds):
        for name, text, (_, kind, own) in field:
            given = config.Options([*shlex.split(text), f"--seed={seed}"], ModelConfig, TrainConfig, description="")
            model_config, train_config = given.build()
            process = Process(kind, *own, model_config, train_config)
            result = process("train_until", options.target, options.interval or max(train_config.max_iters // 20, 1))
            result |= process("about")
            process.close()
            runs[name].append(result)
            reached = f"in {result['steps']} steps" if result["steps"] else "NOT REACHED"
            print(
                f"seed {seed}, {name}: {result['seconds']:.2f} s ({result['compile_seconds']:.1f} s more to compile), "
                f"{reached}, loss {result['loss']:.4f}",
                flush=True,
            )
            report(options, pick_device(train_config.device), bench="race", contender=name, seed=seed, **result)
    for name, results in runs.items():
        seconds = sorted(result["seconds"] for result in results)
        ratio = ratios([result["seconds"] for result in results], [result["seconds"] for result in runs[field[0][0]]])
        print(
            f"{name}: median {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{ratio[0]:.2f} times the first ({ratio[1]:.2f} to {ratio[2]:.2f})"
        )


def decode(options, model_config, train_config):
    """Tokens per second of writing, one row and several; an untrained model writes as fast as a trained one."""
    device = pick_device(train_config.device)
    processes = {name: Process(kind, *own, model_config, train_config) for name, kind, own in entries(options.peer)}
    bandwidth = copy_bandwidth(device)
    for batch_size in map(int, options.rows):
        for process in processes.values():
            process("speed", batch_size, min(options.tokens, 50))
        speeds = in_turn(options, processes, "speed", batch_size, options.tokens)
        prefill_ms, bytes_read = processes["seuGPT"]("prefill", batch_size)
        floor = batch_size * bandwidth / bytes_read
        for name, rounds in speeds.items():
            ratio = ratios(speeds["seuGPT"], rounds)
            print(
                f"{batch_size} at once, {name}: {statistics.median(rounds):,.0f} tokens/s ({min(rounds):,.0f} to "
                f"{max(rounds):,.0f}); seuGPT is {ratio[0]:.2f} times as fast ({ratio[1]:.2f} to {ratio[2]:.2f})",
                flush=True,
            )
            result = {"bench": "decode", "contender": name, "batch_size": batch_size, "rounds_tokens_per_s": rounds}
            result |= {"tokens_per_s": statistics.median(rounds), "ratio": ratio, "compile": train_config.compile}
            report(options, device, **result, prefill_ms=prefill_ms, floor_tokens_per_s=floor)
        print(f"    reading a prompt of a full context: {prefill_ms:.1f} ms; floor {floor:,.0f} tokens/s")


def prepare(options):
    """Megabytes per second of prepare.py as a whole, its start included, for each tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        if options.input is None:
            obtain("python_docs", path)
        path.write_bytes(Path(options.input or path).read_bytes() * options.repeat)
        size = path.stat().st_size
        for tokenizer in options.tokenizer:
            seconds = []
            for _ in range(options.rounds):
                command = [sys.executable, str(Path(__file__).parent / "prepare.py"), "bench", f"--input={path}"]
                start = time.perf_counter()
                done = subprocess.run(
                    [*command, f"--tokenizer={tokenizer}"], cwd=folder, capture_output=True, text=True
                )
                seconds.append(time.perf_counter() - start)
                if done.returncode:
                    raise ConfigError(done.stderr.strip())
            median = statistics.median(seconds)
            print(f"{tokenizer}: {size / median / 1e6:.1f} MB/s ({size / 1e6:.0f} MB in {median:.2f} s)", flush=True)
            result = {"bench": "prepare", "tokenizer": tokenizer, "mb_per_s": size / median / 1e6, "bytes": size}
            report(options, torch.device("cpu"), **result, rounds_s=seconds)


GPU_SUITE = (
    "step config/train_shakespeare_char.py",
    "step config/train_gpt2.py --dataset=shakespeare_char --gradient_accumulation_steps=1 --batch_size=32",
    "race --config=config/fast_shakespeare_char.py --target=1.4697 --interval=50",
    "decode config/train_gpt2.py --dataset=shakespeare_char --rows=1 --rows=64 --rounds=3",
)
SMOKE_SUITE = (
    "step config/quickstart.py --n_layer=1 --device=cpu --steps=1",
    "race --config='config/quickstart.py --max_iters=2 --device=cpu' --target=0.1 --interval=1 --seeds=1",
    "decode config/quickstart.py --n_layer=1 --device=cpu --rows=2 --tokens=3",
    "prepare --tokenizer=char",
)


def suite(options):
    """All that docs/SPEED.md says of a GPU, in some minutes; or with smoke=True every path, tiny, on the CPU."""
    for line in SMOKE_SUITE if options.smoke else GPU_SUITE:
        print(f"== bench.py {line}", flush=True)
        given = [*shlex.split(line), *(["--rounds=1"] if options.smoke else [])]
        given += [f"--{name}={value}" for name in ("peer", "results") if (value := getattr(options, name))]
        main([text for text in given if not (text.startswith("--peer") and line.startswith("prepare"))])


COMMANDS = {
    "step": (step, StepConfig, ModelConfig, TrainConfig),
    "race": (race, RaceConfig),
    "decode": (decode, DecodeConfig, ModelConfig, TrainConfig),
    "prepare": (prepare, PrepareBenchConfig),
    "suite": (suite, SuiteConfig),
}


def main(argv=None):
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with config.command(DataError, CheckpointError, DeviceError, TrainingError):
        if name in ("-h", "--help"):
            print(__doc__)
        elif name not in COMMANDS:
            raise ConfigError(f"{name} is none of {', '.join(COMMANDS)}; see python bench.py --help")
        else:
            run, *classes = COMMANDS[name]
            with memory_guard("a smaller model or batch, as in --batch_size=1"):
                run(*config.Options(rest, *classes, description=run.__doc__).build())


if __name__ == "__main__":
    main()
