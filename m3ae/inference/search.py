"""Search of texts for images and of images for texts, with an index on the disk that is reused.

```
images.npy, texts.npy   with a contrastive head: a unit vector of each; without: encoded tokens in half precision
lengths.npy             tokens of each text; without a contrastive head
index.json              what model and what data it is of; where it has checksums, too, the folder is complete
```

Images that cannot be read are NaN.

A model with a contrastive head finds candidates by their vectors, and its matching head ranks them. Without one, the
matching head compares the query with everything, from tokens that are encoded once: for small collections.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from m3ae.data.images import UnreadableImageError
from m3ae.files import LOCK, file_sha256, only_process, remove_files, replacing, write_text
from m3ae.inference.collections import Collection
from m3ae.inference.inputs import BATCH_SIZE, encode_pixels, find_model
from m3ae.models.fusion import Stream
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEProcessor
from m3ae.models.retrieval import M3AEForImageTextRetrieval
from m3ae.models.search import (
    Encoded,
    EncodedImages,
    EncodedTexts,
    ImagesOnDemand,
    embed,
    encode_images,
    encode_texts,
    score_pairs,
)

DESCRIPTION = "index.json"
ARRAYS = ("images.npy", "texts.npy", "lengths.npy")
KIND = "m3ae search index"
FORMAT_VERSION = 2
Searching = M3AEForPreTraining | M3AEForImageTextRetrieval
SEARCHING: tuple[type[Searching], ...] = (M3AEForPreTraining, M3AEForImageTextRetrieval)


class Hit(NamedTuple):
    """Something found.

    Attributes:
        place: Its number among the images, or the texts, of the collection.
        name: Of the image, or the text itself.
        score: Larger = better, and comparable within one search only.
    """

    place: int
    name: str
    score: float


class SearchIndex:
    """The images and texts of a collection, encoded by a model.

    Args:
        model: In evaluation mode; see `open_index`.
        processor: Of that model.
        collection: What is searched.
        folder: The index of just these.
    """

    def __init__(self, model: Searching, processor: M3AEProcessor, collection: Collection, folder: Path) -> None:
        self.model, self.processor, self.collection = model, processor, collection
        # Mapped copy-on-write: nothing is read before it is needed, and PyTorch takes no read-only memory.
        paths = (folder / name for name in ARRAYS)
        self._arrays = {path.stem: np.load(path, mmap_mode="c") for path in paths if path.is_file()}
        readable = ~np.isnan(self._arrays["images"].reshape(len(collection), -1)[:, 0])
        self._places = {
            "images": torch.from_numpy(readable.nonzero()[0]),
            "texts": torch.arange(len(collection.texts)),
        }

    @torch.inference_mode()
    def find_images(self, text: str, k: int = 10, rerank: int = 20) -> list[Hit]:
        """Return the k images that go best with a text.

        Args:
            text: Cut to what the model takes.
            k: How many.
            rerank: Candidates that the matching head ranks, of a model with a contrastive head; 0 leaves them in the
                order of their cosines. A model without one has no candidates, and ranks everything.
        """
        query = _encode_texts(self.model, self.processor, [text])
        images: Encoded = self._images()

        def score(places: Tensor) -> Tensor:
            pairs = torch.stack([torch.zeros_like(places), places], dim=1)
            return score_pairs(self.model.score, query, images, pairs, batch_size=BATCH_SIZE)

        found = self._find("text", query, "images", score, k, rerank)
        return [Hit(place, self.collection.names[place], score) for place, score in found]

    @torch.inference_mode()
    def find_texts(self, image: Image.Image, k: int = 10, rerank: int = 20) -> list[Hit]:
        """Return the k texts that go best with an image; see `find_images`.

        Raises:
            ValueError: The collection has no texts.
        """
        if not self.collection.texts:
            raise ValueError("the collection has images only: there is no text to find")
        query = encode_images(self.model.m3ae, [encode_pixels(self.model, self.processor, [image])])

        def score(places: Tensor) -> Tensor:
            texts = self._texts(places)
            pairs = torch.stack([torch.arange(len(places)), torch.zeros_like(places)], dim=1)
            return score_pairs(self.model.score, texts, query, pairs, batch_size=BATCH_SIZE)

        found = self._find("image", query, "texts", score, k, rerank)
        return [Hit(place, self.collection.texts[place], score) for place, score in found]

    def _find(
        self,
        name: str,
        query: Encoded,
        side: str,
        score: Callable[[Tensor], Tensor],
        k: int,
        rerank: int,
    ) -> list[tuple[int, float]]:
        """Return places and scores of the best candidates on a side for a query of the modality `name`."""
        head, places = self.model.itc_head, self._places[side]
        if head is None:
            scores = score(places)
        else:
            cosines = (torch.from_numpy(self._arrays[side]) @ embed(head, name, query)[0])[places]
            scores, nearest = cosines.topk(min(max(k, rerank), len(places)))
            places = places[nearest]
            if rerank and _has_matching_head(self.model):
                places = places[:rerank]
                scores = score(places)
        best = scores.topk(min(k, len(places)))
        return [*zip(places[best.indices].tolist(), best.values.tolist(), strict=True)]

    def _images(self) -> Encoded:
        if self.model.itc_head is None:
            return _StoredImages(self._stored("images"))
        return ImagesOnDemand(self.model.m3ae, self._load, len(self.collection), BATCH_SIZE)

    def _load(self, places: list[int]) -> Tensor:
        return encode_pixels(self.model, self.processor, [self.collection.load(place) for place in places])

    def _texts(self, places: Tensor) -> EncodedTexts:
        """Return some texts: encoded now, or stored."""
        if self.model.itc_head is not None:
            return _encode_texts(self.model, self.processor, [self.collection.texts[place] for place in places])
        lengths = torch.from_numpy(self._arrays["lengths"])
        starts = lengths.cumsum(0) - lengths
        return _StoredTexts(self._stored("texts"), starts[places], lengths[places])

    def _stored(self, side: str) -> Tensor:
        return torch.from_numpy(self._arrays[side]).to(self.model.device)


class _StoredImages(EncodedImages):
    def select(self, index: Tensor) -> Stream:
        return _restore(super().select(index))


class _StoredTexts(EncodedTexts):
    def select(self, index: Tensor) -> Stream:
        return _restore(super().select(index))


def _restore(stream: Stream) -> Stream:
    return stream._replace(tokens=stream.tokens.float())


def open_index(
    model: Searching,
    processor: M3AEProcessor,
    collection: Collection,
    folder: Path,
    *,
    rebuild: bool = False,
) -> SearchIndex:
    """Open the index in a folder, or build it where there is none of this model and these data, or a damaged one.

    Without a contrastive head it takes 2·T·D bytes an image of T tokens of width D: 0.5 MB for the base model. Images
    that cannot be read are left out, each with a message.

    Args:
        model: Loaded by `load_model`, of one of the classes in `SEARCHING`.
        processor: Of that model.
        collection: What is searched.
        folder: Of the index; `index_folder` gives a usual place.
        rebuild: Whether to build it in any case.

    Raises:
        BlockingIOError: Another process is building it.
        ValueError: The folder holds something else, the model cannot compare images and texts, or no image can be
            read.
    """
    if model.itc_head is None and not _has_matching_head(model):
        raise ValueError("the model was trained with neither a matching nor a contrastive head: it cannot search")
    source = {"model": model_fingerprint(model), "data": collection.fingerprint}
    wanted = {"kind": KIND, "format": FORMAT_VERSION, **source}
    stored = _read_description(folder)
    if rebuild or stored != wanted | {"sha256": _checksums(folder)}:
        with only_process(folder):
            write_text(folder / DESCRIPTION, json.dumps(wanted))  # the folder is ours from here on
            remove_files(folder, ARRAYS)
            _build(model, processor, collection, folder)
            write_text(folder / DESCRIPTION, json.dumps(wanted | {"sha256": _checksums(folder)}))
    return SearchIndex(model, processor, collection, folder)


def _read_description(folder: Path) -> dict[str, Any]:
    """Return what `index.json` says; nothing if the folder is empty or the file is damaged.

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
    except ValueError:
        stored = {}
    if isinstance(stored, dict) and (f'"{KIND}"' in text or stored.keys() == {"format", "model", "data"}):
        return stored
    raise ValueError(f"{path} is not that of an index: choose another folder")


