"""Draw all plots of the docs, from what docs/data and docs/speed keep of the runs.

Those of the course in two languages: docs/images has the English ones, docs/images/pt the others.
It takes a few minutes, as lessons 3 and 4 train their small models for it.

    python docs/tools/plots.py

With --keep, it first copies what the plots need of the runs in the current folder to docs/data.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import speed_tables

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import visualize  # noqa: E402

TOOLS = ROOT / "docs" / "tools"
DATA = ROOT / "docs" / "data"
IMAGES = {"en": ROOT / "docs" / "images", "pt": ROOT / "docs" / "images" / "pt"}
WITH_WEIGHTS = (
    "out-gptlab-cpu",
    "out-gptlab-10000",
)  # of the other runs only metrics.jsonl is kept
WITH_SNAPSHOTS = ("out-gptlab-cpu",)
KEPT_STEPS = 200  # logged training steps kept of a run

PLOTS = {
    "quickstart-loss.png": "loss out-quickstart",
    "machado-loss.png": "loss out-gptlab-cpu out-gptlab-10000 --xscale=log",
    "tokens-pca.png": "embeddings out-gptlab-cpu",
    "tokens-tsne.png": "embeddings out-gptlab-cpu --method=tsne",
    "positions.png": "embeddings out-gptlab-cpu --of=positions",
    "similarity.png": "embeddings out-gptlab-cpu --of=similarity",
    "positions.gif": "animate out-gptlab-cpu --of=positions --highlight=12-14",
    "tokens.gif": "animate out-gptlab-cpu --highlight=aeiou --highlight=0-9",
    "next.png": 'next out-gptlab-10000 --text="A moça abriu a j"',
    "surprisal.png": "surprisal out-gptlab-10000 --text=FILE:docs/data/janela.txt",
    "attention-head.png": (
        'attention out-gptlab-10000 --text="A moça abriu a janela" --layer=1 --head=3'
    ),
    "attention.png": 'attention out-gptlab-10000 --text="A moça abriu a janela"',
    "heads.png": "heads out-gptlab-10000 --text=FILE:docs/data/janela.txt",
    "logit_lens.png": 'logit_lens out-gptlab-10000 --text="A moça abriu a janela e olhou"',
    "layers.png": "activations out-gptlab-cpu",
    "overfitting.png": "loss out-small out-whole --from_step=1000",
    "tier1-loss.png": "loss out-tier1",
}
# Drawn by a tool of their own, in English and in Portuguese.
TOOL_PLOTS = {
    "transformer.png": "transformer.py",
    "rope.png": "modern_block.py",
    "kv_cache.png": "modern_block.py",
    "mlp.png": "modern_block.py",
    "schedule.png": "training_loop.py",
    "one_line_missing.png": "training_loop.py",
    "scaling.png": "scaling.py",
    "scale_model.png": "scale_model.py",
    "serve.png": "page_screenshot.py",
}


def is_run(word):
    return word.startswith("out-")


def keep_runs():
    """Copy the small part of each run that the plots need to docs/data."""
    words = [word for line in PLOTS.values() for word in shlex.split(line)]
    for run in sorted(set(filter(is_run, words))):
        if not Path(run).is_dir():
            print(f"{run} is not here: docs/data keeps what it has of it")
            continue
        target = DATA / run
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "metrics.jsonl").write_text(thinned_metrics(run), encoding="utf-8")
        if run in WITH_WEIGHTS:
            shutil.copy(Path(run) / "best.pt", target)
        if run in WITH_SNAPSHOTS:
            shutil.copytree(Path(run) / "snapshots", target / "snapshots")


def thinned_metrics(run):
    """metrics.jsonl with at most KEPT_STEPS training steps and fewer digits."""
    text = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if "loss" in line]
    kept_steps = steps[:: -(-len(steps) // KEPT_STEPS)]
    kept = [line for line in lines if "loss" not in line or line in kept_steps]
    rounded = [{key: round(value, 6) for key, value in line.items()} for line in kept]
    return "".join(json.dumps(line) + "\n" for line in rounded)


def main():
    if sys.argv[1:] == ["--keep"]:
        keep_runs()
    os.chdir(ROOT)  # the commands name files relative to it
    for lang, folder in IMAGES.items():
        folder.mkdir(exist_ok=True)
        for name, line in PLOTS.items():
            words = [str(DATA / word) if is_run(word) else word for word in shlex.split(line)]
            visualize.main([*words, f"--to={folder / name}", f"--lang={lang}"])
    for file in dict.fromkeys(TOOL_PLOTS.values()):
        subprocess.run([sys.executable, TOOLS / file], stdout=subprocess.DEVNULL, check=True)
    speed_tables.main()


if __name__ == "__main__":
    main()
