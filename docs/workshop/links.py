"""Links to the project's own files: a link to a Python file of the library leads to its highlighted source.

In the Markdown such a link is a relative path, which works wherever the files lie side by side. Other files of the
project (tests, benchmarks, results) are offered for download, which is what MyST does with them by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).parents[2]


class SourceLinks(SphinxPostTransform):
    """Turn downloads of modules that the reference documents into links to their source pages."""

    default_priority = 1  # before downloads are collected

    def run(self, **options: Any) -> None:
        """Change the links of one page."""
        if self.app.builder.name != "html":
            return
        for link in list(self.document.findall(addnodes.download_reference)):
            page = source_page(self.env.docname, link["reftarget"])
            if page is not None:
                target = self.app.builder.get_relative_uri(self.env.docname, page)
                link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=target))


def source_page(docname: str, target: str) -> str | None:
    """Return the name of the page with the source of a module of nn or resnet, None for any other file."""
    docs = ROOT / "docs"
    path = (docs / target.lstrip("/") if target.startswith("/") else (docs / docname).parent / target).resolve()
    if path.suffix != ".py" or not path.is_relative_to(ROOT):
        return None
    module = path.relative_to(ROOT).with_suffix("")
    if module.parts[0] not in ("nn", "resnet"):
        return None
    return "/".join(("_modules", *(part for part in module.parts if part != "__init__")))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_post_transform(SourceLinks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
