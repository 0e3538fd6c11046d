"""Writes the tables and plots of a document from the JSON that the other programs wrote.

    python -m torch_mlxnorm.bench.tables docs/performance.md

What lies between `<!-- KIND of FILE.json -->` and `<!-- end -->` is replaced; the file is beside
the document. Where there is no such file, there is nothing between.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import report
from .peers import COPY, PEERS, PLAIN
from .report import Record, ratio

BLOCK = re.compile(r"(<!-- ([\w ]+) of (\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADS = {
    PLAIN: "of plain",
    COPY: "of copy",
    "singles": "over single ops",
    "eager": "over eager",
    "compiled": "over torch.compile",
    "mlx": "over MLX",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def times(text: str) -> str:
    """A ratio's "x", and those of shapes."""
    return text.replace("x", "×")


def duration(record: Record) -> str:
    us = record["us"][1]
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.3g} µs" if us < 100 else f"{us:.0f} µs"


def measured(records: Sequence[Record]) -> list[str]:
    """The peers that there are in any line."""
    return [name for name in PEERS if any(name in record["over"] for record in records)]


def figures(record: Record, names: Iterable[str]) -> list[str]:
    return [times(ratio(record, name)) for name in names]


def of_machine(machine: Record, records: Sequence[Record]) -> str:
    return f"{report.provenance(machine)}.\n"


def by_shape(machine: Record, records: Sequence[Record]) -> str:
    mine = [record for record in records if not record["model"]]
    names = [PLAIN, COPY, *measured(mine)]
    return table(
        ["op", "shape", "dtype", "time", "GB/s", *(HEADS[name] for name in names)],
        (
            [f"`{r['op']}`", times(r["shape"]), r["dtype"], duration(r), f"{r['gb_per_s']:.1f}"]
            + figures(r, names)
            for r in mine
        ),
    )


def by_model(machine: Record, records: Sequence[Record]) -> str:
    mine = [record for record in records if record["model"]]
    names = [PLAIN, COPY, *measured(mine)]
    return table(
        ["op", "model", "shape", "dtype", "time", "GB/s", *(HEADS[name] for name in names)],
        (
            [f"`{r['op']}`", f"{r['model']}, {r['where']}", times(r["shape"]), r["dtype"]]
            + [duration(r), f"{r['gb_per_s']:.1f}", *figures(r, names)]
            for r in mine
        ),
    )


LARGE = 8 << 20  # bytes, of which memory and not the call takes the time


def large_by_op(records: Sequence[Record]) -> dict[str, list[Record]]:
    """What is over ours in the large lines of each op."""
    by_op: dict[str, list[Record]] = {}
    for record in records:
        if record["bytes"] >= LARGE:
            by_op.setdefault(record["op"], []).append(record["over"])
    return by_op


def middle(over: Sequence[Record], name: str) -> float | None:
    """The median, where there is one."""
    ratios = [each[name][1] for each in over if name in each]
    return statistics.median(ratios) if ratios else None


def summary(machine: Record, records: Sequence[Record]) -> str:
    """Of each op's large lines: medians, and the lowest share of a plain kernel."""
    peers = measured([record for record in records if record["bytes"] >= LARGE])
    rows = []
    for op, over in large_by_op(records).items():

        def shown(name: str, over: list[Record] = over) -> str:
            ratio = middle(over, name)
            return "-" if ratio is None else f"{ratio:.2f}{'×' if name in PEERS else ''}"

        lowest = f"{min(each[PLAIN][1] for each in over):.2f}"
        shares = [shown(PLAIN), lowest, shown(COPY)]
        rows.append([f"`{op}`", str(len(over)), *shares, *map(shown, peers)])
    shares = [HEADS[PLAIN], f"lowest {HEADS[PLAIN]}", HEADS[COPY]]
    heads = ["op", "lines", *shares, *(HEADS[name] for name in peers)]
    return f"Lines of {LARGE >> 20} MiB or more, medians:\n\n" + table(heads, rows)


def folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


GPU = """\
## The Metal kernels translated, on an NVIDIA GPU

    python -m torch_mlxnorm.bench --device cuda

{machine}
Kernels are timed in CUDA graphs, by the GPU's clock; tensors are used in rotation, so that they
come from memory. Plans, argument blocks and kernels are those of a Mac; driver, compiler and memory
are not.

{summary}
{shapes}
{models}"""


def gpu(machine: Record, records: Sequence[Record]) -> str:
    """A section of its own."""
    return GPU.format(
        machine=of_machine(machine, records),
        summary=summary(machine, records),
        shapes=folded("All lines by shape", by_shape(machine, records)),
        models=folded("All lines of models", by_model(machine, records)),
    )


def of_calls(machine: Record, records: Sequence[Record]) -> str:
    def cell(record: Record) -> str:
        return f"{duration(record)} ({record['of'][1]:.2f})" if "of" in record else duration(record)

    dims = {r["dim"]: None for r in records}
    cells = {(r["call"], r["dim"]): cell(r) for r in records}
    names = {r["call"]: None for r in records}
    return table(
        ["call", *(f"1×{dim}" for dim in dims)],
        ([f"`{name}`", *(cells[name, dim] for dim in dims)] for name in names),
    )


def of_threads(machine: Record, records: Sequence[Record]) -> str:
    heads = ["", "1 to 2 threads", "quartiles", "turns undisturbed"]
    return table(
        heads,
        (
            [r["call"], f"{middle:.2f}×", f"{low:.2f} to {high:.2f}"]
            + [f"{r['undisturbed']} of {r['turns']}"]
            for r in records
            for low, middle, high in [r["gain"]]
        ),
    )


def of_fresh(machine: Record, records: Sequence[Record]) -> str:
    ways = {r["way"]: None for r in records}
    times = {(r["call"], r["way"]): f"{r['us'] / 1e3:.1f} ms, {r['faults']}" for r in records}
    calls = {r["call"]: None for r in records}
    return table(
        ["time, page faults", *ways], ([f"`{c}`", *(times[c, w] for w in ways)] for c in calls)
    )


def of_models(machine: Record, records: Sequence[Record]) -> str:
    names = ["compiled", "eager"]
    return table(
        ["norm, shape", "dtype", "time", *(HEADS[name] for name in names)],
        ([r["model"], r["dtype"], duration(r), *figures(r, names)] for r in records),
    )


KINDS: dict[str, Callable[[Record, Sequence[Record]], str]] = {
    "machine": of_machine,
    "shapes": by_shape,
    "models": by_model,
    "summary": summary,
    "gpu": gpu,
    "calls": of_calls,
    "threads": of_threads,
    "fresh": of_fresh,
    "own code": of_models,
}
PLOT = "plot"


def rewritten(text: str, folder: Path) -> str:
    """The document, with what its blocks are of."""

    def block(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        path = folder / name
        if not path.exists():
            return begin + end
        if kind == PLOT:
            plot = Path(name).with_suffix("")
            return f"{begin}\n![Bandwidth over bytes]({plot}.svg) ([PNG]({plot}.png))\n\n{end}"
        return f"{begin}\n{KINDS[kind](*report.read_json(path))}\n{end}"

    return BLOCK.sub(block, text)


def plots(text: str, folder: Path) -> None:
    for _, kind, name, _ in BLOCK.findall(text):
        path = folder / name
        if kind == PLOT and path.exists():
            report.plot([path.with_suffix(s) for s in (".png", ".svg")], *report.read_json(path))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.bench.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("document", type=Path)
    document = parser.parse_args().document
    text = document.read_text()
    plots(text, document.parent)
    document.write_text(rewritten(text, document.parent))


if __name__ == "__main__":
    main()
