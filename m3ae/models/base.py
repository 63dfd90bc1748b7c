"""What every M3AE model is to transformers: configuration, initialisation, loading, saving, attention."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from m3ae.models.configuration import M3AEConfig
from m3ae.models.encoders import PatchTransformer
from m3ae.models.heads import ContrastiveHead, PixelDecoder, sincos_positions
from m3ae.models.hub import publish_card
from m3ae.models.text_decoders import TextDecoder

TRUNK = ("encoder", "fusion")  # its learning-rate groups

# Heads of another task in a saved model are left where they are, and nobody needs to be told.
OTHER_HEADS = [r"^(mim|mlm|itm|itc|vqa|cls|latent)_head\."]


class M3AEPreTrainedModel(PreTrainedModel):
    """What all M3AE models share: configuration, initialisation, loading and saving."""

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
            init.normal_(module.cls_token, std=self.config.initializer_range)
            side, width = round((module.pos_embed.shape[1] - 1) ** 0.5), module.pos_embed.shape[-1]
            init.copy_(module.pos_embed, sincos_positions(side, width))  # learned, but places are apart from the start
        elif isinstance(module, ContrastiveHead):
            init.constant_(module.log_scale, math.log(1 / 0.07))
        elif isinstance(module, PixelDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.positions, sincos_positions(module.side, module.positions.shape[-1]))

    @property
    def device(self) -> torch.device:
        """Where the model computes, even while its parameters are somewhere else, offloaded by accelerate."""
        for module in self.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return super().device

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False
    ) -> None:
        """Choose the implementation of attention, of all parts or by their names in the configuration."""
        named = attn_implementation if isinstance(attn_implementation, dict) else {}
        before = []
        for name in ("image_config", "latent"):  # transformers looks for models of these, and warns
            part = getattr(self.config, name)
            if isinstance(part, PreTrainedConfig):
                before.append((part, part._attn_implementation))
                unnamed = part._attn_implementation if named is attn_implementation else attn_implementation
                part._attn_implementation = named.get(name, unnamed)
        try:
            super().set_attn_implementation(attn_implementation, allow_all_kernels)
        except (ImportError, ValueError):
            for part, implementation in before:
                part._attn_implementation = implementation
            raise

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Take another number of words, in the decoders of texts, too; see `transformers.PreTrainedModel`."""
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
        """Save the model; `push_to_hub` uploads it with its card, as the method of this name does."""
        if options.get("push_to_hub"):
            repo_id = options.get("repo_id", Path(save_directory).name)
            publish_card(self, repo_id, **{name: options[name] for name in ("token", "private") if name in options})
        super().save_pretrained(save_directory, *args, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]  # wrapped in the base class
        """Upload model and card; the options are those of `transformers.PreTrainedModel.push_to_hub`.

        A repository without a card gets that of the folder the model was loaded from, if it is still of that class, or
        else a generated one, which lacks data and metrics.
        """
        publish_card(self, repo_id, **{name: options[name] for name in ("token", "private") if name in options})
        url: str = super().push_to_hub(repo_id, **options)  # type: ignore[arg-type]
        return url

    def parameter_group(self, name: str) -> str:
        """Return the learning-rate group of the parameter called `name`: `encoder`, `fusion` or `heads`.

        What decodes modality M from z is a part of `heads` of its own, `heads.decoders.M`.
        """
        path = name.removeprefix("m3ae.")
        if path.startswith(("image_encoder.", "text_encoder.")):
            return "encoder"
        if path.startswith("latent_head.decoders."):
            return f"heads.decoders.{path.split('.')[2]}"
        return "fusion" if path.startswith(("projections.", "modality_types.", "fusion.", "poolers.")) else "heads"
