"""Files and folders that are whole or not there, their hashes, their removal, and the user's cache.

What is written has another place first, in a hidden folder beside its own, and then takes its name. A process that is
killed leaves the old one or the new one, never half of one. What is written is forced to the disk before it gets its
name, so that the same holds for a power cut. The hidden folder is locked while its writer lives, on whatever machine;
what killed writers leave is removed by the next one.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    import _csv

#: Hidden folders without a lock are removed at this age, in seconds: of writers that were killed as they began, and of
#: older versions.
_OLD: Final = 24 * 60 * 60
_LOCK: Final = "lock"
#: Longest field of a CSV, in characters. Columns beside those that are read may hold pages of text.
_MAX_FIELD: Final = 1 << 30


def cache_folder(*names: str) -> Path | None:
    """Return a folder in the user's cache. It is made if it does not exist.

    Compiled files go there and never into the bundle, because a bundle may be shared and read-only.

    Args:
        names: The folder's path inside glia-rt's cache.

    Returns:
        The folder. None if the user has no writable cache folder, as in many containers; a backend then compiles at
        every start.
    """
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("glia-rt", appauthor=False).joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no HOME, and the user has no entry that names one
        return None
    return folder if os.access(folder, os.W_OK) else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_rows(lines: Iterable[str], dialect: str = "excel") -> _csv.Reader:
    """Return the rows of a CSV, whose fields may be long.

    Args:
        lines: The lines, with their ends.
        dialect: "excel" or "excel-tab".

    Raises:
        csv.Error: While the rows are read: a row is badly quoted.
    """
    csv.field_size_limit(_MAX_FIELD)  # of the whole process: one value for all that read here
    return csv.reader(lines, dialect=dialect, strict=True)


def link_target(path: Path) -> Path:
    """Return the path that a link points to in the end, whether or not it is there; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def longest_path(path: Path) -> Path:
    """Return the longest path that is made while a file or folder is written, to find out whether it can be."""
    return _hidden(path, "0" * 8) / _LOCK


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Make a hidden folder for what is being written, locked until the block ends, and then removed."""
    from filelock import FileLock, Timeout

    _remove_remains(path)
    while True:
        folder = _hidden(path, secrets.token_hex(4))
        folder.mkdir()
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(blocking=False)
            break
        except (FileNotFoundError, Timeout):  # another writer took it for remains, between the two lines
            continue
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        if folder.exists():  # over NFS it was not empty while the lock was open
            shutil.rmtree(folder, ignore_errors=True)


def _hidden(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}.partial-{name}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write. It appears at `path` when the block ends well, and is removed otherwise.

    If `path` is a link, the file that it points to is written.

    Raises:
        OSError: It cannot be written.
    """
    path = link_target(path)
    with _partial(path) as folder:
        with (folder / "new").open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(folder / "new", path)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8; raises as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def rename(source: Path, target: Path) -> None:
    """Give a file another name in its folder, so that a power cut does not undo it; replaces what has that name."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a network file system that cannot do this says EINVAL
            raise
    finally:
        os.close(opened)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder to fill. It becomes `path` when the block ends well, and is removed otherwise.

    A folder that has the name already is replaced. What a killed process left of the same folder is removed first. If
    it was killed between the two renames, the old folder gets its name back.

    Raises:
        OSError: The parent folder cannot be written.
    """
    with _partial(path) as folder:
        new, old = folder / "new", folder / "replaced"
        new.mkdir()
        try:
            yield new
            _sync_tree(new)
            if path.exists():
                path.rename(old)
            new.rename(path)
            sync_folder(path.parent)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)


def _sync_tree(folder: Path) -> None:
    """Force all that is in a folder to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it. What is not there or may not be removed is passed over."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_remains(path: Path) -> None:
    """Remove what writers that have ended left of a file or folder."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with _locked_if_ended(remains) as is_ended:
            if is_ended:
                if (old := remains / "replaced").is_dir() and not path.exists():
                    old.rename(path)
                remove(remains)


@contextmanager
def _locked_if_ended(remains: Path) -> Iterator[bool]:
    """Yield whether a writer has ended; then no other one takes its remains for its own meanwhile."""
    from filelock import FileLock, Timeout

    if not (remains / _LOCK).exists():
        yield _age(remains) > _OLD
        return
    lock = FileLock(remains / _LOCK)
    try:
        lock.acquire(blocking=False)
    except (OSError, Timeout):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _age(path: Path) -> float:
    """Return for how many seconds a file or folder has not changed, 0 if it has just been removed."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
