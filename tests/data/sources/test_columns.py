"""Which column of a table is what, and which file a name means."""

from pathlib import Path

import pytest

from m3ae.data.sources._columns import ImageFiles, ImageTree, Table, choose_columns, strings
from m3ae.data.tables import Broken, is_nested

ROLES = ("image", "text", "label", "id", "split", "group")


def choose(cells: dict[str, object], **wanted: str) -> dict[str, str]:
    table = Table(Path("t.csv"), "t.csv", None, [Broken("key repeated", None, {}), cells])
    chosen = choose_columns(table, {role: wanted.get(role) for role in ROLES}, [ImageFiles(Path("absent"))], False)
    return {role: column for role, (column,) in chosen.items()}


@pytest.mark.parametrize(
    ("columns", "group"),
    [
        (("study_id", "Patient ID"), "Patient ID"),  # the patient goes before the study
        (("Subject", "subject"), "subject"),
        (("case", "patient_age", "concept_id"), None),
    ],
)
def test_names_of_columns_are_compared_by_their_letters(columns: tuple[str, ...], group: str | None) -> None:
    assert choose({"text": "a"} | dict.fromkeys(columns, "1")).get("group") == group


def test_a_column_may_be_named_in_another_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    cells: dict[str, object] = {"Image Index": "", "Finding": "a", "finding": "b", "": "c", "fold": "3"}
    assert choose(cells, text="FINDING", image="image_index") == {"image": "Image Index", "text": "finding"}
    assert capsys.readouterr().err.splitlines() == [
        "t.csv: image from 'Image Index', text from 'finding'",
        "t.csv: not used: 'Finding', '', 'fold'",
        "t.csv: 'fold' names no split, and was not used as one",
    ]


def test_columns_beside_images_alone_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    choose({"image": "a.png", "finding": "normal"})
    advice = "--label-column, --text-column or --number-column takes one beside the images"
    assert capsys.readouterr().err.splitlines()[1] == f"t.csv: not used: 'finding'; {advice}"


def test_values_are_strings_or_nothing() -> None:
    cells = ("NA", " None ", "", None, float("nan"), 0, 7.5, ["a", None, 3])
    assert [strings(cell) for cell in cells] == [["NA"], ["None"], [], [], [], ["0"], ["7.5"], ["a", "3"]]
    assert [is_nested(cell) for cell in ("a", ["a"], {}, [{}], [["a"]])] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("name", "here", "anywhere"),
    [
        ("a.png", "a.png", "a.png"),
        ("./a.png", "./a.png", "a.png"),
        ("A", "a.png", "a.png"),
        ("b\\1.2.dcm", "b/1.2.dcm", "b/1.2.dcm"),
        ("b/1.2", "b/1.2.dcm", "b/1.2.dcm"),
        ("elsewhere/1.2", None, "b/1.2.dcm"),
        ("b/notes", None, None),  # only images have names without their suffix
        ("c", None, None),  # two files
        ("c.jpg", "c.jpg", "c.jpg"),
        *((name, None, None) for name in ("", "/", "..", "b", "a\0b", "x" * 999, "\udcff")),
    ],
)
def test_files_are_found_by_what_matters_of_their_names(
    tmp_path: Path, name: str, here: str | None, anywhere: str | None
) -> None:
    files = [tmp_path / file for file in ("a.png", "b/1.2.dcm", "b/notes.txt", "c.png", "c.jpg")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert (ImageFiles(tmp_path).find(name), ImageTree(tmp_path, files).find(name)) == (here, anywhere)
