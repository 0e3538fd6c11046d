"""Looks at a folder of pages with headless Chromium, and says what is wrong with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from tools import require, require_module

require_module("playwright", "pip install playwright")
from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright  # noqa: E402

WIDE: ViewportSize = {"width": 1400, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the browser is asked."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which the folder is, on this machine alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Of Debian: Playwright's own download is not needed."""
    path = require("chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """What a page did and has."""

    page: str
    problems: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # absolute
    anchors: set[str] = field(default_factory=set)


@dataclass
class Site:
    """Pages at an address, opened one after another."""

    base: str
    browser: Browser

    @contextmanager
    def open(self, page: str, **options: Any) -> Iterator[tuple[Page, Visit]]:
        """Notes what goes wrong until it is closed; asks for nothing elsewhere."""
        visit = Visit(page)
        context = self.browser.new_context(viewport=WIDE, **options)

        def within(route: Route) -> None:
            if route.request.url.startswith(self.base):
                route.continue_()
            else:
                visit.problems.append(f"asks for {route.request.url}")
                route.abort()

        context.route("**/*", within)
        tab = context.new_page()
        note = visit.problems.append
        tab.on("console", lambda said: said.type == "error" and note(f"console: {said.text}"))
        tab.on("pageerror", lambda error: note(f"script: {error}"))
        tab.on("response", lambda r: r.status >= 400 and note(f"{r.status}: {r.url}"))
        try:
            tab.goto(self.base + page)
            yield tab, visit
        finally:
            context.close()

    def visit(self, page: str) -> Visit:
        with self.open(page) as (tab, visit):
            visit.links = tab.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
            visit.anchors = set(tab.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
            tab.set_viewport_size(PHONE)
            shown = "document.documentElement"
            excess = tab.evaluate(f"{shown}.scrollWidth - {shown}.clientWidth")
            if excess > 0:
                visit.problems.append(f"{excess} pixels wider than a phone")
            return visit


def pages_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))


def broken_links(base: str, folder: Path, visits: Mapping[str, Visit]) -> list[str]:
    """Those to pages, files or sections that there are not."""
    problems = []
    for visit in visits.values():
        for link in visit.links:
            if not link.startswith(base):
                continue
            url, section = urldefrag(link)
            target = unquote(urlsplit(url).path).lstrip("/") or "index.html"
            if not (folder / target).is_file():
                problems.append(f"{visit.page}: no {target}")
            elif section and target in visits and unquote(section) not in visits[target].anchors:
                problems.append(f"{visit.page}: no section {section} in {target}")
    return problems


def external_links(base: str, visits: Mapping[str, Visit]) -> set[str]:
    found = {urljoin(base, link) for visit in visits.values() for link in visit.links}
    return {link for link in found if not link.startswith(base)}


def problems_of(site: Site, folder: Path) -> tuple[dict[str, Visit], list[str]]:
    """Every page visited, and all that is wrong."""
    visits = {page: site.visit(page) for page in pages_of(folder)}
    found = [f"{visit.page}: {text}" for visit in visits.values() for text in visit.problems]
    return visits, found + broken_links(site.base, folder, visits)
