"""Hugging Face's config.json, read into a ModelConfig and written from one."""

import json

from model import ModelConfig
from seugpt.cli.values import coerce_fields
from seugpt.errors import CheckpointError, ConfigError
from seugpt.files import read_text

KINDS = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama"}  # by config.json's model_type
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
REQUIRED = {  # {kind: {required integer of config.json: our field}}
    "gpt2": {
        "n_positions": "block_size",
        "vocab_size": "vocab_size",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
    },
    "llama": {
        "max_position_embeddings": "block_size",
        "vocab_size": "vocab_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "mlp_hidden",
    },
}
GPT2_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu2": "relu2",
}
SUPPORTED_VALUES = {  # must have these values, because that is what this program computes
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pretraining_tp": 1,
}
ROPE_KEYS = {"rope_theta", "rope_type", "type"}
OPTIONAL = set(
    "model_type n_inner activation_function layer_norm_epsilon "
    "tie_word_embeddings num_key_value_heads hidden_act rms_norm_eps "
    "attention_bias mlp_bias head_dim rope_theta rope_scaling rope_parameters".split()
)
IRRELEVANT = set(  # keys that do not change the logits
    "architectures transformers_version dtype torch_dtype use_cache bos_token_id "
    "eos_token_id pad_token_id n_ctx initializer_range resid_pdrop embd_pdrop "
    "attn_pdrop attention_dropout summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout task_specific_params "
    "output_attentions output_hidden_states return_dict chunk_size_feed_forward "
    "id2label label2id problem_type is_llama_config transformers.js_config".split()
)
EXPRESSIBLE = {  # {kind: {field: values that it has}}; any other field may have any value
    "gpt2": {
        "position": ["learned"],
        "norm": ["layernorm"],
        "mlp": ["gelu", "gelu_exact", "relu2"],
    },
    "llama": {"position": ["rope"], "norm": ["rmsnorm"], "mlp": ["swiglu"]},
}


def reject_constant(name):
    raise ValueError(f"{name} is not a number")


def read_json(path):
    """The object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(read_text(path), parse_constant=reject_constant)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return content


def read_config(folder):
    """("gpt2" or "llama", ModelConfig, missing biases) of config.json; see missing_biases.

    Raises CheckpointError.
    """
    path = folder / "config.json"
    given = read_json(path)
    kind = KINDS.get(str(given.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{path}: model_type={given.get('model_type')!r} is not supported; gpt2 and llama are"
        )
    missing = [key for key in REQUIRED[kind] if type(given.get(key)) is not int]
    if missing:
        raise CheckpointError(f"{path} has no integer for {', '.join(missing)}")
    try:
        unsupported = find_unsupported(given, kind)
        if unsupported:
            named = ", ".join(f"{key}={value!r}" for key, value in unsupported.items())
            raise CheckpointError(f"{path} asks for unsupported features: {named}")
        fields = {ours: given[theirs] for theirs, ours in REQUIRED[kind].items()}
        fields |= gpt2_fields(given) if kind == "gpt2" else llama_fields(given)
        config = ModelConfig(**coerce_fields(ModelConfig, fields))
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    return kind, config, missing_biases(given, kind)


def find_unsupported(given, kind):
    """{key: value} of what would make the logits differ from this program's."""
    unsupported = {
        key: value
        for key, value in given.items()
        if key in SUPPORTED_VALUES and value != SUPPORTED_VALUES[key]
    }
    if given["model_type"] == "mistral" and "sliding_window" not in given:
        unsupported["sliding_window"] = "4096, transformers' default"
    known = {*SUPPORTED_VALUES, *OPTIONAL, *IRRELEVANT, *REQUIRED[kind]}
    for key, value in given.items():
        is_on = value and not key.startswith("_")  # an unknown key that is off does nothing
        if is_on and key not in known:
            unsupported[key] = value
    activation_key = "activation_function" if kind == "gpt2" else "hidden_act"
    activations = list(GPT2_ACTIVATIONS) if kind == "gpt2" else ["silu"]
    if activation_key in given and given[activation_key] not in activations:
        unsupported[activation_key] = given[activation_key]
    for key in ("rope_scaling", "rope_parameters"):
        rope = given.get(key) or {}
        types = {rope.get("type", "default"), rope.get("rope_type", "default")}
        if types != {"default"} or set(rope) - ROPE_KEYS:
            unsupported[key] = rope
    if kind == "llama":
        head_size = given["hidden_size"] // given["num_attention_heads"]
        if given.get("head_dim") not in (None, head_size):
            unsupported["head_dim"] = given["head_dim"]
    return unsupported


def missing_biases(given, kind):
    """Modules whose biases may be missing: Llama can have biases in attention or MLP alone."""
    if kind == "gpt2":
        return ()
    flags = {".attn.": given.get("attention_bias"), ".mlp.": given.get("mlp_bias")}
    return tuple(part for part, flag in flags.items() if not flag)


def gpt2_fields(given):
    return {
        "bias": True,
        "mlp": GPT2_ACTIVATIONS[given.get("activation_function", "gelu_new")],
        "mlp_hidden": given.get("n_inner"),
        "norm_eps": given.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": given.get("tie_word_embeddings", True),
    }


def llama_fields(given):
    rope = {"rope_theta": given.get("rope_theta"), **(given.get("rope_parameters") or {})}
    return {
        "position": "rope",
        "rope_base": rope.get("rope_theta") or 10_000.0,
        "n_kv_head": given.get("num_key_value_heads"),
        "norm": "rmsnorm",
        "norm_eps": given.get("rms_norm_eps", 1e-6),
        "mlp": "swiglu",
        "bias": bool(given.get("attention_bias") or given.get("mlp_bias")),
        "tie_embeddings": given.get("tie_word_embeddings", False),
    }


def architecture_of(config):
    """ "gpt2" or "llama". Raises ConfigError naming what each of them lacks."""
    lacking = {}
    for kind, values in EXPRESSIBLE.items():
        lacking[kind] = [
            f"{field}={getattr(config, field)}"
            for field in values
            if getattr(config, field) not in values[field]
        ]
        if kind == "gpt2" and config.kv_heads != config.n_head:
            lacking[kind].append(f"n_kv_head={config.n_kv_head}")
        if config.qk_norm:
            lacking[kind].append("qk_norm=True")
        if config.logit_softcap:
            lacking[kind].append(f"logit_softcap={config.logit_softcap}")
        if not lacking[kind]:
            return kind
    reasons = [f"{CLASSES[kind]} has no {', '.join(fields)}" for kind, fields in lacking.items()]
    raise ConfigError(f"transformers cannot express this model: {'; '.join(reasons)}")


def to_config_json(kind, config, end_of_text_id):
    """The content of config.json for a ModelConfig; `end_of_text_id` may be None."""
    content = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "dtype": "float32",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "use_cache": True,
    }
    return content | (to_gpt2_json(config) if kind == "gpt2" else to_llama_json(config))


def to_gpt2_json(config):
    activations = {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}
    return {
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_hidden_size,
        "activation_function": activations[config.mlp],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


def to_llama_json(config):
    return {
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_hidden_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "rope_theta": config.rope_base,  # for transformers 4; rope_parameters for 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }
