"""The benchmarks' sums on made-up seconds, their command lines, and one tiny run through real worker processes."""

from __future__ import annotations

import importlib.util
import json
from argparse import ArgumentTypeError

import pytest
from strict_cupy import installed
from test_readme import load_writer
from tiny import quick, write_people

from benchmarks import data, layers, ours, scaling, step, worker
from benchmarks.measure import (
    BLAS_VARIABLES,
    BenchmarkError,
    Limits,
    Measured,
    exponent,
    gflop,
    measure,
    speed_ratio,
    spread,
    worker_environment,
)
from benchmarks.step import Case, parse_cases

FACTS = {"versions": {}, "blas": []}
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def made_up() -> dict[str, Measured]:
    """Ours takes 2, 4, 3 s a step; PyTorch's layouts 6, 5, 7 s and 2, 2, 3 s."""
    mb = 10**6
    return {
        "ours": Measured({"step": [2.0, 4.0, 3.0]}, 100 * mb, 400 * mb, FACTS),
        "PyTorch contiguous": Measured({"step": [6.0, 5.0, 7.0]}, 200 * mb, 300 * mb, FACTS),
        "PyTorch channels_last": Measured({"step": [2.0, 2.0, 3.0]}, 200 * mb, 800 * mb, FACTS),
    }


def test_summary_of_made_up_seconds():
    result = step.summary(Case("step", 12, 64), made_up(), step_gflop=30.0, product_rate=40.0)
    ours = result["contestants"]["ours"]
    assert ours["pictures_per_second"] == {"median": 4.0, "min": 3.0, "max": 6.0}  # 12 pictures in 3, 4, 2 seconds
    assert ours["gflops"] == pytest.approx(10)  # 30 GFLOP in 3 seconds
    assert ours["share"] == pytest.approx(0.25)
    assert (ours["peak_bytes"], ours["above_bytes"]) == (400_000_000, 300_000_000)
    against = result["against"]
    assert against["name"] == "PyTorch channels_last"  # the faster layout, not the one with less memory
    assert against["speed"] == {"median": 1.0, "min": 0.5, "max": 1.0}  # rounds 2/2, 2/4, 3/3
    assert against["peak"] == 0.5
    assert against["above"] == 0.5  # 300 / 600


def test_summary_without_the_rate_of_a_matrix_product():
    result = step.summary(Case("step", 12, 64), made_up(), step_gflop=30.0)
    assert result["contestants"]["ours"]["share"] is None
    assert "%" not in step.show(result)


def test_ratio_is_taken_within_a_round():
    # The machine is ten times slower in the second round; only a ratio of the same round does not see that.
    assert speed_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == {"median": 2.0, "min": 2.0, "max": 2.0}


def test_spread_of_an_even_number():
    assert spread([4.0, 1.0, 2.0, 3.0]) == {"median": 2.5, "min": 1.0, "max": 4.0}


def test_exponent_of_power_laws():
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)  # y = 3 x²
    assert exponent([1, 4, 16], [5, 10, 20]) == pytest.approx(0.5)


def test_operations_of_resnet18():
    # 1,814,073,344 multiply-adds at 224², as in every table of networks; two operations each, three passes in training.
    assert gflop("resnet18", 2, 224, training=False) == pytest.approx(2 * 2 * 1.814073344)
    assert gflop("resnet18", 1, 224, training=True) == pytest.approx(3 * 2 * 1.814073344)


def test_table_and_ratio_lines():
    text = step.show(step.summary(Case("step", 12, 64), made_up(), 30.0, 40.0))
    assert "(3.0 – 6.0)" in text
    assert "25 %" in text
    assert "speed, ours / PyTorch channels_last: 1.00 (0.50 – 1.00)" in text


def test_cases():
    assert parse_cases("32x112 infer:1x56") == [Case("step", 32, 112), Case("infer", 1, 56)]


