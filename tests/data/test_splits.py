from collections import Counter

from m3ae.data.splits import hash_split


def test_hashes_split_80_10_10_and_never_change() -> None:
    counts = Counter(hash_split(str(key)) for key in range(1, 1001))
    assert abs(counts["train"] - 800) < 40 and abs(counts["validation"] - 100) < 30 and sum(counts.values()) == 1000
    assert [hash_split(key) for key in ("1", "3", "7")] == ["train", "validation", "test"], (
        "published: never to change"
    )
    assert hash_split("\udcff") in counts
