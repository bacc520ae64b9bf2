"""Pretrained weights from our runs and from nanoGPT, and errors for anything else."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import prepare
import sample
import train
from seugpt.checkpoint.pretrained import (
    build_from_checkpoint,
    check_tokenizer,
    load_for_inference,
    load_pretrained,
)
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.errors import CheckpointError
from tests.helpers import NanoGPT

NANOGPT_SHAPE = {
    "block_size": 16,
    "vocab_size": 14,  # the characters of data/tiny
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "bias": True,
}


def save_nanogpt(state_dict, shape, dataset="tiny"):
    ckpt = {
        "model": state_dict,
        "model_args": {**shape, "dropout": 0.0},
        "optimizer": {"state": {}},
        "iter_num": 250,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": dataset},
    }
    torch.save(ckpt, "nano/ckpt.pt")


@pytest.fixture
def nanogpt(tiny):
    """A NanoGPT, saved to nano/ckpt.pt with the parameter names of a compiled model."""
    torch.manual_seed(0)
    model = NanoGPT(**NANOGPT_SHAPE)
    state_dict = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    causal_mask = torch.ones(1, 1, 16, 16).tril()  # saved by nanoGPT without flash attention
    state_dict["_orig_mod.transformer.h.0.attn.bias"] = causal_mask
    Path("nano").mkdir()
    save_nanogpt(state_dict, NANOGPT_SHAPE)
    return model.eval()


def without_shape(arguments):
    """The command line of a run that takes its architecture from a checkpoint."""
    return [each for each in arguments if not each.startswith(("--n_", "--block_size"))]


def posix(message):
    return message.replace("\\", "/")


# Our own checkpoints


def test_model_for_inference_has_no_dropout_and_float32_weights(tiny, run):
    train.main(run(max_iters=1, dropout=0.5))
    model, tokenizer, description = load_for_inference("out")
    assert not model.training
    assert model.config.dropout == 0
    assert model.wte.weight.dtype == torch.float32
    assert tokenizer.vocab_size == model.config.vocab_size
    assert description[0].startswith("out/best.pt: step 1, ")
    assert torch.equal(model.wte.weight, load_checkpoint("out/best.pt")["model"]["wte.weight"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_layer": 3}, "n_layer=3"),
        ({"heads": 2}, "heads"),
        ({"n_embd": 33}, "n_embd=33"),
        ({"n_embd": 64}, "wte.weight"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(trained, change, words):
    ckpt = load_checkpoint("out/best.pt")
    ckpt["model_config"] |= change
    with pytest.raises(CheckpointError, match=rf"out/best\.pt: .*{words}"):
        build_from_checkpoint(ckpt)


def test_nan_weights_are_refused_by_name(trained):
    ckpt = load_checkpoint("out/best.pt")
    ckpt["model"]["h.1.mlp.c_fc.weight"][3, 4] = torch.nan
    with pytest.raises(CheckpointError, match=r"NaN.*h\.1\.mlp\.c_fc\.weight"):
        build_from_checkpoint(ckpt)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"val_loss": None},
        {"model_config": []},
        {"train_config": 3},
        {"model_config": {"n_layer": [2]}},
        {"model_config": {"n_head": None}},
        {"model_config": {"norm_eps": math.nan}},
        {"model": {"wte.weight": 1}},
    ],
)
def test_wrong_value_in_a_checkpoint_is_one_message(trained, refused, change):
    ckpt = torch.load("out/best.pt", weights_only=True)
    for key, value in change.items():
        ckpt[key] = {**ckpt[key], **value} if isinstance(value, dict) else value
    torch.save(ckpt, "out/best.pt")
    assert "out/best.pt" in posix(refused(sample.main, "--out_dir=out"))


@pytest.mark.parametrize(
    "spec, choice", [({"kind": "gpt2"}, "gpt2"), ({"kind": "bpe"}, "data/web/meta.json")]
)
def test_vocabulary_error_names_a_tokenizer_that_exists(spec, choice):
    """Weights trained on external token files have no meta.json; GPT-2's needs none."""
    ckpt = {"path": "out/best.pt", "tokenizer": spec, "train_config": {"dataset": "web"}}
    with pytest.raises(CheckpointError, match=f"data/poems .*--tokenizer={choice}$"):
        check_tokenizer(ckpt, {"kind": "char", "chars": "ab"}, "poems")


