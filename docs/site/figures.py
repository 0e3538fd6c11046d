"""Plots of the committed figures, for a light and for a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch_mlxnorm.bench import report, tables
from torch_mlxnorm.bench.report import Record

MODES = ("light", "dark")
PEERS = {"eager": ("eager PyTorch", "tab:blue"), "compiled": ("torch.compile", "tab:orange")}


def image(name: str, alt: str, wide: bool = True) -> str:
    """Markdown that shows what the page's mode needs. The files lie in `figures`. On a phone a wide
    one is scrolled."""
    shown = "\n".join(
        f"```{{image}} /figures/{name}-{mode}.svg\n:class: only-{mode}\n:alt: {alt}\n```"
        for mode in MODES
    )
    return f":::{{container}} plot{' wide' * wide}\n{shown}\n:::\n"


def paths(folder: Path, name: str) -> dict[str, Path]:
    return {mode: folder / "figures" / f"{name}-{mode}.svg" for mode in MODES}


def bandwidth(folder: Path, name: str, machine: Record, records: Sequence[Record]) -> str:
    """Writes the plots; the Markdown that shows them."""
    for mode, path in paths(folder, name).items():
        report.plot([path], machine, records, columns=2, dark=mode == "dark")
    wide = len({record["op"] for record in records}) > 1
    return image(name, f"bandwidth over bytes, {machine['name']}", wide)


def speedups(folder: Path, name: str, machine: Record, records: Sequence[Record]) -> str:
    """How many times as fast as PyTorch, bars for each op: medians of large lines."""
    large = tables.large_by_op(records)
    ops = list(reversed(large))
    for mode, path in paths(folder, name).items():
        height = 0.32 * len(ops) + 1
        with report.drawing([path], mode == "dark", figsize=(7, height)) as (figure, axis):
            for number, (peer, (said, color)) in enumerate(PEERS.items()):
                ratios = [tables.middle(large[op], peer) or 0 for op in ops]
                places = [place + 0.2 - 0.4 * number for place in range(len(ops))]
                bars = axis.barh(places, ratios, 0.38, color=color, label=f"over {said}")
                axis.bar_label(bars, fmt="%.1f×", fontsize=7, padding=2)
            axis.axvline(1, color="0.5", linewidth=0.8)
            axis.set_yticks(range(len(ops)), ops, fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel("times as fast, operands of 8 MiB and more", fontsize=8)
            figure.legend(fontsize=8, ncols=2, loc="outside upper center", frameon=False)
    return image(name, f"times as fast as PyTorch, {machine['name']}")
