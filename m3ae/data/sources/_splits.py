"""The split of each row of a folder: by its table, by a file of splits, by that of its group, else by chance."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from m3ae.data.prepared import Rejected
from m3ae.data.sources._common import find_split, hash_split
from m3ae.data.tables import printable, whole_number
from m3ae.files import digest

FOLDS = 10  # of which one is for validation and one for testing
FEW = 20  # rows, on which a share of right predictions has a standard error of ten percent
SHOWN = 8  # labels in a line

Row = dict[str, Any]
Method = Literal["hash", "stratified", "none"]


class Unsplit(NamedTuple):
    """A row whose split may be None."""

    row: Row
    group: str | None  # the patient, study or the like
    key: str  # of what must not be torn apart over splits: the group, else the image, else the row
    labels: tuple[str, ...] = ()


Entry = Unsplit | Rejected


def split_rows(source: Path, entries: Sequence[Entry], method: Method) -> Iterator[Row | Rejected]:
    """Yield the rows with their splits, and say on standard error what is doubtful about them.

    Args:
        source: The folder.
        entries: Its rows.
        method: How rows without a split get one: by a `hash` of their group, with odds 8:1:1; `stratified` by label,
            groups whole; or `none`: every row is for testing, whatever split it has.
    """
    rows = [entry for entry in entries if isinstance(entry, Unsplit)]
    splits: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.row["split"] and method != "none":
            splits[whole_number(row.key)].append(row.row["split"])
    _report_rows(rows)
    if method != "none":
        _report_groups(source, rows, splits)
    undecided = [row for row in rows if whole_number(row.key) not in splits]
    fallback = _stratify(undecided) if method == "stratified" else {}
    if method == "none":
        fallback = {row.key: "test" for row in rows}
    finished: list[Row | Rejected] = []
    for entry in entries:
        if isinstance(entry, Rejected):
            finished.append(entry)
            continue
        key = whole_number(entry.key)
        splits[key] = splits[key] or [fallback.get(entry.key) or hash_split(entry.key)]
        split = splits[key][0] if method == "none" else entry.row["split"] or splits[key][0]
        entry.row["split"] = split  # in place: rows are many
        finished.append(entry.row)
    if method == "stratified" and not any(row.labels for row in rows):
        say(f"{source}: no row has a label to stratify by: name the column of labels with --label-column")
    if method != "none":
        _report_sizes(source, Counter(row["split"] for row in finished if isinstance(row, dict)))
    if method == "hash" and undecided:
        _report_untested(rows, splits)
    yield from finished


def fix_splits(entries: Sequence[Entry], records: Sequence[Mapping[str, Any]], path: Path) -> list[Entry]:
    """Return entries with the splits that a table gives their id, image or group; entries without one are rejected.

    Raises:
        ValueError: No column of the table names splits, or none names rows.
    """
    columns = [*records[0]]
    split_column = next((c for c in columns if all(find_split(str(record.get(c))) for record in records)), None)
    if split_column is None:
        raise ValueError(f"{path}: no column has train, validation or test in every row; it has {', '.join(columns)}")
    names = [_names(entry) for entry in entries]
    every = {name for several in names for name in several}
    tables = {c: {whole_number(str(record.get(c))): record[split_column] for record in records} for c in columns}
    column = max(columns, key=lambda c: len(every & tables[c].keys()))
    if not every & tables[column].keys():
        raise ValueError(f"{path}: no column has the id, the image or the group of a row, such as {sorted(every)[:3]}")
    fixed: list[Entry] = []
    for entry, several in zip(entries, names, strict=True):
        split = next((tables[column][name] for name in several if name in tables[column]), None)
        if isinstance(entry, Rejected):
            fixed.append(entry)
        elif split is None:
            fixed.append(Rejected(entry.row["id"], "not in the file of splits", detail=path.name))
        else:
            fixed.append(entry._replace(row=entry.row | {"split": find_split(split)}))
    return fixed


def _names(entry: Entry) -> list[str]:
    """Return what a file of splits may call a row."""
    if isinstance(entry, Rejected):
        return []
    images = [cell.name for cell in entry.row.values() if isinstance(cell, Path)]
    return [whole_number(name) for name in (entry.row["id"], *images, entry.group) if name]


def _stratify(rows: Sequence[Unsplit]) -> dict[str, str]:
    """Return the split of each key, so that each split has its share of every row's rarest label.

    Labels of fewer rows than there are folds count as one. Without any other, the result is empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    counts = Counter(label for row in rows for label in row.labels)
    rarest = [min(row.labels, key=lambda label: (counts[label], label), default="") for row in rows]
    sizes = Counter(rarest)
    classes = [label if sizes[label] >= FOLDS else "" for label in rarest]
    (common, largest), *_ = Counter(classes).most_common(1) or [("", 0)]
    if 0 < classes.count("") < FOLDS:
        classes = [label or common for label in classes]
    groups = [whole_number(row.key) for row in rows]
    if largest < FOLDS or len(set(groups)) < FOLDS:
        return {}
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(classes, classes, groups)
    splits = {row.key: "train" for row in rows}
    for split, (_, members) in zip(("test", "validation"), folds, strict=False):
        splits |= {rows[number].key: split for number in members}
    return splits