@pytest.mark.parametrize(
    "source, words",
    [
        ("", "init_from=''"),
        ("hf/config.json", "folder: hf"),
        ("empty", "folder empty has no best.pt"),
    ],
)
def test_source_without_a_model_is_refused_by_name(workspace, refused, source, words):
    Path("hf").mkdir()
    Path("empty").mkdir()
    Path("hf/config.json").write_text("{}")
    assert words in refused(sample.main, f"--init_from={source}")


# nanoGPT's checkpoints


@torch.no_grad()
def test_nanogpt_checkpoint_gives_nanogpts_logits_and_loss(nanogpt):
    ckpt = load_pretrained("nano")
    assert ckpt["step"] == 250
    assert ckpt["val_loss"] == 2.5
    model, notes = build_from_checkpoint(ckpt)
    assert notes == []
    x, y = torch.randint(14, (2, 3, 16))
    expected = nanogpt(x)
    logits, loss = model.eval()(x, y)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    expected_loss = F.cross_entropy(expected.flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)


def test_nanogpt_folder_can_be_sampled_and_fine_tuned_but_not_resumed(
    nanogpt, run, capsys, refused
):
    """The refusal to resume names the command that fine-tunes instead."""
    options = ["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=menino"]
    sample.main(["--out_dir=nano", *options])
    captured = capsys.readouterr()
    assert captured.out.startswith("menino")
    note = posix(captured.err)
    assert "nano/ckpt.pt" in note
    assert "data/tiny/meta.json" in note  # where its tokenizer comes from
    train.main([*without_shape(run(max_iters=1)), "--init_from=nano/ckpt.pt"])
    assert load_checkpoint("out/latest.pt")["model_config"]["mlp"] == "gelu_exact"
    message = posix(refused(train.main, "--init_from=resume", "--out_dir=nano"))
    assert "--init_from=nano/ckpt.pt" in message


def test_nanogpt_vocabulary_without_a_data_set_is_one_message(nanogpt, refused):
    """A nanoGPT checkpoint does not contain its tokenizer; the message says how to prepare it."""
    save_nanogpt(nanogpt.state_dict(), NANOGPT_SHAPE, dataset="gone")
    message = refused(sample.main, "--out_dir=nano")
    assert "14 tokens" in message
    assert "python prepare.py gone" in message


def test_nanogpt_vocabulary_must_have_the_size_of_the_data_sets(nanogpt, refused):
    """The data set of that name has been prepared again, from another text."""
    Path("other.txt").write_text("abcabc" * 300, encoding="utf-8")
    prepare.main(["tiny", "--input=other.txt"])
    message = refused(sample.main, "--out_dir=nano")
    assert "14 characters" in message
    assert "has 3:" in message


def test_nanogpt_vocabulary_of_gpt2s_size_is_assumed_to_be_gpt2s(workspace):
    """50,304 is GPT-2's size, padded by nanoGPT."""
    Path("nano").mkdir()
    shape = {**NANOGPT_SHAPE, "vocab_size": 50304, "n_layer": 1, "n_embd": 4}
    save_nanogpt(NanoGPT(**shape).state_dict(), shape, dataset="openwebtext")
    ckpt = load_pretrained("nano")
    assert ckpt["tokenizer"] == {"kind": "gpt2"}
    assert "GPT-2's" in ckpt["notes"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {}},
        {"model_args": None},
        {"model": None},
        {"config": None},
        {"model_args": {**NANOGPT_SHAPE, "vocab_size": torch.zeros(3)}},
    ],
)
def test_damaged_nanogpt_checkpoint_is_one_message(nanogpt, refused, change):
    ckpt = torch.load("nano/ckpt.pt", weights_only=True)
    torch.save({**ckpt, **change}, "nano/ckpt.pt")
    assert "nano/ckpt.pt" in posix(refused(sample.main, "--out_dir=nano"))
