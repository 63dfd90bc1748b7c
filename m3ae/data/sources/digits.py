"""Digits in three modalities: handwritten in Farsi and in Kannada, and spoken in English; rows are of one class.

The sets are Hoda (Khosravi and Kabir 2007), Kannada-MNIST (Prabhu 2019) and the Free Spoken Digit Dataset (Jackson et
al. 2018). Of train and test file, one is enough: it is then divided.

Layout:

  farsi/    "Train 60000.cdb", "Test 20000.cdb"
  kannada/  X_kannada_MNIST_{train,test}-idx3-ubyte[.gz], y_kannada_MNIST_{train,test}-idx1-ubyte[.gz]
  spoken/   {digit}_{speaker}_{index}.wav
"""

import gzip
import hashlib
import io
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.preprocessing import StandardScaler

from m3ae.data.hoda import read_cdb
from m3ae.data.mfcc import UnreadableRecordingError, load_recording, mfcc, stretch_frames
from m3ae.data.prepared import Metadata, Rejected
from m3ae.data.tables import plain_or_gzipped, require_folder

NUM_DIGITS = 10
IMAGE_SIDE = 28  # px
SAMPLING_RATE = 8000  # Hz
NUM_FRAMES, NUM_COEFFICIENTS = 20, 13
MODALITIES = ("farsi", "kannada", "speech")

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "farsi": datasets.Image(),
        "kannada": datasets.Image(),
        "speech": datasets.List(datasets.List(datasets.Value("float32"), length=NUM_COEFFICIENTS), length=NUM_FRAMES),
        "label": datasets.Value("string"),
        **{f"{name}_id": datasets.Value("string") for name in MODALITIES},
    }
)

FARSI_FILES = {"train": "Train 60000.cdb", "test": "Test 20000.cdb"}
SPLITS = ("test", "validation", "train")  # of equal items, the first of these has one
TEST_RECORDINGS = 5  # of each speaker and digit the first ones
ONE_IN_TEST, ONE_IN_VALIDATION = 5, 20


@dataclass(frozen=True, eq=False)
class Item:
    """An image or a recording.

    Attributes:
        id: of its modality, unique there.
        digit: 0 to 9.
        split: train or test, as its file or name says.
        value: pixels (28, 28) uint8, ink 255, or coefficients (20, 13) float32.
    """

    id: str
    digit: int
    split: str
    value: NDArray[Any]

    @cached_property
    def digest(self) -> bytes:
        """The same for equal values."""
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

    No image and no recording is in two splits, and the seed does not change which split it is in. The test sets are
    the published ones: the test files, and the first five recordings of each speaker and digit. Where there is only
    one file, a fifth of each class is for testing. Of what is left, a twentieth of each class is for validation. Both
    are chosen by a digest of the contents. A split uses all its items equally often, or nearly so; the seed draws
    which ones come together, and the columns `farsi_id`, `kannada_id` and `speech_id` say it.

    Images are 28x28 px, white on black; Farsi ones are shrunk where they are larger, never enlarged, and centred.
    Recordings are 13 mel-frequency cepstral coefficients in 20 frames (`m3ae.data.mfcc`), each coefficient with mean 0
    and standard deviation 1 over the recordings for training; what was subtracted and divided by is in the manifest.

    Args:
        source: the folder with farsi, kannada and spoken.
        num_train: rows for training.
        num_validation: rows for validation.
        num_test: rows for testing.
        seed: another seed puts other items together.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: a file is damaged, a digit has too few items, or an argument is out of range.
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
    pools = {name: divide(name, found, rejected) for name, found in items.items()}
    yield from rejected
    yield Metadata("items", {name: {split: len(pool[split]) for split in counts} for name, pool in pools.items()})
    scaler = StandardScaler().fit(np.concatenate([item.value for item in pools["speech"]["train"]], dtype=np.float64))
    yield Metadata("speech", {"mean": scaler.mean_.tolist(), "standard_deviation": scaler.scale_.tolist()})
    for number, (split, count) in enumerate(counts.items()):
        by_modality = [pools[name][split] for name in MODALITIES]
        for index, row in enumerate(draw_rows(by_modality, count, np.random.default_rng([seed, number]))):
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


def read_farsi(folder: Path) -> list[Item]:
    """Read the images of the Hoda set, fitted into the square.

    Raises:
        FileNotFoundError: there is neither of the two files.
        ValueError: one of them is damaged or holds letters.
    """
    paths = {split: folder / name for split, name in FARSI_FILES.items() if (folder / name).is_file()}
    if not paths:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(FARSI_FILES.values())}")
    items = []
    for split, path in paths.items():
        for number, (label, image) in enumerate(read_cdb(path)):
            items.append(Item(f"farsi-{split}-{number:05d}", _digit(path, label), split, fit_image(image)))
    return items


