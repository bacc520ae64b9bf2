"""Names and paths as people have them: what can be a file is one, and what cannot be one is a message."""

import os
from pathlib import Path

import pytest

import evaluate
import export
import prepare
import sample
import train
from seugpt.data.dataset import Dataset

LONG = "é" * 200  # 400 bytes, where file systems take 255
ODD = ["two words", "maçã 🦜", "a" * 200, "it's", "-dash"]
TEXT = "o menino viu a maçã\n" * 50


def link(name, target):
    try:
        Path(name).symlink_to(target, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


@pytest.fixture
def places(workspace):
    """A text, and the kinds of places that cannot be written to: a file, links to nothing and to themselves."""
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    Path("data").mkdir()
    Path("data/file").touch()
    link("nowhere", "missing")
    link("loop", "loop")
    link("data/nowhere", "missing")
    link("data/loop", "loop")
    return workspace


@pytest.mark.parametrize("name", [name for name in ODD if name != "-dash"])
def test_a_data_set_may_have_any_plain_name(places, run, name):
    prepare.main([name, "--input=t.txt"])
    train.main(run(dataset=name, max_iters=1))
    assert Dataset(Path("data", name)).tokens["train"] == 900


@pytest.mark.parametrize(
    "name, words",
    [
        ("..", "one plain name"),
        (".", "one plain name"),
        ("../t", "one plain name"),
        ("a/../../t", "one plain name"),
        ("t/", "one plain name"),
        ("/t", "one plain name"),
        (".hidden", "one plain name"),
        ("__pycache__", "one plain name"),
        (LONG, "must be one plain name"),
        ("file", "data/file"),
        ("nowhere", "data/nowhere"),
        ("loop", "data/loop"),
    ],
)
def test_no_other_name_is_written_or_read(places, refused, run, name, words):
    """A link to itself was a RuntimeError of pathlib's, with a traceback."""
    before = sorted(places.rglob("*"))
    assert words in refused(prepare.main, name, "--input=t.txt").replace("\\", "/")
    assert words in refused(train.main, *run(dataset=name)).replace("\\", "/")
    assert sorted(places.rglob("*")) == before


def test_a_data_set_may_be_a_link_to_another_disk(places, run):
    Path("elsewhere").mkdir()
    link("data/big", places / "elsewhere")
    prepare.main(["big", "--input=t.txt"])
    train.main(run(dataset="big", max_iters=1))
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == sorted(prepare.FILES)
    assert Path("data/big").is_symlink()


def test_a_link_to_the_data_set_is_no_text(places, refused):
    """The way round, the tokens would be read as text the next time."""
    prepare.main(["t", "--input=t.txt"])
    link("texts", places / "data")
    assert "input=texts contains" in refused(prepare.main, "t", "--input=texts")


@pytest.mark.parametrize("name", ODD)
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
def test_a_text_that_cannot_be_read_is_named(places, refused, option, path):
    message = refused(prepare.main, "t", "--input=t.txt", f"{option}={path}")
    assert path[:200] in message and not Path("data/t").exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc on this system")
def test_a_file_that_opens_and_cannot_be_read_is_named(places, refused):
    assert "cannot read /proc/self/mem: " in refused(prepare.main, "t", "--input=/proc/self/mem")


@pytest.fixture
def trained(tiny, run):
    train.main(run(max_iters=1))
    return tiny


@pytest.mark.parametrize("name", ODD)
def test_a_run_may_be_anywhere(tiny, run, capsys, name):
    Path("real", name).mkdir(parents=True)
    link("linked", tiny / "real")
    out_dir = os.path.join("linked", name, "new", "..", name)
    train.main(run(max_iters=1, out_dir=out_dir))
    assert Path("real", name, name, "best.pt").is_file()
    sample.main([f"--out_dir={out_dir}", "--device=cpu", "--num_samples=1", "--max_new_tokens=1"])
    export.main([f"--out_dir={out_dir}", f"--to={out_dir}/hf {name}"])
    sample.main(
        [
            f"--init_from={out_dir}/hf {name}",
            "--device=cpu",
            "--num_samples=1",
            "--max_new_tokens=1",
        ]
    )
    evaluate.main([f"--out_dir={out_dir}/hf {name}", "--input=tiny.txt"])


@pytest.mark.parametrize("path", ["t.txt", "t.txt/x", "nowhere", "loop", LONG, "/proc/none"])
def test_a_place_that_is_none_is_one_message_in_each_command(trained, run, refused, path):
    if path.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    Path("t.txt").touch()
    link("nowhere", "missing")
    link("loop", "loop")
    before = sorted(trained.rglob("*"))
    for main, argv in (
        (train.main, run(out_dir=path)),
        (train.main, run(init_from=path, out_dir="new")),
        (train.main, run(init_from="resume", out_dir=path)),
        (sample.main, [f"--out_dir={path}"]),
        (sample.main, [f"--init_from={path}"]),
        (export.main, ["--out_dir=out", f"--to={path}"]),
        (export.main, [f"--out_dir={path}", "--to=new"]),
        (evaluate.main, [f"--out_dir={path}"]),
        (evaluate.main, [f"--input={path}"]),
    ):
        assert path in refused(main, *argv), (main, argv)
    assert sorted(trained.rglob("*")) == before


def test_the_command_that_is_told_can_be_typed(trained, capsys):
    """A blank in the folder's name cut it in two."""
    export.main(["--out_dir=out", "--to=two words"])
    assert "--init_from='two words'" in capsys.readouterr().out


def test_a_path_may_begin_with_the_users_folder(places, run, monkeypatch):
    """bash leaves the ~ of --out_dir=~/runs to the program."""
    monkeypatch.setenv("HOME", str(places / "home"))
    monkeypatch.setenv("USERPROFILE", str(places / "home"))
    Path("home").mkdir()
    Path("t.txt").rename("home/t.txt")
    prepare.main(["mine", "--input=~/t.txt"])
    train.main(run(dataset="mine", out_dir="~/runs/one", max_iters=1))
    assert Path("home/runs/one/latest.pt").exists() and not Path("~").exists()
