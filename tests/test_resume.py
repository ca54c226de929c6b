"""A training that is stopped anywhere goes on as if it had not been; a run folder survives whatever happens to it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kill_training import kill_again_and_again, metrics_without_times, read_everything, start
from tiny import quick, write_people

import nn.checkpoint
import resnet.checkpoint
import train
from nn.checkpoint import load_weights, save_weights
from nn.precision import LossScale
from resnet.checkpoint import Progress, read_checkpoint, save_checkpoint
from resnet.config import TrainingConfig, read_settings
from resnet.signals import Stopped, stop_requests
from resnet.trainer import Meter, Trainer
from resnet.training import CHANGEABLE, fit, prepare, resume

pytestmark = pytest.mark.usefixtures("no_pictures")

NAMES = ("model.safetensors", "best.safetensors", "checkpoint.safetensors")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    return load_weights(folder / name)[0]


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics_without_times(one) == metrics_without_times(other)
    for name in NAMES:
        arrays, others = weights(one, name), weights(other, name)
        assert arrays.keys() == others.keys()
        for key in arrays:
            np.testing.assert_array_equal(arrays[key], others[key], err_msg=f"{name} {key}")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Let this process get a signal in the middle of a step, once."""
    real, sent = Trainer.step, []

    def stepping(self: Trainer, x, labels):
        if self.steps == step and not sent:
            sent.append(os.kill(os.getpid(), number))
        return real(self, x, labels)

    monkeypatch.setattr(Trainer, "step", stepping)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 8, 10])
def test_resuming_at_any_step_gives_the_same_run(steps, people, tmp_path, monkeypatch, capsys):
    """Two batches an epoch: in the middle of one, at its end, before the first and in the last."""
    arguments = dict(epochs=6, learning_rate=0.05)
    assert train.main(quick(people, tmp_path / "calm", **arguments)) == 0
    stop_at(steps, monkeypatch)
    assert train.main(quick(people, tmp_path / "stopped", **arguments)) == 130
    said = capsys.readouterr().out
    assert f"stopped by SIGINT after {steps + 1} steps" in said  # the step under way is finished
    assert f"python train.py --resume {tmp_path / 'stopped'}" in said
    assert weights(tmp_path / "stopped")["bn1.num_batches_tracked"] == steps + 1
    assert not (tmp_path / "stopped" / "results.json").exists()
    assert train.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert_same_run(tmp_path / "calm", tmp_path / "stopped")
    results = [json.loads((tmp_path / name / "results.json").read_text())["rank1"] for name in ("calm", "stopped")]
    assert results[0] == results[1]


def test_sigterm_stops_it_likewise(people, tmp_path, monkeypatch, capsys):
    stop_at(3, monkeypatch, signal.SIGTERM)
    assert train.main(quick(people, tmp_path / "run", epochs=4)) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after 4 steps" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before


def test_a_second_signal_does_what_it_does_elsewhere():
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.number == signal.SIGINT
        with pytest.raises(Stopped, match="SIGINT"):
            request.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_are_left_alone_in_another_thread():
    seen = []

    def other() -> None:
        with stop_requests() as request:
            seen.append((request.number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(None, signal.getsignal(signal.SIGINT))]


def test_a_real_sigint_ends_the_command(people, tmp_path):
    folder = tmp_path / "run"
    process = start(quick(people, folder, epochs=5000))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "best.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in out
    assert err == ""
    read_everything(folder)
    assert read_checkpoint(folder).progress.history


def test_a_killed_training_loses_nothing_but_the_epoch_under_way(tmp_path):
    """Three kills; python tests/kill_training.py makes fifty."""
    assert kill_again_and_again(tmp_path, kills=3, epochs=60, seed=1)["kills"] >= 1


def test_a_finished_run_can_be_finished_again(people, tmp_path, capsys):
    assert train.main(quick(people, tmp_path / "run")) == 0
    before = metrics_without_times(tmp_path / "run")
    (tmp_path / "run" / "curves.png").unlink()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert metrics_without_times(tmp_path / "run") == before
    assert (tmp_path / "run" / "curves.png").exists()


def test_the_best_epoch_is_kept_beside_the_last(people, tmp_path, monkeypatch):
    """Masked accuracies 0.5, 0.9, 0.7, 0.9, 0.1: the fourth epoch is the latest of the best."""
    scores = iter([0.5, 0.9, 0.7, 0.9, 0.1])
    seen = []

    def tested(self):
        seen.append(self.model.state_dict()["fc.weight"].copy())
        return {"clean": 1.0, "masked": next(scores, 0.0)}

    monkeypatch.setattr("resnet.training.Training.test", tested)
    monkeypatch.setattr("resnet.training.finish", lambda *arguments: None)
    assert train.main(quick(people, tmp_path / "run", epochs=5)) == 0
    np.testing.assert_array_equal(weights(tmp_path / "run", "best.safetensors")["fc.weight"], seen[3])
    np.testing.assert_array_equal(weights(tmp_path / "run")["fc.weight"], seen[4])
    assert read_checkpoint(tmp_path / "run").progress.best == 0.9


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_leaves_the_earlier_checkpoint(name, code, people, tmp_path, monkeypatch, capsys):
    folder, real, writes = tmp_path / "run", nn.checkpoint.os.replace, []

    def full(source, target):
        writes.extend([target] * (Path(target).name == name))
        if len(writes) == 3 and Path(target).name == name:
            raise OSError(code, os.strerror(code))
        return real(source, target)

    as_good = {"clean": 0.5, "masked": 0.5}  # each epoch, so that the best is written each time
    monkeypatch.setattr("resnet.training.Training.test", lambda self: as_good)
    with monkeypatch.context() as patch:
        patch.setattr(nn.checkpoint.os, "replace", full)
        assert train.main(quick(people, folder, epochs=6)) == 1
    error = capsys.readouterr().err
    assert os.strerror(code) in error
    assert f"--resume {folder}" in error
    read_everything(folder)
    assert not list(folder.glob(".*.tmp"))
    assert train.main(["--resume", str(folder)]) == 0
    assert train.main(quick(people, tmp_path / "calm", epochs=6)) == 0
    assert_same_run(tmp_path / "calm", folder)


def test_other_pictures_are_refused(people, tmp_path, monkeypatch, capsys):
    stop_at(3, monkeypatch)
    assert train.main(quick(people, tmp_path / "run", epochs=6)) == 130
    shutil.rmtree(people)
    write_people(people, seed=1)
    assert train.main(["--resume", str(tmp_path / "run")]) == 1
    assert "the pictures are not those" in capsys.readouterr().err
    write_people(tmp_path / "elsewhere")
    assert train.main(["--resume", str(tmp_path / "run"), "--data-dir", str(tmp_path / "elsewhere")]) == 0


def test_only_some_settings_may_change(people, tmp_path, monkeypatch, capsys):
    stop_at(3, monkeypatch)
    assert train.main(quick(people, tmp_path / "run", epochs=6)) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "7"]) == 1
    error = capsys.readouterr().err
    assert "--epochs was 6 when the run began" in error
    assert all("--" + name.replace("_", "-") in error for name in CHANGEABLE)
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "6", "--threads", "1"]) == 0
    assert read_checkpoint(tmp_path / "run").config.threads == 1


