"""A trained network in use: its file, its numbers beside PyTorch's, files read ahead, and all that may be wrong."""

from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path

import devices
import numpy as np
import pytest
from PIL import Image
from tiny import quick, write_people
from trained import torch_answers, write_network, write_noise

import resnet.inference
import train
from nn.checkpoint import load_weights, save_weights
from resnet.data.faces import read_picture, resize
from resnet.inference import add_network_options, embed, load_network, predict, read_ahead, softmax

PEOPLE = ["anna", "bert", "carl"]


@pytest.fixture
def file(tmp_path) -> Path:
    return write_network(tmp_path / "run" / "model.safetensors", PEOPLE)


def noise(rng, n=5, size=16, channels=1):
    return rng.integers(0, 256, (n, size, size, channels), np.uint8)


class TestLoad:
    def test_what_a_training_left(self, tmp_path, no_pictures):
        people = write_people(tmp_path / "people")
        assert train.main(quick(people, tmp_path / "run")) == 0
        network = load_network(tmp_path / "run", "numpy")
        assert network.people == tuple(f"person{n}" for n in range(4))
        assert (network.image_size, network.colour, network.arch) == (16, False, "resnet20")
        assert network.path == tmp_path / "run" / "model.safetensors"
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        learned = np.stack([np.asarray(Image.open(f).resize((16, 16), 2)) for f in config["train_files"]]) / 255
        assert network.mean == pytest.approx((learned.mean(),), rel=1e-6)
        assert network.std == pytest.approx((learned.std(),), rel=1e-6)

    def test_a_file_of_a_run(self, file, rng):
        best = write_network(file.with_name("best.safetensors"), PEOPLE, seed=1)
        pictures = noise(rng)
        assert load_network(best, "numpy").path == best
        assert not np.allclose(load_network(best, "numpy").logits(pictures), load_network(file).logits(pictures))
        np.testing.assert_array_equal(
            load_network(file.parent, "numpy").logits(pictures), load_network(str(file), "numpy").logits(pictures)
        )

    @pytest.mark.parametrize("make", [False, True])
    def test_no_run(self, tmp_path, make):
        if make:
            (tmp_path / "run").mkdir()
        with pytest.raises(FileNotFoundError, match=r"model.safetensors.*run.*found none.*train.py"):
            load_network(tmp_path / "run")

    def test_weights_from_elsewhere(self, file, tmp_path):
        state, _ = load_weights(file)
        save_weights(tmp_path / "resnet.safetensors", state)
        with pytest.raises(ValueError, match=r"whose metadata tell arch.*found no arch.*train.py --weights"):
            load_network(tmp_path / "resnet.safetensors")

    @pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100])
    def test_no_safetensors_file(self, file, content):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="safetensors"):
            load_network(file)

    @pytest.mark.parametrize(
        ("fact", "value", "words"),
        [
            ("arch", "resnet19", "resnet19"),
            ("arch", ["resnet20"], "arch as str"),
            ("arch", "resnet32", "layer1.3"),  # the weights are another network's
            ("stem", "large", "large"),
            ("activation", "tanh", "tanh"),
            ("negative_slope", "0.1", "negative_slope as float"),
            ("negative_slope", 7.5, "7.5"),
            ("image_size", 16.0, "image_size as int"),
            ("image_size", True, "image_size as int"),
            ("image_size", 10**9, "image-size"),
            ("channels", 2, "1 .grey. or 3"),
            ("channels", 3, "mean as 3 numbers"),
            ("mean", [0.4, 0.4], "mean as 1 numbers"),
            ("mean", [float("nan")], "mean as 1 numbers"),
            ("std", [0], "std as 1 numbers"),
            ("std", [True], "std as 1 numbers"),
            ("people", [], "1 to 1,000,000 people"),
            ("people", ["anna", 2, "carl"], "names"),
            ("people", "anna", "people as list"),
            ("people", ["anna", "bert"], r"fc\.weight"),  # one name too few
        ],
    )
    def test_metadata_that_cannot_be(self, tmp_path, fact, value, words):
        path = write_network(tmp_path / "model.safetensors", PEOPLE, changes={fact: value})
        with pytest.raises(ValueError, match=words) as caught:
            load_network(path, "numpy")
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("fact", ["arch", "image_size", "mean", "people"])
    def test_a_fact_is_missing(self, tmp_path, fact):
        with pytest.raises(ValueError, match=f"found no {fact}"):
            load_network(write_network(tmp_path / "model.safetensors", PEOPLE, changes={fact: None}))

    def test_metadata_are_no_json(self, file):
        state, metadata = load_weights(file)
        for words in ("{", "[" * 100_000):
            save_weights(file, state, metadata | {"people": words})
            with pytest.raises(ValueError, match="no network that can be used"):
                load_network(file, "numpy")


