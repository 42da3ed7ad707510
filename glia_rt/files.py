"""Files and folders that are whole or not there, their hashes, and their removal. Nothing else here writes files.

What is written goes under another name first, PARTIAL, is forced to the disk, and then takes its own name. A process
that is killed, or a power cut, leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(path: Path) -> Path:
    """Return the name that a file or folder has while this process writes it: hidden, and in the same folder."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write. It appears at `path` when the block ends well, and is removed otherwise.

    Raises:
        OSError: It cannot be written.
    """
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
        if error.errno != errno.EINVAL:  # some network file systems say so, which know no such thing
            raise
    finally:
        os.close(opened)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder to fill. It becomes `path` when the block ends well, and is removed otherwise.

    A folder that has the name already is replaced. What a killed process left of the same folder is removed first.

    Raises:
        OSError: The parent folder cannot be written.
    """
    for remains in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        # A process of this one's own number may have been there before, as in a container.
        process = remains.name.rpartition("-")[2]
        if process.isdecimal() and (int(process) == os.getpid() or not _is_running(int(process))):
            remove(remains)
    partial = partial_path(path)
    # Folders within the partial one: a server that watches the parent finds nothing it knows at the top of it.
    new, old = partial / "new", partial / "replaced"
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is none, or where it may not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


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
