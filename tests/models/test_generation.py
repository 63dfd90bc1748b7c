"""The latent head as a model: any modalities, any of them missing."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from m3ae import M3AEForGeneration, M3AEForPreTraining
from m3ae.models import bounds
from m3ae.models.gaussians import log_prior, subsets
from tests.models.tiny import tiny_model
from tests.models.tiny_latent import (
    DIGITS,
    STUDY,
    TRANSFORMER,
    digits_batch,
    latent_config,
    latent_model,
    rows,
    study_batch,
    without,
)

NAMES = ["glyph", "label", "speech"]  # as the model numbers them


def ordered(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in sorted(batch)}


def elbo(model: M3AEForGeneration, batch: dict, eps: Tensor) -> bounds.Elbo:
    return model.elbo(batch, eps=eps)


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_every_presence_pattern_is_finite_and_as_alone(kind: str) -> None:
    model = latent_model(kind=kind)
    present = torch.tensor(list(product([False, True], repeat=3))).T  # (M, 8), none and all included
    batch = without(ordered(digits_batch(8)), present)
    components = {"poe": 1, "moe": 3, "mopoe": 7}[kind]
    eps = torch.randn(components, 8, model.latent.total_size)
    together = elbo(model, batch, eps)
    assert together.bound.isfinite().all() and together.loss.isfinite()
    for number, name in enumerate(NAMES):
        assert ((together.log_likelihood[name] == 0) == ~present[number]).all()
    assert (together.kl[0] == 0).all() and together.bound[0] == 0
    for row in range(8):
        alone = elbo(model, rows(batch, [row]), eps[:, [row]])
        torch.testing.assert_close(alone.bound[0], together.bound[row])
    order = torch.randperm(8)
    torch.testing.assert_close(elbo(model, rows(batch, order), eps[:, order]).bound, together.bound[order])
    given = {name: part for name, part in rows(batch, [5]).items() if present[NAMES.index(name), 5]}
    torch.testing.assert_close(elbo(model, given, eps[:, [5]]).bound[0], together.bound[5])  # left out is absent


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
@pytest.mark.parametrize(("modalities", "batch"), [(DIGITS, digits_batch(4)), (STUDY, study_batch(4))])
def test_subsets_are_inferred_as_one_by_one(kind: str, modalities: dict[str, Any], batch: dict[str, Any]) -> None:
    model = latent_model(modalities, kind=kind)
    names = model.latent.experts
    batch = without({name: batch[name] for name in names}, torch.rand(3, 4, generator=torch.Generator()) < 0.7)
    chosen = [[name for name, there in zip(names, row, strict=True) if there] for row in subsets(3).tolist()]
    for given, found in zip(chosen, model.infer_subsets(batch, chosen), strict=True):
        expected = model.infer_latent({name: batch[name] for name in given}, joint=True)
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.mixture.components.logvar, expected.mixture.components.logvar)
        assert all(torch.equal(found.inferred[name], value) for name, value in expected.inferred.items())


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "elbo"},
        {"objective": "elbo", "num_samples": 2},
        {"objective": "elbo", "kind": "poe"},
        {"objective": "subset_elbos", "kind": "poe"},
        {"objective": "iwae", "num_samples": 3, "kind": "moe"},
        {"objective": "dreg", "num_samples": 3, "kind": "moe"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_objectives_reach_every_parameter_and_no_absent_value(options: dict) -> None:
    model = latent_model(**options)
    present = torch.tensor([[True, False, True, False, True, False]] * 2 + [[True] * 6])
    output = model(without(ordered(digits_batch()), present), generator=torch.Generator().manual_seed(0))
    assert output.loss.isfinite()
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    modalities = {
        name: {**options, "weight": weight} for weight, (name, options) in enumerate(DIGITS.items(), start=1)
    }
    model = latent_model(modalities, free_bits=0.0)
    output = model(digits_batch(), beta=0.5)
    terms = sum(modalities[name]["weight"] * output.losses[f"nll_{name}"] for name in DIGITS)
    torch.testing.assert_close(output.loss, terms + 0.5 * output.losses["kl"])


def test_the_training_bound_is_the_reported_one_without_weights() -> None:
    model, eps = latent_model(free_bits=0.0), torch.randn(7, 6, 10)
    torch.testing.assert_close(
        -model(digits_batch(), beta=1.0, eps=eps).loss, elbo(model, digits_batch(), eps).bound.mean()
    )


@pytest.mark.parametrize("objective", ["elbo", "subset_elbos"])
def test_a_private_latent_is_inferred_from_its_own_modality(objective: str) -> None:
    """By every component; where subsets explain themselves, by those that contain the modality."""
    model = latent_model(objective=objective)
    present = torch.tensor([[True] * 6, [True] * 6, [True, False] * 3])  # glyph, label, speech
    batch = without(ordered(digits_batch()), present)
    inputs = model._read(batch)
    members = subsets(3)
    alone = objective == "subset_elbos"
    inferred = model.latent_head.infer_experts(model._encode(inputs), inputs.present)
    q = model.latent_head.posterior(inferred, members, each_explains_itself=alone)
    mu, logvar = q.mixture.components
    for name, number in (("glyph", 0), ("speech", 2)):
        part = model.latent_head.private_dimensions[name]
        inferred = present[number].expand(7, 6) & (members[:, [number]] if alone else True)
        assert (q.inferred[name].expand(7, 6) == inferred).all()
        for values in (mu, logvar):
            assert ((values[..., part] != 0).any(-1) == inferred).all()


def test_what_is_not_inferred_follows_the_prior_given_z() -> None:
    model = latent_model()
    head = model.latent_head
    z, own = torch.randn(3, 6, model.latent.total_size), torch.tensor([True, False, True, True, False, False])
    complete = head.complete(z, {"glyph": own})
    glyph, speech = (head.private_dimensions[name] for name in ("glyph", "speech"))
    torch.testing.assert_close(complete[..., :5], z[..., :5])
    torch.testing.assert_close(complete[:, own, glyph], z[:, own, glyph])
    for part, name, rows_of in ((glyph, "glyph", ~own), (speech, "speech", slice(None))):
        drawn = head.private_priors[name].transform(z[..., part], z[..., :5])
        torch.testing.assert_close(complete[:, rows_of, part], drawn[:, rows_of])
    torch.testing.assert_close(head.decoder_input("glyph", z, own), head.decoder_input("glyph", complete))
    everywhere = {name: torch.ones_like(own) for name in ("glyph", "speech")}
    torch.testing.assert_close(head.complete(complete, everywhere), complete)


def test_the_density_of_inferred_and_drawn_latents_is_the_joint_one() -> None:
    """log p(z) + Σ log p(w|z), where what is drawn has the change of variables in its noise."""
    model, z = latent_model(), torch.randn(6, 10)
    head = model.latent_head
    own = {"glyph": torch.ones(6, dtype=torch.bool), "speech": torch.zeros(6, dtype=torch.bool)}
    glyph, speech = (head.private_dimensions[name] for name in own)
    expected = log_prior(z[:, :5]) + head.private_priors["glyph"].log_prob(z[:, glyph], z[:, :5])
    torch.testing.assert_close(head.prior(own).log_prob(z), expected + log_prior(z[:, speech]))


def test_private_latents_vary_what_is_generated_from_others_and_not_what_is_given() -> None:
    model = latent_model()
    q = model.infer_latent({"speech": digits_batch()["speech"]}, joint=True).mixture
    assert q.weights.shape[0] == 1 and q.components.mu.shape == (1, 6, 10)
    assert (q.components.logvar[..., model.latent_head.private_dimensions["glyph"]] == 0).all()
    assert (q.components.mu[..., model.latent_head.private_dimensions["speech"]] != 0).any()


@pytest.mark.parametrize("kind", ["poe", "moe", "mopoe"])
def test_generates_all_from_any(kind: str) -> None:
    model, batch = latent_model(kind=kind), digits_batch()
    for given in ({"label"}, {"glyph", "speech"}, set(DIGITS)):
        chosen = {name: batch[name] for name in given}
        found = model.generate_modalities(chosen, num_samples=2, generator=torch.Generator().manual_seed(1))
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        assert shapes == {"glyph": (2, 6, 1, 6, 6), "label": (2, 6, 3), "speech": (2, 6, 4, 3)}
        assert all(value.isfinite().all() for value in found.values())
        torch.testing.assert_close(found["label"].sum(-1), torch.ones(2, 6))
        again = model.generate_modalities(chosen, ["glyph"], 2, generator=torch.Generator().manual_seed(1))
        assert list(again) == ["glyph"] and torch.equal(again["glyph"], found["glyph"])
        if kind != "moe":
            still = model.generate_modalities(chosen, num_samples=2, temperature=0)
            for first, second in still.values():
                torch.testing.assert_close(first, second)
    assert model.sample_prior(3, targets=["speech"])["speech"].shape == (3, 4, 3)


def test_saved_with_a_fitted_prior_it_gives_the_same_samples(tmp_path) -> None:
    model = latent_model()
    with pytest.raises(ValueError, match="call fit_prior first"):
        model.sample_prior(2, "fitted")
    model.fit_prior([digits_batch(30, seed) for seed in range(3)], 3, torch.Generator().manual_seed(0))
    assert model.fitted_prior.weights.sum() == pytest.approx(1)
    model.save_pretrained(tmp_path)
    loaded = M3AEForGeneration.from_pretrained(tmp_path).eval()
    for density in ("own", "fitted"):
        first, second = (
            m.sample_prior(4, density, generator=torch.Generator().manual_seed(5)) for m in (model, loaded)
        )
        assert all(torch.equal(first[name], second[name]) for name in DIGITS)


def test_the_fitted_prior_has_the_moments_of_the_posterior_samples() -> None:
    model = latent_model()
    model.fit_prior([digits_batch(60)], 1, torch.Generator().manual_seed(0))
    shared = model.infer_latent(digits_batch(60), joint=True).shared.components
    drawn = model.fitted_prior.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), shared.mu[0].mean(0), atol=0.5, rtol=0)  # 60 samples
    expected = shared.logvar[0].exp().mean(0) + shared.mu[0].var(0)
    torch.testing.assert_close(drawn.var(0).log(), expected.log(), atol=0.7, rtol=0)


def test_evidence_is_no_less_than_the_bound() -> None:
    model, batch = latent_model(), digits_batch()
    for given in (None, ["glyph"]):
        evidence = model.log_evidence(batch, 500, given, generator=torch.Generator().manual_seed(0))
        eps = torch.randn(200, 7, 6, 10, generator=torch.Generator().manual_seed(1))
        bound = torch.stack([model.elbo(batch, given, eps=noise).bound for noise in eps]).mean(0)
        assert (evidence > bound).all()


def test_two_views_and_a_report() -> None:
    """Both views share the trunk's encoder; patches and tokens attend to z."""
    model = latent_model(STUDY, kind="mopoe")
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("m3ae.")} == {
        "image_encoder",
        "text_encoder",
        "projections",
        "modality_types",
    }
    present = torch.tensor([[True, True, False, False], [True, False, False, True], [True, True, True, False]])
    batch = without(study_batch(), present)
    eps, noise = torch.randn(7, 4, 7), torch.rand(7, 4, 11)
    together = model.elbo(batch, eps=eps, text_noise={"text": noise})
    assert together.bound.isfinite().all()
    for row in range(4):
        alone = model.elbo(rows(batch, [row]), eps=eps[:, [row]], text_noise={"text": noise[:, [row]]})
        torch.testing.assert_close(alone.bound[0], together.bound[row], rtol=1e-4, atol=1e-3)
    found = model.generate_modalities({"frontal": rows(study_batch(), [0, 1])["frontal"]}, num_samples=2)
    assert found["lateral"].shape == found["frontal"].shape == (2, 2, 3, 32, 32)
    assert found["text"].shape[:2] == (2, 2) and (found["text"][..., 0] == 0).all()
    assert not any("text_encoder" in name for name, _ in latent_model(DIGITS).named_parameters())


