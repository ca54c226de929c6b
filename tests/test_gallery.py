"""Templates and comparisons by hand and by plain loops; enrolment from folders; the threshold's file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained import torch_answers, write_gallery, write_network, write_noise

from resnet.gallery import (
    THRESHOLD,
    EmbeddedPeople,
    Gallery,
    all_pairs,
    embed_people,
    enrol,
    fingerprint,
    leave_one_out,
    read_threshold,
    templates,
)
from resnet.inference import load_network

ROOT_HALF = np.sqrt(0.5)
# Two people: directions east and north, and south-west; lengths differ.
EMBEDDINGS = np.array([[2.0, 0.0], [0.0, 5.0], [-3.0, -3.0]])
LABELS = np.array([0, 0, 1])


@pytest.fixture
def network(tmp_path):
    return load_network(write_network(tmp_path / "run" / "model.safetensors", ["x", "y"]), "numpy")


class TestMathematics:
    def test_templates_by_hand(self):
        """The mean of east and north is north-east, though the picture to the north has the longer embedding."""
        found = templates(EMBEDDINGS, LABELS)
        np.testing.assert_allclose(found, [[ROOT_HALF, ROOT_HALF], [-ROOT_HALF, -ROOT_HALF]], rtol=1e-15)

    def test_comparisons_by_hand(self):
        gallery = Gallery(("anna", "bert"), templates(EMBEDDINGS, LABELS))
        found = gallery.compare([[0.0, 0.1], [7.0, 7.0]])
        np.testing.assert_allclose(found, [[ROOT_HALF, -ROOT_HALF], [1.0, -1.0]], rtol=1e-15)

    def test_leaving_one_out_by_hand(self):
        """East is compared with north, not with north-east; the only picture of the second not with itself."""
        scores, genuine = leave_one_out(EMBEDDINGS, LABELS)
        np.testing.assert_allclose(scores, [0.0, -ROOT_HALF, 0.0, -ROOT_HALF, -1.0], atol=1e-15)
        assert genuine.tolist() == [True, False, True, False, False]

    @given(seed=st.integers(0, 2**32 - 1), K=st.integers(1, 5), D=st.integers(2, 8))
    def test_leaving_one_out_is_enrolling_without_that_picture(self, seed, K, D):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.repeat(np.arange(K), rng.integers(1, 5, K)))
        embeddings = rng.normal(size=(len(labels), D)) * rng.uniform(0.1, 9, (len(labels), 1))
        expected, same = [], []
        for i, own in enumerate(labels.tolist()):
            for person in range(K):
                others = [j for j, label in enumerate(labels) if label == person and j != i]
                if not others:
                    continue
                mean = sum(embeddings[j] / np.linalg.norm(embeddings[j]) for j in others)
                lengths = np.linalg.norm(mean) * np.linalg.norm(embeddings[i])
                expected.append(sum(a * b for a, b in zip(mean, embeddings[i], strict=True)) / lengths)
                same.append(person == own)
        scores, genuine = leave_one_out(embeddings, labels)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
        assert genuine.tolist() == same

    def test_all_pairs_go_by_name(self):
        gallery = Gallery(("bert", "anna"), templates(EMBEDDINGS, LABELS))
        asked = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], np.float32)
        probes = EmbeddedPeople(("anna", "carl"), np.array([0, 1, 0]), asked, ())
        scores, genuine = all_pairs(gallery, probes)
        np.testing.assert_allclose(scores, np.array([1, -1, -1, 1, 1, -1]) * ROOT_HALF, rtol=1e-7)
        assert genuine.tolist() == [False, True, False, False, False, True]

    @pytest.mark.parametrize(("people", "shape"), [((), (0, 2)), (("anna",), (2, 2)), (("anna",), (2,))])
    def test_not_one_template_a_person(self, people, shape):
        with pytest.raises(ValueError, match=r"one for each of \d people"):
            Gallery(people, np.ones(shape))

    def test_a_vector_without_direction(self):
        with pytest.raises(ValueError, match="direction"):
            templates(np.zeros((1, 3)), np.array([0]))


class TestEnrol:
    def test_equal_to_pytorch(self, network, tmp_path):
        pytest.importorskip("torch")
        folder = write_gallery(tmp_path / "people", {"anna": 3, "bert": 1, "zoë": 2})
        files = [folder / name for name in ("anna/0.png", "anna/1.png", "anna/2.png", "bert/0.png")]
        _, embeddings = torch_answers(network.path, files)
        unit = [row / np.sqrt((row.astype(float) ** 2).sum()) for row in embeddings]
        gallery = enrol(network, folder, batch_size=4)
        assert gallery.people == ("anna", "bert", "zoë")
        assert gallery.notes == ()
        mean = (unit[0] + unit[1] + unit[2]) / 3
        np.testing.assert_allclose(gallery.templates[0], mean / np.sqrt((mean**2).sum()), rtol=0, atol=1e-4)
        np.testing.assert_allclose(gallery.templates[1], unit[3], rtol=0, atol=1e-4)
        similar = gallery.compare(embeddings)
        assert similar.shape == (4, 3)
        assert similar[3, 1] == pytest.approx(1, abs=1e-6)

    def test_one_person_with_one_picture(self, network, tmp_path):
        gallery = enrol(network, write_gallery(tmp_path / "people", {"anna": 1}))
        assert gallery.people == ("anna",)
        np.testing.assert_allclose((gallery.templates**2).sum(axis=1), 1, rtol=1e-12)

    def test_pictures_stay_with_their_people_whatever_the_batches(self, network, tmp_path):
        folder = write_gallery(tmp_path / "people", {"10": 2, "9": 5, "a": 1})  # in natural order 9 comes first
        known = embed_people(network, folder, batch_size=3)
        assert known.people == ("9", "10", "a")
        assert known.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
        alone = embed_people(network, write_gallery(tmp_path / "others", {"10": 2}))
        np.testing.assert_allclose(known.embeddings[5:7], alone.embeddings, rtol=1e-4, atol=1e-5)

    def test_bad_pictures(self, network, tmp_path):
        folder = write_gallery(tmp_path / "people", {"anna": 2, "bert": 1, "carl": 0})
        (folder / "anna" / "0.png").write_bytes(b"no picture")
        (folder / "bert" / "0.png").write_bytes(b"nor this")
        (folder / "readme.txt").write_text("not a person")
        with pytest.raises(ValueError, match=r"2 of 3 pictures cannot be read.*--bad-pictures skip") as caught:
            enrol(network, folder)
        assert all(str(Path(name) / "0.png") in str(caught.value) for name in ("anna", "bert"))
        gallery = enrol(network, folder, bad_pictures="skip")
        assert gallery.people == ("anna",)
        notes = "\n".join(gallery.notes)
        assert "readme.txt" in notes
        assert notes.count("skipped: cannot read picture") == 2
        assert "2 people left out, without a usable picture: bert, carl" in notes

    def test_nothing_usable(self, network, tmp_path):
        folder = write_gallery(tmp_path / "people", {"anna": 1})
        (folder / "anna" / "0.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="1 of 1 pictures cannot be read; repair or delete them:"):
            enrol(network, folder, bad_pictures="skip")
        (folder / "anna" / "0.png").rename(folder / "anna" / "0.txt")
        with pytest.raises(ValueError, match="found 1 folders without a picture"):
            enrol(network, folder)
        with pytest.raises(ValueError, match="found nothing there"):
            enrol(network, tmp_path / "nowhere")
        with pytest.raises(ValueError, match="found a file there"):
            enrol(network, write_noise(tmp_path / "file.png", 0))
        with pytest.raises(ValueError, match='"stop" or "skip", got \'mend\''):
            enrol(network, folder, bad_pictures="mend")

    def test_names_of_bad_pictures_cannot_move_the_cursor(self, network, tmp_path):
        folder = write_gallery(tmp_path / "people", {"an\x1b[2Jna": 1})
        (folder / "an\x1b[2Jna" / "0.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"an\\x1b\[2Jna") as caught:
            enrol(network, folder)
        assert "\x1b" not in str(caught.value)


class TestThreshold:
    def write(self, network, **changes):
        digest = hashlib.sha256(network.path.read_bytes()).hexdigest()
        facts = {"threshold": 0.5, "sha256": digest} | changes
        network.path.with_name(THRESHOLD).write_text(json.dumps(facts))

    def test_fingerprint(self, tmp_path):
        (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert fingerprint(tmp_path / "file") == expected

    def test_none(self, network):
        assert read_threshold(network) is None

    @pytest.mark.parametrize("value", [0.5, -1, 1, 0])
    def test_one_that_fits(self, network, value):
        self.write(network, threshold=value)
        assert read_threshold(network) == value

    def test_it_lies_beside_a_file(self, network):
        best = write_network(network.path.with_name("best.safetensors"), ["x", "y"], seed=1)
        self.write(load_network(best, "numpy"), threshold=0.25)
        assert read_threshold(load_network(best, "numpy")) == 0.25
        with pytest.raises(ValueError, match=r"belongs to other weights than .*model.safetensors.*resnet.evaluation"):
            read_threshold(network)

    def test_weights_that_have_changed_since(self, network):
        self.write(network)
        write_network(network.path, ["x", "y"], seed=1)
        with pytest.raises(ValueError, match=r"other weights .*--pairs FOLDER again, or give a --threshold"):
            read_threshold(network)

    @pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), 1.5, [0.5]])
    def test_no_number(self, network, value):
        self.write(network, threshold=value)
        with pytest.raises(ValueError, match="holds no threshold"):
            read_threshold(network)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"threshold": 0.5}', b"\xff", b"[" * 10**5])
    def test_damaged(self, network, content):
        network.path.with_name(THRESHOLD).write_bytes(content)
        with pytest.raises(ValueError, match="holds no threshold"):
            read_threshold(network)

    def test_too_large(self, network):
        network.path.with_name(THRESHOLD).write_bytes(b" " * (2**20 + 1))
        with pytest.raises(ValueError, match="at most 1,048,576 bytes"):
            read_threshold(network)
