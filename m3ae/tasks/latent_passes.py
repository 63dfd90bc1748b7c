"""What a latent model infers, explains and generates given some of the modalities, over the rows of a split.

Shapes: N rows, B batch, D shared latent dimensions, Z all latent dimensions, A classes.
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
from m3ae.models.generation import M3AEForGeneration

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Rows of a split in memory.

    Attributes:
        batches: Their tensors, on the CPU.
        present: Modality → (N,) bool.
        values: Modality → (N, …) of all that is neither a text nor a label.
        classes: Label → (N,) numbers of classes, −1 where a row has none.
    """

    batches: list[Batch]
    present: dict[str, Array]
    values: dict[str, Array]
    classes: dict[str, Array]

    @classmethod
    def of(cls, model: M3AEForGeneration, batches: Iterable[Batch]) -> Rows:
        """Keep batches of complete or incomplete rows."""
        kept = list(batches)
        modalities = model.latent_head.modalities

        def joined(name: str, key: str) -> Array:
            return torch.cat([batch[name][key] for batch in kept]).numpy()

        present = {name: joined(name, "present") for name in modalities}
        values = {name: joined(name, own.tensor) for name, own in modalities.items() if not own.is_text | own.is_class}
        classes = {name: joined(name, own.tensor) for name, own in modalities.items() if own.is_class}
        return cls(kept, present, values, {name: np.where(present[name], own, -1) for name, own in classes.items()})

    @property
    def count(self) -> int:
        """N."""
        return len(next(iter(self.present.values())))

    def having(self, names: Sequence[str]) -> Array:
        """Return the numbers of the rows that have all these modalities."""
        return np.flatnonzero(np.all([self.present[name] for name in names], 0))

    def known(self, names: Sequence[str], classes: Array) -> Array:
        """Return which rows (N,) have the modalities and one of the classes (N,)."""
        there: Array = np.all([self.present[name] for name in names], 0) & (classes >= 0)
        return there

    def parts(self, chosen: Array) -> list[Batch]:
        """Return some rows, given by their numbers in order, in batches."""
        offsets = np.cumsum([0, *(len(next(iter(batch.values()))["present"]) for batch in self.batches)])
        return [
            select(batch, torch.from_numpy(own - start))
            for batch, start, end in zip(self.batches, offsets, offsets[1:], strict=False)
            if len(own := chosen[(chosen >= start) & (chosen < end)])
        ]


@dataclass(frozen=True)
class Pass:
    """What follows from some modalities, for the n rows that have all of them.

    z is of the product of their experts, or, for a mixture of experts, of one of them in turn.

    Attributes:
        rows: (n,) their numbers.
        latents: (n, D) posterior means of the shared latent.
        bound: (n,) evidence lower bound on all modalities of the row, in nats, β = 1.
        kl: (n,) its KL.
        log_likelihood: Modality → (n,) its log p(x|z) in nats.
        expected: Modality → (n, …) decoded from the mean of z and private latents without noise.
        drawn: Modality → (n, …) decoded from a sample; private latents that are not inferred are of their prior.
    """

    rows: Array
    latents: Array
    bound: Array
    kl: Array
    log_likelihood: dict[str, Array]
    expected: dict[str, Array]
    drawn: dict[str, Array]


@torch.no_grad()
def posterior_means(
    model: M3AEForGeneration, batches: Iterable[Batch], subsets: Sequence[Sequence[str]]
) -> list[Array]:
    """Return posterior means (N, D) given each subset; where a row has none of it, the prior's."""
    found: list[list[Tensor]] = [[] for _ in subsets]
    for batch in batches:
        moved = send_to_device({name: batch[name] for name in model.latent.experts}, model.device)
        for own, q in zip(found, model.infer_subsets(moved, subsets), strict=True):
            own.append(q.mean.cpu())
    return [torch.cat(own).numpy() for own in found]


