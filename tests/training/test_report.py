"""The report: every figure against another way to come to it, on the real model; and that it leaves nothing behind."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import train
from model import GPT, ModelConfig
from seugpt.checkpoint.huggingface import shapes
from seugpt.cli.options import Options
from seugpt.data.dataset import Dataset
from seugpt.training import report
from seugpt.training.distributed import Ranks
from seugpt.training.logger import RunLog
from seugpt.training.report import count_memory, forward_flops, human, parameter_table
from tests.helpers import ROOT, torchrun
from train import TrainConfig, Trainer

CPU = torch.device("cpu")
LLAMA = {
    "position": "rope",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "n_kv_head": 2,
    "tie_embeddings": False,
}
ARCHITECTURES = {
    "GPT-2": {"bias": True},
    "GPT-2, dropout": {"dropout": 0.3},
    "Llama": LLAMA,
    "Llama with biases": {**LLAMA, "bias": True},
    "MQA, relu2": {
        "n_kv_head": 1,
        "mlp": "relu2",
        "qk_norm": True,
        "logit_softcap": 30.0,
        "bias": True,
    },
    "wide MLP": {"mlp_hidden": 300, "mlp": "gelu_exact", "position": "rope", "norm": "rmsnorm"},
}
each_architecture = pytest.mark.parametrize("fields", ARCHITECTURES.values(), ids=ARCHITECTURES)


def model_config(**fields):
    return ModelConfig(
        **{"block_size": 32, "vocab_size": 100, "n_layer": 3, "n_head": 4, "n_embd": 64, **fields}
    )


def said(capsys, *argv):
    """What train.py prints, and nothing to stderr."""
    capsys.readouterr()
    train.main(list(argv))
    out, err = capsys.readouterr()
    assert err == ""
    return out


def column(text, name, number=-1):
    """A number of the row `name`: its last one, or that with the index `number`; 1,234 as 1234."""
    row = next(line for line in text.splitlines() if line.startswith(name))
    return float(re.findall(r"[\d,]*\d(?:\.\d+)?", row.removeprefix(name))[number].replace(",", ""))


# Parameters


def test_the_first_documents_model_has_16_million_parameters(workspace, capsys):
    """Its table says 15,103,616, which is no sum of its parts."""
    preset = str(ROOT / "config" / "train_gpt2_15m.py")
    text = said(capsys, preset, "--report")
    parts = {"token embedding": 50304 * 256, "position embedding": 256 * 256, "head": 0}
    parts |= {
        "attention": 4 * (4 * 256 * 256 + 4 * 256),
        "MLP": 4 * (2 * 4 * 256 * 256 + 5 * 256),
        "norms": 9 * 512,
    }
    for name, count in parts.items():
        assert column(text, name, 1) == count, name
    assert column(text, "all", 1) == 16_102_912 and column(text, "all", 0) == 52
    assert "tied: token embedding again, counted once" in text
    assert column(said(capsys, preset, "--report", "--bias=False"), "all", 1) == 16_091_392
    assert list(workspace.iterdir()) == []


def test_gptlabs_207_936_parameters_are_found_in_the_table(workspace, capsys):
    """Its laptop model has biases in the norms and in c_attn, and nowhere else."""
    argv = [str(ROOT / "config" / "gptlab_cpu.py"), "--vocab_size=115", "--report"]
    without, biased = said(capsys, *argv), said(capsys, *argv, "--bias=True")
    embeddings = column(without, "token embedding", 1) + column(without, "position embedding", 1)
    attention = column(biased, "attention", 1) - 4 * 64  # without c_proj's
    assert (
        embeddings + attention + column(without, "MLP", 1) + column(biased, "norms", 1) == 207_936
    )


@each_architecture
def test_the_parameters_are_the_real_models(fields):
    config = model_config(**fields)
    model = GPT(config)
    text = parameter_table(shapes(config, ""), config, 100)
    counted = {
        "token embedding": [model.wte],
        "position embedding": [model.wpe],
        "head": [model.lm_head],
    }
    counted |= {
        "MLP": [block.mlp for block in model.h],
        "norms": [m for n, m in model.named_modules() if "ln_" in n],
    }
    within = [block.attn for block in model.h]
    norms = [
        norm
        for attn in within
        for norm in (attn.q_norm, attn.k_norm)
        if isinstance(norm, torch.nn.Module)
    ]
    counted["norms"] += norms
    for name, modules in counted.items():
        tensors = [p for module in modules if module for p in module.parameters()]
        if name == "head" and config.tie_embeddings:
            tensors = []
        assert (column(text, name, 0), column(text, name, 1)) == (
            len(tensors),
            sum(p.numel() for p in tensors),
        ), name
    assert column(text, "attention", 1) == sum(
        p.numel() for m in within for p in m.parameters()
    ) - sum(p.numel() for m in norms for p in m.parameters())
    assert column(text, "all", 1) == model.parameter_count()
    assert column(text, "all", 0) == len(list(model.parameters()))


def test_padding_is_told(tiny, run, capsys):
    text = said(capsys, *run(report=True, vocab_size=64))
    assert f"64 rows for {Dataset('data/tiny').tokenizer.vocab_size} tokens" in text


# FLOPs


@each_architecture
def test_the_flops_are_those_of_the_real_model(fields):
    """torch counts them while it computes, and knows nothing of 6N."""
    config = model_config(**{**fields, "n_layer": 2})
    flops = forward_flops(shapes(config, ""), config)
    model, idx = GPT(config), torch.zeros(3, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        loss = model(idx, idx)[1]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    tokens, matrices = idx.numel(), sum(flops.values()) - flops["norms, biases"]
    assert forward.get_total_flops() == tokens * matrices
    assert backward.get_total_flops() == tokens * 2 * matrices
    assert 3 * sum(flops.values()) == model.flops_per_token()


@each_architecture
def test_the_flops_of_each_part_are_those_that_hooks_count(fields):
    config = model_config(**fields)
    model, counted, T = GPT(config), {}, config.block_size
    q, k, _ = model.h[0].attn.qkv(
        torch.zeros(1, T, config.n_embd), (torch.ones(T, 1, config.head_size),) * 2
    )

    def hook(name):
        def count(module, inputs, output):
            part = (
                "head" if "lm_head" in name else "MLP" if ".mlp." in name else "attention, matrices"
            )
            per_token = 2 * inputs[0].shape[-1] * output.shape[-1]
            counted[part] = counted.get(part, 0) + per_token

        return count

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(name))
    idx = torch.zeros(1, T, dtype=torch.long)
    model(idx, idx)
    pairs = q.shape[1] * T * k.shape[2]  # of queries and keys in all heads
    counted["attention, scores"] = (
        config.n_layer * pairs * 2 * (2 * q.shape[3]) / T
    )  # scores, and values by weights
    flops = forward_flops(shapes(config, ""), config)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert flops == {**counted, "norms, biases": 2 * vectors}


def test_scores_grow_with_the_context_and_nothing_else_does(workspace, capsys):
    argv = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--vocab_size=100", "--report"]
    text = said(capsys, *argv, "--block_size=64")
    for block_size in (16, 64, 256):
        config = model_config(n_layer=2, n_head=2, block_size=block_size)
        table = text[text.index("block_size   FLOPs") :]
        total = GPT(config).flops_per_token()
        assert (
            f"\n{block_size:<10}{human(total, 'FLOP'):>19}{12 * 2 * 64 * block_size / total:>9.1%}\n"
            in table
        )


def test_the_first_documents_flops_put_right(workspace, capsys):
    """It calls 23.2 GFLOP its forward pass, and takes three times that; 6N is forward and backward."""
    text = said(capsys, str(ROOT / "config" / "train_gpt2_15m.py"), "--report")
    N = 16_102_912 - 256 * 256
    sequence = 256 * (6 * N + 12 * 4 * 256 * 256)
    assert f"a sequence          256   {sequence / 1e9:.1f} GFLOP" in text
    assert (
        "the run      23,330,816   2.32 PFLOP   2,848 steps" in text
        and 23_330_816 * sequence / 256 < 2.325e15
    )


# Memory


def profiled(function):
    """(bytes allocated and kept, the most that there were) while a function runs on the CPU, as torch's profiler saw.

    What the function returns is kept.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return now, peak


