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


def kill_again_and_again(folder: Path, kills: int, epochs: int, longest: float, seed: int = 0) -> dict[str, object]:
    """Train once undisturbed and once with so many kills, each within ``longest`` seconds; compare, and report."""
    people, calm, killed = write_people(folder / "people"), folder / "calm", folder / "killed"
    process = start(quick(people, calm, epochs=epochs))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    moments, told, under_way = random.Random(seed), 0, 0
    for number in range(kills):
        begun = (killed / "checkpoint.safetensors").exists()
        process = start(["--resume", str(killed)] if begun else quick(people, killed, epochs=epochs))
        time.sleep(moments.uniform(0, longest))
        assert process.poll() is None, f"it ended before kill {number + 1}: {process.communicate()}"
        process.kill()
        output, errors = process.communicate()
        assert "rror" not in errors, errors
        told = max(told, epochs_told(output))
        if killed.exists():
            read_everything(killed)
        if (killed / "checkpoint.safetensors").exists():
            kept = len(read_checkpoint(killed).progress.history)
            assert kept >= told, f"after kill {number + 1} the checkpoint has {kept} epochs, {told} were done"
            under_way += kept > 0
    process = start(["--resume", str(killed)])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not list(killed.glob(".*.tmp")), "a killed write left its file behind"
    assert metrics_without_times(killed) == metrics_without_times(calm)
    for name in ("model.safetensors", "best.safetensors", "checkpoint.safetensors"):
        arrays, others = load_weights(killed / name)[0], load_weights(calm / name)[0]
        assert arrays.keys() == others.keys()
        assert all(np.array_equal(arrays[key], others[key]) for key in arrays), name
    return {"kills": kills, "after_the_first_epoch": under_way, "epochs": epochs, "seconds_to_a_kill": [0, longest]}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often (50)")
    parser.add_argument("--epochs", type=int, default=400, help="of the training, enough to outlive the kills (400)")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds until a kill at most (4)")
    parser.add_argument("--json", type=Path, help="file to write the report to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = kill_again_and_again(Path(folder), options.kills, options.epochs, options.longest)
    print(
        f"{report['kills']} of {options.kills} kills survived: every file readable, no finished epoch lost, and the "
        "end equal to that of an undisturbed training, bit for bit"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written: {options.json}")


if __name__ == "__main__":
    main()
