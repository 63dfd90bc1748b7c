"""The reader of digits on generated files in the published formats, and on the real ones."""

import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Metadata, Rejected, load_manifest, load_split
from m3ae.data.sources import digits
from m3ae.data.sources._digit_files import load_recording, mfcc, read_idx, stretch_frames
from m3ae.data.sources.digits import fit_image, read_farsi, read_kannada
from tests.data.digit_files import cdb, idx, write_cdb, write_kannada, write_wav

PER_DIGIT = 10
MODALITIES = ("farsi", "kannada", "speech")


def pictures(seed: int, per_digit: int = PER_DIGIT, side: int = 28) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(n % 10, 255 * rng.integers(0, 2, (side, side), dtype=np.uint8)) for n in range(10 * per_digit)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten images of each digit in one file, and ten recordings of one speaker."""
    folder = tmp_path / "digits"
    write_cdb(folder / "farsi" / "Test 20000.cdb", pictures(0))
    write_kannada(folder / "kannada", "test", pictures(1))
    rng = np.random.default_rng(2)
    for n in range(10 * PER_DIGIT):
        write_wav(folder / "spoken" / f"{n % 10}_jo_{n // 10}.wav", rng.uniform(-0.5, 0.5, 600 + 40 * n))
    return folder


def read(source: Path, **options: int) -> list[dict[str, Any]]:
    sizes = {"num_train": 60, "num_validation": 20, "num_test": 30}
    return [entry for entry in digits.rows(source, **{**sizes, **options}) if isinstance(entry, dict)]


def ids(rows: list[dict[str, Any]], name: str, split: str) -> list[str]:
    return [row[f"{name}_id"] for row in rows if row["split"] == split]


def test_a_row_holds_three_items_of_its_class(source: Path) -> None:
    farsi, kannada = read_farsi(source / "farsi"), read_kannada(source / "kannada")
    items = {item.id: item for item in [*farsi, *kannada]}
    rows = read(source)
    assert [row["id"] for row in rows[:2]] == ["train-000000", "train-000001"]
    assert len({row["id"] for row in rows}) == len(rows) == 110
    for row in rows:
        assert row.keys() == digits.FEATURES.keys()
        for name in ("farsi", "kannada"):
            item = items[row[f"{name}_id"]]
            assert str(item.digit) == row["label"]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row[name]))), item.value)
        assert row["speech_id"].partition("_")[0] == row["label"]
        assert (row["speech"].shape, row["speech"].dtype) == ((20, 13), np.float32)


def test_splits_share_no_item_and_use_each_equally_often(source: Path) -> None:
    rows = read(source)
    assert Counter((row["split"], row["label"]) for row in rows) == {
        (split, str(digit)): count
        for split, count in (("train", 6), ("validation", 2), ("test", 3))
        for digit in range(10)
    }
    for name, (train, validation, test) in (("farsi", (7, 1, 2)), ("kannada", (7, 1, 2)), ("speech", (4, 1, 5))):
        sizes = {"train": train, "validation": validation, "test": test}
        used = {split: Counter(ids(rows, name, split)) for split in sizes}
        assert len(set.union(*map(set, used.values()))) == sum(map(len, used.values()))
        for split, counts in used.items():
            per_digit = sum(row["split"] == split for row in rows) // 10
            assert len(counts) == 10 * min(sizes[split], per_digit)
            assert max(counts.values()) - min(counts.values()) <= 1


def test_the_seed_draws_what_comes_together_and_not_the_splits(source: Path) -> None:
    first, again, other = read(source), read(source), read(source, seed=1)
    together = [[[row[f"{name}_id"] for name in MODALITIES] for row in rows] for rows in (first, again, other)]
    assert together[0] == together[1] != together[2]
    more = read(source, num_train=90, num_test=50)
    fewer = [row for row in first if row["split"] == "validation"]
    assert [row["farsi_id"] for row in more if row["split"] == "validation"] == [row["farsi_id"] for row in fewer]
    for split in ("train", "test"):
        every = set(ids(read(source, num_train=500, num_test=500), "farsi", split))
        assert set(ids(other, "farsi", split)) <= every


def test_published_test_sets_are_kept(source: Path) -> None:
    write_cdb(source / "farsi" / "Train 60000.cdb", pictures(3))
    write_kannada(source / "kannada", "train", pictures(4))
    rows = read(source, num_train=300, num_test=300, num_validation=100)
    test = {row[f"{name}_id"] for row in rows if row["split"] == "test" for name in MODALITIES}
    expected = [f"{name}-test-{n:05d}" for name in ("farsi", "kannada") for n in range(100)]
    assert test == {*expected, *(f"{digit}_jo_{index}" for digit in range(10) for index in range(5))}
    trained = {row["farsi_id"] for row in rows if row["split"] != "test"}
    assert trained == {f"farsi-train-{n:05d}" for n in range(100)}


def test_an_image_in_two_published_sets_is_left_out_of_training(source: Path) -> None:
    copied = pictures(3)
    copied[7] = pictures(0)[7]
    write_cdb(source / "farsi" / "Train 60000.cdb", copied)
    rejected = [entry for entry in digits.rows(source) if isinstance(entry, Rejected)]
    assert [(entry.id, entry.reason, entry.detail) for entry in rejected] == [
        ("farsi-train-00007", "its equal is in another split", "test")
    ]
    assert "farsi-train-00007" not in {row["farsi_id"] for row in read(source, num_train=500)}


def test_equal_images_of_one_file_come_into_one_split(source: Path) -> None:
    images = pictures(0)
    for digit in range(10):
        images[60 + digit] = images[50 + digit] = images[digit]
    write_cdb(source / "farsi" / "Test 20000.cdb", images)
    rows = read(source, num_train=500, num_test=500, num_validation=100)
    by_digest: dict[bytes, set[str]] = {}
    for row in rows:
        by_digest.setdefault(row["farsi"], set()).add(row["split"])
    assert len(by_digest) == 80 and all(len(splits) == 1 for splits in by_digest.values())
    assert not [entry for entry in digits.rows(source) if isinstance(entry, Rejected)]


def test_a_prepared_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (source / "spoken" / "3_jo_9.wav").write_bytes(b"RIFF")
    (source / "spoken" / "three.wav").write_bytes(b"RIFF")
    sizes = {"num_train": 60, "num_validation": 20, "num_test": 30}
    manifest = prepare("digits", tmp_path / "out", source=source, num_workers=1, **sizes)
    assert manifest == load_manifest(tmp_path / "out")
    assert {split: (info.rows, info.images) for split, info in manifest.splits.items()} == {
        split: (rows, {"farsi": rows, "kannada": rows})
        for split, rows in (("train", 60), ("validation", 20), ("test", 30))
    }
    assert manifest.rejected == {"not a WAV file": 1, "name not digit_speaker_index": 1}
    assert manifest.metadata["items"] == {
        "farsi": {"train": 70, "validation": 10, "test": 20},
        "kannada": {"train": 70, "validation": 10, "test": 20},
        "speech": {"train": 39, "validation": 10, "test": 50},
    }
    train = load_split(tmp_path / "out", "train")
    assert train.features == {**digits.FEATURES, **dict.fromkeys(("farsi", "kannada"), datasets.Image(decode=False))}
    scale = {name: np.array(value) for name, value in manifest.metadata["speech"].items()}
    for row in train:
        raw = frames_of(source / "spoken", row["speech_id"])
        np.testing.assert_allclose(row["speech"], (raw - scale["mean"]) / scale["standard_deviation"], atol=1e-5)
    clips = {row["speech_id"]: row["speech"] for row in read(source, num_train=500) if row["split"] == "train"}
    values = np.concatenate([*clips.values()])
    assert len(clips) == 39 and values.shape == (780, 13)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-5)
    assert train[0]["farsi"]["bytes"] == read(source)[0]["farsi"]


def frames_of(folder: Path, name: str) -> np.ndarray:
    return stretch_frames(mfcc(load_recording(folder / f"{name}.wav", 8000), 8000, 13), 20)


def test_metadata_comes_with_the_rows(source: Path) -> None:
    found = {entry.name: entry.value for entry in digits.rows(source) if isinstance(entry, Metadata)}
    assert [len(found["speech"][name]) for name in ("mean", "standard_deviation")] == [13, 13]


def test_small_images_are_centred_and_large_ones_shrunk() -> None:
    small = np.full((5, 8), 255, np.uint8)
    expected = np.zeros((28, 28), np.uint8)
    expected[11:16, 10:18] = 255
    np.testing.assert_array_equal(fit_image(small), expected)
    tall = np.full((56, 20), 255, np.uint8)
    expected = np.zeros((28, 28), np.uint8)
    expected[:, 9:19] = 255
    np.testing.assert_array_equal(fit_image(tall), expected)
    spot = np.zeros((56, 56), np.uint8)
    spot[20:30, 20:30] = 255
    ink = fit_image(spot) > 0
    assert not ink[:9].any() and not ink[16:].any() and ink[10:15, 10:15].all(), "nothing rings"


X, Y = "X_kannada_MNIST_test-idx3-ubyte.gz", "y_kannada_MNIST_test-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("farsi/Test 20000.cdb", cdb(pictures(0))[:-9], "Test 20000.cdb is truncated or damaged at image 100 of 100"),
        ("farsi/Test 20000.cdb", cdb([(12, pictures(0)[0][1])]), "has the label 12, expected a digit"),
        (f"kannada/{X}", gzip.compress(idx(pictures(0)[0][1]), mtime=0)[:-20], f"{X} is truncated or damaged"),
        (f"kannada/{X}", b"no gzip", f"{X} is truncated or damaged"),
        (f"kannada/{X}", gzip.compress(b"\0\0\x0d\x03", mtime=0), f"{X} is no idx file of bytes"),
        (f"kannada/{X}", gzip.compress(b"\0\0\x08\x03", mtime=0), f"{X} is no idx file of bytes"),
        (
            f"kannada/{X}",
            gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))[:-1], mtime=0),
            "has 1,567 of 1,568 values",
        ),
        (f"kannada/{Y}", idx(np.zeros(99, np.uint8)), r"images of shape \(100, 28, 28\) for labels of shape \(99,\)"),
        (f"kannada/{Y}", idx(np.full(100, 10, np.uint8)), "has the label 10, expected a digit"),
        (f"kannada/{Y}", idx(np.arange(100, dtype=np.uint8) % 9), "kannada has no 9 for the split .* among 0 items"),
    ],
)
def test_a_file_in_the_wrong_format_is_a_clear_error(source: Path, file: str, content: bytes, message: str) -> None:
    (source / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(source)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", "expected the folder with farsi, kannada and spoken"),
        ("farsi", "farsi holds neither Train 60000.cdb nor Test 20000.cdb"),
        ("kannada", "kannada holds neither X_kannada_MNIST_train-idx3-ubyte.gz nor"),
        (f"kannada/{Y}", "y_kannada_MNIST_test-idx1-ubyte.gz is missing"),
        ("spoken", "spoken holds no recording: expected 0_jackson_0.wav and the like"),
    ],
)
def test_a_missing_part_is_named(source: Path, tmp_path: Path, part: str, message: str) -> None:
    (source / part).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        read(source)


@pytest.mark.parametrize(
    ("option", "value"), [("num_train", 0), ("num_validation", 0), ("num_test", -1), ("seed", -1)]
)
def test_options_out_of_range(source: Path, option: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{option} is {value}, expected at least {0 if option == 'seed' else 1}"):
        read(source, **{option: value})


def test_idx_files_of_any_shape(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


@pytest.mark.real_data
def test_the_real_files(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = shared / "data" / "digits"
    sizes = {"num_train": 3000, "num_validation": 400, "num_test": 2000}
    manifest = prepare("digits", tmp_path / "out", source=source, num_workers=1, **sizes)
    assert (manifest.rejected, manifest.dropped) == ({}, {})
    assert manifest.metadata["items"] == {
        "farsi": {"train": 15200, "validation": 800, "test": 4000},
        "kannada": {"train": 7600, "validation": 400, "test": 2000},
        "speech": {"train": 2560, "validation": 140, "test": 300},
    }
    splits = {split: load_split(tmp_path / "out", split) for split in manifest.splits}
    assert {split: Counter(rows["label"]) for split, rows in splits.items()} == {
        split: dict.fromkeys("0123456789", size // 10)
        for split, size in (("train", 3000), ("validation", 400), ("test", 2000))
    }
    official = {f"{digit}_{speaker}_{index}" for digit in range(10) for speaker in SPEAKERS for index in range(5)}
    assert set(splits["test"]["speech_id"]) == official
    classes = {item.id: str(item.digit) for item in read_kannada(source / "kannada")}
    for name in MODALITIES:
        used = [set(rows[f"{name}_id"]) for rows in splits.values()]
        assert sum(map(len, used)) == len(set.union(*used))
    for rows in splits.values():
        assert [int(name.rpartition("-")[2]) // 2000 for name in rows["farsi_id"]] == [*map(int, rows["label"])]
        assert [classes[name] for name in rows["kannada_id"]] == rows["label"][:]
        assert [name[0] for name in rows["speech_id"]] == rows["label"][:]
    train = splits["train"]
    clips = dict(zip(train["speech_id"], train["speech"], strict=True))
    values = np.array([*clips.values()])
    assert values.shape == (2560, 20, 13)
    np.testing.assert_allclose(values.mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(values.std((0, 1)), 1, atol=1e-4)
    (kannada,) = (item for item in read_kannada(source / "kannada") if item.id == "kannada-test-00000")
    pixels = gzip.decompress((source / "kannada" / X).read_bytes())[16 : 16 + 784]
    assert kannada.value.sum() == sum(pixels) > 0


SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
