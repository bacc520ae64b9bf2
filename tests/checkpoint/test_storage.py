"""Checkpoints on the disk: written completely or not at all, verified when they are read."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from seugpt.checkpoint import content
from seugpt.checkpoint.pretrained import build_from_checkpoint
from seugpt.checkpoint.storage import (
    INFERENCE_KEYS,
    RESUME_KEYS,
    find_checkpoint,
    load_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
    step_checkpoints,
)
from seugpt.errors import CheckpointError


def test_best_has_the_inference_keys_and_latest_the_resume_keys(trained):
    """Neither has the prefixes that torch.compile and DDP add to parameter names."""
    best = load_checkpoint("out/best.pt")
    latest = load_checkpoint("out/latest.pt", RESUME_KEYS)
    added_on_loading = {"path", "mtime_ns"}
    assert set(best) == {*INFERENCE_KEYS, *added_on_loading}
    assert set(latest) == {*RESUME_KEYS, *added_on_loading}
    assert not any(name.startswith(("_orig_mod.", "module.")) for name in best["model"])
    assert Path("out/best.pt").stat().st_size < Path("out/latest.pt").stat().st_size / 2


def test_saved_model_is_rebuilt_exactly(trained):
    ckpt = load_checkpoint("out/best.pt")
    model, notes = build_from_checkpoint(ckpt)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ckpt["model"][name]), name
    assert notes == []


def test_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def fail_with_full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    with pytest.raises(CheckpointError, match=r"latest\.pt.*No space left"):
        save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda intact: b"",
        lambda intact: b"not a checkpoint",
        lambda intact: intact[: len(intact) // 2],
        lambda intact: intact[:100] + bytes(256) + intact[356:],
    ],
    ids=["empty", "text", "first half", "zeroed part"],
)
def test_damaged_file_is_refused_by_name(trained, damage):
    Path("x.pt").write_bytes(damage(Path("out/latest.pt").read_bytes()))
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_checkpoint("x.pt")


def test_zip_file_without_a_checkpoint_is_refused_by_name(workspace):
    with zipfile.ZipFile("x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_checkpoint("x.pt")


def test_flipped_bit_in_the_weights_is_found(trained):
    """torch.load does not verify checksums, and returned another weight."""
    path = Path("out/best.pt")
    content = path.read_bytes()
    name = "h.0.mlp.c_fc.weight"
    weight = load_checkpoint(path)["model"][name]
    offset = content.index(weight.numpy().tobytes()[:64]) + 40
    path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["model"][name], weight)
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read"):
        load_checkpoint(path)


def test_damaged_file_error_names_the_other_checkpoints_in_the_folder(trained):
    path = Path("out/latest.pt")
    rotate_checkpoints(path, step=30, keep_last=1)
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"latest\.pt.*out: step-00000030\.pt, best\.pt$"):
        load_checkpoint(path, RESUME_KEYS)


@pytest.mark.parametrize(
    "content, words",
    [([1, 2], "x.pt is not a seuGPT checkpoint"), ({"model": {}, "config": {}}, "model_config")],
)
def test_another_programs_checkpoint_is_refused(workspace, content, words):
    torch.save(content, "x.pt")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint("x.pt")


def test_another_format_version_is_refused_with_both_numbers(trained, monkeypatch):
    monkeypatch.setattr(content, "FORMAT", 2)
    with pytest.raises(CheckpointError, match=r"best\.pt has format 1.* format 2"):
        load_checkpoint("out/best.pt")


def test_resuming_from_best_names_the_missing_keys(trained):
    with pytest.raises(CheckpointError, match=r"best\.pt .*optimizer, scaler, rng_states"):
        load_checkpoint("out/best.pt", RESUME_KEYS)


def test_rotation_keeps_the_latest_steps_whatever_the_file_times(tmp_path):
    """In a copied folder, whose files all had new times, step 9 was taken for newer than 12."""
    path = tmp_path / "latest.pt"
    for seconds, step in enumerate((3, 6, 9, 12), start=1):
        save_checkpoint(path, {"step": step})
        rotate_checkpoints(path, step, keep_last=2)
        os.utime(tmp_path / f"step-{step:08d}.pt", ns=(0, -seconds * 10**9))
    names = [path.name for path in step_checkpoints(tmp_path)]
    assert names == ["step-00000012.pt", "step-00000009.pt"]


def test_rotation_leaves_the_checkpoints_of_later_steps(tmp_path):
    """A run resumed from an earlier step must not lose what it writes, nor what it left."""
    path = tmp_path / "latest.pt"
    for step in (20, 5, 10, 15):
        save_checkpoint(path, {"step": step})
        rotate_checkpoints(path, step, keep_last=2)
    names = [path.name for path in step_checkpoints(tmp_path)]
    assert names == ["step-00000020.pt", "step-00000015.pt", "step-00000010.pt"]


def test_find_checkpoint_prefers_best_to_latest(trained):
    assert find_checkpoint("out") == Path("out/best.pt")
    Path("out/best.pt").unlink()
    assert find_checkpoint("out") == Path("out/latest.pt")
    assert find_checkpoint("out/latest.pt") == Path("out/latest.pt")
    with pytest.raises(CheckpointError, match="no checkpoint nowhere"):
        find_checkpoint("nowhere")
