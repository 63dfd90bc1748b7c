"""What a pre-trained model fills in where patches of an image or words of a text are hidden.

Shapes: B batch, H×W pixels, N patches, n×n of them, P patch side, C channels, L text tokens, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m3ae.inference.inputs import encode_pixels, pictures
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.encoders import denormalize_images
from m3ae.models.masking import patchify, unpatchify
from m3ae.models.modalities.text import spell_words, tokenize, word_ids
from m3ae.models.pretraining import M3AEForPreTraining, M3AEForPreTrainingOutput
from m3ae.models.processing import M3AEProcessor


class MaskedWord(NamedTuple):
    """A word that was hidden.

    Attributes:
        word: The word as it stands in the text.
        position: The word's position among the words and punctuation marks of the text.
        predicted: The model's word.
        score: The probability of the model's word, the product over its tokens.
    """

    word: str
    position: int
    predicted: str
    score: float


@dataclass(frozen=True)
class Reconstruction:
    """The reconstruction of one sample; the attributes of a missing image or text are None.

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
    """The words of a text, and the word (L,) of each token; −1 for special tokens."""

    spellings: list[str]
    positions: Tensor


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
    """Hide patches of images and words of texts, and let the model fill them in.

    As in pre-training, the model predicts hidden patches beside the whole text, and hidden words beside the whole
    image. With the schedule `joint`, both are hidden at once.

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
    if any(image is not None for image in images) and not config.mim_weight:
        raise ValueError("the model was trained without masked images: it cannot fill in patches")
    if any(text is not None for text in texts) and not config.mlm_weight:
        raise ValueError("the model was trained without masked texts: it cannot fill in words")
    shown = [Image.new("L", (16, 16)) if image is None else image for image in images]
    inputs, words = _hide_words(processor, config.longest_text, texts, word_ratio, seed)
    inputs |= _hide_patches(model, encode_pixels(model, processor, shown), images, seed)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    generator = torch.Generator(model.device).manual_seed(seed)
    output = model(**inputs, mask_ratio=mask_ratio, generator=generator, with_latent=False)
    samples: list[dict[str, Any]] = [{} for _ in images]
    if config.mim_weight:
        filled = _fill_patches(model, pictures(processor, shown), inputs["pixel_values"], output)
        for row in inputs["image_present"].nonzero()[:, 0].tolist():
            samples[row] |= {name: values[row] for name, values in filled.items()}
    if config.mlm_weight:
        predicted = _fill_words(processor, words, output)
        for row in inputs["text_present"].nonzero()[:, 0].tolist():
            samples[row]["words"] = predicted[row]
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
    model: M3AEForPreTraining, pixels: dict[str, Tensor], images: Sequence[Image.Image | None], seed: int
) -> dict[str, Tensor]:
    """Return inputs of the model that hide patches of each image."""
    count = (pixels["pixel_values"].shape[-1] // model.patch_size) ** 2
    noise = [torch.rand(count, generator=torch.Generator().manual_seed(seed + row)) for row in range(len(images))]
    present = torch.tensor([image is not None for image in images])
    return pixels | {"image_present": present, "image_noise": torch.stack(noise)}


def _hide_words(
    processor: M3AEProcessor, longest: int, texts: Sequence[str | None], share: float, seed: int
) -> tuple[dict[str, Tensor], list[_Words]]:
    """Return inputs of the model in which whole words are masked, at least one of each text, and the texts' words."""
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    encoded = tokenize(processor.tokenizer, [text or "" for text in texts], longest, **options)
    ids, all_words = encoded["input_ids"], list[_Words]()
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    for row, (text, offsets) in enumerate(zip(texts, encoded["offset_mapping"], strict=True)):
        positions = word_ids(text or "", offsets[:, 0].numpy())
        positions[encoded["special_tokens_mask"][row].bool()] = -1
        words = _Words(spell_words(text or "", positions, offsets[:, 1]), positions)
        kept = set(positions.tolist())  # others are cut off
        candidates = [n for n, word in enumerate(words.spellings) if n in kept and word[0].isalnum()]
        order = np.random.default_rng([seed, row]).permutation(candidates)
        chosen = order[: max(1, round(share * len(order)))]
        hidden[row] = torch.isin(positions, torch.from_numpy(chosen.astype(np.int64)))
        all_words.append(words)
    inputs = {
        "input_ids": ids,
        "attention_mask": encoded["attention_mask"],
        "text_present": torch.tensor([text is not None for text in texts]),
        "mlm_input_ids": ids.masked_fill(hidden, processor.tokenizer.mask_token_id),
        "mlm_labels": ids.masked_fill(~hidden, -100),
    }
    return inputs, all_words


def _fill_patches(
    model: M3AEForPreTraining, pictures: NDArray[np.float32], pixels: Tensor, output: M3AEForPreTrainingOutput
) -> dict[str, NDArray[np.float32]]:
    """Return the attributes of a `Reconstruction` for each of the B images."""
    assert output.mim_logits is not None and output.mim_mask is not None
    assert isinstance(model.config.image_config, M3AEImageConfig)
    size, channels = model.patch_size, pixels.shape[1]
    patches = predicted_patches(model, pixels, output.mim_logits)
    images = denormalize_images(unpatchify(patches, size, channels), model.config.image_config)
    filled = images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    side = filled.shape[1] // size
    hidden = output.mim_mask.view(-1, side, side).cpu().numpy()
    pixelwise = hidden.repeat(size, 1).repeat(size, 2)[..., None]
    errors = np.abs(filled - pictures).reshape(-1, side, size, side, size, channels).mean((2, 4, 5))
    return {
        "original": pictures,
        "masked": np.where(pixelwise, np.float32(0.5), pictures),
        "filled": np.where(pixelwise, filled, pictures),
        "errors": np.where(hidden, errors, np.float32(np.nan)),
    }


def _fill_words(
    processor: M3AEProcessor, words: Sequence[_Words], output: M3AEForPreTrainingOutput
) -> list[list[MaskedWord]]:
    """Return the hidden words of each text."""
    assert output.mlm_logits is not None and output.mlm_positions is not None and output.mlm_labels is not None
    scores, tokens = (values.cpu() for values in output.mlm_logits.float().softmax(-1).max(-1))
    columns, hidden = output.mlm_positions.cpu(), output.mlm_labels.cpu() != -100
    all_predicted = []
    for row, (spellings, positions) in enumerate(words):
        word_of_token, predicted = positions[columns[row, hidden[row]]], list[MaskedWord]()
        for position in word_of_token.unique().tolist():
            pieces = word_of_token == position
            text = processor.tokenizer.decode(tokens[row, hidden[row]][pieces]).strip()
            score = float(scores[row, hidden[row]][pieces].prod())
            predicted.append(MaskedWord(spellings[position], position, text, score))
        all_predicted.append(predicted)
    return all_predicted
