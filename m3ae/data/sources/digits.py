"""Digits in three modalities: handwritten in Farsi and in Kannada, and spoken in English; a row is of one class.

The sets are Hoda (Khosravi and Kabir 2007), Kannada-MNIST (Prabhu 2019) and the Free Spoken Digit Dataset (Jackson et
al. 2018). One of the train and test files is enough: it is then divided.

Layout:

  farsi/    "Train 60000.cdb", "Test 20000.cdb"
  kannada/  X_kannada_MNIST_{train,test}-idx3-ubyte[.gz], y_kannada_MNIST_{train,test}-idx1-ubyte[.gz]
  spoken/   {digit}_{speaker}_{index}.wav
"""

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.preprocessing import StandardScaler

from m3ae.data.prepared import Metadata, Rejected
from m3ae.data.sources import _digit_files as files
from m3ae.data.sources._common import IMAGE, STRING, features
from m3ae.data.tables import require_folder

NUM_DIGITS = 10
IMAGE_SIDE = 28  # px
SAMPLING_RATE = 8000  # Hz
NUM_FRAMES, NUM_COEFFICIENTS = 20, 13
MODALITIES = ("farsi", "kannada", "speech")

FEATURES = features(
    farsi=IMAGE,
    kannada=IMAGE,
    speech=datasets.List(datasets.List(datasets.Value("float32"), length=NUM_COEFFICIENTS), length=NUM_FRAMES),
    label=STRING,
    **{f"{name}_id": STRING for name in MODALITIES},
)

FARSI_FILES = {"train": "Train 60000.cdb", "test": "Test 20000.cdb"}
SPLITS = ("test", "validation", "train")  # equal items come into the first of these
TEST_RECORDINGS = 5  # the first recordings of each speaker and digit
ONE_IN_TEST, ONE_IN_VALIDATION = 5, 20


