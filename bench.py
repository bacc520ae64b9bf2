"""Measure speed: of this program, and of its peers in turn with it.

    python bench.py step config/train_shakespeare_char.py --device=cpu --peer=transformers
    python bench.py race --config=config/fast_shakespeare_char_cpu.py --target=1.898 --seeds=3
    python bench.py decode config/quickstart.py --peer=PATH_TO_NANOGPT
    python bench.py prepare --input=book.txt --repeat=100
    python bench.py run config/train_shakespeare_char.py --peer=PATH_TO_NANOGPT
    python bench.py suite --smoke

step, decode and run take train.py's options too. Times drift on a shared machine; the ratios of runs in turn count.
"""

import shlex
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from model import ModelConfig, pick_device, pick_dtype
from seugpt.benchmark.contenders import Contender, Process, synchronize
from seugpt.benchmark.hardware import (
    copy_bandwidth,
    matmul_flops,
    peak_flops,
    ratios,
    record,
    spread,
)
from seugpt.benchmark.peers import NanoGPT, Transformers, in_turn
from seugpt.benchmark.whole_commands import prepare, run
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.errors import ConfigError
from seugpt.generation.decoder import Decoder, Sampling, generate
from seugpt.training.distributed import Ranks
from seugpt.training.init_from import build_model
from seugpt.training.logger import RunLog
from seugpt.training.memory import keep_freed_memory, memory_guard
from train import TrainConfig, Trainer


def run_of(text, seed):
    """(ModelConfig, TrainConfig) of a run, from what is typed after train.py. Raises ConfigError."""
    try:
        given = shlex.split(text)
    except ValueError as error:  # a quotation mark that is not closed
        raise ConfigError(f"config={text}: {error}") from None
    return Options([*given, f"--seed={seed}"], ModelConfig, TrainConfig, description="").build()


class SeuGPT(Contender):
    def __init__(self, model_config, options):
        super().__init__(model_config, options)
        self.dtype, self.decoders = pick_dtype(options.dtype, self.device, training=True), {}
        keep_freed_memory()
        self.model, _ = build_model(model_config, options, None, self.dataset.tokenizer)
        start = time.perf_counter()
        log = RunLog(self.options, silent=True)
        self.trainer = Trainer(
            self.model, self.options, self.dataset, Ranks(), self.device, self.dtype, log
        )
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
            for name, before, after in zip(times, clock, clock[1:], strict=False):
                times[name].append(1000 * (after - before))
        return {name: statistics.median(values) for name, values in times.items()}

    def decoder(self, batch_size, length):
        """Made, and compiled, once for each size, as sample.py does."""
        if (batch_size, length) not in self.decoders:
            self.model.to(pick_dtype(self.options.dtype, self.device))
            self.decoders[batch_size, length] = Decoder(
                self.model, batch_size, length, self.options.compile is True
            )
        return self.decoders[batch_size, length]

    def write(self, batch_size, tokens):
        decoder = self.decoder(batch_size, min(tokens + 1, self.config.block_size))
        for row in generate(
            decoder, [[0]] * batch_size, tokens, self.config.vocab_size, Sampling()
        ):
            row.tolist()  # as a terminal needs each token at once

    def prefill(self, batch_size):
        """(median milliseconds of reading prompts of a full context, bytes that a step then reads)."""
        self.model.eval()
        decoder, times = self.decoder(batch_size, self.config.block_size), []
        rows = [
            torch.zeros(self.config.block_size, dtype=torch.long, device=self.device)
        ] * batch_size
        for _ in range(5):
            start = time.perf_counter()
            decoder.prefill(rows)
            synchronize(self.device)
            times.append(1000 * (time.perf_counter() - start))
        tensors = [*self.model.parameters(), *decoder.cache.keys, *decoder.cache.values]
        return statistics.median(times), sum(tensor.nbytes for tensor in tensors)


