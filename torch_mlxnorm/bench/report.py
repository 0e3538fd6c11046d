"""What was timed, as a table on screen, as JSON and as plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import torch_mlxnorm
from torch_mlxnorm._examinations import processor
from torch_mlxnorm._timing import KEEP_FREED_MEMORY, Times

from .case import Case
from .peers import COPY, OURS, PEERS, PLAIN
from .shapes import Line

Record = Mapping[str, Any]


def machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} (the Metal kernels translated to CUDA)"
    elif device == "mps":
        name = f"{processor()}, macOS {platform.mac_ver()[0]}"
    else:
        threads = torch.get_num_threads()
        kept = all(name in os.environ for name in KEEP_FREED_MEMORY)
        name = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread"
        name += f"{'s' * (threads > 1)}, freed memory {'kept' if kept else 'given back'}"
    return {
        "device": device,
        "name": name,
        "torch": torch.__version__,
        "torch_mlxnorm": torch_mlxnorm.__version__,
        "date": datetime.date.today().isoformat(),
    }


def figures(times: Times) -> dict[str, Any]:
    """Quartiles: of our microseconds, and of the others' times over ours."""
    others = [name for name in times.turns if name != OURS]
    ratios = {name: times.speedup_quartiles(OURS, over=name) for name in others}
    return {
        "us": [round(seconds * 1e6, 3) for seconds in times.quartiles(OURS)],
        "over": {name: [round(ratio, 3) for ratio in ratios[name]] for name in others},
    }


def record(line: Line, case: Case, times: Times) -> dict[str, Any]:
    nbytes = case.bytes_read + case.bytes_written
    return {
        "op": line.use.op,
        "model": line.use.model,
        "where": line.use.name,
        "shape": line.shape,
        "dtype": line.dtype_name,
        "bytes": nbytes,
        "gb_per_s": round(nbytes / times.median(OURS) / 1e9, 1),
    } | figures(times)


# ---- on screen ----------------------------------------------------------------------------------

COLUMNS = [PLAIN, COPY, *PEERS]
PLACE_HEAD = f"{'':39} {'shape':>13} {'dtype':9}"
CELLS_HEAD = f"{'time':>12}{'GB/s':>7}" + "".join(f"{name:>9}" for name in COLUMNS)


def place(line: Line) -> str:
    where = f"{line.use.model}, {line.use.name}" if line.use.model else ""
    return f"  {where:37} {line.shape:>13} {line.dtype_name:9}"


def microseconds(record: Record) -> str:
    return f"{record['us'][1]:10.2f}us"


def ratio(record: Record, name: str) -> str:
    """Fractions of memory's limits, and how many times as fast ours is as a peer."""
    unit = "" if name in (PLAIN, COPY) else "x"
    return f"{record['over'][name][1]:.2f}{unit}" if name in record["over"] else "-"


def cells(record: Record) -> str:
    ratios = "".join(f"{ratio(record, name):>9}" for name in COLUMNS)
    return f"{microseconds(record)}{record['gb_per_s']:7.1f}{ratios}"


# ---- files --------------------------------------------------------------------------------------


def write_json(path: Path, machine: Record, records: Sequence[Record]) -> None:
    """A line each."""
    lines = ",\n".join(json.dumps(record) for record in records)
    path.write_text(f'{{"machine": {json.dumps(machine)},\n"lines": [\n{lines}\n]}}\n')


def read_json(path: Path) -> tuple[Record, list[Record]]:
    report = json.loads(path.read_text())
    return report["machine"], report["lines"]


# ---- plots --------------------------------------------------------------------------------------


def provenance(machine: Record) -> str:
    return f"{machine['name']}; PyTorch {machine['torch']}; {machine['date']}"


@contextmanager
def drawing(paths: Iterable[Path], dark: bool, **figure: Any) -> Iterator[tuple[Any, Any]]:
    """Figure and axes, which are written to every path; without a background for a dark page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    text = {"svg.fonttype": "none", "svg.hashsalt": "torch_mlxnorm"}
    with pyplot.style.context(["dark_background" if dark else "default", text]):
        drawn, axes = pyplot.subplots(layout="constrained", **figure)
        yield drawn, axes
        for path in paths:
            of_kind = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
            drawn.savefig(path, dpi=80, transparent=dark, **of_kind)
        pyplot.close(drawn)


def plot(
    paths: Iterable[Path],
    machine: Record,
    records: Sequence[Record],
    columns: int = 4,
    dark: bool = False,
) -> None:
    """Bandwidth over bytes, a panel for each op."""
    by_op: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["bytes"]):
        by_op.setdefault(record["op"], []).append(record)
    ops = list(dict.fromkeys(record["op"] for record in records))
    columns = min(columns, len(ops))
    rows = -(-len(ops) // columns)
    with drawing(
        paths,
        dark,
        nrows=rows,
        ncols=columns,
        figsize=(4 * columns + 0.4, 2.7 * rows + 0.7),
        squeeze=False,
        sharex=True,
        sharey=True,
    ) as (figure, axes):
        for axis in axes.flat[len(ops) :]:
            axis.set_visible(False)
        for op, axis in zip(ops, axes.flat, strict=False):
            panel(axis, op, by_op[op])
        for axis in axes.flat[max(0, len(ops) - columns) : len(ops)]:
            axis.tick_params(labelbottom=True)  # nothing is below it
            axis.set_xlabel("bytes read and written", fontsize=8)
        legends = [axis.get_legend_handles_labels() for axis in axes.flat]
        entries = {name: handle for pair in legends for handle, name in zip(*pair, strict=True)}
        figure.legend(
            entries.values(),
            entries.keys(),
            fontsize=8,
            ncols=len(entries),
            loc="outside lower center",
            frameon=False,
        )
        figure.supylabel("GB/s", fontsize=9)
        figure.suptitle(textwrap.fill(provenance(machine), 60 * columns), fontsize=9)


def panel(axis: Any, op: str, records: Sequence[Record]) -> None:
    of_copy = {r["bytes"]: r["gb_per_s"] / r["over"][COPY][1] for r in records}
    axis.plot(*zip(*of_copy.items(), strict=True), color="0.6", label="copy")
    colors = {"float32": "tab:blue", "bfloat16": "tab:orange", "float16": "tab:green"}
    for dtype, color in colors.items():
        points = [(r["bytes"], r["gb_per_s"]) for r in records if r["dtype"] == dtype]
        if points:
            axis.plot(*zip(*points, strict=True), "o", color=color, label=dtype, ms=3)
    axis.set(xscale="log", ylim=(0, None))
    axis.minorticks_off()
    axis.set_title(op, fontsize=9)
    axis.grid(color="0.5", alpha=0.3)
