"""What leaks: one image or text in several splits of prepared folders, or several times in one.

Two images are the same if their pixels are equal. They are near if their perceptual hashes differ in at most 20 of 256
bits. Measured on 3,502 chest X-rays, which all look alike: another JPEG quality, half or 1.5 times the size moves a
hash by at most 16 bits, 20 % more contrast by at most 18 bits in 99 % of the images; the closest two different images
are 40 bits apart (6.1 million pairs), those of other radiology figures 70. Synthetic images of few shapes, like the
built-in phantoms, come nearer to each other than that. A crop by a few per cent is not recognised.

Two patients may have the same report ("No acute cardiopulmonary abnormality."). So texts are counted, and only images
are called a leak.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3ae.data.fingerprints import Fingerprints, load_fingerprints, near_twins

MAX_DISTANCE = 20
EQUAL_PIXELS = -1  # a distance that no two hashes have
NUM_EXAMPLES = 3
WAYS_OUT = (
    "Results on these splits would be those of memory. Prepare the set with splits that share no image, leave it out, "
    "set data.leave_out_test_rows=true, which pre-training and generation have, or data.allow_test_rows=true."
)
HEADING = ("split", "also in", "images", "near", "rows by image", "texts", "rows by text", "examples")


@dataclass(frozen=True)
class SplitCounts:
    """The numbers of rows, of different images and of different texts of a split."""

    rows: int
    images: int
    texts: int


@dataclass(frozen=True)
class Overlap:
    """Images and texts that two splits share; or that one split has several times, if it stands on both sides.

    `examples` are pairs of rows, the first of `split`, the second of `other`: "12 = 7" for the same image, "12 ~ 7"
    for a near one, "12 text 7" for the same text.
    """

    split: str  # as "folder/split"
    other: str
    images: int  # different images of `split` whose very pixels are in `other`
    near_images: int  # different images of `split` that only look like one in `other`
    image_rows: int  # rows of `split` with any of these images
    texts: int  # different texts of `split` that are in `other`, white space and case aside
    text_rows: int  # rows of `split` with any of these texts
    examples: list[str]
    is_leak: bool  # images of a validation or test split are in a training split

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a row of the table, see `HEADING`."""
        counts = (self.images, self.near_images, self.image_rows, self.texts, self.text_rows)
        return (self.split, self.other, *(f"{count:,}" for count in counts), ", ".join(self.examples))


@dataclass(frozen=True)
class LeakReport:
    """What prepared folders share."""

    max_distance: int  # bits in which the hashes of near images may differ
    splits: dict[str, SplitCounts]  # by "folder/split"
    overlaps: list[Overlap]  # ordered pairs of splits that share something

    @property
    def leaks(self) -> list[str]:
        """A sentence for every validation or test split and training split that share images."""
        return [self._describe(overlap) for overlap in self.overlaps if overlap.is_leak]

    @property
    def exit_status(self) -> int:
        """1 if a training split shares an image, or a near one, with a validation or test split; otherwise 0."""
        return int(bool(self.leaks))

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self) | {"leaks": self.leaks}, indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        sizes = [
            f"{name}: {counts.rows:,} rows, {counts.images:,} different images, {counts.texts:,} different texts"
            for name, counts in self.splits.items()
        ]
        table = [HEADING, *(overlap.cells() for overlap in self.overlaps)] if self.overlaps else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(_pad, cells, widths, range(len(cells)))).rstrip() for cells in table]
        verdict = [f"LEAK: {leak}" for leak in self.leaks]
        verdict = verdict or ["no training split shares an image with a validation or test split"]
        return "\n".join([*sizes, "", *(lines or ["no image or text occurs twice"]), "", *verdict])

    def _describe(self, overlap: Overlap) -> str:
        counts = self.splits[overlap.split]
        near = f", and {overlap.near_images:,} look like one of its images" if overlap.near_images else ""
        return (
            f"{overlap.images:,} of the {counts.images:,} images of {overlap.split} are in {overlap.other}{near}: "
            f"{overlap.image_rows:,} of {counts.rows:,} rows, e.g. {overlap.examples[0]}"
        )


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 2 <= column < len(HEADING) - 1 else cell.ljust(width)


