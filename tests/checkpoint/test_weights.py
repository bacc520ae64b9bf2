"""Weights from elsewhere: nanoGPT's checkpoints, and what of a model fits another architecture."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import prepare
import sample
import train
from model import GPT, ModelConfig
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.errors import CheckpointError
from tests.helpers import NanoGPT, perturbed_gpt

SHAPE = {"block_size": 16, "vocab_size": 14, "n_layer": 2, "n_head": 4, "n_embd": 32, "bias": True}


def content_of(model):
    return {
        "path": "x.pt", "model": model.state_dict(), "model_config": vars(model.config), "train_config": {},
        "tokenizer": None, "step": 0, "val_loss": 0.0,
    }  # fmt: skip


def test_a_model_that_is_to_speak_drops_nothing(tiny, run):
    train.main(run(max_iters=1, dropout=0.5))
    model, tokenizer, about = weights.to_speak("out")
    assert (
        not model.training and model.config.dropout == 0 and model.wte.weight.dtype == torch.float32
    )
    assert tokenizer.vocab_size == model.config.vocab_size and about[0].startswith(
        "out/best.pt: step 1, "
    )
    assert torch.equal(model.wte.weight, checkpoint.load("out/best.pt")["model"]["wte.weight"])


@pytest.fixture
def nanogpt(tiny):
    """nano/ckpt.pt with nanoGPT's names and forms, of a compiled model, for data/tiny."""
    torch.manual_seed(0)
    model = NanoGPT(**SHAPE)
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(
        1, 1, 16, 16
    ).tril()  # its mask, without flash attention
    Path("nano").mkdir()
    save_nanogpt(state, SHAPE)
    return model.eval()


def save_nanogpt(state, shape, dataset="tiny"):
    content = {"model": state, "model_args": {**shape, "dropout": 0.0}, "optimizer": {"state": {}}, "iter_num": 250,
               "best_val_loss": torch.tensor(2.5), "config": {"dataset": dataset}}  # fmt: skip
    torch.save(content, "nano/ckpt.pt")


@torch.no_grad()
def test_nanogpts_checkpoint_has_the_same_logits_and_loss(nanogpt):
    content = weights.load("nano")
    assert content["step"] == 250 and content["val_loss"] == 2.5
    model, report = weights.build(content)
    x, y = torch.randint(14, (2, 3, 16))
    expected = nanogpt(x)
    logits, loss = model.eval()(x, y)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert loss.item() == pytest.approx(
        F.cross_entropy(expected.flatten(0, 1), y.flatten()).item(), abs=1e-5
    )
    assert report == []


def test_nanogpts_folder_is_sampled_from_and_trained_on(nanogpt, run, capsys, refused):
    sample.main(
        [
            "--out_dir=nano",
            "--device=cpu",
            "--num_samples=1",
            "--max_new_tokens=5",
            "--start=menino",
        ]
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("menino")
    assert (
        "nano/ckpt.pt is nanoGPT's; its tokens are those of data/tiny/meta.json"
        in captured.err.replace("\\", "/")
    )
    arguments = [a for a in run(max_iters=1) if not a.startswith(("--n_", "--block"))]
    train.main([*arguments, "--init_from=nano/ckpt.pt"])
    assert checkpoint.load("out/latest.pt")["model_config"]["mlp"] == "gelu_exact"
    assert "nanoGPT's nano/ckpt.pt cannot be resumed" in refused(
        train.main, "--init_from=resume", "--out_dir=nano"
    ).replace("\\", "/")


def test_nanogpts_tokens_that_nothing_names_are_asked_for(nanogpt, refused):
    save_nanogpt(nanogpt.state_dict(), SHAPE, dataset="gone")
    message = refused(sample.main, "--out_dir=nano")
    assert "does not say what its 14 tokens are" in message and "python prepare.py gone" in message


def test_nanogpts_tokens_are_gpt2s_by_their_number(workspace):
    Path("nano").mkdir()
    shape = {**SHAPE, "vocab_size": 50304}
    save_nanogpt(NanoGPT(**shape).state_dict(), shape, dataset="openwebtext")
    content = weights.load("nano")
    assert content["tokenizer"] == {"kind": "gpt2"} and "taken for GPT-2's" in content["notes"][0]


@pytest.mark.parametrize("change", [{"model_args": {}}, {"model_args": None}, {"model": None}, {"config": None},
                                    {"model_args": {**SHAPE, "vocab_size": torch.zeros(3)}}])  # fmt: skip
def test_a_damaged_nanogpt_checkpoint_is_one_message(nanogpt, refused, change):
    torch.save({**torch.load("nano/ckpt.pt", weights_only=True), **change}, "nano/ckpt.pt")
    assert "nano/ckpt.pt" in refused(sample.main, "--out_dir=nano").replace("\\", "/")


def test_the_same_architecture_is_taken_over_bit_for_bit():
    old = perturbed_gpt(ModelConfig(**SHAPE))
    model, report = weights.build(content_of(old), replace(old.config, dropout=0.5))
    assert report == [] and model.config.dropout == 0.5
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), model.parameters(), strict=True))


