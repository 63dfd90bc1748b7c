"""Whatever a picture comes as, the processor gives what it gives for the 8-bit picture that preparing makes of it."""

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import M3AEImageProcessor, M3AEProcessor
from m3ae.data.tokenizer import train_tokenizer
from m3ae.images.files import load_image
from tests.images.test_dicom import write

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
COLOUR = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], axis=-1)
PROCESSOR = M3AEImageProcessor.for_size(32)


def values(images: Any, **options: Any) -> np.ndarray:
    return PROCESSOR(images, return_tensors="np", **options)["pixel_values"]


GREY, RGB = values(Image.fromarray(RAMP)), values(Image.fromarray(COLOUR))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.int32) * 16),
        Image.fromarray(RAMP.astype(np.float32) / 255),
        RAMP,
        RAMP.astype(np.uint16) * 16,
        RAMP / 255,
        RAMP[..., None],
        torch.from_numpy(RAMP),
        torch.from_numpy(RAMP[None] / np.float32(255)).requires_grad_(),
        torch.from_numpy(RAMP.astype(np.float32)).bfloat16(),
    ],
    ids=lambda image: getattr(image, "mode", None) or str(image.dtype),
)
def test_grey_pictures_of_any_kind(image: Any) -> None:
    np.testing.assert_array_equal(values(image), GREY)


@pytest.mark.parametrize("scale", [1, 255])
def test_colour_arrays_of_either_range_and_layout(scale: int) -> None:
    array = COLOUR / np.float32(scale)
    for image in (array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        np.testing.assert_array_equal(values(image), RGB)
    both = np.stack([array, array[::-1]])
    np.testing.assert_array_equal(values(both), values([both[0], both[1]]))
    np.testing.assert_array_equal(values(both[:1].transpose(0, 3, 1, 2)), RGB)


def test_lists_of_different_kinds_and_sizes() -> None:
    images = [RAMP, Image.fromarray(COLOUR), [COLOUR / 255, torch.from_numpy(RAMP[:40, :80] / 255)]]
    found = values(images)
    np.testing.assert_array_equal(found[:3], np.concatenate([GREY, RGB, RGB]))
    np.testing.assert_array_equal(found[3:], values(Image.fromarray(RAMP[:40, :80])))


def test_files_of_every_kind_are_read_as_preparing_reads_them(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    for file in (tmp_path / "a.png", write(tmp_path / "b.dcm", RAMP.astype(np.uint16) * 16, bits=12)):
        content = file.read_bytes()
        for source in (file, str(file), content, base64.b64encode(content).decode()):
            np.testing.assert_array_equal(values(source), GREY)
    data = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    np.testing.assert_array_equal(values([data, RAMP]), np.concatenate([GREY, GREY]))
    upright = values(load_image(tmp_path / "turned.png"))
    np.testing.assert_array_equal(values(Image.open(tmp_path / "turned.png")), upright)
    with pytest.raises(ValueError, match=r"^image missing: absent\.png$"):
        values(str(tmp_path / "absent.png"))


def test_an_address_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "a.png")
    answer = SimpleNamespace(content=(tmp_path / "a.png").read_bytes(), raise_for_status=lambda: answer)
    session = SimpleNamespace(get=lambda address, **_: {"https://example.org/a.png": answer}[address])
    monkeypatch.setattr("m3ae.models.processing.get_session", lambda: session)
    np.testing.assert_array_equal(values("https://example.org/a.png"), GREY)


def test_what_is_not_to_be_rescaled_keeps_its_values() -> None:
    shares = COLOUR / np.float32(255)
    raw: dict[str, Any] = {"do_resize": False, "do_center_crop": False, "do_normalize": False}
    found = values(shares, do_rescale=False, **raw)
    np.testing.assert_array_equal(found[0], shares.transpose(2, 0, 1))
    np.testing.assert_allclose(values(shares, do_rescale=False), RGB, atol=1e-5)
    np.testing.assert_allclose(values(RAMP / 255, do_rescale=False), GREY, atol=1e-5)
    tripled = values(3 * shares, rescale_factor=1 / 3, **raw)
    np.testing.assert_allclose(tripled[0], shares.transpose(2, 0, 1), atol=1e-6)


def test_grey_stays_grey_where_colour_is_not_wanted() -> None:
    plain = {"do_convert_rgb": False, "do_normalize": False}
    assert values(RAMP, **plain).shape == values(Image.fromarray(RAMP), **plain).shape == (1, 1, 32, 32)
    assert values(np.dstack([COLOUR, RAMP]), **plain).shape == (1, 4, 32, 32)


def test_opacity_lays_a_picture_on_white() -> None:
    opaque = np.dstack([COLOUR, np.full_like(RAMP, 255)])
    for image in (opaque, opaque / 255, Image.fromarray(opaque), opaque.transpose(2, 0, 1)):
        np.testing.assert_array_equal(values(image), RGB)
    white = values(np.full_like(RAMP, 255))
    np.testing.assert_array_equal(values(np.dstack([COLOUR, np.zeros_like(RAMP)])), white)


@pytest.mark.parametrize("size", [32, {"shortest_edge": 32}])
@pytest.mark.parametrize("crop_size", [32, [32, 32], (32, 32)])
def test_sizes_are_numbers_or_lists(size: Any, crop_size: Any, tmp_path: Path) -> None:
    M3AEImageProcessor(size=size, crop_size=crop_size).save_pretrained(tmp_path)
    for processor in (
        M3AEImageProcessor(size=size, crop_size=crop_size),
        M3AEImageProcessor.from_pretrained(tmp_path),
    ):
        np.testing.assert_array_equal(processor(COLOUR, return_tensors="np")["pixel_values"], RGB)
    assert M3AEImageProcessor(size=[20, 40])(COLOUR, do_center_crop=False)["pixel_values"][0].shape == (3, 20, 40)


def test_what_is_no_picture_is_named() -> None:
    with pytest.raises(TypeError, match="images: got int, expected a picture of Pillow"):
        values(3)
    with pytest.raises(ValueError, match=r"got an array of shape \(5, 8, 8\), expected"):
        values(np.zeros((5, 8, 8)))


def test_tensors_of_texts_are_padded_unless_told_otherwise() -> None:
    processor = M3AEProcessor(PROCESSOR, train_tokenizer(["one", "two words and more"], 300))
    texts = ["one", "two words and more"]
    padded = processor(text=texts, padding=True, return_tensors="pt")
    batch = processor(images=[RAMP, RAMP], text=texts, return_tensors="pt")
    assert torch.equal(batch["input_ids"], padded["input_ids"]) and batch["pixel_values"].shape == (2, 3, 32, 32)
    lengths = [len(ids) for ids in processor(text=texts)["input_ids"]]
    assert lengths[0] < lengths[1] == padded["attention_mask"].shape[1]
    longer = processor(text=texts, text_kwargs={"padding": "max_length", "max_length": 20}, return_tensors="pt")
    assert longer["input_ids"].shape == (2, 20)
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=texts, padding=False, return_tensors="pt")