def find_leaks(
    folders: Sequence[Path], *, max_distance: int = MAX_DISTANCE, num_workers: int | None = None
) -> LeakReport:
    """Find the same images and texts within and across the splits of prepared folders.

    Every image is decoded once, in parallel, a few milliseconds each; its fingerprints stay in the folder. Near images
    of a million take a minute of one core.

    Args:
        folders: The prepared folders.
        max_distance: The number of bits out of 256 in which the perceptual hashes of near images may differ; a
            negative number finds equal pixels only.
        num_workers: The number of processes that decode; by default one per core.

    Raises:
        FileNotFoundError: A folder is missing or not prepared.
        ValueError: A folder is damaged.
    """
    splits = _load_splits(folders, num_workers)
    pairs = combinations_with_replacement(splits, 2)
    overlaps = [overlap for a, b in pairs for overlap in _compare(a, b, max_distance)]
    order = {split.name: number for number, split in enumerate(splits)}
    shared = [overlap for overlap in overlaps if overlap.image_rows or overlap.texts]
    shared.sort(key=lambda overlap: (order[overlap.split], order[overlap.other]))
    return LeakReport(max_distance, {split.name: split.counts for split in splits}, shared)


def refuse_leaks(training: Sequence[Path], held_out: Sequence[Path] = (), num_workers: int | None = None) -> None:
    """Make sure that training rows show no image of a known validation or test split.

    The known splits are those of the training folders, where only equal pixels count, and those of `held_out`, where
    near images count, too: another publication may store an image in another way.

    Args:
        training: The prepared folders whose split train is trained on.
        held_out: Further prepared folders whose validation and test splits must stay unseen.
        num_workers: The number of processes that decode images without fingerprints; by default one per core.

    Raises:
        FileNotFoundError: A folder is missing or not prepared.
        ValueError: A training row shows such an image, or a folder is damaged.
    """
    splits = _load_splits([*training, *held_out], num_workers)
    overlaps = [_compare(split, train, distance)[0] for train, split, distance in _known(splits, training, held_out)]
    report = LeakReport(MAX_DISTANCE, {split.name: split.counts for split in splits}, overlaps)
    if report.leaks:
        raise ValueError("\n".join(["training rows show images of held-out splits:", *report.leaks, WAYS_OUT]))


def find_leaking_rows(
    training: Sequence[Path], held_out: Sequence[Path] = (), num_workers: int | None = None
) -> dict[Path, set[str]]:
    """Return the ids of the training rows that `refuse_leaks` would refuse, by training folder.

    The arguments and the errors are those of `refuse_leaks`, apart from its refusal.
    """
    splits = _load_splits([*training, *held_out], num_workers)
    ids: dict[Path, set[str]] = {_real(folder): set() for folder in training}
    for train, split, distance in _known(splits, training, held_out):
        shown = train.images.shared_with(split.images) | (near_twins(train.looks, split.looks, distance)[0] >= 0)
        ids[train.folder].update(train.prints.ids[train.images.rows[shown[train.images.which]]].tolist())
    return {folder: ids[_real(folder)] for folder in training}


def _known(
    splits: Sequence["_Split"], training: Sequence[Path], held_out: Sequence[Path]
) -> Iterator[tuple["_Split", "_Split", int]]:
    """Yield each training split with each held-out one, and the distance in bits below which images count as near."""
    trained, named = (set(map(_real, folders)) for folders in (training, held_out))
    for train in splits:
        if train.split == "train" and train.folder in trained:
            for split in splits:
                if split.split != "train":
                    yield train, split, MAX_DISTANCE if split.folder in named else EQUAL_PIXELS


