"""`make help` has every target, and documents name no other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools import require

ROOT = Path(__file__).parents[1]


def test_help_has_every_target() -> None:
    rules = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [require("make", "make"), "--no-print-directory"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make ([\w-]+) +\S", said, re.MULTILINE) == rules
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / ".ci/run"]
    for path in documents:
        named = re.findall(r"(?:^ *|`)make ([a-z][\w-]*)", path.read_text(), re.MULTILINE)
        assert set(named) <= set(rules), path
