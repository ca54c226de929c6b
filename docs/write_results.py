"""Write the tables of README.md from the result files under docs/results: ``python docs/write_results.py``.

The result files come from

    for seed in 0 1 2; do
        python train.py --seed $seed --run-dir runs/seed$seed
        cp runs/seed$seed/results.json docs/results/train_seed$seed.json
    done
    python -m nn.gradcheck > docs/results/gradcheck.txt
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def training_table() -> str:
    """Return rank-1 accuracies of the default training, a row a method, as Markdown."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train_seed*.json"))]
    minutes = [run["epochs"][-1]["seconds"] / 60 for run in runs]
    lines = ["| rank-1 accuracy | clean | masked |", "|---|---|---|"]
    for method in runs[0]["rank1"]:
        cells = []
        for test in ("clean", "masked"):
            values = [100 * run["rank1"][method][test] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} % ({min(values):.1f} – {max(values):.1f})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    first, duration = runs[0], f"{min(minutes):.1f} to {max(minutes):.1f} minutes"
    lines += [
        "",
        f"Mean (least – most) of {len(runs)} seeds of `python train.py`, each with its own split:",
        f"{first['train_photographs']} photographs to learn from, {first['test_photographs']} to test. All methods",
        f"learned from the same photographs, clean and masked. Training took {duration} on",
        f"{first['machine']['cores']} cores. Result files: `docs/results/train_seed*.json`.",
    ]
    return "\n".join(lines)


def gradcheck_table() -> str:
    """Return the largest error of each checked layer, as Markdown."""
    worst: dict[str, float] = {}
    allowed: dict[str, str] = {}
    for line in (RESULTS / "gradcheck.txt").read_text().splitlines()[1:]:
        row = re.match(r"(.{38}) (.{20}) +([\d,]+) +(\S+) +(\S+)  (ok|FAIL)", line)
        if row and not row[2].startswith("habits"):
            layer = row[1].strip()
            worst[layer] = max(worst.get(layer, 0.0), float(row[4]))
            allowed[layer] = row[5]
    lines = ["| layer | largest relative error | allowed |", "|---|---|---|"]
    lines += [f"| {layer} | {error:.1e} | {float(allowed[layer]):.0e} |" for layer, error in worst.items()]
    return "\n".join(lines)


def written(readme: str) -> str:
    """Return the text of README.md with its tables filled in anew."""
    for name, table in (("results", training_table()), ("gradcheck", gradcheck_table())):
        pattern = rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)"
        readme = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", readme, flags=re.DOTALL)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
    print(f"wrote the tables of {path.name}")
