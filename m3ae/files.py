"""Files and folders that are complete or absent, whatever happens while they are written, and never another's.

A folder is ours if its list of files says so: `SHA256SUMS`, or the manifest of its kind. Files that the list does not
name belong to somebody else, and stay.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

CHECKSUMS = "SHA256SUMS"
LOCK = ".m3ae.lock"
_STAGED = ".m3ae.incomplete"
_locked: set[Path] = set()  # by this process, which its locks would not stop


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file gets the name `path` if the block ends well, else it is removed.

    Raises:
        OSError: The disk is full, also where a library that writes tensors raises another error.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with full_disk_as_oserror():
            yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_json(path: Path) -> Any:
    """Return what a JSON file holds; raise ValueError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def load_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; raise ValueError if it is damaged, or holds something else."""
    if not isinstance(content := load_json(path), dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def write_text(path: Path, text: str) -> None:
    """Write a file that appears when it is whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_replaceable(path: Path, *signs: str) -> None:
    """Raise FileExistsError if a file lacks one of the words that all files of its kind by this package hold."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if path.exists() and not all(sign in text for sign in signs):
        raise FileExistsError(f"{path} was not written by m3ae, and would be replaced: choose another folder")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files appear in `target`, an absent or empty folder, if the block ends well.

    Raises:
        FileExistsError: `target` is not empty.
        OSError: The disk is full.
    """
    staged, is_new = target / _STAGED, not target.exists()
    if not is_new and not staged.exists() and any(target.iterdir()):
        name = min(path.name for path in target.iterdir())
        raise FileExistsError(f"{target} holds {name} already: choose a new or an empty folder")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        with full_disk_as_oserror():
            yield staged
        for path in staged.rglob("*"):
            _flush(path)
        for path in sorted(staged.iterdir()):
            path.rename(target / path.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new and target.exists() and not any(target.iterdir()):
            target.rmdir()


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` if the block ends well; raise OSError if the disk is full."""
    temporary = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with full_disk_as_oserror():
            yield temporary
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(source: Path, target: Path) -> None:
    """Give a folder its name once all its files are on the disk.

    An older folder of that name goes only then; the files of others in it move into the new one.
    """
    for path in [*source.rglob("*"), source]:
        _flush(path)
    restore(target)
    # A folder cannot replace one that is not empty, so the old one steps aside first.
    if target.exists():
        target.rename(_replaced(target))
    source.rename(target)
    _flush(target.parent)
    restore(target)


def restore(target: Path) -> None:
    """End a replacement that was interrupted: the older folder comes back if the new one is missing, else it goes."""
    old = _replaced(target)
    if old.exists() and not target.exists():
        old.rename(target)
    elif old.exists():
        for path in _others(old, ours=listed_files(old) or {path.name for path in target.iterdir()}):
            _move(path, target / path.relative_to(old))
        shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder with checksums; unlisted files in it move to `<name>.kept`. A folder without checksums stays."""
    if ours := listed_files(folder):
        for path in _others(folder, ours):
            _move(path, folder.with_name(f"{folder.name}.kept") / path.relative_to(folder))
        # Renamed first: a kill during the removal leaves no half of the folder under its name.
        shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.tmp")))


def remove_files(folder: Path, names: Collection[str]) -> None:
    """Remove files of a folder, and their beginnings by killed processes; names of other folders are skipped."""
    for name in names:
        if Path(name).name == name:
            for path in (folder / name, folder / f"{name}.tmp"):
                path.unlink(missing_ok=True)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder for writing until the block, or this process, ends in any way.

    Raises:
        BlockingIOError: Another process, or another thread of this one, is writing the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK).resolve()
    with path.open("a+", encoding="utf-8") as file:
        if path in _locked or not _lock(file):
            file.seek(0)
            holder = file.read() or "another process"
            raise BlockingIOError(f"{folder} is being written by {holder}: wait for its end, or choose another folder")
        try:
            _locked.add(path)
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
            _locked.remove(path)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Yield a temporary folder that is removed at the end; those of killed processes with the prefix go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (left / LOCK).is_file():
            with suppress(OSError), only_process(left):  # not while its process lives
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, only_process(Path(name)):
        yield Path(name)


def _lock(file: TextIO) -> bool:
    """Lock a file for this process alone, not for those that it forks; return whether it was free."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # some file systems have no locks
    return os.fstat(file.fileno()).st_nlink > 0  # not the file of a process that has just ended


def write_checksums(folder: Path, *, last: str) -> None:
    """Write the SHA-256 of all files as `sha256sum -c` reads them, that of `last` at the end: a cut list shows."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{file_sha256(files[name])}  {name}\n" for name in [*sorted(files.keys() - {last}), last]]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def listed_files(folder: Path) -> set[str]:
    """Return the names of the files in the list of checksums, and of the list; nothing without a list."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {CHECKSUMS, *(line.partition("  ")[2] for line in lines)}


def find_damage(folder: Path, *, last: str) -> str | None:
    """Return the first fault of a folder with checksums, or None."""
    name = CHECKSUMS
    try:
        *lines, rest = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").split("\n")
        if rest or not lines or not lines[-1].endswith(f"  {last}"):
            return f"{CHECKSUMS} is cut short"
        for line in lines:
            digest, _, name = line.partition("  ")
            if file_sha256(folder / name) != digest:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError) as error:  # a damaged list may name what no file can be called
        return f"{name} cannot be read: {error}"
    return None


def is_full_disk(error: OSError) -> bool:
    """Return whether an error is a full disk, a used-up quota or a limit on the size of files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_as_oserror() -> Iterator[None]:
    """Turn the errors of libraries about a file that cannot be written to its end into an `OSError`."""
    try:
        yield
    except Exception as error:
        # torch says only that its archive is shorter than what it wrote; libraries in Rust name the number.
        signs = ("inline_container", "os error 28", "os error 122", "os error 27")
        if isinstance(error, OSError) or not any(sign in str(error) for sign in signs):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _others(folder: Path, ours: Collection[str]) -> list[Path]:
    """Return the files of a folder that are not ours, neither by their path nor by a folder above them."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    paths = {path: path.relative_to(folder) for path in files}
    return [path for path, inner in paths.items() if not {*map(str, (inner, *inner.parents))} & {*ours}]


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(content: bytes) -> int:
    """Return a number below 2**56 that differs for different contents."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
