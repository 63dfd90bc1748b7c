"""Missing modalities from present ones, by a latent model.

Shapes: C channels, S side of the image in pixels, T time steps, F features, Z all latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from m3ae.files import replacing
from m3ae.images.files import load_image
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.modalities import BatchOptions, Scene, check_names

if TYPE_CHECKING:
    from datasets import Dataset

# A modality as people give and get it: an image, a text, the name of a class or a list of names, or an array (T, F) or
# (F,), (C, D, H, W) of a volume, or a scene, whose generated slices are an array (Q, C, H, W). A generated label, or
# labels, is the probability of each class.
Value = Image.Image | str | list[str] | NDArray[np.float32] | Scene | dict[str, float]
Batch = dict[str, dict[str, Tensor]]


def generate(
    model: M3AEForGeneration,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Mapping[str, Value],
    targets: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, list[Value]]:
    """Generate modalities of one sample from others, or all of them from the prior if no modality is given.

    Args:
        model: The model, in evaluation mode.
        tokenizer: The model's tokenizer; None without texts.
        given: The present modalities by name.
        targets: The names of the modalities to generate; by default all that are not given. A mapping has the poses
            (Q, P) of slices, too; None for other kinds.
        num_samples: The number of samples of each modality.
        temperature: A factor on the standard deviation of everything that is drawn; 0 for the means.
        seed: The seed of the samples.

    Returns:
        The samples of each modality, by name.

    Raises:
        ValueError: The model has no such modality, or a value is of another kind.
    """
    wanted = targets or [name for name in model.latent.decoded if name not in given]
    generator = torch.Generator(model.device).manual_seed(seed)
    if given:
        batch = encode_modalities(model, tokenizer, given)
        samples = model.generate_modalities(batch, wanted, num_samples, temperature, generator)
        generated = {name: values[:, 0] for name, values in samples.items()}
    else:
        generated = model.sample_prior(num_samples, "own", wanted, temperature, generator)
    return _user_values(model, tokenizer, generated)


@torch.no_grad()
def traverse(
    model: M3AEForGeneration,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Mapping[str, Value],
    dimension: int,
    values: Sequence[float],
    targets: Sequence[str] | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> dict[str, list[Value]]:
    """Generate modalities while one latent dimension takes some values and the others stay.

    If the dimension is shared, the private latents take the mean of their prior given all shared dimensions.

    Args:
        model: The model, in evaluation mode.
        tokenizer: The model's tokenizer; None without texts.
        given: The modalities that the other dimensions are inferred from; without any, they are drawn from the prior.
        dimension: A number below `model.latent.total_size`; from `model.latent.size` on, dimensions are private to a
            modality.
        values: The values of this dimension; those inferred from data are mostly within −3 to 3.
        targets: The names of the modalities to generate; all by default.
        seed: The seed of the draw.

    Returns:
        A sample for each value, by the name of the modality.

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
    return _user_values(model, tokenizer, model.decode(moved, targets))


def encode_modalities(
    model: M3AEForGeneration, tokenizer: PreTrainedTokenizerBase | None, given: Mapping[str, Value]
) -> Batch:
    """Turn the modalities of one sample into the model's inputs.

    Raises:
        ValueError: The model has no such modality, or no encoder of it, or a value is of another kind.
    """
    modalities = model.latent_head.modalities
    check_names(given, modalities)
    if silent := [name for name in given if name not in model.latent.experts]:
        raise ValueError(f"{silent[0]} has no encoder in this model: it can be generated, but not given")
    options, generator = BatchOptions(tokenizer), np.random.default_rng(0)
    batch: Batch = {}
    for name, value in given.items():
        tensors = modalities[name].batch([modalities[name].cell(value)], options, [generator])
        batch[name] = {key: tensor.to(model.device) for key, tensor in tensors.items()}
    return batch


def read_modality(model: M3AEForGeneration, name: str, value: str) -> Value:
    """Read a modality from the command line: a text or the name of a class as it is, others from the file it names.

    The names of several classes stand between commas. Arrays are read from `.npy` files, volumes also from NIfTI files
    and folders with a DICOM series.

    Raises:
        ValueError: The model has no such modality, or the file cannot be read.
    """
    check_names([name], model.latent_head.modalities)
    value_type = model.latent_head.modalities[name].value_type
    if value_type is str:
        return value
    if value_type is list:
        return [label.strip() for label in value.split(",") if label.strip()]
    if value_type is Image.Image:
        return load_image(Path(value))
    return model.latent_head.modalities[name].load(Path(value))


def write_value(value: Value, path: Path) -> Any:
    """Write an image as PNG or an array as .npy, and return the file; return texts and probabilities as they are.

    Args:
        value: A generated value.
        path: The file without its suffix.
    """
    if not isinstance(value, Image.Image | np.ndarray):
        return value
    path = path.with_name(f"{path.name}.{'png' if isinstance(value, Image.Image) else 'npy'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        if isinstance(value, Image.Image):
            value.save(file, "PNG")
        else:
            np.save(file, value)
    return str(path)


def read_row(model: M3AEForGeneration, folder: Path, split: str, row: str, names: Sequence[str]) -> dict[str, Value]:
    """Return modalities of the row of a prepared set that has an id; of several views or texts, the first.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: It has no such split, row or column, or the row lacks one of the modalities.
    """
    from m3ae.data.prepared import load_split  # needs the extra `train`

    check_names(names, model.latent_head.modalities)
    rows = load_split(folder, split)
    ids: list[str] = rows["id"][:]
    if row not in ids:
        raise ValueError(f"{folder}, {split}, has no row {row!r}: its ids are {', '.join(ids[:3])}, …")
    return read_values(model, rows, ids.index(row), names)


def read_values(model: M3AEForGeneration, rows: Dataset, number: int, names: Sequence[str]) -> dict[str, Value]:
    """Return modalities of the row with a number; see `read_row`.

    Raises:
        ValueError: A column or the row's cell is missing.
    """
    from m3ae.data.prepared import typed_rows  # needs the extra `train`
    from m3ae.data.samples import Columns

    if missing := [name for name in names if name not in rows.features]:
        raise ValueError(f"the set has no column {missing[0]!r}; it has {', '.join(rows.features)}")
    modalities = {name: model.latent_head.modalities[name] for name in names}
    columns = Columns(modalities)
    read = rows.select_columns(columns.names)
    (row,) = typed_rows([read[number]], read.features.arrow_schema)
    sample = columns.sample(row, seed=0)
    if absent := [name for name, cell in sample.cells.items() if cell is None]:
        raise ValueError(f"row {sample.id!r} has no {absent[0]}")
    return {name: modalities[name].value(cell) for name, cell in sample.cells.items()}


def _user_values(
    model: M3AEForGeneration, tokenizer: PreTrainedTokenizerBase | None, generated: Mapping[str, Tensor]
) -> dict[str, list[Value]]:
    """Turn generated tensors, a row a sample, into images, texts, probabilities or arrays."""
    modalities = model.latent_head.modalities
    return {name: modalities[name].values(values, tokenizer) for name, values in generated.items()}
