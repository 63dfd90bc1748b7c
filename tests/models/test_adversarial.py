"""A discriminator of patches beside the objective: who learns from what, and that nothing else changes."""

from typing import Any

import pytest
import torch

from m3ae import M3AEForGeneration, M3AEForPreTraining
from tests.models.tiny_latent import DIGITS, digits_batch, latent_config, latent_model, without

CONVOLUTIONAL = {**DIGITS["glyph"], "likelihood": "normal"}


def deceiving(weight: float = 0.1, **options: Any) -> M3AEForGeneration:
    glyph = {**CONVOLUTIONAL, "adversarial": {"weight": weight, "start": 0.5}}
    return latent_model({**DIGITS, "glyph": glyph}, **options)


def plain() -> M3AEForGeneration:
    return latent_model({**DIGITS, "glyph": CONVOLUTIONAL})


def gradients(model: M3AEForGeneration, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def step(model: M3AEForGeneration, progress: float, **batch: Any) -> Any:
    torch.manual_seed(1)
    return model(batch or digits_batch(), progress=progress)


def test_weight_0_is_the_model_without() -> None:
    model, expected = deceiving(weight=0), plain()
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in expected.state_dict().items()
    }
    found, wanted = (gradients(each, step(each, 1.0).loss) for each in (model, expected))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_each_side_learns_from() -> None:
    """Before the start the decoder learns nothing of it; after the start nothing else than the decoder does."""
    model = deceiving()
    before, after = (gradients(model, step(model, progress).loss) for progress in (0.4, 0.5))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("latent_head.decoders.glyph.") for name in changed)
    output = step(model, 0.4)
    judgement = gradients(model, output.losses["discriminator_glyph"])
    moved = {name for name, value in judgement.items() if value.any()}
    assert moved and all(name.startswith("latent_head.discriminators.glyph.") for name in moved)
    for name in moved:
        torch.testing.assert_close(judgement[name], before[name])


def test_losses_by_their_formulas() -> None:
    model = deceiving()
    discriminator = model.latent_head.discriminators["glyph"]
    for parameter in discriminator.parameters():
        torch.nn.init.zeros_(parameter)
    discriminator.layers[-1].bias.data.fill_(0.75)  # a score of 0.75 for everything
    output, without_it = step(model, 0.5), step(model, 0.4)
    losses = output.losses
    assert losses["adversarial_glyph"].item() == pytest.approx(0.5 * 0.25**2)
    assert losses["discriminator_glyph"].item() == pytest.approx(0.5 * 0.25**2 + 0.5 * 0.75**2)
    assert losses["discriminator_accuracy_glyph"].item() == 0.5  # right of real images, wrong of drawn ones
    assert (output.loss - without_it.loss).item() == pytest.approx(0.1 * 36 * 0.5 * 0.25**2, rel=1e-3)


def test_bounds_do_not_know_it() -> None:
    model, batch = deceiving(), digits_batch()
    bounds = []
    for scale in (1, 0):
        for parameter in model.latent_head.discriminators.parameters():
            parameter.data *= scale
        bounds.append(model.elbo(batch, generator=torch.Generator().manual_seed(0)).bound)
    assert torch.equal(*bounds)


def test_images_that_are_absent_are_not_judged() -> None:
    model, present = deceiving(), torch.ones(3, 6, dtype=torch.bool)
    present[0, :3] = False
    losses = []
    for nonsense in (0.0, 5.0):
        batch = without(digits_batch(), present)
        batch["glyph"]["pixel_values"][:3] = nonsense
        losses.append(step(model, 1.0, **batch).losses["discriminator_glyph"])
    assert torch.equal(*losses)


def test_a_discriminator_learns_to_tell_blurs_from_noise() -> None:
    model = deceiving(weight=1e-9)
    optimizer = torch.optim.Adam(model.latent_head.discriminators.parameters(), 1e-2)
    for _ in range(30):
        losses = step(model, 0.0).losses
        optimizer.zero_grad()
        losses["discriminator_glyph"].backward()
        optimizer.step()
    assert losses["discriminator_accuracy_glyph"] > 0.95


@pytest.mark.parametrize(
    ("glyph", "options", "message"),
    [
        ({"weight": 0.1, "start": 0.5}, {"objective": "iwae", "num_samples": 2}, "objective iwae: got an image with"),
        ({"weight": -1, "start": 0.5}, {}, "adversarial.weight must be a non-negative number, got -1"),
        ({"weight": 0.1}, {}, "adversarial.start must be a non-negative number, got None"),
        ({"weight": 0.1, "start": 2}, {}, "adversarial.start"),
        ({"weight": 0.1, "begin": 0}, {}, "begin"),
    ],
)
def test_mistakes(glyph: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_config({"glyph": {**CONVOLUTIONAL, "adversarial": glyph}}, **options)


def test_draws_of_an_autoregressive_decoder_have_no_gradient() -> None:
    glyph = {**CONVOLUTIONAL, "decoder": "autoregressive", "adversarial": {"weight": 0.1, "start": 0.5}}
    with pytest.raises(ValueError, match="whose draws have no gradient"):
        latent_config({"glyph": glyph})


def test_pre_training_refuses_it() -> None:
    image = {"kind": "image", "adversarial": {"weight": 0.1, "start": 0.5}}
    with pytest.raises(ValueError, match="is for the task generation"):
        M3AEForPreTraining(latent_config({"image": image, "text": {"kind": "text", "max_length": 14}}))
