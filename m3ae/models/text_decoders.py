"""Decoders of texts from z: a masked language model, and an autoregressive one, whose GPT-2 writes reports, too.

Shapes: R rows (any samples and components of a batch), Z dimensions of z and of the private latent together, L text
tokens, T latent tokens, W width, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GPT2Config, GPT2LMHeadModel

from m3ae.models.configuration import M3AEConfig
from m3ae.models.gaussians import upcast
from m3ae.models.latent_networks import LatentAttention

if TYPE_CHECKING:
    from m3ae.models.modalities.text import TextModalityConfig

# What transformers calls the cache of a model, by version.
CACHE = "cache" if "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters else "past_key_values"
Resize = Callable[[Any, int], Any]  # a layer and the number of words → the layer of that size
FULLY_MASKED_SHARE = 0.25  # of the rows in training: what generation starts from


class SpecialTokens(NamedTuple):
    """Ids of the tokens that no text is made of."""

    bos: int
    eos: int
    pad: int
    mask: int

    @classmethod
    def of(cls, config: M3AEConfig) -> SpecialTokens:
        """Return the special tokens of a model; ValueError if the text encoder's are unknown."""
        text: Any = config.text_config
        ends = (text.bos_token_id, text.eos_token_id, text.pad_token_id)
        if not all(isinstance(token, int) for token in ends):
            raise ValueError(f"text_config: bos, eos and pad tokens of a decoded text must be known, got {ends}.")
        assert config.mask_token_id is not None
        bos, eos, pad = map(int, ends)
        return cls(bos, eos, pad, config.mask_token_id)


def build_gpt2(vocab_size: int, special: SpecialTokens, **options: Any) -> GPT2LMHeadModel:
    """Build a GPT-2 (Radford et al. 2019) with random weights and further options of `GPT2Config`."""
    options = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False, **options}
    ends: dict[str, Any] = {"bos_token_id": special.bos, "eos_token_id": special.eos}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **ends, **options))


@torch.no_grad()
def write_texts(model: GPT2LMHeadModel, special: SpecialTokens, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """Write the likeliest next token until the end, or as the options of transformers' `generate` say.

    Args:
        model: The GPT-2.
        special: Its special tokens; a text has none of them but its two ends.
        inputs: What the GPT-2 reads: with cross-attention `encoder_hidden_states`.
        options: Options of `generate`, `max_new_tokens` among them.

    Returns:
        Token ids (R, L), padded.
    """
    settings: dict[str, Any] = {
        "do_sample": False,
        "pad_token_id": special.pad,  # of texts that have ended; in the config, it would warn of them as of inputs
        "suppress_tokens": [special.bos, special.pad, special.mask],
        **inputs,
    }
    if "encoder_hidden_states" in inputs and options.get("use_cache", True):
        caches = (DynamicCache(config=model.config) for _ in range(2))
        settings[CACHE] = EncoderDecoderCache(*caches)
    written = model.generate(**settings | options)  # type: ignore[misc, unused-ignore]  # self is annotated so in some versions
    assert isinstance(written, Tensor)
    return written


class TextDecoder(nn.Module, ABC):
    """z → the likelihood of a text, or a text."""

    def __init__(self, config: M3AEConfig, modality: TextModalityConfig) -> None:
        super().__init__()
        text = config.text_config
        assert text is not None and not isinstance(text, dict)
        self.max_length, self.vocab_size = modality.max_length, text.vocab_size
        self.special = SpecialTokens.of(config)
        self.bos, self.eos, self.pad, self.mask = self.special

    @abstractmethod
    def log_likelihood(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, noise: Tensor) -> Tensor:
        """Return log p(text|z) in nats, (R,), or raise ValueError if the texts are longer than `max_length`.

        Args:
            latents: (R, Z).
            input_ids: (R, L), with its special tokens.
            attention_mask: (R, L), 0 = padding.
            noise: (R, 1 + L) uniform in [0, 1).
        """

    @abstractmethod
    def generate(self, latents: Tensor, **options: Any) -> Tensor:
        """Write a text for each row of latents (R, Z): token ids (R, L), padded."""

    def resize(self, vocab_size: int, embedding: Resize, linear: Resize) -> None:
        """Take another number of words; `embedding` and `linear` resize layers, as `PreTrainedModel` does."""
        self.vocab_size = vocab_size

    def _check_length(self, input_ids: Tensor) -> None:
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"Texts of {input_ids.shape[1]} tokens, expected at most {self.max_length}: set max_length of the "
                "modality, or cut the texts (data.max_text_length)."
            )


