"""Whether links of the documents lead to files and headings that are there. Those to other hosts
are not followed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Of headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def broken(document: Path) -> list[str]:
    found = []
    for link in LINK.findall(CODE.sub("", document.read_text())):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = document.parent / path if path else document
        if not target.exists():
            found.append(f"{document}: {link} is not there")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            found.append(f"{document}: {link} has no such heading")
    return found


def main() -> int:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "*.md"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    # docs/site has pages that Sphinx completes; `make test-docs` follows their links.
    documents = [ROOT / name for name in listed if name and not name.startswith("docs/site/")]
    found = [text for document in documents for text in broken(document)]
    print("\n".join(found))
    print(f"{len(documents)} documents, {len(found)} broken links")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
