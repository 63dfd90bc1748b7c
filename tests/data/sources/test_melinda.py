"""The MELINDA reader on generated folders in the published layout."""

from pathlib import Path

import pytest

from m3ae.data.prepare import prepare
from m3ae.data.prepared import Rejected
from m3ae.data.sources import melinda
from tests.data.folder import jpeg

HEADER = "figure_file,caption,i_meth,p_meth,i_meth_label,p_meth_label\n"
LINE = 'F1_A.jpg,"Blot of A, and B.",pull down,western blot,affinity,immunoassay\n'


def make_source(folder: Path, **tables: str) -> Path:
    (folder / "melinda_images").mkdir(parents=True)
    for split, lines in tables.items():
        (folder / f"{split}.csv").write_text(HEADER + lines)
    (folder / "melinda_images" / "F1_A.jpg").write_bytes(jpeg(7))
    return folder


def test_a_record_becomes_a_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "melinda", dev=LINE)
    assert list(melinda.rows(source)) == [
        {
            "id": "F1_A.jpg",
            "split": "validation",
            "image": source / "melinda_images" / "F1_A.jpg",
            "text": ["Blot of A, and B."],
            "i_meth": "pull down",
            "p_meth": "western blot",
            "i_meth_label": "affinity",
            "p_meth_label": "immunoassay",
        }
    ]


def test_further_records_of_a_figure_are_rows_of_their_own_in_any_split(tmp_path: Path) -> None:
    source = make_source(tmp_path / "melinda", train=LINE + LINE.replace("pull down", " "), dev=LINE, test=LINE)
    found = [(row["id"], row["split"], row["i_meth"]) for row in melinda.rows(source)]
    assert found == [
        ("F1_A.jpg", "train", "pull down"),
        ("F1_A.jpg-2", "train", None),
        ("F1_A.jpg-3", "validation", "pull down"),
        ("F1_A.jpg-4", "test", "pull down"),
    ]


def test_every_broken_row_is_listed(tmp_path: Path) -> None:
    lines = "F2.jpg,No such image,a,b,c,d\n,No figure,a,b,c,d\nF3.jpg,a,caption,a,b,c,d\nF1_A.jpg,Two words,a,b,c,d\n"
    source = make_source(tmp_path / "melinda", train=LINE + lines)
    manifest = prepare("melinda", tmp_path / "out", source=source, num_workers=1)
    assert (tmp_path / "out" / "train.ids.txt").read_text().split() == ["F1_A.jpg", "F1_A.jpg-2"]
    assert manifest.rejected == {"id missing": 1, "more cells than columns": 1, "image missing": 1}
    assert manifest.dropped == {"text: text too short": 1}
    assert Rejected("F3.jpg", "more cells than columns", "train") in melinda.rows(source)


def test_a_folder_in_another_format_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no train.csv and no such table of another split: expected the"
    ):
        list(melinda.rows(tmp_path))
    (tmp_path / "train.csv").write_text("figure_file,caption,i_meth,p_meth\nx,y,a,b\n")
    with pytest.raises(
        ValueError, match=r"train.csv lacks the columns i_meth_label, p_meth_label: it has figure_file,"
    ):
        list(melinda.rows(tmp_path))
