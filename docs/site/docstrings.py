"""Docstrings for Sphinx: formulas as mathematics, errors as a list."""

from __future__ import annotations

import re
import textwrap

from mathml import mathml
from sphinx.application import Sphinx

from torch_mlxnorm._roles import OPS

FORMULA = re.compile(r"::\n\n((?:    .+\n)+)")
RAISES = re.compile(r"^Raises:\n((?:    .+\n)+)", re.MULTILINE)
ERROR = re.compile(r"^(\w+Error): (.*\n(?:    .*\n)*)", re.MULTILINE)


def set_formula(match: re.Match[str]) -> str:
    shown = mathml(textwrap.dedent(match[1]).strip())
    html = f'<div class="formula">{shown}</div>'.replace("\n", "&#10;")
    return f":\n\n.. raw:: html\n\n    {html}\n\n"


def list_errors(match: re.Match[str]) -> str:
    """Sentences among the errors are sentences."""
    items = ERROR.sub(r"\n``\1``\n    \2\n", textwrap.dedent(match[1]))
    return f":Raises:\n{textwrap.indent(items, '    ')}\n"


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]):
    """Before napoleon, in place. An operator's first block of code is its formula."""
    text = "\n".join(lines) + "\n"
    if name.removeprefix("torch_mlxnorm.") in OPS:
        text = FORMULA.sub(set_formula, text, count=1)
    lines[:] = RAISES.sub(list_errors, text).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    return {"parallel_read_safe": True}
