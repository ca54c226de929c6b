"""``python -m benchmarks.gpu``: made-up sections for its bookkeeping, made-up findings for its sections, a dry run."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import quick, write_people

from benchmarks import gpu, gpu_checks
from benchmarks.gpu import FAILED, OUT_OF_TIME, PASSED, PLANS, CheckError, Section, read_pytest, run_sections
from benchmarks.measure import BenchmarkError, Limits, Measured

DRY = PLANS["numpy"]


class Clock:
    """A clock that only goes on when somebody lets it."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def section(name, share, clock, takes, told=None, error=None):
    """A section that takes a while, finds its own name, and may fail."""

    def work(found, end):
        if told is not None:
            told.append(end)
        clock.time += takes
        found["name"] = name
        if error is not None:
            raise error

    return Section(name, share, work)


def test_each_section_has_its_share_of_what_is_left():
    clock, told = Clock(), []
    chosen = [section("a", 1, clock, 2, told), section("b", 1, clock, 20, told), section("c", 2, clock, 1, told)]
    done = run_sections(chosen, 140, lambda done: None, clock)
    # Of 40 seconds a quarter; of the 38 that are left a third; of the 18 that are left all.
    assert told == pytest.approx([110, 102 + 38 / 3, 140])
    assert [found["status"] for found in done.values()] == [PASSED] * 3
    assert [found["seconds"] for found in done.values()] == [2, 20, 1]


def test_a_section_without_time_is_not_run(capsys):
    clock, told = Clock(), []
    chosen = [section("a", 1, clock, 36, told), section("b", 1, clock, 1, told)]
    done = run_sections(chosen, 140, lambda done: None, clock)
    assert done["b"] == {"status": OUT_OF_TIME, "seconds": 0}
    assert len(told) == 1
    assert "b: not run: out of time" in capsys.readouterr().out


def test_a_small_share_is_as_much_as_a_section_needs_to_start():
    clock, told = Clock(), []
    run_sections([section("a", 1, clock, 1, told), section("b", 99, clock, 1, told)], 140, lambda done: None, clock)
    assert told[0] == 105  # not 100.4


def test_a_section_that_fails_leaves_the_others_alone(capsys):
    clock = Clock()
    chosen = [
        section("a", 1, clock, 1, error=CheckError("two runs differ")),
        section("b", 1, clock, 1, error=ZeroDivisionError("by zero")),
        section("c", 1, clock, 1),
    ]
    done = run_sections(chosen, 200, lambda done: None, clock)
    assert [found["status"] for found in done.values()] == [FAILED, FAILED, PASSED]
    assert done["a"]["error"] == "two runs differ"
    assert done["b"]["error"] == "ZeroDivisionError: by zero"
    assert done["a"]["name"] == "a"  # what it found before is kept
    assert "a: two runs differ (1 s)" in capsys.readouterr().out


def test_all_that_was_found_is_saved_after_each_section():
    clock, saved = Clock(), []
    chosen = [section("a", 1, clock, 1), section("b", 1, clock, 1, error=CheckError("no"))]
    run_sections(chosen, 200, lambda done: saved.append(json.loads(json.dumps(done))), clock)
    assert [list(done) for done in saved] == [["a"], ["a", "b"]]
    assert [saved[1][name]["status"] for name in "ab"] == [PASSED, FAILED]


@pytest.mark.parametrize(("error", "minutes", "status"), [(None, "8", 0), (CheckError("no"), "8", 1), (None, "0.1", 1)])
def test_exit_status(monkeypatch, tmp_path, error, minutes, status):
    made_up = [section("a", 1, Clock(), 0), section("b", 1, Clock(), 0, error=error)]
    monkeypatch.setattr(gpu, "sections", lambda *arguments: made_up)
    path = tmp_path / "new" / "gpu.json"
    assert gpu.main(["--backend", "numpy", "--minutes", minutes, "--json", str(path)]) == status
    report = json.loads(path.read_text())
    assert report["dry_run"] is True
    assert report["sections"]["b"]["status"] == (FAILED if error else PASSED if status == 0 else OUT_OF_TIME)


def test_what_was_found_before_an_interrupt_is_in_the_file(monkeypatch, tmp_path):
    made_up = [section("a", 1, Clock(), 0), section("b", 1, Clock(), 0, error=KeyboardInterrupt())]
    monkeypatch.setattr(gpu, "sections", lambda *arguments: made_up)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--backend", "numpy", "--json", str(tmp_path / "gpu.json")])
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(sections) == ["a"]
    assert os.listdir(tmp_path) == ["gpu.json"]


