"""The documentation's site in a real browser: no error, and no page that is wider than a phone."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.browser import DESKTOP, NEEDS_CHROMIUM, PHONE, is_too_wide, open_page

pytest.importorskip("material", reason="needs the extra docs")
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
ROOT = Path(__file__).parents[1]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # links and anchors among pages are checked
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_opens_and_fits(site: Path, address: str, size: dict[str, int]) -> None:
    names = sorted(str(path.parent.relative_to(site)) for path in site.rglob("index.html"))
    assert len(names) > 20
    with open_page(address, size) as page:
        for name in names:
            page.goto(f"{address}{name}/")
            assert not is_too_wide(page), name
            pictures = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
            assert page.evaluate(pictures) == [], name
        assert page.complaints == []
