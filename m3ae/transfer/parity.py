"""Comparison of a released checkpoint, converted, with numbers that the published code computed from it.

The numbers are a safetensors file of inputs (`inputs.*`) and of what each step gives: encoders and fused features
(`features.*`), the objectives (`mlm.*`, `mim.*` with the noise `inputs.mim_noise`, `itm.*`, `total.loss`), the heads'
scores (`vqa.logits`, `cls.logits`, `irtr.score`), and norms of the gradient of mlm + mim + itm (`grad_norm.*`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3ae.models.finetuned import M3AEForQuestionAnswering
from m3ae.models.masking import masked_language_loss
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.pairs import matching_loss
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.retrieval import M3AEForImageTextRetrieval
from m3ae.transfer.convert import build
from m3ae.transfer.names import release_name
from m3ae.transfer.released import Released, read_released

ABSOLUTE = 1e-5
RELATIVE_OF_GRADIENTS = 1e-4
_PAIR = ("pixel_values", "input_ids", "attention_mask")
_Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """One stored tensor against ours.

    Attributes:
        name: The stored tensor's name.
        shape: The stored tensor's shape.
        largest: Largest difference, relative for norms of gradients; NaN where ours is missing or has another shape.
        allowed: Largest difference that counts as equal.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the difference is allowed."""
        return self.largest <= self.allowed  # false for NaN


def compare(checkpoint: str | Path, expected: str | Path) -> list[Difference]:
    """Compute everything that is stored in `expected` with the converted checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be converted, or lacks a head whose numbers are stored.
        ValueError: `expected` is not a safetensors file with inputs.
    """
    released = read_released(checkpoint)
    stored = _load_expected(Path(expected))
    targets = {name: value for name, value in stored.items() if not name.startswith("inputs.")}
    inputs = {name.removeprefix("inputs."): value for name, value in stored.items() if name.startswith("inputs.")}
    computed: dict[str, Tensor] = {}
    for beginnings, task, step in _STEPS:
        if any(name.startswith(beginnings) for name in targets):
            model, _ = build(released, task)
            computed |= step(model.float(), inputs, released)
    return [_difference(name, value, computed.get(name)) for name, value in targets.items()]


def table(differences: Sequence[Difference]) -> str:
    """Lay out the differences, one tensor a line."""
    width = max(len(difference.name) for difference in differences)
    lines = [f"{'tensor':<{width}}  {'shape':<16}  {'difference':>10}  allowed"]
    for difference in differences:
        shape = "×".join(map(str, difference.shape)) or "scalar"
        verdict = "" if difference.ok else "  FAILED"
        lines.append(
            f"{difference.name:<{width}}  {shape:<16}  {difference.largest:>10.1e}  {difference.allowed:.0e}{verdict}"
        )
    return "\n".join(lines)


def _load_expected(path: Path) -> dict[str, Tensor]:
    try:
        stored: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a safetensors file of expected values: {error}") from error
    missing = [name for name in _PAIR if f"inputs.{name}" not in stored]
    if missing or all(name.startswith("inputs.") for name in stored):
        lacks = ", ".join(f"inputs.{name}" for name in missing) or "anything but inputs"
        raise ValueError(f"{path} lacks {lacks}: there is nothing to compare.")
    return stored


def _difference(name: str, expected: Tensor, ours: Tensor | None) -> Difference:
    relative = name.startswith("grad_norm.")
    allowed = RELATIVE_OF_GRADIENTS if relative else ABSOLUTE
    if ours is None or ours.shape != expected.shape:
        return Difference(name, tuple(expected.shape), torch.nan, allowed)
    largest = (ours.double() - expected.double()).abs().max() / (expected.double().abs() if relative else 1)
    return Difference(name, tuple(expected.shape), largest.item(), allowed)


def _objectives(model: M3AEPreTrainedModel, inputs: _Inputs, released: Released) -> dict[str, Tensor]:
    assert isinstance(model, M3AEForPreTraining)
    computed: dict[str, Tensor] = {}
    losses = [step(model, inputs, computed) for needs, step in _LOSSES.items() if needs in inputs]
    computed["total.loss"] = torch.stack(losses).sum()
    computed["total.loss"].backward()
    # The published code freezes the matching head of a model with a retrieval head.
    norms = _gradient_norms(model, without="itm_head" if "irtr_head.weight" in released.state else None)
    return {name: value.detach() for name, value in computed.items()} | norms


@torch.no_grad()
def _features(model: M3AEPreTrainedModel, inputs: _Inputs, _: Released) -> dict[str, Tensor]:
    trunk = model.get_submodule("m3ae")
    assert isinstance(trunk, M3AEModel)
    pixels, ids, mask = (inputs[name] for name in _PAIR)
    fused = trunk(pixels, ids, mask)
    return {
        "features.vision_encoder.last_hidden_state": trunk.image_encoder(pixels),
        "features.text_encoder.last_hidden_state": trunk.text_encoder(ids, attention_mask=mask).last_hidden_state,
        "features.fused_text": fused.text_hidden_state,
        "features.fused_image": fused.image_hidden_state,
        "features.fused_cls": fused.pooler_output,
    }


def _masked_language(model: M3AEForPreTraining, inputs: _Inputs, computed: dict[str, Tensor]) -> Tensor:
    """Logits at every position, where `M3AEForPreTraining.forward` computes those of masked ones only."""
    text = model.m3ae.encode_text(inputs["mlm_input_ids"], inputs["attention_mask"])
    image = model.m3ae.encode_image(inputs["pixel_values"])
    computed["mlm.logits"] = model.mlm_head(model.m3ae.fuse({"text": text, "image": image})[-1]["text"])
    computed["mlm.loss"] = masked_language_loss(computed["mlm.logits"], inputs["mlm_labels"])
    return computed["mlm.loss"]


def _masked_image(model: M3AEForPreTraining, inputs: _Inputs, computed: dict[str, Tensor]) -> Tensor:
    model.config.mim_weight, model.config.mlm_weight, model.config.itm_weight = 1.0, 0.0, 0.0  # only this objective
    output = model(*(inputs[name] for name in _PAIR), image_noise=inputs["mim_noise"], schedule="separate")
    computed["mim.logits"], computed["mim.mask"] = output.mim_logits, output.mim_mask.float()
    computed["mim.target"] = model.mim_target(inputs["pixel_values"])
    computed["mim.loss"] = output.losses["mim"]
    return computed["mim.loss"]


def _matching(model: M3AEForPreTraining, inputs: _Inputs, computed: dict[str, Tensor]) -> Tensor:
    matched, pixels = inputs["itm_labels"], inputs["pixel_values"]
    images = torch.where(matched[:, None, None, None] == 1, pixels, inputs["negative_pixel_values"])
    streams = model.m3ae.encode(images, inputs["input_ids"], inputs["attention_mask"])
    computed["itm.logits"] = model.itm_head(model.m3ae.fuse_and_pool(streams))
    computed["itm.loss"] = matching_loss(computed["itm.logits"], matched, torch.ones_like(matched, dtype=torch.bool))
    return computed["itm.loss"]


# The input that each objective needs beside image and text → its computation.
_LOSSES: dict[str, Callable[[M3AEForPreTraining, _Inputs, dict[str, Tensor]], Tensor]] = {
    "mlm_labels": _masked_language,
    "mim_noise": _masked_image,
    "itm_labels": _matching,
}


def _gradient_norms(model: M3AEForPreTraining, without: str | None) -> dict[str, Tensor]:
    norms = {
        f"grad_norm.{release_name(name)}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name.split(".")[0] != without
    }
    return norms | {"grad_norm.total": torch.stack(list(norms.values())).norm()}


@torch.no_grad()
def _head(model: M3AEPreTrainedModel, inputs: _Inputs, _: Released) -> dict[str, Tensor]:
    if isinstance(model, M3AEForImageTextRetrieval):
        text = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
        return {"irtr.score": model.score(text, model.encode_image(inputs["pixel_values"]))}
    name = "vqa" if isinstance(model, M3AEForQuestionAnswering) else "cls"
    return {f"{name}.logits": model(*(inputs[name] for name in _PAIR)).logits}


# Beginnings of stored names, the task whose model computes them (any if None), and how.
_STEPS: tuple[
    tuple[tuple[str, ...], str | None, Callable[[M3AEPreTrainedModel, _Inputs, Released], dict[str, Tensor]]], ...
] = (
    (("features.",), None, _features),
    (("mlm.", "mim.", "itm.", "total.", "grad_norm."), "pretraining", _objectives),
    (("vqa.",), "question_answering", _head),
    (("cls.",), "classification", _head),
    (("irtr.",), "retrieval", _head),
)
