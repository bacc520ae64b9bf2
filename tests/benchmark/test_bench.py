"""bench.py: what it measures and records, and what it refuses to measure.

No test asserts a speed. Contenders run in the test's own process, except where separate processes
are the point.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import bench
from model import ModelConfig
from seugpt.benchmark import whole_commands
from tests.helpers import (
    ROOT,
    gpt2_or_skip,
    run_python,
    save_perturbed_gpt,
    start_script,
    wait_until,
)

SMALL = "--device=cpu --n_layer=1 --n_embd=32 --n_head=2 --block_size=16 --batch_size=2".split()
ONE_STEP = ["--compile=False", "--max_iters=1", "--eval_interval=1", "--eval_iters=1", "--rounds=1"]
BASELINE = "--baseline=nanoGPT"  # the folder that write_nanogpt_source makes
RESULTS = "--results=results.jsonl"

# The part of nanoGPT's model.py that a contender uses, around an embedding and a linear layer.
NANOGPT_MODEL = """
from dataclasses import dataclass
import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(
            self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay
        )

    def forward(self, idx, targets=None):
        logits = self.head(self.embedding(idx))
        if targets is None:
            return logits, None
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1
        )
        return logits, loss

    def generate(self, idx, max_new_tokens, temperature, top_k):
        for _ in range(max_new_tokens):
            next_ids = self.head(self.embedding(idx[:, -1:])).argmax(-1)
            idx = torch.cat((idx, next_ids), dim=1)
        return idx
"""

# A stand-in for its train.py: reads its options from a file, the tokens and vocab_size from data/,
# and prints the losses of two evaluations.
NANOGPT_TRAIN = """
import os, pickle, sys
out_dir = dataset = device = ""
compile = always_save_checkpoint = True
max_iters = 600000
exec(open("configurator.py").read())
assert (device, compile, always_save_checkpoint) == ("cpu", False, False), "wrong options"
with open(os.path.join("data", dataset, "meta.pkl"), "rb") as file:
    print("vocabulary", pickle.load(file)["vocab_size"])
for split in ("train", "val"):
    assert os.path.getsize(os.path.join("data", dataset, f"{split}.bin")) > 1000
print("step 0: train loss 9.0000, val loss 8.0000")
print(f"step {max_iters}: train loss 1.2500, val loss 2.5000")
"""

OUR_TRAIN = "print('step 1: train loss 3.0000, val loss 3.5000')"


def write_nanogpt_source(folder):
    folder.mkdir()
    (folder / "model.py").write_text(NANOGPT_MODEL, encoding="utf-8")
    (folder / "train.py").write_text(NANOGPT_TRAIN, encoding="utf-8")
    (folder / "configurator.py").write_text("exec(open(sys.argv[1]).read())", encoding="utf-8")


@pytest.fixture
def bench_folder(tiny):
    """The folder of `tiny`, with quick.py, a preset for it, and a stand-in for nanoGPT's source."""
    write_nanogpt_source(tiny / "nanoGPT")
    preset = "dataset = 'tiny'\ngradient_accumulation_steps = 1\n"
    (tiny / "quick.py").write_text(preset, encoding="utf-8")
    return tiny