def test_a_grayscale_image_is_repeated_for_a_trunk_of_three_channels() -> None:
    image = {"kind": "image", **TRANSFORMER}
    model = latent_model({"frontal": {**image, "shape": [1]}})
    color = latent_model({"frontal": image})
    color.load_state_dict({n: v for n, v in model.state_dict().items() if ".predict." not in n}, strict=False)
    pixels = torch.rand(2, 1, 32, 32)
    found = model.infer_latent({"frontal": {"pixel_values": pixels}}).mean
    assert torch.equal(found, color.infer_latent({"frontal": {"pixel_values": pixels.expand(-1, 3, -1, -1)}}).mean)
    assert model.sample_prior(2)["frontal"].shape == (2, 1, 32, 32)
    with pytest.raises(ValueError, match=r"frontal.shape is \[2\]; the encoder vit takes images of 3 channels"):
        latent_model({"frontal": {**image, "shape": [2]}})


def test_a_pretrained_trunk_loads_into_it(tmp_path) -> None:
    pretrained = tiny_model()
    pretrained.save_pretrained(tmp_path)
    model = M3AEForGeneration.from_pretrained(tmp_path, config=latent_config(STUDY))
    expected = pretrained.state_dict()
    shared = {name: value for name, value in model.state_dict().items() if name.startswith("m3ae.")}
    assert len(shared) > 20 and all(torch.equal(value, expected[name]) for name, value in shared.items())
    assert model.parameter_group("m3ae.image_encoder.vit.cls_token") == "encoder.image"
    groups = {model.parameter_group(name) for name, _ in model.named_parameters()}
    decoders = {f"heads.decoders.{name}" for name in STUDY}
    assert groups == {"encoder.image", "encoder.text", "fusion", "heads"} | decoders
    assert not any("latent" in name for name in M3AEForPreTraining.from_pretrained(tmp_path).state_dict())


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = M3AEForGeneration(latent_config(DIGITS, free_bits=0.0))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = model(digits_batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_more_than_five_experts_are_joined_by_some_subsets() -> None:
    modalities = {f"v{i}": {"kind": "vector", "shape": [2], "hidden_size": 4, "num_layers": 1} for i in range(6)}
    model = latent_model(modalities, num_subsets=4)
    batch = {name: {"values": torch.randn(3, 2)} for name in modalities}
    q = model.infer_latent(batch, generator=torch.Generator().manual_seed(0))
    assert len(q.mixture.weights) == 6 + 4 + 1
    assert model(batch).loss.isfinite() and model.infer_latent(batch, joint=True).mixture.weights.shape == (1, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "No modality given; expected some of glyph, label, speech"),
        ({"image": {}}, "The model has no modality 'image'; it has glyph, label, speech"),
        ({"glyph": {"values": torch.zeros(1)}}, r"'glyph' of kind image needs pixel_values; got \['values'\]"),
    ],
)
def test_bad_input_is_explained(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_model().generate_modalities(given)
    with pytest.raises(ValueError, match=r"needs config\.latent"):
        M3AEForGeneration(tiny_model().config)
