"""The latent pass beside the masked ones."""

from pathlib import Path

import pytest
import torch

from m3ae import M3AEForGeneration, M3AEForPreTraining
from tests.models.tiny import tiny_batch, tiny_model

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1, "private_size": 2}
LATENT = {
    "size": 5,
    "num_tokens": 2,
    "free_bits": 0.0,
    "weight": 0.5,
    "modalities": {"image": {"kind": "image", **SMALL}, "text": {"kind": "text", "max_length": 14, **SMALL}},
}


def given(batch: dict[str, torch.Tensor], model: M3AEForGeneration) -> dict[str, dict[str, torch.Tensor]]:
    """What `M3AEForGeneration` takes: images in [0, 1]."""
    image = model.config.image_config
    mean, std = (torch.tensor(part)[:, None, None] for part in (image.image_mean, image.image_std))
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {"image": {"pixel_values": batch["pixel_values"] * std + mean}, "text": text}


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_it_is_that_of_the_generator_and_leaves_the_masked_passes_alone(schedule: str, tmp_path: Path) -> None:
    half = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125]} if schedule == "joint" else {}
    model, batch = tiny_model(schedule=schedule, latent=LATENT, image_config=half), tiny_batch()
    plain = tiny_model(schedule=schedule)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "latent_head" not in name})
    output = model(**batch, beta=0.5, generator=torch.Generator().manual_seed(3))
    masked = plain(**batch)
    for name, loss in masked.losses.items():
        torch.testing.assert_close(output.losses[name], loss)
    torch.testing.assert_close(output.loss, masked.loss + 0.5 * output.losses["latent"])
    model.save_pretrained(tmp_path)
    generator = M3AEForGeneration.from_pretrained(tmp_path).eval()
    expected = generator(given(batch, generator), beta=0.5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(output.losses["latent"], expected.loss, rtol=1e-4, atol=1e-2)
    assert set(output.losses) == {"mim", "mlm", "itm", "latent", "kl", "nll_image", "nll_text"}


def test_every_parameter_learns_and_what_is_absent_is_not_read() -> None:
    model, batch = tiny_model(latent=LATENT), tiny_batch()
    present = torch.tensor([True, True, False, False])
    batch |= {"image_present": present, "text_present": ~present | (torch.arange(4) == 0)}
    batch["pixel_values"] = torch.where(present[:, None, None, None], batch["pixel_values"], torch.nan)
    output = model(**batch, generator=torch.Generator().manual_seed(0))
    assert output.loss.isfinite() and output.losses["nll_image"].isfinite()
    output.loss.backward()
    for name, parameter in model.latent_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_other_modalities_are_refused() -> None:
    speech = {"speech": {"kind": "sequence", "shape": [4, 3]}}
    with pytest.raises(
        ValueError, match=r"M3AEForPreTraining has a text \(encoder roberta\) and the images of one view"
    ):
        tiny_model(latent={"size": 5, "modalities": speech})
    assert isinstance(tiny_model(latent=LATENT), M3AEForPreTraining)
