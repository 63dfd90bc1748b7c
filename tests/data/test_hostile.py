"""Hostile and unusual files through the whole of preparing: the bad ones end with their reason, the rest is kept."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3ae.data.prepare import prepare


def bomb() -> bytes:
    """A PNG of some bytes whose header announces 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    half = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 16, axis=1).repeat(16, axis=0))
    half.save(folder / "good.jpg")
    half.save(tmp_path / "outside.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise
    half.save(folder / "exif.jpg", exif=turned)
    Image.fromarray(np.array([[0, 1000, 4000]], dtype=np.uint16)).save(folder / "16bit.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0])
    palette.save(folder / "palette.png", transparency=0)
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-60])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image at all")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    return folder


def write_table(source: Path, names: list[str], *lines: bytes) -> None:
    rows = [f"{number},{name},three plain words,train".encode() for number, name in enumerate(names)]
    (source / "table.csv").write_bytes(b"\n".join([b"id,image,text,split", *rows, *lines]))


def stored(folder: Path) -> dict[str, Image.Image]:
    rows = pq.read_table(folder / "train-00000-of-00001.parquet").to_pylist()
    return {row["id"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows}


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path: Path, source: Path) -> None:
    expected = {
        "truncated.jpg": "image truncated or corrupt",
        "empty.jpg": "image file empty",
        "text.jpg": "not an image",
        "bomb.png": "image too large",
        "../outside.jpg": "path leaves the source folder",
        str(tmp_path / "outside.jpg"): "path leaves the source folder",
        "link.jpg": "path leaves the source folder",
        "absent.jpg": "image missing",
    }
    latin = "latin,good.jpg,Bild einer Lunge übersichtlich,train".encode("latin-1")
    write_table(source, ["good.jpg", *expected], "0,good.jpg,the same id für zwei,train".encode(), latin)
    manifest = prepare("folder", tmp_path / "out", source=source, num_workers=1)
    entries = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["reason"]) for entry in entries] == [
        ("0", "duplicate id"),
        ("latin", "text not UTF-8"),
        *((str(number), reason) for number, reason in enumerate(expected.values(), start=1)),
    ]
    assert all(name in entry["detail"] for name, entry in zip(expected, entries[2:], strict=True))
    assert [*stored(tmp_path / "out")] == ["0"]
    assert manifest.splits["train"].rows + sum(manifest.rejected.values()) == 1 + len(expected) + 2


def test_what_is_unusual_is_put_right(tmp_path: Path, source: Path) -> None:
    write_table(source, ["good.jpg", "exif.jpg", "16bit.png", "cmyk.jpg", "palette.png"])
    manifest = prepare("folder", tmp_path / "out", source=source, num_workers=1)
    assert (manifest.rejected, manifest.dropped) == ({}, {})
    good, exif, wide, cmyk, palette = stored(tmp_path / "out").values()
    assert {image.format for image in (good, exif, wide, cmyk, palette)} == {"JPEG"}
    assert exif.size == good.size[::-1] and exif.getexif().get(0x0112, 1) == 1
    assert exif.getpixel((8, 1)) < 20 and exif.getpixel((8, 30)) > 235
    assert (wide.mode, wide.size) == ("L", (3, 1))
    assert np.allclose(cmyk.getpixel((4, 4)), (255, 0, 0), atol=16)
    assert np.allclose(palette.getpixel((4, 4)), 255, atol=2)


def test_originals_are_kept_on_request(tmp_path: Path, source: Path) -> None:
    Image.new("L", (900, 800), 9).save(source / "large.png")
    write_table(source, ["good.jpg", "large.png", "exif.jpg"])
    manifest = prepare("folder", tmp_path / "out", source=source, keep_original=True, num_workers=1)
    rows = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet").to_pylist()
    contents = [row["image"]["bytes"] for row in rows]
    assert contents[:2] == [(source / name).read_bytes() for name in ("good.jpg", "large.png")]
    assert contents[2] != (source / "exif.jpg").read_bytes()
    assert (manifest.options["shorter_side"], manifest.options["quality"]) == (None, 95)
