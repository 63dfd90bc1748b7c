"""Tiny latent models of every kind of modality, and batches for them."""

from typing import Any

import torch
from torch import Tensor

from m3ae import M3AEConfig, M3AEForGeneration

IMAGE = {"kind": "image", "encoder": "mlp", "shape": [1, 6, 6], "hidden_size": 16, "num_layers": 1, "private_size": 2}
DIGITS: dict[str, dict[str, Any]] = {
    "glyph": {**IMAGE, "likelihood": "bernoulli"},
    "speech": {"kind": "sequence", "shape": [4, 3], "hidden_size": 16, "private_size": 3, "learn_scale": True},
    "label": {"kind": "label", "labels": ["a", "b", "c"], "hidden_size": 8, "num_layers": 1},
}
TRANSFORMER = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1}
STUDY: dict[str, dict[str, Any]] = {
    "frontal": {"kind": "image", "likelihood": "laplace", **TRANSFORMER, "private_size": 2},
    "lateral": {"kind": "image", "decoder": "mlp", "hidden_size": 16},
    "text": {"kind": "text", "max_length": 14, **TRANSFORMER},
}


def latent_config(modalities: dict[str, dict[str, Any]], **options: Any) -> M3AEConfig:
    return M3AEConfig.named("tiny", latent={"size": 5, "num_tokens": 2, "modalities": modalities, **options})


def latent_model(modalities: dict[str, dict[str, Any]] = DIGITS, **options: Any) -> M3AEForGeneration:
    """A model whose experts disagree, as private latents and their priors do: fresh ones are all close to N(0, I)."""
    torch.manual_seed(0)
    model = M3AEForGeneration(latent_config(modalities, **options)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def digits_batch(size: int = 6, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 3
    return {
        "glyph": {"pixel_values": torch.rand(size, 1, 6, 6, generator=draw)},
        "speech": {"values": torch.randn(size, 4, 3, generator=draw) + labels[:, None, None]},
        "label": {"labels": labels},
    }


def study_batch(size: int = 4, length: int = 10) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([length - 2 * (i % 3) for i in range(size)])
    ids = torch.randint(5, 120, (size, length), generator=draw)
    ids[:, 0] = 0
    ids[torch.arange(size), lengths - 1] = 2
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "frontal": {"pixel_values": torch.rand(size, 3, 32, 32, generator=draw)},
        "lateral": {"pixel_values": torch.rand(size, 3, 32, 32, generator=draw)},
        "text": {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask},
    }


def rows(batch: dict[str, dict[str, Tensor]], index: Tensor | list[int]) -> dict[str, dict[str, Tensor]]:
    return {name: {key: value[index] for key, value in part.items()} for name, part in batch.items()}


def without(batch: dict[str, dict[str, Tensor]], present: Tensor) -> dict[str, dict[str, Tensor]]:
    """The batch with `present` (M, B), and nonsense where something is absent."""
    found = {}
    for (name, part), there in zip(batch.items(), present, strict=True):
        found[name] = {"present": there}
        for key, value in part.items():
            nonsense = float("nan") if value.is_floating_point() else 1
            shape = (-1, *[1] * (value.dim() - 1))
            found[name][key] = torch.where(there.view(shape), value, nonsense)
    return found
