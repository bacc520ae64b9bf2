"""Odd names and paths: any valid file name works, and any other ends in a message."""

import os
from pathlib import Path

import pytest

import evaluate
import export
import prepare
import sample
import train
from seugpt.data.dataset import Dataset

LONG = "é" * 200  # 400 bytes; file systems allow 255
ODD = ["it's two words", "maçã 🦜", "a" * 200]
TEXT = "o menino viu a maçã\n" * 50


def link(name, target):
    try:
        Path(name).symlink_to(target, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


def make_bad_places(folder):
    """Create a file where a folder should be, a dangling link and a link to itself."""
    (folder / "file").touch()
    link(folder / "nowhere", "missing")
    link(folder / "loop", "loop")


@pytest.fixture
def places(workspace):
    """A folder with a text, t.txt, and bad places, also in data/."""
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    Path("data").mkdir()
    make_bad_places(Path())
    make_bad_places(Path("data"))
    return workspace


def sample_one_token(*argv):
    sample.main([*argv, "--device=cpu", "--num_samples=1", "--max_new_tokens=1"])


@pytest.mark.parametrize("name", ODD)
def test_a_data_set_may_have_any_plain_name(places, run, name):
    prepare.main([name, "--input=t.txt"])
    train.main(run(dataset=name, max_iters=0, eval_iters=1))
    assert Dataset(Path("data", name)).tokens["train"] == 900


@pytest.mark.parametrize(
    "name", ["..", ".", "../t", "a/../../t", "/", ".hidden", "__pycache__", LONG]
)
def test_a_data_set_name_that_is_not_plain_is_refused(places, refused, run, name):
    before = sorted(places.rglob("*"))
    for main, argv in ((prepare.main, [name, "--input=t.txt"]), (train.main, run(dataset=name))):
        assert f"dataset={name!r}" in refused(main, *argv)
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize("name", ["file", "nowhere", "loop"])
def test_a_data_set_that_cannot_be_a_folder_is_refused(places, refused, run, name):
    """A link to itself ended in a traceback, a RuntimeError of pathlib."""
    before = sorted(places.rglob("*"))
    for main, argv in ((prepare.main, [name, "--input=t.txt"]), (train.main, run(dataset=name))):
        assert str(Path("data", name)) in refused(main, *argv)
    assert sorted(places.rglob("*")) == before


def test_a_data_set_may_be_a_link_to_another_disk(places, run):
    Path("elsewhere").mkdir()
    link("data/big", places / "elsewhere")
    prepare.main(["big", "--input=t.txt"])
    train.main(run(dataset="big", max_iters=0, eval_iters=1))
    written = {path.name for path in Path("elsewhere").glob("[!.]*")}
    assert written == set(prepare.FILES)
    assert Path("data/big").is_symlink()


def test_an_input_that_links_to_the_data_set_is_refused(places, refused):
    """Otherwise the tokens would be read as text the next time."""
    prepare.main(["t", "--input=t.txt"])
    link("texts", places / "data")
    assert "input=texts contains" in refused(prepare.main, "t", "--input=texts")


@pytest.mark.parametrize("name", [*ODD, "-dash"])
def test_a_text_may_have_any_name(places, name):
    folder = places / name
    folder.mkdir()
    (folder / f"{name}.txt").write_text(TEXT, encoding="utf-8")
    link("linked", folder / f"{name}.txt")
    for path in (folder, folder / f"{name}.txt", Path(name, "..", name), "linked"):
        prepare.main(["t", f"--input={path}", f"--val_input={path}"])
        assert Dataset("data/t").tokens == {"train": 1000, "val": 1000}


@pytest.mark.parametrize("option", ["--input", "--val_input"])
@pytest.mark.parametrize("path", ["nowhere", "loop", LONG, "t.txt/x", "a/../.."])
def test_a_text_that_cannot_be_read_is_refused_by_name(places, refused, option, path):
    message = refused(prepare.main, "t", "--input=t.txt", f"{option}={path}")
    assert path in message
    assert not Path("data/t").exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc on this system")
def test_a_file_that_opens_but_cannot_be_read_is_refused_by_name(places, refused):
    message = refused(prepare.main, "t", "--input=/proc/self/mem")
    assert "cannot read /proc/self/mem: " in message


@pytest.mark.parametrize("name", [*ODD, "-dash"])
def test_a_run_may_be_in_any_folder(trained, run, name):
    Path("real", name).mkdir(parents=True)
    link("linked", trained / "real")
    out_dir = os.path.join("linked", name, "new", "..", name)
    exported = f"{out_dir}/hf {name}"
    train.main(run(out_dir=out_dir, max_iters=0, eval_iters=1))
    assert Path("real", name, name, "best.pt").is_file()
    sample_one_token(f"--out_dir={out_dir}")
    export.main([f"--out_dir={out_dir}", f"--to={exported}"])
    sample_one_token(f"--init_from={exported}")
    evaluate.main([f"--out_dir={exported}", "--input=tiny.txt"])


@pytest.mark.parametrize("path", ["file", "file/x", "nowhere", "loop", LONG, "/proc/none"])
def test_each_command_refuses_an_unusable_path_by_name(trained, run, refused, path):
    if path.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    make_bad_places(Path())
    before = sorted(trained.rglob("*"))
    for main, argv in (
        (train.main, run(out_dir=path)),
        (train.main, run(init_from=path, out_dir="new")),
        (train.main, run(init_from="resume", out_dir=path)),
        (sample.main, [f"--out_dir={path}"]),
        (sample.main, [f"--init_from={path}"]),
        (sample.main, [f"--start=FILE:{path}"]),
        (export.main, ["--out_dir=out", f"--to={path}"]),
        (export.main, [f"--out_dir={path}", "--to=new"]),
        (evaluate.main, [f"--out_dir={path}"]),
        (evaluate.main, [f"--input={path}"]),
    ):
        assert path in refused(main, *argv), (main, argv)
    assert sorted(trained.rglob("*")) == before


def test_a_suggested_command_quotes_a_folder_with_a_blank(trained, capsys):
    """Unquoted, the suggested command ended at the blank."""
    export.main(["--out_dir=out", "--to=two words"])
    assert "--init_from='two words'" in capsys.readouterr().out


def test_a_tilde_in_a_path_is_the_home_folder(places, run, monkeypatch):
    """bash does not expand the ~ in --out_dir=~/runs."""
    monkeypatch.setenv("HOME", str(places / "home"))
    monkeypatch.setenv("USERPROFILE", str(places / "home"))
    Path("home").mkdir()
    Path("t.txt").rename("home/t.txt")
    prepare.main(["mine", "--input=~/t.txt"])
    train.main(run(dataset="mine", out_dir="~/runs/one", max_iters=0, eval_iters=1))
    assert Path("home/runs/one/latest.pt").exists()
    assert not Path("~").exists()