@torch.no_grad()
def run_pass(
    model: M3AEForGeneration, rows: Rows, given: Sequence[str], generator: torch.Generator, temperature: float = 1.0
) -> Pass:
    """Infer z from `given`, and decode everything.

    Args:
        model: In evaluation mode.
        rows: A split.
        given: Modalities with an encoder, which at least one row has.
        generator: Draws all noise, on the model's device.
        temperature: Of `Pass.drawn`, see `M3AEForGeneration.generate_modalities`.
    """
    targets = [name for name, modality in model.latent_head.modalities.items() if not modality.is_text]
    parts: list[dict[str, Any]] = []
    for batch in rows.batches:
        complete = torch.stack([batch[name]["present"] for name in given]).all(0)
        if not complete.any():
            continue
        batch = send_to_device(select(batch, complete), model.device)
        available = {name: batch[name] for name in given}
        elbo = model.elbo(batch, given, joint=True, generator=generator)
        means, draws = (
            model.generate_modalities(available, targets, temperature=factor, generator=generator)
            for factor in (0.0, temperature)
        )
        parts.append(
            {
                "latents": model.infer_latent(available, joint=True).mean,
                "bound": elbo.bound,
                "kl": elbo.kl.sum(-1),
                "log_likelihood": elbo.log_likelihood,
                "expected": {name: value[0] for name, value in means.items()},
                "drawn": {name: value[0] for name, value in draws.items()},
            }
        )
    return Pass(rows=rows.having(given), **_join(parts))


@torch.no_grad()
def evidence(
    model: M3AEForGeneration,
    batch: Batch,
    given: Sequence[str],
    sample_counts: Sequence[int],
    generator: torch.Generator,
) -> dict[int, float]:
    """Return K → the mean estimate of log p(all modalities) in nats from K samples given some of them.

    The samples are of the model's own posterior given these, stratified over its components; private latents of
    other modalities are of the prior.
    """
    complete = torch.stack([batch[name]["present"] for name in given]).all(0)
    batch = send_to_device(select(batch, complete), model.device)
    return {
        count: float(model.log_evidence(batch, count, given, chunk_size=50, generator=generator).mean())
        for count in sample_counts
    }


@torch.no_grad()
def permutation_test(model: M3AEForGeneration, rows: Rows, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Return how many nats of log p(x|z) a modality loses with the latents of other rows.

    Given all modalities, `shared` takes another row's z, and `private` other rows' private latents; 0 says that the
    decoder does not use them.
    """
    size, lost = model.latent.size, {"shared": list[dict[str, Tensor]](), "private": list[dict[str, Tensor]]()}
    for batch in rows.batches:
        moved = send_to_device(batch, model.device)
        available = {name: moved[name] for name in model.latent.experts}
        z = model.sample_latent(available, generator=generator)[0]
        shift = max(1, len(z) // 2)
        other = z.roll(shift, 0)
        likelihoods = model.log_likelihoods(moved, generator=generator)
        permuted = {
            "shared": torch.cat([other[:, :size], z[:, size:]], 1),
            "private": torch.cat([z[:, :size], other[:, size:]], 1),
        }
        for part, changed in permuted.items():
            lost[part].append({name: (own(z) - own(changed)).cpu() for name, own in likelihoods.items()})
    return {
        name: {part: _mean_of(name, found, rows.present[name]) for part, found in lost.items()}
        for name in model.latent_head.modalities
    }


def _mean_of(name: str, parts: Sequence[Mapping[str, Tensor]], valid: Array) -> float:
    return float(torch.cat([part[name] for part in parts]).numpy()[valid].mean())


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return some rows of a batch, by numbers or a mask (B,)."""
    return {name: {key: value[rows] for key, value in tensors.items()} for name, tensors in batch.items()}


def _join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate equal trees of tensors into arrays."""
    return {
        name: _join([part[name] for part in parts])
        if isinstance(first, dict)
        else torch.cat([part[name].cpu() for part in parts]).numpy()
        for name, first in parts[0].items()
    }
