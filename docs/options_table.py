"""Write README.md's table of options anew, from the dataclasses of the commands: python docs/options_table.py"""

import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evaluate import EvaluateConfig  # noqa: E402
from export import ExportConfig  # noqa: E402
from model import ModelConfig  # noqa: E402
from prepare import PrepareConfig  # noqa: E402
from sample import SampleConfig  # noqa: E402
from seugpt.cli.values import describe, option_types  # noqa: E402
from seugpt.generation.decoder import Sampling  # noqa: E402
from train import TrainConfig  # noqa: E402
from visualize import COMMANDS as PICTURES  # noqa: E402

TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)
CLASSES = {
    "prepare.py": [PrepareConfig], "train.py": [ModelConfig, TrainConfig], "sample.py": [Sampling, SampleConfig],
    "evaluate.py": [EvaluateConfig], "export.py": [ExportConfig],
    "visualize.py": [options for _, options in PICTURES.values()],
}  # fmt: skip


def options_table():
    lines = []
    for script, classes in CLASSES.items():
        lines += [
            f"**{script}**",
            "",
            "| option | default | type | what it does |",
            "|---|---|---|---|",
        ]
        rows = []
        for cls in classes:
            types = option_types(cls)
            for field in fields(cls):
                kind, help_text = types[field.name]
                rows.append(
                    f"| `{field.name}` | `{field.default!r}` | {describe(kind)} | {help_text} |"
                )
        lines += [*dict.fromkeys(rows), ""]  # pictures share some
    return "\n".join(lines)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(TABLE.sub(lambda match: options_table(), text), encoding="utf-8")
