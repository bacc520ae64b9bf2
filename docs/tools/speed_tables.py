"""Write the tables of docs/SPEED.md, and draw its plots, from the results in docs/speed.

python docs/tools/speed_tables.py
"""

import json
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

from matplotlib.ticker import LogLocator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.benchmark.results import median_range, ratios  # noqa: E402
from seugpt.plots.style import BLUE, RED, saved_figure  # noqa: E402

SPEED = ROOT / "docs" / "speed"
PAGE = ROOT / "docs" / "SPEED.md"
MAX_NAME = 60  # characters of a run's command in a table


def read_results(name, bench=None):
    """The results in a file of docs/speed, of one bench or all."""
    path = SPEED / name
    if not path.exists():
        return []
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [result for result in results if bench in (None, result["bench"])]


def format_table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def baseline_pairs(results):
    """(ours, baseline's) of measurements made in turn."""
    return [(a, b) for a, b in pairwise(results) if b["contender"] != "seuGPT"]


def step_table(results):
    rows = []
    for ours, theirs in baseline_pairs(results):
        step_ms = [f"{result['step_ms']:.1f} ({result['dtype']})" for result in (theirs, ours)]
        ratio = median_range(theirs["ratios"], ".2f")
        rows.append([theirs["contender"], *step_ms, ratio, f"{ours['roofline_ms']:.1f}"])
    return format_table(["baseline", "its step, ms", "ours, ms", "ratio", "our roofline, ms"], rows)


def time_to_loss_table(results):
    runs = {}
    for result in results:
        runs.setdefault((result["command"], result["contender"]), []).append(result)
    rows = []
    for (_, name), group in runs.items():
        if len(name) >= MAX_NAME:
            name = f"{name.split()[0]} with `E2`"
        reached = [result["steps"] for result in group if result["steps"]]
        losses = [result["loss"] for result in group]
        seconds = median_range([result["seconds"] for result in group], ".2f")
        steps = f"{statistics.median(reached):.0f}" if reached else ""
        rows.append(
            [
                name,
                f"{group[0]['parameters']:,}",
                len(group),
                seconds,
                f"{len(reached)} of {len(group)}",
                steps,
                f"{min(losses):.4f} to {max(losses):.4f}",
            ]
        )
    head = ["run", "parameters", "seeds", "seconds of training", "reached 1.898", "in steps"]
    return format_table([*head, "final loss"], rows)


def loss_history_table(results):
    """The loss over the whole validation split in the course of a run."""
    steps, _, losses = zip(*results[0]["history"], strict=True)
    return format_table(["step", *steps], [["loss", *(f"{loss:.4f}" for loss in losses)]])


def decode_table(results):
    rows = []
    for ours, theirs in baseline_pairs(results):
        speeds = [f"{result['tokens_per_s']:,.0f}" for result in (theirs, ours)]
        ratio = median_range(theirs["ratios"], ".2f")
        roofline = f"{ours['roofline_tokens_per_s']:,.0f}"
        rows.append([theirs["contender"], ours["compile"], ours["rows"], *speeds, ratio, roofline])
    head = ["baseline", "`--compile`", "rows", "its tokens/s", "ours", "ratio", "our roofline"]
    return format_table(head, rows)


def busy_table():
    """Each contender's step, quiet and beside another busy process."""
    rows = []
    quiet = read_results("busy.jsonl", "step")
    busy = read_results("busy.jsonl", "busy_step")
    for alone, beside in zip(quiet, busy, strict=True):
        ratio = median_range(beside["ratios"], ".2f")
        ms = [
            f"{result:.1f}" for result in (alone["step_ms"], statistics.median(beside["rounds_ms"]))
        ]
        rows.append([f"{alone['contender']} ({alone['dtype']})", *ms, ratio])
    return format_table(["program", "quiet, ms", "beside a busy process, ms", "ratio"], rows)


def quantize_table(results):
    rows = []
    for ours, theirs in baseline_pairs(results):
        speeds = [f"{result['tokens_per_s']:,.0f}" for result in (theirs, ours)]
        ratio = median_range(theirs["ratios"], ".2f")
        rows.append(
            [ours["dtype"], ours["rows"], *speeds, ratio, f"{ours['prefill_ms'] / 1000:.1f}"]
        )
    head = [
        "ours in",
        "rows",
        "transformers (float32), tokens/s",
        "ours",
        "ratio",
        "our prefill, s",
    ]
    return format_table(head, rows)