class TestNumbers:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_equal_to_pytorch(self, channels, tmp_path):
        pytest.importorskip("torch")
        file = write_network(tmp_path / "model.safetensors", PEOPLE, channels=channels)
        network = load_network(file, "numpy")
        files = [write_noise(tmp_path / f"{n}.png", n, mode="RGB") for n in range(3)]
        expected = torch_answers(file, files)
        pictures = np.stack([resize(read_picture(path, network.colour), 16) for path in files])
        logits, embeddings = network.logits(pictures), network.embeddings(pictures)
        assert logits.dtype == embeddings.dtype == np.float32
        for answers, truth in zip((logits, embeddings), expected, strict=True):
            np.testing.assert_allclose(answers, truth, rtol=0, atol=1e-4 * np.abs(truth).max())

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
    def test_batches_change_nothing(self, batch_size, file, rng):
        network, pictures = load_network(file, "numpy"), noise(rng)
        for answers in (network.logits, network.embeddings):
            at_once = answers(pictures)
            near = 1e-4 * np.abs(at_once).max()  # BLAS rounds each size of a product in its own way
            np.testing.assert_allclose(answers(pictures, batch_size), at_once, rtol=0, atol=near)

    def test_as_the_functions_that_training_uses(self, file, rng):
        network, pictures = load_network(file, "numpy"), noise(rng)
        arguments = (network.model, pictures, network.mean, network.std)
        np.testing.assert_array_equal(network.logits(pictures), predict(*arguments))
        np.testing.assert_array_equal(network.embeddings(pictures), embed(*arguments))

    def test_mirror_images_have_the_same_embedding(self, file, rng):
        network, pictures = load_network(file, "numpy"), noise(rng)
        found, mirrored = network.embeddings(pictures), network.embeddings(pictures[:, :, ::-1])
        np.testing.assert_allclose(found, mirrored, rtol=1e-5)
        assert not np.allclose(found, network.embeddings(pictures[:, ::-1]), rtol=1e-2)  # upside down

    @pytest.mark.parametrize("name", devices.STAND_INS)
    def test_on_a_device(self, name, file, rng):
        pictures = noise(rng)
        on_cpu = load_network(file, "numpy")
        with devices.on(name):
            network = load_network(file, "cupy")
            for there, here in ((network.logits, on_cpu.logits), (network.embeddings, on_cpu.embeddings)):
                answers = there(pictures, 2)
                assert type(answers) is np.ndarray
                np.testing.assert_allclose(answers, here(pictures), rtol=1e-4, atol=1e-4)

    def test_batch_norm_is_folded_once(self, file, rng, monkeypatch):
        network, folded = load_network(file, "numpy"), []
        fuse = type(network.model).fuse
        monkeypatch.setattr(type(network.model), "fuse", lambda self: folded.append(1) or fuse(self))
        for _ in range(3):
            network.logits(noise(rng))
            network.embeddings(noise(rng))
        assert len(folded) == 1

    @pytest.mark.parametrize("shape", [(0, 16, 16, 1), (16, 16, 1), (2, 16, 15, 1), (2, 15, 15, 1), (2, 16, 16, 3)])
    def test_pictures_of_another_shape(self, shape, file):
        network = load_network(file, "numpy")
        for answers in (network.logits, network.embeddings):
            with pytest.raises(ValueError, match=r"expected pictures \(N, 16, 16, 1\), at least one, got \("):
                answers(np.zeros(shape, np.uint8))

    def test_a_training_that_went_astray(self, file, rng, recwarn):
        state, metadata = load_weights(file)
        state["layer1.0.conv1.weight"][:] = 3e38
        save_weights(file, state, metadata)
        with pytest.raises(ValueError, match=r"model.safetensors are no finite numbers.*best.safetensors"):
            load_network(file, "numpy").embeddings(noise(rng))
        assert not recwarn.list


