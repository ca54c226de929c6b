"""python -m resnet.predict as people use it: answers beside PyTorch's, tables, JSON, pictures, and every odd input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import quick, write_people
from trained import torch_answers, write_gallery, write_network, write_noise

import train
from resnet import predict
from resnet.annotate import LARGEST, SMALLEST, annotate, png_names
from resnet.inference import TrainedNetwork
from resnet.predict import best_people, find_pictures
from resnet.text import columns, fit, printable

ROOT = Path(__file__).parent.parent
PEOPLE = ["anna", "bert", "carl", "dora", "emil", "fritz", "gerda"]
DETECTOR = ["no mask", "mask"]


@pytest.fixture
def run(tmp_path):
    return write_network(tmp_path / "run" / "model.safetensors", PEOPLE).parent


@pytest.fixture
def detector(tmp_path):
    return write_network(tmp_path / "detector" / "model.safetensors", DETECTOR, channels=3, size=12, seed=1).parent


@pytest.fixture
def party(tmp_path):
    for n in range(4):
        write_noise(tmp_path / "party" / f"{n}.png", n, mode="RGB")
    return tmp_path / "party"


def call(*words: object) -> int:
    return predict.main(["--backend", "numpy", *map(str, words)])


def told(capsys, *words: object) -> dict:
    """What ``--json`` prints, read as strictly as the standard wants it."""
    assert call("--json", *words) == 0

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def fails(capsys, *words: object) -> str:
    assert call(*words) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


class TestAnswers:
    def test_equal_to_pytorch(self, run, detector, party, capsys):
        torch = pytest.importorskip("torch")
        files = sorted(party.iterdir())
        logits = torch.from_numpy(torch_answers(run / "model.safetensors", files)[0])
        masks = torch.from_numpy(torch_answers(detector / "model.safetensors", files)[0])
        best, places = torch.softmax(logits, dim=1).topk(5)
        sure, worn = torch.softmax(masks, dim=1).max(dim=1)
        document = told(capsys, "--model", run, "--mask-model", detector, party)
        rows = document["pictures"]
        assert [row["file"] for row in rows] == [str(file) for file in files]
        assert [row["person"] for row in rows] == [PEOPLE[k] for k in places[:, 0]]
        assert [[one["name"] for one in row["best"]] for row in rows] == [[PEOPLE[k] for k in row] for row in places]
        found = [[one["confidence"] for one in row["best"]] for row in rows]
        np.testing.assert_allclose(found, best.numpy(), rtol=1e-3)
        assert [row["confidence"] for row in rows] == [row[0] for row in found]
        assert [row["mask"] for row in rows] == [DETECTOR[k] == "mask" for k in worn]
        np.testing.assert_allclose([row["mask_confidence"] for row in rows], sure.numpy(), rtol=1e-3)
        assert {row["mask"] for row in rows} == {True, False}  # else this would say little
        assert {row["known"] for row in rows} == {None}
        assert document["model"] == str(run / "model.safetensors")
        assert document["mask_model"] == str(detector / "model.safetensors")
        assert (document["gallery"], document["threshold"], document["unreadable"]) == (None, None, [])

    def test_a_trained_network_knows_its_people(self, tmp_path, no_pictures, capsys):
        people = write_people(tmp_path / "people")
        assert train.main(quick(people, tmp_path / "run", epochs=8, repeats=4, learning_rate=0.03)) == 0
        capsys.readouterr()
        rows = told(capsys, "--model", tmp_path / "run", people)["pictures"]
        assert len(rows) == 24
        assert all(row["person"] == Path(row["file"]).parent.name for row in rows)
        assert call("--model", tmp_path / "run", people / "person2") == 0
        table = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in table[:-1]] == ["person"] + ["person2"] * 6
        strangers = write_people(tmp_path / "strangers", people=3, seed=9)
        gallery = told(capsys, "--model", tmp_path / "run", "--gallery", strangers, strangers)["pictures"]
        assert all(row["person"] == Path(row["file"]).parent.name for row in gallery)

    def test_batches_change_nothing(self, run, detector, tmp_path, capsys, monkeypatch):
        sizes, real = [], TrainedNetwork.logits

        def counted(self, pictures, *more):
            sizes.append(len(pictures))
            return real(self, pictures, *more)

        monkeypatch.setattr(TrainedNetwork, "logits", counted)
        for n in range(11):
            write_noise(tmp_path / "many" / f"{n}.png", n)
        (tmp_path / "many" / "3.png").write_bytes(b"no picture")
        first, second = (
            told(capsys, "--model", run, "--batch-size", size, tmp_path / "many")["pictures"] for size in (4, 100)
        )
        assert sizes == [3, 4, 3, 10]
        assert [row["file"] for row in first] == [str(tmp_path / "many" / f"{n}.png") for n in range(11) if n != 3]
        for one, other in zip(first, second, strict=True):
            assert one["person"] == other["person"]
            assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-3)

    def test_best_people_by_hand(self):
        scores = np.array([[0.1, 0.5, 0.2, 0.2, 0.0, -1.0], [9, 8, 7, 6, 5, 4]])
        first, second = best_people(scores, "abcdef")
        assert first == (("b", 0.5), ("c", 0.2), ("d", 0.2), ("a", 0.1), ("e", 0.0))
        assert [name for name, _ in second] == list("abcde")
        assert best_people(np.array([[0.25, 0.75]]), "ab") == [(("b", 0.75), ("a", 0.25))]

    def test_one_person_only(self, party, tmp_path, capsys):
        alone = write_network(tmp_path / "alone.safetensors", ["anna"])
        rows = told(capsys, "--model", alone, party)["pictures"]
        assert [row["best"] for row in rows] == [[{"name": "anna", "confidence": 1.0}]] * 4

    def test_a_picture_turned_deep_or_see_through_is_the_same(self, tmp_path, capsys):
        colour = write_network(tmp_path / "colour.safetensors", PEOPLE, channels=3)
        upright = Image.open(write_noise(tmp_path / "odd" / "1 upright.png", 0, mode="RGB"))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90° clockwise
        turned = upright.transpose(Image.Transpose.ROTATE_90)
        turned.save(tmp_path / "odd" / "2 turned.png", exif=exif)
        upright.convert("RGBA").save(tmp_path / "odd" / "3 opaque.png")
        turned.save(tmp_path / "odd" / "4 really turned.png")
        rows = told(capsys, "--model", colour, tmp_path / "odd")["pictures"]
        same = [row["confidence"] == pytest.approx(rows[0]["confidence"], rel=1e-4) for row in rows]
        assert same == [True, True, True, False]

    def test_grey_and_colour_networks_take_either(self, run, tmp_path, capsys):
        colour = write_network(tmp_path / "colour.safetensors", PEOPLE, channels=3)
        grey = Image.open(write_noise(tmp_path / "odd" / "grey.png", 0))
        grey.convert("RGB").save(tmp_path / "odd" / "coloured.png")
        Image.fromarray(np.asarray(grey).astype(np.uint16) << 8).save(tmp_path / "odd" / "deep.png")
        for model in (run, colour):
            first, *others = (row["best"] for row in told(capsys, "--model", model, tmp_path / "odd")["pictures"])
            assert len(others) == 2
            for best in others:
                assert [one["name"] for one in best] == [one["name"] for one in first]
                confidences = [[one["confidence"] for one in row] for row in (best, first)]
                np.testing.assert_allclose(*confidences, rtol=1e-4)  # BLAS may round each row of a product differently


class TestGallery:
    @pytest.fixture
    def gallery(self, tmp_path):
        return write_gallery(tmp_path / "gallery", {"anna": 2, "bert": 3, "zoe": 1})

    def asked(self, capsys, run, gallery, *words):
        return told(capsys, "--model", run, "--gallery", gallery, gallery / "zoe", gallery / "bert", *words)

    def test_similarities_by_hand(self, run, gallery, capsys):
        pytest.importorskip("torch")
        files = [gallery / "zoe" / "0.png", *sorted((gallery / "bert").iterdir())]
        _, embeddings = torch_answers(run / "model.safetensors", files)
        zoe, *bert = [row.astype(float) / np.sqrt((row.astype(float) ** 2).sum()) for row in embeddings]
        mean = sum(bert)
        rows = self.asked(capsys, run, gallery)["pictures"]
        assert rows[0]["person"] == "zoe"
        assert rows[0]["similarity"] == pytest.approx(1, abs=1e-6)
        similar = {one["name"]: one["similarity"] for one in rows[0]["best"]}
        assert similar["bert"] == pytest.approx(zoe @ mean / np.sqrt(mean @ mean), abs=1e-4)
        assert list(similar) == sorted(similar, key=similar.get, reverse=True)
        assert "confidence" not in rows[0]

    def test_from_the_threshold_on_a_person_is_known(self, run, gallery, capsys):
        rows = self.asked(capsys, run, gallery, "--threshold", -1)["pictures"]
        assert {row["known"] for row in rows} == {True}
        least = min(row["similarity"] for row in rows)
        document = self.asked(capsys, run, gallery, "--threshold", repr(least))
        assert {row["known"] for row in document["pictures"]} == {True}
        assert document["threshold"] == least
        above = self.asked(capsys, run, gallery, "--threshold", repr(float(np.nextafter(least, 2))))["pictures"]
        assert [row["known"] for row in above] == [row["similarity"] > least for row in rows]
        for row in above:
            assert row["person"] == ("unknown" if not row["known"] else row["best"][0]["name"])

    def test_unknown_in_the_table(self, run, gallery, capsys):
        probe = write_noise(gallery.parent / "probe.png", 77)
        assert call("--model", run, "--gallery", gallery, "--threshold", 0.999999, probe) == 0
        heading, line, *_ = capsys.readouterr().out.splitlines()
        assert heading.split() == ["file", "person", "similarity", "next"]
        words = line.split()
        assert words[1] == "unknown"
        assert sorted(words[3::2]) == ["anna", "bert", "zoe"]  # all are named, as none is the answer

    def test_the_threshold_of_the_run(self, run, gallery, capsys):
        rows = self.asked(capsys, run, gallery)
        assert rows["threshold"] is None
        assert {row["known"] for row in rows["pictures"]} == {None}
        assert call("--model", run, "--gallery", gallery, gallery / "zoe") == 0
        assert "note: nobody is unknown, as there is no threshold" in capsys.readouterr().err
        from resnet import evaluation

        assert evaluation.main(["--model", str(run), "--pairs", str(gallery), "--false-accepts", "0.2"]) == 0
        threshold = json.loads((run / "threshold.json").read_text())["threshold"]
        capsys.readouterr()
        document = self.asked(capsys, run, gallery)
        assert document["threshold"] == threshold
        assert all(row["known"] == (row["similarity"] >= threshold) for row in document["pictures"])
        assert self.asked(capsys, run, gallery, "--threshold", 0.5)["threshold"] == 0.5
        write_network(run / "model.safetensors", PEOPLE, seed=5)
        error = fails(capsys, "--model", run, "--gallery", gallery, gallery / "zoe")
        assert "belongs to other weights" in error
        assert "python -m resnet.evaluation --model" in error

    def test_a_gallery_of_one(self, run, tmp_path, capsys):
        gallery = write_gallery(tmp_path / "one", {"anna": 1})
        rows = told(capsys, "--model", run, "--gallery", gallery, gallery)["pictures"]
        assert [[one["name"] for one in row["best"]] for row in rows] == [["anna"]]

    def test_folders_named_like_answers_of_a_detector_are_people_here(self, run, tmp_path, capsys):
        gallery = write_gallery(tmp_path / "gallery", {"mask": 1, "no mask": 1})
        rows = told(capsys, "--model", run, "--gallery", gallery, gallery)["pictures"]
        assert [(row["person"], row["mask"]) for row in rows] == [("mask", None), ("no mask", None)]

    def test_bad_pictures_in_it(self, run, gallery, party, capsys):
        (gallery / "bert" / "1.png").write_bytes(b"no picture")
        assert call("--model", run, "--gallery", gallery, party) == 0
        assert "skipped: cannot read picture" in capsys.readouterr().err
        words = ("--model", run, "--gallery", gallery, party, "--bad-pictures", "stop")
        assert str(gallery / "bert" / "1.png") in fails(capsys, *words)


class TestMasks:
    def test_a_detector_as_the_model(self, detector, party, capsys):
        rows = told(capsys, "--model", detector, party)["pictures"]
        assert {row["person"] for row in rows} == {None}
        for row in rows:
            assert row["best"][0]["name"] == ("mask" if row["mask"] else "no mask")
            assert row["mask_confidence"] == row["confidence"] == row["best"][0]["confidence"] > 0.5
        assert call("--model", detector, party) == 0
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.split() == ["file", "mask", "confidence", "next"]
        assert ["no mask" in line.split("%")[0] for line in lines[:4]] == [not row["mask"] for row in rows]

    def test_the_column_beside_people(self, run, detector, party, capsys):
        rows = told(capsys, "--model", run, "--mask-model", detector, party)["pictures"]
        assert call("--model", run, "--mask-model", detector, party) == 0
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.split() == ["file", "person", "confidence", "mask", "next"]
        place = heading.index("mask")
        for line, row in zip(lines[:4], rows, strict=True):
            percent = f"{100 * row['mask_confidence']:.1f} %"
            assert line[place:].startswith(f"mask {percent}" if row["mask"] else f"no mask {percent}")

    def test_with_a_gallery(self, run, detector, tmp_path, capsys):
        gallery = write_gallery(tmp_path / "gallery", {"anna": 2})
        words = ("--gallery", gallery, gallery)
        alone = told(capsys, "--model", detector, gallery)["pictures"]
        both = told(capsys, "--model", run, "--mask-model", detector, *words)["pictures"]
        assert [row["mask"] for row in both] == [row["mask"] for row in alone]
        assert [row["person"] for row in both] == ["anna", "anna"]

    def test_networks_that_do_something_else(self, run, detector, party, tmp_path, capsys):
        error = fails(capsys, "--model", run, "--mask-model", run, party)
        assert "expected a network with the classes 'mask' and 'no mask' as --mask-model" in error
        assert "7 others" in error
        gallery = write_gallery(tmp_path / "gallery", {"anna": 1})
        for words in (("--mask-model", detector), ("--gallery", gallery)):
            assert "tells masks, not people" in fails(capsys, "--model", detector, *words, party)


class TestWhatIsAsked:
    def test_folders_in_natural_order_with_subfolders(self, tmp_path):
        for name in ("b/2.png", "b/10.PNG", "a.jpg", "b/c/1.png", ".hidden/1.png", "b/.hidden.png", "d/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "b" / "again").symlink_to(tmp_path)
        found = find_pictures([str(tmp_path), str(tmp_path / "d" / "notes.txt"), str(tmp_path / "a.jpg")])
        assert list(found.values()) == [PurePath(n) for n in ("a.jpg", "b/2.png", "b/10.PNG", "b/c/1.png", "notes.txt")]
        assert list(found) == [tmp_path / n for n in ("a.jpg", "b/2.png", "b/10.PNG", "b/c/1.png", "d/notes.txt")]

    def test_a_file_of_any_name_is_tried(self, run, tmp_path, capsys):
        write_noise(tmp_path / "a.png", 0).rename(tmp_path / "a.dat")
        assert len(told(capsys, "--model", run, tmp_path / "a.dat")["pictures"]) == 1

    def test_a_folder_without_pictures(self, run, party, tmp_path, capsys):
        (tmp_path / "empty" / "deep").mkdir(parents=True)
        (tmp_path / "empty" / "notes.txt").touch()
        error = fails(capsys, "--model", run, party, tmp_path / "empty")
        assert f"expected pictures in {tmp_path / 'empty'}" in error
        assert ".jpg" in error

    def test_a_picture_that_cannot_be_read_is_named_and_the_others_answered(self, run, party, capsys):
        (party / "1.png").write_bytes(b"no picture")
        assert call("--model", run, party, party / "nowhere.png") == 0
        printed, notes = capsys.readouterr()
        assert [line.split()[0][-5:] for line in printed.splitlines()[1:-1]] == ["0.png", "2.png", "3.png"]
        assert printed.splitlines()[-1] == "3 pictures answered, 2 could not be read"
        assert notes.count("note: skipped: cannot read picture") == 2
        document = told(capsys, "--model", run, party)
        assert [row["file"] for row in document["unreadable"]] == [str(party / "1.png")]
        assert str(party / "1.png") in document["unreadable"][0]["reason"]

    def test_stop_says_so_before_anything_is_written(self, run, party, tmp_path, capsys):
        (party / "1.png").write_bytes(b"no picture")
        words = ("--model", run, party, "--bad-pictures", "stop", "--save", tmp_path / "out")
        for more in ((), ("--json",)):
            error = fails(capsys, *words, *more)
            assert "1 of 4 pictures cannot be read" in error
            assert str(party / "1.png") in error
        assert not (tmp_path / "out").exists()

    def test_nothing_can_be_read(self, run, tmp_path, capsys):
        error = fails(capsys, "--model", run, tmp_path / "nowhere.png")
        assert "1 of 1 pictures cannot be read" in error
        assert "nowhere.png: No such file" in error

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model", "run"], "PICTURE|FOLDER"),
            (["x.png"], "--model"),
            (["--model", "run", ""], "empty text"),
            (["--model", "run", "x.png", "--gallery", ""], "empty text"),
            (["--model", "run", "x.png", "--save", ""], "empty text"),
            (["--model", "run", "x.png", "--threshold", "0.5"], "--threshold is for --gallery"),
            (["--model", "run", "x.png", "--gallery", "g", "--threshold", "1.01"], "from -1 to 1, got '1.01'"),
            (["--model", "run", "x.png", "--gallery", "g", "--threshold", "nan"], "from -1 to 1, got 'nan'"),
            (["--model", "run", "x.png", "--gallery", "g", "--threshold", "half"], "from -1 to 1, got 'half'"),
            (["--model", "run", "x.png", "--batch-size", "0"], "from 1 on"),
            (["--model", "run", "x.png", "--faster"], "--faster"),
        ],
    )
    def test_wrong_use(self, words, message, capsys):
        with pytest.raises(SystemExit) as exit_:
            predict.main(words)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err

    def test_no_model(self, party, tmp_path, capsys):
        assert "expected a run folder" in fails(capsys, "--model", tmp_path / "nowhere", party)
        with pytest.raises(FileNotFoundError):
            call("--model", tmp_path / "nowhere", party, "--debug")


# What is shown.


class TestText:
    def test_printable_by_hand(self):
        assert printable("Jürgen Ω 李 a\nb\x1b[2J\u202e\udcff\t") == r"Jürgen Ω 李 a\nb\x1b[2J\u202e\udcff\t"

    def test_columns_by_hand(self):
        assert [columns(text) for text in ("abc", "李雷", "u\u0308", "")] == [3, 4, 1, 0]

    def test_fit_by_hand(self):
        assert fit("abcdefghij", 10) == "abcdefghij"
        assert fit("abcdefghij", 7) == "ab…ghij"
        assert columns(fit("李" * 50, 11)) <= 11
        assert fit("a\nb" + "c" * 10**6, 9) == r"a\n…ccccc"

    @given(text=st.text(max_size=60), most=st.integers(4, 40))
    def test_fit_always_fits(self, text, most):
        found = fit(text, most)
        assert columns(found) <= most
        assert found.isprintable()
        assert found == printable(text) or "…" in found


class TestTable:
    @pytest.fixture
    def odd(self, tmp_path):
        names = ["li\nne\x1b[31m", "李雷" * 40, "x" * 10_000, "zoë", "\u202ereversed", "a b"]
        write_network(tmp_path / "run" / "model.safetensors", names)
        for n, name in enumerate(("new\nline.png", "with space.png", "ü李.png", "esc\x1b[2J.png")):
            write_noise(tmp_path / "pictures" / name, n)
        return tmp_path

    def test_odd_names_keep_their_places(self, odd, capsys):
        assert call("--model", odd / "run", odd / "pictures") == 0
        printed = capsys.readouterr().out
        heading, *lines = printed.splitlines()
        assert len(lines) == 4 + 1  # and the summary
        assert all(line.isprintable() for line in lines)
        assert r"new\nline.png" in printed
        assert r"esc\x1b[2J.png" in printed
        place = heading.index("confidence") + len("confidence")
        for line in lines[:4]:
            before = next(line[:n] for n in range(len(line) + 1) if columns(line[:n]) == place)
            assert before.endswith(" %")
        assert max(map(columns, lines)) < 220

    def test_json_has_them_as_they_are(self, odd, capsys):
        document = told(capsys, "--model", odd / "run", odd / "pictures")
        names = {one["name"] for row in document["pictures"] for one in row["best"]}
        assert "x" * 10_000 in names or "li\nne\x1b[31m" in names
        assert str(odd / "pictures" / "new\nline.png") in {row["file"] for row in document["pictures"]}

    def test_five_thousand_people(self, tmp_path, party, capsys):
        people = [f"person number {n} of a long list of people" for n in range(5000)]
        run = write_network(tmp_path / "run" / "model.safetensors", people).parent
        rows = told(capsys, "--model", run, party)["pictures"]
        assert [len(row["best"]) for row in rows] == [5] * 4
        assert call("--model", run, party, "--save", tmp_path / "out") == 0
        assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) < 220

    def test_a_name_that_is_no_utf8(self, run, party, capsys):
        odd = Path(os.fsdecode(bytes(party / "0.png")[:-5] + b"\xff.png"))
        try:
            (party / "0.png").rename(odd)
        except OSError:
            pytest.skip("this file system takes names in UTF-8 only")
        assert [row["file"] for row in told(capsys, "--model", run, odd)["pictures"]] == [str(odd)]
        assert call("--model", run, odd, "--save", party / "out") == 0
        assert r"\udcff.png" in capsys.readouterr().out

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_the_command_is_quiet_off_a_terminal(self, encoding, tmp_path):
        """Even where standard output knows no umlauts."""
        write_network(tmp_path / "run" / "model.safetensors", ["Jürgen"])
        write_noise(tmp_path / "ä.png", 0)
        command = [sys.executable, "-m", "resnet.predict", "--backend", "numpy", "--model", tmp_path / "run"]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [*command, tmp_path / "ä.png"], cwd=ROOT, capture_output=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        assert ("Jürgen".encode() if encoding == "utf-8" else rb"J\xfcrgen") in done.stdout


class TestSave:
    def test_the_picture_stands_above_its_answer(self, run, detector, tmp_path, capsys):
        picture = write_noise(tmp_path / "in" / "1.png", 0, (300, 280), "RGB")
        words = ("--model", run, "--mask-model", detector, picture, "--save", tmp_path / "out" / "deep")
        assert call(*words) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"written: {tmp_path / 'out' / 'deep' / '1.png'}"
        with Image.open(picture) as before, Image.open(tmp_path / "out" / "deep" / "1.png") as after:
            assert after.width == 300
            assert after.height > 280
            np.testing.assert_array_equal(np.asarray(after)[:280], np.asarray(before))
            assert len(np.unique(np.asarray(after)[280:])) > 2  # something is written there

    def test_it_is_saved_upright(self, run, tmp_path):
        upright = Image.open(write_noise(tmp_path / "1.png", 0, (300, 270), "RGB"))
        exif = Image.Exif()
        exif[0x0112] = 6
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.png", exif=exif)
        assert call("--model", run, tmp_path / "2.png", "--save", tmp_path / "out") == 0
        with Image.open(tmp_path / "out" / "2.png") as saved:
            np.testing.assert_array_equal(np.asarray(saved)[:270], np.asarray(upright))

    def test_lines_by_hand(self, run, detector, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(predict, "annotate", lambda p, lines: seen.append(lines) or Image.fromarray(p))
        gallery = write_gallery(tmp_path / "gallery", {"an\nna": 1})
        probe = gallery / "an\nna" / "0.png"
        more = ("--mask-model", detector, "--save", tmp_path / "out")
        for threshold in (-1, 1):
            probe = probe if threshold < 0 else write_noise(tmp_path / "other.png", 5)
            assert call("--model", run, "--gallery", gallery, "--threshold", threshold, probe, *more) == 0
        assert call("--model", detector, probe, "--save", tmp_path / "out") == 0
        known, unknown, mask = seen
        assert known[:2] == [r"an\nna", "similarity 1.000"]
        assert unknown[0] == "unknown"
        assert unknown[1].endswith(r", nearest an\nna")
        assert known[2].split(" ", known[2].count(" ") - 1)[0] in ("mask", "no")
        assert mask[0] in DETECTOR
        assert mask[1].startswith("confidence ")
        assert len(mask) == 2

    def test_no_file_is_overwritten(self, run, tmp_path, capsys):
        """Not a source picture, even if copies are to lie beside it, nor a copy of before."""
        for name in ("anna/1.png", "bert/1.png", "1.png", "1.jpg", "anna_1.png"):
            write_noise(tmp_path / "in" / name, 0)
        before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}
        assert call("--model", run, tmp_path / "in", "--save", tmp_path / "in") == 0
        assert {path: path.read_bytes() for path in before} == before
        new = sorted(path.name for path in (tmp_path / "in").rglob("*.*") if path not in before)
        assert new == ["1-2.png", "1-3.png", "anna_1-2.png", "anna_1-3.png", "bert_1.png"]
        written = capsys.readouterr().out.splitlines()[-1]
        assert sorted(PurePath(name).name for name in written.removeprefix("written: ").split(", ")) == new

    def test_json_stays_alone_on_standard_output(self, run, party, tmp_path, capsys):
        assert call("--json", "--model", run, party, "--save", tmp_path / "out") == 0
        printed, error = capsys.readouterr()
        assert len(json.loads(printed)["pictures"]) == 4
        assert error == "written: " + ", ".join(str(tmp_path / "out" / f"{n}.png") for n in range(4)) + "\n"

    def test_a_file_is_in_the_way(self, run, party, tmp_path, capsys):
        (tmp_path / "out").touch()
        assert "out is a file" in fails(capsys, "--model", run, party, "--save", tmp_path / "out")

    def test_a_full_disk(self, run, party, tmp_path, monkeypatch, capsys):
        def full(path, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(predict, "write_atomically", full)
        assert call("--model", run, party, "--save", tmp_path / "out") == 1
        printed, error = capsys.readouterr()
        assert printed.splitlines()[0].split() == ["file", "person", "confidence", "next"]  # the answers are there
        assert f"cannot write {tmp_path / 'out' / '0.png'} (No space left on device); 0 annotated" in error

    def test_a_picture_that_goes_away_meanwhile(self, run, party, tmp_path, monkeypatch, capsys):
        real = predict.table
        monkeypatch.setattr(predict, "table", lambda *words: (party / "2.png").unlink() or real(*words))
        assert call("--model", run, party, "--save", tmp_path / "out") == 0
        printed, error = capsys.readouterr()
        assert printed.splitlines()[-1].count(".png") == 3
        assert "skipped: cannot read picture" in error

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((16, 16), (256, 256)), ((300, 400), (300, 400)), ((3000, 1500), (1280, 640)), ((9, 5000), (256, 1280))],
    )
    def test_sizes(self, size, expected):
        width, height = size
        found = annotate(np.full((height, width, 1), 200, np.uint8), ["anna", "confidence 50.0 %"])
        assert found.width == expected[0]
        assert 30 < found.height - expected[1] < 130
        assert found.getpixel((expected[0] // 2, expected[1] // 2)) == (200, 200, 200)

    def test_long_lines_end_within_the_picture(self):
        lines = ["W" * 10_000, "ä" * 40, "李雷 \\u202e"]
        pixels = np.asarray(annotate(np.zeros((256, 256, 3), np.uint8), lines))[256:]
        assert pixels.shape[1] == 256
        ink = np.flatnonzero((pixels > 128).any(axis=(0, 2)))  # columns with something on them
        assert ink.min() > 3
        assert ink.max() < 256 - 3
        assert SMALLEST < LARGEST

    def test_names_by_hand(self):
        places = [PurePath(p) for p in ("anna/1.jpg", "anna/1.png", "Anna_1.gif", "a:b?\n.x.jpg", ".png", "ü" * 300)]
        names = png_names(places, ["ANNA_1-2.png"])
        assert names[:4] == ["anna_1.png", "anna_1-3.png", "Anna_1-4.png", "a_b__.x.png"]
        assert names[4] == "png.png"
        assert len(names[5].encode()) < 200

    @given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=5), max_size=8))
    def test_names_are_always_fit_and_different(self, places):
        names = png_names([PurePath(place) for place in places if place not in (".", "..")], [])
        assert len({name.casefold() for name in names}) == len(names)
        for name in names:
            assert name.isprintable()
            assert not name.startswith(".")
            assert PurePath(name).name == name
