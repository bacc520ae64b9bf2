"""Models from Hugging Face: the logits of transformers, and errors that name the cause."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import sample
import train
from seugpt.checkpoint.pretrained import config_of, load_pretrained
from seugpt.data.tokenizer import CharTokenizer
from tests.checkpoint.hf_models import (
    CHARS,
    check_logits,
    edit_json,
    edit_tensors,
    make_gpt2,
    make_llama,
)

GPT2_VARIANTS = {
    "small": {},
    "odd sizes": {
        "n_layer": 3,
        "n_head": 5,
        "n_embd": 35,
        "vocab_size": 97,
        "n_positions": 13,
        "n_inner": 50,
        "activation_function": "gelu",
    },
    "one head": {"n_head": 1, "n_inner": 7, "activation_function": "relu2"},
}
LLAMA_VARIANTS = {
    "small": {},
    "odd sizes, GQA": {
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "hidden_size": 36,
        "intermediate_size": 50,
        "vocab_size": 97,
        "max_position_embeddings": 13,
        "attention_bias": True,
    },
    "MQA": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "hidden_size": 24,
        "attention_bias": True,
        "mlp_bias": True,
    },
}


@pytest.fixture(scope="module")
def hf_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    make_llama(
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_size=16,
        intermediate_size=24,
        vocab_size=len(CHARS),
        max_position_embeddings=32,
    ).save_pretrained(folder)
    text = CharTokenizer(CHARS).to_json()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def hf(hf_once, workspace):
    """The folder hf with a Llama and its tokenizer, whose vocabulary is CHARS."""
    shutil.copytree(hf_once, "hf")
    return Path("hf")


@pytest.fixture
def hf_gpt2(workspace):
    """The folder hf with a GPT-2, without a tokenizer."""
    make_gpt2().save_pretrained("hf")
    return Path("hf")


# The same logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "make, variant",
    [
        *((make_gpt2, variant) for variant in GPT2_VARIANTS.values()),
        *((make_llama, variant) for variant in LLAMA_VARIANTS.values()),
    ],
    ids=[*(f"gpt2 {name}" for name in GPT2_VARIANTS), *(f"llama {n}" for n in LLAMA_VARIANTS)],
)
def test_logits_are_those_of_transformers(tmp_path, make, variant, tied):
    theirs = make(tied=tied, **variant)
    theirs.save_pretrained(tmp_path)
    ours = check_logits(theirs, tmp_path)
    assert ours.config.tie_embeddings is tied


def test_sharded_model_is_read_as_one(tmp_path):
    theirs = make_llama(num_hidden_layers=3, hidden_size=64, intermediate_size=96, vocab_size=97)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    check_logits(theirs, tmp_path)


def test_gpt2_as_on_the_hub_can_be_read(tmp_path):
    """Its names lack the prefix `transformer.`, and it stores causal masks."""
    theirs = make_gpt2(n_layer=2)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    hub_tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    hub_tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    save_file(hub_tensors, tmp_path / "model.safetensors", {"format": "pt"})
    check_logits(theirs, tmp_path)


def test_half_precision_weights_are_read_exactly(tmp_path):
    make_llama(**LLAMA_VARIANTS["MQA"]).to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    check_logits(theirs, tmp_path)


@pytest.mark.parametrize("make, tied", [(make_gpt2, True), (make_llama, False)])
def test_keys_missing_from_config_json_have_transformers_defaults(tmp_path, make, tied):
    make(tied=tied).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    optional = {
        "tie_word_embeddings",
        "num_key_value_heads",
        "hidden_act",
        "activation_function",
        "layer_norm_epsilon",
        "rms_norm_eps",
        "head_dim",
        "attention_bias",
        "mlp_bias",
    }
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in optional}
    path.write_text(json.dumps(kept), encoding="utf-8")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    check_logits(theirs, tmp_path)


@pytest.mark.parametrize(
    "values, rope_base",  # transformers 4 has rope_theta, 5 has rope_parameters
    [
        ({"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": None}, 500.0),
        ({"rope_parameters": None}, 10_000.0),
        ({"rope_parameters": {"rope_type": "default"}}, 10_000.0),
    ],
)
def test_rope_theta_is_read_in_the_old_and_the_new_form(hf, values, rope_base):
    edit_json(hf / "config.json", **values)
    assert config_of(load_pretrained("hf")).rope_base == rope_base


# Refused


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
BAD_CONFIGS = [
    ({"rope_parameters": YARN}, "rope_parameters=.*yarn"),
    (
        {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling=.*dynamic",
    ),
    ({"rope_parameters": {**YARN, "rope_type": "default"}}, "rope_parameters=.*factor"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"hidden_act": {"a": 1}}, "hidden_act={'a': 1}"),
    ({"head_dim": 8}, r"q_proj\.weight .*\(16, 16\).*\(32, 16\)"),
    ({"pretraining_tp": 2}, "pretraining_tp=2"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"model_type": "bert"}, "model_type='bert'"),
    ({"model_type": None}, "model_type=None"),
    ({"model_type": ["llama"]}, "model_type=.'llama'."),
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": "big"}, "hidden_size"),
    ({"num_key_value_heads": 3}, "n_kv_head=3 .*n_head=4"),
    ({"vocab_size": 8}, "vocab_size=8 .*10 tokens"),
    ({"vocab_size": 1000}, "vocab_size=1,000 .*10 tokens"),
    ({"vocab_size": 11}, r"model\.embed_tokens\.weight .*\(10, 16\).*\(11, 16\)"),
    ({"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight"),
    ({"num_hidden_layers": 1}, r"tensors .*model\.layers\.1"),
    ({"num_hidden_layers": 2**31}, "2,147,483,648 layers"),
    ({"rms_norm_eps": -1}, "norm_eps=-1"),
    ({"rms_norm_eps": float("nan")}, "config.json .*NaN"),
    ({"attention_bias": True}, r"model\.layers\.0\.self_attn\.q_proj\.bias"),
    ({"tie_word_embeddings": None}, "tie_embeddings=None"),
    ({"tie_word_embeddings": "x"}, "tie_embeddings='x'"),
    ({"num_attention_heads": 0}, "config.json"),
    ({"num_attention_heads": True}, "num_attention_heads"),
    ({"hidden_size": 2**40, "head_dim": None}, "64 bits|config.json implies"),
    ({"rope_parameters": [1]}, "config.json"),
]


@pytest.mark.parametrize("values, pattern", BAD_CONFIGS, ids=str)
def test_bad_value_in_config_json_is_refused_by_name(hf, refused, values, pattern):
    """What we do not compute, what does not fit the files, and what makes no sense."""
    edit_json(hf / "config.json", **values)
    message = refused(sample.main, "--init_from=hf", "--device=cpu")
    assert re.search(pattern, message), message


@pytest.mark.parametrize(
    "key, value",
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("activation_function", "silu"),
        ("add_cross_attention", True),
        ("reorder_and_upcast_attn", True),
    ],
)
def test_unsupported_variant_of_gpt2_is_refused_by_name(hf_gpt2, refused, key, value):
    edit_json(hf_gpt2 / "config.json", **{key: value})
    assert f"{key}={value!r}" in refused(sample.main, "--init_from=hf")


def test_output_head_of_a_tied_model_must_equal_the_embedding(hf, refused):
    embedding = load_file(hf / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(hf, **{"lm_head.weight": embedding.clone()})
    load_pretrained("hf")
    edit_tensors(hf, **{"lm_head.weight": embedding + 1})
    assert "lm_head.weight differs" in refused(sample.main, "--init_from=hf")


def test_missing_bias_is_not_taken_for_zero(hf_gpt2, refused):
    tensors = load_file(hf_gpt2 / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, hf_gpt2 / "model.safetensors")
    assert "transformer.ln_f.bias" in refused(sample.main, "--init_from=hf")


def test_quantized_weights_are_refused_by_name(hf, refused):
    edit_tensors(hf, **{"model.norm.weight": torch.ones(16, dtype=torch.int8)})
    assert "model.norm.weight is torch.int8" in refused(sample.main, "--init_from=hf")


def test_unexpected_tensor_is_refused_by_name(hf, refused):
    name = "model.layers.0.self_attn.q_norm.weight"
    edit_tensors(hf, **{name: torch.ones(4)})
    assert name in refused(sample.main, "--init_from=hf")


@pytest.mark.parametrize(
    "file, damage",
    [
        ("model.safetensors", lambda content: content[:-100]),
        ("model.safetensors", lambda content: b""),
        ("model.safetensors", lambda content: b"version https://git-lfs.github.com/spec/v1"),
        ("config.json", lambda content: b"{"),
        ("config.json", lambda content: b"[]"),
        ("tokenizer.json", lambda content: b"{}"),
    ],
    ids=["truncated", "empty", "Git LFS pointer", "half JSON", "list", "empty object"],
)
def test_damaged_file_is_refused_by_name(hf, refused, file, damage):
    path = hf / file
    path.write_bytes(damage(path.read_bytes()))
    assert file in refused(sample.main, "--init_from=hf", "--device=cpu")


@pytest.mark.parametrize(
    "weight_map, words",
    [
        ({"model.norm.weight": "model-2.safetensors"}, "model-2.safetensors is missing"),
        ([], "weight_map"),
    ],
)
def test_bad_index_of_shards_is_one_message(hf, refused, weight_map, words):
    (hf / "model.safetensors").rename(hf / "model-1.safetensors")
    text = json.dumps({"weight_map": weight_map})
    (hf / "model.safetensors.index.json").write_text(text)
    assert words in refused(sample.main, "--init_from=hf")


def test_model_without_a_tokenizer_can_be_fine_tuned_but_not_sampled(tiny, refused, run, capsys):
    """Fine-tuning takes the tokenizer of the data set for the model's."""
    make_llama(vocab_size=14).save_pretrained("hf")  # data/tiny has 14 characters
    options = run(init_from="hf", max_iters=1)
    train.main([each for each in options if not each.startswith("--n_")])
    assert "hf has no tokenizer.json" in capsys.readouterr().out
    assert "hf has no tokenizer.json" in refused(sample.main, "--init_from=hf")


# Optional packages


@pytest.mark.parametrize(
    "package, source", [("safetensors", "hf"), ("huggingface_hub", "gpt2"), ("tokenizers", "hf")]
)
def test_missing_package_is_named_with_its_install_command(
    hf, refused, monkeypatch, package, source
):
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # import raises ImportError
    if package == "tokenizers":  # only needed for a tokenizer unlike ours
        edit_json(hf / "tokenizer.json", normalizer={"type": "Lowercase"})
    message = refused(sample.main, f"--init_from={source}")
    assert f"python -m pip install {package}==" in message
