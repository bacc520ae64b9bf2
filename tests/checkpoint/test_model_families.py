"""The small models that people have: logits and greedy text of transformers, export, config.json.

The tiny random models have odd shapes; the table has the fields that the hub's models publish.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers

import export
import sample
from seugpt.checkpoint.config_json import read_config
from seugpt.checkpoint.pretrained import config_of, load_for_inference, load_pretrained
from seugpt.data.tokenizer import CharTokenizer
from seugpt.errors import CheckpointError
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams
from tests.checkpoint.hf_models import check_logits, edit_json
from tests.helpers import perturb

CHARS = "".join(chr(ord("!") + i) for i in range(53))
SHAPE = {
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 48,
    "intermediate_size": 50,
    "vocab_size": 53,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
FAMILIES = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": ROPE}),
    "qwen2 with a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 10, "rope_parameters": ROPE}),
    "qwen3, default head_dim": ("Qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama, narrow heads": ("Llama", {"head_dim": 4, "attention_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 22, "num_key_value_heads": 1}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": 13, "head_dim": 8}),
    "mistral with a long window": ("Mistral", {"sliding_window": 4096, "head_dim": None}),
    "smollm": ("Llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 54}),
    "tinyllama": ("Llama", {"num_key_value_heads": 3, "rms_norm_eps": 1e-5}),
}


def make_model(class_name, changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{class_name}Config")(**{**SHAPE, **changes})
    return perturb(getattr(transformers, f"{class_name}ForCausalLM")(config))


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request, workspace):
    """(its name in transformers, a model whose folder is hf)."""
    class_name, changes = request.param
    model = make_model(class_name, changes)
    model.save_pretrained("hf")
    Path("hf/tokenizer.json").write_text(CharTokenizer(CHARS).to_json(), encoding="utf-8")
    return class_name, model


@torch.no_grad()
def test_logits_and_greedy_text_are_those_of_transformers(family):
    _, theirs = family
    ours = check_logits(theirs, "hf")
    length = ours.config.block_size
    prompt = torch.randint(53, (1, 5))
    expected = theirs.generate(
        prompt,
        max_new_tokens=length - 5,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    decoder = Decoder(ours, 1, length)
    params = SamplingParams(temperature=0.0)
    tokens = generate_tokens(decoder, prompt.tolist(), length - 5, 53, params)
    assert torch.cat(list(tokens)).tolist() == expected[0, 5:].tolist()


@torch.no_grad()
def test_exported_model_has_the_same_logits_and_loads_again(family):
    class_name, theirs = family
    export.main(["--init_from=hf", "--to=second"])
    exported = transformers.AutoModelForCausalLM.from_pretrained("second").eval()
    expected = "Qwen3ForCausalLM" if class_name == "Qwen3" else "LlamaForCausalLM"
    assert type(exported).__name__ == expected
    first, second = load_pretrained("hf"), load_pretrained("second")
    if class_name != "Qwen2":  # a Llama whose other biases are zero
        assert config_of(first) == config_of(second)
    for name, tensor in first["model"].items():
        assert torch.equal(second["model"][name], tensor), name
    idx = torch.randint(53, (2, config_of(second).block_size))
    torch.testing.assert_close(exported(idx).logits, theirs(idx).logits, atol=1e-4, rtol=0)


def test_context_is_cut_to_the_sliding_window_with_a_note(workspace, capsys):
    make_model("Mistral", {"sliding_window": 13}).save_pretrained("hf")
    Path("hf/tokenizer.json").write_text(CharTokenizer(CHARS).to_json(), encoding="utf-8")
    model, _, description = load_for_inference("hf")
    assert model.config.block_size == 13
    assert any("block_size is 13, the sliding window" in line for line in description)


LLAMA = {"model_type": "llama", "hidden_act": "silu", "pretraining_tp": 1, "rope_scaling": None}
QWEN = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "vocab_size": 151936,
}
MISTRAL = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
PUBLISHED = {  # {model: (its config.json without what is irrelevant, our fields)}
    "Qwen/Qwen2.5-0.5B": (
        {
            **QWEN,
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
        },
        {"head_dim": None, "qkv_bias": True, "bias": False, "block_size": 32768},
    ),
    "Qwen/Qwen3-0.6B": (
        {
            **QWEN,
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
        {"head_dim": 128, "qk_norm": True, "n_kv_head": 8, "rope_base": 1e6},
    ),
    "meta-llama/Llama-3.2-1B": (
        {
            **LLAMA,
            "attention_bias": False,
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        {"head_dim": None, "rope_scaling": (32.0, 1.0, 4.0, 8192.0), "norm_eps": 1e-5},
    ),
    "meta-llama/Llama-2-7b-hf": (
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"n_kv_head": 32, "rope_base": 10_000.0, "rope_scaling": (), "tie_embeddings": False},
    ),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": (
        {
            **LLAMA,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"n_kv_head": 4, "head_dim": None, "mlp_hidden": 5632},
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        {
            **LLAMA,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
        {"n_head": 9, "n_kv_head": 3, "n_embd": 576, "rope_base": 100_000.0},
    ),
    "mistralai/Mistral-7B-v0.1": (
        {**MISTRAL, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
        {"block_size": 4096, "n_kv_head": 8},
    ),
    "mistralai/Mistral-7B-v0.3": (
        {**MISTRAL, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
        {"block_size": 32768, "rope_base": 1e6},
    ),
    "deepseek-ai/deepseek-llm-7b-base": (
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 30,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 102400,
        },
        {"vocab_size": 102400, "n_layer": 30},
    ),
}


@pytest.mark.parametrize("content, fields", PUBLISHED.values(), ids=PUBLISHED)
def test_published_config_json_is_understood(tmp_path, content, fields):
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    model_type, config, _, _ = read_config(tmp_path)
    assert model_type == content["model_type"]
    assert {field: getattr(config, field) for field in fields} == fields


@pytest.mark.parametrize(
    "model_type, reason",
    [
        ("gemma", "scaled embeddings"),
        ("gemma2", "a bound on attention scores"),
        ("gemma3_text", "two kinds of RoPE"),
        ("mixtral", "mixture of experts"),
        ("qwen3_moe", "mixture of experts"),
        ("gpt_neox", "in parallel"),
        ("smollm3", "layers without RoPE"),
        ("phi3", "supported are gpt2, llama, mistral, qwen2, qwen3"),
    ],
)
def test_model_of_another_architecture_is_refused_with_the_reason(tmp_path, model_type, reason):
    """Gemma's parts cannot be said in ModelConfig's terms, so its logits would differ."""
    content = {**PUBLISHED["meta-llama/Llama-2-7b-hf"][0], "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"model_type='{model_type}'") as refusal:
        read_config(tmp_path)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("vocab_size, is_padding", [(58, True), (128, True), (129, False)])
def test_vocabulary_may_have_unused_rows(workspace, refused, vocab_size, is_padding):
    """Up to a multiple of 128, or a tenth: DeepSeek's has 102,400 rows for 100,015 tokens."""
    make_model("Llama", {"vocab_size": vocab_size}).save_pretrained("hf")
    Path("hf/tokenizer.json").write_text(CharTokenizer(CHARS).to_json(), encoding="utf-8")
    if is_padding:
        load_for_inference("hf")
    else:
        assert "more than padding" in refused(sample.main, "--init_from=hf", "--device=cpu")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"sliding_window": "4096", "layer_types": ["sliding_attention"]}, "sliding_window='4096'"),
        ({"layer_types": [["full_attention"]]}, "layer_types=[['full_attention']]"),
        ({"layer_types": 5}, "layer_types=5"),
        ({"rope_parameters": {**LLAMA3_ROPE, "factor": -1.0}}, "rope_scaling"),
        ({"rope_parameters": {**LLAMA3_ROPE, "factor": "x"}}, "rope_scaling"),
        ({"rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}, "rope_scaling=(8.0, 4.0"),
        ({"rope_parameters": 3}, "rope_parameters=3"),
        ({"rope_parameters": None, "rope_theta": 0}, "rope_base=0"),
        ({"num_attention_heads": 0}, "no positive integer for num_attention_heads"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"head_dim": 7}, "even"),
    ],
)
def test_senseless_value_is_refused_by_name(workspace, refused, values, words):
    make_model("Llama", {}).save_pretrained("hf")
    edit_json(Path("hf/config.json"), **values)
    assert words in refused(sample.main, "--init_from=hf", "--device=cpu")
