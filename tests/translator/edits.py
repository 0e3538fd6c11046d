"""Replacements in the text of a shader, which leave its lines where they are: what both back ends
are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .msl import ADDRESS_SPACES, Program, Span


@dataclass(frozen=True)
class Edit:
    span: Span
    replacement: str


def address_space_edits(program: Program, inside: Sequence[Span]) -> list[Edit]:
    """Drop address spaces, except in text that another edit replaces."""
    edits = []
    for token in program.tokens:
        if token.text not in ADDRESS_SPACES:
            continue
        if any(span.start <= token.span.start < span.end for span in inside):
            continue
        edits.append(Edit(token.span, "const" if token.text == "constant" else ""))
    return edits


def apply(text: str, edits: Sequence[Edit]) -> str:
    pieces = []
    position = 0
    for edit in sorted(edits, key=lambda e: (e.span.start, e.span.end)):
        assert edit.span.start >= position, "overlapping edits"
        pieces.append(text[position : edit.span.start])
        pieces.append(edit.replacement)
        # Keep the lines that the replaced text had, so later lines keep their numbers.
        pieces.append("\n" * text.count("\n", edit.span.start, edit.span.end))
        position = edit.span.end
    pieces.append(text[position:])
    return "".join(pieces)
