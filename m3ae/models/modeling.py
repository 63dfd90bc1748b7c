"""The M3AE trunk: encoders of one modality each and a co-attention fusion.

Shapes: B batch, V views, C channels, H×W pixels, N patches, K visible patches, L text tokens, D fusion width.
Presence: True = the sample has this modality.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from m3ae.models.base import OTHER_HEADS, M3AEPreTrainedModel
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import ImageEncoder
from m3ae.models.fusion import Fusion, Stream
from m3ae.models.heads import Pooler
from m3ae.models.option_checks import checked_arguments
from m3ae.models.text_encoder import build_text_encoder

STREAMS = ("text", "image")  # in this order poolers are concatenated and modality types are numbered


@dataclass
class M3AEModelOutput(ModelOutput):
    """Fused features.

    Attributes:
        text_hidden_state: (B, L, D), or None without text.
        image_hidden_state: (B, 1 + N, D), the class token first, or None without images; (B, V·(1 + N), D) of several
            views, one after the other.
        pooler_output: (B, 2·D) pooled text then pooled image; zeros for an absent modality.
        hidden_states: With `output_hidden_states`, see `m3ae.models.attention.recording`.
        attentions: With `output_attentions`, see there.
    """

    text_hidden_state: Tensor | None = None
    image_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def first_token(rows: Tensor) -> Tensor:
    """Return the position (B, 1) of the class token in each of the rows (B, …)."""
    return torch.zeros(rows.shape[0], 1, dtype=torch.long, device=rows.device)


def class_tokens(tokens: Tensor, num_views: int) -> Tensor:
    """Return the first token of each view, (B, V, D), of the tokens (B, V·S, D) of a stream."""
    first: Tensor = tokens.unflatten(1, (num_views, -1))[:, :, 0]
    return first


class M3AEEncoders(M3AEPreTrainedModel):
    """Image and text encoders with their projections, or one of the two.

    Args:
        config: Of the model.
        streams: Which of `STREAMS` to build.
    """

    def __init__(self, config: M3AEConfig, streams: Collection[str] = STREAMS) -> None:
        super().__init__(config)
        assert isinstance(config.image_config, M3AEImageConfig) and isinstance(config.text_config, PreTrainedConfig)
        if config.image_config._attn_implementation is None:
            config.image_config._attn_implementation = config._attn_implementation
        widths = {"text": config.text_config.hidden_size, "image": config.image_config.hidden_size}
        if "image" in streams:
            self.image_encoder = ImageEncoder(config)
        if "text" in streams:
            self.text_encoder = build_text_encoder(config.text_config)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(widths[name], config.hidden_size) for name in STREAMS if name in streams}
        )
        if streams:
            self.modality_types = nn.Embedding(len(STREAMS), config.hidden_size)
        if "image" in streams and config.num_views > 1:
            self.view_types = nn.Embedding(config.num_views, config.hidden_size)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings.

        Raises:
            NotImplementedError: The model has no text encoder.
        """
        if not hasattr(self, "text_encoder"):
            raise NotImplementedError("the model has no text encoder, and so no word embeddings")
        embeddings: nn.Module = self.text_encoder.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    def encode_image(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, present: Tensor | None = None, view: int = 0
    ) -> Stream:
        """Encode images alone, ready to be fused.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of the first V of `config.views`; whatever stands in the
                rows of absent images is ignored.
            ids_keep: (B, K) visible patches, or (B·V, K); all of them if None.
            present: (B,) bool, or (B, V); all present if None.
            view: Number of the view that images (B, C, H, W) are, see `M3AEConfig.view_number`.

        Returns:
            Tokens (B, V·(1 + K), D), the class token of each view first.

        Raises:
            ValueError: There are more views than the model has.
        """
        num_views = 1 if pixel_values.dim() == 4 else pixel_values.shape[1]
        if num_views > self.config.num_views:
            raise ValueError(
                f"pixel_values has {num_views} views, and the model takes {self.config.num_views} "
                f"(config.views is {self.config.views}): give pixel_values of shape (B, V, C, H, W) with fewer views."
            )
        if present is not None:
            pixel_values = torch.where(present[..., None, None, None], pixel_values, 0)
            present = present if num_views > 1 else present.view(-1)
        stream = self._stream("image", self.image_encoder(pixel_values.flatten(0, -4), ids_keep), None, present)
        if self.config.num_views == 1:
            return stream
        views = self.view_types(torch.arange(view, view + num_views, device=stream.tokens.device))
        tokens = stream.tokens.unflatten(0, (-1, num_views)) + views[:, None]
        return Stream(tokens.flatten(1, 2), None, present, num_views)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, present: Tensor | None = None
    ) -> Stream:
        """Encode texts alone, ready to be fused.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 0 = padding; no padding if None.
            present: (B,) bool; all present if None.

        Returns:
            Tokens (B, L, D).
        """
        visible = attention_mask
        if attention_mask is not None and present is not None:
            visible = attention_mask.masked_fill(~present[:, None], 1)  # an empty softmax would be NaN
        encoded = self.text_encoder(input_ids, attention_mask=visible).last_hidden_state
        mask = None if attention_mask is None else attention_mask.bool()
        return self._stream("text", encoded, mask, present)

    def _stream(self, name: str, encoded: Tensor, mask: Tensor | None, present: Tensor | None) -> Stream:
        projected = self.projections[name](encoded)
        number = torch.full((), STREAMS.index(name), device=projected.device)
        return Stream(projected + self.modality_types(number), mask, present)


