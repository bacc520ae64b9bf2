"""The optimizers: AdamW; or Muon for the blocks' matrices, and AdamW for the rest."""

import torch

from seugpt.training.muon import Muon, muon_param_groups
from seugpt.training.sharding import is_sharded, shard_like

# What an optimizer stores for each parameter; everything but the step has the parameter's shape.
STATE_KEYS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


def make_optimizers(model, config, device, dtype):
    """[AdamW], or [AdamW, Muon] for optimizer=muon; each parameter belongs to exactly one of them.

    A group's learning rate is get_lr(step) times its lr_scale. AdamW (1711.05101) decays matrices
    alone: pulling a bias or a norm's weight to zero regularizes nothing. Course: page 4.
    """
    muon_groups = muon_param_groups(model) if config.optimizer == "muon" else []
    in_muon = {id(p) for group in muon_groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in in_muon]
    matrices = [p for p in rest if p.dim() >= 2]
    vectors = [p for p in rest if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    betas = (config.beta1, config.beta2)
    fused = device.type in ("cpu", "cuda", "mps")  # one kernel for all parameters
    optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)]
    if muon_groups:
        lr_scale = config.muon_lr / config.learning_rate if config.learning_rate else 0.0
        optimizers.append(
            Muon(muon_groups, config.muon_lr, lr_scale, config.beta1, config.weight_decay, dtype)
        )
    covered = [id(p) for optimizer in optimizers for p in parameters_of(optimizer)]
    assert len(covered) == len(set(covered)) == len(list(model.parameters()))
    return optimizers


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def restore_optimizers(optimizers, state_dicts, step):
    """Load the state after `step` steps, but keep the hyperparameters as they are now.

    load_state_dict restores both, and accepts state of any shape; a fused kernel would then write
    out of bounds. Raises ValueError and the like if the state does not belong to these parameters.
    """
    for optimizer, state_dict in zip(optimizers, state_dicts, strict=True):
        state_dict = shard_state(state_dict, parameters_of(optimizer))
        current = [without_params(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(state_dict)
        for group, hyperparameters in zip(optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)
        if step:
            check_state(optimizer)


def shard_state(state_dict, params):
    """A state_dict of whole tensors, with a rank's shards of those of sharded parameters."""
    state = dict(state_dict["state"])
    for index, values in state.items():
        param = params[index]
        if is_sharded(param):
            state[index] = {
                key: value if key == "step" else shard_like(value, param)
                for key, value in values.items()
            }
    return {**state_dict, "state": state}


def without_params(group):
    return {key: value for key, value in group.items() if key != "params"}


def check_state(optimizer):
    """Raise ValueError unless every state tensor has its parameter's shape."""
    for param in parameters_of(optimizer):
        for key in STATE_KEYS[type(optimizer)]:
            tensor = optimizer.state[param][key]
            expected = () if key == "step" else tuple(param.shape)
            if tuple(tensor.shape) != expected or not tensor.is_contiguous():
                raise ValueError(f"{key} has shape {tuple(tensor.shape)}, its parameter {expected}")
