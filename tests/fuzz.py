"""Feed damaged, foreign and hostile files to everything that reads files, and see that each is read or refused.

    python tests/fuzz.py --runs 1000

A case is a good file that was changed at random: bits flipped; bytes cut off, put in, repeated, swapped, or made the
largest number there is; the beginning of one kind of file before the end of another; and, within the format, shapes,
offsets, sizes, tags and metadata that no honest program writes, with checksums that are right. A loader has to take it
or to raise one of the exceptions that it promises, with the file's name in it: not another one, not after many seconds,
not with much memory.

Each loader runs in a process of its own, whose address space is limited, so that a crash, a file that is chewed on for
ever, and one that eats the memory are seen and counted, too. A case depends on seed, loader and number alone. The file
of one that failed is kept; ``--loader NAME --case NUMBER`` makes and tries it again. Needs Linux.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

if sys.platform != "win32":
    import resource

from fuzz_changes import BLIND, Change, mix_with  # noqa: E402  the path is set above, for use as a command
from fuzz_loaders import Loader, foreign_files, loaders  # noqa: E402

SECONDS = 10.0  # that a case may take, on a machine that has other things to do
MEGABYTES = 1500  # that a case may take beyond those at the start; the largest picture allowed needs 1,200


@dataclass(frozen=True)
class Outcome:
    """What became of a case: accepted, refused, or a failure of some kind."""

    number: int
    kind: str  # "accepted"; "refused"; "raised" what it should not; "hung"; "died"; "ate" the memory
    words: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def failed(self) -> bool:
        return self.kind not in ("accepted", "refused")


@cache
def blind_changes() -> tuple[Change, ...]:
    return (*BLIND, mix_with(foreign_files()))


def make_case(loader: Loader, seed: int, number: int) -> tuple[str, bytes]:
    """The name and the content of a file: a good one, changed one to four times. The first cases are the good ones."""
    names = list(loader.files)
    if number < len(names):
        return names[number], loader.files[names[number]]
    rng = np.random.default_rng([seed, zlib.crc32(loader.name.encode()), number])
    name = names[rng.integers(len(names))]
    content, changes = loader.files[name], (*blind_changes(), *loader.changes * 2)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        content = changes[rng.integers(len(changes))](content, rng)
    return name, content


def most_memory() -> float:
    """The most memory of this process since :func:`forget_memory`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_memory() -> None:
    """Count anew from what is in use now: a process begins with what its parent once needed."""
    Path("/proc/self/clear_refs").write_text("5")


def ran_out(error: BaseException | None) -> bool:
    """Whether memory was not enough somewhere on the way to an exception."""
    return error is not None and (isinstance(error, MemoryError) or ran_out(error.__cause__ or error.__context__))


def attempt(loader: Loader, path: Path, number: int) -> Outcome:
    """Load a file; return what became of it, without the memory."""
    start, kind, words = time.perf_counter(), "accepted", ""
    try:
        loader.load(path)
    except BaseException as error:
        words = str(error)
        named = str(path.parent) in words or not loader.names_it
        kind = "refused" if isinstance(error, loader.refusals) and named else "raised"
        kind = "ate" if ran_out(error) else kind
        words = words if kind == "refused" else "".join(traceback.format_exception(error, limit=-4))
    return Outcome(number, kind, words[:2000], time.perf_counter() - start)


def work(loader: Loader, seed: int, first: int, runs: int, megabytes: int, pipe: Any) -> None:
    """Try cases one after the other, and tell what became of each; runs in a process of its own."""
    faulthandler.disable()  # a crash is told of by the parent
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write about each damage
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    forget_memory()
    before = most_memory()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, runs):
            name, content = make_case(loader, seed, number)
            for file, good in ({**loader.beside, name: content}).items():
                (Path(folder) / file).write_bytes(good)
            pipe.send(number)
            outcome = attempt(loader, Path(folder) / name, number)
            eaten = most_memory() - before
            pipe.send(replace(outcome, megabytes=eaten, kind="ate" if eaten > megabytes else outcome.kind))


