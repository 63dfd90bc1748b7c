"""The table of objectives, and the latent pass beside the masked ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3ae import M3AEForGeneration, M3AEForPreTraining
from m3ae.evaluation.figures import LatentFigures
from m3ae.models import gaussians
from m3ae.models.gaussians import Gaussian
from m3ae.models.latent_head import LatentPosterior
from m3ae.models.latent_step import LatentStep
from m3ae.models.modalities import read_inputs
from m3ae.models.objectives import OBJECTIVES
from tests.models.tiny import tiny_batch, tiny_model
from tests.models.tiny_latent import DIGITS, digits_batch, latent_model, rows, without

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


@pytest.mark.parametrize(
    ("schedule", "latent"),
    [
        ("separate", {}),
        ("joint", {}),
        ("joint", {"kind": "joint"}),
        ("separate", {"kind": "joint", "objective": "jmvae"}),
    ],
)
def test_it_is_that_of_the_generator_and_leaves_the_masked_passes_alone(
    schedule: str, latent: dict, tmp_path: Path
) -> None:
    half = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125]} if schedule == "joint" else {}
    model, batch = tiny_model(schedule=schedule, latent=LATENT | latent, image_config=half), tiny_batch()
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


PRESENT = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]]).bool()  # in the order of DIGITS
ALPHA, BETA, GAMMA = 0.6, 1.3, 1.7
ROWS = ["dmvae", "mvtcae", "crmvae", "mmvm", "jmvae", "telbo", "cvae"]


def step_of(objective: str, present: torch.Tensor, sample: int | None = None, **options) -> LatentStep:
    """A step of all samples, or of one of them, whose latents are the means of the components."""
    joins = objective in ("jmvae", "telbo", "cvae")
    options |= {"kind": "joint" if joins else "poe"} | ({"condition": ["label"]} if objective == "cvae" else {})
    model = latent_model(objective=objective, free_bits=0.0, beta=BETA, alpha=ALPHA, gamma=GAMMA, **options)
    batch = without(digits_batch(), present)
    head = model.latent_head
    inputs = read_inputs(batch if sample is None else rows(batch, [sample]), head.modalities)
    encoded = {name: modality.features(inputs.targets[name]) for name, modality in head.modalities.items()}
    count = {"dmvae": 4, "crmvae": 4, "mmvm": 3, "telbo": 4}.get(objective, 1)
    size = len(next(iter(inputs.present.values())))
    return LatentStep(head, encoded, inputs, eps=torch.zeros(count, size, model.latent.total_size))


class Oracle:
    """The terms of one sample, from posteriors of one component each."""

    def __init__(self, step: LatentStep) -> None:
        self.head, self.inputs, experts = step.head, step.inputs, step.experts
        self.present = [m for m in range(3) if experts.present[m, 0]]
        members = {m: torch.eye(3, dtype=torch.bool)[m : m + 1] for m in self.present}
        joint = gaussians.components("poe" if experts.joint is None else "joint", 3)
        self.joint = self.head.posterior(experts, joint)
        self.single = {m: self.head.posterior(experts, members[m], each_explains_itself=True) for m in self.present}

    def explained(self, q: LatentPosterior, *modalities: int) -> torch.Tensor:
        likelihoods = self.head.log_likelihoods(self.inputs.targets, self.inputs.present, q.inferred, weighted=True)
        names = list(self.head.modalities)
        return sum(likelihoods[names[m]](q.mixture.components.mu).sum() for m in modalities)

    def kl(self, q: LatentPosterior, other: LatentPosterior | None = None) -> torch.Tensor:
        return gaussians.kl_divergence(q.shared.components, other and other.shared.components).sum()

    def private_kl(self, q: LatentPosterior) -> torch.Tensor:
        components = q.mixture.components
        return self.head.prior(q.inferred).kl_divergence(components, components.mu)[..., q.size :].sum()

    def bound(self, objective: str) -> torch.Tensor:
        """The bound by the formulas of the papers."""
        k, joint, single = len(self.present), self.joint, self.single
        if k == 0:
            return torch.zeros(())
        if objective == "dmvae":
            return sum(
                self.explained(q, *self.present) - BETA * (self.kl(q) + self.private_kl(q))
                for q in ([joint, *single.values()] if k > 1 else [joint])
            ) / (k + 1 if k > 1 else 1)
        if objective == "mvtcae":
            held = (1 - ALPHA) * self.kl(joint) + ALPHA / k * sum(self.kl(joint, q) for q in single.values())
            explained = (k - ALPHA) / k * self.explained(joint, *self.present)
            return explained - BETA * (held + self.private_kl(joint))
        if objective == "jmvae":
            held = self.kl(joint) + ALPHA * sum(self.kl(joint, q) for q in single.values()) + self.private_kl(joint)
            return self.explained(joint, *self.present) - BETA * held
        if objective == "cvae":  # given the label, which is number 1
            held = self.kl(joint, single.get(1)) + self.private_kl(joint)
            return self.explained(joint, *(m for m in self.present if m != 1)) - BETA * held
        if objective == "telbo":
            total = self.explained(joint, *self.present) - BETA * (self.kl(joint) + self.private_kl(joint))
            alone = [
                GAMMA * self.explained(q, m) - BETA * (self.kl(q) + self.private_kl(q)) for m, q in single.items()
            ]
            return (total + sum(alone)) / (k + 1)
        if objective == "crmvae":
            held = self.kl(joint) + sum(self.kl(joint, q) for q in single.values()) + self.private_kl(joint)
            total = self.explained(joint, *self.present) - BETA * held
            if k == 1:
                return total
            alone = [self.explained(q, m) - BETA * (self.kl(q) + self.private_kl(q)) for m, q in single.items()]
            return (total + sum(alone)) / (k + 1)
        total = torch.zeros(())
        for m, q in single.items():
            held = (1 - ALPHA) * self.kl(q) + ALPHA / k * sum(self.kl(q, other) for other in single.values())
            total = total + self.explained(q, m) - BETA * (held + self.private_kl(q))
        return total / k


@pytest.mark.parametrize("objective", ROWS)
def test_a_row_is_what_its_paper_says_of_the_present_modalities_of_each_sample(objective: str) -> None:
    step = step_of(objective, PRESENT)
    output = OBJECTIVES[objective](step)
    bounds = torch.stack([Oracle(step_of(objective, PRESENT, sample)).bound(objective) for sample in range(6)])
    torch.testing.assert_close(output.loss, -bounds.mean(), rtol=1e-5, atol=1e-4)
    for sample in range(6):  # a batch of one
        torch.testing.assert_close(OBJECTIVES[objective](step_of(objective, PRESENT, sample)).loss, -bounds[sample])
    output.loss.backward()
    networks = [step.head.experts, *filter(None, [step.head.joint_expert])]
    assert all(p.grad is not None and p.grad.isfinite().all() for network in networks for p in network.parameters())


def test_a_conditional_vae_is_measured_by_its_objective_and_draws_no_condition(tmp_path: Path) -> None:
    model = latent_model(objective="cvae", kind="joint", condition=["label"], free_bits=0.0, beta=1.0)
    batch, eps = digits_batch(), torch.zeros(1, 6, model.latent.total_size)
    elbo, output = model.elbo(batch, eps=eps), model(batch, eps=eps)
    torch.testing.assert_close(-elbo.bound.mean(), output.loss)
    assert set(elbo.log_likelihood) == set(DIGITS) - {"label"} == {name[4:] for name in output.losses if "nll" in name}
    torch.testing.assert_close(model.elbo(batch, ["label"], eps=eps).kl.sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    plain = {name: {**options, "private_size": 0} for name, options in DIGITS.items()}
    model = latent_model(plain, objective="cvae", kind="joint", condition=["label"])
    draw = torch.Generator().manual_seed(0)
    bounds = torch.stack([model.elbo(batch, ["label"], generator=draw).bound for _ in range(400)])
    evidence = torch.stack([model.log_evidence(batch, 1, ["label"], generator=draw) for _ in range(400)])
    error = (bounds.var(0) + evidence.var(0)).div(400).sqrt()
    assert ((bounds.mean(0) - evidence.mean(0)).abs() < 4 * error).all(), "both are given the condition"
    assert set(model.generate_modalities({"label": batch["label"]})) == set(DIGITS) - {"label"}
    with pytest.raises(ValueError, match="no modality 'label'; it has glyph, speech"):
        model.generate_modalities({"glyph": batch["glyph"]}, ["label"])
    with pytest.raises(ValueError, match="no prior without its condition"):
        model.sample_prior(2)
    present = torch.ones(3, 6, dtype=torch.bool)
    drawn = LatentFigures(model, without(batch, present)).draw_all(tmp_path)
    assert [path.stem for path in drawn] == ["cross_generation", "traversal"]


def test_with_a_learned_prior_the_references_of_z_are_one_column() -> None:
    output = OBJECTIVES["mvtcae"](step_of("mvtcae", PRESENT, learned_prior=2))
    assert output.kl.shape == (6, 1 + 2) and output.loss.isfinite()


@pytest.mark.parametrize("options", [{"objective": "mmvm"}, {"objective": "dreg", "num_samples": 2}, {}], ids=str)
def test_experts_may_be_laplace_distributions(options: dict, tmp_path: Path) -> None:
    modalities = {name: {**option, "private_size": 0} for name, option in DIGITS.items()}
    model, batch = latent_model(modalities, kind="moe", family="laplace", **options), without(digits_batch(), PRESENT)
    model(batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.latent_head.experts.parameters())
    q = model.infer_latent(batch).mixture
    assert isinstance(q.components, gaussians.Laplace) and model.log_evidence(batch, 3).isfinite().all()
    model.save_pretrained(tmp_path)
    again = M3AEForGeneration.from_pretrained(tmp_path).eval().infer_latent(batch)
    torch.testing.assert_close(again.mixture.components.mu, q.components.mu)
    with pytest.raises(ValueError, match="family laplace: got the kind poe"):
        latent_model(modalities, kind="poe", family="laplace")


def test_the_kl_of_a_telbo_single_is_least_where_its_own_expert_is_the_prior() -> None:
    """A public implementation takes the joint log-variance there, whose gradient does not depend on the single's."""
    step = step_of("telbo", PRESENT[:, :1])
    step = replace(step, inputs=step.inputs._replace(targets={}))  # nothing to explain
    for at, is_zero in ((-1.0, False), (0.0, True), (0.7, False)):
        logvar = torch.full((3, 1, 5), at, requires_grad=True)
        experts = step.experts._replace(shared=Gaussian(torch.zeros(3, 1, 5), logvar), private={})
        step.__dict__["experts"] = experts._replace(joint=lambda present: Gaussian(torch.ones(1, 5), torch.ones(1, 5)))
        OBJECTIVES["telbo"](step).loss.backward()
        torch.testing.assert_close(logvar.grad, torch.full((3, 1, 5), BETA / 4 * 0.5 * (math.exp(at) - 1)))
        assert (logvar.grad == 0).all() == is_zero


