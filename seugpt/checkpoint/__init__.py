"""Checkpoints saved and loaded, and pretrained weights in every form that can be read."""

from seugpt.checkpoint.pretrained import load_for_inference, load_pretrained
from seugpt.checkpoint.storage import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "load_for_inference", "load_pretrained", "save_checkpoint"]
