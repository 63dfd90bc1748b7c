"""From rows to shards: what is kept, what is left out and why, and what happens to folders."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Metadata, Rejected, load_manifest
from m3ae.data.sources import SOURCES
from m3ae.files import LOCK, only_process

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "text": datasets.List(datasets.Value("string")),
        "label": datasets.ClassLabel(names=["normal", "nodule"]),
    }
)
Entry = dict[str, Any] | Rejected | Metadata
draw = partial(Image.new, "L", (8, 8), 7)


def row(id: str, **cells: Any) -> dict[str, Any]:
    given = {"split": "train", "frontal": draw, "lateral": None, "text": ["three plain words"], "label": "nodule"}
    return {"id": id, **given, **cells}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """The entries of a source named `toy`, to be filled by the test."""
    entries: list[Entry] = []

    def rows(*, factor: int = 1) -> Iterator[Entry]:
        return iter(entries * factor)

    monkeypatch.setitem(SOURCES, "toy", "toy")
    monkeypatch.setitem(sys.modules, "toy", SimpleNamespace(FEATURES=FEATURES, rows=rows))
    return entries


def rejected_in(folder: Path) -> list[tuple[str, str | None, str]]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return [(entry["id"], entry["column"], entry["reason"]) for entry in map(json.loads, lines)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_entry_ends_as_a_row_or_with_a_reason(tmp_path: Path, source: list[Entry]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"text")
    absent = tmp_path / "absent.jpg"
    source += [
        row("good", lateral=draw, text=["  three\n plain\twords "]),
        row("one view lost", lateral=broken),
        row("all views lost", frontal=absent, lateral=broken),
        row("text only", frontal=None),
        row("nothing", frontal=None, text=["  "]),
        row("no text", text=[" "]),
        row("no text in the source", text=None),
        row("short", text=["two words", "now three words"]),
        row("good"),
        Rejected("elsewhere", "not ours"),
        row("held out", split="test", label=None),
    ]
    manifest = prepare("toy", tmp_path / "out")
    assert rejected_in(tmp_path / "out") == [
        ("good", None, "duplicate id"),
        ("elsewhere", None, "not ours"),
        ("one view lost", "lateral", "not an image"),
        ("all views lost", None, "image missing"),
        ("nothing", None, "neither image nor text"),
        ("no text", "text", "text empty"),
        ("short", "text", "text too short"),
    ]
    train, test = manifest.splits["train"], manifest.splits["test"]
    assert (train.rows, train.images, train.texts, train.rejected) == (6, {"frontal": 5, "lateral": 1}, 4, 3)
    assert (test.rows, test.images, test.texts, test.rejected) == (1, {"frontal": 1, "lateral": 0}, 1, 0)
    assert sum(manifest.rejected.values()) + train.rows + test.rows == len(source)
    assert manifest.dropped == {"lateral: not an image": 1, "text: text empty": 1, "text: text too short": 1}


def test_shards_carry_features_and_nulls(tmp_path: Path, source: list[Entry]) -> None:
    source += [row("a", text=["  three\n plain\twords "]), row("b", frontal=None, label=None)]
    prepare("toy", tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*.parquet")
    assert shard.name == "train-00000-of-00001.parquet"
    assert datasets.Features.from_arrow_schema(pq.read_schema(shard)) == FEATURES
    first, second = pq.read_table(shard).to_pylist()
    assert (first["id"], first["label"], first["lateral"], first["text"]) == ("a", 1, None, ["three plain words"])
    assert first["frontal"]["bytes"].startswith(b"\xff\xd8")
    assert (second["label"], second["frontal"]) == (None, None)


def test_an_encoded_image_keeps_its_bytes(tmp_path: Path, source: list[Entry]) -> None:
    buffer = io.BytesIO()
    Image.new("L", (500, 500), 7).save(buffer, "PNG")
    source += [row("a", frontal=buffer.getvalue())]
    prepare("toy", tmp_path / "out")
    (stored,) = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet").to_pylist()
    assert stored["frontal"]["bytes"] == buffer.getvalue()


def test_what_a_source_says_of_all_rows_is_in_the_manifest(tmp_path: Path, source: list[Entry]) -> None:
    source += [Metadata("mean", [0.1, 2 / 3]), row("a")]
    manifest = prepare("toy", tmp_path / "out")
    assert manifest.metadata == {"mean": [0.1, 2 / 3]} and load_manifest(tmp_path / "out") == manifest
    assert prepare("toy", tmp_path / "out") == manifest
    source[0] = Metadata("mean", [0.1, 0.7])
    with pytest.raises(FileExistsError, match="other rows than the source lists now"):
        prepare("toy", tmp_path / "out")


def test_rows_are_spread_over_shards_in_order(tmp_path: Path, source: list[Entry]) -> None:
    source += [row(str(number), frontal=None) for number in range(7)]
    manifest = prepare("toy", tmp_path / "out", num_shards=3)
    names = [f"train-{index:05d}-of-00003.parquet" for index in range(3)]
    assert list(manifest.splits["train"].shards) == names
    ids = [pq.read_table(tmp_path / "out" / name)["id"].to_pylist() for name in names]
    assert ids == [["0", "1"], ["2", "3"], ["4", "5", "6"]]


def test_same_input_gives_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path, source: list[Entry]) -> None:
    source += [row(str(number), frontal=partial(Image.new, "L", (9, 8), number)) for number in range(150)]
    source += [row("gone", frontal=tmp_path / "absent.jpg")]
    for workers in (1, 2):
        prepare("toy", tmp_path / str(workers), num_workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    names = {"manifest.json", "rejected.jsonl", "train.ids.txt", "train-00000-of-00001.parquet"}
    assert set(contents(tmp_path / "1")) == names


def test_a_prepared_folder_is_reused_until_something_changes(
    tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    source.append(row("a"))
    out = tmp_path / "out"
    first = prepare("toy", out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare("toy", out, factor=1) == first
    assert "was reused" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times

    with pytest.raises(FileExistsError, match=r"prepared from other options: min_words 3, now 1: pass --overwrite"):
        prepare("toy", out, min_words=1)
    source.append(row("b", split="test"))
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare("toy", out)
    assert list(prepare("toy", out, overwrite=True).splits) == ["train", "test"]
    assert first.splits["train"].rows == 1


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, source: list[Entry]) -> None:
    source.append(row("a"))
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"is not empty and holds no manifest\.json"):
            prepare("toy", tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_overwriting_removes_what_was_prepared_and_nothing_else(tmp_path: Path, source: list[Entry]) -> None:
    source.append(row("a"))
    out = tmp_path / "out"
    prepare("toy", out)
    mine = {"part-00000-of-00001.parquet": b"spark", "cohort.ids.txt": b"1, 2", "notes.md": b"mine"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    source[0] = row("b", split="test")
    prepare("toy", out, overwrite=True)
    ours = {"manifest.json", "rejected.jsonl", "test.ids.txt", "test-00000-of-00001.parquet"}
    assert set(contents(out)) == ours | mine.keys() and mine.items() <= contents(out).items()
    (out / "manifest.json").write_bytes((out / "manifest.json").read_bytes()[:-100])  # damaged, and still ours
    source.append(row("c"))
    prepare("toy", out, overwrite=True)
    ours |= {"train.ids.txt", "train-00000-of-00001.parquet"}
    assert set(contents(out)) == ours | mine.keys() and mine.items() <= contents(out).items()


def test_a_manifest_of_something_else_is_not_overwritten(tmp_path: Path, source: list[Entry]) -> None:
    source.append(row("a"))
    before = {"manifest.json": b'{"name": "my site", "icons": []}', "sw.js": b"code", "x-00000-of-00001.parquet": b"1"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"manifest\.json was not written by m3ae, and would be replaced"):
            prepare("toy", tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_two_processes_do_not_prepare_one_folder(tmp_path: Path, source: list[Entry]) -> None:
    source.append(row("a"))
    with only_process(tmp_path / "out"), pytest.raises(BlockingIOError, match="is being written by process"):
        prepare("toy", tmp_path / "out")
    (tmp_path / "out" / LOCK).touch()  # of a process that was killed
    prepare("toy", tmp_path / "out")
    assert not (tmp_path / "out" / LOCK).exists()


class Camera:
    """An image cell that counts its pictures, of noise, and can be interrupted."""

    def __init__(self) -> None:
        self.pictures, self.interrupted = 0, False
        self.noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)

    def __call__(self) -> Image.Image:
        if self.interrupted:
            raise KeyboardInterrupt
        self.pictures += 1
        return Image.fromarray(self.noise)


def test_an_interrupted_run_continues_behind_its_last_shard(
    tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = Camera(), Camera()
    source += [row("a", frontal=first, lateral=tmp_path / "absent.jpg"), row("b", frontal=last, split="test")]
    last.interrupted = True
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", out)
    assert "interrupted after 1 of 2 shards: run the same again to continue" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    last.interrupted = False
    prepare("toy", out)
    assert (first.pictures, last.pictures) == (1, 1)
    prepare("toy", tmp_path / "uninterrupted")
    assert contents(out) == contents(tmp_path / "uninterrupted")


@pytest.mark.parametrize("change", ["option", "shard", "torn line", "temporary file"])
def test_what_an_interrupted_run_left_is_used_only_if_it_is_whole(
    tmp_path: Path, source: list[Entry], change: str
) -> None:
    first, last = Camera(), Camera()
    source += [row("a", frontal=first), row("b", frontal=last, split="test")]
    last.interrupted = True
    out, marker = tmp_path / "out", tmp_path / "out" / "manifest.unfinished.jsonl"
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", out)
    last.interrupted = False
    if change == "shard":
        (out / "train-00000-of-00001.parquet").write_bytes(b"half")
    elif change == "torn line":
        marker.write_text(marker.read_text()[:-20])
    elif change == "temporary file":
        (out / "test-00000-of-00001.parquet.tmp").write_bytes(b"half")
    options = {"min_words": 2} if change == "option" else {}
    prepare("toy", out, **options)
    assert first.pictures == (1 if change == "temporary file" else 2)
    prepare("toy", tmp_path / "uninterrupted", **options)
    assert contents(out) == contents(tmp_path / "uninterrupted")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_run_killed_again_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for number in range(100):
        path = tmp_path / "source" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (96, 96), dtype=np.uint8)).save(path)
    path.write_bytes(b"broken")
    command = [sys.executable, "-m", "tests.data.kill_prepare", str(tmp_path / "source"), str(tmp_path / "out"), "0"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("kills: ")[2]) >= 1
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")
    assert rejected_in(tmp_path / "out") == [("99.png", None, "not an image")]


def test_machines_share_the_shards_of_a_folder(
    tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    camera, out = Camera(), tmp_path / "out"
    source += [row(f"{number}", split=split, frontal=camera) for split in ("train", "test") for number in range(6)]
    for entry in source[6:]:
        entry["id"] += "t"
    source.append(row("short", text=["two words"], frontal=None))
    options: dict[str, Any] = {"num_shards": 3, "num_workers": 1}
    for shard_range in ("4:9", "0:2"):
        assert prepare("toy", out, shard_range=shard_range, **options) is None
    assert "out: 2 of 6 shards; once all are written, the same without a range" in capsys.readouterr().err
    assert len(list(out.glob("*.parquet"))) == 4 and not (out / "manifest.json").exists()
    pictures = camera.pictures
    prepare("toy", out, shard_range="0:2", **options)  # again: nothing is left to do
    assert camera.pictures == pictures
    next(out.glob("test-00002-*.parquet")).write_bytes(b"damaged")
    prepare("toy", out, **options)  # shards 2 and 3, which nobody had, and the damaged one
    prepare("toy", tmp_path / "alone", **options)
    assert contents(out) == contents(tmp_path / "alone")
    assert prepare("toy", out, shard_range="0:2", **options) == load_manifest(out)  # complete: reused


@pytest.mark.parametrize("shard_range", ["3", "2:2", "a:b", "-1:2"])
def test_a_shard_range_has_two_ends(tmp_path: Path, source: list[Entry], shard_range: str) -> None:
    with pytest.raises(ValueError, match="expected first:end with first < end"):
        prepare("toy", tmp_path / "out", shard_range=shard_range)
    with pytest.raises(ValueError, match="delete each other's shards"):
        prepare("toy", tmp_path / "out", shard_range="0:2", overwrite=True)


def test_a_folder_that_was_barely_claimed_is_still_ours(tmp_path: Path, source: list[Entry]) -> None:
    source.append(row("a"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.unfinished.jsonl.tmp").touch()
    prepare("toy", tmp_path / "out")
    prepare("toy", tmp_path / "uninterrupted")
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


def test_rows_on_end_with_the_same_image_decode_and_store_it_once(tmp_path: Path, source: list[Entry]) -> None:
    camera = Camera()
    source += [row(str(number), frontal=camera) for number in range(40)]
    prepare("toy", tmp_path / "out", num_workers=1)
    assert camera.pictures == 1
    (shard,) = (tmp_path / "out").glob("*.parquet")
    cells = pq.read_table(shard)["frontal"].to_pylist()
    assert len({cell["bytes"] for cell in cells}) == 1 and shard.stat().st_size < 3 * len(cells[0]["bytes"])


def test_ids_are_listed_by_split(tmp_path: Path, source: list[Entry]) -> None:
    source += [row("a"), row("b", split="test"), row("c"), row("d", frontal=None, text=None)]
    prepare("toy", tmp_path / "out")
    assert (tmp_path / "out" / "train.ids.txt").read_text() == "a\nc\n"
    assert (tmp_path / "out" / "test.ids.txt").read_text() == "b\n"


def test_a_source_may_derive_files_from_what_was_kept(
    tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    def extras(rows: dict[str, list[dict[str, Any]]], options: dict[str, Any]) -> dict[str, Any]:
        seen.append((rows, options["factor"]))
        return {"ids.json": {"summary": "two é ids", "all": [row["id"] for row in rows["train"]]}}

    seen: list[Any] = []
    sys.modules["toy"].extras = extras
    source += [row("a"), row("lost", frontal=None, text=None), row("b", text=["  one two  three"], label=None)]
    manifest = prepare("toy", tmp_path / "out")
    kept = {"id": "a", "split": "train", "text": ["three plain words"], "label": 1}
    assert seen == [({"train": [kept, kept | {"id": "b", "text": ["one two three"], "label": None}]}, 1)]
    content = (tmp_path / "out" / "ids.json").read_bytes()
    assert json.loads(content) == {"summary": "two é ids", "all": ["a", "b"]}
    assert manifest.files["ids.json"] == hashlib.sha256(content).hexdigest()
    assert capsys.readouterr().out.splitlines()[-1] == "two é ids"
    del sys.modules["toy"].extras
    prepare("toy", tmp_path / "out", min_words=1, overwrite=True)
    assert not (tmp_path / "out" / "ids.json").exists()


def test_a_source_needs_no_text(tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules["toy"].FEATURES = datasets.Features({c: f for c, f in FEATURES.items() if c != "text"})
    source += [row("a"), row("b", frontal=None)]
    for entry in source:
        del entry["text"]
    manifest = prepare("toy", tmp_path / "out")
    assert (manifest.rejected, manifest.splits["train"].texts) == ({"neither image nor text": 1}, None)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "split  rows  frontal  lateral  rejected",
        "train     1        1        0         1",
    ]


def test_what_no_file_can_hold_is_rejected(tmp_path: Path, source: list[Entry]) -> None:
    source += [
        row("text", text=["br\udcfcst x-ray shown"]),
        row("\udce9"),
        row("two\nlines"),
        row(""),
        Rejected("x\udcff", "not ours", detail="\ud800"),
        row("ok", text=["naïve Œdème 日本"]),
    ]
    prepare("toy", tmp_path / "out")
    assert rejected_in(tmp_path / "out") == [
        ("text", None, "text not UTF-8"),
        ("\\udce9", None, "text not UTF-8"),
        ("two\nlines", None, "id not one line"),
        ("", None, "id not one line"),
        ("x\\udcff", None, "not ours"),
    ]
    first = json.loads((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()[0])
    assert first["detail"] == "text: save it as UTF-8"


def test_overwriting_leaves_no_old_shards(tmp_path: Path, source: list[Entry]) -> None:
    source += [row("a"), row("b")]
    prepare("toy", tmp_path / "out", num_shards=2)
    prepare("toy", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iu-xray", {}, "unknown source 'iu-xray': expected one of digits, folder, iu_xray, "),
        ("iu_xray", {}, "iu_xray: source: missing; expected a value"),
        ("toy", {"factr": 1}, "toy: factr: unknown key; did you mean factor"),
        ("toy", {"factor": "1"}, r"toy: factor: got '1' \(str\), expected a valid integer"),
        ("toy", {"min_words": "1"}, r"toy: min_words: got '1' \(str\), expected a valid integer"),
        ("toy", {"seed": 1}, "toy: seed: unknown key; "),
        ("toy", {"shorter_side": 0}, "shorter_side: got 0, expected 1 to"),
        ("toy", {"quality": 96}, "quality: got 96, expected 1 to 95"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, source: list[Entry], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
