"""MedICaT (Subramanian et al., EMNLP Findings 2020): figures of articles, captions, and the sentences that cite them.

Layout: the folder `release` (or the one that holds it) with the images `figures/{pdf_hash}_{fig_uri}` and the table
`s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl`, or `sample.jsonl` of the sample in the public code.

The published M3AE takes the figures marked as radiology in the order of the table, shuffles their positions 0 … n−1 by
`random.seed(42); random.shuffle(positions)`, and lets the last 1,000 be test, the 1,000 before them validation. Only
the whole table gives the published splits.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from m3ae.data.prepared import Rejected
from m3ae.data.sources._common import IMAGE, STRING, STRINGS, cell_texts, features, hash_split
from m3ae.data.tables import Broken, is_nested, read_jsonl, require_folder

LEFT_OUT_BY_CHOICE = ("not radiology",)

FEATURES = features(article=STRING, image=IMAGE, text=STRINGS)

TABLES = ("s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl", "sample.jsonl")
TEXTS = ("s2_caption", "s2orc_references")
PUBLISHED_SEED = 42
HELD_OUT = 1000


def rows(
    source: Path, *, radiology_only: bool = True, split_by: Literal["published", "article"] = "published"
) -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per figure, whose texts are its caption and the sentences that cite it.

    Args:
        source: the folder `release`, or the one that holds it.
        radiology_only: leave out figures that are not marked as radiology, such as endoscopy or histology.
        split_by: `published` draws figures as the published M3AE does, 1,000 each for validation and test, or a tenth
            where there are fewer than 10,000; `article` keeps the figures of an article in one split, 8:1:1.
    """
    release = source / "release" if (source / "release").is_dir() else source
    require_folder(release, "the MedICaT folder `release`")
    table = next((path for name in TABLES if (path := release / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{release} holds no {' or '.join(TABLES)}")
    kept = []
    for number, record in read_jsonl(table):
        entry = _row(f"{table.name}, line {number}", record, release / "figures", radiology_only)
        if isinstance(entry, Rejected):
            yield entry
        else:
            kept.append(entry)
    published = published_splits(len(kept))
    for row, split in zip(kept, published, strict=True):
        yield row | {"split": split if split_by == "published" else hash_split(row["article"])}


def published_splits(count: int) -> list[str]:
    """Return the split of each of `count` figures, as the published M3AE draws them (see the top of the module)."""
    positions = list(range(count))
    random.Random(PUBLISHED_SEED).shuffle(positions)
    held_out = min(HELD_OUT, count // 10)
    splits = ["train"] * count
    for position in positions[count - held_out :]:
        splits[position] = "test"
    for position in positions[count - 2 * held_out : count - held_out]:
        splits[position] = "validation"
    return splits


def _row(line: str, record: dict[str, Any] | Broken, figures: Path, radiology_only: bool) -> dict[str, Any] | Rejected:
    if isinstance(record, Broken):
        return Rejected(line, record.reason, detail=record.detail)
    if not all(isinstance(record.get(key), str) for key in ("pdf_hash", "fig_uri")):
        return Rejected(line, "id missing", detail="pdf_hash and fig_uri make up the name of the image")
    name = f"{record['pdf_hash']}_{record['fig_uri']}"
    if nested := [key for key in TEXTS if is_nested(record.get(key))]:
        return Rejected(name, "object in a cell", detail=", ".join(nested))
    if radiology_only and record.get("radiology") is not True:
        return Rejected(name, "not radiology")
    return {
        "id": name,
        "article": record["pdf_hash"],
        "image": figures / name,
        "text": cell_texts(*map(record.get, TEXTS)),
    }
