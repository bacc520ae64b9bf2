"""Tokenizers made as those of well-known models are."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from seugpt.data.tokenizer_json import CHAR_TO_BYTE
from tests.helpers import TEXT


def llama3_like():
    """A byte-level BPE like Llama 3's: its own word pattern, and a begin-of-text token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    pattern = tokenizers.Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    split_words = pre_tokenizers.Split(pattern, "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(CHAR_TO_BYTE),
        special_tokens=["<|begin|>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer


def llama2_like():
    """A sentencepiece-style BPE like Llama 2's.

    It puts a space in front of each text, writes spaces as U+2581, and falls back to single bytes
    for unknown characters.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ["\u2581", *"omeninvuaçã", "\u2581o", "\u2581m", "\u2581v", "en", "\u2581men"]:
        vocab.setdefault(token, len(vocab))
    merges = [("\u2581", "o"), ("\u2581", "m"), ("\u2581", "v"), ("e", "n"), ("\u2581m", "en")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    to_spaces = decoders.Replace("\u2581", " ")
    strip_first_space = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(
        [to_spaces, decoders.ByteFallback(), decoders.Fuse(), strip_first_space]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