MEMORY = [
    ("GPT-2", {}),
    ("GPT-2, dropout", {"dtype": "bfloat16"}),
    ("GPT-2, dropout", {"block_size": 256, "batch_size": 2, "vocab_size": 50}),
    ("Llama", {"optimizer": "muon", "batch_size": 1}),
    ("Llama", {"block_size": 600, "batch_size": 1, "gradient_accumulation_steps": 1}),
    (
        "Llama with biases",
        {"dtype": "bfloat16", "block_size": 600, "batch_size": 1, "gradient_accumulation_steps": 1},
    ),
    ("MQA, relu2", {"dtype": "bfloat16", "optimizer": "muon"}),
    ("MQA, relu2", {}),
    ("wide MLP", {"vocab_size": 5000}),
]


@pytest.mark.parametrize("name, changes", MEMORY)
def test_the_memory_is_what_a_real_step_takes(tiny, run, name, changes):
    """Weights and optimizer added up; the rest as torch's allocator told its profiler, in a step of the Trainer."""
    fields = {
        "block_size": 64,
        "n_embd": 64,
        "n_head": 4,
        "vocab_size": 300,
        **ARCHITECTURES[name],
        **changes,
    }
    config, options = Options(run(**fields), ModelConfig, TrainConfig, description="").build()
    dtype = getattr(torch, options.dtype)
    micro_steps = options.gradient_accumulation_steps
    expected = count_memory(config, options, CPU, dtype, micro_steps, options.batch_size)

    log = RunLog(options, silent=True)
    trainer = Trainer(GPT(config), options, Dataset("data/tiny"), Ranks(), CPU, dtype, log)
    trainer.restart_clock()
    trainer.train_step()  # the optimizer has its memory then
    weights = sum(p.nbytes for p in trainer.bare.parameters())
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    memory = sum(tensor.nbytes for state in states for tensor in state.values())
    x, y = trainer.batch(0)

    def forward():
        with trainer.autocast:
            return trainer.model(x, y)[1]

    assert expected["weights"] == expected["gradients"] == weights
    assert expected["optimizer"] == memory
    assert expected["activations"] == pytest.approx(profiled(forward)[0], rel=0.02)
    assert expected["peak"] == pytest.approx(
        weights + memory + profiled(trainer.train_step)[1], rel=0.03
    )


