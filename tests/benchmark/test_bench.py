"""The benchmarks run, measure what they say, and refuse what cannot be measured. No test asks how fast anything is."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bench
import prepare
from model import ModelConfig
from seugpt.benchmark import whole_commands as commands

QUICK = [
    "--device=cpu",
    "--n_layer=1",
    "--n_embd=32",
    "--n_head=2",
    "--block_size=16",
    "--batch_size=2",
]
ONE_STEP = ["--compile=False", "--max_iters=1", "--eval_interval=1", "--eval_iters=1", "--rounds=1"]
# As much of nanoGPT's interface as a contender needs, around a model of two layers.
PEER = """
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
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def forward(self, idx, targets):
        logits = self.head(self.embedding(idx))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def generate(self, idx, count, temperature, top_k):
        for _ in range(count):
            following = self.head(self.embedding(idx[:, -1:])).argmax(-1)
            idx = torch.cat((idx, following), dim=1)
        return idx
"""

# As much of its train.py: it reads the options from a file, and the tokens and the vocabulary's size from its data.
PEER_TRAIN = """
import os, pickle, sys
out_dir, dataset, device, compile, always_save_checkpoint, n_layer, max_iters = "", "", "", True, True, 12, 600000
exec(open("configurator.py").read())
assert (device, compile, always_save_checkpoint) == ("cpu", False, False), "not as it was told"
with open(os.path.join("data", dataset, "meta.pkl"), "rb") as file:
    print("vocabulary", pickle.load(file)["vocab_size"])
assert all(os.path.getsize(os.path.join("data", dataset, f"{split}.bin")) > 1000 for split in ("train", "val"))
if n_layer > 1:
    sys.exit("no room for so many layers")