def entries(peer):
    """[(name, kind of contender, its own arguments)]: seuGPT, and the peer where one is asked for."""
    ours = [("seuGPT", SeuGPT, ())]
    if peer is None:
        return ours
    return [
        *ours,
        ("transformers", Transformers, ())
        if peer == "transformers"
        else ("nanoGPT", NanoGPT, (peer,)),
    ]


def start(peer, *configs):
    """{name: its Process}: seuGPT, and the peer where one is asked for."""
    return {name: Process(kind, *own, *configs) for name, kind, own in entries(peer)}


@dataclass(frozen=True)
class Bench:
    results: Annotated[str | None, "file to which each result is appended as one JSON object"] = (
        None
    )

    def problems(self):
        return [
            f"{k}={v} must be at least 1" for k, v in vars(self).items() if type(v) is int and v < 1
        ]

    def __post_init__(self):
        if problems := self.problems():
            raise ValueError("\n".join(problems))


@dataclass(frozen=True)
class WithPeer(Bench):
    peer: Annotated[
        str | None, "transformers, or the folder of nanoGPT's source: measured in turn with us"
    ] = None

    def problems(self):
        files = ("model.py", "train.py", "configurator.py")  # the last is nanoGPT's alone
        known = self.peer in (None, "transformers") or all(
            Path(self.peer, file).is_file() for file in files
        )
        wrong = f"peer={self.peer} is neither transformers nor a folder with nanoGPT's {', '.join(files)}"
        return super().problems() + ([] if known else [wrong])


@dataclass(frozen=True)
class StepBench(WithPeer):
    steps: Annotated[int, "in each round"] = 20
    rounds: Annotated[int, "turns of each contender, whose median is told"] = 5


@dataclass(frozen=True)
class RaceBench(WithPeer):
    config: Annotated[
        tuple[str, ...], "a run of ours, as after train.py; may be given several times"
    ] = ()
    peer_config: Annotated[str | None, "the peer's run; None: the first of ours"] = None
    target: Annotated[float, "loss over the whole validation split that ends a run"] = 0.0
    seeds: Annotated[int, "runs of each contender"] = 3
    interval: Annotated[
        int | None, "steps between evaluations, off the clock; None: a 20th of the run"
    ] = None

    def problems(self):
        wrong = f"a race needs --config=FILE, once for each run, and --target=LOSS; target={self.target}"
        return super().problems() + (
            [] if all(self.config or [None]) and self.target > 0 else [wrong]
        )


@dataclass(frozen=True)
class DecodeBench(WithPeer):
    tokens: Annotated[int, "to write in each row"] = 500
    rows: Annotated[tuple[str, ...], "how many at once; may be given several times"] = (
        "1",
        "10",
        "64",
    )
    rounds: Annotated[int, "turns of each contender, whose median is told"] = 5

    def problems(self):
        wrong = [n for n in self.rows if not n.isdecimal() or int(n) < 1]
        return super().problems() + [f"rows={n} must be an integer of at least 1" for n in wrong]


@dataclass(frozen=True)
class PrepareBench(Bench):
    input: Annotated[str | None, "a UTF-8 file; None: Python's documentation"] = None
    repeat: Annotated[int, "times that it stands in the text that is measured"] = 1
    tokenizer: Annotated[tuple[str, ...], "of prepare.py; may be given several times"] = (
        "char",
        "gpt2",
    )
    rounds: Annotated[int, "runs for each tokenizer, whose median is told"] = 5

    def problems(self):
        wrong = self.input is not None and not Path(self.input).is_file()
        return super().problems() + ([f"input={self.input} is no file"] if wrong else [])


@dataclass(frozen=True)
class RunBench(WithPeer):
    peer: Annotated[
        str | None, "the folder of nanoGPT's source: its train.py is run in turn with ours"
    ] = None
    rounds: Annotated[int, "runs of each contender, whose median is told"] = 3

    def problems(self):
        wrong = "peer=transformers has no train.py to run; run takes the folder of nanoGPT's source"
        return super().problems() + ([wrong] if self.peer == "transformers" else [])


