"""Encoders as programs of `torch.export`, which run without this package: in C++, or compiled ahead of time.

Shapes: B batch, C channels, H×W pixels, N patches, L text tokens, D fusion width, E width of the contrastive space.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from m3ae.files import new_folder
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.decoders import ContrastiveHead
from m3ae.models.fusion import Stream
from m3ae.models.modeling import STREAMS, M3AEModel, M3AEPreTrainedModel


class _Encoder(nn.Module):
    """One modality alone: its tokens, and with a contrastive head its vector."""

    def __init__(self, name: str, trunk: M3AEModel, head: ContrastiveHead | None) -> None:
        super().__init__()
        self.name, self.trunk, self.head = name, trunk, head

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        if self.name == "image":
            stream: Stream = self.trunk.encode_image(inputs)
        else:
            stream = self.trunk.encode_text(inputs, attention_mask)
        tokens = {"tokens": stream.tokens}
        return tokens if self.head is None else tokens | {"embedding": self.head.embed(self.name, stream)}


def export_encoders(model: M3AEPreTrainedModel) -> dict[str, ExportedProgram]:
    """Export the encoders of a model, for batches of any size and texts of any length that the model takes.

    `image` takes pixel values (B, C, H, W), `text` token ids and attention mask (B, L). Each gives `tokens`, which the
    fusion would take, (B, 1 + N, D) or (B, L, D); and, of a model with a contrastive head, `embedding`, the unit
    vectors (B, E) whose products are cosines between images and texts.

    Args:
        model: On the CPU, in evaluation mode.

    Raises:
        ValueError: The model has not both encoders.
    """
    trunk = model.base_model
    if not isinstance(trunk, M3AEModel):
        raise ValueError(f"expected a model with an encoder of images and one of texts, got {type(model).__name__}")
    assert isinstance(trunk.config.image_config, M3AEImageConfig)
    side, channels = trunk.config.image_config.image_size, trunk.config.image_config.num_channels
    batch, length = Dim("batch", min=1), Dim("length", min=2, max=trunk.config.longest_text)
    ids = torch.zeros(2, min(8, trunk.config.longest_text), dtype=torch.long)
    examples = {"image": (torch.zeros(2, channels, side, side),), "text": (ids, torch.ones_like(ids))}
    shapes = {"image": ({0: batch},), "text": ({0: batch, 1: length},) * 2}
    head = getattr(model, "itc_head", None)
    programs = {}
    for name in STREAMS:
        encoder = _Encoder(name, trunk, head).eval()
        with torch.no_grad():
            programs[name] = torch.export.export(encoder, examples[name], dynamic_shapes=shapes[name])
    return programs


def save_encoders(model: M3AEPreTrainedModel, folder: Path) -> list[Path]:
    """Write `image_encoder.pt2` and `text_encoder.pt2`, which `torch.export.load` reads; see `export_encoders`.

    Raises:
        FileExistsError: The folder holds something already.
    """
    with new_folder(folder) as unfinished:
        for name, program in export_encoders(model).items():
            torch.export.save(program, unfinished / f"{name}_encoder.pt2")
    return [folder / f"{name}_encoder.pt2" for name in STREAMS]
