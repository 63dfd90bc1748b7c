"""Tables of a source: CSV, JSON and Excel files, with messages that say which file lacks what.

A line that is no record is `Broken` and costs no other line. Bytes that are not UTF-8 survive as lone surrogates, so
that one bad cell costs one row, too: `m3ae.data.prepare` rejects rows that hold any.
"""

import codecs
import csv
import gzip
import json
import os
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

EXCEL = (".xlsx", ".xlsm")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", *EXCEL)
DELIMITERS = ",;\t|"
HIDDEN = (".", "~$")  # how files start that systems put beside others: `._table.csv` of macOS, `~$table.csv` of Excel


class Broken(NamedTuple):
    """A line of a table that is no record."""

    reason: str  # a short fixed phrase; equal reasons are counted together
    detail: str | None  # the number of the line and its start, where the reason needs more words
    cells: dict[str, str]  # the readable ones, by column


class RepeatedKeyError(ValueError):
    """A JSON object has two values for one key."""


def require_folder(folder: Path, what: str) -> Path:
    """Return a folder, or raise FileNotFoundError that says `what` it should be: "the unpacked IU X-ray folder"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: expected {what}")
    return folder


def visible_files(folder: Path) -> list[Path]:
    """Return all files below a folder, in order, but not those of systems, whose name or folder starts with a dot.

    Raises:
        PermissionError: A folder below cannot be read, whose files would be missing.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that does not exist has no files
            raise error

    paths = []
    for above, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        paths += [os.path.join(above, name) for name in names if not name.startswith(HIDDEN)]
    return [*map(Path, sorted(paths, key=lambda path: path.replace(os.sep, "\0")))]  # as paths are sorted, but faster


def read_csv(
    path: Path, columns: Iterable[str] = (), delimiter: str | None = None, encoding: str | None = None
) -> list[dict[str, str] | Broken]:
    """Read a table with a header.

    Cells that a short line lacks are empty; empty cells behind the last column are dropped.

    Args:
        path: A `.csv` or `.csv.gz` file; if it is missing, its gzipped or plain twin is read.
        columns: Columns that must be present.
        delimiter: What separates cells; by default what cuts the header into most columns.
        encoding: Encoding by Python's name; by default UTF-8, UTF-16 or Windows-1252, as the bytes say.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is empty or damaged, lacks a column, or has two columns of one name.
    """
    path = plain_or_gzipped(path)
    with _open(path, encoding) as file:
        lines = _decode_windows(path, [line.replace("\0", "") for line in file])
        first = next((number for number, line in enumerate(lines) if line.strip()), 0)
        if hint := re.fullmatch("sep=(.)\\s*", "".join(lines[first : first + 1])):  # the first line of Excel
            first += 1
        rows = _cut(lines, first, delimiter or (hint[1] if hint else _delimiter(path, lines[first:])))
        _, header, fault = next(rows, (0, [], None))
    if fault is not None:
        raise ValueError(f"{path}, line {first + 1}: {fault}, so that the names of the columns are not known")
    header = _checked_header(path, header, columns)
    records = [
        _record(header, cells, fault, index + 1, lines[index]) for index, cells, fault in rows if cells or fault
    ]
    if not records:
        raise ValueError(f"{path} is empty: expected a header and at least one row")
    return records


def _checked_header(path: Path, header: Iterable[str], columns: Iterable[str] = ()) -> list[str]:
    header = [name.replace("\ufeff", "").strip() for name in header]
    if header and (missing := [column for column in columns if column not in header]):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: it has {', '.join(header)}")
    if repeated := [name for name, count in Counter(filter(None, header)).items() if count > 1]:
        raise ValueError(f"{path} has several columns called {', '.join(repeated)}: rename all of them but one")
    return header


def read_excel(path: Path) -> dict[str, list[dict[str, str] | Broken]]:
    """Read the sheets of an Excel file that have a header and a row, by name; formulas count as their values.

    Raises:
        ImportError: The library openpyxl is not installed.
        ValueError: The file is damaged, or a sheet has two columns of one name.
    """
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise ImportError(f"{path} needs {error.name}: pip install 'm3ae[excel]', or save the table as CSV") from error
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about styles, which say nothing here
            closing(load_workbook(path, read_only=True, data_only=True)) as book,
        ):
            lines = {sheet.title: [[*map(_cell_text, row)] for row in sheet.values] for sheet in book.worksheets}
    except Exception as error:  # of zip, XML and whatever else the file is made of
        raise ValueError(f"{path} cannot be read ({error}): save it as CSV, or move it out of the folder") from error
    tables = {}
    for title, rows in lines.items():
        filled = [row for row in rows if any(row)]
        if len(filled) > 1:
            width = max(number for number, name in enumerate(filled[0], start=1) if name)
            header = _checked_header(path, filled[0][:width])
            tables[title] = [_record(header, row, None, 0, "") for row in filled[1:]]
    return tables


def _cell_text(cell: object) -> str:
    return "" if cell is None else whole_number(str(cell))


