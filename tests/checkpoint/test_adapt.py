"""Weights adapted to another architecture: what is kept, what is new, what is refused."""

import re
from dataclasses import replace

import pytest
import torch

import sample
import train
from model import GPT, ModelConfig
from seugpt.checkpoint.adapt import pool_kv_heads
from seugpt.checkpoint.pretrained import build_from_checkpoint, check_architecture
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.errors import CheckpointError
from tests.helpers import perturbed_gpt

SOURCE_CONFIG = ModelConfig(block_size=16, vocab_size=14, n_layer=2, n_head=4, n_embd=32, bias=True)
LLAMA_LIKE = {
    "position": "rope",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "n_kv_head": 2,
    "bias": False,
    "qk_norm": True,
    "logit_softcap": 30.0,
}


def ckpt_of(model):
    """A model's checkpoint, as if it had been loaded from x.pt."""
    return {
        "path": "x.pt",
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "train_config": {},
        "tokenizer": None,
        "step": 0,
        "val_loss": 0.0,
    }


def source_model(**changes):
    return perturbed_gpt(replace(SOURCE_CONFIG, **changes))


def adapt(source, seed=0, **changes):
    """(model in eval mode, adaptation notes) with the weights of `source` and config `changes`."""
    target_config = replace(source.config, **changes)
    check_architecture(ckpt_of(source), target_config, resume=False)
    model, notes = build_from_checkpoint(ckpt_of(source), target_config, seed)
    return model.eval(), notes


def random_tokens(T=16):
    return torch.randint(14, (2, T))


# The same function


def test_same_architecture_is_copied_exactly():
    """Dropout is not part of the architecture."""
    source = source_model()
    model, notes = adapt(source, dropout=0.5)
    assert notes == []
    assert model.config.dropout == 0.5
    for name, param in model.named_parameters():
        assert torch.equal(param, source.get_parameter(name)), name


@pytest.mark.parametrize("position, block_size", [("learned", 5), ("rope", 64)])
def test_block_size_can_shrink_and_with_rope_also_grow(position, block_size):
    """On texts that fit into both, the outputs are the same."""
    source = source_model(position=position)
    model, _ = adapt(source, block_size=block_size)
    idx = random_tokens(T=min(block_size, source.config.block_size))
    torch.testing.assert_close(model(idx)[0], source(idx)[0])


def test_repeated_kv_heads_give_the_same_outputs():
    source = source_model(n_kv_head=2)
    model, notes = adapt(source, n_kv_head=None)
    idx = random_tokens()
    torch.testing.assert_close(model(idx)[0], source(idx)[0], atol=1e-5, rtol=1e-5)
    repeated = "repeated from 2 to 4: h.*.attn.c_attn.bias, h.*.attn.c_attn.weight"
    assert any(repeated in note for note in notes)


def test_untied_embeddings_give_the_same_outputs():
    source = source_model()
    model, _ = adapt(source, tie_embeddings=False)
    assert torch.equal(model.lm_head.weight, source.wte.weight)
    assert model.lm_head.weight is not model.wte.weight
    idx = random_tokens()
    torch.testing.assert_close(model(idx)[0], source(idx)[0])


# Another function


def test_pooled_kv_heads_are_the_means_of_their_groups():
    """From four heads of eight channels to two."""
    tensor = torch.randn(3 * 32, 32)
    pooled = pool_kv_heads(tensor, SOURCE_CONFIG, replace(SOURCE_CONFIG, n_kv_head=2))
    q, k, v = pooled.split([32, 16, 16])
    assert torch.equal(q, tensor[:32])
    for part, source in ((k, tensor[32:64]), (v, tensor[64:])):
        torch.testing.assert_close(part[:8], (source[:8] + source[8:16]) / 2)
        torch.testing.assert_close(part[8:], (source[16:24] + source[24:]) / 2)


def test_gpt2_becomes_a_llama_with_the_weights_that_fit():
    """The notes name what was copied, pooled, cut and dropped, and what is new."""
    source = source_model()
    model, notes = adapt(source, seed=1, **LLAMA_LIKE)
    text = "\n".join(notes)
    for pattern in (
        r"copied: .*wte\.weight",
        r"pooled from 4 to 2: .*c_attn\.weight",
        r"new: h\.\*\.attn\.k_norm\.weight, ",
        r"88 of 128 channels kept, as gate and as value: h\.\*\.mlp\.c_fc\.weight",
        r"channels kept: .*c_proj",
        r"dropped: .*c_attn\.bias.*ln_1\.bias.*wpe\.weight",
    ):
        assert re.search(pattern, text), text
    source_state = source.state_dict()
    state = model.state_dict()
    fc = source_state["h.1.mlp.c_fc.weight"]
    proj = source_state["h.1.mlp.c_proj.weight"]
    assert torch.equal(state["wte.weight"], source.wte.weight)
    assert torch.equal(state["h.1.mlp.c_fc.weight"], torch.cat((fc[:88], fc[:88])))
    assert torch.equal(state["h.1.mlp.c_proj.weight"], proj[:, :88])


