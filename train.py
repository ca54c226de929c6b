"""Train a ResNet to recognise faces under a mask: ``python train.py``; ``python train.py --help`` for all options."""

from __future__ import annotations

import argparse
import sys

from nn import BackendError
from resnet.config import add_options, config_from
from resnet.diagnostics import overfit_one_batch, profile
from resnet.training import TrainingError, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 for success, 1 for failure, 2 for wrong use, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__.split(":")[0] + ".")
    add_options(parser)
    parser.add_argument("--overfit-one-batch", action="store_true", help="only check that one batch can be learned")
    parser.add_argument("--profile", action="store_true", help="only show time and memory of a step, layer by layer")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    try:
        config = config_from(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        if options.profile:
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
    except (ValueError, TypeError, OSError, MemoryError, BackendError, TrainingError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