def _checksums(folder: Path) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name in ARRAYS if (folder / name).is_file()}


def index_folder(model: str | Path, data: Path, split: str) -> Path:
    """Return where the index of a model and a collection is usually kept: below `~/.cache`, or `XDG_CACHE_HOME`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    local = Path(find_model(model))
    what = f"{local.resolve() if local.is_dir() else model}\0{data.resolve()}\0{split}"
    return cache / "m3ae" / "search" / hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def model_fingerprint(model: Searching) -> str:
    """Return what differs when another model is loaded: sizes and times of its files, or the revision on the hub."""
    folder = Path(model.name_or_path or "")
    if not folder.is_dir():
        return f"{model.name_or_path} {getattr(model.config, '_commit_hash', None)}"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    lines = [f"{file.name} {(found := file.stat()).st_size} {found.st_mtime_ns}" for file in files]
    return "\n".join(lines)


def _has_matching_head(model: Searching) -> bool:
    """Return whether the matching head was trained; every model has one."""
    fine_tuned = isinstance(model, M3AEForImageTextRetrieval)
    return bool(model.config.num_negatives if fine_tuned else model.config.itm_weight)


@torch.inference_mode()
def _build(model: Searching, processor: M3AEProcessor, collection: Collection, folder: Path) -> None:
    if collection.texts:
        texts = _encode_texts(model, processor, collection.texts)
        if model.itc_head is not None:
            _save(folder / "texts.npy", embed(model.itc_head, "text", texts).numpy())
        else:
            order = [
                texts.tokens[start : start + length] for start, length in zip(texts.starts, texts.lengths, strict=True)
            ]
            _save(folder / "texts.npy", torch.cat(order).half().cpu().numpy())
            _save(folder / "lengths.npy", texts.lengths.numpy())
    stored: np.memmap[Any, np.dtype[Any]] | None = None
    with replacing(folder / "images.npy") as temporary:
        for places, part in _encoded_images(model, processor, collection):
            if stored is None:
                shape = (len(collection), *part.shape[1:])
                stored = np.lib.format.open_memmap(temporary, "w+", part.dtype, shape)
                stored[:] = np.nan
            stored[places] = part
        if stored is None:
            raise ValueError(f"none of the {len(collection)} images can be read")
        stored.flush()


def _save(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _encoded_images(
    model: Searching, processor: M3AEProcessor, collection: Collection
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yield the places of images that can be read, and what is kept of them, a batch at a time."""
    starts = range(0, len(collection), BATCH_SIZE)
    for start in tqdm(starts, desc="encoding images", unit=f"×{BATCH_SIZE}", disable=None, leave=False):
        images: dict[int, Image.Image] = {}
        for place in range(start, min(start + BATCH_SIZE, len(collection))):
            try:
                images[place] = collection.load(place)
            except UnreadableImageError as error:
                tqdm.write(f"left out: {error}", file=sys.stderr)
        if not images:
            continue
        encoded = encode_images(model.m3ae, [encode_pixels(model, processor, [*images.values()])])
        if model.itc_head is None:
            yield [*images], encoded.tokens.half().cpu().numpy()
        else:
            yield [*images], embed(model.itc_head, "image", encoded).numpy()


def _encode_texts(model: Searching, processor: M3AEProcessor, texts: list[str]) -> EncodedTexts:
    tokens = processor.tokenizer(texts, truncation=True, max_length=model.config.longest_text)["input_ids"]
    return encode_texts(model.m3ae, tokens, BATCH_SIZE)
