"""Draw all pictures of the docs anew, from what is kept of the runs in docs/data and docs/speed.

    python docs/pictures.py

With --keep, what is needed of the runs that the pages' commands left in this folder is first copied to docs/data.
"""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import speed

import visualize

DOCS = Path(__file__).parent
DATA, IMAGES = DOCS / "data", DOCS / "images"
WHOLE = (
    "out-gptlab-cpu",
    "out-gptlab-10000",
)  # kept with their weights and snapshots, the others with their metrics
KEPT = 200  # lines of logged batches of a run

PICTURES = {
    "quickstart-loss.png": "loss out-quickstart",
    "machado-loss.png": "loss out-gptlab-cpu out-gptlab-10000",
    "tokens-pca.png": "embeddings out-gptlab-cpu",
    "tokens-tsne.png": "embeddings out-gptlab-cpu --method=tsne",
    "positions.png": "embeddings out-gptlab-cpu --of=positions",
    "similarity.png": "embeddings out-gptlab-cpu --of=similarity",
    "positions.gif": "animate out-gptlab-cpu --of=positions --highlight=12-14",
    "tokens.gif": "animate out-gptlab-cpu --highlight=aeiou --highlight=0-9",
    "next.png": 'next out-gptlab-10000 --text="A moça abriu a j"',
    "surprise.png": "surprise out-gptlab-10000 --text=FILE:docs/data/janela.txt",
    "attention.png": 'attention out-gptlab-10000 --text="A moça abriu a janela"',
    "heads.png": "heads out-gptlab-10000 --text=FILE:docs/data/janela.txt",
    "lens.png": 'lens out-gptlab-10000 --text="A moça abriu a janela e olhou"',
    "layers.png": "activations out-gptlab-cpu",
    "overfitting.png": "loss out-small out-whole",
    "tier1-loss.png": "loss out-tier1",
}


def keep():
    """Copy the small part of each run that has a place in docs/data or in PICTURES."""
    runs = {
        word for line in PICTURES.values() for word in shlex.split(line) if word.startswith("out-")
    }
    for run in sorted(runs):
        if not Path(run).is_dir():
            print(f"{run} is not here: what docs/data has of it stays")
            continue
        shutil.rmtree(DATA / run, ignore_errors=True)
        (DATA / run).mkdir(parents=True)
        lines = [
            json.loads(line)
            for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        batches = [line for line in lines if "loss" in line]
        thinned = batches[:: -(-len(batches) // KEPT)]
        kept = [line for line in lines if "loss" not in line or line in thinned]
        text = "".join(
            json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n" for line in kept
        )
        (DATA / run / "metrics.jsonl").write_text(text, encoding="utf-8")
        if run in WHOLE:
            shutil.copy(Path(run) / "best.pt", DATA / run)
            shutil.copytree(Path(run) / "snapshots", DATA / run / "snapshots") if run == WHOLE[
                0
            ] else None


def main():
    if sys.argv[1:] == ["--keep"]:
        keep()
    os.chdir(DOCS.parent)  # the commands name files as they are seen from there
    IMAGES.mkdir(exist_ok=True)
    for name, line in PICTURES.items():
        words = [
            str(DATA / word) if word.startswith("out-") else word for word in shlex.split(line)
        ]
        visualize.main([*words, f"--to={IMAGES / name}"])
    speed.main()


if __name__ == "__main__":
    main()
