"""Plots of runs and embeddings: the numbers behind them, and the commands that draw them."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import train
import visualize
from seugpt.checkpoint.pretrained import initial_state_dict, load_pretrained
from seugpt.checkpoint.storage import save_checkpoint
from seugpt.data.tokenizer import CharTokenizer, bpe_tokenizer
from seugpt.errors import ConfigError
from seugpt.plots.curves import plot_losses
from seugpt.plots.embeddings import (
    align,
    choose_tokens,
    clusters,
    frame_captions,
    highlight_groups,
    principal_components,
    project,
    trajectories,
    tsne,
)
from seugpt.plots.labels import separate
from seugpt.plots.loss_findings import compare_runs, describe_doublings, describe_run
from seugpt.plots.run_metrics import smooth, to_run
from seugpt.plots.style import TOKEN_CLASSES, token_class, token_label
from seugpt.training.snapshots import find_snapshots, load_embeddings
from tests.helpers import logged_metrics, save_perturbed_gpt

PNG = b"\x89PNG"
FILE_SIGNATURES = {".png": PNG, ".svg": b"<?xml", ".gif": b"GIF89a"}


@pytest.mark.parametrize(
    "token, label, expected_class",
    [
        ("a", "a", "vowels"),
        ("ã", "ã", "vowels"),
        ("ç", "ç", "consonants"),
        ("Q", "Q", "capitals"),
        ("É", "É", "capitals"),
        ("7", "7", "digits"),
        ("$", "$", "punctuation"),
        (" ", "␣", "white space"),
        ("\n", "↵", "white space"),
        ("ж", "ж", "other letters"),
        (" the", "␣the", "starts of words"),
        ("ing", "ing", "insides of words"),
        (" 1", "␣1", "digits"),
        ("🦜", "U+1F99C", "punctuation"),
        (b"\xf0\x9f", "f0 9f", "parts of characters"),
        ("\x01", "U+0001", "punctuation"),
        ("", "", "white space"),
    ],
)
def test_tokens_have_a_label_and_a_class(token, label, expected_class):
    token = token.encode() if isinstance(token, str) else token
    assert token_label(token) == label
    assert token_class(token) == expected_class
    assert expected_class in TOKEN_CLASSES


# Runs


@pytest.mark.parametrize("length", [1, 30, 100, 300])
def test_smoothing_averages_neighbours(length):
    values = np.random.default_rng(0).normal(size=length)
    expected = []
    for n in range(length):
        reach = min(n // 8, max(length // 30, 4))
        expected.append(values[n - reach : n + reach + 1].mean())
    assert smooth(values) == pytest.approx(expected)


def test_smoothing_invents_no_rise_at_the_end():
    """The window shrank to the last value, whose noise made the line of a falling loss rise."""
    falling = 5 - np.log1p(np.arange(60))
    assert (np.diff(smooth(falling)) <= 0).all()
    noisy = falling.copy()
    noisy[-1] += 0.3
    assert smooth(noisy)[-1] - smooth(falling)[-1] < 0.07


def test_the_x_axis_can_be_steps_tokens_or_seconds():
    lines = [
        {"step": step, "loss": 1.0, "step_ms": 500.0, "tokens_per_s": 64.0} for step in (0, 10, 20)
    ]
    damaged_line = None
    evaluation = {"step": 15, "val_loss": 2.0, "train_loss": 2.0}
    run = to_run("x", [*lines, damaged_line, evaluation])
    assert run.steps["step"].tolist() == [0, 10, 20]
    assert run.evaluations["val_loss"].tolist() == [2.0]
    assert run.x_values("step", np.array([15])).tolist() == [15]
    assert run.x_values("tokens", np.array([15])).tolist() == [15 * 32]
    assert run.x_values("seconds", np.array([0, 11, 15])) == pytest.approx([0, 5.5, 7.5])


def test_columns_hold_nan_where_a_line_lacks_a_value():
    lines = [{"step": n, "loss": 3.0} for n in range(3)]
    lines[1]["mfu"] = 0.5
    run = to_run("x", lines)
    assert run.steps["mfu"] == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
    diverged = to_run("x", [{"step": 0, "loss": math.inf}])
    assert len(diverged.steps["step"]) == 0


def evaluated_run(name, train_losses, val_losses, interval=100):
    lines = []
    for n, (train_loss, val_loss) in enumerate(zip(train_losses, val_losses, strict=True)):
        lines.append({"step": interval * n, "train_loss": train_loss, "val_loss": val_loss})
    return to_run(name, lines)


def test_the_title_says_where_the_losses_part_and_by_how_much():
    title = describe_run(evaluated_run("x", [4.0, 2.0, 1.8], [4.0, 2.3, 2.14]))
    assert title.split() == (
        "Training and validation loss part before step 100: at the end they are 0.34 apart".split()
    )
    # Together again at step 200: what counts is where they part for good.
    assert "before step 300" in describe_run(
        evaluated_run("x", [4.0, 3.0, 2.5, 1.8], [4.0, 3.2, 2.51, 2.14])
    )
    assert "stay together" in describe_run(evaluated_run("x", [4.0, 2.0], [4.0, 2.04]))
    assert "stay together" in describe_run(evaluated_run("x", [4.0, 2.0], [4.0, 1.9]))
    assert "are 0.34 apart" in describe_run(evaluated_run("x", [1.0], [1.34]))


def test_a_rising_validation_loss_is_called_overfitting():
    title = describe_run(evaluated_run("x", [3.0, 1.9, 1.5], [3.0, 2.0, 2.5]))
    assert title.split() == (
        "x overfits: after step 100 its validation loss rises by 0.50 "
        "while its training loss goes on falling, by 0.40".split()
    )
    both_rise = describe_run(evaluated_run("x", [3.0, 1.9, 2.5], [3.0, 2.0, 2.5]))
    assert "overfits" not in both_rise
    assert "rises by 0.50" in both_rise
    assert "overfits" not in describe_run(evaluated_run("x", [3.0, 1.9, 1.5], [3.0, 2.0, 2.01]))


def test_several_runs_are_compared():
    low = evaluated_run("low", [3.0, 1.8], [3.0, 1.9])
    high = evaluated_run("high", [3.0, 2.0], [3.0, 2.1])
    assert compare_runs([high, low]) == (
        "The lowest validation loss is that of low: 1.9000 at step 100"
    )
    overfitted = evaluated_run("small", [3.0, 2.0, 1.0], [3.0, 2.1, 2.2])
    assert compare_runs([low, overfitted]).startswith("small overfits: after step 100 ")


def test_doublings_of_the_steps_are_compared_along_a_logarithmic_axis():
    steps = np.arange(9)  # hundreds
    losses = 4 - 0.2 * np.log2(np.maximum(steps, 1))
    title = describe_doublings(evaluated_run("x", losses, losses))
    assert "by 0.20 from step 100 to 200, by 0.20 from 400 to 800" in title
    assert describe_doublings(evaluated_run("x", losses[:3], losses[:3])) == ""
    assert describe_doublings(evaluated_run("x", losses[:1], losses[:1])) == ""
    assert describe_doublings(evaluated_run("x", losses, losses[::-1])) == ""


@pytest.fixture
def drawn_lines(monkeypatch):
    """The lines of the figures that are saved, by their labels."""
    lines = {}
    save = Figure.savefig

    def record(figure, *args, **kwargs):
        lines.update((line.get_label(), line) for axes in figure.axes for line in axes.lines)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return lines


def test_a_run_does_not_hide_another(workspace, drawn_lines):
    """Two runs from one seed coincided, and only the second one could be seen."""
    losses = [4.0, 2.0, 1.9]
    runs = [evaluated_run(name, losses, losses) for name in ("first", "second")]
    plot_losses("x.png", runs)
    for part in ("training", "validation"):
        first, second = (drawn_lines[f"{name}: {part}"] for name in ("first", "second"))
        assert first.get_linewidth() >= 2 * second.get_linewidth()
        assert first.get_color() != second.get_color()


@pytest.mark.parametrize("x", ["step", "tokens", "seconds"])
@pytest.mark.parametrize("xscale", ["linear", "log"])
def test_a_plot_can_begin_at_a_step(workspace, drawn_lines, x, xscale):
    """It then has the height of what it shows: the first losses would flatten the others."""
    lines = [
        {"step": n, "loss": 2.0, "step_ms": 1e3, "tokens_per_s": 1.0} for n in range(0, 500, 9)
    ]
    lines += [
        {"step": 100 * n, "train_loss": loss, "val_loss": loss + 0.5}
        for n, loss in enumerate((9.0, 2.0, 1.9, 1.8, 1.7))
    ]
    plot_losses("x.png", [to_run("x", lines)], x, xscale, from_step=200)
    axes = drawn_lines["validation"].axes
    low, high = axes.get_ylim()
    assert 1.5 < low < 1.7
    assert 2.4 < high < 2.5
    left = axes.get_xlim()[0]
    assert 100 < left < 200
    with pytest.raises(ConfigError, match="from_step=501"):
        plot_losses("x.png", [to_run("x", lines)], x, xscale, from_step=501)


def test_a_plot_of_many_steps_is_a_small_file(workspace):
    lines = (
        {"step": n, "loss": 5 / (n + 1), "step_ms": 1.0, "tokens_per_s": 9.0} for n in range(50_000)
    )
    plot_losses("x.png", [to_run("long", lines)], "seconds")
    assert Path("x.png").stat().st_size < 200_000


# Embeddings


def test_principal_components_are_eigenvectors_of_the_covariance():
    table = np.random.default_rng(1).normal(size=(40, 7)) * np.arange(1, 8)
    variances, directions = np.linalg.eigh(np.cov(table.T))  # in ascending order
    components = principal_components(table).T
    for component, direction in zip(components, directions.T[::-1], strict=False):
        assert abs(component @ direction) == pytest.approx(1)
        assert component[np.abs(component).argmax()] > 0
    _, shares = project(table, "pca")
    assert shares == pytest.approx(variances[:-3:-1] / variances.sum())


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (1, 1), (2, 2)])
def test_degenerate_tables_are_projected_to_two_dimensions(shape):
    table = np.ones(shape)
    points, _ = project(table, "pca")
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()
    assert principal_components(table).shape == (shape[1], 2)


def test_align_undoes_rotations_and_reflections():
    points = np.random.default_rng(2).normal(size=(9, 2))
    points -= points.mean(axis=0)
    for transform in ([[0, 1], [-1, 0]], [[1, 0], [0, -1]]):
        assert align(points @ np.array(transform) + 5, points) == pytest.approx(points)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_points_move_without_jumping(method):
    """Each frame had a t-SNE of its own, and whole groups changed sides between frames."""
    if method == "tsne":
        pytest.importorskip("sklearn")
    rng = np.random.default_rng(3)
    first_table = rng.normal(size=(30, 8)) + 4 * np.repeat(np.eye(3, 8), 10, axis=0)
    tables = [first_table, first_table + 0.01 * rng.normal(size=(30, 8))]
    first, second = trajectories(tables, method)
    assert np.linalg.norm(second - first, axis=1).max() < 0.2 * np.ptp(first)
    if method == "pca":
        assert second == pytest.approx(project(tables[-1], "pca")[0])


def test_only_drawable_tokens_are_chosen():
    tokens, ids = choose_tokens(CharTokenizer("a\x01\nb🦜"))
    assert (tokens, ids) == ([b"a", b"\n", b"b"], [0, 2, 3])
    ranks = [bytes([n]) for n in range(256)] + [b"th", b" th", "ção".encode(), b"\xc3\xa7\xc3"]
    tokens, ids = choose_tokens(bpe_tokenizer(ranks))
    assert ids[-4:-1] == [256, 257, 258]
    assert {b"a", b" "} <= set(tokens)
    assert not {b"\xff", b"\xc3\xa7\xc3"} & set(tokens)  # not UTF-8
    assert not {b"#", b"\t"} & set(tokens)  # bytes that perhaps no text contained


def test_highlights_can_be_characters_and_ranges():
    tokens = [char.encode() for char in "xyz019a"]
    groups = highlight_groups(["az", "0-5"], tokens, "tokens")
    assert [(name, rows) for name, _, rows in groups] == [("az", [6, 2]), ("0-5", [3, 4])]
    assert len({colour for _, colour, _ in groups}) == 2
    with pytest.raises(ConfigError, match="highlight=q"):
        highlight_groups(["q"], tokens, "tokens")


def test_highlights_can_be_positions():
    positions = [str(n).encode() for n in range(16)]
    groups = highlight_groups(["12-14", "3", "14-99"], positions, "positions")
    assert [rows for _, _, rows in groups] == [[12, 13, 14], [3], [14, 15]]
    with pytest.raises(ConfigError, match=r"highlight=99.* 0 to 15"):
        highlight_groups(["99"], positions, "positions")


def test_initial_weights_are_those_the_run_started_from(trained):
    before = initial_state_dict(load_pretrained("out"))
    for name, table in load_embeddings(find_snapshots("out")[0]).items():
        assert np.array_equal(before[f"{name}.weight"].half().float().numpy(), table)


def test_a_fine_tuned_run_is_drawn_without_initial_weights(trained, run):
    train.main(run(init_from="out/best.pt", out_dir="tuned", max_iters=1, eval_interval=1))
    assert initial_state_dict(load_pretrained("tuned")) is None
    visualize.main(["embeddings", "tuned"])
    assert Path("tuned/embeddings-tokens.png").read_bytes().startswith(PNG)


def test_captions_name_the_last_evaluation(trained):
    """Frames between two evaluations repeated a loss as if it were of their step."""
    val_losses = {
        line["step"]: f"{line['val_loss']:.3f}" for line in logged_metrics() if "val_loss" in line
    }
    captions = frame_captions("out", [0, 3, 10, 19, 30])
    expected_steps = [(0, 0), (3, 0), (10, 10), (19, 10), (30, 30)]
    for caption, (step, evaluated) in zip(captions, expected_steps, strict=True):
        expected = f"step {step} last evaluation: {val_losses[evaluated]} (step {evaluated})"
        assert caption.split() == expected.split()


# Labels


def overlaps(centres, sizes):
    """[(i, j)] of the boxes that overlap by more than a pixel."""
    pairs = itertools.combinations(range(len(centres)), 2)
    return [
        (i, j)
        for i, j in pairs
        if (np.abs(centres[i] - centres[j]) < (sizes[i] + sizes[j]) / 2 - 1).all()
    ]


@pytest.mark.parametrize("spread", [0, 25, 60])
def test_labels_are_moved_until_they_can_be_read(spread):
    rng = np.random.default_rng(0)
    points = 250 + spread * rng.normal(size=(40, 2))
    sizes = np.stack([rng.integers(8, 40, 40), np.full(40, 12)], axis=1)
    limits = np.array([[0, 0], [500, 500]])
    assert overlaps(points, sizes)
    centres = separate(points, sizes, limits)
    assert overlaps(centres, sizes) == []
    assert (centres - sizes / 2 >= 0).all()
    assert (centres + sizes / 2 <= 500).all()


def test_labels_with_room_stay_at_their_points():
    points = np.array([[100.0, 100.0], [120.0, 100.0], [400.0, 400.0], [401.0, 400.0]])
    centres = separate(points, np.full((4, 2), 15.0), np.array([[0, 0], [500, 500]]))
    assert np.array_equal(centres[:2], points[:2])
    assert centres[2:].mean(axis=0) == pytest.approx([400.5, 400])


def test_clusters_are_named_by_what_lies_together():
    rng = np.random.default_rng(0)
    corners = np.repeat([[0, 0], [100, 0], [0, 100], [100, 100]], [6, 6, 6, 12], axis=0)
    points = corners + rng.normal(size=(30, 2))
    labels = ["a"] * 6 + ["b"] * 6 + ["a"] * 6 + ["a", "b"] * 6  # the last corner is mixed
    found = clusters(points, labels)
    assert found == [
        ("a", list(range(6))),
        ("b", list(range(6, 12))),
        ("a", list(range(12, 18))),
    ]
    assert clusters(points[:3], labels[:3]) == []  # too few


# The commands


@pytest.mark.parametrize(
    "argv, path",
    [
        (["loss", "out"], "out/loss.png"),
        (["loss", "out", "out", "--x=tokens"], "out/loss.png"),
        (["loss", "out", "--xscale=log", "--from_step=10", "--lang=pt"], "out/loss.png"),
        (["loss", "--out_dir=out", "--to=new.SVG", "--x=seconds"], "new.SVG"),
        (["activations", "out"], "out/activations.png"),
        (["embeddings", "out"], "out/embeddings-tokens.png"),
        (["embeddings", "out/best.pt", "--of=positions"], "out/embeddings-positions.png"),
        (["embeddings", "--init_from=out", "--of=similarity", "--to=x.svg"], "x.svg"),
        (["animate", "out"], "out/animation-tokens.gif"),
        (["animate", "out", "--highlight=aeiou", "--highlight=a-c"], "out/animation-tokens.gif"),
        (["animate", "out", "--of=positions", "--highlight=12-14"], "out/animation-positions.gif"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_command_draws_a_file(trained, capsys, argv, path):
    Path(path).unlink(missing_ok=True)
    visualize.main(argv)
    assert capsys.readouterr().out.endswith(f"written: {Path(path)}\n")
    assert Path(path).read_bytes().startswith(FILE_SIGNATURES[Path(path).suffix.lower()])


def test_tsne_works_for_plots_and_animations(trained):
    pytest.importorskip("sklearn")
    visualize.main(["embeddings", "out", "--method=tsne"])
    visualize.main(["animate", "out", "--method=tsne", "--of=positions"])
    with Image.open("out/animation-positions.gif") as animation:
        assert animation.n_frames == len(find_snapshots("out")) == 4


def test_drawing_twice_gives_the_same_file(trained):
    plots = []
    for _ in range(2):
        visualize.main(["loss", "out", "--to=x.svg"])
        lines = Path("x.svg").read_text(encoding="utf-8").splitlines()
        plots.append([line for line in lines if "<dc:date>" not in line])
    assert plots[0] == plots[1]


def remove_snapshots(folder):
    """Make a run look as if it was trained without snapshot_interval."""
    shutil.rmtree(folder / "snapshots")
    lines = [line for line in logged_metrics(folder) if "weight_norm/embedding" not in line]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "argv, named",
    [
        (["loss", "nowhere"], ["nowhere/metrics.jsonl", "python train.py"]),
        (["loss", "empty"], ["empty/metrics.jsonl"]),
        (["loss", "out", "--to=no/x.png"], ["No such file or directory", "no/"]),
        (["loss", "out", "--from_step=31"], ["from_step=31"]),
        (["loss", "out", "--show"], ["show=True", "out/loss.png"]),
        (["embeddings", "nowhere"], ["nowhere"]),
        (["embeddings", "rope", "--of=positions"], ["rope", "position=rope"]),
        (["activations", "plain"], ["plain", "--snapshot_interval=100"]),
        (["animate", "plain"], ["plain", "--snapshot_interval=100"]),
        (["animate", "damaged"], ["damaged/snapshots/00000030.npz"]),
        (["animate", "out", "--highlight=Q"], ["highlight=Q"]),
        (["animate", "out", "--of=positions", "--highlight=a"], ["highlight=a", "0 to 15"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_drawn_ends_in_one_message(trained, refused, monkeypatch, argv, named):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for copied in ("plain", "damaged"):
        shutil.copytree("out", copied)
    remove_snapshots(Path("plain"))
    Path("damaged/snapshots/00000030.npz").write_bytes(b"PK")
    save_perturbed_gpt(load_pretrained("out")["tokenizer"], "rope/best.pt", position="rope")
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").write_text("{}\n", encoding="utf-8")
    message = refused(visualize.main, *argv).replace("\\", "/")
    assert all(words in message for words in named), message
    assert list(Path().rglob("*.tmp")) == []


@pytest.mark.parametrize(
    "argv, named",
    [
        (["lossy", "out"], ["lossy", ", ".join(visualize.COMMANDS), "--help"]),
        (["loss", ""], ["out_dir='': ", "empty"]),
        (["loss", "out", "--lang=fr"], ["lang=", "fr", "en or pt"]),
        (["loss", "out", "--to=x.jpg"], ["to=x.jpg ", ".png or .svg"]),
        (["embeddings", "out", "out"], ["out out: ", "one out_dir"]),
        (["animate", "out", "--to=x.png"], ["to=x.png ", ".gif"]),
        (["animate", "out", "--show"], ["show=True", "browser"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_invalid_option_ends_in_one_message(workspace, refused, argv, named):
    message = refused(visualize.main, *argv)
    assert all(words in message for words in named), message


WTE = np.zeros((14, 32), np.float16)
BAD_SNAPSHOTS = {
    "no wte": {"wpe": WTE},
    "one dimension": {"wte": WTE[0]},
    "NaN": {"wte": WTE * np.nan},
    "fewer rows": {"wte": WTE[:5]},
    "objects": {"wte": np.array([{}])},
}


@pytest.mark.parametrize("name", BAD_SNAPSHOTS)
def test_a_snapshot_with_other_arrays_is_one_message(trained, refused, name):
    """They ended in tracebacks of NumPy."""
    np.savez("out/snapshots/00000010.npz", **BAD_SNAPSHOTS[name])
    assert "snapshot" in refused(visualize.main, "animate", "out")


def test_a_compressed_snapshot_is_refused_before_it_fills_the_memory(trained, refused):
    zeros = np.zeros((1000, 1000), np.float16)
    np.savez_compressed("out/snapshots/00000010.npz", wte=zeros)
    message = refused(visualize.main, "animate", "out").replace("\\", "/")
    assert "out/snapshots/00000010.npz cannot be read" in message


def test_embeddings_of_weights_that_do_not_fit_are_one_message(trained, refused):
    ckpt = load_pretrained("out")
    ckpt["model"]["wte.weight"] = ckpt["model"]["wte.weight"][:3]
    del ckpt["path"]
    save_checkpoint(Path("out/best.pt"), ckpt)
    assert "wte.weight has shape (3, 32)" in refused(visualize.main, "embeddings", "out")


def test_out_is_the_default_folder(workspace, refused):
    assert "out/metrics.jsonl" in refused(visualize.main, "loss").replace("\\", "/")


def test_without_scikit_learn_the_message_gives_the_install_command(trained, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    message = refused(visualize.main, "embeddings", "out", "--method=tsne")
    assert "python -m pip install scikit-learn==1.9.1" in message
    with pytest.raises(ConfigError):
        tsne(np.ones((9, 3)))


@pytest.mark.parametrize("name", visualize.COMMANDS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        visualize.main([name, "--help"])
    assert exit.value.code == 0
    assert "--to" in capsys.readouterr().out
