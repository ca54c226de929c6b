"""A training that tells masked faces from bare ones: who is learned from, what is shown, what the run says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import quick

import train
from resnet.config import TrainingConfig
from resnet.data.rmfrd import MASKED, UNMASKED
from resnet.inference import load_network
from resnet.training import prepare

pytestmark = pytest.mark.usefixtures("no_pictures")
PEOPLE, BARE, REAL = 5, 3, 2  # pictures of each person without and with a mask


@pytest.fixture
def rmfrd(tmp_path: Path) -> Path:
    """Write noise of a tone of its own for each person, with masks black below the middle."""
    rng = np.random.default_rng(0)
    for person in range(PEOPLE):
        for folder, count in ((UNMASKED, BARE), (MASKED, REAL)):
            place = tmp_path / "rmfrd" / folder / f"person{person}"
            place.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(100 + 20 * person, 120 + 20 * person, (16, 16, 3)).astype(np.uint8)
                if folder == MASKED:
                    picture[8:] = 0
                Image.fromarray(picture).save(place / f"{number}.png")
    return tmp_path / "rmfrd"


def config(rmfrd: Path, **more: object) -> TrainingConfig:
    settings = {"data": "rmfrd", "data_dir": str(rmfrd), "image_size": 16, "arch": "resnet20", "backend": "numpy"}
    return TrainingConfig(**{**settings, "test_share": 0.4, **more})


def test_nobody_is_learned_from_and_tested_on(rmfrd):
    training = prepare(config(rmfrd))
    learned, tested = training.train_faces, training.tests["clean"]
    names = [{Path(file).parent.name for file in faces.files} for faces in (learned, tested)]
    assert len(names[0]) == 3
    assert len(names[1]) == 2
    assert not names[0] & names[1]
    assert list(training.tests) == ["clean"]
    for file, label in zip(tested.files, tested.labels, strict=True):
        assert tested.people[label] == ("mask" if MASKED in file else "no mask")
    other_names = {
        Path(file).parent.name for seed in range(5) for file in prepare(config(rmfrd, seed=seed)).train_faces.files
    }
    assert len(other_names) > 3  # another seed leaves others out


def test_both_answers_are_shown_equally_often(rmfrd):
    """9 bare faces twice; 9 with a drawn mask; 6 real masks, three of them twice."""
    training = prepare(config(rmfrd))
    shown = training.train_faces
    assert np.bincount(shown.labels).tolist() == [18, 18]
    real = [file for file, label in zip(shown.files, shown.labels, strict=True) if label and MASKED in file]
    assert len(real) == 9
    assert len(set(real)) == 6
    assert training.config.mask_probability == 0  # or bare faces would get masks, and still be called bare
    originals = {file: shown.pictures[n] for n, file in enumerate(shown.files) if shown.labels[n] == 0}
    for picture, label, file in zip(shown.pictures, shown.labels, shown.files, strict=True):
        if label == 1 and UNMASKED in file:
            assert (picture != originals[file]).any(), "no mask was drawn"


def test_a_detector_is_trained_by_the_usual_command(rmfrd, tmp_path, capsys):
    folder = tmp_path / "run"
    words = quick(rmfrd, folder, data="rmfrd", test_share=0.4, epochs=10, repeats=4, learning_rate=0.05)
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert "2 answers, 36 photographs to train on, 10 to test" in said
    assert "3 people are learned from, 2 others tested on" in said
    assert "masked " not in said.split("epoch   1")[1].split("lr")[0]
    assert "on 10 test photographs, clean;" in said
    results = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    assert results["rank1"]["resnet20 LeakyReLU"] == {"clean": 1.0}
    assert "masked_accuracy" not in results["epochs"][0]
    network = load_network(folder)
    assert network.people == ("no mask", "mask")
    assert network.colour
    assert load_network(folder / "best.safetensors").people == network.people


def test_a_detector_resumes(rmfrd, tmp_path, monkeypatch):
    from test_resume import assert_same_run, stop_at

    words = dict(data="rmfrd", test_share=0.4, epochs=3)
    assert train.main(quick(rmfrd, tmp_path / "calm", **words)) == 0
    stop_at(8, monkeypatch)
    assert train.main(quick(rmfrd, tmp_path / "stopped", **words)) == 130
    assert train.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert_same_run(tmp_path / "calm", tmp_path / "stopped")


def test_without_a_folder_it_says_where_to_get_one(tmp_path, capsys):
    assert train.main(["--data", "rmfrd", "--run-dir", str(tmp_path)]) == 1
    assert "--data-dir DIR" in capsys.readouterr().err