class InProcessWorker:
    """Replaces Worker, but runs the contender in this process."""

    def __init__(self, contender_class, *arguments):
        self.contender = contender_class(*arguments)

    def __call__(self, method, *arguments):
        return getattr(self.contender, method)(*arguments)

    def close(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(bench, "Worker", InProcessWorker)


@pytest.fixture(autouse=True)
def measure_hardware_once(monkeypatch):
    """The speed of the hardware does not matter here, and measuring it takes seconds."""
    monkeypatch.setattr("seugpt.benchmark.hardware.WARMUP", 0)
    monkeypatch.setattr("seugpt.benchmark.hardware.REPETITIONS", 1)


@pytest.fixture
def our_run_is_a_script(monkeypatch, bench_folder):
    """Replaces our train.py by a script that prints what a run of one step prints."""
    script = bench_folder / "our_train.py"
    script.write_text(OUR_TRAIN, encoding="utf-8")

    def command(folder, model_config, config):
        return [sys.executable, script], "."

    monkeypatch.setattr(bench, "our_command", command)


def results():
    return [json.loads(line) for line in Path("results.jsonl").read_text("utf-8").splitlines()]


def recorded(key):
    return [result[key] for result in results()]


def test_smoke_suite_measures_everything(tiny, in_process, capsys):
    """One result of each command, with its machine and its command line."""
    shutil.copytree("data/tiny", "data/python_docs")  # what the presets of the suite train on
    (tiny / "config").symlink_to(ROOT / "config")
    bench.main(["suite", "--smoke", RESULTS])
    assert recorded("bench") == ["step", "time_to_loss", "decode", "prepare", "run"]
    for result in results():
        assert result["versions"]["torch"] and result["device"]
        assert result["command"].startswith("python ")
    step, time_to_loss, decode, prepared, run = results()
    assert step["step_ms"] > 0
    assert step["peak_memory_bytes"] > 1e7
    flops = step["flops_per_s"] * step["step_ms"]
    assert step["roofline_ms"] * step["matmul_flops_per_s"] == pytest.approx(flops)
    assert set(step["parts_ms"]) == {"data", "forward", "backward", "optimizer"}
    assert time_to_loss["steps"] is None
    assert [steps for steps, _, _ in time_to_loss["history"]] == [1, 2]
    assert decode["tokens_per_s"] > 0
    assert decode["prefill_ms"] > 0
    assert prepared["bytes"] > 400_000
    assert prepared["mb_per_s"] > 0
    assert run["seconds"] > 0
    assert 0 < run["loss"] < 10
    printed = capsys.readouterr().out
    assert "NOT REACHED" in printed
    assert re.search(r"600 steps in .+; .+ 7 evaluations", printed)  # of the whole quickstart run


def test_shards_are_prepared_in_turn_with_tiktoken_alone(bench_folder):
    gpt2_or_skip()
    bench.main(["prepare", "--input=tiny.txt", "--repeat=20", "--workers=1", "--rounds=1", RESULTS])
    [result] = results()
    assert result["bench"] == "prepare_shards"
    assert result["bytes"] == pytest.approx(21 * 6000, rel=0.2)
    assert result["mb_per_s"] * result["rounds_s"][0] == pytest.approx(result["bytes"] / 1e6)
    assert result["ratios"][0] == result["tiktoken_s"][0] / result["rounds_s"][0]


@pytest.mark.parametrize("line", [*itertools.chain(*bench.GPU_SUITE.values())])
def test_every_line_of_the_gpu_suite_can_be_parsed(line, monkeypatch):
    """A typo would otherwise show only on a rented GPU."""
    monkeypatch.chdir(ROOT)
    name, *rest = shlex.split(line)
    _, *classes = bench.COMMANDS[name]
    bench_config, *configs = bench.parse_configs(rest, *classes, description="")
    for text in getattr(bench_config, "config", ()):
        configs += bench.configs_of_run(text, seed=0)
    assert [type(config).__name__ for config in configs] == ["ModelConfig", "TrainConfig"]


def test_step_measures_nanogpt_in_turn_and_records_no_private_path(bench_folder, monkeypatch):
    """Here each contender has a process of its own, as outside the tests."""
    monkeypatch.setattr(sys, "argv", ["bench.py", "step", "--baseline=some/where"])
    bench.main(["step", "quick.py", *SMALL, BASELINE, "--rounds=2", "--steps=1", RESULTS])
    ours, theirs = results()
    assert (ours["contender"], theirs["contender"]) == ("seuGPT", "nanoGPT")
    assert len(ours["rounds_ms"]) == len(theirs["rounds_ms"]) == len(theirs["ratios"]) == 2
    assert ours["parameters"] != theirs["parameters"]
    assert theirs["dtype"] == "float32"
    assert theirs["command"] == "python bench.py step --baseline=PATH_TO_NANOGPT"


def test_decode_measures_nanogpt_in_turn(bench_folder, in_process, capsys):
    sizes = ["--rounds=1", "--rows=2", "--tokens=20"]
    bench.main(["decode", "quick.py", *SMALL, BASELINE, *sizes, RESULTS])
    assert recorded("contender") == ["seuGPT", "nanoGPT"]
    assert min(recorded("tokens_per_s")) > 0
    assert "2 row(s), nanoGPT: " in capsys.readouterr().out


def test_step_and_decode_measure_transformers(bench_folder, in_process):
    pytest.importorskip(
        "transformers", reason="transformers is not installed: python -m pip install transformers"
    )
    common = ["quick.py", *SMALL, "--baseline=transformers", "--rounds=1", RESULTS]
    bench.main(["step", *common, "--steps=1"])
    bench.main(["decode", *common, "--rows=2", "--tokens=10"])
    assert recorded("contender") == ["seuGPT", "transformers"] * 2


def test_time_to_loss_ends_when_the_whole_validation_split_reaches_the_target(
    bench_folder, in_process
):
    """The history of each run, for each seed, ends at the first evaluation below the target."""
    schedule = "--max_iters=300 --warmup_iters=2 --learning_rate=1e-3"
    run = f"quick.py {' '.join(SMALL)} {schedule}"
    options = [BASELINE, "--target=2.3", "--interval=5", "--seeds=2", RESULTS]
    bench.main(["time_to_loss", f"--config={run}", *options])
    assert recorded("contender") == [run, f"nanoGPT {run}"] * 2
    assert recorded("seed") == [0, 0, 1, 1]
    for result in results():
        *_, (_, _, loss_before), (last_step, last_seconds, _) = result["history"]
        assert result["loss"] <= 2.3 < loss_before
        assert result["steps"] == last_step
        assert last_step % 5 == 0
        assert last_seconds == round(result["seconds"], 3)
    losses = recorded("loss")
    assert losses[0] != losses[2]
    assert losses[1] != losses[3]


def test_run_measures_whole_runs_and_leaves_no_files(bench_folder, capsys):
    """Ours is a real run of train.py; nanoGPT's stand-in checks its options and its tokens."""
    before = set(bench_folder.rglob("*"))
    schedule = ["--max_iters=4", "--eval_interval=2", "--eval_iters=1", "--dropout=0.1"]
    common = ["--compile=False", "--rounds=1", BASELINE, RESULTS]
    bench.main(["run", "quick.py", *SMALL, *schedule, *common])
    ours, theirs = results()
    assert (ours["contender"], theirs["contender"]) == ("seuGPT", "nanoGPT")
    assert theirs["loss"] == 2.5
    assert 1 < ours["loss"] < 7
    assert min(recorded("seconds")) > 0
    assert recorded("steps") == [4, 4]
    assert re.search(r"nanoGPT: [\d.]+ s, .*2\.5000 at step 4\n", capsys.readouterr().out)
    assert set(bench_folder.rglob("*")) - before == {bench_folder / "results.jsonl"}


def test_run_alternates_between_the_contenders(bench_folder, our_run_is_a_script, capsys):
    """Round by round; the last line is the ratio of their times."""
    bench.main(["run", "quick.py", *SMALL, *ONE_STEP, BASELINE, "--rounds=2", RESULTS])
    assert recorded("contender") == ["seuGPT", "nanoGPT"] * 2
    assert recorded("loss") == [3.5, 2.5] * 2
    printed = capsys.readouterr().out
    assert re.search(r"nanoGPT: [\d.]+ \([\d.]+ to [\d.]+\) s, .* times ours\n$", printed)


def test_diverged_run_is_reported_as_nan(bench_folder, our_run_is_a_script, capsys):
    script = NANOGPT_TRAIN.replace("val loss 2.5000", "val loss nan")
    Path("nanoGPT/train.py").write_text(script, encoding="utf-8")
    bench.main(["run", "quick.py", *SMALL, *ONE_STEP, BASELINE])
    assert re.search(r"^nanoGPT: .* nan at step 1$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "script, words",
    [
        ("print('done')", "no validation loss"),
        ("import sys\nsys.exit('too many layers')", "exit code 1: too many layers"),
    ],
)
def test_failing_baseline_is_named(bench_folder, our_run_is_a_script, refused, script, words):
    """With its last line of output, if it fails."""
    Path("nanoGPT/train.py").write_text(script, encoding="utf-8")
    message = refused(bench.main, "run", "quick.py", *SMALL, *ONE_STEP, BASELINE)
    assert str(Path("nanoGPT/train.py").resolve()) in message
    assert words in message


@pytest.fixture
def our_run_must_not_start(monkeypatch):
    monkeypatch.setattr(bench, "our_command", lambda *_: pytest.fail("our run was started"))


def test_missing_data_is_found_before_our_run_starts(bench_folder, our_run_must_not_start, refused):
    argv = [*SMALL, *ONE_STEP, BASELINE, "--dataset=elsewhere"]
    message = refused(bench.main, "run", "quick.py", *argv).replace("\\", "/")
    assert "data/elsewhere" in message
    assert "python prepare.py" in message


def test_damaged_data_is_found_before_our_run_starts(bench_folder, our_run_must_not_start, refused):
    meta = Path("data/tiny/meta.json")
    damaged = {**json.loads(meta.read_text("utf-8")), "dtype": "uint64"}
    meta.write_text(json.dumps(damaged), encoding="utf-8")
    message = refused(bench.main, "run", "quick.py", *SMALL, *ONE_STEP, BASELINE)
    assert "data/tiny/meta.json" in message.replace("\\", "/")


def test_measured_runs_are_not_logged_to_wandb(tmp_path):
    _, config = bench.configs_of_run("--wandb_log=True", seed=0)
    whole_commands.our_command(tmp_path, ModelConfig(), config)
    assert "wandb_log = False" in (tmp_path / "run.py").read_text(encoding="utf-8")


def test_nanogpt_gets_our_device_dtype_and_compile(bench_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(whole_commands, "pick_device", torch.device)
    configs = bench.configs_of_run("quick.py --device=cuda:1 --dtype=float16", seed=0)
    whole_commands.nanogpt_command("nanoGPT", tmp_path / "run", *configs)
    options = (tmp_path / "run" / "run.py").read_text(encoding="ascii").splitlines()
    assert {"device = 'cuda:1'", "dtype = 'float16'", "compile = True"} <= set(options)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_sigterm_ends_the_measured_run_and_removes_its_folder(bench_folder, monkeypatch):
    """The measured run continued as an orphan, and its folder stayed."""
    temporary = bench_folder / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    options = [*SMALL, "--compile=False", "--max_iters=20000", "--eval_iters=1"]
    process = start_script(["run", "quick.py", *options], script=bench.__file__)
    [metrics] = wait_until(lambda: list(temporary.glob("*/out/metrics.jsonl")), process)
    run_pid = re.search(r"process (\d+)", metrics.with_name(".lock").read_text("utf-8"))[1]
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(temporary.glob("tmp*")) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(run_pid), 0)


@pytest.mark.parametrize(
    "argv, fragments",
    [
        (["foo"], ["foo", "step, time_to_loss, decode, prepare, run, serve, suite"]),
        (["step", "quick.py", "--rounds=0"], ["rounds=0", "at least 1"]),
        (["step", "quick.py", "--steps=-1"], ["steps=-1", "at least 1"]),
        (["step", "quick.py", "--baseline=nowhere"], ["baseline=nowhere", "transformers"]),
        (["step", "quick.py", "--dataset=elsewhere"], ["data/elsewhere", "python prepare.py"]),
        (["time_to_loss", "--target=1.9"], ["--config=FILE"]),
        (["time_to_loss", "--config=quick.py"], ["--target=LOSS", "target=0.0"]),
        (["time_to_loss", "--config=", "--target=2"], ["--config=FILE"]),
        (["time_to_loss", "--config=nothing.py", "--target=2"], ["nothing.py"]),
        (["time_to_loss", "--config=quick.py 'x", "--target=2"], ["config=quick.py 'x: "]),
        (["decode", "quick.py", "--rows=x"], ["rows=['x']", "integers"]),
        (["decode", "quick.py", "--rows=99999999999999999999"], ["rows=9", "100000"]),
        (
            ["decode", "quick.py", "--baseline_dtype=bfloat16", BASELINE],
            ["baseline_dtype=bfloat16 is for --baseline=transformers"],
        ),
        (["prepare", "--input=nothing.txt"], ["input=nothing.txt"]),
        (["prepare", "--repeat=1e15"], ["out of memory"]),
        (["prepare", "--tokenizer=foo", "--rounds=1"], ["prepare.py", "tokenizer=foo"]),
        (["run", "quick.py", "--baseline=transformers"], ["baseline=transformers "]),
        (["run", "quick.py", "--baseline="], ["baseline='': "]),
        (["run", "quick.py", "--report", "--init_from=resume"], ["report=True, init_from=resume"]),
        (["run", "quick.py", "--eval_only"], ["eval_only=True"]),
        (
            ["run", "quick.py", "--max_iters=3", "--eval_interval=2", BASELINE],
            ["eval_interval=2, max_iters=3"],
        ),
        (["run", "quick.py", "--eval_iters=0", "--max_iters=4000", BASELINE], ["eval_iters=0, "]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_impossible_measurement_is_refused(bench_folder, refused, argv, fragments):
    """The message names the option, its value and what to give instead."""
    message = refused(bench.main, *argv)
    assert all(fragment in message for fragment in fragments), message


def test_the_gpu_probe_runs_all_its_parts():
    """Tiny, on the CPU: on a lent GPU there is no time for a typing error."""
    result = run_python("docs/tools/gpu_probe.py", "--smoke", "--device=cpu")
    assert result.returncode == 0, result.stderr
    for part in ("sdpa MATH", "dropout 0.1 MATH", "batch 2", "decode 64 row(s)"):
        assert part in result.stdout


@pytest.mark.slow
def test_serve_measures_clients_at_the_same_time_and_one_after_the_other(workspace, capsys):
    save_perturbed_gpt({"kind": "char", "chars": "The "})
    sizes = ["--clients=2", "--requests=4", "--tokens=3", "--rounds=2", "--flood=20"]
    bench.main(["serve", "--out_dir=out", "--device=cpu", *sizes, RESULTS])
    assert "seuGPT, 2 client(s): " in capsys.readouterr().out
    alone, together, flood = results()
    assert (alone["clients"], together["clients"]) == (1, 2)
    assert together["gains"] == pytest.approx(
        [a / b for a, b in zip(together["tokens_per_s"], alone["tokens_per_s"], strict=True)]
    )
    assert together["ratios"] == [1, 1]  # of ours over ours
    assert (flood["requests"], flood["lost"]) == (20, 0)
    assert len(flood["memory_mb"]) == 11


def test_a_model_that_cannot_be_served_is_one_message(workspace, refused):
    message = refused(bench.main, "serve", "--out_dir=nothing", "--device=cpu")
    assert "serve.py" in message