def test_a_run_that_exploded_goes_on_with_a_lower_learning_rate(people, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main(quick(people, folder, learning_rate=1e30, schedule="constant", epochs=3)) == 1
    assert train.main(["--resume", str(folder), "--learning-rate", "0.01"]) == 0
    assert len(metrics_without_times(folder)) == 1 + 3


@pytest.mark.parametrize("words", [["--config", "x.toml"], ["--profile"], ["--overfit-one-batch"], ["--run-dir", "x"]])
def test_resume_stands_alone(words, tmp_path, capsys):
    (tmp_path / "x.toml").write_text("")
    with pytest.raises(SystemExit) as exit_:
        train.main(["--resume", str(tmp_path), *[str(tmp_path / w) if w == "x.toml" else w for w in words]])
    assert exit_.value.code == 2
    assert "--resume goes on" in capsys.readouterr().err


def test_nothing_to_go_on_with(tmp_path, capsys):
    assert train.main(["--resume", str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert train.main(["--resume", str(tmp_path)]) == 1
    assert "no checkpoint.safetensors in it" in capsys.readouterr().err


# The file


def changed_file(folder: Path, **facts: object) -> None:
    """Put other metadata into a checkpoint; None takes an entry out."""
    arrays, metadata = load_weights(folder / "checkpoint.safetensors")
    metadata |= {name: json.dumps(value) for name, value in facts.items()}
    for name, value in facts.items():
        if value is None:
            del metadata[name]
    save_weights(folder / "checkpoint.safetensors", arrays, metadata)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"history": None}, "history"),
        ({"history": [1]}, "mapping"),
        ({"history": {"epoch": 1}}, "no checkpoint"),
        ({"meter": {"losses": [1.0], "sizes": [], "right": 0}}, "a loss for each of 0 steps"),
        ({"meter": {"losses": ["x"], "sizes": [1], "right": 0}}, "a loss for each of 1 steps"),
        ({"meter": {"losses": [1.0], "sizes": [-1], "right": 0}}, "numbers of pictures"),
        ({"meter": []}, "no checkpoint"),
        ({"config": {"epochs": "many"}}, "--epochs: expected a whole number, got 'many'"),
        ({"config": {"speed": 1}}, "speed"),
        ({"data": 5}, "data is no text"),
        ({"best": "good"}, "good"),
    ],
)
def test_foreign_facts_are_refused(facts, words, people, tmp_path):
    assert train.main(quick(people, tmp_path / "run", epochs=1)) == 0
    changed_file(tmp_path / "run", **facts)
    with pytest.raises(ValueError, match=words) as error:
        resume(tmp_path / "run")
    assert "checkpoint.safetensors is no checkpoint" in str(error.value)


