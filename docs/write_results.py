"""Write the tables of README.md and of pages of the book, and docs/claims.md, from the result files.

Run it by ``python docs/write_results.py``.

The result files come from

    for seed in 0 1 2; do
        python train.py --seed $seed --run-dir runs/seed$seed
        cp runs/seed$seed/results.json docs/results/train_seed$seed.json
    done
    python -m nn.gradcheck > docs/results/gradcheck.txt
    CASES="32x112 8x224 64x64 4x56 infer:1x112 infer:32x112"
    python -m benchmarks.step --cases "$CASES" --repetitions 9 --json benchmarks/results/step.json
    python -m benchmarks.step --cases "$CASES" --keep-blas-settings --json benchmarks/results/step_keep.json
    python -m benchmarks.data --repetitions 15 --json benchmarks/results/data.json
    python -m benchmarks.gpu    # on a machine with a GPU
    python tests/kill_training.py --kills 50 --json docs/results/kill.json
    python tests/fuzz.py --runs 1100 --json docs/results/fuzz.json
    python -m resnet.experiments all --preset full --lfw DIR --rmfrd DIR --cifar10 DIR
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from resnet.experiments import NAMES
from resnet.experiments.harness import load, minutes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
FIGURES = ROOT / "docs" / "figures"
BENCHMARKS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("use.md", "book/cupy.md", "book/fast.md"))]


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
        f"Mean (least – most) of {len(runs)} seeds and splits, {first['train_photographs']} photographs to learn from,",
        f"{first['test_photographs']} to test, clean and masked alike; {duration} each on",
        f"{first['machine']['cores']} cores (`docs/results/train_seed*.json`).",
    ]
    return "\n".join(lines)


def gradcheck_table() -> str:
    """Return the largest error of each layer over all of its cases, four layers a row, as Markdown."""
    worst: dict[str, float] = {}
    for line in (RESULTS / "gradcheck.txt").read_text().splitlines()[1:]:
        row = re.match(r"(\w+)\b.{0,37} (.{20}) +([\d,]+) +(\S+) +(\S+)  (ok|FAIL)", line)
        if row and not row[2].startswith("habits"):
            worst[row[1]] = max(worst.get(row[1], 0.0), float(row[4]))
    cells = [f"{layer} | {error:.0e}" for layer, error in worst.items()]
    cells += [" | "] * (-len(cells) % 4)
    lines = [("| " + "layer | error | " * 4).rstrip(), "|" + "---|" * 8]
    lines += [f"| {' | '.join(cells[start : start + 4])} |" for start in range(0, len(cells), 4)]
    return "\n".join(lines)


def speed_tables(folder: Path = BENCHMARKS) -> str:
    """Return our speed and memory beside PyTorch's, a row a case, as Markdown."""
    report = json.loads((folder / "step.json").read_text())
    machine, versions, settings = report["machine"], report["versions"], report["settings"]
    kernels = ", ".join(sorted({f"{lib['internal_api']} {lib['architecture']}" for lib in report["blas"]}))
    return "\n".join(
        [
            speed_table(report),
            "",
            f"{settings['arch']}, float32, {machine['cores']} cores ({machine['cpu']}): pictures a second, medians of",
            f"{settings['repetitions']} repetitions taken in turns with the faster of PyTorch's two memory layouts;",
            "the ratio is ours / PyTorch, median (least – most). Memory is the peak of the process in MB; in brackets",
            f"what came after the imports. Python {versions['python']}, PyTorch {versions['torch']},",
            f"NumPy {versions['numpy']} ({kernels}); {report['date'][:10]}, `benchmarks/results/step.json`.",
        ]
    )


def other_kernels(folder: Path = BENCHMARKS) -> str:
    """Return the same table for another CPU's kernels, and what making batches adds to an epoch, as Markdown."""
    kept, measured = (json.loads((folder / f"{name}.json").read_text()) for name in ("step_keep", "data"))
    variables = ", ".join(f"`{name}={value}`" for name, value in kept["blas_settings"]["variables"].items())
    times = {name: 1 + share for name, share in measured["adds"].items()}
    return "\n".join(
        [
            f"With {variables} set, which makes NumPy's OpenBLAS use another CPU's kernels",
            "(`benchmarks/results/step_keep.json`):",
            "",
            speed_table(kept),
            "",
            "An epoch of `train.py`, with masks, augmentation and normalisation made in the background, takes",
            f"{times['median']:.2f} ({times['min']:.2f} – {times['max']:.2f}) times as long as one on batches made",
            f"before: `python -m benchmarks.data`, {len(measured['seconds']['as in train.py'])} epochs of each.",
        ]
    )


