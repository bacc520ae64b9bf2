"""Pictures of runs and embeddings: the numbers behind them, and that each command draws or says why not."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare
import train
import visualize
from seugpt.checkpoint import pretrained as weights
from seugpt.data.tokenizer import CharTokenizer, bpe_tokenizer
from seugpt.errors import ConfigError
from seugpt.plots.curves import losses, smooth, summary, to_run
from seugpt.plots.embeddings import align, components, highlighted, paths, project, token_rows, tsne
from seugpt.plots.style import KINDS, kind_of, label
from seugpt.training.layer_stats import captions, load_embeddings, steps_of
from tests.helpers import RUN

PNG, SVG, GIF = b"\x89PNG", b"<?xml", b"GIF89a"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder with a trained run in it, made once for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.txt").write_text(
            "o menino viu a maçã 123 e não comeu; \n" * 150, encoding="utf-8"
        )
        prepare.main(["tiny", "--input=tiny.txt"])
        train.main([f"--{name}={value}" for name, value in {**RUN, "snapshot_interval": 3}.items()])
    return folder


@pytest.fixture
def trained(once, workspace):
    shutil.copytree(once, workspace, dirs_exist_ok=True)
    return workspace


def draw(*argv):
    visualize.main(list(argv))


@pytest.mark.parametrize(
    "token, text, kind",
    [
        (b"a", "a", "vowel"), ("ã".encode(), "ã", "vowel"), ("ç".encode(), "ç", "consonant"),
        (b"Q", "Q", "capital"), ("É".encode(), "É", "capital"), (b"7", "7", "digit"), (b"$", "$", "punctuation"),
        (b" ", "␣", "white space"), (b"\n", "↵", "white space"), ("ж".encode(), "ж", "other letter"),
        (b" the", "␣the", "beginning of a word"), (b"ing", "ing", "inside of a word"), (b" 1", "␣1", "digit"),
        ("🦜".encode(), "U+1F99C", "punctuation"), (b"\xf0\x9f", "f0 9f", "part of a character"),
        (b"\x01", "U+0001", "punctuation"), (b"", "", "white space"),
    ],
)  # fmt: skip
def test_tokens_are_written_and_sorted(token, text, kind):
    assert label(token) == text and kind_of(token) == kind and kind in KINDS


def test_smoothing_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=100)
    reach = [min(3, i, 99 - i) for i in range(100)]
    expected = [values[i - r : i + r + 1].mean() for i, r in enumerate(reach)]
    assert smooth(values) == pytest.approx(expected) and smooth(values[:1]) == pytest.approx(
        values[:1]
    )


def test_a_run_is_placed_by_steps_tokens_and_seconds():
    lines = [
        {"step": step, "loss": 1.0, "step_ms": 500.0, "tokens_per_s": 64.0} for step in (0, 10, 20)
    ]
    run = to_run("x", [*lines, None, {"step": 15, "val_loss": 2.0, "train_loss": 2.0}])
    assert list(run.batches["step"]) == [0, 10, 20] and list(run.evaluations["val_loss"]) == [2.0]
    assert list(run.at("step", np.array([15]))) == [15]
    assert list(run.at("tokens", np.array([15]))) == [15 * 32]
    assert list(run.at("seconds", np.array([0, 11, 15]))) == pytest.approx([0, 5.5, 7.5])


def test_columns_have_gaps_where_a_line_has_no_value():
    run = to_run(
        "x",
        [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0, "mfu": 0.5}, {"step": 2, "loss": 1.0}],
    )
    assert run.batches["mfu"] == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
    assert list(to_run("x", [{"step": 0, "loss": math.inf}]).batches["step"]) == []


def test_a_rising_validation_loss_is_called_overfitting():
    def of(*values):
        return summary(
            to_run(
                "x", [{"step": i, "train_loss": 1.0, "val_loss": v} for i, v in enumerate(values)]
            )
        )

    assert of(3.0, 2.0, 2.01) == "best validation loss 2.0000 at step 1"
    assert (
        of(3.0, 2.0, 2.5)
        == "best validation loss 2.0000 at step 1; from there on it rises, to 2.5000: overfitting"
    )


def test_losses_can_be_drawn_of_many_lines(workspace):
    lines = (
        {"step": n, "loss": 5 / (n + 1), "step_ms": 1.0, "tokens_per_s": 9.0} for n in range(50_000)
    )
    losses("x.png", [to_run("long", lines)], "seconds")
    assert Path("x.png").stat().st_size < 200_000


def test_components_are_those_of_the_covariance():
    table = np.random.default_rng(1).normal(size=(40, 7)) * np.arange(1, 8)
    values, vectors = np.linalg.eigh(np.cov(table.T))
    for column, vector in zip(components(table).T, vectors.T[::-1], strict=False):
        assert abs(column @ vector) == pytest.approx(1) and column[np.abs(column).argmax()] > 0
    _, names = project(table, "pca")
    assert (
        names[0] == f"first principal component ({values[-1] / values.sum():.0%} of the variance)"
    )


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (1, 1), (2, 2)])
def test_a_table_of_almost_nothing_still_has_two_dimensions(shape):
    assert np.isfinite(project(np.ones(shape), "pca")[0]).all() and components(
        np.ones(shape)
    ).shape == (shape[1], 2)


def test_aligning_undoes_a_turn_and_a_mirror():
    points = np.random.default_rng(2).normal(size=(9, 2))
    points -= points.mean(axis=0)
    for turn in ([[0, 1], [-1, 0]], [[1, 0], [0, -1]]):
        assert align(points @ np.array(turn) + 5, points) == pytest.approx(points)


def test_points_move_and_do_not_jump():
    """t-SNE drew each map anew, and whole groups changed sides from one frame to the next."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    dice = np.random.default_rng(3)
    tables = [dice.normal(size=(30, 8)) + 4 * np.repeat(np.eye(3, 8), 10, axis=0)]
    tables += [tables[0] + 0.01 * dice.normal(size=(30, 8))]
    for method in ("pca", "tsne"):
        first, second = paths(tables, method)
        assert np.linalg.norm(second - first, axis=1).max() < 0.2 * np.ptp(first)
    assert paths(tables, "pca")[-1] == pytest.approx(project(tables[-1], "pca")[0])


