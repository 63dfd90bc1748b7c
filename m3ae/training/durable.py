"""Folders that are complete or absent, whatever happens while they are written, and that show later damage."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from m3ae.data.shards import file_sha256

CHECKSUMS = "SHA256SUMS"


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that becomes `target` only when the block has ended well.

    Raises:
        OSError: The disk is full; the libraries that write tensors say so each in its own way.
    """
    temporary = target.parent / ".incomplete" / target.name
    shutil.rmtree(temporary.parent, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with full_disk_as_oserror():
            yield temporary
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


def publish(source: Path, target: Path) -> None:
    """Give a folder its name once all of it is on the disk; an older folder of that name goes only then."""
    for path in [*source.rglob("*"), source]:
        _flush(path)
    # A folder cannot replace one that is not empty, so the old one steps aside first.
    old = _replaced(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore(target: Path) -> None:
    """Bring back the older folder if a kill came between its stepping aside and the new one's arrival."""
    if not target.exists() and _replaced(target).exists():
        _replaced(target).rename(target)


def write_checksums(folder: Path, *, last: str) -> None:
    """Write the SHA-256 of all files as `sha256sum -c` reads them, that of `last` at the end: a cut list shows."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{file_sha256(files[name])}  {name}\n" for name in [*sorted(files.keys() - {last}), last]]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def find_damage(folder: Path, *, last: str) -> str | None:
    """Return what is wrong with a folder that `write_checksums` has closed, or None."""
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
    """Return whether there was no room: a full disk, a used-up quota, a limit on the size of files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_as_oserror() -> Iterator[None]:
    """Turn what torch and safetensors raise when a file cannot be written to its end into an `OSError`."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        # torch says only that its archive is shorter than what it wrote.
        if not any(sign in str(error) for sign in ("inline_container", "os error 28", "os error 122", "os error 27")):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _replaced(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
