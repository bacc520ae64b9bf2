"""Sharded checkpoints: merged for every command, damaged, and written while processes die."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import export
import sample
import train
from seugpt.checkpoint.content import INFERENCE_KEYS, RESUME_KEYS
from seugpt.checkpoint.pretrained import load_for_inference, load_pretrained
from seugpt.checkpoint.sharded import RUN_FILE, load_merged, read_run, step_folders, write_run
from seugpt.errors import CheckpointError
from tests.helpers import (
    SHARDED,
    load_with_transformers,
    logged_values,
    nested_equal,
    torchrun,
)

LATEST = Path("out/step-00000010")
EARLIER = Path("out/step-00000005")


def shards(folder=LATEST):
    return sorted(folder.glob("shard-*.safetensors"))


def flip_byte(path, position=-5):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# Merging


GATHER = """
import torch, train
from seugpt.training.sharding import full_tensor

save_checkpoint = train.Trainer.save_checkpoint

def gathering_save(self):
    save_checkpoint(self)
    weights = {name: full_tensor(p.detach()) for name, p in self.raw_model.named_parameters()}
    state = [full_tensor(s["exp_avg"]) for s in self.optimizers[0].state.values()]
    if self.dist_env.rank == 0:
        torch.save([weights, state], "gathered")

train.Trainer.save_checkpoint = gathering_save
"""


def test_merged_checkpoint_has_the_gathered_tensors(tiny, run, run_ranks):
    run_ranks(run(dp_shard_size=2, max_iters=2, n_embd=30, mlp_hidden=61), 2, setup=GATHER)
    weights, state = torch.load("gathered")
    merged = load_merged(step_folders("out")[0], RESUME_KEYS)
    assert torch.equal(merged["model"].pop("lm_head.weight"), weights["wte.weight"])
    assert nested_equal(merged["model"], weights)
    merged_state = merged["optimizer"][0]["state"]
    assert all(torch.equal(merged_state[i]["exp_avg"], each) for i, each in enumerate(state))
    assert set(merged) - {"path", "mtime_ns"} == set(RESUME_KEYS)


def test_every_command_reads_a_sharded_run(sharded, capsys):
    """The best checkpoint, through out_dir, and each one through its own folder."""
    losses = logged_values("out", "val_loss")
    best = 5 * losses.index(min(losses))
    assert load_pretrained("out")["step"] == best
    sample.main(["--out_dir=out", "--num_samples=1", "--max_new_tokens=5", "--device=cpu"])
    sample.main([f"--init_from={EARLIER}", "--num_samples=1", "--max_new_tokens=5"])
    capsys.readouterr()
    evaluate.main([f"--init_from={LATEST}", "--device=cpu"])
    assert "nats per token" in capsys.readouterr().out
    argv = [f"--init_from={LATEST}", "--out_dir=tuned", "--dataset=tiny", "--max_iters=1"]
    train.main([*argv, "--device=cpu", "--batch_size=2", "--gradient_accumulation_steps=1"])
    assert set(load_pretrained(str(EARLIER))) == {*INFERENCE_KEYS, "path", "mtime_ns"}


def test_exported_sharded_model_has_the_same_logits(sharded):
    export.main([f"--init_from={LATEST}", "--to=hf"])
    model, tokenizer, _ = load_for_inference(str(LATEST))
    exported, _ = load_with_transformers("hf")
    idx = torch.randint(tokenizer.vocab_size, (2, 16))
    targets = torch.zeros_like(idx)  # with them the model returns all logits
    with torch.no_grad():
        torch.testing.assert_close(exported(idx).logits, model(idx, targets)[0])


# Damage


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "foreign", "run.json"])
def test_damaged_checkpoint_is_one_message(sharded, refused, two_ranks, damage):
    """In one process and in the ranks of a resumed run, which say it once; nothing is lost."""
    _, second = shards()
    if damage == "missing":
        second.unlink()
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-100])
    elif damage == "flipped":
        flip_byte(second)
    elif damage == "foreign":
        shutil.copy(second, LATEST / "shard-00003-model-00001-of-00001.safetensors")
    else:
        flip_byte(LATEST / RUN_FILE, 50)
    name = RUN_FILE if damage == "run.json" else "shard-0000"
    arguments = [f"--init_from={LATEST}"]
    before = {path: path.read_bytes() for path in Path("out").rglob("*.safetensors")}
    for main, argv in ((sample.main, arguments), (evaluate.main, arguments)):
        message = refused(main, *argv)
        assert name in message
        assert f"To continue from {EARLIER}" in message
    for output in two_ranks(["--init_from=resume", "--out_dir=out", "--max_iters=12"], code=2):
        assert output.count("\n") == 1 or "damaged" in output
        assert name in output
    assert {path: path.read_bytes() for path in Path("out").rglob("*.safetensors")} == before


@pytest.mark.parametrize("damage", ["cut", "run.json"])
def test_auto_continues_from_the_checkpoint_before_a_damaged_one(sharded, two_ranks, damage):
    if damage == "cut":
        shards()[0].write_bytes(b"")
    else:
        flip_byte(LATEST / RUN_FILE)
    outputs = two_ranks(["--init_from=auto", "--out_dir=out", "--max_iters=11"])
    assert f"so the run continues from {EARLIER}" in outputs[0]
    assert step_folders("out")[0].name == "step-00000011"


def test_unfinished_folder_is_no_checkpoint(sharded, two_ranks):
    (LATEST / RUN_FILE).unlink()
    outputs = two_ranks(["--init_from=resume", "--out_dir=out", "--max_iters=6"])
    assert f"resumed from {EARLIER} at step 5" in outputs[0]


def test_planted_pickle_is_never_opened(sharded, two_ranks):
    """torch's own format unpickles .metadata, which may run code."""

    class Planted:
        def __reduce__(self):
            return Path.touch, (Path("out/opened"),)

    for name in (".metadata", "__0_0.distcp"):
        (LATEST / name).write_bytes(pickle.dumps(Planted()))
    load_for_inference(str(LATEST))
    two_ranks(["--init_from=resume", "--out_dir=out", "--max_iters=11"])
    assert not Path("out/opened").exists()
    pickle.loads((LATEST / ".metadata").read_bytes())
    assert Path("out/opened").exists()


