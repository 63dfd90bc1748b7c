"""What a latent model infers, explains and generates given some of the modalities, over the rows of a split.

Shapes: N rows of a split, n of them, B batch, D shared latent dimensions, Z all latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor

from m3ae.data.collate import Batch
from m3ae.evaluation.report import PermutationResult
from m3ae.models.gaussians import active_units
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.masking import blank_padding

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Rows of a split in memory, complete or incomplete."""

    batches: list[Batch]  # on the CPU
    present: dict[str, Array]  # modality → (N,) bool
    values: dict[str, Array]  # modality that is no text, label or set → (N, …)
    classes: dict[str, Array]  # label → (N,) numbers of classes, −1 where a row has none
    images: list[str]  # names of the modalities that are images
    volumes: list[str]  # names of those that are volumes

    @classmethod
    def of(cls, model: M3AEForGeneration, batches: Iterable[Batch]) -> Rows:
        """Keep batches of all modalities of a model."""
        kept, modalities = list(batches), model.latent_head.modalities

        def joined(name: str, key: str) -> Array:
            rows = torch.cat([batch[name][key] for batch in kept])
            for batch, part in zip(kept, rows.split([*map(batch_size, kept)]), strict=True):
                batch[name] = batch[name] | {key: part}  # the same memory: volumes of a split are gigabytes
            return rows.numpy()

        present = {name: joined(name, "present") for name in modalities}
        values = {
            name: joined(name, m.tensor) for name, m in modalities.items() if not m.is_text | m.is_class | m.is_set
        }
        labels = {name: joined(name, m.tensor) for name, m in modalities.items() if m.is_class}
        classes = {name: np.where(present[name], numbers, -1) for name, numbers in labels.items()}
        images, volumes = (
            [name for name in values if getattr(modalities[name], kind)] for kind in ("is_image", "is_volume")
        )
        return cls(kept, present, values, classes, images, volumes)

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(next(iter(self.present.values())))

    def having(self, names: Sequence[str]) -> Array:
        """Return the numbers of the rows that have all these modalities."""
        return np.flatnonzero(np.all([self.present[name] for name in names], 0))

    def known(self, names: Sequence[str], classes: Array) -> Array:
        """Return a mask (N,) of the rows that have the modalities and one of the classes (N,)."""
        mask: Array = np.all([self.present[name] for name in names], 0) & (classes >= 0)
        return mask

    def select(self, rows: Array) -> list[Batch]:
        """Return rows in batches, by their numbers in ascending order."""
        offsets = np.cumsum([0, *map(batch_size, self.batches)])
        return [
            select(batch, torch.from_numpy(numbers - start))
            for batch, start, end in zip(self.batches, offsets, offsets[1:], strict=False)
            if len(numbers := rows[(rows >= start) & (rows < end)])
        ]


@dataclass(frozen=True)
class Pass:
    """What follows from some modalities, for the n rows that have all of them.

    z is of the product of their experts, or, for a mixture of experts, of one of them in turn.
    """

    rows: Array  # (n,) their numbers
    latents: Array  # (n, D) posterior means of the shared latent
    bound: Array  # (n,) evidence lower bound on all modalities of the row, in nats, β = 1
    kl: Array  # (n,) in nats
    log_likelihood: dict[str, Array]  # modality → (n,) log p(x|z) in nats
    expected: dict[str, Array]  # modality → (n, …) decoded from the mean of z and private latents without noise
    samples: dict[
        str, Array
    ]  # modality → (n, …) decoded from a sample; private latents not inferred are of their prior


@torch.no_grad()
def posterior_means(
    model: M3AEForGeneration, batches: Iterable[Batch], subsets: Sequence[Sequence[str]]
) -> list[Array]:
    """Return posterior means (N, D) given each subset; where a row has none of it, the prior's."""
    means: list[list[Tensor]] = [[] for _ in subsets]
    for batch in batches:
        for column, q in zip(means, model.infer_subsets(expert_inputs(model, batch), subsets), strict=True):
            column.append(q.mean.cpu())
    return [torch.cat(column).numpy() for column in means]


