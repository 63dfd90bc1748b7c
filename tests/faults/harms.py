"""What can go wrong with a file: cut short, bits flipped, parts lost, doubled or replaced by the unexpected."""

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

PIECES = (
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\xed\xa0\x80"),
    *("\u202e\u0301".encode(), "٣".encode(), "\u2028x".encode()),
    *(b"\n", b"\r", b"\t", b",", b'"', b"|", b";", b"'", b"\\", b"\\ud800", b"\\u0000", b"#", b"%s{0}"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 25, b"9" * 5000, b"0.1", b"1_0", b"0x1f"),
    *(b"[]", b"{}", b'""', b"[" * 500, b"[" * 3000, b'{"a":' * 3000, b"[[1]]", b'["a"]', b'{"id": 3}'),
    *(b"a" * 300, b"z" * 140_000),
    *(b"../../etc/passwd", b"/etc/passwd", b"..", b".", b"~", b"/", b"a/../../b", b"C:\\x.png", b"/dev/zero", b"file:///etc"),
    *(b"train", b"test", b"id", b"image", b"validation", b"2", b"1", b"en", b"yes"),
)  # fmt: skip
WORD = re.compile(rb"[^\s,;:|\"'\[\]{}=()]+")


@dataclass(frozen=True)
class Target:
    """Something that is fuzzed.

    Attributes:
        cases: Its inputs.
        check: Tries one, and says in a word how it ended; it raises if it ended as it should not.
    """

    cases: st.SearchStrategy[Any]
    check: Callable[[Any], str]


class Harm(NamedTuple):
    """A way to damage contents at a place, given as a share of their length."""

    way: str
    place: float
    size: int
    piece: bytes


def cut(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[:at]


def flip(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[:at] + bytes(byte ^ (1 << harm.size % 8) for byte in contents[at : at + 1]) + contents[at + 1 :]


def insert(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[:at] + harm.piece + contents[at:]


def overwrite(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[:at] + harm.piece + contents[at + len(harm.piece) :]


def remove(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[:at] + contents[at + harm.size :]


def double(contents: bytes, at: int, harm: Harm) -> bytes:
    return contents[: at + harm.size] + contents[at:]


def replace_word(contents: bytes, at: int, harm: Harm) -> bytes:
    words = [*WORD.finditer(contents)]
    if not words:
        return harm.piece
    word = words[at * len(words) // (len(contents) + 1)]
    return contents[: word.start()] + harm.piece + contents[word.end() :]


WAYS: dict[str, Callable[[bytes, int, Harm], bytes]] = {
    function.__name__: function for function in (cut, flip, insert, overwrite, remove, double, replace_word)
}
harms = st.builds(
    Harm,
    way=st.sampled_from([*WAYS, "replace_word"]),
    place=st.floats(0, 1),
    size=st.integers(1, 64),
    piece=st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)),
)


def damage(contents: bytes, harm: Harm) -> bytes:
    """Return damaged contents; what is gzipped is damaged inside, or outside where bits are flipped."""
    if contents[:2] == b"\x1f\x8b" and harm.way != "flip":
        with suppress(OSError, EOFError, zlib.error):  # damaged outside before
            return gzip.compress(damage(gzip.decompress(contents), harm), 1)
    return WAYS[harm.way](contents, int(harm.place * len(contents)), harm)


class FileHarm(NamedTuple):
    """Damage to one file of a folder, or the loss of it, or a folder or another file in its place."""

    number: int
    what: str
    harm: Harm


file_harms = st.lists(
    st.builds(FileHarm, st.integers(0, 99), st.sampled_from(["damage"] * 9 + ["lose", "folder", "swap"]), harms),
    min_size=1,
    max_size=3,
)


class Folder:
    """A folder of small files, damaged for each case and put right after it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
        small = [file for file in self.contents if file.suffix.lower() not in (".jpg", ".png", ".wav")]
        # Tables and records before images, which are many and alike.
        self.files = [*small * max(1, 3 * (len(self.contents) - len(small)) // max(1, len(small))), *self.contents]

    @contextmanager
    def harmed(self, case: Sequence[FileHarm]) -> Iterator[None]:
        """Damage files, and put them right at the end."""
        touched = []
        try:
            for number, what, harm in case:
                file = self.files[number % len(self.files)]
                touched.append(file)
                if not file.is_file():
                    continue
                if what == "damage":
                    file.write_bytes(damage(file.read_bytes(), harm))
                elif what == "swap":
                    file.write_bytes(self.contents[self.files[harm.size % len(self.files)]])
                else:
                    file.unlink()
                    if what == "folder":
                        file.mkdir()
            yield
        finally:
            for file in touched:
                if file.is_dir():
                    file.rmdir()
                file.write_bytes(self.contents[file])
