"""MELINDA (Wu et al., AAAI 2021): figures of molecular-biology articles, labelled with the method of the experiment.

Layout: `{train,dev,test}.csv` with figure_file, caption, i_meth, p_meth, i_meth_label and p_meth_label, and the images
in `melinda_images/`. Two methods are labelled in fine and in coarse classes: how an interaction was detected (`i_meth`
has 85 classes, `i_meth_label` 15) and how its participants were identified (`p_meth` 45, `p_meth_label` 7).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3ae.data.prepared import Rejected
from m3ae.data.sources._common import IMAGE, STRING, STRINGS, features, read_records, split_tables

LABELS = ("i_meth", "p_meth", "i_meth_label", "p_meth_label")

FEATURES = features(image=IMAGE, text=STRINGS, **dict.fromkeys(LABELS, STRING))


def rows(source: Path) -> Iterator[dict[str, Any] | Rejected]:
    """Yield one row per record, called by its figure; further records of a figure are called `name-2`, `name-3`, ….

    Splits are as published. An empty label is null.

    Args:
        source: the folder with the CSV files and `melinda_images`.
    """
    seen: Counter[str] = Counter()
    for path, split in split_tables(source, ".csv", "the MELINDA folder with its CSV files").items():
        rejected: list[Rejected] = []
        records = read_records(path, ("figure_file", "caption", *LABELS), split, rejected)
        yield from rejected
        for record in records:
            figure = record["figure_file"]
            seen[figure] += 1
            yield {
                "id": figure if seen[figure] == 1 else f"{figure}-{seen[figure]}",
                "split": split,
                "image": source / "melinda_images" / figure,
                "text": [record["caption"]],
                **{label: record[label].strip() or None for label in LABELS},
            }
