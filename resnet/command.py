"""What all commands share: ``--version``, ``--debug``, and how they end.

Exit status: 0 success, 1 failure, 2 wrong use (by argparse), 128 + its number if a signal ended the work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from resnet import __version__
from resnet.signals import Stopped
from resnet.text import printable

INTERRUPTED = 130  # 128 + SIGINT: what shells expect


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--version`` and ``--debug``.

    Args:
        prog: how the command is called, e.g. "python -m resnet.models".
        description: what it does, in a sentence.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)  # --epoch is a mistake
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def end_well(work: Callable[[], int], *, debug: bool) -> int:
    """Do a command's work; turn what goes wrong into one line on standard error and an exit status.

    Args:
        work: returns the exit status.
        debug: let errors through, with their traceback.
    """
    try:
        status = work()
        sys.stdout.flush()  # here, where a reader that has gone is noticed
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Stopped as stopped:
        return 128 + stopped.number
    except BrokenPipeError:  # as in: … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return 1
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, ImportError) as error:
        if debug:
            raise
        words = str(error) or type(error).__name__
        print("error: " + "\n".join(map(printable, words.split("\n"))), file=sys.stderr)
        return 1


def whole_number(least: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``least`` on for argparse."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return number

    return read


def not_empty(text: str) -> str:
    """Return the text, of which argparse shall make an error if it is empty: "" would be the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty text")
    return text
