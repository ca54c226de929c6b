"""Train a ResNet to recognise faces under a mask: ``python train.py``; ``python train.py --help`` for all options."""

from __future__ import annotations

import argparse
import sys

from resnet import __version__
from resnet.config import TrainingConfig, add_options, given_settings, read_settings
from resnet.diagnostics import overfit_one_batch, profile
from resnet.signals import Stopped
from resnet.training import resume, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 for success, 1 for failure, 2 for wrong use, 128 + the signal's number if stopped."""
    parser = make_parser()
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
    try:
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
    except KeyboardInterrupt:
        return 130  # what shells expect of a program that was interrupted
    except Stopped as stopped:
        return 128 + stopped.number
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed, as it was begun")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, named as the options; options win")
    add_options(parser)
    parser.add_argument("--overfit-one-batch", action="store_true", help="only check that one batch can be learned")
    parser.add_argument("--profile", action="store_true", help="only show time and memory of a step, layer by layer")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