@pytest.mark.parametrize("text", ["", "32", "32x", "0x8", "8x0", "train:2x8", "1x8", "2x8,4x8", "-2x8"])
def test_wrong_cases(text):
    with pytest.raises(ArgumentTypeError):
        parse_cases(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch", "0"],
        ["--batch", "1"],
        ["--size", "x"],
        ["--arch", "vgg"],
        ["--threads", "-1"],
        ["--repetitions", "0"],
        ["--cases", "1x2x3"],
        ["--backend", "torch"],
        ["--precision", "float64"],
    ],
)
def test_wrong_options_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        step.main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err or arguments == ["--batch", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "tf32"], "--precision tf32 is for --backend cupy: NumPy computes in float32"),
        (["--precision", "float16"], "--precision float16 is for --backend cupy"),
        (["--backend", "cupy", "--precision", "float16", "--cases", "2x8 infer:1x8"], "evaluation stays in float32"),
    ],
)
def test_precisions_that_cannot_be_measured(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        step.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_contestants_compute_in_the_same_precision():
    sides = step.contestants("cupy", "tf32", threads=3)
    assert list(sides) == ["ours", "PyTorch contiguous", "PyTorch channels_last"]
    assert [side["side"] for side in sides.values()] == ["cupy", "contiguous", "channels_last"]
    for side in sides.values():
        assert (side["device"], side["precision"], side["threads"]) == ("cuda", "tf32", 3)
    assert list(step.contestants("numpy", pytorch=False)) == ["ours"]
    assert step.contestants("numpy")["ours"]["device"] == "cpu"


class Queue:
    """A device's queue: marks get their times from a list; waiting for one waits for all before it."""

    def __init__(self, times):
        self.times, self.log = times, []
        self.waits = self.marks = self.passed = 0

    def work(self, name):
        return lambda: self.log.append(name)

    def mark(self):
        self.log.append("mark")
        self.marks += 1
        return self.marks

    def seconds_between(self, start, stop):
        self.log.append("read")
        if stop > self.passed:
            self.waits, self.passed = self.waits + 1, stop
        return self.times[stop - 1] - self.times[start - 1]


def test_phases_lie_between_marks_that_are_read_with_one_wait_at_the_end():
    queue = Queue([0, 1, 5, 8, 10, 13, 20, 27])
    phases = {"forward": queue.work("forward"), "backward": queue.work("backward")}
    seconds = worker.repetition(phases, queue.mark, queue.seconds_between, seconds=0, least_rounds=2)
    assert seconds == {"forward": 2.0, "backward": 5.0}  # means of 1 and 3, and of 3 and 7
    assert queue.log == 2 * ["mark", "forward", "mark", "mark", "backward", "mark"] + 4 * ["read"]
    assert queue.waits == 1


def test_rounds_go_on_until_the_time_of_the_host_is_up(monkeypatch):
    hours = iter(range(100))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(hours))
    queue = Queue(list(range(0, 200, 2)))
    assert worker.repetition({"step": queue.work("step")}, queue.mark, queue.seconds_between, seconds=7) == {"step": 2}
    assert queue.log.count("step") == 7  # it was 0 at the start and is later by 1 after each


@pytest.mark.parametrize("kind", ["step", "infer"])
def test_no_step_of_ours_waits_for_the_device(kind):
    with installed() as cupy:
        ours.backend.cache_clear()
        try:
            job = {"side": "cupy", "arch": "resnet20", "batch": 2, "size": 8, "threads": 1}
            phases = getattr(ours, kind)(job)
            before = len(cupy.host_syncs)
            start = ours.mark(job)
            phases[kind]()
            stop = ours.mark(job)
            assert cupy.host_syncs[before:] == []
            assert ours.seconds_between(job, start, stop) > 0
            assert cupy.host_syncs[before:] == ["Event.synchronize"]
        finally:
            ours.backend.cache_clear()


def test_a_job_sets_the_size_of_slices(monkeypatch):
    monkeypatch.setattr(ours.parallel, "GPU_SLICE_BYTES", 5)
    job = {"side": "numpy", "arch": "resnet20", "batch": 2, "size": 8, "threads": 1}
    ours.step(job)
    assert ours.parallel.GPU_SLICE_BYTES == 5
    ours.step(job | {"gpu_slice_bytes": 7})
    assert ours.parallel.GPU_SLICE_BYTES == 7