def read_kannada(folder: Path) -> list[Item]:
    """Read the images of Kannada-MNIST.

    Raises:
        FileNotFoundError: there are images of neither split, or their labels are missing.
        ValueError: a file is damaged, or images and labels do not fit together.
    """
    names = {split: folder / f"X_kannada_MNIST_{split}-idx3-ubyte.gz" for split in FARSI_FILES}
    paths = {split: path for split, path in names.items() if path.is_file() or path.with_suffix("").is_file()}
    if not paths:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(path.name for path in names.values())}")
    items = []
    for split, path in paths.items():
        images, labels = read_idx(path), read_idx(folder / f"y_kannada_MNIST_{split}-idx1-ubyte.gz")
        if labels.ndim != 1 or images.shape != (*labels.shape, IMAGE_SIDE, IMAGE_SIDE):
            raise ValueError(
                f"{path} has images of shape {images.shape} for labels of shape {labels.shape}, expected "
                f"(N, {IMAGE_SIDE}, {IMAGE_SIDE}) and (N,)"
            )
        for number, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
            items.append(Item(f"kannada-{split}-{number:05d}", _digit(path, label), split, image))
    return items


def read_speech(folder: Path, rejected: list[Rejected]) -> list[Item]:
    """Read the recordings as cepstral coefficients.

    Args:
        folder: with the WAV files.
        rejected: list that unusable recordings are added to.

    Raises:
        FileNotFoundError: there is no recording.
    """
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
            signal = load_recording(path, SAMPLING_RATE)
        except UnreadableRecordingError as error:
            rejected.append(Rejected(path.stem, error.reason, split, detail=error.detail))
            continue
        frames = mfcc(signal, SAMPLING_RATE, NUM_COEFFICIENTS)
        items.append(Item(path.stem, digit, split, stretch_frames(frames, NUM_FRAMES)))
    return items


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array from a file in the format of MNIST, plain or gzipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds something else than bytes.
    """
    path = plain_or_gzipped(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): download it again") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < (start := 4 + 4 * content[3]):
        raise ValueError(f"{path} is no idx file of bytes: expected one of Kannada-MNIST")
    shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
    if len(content) - start != prod(shape):
        raise ValueError(f"{path} has {len(content) - start:,} of {prod(shape):,} values: download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def fit_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Centre an image (H, W) in a black square; a larger one is shrunk, its shape kept.

    Bilinear interpolation, unlike bicubic, leaves the background black.
    """
    fitted = Image.fromarray(image)
    fitted.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    square = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    square.paste(fitted, ((IMAGE_SIDE - fitted.width) // 2, (IMAGE_SIDE - fitted.height) // 2))
    return np.asarray(square)


def divide(name: str, items: Sequence[Item], rejected: list[Rejected]) -> Pool:
    """Divide the items of a modality among the splits, class by class.

    Items of a class with equal contents come into the same split. Those whose equal is in a split closer to the test,
    by publication or because it is of another class, are left out.

    Args:
        name: of the modality.
        items: with the published split, or all of one.
        rejected: list that items are added to whose equal is in another split.

    Raises:
        ValueError: a split has no item of a digit.
    """
    is_divided = len({item.split for item in items}) == 2
    by_digit: dict[int, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.digest):
        by_digit[item.digit].append(item)
    candidates: Pool = {split: [] for split in SPLITS}
    for own in by_digit.values():
        test, others = [item for item in own if item.split == "test"], [item for item in own if item.split == "train"]
        if not is_divided:
            test, others = cut(own, ONE_IN_TEST)
        for split, part in zip(SPLITS, (test, *cut(others, ONE_IN_VALIDATION)), strict=True):
            candidates[split] += part

    owner: dict[bytes, str] = {}
    pool: Pool = {split: [] for split in SPLITS}
    for split in SPLITS:
        for item in candidates[split]:
            if (first := owner.setdefault(item.digest, split)) == split:
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
    """Cut off the first of every `one_in` items in the order of their digests, and what equals the last of them."""
    size = -(-len(items) // one_in)
    while size < len(items) and items[size].digest == items[size - 1].digest:
        size += 1
    return items[:size], items[size:]


def draw_rows(modalities: Sequence[Sequence[Item]], count: int, rng: np.random.Generator) -> list[list[Item]]:
    """Put items of one class together, so that classes, and items within a class, occur as equally often as possible.

    Args:
        modalities: items of one split by modality.
        count: rows.
        rng: source of all randomness.
    """
    digits = rng.permutation(np.arange(count) % NUM_DIGITS)
    drawn = np.empty((count, len(modalities)), dtype=object)
    for digit in range(NUM_DIGITS):
        places = np.flatnonzero(digits == digit)
        for column, items in enumerate(modalities):
            own = np.array([item for item in items if item.digit == digit], dtype=object)
            passes = np.tile(np.arange(len(own)), (-(-len(places) // len(own)), 1))
            drawn[places, column] = own[rng.permuted(passes, axis=1).ravel()[: len(places)]]
    rows: list[list[Item]] = drawn.tolist()
    return rows


def _digit(path: Path, label: int) -> int:
    if label >= NUM_DIGITS:
        raise ValueError(f"{path} has the label {label}, expected a digit")
    return label
