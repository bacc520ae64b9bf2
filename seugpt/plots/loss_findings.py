"""What the losses of runs show, in words: the titles of their curves."""

import numpy as np

from seugpt.plots.language import ENGLISH
from seugpt.plots.run_metrics import best_evaluation

OVERFITTING_MARGIN = 0.02  # nats above the best validation loss
GAP_MARGIN = 0.05  # nats between training and validation loss that are no longer one


def final_rise(run):
    """By how much the last validation loss lies above the best one, in nats."""
    losses = run.evaluations["val_loss"]
    return losses[-1] - losses.min()


def final_gap(run):
    """How far validation loss lies above training loss at the end, in nats."""
    return run.evaluations["val_loss"][-1] - run.evaluations["train_loss"][-1]


def parting_step(run):
    """The first evaluated step from which on the two losses stay GAP_MARGIN apart.

    None if they are apart from the first evaluation on.
    """
    gaps = run.evaluations["val_loss"] - run.evaluations["train_loss"]
    together = np.flatnonzero(gaps <= GAP_MARGIN)
    return run.evaluations["step"][together[-1] + 1] if len(together) else None


def describe_run(run, language=ENGLISH):
    """What the losses of one run show, as a title."""
    best = best_evaluation(run)
    step = run.evaluations["step"][best]
    if final_rise(run) > OVERFITTING_MARGIN:
        fall = run.evaluations["train_loss"][best] - run.evaluations["train_loss"][-1]
        values = {"name": run.name, "step": step, "rise": final_rise(run), "fall": fall}
        if fall > 0:
            return language(
                "{name} overfits: after step {step:,.0f} its validation loss rises by {rise:.2f}\n"
                "while its training loss goes on falling, by {fall:.2f}",
                **values,
            )
        return language(
            "{name}: after step {step:,.0f} validation loss rises by {rise:.2f},\n"
            "and training loss with it",
            **values,
        )
    gap = final_gap(run)
    if gap <= GAP_MARGIN:
        return language(
            "Training and validation loss stay together: at the end they are {gap:.2f} apart",
            gap=abs(gap),
        )
    parted = parting_step(run)
    if parted is None:
        return language("At the end training and validation loss are {gap:.2f} apart", gap=gap)
    return language(
        "Training and validation loss part before step {step:,.0f}:\n"
        "at the end they are {gap:.2f} apart",
        step=parted,
        gap=gap,
    )


def compare_runs(runs, language=ENGLISH):
    """What the losses of several runs show, as a title."""
    lowest = min(runs, key=lambda run: run.evaluations["val_loss"].min())
    highest_rise = max(runs, key=final_rise)
    if final_rise(highest_rise) > OVERFITTING_MARGIN:
        return describe_run(highest_rise, language)
    return language(
        "The lowest validation loss is that of {name}: {loss:.4f} at step {step:,.0f}",
        name=lowest.name,
        loss=lowest.evaluations["val_loss"].min(),
        step=lowest.evaluations["step"][best_evaluation(lowest)],
    )


def describe_doublings(run, language=ENGLISH):
    """What the first and the last doubling of the steps gained, as a title.

    "" if there are no two, or one gained nothing.
    """
    steps = run.evaluations["step"]
    trained = steps > 0
    if not trained.any() or steps[-1] < 4 * steps[trained][0]:
        return ""
    ends = np.array([steps[trained][0], 2 * steps[trained][0], steps[-1] / 2, steps[-1]])
    losses = np.interp(np.log(ends), np.log(steps[trained]), run.evaluations["val_loss"][trained])
    if min(losses[0] - losses[1], losses[2] - losses[3]) <= 0:
        return ""
    return language(
        "Each doubling of the steps lowers the validation loss:\n"
        "by {first:.2f} from step {a:,.0f} to {b:,.0f}, by {last:.2f} from {c:,.0f} to {d:,.0f}",
        first=losses[0] - losses[1],
        last=losses[2] - losses[3],
        **dict(zip("abcd", ends, strict=True)),
    )