def test_singles_of_telbo_leave_the_decoders_alone() -> None:
    step = step_of("telbo", PRESENT)
    OBJECTIVES["telbo"](step).loss.backward()
    decoders = step.head.decoders
    found = [parameter.grad.clone() for parameter in decoders.parameters()]
    assert all(parameter.requires_grad for parameter in step.head.parameters())
    step.head.zero_grad()
    for sample in range(6):
        oracle = Oracle(step_of("telbo", PRESENT, sample))
        explained = oracle.explained(oracle.joint, *oracle.present)
        if oracle.present:
            gradients = torch.autograd.grad(explained, [*oracle.head.decoders.parameters()], allow_unused=True)
            for mine, gradient in zip(found, gradients, strict=True):
                mine += 0 if gradient is None else gradient / (6 * (1 + len(oracle.present)))
    for left in found:
        torch.testing.assert_close(left, torch.zeros_like(left), atol=2e-4, rtol=0)


def test_all_is_inferred_from_the_joint_expert_and_less_from_the_product() -> None:
    model, batch = latent_model(kind="joint", objective="jmvae"), digits_batch()
    inputs = read_inputs(batch, model.latent_head.modalities)
    experts = model._infer_experts(batch)
    torch.testing.assert_close(model.infer_latent(batch).mean, experts.joint(experts.present).mu)
    alone = model.infer_latent({"label": batch["label"]})
    torch.testing.assert_close(alone.shared.components.mu[0], experts.shared.mu[1])
    pair = model.infer_latent({name: batch[name] for name in ("glyph", "label")}).shared.components
    product = gaussians.product_of_experts(experts.shared, torch.tensor([[True, True, False]])[..., None], "divided")
    torch.testing.assert_close(pair, Gaussian(*(value.expand_as(pair.mu) for value in product)))
    assert model.latent.prior_expert == "divided" and set(inputs.present) == set(batch)
    mixed = model.infer_latent(without(batch, PRESENT)).mean
    torch.testing.assert_close(mixed[0], model.infer_latent(batch).mean[0])  # row 0 has everything
    torch.testing.assert_close(mixed[3], model.infer_latent({"glyph": batch["glyph"]}).mean[3])