def outcomes(
    loader: Loader, runs: int, seed: int = 0, seconds: float = SECONDS, megabytes: int = MEGABYTES, first: int = 0
) -> Iterator[Outcome]:
    """Try the cases from ``first`` to ``runs``; yield what became of each. After a failure a new process goes on."""
    context = multiprocessing.get_context("fork")  # loaders and good files are there already
    while first < runs:
        pipe, far = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(loader, seed, first, runs, megabytes, far), daemon=True)
        process.start()
        far.close()
        try:
            failed = False
            while first < runs and not failed:
                outcome = next_outcome(pipe, first, seconds)
                first, failed = first + 1, outcome.failed
                yield outcome
        finally:
            process.kill()
            process.join()


def next_outcome(pipe: Any, number: int, seconds: float) -> Outcome:
    """Wait for what becomes of a case."""
    try:
        pipe.recv()  # it has been made, and is being loaded
        if not pipe.poll(seconds):
            return Outcome(number, "hung", f"no end after {seconds:g} s", seconds)
        outcome: Outcome = pipe.recv()
        return outcome
    except EOFError:
        return Outcome(number, "died", "the process ended")


def count(found: Sequence[Outcome]) -> dict[str, Any]:
    """What is told of a loader's cases."""
    kinds = Counter(outcome.kind for outcome in found)
    return {
        "cases": len(found),
        "accepted": kinds["accepted"],
        "refused": kinds["refused"],
        "failed": sum(outcome.failed for outcome in found),
        "slowest_seconds": round(max((outcome.seconds for outcome in found), default=0), 3),
        "most_megabytes": round(max((outcome.megabytes for outcome in found), default=0), 1),
    }


def total(counts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All loaders in one line."""
    rows = counts.values()
    sums = {name: sum(row[name] for row in rows) for name in ("cases", "accepted", "refused", "failed")}
    return sums | {name: max(row[name] for row in rows) for name in ("slowest_seconds", "most_megabytes")}


def table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts as lines of text."""
    heads = ("cases", "accepted", "refused", "failed", "slowest", "most memory")
    lines = [f"{'loader':26}" + "".join(f"{head:>13}" for head in heads)]
    for name, row in counts.items():
        *numbers, slowest, most = row.values()
        lines.append(f"{name:26}" + "".join(f"{n:13,}" for n in numbers) + f"{slowest:11.2f} s" + f"{most:10.0f} MB")
    return "\n".join(lines)


def keep(loader: Loader, seed: int, outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write the file of a case that failed; return what is told of it."""
    name, content = make_case(loader, seed, outcome.number)
    path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', loader.name)}-{seed}-{outcome.number}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    case = {"loader": loader.name, "case": outcome.number, "kind": outcome.kind, "words": outcome.words}
    return case | {"file": str(path)}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="cases for each loader (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (0)")
    parser.add_argument("--loader", action="append", help="only this one; may come more than once")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"that a case may take ({SECONDS:g})")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help=f"that a case may take ({MEGABYTES})")
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that failed; by default a new one")
    parser.add_argument("--json", type=Path, help="file to write the counts to")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, or 1 if a case failed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("needs Linux, where the memory of a process can be limited")
    unknown = set(options.loader or ()) - set(loaders())
    if unknown:
        parser.error(f"expected a loader of {', '.join(loaders())}; got {', '.join(unknown)}")
    first, runs = (0, options.runs) if options.case is None else (options.case, options.case + 1)
    counts, failures, start = {}, [], time.perf_counter()
    for name in options.loader or loaders():
        loader = loaders()[name]
        cases = outcomes(loader, runs, options.seed, options.seconds, options.megabytes, first)
        found = list(tqdm(cases, name, runs - first, disable=None, leave=False))
        counts[name] = count(found)
        for outcome in found:
            if outcome.failed:
                options.keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
                failures.append(keep(loader, options.seed, outcome, options.keep))
            elif options.case is not None:
                print(f"{name}, case {outcome.number}: {outcome.kind} {outcome.words}")
    print(table(counts | {"all": total(counts)}))
    for failure in failures:
        print("\n{loader}, case {case}: {kind}; kept as {file}\n{words}".format(**failure))
    if options.json is not None:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__}
        allowed = {"seed": options.seed, "seconds_allowed": options.seconds, "megabytes_allowed": options.megabytes}
        report = allowed | {
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "versions": versions | {"safetensors": safetensors.__version__},
            "all": total(counts),
            "loaders": counts,
            "failures": failures,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
