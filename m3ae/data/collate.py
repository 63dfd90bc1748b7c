"""From pairs to a model's keyword arguments: pixels, tokens, words, and the noise of each visit.

Shapes: B batch, N patches, L text tokens, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3ae.data.words import WORD
from m3ae.images.files import damage_named
from m3ae.models.modalities import BatchOptions, Modality
from m3ae.models.modalities.augment import Augmentation, augment, plain
from m3ae.models.modalities.text import tokenize
from m3ae.models.processing import M3AEProcessor

if TYPE_CHECKING:
    # These need datasets, which inference does without.
    from m3ae.data.pairs import Pair, Views
    from m3ae.data.samples import Sample

Batch = dict[str, dict[str, Tensor]]


class Collator:
    """Batches samples: for each modality a dict of tensors, as `Modality.batch` makes them, with `present` (B,) bool.

    What a sample lacks is 0 there, or the empty text. Nothing but the padding depends on the other samples.

    Args:
        modalities: Name → modality, as for the dataset.
        options: Tokenizer, and what is changed about images anew at every visit.
        missing_rate: Share of the modalities that training is not shown, drawn anew at every visit of a sample; see
            `drop_modalities`.

    Raises:
        ValueError: There are texts and no tokenizer, or the rate is not in [0, 1].
    """

    def __init__(
        self, modalities: Mapping[str, Modality], options: BatchOptions | None = None, *, missing_rate: float = 0.0
    ) -> None:
        self.modalities, self.options, self.missing_rate = modalities, options or BatchOptions(), missing_rate
        texts = [name for name, modality in modalities.items() if modality.is_text]
        if texts and self.options.tokenizer is None:
            raise ValueError(f"Texts need a tokenizer, got none for {', '.join(texts)}.")
        if not 0 <= missing_rate <= 1:
            raise ValueError(f"missing_rate is {missing_rate}, expected 0 to 1.")

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the tensors of each modality by name."""
        present = torch.from_numpy(np.stack([sample.present for sample in samples]))  # (B, M)
        if self.missing_rate:
            draws = [np.random.default_rng([sample.seed, 2]) for sample in samples]
            present = drop_modalities(present, draw_noise(draws, present.shape[1]), self.missing_rate)
        draws = [np.random.default_rng([sample.seed, 3]) for sample in samples]
        batch: Batch = {}
        for (name, modality), own in zip(self.modalities.items(), present.T.contiguous(), strict=True):
            shown = [sample.cells[name] if is_shown else None for sample, is_shown in zip(samples, own, strict=True)]
            batch[name] = modality.batch(shown, self.options, draws) | {"present": own}
        return batch


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


