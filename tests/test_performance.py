"""docs/performance.md has the tables of the committed figures, as torch_mlxnorm.bench.tables writes
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torch_mlxnorm.bench import report, tables

DOCUMENT = Path(__file__).parents[1] / "docs/performance.md"
FIGURES = DOCUMENT.parent / "performance"


def test_the_document_is_of_the_figures() -> None:
    text = DOCUMENT.read_text()
    assert text == tables.rewritten(text, DOCUMENT.parent), (
        f"run: python -m torch_mlxnorm.bench.tables {DOCUMENT.relative_to(DOCUMENT.parents[1])}"
    )


def test_all_figures_are_in_the_document() -> None:
    named = {DOCUMENT.parent / name for _, _, name, _ in tables.BLOCK.findall(DOCUMENT.read_text())}
    assert {path for path in FIGURES.glob("*.json")} <= named
    plots = {
        FIGURES.parent / name
        for _, kind, name, _ in tables.BLOCK.findall(DOCUMENT.read_text())
        if kind == tables.PLOT
    }
    for path in filter(Path.exists, plots):
        for suffix in (".png", ".svg"):
            assert 0 < path.with_suffix(suffix).stat().st_size < 200_000


def line(**changes: Any) -> dict[str, Any]:
    return {
        "op": "rms_norm", "model": "", "where": "", "shape": "4096x32x128", "dtype": "bfloat16",
        "bytes": 64 << 20, "us": [1700.0, 1750.4, 1800.0], "gb_per_s": 38.3,
        "over": {"plain": [0.9, 0.95, 1.0], "copy": [0.9, 0.91, 1.0], "eager": [4.0, 4.5, 5.0]},
    } | changes  # fmt: skip


MACHINE = {"device": "cuda", "name": "a GPU", "torch": "2.11.0", "date": "2026-11-30"}
LINES = [
    line(),
    line(op="rms_norm_mul", over={"plain": [0.7, 0.8, 0.9], "copy": [0.7, 0.75, 0.9]}),
    line(op="rms_norm_mul", bytes=1000, us=[1.0, 2.345, 3.0]),
    line(model="Llama 3 8B", where="hidden", us=[99.0, 123.4, 200.0]),
]
BLOCK = "before\n<!-- {} of figures/x.json -->\nold\n<!-- end -->\nafter\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    report.write_json(tmp_path / "figures/x.json", MACHINE, LINES)
    return tmp_path


def test_blocks(folder: Path) -> None:
    text = tables.rewritten(BLOCK.format("shapes"), folder)
    begin, _, end = BLOCK.format("shapes").partition("old\n")
    assert text.startswith(begin) and text.endswith(end) and "old" not in text
    row = "| `rms_norm` | 4096×32×128 | bfloat16 | 1.75 ms | 38.3 | 0.95 | 0.91 | 4.50× |"
    assert row in text.splitlines()
    assert "| 2.35 µs |" in text or "| 2.34 µs |" in text
    assert "Llama" not in text
    assert tables.rewritten(text, folder) == text
    text = tables.rewritten(BLOCK.format("models"), folder)
    assert "| `rms_norm` | Llama 3 8B, hidden | 4096×32×128 | bfloat16 | 123 µs | " in text
    assert "a GPU; PyTorch 2.11.0; 2026-11-30." in tables.rewritten(BLOCK.format("machine"), folder)


def test_summary(folder: Path) -> None:
    """Of large lines alone; a peer that a line does not have is left out."""
    text = tables.rewritten(BLOCK.format("summary"), folder)
    assert "| `rms_norm` | 2 | 0.95 | 0.95 | 0.91 | 4.50× |" in text
    assert "| `rms_norm_mul` | 1 | 0.80 | 0.80 | 0.75 | - |" in text


def test_without_figures_there_is_nothing(folder: Path) -> None:
    for kind in (*tables.KINDS, tables.PLOT):
        text = tables.rewritten(BLOCK.format(kind).replace("x.json", "y.json"), folder)
        assert text.splitlines() == [
            "before", f"<!-- {kind} of figures/y.json -->", "<!-- end -->", "after",
        ]  # fmt: skip


def test_section_on_a_gpu(folder: Path) -> None:
    text = tables.rewritten(BLOCK.format("gpu"), folder)
    assert "\n## The Metal kernels translated, on an NVIDIA GPU\n" in text
    for part in ("a GPU; PyTorch", "| lowest of plain |", "All lines by shape", "Llama 3 8B"):
        assert part in text
    assert "{" not in text


def test_calls_threads_fresh_results_and_models(folder: Path) -> None:
    figures = {
        "calls": [
            {"call": "f(x)", "dim": 64, "us": [1.0, 2.0, 3.0]},
            {"call": "f(x)", "dim": 9, "us": [1.0, 1.5, 3.0], "of": [0.4, 0.5, 0.6]},
        ],
        "threads": [{"call": "copy", "gain": [1.1, 1.5, 1.9], "turns": 9, "undisturbed": 8}],
        "fresh": [{"way": "as it is", "call": "clone", "us": 26840.0, "faults": 16385}],
        "own code": [line(model="Flux", over={"compiled": [1, 2, 3], "eager": [4, 5, 6]})],
    }
    rows = {
        "calls": "| `f(x)` | 2 µs | 1.5 µs (0.50) |",
        "threads": "| copy | 1.50× | 1.10 to 1.90 | 8 of 9 |",
        "fresh": "| `clone` | 26.8 ms, 16385 |",
        "own code": "| Flux | bfloat16 | 1.75 ms | 2.00× | 5.00× |",
    }
    for kind, lines in figures.items():
        (folder / "figures/x.json").write_text(json.dumps({"machine": MACHINE, "lines": lines}))
        assert rows[kind] in tables.rewritten(BLOCK.format(kind), folder)
