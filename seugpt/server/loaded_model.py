"""The models that are served, each with its tokenizer."""

import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

from model import GPT, pick_dtype
from seugpt.checkpoint.pretrained import (
    build_from_checkpoint,
    config_of,
    initial_state_dict,
    load_pretrained,
    tokenizer_of,
)
from seugpt.checkpoint.storage import find_checkpoint
from seugpt.data import hub
from seugpt.errors import CheckpointError, ConfigError

UNTRAINED = "untrained"


@dataclass(eq=False)
class LoadedModel:
    """A model in eval mode on its device; `lock` is for whoever puts hooks on it.

    `path`: the source that it was loaded from; `mtime_ns`: when that was written, None if it is no
    run's.
    """

    name: str
    path: str
    model: GPT
    tokenizer: object
    step: int
    val_loss: float | None
    mtime_ns: int | None = None
    lock: object = field(default_factory=threading.Lock)

    @property
    def config(self):
        return self.model.config


class ModelLoader:
    """Loads models for a device; with `newest`, the latest.pt of a run rather than its best.pt."""

    def __init__(self, device, dtype, newest=False):
        self.device = device
        self.dtype = dtype
        self.newest = newest

    def load_all(self, sources):
        """{name: LoadedModel} of all sources, then of the first one's untrained weights, if known.

        Raises ConfigError, CheckpointError, DataError, DeviceError.
        """
        models = {}
        for source in sources:
            name = model_name(source)
            if name in models or name == UNTRAINED:
                raise ConfigError(
                    f"compare={source}: there is a model named {name} already; rename its folder"
                )
            models[name] = self.load(name, source)
        untrained = self.load_untrained(sources[0])
        if untrained is not None:
            models[UNTRAINED] = untrained
        return models

    def load(self, name, source):
        path = self.file_of(source)
        mtime_ns = modification_time(path)
        ckpt = load_pretrained(path)
        model, _ = build_from_checkpoint(ckpt)
        return LoadedModel(
            name=name,
            path=source,
            model=self.place(model),
            tokenizer=tokenizer_of(ckpt),
            step=ckpt["step"],
            val_loss=None if math.isnan(ckpt["val_loss"]) else ckpt["val_loss"],
            mtime_ns=mtime_ns,
        )

    def load_untrained(self, source):
        """The model that a run from scratch began with; None for other models."""
        ckpt = load_pretrained(self.file_of(source))
        weights = initial_state_dict(ckpt)
        if weights is None:
            return None
        model = GPT(config_of(ckpt))
        model.load_state_dict(weights)
        model = self.place(model)
        return LoadedModel(UNTRAINED, source, model, tokenizer_of(ckpt), step=0, val_loss=None)

    def place(self, model):
        dtype = pick_dtype(self.dtype, self.device)
        return model.eval().requires_grad_(False).to(self.device, dtype)

    def file_of(self, source):
        """The file to load: of a run in training the one that each evaluation writes."""
        latest = Path(source, "latest.pt")
        return str(latest) if self.newest and latest.is_file() else source

    def changed(self, loaded):
        """The time at which a model's file was written since it was loaded; None if it was not."""
        if loaded.mtime_ns is None:
            return None
        mtime_ns = modification_time(self.file_of(loaded.path))
        return None if mtime_ns == loaded.mtime_ns else mtime_ns


def model_name(source):
    """What clients call a model: the folder of its run, or its name on the hub."""
    if hub.is_hub_name(source):
        return source
    path = Path(source).resolve()
    return path.parent.name if path.is_file() else path.name


def modification_time(source):
    """When a source's checkpoint was written, in ns; None for what is no run's."""
    try:
        return find_checkpoint(source).stat().st_mtime_ns
    except (CheckpointError, OSError):
        return None
