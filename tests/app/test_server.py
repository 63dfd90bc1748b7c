"""How the app is served: to this machine alone, and with a limit on what may be sent to it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
httpx = pytest.importorskip("httpx", reason="comes with gradio")
pytestmark = pytest.mark.filterwarnings("default")  # of the web server's libraries

from m3ae.app import serve  # noqa: E402


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return serve([str(folder / "vqa")], [folder / "data"], port=port, block=False).rstrip("/")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_upload(tmp_path: Path, number: signal.Signals) -> None:
    code = """
import os, pathlib, time
from types import SimpleNamespace
from m3ae import app
from m3ae.app import session
session.open_session = lambda *given: None
def launch(**options):
    (pathlib.Path(os.environ["GRADIO_TEMP_DIR"]) / "upload.png").touch()
    print("ready", flush=True)
    time.sleep(600)
app.build = lambda session: SimpleNamespace(launch=launch)
app.serve([])
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as app:
        assert app.stdout is not None and app.stdout.readline() == "ready\n"
        assert len(list(tmp_path.glob("m3ae-app-*/upload.png"))) == 1
        app.send_signal(number)
        assert app.wait(30) == 128 + number
    assert not list(tmp_path.glob("m3ae-app-*"))


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
