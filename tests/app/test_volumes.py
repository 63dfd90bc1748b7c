"""The tab that generates, for a conditional VAE of volumes."""

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app")

import gradio as gr

from m3ae.app import build
from m3ae.app.session import open_session
from m3ae.data.prepare import prepare
from tests.models.tiny_latent import IMAGE, latent_model

pytestmark = [  # gradio leaves sockets and event loops open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PLANE = IMAGE | {"shape": [1, 16, 16], "private_size": 0}
SKULL = {"kind": "volume", "shape": [1, 16, 16, 16], "hidden_size": 16, "num_layers": 1, "decoder": "implicit"}
VIEWS = ["axial", "sagittal"]


def test_planes_are_offered_and_the_volume_is_drawn(tmp_path: Path) -> None:
    prepare("skull", tmp_path / "skulls", count=10, size=16, image_size=16)
    modalities = {"axial": PLANE, "sagittal": PLANE, "skull": SKULL}
    model = latent_model(modalities, kind="joint", objective="cvae", condition=VIEWS)
    model.save_pretrained(tmp_path / "model")
    app = build(open_session([str(tmp_path / "model")], [tmp_path / "skulls"], "test"))
    offered = [block for block in app.blocks.values() if isinstance(block, gr.CheckboxGroup)]
    assert [[name for name, _ in block.choices] for block in offered] == [VIEWS] and offered[0].value == VIEWS
    functions = {function.api_name: function.fn for function in app.fns.values()}
    for given in (VIEWS, VIEWS[1:]):
        assert isinstance(functions["run"](0, given, 0.7, 0), Image.Image)
    assert isinstance(functions["move"](0, VIEWS, 1, 0), Image.Image)
    with pytest.raises(gr.Error, match="no prior without its condition; give some of it"):
        functions["run"](0, [], 0.7, 0)
