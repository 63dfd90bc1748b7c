import struct
from pathlib import Path

import numpy as np
import pytest

from m3ae.data.hoda import decode_runs, read_cdb
from tests.data.digit_files import cdb, write_cdb


def images() -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (5, 4), (4, 9), (64, 54)]
    drawn = [(label, np.where(rng.random(size) < 0.4, 255, 0).astype(np.uint8)) for label, size in enumerate(sizes)]
    return [*drawn, (7, np.zeros((3, 5), np.uint8)), (9, np.full((3, 5), 255, np.uint8))]


def test_images_of_all_sizes_are_read_back(tmp_path: Path) -> None:
    found = read_cdb(write_cdb(tmp_path / "a.cdb", images()))
    assert [label for label, _ in found] == [label for label, _ in images()]
    for (_, image), (_, expected) in zip(found, images(), strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)


def test_runs_start_with_background_in_every_row() -> None:
    runs = np.array([1, 2, 0, 3, 3, 0, 1, 1, 1], np.uint8)  # .## / ### / ... / #.#
    expected = [[0, 255, 255], [255, 255, 255], [0, 0, 0], [255, 0, 255]]
    assert decode_runs(runs, 3, 4).tolist() == expected


@pytest.mark.parametrize("runs", [[1, 2], [1, 2, 3, 1], [1, 3, 2], []])
def test_runs_that_make_no_rows_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="its runs do not make 2 rows of 3 pixels"):
        decode_runs(np.array(runs, np.uint8), 3, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "has 5 bytes, expected a header of 1024: download it again"),
        (cdb(images())[:-1], r"truncated or damaged at image 6 of 6 \(buffer is smaller.*download it again"),
        (cdb(images())[:1027], r"truncated or damaged at image 1 of 6"),
        (cdb(images()[:1]).replace(b"\xff\0\1", b"\xfe\0\1"), r"at image 1 of 1 \(it starts with 254, expected 255"),
        (cdb(images(), image_type=1), "holds grey images or images of one size, expected black-and-white ones"),
        (cdb(images(), side=32), "holds grey images or images of one size"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.cdb").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.cdb .*{message}"):
        read_cdb(tmp_path / "a.cdb")


@pytest.mark.real_data
def test_the_published_test_file(shared: Path) -> None:
    path = shared / "data" / "digits" / "farsi" / "Test 20000.cdb"
    found = read_cdb(path)
    assert np.bincount([label for label, _ in found]).tolist() == [2000] * 10
    assert max(image.shape for _, image in found)[0] == 64 and max(image.shape[1] for _, image in found) == 54
    record = path.read_bytes()[1024:]
    label, width, height, num_runs = struct.unpack_from("<xBBBH", record)
    runs, rows = iter(record[6 : 6 + num_runs]), []
    for _ in range(height):  # as the published reader does
        row: list[int] = []
        ink = False
        while len(row) < width:
            row += [255 * ink] * next(runs)
            ink = not ink
        rows.append(row)
    assert label == 0 and found[0].image.tolist() == rows
