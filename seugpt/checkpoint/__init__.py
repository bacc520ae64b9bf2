"""Checkpoints saved and loaded, and pretrained weights in every form that is read."""
