"""The app in a real browser: each tab is used once, and the browser has nothing to complain about."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.filterwarnings("default"),  # of the web server's libraries
]

from m3ae.app import serve  # noqa: E402


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.Page"]:
    """The app, opened; what goes wrong in the browser is collected in `page.complaints`."""
    with pytest.MonkeyPatch.context() as patch, sync_api.sync_playwright() as playwright:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        models = [str(folder / name) for name in ("masked", "vqa", "classes", "latent")]
        address = serve(models, [folder / "data", folder / "more"], port=port, block=False)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(120_000)
        opened.complaints = []
        opened.on("console", lambda message: message.type == "error" and opened.complaints.append(message.text))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.on(
            "request",
            lambda request: opened.complaints.append(request.url) if _is_foreign(request.url, port) else None,
        )
        opened.goto(address)
        yield opened
        browser.close()


def _is_foreign(url: str, port: int) -> bool:
    return not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))


def use(page: "sync_api.Page", tab: str, button: str, folder: Path) -> "sync_api.Locator":
    """Open a tab, take an example if there is one, press a button, and return the tab's panel."""
    page.get_by_role("tab", name=tab, exact=True).click()
    panel = page.get_by_role("tabpanel").locator("visible=true")
    examples = panel.locator("button.thumbnail-item:has(img), button.gallery-item:has(img)")
    if examples.count():
        examples.first.click()
        panel.locator("[data-testid=image] img, .image-frame img").first.wait_for()
    panel.get_by_role("button", name=button, exact=True).click()
    return panel


def test_reconstruct(page: "sync_api.Page", folder: Path) -> None:
    panel = use(page, "Reconstruct", "Reconstruct", folder)
    panel.get_by_text("→").first.wait_for()
    assert page.complaints == []


def test_ask(page: "sync_api.Page", folder: Path) -> None:
    panel = use(page, "Ask", "Answer", folder)
    panel.get_by_text("%").first.wait_for()
    assert page.complaints == []


def test_classify(page: "sync_api.Page", folder: Path) -> None:
    panel = use(page, "Classify", "Classify", folder)
    panel.get_by_text("%").first.wait_for()
    assert page.complaints == []


def test_search(page: "sync_api.Page", folder: Path) -> None:
    page.get_by_role("tab", name="Search", exact=True).click()
    page.get_by_label("Find images for a text").fill("no finding")
    panel = use(page, "Search", "Find images", folder)
    panel.get_by_text("row-1").locator("visible=true").first.wait_for()
    texts = panel.get_by_text("no finding")
    before = texts.count()
    panel.get_by_role("button", name="Find texts", exact=True).click()
    sync_api.expect(texts).not_to_have_count(before, timeout=120_000)
    assert page.complaints == []


def test_generate(page: "sync_api.Page", folder: Path) -> None:
    panel = use(page, "Generate", "Generate", folder)
    panel.locator(".image-frame img, [data-testid=image] img").first.wait_for()
    panel.get_by_role("button", name="Traverse", exact=True).click()
    panel.locator(".image-frame img, [data-testid=image] img").nth(1).wait_for()
    assert page.complaints == []


def test_browse(page: "sync_api.Page", folder: Path) -> None:
    page.get_by_role("tab", name="Data", exact=True).click()  # filled when it opens
    panel = page.get_by_role("tabpanel").locator("visible=true")
    panel.locator(".image-frame img, [data-testid=image] img").first.wait_for()
    page.get_by_role("tab", name="Run", exact=True).click()
    panel = page.get_by_role("tabpanel").locator("visible=true")
    panel.get_by_text("validation/loss").locator("visible=true").first.wait_for()
    assert page.complaints == []