def test_the_cache_is_the_real_ones(workspace, capsys):
    argv = [
        "--n_layer=3",
        "--n_head=4",
        "--n_kv_head=2",
        "--n_embd=64",
        "--block_size=128",
        "--vocab_size=99",
    ]
    text = said(capsys, *argv, "--device=cpu", "--report")
    config = model_config(n_kv_head=2, block_size=128, vocab_size=99)
    cache = GPT(config).make_cache(1, 128)
    size = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert re.search(
        rf"KV cache of a sequence +{human(size, 'B')} +128 tokens in sampling, float32", text
    )


# The command


def test_it_needs_no_data_where_the_vocabulary_is_given(workspace, capsys, refused):
    message = refused(train.main, "--report", "--dataset=novels")
    assert "--vocab_size=50304" in message and "python prepare.py novels" in message
    text = said(capsys, "--report", "--dataset=novels", "--vocab_size=50304", "--n_layer=1")
    assert (
        "note: without data: there is no data set in data/novels" in text and "a pass" not in text
    )
    assert list(workspace.iterdir()) == []


def test_passes_and_steps(tiny, run, capsys):
    text = said(capsys, *run(report=True))
    tokens = Dataset("data/tiny").tokens["train"]
    assert "note" not in text and column(text, "a step", 0) == 2 * 4 * 16
    assert column(text, "a pass", 0) == tokens == 5400
    assert f"10 steps; {10 * 128 / tokens:.2f} passes" in text


def test_it_reports_on_what_a_run_would_begin_from(tiny, run, capsys, refused):
    train.main(run(max_iters=1, mlp="swiglu", mlp_hidden=40))
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    count = GPT(
        model_config(
            block_size=16,
            vocab_size=14,
            n_layer=2,
            n_head=2,
            n_embd=32,
            mlp="swiglu",
            mlp_hidden=40,
        )
    )
    for init_from in ("resume", "auto", "out", "out/best.pt"):
        text = said(
            capsys, f"--init_from={init_from}", "--out_dir=out", "--dataset=tiny", "--report"
        )
        assert column(text, "all", 1) == count.parameter_count(), init_from
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    assert "vocab_size=9 is below the 14 tokens of data/tiny" in refused(
        train.main, *run(report=True, vocab_size=9)
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--n_layer=1001"], "n_layer=1,001: a report counts layer by layer, at most 1,000"),
        (["--n_embd=12000000000000"], "these options: no model can be so large"),
        (["--batch_size=9000000000000000"], "out of memory"),
        (["--block_size=9000000000000000", "--position=rope"], "out of memory"),
        (["--dataset=a/b", "--vocab_size=None"], "dataset='a/b' must be one plain name"),
        (["--report=perhaps"], "report='perhaps' expects True or False"),
    ],
)
def test_what_cannot_be_counted_ends_in_one_message(workspace, refused, argv, words):
    shape = ["--n_layer=1", "--device=cpu", "--vocab_size=50304"]
    assert words in refused(train.main, "--report", *shape, *argv)


