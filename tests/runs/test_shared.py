"""hydra/launcher=shared_encoder: runs that share an encoder are the same runs as alone."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra_plugins.whispertag_shared_encoder import Job, grouped
from omegaconf import OmegaConf

from tests.conftest import read_result, write_shards_of
from tests.runs.test_train import QUIET, ROOT, runs
from whispertag.model.backbone import WhisperBackbone

SHARED = "hydra/launcher=shared_encoder"
TIMES = {"started", "seconds", "train_clips_per_second", "waiting_for_data", "sharing", "folder", "wandb_id"}
LABELS = [["Speech"], ["Music"], ["Speech", "Dog"], ["Nonsense"], ["Dog"], ["Music", "Dog"]] * 3


@pytest.fixture(scope="module")
def asked(tmp_path_factory, whisper_file) -> list[str]:
    """A command on clips of one second, one in six of them with a class that does not exist."""
    folder = write_shards_of(tmp_path_factory.mktemp("shared") / "shards", LABELS, clips_per_shard=9)
    data = [f"data.train=[{folder}]", f"data.val=[{folder}]", "data.clip_seconds=1", "data.batch_size=4"]
    data += ["data.workers=0", "model=tiny", f"model.name={whisper_file}", "context=1", "pool=5"]
    return ["data=shards", *data, "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", *QUIET]


def sweep(*arguments: str) -> int:
    """`python train.py -m …` in this process → its exit code."""
    before, root, level = sys.argv, logging.root.handlers[:], logging.root.level
    sys.argv = ["train.py", "-m", *arguments]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv, logging.root.handlers[:] = before, root
        logging.root.setLevel(level)
    return 0


def same(one: Path, other: Path) -> None:
    """Weights, curves, tables and results of two runs, but for their times and places."""
    assert one.name == other.name
    for name in ("head.safetensors", "classes.csv", "metrics/version_0/metrics.csv", "bad_clips.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), (one.name, name)
    a, b = ({k: v for k, v in read_result(folder).items() if k not in TIMES} for folder in (one, other))
    for result in (a, b):
        result["overrides"] = [o for o in result["overrides"] if not o.startswith("study=")]
        del result["config"]["study"]
    assert a == b and a["status"] == "done"


def as_alone(study: str, *arguments: str) -> list[Path]:
    """Run a sweep both ways and compare; → the folders of the shared runs."""
    assert sweep(*arguments, f"study={study}-alone") == 0
    assert sweep(*arguments, f"study={study}", SHARED) == 0
    alone, shared = runs(f"{study}-alone"), runs(study)
    assert len(alone) == len(shared)
    for one, other in zip(alone, shared):
        same(one, other)
    return shared


@contextmanager
def heard():
    """The number of waves of every call of a backbone, as they come."""
    calls, hear = [], WhisperBackbone.hear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhisperBackbone, "hear", lambda self, w: calls.append(len(w)) or hear(self, w))
        yield calls


def test_twelve_runs_equal_the_same_twelve_alone(asked):
    heads, layers = "head=tl_tr,tl_tr_512,wa_tr,wa_mlp", "layers=all,last,every2"
    shared = as_alone("twelve", *asked, heads, layers, "trainer.max_epochs=2")
    results = [read_result(folder) for folder in shared]
    assert len(results) == 12 and {r["sharing"] for r in results} == {12}
    assert {tuple(r["backbone"]["layers"]) for r in results} == {(0, 1, 2, 3, 4), (4,), (0, 2, 4)}
    assert all(len(r["bad_clips"]) == 3 for r in results), "every run names the clips that none could use"
    assert "going on" not in (shared[0] / "train.log").read_text()


def test_runs_that_differ_in_all_that_may_differ_hear_each_batch_once(asked):
    """Epochs, averaging, statistics or none, fewer batches, a log-mel baseline; nothing is remembered."""
    differ = ["trainer.max_epochs=1,3", "head.standardize=true,false", "trainer.limit_train_batches=2,null"]
    fixed = ["head=wa_mlp", "callbacks=average", "callbacks.average.first=1", "remember=0", "baseline=true"]
    with heard() as calls:
        assert sweep(*asked, *differ, *fixed, "study=differ", SHARED) == 0
    # 15 clips: in statistics, 3 epochs of training, and validation of epochs 1, 2, 3 with tests after 1 and 3.
    assert sum(calls) == 15 * (1 + 3 + 4)
    assert sweep(*asked, *differ, *fixed, "study=differ-alone") == 0
    for one, other in zip(runs("differ-alone"), runs("differ"), strict=True):
        same(one, other)


def test_a_run_that_fails_does_so_alone(asked, capsys):
    """One is misconfigured, one raises in mid-training, one is both."""
    assert sweep(*asked, "head.layer_heads=8,7", "optim.lr=1e-3,1e30", "study=fails", SHARED) == 1
    said = capsys.readouterr().err
    found = {folder.name: read_result(folder) for folder in runs("fails")}
    assert sorted(result["status"] for result in found.values()) == ["done", "failed", "failed", "failed"]
    for name, result in found.items():
        heads, lr = result["config"]["head"]["layer_heads"], result["config"]["optim"]["lr"]
        assert (result["status"] == "failed") == (heads == 7 or lr == 1e30) == (f"{name} failed" in said)
        if result["status"] == "failed":
            assert result["error"].startswith("Traceback")
            assert ("7 attention heads" if heads == 7 else "not finite") in result["error"]
        else:
            assert result["epochs"] == 10


LONG = ["head=tl_tr,wa_mlp", "layers=all,last", "trainer.max_epochs=30", "callbacks=average", "logger.mode=offline"]


def started(*arguments: str) -> subprocess.Popen:
    """The sweep in a process of its own, once all its four runs have done two epochs."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *arguments, SHARED]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def epochs() -> list[int]:
        return [torch.load(ckpt, weights_only=True)["epoch"] for ckpt in Path().glob("experiments/*/runs/*/last.ckpt")]

    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(done := epochs()) == 4 and min(done) >= 1:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    return process


def test_ctrl_c_ends_all_of_them_and_resume_goes_on_from_wherever_each_was(asked):
    process = started(*asked, *LONG)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert said.rstrip().endswith("resume=true goes on") and "Traceback" not in said
    folders = runs()
    assert [read_result(folder)["status"] for folder in folders] == ["interrupted"] * 4
    # One has to begin anew, one is done before the others go on.
    (folders[0] / "last.ckpt").unlink()
    with heard() as calls:
        assert sweep(*asked, *LONG, "resume=true", "remember=0") == 1, "remember differs"