@pytest.mark.parametrize("change", ["name", "part", "optimizer"])
def test_run_file_that_does_not_fit_its_shards_is_refused(sharded, change):
    """With the right checksums, as from another program."""
    run = read_run(LATEST)
    files = run.pop("files")
    for key in ("path", "mtime_ns", "format"):
        del run[key]
    if change == "name":
        files["../shard"] = files.pop(shards()[0].name)
    elif change == "part":
        del files[shards()[0].name]
        shards()[0].unlink()
    else:
        run["optimizer"] = "muon"
    write_run(LATEST, run, files)
    with pytest.raises(CheckpointError, match=r"out/step-00000010"):
        load_merged(LATEST, RESUME_KEYS)


# Written while the run goes on

SLOW_DISK = """
import time
from seugpt.training.sharded_checkpoint import ShardedSaver

write = ShardedSaver.write

def slow_write(self, run, tensors):
    time.sleep(1)
    write(self, run, tensors)

ShardedSaver.write = slow_write
"""


def test_checkpoint_has_the_tensors_of_its_step_however_long_it_takes(sharded, run, run_ranks):
    """The steps made meanwhile do not change it, and the run ends with the last one whole."""
    run_ranks(run(**{**SHARDED, "out_dir": "slow"}), 2, setup=SLOW_DISK)
    for folder in (EARLIER, LATEST):
        expected = load_merged(folder, RESUME_KEYS)
        slow = load_merged(Path("slow", folder.name), RESUME_KEYS)
        for key in ("step", "model", "optimizer"):
            assert nested_equal(slow[key], expected[key]), key


# Processes that die


KILL = """
import os, signal, train
import seugpt.training.sharded_checkpoint as sharded_checkpoint

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_later(function, condition):
    def call(*args):
        if condition(*args):
            kill()
        return function(*args)
    return call

WHERE
"""
WHERE = {
    "in a step": (
        "train.Trainer.train_step = kill_later(train.Trainer.train_step, "
        "lambda self: self.state.step == 7 and self.dist_env.rank == 1)"
    ),
    "in a save": (
        "sharded_checkpoint.describe_file = kill_later(sharded_checkpoint.describe_file, "
        "lambda path: '00000010' in str(path) and 'shard-00002' in path.name)"
    ),
    "before run.json": (
        "sharded_checkpoint.write_run = kill_later(sharded_checkpoint.write_run, "
        "lambda folder, run, files: run['step'] == 10)"
    ),
}


