"""Write the table of docs/guide/options.md from the config dataclasses of the commands.

python docs/tools/options_table.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from evaluate import EvaluateConfig  # noqa: E402
from export import ExportConfig  # noqa: E402
from model import ModelConfig  # noqa: E402
from prepare import PrepareConfig  # noqa: E402
from sample import SampleConfig  # noqa: E402
from serve import ServeConfig  # noqa: E402
from seugpt.cli.values import describe_limits, describe_type, options_of  # noqa: E402
from seugpt.data.shard_preparation import ShardConfig  # noqa: E402
from seugpt.generation.sampling import SamplingParams  # noqa: E402
from seugpt.server.limits import Limits  # noqa: E402
from train import TrainConfig  # noqa: E402
from visualize import COMMANDS as PLOTS  # noqa: E402

PAGE = ROOT / "docs" / "guide" / "options.md"
TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)
CLASSES = {
    "prepare.py": [PrepareConfig, ShardConfig],
    "train.py": [ModelConfig, TrainConfig],
    "sample.py": [SampleConfig, SamplingParams],
    "serve.py": [ServeConfig, Limits],
    "evaluate.py": [EvaluateConfig],
    "export.py": [ExportConfig],
    "visualize.py": [config_class for _, config_class in PLOTS.values()],
}


def options_table():
    lines = []
    for script, classes in CLASSES.items():
        lines += [f"**{script}**", ""]
        lines += ["| option | default | value | what it does |", "|---|---|---|---|"]
        rows = [row(option) for cls in classes for option in options_of(cls).values()]
        lines += [*dict.fromkeys(rows), ""]  # plots share some options
    return "\n".join(lines)


def row(option):
    value = describe_type(option.type)
    limits = describe_limits(option.tags)
    if limits:
        value += f", {limits}"
    return f"| `{option.name}` | `{option.default!r}` | {value} | {option.help} |"


def main():
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda match: options_table(), text), encoding="utf-8")


if __name__ == "__main__":
    main()
