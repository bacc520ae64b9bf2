"""Fixture: one tokenizer of each kind that prepare.py can make."""

import pytest

from seugpt.data.tokenizer import CharTokenizer, train_bpe
from tests.helpers import TEXT, gpt2_or_skip


@pytest.fixture(params=["char", "bpe", "gpt2"])
def tokenizer(request):
    if request.param == "char":
        return CharTokenizer("".join(sorted(set(TEXT))))
    return gpt2_or_skip() if request.param == "gpt2" else train_bpe([TEXT * 3], 320)
