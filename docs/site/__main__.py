"""Builds the documentation's pages: `make docs`."""

import argparse
import sys
from pathlib import Path

from sources import ROOT, SITE, lay_out
from sphinx.cmd.build import main as sphinx


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/site", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build/docs")
    folder = parser.parse_args().folder
    lay_out(folder / "source")
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--jobs", "auto"]
    code = sphinx([*strict, "--conf-dir", str(SITE), str(folder / "source"), str(folder / "html")])
    if code == 0:
        print(folder / "html/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