PRODUCT = {"kind": "product", "side": "numpy", "device": "cpu", "size": 8, "threads": 1}


def test_a_worker_whose_time_is_up_is_ended():
    with pytest.raises(BenchmarkError, match="ours: its time was up"):
        measure({"ours": PRODUCT}, 1, worker_environment(False)[0], Limits(end=0))


def test_no_round_begins_when_it_is_enough():
    seen = measure({"ours": PRODUCT}, 50, worker_environment(False)[0], Limits(enough=0))
    assert len(seen["ours"].seconds["product"]) == 1


def test_contestants_that_do_not_fit_together_are_measured_alone(monkeypatch):
    asked = []

    def measure(jobs, *others):
        asked.append(list(jobs))
        if len(jobs) > 1:
            raise BenchmarkError("b: OutOfMemoryError: CUDA out of memory. Tried to allocate")
        return {name: Measured({"step": job["seconds"]}, 0, 1, FACTS) for name, job in jobs.items()}

    monkeypatch.setattr(step, "measure", measure)
    jobs = {"a": {"seconds": [1.0, 2.0, 3.0]}, "b": {"seconds": [4.0, 5.0]}}
    measured, in_turns = step.take_turns(jobs, 3, {}, Limits())
    assert asked == [["a", "b"], ["a"], ["b"]]
    assert [one.seconds["step"] for one in measured.values()] == [[1.0, 2.0], [4.0, 5.0]]  # as many of each
    assert not in_turns


@pytest.mark.parametrize(("names", "message"), [("ab", "b: another error"), ("a", "a: out of memory")])
def test_other_errors_are_not_tried_again(monkeypatch, names, message):
    asked = []

    def measure(jobs, *others):
        asked.append(list(jobs))
        raise BenchmarkError(message)

    monkeypatch.setattr(step, "measure", measure)
    with pytest.raises(BenchmarkError, match=message):
        step.take_turns({name: {} for name in names}, 3, {}, Limits())
    assert asked == [list(names)]


def test_blas_variables_are_hidden_and_noted(monkeypatch, capsys):
    for name in BLAS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert worker_environment(False)[1] == {"variables": {}, "kept": False}
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    environment, note = worker_environment(False)
    assert "OPENBLAS_CORETYPE" not in environment
    assert note == {"variables": {"OPENBLAS_CORETYPE": "Haswell"}, "kept": False}
    assert "taken out of the environment: OPENBLAS_CORETYPE=Haswell" in capsys.readouterr().out
    assert worker_environment(True)[0]["OPENBLAS_CORETYPE"] == "Haswell"


def test_a_tiny_run_writes_everything(tmp_path, capsys):
    path = tmp_path / "new" / "step.json"
    arguments = [
        "--arch",
        "resnet20",
        "--cases",
        "2x16",
        "--against",
        "none",
        "--repetitions",
        "1",
        "--json",
        str(path),
    ]
    assert step.main(arguments) == 0
    assert "resnet20, training step, 2 × 16²" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert {"date", "machine", "versions", "blas", "blas_settings", "settings", "product_gflops"} < set(report)
    assert {"cpu", "cores", "platform"} == set(report["machine"])
    (case,) = report["cases"]
    assert (case["kind"], case["batch"], case["size"]) == ("step", 2, 16)
    ours = case["contestants"]["ours"]
    assert len(ours["seconds"]) == 1
    assert 0 < ours["seconds"][0] < 60
    assert 0 < ours["above_bytes"] < ours["peak_bytes"]
    assert "against" not in case


def test_a_worker_that_cannot_run_is_an_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "cupy.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert step.main(["--size", "16", "--backend", "cupy", "--against", "none", "--repetitions", "1"]) == 1
    assert "error: cupy: BackendError" in capsys.readouterr().err


def test_without_pytorch(monkeypatch, tmp_path, capsys):
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert step.main(["--size", "16", "--repetitions", "1"]) == 1
    assert "PyTorch cannot be imported (not here): install it, or run with --against none" in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize("kind", ["step", "infer"])
