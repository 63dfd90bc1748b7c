"""Split names as sources spell them, and splits for data that come without."""

import hashlib

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def hash_split(key: str) -> str:
    """Choose train, validation or test with odds 8:1:1, the same for a key on every machine and in every subset.

    Args:
        key: what must not be torn apart: a study, an article, a patient.
    """
    bucket = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")
