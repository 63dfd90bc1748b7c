"""Encoders of one modality each: timm's vision transformer over visible patches, transformers' RoBERTa over tokens.

Shapes: B batch, N patches, K visible patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.losses import patchify


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select the tokens (B, K, D) that `index` (B, K) names from tokens (B, N, D)."""
    first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return F.embedding(first + index, tokens.flatten(0, 1))  # rows at a time, where `gather` takes single numbers


def normalize_images(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return images (B, C, H, W) of [0, 1] as an encoder takes them: (x − mean) / std of each channel."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def denormalize_images(pixel_values: Tensor, config: M3AEImageConfig) -> Tensor:
    """Return the images (B, C, H, W) of [0, 1] that `M3AEImageProcessor` has made pixel values of."""
    assert config.image_mean is not None and config.image_std is not None
    mean, std = (pixel_values.new_tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return pixel_values * std + mean


class ImageEncoder(nn.Module):
    """timm's `VisionTransformer`, run on the visible patches only."""

    # Both are set by `PreTrainedModel.activation_checkpointing_enable`.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, config: M3AEImageConfig) -> None:
        from timm.models.vision_transformer import VisionTransformer  # with all models of timm, which takes long

        super().__init__()
        self.image_size = config.image_size
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.num_channels,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            pre_norm=config.pre_norm,
            proj_drop_rate=config.dropout,
            act_layer=config.hidden_act,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            num_classes=0,
            global_pool="",
        )

    def resize(self, image_size: int) -> None:
        """Take images of another size from now on; the position table is interpolated by timm, bicubically."""
        self.vit.set_input_size((image_size, image_size))
        self.image_size = image_size

    def forward(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode the class token, which is always kept, and the visible patches.

        Args:
            pixel_values: (B, C, H, W), normalised.
            ids_keep: (B, K) visible patches; all of them if None.

        Returns:
            (B, 1 + K, D), the class token first.

        Raises:
            ValueError: The images have another size than the model's.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"The model takes images of {self.image_size}×{self.image_size} px, got "
                f"{pixel_values.shape[-2]}×{pixel_values.shape[-1]}: prepare them with the model's own M3AEProcessor."
            )
        vit = self.vit
        assert vit.pos_embed is not None and vit.cls_token is not None
        tokens = self._embed_patches(pixel_values, ids_keep)
        class_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        tokens = vit.norm_pre(torch.cat([class_token, tokens], dim=1))
        for block in vit.blocks:
            recompute = self.gradient_checkpointing and self.training
            tokens = self._gradient_checkpointing_func(block, tokens) if recompute else block(tokens)
        encoded: Tensor = vit.norm(tokens)
        return encoded

    def _embed_patches(self, pixel_values: Tensor, ids_keep: Tensor | None) -> Tensor:
        """Return (B, K, D); the convolution does not overlap, and so is linear in the patches, of which it needs K."""
        projection, positions = self.vit.patch_embed.proj, self.vit.pos_embed
        assert isinstance(projection, nn.Conv2d) and positions is not None
        patches, places = patchify(pixel_values, projection.kernel_size[0]), positions[:, 1:]
        if ids_keep is not None:
            patches, places = gather_tokens(patches, ids_keep), F.embedding(ids_keep, places[0])
        return F.linear(patches, projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias) + places
