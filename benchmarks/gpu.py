"""All checks and benchmarks that need a GPU, in one go and one file: ``python -m benchmarks.gpu``.

Section after section, each with its share of the minutes; what one leaves over goes to those after it. The result file
is written anew after each, so nothing is lost if the command is cut off. A section that fails does not keep the others
from running. With ``--backend numpy`` tiny sizes on the CPU try the command itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure import (
    ROOT,
    BenchmarkError,
    Limits,
    check_folder,
    measure,
    now,
    spread,
    table,
    worker_environment,
)
from benchmarks.step import OURS, contestants, measure_case, parse_cases
from nn import BackendError
from nn.backend import load_backend
from nn.checkpoint import write_atomically

Item = TypeVar("Item")
Found = dict[str, Any]

PASSED, FAILED, OUT_OF_TIME = "passed", "failed", "not run: out of time"
RESULT_FILE = ROOT / "benchmarks" / "results" / "gpu.json"
RESERVE = 10.0  # seconds at the end for processes to go
LEAST_SECONDS = 5.0  # hardly a process has started by then
LARGEST_DIFFERENCE = 1e-4  # of a loss on the CPU and on the GPU, relative
WANTED = 0.5  # of PyTorch's speed


class CheckError(RuntimeError):
    """A check that ran did not find what it should; the message says what."""


@dataclass(frozen=True)
class Plan:
    """What is computed, and on how much.

    Attributes:
        backend: where.
        arch: network.
        tests: arguments of pytest.
        equality: pictures that the CPU and the GPU train on.
        steps: cases to measure, by precision, the most important first.
        repetitions: turns of each contestant.
        profile: training steps to look at layer by layer.
        sliced: a training step that is measured with each size of slices.
        slices: sizes, in MiB.
        training: options of ``train.py``.
        seeds: of trainings, as many as there is time for.
    """

    backend: str
    arch: str
    tests: tuple[str, ...]
    equality: str
    steps: tuple[tuple[str, str], ...]
    repetitions: int
    profile: str
    sliced: str
    slices: tuple[int, ...]
    training: tuple[str, ...]
    seeds: tuple[int, ...]


PLANS = {
    "cupy": Plan(
        backend="cupy",
        arch="resnet18",
        tests=("-m", "gpu", "tests"),
        equality="8x64",
        steps=(
            ("float32", "128x64 256x224"),
            ("tf32", "128x64 256x224"),
            ("float16", "128x64 256x224"),
            ("float32", "infer:1x112 infer:256x224"),
        ),
        repetitions=5,
        profile="128x64 256x224",
        sliced="256x224",
        slices=(32, 64, 128, 256, 512),
        training=(),
        seeds=(0, 1, 2),
    ),
    "numpy": Plan(
        backend="numpy",
        arch="resnet20",
        tests=("tests/test_schedule.py",),
        equality="4x16",
        steps=(("float32", "4x32 infer:1x32"),),
        repetitions=2,
        profile="4x32",
        sliced="4x32",
        slices=(128, 256),
        training=("--arch=resnet20", "--stem=small", "--image-size=16", "--epochs=1", "--repeats=1"),
        seeds=(0,),
    ),
}


# Sections


@dataclass(frozen=True)
class Section:
    """A part of the command.

    Attributes:
        name: in the result file and for ``--only``.
        share: of the time, in seconds of eight minutes.
        work: fills in what it finds; is told when to end, in seconds of ``time.monotonic``; raises if it fails.
    """

    name: str
    share: float
    work: Callable[[Found, float], None]


def sections(plan: Plan, variables: dict[str, str]) -> list[Section]:
    """Return all sections in their order.

    Args:
        plan: what they compute.
        variables: the environment of their processes.
    """
    shares: dict[str, tuple[float, Callable[[Plan, dict[str, str], Found, float], None]]] = {
        "environment": (25, environment),
        "tests": (120, tests),
        "equality": (30, equality),
        "steps": (175, steps),
        "profile": (30, profile),
        "slices": (40, slices),
        "training": (60, training),
    }
    return [Section(name, share, partial(work, plan, variables)) for name, (share, work) in shares.items()]


def run_sections(
    chosen: Sequence[Section],
    end: float,
    save: Callable[[dict[str, Found]], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Found]:
    """Run section after section; return what each found.

    Args:
        chosen: sections.
        end: when all must have ended, in seconds of ``clock``.
        save: called after each with all that was found so far.
        clock: the time.
    """
    done: dict[str, Found] = {}
    for number, section in enumerate(chosen):
        begun = clock()
        share = section.share / sum(other.share for other in chosen[number:])
        found = done[section.name] = {"status": OUT_OF_TIME}
        if end - begun >= LEAST_SECONDS:
            try:
                section.work(found, begun + max(LEAST_SECONDS, share * (end - begun)))
                found["status"] = PASSED
            except Exception as error:  # whatever it is, it belongs into the result file
                plain = isinstance(error, CheckError | BenchmarkError)
                found |= {"status": FAILED, "error": str(error) if plain else f"{type(error).__name__}: {error}"}
        found["seconds"] = round(clock() - begun, 1)
        print(f"{section.name}: {found.get('error') or found['status']} ({found['seconds']:.0f} s)", flush=True)
        save(done)
    return done


def shared_out(items: Sequence[Item], end: float) -> Iterator[tuple[Item, Limits]]:
    """Yield each item with its limits: its share of the time is enough, but it may last to the end."""
    for number, item in enumerate(items):
        begun = time.monotonic()
        yield item, Limits(begun + (end - begun) / (len(items) - number), end)


def environment(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """The machine, its GPU, the versions, and whether everything that training uses works."""
    found |= check("environment", {"side": plan.backend}, variables, end)
    found["pytorch"] = check("pytorch", {"side": plan.backend}, variables, end)
    broken = [line.strip() for line in found["report"] if "FAILS" in line]
    if broken:
        raise CheckError("; ".join(broken))


def tests(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """The tests that need a GPU."""
    status, out, _ = process(["-m", "pytest", "-q", *plan.tests], variables, end)
    found |= read_pytest(out)
    if status != 0 or found["passed"] == 0:
        found["lines"] = out.splitlines()[-60:]
        raise CheckError(f"pytest: {found['closing_line'] or 'no tests ran'}")


def read_pytest(out: str) -> Found:
    """Return how many tests passed, failed and were skipped, and the line that says so."""
    lines = [line.strip("= ") for line in out.splitlines() if re.search(r"\bin [\d.]+s\b", line)]
    closing = lines[-1] if lines else ""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", closing)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {
        "passed": counts.get("passed", 0),
        "failed": failed,
        "skipped": counts.get("skipped", 0),
        "closing_line": closing,
    }


def equality(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """Whether a few training steps come to the same on CPU and GPU, and twice on the GPU to the same bits."""
    found |= check("equality", one_job(plan, plan.equality), variables, end)
    if not all(difference <= LARGEST_DIFFERENCE for difference in found["differences"]):  # nor is a NaN
        raise CheckError(
            f"expected losses within {LARGEST_DIFFERENCE} of the CPU's {found['losses_cpu']}, got {found['losses']}"
        )
    if not (found["repeated_losses_equal"] and found["repeated_state_equal"]):
        raise CheckError("two runs from the same start differ")


def steps(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """Training steps and inference in each precision, beside PyTorch where it is there."""
    todo = [(precision, case) for precision, cases in plan.steps for case in parse_cases(cases)]
    pytorch = check("pytorch", {"side": plan.backend}, variables, end)["usable"]
    if not pytorch:
        found["note"] = "PyTorch is not there, or not with CUDA: ours alone was measured"
    found |= {"wanted": WANTED, "cases": []}
    for (precision, case), limits in shared_out(todo, end):
        result: Found = {"case": str(case), "precision": precision}
        found["cases"].append(result)
        sides = contestants(plan.backend, precision, pytorch=pytorch)
        try:
            result |= measure_case(case, plan.arch, sides, plan.repetitions, variables, limits=limits)[0]
        except BenchmarkError as error:
            result["error"] = str(error)
        if case.kind == "step" and "against" in result:
            result["reached"] = result["against"]["speed"]["median"] >= WANTED
    errors = [
        f"{result['case']}, {result['precision']}: {result['error']}" for result in found["cases"] if "error" in result
    ]
    if errors:
        raise CheckError(f"{len(errors)} of {len(todo)} cases were not measured: {'; '.join(errors)}")


def profile(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """Where the time of a training step goes, layer by layer."""
    for case in plan.profile.split():
        found[case] = check("profile", one_job(plan, case), variables, end)["lines"]


def slices(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """How large the slices of patches should be: a training step with each size."""
    found |= {"case": plan.sliced, "sizes": []}
    for mib, limits in shared_out(plan.slices, end):
        job = one_job(plan, plan.sliced) | {"kind": "step", "gpu_slice_bytes": mib * 2**20}
        seen = measure({OURS: job}, plan.repetitions, variables, limits)[OURS]
        speeds = spread([job["batch"] / seconds for seconds in seen.seconds["step"]])
        found["sizes"].append({"MiB": mib, "pictures_per_second": speeds, "peak_bytes": seen.peak_bytes})


def training(plan: Plan, variables: dict[str, str], found: Found, end: float) -> None:
    """What ``train.py`` comes to: accuracies to be compared with those of the CPU in the README."""
    found["runs"] = []
    for seed in plan.seeds:
        begun = time.monotonic()
        longest = max((run["seconds"] for run in found["runs"]), default=0)
        if begun + 1.2 * longest > end:
            break
        result = train(["--backend", plan.backend, "--seed", str(seed), *plan.training], variables, end)
        found["runs"].append({"seed": seed} | result | {"seconds": round(time.monotonic() - begun, 1)})


def train(options: list[str], variables: dict[str, str], end: float) -> Found:
    """Return the accuracies of one training."""
    with tempfile.TemporaryDirectory() as folder:
        status, _, errors = process(["train.py", *options, "--run-dir", folder], variables, end)
        if status != 0:
            raise CheckError(last_line(errors))
        last = json.loads((Path(folder) / "results.json").read_text())["epochs"][-1]
    return {key: last[key] for key in ("clean_accuracy", "masked_accuracy", "pictures_per_second")}


# Processes


def one_job(plan: Plan, case: str) -> dict[str, Any]:
    """Return what our side is told, for a case such as "128x64"."""
    (parsed,) = parse_cases(case)
    return {"arch": plan.arch, "batch": parsed.batch, "size": parsed.size} | contestants(plan.backend)[OURS]


def check(name: str, job: dict[str, Any], variables: dict[str, str], end: float) -> Found:
    """Return what one of ``benchmarks.gpu_checks`` finds.

    Raises:
        CheckError: it failed, or its time was up.
    """
    status, out, errors = process(["-m", "benchmarks.gpu_checks", name, json.dumps(job)], variables, end)
    if status != 0:
        raise CheckError(f"{name}: {last_line(errors) or f'its process ended with status {status}'}")
    found: Found = json.loads(out)
    return found


def process(arguments: list[str], variables: dict[str, str], end: float) -> tuple[int, str, str]:
    """Run Python from the repository's root; return its exit status and what it wrote to stdout and stderr.

    Raises:
        CheckError: it was still running at ``end``, in seconds of ``time.monotonic``.
    """
    # Files, not pipes: a pipe would be waited for as long as any grandchild holds it.
    file = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with file() as out, file() as errors:
        try:
            status = subprocess.run(
                [sys.executable, "-u", *arguments],  # unbuffered, for its last words
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=ROOT,
                env=variables,
                timeout=max(0.0, end - time.monotonic()),
            ).returncode
        except subprocess.TimeoutExpired as error:
            out.seek(0)
            raise CheckError(f"its time was up; last words: {last_line(out.read())!r}") from error
        out.seek(0)
        errors.seek(0)
        return status, out.read(), errors.read()


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return (text.strip().splitlines() or [""])[-1]


# What it prints


def show(done: dict[str, Found]) -> str:
    """Return a short table of the sections, one of the speeds, and the training's accuracies."""
    lines = [
        table(("section", "seconds", "status"), [(n, f"{f['seconds']:.0f}", f["status"]) for n, f in done.items()])
    ]
    measured = [result for result in done.get("steps", {}).get("cases", []) if "contestants" in result]
    if measured:
        head = ("case", "precision", "pictures/s", "peak MB", "PyTorch pictures/s", "ratio", f"{WANTED} reached")
        lines += ["", table(head, [speed_row(result) for result in measured])]
    for run in done.get("training", {}).get("runs", []):
        clean, masked = 100 * run["clean_accuracy"], 100 * run["masked_accuracy"]
        lines.append(f"seed {run['seed']}: clean {clean:.1f} %, masked {masked:.1f} % in {run['seconds']:.0f} s")
    return "\n".join(lines)


