"""Reading prepared folders: exact contents, never a stale cache, clear errors."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Manifest, SplitInfo, load_manifest, load_split
from m3ae.data.sources import SOURCES
from m3ae.images.files import decode_image

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "image": datasets.Image(),
        "text": datasets.List(datasets.Value("string")),
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of a source named `toy`, two for training to begin with."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "split": "train", "image": lambda: Image.new("L", (6, 4), 90), "text": ["one two three"]},
        {"id": "b", "split": "train", "image": None, "text": ["four five six"]},
    ]
    monkeypatch.setitem(SOURCES, "toy", "toy")
    monkeypatch.setitem(sys.modules, "toy", SimpleNamespace(FEATURES=FEATURES, rows=lambda: iter(rows)))
    return rows


def test_a_split_reads_back(tmp_path: Path, rows: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    manifest = prepare("toy", tmp_path / "out")
    assert load_manifest(tmp_path / "out") == manifest
    capfd.readouterr()
    dataset = load_split(tmp_path / "out", "train")
    assert capfd.readouterr().err == "", "a log has no progress bars"
    assert dataset.features == {**FEATURES, "image": datasets.Image(decode=False)}
    image = decode_image(dataset[0]["image"]["bytes"], "a")
    assert (image.size, image.mode, image.getpixel((3, 2))) == ((6, 4), "L", 90)
    assert dataset[1] == {"id": "b", "split": "train", "image": None, "text": ["four five six"]}


def test_data_loader_workers_read_any_order(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    prepare("toy", tmp_path / "out", num_shards=2)
    dataset = load_split(tmp_path / "out", "train")
    loader = DataLoader(dataset, sampler=[1, 0], num_workers=1, batch_size=None, multiprocessing_context="forkserver")
    assert [row["id"] for row in loader] == ["b", "a"]


def test_what_is_prepared_again_is_never_read_from_a_stale_cache(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    prepare("toy", tmp_path / "out")
    assert load_split(tmp_path / "out", "train")["text"][1] == ["four five six"]
    rows[1]["text"] = ["six five four"]
    prepare("toy", tmp_path / "out", overwrite=True)
    assert load_split(tmp_path / "out", "train")["text"][1] == ["six five four"]


def test_the_summary_is_an_aligned_table() -> None:
    splits = {
        "train": SplitInfo(rows=1478, images={"frontal": 1412}, texts=1478, rejected=2, shards={}),
        "test": SplitInfo(rows=9, images={"frontal": 8}, texts=9, rejected=0, shards={}),
    }
    manifest = Manifest("toy", {}, "", splits, rejected={"image missing": 2}, dropped={})
    assert str(manifest).splitlines() == [
        "split  rows  frontal  texts  rejected",
        "train  1478     1412   1478         2",
        "test      9        8      9         0",
        "rejected rows: 2 (2 image missing)",
        "dropped cells: 0",
    ]


def test_the_share_of_rejected_rows_is_that_of_all_rows() -> None:
    splits = {"train": SplitInfo(rows=6, images={}, texts=None, rejected=1, shards={})}
    manifest = Manifest(
        "toy", {}, "", splits, rejected={"image missing": 1, "not ours": 1}, dropped={"text: empty": 5}
    )
    assert manifest.rejected_share() == 0.25
    assert manifest.rejected_share(by_choice=["image missing", "not ours"]) == 0
    assert Manifest("toy", {}, "", {}, rejected={}, dropped={}).rejected_share() == 1
    assert str(manifest).splitlines()[:2] == ["split  rows  rejected", "train     6         1"]


def test_a_folder_that_is_not_prepared_says_how_to_prepare_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent does not exist: make it with m3ae prepare"):
        load_split(tmp_path / "absent", "train")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json: .*m3ae prepare"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
        ('{"format_version": 99}', "has format version 99, expected 1"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=rf"manifest\.json {message}.*--overwrite"):
        load_manifest(tmp_path)


def test_wrong_splits_are_named(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rows.append({"id": "c", "split": "test", "image": tmp_path / "absent.jpg", "text": None})
    prepare("toy", tmp_path / "out")
    with pytest.raises(ValueError, match="has no split 'validation': it has train, test"):
        load_split(tmp_path / "out", "validation")
    with pytest.raises(ValueError, match=r"split 'test' of .* is empty: all its 1 rows are in rejected\.jsonl"):
        load_split(tmp_path / "out", "test")


def test_a_missing_or_foreign_shard_is_noticed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    prepare("toy", tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    fields["splits"]["train"]["rows"] = 3
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"train has 2 rows, manifest\.json says 3"):
        load_split(tmp_path / "out", "train")
    (tmp_path / "out" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train-00000-of-00001\.parquet"):
        load_split(tmp_path / "out", "train")


def test_another_set_with_the_same_times_and_rows_is_not_read_from_the_cache(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    prepare("toy", tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*.parquet")
    assert load_split(tmp_path / "out", "train")["text"][1] == ["four five six"]
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    rows[1]["text"] = ["six five four"]
    prepare("toy", tmp_path / "out", overwrite=True)
    os.utime(shard, ns=times)
    assert load_split(tmp_path / "out", "train")["text"][1] == ["six five four"]