@dataclass(frozen=True)
class SuiteBench(WithPeer):
    smoke: Annotated[bool, "every path at tiny sizes on the CPU, to see that it works"] = False


def step(options, model_config, train_config):
    """Milliseconds of a training step, and where they go."""
    device = pick_device(train_config.device)
    processes = start(options.peer, model_config, train_config)
    for process in processes.values():
        process("steps", 5)  # buffers, caches, the choice of kernels
    results = in_turn(options.rounds, processes, "steps", options.steps)
    rounds = {
        name: [statistics.median(times) for times in result] for name, result in results.items()
    }
    tokens = train_config.tokens_per_step(model_config.block_size)
    flops = tokens * processes["seuGPT"]("flops_per_token")
    for name, medians in rounds.items():
        about, ms = processes[name]("about"), statistics.median(medians)
        peak = matmul_flops(device, dtype := getattr(torch, about["dtype"]))
        result = {
            "step_ms": ms,
            "tokens_per_s": 1000 * tokens / ms,
            "flops_per_s": 1000 * flops / ms,
            **about,
        }
        result |= {
            "floor_ms": 1000 * flops / peak,
            "matmul_flops_per_s": peak,
            "rounds_ms": medians,
        }
        result |= {"tokens_per_step": tokens, "block_size": model_config.block_size}
        mfu = (
            f", MFU {1000 * flops / ms / limit:.1%}" if (limit := peak_flops(device, dtype)) else ""
        )
        speed = f"{1000 * tokens / ms:,.0f} tokens/s, {flops / ms / 1e6:,.0f} GFLOP/s{mfu}"
        memory = f"peak memory {about['peak_memory_bytes'] / 1e6:,.0f} MB"
        print(f"{name}, {about['dtype']}: {spread(medians, '.1f')} ms a step, {speed}; {memory}")
        print(
            f"    floor {result['floor_ms']:.1f} ms at the {peak / 1e9:,.0f} GFLOP/s of a large product"
        )
        if name == "seuGPT":
            result["parts_ms"] = parts = processes[name]("parts", options.steps)
            print("    " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()) + " ms")
        else:
            result["ratios"] = ratios(medians, rounds["seuGPT"])
            print(f"    {spread(result['ratios'], '.2f')} times ours")
        record(options.results, device, bench="step", contender=name, **result)
        processes[name].close()


