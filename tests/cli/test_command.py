"""How a command ends: with which exit code and message, and which of several ranks prints it."""

import errno
import sys
from pathlib import Path

import pytest

from seugpt.cli.command import command
from seugpt.errors import UserError


def exit_code_of(error):
    """The exit code of a command whose body raises `error`."""
    with pytest.raises(SystemExit) as exit, command():
        raise error
    return exit.value.code


def set_rank(monkeypatch, rank, attempt):
    """Set the environment of a process started by torchrun, with its error files in this folder."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"attempt_{attempt}/{rank}/error.json")
    Path(f"attempt_{attempt}/{rank}").mkdir(parents=True, exist_ok=True)


@pytest.fixture(autouse=True)
def script_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["folder/train.py"])


def test_a_user_error_ends_in_one_message_and_exit_code_2(capsys):
    assert exit_code_of(UserError("size=0 is wrong")) == 2
    assert capsys.readouterr().err == "train.py: size=0 is wrong\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), command():
        raise ZeroDivisionError


def test_an_os_error_names_its_file(capsys):
    assert exit_code_of(PermissionError(errno.EACCES, "Permission denied", "a.txt")) == 2
    assert capsys.readouterr().err == "train.py: Permission denied (a.txt)\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_its_folder_and_what_to_do(capsys, number):
    assert exit_code_of(OSError(number, "No space left on device", "data/t")) == 2
    message = capsys.readouterr().err
    assert "(data/t)" in message
    assert "same command" in message


def test_ctrl_c_ends_with_exit_code_130_and_no_traceback(capsys):
    assert exit_code_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."


def test_a_closed_stderr_keeps_the_exit_code(monkeypatch):
    """Under 2>&- sys.stderr is None, and printing the message raised another error."""
    monkeypatch.setattr(sys, "stderr", None)
    assert exit_code_of(UserError("size=0 is wrong")) == 2


def test_of_several_ranks_only_the_first_to_fail_prints(workspace, monkeypatch, capsys):
    """After a mistake in the options, every rank printed the same message."""
    for rank in (1, 0, 2):
        set_rank(monkeypatch, rank, attempt=0)
        assert exit_code_of(UserError("the disk is gone")) == 2
    assert capsys.readouterr().err == "train.py: rank 1: the disk is gone\n"


def test_each_attempt_of_torchrun_prints_its_own_failure(workspace, monkeypatch, capsys):
    for attempt in (0, 1):
        set_rank(monkeypatch, 0, attempt)
        exit_code_of(UserError("the disk is gone"))
    assert capsys.readouterr().err == "train.py: the disk is gone\n" * 2


def test_a_rank_that_cannot_create_the_marker_prints(workspace, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "nowhere/attempt_0/0/error.json")
    for _ in range(2):
        exit_code_of(UserError("the disk is gone"))
    assert capsys.readouterr().err.count("the disk is gone") == 2
