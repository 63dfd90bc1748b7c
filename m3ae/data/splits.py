"""Split names as sources spell them, and splits for data that come without."""

import hashlib
import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "tuning": "validation",
    "test": "test",
    "testing": "test",
}


def find_split(name: str) -> str | None:
    """Return train, validation or test for the name of a split however it is written: `Val`, `test set`."""
    letters = "".join(letter for letter in name.casefold() if letter.isalnum())
    return SPLIT_NAMES.get(letters) or SPLIT_NAMES.get(re.sub("(set|split|data)$", "", letters))


def hash_split(key: str) -> str:
    """Choose train, validation or test with odds 8:1:1, the same for a key on every machine and in every subset.

    Args:
        key: what must not be torn apart: a study, an article, a patient.
    """
    bucket = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")