def test_a_shorter_context_keeps_the_function_on_short_texts():
    old = perturbed_gpt(ModelConfig(**SHAPE))
    model, _ = weights.build(content_of(old), replace(old.config, block_size=5))
    idx = torch.randint(14, (2, 5))
    torch.testing.assert_close(model.eval()(idx)[0], old(idx)[0])


def test_rotary_positions_may_become_more():
    old = perturbed_gpt(ModelConfig(**SHAPE, position="rope"))
    wanted = replace(old.config, block_size=64)
    weights.check_architecture(content_of(old), wanted, resume=False)
    idx = torch.randint(14, (2, 16))
    torch.testing.assert_close(
        weights.build(content_of(old), wanted)[0].eval()(idx)[0], old(idx)[0]
    )


def test_repeated_heads_of_keys_and_values_keep_the_function():
    old = perturbed_gpt(ModelConfig(**SHAPE, n_kv_head=2))
    model, report = weights.build(content_of(old), replace(old.config, n_kv_head=None))
    idx = torch.randint(14, (2, 16))
    torch.testing.assert_close(model.eval()(idx)[0], old(idx)[0], atol=1e-5, rtol=1e-5)
    assert any(
        "repeated from 2 to 4: h.*.attn.c_attn.bias, h.*.attn.c_attn.weight" in line
        for line in report
    )


def test_pooled_heads_are_the_means_of_their_groups():
    old = ModelConfig(**SHAPE)
    tensor = torch.randn(3 * 32, 32)
    q, k, v = weights.pool_heads(tensor, old, replace(old, n_kv_head=2)).split([32, 16, 16])
    assert torch.equal(q, tensor[:32])
    for pooled, whole in ((k, tensor[32:64]), (v, tensor[64:])):
        torch.testing.assert_close(pooled[:8], (whole[:8] + whole[8:16]) / 2)
        torch.testing.assert_close(pooled[8:], (whole[16:24] + whole[24:]) / 2)


def test_untying_and_tying_keep_what_they_can():
    old = perturbed_gpt(ModelConfig(**SHAPE))
    untied, _ = weights.build(content_of(old), replace(old.config, tie_embeddings=False))
    assert (
        torch.equal(untied.lm_head.weight, old.wte.weight)
        and untied.lm_head.weight is not untied.wte.weight
    )
    idx = torch.randint(14, (2, 16))
    torch.testing.assert_close(untied.eval()(idx)[0], old(idx)[0])


MODERN = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 2, "bias": False, "qk_norm": True,
          "logit_softcap": 30.0}  # fmt: skip


def test_gpt2_becomes_modern_as_far_as_it_can_and_says_how():
    old = perturbed_gpt(ModelConfig(**SHAPE))
    model, report = weights.build(content_of(old), replace(old.config, **MODERN), seed=1)
    text = "\n".join(report)
    for words in ("copied: .*wte.weight", "pooled from 4 to 2: .*c_attn.weight", "new: h.*.attn.k_norm.weight, ",
                  "88 of 128 channels kept, as gate and as value: h.*.mlp.c_fc.weight", "channels kept: .*c_proj",
                  r"dropped: .*c_attn.bias.*ln_1.bias.*wpe.weight"):  # fmt: skip
        assert re.search(words, text), text
    state, fc = model.state_dict(), old.state_dict()["h.1.mlp.c_fc.weight"]
    assert torch.equal(state["wte.weight"], old.wte.weight)
    assert torch.equal(state["h.1.mlp.c_fc.weight"], torch.cat((fc[:88], fc[:88])))
    assert torch.equal(
        state["h.1.mlp.c_proj.weight"], old.state_dict()["h.1.mlp.c_proj.weight"][:, :88]
    )


def test_a_narrower_gate_keeps_the_beginning_of_both_halves():
    old = perturbed_gpt(ModelConfig(**SHAPE, mlp="swiglu", mlp_hidden=10))
    model, report = weights.build(content_of(old), replace(old.config, mlp_hidden=6))
    fc = old.state_dict()["h.0.mlp.c_fc.weight"]
    assert torch.equal(model.state_dict()["h.0.mlp.c_fc.weight"], torch.cat((fc[:6], fc[10:16])))
    assert (
        "6 of 10 channels kept: h.*.mlp.c_fc.bias, h.*.mlp.c_fc.weight, h.*.mlp.c_proj.weight"
        in report
    )


def test_what_is_new_comes_from_the_seed_and_leaves_the_callers_dice_alone():
    old = perturbed_gpt(ModelConfig(**SHAPE, position="rope"))
    before = torch.get_rng_state()
    one, same, other = (
        weights.build(content_of(old), replace(old.config, position="learned"), seed)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.wpe.weight, same.wpe.weight) and not torch.equal(
        one.wpe.weight, other.wpe.weight
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes, words", [
    ({"n_layer": 3}, r"n_layer=3 \(there 2\)"), ({"n_head": 2}, r"n_head=2 \(there 4\)"),
    ({"n_embd": 64}, r"n_embd=64 \(there 32\)"), ({"vocab_size": 64}, r"vocab_size=64 \(there 14\)"),
    ({"block_size": 17}, r"block_size=17 \(there 16\)"),
])  # fmt: skip
def test_what_nothing_can_be_taken_over_into_is_refused(changes, words):
    old = ModelConfig(**SHAPE)
    with pytest.raises(CheckpointError, match=words):
        weights.check_architecture(content_of(GPT(old)), replace(old, **changes), resume=False)