def test_a_checkpoint_whose_parts_contradict_each_other_is_refused(people, tmp_path):
    assert train.main(quick(people, tmp_path / "run", epochs=1)) == 0
    changed_file(tmp_path / "run", history=[])
    with pytest.raises(ValueError, match=r"expected metrics of 1 epochs .* found 0"):
        resume(tmp_path / "run", quiet=True)


def test_a_damaged_checkpoint_is_refused(people, tmp_path, capsys):
    assert train.main(quick(people, tmp_path / "run", epochs=1)) == 0
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[100:]):
        path.write_bytes(damaged)
        assert train.main(["--resume", str(tmp_path / "run")]) == 1
        assert "checkpoint.safetensors" in capsys.readouterr().err
    arrays, metadata = load_weights(tmp_path / "run" / "model.safetensors")
    save_weights(path, arrays, metadata)
    assert train.main(["--resume", str(tmp_path / "run")]) == 1
    assert "no checkpoint of a training" in capsys.readouterr().err


def test_the_progress_of_a_checkpoint_is_that_which_was_saved(people, tmp_path, monkeypatch):
    config = TrainingConfig(data="folder", data_dir=str(people), arch="resnet20", image_size=16, epochs=2, batch_size=6)
    training, progress = prepare(config), Progress()
    for _ in fit(training, progress, quiet=True):
        break
    progress.meter, progress.best = Meter([0.1, 1 / 3], [6, 5], 4), 2 / 3
    save_checkpoint(tmp_path, training, progress)
    found = read_checkpoint(tmp_path)
    assert found.config == config
    assert found.progress.history == progress.history
    assert vars(found.progress.meter) == vars(progress.meter)
    assert found.progress.best == 2 / 3
    assert found.progress.meter.loss == pytest.approx((0.1 * 6 + 5 / 3) / 11)
    monkeypatch.setattr(resnet.checkpoint, "LARGEST", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        read_checkpoint(tmp_path)


def test_the_loss_scale_of_half_precision_is_kept():
    scale = LossScale(np, value=8.0, growth_steps=3)
    scale.update()
    scale.update()
    other = LossScale(np, growth_steps=3)
    other.load_state_dict(scale.state_dict())
    for one in (scale, other):
        assert one.value == 8
        one.update()
        assert one.value == 16
    with pytest.raises(ValueError, match="good_steps"):
        other.load_state_dict({"value": np.float32(1)})
    for value, steps in ((0, 0), (-1, 0), (np.nan, 0), (np.inf, 0), (8, -1)):
        with pytest.raises(ValueError, match="above 0"):
            other.load_state_dict({"value": np.float32(value), "good_steps": np.int32(steps)})
    assert other.value == 16


def test_an_array_that_is_no_part_of_a_training_is_named(people):
    training = prepare(TrainingConfig(data="folder", data_dir=str(people), arch="resnet20", image_size=16))
    state = training.trainer.state_dict() | {"stowaway": np.zeros(3)}
    with pytest.raises(ValueError, match="got model, optimizer, stowaway"):
        training.trainer.load_state_dict(state)


# Settings from a file


def test_settings_come_from_a_file_and_options_win(people, tmp_path):
    (tmp_path / "settings.toml").write_text(
        f'data = "folder"\ndata-dir = "{people}"\narch = "resnet20"\nimage_size = 16\nlearning-rate = 1\nepochs = 3\n'
        'batch-size = 6\nbackend = "numpy"\n'
    )
    arguments = ["--config", str(tmp_path / "settings.toml"), "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    wanted = {"arch": "resnet20", "image_size": 16, "learning_rate": 1.0, "epochs": 1, "seed": 0}
    assert {name: settings[name] for name in wanted} == wanted
    assert isinstance(settings["learning_rate"], float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning-rat = 1", "did you mean learning-rate?"),
        ("zzz = 1", "--help lists all"),
        ("epochs = 2.5", "--epochs: expected a whole number, got 2.5"),
        ("epochs = true", "--epochs: expected a whole number, got True"),
        ("epochs = '3'", "--epochs: expected a whole number, got '3'"),
        ("learning-rate = nan", "finite"),
        ("learning-rate = inf", "finite"),
        ("arch = 18", "--arch: expected a text, got 18"),
        ("data-dir = 1", "--data-dir: expected a text"),
        ("epochs = -1", "--epochs: expected at least 1"),
        ("[training]\nepochs = 3", "no setting training"),
        ("epochs: 3", "no TOML file"),
        ("a=" + "[" * 5000, "no TOML file"),
        ("\xff", "no setting|no TOML"),
    ],
)
def test_a_wrong_settings_file_is_wrong_use(text, words, tmp_path, capsys):
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        train.main(["--config", str(tmp_path / "settings.toml")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert any(word in error for word in words.split("|"))


def test_no_settings_file_or_too_large_a_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a TOML file"):
        read_settings(tmp_path / "nothing.toml")
    (tmp_path / "large.toml").write_text("#" * 2_000_000)
    with pytest.raises(ValueError, match="at most"):
        read_settings(tmp_path / "large.toml")


def test_every_setting_survives_json(tmp_path):
    config = TrainingConfig(learning_rate=0.1 + 0.2)
    assert TrainingConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        train.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("train.py 0.")
