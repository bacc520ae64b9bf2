"""Texts, tokenizers and data sets. Only dataset.py imports torch, so prepare.py starts quickly."""
