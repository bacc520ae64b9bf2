"""What sample.py prints, and its chat; tests/cli/test_bad_options.py has what it refuses."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import sample
from seugpt.data.tokenizer import train_bpe
from tests.helpers import run_python, save_perturbed_gpt

SEPARATOR = "\n---------------\n"


@pytest.fixture
def sampled(trained, capsys):
    """sampled("--start=o", ...): what sample.py prints, with the model in out/."""

    def call(*argv):
        capsys.readouterr()
        sample.main(["--device=cpu", "--max_new_tokens=40", *argv])
        return capsys.readouterr().out

    return call


@pytest.fixture
def continuation(sampled):
    """continuation(start, ...): the model's greedy continuation of `start`."""

    def call(start, *argv):
        out = sampled("--temperature=0", "--num_samples=1", f"--start={start}", *argv)
        assert out.startswith(start)
        assert out.endswith(SEPARATOR)
        return out.removeprefix(start).removesuffix(SEPARATOR)

    return call


def test_sampling_needs_only_the_checkpoint(trained, sampled):
    shutil.rmtree(trained / "data")
    arguments = ["--num_samples=3", "--start=menino"]
    out = sampled("--out_dir=out", *arguments)
    *samples, rest = out.split(SEPARATOR)
    assert rest == ""
    assert len(set(samples)) == len(samples) == 3
    assert all(text.startswith("menino") and len(text) == 46 for text in samples)
    assert sampled("--init_from=out/latest.pt", *arguments) == out
    assert sampled("--init_from=out", *arguments, "--seed=2") != out


def test_start_can_be_a_file(sampled):
    Path("prompt.txt").write_text("maçã não", encoding="utf-8")
    assert sampled("--start=FILE:prompt.txt", "--num_samples=1").startswith("maçã não")


def test_the_first_stop_sequence_ends_the_sample(continuation):
    text = continuation("o menino")
    stops = (text[4:6], text[7:9])
    expected = text[: min(map(text.index, stops))]
    assert continuation("o menino", *(f"--stop={stop}" for stop in stops)) == expected


def test_compile_is_passed_on_and_changes_no_sample(sampled, monkeypatch):
    compiled = []

    def record(function, **options):
        compiled.append(function)
        return function

    arguments = ["--num_samples=2", "--start=o", "--temperature=0"]
    expected = sampled(*arguments)
    monkeypatch.setattr(torch, "compile", record)
    assert sampled(*arguments, "--compile=True") == expected
    assert len(compiled) == 1


