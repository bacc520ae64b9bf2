"""Archives: no wrong bit is read as another value, and no small file takes much time or memory."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from seugpt.checkpoint.archive import read_archive, write_archive
from seugpt.checkpoint.pickle_check import MAX_DEPTH, MAX_OPCODES, check_pickle
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.errors import CheckpointError
from tests.helpers import nested_equal, replace_pickle, rewrite_archive

CONTENT = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "names": ["a", "b"]}


def test_an_archive_holds_what_was_written_and_torch_can_read_it(tmp_path):
    write_archive(tmp_path / "x.pt", CONTENT)
    assert nested_equal(read_archive(tmp_path / "x.pt"), CONTENT)
    assert nested_equal(torch.load(tmp_path / "x.pt", weights_only=True), CONTENT)


def test_an_archive_without_a_seal_is_read(tmp_path):
    """nanoGPT's have none."""
    torch.save(CONTENT, tmp_path / "x.pt")
    assert nested_equal(read_archive(tmp_path / "x.pt"), CONTENT)


@pytest.mark.parametrize("share", [0.04, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, share):
    """One bit of a record's attributes made torch read nothing: the loss rose, with no error."""
    path = tmp_path / "x.pt"
    write_archive(path, CONTENT)
    intact = path.read_bytes()
    rng = random.Random(0)
    num_refused = 0
    for position in range(8 * len(intact)):
        if rng.random() > share:
            continue
        damaged = bytearray(intact)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_archive(path)
        except Exception:
            num_refused += 1
        else:
            assert nested_equal(found, CONTENT), position
    assert num_refused > 0.8 * share * 8 * len(intact)


def set_directory_bit(info, data):
    info.external_attr |= 1 << 4


def compress(info, data):
    info.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize("change", [set_directory_bit, compress])
def test_unusual_records_are_refused(tmp_path, change):
    """Of a deflated record of 10 KB torch makes 10 MB, without limit."""
    path = tmp_path / "x.pt"
    torch.save(CONTENT, path)
    rewrite_archive(path, change)
    with pytest.raises(ValueError, match="not plain data"):
        read_archive(path)


def test_two_records_of_one_name_are_refused(tmp_path):
    """torch does not tell upper from lower case, and could read another pickle than was checked."""
    path = tmp_path / "x.pt"
    torch.save(CONTENT, path)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x/DATA.pkl")
        archive.writestr(info, pickle.dumps(1, protocol=2))
    with pytest.raises(ValueError, match=r"same name|plain data"):
        read_archive(path)


def nested(make, levels):
    value = 1
    for _ in range(levels):
        value = make(value)
    return pickle.dumps(value, protocol=2)


DANGEROUS = {
    "lists tenfold": nested(lambda value: [value] * 10, 9),
    "tuples doubled": nested(lambda value: (value, value), 60),
    "tuple as a key": pickle.dumps({(1, 2): 3}, protocol=2),
    "depth": b"\x80\x02" + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
    "tuples of tuples": nested(lambda value: (value,), MAX_DEPTH + 1),
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R.",
    "too many values": b"\x80\x02(" + b"N" * (MAX_OPCODES + 1) + b"t.",
    "code": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "protocol 4": pickle.dumps({"a": b"bytes"}, protocol=4),
    "cut off": pickle.dumps(CONTENT["names"], protocol=2)[:-3],
    "empty stack": b"\x80\x02a.",
    "no such memo": b"\x80\x02h\x05.",
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_pickles_are_refused_before_torch_reads_them(tmp_path, name, monkeypatch):
    """Each hung, crashed or filled the memory of the process, or names code."""
    with pytest.raises(ValueError):
        check_pickle(DANGEROUS[name])
    path = tmp_path / "best.pt"
    torch.save(CONTENT, path)
    replace_pickle(path, DANGEROUS[name])
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch read it"))
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("levels, fits", [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_depth_is_counted_in_containers(levels, fits):
    data = nested(lambda value: [value], levels)
    if fits:
        check_pickle(data)
    else:
        with pytest.raises(ValueError, match="nested"):
            check_pickle(data)


def test_what_torch_saves_passes_the_check():
    """Every kind of value in a checkpoint of ours and of nanoGPT, among them parameters."""
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    value = {
        "model": layer.state_dict(),
        "parameter": layer.weight,
        "optimizer": optimizer.state_dict(),
        "values": [None, True, -1, 2**80, 0.5, float("inf"), "ação", (), [], {}, {1: 2}],
        "rng": torch.get_rng_state(),
    }
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        check_pickle(archive.read("archive/data.pkl"))


def test_a_file_of_a_run_is_sealed(trained):
    for name in ("best.pt", "latest.pt"):
        with zipfile.ZipFile(Path("out", name)) as archive:
            assert archive.comment.startswith(b"seuGPT sha256 ")
