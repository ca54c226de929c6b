"""How Sphinx makes the book: ``python -m sphinx -EW docs build/docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from resnet import __version__  # noqa: E402

project = "A ResNet from scratch"
author = "its authors"
version = release = __version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "workshop.beside",
    "workshop.examples",
    "workshop.drawings",
    "workshop.links",
]
exclude_patterns = ["results", "figures", "workshop"]

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
mathjax_path = "mathjax/tex-chtml.js"  # copied from an installed package: equations need no network

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Array": "Array", "ArrayLike": "ArrayLike"}  # the names, not what they stand for
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_ref_domains = ["py", "std"]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = "A ResNet from scratch"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def skip_field(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a named tuple says of its fields by itself: "Alias for field number 0"."""
    return True if str(getattr(found, "__doc__", "")).startswith("Alias for field number") else None


def name_aliases(app: Any, what: str, name: str, found: Any, options: Any, *signature: str | None) -> tuple[Any, ...]:
    """Write type aliases within other types by their names alone."""
    return tuple(part and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) for part in signature)


def setup(app: Any) -> None:
    """Connect the two."""
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-signature", name_aliases)
