"""Studies of several views: each is a stream of its own, shares the image encoder, and may be missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3ae import (
    M3AEForClassification,
    M3AEForGeneration,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
    M3AEModel,
)
from m3ae.models.encoders import denormalize_images
from tests.models.published import shake
from tests.models.tiny import tiny_batch, tiny_of

VIEWS = ["frontal", "lateral"]
PRESENT = torch.tensor([[True, True], [True, False], [False, True], [True, True]])


def studies(present: Tensor | None = PRESENT) -> dict[str, Any]:
    """A batch of two views and a text, and all noise of the masked passes."""
    batch: dict[str, Any] = tiny_batch()
    generator = torch.Generator().manual_seed(1)
    batch["pixel_values"] = torch.randn(4, 2, 3, 32, 32, generator=generator)
    batch["image_noise"] = torch.rand(4, 2, 16, generator=generator)
    return batch if present is None else batch | {"image_present": present}


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    names = ("pixel_values", "input_ids", "attention_mask", "image_present")
    return {name: batch[name] for name in names if name in batch}


@pytest.fixture(params=["separate", "joint"])
def model(request: pytest.FixtureRequest) -> M3AEForPreTraining:
    return tiny_of(M3AEForPreTraining, views=VIEWS, itc_weight=1.0, schedule=request.param)  # type: ignore[return-value]


def test_what_stands_in_an_absent_view_changes_nothing(model: M3AEForPreTraining) -> None:
    batch = studies()
    expected = model(**batch)
    batch["pixel_values"] = torch.where(PRESENT[..., None, None, None], batch["pixel_values"], torch.nan)
    output = model(**batch, image_ids=torch.arange(4))
    assert output.losses.keys() == {"mim", "mlm", "itm", "itc"}
    for name in output.losses:
        torch.testing.assert_close(output.losses[name], expected.losses[name])


def test_each_view_hides_patches_of_its_own_and_predicts_them(model: M3AEForPreTraining) -> None:
    output = model(**studies())
    assert output.mim_logits.shape == (4, 2, 16, 192)
    assert output.mim_mask.sum(-1).tolist() == [[12, 12], [12, 0], [0, 12], [12, 12]]
    assert not torch.equal(output.mim_mask[0, 0], output.mim_mask[0, 1])
    target = model.mim_target(studies()["pixel_values"].flatten(0, 1)).unflatten(0, (4, 2))
    error = (output.mim_logits - target).square().mean(-1)
    torch.testing.assert_close(output.losses["mim"], error[output.mim_mask].mean())


def test_the_order_of_the_batch_changes_nothing() -> None:
    trunk, order = tiny_of(M3AEModel, views=VIEWS), torch.tensor([2, 0, 3, 1])
    batch = inputs(studies())
    expected = trunk(**batch).pooler_output[order]
    pooled = trunk(**{name: value[order] for name, value in batch.items()}).pooler_output
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)


def test_a_view_that_is_absent_is_as_one_that_is_not_given() -> None:
    trunk, batch = tiny_of(M3AEModel, views=VIEWS), inputs(studies(torch.tensor([[True, False]]).expand(4, 2)))
    both = trunk(**batch)
    frontal = batch | {"pixel_values": batch["pixel_values"][:, 0], "image_present": torch.ones(4, dtype=torch.bool)}
    one = trunk(**frontal)
    torch.testing.assert_close(both.pooler_output, one.pooler_output, atol=1e-6, rtol=0)
    torch.testing.assert_close(both.text_hidden_state, one.text_hidden_state, atol=1e-6, rtol=0)
    torch.testing.assert_close(both.image_hidden_state[:, :17], one.image_hidden_state, atol=1e-6, rtol=0)


def test_every_view_is_read() -> None:
    trunk, batch = shake(tiny_of(M3AEModel, views=VIEWS)), inputs(studies(None))
    for parameter in trunk.parameters():
        parameter.data *= 4
    expected = trunk(**batch).pooler_output
    for view in range(2):
        changed = batch["pixel_values"].clone()
        changed[:, view] *= -3
        pooled = trunk(**batch | {"pixel_values": changed}).pooler_output
        assert ((pooled - expected).abs().amax(1) > 1e-3).all()
    swapped = trunk(**batch | {"pixel_values": batch["pixel_values"].flip(1)}).pooler_output
    assert not torch.allclose(swapped, expected, atol=1e-4)  # each view has a type of its own


@pytest.mark.parametrize(
    ("model_class", "labels"),
    [
        (M3AEForQuestionAnswering, {"labels": torch.tensor([0, 1, 1, 0])}),
        (M3AEForClassification, {"labels": torch.tensor([0, 1, 1, 0])}),
        (M3AEForImageTextRetrieval, {}),
        (M3AEForReportGeneration, {"labels": torch.tensor([[0, 5, 6, 2]] * 4)}),
    ],
)
def test_tasks_learn_from_views_any_of_them_missing(model_class: Any, labels: dict[str, Tensor]) -> None:
    model = tiny_of(model_class, views=VIEWS, num_labels=2, num_negatives=2).train()
    loss = model(**inputs(studies()), **labels).loss
    loss.backward()
    gradient = model.base_model.view_types.weight.grad
    assert loss.isfinite() and gradient.isfinite().all() and (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_a_latent_head_joins_the_views_and_the_text(schedule: str, tmp_path: Path) -> None:
    modalities = {"frontal": {"kind": "image"}, "lateral": {"kind": "image"}, "report": {"kind": "text"}}
    latent = {"size": 5, "modalities": modalities}
    model = tiny_of(M3AEForPreTraining, views=VIEWS, schedule=schedule, latent=latent)
    output = model(**studies(), beta=0.5, generator=torch.Generator().manual_seed(3))
    assert {"latent", "kl", "nll_frontal", "nll_lateral", "nll_report"} <= output.losses.keys()
    model.save_pretrained(tmp_path)
    generator = M3AEForGeneration.from_pretrained(tmp_path).eval()
    batch, image = studies(), model.config.image_config
    given = {
        name: {"pixel_values": denormalize_images(batch["pixel_values"][:, view], image), "present": PRESENT[:, view]}
        for view, name in enumerate(VIEWS)
    }
    given["report"] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = generator(given, beta=0.5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(output.losses["latent"], expected.loss, rtol=1e-4, atol=1e-2)
    frontal = model(**studies(None) | {"pixel_values": batch["pixel_values"][:, 0], "image_noise": None})
    assert "nll_lateral" not in frontal.losses and frontal.losses["nll_frontal"].isfinite()


def test_a_latent_head_has_no_other_view_than_the_model() -> None:
    latent = {"size": 5, "modalities": {"oblique": {"kind": "image"}, "report": {"kind": "text"}}}
    with pytest.raises(ValueError, match=r"has a text .* and the images \['frontal', 'lateral'\]"):
        tiny_of(M3AEForPreTraining, views=VIEWS, latent=latent)


def test_a_model_of_one_image_becomes_one_of_several_views(tmp_path: Path) -> None:
    tiny_of(M3AEForPreTraining).save_pretrained(tmp_path)
    model, report = M3AEForPreTraining.from_pretrained(tmp_path, views=VIEWS, output_loading_info=True)
    assert set(report["missing_keys"]) == {"m3ae.view_types.weight"}
    model.eval().save_pretrained(tmp_path)
    loaded = M3AEForPreTraining.from_pretrained(tmp_path).eval()
    assert loaded.config.views == VIEWS
    assert torch.equal(loaded(**studies()).loss, model(**studies()).loss)


def test_more_views_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pixel_values has 2 views, and the model takes 1 \(config.views is None\)"):
        tiny_of(M3AEModel)(**inputs(studies()))


@pytest.mark.parametrize("views", [[], ["frontal", "frontal"]])
def test_views_have_different_names(views: list[str]) -> None:
    with pytest.raises(ValueError, match="views needs different names of at least one image"):
        tiny_of(M3AEModel, views=views)
