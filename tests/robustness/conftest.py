"""The sound files of loaders.py, for the tests that damage them."""

import shutil

import pytest

import prepare
import seugpt.data.tokenizer
from seugpt.data.tokenizer import CharTokenizer
from seugpt.plots import curves
from tests.robustness.loaders import make_files


@pytest.fixture(scope="module")
def made_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_files()
    return folder


@pytest.fixture
def sound_files(made_files, workspace, monkeypatch):
    """The sound files in the current folder. GPT-2's vocabulary, which may have to be downloaded, is a small one."""
    shutil.copytree(made_files, workspace, dirs_exist_ok=True)
    vocabulary = CharTokenizer("".join(chr(200 + i) for i in range(20)))
    for module in (seugpt.data.tokenizer, prepare):
        monkeypatch.setattr(module, "gpt2_tokenizer", lambda: vocabulary)
    monkeypatch.setattr(
        curves, "losses", lambda path, runs: None
    )  # a tenth of a second, and not read here
    return workspace
