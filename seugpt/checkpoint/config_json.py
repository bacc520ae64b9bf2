"""Hugging Face's config.json, read into a ModelConfig and written from one.

GPT-2 and the Llama family can be read: Llama, Mistral, Qwen2 and Qwen3, and what calls itself by
one of these names. Whatever else a config.json asks for is refused by name, as the logits would
differ.
"""

from dataclasses import replace

from model import ModelConfig
from seugpt.cli.values import coerce_fields, to_repr
from seugpt.data.json_file import read_json
from seugpt.errors import CheckpointError, ConfigError

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
REFUSED = {  # {model_type: what it has that ModelConfig cannot say}
    "gemma": "norms that add 1 to their weight, and scaled embeddings",
    "gemma2": "norms after attention and MLP, and a bound on attention scores",
    "gemma3": "norms after attention and MLP, and layers with two kinds of RoPE",
    "gemma3_text": "norms after attention and MLP, and layers with two kinds of RoPE",
    "gpt_neox": "attention and MLP in parallel",
    "phi": "attention and MLP in parallel",
    "smollm3": "layers without RoPE",
    "mixtral": "a mixture of experts",
    "qwen2_moe": "a mixture of experts",
    "qwen3_moe": "a mixture of experts",
}
GPT2_SIZES = {  # {required integer of config.json: our field}
    "n_positions": "block_size",
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
LLAMA_SIZES = {
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "mlp_hidden",
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
ROPE_NUMBERS = {  # {rope_type: config.json's names of the numbers in rope_scaling}
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
OPTIONAL = set(
    "model_type n_inner activation_function layer_norm_epsilon tie_word_embeddings "
    "num_key_value_heads hidden_act rms_norm_eps attention_bias mlp_bias head_dim rope_theta "
    "rope_scaling rope_parameters sliding_window use_sliding_window layer_types".split()
)
IRRELEVANT = set(  # keys that do not change the logits
    "architectures transformers_version dtype torch_dtype use_cache bos_token_id "
    "eos_token_id pad_token_id n_ctx initializer_range resid_pdrop embd_pdrop "
    "attn_pdrop attention_dropout summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout task_specific_params "
    "output_attentions output_hidden_states return_dict chunk_size_feed_forward "
    "id2label label2id problem_type is_llama_config transformers.js_config "
    "max_window_layers".split()
)
GPT2_FIELDS = {  # {field: the values that GPT2LMHeadModel has}
    "position": ["learned"],
    "norm": ["layernorm"],
    "mlp": ["gelu", "gelu_exact", "relu2"],
    "qk_norm": [False],
    "head_dim": [None],
}
LLAMA_FIELDS = {"position": ["rope"], "norm": ["rmsnorm"], "mlp": ["swiglu"]}
LAYER_TYPES = ("full_attention", "sliding_attention")
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # transformers' defaults; Llama's: n_head
# By model_type, the plainest first; any other field may have any value. Not Qwen2, a Llama without
# biases in one matrix: transformers 5 gives it Qwen2Tokenizer, whatever tokenizer its folder has.
EXPRESSIBLE = {
    "gpt2": GPT2_FIELDS,
    "llama": {**LLAMA_FIELDS, "qk_norm": [False]},
    "qwen3": {**LLAMA_FIELDS, "qk_norm": [True], "bias": [False]},
}


def read_config(folder):
    """(model_type, ModelConfig, parts of names whose biases may be missing, notes) of config.json.

    Raises CheckpointError.
    """
    path = folder / "config.json"
    given = read_json(path)
    model_type = check_model_type(given.get("model_type"), path)
    sizes = GPT2_SIZES if model_type == "gpt2" else LLAMA_SIZES
    missing = [key for key in sizes if type(given.get(key)) is not int or given[key] < 1]
    if missing:
        raise CheckpointError(f"{path} has no positive integer for {', '.join(missing)}")
    try:
        unsupported = find_unsupported(given, model_type, sizes)
        if unsupported:
            named = ", ".join(f"{key}={to_repr(value)}" for key, value in unsupported.items())
            raise CheckpointError(f"{path} asks for unsupported features: {named}")
        fields = {ours: given[theirs] for theirs, ours in sizes.items()}
        fields |= gpt2_fields(given) if model_type == "gpt2" else llama_fields(given, model_type)
        config = ModelConfig(**coerce_fields(ModelConfig, fields))
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    notes = []
    if config.block_size < given[next(iter(sizes))]:
        notes.append(f"block_size is {config.block_size}, the sliding window of {path}")
    return model_type, config, missing_biases(given, model_type), notes


def check_model_type(model_type, path):
    """`model_type` if it is supported. Raises CheckpointError, saying what cannot be computed."""
    if isinstance(model_type, str) and model_type in CLASSES:
        return model_type
    reason = ""
    if isinstance(model_type, str) and model_type in REFUSED:
        reason = f" ({REFUSED[model_type]})"
    raise CheckpointError(
        f"{path}: model_type={to_repr(model_type)} is not supported{reason}; "
        f"supported are {', '.join(CLASSES)}"
    )


def find_unsupported(given, model_type, sizes):
    """{key: value} of what would make the logits differ from this program's."""
    unsupported = {
        key: value
        for key, value in given.items()
        if key in SUPPORTED_VALUES and value != SUPPORTED_VALUES[key]
    }
    known = {*SUPPORTED_VALUES, *OPTIONAL, *IRRELEVANT, *sizes}
    for key, value in given.items():
        is_on = value and not key.startswith("_")  # an unknown key that is off does nothing
        if is_on and key not in known:
            unsupported[key] = value
    activation_key = "activation_function" if model_type == "gpt2" else "hidden_act"
    activations = list(GPT2_ACTIVATIONS) if model_type == "gpt2" else ["silu"]
    if activation_key in given and given[activation_key] not in activations:
        unsupported[activation_key] = given[activation_key]
    if model_type == "gpt2":
        return unsupported
    if not isinstance(given.get("sliding_window"), int | None):
        unsupported["sliding_window"] = given["sliding_window"]
    types = given.get("layer_types")
    is_list = isinstance(types, list)
    if types is not None and not (is_list and all(each in LAYER_TYPES for each in types)):
        unsupported["layer_types"] = types
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(given.get(key), dict | None):
            return {**unsupported, key: given[key]}
    rope = rope_parameters(given)
    numbers = ROPE_NUMBERS.get(rope.get("rope_type"))
    if numbers is None or set(rope) - {"rope_theta", "rope_type", "type"} != set(numbers):
        key = "rope_parameters" if given.get("rope_parameters") else "rope_scaling"
        unsupported[key] = given[key]
    return unsupported


def rope_parameters(given):
    """RoPE's parameters, which transformers 5 writes together and earlier versions apart."""
    rope = {"rope_theta": given.get("rope_theta"), "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        found = given.get(key) or {}
        if "type" in found:
            rope["rope_type"] = found["type"]
        rope |= found
    return rope


def missing_biases(given, model_type):
    """Parts of names whose biases may be missing: Llama can have them in attention or MLP alone."""
    if model_type in ("gpt2", "qwen2"):
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


def llama_fields(given, model_type):
    rope = rope_parameters(given)
    head_dim = given.get("head_dim", 128 if model_type == "qwen3" else None)
    num_heads, width = given["num_attention_heads"], given["hidden_size"]
    if isinstance(head_dim, int) and head_dim * num_heads == width:
        head_dim = None
    return {
        "block_size": context_length(given, model_type),
        "head_dim": head_dim,
        "position": "rope",
        "rope_base": 10_000.0 if rope.get("rope_theta") is None else rope["rope_theta"],
        "rope_scaling": tuple(rope[name] for name in ROPE_NUMBERS[rope["rope_type"]]),
        "n_kv_head": given.get("num_key_value_heads", KV_HEADS.get(model_type)),
        "norm": "rmsnorm",
        "norm_eps": given.get("rms_norm_eps", 1e-6),
        "mlp": "swiglu",
        "bias": bool(given.get("attention_bias") or given.get("mlp_bias")),
        "qkv_bias": True if model_type == "qwen2" else None,
        "qk_norm": model_type == "qwen3",
        "tie_embeddings": given.get("tie_word_embeddings", False),
    }


def context_length(given, model_type):
    """The length up to which every token sees all earlier ones: that of a sliding window, if any.

    Past block_size the KV cache rolls, which is what such a window does.
    """
    length = given["max_position_embeddings"]
    window = given.get("sliding_window", 4096 if model_type == "mistral" else None)
    is_used = given.get("use_sliding_window", model_type == "mistral")
    if "layer_types" in given:
        is_used = "sliding_attention" in (given["layer_types"] or ())
    return min(length, window) if is_used and window else length


def architecture_of(config):
    """The model_type that can express a ModelConfig. Raises ConfigError with what is lacking."""
    if config.n_head * config.head_size == config.n_embd:
        config = replace(config, head_dim=None)
    lacking = {each: missing_values(config, each) for each in EXPRESSIBLE}
    closest = min(reversed(lacking), key=lambda each: len(lacking[each]))
    if lacking[closest]:
        raise ConfigError(
            "transformers cannot express this model: the closest class, "
            f"{CLASSES[closest]}, has no {', '.join(lacking[closest])}"
        )
    return closest


def missing_values(config, model_type):
    """The fields of a config that a model_type cannot have, as ["norm=layernorm", ...]."""
    missing = [
        field
        for field, values in EXPRESSIBLE[model_type].items()
        if getattr(config, field) not in values
    ]
    if model_type == "gpt2" and config.kv_heads != config.n_head:
        missing.append("n_kv_head")
    if config.logit_softcap:
        missing.append("logit_softcap")
    return [f"{field}={getattr(config, field)}" for field in missing]


def to_config_json(model_type, config, dtype, special_ids):
    """The content of config.json for a ModelConfig.

    `dtype`: the weights', as in "bfloat16"; `special_ids`: {"bos_token_id": ..., ...}.
    """
    content = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "dtype": dtype,
        "tie_word_embeddings": config.tie_embeddings,
        **special_ids,
        "use_cache": True,
    }
    return content | (to_gpt2_json(config) if model_type == "gpt2" else to_llama_json(config))


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


def has_attention_bias(config):
    """In Llama and Qwen3 all four matrices of attention have biases, or none."""
    return config.bias or config.has_qkv_bias


def to_llama_json(config):
    """Also for Qwen3, which has the same keys."""
    rope_type = {len(names): rope_type for rope_type, names in ROPE_NUMBERS.items()}
    rope = {"rope_type": rope_type[len(config.rope_scaling)], "rope_theta": config.rope_base}
    scaling = dict(zip(ROPE_NUMBERS[rope["rope_type"]], config.rope_scaling, strict=True))
    content = {
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_hidden_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": has_attention_bias(config),
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "rope_theta": config.rope_base,  # for transformers 4; rope_parameters for 5
        "rope_parameters": rope | scaling,
    }
    if scaling:
        content["rope_scaling"] = {"rope_type": rope["rope_type"], **scaling}
    return content
