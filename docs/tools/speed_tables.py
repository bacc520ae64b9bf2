"""Write the tables of docs/SPEED.md, and draw its plots, from the results in docs/speed.

python docs/tools/speed_tables.py
"""

import json
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.benchmark.results import median_range, ratios  # noqa: E402

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
        prefills = [f"{result['prefill_ms'] / 1000:.2f}" for result in (theirs, ours)]
        ratio = median_range(theirs["ratios"], ".2f")
        rows.append([theirs["dtype"], ours["dtype"], ours["rows"], *speeds, ratio, *prefills])
    head = ["transformers in", "ours in", "rows", "its tokens/s", "ours", "ratio"]
    return format_table([*head, "its prefill, s", "ours, s"], rows)


def laptop_table(results):
    """Where each seed stopped: at the first evaluation below the target, or at its last step."""
    rows = []
    for result in results:
        (step, _, loss), (last_step, seconds, last_loss) = result["history"][-2:]
        reached = "yes" if result["steps"] else "no"
        before = f"{loss:.4f} at step {step:,}"
        rows.append(
            [
                result["seed"],
                reached,
                f"{seconds:,.0f}",
                f"{last_step:,}",
                f"{last_loss:.4f}",
                before,
            ]
        )
    head = ["seed", "reached 1.4697", "seconds of training", "steps", "loss"]
    return format_table([*head, "the evaluation before"], rows)


def laptop_step_table(results):
    rows = [
        [
            result["contender"],
            result["dtype"],
            f"{result['parameters']:,}",
            f"{result['step_ms']:,.0f}",
        ]
        for result in results
    ]
    return format_table(["program", "dtype", "parameters", "ms per step"], rows)


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


CONTENDERS = ("seuGPT", "nanoGPT", "transformers")
GROWTH_TOKENS = 2048  # per step, except in the step that shows how memory grows


def growth_points():
    """{(width, context): {contender: {step_ms, memory, decode}, "parameters": ours}}, in order."""
    points = {}
    for ours, theirs in baseline_pairs(read_results("growth.jsonl", "step")):
        if ours["tokens_per_step"] == GROWTH_TOKENS:
            point = points.setdefault((width_of(ours), ours["block_size"]), {})
            point["parameters"] = ours["parameters"]
            for result in (ours, theirs):
                point[result["contender"]] = {
                    "step_ms": result["step_ms"],
                    "memory": result["peak_memory_bytes"] / 1e9,
                }
    for ours, theirs in baseline_pairs(read_results("growth.jsonl", "decode")):
        point = points.get((width_of(ours), ours["tokens"] + 1), {})
        for result in (ours, theirs):
            if result["contender"] in point:
                point[result["contender"]]["decode"] = result["tokens_per_s"]
    return points


def width_of(result):
    return int(re.search(r"--n_embd=(\d+)", result["command"])[1])


def growth_table():
    rows = []
    for (_, context), point in growth_points().items():
        cells = [f"{point['parameters']:,}", f"{context:,}"]
        for key, form in (("step_ms", ",.0f"), ("memory", ".1f"), ("decode", ",.0f")):
            values = [point[name].get(key) for name in CONTENDERS]
            measured = [f"{value:{form}}" for value in values if value is not None]
            cells.append(" / ".join(measured) or "not measured")
        rows.append(cells)
    head = ["parameters", "context", "step, ms", "peak memory, GB", "one row, tokens/s"]
    return format_table(head, rows)


def fit_table():
    """The largest micro-batch of 1,024 tokens that fits, by a line through two measured peaks."""
    peaks = {}
    largest = max(width for width, _ in growth_points())
    for ours, theirs in baseline_pairs(read_results("growth.jsonl", "step")):
        if width_of(ours) == largest and ours["block_size"] == 1024:
            for result in (ours, theirs):
                batch = result["tokens_per_step"] // 1024
                peaks.setdefault(result["contender"], {})[batch] = result["peak_memory_bytes"] / 1e9
    rows = []
    for name in CONTENDERS:
        if len(peaks[name]) < 2:
            continue
        (few, low), (many, high) = sorted(peaks[name].items())
        slope = (high - low) / (many - few)
        base = low - few * slope
        fits = [max(0, int((gigabytes - base) / slope)) for gigabytes in (8, 16)]
        rows.append([name, f"{low:.1f}", f"{high:.1f}", *fits])
    return format_table(["", f"GB at {few} rows", f"GB at {many}", "fit 8 GB", "fit 16 GB"], rows)


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


def ranks_points():
    """{model: {(ranks, dp_shard_size): result}}, in order."""
    points = {}
    for result in read_results("ranks.jsonl", "ranks"):
        world = (result["ranks"], result["dp_shard_size"])
        points.setdefault(result["model"], {})[world] = result
    return points


def ranks_table():
    """Each model in one process, then replicated and in shards over 2 and 4."""
    rows = []
    for by_world in ranks_points().values():
        for (ranks, shards), replicas in by_world.items():
            if shards > 1:
                continue
            sharded = by_world.get((ranks, ranks)) if ranks > 1 else None
            pair = (replicas, sharded) if sharded else (replicas,)
            step_ms = " / ".join(f"{result['step_ms']:,.0f}" for result in pair)
            memory = " / ".join(f"{result['peak_memory_bytes'] / 1e9:.2f}" for result in pair)
            ratio = ""
            if sharded:
                ratio = median_range(ratios(sharded["rounds_ms"], replicas["rounds_ms"]), ".2f")
            rows.append([f"{replicas['parameters']:,}", ranks, step_ms, ratio, memory])
    head = ["parameters", "processes", "step, ms: replicas / shards", "shards / replicas"]
    return format_table([*head, "peak memory of a process, GB"], rows)


