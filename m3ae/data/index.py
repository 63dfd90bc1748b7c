"""A first stage of search over more embeddings than memory holds: a folder of faiss shards, read from the disk.

```
shard-00000.faiss   a faiss index of so many embeddings
ids.txt             the id of each embedding, one a line, in the order of the shards
index.json          size, kind and counts; written last, so where it is the folder is complete
```
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np

FORMAT_VERSION = 1
DESCRIPTION = "index.json"
IDS = "ids.txt"


@dataclass(frozen=True)
class IndexInfo:
    """Description of an index folder.

    Attributes:
        size: Length E of an embedding.
        kind: faiss factory string of every shard.
        shards: Embeddings by file name.
        format_version: Of the folder's layout.
    """

    size: int
    kind: str
    shards: dict[str, int]
    format_version: int = FORMAT_VERSION


class EmbeddingIndex:
    """Finds the embeddings with the largest inner product, which is the cosine for unit vectors.

    The shards are mapped into memory: of a search only what it reads is loaded, and the system may drop it again.

    Args:
        folder: Written by `build_index`.

    Attributes:
        info: Description of the folder.
        ids: The id of each embedding, which `search` numbers.

    Raises:
        FileNotFoundError: There is no complete index in the folder.
        ValueError: The folder is damaged or of another format version.
    """

    def __init__(self, folder: Path) -> None:
        self.info = _read_info(folder)
        self.ids = (folder / IDS).read_text(encoding="utf-8").split("\n")[:-1]
        # faiss maps lists of neighbours by one flag and everything else by another.
        flag = faiss.IO_FLAG_MMAP if "IVF" in self.info.kind else faiss.IO_FLAG_MMAP_IFC
        self._shards = [faiss.read_index(str(folder / name), flag) for name in self.info.shards]
        counts = {name: shard.ntotal for name, shard in zip(self.info.shards, self._shards, strict=True)}
        if counts != self.info.shards or len(self.ids) != sum(counts.values()):
            raise ValueError(
                f"{folder} is damaged: {DESCRIPTION} lists {self.info.shards}, the shards hold {counts}, and {IDS} "
                f"names {len(self.ids)}. Build it again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        """Return the embeddings (n, E) at some places in `ids`, as exactly as the kind keeps them."""
        rows = np.asarray(places, dtype=np.int64)
        vectors, first = np.empty((len(rows), self.info.size), np.float32), 0
        for shard in self._shards:
            own = (rows >= first) & (rows < first + shard.ntotal)
            if own.any():
                if "IVF" in self.info.kind:  # in another order than they were added
                    faiss.extract_index_ivf(shard).make_direct_map()
                vectors[own] = shard.reconstruct_batch(rows[own] - first)
            first += shard.ntotal
        return vectors

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest of each query, the nearest first.

        Args:
            queries: (Q, E) float32.
            k: How many; all of them if there are not so many.

        Returns:
            (Q, k) int64 places in `ids`, and the inner products (Q, k) float32. Kinds that look at a part of the
            embeddings only may find fewer than k, and give −1 and −∞ for the rest.

        Raises:
            ValueError: The queries have another size than the embeddings.
        """
        if queries.ndim != 2 or queries.shape[1] != self.info.size:
            raise ValueError(f"Expected queries of shape (Q, {self.info.size}), got {queries.shape}.")
        k, first, found = min(k, len(self)), 0, []
        for shard in self._shards:
            products, rows = shard.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, shard.ntotal))
            found.append((np.where(rows < 0, -np.inf, products), np.where(rows < 0, -1, rows + first)))
            first += shard.ntotal
        products, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(products, best, axis=1).astype(np.float32)


def build_index(
    folder: Path,
    batches: Iterable[tuple[Sequence[str], np.ndarray]],
    *,
    kind: str = "Flat",
    shard_size: int = 1_000_000,
) -> EmbeddingIndex:
    """Write an index, holding one shard in memory at a time.

    Args:
        folder: Where to; an empty or a new folder.
        batches: Ids and embeddings (B, E) float32, in order.
        kind: faiss factory string. `Flat` compares with every embedding and is exact, as `SQfp16` is but for rounding,
            at half the size. `IVF1024,Flat` and others of its kind look at a part of them; they are trained on the
            first shard.
        shard_size: Embeddings in one shard.

    Raises:
        FileExistsError: The folder holds something.
        ValueError: There are no embeddings, their number is not that of the ids, they differ in size, an id is not one
            line of text, or faiss knows no such kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds something already: choose another folder, or delete it.")
    empty: faiss.Index | None = None
    shards: dict[str, int] = {}
    with (folder / IDS).open("w", encoding="utf-8", newline="\n") as ids_file:
        for ids, vectors in _shards_of(batches, shard_size):
            if several := [name for name in ids if name.splitlines() != [name]]:
                raise ValueError(f"An id must be one line of text, got {several[0]!r}.")
            empty = _empty_index(vectors, kind) if empty is None else empty
            shard = faiss.clone_index(empty)
            shard.add(vectors)
            file_name = f"shard-{len(shards):05d}.faiss"
            faiss.write_index(shard, str(folder / file_name))
            shards[file_name] = len(ids)
            ids_file.writelines(f"{name}\n" for name in ids)
    if empty is None:
        raise ValueError("There are no embeddings to build an index of.")
    info = IndexInfo(empty.d, kind, shards)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return EmbeddingIndex(folder)


def _shards_of(
    batches: Iterable[tuple[Sequence[str], np.ndarray]], shard_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Join batches into shards of `shard_size` rows; the last one has what is left."""
    ids: list[str] = []
    parts: list[np.ndarray] = []
    size = None
    for names, vectors in batches:
        size = vectors.shape[-1] if size is None else size
        if vectors.shape != (len(names), size):
            raise ValueError(f"Expected embeddings of shape ({len(names)}, {size}), got {vectors.shape}.")
        ids += names
        parts.append(vectors.astype(np.float32))
        if len(ids) >= shard_size:
            joined = np.concatenate(parts)
            full = len(ids) // shard_size * shard_size
            for start in range(0, full, shard_size):
                yield ids[start : start + shard_size], joined[start : start + shard_size]
            ids, parts = ids[full:], [joined[full:]]
    if ids:
        yield ids, np.concatenate(parts)


def _empty_index(vectors: np.ndarray, kind: str) -> faiss.Index:
    """Make an index of the kind, trained on the vectors if it needs that."""
    try:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
    except RuntimeError as error:
        raise ValueError(
            f"kind {kind!r} cannot index {len(vectors)} embeddings of size {vectors.shape[1]}: "
            f"{str(error).splitlines()[0]} Use a factory string of faiss, such as Flat, SQfp16 or IVF1024,Flat."
        ) from error
    return index


def _read_info(folder: Path) -> IndexInfo:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no complete index ({DESCRIPTION} is missing): build it again.")
    try:
        info = IndexInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Build the index again.") from error
    if info.format_version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {info.format_version}, expected {FORMAT_VERSION}: build it again."
        )
    return info
