"""The package's step does what the published procedure does: equal losses and gradients for equal masks and pairs."""

from typing import Any

import pytest
import torch
from reference_pretraining import ReferencePreTraining
from torch import Tensor
from torch.nn import functional as F

from m3ae import M3AEForPreTraining
from m3ae.models.pairs import match_pairs
from tests.models.tiny import tiny_batch, tiny_config

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MAXIMUM = 20  # tokens that the reference pads to


def models(**overrides: Any) -> tuple[M3AEForPreTraining, ReferencePreTraining]:
    torch.manual_seed(0)
    config = tiny_config(**NO_DROPOUT, text_config=NO_DROPOUT, initializer_range=0.1, **overrides)
    model = M3AEForPreTraining(config).train()
    reference = ReferencePreTraining(config).train()
    missing, unexpected = reference.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected
    reference.mim_head.positions.copy_(model.mim_head.positions)
    return model, reference


def batches(size: int = 6) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same batch as the package and as the reference take it."""
    batch = tiny_batch(size)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    chosen = (batch["text_noise"][..., 0] < 0.3) & mask.bool() & (ids > 4)
    batch |= {"mlm_input_ids": ids.masked_fill(chosen, 127), "mlm_labels": ids.masked_fill(~chosen, -100)}
    batch |= {"image_ids": torch.arange(size), "text_ids": torch.arange(size)}
    del batch["text_noise"]
    pairs = match_pairs(
        batch["image_ids"], batch["text_ids"], torch.ones(size, dtype=torch.bool), batch["match_noise"]
    )
    assert 0 < pairs.labels.sum() < size
    fill = {"input_ids": 1, "attention_mask": 0, "mlm_input_ids": 1, "mlm_labels": -100}
    padded = {name: F.pad(batch[name], (0, MAXIMUM - ids.shape[1]), value=value) for name, value in fill.items()}
    images = {name: batch[name] for name in ("pixel_values", "image_noise")}
    return batch, padded | images | {"image_index": pairs.image_index, "itm_labels": pairs.labels}


@pytest.mark.parametrize("overrides", [{}, {"norm_pix_loss": False, "mim_layer": -1}], ids=["published", "other"])
def test_losses_and_gradients_are_equal(overrides: dict[str, Any]) -> None:
    model, reference = models(**overrides)
    ours, theirs = batches()
    output = model(**ours, schedule="separate")
    output.loss.backward()
    expected = reference(**theirs)
    sum(expected.values()).backward()
    assert set(output.losses) == set(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss, atol=1e-5, rtol=1e-5)
    expected_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values() if gradient is not None)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        if gradient is None or found[name] is None:  # what no loss reads, the reference computes or has not either
            assert not any(part is not None and part.any() for part in (gradient, found[name])), name
        else:
            torch.testing.assert_close(found[name], gradient, atol=1e-6 * largest, rtol=1e-4)


def test_in_bfloat16_they_differ_by_rounding_only() -> None:
    model, reference = models()
    ours, theirs = batches()
    exact = reference(**theirs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**ours, schedule="separate")
        rounded = reference(**theirs)
    for name, loss in exact.items():
        torch.testing.assert_close(output.losses[name].float(), loss, atol=0, rtol=0.02)
        torch.testing.assert_close(rounded[name].float(), loss, atol=0, rtol=0.02)


def test_padding_does_not_change_the_reference() -> None:
    _, reference = models()
    _, theirs = batches()
    short = {name: value[:, :12] if value.shape[1:] == (MAXIMUM,) else value for name, value in theirs.items()}
    for name, loss in reference(**theirs).items():
        torch.testing.assert_close(reference(**short)[name], loss, atol=1e-5, rtol=1e-5)