def save_table():
    """How long a sharded checkpoint stops training, by how it is written."""
    results = {result["kind"]: result for result in read_results("ranks.jsonl", "save")}
    rows = [[kind, median_range(result["milliseconds"], ".0f")] for kind, result in results.items()]
    return format_table(["how it is written", "ms that training stops"], rows)


def shards_table(results):
    rows = []
    for result in results:
        alone = result["bytes"] / statistics.median(result["tiktoken_s"]) / 1e6
        speeds = [f"{result['mb_per_s']:.1f}", f"{alone:.1f}"]
        rows.append([result["workers"], *speeds, median_range(result["ratios"], ".2f")])
    return format_table(["`--workers`", "MB/s", "tiktoken alone, one thread", "ratio"], rows)


def serve_table(results):
    rows = []
    for result in results:
        speed = median_range(result["tokens_per_s"], ",.0f")
        gains, ours = (median_range(result[key], ".2f") for key in ("gains", "ratios"))
        name = f"`{result['contender']}`" if " " in result["contender"] else result["contender"]
        rows.append([name, result["clients"], speed, gains, ours])
    head = ["server", "clients", "tokens/s", "times one after the other", "ours, times that"]
    return format_table(head, rows)


STYLES = {
    "seuGPT": ("o-", "#0072b2"),
    "nanoGPT": ("s--", "#d55e00"),
    "transformers": ("^:", "#555"),
}


def plot_growth(path):
    """Step time, memory and decoding, by model at 256 tokens and by context of the second."""
    points = growth_points()
    by_size = {p["parameters"]: p for (_, context), p in points.items() if context == 256}
    width = sorted({width for width, _ in points})[1]
    by_context = {context: p for (w, context), p in points.items() if w == width}
    millions = by_context[256]["parameters"] / 1e6
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    grid = figure.subplots(2, 3)
    panels = (("step_ms", "ms per step"), ("memory", "peak memory, GB"), ("decode", "tokens/s"))
    lines = (
        (grid[0], by_size, "parameters (context 256)"),
        (grid[1], by_context, f"context in tokens ({millions:.1f}M)"),
    )
    for row, series, xlabel in lines:
        for axes, (key, ylabel) in zip(row, panels, strict=True):
            for name, (marker, color) in STYLES.items():
                measured = [
                    (x, point[name][key]) for x, point in series.items() if key in point[name]
                ]
                axes.loglog(*zip(*measured, strict=True), marker, color=color, label=name)
            if key == "memory":
                axes.set(yscale="linear", ylim=(0, None))
            axes.set(xlabel=xlabel, ylabel=ylabel)
            axes.grid(alpha=0.3, which="both")
    grid[0, 0].set_title("One training step (2,048 tokens)", fontsize=10)
    grid[0, 1].set_title("Memory of the process", fontsize=10)
    grid[0, 2].set_title("Generation, one row", fontsize=10)
    grid[0, 0].legend(fontsize=9)
    figure.savefig(path, dpi=110)


RANKS_STYLES = {  # of (processes, dp_shard_size)
    (1, 1): ("one process", "o-", "#0072b2"),
    (2, 1): ("2, replicas", "s-", "#d55e00"),
    (2, 2): ("2, shards", "s--", "#d55e00"),
    (4, 1): ("4, replicas", "^-", "#555"),
    (4, 4): ("4, shards", "^--", "#555"),
}


def plot_ranks(path):
    """Step time and memory of GPT-2's architecture by its parameters, for 1 to 4 processes."""
    points = [by_world for name, by_world in ranks_points().items() if name.isdigit()]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = (("step_ms", 1, "ms per step"), ("peak_memory_bytes", 1e9, "peak memory, GB"))
    for axes, (key, unit, ylabel) in zip(figure.subplots(1, 2), panels, strict=True):
        for world, (label, marker, color) in RANKS_STYLES.items():
            results = [by_world[world] for by_world in points]
            x = [result["parameters"] for result in results]
            y = [result[key] / unit for result in results]
            axes.loglog(x, y, marker, color=color, label=label)
        axes.set(xlabel="parameters", ylabel=ylabel)
        axes.grid(alpha=0.3, which="both")
    axes.set(yscale="linear", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="outside right center")
    figure.savefig(path, dpi=110)


def main():
    tables = {
        "step": step_table(read_results("cpu.jsonl", "step")),
        "time_to_loss": time_to_loss_table(read_results("cpu.jsonl", "time_to_loss")),
        "preset": loss_history_table(read_results("preset.jsonl")),
        "laptop": laptop_table(read_results("laptop.jsonl", "time_to_loss")),
        "laptop_step": laptop_step_table(read_results("laptop.jsonl", "step")),
        "decode": decode_table(read_results("cpu.jsonl", "decode")),
        "busy": busy_table(),
        "quantize": quantize_table(read_results("quantize.jsonl")),
        "run": run_table(read_results("cpu.jsonl", "run")),
        "prepare": prepare_table(read_results("cpu.jsonl", "prepare")),
        "ladder": ladder_table(read_results("ladder.jsonl")),
        "growth": growth_table(),
        "fit": fit_table(),
        "ranks": ranks_table(),
        "save": save_table(),
        "shards": shards_table(read_results("cpu.jsonl", "prepare_shards")),
        "serve": serve_table(read_results("serve.jsonl", "serve")),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(pattern, lambda match, table=table: f"{table}\n", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")
    plot_growth(SPEED / "growth.png")
    plot_ranks(SPEED / "ranks.png")


if __name__ == "__main__":
    main()