@pytest.mark.usefixtures("no_cupy")
def test_without_a_gpu_it_ends_at_once(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: backend cupy: CuPy cannot be imported")
    assert err.count("\n") == 1
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_found_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gpu.main(["--backend", "numpy", "--json", str(tmp_path / "file" / "gpu.json")]) == 1
    assert "error: --json: expected a folder that can be written" in capsys.readouterr().err


def test_a_dry_run_does_not_write_where_results_are():
    assert gpu.parse([]).json == gpu.ROOT / "benchmarks" / "results" / "gpu.json"
    assert gpu.parse(["--backend", "numpy"]).json is None


@pytest.mark.parametrize(
    "arguments",
    [["--minutes", "0"], ["--minutes", "nan"], ["--minutes", "x"], ["--only", "nothing"], ["--backend", "torch"]],
)
def test_wrong_options_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_only_some_sections_in_their_order(monkeypatch, tmp_path):
    made_up = [section(name, 1, Clock(), 0) for name in ("environment", "tests", "steps")]
    monkeypatch.setattr(gpu, "sections", lambda *arguments: made_up)
    path = tmp_path / "gpu.json"
    assert gpu.main(["--backend", "numpy", "--json", str(path), "--only", "steps", "environment"]) == 0
    assert list(json.loads(path.read_text())["sections"]) == ["environment", "steps"]


def test_the_sections_and_their_order():
    names = [one.name for one in gpu.sections(DRY, {})]
    assert names == ["environment", "tests", "equality", "steps", "profile", "slices", "training"]


@pytest.mark.parametrize(
    ("out", "passed", "failed", "skipped"),
    [
        ("..s\n2 passed, 1 skipped, 9 deselected in 1.20s\n", 2, 0, 1),
        ("FAILED tests/a.py::b - in 3.0s\n1 failed, 2 passed, 2 errors in 61.00s (0:01:01)\n", 2, 3, 0),
        ("===== 1 error in 0.10s =====\n", 0, 1, 0),
        ("9 deselected in 0.50s\n", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_what_pytest_says(out, passed, failed, skipped):
    found = read_pytest(out)
    assert (found["passed"], found["failed"], found["skipped"]) == (passed, failed, skipped)
    assert found["closing_line"] == (out.splitlines() or [""])[-1].strip("= ")


@pytest.mark.parametrize(
    ("status", "out", "error"),
    [(0, "3 passed in 1.0s", None), (1, "1 failed, 3 passed in 1.0s", "1 failed"), (5, "", "no tests ran"),
     (0, "3 skipped in 1.0s", "3 skipped")],
)  # fmt: skip
def test_tests_must_pass_and_be_there(monkeypatch, status, out, error):
    monkeypatch.setattr(gpu, "process", lambda *arguments: (status, out, ""))
    found = {}
    if error is None:
        gpu.tests(DRY, {}, found, 0)
        assert found["passed"] == 3
        assert "lines" not in found
    else:
        with pytest.raises(CheckError, match=error):
            gpu.tests(DRY, {}, found, 0)
        assert found["lines"] == out.splitlines()


EQUAL = {
    "losses_cpu": [2.0],
    "losses": [2.0],
    "differences": [0.0, 9e-5],
    "repeated_losses_equal": True,
    "repeated_state_equal": True,
}


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({}, None),
        ({"differences": [0.0, 1.1e-4]}, "expected losses within 0.0001"),
        ({"differences": [0.0, float("nan")]}, "expected losses within 0.0001"),
        ({"repeated_losses_equal": False}, "two runs from the same start differ"),
        ({"repeated_state_equal": False}, "two runs from the same start differ"),
    ],
)
def test_what_is_equal(monkeypatch, found, error):
    monkeypatch.setattr(gpu, "check", lambda *arguments: EQUAL | found)
    if error is None:
        gpu.equality(DRY, {}, {}, 0)
    else:
        with pytest.raises(CheckError, match=error):
            gpu.equality(DRY, {}, {}, 0)


def test_an_environment_in_which_something_fails(monkeypatch):
    lines = ["cupy 14", "   fused kernel    works", "   --precision tf32    FAILS: old GPU"]
    monkeypatch.setattr(
        gpu, "check", lambda name, *others: {"report": lines} if name == "environment" else {"usable": 1}
    )
    found = {}
    with pytest.raises(CheckError, match=r"^--precision tf32    FAILS: old GPU$"):
        gpu.environment(DRY, {}, found, 0)
    assert found["pytorch"] == {"usable": 1}
    del lines[2]
    gpu.environment(DRY, {}, found, 0)


def result(ours, theirs):
    """A case's result as far as it is looked at: our speed and that of PyTorch's better layout."""
    rate = {"median": ours, "min": ours, "max": ours}
    best = {"median": theirs, "min": theirs, "max": theirs}
    return {
        "contestants": {
            "ours": {"pictures_per_second": rate, "peak_bytes": 3_000_000},
            "PyTorch channels_last": {"pictures_per_second": best, "peak_bytes": 2_000_000},
        },
        "against": {"name": "PyTorch channels_last", "speed": {"median": ours / theirs}},
    }


STEPS = replace(PLANS["cupy"], steps=(("float32", "4x8 6x8"), ("tf32", "4x8"), ("float32", "infer:1x8")))


def test_steps_say_what_was_reached_and_what_was_not_measured(monkeypatch):
    asked = []

    def measure_case(case, arch, sides, repetitions, variables, *, limits):
        asked.append((str(case), arch, sides["ours"]["precision"], list(sides)))
        if case.batch == 6:
            raise BenchmarkError("ours: its time was up")
        return result(50.0 if sides["ours"]["precision"] == "float32" else 49.0, 100.0), []

    monkeypatch.setattr(gpu, "check", lambda *arguments: {"usable": True})
    monkeypatch.setattr(gpu, "measure_case", measure_case)
    found = {}
    with pytest.raises(
        CheckError, match="1 of 4 cases were not measured: training step, 6 × 8², float32: ours: its time"
    ):
        gpu.steps(STEPS, {}, found, time.monotonic() + 60)
    first, cut_off, tf32, inference = found["cases"]
    assert asked[0] == (
        "training step, 4 × 8²",
        "resnet18",
        "float32",
        ["ours", "PyTorch contiguous", "PyTorch channels_last"],
    )
    assert [case[2] for case in asked] == ["float32", "float32", "tf32", "float32"]
    assert (first["reached"], tf32["reached"]) == (True, False)
    assert cut_off == {"case": "training step, 6 × 8²", "precision": "float32", "error": "ours: its time was up"}
    assert "reached" not in inference
    assert "note" not in found


def test_steps_without_pytorch_are_ours_alone(monkeypatch):
    asked = []

    def measure_case(case, arch, sides, repetitions, variables, *, limits):
        asked.append(list(sides))
        return {"contestants": {"ours": {}}}, []

    monkeypatch.setattr(gpu, "check", lambda *arguments: {"usable": False})
    monkeypatch.setattr(gpu, "measure_case", measure_case)
    found = {}
    gpu.steps(STEPS, {}, found, time.monotonic() + 60)
    assert asked == [["ours"]] * 4
    assert "ours alone" in found["note"]


def test_shared_out_time_goes_to_those_that_are_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=clock))
    items = gpu.shared_out("abc", 130)
    assert next(items) == ("a", Limits(enough=110, end=130))
    clock.time = 120
    assert next(items) == ("b", Limits(enough=125, end=130))
    assert next(items) == ("c", Limits(enough=130, end=130))


