"""Weights in 8 bits: close to the others in logits and loss, and a quarter of their size."""

import pytest
import torch

import evaluate
import sample
from model import ModelConfig
from seugpt.errors import DeviceError
from seugpt.generation.quantize import Int8Linear, inference_dtype, quantize
from tests.helpers import LLAMA, perturbed_gpt

ARCHITECTURES = {
    "gpt2": {"bias": True},
    "untied": {"tie_embeddings": False},
    "llama": {**LLAMA, "n_kv_head": 2, "qk_norm": True},
}


def make_model(**changes):
    config = ModelConfig(block_size=24, vocab_size=50, n_layer=2, n_head=4, n_embd=64, **changes)
    return perturbed_gpt(config, std=0.05).eval()


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [8, 40, 96])
def test_linear_layer_is_close_to_the_original(rows, bias, width):
    """Each weight is off by at most half a step of its row, with both ways to multiply.

    torch's kernel read out of bounds, and crashed, for widths that are no multiple of 16.
    """
    linear = torch.nn.Linear(width, 33, bias=bias).bfloat16()
    quantized = Int8Linear(linear)
    x = torch.randn(rows, width).bfloat16()
    restored = quantized.weight.float() * quantized.scale.float()[:, None]
    steps = (restored - linear.weight.float()).abs() / quantized.scale.float()[:, None]
    assert steps.max() <= 0.6
    expected = x.float() @ restored.T
    if bias:
        expected = expected + linear.bias.float()
    torch.testing.assert_close(quantized(x).float(), expected, rtol=0.03, atol=0.03)
    assert quantized(x[None]).shape == (1, rows, 33)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
@torch.no_grad()
def test_quantized_model_has_nearly_the_same_logits(changes):
    model = make_model(**changes)
    idx = torch.randint(50, (3, 24))
    expected = model(idx, idx)[0]
    size = sum(p.nbytes for p in model.parameters())
    quantized = quantize(model)
    logits = quantized(idx, idx)[0].float()
    error = (logits - expected).std() / expected.std()
    assert error < 0.05
    rest = sum(p.nbytes for p in quantized.parameters())
    assert sum(b.nbytes for b in quantized.buffers()) + rest < 0.3 * size
    assert all(p.dim() < 2 or "wpe" in name for name, p in quantized.named_parameters())


def test_zero_row_stays_zero():
    linear = torch.nn.Linear(8, 2, bias=False)
    linear.weight.data[0] = 0
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 8))[0, :1].float(), torch.zeros(1))


def test_loss_over_a_whole_split_is_within_half_a_percent(trained, capsys):
    losses = []
    for options in ([], ["--quantize=int8"]):
        evaluate.main(["--device=cpu", "--dtype=float32", *options])
        [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("loss ")]
        losses.append(float(line.split()[1]))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.005)


def test_sampling_says_in_what_the_weights_are(trained, capsys):
    options = ["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=o"]
    for option, words in (
        ("--quantize=int8", "weights in int8 on cpu"),
        ("--dtype=bfloat16", "weights in bfloat16 on cpu"),
        ("--dtype=auto", "weights in float32 on cpu"),
    ):
        sample.main([*options, option])
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out.startswith("o")


def test_only_large_models_generate_in_bfloat16_on_a_cpu(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert inference_dtype("auto", cpu, 600_000) == torch.float32
    assert inference_dtype("auto", cpu, 124_000_000) == torch.bfloat16
    assert inference_dtype("float32", cpu, 124_000_000) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert inference_dtype("auto", cpu, 124_000_000) == torch.float32


def test_quantizing_elsewhere_or_in_another_dtype_is_refused(trained, refused):
    with pytest.raises(DeviceError, match="--device=cpu"):
        quantize(make_model().to("meta"))
    message = refused(sample.main, "--quantize=int8", "--dtype=float32")
    assert "quantize=int8 computes in bfloat16, not dtype=float32" in message
    assert "int4" in refused(sample.main, "--quantize=int4")
