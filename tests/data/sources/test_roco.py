"""The ROCO reader on generated folders in both published layouts, and on the real text files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.sources import roco
from tests.data.folder import jpeg

CAPTION = "ROCO_00001\t Axial CT, a lung.\n"
LINK = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/8d/34/{}.tar.gz -P /path/to/Dir"
DLINK = f"ROCO_00001\t{LINK.format('PMC11')}\tcro-01-g01.jpg\n"
FILES = {
    "captions.txt": CAPTION,
    "dlinks.txt": DLINK,
    "cuis.txt": "ROCO_00001\t\tC0040405\tC0817096\n",
    "keywords.txt": "ROCO_00001\t\taxial\tlung\n",
    "semtypes.txt": "ROCO_00001\t\tT060\tDiagnostic Procedure\tT033\tFinding\n",
    "licences.txt": "ROCO_ID,PMC_ID,CC\nROCO_00001,PMC11_cro-01-g01.jpg,CC BY\n",
}
REFERENCE = {"roco_image_id": "PMC11_cro-01-g01.jpg", "gorc_references": ["See Fig. 1.", "And once more here."]}


def make_group(folder: Path, images: tuple[str, ...] = ("ROCO_00001.jpg",), **files: str | None) -> Path:
    """Write the files of one group in one split; `dlinks=…` replaces those lines, None leaves the file out."""
    (folder / "images").mkdir(parents=True)
    contents: dict[str, str | None] = FILES | {f"{name}.txt": content for name, content in files.items()}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content, encoding="utf-8", newline="")
    for name in images:
        (folder / "images" / name).write_bytes(jpeg(7))
    return folder


def read(source: Path, **options: Any) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in roco.rows(source, **options) if isinstance(entry, dict)}


@pytest.mark.parametrize(
    ("place", "split"), [("data/validation", "validation"), ("val", "validation"), ("train", "train")]
)
def test_a_figure_of_the_repository_becomes_a_row(tmp_path: Path, place: str, split: str) -> None:
    folder = make_group(tmp_path / place / "radiology")
    assert list(roco.rows(tmp_path)) == [
        {
            "id": "ROCO_00001",
            "split": split,
            "group": "radiology",
            "article": "PMC11",
            "figure": "PMC11_cro-01-g01.jpg",
            "image": folder / "images" / "ROCO_00001.jpg",
            "text": [" Axial CT, a lung."],
            "labels": ["C0040405", "C0817096"],
            "keywords": ["axial", "lung"],
            "semantic_types": ["Diagnostic Procedure", "Finding"],
        }
    ]


def test_images_may_have_the_name_of_the_figure(tmp_path: Path) -> None:
    folder = make_group(tmp_path / "data" / "train" / "radiology", images=("PMC11_cro-01-g01.jpg",))
    assert read(tmp_path)["ROCO_00001"]["image"] == folder / "images" / "PMC11_cro-01-g01.jpg"


def test_what_some_files_leave_out_is_null(tmp_path: Path) -> None:
    make_group(
        tmp_path / "data" / "test" / "radiology",
        captions=CAPTION + 'ROCO_2\t "A" with\ttabs\nROCO_3\nROCO_4\t \n',
        cuis="ROCO_2\t\nROCO_3\t\t\nROCO_5\t\tC1\tC1\nROCO_5\t\tC2\n",
        keywords="ROCO_6\t\tmri\n",
        semtypes=None,
        dlinks=DLINK + f"ROCO_3\t{LINK.format('PMC3')}\tg.jpg\r\nROCO_7\t{LINK.format('PMC7')}\tg.jpg\n",
    )
    found = [(row["id"], row["text"], row["labels"], row["article"]) for row in read(tmp_path).values()]
    assert found == [
        ("ROCO_00001", [" Axial CT, a lung."], None, "PMC11"),
        ("ROCO_2", [' "A" with tabs'], [], None),
        ("ROCO_3", [""], [], "PMC3"),
        ("ROCO_4", [" "], None, None),
        ("ROCO_7", None, None, "PMC7"),
        ("ROCO_5", None, ["C1", "C2"], None),
        ("ROCO_6", None, None, None),
    ]
    assert all(row["semantic_types"] is None for row in read(tmp_path).values())


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    make_group(
        tmp_path / "data" / "train" / "radiology",
        images=("ROCO_00001.jpg", "ROCO_2.jpg", "ROCO_3.jpg"),
        captions=CAPTION
        + "ROCO_2\t Mirror image\ncut off above\nROCO_2\t The id once more\n\nROCO_4\t No such image here\n",
        cuis="ROCO_2\tC1\nC2\n",
        dlinks=DLINK + f"{DLINK[:-5]}-b.jpg\nROCO_2\twget\tx.jpg\nROCO_3\t{LINK.format('PMC3')}\tx.jpg\n",
    )
    manifest = prepare("roco", tmp_path / "out", source=tmp_path, num_workers=1)
    assert (tmp_path / "out" / "train.ids.txt").read_text().split() == ["ROCO_00001", "ROCO_2", "ROCO_3"]
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = [(entry["id"], entry["column"], entry["reason"]) for entry in map(json.loads, lines)]
    assert rejected == [
        ("ROCO_2", "figure", "article missing"),
        ("ROCO_00001", "figure", "second figure of an id"),
        ("train/radiology/cuis.txt, line 2", "labels", "id missing"),
        ("train/radiology/captions.txt, line 3", None, "id missing"),
        ("ROCO_2", None, "duplicate id"),
        ("ROCO_2", "text", "text too short"),
        ("ROCO_4", None, "image missing"),
    ]
    assert sum(manifest.rejected.values()) == 3


def make_kaggle(folder: Path, table: str, files: bool = True) -> Path:
    """Write the training split of the copy on Kaggle, where tables name the images."""
    (folder / "all_data" / "train").mkdir(parents=True)
    (folder / "all_data" / "train" / "radiologytraindata.csv").write_text("id,name,caption\n" + table)
    texts = {} if files else dict.fromkeys(("captions", "dlinks", "cuis", "keywords", "semtypes"))
    return make_group(folder / "all_data" / "train" / "radiology", images=("PMC11_cro-01-g01.jpg",), **texts)


@pytest.mark.parametrize("files", [True, False])
def test_a_figure_of_kaggles_copy_becomes_a_row(tmp_path: Path, files: bool) -> None:
    folder = make_kaggle(tmp_path, 'ROCO_00001,PMC11_cro-01-g01.jpg," Axial CT, a lung."\n', files)
    (row,) = roco.rows(tmp_path)
    assert (row["split"], row["article"], row["text"]) == ("train", "PMC11", [" Axial CT, a lung."])
    assert row["image"] == folder / "images" / "PMC11_cro-01-g01.jpg"
    assert row["labels"] == (["C0040405", "C0817096"] if files else None)


def test_odd_rows_of_kaggles_tables_are_kept_or_listed(tmp_path: Path) -> None:
    folder = make_kaggle(
        tmp_path,
        "ROCO_1,PMC1_g.jpg,Axial CT of a lung\nROCO_2,,Nobody knows the image\n,PMC4_g.jpg,x\n"
        "ROCO_5,PMC5_g.jpg,one, two\nROCO_6,../../../../../x.jpg,Far away indeed\n",
        files=False,
    )
    lines = (
        'ROCO_1,PMC1_g.jpg,"Axial CT\n of a lung\n"\nROCO_2,,x\nROCO_7,PMC7_g.jpg,Only here\nROCO_7,PMC8_g.jpg,Again\n'
    )
    (folder / "traindata.csv").write_text("id,name,caption\n" + lines)
    (folder / "images" / "PMC1_g.jpg").write_bytes(jpeg(7))
    manifest = prepare("roco", tmp_path / "out", source=tmp_path, num_workers=1)
    assert (tmp_path / "out" / "train.ids.txt").read_text() == "ROCO_1\n"
    entries = list(map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()))
    details = [(entry["detail"] or "").rpartition("/")[2].partition(":")[0] for entry in entries]
    assert [(entry["id"], entry["reason"], detail) for entry, detail in zip(entries, details, strict=True)] == [
        ("radiologytraindata.csv, row 3", "id missing", ""),
        ("ROCO_5", "more cells than columns", ""),
        ("ROCO_7", "second figure of an id", "PMC8_g.jpg"),
        ("ROCO_2", "second caption of an id", "Nobody knows the image"),
        ("ROCO_7", "duplicate id", ""),
        ("ROCO_2", "image missing", "ROCO_2.jpg"),
        ("ROCO_7", "image missing", "PMC7_g.jpg"),
        ("ROCO_6", "path leaves the source folder", "x.jpg"),
    ]
    assert sum(manifest.rejected.values()) == 6


def test_groups_are_folders(tmp_path: Path) -> None:
    make_group(tmp_path / "data" / "train" / "radiology")
    make_group(tmp_path / "data" / "train" / "non-radiology", captions="ROCO_8\t Skin.\n", dlinks=None, cuis=None)
    files = {"keywords": None, "semtypes": None}
    make_group(
        tmp_path / "data" / "test" / "non-radiology", captions="ROCO_9\t Skin.\n", dlinks=None, cuis=None, **files
    )
    assert list(read(tmp_path)) == ["ROCO_00001"]
    assert {name: row["group"] for name, row in read(tmp_path, group="both").items()} == {
        "ROCO_00001": "non-radiology",
        "ROCO_8": "non-radiology",
        "ROCO_9": "non-radiology",
    }
    assert list(read(tmp_path, group="non-radiology")) == ["ROCO_8", "ROCO_00001", "ROCO_9"]


def test_an_article_is_in_one_split_if_that_is_asked_for(tmp_path: Path) -> None:
    numbers = range(10, 310)
    for start, split in enumerate(("train", "validation", "test")):
        own = [number for number in numbers if number % 3 == start]
        captions = "".join(f"ROCO_{number}\t A plain text.\n" for number in own)
        dlinks = "".join(f"ROCO_{number}\t{LINK.format(f'PMC{number // 5}')}\tg{number}.jpg\n" for number in own)
        files = dict.fromkeys(("cuis", "keywords", "semtypes"))
        make_group(tmp_path / "data" / split / "radiology", captions=captions, dlinks=dlinks, **files)
    splits: dict[str, set[str]] = {}
    for row in read(tmp_path, split_by="article").values():
        splits.setdefault(row["article"], set()).add(row["split"])
    assert len(splits) == 60
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split for (split,) in splits.values()) == {"train": 47, "test": 7, "validation": 6}
    assert {row["split"] for row in read(tmp_path).values() if row["article"] == "PMC10"} > {"train", "test"}


def test_a_figure_of_an_unknown_article_cannot_be_split_by_article(tmp_path: Path) -> None:
    make_group(tmp_path / "data" / "train" / "radiology", dlinks=None)
    assert read(tmp_path)["ROCO_00001"]["article"] is None
    assert list(roco.rows(tmp_path, split_by="article")) == [Rejected("ROCO_00001", "article missing", "train")]


def test_references_become_further_texts(tmp_path: Path) -> None:
    make_group(tmp_path / "data" / "train" / "radiology", captions=CAPTION + "ROCO_2\t No references.\n")
    file = tmp_path / "medicat" / "roco_files" / "roco_train_references.jsonl"
    file.parent.mkdir(parents=True)
    null = REFERENCE | {"gorc_references": None}
    lines = [REFERENCE, null, REFERENCE | {"roco_image_id": "PMC99_g.jpg"}, {"gorc_references": []}, 7]
    lines += [REFERENCE | {"gorc_references": [{"text": "See Fig. 1."}]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for references in (file, tmp_path / "medicat"):
        rows = read(tmp_path, references=references)
        assert rows["ROCO_00001"]["text"] == [" Axial CT, a lung.", "See Fig. 1.", "And once more here."]
        assert rows["ROCO_2"]["text"] == [" No references."]
    assert [entry for entry in roco.rows(tmp_path, references=file) if isinstance(entry, Rejected)] == [
        Rejected("roco_train_references.jsonl, line 4", "id missing", column="text"),
        Rejected("roco_train_references.jsonl, line 5", "not a JSON object", column="text"),
        Rejected(REFERENCE["roco_image_id"], "object in a cell", column="text"),
        Rejected("PMC99_g.jpg", "figure of the references missing", column="text"),
    ]


def test_a_folder_in_another_layout_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: expected the ROCO repository or its copy on"):
        list(roco.rows(tmp_path / "nowhere"))
    (tmp_path / "data" / "train" / "radiology").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"radiology holds neither captions.txt nor a table such as traindata.csv"
    ):
        list(roco.rows(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="no folder non-radiology of a split: expected data/train/non-radiology"
    ):
        list(roco.rows(tmp_path, group="non-radiology"))
    with pytest.raises(
        FileNotFoundError, match=r"medicat is neither a file nor a folder with roco_\*_references.jsonl"
    ):
        list(roco.rows(tmp_path, references=tmp_path / "medicat"))


@pytest.mark.real_data
def test_the_real_text_without_images_ends_among_the_rejected(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "roco_text"
    manifest = prepare("roco", tmp_path / "out", source=source, num_workers=1)
    assert (manifest.rejected, manifest.dropped) == ({"image missing": 800}, {})
    counts = {split: (info.rows, info.rejected) for split, info in manifest.splits.items()}
    assert counts == {"validation": (0, 400), "test": (0, 400)}
    rows = read(source)
    assert all(row["article"] and row["text"] and row["keywords"] is not None for row in rows.values())
    assert sum(not row["labels"] for row in rows.values()) == 11, "lines without a concept"
    assert not any(label.startswith("T0") for row in rows.values() for label in row["semantic_types"])
    assert len(shared_articles(rows)) == 5
    assert shared_articles(read(source, split_by="article")) == set()


def shared_articles(rows: dict[str, dict[str, Any]]) -> set[str]:
    """Return the articles with figures in several splits."""
    splits = {(row["article"], row["split"]) for row in rows.values()}
    return {article for article, count in Counter(article for article, _ in splits).items() if count > 1}