def speed_row(result: Found) -> tuple[str, ...]:
    """Return a case's cells for the table of speeds."""
    ours = result["contestants"][OURS]
    cells = (
        result["case"],
        result["precision"],
        f"{ours['pictures_per_second']['median']:.0f}",
        f"{ours['peak_bytes'] / 1e6:.0f}",
    )
    if "against" not in result:
        return (*cells, "", "", "")
    theirs = result["contestants"][result["against"]["name"]]["pictures_per_second"]["median"]
    reached = {True: "yes", False: "NO", None: ""}[result.get("reached")]
    return (*cells, f"{theirs:.0f}", f"{result['against']['speed']['median']:.2f}", reached)


# The command


def minutes(text: str) -> float:
    """Read a number of minutes.

    Raises:
        argparse.ArgumentTypeError: not a number above zero.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text!r}")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    names = [section.name for section in sections(PLANS["cupy"], {})]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split(":")[0] + ".")
    parser.add_argument("--backend", choices=PLANS, default="cupy", help="numpy for a dry run on the CPU (cupy)")
    parser.add_argument("--minutes", type=minutes, default=8.0, help="time for all of it (8)")
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything to this file (benchmarks/results/gpu.json; no file by default in a dry run)",
    )
    options = parser.parse_args(arguments)
    if options.json is None and options.backend == "cupy":
        options.json = RESULT_FILE
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if all sections ran and passed."""
    begun = time.monotonic()
    options = parse(arguments)
    try:
        load_backend(options.backend)
        check_folder(options.json)
    except (BackendError, BenchmarkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    variables, blas_settings = worker_environment(keep_blas_settings=False)
    plan = PLANS[options.backend]
    report = {
        "date": now(),
        "dry_run": options.backend == "numpy",
        "minutes": options.minutes,
        "blas_settings": blas_settings,
        "plan": asdict(plan),
    }

    def save(done: dict[str, Found]) -> None:
        if options.json is not None:
            write_atomically(options.json, (json.dumps(report | {"sections": done}, indent=1) + "\n").encode())

    chosen = [section for section in sections(plan, variables) if section.name in options.only]
    done = run_sections(chosen, begun + 60 * options.minutes - RESERVE, save)
    print(f"\n{show(done)}")
    if options.json is not None:
        print(f"written: {options.json}")
    return 0 if all(found["status"] == PASSED for found in done.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
