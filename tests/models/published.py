"""Tiny published encoders with random weights, saved by their own libraries."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from m3ae import M3AEForPreTraining
from tests.models.tiny import tiny_model

# The image encoders below, in our words.
VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}


def shake(model: nn.Module) -> Any:
    """Give every parameter a value that matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def model_for(**image_config: Any) -> M3AEForPreTraining:
    return tiny_model(image_config=VIT | image_config)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def encode(model: M3AEForPreTraining, pixels: Tensor | None = None) -> Tensor:
    features: Tensor = model.m3ae.image_encoder(images() if pixels is None else pixels)
    return features


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def timm_clip(**options: Any) -> VisionTransformer:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 5}
    return shake(timm.create_model("vit_base_patch16_clip_quickgelu_224", **sizes, **options))


def save_timm(model: VisionTransformer, folder: Path, **options: Any) -> str:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
    save_for_hf(model, folder, model_args=sizes | options, safe_serialization=True)
    return str(folder)


def clip_vision(**options: Any) -> CLIPVisionConfig:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionConfig(**{**sizes, "intermediate_size": 512, **options})