def race(options):
    """Seconds of training until the loss over the whole validation split is at most the target; runs in turn."""
    ours, *peers = entries(options.peer)
    theirs = options.peer_config or options.config[0]
    field = [(text, text, ours) for text in options.config] + [
        (f"{peer[0]} {theirs}", theirs, peer) for peer in peers
    ]
    seconds = {name: [] for name, _, _ in field}
    for seed in range(options.seeds):
        for name, text, (_, kind, own) in field:
            model_config, train_config = run_of(text, seed)
            process = Process(kind, *own, model_config, train_config)
            interval = options.interval or max(train_config.max_iters // 20, 1)
            result = process("train_until", options.target, interval) | process("about")
            process.close()
            seconds[name].append(result["seconds"])
            reached = f"in {result['steps']} steps" if result["steps"] else "NOT REACHED"
            compiling = (
                f" and {result['compile_seconds']:.1f} s to compile"
                if result["compile_seconds"]
                else ""
            )
            print(
                f"seed {seed}, {name}: {result['seconds']:.2f} s{compiling}, {reached}, loss {result['loss']:.4f}",
                flush=True,
            )
            record(
                options.results,
                pick_device(train_config.device),
                bench="race",
                contender=name,
                seed=seed,
                **result,
            )
    for name, values in seconds.items():
        times = ratios(values, seconds[field[0][0]])
        print(f"{name}: {spread(values, '.2f')} s, {spread(times, '.2f')} times the first")


def decode(options, model_config, train_config):
    """Tokens per second of writing, one row and several; an untrained model writes as fast as a trained one."""
    device = pick_device(train_config.device)
    bandwidth, processes = copy_bandwidth(device), start(options.peer, model_config, train_config)
    for rows in map(int, options.rows):
        for process in processes.values():
            process(
                "speed", rows, options.tokens
            )  # a decoder is made, and perhaps compiled, for this length
        speeds = in_turn(options.rounds, processes, "speed", rows, options.tokens)
        prefill_ms, bytes_read = processes["seuGPT"]("prefill", rows)
        floor = rows * bandwidth / bytes_read
        for name, rounds in speeds.items():
            times = ratios(speeds["seuGPT"], rounds)
            print(
                f"{rows} at once, {name}: {spread(rounds, ',.0f')} tokens/s; ours {spread(times, '.2f')} times that"
            )
            result = {
                "rows": rows,
                "tokens_per_s": statistics.median(rounds),
                "rounds": rounds,
                "ratios": times,
            }
            result |= {
                "compile": train_config.compile,
                "prefill_ms": prefill_ms,
                "floor_tokens_per_s": floor,
            }
            record(options.results, device, bench="decode", contender=name, **result)
        print(
            f"    reading prompts of a full context: {prefill_ms:.1f} ms; floor {floor:,.0f} tokens/s"
        )
    for process in processes.values():
        process.close()


GPU_SUITE = (
    "step config/train_shakespeare_char.py",
    "step config/train_gpt2.py --dataset=shakespeare_char --gradient_accumulation_steps=1 --batch_size=32",
    "run config/train_shakespeare_char.py --rounds=1",
    "race --config=config/fast_shakespeare_char.py --target=1.4697 --interval=50",
    "decode config/train_gpt2.py --dataset=shakespeare_char --rows=1 --rows=64 --rounds=3",
)
SMOKE_SUITE = (
    "step config/quickstart.py --n_layer=1 --device=cpu --steps=1 --rounds=1",
    "race --config='config/quickstart.py --max_iters=2 --device=cpu' --target=0.1 --interval=1 --seeds=1",
    "decode config/quickstart.py --n_layer=1 --device=cpu --rows=2 --tokens=3 --rounds=1",
    "prepare --tokenizer=char --rounds=1",
    "run config/quickstart.py --max_iters=1 --eval_iters=1 --device=cpu --rounds=1",
)


def suite(options):
    """All that docs/SPEED.md says of a GPU; or with smoke=True every path, tiny, on the CPU."""
    for line in SMOKE_SUITE if options.smoke else GPU_SUITE:
        print(f"== bench.py {line}", flush=True)
        alone = line.startswith("prepare") or (
            line.startswith("run") and options.peer == "transformers"
        )
        passed = {"results": options.results, "peer": None if alone else options.peer}
        main(
            [*shlex.split(line), *(f"--{name}={value}" for name, value in passed.items() if value)]
        )


COMMANDS = {
    "step": (step, StepBench, ModelConfig, TrainConfig),
    "race": (race, RaceBench),
    "decode": (decode, DecodeBench, ModelConfig, TrainConfig),
    "prepare": (prepare, PrepareBench),
    "run": (run, RunBench, ModelConfig, TrainConfig),
    "suite": (suite, SuiteBench),
}


def main(argv=None):
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with command():
        if name in ("-h", "--help"):
            return print(__doc__)
        if name not in COMMANDS:
            raise ConfigError(
                f"{name} is none of {', '.join(COMMANDS)}; see python bench.py --help"
            )
        measure, *classes = COMMANDS[name]
        with memory_guard("a smaller model or batch, as in --batch_size=1"):
            measure(*Options(rest, *classes, description=measure.__doc__).build())


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # what it has started ends with it
    main()
