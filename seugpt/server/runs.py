"""The runs in the current folder, and those of the served models: their curves and samples."""

import functools
import math
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from seugpt.errors import DataError
from seugpt.plots.language import Language
from seugpt.plots.loss_findings import describe_run
from seugpt.plots.run_metrics import best_evaluation, num_steps, read_run, smooth
from seugpt.server.errors import ApiError
from seugpt.training.log_samples import read_samples

MAX_RUNS = 100  # listed, the ones written last
MAX_POINTS = 600  # of a smoothed curve: the page draws it some 600 pixels wide


def runs_routes(engine):
    """GET /api/runs, and GET /api/runs/NAME?after=STEP&lang=pt."""

    async def list_runs(request):
        return JSONResponse({"runs": await run_in_threadpool(summaries, engine)})

    async def show_run(request):
        after = read_step(request.query_params.get("after", "-1"))
        language = Language("pt" if request.query_params.get("lang") == "pt" else "en")
        name = request.path_params["name"]
        return JSONResponse(await run_in_threadpool(run_since, engine, name, after, language))

    return [Route("/api/runs", list_runs), Route("/api/runs/{name}", show_run)]


def read_step(text):
    """Raises ApiError."""
    try:
        return int(text[:20])
    except ValueError:
        raise ApiError(400, f"after={text[:20]!r} must be a step", param="after") from None


def find_runs(engine):
    """{name: folder} of the folders with a metrics.jsonl, the one written last first."""
    served = [Path(loaded.path) for loaded in engine.models.values()]
    folders = [path.parent if path.is_file() else path for path in served]
    folders += [path.parent for path in Path().glob("*/metrics.jsonl")]
    times = {}
    for folder in folders:
        try:
            times[folder.resolve()] = (folder / "metrics.jsonl").stat().st_mtime_ns
        except OSError:  # a model from elsewhere, or a folder that was just deleted
            continue
    newest = sorted(times, key=times.get, reverse=True)[:MAX_RUNS]
    return {folder.name: folder for folder in reversed(newest)}


def load_run(folder):
    """The Run in a folder, read again when it has grown. Raises DataError, OSError."""
    status = (folder / "metrics.jsonl").stat()
    return read_run_once(folder, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=MAX_RUNS)
def read_run_once(folder, mtime_ns, size):
    return read_run(folder)


def summaries(engine):
    """[{name, steps, best}], the run written last first; those that cannot be read are left out."""
    found = []
    for name, folder in reversed(find_runs(engine).items()):
        try:
            run = load_run(folder)
        except (DataError, OSError):
            continue
        best = best_point(run)
        found.append({"name": name, "steps": int(num_steps(run)), "best": best and best["loss"]})
    return found


def best_point(run):
    if not len(run.evaluations["step"]):
        return None
    best = best_evaluation(run)
    losses = run.evaluations["val_loss"]
    return {"step": int(run.evaluations["step"][best]), "loss": float(losses[best])}


def run_since(engine, name, after, language):
    """A run's smoothed losses, and the evaluations and samples after a step. Raises ApiError."""
    folder = find_runs(engine).get(name)
    if folder is None:
        raise ApiError(404, f"there is no run {name[:100]!r} in this folder", param="name")
    try:
        run = load_run(folder)
        samples = read_samples(folder / "training.log")
    except FileNotFoundError:
        samples = {}
    except (DataError, OSError) as error:
        raise ApiError(404, str(error), param="name") from None
    has_evaluations = len(run.evaluations["step"]) > 0
    return {
        "name": name,
        "steps": int(num_steps(run)),
        "title": describe_run(run, language) if has_evaluations else "",
        "best": best_point(run),
        "losses": smoothed_losses(run),
        "evaluations": evaluations_after(run, after),
        "samples": [{"step": step, "text": text} for step, text in samples.items() if step > after],
    }


def smoothed_losses(run):
    """{step, loss}: the whole curve each time, as smoothing moves its end."""
    losses = run.steps.get("loss", [])
    if not len(losses):
        return {"step": [], "loss": []}
    thinned = slice(None, None, max(math.ceil(len(losses) / MAX_POINTS), 1))
    steps = run.steps["step"] + 1
    return {"step": steps[thinned].tolist(), "loss": smooth(losses)[thinned].tolist()}


def evaluations_after(run, after):
    is_new = run.evaluations["step"] > after
    names = ("step", "train_loss", "val_loss")
    return {name: run.evaluations.get(name, is_new)[is_new].tolist() for name in names}
