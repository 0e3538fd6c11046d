"""Norms first, then the layers that they are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from torch import nn

from ._attention import Attentions
from ._layers import FusedLayer, Layers
from ._norms import Norms
from ._report import Entry, Report


def replace_all(model: nn.Module, undo: Callable[[], None]) -> Report:
    entries = {entry.path: entry for entry in Norms(model).replace()}

    def is_part_of_another(paths: Iterable[str]) -> None:
        """Their kernels are another one's now."""
        for path in paths:
            if path in entries:
                entries[path] = dataclasses.replace(entries[path], launches_after=0)

    for entry, held in Attentions(model).fuse():
        entries[entry.path] = entry
        is_part_of_another(held)
    for found in Layers(model).fuse():
        if isinstance(found, Entry):
            entries[found.path] = found
            continue
        is_part_of_another(f"{found.path}.{name}" for name in found.fusion.absorbed if name)
        if found.following is not None:
            is_part_of_another([found.following])
        entries[found.path] = of_layer(found)
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return Report(sorted(entries.values(), key=lambda entry: order[entry.path]), undo)


def of_layer(found: FusedLayer) -> Entry:
    calls = ", ".join(dict.fromkeys(found.fusion.calls))
    return Entry(
        found.path,
        type(found.layer).__name__,
        calls,
        found.equal,
        found.fusion.elementwise,
        len(found.fusion.calls),
    )
