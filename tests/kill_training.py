"""Kill a training again and again, and see that nothing but the epoch under way is ever lost.

    python tests/kill_training.py --kills 50

A training on a made-up set is killed by SIGKILL at random moments, from before its first line to the middle of a
write. After each kill every file in its run folder must be readable, and the checkpoint must have every epoch that was
told of. Then it goes on with ``--resume``. At the end its weights and metrics must be, to the last bit, those of a
training that was never disturbed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from tiny import quick, write_people  # noqa: E402  the path is set above, for use as a command

from nn.checkpoint import load_weights  # noqa: E402
from resnet.checkpoint import read_checkpoint  # noqa: E402


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start train.py; its output can be read once it has ended."""
    command = [sys.executable, "-u", str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_everything(folder: Path) -> None:
    """Read every file of a run folder; raises whatever is wrong with one."""
    for path in folder.glob("[!.]*"):  # hidden ones are what a killed write leaves behind
        if path.suffix == ".safetensors":
            load_weights(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            with open(path, newline="") as file:
                assert len({len(row) for row in csv.reader(file)}) == 1, f"{path} has a row that is cut short"
        else:
            Image.open(path).load()


def epochs_told(output: str) -> int:
    """Return the number of the last epoch that a training wrote a line about."""
    numbers = [int(line.split()[1].split("/")[0]) for line in output.splitlines() if line.startswith("epoch ")]
    return max(numbers, default=0)


def metrics_without_times(folder: Path) -> list[list[str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def kill_again_and_again(folder: Path, kills: int, epochs: int, seed: int = 0) -> dict[str, int]:
    """Train once undisturbed and once with so many kills; compare, and report.

    The undisturbed training tells how long this machine takes to start and to train. Kills come at random moments up to
    the start and so much of the training that all of them together use up half of it.
    """
    people, calm, killed = write_people(folder / "people"), folder / "calm", folder / "killed"

    def train() -> subprocess.Popen[str]:
        begun = (killed / "checkpoint.safetensors").exists()
        return start(["--resume", str(killed)] if begun else quick(people, killed, epochs=epochs))

    starting, training = time_training(quick(people, calm, epochs=epochs), calm)
    longest, moments, done, told, under_way = starting + training / kills, random.Random(seed), 0, 0, 0
    while done < kills:
        process = train()
        time.sleep(moments.uniform(0, longest))
        if process.poll() is not None:  # it came to its end
            break
        process.kill()
        done += 1
        output, errors = process.communicate()
        assert "rror" not in errors, errors
        told = max(told, epochs_told(output))
        if killed.exists():
            read_everything(killed)
        if (killed / "checkpoint.safetensors").exists():
            kept = len(read_checkpoint(killed).progress.history)
            assert kept >= told, f"after kill {done} the checkpoint has {kept} epochs, {told} were done"
            under_way += kept > 0
    process = train()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not list(killed.glob(".*.tmp")), "a killed write left its file behind"
    assert metrics_without_times(killed) == metrics_without_times(calm)
    for name in ("model.safetensors", "best.safetensors", "checkpoint.safetensors"):
        arrays, others = load_weights(killed / name)[0], load_weights(calm / name)[0]
        assert arrays.keys() == others.keys()
        assert all(np.array_equal(arrays[key], others[key]) for key in arrays), name
    return {"kills": done, "asked": kills, "after_the_first_epoch": under_way, "epochs": epochs}


def time_training(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Train; returns the seconds until the first checkpoint, and those from there to the end."""
    begin = time.perf_counter()
    process = start(arguments)
    while not (folder / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    first = time.perf_counter()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return first - begin, time.perf_counter() - first


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often (50)")
    parser.add_argument("--epochs", type=int, default=1500, help="of the training (1500)")
    parser.add_argument("--json", type=Path, help="file to write the report to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_again_and_again(Path(folder), options.kills, options.epochs)
    done, later = report["kills"], report["after_the_first_epoch"]
    print(
        f"{done} of {options.kills} kills survived, {later} of them after an epoch: every file readable, no finished "
        "epoch lost, and the end equal to that of an undisturbed training, bit for bit"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")
    if done < options.kills:
        print("the training ended before the last kills: give it more --epochs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
