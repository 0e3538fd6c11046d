"""Builds the macOS wheel on Linux and checks it: setup.py runs as on a Mac (tests/darwin), with
zig's compiler and the headers and libraries of PyTorch's macOS wheel.

    make wheel-macos [MACOS_TORCH=2.13.0]

What is published is built on a Mac, with metallibs: .github/workflows/wheels.yml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cross_compile.product import python_headers  # noqa: E402
from cross_compile.wheels import exports, unpack  # noqa: E402
from darwin import ROOT, Mac  # noqa: E402

from wheels.check import check  # noqa: E402

# Kept, with build.log, to look at what went wrong.
FOLDER = ROOT / ".cache/wheel-macos"
DIST = ROOT / "build/wheel-macos"
TOOLS = Path(__file__).with_name("apple_tools.py")
PROGRAM = f'#!/bin/sh\nexec "{{python}}" "{TOOLS}" "$0" "$@"\n'


def build(torch_version: str) -> Path:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    environment = {
        "MLXNORM_WHEEL": "local",
        "MLXNORM_PYTHON_HEADERS": str(python_headers(FOLDER / "python")),
        "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count())),
    }
    mac = Mac(FOLDER, environment=environment, program=PROGRAM)
    mac.torch.symlink_to(unpack(torch_version))
    shutil.rmtree(DIST, ignore_errors=True)
    done = mac.setup("bdist_wheel", "--dist-dir", str(DIST))
    (FOLDER / "build.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}\nthe build failed")
    (wheel,) = DIST.glob("*.whl")
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("torch", nargs="?", default="2.13.0")
    torch_version = parser.parse_args().torch
    report = check(build(torch_version), exports(torch_version))
    print(report)
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