class PairCollator:
    """Batches pairs and draws the noise of their visits: a sample's masks do not depend on its batch.

    With several views V images are (B, V, 3, S, S), and their presence and noise (B, V) and (B, V, N).

    Args:
        processor: Gives size and normalisation of images, and tokenizes texts.
        num_patches: Patches N of an image.
        max_text_length: Longest text in tokens, special ones included; longer ones are cut.
        augmentation: What is changed about an image beside its crop.
        crop_scale: Range of the share of the image's area that is cropped at random; (1, 1) is the centre crop.
        whole_words: Whether batches say which word each token belongs to.
        num_views: Images V of a pair.

    Raises:
        ValueError: The tokenizer does not know where in the text its tokens lie, and `whole_words` needs that.
    """

    def __init__(
        self,
        processor: M3AEProcessor,
        num_patches: int,
        max_text_length: int,
        *,
        augmentation: Augmentation = "crop",
        crop_scale: tuple[float, float] = (1.0, 1.0),
        whole_words: bool = False,
        num_views: int = 1,
    ) -> None:
        if whole_words and not processor.tokenizer.is_fast:
            raise ValueError(
                f"Whole-word masking needs a fast tokenizer, which knows the place of its tokens in the text; got "
                f"{type(processor.tokenizer).__name__}. Use a tokenizer with tokenizer.json, or "
                f"model.overrides.whole_word_masking=false."
            )
        self.processor, self.num_patches = processor, num_patches
        self.max_text_length, self.whole_words = max_text_length, whole_words
        self.augmentation, self.crop_scale = augmentation, crop_scale
        self.views = (num_views,) if num_views > 1 else ()  # a dimension of the batch
        images = processor.image_processor
        self.image_size = images.crop_size["height"]
        deviation = torch.tensor(images.image_std)
        self._scale = (1 / (255 * deviation)).view(3, 1, 1)
        self._offset = (-torch.tensor(images.image_mean) / deviation).view(3, 1, 1)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return keyword arguments of `M3AEForPreTraining`; presence masks only where something is missing."""
        draws = [np.random.default_rng([pair.seed, 1]) for pair in pairs]
        batch = {"pixel_values": self._pixels(pairs, draws)} | self._tokens(pairs)
        images = torch.tensor([[view is not None for view in self._views(pair)] for pair in pairs])
        present = {
            "image": images.view(-1, *self.views),
            "text": torch.tensor([pair.text is not None for pair in pairs]),
        }
        for modality, mask in present.items():
            if not mask.all():
                batch[f"{modality}_present"] = mask
            batch[f"{modality}_ids"] = torch.tensor([getattr(pair, f"{modality}_id") for pair in pairs])
        length = batch["input_ids"].shape[1]
        batch["match_noise"] = draw_noise(draws, 2)
        batch["image_noise"] = draw_noise(draws, *self.views, self.num_patches)
        batch["text_noise"] = draw_noise(draws, length, 2)  # last: the length depends on the batch
        return batch

    def _pixels(self, pairs: Sequence[Pair], draws: Sequence[np.random.Generator]) -> Tensor:
        """Return (B[, V], 3, S, S) as the processor normalises them, 0 where there is no image."""
        values = torch.zeros(len(pairs), *self.views, 3, self.image_size, self.image_size)
        for row, pair, draw in zip(values.unflatten(0, (len(pairs), 1)).flatten(1, -4), pairs, draws, strict=True):
            for value, view in zip(row, self._views(pair), strict=True):
                if view is not None:
                    image = _decode(view, pair.id)
                    square = augment(image, self.image_size, draw, self.augmentation, self.crop_scale)
                    torch.addcmul(self._offset, _channels_first(square), self._scale, out=value)
        return values

    def _views(self, pair: Pair) -> Views:
        """Return a pair's images, as many as the model has views."""
        return (None,) * self.views[0] if self.views and pair.image is None else pair.views

    def _tokens(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        texts = [pair.text or "" for pair in pairs]
        encoded = tokenize(
            self.processor.tokenizer,
            texts,
            self.max_text_length,
            return_special_tokens_mask=True,
            return_offsets_mapping=self.whole_words,
        )
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}
        if self.whole_words:
            starts = encoded["offset_mapping"][..., 0].numpy()
            batch["word_ids"] = torch.stack([word_ids(text, row) for text, row in zip(texts, starts, strict=True)])
        return batch


def _decode(image: Image.Image, row: str) -> Image.Image:
    with damage_named(row):
        image.load()
        return plain(image)


def word_ids(text: str, token_starts: np.ndarray) -> Tensor:
    """Number the word that each token belongs to: the one at its first character that is no blank.

    Words match `m3ae.data.words.WORD`. A byte-level tokenizer puts the blank before a word into its first token, and
    splits one character into several tokens of the same place.

    Args:
        text: The text.
        token_starts: (L,) character at which each token starts; anything for special tokens.

    Returns:
        (L,) int64.
    """
    ends = np.array([match.end() for match in WORD.finditer(text)], dtype=np.int64)
    return torch.from_numpy(np.searchsorted(ends, token_starts, side="right"))


def spell_words(text: str, ids: Tensor, token_ends: Tensor) -> list[str]:
    """Return the words of a text, each as far as its tokens reach: one token may hold several Chinese characters.

    Args:
        text: The text.
        ids: (L,) the word of each token, see `word_ids`; −1 for special tokens.
        token_ends: (L,) character behind each token.
    """
    matches = enumerate(WORD.finditer(text))
    return [text[match.start() : max([match.end(), *token_ends[ids == n].tolist()])] for n, match in matches]


def _channels_first(image: Image.Image) -> Tensor:
    """Return (3, S, S), or (1, S, S) for a grey image, of 0 to 255."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float()


def draw_noise(draws: Sequence[np.random.Generator], *shape: int) -> Tensor:
    """Return uniform noise in [0, 1), (B, *shape), each sample's from its own generator."""
    return torch.from_numpy(np.stack([draw.random(shape, dtype=np.float32) for draw in draws]))
