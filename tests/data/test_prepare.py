"""From rows to shards: what is kept, what is left out and why, and what happens to folders."""

import json
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3ae.data.prepare import SOURCES, clean_texts, prepare
from m3ae.data.prepared import Rejected

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare.py"
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
Entry = dict[str, Any] | Rejected
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


def test_clean_texts_keeps_what_is_long_enough() -> None:
    assert clean_texts(["a b c", "", "a\nb", " x  y z "], min_words=3) == (
        ["a b c", "x y z"],
        ["text empty", "text too short"],
    )
    assert clean_texts([""], min_words=0) == (None, ["text empty"])
    assert clean_texts(None, min_words=3) == (None, [])


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
    assert set(contents(tmp_path / "1")) == {"manifest.json", "rejected.jsonl", "train-00000-of-00001.parquet"}


def test_a_prepared_folder_is_reused_until_something_changes(
    tmp_path: Path, source: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    source.append(row("a"))
    out = tmp_path / "out"
    first = prepare("toy", out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare("toy", out, factor=1) == first
    assert "was reused" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times

    with pytest.raises(FileExistsError, match=r"other rows or options .*'min_words': 3.*'min_words': 1.*--overwrite"):
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


def test_an_interrupted_run_is_started_afresh(tmp_path: Path, source: list[Entry]) -> None:
    def interrupted() -> Image.Image:
        raise KeyboardInterrupt

    source += [row("a"), row("b", split="test", frontal=interrupted)]
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare("toy", out)
    assert not (out / "manifest.json").exists()
    source[1] = row("b", split="test")
    prepare("toy", out)
    prepare("toy", tmp_path / "uninterrupted")
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_overwriting_leaves_no_old_shards(tmp_path: Path, source: list[Entry]) -> None:
    source += [row("a"), row("b")]
    prepare("toy", tmp_path / "out", num_shards=2)
    prepare("toy", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iu-xray", {}, "unknown source 'iu-xray': expected one of iu_xray, phantom"),
        ("iu_xray", {}, "iu_xray: missing a required argument: 'source'; its options are source"),
        ("toy", {"seed": 1}, "toy: got an unexpected keyword argument 'seed'; its options are factor"),
        ("toy", {"shorter_side": 0}, "shorter_side is 0, expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, source: list[Entry], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["prepare.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_script_prepares_and_prints_the_summary(
    tmp_path: Path, source: list[Entry], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source += [row("a", text=["one two three"]), row("b", text=["one"])]
    assert run_script(monkeypatch, "toy", "--output", tmp_path / "out", "--shorter-side", 4, "--min-words", 2) == 0
    assert capsys.readouterr().out.splitlines() == [
        "split  rows  frontal  lateral  texts  rejected",
        "train     2        2        0      1         0",
        "rejected rows: 0",
        "dropped cells: 1 (1 text: text too short)",
    ]
    image = datasets.Dataset.from_parquet(str(tmp_path / "out" / "*.parquet"), cache_dir=str(tmp_path))[0]["frontal"]
    assert image.size == (4, 4)


def test_the_script_ends_an_error_in_one_line_and_status_2(
    tmp_path: Path, source: list[Entry], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    assert run_script(monkeypatch, "iu_xray", "--source", absent, "--output", out) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: source folder {absent} does not exist: pass the unpacked IU X-ray folder"
    ]
    source.append(row("a", frontal=absent))
    assert run_script(monkeypatch, "toy", "--output", out) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no row could be used, see rejected.jsonl")
