"""From samples to tensors: those of each modality, and the keyword arguments of the models of the trunk.

Shapes: B batch, M modalities, V views, N patches, L text tokens, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.modalities import BatchOptions, Modality

if TYPE_CHECKING:
    from m3ae.data.samples import Sample  # needs datasets, which inference does without

Batch = dict[str, dict[str, Tensor]]


class Collator:
    """Batches samples: for each modality a dict of tensors, as `Modality.batch` makes them, with `present` (B,) bool.

    What a sample lacks is 0 in the tensors, or the empty text. Nothing but the padding depends on the other samples.

    Args:
        modalities: Name → modality, as for the dataset.
        options: Tokenizer, and what is changed about images anew at every visit.
        missing_rate: Share of the modalities that training is not shown, drawn anew at every visit of a sample; see
            `drop_modalities`.
        hidden: Names of those that it may hide, all if None.

    Raises:
        ValueError: There are texts and no tokenizer, the tokenizer does not know where in the text its tokens lie and
            `options.word_ids` needs that, or the rate is not in [0, 1].
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        options: BatchOptions | None = None,
        *,
        missing_rate: float = 0.0,
        hidden: Sequence[str] | None = None,
    ) -> None:
        self.modalities, self.options, self.missing_rate = modalities, options or BatchOptions(), missing_rate
        self._hidden = [number for number, name in enumerate(modalities) if hidden is None or name in hidden]
        texts, tokenizer = [name for name, modality in modalities.items() if modality.is_text], self.options.tokenizer
        if texts and tokenizer is None:
            raise ValueError(f"Texts need a tokenizer, got none for {', '.join(texts)}.")
        if self.options.word_ids and tokenizer is not None and not tokenizer.is_fast:
            raise ValueError(
                f"Whole-word masking needs a fast tokenizer, which knows the place of its tokens in the text; got "
                f"{type(tokenizer).__name__}. Use a tokenizer with tokenizer.json, or "
                f"model.overrides.whole_word_masking=false."
            )
        if not 0 <= missing_rate <= 1:
            raise ValueError(f"missing_rate is {missing_rate}, expected 0 to 1.")

    def __call__(self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] | None = None) -> Batch:
        """Return the tensors of each modality by name; the generators draw what is changed about images."""
        present = torch.from_numpy(np.stack([sample.present for sample in samples]))  # (B, M)
        if self.missing_rate:
            noise = draw_noise(visit_generators(samples, 2), present.shape[1])[:, self._hidden]
            present[:, self._hidden] = drop_modalities(present[:, self._hidden], noise, self.missing_rate)
        generators = generators or visit_generators(samples, 3)
        batch: Batch = {}
        for (name, modality), shown in zip(self.modalities.items(), present.T.contiguous(), strict=True):
            cells = [sample.cells[name] if is_shown else None for sample, is_shown in zip(samples, shown, strict=True)]
            batch[name] = modality.batch(cells, self.options, generators) | {"present": shown}
        return batch


class TrunkCollator:
    """Batches samples as keyword arguments of the models of the trunk, with the noise of all their masks.

    With several views V images are (B, V, 3, S, S), and their presence and noise (B, V) and (B, V, N). `pixel_mask` is
    in batches of padded images only.

    Args:
        modalities: The modalities of the trunk, as `m3ae.models.modalities.trunk_modalities` returns them.
        options: As for a `Collator`.
        missing_rate: As for a `Collator`.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], options: BatchOptions, *, missing_rate: float = 0.0
    ) -> None:
        self.options = replace(options, for_trunk=True)
        self._collate = Collator(modalities, self.options, missing_rate=missing_rate)
        self._num_patches = cast(M3AEImageConfig, modalities["text"].model.image_config).num_patches

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return keyword arguments of `M3AEForPreTraining`."""
        generators = visit_generators(samples, 1)
        batch = self.inputs(samples, generators)
        batch["image_ids"] = torch.tensor([sample.image_id for sample in samples])
        batch["text_ids"] = torch.tensor([sample.text_id for sample in samples])
        views, (_, length) = batch["image_present"].shape[1:], batch["input_ids"].shape
        batch["match_noise"] = draw_noise(generators, 2)
        batch["image_noise"] = draw_noise(generators, *views, self._num_patches)
        batch["text_noise"] = draw_noise(generators, length, 2)  # last: the length depends on the batch
        return batch

    def inputs(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] | None = None
    ) -> dict[str, Tensor]:
        """Return images and texts without noise: what `M3AEModel.encode` takes, and the mask of special tokens."""
        batch = self._collate(samples, generators or visit_generators(samples, 1))
        text = batch.pop("text")
        views = [*batch.values()]
        if any("pixel_mask" in view for view in views):
            blanks = (torch.ones_like(view["pixel_values"][:, 0], dtype=torch.bool) for view in views)
            views = [{"pixel_mask": blank} | view for view, blank in zip(views, blanks, strict=True)]
        images = {name: _join_views([view[name] for view in views]) for name in views[0]}
        present = {"image_present": images.pop("present"), "text_present": text.pop("present")}
        return images | present | text


def _join_views(views: Sequence[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.stack([*views], dim=1)


def drop_modalities(present: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Drop present modalities with some probability each, but not a sample's last one.

    Of a sample that would lose all, the modality with the largest noise stays, which is any of them with the same
    probability; of n present ones, a share of rate − rateⁿ/n is therefore dropped.

    Args:
        present: (B, M) bool.
        noise: (B, M) uniform in [0, 1).
        rate: The probability.

    Returns:
        (B, M) bool, what is left.
    """
    noise = noise.masked_fill(~present, -1)
    largest = noise == noise.amax(1, keepdim=True)
    return present & ((noise >= rate) | largest)


def draw_noise(draws: Sequence[np.random.Generator], *shape: int) -> Tensor:
    """Return uniform noise in [0, 1), (B, *shape), each sample's from its own generator."""
    return torch.from_numpy(np.stack([draw.random(shape, dtype=np.float32) for draw in draws]))


def visit_generators(samples: Sequence[Sample], stream: int) -> list[np.random.Generator]:
    """Return a generator for each visit; noise of another stream has nothing to do with that of this one."""
    return [np.random.default_rng([sample.seed, stream]) for sample in samples]
