"""Write the tables of docs/SPEED.md, and draw its plots, from the results in docs/speed.

python docs/speed.py
"""

import json
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from seugpt.benchmark.hardware import ratios, spread

DOCS = Path(__file__).parent


def read(name):
    path = DOCS / "speed" / name
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def table(head, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def steps(results):
    """One row a measurement of a peer: ours and theirs were measured in turn."""
    rows = []
    for ours, theirs in pairwise(results):
        if theirs["contender"] != "seuGPT":
            times = [f"{r['step_ms']:.1f} ({r['dtype']})" for r in (theirs, ours)]
            rows.append(
                [
                    theirs["contender"],
                    *times,
                    spread(theirs["ratios"], ".2f"),
                    f"{ours['floor_ms']:.1f}",
                ]
            )
    return table(["peer", "its step, ms", "ours, ms", "ratio", "our floor, ms"], rows)


def races(results):
    runs = {}
    for result in results:
        runs.setdefault((result["command"], result["contender"]), []).append(result)
    rows = []
    for (_, name), group in runs.items():
        reached = [r["steps"] for r in group if r["steps"]]
        name = name if len(name) < 60 else f"{name.split()[0]} with `E2`"
        rows.append([
            name, f"{group[0]['parameters']:,}", len(group), spread([r["seconds"] for r in group], ".2f"),
            f"{len(reached)} of {len(group)}", f"{statistics.median(reached):.0f}" if reached else "",
            f"{min(r['loss'] for r in group):.4f} to {max(r['loss'] for r in group):.4f}",
        ])  # fmt: skip
    head = [
        "run",
        "parameters",
        "seeds",
        "seconds of training",
        "reached 1.898",
        "in steps",
        "loss at the end",
    ]
    return table(head, rows)


def course(results):
    """The loss over the whole validation split on the way of a run."""
    steps, _, losses = zip(*results[0]["history"], strict=True)
    return table(["step", *steps], [["loss", *(f"{loss:.4f}" for loss in losses)]])


def decodes(results):
    rows = []
    for ours, theirs in pairwise(results):
        if theirs["contender"] != "seuGPT":
            speeds = [f"{r['tokens_per_s']:,.0f}" for r in (theirs, ours)]
            floor = f"{ours['floor_tokens_per_s']:,.0f}"
            rows.append(
                [
                    theirs["contender"],
                    ours["compile"],
                    ours["rows"],
                    *speeds,
                    spread(theirs["ratios"], ".2f"),
                    floor,
                ]
            )
    return table(
        ["peer", "`--compile`", "rows", "its tokens/s", "ours", "ratio", "our floor"], rows
    )


def whole_runs(results):
    seconds, last = {}, {}
    for r in results:
        seconds.setdefault(r["contender"], []).append(r["seconds"])
        last[r["contender"]] = f"{r['loss']:.4f}, step {r['steps']:,}"
    ours = seconds.get("seuGPT")
    rows = [
        [name, spread(s, ".1f"), spread(ratios(s, ours), ".2f"), last[name]]
        for name, s in seconds.items()
    ]
    return table(
        ["whole command", "seconds", "times ours", "its last validation loss (20 batches)"], rows
    )


def prepares(results):
    rows = [[r["tokenizer"], f"{r['bytes'] / 1e6:.0f}", f"{r['mb_per_s']:.1f}"] for r in results]
    return table(["`--tokenizer`", "MB of text", "MB/s"], rows)


def costs(results):
    head = [
        "parameters",
        "block_size",
        "tokens in a step",
        "tokens/s",
        "GFLOP/s",
        "peak memory, MB",
    ]
    return table(head, [
        [f"{r['parameters']:,}", r["block_size"], r["tokens_per_step"], f"{r['tokens_per_s']:,.0f}",
         f"{r['flops_per_s'] / 1e9:,.0f}", f"{r['peak_memory_bytes'] / 1e6:,.0f}"] for r in results
    ])  # fmt: skip


def ladder(results):
    """The end of each run, by what was changed; the first is the preset itself."""
    runs = {}
    for result in results:
        change = result["contender"].partition(" ")[2].strip()
        runs.setdefault(change, []).append(result)
    rows = [
        [f"`{change}`" if change else "the preset", f"{statistics.mean(r['loss'] for r in group):.3f}",
         ", ".join(f"{r['loss']:.3f}" for r in group), f"{statistics.median(r['seconds'] for r in group):.1f}"]
        for change, group in runs.items()
    ]  # fmt: skip
    return table(["`CHANGE`", "loss", "by seed", "seconds of training"], rows)


def plot(results, key, label, path):
    """Tokens per second and memory against one property of the run."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [r[key] for r in results]
    left.loglog(x, [r["tokens_per_s"] for r in results], "o-", color="#0072b2")
    left.set(xlabel=label, ylabel="tokens per second, training")
    right.semilogx(x, [r["peak_memory_bytes"] / 1e6 for r in results], "s-", color="#d55e00")
    top = max(r["peak_memory_bytes"] for r in results) / 1e6
    right.set(xlabel=label, ylabel="peak memory (MB)", ylim=(0, 1.1 * top))
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def main():
    cpu, size, context = read("cpu.jsonl"), read("size.jsonl"), read("context.jsonl")
    tables = {
        "step": steps([r for r in cpu if r["bench"] == "step"]),
        "race": races([r for r in cpu if r["bench"] == "race"]),
        "preset": course(read("preset.jsonl")),
        "decode": decodes([r for r in cpu if r["bench"] == "decode"]),
        "run": whole_runs([r for r in cpu if r["bench"] == "run"]),
        "prepare": prepares([r for r in cpu if r["bench"] == "prepare"]),
        "ladder": ladder(read("ladder.jsonl")),
        "size": costs(size),
        "context": costs(context),
    }
    page = DOCS / "SPEED.md"
    text = page.read_text(encoding="utf-8")
    for name, content in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, content=content: f"{match[1]}{content}\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
    page.write_text(text, encoding="utf-8")
    plot(size, "parameters", "parameters", DOCS / "speed" / "size.png")
    plot(context, "block_size", "block_size (tokens)", DOCS / "speed" / "context.png")


if __name__ == "__main__":
    main()
