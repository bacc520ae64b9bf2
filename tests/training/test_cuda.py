"""Training on a GPU: python -m pytest -m cuda. Captured decoding is tested in tests/generation."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import train
from model import GPT, ModelConfig
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.training.memory_estimate import count_memory
from tests.helpers import logged_values, train_configs

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_in_each_dtype(tiny, run, dtype, compiled, optimizer):
    options = {"device": "cuda", "dtype": dtype, "compile": compiled, "optimizer": optimizer}
    options |= {"max_iters": 60, "lr_decay_iters": 60, "position": "rope", "tie_embeddings": False}
    train.main(run(**options))
    assert "torch.compile failed" not in Path("out/training.log").read_text(encoding="utf-8")
    ckpt = load_checkpoint("out/best.pt")
    assert ckpt["step"] > 0
    assert ckpt["val_loss"] < 2.0  # ln(14) = 2.64 before training
    losses = logged_values("out", "loss")
    assert losses[-1] < 0.7 * losses[0]
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_first_losses_equal_those_of_the_cpu(tiny, run, dtype):
    train.main(run(out_dir="cpu", max_iters=5))
    train.main(run(out_dir="gpu", max_iters=5, device="cuda", dtype=dtype))
    assert logged_values("gpu", "loss") == pytest.approx(logged_values("cpu", "loss"), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_repeats_the_losses_of_an_uninterrupted_one(tiny, run, resume, optimizer):
    """Up to rounding: CUDA kernels may add in a different order."""
    options = {"device": "cuda", "dropout": 0.2, "optimizer": optimizer}
    train.main(run(out_dir="whole", max_iters=10, **options))
    train.main(run(out_dir="parts", max_iters=5, **options))
    train.main(resume(out_dir="parts", max_iters=10))
    losses = logged_values("parts", "loss")
    assert losses == pytest.approx(logged_values("whole", "loss"), rel=1e-2)
    assert load_checkpoint("parts/latest.pt")["step"] == 10


def test_ddp_on_nccl_keeps_the_gradients(tmp_path):
    """One rank in DDP has the gradients of the model without it."""
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16)).cuda()
    x, y = torch.randint(11, (2, 4, 8), device="cuda")
    _, loss = model(x, y)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        _, loss = DistributedDataParallel(model, device_ids=[0])(x, y)
        loss.backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "dtype, optimizer", [("float32", "adamw"), ("bfloat16", "adamw"), ("bfloat16", "muon")]
)
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_reported_memory_is_what_a_run_allocates(tiny, run, dtype, optimizer, accumulation_steps):
    """Within a fifth: kernels and torch's allocator need some of their own."""
    shape = {"n_layer": 4, "n_head": 8, "n_embd": 512, "block_size": 256, "vocab_size": 8000}
    shape |= {"position": "rope", "mlp": "swiglu", "dropout": 0.1}
    options = {"device": "cuda", "dtype": dtype, "optimizer": optimizer, "batch_size": 16}
    options |= {"gradient_accumulation_steps": accumulation_steps, "max_iters": 2}
    argv = run(**shape, **options, eval_interval=100, eval_iters=1)
    model_config, config = train_configs(argv)
    device = torch.device("cuda", 0)
    sizes = count_memory(
        model_config, config, device, getattr(torch, dtype), accumulation_steps, rows=16
    )
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train.main(argv)
    assert sizes["peak"] == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.2)
