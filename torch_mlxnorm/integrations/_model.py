"""Norms first, then the layers that they are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from ._layers import FusedLayer, Layers
from ._norms import Norms
from ._report import Entry, Report


def replace_all(model: nn.Module, undo: Callable[[], None]) -> Report:
    norms = Norms(model)
    entries = {entry.path: entry for entry in norms.replace()}
    for found in Layers(model, norms.options).fuse():
        if isinstance(found, Entry):
            entries[found.path] = found
            continue
        for name in found.fusion.absorbed:
            path = f"{found.path}.{name}"
            if path in entries:  # its kernel is one of the layer's now
                entries[path] = dataclasses.replace(entries[path], launches_after=0)
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
