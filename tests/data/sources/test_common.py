from collections import Counter

import pytest

from m3ae.data.sources._common import find_split, hash_split


def test_hashes_split_80_10_10_and_never_change() -> None:
    counts = Counter(hash_split(str(key)) for key in range(1, 1001))
    assert abs(counts["train"] - 800) < 40 and abs(counts["validation"] - 100) < 30 and sum(counts.values()) == 1000
    assert [hash_split(key) for key in ("1", "3", "7")] == ["train", "validation", "test"], (
        "published: never to change"
    )
    assert hash_split("\udcff") in counts


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "TRAINING", " Train set", "train_split", "trainset"), "train"),
        (("val", "Valid", "dev", "validate", "dev-set", "development"), "validation"),
        (("Test", "testing", "TEST_DATA"), "test"),
        (("", "0", "fold1", "dev2", "set", "tested", "holdout"), None),
    ],
)
def test_splits_have_many_spellings(names: tuple[str, ...], split: str | None) -> None:
    assert {find_split(name) for name in names} == {split}
