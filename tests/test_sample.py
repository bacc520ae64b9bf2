"""The command that lets a model write: what reaches the terminal, and what it refuses."""

import re

import pytest

import sample
import train


@pytest.fixture
def trained(tiny, run):
    train.main(run(max_iters=30, lr_decay_iters=30))
    return tiny


def spoken(capsys, *argv):
    capsys.readouterr()
    sample.main(["--device=cpu", "--max_new_tokens=40", *argv])
    return capsys.readouterr().out


def test_samples_come_from_out_dir_with_the_tokenizer_of_the_checkpoint(trained, capsys):
    for path in (trained / "data").rglob("*"):
        if path.is_file():
            path.unlink()  # nothing but the checkpoint is needed
    out = spoken(capsys, "--out_dir=out", "--num_samples=3", "--start=menino")
    samples = out.split("\n---------------\n")
    assert len(samples) == 4 and samples[3] == "" and all(s.startswith("menino") and len(s) == 46 for s in samples[:3])
    assert len(set(samples[:3])) == 3
    assert spoken(capsys, "--init_from=out/latest.pt", "--num_samples=3", "--start=menino") == out
    assert spoken(capsys, "--init_from=out", "--num_samples=3", "--start=menino", "--seed=2") != out


def test_the_start_may_be_a_file(trained, capsys):
    (trained / "p.txt").write_text("maçã não", encoding="utf-8")
    assert spoken(capsys, "--start=FILE:p.txt", "--num_samples=1").startswith("maçã não")


def test_a_stop_text_in_the_command(trained, capsys):
    arguments = ["--start=o menino", "--num_samples=1", "--temperature=0"]
    written = spoken(capsys, *arguments).removeprefix("o menino").removesuffix("\n---------------\n")
    stops = written[4:6], written[7:9]
    place = min(map(written.index, stops))
    out = spoken(capsys, *arguments, *(f"--stop={stop}" for stop in stops))
    assert out == f"o menino{written[:place]}\n---------------\n"


def test_compiled_samples_are_the_same(trained, capsys):
    arguments = ["--num_samples=2", "--start=o", "--temperature=0", "--max_new_tokens=5"]
    assert spoken(capsys, *arguments, "--compile=True") == spoken(capsys, *arguments)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--start=xyz"], "never saw in training.*'x' (U+0078), 'y' (U+0079), 'z' (U+007A).*It knows:"),
        (["--start=a\udcc3"], "the start is not UTF-8"),
        (["--start="], "start= is empty"),
        (["--start=FILE:none.txt"], "cannot read none.txt"),
        (["--start=FILE:empty.txt"], "empty.txt is empty"),
        (["--start=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
        (["--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
        (["--top_k=-3"], "top_k=-3 must be at least 0"),
        (["--num_samples=0"], "num_samples=0 must be at least 1"),
        (["--stop="], "stop= is empty"),
        (["--out_dir=nowhere"], "no checkpoint nowhere"),
        (["--min_p=1.5"], "min_p=1.5 must be at least 0 and at most 1"),
        (["--repetition_penalty=0"], "repetition_penalty=0.0 must be above 0"),
        (["--seed=1e30"], "seed=1000000000000000019884624838656 must lie between"),
        (["--device=cuda:7"], "device=cuda:7"),
        (["--tempreature=1"], "did you mean --temperature?"),
    ],
)
def test_mistakes_are_one_message(trained, capsys, argv, words):
    (trained / "empty.txt").touch()
    (trained / "latin.txt").write_bytes("não".encode("latin1") * 2)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        sample.main(["--max_new_tokens=5", *argv])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and message.count("\n") == 1
    assert re.search(".*".join(map(re.escape, words.split(".*"))), message), message
