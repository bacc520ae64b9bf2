"""Copy weights into a model of another architecture, as far as they fit.

The outputs always change.
"""

import re

import torch


@torch.no_grad()
def adapt_state_dict(model, state_dict, source_config):
    """Copy into `model` what fits of `state_dict`, the weights of a model with `source_config`.

    Returns {action: [parameter names]} in words, where h.* stands for all blocks.
    """
    actions = {}
    params = dict(model.named_parameters())  # a tied matrix appears once, as wte.weight
    for name, param in params.items():
        action = "new"
        if name in state_dict:
            action = adapt_parameter(name, state_dict[name], param, source_config, model.config)
        actions.setdefault(action, set()).add(generic_name(name))
    tied = {"lm_head.weight"} if source_config.tie_embeddings else set()
    for name in state_dict.keys() - params.keys() - tied:
        actions.setdefault("dropped", set()).add(generic_name(name))
    return {action: sorted(names) for action, names in actions.items()}


def generic_name(name):
    return re.sub(r"h\.\d+\.", "h.*.", name)


def adapt_parameter(name, source, param, source_config, target_config):
    """Write into `param` what it can take of the tensor `source`.

    Returns what was done, in words.
    """
    if ".attn.c_attn." in name and source_config.kv_heads != target_config.kv_heads:
        param.copy_(pool_kv_heads(source, source_config, target_config))
        return describe_pooling(source_config.kv_heads, target_config.kv_heads)
    has_mlp_size = ".mlp." in name and not name.endswith("c_proj.bias")
    if has_mlp_size and mlp_differs(source_config, target_config):
        return adapt_mlp(name, source, param, source_config, target_config)
    if name == "wpe.weight" and target_config.block_size < source_config.block_size:
        param.copy_(source[: target_config.block_size])
        return f"cut to {target_config.block_size} positions"
    param.copy_(source)
    return "copied"


def describe_pooling(source_heads, target_heads):
    if source_heads % target_heads == 0:
        action = "pooled"
    else:
        action = "mixed" if target_heads % source_heads else "repeated"
    return f"key/value heads {action} from {source_heads} to {target_heads}"


def pool_kv_heads(source, source_config, target_config):
    """c_attn's rows for another number of key/value heads: the means of those replaced (GQA)."""
    hs = source_config.head_size
    sizes = [n * hs for n in (source_config.n_head, source_config.kv_heads, source_config.kv_heads)]
    q, *keys_and_values = source.split(sizes)
    group = source_config.n_head // source_config.kv_heads
    pooled = []
    for part in keys_and_values:
        heads = part.view(source_config.kv_heads, hs, -1)  # (source nkv, hs, C or 1)
        heads = heads.repeat_interleave(group, dim=0)  # (nh, hs, C or 1)
        heads = heads.view(target_config.kv_heads, -1, *heads.shape[1:])
        heads = heads.mean(dim=1)  # (target nkv, hs, C or 1)
        pooled.append(heads.flatten(0, 1).view(-1, *source.shape[1:]))
    return torch.cat((q, *pooled))


def mlp_differs(source_config, target_config):
    same_size = source_config.mlp_hidden_size == target_config.mlp_hidden_size
    same_gating = (source_config.mlp == "swiglu") == (target_config.mlp == "swiglu")
    return not (same_size and same_gating)


def adapt_mlp(name, source, param, source_config, target_config):
    """The first channels of an MLP of another size or kind.

    A new gate and its value both start as what was there, silu(x) * x: in a small model that
    started and ended at a lower loss than a new value beside the old gate.
    """
    source_size = source_config.mlp_hidden_size
    target_size = target_config.mlp_hidden_size
    n = min(source_size, target_size)
    action = f"{n} of {source_size} channels kept"
    if target_size > n:
        action += f", {target_size - n} new"
    if name.endswith("c_proj.weight"):
        param[:, :n] = source[:, :n]
        return action
    source_gated = source_config.mlp == "swiglu"
    target_gated = target_config.mlp == "swiglu"
    for part in range(2 if target_gated else 1):
        start = part * source_size if source_gated else 0
        param[part * target_size : part * target_size + n] = source[start : start + n]
    if target_gated and not source_gated:
        action += ", as gate and as value"
    if source_gated and not target_gated:
        action += " of the gate, value dropped"
    return action