def test_pytorchs_side_computes(kind):
    from benchmarks import pytorch

    job = {"side": "channels_last", "device": "cpu", "arch": "resnet20", "batch": 2, "size": 16, "threads": 1}
    assert list(getattr(pytorch, kind)(job)) == [kind]
    getattr(pytorch, kind)(job)[kind]()


@needs_torch
@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("float16", False)])
def test_pytorchs_precision(precision, tf32):
    from benchmarks import pytorch

    job = {"side": "contiguous", "device": "cpu", "arch": "resnet20", "batch": 2, "size": 16, "threads": 1}
    model_types = set()

    def note(module, inputs, output):
        model_types.add(str(output.dtype))

    before = pytorch.torch.get_num_threads()
    hook = pytorch.torch.nn.modules.module.register_module_forward_hook(note)
    try:
        pytorch.step(job | {"precision": precision})["step"]()
        flags = pytorch.torch.backends.cuda.matmul.allow_tf32, pytorch.torch.backends.cudnn.allow_tf32
    finally:
        hook.remove()
        pytorch._prepare(job)
        pytorch.torch.set_num_threads(before)
    assert flags == (tf32, tf32)
    assert ("torch.float16" in model_types) == (precision == "float16")


@needs_torch
def test_pytorchs_clock(monkeypatch):
    from benchmarks import pytorch

    class Event:
        """An event in a queue; its time can be read once it was waited for."""

        def __init__(self, enable_timing):
            assert enable_timing
            self.recorded = self.waited = False

        def record(self):
            self.recorded = True

        def synchronize(self):
            self.waited = self.recorded

        def elapsed_time(self, stop):
            assert self.recorded
            assert stop.waited
            return 1500.0  # milliseconds

    monkeypatch.setattr(pytorch.torch.cuda, "Event", Event)
    job = {"device": "cuda"}
    start = pytorch.mark(job)
    assert pytorch.seconds_between(job, start, pytorch.mark(job)) == 1.5
    assert not start.waited
    assert pytorch.seconds_between({"device": "cpu"}, 2.0, 5.0) == 3.0


def test_layers_of_resnet18():
    jobs = layers.layer_jobs(4, 64)
    assert len([job for job in jobs.values() if job["layer"] == "Conv2d"]) == 11  # stem, 1 + 3 · 3 (in, on, shortcut)
    assert "conv 7×7, 64×64×3 → 64, stride 2" in jobs
    assert jobs["conv 3×3, 16×16×64 → 64, stride 1"]["shape"] == (4, 16, 16, 64)
    assert "MaxPool2d 32×32×64" in jobs
    assert "BatchNorm2d 32×32×64" in jobs
    assert "LeakyReLU 32×32×64" in jobs
    assert "Add 16×16×64" in jobs
    names = list(layers.contestants(jobs["conv 3×3, 16×16×64 → 64, stride 1"], 0))
    assert names == ["ours im2col", "ours winograd", "PyTorch contiguous", "PyTorch channels_last"]
    assert "ours winograd" not in layers.contestants(jobs["conv 7×7, 64×64×3 → 64, stride 2"], 0)


@pytest.mark.parametrize("layer", ["Conv2d", "BatchNorm2d", "LeakyReLU", "ReLU", "Add", "MaxPool2d"])
def test_both_sides_know_each_layer(layer):
    job = {"layer": layer, "shape": (2, 6, 6, 4), "device": "cpu", "threads": 1}
    job |= {"filters": 5, "kernel": 3, "stride": 1, "padding": 1}
    sides = [ours.layer(job | {"side": "numpy", "algorithm": "im2col"})]
    if importlib.util.find_spec("torch") is not None:
        from benchmarks import pytorch

        sides.append(pytorch.layer(job | {"side": "contiguous"}))
    for phases in sides:
        assert list(phases) == ["forward", "backward"]
        for work in phases.values():
            work()


