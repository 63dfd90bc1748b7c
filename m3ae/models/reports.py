"""The model that writes reports: a GPT-2 that attends to the fused tokens of images, and of further texts.

Shapes: B batch, V views, C channels, H×W pixels, S fused tokens of all streams, L report tokens, D fusion width, W
words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin

from m3ae.models.configuration import M3AEConfig
from m3ae.models.finetuned import M3AEForClassificationOutput
from m3ae.models.fusion import Stream
from m3ae.models.gaussians import upcast
from m3ae.models.modeling import OTHER_HEADS, STREAMS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.option_checks import checked_arguments
from m3ae.models.text_decoders import SpecialTokens, build_gpt2, write_texts

IGNORED = -100


class M3AEForReportGenerationOutput(M3AEForClassificationOutput):
    """Scores of next words: the attributes of `M3AEForClassificationOutput`, with `losses` of {"report": loss}.

    `logits` (B, L, W) of position i are of the token behind token i; L is 1 without labels: the first word.
    """


class Memory(NamedTuple):
    """What a report is written from: the fused tokens (B, S, D) of all streams, and which of them (B, S) are read."""

    tokens: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Return the mean (B, D) of the tokens that are read."""
        return (self.tokens * self.mask[..., None]).sum(1) / self.mask.sum(1, keepdim=True)


class M3AEForReportGeneration(M3AEPreTrainedModel, GenerationMixin):
    """The trunk and an autoregressive decoder of reports, with `generate` of transformers.

    `generation_config` holds how the model writes by default. Reports have the words of the model's tokenizer.
    """

    _keys_to_ignore_on_load_unexpected = OTHER_HEADS

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.special = SpecialTokens.of(config)
        self.m3ae = M3AEModel(config)
        self.report_head = build_gpt2(
            text.vocab_size,
            self.special,
            n_positions=config.longest_text,
            n_embd=config.hidden_size,
            n_layer=config.report_num_hidden_layers,
            n_head=config.num_attention_heads,
            embd_pdrop=config.hidden_dropout_prob,
            resid_pdrop=config.hidden_dropout_prob,
            attn_pdrop=config.attention_probs_dropout_prob,
            initializer_range=config.initializer_range,
            add_cross_attention=True,
        )
        self.post_init()
        self.generation_config = GenerationConfig(max_new_tokens=config.longest_text - 1)

    def encode(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> Memory:
        """Encode and fuse the inputs of a report; `forward` has the same arguments.

        A sample without image and text is read as zeros, and gets the usual report.
        """
        inputs = (input_ids, attention_mask, image_present, text_present, pixel_mask)
        return self.fuse(self.m3ae.encode(pixel_values, *inputs))

    def fuse(self, streams: Mapping[str, Stream]) -> Memory:
        """Fuse encoded streams into the memory that the decoder reads."""
        fused = self.m3ae.fuse(streams)[-1]
        names = [name for name in STREAMS if name in fused]
        masks = []
        for name in names:
            tokens, stream = fused[name], streams[name]
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if stream.mask is None else stream.mask
            if stream.present is not None:
                present = stream.present.view(len(tokens), -1)
                mask = mask & present.repeat_interleave(tokens.shape[1] // present.shape[1], 1)
            masks.append(mask)
        tokens, mask = torch.cat([fused[name] for name in names], 1), torch.cat(masks, 1)
        return Memory(tokens.masked_fill(~mask[..., None], 0), mask | ~mask.any(1, keepdim=True))

    def decode(self, memory: Memory, input_ids: Tensor) -> Tensor:
        """Return the logits (B, L, W) of the token behind each token (B, L) of reports."""
        logits: Tensor = self.report_head(input_ids=input_ids, use_cache=False, **_cross(memory)).logits
        return logits

    @checked_arguments
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> M3AEForReportGenerationOutput:
        """Score reports about images, about further texts, or about both.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; None without images.
            input_ids: (B, L') of a further text such as the indication, or None without text.
            attention_mask: (B, L'), 0 = padding.
            image_present: (B,) bool, False where a sample has no image; (B, V) of several views.
            text_present: (B,) bool, False where a sample has no text.
            pixel_mask: (B, H, W) or (B, V, H, W), 0 = padding.
            labels: (B, L) the reports' tokens with both ends; −100 = padding.

        Raises:
            ValueError: Images and texts are both left out.
        """
        memory = self.encode(pixel_values, input_ids, attention_mask, image_present, text_present, pixel_mask)
        if labels is None:
            return M3AEForReportGenerationOutput(logits=self.decode(memory, self._start(memory)))
        logits = self.decode(memory, labels.masked_fill(labels == IGNORED, self.special.pad))
        costs = token_costs(logits, labels)
        loss = costs.sum() / (labels[:, 1:] != IGNORED).sum().clamp(min=1)
        return M3AEForReportGenerationOutput(loss, {"report": loss}, logits)

    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        memory: Memory | None = None,
        **options: Any,
    ) -> Tensor:
        """Write reports; the arguments of `forward` have the same meaning here.

        Args:
            pixel_values: Images.
            input_ids: Further texts.
            attention_mask: (B, L'), 0 = padding.
            image_present: (B,) or (B, V) bool.
            text_present: (B,) bool.
            pixel_mask: (B, H, W) or (B, V, H, W), 0 = padding.
            memory: The result of `encode`, in place of the inputs.
            options: Options of transformers' `generate` that replace those of `generation_config`, such as
                `num_beams=4`, or `do_sample=True, top_p=0.9`.

        Returns:
            Token ids (B, L), padded; (B·n, L) with `num_return_sequences=n`.
        """
        if memory is None:
            with torch.no_grad():
                memory = self.encode(pixel_values, input_ids, attention_mask, image_present, text_present, pixel_mask)
        start = self._start(memory)
        inputs = {"input_ids": start, "attention_mask": torch.ones_like(start), **_cross(memory)}
        return write_texts(self.report_head, self.special, inputs, **self.generation_config.to_diff_dict() | options)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of words, in the encoder and in the decoder."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.report_head.resize_token_embeddings(embeddings.num_embeddings, mean_resizing=mean_resizing)
        return embeddings

    def _start(self, memory: Memory) -> Tensor:
        """Return the first token (B, 1) of every report."""
        return torch.full((len(memory.tokens), 1), self.special.bos, device=memory.tokens.device)


def token_costs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood (B, L − 1) of each token behind the first, in nats; 0 for padding.

    Args:
        logits: (B, L, W).
        labels: (B, L), −100 = padding.
    """
    flat = F.cross_entropy(upcast(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return flat.view(len(labels), -1)


def _cross(memory: Memory) -> dict[str, Tensor]:
    return {"encoder_hidden_states": memory.tokens, "encoder_attention_mask": memory.mask}
