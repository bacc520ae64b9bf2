"""The runs that the page shows: the numbers of their loss plots, and their samples."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from seugpt.plots.language import Language
from seugpt.plots.loss_findings import describe_run
from seugpt.plots.run_metrics import read_run, smooth
from seugpt.training.log_samples import read_samples
from tests.helpers import logged_metrics, logged_values

EVALUATION = {"step": 90, "train_loss": 1.5, "val_loss": 1.5}


def test_runs_of_this_folder_are_listed(trained, client):
    Path("empty").mkdir()
    Path("empty", "metrics.jsonl").touch()
    Path("data", "metrics.jsonl").mkdir()
    [run] = client.get("/api/runs").json()["runs"]
    assert run == {"name": "out", "steps": 30, "best": min(logged_values("out", "val_loss"))}


def test_a_run_has_the_numbers_of_its_plot(trained, client):
    run = read_run("out")
    answer = client.get("/api/runs/out").json()
    np.testing.assert_allclose(answer["losses"]["loss"], smooth(run.steps["loss"]))
    assert answer["losses"]["step"] == [step + 1 for step in run.steps["step"]]
    for key in ("step", "train_loss", "val_loss"):
        assert answer["evaluations"][key] == run.evaluations[key].tolist()
    assert answer["title"] == describe_run(run)
    portuguese = client.get("/api/runs/out?lang=pt").json()["title"]
    assert portuguese == describe_run(run, Language("pt")) != answer["title"]


def test_samples_are_those_of_the_log(trained, client):
    samples = {each["step"]: each["text"] for each in client.get("/api/runs/out").json()["samples"]}
    assert list(samples) == [0, 10, 20, 30]
    log = Path("out", "training.log").read_text(encoding="utf-8")
    for text in samples.values():
        assert "    | " + text.replace("\n", "\n    | ") + "\n" in log


def test_only_what_is_new_is_sent_while_a_run_goes_on(trained, client):
    answer = client.get("/api/runs/out?after=20").json()
    assert answer["evaluations"]["step"] == [30]
    assert [sample["step"] for sample in answer["samples"]] == [30]
    with open("out/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(EVALUATION) + "\n")
    answer = client.get("/api/runs/out?after=30").json()
    assert answer["evaluations"] == {key: [value] for key, value in EVALUATION.items()}
    assert answer["steps"] == 90


def test_a_long_run_is_thinned(trained, client):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(3000)]
    Path("out", "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    answer = client.get("/api/runs/out").json()
    assert len(answer["losses"]["loss"]) == 600
    assert (answer["title"], answer["best"], answer["evaluations"]["step"]) == ("", None, [])


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e", "data%2ftiny", "..%2fout", "data"])
def test_only_a_listed_name_is_looked_up(trained, client, name):
    response = client.get(f"/api/runs/{name}")
    assert response.status_code == 404


def test_a_step_must_be_a_number(trained, client):
    response = client.get("/api/runs/out?after=x")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "after"


def test_a_run_without_its_log_has_no_samples(trained, client):
    Path("out", "training.log").unlink()
    assert client.get("/api/runs/out").json()["samples"] == []


def test_a_repeated_evaluation_counts_once(tmp_path):
    """A run that was killed and resumed logs the evaluations after its checkpoint again."""
    log = tmp_path / "training.log"
    log.write_text(
        "step 0: train loss 4.0, val loss 4.0 (best)\nbefore training ...\n"
        "    | a\n    | \n    | b\n"
        "step 5: train loss 3.0, val loss 3.0\n    | first\nstep 5: loss 3.1, lr 1e-3\n"
        "step 5: train loss 3.0, val loss 3.0\n    | second\n    | step 9: train loss 1\n",
        encoding="utf-8",
    )
    assert read_samples(log) == {0: "a\n\nb", 5: "second\nstep 9: train loss 1"}


def test_a_served_run_from_elsewhere_is_listed(trained, client, models):
    shutil.copy("out/metrics.jsonl", Path(models["bpe"].path, "metrics.jsonl"))
    try:
        names = {run["name"] for run in client.get("/api/runs").json()["runs"]}
    finally:
        Path(models["bpe"].path, "metrics.jsonl").unlink()
    assert names == {"out", "bpe"}
    assert len(logged_metrics("out"))
