"""The benchmarks run, measure what they say, and refuse what cannot be measured. No test asks how fast anything is."""

import json
import sys
from pathlib import Path

import pytest

import bench
import prepare

QUICK = ["--device=cpu", "--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=16", "--batch_size=2"]
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


@pytest.fixture
def docs(workspace):
    prepare.main(["python_docs"])
    (workspace / "peer").mkdir()
    (workspace / "peer" / "model.py").write_text(PEER)
    (workspace / "quick.py").write_text("dataset = 'python_docs'\ngradient_accumulation_steps = 1\n")
    return workspace


def results(path="results.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_smoke_suite_measures_everything(docs, capsys, monkeypatch):
    (docs / "config").symlink_to(Path(bench.__file__).parent / "config")
    bench.main(["suite", "--smoke", "--results=results.jsonl"])
    step, race, decode, prepared = results()
    assert [r["bench"] for r in (step, race, decode, prepared)] == ["step", "race", "decode", "prepare"]
    for result in results():
        assert result["versions"]["torch"] and result["device"] and result["command"].startswith("python ")
    assert step["step_ms"] > step["floor_ms"] > 0 and step["peak_memory_bytes"] > 1e7
    assert set(step["parts_ms"]) == {"data", "forward", "backward", "optimizer"}
    assert race["steps"] is None and [h[0] for h in race["history"]] == [1, 2]
    assert decode["tokens_per_s"] > 0 and decode["prefill_ms"] > 0
    assert prepared["bytes"] > 400_000 and prepared["mb_per_s"] > 0
    assert "NOT REACHED" in capsys.readouterr().out


def test_nanogpt_runs_beside_us_and_its_place_is_not_written_down(docs, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "step", "--peer=some/where"])
    common = ["quick.py", *QUICK, "--peer=peer", "--rounds=2", "--results=results.jsonl"]
    bench.main(["step", *common, "--steps=1"])
    ours, theirs = results()
    assert ours["contender"] == "seuGPT" and theirs["contender"] == "nanoGPT" and len(theirs["ratios"]) == 2
    assert ours["parameters"] != theirs["parameters"] and theirs["dtype"] == "float32"
    assert theirs["command"] == "python bench.py step --peer=PATH_TO_NANOGPT"
    bench.main(["decode", *common, "--rows=2", "--tokens=20"])
    assert results()[-1]["contender"] == "nanoGPT" and results()[-1]["tokens_per_s"] > 0
    assert "2 at once, nanoGPT" in capsys.readouterr().out


def test_transformers_runs_beside_us(docs):
    pytest.importorskip("transformers", reason="transformers is not installed: python -m pip install transformers")
    common = ["quick.py", *QUICK, "--peer=transformers", "--rounds=1", "--results=results.jsonl"]
    bench.main(["step", *common, "--steps=1"])
    bench.main(["decode", *common, "--rows=2", "--tokens=10"])
    assert [r["contender"] for r in results()] == ["seuGPT", "transformers"] * 2


def test_a_race_ends_when_the_whole_validation_split_reaches_the_target(docs, capsys):
    """Both learn from the same batches; the clock and the steps are of training alone."""
    shape = " ".join(QUICK)
    run = f"quick.py {shape} --max_iters=300 --warmup_iters=2 --learning_rate=1e-3"
    options = ["--peer=peer", "--target=4.0", "--interval=5", "--seeds=2", "--results=results.jsonl"]
    bench.main(["race", f"--config={run}", *options])
    lines = results()
    assert [(r["contender"].split()[0], r["seed"]) for r in lines] == [("quick.py", 0), ("nanoGPT", 0), ("quick.py", 1),
                                                                     ("nanoGPT", 1)]  # fmt: skip
    for run in lines:
        assert run["steps"] % 5 == 0 and run["loss"] <= 4.0 < run["history"][-2][2]
        assert run["history"][-1][:2] == [run["steps"], round(run["seconds"], 3)]
    assert lines[0]["loss"] != lines[2]["loss"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["foo"], ["foo is none of step, race, decode, prepare, suite"]),
        (["step", "quick.py", "--rounds=0", "--steps=-1"], ["rounds=0", "steps=-1"]),
        (["step", "quick.py", "--peer=nowhere"], ["peer=nowhere", "transformers"]),
        (["race", "--target=1.9"], ["--config=FILE"]),
        (["race", "--config=quick.py"], ["--target=LOSS"]),
        (["race", "--config=", "--target=2"], ["--config=FILE"]),
        (["prepare", "--repeat=1e15"], ["out of memory"]),
        (["race", "--config=nothing.py", "--target=2"], ["nothing.py"]),
        (["race", "--config=quick.py 'open", "--target=2"], ["config=quick.py 'open: No closing quotation"]),
        (["decode", "quick.py", "--rows=x"], ["rows=x"]),
        (["prepare", "--input=nothing.txt"], ["input=nothing.txt"]),
        (["prepare", "--tokenizer=foo", "--rounds=1"], ["tokenizer=foo"]),
        (["step", "quick.py", "--dataset=elsewhere"], ["data/elsewhere", "python prepare.py"]),
    ],
)
def test_mistakes_end_in_one_message(docs, capfd, argv, words):
    with pytest.raises(SystemExit) as exit:
        bench.main(argv)
    message = capfd.readouterr().err
    assert exit.value.code == 2 and "Traceback" not in message and all(word in message for word in words)
