"""How the app is served: to this machine alone, and with a limit on what may be sent to it."""

import socket
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
httpx = pytest.importorskip("httpx", reason="comes with gradio")
pytestmark = pytest.mark.filterwarnings("default")  # of the web server's libraries

from m3ae.app.server import serve  # noqa: E402


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return serve([str(folder / "vqa")], [folder / "data"], port=port, block=False).rstrip("/")


def test_it_listens_to_this_machine_alone(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(httpx.ConnectError):
        httpx.get(address.replace("127.0.0.1", "127.0.0.2"))


@pytest.mark.parametrize(("megabytes", "status"), [(19, 200), (21, 413)])
def test_uploads_are_limited(address: str, megabytes: int, status: int) -> None:
    file = ("scan.png", bytes(megabytes * 2**20), "image/png")
    assert httpx.post(f"{address}/gradio_api/upload", files={"files": file}).status_code == status


def test_files_of_this_machine_are_not_served(address: str, folder: Path) -> None:
    secret = folder / "vqa" / "config.json"
    assert httpx.get(f"{address}/gradio_api/file={secret}").status_code == 403