@pytest.mark.parametrize("where", WHERE)
def test_killed_rank_loses_nothing(sharded, run, start_ranks, two_ranks, where):
    """The others end with a message; the run resumed from step 5 equals the undisturbed one."""
    argv = run(**{**SHARDED, "out_dir": "killed"})
    ranks = start_ranks(argv, 2, KILL.replace("WHERE", WHERE[where]))
    codes = sorted(process.wait() for process in ranks)
    assert codes == [-9, 2]
    survivor = next(process for process in ranks if process.returncode == 2)
    assert "another process of this run died" in survivor.output.read_text(encoding="utf-8")
    assert step_folders("killed")[0].name == "step-00000005"
    outputs = two_ranks(["--init_from=auto", "--out_dir=killed"])
    assert "step-00000005 at step 5" in outputs[0]
    assert not list(Path("killed").glob(".step-*"))
    assert logged_values("killed", "loss") == logged_values("out", "loss")
    expected = load_merged(LATEST, RESUME_KEYS)
    state = load_merged("killed/step-00000010", RESUME_KEYS)
    for key in ("model", "optimizer", "rng_states", "train_state"):
        assert nested_equal(state[key], expected[key]), key


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, resource.RLIM_INFINITY))
"""


def test_disk_full_in_an_asynchronous_save_is_one_message(sharded, run_ranks, two_ranks):
    """And the checkpoints before it can be resumed."""
    size = min(path.stat().st_size for path in shards()) // 2
    resume = ["--init_from=resume", "--out_dir=out"]
    before = {path: path.read_bytes() for path in Path("out").rglob("*.safetensors")}
    outputs = run_ranks(
        [*resume, "--max_iters=15"], 2, code=2, setup=FULL_DISK.replace("BYTES", str(size))
    )
    for output in outputs:
        assert "cannot write a checkpoint to out, on rank " in output
        assert "bytes are free there" in output
        assert "Traceback" not in output
    assert {path: path.read_bytes() for path in Path("out").rglob("*.safetensors")} == before
    assert not list(Path("out").glob(".step-*"))
    two_ranks([*resume, "--max_iters=11"])


REPLACE = """
import os, signal
import seugpt.training.sharded_checkpoint as sharded_checkpoint

put_in_place = sharded_checkpoint.put_in_place

def killed_in_place(folder, target):
    if target.exists():
        target.rename(target.with_name(target.name + sharded_checkpoint.REPLACED))
        os.kill(os.getpid(), signal.SIGKILL)
    put_in_place(folder, target)

sharded_checkpoint.put_in_place = killed_in_place
"""


def test_checkpoint_that_is_being_replaced_is_never_without_a_whole_one(
    sharded, start_ranks, two_ranks
):
    """A run resumed on other validation tokens saves its step again."""
    for folder in step_folders("out")[1:]:
        shutil.rmtree(folder)
    argv = ["--init_from=resume", "--out_dir=out", "--max_iters=12", "--eval_iters=1"]
    ranks = start_ranks(argv, 2, REPLACE)
    assert sorted(process.wait() for process in ranks) == [-9, 2]
    assert [folder.name for folder in step_folders("out")] == ["step-00000010.replaced"]
    two_ranks(argv)
    assert step_folders("out")[0].name == "step-00000012"
    assert not list(Path("out").glob("*.replaced"))


RESTARTED = """
import os, signal, train

step = train.Trainer.train_step

def killed_step(self):
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_attempt and self.state.step == 7 and self.dist_env.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)

train.Trainer.train_step = killed_step
train.draw_loss_curve = lambda log: None
train.main()
"""


@pytest.mark.slow
def test_torchrun_restarts_a_sharded_run(sharded, run):
    """auto takes the newest whole folder; all losses equal the undisturbed run's."""
    Path("restarted.py").write_text(RESTARTED, encoding="utf-8")
    argv = run(**{**SHARDED, "out_dir": "restarted", "init_from": "auto"})
    result = torchrun(*argv, script="restarted.py", restarts=2)
    assert result.returncode == 0, result.stderr
    assert "step-00000005 at step 5" in result.stdout
    assert logged_values("restarted", "loss") == logged_values("out", "loss")
