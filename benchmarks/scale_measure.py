"""Measure here what the plan of `docs/scale.md` rests on; the figures go, by hand, into `MEASURED` of `scale.py`.

    python benchmarks/scale_measure.py data/rocov2 --source DOWNLOADS/rocov2

Rates are of one core, in processor time, so that other work on the machine disturbs little; what is written to the
disk is timed by the clock.
"""

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from data import batches, open_samples
from safetensors.torch import save_file
from torch import Tensor, nn

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_manifest
from m3ae.data.rows import list_rows
from m3ae.data.sets import _Slice
from m3ae.data.sources import load_source
from m3ae.data.tokenizer import train_tokenizer
from m3ae.files import file_sha256
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor

MB = 1e6


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the constants of the plan.")
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--source", type=Path, help="ROCOv2 as downloaded, to be prepared again")
    parser.add_argument("--size", default="base", help="of the model whose activations are counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found = {"stored_bytes": stored_bytes(arguments.data)}
    found |= {"loaded_per_second": loaded_per_second(arguments.data)}
    found |= {"footer_seconds": footer_seconds(arguments.data), "slice_bytes": slice_bytes()}
    if arguments.source:
        found |= preparing(arguments.source)
    found |= writing(64)
    found |= {"activation_bytes": activation_bytes(M3AEConfig.named(arguments.size), samples=2, tokens=32)}
    print(json.dumps(found, indent=2))


def stored_bytes(folder: Path) -> float:
    """Return the bytes of a prepared pair, in its shards."""
    splits = load_manifest(folder).splits.values()
    size = sum((folder / name).stat().st_size for info in splits for name in info.shards)
    return size / sum(info.rows for info in splits)


def loaded_per_second(folder: Path, size: int = 288) -> float:
    """Return the pairs that one core reads, decodes, crops, tokenizes and collates in a second."""
    dataset = open_samples(folder)
    processor = M3AEProcessor(M3AEImageProcessor.for_size(size), train_tokenizer(dataset.texts(), 2000))
    return batches(dataset, processor, size, min(128, len(dataset)) // 32 * 32, passes=3)["random resized crop"]


def footer_seconds(folder: Path) -> float:
    """Return how long it takes to open a shard and read its footer, once it is in the page cache."""
    shard = next(iter(folder.glob("train-*.parquet")))
    return processor_time(lambda: pq.ParquetFile(shard).close(), 200)


def slice_bytes(count: int = 20_000) -> float:
    """Return the memory of one of the slices that an epoch of a stream shuffles."""
    with traced() as used:
        slices = [_Slice(0, "train-00000-of-24415.parquet", group, 0, 100, 0) for group in range(count)]
    return used() / len(slices)


def preparing(source: Path) -> dict[str, float]:
    """Return the memory of a listed row, and the rows that one core prepares in a second."""
    with traced() as used:
        listing = list_rows(load_source("rocov2").rows(source), [source])
    rows = sum(map(len, listing.rows.values()))
    with tempfile.TemporaryDirectory() as folder:
        seconds = processor_time(lambda: prepare("rocov2", Path(folder) / "x", source=source, num_workers=1), 1)
    return {"listed_bytes": used() / rows, "prepared_per_second": rows / seconds}


def writing(megabytes: int) -> dict[str, float]:
    """Return bytes a second of one process: writing a checkpoint's file to the disk, and its SHA-256."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "x.safetensors"
        tensors = {"x": torch.rand(int(megabytes * MB) // 4)}
        begun = time.perf_counter()
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        written = path.stat().st_size / (time.perf_counter() - begun)
        return {
            "written_per_second": written,
            "hashed_per_second": path.stat().st_size / processor_time(lambda: file_sha256(path), 3),
        }


def activation_bytes(config: M3AEConfig, samples: int, tokens: int) -> float:
    """Return what the backward pass of a sample needs of its forward pass in bf16, the weights not counted."""
    torch.manual_seed(0)
    model = M3AEForPreTraining(config).train()
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = (
        config.image_config["image_size"] if isinstance(config.image_config, dict) else config.image_config.image_size
    )
    images = torch.rand(samples, 3, size, size)
    words = torch.randint(5, config.text_config.vocab_size, (samples, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model(pixel_values=images, input_ids=words, attention_mask=torch.ones_like(words)).loss
    assert loss.requires_grad
    casts = sum(
        parameter.numel() * 2
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for parameter in module.parameters()
    )
    return (sum(kept.values()) - casts) / samples


@contextmanager
def traced() -> Iterator[Callable[[], float]]:
    """Count the memory that the block leaves taken."""
    tracemalloc.start()
    taken = [0.0]
    try:
        yield lambda: taken[0]
        taken[0] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def processor_time(work: Callable[[], Any], count: int) -> float:
    """Return the processor's seconds of one call, children not counted."""
    begun = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - begun) / count


if __name__ == "__main__":
    main()