def test_rows_of_a_layer():
    measured = {
        "ours im2col": Measured({"forward": [0.002, 0.004], "backward": [0.01, 0.01]}, 0, 1, FACTS),
        "PyTorch contiguous": Measured({"forward": [0.001, 0.002], "backward": [0.04, 0.04]}, 0, 1, FACTS),
        "PyTorch channels_last": Measured({"forward": [0.009, 0.009], "backward": [0.02, 0.02]}, 0, 1, FACTS),
    }
    forward, backward = layers.layer_rows("conv", measured)
    assert (forward["against"], forward["speed"]["median"]) == ("PyTorch contiguous", 0.5)
    assert (backward["against"], backward["speed"]["median"]) == ("PyTorch channels_last", 2.0)
    assert forward["ours_ms"] == pytest.approx(3)
    assert "im2col" in layers.show([forward, backward])


def made_up_points() -> dict[str, list[dict[str, object]]]:
    """Time goes with pictures and pixels, memory with the square root of what is kept."""
    points = {}
    for sweep, sizes in scaling.SWEEPS.items():
        points[sweep] = [
            {"batch": n, "size": s, "median": 1e-6 * n * s**2, "above_bytes": 1000 * n**0.5 * s, "kept_bytes": n * s**2}
            for n, s in sizes
        ]
    return points


def test_exponents_and_plot_of_made_up_points(tmp_path):
    found = scaling.exponents(made_up_points())
    assert list(found.values()) == pytest.approx([1, 1, 0.5, 0.5])
    assert "16 × 64²" in scaling.show(made_up_points()["batch"])
    scaling.plot(made_up_points(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_of_the_readme(tmp_path):
    report = {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU", "cores": 2},
        "versions": {"python": "3.13", "numpy": "2", "torch": "2.13"},
        "blas": [{"internal_api": "openblas", "architecture": "SkylakeX"}],
        "settings": {"arch": "resnet18", "repetitions": 7},
        "blas_settings": {"variables": {"OPENBLAS_CORETYPE": "Haswell"}, "kept": False},
        "cases": [step.summary(Case("step", 12, 64), made_up(), 30.0, 40.0)],
    }
    (tmp_path / "step.json").write_text(json.dumps(report))
    text = load_writer().speed_tables(tmp_path)
    assert "| training step, 12 × 64² | 4.0 | 6.0 | 1.00 (0.50 – 1.00) | 400 (300) | 800 (600) |" in text
    assert "openblas SkylakeX" in text
    assert "Haswell" not in text
    (tmp_path / "step_keep.json").write_text(json.dumps(report))
    measured = {"adds": {"median": 0.02, "min": -0.01, "max": 0.1}, "seconds": {"as in train.py": [1.0, 2.0, 3.0]}}
    (tmp_path / "data.json").write_text(json.dumps(measured))
    text = load_writer().other_kernels(tmp_path)
    assert text.count("| training step, 12 × 64² |") == 1
    assert "`OPENBLAS_CORETYPE=Haswell`" in text
    assert "1.02 (0.99 – 1.10) times as long" in text
    assert "3 epochs of each" in text


def test_the_data_path_beside_batches_made_before(tmp_path, capsys):
    people = write_people(tmp_path / "people")
    arguments = [*quick(people, tmp_path / "run"), "--repetitions", "2", "--json", str(tmp_path / "data.json")]
    assert data.main(arguments) == 0
    result = json.loads((tmp_path / "data.json").read_text())
    with_path, without = result["seconds"].values()
    assert len(with_path) == len(without) == 2
    ratios = sorted(longer / shorter - 1 for longer, shorter in zip(with_path, without, strict=True))
    assert [result["adds"]["min"], result["adds"]["max"]] == pytest.approx(ratios)
    assert "the data path adds" in capsys.readouterr().out
    assert data.main(["--data", "folder", "--data-dir", str(tmp_path / "nothing")]) == 1
    assert "error: expected one folder a person" in capsys.readouterr().err


def test_a_result_file_that_cannot_be_written_stops_before_measuring(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "step.json"
    assert step.main(["--batch", "2", "--size", "32", "--against", "none", "--json", str(path)]) == 1
    seen = capsys.readouterr()
    assert f"folder that can be written, got {path}" in seen.err
    assert seen.out == ""
