"""What leaks: the same image or text in several splits of prepared folders, or several times in one.

Two images are the same if their pixels are equal, and near if their perceptual hashes differ in at most 20 of 256
bits. Measured on 3,502 chest X-rays, which all look alike: another JPEG quality, half or 1.5 times the size moves a
hash by at most 16 bits, 20 % more contrast by at most 18 bits in 99 % of the images; the closest two different images
are 40 bits apart (6.1 million pairs), those of other radiology figures 70. Synthetic images drawn from few shapes,
like the built-in phantoms, come nearer to each other than that. A crop by a few per cent is not found.

A report's text may repeat honestly ("No acute cardiopulmonary abnormality."), so texts are counted and only images
are called a leak.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3ae.data.fingerprints import SplitFingerprints, load_fingerprints, near_twins

MAX_DISTANCE = 20
EQUAL_PIXELS = -1  # a distance that no two hashes have
NUM_EXAMPLES = 3
WAYS_OUT = (
    "Results on these splits would be those of memory. Prepare the set with splits that share no image, leave it out, "
    "or set data.allow_test_rows=true."
)
HEADING = ("split", "also in", "images", "near", "rows by image", "texts", "rows by text", "examples")


@dataclass(frozen=True)
class SplitCounts:
    """Rows of a split, and how many different images and texts they hold."""

    rows: int
    images: int
    texts: int


@dataclass(frozen=True)
class Overlap:
    """What of a split is in another one, too; of a split with itself, what is there more than once.

    Attributes:
        split: As "folder/split".
        other: As "folder/split".
        images: Different images of `split` whose very pixels are in `other`.
        near_images: Different images of `split` that only look like one in `other`.
        image_rows: Rows of `split` with any of these images.
        texts: Different texts of `split` that are in `other`, white space and case aside.
        text_rows: Rows of `split` with any of these texts.
        examples: Pairs of rows, the first of `split`, the second of `other`: "12 = 7" for the same image, "12 ~ 7"
            for a near one, "12 text 7" for the same text.
        is_leak: Whether images of a validation or test split are in a training split.
    """

    split: str
    other: str
    images: int
    near_images: int
    image_rows: int
    texts: int
    text_rows: int
    examples: list[str]
    is_leak: bool


@dataclass(frozen=True)
class LeakReport:
    """What prepared folders share.

    Attributes:
        max_distance: Bits in which the hashes of near images may differ.
        splits: What there is, by "folder/split".
        overlaps: Ordered pairs of splits that share something.
    """

    max_distance: int
    splits: dict[str, SplitCounts]
    overlaps: list[Overlap]

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
        table = [HEADING, *map(_cells, self.overlaps)] if self.overlaps else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(_pad, cells, widths, range(len(cells)))).rstrip() for cells in table]
        verdict = [f"LEAK: {leak}" for leak in self.leaks]
        verdict = verdict or ["no training split shares an image with a validation or test split"]
        return "\n".join([*sizes, "", *(lines or ["no image or text is there twice"]), "", *verdict])

    def _describe(self, overlap: Overlap) -> str:
        own = self.splits[overlap.split]
        near = f", and {overlap.near_images:,} look like one there" if overlap.near_images else ""
        return (
            f"{overlap.images:,} of the {own.images:,} images of {overlap.split} are in {overlap.other}{near}: "
            f"{overlap.image_rows:,} of {own.rows:,} rows, e.g. {overlap.examples[0]}"
        )


def _cells(overlap: Overlap) -> tuple[str, ...]:
    counts = (overlap.images, overlap.near_images, overlap.image_rows, overlap.texts, overlap.text_rows)
    return (overlap.split, overlap.other, *(f"{count:,}" for count in counts), ", ".join(overlap.examples))


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 2 <= column < len(HEADING) - 1 else cell.ljust(width)


class _Distinct(NamedTuple):
    """Different images or texts of a split.

    Attributes:
        keys: (n,) sorted digests.
        first: (n,) first row that holds each.
        last: (n,) last row that holds each, or the first one again.
        counts: (n,) how often each occurs.
        which: (occurrences,) position in `keys` of every image or text.
        rows: (occurrences,) row of every image or text.
    """

    keys: np.ndarray
    first: np.ndarray
    last: np.ndarray
    counts: np.ndarray
    which: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, digests: np.ndarray, rows: np.ndarray) -> "_Distinct":
        keys, first, which, counts = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
        last = len(digests) - 1 - np.unique(digests[::-1], return_index=True)[1]
        return cls(keys, rows[first], rows[last], counts, which, rows)

    def found_in(self, other: "_Distinct") -> np.ndarray:
        """Return which keys (n,) the other split has, too; of the same split, which it has more than once."""
        return self.counts > 1 if other is self else np.isin(self.keys, other.keys)

    def num_rows(self, chosen: np.ndarray) -> int:
        """Return how many rows hold any of the chosen keys."""
        return len(np.unique(self.rows[chosen[self.which]]))


@dataclass(frozen=True)
class _Part:
    """A split of a prepared folder."""

    folder: Path
    name: str  # as "folder/split"
    split: str
    prints: SplitFingerprints

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


def check(folders: Sequence[Path], *, max_distance: int = MAX_DISTANCE, num_workers: int | None = None) -> LeakReport:
    """Find the same images and texts within and across the splits of prepared folders.

    Every image is decoded once, in parallel, a few milliseconds each; its fingerprints stay in the folder. Near images
    are found by comparing all pairs, 512 operations each: 100,000 images take a minute on one core, 400,000 a quarter
    of an hour.

    Args:
        folders: prepared folders.
        max_distance: bits out of 256 in which the perceptual hashes of near images may differ; below 0 for equal
            pixels only.
        num_workers: processes that decode; by default one per core.

    Raises:
        FileNotFoundError: a folder is missing or not prepared.
        ValueError: a folder is damaged.
    """
    parts = _load_parts(folders, num_workers)
    pairs = combinations_with_replacement(parts, 2)
    overlaps = [overlap for a, b in pairs for overlap in _compare(a, b, max_distance)]
    order = {part.name: number for number, part in enumerate(parts)}
    shared = [overlap for overlap in overlaps if overlap.image_rows or overlap.texts]
    shared.sort(key=lambda overlap: (order[overlap.split], order[overlap.other]))
    return LeakReport(max_distance, {part.name: part.counts for part in parts}, shared)


def refuse_leaks(training: Sequence[Path], held_out: Sequence[Path] = (), num_workers: int | None = None) -> None:
    """Make sure that training rows show no image of a known validation or test split.

    These are the splits of the training folders themselves, of which equal pixels count, and those of `held_out`, of
    which near images count, too: another publication may store the same image in another way.

    Args:
        training: prepared folders, of which the split train is trained on.
        held_out: further prepared folders whose validation and test splits must stay unseen.
        num_workers: processes that decode images that have no fingerprints yet; by default one per core.

    Raises:
        FileNotFoundError: a folder is missing or not prepared.
        ValueError: there is such an image, or a folder is damaged.
    """
    parts = _load_parts([*training, *held_out], num_workers)
    trained, named = ({folder.resolve() for folder in folders} for folders in (training, held_out))
    overlaps = [
        _compare(part, train, MAX_DISTANCE if part.folder in named else EQUAL_PIXELS)[0]
        for train in parts
        if train.split == "train" and train.folder in trained
        for part in parts
        if part.split != "train"
    ]
    report = LeakReport(MAX_DISTANCE, {part.name: part.counts for part in parts}, overlaps)
    if report.leaks:
        raise ValueError("\n".join(["training rows show images of held-out splits:", *report.leaks, WAYS_OUT]))


def _load_parts(folders: Sequence[Path], num_workers: int | None) -> list[_Part]:
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [folder.name for folder in folders]
    return [
        _Part(folder, f"{folder.name if names.count(folder.name) == 1 else folder}/{split}", split, prints)
        for folder in folders
        for split, prints in load_fingerprints(folder, num_workers).items()
        if len(prints.ids)
    ]


def _compare(a: _Part, b: _Part, max_distance: int) -> list[Overlap]:
    """Return what of each part is in the other one; a part with itself gives one entry."""
    twins_a, twins_b = near_twins(a.looks, b.looks, max_distance)
    there = _overlap(a, b, twins_a)
    return [there] if b is a else [there, _overlap(b, a, twins_b)]


def _overlap(a: _Part, b: _Part, twins: np.ndarray) -> Overlap:
    same = a.images.found_in(b.images)
    near = (twins >= 0) & ~same
    texts = a.texts.found_in(b.texts)
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


def _examples(a: _Part, relation: str, b: _Part, rows: np.ndarray, others: np.ndarray) -> list[str]:
    first = np.argsort(rows, kind="stable")[:NUM_EXAMPLES]
    return [f"{a.prints.ids[rows[i]]} {relation} {b.prints.ids[others[i]]}" for i in first]
