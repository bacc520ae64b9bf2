"""The command that lets a model write: what reaches the terminal, and what it refuses."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert (
        len(samples) == 4
        and samples[3] == ""
        and all(s.startswith("menino") and len(s) == 46 for s in samples[:3])
    )
    assert len(set(samples[:3])) == 3
    assert spoken(capsys, "--init_from=out/latest.pt", "--num_samples=3", "--start=menino") == out
    assert spoken(capsys, "--init_from=out", "--num_samples=3", "--start=menino", "--seed=2") != out


def test_the_start_may_be_a_file(trained, capsys):
    (trained / "p.txt").write_text("maçã não", encoding="utf-8")
    assert spoken(capsys, "--start=FILE:p.txt", "--num_samples=1").startswith("maçã não")


def test_a_stop_text_in_the_command(trained, capsys):
    arguments = ["--start=o menino", "--num_samples=1", "--temperature=0"]
    written = (
        spoken(capsys, *arguments).removeprefix("o menino").removesuffix("\n---------------\n")
    )
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
        (
            ["--start=xyz"],
            "never saw in training.*'x' (U+0078), 'y' (U+0079), 'z' (U+007A).*It knows:",
        ),
        (["--start=a\udcc3"], "the start is not UTF-8"),
        (["--start="], "start= is empty"),
        (["--start=FILE:none.txt"], "cannot read none.txt"),
        (["--start=FILE:empty.txt"], "empty.txt is empty"),
        (["--start=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
        (["--start=FILE:binary.dat"], "binary.dat is not UTF-8 (offset 0)"),
        (["--start=FILE:zero.txt"], "never saw in training.*U+0000"),
        (["--start=FILE:."], "cannot read .: "),
        (["--start=FILE:loop"], "cannot read loop: "),
        (["--start=FILE:tiny.txt/x"], "cannot read tiny.txt"),
        (["--top_p=1.01"], "top_p=1.01 must be above 0 and at most 1"),
        (["--temperature=nan"], "temperature='nan' expects a number"),
        (["--max_new_tokens=-5"], "max_new_tokens=-5 must be at least 1"),
        (["--max_new_tokens=1e300"], "max_new_tokens="),
        (["--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
        (["--top_k=-3"], "top_k=-3 must be at least 0"),
        (["--num_samples=0"], "num_samples=0 must be at least 1"),
        (["--stop="], "stop= is empty"),
        (["--out_dir=nowhere"], "no checkpoint nowhere"),
        (["--interactive", "--start=a", "--start=b"], "start= is given several times"),
        (["--stop=a\udcc3"], "stop= is not UTF-8"),
        (["--frequency_penalty=1e308"], "frequency_penalty=1e+308 must lie between -100 and 100"),
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
    (trained / "binary.dat").write_bytes(b"\x89PNG\r\n\x1a\n\0\xff")
    (trained / "zero.txt").write_bytes(b"o\0o")
    with contextlib.suppress(OSError):  # not everybody may on Windows
        (trained / "loop").symlink_to("loop")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        sample.main(["--max_new_tokens=5", *argv])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and message.count("\n") == 1
    assert re.search(".*".join(map(re.escape, words.split(".*"))), message), message


@pytest.mark.parametrize(
    "argv, same",
    [
        (["--top_k=0"], ["--top_k=None"]),  # among all
        (["--top_k=9999"], ["--top_k=0"]),  # more than there are: all
        (["--top_k=1"], ["--temperature=0"]),
        (["--temperature=1e-300"], ["--temperature=0"]),
        (["--top_p=1e-300"], ["--temperature=0"]),
        (["--start=FILE:bom.txt"], []),  # a byte order mark is no character
        (["--stop=never there"], []),
        (["--stop=never there, and longer than all that is written; " + "x" * 99], []),
        (
            ["--max_new_tokens=1000000000", "--stop=o", "--stop=n", "--stop= "],
            ["--stop=o", "--stop=n", "--stop= "],
        ),
    ],
)
def test_the_ends_of_the_ranges_mean_what_is_documented(trained, capsys, argv, same):
    Path("bom.txt").write_text("o menino", encoding="utf-8-sig")
    common = ["--num_samples=1", "--start=o menino"]
    assert spoken(capsys, *common[: 1 if "bom" in argv[0] else 2], *argv) == spoken(
        capsys, *common, *same
    )


def test_a_start_longer_than_block_size_is_shown_whole_and_read_from_its_end(trained, capsys):
    """The model has a context of 16."""
    end = "não comeu; o men"
    spoke = spoken(capsys, "--num_samples=1", "--temperature=0", f"--start={'maçã ' * 1000}{end}")
    assert spoke == "maçã " * 1000 + spoken(
        capsys, "--num_samples=1", "--temperature=0", f"--start={end}"
    )


def test_several_starts_are_one_batch_and_each_is_what_it_is_alone(trained, capsys):
    arguments = ["--temperature=0", "--num_samples=2"]
    together = spoken(capsys, *arguments, "--start=o menino", "--start=viu")
    alone = spoken(capsys, *arguments, "--start=o menino") + spoken(
        capsys, *arguments, "--start=viu"
    )
    assert together == alone and together.count("---------------") == 4


def test_penalties_change_what_is_said(trained, capsys):
    arguments = ["--temperature=0", "--num_samples=1", "--start=o menino"]
    plain = spoken(capsys, *arguments)
    for option in ("--repetition_penalty=5", "--frequency_penalty=2", "--presence_penalty=9"):
        assert spoken(capsys, *arguments, option) != plain
    assert spoken(capsys, *arguments, "--repetition_penalty=1", "--min_p=0.5") == plain


def converse(monkeypatch, capsys, *events, argv=()):
    """A conversation: each event is a line that is typed, or an exception that the keyboard causes."""
    events = iter(events)

    def typed(prompt):
        event = next(events)
        if isinstance(event, type):
            raise event
        return event

    monkeypatch.setattr("builtins.input", typed)
    capsys.readouterr()
    sample.main(
        ["--device=cpu", "--interactive=True", "--temperature=0", "--max_new_tokens=10", *argv]
    )
    assert next(events, None) is None
    return capsys.readouterr().out.splitlines()[1:]  # without the line that explains


def test_a_conversation_goes_on_from_all_that_was_said(trained, monkeypatch, capsys):
    """Every turn is what one call makes of the whole text so far; /new forgets it."""

    def reply(text):
        arguments = ["--temperature=0", "--num_samples=1", "--max_new_tokens=10", f"--start={text}"]
        return spoken(capsys, *arguments).removeprefix(text).removesuffix("\n---------------\n")

    first = reply("o menino")
    second = reply(f"o menino{first}\nviu")
    more = reply(f"o menino{first}\nviu{second}")
    said = "\n".join(
        converse(monkeypatch, capsys, "o menino", "viu", "", "/new", "o menino", "/quit")
    )
    assert said == "\n".join((first, second, more, first))


def test_ctrl_c_stops_the_reply_and_not_the_program(trained, monkeypatch, capsys):
    write, calls = sample.Writer.write, []

    def interrupted(self, prompts, show):
        calls.append(list(prompts[0]))
        if len(calls) == 1:
            show(0, "me")
            raise KeyboardInterrupt
        write(self, prompts, show)

    monkeypatch.setattr(sample.Writer, "write", interrupted)
    said = converse(monkeypatch, capsys, "viu ", KeyboardInterrupt, "a", EOFError)
    assert said[:3] == ["me", "", "Ctrl-D or /quit leaves."] and len(said) > 3
    chars = sample.weights.load("out")["tokenizer"]["chars"]
    assert "".join(chars[i] for i in calls[1]) == "viu me\na"  # what was said before Ctrl-C counts


def test_an_unknown_character_is_named_and_the_conversation_goes_on(trained, monkeypatch, capsys):
    said = converse(monkeypatch, capsys, "xyz", "o", "/quit")
    assert "never saw in training" in said[0] and len(said) >= 2


def test_a_conversation_may_begin_with_a_text(trained, monkeypatch, capsys):
    Path("p.txt").write_text("o menino", encoding="utf-8")
    one = converse(monkeypatch, capsys, "", "/quit", argv=["--start=FILE:p.txt"])
    assert one == converse(monkeypatch, capsys, "o menino", "/quit")


def test_the_compiler_is_not_loaded_to_write_a_text(tiny, run):
    """A model on the meta device, made to compare shapes, once loaded torch._dynamo: a second more for each start."""
    train.main(run(max_iters=1))
    code = "import sys, sample; sample.main(sys.argv[1:]); print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code, "--out_dir=out", "--num_samples=1", "--max_new_tokens=1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(sample.__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "False"