@torch.no_grad()
def run_pass(
    model: M3AEForGeneration, rows: Rows, given: Sequence[str], generator: torch.Generator, temperature: float = 1.0
) -> Pass:
    """Infer z from `given`, and decode everything.

    Args:
        model: The model in evaluation mode.
        rows: A split.
        given: Modalities with an encoder, which at least one row has.
        generator: Draws all noise, on the model's device.
        temperature: Factor on the noise of `Pass.samples`, see `M3AEForGeneration.generate_modalities`.
    """
    targets = [
        name
        for name in model.latent.decoded
        if not (model.latent_head.modalities[name].is_text or model.latent_head.modalities[name].is_set)
    ]
    results: list[dict[str, Any]] = []
    for batch in rows.batches:
        complete = torch.stack([batch[name]["present"] for name in given]).all(0)
        if not complete.any():
            continue
        batch = send_to_device(select(batch, complete), model.device)
        available = {name: batch[name] for name in given}
        elbo = model.elbo(batch, given, joint=True, generator=generator)
        expected, samples = (
            model.generate_modalities(available, targets, temperature=factor, generator=generator)
            for factor in (0.0, temperature)
        )
        results.append(
            {
                "latents": model.infer_latent(available, joint=True).mean,
                "bound": elbo.bound,
                "kl": elbo.kl.sum(-1),
                "log_likelihood": elbo.log_likelihood,
                "expected": {name: _without_padding(value[0], batch[name]) for name, value in expected.items()},
                "samples": {name: _without_padding(value[0], batch[name]) for name, value in samples.items()},
            }
        )
    return Pass(rows=rows.having(given), **_join(results))


def _without_padding(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return decoded images (B, C, H, W) with 0 where the images of the batch are padded, as these have."""
    return blank_padding(values, tensors.get("pixel_mask"))


@torch.no_grad()
def evidence(
    model: M3AEForGeneration, batch: Batch, given: Sequence[str], counts: Sequence[int], generator: torch.Generator
) -> dict[int, float]:
    """Return K → the mean estimate of log p(all modalities) in nats from K samples given some of them.

    The samples are of the model's own posterior given these, stratified over its components; private latents of
    other modalities are of the prior.
    """
    complete = torch.stack([batch[name]["present"] for name in given]).all(0)
    batch = send_to_device(select(batch, complete), model.device)
    return {
        count: float(model.log_evidence(batch, count, given, chunk_size=50, generator=generator).mean())
        for count in counts
    }


@torch.no_grad()
def permutation_test(model: M3AEForGeneration, rows: Rows, generator: torch.Generator) -> dict[str, PermutationResult]:
    """Return by modality how many nats of log p(x|z) it loses with the latents of other rows, given all modalities."""
    size, losses = model.latent.size, {"shared": list[dict[str, Tensor]](), "private": list[dict[str, Tensor]]()}
    for batch in rows.batches:
        z = model.sample_latent(expert_inputs(model, batch), generator=generator)[0]
        other = z.roll(max(1, len(z) // 2), 0)
        likelihoods = model.log_likelihoods(send_to_device(batch, model.device), generator=generator)
        permuted = {
            "shared": torch.cat([other[:, :size], z[:, size:]], 1),
            "private": torch.cat([z[:, :size], other[:, size:]], 1),
        }
        for latents, changed in permuted.items():
            loss = {name: (likelihood(z) - likelihood(changed)).cpu() for name, likelihood in likelihoods.items()}
            losses[latents].append(loss)
    joined = {latents: _join(batches) for latents, batches in losses.items()}
    return {
        name: PermutationResult(**{latents: float(loss[name][present].mean()) for latents, loss in joined.items()})
        for name, present in rows.present.items()
        if name in joined["shared"]
    }


@torch.no_grad()
def count_active_units(model: M3AEForGeneration, rows: Rows) -> dict[str, tuple[int, int]]:
    """Return how many latent dimensions are active (Burda et al. 2016), and how many exist, shared and by modality."""
    mixtures = (model.infer_latent(expert_inputs(model, batch), joint=True).mixture for batch in rows.batches)
    active = active_units(torch.cat([(q.weights[..., None] * q.components.mu).sum(0).cpu() for q in mixtures]))
    ranges = {"shared": slice(0, model.latent.size), **model.latent_head.private_dimensions}
    sizes = {name: (int(active[dimensions].sum()), len(active[dimensions])) for name, dimensions in ranges.items()}
    return {name: size for name, size in sizes.items() if size[1] or name == "shared"}


@torch.no_grad()
def precision_shares(model: M3AEForGeneration, rows: Rows) -> dict[str, float]:
    """Return the mean share of the prior and of each expert in the precision of z given everything."""
    shares = _join([model.precision_shares(expert_inputs(model, batch)) for batch in rows.batches])
    return {name: float(torch.from_numpy(share).mean()) for name, share in shares.items()}


def expert_inputs(model: M3AEForGeneration, batch: Batch) -> Batch:
    """Return the modalities of a batch that z is inferred from, on the model's device."""
    moved: Batch = send_to_device({name: batch[name] for name in model.latent.experts}, model.device)
    return moved


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return some rows of a batch, by numbers or a mask (B,)."""
    return {name: {key: value[rows] for key, value in tensors.items()} for name, tensors in batch.items()}


def batch_size(batch: Batch) -> int:
    """Return the number of rows of a batch."""
    return len(next(iter(batch.values()))["present"])


def _join(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate equal trees of tensors into arrays."""
    return {
        name: _join([tree[name] for tree in trees])
        if isinstance(first, dict)
        else torch.cat([tree[name].cpu() for tree in trees]).numpy()
        for name, first in trees[0].items()
    }
