"""Tables as people save them: compressed, with a byte order mark, not UTF-8, cut off, ragged."""

import gzip
import os
import sys
from pathlib import Path

import pytest

from m3ae.data.tables import (
    Broken,
    printable,
    read_csv,
    read_excel,
    read_json,
    read_jsonl,
    require_folder,
    visible_files,
)


def test_a_csv_is_read_plain_or_gzipped_whichever_is_there(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("id,name\n1,a\n")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"id,name\n1,a\n"))
    for name in ("plain.csv", "plain.csv.gz", "packed.csv", "packed.csv.gz"):
        assert read_csv(tmp_path / name, ("id",)) == [{"id": "1", "name": "a"}]


def test_odd_cells_survive(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    lines = [b'1,"two\nlines, ""quoted"" words"', b"2", b"", b"3,nu\0l", b"4,\xc3\xbc M\xfcller", b"007,NA,, ,"]
    path.write_bytes(b"\r\n".join([b"\xef\xbb\xbf", b" id ,text", *lines]))
    assert [tuple(record.values()) for record in good(path)] == [
        ("1", 'two\nlines, "quoted" words'),
        ("2", ""),
        ("3", "nul"),
        ("4", "ü M\udcfcller"),
        ("007", "NA"),
    ]


def good(path: Path) -> list[dict[str, str]]:
    records = read_csv(path)
    assert all(isinstance(record, dict) for record in records)
    return [record for record in records if isinstance(record, dict)]


@pytest.mark.parametrize(
    "text",
    [
        "id;text\n1;a, b\n",
        "sep=;\nid;text\n1;a, b\n",
        "id|text\n1|a, b\n",
        "id\ttext\n1\ta, b\n",
        'id,text\n1,"a, b"\n',
        'id,text\r1,"a, b"\r',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_delimiter_line_ends_and_encoding_are_found(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert good(tmp_path / "a.csv") == [{"id": "1", "text": "a, b"}]


def test_the_name_says_tabs_where_the_header_could_be_either(tmp_path: Path) -> None:
    for name, columns in (("a.TSV", ["id", "text, long"]), ("a.csv", ["id\ttext", "long"])):
        (tmp_path / name).write_text("id\ttext, long\n1\tb\n")
        assert [*good(tmp_path / name)[0]] == columns


def test_delimiter_and_encoding_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id~text, long\n1~双肺清晰\n".encode("gb18030"))
    assert read_csv(tmp_path / "a.csv", (), "~", "gb18030") == [{"id": "1", "text, long": "双肺清晰"}]
    with pytest.raises(ValueError, match=r"a\.csv cannot be read as a table: 'utf-8' codec"):
        read_csv(tmp_path / "a.csv", (), None, "utf-8")


def test_sheets_of_excel_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in ([], [" id ", "text", "seen", None], [7, "größer", 1.0], [None, None, None], [8, None, 2.5, "surplus"]):
        book.active.append(row)
    book.create_sheet("notes").append(["a header alone"])
    book.save(tmp_path / "a.xlsx")
    first = {"id": "7", "text": "größer", "seen": "1"}
    last = Broken("more cells than columns", None, {"id": "8", "text": "", "seen": "2.5"})
    assert read_excel(tmp_path / "a.xlsx") == {"Sheet": [first, last._replace(detail=None)]}
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        ImportError, match=r"a\.xlsx needs openpyxl: pip install 'm3ae\[excel\]', or save the table as"
    ):
        read_excel(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Müller, naïve, 37 °C, 5 €", True),
        ("eine Lunge, größer als die andere", True),
        ("ノイズ", False),
        ("лёгкие чистые", False),
        ("双肺清晰", False),
    ],
)
def test_windows_1252_is_read_and_said(
    tmp_path: Path, text: str, read: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    encoding = "cp1252" if read else {"л": "cp1251", "ノ": "shift_jis"}.get(text[0], "gb18030")
    (tmp_path / "a.csv").write_bytes(f'id,text\n1,"{text}"\n'.encode(encoding))
    (record,) = good(tmp_path / "a.csv")
    assert (record["text"] == text, "was read as Windows-1252" in capsys.readouterr().err) == (read, read)


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        (['1,"open', "2,b", "3,c"], [1]),  # to the end of the file
        (["1,a", '2,"open', '3,"b, c"', "4,d"], [2]),  # to the next quotation mark
        (['1,"open', '"2","b"', '3,"open', "4,d"], [1, 3]),
        (['1,"open', '"more" and", end"', "2,b"], [1]),
        (['1,5" wide', '2,a "quoted" word', '3,"a" at the start', "4,b"], []),
        (["1,a", "2,b", '3,"'], [3]),
        (['"1","open', "2,b"], [1]),
    ],
)
def test_a_quotation_mark_that_is_not_closed_costs_its_line_alone(
    tmp_path: Path, lines: list[str], broken: list[int]
) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *lines]))
    records = read_csv(tmp_path / "a.csv", ("id", "text"))
    faults = [record for record in records if isinstance(record, Broken)]
    assert len(records) == len(lines)
    assert [(fault.reason, fault.detail.partition(":")[0]) for fault in faults if fault.detail] == [
        ("quotation mark not closed", f"line {line + 1}") for line in broken
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a header and at least one row"),
        (b"id,name\n", "is empty: expected a header and at least one row"),
        (b"id,title\n1,a\n", "lacks the columns name: it has id, title"),
        ("id,name\n1,a\n".encode("utf-16")[:-1], "cannot be read as a table: .*truncated data"),
        (b"id,name,name, Name \n1,a,b,c\n", "has several columns called name: rename all of them but one"),
        (b'id,"name\n1,a\n', ", line 1: quotation mark not closed"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.csv ?{message}"):
        read_csv(tmp_path / "bad.csv", ("id", "name"))


@pytest.mark.parametrize("content", [gzip.compress(b"id\n1\n" * 99, mtime=0)[:-12], b"no gzip at all"])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cut.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.csv\.gz cannot be read as a table"):
        read_csv(tmp_path / "cut.csv.gz", ())


def test_json_is_read_or_its_fault_named(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('[{"a": 1}]')
    assert read_json(tmp_path / "good.json") == [{"a": 1}]
    for content in ("{", "[" * 100_000):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
            read_json(tmp_path / "bad.json")


def test_json_lines_keep_their_numbers_and_broken_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n[2]\n{"a":\n' + '{"a": ' + "9" * 5000 + '}\n{"b": null}')
    broken = Broken("not a JSON object", None, {})
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [
        *[(1, {"a": 1}), (3, broken), (4, broken), (5, broken)],
        (6, {"b": None}),
    ]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('a 5" tube', 'a 5" tube'),
        ('"a 5" tube, long"', 'a 5" tube, long'),
        ('"5" tube, ""long""" ', '5" tube, "long"'),
        ('"tube" of 5', '"tube" of 5'),
        ('"tube of 5', None),
        ("a" * 200_000, "a" * 200_000),
        (f'"{"a" * 200_000}"', "a" * 200_000),
    ],
)
@pytest.mark.parametrize("delimiter", ",;\t|")
def test_quotation_marks_within_a_cell(tmp_path: Path, cell: str, text: str | None, delimiter: str) -> None:
    lines = [["id", "text", "age"], ["1", cell, "5"], ["2", "b", "6"]]
    (tmp_path / "a.csv").write_text("\n".join(delimiter.join(cells) for cells in lines))
    first, second = read_csv(tmp_path / "a.csv")
    assert second == {"id": "2", "text": "b", "age": "6"}
    assert first == {"id": "1", "text": text, "age": "5"} or (text is None and isinstance(first, Broken))


def test_a_key_that_is_there_twice_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "a": 2}\n')
    assert [*read_jsonl(tmp_path / "a.jsonl")] == [(1, Broken("key repeated", "a: expected one value each", {}))]
    with pytest.raises(ValueError, match=r"a\.jsonl is not valid JSON: a: expected one value each"):
        read_json(tmp_path / "a.jsonl")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for read in (read_json, lambda path: list(read_jsonl(path)), lambda path: read_csv(path, ())):
        with pytest.raises(FileNotFoundError, match=r"absent\.x is missing"):
            read(tmp_path / "absent.x")
    assert require_folder(tmp_path, "anything") == tmp_path
    with pytest.raises(FileNotFoundError, match="no does not exist: expected the unpacked set"):
        require_folder(tmp_path / "no", "the unpacked set")


def test_printable_spells_out_what_is_not_utf8() -> None:
    assert printable("naïve \udcff") == "naïve \\udcff"


def test_an_archive_that_unpacks_to_far_more_than_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n" + b"1\n" * 10_000_000))
    with pytest.raises(ValueError, match=r"a.csv.gz unpacks to more than 100 times its size: unpack it"):
        read_csv(tmp_path / "a.csv.gz")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/x.png", ".a/x.png", "c.png", ".c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert visible_files(tmp_path) == [tmp_path / "b" / "x.png", tmp_path / "c.png"]
    scan = os.scandir

    def locked(path: str) -> object:
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match=r"Permission denied: .*b'"):
        visible_files(tmp_path)
