"""Models as programs of `torch.export` or ONNX, which run without this package: in C++, or compiled ahead of time.

Shapes: B batch, C channels, H×W pixels, N patches, L text tokens, D fusion width, E width of the contrastive space.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from m3ae.files import new_folder
from m3ae.models.configuration import M3AEImageConfig
from m3ae.models.fusion import Stream
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.heads import ContrastiveHead
from m3ae.models.modalities import BatchOptions, Modality
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.retrieval import M3AEForImageTextRetrieval


class _Encoder(nn.Module):
    """One modality alone → its tokens, and with a contrastive head its vector."""

    def __init__(self, name: str, trunk: M3AEModel, head: ContrastiveHead | None) -> None:
        super().__init__()
        self.name, self.trunk, self.head = name, trunk, head

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        if self.name == "image":
            stream: Stream = self.trunk.encode_image(inputs, pixel_mask=attention_mask)
        else:
            stream = self.trunk.encode_text(inputs, attention_mask)
        tokens = {"tokens": stream.tokens}
        return tokens if self.head is None else tokens | {"embedding": self.head.embed(self.name, stream)}


class _Whole(nn.Module):
    """Images and texts together → the outputs of the model's class, or how well they match."""

    def __init__(self, model: M3AEPreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        if isinstance(self.model, M3AEForPreTraining | M3AEForImageTextRetrieval):
            trunk = self.model.m3ae
            text = trunk.encode_text(input_ids, attention_mask)
            return {"score": self.model.score(text, trunk.encode_image(pixel_values, pixel_mask=pixel_mask))}
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return dict(self.model(**inputs, pixel_mask=pixel_mask).items())


class _LatentEncoder(nn.Module):
    """All modalities → the mean of z."""

    def __init__(self, model: M3AEForGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, modalities: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"mean": self.model.infer_latent(modalities).mean}


class _LatentDecoder(nn.Module):
    """z and all private latents → the expected value of a modality."""

    def __init__(self, model: M3AEForGeneration, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return self.model.decode(z, [self.name])


def export_programs(model: M3AEPreTrainedModel) -> dict[str, ExportedProgram]:
    """Export a model as programs for batches of any size and texts of any length that the model takes.

    For images and texts, `image_encoder` takes pixel values (B, C, H, W), `text_encoder` token ids and attention mask
    (B, L). Each gives `tokens`, the input of the fusion, (B, 1 + N, D) or (B, L, D), and with a contrastive head
    `embedding`, unit vectors (B, E) whose products are cosines between images and texts. `model` takes all three, and
    gives `logits` (B, A), or the `score` (B,) of how well image and text match, or features if it has no head.

    For a latent model, `encoder` takes all modalities, in order, and gives the `mean` (B, D) of z; `decoder_<name>`
    takes z and the private latents (B, Z), and gives the expected value of a modality. Texts, and what an
    autoregressive decoder draws, have no such program: a loop writes them.

    A model with `image_config.resize` of `pad` takes a pixel mask (B, H, W), too: as the last argument,
    or as a tensor of the image.

    Args:
        model: A model on the CPU, in evaluation mode.
    """
    batch, length = Dim("batch", min=1), Dim("length", min=2, max=model.config.longest_text)
    ids = torch.zeros(2, min(8, model.config.longest_text), dtype=torch.long)
    texts, of_texts = (ids, torch.ones_like(ids)), ({0: batch, 1: length},) * 2
    programs: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = {}
    if isinstance(model, M3AEForGeneration):
        modalities = model.latent_head.modalities
        inputs = {name: _example(modalities[name], ids) for name in model.latent.experts}
        shapes = {
            name: {key: of_texts[0] if modalities[name].is_text else {0: batch} for key in tensors}
            for name, tensors in inputs.items()
        }
        programs["encoder"] = (_LatentEncoder(model), (inputs,), (shapes,))
        z = torch.zeros(2, model.latent.total_size)
        for name in model.latent.decoded:
            modality = modalities[name]
            if modality.config.decoder != "autoregressive" and not modality.is_text:
                programs[f"decoder_{name}"] = (_LatentDecoder(model, name), (z,), ({0: batch},))
    else:
        trunk, head = model.base_model, getattr(model, "itc_head", None)
        assert isinstance(trunk, M3AEModel) and isinstance(model.config.image_config, M3AEImageConfig)
        side, channels = model.config.image_config.image_size, model.config.image_config.num_channels
        images = (torch.zeros(2, channels, side, side),)
        masks = (torch.ones(2, side, side, dtype=torch.long),) * (model.config.image_config.resize == "pad")
        of_masks = ({0: batch},) * len(masks)
        programs["image_encoder"] = (_Encoder("image", trunk, head), (*images, *masks), ({0: batch}, *of_masks))
        programs["text_encoder"] = (_Encoder("text", trunk, head), texts, of_texts)
        programs["model"] = (_Whole(model), (*images, *texts, *masks), ({0: batch}, *of_texts, *of_masks))
    with torch.no_grad():
        return {
            name: torch.export.export(module.eval(), example, dynamic_shapes=shapes)
            for name, (module, example, shapes) in programs.items()
        }


def _example(modality: Modality, ids: Tensor) -> dict[str, Tensor]:
    if modality.is_text:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tensors = modality.batch([None, None], BatchOptions(), [np.random.default_rng(0)] * 2)
    image_config = modality.model.image_config
    if modality.is_image and isinstance(image_config, M3AEImageConfig) and image_config.resize == "pad":
        tensors["pixel_mask"] = torch.ones_like(tensors["pixel_values"][:, 0], dtype=torch.long)
    return tensors


def save_programs(model: M3AEPreTrainedModel, folder: Path, form: Literal["pt2", "onnx"] = "pt2") -> list[Path]:
    """Write the programs of `export_programs`, for `torch.export.load` or for ONNX runtimes.

    Raises:
        FileExistsError: The folder holds something already.
        OSError: The disk is full.
        ValueError: The packages that write ONNX are missing.
    """
    if form == "onnx" and (find_spec("onnx") is None or find_spec("onnxscript") is None):
        raise ValueError("onnx: needs onnx and onnxscript, which are not installed; pip install 'm3ae[onnx]'")
    programs = export_programs(model)
    with new_folder(folder) as unfinished:
        for name, program in programs.items():
            path = unfinished / f"{name}.{form}"
            if form == "pt2":
                buffer = BytesIO()  # torch's writer of files aborts the process on a full disk
                torch.export.save(program, buffer)
                path.write_bytes(buffer.getbuffer())
            else:
                converted = torch.onnx.export(program, dynamo=True, verbose=False)
                assert converted is not None
                converted.save(path)
    return [folder / f"{name}.{form}" for name in programs]