def run_table(results):
    seconds = {}
    ends = {}
    for result in results:
        seconds.setdefault(result["contender"], []).append(result["seconds"])
        ends[result["contender"]] = f"{result['loss']:.4f}, step {result['steps']:,}"
    rows = []
    for name, values in seconds.items():
        ratio = median_range(ratios(values, seconds["seuGPT"]), ".2f")
        rows.append([name, median_range(values, ".1f"), ratio, ends[name]])
    head = ["whole command", "seconds", "times ours", "last validation loss (20 batches)"]
    return format_table(head, rows)


def prepare_table(results):
    rows = []
    for result in results:
        megabytes = f"{result['bytes'] / 1e6:.0f}"
        rows.append([result["tokenizer"], megabytes, f"{result['mb_per_s']:.1f}"])
    return format_table(["`--tokenizer`", "MB of text", "MB/s"], rows)


def cost_table(results):
    rows = []
    for result in results:
        rows.append(
            [
                f"{result['parameters']:,}",
                result["block_size"],
                result["tokens_per_step"],
                f"{result['tokens_per_s']:,.0f}",
                f"{result['flops_per_s'] / 1e9:,.0f}",
                f"{result['peak_memory_bytes'] / 1e6:,.0f}",
            ]
        )
    head = ["parameters", "block_size", "tokens per step", "tokens/s", "GFLOP/s"]
    return format_table([*head, "peak memory, MB"], rows)


def ladder_table(results):
    """The final loss of each run, by what was changed; the first is the preset itself."""
    runs = {}
    for result in results:
        change = result["contender"].partition(" ")[2].strip()
        runs.setdefault(change, []).append(result)
    rows = []
    for change, group in runs.items():
        losses = [result["loss"] for result in group]
        seconds = statistics.median(result["seconds"] for result in group)
        by_seed = ", ".join(f"{loss:.3f}" for loss in losses)
        name = f"`{change}`" if change else "the preset"
        rows.append([name, f"{statistics.mean(losses):.3f}", by_seed, f"{seconds:.1f}"])
    return format_table(["`CHANGE`", "loss", "by seed", "seconds of training"], rows)


def plot_costs(results, key, label, ticks, path):
    """Tokens per second and memory against one property of the run; the title compares its ends.

    `ticks`: {value of the property: its name on the axis}.
    """
    x = [result[key] for result in results]
    speeds = [result["tokens_per_s"] for result in results]
    megabytes = [result["peak_memory_bytes"] / 1e6 for result in results]
    costs = f"{speeds[0] / speeds[-1]:.0f}x the time per token"
    costs += f", {megabytes[-1] / megabytes[0]:.2g}x the memory"
    with saved_figure(path, 8, 3.8) as figure:
        figure.suptitle(f"{x[-1] / x[0]:,.0f}x the {label}: {costs}")
        left, right = figure.subplots(1, 2)
        left.loglog(x, speeds, "o-", color=BLUE)
        left.set(title="Training speed", ylabel="tokens per second")
        right.semilogx(x, megabytes, "s-", color=RED)
        right.set(title="Peak memory", ylabel="MB", ylim=(0, 1.1 * max(megabytes)))
        for axes in (left, right):
            axes.set_xlabel(label)
            axes.set_xticks(list(ticks), ticks.values())
            axes.minorticks_off()
            axes.grid()
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:,.0f}")


def main():
    by_size = read_results("size.jsonl")
    by_context = read_results("context.jsonl")
    tables = {
        "step": step_table(read_results("cpu.jsonl", "step")),
        "time_to_loss": time_to_loss_table(read_results("cpu.jsonl", "time_to_loss")),
        "preset": loss_history_table(read_results("preset.jsonl")),
        "laptop": loss_history_table(read_results("laptop.jsonl")),
        "decode": decode_table(read_results("cpu.jsonl", "decode")),
        "busy": busy_table(),
        "quantize": quantize_table(read_results("quantize.jsonl")),
        "run": run_table(read_results("cpu.jsonl", "run")),
        "prepare": prepare_table(read_results("cpu.jsonl", "prepare")),
        "ladder": ladder_table(read_results("ladder.jsonl")),
        "size": cost_table(by_size),
        "context": cost_table(by_context),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(pattern, lambda match, table=table: f"{table}\n", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")
    millions = {10**5: "0.1M", 10**6: "1M", 10**7: "10M", 10**8: "100M"}
    plot_costs(by_size, "parameters", "parameters", millions, SPEED / "size.png")
    lengths = {result["block_size"]: f"{result['block_size']:,}" for result in by_context}
    plot_costs(by_context, "block_size", "context (block_size)", lengths, SPEED / "context.png")


if __name__ == "__main__":
    main()
