"""MEME and the objectives that are no bounds: MFM, and the contrast of experts."""

import math

import pytest
import torch
from torch import Tensor

from m3ae import M3AEForGeneration
from m3ae.models import gaussians
from m3ae.models.gaussians import Gaussian, Mixture
from m3ae.models.latent_head import InferredExperts
from m3ae.models.meme import meme_bound
from m3ae.models.mfm import squared_mmd
from m3ae.models.objectives import expert_contrast
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model, rows, without

PAIR = {name: {**DIGITS[name], "private_size": 0} for name in ("glyph", "label")}
PRESENT = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0]]).bool()


def normal(x: Tensor, mean: Tensor | float, variance: float) -> Tensor:
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


def test_with_exact_posteriors_it_is_the_conditional_likelihood() -> None:
    """z ~ N(0, 1), s ~ N(z, 1), t ~ N(z, 1): q(z|s) = N(s/2, 1/2), and log p(s, t) − log p(t) = log N(s; t/2, 3/2)."""
    s, t = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.4])
    q = Gaussian((s / 2)[:, None], torch.full((2, 1), math.log(0.5)))
    z = gaussians.sample(q, 100_000, generator=torch.Generator().manual_seed(0))
    of_source, of_target = normal(s, z[..., 0], 1.0), normal(t, z[..., 0], 1.0)
    prior = gaussians.log_density(z, Gaussian((t / 2)[:, None], torch.full((2, 1), math.log(0.5))))
    value = meme_bound(q, z, of_source, of_target, prior)
    torch.testing.assert_close(value, normal(s, t / 2, 1.5), atol=5e-3, rtol=0)
    alone = meme_bound(q, z, of_source, torch.zeros_like(of_target), gaussians.log_prior(z))
    torch.testing.assert_close(alone, normal(s, 0.0, 2.0), atol=1e-4, rtol=0)  # without t, log p(s)


def test_the_ratio_has_no_gradient_and_the_mean_includes_the_sample() -> None:
    q, z = Gaussian(torch.zeros(1, 1), torch.zeros(1, 1)), torch.tensor([0.4, -0.3]).view(2, 1, 1)
    of_source, prior = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-0.5], [-0.7]])
    of_target = torch.tensor([[-1.5], [-0.2]], requires_grad=True)
    value = meme_bound(q, z, of_source, of_target, prior)
    share = of_target.detach().softmax(0)
    inside = of_source - of_target.detach() + prior - gaussians.log_density(z, q)
    expected = (share * inside).sum() + of_target.detach().exp().mean().log()
    torch.testing.assert_close(value[0], expected)
    value.sum().backward()
    torch.testing.assert_close(of_target.grad, torch.zeros(2, 1), atol=1e-7, rtol=0)  # −w̃ + w̃


def test_a_sample_with_one_modality_has_one_direction_and_learned_inputs_for_the_other() -> None:
    model = latent_model(PAIR, kind="moe", objective="meme", num_samples=3)
    batch, eps = without({name: digits_batch()[name] for name in PAIR}, PRESENT), torch.randn(2, 3, 6, 5)
    output = model(batch, eps=eps)
    singles = [model(rows(batch, [row]), eps=eps[:, :, [row]]).loss for row in range(6)]
    torch.testing.assert_close(output.loss, torch.stack(singles).mean())
    assert singles[5] == 0
    output.loss.backward()
    for name, parameter in model.latent_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    head = model.latent_head
    q, _ = head.experts["glyph"](head.experts["glyph"].read(rows(batch, [3])["glyph"]["pixel_values"]))
    z = gaussians.sample(q, 3, eps[0, :, [3]])
    pseudo, _ = head.experts["label"](head.pseudo_features["label"])
    prior = gaussians.mixture_log_density(
        z, Mixture(Gaussian(*(v[:, None] for v in pseudo)), torch.full((50, 1), 0.02))
    )
    explained = model.log_likelihoods(rows(batch, [3]))["glyph"](z)
    torch.testing.assert_close(singles[3], -(explained + prior - gaussians.log_density(z, q)).mean())


