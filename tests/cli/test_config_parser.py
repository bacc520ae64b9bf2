"""Config files and command lines: precedence, suggestions, and all problems with their sources."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

import train
from model import ModelConfig
from sample import SampleConfig
from seugpt.cli.config_parser import ConfigParser, parse_configs, to_source
from seugpt.errors import ConfigError
from seugpt.generation.sampling import SamplingParams
from tests.helpers import ROOT, train_configs
from train import TrainConfig

PRESETS = sorted((ROOT / "config").glob("*.py"))
NANOGPT_TRAIN = """
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from
    wandb_log wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size
    n_layer n_head n_embd dropout bias learning_rate max_iters weight_decay beta1 beta2 grad_clip
    decay_lr warmup_iters lr_decay_iters min_lr backend device dtype compile
"""
NANOGPT_SAMPLE = """
    init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype compile
"""
NANOGPT_CONFIG_FILE = """
import time
out_dir = 'out-x'
wandb_log = False
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 5 * 8
learning_rate = 3e-5
decay_lr = False
weight_decay = 1e-1
device = 'cpu'
compile = False
dtype = 'float16'
"""


@dataclass(frozen=True)
class Small:
    size: Annotated[int, "how many", ">= 1"] = 3
    rate: Annotated[float, "how fast"] = 0.5
    name: Annotated[str, "what 100% of people call it"] = "x"
    flag: Annotated[bool, "whether"] = False
    mode: Annotated[bool | Literal["auto"], "which"] = "auto"
    limit: Annotated[int | None, "how far"] = None
    stop: Annotated[tuple[str, ...], "where"] = ()

    def __post_init__(self):
        if self.limit is not None and self.limit < self.size:
            raise ValueError(f"limit={self.limit} must not be below size={self.size}")


def parse(*argv, positional=None):
    [config] = parse_configs(argv, Small, description="Test.", positional=positional)
    return config


def problem(*argv, positional=None):
    with pytest.raises(ConfigError) as error:
        parse(*argv, positional=positional)
    return str(error.value)


def write(name, text):
    Path(name).write_text(text, encoding="utf-8")


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
def test_text_is_converted_to_the_type_of_the_field(argument, field, value):
    result = getattr(parse(argument), field)
    assert result == value
    assert type(result) is type(value)


def test_key_and_value_may_be_two_arguments_and_the_last_value_wins():
    assert parse("--size", "7", "--rate", "2").size == 7
    assert parse("--size=7", "--size=8").size == 8
    assert parse("--stop=a", "--stop=b").stop == ("a", "b")


def test_positional_arguments_set_the_positional_field():
    assert parse("a", positional="name").name == "a"
    assert parse("--name=a", positional="name").name == "a"
    assert parse("a", "b", "--stop=c", positional="stop").stop == ("a", "b", "c")
    for argv in (("a", "b"), ("a", "--name=b")):
        assert problem(*argv, positional="name").startswith("a b: ")


def test_files_override_defaults_and_the_command_line_overrides_files(workspace):
    write("a.py", "size = 5 * 8\nrate = 1\nname = 'a'")
    write("b.py", "name = 'b'\nlimit = 90")
    config = parse("--rate=3", "a.py", "--flag=True", "b.py", "--limit=100")
    assert config == Small(size=40, rate=3.0, name="b", flag=True, limit=100)
    assert parse("b.py", "a.py").name == "a"


def test_modules_functions_and_names_with_an_underscore_are_not_options(workspace):
    lines = [
        "import time",
        "from pathlib import Path",
        "_half = 4",
        "def double(x): return 2 * x",
        "size = double(_half)",
    ]
    write("c.py", "\n".join(lines))
    assert parse("c.py").size == 8


def test_the_nearest_name_is_suggested_on_the_command_line_and_in_a_file(workspace):
    assert problem("--sise=1").endswith("--size?")
    # argparse takes an argument with a blank in it for a positional one.
    assert problem("--nme=a b").endswith("--name?")
    write("c.py", "limmit = 1")
    assert re.fullmatch("c.py: limmit: .* limit[?]", problem("c.py"))
    Path("config").mkdir()
    assert problem("config").endswith("--out_dir=config?")
    Path("config/train_small.py").touch()
    assert problem("config/train_smal.py").endswith("config/train_small.py?")


def test_all_problems_are_reported_at_once_each_with_its_source(workspace):
    write("c.py", "size = 0\nflag = 1\nnmae = 'x'")
    message = problem("c.py", "--rate=fast", "--lmit=3")
    head, *problems = message.split("\n  - ")
    assert head == "5 problems:"
    assert len(problems) == 5
    for pattern in (
        r"size=0: .*\b1 \[c\.py\]",
        r"flag=1: .*True or False \[c\.py\]",
        r"c\.py: nmae: .* name\?",
        r"rate='fast': .*a number \[--rate=fast\]",
        r"--lmit=3: .* --limit\?",
    ):
        assert any(re.fullmatch(pattern, line) for line in problems), (pattern, message)


def test_a_conflict_between_fields_names_the_source_of_each(workspace):
    write("c.py", "size = 5")
    message = problem("c.py", "--limit=4")
    assert message.startswith("limit=4 ")
    assert message.endswith(" size=5 [--limit=4, c.py]")


def test_a_rejected_value_causes_no_conflict_with_other_fields():
    """After --size=x, the default of size was reported as conflicting with the given limit."""
    assert problem("--size=x", "--limit=2") == problem("--size=x")


@pytest.mark.parametrize("digits", [19, 320, 5000])
def test_a_huge_integer_is_refused(workspace, digits):
    """Such sizes ended in tracebacks of torch and NumPy; repr() of 5,000 digits fails as well."""
    number = "9" * digits
    for argv in ([f"--size={number}"], [f"--limit=-{number}"]):
        assert problem(*argv).endswith(f" [{argv[0]}]")
    write("c.py", f"size = 10**{digits} - 1")
    shown = {19: number, 320: "9" * 18 + "..." + "9" * 19, 5000: "<int>"}[digits]
    message = problem("c.py")
    assert message.startswith(f"size={shown}: ")
    assert message.endswith(" 2**53 [c.py]")


def test_a_command_without_a_docstring_still_parses():
    """python -OO strips docstrings, and ConfigParser crashed without one."""
    assert parse_configs([], Small, description=None) == [Small()]


def test_help_names_types_limits_and_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "how many (an integer, at least 1; default: 3)" in text
    assert "what 100% of people" in text


def test_to_source_writes_a_config_file_with_the_same_values(workspace):
    original = parse("--size=7", '--name=it\'s \\ "quoted" ção', "--stop=a", "--mode=True")
    write("again.py", to_source(original))
    assert parse("again.py") == original


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_preset_parses_and_begins_with_its_data_and_what_to_expect(preset):
    _, config = train_configs([str(preset)])
    text = preset.read_text(encoding="utf-8")
    [data] = re.findall(r"\A(?:# .+\n)+?# Data: ((?:.+\n)+?)# Expect: .+\n", text)
    assert config.dataset in data


def test_every_option_of_nanogpt_exists_under_the_same_name():
    options = ConfigParser(ModelConfig, TrainConfig, description="Test.").options
    assert set(NANOGPT_TRAIN.split()) <= set(options)
    options = ConfigParser(SamplingParams, SampleConfig, description="Test.").options
    assert set(NANOGPT_SAMPLE.split()) <= set(options)


def test_a_config_file_of_nanogpt_works_unchanged(workspace):
    write("nano.py", NANOGPT_CONFIG_FILE)
    _, config = train_configs(["nano.py"])
    assert config.gradient_accumulation_steps == 40
    assert config.compile is False


def test_a_flag_may_stand_alone(workspace):
    """--flag is --flag=True, but it takes a following positional argument as its value."""
    write("c.py", "size = 3")
    for argv in (["--flag"], ["c.py", "--flag"], ["--flag", "--size=4"], ["--flag=True"]):
        assert parse(*argv).flag is True
    assert problem("--flag", "c.py").startswith("flag='c.py': ")


@pytest.mark.parametrize(
    "argument, suggestion",
    [
        ("--lr=1e-3", "did you mean --learning_rate?"),
        ("--epochs=3", "did you mean --max_iters?"),
        ("--seq_len=3", "did you mean --block_size?"),
        ("--config=config/quickstart.py", "given alone, as in config/quickstart.py"),
        ("--config", "given alone, as in config/quickstart.py"),
    ],
)
def test_other_programs_names_of_an_option_are_understood(refused, argument, suggestion):
    message = refused(train.main, argument)
    assert argument in message
    assert suggestion in message
