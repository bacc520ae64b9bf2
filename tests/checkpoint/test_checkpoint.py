"""What is written is whole, and what is read is data: never code, never a guess."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import train
from seugpt.checkpoint import pretrained as weights
from seugpt.checkpoint import storage as checkpoint
from seugpt.errors import CheckpointError


@pytest.fixture
def trained(tiny, run):
    train.main(run(max_iters=2))
    return tiny


@pytest.mark.parametrize(
    "theirs, choice", [({"kind": "gpt2"}, "gpt2"), ({"kind": "bpe"}, "data/web/meta.json")]
)
def test_the_advice_on_another_vocabulary_names_one_that_is_there(theirs, choice):
    """Tokens that were prepared elsewhere have no meta.json to name."""
    content = {"path": "out/best.pt", "tokenizer": theirs, "train_config": {"dataset": "web"}}
    with pytest.raises(
        CheckpointError, match=f"data/poems has another vocabulary .*--tokenizer={choice}$"
    ):
        weights.check_tokenizer(content, {"kind": "char", "chars": "ab"}, "poems")


def test_best_holds_what_a_model_needs_and_latest_what_a_run_needs(trained):
    best, latest = (
        checkpoint.load("out/best.pt"),
        checkpoint.load("out/latest.pt", checkpoint.TO_RESUME),
    )
    since = {
        "best_step",
        "worse",
        "evaluated_on",
        "fingerprint",
    }  # checkpoints of before go on without
    read = {"path", "written"}
    assert (
        set(best) == checkpoint.TO_SPEAK | read
        and set(latest) == checkpoint.TO_RESUME | since | read
    )
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in best["model"])
    assert Path("out/best.pt").stat().st_size < Path("out/latest.pt").stat().st_size / 2


def test_a_model_comes_back_as_it_was(trained):
    content = checkpoint.load("out/best.pt")
    model, report = weights.build(dict(content))
    assert all(
        torch.equal(tensor, content["model"][name]) for name, tensor in model.state_dict().items()
    )
    assert report == []


def test_an_interrupted_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, {"step": 1})
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"latest.pt.*No space left.*untouched"):
        checkpoint.save(path, {"step": 2})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("write", [pickle.dumps, None])
def test_a_checkpoint_never_runs_code(workspace, write):
    if write:
        Path("x.pt").write_bytes(write({"model": Payload()}))
    else:
        torch.save({"model": Payload()}, "x.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        checkpoint.load("x.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("how", ["empty", "text", "half", "flipped", "zip"])
def test_damage_is_one_message_that_names_the_file(trained, how):
    whole = Path("out/latest.pt").read_bytes()
    middle = len(whole) // 2
    if how == "zip":
        with zipfile.ZipFile("x.pt", "w") as file:
            file.writestr("readme.txt", "hello")
    else:
        content = {
            "empty": b"",
            "text": b"not a checkpoint",
            "half": whole[:middle],
            "flipped": whole[:100] + bytes(256) + whole[356:],
        }[how]
        Path("x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        checkpoint.load("x.pt")


def test_one_wrong_bit_in_the_weights_is_found(trained):
    """torch.load does not compare checksums, and took it for another weight."""
    path = Path("out/best.pt")
    whole, weights = path.read_bytes(), checkpoint.load(path)["model"]["h.0.mlp.c_fc.weight"]
    place = whole.index(weights.numpy().tobytes()[:64]) + 40
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert not torch.equal(
        torch.load(path, weights_only=True)["model"]["h.0.mlp.c_fc.weight"], weights
    )
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read as a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("content, words", [
    ([1, 2], "not one of seuGPT"),
    ({"model": {}, "config": {}}, "it has no .*model_config"),
])  # fmt: skip
def test_a_foreign_checkpoint_is_named(workspace, content, words):
    torch.save(content, "x.pt")
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load("x.pt")


def test_another_format_is_named(trained, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="has format 1; this program reads format 2"):
        checkpoint.load("out/best.pt")


def test_best_cannot_be_resumed_and_says_what_it_lacks(trained):
    with pytest.raises(CheckpointError, match=r"weights alone.*generators, optimizer, scaler"):
        checkpoint.load("out/best.pt", checkpoint.TO_RESUME)


def test_the_newest_is_the_last_written_whatever_its_step(tmp_path):
    """A run that goes on from an earlier step keeps what it makes, and not what was there."""
    path = tmp_path / "latest.pt"
    for step in (20, 5, 10):
        checkpoint.save(path, {"step": step})
        os.utime(path, ns=(0, {20: 1, 5: 2, 10: 3}[step] * 10**9))
        checkpoint.keep(path, step, 2)
    assert [kept.name for kept in checkpoint.numbered(tmp_path)] == [
        "step-00000010.pt",
        "step-00000005.pt",
    ]


def test_find_prefers_best(trained):
    assert checkpoint.find("out") == Path("out/best.pt")
    Path("out/best.pt").unlink()
    assert checkpoint.find("out") == Path("out/latest.pt") == checkpoint.find("out/latest.pt")
    with pytest.raises(CheckpointError, match="no checkpoint nowhere"):
        checkpoint.find("nowhere")


def test_weights_that_do_not_fit_the_config_are_one_message(trained):
    content = checkpoint.load("out/best.pt")
    for change in ({"n_layer": 3}, {"heads": 2}, {"n_embd": 33}):
        with pytest.raises(CheckpointError, match="do not fit"):
            weights.build({**content, "model_config": {**content["model_config"], **change}})
