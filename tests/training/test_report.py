"""train.py --report: each figure against the real model, torch's own counters or a hand count."""

import re
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import train
from model import GPT, ModelConfig
from seugpt.checkpoint.shapes import parameter_shapes
from seugpt.data.dataset import Dataset
from seugpt.generation.kv_cache import KVCache
from seugpt.training.memory_estimate import count_memory, kv_cache_bytes, largest_rows
from seugpt.training.report import COUNTED_ROWS, format_si, forward_flops, parameter_table
from tests.helpers import LLAMA, ROOT
from train import TrainConfig

CPU = torch.device("cpu")
GQA_LLAMA = {**LLAMA, "n_kv_head": 2, "tie_embeddings": False}
ARCHITECTURES = {
    "GPT-2": {"bias": True},
    "GPT-2, dropout": {"dropout": 0.3},
    "Llama": GQA_LLAMA,
    "Llama with biases": {**GQA_LLAMA, "bias": True},
    "MQA, relu2": {
        "n_kv_head": 1,
        "mlp": "relu2",
        "qk_norm": True,
        "logit_softcap": 30.0,
        "bias": True,
    },
    "wide MLP": {"mlp_hidden": 300, "mlp": "gelu_exact", "position": "rope", "norm": "rmsnorm"},
}
# Beyond 512 tokens, attention on a CPU is torch's fused kernel.
LONG_CONTEXT = {"block_size": 600, "batch_size": 1, "gradient_accumulation_steps": 1}
each_architecture = pytest.mark.parametrize("fields", ARCHITECTURES.values(), ids=ARCHITECTURES)


def model_config(**fields):
    shape = {"block_size": 32, "vocab_size": 100, "n_layer": 3, "n_head": 4, "n_embd": 64}
    return ModelConfig(**{**shape, **fields})


@pytest.fixture
def report(capsys):
    """report(*argv): what train.py --report prints to stdout; nothing goes to stderr."""

    def call(*argv):
        capsys.readouterr()
        train.main([*argv, "--report"])
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return call


def counts(text, module):
    """(tensors, parameters) of a row of the parameter table."""
    tensors, params = re.search(rf"^{module} +([\d,]+) +([\d,]+) +[\d.]+%", text, re.M).groups()
    return int(tensors.replace(",", "")), int(params.replace(",", ""))


def num_params(text, module):
    return counts(text, module)[1]


# Parameters


def test_16m_preset_matches_a_hand_count(workspace, report):
    """The document that docs/en/10-counting.md checks has 15,103,616 parameters and 69.6 GFLOP."""
    preset = str(ROOT / "config" / "train_gpt2_15m.py")
    text = report(preset)
    expected = {
        "token embedding": 50304 * 256,
        "position embedding": 256 * 256,
        "attention": 4 * (4 * 256 * 256 + 4 * 256),
        "MLP": 4 * (2 * 4 * 256 * 256 + 5 * 256),
        "norms": 9 * 512,
        "head": 0,
    }
    assert {module: num_params(text, module) for module in expected} == expected
    assert counts(text, "total") == (52, 16_102_912)
    assert "tied to the token embedding" in text
    assert num_params(report(preset, "--bias=False"), "total") == 16_091_392
    N = 16_102_912 - 256 * 256
    sequence = 256 * (6 * N + 12 * 4 * 256 * 256)
    assert f"{sequence / 1e9:.1f} GFLOP" == "25.4 GFLOP"
    assert re.search("^a sequence +256 +25.4 GFLOP", text, re.M)
    assert list(workspace.iterdir()) == []


def test_parameter_table_adds_up_to_gptlabs_count(workspace, report):
    """GPTLab's 207,936: its laptop model has biases in c_attn and the norms, and nowhere else."""
    argv = [str(ROOT / "config" / "gptlab_cpu.py"), "--vocab_size=115"]
    unbiased = report(*argv)
    biased = report(*argv, "--bias=True")
    parts = [num_params(unbiased, "token embedding"), num_params(unbiased, "position embedding")]
    parts += [num_params(unbiased, "MLP"), num_params(biased, "norms")]
    parts += [num_params(biased, "attention") - 4 * 64]  # without the biases of c_proj
    assert sum(parts) == 207_936


