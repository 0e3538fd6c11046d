"""Fails when Apple's Metal compiler is installed and the extension has no metallib of some op: the
build on such a machine is the first proof that the compiler takes the shaders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from torch_mlxnorm import _build

SHADERS = Path(__file__).resolve().parents[1] / "shaders"


def main() -> str | None:
    find = ["xcrun", "-sdk", "macosx", "--find", "metal"]
    if shutil.which("xcrun") is None or subprocess.run(find, capture_output=True).returncode != 0:
        print("no Metal compiler here: the extension carries the source alone")
        return None
    missing = {path.stem for path in SHADERS.glob("*.metal")} - set(_build.METALLIBS)
    if missing:
        return f"xcrun finds metal, and there is no metallib of {', '.join(sorted(missing))}"
    print(f"metallibs of {', '.join(_build.METALLIBS)}")
    return None


if __name__ == "__main__":
    sys.exit(main())
