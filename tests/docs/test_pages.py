"""The documentation's pages in a browser: `make test-docs`, which builds them before."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Site, Visit, chromium, external_links, problems_of, served
from ops import OPS, Op, each_op
from playwright.sync_api import Browser, Locator

import torch_mlxnorm
from tools import require_module
from torch_mlxnorm.bench import report

require_module("PIL", "pip install pillow")
from PIL import Image  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build/docs/html"
FIGURES = ROOT / "docs/performance"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="session")
def site(browser: Browser) -> Iterator[Site]:
    assert (PAGES / "index.html").exists(), "there are no pages: make docs"
    with served(PAGES) as base:
        yield Site(base, browser)


@pytest.fixture(scope="session")
def seen(site: Site) -> tuple[dict[str, Visit], list[str]]:
    return problems_of(site, PAGES)


def test_pages_are_sound(seen: tuple[dict[str, Visit], list[str]]) -> None:
    """No error, no broken link, no request elsewhere, nothing wider than a phone."""
    visits, problems = seen
    assert {"index.html", "performance.html", *(f"ops/{op}.html" for op in OPS)} <= set(visits)
    assert not problems, "\n".join(problems)


def test_links_elsewhere(site: Site, seen: tuple[dict[str, Visit], list[str]]) -> None:
    """Are listed, not followed."""
    links = sorted(external_links(site.base, seen[0]))
    print(*links, sep="\n")
    assert links and all(link.startswith("https://") for link in links)


SOUND = '<!doctype html><html><head><link rel="icon" href="data:,"></head><body id="top">{}</body>'
FAULTS = {
    "<p>": None,
    "<script>console.error('told')</script>": "console: told",
    "<script>undefined.thrown</script>": "script: ",
    "<img src='none.svg'>": "404: ",
    "<script src='https://example.org/a.js'></script>": "asks for https://example.org/a.js",
    "<link rel=stylesheet href='https://example.org/a.css'>": "asks for https://example.org/",
    "<a href='none.html'>there</a>": "no none.html",
    "<a href='#none'>there</a>": "no section none in index.html",
    "<a href='index.html#top'>there</a>": None,
    "<a href='https://example.org/none'>there</a>": None,
    "<div style='width: 600px'>wide</div>": "pixels wider than a phone",
}


@pytest.mark.parametrize("body", FAULTS)
def test_a_fault_is_told(browser: Browser, tmp_path: Path, body: str) -> None:
    (tmp_path / "index.html").write_text(SOUND.format(body))
    with served(tmp_path) as base:
        _, problems = problems_of(Site(base, browser), tmp_path)
    expected = FAULTS[body]
    assert any(expected in problem for problem in problems) if expected else not problems, problems


@each_op
def test_search_finds(site: Site, op: Op) -> None:
    with site.open(f"search.html?q={op.name}") as (tab, visit):
        first = tab.locator("#search-results li a").first
        first.wait_for()
        links = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any(link.split("#")[0].endswith(f"/ops/{op.name}.html") for link in links[:5]), links
    assert not visit.problems


@each_op
def test_formula(site: Site, op: Op) -> None:
    """A row for each line of the docstring's formula, as tall as text at least."""
    with site.open(f"ops/{op.name}.html") as (tab, _):
        formula = tab.locator(".formula math")
        written = (formula.get_attribute("alttext") or "").splitlines()
        rows = formula.locator("> mtable > mtr")
        texts, boxes = rows.all_text_contents(), [row.bounding_box() for row in rows.all()]
        roots = formula.locator("msqrt").count()
    documented = inspect.getdoc(getattr(torch_mlxnorm, op.name)) or ""
    assert written and all(f"    {line}\n" in documented for line in written)
    assert len(texts) == len(written) and all("=" in text for text in texts)
    assert all(box is not None and box["height"] > 12 for box in boxes)
    assert roots == sum(line.count("sqrt(") for line in written)
    results = {re.sub("_([abc])$", r"\1", result) for result in op.results}
    assert results <= {text.split("=")[0] for text in texts}


def is_readable(plot: Locator, scheme: str) -> bool:
    """Most of it is the page's background, and some of it stands out from that."""
    shades = sorted(Image.open(io.BytesIO(plot.screenshot())).convert("L").tobytes())
    count = len(shades)
    low, middle, high = shades[count // 500], shades[count // 2], shades[-count // 500]
    return middle < 60 and high > 150 if scheme == "dark" else middle > 200 and low < 100


TIMED = {
    op: sum(
        any(record["op"] == op for record in report.read_json(FIGURES / f"{device}.json")[1])
        for device in ("cpu", "cuda")
    )
    for op in OPS
}
PLOTS = {"index.html": 1, "performance.html": 2} | {f"ops/{op}.html": n for op, n in TIMED.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PLOTS)
def test_plots(site: Site, page: str, scheme: str) -> None:
    with site.open(page, color_scheme=scheme) as (tab, _):
        plots = [plot for plot in tab.locator(".plot img").all() if plot.is_visible()]
        assert len(plots) == PLOTS[page]
        for plot in plots:
            assert plot.evaluate("image => image.naturalWidth") > 200
            assert is_readable(plot, scheme)


def test_a_plot_for_the_other_mode_is_told(site: Site) -> None:
    with site.open("index.html", color_scheme="dark") as (tab, _):
        plot = tab.locator(".plot img.only-dark")
        assert is_readable(plot, "dark")
        other = tab.locator(".plot img.only-light").get_attribute("src")
        plot.evaluate("(image, src) => { image.src = src; return image.decode() }", other)
        assert not is_readable(plot, "dark")


@pytest.mark.parametrize("page", ["index.html", *(f"ops/{op}.html" for op in OPS)])
def test_a_copied_example_runs(site: Site, page: str) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with site.open(page, permissions=permissions) as (tab, _):
        block = tab.locator("div.highlight", has_text="import torch, torch_mlxnorm").first
        block.hover()
        block.locator("button.copybtn").click()
        code = tab.evaluate("navigator.clipboard.readText()")
    names: dict[str, object] = {}
    exec(code, names)
    assert "torch_mlxnorm" in names and len(names) > 4