print(f"step 0: train loss 9.0000, val loss 8.0000\\nstep {max_iters}: train loss 1.2500, val loss 2.5000")
"""


@pytest.fixture
def docs(workspace):
    prepare.main(["python_docs"])
    (workspace / "peer").mkdir()
    for name, text in {
        "model": PEER,
        "train": PEER_TRAIN,
        "configurator": "exec(open(sys.argv[1]).read())",
    }.items():
        (workspace / "peer" / f"{name}.py").write_text(text)
    (workspace / "quick.py").write_text(
        "dataset = 'python_docs'\ngradient_accumulation_steps = 1\n"
    )
    return workspace


def results(path="results.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_smoke_suite_measures_everything(docs, capsys, monkeypatch):
    (docs / "config").symlink_to(Path(bench.__file__).parent / "config")
    bench.main(["suite", "--smoke", "--results=results.jsonl"])
    step, race, decode, prepared, run = results()
    assert [r["bench"] for r in results()] == ["step", "race", "decode", "prepare", "run"]
    for result in results():
        assert (
            result["versions"]["torch"]
            and result["device"]
            and result["command"].startswith("python ")
        )
    assert step["step_ms"] > step["floor_ms"] > 0 and step["peak_memory_bytes"] > 1e7
    assert set(step["parts_ms"]) == {"data", "forward", "backward", "optimizer"}
    assert race["steps"] is None and [h[0] for h in race["history"]] == [1, 2]
    assert decode["tokens_per_s"] > 0 and decode["prefill_ms"] > 0
    assert prepared["bytes"] > 400_000 and prepared["mb_per_s"] > 0
    assert run["seconds"] > 0 and 0 < run["loss"] < 10
    assert "NOT REACHED" in capsys.readouterr().out


@pytest.mark.parametrize("line", bench.GPU_SUITE)
def test_every_line_of_the_suite_can_be_read_without_a_gpu(line, monkeypatch):
    """A slip there would show on a lent GPU, whose minutes are few."""
    monkeypatch.chdir(Path(bench.__file__).parent)
    name, *rest = shlex.split(line)
    _, *classes = bench.COMMANDS[name]
    options, *configs = bench.Options(rest, *classes, description="").build()
    configs += [part for text in getattr(options, "config", ()) for part in bench.run_of(text, 0)]
    assert [type(part).__name__ for part in configs] == ["ModelConfig", "TrainConfig"]


def test_nanogpt_runs_beside_us_and_its_place_is_not_written_down(docs, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "step", "--peer=some/where"])
    common = ["quick.py", *QUICK, "--peer=peer", "--rounds=2", "--results=results.jsonl"]
    bench.main(["step", *common, "--steps=1"])
    ours, theirs = results()
    assert (
        ours["contender"] == "seuGPT"
        and theirs["contender"] == "nanoGPT"
        and len(theirs["ratios"]) == 2
    )
    assert ours["parameters"] != theirs["parameters"] and theirs["dtype"] == "float32"
    assert theirs["command"] == "python bench.py step --peer=PATH_TO_NANOGPT"
    bench.main(["decode", *common, "--rows=2", "--tokens=20"])
    assert results()[-1]["contender"] == "nanoGPT" and results()[-1]["tokens_per_s"] > 0
    assert "2 at once, nanoGPT" in capsys.readouterr().out


def test_transformers_runs_beside_us(docs):
    pytest.importorskip(
        "transformers", reason="transformers is not installed: python -m pip install transformers"
    )
    common = ["quick.py", *QUICK, "--peer=transformers", "--rounds=1", "--results=results.jsonl"]
    bench.main(["step", *common, "--steps=1"])
    bench.main(["decode", *common, "--rows=2", "--tokens=10"])
    assert [r["contender"] for r in results()] == ["seuGPT", "transformers"] * 2


def test_a_race_ends_when_the_whole_validation_split_reaches_the_target(docs, capsys):
    """Both learn from the same batches; the clock and the steps are of training alone."""
    shape = " ".join(QUICK)
    run = f"quick.py {shape} --max_iters=300 --warmup_iters=2 --learning_rate=1e-3"
    options = [
        "--peer=peer",
        "--target=4.0",
        "--interval=5",
        "--seeds=2",
        "--results=results.jsonl",
    ]
    bench.main(["race", f"--config={run}", *options])
    lines = results()
    assert [(r["contender"].split()[0], r["seed"]) for r in lines] == [("quick.py", 0), ("nanoGPT", 0), ("quick.py", 1),
                                                                     ("nanoGPT", 1)]  # fmt: skip
    for run in lines:
        assert run["steps"] % 5 == 0 and run["loss"] <= 4.0 < run["history"][-2][2]
        assert run["history"][-1][:2] == [run["steps"], round(run["seconds"], 3)]
    assert lines[0]["loss"] != lines[2]["loss"]


def test_whole_runs_of_train_py_are_measured_in_turn(docs, capsys):
    """nanoGPT is told the same options, reads the same tokens and nothing is left in its folder or in ours."""
    before = sorted(docs.rglob("*"))
    short = [
        "--compile=False",
        "--max_iters=4",
        "--eval_interval=2",
        "--eval_iters=1",
        "--dropout=0.1",
    ]
    bench.main(
        ["run", "quick.py", *QUICK, *short, "--peer=peer", "--rounds=2", "--results=results.jsonl"]
    )
    assert [r["contender"] for r in results()] == ["seuGPT", "nanoGPT"] * 2
    ours, theirs = results()[:2]
    assert (
        theirs["loss"] == 2.5
        and 1 < ours["loss"] < 7
        and min(ours["seconds"], theirs["seconds"]) > 0
    )
    assert ours["steps"] == theirs["steps"] == 4
    assert re.search(
        r"nanoGPT: \d+\.\d s, validation loss 2\.5000 at step 4\n", text := capsys.readouterr().out
    )
    assert re.search(
        r"nanoGPT: [0-9.]+ \([0-9. to]+\) s, [0-9.]+ \([0-9. to]+\) times ours\n$", text
    )
    assert sorted(docs.rglob("*")) == sorted([*before, docs / "results.jsonl"])


def test_a_run_that_diverged_is_told_as_such(docs, capsys):
    train = docs / "peer" / "train.py"
    train.write_text(
        train.read_text(encoding="utf-8").replace("val loss 2.5000", "val loss nan"),
        encoding="utf-8",
    )
    bench.main(["run", "quick.py", *QUICK, *ONE_STEP, "--peer=peer"])
    assert (
        "nanoGPT: " in (text := capsys.readouterr().out) and "validation loss nan at step 1" in text
    )


def test_a_peer_that_tells_no_loss_is_refused(docs, refused):
    (docs / "peer" / "train.py").write_text("print('done')", encoding="utf-8")
    message = refused(bench.main, "run", "quick.py", *QUICK, *ONE_STEP, "--peer=peer")
    assert "the train.py of nanoGPT printed no validation loss" in message


def test_what_is_wrong_with_the_peer_shows_before_our_run_is_made(docs, refused, monkeypatch):
    monkeypatch.setattr(
        "seugpt.benchmark.whole_commands.our_command",
        lambda *_, **__: pytest.fail("our run was made"),
    )
    meta = docs / "data" / "python_docs" / "meta.json"
    meta.write_text(
        meta.read_text(encoding="utf-8").replace('"uint16"', '"uint64"'), encoding="utf-8"
    )
    assert "meta.json" in refused(bench.main, "run", "quick.py", *QUICK, *ONE_STEP, "--peer=peer")


def test_measured_runs_are_not_logged_to_wandb(tmp_path):
    _, train_config = bench.run_of("--wandb_log=True", 0)
    commands.our_command(tmp_path, ModelConfig(), train_config)
    assert "wandb_log = False" in (tmp_path / "run.py").read_text(encoding="utf-8")


def test_nanogpt_is_told_our_device_and_number_format(docs, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "seugpt.benchmark.whole_commands.pick_device", lambda name: torch.device(name)
    )
    configs = bench.run_of("quick.py --device=cuda:1 --dtype=float16", 0)
    commands.nanogpt_command("peer", tmp_path / "there", *configs)
    told = (tmp_path / "there" / "run.py").read_text(encoding="ascii")
    assert "device = 'cuda:1'" in told and "dtype = 'float16'" in told and "compile = True" in told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_a_bench_that_is_ended_takes_its_run_along(docs):
    """The training went on, an orphan, and its folder stayed."""
    (docs / "temporary").mkdir()
    command = [
        sys.executable,
        bench.__file__,
        "run",
        "quick.py",
        *QUICK,
        "--compile=False",
        "--max_iters=1000000",
    ]
    environment = {**os.environ, "TMPDIR": str(docs / "temporary")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (logs := list((docs / "temporary").glob("*/out/metrics.jsonl"))):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not logs[0].exists() and not list((docs / "temporary").glob("tmp*"))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["foo"], ["foo is none of step, race, decode, prepare, run, suite"]),
        (["step", "quick.py", "--rounds=0", "--steps=-1"], ["rounds=0", "steps=-1"]),
        (["step", "quick.py", "--peer=nowhere"], ["peer=nowhere", "transformers"]),
        (["race", "--target=1.9"], ["--config=FILE"]),
        (["race", "--config=quick.py"], ["--target=LOSS"]),
        (["race", "--config=", "--target=2"], ["--config=FILE"]),
        (["prepare", "--repeat=1e15"], ["out of memory"]),
        (["race", "--config=nothing.py", "--target=2"], ["nothing.py"]),
        (
            ["race", "--config=quick.py 'open", "--target=2"],
            ["config=quick.py 'open: No closing quotation"],
        ),
        (["decode", "quick.py", "--rows=x"], ["rows=x"]),
        (["prepare", "--input=nothing.txt"], ["input=nothing.txt"]),
        (["prepare", "--tokenizer=foo", "--rounds=1"], ["tokenizer=foo"]),
        (["run", "quick.py", "--peer=transformers"], ["peer=transformers has no train.py"]),
        (["run", "quick.py", "--peer="], ["peer= is neither transformers"]),
        (
            ["run", "quick.py", "--report", "--init_from=resume"],
            ["report=True, init_from=resume", "leave that out"],
        ),
        (["run", "quick.py", "--eval_only"], ["eval_only=True", "leave that out"]),
        (
            ["run", "quick.py", "--max_iters=3", "--eval_interval=2", "--peer=peer"],
            ["eval_interval=2, max_iters=3"],
        ),
        (
            ["run", "quick.py", "--eval_iters=0", "--max_iters=4000", "--peer=peer"],
            ["eval_iters=0", "a whole split"],
        ),
        (
            ["run", "quick.py", *ONE_STEP, "--dataset=elsewhere", "--peer=peer"],
            ["data/elsewhere", "prepare.py"],
        ),
        (
            ["run", "quick.py", *QUICK, *ONE_STEP, "--n_layer=2", "--peer=peer"],
            ["train.py failed, with the exit code 1: no room"],
        ),
        (["step", "quick.py", "--dataset=elsewhere"], ["data/elsewhere", "python prepare.py"]),
    ],
)
def test_mistakes_end_in_one_message(docs, capfd, argv, words):
    with pytest.raises(SystemExit) as exit:
        bench.main(argv)
    message = capfd.readouterr().err
    assert (
        exit.value.code == 2
        and "Traceback" not in message
        and all(word in message for word in words)
    )