def test_narrower_swiglu_keeps_the_first_channels_of_gate_and_value():
    source = source_model(mlp="swiglu", mlp_hidden=10)
    model, notes = adapt(source, mlp_hidden=6)
    fc = source.state_dict()["h.0.mlp.c_fc.weight"]
    assert torch.equal(model.state_dict()["h.0.mlp.c_fc.weight"], torch.cat((fc[:6], fc[10:16])))
    names = "h.*.mlp.c_fc.bias, h.*.mlp.c_fc.weight, h.*.mlp.c_proj.weight"
    assert f"6 of 10 channels kept: {names}" in notes


@pytest.mark.parametrize(
    "source_changes, target_changes, pattern",
    [
        (
            {"mlp": "swiglu"},
            {"mlp": "gelu", "mlp_hidden": 100},
            r"88 of 88 channels .*12 new.*value dropped.*: h\.\*\.mlp\.c_fc\.bias",
        ),
        ({}, {"mlp_hidden": 200}, r"128 of 128 channels kept, 72 new: h\.\*\.mlp\.c_fc\.bias"),
        ({"n_head": 8, "n_kv_head": 8}, {"n_kv_head": 2}, "pooled from 8 to 2"),
        ({"n_head": 12, "n_embd": 48, "n_kv_head": 6}, {"n_kv_head": 4}, "mixed from 6 to 4"),
        ({"tie_embeddings": False}, {"tie_embeddings": True}, r"^dropped: lm_head\.weight"),
    ],
)
def test_notes_say_what_was_done(source_changes, target_changes, pattern):
    """The token embedding is kept in each case; tying drops the head's own matrix."""
    source = source_model(**source_changes)
    model, notes = adapt(source, **target_changes)
    assert any(re.search(pattern, note) for note in notes), notes
    assert torch.equal(model.wte.weight, source.wte.weight)


def test_new_parameters_depend_on_the_seed_and_leave_the_global_rng_alone():
    source = source_model(position="rope")
    rng_state = torch.get_rng_state()
    embeddings = [adapt(source, seed, position="learned")[0].wpe.weight for seed in (1, 1, 2)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(torch.get_rng_state(), rng_state)


@pytest.mark.parametrize(
    "name, value, stored",
    [
        ("n_layer", 3, 2),
        ("n_head", 2, 4),
        ("n_embd", 64, 32),
        ("vocab_size", 64, 14),
        ("block_size", 17, 16),
    ],
)
def test_changed_shape_is_refused_with_both_values(name, value, stored):
    target_config = replace(SOURCE_CONFIG, **{name: value})
    with pytest.raises(CheckpointError, match=rf"{name}={value} \(.*{stored}\)"):
        check_architecture(ckpt_of(GPT(SOURCE_CONFIG)), target_config, resume=False)


# Whole commands


def without_shape(arguments):
    return [each for each in arguments if not each.startswith("--n_")]


def test_fine_tuning_into_a_llama_logs_the_loss_before_adaptation(trained, run, capsys):
    """The loss of the source model is that of its checkpoint; the adapted model can be sampled."""
    best = load_checkpoint("out/best.pt")["val_loss"]
    architecture = ["--position=rope", "--norm=rmsnorm", "--mlp=swiglu", "--n_kv_head=1"]
    options = without_shape(run(out_dir="llama", init_from="out", max_iters=2))
    train.main([*options, *architecture])
    out = capsys.readouterr().out
    assert re.search(rf"validation loss .*{best:.4f}", out)
    assert "pooled from 2 to 1: h.*.attn.c_attn.weight" in out
    config = load_checkpoint("llama/latest.pt")["model_config"]
    assert config["position"] == "rope"
    assert config["n_kv_head"] == 1
    options = ["--device=cpu", "--num_samples=2", "--max_new_tokens=20", "--start=o"]
    sample.main(["--out_dir=llama", *options])


def test_embedding_std_does_not_change_the_architecture(trained, run, capsys):
    """It only matters for initial weights, so fine-tuning and resuming accept any value."""
    train.main(run(init_from="out", out_dir="new", embedding_std=0.3, max_iters=0))
    assert "copied" not in capsys.readouterr().out
    old = load_checkpoint("out/best.pt")["model"]
    new = load_checkpoint("new/best.pt")["model"]
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name
    train.main(["--init_from=resume", "--out_dir=out", "--embedding_std=0.3", "--max_iters=31"])
    assert load_checkpoint("out/latest.pt")["step"] == 31
