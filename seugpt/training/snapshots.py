"""Every snapshot_interval steps: the embeddings, and what an optimizer step does to each layer.

out_dir/snapshots/00000100.npz has the embeddings after 100 steps (`visualize.py animate`);
metrics.jsonl has what step 100 did to each layer (`visualize.py activations`, layer_stats.py).
Recording consumes no RNG and changes no training state.

Shapes: C channels.
"""

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from seugpt.errors import DataError
from seugpt.files import atomic_write
from seugpt.training.layer_stats import LayerStats

MAX_ROWS = 1024  # of an embedding: with BPE the bytes come first, then the most frequent tokens


def save_embeddings(folder, step, model):
    """Write the first MAX_ROWS rows of wte, and of wpe if there is one, as float16 (rows, C)."""
    arrays = {}
    for name, embedding in (("wte", model.wte), ("wpe", model.wpe)):
        if embedding is not None:
            arrays[name] = embedding.weight[:MAX_ROWS].detach().half().cpu().numpy()
    path = Path(folder, "snapshots", f"{step:08d}.npz")
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def find_snapshots(folder):
    """{step: file} of a run's snapshots, in order."""
    paths = sorted(Path(folder, "snapshots").glob("[0-9]" * 8 + ".npz"))
    return {int(path.stem): path for path in paths}


def load_embeddings(path):
    """{"wte": float32 (rows, C), and "wpe" if positions are learned} of a snapshot.

    Raises DataError.
    """
    try:
        with np.load(path) as file:
            check_snapshot(file, path)
            arrays = {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as a snapshot ({type(error).__name__})") from error
    is_valid = all(a.ndim == 2 and np.isfinite(a).all() for a in arrays.values())
    if "wte" not in arrays or not is_valid:
        raise DataError(f"{path} does not have the embeddings of a snapshot")
    return arrays


def check_snapshot(file, path):
    """Raise ValueError for compressed arrays: savez writes none, and they could fill the memory."""
    if sum(record.file_size for record in file.zip.infolist()) > path.stat().st_size:
        raise ValueError("the arrays are larger than the file")


def remove_snapshots_after(folder, step):
    """Remove what a run resumed at `step` will write again."""
    for later, path in find_snapshots(folder).items():
        if later > step:
            path.unlink()


class SnapshotRecorder:
    """Takes the snapshots of a run, every `interval` steps (0: none), for its RunLogger."""

    def __init__(self, model, interval, log, throughput, autocast):
        self.model = model
        self.interval = interval
        self.log = log
        self.throughput = throughput
        self.autocast = autocast
        self.enabled = bool(interval and log.folder)

    def is_due(self, step):
        return self.enabled and step % self.interval == 0

    def save_embeddings(self, step, last=False):
        """Save the embeddings if a snapshot is due, or at the end of the run."""
        if (self.is_due(step) or (self.enabled and last)) and self.log.owns_folder():
            with self.throughput.paused():
                save_embeddings(self.log.folder, step, self.model)

    @contextlib.contextmanager
    def layer_stats(self, step, batch):
        """Around an optimizer step: if a snapshot is due, log what the step does to each layer.

        `batch`: the function that returns x and y of a micro-batch.
        """
        if not self.is_due(step):
            yield
            return
        eager = torch.compiler.set_stance("force_eager")  # hooks would compile the model again
        with self.throughput.paused(), self.autocast, eager:
            x, _ = batch(0)
            stats = LayerStats(self.model, x)
        yield
        with self.throughput.paused():
            self.log.metrics(step=step, **stats.changes())