def test_each_size_of_slices_is_measured(monkeypatch):
    asked = []

    def measure(jobs, repetitions, variables, limits):
        asked.append(jobs["ours"])
        return {"ours": Measured({"step": [2.0, 1.0, 4.0]}, 0, 77, {})}

    monkeypatch.setattr(gpu, "measure", measure)
    found = {}
    gpu.slices(PLANS["cupy"], {}, found, time.monotonic() + 60)
    assert [job["gpu_slice_bytes"] for job in asked] == [mib * 2**20 for mib in (32, 64, 128, 256, 512)]
    assert (asked[0]["side"], asked[0]["batch"], asked[0]["size"], asked[0]["kind"]) == ("cupy", 256, 224, "step")
    speeds = {"median": 128.0, "min": 64.0, "max": 256.0}  # 256 pictures in 2, 4 and 1 seconds
    assert found["sizes"][0] == {"MiB": 32, "pictures_per_second": speeds, "peak_bytes": 77}


def test_as_many_trainings_as_there_is_time_for(monkeypatch):
    clock, asked = Clock(), []
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=clock))

    def train(options, variables, end):
        asked.append(options)
        clock.time += 20
        return {"clean_accuracy": 0.5}

    monkeypatch.setattr(gpu, "train", train)
    found = {}
    gpu.training(PLANS["cupy"], {}, found, 160)  # a third might be over at 164 only
    assert asked == [["--backend", "cupy", "--seed", "0"], ["--backend", "cupy", "--seed", "1"]]
    assert found["runs"][1] == {"seed": 1, "clean_accuracy": 0.5, "seconds": 20}


