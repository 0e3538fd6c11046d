"""Prints the requirements of the named extras of pyproject.toml, so that they can be installed
before the project itself is built."""

import re
import sys
from pathlib import Path

text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
extras = dict(re.findall(r"^(\w+) = \[(.*)\]$", section, re.MULTILINE))
print(*(name for extra in sys.argv[1:] for name in re.findall(r'"([^"]+)"', extras[extra])))
