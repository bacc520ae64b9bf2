"""Weights out: what transformers loads is the same model and the same tokens, and comes back as it was."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers: these tests need no network
import transformers

import export
import prepare
import sample
import train
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.data.tokenizer import load_tokenizer, read_spec
from tests.helpers import (
    LLAMA,
    gpt2_or_skip,
    llama2_like,
    load_with_transformers,
    save_perturbed_gpt,
)

ARCHITECTURES = {
    "gpt2": {"bias": True}, "gpt2 untied, relu2": {"bias": True, "tie_embeddings": False, "mlp": "relu2"},
    "gpt2 without biases": {"mlp": "gelu_exact", "mlp_hidden": 50}, "llama": {**LLAMA, "n_kv_head": 2},
    "llama untied, biases": {**LLAMA, "bias": True, "tie_embeddings": False, "mlp_hidden": 50},
}  # fmt: skip
TEXT = "O menino viu a maçã — e não comeu.\n\n\tSíssifo disse: 'não!' 12345  fim\n" * 20


@pytest.fixture(params=["char", "bpe", "gpt2"])
def spec(request, workspace):
    """The tokenizer's description of a data set of this kind."""
    if request.param == "gpt2":
        gpt2_or_skip()
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    prepare.main(["text", "--input=text.txt", f"--tokenizer={request.param}", "--vocab_size=300"])
    return read_spec("data/text/meta.json")


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_has_the_same_tokens_logits_and_greedy_text(spec, capsys, name):
    ours = save_perturbed_gpt(spec, block_size=64, **ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=hf"])
    theirs, their_tokenizer = load_with_transformers("hf")
    assert theirs.config.eos_token_id in (
        None,
        their_tokenizer.eos_token_id,
    )  # GPT-2's own would be beyond a small V
    assert (
        len({path.stat().st_mode for path in Path("hf").iterdir()}) == 1
    )  # safetensors wrote for the owner alone
    assert type(theirs).__name__ == (
        "LlamaForCausalLM" if name.startswith("llama") else "GPT2LMHeadModel"
    )
    tokenizer = load_tokenizer(spec)
    ids = tokenizer.encode(TEXT).tolist()
    assert their_tokenizer(TEXT)["input_ids"] == ids and their_tokenizer.decode(ids) == TEXT
    idx = torch.tensor(ids[: 64 * (len(ids) // 64)]).view(-1, 64)
    torch.testing.assert_close(theirs(idx).logits, ours(idx, idx)[0], atol=1e-4, rtol=0)

    writer = transformers.pipeline("text-generation", model="hf", device="cpu")
    greedy = writer("O menino", max_new_tokens=30, do_sample=False)[0]["generated_text"]
    capsys.readouterr()
    sample.main(
        [
            "--device=cpu",
            "--temperature=0",
            "--num_samples=1",
            "--max_new_tokens=30",
            "--start=O menino",
        ]
    )
    assert capsys.readouterr().out == f"{greedy}\n---------------\n"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_out_and_in_again_is_the_same_bit_for_bit(spec, name):
    save_perturbed_gpt(spec, block_size=64, **ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=first"])
    first = weights.load("first")
    assert first["tokenizer"] == spec
    export.main(["--out_dir=first", "--to=second"])
    second = weights.load("second")
    assert (
        second["model_config"] == first["model_config"]
        and second["tokenizer"] == first["tokenizer"]
    )
    assert second["model"].keys() == first["model"].keys()
    assert all(torch.equal(second["model"][key], tensor) for key, tensor in first["model"].items())
    for file in Path("first").iterdir():
        assert file.read_bytes() == Path("second", file.name).read_bytes(), file.name
    original = checkpoint.load("out/best.pt")["model"]
    assert all(torch.equal(first["model"][key], tensor) for key, tensor in original.items())


def test_a_foreign_tokenizer_travels_with_its_marks(workspace):
    text = llama2_like().to_str()
    save_perturbed_gpt({"kind": "huggingface", "json": text}, block_size=64)
    export.main(["--out_dir=out", "--to=hf"])
    theirs, their_tokenizer = load_with_transformers("hf")
    assert Path("hf/tokenizer.json").read_text(encoding="utf-8") == text
    assert (
        their_tokenizer.eos_token == "</s>"
        and theirs.config.eos_token_id == their_tokenizer.eos_token_id == 2
    )
    assert (
        their_tokenizer("o menino")["input_ids"]
        == load_tokenizer(read_spec("hf")).prompt("o menino").tolist()
    )


def test_what_was_exported_trains_on(tiny, run, capsys):
    train.main(run(max_iters=30, lr_decay_iters=30))
    best = checkpoint.load("out/best.pt")["val_loss"]
    export.main(["--out_dir=out", "--to=hf"])
    arguments = [
        a for a in run(out_dir="on", max_iters=5, eval_only=False) if not a.startswith("--n_")
    ]
    train.main([*arguments, "--init_from=hf"])
    losses = [
        json.loads(line)
        for line in Path("on/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert losses[0]["val_loss"] == pytest.approx(best, abs=1e-5)


def test_padding_of_the_vocabulary_is_never_spoken_by_transformers_either(spec):
    V = load_tokenizer(spec).vocab_size
    model = save_perturbed_gpt(spec, block_size=64, vocab_size=V + 5, tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[V:] = (
            10 * model.lm_head.weight[V - 1]
        )  # so that a greedy choice would often be padding
    content = checkpoint.load("out/best.pt")
    checkpoint.save(
        Path("out/best.pt"),
        {k: v for k, v in {**content, "model": model.state_dict()}.items() if k != "path"},
    )
    export.main(["--out_dir=out", "--to=hf"])
    theirs, _ = load_with_transformers("hf")
    for seed in range(5):
        torch.manual_seed(seed)
        assert theirs.generate(torch.tensor([[1, 2]]), max_new_tokens=20).max() < V


@pytest.mark.parametrize("changes, words", [
    ({"position": "rope"}, "GPT2LMHeadModel has no position=rope; LlamaForCausalLM has no norm=layernorm, mlp=gelu"),
    ({"n_kv_head": 1}, "GPT2LMHeadModel has no n_kv_head=1; LlamaForCausalLM has no position=learned"),
    ({**LLAMA, "qk_norm": True}, "LlamaForCausalLM has no qk_norm=True"),
    ({**LLAMA, "logit_softcap": 30.0}, "LlamaForCausalLM has no logit_softcap=30.0"),
    ({"qk_norm": True, "logit_softcap": 30.0}, "GPT2LMHeadModel has no qk_norm=True, logit_softcap=30.0"),
])  # fmt: skip
def test_what_transformers_cannot_express_is_refused_by_name(workspace, refused, changes, words):
    save_perturbed_gpt({"kind": "char", "chars": "abc"}, **{"block_size": 64, **changes})
    assert words in refused(export.main, "--out_dir=out", "--to=hf")
    assert not Path("hf").exists()


def test_a_full_disk_is_one_message_and_leaves_nothing(workspace, refused, monkeypatch):
    """safetensors reports it as an error of its own kind: a traceback, and an empty folder."""
    save_perturbed_gpt({"kind": "char", "chars": "abc"}, block_size=64)

    def full(*args):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert (
        "cannot write hf" in refused(export.main, "--out_dir=out", "--to=hf")
        and not Path("hf").exists()
    )


def test_mistakes_are_one_message_and_nothing_is_overwritten(workspace, refused):
    assert "to= names no folder" in refused(export.main, "--out_dir=out")
    assert "there is no checkpoint out" in refused(export.main, "--out_dir=out", "--to=hf")
    save_perturbed_gpt({"kind": "char", "chars": "abc"}, block_size=64)
    Path("taken").mkdir()
    Path("taken/config.json").write_text("mine")
    assert "taken already has config.json" in refused(export.main, "--out_dir=out", "--to=taken")
    assert [path.name for path in Path("taken").iterdir()] == ["config.json"]
    assert "out already has best.pt" in refused(export.main, "--out_dir=out", "--to=out")
    Path("file").write_text("mine")
    assert "file" in refused(export.main, "--out_dir=out", "--to=file")
    assert Path("file").read_text() == "mine"
