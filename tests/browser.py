"""A page of a real browser that remembers what went wrong in it, where there are a Chromium and playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
sync_api.expect.set_options(timeout=120_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
DESKTOP, PHONE = ({"width": width, "height": 900} for width in (1280, 390))


@contextmanager
def open_page(address: str, size: "sync_api.ViewportSize" = DESKTOP) -> Iterator["sync_api.Page"]:
    """Start a browser and open an address, as `new_page` does."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield new_page(browser, address, size)
        browser.close()


def new_page(browser: "sync_api.Browser", address: str, size: "sync_api.ViewportSize") -> "sync_api.Page":
    """Open an address; errors of the console and requests to other hosts are collected in `page.complaints`.

    A page keeps its size: to resize one made Chromium hang.
    """

    def is_foreign(url: str) -> bool:
        return not url.startswith((address, "data:", "blob:"))

    page = browser.new_page(viewport=size)
    page.set_default_timeout(120_000)
    page.complaints = []
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: is_foreign(request.url) and page.complaints.append(request.url))
    page.goto(address)
    return page


def is_too_wide(page: "sync_api.Page") -> bool:
    """Return whether one has to scroll to the side to see all of a page."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
