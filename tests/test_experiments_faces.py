"""The experiments on faces, on made-up people and narrow networks, and their parts by value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nn import LeakyReLU, Linear
from resnet.data import Faces, detection
from resnet.data.faces import join, reframe
from resnet.data.masks import TEMPLATES
from resnet.experiments import activation, harness, mask_detection, occlusion, real_masks, trainings
from resnet.experiments.harness import Lab
from resnet.experiments.sources import Sources
from resnet.inference import embed

PEOPLE = 4


def patterns(rng: np.random.Generator, people: int, pictures: int, size: int, channels: int = 1) -> np.ndarray:
    """Return uint8 (people, pictures, size, size, channels): a coarse pattern a person, with noise a picture."""
    coarse = rng.uniform(40, 215, (people, 1, 4, 4, channels))
    fine = np.kron(coarse, np.ones((1, 1, size // 4, size // 4, 1)))
    return np.clip(fine + rng.normal(0, 12, (people, pictures, *fine.shape[2:])), 0, 255).astype(np.uint8)


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze()).save(path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a lab with made-up ORL, LFW and RMFRD sets."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for person, pictures in enumerate(patterns(rng, PEOPLE, 6, 32), start=1):
        for number, picture in enumerate(pictures, start=1):
            write(root / f"orl/s{person}/{number}.pgm", picture)
    for person, pictures in enumerate(patterns(rng, 3, 20, 160)):
        for number, picture in enumerate(pictures, start=1):
            write(root / f"lfw/P_{person}/P_{person}_{number:04d}.jpg", picture)
    for person, pictures in enumerate(patterns(rng, 12, 4, 32, channels=3)):
        for number, picture in enumerate(pictures):
            kind = "AFDB_masked_face_dataset" if number < 2 else "AFDB_face_dataset"
            if (person, number) not in ((11, 0), (11, 1)):  # person 11 has no picture with a mask
                write(root / f"rmfrd/{kind}/person{person:02d}/{number}.png", picture)
    sources = Sources({name: root / name for name in ("orl", "lfw", "rmfrd")})
    return Lab(sources, work=root / "work", backend="numpy", quiet=True)


@pytest.fixture(autouse=True)
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet.models.WIDTHS", (4, 4, 8, 8))


def run(name: str, settings: Any, lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(f"resnet.experiments.{name}.PRESETS", {"quick": settings, "full": settings})
    harness.run(name, "quick", lab, folder, folder, say=lambda line: None)
    return json.loads((folder / f"{name}-quick.json").read_text())


def made_up(pictures: int, people: int = 3, size: int = 16, points: str = "orl", seed: int = 0) -> Faces:
    rng = np.random.default_rng(seed)
    labels = np.arange(pictures) % people
    return Faces(
        rng.integers(0, 256, (pictures, size, size, 1), dtype=np.uint8),
        labels.astype(np.int64),
        tuple(f"p{person}" for person in range(people)),
        tuple(f"{number}.png" for number in range(pictures)),
        TEMPLATES[points],
    )


# The parts that experiments on faces share


def test_networks_of_one_seed_start_from_the_same_weights_split_and_batches(lab):
    relu, leaky = (
        trainings.recognise(lab, "orl", size=16, seed=3, epochs=1, **settings)
        for settings in ({"activation": "relu"}, {"activation": "leaky_relu", "negative_slope": 0.3})
    )
    for (name, ours), theirs in zip(
        relu.training.model.state_dict().items(), leaky.training.model.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    slopes = {m.negative_slope for _, m in leaky.training.model.named_modules() if isinstance(m, LeakyReLU)}
    assert slopes == {0.3}
    assert relu.training.train_faces.files == leaky.training.train_faces.files
    for (x, labels), (x_too, labels_too) in zip(
        relu.training.batches.epoch(0), leaky.training.batches.epoch(0), strict=True
    ):
        np.testing.assert_array_equal(x, x_too)
        np.testing.assert_array_equal(labels, labels_too)
    assert not set(relu.training.train_faces.files) & set(relu.tests["clean"].files)
    assert relu.tests["masked"].files == relu.tests["clean"].files


def test_a_part_has_the_first_pictures_of_each_class():
    faces = made_up(12)
    part = trainings.part(faces, 6)
    assert part.files == tuple(f"{number}.png" for number in range(6))
    with pytest.raises(ValueError, match="at least 5 pictures of each of 3 classes, got 4"):
        trainings.part(faces, 15)


def test_joined_sets_keep_all_and_refuse_other_people():
    first, second = made_up(4), made_up(5, seed=1)
    both = join(first, second)
    np.testing.assert_array_equal(both.pictures[4:], second.pictures)
    assert both.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1]
    assert both.files == first.files + second.files
    for other in (made_up(4, people=4), made_up(4, points="lfw")):
        with pytest.raises(ValueError, match="same people"):
            join(first, other)


def test_reframing_puts_the_points_where_they_shall_be():
    """Paint a dark dot on each facial point of LFW's frame; in the new frame it must lie at RMFRD's point."""
    size, wanted = 160, TEMPLATES["rmfrd"]
    for point in range(6):
        faces = replace(
            made_up(1, people=1, size=size, points="lfw"), pictures=np.full((1, size, size, 1), 255, np.uint8)
        )
        x, y = (faces.points[point] * size).astype(int)
        faces.pictures[0, y - 2 : y + 3, x - 2 : x + 3] = 0
        found = reframe(faces, wanted, 100)
        assert found.pictures.shape == (1, 100, 100, 1)
        rows, columns = np.nonzero(found.pictures[0, :, :, 0] < 128)
        np.testing.assert_allclose((columns.mean() / 100, rows.mean() / 100), wanted[point], atol=0.04)
    np.testing.assert_array_equal(found.points, wanted)


# activation


def test_activation_pairs_and_reports(lab, tmp_path, monkeypatch):
    settings = activation.Settings(1, {"orl": 16}, {"orl": 3}, {"orl": 3}, 1, (0.0, 0.01, 0.3))
    report = run("activation", settings, lab, tmp_path, monkeypatch)
    rows = {(row["rounds"], row["slope"]): row for row in report["comparisons"]}
    assert {key: row["n"] for key, row in rows.items()} == {
        (rounds, slope): n for rounds in ("two epochs", "full") for slope, n in ((0.0, 3), (0.01, 3), (0.3, 1))
    }
    cells = report["cells"]
    for rounds in ("two epochs", "full"):
        accuracy = [
            [cells[f"orl/{rounds}/slope {slope}/seed {seed}"]["result"]["accuracy"]["masked"] for seed in range(3)]
            for slope in (0.0, 0.01)
        ]
        differences = np.subtract(accuracy[1], accuracy[0])
        found = rows[rounds, 0.01]["masked_difference"]
        np.testing.assert_allclose(found["pairs"], differences)
        np.testing.assert_allclose(found["mean"], differences.mean())
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert {path.name for path in tmp_path.glob("*.svg")} == {"activation-quick.svg", "activation-why-quick.svg"}
    assert "of 18 cells" not in " ".join(report["left_out"])


def test_the_verdict_of_activation_hangs_on_masked_faces_after_two_epochs():
    settings = activation.Settings(1, {"orl": 16}, {"orl": 5}, {"orl": 5}, 0, (0.0, 0.01))

    def results(two_epochs: float, full: float) -> dict[str, Any]:
        made = {}
        for rounds, gain in (("two epochs", two_epochs), ("full", full)):
            for slope in (0.0, 0.01):
                for seed in range(5):
                    masked = 0.4 + 0.01 * seed + (gain + 0.002 * seed if slope else 0)
                    made[f"orl/{rounds}/slope {slope}/seed {seed}"] = {
                        "accuracy": {"masked": masked, "clean": 0.5},
                        "dead_units": {"relu": 0.1},
                        "dead_channels": {"relu": 0.0},
                        "gradient_norm": {"conv1": 1.0},
                    }
        return made

    better = activation.summarize(settings, results(0.1, -0.1))
    assert better["holds"] is True
    assert (
        "after two epochs: LeakyReLU (0.01) is more accurate than ReLU on masked faces, by +10.4" in better["finding"]
    )
    assert "after full training: LeakyReLU (0.01) is less accurate than" in better["finding"]
    assert activation.summarize(settings, results(-0.1, 0.1))["holds"] is False
    assert activation.summarize(settings, results(-0.004, 0.1))["holds"] is False  # an interval around zero


def test_dead_units_are_those_negative_for_every_picture(lab):
    training = trainings.recognise(lab, "orl", size=16, seed=0, epochs=1, activation="relu").training
    stem = training.model.bn1
    stem.weight.data[:2], stem.bias.data[:2] = 0, -1  # two of four channels are negative everywhere
    seen = activation.look_inside(training)
    assert seen["dead_channels"]["relu"] == 0.5
    assert seen["dead_units"]["relu"] >= 0.5
    assert seen["dead_channels"]["layer1.0.relu1"] == 0
    assert set(seen["gradient_norm"]) >= {"conv1", "layer4.1.conv2", "layer2.0.downsample.0"}
    assert all(norm > 0 for norm in seen["gradient_norm"].values())


# occlusion


def test_occlusion_compares_all_methods(lab, tmp_path, monkeypatch):
    settings = occlusion.Settings(
        1, {"orl": 32, "lfw": 32}, {"orl": 1, "lfw": 1}, {"orl": 2, "lfw": 1}, {"orl": 1, "lfw": 1}
    )
    monkeypatch.setattr(occlusion, "STRIDE", 10)
    report = run("occlusion", settings, lab, tmp_path, monkeypatch)
    counts = {(row["data"], row["training"], row["method"]): row["n"] for row in report["rows"]}
    assert len(counts) == 2 * 2 * (3 + 5)
    assert counts["orl", "clean", "Fisherfaces"] == 2
    assert counts["lfw", "masked", "ResNet18 ReLU"] == 1
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".json"} == {
        "occlusion-quick.svg",
        "occlusion-heights-quick.svg",
        "occlusion-where-quick.png",
    }
    row = next(row for row in report["rows"] if row["method"] == "pixel 1-NN" and row["training"] == "clean")
    assert all(one <= five for one, five in zip(row["masked"]["rank1"], row["masked"]["rank5"], strict=True))
    heights = report["heights"]["runs"][0]
    assert {len(values) for values in heights.values()} == {len(occlusion.RAISES)}


def test_the_simple_methods_learn_from_the_very_photographs_of_the_networks(lab):
    task = trainings.recognise(lab, "orl", size=16, seed=1)
    clean = occlusion.fit_simple("pixel 1-NN", task.training.train_faces, "clean", 1)
    both = occlusion.fit_simple("pixel 1-NN", task.training.train_faces, "masked", 1)
    photographs = len(task.training.train_faces)
    assert (len(clean._known), len(both._known)) == (photographs, 2 * photographs)
    own = clean.scores(occlusion.flat(task.training.train_faces.pictures))
    np.testing.assert_allclose(own[np.arange(photographs), task.training.train_faces.labels], 0, atol=1e-6)


@pytest.mark.parametrize("data", ["orl", "lfw", "rmfrd", "centred"])
def test_raised_masks_keep_their_chin_and_can_be_drawn(data):
    points = TEMPLATES[data]
    tops = [occlusion.raised(points, by)[0, 1] for by in occlusion.RAISES]
    assert all(upper < lower for upper, lower in zip(tops[1:], tops[:-1], strict=True))
    np.testing.assert_array_equal(occlusion.raised(points, 0.0), points)
    for by in occlusion.RAISES:
        masked = occlusion.masked_copies(replace(made_up(2, size=32), points=occlusion.raised(points, by)), 0)
        assert not np.array_equal(masked.pictures, made_up(2, size=32).pictures)


def test_a_network_that_looks_at_one_corner_is_found_out(monkeypatch):
    """Of two people one is bright in the upper left corner; only covering that corner may matter."""
    pictures = np.zeros((4, 64, 64, 1), np.uint8)
    pictures[::2, :12, :12] = 255
    labels = np.array([1, 0, 1, 0])
    faces = Faces(pictures, labels, ("dark", "bright"), ("a", "b", "c", "d"), TEMPLATES["orl"])

    class Corner:
        def scores(self, shown: np.ndarray) -> np.ndarray:
            light = shown[:, :12, :12].mean(axis=(1, 2, 3)) / 255  # (N,)
            return np.stack([np.zeros(len(shown)), 10 * light - 5], axis=1)

    falls = occlusion.sensitivity(Corner(), faces)
    assert falls.shape == (14, 14)
    assert falls[0, 0] == falls.max() > 0.2
    np.testing.assert_array_equal(falls[3:, 3:], 0)


def test_the_verdict_of_occlusion_needs_every_rival_beaten():
    settings = occlusion.Settings(1, {"orl": 64}, {"orl": 1}, {"orl": 6}, {"orl": 5}, ("Fisherfaces",))

    def results(fisher: float, plain: float) -> dict[str, Any]:
        level = {"ResNet18 LeakyReLU": 0.9, "ResNet18 ReLU": 0.95, "plain-18 LeakyReLU": plain, "Fisherfaces": fisher}
        return {
            f"orl/{method}/{masks} training/seed {seed}": {
                test: {"rank1": value + 0.001 * seed * (seed % 2), "rank5": 1.0} for test in ("clean", "masked")
            }
            for method, value in level.items()
            for masks in ("clean", "masked")
            for seed in range(6 if method == "Fisherfaces" else 5)
        }

    good = occlusion.summarize(settings, results(0.8, 0.7))
    assert good["holds"] is True
    assert "the best other method, Fisherfaces, 80." in good["finding"]
    assert occlusion.summarize(settings, results(0.91, 0.7))["holds"] is False
    assert occlusion.summarize(settings, results(0.8, 0.9))["holds"] is False
    row = next(r for r in good["rows"] if r["method"] == "Fisherfaces" and r["training"] == "masked")
    assert len(row["ours_minus_this"]["pairs"]) == 5


# real masks


def test_no_tested_person_is_learned_and_each_is_tested_once(lab):
    tested = []
    for group in (0, 1):
        learned, gallery, probes = real_masks.divide(lab, 16, 2, group)
        assert gallery.people == probes.people
        assert not set(gallery.people) & set(learned.people)
        assert len(learned.people) == 3 + 12 - len(gallery.people)
        assert "person11" in learned.people
        assert not any("masked" in file for file in (*learned.files, *gallery.files))
        assert all("AFDB_masked" in file for file in probes.files)
        for faces in (learned, gallery, probes):  # a label still names the person whose folder the file lies in
            for label, file in zip(faces.labels, faces.files, strict=True):
                assert Path(file).parent.name == faces.people[label]
        tested += gallery.people
    assert sorted(tested) == [f"person{number:02d}" for number in range(11)]


def test_real_masks_reports_all_measures(lab, tmp_path, monkeypatch):
    report = run("real_masks", real_masks.Settings(1, 16, 1, 2, 2), lab, tmp_path, monkeypatch)
    assert set(report["rows"]) == {"pixels", "with drawn masks", "without"}
    for row in report["rows"].values():
        assert row["of"] == 22
        assert len(row["auc"]) == 2
        assert all(0 <= value <= 1 for measure in real_masks.MEASURES for value in row[measure])
    assert report["rows"]["pixels"]["auc"][0] > 0.95  # patterns of one person are alike, and not masked at all
    assert report["chance"] == pytest.approx((1 / 6 + 1 / 5) / 2)


def test_real_masks_counts_people_not_probes():
    """One person with nine probes found decides as little as a person with one; 5 people each better: p = 2/32."""
    whose = [0] * 9 + [1, 2, 3, 4]
    rest = dict.fromkeys(real_masks.MEASURES, 0.5) | {"people": 5, "probes": 13, "whose": whose}
    found = {"with drawn masks": [1] * 13, "without": [0] * 13, "pixels": [1] * 9 + [0] * 4}
    results = {f"{kind}/group 0": rest | {"found": flags} for kind, flags in found.items()}
    summary = real_masks.summarize(real_masks.Settings(1, 16, 1, 1, 1), results)
    assert summary["p"] == pytest.approx(2 / 2**5)
    assert not summary["holds"]
    assert summary["rows"]["pixels"]["found"] == 9
    low, high = summary["rows"]["pixels"]["rank1_a_person_interval"]  # of 1, 0, 0, 0, 0
    assert low == 0
    assert 0.4 <= high <= 0.8


def test_comparing_by_cosine_with_each_persons_mean():
    """Two people on the axes, one probe each beside its axis and one on the wrong side."""
    gallery = made_up(4, people=2)  # people 0, 1, 0, 1
    known = np.array([[2.0, 0], [0, 1], [1, 0], [0, 5]])
    probes = made_up(3, people=2)  # people 0, 1, 0
    asked = np.array([[3.0, 1], [0.1, 0.5], [1, 2]])
    found = real_masks.compare(known, gallery, asked, probes)
    assert found["found"] == [1, 1, 0]
    assert found["whose"] == [0, 1, 0]
    assert found["rank1"] == pytest.approx(2 / 3)
    # cosines: genuine 0.949, 0.981, 0.447; impostors 0.316, 0.196, 0.894: 8 of 9 pairs are in order
    assert found["auc"] == pytest.approx(8 / 9)
    assert found["true_accepts"] == pytest.approx(2 / 3)


def test_an_embedding_is_the_mean_of_a_face_and_its_mirror_image(lab):
    training = trainings.recognise(lab, "orl", size=16, seed=0, epochs=1).training
    training.model.eval()
    pictures = training.train_faces.pictures[:3]
    first = embed(training.model, pictures, training.mean, training.std, batch_size=2)
    assert first.shape == (3, 8)
    np.testing.assert_allclose(
        first, embed(training.model, pictures[:, :, ::-1], training.mean, training.std), rtol=1e-5, atol=1e-6
    )
    x = trainings_input(training, pictures)
    one_way = training.model.embed(x)
    other_way = training.model.embed(np.ascontiguousarray(x[:, :, ::-1]))
    np.testing.assert_allclose(first, (one_way + other_way) / 2, rtol=1e-4, atol=1e-5)
    assert isinstance(training.model.fc, Linear)


def trainings_input(training: Any, pictures: np.ndarray) -> np.ndarray:
    return ((pictures / 255 - training.mean) / training.std).astype(np.float32)


# mask detection


def test_folds_keep_people_apart_and_test_everybody_once(lab):
    tested = []
    for fold in range(mask_detection.FOLDS):
        learned, held_out = mask_detection.divided(lab, 16, fold)
        names = [{Path(file).parent.name for file in faces.files} for faces in (learned, held_out)]
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 12
        for faces in (learned, held_out):
            for label, file in zip(faces.labels, faces.files, strict=True):
                assert label == ("AFDB_masked" in file)
        tested += held_out.files
    assert len(tested) == len(set(tested)) == 46


def test_training_on_drawn_masks_never_sees_a_real_one(lab):
    training, _ = mask_detection.task(lab, size=16, epochs=1, fold=0, kind="drawn masks only")
    faces = training.train_faces
    assert not any("AFDB_masked" in file for file in faces.files)
    assert np.bincount(faces.labels).tolist() == [len(faces) // 2] * 2
    assert faces.pictures.shape[3] == 3


def test_recolouring_changes_the_order_of_colours_of_the_mask_and_nothing_else(rng):
    bare = replace(made_up(40), pictures=rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    masked = replace(bare, pictures=bare.pictures.copy())
    masked.pictures[:, 8:, 4:12] = (10, 20, 30)
    found = detection.recoloured(masked, bare, rng).pictures
    np.testing.assert_array_equal(found[:, :8], bare.pictures[:, :8])
    np.testing.assert_array_equal(found[:, 8:, :4], bare.pictures[:, 8:, :4])
    orders = {tuple(colour) for colour in found[:, 8, 4].tolist()}
    assert len(orders) == 6
    assert all(sorted(order) == [10, 20, 30] for order in orders)
    for picture in found:
        assert len(np.unique(picture[8:, 4:12].reshape(-1, 3), axis=0)) == 1  # one order a picture


def test_real_and_drawn_masks_come_equally_often_and_bare_faces_as_often_as_both(lab):
    training, _ = mask_detection.task(lab, size=16, epochs=1, fold=0, kind="real and drawn masks")
    faces = training.train_faces
    real = np.array(["AFDB_masked" in file for file in faces.files])
    bare, drawn = faces.labels == 0, (faces.labels == 1) & ~real
    assert bare.sum() == 2 * drawn.sum() == 2 * real.sum() > 0
    assert (faces.labels[real] == 1).all()
    assert {faces.files.count(file) for file in np.array(faces.files)[bare & ~real]} == {3}  # twice bare, once drawn


def test_pictures_are_repeated_in_turns():
    assert detection.repeated(made_up(3), 5).files == ("0.png", "1.png", "2.png", "0.png", "1.png")


def test_mask_detection_reports_folds_and_speed(lab, tmp_path, monkeypatch):
    report = run("mask_detection", mask_detection.Settings(1, 16, 1, 5, 12), lab, tmp_path, monkeypatch)
    for row in report["rows"].values():
        assert np.sum(row["confusion"]) == 46
        assert np.sum(row["confusion"], axis=1).tolist() == [24, 22]
        assert len(row["balanced_accuracy"]) == 5
    assert 0 < report["speed"]["p50_ms"] <= report["speed"]["p95_ms"]
    assert report["speed"]["faces"] == 12


def test_the_verdict_of_mask_detection_needs_accuracy_and_speed():
    settings = mask_detection.Settings(1, 16, 1, 2, 1)

    def results(wrong: int, milliseconds: float) -> dict[str, Any]:
        truth = [0] * 50 + [1] * 50
        margins = [1.0] * wrong + [-1.0] * (50 - wrong) + [1.0] * 50
        cells = {f"{k}/fold {f}": {"truth": truth, "margins": margins} for k in mask_detection.KINDS for f in range(2)}
        return cells | {"speed": {"p50_ms": 1.0, "p95_ms": milliseconds, "faces_per_second": 9.0, "faces": 1}}

    good = mask_detection.summarize(settings, results(2, 30.0))
    assert good["holds"] is True
    assert good["rows"]["real and drawn masks"]["confusion"] == [[96, 4], [0, 100]]
    assert good["rows"]["real and drawn masks"]["precision"] == [pytest.approx(50 / 52)] * 2
    assert good["rows"]["real and drawn masks"]["recall"] == [1.0, 1.0]
    assert mask_detection.summarize(settings, results(4, 30.0))["holds"] is False
    assert mask_detection.summarize(settings, results(2, 50.0))["holds"] is False
