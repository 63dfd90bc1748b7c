"""The M3AE trunk, encoders of one modality each and a co-attention fusion, and the base class of all M3AE models.

Shapes: B batch, V views, C channels, H×W pixels, N patches, K visible patches, L text tokens, D fusion width.
Presence: True = the sample has this modality.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.encoders import ImageEncoder, LayerScale, PatchTransformer, token_mask
from m3ae.models.fusion import Fusion, Stream, first_token
from m3ae.models.heads import ContrastiveHead, PixelDecoder, Pooler, sincos_positions
from m3ae.models.hub import publish_card
from m3ae.models.masking import blank_padding, real_patches
from m3ae.models.option_checks import checked_arguments
from m3ae.models.text_decoders import TextDecoder
from m3ae.models.text_encoder import build_text_encoder

STREAMS = ("text", "image")  # in this order poolers are concatenated and modality types are numbered
TRUNK = ("encoder.image", "encoder.text", "fusion")  # its learning-rate groups

# Heads of another task in a saved model are not loaded, without a warning.
OTHER_HEADS = [r"^(mim|mlm|itm|itc|vqa|cls|report|latent)_head\."]


class M3AEPreTrainedModel(PreTrainedModel):
    """What all M3AE models share: configuration, initialisation, loading, saving and attention."""

    config_class = M3AEConfig
    config: M3AEConfig
    base_model_prefix = "m3ae"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012 (a list in the base class)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over a batch: Trainer averages them over accumulated ones
    _supports_sdpa = True
    _no_split_modules = [  # noqa: RUF012 (a list in the base class)
        "FusionLayer",
        "PatchTransformer",
        "PixelDecoder",
        "ContrastiveHead",
        "AttentionPool",
        "PatchDecoder",
        "LatentLayer",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchTransformer):
            for token in (module.cls_token, module.reg_token):
                if token is not None:
                    init.normal_(token, std=self.config.initializer_range)
            if module.pos_embed is not None:  # learned, but the patches have different positions from the start
                table = sincos_positions(module.side, module.pos_embed.shape[-1])
                init.copy_(module.pos_embed, table[:, module.cls_token is None :])
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.value)
        elif isinstance(module, ContrastiveHead):
            module.reset_parameters()
        elif isinstance(module, PixelDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.positions, sincos_positions(module.side, module.positions.shape[-1]))

    @property
    def device(self) -> torch.device:
        """The device that computes, even while accelerate has offloaded the parameters."""
        for module in self.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return super().device

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False
    ) -> None:
        """Choose the implementation of attention: one for all, or one for each sub-configuration by name."""
        named = attn_implementation if isinstance(attn_implementation, dict) else {}
        before, absent = [], ["text_config"] * (not hasattr(self.base_model, "text_encoder"))
        for name in ("image_config", "latent", *absent):  # transformers looks for models of these, and warns
            config = getattr(self.config, name)
            if isinstance(config, PreTrainedConfig):
                before.append((config, config._attn_implementation))
                unnamed = config._attn_implementation if named is attn_implementation else attn_implementation
                config._attn_implementation = named.get(name, unnamed)
        try:
            super().set_attn_implementation(attn_implementation, allow_all_kernels)
        except (ImportError, ValueError):
            for config, implementation in before:
                config._attn_implementation = implementation
            raise

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Take another number of words, as `transformers.PreTrainedModel` does, in the decoders of texts, too."""
        embeddings: nn.Embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for module in self.modules():
            if isinstance(module, TextDecoder) and module.vocab_size != embeddings.num_embeddings:
                module.resize(
                    embeddings.num_embeddings,
                    partial(self._get_resized_embeddings, mean_resizing=mean_resizing),
                    partial(self._get_resized_lm_head, mean_resizing=mean_resizing),
                )
        return embeddings

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Save the model; the option `push_to_hub` uploads the model with its card."""
        if options.get("push_to_hub"):
            repo_id = options.get("repo_id", Path(save_directory).name)
            publish_card(self, repo_id, **{name: options[name] for name in ("token", "private") if name in options})
        super().save_pretrained(save_directory, *args, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]  # wrapped in the base class
        """Upload model and card with the options of `transformers.PreTrainedModel.push_to_hub`.

        A repository without a card gets that of the folder which the model was loaded from, if the model is still of
        that class, or else a generated card, which lacks data and metrics.
        """
        publish_card(self, repo_id, **{name: options[name] for name in ("token", "private") if name in options})
        url: str = super().push_to_hub(repo_id, **options)  # type: ignore[arg-type]
        return url

    def parameter_group(self, name: str) -> str:
        """Return the learning-rate group of a parameter: `encoder.image`, `encoder.text`, `fusion` or `heads`.

        Groups of the heads have names of their own: the decoder of modality M from z is in `heads.decoders.M`, its
        discriminator in `heads.discriminators.M`.
        """
        path = name.removeprefix("m3ae.")
        if path.startswith(("image_encoder.", "text_encoder.")):
            return f"encoder.{path.partition('_')[0]}"
        if path.startswith(("latent_head.decoders.", "latent_head.discriminators.")):
            return ".".join(["heads", *path.split(".")[1:3]])
        return "fusion" if path.startswith(("projections.", "modality_types.", "fusion.", "poolers.")) else "heads"


@dataclass
class M3AEModelOutput(ModelOutput):
    """Fused features.

    Attributes:
        text_hidden_state: (B, L, D), or None without text.
        image_hidden_state: (B, 1 + N, D), the class token first, or None without images; (B, V·(1 + N), D) of several
            views, one after the other.
        pooler_output: (B, 2·D) pooled text then pooled image; zeros for an absent modality.
        hidden_states: With `output_hidden_states`, what `m3ae.models.attention.recording` records.
        attentions: With `output_attentions`, what it records.
    """

    text_hidden_state: Tensor | None = None
    image_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class M3AEEncoders(M3AEPreTrainedModel):
    """Image and text encoders with their projections, or one of the two.

    Args:
        config: The model's configuration.
        streams: Those of `STREAMS` to build.
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
        self,
        pixel_values: Tensor,
        ids_keep: Tensor | None = None,
        present: Tensor | None = None,
        view: int = 0,
        pixel_mask: Tensor | None = None,
    ) -> Stream:
        """Encode images alone, ready to be fused.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of the first V views; rows of absent images are ignored.
            ids_keep: (B, K) visible patches, or (B·V, K); all of them if None.
            present: (B,) bool, or (B, V); all present if None.
            view: Number of the view of images (B, C, H, W), from `M3AEConfig.view_number`.
            pixel_mask: (B, H, W), or (B, V, H, W), 0 = padding; no padding if None.

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
        pixel_values = blank_padding(pixel_values, pixel_mask)
        real = real_patches(pixel_mask, self.image_encoder.vit.patch_size, ids_keep)
        mask = token_mask(real, num_views=num_views)
        if present is not None:
            pixel_values = torch.where(present[..., None, None, None], pixel_values, 0)
            present = present if num_views > 1 else present.view(-1)
        stream = self._stream("image", self.image_encoder(pixel_values.flatten(0, -4), ids_keep, real), mask, present)
        if self.config.num_views == 1:
            return stream
        views = self.view_types(torch.arange(view, view + num_views, device=stream.tokens.device))
        tokens = stream.tokens.unflatten(0, (-1, num_views)) + views[:, None]
        return Stream(tokens.flatten(1, 2), mask, present, num_views)

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
        pixel_mask: Tensor | None = None,
    ) -> dict[str, Stream]:
        """Encode each modality alone; the arguments are those of `forward`.

        Raises:
            ValueError: Images and texts are both left out.
        """
        streams = {}
        if input_ids is not None:
            streams["text"] = self.encode_text(input_ids, attention_mask, text_present)
        if pixel_values is not None:
            streams["image"] = self.encode_image(pixel_values, None, image_present, pixel_mask=pixel_mask)
        if not streams:
            raise ValueError("An M3AE model needs pixel_values, input_ids, or both; got neither.")
        return streams

    def fuse(
        self,
        streams: Mapping[str, Stream],
        read: Mapping[str, Tensor | None] | None = None,
        num_layers: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Fuse encoded streams, as `Fusion.forward` does."""
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
        pixel_mask: Tensor | None = None,
    ) -> M3AEModelOutput:
        """Encode and fuse unmasked inputs, any of them missing.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; None without images.
            input_ids: (B, L), or None without text.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool, False where a sample has no image; (B, V) of several views.
            text_present: (B,) bool, False where a sample has no text.
            pixel_mask: (B, H, W) or (B, V, H, W), 0 = padding.

        Raises:
            ValueError: Images and texts are both left out, or there are more views than the model has.
        """
        streams = self.encode(pixel_values, input_ids, attention_mask, image_present, text_present, pixel_mask)
        fused = self.fuse(streams)[-1]
        return M3AEModelOutput(
            text_hidden_state=fused.get("text"),
            image_hidden_state=fused.get("image"),
            pooler_output=self._pooled(fused, streams),
        )
