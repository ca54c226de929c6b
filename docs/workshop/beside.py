"""The directive ``beside``: a function's code beside the words that explain it.

    :::{beside} nn.linear.linear_backward
    Words about the whole, if any.

    - `dx = dy @ weight.T`: words about this line and those below it, up to the next line that is named.
    - `dweight = x.T @ dy`: …
    :::

The code is taken from the source by the object's name, whole and in order, without its docstring, which the reference
shows. So nothing can be pasted and grow stale, and a line that is named but is not there any more fails the build. On
a wide screen words and code stand side by side, on a narrow one the words above the lines that they explain.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]


class Code(NamedTuple):
    """The source of an object.

    Attributes:
        module: dotted name of the module that it stands in.
        path: of that module's file, from the project's folder.
        lines: of the object, without its docstring.
    """

    module: str
    path: Path
    lines: list[str]


class Row(NamedTuple):
    """Lines of code, and the words beside them (nodes of docutils or whatever the caller has for words)."""

    words: list[Any]
    lines: list[str]


def find(name: str) -> tuple[Any, str]:
    """Return the object of a dotted name such as ``nn.conv.Conv2d.forward``, and the module that it was found in.

    Raises:
        LookupError: there is no such module or object.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                raise LookupError(f"expected something named {name}, but {module} has no {'.'.join(parts[end:])}")
            found = getattr(found, part)
        return found, module
    raise LookupError(f"expected a dotted name that begins with a module, got {name}")


def source(name: str) -> Code:
    """Return the code of a function, method or class, without docstring and without the indentation of its class."""
    found, module = find(name)
    found = inspect.unwrap(found)  # a decorated function's own code, not the decorator's
    lines = textwrap.dedent(inspect.getsource(found)).rstrip().splitlines()
    definition = ast.parse("\n".join(lines)).body[0]
    first = definition.body[0]  # type: ignore[attr-defined]  # every definition has a body
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return Code(module, Path(inspect.getfile(found)).resolve().relative_to(ROOT), lines)


def rows(lines: list[str], named: list[tuple[str, list[Any]]], whole: list[Any]) -> list[Row]:
    """Share the lines out: each named line begins a row of its own.

    Args:
        lines: of the code.
        named: (a part of the line that is meant, words about it), in the order of the code.
        whole: words about the lines before the first that is named.

    Raises:
        LookupError: a line is not there, or not behind the one named before it.
    """
    found, at = [Row(whole, [])], 0
    for text, words in named:
        place = next((number for number in range(at, len(lines)) if text in lines[number]), None)
        if place is None:
            raise LookupError(f"expected a line with {text!r} after line {at} of the code:\n" + "\n".join(lines))
        found[-1].lines.extend(lines[at:place])
        found.append(Row(words, [lines[place]]))
        at = place + 1
    found[-1].lines.extend(lines[at:])
    return [row for row in found if row.words or row.lines]


class Beside(SphinxDirective):
    """Set an object's code beside words; see the module."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the rows, under a line that names the object and leads to its source and its reference."""
        name = self.arguments[0]
        body = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, body)
        lists = [child for child in body.children if isinstance(child, nodes.bullet_list)]
        whole = [child for child in body.children if not isinstance(child, nodes.bullet_list)]
        try:
            named = [named_words(item) for one in lists for item in one.children]
            code = source(name)
            parts = rows(code.lines, named, whole)
        except LookupError as error:
            raise self.error(f"{{beside}} {name}: {error}") from error
        self.env.note_dependency(str(ROOT / code.path))
        block = nodes.container(classes=["beside"])
        block += self.heading(name, code)
        for row in parts:
            line = nodes.container(classes=["beside-row"])
            if row.words:
                line += nodes.container("", *row.words, classes=["beside-words"])
            if row.lines:
                text = "\n".join(row.lines)
                line += nodes.container("", nodes.literal_block(text, text, language="python"), classes=["beside-code"])
            block += line
        return [block]

    def heading(self, name: str, code: Code) -> nodes.Node:
        """Return the object's name, which links to the reference, and its file, which links to the source."""
        text = f"{{py:obj}}`{name.removeprefix(code.module + '.')} <{name}>` in [`{code.path}`](/../{code.path})"
        paragraph = nodes.container(classes=["beside-name"])
        self.state.nested_parse([text], self.content_offset, paragraph)
        return paragraph


def named_words(item: nodes.Node) -> tuple[str, list[nodes.Node]]:
    """Take a list item apart: the code that it begins with, and the words after that.

    Raises:
        LookupError: it does not begin with code.
    """
    paragraph = item.children[0] if item.children else None
    if not (isinstance(paragraph, nodes.paragraph) and isinstance(paragraph.children[0], nodes.literal)):
        raise LookupError(f"expected every item to begin with `a part of a line of code`, got {item.astext()!r}")
    literal = paragraph.children[0]
    paragraph.remove(literal)
    after = paragraph.children[0] if paragraph.children else None
    if isinstance(after, nodes.Text):
        paragraph.replace(after, nodes.Text(after.astext().lstrip(": \n")))
    return literal.astext(), list(item.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("beside", Beside)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
