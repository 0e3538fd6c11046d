"""Examines torch_mlxnorm on the machine that it runs on.

    python -m torch_mlxnorm.doctor [--device auto|cpu|mps] [--sim] [--quick] [--json PATH]

Every operator against float64 in every dtype, equal bits over ten runs, the time of a call and of a
record, bandwidth beside a copy, PyTorch and MLX. The last line is the verdict; the exit code is 0
when it is PASS. The JSON file holds all that was seen, tracebacks included; it is written anew at
each section, so that it says how far a run came that did not end.

`--sim` (Linux, in a checkout) examines the Metal kernels on the simulator of tests/metal_sim.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import inspect
import json
import math
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import torch_mlxnorm
from torch_mlxnorm._checkout import from_tests
from torch_mlxnorm._examinations import SECTIONS, TIMES, Examination, Row, Setting

LIMIT = 600  # seconds, after which a run that hangs is ended


# ---- the run ------------------------------------------------------------------------------------


@dataclass
class Section:
    name: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    error: str | None = None  # a traceback

    @property
    def faults(self) -> list[str]:
        """In short."""
        rows = [row.title for row in self.rows if row.failures]
        return rows + ([self.error.splitlines()[-1]] if self.error else [])


def examine(name: str, examination: Examination, setting: Setting) -> Section:
    """Runs a section and prints it meanwhile. Whatever goes wrong is in the result."""
    meaningless = " (simulated: these times say nothing about a GPU)"
    print(f"\n{name}{meaningless if setting.simulated and name in TIMES else ''}")
    print(textwrap.indent(inspect.getdoc(examination) or "", "  "), flush=True)
    section, start, header = Section(name), time.perf_counter(), ""
    try:
        for row in examination(setting):
            if row.HEADER != header:
                header = row.HEADER
                print(f"  {header}")
            section.rows.append(row)
            print(f"  {row.line()}{'  FAIL' if row.failures else ''}", flush=True)
            for failure in row.failures[:1]:
                print(f"    {failure.splitlines()[-1]}")
    except Exception:
        section.error = traceback.format_exc()
        print(section.error, flush=True)
    section.seconds = time.perf_counter() - start
    return section


def verdict(sections: Sequence[Section], setting: Setting) -> tuple[str, str]:
    """PASS or FAIL, and the line that says of what."""
    where = setting.device + (" (simulated Metal)" if setting.simulated else "")
    of = f"torch_mlxnorm {torch_mlxnorm.__version__}, torch {torch.__version__}, {where}"
    faulty = {section.name: section.faults for section in sections if section.faults}
    if not faulty:
        return "PASS", f"PASS: {of}: {len(sections)} sections without a failure"

    def shortened(faults: list[str]) -> str:
        return ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")

    named = "; ".join(f"{name} ({shortened(faults)})" for name, faults in faulty.items())
    return "FAIL", f"FAIL: {of}: {named}"


def write(path: Path, setting: Setting, sections: Sequence[Section], short: str, line: str) -> None:
    report = {
        "format": 1,
        "verdict": short,
        "line": line,
        "setting": dataclasses.asdict(setting),
        "sections": [
            {"ok": not section.faults} | dataclasses.asdict(section) for section in sections
        ],
    }
    path.write_text(json.dumps(_without_nan(report), indent=1) + "\n")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_nan(element) for key, element in value.items()}
    if isinstance(value, list):
        return [_without_nan(element) for element in value]
    return value


def enable_simulator() -> None:
    metal_sim = from_tests("metal_sim", "doctor: --sim")
    print("simulated Metal is built first, which may take minutes", flush=True)
    try:
        metal_sim.enable()
    except RuntimeError as error:  # a tool is missing, or this is a Mac
        sys.exit(f"doctor: --sim: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_mlxnorm.doctor", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", choices=["auto", "cpu", "mps"], default="auto")
    parser.add_argument("--sim", action="store_true", help="simulated MPS (Linux, in a checkout)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rough times")
    parser.add_argument("--json", type=Path, default="torch_mlxnorm-doctor.json", metavar="PATH")
    chosen = parser.parse_args(arguments)
    if chosen.sim and chosen.device == "cpu":
        parser.error("--sim is of MPS, not of the CPU")
    if chosen.sim:
        enable_simulator()
    available = torch.backends.mps.is_available()
    if chosen.device == "mps" and not available:
        built = torch.backends.mps.is_built()
        why = "finds no Apple GPU" if built else "is built without MPS"
        sys.exit(f"doctor: there is no MPS device: torch {torch.__version__} {why}")
    device = "mps" if available and chosen.device != "cpu" else "cpu"
    setting = Setting(device, chosen.sim, chosen.quick)

    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    try:
        sections: list[Section] = []
        for name, examination in SECTIONS.items():
            write(chosen.json, setting, sections, "FAIL", f"FAIL: ended in section {name}")
            sections.append(examine(name, examination, setting))
        short, line = verdict(sections, setting)
        write(chosen.json, setting, sections, short, line)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"\nwritten to {chosen.json.resolve()}: please send it along with a report")
    print(line)
    return 0 if short == "PASS" else 1


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
