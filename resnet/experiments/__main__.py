"""The command: ``python -m resnet.experiments`` lists the experiments, with a name it runs one."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from resnet.command import INTERRUPTED, end_well, make_parser
from resnet.experiments import NAMES
from resnet.experiments.harness import PRESETS, Lab, load, minutes, paragraph, run, state
from resnet.experiments.sources import ADVICE, SETS, Sources

CHECKOUT = Path(__file__).parents[2]
HOME = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path()  # an installed package writes where it is run


def table(lab: Lab, results: Path) -> str:
    """Return a table of all experiments: claim, cost, state."""
    lines = []
    for name in NAMES:
        lines.append(f"{name}: {paragraph(load(name), 'Claim')}")
        for preset in PRESETS:
            lines.append(f"    {preset:6s} {_cost(name, preset):18s} {state(name, preset, lab, results)}")
    return "\n".join([*lines, "", "run one: python -m resnet.experiments NAME --preset quick"])


def _cost(name: str, preset: str) -> str:
    return "about " + minutes(60 * load(name).PRESETS[preset].minutes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, see :mod:`resnet.command`."""
    parser = make_parser("python -m resnet.experiments", "Put the papers to the test.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; none to list them, all for all")
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="how thorough (quick: up to 10 minutes)")
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=ADVICE[name])
    parser.add_argument("--results", type=Path, default=HOME / "docs/results", help="folder of the result files")
    parser.add_argument("--figures", type=Path, default=HOME / "docs/figures", help="folder of the figures")
    parser.add_argument("--work", type=Path, default=Lab.work, help="folder of what is done so far (%(default)s)")
    parser.add_argument("--backend", choices=("auto", "numpy", "cupy"), default="auto", help="where to compute")
    parser.add_argument("--threads", type=int, default=0, help="cores to compute on, 0 for all (0)")
    options = parser.parse_args(arguments)
    names = list(NAMES) if options.names == ["all"] else options.names
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if options.threads < 0:
        parser.error(f"--threads: expected 0 or more, got {options.threads}")
    sources = Sources({name: getattr(options, name) for name in SETS})
    say = partial(print, flush=True)
    lab = Lab(sources, options.work, options.backend, options.threads)

    def work() -> int:
        if not names:
            print(table(lab, options.results))
        for name in names:
            print(f"{name}, {options.preset}: {paragraph(load(name), 'Claim')}")
            run(name, options.preset, lab, options.results, options.figures, say)
        return 0

    status = end_well(work, debug=options.debug)
    if status == INTERRUPTED:
        print("\ninterrupted: the same command goes on where it was", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
