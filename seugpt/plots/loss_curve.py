"""loss.png of a run, drawn again after each evaluation."""

import gc

from seugpt.plots.run_metrics import to_run
from seugpt.training.metrics import iterate_metrics


def draw_loss_curve(log):
    """Draw loss.png in a RunLogger's folder. A failure is one log line: no plot is worth a run."""
    if not log.folder:
        return
    try:
        from seugpt.plots import curves  # here, as importing matplotlib takes half a second

        run = to_run(log.folder.name, iterate_metrics(log.folder / "metrics.jsonl"))
        curves.plot_losses(log.folder / "loss.png", [run])
        gc.collect()  # figures have reference cycles and would pile up over thousands of steps
    except Exception as error:  # MPLBACKEND, a font, TeX, a file that Windows locks
        reason = str(error).partition("\n")[0]
        log.info(f"loss.png could not be drawn ({type(error).__name__}: {reason})")