@pytest.mark.parametrize("old, new, words", [
    ({"mlp": "swiglu"}, {"mlp": "gelu", "mlp_hidden": 100}, "88 of 88 channels kept, 12 new of the gate, no value: "),
    ({}, {"mlp_hidden": 200}, "128 of 128 channels kept, 72 new: h.*.mlp.c_fc.bias"),
    ({"n_head": 8, "n_kv_head": 8}, {"n_kv_head": 2}, "pooled from 8 to 2"),
    ({"n_head": 12, "n_embd": 48, "n_kv_head": 6}, {"n_kv_head": 4}, "mixed from 6 to 4"),
    ({"tie_embeddings": False}, {"tie_embeddings": True}, "dropped: lm_head.weight"),
])  # fmt: skip
def test_the_report_is_true(old, new, words):
    model = perturbed_gpt(ModelConfig(**{**SHAPE, **old}))
    adapted, report = weights.build(content_of(model), replace(model.config, **new))
    assert any(line.startswith(words) or words in line for line in report), report
    assert torch.equal(
        adapted.wte.weight, model.wte.weight
    )  # and not the head's, where both become one


def test_weights_that_are_no_numbers_are_refused():
    model = perturbed_gpt(ModelConfig(**SHAPE))
    content = content_of(model)
    content["model"]["h.1.mlp.c_fc.weight"][3, 4] = torch.nan
    with pytest.raises(CheckpointError, match=r"no numbers .*h\.1\.mlp\.c_fc\.weight"):
        weights.build(content)


@pytest.mark.parametrize("change", [{"step": "1"}, {"val_loss": None}, {"model_config": []}, {"train_config": 3},
                                    {"model_config": {"n_layer": [2]}}, {"model_config": {"n_head": None}},
                                    {"model_config": {"norm_eps": float("nan")}},
                                    {"model": {"wte.weight": 1}}, {"model_config": {"n_embd": 2**31}},
                                    {"model_config": {"n_layer": 2**31}}])  # fmt: skip
def test_wrong_types_in_a_checkpoint_are_one_message(tiny, run, refused, change):
    train.main(run(max_iters=1))
    content = torch.load("out/best.pt", weights_only=True)
    merged = {k: {**content[k], **v} if isinstance(v, dict) else v for k, v in change.items()}
    torch.save({**content, **merged}, "out/best.pt")
    assert "out/best.pt" in refused(sample.main, "--out_dir=out").replace("\\", "/")


def test_another_texts_characters_are_not_nanogpts(nanogpt, refused):
    Path("other.txt").write_text("abcabc" * 300, encoding="utf-8")
    prepare.main(["tiny", "--input=other.txt"])
    assert "has 14 characters and" in refused(sample.main, "--out_dir=nano")


@pytest.mark.parametrize("source, words", [
    ("", "init_from= is empty"), ("hf/config.json", "give its folder: hf"),
    ("empty", "the folder empty has no best.pt"),
])  # fmt: skip
def test_what_is_no_model_is_named(workspace, refused, source, words):
    Path("hf").mkdir()
    Path("empty").mkdir()
    Path("hf/config.json").write_text("{}")
    assert words in refused(sample.main, f"--init_from={source}")


def test_fine_tuning_into_a_modern_model_reports_the_loss_before(tiny, run, capsys):
    train.main(run(max_iters=30, lr_decay_iters=30))
    best = checkpoint.load("out/best.pt")["val_loss"]
    capsys.readouterr()
    arguments = [a for a in run(out_dir="modern", max_iters=5) if not a.startswith("--n_")]
    train.main(
        [
            *arguments,
            "--init_from=out",
            "--position=rope",
            "--norm=rmsnorm",
            "--mlp=swiglu",
            "--n_kv_head=1",
        ]
    )
    out = capsys.readouterr().out
    assert f"validation loss of the weights as they were: {best:.4f}" in out
    assert "heads of keys and values pooled from 2 to 1: h.*.attn.c_attn.weight" in out
    config = checkpoint.load("modern/latest.pt")["model_config"]
    assert (config["position"], config["n_kv_head"]) == ("rope", 1)
    sample.main(["--out_dir=modern", "--device=cpu", "--max_new_tokens=40", "--start=o"])


def test_how_embeddings_began_is_no_other_architecture(tiny, run, capsys):
    train.main(run(max_iters=2))
    train.main(run(init_from="out", out_dir="new", embedding_std=0.3, max_iters=0))
    assert "copied" not in capsys.readouterr().out
    old, new = (checkpoint.load(f"{folder}/best.pt")["model"] for folder in ("out", "new"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    train.main(["--init_from=resume", "--out_dir=out", "--embedding_std=0.3", "--max_iters=3"])
    assert checkpoint.load("out/latest.pt")["step"] == 3
