"""Fixtures: the intact files of loaders.py, for tests that damage them; runs without loss.png."""

import shutil

import pytest

import prepare
import seugpt.data.tokenizer
import train
from seugpt.data.tokenizer import CharTokenizer
from tests.robustness.loaders import write_intact_files


@pytest.fixture(autouse=True)
def no_loss_curve(monkeypatch):
    """Drawing loss.png takes most of the time of a short run, and no test here reads it."""
    monkeypatch.setattr(train, "draw_loss_curve", lambda log: None)


@pytest.fixture(scope="session")
def intact_files_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_intact_files()
    return folder


@pytest.fixture
def intact_files(intact_files_once, workspace, monkeypatch):
    """The current folder, with an intact file of every kind (see write_intact_files).

    A small vocabulary stands in for GPT-2's, which may have to be downloaded.
    """
    shutil.copytree(intact_files_once, workspace, dirs_exist_ok=True)
    vocabulary = CharTokenizer("".join(chr(200 + i) for i in range(20)))
    for module in (seugpt.data.tokenizer, prepare):
        monkeypatch.setattr(module, "gpt2_tokenizer", lambda special: vocabulary)
    return workspace