@each_architecture
def test_it_fits_the_screen(workspace, capsys, fields):
    large = {
        "n_layer": 3,
        "n_embd": 12288,
        "n_head": 96,
        "block_size": 131072,
        "vocab_size": 262144,
        **fields,
    }
    large |= {
        "batch_size": 10_000,
        "gradient_accumulation_steps": 1000,
        "optimizer": "muon",
        "dtype": "bfloat16",
    }
    text = said(capsys, "--report", *(f"--{name}={value}" for name, value in large.items()))
    assert max(map(len, text.splitlines())) <= 100


def test_numbers_have_three_digits_and_a_unit():
    numbers = {
        0: "0 B",
        999: "999 B",
        1000: "1.00 kB",
        65_536: "65.5 kB",
        1_648_361_472: "1.65 GB",
        10**30: "1,000,000 YB",
    }
    assert {number: human(number, "B") for number in numbers} == numbers


# Measured


def test_it_measures_real_steps_and_keeps_nothing(tiny, run, capsys, monkeypatch):
    train.main(run(max_iters=4))
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    made, real = [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: (made.append(self.step), real(self)))
    for argv in (
        run(measure=True, out_dir="nothing", wandb_log=True),
        ["--init_from=resume", "--measure"],
    ):
        made.clear()
        text = said(capsys, *argv)
        assert len(made) == report.WARMUP + report.STEPS and "step 0: loss" not in text
        assert (
            "ms a step" in text
            and " tokens/s, " in text
            and "FLOP/s\n" in text
            and "Parameters" in text
        )
    assert (
        made[0] == 4
        and {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    )
    assert not Path("nothing").exists()


def test_the_time_of_the_run_is_of_its_steps_and_evaluations(tiny, run, capsys, monkeypatch):
    """20 steps in 40 s; and 3 s for an evaluation of as many windows as it timed."""
    answers = iter([0.0, 40.0, 3.0])
    monkeypatch.setattr(report, "timed", lambda function, device: (function(), next(answers))[1])
    text = said(capsys, *run(measure=True, max_iters=101, eval_interval=25, eval_iters=4))
    assert "2,000.0 ms a step, 64 tokens/s" in text  # 128 tokens in a step
    # two batches of 4 windows of each split were timed, and an evaluation reads four; at 0, 25, 50, 75, 100 and 101
    assert f"the 101 steps of the run: {report.duration(202)} without evaluations" in text
    assert f"{report.duration(202 + 6 * 6)} with its 6 evaluations" in text


def test_a_small_split_is_evaluated_whole(tiny, run, capsys, monkeypatch):
    """Of 5,400 and 600 tokens there are 338 and 38 windows of 16; 8 of each are timed."""
    answers = iter([0.0, 20.0, 16.0])
    monkeypatch.setattr(report, "timed", lambda function, device: (function(), next(answers))[1])
    text = said(capsys, *run(measure=True, max_iters=0, eval_iters=0))
    assert f"{report.duration(338 + 38)} with its 1 evaluations" in text


def test_mfu_where_the_peak_is_known(tiny, run, capsys, monkeypatch):
    monkeypatch.setattr(train, "peak_flops", lambda device, dtype: 1e9)
    answers = iter([0.0, 20.0, 1.0])
    monkeypatch.setattr(report, "timed", lambda function, device: (function(), next(answers))[1])
    text = said(capsys, *run(measure=True))
    flops = (
        128
        * GPT(
            model_config(block_size=16, vocab_size=14, n_layer=2, n_head=2, n_embd=32)
        ).flops_per_token()
    )
    assert f"{human(flops, 'FLOP/s')}, MFU {flops / 1e9:.1%}" in text


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
def test_of_two_processes_one_speaks(tiny, run, capsys):
    """Each has a copy of the gradients besides: the buffers in which DDP sends them."""
    one = said(capsys, *run(report=True, gradient_accumulation_steps=2, batch_size=4))
    two = torchrun(*run(measure=True, gradient_accumulation_steps=4, batch_size=4))
    assert two.returncode == 0, two.stderr
    for words in (
        "Parameters ",
        "Memory of each process, cpu, float32, 4 x 16 tokens",
        "ms a step",
        "and DDP's copy",
    ):
        assert two.stdout.count(words) == 1, words
    copy = column(two.stdout, "gradients ", 0) - column(one, "gradients ", 0)
    assert copy == column(one, "gradients ", 0) > 0
    assert column(two.stdout, "at the peak", 0) == pytest.approx(
        column(one, "at the peak", 0) + copy, abs=1
    )
    shared = torchrun(*run(report=True, gradient_accumulation_steps=1))
    assert (
        shared.returncode == 0
        and shared.stdout.count("Memory of each process, cpu, float32, 2 x 16 tokens") == 1
    )
    assert not Path("out").exists()
