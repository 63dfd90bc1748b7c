"""Encoders written back for other libraries; those of each family are exported in test_vision_sources.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from m3ae import M3AEForPreTraining, M3AEImageProcessor, M3AEProcessor
from m3ae.cli import cli
from m3ae.data.tokenizer import train_tokenizer
from m3ae.transfer.exported import export_encoder
from tests.models.published import assert_close, encode, images, shake
from tests.models.tiny import tiny_batch, tiny_model
from tests.models.tiny_latent import latent_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[M3AEForPreTraining, Path]:
    """A model, and its folder."""
    folder, model = tmp_path_factory.mktemp("model"), shake(tiny_model(text_config={"vocab_size": 270}))
    model.save_pretrained(folder)
    image_processor = M3AEImageProcessor.for_size(32, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    model.config.image_config.image_mean, model.config.image_config.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    model.save_pretrained(folder)
    M3AEProcessor(image_processor, train_tokenizer(["a text"], 270)).save_pretrained(folder)
    return model, folder


def run(folder: Path, output: Path, encoder: str) -> str:
    result = CliRunner().invoke(
        cli, ["export", "--model", str(folder), "--output", str(output), "--encoder", encoder], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_text_encoder(model: tuple[M3AEForPreTraining, Path], tmp_path: Path) -> None:
    ours, folder = model
    assert f"transformers.AutoModel.from_pretrained('{tmp_path / 'text'}')" in run(folder, tmp_path / "text", "text")
    batch = {name: tiny_batch()[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "text").eval()(**batch).last_hidden_state
        assert_close(theirs, ours.m3ae.text_encoder(**batch).last_hidden_state)
    words = AutoTokenizer.from_pretrained(tmp_path / "text").get_vocab()
    assert words == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_the_image_encoder(model: tuple[M3AEForPreTraining, Path], tmp_path: Path) -> None:
    ours, folder = model
    run(folder, tmp_path / "image", "image")
    theirs = AutoModel.from_pretrained(tmp_path / "image").eval()
    with torch.no_grad():
        assert_close(theirs.post_layernorm(theirs(images()).last_hidden_state), encode(ours))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "image")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.crop_size["height"] == 32
    with pytest.raises(FileExistsError, match=r"holds .* already"):
        export_encoder(ours, "image", tmp_path / "image")


def test_images_are_made_square_as_before_or_not_at_all(tmp_path: Path) -> None:
    export_encoder(tiny_model(image_config={"resize": "stretch"}), "image", tmp_path / "image")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "image")
    assert not processor.do_center_crop and processor.size["height"] == processor.size["width"] == 32
    with pytest.raises(ValueError, match=r"image_config\.resize is 'pad', and neither transformers nor timm keeps"):
        export_encoder(tiny_model(image_config={"resize": "pad"}), "image", tmp_path / "padded")


@pytest.mark.parametrize(
    "options", [{"rope_theta": 100.0, "qk_norm": True}, {"qk_norm": True, "layer_norm_eps": 1e-4}]
)
def test_what_no_library_has(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"Neither transformers nor timm has a .* with all of \{'hidden_act'.*qk_norm"
    ):
        export_encoder(tiny_model(image_config=options), "image", tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_a_model_without_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no image encoder of its trunk to export"):
        export_encoder(latent_model(), "image", tmp_path / "image")
