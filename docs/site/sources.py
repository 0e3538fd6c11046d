"""Lays out what Sphinx reads: the repository's documents, a page for each operator, and the source
files that any of these point to.

A document stays what a code host shows. Here its links become links to pages: to a section of
docs/ops.md that has become a page, to a document, or to a source file shown as a page.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import figures

import torch_mlxnorm
from torch_mlxnorm import functional
from torch_mlxnorm.bench import report, tables

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
FIGURES = ROOT / "docs/performance"
PAGES = {  # documents outside docs, and their pages
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s]+)(?=\))")
PATH = re.compile(r"\[[\w/.-]+\.md\]\(")
SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
PARAGRAPH = re.compile(r"^\*\*([\w, ]+)\.\*\* ?", re.MULTILINE)
OPERATOR = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
LEXERS = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".metal": "cpp", ".mm": "objective-c++"}

TIMES = "Times, beside those of PyTorch's code: [performance.md](performance.md).\n"
OPS = [
    name
    for name, value in vars(functional).items()
    if name in torch_mlxnorm.__all__ and inspect.isfunction(value)
]


class Layout:
    """The folder that is written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: set[str] = set()  # source files and folders that are pages already

    def write(self, page: str, text: str) -> None:
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def document(self, name: str, page: str, text: str) -> None:
        """Of the repository, or a part of one, with its links turned. One that is called by its
        path gets the title of its page."""
        text = LINK.sub(lambda match: f"/{self.target(name, match[1])}", text)
        self.write(page, PATH.sub("[](", text))

    def target(self, document: str, link: str) -> str:
        """The page, with a section, that a link in a document means."""
        path, _, section = link.partition("#")
        name = os.path.normpath(Path(document).parent / path) if path else document
        if name == "docs/ops.md" and section in OPS:
            return f"ops/{section}.md"
        if (ROOT / name).is_dir():
            name = f"{name}/README.md" if (ROOT / name / "README.md").exists() else name
        return self.page(name) + (f"#{section}" if section else "")

    def page(self, name: str) -> str:
        if name in PAGES:
            return PAGES[name]
        if Path(name).match("docs/*.md"):
            return Path(name).name
        page = f"source/{name}" if name.endswith(".md") else f"source/{name}.md"
        if name not in self.shown:
            self.shown.add(name)
            self.source(name, page)
        return page

    def source(self, name: str, page: str) -> None:
        """A file or a folder that a document points to; no part of the search."""
        path = ROOT / name
        head = "---\norphan: true\nnosearch: true\n---\n"
        if path.is_dir():
            files = (entry.name for entry in sorted(path.iterdir()) if entry.name[0] not in "._")
            self.write(page, f"{head}# {name}\n\n" + "".join(f"- `{file}`\n" for file in files))
        elif path.suffix == ".md":
            self.document(name, page, head + path.read_text())
        else:
            language = LEXERS.get(path.suffix, "text")
            fence = f"````{{code-block}} {language}\n{path.read_text()}````\n"
            self.write(page, f"{head}# {name}\n\n{fence}")


def sections(text: str) -> Iterator[tuple[str, str]]:
    return ((match[1], match[2]) for match in SECTION.finditer(text))


def readme(heading: str) -> str:
    return dict(sections((ROOT / "README.md").read_text()))[heading]


def figure_of(op: str, device: str, layout: Layout) -> str:
    machine, records = report.read_json(FIGURES / f"{device}.json")
    mine = [record for record in records if record["op"] == op]
    if not mine:
        return ""
    return figures.bandwidth(layout.folder, f"{op}-{device}", machine, mine)


def op_page(op: str, section: str, layout: Layout) -> None:
    """The docstring, then what docs/ops.md has beside it, and plots."""
    signature, _, rest = section.lstrip("\n").partition("\n\n")
    assert signature.startswith(f"    {op}("), op
    plots = "".join(figure_of(op, device, layout) for device in ("cpu", "cuda"))
    layout.document(
        "docs/ops.md",
        f"ops/{op}.md",
        f"# {op}\n\n"
        f"```{{eval-rst}}\n.. autofunction:: torch_mlxnorm.{op}\n```\n\n"
        "## In code\n\n" + PARAGRAPH.sub(r"## \1\n\n", rest) + "\n## Bandwidth\n\n"
        f"{plots or 'Not timed so far.'}\n\n{TIMES}",
    )


def ops(layout: Layout) -> None:
    """docs/ops.md without the operators, which have pages."""
    text = (ROOT / "docs/ops.md").read_text()
    for heading, body in sections(text):
        if heading in OPS:
            op_page(heading, body, layout)
    common = SECTION.sub(lambda match: "" if match[1] in OPS else match[0], text)
    tree = "".join(f"ops/{op}\n" for op in OPS)
    layout.document("docs/ops.md", "ops.md", f"{common}\n```{{toctree}}\n:hidden:\n\n{tree}```\n")


def performance(layout: Layout) -> None:
    """Tables and plots anew from the JSON."""
    document = ROOT / "docs/performance.md"

    def plot(match: re.Match[str]) -> str:
        if match[2] != tables.PLOT:
            return match[0]
        path = document.parent / match[3]
        return figures.bandwidth(layout.folder, path.stem, *report.read_json(path))

    text = tables.rewritten(document.read_text(), document.parent)
    layout.document("docs/performance.md", "performance.md", tables.BLOCK.sub(plot, text))


def index(layout: Layout) -> None:
    """The README up to its commands, with a plot, and what it says first of what is proven."""
    text, _, _ = (ROOT / "README.md").read_text().partition("## Two commands")
    example, head, rest = text.partition("| operator |")
    rest = OPERATOR.sub(r"| [`\1`](docs/ops.md#\1) |", rest)
    machine, records = report.read_json(FIGURES / "cpu.json")
    plot = figures.speedups(layout.folder, "speedups", machine, records)
    caption = tables.of_machine(machine, records)
    proven = readme("What is proven where").strip().partition("\n")[0].removesuffix(":")
    proven += " ([docs/verification.md](docs/verification.md))."
    site = (SITE / "index.md").read_text()
    parts = (f"{example}{plot}", caption, f"{head}{rest}", proven, site)
    layout.document("README.md", "index.md", "\n\n".join(parts))


def verification(layout: Layout) -> None:
    """What the README says is proven, and docs/verification.md."""
    heading = "What is proven where"
    layers = LINK.sub(lambda match: f"../{match[1]}", readme(heading))
    text = (ROOT / "docs/verification.md").read_text()
    title, _, rest = text.partition("\n")
    whole = f"# Verification\n\n## {heading}\n{layers}\n#{title}\n{re.sub('(?m)^##', '###', rest)}"
    layout.document("docs/verification.md", "verification.md", whole)


BUILT = {"ops": ops, "performance": performance, "verification": verification}


def lay_out(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    layout = Layout(folder)
    for document in sorted((ROOT / "docs").glob("*.md")):
        if (build := BUILT.get(document.stem)) is not None:
            build(layout)
        else:
            layout.document(f"docs/{document.name}", document.name, document.read_text())
    for name, page in PAGES.items():
        if page != "index.md" and (ROOT / name).exists():
            layout.document(name, page, (ROOT / name).read_text())
    layout.write("api.md", (SITE / "api.md").read_text())
    index(layout)