def test_tokens_on_a_picture_can_be_written():
    tokens, rows = token_rows(CharTokenizer("a\x01\nb🦜"))
    assert rows == [0, 2, 3] and tokens == [b"a", b"\n", b"b"]
    ranks = [bytes([n]) for n in range(256)] + [b"th", b" th", "ção".encode(), b"\xc3\xa7\xc3"]
    tokens, rows = token_rows(bpe_tokenizer(ranks))
    assert (
        rows[-4:-1] == [256, 257, 258] and b"\xff" not in tokens and b"\xc3\xa7\xc3" not in tokens
    )
    assert (
        b"a" in tokens and b" " in tokens and not {b"#", b"\t"} & set(tokens)
    )  # which a text may never have had


def test_highlights_are_characters_ranges_and_positions():
    tokens = [c.encode() for c in "xyz019a"]
    groups = highlighted(["az", "0-5"], tokens, "tokens")
    assert [(name, rows) for name, _, rows in groups] == [("az", [6, 2]), ("0-5", [3, 4])]
    assert len({colour for _, colour, _ in groups}) == 2
    places = [str(n).encode() for n in range(16)]
    assert [rows for _, _, rows in highlighted(["12-14", "3", "14-99"], places, "positions")] == [
        [12, 13, 14], [3], [14, 15],
    ]  # fmt: skip
    for of, text, message in (
        ("tokens", "q", "names no token"),
        ("positions", "99", "positions are 0 to 15"),
    ):
        with pytest.raises(ConfigError, match=message):
            highlighted([text], places, of)


def test_untrained_weights_are_those_that_the_run_began_with(trained):
    before = weights.untrained(weights.load("out"))
    for name, table in load_embeddings(steps_of("out")[0]).items():
        assert np.array_equal(before[f"{name}.weight"].half().float().numpy(), table)


def test_a_run_that_began_with_weights_has_no_untrained_ones(trained, run):
    train.main(run(init_from="out/best.pt", out_dir="tuned"))
    assert weights.untrained(weights.load("tuned")) is None
    draw("embeddings", "tuned")
    assert Path("tuned/embeddings-tokens.png").read_bytes().startswith(PNG)


def test_captions_have_the_last_loss_that_was_measured(trained):
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: f"{line['val_loss']:.3f}" for line in lines if "val_loss" in line}
    shown = [text.split() for text in captions("out", [0, 3, 5, 9, 10])]
    assert [text[1] for text in shown] == ["0", "3", "5", "9", "10"]
    assert [text[-1] for text in shown] == [losses[0], losses[0], losses[5], losses[5], losses[10]]