class _Distinct(NamedTuple):
    """Different images or texts of a split."""

    keys: np.ndarray  # (n,) sorted digests
    first: np.ndarray  # (n,) first row that holds each
    last: np.ndarray  # (n,) last row that holds each, or the first one again
    counts: np.ndarray  # (n,) occurrences of each
    which: np.ndarray  # (occurrences,) position in `keys` of every image or text
    rows: np.ndarray  # (occurrences,) row of every image or text

    @classmethod
    def of(cls, digests: np.ndarray, rows: np.ndarray) -> "_Distinct":
        keys, first, which, counts = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
        last = len(digests) - 1 - np.unique(digests[::-1], return_index=True)[1]
        return cls(keys, rows[first], rows[last], counts, which, rows)

    def shared_with(self, other: "_Distinct") -> np.ndarray:
        """Return which keys (n,) the other split has, too; of a split with itself, which it has repeatedly."""
        return self.counts > 1 if other is self else np.isin(self.keys, other.keys)

    def num_rows(self, mask: np.ndarray) -> int:
        """Return the number of rows that hold any of the masked keys."""
        return len(np.unique(self.rows[mask[self.which]]))


@dataclass(frozen=True)
class _Split:
    """A split of a prepared folder."""

    folder: Path
    name: str  # as "folder/split"
    split: str
    prints: Fingerprints

    @cached_property
    def images(self) -> _Distinct:
        return _Distinct.of(self.prints.pixels, self.prints.image_rows)

    @cached_property
    def texts(self) -> _Distinct:
        return _Distinct.of(self.prints.texts, self.prints.text_rows)

    @cached_property
    def looks(self) -> np.ndarray:
        """Perceptual hashes (n, 32) of the different images."""
        return self.prints.looks[np.unique(self.prints.pixels, return_index=True)[1]]

    @property
    def counts(self) -> SplitCounts:
        return SplitCounts(len(self.prints.ids), len(self.images.keys), len(self.texts.keys))


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # unlike `Path.resolve`, for links that lead to themselves, too


def _load_splits(folders: Sequence[Path], num_workers: int | None) -> list[_Split]:
    folders = list(dict.fromkeys(map(_real, folders)))
    names = [folder.name for folder in folders]
    return [
        _Split(folder, f"{folder.name if names.count(folder.name) == 1 else folder}/{split}", split, prints)
        for folder in folders
        for split, prints in load_fingerprints(folder, num_workers).items()
        if len(prints.ids)
    ]


def _compare(a: _Split, b: _Split, max_distance: int) -> list[Overlap]:
    """Return the overlap of each split with the other one; a split with itself gives one entry."""
    twins_a, twins_b = near_twins(a.looks, b.looks, max_distance)
    overlap = _overlap(a, b, twins_a)
    return [overlap] if b is a else [overlap, _overlap(b, a, twins_b)]


def _overlap(a: _Split, b: _Split, twins: np.ndarray) -> Overlap:
    same = a.images.shared_with(b.images)
    near = (twins >= 0) & ~same
    texts = a.texts.shared_with(b.texts)
    examples = [
        *_examples(a, "=", b, a.images.first[same], b.images.last[np.isin(b.images.keys, a.images.keys[same])]),
        *_examples(a, "~", b, a.images.first[near], b.images.first[twins[near]]),
        *_examples(a, "text", b, a.texts.first[texts], b.texts.last[np.isin(b.texts.keys, a.texts.keys[texts])]),
    ]
    return Overlap(
        split=a.name,
        other=b.name,
        images=int(same.sum()),
        near_images=int(near.sum()),
        image_rows=a.images.num_rows(same | near),
        texts=int(texts.sum()),
        text_rows=a.texts.num_rows(texts),
        examples=examples[:NUM_EXAMPLES],
        is_leak=a.split != "train" and b.split == "train" and bool((same | near).any()),
    )


def _examples(a: _Split, relation: str, b: _Split, rows: np.ndarray, others: np.ndarray) -> list[str]:
    first = np.argsort(rows, kind="stable")[:NUM_EXAMPLES]
    return [f"{a.prints.ids[rows[i]]} {relation} {b.prints.ids[others[i]]}" for i in first]
