"""Files and folders that are whole or not there, their hashes, and their removal.

What is written has another name first, that of `partial_path`, and then takes its own. A process that is killed leaves
the old one or the new one, never half of one. What is written is forced to the disk before it gets its name, so that
the same holds for a power cut. What killed processes leave under partial names is removed by the next writer.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    import _csv

#: Remains of another machine are removed at this age, seconds. Whether its process still runs cannot be asked here.
_OLD: Final = 24 * 60 * 60
#: Longest field of a CSV, in characters. Columns beside those that are read may hold pages of text.
_MAX_FIELD: Final = 1 << 30


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


def partial_path(path: Path) -> Path:
    """Return the name that a file or folder has while this thread writes it: hidden, and in the same folder.

    The name tells machines, processes and threads apart, because several may write one file on a shared disk.
    """
    return path.with_name(f".{path.name}.partial-{_machine()}-{os.getpid()}-{threading.get_native_id()}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write. It appears at `path` when the block ends well, and is removed otherwise.

    If `path` is a link, the file that it points to is written.

    Raises:
        OSError: It cannot be written.
    """
    path = link_target(path)
    _remove_remains(path)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


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
    _remove_remains(path)
    partial = partial_path(path)
    # Folders within the partial one: a server that watches the parent finds nothing it knows at the top of it.
    new, old = partial / "new", partial / "replaced"
    new.mkdir(parents=True)
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
        remove(partial)


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
    """Remove what writers that have ended left of a file or folder under partial names."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        if _is_ended(remains):
            if (old := remains / "replaced").is_dir() and not path.exists():
                old.rename(path)
            remove(remains)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_ended(partial: Path) -> bool:
    """Return whether the writer of a file or folder under a partial name has ended."""
    machine, *numbers = partial.name.rpartition(".partial-")[2].split("-")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return False
    process, thread = map(int, numbers)
    if machine != _machine():
        try:
            return time.time() - partial.stat().st_mtime > _OLD
        except OSError:
            return False
    if process == os.getpid():  # also one that had this number before, as in a container
        return thread == threading.get_native_id() or thread not in {one.native_id for one in threading.enumerate()}
    return not _is_running(process)


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 is Ctrl-C there
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