def test_the_discrepancy_is_unbiased_and_does_not_fade_with_the_dimensions() -> None:
    draw, present = torch.Generator().manual_seed(0), torch.ones(100, dtype=torch.bool)
    values = torch.stack([squared_mmd(torch.randn(100, 8, generator=draw), present) for _ in range(200)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(200) and (values < 0).any()
    for size in (8, 32, 64):  # one deviation apart in each dimension: a kernel over D² would give .186, .057, .030
        moved = torch.stack([squared_mmd(torch.randn(100, size, generator=draw) + 1, present) for _ in range(20)])
        assert 0.18 < moved.mean() < 0.4
    points = torch.randn(6, 3, generator=draw)
    some = torch.tensor([True, False, True, True, False, True])
    changed = torch.where(some[:, None], points, 100.0)
    torch.testing.assert_close(squared_mmd(points, some), squared_mmd(changed, some))
    torch.testing.assert_close(squared_mmd(points, some), squared_mmd(points[some], some[some]))
    assert squared_mmd(points[:1], some[:1]) == 0, "a batch of one"


@pytest.mark.parametrize("kind", ["poe", "joint"])
def test_mfm_is_deterministic_and_leaves_what_surrogates_imitate_alone(kind: str) -> None:
    model = latent_model(kind=kind, objective="mfm", beta=2.0)
    present = torch.cat([PRESENT, torch.tensor([[1, 0, 1, 0, 0, 0]]).bool()])
    batch = without({name: digits_batch()[name] for name in ("glyph", "label", "speech")}, present)
    first, second = model(batch), model(batch)
    assert first.loss == second.loss and first.loss.isfinite()
    assert set(first.losses) == {"mmd", "surrogate", "nll_glyph", "nll_label", "nll_speech"}
    first.losses["surrogate"].backward(retain_graph=True)
    prior_alone = [p.grad is not None and p.grad.any() for p in model.latent_head.private_priors.parameters()]
    assert any(prior_alone) and all(p.grad is None for p in model.latent_head.decoders.parameters())
    model.zero_grad()
    first.loss.backward()
    for name, parameter in model.latent_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    z = model.sample_latent({"label": digits_batch()["label"]}, 2)
    torch.testing.assert_close(z[0, :, :5], z[1, :, :5], atol=0.05, rtol=0)
    assert (z[0, :, 5:] - z[1, :, 5:]).abs().max() > 0.1, "private latents that are not inferred vary"
    assert model(rows(batch, [0])).losses["mmd"] == 0


def test_experts_that_tell_samples_apart_have_no_contrast() -> None:
    means, present = torch.eye(4) * 3, torch.ones(2, 4, dtype=torch.bool)

    def contrast(first: Tensor, second: Tensor, present: Tensor = present) -> float:
        mu = torch.stack([first, second])
        return float(expert_contrast(InferredExperts(Gaussian(mu, torch.zeros_like(mu)), present, {})))

    assert contrast(means, means) < 1e-3 < 5 < contrast(means, means.roll(1, 0))
    assert contrast(means, 7 * means) == pytest.approx(contrast(means, means)), "only the angle counts"
    equal = means[[0, 0, 1, 2]]
    assert contrast(equal, equal) < 1e-3, "the same sample twice is no negative"
    absent = torch.tensor([[True, True, True, False], [True, True, False, True]])
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert contrast(torch.cat([means[:2], noise]), torch.cat([means[:2], -noise]), absent) < 1e-3
    assert contrast(means[:1], means[1:2], present[:, :1]) == 0, "a batch of one"


def test_the_contrast_stands_beside_any_objective() -> None:
    model, batch = latent_model(kind="poe", contrast=3.0), digits_batch()
    plain = M3AEForGeneration(latent_model(kind="poe").config).eval()
    plain.load_state_dict(model.state_dict())
    eps = torch.randn(1, 6, model.latent.total_size)
    with_it, without_it = model(batch, eps=eps), plain(batch, eps=eps)
    torch.testing.assert_close(with_it.loss, without_it.loss + 3 * with_it.losses["contrast"])
    assert with_it.losses["contrast"] > 0 and "contrast" not in without_it.losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "meme", "kind": "moe"}, "num_samples of the objective meme must be an integer"),
        ({"objective": "meme", "num_samples": 2}, "meme: got the kind mopoe, 3 modalities, 3 of them with encoders"),
        ({"objective": "mfm", "kind": "moe"}, "mfm: got the kind moe and num_samples None; expected poe or joint"),
        ({"contrast": -1}, "latent.contrast must be a non-negative number, got -1"),
    ],
)
def test_bad_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_model(**options)
