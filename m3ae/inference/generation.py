"""Missing modalities from those that are given, by a latent model.

Shapes: C channels, S side of the image in pixels, T time steps, F features, Z all latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.data.augment import centre_crop
from m3ae.data.collate import tokenize
from m3ae.data.images import load_image
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.latent_configuration import ModalityConfig
from m3ae.models.latent_decoders import shape_of
from m3ae.models.latent_inputs import TENSOR_NAMES, check_names
from m3ae.pixels import to_8bit

# A modality as people give and get it: an image, a text, the name of a class or a list of them, or an array (T, F) or
# (F,). Of a label, and of labels, what is generated is the probability of each class.
Value = Image.Image | str | list[str] | NDArray[np.float32] | dict[str, float]
Batch = dict[str, dict[str, Tensor]]


def generate(
    model: M3AEForGeneration,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Mapping[str, Value],
    targets: Sequence[str] | None = None,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, list[Value]]:
    """Generate modalities of one sample from others, or all of them from the prior if none is given.

    Args:
        model: In evaluation mode.
        tokenizer: Of that model; None without texts.
        given: Modalities by name.
        targets: Names of those to generate; the ones that are not given if None.
        num_samples: Samples of each.
        temperature: Factor on the standard deviation of everything that is drawn; 0 for the means.
        seed: Of what is drawn.

    Returns:
        By name, so many samples.

    Raises:
        ValueError: The model has no such modality, or what is given of one is of another kind.
    """
    names = targets or [name for name in model.latent.typed_modalities if name not in given]
    generator = torch.Generator(model.device).manual_seed(seed)
    if not given:
        made = model.sample_prior(num_samples, "own", names, temperature, generator)
    else:
        batch = encode_modalities(model, tokenizer, given)
        drawn = model.generate_modalities(batch, names, num_samples, temperature, generator)
        made = {name: values[:, 0] for name, values in drawn.items()}
    return {name: decode_values(model, tokenizer, name, values) for name, values in made.items()}


@torch.no_grad()
def traverse(
    model: M3AEForGeneration,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Mapping[str, Value],
    dimension: int,
    values: Sequence[float],
    targets: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> dict[str, list[Value]]:
    """Generate modalities while one latent dimension takes some values and the others stay.

    Where it is a shared one, the private latents follow: they are what their prior makes of it at its centre.

    Args:
        model: See `generate`, as all that is not named here.
        tokenizer: Of that model.
        given: What the other dimensions are inferred from; they are drawn from the prior if it is empty.
        dimension: Below `model.latent.total_size`; those from `model.latent.size` on are private to a modality.
        values: Of this dimension; what is inferred from data is mostly within −3 to 3.
        targets: Names of the modalities to generate; all if None.
        seed: Of what is drawn.

    Returns:
        By name, one for each value.

    Raises:
        ValueError: There is no such dimension or modality.
    """
    if not 0 <= dimension < model.latent.total_size:
        raise ValueError(f"dimension must be 0 to {model.latent.total_size - 1}, got {dimension}")
    generator = torch.Generator(model.device).manual_seed(seed)
    if given:
        batch = encode_modalities(model, tokenizer, given)
        z = model.sample_latent(batch, temperature=0.0, generator=generator)[0]
    else:
        z = model.sample_latent_prior(1, generator=generator)
    moved = z.repeat(len(values), 1)
    moved[:, dimension] = moved.new_tensor(list(values))
    if dimension < model.latent.size:
        moved[:, model.latent.size :] = 0
        moved = model.latent_head.complete(moved, {})
    made = model.decode(moved, targets)
    return {name: decode_values(model, tokenizer, name, found) for name, found in made.items()}


def encode_modalities(
    model: M3AEForGeneration, tokenizer: PreTrainedTokenizerBase | None, given: Mapping[str, Value]
) -> Batch:
    """Turn the modalities of one sample into what the model takes.

    Raises:
        ValueError: The model has no such modality, or no encoder of it, or what is given is of another kind.
    """
    modalities = model.latent.typed_modalities
    check_names(given, modalities)
    if silent := [name for name in given if name not in model.latent.experts]:
        raise ValueError(f"{silent[0]} has no encoder in this model: it can be generated, but not given")
    batch: Batch = {}
    for name, value in given.items():
        modality = modalities[name]
        if modality.kind == "text":
            assert tokenizer is not None
            _expect(name, modality, value, str)
            encoded = tokenize(tokenizer, [str(value)], modality.max_length)
            tensors = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        else:
            tensors = {TENSOR_NAMES[modality.kind]: _tensor(model, name, modality, value)[None]}
        batch[name] = {key: tensor.to(model.device) for key, tensor in tensors.items()}
    return batch


def read_modality(model: M3AEForGeneration, name: str, value: str) -> Value:
    """Read a modality from the command line: a text or the name of a class as it is, others from the file it names.

    The names of several classes stand between commas. Arrays are read from `.npy` files.

    Raises:
        ValueError: The model has no such modality, or the file cannot be read.
    """
    check_names([name], model.latent.typed_modalities)
    kind = model.latent.typed_modalities[name].kind
    if kind in ("text", "label"):
        return value
    if kind == "labels":
        return [own.strip() for own in value.split(",") if own.strip()]
    if kind == "image":
        return load_image(Path(value))
    try:
        array: NDArray[np.float32] = np.load(value, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {value} is no array in a .npy file ({error})") from error
    return array


def decode_values(
    model: M3AEForGeneration, tokenizer: PreTrainedTokenizerBase | None, name: str, values: Tensor
) -> list[Value]:
    """Turn what the model generates of one modality, a row a sample, into images, texts, probabilities or arrays."""
    modality, values = model.latent.typed_modalities[name], values.detach().cpu()
    if modality.kind == "image":
        grey = (values.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture) for picture in grey]
    if modality.kind == "text":
        assert tokenizer is not None
        return [text.strip() for text in tokenizer.batch_decode(values, skip_special_tokens=True)]
    if modality.kind in ("label", "labels"):
        return [dict(zip(modality.labels or [], row, strict=True)) for row in values.tolist()]
    return list(values.float().numpy())


def _tensor(model: M3AEForGeneration, name: str, modality: ModalityConfig, value: Value) -> Tensor:
    if modality.kind == "label":
        names = modality.labels or []
        if value not in names:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(names)}")
        return torch.tensor(names.index(str(value)))
    if modality.kind == "labels":
        names = modality.labels or []
        _expect(name, modality, value, list)
        assert isinstance(value, list)
        if unknown := [own for own in value if own not in names]:
            raise ValueError(f"{name}: got {unknown[0]!r}, expected some of {', '.join(names)}")
        return torch.tensor([float(own in value) for own in names])
    shape = shape_of(model.config, modality)
    if modality.kind == "image":
        _expect(name, modality, value, Image.Image)
        assert isinstance(value, Image.Image)
        square = np.array(centre_crop(to_8bit(value).convert("L" if shape[0] == 1 else "RGB"), shape[1]))
        pixels = torch.from_numpy(square).float() / 255
        return pixels[None] if shape[0] == 1 else pixels.permute(2, 0, 1)
    _expect(name, modality, value, np.ndarray)
    array = np.asarray(value, dtype=np.float32)
    if array.shape != tuple(shape):
        raise ValueError(f"{name}: got an array of shape {array.shape}, expected {tuple(shape)}")
    return torch.from_numpy(array)


def _expect(name: str, modality: ModalityConfig, value: Value, kind: type) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is of kind {modality.kind}: expected {kind.__name__}, got {type(value).__name__}")
