"""Models, images and texts, ready to be used: every function of inference begins with them.

Shapes: B batch, H×W pixels, L text tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from m3ae import models
from m3ae.files import file_sha256
from m3ae.images.files import load_image
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.generation import M3AEForGeneration
from m3ae.models.modalities.text import tokenize
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor, check_processor
from m3ae.precision import choose_precision, find_device

BATCH_SIZE = 32
ModelT = TypeVar("ModelT", bound=M3AEPreTrainedModel)


def load_model(
    path: str | Path, classes: Sequence[type[ModelT]], device: str | None = None
) -> tuple[ModelT, M3AEProcessor]:
    """Load a saved model in evaluation mode, and its processor.

    Args:
        path: The folder of the model or of its run, or a name on the hub.
        classes: The classes that the model may have.
        device: A device such as `cuda:1`; by default a GPU if there is one. A model saved in bf16 is computed in
            float32 where the device is slower in bf16.

    Raises:
        ValueError: There is no such model, its class is another one, or its processor contradicts its configuration.
    """
    model = _load(find_model(path), {kind.__name__: kind for kind in classes}, device)
    with _damage_named("processor", path):
        processor = M3AEProcessor.from_pretrained(find_model(path))
        assert isinstance(model.config.image_config, M3AEImageConfig)
        check_processor(processor.image_processor, model.config.image_config)
    return model, processor


def load_generator(
    path: str | Path, device: str | None = None
) -> tuple[M3AEForGeneration, PreTrainedTokenizerBase | None]:
    """Load a latent model in evaluation mode, and its tokenizer if it knows texts; see `load_model`.

    The latent head of a pre-trained model is one, too.
    """
    kinds = {M3AEForGeneration.__name__: M3AEForGeneration}
    if saved_config(path).latent is not None:
        kinds[M3AEForPreTraining.__name__] = M3AEForGeneration
    model = _load(find_model(path), kinds, device)
    has_texts = any(modality.is_text for modality in model.latent_head.modalities.values())
    with _damage_named("tokenizer", path):
        return model, AutoTokenizer.from_pretrained(find_model(path)) if has_texts else None


def load_any(path: str | Path, device: str | None = None) -> tuple[M3AEPreTrainedModel, Any]:
    """Load a model of any class, and its processor or its tokenizer; see `load_model` and `load_generator`."""
    if saved_class(path) == M3AEForGeneration.__name__:
        return load_generator(path, device)
    public = [getattr(models, name) for name in models.__all__]
    classes = [kind for kind in public if isinstance(kind, type) and issubclass(kind, M3AEPreTrainedModel)]
    return load_model(path, classes, device)


def saved_class(path: str | Path) -> str:
    """Return the name of the class of a saved model.

    Raises:
        ValueError: There is no such model.
    """
    names = saved_config(path).architectures
    return str(names[0]) if isinstance(names, list) and names else "a model of unknown class"


def saved_config(path: str | Path) -> M3AEConfig:
    """Return the configuration of a saved model; see `saved_class`."""
    return _config(find_model(path))


def find_model(path: str | Path) -> str:
    """Return the folder of a model: the folder itself, or `model` in the folder of a run; hub names stay."""
    inner = Path(path) / "model"  # `os.path`: for too long a name the methods of `Path` raise OSError
    return str(inner if not os.path.isfile(Path(path, "config.json")) and os.path.isdir(inner) else path)


def model_digest(path: str | Path, revision: str | None = None) -> str:
    """Return a digest of the files of a model; of its name and revision, if the model is on the hub."""
    files = sorted(path for path in Path(path).glob("*") if path.suffix in (".json", ".safetensors"))
    lines = [f"{file.name} {file_sha256(file)}" for file in files] or [str(path), *filter(None, [revision])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_images(paths: Iterable[Path]) -> list[Image.Image]:
    """Decode image files; see `m3ae.images.files.load_image`.

    Raises:
        TypeError: The files are a single one, or bytes.
        ValueError: A file is missing or cannot be read.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"paths: got a single {type(paths).__name__}, expected a list of files")
    return [load_image(path) for path in paths]


def check_picture(image: Any) -> Any:
    """Return a picture of Pillow, an array, a tensor or the name of a file; raise TypeError for anything else."""
    if not isinstance(image, Image.Image | np.ndarray | Tensor | str | os.PathLike):
        kind = type(image).__name__
        raise TypeError(f"got an image of type {kind}, expected a picture, an array, a tensor or the name of a file")
    return image


def encode_pixels(
    model: M3AEPreTrainedModel, processor: M3AEProcessor, images: Sequence[Image.Image]
) -> dict[str, Any]:
    """Return `pixel_values` (B, 3, H, W) on the model's device, and `pixel_mask` (B, H, W) if any image is padded."""
    encoded = processor.image_processor([*map(check_picture, images)], return_tensors="pt")
    inputs = {"pixel_values": encoded["pixel_values"].to(model.device, model.dtype)}
    mask = encoded.get("pixel_mask")
    return inputs if mask is None or mask.all() else inputs | {"pixel_mask": mask.to(model.device)}


def pictures(processor: M3AEProcessor, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Return what the model sees of images: (B, H, W, 3) in [0, 1]."""
    pixels: Tensor = processor.image_processor(list(images), do_normalize=False, return_tensors="pt")["pixel_values"]
    return pixels.permute(0, 2, 3, 1).numpy()


def encode_words(model: M3AEPreTrainedModel, processor: M3AEProcessor, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` (B, L) on the model's device; texts are cut to what the model takes."""
    encoded = tokenize(processor.tokenizer, texts, model.config.longest_text)
    return {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _load(path: str, classes: Mapping[str, type[ModelT]], device: str | None) -> ModelT:
    """Load a model, as the class that stands at the name of its own."""
    target, saved = find_device(device), saved_class(path)
    if saved not in classes:
        raise ValueError(f"the model in {path} is {saved}, and this needs {' or '.join(classes)}")
    with _damage_named("weights", path):
        loaded: Any = classes[saved].from_pretrained(path, output_loading_info=True)
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ValueError(f"the model in {path} lacks {len(missing)} of its parameters, such as {missing[0]}")
    model: ModelT = loaded[0].eval()
    if model.dtype == torch.bfloat16 and choose_precision(target).name == "no":
        model = model.float()
    return model.to(target)  # type: ignore[arg-type, no-any-return]  # transformers wraps it


def _config(path: str) -> M3AEConfig:
    try:
        config: M3AEConfig = M3AEConfig.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"no M3AE model in {path!r}: expected a folder with config.json and model.safetensors, such as "
            "runs/quickstart/model, or a name on the hub"
        ) from error
    except Exception as error:  # types and names are checked by several libraries
        raise ValueError(f"config.json of {path} is not that of a model of this version: {error}") from error
    return config


@contextmanager
def _damage_named(what: str, path: str | Path) -> Iterator[None]:
    """Turn what libraries raise for a damaged file of a model into a ValueError that names the model."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the {what} in {path} cannot be used: missing, damaged, or unlike its config.json ({message})"
        ) from error
