"""Options: precedence, conversion, and every problem told at once with its source."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from model import ModelConfig
from sample import SampleConfig
from seugpt.cli import options as config
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.cli.values import convert
from seugpt.errors import ConfigError
from seugpt.generation.decoder import Sampling
from tests.helpers import ROOT
from train import TrainConfig

PRESETS = sorted((ROOT / "config").glob("*.py"))
NANOGPT_TRAIN = """out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log
    wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout
    bias learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
    device dtype compile""".split()
NANOGPT_SAMPLE = """init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype
    compile""".split()


@dataclass(frozen=True)
class Small:
    size: Annotated[int, "how many"] = 3
    rate: Annotated[float, "how fast"] = 0.5
    name: Annotated[str, "what 100% of people call it"] = "x"
    flag: Annotated[bool, "whether"] = False
    mode: Annotated[bool | Literal["auto"], "which"] = "auto"
    limit: Annotated[int | None, "how far"] = None
    stop: Annotated[tuple[str, ...], "where"] = ()

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1")


def parse(*argv):
    (small,) = Options(list(argv), Small, description="Test.").build()
    return small


def problem(*argv):
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    return str(error.value)


@pytest.mark.parametrize(
    "argument, field, value",
    [
        ("--size=7", "size", 7),
        ("--size=1e3", "size", 1000),
        ("--rate=1", "rate", 1.0),
        ("--rate=-2.5e-3", "rate", -0.0025),
        ("--name=a=b", "name", "a=b"),
        ("--name=", "name", ""),
        ("--name=--x", "name", "--x"),
        ("--name=ação 🦜", "name", "ação 🦜"),
        ("--name=12", "name", "12"),
        ("--flag=True", "flag", True),
        ("--flag=false", "flag", False),
        ("--mode=False", "mode", False),
        ("--mode=auto", "mode", "auto"),
        ("--limit=None", "limit", None),
        ("--limit=4", "limit", 4),
        ("--stop=\n\n", "stop", ("\n\n",)),
    ],
)
def test_text_becomes_the_type_of_the_field(argument, field, value):
    result = getattr(parse(argument), field)
    assert result == value and type(result) is type(value)


def test_key_and_value_may_be_two_words_and_the_last_one_counts():
    assert parse("--size", "7", "--rate", "2").size == 7
    assert parse("--size=7", "--size=8").size == 8
    assert parse("--stop=a", "--stop=b").stop == ("a", "b")


@pytest.mark.parametrize(
    "value, kind",
    [("1.5", int), ("x", int), ("nan", float), ("inf", float), (True, int), (True, float), (3, str), ("yes", bool),
     (1, bool), (10**400, float), ("", int), (None, float), ([1], tuple[str, ...]),
     ("2", Literal["auto"]), (1.5, int | None)],
)  # fmt: skip
def test_what_is_not_of_the_type_is_refused(value, kind):
    with pytest.raises(ValueError, match="expects"):
        convert(value, kind)


def test_defaults_then_files_in_order_then_command_line(workspace):
    Path("a.py").write_text("size = 5 * 8\nrate = 1\nname = 'a'", encoding="utf-8")
    Path("b.py").write_text("name = 'b'\nlimit = 9", encoding="utf-8")
    result = parse("--rate=3", "a.py", "--flag=True", "b.py", "--limit=10")
    assert (result.size, result.rate, result.name, result.limit, result.flag) == (
        40,
        3.0,
        "b",
        10,
        True,
    )
    assert parse("b.py", "a.py").name == "a"


def test_modules_functions_and_underscored_names_in_a_file_are_no_options(workspace):
    Path("c.py").write_text(
        "import time\nfrom pathlib import Path\n_half = 4\ndef twice(x): return 2 * x\nsize = twice(_half)",
        encoding="utf-8",
    )
    assert parse("c.py").size == 8


def test_did_you_mean_on_the_command_line_and_in_a_file(workspace):
    assert problem("--sise=1") == "--sise=1: no such option; did you mean --size?"
    assert (
        problem("--nme=a b") == "--nme=a b: no such option; did you mean --name?"
    )  # argparse: not an option at all
    Path("c.py").write_text("limmit = 1", encoding="utf-8")
    assert problem("c.py") == "c.py: limmit: no such option; did you mean limit?"
    Path("config").mkdir()
    assert (
        problem("config") == "config is a folder and no config file; did you mean --out_dir=config?"
    )
    Path("config/train_small.py").touch()
    assert "did you mean config/train_small.py?" in problem("config/train_smal.py")


def test_all_problems_come_at_once_each_with_its_source(workspace):
    Path("c.py").write_text("size = 0\nflag = 1\nnmae = 'x'", encoding="utf-8")
    text = problem("c.py", "--rate=fast", "--lmit=3")
    assert text.startswith("5 problems:")
    assert "size=0 must be at least 1 [c.py]" in text
    assert "flag=1 expects True or False [c.py]" in text
    assert "c.py: nmae: no such option; did you mean name?" in text
    assert "rate='fast' expects a number [--rate=fast]" in text
    assert "did you mean --limit?" in text


@pytest.mark.parametrize(
    "source, error",
    [("size = ", "SyntaxError"), ("size = 1 / 0", "ZeroDivisionError"), ("raise SystemExit(3)", "SystemExit"),
     ("from nowhere import x", "ModuleNotFoundError"), ("raise BaseException", "BaseException"),
     ("open('nowhere.txt')", "FileNotFoundError: [Errno 2]"), ("size = 1\0", "SyntaxError")],
)  # fmt: skip
def test_a_file_that_fails_is_named_with_its_error(workspace, source, error):
    """A file that did not find another one was said to be missing itself."""
    Path("c.py").write_text(source, encoding="utf-8")
    assert problem("c.py").startswith(f"c.py: {error}")


def test_a_function_with_an_options_name_is_an_error(workspace):
    """It was ignored in silence, and the run went on with the default."""
    Path("c.py").write_text("def rate(): return 3\nimport time as name", encoding="utf-8")
    text = problem("c.py")
    assert (
        "rate=<function rate at" in text
        and "name=<module 'time' (built-in)> expects a text [c.py]" in text
    )


def test_a_zero_byte_in_a_path_is_a_message(workspace):
    assert problem("c\0.py") == "c\0.py: no such config file"
    Path("c.py").write_text("name = 'a\\0b'", encoding="utf-8")
    assert (
        problem("c.py") == r"name='a\x00b' holds a zero byte, which no file's name may have [c.py]"
    )


@pytest.mark.parametrize(
    "number", ["1e18", "-1e18", str(2**53 + 1), "9" * 320, "9" * 5000], ids=len
)
def test_an_integer_that_is_too_large_for_a_size_is_refused(workspace, number):
    """Such sizes ended in tracebacks of torch and NumPy."""
    words = "expects an integer" if len(number) > 4300 else r"must lie between -2\*\*53 and 2\*\*53"
    for name in ("size", "limit"):
        assert re.match(f"{name}='{number}' {words}", problem(f"--{name}={number}"))
    assert parse(f"--size={2**53}").size == 2**53


def test_an_integer_that_has_no_repr_is_refused(workspace):
    Path("c.py").write_text("size = 10**5000", encoding="utf-8")
    assert problem("c.py") == "size=<int> must lie between -2**53 and 2**53 [c.py]"


def test_a_seed_may_be_larger_than_a_size():
    _, options = Options(
        [f"--seed={2**63 - 1}"], ModelConfig, TrainConfig, description="Test."
    ).build()
    assert options.seed == 2**63 - 1
    with pytest.raises(ConfigError, match="seed=9223372036854775808 must be below"):
        Options([f"--seed={2**63}"], ModelConfig, TrainConfig, description="Test.").build()


def test_no_docstring_no_description():
    """python -OO has no docstrings, and Options took none."""
    assert Options([], Small, description=None).build() == [Small()]


def test_a_missing_value_is_a_message():
    assert "expected one argument" in problem("--size")


def test_help_is_generated_and_shows_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "how many (an integer; default: 3)" in text and "what 100% of people" in text


def test_command_ends_a_mistake_in_one_message_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit, command():
        raise ConfigError("size=0 is wrong")
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith(": size=0 is wrong\n")
    with pytest.raises(ZeroDivisionError), command():
        raise ZeroDivisionError  # a bug of ours keeps its traceback


def test_to_source_can_be_run_again(workspace):
    original = parse("--size=7", '--name=it\'s \\ "quoted" ção', "--stop=a", "--mode=True")
    Path("again.py").write_text(config.to_source(original), encoding="utf-8")
    assert parse("again.py") == original


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_preset_parses_and_says_what_to_expect(preset):
    Options([str(preset)], ModelConfig, TrainConfig, description="Test.").build()
    first, second = preset.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ") and second.startswith("# Expect: ") and "@@" not in second


def test_every_option_of_nanogpt_is_here_under_its_name():
    train_names = Options([], ModelConfig, TrainConfig, description="Test.").types
    assert set(NANOGPT_TRAIN) <= set(train_names)
    assert set(NANOGPT_SAMPLE) <= set(
        Options([], Sampling, SampleConfig, description="Test.").types
    )


def test_a_config_file_in_nanogpts_style_runs_unchanged(workspace):
    Path("nano.py").write_text(
        "import time\nout_dir = 'out-x'\nwandb_log = False\nwandb_run_name = 'ft-' + str(time.time())\n"
        "dataset = 'shakespeare'\ninit_from = 'gpt2-xl'\nalways_save_checkpoint = False\nbatch_size = 1\n"
        "gradient_accumulation_steps = 5 * 8\nlearning_rate = 3e-5\ndecay_lr = False\nweight_decay = 1e-1\n"
        "device = 'cpu'\ncompile = False\ndtype = 'float16'\n",
        encoding="utf-8",
    )
    _, options = Options(["nano.py"], ModelConfig, TrainConfig, description="Test.").build()
    assert options.gradient_accumulation_steps == 40 and options.compile is False


def test_a_switch_may_stand_alone(workspace):
    """--interactive and --interactive=True are the same; so is a file before it."""
    (workspace / "c.py").write_text("n_layer = 3")
    for words in (["--bias"], ["c.py", "--bias"], ["--bias", "--n_head=4"], ["--bias=True"]):
        assert Options(words, ModelConfig, TrainConfig, description="Test.").values["bias"] is True
    with pytest.raises(ConfigError, match=r"bias='c\.py' expects True or False"):
        Options(["--bias", "c.py"], ModelConfig, TrainConfig, description="Test.").build()