def _decode_windows(path: Path, lines: list[str]) -> list[str]:
    """Return lines whose bytes are not UTF-8 as Windows-1252, if they look like it, and say so on standard error.

    They do if no character beyond ASCII is UTF-8, and such bytes are few among letters and hardly ever three on end;
    in Asian and Cyrillic texts they are many.
    """
    text = "".join(line for line in lines if not line.isascii())
    runs = re.findall("[\udc80-\udcff]+", text)
    count = len("".join(runs))
    is_utf8 = count < len(re.findall("[^\0-\x7f]", text))
    are_few = 3 * count <= len(re.findall("[a-zA-Z\udc80-\udcff]", text))
    if not runs or is_utf8 or not are_few or 10 * sum(len(run) > 2 for run in runs) > len(runs):
        return lines
    with suppress(UnicodeDecodeError):
        lines = [line.encode("utf-8", "surrogateescape").decode("cp1252") for line in lines]
        print(f"{path} is not UTF-8 and was read as Windows-1252", file=sys.stderr)
    return lines


def _delimiter(path: Path, lines: list[str]) -> str:
    """Return the delimiter that cuts the header into most cells; the usual one goes first."""
    usual = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if ".tsv" in path.name.lower() else DELIMITERS
    return max(usual, key=lambda delimiter: len(next(csv.reader(lines, delimiter=delimiter), [])))


def _cut(lines: list[str], start: int, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Yield the index of every row's first line, its cells, and its fault, if it has one.

    A quotation mark that is not closed would take the rows behind it into its cell: such a line is cut alone.
    """
    while start < len(lines):
        index = start
        reader = csv.reader((lines[line] for line in range(start, len(lines))), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield index, cells, None
                index = start + reader.line_num
        except csv.Error:
            yield index, *_cut_alone(lines[index], delimiter)
        start = index + 1


def _cut_alone(line: str, delimiter: str) -> tuple[list[str], str | None]:
    """Cut a line whose marks may belong to cells: `"5" wide"`, `5" wide` and `"so" wide`, but not `"5 wide`."""
    end = re.escape(delimiter)
    quoted, plain = rf'"((?:[^"]|"(?! *{end}))*)" *', rf'((?!")[^{end}]*|(?:"[^{end}"]*"[^{end}"]*)+)'
    cell = re.compile(f"(?:{quoted}|{plain}){end}")
    line = line.rstrip("\r\n") + delimiter
    cells: list[str] = []
    start = 0
    while start < len(line):
        match = cell.match(line, start)
        if match is None:
            return [*cells, line[start:]], "quotation mark not closed"
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        start = match.end()
    return cells, None


def _record(header: list[str], cells: list[str], fault: str | None, number: int, line: str) -> dict[str, str] | Broken:
    record = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
    if fault is not None:
        return Broken(fault, f"line {number}: {line.strip()[:80]}", record)
    if any(cell.strip() for cell in cells[len(header) :]):
        return Broken("more cells than columns", None, record)
    return record


def read_json(path: Path, encoding: str | None = None) -> Any:
    """Read a JSON file; raise ValueError if it is damaged."""
    path = plain_or_gzipped(path)
    with _open(path, encoding) as file:
        try:
            return json.load(file, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_jsonl(path: Path, encoding: str | None = None) -> Iterator[tuple[int, dict[str, Any] | Broken]]:
    """Yield the number (from 1) of every line that is not blank, and its record."""
    path = plain_or_gzipped(path)
    with _open(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse_object(line)


def _parse_object(line: str) -> dict[str, Any] | Broken:
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except RepeatedKeyError as error:
        return Broken("key repeated", str(error), {})
    except (ValueError, RecursionError):
        record = None
    return record if isinstance(record, dict) else Broken("not a JSON object", None, {})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; the `json` module would drop all but the last value of a repeated key."""
    if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise RepeatedKeyError(f"{', '.join(repeated)}: expected one value each")
    return dict(pairs)


def is_nested(cell: Any) -> bool:
    """Return whether a cell of a JSON file holds more than a value or a list of values."""
    if isinstance(cell, list):
        return any(isinstance(value, dict | list) for value in cell)
    return isinstance(cell, dict)


def plain_or_gzipped(path: Path) -> Path:
    """Return a file, or its twin with or without `.gz` where the file is missing."""
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    for candidate in (path, twin):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing")


@contextmanager
def _open(path: Path, encoding: str | None) -> Iterator[TextIOWrapper]:
    """Open a table as text; a fault of the file itself becomes a ValueError that names it."""
    try:
        if path.suffix.lower() == ".gz":
            _refuse_bomb(path)
        with path.open("rb") as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else raw as binary:
            encoding = encoding or _utf16(binary.read(4))
            binary.seek(0)
            errors = "strict" if encoding else "surrogateescape"
            with TextIOWrapper(binary, encoding or "utf-8-sig", errors, newline="") as text:
                yield text
    except LookupError as error:
        raise ValueError(f"{error}: expected a name that Python knows, such as utf-8, cp1252 or gb18030") from error
    except (csv.Error, EOFError, UnicodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError if a file unpacks to over 100 times its size: tables shrink to a tenth or so."""
    left = 100 * path.stat().st_size + 2**20
    with gzip.open(path) as file:
        while chunk := file.read(2**20):
            left -= len(chunk)
            if left < 0:
                raise ValueError(f"{path} unpacks to more than 100 times its size: unpack it, and name that file")


def _utf16(head: bytes) -> str | None:
    """Return the encoding of a file that begins with a byte order mark of UTF-16, or with ASCII in it."""
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros)


def whole_number(name: str) -> str:
    """Return a name; a number loses the `.0` that programs add to a column with missing numbers."""
    return name[:-2] if name.endswith(".0") and name[:-2].isdecimal() else name


def printable(text: str) -> str:
    """Return a text with its lone surrogates spelt out, so that it can be written and printed."""
    return text.encode("utf-8", "backslashreplace").decode()
