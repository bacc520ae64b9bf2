"""Losses, weights and samples of fixed runs, as checksums: what a change of form must not change.

    python tests/golden.py --write    before the change; afterwards without --write, on the same machine

The checksums belong to one machine and one build of torch. This file goes when the move is done.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_suffix(".json")
E2 = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
SMALL = (
    "--dataset=shakespeare_char --device=cpu --n_layer=3 --n_head=4 --n_embd=64 --block_size=32 --batch_size=8 "
    "--gradient_accumulation_steps=2 --max_iters=30 --eval_interval=10 --eval_iters=3 --log_interval=1 "
    "--warmup_iters=5 --lr_decay_iters=30 --dropout=0.2"
)
RUNS = {
    "quickstart": "config/quickstart.py",
    "e2": E2,
    "gpt2": f"{SMALL} --bias=True --dtype=float32",
    "llama": f"{SMALL} --position=rope --norm=rmsnorm --mlp=swiglu --n_kv_head=2 --qk_norm=True --snapshot_interval=10",
    "muon": f"{SMALL} --optimizer=muon --mlp=relu2 --tie_embeddings=False --logit_softcap=30 --cooldown_iters=10",
    "float16": f"{SMALL} --dtype=float16 --mlp=gelu_exact --n_kv_head=1 --grad_clip=0.1",
}


def run(script, words, folder):
    command = [
        sys.executable,
        str(ROOT / script),
        *words.replace("config/", f"{ROOT}/config/").split(),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


def checksum(value):
    return hashlib.sha256(value).hexdigest()[:16]


def tensors_of(value, path=""):
    if isinstance(value, torch.Tensor):
        yield path, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, part in items:
        yield from tensors_of(part, f"{path}/{key}")


def of_checkpoint(path):
    ckpt = torch.load(path, weights_only=True)
    digest = hashlib.sha256()
    for name, tensor in tensors_of(
        {key: ckpt[key] for key in ("model", "optimizer") if key in ckpt}
    ):
        digest.update(
            name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def of_metrics(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    timed = ("step_ms", "tokens_per_s", "mfu")
    kept = [sorted(str(value) for key, value in line.items() if key not in timed) for line in lines]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    return checksum(json.dumps(sorted(kept)).encode()), losses[-1]


def measure():
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        shakespeare = ROOT.parent / "shared/data/tinyshakespeare.txt"
        run("prepare.py", "python_docs", folder)
        run("prepare.py", f"shakespeare_char --input={shakespeare}", folder)
        for name, words in RUNS.items():
            out = Path(folder, f"out-{name}")
            run("train.py", f"{words} --out_dir={out}", folder)
            logged, loss = of_metrics(out / "metrics.jsonl")
            said = run("sample.py", f"--out_dir={out} --num_samples=3 --max_new_tokens=200", folder)
            result[name] = {
                "best.pt": of_checkpoint(out / "best.pt"),
                "latest.pt": of_checkpoint(out / "latest.pt"),
                "metrics": logged,
                "sample": checksum(said),
                "val_loss": loss,
            }
            print(name, result[name], flush=True)
    return result


if __name__ == "__main__":
    found = measure()
    if "--write" in sys.argv:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    elif found != json.loads(GOLDEN.read_text()):
        sys.exit("NOT the same as before")
    else:
        print("the same as before")
