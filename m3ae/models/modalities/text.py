"""The kind `text`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedTokenizerBase

from m3ae.models.fusion import Stream
from m3ae.models.modalities.base import Modality, Tensors
from m3ae.models.modalities.options import BatchOptions, TransformerModalityConfig, check_transformer
from m3ae.models.option_checks import check_count
from m3ae.models.text_decoders import AutoregressiveTextDecoder, MaskedTextDecoder, TextDecoder
from m3ae.words import WORD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from m3ae.models.modeling import M3AEEncoders


@dataclass(frozen=True)
class TextModalityConfig(TransformerModalityConfig):
    """The options of a text.

    The encoder `roberta` is the trunk's, shared by all texts. The decoders are `transformer`, a masked language model,
    and `autoregressive`, see `m3ae.models.text_decoders`.

    Attributes:
        max_length: Longest text in tokens that can be decoded, special ones included.
    """

    max_length: int = 64


def _masked_decoder(modality: Text, input_size: int) -> nn.Module:
    return MaskedTextDecoder(modality.model, input_size, modality.config, cast(Any, modality.model.latent).num_tokens)


def _autoregressive_decoder(modality: Text, input_size: int) -> nn.Module:
    num_tokens = cast(Any, modality.model.latent).num_tokens
    return AutoregressiveTextDecoder(modality.model, input_size, modality.config, num_tokens)


class Text(Modality):
    """Token ids (L,) of a text. A cell is the text."""

    kind = "text"
    config_class = TextModalityConfig
    config: TextModalityConfig
    columns = ("text", "texts")
    tensor = "input_ids"
    further_tensors = ("attention_mask",)
    encoders: ClassVar = {"roberta": None}
    decoders: ClassVar = {"transformer": _masked_decoder, "autoregressive": _autoregressive_decoder}
    likelihoods: ClassVar = {"categorical": None}
    is_text = True

    @classmethod
    def check(cls, owner: str, config: TextModalityConfig) -> None:
        """Raise ValueError if the options do not fit together."""
        super().check(owner, config)
        check_transformer(owner, config)
        check_count(f"{owner}.max_length", config.max_length, 3)

    @property
    def stream(self) -> str | None:
        """The trunk's `text`, unless nothing encodes the modality."""
        return "text" if self.config.encoder == "roberta" else None

    def targets(self, tensors: Tensors, present: Tensor) -> dict[str, Tensor]:
        """Return ids and mask; rows of absent texts are never read."""
        ids, mask = tensors["input_ids"], tensors.get("attention_mask")
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}

    def encode(self, trunk: M3AEEncoders, targets: Tensors, present: Tensor) -> Stream:
        """Return the trunk's tokens."""
        return trunk.encode_text(targets["input_ids"], targets["attention_mask"], present)

    def log_likelihood(
        self,
        decoder: nn.Module,
        likelihood: nn.Module | None,
        latents: Tensor,
        targets: Tensors,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log p(text|z) (…, B), as the decoder estimates it."""
        assert isinstance(decoder, TextDecoder)
        lead = latents.shape[:-1]
        ids = targets["input_ids"].expand(*lead, -1)
        shape = (*lead, 1 + ids.shape[-1])
        if noise is None:
            noise = torch.rand(shape, generator=generator, device=latents.device)
        mask = targets["attention_mask"].expand(*lead, -1)
        rows = (tensor.flatten(0, -2) for tensor in (latents, ids, mask, noise.expand(shape)))
        value: Tensor = decoder.log_likelihood(*rows).unflatten(0, lead)
        return value

    def decode(
        self,
        decoder: nn.Module,
        likelihood: nn.Module | None,
        latents: Tensor,
        text_options: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Write a text for each row of latents: token ids (R, L)."""
        assert isinstance(decoder, TextDecoder)
        return decoder.generate(latents, **text_options)

    def read(self, cells: Sequence[Any], seed: int) -> str | None:
        """Return one of the row's texts; other bits of the seed draw it than those that draw a view."""
        texts = texts_of(cells)
        return texts[(seed >> 32) % len(texts)] if texts else None

    def batch(
        self, cells: Sequence[Any | None], options: BatchOptions, draws: Sequence[np.random.Generator]
    ) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (B, L) int64; an absent text is the empty one.

        The trunk's batch also has `special_tokens_mask` (B, L); `word_ids` (B, L) are an option.

        Raises:
            ValueError: There is no tokenizer.
        """
        if options.tokenizer is None:
            raise ValueError(f"Texts need a tokenizer, got none for {self.name}.")
        longest = self.config.max_length if options.max_text_length is None else options.max_text_length
        texts = [cell or "" for cell in cells]
        encoded = tokenize(
            options.tokenizer,
            texts,
            longest,
            return_special_tokens_mask=options.for_trunk,
            return_offsets_mapping=options.word_ids,
        )
        names = ("input_ids", "attention_mask", "special_tokens_mask")
        batch = {name: encoded[name] for name in names if name in encoded}
        if options.word_ids:
            starts = encoded["offset_mapping"][..., 0].numpy()
            batch["word_ids"] = torch.stack([word_ids(text, row) for text, row in zip(texts, starts, strict=True)])
        return batch

    @property
    def value_type(self) -> type:
        """A text."""
        return str

    def cell(self, value: Any) -> str:
        """Return the text."""
        self._expect(value)
        return str(value)

    def values(self, decoded: Tensor, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Any]:
        """Return texts of token ids (N, L)."""
        assert tokenizer is not None
        return [text.strip() for text in tokenizer.batch_decode(decoded, skip_special_tokens=True)]

    def drawable(self, value: Any) -> str:
        """Return some lines; an untrained model writes control characters, which no font has."""
        shown = "".join(letter if letter.isprintable() else " " for letter in value)
        return textwrap.fill(shown, 22, max_lines=10, placeholder=" …")

    def draw(self, axes: Axes, drawable: Any) -> None:
        """Write the lines."""
        axes.text(0.5, 0.5, drawable, ha="center", va="center", fontsize=5, parse_math=False)


def texts_of(cells: Sequence[Any]) -> list[str]:
    """Return the texts of a row: those of its list, or its columns of one text each, joined by a blank."""
    if len(cells) == 1 and not isinstance(cells[0], str):
        return [text for text in cells[0] or [] if text]
    joined = " ".join(cell for cell in cells if cell)
    return [joined] if joined else []


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, **options: bool
) -> BatchEncoding:
    """Tokenize texts as tensors (B, L), padded to the longest, which is at most `max_length` tokens."""
    encoded: BatchEncoding = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=max_length,
        pad_to_multiple_of=None if max_length % 8 else 8,  # few lengths, so compiled shapes recur
        return_tensors="pt",
        **options,
    )
    return encoded


def word_ids(text: str, token_starts: np.ndarray) -> Tensor:
    """Number the word that each token belongs to: the one at its first character that is no blank.

    Words match `m3ae.words.WORD`. A byte-level tokenizer puts the blank before a word into its first token, and
    splits one character into several tokens with one position.

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
