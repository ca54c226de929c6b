"""The benchmark of the fast path's choices: turns, rows, and that the ways it compares compute the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import choices, fast_path, turns
from benchmarks.measure import spread
from nn import conv, parallel


def test_choices_take_turns_each_round_another_first():
    done = []
    contestants = {name: {"step": lambda name=name: done.append(name)} for name in "abc"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "SECONDS", 0)  # one time a turn
        seconds = turns.take_turns(contestants, turns.Rounds(4))
    assert "".join(done) == "abc" + "abc" + "bca" + "cab" + "abc"  # the warm-up, then the rounds
    assert {name: len(phases["step"]) for name, phases in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_turns_that_others_disturb_are_done_again(monkeypatch):
    clock = iter([0.0, 0.2, 1.0, 1.0, 2.0, 2.2, 3.0, 3.2])  # of the other processes, at each turn's start and end
    monkeypatch.setattr(turns, "others_seconds", lambda: next(clock))
    monkeypatch.setattr(turns, "PAUSE", 0)
    monkeypatch.setattr(turns, "SECONDS", 0)
    done = []
    rounds = turns.Rounds(1, patience=1e-9)
    rounds.turn({"step": lambda: done.append(1)})  # disturbed, then not
    assert (len(done), rounds.again, rounds.disturbed) == (2, 1, 0)
    rounds.turn({"step": lambda: done.append(1)})  # disturbed, but patience has come to an end
    assert (len(done), rounds.again, rounds.disturbed) == (3, 1, 1)


def test_rows_of_made_up_choices():
    seconds = {
        "usual": {"forward": [0.001, 0.010, 0.001], "backward": [0.003, 0.030, 0.003]},
        "other": {"forward": [0.002, 0.020, 0.004], "backward": [0.003, 0.030, 0.006]},
    }
    rows = turns.rows_of("conv", seconds, "usual", {"other": {"gflop": 2.0, "moved_bytes": 4e9}})
    assert [(row["contestant"], row["phase"]) for row in rows] == [
        (name, phase) for name in seconds for phase in ("forward", "backward", "forward + backward")
    ]
    usual, other = rows[0], rows[3]
    assert usual["time"] == usual["speed"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert other["time"] == pytest.approx({"median": 2.0, "min": 2.0, "max": 4.0})  # the slow round is slow for both
    assert other["speed"] == pytest.approx({"median": 0.5, "min": 0.25, "max": 0.5})
    assert other["ms"] == pytest.approx({"median": 4.0, "min": 2.0, "max": 20.0})
    assert (other["gflops"], other["gb_per_second"]) == pytest.approx((500, 1000))  # in 4 milliseconds
    assert rows[5]["seconds"] == pytest.approx([0.005, 0.050, 0.010])
    assert "speed" not in turns.rows_of("conv", seconds, None, {})[3]


def test_size_of_slices_is_restored(monkeypatch):
    monkeypatch.setattr(parallel, "CPU_SLICE_BYTES", 5)
    monkeypatch.setattr(parallel, "ELEMENTWISE_BYTES", 7)
    seen = fast_path.with_slices(9, lambda: (parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES))()
    assert seen == (9, 9)
    with pytest.raises(ZeroDivisionError):
        fast_path.with_slices(9, lambda: 1 / 0)()
    assert (parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES) == (5, 7)


def test_units_of_slices():
    # Patches of 8² places, 3·3·64 numbers of 4 bytes; 2·2 tiles of 36 places; a row of 64 numbers.
    assert fast_path.units("im2col", (32, 8, 64), 2**20) == {"unit_bytes": 147456, "units_a_slice": 7}
    assert fast_path.units("winograd", (32, 8, 64), 2**20) == {"unit_bytes": 36864, "units_a_slice": 28}
    assert fast_path.units("BatchNorm2d", (32, 8, 64), 2**15) == {"unit_bytes": 256, "units_a_slice": 128}
    assert fast_path.units("BatchNorm2d", (32, 8, 64), 2**27)["units_a_slice"] == 32 * 8 * 8  # no more than there are
    assert fast_path.units("im2col", (32, 8, 64), 1)["units_a_slice"] == 1  # a picture is never cut


def test_larger_slices_need_more_working_memory():
    phases = fast_path.layer("im2col", (8, 8, 16), 1)
    small, large = (fast_path.working_bytes(phases, n_bytes, (8, 8, 16)) for n_bytes in (1, 2**20))
    patches = 8 * 8 * 9 * 16 * 4  # of one picture
    assert patches <= small["forward"] < 2 * patches
    assert 8 * patches <= large["forward"] < 10 * patches


@pytest.mark.parametrize(("n_bytes", "name"), [(1, "1 B"), (2**15, "32 KiB"), (2**21, "2 MiB"), (3 * 2**29, "1.5 GiB")])
def test_names_of_sizes(n_bytes, name):
    assert fast_path.named_bytes(n_bytes) == name


def test_ways_to_add_up_patches_agree():
    usual, *others = (work() for work in fast_path.ways_to_add_up((2, 5, 3)).values())
    for other in others:
        np.testing.assert_allclose(other, usual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 2, 8)])
def test_ways_to_an_input_gradient_agree(shape, monkeypatch):
    ways = fast_path.ways_to_gradient(shape)
    np.testing.assert_allclose(ways["scatter"](), ways["turned kernel"](), rtol=1e-4, atol=1e-4)
    turned = []
    monkeypatch.setattr(conv, "turned", lambda weight, turn=conv.turned: turned.append(1) or turn(weight))
    n, side, c = shape
    x, weight = fast_path.noise(n, side, side, c), fast_path.noise(3, 3, c, c)
    dx = conv.input_gradient(x, conv.conv2d_forward(x, weight, None, 1, 1)[1])
    np.testing.assert_allclose(dx, ways["scatter"](), rtol=1e-4, atol=1e-4)
    assert fast_path.chosen_gradient(shape) == ("turned kernel" if turned else "scatter")


def test_a_tiny_run_of_the_choices(tmp_path, capsys):
    path = tmp_path / "new" / "choices.json"
    before = parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES
    arguments = ["--tiny", "--repetitions", "2", "--threads", "2", "--patience", "0", "--json", str(path)]
    assert choices.main(arguments) == 0
    assert before == (parallel.CPU_SLICE_BYTES, parallel.ELEMENTWISE_BYTES)
    report, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert {"date", "machine", "versions", "blas", "blas_settings", "settings"} < set(report)
    assert list(report["turns"]) == list(report["sections"])
    assert list(report["sections"]) == ["slices", "threads", "algorithms", "memory", "scatter"]
    for section, rows in report["sections"].items():
        assert f"\n{section}\n" in printed
        seconds = {(row["case"], row["phase"], row["contestant"]): row["seconds"] for row in rows}
        assert len(seconds) == len(rows)
        for row in rows:
            assert row["case"] in printed
            assert len(row["seconds"]) == 2
            assert min(row["seconds"]) > 0
            if "against" in row:
                others = seconds[row["case"], row["phase"], row["against"]]
                pairs = list(zip(row["seconds"], others, strict=True))
                assert row["time"] == pytest.approx(spread([this / other for this, other in pairs]))
                assert row["speed"] == pytest.approx(spread([other / this for this, other in pairs]))
    by_section = report["sections"]
    assert {row["contestant"] for row in by_section["slices"]} == {"1 KiB", "4 KiB", "2 MiB"}
    assert {row["against"] for row in by_section["slices"]} == {"2 MiB"}
    assert {row["contestant"] for row in by_section["threads"]} == {"1 thread", "2 threads"}
    assert [row["case"] for row in by_section["threads"]][-1] == "resnet20, 2 × 16²"
    chosen = {(row["case"], row["contestant"]) for row in by_section["algorithms"] if row["chosen"]}
    assert chosen == {("2 × 8² × 4", "im2col"), ("4 × 16² × 32", "winograd")}
    assert {row["case"] for row in by_section["memory"] if row["phase"] == "copy"} == {"1 B", "1 KiB", "4 KiB"}


def test_a_section_that_cannot_run_is_an_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "threadpoolctl.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert choices.main(["--tiny", "--sections", "scatter"]) == 1
    assert "error: scatter: its process ended with status 1" in capsys.readouterr().err