@pytest.mark.parametrize(
    "argv, name",
    [
        (["loss", "out"], "out/loss.png"), (["loss", "out", "out", "--x=tokens"], "out/loss.png"),
        (["activations", "out"], "out/activations.png"),
        (["embeddings", "out"], "out/embeddings-tokens.png"),
        (["embeddings", "out/best.pt", "--of=positions"], "out/embeddings-positions.png"),
        (["embeddings", "--out=out", "--of=similarity", "--to=x.svg"], "x.svg"),
        (["loss", "out", "--to=new.SVG", "--x=seconds"], "new.SVG"),
        (["animate", "out", "--of=positions", "--highlight=12-14"], "out/animation-positions.gif"),
        (["animate", "out", "--highlight=aeiou", "--highlight=a-c"], "out/animation-tokens.gif"),
        (["animate", "out"], "out/animation-tokens.gif"),
    ],
)  # fmt: skip
def test_each_command_draws(trained, capsys, argv, name):
    draw(*argv)
    assert capsys.readouterr().out.endswith(f"written: {Path(name)}\n")
    kind = {".png": PNG, ".svg": SVG, ".gif": GIF}[Path(name).suffix.lower()]
    assert Path(name).read_bytes().startswith(kind)


def test_tsne_draws(trained):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    draw("embeddings", "out", "--method=tsne")
    draw("animate", "out", "--method=tsne", "--of=positions")
    with Image.open("out/animation-positions.gif") as animation:
        assert animation.n_frames == len(steps_of("out")) == 5


def test_a_picture_is_the_same_twice(trained):
    for name in ("a.svg", "b.svg"):
        draw("loss", "out", f"--to={name}")
    dates = [
        [line for line in Path(f"{n}.svg").read_text().splitlines() if "<dc:date>" not in line]
        for n in "ab"
    ]
    assert dates[0] == dates[1]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["lossy", "out"], "lossy is none of "), (["loss"], "out is missing"), (["loss", ""], "out is missing"),
        (["loss", "nowhere"], "there is no nowhere/metrics.jsonl"), (["embeddings", "nowhere"], "nowhere"),
        (["loss", "empty"], "has no line of a run in it"), (["loss", "out", "--to=x.jpg"], "must end in .png or .svg"),
        (["loss", "out", "--to="], "must end in .png"), (["loss", "out", "--to=no/x.png"], "No such file or directory"),
        (["loss", "out", "--y=2"], "no such option"), (["embeddings", "out", "out"], "one out is expected"),
        (["activations", "plain"], "Train with --snapshot_interval=100"), (["animate", "plain"], "has no snapshots"),
        (["animate", "out", "--highlight=Q"], "names no token"), (["animate", "out", "--to=x.png"], "end in .gif"),
        (["animate", "out", "--of=positions", "--highlight=a"], "positions are 0 to 15"),
        (["animate", "out", "--show"], "open it in a browser"), (["loss", "out", "--show"], "needs a screen"),
        (["animate", "damaged"], "cannot be read as a snapshot"), (["embeddings", "turned", "--of=positions"], "rope"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_message(trained, run, refused, monkeypatch, argv, words):
    monkeypatch.delenv("DISPLAY", raising=False)
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").write_text("{}\n")
    if {"plain", "damaged", "turned"} & set(argv):
        changes = (
            {"snapshot_interval": 5}
            if "damaged" in argv
            else {"position": "rope"}
            if "turned" in argv
            else {}
        )
        train.main(run(out_dir=argv[1], max_iters=5, **changes))
        if "damaged" in argv:
            Path("damaged/snapshots/00000005.npz").write_bytes(b"PK")
    assert words in refused(visualize.main, *argv).replace("\\", "/")
    assert not list(Path().rglob("*.tmp"))


def test_without_scikit_learn_the_message_installs_it(trained, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    message = refused(visualize.main, "embeddings", "out", "--method=tsne")
    assert "python -m pip install scikit-learn==1.9.1" in message
    with pytest.raises(ConfigError):
        tsne(np.ones((9, 3)))


def test_help_is_there_for_each_command(capsys):
    for argv in (["--help"], []):
        visualize.main(argv)
        assert all(name in capsys.readouterr().out for name in ["python visualize.py loss"])
    for name in visualize.COMMANDS:
        with pytest.raises(SystemExit) as exit:
            visualize.main([name, "--help"])
        assert exit.value.code == 0 and "--to" in capsys.readouterr().out
