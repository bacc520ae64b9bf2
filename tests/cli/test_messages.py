"""The ten most common mistakes, each with its whole message.

No other test compares whole messages. After a deliberate change of wording, read the new message as
a student would, then copy it here.
"""

import sys
from pathlib import Path

import pytest

import prepare
import sample
import train


@pytest.fixture
def message_of(monkeypatch, capsys):
    """message_of(main, *argv): everything a command prints before it ends with exit code 2."""

    def call(main, *argv):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(list(argv))
        assert exit.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return call


def test_a_typo_in_an_option(message_of):
    assert message_of(train.main, "--learing_rate=1e-3") == (
        "train.py: --learing_rate=1e-3: no such option; did you mean --learning_rate?\n"
    )


def test_a_value_of_the_wrong_type(message_of):
    assert message_of(train.main, "--max_iters=many") == (
        "train.py: max_iters='many': expected an integer [--max_iters=many]\n"
    )


def test_several_problems_at_once(workspace, message_of):
    Path("mine.py").write_text("dropout = 1.5\nn_emdb = 64\n", encoding="utf-8")
    assert message_of(train.main, "mine.py", "--n_layer=two", "--beta1") == (
        "train.py: 4 problems:\n"
        "  - dropout=1.5: must be at least 0 and less than 1 [mine.py]\n"
        "  - mine.py: n_emdb: no such option; did you mean n_embd?\n"
        "  - n_layer='two': expected an integer [--n_layer=two]\n"
        "  - --beta1: expected one argument, as in --beta1=VALUE\n"
    )


def test_a_missing_data_set(tiny, message_of):
    assert message_of(train.main, "--dataset=poems", "--device=cpu") == (
        f"train.py: there is no data set in {Path('data/poems')} (no meta.json, train.bin, "
        "*_train_*.npy or *_train_*.bin). Prepare it with: python prepare.py poems "
        "--input=FILE_OR_FOLDER --tokenizer=char (or bpe, or gpt2). Prepared so far, for "
        "--dataset: tiny\n"
    )


def test_an_unknown_character_in_the_prompt(trained, message_of):
    assert message_of(sample.main, "--start=Olá", "--device=cpu") == (
        "sample.py: --start has characters that the model never saw in training: not among the 14 "
        "characters of this vocabulary: 'O' (U+004F), 'l' (U+006C), 'á' (U+00E1). It knows: "
        "'\\n ;aceimnouvãç'\n"
    )


def test_a_missing_checkpoint(workspace, message_of):
    assert message_of(sample.main, "--out_dir=out-poems", "--device=cpu") == (
        "sample.py: there is no checkpoint out-poems. A run writes one: python train.py CONFIG "
        "--out_dir=out-poems\n"
    )


def test_a_width_that_the_heads_do_not_divide(message_of):
    assert message_of(train.main, "--n_embd=100", "--n_head=6") == (
        "train.py: n_embd=100 must be divisible by n_head=6; nearest: 102 [--n_embd=100, "
        "--n_head=6]\n"
    )


def test_a_folder_instead_of_a_config_file(workspace, message_of):
    Path("out-poems").mkdir()
    assert message_of(train.main, "out-poems") == (
        "train.py: out-poems is a folder, not a config file; did you mean --out_dir=out-poems?\n"
    )


def test_a_text_that_is_not_utf8(workspace, message_of):
    Path("poems.txt").write_bytes("não".encode("latin-1"))
    assert message_of(prepare.main, "poems", "--input=poems.txt") == (
        "prepare.py: poems.txt is not UTF-8 (byte 0xe3 at offset 1). If it is Latin-1, as old "
        "Portuguese texts often are: iconv -f latin1 -t utf-8 'poems.txt' > new.txt\n"
    )


def test_a_resume_with_another_architecture(trained, message_of):
    assert message_of(train.main, "--init_from=resume", "--n_layer=3", "--n_head=4") == (
        f"train.py: {Path('out/latest.pt')} has another architecture: n_layer=3 (stored: 2), "
        "n_head=4 (stored: 2). Drop these options, or train from scratch with "
        "--init_from=scratch\n"
    )