@each_architecture
def test_parameter_table_matches_the_model(fields):
    config = model_config(**fields)
    model = GPT(config)
    text = parameter_table(parameter_shapes(config, ""), config, num_tokens=100)
    linears = [linear for block in model.h for linear in (block.attn.c_attn, block.attn.c_proj)]
    norms = [m for name, m in model.named_modules() if re.search(r"ln_|[qk]_norm", name)]

    def params_of(modules):
        return [p for module in modules for p in module.parameters()]

    expected = {
        "token embedding": params_of([model.wte]),
        "position embedding": params_of([model.wpe] if config.position == "learned" else []),
        "attention": params_of(linears),
        "MLP": params_of(block.mlp for block in model.h),
        "norms": params_of(norms),
        "head": params_of([] if config.tie_embeddings else [model.lm_head]),
        "total": params_of([model]),
    }
    for module, params in expected.items():
        assert counts(text, module) == (len(params), sum(p.numel() for p in params)), module


def test_parameter_table_notes_vocabulary_padding(tiny, run, report):
    assert "64 rows for 14 tokens" in report(*run(vocab_size=64))


# FLOPs


@each_architecture
def test_forward_flops_match_torchs_count(fields):
    """torch counts matrix products while it computes, and knows nothing of 6N."""
    config = model_config(**fields)
    flops = forward_flops(parameter_shapes(config, ""), config)
    model = GPT(config)
    idx = torch.zeros(3, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        _, loss = model(idx, idx)
    with FlopCounterMode(display=False) as backward:
        loss.backward()

    def count(module):
        modules = forward.get_flop_counts().items()
        return sum(sum(flop.values()) for name, flop in modules if name.endswith(module))

    matrices = count(".c_attn") + count(".attn.c_proj")
    counted = {
        "attention, matrices": matrices,
        "attention, scores": count(".attn") - matrices,
        "MLP": count(".mlp"),
        "head": count(".lm_head"),
    }
    num_tokens = idx.numel()
    vectors = flops.pop("norms, biases")
    assert counted == {part: num_tokens * flop for part, flop in flops.items()}
    assert backward.get_total_flops() == 2 * num_tokens * sum(flops.values())
    assert vectors == 2 * sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert 3 * (sum(flops.values()) + vectors) == model.flops_per_token()


def test_flops_table_shows_the_attention_scores_at_three_block_sizes(workspace, report):
    argv = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--vocab_size=100", "--block_size=64"]
    text = report(*argv)
    for block_size in (16, 64, 256):
        config = model_config(n_layer=2, n_head=2, block_size=block_size)
        total = GPT(config).flops_per_token()
        scores = 12 * 2 * 64 * block_size
        row = rf"^{block_size} +{format_si(total, 'FLOP')} +{scores / total:.1%}$"
        assert re.search(row, text, re.M), block_size


def test_work_table_counts_tokens_flops_and_epochs(tiny, run, report):
    text = report(*run())
    config = model_config(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=14)
    per_token = GPT(config).flops_per_token()
    num_tokens = Dataset("data/tiny").tokens["train"]
    rows = {"a sequence": 16, "a step": 2 * 4 * 16, "an epoch": num_tokens, "the run": 1280}
    for name, tokens in rows.items():
        flops = format_si(tokens * per_token, "FLOP")
        assert re.search(rf"^{name} +{tokens:,} +{flops}( |$)", text, re.M), name
    assert f"10 steps; {1280 / num_tokens:.2f} epochs" in text
    assert "note" not in text


# Memory


def profile_memory(function):
    """(bytes allocated at the end, peak) of a function on the CPU, according to torch's profiler.

    What the function returns counts as allocated.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = profiler.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    del result
    return current, peak


@pytest.mark.parametrize(
    "name, changes",
    [
        ("GPT-2", {}),
        ("GPT-2, dropout", {"dtype": "bfloat16"}),
        ("GPT-2, dropout", {"block_size": 256, "batch_size": 2, "vocab_size": 50}),
        ("Llama", {"optimizer": "muon", "batch_size": 1}),
        ("Llama", LONG_CONTEXT),
        ("Llama with biases", {"dtype": "bfloat16", **LONG_CONTEXT}),
        ("MQA, relu2", {"dtype": "bfloat16", "optimizer": "muon"}),
        ("MQA, relu2", {}),
        ("wide MLP", {"vocab_size": 5000}),
        ("Llama", {"gradient_checkpointing": True, "n_layer": 6, "vocab_size": 50}),
        ("GPT-2, dropout", {"gradient_checkpointing": True, "dtype": "bfloat16", "batch_size": 16}),
        ("GPT-2", {"gradient_checkpointing": True, **LONG_CONTEXT}),
    ],
)
def test_memory_matches_a_profiled_step(make_trainer, name, changes):
    """Weights and optimizer state are added up; activations and peak are torch's measurement.

    The logits once stayed alive during the backward pass, held by a variable.
    """
    shape = {"block_size": 64, "n_embd": 64, "n_head": 4, "vocab_size": 300}
    trainer = make_trainer(**{**shape, **ARCHITECTURES[name], **changes})
    config = trainer.config
    expected = count_memory(
        trainer.raw_model.config, config, CPU, trainer.dtype, trainer.micro_steps, config.batch_size
    )
    trainer.train_step()  # the first one allocates the optimizer's state
    weights = sum(p.nbytes for p in trainer.raw_model.parameters())
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    optimizer_bytes = sum(tensor.nbytes for state in states for tensor in state.values())
    x, y = trainer.batch(0)

    def forward():
        with trainer.autocast:
            return trainer.model(x, y)[1]

    activations, _ = profile_memory(forward)
    _, step_peak = profile_memory(trainer.train_step)
    assert expected["weights"] == expected["gradients"] == weights
    assert expected["optimizer"] == optimizer_bytes
    assert expected["activations"] == pytest.approx(activations, rel=0.02)
    assert expected["peak"] == pytest.approx(weights + optimizer_bytes + step_peak, rel=0.03)


def test_shards_divide_weights_gradients_and_optimizer():
    """Whole at a time are the embeddings, two blocks, and their gradients."""
    config = TrainConfig(compile=False)
    model = GPT(model_config())
    arguments = (model.config, config, CPU, torch.float32)
    whole = count_memory(*arguments, 2, 4)
    shards = count_memory(*arguments, 1, 4, world_size=8, dp_shard_size=4)
    for part in ("weights", "gradients", "optimizer"):
        assert shards[part] == pytest.approx(whole[part] / 4, abs=1)
    third_block = sum(p.nbytes for p in model.h[2].parameters())
    assert shards["gathered"] == 2 * (whole["weights"] - third_block)
    assert shards["activations"] == whole["activations"]


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "dtype": "bfloat16"}])
@pytest.mark.parametrize("capacity", [0, 3e6, 2e7, 2e8, 5e9])
def test_the_most_rows_that_fit_do_and_a_tenth_more_do_not(changes, capacity):
    config = TrainConfig(compile=False, **changes)
    dtype = getattr(torch, changes.get("dtype", "float32"))

    def peak(rows):
        return count_memory(model_config(vocab_size=2000), config, CPU, dtype, 1, rows)["peak"]

    rows = largest_rows({count: peak(count) for count in COUNTED_ROWS}, capacity)
    assert rows == 0 or peak(rows) <= 1.01 * capacity
    assert peak(rows + 1 + rows // 10) > capacity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_cache_bytes_match_the_cache(dtype):
    config = model_config(n_kv_head=2, block_size=128)
    cache = KVCache(config, batch_size=1, length=128, like=torch.zeros(1, dtype=dtype))
    expected = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert kv_cache_bytes(config, dtype) == expected


# The command


def test_report_counts_for_processes_that_it_is_not_started_with(tiny, run, report, refused):
    """With more shards a process holds less, and more sequences fit."""
    argv = run(gradient_accumulation_steps=8, n_embd=2048, n_head=16, n_layer=12)
    ddp = report(*argv, "--report_world_size=8")
    fsdp = report(*argv, "--report_world_size=8", "--dp_shard_size=4")
    assert "Memory of each of 8 processes" in ddp and "DDP's copy" in ddp
    assert "one of 4 shards" in fsdp and "gathered" in fsdp

    def fitting(text, name):
        return re.search(rf"^{name} +(.*?)  +(?:with|for) ", text, re.M)[1].split()

    assert fitting(ddp, "smallest dp_shard_size") == fitting(fsdp, "smallest dp_shard_size")
    assert fitting(ddp, "smallest dp_shard_size")[0] != "1"
    rows = [fitting(text, "sequences in a micro-batch") for text in (ddp, fsdp)]
    assert rows[0][0] == "-"
    assert rows[1][0] != "-"
    message = refused(train.main, *argv, "--report", "--dp_shard_size=3", "--report_world_size=8")
    assert "dp_shard_size=3" in message and "8" in message


def test_report_without_data_needs_only_a_vocab_size(workspace, report, refused):
    message = refused(train.main, "--report", "--dataset=novels")
    assert "--vocab_size=50304" in message and "python prepare.py novels" in message
    text = report("--dataset=novels", "--vocab_size=50304", "--n_layer=1")
    assert "note: counted without data: " in text and "data/novels" in text
    assert "epoch" not in text
    assert list(workspace.iterdir()) == []


def test_report_describes_the_model_that_a_run_would_start_from(tiny, run, report, refused):
    train.main(run(max_iters=1, mlp="swiglu", mlp_hidden=40))
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    shape = {"block_size": 16, "vocab_size": 14, "n_layer": 2, "n_head": 2, "n_embd": 32}
    expected = GPT(model_config(**shape, mlp="swiglu", mlp_hidden=40)).num_params()
    for init_from in ("resume", "auto", "out", "out/best.pt"):
        text = report(f"--init_from={init_from}", "--out_dir=out", "--dataset=tiny")
        assert num_params(text, "total") == expected, init_from
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    message = refused(train.main, *run(report=True, vocab_size=9))
    assert "vocab_size=9" in message and "14" in message and "data/tiny" in message


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--n_layer=1001"], "n_layer=1001"),
        (["--n_embd=12000000000000"], "64 bits"),
        (["--batch_size=9000000000000000"], "out of memory"),
        (["--block_size=9000000000000000", "--position=rope"], "out of memory"),
        (["--dataset=../b", "--vocab_size=None"], "dataset='../b'"),
    ],
)
def test_sizes_that_cannot_be_counted_are_one_message(workspace, refused, argv, named):
    shape = ["--n_layer=1", "--device=cpu", "--vocab_size=50304"]
    assert named in refused(train.main, "--report", *shape, *argv)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_report_of_a_large_model_fits_100_columns(workspace, report, name):
    options = {
        "n_layer": 3,
        "n_embd": 12288,
        "n_head": 96,
        "block_size": 131072,
        "vocab_size": 262144,
        "batch_size": 10_000,
        "gradient_accumulation_steps": 1000,
        "optimizer": "muon",
        "dtype": "bfloat16",
        **ARCHITECTURES[name],
    }
    text = report(*(f"--{key}={value}" for key, value in options.items()))
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (65_536, "65.5 kB"),
        (1_648_361_472, "1.65 GB"),
        (10**30, "1,000,000 YB"),
    ],
)
def test_format_si_has_three_digits_and_a_unit(number, expected):
    assert format_si(number, "B") == expected


def test_only_rank_0_reports_and_counts_ddps_gradient_buffers(tiny, run, report, monkeypatch):
    single = report(*run(gradient_accumulation_steps=2))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    outputs = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        outputs.append(report(*run(gradient_accumulation_steps=4)))
        outputs.append(report(*run(gradient_accumulation_steps=1)))
    two, shared_rows, *others = outputs
    assert others == ["", ""]
    assert "Memory of each of 2 processes" in two
    assert "4 x 16 tokens" in two and "2 x 16 tokens" in shared_rows
    weights = 4 * num_params(two, "total")
    assert re.search(rf"^gradients +{format_si(weights, 'B')} +float32$", single, re.M)
    assert re.search(rf"^gradients +{format_si(2 * weights, 'B')} +float32, and DDP", two, re.M)
    peak, ddp_peak = (float(re.search(r"^peak +([\d.]+) kB", t, re.M)[1]) for t in (single, two))
    assert ddp_peak == pytest.approx(peak + weights / 1000, abs=1)
