"""Atomic writes, and the lock that gives a folder a single writer."""

import contextlib
import os
import subprocess
import sys

import pytest

from seugpt.errors import ConfigError
from seugpt.files import atomic_write, atomic_write_all, lock_folder
from tests.helpers import ROOT


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half of the new")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_replaced_only_once_all_are_on_the_disk(tmp_path, monkeypatch):
    """A disk that was full when the last file was written left new files beside old ones."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"old")
    outcomes = iter([None, None, OSError("full"), None, None, None, None])  # the last: the folder

    def fsync(descriptor):
        error = next(outcomes)
        if error:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    for content, outcome in ((b"old", pytest.raises(OSError)), (b"new", contextlib.nullcontext())):
        with outcome, atomic_write_all(*paths) as temporaries:
            for temporary in temporaries:
                temporary.write_bytes(b"new")
        assert sorted(tmp_path.iterdir()) == paths
        assert {path.read_bytes() for path in paths} == {content}


def test_a_folder_is_locked_until_its_writer_is_killed(tmp_path):
    """The next writer removes temporary files: a killed prepare.py left gigabytes behind."""
    code = """if True:
        import sys
        from pathlib import Path
        from seugpt.files import atomic_write, lock_folder
        lock = lock_folder(Path(sys.argv[1]))
        with atomic_write(Path(sys.argv[1], "x.bin")) as temporary:
            temporary.touch()
            print("locked", flush=True)
            input()
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert writer.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError) as error:
            lock_folder(tmp_path)
    finally:
        writer.kill()
        writer.communicate(timeout=60)
    assert str(tmp_path) in str(error.value)
    assert f"process {writer.pid} on " in str(error.value)
    assert (tmp_path / f".x.bin.{writer.pid}.tmp").exists()
    others = {".x.bin.backup.tmp", "x.123.tmp", ".x.tmp"}  # not written by atomic_write
    for name in others:
        (tmp_path / name).touch()
    lock_folder(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", *others}


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    """Some network file systems support no locks."""

    def no_locks(file):
        raise OSError("locks are not supported")

    monkeypatch.setattr("seugpt.files.lock_file", no_locks)
    lock_folder(tmp_path).close()