class MaskedTextDecoder(TextDecoder):
    """A masked language model conditioned on z, which also predicts how long the text is.

    Its likelihood is that of filling in the tokens in random order (Hoogeboom et al. 2022): with k of n tokens masked,
    k uniform in 1 … n, and Σ the log-probabilities of the masked ones, E[n/k · Σ] is a lower bound on log p(text | z,
    length). In training, a quarter of the rows is fully masked instead, where Σ is a bound, too. log p(length | z)
    is added. The special tokens at both ends are certain.
    """

    def __init__(self, config: M3AEConfig, input_size: int, modality: TextModalityConfig, num_tokens: int) -> None:
        super().__init__(config, modality)
        width = modality.hidden_size
        self.embed = nn.Embedding(self.vocab_size, width)
        self.positions = nn.Embedding(self.max_length, width)
        self.attention = LatentAttention(input_size, modality, num_tokens)
        self.predict = nn.Linear(width, self.vocab_size)
        self.length = nn.Linear(input_size, self.max_length - 1)  # tokens beside the special ones: 0 … max_length − 2

    def log_likelihood(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the bound on log p(text|z), see the class."""
        self._check_length(input_ids)
        ends = input_ids.new_tensor([self.bos, self.eos, self.pad])
        content = attention_mask.bool() & (input_ids[..., None] != ends).all(-1)
        count = content.sum(1)  # n
        masked = noise[:, 1:].masked_fill(~content, 2).argsort(1).argsort(1) < self._num_masked(noise[:, :1], count)
        logits = self._logits(input_ids.masked_fill(masked, self.mask), latents, attention_mask.bool(), masked)
        sums = _log_probabilities(logits, input_ids, masked)
        length = upcast(self.length(latents)).log_softmax(-1).gather(1, count[:, None])[:, 0]
        return sums * count / masked.sum(1).clamp(min=1) + length

    def resize(self, vocab_size: int, embedding: Resize, linear: Resize) -> None:
        """Resize what reads and what predicts words."""
        super().resize(vocab_size, embedding, linear)
        self.embed, self.predict = embedding(self.embed, vocab_size), linear(self.predict, vocab_size)

    def _num_masked(self, noise: Tensor, count: Tensor) -> Tensor:
        if self.training:
            noise = ((noise - FULLY_MASKED_SHARE) / (1 - FULLY_MASKED_SHARE)).where(noise >= FULLY_MASKED_SHARE, 1)
        return (noise * count[:, None]).floor() + 1

    def _logits(self, input_ids: Tensor, latents: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        """Return the logits (…, V) of the tokens for which `predicted` (R, L) is True."""
        tokens = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        logits: Tensor = self.predict(self.attention(tokens, latents, visible)[predicted])
        return logits

    @torch.no_grad()
    def generate(self, latents: Tensor, **options: Any) -> Tensor:
        """Write the likeliest length, then in each step the token of which the model is surest; without options."""
        if options:
            raise ValueError(
                f"text options: got {', '.join(options)} for a masked text decoder, which writes in one way alone; "
                "they are for the decoder autoregressive"
            )
        count = self.length(latents).argmax(-1, keepdim=True)  # (R, 1)
        position = torch.arange(int(count.max()) + 2, device=latents.device)
        input_ids = torch.full((len(latents), len(position)), self.pad, device=latents.device)
        input_ids[:, 0] = self.bos
        input_ids.scatter_(1, count + 1, self.eos)
        hidden, visible = (position >= 1) & (position <= count), position <= count + 1
        input_ids[hidden] = self.mask
        while hidden.any():
            logits = upcast(self._logits(input_ids, latents, visible, hidden))
            logits[:, list(self.special)] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            surest = confidence.new_full(hidden.shape, -1).masked_scatter(hidden, confidence).argmax(1, keepdim=True)
            chosen = hidden & (position == surest)
            input_ids[chosen] = input_ids.masked_scatter(hidden, token)[chosen]
            hidden = hidden & ~chosen
        return input_ids


class AutoregressiveTextDecoder(TextDecoder):
    """A GPT-2 that reads latent tokens made of z; its likelihood is exact.

    In training, a share of the words that it reads is masked, `dropout` of the modality: what it cannot copy from the
    words before it has to read from z (word dropout, Bowman et al. 2016).
    """

    def __init__(self, config: M3AEConfig, input_size: int, modality: TextModalityConfig, num_tokens: int) -> None:
        super().__init__(config, modality)
        self.num_tokens, self.word_dropout = num_tokens, modality.dropout
        self.prefix = modality.conditioning == "prefix"
        self.latent_tokens = nn.Linear(input_size, num_tokens * modality.hidden_size)
        self.model = build_gpt2(
            self.vocab_size,
            self.special,
            n_positions=self.max_length + num_tokens * self.prefix,
            n_embd=modality.hidden_size,
            n_layer=modality.num_layers,
            n_head=modality.num_attention_heads,
            add_cross_attention=not self.prefix,
        )

    def log_likelihood(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor, noise: Tensor) -> Tensor:
        """Return log p(text|z), that of its end included."""
        self._check_length(input_ids)
        content, read = attention_mask.bool(), input_ids
        if self.training and self.word_dropout:
            hidden = (noise[:, 1:] < self.word_dropout) & content & (input_ids != self.bos)
            read = input_ids.masked_fill(hidden, self.mask)
        inputs = self._inputs(read, attention_mask, latents)
        states = self.model.transformer(**inputs, use_cache=False).last_hidden_state
        predicted = content[:, 1:]
        logits = self.model.lm_head(states[:, -input_ids.shape[1] : -1][predicted])
        return _log_probabilities(logits, input_ids[:, 1:], predicted)

    def generate(self, latents: Tensor, **options: Any) -> Tensor:
        """Write the likeliest next token until the end, or as the options of transformers' `generate` say."""
        start = torch.full((len(latents), 1), self.bos, device=latents.device)
        inputs = self._inputs(start, torch.ones_like(start), latents)
        written = write_texts(self.model, self.special, inputs, **{"max_new_tokens": self.max_length - 1, **options})
        # from embeddings, `generate` returns the new tokens alone
        return torch.cat([start, written], 1) if self.prefix else written

    def resize(self, vocab_size: int, embedding: Resize, linear: Resize) -> None:
        """Resize what reads and what predicts words."""
        super().resize(vocab_size, embedding, linear)
        self.model.resize_token_embeddings(vocab_size, mean_resizing=False)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor, latents: Tensor) -> dict[str, Any]:
        """Return what the GPT-2 reads: tokens (R, L), which of them are no padding, and latents (R, Z)."""
        memory = self.latent_tokens(latents).unflatten(-1, (self.num_tokens, -1))  # (R, T, W)
        if not self.prefix:
            return {"input_ids": input_ids, "attention_mask": attention_mask, "encoder_hidden_states": memory}
        embedded = torch.cat([memory, self.model.transformer.wte(input_ids)], 1)
        everywhere = attention_mask.new_ones(memory.shape[:2])
        return {"inputs_embeds": embedded, "attention_mask": torch.cat([everywhere, attention_mask], 1)}


def _log_probabilities(logits: Tensor, input_ids: Tensor, predicted: Tensor) -> Tensor:
    """Sum up (R,) the log-probabilities of the tokens (R, L) that are `predicted` (R, L) bool by logits (…, V)."""
    values = upcast(logits).log_softmax(-1).gather(1, input_ids[predicted][:, None])[:, 0]
    return values.new_zeros(predicted.shape).masked_scatter(predicted, values).sum(1)
