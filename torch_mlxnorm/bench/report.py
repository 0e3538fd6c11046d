"""What was timed, as a table, as JSON and as plots."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import torch_mlxnorm

from .peers import COPY, OURS, PEERS, PLAIN, Result
from .shapes import Line

Record = Mapping[str, Any]


def machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} (the Metal kernels translated to CUDA)"
    elif device == "mps":
        name = f"{platform.processor()} ({platform.mac_ver()[0]})"
    else:
        name = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        name += f", {torch.get_num_threads()} thread(s), freed memory kept"
    return {
        "device": device,
        "name": name,
        "torch": torch.__version__,
        "torch_mlxnorm": torch_mlxnorm.__version__,
    }


def record(line: Line, result: Result) -> dict[str, Any]:
    """Of a line; ratios are over ours, medians with their quartiles."""
    times = result.times
    others = [name for name in times.turns if name != OURS]
    quartiles = {name: times.speedup_quartiles(OURS, over=name) for name in others}
    return {
        "op": line.use.op,
        "model": line.use.model,
        "where": line.use.name,
        "shape": line.shape,
        "dtype": line.dtype_name,
        "bytes": result.nbytes,
        "us": [round(seconds * 1e6, 3) for seconds in times.quartiles(OURS)],
        "gb_per_s": round(result.bytes_per_second / 1e9, 1),
        "over": {name: [round(ratio, 3) for ratio in quartiles[name]] for name in others},
    }


COLUMNS = [PLAIN, COPY, *PEERS]


def head() -> str:
    return f"{'op':37} {'shape':>13} {'dtype':9}{'time':>11}{'GB/s':>7}" + "".join(
        f"{name:>9}" for name in COLUMNS
    )


def row(record: Record) -> str:
    cells = []
    for name in COLUMNS:
        ratio = record["over"].get(name)
        unit = "" if name in (PLAIN, COPY) else "x"
        cells.append(f"{'-' if ratio is None else f'{ratio[1]:.2f}{unit}':>9}")
    return (
        f"{record['op']:37} {record['shape']:>13} {record['dtype']:9}"
        f"{record['us'][1]:9.2f}us{record['gb_per_s']:7.0f}" + "".join(cells)
    )


def write_json(path: Path, machine: Record, records: Sequence[Record]) -> None:
    lines = ",\n".join(json.dumps(record) for record in records)
    path.write_text(f'{{"machine": {json.dumps(machine)},\n"lines": [\n{lines}\n]}}\n')


def plot(paths: Sequence[Path], machine: Record, records: Sequence[Record]) -> None:
    """Bandwidth over bytes, an op in each panel, with the copy's line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ops = list(dict.fromkeys(record["op"] for record in records))
    columns = min(4, len(ops))
    rows = -(-len(ops) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False, sharex=True, sharey=True
    )
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    colors = {"float32": "tab:blue", "bfloat16": "tab:orange", "float16": "tab:green"}
    for op, axis in zip(ops, axes.flat, strict=False):
        mine = sorted((r for r in records if r["op"] == op), key=lambda r: r["bytes"])
        axis.plot(
            [r["bytes"] for r in mine],
            [r["gb_per_s"] / r["over"][COPY][1] for r in mine],
            color="0.6",
            label="copy",
        )
        for dtype in dict.fromkeys(r["dtype"] for r in mine):
            points = [(r["bytes"], r["gb_per_s"]) for r in mine if r["dtype"] == dtype]
            axis.plot(*zip(*points, strict=True), "o", color=colors[dtype], label=dtype, ms=4)
        axis.set(title=op, xscale="log")
        axis.title.set_size(9)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("bytes read and written")
    for axis in axes[:, 0]:
        axis.set_ylabel("GB/s")
    axes.flat[0].legend(fontsize=7)
    figure.suptitle(f"{machine['name']}, torch {machine['torch']}")
    figure.tight_layout()
    for path in paths:
        figure.savefig(path, dpi=120)
