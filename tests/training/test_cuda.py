"""What only a GPU can show: python -m pytest -m cuda. Captured decoding is with the other decoding."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import train
from model import GPT, ModelConfig
from seugpt.checkpoint import storage as checkpoint
from seugpt.cli.options import Options
from seugpt.training.metrics import read_metrics
from seugpt.training.report import count_memory
from train import TrainConfig

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def losses(out_dir):
    return [m["loss"] for m in read_metrics(Path(out_dir, "metrics.jsonl"))[0] if "loss" in m]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_in_each_number_format(tiny, run, dtype, compiled, optimizer):
    options = {
        "device": "cuda",
        "dtype": dtype,
        "compile": compiled,
        "optimizer": optimizer,
        "max_iters": 60,
    }
    train.main(run(**options, lr_decay_iters=60, position="rope", tie_embeddings=False))
    assert "torch.compile failed" not in Path("out", "training.log").read_text(encoding="utf-8")
    content = checkpoint.load("out/best.pt")
    assert content["step"] > 0 and content["val_loss"] < 2.0  # of ln(14) = 2.64
    assert losses("out")[-1] < 0.7 * losses("out")[0] and all(map(math.isfinite, losses("out")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_first_losses_are_the_cpus(tiny, run, dtype):
    train.main(run(out_dir="cpu", max_iters=5))
    train.main(run(out_dir="gpu", max_iters=5, device="cuda", dtype=dtype))
    assert losses("gpu") == pytest.approx(losses("cpu"), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_goes_on(tiny, run, optimizer):
    options = {"device": "cuda", "dropout": 0.2, "optimizer": optimizer}
    train.main(run(out_dir="whole", max_iters=10, **options))
    train.main(run(out_dir="parts", max_iters=5, **options))
    train.main(["--init_from=resume", "--out_dir=parts", "--max_iters=10"])
    assert losses("parts") == pytest.approx(losses("whole"), rel=1e-2)
    assert checkpoint.load("parts/latest.pt")["step"] == 10


def test_one_rank_on_nccl_has_the_gradients_of_none(tmp_path):
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16)).cuda()
    x, y = torch.randint(11, (2, 4, 8), device="cuda")
    expected = torch.autograd.grad(model(x, y)[1], list(model.parameters()))
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        DistributedDataParallel(model, device_ids=[0])(x, y)[1].backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "dtype, optimizer", [("float32", "adamw"), ("bfloat16", "adamw"), ("bfloat16", "muon")]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_reported_memory_is_what_a_run_allocates(tiny, run, dtype, optimizer, accumulation):
    """Within a fifth: kernels and torch's allocator take some of their own."""
    shape = {
        "n_layer": 4,
        "n_head": 8,
        "n_embd": 512,
        "block_size": 256,
        "vocab_size": 8000,
        "batch_size": 16,
    }
    shape |= {
        "gradient_accumulation_steps": accumulation,
        "position": "rope",
        "mlp": "swiglu",
        "dropout": 0.1,
    }
    argv = run(
        device="cuda",
        dtype=dtype,
        optimizer=optimizer,
        max_iters=2,
        eval_interval=100,
        eval_iters=1,
        **shape,
    )
    config, options = Options(argv, ModelConfig, TrainConfig, description="").build()
    device = torch.device("cuda", 0)
    counted = count_memory(config, options, device, getattr(torch, dtype), accumulation, 16)["peak"]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train.main(argv)
    assert counted == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.2)


def test_speed_is_measured(tiny, run, capsys):
    train.main(run(device="cuda", measure=True))
    assert "tokens/s" in capsys.readouterr().out and not Path("out").exists()
