"""The shapes of a GPT's parameters, without the memory that building it would take."""

import torch
from torch.overrides import TorchFunctionMode

from model import GPT
from seugpt.errors import CheckpointError


class SkipInit(TorchFunctionMode):
    """Skips initial values: on the meta device, drawing them would only load torch's compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **kwargs)


def parameter_shapes(config, source):
    """{name: shape} of the parameters of a model; a tied one appears under its first name.

    Raises CheckpointError, naming `source`, for sizes that no model can have.
    """
    try:
        with torch.device("meta"), SkipInit():
            return {name: param.shape for name, param in GPT(config).named_parameters()}
    except (RuntimeError, TypeError) as error:  # the product of the sizes exceeds 64 bits
        raise CheckpointError(f"{source}: the sizes exceed 64 bits: {error}") from error
