"""Objectives of the latent pass: what the experts of a sample's modalities infer, decoders explain from z alone.

Shapes: B batch, M experts, K samples, C mixture components, Z shared and private latent dimensions together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models import bounds, gaussians
from m3ae.models.adversarial import adversarial_losses
from m3ae.models.fusion import Stream
from m3ae.models.latent_configuration import LatentConfig
from m3ae.models.latent_head import InferredExperts, LatentHead
from m3ae.models.latent_step import LatentStep, M3AEForGenerationOutput
from m3ae.models.meme import meme
from m3ae.models.mfm import mfm
from m3ae.models.modalities import LatentInputs
from m3ae.models.option_checks import register_entry
from m3ae.models.pairs import all_gather_rows, contrastive_loss, same_samples

TEMPERATURE = 0.1  # of the contrast of experts


Objective = Callable[[LatentStep], M3AEForGenerationOutput]
Weights = Callable[[LatentStep, Tensor], Any]


def by_members(step: LatentStep, members: Tensor) -> Tensor:
    """Let each component explain the modalities that it is inferred from, (C, M) bool."""
    return step.head.covered(members)


def less_correlation(step: LatentStep, members: Tensor) -> Tensor:
    """Weigh every likelihood by (k − α)/k for k present modalities, (1, 1, B)."""
    count = step.experts.present.sum(0).clamp(min=1)
    return ((count - step.head.config.alpha) / count)[None, None]


def prior_and_experts(step: LatentStep, members: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh the prior by 1 − α, and the expert of each of k present modalities by α/k: (1, 1) and (1, M, B)."""
    present, alpha = step.experts.present, step.head.config.alpha
    shares = present / present.sum(0).clamp(min=1)
    return shares.new_full((1, 1), 1 - alpha), alpha * shares[None]


def coordinated_joint(step: LatentStep, members: Tensor) -> tuple[Tensor, Tensor]:
    """Hold all to the prior, and the first component, the joint one, to each present expert: (1, 1) and (C, M, B)."""
    joint = (torch.arange(len(members), device=step.experts.present.device) == 0).float()
    return joint.new_ones(1, 1), joint[:, None, None] * step.experts.present


