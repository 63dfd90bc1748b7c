"""Tiny models and batches."""

from typing import Any

import torch
from torch import Tensor

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.models.modeling import M3AEPreTrainedModel


def tiny_config(**overrides: Any) -> M3AEConfig:
    return M3AEConfig.named("tiny", **overrides)


def tiny_model(**overrides: Any) -> M3AEForPreTraining:
    torch.manual_seed(0)
    return M3AEForPreTraining(tiny_config(**overrides)).eval()


def tiny_of(model_class: type[M3AEPreTrainedModel], **overrides: Any) -> M3AEPreTrainedModel:
    """A model of any class whose head has a say: fresh heads' scores lie within 0.02."""
    torch.manual_seed(0)
    model = model_class(tiny_config(**overrides)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "_head." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def tiny_pairs(size: int = 4) -> dict[str, Tensor]:
    """Images and texts without noise."""
    batch = tiny_batch(size)
    return {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def tiny_batch(size: int = 4, length: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Texts of different lengths, padded with 1; all noise given."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length - 2 * (i % 3) for i in range(size)])
    input_ids = torch.randint(5, 120, (size, length), generator=generator)
    input_ids[:, 0] = 0
    input_ids[torch.arange(size), lengths - 1] = 2
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "pixel_values": torch.randn(size, 3, 32, 32, generator=generator),
        "input_ids": input_ids.where(attention_mask.bool(), 1),
        "attention_mask": attention_mask,
        "image_noise": torch.rand(size, 16, generator=generator),
        "text_noise": torch.rand(size, length, 2, generator=generator),
        "match_noise": torch.rand(size, 2, generator=generator),
    }
