"""The split of each row of a folder: stratified, fixed by a file, or none."""

from collections import Counter
from pathlib import Path

import pytest

from m3ae.data.prepared import Rejected
from m3ae.data.sources._splits import Unsplit, fix_splits, split_rows


def unsplit(number: int, group: str | None = None, *labels: str, split: str | None = None) -> Unsplit:
    row = {"id": f"row {number}", "split": split, "image": Path(f"images/{number}.png")}
    return Unsplit(row, group, group or row["id"], labels)


def test_stratified_splits_hold_their_share_of_each_label_and_whole_groups() -> None:
    labels = [("rare", "common") if group % 5 == 0 else ("common",) for group in range(100)]
    rows = [unsplit(2 * group + copy, f"{group}", *labels[group]) for group in range(100) for copy in range(2)]
    splits = [row["split"] for row in split_rows(Path("mine"), rows, "stratified") if isinstance(row, dict)]
    assert splits[::2] == splits[1::2]
    assert Counter(splits) == {"train": 160, "validation": 20, "test": 20}
    assert Counter(split for row, split in zip(rows, splits, strict=True) if "rare" in row.labels) == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


def test_rows_keep_their_split_and_few_labels_leave_the_hash(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [unsplit(number, None, "label") for number in range(9)] + [unsplit(9, None, "label", split="test")]
    [*split_rows(Path("mine"), [unsplit(0)], "stratified")]
    assert "mine: no row has a label to stratify by" in capsys.readouterr().err
    stratified, hashed = ([*split_rows(Path("mine"), rows, method)] for method in ("stratified", "hash"))
    assert stratified == hashed and stratified[-1] == {**rows[-1].row, "split": "test"}


def test_a_label_without_row_for_testing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [unsplit(number, "one group", "fracture") for number in range(10)]
    rows += [unsplit(number, f"{number}", "normal", *["rare"] * (number < 13)) for number in range(10, 100)]
    finished = [*split_rows(Path("mine"), rows, "hash")]
    assert {row["split"] for row in finished[:10]} == {"train"} and "test" in {row["split"] for row in finished}
    advice = "1 of 3 labels have no row for testing, such as fracture: --split stratified gives each split its share"
    assert advice in capsys.readouterr().err.splitlines(), "three rows of a label are too few to be shared out"
    assert [*split_rows(Path("mine"), rows, "stratified")]
    assert "--split stratified" not in capsys.readouterr().err


def test_new_data_have_no_splits_and_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [unsplit(0), Rejected("x", "reason"), unsplit(1, split="train")]
    first, rejected, last = split_rows(Path("mine"), rows, "none")
    assert (first["split"], rejected, last["split"]) == ("test", rows[1], "test")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "records",
    [
        [{"file": "0.png", "set": "Train"}, {"file": "1.png", "set": "val"}],
        [{"n": 1, "id": "row 0", "set": "train"}, {"n": 0, "id": "row 1", "set": "validation"}],
        [{"set": "train", "patient": "a"}, {"set": "dev", "patient": "b"}],
    ],
)
def test_a_file_fixes_the_splits_by_id_image_or_group(records: list[dict[str, str]]) -> None:
    rows = [unsplit(0, "a"), Rejected("x", "reason"), unsplit(1, "b"), unsplit(2, "c")]
    first, rejected, second, third = fix_splits(rows, records, Path("splits.csv"))
    assert (first.row["split"], second.row["split"], rejected) == ("train", "validation", rows[1])
    assert third == Rejected("row 2", "not in the file of splits", detail="splits.csv")
    with pytest.raises(ValueError, match=r"s\.csv: no column has train, validation or test in every row; it has a"):
        fix_splits(rows, [{"a": "train"}, {"a": "fold 1"}], Path("s.csv"))
    with pytest.raises(ValueError, match=r"s\.csv: no column has the id, the image or the group of a row, such as"):
        fix_splits(rows, [{"a": "train", "b": "9"}], Path("s.csv"))