def prior_and_some_of_each(step: LatentStep, members: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh the prior by 1, and the expert of each present modality by α: (1, 1) and (1, M, B)."""
    present = step.experts.present
    return torch.ones(1, 1, device=present.device), step.head.config.alpha * present[None]


def condition_alone(step: LatentStep, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hold every component to the expert of the condition, not to the prior: (1, 1), (1, 1, 1) and that group (1, M).

    Decoders read z alone, so that the expert of the condition has to say all of it.
    """
    condition = step.head.config.condition or []
    ones = torch.ones(1, 1, 1, device=step.experts.present.device)
    return 0 * ones[0], ones, torch.tensor([[name in condition for name in step.head.experts]])


@dataclass(frozen=True)
class Bound:
    """A row of the table of objectives: Σ_c π_c {Σ_m a_cm E_{q_c} log p(x_m|z) − β Σ_r b_cr KL(q_c‖r)}.

    Attributes:
        components: Name in `COMPONENTS` of the components in training; π weighs those of a sample equally.
        explains: a, as `m3ae.models.bounds.elbo` takes it; every component explains every modality if None.
        references: b of the prior and of the experts, as `LatentStep.references` takes them; the prior alone if None.
        private: Whether a component has the private latents of the present modalities, or of its `members` only; it
            draws the others from their priors.
        freezes_decoders: Whether all components but the first leave the decoders as they are, and count γ times.
    """

    components: str = "kind"
    explains: Weights | None = None
    references: Weights | None = None
    private: str = "present"
    freezes_decoders: bool = False

    @property
    def joins(self) -> bool:
        """Whether the first component is the joint expert, beside which the experts of single modalities learn."""
        return self.components.startswith("joint expert")

    @property
    def explains_members(self) -> bool:
        """Whether a component explains what it is inferred from only, so that every modality needs an expert."""
        return self.explains is by_members

    def __call__(self, step: LatentStep) -> M3AEForGenerationOutput:
        """Return the loss and its terms."""
        latent, choice = step.head.config, None
        members = COMPONENTS[self.components](latent, step.generator)
        q = step.posterior(members, each_explains_itself=self.private == "members")
        draws_private = self.private == "members" and self.explains is None  # nobody else decodes absent ones
        likelihoods, options = step.likelihoods(q.inferred if draws_private else None), step.options(q)
        if self.freezes_decoders:
            likelihoods = {name: partial(_first_teaches, step, name, value) for name, value in likelihoods.items()}
        explains = None if self.explains is None else self.explains(step, members)
        references = None if self.references is None else step.references(q, *self.references(step, members))
        if self == PLAIN and latent.num_samples is not None and len(members) > 1:
            choice = _draw_components(q.mixture.weights, latent.num_samples, step.component_noise, step.generator)
        return step.output(
            bounds.elbo(q.mixture, likelihoods, explains, references, choice, free_nats=latent.free_bits, **options)
        )


def _first_teaches(step: LatentStep, name: str, likelihood: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return the log-likelihood at z (C, B, Z), without a gradient in the decoder but from the first component."""
    with frozen(step.head.decoders[name], step.head.likelihood(name)):
        others = likelihood(z[1:])
    return torch.cat([likelihood(z[:1]), step.head.config.gamma * others])


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Compute without gradients in the parameters of modules."""
    parameters = [value for module in modules if module is not None for value in module.parameters()]
    learnt = [value for value in parameters if value.requires_grad]
    for value in learnt:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in learnt:
            value.requires_grad_(True)


def _importance_weighted(name: str, bound: Callable[..., Tensor], step: LatentStep) -> M3AEForGenerationOutput:
    latent = step.head.config
    q = step.posterior(posterior_members(latent, step.generator))
    likelihoods, options = step.likelihoods(), step.options(q)
    assert latent.num_samples is not None
    loss = -bound(q.mixture, likelihoods, latent.num_samples, **options).mean()
    prior = options["prior"]
    z = None if prior is None else gaussians.sample(q.mixture.components, generator=step.generator)
    kl = gaussians.mixture_kl_bound(q.mixture, z, prior)
    return M3AEForGenerationOutput(loss, {name: loss, "kl": kl.sum(-1).mean()}, kl)


PLAIN = Bound()
OBJECTIVES: dict[str, Objective] = {
    "elbo": PLAIN,  # Kingma & Welling 2014 for a product, Shi et al. 2019 and Sutter et al. 2021 for a mixture
    "subset_elbos": Bound("subsets", by_members, private="members"),  # MVAE (Wu & Goodman 2018)
    "dmvae": Bound("joint and singles", private="members"),  # Lee & Pavlovic 2021
    "mvtcae": Bound("joint", less_correlation, prior_and_experts),  # Hwang et al. 2021
    "crmvae": Bound("joint and singles", by_members, coordinated_joint, "members"),  # Suzuki & Matsuo 2022
    "mmvm": Bound("singles", by_members, prior_and_experts, "members"),  # Sutter et al. 2024
    "jmvae": Bound("joint expert", None, prior_and_some_of_each),  # Suzuki et al. 2017
    "telbo": Bound("joint expert and singles", by_members, None, "members", True),  # Vedantam et al. 2018
    "cvae": Bound("joint expert", None, condition_alone),  # Sohn et al. 2015
    "meme": meme,  # Joy et al. 2022
    "mfm": mfm,  # Tsai et al. 2019
    "iwae": partial(_importance_weighted, "iwae", bounds.iwae),  # Burda et al. 2016, Shi et al. 2019
    "dreg": partial(_importance_weighted, "dreg", bounds.dreg),  # Tucker et al. 2019
}


def register_objective(name: str) -> Callable[[Objective], Objective]:
    """Return a decorator that adds an objective to the table: `LatentStep` → loss and terms.

    Raises:
        ValueError: The table has another objective of this name.
    """

    def register(objective: Objective) -> Objective:
        register_entry(OBJECTIVES, "objective", name, objective)
        return objective

    return register


def latent_pass(
    head: LatentHead, encoded: Mapping[str, Stream | Tensor], inputs: LatentInputs, **options: Any
) -> M3AEForGenerationOutput:
    """Compute the objective of `head.config`, each modality with its weight; `options` are those of `LatentStep`."""
    step = LatentStep(head, encoded, inputs, **options)
    output = OBJECTIVES[head.config.objective](step)
    if head.config.contrast:
        assert output.losses is not None and output.loss is not None
        output.losses["contrast"] = expert_contrast(step.experts)
        output.loss = output.loss + head.config.contrast * output.losses["contrast"]
    if head.discriminators:
        assert output.losses is not None and output.loss is not None
        q = step.posterior(posterior_members(head.config, step.generator))
        loss, terms = adversarial_losses(step, q)
        output.loss, output.losses = output.loss + loss, output.losses | terms
    return output


def expert_contrast(experts: InferredExperts) -> Tensor:
    """Return the InfoNCE of the means of z of each two modalities of a sample, averaged over the pairs, ().

    The means are compared by their cosine; samples with the same mean are no negatives of each other. It bounds what
    the experts tell of each other, so that z keeps what modalities share (IDMVAE, 2026; van den Oord et al. 2018).
    """
    means, present = (all_gather_rows(rows.transpose(0, 1)).unbind(1) for rows in (experts.shared.mu, experts.present))
    losses = []
    for one, other in combinations(range(len(means)), 2):
        first, second = means[one], means[other]
        similarity = F.normalize(gaussians.upcast(first), dim=-1) @ F.normalize(gaussians.upcast(second), dim=-1).T
        same = same_samples(first.detach(), second.detach())
        losses.append(contrastive_loss(similarity / TEMPERATURE, same, present[one] & present[other]))
    return torch.stack(losses).mean()


def posterior_members(latent: LatentConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return the components (C, M) of the posterior; the product of all experts, if it is one, is the last.

    Of a joint expert they are (1, M + 1): that expert alone, or with all others if these are learnt, too.
    """
    if latent.kind == "mopoe":
        return _subsets(latent, generator)
    members = gaussians.components(latent.kind, len(latent.experts))
    row = OBJECTIVES[latent.objective]
    return torch.ones_like(members) if isinstance(row, Bound) and row.joins else members


def _subsets(latent: LatentConfig, generator: torch.Generator | None) -> Tensor:
    """Return all subsets of the experts, or some of them at each step, see `LatentConfig.num_subsets`."""
    count = len(latent.experts)
    if latent.enumerates_subsets:
        return gaussians.subsets(count)
    if generator is not None and generator.device.type != "cpu":  # subsets are drawn on the CPU
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        generator = torch.Generator().manual_seed(int(seed))
    return gaussians.sample_subsets(count, latent.num_subsets, generator)


COMPONENTS: dict[str, Callable[[LatentConfig, torch.Generator | None], Tensor]] = {
    "kind": posterior_members,
    "subsets": _subsets,
    "joint": lambda latent, _: torch.ones(1, len(latent.experts), dtype=torch.bool),
    "singles": lambda latent, _: torch.eye(len(latent.experts), dtype=torch.bool),
    "joint and singles": lambda latent, _: torch.cat(
        [COMPONENTS["joint"](latent, _), COMPONENTS["singles"](latent, _)]
    ),
    "joint expert": lambda latent, _: gaussians.components("joint", len(latent.experts)),
    "joint expert and singles": lambda latent, _: torch.eye(len(latent.experts) + 1, dtype=torch.bool).flip(0),
}


def _draw_components(weights: Tensor, count: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Draw components (K, B) of weights (C, B), in balance over all K·B."""
    size = weights.shape[1]
    if noise is None:
        noise = torch.rand(count * size, generator=generator, device=weights.device)
    return gaussians.balanced_components(weights.repeat(1, count), noise).view(count, size)
