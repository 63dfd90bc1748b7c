"""How fast one core turns stored rows into batches: decoders, resizing, and the whole path that training takes.

    python benchmarks/data.py --data data/iu_xray [--json figures.json]

Each line is the best of several passes in processor time of one thread, so that other work on the machine disturbs
little; compare ratios within one run. Without `--data` phantoms are made. OpenCV (`opencv-python-headless`) and
`simplejpeg` are timed where they are installed.
"""

import argparse
import importlib.util
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from m3ae.data.collate import TrunkCollator
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_manifest
from m3ae.data.samples import SampleDataset, Visit, trunk_columns
from m3ae.data.tokenizer import train_tokenizer
from m3ae.images.augment import augment, centre_crop, plain
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor

Work = Callable[[int], Any]
BATCH_SIZE = 32


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Samples per second of one core, by step and library.")
    parser.add_argument("--data", type=Path, help="prepared folder; phantoms are made without it")
    parser.add_argument("--image-size", type=int, default=224, help="side of the model's images in pixels")
    parser.add_argument("--samples", type=int, default=256, help="rows that are read")
    parser.add_argument("--passes", type=int, default=5, help="over these rows; the fastest counts")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the workers of a data loader
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary) / "phantoms"
        if arguments.data is None:
            prepare("phantom", folder, num_studies=2 * arguments.samples, image_size=384)
        dataset = open_samples(folder)
        count = min(arguments.samples, len(dataset)) // BATCH_SIZE * BATCH_SIZE
        figures = measure(dataset, arguments.image_size, count, arguments.passes)
    versions = {"pillow": PIL.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    print(f"{folder}: {count} rows, {arguments.image_size} px, samples/s of one core; {versions}")
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "samples_per_second": figures}, indent=2) + "\n")


def open_samples(folder: Path) -> SampleDataset:
    """Open the training rows with all image columns and, if there is one, the column of texts."""
    info = load_manifest(folder).splits["train"]
    return SampleDataset(folder, "train", trunk_columns(list(info.images), "text" if info.texts else None))


def measure(dataset: SampleDataset, size: int, count: int, passes: int) -> dict[str, dict[str, float]]:
    """Return samples per second by group and name; the first of a group is what is in use."""
    views = [image.content for index in range(len(dataset)) for image in dataset.first(index).images][:count]
    decoded = [Image.open(io.BytesIO(view)).convert("RGB") for view in views]
    groups = {
        "decode": decoders(views, size),
        "resize": resizers(decoded, size),
        "augment": augmentations([plain(image) for image in decoded], size),
    }
    figures = {
        group: {name: speed(work, len(views), passes) for name, work in works.items()}
        for group, works in groups.items()
    }
    tokenizer = train_tokenizer(dataset.texts() or ["no text"], 2000)
    processor = M3AEProcessor(M3AEImageProcessor.for_size(size), tokenizer)
    return figures | {"read + decode + augment + collate": batches(dataset, processor, size, count, passes)}


def decoders(views: Sequence[bytes], size: int) -> dict[str, Work]:
    """JPEG bytes to RGB pixels."""

    def drafted(i: int) -> Image.Image:
        image = Image.open(io.BytesIO(views[i]))
        image.draft("RGB", (size, size))  # decodes at 1/2, 1/4 or 1/8, never below the size asked for
        return image.convert("RGB")

    works: dict[str, Work] = {
        "Pillow": lambda i: Image.open(io.BytesIO(views[i])).convert("RGB"),
        "Pillow, draft": drafted,
        "torchvision": lambda i: decode_jpeg(
            torch.frombuffer(bytearray(views[i]), dtype=torch.uint8), mode=ImageReadMode.RGB
        ),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        works["OpenCV"] = lambda i: cv2.imdecode(np.frombuffer(views[i], np.uint8), cv2.IMREAD_COLOR_RGB)
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        works["simplejpeg"] = lambda i: simplejpeg.decode_jpeg(views[i], "RGB")
    return works


def resizers(images: Sequence[Image.Image], size: int) -> dict[str, Work]:
    """RGB pixels (or grey ones) to a square, the shorter side resized and the middle cut out."""
    processor = M3AEImageProcessor.for_size(size)
    arrays = [np.array(image) for image in images]
    tensors = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]
    grey = [image.convert("L") for image in images]
    works: dict[str, Work] = {
        "Pillow": lambda i: centre_crop(images[i], size),
        "Pillow, check for grey": lambda i: plain(images[i]),
        "Pillow, grey": lambda i: centre_crop(grey[i], size),
        "Hugging Face processor, normalised": lambda i: processor(images[i], return_tensors="pt"),
        "torchvision": lambda i: tv.center_crop(
            tv.resize(tensors[i], [size], tv.InterpolationMode.BICUBIC, antialias=True), [size]
        ),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        works["OpenCV, area"] = lambda i: cv2.resize(arrays[i], (size, size), interpolation=cv2.INTER_AREA)
    return works


def augmentations(images: Sequence[Image.Image], size: int) -> dict[str, Work]:
    """Pixels, grey where the data are, to a square as training sees it."""
    draw = np.random.default_rng(0)
    return {
        "centre crop": lambda i: augment(images[i], size, draw, "crop", (1.0, 1.0)),
        "random resized crop": lambda i: augment(images[i], size, draw, "crop", (0.9, 1.0)),
        "radiograph": lambda i: augment(images[i], size, draw, "radiograph", (0.9, 1.0)),
    }


def batches(dataset: SampleDataset, processor: M3AEProcessor, size: int, count: int, passes: int) -> dict[str, float]:
    """Rows on disk to batches of tensors, as a worker of the data loader makes them."""

    def whole(collator: TrunkCollator) -> Work:
        def work(number: int) -> Any:
            start = number * BATCH_SIZE
            return collator([dataset[Visit(i, 977 * i)] for i in range(start, start + BATCH_SIZE)])

        return work

    modalities = trunk_modalities(M3AEConfig.named("base", image_config={"image_size": size}))
    centre = BatchOptions(processor.tokenizer, 64)
    options = {
        "centre crop": centre,
        "random resized crop": replace(centre, crop_scale=(0.9, 1.0)),
        "radiograph, whole words": replace(centre, augmentation="radiograph", crop_scale=(0.9, 1.0), word_ids=True),
    }
    works = {name: whole(TrunkCollator(modalities, chosen)) for name, chosen in options.items()}
    images = processor.image_processor
    works["rows alone"] = lambda number: [dataset[Visit(number * BATCH_SIZE + i, i)] for i in range(BATCH_SIZE)]
    works["centre crop by the Hugging Face processor, no text"] = lambda number: images(
        [sample.picture for sample in works["rows alone"](number) if sample.images], return_tensors="pt"
    )
    return {name: BATCH_SIZE * speed(work, count // BATCH_SIZE, passes) for name, work in works.items()}


def speed(work: Work, count: int, passes: int) -> float:
    """Return calls per processor second of `work(0)` to `work(count − 1)` in the fastest pass."""
    seconds = []
    for _ in range(passes):
        started = time.process_time()
        for i in range(count):
            work(i)
        seconds.append(time.process_time() - started)
    return count / min(seconds)


def table(figures: dict[str, dict[str, float]]) -> str:
    """Lay the figures out, with their ratio to the first of their group."""
    lines = []
    for group, speeds in figures.items():
        lines.append(f"\n{group:<52}{'samples/s':>10}{'ratio':>8}")
        first = next(iter(speeds.values()))
        lines += [f"  {name:<50}{value:>10.0f}{value / first:>8.2f}" for name, value in speeds.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
