"""Texts, tokenizers and token files. Nothing here imports torch."""
