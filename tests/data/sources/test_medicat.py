"""The MedICaT reader on generated folders in the published layout, and on the real sample."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.sources import medicat
from tests.data.folder import jpeg

RECORD = {
    "pdf_hash": "abc",
    "fig_key": "Figure1",
    "fig_uri": "3-Figure1-1.png",
    "s2_caption": "Figure 1. CT of the chest.",
    "s2orc_caption": None,
    "s2orc_references": ["A nodule is seen (Fig. 1)."],
    "radiology": True,
    "scope": False,
    "predicted_type": "Medical images",
    "oa_info": {"doi": "10.1/2"},
}


def figure(number: int, **fields: Any) -> dict[str, Any]:
    return RECORD | {"fig_uri": f"{number}-Figure{number}-1.png"} | fields


def make_source(folder: Path, *lines: dict[str, Any] | str, table: str = f"release/{medicat.TABLES[0]}") -> Path:
    """Write a table, given as records or as raw lines, and an image for every record."""
    path = folder / table
    (path.parent / "figures").mkdir(parents=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    for line in lines:
        if isinstance(line, dict) and "fig_uri" in line:
            (path.parent / "figures" / f"{line['pdf_hash']}_{line['fig_uri']}").write_bytes(jpeg(7))
    return folder


@pytest.mark.parametrize("table", [f"release/{medicat.TABLES[0]}", medicat.TABLES[0], "sample.jsonl"])
def test_a_figure_becomes_a_row(tmp_path: Path, table: str) -> None:
    source = make_source(tmp_path / "medicat", RECORD, table=table)
    assert list(medicat.rows(source)) == [
        {
            "id": "abc_3-Figure1-1.png",
            "split": "train",
            "article": "abc",
            "image": (source / table).parent / "figures" / "abc_3-Figure1-1.png",
            "text": ["Figure 1. CT of the chest.", "A nodule is seen (Fig. 1)."],
        }
    ]


def test_null_and_empty_texts_leave_the_rest(tmp_path: Path) -> None:
    source = make_source(
        tmp_path / "medicat",
        figure(1, s2orc_references=None),
        figure(2, s2_caption=None, s2orc_references=["One two three.", None]),
        figure(3, s2_caption="", s2orc_references=[]),
        {key: RECORD[key] for key in ("pdf_hash", "fig_uri", "radiology")},
    )
    assert [row["text"] for row in medicat.rows(source)] == [[RECORD["s2_caption"]], ["One two three."], [""], []]


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    source = make_source(
        tmp_path / "medicat",
        figure(1, s2_caption="Mirror image", s2orc_references=["See the arrow (Fig. 1)", "(Fig. 2)"]),
        '{"pdf_hash": "abc", "fig_uri":',
        "[1, 2]",
        "",
        figure(2, radiology=False),
        {"radiology": True, "s2_caption": "Whose figure is this?"},
        figure(1),
        figure(4),
        figure(5, s2_caption={"text": "An object is no text"}),
        json.dumps(figure(6)).replace("{", '{"s2_caption": "Another one", ', 1),
    )
    (source / "release" / "figures" / "abc_4-Figure4-1.png").unlink()
    manifest = prepare("medicat", tmp_path / "out", source=source, num_workers=1)
    assert (tmp_path / "out" / "train.ids.txt").read_text() == "abc_1-Figure1-1.png\n"
    assert manifest.rejected == {
        "not a JSON object": 2,
        "not radiology": 1,
        "id missing": 1,
        "duplicate id": 1,
        "image missing": 1,
        "object in a cell": 1,
        "key repeated": 1,
    }
    assert manifest.dropped == {"text: text too short": 2}
    broken = [entry.id for entry in medicat.rows(source) if isinstance(entry, Rejected)]
    lines = [f"{medicat.TABLES[0]}, line {number}" for number in (2, 3, 6, 10)]
    assert broken == [*lines[:2], "abc_2-Figure2-1.png", lines[2], "abc_5-Figure5-1.png", lines[3]]


def test_the_published_splits_are_the_last_of_pythons_shuffle_with_seed_42() -> None:
    random.seed(42)
    indices = list(range(12_000))
    random.shuffle(indices)
    splits = medicat.published_splits(12_000)
    assert {i for i, split in enumerate(splits) if split == "validation"} == set(indices[-2000:-1000])
    assert {i for i, split in enumerate(splits) if split == "test"} == set(indices[-1000:])
    assert splits.count("train") == 10_000


@pytest.mark.parametrize(("count", "held_out"), [(0, 0), (9, 0), (10, 1), (2_000, 200), (10_000, 1_000)])
def test_small_samples_hold_out_a_tenth_twice(count: int, held_out: int) -> None:
    splits = Counter(medicat.published_splits(count))
    assert (splits["train"], splits["validation"], splits["test"]) == (count - 2 * held_out, held_out, held_out)


def test_figures_that_are_not_radiology_take_no_part_in_the_shuffle(tmp_path: Path) -> None:
    radiology = [figure(number) for number in range(20)]
    others = [figure(number, radiology=None if number % 2 else False) for number in range(20, 25)]
    expected = dict(zip((f"abc_{i}-Figure{i}-1.png" for i in range(20)), medicat.published_splits(20), strict=True))
    mixed = make_source(tmp_path / "mixed", *others[:2], *radiology[:7], *others[2:], *radiology[7:])
    found = [entry for entry in medicat.rows(mixed) if isinstance(entry, dict)]
    assert {row["id"]: row["split"] for row in found} == expected
    assert len(list(medicat.rows(mixed, radiology_only=False))) == 25


def test_an_article_is_in_one_split_if_that_is_asked_for(tmp_path: Path) -> None:
    records = [figure(number, pdf_hash=f"hash{article}") for article in range(60) for number in range(3)]
    source = make_source(tmp_path / "medicat", *records)
    splits_of: dict[str, dict[str, set[str]]] = {"published": {}, "article": {}}
    for split_by, splits in splits_of.items():
        for row in medicat.rows(source, split_by=split_by):
            splits.setdefault(row["article"], set()).add(row["split"])
    assert max(map(len, splits_of["published"].values())) > 1
    assert all(len(splits) == 1 for splits in splits_of["article"].values())
    assert set.union(*splits_of["article"].values()) == {"train", "validation", "test"}


def test_a_folder_without_the_table_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: expected the MedICaT folder `release`"):
        list(medicat.rows(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"holds no s2_full_.*_public.jsonl or sample.jsonl"):
        list(medicat.rows(tmp_path))


@pytest.mark.real_data
@pytest.mark.parametrize(("radiology_only", "rows"), [(True, 6), (False, 10)])
def test_the_real_sample_is_prepared_in_full(shared: Path, tmp_path: Path, radiology_only: bool, rows: int) -> None:
    source = shared / "data" / "medicat"
    manifest = prepare("medicat", tmp_path / "out", source=source, num_workers=1, radiology_only=radiology_only)
    infos = manifest.splits.values()
    assert (sum(info.rows for info in infos), sum(info.images["image"] for info in infos)) == (rows, rows)
    assert manifest.rejected == ({"not radiology": 4} if radiology_only else {})
    assert manifest.dropped == {}
    texts = [len(row["text"]) for row in medicat.rows(source, radiology_only=False)]
    assert Counter(texts) == {1: 3, 2: 4, 3: 3}