def _report_rows(rows: Sequence[Unsplit]) -> None:
    """Print the labels, and the rows that equal another one."""
    counts = Counter(label for row in rows for label in row.labels)
    if counts:
        names = ", ".join(f"{count} {label}" for label, count in counts.most_common(SHOWN))
        say(f"labels: {names}{f' and {len(counts) - SHOWN} more' if len(counts) > SHOWN else ''}")
    first: dict[int, str] = {}
    repeated = []
    for row in rows:
        content = json.dumps({name: cell for name, cell in row.row.items() if name != "id"}, default=str)
        if (other := first.setdefault(digest(content.encode()), row.row["id"])) != row.row["id"]:
            repeated.append(f"{row.row['id']} and {other}")
    if repeated:
        say(f"{len(repeated)} rows equal an earlier one in all cells, such as {repeated[0]}: they are kept")


def _report_groups(source: Path, rows: Sequence[Unsplit], splits: Mapping[str, Sequence[str]]) -> None:
    """Print how many rows have no group, and which groups and images are in several splits."""
    if without := sum(row.group is None for row in rows):
        say(
            f"{source}: {without} of {len(rows)} rows name no patient, study or other group, and may tear one over "
            "several splits: name its column with --group-column if groups have several rows"
        )
    torn = {key: dict.fromkeys(several) for key, several in splits.items() if len(set(several)) > 1}
    for key, several in [*torn.items()][:1]:
        say(f"{len(torn)} groups or images are in several splits, such as {key} in {' and '.join(several)}")


def _report_sizes(source: Path, sizes: Mapping[str, int]) -> None:
    if (count := sum(sizes.values())) > 0 and sizes.get("test", 0) < FEW:
        say(
            f"{source}: {sizes.get('test', 0)} of {count} rows are for testing, too few to measure on (below {FEW}): "
            "repeat with other splits (--split-file), or collect more"
        )


def _report_untested(rows: Sequence[Unsplit], splits: Mapping[str, Sequence[str]]) -> None:
    """Print the labels that no row for testing has, though they are frequent enough to be stratified."""
    counts, tested = Counter[str](), set[str]()
    for row in rows:
        counts.update(row.labels)
        tested.update(row.labels if (row.row["split"] or splits[whole_number(row.key)][0]) == "test" else ())
    if lacking := [label for label, count in counts.most_common() if count >= FOLDS and label not in tested]:
        say(
            f"{len(lacking)} of {len(counts)} labels have no row for testing, such as {lacking[0]}: "
            "--split stratified gives each split its share"
        )


def say(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr)
