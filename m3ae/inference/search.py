"""Search of texts for images and of images for texts, with an index on the disk that is reused.

```
images.npy, texts.npy   with a contrastive head: a unit vector of each; without: encoded tokens in half precision
lengths.npy             number of tokens of each text; without a contrastive head
unreadable.npy          rows of images that cannot be read, which are NaN
index.json              digests of the model and of the data; and of the arrays, once the folder is complete
```

A model with a contrastive head finds candidates by their vectors, and its matching head ranks them. Without one, the
matching head compares the query with everything, from tokens that are encoded once: for small collections.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from m3ae.files import LOCK, file_sha256, only_process, remove_files, replacing, write_text
from m3ae.images.files import UnreadableImageError
from m3ae.inference.collections import Collection
from m3ae.inference.inputs import BATCH_SIZE, encode_pixels, find_model, model_digest
from m3ae.inference.rows import report
from m3ae.models.fusion import Stream
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.models.retrieval import (
    Encoded,
    EncodedImages,
    EncodedTexts,
    ImagesOnDemand,
    M3AEForImageTextRetrieval,
    embed,
    encode_texts,
    nearest,
    score_pairs,
)

DESCRIPTION = "index.json"
ARRAYS = ("images.npy", "texts.npy", "lengths.npy", "unreadable.npy")
KIND = "m3ae search index"
FORMAT_VERSION = 3
Searching = M3AEForPreTraining | M3AEForImageTextRetrieval
SEARCHING: tuple[type[Searching], ...] = (M3AEForPreTraining, M3AEForImageTextRetrieval)


class Hit(NamedTuple):
    """An image, or a text, that goes with a query.

    Attributes:
        row: The number of the image, or of the text, in the collection.
        score: A score that compares within one search only; larger is better.
        image: The name of the image, or of the image that the text belongs to; None for a text without image.
        texts: The texts of the image, or the text.
    """

    row: int
    score: float
    image: str | None
    texts: list[str]


class SearchIndex:
    """The images and texts of a collection, encoded by a model.

    Args:
        model: The model, in evaluation mode; see `open_index`.
        processor: The model's processor.
        collection: The images and texts.
        folder: The index of this model and this collection.
    """

    def __init__(self, model: Searching, processor: M3AEProcessor, collection: Collection, folder: Path) -> None:
        self.model, self.processor, self.collection = model, processor, collection
        # Mapped copy-on-write: nothing is read before it is needed, and PyTorch takes no read-only memory.
        paths = (folder / name for name in ARRAYS)
        self._arrays = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths if path.is_file()}

    @torch.inference_mode()
    def find(self, query: str | Image.Image, k: int = 10, rerank: int = 20) -> list[Hit]:
        """Return the `k` images that go best with a text, or the texts that go best with an image.

        Args:
            query: A text, cut to what the model takes, or an image.
            k: The number of hits, at most.
            rerank: The number of candidates that the matching head ranks, for a model with a contrastive head; 0
                leaves the candidates in the order of their cosines. A model without this head ranks everything.

        Raises:
            ValueError: The collection has no texts for an image, `k` is below 1, or `rerank` is below 0.
        """
        if k < 1 or rerank < 0:
            raise ValueError(f"k is {k} and rerank {rerank}: expected at least 1 and 0")
        encoded: EncodedTexts | EncodedImages
        if isinstance(query, str):
            side, modality, encoded = "images", "text", _encode_texts(self.model, self.processor, [query])
        elif self.collection.texts:
            side, modality, encoded = "texts", "image", _encode_images(self.model, self.processor, [query])
        else:
            raise ValueError("the collection has images only: there is no text to find")
        head, unreadable = self.model.itc_head, self._arrays.get("unreadable", torch.empty(0))
        if side == "texts":
            unreadable = torch.empty(0)
        if head is None:
            candidates = torch.arange(len(self.collection if side == "images" else self.collection.texts))
            candidates = candidates[~torch.isin(candidates, unreadable)]
            scores = self._match(encoded, candidates)
        else:
            count = max(k, rerank) + len(unreadable)  # whose NaN come first
            cosines, rows = nearest(embed(head, modality, encoded), self._arrays[side], count)
            is_readable = ~torch.isin(rows[0], unreadable)
            scores, candidates = cosines[0][is_readable], rows[0][is_readable]
            if rerank and has_matching_head(self.model):
                candidates = candidates[:rerank]
                scores = self._match(encoded, candidates)
        best = scores.topk(min(k, len(candidates)))
        return [
            self._hit(side, row, score)
            for row, score in zip(candidates[best.indices].tolist(), best.values.tolist(), strict=True)
        ]

    def _hit(self, side: str, row: int, score: float) -> Hit:
        names = self.collection.names
        if side == "images":
            return Hit(row, score, names[row], self.collection.texts_of(row))
        owner = self.collection.owners[row]
        return Hit(row, score, names[owner] if owner >= 0 else None, [self.collection.texts[row]])

    def _match(self, query: EncodedTexts | EncodedImages, candidates: Tensor) -> Tensor:
        """Score a query against candidates of the other modality by the matching head."""
        zeros = torch.zeros_like(candidates)
        if isinstance(query, EncodedTexts):
            pairs = torch.stack([zeros, candidates], dim=1)
            return score_pairs(self._score, query, self._images(), pairs, batch_size=BATCH_SIZE)
        pairs = torch.stack([torch.arange(len(candidates)), zeros], dim=1)
        return score_pairs(self._score, self._texts(candidates), query, pairs, batch_size=BATCH_SIZE)

    def _score(self, text: Stream, image: Stream) -> Tensor:
        if image.mask is None and self.processor.image_processor.resize_mode == "pad":
            image = image._replace(tokens=image.tokens.nan_to_num(), mask=~image.tokens[..., 0].isnan())
        streams = (stream._replace(tokens=stream.tokens.to(self.model.dtype)) for stream in (text, image))
        return self.model.score(*streams)

    def _images(self) -> Encoded:
        """Return the images: stored, or encoded when they are needed."""
        model, processor, load = self.model, self.processor, self.collection.load
        if model.itc_head is None:
            return EncodedImages(Stream(self._arrays["images"].to(model.device)))
        return ImagesOnDemand(
            lambda rows: model.m3ae.encode_image(**encode_pixels(model, processor, [*map(load, rows)])),
            len(self.collection),
            BATCH_SIZE,
        )

    def _texts(self, candidates: Tensor) -> EncodedTexts:
        """Return the candidates: stored, where all texts are candidates, or encoded now."""
        if self.model.itc_head is None:
            return EncodedTexts(self._arrays["texts"].to(self.model.device), self._arrays["lengths"])
        return _encode_texts(self.model, self.processor, [self.collection.texts[row] for row in candidates])


def open_index(
    model: Searching, processor: M3AEProcessor, collection: Collection, folder: Path, *, rebuild: bool = False
) -> SearchIndex:
    """Open the index in a folder, or build it where there is none of this model and these data, or a damaged one.

    Without a contrastive head it takes 2·T·D bytes an image of T tokens of width D: 0.5 MB for the base model. Images
    that cannot be read are left out, each with a message.

    Args:
        model: A model that `load_model` has loaded, of one of the classes in `SEARCHING`.
        processor: The model's processor.
        collection: The images and texts.
        folder: The folder of the index; `index_folder` gives a usual one.
        rebuild: Whether to build it in any case.

    Raises:
        BlockingIOError: Another process is building the index.
        ValueError: The folder holds something else, the model cannot compare images and texts, or no image can be
            read.
    """
    check_can_compare(model)
    digest = model_digest(model.name_or_path or "", getattr(model.config, "_commit_hash", None))
    description = {"kind": KIND, "format": FORMAT_VERSION, "model": digest, "data": collection.fingerprint}
    stored = _read_description(folder)
    if rebuild or not _is_intact(folder, stored.pop("arrays", None)) or stored != description:
        with only_process(folder):
            write_text(folder / DESCRIPTION, json.dumps(description))  # the folder is ours from here on
            remove_files(folder, ARRAYS)
            _build(model, processor, collection, folder)
            write_text(folder / DESCRIPTION, json.dumps(description | {"arrays": _facts(folder)}))
    return SearchIndex(model, processor, collection, folder)


def index_folder(model: str | Path, data: Path, split: str) -> Path:
    """Return the usual folder for the index of a model and a collection, below `~/.cache` or `XDG_CACHE_HOME`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    local = Path(find_model(model))
    source = f"{local.resolve() if local.is_dir() else model}\0{data.resolve()}\0{split}"
    return cache / "m3ae" / "search" / hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read_description(folder: Path) -> dict[str, Any]:
    """Return the contents of `index.json`, nothing if the folder is empty or the file is damaged.

    Raises:
        ValueError: The folder holds something else.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        if folder.is_dir() and any(other.name != LOCK for other in folder.iterdir()):
            raise ValueError(f"{folder} holds something other than an index: choose another folder")
        return {}
    text = path.read_text("utf-8", errors="replace")
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = {}
    if isinstance(stored, dict) and (f'"{KIND}"' in text or stored.keys() == {"format", "model", "data"}):
        return stored
    raise ValueError(f"{path} is not that of an index: choose another folder")


def _facts(folder: Path) -> dict[str, list[Any]]:
    """Return size, time and SHA-256 of each array."""
    paths = [path for name in ARRAYS if (path := folder / name).is_file()]
    return {path.name: [*_stat(path), file_sha256(path)] for path in paths}


def _is_intact(folder: Path, facts: Any) -> bool:
    """Return whether the arrays have their size and time, or else their checksum: to open 2 GB takes no second."""
    names = {name for name in ARRAYS if (folder / name).is_file()}
    return (
        isinstance(facts, dict)
        and facts.keys() == names
        and all(
            isinstance(facts[name], list)
            and (facts[name][:2] == _stat(folder / name) or facts[name][2:] == [file_sha256(folder / name)])
            for name in names
        )
    )


def _stat(path: Path) -> list[int]:
    return [(stat := path.stat()).st_size, stat.st_mtime_ns]


def check_can_compare(model: Searching) -> None:
    """Raise ValueError if a model was trained with neither of the heads that compare an image with a text."""
    if model.itc_head is None and not has_matching_head(model):
        raise ValueError("the model was trained with neither a matching nor a contrastive head: it cannot search")


def has_matching_head(model: Searching) -> bool:
    """Return whether the matching head was trained; every model has one."""
    fine_tuned = isinstance(model, M3AEForImageTextRetrieval)
    return bool(model.config.num_negatives if fine_tuned else model.config.itm_weight)


@torch.inference_mode()
def _build(model: Searching, processor: M3AEProcessor, collection: Collection, folder: Path) -> None:
    """Write the arrays, a batch in memory at a time."""
    head, texts = model.itc_head, collection.texts
    starts = range(0, len(texts), BATCH_SIZE)
    batches = [texts[start : start + BATCH_SIZE] for start in starts]
    if texts and head is not None:
        vectors = (embed(head, "text", _encode_texts(model, processor, batch)) for batch in batches)
        _save(folder / "texts.npy", len(texts), zip(starts, vectors, strict=True))
    elif texts:
        lengths = np.array([len(ids) for batch in batches for ids in token_ids(model, processor, batch)])
        _save(folder / "lengths.npy", len(texts), [(0, torch.from_numpy(lengths))])
        tokens = (_encode_texts(model, processor, batch).tokens.half() for batch in batches)
        firsts = (lengths.cumsum() - lengths)[::BATCH_SIZE].tolist()
        _save(folder / "texts.npy", int(lengths.sum()), zip(firsts, tokens, strict=True))
    unreadable: list[int] = []
    _save(folder / "images.npy", len(collection), _encoded_images(model, processor, collection, unreadable))
    if unreadable:
        _save(folder / "unreadable.npy", len(unreadable), [(0, torch.tensor(unreadable))])


def _save(path: Path, count: int, batches: Iterable[tuple[int | list[int], Tensor]]) -> None:
    """Write batches to an array, each from its first row on or to its rows; rows without a batch are NaN."""
    stored: np.memmap[Any, np.dtype[Any]] | None = None
    with replacing(path) as temporary:
        for rows, batch in batches:
            array = batch.cpu().numpy()
            if stored is None:
                stored = np.lib.format.open_memmap(temporary, "w+", array.dtype, (count, *array.shape[1:]))
                if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and would be SIGBUS in the mapping
                    with temporary.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
                if array.dtype.kind == "f":
                    stored[:] = np.nan
            stored[slice(rows, rows + len(array)) if isinstance(rows, int) else rows] = array
        if stored is None:
            raise ValueError(f"none of the {count} images can be read")
        stored.flush()


def _encoded_images(
    model: Searching, processor: M3AEProcessor, collection: Collection, unreadable: list[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield batches of rows of images, with the array to be stored; rows that cannot be read join `unreadable`."""
    starts = range(0, len(collection), BATCH_SIZE)
    for start in tqdm(starts, desc="encoding images", unit=f"×{BATCH_SIZE}", disable=None, leave=False):
        images: dict[int, Image.Image] = {}
        for row in range(start, min(start + BATCH_SIZE, len(collection))):
            try:
                images[row] = collection.load(row)
            except UnreadableImageError as error:
                report(error)
                unreadable.append(row)
        if images:
            encoded, head = _encode_images(model, processor, [*images.values()]), model.itc_head
            yield [*images], _tokens_to_store(encoded.stream) if head is None else embed(head, "image", encoded)


def _tokens_to_store(stream: Stream) -> Tensor:
    """Return the tokens (B, T, D) in half precision, those of padding NaN."""
    tokens = stream.tokens.half()
    return tokens if stream.mask is None else tokens.masked_fill(~stream.mask[..., None], torch.nan)


def _encode_images(model: Searching, processor: M3AEProcessor, images: Sequence[Image.Image]) -> EncodedImages:
    return EncodedImages(model.m3ae.encode_image(**encode_pixels(model, processor, images)))


def _encode_texts(model: Searching, processor: M3AEProcessor, texts: Sequence[str]) -> EncodedTexts:
    return encode_texts(model.m3ae, token_ids(model, processor, texts), BATCH_SIZE)


def token_ids(model: Searching, processor: M3AEProcessor, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts, each cut to what the model takes."""
    options = {"truncation": True, "max_length": model.config.longest_text}
    ids: list[list[int]] = processor.tokenizer([*texts], **options)["input_ids"]
    return ids
