"""How the app is served: to this machine alone, and with a limit on what may be sent to it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app")
httpx = pytest.importorskip("httpx", reason="comes with gradio")
pytestmark = pytest.mark.filterwarnings("default")  # of the web server's libraries

from m3ae.app import serve  # noqa: E402


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [str(folder / name) for name in ("masked", "vqa", "classes", "latent")]
    return serve(models, [folder / "data", folder / "more"], port=port, block=False).rstrip("/")


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


def test_every_tab_answers(address: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a browser does, where there is none."""
    gradio_client = pytest.importorskip("gradio_client", reason="comes with gradio")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    image = gradio_client.handle_file(str(tmp_path / "x.png"))
    client = gradio_client.Client(address, verbose=False)
    words = client.predict(image, "large nodule", 0.5, 0.3, 0, api_name="/run")[1]
    assert "→" in words[0]["token"]
    scores = client.predict(image, "Is it large?", api_name="/run_1")[0]
    assert {row["label"] for row in scores["confidences"]} == {"yes", "no"}
    scores, decided, picture = client.predict(image, "", api_name="/classify")
    assert {row["label"] for row in scores["confidences"]} == {"mass", "fluid"} and decided == "mass"
    with Image.open(picture) as opened:
        assert opened.width > 100
    data, more = (f"{folder / name}, test" for name in ("data", "more"))
    assert {row[1] for row in client.predict("no finding", data, api_name="/find_images")[1]["data"]} == {
        "row-0",
        "row-1",
    }
    assert len(client.predict("no finding", more, api_name="/find_images")[1]["data"]) == 2, "equal images are one"
    assert len(client.predict(image, data, api_name="/find_texts")["data"]) == 2
    (tmp_path / "report.png").write_text("%PDF-1.7")
    with pytest.raises(Exception, match=r"^not an image: report\.png"):
        client.predict(gradio_client.handle_file(str(tmp_path / "report.png")), "", api_name="/classify")
    for name, inputs in {
        "/run_2": (0, ["image"], 0.7, 0),
        "/move": (0, [], 1, 0),
        "/draw": (str(folder / "data"), "test", 0),
    }.items():
        with Image.open(client.predict(*inputs, api_name=name)) as picture:
            assert picture.width > 100
    assert ["validation/loss", "1.5000"] in client.predict(str(folder / "masked"), api_name="/draw_2")[1]["data"]
    for question in (" ", None):
        with pytest.raises(Exception, match="Ask a question first"):
            client.predict(image, question, api_name="/run_1")
    with pytest.raises(Exception, match="4294967295"):
        client.predict(image, "large nodule", 0.5, 0.3, 10**30, api_name="/run")
    Image.new("1", (6000, 5000)).save(tmp_path / "large.png")
    with pytest.raises(Exception, match=r"image too large: .*6000x5000 pixels, limit 25 million"):
        client.predict(gradio_client.handle_file(str(tmp_path / "large.png")), "x", 0.5, 0.3, 0, api_name="/run")
