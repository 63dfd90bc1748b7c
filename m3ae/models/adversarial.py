"""Discriminators of images, which a decoder learns to deceive beside any objective.

Shapes: B batch, Z latent dimensions, h×w patches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from m3ae.models import gaussians
from m3ae.models.latent_networks import HalvingConvolution
from m3ae.models.likelihoods import Likelihood

if TYPE_CHECKING:
    from m3ae.models.latent_head import LatentHead, LatentPosterior
    from m3ae.models.latent_step import LatentStep
    from m3ae.models.modalities.image import ImageModalityConfig

CHANNELS = (32, 64, 128)  # of convolutions of stride 2: a score sees 15×15 pixels


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) → a score for each patch (B, 1, h, w), 1 for real ones (Isola et al. 2017).

    It has no normalisation over a batch, so that real and drawn images, and processes, do not see each other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *CHANNELS)):
            layers += [HalvingConvolution(before, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(CHANNELS[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Score the patches."""
        scores: Tensor = self.layers(images)
        return scores


def adversarial_losses(step: LatentStep, q: LatentPosterior) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what decoders and discriminators minimise, and its terms, with their accuracies.

    Least squares (Mao et al. 2017): ½ (D(x) − 1)² + ½ D(x')² for the discriminator, and ½ (D(x') − 1)² for the
    decoder. One half of x' is decoded from the posterior, the other from the prior (Larsen et al. 2016). Neither
    encoders nor priors learn from it, and the gradient of each side stops at the other one.

    Args:
        step: The step; before the share `start` of the steps the decoder's term is 0.
        q: The posterior of the batch.
    """
    head, terms, total = step.head, dict[str, Tensor](), torch.zeros((), device=q.mean.device)
    for name, discriminator in head.discriminators.items():
        if name not in step.inputs.targets:
            continue
        options = cast("ImageModalityConfig", head.modalities[name].config).adversarial or {}
        real, present = head.modalities[name].elements(step.inputs.targets[name]), step.inputs.present[name]
        drawn = _draw(head, name, q, step.generator)
        frozen = {key: parameter.detach() for key, parameter in discriminator.named_parameters()}
        deceived = functional_call(discriminator, frozen, (drawn,))
        of_real, of_drawn = (gaussians.upcast(discriminator(images)) for images in (real, drawn.detach()))
        share = present / present.sum().clamp(min=1)

        def mean(values: Tensor, weights: Tensor = share) -> Tensor:
            return (values.flatten(1).mean(1) * weights).sum()

        deceit = 0.5 * (gaussians.upcast(deceived) - 1).square().mean()
        judgement = 0.5 * mean((of_real - 1).square()) + 0.5 * of_drawn.square().mean()
        started = 1.0 if step.progress is None else (torch.as_tensor(step.progress) >= options["start"]).to(deceit)
        total = total + judgement + started * options["weight"] * real[0].numel() * deceit
        terms[f"adversarial_{name}"], terms[f"discriminator_{name}"] = deceit, judgement
        right = 0.5 * mean((of_real > 0.5).float()) + 0.5 * (of_drawn < 0.5).float().mean()
        terms[f"discriminator_accuracy_{name}"] = right
    return total, terms


def _draw(head: LatentHead, name: str, q: LatentPosterior, generator: torch.Generator | None) -> Tensor:
    """Return means of images (2·B, C, H, W) at samples of the posterior and of the prior, which learn nothing."""
    likelihood = head.likelihood(name)
    assert isinstance(likelihood, Likelihood)
    with torch.no_grad():
        components, weights = q.mixture
        noise = torch.rand(weights.shape[1], generator=generator, device=weights.device)
        chosen = gaussians.choose(components, gaussians.balanced_components(weights, noise))
        z = gaussians.sample(chosen, generator=generator)
        free = torch.randn(z.shape, generator=generator, device=z.device)
        if head.shared_prior is not None:
            free[:, : q.size] = head.shared_prior.sample(len(free), generator)
        pair = [head.decoder_input(name, z, q.inferred.get(name)), head.decoder_input(name, free)]
    return likelihood.mean(head.decoders[name](torch.cat(pair)))