def test_a_compiler_failure_is_reported_and_changes_no_sample(trained, monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no compiler")

    arguments = ["--device=cpu", "--num_samples=1", "--temperature=0", "--max_new_tokens=5"]
    sample.main(arguments)
    expected = capsys.readouterr().out
    monkeypatch.setattr(torch, "compile", broken)
    sample.main([*arguments, "--compile=True"])
    printed = capsys.readouterr()
    assert printed.out == expected
    assert "uncompiled: RuntimeError: no compiler\n" in printed.err


@pytest.mark.parametrize(
    "argv, same_as",
    [
        (["--top_k=0"], ["--top_k=None"]),
        (["--top_k=9999"], ["--top_k=0"]),  # the vocabulary has 14 tokens
        (["--top_k=1"], ["--temperature=0"]),
        (["--temperature=1e-300"], ["--temperature=0"]),
        (["--top_p=1e-300"], ["--temperature=0"]),
        (["--stop=never there"], []),
        (["--stop=never there, and longer than everything generated; " + "x" * 99], []),
        (
            ["--max_new_tokens=1000000000", "--stop=o", "--stop=n", "--stop= "],
            ["--stop=o", "--stop=n", "--stop= "],
        ),
    ],
)
def test_extreme_option_values_have_their_documented_meaning(sampled, argv, same_as):
    common = ["--num_samples=1", "--start=o menino"]
    assert sampled(*common, *argv) == sampled(*common, *same_as)


def test_a_byte_order_mark_is_not_part_of_the_prompt(sampled):
    Path("bom.txt").write_text("o menino", encoding="utf-8-sig")
    expected = sampled("--num_samples=1", "--start=o menino")
    assert sampled("--num_samples=1", "--start=FILE:bom.txt") == expected


def test_a_start_longer_than_block_size_is_printed_whole_and_cut_for_the_model(continuation):
    end = "não comeu; o men"  # of block_size characters
    assert continuation(f"{'maçã ' * 1000}{end}") == continuation(end)


def test_several_starts_give_the_samples_of_each_start_alone(sampled):
    arguments = ["--temperature=0", "--num_samples=2"]
    together = sampled(*arguments, "--start=o menino", "--start=viu")
    alone = [sampled(*arguments, f"--start={start}") for start in ("o menino", "viu")]
    assert together == "".join(alone)
    assert together.count(SEPARATOR) == 4


def test_penalties_and_min_p_reach_the_sampler(continuation):
    plain = continuation("o menino")
    for option in ("--repetition_penalty=5", "--frequency_penalty=2", "--presence_penalty=9"):
        assert continuation("o menino", option) != plain
    assert continuation("o menino", "--repetition_penalty=1") == plain
    assert continuation("o menino", "--temperature=1", "--min_p=1") == plain


@pytest.fixture
def ends_at_once(workspace, capsys):
    """ends_at_once(...): what sample.py prints with a model that always says "ab<end>"."""
    tokenizer = train_bpe(["ab"], 258)
    ids = [*tokenizer.encode("ab").tolist(), tokenizer.vocab_size - 1]  # the last: END_OF_TEXT

    def call(*argv):
        capsys.readouterr()
        sample.main(["--device=cpu", "--num_samples=2", "--max_new_tokens=7", *argv])
        return capsys.readouterr().out

    save_perturbed_gpt(tokenizer.spec())

    def tokens(decoder, prompts, length, *_):
        for n in range(length):
            yield torch.tensor([ids[n % len(ids)]] * len(prompts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "generate_tokens", tokens)
        yield call


def test_a_sample_ends_at_the_end_of_text_token(ends_at_once):
    assert ends_at_once("--start=x") == f"xab{SEPARATOR}xab{SEPARATOR}"
    text = "xab<|endoftext|>ab<|endoftext|>"
    assert ends_at_once("--start=x", "--ignore_eos=True").startswith(text)


def test_a_reply_ends_at_the_end_of_text_token(ends_at_once, monkeypatch):
    typed = iter(["x", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert ends_at_once("--interactive").splitlines()[1:] == ["ab"]


def test_default_start_is_a_character_that_the_model_knows(workspace, capsys):
    save_perturbed_gpt({"kind": "char", "chars": "xyz"})
    sample.main(["--device=cpu", "--num_samples=1", "--max_new_tokens=1"])
    assert capsys.readouterr().out.startswith("x")


def test_a_chat_needs_no_newline_in_the_vocabulary(workspace, monkeypatch, capsys):
    save_perturbed_gpt({"kind": "char", "chars": "xyz"})
    typed = iter(["x", "y", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    sample.main(["--device=cpu", "--interactive", "--max_new_tokens=3"])
    assert "never saw" not in capsys.readouterr().out


CONTROLS = "\r\x00\x07\x0e\x1b[31m\x7f\x9b"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_are_escaped_on_a_terminal(workspace, capsys, monkeypatch, is_terminal):
    """The model of a text with colours rang the bell and changed the terminal's font."""
    chars = "".join(sorted(set(CONTROLS + "\n\tã")))
    save_perturbed_gpt({"kind": "char", "chars": chars})
    Path("start.txt").write_bytes(f"{CONTROLS}\n\tã".encode())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    sample.main(["--device=cpu", "--num_samples=2", "--start=FILE:start.txt"])
    out = capsys.readouterr().out
    assert any(char in out for char in CONTROLS if char not in "[31m") != is_terminal
    shown = r"\x0d\x00\x07\x0e\x1b[31m\x7f\x9b" if is_terminal else CONTROLS
    assert out.startswith(f"{shown}\n\tã")


# Interactive mode


@pytest.fixture
def chat(trained, monkeypatch, capsys):
    """chat(event, ...): the lines that a chat prints, without the first one.

    An event is a line that the user types, or the exception that a key causes, such as EOFError.
    """

    def call(*events, argv=()):
        remaining = iter(events)

        def typed(prompt):
            event = next(remaining)
            if isinstance(event, type):
                raise event
            return event

        monkeypatch.setattr("builtins.input", typed)
        capsys.readouterr()
        arguments = ["--device=cpu", "--interactive", "--temperature=0", "--max_new_tokens=10"]
        sample.main([*arguments, *argv])
        assert next(remaining, None) is None
        return capsys.readouterr().out.splitlines()[1:]

    return call


def test_a_chat_continues_everything_said_so_far(chat, continuation):
    """Each reply continues the whole text so far; an empty line adds nothing, /new starts over."""

    def reply(text):
        return continuation(text, "--max_new_tokens=10")

    first = reply("o menino")
    second = reply(f"o menino{first}\nviu")
    third = reply(f"o menino{first}\nviu{second}")
    printed = chat("o menino", "viu", "", "/new", "o menino", "/quit")
    assert "\n".join(printed) == "\n".join((first, second, third, first))


def test_ctrl_c_stops_the_reply_and_not_the_chat(chat, monkeypatch):
    """What was printed before Ctrl-C stays part of the text."""
    generate = sample.TextGenerator.generate
    prompts = []

    def interrupted(self, prompt_rows):
        prompts.append(self.tokenizer.decode_bytes(prompt_rows[0].tolist()).decode())
        if len(prompts) == 1:
            yield 0, "me"
            raise KeyboardInterrupt
        yield from generate(self, prompt_rows)

    monkeypatch.setattr(sample.TextGenerator, "generate", interrupted)
    printed = chat("viu ", KeyboardInterrupt, "a", EOFError)
    assert prompts == ["viu ", "viu me\na"]
    assert printed[:2] == ["me", ""]
    assert "Ctrl-D" in printed[2]
    assert len(printed) > 3


def test_an_unknown_character_is_named_and_the_chat_continues(chat):
    printed = chat("xyz", "o", "/quit")
    assert "'x' (U+0078)" in printed[0]
    assert printed[1:] == chat("o", "/quit")


def test_a_chat_can_begin_with_a_file(chat):
    Path("prompt.txt").write_text("o menino", encoding="utf-8")
    printed = chat("", "/quit", argv=["--start=FILE:prompt.txt"])
    assert printed == chat("o menino", "/quit")


def test_sampling_does_not_import_the_compiler(trained):
    """Building a model on the meta device imported torch._dynamo, which took a second."""
    code = "import sys, sample; sample.main(sys.argv[1:]); print('torch._dynamo' in sys.modules)"
    result = run_python("-c", code, "--num_samples=1", "--max_new_tokens=1", cwd=trained)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"
