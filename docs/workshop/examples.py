"""The examples of the book, run one after another, page by page: ``python -m workshop.examples linear.md`` in ``docs``.

A fenced block marked ``python`` is an example: with ``>>>`` a doctest, whose output must come out as it stands, without
it plain code, which must run. The examples of one page share their names, as if they were typed into one session. The
test command runs every page, and so does the build of the book (:func:`setup`): a changed number fails both.
"""

from __future__ import annotations

import contextlib
import doctest
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sybil import Sybil
from sybil.example import SybilFailure
from sybil.parsers.markdown import PythonCodeBlockParser

DOCS = Path(__file__).parents[1]
NOT_RUN = ("use.md",)  # needs a trained network and files of the reader's
PRINT_OPTIONS: dict[str, Any] = {"precision": 4, "suppress": True, "linewidth": 88}

_BOOK = Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS)], path=str(DOCS), pattern="*.md")


def pages() -> list[Path]:
    """Return the pages whose examples are run."""
    return sorted(path for path in (*DOCS.glob("*.md"), *DOCS.glob("book/*.md")) if path.name not in NOT_RUN)


def run(page: Path) -> int:
    """Run all examples of a page and return how many there are.

    Raises:
        AssertionError: examples print something else than what stands there, or fail; says which, and where.
    """
    examples, failures = list(_BOOK.parse(page).examples()), []
    with np.printoptions(**PRINT_OPTIONS), matplotlib.rc_context({"backend": "agg"}), contextlib.chdir(DOCS.parent):
        for example in examples:
            try:
                example.evaluate()
            except SybilFailure as failure:
                failures.append(str(failure))
            except Exception as error:
                failures.append(f"Example at {page}, line {example.line}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError("\n\n".join(failures))
    return len(examples)


def main() -> int:
    """Run the pages named on the command line, or all; return 1 if an example failed."""
    status = 0
    for page in [page for page in pages() if page.name in sys.argv[1:] or not sys.argv[1:]]:
        start = time.perf_counter()
        try:
            print(f"{page.name}: {run(page)} examples in {time.perf_counter() - start:.1f} s")
        except AssertionError as error:
            print(f"{page.name}:\n{error}")
            status = 1
    return status


def setup(app: Any) -> dict[str, Any]:
    """Let the build of the book run the examples of each page that it reads."""
    from sphinx.util import logging

    logger = logging.getLogger(__name__)

    def run_examples(_: Any, name: str, text: list[str]) -> None:
        page = DOCS / f"{name}.md"
        if page in pages():
            try:
                run(page)
            except AssertionError as error:
                logger.warning("an example does not say what it does: %s", error, location=name, type="examples")

    app.connect("source-read", run_examples)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.exit(main())
