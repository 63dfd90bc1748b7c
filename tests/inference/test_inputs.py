"""Saved models whose files are damaged, and arguments of the wrong type."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3ae import M3AEForPreTraining
from m3ae.inference import load_model, read_images, word_attention
from m3ae.precision import find_device
from tests.tasks.tiny_finetuning import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_model(tmp_path_factory.mktemp("models") / "masked", M3AEForPreTraining))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"hidden_size": "wide"}, "config.json of .* is not that of a model of this version"),
        ("config.json", {"image_config": 3}, "config.json of .* is not that of a model of this version"),
        ("config.json", {"text_config": [1]}, "config.json of .* is not that of a model of this version"),
        ("config.json", {"architectures": 3}, "the model in .* is a model of unknown class"),
        ("tokenizer_config.json", "[]", "the processor in .* cannot be used"),
        ("tokenizer.json", "{}", "the processor in .* cannot be used"),
        ("tokenizer.json", None, "the processor in .* cannot be used"),
        ("processor_config.json", "3", "the processor in .* cannot be used"),
        ("processor_config.json", {"image_processor": {"image_mean": None}}, "the processor in .* cannot be used"),
    ],
)
def test_a_damaged_model_is_named(folder: Path, tmp_path: Path, name: str, change: Any, message: str) -> None:
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    if isinstance(change, dict):
        change = json.dumps(json.loads((damaged / name).read_text()) | change)
    if change is None:
        (damaged / name).unlink()
    else:
        (damaged / name).write_text(change)
    with pytest.raises(ValueError, match=message):
        load_model(damaged, [M3AEForPreTraining])


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_of_this_machine_is_named(name: str) -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=f"device: got {name!r}, expected one of this machine, such as cpu"):
        find_device(name)


def test_a_list_is_not_one_and_one_is_not_a_list(folder: Path) -> None:
    model, processor = load_model(folder, [M3AEForPreTraining])
    with pytest.raises(TypeError, match=r"text: got \[\], expected one text, or None"):
        word_attention(model, processor, Image.new("L", (32, 32)), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="paths: got a single bytes, expected a list of files"):
        read_images(b"")  # type: ignore[arg-type]
