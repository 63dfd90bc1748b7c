from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3ae.data import fingerprints
from m3ae.data.fingerprints import FINGERPRINTS, fingerprint_image, load_fingerprints, near_twins
from tests.data.small_folder import picture, stored, write_splits


def distance(a: bytes, b: bytes) -> int:
    return int(np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


def test_the_same_pixels_in_another_format_have_the_same_digest() -> None:
    image = picture(1)
    prints = {fingerprint_image(stored(image, form)) for form in ("PNG", "BMP", "TIFF")}
    prints.add(fingerprint_image(stored(image.convert("RGB"))))
    assert len(prints) == 1
    assert fingerprint_image(stored(picture(2)))[0] not in {pixels for pixels, _ in prints}


def test_the_shape_of_an_image_is_part_of_its_digest() -> None:
    values = np.arange(16, dtype=np.uint8)
    flat, high = (Image.fromarray(values.reshape(shape)) for shape in ((2, 8), (8, 2)))
    assert fingerprint_image(stored(high))[0] != fingerprint_image(stored(flat))[0]


def test_size_and_compression_move_the_hash_by_few_bits() -> None:
    image = picture(1, (320, 256))
    pixels, look = fingerprint_image(stored(image))
    smaller, larger = image.resize((160, 128)), image.resize((480, 480))
    for other in (stored(image, "JPEG", quality=50), stored(smaller), stored(larger)):
        other_pixels, other_look = fingerprint_image(other)
        assert other_pixels != pixels and distance(other_look, look) <= 16
    assert min(distance(look, fingerprint_image(stored(picture(seed)))[1]) for seed in range(2, 12)) > 70


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_near_twins_are_those_of_all_pairs_one_by_one(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(fingerprints, "PAIRS_AT_ONCE", block)
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 256, (n, 32), dtype=np.uint8) for n in (11, 17))
    b[[2, 13]], a[9], a[0] = a[4], a[5], b[16]
    b[13, 0] ^= 0b111  # 3 bits from a[4]
    for left, right in ((a, b), (a, a)):
        bits = np.unpackbits(left[:, None] ^ right[None], axis=2).sum(axis=2)
        near = bits <= 3
        if left is right:
            np.fill_diagonal(near, False)
        for twins, expected in zip(near_twins(left, right, 3), (near, near.T), strict=True):
            assert [twin >= 0 for twin in twins] == expected.any(axis=1).tolist()
            assert all(expected[i, twin] for i, twin in enumerate(twins) if twin >= 0)
    assert near_twins(a, b, 2)[1][[2, 13]].tolist() == [4, -1]
    assert near_twins(a, b, -1)[0].tolist() == [-1] * 11


@pytest.mark.parametrize("distance", [0, 1, 20, 64])
def test_no_near_twin_is_missed(distance: int) -> None:
    """Whichever bits differ, and among hashes that are all alike."""
    generator = np.random.default_rng(distance)
    a = generator.integers(0, 256, (60, 32), dtype=np.uint8)
    for shift, expected in ((0, True), (1, False)):
        flips = np.zeros((60, 256), np.uint8)
        for row in flips:
            row[generator.choice(256, distance + shift, replace=False)] = 1
        b = a ^ np.packbits(flips, axis=1)
        for twins in near_twins(a, b, distance):
            assert twins.tolist() == (list(range(60)) if expected else [-1] * 60)
    alike = np.repeat(a[:1], 500, axis=0)
    twins, same = near_twins(alike, alike, distance)
    assert twins is same and (twins >= 0).all() and (twins != np.arange(500)).all()
    with pytest.raises(ValueError, match="max_distance: got 65, expected at most 64 of 256 bits"):
        near_twins(a, a, 65)


def test_nothing_is_near_to_nothing() -> None:
    empty = np.zeros((0, 32), np.uint8)
    assert [len(twins) for twins in near_twins(empty, np.zeros((2, 32), np.uint8), 20)] == [0, 2]


def write(folder: Path, seed: int = 1) -> Path:
    rows = [
        {"id": "a", "frontal": stored(picture(seed)), "lateral": stored(picture(2)), "text": ["Clear  lungs."]},
        {"id": "b", "text": ["clear\nLungs.", "Small effusion."]},
        {"id": "c", "lateral": stored(picture(2))},
    ]
    return write_splits(folder, train=rows, test=[])


def test_rows_images_and_texts_of_a_folder(tmp_path: Path) -> None:
    found = load_fingerprints(write(tmp_path / "set"))
    train = found["train"]
    assert train.ids.tolist() == ["a", "b", "c"]
    assert train.image_rows.tolist() == [0, 0, 2] and train.looks.shape == (3, 32)
    assert train.pixels[1] == train.pixels[2] != train.pixels[0]
    assert train.text_rows.tolist() == [0, 1, 1] and train.texts[0] == train.texts[1] != train.texts[2]
    assert len(found["test"].ids) == 0 and found["test"].looks.shape == (0, 32)


def test_a_question_and_its_answer_are_one_text(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": q, "answer": a} for i, (q, a) in enumerate(["Ay", "Bn", "An", "aY"])]
    texts = load_fingerprints(write_splits(tmp_path / "set", train=rows))["train"].texts
    assert texts[0] == texts[3] and len(set(texts)) == 3


def test_fingerprints_are_made_once_and_again_for_other_shards(tmp_path: Path, monkeypatch: Any) -> None:
    folder, other = write(tmp_path / "set"), write(tmp_path / "other", seed=5)
    first = load_fingerprints(folder)
    (other / FINGERPRINTS).write_bytes((folder / FINGERPRINTS).read_bytes())
    assert load_fingerprints(other)["train"].pixels[0] != first["train"].pixels[0]
    (other / FINGERPRINTS).write_bytes(b"PK damaged")
    (other / f"{FINGERPRINTS}.tmp").write_bytes(b"half of what a process wrote that was killed")
    assert len(load_fingerprints(other)["train"].pixels) == 3
    assert [path.name for path in other.glob("*.tmp")] == []

    monkeypatch.setattr(fingerprints, "fingerprint_image", None)  # nothing is decoded again
    again = load_fingerprints(folder)
    for name in ("ids", "image_rows", "pixels", "looks", "text_rows", "texts"):
        np.testing.assert_array_equal(getattr(again["train"], name), getattr(first["train"], name))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "set", train=[{"id": "x7", "image": stored(picture(1))[:200]}])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet: row x7 holds a damaged image .*prepare"):
        load_fingerprints(folder)
