"""What a pre-trained model fills in where patches of an image or words of a text are hidden.

Shapes: B batch, H×W pixels, N patches, n×n of them, P patch side, C channels, L text tokens, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3ae.data.collate import spell_words, word_ids
from m3ae.inference.inputs import encode_pixels, pictures
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.encoders import denormalize_images
from m3ae.models.fusion import Stream
from m3ae.models.masking import PatchMask, collect_labels, mask_patches, patchify, unpatchify
from m3ae.models.modalities.text import tokenize
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor


class MaskedWord(NamedTuple):
    """A word that was hidden.

    Attributes:
        word: The word as it stands in the text.
        position: Its position among the words and punctuation marks of the text.
        predicted: The model's word.
        score: The probability of the model's word, the product over its tokens.
    """

    word: str
    position: int
    predicted: str
    score: float


@dataclass(frozen=True)
class Reconstruction:
    """What a model makes of one sample; the attributes of a missing image or text are None.

    Attributes:
        original: (H, W, 3) in [0, 1], the image as the model sees it.
        masked: The image, grey where a patch was hidden.
        filled: The image with the model's pixels in hidden patches.
        errors: (n, n) mean absolute error of each hidden patch in units of `original`, NaN for visible ones.
        words: The hidden words.
    """

    original: NDArray[np.float32] | None = None
    masked: NDArray[np.float32] | None = None
    filled: NDArray[np.float32] | None = None
    errors: NDArray[np.float32] | None = None
    words: list[MaskedWord] | None = None

    @property
    def mean_error(self) -> float | None:
        """Mean of `errors`; None if no patch was hidden."""
        hidden = None if self.errors is None else self.errors[~np.isnan(self.errors)]
        return float(hidden.mean()) if hidden is not None and len(hidden) else None


class _Words(NamedTuple):
    """Texts with hidden words.

    Attributes:
        spellings: The words of each of the B texts.
        present: (B,) bool.
        encoded: `input_ids` and `attention_mask` (B, L) of the whole texts.
        masked_ids: (B, L) with the mask token in place of the hidden words.
        labels: (B, L) the hidden tokens, −100 elsewhere.
        positions: (B, L) the word of each token, on the CPU.
    """

    spellings: list[list[str]]
    present: Tensor
    encoded: dict[str, Tensor]
    masked_ids: Tensor
    labels: Tensor
    positions: Tensor


class _Patches(NamedTuple):
    """Images with hidden patches: pictures (B, H, W, 3) in [0, 1], `present` (B,), pixels (B, C, H, W) and mask."""

    pictures: NDArray[np.float32]
    present: Tensor
    pixels: Tensor
    mask: PatchMask


@torch.inference_mode()
def reconstruct(
    model: M3AEForPreTraining,
    processor: M3AEProcessor,
    images: Sequence[Image.Image | None],
    texts: Sequence[str | None],
    *,
    mask_ratio: float | None = None,
    word_ratio: float | None = None,
    seed: int = 0,
) -> list[Reconstruction]:
    """Hide patches of images and words of texts, and let the model fill them in, each with the other modality's help.

    As in pre-training, hidden patches are predicted beside the whole text and hidden words beside the whole image, or,
    with the schedule `joint`, beside the visible remainder.

    Args:
        model: The model, in evaluation mode.
        processor: The model's processor, with a fast tokenizer.
        images: B images; None is missing.
        texts: B texts, cut to what the model takes; None is missing.
        mask_ratio: The share of the patches that are hidden; the model's own if None.
        word_ratio: The share of the words that are hidden, at least one; the model's share of tokens if None.
        seed: The seed of the choice of patches and words; the choice for a sample depends on its number only.

    Returns:
        A reconstruction of each sample.

    Raises:
        ValueError: The numbers of images and texts differ, or a share is out of range.
    """
    if len(images) != len(texts) or not images:
        raise ValueError(f"expected as many images as texts, None for a missing one, got {len(images)}, {len(texts)}")
    config = model.config
    mask_ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    word_ratio = config.mlm_probability if word_ratio is None else word_ratio
    for name, share in (("mask_ratio", mask_ratio), ("word_ratio", word_ratio)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is the share that is hidden, 0 to 1, got {share}")
    words = patches = None
    if any(text is not None for text in texts):
        words = _hide_words(processor, model, texts, word_ratio, seed)
    if any(image is not None for image in images):
        patches = _hide_patches(processor, model, images, mask_ratio, seed)
    hidden, context = _encode(model, words, patches)
    samples: list[dict[str, Any]] = [{} for _ in images]
    if patches is not None:
        for row, filled in _fill_patches(model, patches, context | {"image": hidden["image"]}):
            samples[row] |= filled
    if words is not None:
        for row, predicted in _fill_words(processor, model, words, context | {"text": hidden["text"]}):
            samples[row]["words"] = predicted
    return [Reconstruction(**sample) for sample in samples]


def predicted_patches(model: M3AEForPreTraining, pixel_values: Tensor, mim_logits: Tensor) -> Tensor:
    """Turn predictions (B, N, P·P·C) into patches on the scale of `pixel_values`.

    A model that predicts normalised patches says nothing of their mean and contrast: these are the original's.
    """
    if not model.config.norm_pix_loss:
        return mim_logits.float()
    patches = patchify(pixel_values, model.patch_size)
    deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return mim_logits.float() * deviation + patches.mean(dim=-1, keepdim=True)


def _hide_patches(
    processor: M3AEProcessor,
    model: M3AEForPreTraining,
    images: Sequence[Image.Image | None],
    mask_ratio: float,
    seed: int,
) -> _Patches:
    shown = [Image.new("L", (16, 16)) if image is None else image for image in images]
    pixels = encode_pixels(model, processor, shown)
    count = (pixels.shape[-1] // model.patch_size) ** 2
    noise = [torch.rand(count, generator=torch.Generator().manual_seed(seed + row)) for row in range(len(images))]
    present = torch.tensor([image is not None for image in images], device=model.device)
    mask = mask_patches(torch.stack(noise).to(model.device), mask_ratio)
    return _Patches(pictures(processor, shown), present, pixels, mask)


def _hide_words(
    processor: M3AEProcessor, model: M3AEForPreTraining, texts: Sequence[str | None], share: float, seed: int
) -> _Words:
    """Replace whole words of each text by the mask token, at least one where the text has a word."""
    filled, tokenizer, device = [text or "" for text in texts], processor.tokenizer, model.device
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    encoded = tokenize(tokenizer, filled, model.config.longest_text, **options)
    ids, positions, spellings = encoded["input_ids"], list[Tensor](), list[list[str]]()
    for text, offsets, special in zip(filled, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True):
        words = word_ids(text, offsets[:, 0].numpy())
        words[special.bool()] = -1
        positions.append(words)
        spellings.append(spell_words(text, words, offsets[:, 1]))
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    for row, (words, spelling) in enumerate(zip(positions, spellings, strict=True)):
        kept = set(words.tolist())  # others are cut off
        candidates = [n for n, word in enumerate(spelling) if n in kept and word[0].isalnum()]
        order = np.random.default_rng([seed, row]).permutation(candidates)
        chosen = order[: max(1, round(share * len(order)))]
        hidden[row] = torch.isin(words, torch.from_numpy(chosen.astype(np.int64)))
    return _Words(
        spellings,
        present=torch.tensor([text is not None for text in texts], device=device),
        encoded={name: encoded[name].to(device) for name in ("input_ids", "attention_mask")},
        masked_ids=ids.masked_fill(hidden, tokenizer.mask_token_id).to(device),
        labels=ids.masked_fill(~hidden, -100).to(device),
        positions=torch.stack(positions),
    )


def _encode(
    model: M3AEForPreTraining, words: _Words | None, patches: _Patches | None
) -> tuple[dict[str, Stream], dict[str, Stream]]:
    """Encode the visible remainder of texts and images, and the context in which the other modality is predicted."""
    trunk, hidden, context = model.m3ae, dict[str, Stream](), dict[str, Stream]()
    if words is not None:
        hidden["text"] = trunk.encode_text(words.masked_ids, words.encoded["attention_mask"], words.present)
    if patches is not None:
        hidden["image"] = trunk.encode_image(patches.pixels, patches.mask.ids_keep, patches.present)
    if words is None or patches is None:
        return hidden, context
    if model.config.schedule == "joint":
        return hidden, hidden
    context["text"] = trunk.encode_text(**words.encoded, present=words.present)
    context["image"] = trunk.encode_image(patches.pixels, None, patches.present)
    return hidden, context


def _fill_patches(
    model: M3AEForPreTraining, patches: _Patches, streams: dict[str, Stream]
) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    """Yield the attributes of a `Reconstruction` for each sample with an image."""
    depth = None if model.config.mim_layer < 0 else model.config.mim_layer
    fused = model.m3ae.fuse(streams, {"image": None}, depth)[-1]["image"]
    predicted = predicted_patches(model, patches.pixels, model.mim_head(fused, patches.mask.ids_restore))
    size, channels = model.patch_size, patches.pixels.shape[1]
    assert isinstance(model.config.image_config, M3AEImageConfig)
    images = denormalize_images(unpatchify(predicted, size, channels), model.config.image_config)
    filled = images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    side = filled.shape[1] // size
    hidden = patches.mask.mask.view(-1, side, side).cpu().numpy()
    pixelwise = hidden.repeat(size, 1).repeat(size, 2)[..., None]
    errors = np.abs(filled - patches.pictures).reshape(-1, side, size, side, size, channels).mean((2, 4, 5))
    attributes = {
        "original": patches.pictures,
        "masked": np.where(pixelwise, np.float32(0.5), patches.pictures),
        "filled": np.where(pixelwise, filled, patches.pictures),
        "errors": np.where(hidden, errors, np.float32(np.nan)),
    }
    for row in patches.present.nonzero()[:, 0].tolist():
        yield row, {name: values[row] for name, values in attributes.items()}


def _fill_words(
    processor: M3AEProcessor, model: M3AEForPreTraining, words: _Words, streams: dict[str, Stream]
) -> Iterator[tuple[int, list[MaskedWord]]]:
    """Yield the hidden words of each sample with a text."""
    columns, labels = collect_labels(words.labels)
    fused = model.m3ae.fuse(streams, {"text": columns})[-1]["text"]
    best = model.mlm_head(fused).float().softmax(-1).max(-1)
    scores, tokens, columns, hidden = (values.cpu() for values in (*best, columns, labels != -100))
    for row in words.present.nonzero()[:, 0].tolist():
        kept, predicted = hidden[row], list[MaskedWord]()
        positions = words.positions[row, columns[row, kept]]
        for position in positions.unique().tolist():
            pieces = positions == position
            text = processor.tokenizer.decode(tokens[row, kept][pieces]).strip()
            score = float(scores[row, kept][pieces].prod())
            predicted.append(MaskedWord(words.spellings[row][position], position, text, score))
        yield row, predicted
