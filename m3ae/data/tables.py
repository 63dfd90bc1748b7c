"""Tables of a source: CSV and JSON files read whole, with messages that say which file lacks what.

Bytes that are not UTF-8 survive as lone surrogates, so that one bad cell costs one row: `m3ae.data.prepare` rejects
rows that hold any.
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")


def require_folder(folder: Path, what: str) -> Path:
    """Return `folder`.

    Args:
        folder: The folder that is needed.
        what: What it should be, for the message: "the unpacked IU X-ray folder".

    Raises:
        FileNotFoundError: It does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: expected {what}")
    return folder


def read_csv(
    path: Path, columns: Iterable[str], *, delimiter: str = ",", names: Sequence[str] | None = None
) -> list[dict[str, str]]:
    r"""Read a table with a header; cells that a short line lacks are empty.

    Args:
        path: A `.csv` or `.csv.gz` file; if it is missing, its gzipped or plain twin is read.
        columns: Columns that must be there.
        delimiter: Between cells.
        names: Column names of a file without a header.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, damaged, not UTF-8 but UTF-16, or lacks a column.
    """
    path = plain_or_gzipped(path)
    with _open(path) as file:
        reader = csv.DictReader((line.replace("\0", "") for line in file), names, delimiter=delimiter, restval="")
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if reader.fieldnames is not None and missing:  # [] where the first line is blank
            there = ", ".join(reader.fieldnames) or "none in its first line"
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}: it has {there}")
        records = list(reader)
    if not records:
        raise ValueError(f"{path} is empty: expected {'' if names else 'a header and '}at least one row")
    return records


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON.
    """
    path = plain_or_gzipped(path)
    with _open(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the number (from 1) of every line that is not blank and its record, or None where it is no JSON object.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = plain_or_gzipped(path)
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse_object(line)


def _parse_object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def plain_or_gzipped(path: Path) -> Path:
    """Return a file, or, where it is missing, its twin with or without `.gz`.

    Raises:
        FileNotFoundError: There is neither.
    """
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    for candidate in (path, twin):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing")


@contextmanager
def _open(path: Path) -> Iterator[TextIOWrapper]:
    """Open a table as text; what is wrong with the file itself becomes a ValueError that names it."""
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as binary:
            if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise ValueError(f"{path} is UTF-16: save it as UTF-8")
            binary.seek(0)
            with TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                yield text
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def printable(text: str) -> str:
    """Return a text with its lone surrogates spelt out, so that it can be written and printed."""
    return text.encode("utf-8", "backslashreplace").decode()
