"""The app in a real browser: each tab is used, at the width of a phone too, and the browser complains of nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import NEEDS_CHROMIUM, PHONE, is_too_wide, new_page, open_page, sync_api
from tests.images.test_dicom import write as write_dicom

pytest.importorskip("gradio", reason="needs the extra app")
TABS = ["Reconstruct", "Ask", "Classify", "Report", "Search", "Generate", "Data", "Run"]
pytestmark = [
    pytest.mark.slow,
    NEEDS_CHROMIUM,
    pytest.mark.filterwarnings("default"),  # of the web server's libraries
]

from m3ae.app import serve  # noqa: E402


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["sync_api.Page"]:
    """The app, opened."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        models = [str(folder / name) for name in ("masked", "vqa", "classes", "reports", "latent")]
        with open_page(serve(models, [folder / "data", folder / "more"], port=port, block=False)) as opened:
            opened.wait_for_selector("[role=tab]")
            yield opened


def open_tab(page: "sync_api.Page", name: str) -> "sync_api.Locator":
    """Open a tab, from the menu of those that do not fit if it is there, and return its panel."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    return page.get_by_role("tabpanel").locator("visible=true")


def use(page: "sync_api.Page", tab: str, button: str) -> "sync_api.Locator":
    """Open a tab, take an example if there is one, press a button, and return the tab's panel."""
    panel = open_tab(page, tab)
    examples = panel.locator("button.thumbnail-item:has(img), button.gallery-item:has(img)")
    if examples.count():
        examples.first.click()
        panel.locator("[data-testid=image] img, .image-frame img").first.wait_for()
    panel.get_by_role("button", name=button, exact=True).click()
    return panel


def upload(panel: "sync_api.Locator", file: Path, number: int = 0) -> "sync_api.Locator":
    """Give a file to the input for images, or to the button for DICOM (`number` 1); return the image that is shown."""
    panel.locator("input[type=file]").nth(number).set_input_files(file)
    return panel.locator("[data-testid=image] img").first


def test_reconstruct(page: "sync_api.Page") -> None:
    panel = use(page, "Reconstruct", "Reconstruct")
    panel.get_by_text("→").first.wait_for()
    assert page.complaints == []


def test_ask(page: "sync_api.Page") -> None:
    panel = use(page, "Ask", "Answer")
    panel.get_by_text("%").first.wait_for()
    sync_api.expect(panel.locator(".picture img")).to_be_visible()
    assert page.complaints == []


def test_classify_a_jpeg(page: "sync_api.Page", tmp_path: Path) -> None:
    panel = open_tab(page, "Classify")
    Image.new("L", (40, 30), 200).save(tmp_path / "scan.jpeg")
    upload(panel, tmp_path / "scan.jpeg").wait_for()
    panel.get_by_role("button", name="Classify", exact=True).click()
    panel.get_by_text("%").first.wait_for()
    assert panel.get_by_label("Labels", exact=True).input_value() == "mass"
    sync_api.expect(panel.locator(".picture img")).to_be_visible()
    assert page.complaints == []


def test_report_on_a_dicom_file(page: "sync_api.Page", tmp_path: Path) -> None:
    panel = open_tab(page, "Report")
    write_dicom(tmp_path / "scan.dcm", np.arange(1200, dtype=np.uint16).reshape(30, 40))
    shown = upload(panel, tmp_path / "scan.dcm", 1)
    shown.wait_for()
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [40, 30]
    panel.get_by_role("button", name="Write a report", exact=True).click()
    sync_api.expect(panel.get_by_label("Report", exact=True)).not_to_have_value("")
    assert page.complaints == []


def test_a_renamed_pdf_is_refused(page: "sync_api.Page", tmp_path: Path) -> None:
    panel = open_tab(page, "Reconstruct")
    (tmp_path / "report.png").write_text("%PDF-1.7")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "report.png")
    page.get_by_text("not an image: report.png").first.wait_for()
    page.locator(".toast-close").first.click()
    assert page.complaints == []


def test_search(page: "sync_api.Page") -> None:
    open_tab(page, "Search")
    page.get_by_label("Find images for a text").fill("no finding")
    panel = use(page, "Search", "Find images")
    panel.get_by_text("row-1").locator("visible=true").first.wait_for()
    texts = panel.get_by_text("no finding")
    before = texts.count()
    panel.get_by_role("button", name="Find texts", exact=True).click()
    sync_api.expect(texts).not_to_have_count(before, timeout=120_000)
    assert page.complaints == []


def test_generate(page: "sync_api.Page") -> None:
    panel = use(page, "Generate", "Generate")
    panel.locator(".image-frame img, [data-testid=image] img").first.wait_for()
    panel.get_by_role("button", name="Traverse", exact=True).click()
    panel.locator(".image-frame img, [data-testid=image] img").nth(1).wait_for()
    assert page.complaints == []


def test_browse(page: "sync_api.Page") -> None:
    panel = open_tab(page, "Data")  # filled when it opens
    panel.locator(".picture img").wait_for()
    panel = open_tab(page, "Run")
    panel.get_by_text("validation/loss").locator("visible=true").first.wait_for()
    assert page.complaints == []


def test_every_tab_fits_on_a_phone(page: "sync_api.Page") -> None:
    phone = new_page(page.context.browser, page.url, PHONE)
    phone.wait_for_selector("[role=tab]")
    for name in TABS:
        open_tab(phone, name)
        assert not is_too_wide(phone), name
    assert phone.complaints == []
