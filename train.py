"""Train a ResNet to recognise faces under a mask: ``python train.py``; ``python train.py --help`` for all options."""

from __future__ import annotations

import argparse
import sys

from resnet.command import end_well, make_parser
from resnet.config import TrainingConfig, add_options, given_settings, read_settings
from resnet.diagnostics import overfit_one_batch, profile
from resnet.training import resume, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, see :mod:`resnet.command`."""
    parser = train_parser()
    options = parser.parse_args(arguments)
    given = given_settings(options)
    try:
        settings = {} if options.config is None else read_settings(options.config)
        config = TrainingConfig(**{**settings, **given})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    others = ("config", "profile", "overfit_one_batch", "run_dir")
    if options.resume is not None and any(getattr(options, name, None) for name in others):
        parser.error(
            "--resume goes on with a run, in its folder and with its settings: give it without --config, "
            "--run-dir, --profile and --overfit-one-batch"
        )

    def work() -> int:
        if options.resume is not None:
            resume(options.resume, given)
        elif options.profile:
            print(profile(config))
        elif options.overfit_one_batch:
            loss, accuracy = overfit_one_batch(config)
            learned = accuracy == 1 and loss < 0.1
            print("learned by heart: good" if learned else "not learned: something is wrong, or it needs more steps")
            return 0 if learned else 1
        else:
            run(config)
        return 0

    return end_well(work, debug=options.debug)


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser("train.py", (__doc__ or "").split(":")[0] + ".")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed, as it was begun")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, named as the options; options win")
    add_options(parser)
    parser.add_argument("--overfit-one-batch", action="store_true", help="only check that one batch can be learned")
    parser.add_argument("--profile", action="store_true", help="only show time and memory of a step, layer by layer")
    return parser


if __name__ == "__main__":
    sys.exit(main())
