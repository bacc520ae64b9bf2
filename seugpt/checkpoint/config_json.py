"""config.json, Hugging Face's form of a ModelConfig: read and written."""

import json

from model import ModelConfig
from seugpt.cli.values import checked
from seugpt.errors import CheckpointError, ConfigError

KINDS = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama"}  # by config.json's model_type
# Keys of config.json that must be there, and what they are called here.
SIZES = {
    "gpt2": {"n_positions": "block_size", "vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head",
             "n_embd": "n_embd"},
    "llama": {"max_position_embeddings": "block_size", "vocab_size": "vocab_size", "num_hidden_layers": "n_layer",
              "num_attention_heads": "n_head", "hidden_size": "n_embd", "intermediate_size": "mlp_hidden"},
}  # fmt: skip
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu2": "relu2",
}  # of GPT-2
FIXED = {  # what must be so, because it is what this program computes
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
    "add_cross_attention": False, "is_encoder_decoder": False, "pretraining_tp": 1,
}  # fmt: skip
ROPE = {"rope_theta", "rope_type", "type"}
READ = set(
    "model_type n_inner activation_function layer_norm_epsilon tie_word_embeddings num_key_value_heads hidden_act "
    "rms_norm_eps attention_bias mlp_bias head_dim rope_theta rope_scaling rope_parameters".split()
)
HARMLESS = set(  # nothing that changes the logits
    "architectures transformers_version dtype torch_dtype use_cache bos_token_id eos_token_id pad_token_id n_ctx "
    "initializer_range resid_pdrop embd_pdrop attn_pdrop attention_dropout summary_type summary_use_proj "
    "summary_activation summary_proj_to_labels summary_first_dropout task_specific_params output_attentions "
    "output_hidden_states return_dict chunk_size_feed_forward id2label label2id problem_type is_llama_config "
    "transformers.js_config".split()
)
EXPRESSIBLE = {  # the values of each field that the architecture has; fields left out may have any
    "gpt2": {
        "position": ["learned"],
        "norm": ["layernorm"],
        "mlp": ["gelu", "gelu_exact", "relu2"],
    },
    "llama": {"position": ["rope"], "norm": ["rmsnorm"], "mlp": ["swiglu"]},
}
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def refuse_constant(name):
    raise ValueError(f"{name} is no number")


def read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def read_config(folder):
    """("gpt2" or "llama", ModelConfig, halves_without_bias) of config.json. Raises CheckpointError: what is wrong."""
    path = folder / "config.json"
    given = read_json(path)
    kind = KINDS.get(str(given.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{path}: model_type={given.get('model_type')!r} is not supported; gpt2 and llama are"
        )
    missing = [key for key in SIZES[kind] if type(given.get(key)) is not int]
    if missing:
        raise CheckpointError(f"{path} has no number for {', '.join(missing)}")
    try:
        refused = unsupported(given, kind)
        if refused:
            named = ", ".join(f"{key}={value!r}" for key, value in refused.items())
            raise CheckpointError(f"{path} asks for what this program does not compute: {named}")
        fields = {ours: given[theirs] for theirs, ours in SIZES[kind].items()}
        fields |= gpt2_fields(given) if kind == "gpt2" else llama_fields(given)
        return kind, ModelConfig(**checked(ModelConfig, fields)), halves_without_bias(given, kind)
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def unsupported(given, kind):
    """The keys of config.json, with their values, that would make other logits than this program's."""
    refused = {key: value for key, value in given.items() if key in FIXED and value != FIXED[key]}
    if given["model_type"] == "mistral" and "sliding_window" not in given:
        refused["sliding_window"] = "4096, which transformers takes where it is not given"
    known = {*FIXED, *READ, *HARMLESS, *SIZES[kind]}
    # A key that nobody knows does nothing while it is off.
    refused |= {
        key: value
        for key, value in given.items()
        if key not in known and value and not key.startswith("_")
    }
    activation, values = (
        ("activation_function", ACTIVATIONS) if kind == "gpt2" else ("hidden_act", ["silu"])
    )
    if activation in given and given[activation] not in list(values):
        refused[activation] = given[activation]
    for key in ("rope_scaling", "rope_parameters"):
        rope = given.get(key) or {}
        if {rope.get("type", "default"), rope.get("rope_type", "default")} != {"default"} or set(
            rope
        ) - ROPE:
            refused[key] = rope
    if kind == "llama" and given.get("head_dim") not in (
        None,
        given["hidden_size"] // given["num_attention_heads"],
    ):
        refused["head_dim"] = given["head_dim"]
    return refused


def halves_without_bias(given, kind):
    """Parts of the names of those layers that need have no bias where the ModelConfig has: Llama may have one half."""
    if kind == "gpt2":
        return ()
    flags = {".attn.": given.get("attention_bias"), ".mlp.": given.get("mlp_bias")}
    return tuple(part for part, flag in flags.items() if not flag)


def gpt2_fields(given):
    return {
        "bias": True,
        "mlp": ACTIVATIONS[given.get("activation_function", "gelu_new")],
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


def architecture(model_config):
    """ "gpt2" or "llama". Raises ConfigError that names what each of them lacks."""
    lacks = {}
    for kind, values in EXPRESSIBLE.items():
        fields = {field: getattr(model_config, field) for field in values}
        lacks[kind] = [
            f"{field}={value}" for field, value in fields.items() if value not in values[field]
        ]
        if kind == "gpt2" and model_config.kv_heads != model_config.n_head:
            lacks[kind].append(f"n_kv_head={model_config.n_kv_head}")
        lacks[kind] += ["qk_norm=True"] if model_config.qk_norm else []
        lacks[kind] += (
            [f"logit_softcap={model_config.logit_softcap}"] if model_config.logit_softcap else []
        )
    for kind, fields in lacks.items():
        if not fields:
            return kind
    reasons = "; ".join(
        f"{CLASSES[kind]} has no {', '.join(fields)}" for kind, fields in lacks.items()
    )
    raise ConfigError(f"transformers cannot express this model: {reasons}")


def config_json(kind, c, end):
    """config.json of the ModelConfig `c`; end: the id of the end of a text, or None."""
    given = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "dtype": "float32",
    }
    given |= {
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": end,
        "eos_token_id": end,
        "use_cache": True,
    }
    if kind == "gpt2":
        names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        given |= {
            "n_positions": c.block_size,
            "n_embd": c.n_embd,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
        }
        given |= {
            "n_inner": c.hidden,
            "activation_function": names[c.mlp],
            "layer_norm_epsilon": c.norm_eps,
        }
        return given | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
    given |= {
        "max_position_embeddings": c.block_size,
        "hidden_size": c.n_embd,
        "num_hidden_layers": c.n_layer,
    }
    given |= {
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
    }
    given |= {"intermediate_size": c.hidden, "hidden_act": "silu", "rms_norm_eps": c.norm_eps}
    given |= {"attention_bias": c.bias, "mlp_bias": c.bias, "attention_dropout": c.dropout}
    # Both forms of the base: rope_theta for transformers 4, rope_parameters for 5.
    return given | {
        "rope_theta": c.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
    }