class TestSoftmax:
    def test_by_hand(self):
        logits = np.log(np.array([[1, 3, 4], [5, 5, 10]], np.float32))
        np.testing.assert_allclose(softmax(logits), [[1 / 8, 3 / 8, 1 / 2], [1 / 4, 1 / 4, 1 / 2]], rtol=1e-6)

    def test_large_logits(self):
        with np.errstate(all="raise", under="ignore"):
            found = softmax(np.array([[3e38, -3e38], [-3e38, -3e38], [1000, 1001]], np.float32))
        np.testing.assert_allclose(found, [[1, 0], [0.5, 0.5], [1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-12)
        assert found.dtype == np.float64


class TestReadAhead:
    def networks(self, folder: Path):
        grey = write_network(folder / "grey.safetensors", PEOPLE)
        colour = write_network(folder / "colour.safetensors", PEOPLE, channels=3, size=12)
        return [load_network(path, "numpy") for path in (grey, colour)]

    def test_each_network_gets_its_size_and_colours(self, tmp_path):
        files = [write_noise(tmp_path / f"{n}.png", n, mode="RGB") for n in range(7)]
        batches = list(read_ahead(files, self.networks(tmp_path), 3))
        assert [batch.files for batch in batches] == [files[:3], files[3:6], files[6:]]
        assert [[p.shape for p in b.pictures] for b in batches][-1] == [(1, 16, 16, 1), (1, 12, 12, 3)]
        for place, (mode, size) in enumerate((("L", 16), ("RGB", 12))):
            found = np.concatenate([batch.pictures[place] for batch in batches])
            expected = [np.asarray(Image.open(f).convert(mode).resize((size, size), 2)) for f in files]
            np.testing.assert_array_equal(found, np.stack(expected).reshape(found.shape))

    def test_what_cannot_be_read_is_named_where_it_stands(self, tmp_path):
        files = [write_noise(tmp_path / f"{n}.png", n) for n in range(5)]
        files[0].write_bytes(b"no picture")
        files[1].unlink()
        files[3].write_bytes(files[3].read_bytes()[:60])
        batches = list(read_ahead(files, self.networks(tmp_path), 2))
        assert [batch.files for batch in batches] == [[], [files[2]], [files[4]]]
        assert [[path for path, _ in batch.bad] for batch in batches] == [files[:2], [files[3]], []]
        assert batches[0].pictures == []
        assert all(str(path) in reason for batch in batches for path, reason in batch.bad)
        assert "No such file" in batches[0].bad[1][1]

    def test_large_pictures_never_lie_in_memory_together(self, tmp_path, monkeypatch):
        files = [write_noise(tmp_path / f"{n}.png", n) for n in range(40)]
        alive, most = [], []

        class Watched(np.ndarray):
            pass

        def watched(path, colour):
            picture = read_picture(path, colour).view(Watched)
            alive.append(weakref.ref(picture))
            most.append(sum(reference() is not None for reference in alive))
            return picture

        monkeypatch.setattr(resnet.inference, "read_picture", watched)
        read = sum(len(batch.files) for batch in read_ahead(files, self.networks(tmp_path)[:1], 10))
        assert read == len(most) == 40
        assert max(most) <= 2  # the one at hand, and the one before it

    def test_nothing_to_read(self, tmp_path):
        assert list(read_ahead([], self.networks(tmp_path))) == []


class TestOptions:
    def parse(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_network_options(parser, bad_pictures="skip")
        return parser.parse_args(words)

    def test_defaults(self):
        expected = {"model": "run", "bad_pictures": "skip", "batch_size": 32, "threads": 0, "backend": "auto"}
        assert vars(self.parse("--model", "run")) == expected

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "--model"),
            (["--model", ""], "empty"),
            (["--model", "run", "--batch-size", "0"], "from 1 on, got '0'"),
            (["--model", "run", "--batch-size", "many"], "from 1 on, got 'many'"),
            (["--model", "run", "--threads", "-1"], "from 0 on, got '-1'"),
            (["--model", "run", "--threads", "1.5"], "from 0 on"),
            (["--model", "run", "--backend", "tpu"], "tpu"),
            (["--model", "run", "--bad-pictures", "mend"], "mend"),
        ],
    )
    def test_wrong_use(self, words, message, capsys):
        with pytest.raises(SystemExit) as exit_:
            self.parse(*words)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