class M3AEModel(M3AEEncoders):
    """The trunk: image and text encoders, their projections, and the fusion."""

    _keys_to_ignore_on_load_unexpected = OTHER_HEADS
    fuses_every_token = False  # in the last layer, even for what reads the class tokens alone

    def __init__(self, config: M3AEConfig) -> None:
        if config.architectures == ["M3AEForGeneration"]:
            raise ValueError("The saved model is M3AEForGeneration, which has no fusion; load it as that class.")
        super().__init__(config)
        self.fusion = Fusion(config, STREAMS)
        self.poolers = nn.ModuleDict({name: Pooler(config.hidden_size) for name in STREAMS})
        self.post_init()

    def encode(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
    ) -> dict[str, Stream]:
        """Encode each given modality alone; the arguments are those of `forward`.

        Raises:
            ValueError: Neither images nor text given.
        """
        streams = {}
        if input_ids is not None:
            streams["text"] = self.encode_text(input_ids, attention_mask, text_present)
        if pixel_values is not None:
            streams["image"] = self.encode_image(pixel_values, None, image_present)
        if not streams:
            raise ValueError("An M3AE model needs pixel_values, input_ids, or both; got neither.")
        return streams

    def fuse(
        self,
        streams: Mapping[str, Stream],
        read: Mapping[str, Tensor | None] | None = None,
        num_layers: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Fuse encoded streams; see `Fusion.forward`."""
        states: list[dict[str, Tensor]] = self.fusion(streams, read, num_layers)
        return states

    def pool(
        self, fused: Mapping[str, Tensor], present: Mapping[str, Tensor | None] | None = None, num_views: int = 1
    ) -> Tensor:
        """Concatenate the pooled text and the pooled image, which is the mean of the views that are present.

        Args:
            fused: Name → fused tokens (B, S, D) whose first is the class token; of images (B, V·S, D).
            present: Name → (B,) bool, or (B, V); an absent modality pools to zeros.
            num_views: V.

        Returns:
            (B, 2·D).
        """
        like = next(iter(fused.values()))
        pooled = []
        for name in STREAMS:
            if name not in fused:
                pooled.append(like.new_zeros(like.shape[0], self.config.hidden_size))
                continue
            mask = None if present is None else present.get(name)
            views = num_views if name == "image" else 1
            vectors = self.poolers[name](fused[name].unflatten(1, (views, -1)))  # (B, V, D)
            if mask is None:
                pooled.append(vectors.mean(1))
            else:
                mask = mask.view(mask.shape[0], -1)
                pooled.append((vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        return torch.cat(pooled, dim=-1)

    def fuse_and_pool(self, streams: Mapping[str, Stream]) -> Tensor:
        """Fuse encoded streams and pool them; the last layer is computed for the class tokens only.

        Returns:
            (B, 2·D) pooled text then pooled image; zeros for an absent modality.
        """
        any_stream = next(iter(streams.values()))
        first = None if self.fuses_every_token else first_token(any_stream.tokens)
        fused = self.fuse(streams, dict.fromkeys(streams, first))[-1]
        return self._pooled(fused, streams)

    def _pooled(self, fused: Mapping[str, Tensor], streams: Mapping[str, Stream]) -> Tensor:
        num_views = streams["image"].num_views if "image" in streams else 1
        return self.pool(fused, {name: stream.present for name, stream in streams.items()}, num_views)

    @checked_arguments
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
    ) -> M3AEModelOutput:
        """Encode and fuse unmasked inputs, any of them missing.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; None without images.
            input_ids: (B, L), or None without text.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool, False where a sample has no image; (B, V) of several views.
            text_present: (B,) bool, False where a sample has no text.

        Raises:
            ValueError: Neither images nor text given, or more views than the model has.
        """
        streams = self.encode(pixel_values, input_ids, attention_mask, image_present, text_present)
        fused = self.fuse(streams)[-1]
        return M3AEModelOutput(
            text_hidden_state=fused.get("text"),
            image_hidden_state=fused.get("image"),
            pooler_output=self._pooled(fused, streams),
        )