@dataclass(frozen=True, eq=False)
class Item:
    """An image or a recording."""

    id: str  # unique in its modality
    digit: int
    split: str  # train or test, as published
    value: NDArray[Any]  # pixels (28, 28) uint8, ink 255, or coefficients (20, 13) float32

    @cached_property
    def digest(self) -> bytes:
        """A digest that equal values share."""
        return hashlib.sha256(self.value.tobytes()).digest()

    @cached_property
    def png(self) -> bytes:
        """The pixels as a PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.value).save(buffer, "PNG")
        return buffer.getvalue()


Pool = dict[str, list[Item]]  # by split


def rows(
    source: Path, *, num_train: int = 20_000, num_validation: int = 1_000, num_test: int = 2_000, seed: int = 0
) -> Iterator[dict[str, Any] | Rejected | Metadata]:
    """Yield rows of a Farsi digit, a Kannada digit and a recording of one class; the classes are equally frequent.

    No image and no recording is in two splits, and the seed does not change its split. The test sets are the published
    ones: the test files, and the first five recordings of each speaker and digit. If a set has only one file, a fifth
    of each class is for testing. A twentieth of each remaining class is for validation. A digest of the contents
    chooses both. A split uses all its items nearly equally often; the seed decides which ones come together, and the
    columns `farsi_id`, `kannada_id` and `speech_id` name them.

    Images are 28x28 px, white on black; larger Farsi ones are shrunk, smaller ones are not enlarged, and all are
    centred. Recordings are 13 mel-frequency cepstral coefficients in 20 frames (`mfcc`), each coefficient with mean 0
    and standard deviation 1 over the recordings for training; the manifest has the means and deviations.

    Args:
        source: the folder with farsi, kannada and spoken.
        num_train: rows for training.
        num_validation: rows for validation.
        num_test: rows for testing.
        seed: another seed puts other items together.
    """
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, value, least in (*((f"num_{split}", count, 1) for split, count in counts.items()), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    require_folder(source, "the folder with farsi, kannada and spoken")
    rejected: list[Rejected] = []
    items = {
        "farsi": read_farsi(source / "farsi"),
        "kannada": read_kannada(source / "kannada"),
        "speech": read_speech(source / "spoken", rejected),
    }
    pools = {name: divide(name, members, rejected) for name, members in items.items()}
    yield from rejected
    yield Metadata("items", {name: {split: len(pool[split]) for split in counts} for name, pool in pools.items()})
    scaler = StandardScaler().fit(np.concatenate([item.value for item in pools["speech"]["train"]], dtype=np.float64))
    yield Metadata("speech", {"mean": scaler.mean_.tolist(), "standard_deviation": scaler.scale_.tolist()})
    for number, (split, count) in enumerate(counts.items()):
        by_modality = [pools[name][split] for name in MODALITIES]
        for index, row in enumerate(combine(by_modality, count, np.random.default_rng([seed, number]))):
            farsi, kannada, speech = row
            yield {
                "id": f"{split}-{index:06d}",
                "split": split,
                "farsi": farsi.png,
                "kannada": kannada.png,
                "speech": ((speech.value - scaler.mean_) / scaler.scale_).astype(np.float32),
                "label": str(farsi.digit),
                **{f"{name}_id": item.id for name, item in zip(MODALITIES, row, strict=True)},
            }


def divide(name: str, items: Sequence[Item], rejected: list[Rejected]) -> Pool:
    """Divide the items of a modality among the splits, class by class.

    Items of a class with equal contents come into one split. An item is left out, and added to `rejected`, if an equal
    one, by publication or because it is of another class, is in a split closer to the test.
    """
    is_divided = len({item.split for item in items}) == 2
    by_digit: dict[int, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.digest):
        by_digit[item.digit].append(item)
    candidates: Pool = {split: [] for split in SPLITS}
    for members in by_digit.values():
        test, others = ([item for item in members if item.split == split] for split in ("test", "train"))
        if not is_divided:
            test, others = cut(members, ONE_IN_TEST)
        for split, selected in zip(SPLITS, (test, *cut(others, ONE_IN_VALIDATION)), strict=True):
            candidates[split] += selected

    split_of: dict[bytes, str] = {}
    pool: Pool = {split: [] for split in SPLITS}
    for split in SPLITS:
        for item in candidates[split]:
            if (first := split_of.setdefault(item.digest, split)) == split:
                pool[split].append(item)
            else:
                rejected.append(Rejected(item.id, "its equal is in another split", split, detail=first))
        if missing := set(range(NUM_DIGITS)) - {item.digit for item in pool[split]}:
            raise ValueError(
                f"{name} has no {min(missing)} for the split {split} among {len(by_digit[min(missing)])} items: "
                "expected at least three items of each digit"
            )
    return pool


def cut(items: list[Item], one_in: int) -> tuple[list[Item], list[Item]]:
    """Cut off the first of every `one_in` items in the order of their digests, and those that equal the last one."""
    size = -(-len(items) // one_in)
    while size < len(items) and items[size].digest == items[size - 1].digest:
        size += 1
    return items[:size], items[size:]


def combine(modalities: Sequence[Sequence[Item]], count: int, rng: np.random.Generator) -> list[list[Item]]:
    """Put items of one class together: classes, and items within a class, occur as equally often as possible."""
    digits = rng.permutation(np.arange(count) % NUM_DIGITS)
    cells = np.empty((count, len(modalities)), dtype=object)
    for digit in range(NUM_DIGITS):
        positions = np.flatnonzero(digits == digit)
        for column, items in enumerate(modalities):
            members = np.array([item for item in items if item.digit == digit], dtype=object)
            passes = np.tile(np.arange(len(members)), (-(-len(positions) // len(members)), 1))
            cells[positions, column] = members[rng.permuted(passes, axis=1).ravel()[: len(positions)]]
    rows: list[list[Item]] = cells.tolist()
    return rows


def read_farsi(folder: Path) -> list[Item]:
    """Read the images of the Hoda set, fitted into the square."""
    paths = {split: folder / name for split, name in FARSI_FILES.items() if (folder / name).is_file()}
    if not paths:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(FARSI_FILES.values())}")
    return [
        Item(f"farsi-{split}-{number:05d}", _digit(path, label), split, fit_image(image))
        for split, path in paths.items()
        for number, (label, image) in enumerate(files.read_cdb(path))
    ]


def fit_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Centre an image (H, W) in a black square; a larger one is shrunk, its shape kept.

    Bilinear interpolation, unlike bicubic, leaves the background black.
    """
    fitted = Image.fromarray(image)
    fitted.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    square = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    square.paste(fitted, ((IMAGE_SIDE - fitted.width) // 2, (IMAGE_SIDE - fitted.height) // 2))
    return np.asarray(square)


def read_kannada(folder: Path) -> list[Item]:
    """Read the images of Kannada-MNIST."""
    names = {split: folder / f"X_kannada_MNIST_{split}-idx3-ubyte.gz" for split in FARSI_FILES}
    paths = {split: path for split, path in names.items() if path.is_file() or path.with_suffix("").is_file()}
    if not paths:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(path.name for path in names.values())}")
    items = []
    for split, path in paths.items():
        images, labels = files.read_idx(path), files.read_idx(folder / f"y_kannada_MNIST_{split}-idx1-ubyte.gz")
        if labels.ndim != 1 or images.shape != (*labels.shape, IMAGE_SIDE, IMAGE_SIDE):
            raise ValueError(
                f"{path} has images of shape {images.shape} for labels of shape {labels.shape}, expected "
                f"(N, {IMAGE_SIDE}, {IMAGE_SIDE}) and (N,)"
            )
        for number, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
            items.append(Item(f"kannada-{split}-{number:05d}", _digit(path, label), split, image))
    return items


def read_speech(folder: Path, rejected: list[Rejected]) -> list[Item]:
    """Read the recordings as cepstral coefficients, and add unusable ones to `rejected`."""
    items = []
    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no recording: expected 0_jackson_0.wav and the like")
    for path in paths:
        match = re.fullmatch(r"(\d)_\w+_(\d+)", path.stem)
        if match is None:
            rejected.append(Rejected(path.name, "name not digit_speaker_index"))
            continue
        digit, index = map(int, match.groups())
        split = "test" if index < TEST_RECORDINGS else "train"
        try:
            signal = files.load_recording(path, SAMPLING_RATE)
        except files.UnreadableRecordingError as error:
            rejected.append(Rejected(path.stem, error.reason, split, detail=error.detail))
            continue
        frames = files.mfcc(signal, SAMPLING_RATE, NUM_COEFFICIENTS)
        items.append(Item(path.stem, digit, split, files.stretch_frames(frames, NUM_FRAMES)))
    return items


def _digit(path: Path, label: int) -> int:
    if label >= NUM_DIGITS:
        raise ValueError(f"{path} has the label {label}, expected a digit")
    return label
