"""Tables as people save them: compressed, with a byte order mark, not UTF-8, cut off, ragged."""

import gzip
from pathlib import Path

import pytest

from m3ae.data.tables import printable, read_csv, read_json, read_jsonl, require_folder


def test_a_csv_is_read_plain_or_gzipped_whichever_is_there(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("id,name\n1,a\n")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"id,name\n1,a\n"))
    for name in ("plain.csv", "plain.csv.gz", "packed.csv", "packed.csv.gz"):
        assert read_csv(tmp_path / name, ("id",)) == [{"id": "1", "name": "a"}]


def test_odd_cells_survive(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n1,"two\nlines, ""quoted"""\r\n2\r\n\r\n3,nu\0l\r\n4,M\xfcller\r\n')
    assert [tuple(record.values()) for record in read_csv(path, ("id", "text"))] == [
        ("1", 'two\nlines, "quoted"'),
        ("2", ""),
        ("3", "nul"),
        ("4", "M\udcfcller"),
    ]


def test_a_file_without_header_takes_names(tmp_path: Path) -> None:
    (tmp_path / "qa.txt").write_text("a|b\nc|d\n")
    records = read_csv(tmp_path / "qa.txt", (), delimiter="|", names=("image", "question"))
    assert records == [{"image": "a", "question": "b"}, {"image": "c", "question": "d"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a header and at least one row"),
        (b"id,name\n", "is empty: expected a header and at least one row"),
        (b"id,title\n1,a\n", "lacks the columns name: it has id, title"),
        ("id,name\n1,a\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b'id,name\n1,"' + b"a" * 200_000, "cannot be read as a table: field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.csv {message}"):
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
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (3, None), (4, None), (5, None), (6, {"b": None})]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for read in (read_json, lambda path: list(read_jsonl(path)), lambda path: read_csv(path, ())):
        with pytest.raises(FileNotFoundError, match=r"absent\.x is missing"):
            read(tmp_path / "absent.x")
    assert require_folder(tmp_path, "anything") == tmp_path
    with pytest.raises(FileNotFoundError, match="no does not exist: expected the unpacked set"):
        require_folder(tmp_path / "no", "the unpacked set")


def test_printable_spells_out_what_is_not_utf8() -> None:
    assert printable("naïve \udcff") == "naïve \\udcff"