def speed_table(report: dict[str, Any]) -> str:
    """Return the cases of one benchmark report as a Markdown table."""
    lines = ["| case | ours | PyTorch | ratio | memory ours | memory PyTorch |", "|---|---|---|---|---|---|"]
    for case in report["cases"]:
        ours, theirs = case["contestants"]["ours"], case["contestants"][case["against"]["name"]]
        ratio = case["against"]["speed"]
        cells = [
            f"{'training step' if case['kind'] == 'step' else 'inference'}, {case['batch']} × {case['size']}²",
            *(f"{one['pictures_per_second']['median']:.1f}" for one in (ours, theirs)),
            f"{ratio['median']:.2f} ({ratio['min']:.2f} – {ratio['max']:.2f})",
            *(f"{one['peak_bytes'] / 1e6:.0f} ({one['above_bytes'] / 1e6:.0f})" for one in (ours, theirs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_tables(folder: Path = BENCHMARKS) -> str:
    """Return what ``benchmarks.gpu`` found, as Markdown; without its result file, that nobody has measured yet."""
    path = folder / "gpu.json"
    if not path.exists():
        return (
            "**Not yet measured**: nobody has run it on a GPU so far. `python -m benchmarks.gpu` writes\n"
            "`benchmarks/results/gpu.json`, from which `python docs/write_results.py` makes the table for this place."
        )
    report = json.loads(path.read_text())
    sections = report["sections"]
    lines = [
        "| case | precision | ours | PyTorch | ratio | memory ours | memory PyTorch |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in sections["steps"]["cases"]:
        ours = case["contestants"]["ours"]
        theirs = case["contestants"][case["against"]["name"]] if "against" in case else None
        ratio = f"{case['against']['speed']['median']:.2f}" if theirs else ""
        speeds = [f"{one['pictures_per_second']['median']:.0f}" if one else "" for one in (ours, theirs)]
        memory = [f"{one['peak_bytes'] / 1e6:.0f}" if one else "" for one in (ours, theirs)]
        lines.append(f"| {' | '.join([case['case'], case['precision'], *speeds, ratio, *memory])} |")
    gpu, tests = sections["environment"]["gpu"], sections["tests"]
    lines += [
        "",
        "Pictures a second beside the faster of PyTorch's two memory layouts at equal precision, by the GPU's clock;",
        f"memory is the most that the pool held, in MB. {gpu['name']}, CuPy {gpu['cupy']}; {report['date'][:10]}.",
        f"GPU tests: {tests['passed']} passed, {tests['failed']} failed. Result file: `benchmarks/results/gpu.json`.",
    ]
    for run in sections["training"].get("runs", []):
        lines.append(
            f"`train.py --backend cupy --seed {run['seed']}`: clean {100 * run['clean_accuracy']:.1f} %, "
            f"masked {100 * run['masked_accuracy']:.1f} %, {run['seconds']:.0f} s."
        )
    return "\n".join(lines)


def robustness(folder: Path = RESULTS) -> str:
    """Return what the kill test and the fuzz run found, as Markdown."""
    kill, fuzz = (json.loads((folder / f"{name}.json").read_text()) for name in ("kill", "fuzz"))
    lines = [
        f"**Killed {kill['asked']} times** by SIGKILL at random moments (`python tests/kill_training.py`), from before",
        f"its first line to the middle of a write, a training survived {kill['kills']} of {kill['asked']}: every file",
        "was readable, no finished epoch was lost, and its end equalled that of an undisturbed training, bit for bit;",
        f"{kill['after_the_first_epoch']} kills came after an epoch had ended. Result file: `docs/results/kill.json`.",
        "",
        f"**{fuzz['all']['cases']:,} damaged, foreign and hostile files** (`python tests/fuzz.py`), in processes with",
        "little memory, are each read, or refused by the error that the loader promises:",
        "",
        "| loader | files | read | refused | failed | slowest | most memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in (fuzz["loaders"] | {"all": fuzz["all"]}).items():
        cells = [f"{row[key]:,}" for key in ("cases", "accepted", "refused", "failed")]
        lines.append(
            f"| {' | '.join([name, *cells])} | {row['slowest_seconds']:.1f} s | {row['most_megabytes']:,.0f} MB |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in fuzz["versions"].items())
    return "\n".join([*lines, "", f"Seed {fuzz['seed']}; {versions}. Result file: `docs/results/fuzz.json`."])


def reports(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the report of each experiment that has one, the full one rather than the quick one."""
    found = []
    for name in NAMES:
        paths = [folder / f"{name}-{preset}.json" for preset in ("full", "quick")]
        found += [json.loads(path.read_text()) for path in paths if path.exists()][:1]
    return found


def claims_table(folder: Path = RESULTS) -> str:
    """Return a row a claim: what it says, whether its criterion is met, the first sentence of what came out."""
    lines = ["| claim | criterion met? | what came out, in short |", "|---|---|---|"]
    for report in reports(folder):
        page = f"docs/claims.md#{report['experiment'].replace('_', '-')}"
        verdict = ("yes" if report["holds"] else "**no**") + (", on a part" if report["left_out"] else "")
        claim = re.sub(r"\s*\([^()]*\)", "", report["claim"])  # whose it is stands on the page of claims
        finding = re.split(r"(?<=\.)\s+(?=[A-Z])", report["finding"])[0]
        caveat = f" [*With a caveat.*]({page})" if report["caveat"] else ""
        lines.append(f"| [{report['experiment']}]({page}): {claim} | {verdict} | {finding}{caveat} |")
    return "\n".join(lines)


def claims_page(folder: Path = RESULTS, figures: Path = FIGURES) -> str:
    """Return docs/claims.md: a section a claim, with criterion, verdict, numbers and figures."""
    lines = [
        "# What the papers claim, and what came out",
        "",
        "Written by `docs/write_results.py` from the result files under `docs/results`, which the experiments wrote.",
        "Each experiment's criterion was set down in its module's docstring before it was run; what was changed after",
        "a look at results stands as a caveat. The data sets and where to get them: [data.md](data.md). To run one",
        "yourself: `python -m resnet.experiments NAME --preset quick`;",
        "without a name, the command lists all with their cost.",
    ]
    for report in reports(folder):
        lines += ["", *claim_section(report, figures)]
    return "\n".join(lines) + "\n"


def claim_section(report: dict[str, Any], figures: Path) -> list[str]:
    """Return the lines of one experiment's section."""
    name, preset = report["experiment"], report["preset"]
    machine = report["machine"]
    verdict = ("Met" if report["holds"] else "Not met") + (", on a part" if report["left_out"] else "")
    lines = [
        f"## {name.replace('_', ' ')}",
        "",
        f"**Claim:** {report['claim']}",
        "",
        f"**Criterion:** {report['criterion']}",
        "",
        f"**{verdict}.** {report['finding']}",
        "",
        *([f"**Caveat:** {report['caveat']}", ""] if report["caveat"] else []),
        load(name).table(report),
    ]
    for path in sorted(figures.glob(f"{name}*-{preset}.*")):
        lines += ["", f"![{seen(path.stem.removesuffix(f'-{preset}'), figures)}](figures/{path.name})"]
    lines += ["", *(f"Note: {note}." for note in report["left_out"])]
    lines.append(
        f"Preset {preset}, {minutes(report['seconds'])} of work on a machine with {machine['cores']} cores, "
        f"NumPy {report['versions']['numpy']}, {report['date'][:10]}. "
        f"Code: [resnet/experiments/{name}.py](../resnet/experiments/{name}.py). "
        f"Result file: [{name}-{preset}.json](results/{name}-{preset}.json)."
    )
    return lines


def seen(figure: str, folder: Path) -> str:
    """Return what one sees in a figure of the experiments, for those who do not see it; without words, its name."""
    words: dict[str, str] = json.loads((folder / "seen.json").read_text())
    return words.get(figure, f"Figure {figure}; its numbers are in the result file")


def written(page: str) -> str:
    """Return the text of a page with its tables filled in anew."""
    tables = {
        "results": training_table,
        "claims": claims_table,
        "gradcheck": gradcheck_table,
        "speed": speed_tables,
        "kernels": other_kernels,
        "gpu": gpu_tables,
        "robustness": robustness,
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name}:begin[^\n]*-->\n).*?(<!-- {name}:end -->)"
        page = re.sub(pattern, lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text()))
    (ROOT / "docs" / "claims.md").write_text(claims_page())
    print("wrote the tables of", ", ".join(str(page.relative_to(ROOT)) for page in PAGES), "and docs/claims.md")