def test_a_training_and_one_that_fails(tmp_path):
    people, end = write_people(tmp_path / "people"), time.monotonic() + 10_000
    found = gpu.train(quick(people, tmp_path / "run"), dict(os.environ), end)
    assert set(found) == {"clean_accuracy", "masked_accuracy", "pictures_per_second"}
    assert 0 <= found["masked_accuracy"] <= 1
    assert not (tmp_path / "run").exists()  # it went to a folder that is gone
    with pytest.raises(CheckError, match=r"^error: expected one folder a person"):
        gpu.train(quick(tmp_path / "nobody", tmp_path / "run"), dict(os.environ), end)


def test_a_process_whose_time_is_up():
    with pytest.raises(CheckError, match="its time was up"):
        gpu.process(["-c", "import time; time.sleep(100)"], dict(os.environ), time.monotonic())


def test_a_check_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(gpu, "process", lambda *arguments: (1, "", "Traceback …\nValueError: no such thing\n\n"))
    with pytest.raises(CheckError, match=r"^equality: ValueError: no such thing$"):
        gpu.check("equality", {}, {}, 0)
    monkeypatch.setattr(gpu, "process", lambda *arguments: (-11, "", ""))
    with pytest.raises(CheckError, match=r"^equality: its process ended with status -11$"):
        gpu.check("equality", {}, {}, 0)


def test_the_tables():
    done = {
        "steps": {
            "status": PASSED,
            "seconds": 9.0,
            "cases": [
                {"case": "A", "precision": "tf32", "reached": False} | result(30.0, 100.0),
                {"case": "B", "precision": "float32", "reached": True} | result(80.0, 100.0),
                {"case": "C", "precision": "float32", "error": "time"},
            ],
        },
        "training": {
            "status": OUT_OF_TIME,
            "seconds": 1.0,
            "runs": [{"seed": 4, "clean_accuracy": 0.985, "masked_accuracy": 0.9, "seconds": 61.0}],
        },
    }
    text = gpu.show(done)
    rows = [line.split() for line in text.splitlines()]
    assert ["A", "tf32", "30", "3", "100", "0.30", "NO"] in rows
    assert ["B", "float32", "80", "3", "100", "0.80", "yes"] in rows
    assert "not run: out of time" in text
    assert "seed 4: clean 98.5 %, masked 90.0 % in 61 s" in text


def test_equality_of_made_up_trainings(monkeypatch):
    state = {"w": np.ones(2)}
    runs = [([2.0, 4.0], {}), ([2.0, 5.0], state), ([2.0, 5.0], {"w": np.array([1.0, 1 + 1e-15])})]
    sides = []

    def train(job):
        sides.append(job["side"])
        return runs[len(sides) - 1]

    monkeypatch.setattr(gpu_checks, "train", train)
    found = gpu_checks.equality({"side": "cupy"})
    assert sides == ["numpy", "cupy", "cupy"]
    assert found["differences"] == [0.0, 0.25]
    assert (found["repeated_losses_equal"], found["repeated_state_equal"]) == (True, False)


def test_the_loss_falls_enough_for_a_wrong_gradient_to_show():
    job = {"side": "numpy", "arch": "resnet18", "batch": 4, "size": 32, "threads": 1}
    losses, _ = gpu_checks.train(job)
    assert losses[-1] < (1 - 100 * gpu.LARGEST_DIFFERENCE) * losses[0]  # 1 % off shows after those steps


def test_a_check_prints_one_line_of_json(capfd):
    assert (
        gpu_checks.main(
            "profile", json.dumps({"side": "numpy", "arch": "resnet20", "batch": 2, "size": 8, "threads": 1})
        )
        == 0
    )
    out, _ = capfd.readouterr()
    lines = json.loads(out)["lines"]
    assert lines[2].split()[:2] == ["conv1", "Conv2d"]
    *_, kept, working = lines[-1].split()
    assert int(kept.replace(",", "")) > 0
    assert int(working.replace(",", "")) > 0
    assert gpu_checks.main("profile", "{}") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("KeyError: ")


def test_a_dry_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PLANS, "numpy", replace(DRY, slices=(128,), repetitions=1))
    path = tmp_path / "gpu.json"
    sections = ["environment", "equality", "profile", "slices"]
    assert gpu.main(["--backend", "numpy", "--minutes", "100", "--json", str(path), "--only", *sections]) == 0
    report = json.loads(path.read_text())
    assert list(report["sections"]) == sections
    assert len(report["sections"]["equality"]["differences"]) == gpu_checks.EQUAL_STEPS
    assert report["sections"]["slices"]["sizes"][0]["pictures_per_second"]["median"] > 0
    assert "written: " in capsys.readouterr().out
