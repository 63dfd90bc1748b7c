"""Images that are no squares: what is cut off, stretched or padded, and that padding counts nowhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from m3ae import (
    M3AEConfig,
    M3AEForClassification,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEImageProcessor,
    M3AEModel,
    M3AEProcessor,
)
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference.inputs import encode_pixels
from m3ae.models.fusion import Stream
from m3ae.models.modalities import BatchOptions, read_inputs, trunk_modalities
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.processing import check_processor
from m3ae.models.retrieval import ImagesOnDemand
from tests.models.tiny import tiny_batch, tiny_config, tiny_of
from tests.models.tiny_latent import STUDY, latent_model, study_batch

MODES = ("crop", "pad", "stretch")
ENCODERS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean of the patches": {"class_token": False},
    "registers": {"num_registers": 2, "pre_norm": False},
    "rotary": {"rope_theta": 100.0, "num_registers": 2},
}


def radiograph(size: tuple[int, int] = (64, 128), border: int = 0) -> Image.Image:
    """Noise of a size (W, H) between two borders of 8 rows."""
    pixels = np.random.default_rng(0).integers(0, 255, size[::-1], dtype=np.uint8)
    pixels[:8] = pixels[-8:] = border
    return Image.fromarray(pixels)


def masks() -> Tensor:
    """(4, 32, 32): no padding, then that of images of 16×32, 32×14 and 32×8 pixels in patches of 8."""
    mask = torch.ones(4, 32, 32, dtype=torch.bool)
    mask[1, :, :8] = mask[1, :, 24:] = False
    mask[2, :9] = mask[2, 23:] = False
    mask[3, :12] = mask[3, 20:] = False
    return mask


REAL = torch.tensor([16, 8, 8, 8])  # patches with a pixel of the image


def batch(**options: Any) -> dict[str, Any]:
    return tiny_batch() | {"pixel_mask": masks(), "image_ids": torch.arange(4), "text_ids": torch.arange(4)} | options


def model_of(schedule: str = "separate", encoder: str = "class token") -> M3AEForPreTraining:
    options = {"itc_weight": 1.0, "schedule": schedule, "image_config": ENCODERS[encoder] | {"resize": "pad"}}
    return tiny_of(M3AEForPreTraining, **options)  # type: ignore[return-value]


@pytest.mark.parametrize("mode", MODES)
def test_borders_of_a_long_radiograph_reach_the_model_unless_it_is_cropped(mode: str) -> None:
    model = tiny_of(M3AEModel, image_config={"resize": mode})
    processor = M3AEImageProcessor.for_size(32, mode)
    shown = [model(**processor(radiograph(border=value), return_tensors="pt")).pooler_output for value in (0, 255)]
    assert torch.equal(*shown) == (mode == "crop")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 128), (97, 60), (32, 32), (300, 5), (31, 32)])
def test_training_sees_the_pixels_of_the_processor(mode: str, size: tuple[int, int]) -> None:
    image = trunk_modalities(tiny_config(image_config={"resize": mode}))["image"]
    found = image.batch([radiograph(size), None], BatchOptions(for_trunk=True), [np.random.default_rng(0)] * 2)
    expected = M3AEImageProcessor.for_size(32, mode)(radiograph(size), return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"][:1], expected["pixel_values"], rtol=0, atol=1e-6)
    assert ("pixel_mask" in expected) == (mode == "pad")
    assert ("pixel_mask" in found) == (mode == "pad" and size != (32, 32))
    if "pixel_mask" in found:
        assert torch.equal(found["pixel_mask"][0], expected["pixel_mask"][0].bool()) and found["pixel_mask"][1].all()


def test_a_square_is_the_same_in_every_mode() -> None:
    image = radiograph((50, 50))
    crop, pad, stretch = (M3AEImageProcessor.for_size(32, mode)(image, return_tensors="pt") for mode in MODES)
    assert torch.equal(crop["pixel_values"], pad["pixel_values"])
    assert torch.equal(crop["pixel_values"], stretch["pixel_values"])
    model = model_of()
    inputs = encode_pixels(model, _Processor("pad"), [image])  # type: ignore[arg-type]
    assert [*inputs] == ["pixel_values"], "the fast path of attention"
    expected = model.m3ae(**inputs).image_hidden_state
    torch.testing.assert_close(model.m3ae(**pad).image_hidden_state, expected, atol=1e-6, rtol=0)


class _Processor:
    def __init__(self, mode: Any) -> None:
        self.image_processor = M3AEImageProcessor.for_size(32, mode)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padded_patches_are_as_patches_that_are_left_out(encoder: str) -> None:
    trunk, inputs = model_of(encoder=encoder).m3ae, batch()
    for row in range(4):
        pixels, mask = inputs["pixel_values"][row : row + 1], inputs["pixel_mask"][row : row + 1]
        found = trunk.encode_image(pixels, pixel_mask=mask)
        assert found.mask is not None and found.mask.sum() == 1 + REAL[row]
        ids_keep = found.mask[:, 1:].nonzero()[None, :, 1]
        expected = trunk.encode_image(torch.where(mask[:, None], pixels, 0), ids_keep)
        torch.testing.assert_close(found.tokens[:, found.mask[0]], expected.tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_what_fills_the_padding_changes_nothing(schedule: str, encoder: str) -> None:
    model, inputs = model_of(schedule, encoder), batch()
    expected = model(**inputs)
    filled = torch.where(masks()[:, None], inputs["pixel_values"], torch.nan)
    output = model(**inputs | {"pixel_values": filled})
    for name, value in output.losses.items():
        assert torch.equal(value, expected.losses[name]), name
    loss = model.train()(**inputs | {"pixel_values": filled}).loss
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_the_masked_pass_hides_and_predicts_real_patches_only(schedule: str) -> None:
    model, inputs = model_of(schedule), batch()
    output, real = model(**inputs), masks().unfold(1, 8, 8).unfold(2, 8, 8).any(-1).any(-1).flatten(1)
    assert output.mim_mask.sum(1).tolist() == [12, 6, 6, 6], "three in four of the real ones"
    assert not (output.mim_mask & ~real).any()
    target = model.mim_target(torch.where(masks()[:, None], inputs["pixel_values"], 0))
    error = (output.mim_logits - target).square().mean(-1)
    torch.testing.assert_close(output.losses["mim"], error[output.mim_mask].mean())
    hidden = output.mim_mask.view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    changed = torch.where(hidden[:, None], 9.0, inputs["pixel_values"])
    again = model(**inputs | {"pixel_values": changed}).mim_logits
    torch.testing.assert_close(again[output.mim_mask], output.mim_logits[output.mim_mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_masks_without_padding_change_nothing(schedule: str) -> None:
    model, inputs = model_of(schedule), batch()
    for mask in (torch.ones_like(masks()), torch.zeros_like(masks())):  # nothing but padding: an absent image
        image_present = mask.flatten(1).any(1)
        output = model(**inputs | {"pixel_mask": mask, "image_present": image_present})
        expected = model(**inputs | {"pixel_mask": None, "image_present": image_present})
        for name, value in output.losses.items():
            torch.testing.assert_close(value, expected.losses[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", [M3AEModel, M3AEForClassification])
def test_a_row_does_not_depend_on_its_batch(model_class: type[M3AEPreTrainedModel]) -> None:
    model = tiny_of(model_class)
    names = ("pixel_values", "input_ids", "attention_mask", "pixel_mask")
    inputs, key = {name: batch()[name] for name in names}, "pooler_output" if model_class is M3AEModel else "logits"
    together = model(**inputs)[key]
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in inputs.items() if row or name != "pixel_mask"}
        torch.testing.assert_close(model(**alone)[key][0], together[row], atol=1e-5, rtol=0)


def test_each_view_has_its_own_padding() -> None:
    trunk = tiny_of(M3AEModel, views=["frontal", "lateral"])
    pixels, mask = batch()["pixel_values"].view(2, 2, 3, 32, 32), masks().view(2, 2, 32, 32)
    both = trunk.encode_image(pixels, pixel_mask=mask)
    for number, view in enumerate(both.views()):
        alone = trunk.encode_image(pixels[:, number], view=number, pixel_mask=mask[:, number])
        assert view.mask is not None and alone.mask is not None and torch.equal(view.mask, alone.mask)
        torch.testing.assert_close(view.tokens[view.mask], alone.tokens[alone.mask], atol=1e-5, rtol=0)


def test_padded_and_other_images_are_scored_together() -> None:
    model, inputs = tiny_of(M3AEForImageTextRetrieval), batch()
    text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])

    def encode(rows: list[int]) -> Stream:
        mask = None if rows == [0] else inputs["pixel_mask"][rows]
        return model.encode_image(inputs["pixel_values"][rows], pixel_mask=mask)

    found = model.score(text, ImagesOnDemand(encode, 4, batch_size=1).select(torch.arange(4)))
    expected = model.score(text, encode([0, 1, 2, 3]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    loss = model(
        **{name: inputs[name] for name in inputs if "noise" not in name}, negatives=torch.tensor([[1], [2], [3], [0]])
    ).loss
    assert loss.isfinite()


def test_a_latent_model_explains_the_pixels_of_the_image_only() -> None:
    glyph = {"kind": "image", "encoder": "mlp", "shape": [1, 32, 32], "hidden_size": 16, "num_layers": 1}
    model = latent_model({"glyph": glyph | {"private_size": 2}, **STUDY})
    data: dict[str, Any] = study_batch() | {"glyph": {"pixel_values": torch.rand(4, 1, 32, 32)}}
    for name in ("glyph", "frontal", "lateral"):
        data[name]["pixel_mask"] = masks()
    options: dict[str, Any] = {"joint": True, "eps": torch.zeros(1, 4, model.latent.total_size)}
    options["text_noise"] = {"text": torch.zeros(1, 4, 11)}
    expected = model.elbo(data, **options)
    for name in ("glyph", "frontal", "lateral"):
        data[name]["pixel_values"] = torch.where(masks()[:, None], data[name]["pixel_values"], torch.nan)
    assert torch.equal(model.elbo(data, **options).bound, expected.bound)
    z = torch.zeros(4, model.latent.total_size)
    found, mean = model.log_likelihoods(data)["glyph"](z), model.decode(z, ["glyph"])["glyph"]
    targets = read_inputs(data, model.latent_head.modalities).targets["glyph"]["pixel_values"]
    pixels = torch.distributions.Normal(mean, 1.0).log_prob(targets) * masks()[:, None]
    torch.testing.assert_close(found, pixels.sum((1, 2, 3)))


def test_the_mode_is_saved_and_old_models_crop(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path / "pad")
    saved = M3AEProcessor(M3AEImageProcessor.for_size(32, "pad"), train_tokenizer(["a text"], 270))
    saved.save_pretrained(tmp_path / "pad")
    again, processor = M3AEModel.from_pretrained(tmp_path / "pad"), AutoProcessor.from_pretrained(tmp_path / "pad")
    inputs = processor(images=radiograph(), return_tensors="pt")
    assert inputs["pixel_mask"].sum() == 32 * 16 and not inputs["pixel_values"][0, :, :, :8].any()
    assert again.config.image_config.resize == processor.image_processor.resize_mode == "pad"
    torch.testing.assert_close(again(**inputs).pooler_output, model.m3ae(**inputs).pooler_output, atol=1e-5, rtol=0)
    old = model.config.to_dict()
    del old["image_config"]["resize"]
    assert M3AEConfig.from_dict(old).image_config.resize == M3AEImageProcessor.for_size(32).resize_mode == "crop"


def test_what_contradicts_is_refused() -> None:
    for mode in MODES:
        config = tiny_config(image_config={"resize": mode}).image_config
        for other in MODES:
            processor = M3AEImageProcessor.for_size(32, other)
            if other == mode:
                check_processor(processor, config)
                continue
            with pytest.raises(ValueError, match=f"resize '{other}', but image_config of the model says '{mode}'"):
                check_processor(processor, config)
    with pytest.raises(ValueError, match=r"image_config\.resize"):
        tiny_config(image_config={"resize": "squeeze"})
    with pytest.raises(ValueError, match=r"pixel_mask is of shape \(4, 16, 16\); expected \(4, 32, 32\)"):
        model_of().m3ae(pixel_values=batch()["pixel_values"], pixel_mask=torch.ones(4, 16, 16))
