"""What each choice of the fast CPU path is worth: ``python -m benchmarks.choices``.

What is compared stands in ``benchmarks.fast_path``, how in ``benchmarks.turns``. A process is started for each section.
Each row of the result file has every round's seconds; "time" is how many times as long as ``against`` it took, "speed"
how many times as fast it was: median, least and most of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from benchmarks.fast_path import FULL, SECTIONS, TINY
from benchmarks.measure import (
    ROOT,
    BenchmarkError,
    Measured,
    add_options,
    circumstances,
    exit_status,
    table,
    whole,
    worker_environment,
    write_report,
)
from benchmarks.turns import PARTS, Rounds, Row
from nn.parallel import keep_freed_memory

# Sections, each in a process of its own

#: Places in the result file, and what of each section's answer stands there.
PLACES = {"turns": "turns", "sections": "rows"}


def serve() -> None:
    """Read a job from stdin, measure its section, write rows and facts to stdout; what ``measure_section`` starts."""
    job = json.loads(sys.stdin.readline())
    keep_freed_memory()  # as in training
    rounds = Rounds(job["repetitions"], job["patience"])
    rows = SECTIONS[job["section"]](TINY if job["tiny"] else FULL, rounds, job["threads"])
    wanted = ("internal_api", "version", "architecture", "num_threads")
    blas = [{key: lib.get(key) for key in wanted} for lib in threadpool_info() if lib["user_api"] == "blas"]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    turns = {"again": rounds.again, "disturbed": rounds.disturbed}
    print(json.dumps({"rows": rows, "turns": turns, "facts": {"versions": versions, "blas": blas}}))


def measure_section(job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return rows and facts of a section.

    Raises:
        BenchmarkError: its process ended without an answer; it has said why on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.choices import serve; serve()"],
        input=json.dumps(job) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{job['section']}: its process ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# Tables


def show(section: str, rows: list[Row]) -> str:
    """Return a section's tables: one for each case of the slices, else one for cases with the same contestants."""
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    for case, of_case in cases.items():
        names = tuple(dict.fromkeys(row["contestant"] for row in of_case))
        groups.setdefault((case,) if section == "slices" else names, {})[case] = of_case
    make = slices_table if section == "slices" else cases_table
    return "\n\n".join(make(group) for group in groups.values())


def slices_table(cases: dict[str, list[Row]]) -> str:
    """Return a row a size: time against the default size and working memory, forward and backward."""
    ((case, rows),) = cases.items()
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row["phase"] in PARTS:
            cells = lines.setdefault(row["contestant"], [str(row["units_a_slice"])])
            cells += [ratio_cell(row["time"]), f"{row['working_bytes'] / 1e6:.2f}"]
    head = (case, "units a slice", *(cell for part in PARTS for cell in (f"{part}, × default", "MB")))
    return table(head, [(name, *cells) for name, cells in lines.items()])


def cases_table(cases: dict[str, list[Row]]) -> str:
    """Return a row a case and phase, a column a contestant."""
    lines: dict[tuple[str, str], list[str]] = {}
    for case, rows in cases.items():
        for row in rows:
            lines.setdefault((case, row["phase"]), []).append(cell(row))
    names = dict.fromkeys(row["contestant"] for row in next(iter(cases.values())))
    return table(("", "", *names), [(*key, *cells) for key, cells in lines.items()])


def cell(row: Row) -> str:
    """Return milliseconds and what else there is: speed beside the one compared with, rates, a star for the chosen."""
    text = f"{row['ms']['median']:.4g} ms"
    if "speed" in row and row["against"] != row["contestant"]:
        text += f", speed × {ratio_cell(row['speed'])}"
    if "gb_per_second" in row:
        text += f", {row['gb_per_second']:.1f} GB/s"
    if "gflops" in row:
        text += f", {row['gflops']:.0f} GFLOP/s"
    return text + " *" * row.get("chosen", False)


def ratio_cell(ratio: dict[str, float]) -> str:
    """Return e.g. "1.50 (1.40 – 1.60)"."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} – {ratio['max']:.2f})"


# Command


def run(options: argparse.Namespace) -> None:
    """Measure, print and write.

    Raises:
        BenchmarkError: a section cannot run.
        OSError: the file cannot be written.
    """
    environment, blas_settings = worker_environment(options.keep_blas_settings)
    found: dict[str, dict[str, Any]] = {}
    for section in options.sections:
        job = {key: getattr(options, key) for key in ("tiny", "repetitions", "threads", "patience")}
        job["section"] = section
        found[section] = measure_section(job, environment)
        print(f"\n{section}\n\n{show(section, found[section]['rows'])}", flush=True)
        print("turns done again: {again}; counted although disturbed: {disturbed}".format(**found[section]["turns"]))
    seen = [Measured({}, 0, 0, answer["facts"]) for answer in found.values()]
    parts = {key: {section: answer[part] for section, answer in found.items()} for key, part in PLACES.items()}
    write_report(options.json, circumstances(blas_settings, options, seen) | parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choices", description=(__doc__ or "").split(":")[0] + "."
    )
    every = tuple(SECTIONS)
    parser.add_argument("--sections", nargs="+", choices=every, default=every, help="what to measure (everything)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to see whether it runs; no times worth reading"
    )
    parser.add_argument(
        "--patience",
        type=whole(0),
        default=15,
        metavar="SECONDS",
        help="to spend in each section on doing turns again that other processes disturbed (15)",
    )
    add_options(parser)
    return exit_status(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
